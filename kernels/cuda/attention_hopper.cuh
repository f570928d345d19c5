/* attention_hopper.cuh - what the attention kernels for sm_90a share: tiles that bulk copies bring,
   products of a warpgroup on them.

   A tile of ROWS tokens and HD columns lies in shared memory as panels of 64 columns, 128 bytes a row. Within
   a panel, chunk c (16 bytes) of row r lies where c ^ (r % 8) would: the swizzle of 128 bytes, which bulk
   copies write and products read.

        panel 0: columns 0 .. 63     panel 1: columns 64 .. 127
        row 0    0 1 2 3 4 5 6 7     row 0    0 1 2 ...             ROWS x 128 bytes each
        row 1    1 0 3 2 5 4 7 6     ...

   A run of tokens has a tensor map of its own, (head_dim, heads of all sequences, tokens of the run): what a tile lacks
   past the run's end, or past the head dim, arrives as zeros. */
#ifndef ODYSSEUS_CUDA_ATTENTION_HOPPER_H
#define ODYSSEUS_CUDA_ATTENTION_HOPPER_H

#include "attention.cuh"
#include "ptx_hopper.h"

enum { GROUP_THREADS = 128 }; /* of a warpgroup */

/* ---- tensor maps ---- */

/* The map of run r: `rows` heads of head_dim elements in a token, `step` elements from token to token; a copy brings
   box_rows tokens and box_cols elements of one head. */
static inline void run_tensor_map(TensorMap *to, int type, const void *base, i64 head_dim, i64 rows, i64 step,
                                  const TokenMap *map, int r, int box_cols, int box_rows) {
    if (map->run[r].count == 0) return; /* no tile asks for it */
    uint64_t bytes = type == TENSOR_BF16 ? 2 : 4, strides[2] = {(uint64_t)head_dim * bytes, (uint64_t)step * bytes};
    uint64_t dims[3] = {(uint64_t)head_dim, (uint64_t)rows, (uint64_t)map->run[r].count};
    uint32_t box[3] = {(uint32_t)box_cols, 1, (uint32_t)box_rows};
    tensor_map_encode(to, type, (const char *)base + (r ? (uint64_t)map->run[0].count * strides[1] : 0), 3, dims,
                      strides, box, 1);
}

/* ---- tiles ---- */

/* Where a tile begins: which run's map, and which of its tokens. */
__device__ __forceinline__ int tile_run(const AttentionMap &m, int i) { return i >= m.tiles[0]; }
__device__ __forceinline__ int tile_token(const AttentionMap &m, int i, int size) {
    return (i >= m.tiles[0] ? i - m.tiles[0] : i) * size;
}

/* Begin to bring tile i of a head. One thread; the barrier expects ROWS x HD x 2 bytes. */
template <int ROWS, int HD>
__device__ __forceinline__ void tile_load(bf16 *tile, const TensorMap *maps, const AttentionMap &m, int i, int head,
                                          Mbarrier *b) {
    const TensorMap *map = maps + tile_run(m, i);
    UNROLL
    for (int c = 0; c < HD; c += 64) tma_load_3d(tile + c * ROWS, map, b, c, head, tile_token(m, i, ROWS));
}

/* A ring of stages, filled and emptied in turn: what number n uses, and the parity of its round. */
template <int STAGES> __device__ __forceinline__ int ring_stage(int n) { return n % STAGES; }
template <int STAGES> __device__ __forceinline__ int ring_parity(int n) { return n / STAGES % 2; }

/* ---- products ---- */

/* A tile of ROWS rows as an operand. Down: its columns are K. Across: its rows are K, and
   its columns may span panels. */
__device__ __forceinline__ uint64_t operand_down(const bf16 *tile) { return wgmma_descriptor(tile, 16, 1024, 1); }
template <int ROWS> __device__ __forceinline__ uint64_t operand_across(const bf16 *tile) {
    return wgmma_descriptor(tile, ROWS * 128, 1024, 1);
}

/* How far a descriptor moves for K index k, a multiple of 16. */
template <int ROWS> __device__ __forceinline__ uint64_t down_step(int k) {
    return (uint64_t)(k / 64 * ROWS * 8 + k % 64 / 8);
}
__device__ __forceinline__ uint64_t across_step(int k) { return (uint64_t)(k * 8); }

/* acc (64 x N) = A B^T, or += where `add`, both with K columns. `a` begins at this warpgroup's rows;
   A_ROWS, B_ROWS: of their tiles. */
template <int N, int K, int A_ROWS, int B_ROWS>
__device__ __forceinline__ void group_multiply(float (&acc)[N / 2], const bf16 *a, const bf16 *b, bool add = false) {
    uint64_t da = operand_down(a), db = operand_down(b);
    UNROLL
    for (int k = 0; k < K; k += 16)
        wgmma_ss<N, false, false>(acc, da + down_step<A_ROWS>(k), db + down_step<B_ROWS>(k), add || k > 0);
}

/* acc (64 x N) += P B, P in registers as the accumulators of another product left it, rounded; B's K rows. */
template <int N, int K, int B_ROWS>
__device__ __forceinline__ void group_multiply(float (&acc)[N / 2], const uint32_t (&p)[K / 16][4], const bf16 *b) {
    uint64_t db = operand_across<B_ROWS>(b);
    UNROLL
    for (int k = 0; k < K; k += 16) wgmma_rs<N, true>(acc, p[k / 16], db + across_step(k), true);
}

/* Accumulators as one row of numbers, as the products take them. */
template <int NT> __device__ __forceinline__ float (&flat(float (&x)[1][NT][4]))[4 * NT] {
    return *(float(*)[4 * NT])(&x);
}

/* Accumulators of two pieces of 8 columns side by side, rounded, are an A operand of 16. */
template <int NT> __device__ __forceinline__ void round_pieces(uint32_t (&p)[NT / 2][4], const float (&x)[1][NT][4]) {
    UNROLL
    for (int k = 0; k < NT; k += 2)
        UNROLL
    for (int r = 0; r < 4; r++)
        p[k / 2][r] = bf16x2_round(x[0][k + r / 2][2 * (r % 2)], x[0][k + r / 2][2 * (r % 2) + 1]);
}

/* ptxas would move what can be computed while products run behind the wait for them. It cannot where something comes in
   between that needs the result: x, a sum of powers, is never negative. */
__device__ __forceinline__ void before_the_wait(float x) {
    if (__any_sync(0xffffffffu, x < 0)) kernel_trap();
}

/* One arrival for each warp: its own products, and what its lanes have read, are done. */
__device__ __forceinline__ void warp_arrive(Mbarrier *b) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(b);
}

#endif

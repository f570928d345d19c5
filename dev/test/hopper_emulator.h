/* hopper_emulator.h - what test_emulator.cu asks of dev/emu/ptx_hopper.h: the layouts of the PTX ISA, written out from
   its tables by hand, and faults.

   "Swizzling Modes": 16-byte chunks of a line of 128 bytes, as they lie in shared memory, line by
   line of the repeating pattern.                                                                                     */
#ifndef ODYSSEUS_TEST_HOPPER_EMULATOR_H
#define ODYSSEUS_TEST_HOPPER_EMULATOR_H

#include <utility>

typedef struct {
    int width, lines; /* bytes of a row; lines of the pattern */
    int chunk[8][8];
} SwizzleTable;
static const SwizzleTable SWIZZLES[4] = {
    {16, 1, {{0, 1, 2, 3, 4, 5, 6, 7}}},
    {128, 8,
     {{0, 1, 2, 3, 4, 5, 6, 7},
      {1, 0, 3, 2, 5, 4, 7, 6},
      {2, 3, 0, 1, 6, 7, 4, 5},
      {3, 2, 1, 0, 7, 6, 5, 4},
      {4, 5, 6, 7, 0, 1, 2, 3},
      {5, 4, 7, 6, 1, 0, 3, 2},
      {6, 7, 4, 5, 2, 3, 0, 1},
      {7, 6, 5, 4, 3, 2, 1, 0}}},
    {64, 4, {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4}}},
    {32, 2, {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}}},
};

/* Where the table puts what would lie at `offset` (from a multiple of the pattern) without a swizzle. */
static inline int table_place(int swizzle, int offset) {
    const SwizzleTable *t = &SWIZZLES[swizzle];
    const int *line = t->chunk[offset / 128 % t->lines];
    for (int p = 0; p < 8; p++)
        if (line[p] == offset / 16 % 8) return offset / 128 * 128 + p * 16 + offset % 16;
    return -1;
}

/* exact in bf16, as are sums of their products in fp32 */
static inline float small_number(int i) { return (float)((i * 37 + i / 11 % 13) % 17 - 8); }

/* ---- bulk loads -------------------------------------------------------------------------------------------------- */

enum { BOX_BYTES = 4096 };

template <int RANK>
__global__ void load_box(const __grid_constant__ TensorMap map, int bytes, int c0, int c1, int c2, int c3,
                         uint16_t *out) {
    SHARED_DYNAMIC_ALIGNED(uint16_t, tile, 1024);
    SHARED(Mbarrier, full, 1);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        tma_prefetch_map(&map);
        mbarrier_arrive_expect(full, bytes);
        if (RANK == 2) tma_load_2d(tile, &map, full, c0, c1);
        if (RANK == 3) tma_load_3d(tile, &map, full, c0, c1, c2);
        if (RANK == 4) tma_load_4d(tile, &map, full, c0, c1, c2, c3);
    }
    mbarrier_wait(full, 0);
    for (int i = threadIdx.x; i < bytes / 2; i += blockDim.x) out[i] = tile[i];
}

/* A box of `box` at `c` of a tensor [.., 5][6][3][40] of uint16 numbers: every element where the
   table says, what is outside 0. */
template <int RANK> static int box_is_right(int swizzle, int inner, const int *c) {
    static const uint64_t dims[4] = {40, 3, 6, 5}, strides[3] = {
        96, 96 * 4, 96 * 4 * 6}; /* rows of 48, planes of four rows */
    const uint32_t box[4] = {(uint32_t)inner, 2, 4, 2};
    int elements = inner * 2 * (RANK > 2 ? 4 : 1) * (RANK > 3 ? 2 : 1), bytes = 2 * elements, total = 48 * 4 * 6 * 5;
    uint16_t *tensor, *out, host[BOX_BYTES / 2], *numbers = (uint16_t *)malloc(2 * (size_t)total);
    cudaStream_t stream;
    TensorMap map;
    for (int i = 0; i < total; i++) numbers[i] = (uint16_t)(i + 1);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&tensor, 2 * (size_t)total));
    CUDA_CHECK(cudaMalloc((void **)&out, (size_t)bytes));
    CUDA_CHECK(cudaMemcpy(tensor, numbers, 2 * (size_t)total, cudaMemcpyHostToDevice));
    tensor_map_encode(&map, TENSOR_BF16, tensor, RANK, dims, strides, box, swizzle);
    LAUNCH(load_box<RANK>, dim3(1), dim3(64), BOX_BYTES, stream, map, bytes, c[0], c[1], c[2], c[3], out);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaMemcpy(host, out, (size_t)bytes, cudaMemcpyDeviceToHost));
    int right = 1;
    for (int e = 0; e < elements; e++) {
        int x = c[0] + e % inner, y = c[1] + e / inner % 2, z = RANK > 2 ? c[2] + e / inner / 2 % 4 : 0,
            w = RANK > 3 ? c[3] + e / inner / 8 : 0;
        int inside = x >= 0 && x < 40 && y >= 0 && y < 3 && z >= 0 && z < 6 && w >= 0 && w < 5;
        uint16_t want = inside ? numbers[x + 48 * (y + 4 * (z + 6 * w))] : (uint16_t)0;
        right &= host[table_place(swizzle, 2 * e) / 2] == want;
    }
    CUDA_CHECK(cudaFree(tensor));
    CUDA_CHECK(cudaFree(out));
    CUDA_CHECK(cudaStreamDestroy(stream));
    free(numbers);
    return right;
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

/* How an operand lies in shared memory: rows (M or N) by K. Strides wider than the tiles need, so
   that each is seen to be used. */
typedef struct {
    int swizzle, turned, rows, k, leading, stride;
} OperandLayout;

static OperandLayout operand_layout(int swizzle, int turned, int rows) {
    int width = SWIZZLES[swizzle].width, atom = 8 * width;
    OperandLayout l = {swizzle, turned, rows, !turned && swizzle ? width / 2 : 16, 0, 0};
    if (!swizzle) l.leading = turned ? (128 + 16) * (rows / 8) + 256 : 128 + 16, l.stride = turned ? 128 + 16 : 288;
    else if (turned) l.stride = 2 * atom, l.leading = 5 * atom;
    else l.stride = 2 * atom, l.leading = 16;
    return l;
}

/* Byte of element (row, k), from "Canonical Layouts" and the definitions of the two strides. */
static int operand_place(const OperandLayout *l, int row, int k) {
    int width = SWIZZLES[l->swizzle].width;
    /* ((8,m),(T,2k)):((1T,SBO),(1,LBO)) */
    if (!l->swizzle && !l->turned) return row % 8 * 16 + row / 8 * l->stride + k / 8 * l->leading + k % 8 * 2;
    /* ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO)) */
    if (!l->swizzle) return row % 8 * 2 + row / 8 * l->stride + k % 8 * 16 + k / 8 * l->leading;
    /* ((8,m),(T,2k)):((xT,SBO),(1,T)) */
    if (!l->turned) return row / 8 * l->stride + table_place(l->swizzle, row % 8 * width + 2 * k);
    /* ((T,x,m),(8,k)):((1,T,LBO),(xT,SBO)) */
    return row / (width / 2) * l->leading + k / 8 * l->stride +
           table_place(l->swizzle, k % 8 * width + row % (width / 2) * 2);
}
static int operand_bytes(const OperandLayout *l) {
    int most = 0;
    for (int r = 0; r < l->rows; r++)
        for (int k = 0; k < l->k; k++)
            if (operand_place(l, r, k) + 2 > most) most = operand_place(l, r, k) + 2;
    return (most + 1023) / 1024 * 1024;
}

/* D [64][N] = A B^T from images of both as they lie in shared memory; IN_REGISTERS: A's 16
   columns from memory, row by row. */
template <int N, bool A_TURNED, bool B_TURNED, bool IN_REGISTERS>
__global__ void one_product(const uint16_t *a, int a_bytes, OperandLayout al, const uint16_t *b, int b_bytes,
                            OperandLayout bl, float *out) {
    SHARED_DYNAMIC_ALIGNED(char, s, 1024);
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    float d[N / 2];
    uint32_t fragment[4];
    for (int i = 4 * t; i < a_bytes; i += 4 * blockDim.x) memcpy(s + i, (const char *)a + i, 4);
    for (int i = 4 * t; i < b_bytes; i += 4 * blockDim.x) memcpy(s + a_bytes + i, (const char *)b + i, 4);
    if (IN_REGISTERS) /* a0 a1 | a2 a3 | a4 a5 | a6 a7: two neighbours; eight rows down; eight columns on; both */
        for (int r = 0; r < 4; r++)
            memcpy(&fragment[r], a + 16 * (16 * warp + lane / 4 + (r % 2 ? 8 : 0)) + lane % 4 * 2 + (r / 2 ? 8 : 0), 4);
    for (int i = 0; i < N / 2; i++) d[i] = 1;
    proxy_fence();
    __syncthreads();
    uint64_t da = IN_REGISTERS ? 0 : wgmma_descriptor(s, al.leading, al.stride, al.swizzle);
    uint64_t db = wgmma_descriptor(s + a_bytes, bl.leading, bl.stride, bl.swizzle);
    wgmma_fence();
    for (int k = 0; k < (al.k < bl.k ? al.k : bl.k); k += 16) { /* along K by 32 bytes; turned operands hold 16 */
        if (IN_REGISTERS) wgmma_rs<N, B_TURNED>(d, fragment, db, k > 0);
        else wgmma_ss<N, A_TURNED, B_TURNED>(d, da + (uint64_t)(2 * k >> 4), db + (uint64_t)(2 * k >> 4), k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; i++) /* d0 d1: two neighbours; d2 d3: eight rows down; d4 ...: eight columns on */
        out[(16 * warp + lane / 4 + (i & 2 ? 8 : 0)) * N + i / 4 * 8 + lane % 4 * 2 + (i & 1)] = d[i];
}

static uint16_t *operand_image(const OperandLayout *l, int bytes, int salt) {
    uint16_t *host = (uint16_t *)malloc((size_t)bytes), *p;
    memset(host, 0x7f, (size_t)bytes); /* large numbers between the tiles */
    for (int r = 0; r < l->rows; r++)
        for (int k = 0; k < l->k; k++)
            host[operand_place(l, r, k) / 2] = bf16_round(small_number(salt + 101 * r + k)).bits;
    CUDA_CHECK(cudaMalloc((void **)&p, (size_t)bytes));
    CUDA_CHECK(cudaMemcpy(p, host, (size_t)bytes, cudaMemcpyHostToDevice));
    free(host);
    return p;
}

template <int N, bool A_TURNED, bool B_TURNED, bool IN_REGISTERS>
static int product_is_right(int a_swizzle, int b_swizzle) {
    OperandLayout al = operand_layout(a_swizzle, A_TURNED, 64), bl = operand_layout(b_swizzle, B_TURNED, N);
    /* plain rows of 16: chunk on chunk, row on row */
    if (IN_REGISTERS) al.swizzle = 0, al.turned = 0, al.k = 16, al.stride = 256, al.leading = 16;
    int a_bytes = operand_bytes(&al), b_bytes = operand_bytes(&bl), depth = al.k < bl.k ? al.k : bl.k, right = 1;
    uint16_t *a = NULL, *b = operand_image(&bl, b_bytes, 7);
    if (IN_REGISTERS) {
        uint16_t rows[64 * 16];
        for (int i = 0; i < 64 * 16; i++) rows[i] = bf16_round(small_number(3 + 101 * (i / 16) + i % 16)).bits;
        a_bytes = sizeof rows;
        CUDA_CHECK(cudaMalloc((void **)&a, sizeof rows));
        CUDA_CHECK(cudaMemcpy(a, rows, sizeof rows, cudaMemcpyHostToDevice));
    } else a = operand_image(&al, a_bytes, 3);
    float *out, *host = (float *)malloc(4 * 64 * N);
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&out, 4 * 64 * N));
    LAUNCH((one_product<N, A_TURNED, B_TURNED, IN_REGISTERS>), dim3(1), dim3(128), a_bytes + b_bytes, stream, a,
           a_bytes, al, b, b_bytes, bl, out);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaMemcpy(host, out, 4 * 64 * N, cudaMemcpyDeviceToHost));
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < N; n++) {
            float sum = 0;
            for (int k = 0; k < depth; k++) sum += small_number(3 + 101 * m + k) * small_number(7 + 101 * n + k);
            right &= host[m * N + n] == sum;
        }
    CUDA_CHECK(cudaFree(a));
    CUDA_CHECK(cudaFree(b));
    CUDA_CHECK(cudaFree(out));
    CUDA_CHECK(cudaStreamDestroy(stream));
    free(host);
    return right;
}

/* ---- a pipeline, and what may go wrong in one -------------------------------------------------------------------- */

enum HopperFault {
    HOPPER_SOUND, NO_PROXY_FENCE, ONE_PROXY_FENCE, WRONG_PARITY, REUSED_EARLY, WRONG_SWIZZLE, NO_WGMMA_WAIT,
    NO_FIRST_FENCE, NO_LATER_FENCE, SUM_TOUCHED, FRAGMENT_TOUCHED, NO_INIT_FENCE, TOO_FEW_BYTES, TOO_MANY_BYTES,
    WRONG_COUNT, ONE_TOO_MANY, NOT_ENOUGH_REGISTERS, OTHER_DESCRIPTOR, LOAD_NOT_WAITED, STORE_NOT_WAITED,
    STORE_NOT_FENCED, STORE_REUSED, MISPLACED_PATTERN
};
enum { PIPE_STEPS = 5, PIPE_STAGES = 2, PIPE_TILE = 64 * 64 };

/* out [64][64] = 2 (sum over steps of A B^T) E^T for this block's A and B [steps][64][64] and E [64][64]; the sum, in
   bf16, goes through shared memory, and half of K of the second product through registers. Warps 0-3 load, 4-7
   compute, 8-11 only give registers. */
template <HopperFault F>
__global__ void pipeline(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                         const __grid_constant__ TensorMap e_map, const __grid_constant__ TensorMap out_map) {
    SHARED_DYNAMIC_ALIGNED(bf16, s, 1024);
    SHARED(Mbarrier, full, PIPE_STAGES + 1);
    SHARED(Mbarrier, empty, PIPE_STAGES);
    if (F == MISPLACED_PATTERN) s += 64 * 4;
    bf16 *stage = s, *e = s + 2 * PIPE_STAGES * PIPE_TILE, *c = e + PIPE_TILE;
    float *staged = (float *)(c + PIPE_TILE);
    int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32, tile = blockIdx.x;
    if (threadIdx.x == 0) {
        for (int i = 0; i < PIPE_STAGES + 1; i++) mbarrier_init(&full[i], 1);
        for (int i = 0; i < PIPE_STAGES; i++)
            mbarrier_init(&empty[i], F == WRONG_COUNT ? 129 : F == ONE_TOO_MANY ? 127 : 128);
        if (F != NO_INIT_FENCE) mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 256) {
        registers_give<F == NOT_ENOUGH_REGISTERS ? 160 : 24>();
        return;
    }
    if (threadIdx.x < 128) {
        registers_give<F == NOT_ENOUGH_REGISTERS ? 160 : 40>();
        if (threadIdx.x > 0) return;
        mbarrier_arrive_expect(&full[PIPE_STAGES], PIPE_TILE * 2);
        tma_load_2d(e, &e_map, &full[PIPE_STAGES], 0, 0);
        for (int i = 0; i < PIPE_STEPS; i++) {
            int at = i % PIPE_STAGES, turn = i / PIPE_STAGES;
            mbarrier_wait(&empty[at], (turn + 1) & 1);
            mbarrier_arrive_expect(&full[at], PIPE_TILE * 4 + (F == TOO_FEW_BYTES    ? -PIPE_TILE * 2
                                                               : F == TOO_MANY_BYTES ? 16
                                                                                     : 0));
            tma_load_3d(stage + 2 * at * PIPE_TILE, &a_map, &full[at], 0, 0, tile * PIPE_STEPS + i);
            tma_load_3d(stage + (2 * at + 1) * PIPE_TILE, &b_map, &full[at], 0, 0, tile * PIPE_STEPS + i);
        }
        return;
    }
    registers_take<240>();
    float sum[32], last[32];
    for (int i = 0; i < PIPE_STEPS; i++) {
        int at = i % PIPE_STAGES, turn = i / PIPE_STAGES;
        uint64_t a = wgmma_descriptor(stage + 2 * at * PIPE_TILE, 16, 1024, 1),
                 b = wgmma_descriptor(stage + (2 * at + 1) * PIPE_TILE, 16, 1024, F == WRONG_SWIZZLE ? 2 : 1);
        mbarrier_wait(&full[at], (turn + (F == WRONG_PARITY)) & 1);
        if (F != NO_FIRST_FENCE) wgmma_fence();
        for (int k = 0; k < 4; k++)
            wgmma_ss<64, false, false>(sum, a + 2 * k, b + 2 * k + (F == OTHER_DESCRIPTOR && warp == 2 ? 2 : 0),
                                       i > 0 || k > 0);
        wgmma_commit();
        if (F == REUSED_EARLY) mbarrier_arrive(&empty[at]);
        if (F == SUM_TOUCHED && i == 2) sum[3] = 0;
        if (F != NO_WGMMA_WAIT) wgmma_wait<0>();
        if (F != REUSED_EARLY) mbarrier_arrive(&empty[at]);
    }
    if (F == NO_WGMMA_WAIT) wgmma_wait<5>(); /* the last group of all but this one */
    for (int i = 0; i < 32; i += 2) {
        int row = 16 * warp + lane / 4 + (i & 2 ? 8 : 0), col = i / 4 * 8 + lane % 4 * 2;
        bf16 *p = c + table_place(1, row * 128 + col * 2) / 2;
        p[0] = bf16_round(sum[i]), p[1] = bf16_round(sum[i + 1]);
    }
    if (F != NO_PROXY_FENCE && (F != ONE_PROXY_FENCE || thread == 77)) proxy_fence();
    named_barrier_sync(3, 128);
    if (F != LOAD_NOT_WAITED) mbarrier_wait(&full[PIPE_STAGES], 0);
    uint64_t a = wgmma_descriptor(c, 16, 1024, 1), b = wgmma_descriptor(e, 16, 1024, 1);
    uint32_t fragment[2][4];
    for (int k = 0; k < 2; k++)
        for (int r = 0; r < 4; r++)
            fragment[k][r] = bf16x2_round(sum[8 * (k + 2) + 2 * r], sum[8 * (k + 2) + 2 * r + 1]);
    wgmma_fence();
    for (int again = 0; again < 2; again++) {
        for (int k = 0; k < 2; k++) wgmma_ss<64, false, false>(last, a + 2 * k, b + 2 * k, again > 0 || k > 0);
        for (int k = 0; k < 2; k++) wgmma_rs<64, false>(last, fragment[k], b + 2 * (k + 2), true);
        wgmma_commit();
        if (F == FRAGMENT_TOUCHED) fragment[1][2] = 0;
        wgmma_wait<0>();
        if (F == NO_LATER_FENCE) last[again] += 1;
    }
    for (int i = 0; i < 32; i++)
        staged[(i / 16) * 64 * 32 + (16 * warp + lane / 4 + (i & 2 ? 8 : 0)) * 32 + i / 4 % 4 * 8 + lane % 4 * 2 +
               (i & 1)] = last[i];
    if (F != STORE_NOT_FENCED) proxy_fence();
    named_barrier_sync(4, 128);
    if (thread > 0) return;
    for (int half = 0; half < 2; half++) tma_store_3d(&out_map, staged + half * 64 * 32, 32 * half, 0, tile);
    bulk_commit();
    if (F == STORE_REUSED) staged[5] = 0;
    if (F != STORE_NOT_WAITED) bulk_wait<0>();
}

/* Returns N where all outputs are right. */
template <HopperFault F> static int run_pipeline(int seed) {
    enum { BLOCKS = 3, ELEMENTS = BLOCKS * PIPE_STEPS * PIPE_TILE };
    static float a[ELEMENTS], b[ELEMENTS], e[PIPE_TILE], got[BLOCKS * PIPE_TILE];
    static bf16 rounded[ELEMENTS];
    bf16 *device[3];
    float *from[3] = {a, b, e}, *out;
    TensorMap maps[4];
    cudaStream_t stream;
    emu_schedule(seed);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int m = 0; m < 3; m++) {
        int count = m < 2 ? (int)ELEMENTS : (int)PIPE_TILE, steps = count / PIPE_TILE;
        const uint64_t dims[3] = {64, 64, (uint64_t)steps}, strides[2] = {128, 8192};
        const uint32_t box[3] = {64, 64, 1};
        for (int i = 0; i < count; i++)
            from[m][i] = (float)((i * 29 + i / 64 * 7 + 3 * m) % 3 - 1), rounded[i] = bf16_round(from[m][i]);
        CUDA_CHECK(cudaMalloc((void **)&device[m], 2 * (size_t)count));
        CUDA_CHECK(cudaMemcpy(device[m], rounded, 2 * (size_t)count, cudaMemcpyHostToDevice));
        tensor_map_encode(&maps[m], TENSOR_BF16, device[m], m < 2 ? 3 : 2, dims, strides, box, 1);
    }
    const uint64_t dims[3] = {64, 64, BLOCKS}, strides[2] = {256, 64 * 256};
    const uint32_t box[3] = {32, 64, 1};
    CUDA_CHECK(cudaMalloc((void **)&out, sizeof got));
    tensor_map_encode(&maps[3], TENSOR_F32, out, 3, dims, strides, box, 0);
    LAUNCH(pipeline<F>, dim3(BLOCKS), dim3(384), 2 * (2 * PIPE_STAGES + 2) * PIPE_TILE + 4 * PIPE_TILE + 1024, stream,
           maps[0], maps[1], maps[2], maps[3]);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
    int right = 1;
    for (int block = 0; block < BLOCKS; block++)
        for (int m = 0; m < 64; m++) {
            float c[64], want;
            for (int n = 0; n < 64; n++) {
                c[n] = 0;
                for (int step = 0; step < PIPE_STEPS; step++) {
                    const float *x = a + (block * PIPE_STEPS + step) * PIPE_TILE + m * 64,
                                *y = b + (block * PIPE_STEPS + step) * PIPE_TILE + n * 64;
                    for (int k = 0; k < 64; k++) c[n] += x[k] * y[k];
                }
                c[n] = bf16_float(bf16_round(c[n]));
            }
            for (int n = 0; n < 64; n++) {
                want = 0;
                for (int k = 0; k < 64; k++) want += 2 * c[k] * e[n * 64 + k];
                right &= got[block * PIPE_TILE + m * 64 + n] == want;
            }
        }
    return right ? (int)N : 0;
}

#endif

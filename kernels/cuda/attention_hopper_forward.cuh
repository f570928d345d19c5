/* attention_hopper_forward.cuh - flash attention on sm_90a, forward: bulk copies bring tiles, warpgroups
   multiply them, blocks stay resident.

     warpgroup 0        one thread keeps rings of Q, K and V tiles filled, for one query tile after the other
     warpgroups 1, 2    64 query rows each:

       S = Q K(n-1)^T, P = softmax S
       for j = n-2 .. 0       the masked tiles come first
           its turn: S = Q K(j)^T and out += P V(j+1) set out     | the other group makes its softmax meanwhile
           S is there: P' = 2^(c S - base)                        | while P V still runs
           P V is there: out shrinks if a base has moved, P = P' rounded
       out += P V(0)

   The two groups take turns by named barriers, so that one multiplies while the other makes powers. What a
   row's bits depend on is as in attention_forward.cuh: softmax with a base that moves seldom, merge, masks
   by tile, the last step rounded.

   Blocks draw query tiles by ticket from one order, the longest first: whoever is done early takes the next. Which
   block computes a tile changes none of its bits.

   Shah et al. 2024, arXiv:2407.08608

   shared    d64: 32 KB of Q, 128 of K and V    d128: 64 KB of Q, 128 of K and V; one block on a multiprocessor
   registers 24 for the thread that copies, 240 for the others                                                       */
#ifndef ODYSSEUS_CUDA_ATTENTION_HOPPER_FORWARD_H
#define ODYSSEUS_CUDA_ATTENTION_HOPPER_FORWARD_H

#include "attention_hopper.cuh"

typedef struct {
    TensorMap q[2], kv[2]; /* of each run */
    AttentionForward a;
    int *tickets; /* how many have been drawn */
    int blocks;   /* query tiles of all heads */
} HopperForward;

template <int HD, int BM, int BN, int STAGES> struct HopperForwardTile {
    static constexpr int GROUPS = BM / 64, THREADS = GROUP_THREADS * (GROUPS + 1), Q_STAGES = 2, WARPS = 4 * GROUPS;
    static constexpr int BARRIERS = 2 * Q_STAGES + 4 * STAGES;
    static constexpr int SHARED_BYTES = (Q_STAGES * BM + 2 * STAGES * BN) * HD * (int)sizeof(bf16) +
                                        BARRIERS * (int)sizeof(Mbarrier) + Q_STAGES * (int)sizeof(int);
    bf16 *q, *k, *v; /* stage after stage */
    Mbarrier *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;
    int *index; /* with each stage of Q: which of `blocks` it is; -1: no more */
    static __device__ __forceinline__ HopperForwardTile make(void) {
        HopperForwardTile t;
        SHARED_DYNAMIC_ALIGNED(bf16, shared, 1024);
        t.q = shared, t.k = t.q + Q_STAGES * BM * HD, t.v = t.k + STAGES * BN * HD;
        t.q_full = (Mbarrier *)(t.v + STAGES * BN * HD), t.q_empty = t.q_full + Q_STAGES;
        t.k_full = t.q_empty + Q_STAGES, t.k_empty = t.k_full + STAGES, t.v_full = t.k_empty + STAGES,
        t.v_empty = t.v_full + STAGES;
        t.index = (int *)(t.v_empty + STAGES);
        return t;
    }
};

/* Query tile `index` of all: its tile, its head, and how many KV tiles it sees, from which one on. */
typedef struct {
    int i, head, tiles, low;
} ForwardItem;

template <int BM, int BN, bool LO>
__device__ __forceinline__ ForwardItem forward_item(const AttentionForward &a, int index) {
    ForwardItem item;
    attention_block(a.order, index, &item.i, &item.head);
    item.i = a.order.tiles - 1 - item.i;
    AttentionTile tile = attention_tile<BM>(a.q_map, item.i);
    item.tiles = tiles_until<BN>(a.kv_map, tile_last(tile));
    item.low = 0;
    if constexpr (LO) {
        item.low = tiles_before<BN>(a.kv_map, row_lo(sequence_lo(a.lo, a.sequences, item.head / a.heads), tile, 0));
        item.tiles -= item.low;
    }
    return item;
}

/* Scores become 2^(c s - base), their sums go on; returns whether the base of a row of this warp has moved, and by what
   factors the sums of before, and so out, shrink. As softmax_tile, but out is still being added to. */
template <int NT>
__device__ __forceinline__ bool softmax_scores(float (&s)[1][NT][4], float (&top)[1][2], float (&sum)[1][2],
                                               float (&shrink)[2], float scale) {
    bool grown = false;
    float high[2];
    UNROLL
    for (int half = 0; half < 2; half++) {
        float x = fmaxf(s[0][0][2 * half], s[0][0][2 * half + 1]), y = fmaxf(s[0][1][2 * half], s[0][1][2 * half + 1]);
        UNROLL
        for (int n = 2; n < NT; n += 2) {
            x = fmaxf(x, fmaxf(s[0][n][2 * half], s[0][n][2 * half + 1]));
            y = fmaxf(y, fmaxf(s[0][n + 1][2 * half], s[0][n + 1][2 * half + 1]));
        }
        x = fmaxf(x, y);
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
        high[half] = x * scale;
        grown |= high[half] > top[0][half] + 8;
        shrink[half] = 1;
    }
    grown = __any_sync(0xffffffffu, grown);
    if (grown) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            float now = high[half] > top[0][half] + 8 ? high[half] : top[0][half];
            shrink[half] = fast_exp2(top[0][half] - (now == -INFINITY ? 0 : now));
            top[0][half] = now;
            sum[0][half] *= shrink[half];
        }
    }
    UNROLL
    for (int half = 0; half < 2; half++) {
        float base = top[0][half] == -INFINITY ? 0 : top[0][half], part[2] = {0, 0};
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
            for (int e = 0; e < 2; e++) {
                float x = fast_exp2(fmaf(s[0][n][2 * half + e], scale, -base));
                s[0][n][2 * half + e] = x;
                part[e] += x;
            }
        sum[0][half] += part[0] + part[1];
    }
    return grown;
}

template <int DT> __device__ __forceinline__ void shrink_rows(float (&out)[1][DT][4], const float (&shrink)[2]) {
    UNROLL
    for (int d = 0; d < DT; d++)
        UNROLL
        for (int e = 0; e < 4; e++) out[0][d][e] *= shrink[e / 2];
}

/* Where single scores are masked, they become -inf. `first`: the position of the first of this warpgroup's rows;
   `most`: the largest lo of its rows. */
template <int BN, bool LO, int NT>
__device__ __forceinline__ void scores_mask(float (&s)[1][NT][4], const AttentionTile &tile, const AttentionTile &kv,
                                            int first, int lane_row, const AttentionLo &lo, int most) {
    if (kv.count < BN || first < tile_last(kv)) mask_tile(s, tile, kv, lane_row, 2 * ((int)threadIdx.x % 4));
    if (LO && kv.position < most) mask_tile_before(s, lo, tile, kv, lane_row, 2 * ((int)threadIdx.x % 4));
}

/* The thread that copies: all that this block's warpgroups will want, in their order. */
template <int HD, int BM, int BN, int STAGES, bool LO>
__device__ __forceinline__ void forward_copies(const HopperForward &p, const HopperForwardTile<HD, BM, BN, STAGES> &t) {
    typedef HopperForwardTile<HD, BM, BN, STAGES> T;
    const AttentionForward &a = p.a;
    constexpr int Q_BYTES = BM * HD * (int)sizeof(bf16), KV_BYTES = BN * HD * (int)sizeof(bf16);
    for (int r = 0; r < 2; r++) {
        if (a.q_map.count[r]) tma_prefetch_map(&p.q[r]);
        if (a.kv_map.count[r]) tma_prefetch_map(&p.kv[r]);
    }
    int n = 0, index = atomicAdd(p.tickets, 1); /* n: KV tiles so far */
    for (int items = 0;;) {
        ForwardItem item = {0, 0, 0, 0};
        if (index < p.blocks) {
            item = forward_item<BM, BN, LO>(a, index);
            if (item.tiles == 0 && a.merge && !a.rounded) { /* nothing joins */
                index = atomicAdd(p.tickets, 1);
                continue;
            }
        } else index = -1;
        int stage = ring_stage<T::Q_STAGES>(items);
        mbarrier_wait(t.q_empty + stage, ring_parity<T::Q_STAGES>(items) ^ 1);
        t.index[stage] = index;
        if (item.tiles) {
            mbarrier_arrive_expect(t.q_full + stage, Q_BYTES);
            tile_load<BM, HD>(t.q + stage * BM * HD, p.q, a.q_map, item.i, item.head, t.q_full + stage);
        } else mbarrier_arrive(t.q_full + stage);
        if (index < 0) break;
        items++;
        if (item.tiles == 0) index = atomicAdd(p.tickets, 1);
        int b = item.head / a.heads, k_head = b * 2 * a.kv_heads + (item.head - b * a.heads) / a.group;
        for (int j = item.tiles - 1; j >= 0; j--, n++) {
            int s = ring_stage<STAGES>(n), parity = ring_parity<STAGES>(n) ^ 1;
            if (j == 0) index = atomicAdd(p.tickets, 1); /* is there when the last tiles are on their way */
            mbarrier_wait(t.k_empty + s, parity);
            mbarrier_arrive_expect(t.k_full + s, KV_BYTES);
            tile_load<BN, HD>(t.k + s * BN * HD, p.kv, a.kv_map, item.low + j, k_head, t.k_full + s);
            mbarrier_wait(t.v_empty + s, parity);
            mbarrier_arrive_expect(t.v_full + s, KV_BYTES);
            tile_load<BN, HD>(t.v + s * BN * HD, p.kv, a.kv_map, item.low + j, k_head + a.kv_heads, t.v_full + s);
        }
    }
}

/* Barriers of the turns: group g waits at TURN + g. */
enum { TURN = 1 };

/* A warpgroup that multiplies: rows 64 group .. of every query tile of this block. */
template <int HD, int BM, int BN, int STAGES, bool LO>
__device__ __forceinline__ void forward_products(const HopperForward &p, const HopperForwardTile<HD, BM, BN, STAGES> &t,
                                                 int group) {
    typedef HopperForwardTile<HD, BM, BN, STAGES> T;
    constexpr int NT = BN / 8, DT = HD / 8;
    static_assert(T::GROUPS == 2, "turns of two");
    const AttentionForward &a = p.a;
    int other = 1 - group, n = 0;
    if (group == 1) named_barrier_arrive(TURN + other, 2 * GROUP_THREADS); /* group 0 begins */
    for (int items = 0;; items++) {
        int q_stage = ring_stage<T::Q_STAGES>(items);
        mbarrier_wait(t.q_full + q_stage, ring_parity<T::Q_STAGES>(items));
        int index = __shfl_sync(0xffffffffu, t.index[q_stage], 0);
        if (index < 0) break;
        ForwardItem item = forward_item<BM, BN, LO>(a, index);
        AttentionTile tile = attention_tile<BM>(a.q_map, item.i);
        int tiles = item.tiles;
        int warp_row = 64 * group + (int)threadIdx.x % GROUP_THREADS / 32 * 16,
            lane_row = warp_row + (int)threadIdx.x % 32 / 4;
        AttentionLo lo = {NULL, 0};
        int most = 0;
        if constexpr (LO) {
            lo = sequence_lo(a.lo, a.sequences, item.head / a.heads);
            most = row_lo(lo, tile, 64 * group + 63);
        }
        float out[1][DT][4], top[1][2], sum[1][2], shrink[2];
        softmax_begin(a, (i64)tile.first * a.rows + item.head, tile.count, warp_row, out, top, sum);
        if (tiles > 0) {
            float s[1][NT][4];
            uint32_t pieces[NT / 2][4];
            int first = tile.position + 64 * group * tile.stride; /* this group's first position */
            const bf16 *q = t.q + q_stage * BM * HD + 64 * 64 * group;
            mbarrier_wait(t.k_full + ring_stage<STAGES>(n), ring_parity<STAGES>(n));
            wgmma_fence();
            group_multiply<BN, HD, BM, BN>(flat(s), q, t.k + ring_stage<STAGES>(n) * BN * HD);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_hold(flat(s));
            warp_arrive(t.k_empty + ring_stage<STAGES>(n));
            scores_mask<BN, LO>(s, tile, attention_tile<BN>(a.kv_map, item.low + tiles - 1), first, lane_row, lo, most);
            if (softmax_scores(s, top, sum, shrink, a.scale_log2)) shrink_rows(out, shrink);
            round_pieces(pieces, s);
            for (int j = tiles - 2; j >= 0; j--) {
                int last = ring_stage<STAGES>(n), parity = ring_parity<STAGES>(n); /* of V; K is a tile ahead */
                n++;
                int stage = ring_stage<STAGES>(n);
                mbarrier_wait(t.k_full + stage, ring_parity<STAGES>(n));
                mbarrier_wait(t.v_full + last, parity);
                named_barrier_sync(TURN + group, 2 * GROUP_THREADS);
                wgmma_hold(flat(out));
                wgmma_fence();
                group_multiply<BN, HD, BM, BN>(flat(s), q, t.k + stage * BN * HD);
                wgmma_commit();
                group_multiply<HD, BN, BN>(flat(out), pieces, t.v + last * BN * HD);
                wgmma_commit();
                named_barrier_arrive(TURN + other, 2 * GROUP_THREADS);
                wgmma_wait<1>();
                wgmma_hold(flat(s));
                warp_arrive(t.k_empty + stage);
                scores_mask<BN, LO>(s, tile, attention_tile<BN>(a.kv_map, item.low + j), first, lane_row, lo, most);
                bool grown = softmax_scores(s, top, sum, shrink, a.scale_log2);
                before_the_wait(sum[0][0] + sum[0][1]);
                wgmma_wait<0>();
                wgmma_hold(flat(out));
                wgmma_hold(flat(s));
                warp_arrive(t.v_empty + last);
                if (grown) shrink_rows(out, shrink);
                round_pieces(pieces, s);
            }
            int last = ring_stage<STAGES>(n), parity = ring_parity<STAGES>(n);
            n++;
            mbarrier_wait(t.v_full + last, parity);
            wgmma_fence();
            group_multiply<HD, BN, BN>(flat(out), pieces, t.v + last * BN * HD);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_hold(flat(out));
            warp_arrive(t.v_empty + last);
        }
        warp_arrive(t.q_empty + q_stage);
        softmax_end(a, (i64)tile.first * a.rows + item.head, tile.count, warp_row, out, top, sum);
    }
    if (group == 0) named_barrier_sync(TURN, 2 * GROUP_THREADS); /* the turn that nobody took */
}

template <int HD, int BM, int BN, int STAGES, bool LO>
__global__ void __launch_bounds__(GROUP_THREADS *(BM / 64 + 1), 1)
    attention_forward_hopper_kernel(const __grid_constant__ HopperForward p) {
#if HOPPER_CODE
    typedef HopperForwardTile<HD, BM, BN, STAGES> T;
    T t = T::make();
    if (threadIdx.x == 0) {
        for (int i = 0; i < T::Q_STAGES; i++) mbarrier_init(t.q_full + i, 1), mbarrier_init(t.q_empty + i, T::WARPS);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(t.k_full + i, 1), mbarrier_init(t.v_full + i, 1);
            mbarrier_init(t.k_empty + i, T::WARPS), mbarrier_init(t.v_empty + i, T::WARPS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / GROUP_THREADS, 0);
    if (group == 0) {
        registers_give<24>();
        if (threadIdx.x == 0) forward_copies<HD, BM, BN, STAGES, LO>(p, t);
    } else {
        registers_take<240>();
        forward_products<HD, BM, BN, STAGES, LO>(p, t, group - 1);
    }
#else
    (void)p;
#endif
}

template <int HD, int BM, int BN, int STAGES>
static inline void attention_forward_hopper_launch(Device *dev, const AttentionForward *a, const TokenMap *q_map,
                                                   const TokenMap *kv_map) {
    typedef HopperForwardTile<HD, BM, BN, STAGES> T;
    HopperForward p;
    memset(&p, 0, sizeof p);
    i64 tiles = ceil_div(q_map->run[0].count, BM) + ceil_div(q_map->run[1].count, BM);
    if (tiles == 0) return;
    p.a = *a;
    p.a.q_map = attention_map(q_map, BM), p.a.kv_map = attention_map(kv_map, BN);
    /* a query head's share of its K and V */
    double kv_bytes = 4.0 * (double)kv_map->count * a->head_dim * a->kv_heads / a->heads;
    p.a.order = attention_order(a->rows, tiles, kv_bytes + 1, a->group);
    p.blocks = (int)tiles * p.a.order.heads;
    i64 kv_rows = (i64)a->rows / a->heads * 2 * a->kv_heads;
    for (int r = 0; r < 2; r++) {
        run_tensor_map(&p.q[r], TENSOR_BF16, a->q, a->head_dim, a->rows, a->q_step, q_map, r, 64, BM);
        run_tensor_map(&p.kv[r], TENSOR_BF16, a->kv, a->head_dim, kv_rows, a->kv_step, kv_map, r, 64, BN);
    }
    if (dev->state.scratch_bytes < TICKET_BYTES)
        FAIL(THIS_RANK, "attention: %d bytes of scratch are needed, there are %lld", TICKET_BYTES,
             dev->state.scratch_bytes);
    p.tickets = (int *)dev->state.scratch;
    CUDA_CHECK(cudaMemsetAsync(p.tickets, 0, sizeof *p.tickets, dev->state.stream));
    int grid = (int)i64_min(p.blocks, dev->state.multiprocessors);
    if (a->lo)
        LAUNCH((attention_forward_hopper_kernel<HD, BM, BN, STAGES, true>), dim3((unsigned)grid), dim3(T::THREADS),
               T::SHARED_BYTES, dev->state.stream, p);
    else
        LAUNCH((attention_forward_hopper_kernel<HD, BM, BN, STAGES, false>), dim3((unsigned)grid), dim3(T::THREADS),
               T::SHARED_BYTES, dev->state.stream, p);
}

#endif

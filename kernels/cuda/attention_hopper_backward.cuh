/* attention_hopper_backward.cuh - flash attention on sm_90a, backward: a block owns one KV tile of one KV head, as in
   attention_backward.cuh, whose order of sums it keeps.

     warp 0              brings K and V once, then Q, dout, lse and delta, a step ahead: a step is a query tile of a
                         query head
     warp 1              adds dq tiles to memory, each in its turn
     warpgroups 1, 2     64 keys each, their dK and dV in registers; everything stands on its side, keys down and
                         queries across:

       for each step
           dP^T - delta = V dout^T - delta sets out | S^T = K Q^T is there: P^T = 2^(c S^T - c' lse), rounded
           it is there: dS^T = P^T (dP^T - delta), rounded
           dV += P^T dout sets out                  | dS^T to shared memory
           dQ = dS K, dK += dS^T Q and the next S^T set out
                                                    | dQ is there: to shared memory, where warp 1 takes it

   P^T and dS^T are the A operands of dV and dK where they are, in registers. For dQ the two groups exchange dS through
   shared memory, and each has half of dQ: half of the head dim (64 queries in a tile) or half of the queries (128).

   The turns are those of attention_backward.cuh, with LO too: a counter for each dq tile. Bulk copies add in fp32, or
   write where nothing is there to be added to. The last turn of a tile whose result is rounded is taken by the
   warpgroups themselves, with ordinary loads and stores.

   Shah et al. 2024, arXiv:2407.08608

   shared    d64, 128 x 128: 226 KB    d128, 64 x 128: 225 KB    one block on a multiprocessor
   registers 24 for warps that copy, 240 for the others                                                      */
#ifndef ODYSSEUS_CUDA_ATTENTION_HOPPER_BACKWARD_H
#define ODYSSEUS_CUDA_ATTENTION_HOPPER_BACKWARD_H

#include "attention_hopper.cuh"

typedef struct {
    TensorMap q[2], dout[2], kv[2], dq[2]; /* of each run */
    AttentionBackward a;
} HopperBackward;

/* What all of a block's warps know, in shared memory: KV tile j of a KV head, and the steps. */
typedef struct {
    AttentionTile kv;
    int j, kv_head, head; /* head: the group's first query head, of all sequences */
    int low, done;        /* query tiles below `low` do not see the KV tile, those below `done` see no later one */
    int steps;
} BackwardBlock;

template <int HD, int BM, int BN> struct HopperBackwardTile {
    static constexpr int STAGES = 2, THREADS = 3 * GROUP_THREADS, WARPS = 8;
    static constexpr int Q_N = BM == 64 ? HD / 2 : HD; /* columns of dQ in a warpgroup */
    static constexpr int TILES = 2 * BN * HD + STAGES * (2 * BM * HD + BM * BN);
    static constexpr int BARRIERS = 1 + 5 * STAGES;
    static constexpr int SHARED_BYTES = TILES * (int)sizeof(bf16) + STAGES * (BM * HD + 2 * BM) * (int)sizeof(float) +
                                        BARRIERS * (int)sizeof(Mbarrier) + (int)sizeof(BackwardBlock) +
                                        (int)sizeof(BackwardSpan) + STAGES * BM;
    static_assert(BN == 128 && Q_N == 64, "two warpgroups of 64 keys, and of 64 columns of dQ");
    bf16 *k, *v, *q, *dout, *ds; /* the last three stage after stage, and all below */
    float *dq, *lse, *delta;
    Mbarrier *kv_full, *q_full, *dout_full, *empty, *dq_full, *dq_empty;
    BackwardBlock *block;
    BackwardSpan *span; /* LO */
    uint8_t *begin;     /* LO, of the queries of tiles that are cut: the first key of the KV tile that they see */
    static __device__ __forceinline__ HopperBackwardTile make(void) {
        HopperBackwardTile t;
        SHARED_DYNAMIC_ALIGNED(bf16, shared, 1024);
        t.k = shared, t.v = t.k + BN * HD, t.q = t.v + BN * HD, t.dout = t.q + STAGES * BM * HD,
        t.ds = t.dout + STAGES * BM * HD;
        t.dq = (float *)(t.ds + STAGES * BM * BN), t.lse = t.dq + STAGES * BM * HD, t.delta = t.lse + STAGES * BM;
        t.kv_full = (Mbarrier *)(t.delta + STAGES * BM), t.q_full = t.kv_full + 1, t.dout_full = t.q_full + STAGES;
        t.empty = t.dout_full + STAGES, t.dq_full = t.empty + STAGES, t.dq_empty = t.dq_full + STAGES;
        t.block = (BackwardBlock *)(t.dq_empty + STAGES), t.span = (BackwardSpan *)(t.block + 1);
        t.begin = (uint8_t *)(t.span + 1);
        return t;
    }
};

template <int BM, int BN>
__device__ __forceinline__ BackwardBlock backward_block(const AttentionBackward &a, int ticket) {
    BackwardBlock b;
    attention_block(a.order, ticket, &b.j, &b.kv_head);
    b.kv = attention_tile<BN>(a.kv_map, b.j);
    b.head = b.kv_head * a.group;
    b.low = tiles_before<BM>(a.q_map, b.kv.position);
    b.done = b.j + 1 == a.order.tiles ? a.q_tiles
                                      : tiles_before<BM>(a.q_map, attention_tile<BN>(a.kv_map, b.j + 1).position);
    b.steps = (a.q_tiles - b.low) * a.group;
    return b;
}

/* With LO: the steps that are left. */
__device__ __forceinline__ int span_steps(const AttentionBackward &a, const BackwardSpan *span, int low) {
    int first = max(0, span->from[SPAN_UNSEEN][0] - low),
        second = max(0, span->from[SPAN_UNSEEN][1] - max(low, a.q_map.tiles[0]));
    return (first + second) * a.group;
}

/* The query tile of the first step, and query tile and head within the group of the step after (i, h). */
template <bool LO> __device__ __forceinline__ int step_begin(const AttentionBackward &a, const BackwardSpan *span) {
    return LO ? span_last(a, span, a.q_tiles - 1) : a.q_tiles - 1;
}
template <bool LO>
__device__ __forceinline__ void step_on(const AttentionBackward &a, const BackwardSpan *span, int *i, int *h) {
    if (++*h == a.group) *h = 0, --*i;
    if (LO) *i = span_last(a, span, *i);
}

/* Whether it is the first turn of query tile i. */
template <bool LO>
__device__ __forceinline__ bool turn_first(const AttentionBackward &a, const BackwardSpan *span, int j, int i) {
    return LO ? span_has(a, span, SPAN_FIRST, i) : j == 0;
}

/* A warp reads a number of each of a tile's rows, `step` apart; `otherwise` past their end. */
template <int N>
__device__ __forceinline__ void rows_fetch(float (&x)[N], const float *from, int step, int rows, float otherwise) {
    UNROLL
    for (int r = 0; r < N; r++) {
        int row = (int)threadIdx.x % 32 + 32 * r;
        x[r] = row < rows ? from[(unsigned)(row * step)] : otherwise;
    }
}

/* A warp finds the first keys of a KV tile that the queries of a tile see. */
template <int ROWS>
__device__ __forceinline__ void keys_begin(uint8_t *key, const AttentionLo &lo, const AttentionTile &q,
                                           const AttentionTile &kv) {
    UNROLL_BY(1) /* 24 registers */
    for (int r = (int)threadIdx.x % 32; r < ROWS; r += 32) {
        int hidden = row_lo(lo, q, r) - kv.position;
        key[r] = (uint8_t)(hidden <= 0 ? 0 : min(kv.count, (hidden - 1) / kv.stride + 1));
    }
}

/* Warp 0. */
template <int HD, int BM, int BN, bool LO>
__device__ __forceinline__ void backward_copies(const HopperBackward &p, const HopperBackwardTile<HD, BM, BN> &t) {
    typedef HopperBackwardTile<HD, BM, BN> T;
    const AttentionBackward &a = p.a;
    const BackwardBlock &b = *t.block;
    int lane = (int)threadIdx.x, i = step_begin<LO>(a, t.span), h = 0;
    constexpr int BYTES = BM * HD * (int)sizeof(bf16);
    if (b.steps == 0) return;
    if (lane == 0) {
        int sequence = b.kv_head / a.kv_heads, k_head = sequence * 2 * a.kv_heads + b.kv_head - sequence * a.kv_heads;
        mbarrier_arrive_expect(t.kv_full, 2 * BN * HD * (int)sizeof(bf16));
        tile_load<BN, HD>(t.k, p.kv, a.kv_map, b.j, k_head, t.kv_full);
        tile_load<BN, HD>(t.v, p.kv, a.kv_map, b.j, k_head + a.kv_heads, t.kv_full);
    }
    for (int n = 0; n < b.steps; n++, step_on<LO>(a, t.span, &i, &h)) {
        int stage = ring_stage<T::STAGES>(n), parity = ring_parity<T::STAGES>(n) ^ 1;
        AttentionTile tile = attention_tile<BM>(a.q_map, i);
        i64 at = (i64)tile.first * a.rows + b.head + h;
        float lse[BM / 32], delta[BM / 32];
        rows_fetch(lse, a.lse + at, a.rows, tile.count, -INFINITY);
        rows_fetch(delta, a.delta + at, a.rows, tile.count, 0);
        mbarrier_wait(t.empty + stage, parity);
        if (lane == 0) {
            mbarrier_arrive_expect(t.q_full + stage, BYTES);
            tile_load<BM, HD>(t.q + stage * BM * HD, p.q, a.q_map, i, b.head + h, t.q_full + stage);
            mbarrier_arrive_expect(t.dout_full + stage, BYTES);
            tile_load<BM, HD>(t.dout + stage * BM * HD, p.dout, a.q_map, i, b.head + h, t.dout_full + stage);
        }
        UNROLL
        for (int r = 0; r < BM / 32; r++) {
            t.lse[stage * BM + lane + 32 * r] = lse[r] == -INFINITY ? INFINITY : lse[r] * LOG2_E;
            t.delta[stage * BM + lane + 32 * r] = delta[r];
        }
        if (LO && span_has(a, t.span, SPAN_CUT, i))
            keys_begin<BM>(t.begin + stage * BM, sequence_lo(a.lo, a.sequences, b.kv_head / a.kv_heads), tile, b.kv);
        mbarrier_arrive(t.dout_full + stage);
    }
}

/* Whose turn it is with a query tile's dq. */
__device__ __forceinline__ int *turn_of(const AttentionBackward &a, int head, int i) {
    return a.turns + head * a.q_tiles + i;
}

/* One thread of warp 1. */
template <int HD, int BM, int BN, bool LO>
__device__ __forceinline__ void backward_adds(const HopperBackward &p, const HopperBackwardTile<HD, BM, BN> &t) {
    typedef HopperBackwardTile<HD, BM, BN> T;
    const AttentionBackward &a = p.a;
    const BackwardBlock &b = *t.block;
    int i = step_begin<LO>(a, t.span), h = 0;
    for (int n = 0; n < b.steps; n++, step_on<LO>(a, t.span, &i, &h)) {
        if (a.dq_rounded && i < b.done) return; /* last turns, and they come last */
        int stage = ring_stage<T::STAGES>(n), *turn = turn_of(a, b.head + h, i);
        const float *from = t.dq + stage * BM * HD;
        const TensorMap *map = p.dq + tile_run(a.q_map, i);
        mbarrier_wait(t.dq_full + stage, ring_parity<T::STAGES>(n));
        counter_wait(turn, LO && turn_first<LO>(a, t.span, b.j, i) ? 0 : b.j);
        proxy_fence_global(); /* what the turns before have written, for the bulk copy */
        UNROLL
        for (int c = 0; c < HD; c += 32)
            if (c < a.head_dim) {
                if (turn_first<LO>(a, t.span, b.j, i) && !a.add)
                    tma_store_3d(map, from + c * BM, c, b.head + h, tile_token(a.q_map, i, BM));
                else tma_reduce_add_3d(map, from + c * BM, c, b.head + h, tile_token(a.q_map, i, BM));
            }
        bulk_commit();
        bulk_wait_read<0>();
        mbarrier_arrive(t.dq_empty + stage);
        bulk_wait<0>();
        proxy_fence_global();
        counter_add(turn, LO && turn_first<LO>(a, t.span, b.j, i) ? b.j + 1 : 1);
    }
}

/* Scores whose query does not see their key become -inf. Keys go down, from `key`, queries across,
   from `col`: this lane's first. */
template <int NT>
__device__ __forceinline__ void mask_turned(float (&s)[1][NT][4], const AttentionTile &q, const AttentionTile &kv,
                                            int key, int col) {
    UNROLL
    for (int half = 0; half < 2; half++) {
        int c = key + 8 * half;
        /* the first that sees it */
        int from = c < kv.count ? kv.position + c * kv.stride - q.position - col * q.stride : 1 << 30;
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
            for (int e = 0; e < 2; e++)
                if ((8 * n + e) * q.stride < from) s[0][n][2 * half + e] = -INFINITY;
    }
}

/* So do scores of keys before the first that their query sees, `begin`: of this lane's first query. */
template <int NT>
__device__ __forceinline__ void mask_turned_before(float (&s)[1][NT][4], const uint8_t *begin, int key) {
    UNROLL
    for (int n = 0; n < NT; n++)
        UNROLL
        for (int e = 0; e < 4; e++)
            if (key + e / 2 * 8 < begin[8 * n + e % 2]) s[0][n][e] = -INFINITY;
}

/* A lane's first row and column of the accumulators of a warpgroup; from thread_anew, so that no address holds
   a register across the loop. */
__device__ __forceinline__ int warp_row(int thread) { return thread % GROUP_THREADS / 32 * 16; } /* its warp's */
__device__ __forceinline__ int group_row(int thread) { return warp_row(thread) + thread % 32 / 4; }
__device__ __forceinline__ int group_col(int thread) { return thread % 4 * 2; }

/* Accumulators of dS^T into a tile of keys down and queries across, rounded. `key`: of the warpgroup's first. */
template <int ROWS, int NT>
__device__ __forceinline__ void ds_store(bf16 *tile, const uint32_t (&pieces)[NT / 2][4], int key, int thread) {
    int r = key + group_row(thread), first = r * 64 + (r % 8 << 3) + group_col(thread);
    UNROLL
    for (int n = 0; n < NT; n++)
        UNROLL
        for (int half = 0; half < 2; half++)
            *(Bf16Pair *)(tile + (first ^ n % 8 << 3) + n / 8 * ROWS * 64 + half * 8 * 64) =
                pieces[n / 2][n % 2 * 2 + half];
}

typedef struct __attribute__((aligned(8))) { float x, y; } FloatPair;

/* dQ into a tile of panels of 32 columns, swizzled for the bulk copy. `row`, `col`: of the warpgroup's first. */
template <int ROWS>
__device__ __forceinline__ void dq_store(float *tile, const float (&x)[1][8][4], int row, int col, int thread) {
    int r = row + group_row(thread), t = thread % 4, first = r * 32 + ((t / 2 ^ r % 8) << 2) + t % 2 * 2;
    tile += col / 32 * ROWS * 32;
    UNROLL
    for (int n = 0; n < 8; n++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            FloatPair v = {x[0][n][2 * half], x[0][n][2 * half + 1]};
            *(FloatPair *)(tile + (first ^ n % 4 << 3) + n / 4 * ROWS * 32 + half * 8 * 32) = v;
        }
}

/* dQ on top of what is in dq, rounded, a part at a time. `zeros`: nothing is there. */
__device__ __forceinline__ void last_turn(const AttentionBackward &a, i64 at, const float (&dq)[1][8][4], int row,
                                          int rows, int col, bool zeros) {
    constexpr int PART = 2;
    UNROLL
    for (int n = 0; n < 8; n += PART) {
        floatx4 old[1][PART];
        float x[1][PART][4];
        rows_read(old, a.dq + at, zeros, a.q_step, row, rows, col + 8 * n, a.head_dim);
        UNROLL
        for (int i = 0; i < PART; i++)
            UNROLL
            for (int e = 0; e < 4; e++) x[0][i][e] = dq[0][n + i][e];
        rows_add(x, old, 1);
        rows_write(a.dq_rounded + at, x, a.q_step, row, rows, col + 8 * n, a.head_dim);
    }
}

enum { DS_WRITTEN = 1, LAST_TURN = 2 }; /* named barriers: of both warpgroups; LAST_TURN + g of group g */

/* A warpgroup that multiplies: keys 64 group .. of the block's KV tile. */
template <int HD, int BM, int BN, bool LO>
__device__ __forceinline__ void backward_products(const HopperBackward &p, const HopperBackwardTile<HD, BM, BN> &t,
                                                  int group) {
    typedef HopperBackwardTile<HD, BM, BN> T;
    constexpr int NT = BM / 8, DT = HD / 8;
    const AttentionBackward &a = p.a;
    const BackwardBlock &b = *t.block;
    int q_row = BM == 64 ? 0 : 64 * group, q_col = BM == 64 ? 64 * group : 0; /* this group's part of dQ */
    float dk[1][DT][4], dv[1][DT][4];
    warp_zero(dk), warp_zero(dv);
    if (b.steps > 0) {
        const bf16 *k = t.k + 64 * 64 * group, *v = t.v + 64 * 64 * group;
        float s[1][NT][4];
        uint32_t p_pieces[NT / 2][4], ds_pieces[NT / 2][4];
        int i = step_begin<LO>(a, t.span), h = 0;
        mbarrier_wait(t.kv_full, 0);
        mbarrier_wait(t.q_full, 0);
        wgmma_hold(flat(dk)), wgmma_hold(flat(dv));
        wgmma_fence();
        group_multiply<BM, HD, BN, BM>(flat(s), k, t.q);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(flat(s));
        for (int n = 0; n < b.steps; n++, step_on<LO>(a, t.span, &i, &h)) {
            int stage = ring_stage<T::STAGES>(n), parity = ring_parity<T::STAGES>(n),
                next = n + 1 < b.steps ? ring_stage<T::STAGES>(n + 1) : stage;
            const bf16 *q = t.q + stage * BM * HD, *dout = t.dout + stage * BM * HD;
            bf16 *ds = t.ds + stage * BM * BN;
            float dp[1][NT][4], dq[1][8][4];
            mbarrier_wait(t.dout_full + stage, parity);
            const float *lse = t.lse + stage * BM + group_col(thread_anew()),
                        *delta = t.delta + stage * BM + group_col(thread_anew());
            UNROLL
            for (int c = 0; c < NT; c++)
                UNROLL
                for (int e = 0; e < 4; e++) dp[0][c][e] = -delta[8 * c + e % 2];
            wgmma_hold(flat(dp));
            wgmma_fence();
            group_multiply<BM, HD, BN, BM>(flat(dp), v, dout, true);
            wgmma_commit();
            AttentionTile tile = attention_tile<BM>(a.q_map, i);
            AttentionTile kv = b.kv;
            if (kv.count < BN || tile.position < kv.position + min(64 * group + 63, kv.count - 1) * kv.stride)
                mask_turned(s, tile, kv, 64 * group + group_row(thread_anew()), group_col(thread_anew()));
            if (LO && span_has(a, t.span, SPAN_CUT, i))
                mask_turned_before(s, t.begin + stage * BM + group_col(thread_anew()),
                                   64 * group + group_row(thread_anew()));
            UNROLL
            for (int c = 0; c < NT; c++)
                UNROLL
                for (int e = 0; e < 2; e++) {
                    float base = lse[8 * c + e];
                    s[0][c][e] = fast_exp2(fmaf(s[0][c][e], a.scale_log2, -base));
                    s[0][c][e + 2] = fast_exp2(fmaf(s[0][c][e + 2], a.scale_log2, -base));
                }
            wgmma_hold(flat(s)); /* meanwhile */
            wgmma_wait<0>();     /* dP^T */
            wgmma_hold(flat(dp));
            round_pieces(p_pieces, s);
            UNROLL
            for (int c = 0; c < NT; c++)
                UNROLL
                for (int e = 0; e < 4; e++) dp[0][c][e] *= s[0][c][e];
            round_pieces(ds_pieces, dp);
            ds_store<BN, NT>(ds, ds_pieces, 64 * group, thread_anew());
            wgmma_hold(flat(dv));
            wgmma_fence();
            group_multiply<HD, BM, BM>(flat(dv), p_pieces, dout);
            wgmma_commit();
            proxy_fence();
            named_barrier_sync(DS_WRITTEN, 2 * GROUP_THREADS);
            if (n + 1 < b.steps) mbarrier_wait(t.q_full + next, ring_parity<T::STAGES>(n + 1));
            wgmma_wait<0>(); /* dV */
            wgmma_hold(flat(dv));
            wgmma_hold(flat(dk));
            wgmma_fence();
            {
                uint64_t da = operand_across<BN>(ds + q_row * BN), db = operand_across<BN>(t.k + q_col * BN);
                UNROLL
                for (int key = 0; key < BN; key += 16)
                    wgmma_ss<64, true, true>(flat(dq), da + across_step(key), db + across_step(key), key > 0);
            }
            wgmma_commit();
            group_multiply<HD, BM, BM>(flat(dk), ds_pieces, q);
            wgmma_commit();
            group_multiply<BM, HD, BN, BM>(flat(s), k, t.q + next * BM * HD); /* the last time for nothing */
            wgmma_commit();
            wgmma_wait<2>(); /* dQ */
            wgmma_hold(flat(dq));
            UNROLL
            for (int c = 0; c < 8; c++)
                UNROLL
                for (int e = 0; e < 4; e++) dq[0][c][e] *= a.scale;
            if (a.dq_rounded && i < b.done) {
                i64 at = ((i64)tile.first * a.rows + b.head + h) * a.head_dim;
                wgmma_wait<0>(); /* registers are short */
                /* dQ is rounded before it is added, as a bulk copy adds */
                wgmma_hold(flat(dk)), wgmma_hold(flat(s)), wgmma_hold(flat(dq));
                if (threadIdx.x % GROUP_THREADS == 0)
                    counter_wait(turn_of(a, b.head + h, i), LO && turn_first<LO>(a, t.span, b.j, i) ? 0 : b.j);
                named_barrier_sync(LAST_TURN + group, GROUP_THREADS);
                last_turn(a, at, dq, q_row + warp_row(thread_anew()), tile.count, q_col,
                          turn_first<LO>(a, t.span, b.j, i) && !a.add);
            } else {
                mbarrier_wait(t.dq_empty + stage, parity ^ 1);
                dq_store<BM>(t.dq + stage * BM * HD, dq, q_row, q_col, thread_anew());
                proxy_fence();
                warp_arrive(t.dq_full + stage);
            }
            wgmma_wait<0>(); /* dK, and the next S^T */
            wgmma_hold(flat(dk));
            wgmma_hold(flat(s));
            mbarrier_arrive(t.empty + stage);
        }
    }
    if constexpr (LO)
        unseen_share<BM, BN, 2 * GROUP_THREADS>(a, b.j, b.head, b.kv_head / a.kv_heads,
                                                (int)threadIdx.x - GROUP_THREADS);
    else
        for (int i = 0; b.j == 0 && i < b.low; i++)
            unseen_rows<BM, 2 * GROUP_THREADS>(a, i, b.head, (int)threadIdx.x - GROUP_THREADS);
    i64 at = kv_begin(a, b.kv, b.kv_head);
    kv_write(a, at, dk, a.scale, 64 * group + warp_row(thread_anew()), b.kv.count, 0);
    kv_write(a, at + a.kv_heads * a.head_dim, dv, 1, 64 * group + warp_row(thread_anew()), b.kv.count, 0);
}

template <int HD, int BM, int BN, bool LO>
__global__ void __launch_bounds__(3 * GROUP_THREADS, 1)
    attention_backward_hopper_kernel(const __grid_constant__ HopperBackward p) {
#if HOPPER_CODE
    typedef HopperBackwardTile<HD, BM, BN> T;
    T t = T::make();
    if (threadIdx.x == 0) {
        *t.block = backward_block<BM, BN>(p.a, atomicAdd(p.a.tickets, 1));
        mbarrier_init(t.kv_full, 1);
        for (int i = 0; i < T::STAGES; i++) {
            mbarrier_init(t.q_full + i, 1), mbarrier_init(t.dout_full + i, 33); /* with lse and delta, 32 lanes */
            mbarrier_init(t.empty + i, 32 * T::WARPS);
            mbarrier_init(t.dq_full + i, T::WARPS), mbarrier_init(t.dq_empty + i, 1);
        }
        mbarrier_init_fence();
    }
    if (LO && threadIdx.x < 32) {
        __syncwarp();
        span_find<BM, BN>(p.a, t.span, t.block->j, t.block->kv_head / p.a.kv_heads);
        if (threadIdx.x == 0) t.block->steps = span_steps(p.a, t.span, t.block->low);
    }
    __syncthreads();
    int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / GROUP_THREADS, 0);
    if (group == 0) {
        registers_give<24>();
        if (threadIdx.x < 32) backward_copies<HD, BM, BN, LO>(p, t);
        else if (threadIdx.x == 32) backward_adds<HD, BM, BN, LO>(p, t);
    } else {
        registers_take<240>();
        backward_products<HD, BM, BN, LO>(p, t, group - 1);
    }
#else
    (void)p;
#endif
}

template <int HD, int BM, int BN>
static inline void attention_backward_hopper_launch(Device *dev, const AttentionBackward *from, i64 kv_heads,
                                                    const TokenMap *q_map, const TokenMap *kv_map) {
    typedef HopperBackwardTile<HD, BM, BN> T;
    HopperBackward p;
    memset(&p, 0, sizeof p);
    AttentionBackward *a = &p.a;
    *a = *from;
    i64 kv_tiles = backward_prepare(dev, a, BM, BN, kv_heads, q_map, kv_map), kv_rows = 2 * kv_heads;
    for (int r = 0; r < 2; r++) {
        run_tensor_map(&p.q[r], TENSOR_BF16, a->q, a->head_dim, a->rows, a->q_step, q_map, r, 64, BM);
        run_tensor_map(&p.dout[r], TENSOR_BF16, a->dout, a->head_dim, a->rows, a->q_step, q_map, r, 64, BM);
        run_tensor_map(&p.kv[r], TENSOR_BF16, a->kv, a->head_dim, kv_rows, a->kv_step, kv_map, r, 64, BN);
        run_tensor_map(&p.dq[r], TENSOR_F32, a->dq, a->head_dim, a->rows, a->q_step, q_map, r, 32, BM);
    }
    dim3 grid((unsigned)(kv_tiles * a->order.heads)), block(T::THREADS);
    if (a->lo)
        LAUNCH((attention_backward_hopper_kernel<HD, BM, BN, true>), grid, block, T::SHARED_BYTES, dev->state.stream,
               p);
    else
        LAUNCH((attention_backward_hopper_kernel<HD, BM, BN, false>), grid, block, T::SHARED_BYTES, dev->state.stream,
               p);
}

#endif

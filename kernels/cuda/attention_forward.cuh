/* attention_forward.cuh - flash attention, forward: a block of threads has one query tile of
   one head and walks its KV tiles.

   a warp has 32 query rows, their running maximum and sum, and their rows of out: softmax never leaves the warp

     Q, K(n-1) on their way
     for j = n-1 .. 0   the last tiles first: the masked ones are there
         V(j) sets out          |  S = Q K(j)^T              16 x 8 pieces in registers
         K(j-1) sets out        |  P = 2^(c S - max), out += P V(j)
                                |  S's registers become the A operand of the second product
     out /= sum, lse = ln 2 (max + log2 sum)

   c = log2(e) / sqrt(head_dim), so that one multiply-add and one ex2 make an element of P; the
   maximum is kept in those units.
   K and V have one buffer each and are copy groups of their own: while one is multiplied the other flies. Blocks of the
   last queries, which see most, go first. merge = 1: maximum = lse, sum = 1, out = out to begin with, all in fp32. The
   last block of a row of merges, often the only one, writes bf16 at once.

   Dao 2023, arXiv:2307.08691; merge of blocks: Liu, Zaharia, Abbeel 2023, arXiv:2310.01889

   layouts   q (Tq, B, heads, HS), kv (Tk, B, 2, kv_heads, HS), rounded as q, bf16; out as q, lse (Tq, B, heads) fp32
   cost      4 pairs HS FLOP; reads KV once per query tile, from L2 where it can
   shared    d64, 128 x 128: 48 KB    d128, 128 x 64: 64 KB    4 warps, two blocks on a multiprocessor
   registers 255, no spills                                                                                           */
#ifndef ODYSSEUS_CUDA_ATTENTION_FORWARD_H
#define ODYSSEUS_CUDA_ATTENTION_FORWARD_H

#include "attention.cuh"

typedef struct {
    float *out, *lse;
    bf16 *rounded; /* not NULL: the result goes here instead of to out */
    const bf16 *q, *kv;
    int heads, kv_heads, group, head_dim, merge; /* group: query heads of a KV head */
    int rows, q_step, kv_step;                   /* from token to token: rows of lse, elements of q, of kv */
    float scale_log2; /* log2(e) / sqrt(head_dim) */
    AttentionMap q_map, kv_map;
    AttentionOrder order;
    const int *lo; /* of the kernels with LO: (tokens, sequences) */
    int sequences;
} AttentionForward;

#define LOG2_E 1.44269504088896340736f
#define LN_2 0.69314718055994530942f

/* One tile of scores becomes 2^(score - base), and the sum goes on. `top` is the base, at first the maximum: any
   number will do that keeps the powers within bounds, so it stays until a score is 2^8 times too large for it, and
   what was summed shrinks then. That takes a multiplication for every accumulator, and is rare after the first tiles.
   A warp skips it if no row of its needs it, but no row's bits depend on another's. Four lanes share a row: they agree
   on its maximum here, their sums are added at the end. While a row has seen nothing its top is -inf; 0 stands in for
   it, so that no inf - inf arises. */
template <int MT, int NT, int DT>
__device__ __forceinline__ void softmax_tile(float (&s)[MT][NT][4], float (&out)[MT][DT][4], float (&top)[MT][2],
                                             float (&sum)[MT][2], float scale) {
    float high[MT][2];
    bool grown = false;
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            float x = s[m][0][2 * half];
            UNROLL
            for (int n = 0; n < NT; n++) x = fmaxf(x, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
            high[m][half] = x * scale;
            grown |= high[m][half] > top[m][half] + 8;
        }
    if (__any_sync(0xffffffffu, grown)) {
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int half = 0; half < 2; half++) {
                float now = high[m][half] > top[m][half] + 8 ? high[m][half] : top[m][half];
                float shrink = fast_exp2(top[m][half] - (now == -INFINITY ? 0 : now)); /* 1 for a row that stays */
                top[m][half] = now;
                sum[m][half] *= shrink;
                UNROLL
                for (int d = 0; d < DT; d++) out[m][d][2 * half] *= shrink, out[m][d][2 * half + 1] *= shrink;
            }
    }
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            float base = top[m][half] == -INFINITY ? 0 : top[m][half], part = 0;
            UNROLL
            for (int n = 0; n < NT; n++)
                UNROLL
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale, -base));
                    part += s[m][n][e];
                }
            sum[m][half] += part;
        }
}

/* Scores that the mask hides become -inf. `row`, `col`: this lane's first in the tile. */
template <int MT, int NT>
__device__ __forceinline__ void mask_tile(float (&s)[MT][NT][4], const AttentionTile &q, const AttentionTile &kv,
                                          int row, int col) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            int limit = tile_limit(q, row + 16 * m + 8 * half, kv) - col * kv.stride;
            UNROLL
            for (int n = 0; n < NT; n++) {
                if (8 * n * kv.stride > limit) s[m][n][2 * half] = -INFINITY;
                if ((8 * n + 1) * kv.stride > limit) s[m][n][2 * half + 1] = -INFINITY;
            }
        }
}

/* So do scores of keys before the lo of their query. */
template <int MT, int NT>
__device__ __forceinline__ void mask_tile_before(float (&s)[MT][NT][4], const AttentionLo &lo, const AttentionTile &q,
                                                 const AttentionTile &kv, int row, int col) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            int begin = row_lo(lo, q, row + 16 * m + 8 * half) - kv.position - col * kv.stride;
            UNROLL
            for (int n = 0; n < NT; n++) {
                if (8 * n * kv.stride < begin) s[m][n][2 * half] = -INFINITY;
                if ((8 * n + 1) * kv.stride < begin) s[m][n][2 * half + 1] = -INFINITY;
            }
        }
}

/* out (16 MT x 8 DT of this warp) += P V. The accumulators of two pieces of P side by side,
   rounded, are one A operand. */
template <int HD, int MT, int NT, int DT>
__device__ __forceinline__ void multiply_values(float (&out)[MT][DT][4], float (&p)[MT][NT][4], const bf16 *v) {
    int lane = lane_offset<HD, true>((int)threadIdx.x);
    UNROLL
    for (int k = 0; k < NT; k += 2) {
        uint32_t fa[MT][4];
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
        for (int r = 0; r < 4; r++)
            fa[m][r] = bf16x2_round(p[m][k + r / 2][2 * (r % 2)], p[m][k + r / 2][2 * (r % 2) + 1]);
        UNROLL
        for (int d = 0; d < DT; d += 2) {
            uint32_t fb[4];
            ldmatrix_x4_trans(fb, v + (lane ^ (8 * d)) + 8 * k * HD);
            UNROLL
            for (int m = 0; m < MT; m++) {
                mma_bf16_16816(out[m][d], fa[m], fb);
                mma_bf16_16816(out[m][d + 1], fa[m], fb + 2);
            }
        }
    }
}

/* The running softmax before the first key: nothing, or what an earlier block left. `at` is
   the tile's first row of lse. */
template <int MT, int DT>
__device__ __forceinline__ void softmax_begin(const AttentionForward &a, i64 at, int count, int warp_row,
                                              float (&out)[MT][DT][4], float (&top)[MT][2], float (&sum)[MT][2]) {
    int lane = (int)threadIdx.x % 32;
    i64 step = a.rows;
    warp_zero(out);
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            int row = warp_row + 16 * m + 8 * half + lane / 4;
            float old = a.merge && row < count ? a.lse[at + row * step] : -INFINITY;
            top[m][half] = old * LOG2_E;
            sum[m][half] = old != -INFINITY && lane % 4 == 0 ? 1 : 0; /* one of the four lanes that will be added */
        }
    if (!a.merge) return;
    UNROLL
    for (int m = 0; m < MT; m++) {
        int row = warp_row + 16 * m + traded_row((int)threadIdx.x);
        bool there = row < count && a.lse[at + row * step] != -INFINITY;
        const float *from = a.out + (at + row * step) * a.head_dim + traded_col((int)threadIdx.x);
        UNROLL
        for (int d = 0; d < DT; d++) {
            if (there && 8 * d < a.head_dim) {
                floatx4 x = *(const floatx4 *)(from + 8 * d);
                for (int e = 0; e < 4; e++) out[m][d][e] = x.v[e];
            }
            lanes_trade(out[m][d]);
        }
    }
}

template <int MT, int DT>
__device__ __forceinline__ void softmax_end(const AttentionForward &a, i64 at, int count, int warp_row,
                                            float (&out)[MT][DT][4], float (&top)[MT][2], float (&sum)[MT][2]) {
    int lane = (int)threadIdx.x % 32;
    i64 step = a.rows;
    UNROLL
    for (int m = 0; m < MT; m++) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            float all = sum[m][half];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            float inverse = all > 0 ? 1 / all : 0;
            int row = warp_row + 16 * m + 8 * half + lane / 4;
            if (lane % 4 == 0 && row < count)
                a.lse[at + row * step] = all > 0 ? (top[m][half] + fast_log2(all)) * LN_2 : -INFINITY;
            UNROLL
            for (int d = 0; d < DT; d++) out[m][d][2 * half] *= inverse, out[m][d][2 * half + 1] *= inverse;
        }
        int row = warp_row + 16 * m + traded_row((int)threadIdx.x);
        UNROLL
        for (int d = 0; d < DT; d++) lanes_trade(out[m][d]);
        if (a.rounded) {
            int col = rounded_col((int)threadIdx.x);
            bf16 *to = a.rounded + (at + row * step) * a.head_dim + col;
            UNROLL
            for (int d = 0; d < DT; d += 2) {
                bf16x8 x = lanes_round(out[m][d], out[m][d + 1]);
                if (row < count && 8 * d + col < a.head_dim) *(bf16x8 *)(to + 8 * d) = x;
            }
        } else {
            float *to = a.out + (at + row * step) * a.head_dim + traded_col((int)threadIdx.x);
            UNROLL
            for (int d = 0; d < DT; d++) {
                floatx4 x;
                for (int e = 0; e < 4; e++) x.v[e] = out[m][d][e];
                if (row < count && 8 * d < a.head_dim) *(floatx4 *)(to + 8 * d) = x;
            }
        }
    }
}

template <int HD, int BM, int BN, int WARPS> struct AttentionForwardTile {
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int SHARED_BYTES = (BM + 2 * BN) * HD * (int)sizeof(bf16) + 2 * (int)sizeof(int);
};

template <int HD, int BM, int BN, int WARPS, bool LO>
__global__ void __launch_bounds__(32 * WARPS, 2) attention_forward_kernel(AttentionForward a) {
    constexpr int MT = BM / 16 / WARPS, NT = BN / 8, DT = HD / 8, THREADS = 32 * WARPS;
    SHARED_DYNAMIC(bf16, shared);
    bf16 *q = shared, *k = q + BM * HD, *v = k + BN * HD;
    int *low = (int *)(v + BN * HD), *most = low + 1; /* LO: the first KV tile seen, the largest lo of a query */
    int i, head;
    attention_block(a.order, block_anew(), &i, &head);
    AttentionTile tile = attention_tile<BM>(a.q_map, a.order.tiles - 1 - i);
    int tiles = tiles_until<BN>(a.kv_map, tile_last(tile));
    int first = 0;
    if constexpr (LO) {
        AttentionLo lo = sequence_lo(a.lo, a.sequences, head / a.heads);
        first = tiles_before<BN>(a.kv_map, row_lo(lo, tile, 0));
        if (threadIdx.x == 0) *low = first, *most = row_lo(lo, tile, BM - 1);
    }
    if (tiles == first && a.merge && !a.rounded) return; /* nothing joins */
    int b = head / a.heads, h = head - b * a.heads, warp_row = (int)threadIdx.x / 32 * 16 * MT,
        lane_row = warp_row + (int)threadIdx.x % 32 / 4;
    i64 at = (i64)tile.first * a.rows + head;
    int keys = (b * 2 * a.kv_heads + h / a.group) * a.head_dim; /* where this head's begin within a token of kv */

    if (tiles > first) {
        AttentionTile kv = attention_tile<BN>(a.kv_map, tiles - 1);
        tile_fetch<BM, HD, THREADS>(q, a.q + at * a.head_dim, a.q_step, tile.count, a.head_dim, (int)threadIdx.x);
        tile_fetch<BN, HD, THREADS>(k, a.kv + keys + (i64)kv.first * a.kv_step, a.kv_step, kv.count, a.head_dim,
                                    (int)threadIdx.x);
        cp_async_commit();
    }
    float out[MT][DT][4], top[MT][2], sum[MT][2];
    softmax_begin(a, at, tile.count, warp_row, out, top, sum);
    for (int j = tiles - 1; j >= first; j--) {
        cp_async_wait<0>();
        __syncthreads(); /* K(j) is here, all are done with V(j+1) */
        AttentionTile kv = attention_tile<BN>(a.kv_map, j);
        tile_fetch<BN, HD, THREADS>(v, a.kv + keys + a.kv_heads * a.head_dim + (i64)kv.first * a.kv_step, a.kv_step,
                                    kv.count, a.head_dim, (int)threadIdx.x);
        cp_async_commit();
        float s[MT][NT][4];
        warp_zero(s);
        warp_multiply<false, true, HD, HD, HD>(s, q, warp_row, k, 0, (int)threadIdx.x, (int)threadIdx.x);
        if (tile_is_masked<BN>(tile, kv)) mask_tile(s, tile, kv, lane_row, 2 * ((int)threadIdx.x % 4));
        if (LO && kv.position < *most) {
            int thread = thread_anew(), row = thread / 32 * 16 * MT + thread % 32 / 4;
            attention_block(a.order, block_anew(), &i, &head);
            mask_tile_before(s, sequence_lo(a.lo, a.sequences, head / a.heads),
                             attention_tile<BM>(a.q_map, a.order.tiles - 1 - i),
                             attention_tile<BN>(a.kv_map, value_anew(j)), row, thread % 4 * 2);
        }
        cp_async_wait<0>();
        __syncthreads(); /* V(j) is here, all are done with K(j) */
        if (LO) first = *low;
        if (j > first) {
            AttentionTile next = attention_tile<BN>(a.kv_map, j - 1);
            tile_fetch<BN, HD, THREADS>(k, a.kv + keys + (i64)next.first * a.kv_step, a.kv_step, next.count, a.head_dim,
                                        (int)threadIdx.x);
        }
        cp_async_commit();
        softmax_tile(s, out, top, sum, a.scale_log2);
        multiply_values<HD>(out, s, v);
    }
    attention_block(a.order, block_anew(), &i, &head);
    tile = attention_tile<BM>(a.q_map, a.order.tiles - 1 - i);
    softmax_end(a, (i64)tile.first * a.rows + head, tile.count, warp_row, out, top, sum);
}

template <int HD, int BM, int BN, int WARPS>
static inline void attention_forward_launch(Device *dev, AttentionForward a, const TokenMap *q_map,
                                            const TokenMap *kv_map) {
    typedef AttentionForwardTile<HD, BM, BN, WARPS> Tile;
    i64 tiles = ceil_div(q_map->run[0].count, BM) + ceil_div(q_map->run[1].count, BM);
    if (tiles == 0) return;
    a.q_map = attention_map(q_map, BM), a.kv_map = attention_map(kv_map, BN);
    /* a query head's share of its K and V */
    double kv_bytes = 4.0 * (double)kv_map->count * a.head_dim * a.kv_heads / a.heads;
    a.order = attention_order(a.rows, tiles, kv_bytes + 1, a.group);
    dim3 grid((unsigned)(tiles * a.order.heads)), block(Tile::THREADS);
    if (a.lo)
        LAUNCH((attention_forward_kernel<HD, BM, BN, WARPS, true>), grid, block, Tile::SHARED_BYTES, dev->state.stream,
               a);
    else
        LAUNCH((attention_forward_kernel<HD, BM, BN, WARPS, false>), grid, block, Tile::SHARED_BYTES, dev->state.stream,
               a);
}

#ifdef ODYSSEUS_HOPPER
#include "attention_hopper_forward.cuh"
#endif

/* The one place that picks a kernel. */
static inline void attention_forward_run(Device *dev, accum *out, real *rounded, accum *lse, const real *q,
                                         const real *kv, AttentionCall c) {
    const AttentionShape s = c.shape;
    attention_check(&c);
    attention_yield(dev);
    AttentionForward a;
    memset(&a, 0, sizeof a);
    a.out = out, a.rounded = rounded, a.lse = lse, a.q = q, a.kv = kv, a.merge = c.merge;
    a.lo = c.lo, a.sequences = (int)s.B;
    a.heads = (int)s.heads, a.kv_heads = (int)s.kv_heads, a.group = (int)(s.heads / s.kv_heads),
    a.head_dim = (int)s.head_dim;
    a.rows = (int)(s.B * s.heads), a.q_step = a.rows * a.head_dim, a.kv_step = (int)(s.B * 2 * s.kv_heads * s.head_dim);
    a.scale_log2 = (float)(1.44269504088896340736 / sqrt((double)s.head_dim));
#ifdef ODYSSEUS_HOPPER
    if (dev->state.wgmma) {
        if (s.head_dim <= 64) attention_forward_hopper_launch<64, 128, 128, 4>(dev, &a, &c.q_map, &c.kv_map);
        else attention_forward_hopper_launch<128, 128, 128, 2>(dev, &a, &c.q_map, &c.kv_map);
        return;
    }
#endif
    if (s.head_dim <= 64) attention_forward_launch<64, 128, 128, 4>(dev, a, &c.q_map, &c.kv_map);
    else attention_forward_launch<128, 128, 64, 4>(dev, a, &c.q_map, &c.kv_map);
}

#endif

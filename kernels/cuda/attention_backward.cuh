/* attention_backward.cuh - flash attention, backward: a block of threads owns one KV tile of
   one KV head and its gradients.

     K, V stay in shared memory, dK, dV in registers, until all queries that see them have passed
     for each query tile that sees the KV tile, the last first
       for each query head of the group
         Q(next) sets out   |  S = Q K^T, P = 2^(c S - c' lse), dP = dout V^T, dS = P (dP - delta)
                            |  P, dS to shared memory in bf16
                            |  dV += P^T dout
         dout(next) sets out|  dQ = dS K                    16 x 8 pieces; then this tile's turn in dq, below
                            |  dK += dS^T Q                 while the old dq is on its way from memory
                               dq = old + scale dQ         the first turn has no old, the last one may round to bf16
     dkv = scale dK, dV

   The order of sums. Many KV tiles add to one dq tile. They do so by turns, KV tile 0 first, 1 next, ...: a counter in
   scratch per dq tile holds whose turn it is. Positions ascend from tile to tile, so a query tile that sees KV tile j
   sees 0 .. j-1 too, and j's turn is number j whatever the maps. Every block goes from the last queries to the first,
   so block j follows one step behind block j-1 and does not wait again:

        step     0    1    2    3    4        dq tile that the block of KV tile j adds to (4 query tiles, causal)
        j = 0    3    2    1    0             the longest block is the first to start, and block j waits only for blocks
        j = 1         3    2    1             that have started before it, as the counters' protocol wants
        j = 2              3    2

   Nothing promises that blocks start in the order of blockIdx. So a block draws a ticket as it starts, and
   takes the work of that number.

   Where queries see keys from `lo` on, a query tile sees the KV tiles m .. n-1. The block of KV tile m has the first
   turn: it does not wait, and passes the counter on from 0 to m+1, so that all other turns are as they were. The query
   tiles of which a block has the first turn are the last that see its KV tile, and behind them in the run are those
   that do not see it any more. A block finds where both begin before its first step, and goes down from there as above.

        step     0    1    2    3    4        the same where a query tile sees two KV tiles: the first to add to query
        j = 0    1    0                       tiles 0, 1, 2, 3 are KV tiles 0, 0, 1, 2
        j = 1         2    1
        j = 2              3    2

   What a block added is seen by the next once it has passed the counter on: one thread does, behind a barrier of the
   block, in the middle of its next step, when the stores have long been made. No float atomics: the order, and so the
   bits, are the same on every run.

   dkv has one writer. Rows whose lse is -inf (they saw nothing) and rows past the tile's end get P = 0. Query tiles
   that see no key at all have no turns: the block of KV tile 0 writes them. With LO they may be many, and all blocks
   share them.

   Dao 2023, arXiv:2307.08691

   layouts   q, dout (Tq, B, heads, HS), kv (Tk, B, 2, kv_heads, HS) bf16; dq, dkv alike in fp32, or rounded;
             lse, delta (Tq, B, heads) fp32
   cost      10 pairs HS FLOP; dq is read and written once per pair of tiles, in 16-byte accesses, mostly in L2
   scratch   one int per (B, head, query tile), and the number of tickets drawn
   shared    d64, 128 x 128: 145.1 KB  d128, 64 x 128: 144.6 KB    8 warps, one block on a multiprocessor
             d64,  64 x 128: 88.6 KB   d128, 64 x 64:  96.6 KB     where a block has 99 KB at most: sm_86, sm_89, sm_120
   registers 255 (194 to 230 of the smaller tiles), no spills                                                         */
#ifndef ODYSSEUS_CUDA_ATTENTION_BACKWARD_H
#define ODYSSEUS_CUDA_ATTENTION_BACKWARD_H

#include "attention_forward.cuh"

/* ---- delta ---- */

enum { DELTA_THREADS = 256 };

/* `lanes` neighbouring lanes share a row: 16 bytes of out and dout each. */
__global__ void __launch_bounds__(DELTA_THREADS)
attention_delta_kernel(float *delta, const bf16 *out, const bf16 *dout, i64 rows, int head_dim, int lanes) {
    i64 row = (i64)blockIdx.x * (DELTA_THREADS / lanes) + (int)threadIdx.x / lanes;
    int col = (int)threadIdx.x % lanes * 8;
    float sum = 0;
    if (row < rows && col < head_dim) {
        bf16x8 o = *(const bf16x8 *)(out + row * head_dim + col), d = *(const bf16x8 *)(dout + row * head_dim + col);
        UNROLL
        for (int i = 0; i < 8; i++) sum += bf16_float(o.v[i]) * bf16_float(d.v[i]);
    }
    for (int apart = lanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (row < rows && col == 0) delta[row] = sum;
}

static inline void attention_delta_run(Device *dev, accum *delta, const real *out, const real *dout, i64 rows_heads,
                                       i64 head_dim) {
    if (!attention_takes_head_dim(head_dim))
        FAIL(THIS_RANK, "attention: head dim %lld; the CUDA kernels take multiples of 8 up to 128", head_dim);
    if (rows_heads == 0) return;
    int lanes = 1;
    while (lanes * 8 < head_dim) lanes *= 2;
    i64 blocks = ceil_div(rows_heads, DELTA_THREADS / lanes);
    LAUNCH(attention_delta_kernel, dim3((unsigned)blocks), dim3(DELTA_THREADS), 0, dev->state.stream, delta, out, dout,
           rows_heads, (int)head_dim, lanes);
}

/* ---- backward ---- */

typedef struct {
    float *dq, *dkv;
    bf16 *dq_rounded, *dkv_rounded; /* not NULL: the result goes here instead */
    const bf16 *q, *kv, *dout;
    const float *lse, *delta;
    int *turns; /* (heads of all sequences, query tiles): how many KV tiles have added */
    int *tickets; /* how many blocks have started */
    int kv_heads, group, head_dim; /* group: query heads of a KV head */
    int rows, q_step, kv_step;     /* from token to token: rows of lse, elements of q, of kv */
    float scale, scale_log2;
    AttentionMap q_map, kv_map;
    int q_tiles, add; /* add: to what is in dq */
    AttentionOrder order; /* KV tiles of KV heads */
    const int *lo;        /* of the kernels with LO: (tokens, sequences) */
    int sequences;
} AttentionBackward;

/* LO: what the lo of queries means for a block's KV tile: in either run, from which query tile on (all of the map's are
   counted) they do not see it, see none before it, have a query that does not see all of it. */
enum { SPAN_UNSEEN, SPAN_FIRST, SPAN_CUT, SPANS };
typedef struct {
    int from[SPANS][2];
} BackwardSpan;

/* A warp finds those of KV tile j, a lane each: within a run lo never falls. */
template <int BM, int BN>
__device__ __forceinline__ void span_find(const AttentionBackward &a, BackwardSpan *span, int j, int sequence) {
    int lane = (int)threadIdx.x % 32, run = lane % 2, which = lane / 2;
    if (which < SPANS) {
        AttentionTile kv = attention_tile<BN>(a.kv_map, j);
        AttentionLo lo = sequence_lo(a.lo, a.sequences, sequence);
        int position = which == SPAN_CUT ? kv.position : tile_last(kv), row = which == SPAN_CUT ? BM - 1 : 0;
        if (which == SPAN_FIRST) position = j > 0 ? tile_last(attention_tile<BN>(a.kv_map, j - 1)) : INT_MIN;
        int from = run ? a.q_map.tiles[0] : 0, to = run ? a.q_tiles : a.q_map.tiles[0];
        while (from < to) {
            int i = (from + to) / 2;
            if (row_lo(lo, attention_tile<BM>(a.q_map, i), row) <= position) from = i + 1;
            else to = i;
        }
        span->from[which][run] = from;
    }
    __syncwarp();
}
/* Whether query tile i is one of those. */
__device__ __forceinline__ bool span_has(const AttentionBackward &a, const BackwardSpan *span, int which, int i) {
    return i >= span->from[which][i >= a.q_map.tiles[0]];
}
/* The last query tile, i or before, that is not past those that see the KV tile; -1: none. */
__device__ __forceinline__ int span_last(const AttentionBackward &a, const BackwardSpan *span, int i) {
    if (i >= a.q_map.tiles[0]) i = min(i, span->from[SPAN_UNSEEN][1] - 1);
    return i >= a.q_map.tiles[0] ? i : min(i, span->from[SPAN_UNSEEN][0] - 1);
}

/* One step of a block: a query tile of a query head. One thread makes them, two steps ahead, in shared memory, where
   the others read what they need when they need it: it is the same for all, and their registers are full. */
typedef struct {
    i64 row;                     /* of lse and delta, where the tile begins */
    int i, h;                    /* index of the tile, query head within the group; i < 0: no step, h the tiles
                                    before the last one, unseen */
    int position, stride, count; /* of the tile's tokens */
    int last;                    /* no later KV tile is seen: the sum is complete */
} BackwardStep;
enum { STEPS = 4 }; /* the last one, this one, the next, and the one after it, which is being made */

/* Tiles in shared memory, and which part of each product a warp has. The eight warps stand in S_ROWS rows for S and dP,
   in KV_ROWS for dK and dV, in Q_ROWS for dQ. */
template <int HD, int BM, int BN, int S_ROWS, int KV_ROWS, int Q_ROWS> struct BackwardTile {
    static constexpr int WARPS = 8, THREADS = 32 * WARPS;
    static constexpr int S_M = BM / S_ROWS, S_N = BN * S_ROWS / WARPS;   /* rows and columns of one warp */
    static constexpr int KV_M = BN / KV_ROWS, KV_N = HD * KV_ROWS / WARPS;
    static constexpr int Q_M = BM / Q_ROWS, Q_N = HD * Q_ROWS / WARPS;
    static constexpr int SHARED_BYTES = (2 * BN * HD + 3 * BM * HD + 2 * BM * BN) * (int)sizeof(bf16) +
                                        2 * BM * (int)sizeof(float) + STEPS * (int)sizeof(BackwardStep) +
                                        (int)sizeof(int) + (int)sizeof(BackwardSpan);
    static __device__ __forceinline__ int kv_row(void) { return thread_anew() / 32 % KV_ROWS * KV_M; }
    static __device__ __forceinline__ int kv_col(void) { return thread_anew() / 32 / KV_ROWS * KV_N; }
    static_assert(2 * BM <= THREADS, "a thread for every lse and delta of a tile");
};

/* The step of query tile i and head h of the group, if the tile sees KV tile j: it becomes `s`. `head` is the
   group's first, of all sequences. */
template <int BM, int BN, bool LO>
__device__ __forceinline__ void step_make(const AttentionBackward &a, const BackwardSpan *span, BackwardStep *s, int i,
                                          int h, int j, int head) {
    if (LO) i = span_last(a, span, i);
    AttentionTile tile = attention_tile<BM>(a.q_map, i < 0 ? 0 : i), kv = attention_tile<BN>(a.kv_map, j),
                  after = attention_tile<BN>(a.kv_map, j + 1);
    bool seen = i >= 0 && tile_last(tile) >= kv.position;
    s->row = (i64)tile.first * a.rows + head + h;
    s->i = seen ? i : -1, s->h = seen ? h : i + 1;
    s->position = tile.position, s->stride = tile.stride, s->count = tile.count;
    s->last = j + 1 == a.order.tiles || tile_last(tile) < after.position;
}

/* The step after `s`: all heads of the group, then the query tile before. */
template <int BM, int BN, bool LO>
__device__ __forceinline__ void step_after(const AttentionBackward &a, const BackwardSpan *span, BackwardStep *next,
                                           const BackwardStep *s, int j, int head) {
    bool same = s->h + 1 < a.group;
    if (s->i < 0) *next = *s;
    else step_make<BM, BN, LO>(a, span, next, same ? s->i : s->i - 1, same ? s->h + 1 : 0, j, head);
}

/* Begin to bring a step's tile of q or dout. */
template <int BM, int HD, int THREADS>
__device__ __forceinline__ void step_fetch(const AttentionBackward &a, bf16 *tile, const bf16 *from,
                                           const BackwardStep *s) {
    tile_fetch<BM, HD, THREADS>(tile, from + s->row * a.head_dim, a.q_step, s->count, a.head_dim, thread_anew());
}

/* This thread's element of the step's rows: lse in units of log2 for the first BM threads, delta for the next BM. */
template <int BM> __device__ __forceinline__ float step_value(const AttentionBackward &a, const BackwardStep *s) {
    int row = (int)threadIdx.x % BM;
    bool is_lse = (int)threadIdx.x < BM;
    if ((int)threadIdx.x >= 2 * BM || row >= s->count) return is_lse ? INFINITY : 0;
    i64 at = s->row + (i64)row * a.rows;
    if (!is_lse) return a.delta[at];
    float lse = a.lse[at];
    return lse == -INFINITY ? INFINITY : lse * LOG2_E;
}

/* Whose turn it is with a step's tile of dq. */
__device__ __forceinline__ int *step_turn(const AttentionBackward &a, const BackwardStep *s, int head) {
    return a.turns + (head + s->h) * a.q_tiles + s->i;
}

/* Whether this step has the first turn of its tile. */
template <bool LO>
__device__ __forceinline__ bool step_first(const AttentionBackward &a, const BackwardSpan *span, const BackwardStep *s,
                                           int j) {
    return LO ? span_has(a, span, SPAN_FIRST, s->i) : j == 0;
}

/* Scores become probabilities: 2^(c s - lse), 0 for a score of -inf. */
template <int MT, int NT>
__device__ __forceinline__ void probabilities(float (&s)[MT][NT][4], const float *lse, int row, float scale_log2) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            float base = lse[row + 16 * m + 8 * half];
            UNROLL
            for (int n = 0; n < NT; n++)
                UNROLL
            for (int e = 2 * half; e < 2 * half + 2; e++) s[m][n][e] = fast_exp2(fmaf(s[m][n][e], scale_log2, -base));
        }
}

/* dP becomes dS = P (dP - delta). */
template <int MT, int NT>
__device__ __forceinline__ void score_gradients(float (&dp)[MT][NT][4], const float (&p)[MT][NT][4], const float *delta,
                                                int row) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int half = 0; half < 2; half++) {
            float base = delta[row + 16 * m + 8 * half];
            UNROLL
            for (int n = 0; n < NT; n++)
                UNROLL
                for (int e = 2 * half; e < 2 * half + 2; e++) dp[m][n][e] = p[m][n][e] * (dp[m][n][e] - base);
        }
}

/* A warp's accumulators into a tile of shared memory, rounded. The warp's columns begin at a multiple of their number:
   an address is one number, with bits flipped per piece. */
template <int COLS, int MT, int NT>
__device__ __forceinline__ void tile_store(bf16 *tile, const float (&x)[MT][NT][4], int row, int col) {
    static_assert((NT & (NT - 1)) == 0, "a power of two");
    int first = swizzle<COLS>(row, col);
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++)
            UNROLL
            for (int half = 0; half < 2; half++)
                *(Bf16Pair *)(tile + (first ^ (8 * n)) + (16 * m + 8 * half) * COLS) =
                    bf16x2_round(x[m][n][2 * half], x[m][n][2 * half + 1]);
}

/* What a warp's accumulators will be added to: begin to read it, or zeros ... */
template <int MT, int NT>
__device__ __forceinline__ void rows_read(floatx4 (&old)[MT][NT], const float *from, bool zeros, int step, int row,
                                          int rows, int col, int width) {
    int thread = thread_anew(), r = row + traded_row(thread);
    unsigned at = (unsigned)(r * step + col + traded_col(thread));
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++) {
            old[m][n].v[0] = old[m][n].v[1] = old[m][n].v[2] = old[m][n].v[3] = 0;
            if (!zeros && r + 16 * m < rows && col + 8 * n < width)
                old[m][n] = *(const floatx4 *)(from + at + (unsigned)(16 * m * step) + 8 * n);
        }
}
/* ... and later x = old + factor x, traded. */
template <int MT, int NT>
__device__ __forceinline__ void rows_add(float (&x)[MT][NT][4], const floatx4 (&old)[MT][NT], float factor) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++) {
            lanes_trade(x[m][n]);
            UNROLL
            for (int e = 0; e < 4; e++) x[m][n][e] = old[m][n].v[e] + factor * x[m][n][e];
        }
}
/* Traded accumulators to memory, in fp32 or rounded. */
template <int MT, int NT>
__device__ __forceinline__ void rows_write(float *to, const float (&x)[MT][NT][4], int step, int row, int rows, int col,
                                           int width) {
    int thread = thread_anew(), r = row + traded_row(thread);
    unsigned at = (unsigned)(r * step + col + traded_col(thread));
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++) {
            floatx4 v;
            for (int e = 0; e < 4; e++) v.v[e] = x[m][n][e];
            if (r + 16 * m < rows && col + 8 * n < width) *(floatx4 *)(to + at + (unsigned)(16 * m * step) + 8 * n) = v;
        }
}
template <int MT, int NT>
__device__ __forceinline__ void rows_write(bf16 *to, const float (&x)[MT][NT][4], int step, int row, int rows, int col,
                                           int width) {
    static_assert(NT % 2 == 0, "two pieces side by side");
    int thread = thread_anew(), r = row + traded_row(thread), c = col + rounded_col(thread);
    unsigned at = (unsigned)(r * step + c);
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n += 2) {
            bf16x8 v = lanes_round(x[m][n], x[m][n + 1]);
            if (r + 16 * m < rows && c + 8 * n < width) *(bf16x8 *)(to + at + (unsigned)(16 * m * step) + 8 * n) = v;
        }
}

/* dK or dV, complete: factor x in the place of its tile in dkv. */
template <int MT, int NT>
__device__ __forceinline__ void kv_write(const AttentionBackward &a, i64 at, float (&x)[MT][NT][4], float factor,
                                         int row, int rows, int col) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++) {
            UNROLL
            for (int e = 0; e < 4; e++) x[m][n][e] *= factor;
            lanes_trade(x[m][n]);
        }
    if (a.dkv_rounded) rows_write(a.dkv_rounded + at, x, a.kv_step, row, rows, col, a.head_dim);
    else rows_write(a.dkv + at, x, a.kv_step, row, rows, col, a.head_dim);
}

/* Query tile i sees nothing: its gradient is what it was, or zero. */
template <int BM, int THREADS>
__device__ __forceinline__ void unseen_rows(const AttentionBackward &a, int i, int head, int thread) {
    AttentionTile tile = attention_tile<BM>(a.q_map, i);
    int chunks = a.head_dim / 8;
    for (int c = thread; c < tile.count * a.group * chunks; c += THREADS) {
        int r = c / chunks / a.group, h = c / chunks % a.group;
        i64 at = ((i64)(tile.first + r) * a.rows + head + h) * a.head_dim + c % chunks * 8;
        float x[8];
        UNROLL
        for (int e = 0; e < 8; e++) x[e] = a.add ? a.dq[at + e] : 0;
        UNROLL
        for (int e = 0; e < 8; e++) {
            if (a.dq_rounded) a.dq_rounded[at + e] = bf16_round(x[e]);
            else a.dq[at + e] = x[e];
        }
    }
}

/* With LO: so it is with this block's share of the query tiles that see nothing, if there is something to be done. */
template <int BM, int BN, int THREADS>
__device__ __forceinline__ void unseen_share(const AttentionBackward &a, int j, int head, int sequence, int thread) {
    AttentionLo lo = sequence_lo(a.lo, a.sequences, sequence);
    for (int i = j; i < a.q_tiles && !(a.add && !a.dq_rounded); i += a.order.tiles) {
        AttentionTile tile = attention_tile<BM>(a.q_map, i);
        if (tiles_until<BN>(a.kv_map, tile_last(tile)) == tiles_before<BN>(a.kv_map, row_lo(lo, tile, 0)))
            unseen_rows<BM, THREADS>(a, i, head, thread);
    }
}

/* Where a tile of K begins in kv, and of dK in dkv. */
__device__ __forceinline__ i64 kv_begin(const AttentionBackward &a, const AttentionTile &kv, int kv_head) {
    int b = kv_head / a.kv_heads, kh = kv_head - b * a.kv_heads;
    return (i64)kv.first * a.kv_step + ((i64)b * 2 * a.kv_heads + kh) * a.head_dim;
}

template <int HD, int BM, int BN, int S_ROWS, int KV_ROWS, int Q_ROWS, bool LO>
__global__ void __launch_bounds__(256, 1) attention_backward_kernel(AttentionBackward a) {
    typedef BackwardTile<HD, BM, BN, S_ROWS, KV_ROWS, Q_ROWS> T;
    constexpr int THREADS = T::THREADS;
    SHARED_DYNAMIC(bf16, shared);
    bf16 *k = shared, *v = k + BN * HD, *queries = v + BN * HD, *dout = queries + 2 * BM * HD, *p = dout + BM * HD,
         *ds = p + BM * BN;
    float *lse = (float *)(ds + BM * BN), *delta = lse + BM;
    BackwardStep *steps = (BackwardStep *)(delta + BM);
    int *ticket = (int *)(steps + STEPS), j, kv_head;
    BackwardSpan *span = (BackwardSpan *)(ticket + 1);
    if (threadIdx.x == 0) *ticket = atomicAdd(a.tickets, 1);
    if (LO && threadIdx.x < 32) {
        __syncwarp();
        attention_block(a.order, *ticket, &j, &kv_head);
        span_find<BM, BN>(a, span, j, kv_head / a.kv_heads);
    }
    if (threadIdx.x == 0) {
        attention_block(a.order, *ticket, &j, &kv_head);
        step_make<BM, BN, LO>(a, span, steps, a.q_tiles - 1, 0, j, kv_head * a.group);
        step_after<BM, BN, LO>(a, span, steps + 1, steps, j, kv_head * a.group);
    }
    __syncthreads();
    attention_block(a.order, *ticket, &j, &kv_head);
    int head = kv_head * a.group; /* the group's first query head */
    float value = 0;
    if (steps->i >= 0) { /* else no query sees this tile */
        AttentionTile kv = attention_tile<BN>(a.kv_map, j);
        const bf16 *keys = a.kv + kv_begin(a, kv, kv_head);
        tile_fetch<BN, HD, THREADS>(k, keys, a.kv_step, kv.count, a.head_dim, thread_anew());
        tile_fetch<BN, HD, THREADS>(v, keys + a.kv_heads * a.head_dim, a.kv_step, kv.count, a.head_dim, thread_anew());
        step_fetch<BM, HD, THREADS>(a, queries, a.q, steps);
        step_fetch<BM, HD, THREADS>(a, dout, a.dout, steps);
        value = step_value<BM>(a, steps);
        if ((int)threadIdx.x < 2 * BM) lse[threadIdx.x] = value;
    }
    cp_async_commit();

    float dk[T::KV_M / 16][T::KV_N / 8][4], dv[T::KV_M / 16][T::KV_N / 8][4];
    warp_zero(dk), warp_zero(dv);
    unsigned n = 0; /* steps done */
    for (; steps[n % STEPS].i >= 0; n++) {
        const BackwardStep *step = steps + n % STEPS, *next = steps + (n + 1) % STEPS,
                           *done = steps + (n + STEPS - 1) % STEPS;
        cp_async_wait<0>();
        __syncthreads(); /* this step's tiles and rows are here, all are done with the last step's */
        const bf16 *q = queries + n % 2 * BM * HD;
        if (next->i >= 0) {
            step_fetch<BM, HD, THREADS>(a, queries + (n + 1) % 2 * BM * HD, a.q, next);
            value = step_value<BM>(a, next);
        }
        cp_async_commit();
        if (threadIdx.x == THREADS - 32) step_after<BM, BN, LO>(a, span, steps + (n + 2) % STEPS, next, j, head);
        {
            int thread = thread_anew(), warp = thread / 32, lane = thread % 32;
            int row = warp % S_ROWS * T::S_M, col = warp / S_ROWS * T::S_N, lane_row = row + lane / 4,
                lane_col = col + lane % 4 * 2;
            float s[T::S_M / 16][T::S_N / 8][4], dp[T::S_M / 16][T::S_N / 8][4];
            warp_zero(s);
            warp_multiply<false, true, HD, HD, HD>(s, q, row, k, col, thread_anew(), thread_anew());
            AttentionTile tile = {0, step->position, step->stride, step->count},
                          kv = attention_tile<BN>(a.kv_map, value_anew(j));
            if (tile_is_masked<BN>(tile, kv)) mask_tile(s, tile, kv, lane_row, lane_col);
            if (LO && span_has(a, span, SPAN_CUT, step->i))
                mask_tile_before(s, sequence_lo(a.lo, a.sequences, head / (a.kv_heads * a.group)),
                                 attention_tile<BM>(a.q_map, step->i), kv, lane_row, lane_col);
            probabilities(s, lse, lane_row, a.scale_log2);
            tile_store<BN>(p, s, lane_row, lane_col);
            warp_zero(dp);
            warp_multiply<false, true, HD, HD, HD>(dp, dout, row, v, col, thread_anew(), thread_anew());
            score_gradients(dp, s, delta, lane_row);
            tile_store<BN>(ds, dp, lane_row, lane_col);
        }
        __syncthreads(); /* P and dS are written, lse and delta read */
        if (n > 0 && threadIdx.x == 0)
            counter_add(step_turn(a, done, head), LO && step_first<LO>(a, span, done, j) ? j + 1 : 1);
        if (next->i >= 0 && (int)threadIdx.x < 2 * BM) lse[threadIdx.x] = value;
        warp_multiply<true, false, BM, BN, HD>(dv, p, T::kv_row(), dout, T::kv_col(), thread_anew(), thread_anew());
        /* another warp than the one that has just fenced */
        if (threadIdx.x == THREADS / 2)
            counter_wait(step_turn(a, step, head), LO && step_first<LO>(a, span, step, j) ? 0 : j);
        __syncthreads(); /* all are done with dout; it is this block's turn */
        if (next->i >= 0) step_fetch<BM, HD, THREADS>(a, dout, a.dout, next);
        cp_async_commit();
        {
            int warp = thread_anew() / 32, row = warp % Q_ROWS * T::Q_M, col = warp / Q_ROWS * T::Q_N;
            float dq[T::Q_M / 16][T::Q_N / 8][4];
            floatx4 old[T::Q_M / 16][T::Q_N / 8];
            warp_zero(dq);
            warp_multiply<false, false, BN, BN, HD>(dq, ds, row, k, col, thread_anew(), thread_anew());
            rows_read(old, a.dq + step->row * a.head_dim, step_first<LO>(a, span, step, j) && !a.add, a.q_step, row,
                      step->count, col, a.head_dim);
            warp_multiply<true, false, BM, BN, HD>(dk, ds, T::kv_row(), q, T::kv_col(), thread_anew(), thread_anew());
            rows_add(dq, old, a.scale);
            if (step->last && a.dq_rounded)
                rows_write(a.dq_rounded + step->row * a.head_dim, dq, a.q_step, row, step->count, col, a.head_dim);
            else rows_write(a.dq + step->row * a.head_dim, dq, a.q_step, row, step->count, col, a.head_dim);
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    if (n > 0 && threadIdx.x == 0) {
        const BackwardStep *done = steps + (n + STEPS - 1) % STEPS;
        counter_add(step_turn(a, done, head), LO && step_first<LO>(a, span, done, j) ? j + 1 : 1);
    }
    attention_block(a.order, *ticket, &j, &kv_head);
    if constexpr (LO)
        unseen_share<BM, BN, THREADS>(a, j, kv_head * a.group, kv_head / a.kv_heads, thread_anew());
    else
        for (int i = 0; j == 0 && i < steps[n % STEPS].h; i++)
            unseen_rows<BM, THREADS>(a, i, kv_head * a.group, thread_anew());
    AttentionTile kv = attention_tile<BN>(a.kv_map, j);
    i64 kv_at = kv_begin(a, kv, kv_head);
    kv_write(a, kv_at, dk, a.scale, T::kv_row(), kv.count, T::kv_col());
    kv_write(a, kv_at + a.kv_heads * a.head_dim, dv, 1, T::kv_row(), kv.count, T::kv_col());
}

/* ---- launch ---- */

/* Maps, order of blocks and counters for tiles of BM queries and BN keys; returns the KV tiles. */
static inline i64 backward_prepare(Device *dev, AttentionBackward *a, int BM, int BN, i64 kv_heads,
                                   const TokenMap *q_map, const TokenMap *kv_map) {
    i64 q_tiles = ceil_div(q_map->run[0].count, BM) + ceil_div(q_map->run[1].count, BM);
    i64 kv_tiles = ceil_div(kv_map->run[0].count, BN) + ceil_div(kv_map->run[1].count, BN);
    a->q_map = attention_map(q_map, BM), a->kv_map = attention_map(kv_map, BN), a->q_tiles = (int)q_tiles;
    /* Q, dout and dq of a KV head's group. Blocks of one head follow each other by a step, so that they
       share what they read; many of them in flight would wait at their beginning, hence a head for every
       four multiprocessors at least. */
    double bytes = 8.0 * (double)q_map->count * a->head_dim * a->group;
    a->order = attention_order(kv_heads, kv_tiles, bytes, i64_max(8, dev->state.multiprocessors / 4));
    i64 scratch = TICKET_BYTES + (i64)a->rows * q_tiles * (i64)sizeof(int);
    if (scratch > dev->state.scratch_bytes)
        FAIL(THIS_RANK, "attention backward: %lld bytes of scratch are needed, there are %lld", scratch,
             dev->state.scratch_bytes);
    a->tickets = (int *)dev->state.scratch, a->turns = (int *)(dev->state.scratch + TICKET_BYTES);
    CUDA_CHECK(cudaMemsetAsync(a->tickets, 0, (size_t)scratch, dev->state.stream));
    return kv_tiles;
}

template <int HD, int BM, int BN, int S_ROWS, int KV_ROWS, int Q_ROWS>
static inline void attention_backward_launch(Device *dev, AttentionBackward a, i64 kv_heads, const TokenMap *q_map,
                                             const TokenMap *kv_map) {
    typedef BackwardTile<HD, BM, BN, S_ROWS, KV_ROWS, Q_ROWS> Tile;
    i64 kv_tiles = backward_prepare(dev, &a, BM, BN, kv_heads, q_map, kv_map);
    dim3 grid((unsigned)(kv_tiles * a.order.heads)), block(Tile::THREADS);
    if (a.lo)
        LAUNCH((attention_backward_kernel<HD, BM, BN, S_ROWS, KV_ROWS, Q_ROWS, true>), grid, block, Tile::SHARED_BYTES,
               dev->state.stream, a);
    else
        LAUNCH((attention_backward_kernel<HD, BM, BN, S_ROWS, KV_ROWS, Q_ROWS, false>), grid, block, Tile::SHARED_BYTES,
               dev->state.stream, a);
}

#ifdef ODYSSEUS_HOPPER
#include "attention_hopper_backward.cuh"
#endif

/* The one place that picks a kernel. */
static inline void attention_backward_run(Device *dev, accum *dq, real *dq_rounded, accum *dkv, real *dkv_rounded,
                                          const real *q, const real *kv, const real *dout, const accum *lse,
                                          const accum *delta, AttentionCall c) {
    const AttentionShape s = c.shape;
    attention_check(&c);
    attention_yield(dev);
    if (c.q_map.count == 0 || c.kv_map.count == 0)
        FAIL(THIS_RANK, "attention backward: a block of %lld queries and %lld keys; it needs both", c.q_map.count,
             c.kv_map.count);
    AttentionBackward a;
    memset(&a, 0, sizeof a);
    a.dq = dq, a.dkv = dkv, a.dq_rounded = dq_rounded, a.dkv_rounded = dkv_rounded, a.add = c.merge, a.q = q, a.kv = kv,
    a.dout = dout, a.lse = lse, a.delta = delta;
    a.lo = c.lo, a.sequences = (int)s.B;
    a.kv_heads = (int)s.kv_heads, a.group = (int)(s.heads / s.kv_heads), a.head_dim = (int)s.head_dim;
    a.rows = (int)(s.B * s.heads), a.q_step = a.rows * a.head_dim, a.kv_step = (int)(s.B * 2 * s.kv_heads * s.head_dim);
    a.scale = (float)(1 / sqrt((double)s.head_dim)),
    a.scale_log2 = (float)(1.44269504088896340736 / sqrt((double)s.head_dim));
    i64 heads = s.B * s.kv_heads, shared = dev->state.shared_bytes;
#ifdef ODYSSEUS_HOPPER
    if (dev->state.wgmma) {
        if (s.head_dim <= 64) attention_backward_hopper_launch<64, 128, 128>(dev, &a, heads, &c.q_map, &c.kv_map);
        else attention_backward_hopper_launch<128, 64, 128>(dev, &a, heads, &c.q_map, &c.kv_map);
        return;
    }
#endif
    if (s.head_dim <= 64 && BackwardTile<64, 128, 128, 4, 4, 4>::SHARED_BYTES <= shared)
        attention_backward_launch<64, 128, 128, 4, 4, 4>(dev, a, heads, &c.q_map, &c.kv_map);
    else if (s.head_dim <= 64) attention_backward_launch<64, 64, 128, 2, 4, 4>(dev, a, heads, &c.q_map, &c.kv_map);
    else if (BackwardTile<128, 64, 128, 2, 4, 2>::SHARED_BYTES <= shared)
        attention_backward_launch<128, 64, 128, 2, 4, 2>(dev, a, heads, &c.q_map, &c.kv_map);
    else attention_backward_launch<128, 64, 64, 4, 4, 2>(dev, a, heads, &c.q_map, &c.kv_map);
}

#endif

/* attention.h - causal attention of a block of queries against a block of keys, in tiles, forward and backward.

   forward, per query tile of a head        for each KV tile that some query of it may see:
                                              S = scale Q K^T -> row maximum rises? shrink out and sum -> P = e^(S - max) -> out += P V
                                            at the end out /= sum, lse = max + log sum
   merge = 1                                the tile starts from what it holds: max = lse, sum = 1, out = out. Nothing else differs

   backward, per (query tile, KV tile)      S again, P = e^(S - lse), dP = dout V^T, dS = scale P (dP - delta)
                                            dV += P^T dout,  dK += dS^T Q,  dq += dS K

   The mask. A tile never crosses the end of a run of positions (core/positions.h), so positions in it ascend and a query sees the
   first n of a tile's keys: n = 0 for the last query means the tile is skipped, and only columns up to that query's n are multiplied.

   The order of sums. In backward a dq tile is added to by many KV tiles and a dkv tile by many query tiles. The pairs are done in
   waves, as on a Latin square: wave w holds the pairs (i, j) with i + j = w (mod n), no two of which share a row or a column. So
   threads need no locks, and each sum's order follows from the number of tiles alone.

        j  0 1 2 3
     i 0   0 1 2 3      n = 4: the wave of every pair
       1   1 2 3 0
       2   2 3 0 1      query heads that share a KV head stay in one item, in order
       3   3 0 1 2

   Dao 2023, arXiv:2307.08691; merge of blocks: Liu, Zaharia, Abbeel 2023, arXiv:2310.01889.

   layouts   q, dq, dout, out (Tq, B, heads, HS)   kv, dkv (Tk, B, 2, kv_heads, HS)   lse, delta (Tq, B, heads)
   cost      4 (forward) and 10 (backward) pairs HS FLOP; scratch: one tile of S (backward two) on each thread's stack      */
#ifndef ODYSSEUS_CPU_ATTENTION_H
#define ODYSSEUS_CPU_ATTENTION_H

/* A tile of S is 192 KB. Measured: 128 x 256 is 10% slower, 256 x 512 5% faster but a megabyte of stack in backward. */
enum { ATTENTION_QUERIES = 192, ATTENTION_KEYS = 1024 / (int)sizeof(accum) };

/* ---- tiles of a token map, and what a query sees of one ---- */

typedef struct {
    i64 first;    /* local index of the tile's first token */
    TokenRun run; /* positions of its tokens */
} TokenTile;

static inline i64 tile_count(const TokenMap *map, i64 size) { return ceil_div(map->run[0].count, size) + ceil_div(map->run[1].count, size); }

static inline TokenTile tile_at(const TokenMap *map, i64 size, i64 i) {
    i64 before = ceil_div(map->run[0].count, size);
    int r = i < before ? 0 : 1;
    i64 skip = (r == 0 ? i : i - before) * size;
    TokenTile tile;
    tile.first = (r == 0 ? 0 : map->run[0].count) + skip;
    tile.run.first = map->run[r].first + skip * map->run[r].stride;
    tile.run.stride = map->run[r].stride;
    tile.run.count = i64_min(size, map->run[r].count - skip);
    return tile;
}

/* How many keys of `kv`, counted from its first, query i of `q` may see. */
static inline i64 visible_keys(const TokenTile *q, i64 i, const TokenTile *kv) {
    i64 distance = q->run.first + i * q->run.stride - kv->run.first;
    return distance < 0 ? 0 : i64_min(kv->run.count, distance / kv->run.stride + 1);
}

static inline accum attention_scale(const AttentionShape *s) { return (accum)(1 / sqrt((double)s->head_dim)); }

/* Distance between neighbouring tokens, in elements. */
static inline i64 q_stride(const AttentionShape *s) { return s->B * s->heads * s->head_dim; }
static inline i64 kv_stride(const AttentionShape *s) { return s->B * 2 * s->kv_heads * s->head_dim; }

/* ---- forward ---- */

/* What one thread keeps while it works on a query tile: the running softmax and one tile of scores. */
typedef struct {
    accum top[ATTENTION_QUERIES], sum[ATTENTION_QUERIES];
    accum s[ATTENTION_QUERIES * ATTENTION_KEYS] __attribute__((aligned(64)));
} AttentionForwardScratch;

static inline void row_scale(accum *row, accum factor, i64 n) {
#pragma omp simd
    for (i64 i = 0; i < n; i++) row[i] *= factor;
}

/* One row of scores (n seen of `width`) becomes exp(s - top), with top and sum carried on; returns the factor for what was
   summed under the old top. While nothing has been seen top is -inf; 0 stands in for it, so that no inf - inf arises. */
static inline accum softmax_row(accum *s, i64 n, i64 width, accum *top, accum *sum) {
    accum m = *top, part = 0;
#pragma omp simd reduction(max : m)
    for (i64 j = 0; j < n; j++) m = s[j] > m ? s[j] : m;
    accum base = m == -(accum)INFINITY ? 0 : m;
#pragma omp simd reduction(+ : part)
    for (i64 j = 0; j < n; j++) {
        accum e = real_exp(s[j] - base);
        s[j] = e;
        part += e;
    }
    for (i64 j = n; j < width; j++) s[j] = 0;
    accum shrink = real_exp(*top - base);
    *sum = *sum * shrink + part;
    *top = m;
    return shrink;
}

/* The running softmax before the first key: nothing, or what an earlier block left. `out` and `lse` point at the tile's first row. */
static inline void forward_begin(AttentionForwardScratch *w, accum *out, const accum *lse, i64 rows, const AttentionShape *s, int merge) {
    for (i64 i = 0; i < rows; i++) {
        accum old = merge ? lse[i * s->B * s->heads] : -(accum)INFINITY;
        int empty = old == -(accum)INFINITY;
        w->top[i] = old;
        w->sum[i] = empty ? 0 : 1;
        if (empty) memset(out + i * q_stride(s), 0, sizeof(accum) * (size_t)s->head_dim);
    }
}

static inline void forward_end(const AttentionForwardScratch *w, accum *out, accum *lse, i64 rows, const AttentionShape *s) {
    for (i64 i = 0; i < rows; i++) {
        accum sum = w->sum[i];
        if (sum != 0 && sum != 1) row_scale(out + i * q_stride(s), 1 / sum, s->head_dim);
        lse[i * s->B * s->heads] = w->top[i] + (accum)log((double)sum); /* nothing seen: -inf + -inf */
    }
}

/* One query tile of head (b, h) against every key it may see. */
static inline void attention_forward_tile(accum *out, accum *lse, const real *q, const real *kv, const AttentionShape *s, TokenTile tile,
                                          const TokenMap *kv_map, i64 b, i64 h, int merge) {
    AttentionForwardScratch w;
    i64 HS = s->head_dim, row = (tile.first * s->B + b) * s->heads + h, rows = tile.run.count, q_step = q_stride(s), kv_step = kv_stride(s);
    q += row * HS, out += row * HS, lse += row;
    kv += (b * 2 * s->kv_heads + h / (s->heads / s->kv_heads)) * HS;
    forward_begin(&w, out, lse, rows, s, merge);
    for (i64 j = 0; j < tile_count(kv_map, ATTENTION_KEYS); j++) {
        TokenTile keys = tile_at(kv_map, ATTENTION_KEYS, j);
        i64 width = visible_keys(&tile, rows - 1, &keys);
        if (width == 0) continue;
        const real *k = kv + keys.first * kv_step, *v = k + s->kv_heads * HS;
        gemm_tile('N', 'T', rows, width, HS, attention_scale(s), q, q_step, k, kv_step, 0, w.s, ATTENTION_KEYS);
        for (i64 i = 0; i < rows; i++) {
            accum shrink = softmax_row(w.s + i * ATTENTION_KEYS, visible_keys(&tile, i, &keys), width, &w.top[i], &w.sum[i]);
            if (shrink != 1) row_scale(out + i * q_step, shrink, HS);
        }
        gemm_tile('N', 'N', rows, HS, width, 1, w.s, ATTENTION_KEYS, v, kv_step, 1, out, q_step);
    }
    forward_end(&w, out, lse, rows, s);
}

/* Tiles write to places of their own, so threads take them as they come; the last queries, which see most, go first. Nothing is left to
   round: `rounded` is out. */
static inline void attention_forward_run(Device *dev, accum *out, real *rounded, accum *lse, const real *q, const real *kv, AttentionShape s,
                                         TokenMap q_map, TokenMap kv_map, int merge) {
    (void)rounded;
    i64 tiles = tile_count(&q_map, ATTENTION_QUERIES), items = tiles * s.B * s.heads;
#pragma omp parallel for num_threads(dev->threads) schedule(dynamic, 1)
    for (i64 item = 0; item < items; item++) {
        if (omp_get_thread_num() == 0) device_poll(dev);
        i64 head = item % (s.B * s.heads), i = tiles - 1 - item / (s.B * s.heads);
        attention_forward_tile(out, lse, q, kv, &s, tile_at(&q_map, ATTENTION_QUERIES, i), &kv_map, head / s.heads, head % s.heads, merge);
    }
}

/* ---- backward ---- */

static inline void attention_delta_run(Device *dev, accum *delta, const real *out, const real *dout, i64 rows_heads, i64 head_dim) {
#pragma omp parallel for num_threads(dev->threads) if (rows_heads * head_dim > SERIAL_BELOW)
    for (i64 r = 0; r < rows_heads; r++) {
        const real *o = out + r * head_dim, *d = dout + r * head_dim;
        accum sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < head_dim; i++) sum += o[i] * d[i];
        delta[r] = sum;
    }
}

/* One row: p (n seen of `width`) from scores to probabilities, ds from dP to scale P (dP - delta); the masked rest becomes 0. */
static inline void backward_row(accum *p, accum *ds, i64 n, i64 width, accum lse, accum delta, accum scale) {
    if (lse == -(accum)INFINITY) n = 0;
#pragma omp simd
    for (i64 j = 0; j < n; j++) {
        p[j] = real_exp(p[j] - lse);
        ds[j] = scale * p[j] * (ds[j] - delta);
    }
    for (i64 j = n; j < width; j++) p[j] = ds[j] = 0;
}

/* Everything that backward reads and adds to, so that a tile's function has few arguments. */
typedef struct {
    accum *dq, *dkv;
    const real *q, *kv, *dout;
    const accum *lse, *delta;
    AttentionShape s;
} AttentionGradient;

/* One pair of tiles for KV head kh of sequence b and all the query heads that read it. */
static inline void attention_backward_tile(const AttentionGradient *g, TokenTile tile, TokenTile keys, i64 b, i64 kh) {
    accum p[ATTENTION_QUERIES * ATTENTION_KEYS] __attribute__((aligned(64))), ds[ATTENTION_QUERIES * ATTENTION_KEYS] __attribute__((aligned(64)));
    const AttentionShape *s = &g->s;
    i64 HS = s->head_dim, group = s->heads / s->kv_heads, rows = tile.run.count, width = visible_keys(&tile, rows - 1, &keys);
    i64 q_step = q_stride(s), kv_step = kv_stride(s), P = ATTENTION_KEYS;
    i64 k_at = ((keys.first * s->B + b) * 2 * s->kv_heads + kh) * HS, v_at = k_at + s->kv_heads * HS;
    accum scale = attention_scale(s);
    for (i64 h = kh * group; h < (kh + 1) * group; h++) {
        i64 row = (tile.first * s->B + b) * s->heads + h, at = row * HS;
        gemm_tile('N', 'T', rows, width, HS, scale, g->q + at, q_step, g->kv + k_at, kv_step, 0, p, P);
        gemm_tile('N', 'T', rows, width, HS, 1, g->dout + at, q_step, g->kv + v_at, kv_step, 0, ds, P);
        for (i64 i = 0; i < rows; i++) {
            i64 r = row + i * s->B * s->heads;
            backward_row(p + i * P, ds + i * P, visible_keys(&tile, i, &keys), width, g->lse[r], g->delta[r], scale);
        }
        gemm_tile('T', 'N', width, HS, rows, 1, p, P, g->dout + at, q_step, 1, g->dkv + v_at, kv_step);
        gemm_tile('T', 'N', width, HS, rows, 1, ds, P, g->q + at, q_step, 1, g->dkv + k_at, kv_step);
        gemm_tile('N', 'N', rows, HS, width, 1, ds, P, g->kv + k_at, kv_step, 1, g->dq + at, q_step);
    }
}

/* The waves of the header. A wave ends when all its pairs are done (the barrier at the end of `omp for`). */
static inline void attention_backward_run(Device *dev, accum *dq, real *dq_rounded, accum *dkv, real *dkv_rounded, const real *q, const real *kv,
                                          const real *dout, const accum *lse, const accum *delta, AttentionShape s, TokenMap q_map, TokenMap kv_map,
                                          int add) {
    (void)dq_rounded, (void)dkv_rounded;
    AttentionGradient g = {dq, dkv, q, kv, dout, lse, delta, s};
    zero_fill_run(dev, dkv, s.Tk * kv_stride(&s) * accum_size());
    if (!add) zero_fill_run(dev, dq, s.Tq * q_stride(&s) * accum_size());
    i64 q_tiles = tile_count(&q_map, ATTENTION_QUERIES), kv_tiles = tile_count(&kv_map, ATTENTION_KEYS);
    i64 waves = i64_max(q_tiles, kv_tiles), heads = s.B * s.kv_heads;
#pragma omp parallel num_threads(dev->threads)
    for (i64 wave = 0; wave < waves; wave++) {
#pragma omp for schedule(dynamic, 1)
        for (i64 item = 0; item < q_tiles * heads; item++) {
            i64 i = item / heads, head = item % heads, j = (wave - i + waves) % waves;
            if (j >= kv_tiles) continue;
            TokenTile tile = tile_at(&q_map, ATTENTION_QUERIES, i), keys = tile_at(&kv_map, ATTENTION_KEYS, j);
            if (visible_keys(&tile, tile.run.count - 1, &keys) == 0) continue;
            if (omp_get_thread_num() == 0) device_poll(dev);
            attention_backward_tile(&g, tile, keys, head / s.kv_heads, head % s.kv_heads);
        }
    }
}

#endif

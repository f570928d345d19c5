/* attention.h - causal attention of a block of queries against a block of keys, in tiles, forward and backward.

   forward, per query tile of a head        for each KV tile that some query of it may see:
                                              S = Q K^T -> row maximum rises? shrink out and sum
                                              -> P = e^(scale S - max) -> out += P V
                                            at the end out /= sum, lse = max + log sum
   merge = 1                                the tile starts from what it holds: max = lse, sum = 1, out = out.
                                            Nothing else differs

   backward, per (query tile, KV tile)      S again, P = e^(scale S - lse), dP = dout V^T, dS = scale P (dP - delta)
                                            dV += P^T dout,  dK += dS^T Q,  dq += dS K

   The products are gemm.h's tiles. S lies transposed, (keys, queries): queries fill the vectors, so the softmax over
   keys runs down, without a sum across a vector, and all five products read S, P and dS as they lie:

        operand of the product   A: a number of each row, spread        B: a panel of TILE_COLUMNS columns
        S^T = K Q^T              K, panels of TILE_ROWS keys            Q^T, panels of queries
        dP^T = V dout^T          V, likewise                            dout^T, likewise
        out += P V               P^T, down its columns (PAIR_STEP)      V, panels of head_dim
        dq += dS K               dS^T, likewise                         K, likewise
        dV += P^T dout, dK       P^T, dS^T, along its rows              dout, Q, panels of head_dim

   The mask. A tile never crosses the end of a run of positions (core/positions.h), so positions in it ascend and query
   i sees the keys from f(i) to before n(i) of a tile, f and n ascending. What lies before the f of a tile's first query
   and behind the n of its last one is no part of the tile. A panel of queries is multiplied from the f of its first
   one to the n of its last one; outside of its queries' own, S becomes -inf key by key. Products over S keep to the
   keys that one of their own queries sees, or to the panels that see their keys.

                 keys                       f of the first panel, rounded down to TILE_ROWS
        q     0 . . x x x . . . . .         |     n of its last query
        u     1 . . x x x x . . . .       . . x x x - - .      x  multiplied
        e     2 . . . . x x x . . .       . . x x x x - .      -  multiplied, then -inf
        r     3 . . . . x x x x . .       . . - - x x x -      .  cleared where a product reads it, or not touched

   The order of sums. In backward a dq tile is added to by many KV tiles and a dkv tile by many query tiles. The pairs
   are done in waves, as on a Latin square: wave w holds the pairs (i, j) with i + j = w (mod n), no two of which share
   a row or a column. So threads need no locks, and each sum's order follows from the number of tiles alone.

        j  0 1 2 3
     i 0   0 1 2 3      n = 4: the wave of every pair
       1   1 2 3 0
       2   2 3 0 1      query heads that share a KV head stay in one item, in order
       3   3 0 1 2

   Under intervals what is seen lies along the diagonal, so there the pairs with j - i = w (mod n) make wave w: many of
   them, in few waves.

   Dao 2023, arXiv:2307.08691; merge of blocks: Liu, Zaharia, Abbeel 2023, arXiv:2310.01889.

   layouts   q, dq, dout, out (Tq, B, heads, HS)   kv, dkv (Tk, B, 2, kv_heads, HS)   lse, delta (Tq, B, heads)
   cost      4 (forward) and 10 (backward) pairs HS FLOP; scratch: packed tiles and one S (backward two) on each
             thread's stack                                                                                           */
#ifndef ODYSSEUS_CPU_ATTENTION_H
#define ODYSSEUS_CPU_ATTENTION_H

#include "elementary.h"
#include "gemm.h"
#include "pointwise.h"

/* Sizes of tiles: what a core's L2 holds, and what a thread's stack does. */
enum {
    PAIR_QUERIES = 96,             /* queries of one S, at most: a multiple of TILE_ROWS and of TILE_COLUMNS */
    PAIR_STEP = PAIR_QUERIES + 16, /* from a key's row of S to the next: not a power of two, which would
                                      crowd a few sets of the cache */
    KEYS_UNIT = 24,                /* a multiple of TILE_ROWS */
    KEYS_MOST = 960 / (int)sizeof(real),
    FORWARD_PAIRS = 4, /* the most S that one item of forward makes one after the other, with K and V packed once */
    BACKWARD_PAIRS = 2
};

/* Queries of one S and keys of one tile, so that q, k and v stay small whatever the head. */
static inline i64 pair_queries(i64 HS) {
    return round_up(PAIR_QUERIES / (HS <= 128 ? 1 : HS <= 256 ? 2 : 4), TILE_COLUMNS);
}
static inline i64 pair_keys(i64 HS) {
    return i64_max(KEYS_UNIT, i64_min(KEYS_MOST, KEYS_MOST * 64 / HS / KEYS_UNIT * KEYS_UNIT));
}

/* Numbers of a packed tile of queries or keys: the most that pair_queries and pair_keys
   allow, the last panels filled up. */
enum {
    QUERY_ROOM = PAIR_QUERIES * 128 + (int)HEAD_DIM_MOST * TILE_COLUMNS,
    KEY_ROOM = KEYS_MOST * 64 + KEYS_UNIT * (int)HEAD_DIM_MOST + KEYS_MOST * TILE_COLUMNS
};

/* ---- tiles of a token map, and what a query sees of one ---- */

typedef struct {
    i64 first;    /* local index of the tile's first token */
    TokenRun run; /* positions of its tokens */
} TokenTile;

static inline i64 tile_count(const TokenMap *map, i64 size) {
    return ceil_div(map->run[0].count, size) + ceil_div(map->run[1].count, size);
}

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

/* How many keys of `kv`, counted from its first, do not lie behind query i of `q`. */
static inline i64 visible_keys(const TokenTile *q, i64 i, const TokenTile *kv) {
    i64 distance = q->run.first + i * q->run.stride - kv->run.first;
    if (distance < 0) return 0;
    return i64_min(kv->run.count, (kv->run.stride == 1 ? distance : distance / kv->run.stride) + 1); /* dividing is slow */
}

/* The intervals of one sequence: those of neighbouring queries are B apart; NULL: all begin at 0. */
typedef struct {
    const int32_t *lo;
    i64 B;
} Intervals;

static inline Intervals intervals_of(const AttentionCall *c, i64 b) {
    Intervals v = {c->lo ? c->lo + b : NULL, c->shape.B};
    return v;
}

/* How many of them lie before all that query i may see. */
static inline i64 hidden_keys(const TokenTile *q, i64 i, const TokenTile *kv, Intervals v) {
    i64 distance = v.lo ? v.lo[(q->first + i) * v.B] - kv->run.first : 0;
    if (distance <= 0) return 0;
    return i64_min(kv->run.count, kv->run.stride == 1 ? distance : ceil_div(distance, kv->run.stride));
}

static inline accum attention_scale(const AttentionShape *s) { return (accum)(1 / sqrt((double)s->head_dim)); }

/* Distance between neighbouring tokens, in elements. */
static inline i64 q_stride(const AttentionShape *s) { return s->B * s->heads * s->head_dim; }
static inline i64 kv_stride(const AttentionShape *s) { return s->B * 2 * s->kv_heads * s->head_dim; }

/* `count` tokens of a tile, from its token `at`. */
static inline TokenTile tile_part(TokenTile t, i64 at, i64 count) {
    t.first += at;
    t.run.first += at * t.run.stride;
    t.run.count = count;
    return t;
}

/* The keys of `keys` that one of the queries of `tile` may see; count 0: none. */
static inline TokenTile tile_seen(const TokenTile *tile, const TokenTile *keys, Intervals v) {
    i64 from = hidden_keys(tile, 0, keys, v), seen = visible_keys(tile, tile->run.count - 1, keys);
    return tile_part(*keys, from, i64_max(0, seen - from));
}

/* ---- one S: the queries and keys of a pair ---- */

/* f(i) and n(i) of the queries of S. */
typedef struct {
    i64 from[PAIR_QUERIES], seen[PAIR_QUERIES];
} PairSight;

/* Those that fill up the last panel see what the last one sees. Returns whether one may see anything. */
static inline int pair_sees(PairSight *p, const TokenTile *queries, const TokenTile *keys, Intervals v) {
    i64 n = queries->run.count;
    for (i64 i = 0; i < PAIR_QUERIES; i++) {
        i64 like = i64_min(i, n - 1);
        p->seen[i] = i <= like ? visible_keys(queries, i, keys) : p->seen[like];
        p->from[i] = i <= like ? hidden_keys(queries, i, keys, v) : p->from[like];
    }
    return p->from[0] < p->seen[n - 1];
}

/* The panel of queries from c: keys of S that are multiplied (none: begin == end), and keys that a product over S
   reads: whole TILE_ROWS keys, and what the first and the last query of the same TILE_ROWS queries see. */
typedef struct {
    i64 begin, end, read_begin, read_end;
} PanelSight;

static inline i64 panel_seen(const PairSight *p, i64 c) { return p->seen[c + TILE_COLUMNS - 1]; }
static inline PanelSight panel_sight(const PairSight *p, i64 c) {
    i64 from = p->from[c] / TILE_ROWS * TILE_ROWS, seen = panel_seen(p, c);
    PanelSight s = {from, seen, i64_min(from, p->from[c / TILE_ROWS * TILE_ROWS]),
                    i64_max(round_up(seen, TILE_ROWS), p->seen[round_up(c + TILE_COLUMNS, TILE_ROWS) - 1])};
    if (p->from[c] >= seen) s.begin = s.end = s.read_begin;
    return s;
}

/* s (keys of a panel): what a query does not see of those multiplied becomes -inf. */
static inline void panel_hide(accum *s, const PairSight *p, i64 c, PanelSight panel) {
    const accum hidden = -(accum)INFINITY;
    for (i64 j = panel.begin; j < i64_min(panel.end, p->from[c + TILE_COLUMNS - 1]); j++)
        for (i64 i = 0; i < TILE_COLUMNS; i++)
            if (p->from[c + i] > j) s[j * PAIR_STEP + i] = hidden;
    for (i64 j = i64_max(panel.begin, p->seen[c]); j < panel.end; j++)
        for (i64 i = 0; i < TILE_COLUMNS; i++)
            if (p->seen[c + i] <= j) s[j * PAIR_STEP + i] = hidden;
}

/* What products read of a panel and nobody has multiplied. */
static inline void panel_clear(accum *s, PanelSight panel) {
    for (i64 j = panel.read_begin; j < panel.begin; j++) memset(s + j * PAIR_STEP, 0, sizeof(accum) * TILE_COLUMNS);
    for (i64 j = panel.end; j < panel.read_end; j++) memset(s + j * PAIR_STEP, 0, sizeof(accum) * TILE_COLUMNS);
}

/* S^T or dP^T for a panel of queries: k packed in rows, q in columns; s (keys, TILE_COLUMNS) up to the end
   of TILE_ROWS keys */
static inline void panel_scores(accum *s, const real *k, const real *q, PanelSight panel, i64 HS) {
    for (i64 j = panel.begin; j < panel.end; j += TILE_ROWS)
        panel_product(HS, k + j * HS, q, s + j * PAIR_STEP, PAIR_STEP, TILE_ROWS, TILE_COLUMNS, 0);
}

/* c += S^T down its columns (queries) times b, and c += S along its rows (keys) times b */
static __attribute__((noinline, unused)) void queries_product(i64 K, const accum *s, const real *b, accum *c, i64 ldc,
                                                              i64 rows, i64 columns) {
    part_product(K, s, 1, PAIR_STEP, b, c, ldc, rows, columns, 1);
}
static __attribute__((noinline, unused)) void keys_product(i64 K, const accum *s, const real *b, accum *c, i64 ldc,
                                                           i64 rows, i64 columns) {
    part_product(K, s, PAIR_STEP, 1, b, c, ldc, rows, columns, 1);
}

/* out (queries, HS), rows `ld` apart, += P V or dS K; b (keys, HS) is packed in columns of `width` keys */
static inline void queries_add(accum *out, i64 ld, const accum *s, const PairSight *p, const real *b, i64 queries,
                               i64 width, i64 HS) {
    for (i64 d = 0; d < HS; d += TILE_COLUMNS)
        for (i64 i = 0; i < queries; i += TILE_ROWS) {
            i64 from = p->from[i], n = p->seen[i + TILE_ROWS - 1] - from;
            if (n > 0)
                queries_product(n, s + from * PAIR_STEP + i, b + d * width + from * TILE_COLUMNS, out + i * ld + d, ld,
                                i64_min(TILE_ROWS, queries - i), i64_min(TILE_COLUMNS, HS - d));
        }
}

/* out (keys, HS), rows `ld` apart, += P^T dout or dS^T Q; b (queries, HS) is packed in columns */
static inline void keys_add(accum *out, i64 ld, const accum *s, const PairSight *p, const real *b, i64 queries,
                            i64 keys, i64 HS) {
    i64 first = p->from[0] / TILE_ROWS * TILE_ROWS, last = i64_min(keys, p->seen[queries - 1]);
    for (i64 d = 0; d < HS; d += TILE_COLUMNS)
        for (i64 j = first, i = 0, end = 0; j < last; j += TILE_ROWS) {
            while (panel_seen(p, i) <= j) i += TILE_COLUMNS; /* these queries come before the keys */
            while (end < queries && p->from[end] < j + TILE_ROWS) end += TILE_COLUMNS; /* those see none any more */
            i64 n = i64_min(end, queries) - i;
            if (n > 0)
                keys_product(n, s + j * PAIR_STEP + i, b + d * queries + i * TILE_COLUMNS, out + j * ld + d, ld,
                             i64_min(TILE_ROWS, keys - j), i64_min(TILE_COLUMNS, HS - d));
        }
}

/* ---- forward ---- */

/* What one thread keeps while it works on a query tile: the running softmax, q, k and v packed, one S. */
typedef struct {
    accum top[FORWARD_PAIRS * PAIR_QUERIES] __attribute__((aligned(64))),
        sum[FORWARD_PAIRS * PAIR_QUERIES] __attribute__((aligned(64)));
    accum shrink[PAIR_QUERIES] __attribute__((aligned(64)));
    PairSight sight;
    accum s[KEYS_MOST * PAIR_STEP] __attribute__((aligned(64)));
    real q[2 * QUERY_ROOM] __attribute__((aligned(64))), k[KEY_ROOM] __attribute__((aligned(64))),
        v[KEY_ROOM] __attribute__((aligned(64)));
} AttentionForwardScratch;

/* Queries of a forward tile: so many that packing K and V is little beside the products, so few
   that their packed q has room. */
static inline i64 forward_queries(i64 HS) {
    return pair_queries(HS) * i64_max(1, i64_min(FORWARD_PAIRS, PAIR_QUERIES * 256 / (pair_queries(HS) * HS)));
}

static inline void row_scale(accum *row, accum factor, i64 n) {
#pragma omp simd
    for (i64 i = 0; i < n; i++) row[i] *= factor;
}

/* s (n keys of VECTOR_WIDTH queries) becomes exp(scale s - top), with top and sum carried on; shrink: the
   factor for what was summed under the old top. While nothing has been seen top is -inf; 0 stands in for it,
   so that no inf - inf arises. */
static inline void softmax_vector(accum *s, i64 n, accum scale, accum *top, accum *sum, accum *shrink) {
    Vector none = vector_all(-(accum)INFINITY), most = none, other = none, old = *(const Vector *)top,
           part = vector_all(0);
    i64 j = 0;
    for (; j + 2 <= n; j += 2) {
        most = vector_max(*(const Vector *)(s + j * PAIR_STEP), most);
        other = vector_max(*(const Vector *)(s + (j + 1) * PAIR_STEP), other);
    }
    if (j < n) most = vector_max(*(const Vector *)(s + j * PAIR_STEP), most);
    most = vector_max(scale * vector_max(most, other), old);
    Vector base = vector_pick((VectorMask)(most == none), vector_all(0), most), factor = vector_exp(old - base);
    for (j = 0; j < n; j++) {
        Vector *row = (Vector *)(s + j * PAIR_STEP), e = vector_exp(scale * *row - base);
        *row = e;
        part += e;
    }
    *(Vector *)top = most;
    *(Vector *)sum = *(const Vector *)sum * factor + part;
    *(Vector *)shrink = factor;
}

/* The running softmax before the first key: nothing, or what an earlier block left. `out` and `lse`
   point at the tile's first row. */
static inline void forward_begin(AttentionForwardScratch *w, accum *out, const accum *lse, i64 rows,
                                 const AttentionShape *s, int merge) {
    for (i64 i = 0; i < rows; i++) {
        accum old = merge ? lse[i * s->B * s->heads] : -(accum)INFINITY;
        int empty = old == -(accum)INFINITY;
        w->top[i] = old;
        w->sum[i] = empty ? 0 : 1;
        if (empty) memset(out + i * q_stride(s), 0, sizeof(accum) * (size_t)s->head_dim);
    }
    /* columns that fill up the last panel */
    for (i64 i = rows; i < FORWARD_PAIRS * PAIR_QUERIES; i++) w->top[i] = w->sum[i] = 0;
}

static inline void forward_end(const AttentionForwardScratch *w, accum *out, accum *lse, i64 rows,
                               const AttentionShape *s) {
    for (i64 i = 0; i < rows; i++) {
        accum sum = w->sum[i];
        if (sum != 0 && sum != 1) row_scale(out + i * q_stride(s), 1 / sum, s->head_dim);
        lse[i * s->B * s->heads] = w->top[i] + (accum)log((double)sum); /* nothing seen: -inf + -inf */
    }
}

/* The queries `pair` of a tile, of which they are those from `at`, against the packed keys: P in w->s,
   then out (their rows) += P V. */
static inline void forward_pair(AttentionForwardScratch *w, accum *out, const AttentionShape *s, TokenTile pair, i64 at,
                                const TokenTile *keys, Intervals v) {
    i64 HS = s->head_dim, n = pair.run.count, ld = q_stride(s);
    if (!pair_sees(&w->sight, &pair, keys, v)) return;
    for (i64 c = 0; c < n; c += TILE_COLUMNS) {
        PanelSight seen = panel_sight(&w->sight, c);
        accum *panel = w->s + c;
        for (i64 i = 0; i < TILE_COLUMNS; i++) w->shrink[c + i] = 1;
        if (seen.begin < seen.end) {
            panel_scores(panel, w->k, w->q + (at + c) * HS, seen, HS);
            panel_hide(panel, &w->sight, c, seen);
            for (i64 i = 0; i < TILE_COLUMNS; i += VECTOR_WIDTH)
                softmax_vector(panel + seen.begin * PAIR_STEP + i, seen.end - seen.begin, attention_scale(s),
                               w->top + at + c + i, w->sum + at + c + i, w->shrink + c + i);
        }
        panel_clear(panel, seen);
    }
    for (i64 i = 0; i < n; i++)
        if (w->shrink[i] != 1) row_scale(out + i * ld, w->shrink[i], HS);
    queries_add(out, ld, w->s, &w->sight, w->v, n, keys->run.count, HS);
}

/* One query tile of head (b, h) against every key it may see. */
static inline void attention_forward_tile(accum *out, accum *lse, const real *q, const real *kv,
                                          const AttentionCall *c, TokenTile tile, i64 b, i64 h) {
    AttentionForwardScratch w;
    const AttentionShape *s = &c->shape;
    Intervals v = intervals_of(c, b);
    i64 HS = s->head_dim, row = (tile.first * s->B + b) * s->heads + h, rows = tile.run.count, q_ld = q_stride(s),
        kv_ld = kv_stride(s);
    i64 most = pair_queries(HS), width = pair_keys(HS);
    q += row * HS, out += row * HS, lse += row;
    kv += (b * 2 * s->kv_heads + h / (s->heads / s->kv_heads)) * HS;
    forward_begin(&w, out, lse, rows, s, c->merge);
    panels_of_columns(w.q, 'T', q, q_ld, rows, HS);
    for (int r = 0; r < 2 && c->kv_map.run[r].count; r++) {
        TokenTile run = {r ? c->kv_map.run[0].count : 0, c->kv_map.run[r]}, seen = tile_seen(&tile, &run, v);
        for (i64 j = 0; j < seen.run.count; j += width) {
            TokenTile keys = tile_part(seen, j, i64_min(width, seen.run.count - j));
            const real *k = kv + keys.first * kv_ld;
            panels_of_rows(w.k, 'N', k, kv_ld, keys.run.count, HS);
            panels_of_columns(w.v, 'N', k + s->kv_heads * HS, kv_ld, HS, keys.run.count);
            for (i64 at = 0; at < rows; at += most)
                forward_pair(&w, out + at * q_ld, s, tile_part(tile, at, i64_min(most, rows - at)), at, &keys, v);
        }
    }
    forward_end(&w, out, lse, rows, s);
}

/* Tiles write to places of their own, so threads take them as they come; the last queries, which see most, go first.
   Nothing is left to round: `rounded` is out. */
static inline void attention_forward_run(Device *dev, accum *out, real *rounded, accum *lse, const real *q,
                                         const real *kv, AttentionCall c) {
    (void)rounded;
    const AttentionShape s = c.shape;
    i64 height = forward_queries(s.head_dim), tiles = tile_count(&c.q_map, height), items = tiles * s.B * s.heads;
#pragma omp parallel for num_threads(dev->threads) schedule(dynamic, 1)
    for (i64 item = 0; item < items; item++) {
        if (omp_get_thread_num() == 0) device_poll(dev);
        i64 head = item % (s.B * s.heads), i = tiles - 1 - item / (s.B * s.heads);
        attention_forward_tile(out, lse, q, kv, &c, tile_at(&c.q_map, height, i), head / s.heads, head % s.heads);
    }
}

/* ---- backward ---- */

static inline void attention_delta_run(Device *dev, accum *delta, const real *out, const real *dout, i64 rows_heads,
                                       i64 head_dim) {
#pragma omp parallel for num_threads(dev->threads) if (rows_heads * head_dim > SERIAL_BELOW)
    for (i64 r = 0; r < rows_heads; r++) {
        const real *o = out + r * head_dim, *d = dout + r * head_dim;
        accum sum = 0;
#pragma omp simd reduction(+ : sum)
        for (i64 i = 0; i < head_dim; i++) sum += o[i] * d[i];
        delta[r] = sum;
    }
}

/* Everything that backward reads and adds to, so that a tile's function has few arguments. */
typedef struct {
    accum *dq, *dkv;
    const real *q, *kv, *dout;
    const accum *lse, *delta;
    const AttentionCall *call;
} AttentionGradient;

/* What one thread keeps while it works on a pair of tiles: P and dS, and every operand
   packed as the products read it. */
typedef struct {
    PairSight sight;
    accum lse[PAIR_QUERIES] __attribute__((aligned(64))), delta[PAIR_QUERIES] __attribute__((aligned(64)));
    accum p[KEYS_MOST * PAIR_STEP] __attribute__((aligned(64))), ds[KEYS_MOST * PAIR_STEP] __attribute__((aligned(64)));
    real k_rows[KEY_ROOM] __attribute__((aligned(64))), k_columns[KEY_ROOM] __attribute__((aligned(64))),
        v_rows[KEY_ROOM] __attribute__((aligned(64)));
    real q_across[QUERY_ROOM] __attribute__((aligned(64))), q_columns[QUERY_ROOM] __attribute__((aligned(64)));
    real dout_across[QUERY_ROOM] __attribute__((aligned(64))), dout_columns[QUERY_ROOM] __attribute__((aligned(64)));
} AttentionBackwardScratch;

/* n keys of VECTOR_WIDTH queries: p from scores to probabilities, ds from dP to scale P (dP - delta). A query that
   sees nothing has lse +inf here. */
static inline void backward_vector(accum *p, accum *ds, i64 n, const accum *lse, const accum *delta, accum scale) {
    Vector base = *(const Vector *)lse, mean = *(const Vector *)delta;
    for (i64 j = 0; j < n; j++) {
        Vector *row = (Vector *)(p + j * PAIR_STEP), *drow = (Vector *)(ds + j * PAIR_STEP),
               e = vector_exp(scale * *row - base);
        *row = e;
        *drow = scale * e * (*drow - mean);
    }
}

/* The queries of one S, all of query head h, against the packed keys of KV head kh. */
static inline void backward_pair(AttentionBackwardScratch *w, const AttentionGradient *g, TokenTile pair,
                                 const TokenTile *keys, i64 b, i64 h, i64 k_at) {
    const AttentionShape *s = &g->call->shape;
    i64 HS = s->head_dim, n = pair.run.count, q_ld = q_stride(s), kv_ld = kv_stride(s);
    i64 row = (pair.first * s->B + b) * s->heads + h, at = row * HS;
    if (!pair_sees(&w->sight, &pair, keys, intervals_of(g->call, b))) return;
    for (i64 i = 0; i < PAIR_QUERIES; i++) {
        accum lse = i < n ? g->lse[row + i * s->B * s->heads] : 0;
        w->lse[i] = lse == -(accum)INFINITY ? (accum)INFINITY : lse;
        w->delta[i] = i < n ? g->delta[row + i * s->B * s->heads] : 0;
    }
    panels_of_columns(w->q_across, 'T', g->q + at, q_ld, n, HS);
    panels_of_columns(w->dout_across, 'T', g->dout + at, q_ld, n, HS);
    panels_of_columns(w->q_columns, 'N', g->q + at, q_ld, HS, n);
    panels_of_columns(w->dout_columns, 'N', g->dout + at, q_ld, HS, n);
    for (i64 c = 0; c < n; c += TILE_COLUMNS) {
        PanelSight seen = panel_sight(&w->sight, c);
        panel_scores(w->p + c, w->k_rows, w->q_across + c * HS, seen, HS);
        panel_scores(w->ds + c, w->v_rows, w->dout_across + c * HS, seen, HS);
        panel_hide(w->p + c, &w->sight, c, seen);
        for (i64 i = c, at_s = seen.begin * PAIR_STEP; i < c + TILE_COLUMNS; i += VECTOR_WIDTH)
            backward_vector(w->p + at_s + i, w->ds + at_s + i, seen.end - seen.begin, w->lse + i, w->delta + i,
                            attention_scale(s));
        panel_clear(w->p + c, seen);
        panel_clear(w->ds + c, seen);
    }
    keys_add(g->dkv + k_at + s->kv_heads * HS, kv_ld, w->p, &w->sight, w->dout_columns, n, keys->run.count, HS);
    keys_add(g->dkv + k_at, kv_ld, w->ds, &w->sight, w->q_columns, n, keys->run.count, HS);
    queries_add(g->dq + at, q_ld, w->ds, &w->sight, w->k_columns, n, keys->run.count, HS);
}

/* One pair of tiles, of keys those that are seen, for KV head kh of sequence b and all the query heads that read it. */
static inline void attention_backward_tile(const AttentionGradient *g, TokenTile tile, TokenTile keys, i64 b, i64 kh) {
    AttentionBackwardScratch w;
    const AttentionShape *s = &g->call->shape;
    i64 HS = s->head_dim, group = s->heads / s->kv_heads, most = pair_queries(HS), rows = tile.run.count;
    i64 k_at = ((keys.first * s->B + b) * 2 * s->kv_heads + kh) * HS, v_at = k_at + s->kv_heads * HS;
    panels_of_rows(w.k_rows, 'N', g->kv + k_at, kv_stride(s), keys.run.count, HS);
    panels_of_rows(w.v_rows, 'N', g->kv + v_at, kv_stride(s), keys.run.count, HS);
    panels_of_columns(w.k_columns, 'N', g->kv + k_at, kv_stride(s), HS, keys.run.count);
    for (i64 h = kh * group; h < (kh + 1) * group; h++)
        for (i64 at = 0; at < rows; at += most)
            backward_pair(&w, g, tile_part(tile, at, i64_min(most, rows - at)), &keys, b, h, k_at);
}

/* The waves of the header. A wave ends when all its pairs are done (the barrier at the end of `omp for`). */
static inline void attention_backward_run(Device *dev, accum *dq, real *dq_rounded, accum *dkv, real *dkv_rounded,
                                          const real *q, const real *kv, const real *dout, const accum *lse,
                                          const accum *delta, AttentionCall c) {
    (void)dq_rounded, (void)dkv_rounded;
    const AttentionShape s = c.shape;
    AttentionGradient g = {dq, dkv, q, kv, dout, lse, delta, &c};
    zero_fill_run(dev, dkv, s.Tk * kv_stride(&s) * accum_size());
    if (!c.merge) zero_fill_run(dev, dq, s.Tq * q_stride(&s) * accum_size());
    i64 height = BACKWARD_PAIRS * pair_queries(s.head_dim), width = pair_keys(s.head_dim);
    i64 q_tiles = tile_count(&c.q_map, height), kv_tiles = tile_count(&c.kv_map, width);
    i64 waves = i64_max(q_tiles, kv_tiles), heads = s.B * s.kv_heads;
#pragma omp parallel num_threads(dev->threads)
    for (i64 wave = 0; wave < waves; wave++) {
#pragma omp for schedule(dynamic, 1)
        for (i64 item = 0; item < q_tiles * heads; item++) {
            i64 i = item / heads, head = item % heads, j = (wave + (c.lo ? i : waves - i)) % waves;
            if (j >= kv_tiles) continue;
            TokenTile tile = tile_at(&c.q_map, height, i), whole = tile_at(&c.kv_map, width, j);
            TokenTile keys = tile_seen(&tile, &whole, intervals_of(&c, head / s.kv_heads));
            if (keys.run.count == 0) continue;
            if (omp_get_thread_num() == 0) device_poll(dev);
            attention_backward_tile(&g, tile, keys, head / s.kv_heads, head % s.kv_heads);
        }
    }
}

#endif

/* positions.h - which tokens of the sequence a rank holds, and where they stand in it.

   One map answers for everyone: loader, position embedding, RoPE, causal mask and loss. A map is at most two
   arithmetic runs of positions, so slices of it are maps again and masked work can be counted in closed form.

   ring rank r of R, sequence of L tokens        r = 0          r = 1          r = 2          r = 3   (R = 4, L = 16)
   contiguous  one chunk each                    0 1 2 3        4 5 6 7        8 9 10 11      12 13 14 15
   zigzag      chunks r and 2R-1-r of 2R         0 1 14 15      2 3 12 13      4 5 10 11      6 7 8 9
   stripe      every R-th token                  0 4 8 12       1 5 9 13       2 6 10 14      3 7 11 15

   Zigzag: Llama 3 training and ring-flash-attention; stripe: Brandon et al. 2023, arXiv:2311.09431.               */
#ifndef ODYSSEUS_POSITIONS_H
#define ODYSSEUS_POSITIONS_H

#include "util.h"

typedef enum { RING_ZIGZAG, RING_CONTIGUOUS, RING_STRIPE, RING_LAYOUTS } RingLayout;
static const char *const RING_LAYOUT_NAMES[RING_LAYOUTS] = {"zigzag", "contiguous", "stripe"};

/* The layout of this name, which is one of them. */
static inline RingLayout ring_layout_find(const char *name) {
    return strcmp(name, "zigzag") == 0 ? RING_ZIGZAG : strcmp(name, "stripe") == 0 ? RING_STRIPE : RING_CONTIGUOUS;
}

typedef struct {
    i64 first;  /* position of the run's first token in the sequence */
    i64 stride; /* distance between neighbours */
    i64 count;  /* tokens */
} TokenRun;

typedef struct {
    TokenRun run[2]; /* local tokens 0 .. run[0].count-1 are the first run, the rest the second */
    i64 count;       /* tokens of both runs */
} TokenMap;

/* The map of ring rank `rank` of `ranks`; L must divide (zigzag: by 2 * ranks). */
static inline TokenMap token_map(RingLayout layout, i64 L, int ranks, int rank) {
    TokenMap map;
    memset(&map, 0, sizeof map);
    map.count = L / ranks;
    if (ranks == 1 || layout == RING_CONTIGUOUS) {
        map.run[0].first = rank * map.count, map.run[0].stride = 1, map.run[0].count = map.count;
    } else if (layout == RING_STRIPE) {
        map.run[0].first = rank, map.run[0].stride = ranks, map.run[0].count = map.count;
    } else {
        i64 chunk = map.count / 2;
        map.run[0].first = rank * chunk, map.run[0].stride = 1, map.run[0].count = chunk;
        map.run[1].first = (2 * ranks - 1 - rank) * chunk, map.run[1].stride = 1, map.run[1].count = chunk;
    }
    return map;
}

/* The map of local tokens first .. first+count-1 of `map`. */
static inline TokenMap token_map_slice(TokenMap map, i64 first, i64 count) {
    TokenMap out;
    memset(&out, 0, sizeof out);
    out.count = count;
    int n = 0;
    i64 begin = 0;
    for (int i = 0; i < 2; i++) {
        i64 lo = i64_max(first, begin), hi = i64_min(first + count, begin + map.run[i].count);
        if (lo < hi) {
            out.run[n].first = map.run[i].first + (lo - begin) * map.run[i].stride;
            out.run[n].stride = map.run[i].stride;
            out.run[n].count = hi - lo;
            n++;
        }
        begin += map.run[i].count;
    }
    return out;
}

/* Position in the sequence of local token t. */
static inline i64 token_position(const TokenMap *map, i64 t) {
    if (t < map->run[0].count) return map->run[0].first + t * map->run[0].stride;
    return map->run[1].first + (t - map->run[0].count) * map->run[1].stride;
}

/* Query-key pairs of two runs that the causal mask leaves: #{(i, j): kv(j) <= q(i)}. O(1) for equal strides. */
static inline double causal_pairs_runs(TokenRun q, TokenRun kv) {
    if (q.count == 0 || kv.count == 0) return 0;
    if (q.stride == kv.stride) {
        /* query i sees n(i) = clamp(i + shift, 0, kv.count) keys */
        i64 d = q.first - kv.first, s = q.stride;
        i64 shift = (d >= 0 ? d / s : -ceil_div(-d, s)) + 1;
        /* first query that sees anything (n > 0 from start+1) */
        i64 start = i64_max(0, -shift);
        i64 full = i64_min(q.count, i64_max(0, kv.count - shift)); /* first query that sees everything */
        double pairs = (double)(q.count - full) * (double)kv.count;
        if (full > start) pairs += 0.5 * (double)(full - start) * (double)((start + shift) + (full - 1 + shift));
        return pairs;
    }
    double pairs = 0;
    for (i64 i = 0; i < q.count; i++) {
        i64 d = q.first + i * q.stride - kv.first;
        if (d >= 0) pairs += (double)i64_min(kv.count, d / kv.stride + 1);
    }
    return pairs;
}

/* The same for whole maps: the work of one causal attention block, in query-key pairs per sequence and head. */
static inline double causal_pairs(const TokenMap *q, const TokenMap *kv) {
    double pairs = 0;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) pairs += causal_pairs_runs(q->run[i], kv->run[j]);
    return pairs;
}

#endif

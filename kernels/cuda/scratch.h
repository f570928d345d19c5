/* scratch.h - what the CUDA kernels need besides their operands, and what they refuse: sizes alone, in plain C.

   Operations run one after the other on one stream and share one scratch buffer, the largest that any of
   them needs. The simulator plans the memory of a GPU that it does not have, so these formulas stand apart
   from the kernels that use them.                                                                                    */
#ifndef ODYSSEUS_CUDA_SCRATCH_H
#define ODYSSEUS_CUDA_SCRATCH_H

#include "../device.h"

/* gemm.cuh: what cuBLASLt may use */
enum { GEMM_WORKSPACE = 32 << 20 };
/* reduce.cuh: sums over rows */
enum { COLUMN_TILE = 256, COLUMN_BLOCKS = 1024, COLUMN_ROWS = 64 };
enum { NORM_WIDEST_FORWARD = 16384, NORM_WIDEST_BACKWARD = 8192, NORM_PARTS = 320 };       /* norm.cuh */
enum { EMBED_SMALL = 32 };                                                                 /* embedding.cuh */
enum { SQUARE_BLOCKS = 1024 };                                                             /* optimizer.cuh */
/* attention_backward.cuh: the smallest query tile; the tickets' counter, a cache line of its own */
enum { BACKWARD_QUERIES = 64, TICKET_BYTES = 128 };

/* Strips that (rows, C) is cut into when its rows are summed. */
static inline i64 column_strips(i64 rows, i64 C) {
    i64 strips = i64_max(1, COLUMN_BLOCKS / ceil_div(C, COLUMN_TILE));
    return i64_max(1, i64_min(strips, ceil_div(rows, COLUMN_ROWS)));
}
static inline i64 columns_scratch_bytes(i64 rows, i64 C) { return column_strips(rows, C) * 2 * C * accum_size(); }

static inline i64 norm_scratch_bytes(i64 rows, i64 C) {
    i64 fused = C <= NORM_WIDEST_BACKWARD ? i64_min(NORM_PARTS, rows) * 2 * C * accum_size() : 0;
    return i64_max(fused, columns_scratch_bytes(rows, C));
}

static inline i64 embedding_scratch_bytes(i64 rows, i64 vocab) {
    return 4 * (2 * vocab + 3 + i64_min(rows, vocab) + rows / (EMBED_SMALL + 1) + 2 * rows);
}
static inline i64 classifier_scratch_bytes(i64 rows) { return rows * 8; }
static inline i64 optimizer_scratch_bytes(void) { return SQUARE_BLOCKS * 8; }

/* The tickets, and a counter per dq tile, at most: a map's two runs may each end in a tile of their own. */
static inline i64 attention_scratch_bytes(const AttentionShape *s) {
    return TICKET_BYTES + s->B * s->heads * (ceil_div(s->Tq, BACKWARD_QUERIES) + 1) * (i64)sizeof(int);
}

/* The memory-bound operations, one at a time: streams of at most `rows` rows, of at most `widest` columns where rows
   are summed (hidden size, projections' outputs) and a vocabulary of `vocab`. */
static inline i64 ops_scratch_bytes(i64 rows, i64 widest, i64 vocab) {
    i64 bytes =
        i64_max(columns_scratch_bytes(rows, widest), norm_scratch_bytes(rows, i64_min(widest, NORM_WIDEST_BACKWARD)));
    bytes = i64_max(bytes, i64_max(norm_scratch_bytes(rows, widest), embedding_scratch_bytes(rows, vocab)));
    return round_up(i64_max(bytes, i64_max(classifier_scratch_bytes(rows), optimizer_scratch_bytes())), 256);
}

/* The largest scratch that any operation needs on `rows` rows of at most `widest` numbers, `vocab`
   words and attention of `s`. */
static inline i64 cuda_scratch_bytes(i64 rows, i64 widest, i64 vocab, const AttentionShape *s) {
    return i64_max(i64_max(GEMM_WORKSPACE, ops_scratch_bytes(rows, widest, vocab)), attention_scratch_bytes(s));
}

static inline int attention_takes_head_dim(i64 head_dim) {
    return head_dim >= 8 && head_dim <= 128 && head_dim % 8 == 0;
}

/* Why attention cannot run heads of this size: NULL, it can. */
static inline const char *cuda_refuses_heads(i64 head_dim) {
    return attention_takes_head_dim(head_dim)
               ? NULL
               : "the CUDA kernels take multiples of 8 up to 128; change --heads or --dim";
}

#endif

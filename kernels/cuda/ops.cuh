/* ops.cuh - the memory-bound operations of compute.h, all but matrix products and attention, and the scratch they need.

   reduce.cuh       accesses of 16 bytes, sums over warps, blocks, columns
   pointwise.cuh    GELU, SwiGLU, bias, zero, convert, sum of parts
   embedding.cuh    token and position embedding, buckets of rows
   norm.cuh         LayerNorm and RMSNorm with the residual add
   heads.cuh        rotary embedding, packing of heads for an all-to-all, merging and splitting of parts
   classifier.cuh   softmax cross-entropy, loss and gradient
   optimizer.cuh    sum of squares, AdamW

   Two rules make the same call give the same bits: an element is written by one thread, and a sum runs in an order that follows from
   the sizes alone (norm_backward: from the sizes and the GPU's multiprocessors). Nothing is allocated.                       */
#ifndef ODYSSEUS_CUDA_OPS_CUH
#define ODYSSEUS_CUDA_OPS_CUH

#include "reduce.cuh"
#include "pointwise.cuh"
#include "embedding.cuh"
#include "norm.cuh"
#include "heads.cuh"
#include "classifier.cuh"
#include "optimizer.cuh"

/* Scratch that serves every operation here, one at a time: streams of at most `rows` rows, of at most `widest` columns where rows are
   summed (hidden size, projections' outputs) and a vocabulary of `vocab`. */
static inline i64 ops_scratch_bytes(i64 rows, i64 widest, i64 vocab) {
    i64 bytes = i64_max(pointwise_scratch_bytes(rows, widest), norm_scratch_bytes(rows, i64_min(widest, NORM_WIDEST_BACKWARD)));
    bytes = i64_max(bytes, i64_max(norm_scratch_bytes(rows, widest), embedding_scratch_bytes(rows, vocab)));
    bytes = i64_max(bytes, i64_max(classifier_scratch_bytes(rows), optimizer_scratch_bytes()));
    return round_up(i64_max(bytes, heads_scratch_bytes()), 256);
}

#endif

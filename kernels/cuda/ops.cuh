/* ops.cuh - the memory-bound operations of compute.h, all but matrix products and attention.

   reduce.cuh       accesses of 16 bytes, sums over warps, blocks, columns
   pointwise.cuh    GELU, SwiGLU, bias, zero, convert, sum of parts
   embedding.cuh    token and position embedding, buckets of rows
   norm.cuh         LayerNorm and RMSNorm with the residual add
   heads.cuh        rotary embedding, packing of heads for an all-to-all, merging and splitting of parts
   classifier.cuh   softmax cross-entropy, loss and gradient
   optimizer.cuh    sum of squares, AdamW

   Two rules make the same call give the same bits: an element is written by one thread, and a sum runs in an order that
   follows from the sizes alone (norm_backward: from the sizes and the GPU's multiprocessors). Nothing is allocated.  */
#ifndef ODYSSEUS_CUDA_OPS_CUH
#define ODYSSEUS_CUDA_OPS_CUH

#include "scratch.h"
#include "reduce.cuh"
#include "pointwise.cuh"
#include "embedding.cuh"
#include "norm.cuh"
#include "heads.cuh"
#include "classifier.cuh"
#include "optimizer.cuh"

#endif

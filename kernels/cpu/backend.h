/* backend.h - the CPU backend: every *_run function that compute.h calls, in C11 and OpenMP.

   elementary.h   exp, sigmoid, sqrt, fused multiply-add, written so that a loop over them becomes vector code
   vector.h       the machine's vectors, and the tile of a product that registers hold
   scratch.h      bytes that products need besides
   gemm.h         matrix products
   attention.h    causal attention in tiles, forward and backward, of gemm.h's tile product
   norm.h         LayerNorm and RMSNorm with the residual add
   heads.h        rotary embedding, packing of heads for an all-to-all, merging and splitting of parts
   embedding.h    token and position embedding
   classifier.h   softmax cross-entropy, loss and gradient in one pass
   pointwise.h    GELU, SwiGLU, bias, zero, copy, sum of parts
   optimizer.h    sum of squares, AdamW

   Two rules make the same call give the same bits, on any number of threads: an element is written by one thread, and a
   sum runs in an order that its length alone fixes. So sums over rows are parallel over columns, and sums over
   everything are made of a fixed number of parts.

   Nothing is allocated: a product packs into dev->state.scratch, all other scratch is on the stack of the thread that
   needs it (below 1.2 MB in attention's backward: OMP_STACKSIZE may stay as it is).
   `real` and `accum` are one type on a CPU; they are kept apart in the code because the
   names say what a buffer is for.                                                                                    */
#ifndef ODYSSEUS_CPU_BACKEND_H
#define ODYSSEUS_CPU_BACKEND_H

#include "elementary.h"
#include "gemm.h"
#include "pointwise.h"
#include "embedding.h"
#include "norm.h"
#include "heads.h"
#include "attention.h"
#include "classifier.h"
#include "optimizer.h"
#include "device.h"

#endif

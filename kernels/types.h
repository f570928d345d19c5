/* types.h - the types that kernels compute in, of one backend, and the kinds of operations. */
#ifndef ODYSSEUS_TYPES_H
#define ODYSSEUS_TYPES_H

#include "../core/util.h"

typedef enum { DTYPE_REAL, DTYPE_ACCUM, DTYPE_F64, DTYPES } Dtype;

typedef enum {
    OP_GEMM, OP_ATTENTION, OP_NORM, OP_POINTWISE, OP_EMBEDDING, OP_CLASSIFIER, OP_OPTIMIZER, OP_CLASSES
} OpClass;
static const char *const OP_CLASS_NAMES[OP_CLASSES] = {
    "gemm", "attention", "norm", "pointwise", "embedding", "classifier", "optimizer"};

/* The backend's types: real, accum, their sizes in bytes as real_size() and accum_size() (a model of a device is told
   them at its start), REAL_NAME, DeviceState, real_from, real_value, logits_bytes, Mark (trace.h). */
#ifdef ODYSSEUS_CUDA
#include "cuda/types.h"
#elif defined ODYSSEUS_SIM
#include "sim/types.h"
#else
#include "cpu/types.h"
#endif

static inline i64 dtype_size(Dtype t) { return t == DTYPE_REAL ? real_size() : t == DTYPE_ACCUM ? accum_size() : 8; }

/* True where activations are already in the accumulation type: a cast between them can alias instead. */
static inline int real_is_accum(void) { return real_size() == accum_size(); }

#endif

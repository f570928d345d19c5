/* types.h - the numbers of the CUDA backend: bf16 to compute with, fp32 for sums, statistics, gradients and optimizer state. */
#ifndef ODYSSEUS_CUDA_TYPES_H
#define ODYSSEUS_CUDA_TYPES_H

#include "cuda.h"

typedef bf16 real;
typedef float accum;
#define REAL_NAME "bf16"

/* A value of the compute type, and back. */
static inline real real_from(double x) { return bf16_round((float)x); }
static inline double real_value(real x) { return (double)bf16_float(x); }

/* What the backend keeps of a rank's GPU. Every operation runs on `stream`, in the order of the calls, and may use `scratch`, which the
   next operation overwrites. */
typedef struct {
    cudaStream_t stream;
    char *scratch;
    i64 scratch_bytes;
    int multiprocessors;
    struct GemmState *gemm; /* gemm.cuh's handle and plans */
} DeviceState;

#endif

/* cuda.h - what a kernel stands on: the CUDA runtime with nvcc, its twin on the CPU with any other compiler, which
   then looks for headers in dev/emu.

   LAUNCH           starts a kernel on a stream and reports a launch that was refused; the only place with <<< >>>
   SHARED           static shared memory, SHARED_DYNAMIC what the launch gave: declared here alone, so
                    that the emulator can guard it
   CUDA_CHECK       a runtime call that fails ends the run with the call and the reason
   bf16             the compute type: the upper half of an fp32 number. Sums, statistics and
                    everything added to are fp32                                                                      */
#ifndef ODYSSEUS_CUDA_H
#define ODYSSEUS_CUDA_H

#include "../../core/util.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#define UNROLL _Pragma("unroll") /* before a loop whose arrays must stay in registers; nothing for the emulator */
#define UNROLL_PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(n) UNROLL_PRAGMA(unroll n)

#define SHARED(type, name, count) __shared__ __align__(128) type name[count]
#define SHARED_DYNAMIC(type, name) \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type *name = (type *)dynamic_shared
/* Its first byte a multiple of `to`: the swizzle of bulk copies counts from there. */
#define SHARED_DYNAMIC_ALIGNED(type, name, to) \
    extern __shared__ __align__(to) unsigned char dynamic_shared_##to[]; \
    type *name = (type *)dynamic_shared_##to

#define LAUNCH(kernel, grid, block, shared, stream, ...) \
    do { \
        SHARED_ASK(kernel, shared); \
        kernel<<<(grid), (block), (size_t)(shared), (stream)>>>(__VA_ARGS__); \
        CUDA_CHECK(cudaGetLastError()); \
    } while (0)
#else
#include <emu.h>
#endif

/* A kernel has 48 KB of shared memory unasked: what the launch gives, its own static arrays and a KB of the system's
   together. More is asked for, kernel by kernel; 32 KB leave room for any static arrays of ours. */
#define SHARED_ASK(kernel, bytes) \
    do { \
        if ((bytes) > 32 * 1024) CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, \
            (int)(bytes))); \
    } while (0)

#define CUDA_CHECK(call) \
    do { \
        cudaError_t cuda_error = (call); \
        if (cuda_error != cudaSuccess) FAIL(THIS_RANK, "CUDA: %s: %s", #call, cudaGetErrorString(cuda_error)); \
    } while (0)

typedef struct {
    uint16_t bits;
} bf16;

__host__ __device__ static inline float bf16_float(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Rounded to the nearest, ties to even; a NaN stays one. */
__host__ __device__ static inline bf16 bf16_round(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bf16 x;
    if ((bits & 0x7fffffffu) > 0x7f800000u) x.bits = (uint16_t)(bits >> 16 | 0x40);
    else x.bits = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    return x;
}

#define ALIGN16 __attribute__((aligned(16)))

/* Eight neighbouring bf16, four neighbouring floats: one 16-byte access. */
typedef struct ALIGN16 { bf16 v[8]; } bf16x8;
typedef struct ALIGN16 { float v[4]; } floatx4;

#include "ptx.h"

#endif

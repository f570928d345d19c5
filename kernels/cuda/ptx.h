/* ptx.h - every PTX instruction behind one small function; dev/emu/ptx.h holds the same functions
   for the emulator. sm_80 and up.

   PTX ISA 8: mma.sync, ldmatrix, cp.async, cvt, ex2, lg2, ld.acquire, red.release                                    */
#ifndef ODYSSEUS_PTX_H
#define ODYSSEUS_PTX_H

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* threadIdx.x and blockIdx.x, read anew: what follows from them is computed where it is used and
   holds no register across a loop. */
__device__ __forceinline__ int thread_anew(void) {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}
__device__ __forceinline__ int block_anew(void) {
    int x;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    return x;
}

/* d (16 x 8, fp32) += a (16 x 16, bf16) b (16 x 8, bf16); fragments as the PTX ISA lays them over a warp. */
__device__ __forceinline__ void mma_bf16_16816(float d[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* x, but what follows from it is computed anew: it holds no registers between here and where it was computed before. */
__device__ __forceinline__ int value_anew(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* Four 8 x 8 tiles of bf16 from shared memory: lanes 8i..8i+7 give the rows (16 bytes each) of
   tile i, which becomes r[i]. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

/* Begin to copy 16 bytes from global to shared memory; zeros where not `valid` (global is not read
   then, but must be an address). */
__device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit(void) { asm volatile("cp.async.commit_group;\n" : : : "memory"); }
/* Wait for all but this thread's last N groups; other threads' copies need a __syncthreads besides. */
template <int N> __device__ __forceinline__ void cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;\n" : : "n"(N) : "memory");
}

__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Blocks take turns through a counter in global memory: what a block wrote before counter_add (one thread, after a
   __syncthreads) is seen by a block after counter_wait (one thread, before a __syncthreads). A release carries along
   what its thread has come to know of by the barrier, the writes of the whole block, so that one thread's fence does
   for all (PTX ISA, "Memory Consistency Model", causality order). A block may wait only for blocks that have started
   before it: those that have drawn a lower ticket, not those of a lower blockIdx. */
__device__ __forceinline__ void counter_wait(const int *counter, int value) {
    int seen;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(seen) : "l"(counter) : "memory");
    while (seen != value);
}
__device__ __forceinline__ void counter_add(int *counter, int value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;\n" : : "l"(counter), "r"(value) : "memory");
}

#endif

/* Two floats rounded to bf16 side by side, `low` in the lower half. */
__host__ __device__ __forceinline__ uint32_t bf16x2_round(float low, float high) {
#ifdef __CUDA_ARCH__
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return (uint32_t)bf16_round(low).bits | (uint32_t)bf16_round(high).bits << 16;
#endif
}

#endif

/* ptx_hopper.h - the instructions of sm_90a behind small functions, as ptx.h has those of sm_80: barriers that count
   bytes, bulk copies of tensors, products of a warpgroup. dev/emu/ptx_hopper.h holds the same functions for the
   emulator. Only sm_90a has them: a kernel's body stands under HOPPER_CODE and is empty elsewhere.

   PTX ISA 8: mbarrier, cp.async.bulk.tensor, wgmma, fence.proxy, setmaxnreg, barrier                                 */
#ifndef ODYSSEUS_PTX_HOPPER_H
#define ODYSSEUS_PTX_HOPPER_H

#ifdef __CUDACC__

#include "memory.h"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif

typedef CUtensorMap TensorMap;

enum { TENSOR_F32 = CU_TENSOR_MAP_DATA_TYPE_FLOAT32, TENSOR_BF16 = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };

/* A map of `rank` dimensions over `global`: dims in elements, the innermost first and side by side, the others
   strides[i - 1] bytes apart; a copy brings box[] elements, and zeros for those beyond dims. `swizzle` as in a matrix
   descriptor: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32. */
static inline void tensor_map_encode(TensorMap *map, int type, const void *global, int rank, const uint64_t *dims,
                                     const uint64_t *strides, const uint32_t *box, int swizzle) {
    typedef CUresult (*Encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                               const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                               CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static const CUtensorMapSwizzle swizzles[] = {CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                                  CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_32B};
    static Encode encode = (Encode)driver_function("cuTensorMapEncodeTiled");
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    cuuint64_t sizes[5], steps[5];
    for (int i = 0; i < rank; i++) sizes[i] = dims[i];
    for (int i = 0; i + 1 < rank; i++) steps[i] = strides[i];
    CUresult e = encode(map, (CUtensorMapDataType)type, (cuuint32_t)rank, (void *)(uintptr_t)global, sizes, steps, box,
                        ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[swizzle], CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e != CUDA_SUCCESS)
        FAIL(THIS_RANK, "CUDA: cuTensorMapEncodeTiled: error %d (%lld elements side by side at %p)", (int)e,
             (long long)dims[0], global);
}

/* End the kernel with an error. */
__device__ __forceinline__ void kernel_trap(void) { asm volatile("trap;"); }

/* ---- barriers in shared memory ---- */

typedef struct __attribute__((aligned(8))) { uint64_t word; } Mbarrier;

__device__ __forceinline__ void mbarrier_init(Mbarrier *b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" : : "r"(shared_address(b)), "r"(arrivals) : "memory");
}
/* After the inits, by the thread that made them and before a __syncthreads: bulk copies see them. */
__device__ __forceinline__ void mbarrier_init_fence(void) {
    asm volatile("fence.mbarrier_init.release.cluster;\n" : : : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier *b) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n"
                 :
                 : "r"(shared_address(b))
                 : "memory");
}
/* Arrive, and let the phase end only when `bytes` more have come. */
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier *b, int bytes) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n"
                 : : "r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ bool mbarrier_try(Mbarrier *b, int parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done) : "r"(shared_address(b)), "r"(parity) : "memory");
    return done;
}
/* Until the phase of this parity has ended; a fresh barrier is in phase 0, and the one before
   it, of parity 1, has ended. */
__device__ __forceinline__ void mbarrier_wait(Mbarrier *b, int parity) {
    while (!mbarrier_try(b, parity)) {}
}

/* Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads: those that wait for it,
   and those that only arrive. */
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" : : "r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" : : "r"(id), "r"(threads) : "memory");
}

/* ---- bulk copies, by one thread ---- */

/* The box at (c0, c1, c2) of the map to shared memory, a multiple of 1024 bytes where it is swizzled; its
   bytes arrive at the barrier. */
__device__ __forceinline__ void tma_load_3d(void *shared, const TensorMap *map, Mbarrier *b, int c0, int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];\n"
        :
        : "r"(shared_address(shared)), "l"((uint64_t)map), "r"(shared_address(b)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
__device__ __forceinline__ void tma_prefetch_map(const TensorMap *map) {
    asm volatile("prefetch.tensormap [%0];\n" : : "l"((uint64_t)map) : "memory");
}
/* Back: the box in shared memory to its place, or added to what is there (fp32); what lies
   beyond the sizes is left out. */
__device__ __forceinline__ void tma_store_3d(const TensorMap *map, const void *shared, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];\n"
                 : : "l"((uint64_t)map), "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
__device__ __forceinline__ void tma_reduce_add_3d(const TensorMap *map, const void *shared, int c0, int c1, int c2) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];\n"
                 : : "l"((uint64_t)map), "r"(shared_address(shared)), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
__device__ __forceinline__ void bulk_commit(void) { asm volatile("cp.async.bulk.commit_group;\n" : : : "memory"); }
/* Until all but this thread's last N groups are done: written, or only read from shared memory. */
template <int N> __device__ __forceinline__ void bulk_wait(void) {
    asm volatile("cp.async.bulk.wait_group %0;\n" : : "n"(N) : "memory");
}
template <int N> __device__ __forceinline__ void bulk_wait_read(void) {
    asm volatile("cp.async.bulk.wait_group.read %0;\n" : : "n"(N) : "memory");
}

/* Between this thread's ordinary stores and bulk copies or products that read them, from
   shared or from global memory. */
__device__ __forceinline__ void proxy_fence(void) { asm volatile("fence.proxy.async.shared::cta;\n" : : : "memory"); }
__device__ __forceinline__ void proxy_fence_global(void) { asm volatile("fence.proxy.async.global;\n" : : : "memory"); }

/* ---- products of a warpgroup ---- */

/* Registers of a warp, of all warps of its warpgroup: fewer from now on, or more. */
template <int N> __device__ __forceinline__ void registers_give(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" : : "n"(N));
}
template <int N> __device__ __forceinline__ void registers_take(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" : : "n"(N));
}

/* Before products whose registers something else has touched; after products that belong together; until all but the
   last N such groups are done. */
__device__ __forceinline__ void wgmma_fence(void) { asm volatile("wgmma.fence.sync.aligned;\n" : : : "memory"); }
__device__ __forceinline__ void wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;\n" : : : "memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" : : "n"(N) : "memory");
}
/* After a wait: what is computed from d is computed after it. Before a fence: d is complete there. */
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N]) {
    UNROLL
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]));
}

/* A tile in shared memory. Swizzle of 128 bytes (1): stride_bytes lie between its groups of 8 rows (1024 where they
   follow each other); where rows are along K, leading_bytes lie between panels of 64 elements across. */
__device__ __forceinline__ uint64_t wgmma_descriptor(const void *tile, int leading_bytes, int stride_bytes,
                                                     int swizzle) {
    return (uint64_t)((shared_address(tile) & 0x3ffff) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 |
           (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)swizzle << 62;
}

#define WGMMA_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_8(d, i) WGMMA_4(d, i), WGMMA_4(d, i + 4)
#define WGMMA_32(d, i) WGMMA_8(d, i), WGMMA_8(d, i + 8), WGMMA_8(d, i + 16), WGMMA_8(d, i + 24)
#define WGMMA_D_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA_D_128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define WGMMA_BEGIN(add, n) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 "

/* d (64 x N, fp32; a lane's part as in mma.m16n8, warp after warp of the four, piece of 8 columns after piece) =
   or += A B, 16 along K, bf16. A: [m][k], or TURNED [k][m], by its descriptor, or in registers as in mma.m16n8k16;
   B: [n][k], or TURNED [k][n]. */
template <int N, bool A_TURNED, bool B_TURNED>
__device__ __forceinline__ void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {
    static_assert(N == 64 || N == 128, "those that the kernels use");
    if constexpr (N == 64)
        asm volatile(WGMMA_BEGIN("%34", "64")
                     WGMMA_D_64 ", %32, %33, p, 1, 1, %35, %36;\n}\n"
                     : WGMMA_32(d, 0)
                     : "l"(a), "l"(b), "r"((int)add), "n"(A_TURNED ? 1 : 0), "n"(B_TURNED ? 1 : 0));
    else
        asm volatile(WGMMA_BEGIN("%66", "128")
                     WGMMA_D_128 ", %64, %65, p, 1, 1, %67, %68;\n}\n"
                     : WGMMA_32(d, 0), WGMMA_32(d, 32)
                     : "l"(a), "l"(b), "r"((int)add), "n"(A_TURNED ? 1 : 0), "n"(B_TURNED ? 1 : 0));
}
template <int N, bool B_TURNED>
__device__ __forceinline__ void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
    static_assert(N == 64 || N == 128, "those that the kernels use");
    if constexpr (N == 64)
        asm volatile(WGMMA_BEGIN("%37", "64")
                     WGMMA_D_64 ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
                     : WGMMA_32(d, 0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"(B_TURNED ? 1 : 0));
    else
        asm volatile(WGMMA_BEGIN("%69", "128")
                     WGMMA_D_128 ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
                     : WGMMA_32(d, 0), WGMMA_32(d, 32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"(B_TURNED ? 1 : 0));
}

#else
#define HOPPER_CODE 1
template <int N> static inline void wgmma_hold(float (&d)[N]) { (void)d; }
static inline void proxy_fence_global(void) {}
static inline void kernel_trap(void) { abort(); }
#endif
#endif

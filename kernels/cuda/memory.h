/* memory.h - a range of a GPU's addresses, reserved first and given memory later (CUDA's virtual memory management).

   The driver's functions are looked up at run time, so that the program starts, and can say what is
   missing, where there is no driver. */
#ifndef ODYSSEUS_CUDA_MEMORY_H
#define ODYSSEUS_CUDA_MEMORY_H

#ifdef __CUDACC__

#include <cuda.h>

/* The driver's function `name`, as it was in CUDA 12.0. */
static inline void *driver_function(const char *name) {
    void *function = NULL;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found));
#else
    CUDA_CHECK(cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || !function)
        FAIL(THIS_RANK, "the NVIDIA driver has no %s; update it", name);
    return function;
}

static inline CUmemAllocationProp memory_properties(void) {
    CUmemAllocationProp prop;
    int device;
    CUDA_CHECK(cudaGetDevice(&device));
    memset(&prop, 0, sizeof prop);
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = device;
    return prop;
}

/* `bytes` rounded up to what the device maps at once. */
static inline size_t memory_granules(i64 bytes) {
    CUmemAllocationProp prop = memory_properties();
    size_t granule = 0;
    CUresult (*granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) =
        (CUresult(*)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags))driver_function(
            "cuMemGetAllocationGranularity");
    if (granularity(&granule, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM) != CUDA_SUCCESS)
        FAIL(THIS_RANK, "CUDA: cuMemGetAllocationGranularity failed");
    return (size_t)round_up(bytes, (i64)granule);
}

/* NULL: no range of this size. */
static inline void *memory_reserve_device(i64 bytes) {
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long) =
        (CUresult(*)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long))driver_function(
            "cuMemAddressReserve");
    CUdeviceptr base = 0;
    return reserve(&base, memory_granules(bytes), 0, 0, 0) == CUDA_SUCCESS ? (void *)base : NULL;
}

/* 0: not enough memory. */
static inline int memory_commit_device(void *base, i64 bytes) {
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long) =
        (CUresult(*)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *,
                     unsigned long long))driver_function("cuMemCreate");
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long) =
        (CUresult(*)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))driver_function(
            "cuMemMap");
    CUresult (*access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t) =
        (CUresult(*)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t))driver_function("cuMemSetAccess");
    CUresult (*release)(CUmemGenericAllocationHandle) =
        (CUresult(*)(CUmemGenericAllocationHandle))driver_function("cuMemRelease");
    CUmemAllocationProp prop = memory_properties();
    CUmemGenericAllocationHandle memory;
    CUmemAccessDesc all;
    size_t size = memory_granules(bytes);
    if (create(&memory, size, &prop, 0) != CUDA_SUCCESS) return 0;
    memset(&all, 0, sizeof all);
    all.location = prop.location;
    all.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    int mapped = map((CUdeviceptr)base, size, 0, memory, 0) == CUDA_SUCCESS &&
                 access((CUdeviceptr)base, size, &all, 1) == CUDA_SUCCESS;
    release(memory); /* the mapping keeps it */
    return mapped;
}

static inline void memory_release_device(void *base, i64 reserved, i64 committed) {
    CUresult (*unmap)(CUdeviceptr, size_t) = (CUresult(*)(CUdeviceptr, size_t))driver_function("cuMemUnmap");
    CUresult (*give_back)(CUdeviceptr, size_t) = (CUresult(*)(CUdeviceptr, size_t))driver_function("cuMemAddressFree");
    if (committed) unmap((CUdeviceptr)base, memory_granules(committed));
    give_back((CUdeviceptr)base, memory_granules(reserved));
}

#else

/* The emulated device's memory is the host's. */
static inline void *memory_reserve_device(i64 bytes) {
    void *base = mmap(NULL, (size_t)bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? NULL : base;
}
static inline int memory_commit_device(void *base, i64 bytes) {
    return emu_take((size_t)bytes) && mprotect(base, (size_t)bytes, PROT_READ | PROT_WRITE) == 0;
}
static inline void memory_release_device(void *base, i64 reserved, i64 committed) {
    emu_taken() -= (size_t)committed;
    munmap(base, (size_t)reserved);
}

#endif
#endif

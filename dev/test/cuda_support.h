/* cuda_support.h - device buffers for the tests of CUDA kernels: on a GPU with nvcc, in the
   emulator with any other compiler.

   host doubles --upload_real, upload_accum--> device --kernel--> device --download_real, download_accum--> host doubles

   An upload rounds the host's doubles in place to what the device gets: the reference reads the very numbers the kernel
   reads, so that only the kernel's own rounding differs. Outputs that are overwritten start as unset (0xff: NaN in
   every type); a buffer is an allocation of its own, so an address sanitizer or memcheck sees one element too many.
   release_all() at the end of a case.

   Distances: norm_distance ||a-b|| / ||b||, and relative_distance max|a-b| / max|b| of check.h. bf16 keeps 8
   bits, so one rounding is off by at most 2^-8 of the value; over many values of any size
   by about 1.7e-3 in the norm.                                                                                       */
#ifndef ODYSSEUS_TEST_CUDA_SUPPORT_H
#define ODYSSEUS_TEST_CUDA_SUPPORT_H

#include "../../kernels/compute.h"
#include "check.h"

#define BF16_ROUND 0x1p-8 /* half a step of bf16, relative: the most that one rounding takes away */

/* ---- memory ----------------------------------------------------------------------------------------------------- */

enum { POOL = 4096 };
typedef struct {
    void *p;
    int on_device;
} PoolEntry;
static PoolEntry pool[POOL];
static int pool_used;

static inline void *pool_keep(void *p, int on_device) {
    if (pool_used == POOL) FAIL(EVERYONE, "tests: pool of %d buffers is empty", POOL);
    pool[pool_used].p = p, pool[pool_used++].on_device = on_device;
    return p;
}

/* Host memory, zeros; and device memory, 0xff. Exactly as many bytes as asked for. */
static inline void *host_take(i64 bytes) { return pool_keep(host_alloc((size_t)bytes), 0); }
static inline void *device_take(i64 bytes) {
    void *p = NULL;
    CUDA_CHECK(cudaMalloc(&p, (size_t)i64_max(bytes, 1)));
    CUDA_CHECK(cudaMemsetAsync(p, 0xff, (size_t)bytes, 0));
    CUDA_CHECK(cudaDeviceSynchronize());
    return pool_keep(p, 1);
}

static inline void release_all(void) {
    CUDA_CHECK(cudaDeviceSynchronize());
    while (pool_used > 0) {
        PoolEntry e = pool[--pool_used];
        if (e.on_device) CUDA_CHECK(cudaFree(e.p));
        else free(e.p);
    }
}

static inline void *upload_bytes(const void *src, i64 bytes) {
    void *p = device_take(bytes);
    if (bytes > 0) CUDA_CHECK(cudaMemcpy(p, src, (size_t)bytes, cudaMemcpyHostToDevice));
    /* the copy may return before it has ended, and the tests' stream does not wait for it */
    CUDA_CHECK(cudaDeviceSynchronize());
    return p;
}
static inline void *download_bytes(const void *src, i64 bytes) {
    void *p = host_take(bytes);
    CUDA_CHECK(cudaDeviceSynchronize());
    if (bytes > 0) CUDA_CHECK(cudaMemcpy(p, src, (size_t)bytes, cudaMemcpyDeviceToHost));
    return p;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static uint64_t random_state = 88172645463325252ull;
static inline double uniform(void) { /* in [-1, 1) */
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (double)(random_state >> 11) / 4503599627370496.0 - 1;
}

static inline double *zeros(i64 n) { return (double *)host_take(n * 8); }
static inline double *randoms(i64 n, double size) {
    double *x = zeros(n);
    for (i64 i = 0; i < n; i++) x[i] = size * uniform();
    return x;
}
static inline double *copy_of(const double *x, i64 n) {
    double *y = zeros(n);
    if (n) memcpy(y, x, 8 * (size_t)n);
    return y;
}

static inline real *upload_real(double *x, i64 n) {
    real *h = (real *)host_take(n * (i64)sizeof(real));
    for (i64 i = 0; i < n; i++) h[i] = real_from(x[i]), x[i] = real_value(h[i]);
    return (real *)upload_bytes(h, n * (i64)sizeof(real));
}
static inline accum *upload_accum(double *x, i64 n) {
    accum *h = (accum *)host_take(n * (i64)sizeof(accum));
    for (i64 i = 0; i < n; i++) h[i] = (accum)x[i], x[i] = (double)h[i];
    return (accum *)upload_bytes(h, n * (i64)sizeof(accum));
}
static inline double *upload_f64(const double *x, i64 n) { return (double *)upload_bytes(x, n * 8); }
static inline int32_t *upload_int(const int32_t *x, i64 n) { return (int32_t *)upload_bytes(x, n * 4); }

static inline real *unset_real(i64 n) { return (real *)device_take(n * (i64)sizeof(real)); }
static inline accum *unset_accum(i64 n) { return (accum *)device_take(n * (i64)sizeof(accum)); }

static inline double *download_real(const real *x, i64 n) {
    const real *h = (const real *)download_bytes(x, n * (i64)sizeof(real));
    double *y = zeros(n);
    for (i64 i = 0; i < n; i++) y[i] = real_value(h[i]);
    return y;
}
static inline double *download_accum(const accum *x, i64 n) {
    const accum *h = (const accum *)download_bytes(x, n * (i64)sizeof(accum));
    double *y = zeros(n);
    for (i64 i = 0; i < n; i++) y[i] = (double)h[i];
    return y;
}
static inline double *download_f64(const double *x, i64 n) { return (double *)download_bytes(x, n * 8); }

/* ---- comparison -------------------------------------------------------------------------------------------------- */

/* ||a - b|| / ||b||; 0 for two zero tensors, infinity if a holds what is not a number. */
static inline double norm_distance(const double *a, const double *b, i64 n) {
    double diff = 0, size = 0;
    for (i64 i = 0; i < n; i++) {
        double d = a[i] - b[i];
        if (!(fabs(d) < INFINITY)) return INFINITY;
        diff += d * d, size += b[i] * b[i];
    }
    return diff == 0 ? 0 : size == 0 ? INFINITY : sqrt(diff / size);
}

/* Both distances at once: the norm's bound, and the largest element's. */
static inline int check_close(const double *got, const double *want, i64 n, double bound, double bound_max,
                              const char *format, ...) __attribute__((format(printf, 6, 7)));
static inline int check_close(const double *got, const double *want, i64 n, double bound, double bound_max,
                              const char *format, ...) {
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    double distance = norm_distance(got, want, n), worst = relative_distance(got, want, n);
    return check(distance <= bound && worst <= bound_max, "%s: distance %.2g, at most %.2g; largest %.2g, at most %.2g",
                 name, distance, bound, worst, bound_max);
}

static inline int same_bits(const void *a, const void *b, i64 bytes) { /* two buffers of the device */
    return bytes == 0 || memcmp(download_bytes(a, bytes), download_bytes(b, bytes), (size_t)bytes) == 0;
}

/* ---- the device -------------------------------------------------------------------------------------------------- */

/* The orders in which the emulator runs a block's threads: ascending, descending, shuffled. A GPU has its
   own; there they change nothing. */
static const int SCHEDULES[3] = {0, 1, 7};
static inline void set_schedule(int seed) {
    CUDA_CHECK(cudaDeviceSynchronize()); /* what is queued still runs under the old one */
#ifdef __CUDACC__
    (void)seed;
#else
    emu_schedule(seed);
#endif
}

/* A device with a stream of its own and `scratch_bytes` of poisoned scratch, which lives until release_all. */
static inline Device test_device(i64 scratch_bytes) {
    static cudaStream_t stream;
    if (!stream) CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    Device dev;
    memset(&dev, 0, sizeof dev);
    dev.threads = 1;
    dev.state.stream = stream;
    dev.state.scratch = (char *)device_take(scratch_bytes);
    dev.state.scratch_bytes = scratch_bytes;
    cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    dev.state.multiprocessors = p.multiProcessorCount;
    int shared;
    CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    dev.state.shared_bytes = shared;
#ifdef ODYSSEUS_HOPPER
    dev.state.wgmma = p.major == 9;
#endif
    return dev;
}

#ifdef __CUDACC__
#define ON_GPU 1
#else
#define ON_GPU 0
#endif

/* Has this device wgmma? A Hopper has, and so has the emulator: there it is a failure if the program was built without
   those kernels, not something to skip. */
static inline int need_wgmma(void) {
    cudaDeviceProp p;
    CUDA_CHECK(cudaGetDeviceProperties(&p, 0));
    int has = test_device(16).state.wgmma;
    release_all();
    if (p.major != 9) check(1, "wgmma: # SKIP the GPU is an sm_%d%d, and only sm_90 has it", p.major, p.minor);
    else check(has, "this sm_90 GPU's kernels for sm_90a are in the program (if not: make CUDA_ARCHS=90a)");
    return has;
}

/* A kernel that hangs shall not hang the test: after so many seconds it ends. The emulator, whose time is the
   machine's, finds such waits itself. */
static inline void watch_device(unsigned seconds) {
    if (ON_GPU) alarm(seconds);
}

/* Call first in main: a test that finds no GPU must not pass for one that found no fault. */
static inline void need_device(void) {
    int n = 0;
#ifndef __CUDACC__
    setenv("EMU_ARCH", "90", 0); /* a Hopper has every path; training under the emulator has an sm_80's */
#endif
    if (cudaGetDeviceCount(&n) != cudaSuccess || n < 1)
        FAIL(EVERYONE, "no CUDA device; without one, the same test under the emulator is build/NAME_emu");
}

#endif

/* device.h - a GPU as a device: which one a rank gets, its stream and memory, copies, its peak, its time.

   ranks of a host share its GPUs in turn: local rank r takes GPU r modulo the number that it sees;
   whose GPUs have one UUID share it
   memory     a range of addresses is reserved (cuMemAddressReserve), the plan laid out in it, then as much mapped
              as the plan needs: device memory is the arena and the CUDA context, nothing else. A dry run reserves
              host addresses and needs no GPU
   peak       bf16 multiply-adds of a multiprocessor and clock x multiprocessors x clock                              */
#ifndef ODYSSEUS_CUDA_DEVICE_H
#define ODYSSEUS_CUDA_DEVICE_H

#include "../../core/cgroup.h"
#include "flags.h"
#include <sys/mman.h>

typedef struct {
    int index, count;  /* of this host's GPUs: this rank's, and all that it sees */
    int threads;       /* of the host: one launches, the GPU computes */
    int host_threads;  /* what the host has for this rank where it works itself, on initial weights */
    int sharing;       /* ranks on this rank's GPU */
    uint64_t identity; /* of that GPU */
    char name[256];
    int major, minor, multiprocessors;
    i64 shared_bytes; /* of shared memory, for one block */
    double clock_hz;
} DevicePlace;

#define DEVICE_IS_HOST 0 /* its memory is not the host's */
/* what CUDA takes after memory was counted: code that loads with its first use */
#define DEVICE_RESERVE ((i64)512 << 20)
/* what NCCL takes for a communicator, stated: it is reported to be 1 to 4 GB on eight H100. A run measures it */
#define LINK_RESERVE ((i64)1 << 30)
#define MEMORY_OWNER "GPU, less 512 MiB for CUDA,"
#define PEAK_ORIGIN "by its clock"

/* The GPU of rank `local` among `locals` ranks on this host; nothing is opened yet. `threads` is of the CPU builds. */
static inline DevicePlace device_place(int local, int locals, int threads) {
    DevicePlace p;
    memset(&p, 0, sizeof p);
    if (threads) FAIL(EVERYONE, "--threads is for the CPU builds; this one computes on a GPU");
    p.threads = 1;
    double cores = (double)sysconf(_SC_NPROCESSORS_ONLN), limit = host_cores_limit("");
    p.host_threads = (int)i64_max(1, (i64)ceil(limit > 0 && limit < cores ? limit : cores) / locals);
    cudaError_t e = cudaGetDeviceCount(&p.count);
    if (e != cudaSuccess) p.count = 0;
    if (!p.count) return p;
    p.index = local % p.count;
    p.sharing = (locals - p.index + p.count - 1) / p.count;
    return p;
}

/* Look at the GPU, or say why there is none. */
static inline void device_open(DevicePlace *p) {
    int driver = 0, runtime = 0, clock_khz = 0, shared = 0;
    if (!p->count) {
        cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
        if (driver == 0) FAIL(EVERYONE, "no NVIDIA driver on this host; install it, or use make train_gpt_cpu");
        if (driver < runtime)
            FAIL(EVERYONE,
                 "the NVIDIA driver knows CUDA %d.%d, this program was built with %d.%d; update the driver or build "
                 "with an older toolkit",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
        FAIL(EVERYONE,
             "no GPU on this host (is CUDA_VISIBLE_DEVICES empty?); use make train_gpt_cpu to train without one");
    }
    cudaDeviceProp prop;
    cudaFuncAttributes kernel;
    CUDA_CHECK(cudaSetDevice(p->index));
    CUDA_CHECK(cudaGetDeviceProperties(&prop, p->index));
    CUDA_CHECK(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, p->index));
    CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, p->index));
    snprintf(p->name, sizeof p->name, "%s", prop.name);
    memcpy(&p->identity, prop.uuid.bytes, sizeof p->identity);
    p->major = prop.major, p->minor = prop.minor, p->multiprocessors = prop.multiProcessorCount,
    p->clock_hz = 1e3 * clock_khz, p->shared_bytes = shared;
    if (p->major < 8)
        FAIL(EVERYONE, "GPU %d is a %s (sm_%d%d); the kernels need sm_80 or later (A100, H100, ...)", p->index, p->name,
             p->major, p->minor);
    if (cudaFuncGetAttributes(&kernel, sum_parts_f64_kernel) != cudaSuccess)
        FAIL(
            EVERYONE,
            "this program has no kernels for GPU %d, a %s (sm_%d%d); build it with make -B train_gpt CUDA_ARCHS=%d%d%s",
            p->index, p->name, p->major, p->minor, p->major, p->minor, p->major == 9 ? "a" : "");
}

/* Can ranks reach each other by --comm `comm` from where they are? p->sharing is known. */
static inline void device_check_comm(const DevicePlace *p, const char *comm) {
    if (strcmp(comm, "nccl") == 0 && p->sharing > 1)
        FAIL(EVERYONE,
             "%d ranks of this host have the same GPU (each sees %d), and NCCL needs a GPU for each; start as many "
             "ranks a host as it has GPUs, or let them share with --comm mpi",
             p->sharing, p->count);
}

/* Multiply-adds in bf16 of a multiprocessor's tensor cores in a clock, by architecture (NVIDIA's white
   papers); 0: an unknown one. */
static inline int known_fma(const DevicePlace *p) {
    static const struct {
        int arch, fma;
    } known[] = {{80, 1024}, {86, 512}, {87, 512}, {89, 512}, {90, 2048}, {120, 512}, {121, 512}};
    for (int i = 0; i < COUNT_OF(known); i++)
        if (known[i].arch == 10 * p->major + p->minor) return known[i].fma;
    return 0;
}

/* Is the peak known, and not guessed? Only then is a rate above it an error. */
static inline int device_peak_is_stated(const DevicePlace *p) { return known_fma(p) != 0; }

/* bf16 FLOP/s of this rank's share of the GPU; an unknown architecture counts as the fastest. */
static inline double device_peak(const DevicePlace *p) {
    int fma = known_fma(p) ? known_fma(p) : 4096;
    return 2.0 * fma * p->multiprocessors * p->clock_hz / p->sharing;
}

/* Free bytes of this rank's GPU. */
static inline i64 device_memory_available(void) {
    size_t available = 0, total = 0;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return (i64)available;
}

static inline void device_print(const DevicePlace *p) {
    printf("%s (sm_%d%d, %d multiprocessors), GPU %d of %d on this host", p->name, p->major, p->minor,
           p->multiprocessors, p->index, p->count);
}

/* What the user should know about the place. */
static inline void device_note(const DevicePlace *p) {
    if (p->sharing > 1)
        printf("note     %d ranks share this GPU: for tests; a rank of its own each is faster\n", p->sharing);
    if (p->count > 1 && strcmp(COMM_DEFAULT, "mpi") == 0) printf("note     " NCCL_MISSING "\n");
}

/* What a GPU must have besides the arena, where nothing was measured; `links`: groups that need a
   communicator by --comm nccl. */
static inline void device_print_reserve(const DevicePlace *p, const char *comm, int links) {
    (void)p;
    if (strcmp(comm, "nccl") != 0) links = 0;
    printf("reserve  %.2f GB besides: 512 MiB for CUDA, 1 GiB for each of %d NCCL communicators\n",
           (double)(DEVICE_RESERVE + links * LINK_RESERVE) / 1e9, links);
}

/* Why attention cannot run heads of this size: NULL, it can. */
static inline const char *device_refuses_heads(i64 head_dim) { return cuda_refuses_heads(head_dim); }

/* ---- life ---- */

/* Make `dev` ready on the GPU of `p`; a dry run (`imagined`) has none. device_free. */
static inline void device_init(Device *dev, const DevicePlace *p, int imagined) {
    memset(dev, 0, sizeof *dev);
    dev->imagined = imagined;
    dev->threads = p->threads, dev->host_threads = p->host_threads;
    if (imagined) return;
    dev->state.index = p->index;
    dev->state.multiprocessors = p->multiprocessors, dev->state.shared_bytes = p->shared_bytes;
#ifdef ODYSSEUS_HOPPER
    dev->state.wgmma = p->major == 9;
#endif
    CUDA_CHECK(cudaSetDevice(p->index));
    CUDA_CHECK(cudaStreamCreateWithFlags(&dev->state.stream, cudaStreamNonBlocking));
    dev->state.gemm = gemm_open();
}

/* A device that computes has no time to make up. */
static inline void device_state_repeat(DeviceState *s, const DeviceState *before, i64 times) {
    (void)s, (void)before, (void)times;
}

/* The host's clock. */
static inline double host_seconds(const Device *dev) {
    (void)dev;
    return seconds_now();
}

/* Wait until everything asked for is done. The host looks after the transfers meanwhile, which would
   wait for a lost rank for ever. */
static inline void device_finish(Device *dev) {
    if (!dev->state.stream) return;
    cudaError_t state;
    double begin = seconds_now();
    while ((state = cudaStreamQuery(dev->state.stream)) == cudaErrorNotReady) device_poll(dev);
    dev->waited += seconds_now() - begin;
    CUDA_CHECK(state);
}

/* ---- marks of a trace ---- */

/* When `stream` comes to here. */
static inline Mark stream_mark(Device *dev, cudaStream_t stream) {
    MarkPool *p = &dev->state.marks;
    if (p->used == p->room) {
        int room = p->room ? 2 * p->room : 1024;
        p->event = (cudaEvent_t *)realloc(p->event, sizeof(cudaEvent_t) * (size_t)room);
        if (!p->event) FAIL(THIS_RANK, "out of host memory for %d events of a trace", room);
        for (; p->room < room; p->room++) CUDA_CHECK(cudaEventCreate(&p->event[p->room]));
    }
    CUDA_CHECK(cudaEventRecord(p->event[p->used], stream));
    return p->used++;
}

static inline Mark device_mark(Device *dev) { return stream_mark(dev, dev->state.stream); }

/* When the host comes to here, as the device's time. */
static inline Mark host_mark(Device *dev) { return stream_mark(dev, dev->state.marks.idle); }

static inline void marks_begin(Device *dev) {
    MarkPool *p = &dev->state.marks;
    if (!p->idle) CUDA_CHECK(cudaStreamCreateWithFlags(&p->idle, cudaStreamNonBlocking));
    p->used = 0;
    Mark now = host_mark(dev);
    CUDA_CHECK(cudaEventSynchronize(p->event[now]));
    p->origin = seconds_now();
}

static inline double mark_seconds(const Device *dev, Mark m) {
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, dev->state.marks.event[0], dev->state.marks.event[m]));
    return dev->state.marks.origin + 1e-3 * ms;
}

static inline void marks_free(MarkPool *p) {
    for (int i = 0; i < p->room; i++) CUDA_CHECK(cudaEventDestroy(p->event[i]));
    free(p->event);
    if (p->idle) CUDA_CHECK(cudaStreamDestroy(p->idle));
    memset(p, 0, sizeof *p);
}

static inline void device_free(Device *dev) {
    device_finish(dev);
    marks_free(&dev->state.marks);
    for (int i = 0; i < PINNED_SLOTS; i++) {
        if (!dev->state.pinned[i].host) continue;
        CUDA_CHECK(cudaFreeHost(dev->state.pinned[i].host));
        CUDA_CHECK(cudaEventDestroy(dev->state.pinned[i].done));
        dev->state.pinned[i].host = NULL;
    }
    if (dev->state.copies) {
        CUDA_CHECK(cudaEventDestroy(dev->state.copies_ready));
        CUDA_CHECK(cudaStreamDestroy(dev->state.copies));
        dev->state.copies = NULL;
    }
    gemm_close(dev->state.gemm);
    if (dev->state.stream) CUDA_CHECK(cudaStreamDestroy(dev->state.stream));
    dev->state.stream = NULL, dev->state.gemm = NULL;
}

/* The largest scratch that any operation needs on `rows` rows of at most `widest` numbers, `vocab`
   words and attention of `s`. */
static inline i64 device_scratch_bytes(i64 rows, i64 widest, i64 vocab, const AttentionShape *s) {
    return cuda_scratch_bytes(rows, widest, vocab, s);
}

static inline void device_scratch(Device *dev, void *scratch, i64 bytes) {
    dev->state.scratch = (char *)scratch;
    dev->state.scratch_bytes = bytes;
}

/* The next slot of pinned memory, once the device has read what was in it. */
static inline PinnedSlot *pinned_slot(Device *dev) {
    PinnedSlot *slot = &dev->state.pinned[dev->state.pinned_next++ % PINNED_SLOTS];
    cudaError_t state = cudaSuccess;
    if (!slot->host) {
        if (cudaMallocHost(&slot->host, PINNED_BYTES) != cudaSuccess)
            FAIL(THIS_RANK, "out of pinned host memory: %d bytes to copy through", PINNED_BYTES);
        CUDA_CHECK(cudaEventCreateWithFlags(&slot->done, cudaEventDisableTiming));
    } else {
        double begin = seconds_now();
        while ((state = cudaEventQuery(slot->done)) == cudaErrorNotReady) device_poll(dev);
        dev->waited += seconds_now() - begin;
    }
    CUDA_CHECK(state);
    return slot;
}

/* Through pinned memory, in the stream's order: the host goes on, and may overwrite `src`. Any thread
   of the host, one at a time. */
static inline void copy_in_run(Device *dev, void *dst, const void *src, i64 bytes) {
    CUDA_CHECK(cudaSetDevice(dev->state.index)); /* a thread's own setting */
    for (i64 at = 0; at < bytes; at += PINNED_BYTES) {
        size_t n = (size_t)i64_min(PINNED_BYTES, bytes - at);
        PinnedSlot *slot = pinned_slot(dev);
        memcpy(slot->host, (const char *)src + at, n);
        CUDA_CHECK(cudaMemcpyAsync((char *)dst + at, slot->host, n, cudaMemcpyHostToDevice, dev->state.stream));
        CUDA_CHECK(cudaEventRecord(slot->done, dev->state.stream));
    }
}

/* A copy to memory that is not pinned keeps the host until the device has come to it: wait before, where the host
   looks after the transfers. */
static inline void copy_out_run(Device *dev, void *dst, const void *src, i64 bytes) {
    device_finish(dev);
    CUDA_CHECK(cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyDeviceToHost, dev->state.stream));
    device_finish(dev);
}

/* ---- copies to the host on a stream of their own ---- */

/* Pinned memory; NULL: there is not so much. */
static inline void *host_pinned(Device *dev, i64 bytes) {
    void *p = NULL;
    (void)dev;
    return cudaMallocHost(&p, (size_t)bytes) == cudaSuccess ? p : NULL;
}
static inline void host_unpinned(Device *dev, void *p, i64 bytes) {
    (void)bytes;
    if (dev->state.copies) CUDA_CHECK(cudaStreamSynchronize(dev->state.copies));
    CUDA_CHECK(cudaFreeHost(p));
}

/* From here on the copies' stream sees what the compute stream has been asked so far; neither waits for the other. */
static inline void host_copy_start(Device *dev, HostCopy *c, void *dst, const void *src, i64 bytes) {
    DeviceState *s = &dev->state;
    if (!s->copies) {
        CUDA_CHECK(cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking));
        CUDA_CHECK(cudaEventCreateWithFlags(&s->copies_ready, cudaEventDisableTiming));
    }
    if (!c->done) CUDA_CHECK(cudaEventCreateWithFlags(&c->done, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventRecord(s->copies_ready, s->stream));
    CUDA_CHECK(cudaStreamWaitEvent(s->copies, s->copies_ready, 0));
    CUDA_CHECK(cudaMemcpyAsync(dst, src, (size_t)bytes, cudaMemcpyDefault, s->copies));
    CUDA_CHECK(cudaEventRecord(c->done, s->copies));
}

/* What the compute stream is asked from here on comes after the copy. */
static inline void host_copy_wait(Device *dev, HostCopy *c) {
    CUDA_CHECK(cudaStreamWaitEvent(dev->state.stream, c->done, 0));
}
static inline void host_copy_free(HostCopy *c) {
    if (c->done) CUDA_CHECK(cudaEventDestroy(c->done));
    c->done = NULL;
}

/* ---- the arena's memory ---- */

static inline void *memory_reserve(Device *dev, i64 bytes) {
    if (dev->state.stream) return memory_reserve_device(bytes);
    void *base = mmap(NULL, (size_t)bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? NULL : base;
}

/* Zero-filled. 0: not enough memory. */
static inline int memory_commit(Device *dev, void *base, i64 bytes) {
    if (!memory_commit_device(base, bytes)) return 0;
    CUDA_CHECK(cudaMemsetAsync(base, 0, (size_t)bytes, dev->state.stream));
    return 1;
}

static inline void memory_release(Device *dev, void *base, i64 reserved, i64 committed) {
    device_finish(dev);
    if (dev->state.stream) memory_release_device(base, reserved, committed);
    else munmap(base, (size_t)reserved);
}

#endif

/* runtime.h - the CUDA runtime calls that the program uses, on the CPU. A device is this
   process: its memory is host memory.

   Streams are queues. When they run is a function of EMU_STREAMS (emu_streams_run):
     0    late: nothing in a queue runs until the host waits for it, or work that is waited for needs it through an
          event. Work that forgot to wait for an event meets data that is not there yet, whatever the order of the calls
     1    the first stream late, all others at once: work that overwrites what the first
          stream still has to read does so
     2 .. each call runs its stream, or does not, by a coin of that number
   A query whether work is done may find it under way, a few times in a row. A copy that the host makes waits for no
   stream that was made cudaStreamNonBlocking.
   cudaMalloc poisons with 0xff, and is an allocation of its own: an address sanitizer sees one element too many.

   The environment says what this host has, and what goes wrong: EMU_DEVICES GPUs of EMU_ARCH (86: sm_86) with
   EMU_MEMORY MB free, EMU_DRIVER the driver's CUDA version (11080; 0: no driver), EMU_NCCL (nccl.h). EMU_BUSY: whoever
   only looks finds work done no sooner than so many seconds after it was asked for. The kernels count as built for
   EMU_BUILT (80) and what comes after. */
#ifndef ODYSSEUS_EMU_RUNTIME_H
#define ODYSSEUS_EMU_RUNTIME_H

#include <deque>
#include <map>
#include <memory>
#include <time.h>

typedef enum {
    cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35,
    cudaErrorNoKernelImageForDevice = 209, cudaErrorNotReady = 600
} cudaError_t;
typedef enum {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault
} cudaMemcpyKind;
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaEventDefault = 0, cudaHostAllocDefault = 0 };
typedef enum { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 } cudaFuncAttribute;

/* A point in a stream: reached once `done`; waiting for it runs its stream up to there. */
struct EmuPoint {
    struct EmuStream *stream;
    int done;
    double seconds; /* when it was reached */
    double asked;   /* when it was recorded */
    int hangs;      /* behind a transfer that never ends */
};
struct EmuStream {
    std::deque<std::function<void()>> queue;
    int running, blocking, index; /* index: 0 of calls that name none, 1 of the first that was made, ... */
    double asked;                 /* when something was asked for last */
};
struct EmuEvent {
    std::shared_ptr<EmuPoint> point; /* of the last record; NULL: none, which counts as reached */
};
typedef struct EmuStream *cudaStream_t;
typedef struct EmuEvent *cudaEvent_t;

static inline const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorNotReady         ? "not ready"
                                            : "invalid argument";
}
static inline cudaError_t cudaGetLastError(void) { return cudaSuccess; }
static inline cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }

/* Has a transfer begun that will never end? Then nothing behind it does. */
static inline bool &emu_hangs(void) {
    static bool hangs = false;
    return hangs;
}

static inline double emu_seconds(void) {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
/* Does what was asked for then still count as under way? */
static inline bool emu_busy(double asked) { return emu_seconds() < asked + (double)emu_setting("EMU_BUSY", 0); }

/* The stream of calls that name none. */
static inline EmuStream *emu_stream(cudaStream_t s) {
    static EmuStream zero = {{}, 0, 1, 0, 0};
    return s ? s : &zero;
}
static inline std::vector<EmuStream *> &emu_streams(void) {
    static std::vector<EmuStream *> all = {emu_stream(nullptr)};
    return all;
}

/* Run the stream's queue until `stop` (NULL: until it is empty). */
static inline void emu_drain(EmuStream *s, const EmuPoint *stop) {
    if (s->running) emu_fail("streams wait for each other in a circle", {__FILE__, __LINE__});
    s->running = 1;
    while (!s->queue.empty() && !(stop && stop->done)) {
        std::function<void()> work = std::move(s->queue.front());
        s->queue.pop_front();
        work();
    }
    s->running = 0;
}

static inline int &emu_streams_mode(void) {
    static int mode = (int)emu_setting("EMU_STREAMS", 0);
    return mode;
}
/* When streams run from now on. */
static inline void emu_streams_run(int mode) { emu_streams_mode() = mode; }
static inline bool emu_coin(uint64_t *state) {
    if (!*state) *state = 0x2545f4914f6cdd1dull + (uint64_t)emu_streams_mode();
    return emu_random(state) >> 32 & 1;
}
/* Shall a stream run now that it has got more to do? */
static inline bool emu_runs_early(const EmuStream *s) {
    static uint64_t state;
    int mode = emu_streams_mode();
    return mode == 1 ? s->index > 1 : mode > 1 && emu_coin(&state);
}
/* Shall work that is asked for be under way still? By a coin of its own: how often one asks may
   be up to the time it takes. */
static inline bool emu_not_ready(void) {
    static uint64_t state;
    return emu_coin(&state);
}

static inline void emu_enqueue(cudaStream_t stream, std::function<void()> work) {
    EmuStream *s = emu_stream(stream);
    s->queue.push_back(std::move(work));
    s->asked = emu_seconds();
    if (emu_runs_early(s)) emu_drain(s, nullptr);
}

static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    static int made = 0;
    *s = new EmuStream();
    (*s)->blocking = !(flags & cudaStreamNonBlocking), (*s)->index = ++made;
    emu_streams().push_back(*s);
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetStreamPriorityRange(int *lowest, int *highest) {
    return *lowest = *highest = 0, cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) {
    return cudaStreamCreateWithFlags(s, flags);
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    emu_drain(emu_stream(s), nullptr);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamQuery(cudaStream_t s) {
    EmuStream *stream = emu_stream(s);
    int busy = emu_busy(stream->asked) || (!stream->queue.empty() && emu_not_ready());
    return emu_hangs() || busy ? cudaErrorNotReady : cudaStreamSynchronize(s);
}
static inline cudaError_t cudaDeviceSynchronize(void) {
    for (EmuStream *s : emu_streams()) emu_drain(s, nullptr);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    emu_drain(s, nullptr);
    for (size_t i = 0; i < emu_streams().size(); i++)
        if (emu_streams()[i] == s) emu_streams().erase(emu_streams().begin() + (long)i);
    delete s;
    return cudaSuccess;
}

static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    (void)flags;
    *e = new EmuEvent();
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    std::shared_ptr<EmuPoint> point(new EmuPoint{emu_stream(s), 0, 0, emu_seconds(), emu_hangs()});
    auto reach = [point] {
        point->seconds = emu_seconds();
        point->done = 1;
    };
    e->point = point;
    /* a stream with nothing to do is there already */
    if (emu_stream(s)->queue.empty() && !emu_stream(s)->running) reach();
    else emu_enqueue(s, reach);
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (e->point && !e->point->done) emu_drain(e->point->stream, e->point.get());
    return cudaSuccess;
}
static inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    EmuPoint *p = e->point.get();
    return p && (p->hangs || emu_busy(p->asked) || (!p->done && emu_not_ready())) ? cudaErrorNotReady
                                                                                  : cudaEventSynchronize(e);
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    (void)flags;
    std::shared_ptr<EmuPoint> point = e->point;
    if (!point || point->stream == emu_stream(s)) return cudaSuccess; /* a stream keeps its own order */
    emu_enqueue(s, [point] {
        if (!point->done) emu_drain(point->stream, point.get());
    });
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    cudaEventSynchronize(a), cudaEventSynchronize(b);
    *ms = (float)(1e3 * (b->point->seconds - a->point->seconds));
    return cudaSuccess;
}

static inline cudaError_t cudaMalloc(void **p, size_t bytes) {
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*p) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, (bytes + 255) / 256 * 256);
    EMU_POISON((char *)*p + bytes, (bytes + 255) / 256 * 256 - bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p) {
    cudaDeviceSynchronize();
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *p) {
    cudaDeviceSynchronize();
    free(p);
    return cudaSuccess;
}

/* Host memory of an asynchronous copy must be pinned and stay as it is until the copy is done. */
static inline cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                                          cudaStream_t s) {
    (void)kind;
    if (bytes) emu_enqueue(s, [=] { memmove(dst, src, bytes); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
    for (EmuStream *s : emu_streams())
        if (s->blocking) emu_drain(s, nullptr);
    (void)kind;
    if (bytes) memmove(dst, src, bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) {
    if (bytes) emu_enqueue(s, [=] { memset(p, value, bytes); });
    return cudaSuccess;
}

/* Bytes of dynamic shared memory that kernels have asked for. */
static inline std::map<const void *, size_t> &emu_asked(void) {
    static std::map<const void *, size_t> asked;
    return asked;
}
template <class F> static inline cudaError_t cudaFuncSetAttribute(F kernel, cudaFuncAttribute, int bytes) {
    return emu_asked()[(const void *)kernel] = (size_t)bytes, cudaSuccess;
}
enum { EMU_CUDA = 12000 }; /* the runtime's version */
static inline cudaError_t cudaDriverGetVersion(int *v) {
    return *v = (int)emu_setting("EMU_DRIVER", EMU_CUDA), cudaSuccess;
}
static inline cudaError_t cudaRuntimeGetVersion(int *v) { return *v = EMU_CUDA, cudaSuccess; }
static inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = (int)emu_setting("EMU_DEVICES", 64);
    return emu_setting("EMU_DRIVER", EMU_CUDA) < EMU_CUDA ? cudaErrorInsufficientDriver : cudaSuccess;
}
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
typedef struct {
    char name[256];
    struct {
        char bytes[16];
    } uuid;
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
} cudaDeviceProp;
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    /* EMU_UUID: what this process sees is another GPU than what others do */
    memset(p->uuid.bytes, (int)emu_setting("EMU_UUID", 1 + device), sizeof p->uuid.bytes);
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->major = (int)emu_setting("EMU_ARCH", 80) / 10, p->minor = (int)emu_setting("EMU_ARCH", 80) % 10,
    p->multiProcessorCount = 4;
    p->totalGlobalMem = (size_t)8 << 30;
    return cudaSuccess;
}
typedef enum {
    cudaDevAttrClockRate = 13, cudaDevAttrL2CacheSize = 38, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
} cudaDeviceAttr;
static inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int) {
    *value = what == cudaDevAttrClockRate ? 1410000 : what == cudaDevAttrL2CacheSize ? 40 << 20 : emu_shared_most();
    return cudaSuccess;
}
/* Bytes that this process has taken of the GPU: the arena, NCCL's buffers. */
static inline size_t &emu_taken(void) {
    static size_t taken = 0;
    return taken;
}
static inline size_t emu_memory(void) { return (size_t)emu_setting("EMU_MEMORY", 8192) * 1000000; }
static inline bool emu_take(size_t bytes) {
    return emu_taken() + bytes <= emu_memory() && (emu_taken() += bytes, true);
}
static inline cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = emu_memory(), *available = *total - emu_taken();
    return cudaSuccess;
}
typedef struct {
    int numRegs;
} cudaFuncAttributes;
template <class F> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *, F) {
    return emu_setting("EMU_ARCH", 80) >= emu_setting("EMU_BUILT", 80) ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

/* kernel<<<grid, block, shared, stream>>>(args...): arguments are copied at the call. */
#define LAUNCH(kernel, grid, block, shared, stream, ...) \
    do { \
        dim3 launch_grid = (grid), launch_block = (block); \
        size_t launch_shared = (size_t)(shared); \
        SHARED_ASK(kernel, shared); \
        size_t launch_asked = emu_asked()[(const void *)(kernel)]; \
        auto launch_body = [=]() { emu_call(kernel, __VA_ARGS__); }; \
        emu_enqueue((stream), [=]() { emu_grid(#kernel, launch_grid, launch_block, launch_shared, launch_asked, \
            launch_body, {__FILE__, __LINE__}); }); \
    } while (0)
template <class... P, class... A> static inline void emu_call(void (*kernel)(P...), A... args) { kernel((P)args...); }

#endif

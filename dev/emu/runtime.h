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
   A stream that is captured keeps its operations as nodes of a graph, in which an operation comes after those that its
   stream had waited for, and after nothing else. A launch runs them in such an order: of the first stream first (0),
   of the others first (1), by a coin (2 ..). What CUDA forbids meanwhile fails as it does there, and spoils the graph:
   to wait or to ask, to allocate or to free, to wait for an event from outside; to end before all streams are joined.
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
    cudaErrorNoKernelImageForDevice = 209, cudaErrorNotReady = 600, cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901, cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905, cudaErrorCapturedEvent = 907
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
/* An operation of a graph, and the places of those that must be done before it. */
struct EmuNode {
    std::function<void()> work;
    std::vector<size_t> after;
    bool forked; /* not of the stream that the capture began on */
};
/* A graph; while it is captured, the streams that are. */
struct EmuGraph {
    std::vector<EmuNode> nodes;
    std::vector<struct EmuStream *> streams;
    bool spoiled;
};
struct EmuStream {
    std::deque<std::function<void()>> queue;
    int running, blocking, index; /* index: 0 of calls that name none, 1 of the first that was made, ... */
    double asked;                 /* when something was asked for last */
    std::shared_ptr<EmuGraph> capture; /* NULL: it is not captured */
    std::vector<size_t> last;          /* what its next operation comes after */
};
struct EmuEvent {
    std::shared_ptr<EmuPoint> point; /* of the last record; NULL: none, which counts as reached */
    std::shared_ptr<EmuGraph> capture; /* recorded in a capture: behind these of its operations */
    std::vector<size_t> last;
};
typedef struct EmuStream *cudaStream_t;
typedef struct EmuEvent *cudaEvent_t;

static inline const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorNotReady         ? "not ready"
           : e == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing"
           : e == cudaErrorStreamCaptureInvalidated ? "operation failed due to a previous error during capture"
           : e == cudaErrorStreamCaptureUnjoined    ? "capturing stream has unjoined work"
           : e == cudaErrorStreamCaptureIsolation ? "dependency created on uncaptured work in another stream"
           : e == cudaErrorCapturedEvent ? "operation not permitted on an event last recorded in a capturing stream"
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
    static EmuStream zero = {{}, 0, 1, 0, 0, {}, {}};
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

/* The capture that this thread has begun. */
static inline std::shared_ptr<EmuGraph> &emu_capture(void) {
    static thread_local std::shared_ptr<EmuGraph> capture;
    return capture;
}
/* What a capture does not permit: the error of the call that asked for it. */
static inline cudaError_t emu_spoil(cudaError_t e) {
    if (emu_capture()) emu_capture()->spoiled = true;
    return e;
}
static inline cudaError_t emu_uncaptured(void) {
    return emu_capture() ? emu_spoil(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

static inline void emu_enqueue(cudaStream_t stream, std::function<void()> work) {
    EmuStream *s = emu_stream(stream);
    if (s->capture) {
        s->capture->nodes.push_back({std::move(work), s->last, s != s->capture->streams[0]});
        s->last = {s->capture->nodes.size() - 1};
        return;
    }
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
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    emu_drain(emu_stream(s), nullptr);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamQuery(cudaStream_t s) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    EmuStream *stream = emu_stream(s);
    int busy = emu_busy(stream->asked) || (!stream->queue.empty() && emu_not_ready());
    return emu_hangs() || busy ? cudaErrorNotReady : cudaStreamSynchronize(s);
}
static inline cudaError_t cudaDeviceSynchronize(void) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
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
    e->capture = emu_stream(s)->capture;
    e->last = emu_stream(s)->last;
    if (e->capture) return cudaSuccess;
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
/* May the host ask for it? */
static inline cudaError_t emu_event_known(cudaEvent_t e) {
    return e->capture ? emu_spoil(cudaErrorCapturedEvent) : emu_uncaptured();
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (emu_event_known(e) != cudaSuccess) return emu_event_known(e);
    if (e->point && !e->point->done) emu_drain(e->point->stream, e->point.get());
    return cudaSuccess;
}
static inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    if (emu_event_known(e) != cudaSuccess) return emu_event_known(e);
    EmuPoint *p = e->point.get();
    return p && (p->hangs || emu_busy(p->asked) || (!p->done && emu_not_ready())) ? cudaErrorNotReady
                                                                                  : cudaEventSynchronize(e);
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    (void)flags;
    EmuStream *stream = emu_stream(s);
    if (e->capture != stream->capture) { /* a stream that waits for a captured one is captured, too */
        if (!e->capture || e->capture != emu_capture() || stream->capture)
            return emu_spoil(e->capture ? cudaErrorCapturedEvent : cudaErrorStreamCaptureIsolation);
        stream->capture = e->capture, stream->last = e->last;
        e->capture->streams.push_back(stream);
        return cudaSuccess;
    }
    if (e->capture) return stream->last.insert(stream->last.end(), e->last.begin(), e->last.end()), cudaSuccess;
    std::shared_ptr<EmuPoint> point = e->point;
    if (!point || point->stream == emu_stream(s)) return cudaSuccess; /* a stream keeps its own order */
    emu_enqueue(s, [point] {
        if (!point->done) emu_drain(point->stream, point.get());
    });
    return cudaSuccess;
}
static inline cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    if (a->capture || b->capture) return emu_spoil(cudaErrorCapturedEvent);
    cudaEventSynchronize(a), cudaEventSynchronize(b);
    *ms = (float)(1e3 * (b->point->seconds - a->point->seconds));
    return cudaSuccess;
}

/* ---- graphs ---- */

typedef struct EmuGraphHandle {
    std::shared_ptr<EmuGraph> graph;
} *cudaGraph_t, *cudaGraphExec_t;
typedef enum {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed
} cudaStreamCaptureMode;

static inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (!s || emu_capture()) return emu_spoil(cudaErrorStreamCaptureUnsupported);
    emu_capture() = std::make_shared<EmuGraph>();
    s->capture = emu_capture(), s->last.clear();
    s->capture->streams.push_back(s);
    return cudaSuccess;
}

/* Does the stream that the capture began on come after all operations? */
static inline bool emu_joined(const EmuGraph &g, std::vector<size_t> last) {
    std::vector<bool> seen(g.nodes.size());
    size_t found = 0;
    while (!last.empty()) {
        size_t i = last.back();
        last.pop_back();
        if (seen[i]) continue;
        seen[i] = true, found++;
        last.insert(last.end(), g.nodes[i].after.begin(), g.nodes[i].after.end());
    }
    return found == g.nodes.size();
}

static inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    std::shared_ptr<EmuGraph> g = s->capture;
    *graph = nullptr;
    if (!g || g != emu_capture() || s != g->streams[0]) return emu_spoil(cudaErrorInvalidValue);
    bool joined = emu_joined(*g, s->last);
    for (EmuStream *stream : g->streams) stream->capture = nullptr, stream->last.clear();
    g->streams.clear();
    emu_capture() = nullptr;
    if (g->spoiled) return cudaErrorStreamCaptureInvalidated;
    if (!joined) return cudaErrorStreamCaptureUnjoined;
    *graph = new EmuGraphHandle{g};
    return cudaSuccess;
}
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph, unsigned long long) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    return *run = new EmuGraphHandle{graph->graph}, cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t run) { return delete run, cudaSuccess; }

static inline void emu_run_graph(const EmuGraph &g) {
    std::vector<bool> done(g.nodes.size());
    static uint64_t state;
    int mode = emu_streams_mode();
    for (size_t left = g.nodes.size(); left; left--) {
        size_t next = g.nodes.size();
        bool first = mode == 1 || (mode > 1 && emu_coin(&state)); /* those of other streams */
        for (size_t i = 0; i < g.nodes.size() && (next == g.nodes.size() || g.nodes[next].forked != first); i++) {
            bool ready = !done[i];
            for (size_t before : g.nodes[i].after) ready = ready && done[before];
            if (ready && (next == g.nodes.size() || g.nodes[i].forked == first)) next = i;
        }
        g.nodes[next].work();
        done[next] = true;
    }
}
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t s) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    std::shared_ptr<EmuGraph> g = run->graph;
    emu_enqueue(s, [g] { emu_run_graph(*g); });
    return cudaSuccess;
}

/* ---- memory ---- */

static inline cudaError_t cudaMalloc(void **p, size_t bytes) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!*p) return cudaErrorMemoryAllocation;
    memset(*p, 0xff, (bytes + 255) / 256 * 256);
    EMU_POISON((char *)*p + bytes, (bytes + 255) / 256 * 256 - bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaFree(void *p) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    cudaDeviceSynchronize();
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaMallocHost(void **p, size_t bytes) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
    *p = malloc(bytes ? bytes : 1);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaFreeHost(void *p) {
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
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
    if (emu_uncaptured() != cudaSuccess) return cudaErrorStreamCaptureUnsupported;
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

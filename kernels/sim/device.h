/* device.h - a cluster's rank as a device: no memory, no streams, only clocks (types.h) and figures (cluster.h). */
#ifndef ODYSSEUS_SIM_DEVICE_H
#define ODYSSEUS_SIM_DEVICE_H

#include "../cpu/scratch.h"
#include "../cuda/scratch.h"
#include "cluster.h"

#include <sys/mman.h>

typedef struct {
    const Cluster *cluster;
    int threads, sharing; /* one process, one rank */
    uint64_t identity;
} DevicePlace;

#define DEVICE_IS_HOST 0
#define DEVICE_RESERVE 0 /* the cluster says it */
#define MEMORY_OWNER "rank"
#define PEAK_ORIGIN "the cluster's"

/* FLOP/s of a rank in the compute type that is modelled; 0: it has none. */
static inline double device_peak_of(const Cluster *c) { return c->peak[sim_program()->dtype]; }
static inline double device_peak(const DevicePlace *p) { return device_peak_of(p->cluster); }

static inline int device_peak_is_stated(const DevicePlace *p) {
    (void)p;
    return 1;
}

static inline int device_is_synchronous(void) { return !sim_program()->gpu; }

/* The trainer's own way to a device: a modelled one is placed by the simulator's main. */
static inline DevicePlace device_place(int local, int locals, int threads) {
    DevicePlace p = {NULL, 1, locals, 0};
    (void)local, (void)threads;
    return p;
}

static inline void device_open(DevicePlace *p) { (void)p; }
static inline void device_check_comm(const DevicePlace *p, const char *comm) { (void)p, (void)comm; }

/* Bytes that the arena of a rank may have; `links`: communicators of its mesh. */
static inline i64 cluster_memory(const Cluster *c, int links) {
    return (i64)(c->memory - c->reserved - links * c->communicator);
}
static inline i64 device_memory_available(void) { return 0; }
static inline void device_print_reserve(const DevicePlace *p, const char *comm, int links) {
    const Cluster *c = p->cluster;
    (void)comm;
    if (c->communicator > 0)
        printf("reserve  %.2f GB besides: %.2f GB for CUDA, %.2f GB for each of %d communicators\n",
               (c->reserved + links * c->communicator) / 1e9, c->reserved / 1e9, c->communicator / 1e9, links);
}

/* All clocks at zero. */
static inline void device_init(Device *dev, const DevicePlace *p, int imagined) {
    memset(dev, 0, sizeof *dev);
    dev->threads = dev->host_threads = p->threads;
    dev->imagined = imagined;
    dev->state.cluster = p->cluster;
}

static inline void device_free(Device *dev) { (void)dev; }

/* The clocks go on by `times` times what they went since `before`, and so does where the time went. */
static inline void device_state_repeat(DeviceState *s, const DeviceState *before, i64 times) {
    double n = (double)times, passed = n * (fmax(s->compute, s->host) - fmax(before->compute, before->host));
    s->host += passed, s->compute += passed, s->comm += passed, s->copies += passed;
    s->copy_seconds += n * (s->copy_seconds - before->copy_seconds);
    s->copy_exposed += n * (s->copy_exposed - before->copy_exposed);
    for (int i = 0; i < OP_CLASSES; i++) s->op_seconds[i] += n * (s->op_seconds[i] - before->op_seconds[i]);
    for (int i = 0; i < COMM_OPS; i++) {
        s->comm_seconds[i] += n * (s->comm_seconds[i] - before->comm_seconds[i]);
        s->comm_exposed[i] += n * (s->comm_exposed[i] - before->comm_exposed[i]);
    }
    s->exposed += n * (s->exposed - before->exposed);
}

/* A moment of the trace: when the next operation could begin. */
static inline void marks_begin(Device *dev) { (void)dev; }
static inline Mark device_mark(Device *dev) { return fmax(dev->state.compute, dev->state.host); }
static inline double mark_seconds(const Device *dev, Mark m) {
    (void)dev;
    return m;
}

/* The host's modelled clock. Waiting for a transfer is counted where the transfer is. */
static inline double host_seconds(const Device *dev) { return dev->state.host; }

static inline i64 device_scratch_bytes(i64 rows, i64 widest, i64 vocab, const AttentionShape *s) {
    return sim_program()->gpu ? cuda_scratch_bytes(rows, widest, vocab, s) : (i64)CPU_SCRATCH;
}
static inline void device_scratch(Device *dev, void *scratch, i64 bytes) { (void)dev, (void)scratch, (void)bytes; }

/* Heads that the modelled program's kernels refuse are refused here, too. */
static inline const char *device_refuses_heads(i64 head_dim) {
    return sim_program()->gpu ? cuda_refuses_heads(head_dim) : cpu_refuses_heads(head_dim);
}

static inline void device_print(const DevicePlace *p) { printf("modelled: %s", p->cluster->name); }
static inline void device_note(const DevicePlace *p) { (void)p; }
static inline void device_finish(Device *dev) { (void)dev; }

/* ---- copies to the host on a link of their own ---- */

static inline void *host_pinned(Device *dev, i64 bytes) {
    (void)dev, (void)bytes;
    return NULL;
}
static inline void host_unpinned(Device *dev, void *p, i64 bytes) { (void)dev, (void)p, (void)bytes; }

static inline void host_copy_start(Device *dev, HostCopy *c, void *dst, const void *src, i64 bytes) {
    DeviceState *s = &dev->state;
    double seconds = (double)bytes / s->cluster->host_link;
    (void)dst, (void)src;
    s->host += s->cluster->launch;
    s->copies = c->ended = fmax(s->copies, fmax(s->compute, s->host)) + seconds;
    s->copy_seconds += seconds;
}

static inline void host_copy_wait(Device *dev, HostCopy *c) {
    DeviceState *s = &dev->state;
    double exposed = fmax(0, c->ended - s->compute);
    s->compute += exposed, s->copy_exposed += exposed;
}
static inline void host_copy_free(HostCopy *c) { (void)c; }

/* ---- the arena: addresses without memory ---- */

static inline void *memory_reserve(Device *dev, i64 bytes) {
    (void)dev;
    void *base = mmap(NULL, (size_t)bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? NULL : base;
}

static inline int memory_commit(Device *dev, void *base, i64 bytes) {
    (void)dev, (void)base, (void)bytes;
    return 0;
}

static inline void memory_release(Device *dev, void *base, i64 reserved, i64 committed) {
    (void)dev, (void)committed;
    munmap(base, (size_t)reserved);
}

#endif

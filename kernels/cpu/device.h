/* device.h - the CPU as a device: how many threads a rank gets, and what the cores could do at best.

   cores of this host (those whose time its control group gives it, if that is less) / ranks on this host,
   within the affinity mask, if a launcher bound the rank = threads that are planned; threads of a rank = the
   team that OpenMP then grants (OMP_THREAD_LIMIT, ...). peak of a rank = measured multiply-add rate of one core
   x the cores it may count on.                                                                                       */
#ifndef ODYSSEUS_CPU_DEVICE_H
#define ODYSSEUS_CPU_DEVICE_H

#include "../../core/cgroup.h"
#include "../device.h"
#include "scratch.h"
#include "vector.h"
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>

typedef struct {
    int cores;    /* of this host */
    int mask;     /* that this rank may run on */
    int planned;  /* threads that it asks for */
    int threads;  /* that it will use */
    int sharing;  /* ranks on this host */
    double limit; /* cores' worth of time that control groups give those ranks together; 0: no limit */
    double share; /* cores this rank can count on: less than one when ranks outnumber cores */
    uint64_t identity; /* 0: the host itself, whose ranks are known */
} DevicePlace;

/* Threads and cores of rank `local` among `locals` ranks on a host of `cores`, `mask` of which it may use, with
   `limit` cores' worth of time (0: all); `threads` 0: decide. A part of a core is rounded up to one more
   thread, for all ranks together. */
static inline DevicePlace cpu_place(int cores, int mask, double limit, int locals, int threads) {
    DevicePlace p;
    memset(&p, 0, sizeof p);
    p.cores = cores, p.mask = mask, p.sharing = locals;
    p.limit = limit > 0 && limit < cores ? limit : 0;
    double given = p.limit > 0 ? p.limit : cores;
    p.share = given / locals;
    if (p.share > mask) p.share = mask;
    p.planned = threads ? threads : (int)i64_max(i64_min((i64)ceil(given) / locals, mask), 1);
    if (p.share > p.planned) p.share = p.planned;
    p.threads = p.planned;
    return p;
}

/* The same for this process's host. */
static inline DevicePlace device_place(int local, int locals, int threads) {
    (void)local;
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t set;
    return cpu_place(cores, sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : cores, host_cores_limit(""),
                     locals, threads);
}

/* The team that OpenMP grants where `threads` are asked for, now and whenever they are again. Whoever counted on more,
   as a library may, would leave a part of the work undone. */
static inline int team_granted(int threads) {
    int granted = 1;
    omp_set_dynamic(0); /* else it grants another number every time, by the load */
    omp_set_num_threads(threads);
#pragma omp parallel num_threads(threads)
#pragma omp single
    granted = omp_get_num_threads();
    omp_set_num_threads(granted);
    return granted;
}

/* Look at the device: a host is always there, but its threads may not be. */
static inline void device_open(DevicePlace *p) {
    p->identity = 0;
    p->threads = team_granted(p->planned);
    if (p->share > p->threads) p->share = p->threads;
}
static inline void device_check_comm(const DevicePlace *p, const char *comm) { (void)p, (void)comm; }

/* The host's memory was asked for what is free. */
static inline void device_print_reserve(const DevicePlace *p, const char *comm, int links) {
    (void)p, (void)comm, (void)links;
}

static inline i64 device_memory_available(void) { return host_memory_available(""); }

/* Make `dev` ready for the rank placed at `p`; a dry run has none (`imagined`). device_free. */
static inline void device_init(Device *dev, const DevicePlace *p, int imagined) {
    memset(dev, 0, sizeof *dev);
    dev->imagined = imagined;
    dev->threads = dev->host_threads = imagined ? p->threads : team_granted(p->threads);
}

static inline void device_free(Device *dev) { (void)dev; }

/* A device that computes has no time to make up. */
static inline void device_state_repeat(DeviceState *s, const DeviceState *before, i64 times) {
    (void)s, (void)before, (void)times;
}

/* The host's clock. */
static inline double host_seconds(const Device *dev) {
    (void)dev;
    return seconds_now();
}

/* What operations on `rows` rows of at most `widest` numbers, `vocab` words and attention of `s` need besides. */
static inline i64 device_scratch_bytes(i64 rows, i64 widest, i64 vocab, const AttentionShape *s) {
    (void)rows, (void)widest, (void)vocab, (void)s;
    return CPU_SCRATCH;
}

static inline void device_scratch(Device *dev, void *scratch, i64 bytes) {
    (void)bytes;
    dev->state.scratch = (real *)scratch;
}

static inline const char *device_refuses_heads(i64 head_dim) { return cpu_refuses_heads(head_dim); }

/* One line for the start-up printout. */
static inline void device_print(const DevicePlace *p) {
    printf("%d thread%s a rank, %d cores on this host", p->threads, p->threads == 1 ? "" : "s", p->cores);
}

/* What the user should know about the place; prints nothing if all is well. */
static inline void device_note(const DevicePlace *p) {
    if (p->threads < p->planned)
        printf("note     OpenMP grants %d of the %d threads planned (OMP_THREAD_LIMIT, OMP_MAX_ACTIVE_LEVELS)\n",
               p->threads, p->planned);
    if (p->limit > 0)
        printf("note     the control group of this process gives it the time of %g of %d cores (cpu.max)\n", p->limit,
               p->cores);
    if (p->mask < p->cores)
        printf("note     this rank may run on %d of %d cores (launcher binding); mpirun --bind-to none lifts it\n",
               p->mask, p->cores);
}

/* Wait until everything asked for is done: at once. */
static inline void device_finish(Device *dev) { (void)dev; }

/* A moment is known at once. */
static inline void marks_begin(Device *dev) { (void)dev; }
static inline Mark device_mark(Device *dev) {
    (void)dev;
    return seconds_now();
}
static inline double mark_seconds(const Device *dev, Mark m) {
    (void)dev;
    return m;
}

/* Host and device share their memory here: what is in it may be used where it is. A test may say otherwise. */
#ifndef DEVICE_IS_HOST
#define DEVICE_IS_HOST 1
#endif

static inline void copy_in_run(Device *dev, void *dst, const void *src, i64 bytes) {
    (void)dev;
    memcpy(dst, src, (size_t)bytes);
}

static inline void copy_out_run(Device *dev, void *dst, const void *src, i64 bytes) {
    copy_in_run(dev, dst, src, bytes);
}

/* ---- copies to the host on a way of their own: here there is none, and a copy is as late as may be ---- */

static inline void *host_pinned(Device *dev, i64 bytes) {
    (void)dev;
    return malloc((size_t)bytes);
}
static inline void host_unpinned(Device *dev, void *p, i64 bytes) {
    (void)dev, (void)bytes;
    free(p);
}
static inline void host_copy_start(Device *dev, HostCopy *c, void *dst, const void *src, i64 bytes) {
    (void)dev;
    c->dst = dst, c->src = src, c->bytes = bytes;
}
static inline void host_copy_wait(Device *dev, HostCopy *c) {
    (void)dev;
    if (c->bytes) memcpy(c->dst, c->src, (size_t)c->bytes);
    c->bytes = 0;
}
static inline void host_copy_free(HostCopy *c) { c->bytes = 0; }

/* ---- the arena's memory: an inaccessible range, of which the first part becomes real ---- */

#define DEVICE_RESERVE 0
#define MEMORY_OWNER "host"

/* NULL: no range of this size. */
static inline void *memory_reserve(Device *dev, i64 bytes) {
    (void)dev;
    void *base = mmap(NULL, (size_t)bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? NULL : base;
}

/* Zero-filled. 0: not enough memory. */
static inline int memory_commit(Device *dev, void *base, i64 bytes) {
    (void)dev;
    if (mprotect(base, (size_t)bytes, PROT_READ | PROT_WRITE) != 0) return 0;
    madvise(base, (size_t)bytes, MADV_HUGEPAGE); /* fewer TLB misses; where refused, nothing changes */
    return 1;
}

static inline void memory_release(Device *dev, void *base, i64 reserved, i64 committed) {
    (void)dev, (void)committed;
    munmap(base, (size_t)reserved);
}

/* Chains of multiply-adds that fill the registers but for two: a multiply-add takes four or five cycles, and two begin
   in each (four on NEON). Were one more than fit, the loop would measure the memory instead. */
#if defined __AVX512F__ || defined __aarch64__
#define CPU_CHAINS 24
#else
#define CPU_CHAINS 12
#endif

/* One round. On x86 the result may overwrite the factor; on NEON only the addend, so the next chain's
   old value is the factor there. */
static inline void cpu_chains_round(Vector *chain, Vector scale, Vector shift) {
#pragma GCC unroll 24
    for (int c = 0; c < CPU_CHAINS; c++) {
#ifdef __aarch64__
        (void)scale;
        chain[c] += chain[(c + 1) % CPU_CHAINS] * shift;
#else
        chain[c] = chain[c] * scale + shift;
#endif
    }
}

/* FLOP/s of one core: independent chains in registers, the best of many trials too short to be interrupted, over
   the time that a clock takes to rise. The chains start from different numbers, else the compiler would merge
   them; no number leaves [0, 4]. */
static inline double cpu_core_peak(void) {
    const int trials = 40, rounds = 20000;
    const double enough = 0.05, start = seconds_now();
    const Vector scale = vector_all((real)(1 - 1e-6)), shift = vector_all((real)1e-6);
    Vector chain[CPU_CHAINS];
    for (int c = 0; c < CPU_CHAINS; c++) chain[c] = vector_all((real)1 + (real)c / CPU_CHAINS);
    double best = 0;
    for (int trial = 0; trial < trials || seconds_now() - start < enough; trial++) {
        double begin = seconds_now();
        for (int r = 0; r < rounds; r++) cpu_chains_round(chain, scale, shift);
        for (int c = 0; c < CPU_CHAINS; c++) __asm__ volatile("" : : "m"(chain[c])); /* the result is needed */
        double rate = 2.0 * VECTOR_WIDTH * CPU_CHAINS * rounds / (seconds_now() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

#define PEAK_ORIGIN "measured"

/* Is the peak known, and not measured or guessed? Only then is a rate above it an error. */
static inline int device_peak_is_stated(const DevicePlace *p) {
    (void)p;
    return 0;
}

/* FLOP/s that the rank placed at `p` could reach. */
static inline double device_peak(const DevicePlace *p) { return cpu_core_peak() * p->share; }

#endif

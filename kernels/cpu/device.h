/* device.h - the CPU as a device: how many threads a rank gets, and what the cores could do at best.

   cores of this host (or of the affinity mask, if a launcher bound the rank) / ranks on this host = threads of a rank.
   peak of a rank = measured fused multiply-add rate of one core x the cores it may count on.                          */
#ifndef ODYSSEUS_CPU_DEVICE_H
#define ODYSSEUS_CPU_DEVICE_H

#include <omp.h>
#include <sched.h>
#include <sys/mman.h>

typedef struct {
    int cores;    /* of this host */
    int mask;     /* that this rank may run on */
    int threads;  /* that it will use */
    int sharing;  /* ranks on this host */
    double share; /* cores this rank can count on: less than one when ranks outnumber cores */
    uint64_t identity; /* 0: the host itself, whose ranks are known */
} DevicePlace;

/* Threads and cores of rank `local` among `locals` ranks on this host; `threads` 0: decide. */
static inline DevicePlace device_place(int local, int locals, int threads) {
    (void)local;
    DevicePlace p = {(int)sysconf(_SC_NPROCESSORS_ONLN), 0, threads, locals, 0, 0};
    cpu_set_t set;
    p.mask = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : p.cores;
    p.share = (double)p.cores / locals;
    if (p.share > p.mask) p.share = p.mask;
    if (!p.threads) p.threads = p.share < 1 ? 1 : (int)p.share;
    if (p.share > p.threads) p.share = p.threads;
    return p;
}

/* Look at the device; a host is always there. */
static inline void device_open(DevicePlace *p) { p->identity = 0; }
static inline void device_check_comm(const DevicePlace *p, const char *comm) { (void)p, (void)comm; }

/* The number that follows `key` in a small system file, times `unit`; 0 where there is none. */
static inline i64 system_number(const char *path, const char *key, i64 unit) {
    char line[256];
    long long value = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%lld", &value) == 1) break;
    if (f) fclose(f);
    return value * unit;
}

/* Bytes that this host (or the control group around this process) can still give; 0: not known. */
static inline i64 device_memory_available(void) {
    i64 host = system_number("/proc/meminfo", "MemAvailable:", 1024);
    i64 limit = system_number("/sys/fs/cgroup/memory.max", "", 1), used = system_number("/sys/fs/cgroup/memory.current", "", 1);
    return limit > 0 && limit - used < host ? i64_max(limit - used, 1) : host;
}

/* Make `dev` ready for the rank placed at `p`; a dry run has none (`imagined`). device_free. */
static inline void device_init(Device *dev, const DevicePlace *p, int imagined) {
    memset(dev, 0, sizeof *dev);
    dev->imagined = imagined;
    dev->threads = dev->host_threads = p->threads;
    omp_set_num_threads(p->threads);
}

static inline void device_free(Device *dev) { (void)dev; }

/* A device that computes has no time to make up. */
static inline void device_state_repeat(DeviceState *s, const DeviceState *before, i64 times) { (void)s, (void)before, (void)times; }

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
    printf("%d threads a rank, %d cores on this host", p->threads, p->cores);
}

/* What the user should know about the place; prints nothing if all is well. */
static inline void device_note(const DevicePlace *p) {
    if (p->mask < p->cores)
        printf("note     this rank may run on %d of %d cores (launcher binding); mpirun --bind-to none lifts it\n", p->mask, p->cores);
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

/* Host and device share their memory here. */
static inline void copy_in_run(Device *dev, void *dst, const void *src, i64 bytes) {
    (void)dev;
    memcpy(dst, src, (size_t)bytes);
}

static inline void copy_out_run(Device *dev, void *dst, const void *src, i64 bytes) { copy_in_run(dev, dst, src, bytes); }

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

/* Chains of multiply-adds that fill the registers but for two: a multiply-add takes four or five cycles, and two begin in each (four on
   NEON). Were one more than fit, the loop would measure the memory instead. */
#if defined __AVX512F__ || defined __aarch64__
#define CPU_CHAINS 24
#else
#define CPU_CHAINS 12
#endif

/* One round. On x86 the result may overwrite the factor; on NEON only the addend, so the next chain's old value is the factor there. */
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

/* FLOP/s of one core: independent chains in registers, the best of many trials too short to be interrupted, over the time that a clock
   takes to rise. The chains start from different numbers, else the compiler would merge them; no number leaves [0, 4]. */
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

/* FLOP/s that the rank placed at `p` could reach. */
static inline double device_peak(const DevicePlace *p) { return cpu_core_peak() * p->share; }

#endif

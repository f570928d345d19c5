/* device.h - the CPU as a device: how many threads a rank gets, and what the cores could do at best.

   cores of this host (or of the affinity mask, if a launcher bound the rank) / ranks on this host = threads of a rank.
   peak of a rank = measured fused multiply-add rate of one core x the cores it may count on.                          */
#ifndef ODYSSEUS_CPU_DEVICE_H
#define ODYSSEUS_CPU_DEVICE_H

#include <omp.h>
#include <sched.h>

typedef struct {
    int cores;    /* of this host */
    int mask;     /* that this rank may run on */
    int threads;  /* that it will use */
    double share; /* cores this rank can count on: less than one when ranks outnumber cores */
} DevicePlace;

/* Threads and cores of a rank among `locals` ranks on this host; `threads` 0: decide. */
static inline DevicePlace device_place(int locals, int threads) {
    DevicePlace p = {(int)sysconf(_SC_NPROCESSORS_ONLN), 0, threads, 0};
    cpu_set_t set;
    p.mask = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : p.cores;
    p.share = (double)p.cores / locals;
    if (p.share > p.mask) p.share = p.mask;
    if (!p.threads) p.threads = p.share < 1 ? 1 : (int)p.share;
    if (p.share > p.threads) p.share = p.threads;
    return p;
}

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

static inline void device_init(Device *dev, int threads) {
    memset(dev, 0, sizeof *dev);
    dev->threads = threads;
    omp_set_num_threads(threads);
}

/* Host and device share their memory here. */
static inline void copy_in_run(Device *dev, void *dst, const void *src, i64 bytes) {
    (void)dev;
    memcpy(dst, src, (size_t)bytes);
}

static inline void copy_out_run(Device *dev, void *dst, const void *src, i64 bytes) { copy_in_run(dev, dst, src, bytes); }

/* 512-bit vectors become two or four narrower ones where the machine has no AVX-512; sixteen chains hide the latency. */
typedef real CpuVector __attribute__((vector_size(64)));
#define CPU_CHAINS 16

/* FLOP/s of one core: independent multiply-add chains in registers, the best of several short trials. */
static inline double cpu_core_peak(void) {
    const int rounds = 100000, width = (int)(sizeof(CpuVector) / sizeof(real));
    CpuVector chain[CPU_CHAINS], scale, shift;
    for (int i = 0; i < width; i++) scale[i] = (real)0.999, shift[i] = (real)0.001;
    for (int c = 0; c < CPU_CHAINS; c++) chain[c] = shift;
    double best = 0;
    for (int trial = 0; trial < 8; trial++) {
        double begin = seconds_now();
        for (int r = 0; r < rounds; r++) {
#pragma GCC unroll 16
            for (int c = 0; c < CPU_CHAINS; c++) chain[c] = chain[c] * scale + shift;
        }
        for (int c = 0; c < CPU_CHAINS; c++) __asm__ volatile("" : : "m"(chain[c])); /* the result is needed */
        double rate = 2.0 * width * CPU_CHAINS * rounds / (seconds_now() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

/* FLOP/s that the rank placed at `p` could reach. */
static inline double device_peak(const DevicePlace *p) { return cpu_core_peak() * p->share; }

#endif

/* types.h - the numbers of the CPU backend: fp32, or fp64 in the referee; compute and
   accumulation type are the same. */
#ifndef ODYSSEUS_CPU_TYPES_H
#define ODYSSEUS_CPU_TYPES_H

#include "../../core/util.h"

#ifdef ODYSSEUS_FP64
typedef double real;
typedef double accum;
typedef int64_t real_bits;
#define REAL_NAME "fp64"
#else
typedef float real;
typedef float accum;
typedef int32_t real_bits;
#define REAL_NAME "fp32"
#endif

static inline i64 real_size(void) { return (i64)sizeof(real); }
static inline i64 accum_size(void) { return (i64)sizeof(accum); }

/* Bytes of logits that are held at once, about. */
static inline i64 logits_bytes(void) { return (i64)64 << 20; }

/* A value of the compute type, and back. */
static inline real real_from(double x) { return (real)x; }
static inline double real_value(real x) { return (double)x; }

/* A moment: seconds_now. */
typedef double Mark;

/* A copy between host and device that is made when it is waited for; bytes 0: none is due. */
typedef struct {
    void *dst;
    const void *src;
    i64 bytes;
} HostCopy;

/* What the backend keeps besides: where products pack their operands (CPU_SCRATCH bytes, aligned to a cache line). */
typedef struct {
    real *scratch;
} DeviceState;

#endif

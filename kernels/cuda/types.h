/* types.h - the numbers of the CUDA backend: bf16 to compute with, fp32 for sums, statistics,
   gradients and optimizer state. */
#ifndef ODYSSEUS_CUDA_TYPES_H
#define ODYSSEUS_CUDA_TYPES_H

#include "cuda.h"

typedef bf16 real;
typedef float accum;
#define REAL_NAME "bf16"

static inline i64 real_size(void) { return (i64)sizeof(real); }
static inline i64 accum_size(void) { return (i64)sizeof(accum); }

/* Bytes of logits that are held at once, about. Every chunk of r rows adds to the gradient of the head's
   weights, with 2r FLOP for each 8 bytes of it. A GPU does some 300 FLOP while a byte comes and another goes, so
   it wants thousands of rows. */
static inline i64 logits_bytes(void) { return (i64)256 << 20; }

/* A value of the compute type, and back. */
static inline real real_from(double x) { return bf16_round((float)x); }
static inline double real_value(real x) { return (double)bf16_float(x); }

/* A moment: an event of the device's pool. */
typedef int Mark;

/* Events with times, used again every traced step. The first is where the device's time and
   the host's are known to agree. */
typedef struct {
    cudaEvent_t *event;
    int used, room;
    double origin;       /* the host's seconds at event 0 */
    cudaStream_t idle;   /* has nothing to do: an event in it is when the host asked */
} MarkPool;

/* Pinned memory that copies from the host go through, slot after slot: tokens and targets of two
   micro-batches may be under way. */
enum { PINNED_SLOTS = 4, PINNED_BYTES = 4 << 20 };
typedef struct {
    void *host;
    cudaEvent_t done; /* the device has read it */
} PinnedSlot;

/* A copy between host and device, on the stream of such copies. */
typedef struct {
    cudaEvent_t done; /* made with the first use */
} HostCopy;

/* What the backend keeps of a rank's GPU. Every operation runs on `stream`, in the order of the calls, and may use
   `scratch`, which the next operation overwrites. */
typedef struct {
    cudaStream_t stream;
    char *scratch;
    i64 scratch_bytes;
    /* where the oldest transfer begins that this stream has not waited for; NULL: there is none */
    cudaEvent_t transfer;
    int index; /* of the GPU on this host */
    int multiprocessors;
    i64 shared_bytes; /* that a block may ask for */
    int wgmma;        /* it has the instructions of sm_90a, and the kernels that use them were compiled */
    struct GemmState *gemm; /* gemm.cuh's handle and plans */
    cudaStream_t copies; /* between pinned host memory and device, beside `stream`; made with the first of them */
    cudaEvent_t copies_ready;
    MarkPool marks;
    PinnedSlot pinned[PINNED_SLOTS];
    unsigned pinned_next;
} DeviceState;

#endif

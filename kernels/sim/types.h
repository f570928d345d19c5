/* types.h - the numbers of the simulator: none are computed, so `real` and `accum` have the sizes
   of the program that is modelled.

   The sizes are set once, at the start, and hold for the process: formulas of bytes ask for them
   where no device is at hand.                                                                                        */
#ifndef ODYSSEUS_SIM_TYPES_H
#define ODYSSEUS_SIM_TYPES_H

#include "../../core/ledger.h"

typedef float real;   /* what pointers point at; nothing is ever read or written through them */
typedef double accum;

/* The compute type that is modelled, by its row in SIM_DTYPES. */
typedef struct {
    const char *name;
    i64 real_bytes, accum_bytes;
} SimDtype;

/* bf16-only: software, not this one, that keeps gradients, moments and sums in bf16, too. */
static const SimDtype SIM_DTYPES[] = {{"bf16", 2, 4}, {"fp32", 4, 4}, {"fp64", 8, 8}, {"bf16-only", 2, 2}};
enum { SIM_DTYPE_COUNT = 4 };

/* Which program is modelled: its compute type, by row of SIM_DTYPES, and whether it is the one for GPUs. */
typedef struct {
    int dtype, gpu;
} SimProgram;

static inline SimProgram *sim_program(void) {
    static SimProgram program = {0, 1};
    return &program;
}

static inline i64 real_size(void) { return SIM_DTYPES[sim_program()->dtype].real_bytes; }
static inline i64 accum_size(void) { return SIM_DTYPES[sim_program()->dtype].accum_bytes; }
#define REAL_NAME SIM_DTYPES[sim_program()->dtype].name

/* Bytes of logits that the modelled program holds at once. */
static inline i64 logits_bytes(void) { return (i64)(real_size() == accum_size() ? 64 : 256) << 20; }

static inline real real_from(double x) { return (real)x; }
static inline double real_value(real x) { return (double)x; }

/* A moment on the modelled clocks, in seconds. */
typedef double Mark;

struct Cluster;

/* How the groups of one axis of the mesh lie on the nodes. */
typedef struct {
    i64 size, inner, stride; /* which axis */
    i64 least, most;         /* ranks of a group on one node: the fewest and the most that occur */
    i64 nodes;               /* that a group spans, at most */
    i64 leaving;             /* ranks of one node whose next in the group is on another, at most */
} GroupPlace;

#define GROUP_PLACES 8

/* A copy between a rank and its host: when it is over, on the clock of such copies. */
typedef struct {
    double ended;
} HostCopy;

/* The modelled clocks of one rank, in seconds from the start, and where the time went. `host` asks for operations, the
   compute stream runs them, the comm stream moves bytes, the copies' stream those to and from the host; on a CPU the
   host is the compute stream. */
typedef struct {
    const struct Cluster *cluster;
    double host, compute, comm, copies;
    double copy_seconds, copy_exposed;                     /* on the host link; of that, what was waited for */
    double op_seconds[8];                                  /* by OpClass: time on the compute stream */
    double comm_seconds[COMM_OPS], comm_exposed[COMM_OPS]; /* on the links; of that, what was waited for */
    double exposed;                                        /* since links_exposed last asked */
    GroupPlace place[GROUP_PLACES];                        /* of the axes met so far */
    int places;
} DeviceState;

#endif

/* ranges.h - where the host is in a step, as NVTX ranges (--nvtx): Nsight Systems shows them above the kernels that
   were launched in them.

   step 3 [ micro-step 0 [ layer 2 attention forward [ all_gather parameter ] ] [ layer 2 mlp forward ] ... ]

   They begin where the spans of a trace do, and nest: a range ends what is open on its own level and below. Off, each
   is one comparison; on without a tool that listens, a call that returns at once.                                   */
#ifndef ODYSSEUS_RANGES_H
#define ODYSSEUS_RANGES_H

#include "trace.h"

/* NVTX is a header of the CUDA toolkit, which some packages of it leave out. */
#if defined ODYSSEUS_CUDA && __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define HAS_RANGES 1
#else
#define nvtxRangePushA(name) ((void)(name))
#define nvtxRangePop() ((void)0)
#define HAS_RANGES 0
#endif

typedef enum { RANGE_STEP, RANGE_MICRO_STEP, RANGE_PART, RANGE_COLLECTIVE, RANGES } RangeLevel;

typedef struct {
    int on, open;             /* open: how many are */
    RangeLevel level[RANGES]; /* of those, from the outermost on */
    BlockKind block;          /* of the last part */
    int layer;
    Phase phase;
} Ranges;

/* End what is open on this level and below. */
static inline void range_end(Ranges *r, RangeLevel level) {
    for (; r->open && r->level[r->open - 1] >= level; r->open--) nvtxRangePop();
}

static inline void range_begin(Ranges *r, RangeLevel level, const char *name) {
    range_end(r, level);
    r->level[r->open++] = level;
    nvtxRangePushA(name);
}

/* `what` and a number, as step 3; from 0. */
static inline void range_number(Ranges *r, RangeLevel level, const char *what, i64 number) {
    char name[48];
    if (!r->on) return;
    snprintf(name, sizeof name, "%s %lld", what, number);
    range_begin(r, level, name);
}

static inline void range_part(Ranges *r, BlockKind block, int layer, Phase phase) {
    char name[48];
    int same = r->open && r->level[r->open - 1] == RANGE_PART && r->block == block && r->layer == layer &&
               r->phase == phase;
    if (!r->on || same) return;
    r->block = block, r->layer = layer, r->phase = phase;
    part_name(name, sizeof name, block, layer, phase);
    range_begin(r, RANGE_PART, name);
}

static inline void range_collective(Ranges *r, CommOp op, What what) {
    char name[48];
    if (!r->on) return;
    snprintf(name, sizeof name, "%s %s", COMM_OP_NAMES[op], WHAT_NAMES[what]);
    range_begin(r, RANGE_COLLECTIVE, name);
}

#endif

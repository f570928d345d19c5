/* trace.h - what a rank did and when: spans of time on two tracks, recorded during the first steps of a run (--trace).

   compute   [ step 0 [ layer 3 mlp backward [ linear_backward_weight ] [ wait all_gather ] ... ] ]
             a span lies in the one opened before it
   comm      [ all_gather ] [ reduce_scatter ]
             from a transfer's start until it is over; lanes, where several fly at once

   A span begins and ends with a mark: a moment as the backend knows it, taken without making anybody wait. Once the
   step is over and the device has passed its marks, they become seconds. A backend brings
     types.h    Mark           CPU: seconds of the host's clock; CUDA: an event in a stream;
                               simulator: seconds of its modelled clock
     device.h   marks_begin    the device is idle: marks taken before are not asked for any more
                device_mark    now, in the order of what the device has been asked to do
                mark_seconds   when that was, on a clock of this rank
     comm_*.h   Transfer has the marks `began` and `ended`, the second known after transfer_wait
   compute.h opens a span for every operation, comm.h for every transfer and every wait, the
   walk names the parts of the step.

   Memory is bounded: spans that find no room are counted and left out. core/timeline.h writes the file.              */
#ifndef ODYSSEUS_TRACE_H
#define ODYSSEUS_TRACE_H

#include "../core/ledger.h"
#include "types.h"

typedef enum { SPAN_STEP, SPAN_PART, SPAN_OP, SPAN_WAIT, SPAN_TRANSFER } SpanKind;

typedef struct {
    SpanKind kind;
    int number;          /* of a step among the traced ones; OpClass of an operation */
    char name[48];
    BlockKind block;     /* where in the step; `layer` -1: in none */
    Phase phase;
    int layer;
    What what;           /* of transfers and waits: what moves, over how many ranks */
    int ranks;
    double flop, bytes;  /* of an operation; of a transfer, the bytes that this rank sends */
    i64 memory;          /* bytes of the arena in use when it was opened */
    Mark from, to;
    int closed;
    double begin, end;   /* seconds, once the step is over */
    int lane;            /* of a transfer */
} Span;

#define TRACE_STEPS 3
#define TRACE_LANES 32

typedef struct Trace {
    Span *span;        /* in the order in which they were opened */
    i64 count, room, left_out;
    i64 timed;           /* the first of them have their seconds */
    Span spare;         /* what is opened when there is no room; never looked at */
    Span *step, *part, *op; /* open now; NULL: none */
    BlockKind block;     /* of the part that is open, for all that is opened in it */
    Phase phase;
    int layer;
    i64 calls[TRACE_STEPS][OP_CLASSES]; /* operations of each step, as the device counted them */
    double free_at[TRACE_LANES];        /* when the last transfer of a lane was over */
    const i64 *in_use;                  /* bytes of the arena, as they are now */
    int lanes, steps;
} Trace;

/* A span in the part under way, to be filled in by whoever opens it. */
static inline Span *span_open(Trace *t, SpanKind kind, Mark from) {
    Span *s = &t->spare;
    if (t->count < t->room) s = &t->span[t->count++];
    else t->left_out++;
    s->kind = kind, s->from = from;
    s->block = t->block, s->phase = t->phase, s->layer = t->layer;
    s->memory = *t->in_use;
    return s;
}

/* Closing a span again moves its end. */
static inline void span_close(Span *s, Mark to) { s->to = to, s->closed = 1; }

static inline Span *trace_op(Trace *t, OpClass op, const char *name, double flop, double bytes, Mark from) {
    Span *s = span_open(t, SPAN_OP, from);
    s->number = op, s->flop = flop, s->bytes = bytes;
    snprintf(s->name, sizeof s->name, "%s", name);
    return s;
}

/* Parts outside the blocks are named by what they do. */
static inline void part_name(char *out, size_t size, BlockKind block, int layer, Phase phase) {
    if (block == BLOCK_OTHER) snprintf(out, size, "%s", phase == PHASE_FORWARD ? "data" : "optimizer");
    else if (layer < 0) snprintf(out, size, "%s %s", BLOCK_NAMES[block], PHASE_NAMES[phase]);
    else snprintf(out, size, "layer %d %s %s", layer, BLOCK_NAMES[block], PHASE_NAMES[phase]);
}

/* The next part of the step, until `now` of the one after it. */
static inline void trace_part(Trace *t, BlockKind block, int layer, Phase phase, Mark now) {
    if (t->part) span_close(t->part, now);
    t->block = block, t->layer = layer, t->phase = phase;
    Span *s = t->part = span_open(t, SPAN_PART, now);
    part_name(s->name, sizeof s->name, block, layer, phase);
}

static inline int trace_in_part(const Trace *t, BlockKind block, int layer, Phase phase) {
    return t->part && t->block == block && t->layer == layer && t->phase == phase;
}

/* What is opened from here on belongs to `layer`, as when the next block's weights are asked for; returns
   whose it was. NULL: no trace. */
static inline int trace_layer(Trace *t, int layer) {
    if (!t) return -1;
    int before = t->layer;
    t->layer = layer;
    return before;
}

/* The first lane that is free when the transfer begins; the last one takes what finds none. */
static inline void trace_lane(Trace *t, Span *s) {
    int lane = 0;
    while (lane < TRACE_LANES - 1 && t->free_at[lane] > s->begin) lane++;
    s->lane = lane;
    t->free_at[lane] = s->end;
    if (t->lanes <= lane) t->lanes = lane + 1;
}

#endif

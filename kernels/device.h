/* device.h - a device, as the walk and the operations see it: what they need to run, and what they leave behind.

   Below the list of operations (compute.h), above the types of one backend (types.h): a kernel includes this, and
   no kernel includes the list. */
#ifndef ODYSSEUS_DEVICE_H
#define ODYSSEUS_DEVICE_H

#include "../core/positions.h"
#include "ranges.h"

/* The operation under way. */
typedef struct {
    OpClass op;
    double flop, bytes;
} Work;

/* A device: what operations need to run and what they leave behind. One per rank. */
typedef struct {
    DeviceState state;            /* the backend's own */
    int threads;                  /* OpenMP threads that compute for this rank */
    int host_threads;             /* the same where the host works, whatever the device is */
    int plan;                     /* 1: count, do not compute (dry run, and the walk that sizes the arena) */
    int imagined;                 /* 1: no memory, no data and no other ranks stand behind it (dry run, simulator) */
    int layer;                    /* of the model, that the walk is in; -1: in none */
    void (*poll)(void *);         /* called between tiles by the calling thread, so that communication moves on */
    void *poll_arg;
    i64 calls[OP_CLASSES];
    double flop[OP_CLASSES];      /* floating-point operations that the mathematics asks for (multiply-add = 2) */
    double bytes[OP_CLASSES];     /* bytes read and written once each */
    double waited;                /* seconds that the host has waited for a device that is not itself, or for ranks */
    Work now;
    Trace *trace;                 /* NULL: this step is not traced */
    Ranges ranges;                /* of --nvtx */
} Device;

/* Are there tokens to read and numbers to compute with? */
static inline int device_is_real(const Device *dev) { return !dev->plan && !dev->imagined; }

static inline void device_poll(Device *dev) { if (dev->poll) dev->poll(dev->poll_arg); }

typedef enum { NORM_LAYER, NORM_RMS } NormKind;

/* The shape of one attention call: a block of queries against a block of keys and values. */
typedef struct {
    i64 B, Tq, Tk;         /* sequences; query and key tokens per sequence in this block */
    i64 heads, kv_heads;   /* of this rank; heads is a multiple of kv_heads, query head h reads KV
                              head h / (heads / kv_heads) */
    i64 head_dim;
} AttentionShape;

/* One call of attention: the shape, the positions of its queries and keys, and whether it joins what the calls before
   it left. What a query may see is told here and nowhere else: a query at position i sees the keys at lo .. i. Its own
   token is always among those (lo <= i), but this block's keys need not be: a query that sees none of them leaves out 0
   and lse -inf, or with `merge` what stood there. */
typedef struct {
    AttentionShape shape;
    TokenMap q_map, kv_map;
    int merge; /* forward: out and lse hold the softmax over other keys, which these join; backward: dq is added to */
    const int32_t *lo; /* (Tq, B), row t*B + b, device memory: the lowest position that local query t of sequence b may
                          see; NULL: 0, plain causal. Within a run of q_map it never falls. */
    double pairs;      /* of a query and a key that it sees, in all sequences, for one head: what the work is */
} AttentionCall;

/* Plain causal attention. */
static inline AttentionCall attention_call(AttentionShape shape, TokenMap q_map, TokenMap kv_map, int merge) {
    AttentionCall c = {shape, q_map, kv_map, merge, NULL, causal_pairs(&q_map, &kv_map) * (double)shape.B};
    return c;
}

/* The same with intervals; `pairs` are counted by whoever made them. */
static inline AttentionCall attention_call_within(AttentionShape shape, TokenMap q_map, TokenMap kv_map, int merge,
                                                  const int32_t *lo, double pairs) {
    AttentionCall c = {shape, q_map, kv_map, merge, lo, pairs};
    return c;
}

/* One norm: its kind, weights and size. */
typedef struct {
    NormKind kind;
    const real *weight, *bias; /* (C); bias NULL for NORM_RMS */
    i64 rows, C;
    double eps;
} NormCall;

static inline NormCall norm_call(NormKind kind, const real *weight, const real *bias, i64 rows, i64 C, double eps) {
    NormCall n = {kind, weight, bias, rows, C, eps};
    return n;
}

/* AdamW's numbers for one step; `step` counts from 1 for the bias correction. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    i64 step;
} AdamW;

#endif

/* transfer_direct.h - transfers where the wire reaches the device's memory: nothing stands between the two. */
#ifndef ODYSSEUS_TRANSFER_DIRECT_H
#define ODYSSEUS_TRANSFER_DIRECT_H

#include "../kernels/compute.h"
#include "wire.h"

typedef struct {
    WireRequest wire;
    int flying;        /* as far as is known */
    Mark began, ended; /* ended: seen to be over */
} Transfer;

/* What the transfers of a rank share: nothing, MPI keeps it. */
typedef struct {
    int unused;
} Links;

static inline void links_open(Links *l, Device *dev, const char *comm) {
    (void)dev, (void)comm;
    l->unused = 0;
}
static inline void links_close(Links *l) { (void)l; }
static inline double links_exposed(Links *l) { return l->unused; }
static inline void *link_open(Links *l, const Comm *c, int rank) {
    (void)l, (void)c, (void)rank;
    return NULL;
}
/* Nobody tries what needs no way of its own. */
static inline void *links_trial(i64 bytes) {
    (void)bytes;
    return NULL;
}
static inline void links_untried(void *p) { (void)p; }
static inline void links_check(const Links *l) { (void)l; }
static inline int links_linger(const Links *l) {
    (void)l;
    return 0;
}

static inline void transfer_clear(Transfer *t, CommOp op) {
    (void)op;
    t->wire = wire_request_none(), t->flying = 0;
}
static inline void transfer_free(Transfer *t) { (void)t; }

static inline WireRequest *transfer_begin(Device *dev, Transfer *t) {
    t->began = device_mark(dev), t->flying = 1;
    return &t->wire;
}

static inline void transfer_over(Device *dev, Transfer *t) {
    if (t->flying) t->ended = device_mark(dev), t->flying = 0;
}

/* Move the wire along. */
static inline void transfer_poll(Device *dev, Transfer *t) {
    if (t->flying && wire_test(&t->wire)) transfer_over(dev, t);
}

/* Is the device still at it? The host waits for the wire itself, so nothing is left behind. */
static inline int transfer_pending(Transfer *t) {
    (void)t;
    return 0;
}
static inline int transfer_is_under_way(Transfer *t) { return transfer_pending(t); }

static inline void transfer_wait(Device *dev, Links *l, Transfer *t) {
    (void)l;
    while (t->flying) device_poll(dev); /* comm.h looks for ranks that stand still, too */
}

/* full (size, bytes) = every rank's part; `part` may be its own place in `full` */
static inline void transfer_all_gather(Device *dev, Links *l, const Comm *g, Transfer *t, void *full, const void *part,
                                       i64 bytes) {
    (void)l;
    wire_all_gather(g->wire, transfer_begin(dev, t), full, part, bytes, g->rank);
}

/* recv (size, bytes): part p is what rank p had for this rank in its send (size, bytes) */
static inline void transfer_all_to_all(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send,
                                       i64 bytes) {
    (void)l;
    wire_all_to_all(g->wire, transfer_begin(dev, t), recv, send, bytes);
}

/* send goes to the next rank of the ring, recv comes from the one before */
static inline void transfer_ring(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send,
                                 i64 bytes) {
    (void)l;
    wire_ring(g->wire, transfer_begin(dev, t), recv, send, bytes, g->rank, g->size);
}

#endif

/* transfer_sim.h - transfers of the simulator: nothing moves, the comm stream's clock goes
   on by what the links would take.

   start   begins when the comm stream is free, the compute stream has come this far and the host has asked for it
   wait    the compute stream waits for its end; what it waits is exposed

   A group has n ranks, on each of its m nodes k of them; a part is p bytes; a hop takes alpha + p / beta, inside a node
   or between nodes. Of the ports of a node each rank has its share; where groups of one axis lie differently on the
   nodes, the worst off sets the pace.
     all-gather   a ring through all ranks: (n-1) p / min(beta inside, least k x share); one node: beta inside
     all-to-all   everybody to everybody, within the node and out of it at once:
                  max((k-1) p / beta inside, (n - least k) p / share)
     ring         one hop, as slow as the slowest of the ring: p / beta; a port, or what is left of the ports if more
                  ranks cross
     latency      of the first two: (n-m) alpha inside + (m-1) alpha between, as the bytes of a ring pass them
   A reduce-scatter is an all-to-all and a sum, an all-reduce that and an all-gather, as in comm.h.

   Where a link cannot move bytes while the rank computes (overlap < 1), the rest of its time is spent on
   the compute stream at once.                                                                                        */
#ifndef ODYSSEUS_TRANSFER_SIM_H
#define ODYSSEUS_TRANSFER_SIM_H

#include "../kernels/compute.h"
#include "wire.h"

typedef struct {
    CommOp op;
    Mark began, ended; /* on the comm stream's clock */
} Transfer;

/* What the transfers of a rank share is with its clocks, in DeviceState. */
typedef struct {
    Device *dev;
} Links;

static inline void links_open(Links *l, Device *dev, const char *comm) {
    (void)comm;
    l->dev = dev;
}
static inline void links_close(Links *l) { (void)l; }

/* Seconds that the compute stream has waited since the last call. */
static inline double links_exposed(Links *l) {
    double seconds = l->dev->state.exposed;
    l->dev->state.exposed = 0;
    return seconds;
}

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

static inline void transfer_clear(Transfer *t, CommOp op) { t->op = op, t->began = t->ended = 0; }
static inline void transfer_free(Transfer *t) { (void)t; }
static inline void transfer_poll(Device *dev, Transfer *t) { (void)dev, (void)t; }
static inline int transfer_pending(Transfer *t) {
    (void)t;
    return 0;
}
static inline int transfer_is_under_way(Transfer *t) { return transfer_pending(t); }

/* One group of an axis, whose member 0 is rank `base`; `leaving` counts by node. */
static inline void group_add(GroupPlace *p, i64 base, i64 node, i64 *leaving) {
    i64 nodes = 1, run = 0;
    for (i64 i = 0; i < p->size; i++) {
        i64 after = (i + 1) % p->size;
        i64 at = (base + i / p->inner * p->stride + i % p->inner) / node,
            next = (base + after / p->inner * p->stride + after % p->inner) / node;
        run++;
        if (next != at) p->leaving = i64_max(p->leaving, ++leaving[at]);
        if (next == at && after) continue;
        p->least = i64_min(p->least, run), p->most = i64_max(p->most, run);
        nodes += after != 0, run = 0;
    }
    p->nodes = i64_max(p->nodes, nodes);
}

/* All groups of `g`'s axis on the nodes of a cluster. */
static inline GroupPlace group_look(const Cluster *c, const Comm *g) {
    i64 node = (i64)c->ranks_per_node;
    GroupPlace p = {g->size, g->inner, g->stride, g->size, 1, 1, 0};
    i64 *leaving = (i64 *)host_alloc(sizeof(i64) * (size_t)(g->world / node + 1));
    for (i64 period = 0; period < g->world; period += g->size / g->inner * g->stride)
        for (i64 base = period; base < period + g->stride; base += g->inner) group_add(&p, base, node, leaving);
    free(leaving);
    return p;
}

/* The same, remembered: a mesh has few axes. */
static inline const GroupPlace *group_place(Device *dev, const Comm *g) {
    DeviceState *s = &dev->state;
    for (int i = 0; i < s->places; i++)
        if (s->place[i].size == g->size && s->place[i].inner == g->inner && s->place[i].stride == g->stride)
            return &s->place[i];
    if (s->places == GROUP_PLACES) FAIL(THIS_RANK, "more than %d axes", GROUP_PLACES);
    s->place[s->places] = group_look(s->cluster, g);
    return &s->place[s->places++];
}

/* Bytes/s that each rank has between nodes while all of them use the ports. */
static inline double port_share(const Cluster *c) { return c->between.beta * cluster_ports(c) / c->ranks_per_node; }

/* The compute stream does nothing for the sake of a transfer. */
static inline void compute_waits(DeviceState *s, CommOp op, double seconds) {
    s->compute += seconds;
    s->comm_exposed[op] += seconds;
    s->exposed += seconds;
}

/* The transfer takes `seconds` on this link from now on. */
static inline void transfer_begin(Device *dev, Transfer *t, const LinkModel *link, double seconds) {
    DeviceState *s = &dev->state;
    s->host += s->cluster->launch;
    t->began = fmax(s->comm, fmax(s->compute, s->host));
    s->comm = t->ended = t->began + seconds;
    s->comm_seconds[t->op] += seconds;
    compute_waits(s, t->op, (1 - link->overlap) * seconds);
}

static inline void transfer_wait(Device *dev, Links *l, Transfer *t) {
    (void)l;
    compute_waits(&dev->state, t->op, fmax(0, t->ended - dev->state.compute));
}

/* What bytes take within nodes and between them, and the latency of a ring through all ranks. */
static inline void transfer_group(Device *dev, const Comm *g, Transfer *t, double inside_bytes, double between_bytes,
                                  double beta) {
    const Cluster *c = dev->state.cluster;
    i64 nodes = group_place(dev, g)->nodes;
    double latency = (double)(g->size - nodes) * c->inside.alpha + (double)(nodes - 1) * c->between.alpha;
    double seconds =
        nodes == 1 ? inside_bytes / c->inside.beta : fmax(inside_bytes / c->inside.beta, between_bytes / beta);
    transfer_begin(dev, t, nodes == 1 ? &c->inside : &c->between, latency + seconds);
}

static inline void transfer_all_gather(Device *dev, Links *l, const Comm *g, Transfer *t, void *full, const void *part,
                                       i64 bytes) {
    double sent = (double)(g->size - 1) * (double)bytes;
    (void)l, (void)full, (void)part;
    transfer_group(dev, g, t, sent, sent, (double)group_place(dev, g)->least * port_share(dev->state.cluster));
}

static inline void transfer_all_to_all(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send,
                                       i64 bytes) {
    const GroupPlace *p = group_place(dev, g);
    (void)l, (void)recv, (void)send;
    transfer_group(dev, g, t, (double)(p->most - 1) * (double)bytes, (double)(g->size - p->least) * (double)bytes,
                   port_share(dev->state.cluster));
}

static inline void transfer_ring(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send,
                                 i64 bytes) {
    const Cluster *c = dev->state.cluster;
    const GroupPlace *p = group_place(dev, g);
    (void)l, (void)recv, (void)send;
    double inside = c->inside.alpha + (double)bytes / c->inside.beta;
    double between = p->leaving ? c->between.alpha +
                                      (double)bytes / (c->between.beta * fmin(1, cluster_ports(c) / (double)p->leaving))
                                : 0;
    transfer_begin(dev, t, between > inside ? &c->between : &c->inside, fmax(inside, between));
}

#endif

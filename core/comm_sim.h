/* comm_sim.h - transfers of the simulator: nothing moves, the comm stream's clock goes on by what the links would take.

   start   begins when the comm stream is free, the compute stream has come this far and the host has asked for it
   wait    the compute stream waits for its end; what it waits is exposed

   A group has n ranks, k of them on each of m nodes; a part is p bytes; a hop takes alpha + p / beta, inside a node or between nodes
     all-gather   a ring through all ranks                     (n-1) p / min(beta inside, k beta between)     one node: beta inside
     all-to-all   everybody to everybody: within the node and out of it at once      max((k-1) p / beta inside, (n-k) p / beta between)
     ring         one hop, as slow as the slowest of the ring                                  p / beta
     latency      of the first two: (n-m) alpha inside + (m-1) alpha between, as the bytes of a ring pass them
   A reduce-scatter is an all-to-all and a sum, an all-reduce that and an all-gather, as in comm.h.

   Where a link cannot move bytes while the rank computes (overlap < 1), the rest of its time is spent on the compute stream at once.  */
#ifndef ODYSSEUS_COMM_SIM_H
#define ODYSSEUS_COMM_SIM_H

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

static inline void *link_open(Links *l, Wire w, int rank, int size) {
    (void)l, (void)w, (void)rank, (void)size;
    return NULL;
}
static inline void link_close(void *link) { (void)link; }
static inline void links_check(const Links *l) { (void)l; }

static inline void transfer_clear(Transfer *t, CommOp op) { t->op = op, t->began = t->ended = 0; }
static inline void transfer_free(Transfer *t) { (void)t; }
static inline void transfer_poll(Device *dev, Transfer *t) { (void)dev, (void)t; }
static inline int transfer_pending(Transfer *t) {
    (void)t;
    return 0;
}

/* Ranks of the group that share a node, and nodes it spans. Groups begin with a node. */
static inline i64 group_near(const Cluster *c, const Comm *g) {
    i64 node = (i64)c->ranks_per_node;
    if (g->inner == g->size) return i64_min(g->size, node);
    return i64_min(g->size, i64_max(1, node / g->stride) * i64_min(g->inner, node));
}

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
static inline void transfer_group(Device *dev, const Comm *g, Transfer *t, double inside_bytes, double between_bytes, double beta) {
    const Cluster *c = dev->state.cluster;
    i64 near_ranks = group_near(c, g), nodes = ceil_div(g->size, near_ranks);
    double latency = (double)(g->size - nodes) * c->inside.alpha + (double)(nodes - 1) * c->between.alpha;
    double seconds = nodes == 1 ? inside_bytes / c->inside.beta : fmax(inside_bytes / c->inside.beta, between_bytes / beta);
    transfer_begin(dev, t, nodes == 1 ? &c->inside : &c->between, latency + seconds);
}

static inline void transfer_all_gather(Device *dev, Links *l, const Comm *g, Transfer *t, void *full, const void *part, i64 bytes) {
    const Cluster *c = dev->state.cluster;
    double sent = (double)(g->size - 1) * (double)bytes;
    (void)l, (void)full, (void)part;
    transfer_group(dev, g, t, sent, sent, (double)group_near(c, g) * c->between.beta);
}

static inline void transfer_all_to_all(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send, i64 bytes) {
    const Cluster *c = dev->state.cluster;
    double near_ranks = (double)group_near(c, g), part = (double)bytes;
    (void)l, (void)recv, (void)send;
    transfer_group(dev, g, t, (near_ranks - 1) * part, ((double)g->size - near_ranks) * part, c->between.beta);
}

static inline void transfer_ring(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send, i64 bytes) {
    const Cluster *c = dev->state.cluster;
    (void)l, (void)recv, (void)send;
    double inside = c->inside.alpha + (double)bytes / c->inside.beta, between = c->between.alpha + (double)bytes / c->between.beta;
    i64 near_ranks = group_near(c, g);
    const LinkModel *link = near_ranks == g->size || (near_ranks > 1 && inside > between) ? &c->inside : &c->between;
    transfer_begin(dev, t, link, link == &c->inside ? inside : between);
}

#endif

/* ring.h - Ring Attention: queries stay at home, keys and values travel.

   hop s     rank r attends its q to the kv of rank r-s, while that kv already flies on to rank r+1
             (out, lse) are merged in the accumulation precision; blocks of which nobody here sees anything are skipped

             kv_r ---> [ r+1 ] ---> [ r+2 ] ---> ...          R-1 hops forward
   backward  kv travels again, and behind it the dkv that each stop adds to; the owner's own share never leaves home:
             kv_r ---> [ r+1 ] ---> ... ---> [ r-1 ]
             dkv_r       0 + ------> + -------> + ---> home   R-1 hops of sums in accum

   or (--ring-backward q) keys stay, and queries with dout travel; behind them the dq that each stop adds to:
             less to send where KV heads are many
   zigzag    rank r owns chunks r and 2R-1-r of the sequence (positions.h), so every rank meets the same work;
             contiguous leaves the last rank with almost twice the mean, stripe is even to within a token.

   Liu, Zaharia, Abbeel 2023, arXiv:2310.01889

   per rank  q, out (L/R, B, heads_l, HS)  kv (L/R, B, 2, kv_heads_l, HS)  lse (L/R, B, heads_l)
             two buffers of kv, three of dkv
   traffic   of a layer and rank, elements, g = KV heads / heads, c = (R-1)/R:
             forward 2 g c L a of kv, a = h HS; backward 2 g c L a of kv and as many of dkv; sum 6 g c L a; or q, dout
             and dq, 3 c L a (and 2 c L h of lse and delta), in all (2g + 3) c L a. Whole
             blocks travel every hop, needed or not. Under a head axis of H the ring carries 1/H of the heads: 6
             g' c L a / H, g' = max(k, H)/h.

   CONTEXT_RING is how queries meet keys over the ring axis, under every scheme; with a ring of one rank it is one local
   block. The scheme `ring` runs it on all heads, with weights by ZeRO-3 and a local MLP.                             */
#ifndef ODYSSEUS_RING_H
#define ODYSSEUS_RING_H

#include "core/blocks.h"

/* ---- the context: attention over the ring, every scheme's -------------------------------------------------------- */

static inline void ring_forward(Model *m, AttentionSaved *s) {
    const Comm *ring = &m->mesh.ring;
    i64 kv_count = kv_count_own(m), out_count = ring_rows(m) * m->heads_l * m->config.head_dim;
    i64 last = visitor_last(m, s);
    ArenaMark mark = arena_mark(&m->arena);
    accum *out = real_is_accum() ? (accum *)s->out : ring->size > 1 ? take_accum(m, MEM_WORKSPACE, out_count) : NULL;
    real *flying[2] = {NULL, NULL};
    for (int i = 0; i < 2 && i < ring->size - 1; i++) flying[i] = take_real(m, MEM_COMM, kv_count);
    const real *kv = s->kv;
    for (int hop = 0; hop < ring->size; hop++) {
        Request *next = NULL;
        real *arriving = flying[hop % 2];
        if (hop + 1 < ring->size)
            next = comm_ring_start(&m->fabric, ring, tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION), arriving, kv,
                                   kv_count, DTYPE_REAL);
        if (hop == 0) zero_prefetch(&m->zero);
        if (visitor_seen(m, s, hop))
            attention_forward(&m->dev, out, hop == last ? s->out : NULL, s->lse, s->q, kv,
                              visitor_call(m, s, hop, hop > 0));
        comm_wait(&m->fabric, next);
        kv = arriving;
    }
    arena_release(&m->arena, mark);
}

/* The sums of the backward ring. */
typedef struct {
    real *dq, *dkv;  /* the results */
    accum *dq_sum;   /* while it is being added to */
    const real *dout;
    const accum *delta;
    i64 count;       /* of kv */
} RingSums;

/* One stop: mine (accum; NULL: the result itself) = this rank's share of the gradient of `kv`; adds to dq. */
static inline void ring_backward_block(Model *m, AttentionSaved *s, RingSums *sums, accum *mine, const real *kv,
                                       i64 hop) {
    if (visitor_seen(m, s, hop))
        attention_backward(&m->dev, sums->dq_sum, hop == visitor_last(m, s) ? sums->dq : NULL, mine,
                           mine ? NULL : sums->dkv, s->q, kv, sums->dout, s->lse, sums->delta,
                           visitor_call(m, s, hop, hop > 0));
    else zero_fill(&m->dev, mine, sums->count * accum_size());
}

/* What has come from the ranks behind is added only after this rank's own share is computed, and the last
   hop, which brings what the other ranks found for this rank's own keys and values, flies while the caller
   works on dq: the transfers hide. */
static inline ContextBackward ring_backward_keys(Model *m, AttentionSaved *s, real *dq, real *dkv, const real *dout) {
    const Comm *ring = &m->mesh.ring;
    i64 kv_count = kv_count_own(m), rows_heads = ring_rows(m) * m->heads_l;
    Tag t = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    ContextBackward h = {dkv, (accum *)dkv, NULL, NULL, kv_count};
    RingSums sums = {dq, dkv, (accum *)dq, dout, NULL, kv_count};
    if (!real_is_accum()) sums.dq_sum = take_accum(m, MEM_WORKSPACE, rows_heads * m->config.head_dim);
    if (!real_is_accum()) h.dkv_sum = ring->size > 1 ? take_accum(m, MEM_WORKSPACE, kv_count) : NULL;
    accum *delta = take_accum(m, MEM_WORKSPACE, rows_heads);
    real *flying[2] = {NULL, NULL};
    accum *share[2] = {NULL, NULL};
    if (ring->size > 1) h.arrived = take_accum(m, MEM_COMM, kv_count);
    for (int i = 0; i < 2 && i < ring->size - 1; i++) {
        flying[i] = take_real(m, MEM_COMM, kv_count);
        share[i] = take_accum(m, MEM_COMM, kv_count);
    }
    attention_delta(&m->dev, delta, s->out, dout, rows_heads, m->config.head_dim);
    sums.delta = delta;
    const real *kv = s->kv;
    for (int hop = 0; hop < ring->size; hop++) {
        Request *next = NULL;
        real *arriving = flying[hop % 2];
        accum *mine = hop == 0 ? h.dkv_sum : share[(hop - 1) % 2];
        if (hop + 1 < ring->size) next = comm_ring_start(&m->fabric, ring, t, arriving, kv, kv_count, DTYPE_REAL);
        if (hop == 0) zero_prefetch(&m->zero);
        ring_backward_block(m, s, &sums, mine, kv, hop);
        if (hop > 0) {
            comm_wait(&m->fabric, h.flying);
            if (hop > 1) sum_parts(&m->dev, mine, h.arrived, 1, kv_count, kv_count, DTYPE_ACCUM, 1);
            h.flying = comm_ring_start(&m->fabric, ring, t, h.arrived, mine, kv_count, DTYPE_ACCUM);
        }
        comm_wait(&m->fabric, next);
        kv = arriving;
    }
    return h;
}

/* What travels where keys stay at home: a ring rank's queries, and what their gradients are made from. */
typedef struct {
    const real *q, *dout; /* (L/R, B, heads_l, HS) */
    const accum *stats;   /* lse, then delta: 2 x (L/R, B, heads_l) */
    Request *flying[3];
} RingQueries;

/* Send `now` on, into memory for the next. */
static inline RingQueries ring_queries_start(Model *m, const RingQueries *now, real *room, accum *stats, i64 rows) {
    Tag t = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    const Comm *ring = &m->mesh.ring;
    i64 count = rows * m->config.head_dim;
    RingQueries next = {room, room + count, stats, {NULL, NULL, NULL}};
    next.flying[0] = comm_ring_start(&m->fabric, ring, t, room, now->q, count, DTYPE_REAL);
    next.flying[1] = comm_ring_start(&m->fabric, ring, t, room + count, now->dout, count, DTYPE_REAL);
    next.flying[2] = comm_ring_start(&m->fabric, ring, t, stats, now->stats, 2 * rows, DTYPE_ACCUM);
    return next;
}

/* The queries that come at `hop` against this rank's keys. */
static inline AttentionCall ring_queries_call(const Model *m, const AttentionSaved *s, i64 hop) {
    i64 from = visitor_rank(m, hop);
    return attention_call_within(attention_shape(m), visitor_map(m, hop), m->ring_map, 0,
                                 s->sight->others ? s->sight->others + from * ring_rows(m) : NULL,
                                 s->sight->met[from]);
}

/* One stop: dq (accum) = these queries' gradient from this rank's keys, to whose own it adds, by way of `share`. */
static inline void ring_queries_block(Model *m, AttentionSaved *s, const RingQueries *now, accum *dq, accum *dkv,
                                      accum *share, i64 hop) {
    i64 rows = ring_rows(m) * m->heads_l, kv_count = kv_count_own(m);
    AttentionCall call = ring_queries_call(m, s, hop);
    if (call.pairs == 0) {
        zero_fill(&m->dev, dq, rows * m->config.head_dim * accum_size());
        return;
    }
    attention_backward(&m->dev, dq, NULL, hop ? share : dkv, NULL, now->q, s->kv, now->dout, now->stats,
                       now->stats + rows, call);
    if (hop) sum_parts(&m->dev, dkv, share, 1, kv_count, kv_count, DTYPE_ACCUM, 1);
}

/* As ring_backward_keys with queries and keys in each other's place. dq has its last hop to come when all
   is computed, and is waited for. */
static inline ContextBackward ring_backward_queries(Model *m, AttentionSaved *s, real *dq, real *dkv,
                                                    const real *dout) {
    const Comm *ring = &m->mesh.ring;
    i64 rows = ring_rows(m) * m->heads_l, count = rows * m->config.head_dim;
    ContextBackward h = {dkv, (accum *)dkv, NULL, NULL, kv_count_own(m)};
    accum *dq_sum = real_is_accum() ? (accum *)dq : take_accum(m, MEM_WORKSPACE, count);
    if (!real_is_accum()) h.dkv_sum = take_accum(m, MEM_WORKSPACE, h.count);
    accum *kv_share = take_accum(m, MEM_WORKSPACE, h.count), *own = take_accum(m, MEM_WORKSPACE, 2 * rows);
    accum *arrived = take_accum(m, MEM_COMM, count), *stats[2] = {NULL, NULL}, *share[2] = {NULL, NULL};
    real *room[2] = {NULL, NULL};
    for (int i = 0; i < 2 && i < ring->size - 1; i++) {
        room[i] = take_real(m, MEM_COMM, 2 * count), stats[i] = take_accum(m, MEM_COMM, 2 * rows);
        share[i] = take_accum(m, MEM_COMM, count);
    }
    sum_parts(&m->dev, own, s->lse, 1, rows, rows, DTYPE_ACCUM, 0); /* a copy */
    attention_delta(&m->dev, own + rows, s->out, dout, rows, m->config.head_dim);
    RingQueries now = {s->q, dout, own, {NULL, NULL, NULL}}, next = now;
    Request *flying = NULL;
    for (int hop = 0; hop < ring->size; hop++) {
        accum *mine = hop == 0 ? dq_sum : share[(hop - 1) % 2];
        if (hop + 1 < ring->size) next = ring_queries_start(m, &now, room[hop % 2], stats[hop % 2], rows);
        if (hop == 0) zero_prefetch(&m->zero);
        ring_queries_block(m, s, &now, mine, h.dkv_sum, kv_share, hop);
        if (hop > 0) {
            comm_wait(&m->fabric, flying);
            if (hop > 1) sum_parts(&m->dev, mine, arrived, 1, count, count, DTYPE_ACCUM, 1);
            flying = comm_ring_start(&m->fabric, ring, tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION), arrived,
                                     mine, count, DTYPE_ACCUM);
        }
        for (int i = 0; i < 3 && hop + 1 < ring->size; i++) comm_wait(&m->fabric, next.flying[i]);
        now = next;
    }
    comm_wait(&m->fabric, flying);
    sum_parts(&m->dev, dq_sum, arrived, 1, count, count, DTYPE_ACCUM, 1);
    convert(&m->dev, dq, dq_sum, count);
    return h;
}

static inline ContextBackward ring_backward(Model *m, AttentionSaved *s, real *dq, real *dkv, const real *dout) {
    return m->mesh.queries_travel ? ring_backward_queries(m, s, dq, dkv, dout)
                                  : ring_backward_keys(m, s, dq, dkv, dout);
}

/* Bytes of one token that travel a hop in backward: of keys and their gradients, or of queries and theirs. */
static inline i64 ring_token_bytes(const Config *c, i64 head, int queries) {
    if (queries) return c->heads / head * (c->head_dim * (2 * real_size() + accum_size()) + 2 * accum_size());
    return 2 * kv_heads_local(c, head) * c->head_dim * (real_size() + accum_size());
}

/* As told, or what sends less. */
static inline int ring_queries_travel(const char *asked, const Config *c, i64 head) {
    if (strcmp(asked, "auto") != 0) return strcmp(asked, "q") == 0;
    return ring_token_bytes(c, head, 1) < ring_token_bytes(c, head, 0);
}

/* g' = max(k, H)/h: forward 2 g' c_R L a/H elements of KV, a = h HS; backward the KV again
   and as many of dKV in accum, or queries (ring_token_bytes). */
static inline void ring_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    i64 R = m->shape.ring;
    i64 rows = times * (R - 1) * (L / R) * B, kv = rows * 2 * kv_heads_local(c, m->shape.head) * c->head_dim;
    ledger_expect(l, COMM_SEND_RECV, tag(BLOCK_ATTENTION, PHASE_FORWARD, WHAT_ACTIVATION), kv * real_size());
    ledger_expect(l, COMM_SEND_RECV, tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION),
                  rows * ring_token_bytes(c, m->shape.head, m->queries_travel));
}

static const Context CONTEXT_RING = {
    .name = "ring",
    .help = "KV blocks travel a ring, online-softmax merge",
    .piece = NULL,
    .queries_travel = ring_queries_travel,
    .forward = ring_forward,
    .backward = ring_backward,
    .finish = context_finish,
    .volume = ring_volume,
};

/* ---- the scheme `ring` ------------------------------------------------------------------------------------------- */

static const Scheme SCHEME_RING = {
    .name = "ring",
    .help = "KV blocks travel a ring, online-softmax merge; MLP local; weights by ZeRO-3",
    .context = &CONTEXT_RING,
    .replicated_stream = 0,
    .ring_takes_all = 1,
    .rope_on_own = 0,
    .repeats_exchange = 0,
    .takes_head_groups = 0,
    .splits = splits_nothing,
    .refuses = refuse_any_head_axis,
    .attention_keep = NULL,
    .attention_forward = local_attention_forward,
    .attention_backward = local_attention_backward,
    .mlp_forward = local_mlp_forward,
    .mlp_backward = local_mlp_backward,
    .volume = moves_nothing,
    .volume_twice = NULL,
};

#endif

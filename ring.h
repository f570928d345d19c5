/* ring.h - Ring Attention: queries stay at home, keys and values travel.

   step s    rank r attends its q to the kv of rank r-s, while that kv already flies on to rank r+1
             (out, lse) are merged in the accumulation precision; blocks that the causal mask empties are skipped

             kv_r ---> [ r+1 ] ---> [ r+2 ] ---> ...          R-1 hops forward
   backward  kv travels again, and behind it the dkv that each stop adds to; the owner's own share never leaves home:
             kv_r ---> [ r+1 ] ---> ... ---> [ r-1 ]
             dkv_r       0 + ------> + -------> + ---> home   R-1 hops of sums in accum

   zigzag    rank r owns chunks r and 2R-1-r of the sequence (positions.h), so every rank meets the same work; contiguous leaves
             the last rank with almost twice the mean, stripe is even to within a token.

   Liu, Zaharia, Abbeel 2023, arXiv:2310.01889

   per rank  q, out (L/R, B, heads_l, HS)  kv (L/R, B, 2, kv_heads_l, HS)  lse (L/R, B, heads_l)  two kv, three dkv buffers
   traffic   of a layer and rank, elements, g = KV heads / heads, c = (R-1)/R:
             forward 2 g c L d of kv; backward 2 g c L d of kv and 2 g c L d of dkv; sum 6 g c L d. Whole blocks travel every
             hop, needed or not. Under a head axis of H the ring carries 1/H of the heads: 6 g' c L d / H, g' = max(k, H)/h.

   context_attention_* is the attention of every scheme; with a ring of one rank it is one local block. The rows of `ring`
   itself run it on all heads, with weights by ZeRO-3 and a local MLP.                                                     */
#ifndef ODYSSEUS_RING_H
#define ODYSSEUS_RING_H

#include "core/blocks.h"

/* ---- attention over the ring: every scheme's --------------------------------------------------------------------------- */

/* The positions of the ring rank that is `steps` behind this one: whose keys and values are here at that step. */
static inline TokenMap ring_visitor(const Model *m, i64 steps) {
    i64 R = m->mesh.shape.ring;
    return token_map(m->layout, m->L, (int)R, (int)((m->mesh.ring_rank - steps + R) % R));
}

static inline AttentionShape ring_attention_shape(const Model *m) {
    AttentionShape shape = {m->B, m->T_ring, m->T_ring, m->heads_l, m->kv_heads_l, m->config.head_dim};
    return shape;
}

static inline i64 ring_kv_count(const Model *m) { return ring_rows(m) * 2 * m->kv_heads_l * m->config.head_dim; }

/* Does this rank see anything of the keys that are here at `step`? Its own come first, of which every query sees one. */
static inline int ring_sees(const Model *m, i64 step) {
    TokenMap kv_map = ring_visitor(m, step);
    return step == 0 || causal_pairs(&m->ring_map, &kv_map) > 0;
}

/* The last step at which it does: there sums are rounded. */
static inline i64 ring_last_step(const Model *m) {
    i64 step = m->mesh.shape.ring - 1;
    while (!ring_sees(m, step)) step--;
    return step;
}

/* s->out, s->lse from s->q, s->kv: causal attention over the whole sequence, of which this rank holds its ring-local part. */
static inline void context_attention_forward(Model *m, AttentionSaved *s) {
    const Comm *ring = &m->mesh.ring;
    AttentionShape shape = ring_attention_shape(m);
    i64 kv_count = ring_kv_count(m), out_count = ring_rows(m) * m->heads_l * m->config.head_dim, last = ring_last_step(m);
    ArenaMark mark = arena_mark(&m->arena);
    accum *out = real_is_accum() ? (accum *)s->out : ring->size > 1 ? take_accum(m, MEM_WORKSPACE, out_count) : NULL;
    real *flying[2] = {NULL, NULL};
    for (int i = 0; i < 2 && i < ring->size - 1; i++) flying[i] = take_real(m, MEM_COMM, kv_count);
    const real *kv = s->kv;
    for (int step = 0; step < ring->size; step++) {
        Request *next = NULL;
        real *arriving = flying[step % 2];
        if (step + 1 < ring->size)
            next = comm_ring_start(&m->fabric, ring, tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION), arriving, kv, kv_count, DTYPE_REAL);
        if (step == 0) zero_prefetch(&m->zero);
        if (ring_sees(m, step))
            attention_forward(&m->dev, out, step == last ? s->out : NULL, s->lse, s->q, kv, shape, m->ring_map, ring_visitor(m, step), step > 0);
        comm_wait(&m->fabric, next);
        kv = arriving;
    }
    arena_release(&m->arena, mark);
}

/* The backward ring: its sums, and the last hop, under way: what the other ranks found for this rank's own keys and values. */
typedef struct {
    real *dq, *dkv;      /* the results */
    accum *dq_sum;       /* while it is being added to */
    accum *dkv_sum;      /* this rank's own share; NULL where that is all, and dkv has it */
    accum *arrived;
    Request *home;
    i64 count;           /* of kv */
} RingHome;

/* One stop: mine (accum; NULL: the result itself) = this rank's share of the gradient of `kv`; adds to dq. */
static inline void ring_backward_block(Model *m, AttentionSaved *s, RingHome *h, accum *mine, const real *kv, const real *dout, const accum *delta,
                                       i64 step) {
    if (ring_sees(m, step))
        attention_backward(&m->dev, h->dq_sum, step == ring_last_step(m) ? h->dq : NULL, mine, mine ? NULL : h->dkv, s->q, kv, dout, s->lse, delta,
                           ring_attention_shape(m), m->ring_map, ring_visitor(m, step), step > 0);
    else zero_fill(&m->dev, mine, h->count * accum_size());
}

/* dq (L/R, B, heads_l, HS) for dout like s->out. dkv (L/R, B, 2, kv_heads_l, HS) is complete only after context_attention_home; the buffers
   of its sums live in the caller's mark. What has come from the ranks behind is added only after this rank's own share is computed, and
   the last hop flies while the caller works on dq: the transfers hide. */
static inline RingHome context_attention_backward(Model *m, AttentionSaved *s, real *dq, real *dkv, const real *dout) {
    const Comm *ring = &m->mesh.ring;
    i64 kv_count = ring_kv_count(m), rows_heads = ring_rows(m) * m->heads_l;
    Tag t = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    RingHome h = {dq, dkv, (accum *)dq, (accum *)dkv, NULL, NULL, kv_count};
    if (!real_is_accum()) h.dq_sum = take_accum(m, MEM_WORKSPACE, rows_heads * m->config.head_dim);
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
    const real *kv = s->kv;
    for (int step = 0; step < ring->size; step++) {
        Request *next = NULL;
        real *arriving = flying[step % 2];
        accum *mine = step == 0 ? h.dkv_sum : share[(step - 1) % 2];
        if (step + 1 < ring->size) next = comm_ring_start(&m->fabric, ring, t, arriving, kv, kv_count, DTYPE_REAL);
        if (step == 0) zero_prefetch(&m->zero);
        ring_backward_block(m, s, &h, mine, kv, dout, delta, step);
        if (step > 0) {
            comm_wait(&m->fabric, h.home);
            if (step > 1) sum_parts(&m->dev, mine, h.arrived, 1, kv_count, kv_count, DTYPE_ACCUM, 1);
            h.home = comm_ring_start(&m->fabric, ring, t, h.arrived, mine, kv_count, DTYPE_ACCUM);
        }
        comm_wait(&m->fabric, next);
        kv = arriving;
    }
    return h;
}

/* Wait for the last hop and complete dkv. */
static inline void context_attention_home(Model *m, RingHome *h) {
    comm_wait(&m->fabric, h->home);
    if (!h->arrived) return;
    sum_parts(&m->dev, h->dkv_sum, h->arrived, 1, h->count, h->count, DTYPE_ACCUM, 1);
    convert(&m->dev, h->dkv, h->dkv_sum, h->count);
}

/* ---- attention of this rank's heads over its ring-local tokens ------------------------------------------------------------ */

/* out (L/R, B, C) = attention of xn (L/R, B, C) with this rank's heads and its columns of the output projection, without bias:
   everything where all heads are here, a partial sum where the head axis has split them. */
static inline void heads_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    i64 rows = ring_rows(m), HS = m->config.head_dim;
    project_q(m, s->q, xn, rows, m->heads_l);
    project_kv(m, s->kv, xn, rows, m->kv_heads_l);
    queries_pack(&m->dev, s->q, s->q, m->rope, rows, m->B, m->heads_l, HS, 1);
    kv_pack(&m->dev, s->kv, s->kv, m->rope, rows, m->B, m->kv_heads_l, HS, 1);
    context_attention_forward(m, s);
    linear_forward(&m->dev, out, s->out, m->zero.weight[T_O], NULL, rows, m->heads_l * HS, m->config.dim);
}

/* Backward up to the projections: gradients of q and kv before rotation, the latter complete after heads_backward_home. */
typedef struct {
    real *dq, *dkv; /* (L/R, B, heads_l, HS), (L/R, B, 2, kv_heads_l, HS), of the caller's mark */
    RingHome home;
    ArenaMark inner; /* of all else, which goes with heads_backward_home */
} HeadsBackward;

/* For dout (L/R, B, C), which is not needed afterwards; adds to the gradient of the output projection. What remains to be done are the input
   gradient of the first projections, a partial sum where heads are split, and the gradients of their weights: in the caller's order. */
static inline HeadsBackward heads_backward(Model *m, AttentionSaved *s, const real *dout) {
    HeadsBackward h;
    i64 rows = ring_rows(m), HS = m->config.head_dim, NQ = m->heads_l * HS, NKV = 2 * m->kv_heads_l * HS;
    h.dq = take_real(m, MEM_WORKSPACE, rows * NQ), h.dkv = take_real(m, MEM_WORKSPACE, rows * NKV);
    h.inner = arena_mark(&m->arena);
    real *dattended = take_real(m, MEM_WORKSPACE, rows * NQ);
    linear_backward_weight(&m->dev, m->zero.dweight[T_O], s->out, dout, rows, NQ, m->config.dim);
    linear_backward_input(&m->dev, dattended, dout, m->zero.weight[T_O], rows, NQ, m->config.dim, 0);
    h.home = context_attention_backward(m, s, h.dq, h.dkv, dattended);
    queries_unpack(&m->dev, h.dq, h.dq, m->rope, rows, m->B, m->heads_l, HS, 1);
    return h;
}

/* dkv is complete. */
static inline void heads_backward_home(Model *m, HeadsBackward *h) {
    i64 rows = ring_rows(m), HS = m->config.head_dim;
    context_attention_home(m, &h->home);
    kv_unpack(&m->dev, h->dkv, h->dkv, m->rope, rows, m->B, m->kv_heads_l, HS, 1);
    arena_release(&m->arena, h->inner);
}

/* ---- the scheme `ring` -------------------------------------------------------------------------------------------------- */

static inline int ring_refuses(const Config *c, const MeshShape *shape, char *why, size_t size) {
    (void)c;
    if (shape->head == 1) return 0;
    snprintf(why, size, "it has no head axis, but %lld ranks / dp %lld / ring %lld leaves %lld; use --ring %lld", (long long)shape->world,
             (long long)shape->dp, (long long)shape->ring, (long long)shape->head, (long long)(shape->world / shape->dp));
    return 1;
}

static inline void ring_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    zero_prefetch(&m->zero);
    heads_attention_forward(m, s, out, xn);
    if (m->zero.weight[T_O_BIAS]) bias_add(&m->dev, out, m->zero.weight[T_O_BIAS], ring_rows(m), m->config.dim);
}

/* The ring's last hop flies under the query projection's backward. */
static inline void ring_attention_backward(Model *m, AttentionSaved *s, real *dxn, const real *dout, const real *xn) {
    i64 rows = ring_rows(m);
    ArenaMark mark = arena_mark(&m->arena);
    zero_prefetch(&m->zero);
    if (m->zero.dweight[T_O_BIAS]) bias_backward(&m->dev, m->zero.dweight[T_O_BIAS], dout, rows, m->config.dim);
    HeadsBackward h = heads_backward(m, s, dout);
    project_q_backward_input(m, dxn, h.dq, rows, m->heads_l);
    project_q_backward_weight(m, h.dq, xn, rows, m->heads_l);
    heads_backward_home(m, &h);
    project_kv_backward_input(m, dxn, h.dkv, rows, m->kv_heads_l);
    project_kv_backward_weight(m, h.dkv, xn, rows, m->kv_heads_l);
    arena_release(&m->arena, mark);
}

static const Scheme SCHEME_RING = {
    "ring", "KV blocks travel a ring, online-softmax merge; MLP local; weights by ZeRO-3", 0, 1, 0, splits_nothing, ring_refuses, NULL,
    ring_attention_forward, ring_attention_backward, local_mlp_forward, local_mlp_backward, ring_volume,
};

#endif

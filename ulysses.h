/* ulysses.h - DeepSpeed-Ulysses: two all-to-alls turn tokens into heads and back; all weights by ZeRO-3.

   x (T, B, C), T = L/(R N) -> q (T, B, h, HS), kv (T, B, 2, k, HS)   projections on the own tokens, rotated, packed
        all-to-all        q (L/R, B, h/N, HS), kv (L/R, B, 2, k/N, HS)   all tokens of this rank's heads
        attention         out (L/R, B, h/N, HS)                          over the ring, if there is one (USP)
        all-to-all back   out (T, B, h, HS) -> output projection on the own tokens

   Fewer KV heads than ranks: a KV head is sent to every rank whose query heads read it, and the gradients of
   those copies are added on the way back. Backward is the same picture in reverse; q, kv and both forms of out
   are kept, nothing is sent twice.

   --head-groups G  exchange and attend h/(N G) heads of every rank at a time: buffers by heads fall to 1/G, two of
                    which are under way, and one group's exchange flies under another's attention, so that only the
                    first and the last wait. The same heads, bytes and bits
        group       0        1        2
        arrive      q kv     q kv     q kv          KV heads go once, with the first group that reads them
        attend               0        1        2
        return                        out 0    out 1    out 2
        by tokens, q stands where out will, and out's gradient where q's will

   Jacobs et al. 2023, arXiv:2309.14509; with a ring: Fang, Zhao 2024, arXiv:2405.07719; in groups: Untied Ulysses,
   2026, arXiv:2602.21196

   per rank  q, out (L/R, B, h/N, HS)  kv (L/R, B, 2, max(1, k/N), HS)  out_local (T, B, h HS)
   traffic   of a layer and rank, elements, c = (N-1)/N, g = max(k, N)/h: q, kv, out forward and their gradients
             backward: (4 + 4g) c L a / (R N), a = h HS; weights 3c((2 + 2g) d a + m d i) by ZeRO                     */
#ifndef ODYSSEUS_ULYSSES_H
#define ODYSSEUS_ULYSSES_H

#include "core/blocks.h"

static inline int ulysses_refuses(const Config *c, const MeshShape *shape, char *why, size_t size) {
    return refuse_head_axis(c, shape, 0, why, size);
}

static inline void ulysses_keep(Model *m, AttentionSaved *s) {
    if (m->mesh.head.size > 1) s->out_local = take_real(m, MEM_ACTIVATIONS, own_rows(m) * attention_width(&m->config));
}

/* Elements that go to each rank of the head axis: of q or out, and of kv. */
static inline i64 ulysses_q_part(const Model *m) { return own_rows(m) * m->heads_l * m->config.head_dim; }
static inline i64 ulysses_kv_part(const Model *m) { return own_rows(m) * 2 * m->kv_heads_l * m->config.head_dim; }

/* ---- groups of heads --------------------------------------------------------------------------------------------- */

/* This rank's heads in --head-groups groups. While they are under way, m->heads_l and m->kv_heads_l are a group's. */
typedef struct {
    i64 groups, kv_groups;     /* of query heads; of KV heads: as many, or one head each, which several groups read */
    i64 heads_l, kv_heads_l;   /* of all groups */
} HeadGroups;

static inline HeadGroups groups_begin(Model *m) {
    HeadGroups g = {m->head_groups, i64_min(m->head_groups, m->kv_heads_l), m->heads_l, m->kv_heads_l};
    m->heads_l /= g.groups, m->kv_heads_l /= g.kv_groups;
    return g;
}

static inline void groups_end(Model *m, const HeadGroups *g) { m->heads_l = g->heads_l, m->kv_heads_l = g->kv_heads_l; }

/* The group of KV heads that group j reads, and whether j is its first or last reader. */
static inline i64 group_kv(const HeadGroups *g, i64 j) { return j * g->kv_groups / g->groups; }
static inline int group_opens(const HeadGroups *g, i64 j) { return j == 0 || group_kv(g, j) != group_kv(g, j - 1); }
static inline int group_closes(const HeadGroups *g, i64 j) {
    return j + 1 == g->groups || group_kv(g, j) != group_kv(g, j + 1);
}

/* What group j has of s. Of what is made again there are two places, which the groups take in turns. */
static inline AttentionSaved group_view(const Model *m, const HeadGroups *g, const AttentionSaved *s, i64 j) {
    AttentionSaved v = *s;
    i64 rows = ring_rows(m) * m->heads_l, q = m->recompute ? j % 2 : j, kv = group_kv(g, j),
        out = keeps_attended(m) ? j : j % 2;
    v.q += q * rows * m->config.head_dim, v.out += out * rows * m->config.head_dim, v.lse += out * rows;
    v.kv += (m->recompute ? kv % 2 : kv) * kv_count_own(m);
    return v;
}

/* parts (N, rows, group's heads of a rank, HS) = the group's columns of tokens (rows, all heads, HS), and back. */
static inline void group_split(Model *m, const HeadGroups *g, real *parts, const real *tokens, i64 j) {
    i64 width = m->heads_l * m->config.head_dim;
    columns_split(&m->dev, parts, tokens + j * width, m->mesh.head.size, own_rows(m), width, g->groups);
}
static inline void group_merge(Model *m, const HeadGroups *g, real *tokens, const real *parts, i64 j) {
    i64 width = m->heads_l * m->config.head_dim;
    columns_merge(&m->dev, tokens + j * width, parts, m->mesh.head.size, own_rows(m), width, g->groups);
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

/* From tokens to heads and back, group by group. q by tokens stands where out by tokens will, unless that is there. */
typedef struct {
    HeadGroups g;
    AttentionSaved *s;
    Tag tag;
    real *q_tokens;                  /* (T, B, h, HS) */
    real *kv_tokens;                 /* (T, B, 2, k, HS) */
    real *q_send, *kv_send, *arrive; /* of one group; arrive: its out, on the way back */
    Request *q, *kv, *out;
} Exchange;

/* Send group j's queries to the ranks of their heads, and its KV heads, unless the group before has. */
static inline void exchange_send_q(Model *m, Exchange *e, i64 j) {
    const Config *c = &m->config;
    i64 N = m->mesh.head.size;
    AttentionSaved v = group_view(m, &e->g, e->s, j);
    if (e->g.groups == 1)
        queries_pack(&m->dev, e->q_send, e->q_tokens, e->s->rope, own_rows(m), m->B, c->heads, c->head_dim, N);
    else group_split(m, &e->g, e->q_send, e->q_tokens, j);
    e->q = comm_all_to_all_start(&m->fabric, &m->mesh.head, e->tag, v.q, e->q_send, ulysses_q_part(m), DTYPE_REAL);
}

static inline void exchange_send_kv(Model *m, Exchange *e, i64 j) {
    const Config *c = &m->config;
    i64 N = m->mesh.head.size, width = m->kv_heads_l * c->head_dim;
    AttentionSaved v = group_view(m, &e->g, e->s, j);
    if (!group_opens(&e->g, j)) return;
    if (e->g.kv_groups == 1)
        kv_pack(&m->dev, e->kv_send, e->kv_tokens, e->s->rope, own_rows(m), m->B, c->kv_heads, c->head_dim, N);
    else columns_split(&m->dev, e->kv_send, e->kv_tokens + group_kv(&e->g, j) * width, N, 2 * own_rows(m), width,
                       e->g.kv_groups);
    e->kv = comm_all_to_all_start(&m->fabric, &m->mesh.head, e->tag, v.kv, e->kv_send, ulysses_kv_part(m), DTYPE_REAL);
}

/* Project, and send the first group: keys and values fly while queries are projected. Buffers of the caller's mark, and
   q_tokens; where that is not out's place, no out comes back. */
static inline Exchange exchange_begin(Model *m, AttentionSaved *s, real *q_tokens, const real *xn, HeadGroups g) {
    const Config *c = &m->config;
    i64 rows = own_rows(m), N = m->mesh.head.size;
    Exchange e;
    memset(&e, 0, sizeof e);
    e.g = g, e.s = s, e.q_tokens = q_tokens, e.tag = tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION);
    e.kv_tokens = take_real(m, MEM_WORKSPACE, rows * 2 * c->kv_heads * c->head_dim);
    e.q_send = take_real(m, MEM_COMM, N * ulysses_q_part(m));
    if (q_tokens == s->out_local) e.arrive = take_real(m, MEM_COMM, N * ulysses_q_part(m));
    e.kv_send = take_real(m, MEM_COMM, N * ulysses_kv_part(m));
    project_kv(m, s, e.kv_tokens, xn, rows, c->kv_heads);
    if (g.kv_groups > 1) kv_pack(&m->dev, e.kv_tokens, e.kv_tokens, s->rope, rows, m->B, c->kv_heads, c->head_dim, 1);
    exchange_send_kv(m, &e, 0);
    project_q(m, s, q_tokens, xn, rows, c->heads);
    if (g.groups > 1) queries_pack(&m->dev, q_tokens, q_tokens, s->rope, rows, m->B, c->heads, c->head_dim, 1);
    exchange_send_q(m, &e, 0);
    return e;
}

/* Group j is here, and the next one flies. */
static inline void exchange_arrived(Model *m, Exchange *e, i64 j) {
    comm_wait(&m->fabric, e->kv);
    comm_wait(&m->fabric, e->q);
    e->kv = e->q = NULL;
    if (j + 1 == e->g.groups) return;
    exchange_send_kv(m, e, j + 1);
    exchange_send_q(m, e, j + 1);
}

/* The group whose out is under way, j, is back among the own tokens; j < 0: none is. */
static inline void exchange_returned(Model *m, Exchange *e, i64 j) {
    if (j < 0) return;
    comm_wait(&m->fabric, e->out);
    group_merge(m, &e->g, e->s->out_local, e->arrive, j);
}

/* Attend group j while the next one comes and the one before goes back; then send its out back. */
static inline void exchange_attend(Model *m, Exchange *e, i64 j) {
    AttentionSaved v = group_view(m, &e->g, e->s, j);
    attend(m, &v);
    if (!e->arrive) return;
    exchange_returned(m, e, j - 1);
    e->out = comm_all_to_all_start(&m->fabric, &m->mesh.head, e->tag, e->arrive, v.out, ulysses_q_part(m), DTYPE_REAL);
}

/* out_local from what is kept of every group: q and kv are made again later. */
static inline void exchange_return_kept(Model *m, AttentionSaved *s, HeadGroups g) {
    Tag t = tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION);
    i64 part = ulysses_q_part(m);
    real *arrive[2];
    Request *out = NULL, *next;
    for (int i = 0; i < 2; i++) arrive[i] = take_real(m, MEM_COMM, m->mesh.head.size * part);
    zero_prefetch(&m->zero);
    for (i64 j = 0; j <= g.groups; j++) {
        next = j < g.groups ? comm_all_to_all_start(&m->fabric, &m->mesh.head, t, arrive[j % 2],
                                                    group_view(m, &g, s, j).out, part, DTYPE_REAL)
                            : NULL;
        comm_wait(&m->fabric, out);
        if (j > 0) group_merge(m, &g, s->out_local, arrive[(j - 1) % 2], j - 1);
        out = next;
    }
}

static inline void ulysses_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    if (m->mesh.head.size == 1) {
        local_attention_forward(m, s, out, xn);
        return;
    }
    ArenaMark mark = arena_mark(&m->arena);
    HeadGroups g = groups_begin(m);
    if (m->phase == PHASE_BACKWARD && m->again == RECOMPUTE_ATTENTION_KEPT && g.groups > 1) {
        exchange_return_kept(m, s, g);
    } else {
        Exchange e = exchange_begin(m, s, s->out_local, xn, g);
        for (i64 j = 0; j < g.groups; j++) {
            exchange_arrived(m, &e, j);
            exchange_attend(m, &e, j);
        }
        exchange_returned(m, &e, g.groups - 1);
    }
    groups_end(m, &g);
    linear_forward(&m->dev, out, m->config.dim, s->out_local, m->zero.weight[T_O], m->zero.weight[T_O_BIAS],
                   own_rows(m), attention_width(&m->config), m->config.dim);
    arena_release(&m->arena, mark);
}

/* ---- backward ---------------------------------------------------------------------------------------------------- */

/* Gradients on the way from tokens to heads and back, group by group: that of q by tokens takes the place of that of
   out. */
typedef struct {
    HeadGroups g;
    Tag tag;
    real *tokens, *kv_tokens;     /* (T, B, h, HS), (T, B, 2, k, HS) */
    real *send, *arrive, *kv_arrive;
    real *dout[2], *dq[2], *dkv[2]; /* by heads, of one group each */
    real *dkv_more;               /* of a further reader of the same KV heads */
    Request *out, *q, *kv;
} Gradients;

static inline void gradients_send(Model *m, Gradients *d, i64 j) {
    group_split(m, &d->g, d->send, d->tokens, j);
    d->out = comm_all_to_all_start(&m->fabric, &m->mesh.head, d->tag, d->dout[j % 2], d->send, ulysses_q_part(m),
                                   DTYPE_REAL);
}

/* From dout (T, B, C): the gradient of out by tokens, and its first group sent. Buffers of the caller's mark, and those
   of `again` that are free when they are needed: a group's dkv is back after its kv have left. `tokens` NULL: one of
   the mark's, too. */
static inline Gradients gradients_begin(Model *m, const real *dout, real *tokens, const Exchange *again, HeadGroups g) {
    const Config *c = &m->config;
    i64 rows = own_rows(m), N = m->mesh.head.size, q = N * ulysses_q_part(m), kv = N * ulysses_kv_part(m);
    Gradients d;
    memset(&d, 0, sizeof d);
    d.g = g, d.tag = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    d.tokens = tokens ? tokens : take_real(m, MEM_WORKSPACE, rows * attention_width(c));
    d.kv_tokens = again->kv_tokens ? again->kv_tokens
                                   : take_real(m, MEM_WORKSPACE, rows * 2 * c->kv_heads * c->head_dim);
    d.send = take_real(m, MEM_COMM, q), d.arrive = take_real(m, MEM_COMM, q);
    d.kv_arrive = again->kv_send && g.kv_groups == 1 ? again->kv_send : take_real(m, MEM_COMM, kv);
    for (int i = 0; i < 2 && i < g.groups; i++)
        d.dout[i] = take_real(m, MEM_COMM, q), d.dq[i] = take_real(m, MEM_WORKSPACE, q);
    for (int i = 0; i < 2 && i < g.kv_groups; i++) d.dkv[i] = take_real(m, MEM_WORKSPACE, kv);
    if (g.groups > g.kv_groups) d.dkv_more = take_real(m, MEM_WORKSPACE, kv);
    linear_backward_input(&m->dev, d.tokens, dout, c->dim, m->zero.weight[T_O], rows, attention_width(c), c->dim, 0);
    gradients_send(m, &d, 0);
    return d;
}

/* dq of group j is back by tokens; j < 0: none is under way. Likewise dkv of KV group k. */
static inline void gradients_q_returned(Model *m, Gradients *d, i64 j) {
    if (j < 0) return;
    comm_wait(&m->fabric, d->q);
    group_merge(m, &d->g, d->tokens, d->arrive, j);
}

static inline void gradients_kv_returned(Model *m, Gradients *d, i64 k) {
    i64 width = m->kv_heads_l * m->config.head_dim;
    if (k < 0) return;
    comm_wait(&m->fabric, d->kv);
    if (d->g.kv_groups > 1)
        columns_merge(&m->dev, d->kv_tokens + k * width, d->kv_arrive, m->mesh.head.size, 2 * own_rows(m), width,
                      d->g.kv_groups);
}

/* Attention's backward of group j, whose dout has arrived; its gradients leave, dkv with the last reader. */
static inline void gradients_attend(Model *m, Gradients *d, AttentionSaved *s, i64 j) {
    const Comm *head = &m->mesh.head;
    i64 k = group_kv(&d->g, j), kv_count = kv_count_own(m);
    AttentionSaved v = group_view(m, &d->g, s, j);
    real *dq = d->dq[j % 2], *dkv = d->dkv[k % 2], *mine = group_opens(&d->g, j) ? dkv : d->dkv_more;
    comm_wait(&m->fabric, d->out);
    if (j + 1 < d->g.groups) gradients_send(m, d, j + 1);
    ArenaMark mark = arena_mark(&m->arena);
    ContextBackward rest = m->context->backward(m, &v, dq, mine, d->dout[j % 2]);
    gradients_q_returned(m, d, j - 1);
    d->q = comm_all_to_all_start(&m->fabric, head, d->tag, d->arrive, dq, ulysses_q_part(m), DTYPE_REAL);
    m->context->finish(m, &rest);
    arena_release(&m->arena, mark);
    if (mine != dkv) sum_parts(&m->dev, dkv, mine, 1, kv_count, kv_count, DTYPE_REAL, 1);
    if (!group_closes(&d->g, j)) return;
    gradients_kv_returned(m, d, k - 1);
    d->kv = comm_all_to_all_start(&m->fabric, head, d->tag, d->kv_arrive, dkv, ulysses_kv_part(m), DTYPE_REAL);
}

/* Gradients of the output projection, from out by tokens. */
static inline void ulysses_out_weight(Model *m, const AttentionSaved *s, const real *dout) {
    accum **g = m->zero.dweight;
    i64 rows = own_rows(m), C = m->config.dim, width = attention_width(&m->config);
    linear_backward_weight(&m->dev, g[T_O], s->out_local, dout, C, rows, width, C);
    if (g[T_O_BIAS]) bias_backward(&m->dev, g[T_O_BIAS], dout, rows, C);
}

/* All groups are through: the last ones come back while the other weights' gradients are made, dkv under the query
   projection's backward. */
static inline void ulysses_backward_tokens(Model *m, Gradients *d, AttentionSaved *s, real *dxn, const real *xn) {
    const Config *c = &m->config;
    i64 rows = own_rows(m), N = m->mesh.head.size, HS = c->head_dim;
    int whole = d->g.groups == 1, kv_whole = d->g.kv_groups == 1;
    real *dq = s->q_raw ? take_real(m, MEM_WORKSPACE, rows * attention_width(c)) : d->tokens;
    if (whole) comm_wait(&m->fabric, d->q);
    else gradients_q_returned(m, d, d->g.groups - 1);
    queries_unpack(&m->dev, d->tokens, whole ? d->arrive : d->tokens, s->rope, rows, m->B, c->heads, HS, whole ? N : 1);
    queries_norm_backward(m, s, dq, d->tokens, rows, c->heads);
    project_q_backward_input(m, dxn, dq, rows, c->heads);
    project_q_backward_weight(m, dq, xn, rows, c->heads);
    gradients_kv_returned(m, d, d->g.kv_groups - 1);
    kv_unpack(&m->dev, d->kv_tokens, kv_whole ? d->kv_arrive : d->kv_tokens, s->rope, rows, m->B, c->kv_heads, HS,
              kv_whole ? N : 1);
    keys_norm_backward(m, s, d->kv_tokens, rows, c->kv_heads);
    project_kv_backward_input(m, dxn, d->kv_tokens, rows, c->kv_heads);
    project_kv_backward_weight(m, d->kv_tokens, xn, rows, c->kv_heads);
}

/* Each exchange starts as soon as what it carries is there, and flies under work that does not need it: the first
   group's dout under the output projection's weight gradient, a group's dq under the ring's last hop and the next
   group, the last dkv under the query projection's backward. What is made again goes through the same groups. With one
   input a layer, out is there by tokens; once the output projection has its gradient, that of out takes its place, and
   queries by tokens are where dxn will be. */
static inline void ulysses_attention_backward(Model *m, AttentionSaved *s, real *dxn, const real *dout,
                                              const real *xn) {
    if (m->mesh.head.size == 1) {
        local_attention_backward(m, s, dxn, dout, xn);
        return;
    }
    ArenaMark mark = arena_mark(&m->arena);
    HeadGroups g = groups_begin(m);
    Exchange again;
    memset(&again, 0, sizeof again);
    int early = m->again && m->one_input;
    real *q_tokens = s->out_local;
    if (early) {
        i64 width = attention_width(&m->config);
        q_tokens = width <= m->config.dim ? dxn : take_real(m, MEM_WORKSPACE, own_rows(m) * width);
    }
    if (m->again) again = exchange_begin(m, s, q_tokens, xn, g);
    if (early) ulysses_out_weight(m, s, dout);
    Gradients d = gradients_begin(m, dout, early ? s->out_local : NULL, &again, g);
    if (!m->again) ulysses_out_weight(m, s, dout);
    for (i64 j = 0; j < g.groups; j++) {
        if (m->again) exchange_arrived(m, &again, j), exchange_attend(m, &again, j);
        gradients_attend(m, &d, s, j);
    }
    if (m->again && !early) exchange_returned(m, &again, g.groups - 1), ulysses_out_weight(m, s, dout);
    ulysses_backward_tokens(m, &d, s, dxn, xn);
    groups_end(m, &g);
    arena_release(&m->arena, mark);
}

/* Forward and backward each: q and out (N-1) rows (h/N) HS, kv (N-1) rows 2 max(1, k/N) HS elements. */
static inline void ulysses_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    i64 N = m->shape.head, rows = volume_own(m, L) * B;
    i64 one =
        times * (N - 1) * rows * (2 * attention_width(c) / N + 2 * kv_heads_local(c, N) * c->head_dim) * real_size();
    ledger_expect(l, COMM_ALL_TO_ALL, tag(BLOCK_ATTENTION, PHASE_FORWARD, WHAT_ACTIVATION), one);
    ledger_expect(l, COMM_ALL_TO_ALL, tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION), one);
}

/* Of that what goes to the heads, q and kv, once more in backward. */
static inline void ulysses_volume_twice(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    i64 N = m->shape.head, rows = volume_own(m, L) * B;
    i64 one = times * (N - 1) * rows * (attention_width(c) / N + 2 * kv_heads_local(c, N) * c->head_dim) * real_size();
    ledger_expect(l, COMM_ALL_TO_ALL, tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION), one);
}

static const Scheme SCHEME_ULYSSES = {
    .name = "ulysses",
    .help = "all-to-all turns tokens into heads and back; MLP local; weights by ZeRO-3",
    .context = NULL,
    .replicated_stream = 0,
    .ring_takes_all = 0,
    .rope_on_own = 1,
    .repeats_exchange = 1,
    .takes_head_groups = 1,
    .splits = splits_nothing,
    .refuses = ulysses_refuses,
    .attention_keep = ulysses_keep,
    .attention_forward = ulysses_attention_forward,
    .attention_backward = ulysses_attention_backward,
    .mlp_forward = local_mlp_forward,
    .mlp_backward = local_mlp_backward,
    .volume = ulysses_volume,
    .volume_twice = ulysses_volume_twice,
};

#endif

/* ulysses.h - DeepSpeed-Ulysses: two all-to-alls turn tokens into heads and back; all weights by ZeRO-3.

   x (T, B, C), T = L/(R N) -> q (T, B, h, HS), kv (T, B, 2, k, HS)   projections on the own tokens, rotated, packed
        all-to-all        q (L/R, B, h/N, HS), kv (L/R, B, 2, k/N, HS)   all tokens of this rank's heads
        attention         out (L/R, B, h/N, HS)                          over the ring, if there is one (USP)
        all-to-all back   out (T, B, h, HS) -> output projection on the own tokens

   Fewer KV heads than ranks: a KV head is sent to every rank whose query heads read it, and the gradients of
   those copies are added on the way back. Backward is the same picture in reverse; q, kv and both forms of out
   are kept, nothing is sent twice.

   Jacobs et al. 2023, arXiv:2309.14509; with a ring: Fang, Zhao 2024, arXiv:2405.07719

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

/* All that attention keeps, from the own tokens' xn (T, B, C). */
static inline void ulysses_attend(Model *m, AttentionSaved *s, const real *xn) {
    const Comm *head = &m->mesh.head;
    const Config *c = &m->config;
    i64 rows = own_rows(m), N = head->size, HS = c->head_dim, width = attention_width(c);
    Tag t = tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION);
    ArenaMark mark = arena_mark(&m->arena);
    real *q = take_real(m, MEM_WORKSPACE, rows * width), *kv = take_real(m, MEM_WORKSPACE, rows * 2 * c->kv_heads * HS);
    real *q_send = take_real(m, MEM_COMM, N * ulysses_q_part(m)),
         *kv_send = take_real(m, MEM_COMM, N * ulysses_kv_part(m));
    project_q(m, s, q, xn, rows, c->heads);
    queries_pack(&m->dev, q_send, q, s->rope, rows, m->B, c->heads, HS, N);
    Request *sent = comm_all_to_all_start(&m->fabric, head, t, s->q, q_send, ulysses_q_part(m), DTYPE_REAL);
    project_kv(m, s, kv, xn, rows, c->kv_heads);
    kv_pack(&m->dev, kv_send, kv, s->rope, rows, m->B, c->kv_heads, HS, N);
    comm_wait(&m->fabric, comm_all_to_all_start(&m->fabric, head, t, s->kv, kv_send, ulysses_kv_part(m), DTYPE_REAL));
    comm_wait(&m->fabric, sent);
    attend(m, s);
    comm_wait(&m->fabric, comm_all_to_all_start(&m->fabric, head, t, q_send, s->out, ulysses_q_part(m), DTYPE_REAL));
    parts_merge(&m->dev, s->out_local, q_send, N, rows, m->heads_l * HS);
    arena_release(&m->arena, mark);
}

static inline void ulysses_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    if (m->mesh.head.size == 1) {
        local_attention_forward(m, s, out, xn);
        return;
    }
    ulysses_attend(m, s, xn);
    linear_forward(&m->dev, out, m->config.dim, s->out_local, m->zero.weight[T_O], m->zero.weight[T_O_BIAS],
                   own_rows(m), attention_width(&m->config), m->config.dim);
}

/* Each exchange starts as soon as what it carries is there, and flies under work that does not need it: dout
   under the output projection's weight gradient, dq and the ring's last hop under each other, dkv under the
   query projection's backward. */
static inline void ulysses_attention_backward(Model *m, AttentionSaved *s, real *dxn, const real *dout,
                                              const real *xn) {
    const Comm *head = &m->mesh.head;
    if (head->size == 1) {
        local_attention_backward(m, s, dxn, dout, xn);
        return;
    }
    const Config *c = &m->config;
    accum **g = m->zero.dweight;
    i64 rows = own_rows(m), N = head->size, HS = c->head_dim, q_part = ulysses_q_part(m), kv_part = ulysses_kv_part(m);
    i64 width = attention_width(c);
    Tag t = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    ArenaMark mark = arena_mark(&m->arena);
    if (m->recompute) ulysses_attend(m, s, xn);
    real *dq = take_real(m, MEM_WORKSPACE, rows * width),
         *dkv = take_real(m, MEM_WORKSPACE, rows * 2 * c->kv_heads * HS);
    real *q_parts = take_real(m, MEM_COMM, N * q_part), *kv_parts = take_real(m, MEM_COMM, N * kv_part),
         *dout_heads = take_real(m, MEM_COMM, N * q_part);
    real *dq_heads = take_real(m, MEM_WORKSPACE, N * q_part), *dkv_heads = take_real(m, MEM_WORKSPACE, N * kv_part);
    /* by tokens, in dq's place until that is made */
    real *normed = queries_normed(m, s, dq, rows, c->heads);
    linear_backward_input(&m->dev, dq, dout, c->dim, m->zero.weight[T_O], rows, width, c->dim, 0);
    parts_split(&m->dev, q_parts, dq, N, rows, m->heads_l * HS);
    Request *flying = comm_all_to_all_start(&m->fabric, head, t, dout_heads, q_parts, q_part, DTYPE_REAL);
    linear_backward_weight(&m->dev, g[T_O], s->out_local, dout, c->dim, rows, width, c->dim);
    if (g[T_O_BIAS]) bias_backward(&m->dev, g[T_O_BIAS], dout, rows, c->dim);
    comm_wait(&m->fabric, flying);
    ContextBackward rest = m->context->backward(m, s, dq_heads, dkv_heads, dout_heads);
    flying = comm_all_to_all_start(&m->fabric, head, t, q_parts, dq_heads, q_part, DTYPE_REAL);
    m->context->finish(m, &rest);
    Request *kv_flying = comm_all_to_all_start(&m->fabric, head, t, kv_parts, dkv_heads, kv_part, DTYPE_REAL);
    comm_wait(&m->fabric, flying);
    queries_unpack(&m->dev, normed, q_parts, s->rope, rows, m->B, c->heads, HS, N);
    queries_norm_backward(m, s, dq, normed, rows, c->heads);
    project_q_backward_input(m, dxn, dq, rows, c->heads);
    project_q_backward_weight(m, dq, xn, rows, c->heads);
    comm_wait(&m->fabric, kv_flying);
    kv_unpack(&m->dev, dkv, kv_parts, s->rope, rows, m->B, c->kv_heads, HS, N);
    keys_norm_backward(m, s, dkv, rows, c->kv_heads);
    project_kv_backward_input(m, dxn, dkv, rows, c->kv_heads);
    project_kv_backward_weight(m, dkv, xn, rows, c->kv_heads);
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

static const Scheme SCHEME_ULYSSES = {
    .name = "ulysses",
    .help = "all-to-all turns tokens into heads and back; MLP local; weights by ZeRO-3",
    .context = NULL,
    .replicated_stream = 0,
    .ring_takes_all = 0,
    .rope_on_own = 1,
    .repeats_exchange = 1,
    .splits = splits_nothing,
    .refuses = ulysses_refuses,
    .attention_keep = ulysses_keep,
    .attention_forward = ulysses_attention_forward,
    .attention_backward = ulysses_attention_backward,
    .mlp_forward = local_mlp_forward,
    .mlp_backward = local_mlp_backward,
    .volume = ulysses_volume,
};

#endif

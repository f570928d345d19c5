/* blocks.h - the parts of a transformer block that know nothing of parallelism: projections and the MLP on some rows.

   xn (rows, C) -> project_q, project_kv -> q (rows, heads, HS), kv (rows, 2, kv_heads, HS)
   normed by heads, before rotation
   xn (rows, C) -> mlp_body -> (rows, C), without the output bias       ffn_l wide: all of it, or this rank's part
   backward comes in halves: the gradient of the input, which other ranks wait for, and those of the first weights,
   which can be computed while it travels
   Schemes wrap them in their exchanges. Weights and gradients are those of the block acquired last.                  */
#ifndef ODYSSEUS_BLOCKS_H
#define ODYSSEUS_BLOCKS_H

#include "scheme.h"

/* The norm of the block acquired last, over `rows` rows of the stream. */
static inline NormCall block_norm(const Model *m, i64 rows) {
    real *const *w = m->zero.weight;
    NormKind kind = m->config.has & HAS_LAYER_NORM ? NORM_LAYER : NORM_RMS;
    return norm_call(kind, w[T_NORM], w[T_NORM_BIAS], rows, m->config.dim, m->config.norm_eps);
}

/* The norm of each head's query (T_Q_NORM) or key (T_K_NORM), over `n` of them. */
static inline NormCall head_norm(const Model *m, Role role, i64 n) {
    return norm_call(NORM_RMS, m->zero.weight[role], NULL, n, m->config.head_dim, m->config.norm_eps);
}

/* Norm the keys in kv (rows, 2, kv_heads, HS), and keep them as they were. */
static inline void keys_norm_forward(Model *m, AttentionSaved *s, real *kv, i64 rows, i64 kv_heads) {
    Device *dev = &m->dev;
    i64 width = kv_heads * m->config.head_dim;
    ArenaMark mark = arena_mark(&m->arena);
    real *apart = take_real(m, MEM_WORKSPACE, 2 * rows * width); /* k, then v */
    parts_split(dev, apart, kv, 2, rows, width);
    parts_split(dev, s->k_raw, apart, 1, rows, width); /* a copy */
    norm_forward(dev, head_norm(m, T_K_NORM, rows * kv_heads), apart, NULL, NULL, s->k_rstd, s->k_raw, NULL);
    parts_merge(dev, kv, apart, 2, rows, width);
    arena_release(&m->arena, mark);
}

/* dkv (rows, 2, kv_heads, HS): the gradient of normed keys becomes that of the keys before; that of values stays. The
   sum over tokens and heads of what a norm's weight gets is this rank's; ZeRO adds the ranks. */
static inline void keys_norm_backward(Model *m, AttentionSaved *s, real *dkv, i64 rows, i64 kv_heads) {
    Device *dev = &m->dev;
    i64 width = kv_heads * m->config.head_dim, n = rows * kv_heads;
    if (!s->k_raw) return;
    ArenaMark mark = arena_mark(&m->arena);
    real *apart = take_real(m, MEM_WORKSPACE, 2 * rows * width), *dk = take_real(m, MEM_WORKSPACE, rows * width);
    parts_split(dev, apart, dkv, 2, rows, width);
    parts_split(dev, dk, apart, 1, rows, width);
    zero_fill(dev, apart, rows * width * real_size());
    norm_backward(dev, head_norm(m, T_K_NORM, n), apart, m->zero.dweight[T_K_NORM], NULL, dk, NULL, s->k_rstd, s->k_raw,
                  0, n);
    parts_merge(dev, dkv, apart, 2, rows, width);
    arena_release(&m->arena, mark);
}

/* dq (rows, heads, HS) = the gradient of queries before their norm, for `normed`, that after it; without
   a norm they are one buffer. */
static inline void queries_norm_backward(Model *m, AttentionSaved *s, real *dq, const real *normed, i64 rows,
                                         i64 heads) {
    i64 n = rows * heads;
    if (!s->q_raw) return;
    zero_fill(&m->dev, dq, n * m->config.head_dim * real_size());
    norm_backward(&m->dev, head_norm(m, T_Q_NORM, n), dq, m->zero.dweight[T_Q_NORM], NULL, normed, NULL, s->q_rstd,
                  s->q_raw, 0, n);
}

/* Where the gradient of normed queries goes: a buffer of its own, of the caller's mark, or dq itself. */
static inline real *queries_normed(Model *m, const AttentionSaved *s, real *dq, i64 rows, i64 heads) {
    return s->q_raw ? take_real(m, MEM_WORKSPACE, rows * heads * m->config.head_dim) : dq;
}

/* q = xn (rows, C) times this rank's query projection, of `heads` heads; kv likewise, of `kv_heads` key and value
   heads. Normed, where the model norms them. */
static inline void project_q(Model *m, AttentionSaved *s, real *q, const real *xn, i64 rows, i64 heads) {
    real **w = m->zero.weight, *raw = s->q_raw ? s->q_raw : q;
    i64 width = heads * m->config.head_dim;
    linear_forward(&m->dev, raw, width, xn, w[T_Q], w[T_Q_BIAS], rows, m->config.dim, width);
    if (s->q_raw) norm_forward(&m->dev, head_norm(m, T_Q_NORM, rows * heads), q, NULL, NULL, s->q_rstd, raw, NULL);
}

static inline void project_kv(Model *m, AttentionSaved *s, real *kv, const real *xn, i64 rows, i64 kv_heads) {
    real **w = m->zero.weight; /* v's weights follow k's */
    i64 width = 2 * kv_heads * m->config.head_dim;
    linear_forward(&m->dev, kv, width, xn, w[T_K], w[T_K_BIAS], rows, m->config.dim, width);
    if (s->k_raw) keys_norm_forward(m, s, kv, rows, kv_heads);
}

/* dxn (rows, C) = the input gradient of the query projection for dq (rows, heads, HS), before rotation; that of
   keys and values adds to it. */
static inline void project_q_backward_input(Model *m, real *dxn, const real *dq, i64 rows, i64 heads) {
    i64 width = heads * m->config.head_dim;
    linear_backward_input(&m->dev, dxn, dq, width, m->zero.weight[T_Q], rows, m->config.dim, width, 0);
}

static inline void project_kv_backward_input(Model *m, real *dxn, const real *dkv, i64 rows, i64 kv_heads) {
    i64 width = 2 * kv_heads * m->config.head_dim;
    linear_backward_input(&m->dev, dxn, dkv, width, m->zero.weight[T_K], rows, m->config.dim, width, 1);
}

/* Add to the gradients of a first projection's weight and bias, for dy (rows, width). No other rank waits for
   them: transfers run meanwhile. */
static inline void first_backward_weight(Model *m, Role weight, Role bias, const real *dy, const real *xn, i64 rows,
                                         i64 width) {
    accum **g = m->zero.dweight;
    linear_backward_weight(&m->dev, g[weight], xn, dy, width, rows, m->config.dim, width);
    if (g[bias]) bias_backward(&m->dev, g[bias], dy, rows, width);
}

static inline void project_q_backward_weight(Model *m, const real *dq, const real *xn, i64 rows, i64 heads) {
    first_backward_weight(m, T_Q, T_Q_BIAS, dq, xn, rows, heads * m->config.head_dim);
}

static inline void project_kv_backward_weight(Model *m, const real *dkv, const real *xn, i64 rows, i64 kv_heads) {
    first_backward_weight(m, T_K, T_K_BIAS, dkv, xn, rows, 2 * kv_heads * m->config.head_dim);
}

/* The first of the tensors that make the first product; up's follows gate's. */
static inline Role mlp_first(const Model *m) { return m->config.has & HAS_GATE ? T_GATE : T_UP; }
static inline Role mlp_first_bias(const Model *m) { return m->config.has & HAS_GATE ? T_GATE_BIAS : T_UP_BIAS; }

/* act (rows, ffn_l) = what the down projection reads, from what was kept */
static inline void mlp_activation(Model *m, real *act, const real *pre, i64 rows, i64 ffn_l) {
    if (m->config.has & HAS_GATE) swiglu_forward(&m->dev, act, pre, rows, ffn_l);
    else gelu_forward(&m->dev, act, pre, rows * ffn_l);
}

/* The MLP's wide matrices, of one tile of rows after the other. A row's own numbers do not depend on the tile; what is
   summed over rows, the gradients of weights and biases, is summed tile by tile. Arctic Long Sequence Training, Bekman
   et al. 2025, arXiv:2506.13996 */
typedef struct {
    i64 rows, ffn_l, tile; /* all of them; of a tile */
    real *kept, *pre;      /* (rows, gates * ffn_l); (tile, gates * ffn_l) where nothing is kept */
    real *act, *dpre;      /* (tile, ffn_l), (tile, gates * ffn_l) */
} MlpTiles;

/* Buffers of the caller's mark. */
static inline MlpTiles mlp_tiles(Model *m, const MlpSaved *s, i64 rows, i64 ffn_l, int backward) {
    i64 width = mlp_gates(&m->config) * ffn_l, tile = m->tile_rows ? i64_min(m->tile_rows, rows) : rows;
    MlpTiles t = {rows, ffn_l, tile, s->pre, NULL, NULL, NULL};
    if (!s->pre) t.pre = take_real(m, MEM_WORKSPACE, tile * width);
    t.act = take_real(m, MEM_WORKSPACE, tile * ffn_l);
    if (backward) t.dpre = take_real(m, MEM_WORKSPACE, tile * width);
    return t;
}

/* Rows of the tile that begins at `row`, and where their first product is. */
static inline i64 mlp_tile_rows(const MlpTiles *t, i64 row) { return i64_min(t->tile, t->rows - row); }
static inline real *mlp_tile_pre(const Model *m, const MlpTiles *t, i64 row) {
    return t->kept ? t->kept + row * mlp_gates(&m->config) * t->ffn_l : t->pre;
}

/* The first product of the tile at `row`, from xn (rows, C). */
static inline void mlp_tile_up(Model *m, const MlpTiles *t, const real *xn, i64 row) {
    real **w = m->zero.weight;
    i64 C = m->config.dim, width = mlp_gates(&m->config) * t->ffn_l;
    linear_forward(&m->dev, mlp_tile_pre(m, t, row), width, xn + row * C, w[mlp_first(m)], w[mlp_first_bias(m)],
                   mlp_tile_rows(t, row), C, width);
}

/* out (rows, C) = down(act(up(xn))), a partial sum where ffn_l is only this rank's part; out may be xn. */
static inline void mlp_body_forward(Model *m, MlpSaved *s, real *out, const real *xn, i64 rows, i64 ffn_l) {
    i64 C = m->config.dim;
    ArenaMark mark = arena_mark(&m->arena);
    MlpTiles t = mlp_tiles(m, s, rows, ffn_l, 0);
    zero_prefetch(&m->zero);
    for (i64 row = 0; row < rows; row += t.tile) {
        mlp_tile_up(m, &t, xn, row);
        mlp_activation(m, t.act, mlp_tile_pre(m, &t, row), mlp_tile_rows(&t, row), ffn_l);
        linear_forward(&m->dev, out + row * C, C, t.act, m->zero.weight[T_DOWN], NULL, mlp_tile_rows(&t, row), ffn_l,
                       C);
    }
    arena_release(&m->arena, mark);
}

/* The tile at `row` of dxn (rows, C), and t->dpre, for dout (rows, C), whose place dxn may take; adds to the gradient
   of the down projection. */
static inline void mlp_tile_backward_input(Model *m, const MlpTiles *t, real *dxn, const real *dout, i64 row) {
    real **w = m->zero.weight;
    Device *dev = &m->dev;
    i64 C = m->config.dim, ffn_l = t->ffn_l, width = mlp_gates(&m->config) * ffn_l, rows = mlp_tile_rows(t, row);
    real *act = t->act, *dpre = t->dpre, *pre = mlp_tile_pre(m, t, row);
    dxn += row * C, dout += row * C;
    /* act's gradient, until the next operation computes act again */
    linear_backward_input(dev, act, dout, C, w[T_DOWN], rows, ffn_l, C, 0);
    if (m->config.has & HAS_GATE) swiglu_backward(dev, dpre, act, pre, rows, ffn_l);
    else gelu_backward(dev, dpre, act, pre, rows * ffn_l);
    linear_backward_weight(dev, m->zero.dweight[T_DOWN], act, dout, C, rows, ffn_l, C);
    linear_backward_input(dev, dxn, dpre, width, w[mlp_first(m)], rows, C, width, 0);
}

/* Adds to the gradients of the first projection and of its bias what the tile at `row` has. */
static inline void mlp_tile_backward_weight(Model *m, const MlpTiles *t, const real *xn, i64 row) {
    first_backward_weight(m, mlp_first(m), mlp_first_bias(m), t->dpre, xn + row * m->config.dim, mlp_tile_rows(t, row),
                          mlp_gates(&m->config) * t->ffn_l);
}

/* The MLP of every scheme that leaves it alone: on the own tokens, with whole weights that ZeRO-3 has gathered. */
static inline void local_mlp_forward(Model *m, MlpSaved *s, real *out, const real *xn) {
    mlp_body_forward(m, s, out, xn, own_rows(m), m->config.ffn);
    if (m->zero.weight[T_DOWN_BIAS]) bias_add(&m->dev, out, m->zero.weight[T_DOWN_BIAS], own_rows(m), m->config.dim);
}

static inline void local_mlp_backward(Model *m, MlpSaved *s, real *dxn, const real *dout, const real *xn) {
    i64 rows = own_rows(m);
    ArenaMark mark = arena_mark(&m->arena);
    MlpTiles t = mlp_tiles(m, s, rows, m->config.ffn, 1);
    zero_prefetch(&m->zero);
    if (m->zero.dweight[T_DOWN_BIAS]) bias_backward(&m->dev, m->zero.dweight[T_DOWN_BIAS], dout, rows, m->config.dim);
    for (i64 row = 0; row < rows; row += t.tile) {
        if (m->recompute) mlp_tile_up(m, &t, xn, row);
        mlp_tile_backward_input(m, &t, dxn, dout, row);
        mlp_tile_backward_weight(m, &t, xn, row);
    }
    arena_release(&m->arena, mark);
}

/* ---- what contexts share: the ring ranks' keys come in turns, the own ones first --------------------------------- */

/* Elements of one ring rank's kv (L/R, B, 2, kv_heads_l, HS). */
static inline i64 kv_count_own(const Model *m) { return ring_rows(m) * 2 * m->kv_heads_l * m->config.head_dim; }

/* The ring rank whose keys and values come at `turn`, and their positions. */
static inline i64 visitor_rank(const Model *m, i64 turn) {
    i64 R = m->mesh.shape.ring;
    return (m->mesh.ring_rank - turn + R) % R;
}

static inline TokenMap visitor_map(const Model *m, i64 turn) {
    return token_map(m->layout, m->L, (int)m->mesh.shape.ring, (int)visitor_rank(m, turn));
}

/* Pairs of a query of this rank and a key of them that it sees, in the layer of `s` and all sequences. */
static inline double visitor_pairs(const Model *m, const AttentionSaved *s, i64 turn) {
    double pairs = 0;
    i64 pieces = ring_pieces(m), first = visitor_rank(m, turn) * pieces;
    for (i64 i = 0; i < pieces; i++) pairs += s->sight->pairs[first + i];
    return pairs;
}

/* Does this rank see anything of them? Of its own every query sees one. */
static inline int visitor_seen(const Model *m, const AttentionSaved *s, i64 turn) {
    return turn == 0 || visitor_pairs(m, s, turn) > 0;
}

/* The last turn at which it does. Attention rounds its sums to the compute type there. */
static inline i64 visitor_last(const Model *m, const AttentionSaved *s) {
    i64 turn = m->mesh.shape.ring - 1;
    while (!visitor_seen(m, s, turn)) turn--;
    return turn;
}

/* This rank's queries against the keys that come at `turn`. */
static inline AttentionCall visitor_call(const Model *m, const AttentionSaved *s, i64 turn, int merge) {
    return attention_call_within(attention_shape(m), m->ring_map, visitor_map(m, turn), merge, s->sight->lo,
                                 visitor_pairs(m, s, turn));
}

/* Wait for what backward has left under way, and complete dkv. */
static inline void context_finish(Model *m, ContextBackward *h) {
    comm_wait(&m->fabric, h->flying);
    if (h->arrived) sum_parts(&m->dev, h->dkv_sum, h->arrived, 1, h->count, h->count, DTYPE_ACCUM, 1);
    if (h->dkv_sum) convert(&m->dev, h->dkv, h->dkv_sum, h->count);
}

/* ---- attention of this rank's heads over its ring-local tokens --------------------------------------------------- */

/* s->out and s->lse from s->q and s->kv. A repetition finds them where they were kept. */
static inline void attend(Model *m, AttentionSaved *s) {
    if (m->phase == PHASE_BACKWARD && m->again == RECOMPUTE_ATTENTION_KEPT) zero_prefetch(&m->zero);
    else m->context->forward(m, s);
}

/* All that attention keeps, from xn (L/R, B, C), with this rank's heads. */
static inline void heads_attend(Model *m, AttentionSaved *s, const real *xn) {
    i64 rows = ring_rows(m), HS = m->config.head_dim;
    project_q(m, s, s->q, xn, rows, m->heads_l);
    project_kv(m, s, s->kv, xn, rows, m->kv_heads_l);
    queries_pack(&m->dev, s->q, s->q, s->rope, rows, m->B, m->heads_l, HS, 1);
    kv_pack(&m->dev, s->kv, s->kv, s->rope, rows, m->B, m->kv_heads_l, HS, 1);
    attend(m, s);
}

/* out (L/R, B, C) = attention of xn (L/R, B, C) with this rank's heads and its columns of the output projection,
   without bias: everything where all heads are here, a partial sum where the head axis has split them. */
static inline void heads_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    heads_attend(m, s, xn);
    linear_forward(&m->dev, out, m->config.dim, s->out, m->zero.weight[T_O], NULL, ring_rows(m),
                   m->heads_l * m->config.head_dim, m->config.dim);
}

/* Backward up to the projections: gradients of q and kv as projected, the latter complete
   after heads_backward_finish. */
typedef struct {
    AttentionSaved *saved;
    real *dq, *dkv; /* (L/R, B, heads_l, HS), (L/R, B, 2, kv_heads_l, HS), of the caller's mark */
    ContextBackward rest;
    ArenaMark inner; /* of all else, which goes with heads_backward_finish */
} HeadsBackward;

/* For dout (L/R, B, C), which is not needed afterwards; adds to the gradient of the output projection. What remains to
   be done are the input gradient of the first projections, a partial sum where heads are split, and the gradients of
   their weights: in the caller's order. */
static inline HeadsBackward heads_backward(Model *m, AttentionSaved *s, const real *dout) {
    HeadsBackward h;
    i64 rows = ring_rows(m), HS = m->config.head_dim, NQ = m->heads_l * HS, NKV = 2 * m->kv_heads_l * HS;
    h.saved = s, h.dq = take_real(m, MEM_WORKSPACE, rows * NQ), h.dkv = take_real(m, MEM_WORKSPACE, rows * NKV);
    h.inner = arena_mark(&m->arena);
    real *normed = queries_normed(m, s, h.dq, rows, m->heads_l);
    real *dattended = take_real(m, MEM_WORKSPACE, rows * NQ);
    linear_backward_weight(&m->dev, m->zero.dweight[T_O], s->out, dout, m->config.dim, rows, NQ, m->config.dim);
    linear_backward_input(&m->dev, dattended, dout, m->config.dim, m->zero.weight[T_O], rows, NQ, m->config.dim, 0);
    h.rest = m->context->backward(m, s, normed, h.dkv, dattended);
    queries_unpack(&m->dev, normed, normed, s->rope, rows, m->B, m->heads_l, HS, 1);
    queries_norm_backward(m, s, h.dq, normed, rows, m->heads_l);
    return h;
}

/* dkv is complete. */
static inline void heads_backward_finish(Model *m, HeadsBackward *h) {
    i64 rows = ring_rows(m), HS = m->config.head_dim;
    m->context->finish(m, &h->rest);
    kv_unpack(&m->dev, h->dkv, h->dkv, h->saved->rope, rows, m->B, m->kv_heads_l, HS, 1);
    keys_norm_backward(m, h->saved, h->dkv, rows, m->kv_heads_l);
    arena_release(&m->arena, h->inner);
}

/* The attention of every scheme whose head axis, if any, has one rank: all heads, with whole
   weights that ZeRO-3 has gathered. */
static inline void local_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    zero_prefetch(&m->zero);
    heads_attention_forward(m, s, out, xn);
    if (m->zero.weight[T_O_BIAS]) bias_add(&m->dev, out, m->zero.weight[T_O_BIAS], ring_rows(m), m->config.dim);
}

/* The context's last transfer flies under the query projection's backward. */
static inline void local_attention_backward(Model *m, AttentionSaved *s, real *dxn, const real *dout, const real *xn) {
    i64 rows = ring_rows(m);
    ArenaMark mark = arena_mark(&m->arena);
    zero_prefetch(&m->zero);
    if (m->again) heads_attend(m, s, xn);
    if (m->zero.dweight[T_O_BIAS]) bias_backward(&m->dev, m->zero.dweight[T_O_BIAS], dout, rows, m->config.dim);
    HeadsBackward h = heads_backward(m, s, dout);
    project_q_backward_input(m, dxn, h.dq, rows, m->heads_l);
    project_q_backward_weight(m, h.dq, xn, rows, m->heads_l);
    heads_backward_finish(m, &h);
    project_kv_backward_input(m, dxn, h.dkv, rows, m->kv_heads_l);
    project_kv_backward_weight(m, h.dkv, xn, rows, m->kv_heads_l);
    arena_release(&m->arena, mark);
}

#endif

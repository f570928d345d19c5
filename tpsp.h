/* tpsp.h - tensor parallelism, with and without sequence parallelism: heads and MLP
   columns are split, the same for both.

   tp     x (L, B, C) replicated ---> columns ---> rows ---> all-reduce ---> + bias    the stream is whole on every rank
   tpsp   x (L/N, B, C) -all-gather-> columns ---> rows ---> reduce-scatter -> + bias  the stream is split by tokens

          backward runs the same arrows against the grain: the gradient of an all-reduce is its input as it is, the
          gradient of the identity at the front an all-reduce; all-gather and reduce-scatter are each other's gradients.
          tpsp gathers the block's normed input a second time in backward rather than keeping (L, B, C) of it. That and
          the sum of the input gradient hide:
          dout ===AG===>  | xn ===AG===> (attention, or down projection) | dxn ===RS===> (first weights' gradients)
          What is made again in backward is made of that xn, which then comes first:
          xn ===AG===>    | dout ===AG===> (projections and attention, or up projection, once more) | dxn ...

   Shoeybi et al. 2019, arXiv:1909.08053 (tp); Korthikanti et al. 2022, arXiv:2205.05198 (tpsp)

   per rank  q (L/R, B, h/N, HS)  kv (L/R, B, 2, max(1, k/N), HS)  MLP (L/R, B, i/N)
   traffic   of a layer and rank, elements, c = (N-1)/N, L/R tokens under a ring of R:
             tp    2 all-reduces forward, 2 backward                                           8 c L d
             tpsp  2 (all-gather + reduce-scatter) forward,
                   2 (2 all-gathers + reduce-scatter) backward = 6 AG + 4 RS                   10 c L d
             tp besides gathers the head's activation gradients, c L d once (train_gpt.cu).

   What no rank splits - norms, output biases - is the same on all: its gradient is taken over the
   own tokens and summed by ZeRO. */
#ifndef ODYSSEUS_TPSP_H
#define ODYSSEUS_TPSP_H

#include "core/blocks.h"

static inline int tpsp_splits(BlockKind block) { return block == BLOCK_ATTENTION || block == BLOCK_MLP; }

static inline int tpsp_refuses(const Config *c, const MeshShape *shape, char *why, size_t size) {
    return refuse_head_axis(c, shape, 1, why, size);
}

/* ---- into and out of a split block ------------------------------------------------------------------------------- */

/* A stream of all the ring's tokens, perhaps on its way here. */
typedef struct {
    const real *rows; /* (L/R, B, C), to be read after tp_arrived */
    real *gathered;   /* the same, where they were gathered; NULL: the stream is whole on every rank */
    Request *flying;
} Entering;

/* x of all tokens: itself where the stream is whole, else gathered into a buffer of the caller's mark. */
static inline Entering tp_enter(Model *m, Tag t, const real *x) {
    Entering e = {x, NULL, NULL};
    if (m->scheme->replicated_stream || m->mesh.head.size == 1) return e;
    e.rows = e.gathered = take_real(m, MEM_COMM, ring_rows(m) * m->config.dim);
    e.flying =
        comm_all_gather_start(&m->fabric, &m->mesh.head, t, e.gathered, x, own_rows(m) * m->config.dim, DTYPE_REAL);
    return e;
}

static inline const real *tp_arrived(Model *m, Entering *e) {
    comm_wait(&m->fabric, e->flying);
    e->flying = NULL;
    return e->rows;
}

/* Where a block of split weights puts its partial sums, for tp_leave to reduce: straight into the stream if nothing
   changes shape, else in the place of what was gathered for it, which is used up by then. */
static inline real *tp_partial(real *stream, const Entering *e) { return e->gathered ? e->gathered : stream; }

/* stream = the sum over the head axis of `partial` (L/R, B, C): all of it (all-reduce), or the own tokens
   (reduce-scatter). Under way, with a buffer of the caller's mark. */
static inline Request *tp_leave(Model *m, Tag t, real *stream, real *partial) {
    const Comm *head = &m->mesh.head;
    if (head->size == 1) return NULL;
    i64 count = own_rows(m) * m->config.dim;
    real *scratch = take_real(m, MEM_COMM, ring_rows(m) * m->config.dim);
    if (m->scheme->replicated_stream)
        return comm_all_reduce_start(&m->fabric, head, t, stream, scratch, count, DTYPE_REAL);
    return comm_reduce_scatter_start(&m->fabric, head, t, stream, partial, scratch, count, DTYPE_REAL, 0);
}

/* The bias after the sum, once; its gradient over the own tokens. */
static inline void tp_bias(Model *m, Role role, real *stream) {
    if (m->zero.weight[role]) bias_add(&m->dev, stream, m->zero.weight[role], stream_rows(m), m->config.dim);
}

static inline void tp_bias_backward(Model *m, Role role, const real *dstream) {
    if (m->zero.dweight[role])
        bias_backward(&m->dev, m->zero.dweight[role], dstream + m->own_first * m->B * m->config.dim, own_rows(m),
                      m->config.dim);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

static inline void tpsp_attention_forward(Model *m, AttentionSaved *s, real *out, const real *xn) {
    Tag t = tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION);
    ArenaMark mark = arena_mark(&m->arena);
    Entering all = tp_enter(m, t, xn);
    real *partial = tp_partial(out, &all);
    heads_attention_forward(m, s, partial, tp_arrived(m, &all));
    comm_wait(&m->fabric, tp_leave(m, t, out, partial));
    tp_bias(m, T_O_BIAS, out);
    arena_release(&m->arena, mark);
}

/* Every transfer runs under work that does not need it: the gather of dout under the output bias's gradient, that of
   the normed input under attention, and the sum of the input gradient under the weight gradients of the first
   projections, which alone need that input. A repetition needs it first. */
static inline void tpsp_attention_backward(Model *m, AttentionSaved *s, real *dxn, const real *dout, const real *xn) {
    Tag t = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    i64 rows = ring_rows(m);
    ArenaMark mark = arena_mark(&m->arena);
    Entering first = tp_enter(m, t, m->again ? xn : dout);
    tp_bias_backward(m, T_O_BIAS, dout);
    tp_arrived(m, &first);
    Entering second = tp_enter(m, t, m->again ? dout : xn);
    if (m->again) heads_attend(m, s, first.rows), tp_arrived(m, &second);
    Entering all = m->again ? first : second, dall = m->again ? second : first;
    real *partial = tp_partial(dxn, &dall);
    HeadsBackward h = heads_backward(m, s, dall.rows);
    project_q_backward_input(m, partial, h.dq, rows, m->heads_l);
    heads_backward_finish(m, &h);
    project_kv_backward_input(m, partial, h.dkv, rows, m->kv_heads_l);
    Request *leaving = tp_leave(m, t, dxn, partial);
    tp_arrived(m, &all);
    project_q_backward_weight(m, h.dq, all.rows, rows, m->heads_l);
    project_kv_backward_weight(m, h.dkv, all.rows, rows, m->kv_heads_l);
    comm_wait(&m->fabric, leaving);
    arena_release(&m->arena, mark);
}

/* ---- MLP --------------------------------------------------------------------------------------------------------- */

static inline void tpsp_mlp_forward(Model *m, MlpSaved *s, real *out, const real *xn) {
    Tag t = tag(BLOCK_MLP, m->phase, WHAT_ACTIVATION);
    ArenaMark mark = arena_mark(&m->arena);
    Entering all = tp_enter(m, t, xn);
    real *partial = tp_partial(out, &all);
    mlp_body_forward(m, s, partial, tp_arrived(m, &all), ring_rows(m), m->config.ffn / m->mesh.shape.head);
    comm_wait(&m->fabric, tp_leave(m, t, out, partial));
    tp_bias(m, T_DOWN_BIAS, out);
    arena_release(&m->arena, mark);
}

/* As in attention: the normed input comes under the down projection's backward, or first, where every tile needs it.
   The sum of the input gradient leaves before the last tile's weights. */
static inline void tpsp_mlp_backward(Model *m, MlpSaved *s, real *dxn, const real *dout, const real *xn) {
    Tag t = tag(BLOCK_MLP, PHASE_BACKWARD, WHAT_ACTIVATION);
    i64 rows = ring_rows(m), last;
    ArenaMark mark = arena_mark(&m->arena);
    MlpTiles tiles = mlp_tiles(m, s, rows, m->config.ffn / m->mesh.shape.head, 1);
    int early = m->recompute || tiles.tile < rows;
    Entering first = tp_enter(m, t, early ? xn : dout);
    tp_bias_backward(m, T_DOWN_BIAS, dout);
    tp_arrived(m, &first);
    Entering second = tp_enter(m, t, early ? dout : xn);
    zero_prefetch(&m->zero);
    if (m->recompute) mlp_tile_up(m, &tiles, first.rows, 0);
    if (early) tp_arrived(m, &second);
    Entering all = early ? first : second, dall = early ? second : first;
    real *partial = tp_partial(dxn, &dall);
    for (last = 0; last + tiles.tile < rows; last += tiles.tile) {
        mlp_tile_backward_input(m, &tiles, partial, dall.rows, last);
        mlp_tile_backward_weight(m, &tiles, all.rows, last);
        if (m->recompute) mlp_tile_up(m, &tiles, all.rows, last + tiles.tile);
    }
    mlp_tile_backward_input(m, &tiles, partial, dall.rows, last);
    Request *leaving = tp_leave(m, t, dxn, partial);
    mlp_tile_backward_weight(m, &tiles, tp_arrived(m, &all), last);
    comm_wait(&m->fabric, leaving);
    arena_release(&m->arena, mark);
}

/* ---- closed forms ------------------------------------------------------------------------------------------------ */

/* Of one block in all micro-steps: forward AG + RS, backward 2 AG + RS, each (N-1) (L/RN) B d elements. */
static inline void tpsp_block_volume(Ledger *l, BlockKind block, const Config *c, const Mesh *m, i64 L, i64 B,
                                     i64 times) {
    i64 one = times * (m->shape.head - 1) * volume_own(m, L) * B * c->dim * real_size();
    ledger_expect(l, COMM_ALL_GATHER, tag(block, PHASE_FORWARD, WHAT_ACTIVATION), one);
    ledger_expect(l, COMM_REDUCE_SCATTER, tag(block, PHASE_FORWARD, WHAT_ACTIVATION), one);
    ledger_expect(l, COMM_ALL_GATHER, tag(block, PHASE_BACKWARD, WHAT_ACTIVATION), 2 * one);
    ledger_expect(l, COMM_REDUCE_SCATTER, tag(block, PHASE_BACKWARD, WHAT_ACTIVATION), one);
}

static inline void tpsp_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    tpsp_block_volume(l, BLOCK_ATTENTION, c, m, L, B, times);
    tpsp_block_volume(l, BLOCK_MLP, c, m, L, B, times);
}

static inline void tp_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    const BlockKind blocks[2] = {BLOCK_ATTENTION, BLOCK_MLP};
    i64 one = times * 2 * (m->shape.head - 1) * volume_own(m, L) * B * c->dim * real_size();
    for (int b = 0; b < 2; b++) {
        ledger_expect(l, COMM_ALL_REDUCE, tag(blocks[b], PHASE_FORWARD, WHAT_ACTIVATION), one);
        ledger_expect(l, COMM_ALL_REDUCE, tag(blocks[b], PHASE_BACKWARD, WHAT_ACTIVATION), one);
    }
}

static const Scheme SCHEME_TP = {
    .name = "tp",
    .help = "heads and MLP split, all-reduce after each; the stream is whole on every rank",
    .context = NULL,
    .replicated_stream = 1,
    .ring_takes_all = 0,
    .rope_on_own = 0,
    .repeats_exchange = 0,
    .takes_head_groups = 0,
    .splits = tpsp_splits,
    .refuses = tpsp_refuses,
    .attention_keep = NULL,
    .attention_forward = tpsp_attention_forward,
    .attention_backward = tpsp_attention_backward,
    .mlp_forward = tpsp_mlp_forward,
    .mlp_backward = tpsp_mlp_backward,
    .volume = tp_volume,
    .volume_twice = NULL,
};

static const Scheme SCHEME_TPSP = {
    .name = "tpsp",
    .help = "heads and MLP split, all-gather in and reduce-scatter out; the stream is split by tokens",
    .context = NULL,
    .replicated_stream = 0,
    .ring_takes_all = 0,
    .rope_on_own = 0,
    .repeats_exchange = 0,
    .takes_head_groups = 0,
    .splits = tpsp_splits,
    .refuses = tpsp_refuses,
    .attention_keep = NULL,
    .attention_forward = tpsp_attention_forward,
    .attention_backward = tpsp_attention_backward,
    .mlp_forward = tpsp_mlp_forward,
    .mlp_backward = tpsp_mlp_backward,
    .volume = tpsp_volume,
    .volume_twice = NULL,
};

#endif

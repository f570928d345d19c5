/* allgather.h - all-gather context parallelism: queries stay at home, keys and values of all ring ranks are gathered.

   forward   kv of R ranks, a piece at a time (piece p: tokens n p .. n (p+1) of every rank, of L/R that it has):
             q x own kv           | q x piece 0 of the others | q x piece 1 of the others | ...
             all-gather piece 0 > | all-gather piece 1 >      | all-gather piece 2 >      |
             (out, lse) are merged in the accumulation precision; blocks of which nobody here sees anything are skipped
   backward  the pieces come again; of each, every rank finds its share of everybody's dkv, and a reduce-scatter takes
             the shares home under the work on the next piece, the last one's while the caller works on dq

   Against the ring: the same bytes in 3 collectives a piece, and no hop waits for the hop before it. Pieces bound the
   memory: as many of them as ring ranks need no more than the ring does; a single one is Llama 3's. Fewer tokens than
   GATHER_TOKENS would make attention's blocks too small to be fast; --gather-tokens says otherwise. Layouts
   (positions.h) balance it as they do the ring.

   Llama Team 2024, arXiv:2407.21783, 3.3.2; the default of torchtitan and TransformerEngine

   per rank  q, out (L/R, B, heads_l, HS)  kv (L/R, B, 2, kv_heads_l, HS)  lse (L/R, B, heads_l)
             gathered kv (R, n, B, 2, kv_heads_l, HS), twice, or once where one piece is all; of dkv the same in accum,
             and once more, where the parts of a sum arrive
   traffic   of a layer and rank, elements, g = KV heads / heads, c = (R-1)/R, a = h HS: forward all-gather 2 g c L a;
             backward again 2 g c L a, and a reduce-scatter of 2 g c L a of dkv; sum 6 g c L a, as the ring. Under a
             head axis of H: 6 g' c L a / H, g' = max(k, H)/h.                                                      */
#ifndef ODYSSEUS_ALLGATHER_H
#define ODYSSEUS_ALLGATHER_H

#include "core/blocks.h"

#define GATHER_TOKENS 1024 /* of each rank in a piece, at least, unless told */

/* Tokens of each rank in a piece; the last one may have fewer. */
static inline i64 gather_tokens(const Model *m) {
    i64 most = m->gather_tokens;
    return i64_min(m->T_ring, most ? most : i64_max(GATHER_TOKENS, ceil_div(m->T_ring, m->mesh.shape.ring)));
}

/* Elements of kv of one token, all sequences of it. */
static inline i64 gather_width(const Model *m) { return m->B * 2 * m->kv_heads_l * m->config.head_dim; }

/* Elements of the largest piece of all ranks. */
static inline i64 gather_room(const Model *m) {
    return m->mesh.shape.ring * m->piece * gather_width(m);
}

/* The queries meet the own keys first, all at once, then those of the other ranks, piece by piece. */
typedef struct {
    i64 piece, turn; /* turn 0: the own ones (visitor_*, core/blocks.h) */
    i64 first, count; /* tokens of their rank */
    TokenMap map;
    double pairs; /* of a query and a key of them that it sees, in the layer at hand; 0: nobody sees any */
} GatherStop;

static inline i64 gather_stops(const Model *m) { return 1 + ring_pieces(m) * (m->mesh.shape.ring - 1); }

static inline GatherStop gather_stop(const Model *m, const AttentionSaved *saved, i64 k) {
    i64 others = m->mesh.shape.ring - 1;
    GatherStop s = {0, 0, 0, m->T_ring, m->ring_map, visitor_pairs(m, saved, 0)};
    if (k == 0) return s;
    s.piece = (k - 1) / others, s.turn = 1 + (k - 1) % others;
    s.first = piece_first(m, s.piece), s.count = piece_first(m, s.piece + 1) - s.first;
    s.map = token_map_slice(visitor_map(m, s.turn), s.first, s.count);
    s.pairs = saved->sight->pairs[visitor_rank(m, s.turn) * ring_pieces(m) + s.piece];
    return s;
}

/* The last stop at which a query sees something. */
static inline i64 gather_last(const Model *m, const AttentionSaved *s) {
    i64 k = gather_stops(m) - 1;
    while (k > 0 && gather_stop(m, s, k).pairs == 0) k--;
    return k;
}

static inline AttentionCall gather_call(const Model *m, const AttentionSaved *s, const GatherStop *at) {
    AttentionShape shape = attention_shape(m);
    shape.Tk = at->count;
    return attention_call_within(shape, m->ring_map, at->map, at->turn > 0, s->sight->lo, at->pairs);
}

/* Pieces of everybody's kv, on their way here. */
typedef struct {
    real *room[2];
    Request *flying;
} Gathering;

/* Start to gather a piece; past the last one, nothing. */
static inline void gather_start(Model *m, Gathering *g, const AttentionSaved *s, i64 piece) {
    g->flying = NULL;
    if (piece == ring_pieces(m)) return;
    i64 first = piece_first(m, piece), width = gather_width(m);
    g->flying = comm_all_gather_start(&m->fabric, &m->mesh.ring, tag(BLOCK_ATTENTION, m->phase, WHAT_ACTIVATION),
                                      g->room[piece % 2], s->kv + first * width,
                                      (piece_first(m, piece + 1) - first) * width, DTYPE_REAL);
}

/* Make room for pieces, in the caller's mark, and start with the first; nothing where the ring has one rank. */
static inline Gathering gather_begin(Model *m, const AttentionSaved *s) {
    Gathering g = {{NULL, NULL}, NULL};
    if (m->mesh.shape.ring == 1) return g;
    for (int i = 0; i < 2 && i < ring_pieces(m); i++) g.room[i] = take_real(m, MEM_CONTEXT, gather_room(m));
    gather_start(m, &g, s, 0);
    return g;
}

/* The kv of a stop: where its piece begins, wait for that and send for the next. */
static inline const real *gather_arrived(Model *m, Gathering *g, const AttentionSaved *s, const GatherStop *at) {
    if (at->turn == 0) return s->kv;
    if (at->turn == 1) comm_wait(&m->fabric, g->flying), gather_start(m, g, s, at->piece + 1);
    return g->room[at->piece % 2] + visitor_rank(m, at->turn) * at->count * gather_width(m);
}

static inline void allgather_forward(Model *m, AttentionSaved *s) {
    i64 out_count = ring_rows(m) * m->heads_l * m->config.head_dim, last = gather_last(m, s);
    ArenaMark mark = arena_mark(&m->arena);
    accum *out = (accum *)s->out;
    if (!real_is_accum()) out = m->mesh.shape.ring > 1 ? take_accum(m, MEM_WORKSPACE, out_count) : NULL;
    Gathering g = gather_begin(m, s);
    zero_prefetch(&m->zero);
    for (i64 k = 0; k < gather_stops(m); k++) {
        GatherStop at = gather_stop(m, s, k);
        const real *kv = gather_arrived(m, &g, s, &at);
        if (at.pairs > 0)
            attention_forward(&m->dev, out, k == last ? s->out : NULL, s->lse, s->q, kv, gather_call(m, s, &at));
    }
    arena_release(&m->arena, mark);
}

/* This rank's shares of everybody's dkv, a piece at a time, on their way home. */
typedef struct {
    accum *share[2]; /* (R, tokens of a piece, B, 2, kv_heads_l, HS) */
    accum *parts;    /* what the others found, before it is summed */
} GatherShares;

/* Send the shares of a piece home, where they are added to the owner's; of its own, a rank adds nothing here. */
static inline void gather_return(Model *m, GatherShares *g, ContextBackward *h, const GatherStop *at) {
    i64 width = gather_width(m), count = at->count * width;
    accum *share = g->share[at->piece % 2];
    zero_fill(&m->dev, share + m->mesh.ring_rank * count, count * accum_size());
    comm_wait(&m->fabric, h->flying);
    h->flying = comm_reduce_scatter_start(&m->fabric, &m->mesh.ring,
                                          tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION),
                                          h->dkv_sum + at->first * width, share, g->parts, count, DTYPE_ACCUM, 1);
}

static inline ContextBackward allgather_backward(Model *m, AttentionSaved *s, real *dq, real *dkv, const real *dout) {
    i64 R = m->mesh.shape.ring, rows_heads = ring_rows(m) * m->heads_l, last = gather_last(m, s);
    ContextBackward h = {dkv, (accum *)dkv, NULL, NULL, kv_count_own(m)};
    GatherShares shares = {{NULL, NULL}, NULL};
    accum *dq_sum = real_is_accum() ? (accum *)dq : take_accum(m, MEM_WORKSPACE, rows_heads * m->config.head_dim);
    if (!real_is_accum()) h.dkv_sum = R > 1 ? take_accum(m, MEM_WORKSPACE, h.count) : NULL;
    accum *delta = take_accum(m, MEM_WORKSPACE, rows_heads);
    for (int i = 0; i < 2 && i < ring_pieces(m) && R > 1; i++)
        shares.share[i] = take_accum(m, MEM_COMM, gather_room(m));
    if (R > 1) shares.parts = take_accum(m, MEM_COMM, gather_room(m));
    Gathering g = gather_begin(m, s);
    zero_prefetch(&m->zero);
    attention_delta(&m->dev, delta, s->out, dout, rows_heads, m->config.head_dim);
    for (i64 k = 0; k < gather_stops(m); k++) {
        GatherStop at = gather_stop(m, s, k);
        i64 count = at.count * gather_width(m);
        const real *kv = gather_arrived(m, &g, s, &at);
        accum *share = k == 0 ? h.dkv_sum : shares.share[at.piece % 2] + visitor_rank(m, at.turn) * count;
        if (at.pairs > 0)
            attention_backward(&m->dev, dq_sum, k == last ? dq : NULL, share, share ? NULL : dkv, s->q, kv, dout,
                               s->lse, delta, gather_call(m, s, &at));
        else zero_fill(&m->dev, share, count * accum_size());
        if (k > 0 && at.turn == R - 1) gather_return(m, &shares, &h, &at);
    }
    return h;
}

/* What the ring moves, by other collectives. */
static inline void allgather_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    i64 R = m->shape.ring;
    i64 kv = times * (R - 1) * (L / R) * B * 2 * kv_heads_local(c, m->shape.head) * c->head_dim;
    Tag forward = tag(BLOCK_ATTENTION, PHASE_FORWARD, WHAT_ACTIVATION),
        backward = tag(BLOCK_ATTENTION, PHASE_BACKWARD, WHAT_ACTIVATION);
    ledger_expect(l, COMM_ALL_GATHER, forward, kv * real_size());
    ledger_expect(l, COMM_ALL_GATHER, backward, kv * real_size());
    ledger_expect(l, COMM_REDUCE_SCATTER, backward, kv * accum_size());
}

static const Context CONTEXT_ALLGATHER = {
    .name = "allgather",
    .help = "KV of all ring ranks is gathered, dKV reduce-scattered",
    .piece = gather_tokens,
    .queries_travel = NULL,
    .forward = allgather_forward,
    .backward = allgather_backward,
    .finish = context_finish,
    .volume = allgather_volume,
};

/* ---- the scheme `allgather` -------------------------------------------------------------------------------------- */

static const Scheme SCHEME_ALLGATHER = {
    .name = "allgather",
    .help = "KV of all ring ranks is gathered, dKV reduce-scattered; MLP local; weights by ZeRO-3",
    .context = &CONTEXT_ALLGATHER,
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

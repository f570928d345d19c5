/* scheme.h - the contract of a sequence-parallel scheme, and what the walk hands to it.

   A scheme is one constant struct at the end of its header. It answers: which blocks' weights the head axis splits,
   whether the stream between blocks is replicated, how attention and MLP run forward and backward, what that moves. A
   sixth scheme is a new header and one row in the table of train_gpt.cu. How queries meet keys over the ring axis is
   another struct, a context, which every scheme's attention calls in its middle.

   stream of this rank   x (T, B, C), T = L/(R H) tokens, or L/R where the scheme
                         replicates the stream over its head axis
   attention             q (L/R, B, NH/H, HS), kv (L/R, B, 2, KH', HS), out like q: whole ring-local sequence, this
                         rank's heads, in every scheme - they differ in how tokens and heads get there and back       */
#ifndef ODYSSEUS_SCHEME_H
#define ODYSSEUS_SCHEME_H

#include "offload.h"
#include "zero.h"

/* What every block keeps for its backward. Owner: the arena. */
typedef struct {
    real *x;            /* (stream) block input, before the norm */
    accum *mean, *rstd; /* (stream rows) of the norm */
} BlockSaved;

/* What the queries of one kind of layer see: keys from lo up to their own position (visible.h). */
enum { SIGHT_ALL, SIGHT_WINDOW, SIGHTS };
typedef struct {
    i64 window;    /* keys that a query sees, itself included; 0: all of its document */
    i64 layers;    /* of this kind */
    int32_t *lo;   /* (L/R, B) in the arena; NULL: 0 everywhere */
    int32_t *host; /* the same on the host */
    double *pairs; /* (ring ranks, pieces of a rank) of the host: seen by this rank's queries of those keys, in all B
                      sequences */
    /* where queries travel (Mesh.queries_travel), else NULL: */
    int32_t *others, *host_others; /* lo of all ring ranks' queries (ring ranks, L/R, B) */
    double *met;                   /* (ring ranks) seen by their queries of this rank's keys */
} Sight;

/* What one layer's attention keeps. */
typedef struct {
    BlockSaved in;
    real *q;            /* (L/R, B, heads_l, HS) rotated */
    real *kv;           /* (L/R, B, 2, kv_heads_l, HS) rotated k, v */
    real *out;          /* (L/R, B, heads_l, HS) */
    accum *lse;         /* (L/R, B, heads_l) */
    real *out_local;    /* (own rows, h HS) out by tokens, where a scheme turns it (else NULL) */
    real *q_raw, *k_raw;    /* (rows, heads, HS), where they are projected, before their norm; NULL: none */
    accum *q_rstd, *k_rstd; /* (rows, heads) of those norms */
    const accum *rope;      /* this layer's table: the model's, or NULL: nothing rotates */
    const Sight *sight;     /* what its queries see */
} AttentionSaved;

/* What one layer's MLP keeps. */
typedef struct {
    BlockSaved in;
    real *pre; /* (rows, gates * ffn_l) before GELU or SwiGLU */
} MlpSaved;

struct Scheme;
struct Context;

/* What backward makes again instead of finding it kept (--recompute): nothing; all of a block but its input; all but
   that and what attention has made, out and lse. */
enum { RECOMPUTE_NONE, RECOMPUTE_FULL, RECOMPUTE_ATTENTION_KEPT };

/* A rank's whole model: configuration, place in the mesh, memory, and the state of the walk. */
typedef struct {
    Config config;
    const struct Scheme *scheme;
    const struct Context *context;
    Device dev;
    Ledger ledger;
    Fabric fabric;
    Mesh mesh;
    Arena arena;
    Zero zero;
    RingLayout layout;
    i64 L, B;                     /* sequence length; sequences of a micro-batch */
    i64 T_ring, T_own, T_stream;  /* tokens: of the ring rank, of this rank alone, in this rank's stream */
    i64 own_first;                /* the own tokens' place in the stream */
    TokenMap ring_map, own_map, stream_map;
    i64 heads_l, kv_heads_l;      /* heads that this rank attends with, or those of the group under way */
    i64 head_groups;              /* that they come in */
    Sight sight[SIGHTS];          /* what queries see, by kinds of layers */
    int documents, restart;       /* 1: documents see themselves only; learned positions begin anew in each */
    i64 eot;                      /* the token that ends one */
    int32_t *place, *host_place;  /* (T_stream, B) positions in documents, where they restart */
    int32_t *whole;               /* (2, L) on the host: a whole sequence, and where each token's document begins */
    double pairs_seen;            /* of a query, a key that it sees, and a layer: of this rank, then of the step */
    void (*watch)(void *, void *, int); /* called with the model, watch_arg and the layer behind each attention forward;
                                           NULL: nobody */
    void *watch_arg;
    int recompute, samples;       /* RECOMPUTE_; text will be asked of it */
    int one_input;                /* with recompute: a layer keeps what enters it, not what enters its MLP */
    int again;                    /* RECOMPUTE_ of what attention's backward has to make again */
    i64 tile_rows;                /* of the MLP's wide matrices that exist at once, where they are not kept */
    i64 gather_tokens;            /* of --gather-tokens; 0: as the context finds right */
    i64 piece;                    /* tokens of each ring rank whose keys come together: all, or as the context says */
    Phase phase;                  /* of the walk: what runs forward in backward is a repetition */
    accum *rope;                  /* (tokens of rope_map, HS/2, 2), NULL for learned positions */
    TokenMap rope_map;            /* where q and k are rotated: the own tokens, or the ring rank's */
    AttentionSaved *attention;    /* (layers); when recomputing, what is made again has one place for all layers */
    MlpSaved *mlp;
    Offload offload;              /* of what layers keep */
    real *final_x;                /* (own rows, C) input of the final norm, where the head of a walk has put it: whole
                                     until something else is asked of the model */
    int32_t *tokens, *targets;    /* (T_stream, B) and (T_own, B) */
    int32_t *host_tokens;         /* the same two, on the host */
    double *judged;               /* (own rows, 2) on the host: loss, likeliest; NULL: not asked for */
    double *sums;                 /* (2) of this rank: losses of its targets, squares of its gradients */
    i64 logits_rows;              /* rows of logits held at once */
    Use *order;                   /* blocks as the walk uses them; the forward part comes first */
    int uses;
} Model;

/* The walk of a micro-batch, which stands above what asks for it: scale 0 is forward only. */
typedef void (*ModelWalk)(Model *, accum scale);

typedef struct Scheme {
    const char *name, *help;
    const struct Context *context;   /* of a scheme that is a context and nothing besides; NULL: whichever is chosen */
    int replicated_stream;           /* 1: every head rank holds the whole ring-local stream */
    int ring_takes_all;              /* 1: it has no head axis; without --ring the ring is all that dp leaves */
    int rope_on_own;                 /* 1: q and k are made on the own tokens only, then sent
                                        to the ranks of their heads */
    int repeats_exchange;            /* 1: where its attention is made again, its forward exchanges run again */
    int takes_head_groups;           /* 1: it can exchange and attend its heads in groups */
    int (*splits)(BlockKind);        /* are this block's splittable tensors split over the head axis? */
    /* Write why it cannot run, with the nearest settings that can, and return 1; else 0. */
    int (*refuses)(const Config *, const MeshShape *, char *why, size_t size);
    /* Memory that attention keeps beyond AttentionSaved's common part; NULL: none. */
    void (*attention_keep)(Model *, AttentionSaved *);
    /* out (stream) = attention(xn (stream)), without the residual; fills s */
    void (*attention_forward)(Model *, AttentionSaved *s, real *out, const real *xn);
    /* dxn (stream) = its gradient for dout (stream); adds to m->zero.dweight. First what m->again says is made again:
       of the forward only what backward reads */
    void (*attention_backward)(Model *, AttentionSaved *s, real *dxn, const real *dout, const real *xn);
    void (*mlp_forward)(Model *, MlpSaved *s, real *out, const real *xn);
    void (*mlp_backward)(Model *, MlpSaved *s, real *dxn, const real *dout, const real *xn);
    /* Add the closed form of the activations that the head axis moves in one layer, `times` micro-steps: bytes that
       this rank sends. What the context moves, and what is repeated in backward, the walk adds. */
    void (*volume)(Ledger *, const Config *, const Mesh *, i64 L, i64 B, i64 times);
    /* Likewise what backward sends a second time where attention was made again for the MLP, with head groups, whose q
       and kv are gone by then; NULL: it takes no groups. */
    void (*volume_twice)(Ledger *, const Config *, const Mesh *, i64 L, i64 B, i64 times);
} Scheme;

/* What a context's backward leaves under way, for its finish. */
typedef struct {
    real *dkv;        /* (L/R, B, 2, kv_heads_l, HS), complete only then */
    accum *dkv_sum;   /* this rank's own share of it; NULL where that is all, and dkv has it */
    accum *arrived;   /* what the others found, to be added; NULL: nothing comes */
    Request *flying;
    i64 count;        /* of dkv */
} ContextBackward;

/* How queries meet the keys of the other ring ranks: the middle of every scheme's attention. With a ring of one
   rank it is one local block. Another one is a new header and one row in the table of train_gpt.cu. */
typedef struct Context {
    const char *name, *help;
    i64 (*piece)(const Model *); /* tokens of a rank whose kv comes at a time (--gather-tokens); NULL: all */
    /* Do queries travel in backward, under this --ring-backward, with a head axis of so many ranks? NULL: never. */
    int (*queries_travel)(const char *asked, const Config *, i64 head);
    /* s->out, s->lse from s->q, s->kv: causal attention over the whole sequence, of which this
       rank holds its ring-local part */
    void (*forward)(Model *, AttentionSaved *s);
    /* dq (L/R, B, heads_l, HS) for dout like s->out, and dkv after `finish`; buffers that it needs until
       then live in the caller's mark */
    ContextBackward (*backward)(Model *, AttentionSaved *s, real *dq, real *dkv, const real *dout);
    void (*finish)(Model *, ContextBackward *);
    /* As a scheme's, of what the ring axis moves. */
    void (*volume)(Ledger *, const Config *, const Mesh *, i64 L, i64 B, i64 times);
} Context;

/* The pieces in which the keys of a ring rank come, and the first token of one; that behind the last is the end. */
static inline i64 ring_pieces(const Model *m) { return ceil_div(m->T_ring, m->piece); }
static inline i64 piece_first(const Model *m, i64 piece) { return i64_min(m->T_ring, piece * m->piece); }

/* Temporaries of a block: real or accum, uninitialised, until the mark is released. */
static inline real *take_real(Model *m, MemCategory category, i64 n) {
    return (real *)arena_take(&m->arena, category, n * real_size());
}
static inline accum *take_accum(Model *m, MemCategory category, i64 n) {
    return (accum *)arena_take(&m->arena, category, n * accum_size());
}

static inline i64 stream_rows(const Model *m) { return m->T_stream * m->B; }
static inline i64 own_rows(const Model *m) { return m->T_own * m->B; }
static inline i64 ring_rows(const Model *m) { return m->T_ring * m->B; }

/* Is what attention has made there for all heads of a rank at once? */
static inline int keeps_attended(const Model *m) { return m->recompute != RECOMPUTE_FULL || m->one_input; }

/* Heads, of `heads` that this rank has in all, for which there is room: all, or (`again`) those of two groups. */
static inline i64 heads_room(const Model *m, i64 heads, int again) {
    return again ? i64_min(heads, 2 * i64_max(1, heads / m->head_groups)) : heads;
}

/* One block of attention: this rank's queries against the keys of one ring rank. */
static inline AttentionShape attention_shape(const Model *m) {
    AttentionShape shape = {m->B, m->T_ring, m->T_ring, m->heads_l, m->kv_heads_l, m->config.head_dim};
    return shape;
}

/* Placement of a scheme whose weights are whole on every rank, as far as the head axis goes. */
static inline int splits_nothing(BlockKind block) {
    (void)block;
    return 0;
}

/* Volume of a scheme whose head axis moves no activations. */
static inline void moves_nothing(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    (void)l, (void)c, (void)m, (void)L, (void)B, (void)times;
}

/* ---- closed-form helpers ----------------------------------------------------------------------------------------- */

/* Tokens of one sequence that a rank owns. */
static inline i64 volume_own(const Mesh *m, i64 L) { return L / (m->shape.ring * m->shape.head); }

/* KV heads that one rank attends with when the head axis splits heads: at least one. */
static inline i64 kv_heads_local(const Config *c, i64 head_axis) { return i64_max(1, c->kv_heads / head_axis); }

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

/* The values nearest below and above `value` that work, for messages; 0: none. */
static inline void nearest(i64 value, i64 limit, int (*works)(const Config *, i64), const Config *c, i64 *below,
                           i64 *above) {
    *below = *above = 0;
    for (i64 v = value - 1; v >= 1 && !*below; v--)
        if (works(c, v)) *below = v;
    for (i64 v = value + 1; v <= limit && !*above; v++)
        if (works(c, v)) *above = v;
}

/* Can `n` ranks split the attention heads? Query heads must divide; of KV heads and ranks one must
   be a multiple of the other. */
static inline int heads_split_works(const Config *c, i64 n) {
    return c->heads % n == 0 && (c->kv_heads % n == 0 || n % c->kv_heads == 0);
}

static inline int heads_and_ffn_split_works(const Config *c, i64 n) {
    return heads_split_works(c, n) && c->ffn % n == 0;
}

/* Refuse a head axis that does not divide what the scheme splits, naming the nearest head axes that do. */
static inline int refuse_head_axis(const Config *c, const MeshShape *shape, int with_ffn, char *why, size_t size) {
    int (*works)(const Config *, i64) = with_ffn ? heads_and_ffn_split_works : heads_split_works;
    if (works(c, shape->head)) return 0;
    i64 below, above;
    nearest(shape->head, c->heads, works, c, &below, &above);
    int n = snprintf(why, size, "a head axis of %lld cannot split %lld query heads, %lld KV heads", shape->head,
                     c->heads, c->kv_heads);
    if (with_ffn) n += snprintf(why + n, size - (size_t)n, " and an MLP width of %lld", c->ffn);
    n += snprintf(why + n, size - (size_t)n, "; the nearest that does: %lld", below);
    if (above) n += snprintf(why + n, size - (size_t)n, " or %lld", above);
    snprintf(why + n, size - (size_t)n, " (head axis = ranks / dp / ring)");
    return 1;
}

/* Of a scheme without a head axis. */
static inline int refuse_any_head_axis(const Config *c, const MeshShape *shape, char *why, size_t size) {
    (void)c;
    if (shape->head == 1) return 0;
    snprintf(why, size, "it has no head axis, but %lld ranks / dp %lld / ring %lld leaves %lld; use --ring %lld",
             shape->world, shape->dp, shape->ring, shape->head, shape->world / shape->dp);
    return 1;
}

#endif

/* sample.h - text from the model: a prompt goes through the scheme's own forward, then one token after the other.

   prompt  -> prefill: the training walk over L positions leaves k, v of every layer where attention keeps them:
              the ring rank's tokens, this rank's heads - in every scheme the same place. That is the cache.
   token p -> every rank: x (1, B, C) whole -> per layer: q of the own heads; k, v of p on the ring rank that holds p
              -> attention over the own part of the cache -> parts of the ring merged by log-sum-exp, heads of the head
              axis gathered or summed as their weights are placed -> MLP likewise -> logits on all ranks
              -> rank 0 chooses

   Weights come along the walk by ZeRO-3, as in training. Prompt and text together are at most --seq-len tokens, for
   which memory is there. All B sequences of a micro-batch, and all data-parallel groups, are the same one.

   top-p: Holtzman et al. 2019, arXiv:1904.09751. Merge of parts: as ring.h.
   traffic of a token and layer   ring: B (heads_l HS + heads_l) accum; head: (H-1) B d real a split block   */
#ifndef ODYSSEUS_SAMPLE_H
#define ODYSSEUS_SAMPLE_H

#include "blocks.h"
#include "data.h"
#include "visible.h"
#include "tokenizer.h"

/* ---- one token through one block --------------------------------------------------------------------------------- */

/* The place of position p among the tokens of `map`; -1: it is not there. */
static inline i64 token_place(const TokenMap *map, i64 p) {
    i64 before = 0;
    for (int i = 0; i < 2; i++) {
        const TokenRun *run = &map->run[i];
        i64 off = p - run->first;
        if (run->count && off >= 0 && off % run->stride == 0 && off / run->stride < run->count)
            return before + off / run->stride;
        before += run->count;
    }
    return -1;
}

static inline Tag decode_tag(BlockKind block) { return tag(block, PHASE_FORWARD, WHAT_ACTIVATION); }

/* out (rows, C) = the sum over the head axis, in rank order, of `partial`. */
static inline void decode_sum(Model *m, BlockKind block, real *out, const real *partial, i64 n) {
    const Comm *head = &m->mesh.head;
    real *parts = take_real(m, MEM_COMM, head->size * n);
    comm_all_gather(&m->fabric, head, decode_tag(block), parts, partial, n, DTYPE_REAL);
    sum_parts(&m->dev, out, parts, head->size, n, n, DTYPE_REAL, 0);
}

/* out (B, heads_l, HS) from what each ring rank found in its part of the cache: outs and lse, `n` and `rows` a part. */
static inline void decode_merge(Model *m, real *out, const accum *parts, i64 n, i64 rows) {
    i64 R = m->mesh.ring.size, HS = m->config.head_dim, part = n + rows;
    accum *host = (accum *)host_alloc((size_t)(R * part) * sizeof(accum));
    real *merged = (real *)host_alloc((size_t)n * sizeof(real));
    copy_out(&m->dev, host, parts, R * part * accum_size());
    for (i64 row = 0; row < rows && !m->dev.plan; row++) {
        double top = -INFINITY, sum = 0;
        for (i64 r = 0; r < R; r++) top = fmax(top, (double)host[r * part + n + row]);
        for (i64 r = 0; r < R; r++) sum += exp((double)host[r * part + n + row] - top);
        for (i64 i = row * HS; i < (row + 1) * HS; i++) {
            double value = 0;
            for (i64 r = 0; r < R; r++)
                value += exp((double)host[r * part + n + row] - top) / sum * (double)host[r * part + i];
            merged[i] = real_from(value);
        }
    }
    copy_in(&m->dev, out, merged, n * real_size());
    free(host);
    free(merged);
}

/* out (B, heads_l, HS) = attention of q at position p to the cache, of which this ring rank holds its tokens, from
   where the layer's queries begin to see on: `lo` (kinds, B). */
static inline void decode_attend(Model *m, AttentionSaved *s, real *out, const real *q, TokenMap at,
                                 const int32_t *lo) {
    const Comm *ring = &m->mesh.ring;
    i64 n = m->B * m->heads_l * m->config.head_dim, rows = m->B * m->heads_l;
    AttentionShape shape = attention_shape(m);
    shape.Tq = 1;
    AttentionCall call = attention_call_within(shape, at, m->ring_map, 0,
                                               s->sight->lo ? lo + (s->sight - m->sight) * m->B : NULL,
                                               causal_pairs(&at, &m->ring_map) * (double)m->B);
    accum *part = take_accum(m, MEM_COMM, n + rows);
    if (ring->size == 1) {
        attention_forward(&m->dev, real_is_accum() ? (accum *)out : NULL, out, part + n, q, s->kv, call);
        return;
    }
    accum *parts = take_accum(m, MEM_COMM, ring->size * (n + rows));
    attention_forward(&m->dev, part, NULL, part + n, q, s->kv, call);
    comm_all_gather(&m->fabric, ring, decode_tag(BLOCK_ATTENTION), parts, part, n + rows, DTYPE_ACCUM);
    decode_merge(m, out, parts, n, rows);
}

/* y (B, width) = xn (B, C) times `width` rows of a first projection, from `row` on. */
static inline void decode_project(Model *m, real *y, const real *xn, Role weight, Role bias, i64 row, i64 width) {
    real **w = m->zero.weight;
    i64 C = m->config.dim;
    linear_forward(&m->dev, y, width, xn, w[weight] + row * C, w[bias] ? w[bias] + row : NULL, m->B, C, width);
}

/* heads (B, n, HS) = the norm of `raw` (B, n, HS) by the weight of `role`. */
static inline void decode_head_norm(Model *m, Role role, real *heads, const real *raw, i64 n) {
    accum *rstd = take_accum(m, MEM_WORKSPACE, m->B * n);
    norm_forward(&m->dev, head_norm(m, role, m->B * n), heads, NULL, NULL, rstd, raw, NULL);
}

/* q (B, heads_l, HS) of xn (B, C), from row `row` of the projection on: as project_q. */
static inline void decode_query(Model *m, real *q, const real *xn, i64 row) {
    i64 width = m->heads_l * m->config.head_dim;
    int normed = (m->config.has & HAS_QK_NORM) != 0;
    real *raw = normed ? take_real(m, MEM_WORKSPACE, m->B * width) : q;
    decode_project(m, raw, xn, T_Q, T_Q_BIAS, row, width);
    if (normed) decode_head_norm(m, T_Q_NORM, q, raw, m->heads_l);
}

/* kv (B, 2, kv_heads_l, HS) likewise: as project_kv. */
static inline void decode_kv(Model *m, real *kv, const real *xn, i64 row) {
    i64 width = m->kv_heads_l * m->config.head_dim;
    int normed = (m->config.has & HAS_QK_NORM) != 0;
    real *apart = take_real(m, MEM_WORKSPACE, 3 * m->B * width), *v = apart + m->B * width, *raw = v + m->B * width;
    decode_project(m, normed ? raw : apart, xn, T_K, T_K_BIAS, row, width);
    decode_project(m, v, xn, T_V, T_V_BIAS, row, width);
    if (normed) decode_head_norm(m, T_K_NORM, apart, raw, m->kv_heads_l);
    parts_merge(&m->dev, kv, apart, 2, m->B, width);
}

/* out (B, C) = attention of xn (B, C) at position p; its keys and values join the cache. */
static inline void decode_attention(Model *m, AttentionSaved *s, real *out, const real *xn, const accum *rope, i64 p,
                                    const int32_t *lo) {
    const Config *c = &m->config;
    const Comm *head = &m->mesh.head;
    i64 HS = c->head_dim, B = m->B, NQ = m->heads_l * HS, NK = m->kv_heads_l * HS, place = token_place(&m->ring_map, p);
    i64 whole = attention_width(c);
    int split = m->scheme->splits(BLOCK_ATTENTION); /* else the own heads are some rows of whole weights */
    i64 q_row = split ? 0 : m->mesh.head_rank * NQ;
    i64 kv_row = split ? 0 : m->mesh.head_rank * c->kv_heads / head->size * HS;
    TokenMap at = {{{p, 1, 1}, {0, 0, 0}}, 1};
    ArenaMark mark = arena_mark(&m->arena);
    real *q = take_real(m, MEM_WORKSPACE, B * NQ), *attended = take_real(m, MEM_WORKSPACE, B * NQ);
    decode_query(m, q, xn, q_row);
    if (!s->rope) rope = NULL;
    queries_pack(&m->dev, q, q, rope, B, B, m->heads_l, HS, 1);
    if (place >= 0) {
        real *kv = s->kv + place * B * 2 * NK;
        decode_kv(m, kv, xn, kv_row);
        kv_pack(&m->dev, kv, kv, rope, B, B, m->kv_heads_l, HS, 1);
    }
    decode_attend(m, s, attended, q, at, lo);
    real *all = attended, *partial = take_real(m, MEM_WORKSPACE, B * c->dim);
    if (!split && head->size > 1) {
        real *parts = take_real(m, MEM_COMM, B * whole);
        all = take_real(m, MEM_WORKSPACE, B * whole);
        comm_all_gather(&m->fabric, head, decode_tag(BLOCK_ATTENTION), parts, attended, B * NQ, DTYPE_REAL);
        parts_merge(&m->dev, all, parts, head->size, B, NQ);
    }
    int sums = split && head->size > 1;
    i64 width = split ? NQ : whole;
    linear_forward(&m->dev, sums ? partial : out, c->dim, all, m->zero.weight[T_O], NULL, B, width, c->dim);
    if (sums) decode_sum(m, BLOCK_ATTENTION, out, partial, B * c->dim);
    if (m->zero.weight[T_O_BIAS]) bias_add(&m->dev, out, m->zero.weight[T_O_BIAS], B, c->dim);
    arena_release(&m->arena, mark);
}

static inline void decode_mlp(Model *m, MlpSaved *s, real *out, const real *xn) {
    i64 H = m->scheme->splits(BLOCK_MLP) ? m->mesh.head.size : 1, n = m->B * m->config.dim;
    ArenaMark mark = arena_mark(&m->arena);
    real *partial = take_real(m, MEM_WORKSPACE, n);
    mlp_body_forward(m, s, H > 1 ? partial : out, xn, m->B, m->config.ffn / H);
    if (H > 1) decode_sum(m, BLOCK_MLP, out, partial, n);
    if (m->zero.weight[T_DOWN_BIAS]) bias_add(&m->dev, out, m->zero.weight[T_DOWN_BIAS], m->B, m->config.dim);
    arena_release(&m->arena, mark);
}

/* ---- one token through the model --------------------------------------------------------------------------------- */

/* x (B, C) += delta (NULL: nothing), xn = its norm by the weights of the block acquired last. */
static inline void decode_norm(Model *m, BlockSaved *s, real *xn, real *x, const real *delta) {
    norm_forward(&m->dev, block_norm(m, m->B), xn, x, s->mean, s->rstd, x, delta);
}

/* logits (vocabulary, host; NULL in a plan) of what follows `token` at position p, in the document that began at
   `start`; what came before it is in the cache. Collective. */
static inline void decode_token(Model *m, i64 token, i64 p, i64 start, real *logits) {
    const Config *c = &m->config;
    Zero *z = &m->zero;
    i64 n = m->B * c->dim;
    TokenMap at = {{{p, 1, 1}, {0, 0, 0}}, 1}, place = {{{m->restart ? p - start : p, 1, 1}, {0, 0, 0}}, 1};
    ArenaMark mark = arena_mark(&m->arena);
    int32_t *lo = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, SIGHTS * m->B * 4);
    real *x = take_real(m, MEM_WORKSPACE, n), *xn = take_real(m, MEM_WORKSPACE, n);
    real *delta = take_real(m, MEM_WORKSPACE, n);
    accum *rope = m->rope ? take_accum(m, MEM_WORKSPACE, c->head_dim) : NULL;
    real *row = take_real(m, MEM_LOGITS, c->vocab);
    int32_t *tokens = (int32_t *)host_alloc((size_t)((1 + SIGHTS) * m->B) * sizeof(int32_t));
    for (i64 b = 0; b < m->B; b++) {
        tokens[b] = (int32_t)token;
        for (int k = 0; k < SIGHTS; k++)
            tokens[(1 + k) * m->B + b] = (int32_t)i64_max(start, sight_lo(&m->sight[k], NULL, p));
    }
    copy_in(&m->dev, m->tokens, tokens, m->B * (i64)sizeof(int32_t));
    copy_in(&m->dev, lo, tokens + m->B, SIGHTS * m->B * (i64)sizeof(int32_t));
    free(tokens);
    if (rope) {
        double *frequencies = (double *)host_alloc(sizeof(double) * (size_t)c->head_dim);
        rope_frequencies(c, m->L, frequencies);
        rope_table(&m->dev, rope, at, frequencies, rope_magnitude(&c->rope_scaling), c->head_dim);
        free(frequencies);
    }
    zero_walk(z, m->order, block_lm_head(c) + 1);
    zero_acquire(z, block_embedding());
    embedding_forward(&m->dev, x, m->tokens, place, z->weight[T_WTE], z->weight[T_WPE], m->B, c->dim);
    for (int l = 0; l < (int)c->layers; l++) {
        zero_acquire(z, block_attention(l));
        decode_norm(m, &m->attention[l].in, xn, x, l ? delta : NULL);
        decode_attention(m, &m->attention[l], delta, xn, rope, p, lo);
        zero_acquire(z, block_mlp(l));
        decode_norm(m, &m->mlp[l].in, xn, x, delta);
        decode_mlp(m, &m->mlp[l], delta, xn);
    }
    zero_acquire(z, block_lm_head(c));
    BlockSaved last = {x, m->final_mean, m->final_rstd};
    decode_norm(m, &last, xn, x, delta);
    linear_forward(&m->dev, row, c->vocab, xn, z->weight[T_LM_HEAD], NULL, 1, c->dim, c->vocab);
    if (logits) copy_out(&m->dev, logits, row, c->vocab * real_size());
    arena_release(&m->arena, mark);
}

/* ---- which token ------------------------------------------------------------------------------------------------- */

typedef struct {
    double weight;
    i64 token;
} Likely;

static inline int likelier(const void *a, const void *b) {
    const Likely *x = (const Likely *)a, *y = (const Likely *)b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return (x->token > y->token) - (x->token < y->token);
}

/* A token drawn by `uniform` (0 to 1) from softmax(logits / temperature), of the fewest likeliest tokens that hold
   top_p of it; temperature 0: the likeliest, of equals the first. */
static inline i64 sample_draw(const real *logits, i64 vocab, double temperature, double top_p, double uniform) {
    i64 best = 0, token;
    for (i64 i = 1; i < vocab; i++)
        if (real_value(logits[i]) > real_value(logits[best])) best = i;
    if (temperature == 0) return best;
    Likely *all = (Likely *)host_alloc(sizeof(Likely) * (size_t)vocab);
    double sum = 0, kept = 0, at = 0;
    for (i64 i = 0; i < vocab; i++) {
        double below = (double)real_value(logits[i]) - (double)real_value(logits[best]);
        all[i].weight = exp(below / temperature), all[i].token = i;
        sum += all[i].weight;
    }
    qsort(all, (size_t)vocab, sizeof *all, likelier);
    i64 n = 0, i = 0;
    while (n < vocab && (n == 0 || kept < top_p * sum)) kept += all[n++].weight;
    while (i + 1 < n && (at += all[i].weight) <= uniform * kept) i++;
    token = all[i].token;
    free(all);
    return token;
}

/* The walk of the layers over m->tokens, which stands above this file. */
typedef void (*ModelPrefill)(Model *);

/* Fill the cache with tokens[0 .. n-1) of the sequence; what lies behind is overwritten, token by token. Collective. */
static inline void sample_prefill(Model *m, ModelPrefill prefill, const int32_t *tokens, i64 n) {
    if (n < 2) return;
    for (i64 i = 0; i < m->T_stream; i++)
        for (i64 b = 0, p = token_position(&m->stream_map, i); b < m->B; b++)
            m->host_tokens[i * m->B + b] = p < n ? tokens[p] : 0;
    copy_in(&m->dev, m->tokens, m->host_tokens, stream_rows(m) * (i64)sizeof(int32_t));
    for (i64 p = 0; m->documents && p < m->L; p++) m->whole[p] = p < n ? tokens[p] : 0;
    if (m->documents) documents_find(m->whole + m->L, m->whole, m->L, m->eot);
    for (i64 b = 0; m->documents && b < m->B; b++) sight_sequence(m, b, m->whole + m->L);
    if (m->documents) sight_send(m);
    prefill(m);
}

/* Continue tokens (n of them, room for n + more) by `more`, n + more <= L. The same draw whatever the mesh; rank 0
   chooses. Collective. */
static inline void sample_continue(Model *m, ModelPrefill prefill, const Settings *s, i64 step, int32_t *tokens,
                                   i64 n) {
    int ranks = (int)m->mesh.shape.world;
    real *logits = (real *)host_alloc((size_t)m->config.vocab * sizeof(real));
    int32_t *chosen = (int32_t *)host_alloc((size_t)ranks * sizeof(int32_t));
    uint64_t key = tensor_key(s->seed, "sample");
    i64 start = 0; /* of the document that grows */
    sample_prefill(m, prefill, tokens, n);
    for (i64 p = 0; m->documents && p < n - 1; p++)
        if (tokens[p] == m->eot) start = p + 1;
    for (i64 p = n - 1; p < n - 1 + s->sample_tokens; p++) {
        decode_token(m, tokens[p], p, start, logits);
        if (m->documents && tokens[p] == m->eot) start = p + 1;
        double uniform = (double)(mix64(mix64(key + (uint64_t)step) + (uint64_t)p) >> 11) * 0x1p-53;
        int32_t mine = (int32_t)sample_draw(logits, m->config.vocab, s->temperature, s->top_p, uniform);
        wire_share(m->mesh.world.wire, chosen, &mine, sizeof mine);
        tokens[p + 1] = chosen[0];
    }
    free(chosen);
    free(logits);
}

/* What sampling takes of memory: a walk in plan mode. */
static inline void sample_plan(Model *m, ModelPrefill prefill) {
    prefill(m);
    decode_token(m, 0, 0, 0, NULL);
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

typedef struct {
    const Tokenizer *tokenizer; /* NULL: tokens in and out */
    const char *flag;           /* that has brought it */
    int32_t *tokens;            /* with room for what follows */
    i64 n;
} Prompt;

/* The tokenizer that lies beside the model (NULL: it has no directory), else beside the data (an empty text: there is
   none), else bytes where the vocabulary says so; NULL: there is none. Owner: caller; tokenizer_close. */
static inline Tokenizer *prompt_tokenizer(const char *model, const char *data, i64 vocab) {
    if (model && tokenizer_is_in(model)) return tokenizer_open(model);
    if (*data && tokenizer_is_in(data)) return tokenizer_open(data);
    return vocab == TOKENS_ARE_BYTES ? tokenizer_bytes() : NULL;
}

/* Tokens by number, with commas or spaces between them. */
static inline int32_t *prompt_ids(const char *text, i64 room, i64 *n) {
    int32_t *tokens = (int32_t *)host_alloc((strlen(text) + (size_t)room) * sizeof(int32_t));
    for (const char *at = text; *at;) {
        char *end;
        errno = 0;
        long id = strtol(at, &end, 10);
        if (end == at || id < 0 || id > INT32_MAX || errno)
            FAIL(EVERYONE, "--sample-ids: no number of a token at \"%.20s\"; give them as 15496,11,995", at);
        tokens[(*n)++] = (int32_t)id;
        at = end + strspn(end, ", ");
    }
    return tokens;
}

/* The prompt of --sample or --sample-file by the tokenizer (NULL: there is none), or of --sample-ids. Owner of its
   tokens: caller; free. */
static inline Prompt prompt_open(const Settings *s, const Config *c, i64 L, const Tokenizer *tokenizer) {
    FileMap file = {(const unsigned char *)s->sample, s->sample ? (i64)strlen(s->sample) : 0};
    Prompt p = {NULL, s->sample ? "sample" : s->sample_file ? "sample-file" : "sample-ids", NULL, 0};
    if (s->sample_ids) {
        p.tokens = prompt_ids(s->sample_ids, s->sample_tokens, &p.n);
    } else {
        p.tokenizer = tokenizer;
        if (!p.tokenizer)
            FAIL(EVERYONE,
                 "--%s: no tokenizer.json, nor vocab.json and merges.txt, beside the model or its data, and with "
                 "a vocabulary of %lld tokens are no bytes; " BY_TOKENS,
                 p.flag, c->vocab);
        if (s->sample_file) file = file_map(s->sample_file);
        p.tokens = tokenizer_encode(p.tokenizer, p.flag, (const char *)file.bytes, file.size, s->sample_tokens, &p.n);
        if (s->sample_file) file_unmap(&file);
    }
    if (!p.n) FAIL(EVERYONE, "--%s: the prompt is empty; give it at least one character", p.flag);
    if (p.n + s->sample_tokens > L)
        FAIL(EVERYONE,
             "--%s: a prompt of %lld tokens and --sample-tokens %lld are more than --seq-len %lld; lower one or raise "
             "that",
             p.flag, p.n, s->sample_tokens, L);
    for (i64 i = 0; i < p.n; i++)
        if (p.tokens[i] >= c->vocab)
            FAIL(EVERYONE, "--%s: token %d is none of this model's %lld; is the tokenizer another one's?", p.flag,
                 p.tokens[i], c->vocab);
    return p;
}

/* The prompt and what follows, n tokens in all. Rank 0. */
static inline void sample_print(const Prompt *p, i64 n) {
    say("sample   ");
    tokens_print(p->tokenizer, p->tokens, n);
    printf("\n");
    fflush(stdout);
}

#endif

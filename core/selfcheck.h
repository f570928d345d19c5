/* selfcheck.h - before the first step: do all ranks mean the same run, and does every token reach exactly whom it may?

   schedule   all ranks compare hashes of the collectives that their plan holds; where they part, a binary search over
              the prefixes finds the first call that differs, and the message names rank, operation and block
   labels     summed over ranks, the targets of positions 0 .. L-2 must be the tokens of positions 1 .. L-1: labels that
              were shifted after the sequence was split leave a seam
   probe      forward passes with weights and tokens of their own, of which two things are exactly known:
              reach   token 0 is embedded as nothing, so that a sequence of it is nothing in every layer; one
                      other token at position p must be heard at every position that sees p, on whatever rank, by
                      every head of every layer, and nowhere else. No weight of the model's can drown it, no
                      precision can absorb it: it is added to zeros
              leak    in a sequence of many tokens, change that at p: every position that cannot have heard of
                      it, in no number of layers, and every other sequence must keep its bits
              Documents are the probe's own: the token tried begins one, or ends one. Windows hand on from layer to
              layer what they have heard, until all have; so where there are any, values are read from the even
              channels, and attention and MLP write to the odd ones: each layer hears the embedding only.
              A skipped exchange leaves positions untouched that should hear; a wrong mask moves what should not. The
              model's weights are not touched: the probe's stand in the gradients' memory, which the first step clears.

   cost       one all-gather of two numbers; four forward passes of a micro-batch                                     */
#ifndef ODYSSEUS_SELFCHECK_H
#define ODYSSEUS_SELFCHECK_H

#include "data.h"
#include "visible.h"

/* Compare the recorded schedules of all ranks; rank 0 reports. Collective over `world`, outside any step. */
static inline void selfcheck_schedule(const Fabric *f, Wire world) {
    const Schedule *s = &f->schedule;
    int ranks = wire_size(world), differs = -1;
    uint64_t mine[2] = {(uint64_t)s->calls, s->calls ? s->call[s->calls - 1].hash : 0};
    uint64_t *all = (uint64_t *)host_alloc(sizeof mine * (size_t)ranks);
    wire_share(world, all, mine, sizeof mine);
    i64 shortest = s->calls;
    for (int r = 0; r < ranks; r++) {
        shortest = i64_min(shortest, (i64)all[2 * r]);
        if (differs < 0 && (all[2 * r] != all[0] || all[2 * r + 1] != all[1])) differs = r;
    }
    if (differs >= 0) {
        i64 lo = 0, hi = shortest; /* calls before lo agree, the first `hi` do not or end there */
        while (lo < hi) {
            i64 middle = (lo + hi) / 2;
            uint64_t hash = s->call[middle].hash;
            int agree = 1;
            wire_share(world, all, &hash, sizeof hash);
            for (int r = 1; r < ranks; r++) agree &= all[r] == all[0];
            if (agree) lo = middle + 1;
            else hi = middle;
        }
        PlannedCall here, *calls = (PlannedCall *)host_alloc(sizeof(PlannedCall) * (size_t)ranks);
        memset(&here, 0, sizeof here);
        if (lo < s->calls) here = s->call[lo];
        here.hash = lo < s->calls; /* is there such a call? */
        wire_share(world, calls, &here, sizeof here);
        for (differs = 1;
             differs < ranks - 1 && calls[differs].hash == calls[0].hash && planned_equal(&calls[differs], &calls[0]);)
            differs++;
        char first[160] = "nothing more", other[160] = "nothing more";
        if (calls[0].hash) schedule_text(first, sizeof first, &calls[0]);
        if (calls[differs].hash) schedule_text(other, sizeof other, &calls[differs]);
        FAIL(EVERYONE,
             "self-check: the ranks do not plan the same step: as collective %lld, rank %d has %s, rank 0 has %s", lo,
             differs, other, first);
    }
    free(all);
}

/* A value for "token at position of sequence b"; a rank sums them modulo 2^32, of which a double sums
   those of 2^20 ranks exactly. */
static inline uint32_t label_hash(i64 b, i64 position, i64 token) {
    return (uint32_t)(hash_pair(hash_pair((uint64_t)b + 1, (uint64_t)position), (uint64_t)(token + 2)) >> 32);
}

/* Tokens and targets of the first micro-batch, which is loaded, as the ranks hold them together; `inside`: first tokens
   of documents are no targets. Collective. */
static inline void selfcheck_labels(Model *m, Dataset *train, i64 ignore_token, int inside) {
    uint32_t mine[2] = {0, 0};
    int32_t *tokens = (int32_t *)host_alloc((size_t)own_rows(m) * sizeof(int32_t)),
            *targets = m->host_tokens + stream_rows(m);
    for (i64 b = 0; b < m->B; b++) {
        i64 sequence = dataset_sequence(train, m->mesh.dp_rank * m->B + b);
        dataset_targets(train, sequence, &m->own_map, 0, ignore_token, tokens, b, m->B);
        if (inside) dataset_read(train, sequence, 0, 1, m->L, m->whole, 1);
        for (i64 i = 0; i < m->T_own; i++) {
            i64 p = token_position(&m->own_map, i), token = tokens[i * m->B + b];
            if (inside && p > 0 && m->whole[p - 1] == m->eot) token = TOKEN_IGNORED;
            if (p > 0) mine[0] += label_hash(m->mesh.dp_rank * m->B + b, p, token);
            if (p + 1 < m->L) mine[1] += label_hash(m->mesh.dp_rank * m->B + b, p + 1, targets[i * m->B + b]);
        }
    }
    free(tokens);
    double sums[2] = {(double)mine[0], (double)mine[1]};
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), sums, 2);
    if (fmod(sums[0] - sums[1], 0x1p32) != 0)
        FAIL(EVERYONE,
             "self-check: the targets are not the next tokens of the sequence; they were shifted after it was split");
}

/* ---- the probe --------------------------------------------------------------------------------------------------- */

/* A model without two words, or whose one channel a norm leaves nothing of, or windows cannot halve, cannot tell one
   token from another. */
static inline int probe_is_deaf(const Config *c) {
    return c->vocab < 2 || ((c->has & HAS_LAYER_NORM || c->window) && c->dim < 2);
}

/* One weight of the probe, the same on every mesh: matrices uniform with variance 1 / columns, norms that keep the
   scale, no biases, no learned positions, and nothing for token 0. `apart`: values come from even channels of the
   stream, and what blocks write goes to odd ones. */
static inline double probe_weight(const TensorSpec *spec, const Config *c, int apart, uint64_t key, i64 row, i64 col,
                                  i64 index) {
    if (spec->cols == SIZE_1) return spec->init == INIT_ONE;
    if (spec->role == T_WPE || (spec->role == T_WTE && row == 0)) return 0;
    if (apart && spec->role == T_V && col % 2) return 0;
    if (apart && (spec->role == T_O || spec->role == T_DOWN) && row % 2 == 0) return 0;
    double uniform = ((double)(mix64(key + (uint64_t)index) >> 11) + 0.5) * 0x1p-52 - 1; /* never 0 */
    return uniform * sqrt(3.0 / (double)tensor_size(spec->cols, c));
}

typedef struct {
    const Config *config;
    HfPlace place;
    int apart;
    uint64_t key;
    real *part; /* on the host: this rank's part of the tensor, which begins at `begin` of the flat buffers */
    i64 begin;
} ProbeFill;

static inline void probe_fill_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    const ProbeFill *f = (const ProbeFill *)context;
    i64 index = f->place.base + row * f->place.row_step + col * f->place.col_step;
    for (i64 i = 0; i < n; i++)
        f->part[at - f->begin + i] =
            real_from(probe_weight(t->spec, f->config, f->apart, f->key, row, col + i, index + i * f->place.col_step));
}

/* The probe's weights into `flat` (z->flat reals of the device's memory), laid out as z->param. */
static inline void probe_weights(const Zero *z, int apart, real *flat) {
#pragma omp parallel for num_threads(z->dev->host_threads) schedule(dynamic, 1)
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        char name[HF_NAME_MAX];
        tensor_hf_name(name, t->spec, t->layer);
        ProbeFill f = {z->config, tensor_hf_place(t->spec, z->config), apart, tensor_key(0, name), NULL, 0};
        i64 n = tensor_range(z, t, &f.begin);
        f.part = (real *)host_alloc((size_t)(n * real_size()));
        tensor_owned(z, t, probe_fill_run, &f);
#pragma omp critical(weights)
        if (n) copy_in(z->dev, flat + f.begin, f.part, n * real_size());
        free(f.part);
    }
}

/* The probe's token at `position` of sequence `b`: nothing but token 0, or (`loud`) many. */
static inline i64 probe_token(const Config *c, int loud, i64 b, i64 position) {
    return loud ? (i64)(mix64((uint64_t)b << 40 ^ (uint64_t)position) % (uint64_t)c->vocab) : 0;
}

/* Where the probe tries tokens: one that nearly all see, one that few do. Its documents, where the run has any, begin
   at 0, with the early token, and behind the late one. */
static inline i64 probe_early(const Model *m) { return m->L / 8; }
static inline i64 probe_late(const Model *m) { return m->L - 1 - m->L / 4; }

/* Only even sequences are documents: whoever mistakes one for another is heard. */
static inline void probe_documents(Model *m) {
    int32_t *start = m->whole;
    for (i64 p = 0; p < m->L; p++)
        start[p] = (int32_t)(p > probe_late(m) ? probe_late(m) + 1 : p >= probe_early(m) ? probe_early(m) : 0);
    for (i64 b = 0; b < m->B; b++) sight_sequence(m, b, b % 2 ? NULL : start);
    sight_send(m);
}

/* The last position of sequence 0 that sees p in layers of a kind. */
static inline i64 probe_sees(const Model *m, int kind, i64 p) {
    i64 window = m->sight[kind].window, end = m->L - 1;
    if (m->documents && p <= probe_late(m)) end = p < probe_early(m) ? probe_early(m) - 1 : probe_late(m);
    return window ? i64_min(end, p + window - 1) : end;
}

/* Where a walk leaves what the probe looks at: rows of `width` numbers, (tokens of map, B, heads); and the last
   position that may hear the token. */
typedef struct {
    const char *what;
    const real *rows;
    const TokenMap *map;
    i64 heads, width, last;
} ProbePlace;

/* Every head's output in a layer, where heads are apart. */
static inline ProbePlace probe_heads(const Model *m, i64 l, i64 position) {
    ProbePlace place = {"attention", m->attention[l].out, &m->ring_map, m->heads_l / m->head_groups,
                        m->config.head_dim,
                        probe_sees(m, sight_kind(&m->config, m->L, l), position)};
    return place;
}

static inline ProbePlace probe_behind(const Model *m, i64 position) {
    ProbePlace place = {"the stream behind attention", m->mlp[0].in.x + m->own_first * m->B * m->config.dim,
                        &m->own_map, 1, m->config.dim, probe_sees(m, sight_kind(&m->config, m->L, 0), position)};
    return place;
}

/* What any layer hears of the token itself; or, `handed` on, of what others heard. */
static inline ProbePlace probe_end(const Model *m, i64 position, int handed) {
    ProbePlace place = {"the last stream", m->final_x, &m->own_map, 1, m->config.dim, position};
    for (i64 l = 0; l < m->config.layers; l++)
        place.last = i64_max(place.last, probe_sees(m, sight_kind(&m->config, m->L, l),
                                                    handed ? place.last : position));
    return place;
}

static inline i64 probe_rows(const Model *m, const ProbePlace *place) {
    return place->map->count * m->B * place->heads;
}

/* Hashes of the rows of a place, to be freed; 0: the row is all zeros. Some megabytes of them come at once. */
static inline uint64_t *probe_look(Model *m, const ProbePlace *place) {
    i64 C = place->width, bytes = C * (i64)sizeof(real), most = i64_max(1, ((i64)16 << 20) / bytes),
        n = probe_rows(m, place);
    real *rows = (real *)host_alloc((size_t)(most * bytes + 8));
    uint64_t *out = (uint64_t *)host_alloc(sizeof(uint64_t) * (size_t)n);
    for (i64 r = 0; r < n; r++) {
        const real *row = rows + r % most * C;
        if (r % most == 0) copy_out(&m->dev, rows, place->rows + r * C, i64_min(most, n - r) * bytes);
        int heard = 0;
        for (i64 i = 0; i < C; i++) heard |= real_value(row[i]) != 0;
        for (i64 i = 0; i < bytes && heard; i += 8) {
            uint64_t word = 0;
            memcpy(&word, (const char *)row + i, (size_t)i64_min(8, bytes - i));
            out[r] = hash_pair(out[r] + 1, word);
        }
    }
    free(rows);
    return out;
}

/* What one rank saw of the token at a position of sequence 0 (of every data-parallel group). */
typedef struct {
    i64 may, moved; /* rows that may see it, and those of them that changed */
} ProbeCount;

/* Look at this rank's rows; stop if something moved that must not see the token. `before` NULL: all was zero. */
static inline ProbeCount probe_moved(const Model *m, const ProbePlace *place, i64 position, const uint64_t *before,
                                     const uint64_t *after) {
    ProbeCount count = {0, 0};
    for (i64 r = 0; r < probe_rows(m, place); r++) {
        i64 b = r / place->heads % m->B, p = token_position(place->map, r / place->heads / m->B);
        int may = b == 0 && p >= position && p <= place->last, moved = after[r] != (before ? before[r] : 0);
        if (moved && !may)
            FAIL(THIS_RANK,
                 "self-check: changing token %lld of sequence 0 moved position %lld of sequence %lld, which must not "
                 "see it (%s)",
                 position, p, b, place->what);
        count.may += may, count.moved += may && moved;
    }
    return count;
}

/* What this rank saw of the token at `position`: in the layers' attention, in the stream behind the first of them, and
   behind all. */
typedef struct {
    i64 position;
    ProbeCount *count; /* (layers + 2) */
} ProbeWatch;

/* Compare what all ranks saw: a row that should have heard the token and did not ends the run. */
static inline void probe_reached(const Model *m, const ProbeWatch *w) {
    int ranks = (int)m->mesh.shape.world;
    i64 layers = m->config.layers, n = layers + 2;
    ProbeCount *all = (ProbeCount *)host_alloc(sizeof(ProbeCount) * (size_t)(n * ranks));
    wire_share(m->mesh.world.wire, all, w->count, sizeof(ProbeCount) * (size_t)n);
    for (i64 i = 0; i < n; i++)
        for (int r = 0; r < ranks; r++) {
            const ProbeCount *c = &all[r * n + i];
            char what[64] = "the stream behind attention";
            if (i == layers + 1) snprintf(what, sizeof what, "the last stream");
            else if (i < layers) snprintf(what, sizeof what, "attention in layer %lld", i);
            if (c->moved < c->may)
                FAIL(EVERYONE, "self-check: token %lld of sequence 0 reached %lld of the %lld rows of %s on rank %d "
                     "that must see it", w->position, c->moved, c->may, what, r);
        }
    free(all);
}

/* Count what is heard at a place where all was zero. */
static inline ProbeCount probe_heard(Model *m, const ProbePlace *place, i64 position) {
    uint64_t *heard = probe_look(m, place);
    ProbeCount count = probe_moved(m, place, position, NULL, heard);
    free(heard);
    return count;
}

/* Called by the walk behind a layer's attention, whose buffers the next one may use. */
static inline void probe_watch(void *model, void *arg, int layer) {
    Model *m = (Model *)model;
    ProbeWatch *w = (ProbeWatch *)arg;
    ProbePlace place = probe_heads(m, layer, w->position), behind = probe_behind(m, w->position);
    w->count[layer] = probe_heard(m, &place, w->position);
    if (layer == 1) w->count[m->config.layers] = probe_heard(m, &behind, w->position);
}

/* Forward over the probe's tokens, that at `position` of sequence 0 raised by `change`. */
static inline void probe_walk(Model *m, ModelWalk walk, int loud, i64 position, i64 change) {
    for (i64 i = 0; i < m->T_stream; i++)
        for (i64 b = 0, p = token_position(&m->stream_map, i); b < m->B; b++) {
            i64 token = probe_token(&m->config, loud, b, p) + (b == 0 && p == position ? change : 0);
            m->host_tokens[i * m->B + b] = (int32_t)(token % m->config.vocab);
        }
    copy_in(&m->dev, m->tokens, m->host_tokens, stream_rows(m) * (i64)sizeof(int32_t));
    walk(m, 0);
}

/* One token, and nothing else: who hears it? */
static inline void probe_reach(Model *m, ModelWalk walk, i64 position) {
    i64 layers = m->config.layers;
    ProbeWatch w = {position, (ProbeCount *)host_alloc(sizeof(ProbeCount) * (size_t)(layers + 2))};
    m->watch = probe_watch, m->watch_arg = &w;
    probe_walk(m, walk, 0, position, 1);
    m->watch = NULL;
    ProbePlace behind = probe_behind(m, position), end = probe_end(m, position, 0);
    if (layers == 1) w.count[layers] = probe_heard(m, &behind, position); /* else the walk has passed there */
    w.count[layers + 1] = probe_heard(m, &end, position);
    probe_reached(m, &w);
    free(w.count);
}

/* One among many: do those that cannot have heard of it, and other sequences, keep their bits? */
static inline void probe_leak(Model *m, ModelWalk walk, i64 position) {
    probe_walk(m, walk, 1, position, 0);
    ProbePlace place = probe_end(m, position, 1);
    uint64_t *before = probe_look(m, &place);
    probe_walk(m, walk, 1, position, 1);
    uint64_t *after = probe_look(m, &place);
    probe_moved(m, &place, position, before, after);
    free(before);
    free(after);
}

/* Does a token reach exactly whom it may? The model's weights stay where they are. Collective. */
static inline void selfcheck_probe(Model *m, ModelWalk walk) {
    Zero *z = &m->zero;
    real *param = z->param;
    double eps = m->config.norm_eps;
    i64 late = probe_late(m);
    z->param = (real *)z->grad;
    m->config.norm_eps = 1e-5;
    probe_weights(z, sight_layers(&m->config, m->L, SIGHT_WINDOW) > 0, z->param);
    if (m->documents) probe_documents(m);
    probe_reach(m, walk, probe_early(m));
    probe_reach(m, walk, late);
    if (m->documents && late + 1 < m->L) probe_reach(m, walk, late + 1);
    probe_leak(m, walk, late);
    z->param = param;
    m->config.norm_eps = eps;
}

/* Seconds that the probe will take, about: four forward passes of a micro-batch at a fifth of this rank's `peak`
   FLOP/s, for `flop` a token and step. The same on all ranks; collective. */
static inline double selfcheck_seconds(Model *m, double flop, double peak) {
    double tokens = (double)(m->mesh.shape.dp * m->B * m->L), peaks = peak;
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), &peaks, 1);
    return 4 * tokens * flop / 3 / (0.2 * peaks);
}

/* What was found, unless it has ended the run: schedule and labels are checked, the probe follows; `automatic`: if it
   takes less than a second. Every rank decides the same; rank 0 speaks. */
static inline void selfcheck_tokens(Model *m, ModelWalk walk, int automatic, double seconds) {
    double begin = seconds_now();
    if (automatic && seconds >= 1) {
        if (m->mesh.rank == 0)
            printf("check    ranks agree on the schedule and the labels; the probe would take about %.0f s: "
                   "--selfcheck on\n",
                   seconds);
        return;
    }
    int deaf = probe_is_deaf(&m->config);
    if (!deaf) selfcheck_probe(m, walk);
    if (m->mesh.rank != 0) return;
    if (!deaf)
        printf("check    ranks agree on the schedule and the labels; changed tokens move what may see them, nothing "
               "else (%.2f s)\n",
               seconds_now() - begin);
    else
        printf("check    ranks agree on the schedule and the labels; this model cannot tell one token from another, so "
               "the probe says nothing\n");
    fflush(stdout);
}

#endif

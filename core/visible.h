/* visible.h - what every query sees: keys from lo(query) up to its own position, in documents, sliding windows or both.

   documents   a document ends at its end-of-text token; a query sees back to the first token of its own
   windows     in the layers that config.json names, a query sees so many keys, itself included

            position        0 1 2 3 4 5 6 7 8 9
            documents of    4       1 5               windows of 3 in some layers
            lo, others      0 0 0 0 4 5 5 5 5 5       lo, windowed layers   0 0 0 1 4 5 5 5 6 7
            place           0 1 2 3 0 0 1 2 3 4       of learned positions that restart in each document

   A kind of layer (Sight) is one array of lo, of this ring rank's queries in all sequences of a micro-batch; where all
   see everything before them there is none. Documents change with every micro-batch: each rank reads its whole
   sequences from the file, which costs nothing beside attention, and no rank has to ask another where a document began.

   The host knows how many pairs of a query and a key are seen between this rank and each ring rank. A block without any
   is not computed; FLOP and MFU count pairs. Without data - a plan, the simulator - they are those of windows, and of
   documents of --doc-length tokens (else of one document), in closed form.

   Rotary positions need not restart: attention sees distances only, and none between documents.                      */
#ifndef ODYSSEUS_VISIBLE_H
#define ODYSSEUS_VISIBLE_H

#include "scheme.h"

/* ---- pairs in closed form ---------------------------------------------------------------------------------------- */

/* The part of a run whose positions are begin .. end-1. */
static inline TokenRun token_run_within(TokenRun run, i64 begin, i64 end) {
    i64 skip = i64_min(run.count, i64_max(0, ceil_div(i64_max(0, begin - run.first), run.stride ? run.stride : 1)));
    i64 stop = end <= run.first ? 0 : i64_min(run.count, ceil_div(end - run.first, run.stride ? run.stride : 1));
    run.first += skip * run.stride, run.count = i64_max(0, stop - skip);
    return run;
}

/* Pairs of two runs where a query sees `window` keys at most, itself included (0: all before it). */
static inline double window_pairs_runs(TokenRun q, TokenRun kv, i64 window) {
    double pairs = causal_pairs_runs(q, kv);
    q.first -= window;
    return window ? pairs - causal_pairs_runs(q, kv) : pairs;
}

/* Pairs of two maps in one sequence of documents of `document` tokens each (0: one document) under a window. */
static inline double masked_pairs(const TokenMap *q, const TokenMap *kv, i64 document, i64 window) {
    double pairs = 0;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            TokenRun a = q->run[i], b = kv->run[j];
            if (a.count == 0 || b.count == 0) continue;
            if (!document) {
                pairs += window_pairs_runs(a, b, window);
                continue;
            }
            i64 last = i64_min(a.first + (a.count - 1) * a.stride, b.first + (b.count - 1) * b.stride);
            for (i64 d = i64_max(a.first, b.first) / document * document; d <= last; d += document)
                pairs += window_pairs_runs(token_run_within(a, d, d + document), token_run_within(b, d, d + document),
                                           window);
        }
    return pairs;
}

/* ---- the kinds of layers of a model ------------------------------------------------------------------------------ */

/* The kind of a layer: windows that hold the whole sequence are none. */
static inline int sight_kind(const Config *c, i64 L, i64 layer) {
    return c->window && c->window < L && layer_in(&c->windowed, layer) ? SIGHT_WINDOW : SIGHT_ALL;
}

/* Layers of a kind. */
static inline i64 sight_layers(const Config *c, i64 L, int kind) {
    i64 n = 0;
    for (i64 l = 0; l < c->layers; l++) n += sight_kind(c, L, l) == kind;
    return n;
}

/* Blocks of keys that pairs are counted of: every piece of every ring rank's, in this order; and one's positions. */
static inline i64 sight_blocks(const Model *m) { return m->mesh.shape.ring * ring_pieces(m); }
static inline TokenMap sight_keys(const Model *m, i64 block) {
    i64 pieces = ring_pieces(m), piece = block % pieces, first = piece_first(m, piece);
    TokenMap all = token_map(m->layout, m->L, (int)m->mesh.shape.ring, (int)(block / pieces));
    return token_map_slice(all, first, piece_first(m, piece + 1) - first);
}

/* Positions of a ring rank's tokens. */
static inline TokenMap sight_queries(const Model *m, i64 ring_rank) {
    return token_map(m->layout, m->L, (int)m->mesh.shape.ring, (int)ring_rank);
}

/* The same of the queries of other ranks that come here. */
static inline void sight_layout_others(Model *m, Sight *s, i64 document) {
    i64 R = m->mesh.shape.ring;
    s->met = (double *)host_alloc(sizeof(double) * (size_t)R);
    for (i64 r = 0; r < R; r++) {
        TokenMap q = sight_queries(m, r);
        s->met[r] = masked_pairs(&q, &m->ring_map, m->documents ? document : 0, s->window) * (double)m->B;
    }
    if (s->lo) s->others = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, R * ring_rows(m) * 4);
}

/* Which kinds there are, and memory for what their queries see. */
static inline void sight_layout(Model *m, i64 document) {
    for (int k = 0; k < SIGHTS; k++) {
        Sight *s = &m->sight[k];
        s->window = k == SIGHT_WINDOW ? m->config.window : 0;
        s->layers = sight_layers(&m->config, m->L, k);
        s->pairs = (double *)host_alloc(sizeof(double) * (size_t)sight_blocks(m));
        for (i64 i = 0; s->layers && i < sight_blocks(m); i++) {
            TokenMap kv = sight_keys(m, i);
            s->pairs[i] = masked_pairs(&m->ring_map, &kv, m->documents ? document : 0, s->window) * (double)m->B;
        }
        if (s->layers && (s->window || m->documents))
            s->lo = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, ring_rows(m) * 4);
        if (m->mesh.queries_travel) sight_layout_others(m, s, document);
    }
    if (m->restart) m->place = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, stream_rows(m) * 4);
}

static inline void sight_free(Model *m) {
    for (int k = 0; k < SIGHTS; k++) {
        free(m->sight[k].pairs), free(m->sight[k].host);
        free(m->sight[k].met), free(m->sight[k].host_others);
    }
    free(m->host_place);
    free(m->whole);
}

/* ---- one micro-batch --------------------------------------------------------------------------------------------- */

/* start (L) = the first position of each token's document. */
static inline void documents_find(int32_t *start, const int32_t *tokens, i64 L, i64 eot) {
    for (i64 p = 0; p < L; p++) start[p] = p == 0 || tokens[p - 1] == eot ? (int32_t)p : start[p - 1];
}

/* The lowest position that a query at p sees; start (L), NULL: one document. */
static inline i64 sight_lo(const Sight *s, const int32_t *start, i64 p) {
    return i64_max(start ? start[p] : 0, s->window ? p - s->window + 1 : 0);
}

/* What the queries of sequence b of the micro-batch see; start as there. */
static inline void sight_sequence(Model *m, i64 b, const int32_t *start) {
    for (int k = 0; k < SIGHTS; k++)
        for (i64 t = 0; m->sight[k].lo && t < m->T_ring; t++)
            m->sight[k].host[t * m->B + b] =
                (int32_t)sight_lo(&m->sight[k], start, token_position(&m->ring_map, t));
    for (int k = 0; k < SIGHTS; k++)
        for (i64 i = 0; m->sight[k].host_others && i < m->L; i++) {
            TokenMap q = sight_queries(m, i / m->T_ring);
            m->sight[k].host_others[i * m->B + b] =
                (int32_t)sight_lo(&m->sight[k], start, token_position(&q, i % m->T_ring));
        }
    for (i64 t = 0; m->restart && t < m->T_stream; t++) {
        i64 p = token_position(&m->stream_map, t);
        m->host_place[t * m->B + b] = (int32_t)(start ? p - start[p] : p);
    }
}

/* How many positions of a run are at most p. */
static inline i64 run_until(const TokenRun *run, i64 p) {
    return p < run->first || !run->count ? 0 : i64_min(run->count, (p - run->first) / run->stride + 1);
}

/* Pairs of a ring rank's queries, whose lo (L/R, B) sight_sequence has told, and a block of keys. */
static inline double sight_count(const Model *m, TokenMap q, const int32_t *lo, TokenMap kv) {
    i64 pairs = 0;
    for (i64 t = 0; t < m->T_ring; t++) {
        i64 p = token_position(&q, t);
        for (i64 b = 0; b < m->B; b++)
            for (int j = 0; j < 2; j++)
                pairs += run_until(&kv.run[j], p) - run_until(&kv.run[j], lo[t * m->B + b] - 1);
    }
    return (double)pairs;
}

/* All sequences are told: count, and bring it to the device. */
static inline void sight_send(Model *m) {
    i64 blocks = sight_blocks(m);
    for (int k = 0; k < SIGHTS; k++) {
        Sight *s = &m->sight[k];
        if (!s->lo) continue;
#pragma omp parallel for num_threads(m->dev.host_threads) schedule(dynamic, 1)
        for (i64 i = 0; i < blocks; i++) s->pairs[i] = sight_count(m, m->ring_map, s->host, sight_keys(m, i));
        copy_in(&m->dev, s->lo, s->host, ring_rows(m) * (i64)sizeof(int32_t));
        if (!s->others) continue;
        i64 R = m->mesh.shape.ring;
#pragma omp parallel for num_threads(m->dev.host_threads) schedule(dynamic, 1)
        for (i64 r = 0; r < R; r++)
            s->met[r] = sight_count(m, sight_queries(m, r), s->host_others + r * ring_rows(m), m->ring_map);
        copy_in(&m->dev, s->others, s->host_others, R * ring_rows(m) * (i64)sizeof(int32_t));
    }
    if (m->restart) copy_in(&m->dev, m->place, m->host_place, stream_rows(m) * (i64)sizeof(int32_t));
    for (int k = 0; k < SIGHTS; k++)
        for (i64 i = 0; i < blocks; i++)
            m->pairs_seen += (double)m->sight[k].layers * m->sight[k].pairs[i] / (double)m->mesh.shape.head;
}

/* Every sequence is one document. */
static inline void sight_whole(Model *m) {
    for (i64 b = 0; b < m->B; b++) sight_sequence(m, b, NULL);
    sight_send(m);
}

/* Memory of the host, once the arena stands; windows alone never change. */
static inline void sight_tables(Model *m) {
    for (int k = 0; k < SIGHTS; k++) {
        Sight *s = &m->sight[k];
        if (s->lo) s->host = (int32_t *)host_alloc((size_t)ring_rows(m) * sizeof(int32_t));
        if (s->others) s->host_others = (int32_t *)host_alloc((size_t)(m->L * m->B) * sizeof(int32_t));
    }
    if (m->restart) m->host_place = (int32_t *)host_alloc((size_t)stream_rows(m) * sizeof(int32_t));
    if (m->documents) m->whole = (int32_t *)host_alloc((size_t)(2 * m->L) * sizeof(int32_t));
    if (!m->dev.imagined) sight_whole(m);
}

#endif

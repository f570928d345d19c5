/* selfcheck.h - before the first step: do all ranks mean the same run, and does every token reach exactly whom it may?

   schedule   all ranks compare hashes of the collectives that their plan holds; where they part, a binary search over the
              prefixes finds the first call that differs, and the message names rank, operation and block
   labels     summed over ranks, the targets of positions 0 .. L-2 must be the tokens of positions 1 .. L-1: labels that were shifted
              after the sequence was split leave a seam
   probe      change one token at position p, run forward again: the stream of every earlier position and of every other sequence must
              keep its bits, and where later positions move on some rank, some must move on every rank that holds any. A skipped
              exchange leaves ranks untouched that should see p; a wrong mask moves what should not. Weights under which a token reaches
              nobody (an output projection of zeros, two equal embeddings, a NaN) prove nothing either way, and the check says so.

   cost       one all-gather of two numbers; three forward passes of a micro-batch                                            */
#ifndef ODYSSEUS_SELFCHECK_H
#define ODYSSEUS_SELFCHECK_H

#include "scheme.h"

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
        for (differs = 1; differs < ranks - 1 && calls[differs].hash == calls[0].hash && planned_equal(&calls[differs], &calls[0]);) differs++;
        char first[160] = "nothing more", other[160] = "nothing more";
        if (calls[0].hash) schedule_text(first, sizeof first, &calls[0]);
        if (calls[differs].hash) schedule_text(other, sizeof other, &calls[differs]);
        FAIL(EVERYONE, "self-check: the ranks do not plan the same step: as collective %lld, rank %d has %s, rank 0 has %s", (long long)lo, differs, other,
             first);
    }
    free(all);
}

/* A value for "token at position of sequence b", to be summed exactly in a double over a whole batch: below 2^24. */
static inline double label_hash(i64 b, i64 position, i64 token) {
    return (double)(hash_pair(hash_pair((uint64_t)b + 1, (uint64_t)position), (uint64_t)(token + 2)) >> 40);
}

/* Hashes of this rank's rows of the stream after the last layer, in out (own rows); some megabytes of them come at once. Returns whether all of it is finite. */
static inline int selfcheck_rows(Model *m, uint64_t *out) {
    i64 C = m->config.dim, bytes = C * (i64)sizeof(real), most = i64_max(1, ((i64)16 << 20) / bytes);
    int finite = 1;
    real *rows = (real *)host_alloc((size_t)(most * bytes + 8));
    for (i64 r = 0; r < own_rows(m); r++) {
        const real *row = rows + r % most * C;
        if (r % most == 0) copy_out(&m->dev, rows, m->final_x + r * C, i64_min(most, own_rows(m) - r) * bytes);
        out[r] = 0;
        for (i64 i = 0; i < C; i++) finite &= isfinite(real_value(row[i])) != 0;
        for (i64 i = 0; i < bytes; i += 8) {
            uint64_t word = 0;
            memcpy(&word, (const char *)row + i, (size_t)i64_min(8, bytes - i));
            out[r] = hash_pair(out[r], word);
        }
    }
    free(rows);
    return finite;
}

/* What one rank saw when the token at a position of sequence 0 (of every data-parallel group) changed. */
typedef struct {
    i64 later, moved; /* positions behind it that the rank holds, and those of them that changed */
} ProbeCount;

/* Look at this rank's rows; stop if something moved that must not see the token. */
static inline ProbeCount selfcheck_moved(const Model *m, i64 position, const uint64_t *before, const uint64_t *after) {
    ProbeCount count = {0, 0};
    for (i64 r = 0; r < own_rows(m); r++) {
        i64 b = r % m->B, p = token_position(&m->own_map, r / m->B);
        int moved = before[r] != after[r];
        if (moved && (b != 0 || p < position))
            FAIL(THIS_RANK, "self-check: changing token %lld of sequence 0 moved position %lld of sequence %lld, which must not see it", (long long)position,
                 (long long)p, (long long)b);
        if (b == 0 && p > position) count.later++, count.moved += moved;
    }
    return count;
}

/* Compare what all ranks saw: 1 if the token reached every rank that holds later positions, 0 if it reached nobody anywhere (which
   says something of the weights, not of the exchange). A rank left out while another saw it ends the run. */
static inline int selfcheck_reached(const Model *m, i64 position, ProbeCount mine) {
    int ranks = (int)m->mesh.shape.world, left_out = -1, reached = 0;
    ProbeCount *all = (ProbeCount *)host_alloc(sizeof mine * (size_t)ranks);
    wire_share(m->mesh.world.wire, all, &mine, sizeof mine);
    for (int r = 0; r < ranks; r++) {
        if (all[r].moved) reached = 1;
        if (all[r].later && !all[r].moved && left_out < 0) left_out = r;
    }
    if (reached && left_out >= 0)
        FAIL(EVERYONE, "self-check: changing token %lld moved later positions, but none of the %lld that rank %d holds: attention does not reach it",
             (long long)position, (long long)all[left_out].later, left_out);
    free(all);
    return reached;
}

#endif

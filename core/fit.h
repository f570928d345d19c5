/* fit.h - does a run fit into memory, and if not, what would?

   A plan walks a step without computing and says how large a rank's arena is: searches over --seq-len and
   --micro-batch ask it again and again. The walk stands above this file, so the plan is handed in.
   Nothing is allocated on a device.                                                                                  */
#ifndef ODYSSEUS_FIT_H
#define ODYSSEUS_FIT_H

#include "options.h"
#include <cjson/cJSON.h>

/* Bytes of a rank's arena under these options. */
typedef i64 (*PlanBytes)(const ModelOptions *);

/* Can these options run with sequences of L tokens, B at once, in `bytes` a rank? */
static inline int options_fit(ModelOptions o, i64 L, i64 B, i64 bytes, PlanBytes plan) {
    char why[1024];
    o.L = L, o.B = B;
    return !options_refuse(&o, why, sizeof why) && plan(&o) <= bytes;
}

/* The longest --seq-len whose arena fits into `bytes` a rank, the other options as they are; 0:
   not even the shortest fits. */
static inline i64 longest_sequence(const ModelOptions *o, i64 bytes, PlanBytes plan) {
    i64 unit = sequence_unit(o), fits = 0, fails = 1; /* in units */
    while (options_fit(*o, unit * fails, o->B, bytes, plan)) fits = fails, fails *= 2;
    while (fails - fits > 1) {
        i64 middle = fits + (fails - fits) / 2;
        if (options_fit(*o, unit * middle, o->B, bytes, plan)) fits = middle;
        else fails = middle;
    }
    return fits * unit;
}

/* The same for --micro-batch, which must divide the sequences of a data-parallel group. */
static inline i64 largest_micro_batch(const ModelOptions *o, i64 bytes, PlanBytes plan) {
    i64 group = o->batch / o->shape.dp, fits = 0;
    for (i64 B = 1; B <= group; B++) {
        if (group % B != 0) continue;
        if (!options_fit(*o, o->L, B, bytes, plan)) break;
        fits = B;
    }
    return fits;
}

/* What would fit into `bytes` a rank instead of `o`. */
static inline void memory_advice(const ModelOptions *o, i64 bytes, PlanBytes plan, char *out, size_t size) {
    ModelOptions one = *o, again = *o;
    one.B = 1, again.recompute = RECOMPUTE_FULL;
    i64 L = longest_sequence(o, bytes, plan), B = largest_micro_batch(o, bytes, plan);
    i64 L_one = L || B ? 0 : longest_sequence(&one, bytes, plan),
        L_again = L || B || L_one ? 0 : longest_sequence(&again, bytes, plan);
    int n = 0;
    if (L && B) n = snprintf(out, size, "the largest that fit: --seq-len %lld, or --micro-batch %lld", L, B);
    else if (L) n = snprintf(out, size, "the largest --seq-len that fits: %lld", L);
    else if (B) n = snprintf(out, size, "the largest --micro-batch that fits: %lld", B);
    else if (L_one) n = snprintf(out, size, "with --micro-batch 1, the largest --seq-len that fits: %lld", L_one);
    else if (L_again) n = snprintf(out, size, "no --seq-len fits; with --recompute full, up to %lld", L_again);
    else n = snprintf(out, size, "no --seq-len fits with this model on this mesh");
    if (o->recompute != RECOMPUTE_FULL && !L_again && options_fit(again, o->L, o->B, bytes, plan))
        n += snprintf(out + n, size - (size_t)n, "; as it is, with --recompute full");
    snprintf(out + n, size - (size_t)n, "; or use more ranks");
}

/* --offload: has the host what all its ranks want of it? Collective. */
static inline void check_host_memory(const Model *m) {
    Wire world = m->mesh.world.wire;
    int ranks = wire_size(world), local, locals;
    i64 available = host_memory_available(""), need = offload_bytes(&m->offload);
    if (!need || DEVICE_IS_HOST) return;
    wire_local(world, &local, &locals);
    i64 *share = (i64 *)host_alloc(sizeof(i64) * (size_t)ranks), mine = available ? available / locals : ARENA_MOST;
    wire_share(world, share, &mine, sizeof mine);
    int poorest = 0;
    for (int r = 1; r < ranks; r++)
        if (share[r] < share[poorest]) poorest = r;
    mine = share[poorest];
    free(share);
    if (need <= mine) return;
    if (m->mesh.rank != 0) wire_barrier(world); /* rank 0 never comes: it ends all */
    FAIL(EVERYONE,
         "out of host memory: --offload wants %.1f MB of it for a rank, whose share is %.1f MB (rank %d); use more "
         "hosts, a shorter --seq-len, or leave it out",
         need / 1e6, mine / 1e6, poorest);
}

/* Before anything is allocated: every rank learns whether all of them have the memory. If not, rank 0 says
   what would fit. Returns the bytes that the poorest rank may use; ARENA_MOST: not known. Collective. */
static inline i64 check_memory(const Model *m, const ModelOptions *o, PlanBytes plan) {
    Wire world = m->mesh.world.wire;
    int ranks = wire_size(world), poorest = 0;
    i64 available = device_memory_available(), *share = (i64 *)host_alloc(sizeof(i64) * (size_t)ranks);
    /* 0: not known */
    check_host_memory(m);
    i64 need = arena_bytes(&m->arena) + (DEVICE_IS_HOST ? offload_bytes(&m->offload) : 0),
        mine = available ? i64_max(available / o->place.sharing - DEVICE_RESERVE, 0) : ARENA_MOST;
    wire_share(world, share, &mine, sizeof mine);
    for (int r = 1; r < ranks; r++)
        if (share[r] < share[poorest]) poorest = r;
    i64 least = share[poorest];
    free(share);
    if (need <= least) return least;
    if (m->mesh.rank != 0) wire_barrier(world); /* rank 0 never comes: it ends all */
    char advice[512];
    arena_print(stderr, &m->arena);
    memory_advice(o, least, plan, advice, sizeof advice);
    FAIL(EVERYONE, "out of memory: a rank needs %.1f MB, its share of a " MEMORY_OWNER " is %.1f MB (rank %d); %s",
         need / 1e6, least / 1e6, poorest, advice);
}

/* What a rank's arena holds, in bytes by category, and how much it could have; ARENA_MOST: not known. */
static inline void memory_json(cJSON *json, const Arena *a, i64 available) {
    cJSON *memory = cJSON_AddObjectToObject(json, "memory");
    for (int c = 0; c < MEM_CATEGORIES; c++)
        cJSON_AddNumberToObject(memory, MEM_NAMES[c], (double)a->peak.by_category[c]);
    if (available != ARENA_MOST) cJSON_AddNumberToObject(json, "memory_available", (double)available);
}

#endif

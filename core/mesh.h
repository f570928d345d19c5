/* mesh.h - who this rank is: world = dp x ring x head, head fastest.

   rank = (dp_rank * R + ring_rank) * H + head_rank                         example: 8 ranks, dp 2, ring 2, head 2

                       head 0   head 1                                      head  neighbours 0-1, 2-3, ...
     dp 0   ring 0        0        1      <- one copy of a sequence         ring  0-2, 1-3, 4-6, 5-7
            ring 1        2        3         (dp 0): ranks 0..3             split 0-2-4-6, 1-3-5-7  (dp x ring)
     dp 1   ring 0        4        5
            ring 1        6        7

   Parameters know three groups: `world` shares what no axis splits, `split` what the head axis splits, and `kv` the KV
   projections when there are fewer KV heads than head ranks (split, times the replicas of one KV head).              */
#ifndef ODYSSEUS_MESH_H
#define ODYSSEUS_MESH_H

#include "comm.h"

typedef struct {
    i64 world, dp, ring, head;
} MeshShape;

typedef struct {
    MeshShape shape;
    int rank, dp_rank, ring_rank, head_rank;
    int queries_travel; /* 1: in the ring's backward queries come to the keys (ring.h) */
    i64 kv_replicas; /* head ranks that hold the same KV head, 1 unless KV heads < head ranks */
    Comm world, head, ring, split, kv;
} Mesh;

#define MESH_GROUPS 5

/* One axis: with a wire, split it off; without (a dry run), only its shape is known. */
static inline Comm mesh_axis(Wire base, int imagined, i64 colour, i64 rank, i64 size, i64 world, i64 inner,
                             i64 stride) {
    Comm c = {(int)rank, (int)size, wire_none(), NULL, world, inner, stride};
    if (!imagined) c.wire = wire_split(base, (int)colour, (int)rank);
    return c;
}

/* Place `rank` of `base` in the mesh and make its communicators; collective over `base`. With `imagined`, base is not
   used. kv_heads: of the model, for the `kv` group. shape must multiply up to the world. */
static inline void mesh_init(Mesh *m, MeshShape shape, Wire base, int imagined, int rank, i64 kv_heads) {
    memset(m, 0, sizeof *m);
    i64 R = shape.ring, H = shape.head;
    i64 h = rank % H, r = rank / H % R, d = rank / (H * R);
    m->shape = shape;
    m->rank = rank, m->dp_rank = (int)d, m->ring_rank = (int)r, m->head_rank = (int)h;
    m->kv_replicas = H > kv_heads ? H / kv_heads : 1;
    i64 reps = m->kv_replicas;
    m->world = mesh_axis(base, imagined, 0, rank, shape.world, shape.world, shape.world, shape.world);
    m->head = mesh_axis(base, imagined, rank / H, h, H, shape.world, H, H);
    m->ring = mesh_axis(base, imagined, d * H + h, r, R, shape.world, 1, H);
    m->split = mesh_axis(base, imagined, h, d * R + r, shape.dp * R, shape.world, 1, H);
    m->kv =
        mesh_axis(base, imagined, h / reps, (d * R + r) * reps + h % reps, shape.dp * R * reps, shape.world, reps, H);
}

/* The five groups, always in this order. */
static inline Comm *mesh_group(Mesh *m, int i) {
    Comm *const groups[MESH_GROUPS] = {&m->world, &m->head, &m->ring, &m->split, &m->kv};
    return groups[i];
}

/* The first group with the same ranks as group i: one link is enough for them. */
static inline int mesh_twin(Mesh *m, int i) {
    const Comm *c = mesh_group(m, i);
    for (int j = 0; j < i; j++) {
        const Comm *d = mesh_group(m, j);
        if (c->size == d->size && (c->size == c->world || (c->inner == d->inner && c->stride == d->stride))) return j;
    }
    return i;
}

/* Links that the groups of a mesh of this shape need. */
static inline int mesh_links(MeshShape shape, i64 kv_heads) {
    Mesh m;
    int links = 0;
    mesh_init(&m, shape, wire_none(), 1, 0, kv_heads);
    for (int i = 0; i < MESH_GROUPS; i++) links += mesh_group(&m, i)->size > 1 && mesh_twin(&m, i) == i;
    return links;
}

/* Let the groups reach each other's devices by the backend's own way, where it has one. Collective. */
static inline void mesh_link(Mesh *m, Fabric *f) {
    for (int i = 0; i < MESH_GROUPS; i++) {
        int twin = mesh_twin(m, i);
        mesh_group(m, i)->link = twin < i ? mesh_group(m, twin)->link : link_open(&f->links, mesh_group(m, i), m->rank);
    }
}

#define TRIAL_BYTES ((i64)64 << 20)

/* An exchange of a few bytes and one as large as the step's largest (of TRIAL_BYTES at most) over every link, after the
   plan. What cannot work fails before anything is written; and a library that makes its buffers when they are first
   used has them before memory is counted. */
static inline void mesh_try(Mesh *m, Fabric *f) {
    Tag t = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    for (int i = 0; i < MESH_GROUPS; i++) {
        const Comm *c = mesh_group(m, i);
        if (!c->link || mesh_twin(m, i) != i) continue;
        /* in bytes */
        i64 part[2] = {16, round_up(i64_min(schedule_largest(&f->schedule, c->size), TRIAL_BYTES / c->size), 16)};
        char *all = (char *)links_trial(2 * c->size * i64_max(part[0], part[1]));
        if (!all)
            FAIL(THIS_RANK,
                 "out of memory: no %.1f MB to try the links between the ranks; does something else use "
                 "this " MEMORY_OWNER "?",
                 (double)(2 * c->size * part[1]) / 1e6);
        for (int k = 0; k < 2; k++) {
            if (!part[k]) continue;
            comm_all_gather(f, c, t, all, all + c->rank * part[k], part[k] / accum_size(), DTYPE_ACCUM);
            comm_wait(f, comm_all_to_all_start(f, c, t, all + c->size * part[k], all, part[k] / accum_size(),
                                               DTYPE_ACCUM));
        }
        device_finish(f->dev);
        links_untried(all);
    }
}

static inline void mesh_free(Mesh *m) {
    for (int i = 0; i < MESH_GROUPS; i++) wire_free(&mesh_group(m, i)->wire);
}

#endif

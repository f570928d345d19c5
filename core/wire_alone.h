/* wire_alone.h - the wire of a program built without MPI: one rank, which has nobody to talk to. The
   functions are wire_mpi.h's. */
#ifndef ODYSSEUS_WIRE_ALONE_H
#define ODYSSEUS_WIRE_ALONE_H

#include "launcher.h"

typedef int Wire; /* 1: the one rank; 0: none */

typedef struct {
    int unused;
} WireRequest;

static inline WireRequest wire_request_none(void) {
    WireRequest r = {0};
    return r;
}

static inline Wire wire_none(void) { return 0; }

/* A launcher that started several would get as many lonely trainings. */
static inline Wire wire_start(int *argc, char ***argv) {
    (void)argc, (void)argv;
    if (launcher_ranks() > 1)
        FAIL(EVERYONE,
             "%d ranks were started, but this program was built without MPI and is one rank; apt-get install "
             "libopenmpi-dev openmpi-bin, then make again",
             launcher_ranks());
    return 1;
}

typedef void (*WatchText)(char *out, size_t size, const void *what);
typedef struct {
    const void *work;
    WatchText work_text;
} Watch;

/* Nobody is there to be watched. */
static inline Watch *watch(void) {
    static Watch state;
    return &state;
}
static inline void watch_wait(WatchText text, const void *what) { (void)text, (void)what; }
static inline void watch_over(void) {}
static inline void watch_look(void) {}
static inline void wire_watch(Wire w, double timeout) { (void)w, (void)timeout; }

static inline void wire_finish(void) { output_finish(); }
static inline int wire_rank(Wire w) { return w - w; }
static inline int wire_size(Wire w) { return w ? 1 : 0; }
static inline Wire wire_split(Wire w, int colour, int key) {
    (void)colour, (void)key;
    return w;
}
static inline void wire_local(Wire w, int *local, int *locals) { *local = 0, *locals = w; }
static inline void wire_free(Wire *w) { *w = 0; }
static inline void wire_barrier(Wire w) { (void)w; }
static inline void wire_share(Wire w, void *all, const void *mine, size_t bytes) {
    (void)w;
    memcpy(all, mine, bytes);
}
static inline void wire_tell(Wire w, void *buf, i64 bytes) { (void)w, (void)buf, (void)bytes; }
static inline void wire_collect(Wire w, void *buf, i64 bytes) { (void)w, (void)buf, (void)bytes; }
static inline int wire_test(WireRequest *r) {
    (void)r;
    return 1;
}

/* Groups of one rank move nothing: comm.h never comes here. */
static inline void wire_all_gather(Wire w, WireRequest *r, void *full, const void *part, i64 bytes, int rank) {
    (void)w, (void)r, (void)rank;
    if (full != part) memcpy(full, part, (size_t)bytes);
}
static inline void wire_all_to_all(Wire w, WireRequest *r, void *recv, const void *send, i64 bytes) {
    wire_all_gather(w, r, recv, send, bytes, 0);
}
static inline void wire_ring(Wire w, WireRequest *r, void *recv, const void *send, i64 bytes, int rank, int size) {
    (void)size;
    wire_all_gather(w, r, recv, send, bytes, rank);
}

#endif

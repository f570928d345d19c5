/* wire_mpi.h - the wire under comm.h, as MPI: nonblocking collectives on host memory, bytes in, bytes out.

   No reduction is left to MPI (see comm.h), so everything travels as bytes. Counts beyond 2^31 go as one element of a
   derived type. Whoever waits looks for ranks that stand still (wire_watch.h). MPI_THREAD_FUNNELED: only the
   thread that walks the model calls in here. Open MPI moves nonblocking collectives only inside its calls,
   hence wire_test from the kernels.

   A process that no launcher has started is one rank and does without MPI: MPI_COMM_SELF, of
   which nothing is asked then. */
#ifndef ODYSSEUS_WIRE_MPI_H
#define ODYSSEUS_WIRE_MPI_H

#include "launcher.h"
#include <limits.h>
#include <mpi.h>
#include "wire_watch.h"

typedef MPI_Comm Wire;

typedef struct {
    MPI_Request request[2];
} WireRequest;

static inline WireRequest wire_request_none(void) {
    WireRequest r;
    r.request[0] = r.request[1] = MPI_REQUEST_NULL;
    return r;
}

static inline Wire wire_none(void) { return MPI_COMM_NULL; }

/* One rank without MPI? */
static inline int wire_alone(void) {
    int started;
    MPI_Initialized(&started);
    return !started;
}

/* Take every rank down. A rank alone has nobody to take along, and MPI_Abort would bury the message under its own. */
static inline void wire_abort(int code) {
    int ranks = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks > 1) MPI_Abort(MPI_COMM_WORLD, code);
    else MPI_Finalize();
}

/* Start MPI and return the communicator of all ranks; from here on an error on one rank ends every rank. */
static inline Wire wire_start_mpi(int *argc, char ***argv) {
    int provided = 0, ranks;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &fail_state()->rank);
    fail_state()->abort_all = wire_abort;
    if (provided < MPI_THREAD_FUNNELED)
        FAIL(EVERYONE, "this MPI gives no MPI_THREAD_FUNNELED; install Open MPI with thread support");
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (ranks == 1 && launcher_ranks() > 1)
        FAIL(THIS_RANK,
             "%d ranks were started, but MPI sees one, so each would train alone; start them with the mpirun that "
             "belongs to the mpicc that built this program (in Slurm: srun --mpi=pmix)",
             launcher_ranks());
    return MPI_COMM_WORLD;
}

/* The wire between all ranks: MPI's where a launcher has started this process. */
static inline Wire wire_start(int *argc, char ***argv) {
    return launcher_found() ? wire_start_mpi(argc, argv) : MPI_COMM_SELF;
}

/* Watch the ranks of `w`: see wire_watch.h. Collective. */
static inline void wire_watch(Wire w, double timeout) {
    if (!wire_alone()) watch_start(w, timeout);
}

static inline int wire_rank(Wire w) {
    int rank = 0;
    if (!wire_alone()) MPI_Comm_rank(w, &rank);
    return rank;
}

static inline int wire_size(Wire w) {
    int size = 1;
    if (!wire_alone()) MPI_Comm_size(w, &size);
    return size;
}

/* Is it over? Moves it along. A rank alone may ask, too: for the transfers of a world that it
   imagines, of which none was begun. */
static inline int wire_test(WireRequest *r) {
    MPI_Status status[2]; /* not MPI_STATUSES_IGNORE: gcc sees an array of no bytes in MPICH's */
    int done = 1;
    if (!wire_alone()) MPI_Testall(2, r->request, &done, status);
    return done;
}

static inline void wire_text(char *out, size_t size, const void *what) {
    snprintf(out, size, "%s", (const char *)what);
}

/* Wait for an exchange outside the steps, of this name. */
static inline void wire_wait(WireRequest *r, const char *what) {
    watch_wait(wire_text, what);
    for (int n = 1; !wire_test(r); n++)
        if (n % 32 == 0) watch_look();
    watch_over();
}

static inline void wire_barrier_as(Wire w, const char *what) {
    WireRequest r = wire_request_none();
    if (!wire_alone()) MPI_Ibarrier(w, &r.request[0]);
    wire_wait(&r, what);
}

static inline void wire_barrier(Wire w) { wire_barrier_as(w, "a barrier"); }

/* Output first: what MPI_Finalize takes down may take with it what was printed. */
static inline void wire_finish(void) {
    output_finish();
    wire_barrier_as(MPI_COMM_WORLD, "the end of the run");
    watch_stop();
    fail_state()->abort_all = NULL;
    if (!wire_alone()) MPI_Finalize();
}

/* Ranks of one colour form a new communicator, ordered by key. Owner: caller; wire_free. MPI makes it in a call that
   cannot be watched: the barrier can. */
static inline Wire wire_split(Wire w, int colour, int key) {
    Wire out = w;
    if (wire_alone()) return out;
    wire_barrier_as(w, "the making of a group of ranks");
    MPI_Comm_split(w, colour, key, &out);
    return out;
}

/* Rank and number of ranks on this host, in `local` and `locals`. */
static inline void wire_local(Wire w, int *local, int *locals) {
    Wire host;
    *local = 0, *locals = 1;
    if (wire_alone()) return;
    wire_barrier_as(w, "the start");
    MPI_Comm_split_type(w, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, local);
    MPI_Comm_size(host, locals);
    MPI_Comm_free(&host);
}

static inline void wire_free(Wire *w) {
    if (*w != MPI_COMM_NULL && !wire_alone()) MPI_Comm_free(w);
    *w = MPI_COMM_NULL;
}

/* A count and datatype for `bytes` bytes; `made` says that the type must be freed. */
typedef struct {
    MPI_Datatype type;
    int count, made;
} WireType;

static inline WireType wire_type(i64 bytes) {
    WireType t = {MPI_BYTE, (int)bytes, 0};
    if (bytes <= INT_MAX) return t;
    const i64 big = (i64)1 << 30;
    MPI_Datatype parts[2];
    int lengths[2] = {(int)(bytes / big), (int)(bytes % big)};
    MPI_Aint at[2] = {0, (MPI_Aint)(bytes / big * big)};
    MPI_Type_contiguous((int)big, MPI_BYTE, &parts[0]);
    parts[1] = MPI_BYTE;
    MPI_Type_create_struct(2, lengths, at, parts, &t.type);
    MPI_Type_commit(&t.type);
    MPI_Type_free(&parts[0]);
    t.count = 1, t.made = 1;
    return t;
}

static inline void wire_type_done(WireType *t) {
    if (t->made) MPI_Type_free(&t->type);
}

/* full (n parts of `bytes`) = every rank's part; `part` may be its own place in `full`. */
static inline void wire_all_gather(Wire w, WireRequest *r, void *full, const void *part, i64 bytes, int rank) {
    WireType t = wire_type(bytes);
    const void *send = part == (const char *)full + rank * bytes ? MPI_IN_PLACE : part;
    MPI_Iallgather(send, t.count, t.type, full, t.count, t.type, w, &r->request[0]);
    wire_type_done(&t);
}

static inline void wire_all_to_all(Wire w, WireRequest *r, void *recv, const void *send, i64 bytes) {
    WireType t = wire_type(bytes);
    MPI_Ialltoall(send, t.count, t.type, recv, t.count, t.type, w, &r->request[0]);
    wire_type_done(&t);
}

/* Point to point: to rank+1, from rank-1. Messages between two ranks keep their order, so one MPI tag is enough. */
static inline void wire_ring(Wire w, WireRequest *r, void *recv, const void *send, i64 bytes, int rank, int size) {
    WireType t = wire_type(bytes);
    MPI_Irecv(recv, t.count, t.type, (rank + size - 1) % size, 0, w, &r->request[0]);
    MPI_Isend(send, t.count, t.type, (rank + 1) % size, 0, w, &r->request[1]);
    wire_type_done(&t);
}

/* all (ranks, bytes) = every rank's `mine`, now; for agreement outside the training step, not part of the ledger. */
static inline void wire_share(Wire w, void *all, const void *mine, size_t bytes) {
    WireRequest r = wire_request_none();
    if (wire_alone()) memcpy(all, mine, bytes);
    else MPI_Iallgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, w, &r.request[0]);
    wire_wait(&r, "an exchange between the steps");
}

/* buf (bytes <= INT_MAX) of rank 0, on every rank; as wire_share, not part of the ledger. */
static inline void wire_tell(Wire w, void *buf, i64 bytes) {
    WireRequest r = wire_request_none();
    if (!wire_alone()) MPI_Ibcast(buf, (int)bytes, MPI_BYTE, 0, w, &r.request[0]);
    wire_wait(&r, "word from rank 0");
}

/* On rank 0: the bitwise or of everybody's buf, which is a collection where every byte has one owner and the others
   hold zero. For files, outside the training step: not part of the ledger. bytes <= INT_MAX. */
static inline void wire_collect(Wire w, void *buf, i64 bytes) {
    int rank = wire_rank(w);
    WireRequest r = wire_request_none();
    if (!wire_alone())
        MPI_Ireduce(rank == 0 ? MPI_IN_PLACE : buf, buf, (int)bytes, MPI_BYTE, MPI_BOR, 0, w, &r.request[0]);
    wire_wait(&r, "the collection of a file");
}

#endif

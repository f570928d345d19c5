/* test_comm.c - collectives, exactly: integer-valued floats whose sums no rounding can touch.

   Run at 1, 2, 3, 4, 8 ranks, in both precisions, with overlap on and off, counts that are odd, one, and
   zero; several transfers in flight on two communicators at once; the ledger after each; and the type that
   carries more than 2^31 bytes. */
#include "../../core/mesh.h"
#include "check.h"

static Device device;
static Ledger ledger;

typedef struct {
    Fabric fabric;
    Comm world, half; /* half: even and odd ranks apart */
    real *a, *b, *c;
    accum *x, *y, *z;
} Bench;

/* Element i of what `rank` holds: small integers, different everywhere. */
static double element(int rank, i64 i) { return (double)((i * 7 + rank * 131) % 251 - 125); }

static void bytes_are(const char *what, CommOp op, i64 expected, int ranks, int overlap) {
    Tag t = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    check(ledger_row(&ledger, op, t)->bytes == expected, "%s on %d ranks%s: %lld bytes counted, %lld sent", what, ranks,
          overlap ? "" : " no overlap", ledger_row(&ledger, op, t)->bytes, expected);
}

static void test_all_gather(Bench *t, const Comm *c, i64 n, int overlap) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    i64 wrong = 0;
    ledger_reset(&ledger);
    for (int in_place = 0; in_place < 2; in_place++) {
        real *part = in_place ? t->b + c->rank * n : t->a;
        memset(t->b, 0xff, sizeof(real) * (size_t)(n * c->size));
        for (i64 i = 0; i < n; i++) part[i] = (real)element(c->rank, i);
        comm_all_gather(&t->fabric, c, g, t->b, part, n, DTYPE_REAL);
        for (int r = 0; r < c->size && c->size > 1; r++)
            for (i64 i = 0; i < n; i++) wrong += t->b[r * n + i] != (real)element(r, i);
    }
    check(wrong == 0, "all_gather of %lld on %d ranks: %lld wrong", n, c->size, wrong);
    bytes_are("all_gather", COMM_ALL_GATHER, 2 * (c->size - 1) * n * (i64)sizeof(real), c->size, overlap);
}

static void test_reduce_scatter(Bench *t, const Comm *c, i64 n, int overlap) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    i64 wrong = 0;
    ledger_reset(&ledger);
    for (int add = 0; add < 2; add++) {
        for (i64 i = 0; i < n * c->size; i++) t->x[i] = (accum)element(c->rank, i);
        for (i64 i = 0; i < n; i++) t->y[i] = 1000;
        comm_wait(&t->fabric, comm_reduce_scatter_start(&t->fabric, c, g, t->y, t->x, t->z, n, DTYPE_ACCUM, add));
        for (i64 i = 0; i < n && c->size > 1; i++) {
            double sum = add ? 1000 : 0;
            for (int r = 0; r < c->size; r++) sum += element(r, c->rank * n + i);
            wrong += (double)t->y[i] != sum;
        }
    }
    check(wrong == 0, "reduce_scatter of %lld on %d ranks: %lld wrong", n, c->size, wrong);
    bytes_are("reduce_scatter", COMM_REDUCE_SCATTER, 2 * (c->size - 1) * n * (i64)sizeof(accum), c->size, overlap);
}

static void test_all_reduce(Bench *t, const Comm *c, i64 n, int overlap) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    i64 wrong = 0;
    ledger_reset(&ledger);
    for (i64 i = 0; i < n * c->size; i++) t->a[i] = (real)element(c->rank, i);
    comm_wait(&t->fabric, comm_all_reduce_start(&t->fabric, c, g, t->a, t->b, n, DTYPE_REAL));
    for (i64 i = 0; i < n * c->size; i++) {
        double sum = 0;
        for (int r = 0; r < c->size; r++) sum += element(r, i);
        wrong += (double)t->a[i] != sum;
    }
    check(wrong == 0, "all_reduce of %lld on %d ranks: %lld wrong", n * c->size, c->size, wrong);
    bytes_are("all_reduce", COMM_ALL_REDUCE, 2 * (c->size - 1) * n * (i64)sizeof(real), c->size, overlap);
}

static void test_all_to_all(Bench *t, const Comm *c, i64 n, int overlap) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    i64 wrong = 0;
    ledger_reset(&ledger);
    for (i64 i = 0; i < n * c->size; i++) t->a[i] = (real)element(c->rank, i);
    comm_wait(&t->fabric, comm_all_to_all_start(&t->fabric, c, g, t->b, t->a, n, DTYPE_REAL));
    for (int r = 0; r < c->size && c->size > 1; r++)
        for (i64 i = 0; i < n; i++) wrong += (double)t->b[r * n + i] != element(r, c->rank * n + i);
    check(wrong == 0, "all_to_all of %lld on %d ranks: %lld wrong", n, c->size, wrong);
    bytes_are("all_to_all", COMM_ALL_TO_ALL, (c->size - 1) * n * (i64)sizeof(real), c->size, overlap);
}

/* A block travels the whole ring; after s hops rank r holds that of rank r-s. */
static void test_ring(Bench *t, const Comm *c, i64 n, int overlap) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    i64 wrong = 0;
    ledger_reset(&ledger);
    for (i64 i = 0; i < n; i++) t->a[i] = (real)element(c->rank, i);
    real *here = t->a, *next = t->b;
    for (int s = 1; s <= c->size && c->size > 1; s++) {
        comm_wait(&t->fabric, comm_ring_start(&t->fabric, c, g, next, here, n, DTYPE_REAL));
        for (i64 i = 0; i < n; i++) wrong += (double)next[i] != element((c->rank - s + c->size) % c->size, i);
        real *swap = here;
        here = next, next = swap;
    }
    check(wrong == 0, "send_recv of %lld around %d ranks: %lld wrong", n, c->size, wrong);
    bytes_are("send_recv", COMM_SEND_RECV, c->size > 1 ? c->size * n * (i64)sizeof(real) : 0, c->size, overlap);
}

static void test_control(Bench *t, const Comm *c, int overlap) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    for (int n = 1; n <= CONTROL_VALUES; n++) {
        double values[CONTROL_VALUES];
        i64 wrong = 0;
        ledger_reset(&ledger);
        for (int i = 0; i < n; i++) values[i] = element(c->rank, i);
        comm_sum_control(&t->fabric, c, g, values, n);
        for (int i = 0; i < n; i++) {
            double sum = 0;
            for (int r = 0; r < c->size; r++) sum += element(r, i);
            wrong += values[i] != sum;
        }
        check(wrong == 0, "control sum of %d on %d ranks: %lld wrong", n, c->size, wrong);
        bytes_are("control sum", COMM_ALL_REDUCE, control_bytes(c, n), c->size, overlap);
    }
}

/* Three transfers in flight on two communicators, waited for in another order than started. */
static void test_in_flight(Bench *t, i64 n) {
    Tag g = tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL);
    const Comm *w = &t->world, *h = &t->half;
    i64 wrong = 0;
    for (i64 i = 0; i < n * w->size; i++) t->x[i] = (accum)element(w->rank, i);
    for (i64 i = 0; i < n; i++) t->a[i] = (real)element(w->rank, i);
    real *around = t->c + n * h->size;
    Request *sum = comm_reduce_scatter_start(&t->fabric, w, g, t->y, t->x, t->z, n, DTYPE_ACCUM, 0);
    Request *gather = comm_all_gather_start(&t->fabric, h, g, t->c, t->a, n, DTYPE_REAL);
    Request *ring = comm_ring_start(&t->fabric, w, g, around, t->a, n, DTYPE_REAL);
    for (int i = 0; i < 100; i++) comm_poll(&t->fabric);
    comm_wait(&t->fabric, ring);
    comm_wait(&t->fabric, gather);
    comm_wait(&t->fabric, sum);
    for (i64 i = 0; i < n && w->size > 1; i++) {
        double s = 0;
        for (int r = 0; r < w->size; r++) s += element(r, w->rank * n + i);
        wrong += (double)t->y[i] != s || (double)around[i] != element((w->rank + w->size - 1) % w->size, i);
    }
    for (int r = 0; r < h->size && h->size > 1; r++)
        for (i64 i = 0; i < n; i++) wrong += (double)t->c[r * n + i] != element(2 * r + w->rank % 2, i);
    int busy = 0;
    for (int i = 0; i < COMM_REQUESTS; i++) busy += t->fabric.pool[i].active;
    check(wrong == 0 && busy == 0, "three in flight on %d ranks: %lld wrong, %d requests left", w->size, wrong, busy);
}

/* A derived type of more than 2^31 bytes covers exactly those bytes. */
static void test_large_type(void) {
    const i64 sizes[] = {2147483647, 2147483648, 5000000001};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        WireType t = wire_type(sizes[i]);
        MPI_Count size;
        MPI_Aint low, extent;
        MPI_Type_size_x(t.type, &size);
        MPI_Type_get_extent(t.type, &low, &extent);
        check((i64)size * t.count == sizes[i] && low == 0 && (i64)extent * t.count == sizes[i],
              "wire type for %lld bytes: size %lld x %d, extent %lld", sizes[i], (i64)size, t.count, (i64)extent);
        wire_type_done(&t);
    }
}

/* --comm-timeout: rank 0 works for longer than that, and answers; nobody may stop. The answer
   has two seconds on its way. */
static void test_slow_rank(Bench *t, Wire everyone, double timeout) {
    wire_watch(everyone, timeout);
    for (double begin = seconds_now(); t->world.rank == 0 && seconds_now() - begin < 1.5 * timeout;)
        comm_poll(&t->fabric);
    wire_barrier(everyone);
    check(1, "a rank that works for %.0f s is waited for with --comm-timeout %.0f", 1.5 * timeout, timeout);
    double values[1] = {1};
    comm_sum_control(&t->fabric, &t->world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), values, 1);
    check(values[0] == t->world.size, "and the watch takes nothing from what else travels");
}

int main(int argc, char **argv) {
    Wire everyone = wire_start_mpi(&argc, &argv);
    int rank = wire_rank(everyone), ranks = wire_size(everyone);
    checks()->silent = rank != 0;
    const i64 counts[] = {0, 1, 3, 64, 1001, 70001}, most = 70001;
    Bench t;
    DevicePlace place = device_place(0, 1, 1);
    device_init(&device, &place, 0);
    for (int overlap = 0; overlap < 2; overlap++) {
        memset(&t, 0, sizeof t);
        fabric_init(&t.fabric, &device, &ledger, ranks, overlap, "mpi");
        t.world = mesh_axis(everyone, 0, 0, rank, ranks, ranks, ranks, ranks);
        t.half = mesh_axis(everyone, 0, rank % 2, rank / 2, (ranks + 1 - rank % 2) / 2, ranks, 1, 2);
        real **reals[] = {&t.a, &t.b, &t.c};
        accum **accums[] = {&t.x, &t.y, &t.z};
        for (int i = 0; i < 3; i++) {
            *reals[i] = (real *)host_alloc(sizeof(real) * (size_t)(most * (ranks + 2)));
            *accums[i] = (accum *)host_alloc(sizeof(accum) * (size_t)(most * (ranks + 2)));
        }
        for (int i = 0; i < COUNT_OF(counts); i++) {
            test_all_gather(&t, &t.world, counts[i], overlap);
            test_reduce_scatter(&t, &t.world, counts[i], overlap);
            test_all_reduce(&t, &t.world, counts[i], overlap);
            test_all_to_all(&t, &t.world, counts[i], overlap);
            test_ring(&t, &t.world, counts[i], overlap);
            test_in_flight(&t, counts[i]);
        }
        test_control(&t, &t.world, overlap);
        if (overlap && ranks == 3) test_slow_rank(&t, everyone, 4);
        for (int i = 0; i < 3; i++) free(*reals[i]), free(*accums[i]);
        wire_free(&t.world.wire);
        wire_free(&t.half.wire);
        fabric_free(&t.fabric);
    }
    test_large_type();
    /* every rank's checks count: a fault on rank 3 must not stay its secret */
    int failed = checks()->failed, all = 0;
    MPI_Allreduce(&failed, &all, 1, MPI_INT, MPI_SUM, everyone);
    check(all == 0, "no check failed on any of %d ranks (%d did)", ranks, all);
    int code = checks_done();
    wire_finish();
    return code;
}

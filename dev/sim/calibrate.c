/* calibrate.c - the figures of a cluster file for this machine, measured: mpirun -np N build/calibrate_fp32 > FILE

   All ranks do the same at the same time, as in training: they share the memory's bandwidth and the links.
   Rates are those of the program's own operations, counted as compute.h counts them; the median of several
   rounds, the mean of the ranks.
   Some ten seconds on two cores. train_gpt_sim --calibrate runs it (dev/sim/calibrate.sh).                           */
#include "../../core/mesh.h"
#include "../../kernels/flags.h"

#define ROUNDS 5

typedef struct {
    Device dev;
    Ledger ledger;
    Fabric fabric;
    Mesh mesh;
    real *pool; /* random numbers that every operation reads and writes */
    i64 size, next;
} Bench;

typedef struct {
    double size, rate; /* of one call; FLOP or bytes a second */
} Point;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

/* The mean over ranks. */
static double mean(Bench *b, double value) {
    comm_sum_control(&b->fabric, &b->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), &value, 1);
    return value / b->mesh.world.size;
}

/* `n` numbers of the pool, beside those taken since the last b->next = 0. */
static real *numbers(Bench *b, i64 n) {
    real *p = b->pool + b->next;
    b->next = round_up(b->next + n, 64);
    if (b->next > b->size) FAIL(THIS_RANK, "calibrate: the pool of %lld numbers is too small", b->size);
    return p;
}

static double flop_counted(const Device *dev) {
    double sum = 0;
    for (int i = 0; i < OP_CLASSES; i++) sum += dev->flop[i];
    return sum;
}

static double bytes_counted(const Device *dev) {
    double sum = 0;
    for (int i = 0; i < OP_CLASSES; i++) sum += dev->bytes[i];
    return sum;
}

static i64 calls_counted(const Device *dev) {
    i64 sum = 0;
    for (int i = 0; i < OP_CLASSES; i++) sum += dev->calls[i];
    return sum;
}

/* What `run` reaches at size n: FLOP/s (of = flop_counted) or bytes/s, and the size of its
   calls. Small work is repeated. */
static Point probe(Bench *b, void (*run)(Bench *, i64), i64 n, double (*of)(const Device *)) {
    double times[ROUNDS];
    int repeat = 1;
    Device before;
    for (int r = -1; r < ROUNDS; r++) {
        wire_barrier(b->mesh.world.wire);
        before = b->dev;
        double begin = seconds_now();
        for (int i = 0; i < repeat; i++) b->next = 0, run(b, n);
        double seconds = seconds_now() - begin;
        if (r >= 0) times[r] = seconds;
        else repeat = (int)mean(b, 1 + 0.02 / fmax(seconds, 1e-7)); /* the same on all ranks */
    }
    Point p;
    p.size = (of(&b->dev) - of(&before)) / (double)(calls_counted(&b->dev) - calls_counted(&before));
    p.rate = mean(b, (of(&b->dev) - of(&before)) / median(times, ROUNDS));
    return p;
}

/* ---- operations, at size n --------------------------------------------------------------------------------------- */

static void run_gemm(Bench *b, i64 n) { /* (2n, n) x (n, n) */
    real *x = numbers(b, 2 * n * n), *w = numbers(b, n * n), *y = numbers(b, 2 * n * n), *dw = numbers(b, n * n);
    linear_forward(&b->dev, y, n, x, w, NULL, 2 * n, n, n);
    linear_backward_input(&b->dev, y, x, n, w, 2 * n, n, n, 0);
    linear_backward_weight(&b->dev, (accum *)dw, x, x, n, 2 * n, n, n);
}

enum { HEADS = 4, HEAD_DIM = 64 };

static void run_attention(Bench *b, i64 T, int backward) {
    AttentionShape s = {1, T, T, HEADS, HEADS, HEAD_DIM};
    TokenMap map = token_map(RING_CONTIGUOUS, T, 1, 0);
    i64 n = T * HEADS * HEAD_DIM;
    real *q = numbers(b, n), *kv = numbers(b, 2 * n), *dout = numbers(b, n);
    accum *out = (accum *)numbers(b, n), *lse = (accum *)numbers(b, T * HEADS), *delta = (accum *)numbers(b, T * HEADS);
    accum *dq = (accum *)numbers(b, n), *dkv = (accum *)numbers(b, 2 * n);
    if (backward) attention_backward(&b->dev, dq, NULL, dkv, NULL, q, kv, dout, lse, delta,
                                     attention_call(s, map, map, 0));
    else attention_forward(&b->dev, out, NULL, lse, q, kv, attention_call(s, map, map, 0));
}
static void run_attention_forward(Bench *b, i64 T) { run_attention(b, T, 0); }
static void run_attention_backward(Bench *b, i64 T) { run_attention(b, T, 1); }

enum { WIDTH = 512, WORDS = 8192 };

static void run_norm(Bench *b, i64 rows) {
    real *x = numbers(b, rows * WIDTH), *y = numbers(b, rows * WIDTH), *out = numbers(b, rows * WIDTH),
         *w = numbers(b, WIDTH);
    accum *mean_ = (accum *)numbers(b, rows), *rstd = (accum *)numbers(b, rows), *dw = (accum *)numbers(b, WIDTH);
    norm_forward(&b->dev, norm_call(NORM_RMS, w, NULL, rows, WIDTH, 1e-5), out, x, mean_, rstd, x, y);
    norm_recompute(&b->dev, norm_call(NORM_RMS, w, NULL, rows, WIDTH, 1e-5), out, mean_, rstd, x);
    norm_backward(&b->dev, norm_call(NORM_RMS, w, NULL, rows, WIDTH, 1e-5), y, dw, NULL, out, mean_, rstd, x, 0, rows);
}

/* a block's: SwiGLU there and back, rotations, sums of two parts, zeros */
static void run_pointwise(Bench *b, i64 rows) {
    real *pre = numbers(b, 2 * rows * WIDTH), *dpre = numbers(b, 2 * rows * WIDTH), *out = numbers(b, rows * WIDTH);
    accum *table = (accum *)numbers(b, rows * HEAD_DIM);
    swiglu_forward(&b->dev, out, pre, rows, WIDTH);
    swiglu_backward(&b->dev, dpre, out, pre, rows, WIDTH);
    queries_pack(&b->dev, out, out, table, rows, 1, WIDTH / HEAD_DIM, HEAD_DIM, 1);
    queries_unpack(&b->dev, out, out, table, rows, 1, WIDTH / HEAD_DIM, HEAD_DIM, 1);
    sum_parts(&b->dev, out, dpre, 2, rows * WIDTH, rows * WIDTH, DTYPE_REAL, 0);
    zero_fill(&b->dev, dpre, 2 * rows * WIDTH * real_size());
}

static void run_embedding(Bench *b, i64 rows) {
    real *table = numbers(b, WORDS * WIDTH), *out = numbers(b, rows * WIDTH);
    accum *dtable = (accum *)numbers(b, WORDS * WIDTH);
    int32_t *tokens = (int32_t *)numbers(b, rows);
    for (i64 i = 0; i < rows; i++) tokens[i] = (int32_t)(i * 2654435761u % WORDS);
    TokenMap map = token_map(RING_CONTIGUOUS, rows, 1, 0);
    embedding_forward(&b->dev, out, tokens, map, table, NULL, 1, WIDTH);
    embedding_backward(&b->dev, dtable, NULL, out, tokens, map, 1, WIDTH, WORDS);
}

static void run_classifier(Bench *b, i64 rows) {
    real *logits = numbers(b, rows * WORDS);
    int32_t *targets = (int32_t *)numbers(b, rows);
    double loss = 0;
    for (i64 i = 0; i < rows; i++) targets[i] = (int32_t)(i * 2654435761u % WORDS);
    classifier(&b->dev, &loss, logits, WORDS, targets, (accum)1, rows, WORDS, 1);
}

static void run_optimizer(Bench *b, i64 n) {
    accum *w = (accum *)numbers(b, n), *m = (accum *)numbers(b, n), *v = (accum *)numbers(b, n),
          *g = (accum *)numbers(b, n);
    AdamW a = {1e-3, 0.9, 0.95, 1e-8, 0.1, 1, 1};
    double sum = 0;
    zero_fill(&b->dev, v, n * accum_size()); /* nothing negative under the root */
    sum_squares(&b->dev, &sum, g, n);
    adamw(&b->dev, (real *)w, w, m, v, g, n, a);
}

static void run_copy(Bench *b, i64 n) {
    real *from = numbers(b, n), *to = numbers(b, n);
    parts_merge(&b->dev, to, from, 1, n / WIDTH, WIDTH);
}

/* ---- links ------------------------------------------------------------------------------------------------------- */

enum { TILE = 256 }; /* rows of a product between two looks at the transfer */

/* Seconds of an all-gather of `n` numbers a rank (0: none) with products of `rows` rows meanwhile (0: none). */
static double gather_seconds(Bench *b, i64 n, i64 rows) {
    double times[2 * ROUNDS];
    const i64 C = 512;
    for (int r = -2; r < 2 * ROUNDS; r++) {
        b->next = 0;
        real *full = numbers(b, n * b->mesh.world.size), *part = numbers(b, n), *x = numbers(b, TILE * C),
             *y = numbers(b, TILE * C), *w = numbers(b, C * C);
        wire_barrier(b->mesh.world.wire);
        double begin = seconds_now();
        Request *flying =
            n ? comm_all_gather_start(&b->fabric, &b->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), full,
                                      part, n, DTYPE_REAL)
              : NULL;
        for (i64 at = 0; at < rows; at += TILE) linear_forward(&b->dev, y, C, x, w, NULL, TILE, C, C);
        comm_wait(&b->fabric, flying);
        if (r >= 0) times[r] = seconds_now() - begin;
    }
    return mean(b, median(times, 2 * ROUNDS));
}

/* alpha from the shortest transfer, beta from a long one, overlap from that under a product of the same length. */
static void print_links(Bench *b, const char *how) {
    double alpha = 0, beta = 1e12, overlap = 1;
    if (b->mesh.world.size > 1) {
        double hops = b->mesh.world.size - 1, part = 2e6;
        alpha = gather_seconds(b, 64, 0) / hops;
        double alone = gather_seconds(b, (i64)part, 0);
        /* on a busy machine alpha may be anything */
        beta = part * (double)sizeof(real) / fmax(alone / hops - alpha, 0.1 * alone / hops);
        double rows_per_s = 4096 / gather_seconds(b, 0, 4096);
        i64 rows = i64_min(1 << 20, round_up((i64)(1.5 * alone * rows_per_s), TILE));
        double computing = gather_seconds(b, 0, rows);
        overlap = fmin(1, fmax(0, 1 - (gather_seconds(b, (i64)part, rows) - computing) / alone));
    }
    if (b->mesh.rank != 0) return;
    printf("inside              alpha=%.3g beta=%.4g overlap=%.2f  # %s\n", alpha, beta, overlap, how);
    printf("between             alpha=%.3g beta=%.4g overlap=%.2f  # the same: one node\n", alpha, beta, overlap);
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*run)(Bench *, i64);
    i64 at[8];   /* sizes, ascending, 0 ends */
    int by_size; /* 1: the curve's argument is the size given, not that of the calls */
    int flop;
} Row;

static const Row ROWS[] = {
    {"gemm", run_gemm, {64, 128, 256, 512, 1024, 2048, 0}, 0, 1},
    {"attention-forward", run_attention_forward, {128, 512, 2048, 4096, 0}, 1, 1},
    {"attention-backward", run_attention_backward, {128, 512, 2048, 4096, 0}, 1, 1},
    {"norm", run_norm, {64, 512, 4096, 16384, 0}, 0, 0},
    {"pointwise", run_pointwise, {64, 512, 4096, 16384, 0}, 0, 0},
    {"embedding", run_embedding, {256, 4096, 16384, 0}, 0, 0},
    {"classifier", run_classifier, {32, 256, 2048, 0}, 0, 0},
    {"optimizer", run_optimizer, {10000, 100000, 1000000, 10000000, 0}, 0, 0},
};

static void print_rows(Bench *b, double peak, double fma, const char *how) {
    Point points[COUNT_OF(ROWS)][8];
    double bandwidth = 0;
    for (i64 n = 1 << 15; n <= 1 << 24; n *= 8) bandwidth = fmax(bandwidth, probe(b, run_copy, n, bytes_counted).rate);
    for (int r = 0; r < COUNT_OF(ROWS); r++)
        for (int i = 0; ROWS[r].at[i]; i++) {
            points[r][i] = probe(b, ROWS[r].run, ROWS[r].at[i], ROWS[r].flop ? flop_counted : bytes_counted);
            if (ROWS[r].by_size) points[r][i].size = (double)ROWS[r].at[i];
            if (ROWS[r].flop) fma = fmax(fma, points[r][i].rate);
            else bandwidth = fmax(bandwidth, points[r][i].rate);
        }
    if (b->mesh.rank != 0) return;
    printf("peak                %s=%.4g  # %s: multiply-adds in registers\n", REAL_NAME, fmax(peak, fma), how);
    printf("bandwidth           %.4g  # %s: the fastest operation on memory, which may be a cache\n", bandwidth, how);
    for (int r = 0; r < COUNT_OF(ROWS); r++) {
        printf("%-19s", ROWS[r].name);
        for (int i = 0; ROWS[r].at[i]; i++)
            printf(" %.3g=%.4f", points[r][i].size, points[r][i].rate / (ROWS[r].flop ? fmax(peak, fma) : bandwidth));
        printf("  # %s\n", how);
    }
}

static void bench_open(Bench *b, Wire world, const DevicePlace *place) {
    MeshShape shape = {wire_size(world), wire_size(world), 1, 1};
    memset(b, 0, sizeof *b);
    device_init(&b->dev, place, 0);
    void *scratch = aligned_alloc(64, CPU_SCRATCH);
    if (!scratch) FAIL(THIS_RANK, "out of memory: %d bytes", (int)CPU_SCRATCH);
    device_scratch(&b->dev, scratch, CPU_SCRATCH);
    fabric_init(&b->fabric, &b->dev, &b->ledger, wire_size(world), 1, COMM_DEFAULT);
    mesh_init(&b->mesh, shape, world, 0, wire_rank(world), 1);
    b->size = (i64)48 << 20;
    b->pool = (real *)host_alloc((size_t)b->size * sizeof(real));
    uint64_t seed = 1;
    for (i64 i = 0; i < b->size; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        b->pool[i] = (real)((double)(seed >> 40) / (double)(1 << 24) - 0.5);
    }
}

int main(int argc, char **argv) {
    Wire world = wire_start(&argc, &argv);
    int local, locals;
    wire_local(world, &local, &locals);
    DevicePlace place = device_place(local, locals, 0);
    device_open(&place);
    Bench *b = (Bench *)host_alloc(sizeof(Bench));
    char how[160], date[32];
    time_t now = time(NULL);
    bench_open(b, world, &place);
    strftime(date, sizeof date, "%Y-%m-%d", localtime(&now));
    snprintf(how, sizeof how, "measured %s, %d ranks of %d threads at once", date, locals, place.threads);
    double peak = mean(b, device_peak(&place)), memory = (double)device_memory_available();
    if (b->mesh.rank == 0) {
        printf("# this-machine - %d cores, %d ranks of %d threads, %s\n\n", place.cores, locals, place.threads,
               REAL_NAME);
        printf("device              cpu  # this program\ndtype               %s  # this program\n", REAL_NAME);
        printf("memory              %.4g  # available when measured, a rank's share\nreserved            0  # the "
               "arena is the process\n",
               memory / locals);
        printf("launch              0  # in the curves: an operation is a call\nranks-per-node      %d  # one host\n",
               locals);
    }
    print_rows(b, peak, 0, how);
    print_links(b, how);
    mesh_free(&b->mesh);
    fabric_free(&b->fabric);
    free(b->pool);
    free(b);
    wire_finish();
    return 0;
}

/* test_kernels.c - every operation of kernels/compute.h against a naive double reference
   (reference.h).

   inputs are random numbers of type real; the reference reads the same numbers as doubles, so only the kernel's own
   rounding differs outputs that must be overwritten start as NaN, outputs that are added to start from random numbers
   buffers are exact mallocs: -fsanitize=address sees a tail that runs over

   Build (fp32; the referee: -DODYSSEUS_FP64):
     gcc -x c -std=c11 -O3 -march=native -fopenmp -fno-math-errno -fno-trapping-math -D_GNU_SOURCE -Wall -Wextra
         -Wc++-compat -Werror dev/test/test_kernels.c -o test_kernels -lm

   Tolerance is a distance max|a-b| / max|b|, written as a multiple of the type's epsilon (1.2e-7, 2.2e-16) that each
   check states. A sum of n terms of either sign walks about sqrt(n) half-ulps away: sums are allowed 2 + sqrt(n) of
   them, and more only where a comment says why. In the referee libm's exp, log and tanh add some: the floor there is
   1e-13, below the 1e-12 asked for.                                                                                  */
#include "../../kernels/compute.h"
#include "check.h"
#include "reference.h"

/* ---- buffers and comparison ------------------------------------------------------------------------------------- */

enum { POOL = 4096 };
static void *pool[POOL];
static int pool_used;

static void *take(i64 bytes) {
    if (pool_used == POOL) FAIL(EVERYONE, "test_kernels: pool of %d buffers is empty", POOL);
    void *p = malloc((size_t)bytes); /* not rounded up: the sanitizer shall see one element too many */
    if (!p) FAIL(EVERYONE, "test_kernels: out of memory");
    return pool[pool_used++] = p;
}

static void release_all(void) {
    while (pool_used > 0) free(pool[--pool_used]);
}

static uint64_t random_state = 88172645463325252ull;

static double uniform(void) { /* in [-1, 1) */
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (double)(random_state >> 11) / 4503599627370496.0 - 1;
}

static real *randoms(i64 n, double size) {
    real *x = (real *)take(n * (i64)sizeof(real));
    for (i64 i = 0; i < n; i++) x[i] = (real)(size * uniform());
    return x;
}

static real *filled(i64 n, double value) {
    real *x = (real *)take(n * (i64)sizeof(real));
    for (i64 i = 0; i < n; i++) x[i] = (real)value;
    return x;
}

static real *unset(i64 n) { return filled(n, NAN); }

static real *copy_of(const real *x, i64 n) {
    real *y = (real *)take(n * (i64)sizeof(real));
    if (n) memcpy(y, x, sizeof(real) * (size_t)n);
    return y;
}

static double *doubles(const real *x, i64 n) { /* the reference's copy; x NULL: zeros */
    double *y = (double *)take(n * 8);
    for (i64 i = 0; i < n; i++) y[i] = x ? (double)x[i] : 0;
    return y;
}

static int same(const real *a, const real *b, i64 n) { return n == 0 || memcmp(a, b, sizeof(real) * (size_t)n) == 0; }

static double epsilon(void) { return sizeof(real) == 4 ? 1.1920929e-7 : 2.220446049250313e-16; }

/* `multiple` epsilons, with the floor of the header for the referee */
static void check_close(const real *got, const double *want, i64 n, double multiple, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static void check_close(const real *got, const double *want, i64 n, double multiple, const char *format, ...) {
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    double bound = multiple * epsilon();
    if (sizeof(real) == 8 && bound < 1e-13) bound = 1e-13;
    double distance = relative_distance(doubles(got, n), want, n);
    check(distance <= bound, "%s: distance %.2g, at most %.2g", name, distance, bound);
}

static Device device_with(int threads) {
    Device dev;
    memset(&dev, 0, sizeof dev);
    dev.threads = threads;
    omp_set_num_threads(threads);
    static char scratch[CPU_SCRATCH] __attribute__((aligned(64)));
    device_scratch(&dev, scratch, sizeof scratch);
    return dev;
}

static TokenMap whole(i64 T) { return token_map(RING_CONTIGUOUS, T, 1, 0); }

/* ---- matrix products -------------------------------------------------------------------------------------------- */

static void test_linear_shape(i64 rows, i64 IC, i64 OC) {
    Device dev = device_with(2);
    real *inp = randoms(rows * IC, 1), *weight = randoms(OC * IC, 1), *bias = randoms(OC, 1),
         *dout = randoms(rows * OC, 1);
    real *out = unset(rows * OC), *plain = unset(rows * OC), *dinp = unset(rows * IC),
         *dinp_add = randoms(rows * IC, 1);
    real *dweight = randoms(OC * IC, 1), *dweight_apart = copy_of(dweight, OC * IC);
    double *want = doubles(NULL, rows * OC), *want_plain = doubles(NULL, rows * OC),
           *want_dinp = doubles(NULL, rows * IC);
    double *want_add = doubles(dinp_add, rows * IC), *want_dweight = doubles(dweight, OC * IC),
           *x = doubles(inp, rows * IC), *w = doubles(weight, OC * IC);
    reference_linear(want, x, w, doubles(bias, OC), rows, IC, OC);
    reference_linear(want_plain, x, w, NULL, rows, IC, OC);
    reference_linear_backward(want_dinp, want_dweight, doubles(dout, rows * OC), x, w, rows, IC, OC);
    for (i64 i = 0; i < rows * IC; i++) want_add[i] += want_dinp[i];
    real *nan = unset(64 * 64); /* a product of NaNs first: what it leaves in scratch must not reach the next one */
    linear_forward(&dev, filled(64 * 64, 0), 64, nan, nan, NULL, 64, 64, 64);
    linear_forward(&dev, out, OC, inp, weight, bias, rows, IC, OC);
    linear_forward(&dev, plain, OC, inp, weight, NULL, rows, IC, OC);
    linear_backward_input(&dev, dinp, dout, OC, weight, rows, IC, OC, 0);
    linear_backward_input(&dev, dinp_add, dout, OC, weight, rows, IC, OC, 1);
    linear_backward_weight(&dev, dweight, inp, dout, OC, rows, IC, OC);
    i64 ld = OC + 5; /* the same with rows apart, and no numbers between them */
    real *apart = filled(rows * ld, NAN), *wide = filled(rows * ld, NAN), *dinp_apart = unset(rows * IC);
    for (i64 r = 0; r < rows; r++) memcpy(wide + r * ld, dout + r * OC, sizeof(real) * (size_t)OC);
    linear_forward(&dev, apart, ld, inp, weight, bias, rows, IC, OC);
    linear_backward_input(&dev, dinp_apart, wide, ld, weight, rows, IC, OC, 0);
    linear_backward_weight(&dev, dweight_apart, inp, wide, ld, rows, IC, OC);
    i64 between = 0;
    for (i64 r = 0; r < rows; r++)
        for (i64 i = OC; i < ld; i++) between += !isnan(apart[r * ld + i]);
    for (i64 r = 0; r < rows; r++) memmove(apart + r * OC, apart + r * ld, sizeof(real) * (size_t)OC);
    char text[96];
    snprintf(text, sizeof text, "rows %lld, IC %lld, OC %lld", rows, IC, OC);
    check_close(out, want, rows * OC, 2 + sqrt((double)IC), "linear_forward with bias, %s", text);
    check_close(plain, want_plain, rows * OC, 2 + sqrt((double)IC), "linear_forward without bias, %s", text);
    check_close(dinp, want_dinp, rows * IC, 2 + sqrt((double)OC), "linear_backward_input, %s", text);
    check_close(dinp_add, want_add, rows * IC, 2 + sqrt((double)OC), "linear_backward_input adding, %s", text);
    check_close(dweight, want_dweight, OC * IC, 2 + sqrt((double)rows), "linear_backward_weight, %s", text);
    check_close(apart, want, rows * OC, 2 + sqrt((double)IC), "linear_forward, rows apart, %s", text);
    check_close(dinp_apart, want_dinp, rows * IC, 2 + sqrt((double)OC), "linear_backward_input, rows apart, %s", text);
    check_close(dweight_apart, want_dweight, OC * IC, 2 + sqrt((double)rows), "linear_backward_weight, rows apart, %s",
                text);
    check(between == 0, "linear_forward writes nothing between rows that lie apart, %s", text);
    release_all();
}

static void test_linear(void) {
    static const i64 shapes[][3] = {{0, 5, 3}, {1, 1, 1}, {1, 7, 3}, {3, 1, 5}, {5, 64, 17}, {37, 65, 129},
                                    {64, 128, 64}, {131, 257, 63}, {700, 33, 130}};
    for (int i = 0; i < COUNT_OF(shapes); i++) test_linear_shape(shapes[i][0], shapes[i][1], shapes[i][2]);
    /* Large enough for many tiles of C and several pieces of K. One or two columns of the result are
       enough to see a misplaced tile. */
    Device dev = device_with(2);
    i64 rows = 2111, IC = 2500, OC = 310;
    real *inp = randoms(rows * IC, 1), *weight = randoms(OC * IC, 1), *out = unset(rows * OC),
         *dweight = randoms(OC * IC, 1);
    double *want = doubles(NULL, rows * 2), *want_dweight = doubles(NULL, OC * 2);
    real *got = unset(rows * 2), *got_dweight = unset(OC * 2);
    linear_forward(&dev, out, OC, inp, weight, NULL, rows, IC, OC);
    for (i64 r = 0; r < rows; r++)
        for (i64 k = 0; k < 2; k++) {
            i64 o = k * (OC - 1);
            for (i64 i = 0; i < IC; i++) want[r * 2 + k] += (double)inp[r * IC + i] * weight[o * IC + i];
            got[r * 2 + k] = out[r * OC + o];
        }
    for (i64 o = 0; o < OC; o++)
        for (i64 k = 0; k < 2; k++) {
            i64 i = k == 0 ? 7 : IC - 2;
            want_dweight[o * 2 + k] = dweight[o * IC + i];
            for (i64 r = 0; r < rows; r++) want_dweight[o * 2 + k] += (double)out[r * OC + o] * inp[r * IC + i];
        }
    linear_backward_weight(&dev, dweight, inp, out, OC, rows, IC, OC);
    for (i64 o = 0; o < OC; o++)
        got_dweight[o * 2] = dweight[o * IC + 7], got_dweight[o * 2 + 1] = dweight[o * IC + IC - 2];
    check_close(got, want, rows * 2, 2 + sqrt((double)IC), "linear_forward in many tiles");
    check_close(got_dweight, want_dweight, OC * 2, 2 + sqrt((double)rows), "linear_backward_weight in many tiles");
    release_all();
}

static void test_bias(void) {
    static const i64 shapes[][2] = {{0, 5}, {1, 1}, {7, 63}, {300, 65}, {129, 200}};
    for (int i = 0; i < COUNT_OF(shapes); i++) {
        Device dev = device_with(2);
        i64 rows = shapes[i][0], C = shapes[i][1];
        real *out = randoms(rows * C, 1), *bias = randoms(C, 1), *dbias = randoms(C, 1);
        double *want = doubles(out, rows * C), *want_dbias = doubles(dbias, C);
        for (i64 r = 0; r < rows; r++)
            for (i64 c = 0; c < C; c++) want_dbias[c] += out[r * C + c], want[r * C + c] += bias[c];
        bias_backward(&dev, dbias, out, rows, C);
        bias_add(&dev, out, bias, rows, C);
        check_close(out, want, rows * C, 2, "bias_add, rows %lld, C %lld", rows, C);
        check_close(dbias, want_dbias, C, 2 + sqrt((double)rows), "bias_backward, rows %lld, C %lld", rows, C);
        release_all();
    }
}

/* ---- embedding -------------------------------------------------------------------------------------------------- */

static void test_embedding_case(RingLayout layout, int ranks, int rank, i64 L, i64 B, i64 C, int positions) {
    Device dev = device_with(2);
    i64 V = 11; /* few words, many rows: every word repeats */
    TokenMap map = token_map(layout, L, ranks, rank);
    i64 rows = map.count * B;
    int32_t *tokens = (int32_t *)take(rows * 4);
    for (i64 r = 0; r < rows; r++) tokens[r] = (int32_t)((uniform() + 1) / 2 * (double)V);
    real *wte = randoms(V * C, 1), *wpe = randoms(L * C, 1), *dwte = randoms(V * C, 1), *dwpe = randoms(L * C, 1);
    real *out = unset(rows * C), *dout = randoms(rows * C, 1);
    double *want = doubles(NULL, rows * C), *want_dwte = doubles(dwte, V * C), *want_dwpe = doubles(dwpe, L * C);
    reference_embedding(want, want_dwte, want_dwpe, doubles(dout, rows * C), tokens, map, doubles(wte, V * C),
                        positions ? doubles(wpe, L * C) : NULL, B, C);
    embedding_forward(&dev, out, tokens, map, wte, positions ? wpe : NULL, B, C);
    embedding_backward(&dev, dwte, positions ? dwpe : NULL, dout, tokens, map, B, C, V);
    const char *name = positions ? "with positions" : "tokens only";
    check_close(out, want, rows * C, 2, "embedding_forward %s, rank %d of %d, C %lld", name, rank, ranks, C);
    check_close(dwte, want_dwte, V * C, 2 + sqrt((double)rows), "embedding_backward dwte %s, rank %d of %d, C %lld",
                name, rank, ranks, C);
    check_close(dwpe, want_dwpe, L * C, 2 + sqrt((double)B), "embedding_backward dwpe %s, rank %d of %d, C %lld", name,
                rank, ranks, C);
    release_all();
}

static void test_embedding(void) {
    test_embedding_case(RING_CONTIGUOUS, 1, 0, 0, 1, 5, 1);
    test_embedding_case(RING_CONTIGUOUS, 1, 0, 33, 3, 65, 1);
    test_embedding_case(RING_ZIGZAG, 3, 1, 48, 2, 130, 1);
    test_embedding_case(RING_STRIPE, 4, 3, 400, 2, 130, 1);
    test_embedding_case(RING_ZIGZAG, 2, 0, 480, 1, 63, 0);
}

/* ---- norms ------------------------------------------------------------------------------------------------------ */

static void test_norm_case(NormKind kind, i64 rows, i64 C, int delta, double offset) {
    Device dev = device_with(2);
    const char *name = kind == NORM_LAYER ? "layer" : "rms";
    i64 w_first = rows / 3, w_rows = rows / 2;
    real *a = randoms(rows * C, 1), *d = randoms(rows * C, 1), *weight = randoms(C, 1),
         *bias = kind == NORM_LAYER ? randoms(C, 1) : NULL;
    for (i64 i = 0; i < rows * C; i++) a[i] += (real)offset;
    real *sum = unset(rows * C), *out = unset(rows * C), *again = unset(rows * C), *mean = unset(rows),
         *rstd = unset(rows);
    real *dout = randoms(rows * C, 1), *dx = randoms(rows * C, 1), *dweight = randoms(C, 1), *dbias = randoms(C, 1);
    double *want = doubles(NULL, rows * C), *want_sum = doubles(a, rows * C), *want_mean = doubles(NULL, rows),
           *want_rstd = doubles(NULL, rows);
    double *want_dx = doubles(dx, rows * C), *want_dw = doubles(dweight, C), *want_db = doubles(dbias, C),
           *w = doubles(weight, C);
    for (i64 i = 0; delta && i < rows * C; i++) want_sum[i] += d[i];
    reference_norm(kind, want, want_mean, want_rstd, want_sum, w, bias ? doubles(bias, C) : NULL, rows, C, 1e-5);
    reference_norm_backward(kind, want_dx, want_dw, want_db, doubles(dout, rows * C), want_mean, want_rstd, want_sum, w,
                            rows, C, w_first, w_rows);
    if (delta) memcpy(sum, a, sizeof(real) * (size_t)(rows * C)); /* in place: sum aliases a */
    norm_forward(&dev, norm_call(kind, weight, bias, rows, C, 1e-5), out, sum, mean, rstd, delta ? sum : a,
                 delta ? d : NULL);
    const real *x = delta ? sum : a;
    norm_recompute(&dev, norm_call(kind, weight, bias, rows, C, 1e-5), again, mean, rstd, x);
    norm_backward(&dev, norm_call(kind, weight, NULL, rows, C, 1e-5), dx, dweight, kind == NORM_LAYER ? dbias : NULL,
                  dout, mean, rstd, x, w_first, w_rows);
    /* With an offset the row's numbers lose |offset| ulps to the subtraction of the mean, whatever the method. */
    double k = (4 + sqrt((double)C)) * (1 + fabs(offset));
    check_close(out, want, rows * C, k, "norm_forward %s, rows %lld, C %lld, delta %d, offset %g", name, rows, C, delta,
                offset);
    check_close(rstd, want_rstd, rows, k, "norm_forward %s rstd, C %lld", name, C);
    if (kind == NORM_LAYER) check_close(mean, want_mean, rows, k, "norm_forward layer mean, C %lld", C);
    if (delta) check_close(sum, want_sum, rows * C, 2, "norm_forward %s sum in place", name);
    if (!delta)
        check(rows == 0 || isnan((double)sum[rows * C - 1]), "norm_forward %s without delta leaves sum alone", name);
    check(same(again, out, rows * C), "norm_recompute %s gives norm_forward's bits, C %lld", name, C);
    check_close(dx, want_dx, rows * C, 2 * k, "norm_backward %s dx, rows %lld, C %lld", name, rows, C);
    check_close(dweight, want_dw, C, k + sqrt((double)rows), "norm_backward %s dweight of rows %lld+%lld", name,
                w_first, w_rows);
    if (kind == NORM_LAYER) check_close(dbias, want_db, C, 2 + sqrt((double)rows), "norm_backward layer dbias");
    release_all();
}

static void test_norms(void) {
    for (int kind = 0; kind < 2; kind++) {
        NormKind k = kind == 0 ? NORM_LAYER : NORM_RMS;
        test_norm_case(k, 0, 8, 1, 0);
        test_norm_case(k, 1, 1 + 1, 1, 0);
        test_norm_case(k, 5, 63, 1, 0);
        test_norm_case(k, 300, 65, 0, 0);
        test_norm_case(k, 260, 130, 1, 0);
        test_norm_case(k, 9, 200, 1, 30);
    }
}

/* ---- rotary embedding and packing ------------------------------------------------------------------------------- */

static void test_rope_table(void) {
    Device dev = device_with(2);
    for (int layout = 0; layout < 3; layout++) {
        TokenMap map = token_map(layout == 0   ? RING_ZIGZAG
                                 : layout == 1 ? RING_CONTIGUOUS
                                               : RING_STRIPE,
                                 131072, 64, 40);
        i64 HS = 10;
        double inv_freq[5];
        for (int i = 0; i < 5; i++) inv_freq[i] = pow(10000, -2.0 * i / 10);
        real *table = unset(map.count * HS);
        double *want = doubles(NULL, map.count * HS);
        reference_rope_table(want, map, inv_freq, 1.25, HS);
        rope_table(&dev, table, map, inv_freq, 1.25, HS);
        check_close(table, want, map.count * HS, 1, "rope_table, layout %d, positions to 131072", layout);
        release_all();
    }
}

static void heads_pack(Device *dev, real *q_out, real *kv_out, const real *q, const real *kv, const real *table,
                       i64 rows, i64 B, i64 heads, i64 kv_heads, i64 HS, i64 parts) {
    queries_pack(dev, q_out, q, table, rows, B, heads, HS, parts);
    kv_pack(dev, kv_out, kv, table, rows, B, kv_heads, HS, parts);
}

static void heads_unpack(Device *dev, real *dq, real *dkv, const real *dq_in, const real *dkv_in, const real *table,
                         i64 rows, i64 B, i64 heads, i64 kv_heads, i64 HS, i64 parts) {
    queries_unpack(dev, dq, dq_in, table, rows, B, heads, HS, parts);
    kv_unpack(dev, dkv, dkv_in, table, rows, B, kv_heads, HS, parts);
}

static void test_pack_case(i64 T, i64 B, i64 heads, i64 kv_heads, i64 HS, i64 parts, int rotate) {
    Device dev = device_with(2);
    i64 rows = T * B, kl = i64_max(1, kv_heads / parts), nq = rows * heads * HS, nkv = rows * 2 * kv_heads * HS,
        nkv_out = parts * rows * 2 * kl * HS;
    real *q = randoms(nq, 1), *kv = randoms(nkv, 1), *q_out = unset(nq), *kv_out = unset(nkv_out),
         *table = randoms(T * (HS / 2) * 2, 1);
    real *dq_in = randoms(nq, 1), *dkv_in = randoms(nkv_out, 1), *dq = unset(nq), *dkv = unset(nkv);
    for (i64 i = 0; i < T * (HS / 2); i++) { /* a true rotation, any angle */
        double angle = 3 * (double)table[2 * i];
        table[2 * i] = (real)cos(angle), table[2 * i + 1] = (real)sin(angle);
    }
    real *turn = rotate ? table : NULL;
    double *want_q = doubles(NULL, nq), *want_kv = doubles(NULL, nkv_out), *dq_want = doubles(NULL, nq),
           *dkv_want = doubles(NULL, nkv);
    reference_heads(want_q, want_kv, dq_want, dkv_want, doubles(q, nq), doubles(kv, nkv), doubles(dq_in, nq),
                    doubles(dkv_in, nkv_out), rotate ? doubles(table, T * (HS / 2) * 2) : NULL, rows, B, heads,
                    kv_heads, HS, parts);
    heads_pack(&dev, q_out, kv_out, q, kv, turn, rows, B, heads, kv_heads, HS, parts);
    heads_unpack(&dev, dq, dkv, dq_in, dkv_in, turn, rows, B, heads, kv_heads, HS, parts);
    char text[128];
    snprintf(text, sizeof text, "T %lld, B %lld, heads %lld/%lld, HS %lld, parts %lld, rotate %d", T, B, heads,
             kv_heads, HS, parts, rotate);
    check_close(q_out, want_q, nq, 4, "queries_pack, %s", text);
    check_close(kv_out, want_kv, nkv_out, 4, "kv_pack, %s", text);
    check_close(dq, dq_want, nq, 4, "queries_unpack, %s", text);
    check_close(dkv, dkv_want, nkv, 8, "kv_unpack, %s", text);
    if (parts == 1) {
        real *q_place = copy_of(q, nq), *kv_place = copy_of(kv, nkv);
        heads_pack(&dev, q_place, kv_place, q_place, kv_place, turn, rows, B, heads, kv_heads, HS, 1);
        check(same(q_place, q_out, nq) && same(kv_place, kv_out, nkv), "packing in place, %s", text);
        heads_unpack(&dev, dq_in, dkv_in, dq_in, dkv_in, turn, rows, B, heads, kv_heads, HS, 1);
        check(same(dq_in, dq, nq) && same(dkv_in, dkv, nkv), "unpacking in place, %s", text);
    }
    release_all();
}

static void test_parts(void) {
    static const i64 shapes[][3] = {{1, 5, 3}, {3, 0, 4}, {2, 7, 5}, {4, 33, 200}};
    for (int i = 0; i < COUNT_OF(shapes); i++) {
        Device dev = device_with(2);
        i64 parts = shapes[i][0], rows = shapes[i][1], width = shapes[i][2], n = parts * rows * width;
        real *in = randoms(n, 1), *merged = unset(n), *back = unset(n);
        int wrong = 0;
        parts_merge(&dev, merged, in, parts, rows, width);
        parts_split(&dev, back, merged, parts, rows, width);
        for (i64 p = 0; p < parts; p++)
            for (i64 r = 0; r < rows; r++)
                for (i64 w = 0; w < width; w++)
                    wrong += !(merged[(r * parts + p) * width + w] == in[(p * rows + r) * width + w]);
        check(wrong == 0, "parts_merge, parts %lld, rows %lld: %d misplaced", parts, rows, wrong);
        check(same(back, in, n), "parts_split undoes parts_merge, parts %lld", parts);
        real *wide = (real *)memcpy(unset(3 * n), randoms(3 * n, 2), sizeof(real) * (size_t)(3 * n)),
             *before = copy_of(wide, 3 * n), *again = unset(n);
        columns_merge(&dev, wide + width, in, parts, rows, width, 3);
        columns_split(&dev, again, wide + width, parts, rows, width, 3);
        for (i64 k = wrong = 0; k < 3 * n; k++)
            wrong += wide[k] != (k / width % 3 == 1 ? merged[k / width / 3 * width + k % width] : before[k]);
        check(wrong == 0 && same(again, in, n), "columns_merge and _split, the second of three, parts %lld: %d wrong",
              parts, wrong);
        release_all();
    }
}

static void test_heads(void) {
    static const i64 shapes[][6] = {{0, 1, 2, 1, 4, 2}, {3, 1, 2, 1, 4, 1}, {2, 2, 4, 4, 6, 2}, {3, 2, 4, 2, 4, 4},
                                    {2, 2, 8, 2, 5, 4}, {5, 3, 4, 1, 2, 4}, {2, 2, 4, 1, 7, 2}, {2, 1, 6, 3, 4, 3},
                                    {70, 3, 8, 2, 80, 4}, {100, 2, 4, 4, 64, 1}};
    for (int i = 0; i < COUNT_OF(shapes); i++)
        for (int rotate = 0; rotate < 2; rotate++)
            test_pack_case(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4], shapes[i][5], rotate);
    test_rope_table();
    test_parts();
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

typedef struct {
    AttentionShape s;
    i64 nq, nkv, nrow; /* elements of q, of kv, and of lse */
} Sizes;

static Sizes sizes_of(i64 B, i64 Tq, i64 Tk, i64 heads, i64 kv_heads, i64 HS) {
    Sizes z = {{B, Tq, Tk, heads, kv_heads, HS}, Tq * B * heads * HS, Tk * B * 2 * kv_heads * HS, Tq * B * heads};
    return z;
}

static double dot(const double *a, const double *b, i64 n) { return reference_dot(a, b, n); }

/* Intervals (L, B) of documents and windows: sequence b has `documents` lengths, the last of which repeats, from the
   b-th on; the window is longer by b. 0: none of them. */
static int32_t *intervals(i64 L, i64 B, const i64 *documents, i64 n, i64 window) {
    int32_t *lo = (int32_t *)take(L * B * 4);
    for (i64 b = 0; b < B; b++)
        for (i64 p = 0, start = 0, i = b; p < L; p++) {
            if (n && p == start + documents[i64_min(i, n - 1)]) start = p, i++;
            i64 near = window ? p - (window + b) + 1 : 0;
            lo[p * B + b] = (int32_t)i64_max(n ? start : 0, near);
        }
    return lo;
}

/* Those of the queries of a map. */
static int32_t *intervals_gather(const int32_t *lo, TokenMap map, i64 B) {
    int32_t *mine = (int32_t *)take(map.count * B * 4);
    for (i64 t = 0; lo && t < map.count; t++) memcpy(mine + t * B, lo + token_position(&map, t) * B, 4 * (size_t)B);
    return lo ? mine : NULL;
}

/* Rows of the whole sequence (L, width) that a map holds, and the way back. */
static real *gather(const real *x, TokenMap map, i64 width) {
    real *y = (real *)take(map.count * width * (i64)sizeof(real));
    for (i64 t = 0; t < map.count; t++)
        memcpy(y + t * width, x + token_position(&map, t) * width, sizeof(real) * (size_t)width);
    return y;
}

static void scatter(real *x, const real *y, TokenMap map, i64 width) {
    for (i64 t = 0; t < map.count; t++)
        memcpy(x + token_position(&map, t) * width, y + t * width, sizeof(real) * (size_t)width);
}

static void scatter_add(real *x, const real *y, TokenMap map, i64 width) {
    for (i64 t = 0; t < map.count; t++)
        for (i64 i = 0; i < width; i++) x[token_position(&map, t) * width + i] += y[t * width + i];
}

static const char *const LAYOUT_NAMES[] = {"zigzag", "contiguous", "stripe"};

/* A ring of R ranks: every query block meets every KV block, its own first as in the ring; the sum of it all must
   be attention over the whole sequence. R = 1 is the plain kernel. Tolerance: a logit is a dot of HS terms of size
   `size`^2, so it is off by eps/2 * size^2/sqrt(HS) * sqrt(HS); its exponential is off by the same, relatively.
   Sums over T keys add sqrt(T). */
static void test_ring_within(const int32_t *lo, const char *what, RingLayout layout, int R, i64 L, i64 B, i64 heads,
                             i64 kv_heads, i64 HS, double size) {
    Device dev = device_with(2);
    i64 l = L / R, wq = B * heads * HS, wkv = B * 2 * kv_heads * HS, wrow = B * heads;
    Sizes all = sizes_of(B, L, L, heads, kv_heads, HS), block = sizes_of(B, l, l, heads, kv_heads, HS);
    real *q = randoms(all.nq, size), *kv = randoms(all.nkv, size), *dout = randoms(all.nq, 1);
    real *out = unset(all.nq), *lse = unset(all.nrow), *dq = unset(all.nq), *dkv = filled(all.nkv, 0);
    double *want_out = doubles(NULL, all.nq), *want_lse = doubles(NULL, all.nrow), *want_dq = doubles(NULL, all.nq);
    double *want_dkv = doubles(NULL, all.nkv);
    AttentionCall global = attention_call_within(all.s, whole(L), whole(L), 0, lo, 0);
    reference_attention(want_out, want_lse, doubles(q, all.nq), doubles(kv, all.nkv), global);
    reference_attention_backward(want_dq, want_dkv, doubles(q, all.nq), doubles(kv, all.nkv), doubles(dout, all.nq),
                                 global);
    for (int r = 0; r < R; r++) {
        TokenMap qm = token_map(layout, L, R, r);
        real *q_r = gather(q, qm, wq), *dout_r = gather(dout, qm, wq), *out_r = unset(block.nq),
             *lse_r = unset(block.nrow);
        real *delta_r = unset(block.nrow), *dq_r = unset(block.nq);
        const int32_t *lo_r = intervals_gather(lo, qm, B);
        for (int step = 0; step < R; step++) {
            TokenMap km = token_map(layout, L, R, (r - step + R) % R);
            attention_forward(&dev, out_r, NULL, lse_r, q_r, gather(kv, km, wkv),
                              attention_call_within(block.s, qm, km, step > 0, lo_r, 0));
        }
        attention_delta(&dev, delta_r, out_r, dout_r, block.nrow, HS);
        for (int step = 0; step < R; step++) {
            TokenMap km = token_map(layout, L, R, (r - step + R) % R);
            real *dkv_s = unset(block.nkv);
            attention_backward(&dev, dq_r, NULL, dkv_s, NULL, q_r, gather(kv, km, wkv), dout_r, lse_r, delta_r,
                               attention_call_within(block.s, qm, km, step > 0, lo_r, 0));
            scatter_add(dkv, dkv_s, km, wkv);
        }
        scatter(out, out_r, qm, wq), scatter(lse, lse_r, qm, wrow), scatter(dq, dq_r, qm, wq);
    }
    char text[160];
    snprintf(text, sizeof text, "%s ring of %d, L %lld, B %lld, heads %lld/%lld, HS %lld, size %g%s",
             LAYOUT_NAMES[layout], R, L, B, heads, kv_heads, HS, size, what);
    double k = 8 + 2 * size * size * 2 + sqrt((double)L);
    check_close(out, want_out, all.nq, k, "attention_forward, %s", text);
    check_close(lse, want_lse, all.nrow, k, "attention lse, %s", text);
    int alone = L == 1 || lo; /* every query sees its own key only */
    for (i64 t = 0; lo && t < L * B; t++) alone &= lo[t] == t / B;
    if (alone)
        check(dot(doubles(dq, all.nq), doubles(dq, all.nq), all.nq) <= epsilon() * epsilon() * (double)all.nq,
              "one key: dq is 0, %s", text);
    else check_close(dq, want_dq, all.nq, 2 * k, "attention_backward dq, %s", text);
    check_close(dkv, want_dkv, all.nkv, 2 * k, "attention_backward dkv, %s", text);
    release_all();
}

static void test_ring(RingLayout layout, int R, i64 L, i64 B, i64 heads, i64 kv_heads, i64 HS, double size) {
    test_ring_within(NULL, "", layout, R, L, B, heads, kv_heads, HS, size);
}

/* One block, alone, against the masked reference: Tq differs from Tk, rows and whole blocks see nothing. */
static void test_block_within(const int32_t *lo, TokenMap qm, TokenMap km, i64 B, i64 heads, i64 kv_heads, i64 HS) {
    Device dev = device_with(2);
    Sizes z = sizes_of(B, qm.count, km.count, heads, kv_heads, HS);
    real *q = randoms(z.nq, 1), *kv = randoms(z.nkv, 1), *out = unset(z.nq), *lse = unset(z.nrow),
         *dq = randoms(z.nq, 1), *dkv = unset(z.nkv);
    double *want_out = doubles(NULL, z.nq), *want_lse = doubles(NULL, z.nrow), *want_dq = doubles(dq, z.nq),
           *want_dkv = doubles(NULL, z.nkv);
    real *dout = randoms(z.nq, 1), *delta = unset(z.nrow);
    AttentionCall call = attention_call_within(z.s, qm, km, 0, lo, 0);
    reference_attention(want_out, want_lse, doubles(q, z.nq), doubles(kv, z.nkv), call);
    reference_attention_backward(want_dq, want_dkv, doubles(q, z.nq), doubles(kv, z.nkv), doubles(dout, z.nq), call);
    attention_forward(&dev, out, NULL, lse, q, kv, call);
    attention_delta(&dev, delta, out, dout, z.nrow, HS);
    call.merge = 1;
    attention_backward(&dev, dq, NULL, dkv, NULL, q, kv, dout, lse, delta, call);
    i64 blind = 0, wrong = 0;
    for (i64 i = 0; i < z.nrow; i++) {
        if (want_lse[i] > -INFINITY) continue;
        blind++;
        wrong += lse[i] != -(real)INFINITY;
        for (i64 d = 0; d < HS; d++) wrong += out[i * HS + d] != 0;
        want_lse[i] = 0, lse[i] = 0; /* seen to; the distance below cannot take -inf */
    }
    char text[128];
    snprintf(text, sizeof text, "%lld queries from %lld, %lld keys from %lld%s", qm.count, qm.run[0].first, km.count,
             km.run[0].first, lo ? ", intervals" : "");
    check(wrong == 0, "attention_forward: %lld rows with nothing to see give 0 and -inf, %lld wrong, %s", blind, wrong,
          text);
    double k = 12 + sqrt((double)km.count);
    check_close(out, want_out, z.nq, k, "attention_forward of a block, %s", text);
    check_close(lse, want_lse, z.nrow, k, "attention lse of a block, %s", text);
    check_close(dq, want_dq, z.nq, 2 * k, "attention_backward dq of a block, %s", text);
    check_close(dkv, want_dkv, z.nkv, 2 * k, "attention_backward dkv of a block, %s", text);
    /* Joining a block that shows nothing to a softmax: it must not move a bit where rows are
       blind, and leave no NaN anywhere. */
    real *out2 = copy_of(out, z.nq), *lse2 = copy_of(lse, z.nrow);
    TokenMap before = whole(qm.count), after = token_map_slice(whole(1 << 20), (1 << 20) - km.count, km.count);
    for (i64 i = 0; i < z.nrow; i += 3) lse2[i] = -(real)INFINITY;
    real *lse3 = copy_of(lse2, z.nrow);
    attention_forward(&dev, out2, NULL, lse2, q, kv, attention_call(z.s, before, after, 1));
    wrong = 0;
    for (i64 i = 0; i < z.nrow; i++)
        for (i64 d = 0; d < HS; d++) wrong += out2[i * HS + d] != (i % 3 == 0 ? 0 : out[i * HS + d]);
    check(same(lse2, lse3, z.nrow) && wrong == 0,
          "attention_forward: merging a block that is all masked changes nothing, %lld wrong", wrong);
    /* and one that the intervals hide, though it lies before all queries */
    int32_t *hide = (int32_t *)take(qm.count * B * 4);
    memcpy(out2, out, sizeof(real) * (size_t)z.nq);
    for (i64 t = 0; t < qm.count * B; t++) hide[t] = (int32_t)((1 << 20) + t / B / 2);
    for (i64 i = 0; i < z.nrow; i += 3) lse2[i] = -(real)INFINITY;
    attention_forward(&dev, out2, NULL, lse2, q, kv,
                      attention_call_within(z.s, token_map_slice(whole(1 << 21), 1 << 20, qm.count), whole(km.count), 1,
                                            hide, 0));
    wrong = 0;
    for (i64 i = 0; i < z.nrow; i++)
        for (i64 d = 0; d < HS; d++) wrong += out2[i * HS + d] != (i % 3 == 0 ? 0 : out[i * HS + d]);
    check(same(lse2, lse3, z.nrow) && wrong == 0,
          "attention_forward: merging a block that the intervals hide changes nothing, %lld wrong", wrong);
    release_all();
}

static void test_block(TokenMap qm, TokenMap km, i64 B, i64 heads, i64 kv_heads, i64 HS) {
    test_block_within(NULL, qm, km, B, heads, kv_heads, HS);
}

/* Logits of +-10^4 that are exact in float: q = 100, k = +-25, HS = 16, so S = +-100 * 25 * 16 / 4.
   The larger side wins entirely. */
static void test_merge_extremes(void) {
    Device dev = device_with(2);
    static const double sides[][2] = {{1, -1}, {-1, 1}, {1, 1}, {-1, -1}};
    for (int c = 0; c < 4; c++) {
        i64 HS = 16, T = 4;
        Sizes z = sizes_of(1, T, T, 1, 1, HS);
        real *q = filled(z.nq, 100), *kv = filled(z.nkv, 0), *out = filled(z.nq, 0.5),
             *lse = filled(z.nrow, 1e4 * sides[c][0]);
        for (i64 j = 0; j < T; j++)
            for (i64 d = 0; d < HS; d++)
                kv[j * 2 * HS + d] = (real)(25 * sides[c][1]), kv[(j * 2 + 1) * HS + d] = (real)0.25;
        /* all T keys visible, weight 4 : 1 */
        attention_forward(&dev, out, NULL, lse, q, kv,
                          attention_call(z.s, token_map_slice(whole(100), 50, T), whole(T), 1));
        double old = sides[c][0] > sides[c][1]   ? 1
                     : sides[c][0] < sides[c][1] ? 0
                                                 : 0.2,
               weight = old == 1   ? 1
                        : old == 0 ? 4
                                   : 5;
        double want = 0.5 * old + 0.25 * (1 - old),
               want_lse = 1e4 * (sides[c][0] > sides[c][1] ? sides[c][0] : sides[c][1]) + log(weight);
        double off = 0, off_lse = 0;
        for (i64 i = 0; i < z.nq; i++) off = fmax(off, isfinite((double)out[i]) ? fabs(out[i] - want) : INFINITY);
        for (i64 i = 0; i < T; i++)
            off_lse = fmax(off_lse, isfinite((double)lse[i]) ? fabs(lse[i] - want_lse) : INFINITY);
        check(off <= 4 * epsilon() && off_lse <= 1e4 * epsilon(),
              "attention merge, lse %+g meets logits %+g: out off by %.2g, lse by %.2g", 1e4 * sides[c][0],
              1e4 * sides[c][1], off, off_lse);
        release_all();
    }
}

static void test_attention(void) {
    /* L, B, heads, kv_heads, HS */
    static const i64 shapes[][5] = {{24, 1, 1, 1, 8}, {48, 3, 4, 2, 16}, {120, 2, 4, 1, 5}, {72, 1, 2, 2, 80}};
    for (int layout = 0; layout < 3; layout++)
        for (int R = 1; R <= 4; R++)
            for (int i = 0; i < COUNT_OF(shapes); i++)
                test_ring((RingLayout)(layout == 0   ? RING_ZIGZAG
                                       : layout == 1 ? RING_CONTIGUOUS
                                                     : RING_STRIPE),
                          R, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4], 1);
    test_ring(RING_CONTIGUOUS, 1, 1, 1, 2, 1, 64, 1);
    test_ring(RING_CONTIGUOUS, 1, 197, 2, 3, 3, 64, 1); /* past a query tile */
    test_ring(RING_CONTIGUOUS, 1, 523, 1, 2, 1, 16, 1); /* past a KV tile, odd */
    test_ring(RING_ZIGZAG, 2, 1100, 1, 2, 1, 16, 1);
    test_ring(RING_STRIPE, 2, 1100, 1, 1, 1, 16, 1);
    test_ring(RING_CONTIGUOUS, 1, 70, 1, 2, 2, 256, 1);
    test_ring(RING_CONTIGUOUS, 1, 900, 1, 1, 1, 64, 1); /* several forward tiles of several S */
    test_ring(RING_STRIPE, 2, 200, 1, 2, 1, 192, 1);    /* heads for which the tiles become smaller */
    test_ring(RING_ZIGZAG, 2, 140, 1, 1, 1, HEAD_DIM_MOST, 1);
    test_ring(RING_CONTIGUOUS, 1, 70, 1, 8, 2, 128, 1);
    test_ring(RING_ZIGZAG, 2, 48, 1, 2, 1, 16, 8); /* logits to +-100: softmax of one or two keys */
    TokenMap w = whole(1000);
    test_block(whole(0), whole(5), 1, 2, 1, 8);
    test_block(whole(5), whole(0), 1, 2, 1, 8);
    test_block(token_map_slice(w, 0, 40), token_map_slice(w, 40, 30), 2, 2, 1, 8);    /* all masked */
    /* the first 77 rows see nothing */
    test_block(token_map_slice(w, 0, 200), token_map_slice(w, 77, 300), 1, 2, 2, 8);
    test_block(token_map_slice(w, 600, 33), token_map_slice(w, 0, 600), 1, 4, 2, 16); /* all visible, Tk > Tq */
    test_block(token_map(RING_STRIPE, 280, 2, 0), token_map(RING_STRIPE, 280, 2, 1), 1, 2, 1, 8);
    /* strides differ */
    test_block(token_map_slice(token_map(RING_ZIGZAG, 600, 2, 0), 100, 150), token_map(RING_STRIPE, 600, 3, 2), 1, 1, 1,
               8);
    test_merge_extremes();
}

/* Documents and windows: boundaries on, just before and just after the ends of tiles of keys (KEYS_MOST, KEYS_UNIT),
   of queries (PAIR_QUERIES) and of panels, documents of one token, windows of 1 and beyond the sequence; as one block,
   and in rings, where blocks may be seen by nobody, by some, by all. */
static void test_attention_intervals(void) {
    static const i64 ones[] = {1, 1, 1, 2, 1, 3, 1}, few[] = {7, 1, 30, 1, 16, 40}, most[] = {1, 500};
    i64 keys = pair_keys(16), queries = PAIR_QUERIES;
    const i64 edges[] = {queries - 1, 1, 1, keys - queries - 2, 1, 1, TILE_COLUMNS, TILE_ROWS, 1, 2 * keys};
    const struct { const i64 *documents; i64 n, window; } masks[] = {
        {NULL, 0, 1}, {NULL, 0, 2}, {NULL, 0, 17}, {NULL, 0, 1000000}, {ones, COUNT_OF(ones), 0},
        {few, COUNT_OF(few), 0}, {few, COUNT_OF(few), 11}, {most, COUNT_OF(most), 0}};
    char what[64];
    for (int i = 0; i < COUNT_OF(masks); i++)
        for (int R = 1; R <= 4; R++)
            for (int layout = 0; layout < (R == 1 ? 1 : RING_LAYOUTS); layout++) {
                i64 L = 120, B = 1 + (R + i) % 2, heads = 2, kv_heads = 1 + i % 2, HS = i % 3 ? 8 : 5;
                snprintf(what, sizeof what, ", mask %d", i);
                int32_t *lo = intervals(L, B, masks[i].documents, masks[i].n, masks[i].window);
                test_ring_within(lo, what, (RingLayout)layout, R, L, B, heads, kv_heads, HS, 1);
            }
    for (int i = -1; i <= 1; i++) { /* past the tiles */
        i64 L = 2 * keys + queries + 8, windows[] = {queries + i, keys + i, TILE_COLUMNS + i, TILE_ROWS + i};
        snprintf(what, sizeof what, ", documents at edges of tiles, window %+d", i);
        for (int w = 0; w < COUNT_OF(windows); w++)
            test_ring_within(intervals(L, 2, edges, w % 2 ? COUNT_OF(edges) : 0, windows[w]), what, RING_CONTIGUOUS, 1,
                             L, 2, 1, 1, 16, 1);
        test_ring_within(intervals(L, 2, edges, COUNT_OF(edges), 0), what, i == 0 ? RING_ZIGZAG : RING_STRIPE, 2, L, 2,
                         1, 1, 16, 1);
    }
    TokenMap w = whole(1000);
    for (i64 off = -1; off <= 1; off++) { /* a block that the later queries see no more, or only some of them */
        TokenMap qm = token_map_slice(w, 300, 150), km = token_map_slice(w, 100, 150);
        int32_t *lo = intervals_gather(intervals(1000, 2, NULL, 0, 100 + queries + off), qm, 2);
        test_block_within(lo, qm, km, 2, 2, 1, 8);
    }
    TokenMap stripe = token_map(RING_STRIPE, 600, 3, 2);
    TokenMap zigzag = token_map_slice(token_map(RING_ZIGZAG, 600, 2, 0), 100, 150);
    int32_t *mixed = intervals_gather(intervals(600, 1, few, COUNT_OF(few), 0), zigzag, 1);
    test_block_within(mixed, zigzag, stripe, 1, 1, 1, 8);
    /* intervals that all begin at 0 are none, to the bit */
    Device dev = device_with(2);
    i64 T = 190; /* one tile: intervals have an order of tiles of their own */
    Sizes z = sizes_of(2, T, T, 2, 1, 16);
    real *q = randoms(z.nq, 1), *kv = randoms(z.nkv, 1), *out = unset(2 * z.nq), *lse = unset(2 * z.nrow);
    real *dq = unset(2 * z.nq), *dkv = unset(2 * z.nkv), *delta = randoms(z.nrow, 1);
    const int32_t *nothing[] = {NULL, intervals(T, 2, NULL, 0, 0)};
    for (int i = 0; i < 2; i++) {
        AttentionCall c = attention_call_within(z.s, whole(T), whole(T), 0, nothing[i], 0);
        attention_forward(&dev, out + i * z.nq, NULL, lse + i * z.nrow, q, kv, c);
        attention_backward(&dev, dq + i * z.nq, NULL, dkv + i * z.nkv, NULL, q, kv, q, lse, delta, c);
    }
    check(same(out, out + z.nq, z.nq) && same(lse, lse + z.nrow, z.nrow) && same(dq, dq + z.nq, z.nq) &&
              same(dkv, dkv + z.nkv, z.nkv),
          "attention with intervals that begin at 0 gives the bits of attention without");
    release_all();
}

/* ---- activations, loss, flat buffers, optimizer ----------------------------------------------------------------- */

static void test_exp(void) {
    double worst = 0;
    for (double x = -85.9; x < 88.7; x += 0.00137) {
        float f = (float)x, e = exp_f32(f);
        double ulp = (double)nextafterf(e, INFINITY) - e;
        worst = fmax(worst, fabs((double)e - exp((double)f)) / ulp);
    }
    check(worst < 1.5, "exp_f32: worst error %.2f ulp, less than 1.5", worst);
    check(exp_f32(0) == 1 && exp_f32(-INFINITY) == 0 && exp_f32(-100) == 0 && exp_f32(INFINITY) == INFINITY &&
              exp_f32(89) == INFINITY,
          "exp_f32: 0, +-inf and beyond the range");
    worst = 0;
    for (double x = -86.9; x < 88.7; x += 0.00137) {
        double e = (double)vector_exp(vector_all((real)x))[VECTOR_WIDTH - 1], want_e = exp((double)(real)x);
        worst = fmax(worst, fabs(e - want_e) / (want_e * epsilon()));
    }
    check(worst < 1.5, "vector_exp: worst relative error %.2f epsilons, less than 1.5", worst);
    static const double ends[][2] = {{0, 1}, {-INFINITY, 0}, {-1e4, 0}, {INFINITY, INFINITY}, {1e4, INFINITY}};
    for (int i = 0; i < COUNT_OF(ends); i++) {
        double e = (double)vector_exp(vector_all((real)ends[i][0]))[0];
        check(e == ends[i][1], "vector_exp of %g is %g, is %g", ends[i][0], ends[i][1], e);
    }
    check(isnan(vector_exp(vector_all((real)NAN))[0]), "vector_exp: NaN stays NaN");
    double off = 0; /* of 1 - s where s is nearly 1: e^-x is off by |x|/2 + 1.5 ulps at most */
    for (double x = -20; x <= 12; x += 0.037) {
        real complement, s = sigmoid_pair((real)x, &complement);
        off = fmax(off,
                   fmax(fabs(s * (1 + exp(-(double)(real)x)) - 1), fabs(complement * (1 + exp((double)(real)x)) - 1)));
    }
    check(off <= 16 * epsilon(), "sigmoid_pair: both halves within %.2g, at most %.2g", off, 16 * epsilon());
    check(isnan(exp_f32(NAN)) && isfinite(exp_f32(88.7f)) && exp_f32(-85.9f) > 0,
          "exp_f32: NaN stays NaN, 88.7 is finite, -85.9 is not 0");
}

static void test_gelu(void) {
    static const i64 lengths[] = {0, 1, 15, 17, 1000, 40001};
    for (int i = 0; i < COUNT_OF(lengths); i++) {
        Device dev = device_with(2);
        i64 n = lengths[i];
        real *pre = randoms(n, 6), *dout = randoms(n, 1), *out = unset(n), *dpre = unset(n);
        if (n > 3) pre[0] = 100, pre[1] = -100, pre[2] = 0, pre[3] = -30;
        else if (n > 0) pre[0] = (real)1.25; /* one far below 0 alone would show how the reference's 1 + tanh cancels */
        double *want = doubles(NULL, n), *want_dpre = doubles(NULL, n);
        for (i64 k = 0; k < n; k++)
            want[k] = reference_gelu(pre[k]), want_dpre[k] = dout[k] * reference_gelu_slope(pre[k]);
        gelu_forward(&dev, out, pre, n);
        gelu_backward(&dev, dpre, dout, pre, n);
        check_close(out, want, n, 4, "gelu_forward, n %lld", n);
        check_close(dpre, want_dpre, n, 16, "gelu_backward, n %lld", n); /* e^-2u: u to 10 is off by 10 half-ulps */
        check(same(dout, out, n), "gelu_backward makes gelu again, n %lld", n);
        release_all();
    }
}

static void test_swiglu(void) {
    static const i64 shapes[][2] = {{0, 4}, {1, 1}, {3, 17}, {200, 130}};
    for (int i = 0; i < COUNT_OF(shapes); i++) {
        Device dev = device_with(2);
        i64 rows = shapes[i][0], I = shapes[i][1], n = rows * I;
        real *pre = randoms(2 * n, 8), *dout = randoms(n, 1), *out = unset(n), *dpre = unset(2 * n);
        if (n > 3) pre[0] = 200, pre[1] = -200;
        double *want = doubles(NULL, n), *want_dpre = doubles(NULL, 2 * n);
        reference_swiglu(want, want_dpre, doubles(dout, n), doubles(pre, 2 * n), rows, I);
        swiglu_forward(&dev, out, pre, rows, I);
        swiglu_backward(&dev, dpre, dout, pre, rows, I);
        check_close(out, want, n, 8, "swiglu_forward, rows %lld, I %lld", rows, I);
        check(same(dout, out, n), "swiglu_backward makes swiglu again, rows %lld, I %lld", rows, I);
        check_close(dpre, want_dpre, 2 * n, 8, "swiglu_backward, rows %lld, I %lld", rows, I);
        release_all();
    }
}

static void test_classifier_case(i64 rows, i64 V, double size, int backward) {
    Device dev = device_with(2);
    accum scale = (accum)0.125;
    i64 ld = V + 3;
    real *logits = randoms(rows * V, size), *kept = copy_of(logits, rows * V), *apart = filled(rows * ld, NAN);
    int32_t *targets = (int32_t *)take(rows * 4);
    for (i64 r = 0; r < rows; r++) targets[r] = r % 5 == 2 ? -100 : (int32_t)((uniform() + 1) / 2 * (double)V);
    for (i64 r = 2; r < rows; r += 5) logits[r * V] = kept[r * V] = (real)NAN; /* an ignored row may hold anything */
    double *want = doubles(NULL, rows * V),
           want_loss = 1.5 + reference_classifier(want, doubles(logits, rows * V), targets, (double)scale, rows, V),
           loss = 1.5;
    for (i64 r = 0; r < rows; r++) memcpy(apart + r * ld, logits + r * V, sizeof(real) * (size_t)V);
    classifier(&dev, &loss, logits, V, targets, scale, rows, V, backward);
    double loss_apart = 1.5;
    i64 wrong = 0;
    classifier(&dev, &loss_apart, apart, ld, targets, scale, rows, V, backward);
    for (i64 r = 0; r < rows; r++) wrong += memcmp(apart + r * ld, logits + r * V, sizeof(real) * (size_t)V) != 0;
    check(wrong == 0 && loss_apart == loss, "classifier of rows that lie apart: %lld of %lld differ", wrong, rows);
    /* rows' losses are doubles; a row's sum of exponentials is off by sqrt(V)/2 + 1 ulp, its difference from
       the maximum by `size` of them */
    double k = 4 + sqrt((double)V), bound = fmax(k * epsilon(), 1e-13) * fmax(1, want_loss);
    check(fabs(loss - want_loss) <= bound,
          "classifier loss %.17g, expected %.17g, within %.2g, rows %lld, V %lld, size %g", loss, want_loss, bound,
          rows, V, size);
    if (backward) {
        check_close(logits, want, rows * V, 2 * (4 + sqrt((double)V)) + size,
                    "classifier gradient, rows %lld, V %lld, size %g", rows, V, size);
    } else check(same(logits, kept, rows * V), "classifier without backward leaves the logits alone");
    release_all();
}

/* A sure prediction in a large vocabulary: 65535 tokens of e^-17 each, less than half a unit in the last place of the
   sum that they are added to, make 0.0027 together. Only those that share the first's span may be lost. */
static void test_classifier_tail(int backward) {
    const i64 V = 65536;
    Device dev = device_with(1);
    real *logits = filled(V, -17);
    int32_t target = 0;
    double loss = 0, want = log1p((double)(V - 1) * exp(-17.0));
    logits[0] = 0;
    classifier(&dev, &loss, logits, V, &target, (accum)1, 1, V, backward);
    check(fabs(loss - want) <= 150 * exp(-17.0), "classifier loss of many small tokens: %.9g, expected %.9g", loss,
          want);
    release_all();
}

static void test_classifier(void) {
    for (int backward = 0; backward < 2; backward++) {
        test_classifier_case(0, 10, 1, backward);
        test_classifier_case(1, 1, 1, backward);
        test_classifier_case(7, 33, 4, backward);
        test_classifier_case(300, 129, 2, backward);
        test_classifier_case(12, 5003, 1e4, backward);
        test_classifier_tail(backward);
    }
}

static void test_flat(void) {
    Device dev = device_with(2);
    static const i64 lengths[] = {0, 1, 1023, 1025, 70001};
    for (int i = 0; i < COUNT_OF(lengths); i++) {
        i64 n = lengths[i], stride = n + 3, wrong = 0;
        real *x = randoms(n, 1), *y = unset(n), *parts = randoms(4 * stride, 1), *sum = unset(n),
             *added = randoms(n, 1);
        double *f64_parts = (double *)take(8 * 4 * stride), *f64_sum = doubles(unset(n), n),
               *f64_added = doubles(added, n);
        double *want = doubles(NULL, n), *want_added = doubles(added, n);
        for (i64 k = 0; k < 4 * stride; k++) f64_parts[k] = parts[k];
        for (i64 k = 0; k < n; k++)
            for (int p = 0; p < 4; p++) want[k] += parts[p * stride + k], want_added[k] += parts[p * stride + k];
        convert(&dev, y, x, n);
        check(same(x, y, n), "convert, n %lld", n);
        sum_parts(&dev, sum, parts, 4, stride, n, DTYPE_REAL, 0);
        sum_parts(&dev, added, parts, 4, stride, n, DTYPE_ACCUM, 1);
        sum_parts(&dev, f64_sum, f64_parts, 4, stride, n, DTYPE_F64, 0);
        sum_parts(&dev, f64_added, f64_parts, 4, stride, n, DTYPE_F64, 1);
        check_close(sum, want, n, 4, "sum_parts of 4, n %lld", n);
        check_close(added, want_added, n, 4, "sum_parts of 4 adding, n %lld", n);
        for (i64 k = 0; k < n; k++) wrong += f64_sum[k] != want[k] || !(fabs(f64_added[k] - want_added[k]) <= 1e-14);
        check(wrong == 0, "sum_parts of doubles in part order, n %lld: %lld wrong", n, wrong);
        double squares = 0.5, want_squares = 0.5;
        for (i64 k = 0; k < n; k++) want_squares += (double)x[k] * x[k];
        sum_squares(&dev, &squares, x, n);
        check(fabs(squares - want_squares) <= 1e-13 * want_squares, "sum_squares %.17g, expected %.17g, n %lld",
              squares, want_squares, n);
        i64 bytes = n * (i64)sizeof(real) - (n > 1), nonzero = 0; /* the last byte stays, so that one too many shows */
        if (n > 1) memset(y, 0x55, (size_t)(bytes + 1));
        zero_fill(&dev, y, bytes);
        for (i64 k = 0; k < bytes; k++) nonzero += ((char *)y)[k] != 0;
        check(nonzero == 0 && (n < 2 || ((char *)y)[bytes] == 0x55), "zero_fill of %lld bytes: %lld left", bytes,
              nonzero);
        release_all();
    }
}

static void test_adamw(void) {
    static const i64 lengths[] = {0, 1, 17, 20003};
    for (int i = 0; i < COUNT_OF(lengths); i++) {
        Device dev = device_with(2);
        i64 n = lengths[i];
        real *w = randoms(n, 1), *m = filled(n, 0), *v = filled(n, 0), *param = unset(n), *w2 = copy_of(w, n),
             *m2 = filled(n, 0), *v2 = filled(n, 0);
        double *want = doubles(w, n), *dm = doubles(NULL, n), *dv = doubles(NULL, n);
        for (i64 step = 1; step <= 3; step++) {
            AdamW a = {1e-2, 0.9, 0.95, 1e-8, 0.1, 0.25, step};
            real *grad = randoms(n, 2);
            if (n > 1) grad[0] = 0; /* m = v = 0: the step must be decay alone */
            reference_adamw(want, dm, dv, doubles(grad, n), n, a);
            adamw(&dev, param, w, m, v, grad, n, a);
            adamw(&dev, w2, w2, m2, v2, grad, n, a);
        }
        check_close(w, want, n, 4, "adamw master after 3 steps, n %lld", n);
        check_close(m, dm, n, 8, "adamw m, n %lld", n);
        check_close(v, dv, n, 8, "adamw v, n %lld", n);
        check(same(param, w, n), "adamw param is the master, n %lld", n);
        check(same(w2, w, n), "adamw with param and master in one buffer, n %lld", n);
        release_all();
    }
}

/* ---- finite differences (the referee only) ---------------------------------------------------------------------- */

/* One problem for every operation: numbers x, and a loss of them made by the forward kernel and a fixed dout. */
typedef struct {
    real *x, *y, *weight, *bias, *dout, *scratch, *lse, *mean, *rstd;
    int32_t *targets;
    i64 rows, C;
    int kind;
    Sizes z;
    TokenMap map;
} Problem;

static double weighted(const real *out, const real *dout, i64 n) {
    double sum = 0;
    for (i64 i = 0; i < n; i++) sum += (double)out[i] * dout[i];
    return sum;
}

static double loss_norm(Problem *p) {
    Device dev = device_with(1);
    norm_forward(&dev,
                 norm_call(p->kind ? NORM_RMS : NORM_LAYER, p->weight, p->kind ? NULL : p->bias, p->rows, p->C, 1e-5),
                 p->scratch, NULL, p->mean, p->rstd, p->x, NULL);
    return weighted(p->scratch, p->dout, p->rows * p->C);
}

static double loss_gelu(Problem *p) {
    Device dev = device_with(1);
    gelu_forward(&dev, p->scratch, p->x, p->rows * p->C);
    return weighted(p->scratch, p->dout, p->rows * p->C);
}

static double loss_swiglu(Problem *p) {
    Device dev = device_with(1);
    swiglu_forward(&dev, p->scratch, p->x, p->rows, p->C);
    return weighted(p->scratch, p->dout, p->rows * p->C);
}

static double loss_classifier(Problem *p) {
    Device dev = device_with(1);
    double loss = 0;
    memcpy(p->scratch, p->x, sizeof(real) * (size_t)(p->rows * p->C));
    classifier(&dev, &loss, p->scratch, p->C, p->targets, (accum)1, p->rows, p->C, 0);
    return loss;
}

static double loss_attention(Problem *p) {
    Device dev = device_with(1);
    attention_forward(&dev, p->scratch, NULL, p->lse, p->x, p->y, attention_call(p->z.s, p->map, p->map, 0));
    return weighted(p->scratch, p->dout, p->z.nq);
}

static double loss_rope(Problem *p) { /* q in x, kv in y, table in weight; packed for two parts */
    Device dev = device_with(1);
    heads_pack(&dev, p->scratch, p->lse, p->x, p->y, p->weight, p->z.s.Tq * p->z.s.B, p->z.s.B, p->z.s.heads,
               p->z.s.kv_heads, p->z.s.head_dim, 2);
    return weighted(p->scratch, p->dout, p->z.nq) + weighted(p->lse, p->mean, p->z.nkv);
}

/* Central differences: h = 1e-5 errs by h^2 f''' ~ 1e-10 and by eps |f| / h ~ 1e-10: 1e-7 of the largest
   gradient is far above both. */
static void check_gradient(const char *name, Problem *p, real *x, i64 n, const real *gradient,
                           double (*loss)(Problem *)) {
    double off = 0, largest = 0;
    for (i64 i = 0; i < n; i++) {
        real kept = x[i], h = (real)1e-5;
        x[i] = kept + h;
        double up = loss(p);
        x[i] = kept - h;
        double down = loss(p);
        x[i] = kept;
        off = fmax(off, fabs((up - down) / (2 * (double)h) - gradient[i]));
        largest = fmax(largest, fabs((double)gradient[i]));
    }
    check(off <= 1e-7 * largest && largest > 0, "finite differences, %s: off by %.2g, gradients to %.2g", name, off,
          largest);
}

static Problem problem(i64 rows, i64 C, int kind) {
    Problem p;
    memset(&p, 0, sizeof p);
    p.rows = rows, p.C = C, p.kind = kind;
    p.x = randoms(2 * rows * C, 2), p.weight = randoms(C, 1), p.bias = randoms(C, 1), p.dout = randoms(rows * C, 1),
    p.scratch = unset(rows * C);
    p.mean = unset(rows), p.rstd = unset(rows);
    p.targets = (int32_t *)take(rows * 4);
    for (i64 r = 0; r < rows; r++) p.targets[r] = r == 1 ? -1 : (int32_t)(r % C);
    return p;
}

static void test_gradients_rows(void) {
    Device dev = device_with(1);
    i64 rows = 4, C = 9, n = rows * C;
    for (int kind = 0; kind < 2; kind++) {
        Problem p = problem(rows, C, kind);
        real *dx = filled(n, 0), *dweight = filled(C, 0), *dbias = filled(C, 0);
        loss_norm(&p);
        norm_backward(&dev, norm_call(kind ? NORM_RMS : NORM_LAYER, p.weight, NULL, rows, C, 1e-5), dx, dweight,
                      kind ? NULL : dbias, p.dout, p.mean, p.rstd, p.x, 0, rows);
        check_gradient(kind ? "rms norm dx" : "layer norm dx", &p, p.x, n, dx, loss_norm);
        check_gradient(kind ? "rms norm dweight" : "layer norm dweight", &p, p.weight, C, dweight, loss_norm);
        if (!kind) check_gradient("layer norm dbias", &p, p.bias, C, dbias, loss_norm);
    }
    Problem p = problem(rows, C, 0);
    real *dx = unset(2 * n);
    gelu_backward(&dev, dx, copy_of(p.dout, n), p.x, n);
    check_gradient("gelu", &p, p.x, n, dx, loss_gelu);
    swiglu_backward(&dev, dx, copy_of(p.dout, n), p.x, rows, C);
    check_gradient("swiglu", &p, p.x, 2 * n, dx, loss_swiglu);
    double loss = 0;
    real *logits = copy_of(p.x, n);
    classifier(&dev, &loss, logits, C, p.targets, (accum)1, rows, C, 1);
    check_gradient("classifier", &p, p.x, n, logits, loss_classifier);
    release_all();
}

static void test_gradients_attention(void) {
    Device dev = device_with(1);
    Problem p = problem(1, 1, 0);
    p.z = sizes_of(2, 7, 7, 4, 2, 6), p.map = whole(7);
    p.x = randoms(p.z.nq, 1), p.y = randoms(p.z.nkv, 1), p.dout = randoms(p.z.nq, 1), p.scratch = unset(p.z.nq),
    p.lse = unset(p.z.nrow);
    real *delta = unset(p.z.nrow), *dq = unset(p.z.nq), *dkv = unset(p.z.nkv);
    loss_attention(&p);
    attention_delta(&dev, delta, p.scratch, p.dout, p.z.nrow, 6);
    attention_backward(&dev, dq, NULL, dkv, NULL, p.x, p.y, p.dout, p.lse, delta,
                       attention_call(p.z.s, p.map, p.map, 0));
    check_gradient("attention dq", &p, p.x, p.z.nq, dq, loss_attention);
    check_gradient("attention dkv", &p, p.y, p.z.nkv, dkv, loss_attention);
    double inv_freq[3] = {1, 0.3, 0.1};
    p.weight = unset(7 * 6), p.lse = unset(p.z.nkv), p.mean = randoms(p.z.nkv, 1);
    rope_table(&dev, p.weight, p.map, inv_freq, 1, 6);
    heads_unpack(&dev, dq, dkv, p.dout, p.mean, p.weight, 14, 2, 4, 2, 6, 2);
    check_gradient("rope and packing dq", &p, p.x, p.z.nq, dq, loss_rope);
    check_gradient("rope and packing dkv", &p, p.y, p.z.nkv, dkv, loss_rope);
    release_all();
}

/* ---- the same bits, planning, polling ---------------------------------------------------------------------------- */

/* Every operation but the matrix products once, at sizes that threads share; all results end in one array. */
static real *one_of_each(int threads, i64 *n_out) {
    Device dev = device_with(threads);
    random_state = 4101842887655102017ull;
    i64 rows = 300, C = 200, n = rows * C, T = 150, V = 50;
    Sizes z = sizes_of(2, T, T, 4, 2, 16);
    TokenMap map = whole(T);
    real *x = randoms(n, 1), *y = randoms(n, 1), *weight = randoms(C, 1), *bias = randoms(C, 1);
    int32_t *tokens = (int32_t *)take(rows * 4);
    for (i64 r = 0; r < rows; r++) tokens[r] = (int32_t)(r * 7 % V);
    i64 total = 8 * n + 2 * V * C + 6 * C + 2 * rows + 4 * z.nq + 2 * z.nkv + 2 * z.nrow + 2 * T * 16 + 8;
    real *all = filled(total, 0), *at = all;
    norm_forward(&dev, norm_call(NORM_LAYER, weight, bias, rows, C, 1e-5), at, at + n, at + 2 * n, at + 2 * n + rows,
                 x, y);
    norm_backward(&dev, norm_call(NORM_LAYER, weight, NULL, rows, C, 1e-5), at + 3 * n, at + 4 * n, at + 4 * n + C, y,
                  at + 2 * n, at + 2 * n + rows, at + n, 0, rows);
    at += 4 * n + 2 * C; /* mean and rstd lie in the third n, most of which stays 0 */
    bias_backward(&dev, at, x, rows, C), at += C;
    embedding_backward(&dev, at, at + V * C, x, tokens, whole(V), rows / V, C, V), at += 2 * V * C;
    gelu_forward(&dev, at, x, n), at += n;
    gelu_backward(&dev, at, copy_of(x, n), y, n), at += n;
    swiglu_backward(&dev, at, copy_of(y, n / 2), x, rows / 2, C), at += n;
    memcpy(at, x, sizeof(real) * (size_t)n);
    double sums[2] = {0, 0};
    classifier(&dev, &sums[0], at, C, tokens, (accum)0.5, rows, C, 1), at += n;
    sum_squares(&dev, &sums[1], x, n);
    memcpy(at, sums, sizeof sums), at += 4; /* two doubles take four floats */
    real *q = randoms(z.nq, 1), *kv = randoms(z.nkv, 1), *dout = randoms(z.nq, 1);
    real *out = at, *dq = out + z.nq, *dkv = dq + z.nq, *lse = dkv + z.nkv, *delta = lse + z.nrow,
         *table = delta + z.nrow;
    attention_forward(&dev, out, NULL, lse, q, kv, attention_call(z.s, map, map, 0));
    attention_delta(&dev, delta, out, dout, z.nrow, 16);
    attention_backward(&dev, dq, NULL, dkv, NULL, q, kv, dout, lse, delta, attention_call(z.s, map, map, 0));
    double inv_freq[8] = {1, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001};
    rope_table(&dev, table, map, inv_freq, 1, 16);
    heads_unpack(&dev, table + T * 16, kv, q, kv, table, T * 2, 2, 4, 2, 16, 1);
    *n_out = total;
    return all;
}

static void test_same_bits(void) {
    i64 n;
    real *two = one_of_each(2, &n), *again = one_of_each(2, &n), *one = one_of_each(1, &n), *three = one_of_each(3, &n);
    check(same(two, again, n), "every operation twice: the same bits");
    check(same(two, one, n), "1 and 2 threads: the same bits");
    check(same(two, three, n), "3 and 2 threads: the same bits");
    release_all();
    i64 rows = 2100, IC = 300, OC = 530; /* rows: more than one piece of K in dweight */
    real *x = randoms(rows * IC, 1), *w = randoms(OC * IC, 1), *dout = randoms(rows * OC, 1), *results[3];
    i64 total = rows * OC + rows * IC + OC * IC;
    for (int i = 0; i < 3; i++) {
        Device dev = device_with(i == 2 ? 1 : 2);
        real *out = results[i] = filled(total, 0), *dinp = out + rows * OC, *dweight = dinp + rows * IC;
        linear_forward(&dev, out, OC, x, w, NULL, rows, IC, OC);
        linear_backward_input(&dev, dinp, dout, OC, w, rows, IC, OC, 0);
        linear_backward_weight(&dev, dweight, x, dout, OC, rows, IC, OC);
    }
    check(same(results[0], results[1], total), "matrix products twice: the same bits");
    check(same(results[0], results[2], total), "matrix products on 1 and 2 threads: the same bits");
    release_all();
}

static i64 polls, polls_elsewhere;
static void count_poll(void *arg) {
    polls++;
    if (omp_get_thread_num() != 0 || arg != (void *)&polls) polls_elsewhere++;
}

/* How often each long operation polls, besides once at its start. */
static void poll_each(int threads, i64 counts[4]) {
    Device dev = device_with(threads);
    dev.poll = count_poll, dev.poll_arg = (void *)&polls;
    i64 T = 1024, V = 1000, rows = 1200, IC = 1000, OC = 1000;
    Sizes z = sizes_of(1, T, T, 2, 1, 16);
    real *q = randoms(z.nq, 1), *kv = randoms(z.nkv, 1), *out = unset(z.nq), *lse = unset(z.nrow), *dq = unset(z.nq),
         *dkv = unset(z.nkv);
    real *logits = randoms(600 * V, 1);
    int32_t *targets = (int32_t *)take(600 * 4);
    memset(targets, 0, 600 * 4);
    double loss = 0;
    polls = 0;
    attention_forward(&dev, out, NULL, lse, q, kv, attention_call(z.s, whole(T), whole(T), 0));
    counts[0] = polls - 1;
    attention_backward(&dev, dq, NULL, dkv, NULL, q, kv, q, lse, lse, attention_call(z.s, whole(T), whole(T), 0));
    counts[1] = polls - counts[0] - 2;
    classifier(&dev, &loss, logits, V, targets, (accum)1, 600, V, 1);
    counts[2] = polls - counts[0] - counts[1] - 3;
    linear_forward(&dev, unset(rows * OC), OC, filled(rows * IC, 0), filled(OC * IC, 0), NULL, rows, IC, OC);
    counts[3] = polls - counts[0] - counts[1] - counts[2] - 4;
    release_all();
}

static void test_poll_and_plan(void) {
    i64 counts[4];
    poll_each(2, counts); /* how many fall to the calling thread is chance */
    check(polls_elsewhere == 0, "polls come from the calling thread only");
    poll_each(1, counts);
    check(counts[0] >= 6 && counts[1] >= 6 && counts[2] >= 2 && counts[3] >= 6,
          "communication is polled within attention (%lld, %lld times), classifier (%lld) and product (%lld)",
          counts[0],
          counts[1], counts[2], counts[3]);
    i64 T = 1024;
    Sizes z = sizes_of(1, T, T, 2, 1, 16);
    Device plan = device_with(2);
    plan.plan = 1;
    AdamW a = {0, 0, 0, 0, 0, 0, 1};
    linear_forward(&plan, NULL, 30, NULL, NULL, NULL, 10, 20, 30);
    attention_forward(&plan, NULL, NULL, NULL, NULL, NULL, attention_call(z.s, whole(T), whole(T), 0));
    adamw(&plan, NULL, NULL, NULL, NULL, NULL, 100, a);
    check(plan.flop[OP_GEMM] == 12000 && plan.flop[OP_ATTENTION] == 4.0 * 2 * 16 * (1024.0 * 1025 / 2) &&
              plan.calls[OP_OPTIMIZER] == 1,
          "a planned walk counts and touches nothing");
}

int main(void) {
    test_exp();
    test_linear();
    test_bias();
    test_embedding();
    test_norms();
    test_heads();
    test_attention();
    test_attention_intervals();
    test_gelu();
    test_swiglu();
    test_classifier();
    test_flat();
    test_adamw();
    if (sizeof(real) == 8) { /* float has no digits left for differences */
        test_gradients_rows();
        test_gradients_attention();
    }
    test_same_bits();
    test_poll_and_plan();
    return checks_done();
}

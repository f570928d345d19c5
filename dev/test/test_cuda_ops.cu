/* test_cuda_ops.cu - the memory-bound CUDA operations against a naive double reference, on a GPU or in the emulator.

   inputs     random numbers, rounded to bf16 (or fp32) before the reference reads them
   schedules  each case runs under three orders of a block's threads: all must give the same bits, the first is compared
   scratch    exactly the bytes that the operation's own *_scratch_bytes says, poisoned

   Bounds, for the distance ||a-b||/||b|| and for the largest element: a bf16 result has one rounding, at most
   2^-8 = 3.9e-3 of each element, and about 1.7e-3 in the norm where that has many terms: from a thousand
   elements on 2^-9 is asked for.
   What is computed in fp32 from exact inputs is off by a few 6e-8 per operation and grows with the
   square root of a sum's length.

   Build: g++ -x c++ -std=c++20 -O1 -g -fopenmp -D_GNU_SOURCE -DODYSSEUS_CUDA -Wall -Wextra -Werror -Wno-unused-function
              -fsanitize=address,undefined dev/test/test_cuda_ops.cu                             (the emulator)
          nvcc -std=c++20 -arch=sm_90 -DODYSSEUS_CUDA -D_GNU_SOURCE dev/test/test_cuda_ops.cu      (a GPU)            */
#include "cuda_support.h"
#include "reference.h"

#define BF16_MOST (1.01 * BF16_ROUND) /* and a little for what comes before the rounding */
#define BF16_NORM_OF(n) ((n) < 1000 ? BF16_MOST : BF16_ROUND / 2)
static double fp32_bound(double terms) { return 1e-6 + 6e-8 * sqrt(terms); }

/* What one call leaves, under each schedule. `run` fills buffers of its own; their bytes are compared. */
enum { RESULTS = 4 };
typedef struct {
    void *p[RESULTS];
    i64 bytes[RESULTS];
} Results;

static void result(Results *r, int i, void *p, i64 bytes) { r->p[i] = p, r->bytes[i] = bytes; }

/* run(dev) under the three schedules; the first's results, after checking that the others' are the same bits. */
template <class Run> static Results under_schedules(i64 scratch, const char *name, Run run) {
    Results first;
    memset(&first, 0, sizeof first);
    int same = 1;
    for (int i = 0; i < 3; i++) {
        set_schedule(SCHEDULES[i]);
        Device dev = test_device(scratch);
        Results r;
        memset(&r, 0, sizeof r);
        run(&dev, &r);
        CUDA_CHECK(cudaDeviceSynchronize());
        if (i == 0) first = r;
        for (int k = 0; k < RESULTS; k++) same = same && same_bits(first.p[k], r.p[k], first.bytes[k]);
    }
    set_schedule(0);
    check(same, "%s: the same bits under three schedules", name);
    return first;
}

/* A buffer whose first element is not aligned to 16 bytes: the scalar paths. */
static real *off_by_one(double *x, i64 n) {
    double *shifted = zeros(n + 1);
    for (i64 i = 0; i < n; i++) shifted[i + 1] = x[i];
    real *p = upload_real(shifted, n + 1);
    for (i64 i = 0; i < n; i++) x[i] = shifted[i + 1];
    return p + 1;
}
static real *upload_at(double *x, i64 n, int off) { return off ? off_by_one(x, n) : upload_real(x, n); }
static real *unset_at(i64 n, int off) { return unset_real(n + (off ? 1 : 0)) + (off ? 1 : 0); }

#define NAME(...) \
    char name[160]; \
    snprintf(name, sizeof name, __VA_ARGS__)
#define LL(x) (x)

/* ---- pointwise --------------------------------------------------------------------------------------------------- */

static void test_gelu(i64 n, int off) {
    double *x = randoms(n, 4), *d = randoms(n, 1), *want = zeros(n), *want_d = zeros(n);
    if (n > 4) x[0] = 100, x[1] = -100, x[2] = 0, x[3] = 1e-30;
    real *pre = upload_at(x, n, off);
    upload_at(d, n, off); /* rounds it */
    for (i64 i = 0; i < n; i++) want[i] = reference_gelu(x[i]), want_d[i] = d[i] * reference_gelu_slope(x[i]);
    NAME("gelu, n %lld%s", LL(n), off ? ", unaligned" : "");
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        real *out = unset_at(n, off), *dpre = unset_at(n, off), *act = upload_at(d, n, off);
        gelu_forward(dev, out, pre, n);
        gelu_backward(dev, dpre, act, pre, n);
        result(r, 0, out, 2 * n), result(r, 1, dpre, 2 * n), result(r, 2, act, 2 * n);
    });
    check_close(download_real((real *)r.p[0], n), want, n, BF16_NORM_OF(n), BF16_MOST, "gelu_forward of %s", name);
    check_close(download_real((real *)r.p[1], n), want_d, n, BF16_NORM_OF(n), BF16_MOST, "gelu_backward of %s", name);
    check(same_bits(r.p[0], r.p[2], 2 * n), "gelu_backward makes gelu again, %s", name);
    release_all();
}

static void test_swiglu(i64 rows, i64 I) {
    i64 n = rows * I;
    double *x = randoms(2 * n, 4), *d = randoms(n, 1), *want = zeros(n), *want_d = zeros(2 * n);
    real *pre = upload_real(x, 2 * n);
    upload_real(d, n); /* rounds it */
    reference_swiglu(want, want_d, d, x, rows, I);
    NAME("swiglu, rows %lld, I %lld", LL(rows), LL(I));
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        real *out = unset_real(n), *dpre = unset_real(2 * n), *act = upload_real(d, n);
        swiglu_forward(dev, out, pre, rows, I);
        swiglu_backward(dev, dpre, act, pre, rows, I);
        result(r, 0, out, 2 * n), result(r, 1, dpre, 4 * n), result(r, 2, act, 2 * n);
    });
    check_close(download_real((real *)r.p[0], n), want, n, BF16_NORM_OF(n), BF16_MOST, "swiglu_forward of %s", name);
    check_close(download_real((real *)r.p[1], 2 * n), want_d, 2 * n, BF16_NORM_OF(2 * n), BF16_MOST,
                "swiglu_backward of %s", name);
    check(same_bits(r.p[0], r.p[2], 2 * n), "swiglu_backward makes swiglu again, %s", name);
    release_all();
}

static void test_bias(i64 rows, i64 C) {
    i64 n = rows * C;
    double *x = randoms(n, 1), *b = randoms(C, 1), *db = randoms(C, 1), *want = zeros(n);
    real *dout = upload_real(x, n), *bias = upload_real(b, C);
    upload_accum(db, C);
    double *want_db = copy_of(db, C);
    for (i64 r = 0; r < rows; r++)
        for (i64 c = 0; c < C; c++) want[r * C + c] = x[r * C + c] + b[c], want_db[c] += x[r * C + c];
    NAME("bias, rows %lld, C %lld", LL(rows), LL(C));
    Results r = under_schedules(columns_scratch_bytes(rows, C), name, [&](Device *dev, Results *r) {
        real *out = upload_real(x, n);
        accum *dbias = upload_accum(db, C);
        bias_add(dev, out, bias, rows, C);
        bias_backward(dev, dbias, dout, rows, C);
        result(r, 0, out, 2 * n), result(r, 1, dbias, 4 * C);
    });
    check_close(download_real((real *)r.p[0], n), want, n, BF16_NORM_OF(n), BF16_MOST, "bias_add of %s", name);
    check_close(download_accum((accum *)r.p[1], C), want_db, C, fp32_bound((double)rows), fp32_bound((double)rows),
                "bias_backward of %s", name);
    release_all();
}

static void test_flat(i64 n, i64 parts, i64 stride, Dtype type, int add) {
    double *x = randoms(parts * stride, 1), *old = randoms(n, 1);
    i64 size = dtype_size(type);
    void *from = type == DTYPE_REAL    ? (void *)upload_real(x, parts * stride)
                 : type == DTYPE_ACCUM ? (void *)upload_accum(x, parts * stride)
                                       : (void *)upload_f64(x, parts * stride);
    if (type == DTYPE_REAL) upload_real(old, n);
    else if (type == DTYPE_ACCUM) upload_accum(old, n);
    double *want = zeros(n);
    for (i64 i = 0; i < n; i++) {
        for (i64 p = 0; p < parts; p++) want[i] += x[p * stride + i];
        if (add) want[i] += old[i];
    }
    NAME("sum_parts, n %lld, %lld parts of %lld, type %d, add %d", LL(n), LL(parts), LL(stride), (int)type, add);
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        void *dst = type == DTYPE_REAL    ? (void *)upload_real(old, n)
                    : type == DTYPE_ACCUM ? (void *)upload_accum(old, n)
                                          : (void *)upload_f64(old, n);
        if (!add) dst = device_take(n * size);
        sum_parts(dev, dst, from, parts, stride, n, type, add);
        result(r, 0, dst, n * size);
    });
    double *got = type == DTYPE_REAL    ? download_real((real *)r.p[0], n)
                  : type == DTYPE_ACCUM ? download_accum((accum *)r.p[0], n)
                                        : download_f64((double *)r.p[0], n);
    double bound = type == DTYPE_REAL ? BF16_NORM_OF(n) : type == DTYPE_ACCUM ? fp32_bound((double)parts) : 1e-15;
    check_close(got, want, n, bound, type == DTYPE_REAL ? BF16_MOST : 2 * bound, "%s", name);
    release_all();
}

static void test_add_parts(i64 n, i64 parts, i64 stride) {
    double *x = randoms(parts * stride, 1), *old = randoms(n, 1);
    real *from = upload_real(x, parts * stride);
    upload_accum(old, n);
    double *want = copy_of(old, n);
    for (i64 i = 0; i < n; i++)
        for (i64 p = 0; p < parts; p++) want[i] += x[p * stride + i];
    NAME("add_parts, n %lld, %lld parts of %lld", LL(n), LL(parts), LL(stride));
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        accum *dst = upload_accum(old, n);
        add_parts(dev, dst, from, parts, stride, n);
        result(r, 0, dst, 4 * n);
    });
    check_close(download_accum((accum *)r.p[0], n), want, n, fp32_bound((double)parts), 2 * fp32_bound((double)parts),
                "%s", name);
    release_all();
}

static void test_convert(i64 n) {
    double *x = randoms(n, 1);
    accum *src = upload_accum(x, n);
    NAME("convert, n %lld", LL(n));
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        real *dst = unset_real(n);
        char *cleared = (char *)device_take(n);
        convert(dev, dst, src, n);
        zero_fill(dev, cleared, n);
        result(r, 0, dst, 2 * n), result(r, 1, cleared, n);
    });
    double *got = download_real((real *)r.p[0], n);
    const char *cleared = (const char *)download_bytes(r.p[1], n);
    i64 wrong = 0, dirty = 0;
    for (i64 i = 0; i < n; i++) wrong += got[i] != real_value(real_from(x[i])), dirty += cleared[i] != 0;
    check(wrong == 0 && dirty == 0, "%s: %lld not rounded to the nearest; zero_fill left %lld bytes", name, LL(wrong),
          LL(dirty));
    release_all();
}

/* ---- embedding --------------------------------------------------------------------------------------------------- */

/* skew: that share of the rows is one token, so that a large bucket appears */
static void test_embedding(RingLayout layout, int ranks, int rank, i64 L, i64 B, i64 C, i64 V, int positions,
                           double skew) {
    TokenMap map = token_map(layout, L, ranks, rank);
    i64 rows = map.count * B, n = rows * C;
    int32_t *t = (int32_t *)host_take(rows * 4);
    for (i64 r = 0; r < rows; r++)
        t[r] = (uniform() + 1) / 2 < skew ? (int32_t)(V - 1) : (int32_t)((uniform() + 1) / 2 * (double)V);
    double *we = randoms(V * C, 1), *wp = randoms(L * C, 1), *d = randoms(n, 1), *dwe = randoms(V * C, 1),
           *dwp = randoms(L * C, 1), *want = zeros(n);
    real *wte = upload_real(we, V * C), *wpe = upload_real(wp, L * C), *dout = upload_real(d, n);
    int32_t *tokens = upload_int(t, rows);
    upload_accum(dwe, V * C), upload_accum(dwp, L * C);
    double *want_we = copy_of(dwe, V * C), *want_wp = copy_of(dwp, L * C);
    reference_embedding(want, want_we, want_wp, d, t, map, we, positions ? wp : NULL, B, C);
    NAME("embedding, layout %d, rank %d of %d, L %lld, B %lld, C %lld, V %lld%s", (int)layout, rank, ranks, LL(L),
         LL(B), LL(C), LL(V), positions ? "" : ", no positions");
    Results r = under_schedules(embedding_scratch_bytes(rows, V), name, [&](Device *dev, Results *r) {
        real *out = unset_real(n);
        accum *dwte = upload_accum(dwe, V * C), *dwpe = upload_accum(dwp, L * C);
        embedding_forward(dev, out, tokens, map, wte, positions ? wpe : NULL, B, C);
        embedding_backward(dev, dwte, positions ? dwpe : NULL, dout, tokens, map, B, C, V);
        result(r, 0, out, 2 * n), result(r, 1, dwte, 4 * V * C), result(r, 2, dwpe, 4 * L * C);
    });
    check_close(download_real((real *)r.p[0], n), want, n, BF16_NORM_OF(n), BF16_MOST, "embedding_forward of %s", name);
    check_close(download_accum((accum *)r.p[1], V * C), want_we, V * C, fp32_bound((double)rows),
                fp32_bound((double)rows), "dwte of %s", name);
    check_close(download_accum((accum *)r.p[2], L * C), want_wp, L * C, fp32_bound((double)B), fp32_bound((double)B),
                "dwpe of %s", name);
    release_all();
}

/* ---- norms ------------------------------------------------------------------------------------------------------- */

static void test_norm(NormKind kind, i64 rows, i64 C, int delta, int off) {
    int layer = kind == NORM_LAYER;
    i64 n = rows * C, w_first = rows / 3, w_rows = (rows + 1) / 2;
    double *a = randoms(n, 1), *d = randoms(n, 0.5), *w = randoms(C, 1), *b = randoms(C, 1), *g = randoms(n, 1),
           *old = randoms(n, 1);
    for (i64 c = 0; c < C; c++) w[c] += 1.5;
    for (i64 i = 0; i < n; i++) a[i] += 0.25;
    double *dw = randoms(C, 1), *db = randoms(C, 1);
    real *weight = upload_real(w, C), *bias = upload_real(b, C), *din = upload_real(d, n), *dout = upload_real(g, n),
         *ain = upload_at(a, n, off);
    upload_accum(dw, C), upload_accum(db, C), upload_real(old, n);
    double *x = zeros(n), *want = zeros(n), *want_m = zeros(rows), *want_s = zeros(rows), *want_dx = copy_of(old, n),
           *want_dw = copy_of(dw, C), *want_db = copy_of(db, C);
    for (i64 i = 0; i < n; i++) x[i] = delta ? real_value(real_from((double)((float)a[i] + (float)d[i]))) : a[i];
    reference_norm(kind, want, want_m, want_s, x, w, layer ? b : NULL, rows, C, 1e-5);
    reference_norm_backward(kind, want_dx, want_dw, want_db, g, want_m, want_s, x, w, rows, C, w_first, w_rows);
    NAME("%s norm, rows %lld, C %lld%s%s", layer ? "layer" : "rms", LL(rows), LL(C), delta ? ", delta" : "",
         off ? ", unaligned" : "");
    int again_same = 1;
    Results r = under_schedules(norm_scratch_bytes(rows, C), name, [&](Device *dev, Results *r) {
        real *sum = delta ? upload_at(a, n, off) : unset_real(n), *out = unset_real(n), *again = unset_real(n);
        accum *mean = unset_accum(rows), *rstd = unset_accum(rows);
        norm_forward(dev, norm_call(kind, weight, layer ? bias : NULL, rows, C, 1e-5), out, sum, mean, rstd,
                     delta ? sum : ain, delta ? din : NULL);
        norm_recompute(dev, norm_call(kind, weight, layer ? bias : NULL, rows, C, 1e-5), again, mean, rstd,
                       delta ? sum : ain);
        again_same = again_same && same_bits(out, again, 2 * n);
        result(r, 0, out, 2 * n), result(r, 1, sum, 2 * n), result(r, 2, mean, 4 * rows), result(r, 3, rstd, 4 * rows);
    });
    real *kept = delta ? (real *)r.p[1] : ain;
    Results rb = under_schedules(norm_scratch_bytes(rows, C), name, [&](Device *dev, Results *q) {
        real *dx = upload_real(old, n);
        accum *dweight = upload_accum(dw, C), *dbias = upload_accum(db, C);
        norm_backward(dev, norm_call(kind, weight, NULL, rows, C, 1e-5), dx, dweight, layer ? dbias : NULL, dout,
                      (accum *)r.p[2], (accum *)r.p[3], kept, w_first, w_rows);
        result(q, 0, dx, 2 * n), result(q, 1, dweight, 4 * C), result(q, 2, dbias, 4 * C);
    });
    check(again_same, "norm_recompute gives norm_forward's bits, %s", name);
    check_close(download_real((real *)r.p[0], n), want, n, BF16_NORM_OF(n), BF16_MOST, "norm_forward of %s", name);
    if (delta) check_close(download_real((real *)r.p[1], n), x, n, 0, 0, "sum in place of %s", name);
    if (layer) check_close(download_accum((accum *)r.p[2], rows), want_m, rows, 2e-6, 2e-6, "mean of %s", name);
    check_close(download_accum((accum *)r.p[3], rows), want_s, rows, 2e-6, 2e-6, "rstd of %s", name);
    check_close(download_real((real *)rb.p[0], n), want_dx, n, BF16_NORM_OF(n), BF16_MOST, "norm_backward dx of %s",
                name);
    check_close(download_accum((accum *)rb.p[1], C), want_dw, C, fp32_bound((double)rows), 2 * fp32_bound((double)rows),
                "dweight of %s", name);
    if (layer)
        check_close(download_accum((accum *)rb.p[2], C), want_db, C, fp32_bound((double)rows), fp32_bound((double)rows),
                    "dbias of %s", name);
    release_all();
}

/* ---- heads ------------------------------------------------------------------------------------------------------- */

static void test_rope_table(RingLayout layout, int ranks, int rank, i64 L, i64 HS) {
    TokenMap map = token_map(layout, L, ranks, rank);
    i64 half = HS / 2, n = map.count * half * 2;
    double inv_freq[128], *want = zeros(n);
    for (i64 i = 0; i < half; i++) inv_freq[i] = pow(10000, -2.0 * (double)i / (double)HS);
    reference_rope_table(want, map, inv_freq, 1.25, HS);
    NAME("rope_table, layout %d, rank %d of %d, L %lld, HS %lld", (int)layout, rank, ranks, LL(L), LL(HS));
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        accum *table = unset_accum(n);
        rope_table(dev, table, map, inv_freq, 1.25, HS);
        result(r, 0, table, 4 * n);
    });
    check_close(download_accum((accum *)r.p[0], n), want, n, 6e-8, 6e-8, "%s: rounded from double", name);
    release_all();
}

static void test_pack(i64 T, i64 B, i64 heads, i64 KH, i64 HS, i64 parts, int rotate) {
    i64 rows = T * B, kl = i64_max(1, KH / parts), nq = rows * heads * HS, nkv = rows * 2 * KH * HS,
        npacked = parts * rows * 2 * kl * HS, nt = T * (HS / 2) * 2;
    double *q = randoms(nq, 1), *kv = randoms(nkv, 1), *dq_in = randoms(nq, 1), *dkv_in = randoms(npacked, 1),
           *turns = zeros(nt);
    for (i64 i = 0; i < nt / 2; i++) {
        double angle = 3 * uniform();
        turns[2 * i] = cos(angle), turns[2 * i + 1] = sin(angle);
    }
    real *qd = upload_real(q, nq), *kvd = upload_real(kv, nkv), *dqd = upload_real(dq_in, nq),
         *dkvd = upload_real(dkv_in, npacked);
    accum *all = upload_accum(turns, nt), *table = rotate ? all : NULL;
    double *want_q = zeros(nq), *want_kv = zeros(npacked), *want_dq = zeros(nq), *want_dkv = zeros(nkv);
    reference_heads(want_q, want_kv, want_dq, want_dkv, q, kv, dq_in, dkv_in, rotate ? turns : NULL, rows, B, heads, KH,
                    HS, parts);
    NAME("T %lld, B %lld, heads %lld/%lld, HS %lld, parts %lld%s", LL(T), LL(B), LL(heads), LL(KH), LL(HS), LL(parts),
         rotate ? ", rotated" : "");
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        real *q_out = unset_real(nq), *kv_out = unset_real(npacked), *dq = unset_real(nq), *dkv = unset_real(nkv);
        queries_pack(dev, q_out, qd, table, rows, B, heads, HS, parts);
        kv_pack(dev, kv_out, kvd, table, rows, B, KH, HS, parts);
        queries_unpack(dev, dq, dqd, table, rows, B, heads, HS, parts);
        kv_unpack(dev, dkv, dkvd, table, rows, B, KH, HS, parts);
        result(r, 0, q_out, 2 * nq), result(r, 1, kv_out, 2 * npacked), result(r, 2, dq, 2 * nq),
            result(r, 3, dkv, 2 * nkv);
    });
    check_close(download_real((real *)r.p[0], nq), want_q, nq, BF16_NORM_OF(nq), BF16_MOST, "queries_pack, %s", name);
    check_close(download_real((real *)r.p[1], npacked), want_kv, npacked, BF16_NORM_OF(npacked), BF16_MOST,
                "kv_pack, %s", name);
    check_close(download_real((real *)r.p[2], nq), want_dq, nq, BF16_NORM_OF(nq), BF16_MOST, "queries_unpack, %s",
                name);
    check_close(download_real((real *)r.p[3], nkv), want_dkv, nkv, BF16_NORM_OF(nkv), BF16_MOST, "kv_unpack, %s", name);
    if (parts == 1) {
        NAME("in place, rows %lld, heads %lld/%lld, HS %lld", LL(rows), LL(heads), LL(KH), LL(HS));
        Results s = under_schedules(0, name, [&](Device *dev, Results *s) {
            real *a = upload_real(q, nq), *b = upload_real(kv, nkv), *c = upload_real(dq_in, nq),
                 *d = upload_real(dkv_in, npacked);
            queries_pack(dev, a, a, table, rows, B, heads, HS, 1);
            kv_pack(dev, b, b, table, rows, B, KH, HS, 1);
            queries_unpack(dev, c, c, table, rows, B, heads, HS, 1);
            kv_unpack(dev, d, d, table, rows, B, KH, HS, 1);
            result(s, 0, a, 2 * nq), result(s, 1, b, 2 * npacked), result(s, 2, c, 2 * nq), result(s, 3, d, 2 * nkv);
        });
        int same = 1;
        for (int k = 0; k < 4; k++) same = same && same_bits(s.p[k], r.p[k], r.bytes[k]);
        check(same, "packing and unpacking %s", name);
    }
    release_all();
}

static void test_parts(i64 parts, i64 rows, i64 width) {
    i64 n = parts * rows * width, wrong = 0;
    double *x = randoms(n, 1);
    real *in = upload_real(x, n);
    NAME("parts %lld, rows %lld, width %lld", LL(parts), LL(rows), LL(width));
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        real *merged = unset_real(n), *back = unset_real(n);
        parts_merge(dev, merged, in, parts, rows, width);
        parts_split(dev, back, merged, parts, rows, width);
        real *wide = unset_real(3 * n), *again = unset_real(n);
        columns_merge(dev, wide + width, in, parts, rows, width, 3);
        columns_split(dev, again, wide + width, parts, rows, width, 3);
        result(r, 0, merged, 2 * n), result(r, 1, back, 2 * n), result(r, 2, wide, 6 * n), result(r, 3, again, 2 * n);
    });
    double *merged = download_real((real *)r.p[0], n), *wide = download_real((real *)r.p[2], 3 * n);
    i64 missed = 0;
    for (i64 k = 0; k < 3 * n; k++)
        missed += k / width % 3 == 1 && !(wide[k] == merged[k / width / 3 * width + k % width]);
    check(missed == 0 && same_bits(r.p[3], in, 2 * n), "columns_merge and _split, %s: %lld misplaced", name,
          LL(missed));
    for (i64 p = 0; p < parts; p++)
        for (i64 q = 0; q < rows; q++)
            for (i64 w = 0; w < width; w++)
                wrong += !(merged[(q * parts + p) * width + w] == x[(p * rows + q) * width + w]);
    check(wrong == 0, "parts_merge, %s: %lld misplaced", name, LL(wrong));
    check(same_bits(r.p[1], in, 2 * n), "parts_split undoes parts_merge, %s", name);
    release_all();
}

/* ---- loss, optimizer --------------------------------------------------------------------------------------------- */

static void test_classifier(i64 rows, i64 V, double size) {
    i64 n = rows * V;
    double *x = randoms(n, size), *want = zeros(n), loss = 0.5;
    int32_t *t = (int32_t *)host_take(rows * 4);
    for (i64 r = 0; r < rows; r++) t[r] = r % 4 == 3 ? -1 : (int32_t)((uniform() + 1) / 2 * (double)V);
    if (rows > 1) t[0] = (int32_t)(V - 1), t[1] = 0;
    upload_real(x, n);
    int32_t *targets = upload_int(t, rows);
    loss += reference_classifier(want, x, t, 0.125, rows, V);
    NAME("classifier, rows %lld, V %lld, logits to %g", LL(rows), LL(V), size);
    Results r = under_schedules(classifier_scratch_bytes(rows), name, [&](Device *dev, Results *r) {
        double start[3] = {0.5, 0.5, 0.5};
        real *logits = upload_real(x, n), *kept = upload_real(x, n);
        double *sums = upload_f64(start, 3);
        i64 ld = round_up(V, 64);
        real *apart = unset_real(rows * ld), *again = unset_real(n);
        for (i64 row = 0; row < rows; row++)
            CUDA_CHECK(cudaMemcpy(apart + row * ld, logits + row * V, (size_t)V * 2, cudaMemcpyDeviceToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());
        classifier(dev, sums, logits, V, targets, (accum)0.125, rows, V, 1);
        classifier(dev, sums + 1, kept, V, targets, (accum)0.125, rows, V, 0);
        classifier(dev, sums + 2, apart, ld, targets, (accum)0.125, rows, V, 1);
        CUDA_CHECK(cudaDeviceSynchronize());
        for (i64 row = 0; row < rows; row++)
            CUDA_CHECK(cudaMemcpy(again + row * V, apart + row * ld, (size_t)V * 2, cudaMemcpyDeviceToDevice));
        result(r, 0, logits, 2 * n), result(r, 1, sums, 24), result(r, 2, kept, 2 * n), result(r, 3, again, 2 * n);
    });
    double *sums = download_f64((double *)r.p[1], 3), *all = copy_of(want, n), *got = download_real((real *)r.p[0], n);
    /* sums in another order */
    check_close(download_real((real *)r.p[3], n), got, n, BF16_ROUND, BF16_ROUND, "dlogits of rows apart of %s", name);
    check(fabs(sums[2] - sums[0]) <= 1e-6 * fabs(sums[0]), "loss of rows apart of %s: %.9g", name, sums[2]);
    check_close(got, all, n, BF16_MOST, BF16_MOST, "dlogits of %s", name);
    /* the onehot hides the rest: once more without it. A few logits carry the norm */
    for (i64 row = 0; row < rows; row++)
        if (t[row] >= 0) got[row * V + t[row]] = all[row * V + t[row]] = 0;
    check_close(got, all, n, BF16_MOST, BF16_MOST, "dlogits without the targets of %s", name);
    check(fabs(sums[0] - loss) <= 1e-6 * fabs(loss) && sums[0] == sums[1], "loss of %s: %.9g, of %.9g", name, sums[0],
          loss);
    check_close(download_real((real *)r.p[2], n), x, n, 0, 0, "logits without backward of %s", name);
    release_all();
}

static void test_squares(i64 n, int off) {
    double *g = randoms(n + 1, 1), want = 0.25;
    accum *x = upload_accum(g, n + 1), *at = x + off;
    for (i64 i = 0; i < n; i++) want += g[i + off] * g[i + off];
    NAME("sum_squares, n %lld%s", LL(n), off ? ", unaligned" : "");
    Results r = under_schedules(optimizer_scratch_bytes(), name, [&](Device *dev, Results *r) {
        double start = 0.25, *out = upload_f64(&start, 1), *other = upload_f64(&start, 1);
        accum *aligned = upload_accum(g + off, n); /* the order of the sum does not depend on where g begins */
        sum_squares(dev, out, at, n);
        sum_squares(dev, other, aligned, n);
        result(r, 0, out, 8), result(r, 1, other, 8);
    });
    double got = *download_f64((double *)r.p[0], 1);
    check(fabs(got - want) <= 1e-12 * want && same_bits(r.p[0], r.p[1], 8), "%s: %.15g of %.15g", name, got, want);
    release_all();
}

static void test_adamw(i64 n, i64 step) {
    AdamW a = {1e-3, 0.9, 0.95, 1e-8, 0.1, 0.5, step};
    double *w = randoms(n, 1), *m = randoms(n, 0.1), *v = randoms(n, 0.1), *g = randoms(n, 1), *want_w, *want_m,
           *want_v;
    for (i64 i = 0; i < n; i++) v[i] = fabs(v[i]);
    accum *grad = upload_accum(g, n);
    upload_accum(w, n), upload_accum(m, n), upload_accum(v, n);
    want_w = copy_of(w, n), want_m = copy_of(m, n), want_v = copy_of(v, n);
    reference_adamw(want_w, want_m, want_v, g, n, a);
    NAME("adamw, n %lld, step %lld", LL(n), LL(step));
    Results r = under_schedules(0, name, [&](Device *dev, Results *r) {
        real *param = unset_real(n);
        accum *master = upload_accum(w, n), *md = upload_accum(m, n), *vd = upload_accum(v, n);
        adamw(dev, param, master, md, vd, grad, n, a);
        result(r, 0, param, 2 * n), result(r, 1, master, 4 * n), result(r, 2, md, 4 * n), result(r, 3, vd, 4 * n);
    });
    double *master = download_accum((accum *)r.p[1], n), *param = download_real((real *)r.p[0], n);
    i64 wrong = 0;
    for (i64 i = 0; i < n; i++) wrong += param[i] != real_value(real_from(master[i]));
    check(wrong == 0, "%s: param is master rounded, %lld are not", name, LL(wrong));
    check_close(master, want_w, n, 3e-7, 3e-7, "master of %s", name);
    check_close(download_accum((accum *)r.p[2], n), want_m, n, 3e-7, 3e-7, "m of %s", name);
    check_close(download_accum((accum *)r.p[3], n), want_v, n, 3e-7, 3e-7, "v of %s", name);
    release_all();
}

int main(void) {
    need_device();
    static const i64 sizes[] = {0, 1, 7, 8, 2049, 5000};
    for (int i = 0; i < COUNT_OF(sizes); i++) {
        test_gelu(sizes[i], i == 4);
        test_convert(sizes[i]);
        test_add_parts(sizes[i], 1 + i % 4, round_up(sizes[i], i % 2 ? 8 : 1));
        test_adamw(sizes[i], i + 1);
    }
    static const i64 shapes[][2] = {{0, 8}, {1, 1}, {5, 7}, {3, 264}, {67, 65}};
    for (int i = 0; i < COUNT_OF(shapes); i++) test_swiglu(shapes[i][0], shapes[i][1]);
    static const i64 bias_shapes[][2] = {{0, 8}, {1, 1}, {70, 7}, {131, 264}, {300, 520}, {1, 257}};
    for (int i = 0; i < COUNT_OF(bias_shapes); i++) test_bias(bias_shapes[i][0], bias_shapes[i][1]);
    for (int type = 0; type < DTYPES; type++) {
        test_flat(1000, 3, 1000, (Dtype)type, 0);
        test_flat(999, 5, 1008, (Dtype)type, 1);
        test_flat(13, 2, 15, (Dtype)type, 1);
        test_flat(0, 2, 16, (Dtype)type, 0);
    }
    test_embedding(RING_CONTIGUOUS, 1, 0, 4, 1, 7, 5, 1, 0);
    test_embedding(RING_CONTIGUOUS, 2, 1, 64, 3, 65, 11, 1, 0);
    test_embedding(RING_ZIGZAG, 3, 1, 48, 2, 264, 9000, 1, 0.1);
    test_embedding(RING_STRIPE, 4, 3, 400, 2, 40, 50257, 0, 0.5);
    test_embedding(RING_ZIGZAG, 2, 0, 240, 1, 7, 3, 1, 0.5);
    for (int kind = 0; kind < 2; kind++) {
        NormKind k = kind ? NORM_RMS : NORM_LAYER;
        test_norm(k, 0, 8, 1, 0);
        test_norm(k, 5, 7, 1, 0);
        test_norm(k, 70, 65, 0, 0);
        test_norm(k, 70, 64, 1, 0);
        test_norm(k, 9, 264, 1, 0);
        test_norm(k, 9, 264, 1, 1);
        test_norm(k, 19, 768, 1, 0);
        test_norm(k, 5, 1032, 0, 0);
        test_norm(k, 3, 4096, 1, 0);
        test_norm(k, 3, 8192, 1, 0);
        test_norm(k, 2, 8200, 1, 0);
    }
    for (int layout = 0; layout < 3; layout++) {
        test_rope_table((RingLayout)layout, 4, 1, 64, 10);
        test_rope_table((RingLayout)layout, 1024, 1000, 131072, 128);
    }
    test_pack(0, 1, 2, 1, 16, 2, 1);
    test_pack(3, 1, 2, 1, 4, 1, 1);
    test_pack(2, 2, 8, 2, 5, 4, 1);
    test_pack(3, 2, 4, 2, 16, 1, 1);
    test_pack(3, 2, 4, 2, 64, 2, 1);
    test_pack(5, 3, 6, 6, 32, 3, 1);
    test_pack(5, 3, 8, 3, 32, 4, 1);
    test_pack(3, 1, 8, 1, 128, 8, 1);
    test_pack(3, 2, 12, 12, 64, 2, 0);
    test_pack(3, 2, 7, 7, 128, 1, 1);
    test_parts(1, 5, 3), test_parts(3, 0, 4), test_parts(2, 7, 5), test_parts(4, 33, 200);
    test_classifier(0, 10, 1);
    test_classifier(3, 1, 1);
    test_classifier(9, 7, 3);
    test_classifier(9, 1000, 3);
    test_classifier(5, 1003, 40);
    test_classifier(4, 50257, 5);
    test_squares(0, 0), test_squares(1, 0), test_squares(4099, 0), test_squares(5001, 1);
    return checks_done();
}

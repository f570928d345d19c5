/* test_cuda_attention.cu - flash attention of the CUDA backend against a plain softmax in
   double, on a GPU or in the emulator.

   The reference reads what the kernel reads (inputs rounded to bf16, lse and delta rounded to fp32), so the distance is
   the kernel's own rounding. P is rounded to bf16 before P V and P^T dout, dS before dS K and dS^T Q: each element is
   off by at most 2^-9 of itself, at random, 2^-9/sqrt(3) = 1.1e-3 in the norm. What they sum partly cancels while the
   errors do not, so out is a few times that off where many keys average out: bound 4e-3 for out and dv, 6e-3 for dq and
   dk (dP - delta cancels besides); lse has no bf16 in it.

   case   a block of queries at positions of a map against blocks of keys (one, or all steps of a
          ring), merged one after another
   then   the same bits a second time and under other schedules of the threads; the results written in
          bf16 are those in fp32, rounded
   masks  the same with queries that see keys from `lo` on: documents that begin on, before and after the edges of
          tiles, windows, both; where lo is 0, the bits of kernels that know no lo; NaN in the documents around one that
          fills whole tiles stays there: tiles of theirs are skipped
   last   the backward tiles of GPUs whose blocks have 99 KB of shared memory
   far    in the emulator: a few blocks of tensors whose last elements no 32 bits reach, with memory
          only where these blocks belong

   On sm_90 every case runs on both paths, the one for sm_90a and the one for all else, and larger
   ones hold them against each other.

   Words as arguments: `small`, fewer and smaller cases, for sanitizers; `sm_80` or `wgmma`, one path
   alone; `forward`, nothing else; `masks`, no other cases. */
#include "cuda_support.h"

#define OUT_BOUND 4e-3
#define GRADIENT_BOUND 6e-3
#define LSE_BOUND 2e-6

static int steep; /* 1: the last keys are small, the first ones large: the running maximum rises and rises */
static i64 shared_most = (i64)1 << 40; /* bytes that a block may have, if the device lets it */
static int paths = 3, forward_only;    /* bit 0: sm_80's kernels, bit 1: those of sm_90a where they can run */
/* What queries see: so many keys, their own the last (0: all before it), of their own document. `documents`: where
   they begin, ascending, up to -1 (NULL: there is one); in each sequence 17 tokens later than in the one before. */
static i64 window;
static const i64 *documents;
static const char *const PATHS[] = {"sm_80", "wgmma"};

typedef struct {
    AttentionShape s; /* Tq of the queries, Tk of all keys */
    TokenMap q_map, kv_map[8];
    int blocks, add; /* add: to what is in dq */
    double *q, *kv, *dout, *dq; /* inputs; dq: what is there before */
    double *out, *lse, *delta;        /* the reference's; then the gradients */
    double *want_dq, *want_dkv;
    int32_t *lo; /* (Tq, B), or NULL */
} Case;

static i64 q_elements(const Case *c) { return c->s.Tq * c->s.B * c->s.heads * c->s.head_dim; }
static i64 kv_elements(const Case *c) { return c->s.Tk * c->s.B * 2 * c->s.kv_heads * c->s.head_dim; }
static i64 q_rows(const Case *c) { return c->s.Tq * c->s.B * c->s.heads; }

/* Position of key t of all blocks. */
static i64 key_position(const Case *c, i64 t) {
    int i = 0;
    while (t >= c->kv_map[i].count) t -= c->kv_map[i++].count;
    return token_position(&c->kv_map[i], t);
}

/* The first position that position p sees. */
static i64 lo_of(i64 p, i64 b) {
    i64 lo = window ? i64_max(0, p - window + 1) : 0;
    for (const i64 *d = documents; d && *d >= 0; d++)
        if (*d + 17 * b <= p) lo = i64_max(lo, *d + 17 * b);
    return lo;
}

static double dot(const double *a, const double *b, i64 n) {
    double sum = 0;
    for (i64 i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* One row of queries: P in p (Tk), out and lse. */
static void reference_row(Case *c, i64 t, i64 b, i64 h, double *p) {
    const AttentionShape *s = &c->s;
    i64 HS = s->head_dim, kh = h / (s->heads / s->kv_heads), row = (t * s->B + b) * s->heads + h;
    double top = -INFINITY, sum = 0, scale = 1 / sqrt((double)HS);
    for (i64 j = 0; j < s->Tk; j++) {
        const double *k = c->kv + (((j * s->B + b) * 2) * s->kv_heads + kh) * HS;
        i64 position = key_position(c, j), lo = c->lo ? c->lo[t * s->B + b] : 0;
        int seen = lo <= position && position <= token_position(&c->q_map, t);
        p[j] = seen ? scale * dot(c->q + row * HS, k, HS) : -INFINITY;
        if (p[j] > top) top = p[j];
    }
    for (i64 j = 0; j < s->Tk; j++) p[j] = top == -INFINITY ? 0 : exp(p[j] - top), sum += p[j];
    c->lse[row] = top + log(sum);
    for (i64 j = 0; j < s->Tk; j++) {
        if (p[j] == 0) continue;
        p[j] /= sum;
        const double *v = c->kv + ((j * s->B + b) * 2 * s->kv_heads + s->kv_heads + kh) * HS;
        for (i64 i = 0; i < HS; i++) c->out[row * HS + i] += p[j] * v[i];
    }
}

static void reference_row_backward(Case *c, i64 t, i64 b, i64 h, const double *p) {
    const AttentionShape *s = &c->s;
    i64 HS = s->head_dim, kh = h / (s->heads / s->kv_heads), row = (t * s->B + b) * s->heads + h;
    double scale = 1 / sqrt((double)HS);
    const double *q = c->q + row * HS, *dout = c->dout + row * HS;
    c->delta[row] = dot(c->out + row * HS, dout, HS);
    for (i64 j = 0; j < s->Tk; j++) {
        if (p[j] == 0) continue;
        i64 k_at = ((j * s->B + b) * 2 * s->kv_heads + kh) * HS, v_at = k_at + s->kv_heads * HS;
        double ds = scale * p[j] * (dot(dout, c->kv + v_at, HS) - c->delta[row]);
        for (i64 i = 0; i < HS; i++) {
            c->want_dq[row * HS + i] += ds * c->kv[k_at + i];
            c->want_dkv[k_at + i] += ds * q[i];
            c->want_dkv[v_at + i] += p[j] * dout[i];
        }
    }
}

static void reference(Case *c) {
    double *p = zeros(c->s.Tk);
    for (i64 t = 0; t < c->s.Tq; t++)
        for (i64 b = 0; b < c->s.B; b++)
            for (i64 h = 0; h < c->s.heads; h++) {
                reference_row(c, t, b, h, p);
                reference_row_backward(c, t, b, h, p);
            }
}

/* ---- what the device computes ---- */

typedef struct {
    const real *q, *kv, *dout;
    const accum *final_lse, *delta, *dq_before;
    const int32_t *lo;
    accum *out, *lse, *dq, *dkv;
    real *out_rounded, *dq_rounded, *dkv_rounded; /* NULL, or where results go instead */
} Buffers;

static void *device_copy(const void *src, i64 bytes) { return upload_bytes(download_bytes(src, bytes), bytes); }

static Buffers upload_case(Case *c) {
    Buffers d;
    memset(&d, 0, sizeof d);
    d.q = upload_real(c->q, q_elements(c)), d.kv = upload_real(c->kv, kv_elements(c)),
    d.dout = upload_real(c->dout, q_elements(c));
    d.dq_before = upload_accum(c->dq, q_elements(c));
    d.lo = c->lo ? upload_int(c->lo, c->s.Tq * c->s.B) : NULL;
    return d;
}

/* Each block of keys is a call, as in a ring: with its own Tk, map and piece of kv. */
static void run_forward(Device *dev, const Case *c, Buffers *d) {
    d->out = unset_accum(q_elements(c)), d->lse = unset_accum(q_rows(c));
    i64 first = 0;
    for (int i = 0; i < c->blocks; i++) {
        AttentionShape s = c->s;
        s.Tk = c->kv_map[i].count;
        AttentionCall call = attention_call(s, c->q_map, c->kv_map[i], i > 0);
        call.lo = d->lo;
        attention_forward(dev, d->out, i + 1 == c->blocks ? d->out_rounded : NULL, d->lse, d->q,
                          d->kv + first * s.B * 2 * s.kv_heads * s.head_dim, call);
        first += s.Tk;
    }
    CUDA_CHECK(cudaDeviceSynchronize());
}

static void run_backward(Device *dev, const Case *c, Buffers *d) {
    d->dq =
        c->add ? (accum *)device_copy(d->dq_before, q_elements(c) * (i64)sizeof(accum)) : unset_accum(q_elements(c));
    d->dkv = unset_accum(kv_elements(c));
    i64 first = 0;
    for (int i = 0; i < c->blocks; i++) {
        AttentionShape s = c->s;
        s.Tk = c->kv_map[i].count;
        i64 at = first * s.B * 2 * s.kv_heads * s.head_dim;
        AttentionCall call = attention_call(s, c->q_map, c->kv_map[i], c->add || i > 0);
        call.lo = d->lo;
        attention_backward(dev, d->dq, i + 1 == c->blocks ? d->dq_rounded : NULL, d->dkv + at,
                           d->dkv_rounded ? d->dkv_rounded + at : NULL, d->q, d->kv + at, d->dout, d->final_lse,
                           d->delta, call);
        first += s.Tk;
    }
    CUDA_CHECK(cudaDeviceSynchronize());
}

/* lse: rows that see nothing are -inf in both; the others differ by less than the bound, absolutely. */
static double lse_distance(const double *got, const double *want, i64 n) {
    double worst = 0;
    for (i64 i = 0; i < n; i++) {
        if (got[i] == want[i]) continue;
        double d = fabs(got[i] - want[i]) / fmax(1, fabs(want[i]));
        if (!(d < INFINITY)) return INFINITY;
        worst = fmax(worst, d);
    }
    return worst;
}

static double worst_out, worst_lse, worst_dq, worst_dk, worst_dv, worst_delta;
static void note(double *worst, double distance) { *worst = fmax(*worst, distance); }

/* K or V of a dkv buffer apart: an error in the smaller one would hide behind the larger. */
static double *half_of(const Case *c, const double *dkv, int half) {
    i64 width = c->s.kv_heads * c->s.head_dim, rows = c->s.Tk * c->s.B;
    double *x = zeros(rows * width);
    for (i64 r = 0; r < rows; r++) memcpy(x + r * width, dkv + (2 * r + half) * width, 8 * (size_t)width);
    return x;
}

/* How many of the rounded numbers are not exactly those of the fp32 result, rounded. */
static i64 rounded_wrong(const real *rounded, const accum *sum, i64 n) {
    const real *r = (const real *)download_bytes(rounded, n * (i64)sizeof(real));
    const accum *x = (const accum *)download_bytes(sum, n * (i64)sizeof(accum));
    i64 wrong = 0;
    for (i64 i = 0; i < n; i++) wrong += r[i].bits != bf16_round(x[i]).bits;
    return wrong;
}

/* The same again, with the results in bf16: out and dq of the last block, dkv of each. */
static void check_rounded(Device *dev, const Case *c, const Buffers *d, const char *name) {
    Buffers e = *d;
    i64 nq = q_elements(c), nkv = kv_elements(c);
    e.out_rounded = unset_real(nq), e.dq_rounded = unset_real(nq), e.dkv_rounded = unset_real(nkv);
    run_forward(dev, c, &e), run_backward(dev, c, &e);
    i64 out = rounded_wrong(e.out_rounded, d->out, nq), dq = rounded_wrong(e.dq_rounded, d->dq, nq),
        dkv = rounded_wrong(e.dkv_rounded, d->dkv, nkv);
    check(out + dq + dkv == 0 && same_bits(d->lse, e.lse, q_rows(c) * (i64)sizeof(accum)),
          "%s: rounded results, %lld of out, %lld of dq, %lld of dkv differ", name, out, dq, dkv);
}

static void check_forward(const Case *c, const Buffers *d, const char *name) {
    double *out = download_accum(d->out, q_elements(c)), *lse = download_accum(d->lse, q_rows(c));
    double distance = norm_distance(out, c->out, q_elements(c)), lse_far = lse_distance(lse, c->lse, q_rows(c));
    note(&worst_out, distance), note(&worst_lse, lse_far);
    check(distance <= OUT_BOUND, "%s: out, distance %.2g, at most %.2g", name, distance, OUT_BOUND);
    check(lse_far <= LSE_BOUND, "%s: lse, distance %.2g, at most %.2g", name, lse_far, LSE_BOUND);
}

/* norm_distance, but gradients that are nothing but cancellation (a row that sees one key) count as 1e-3 each. */
static double gradient_distance(const double *got, const double *want, i64 n) {
    double size = 0, floor = 1e-3 * sqrt((double)n);
    for (i64 i = 0; i < n; i++) size += want[i] * want[i];
    double distance = norm_distance(got, want, n);
    if (sqrt(size) >= floor) return distance;
    double diff = 0;
    for (i64 i = 0; i < n; i++) diff += (got[i] - want[i]) * (got[i] - want[i]);
    return diff < INFINITY ? sqrt(diff) / floor : INFINITY; /* also where diff is not a number */
}

static void check_backward(const Case *c, const Buffers *d, const char *name) {
    double *dq = download_accum(d->dq, q_elements(c)), *dkv = download_accum(d->dkv, kv_elements(c));
    for (i64 i = 0; c->add && i < q_elements(c); i++) dq[i] -= c->dq[i];
    i64 half = kv_elements(c) / 2;
    double far_q = gradient_distance(dq, c->want_dq, q_elements(c));
    double far_k = gradient_distance(half_of(c, dkv, 0), half_of(c, c->want_dkv, 0), half);
    double far_v = gradient_distance(half_of(c, dkv, 1), half_of(c, c->want_dkv, 1), half);
    note(&worst_dq, far_q), note(&worst_dk, far_k), note(&worst_dv, far_v);
    check(far_q <= GRADIENT_BOUND, "%s: dq, distance %.2g, at most %.2g", name, far_q, GRADIENT_BOUND);
    check(far_k <= GRADIENT_BOUND, "%s: dk, distance %.2g, at most %.2g", name, far_k, GRADIENT_BOUND);
    check(far_v <= OUT_BOUND, "%s: dv, distance %.2g, at most %.2g", name, far_v, OUT_BOUND);
}

/* The case on the path that `dev` takes; `again`: a second time and under the other schedules. */
static void run_path(Device *dev, const Case *c, Buffers d, int again, const char *name) {
    set_schedule(0);
    run_forward(dev, c, &d);
    check_forward(c, &d, name);
    if (!forward_only) {
        run_backward(dev, c, &d);
        check_backward(c, &d, name), check_rounded(dev, c, &d, name);
    }
    for (int i = 0; again && i < COUNT_OF(SCHEDULES); i++) {
        Buffers e = d;
        set_schedule(SCHEDULES[i]);
        run_forward(dev, c, &e);
        i64 bytes = q_elements(c) * (i64)sizeof(accum);
        int same = same_bits(d.out, e.out, bytes) && same_bits(d.lse, e.lse, q_rows(c) * (i64)sizeof(accum));
        check(same, "%s: forward, same bits under schedule %d", name, SCHEDULES[i]);
        if (forward_only) continue;
        run_backward(dev, c, &e);
        check(same_bits(d.dq, e.dq, bytes), "%s: dq, same bits under schedule %d", name, SCHEDULES[i]);
        check(same_bits(d.dkv, e.dkv, kv_elements(c) * (i64)sizeof(accum)), "%s: dkv, same bits under schedule %d",
              name, SCHEDULES[i]);
    }
    set_schedule(0);
}

/* Inputs of a case, at random; sm_80's and sm_90a's path add to what is in dq in every other case. */
static void random_case(Case *c) {
    static int cases;
    c->add = cases++ % 2;
    c->q = randoms(q_elements(c), 2), c->kv = randoms(kv_elements(c), 2), c->dout = randoms(q_elements(c), 1);
    i64 token = kv_elements(c) / c->s.Tk, half = c->s.kv_heads * c->s.head_dim;
    for (i64 i = 0; steep && i < kv_elements(c); i++)
        if (i / half % 2 == 0) c->kv[i] *= 20 * (1 - (double)(i / token) / (double)c->s.Tk);
    c->dq = randoms(q_elements(c), 1e-2);
    c->out = zeros(q_elements(c)), c->lse = zeros(q_rows(c)), c->delta = zeros(q_rows(c));
    c->want_dq = zeros(q_elements(c)), c->want_dkv = zeros(kv_elements(c));
    if (!window && !documents) return;
    c->lo = (int32_t *)host_take(c->s.Tq * c->s.B * (i64)sizeof(int32_t));
    for (i64 r = 0; r < c->s.Tq * c->s.B; r++)
        c->lo[r] = (int32_t)lo_of(token_position(&c->q_map, r / c->s.B), r % c->s.B);
}

static Device case_device(const Case *c) {
    Device dev = test_device(i64_max(16, attention_scratch_bytes(&c->s)));
    if (shared_most < dev.state.shared_bytes) dev.state.shared_bytes = shared_most, dev.state.wgmma = 0;
    return dev;
}

/* Run the case on every path that this device has. */
static void run_case(Case *c, int again, const char *name) {
    random_case(c);
    Buffers d = upload_case(c);
    reference(c);
    Device dev = case_device(c);
    d.final_lse = upload_accum(c->lse, q_rows(c)), d.delta = upload_accum(c->delta, q_rows(c));
    int both = dev.state.wgmma;
    for (int path = both; path >= 0; path--) {
        char text[256];
        if (!(paths & 1 << path)) continue;
        char mask[64] = "";
        if (window) snprintf(mask, sizeof mask, "window %lld, ", window);
        if (documents) strcat(mask, "documents, ");
        snprintf(text, sizeof text, "%s%s%s%s", both ? PATHS[path] : "", both ? ": " : "", mask, name);
        dev.state.wgmma = path;
        run_path(&dev, c, d, again, text);
    }
    release_all();
}

/* ---- cases ---- */

static TokenMap run_of(i64 first, i64 stride, i64 count) {
    TokenMap m;
    memset(&m, 0, sizeof m);
    m.run[0].first = first, m.run[0].stride = stride, m.run[0].count = m.count = count;
    return m;
}

/* Queries at q_first .. against keys at kv_first .. : one block. */
static void test_block(i64 HS, i64 heads, i64 kv_heads, i64 B, i64 q_first, i64 Tq, i64 kv_first, i64 Tk, int again) {
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = B, c.s.Tq = Tq, c.s.Tk = Tk, c.s.heads = heads, c.s.kv_heads = kv_heads, c.s.head_dim = HS;
    c.q_map = run_of(q_first, 1, Tq), c.kv_map[0] = run_of(kv_first, 1, Tk), c.blocks = 1;
    char name[160];
    snprintf(name, sizeof name, "%shead dim %lld, heads %lld:%lld, B %lld, queries %lld+%lld, keys %lld+%lld",
             steep ? "steep, " : "", HS, heads, kv_heads, B, q_first, Tq, kv_first, Tk);
    run_case(&c, again, name);
}

/* All steps of a ring on one rank: own keys first, then those of the ranks before it, merged; the
   reference sees them all at once. */
static void test_ring(RingLayout layout, i64 L, int ranks, int rank, i64 HS, i64 heads, i64 kv_heads, int again) {
    static const char *const NAMES[] = {"zigzag", "contiguous", "stripe"};
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = 1, c.s.Tq = L / ranks, c.s.Tk = L, c.s.heads = heads, c.s.kv_heads = kv_heads, c.s.head_dim = HS;
    c.q_map = token_map(layout, L, ranks, rank), c.blocks = ranks;
    for (int i = 0; i < ranks; i++) c.kv_map[i] = token_map(layout, L, ranks, (rank - i + ranks) % ranks);
    char name[160];
    snprintf(name, sizeof name, "%s, L %lld, rank %d of %d, head dim %lld, heads %lld:%lld", NAMES[layout], L, rank,
             ranks, HS, heads, kv_heads);
    run_case(&c, again, name);
}

/* Sizes at which the reference would take too long: the path for sm_90a against the one for
   sm_80, and again: the same bits. */
static void test_paths(i64 HS, i64 heads, i64 kv_heads, i64 B, RingLayout layout, i64 L, int ranks, int rank) {
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = B, c.s.Tq = L / ranks, c.s.Tk = L / ranks, c.s.heads = heads, c.s.kv_heads = kv_heads, c.s.head_dim = HS;
    c.q_map = c.kv_map[0] = token_map(layout, L, ranks, rank), c.blocks = 1;
    Device dev = case_device(&c);
    if (dev.state.wgmma && paths == 3) {
        random_case(&c);
        Buffers d = upload_case(&c), e, again;
        dev.state.wgmma = 0;
        run_forward(&dev, &c, &d);
        accum *delta = unset_accum(q_rows(&c));
        double *out = download_accum(d.out, q_elements(&c));
        attention_delta(&dev, delta, upload_real(out, q_elements(&c)), d.dout, q_rows(&c), HS);
        d.final_lse = d.lse, d.delta = delta;
        e = d;
        if (!forward_only) run_backward(&dev, &c, &d);
        memcpy(c.out, download_accum(d.out, q_elements(&c)), (size_t)q_elements(&c) * 8),
            memcpy(c.lse, download_accum(d.lse, q_rows(&c)), (size_t)q_rows(&c) * 8);
        dev.state.wgmma = 1;
        run_forward(&dev, &c, &e);
        char name[160];
        snprintf(name, sizeof name, "both paths, head dim %lld, heads %lld:%lld, B %lld, L %lld, rank %d of %d", HS,
                 heads, kv_heads, B, L, rank, ranks);
        check_forward(&c, &e, name);
        again = e;
        run_forward(&dev, &c, &again);
        check(same_bits(e.out, again.out, q_elements(&c) * (i64)sizeof(accum)), "%s: forward, the same bits again",
              name);
        if (!forward_only) {
            run_backward(&dev, &c, &e);
            memcpy(c.want_dq, download_accum(d.dq, q_elements(&c)), (size_t)q_elements(&c) * 8);
            memcpy(c.want_dkv, download_accum(d.dkv, kv_elements(&c)), (size_t)kv_elements(&c) * 8);
            for (i64 i = 0; c.add && i < q_elements(&c); i++) c.want_dq[i] -= c.dq[i];
            check_backward(&c, &e, name);
            run_backward(&dev, &c, &again);
            check(same_bits(e.dq, again.dq, q_elements(&c) * (i64)sizeof(accum)), "%s: dq, the same bits again", name);
            check(same_bits(e.dkv, again.dkv, kv_elements(&c) * (i64)sizeof(accum)), "%s: dkv, the same bits again",
                  name);
        }
    }
    release_all();
}

/* ---- masks ---- */

/* On, before and after the edges of tiles of 64 and 128, documents of one token, and a long one. */
static const i64 EDGES[] = {0, 63, 64, 65, 128, 129, 255, 257, 320, 384, 385, -1};

static void masked(i64 tokens, const i64 *begins) { window = tokens, documents = begins; }

/* Where lo is 0, kernels that look at it leave the bits of those that do not. */
static void test_same(i64 HS, i64 heads, i64 kv_heads, RingLayout layout, i64 L, int ranks, int rank) {
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = 1, c.s.Tq = c.s.Tk = L / ranks, c.s.heads = heads, c.s.kv_heads = kv_heads, c.s.head_dim = HS;
    c.q_map = c.kv_map[0] = token_map(layout, L, ranks, rank), c.blocks = 1;
    masked(L, NULL);
    random_case(&c);
    masked(0, NULL);
    Buffers d = upload_case(&c), e = d;
    d.lo = NULL;
    Device dev = case_device(&c);
    for (int path = dev.state.wgmma; path >= 0; path--) {
        if (!(paths & 1 << path)) continue;
        dev.state.wgmma = path;
        run_forward(&dev, &c, &d), run_forward(&dev, &c, &e);
        int same = same_bits(d.out, e.out, q_elements(&c) * (i64)sizeof(accum)) &&
                   same_bits(d.lse, e.lse, q_rows(&c) * (i64)sizeof(accum));
        if (!forward_only) {
            d.final_lse = e.final_lse = d.lse, d.delta = e.delta = upload_accum(randoms(q_rows(&c), 1), q_rows(&c));
            run_backward(&dev, &c, &d), run_backward(&dev, &c, &e);
            same &= same_bits(d.dq, e.dq, q_elements(&c) * (i64)sizeof(accum)) &&
                    same_bits(d.dkv, e.dkv, kv_elements(&c) * (i64)sizeof(accum));
        }
        check(same, "%s: lo 0 everywhere, the bits of no lo, head dim %lld, L %lld, rank %d of %d", PATHS[path], HS, L,
              rank, ranks);
    }
    release_all();
}

/* NaN in all but `good`, whole tiles of a document, reach nothing of it: no tile of another document is computed. */
static void test_skipped(i64 HS) {
    static const i64 BEGINS[] = {0, 256, 512, -1};
    enum { GOOD = 256, TOKENS = 600 };
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = 1, c.s.Tq = c.s.Tk = TOKENS, c.s.heads = 2, c.s.kv_heads = 1, c.s.head_dim = HS;
    c.q_map = c.kv_map[0] = run_of(0, 1, TOKENS), c.blocks = 1;
    masked(0, BEGINS);
    random_case(&c);
    c.add = 0;
    masked(0, NULL);
    Buffers d = upload_case(&c);
    reference(&c);
    d.final_lse = upload_accum(c.lse, q_rows(&c)), d.delta = upload_accum(c.delta, q_rows(&c));
    i64 row = 2 * HS, elements = GOOD * row; /* of q as of kv */
    const real *inputs[] = {d.q, d.kv, d.dout};
    for (int i = 0; i < COUNT_OF(inputs); i++) {
        real *x = (real *)inputs[i];
        CUDA_CHECK(cudaMemsetAsync(x, 0xff, (size_t)(GOOD * row) * sizeof(real), 0));
        CUDA_CHECK(cudaMemsetAsync(x + 2 * GOOD * row, 0xff, (size_t)((TOKENS - 2 * GOOD) * row) * sizeof(real), 0));
    }
    CUDA_CHECK(cudaDeviceSynchronize());
    Device dev = case_device(&c);
    for (int path = dev.state.wgmma; path >= 0; path--) {
        if (!(paths & 1 << path)) continue;
        dev.state.wgmma = path;
        run_forward(&dev, &c, &d);
        double out = norm_distance(download_accum(d.out + elements, elements), c.out + elements, elements);
        check(out <= OUT_BOUND, "%s: tiles of other documents are skipped, head dim %lld: out, distance %.2g",
              PATHS[path], HS, out);
        if (forward_only) continue;
        run_backward(&dev, &c, &d);
        double dq = gradient_distance(download_accum(d.dq + elements, elements), c.want_dq + elements, elements);
        double dkv = gradient_distance(download_accum(d.dkv + elements, elements), c.want_dkv + elements, elements);
        check(dq <= GRADIENT_BOUND && dkv <= GRADIENT_BOUND,
              "%s: likewise backward, head dim %lld: dq, distance %.2g, dkv %.2g", PATHS[path], HS, dq, dkv);
    }
    release_all();
}

static void test_masks(int small) {
    masked(0, EDGES);
    test_block(64, 2, 1, 2, 0, 270, 0, 270, 1);
    test_block(128, 2, 1, 1, 0, 270, 0, 270, 0);
    masked(100, EDGES + 8);
    test_block(64, 1, 1, 1, 0, 530, 0, 530, 1); /* turns that begin at later KV tiles */
    test_block(128, 1, 1, 1, 0, 400, 0, 400, 1);
    masked(40, NULL);
    test_block(80, 1, 1, 1, 130, 200, 0, 200, 0); /* the last queries see nothing */
    test_ring(RING_ZIGZAG, 528, 2, 0, 64, 1, 1, 0);
    test_ring(RING_STRIPE, 264, 2, 1, 128, 1, 1, 0);
    if (!small) {
        static const i64 WINDOWS[] = {1, 64, 65, 128, 200, 257};
        for (int i = 0; i < COUNT_OF(WINDOWS); i++) {
            masked(WINDOWS[i], i % 2 ? EDGES + 6 : NULL);
            test_block(i % 2 ? 64 : 128, 2, 2 - i % 2, 1, 3, 390, 3, 390, 0);
        }
        for (int layout = RING_ZIGZAG; layout <= RING_STRIPE; layout++)
            for (int rank = 0; rank < 3; rank++) {
                masked(rank == 1 ? 0 : 170, rank == 0 ? NULL : EDGES);
                test_ring((RingLayout)layout, 1044, 3, rank, rank == 2 ? 128 : 64, 2, 1, rank == 1);
            }
    }
    masked(0, NULL);
    test_same(64, 2, 1, RING_ZIGZAG, 600, 2, 1);
    test_same(128, 1, 1, RING_CONTIGUOUS, 200, 1, 0);
    test_skipped(64), test_skipped(128);
}

/* delta alone: rowsum(out * dout) of bf16 rows. */
static void test_delta(i64 rows, i64 HS) {
    double *out = randoms(rows * HS, 1), *dout = randoms(rows * HS, 1), *want = zeros(rows);
    const real *a = upload_real(out, rows * HS), *b = upload_real(dout, rows * HS);
    accum *delta = unset_accum(rows);
    Device dev = test_device(16);
    attention_delta(&dev, delta, a, b, rows, HS);
    for (i64 r = 0; r < rows; r++) want[r] = dot(out + r * HS, dout + r * HS, HS);
    double distance = norm_distance(download_accum(delta, rows), want, rows);
    note(&worst_delta, distance);
    check(distance <= 1e-6, "delta: %lld rows of %lld, distance %.2g, at most 1e-6", rows, HS, distance);
    release_all();
}

#ifndef __CUDACC__

/* 2^23 elements a token, the most that is taken, in query heads two to a KV head: 2^32 are passed at token 512. */
enum { FAR_TOKENS = 640, FAR_HEADS = 1 << 17, FAR_DIM = 64, PAIR = 2 * FAR_DIM };

/* FAR_TOKENS rows, of which tests need a part: addresses alone, until far_fill brings memory. */
typedef struct {
    char *at;
    i64 row; /* bytes */
} FarTensor;

static FarTensor far_tensor(i64 row) {
    FarTensor t = {(char *)memory_reserve_device(FAR_TOKENS * row), row};
    if (!t.at) FAIL(EVERYONE, "tests: no %.0f GB of addresses", (double)(FAR_TOKENS * row) / 1e9);
    return t;
}
/* `bytes` at `column` of the first `tokens` rows become those of `from`, or 0xff. */
static void far_fill(FarTensor t, i64 column, const void *from, i64 bytes, int tokens) {
    i64 page = sysconf(_SC_PAGESIZE);
    for (int i = 0; i < tokens; i++) {
        i64 at = i * t.row + column, first = at / page * page;
        if (!memory_commit_device(t.at + first, round_up(at + bytes, page) - first)) FAIL(EVERYONE, "tests: no memory");
        if (from) memcpy(t.at + at, (const char *)from + i * bytes, (size_t)bytes);
        else memset(t.at + at, 0xff, (size_t)bytes);
    }
}
static void far_fill_real(FarTensor t, i64 column, const double *from, i64 count, i64 step, int tokens) {
    real *x = (real *)host_take(tokens * count * (i64)sizeof(real));
    for (i64 i = 0; i < tokens * count; i++) x[i] = real_from(from[i / count * step + i % count]);
    far_fill(t, column, x, count * (i64)sizeof(real), tokens);
}
static void far_fill_accum(FarTensor t, const double *from, i64 count) {
    accum *x = (accum *)host_take(FAR_TOKENS * count * (i64)sizeof(accum));
    for (i64 i = 0; i < FAR_TOKENS * count; i++) x[i] = (accum)from[i];
    far_fill(t, 0, x, count * (i64)sizeof(accum), FAR_TOKENS);
}
static double *far_values(FarTensor t, i64 column, i64 count, int tokens) { /* accum */
    double *x = zeros(count * tokens);
    for (int i = 0; i < tokens; i++)
        for (i64 k = 0; k < count; k++) x[i * count + k] = ((const accum *)(t.at + i * t.row + column))[k];
    return x;
}

/* The last KV head and its two query heads, all of their tiles, forward. */
static void test_far_forward(Case *c, Device *dev, AttentionShape s, FarTensor q, FarTensor kv, FarTensor lse) {
    i64 last = s.kv_heads - 1;
    FarTensor out = far_tensor(2 * q.row);
    far_fill_real(q, last * PAIR * 2, c->q, PAIR, PAIR, FAR_TOKENS);
    for (int v = 0; v < 2; v++)
        far_fill_real(kv, (v * s.kv_heads + last) * FAR_DIM * 2, c->kv + v * FAR_DIM, FAR_DIM, PAIR, FAR_TOKENS);
    far_fill(out, last * PAIR * 4, NULL, PAIR * 4, FAR_TOKENS), far_fill(lse, last * 8, NULL, 8, FAR_TOKENS);

    /* the blocks of a section of heads come tile by tile, its heads side by side */
    AttentionOrder order = attention_order(s.heads, FAR_TOKENS / 128, (double)(2 * FAR_TOKENS * FAR_DIM) + 1, 2);
    i64 before = (s.heads - 1) / order.section * order.section, section = s.heads - before;
    for (int tile = 0; tile < order.tiles; tile++)
        for (int h = 2; h > 0; h--) emu_only().push_back((uint64_t)(before * order.tiles + (tile + 1) * section - h));
    attention_forward(dev, (accum *)out.at, NULL, (accum *)lse.at, (real *)q.at, (real *)kv.at,
                      attention_call(s, c->q_map, c->kv_map[0], 0));
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_only().clear();
    double far_out = norm_distance(far_values(out, last * PAIR * 4, PAIR, FAR_TOKENS), c->out, FAR_TOKENS * PAIR);
    double far_lse = lse_distance(far_values(lse, last * 8, 2, FAR_TOKENS), c->lse, FAR_TOKENS * 2);
    check(far_out <= OUT_BOUND, "beyond 32 bits: out, distance %.2g, at most %.2g", far_out, OUT_BOUND);
    check(far_lse <= LSE_BOUND, "beyond 32 bits: lse, distance %.2g, at most %.2g", far_lse, LSE_BOUND);
    memory_release_device(out.at, FAR_TOKENS * out.row, 0);
}

/* The first KV head and its two query heads, the block of the first 128 keys, whose queries
   come from all tokens, backward. */
static void test_far_backward(Case *c, Device *dev, AttentionShape s, FarTensor q, FarTensor kv, FarTensor lse) {
    FarTensor dout = far_tensor(q.row), dq = far_tensor(2 * q.row), dkv = far_tensor(2 * q.row),
              delta = far_tensor(lse.row);
    far_fill_real(q, 0, c->q, PAIR, PAIR, FAR_TOKENS), far_fill_real(dout, 0, c->dout, PAIR, PAIR, FAR_TOKENS);
    for (int v = 0; v < 2; v++) {
        far_fill_real(kv, v * s.kv_heads * FAR_DIM * 2, c->kv + v * FAR_DIM, FAR_DIM, PAIR, 128);
        far_fill(dkv, v * s.kv_heads * FAR_DIM * 4, NULL, FAR_DIM * 4, 128);
    }
    far_fill_accum(lse, c->lse, 2), far_fill_accum(delta, c->delta, 2), far_fill(dq, 0, NULL, PAIR * 4, FAR_TOKENS);
    double *p = zeros(FAR_TOKENS), *want_dkv = copy_of(c->want_dkv, 128 * PAIR), far_kv = 0;
    memset(c->want_dq, 0, FAR_TOKENS * PAIR * 8), memset(c->out, 0, FAR_TOKENS * PAIR * 8); /* both are added to */
    for (i64 row = 0; row < FAR_TOKENS * 2; row++) { /* of dq, what these keys add */
        c->s.Tk = FAR_TOKENS;
        reference_row(c, row / 2, 0, row % 2, p);
        c->s.Tk = 128;
        reference_row_backward(c, row / 2, 0, row % 2, p);
    }
    emu_only().assign(1, 0);
    attention_backward(dev, (accum *)dq.at, NULL, (accum *)dkv.at, NULL, (real *)q.at, (real *)kv.at, (real *)dout.at,
                       (accum *)lse.at, (accum *)delta.at, attention_call(s, c->q_map, c->kv_map[0], 0));
    CUDA_CHECK(cudaDeviceSynchronize());
    emu_only().clear();
    double far_q = gradient_distance(far_values(dq, 0, PAIR, FAR_TOKENS), c->want_dq, FAR_TOKENS * PAIR);
    for (int v = 0; v < 2; v++) {
        double *got = far_values(dkv, v * s.kv_heads * FAR_DIM * 4, FAR_DIM, 128), *want = zeros(128 * FAR_DIM);
        for (i64 i = 0; i < 128 * FAR_DIM; i++) want[i] = want_dkv[i / FAR_DIM * PAIR + v * FAR_DIM + i % FAR_DIM];
        far_kv = fmax(far_kv, gradient_distance(got, want, 128 * FAR_DIM));
    }
    check(far_q <= GRADIENT_BOUND, "beyond 32 bits: dq, distance %.2g, at most %.2g", far_q, GRADIENT_BOUND);
    check(far_kv <= GRADIENT_BOUND, "beyond 32 bits: dkv, distance %.2g, at most %.2g", far_kv, GRADIENT_BOUND);
    memory_release_device(dout.at, FAR_TOKENS * dout.row, 0), memory_release_device(dq.at, FAR_TOKENS * dq.row, 0);
    memory_release_device(dkv.at, FAR_TOKENS * dkv.row, 0), memory_release_device(delta.at, FAR_TOKENS * delta.row, 0);
}

/* What an offset reaches that has lost its upper bits is not there. */
static void test_far(void) {
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = 1, c.s.Tq = c.s.Tk = FAR_TOKENS, c.s.heads = 2, c.s.kv_heads = 1, c.s.head_dim = FAR_DIM;
    c.q_map = c.kv_map[0] = run_of(0, 1, FAR_TOKENS), c.blocks = 1;
    random_case(&c);
    upload_case(&c); /* rounds what the reference reads */
    reference(&c);
    AttentionShape s = c.s;
    s.heads = FAR_HEADS, s.kv_heads = FAR_HEADS / 2;
    Device dev = test_device(attention_scratch_bytes(&s));
    dev.state.wgmma = 0;
    i64 row = (i64)FAR_HEADS * FAR_DIM * 2;
    FarTensor q = far_tensor(row), kv = far_tensor(row), lse = far_tensor((i64)FAR_HEADS * 4);
    test_far_forward(&c, &dev, s, q, kv, lse);
    if (!forward_only) test_far_backward(&c, &dev, s, q, kv, lse);
    memory_release_device(q.at, FAR_TOKENS * q.row, 0), memory_release_device(kv.at, FAR_TOKENS * kv.row, 0);
    memory_release_device(lse.at, FAR_TOKENS * lse.row, 0);
    release_all();
}
#endif
/* Attention starts after the transfer that is asked for has begun: what its stream did
   before is seen by attention's. */
static void test_yield(int backward) {
    Case c;
    memset(&c, 0, sizeof c);
    c.s.B = c.s.heads = c.s.kv_heads = 1, c.s.Tq = c.s.Tk = 7, c.s.head_dim = 64;
    c.q_map = c.kv_map[0] = run_of(0, 1, 7), c.blocks = 1;
    random_case(&c);
    Buffers d = upload_case(&c);
    Device dev = case_device(&c);
    d.final_lse = upload_accum(c.lse, q_rows(&c)), d.delta = upload_accum(c.delta, q_rows(&c));
    d.out = unset_accum(q_elements(&c)), d.lse = unset_accum(q_rows(&c)), d.dq = unset_accum(q_elements(&c)),
    d.dkv = unset_accum(kv_elements(&c));
    cudaStream_t comm;
    char *mark = (char *)device_take(1), seen = 0;
    CUDA_CHECK(cudaStreamCreateWithFlags(&comm, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&dev.state.transfer, cudaEventDisableTiming));
    CUDA_CHECK(cudaMemsetAsync(mark, 1, 1, comm));
    CUDA_CHECK(cudaEventRecord(dev.state.transfer, comm));
    if (backward) attention_backward(&dev, d.dq, NULL, d.dkv, NULL, d.q, d.kv, d.dout, d.final_lse, d.delta,
                                     attention_call(c.s, c.q_map, c.kv_map[0], 0));
    else attention_forward(&dev, d.out, NULL, d.lse, d.q, d.kv, attention_call(c.s, c.q_map, c.kv_map[0], 0));
    CUDA_CHECK(cudaMemcpyAsync(&seen, mark, 1, cudaMemcpyDeviceToHost, dev.state.stream));
    CUDA_CHECK(cudaStreamSynchronize(dev.state.stream));
    check(seen == 1, "attention %s waits for a transfer to begin", backward ? "backward" : "forward");
    CUDA_CHECK(cudaDeviceSynchronize());
    CUDA_CHECK(cudaEventDestroy(dev.state.transfer));
    CUDA_CHECK(cudaStreamDestroy(comm));
    release_all();
}

static void test_head_dims(void) {
    int right = 1;
    for (i64 d = 0; d <= 300; d++) right &= attention_takes_head_dim(d) == (d > 0 && d <= 128 && d % 8 == 0);
    check(right, "head dims: multiples of 8 up to 128 are taken, nothing else");
}

int main(int argc, char **argv) {
    need_device();
    int small = 0, masks_only = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "small") == 0) small = 1;
        else if (strcmp(argv[i], "forward") == 0) forward_only = 1;
        else if (strcmp(argv[i], "masks") == 0) masks_only = 1;
        else if (strcmp(argv[i], "sm_80") == 0) paths = 1;
        else if (strcmp(argv[i], "wgmma") == 0) paths = 2;
        else FAIL(EVERYONE, "unknown argument '%s'; small, forward, masks, sm_80, wgmma", argv[i]);
    }
    watch_device(300);
    need_wgmma();
    if (masks_only) {
        test_masks(small);
        return checks_done();
    }
    test_head_dims();
    test_yield(0), test_yield(1);
    for (i64 HS = 8; HS <= 128; HS += small ? 56 : 24) test_delta(77, HS);
    test_delta(1, 128);

    test_block(64, 1, 1, 1, 0, 130, 0, 130, 1);  /* a diagonal of two tiles, tails on both sides */
    test_block(128, 2, 1, 1, 0, 130, 0, 130, 1); /* the other template, a group of two */
    test_block(80, 1, 1, 1, 0, 33, 0, 33, 0);    /* padded columns */
    test_block(16, 4, 2, 2, 5, 7, 2, 33, 0);
    test_block(64, 1, 1, 1, 0, 130, 50, 33, 0); /* the first rows see nothing */
    test_block(64, 1, 1, 1, 0, 7, 50, 33, 0);   /* no row sees anything */
    test_ring(RING_ZIGZAG, 264, 2, 1, 64, 1, 1, 0);
    test_ring(RING_STRIPE, 264, 2, 0, 128, 1, 1, 0);
    steep = 1;
    test_block(64, 1, 1, 1, 200, 130, 0, 330, 0);
    test_block(128, 2, 1, 1, 200, 130, 0, 330, 0);
    steep = 0;
    if (!small) {
        static const i64 LENGTHS[] = {1, 7, 33, 130, 200, 257};
        for (int i = 0; i < COUNT_OF(LENGTHS); i++) test_block(64, 4, 1, 1, 0, LENGTHS[i], 0, LENGTHS[i], i == 5);
        for (int i = 0; i < COUNT_OF(LENGTHS); i++)
            test_block(128, 1, 1, 1, 60, LENGTHS[i], 0, LENGTHS[COUNT_OF(LENGTHS) - 1 - i], 0);
        for (i64 HS = 8; HS <= 128; HS += 24) test_block(HS, 2, 2, 1, 3, 40, 0, 150, 0);
        test_block(80, 4, 2, 2, 0, 200, 0, 200, 1);
        test_block(16, 4, 4, 2, 0, 257, 0, 257, 0);
        test_block(128, 4, 2, 2, 0, 130, 7, 257, 0);
        for (int layout = RING_ZIGZAG; layout <= RING_STRIPE; layout++)
            for (int rank = 0; rank < 4; rank++) {
                test_ring((RingLayout)layout, 264, 4, rank, 64, 2, 1, rank == 2);
                test_ring((RingLayout)layout, 1040, 4, rank, 128, 1, 1, 0);
            }
        test_ring(RING_ZIGZAG, 1160, 2, 1, 64, 1, 1, 1); /* chunks of 290: several tiles in each run */
        test_ring(RING_STRIPE, 1160, 2, 0, 64, 1, 1, 0);
    }
    test_masks(small);
    static const i64 LONGEST = ON_GPU ? 4096 : 512;
    test_paths(128, 4, 2, 2, RING_CONTIGUOUS, LONGEST - 77, 1, 0);
    if (!small) {
        test_paths(64, 8, 8, 2, RING_CONTIGUOUS, LONGEST - 128, 1, 0);
        test_paths(128, 8, 8, 1, RING_ZIGZAG, 2 * LONGEST, 2, 1);
        test_paths(128, 8, 2, 1, RING_STRIPE, 2 * LONGEST + 20, 4, 3);
        test_paths(72, 4, 4, 1, RING_CONTIGUOUS, LONGEST, 1, 0);
    }
#ifndef __CUDACC__
    if (paths & 1) test_far();
#endif
    shared_most = 101376; /* sm_86, sm_89, sm_120 */
    test_block(64, 2, 1, 1, 0, 130, 0, 200, 1);
    test_block(128, 2, 1, 1, 0, 130, 0, 200, 1);
    test_block(80, 1, 1, 2, 5, 33, 0, 130, 0);
    if (!small) {
        for (int layout = RING_ZIGZAG; layout <= RING_STRIPE; layout++)
            for (int rank = 0; rank < 2; rank++) {
                masked(rank ? 90 : 0, NULL);
                test_ring((RingLayout)layout, 520, 2, rank, 64, 2, 1, 0);
                test_ring((RingLayout)layout, 520, 2, rank, 128, 2, 2, rank == 1);
            }
        masked(0, NULL);
    }
    printf("# worst: out %.2g, lse %.2g, dq %.2g, dk %.2g, dv %.2g, delta %.2g\n", worst_out, worst_lse, worst_dq,
           worst_dk, worst_dv, worst_delta);
    return checks_done();
}

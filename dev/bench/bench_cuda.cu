/* bench_cuda.cu - what this GPU does at best, and what each kernel gets of it. Prints one JSON object a line.

     build/bench_cuda [--toy] [WORD...]     only the groups whose name contains a WORD; --toy: tiny
                                            sizes, for memcheck and the emulator

   ceilings first   a copy from device memory to device memory, bytes read + written; a
                    bf16 product of 8192 x 8192 x 8192
   then kernels     attention in TFLOP/s, bound: the product's rate; all others in GB/s, bound: the copy's
   name, value, unit, bound, ratio = value / bound, ms: the median, spread: (90th - 10th percentile) / median

   The bytes of a kernel are the fewest it must move: every input read once, every output written once. Data are random;
   a kernel goes through sets of buffers in turn which together exceed the L2 four times. Events stand between calls
   that are all queued at once, so the gap between launches is hidden as it is in a step. Attention is timed as the
   model calls it: bf16 in, bf16 out, backward with its delta. */
#include "../../kernels/compute.h"

#define SETS 8 /* of buffers, at most */
#define POOL 256
#define ROUNDS 100 /* calls timed, at most */

static Device dev;
static DevicePlace place;
static int toy;
static i64 l2_bytes;
static double copy_rate, product_rate; /* the ceilings: bytes/s, FLOP/s */

/* ---- buffers: an allocation each, so that memcheck sees its end; all released between benchmarks ---- */

static void *pool[POOL];
static int pooled;

static void *device_take(i64 bytes) {
    void *p = NULL;
    if (pooled == POOL) FAIL(EVERYONE, "bench: more than %d buffers", POOL);
    CUDA_CHECK(cudaMalloc(&p, (size_t)bytes));
    return pool[pooled++] = p;
}

/* Release everything, and take the scratch of what comes next. */
static void begin(i64 rows, i64 widest, i64 vocab, AttentionShape s) {
    device_finish(&dev);
    while (pooled) CUDA_CHECK(cudaFree(pool[--pooled]));
    i64 scratch = device_scratch_bytes(rows, widest, vocab, &s);
    device_scratch(&dev, device_take(scratch), scratch);
}
static const AttentionShape NO_ATTENTION = {1, 1, 1, 1, 1, 8};

static uint64_t random_state = 88172645463325252ull;
static double uniform(void) { /* in [0, 1) */
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (double)(random_state >> 11) * 0x1p-53;
}

/* `bytes` of random bf16 between low and high. Read as fp32 they are random between them too: a
   bf16 is the upper half of one. */
static void *numbers(i64 bytes, double low, double high) {
    const i64 drawn = 1048583; /* a prime: repetitions do not fall in with rows */
    i64 done = i64_min(bytes, 2 * drawn);
    bf16 *host = (bf16 *)host_alloc((size_t)done);
    for (i64 i = 0; i < done / 2; i++) host[i] = bf16_round((float)(low + (high - low) * uniform()));
    char *p = (char *)device_take(bytes);
    copy_in(&dev, p, host, done);
    free(host);
    for (i64 n; done < bytes; done += n) {
        n = i64_min(done, bytes - done);
        CUDA_CHECK(cudaMemcpyAsync(p + done, p, (size_t)n, cudaMemcpyDeviceToDevice, dev.state.stream));
    }
    return p;
}

/* A tensor of n numbers in each of `sets` copies. */
typedef struct { real *set[SETS]; } Reals;
typedef struct { accum *set[SETS]; } Accums;
static Reals reals(int sets, i64 n) {
    Reals x;
    for (int i = 0; i < SETS; i++)
        x.set[i] = i < sets ? (real *)numbers(n * (i64)sizeof(real), -0.5, 0.5) : x.set[i % sets];
    return x;
}
static Accums accums(int sets, i64 n, double low, double high) {
    Accums x;
    for (int i = 0; i < SETS; i++)
        x.set[i] = i < sets ? (accum *)numbers(n * (i64)sizeof(accum), low, high) : x.set[i % sets];
    return x;
}

static int sets_for(double bytes) {
    double wanted = toy ? 2 : ceil(4 * (double)l2_bytes / bytes);
    return wanted < 2 ? 2 : wanted > SETS ? SETS : (int)wanted;
}

/* ---- timing ---- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct { double ms, spread; } Timing;

/* run(i) works on set i; called for each set in turn, `rounds` times. */
template <class F> static Timing timing(F run, int sets, int rounds) {
    cudaEvent_t event[ROUNDS + 1] = {}; /* gcc 13 cannot see that all are created before one is used */
    double ms[ROUNDS];
    for (int i = 0; i <= rounds; i++) CUDA_CHECK(cudaEventCreate(&event[i]));
    CUDA_CHECK(cudaEventRecord(event[0], dev.state.stream));
    for (int i = 0; i < rounds; i++) {
        run(i % sets);
        CUDA_CHECK(cudaEventRecord(event[i + 1], dev.state.stream));
    }
    CUDA_CHECK(cudaEventSynchronize(event[rounds]));
    for (int i = 0; i < rounds; i++) {
        float span = 0;
        CUDA_CHECK(cudaEventElapsedTime(&span, event[i], event[i + 1]));
        ms[i] = span > 1e-6f ? (double)span : 1e-6;
    }
    for (int i = 0; i <= rounds; i++) CUDA_CHECK(cudaEventDestroy(event[i]));
    qsort(ms, (size_t)rounds, sizeof *ms, by_value);
    Timing t = {ms[rounds / 2], (ms[rounds * 9 / 10] - ms[rounds / 10]) / ms[rounds / 2]};
    return t;
}

/* Warm up, then as many rounds as take some 0.15 s. */
template <class F> static Timing measure(F run, int sets) {
    if (toy) return timing(run, sets, 2);
    Timing t = timing(run, sets, 4);
    double rounds = 150 / t.ms;
    return timing(run, sets, rounds < 9 ? 9 : rounds > ROUNDS ? ROUNDS : (int)rounds);
}

static void report(const char *name, double rate, double bound, double unit, const char *unit_name, Timing t) {
    printf("{\"name\": \"%s\", \"value\": %.5g, \"unit\": \"%s\", \"bound\": %.5g, \"ratio\": %.4g, \"ms\": %.4g, "
           "\"spread\": %.2g}\n",
           name, rate / unit, unit_name, bound / unit, rate / bound, t.ms, t.spread);
    fflush(stdout);
}

template <class F> static void bandwidth(const char *name, double bytes, int sets, F run) {
    Timing t = measure(run, sets);
    report(name, 1e3 * bytes / t.ms, copy_rate, 1e9, "GB/s", t);
}

/* ---- ceilings ---- */

static void bench_ceilings(void) {
    i64 n = toy ? 64 : 8192, bytes = toy ? 4096 : (i64)1 << 30;
    begin(n, n, 1, NO_ATTENTION);
    Reals x = reals(2, n * n), w = reals(2, n * n), y = reals(2, n * n);
    Accums dw = accums(2, n * n, -0.5, 0.5);
    auto forward = [&](int i) { linear_forward(&dev, y.set[i], n, x.set[i], w.set[i], NULL, n, n, n); };
    if (!toy) timing(forward, 2, ROUNDS); /* clocks rise from idle */
    Timing t = measure(forward, 2);
    double flop = 2.0 * (double)n * (double)n * (double)n, peak = device_peak(&place);
    product_rate = 1e3 * flop / t.ms;
    report("product_forward", product_rate, peak, 1e12, "TFLOP/s", t);
    t = measure([&](int i) { linear_backward_weight(&dev, dw.set[i], x.set[i], w.set[i], n, n, n, n); }, 2);
    report("product_backward_weight", 1e3 * flop / t.ms, peak, 1e12, "TFLOP/s", t);
    t = measure([&](int i) { linear_backward_input(&dev, y.set[i], x.set[i], n, w.set[i], n, n, n, 0); }, 2);
    report("product_backward_input", 1e3 * flop / t.ms, peak, 1e12, "TFLOP/s", t);

    begin(1, 1, 1, NO_ATTENTION);
    void *from = numbers(bytes, -0.5, 0.5), *to = device_take(bytes);
    t = measure(
        [&](int) { CUDA_CHECK(cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, dev.state.stream)); },
        1);
    copy_rate = 2e3 * (double)bytes / t.ms;
    report("copy", copy_rate, copy_rate, 1e9, "GB/s", t);
}

/* ---- products: the layers of a step of GPT-2 124M (32 sequences of 1024) and of a 1B Llama (2 of 8192) ---- */

static void bench_products(void) {
    const struct { const char *name; i64 rows, IC, OC; } layers[] = {
        {"gpt2_qkv", 32768, 768, 2304}, {"gpt2_proj", 32768, 768, 768}, {"gpt2_up", 32768, 768, 3072},
        {"gpt2_down", 32768, 3072, 768}, {"gpt2_head", 2560, 768, 50257}, {"llama_qkv", 16384, 2048, 4096},
        {"llama_up", 16384, 2048, 16384}, {"llama_down", 16384, 8192, 2048}, {"llama_head", 4096, 2048, 32000}};
    for (int k = 0; k < (toy ? 1 : COUNT_OF(layers)); k++) {
        i64 rows = toy ? 37 : layers[k].rows, IC = toy ? 72 : layers[k].IC, OC = toy ? 64 : layers[k].OC,
            ld = round_up(OC, 64);
        begin(rows, i64_max(IC, OC), 1, NO_ATTENTION);
        int sets = sets_for(2.0 * (double)(rows * (IC + OC)));
        Reals x = reals(sets, rows * IC), w = reals(sets, OC * IC), y = reals(sets, rows * ld), bias = reals(1, OC);
        Accums dw = accums(sets, OC * IC, -0.5, 0.5);
        double flop = 2.0 * (double)rows * (double)IC * (double)OC;
        char name[64];
        const struct {
            const char *what;
            Timing t;
        } phases[] = {
            {"forward",
             measure([&](int i) { linear_forward(&dev, y.set[i], ld, x.set[i], w.set[i], bias.set[0], rows, IC, OC); },
                     sets)},
            {"backward_input",
             measure([&](int i) { linear_backward_input(&dev, x.set[i], y.set[i], ld, w.set[i], rows, IC, OC, 0); },
                     sets)},
            {"backward_weight",
             measure([&](int i) { linear_backward_weight(&dev, dw.set[i], x.set[i], y.set[i], ld, rows, IC, OC); },
                     sets)}};
        for (int i = 0; i < COUNT_OF(phases); i++) {
            snprintf(name, sizeof name, "%s_%s", layers[k].name, phases[i].what);
            report(name, 1e3 * flop / phases[i].t.ms, product_rate, 1e12, "TFLOP/s", phases[i].t);
        }
    }
}

/* ---- attention: 16K tokens of width 2048, causal; on sm_90 by the kernels of sm_80, too: names that end in _sm80;
   rates under a mask count the pairs that it leaves ---- */

/* lo (L, B) of a mask, and the pairs of a head that it leaves: a window of `window` tokens, documents whose lengths
   take turns between half of `document` and one and a half of it; 0: none. NULL where there is neither. */
static int32_t *mask_take(i64 L, i64 B, i64 window, i64 document, double *pairs) {
    int32_t *host = (int32_t *)host_alloc((size_t)(L * B) * 4), *p = NULL;
    i64 begin = 0, end = document / 2, next = document / 2 * 3;
    *pairs = 0;
    for (i64 t = 0; t < L; t++) {
        if (document && t == end) begin = t, end += next, next = 2 * document - next;
        i64 lo = window ? i64_max(begin, t - window + 1) : begin;
        for (i64 b = 0; b < B; b++) host[t * B + b] = (int32_t)lo, *pairs += (double)(t - lo + 1);
    }
    if (window || document) p = (int32_t *)device_take(L * B * 4), copy_in(&dev, p, host, L * B * 4);
    free(host);
    return p;
}

static void bench_attention_shape(i64 head_dim, i64 L, i64 window, i64 document, const char *suffix) {
    AttentionShape s = {toy ? 2 : 16384 / L, L, L, toy ? 2 : 2048 / head_dim, 0, head_dim};
    s.kv_heads = s.heads;
    TokenMap map = token_map(RING_CONTIGUOUS, L, 1, 0);
    i64 rows = L * s.B * s.heads, n = rows * head_dim;
    double pairs, d = (double)head_dim;
    char name[80];
    begin(L * s.B, s.heads * head_dim, 1, s);
    int32_t *lo = mask_take(L, s.B, window, document, &pairs);
    AttentionCall call = attention_call_within(s, map, map, 0, lo, pairs);
    pairs *= (double)s.heads;
    Reals q = reals(2, n), kv = reals(2, 2 * n), dout = reals(2, n);
    Reals out = reals(2, n), dq = reals(2, n), dkv = reals(2, 2 * n);
    Accums lse = accums(2, rows, 0, 0), delta = accums(2, rows, 0, 0), dq_sum = accums(2, n, 0, 0);
    Timing t = measure(
        [&](int i) { attention_forward(&dev, NULL, out.set[i], lse.set[i], q.set[i], kv.set[i], call); }, 2);
    snprintf(name, sizeof name, "attention_forward_d%lld_L%lld%s", head_dim, L, suffix);
    report(name, 4e3 * pairs * d / t.ms, product_rate, 1e12, "TFLOP/s", t);
    t = measure([&](int i) {
        attention_delta(&dev, delta.set[i], out.set[i], dout.set[i], rows, head_dim);
        attention_backward(&dev, dq_sum.set[i], dq.set[i], NULL, dkv.set[i], q.set[i], kv.set[i], dout.set[i],
                           lse.set[i], delta.set[i], call);
    }, 2);
    snprintf(name, sizeof name, "attention_backward_d%lld_L%lld%s", head_dim, L, suffix);
    report(name, 10e3 * pairs * d / t.ms, product_rate, 1e12, "TFLOP/s", t);
}

static void bench_attention(void) {
    const i64 lengths[] = {2048, 4096, 8192, 16384};
    int wgmma = dev.state.wgmma;
    for (i64 head_dim = 128; head_dim >= 64; head_dim /= 2)
        for (int i = 0; i < (toy ? 1 : COUNT_OF(lengths)); i++) {
            i64 L = toy ? 72 : lengths[i];
            bench_attention_shape(head_dim, L, 0, 0, "");
            if (!wgmma) continue;
            dev.state.wgmma = 0;
            bench_attention_shape(head_dim, L, 0, 0, "_sm80");
            dev.state.wgmma = wgmma;
        }
    for (i64 head_dim = 128; head_dim >= 64; head_dim /= 2) { /* an eighth of the sequence, of the pairs alike */
        i64 L = toy ? 72 : 16384;
        bench_attention_shape(head_dim, L, L / 8, 0, "_window");
        bench_attention_shape(head_dim, L, 0, L / 8, "_documents");
    }
}

/* ---- kernels that move bytes ---- */

static void bench_norm_width(NormKind kind, i64 C, const char *forward, const char *backward) {
    i64 rows = toy ? 37 : ((i64)1 << 26) / C, n = rows * C;
    int sets = sets_for(8.0 * (double)n), layer = kind == NORM_LAYER;
    begin(rows, C, 1, NO_ATTENTION);
    Reals x = reals(sets, n), delta = reals(sets, n), out = reals(sets, n), weight = reals(1, C), bias = reals(1, C);
    Accums mean = accums(1, rows, -0.5, 0.5), rstd = accums(1, rows, 0.5, 1), dweight = accums(1, C, -0.5, 0.5),
           dbias = accums(1, C, -0.5, 0.5);
    accum *mean_p = layer ? mean.set[0] : NULL, *dbias_p = layer ? dbias.set[0] : NULL;
    real *bias_p = layer ? bias.set[0] : NULL;
    bandwidth(forward, 8.0 * (double)n, sets, [&](int i) { /* reads x, delta; writes x, out */
        norm_forward(&dev, norm_call(kind, weight.set[0], bias_p, rows, C, 1e-5), out.set[i], x.set[i], mean_p,
                     rstd.set[0], x.set[i], delta.set[i]);
    });
    bandwidth(backward, 8.0 * (double)n, sets, [&](int i) { /* reads dout, x, dx; writes dx */
        norm_backward(&dev, norm_call(kind, weight.set[0], NULL, rows, C, 1e-5), out.set[i], dweight.set[0], dbias_p,
                      delta.set[i], mean_p, rstd.set[0], x.set[i], 0, rows);
    });
}

static void bench_norm(void) {
    bench_norm_width(NORM_RMS, toy ? 72 : 4096, "norm_rms_forward", "norm_rms_backward");
    bench_norm_width(NORM_LAYER, toy ? 72 : 4096, "norm_layer_forward", "norm_layer_backward");
    bench_norm_width(NORM_RMS, toy ? 80 : 2048, "norm_rms_2048_forward", "norm_rms_2048_backward");
    bench_norm_width(NORM_LAYER, toy ? 80 : 768, "norm_layer_768_forward", "norm_layer_768_backward");
}

static void bench_mlp(void) {
    i64 rows = toy ? 37 : 8192, I = toy ? 72 : 11008, n = rows * I;
    begin(rows, 2 * I, 1, NO_ATTENTION);
    int sets = sets_for(6.0 * (double)n);
    Reals pre = reals(sets, 2 * n), out = reals(sets, n), dpre = reals(sets, 2 * n);
    bandwidth("swiglu_forward", 6.0 * (double)n, sets,
              [&](int i) { swiglu_forward(&dev, out.set[i], pre.set[i], rows, I); });
    bandwidth("swiglu_backward", 12.0 * (double)n, sets,
              [&](int i) { swiglu_backward(&dev, dpre.set[i], out.set[i], pre.set[i], rows, I); });
    bandwidth("gelu_forward", 4.0 * (double)n, sets, [&](int i) { gelu_forward(&dev, out.set[i], pre.set[i], n); });
    bandwidth("gelu_backward", 8.0 * (double)n, sets,
              [&](int i) { gelu_backward(&dev, dpre.set[i], out.set[i], pre.set[i], n); });
    accum *dbias = accums(1, I, -0.5, 0.5).set[0];
    bandwidth("bias_backward", 2.0 * (double)n, sets, [&](int i) { bias_backward(&dev, dbias, out.set[i], rows, I); });
}

/* Rotation and packing for an all-to-all of 8: one sequence, 32 query heads of 128. */
static void bench_rope(void) {
    i64 rows = toy ? 37 : 16384, heads = toy ? 8 : 32, HS = toy ? 16 : 128, parts = 8, n = rows * heads * HS;
    begin(rows, 2 * heads * HS, 1, NO_ATTENTION);
    int sets = sets_for(4.0 * (double)n);
    double *inv_freq = (double *)host_alloc((size_t)HS / 2 * sizeof(double)), table_bytes = 4.0 * (double)(rows * HS);
    for (i64 i = 0; i < HS / 2; i++) inv_freq[i] = pow(10000, -2.0 * (double)i / (double)HS);
    accum *table = accums(1, rows * HS, 0, 0).set[0];
    rope_table(&dev, table, token_map(RING_CONTIGUOUS, rows, 1, 0), inv_freq, 1, HS);
    Reals in = reals(sets, 2 * n), out = reals(sets, 2 * n);
    double q_bytes = 4.0 * (double)n + table_bytes, kv_bytes = 8.0 * (double)n + table_bytes;
    bandwidth("rope_pack_queries", q_bytes, sets,
              [&](int i) { queries_pack(&dev, out.set[i], in.set[i], table, rows, 1, heads, HS, parts); });
    bandwidth("rope_unpack_queries", q_bytes, sets,
              [&](int i) { queries_unpack(&dev, out.set[i], in.set[i], table, rows, 1, heads, HS, parts); });
    bandwidth("rope_pack_kv", kv_bytes, sets,
              [&](int i) { kv_pack(&dev, out.set[i], in.set[i], table, rows, 1, heads, HS, parts); });
    bandwidth("rope_unpack_kv", kv_bytes, sets,
              [&](int i) { kv_unpack(&dev, out.set[i], in.set[i], table, rows, 1, heads, HS, parts); });
    device_finish(&dev);
    free(inv_freq);
}

/* Tokens below V, small ones much more often, as in text; `distinct` counts those that occur. */
static int32_t *tokens_like_text(i64 n, i64 V, i64 *distinct) {
    int32_t *host = (int32_t *)host_alloc((size_t)n * 4), *p = (int32_t *)device_take(n * 4);
    char *seen = (char *)host_alloc((size_t)V);
    *distinct = 0;
    for (i64 i = 0; i < n; i++) {
        double u = uniform();
        host[i] = (int32_t)((double)V * u * u * u);
        *distinct += !seen[host[i]], seen[host[i]] = 1;
    }
    copy_in(&dev, p, host, n * 4);
    free(host), free(seen);
    return p;
}

static void bench_classifier(void) {
    const i64 vocab[] = {32000, 50257};
    for (int k = 0; k < 2; k++) {
        i64 rows = toy ? 5 : 4096, V = toy ? 200 + 57 * k : vocab[k], distinct;
        char name[64];
        begin(rows, 8, V, NO_ATTENTION);
        int sets = sets_for(4.0 * (double)(rows * V));
        i64 ld = round_up(V, 64); /* as the model has them */
        Reals logits = reals(sets, rows * ld);
        int32_t *targets = tokens_like_text(rows, V, &distinct);
        double *loss = (double *)device_take(8);
        zero_fill(&dev, loss, 8);
        snprintf(name, sizeof name, "classifier_%lld", vocab[k]);
        bandwidth(name, 4.0 * (double)(rows * V), sets,
                  [&](int i) { classifier(&dev, loss, logits.set[i], ld, targets, 1, rows, V, 1); });
    }
}

static void bench_embedding(void) {
    i64 T = toy ? 9 : 4096, B = toy ? 3 : 4, C = toy ? 72 : 2048, V = toy ? 100 : 50257, rows = T * B, distinct;
    begin(rows, C, V, NO_ATTENTION);
    int sets = sets_for(4.0 * (double)(rows * C));
    TokenMap map = token_map(RING_CONTIGUOUS, T, 1, 0);
    Reals out = reals(sets, rows * C), wte = reals(sets, V * C), wpe = reals(sets, T * C);
    Accums dwte = accums(sets, V * C, -0.5, 0.5), dwpe = accums(sets, T * C, -0.5, 0.5);
    int32_t *tokens = tokens_like_text(rows, V, &distinct);
    /* elements of the tables; bytes of the stream */
    double read = (double)(C * (distinct + T)), stream = 2.0 * (double)(rows * C);
    bandwidth("embedding_forward", stream + 2 * read, sets, [&](int i) {
        embedding_forward(&dev, out.set[i], tokens, map, wte.set[i], wpe.set[i], B, C);
    });
    bandwidth("embedding_backward", stream + 8 * read, sets, [&](int i) {
        embedding_backward(&dev, dwte.set[i], dwpe.set[i], out.set[i], tokens, map, B, C, V);
    });
}

static void bench_optimizer(void) {
    i64 n = toy ? 1003 : (i64)1 << 26;
    begin(1, 8, 1, NO_ATTENTION);
    Reals param = reals(2, n);
    Accums master = accums(2, n, -0.5, 0.5), m = accums(2, n, -0.5, 0.5), v = accums(2, n, 0, 0.5),
           grad = accums(2, n, -0.5, 0.5);
    double *sum = (double *)device_take(8);
    zero_fill(&dev, sum, 8);
    AdamW a = {1e-4, 0.9, 0.95, 1e-8, 0.1, 1, 10};
    /* reads gradient, master, m, v; writes master, m, v in fp32 and the weights in bf16 */
    bandwidth("adamw", 30.0 * (double)n, 2,
              [&](int i) { adamw(&dev, param.set[i], master.set[i], m.set[i], v.set[i], grad.set[i], n, a); });
    bandwidth("gradient_norm", 4.0 * (double)n, 2, [&](int i) { sum_squares(&dev, sum, grad.set[i], n); });
    bandwidth("convert", 6.0 * (double)n, 2, [&](int i) { convert(&dev, param.set[i], master.set[i], n); });
}

static const struct {
    const char *name;
    void (*run)(void);
} GROUPS[] = {{"products", bench_products}, {"attention", bench_attention}, {"norm", bench_norm}, {"mlp", bench_mlp},
              {"rope", bench_rope}, {"classifier", bench_classifier}, {"embedding", bench_embedding},
              {"optimizer", bench_optimizer}};

int main(int argc, char **argv) {
    int words = 0, l2 = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--toy") == 0) toy = 1;
        else if (argv[i][0] == '-')
            FAIL(EVERYONE, "unknown argument '%s'; --toy, or words that select groups", argv[i]);
        else words++;
    }
    place = device_place(0, 1, 0);
    device_open(&place);
    device_init(&dev, &place, 0);
    CUDA_CHECK(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, place.index));
    l2_bytes = l2;
    bench_ceilings();
    for (int g = 0; g < COUNT_OF(GROUPS); g++) {
        int wanted = words == 0;
        for (int i = 1; i < argc; i++) wanted |= argv[i][0] != '-' && strstr(GROUPS[g].name, argv[i]) != NULL;
        if (wanted) GROUPS[g].run();
    }
    device_finish(&dev);
    while (pooled) CUDA_CHECK(cudaFree(pool[--pooled]));
    device_free(&dev);
    return 0;
}

/* bench_cpu.c - what this machine's cores do at best, and what the kernels get of it: FMA loop,
   products at models' shapes, attention.

   Prints `name value unit` lines for cpu.sh: the median of several rounds each, on all threads, random data. fp32.
   With the word `masks`: only attention under windows and documents against full attention. */
#include "../../kernels/compute.h"

#define ROUNDS 7

static Device dev;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

static real *numbers(i64 n, uint64_t seed) {
    /* huge pages, as the trainer's arena asks for */
    size_t bytes = (size_t)round_up(n * (i64)sizeof(real), (i64)2 << 20);
    real *p = (real *)aligned_alloc((size_t)2 << 20, bytes);
    if (!p) FAIL(THIS_RANK, "out of memory: %lld numbers", n);
    madvise(p, bytes, MADV_HUGEPAGE);
    for (i64 i = 0; i < n; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        p[i] = (real)((double)(seed >> 40) / (double)(1 << 24) - 0.5);
    }
    return p;
}

/* All cores at once: clocks may drop when they all work. */
static double fma_peak(int threads) {
    double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    sum += cpu_core_peak();
    return sum;
}

/* The products of a step: columns in, columns out, how often. The last is the head. */
typedef i64 Shapes[5][3];
static const Shapes GPT2_124M = {{768, 768, 24}, {768, 1536, 12}, {768, 3072, 12}, {3072, 768, 12}, {768, 50257, 1}};
static const Shapes LLAMA_1B = {{2048, 2048, 32},
                                {2048, 2048, 16},
                                {2048, 16384, 16},
                                {8192, 2048, 16},
                                {2048, 32000, 1}};

/* FLOP/s of the products of one step on `rows` tokens: forward, input and weight gradients, layers and head. */
static double products_rate(const Shapes shapes, i64 rows) {
    double seconds = 0, flop = 0;
    for (int s = 0; s < 5; s++) {
        /* the head goes in chunks of rows */
        i64 IC = shapes[s][0], OC = shapes[s][1], n = s == 4 ? i64_min(rows, 256) : rows;
        real *x = numbers(n * IC, 1), *w = numbers(IC * OC, 2), *y = numbers(n * OC, 3);
        accum *dw = (accum *)numbers(IC * OC, 4);
        double times[ROUNDS];
        for (int r = -1; r < ROUNDS; r++) {
            double begin = seconds_now();
            linear_forward(&dev, y, OC, x, w, NULL, n, IC, OC);
            linear_backward_weight(&dev, dw, x, y, OC, n, IC, OC);
            linear_backward_input(&dev, x, y, OC, w, n, IC, OC, 0);
            if (r >= 0) times[r] = seconds_now() - begin;
            for (i64 i = 0; i < n * IC; i++) x[i] = (real)((i * 7919) % 1000) * (real)0.001; /* keep numbers in range */
        }
        double often = (double)shapes[s][2] * (double)rows / (double)n;
        seconds += often * median(times, ROUNDS);
        flop += often * 6.0 * (double)n * (double)IC * (double)OC;
        free(x), free(w), free(y), free(dw);
    }
    return flop / seconds;
}

/* FLOP/s of causal attention, forward and backward: 14 pairs d multiply-adds' worth (4 forward, 10 backward). */
static double attention_rate(i64 T, i64 heads, i64 kv_heads, i64 HS) {
    AttentionShape s = {1, T, T, heads, kv_heads, HS};
    TokenMap map = token_map(RING_CONTIGUOUS, T, 1, 0);
    i64 nq = T * heads * HS, nkv = T * 2 * kv_heads * HS;
    real *q = numbers(nq, 1), *kv = numbers(nkv, 2), *dout = numbers(nq, 3);
    accum *out = (accum *)numbers(nq, 4), *lse = (accum *)numbers(T * heads, 5),
          *delta = (accum *)numbers(T * heads, 6);
    accum *dq = (accum *)numbers(nq, 7), *dkv = (accum *)numbers(nkv, 8);
    double times[ROUNDS];
    for (int r = -1; r < ROUNDS; r++) {
        double begin = seconds_now();
        attention_forward(&dev, out, NULL, lse, q, kv, attention_call(s, map, map, 0));
        attention_delta(&dev, delta, (real *)out, dout, T * heads, HS);
        attention_backward(&dev, dq, NULL, dkv, NULL, q, kv, dout, lse, delta, attention_call(s, map, map, 0));
        if (r >= 0) times[r] = seconds_now() - begin;
    }
    free(q), free(kv), free(dout), free(out), free(lse), free(delta), free(dq), free(dkv);
    return 14.0 * causal_pairs(&map, &map) * (double)(heads * HS) / median(times, ROUNDS);
}

/* Seconds of attention, forward and backward, of 8K tokens that see what `lo` says (NULL: everything before them). */
enum { LONG = 8192, LONG_ROUNDS = 3 };
static double attention_seconds(const int32_t *lo) {
    i64 heads = 2, HS = 64, n = LONG * heads * HS;
    AttentionShape s = {1, LONG, LONG, heads, heads, HS};
    TokenMap map = token_map(RING_CONTIGUOUS, LONG, 1, 0);
    AttentionCall call = attention_call_within(s, map, map, 0, lo, 0);
    real *q = numbers(n, 1), *kv = numbers(2 * n, 2), *dout = numbers(n, 3);
    accum *out = (accum *)numbers(n, 4), *lse = (accum *)numbers(LONG * heads, 5),
          *delta = (accum *)numbers(LONG * heads, 6), *dq = (accum *)numbers(n, 7), *dkv = (accum *)numbers(2 * n, 8);
    double times[LONG_ROUNDS];
    for (int r = -1; r < LONG_ROUNDS; r++) {
        double begin = seconds_now();
        attention_forward(&dev, out, NULL, lse, q, kv, call);
        attention_backward(&dev, dq, NULL, dkv, NULL, q, kv, dout, lse, delta, call);
        if (r >= 0) times[r] = seconds_now() - begin;
    }
    free(q), free(kv), free(dout), free(out), free(lse), free(delta), free(dq), free(dkv);
    return median(times, LONG_ROUNDS);
}

/* How many times as fast as full causal attention: a window of an eighth, and documents of an eighth on average,
   of L/16 and 3 L/16 in turn. */
static void masks_rate(void) {
    static int32_t window[LONG], packed[LONG];
    for (int p = 0; p < LONG; p++) {
        int pair = p / (LONG / 4) * (LONG / 4), within = p - pair;
        window[p] = p < LONG / 8 ? 0 : p - LONG / 8 + 1, packed[p] = pair + (within < LONG / 16 ? 0 : LONG / 16);
    }
    double full = attention_seconds(NULL);
    printf("attention_8192_window_1024 %.2f times\n", full / attention_seconds(window));
    printf("attention_8192_documents_1024 %.2f times\n", full / attention_seconds(packed));
}

int main(int argc, char **argv) {
    DevicePlace place = device_place(0, 1, 0);
    device_open(&place);
    device_init(&dev, &place, 0);
    device_scratch(&dev, numbers(CPU_SCRATCH / (i64)sizeof(real), 9), CPU_SCRATCH);
    if (argc > 1 && strcmp(argv[1], "masks") == 0) return masks_rate(), 0;
    printf("threads %d -\n", place.threads);
    printf("fma_peak %.1f GFLOP/s\n", fma_peak(place.threads) / 1e9);
    printf("products_256 %.1f GFLOP/s\n", products_rate(GPT2_124M, 256) / 1e9);
    printf("products_1024 %.1f GFLOP/s\n", products_rate(GPT2_124M, 1024) / 1e9);
    printf("products_llama_1024 %.1f GFLOP/s\n", products_rate(LLAMA_1B, 1024) / 1e9);
    printf("attention_1024_d64 %.1f GFLOP/s\n", attention_rate(1024, 12, 12, 64) / 1e9);
    printf("attention_4096_d64 %.1f GFLOP/s\n", attention_rate(4096, 12, 12, 64) / 1e9);
    printf("attention_4096_d128_gqa %.1f GFLOP/s\n", attention_rate(4096, 8, 2, 128) / 1e9);
    masks_rate();
    return 0;
}

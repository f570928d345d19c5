/* classifier.cuh - softmax cross-entropy of rows of logits: loss, and the gradient in the logits' own place.

   A block to a row. First pass, by threads: the largest logit so far and the sum of exp(logit - largest), which is
   rescaled when a larger one comes; warps and block join the pairs in order. Second pass, backwards through the row, so
   that what was read last is still in L1 and the rest in L2: dlogit = scale (exp(logit - largest) / sum - onehot).

   Rows of an odd V that are neighbours begin anywhere: up to 7 logits to the first multiple of 16 bytes
   and up to 7 after the last go one by one. The rows' losses wait in scratch and are added by one
   block, in a fixed order, in double.
   Cost: one read and one write of memory, the second read is served by the caches (a row of V = 50257 is 100 KB).    */
#ifndef ODYSSEUS_CUDA_CLASSIFIER_CUH
#define ODYSSEUS_CUDA_CLASSIFIER_CUH

#define LOG2_E 1.44269504088896340736f

/* A softmax under way: every exponential is relative to `top`. */
typedef struct {
    float top, sum;
} Softmax;

__device__ __forceinline__ Softmax softmax_join(Softmax a, Softmax b) {
    Softmax s;
    s.top = fmaxf(a.top, b.top);
    s.sum = a.sum * fast_exp2((a.top - s.top) * LOG2_E) + b.sum * fast_exp2((b.top - s.top) * LOG2_E);
    return s;
}

__device__ __forceinline__ void softmax_add(Softmax *s, float x) {
    /* -inf counts nothing, a NaN stays one */
    Softmax one = {x > -3e38f ? x : -3e38f, x > -INFINITY ? 1.0f : x == x ? 0.0f : x};
    *s = softmax_join(*s, one);
}

/* Three blocks of 512 on a multiprocessor, each in another of its passes, keep memory busy: on an H200 0.76 of a copy's
   rate where one block of 1024, whose unrolled loops fill the registers, gets 0.45 to 0.55. */
template <int THREADS>
__global__ void __launch_bounds__(THREADS, 1536 / THREADS)
    classifier_kernel(double *losses, real *logits, i64 apart, const int32_t *targets, accum scale, i64 V,
                      int backward) {
    constexpr int WARPS = THREADS / WARP;
    SHARED(float, tops, WARPS);
    SHARED(float, sums, WARPS);
    i64 row = blockIdx.x;
    int t = (int)threadIdx.x, target = targets[row];
    real *x = logits + row * apart;
    i64 head = min((i64)((16 - (uintptr_t)x % 16) % 16 / sizeof(real)), V), chunks = (V - head) / 8,
        tail = head + chunks * 8;
    if (target < 0) {
        if (t == 0) losses[row] = 0;
        if (!backward) return;
        float zero[8] = {0};
        for (i64 i = t; i < chunks; i += THREADS) store_real<8>(x + head + i * 8, zero, 8);
        if (t < head) x[t] = bf16_round(0);
        if (tail + t < V) x[tail + t] = bf16_round(0);
        return;
    }
    float wanted = bf16_float(x[target]); /* before anyone writes: there is a barrier below */
    Softmax s = {-3e38f, 0};
    if (t < head) softmax_add(&s, bf16_float(x[t]));
    if (tail + t < V) softmax_add(&s, bf16_float(x[tail + t]));
    UNROLL_4
    for (i64 i = t; i < chunks; i += THREADS) {
        float v[8];
        load_real<8>(v, x + head + i * 8, 8);
        float top = s.top, sum = 0;
        UNROLL
        for (int e = 0; e < 8; e++) top = fmaxf(top, v[e]);
        UNROLL
        for (int e = 0; e < 8; e++) sum += fast_exp2((v[e] - top) * LOG2_E);
        s.sum = s.sum * fast_exp2((s.top - top) * LOG2_E) + sum;
        s.top = top;
    }
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) {
        Softmax other;
        other.top = __shfl_xor_sync(0xffffffffu, s.top, step);
        other.sum = __shfl_xor_sync(0xffffffffu, s.sum, step);
        s = softmax_join(s, other);
    }
    if (t % WARP == 0) tops[t / WARP] = s.top, sums[t / WARP] = s.sum;
    __syncthreads();
    float top = tops[0], sum = 0;
    for (int w = 1; w < WARPS; w++) top = fmaxf(top, tops[w]);
    for (int w = 0; w < WARPS; w++) sum += sums[w] * fast_exp2((tops[w] - top) * LOG2_E);
    if (t == 0) losses[row] = log((double)sum) + ((double)top - (double)wanted);
    if (!backward) return;
    float factor = scale / sum;
    if (t < head) x[t] = bf16_round(factor * fast_exp2((bf16_float(x[t]) - top) * LOG2_E) - (t == target ? scale : 0));
    if (tail + t < V)
        x[tail + t] =
            bf16_round(factor * fast_exp2((bf16_float(x[tail + t]) - top) * LOG2_E) - (tail + t == target ? scale : 0));
    i64 mine = (chunks - t + THREADS - 1) / THREADS; /* chunks of this thread */
    UNROLL_4
    for (i64 k = mine - 1; k >= 0; k--) {
        i64 at = head + (k * THREADS + t) * 8;
        float v[8];
        load_real<8>(v, x + at, 8);
        UNROLL
        for (int e = 0; e < 8; e++) v[e] = factor * fast_exp2((v[e] - top) * LOG2_E) - (at + e == target ? scale : 0);
        store_real<8>(x + at, v, 8);
    }
}

static inline void classifier_run(Device *dev, double *loss_sum, real *logits, i64 ld, const int32_t *targets,
                                  accum scale, i64 rows, i64 V, int backward) {
    if (rows == 0) return;
    if (V < 1 || !aligned_to(logits, sizeof(real))) FAIL(THIS_RANK, "classifier: a vocabulary of %lld is not taken", V);
    double *losses = (double *)scratch_take(dev, classifier_scratch_bytes(rows), "classifier");
    if (V > 8192)
        LAUNCH(classifier_kernel<512>, blocks_for(rows, 1), 512, 0, dev->state.stream, losses, logits, ld, targets,
               scale, V, backward);
    else
        LAUNCH(classifier_kernel<BLOCK>, blocks_for(rows, 1), BLOCK, 0, dev->state.stream, losses, logits, ld, targets,
               scale, V, backward);
    LAUNCH(doubles_sum_kernel, 1, 1024, 0, dev->state.stream, loss_sum, losses, rows);
}

#endif

/* optimizer.cuh - the gradient's norm and AdamW, on the flat shard that this rank owns.

   sum_squares   SQUARE_BLOCKS blocks whatever the GPU, each strides over g by fours; threads, warps and
                 blocks join in order, in double
   adamw         m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2,  mhat = m/(1-b1^t),  vhat = v/(1-b2^t)
                 master -= lr (mhat / (sqrt(vhat) + eps) + weight_decay master)
                 param = master rounded, in the same pass
                 Loshchilov, Hutter 2019, arXiv:1711.05101. Cost: seven passes over memory in fp32, one in bf16.      */
#ifndef ODYSSEUS_CUDA_OPTIMIZER_CUH
#define ODYSSEUS_CUDA_OPTIMIZER_CUH

static constexpr int SQUARE_THREADS = 256;

/* W is how g is read; a thread's elements, and so the order of the sum, are the same for both. */
template <int W>
__global__ void __launch_bounds__(SQUARE_THREADS) sum_squares_kernel(double *partial, const accum *g, i64 n) {
    SHARED(double, joined, SQUARE_THREADS / WARP);
    double sum = 0;
    i64 stride = (i64)gridDim.x * SQUARE_THREADS * 4;
    UNROLL_4
    for (i64 i = grid_thread() * 4; i < n; i += stride) {
        float x[4];
        if constexpr (W == 4) load_accum<4>(x, g + i, n - i);
        else {
            UNROLL
            for (int e = 0; e < 4; e++) x[e] = i + e < n ? g[i + e] : 0;
        }
        UNROLL
        for (int e = 0; e < 4; e++) sum += (double)x[e] * (double)x[e];
    }
    sum = warps_sum<SQUARE_THREADS / WARP>(sum, joined);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static inline void sum_squares_run(Device *dev, double *out, const accum *g, i64 n) {
    if (n == 0) return;
    double *partial = (double *)scratch_take(dev, optimizer_scratch_bytes(), "sum_squares");
    i64 blocks = i64_min(SQUARE_BLOCKS, ceil_div(n, 4 * SQUARE_THREADS));
    if (aligned_to(g, 16))
        LAUNCH(sum_squares_kernel<4>, (unsigned)blocks, SQUARE_THREADS, 0, dev->state.stream, partial, g, n);
    else LAUNCH(sum_squares_kernel<1>, (unsigned)blocks, SQUARE_THREADS, 0, dev->state.stream, partial, g, n);
    LAUNCH(doubles_sum_kernel, 1, 1024, 0, dev->state.stream, out, partial, blocks);
}

/* What depends on the step alone, worked out once on the host in double: 1 - beta2^1 = 0.05
   in float loses three digits. */
typedef struct {
    float scale, beta1, beta2, rest1, rest2, m_scale, v_scale, eps, lr, decay;
} AdamWFactors;

template <int W>
__global__ void __launch_bounds__(BLOCK)
    adamw_kernel(real *param, accum *master, accum *m, accum *v, const accum *grad, i64 n, AdamWFactors f) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float g[W], mi[W], vi[W], w[W];
    load_accum<W>(g, grad + i, n - i);
    load_accum<W>(mi, m + i, n - i);
    load_accum<W>(vi, v + i, n - i);
    load_accum<W>(w, master + i, n - i);
    UNROLL
    for (int e = 0; e < W; e++) {
        float s = f.scale * g[e];
        mi[e] = f.beta1 * mi[e] + f.rest1 * s;
        vi[e] = f.beta2 * vi[e] + f.rest2 * s * s;
        w[e] -= f.lr * (f.m_scale * mi[e] / (sqrtf(f.v_scale * vi[e]) + f.eps) + f.decay * w[e]);
    }
    store_accum<W>(m + i, mi, n - i);
    store_accum<W>(v + i, vi, n - i);
    store_accum<W>(master + i, w, n - i);
    store_real<W>(param + i, w, n - i);
}

static inline void adamw_run(Device *dev, real *param, accum *master, accum *m, accum *v, const accum *grad, i64 n,
                             AdamW a) {
    if (n == 0) return;
    AdamWFactors f;
    f.scale = (float)a.grad_scale, f.beta1 = (float)a.beta1, f.beta2 = (float)a.beta2, f.eps = (float)a.eps;
    f.rest1 = (float)(1 - a.beta1), f.rest2 = (float)(1 - a.beta2);
    f.m_scale = (float)(1 / (1 - pow(a.beta1, (double)a.step))),
    f.v_scale = (float)(1 / (1 - pow(a.beta2, (double)a.step)));
    f.lr = (float)a.lr, f.decay = (float)a.weight_decay;
    if (aligned_to(param, 8) && aligned_to(master, 16) && aligned_to(m, 16) && aligned_to(v, 16) &&
        aligned_to(grad, 16))
        LAUNCH(adamw_kernel<4>, blocks_for(n, 4 * BLOCK), BLOCK, 0, dev->state.stream, param, master, m, v, grad, n, f);
    else LAUNCH(adamw_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, dev->state.stream, param, master, m, v, grad, n, f);
}

#endif

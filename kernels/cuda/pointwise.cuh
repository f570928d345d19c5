/* pointwise.cuh - operations without neighbours: activations, biases, casts and the sum of received parts.

   GELU's tanh form is a sigmoid in disguise, (1 + tanh u)/2 = 1/(1 + e^-2u), so both activations share sigmoid_pair:

     gelu(x) = x s(2u)     2u = 2 sqrt(2/pi) (x + 0.044715 x^3)     gelu' = s + x s (1-s) (2u)'
     silu(x) = x s(x)                                               silu' = s (1 + x (1-s))

   A thread takes eight neighbouring bf16 (four floats) in one access, computes in fp32 and rounds
   once; a block is short, so many loads are under way. Where pointers or widths are not multiples of
   16 bytes a thread takes one element.
   Hendrycks, Gimpel 2016, arXiv:1606.08415; Shazeer 2020, arXiv:2002.05202.
   Cost: bound by memory, each buffer is passed over once.                                                            */
#ifndef ODYSSEUS_CUDA_POINTWISE_CUH
#define ODYSSEUS_CUDA_POINTWISE_CUH

/* ---- activations ---- */

/* s = 1/(1 + e^-x) and its complement 1 - s without cancellation. e^-x is kept finite: 80 is far
   past where either is exact. */
__device__ __forceinline__ float sigmoid_pair(float x, float *complement) {
    float e = __expf(fminf(-x, 80.0f)), s = __fdividef(1.0f, 1.0f + e);
    if (x != x) e = x; /* fminf drops a NaN */
    *complement = e * s;
    return x != x ? x : s;
}

#define GELU_SCALE 1.59576912160573071176f /* 2 sqrt(2/pi) */
#define GELU_CUBIC 0.044715f

template <int W> __global__ void __launch_bounds__(BLOCK) gelu_forward_kernel(real *out, const real *pre, i64 n) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float x[W], y[W];
    load_real<W>(x, pre + i, n - i);
    UNROLL
    for (int e = 0; e < W; e++) {
        float complement;
        y[e] = x[e] * sigmoid_pair(GELU_SCALE * (x[e] + GELU_CUBIC * x[e] * x[e] * x[e]), &complement);
    }
    store_real<W>(out + i, y, n - i);
}

template <int W>
__global__ void __launch_bounds__(BLOCK) gelu_backward_kernel(real *dpre, real *act, const real *pre, i64 n) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float x[W], d[W];
    load_real<W>(x, pre + i, n - i);
    load_real<W>(d, act + i, n - i);
    UNROLL
    for (int e = 0; e < W; e++) {
        float complement, s = sigmoid_pair(GELU_SCALE * (x[e] + GELU_CUBIC * x[e] * x[e] * x[e]), &complement);
        float slope = GELU_SCALE * (1.0f + 3.0f * GELU_CUBIC * x[e] * x[e]);
        d[e] *= s + x[e] * s * complement * slope;
        x[e] *= s;
    }
    store_real<W>(dpre + i, d, n - i);
    store_real<W>(act + i, x, n - i);
}

static inline void gelu_forward_run(Device *dev, real *out, const real *pre, i64 n) {
    if (n == 0) return;
    if (aligned_to(out, 16) && aligned_to(pre, 16))
        LAUNCH(gelu_forward_kernel<8>, blocks_for(n, 8 * BLOCK), BLOCK, 0, dev->state.stream, out, pre, n);
    else LAUNCH(gelu_forward_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, dev->state.stream, out, pre, n);
}

static inline void gelu_backward_run(Device *dev, real *dpre, real *act, const real *pre, i64 n) {
    if (n == 0) return;
    if (aligned_to(dpre, 16) && aligned_to(act, 16) && aligned_to(pre, 16))
        LAUNCH(gelu_backward_kernel<8>, blocks_for(n, 8 * BLOCK), BLOCK, 0, dev->state.stream, dpre, act, pre, n);
    else LAUNCH(gelu_backward_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, dev->state.stream, dpre, act, pre, n);
}

/* One item: W neighbours of a row of I. pre and dpre hold gate then up. */
template <int W>
__global__ void __launch_bounds__(BLOCK) swiglu_forward_kernel(real *out, const real *pre, i64 rows, i64 I) {
    i64 i = grid_thread() * W;
    if (i >= rows * I) return;
    i64 r = quotient(i / W, I / W); /* W divides I */
    float gate[W], up[W];
    load_real<W>(gate, pre + i + r * I, W);
    load_real<W>(up, pre + i + (r + 1) * I, W);
    UNROLL
    for (int e = 0; e < W; e++) {
        float complement;
        up[e] *= gate[e] * sigmoid_pair(gate[e], &complement);
    }
    store_real<W>(out + i, up, W);
}

template <int W>
__global__ void __launch_bounds__(BLOCK)
    swiglu_backward_kernel(real *dpre, real *act, const real *pre, i64 rows, i64 I) {
    i64 i = grid_thread() * W;
    if (i >= rows * I) return;
    i64 r = quotient(i / W, I / W);
    float gate[W], up[W], d[W];
    load_real<W>(gate, pre + i + r * I, W);
    load_real<W>(up, pre + i + (r + 1) * I, W);
    load_real<W>(d, act + i, W);
    UNROLL
    for (int e = 0; e < W; e++) {
        float complement, s = sigmoid_pair(gate[e], &complement), g = gate[e], a = up[e] * (g * s);
        gate[e] = d[e] * up[e] * s * (1.0f + g * complement);
        up[e] = d[e] * g * s;
        d[e] = a;
    }
    store_real<W>(act + i, d, W);
    store_real<W>(dpre + i + r * I, gate, W);
    store_real<W>(dpre + i + (r + 1) * I, up, W);
}

static inline void swiglu_forward_run(Device *dev, real *out, const real *pre, i64 rows, i64 I) {
    if (rows * I == 0) return;
    if (I % 8 == 0 && aligned_to(out, 16) && aligned_to(pre, 16))
        LAUNCH(swiglu_forward_kernel<8>, blocks_for(rows * I, 8 * BLOCK), BLOCK, 0, dev->state.stream, out, pre, rows,
               I);
    else LAUNCH(swiglu_forward_kernel<1>, blocks_for(rows * I, BLOCK), BLOCK, 0, dev->state.stream, out, pre, rows, I);
}

static inline void swiglu_backward_run(Device *dev, real *dpre, real *act, const real *pre, i64 rows, i64 I) {
    if (rows * I == 0) return;
    if (I % 8 == 0 && aligned_to(dpre, 16) && aligned_to(act, 16) && aligned_to(pre, 16))
        LAUNCH(swiglu_backward_kernel<8>, blocks_for(rows * I, 8 * BLOCK), BLOCK, 0, dev->state.stream, dpre, act, pre,
               rows, I);
    else
        LAUNCH(swiglu_backward_kernel<1>, blocks_for(rows * I, BLOCK), BLOCK, 0, dev->state.stream, dpre, act, pre,
               rows, I);
}

/* ---- bias ---- */

template <int W>
__global__ void __launch_bounds__(BLOCK) bias_add_kernel(real *out, const real *bias, i64 rows, i64 C) {
    i64 i = grid_thread() * W;
    if (i >= rows * C) return;
    i64 c = i - quotient(i / W, C / W) * C;
    float x[W], b[W];
    load_real<W>(x, out + i, W);
    load_real<W>(b, bias + c, W);
    UNROLL
    for (int e = 0; e < W; e++) x[e] += b[e];
    store_real<W>(out + i, x, W);
}

static inline void bias_add_run(Device *dev, real *out, const real *bias, i64 rows, i64 C) {
    if (rows * C == 0) return;
    if (C % 8 == 0 && aligned_to(out, 16) && aligned_to(bias, 16))
        LAUNCH(bias_add_kernel<8>, blocks_for(rows * C, 8 * BLOCK), BLOCK, 0, dev->state.stream, out, bias, rows, C);
    else LAUNCH(bias_add_kernel<1>, blocks_for(rows * C, BLOCK), BLOCK, 0, dev->state.stream, out, bias, rows, C);
}

static inline void bias_backward_run(Device *dev, accum *dbias, const real *dout, i64 rows, i64 C) {
    if (rows * C == 0) return;
    columns_run<COLUMNS_PLAIN>(dev, dbias, NULL, dout, NULL, NULL, NULL, rows, C);
}

/* ---- flat buffers ---- */

static inline void zero_fill_run(Device *dev, void *dst, i64 bytes) {
    if (bytes) CUDA_CHECK(cudaMemsetAsync(dst, 0, (size_t)bytes, dev->state.stream));
}

template <int W> __global__ void __launch_bounds__(BLOCK) convert_kernel(real *dst, const accum *src, i64 n) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float x[W];
    load_accum<W>(x, src + i, n - i);
    store_real<W>(dst + i, x, n - i);
}

static inline void convert_run(Device *dev, real *dst, const accum *src, i64 n) {
    if (n == 0) return;
    if (aligned_to(dst, 8) && aligned_to(src, 16))
        LAUNCH(convert_kernel<4>, blocks_for(n, 4 * BLOCK), BLOCK, 0, dev->state.stream, dst, src, n);
    else LAUNCH(convert_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, dev->state.stream, dst, src, n);
}

/* bf16 parts are summed in fp32, with dst where it is added to, and rounded once. */
template <int W>
__global__ void __launch_bounds__(BLOCK)
    sum_parts_real_kernel(real *dst, const real *parts, i64 n_parts, i64 stride, i64 n, int add) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float sum[W] = {0}, x[W];
    UNROLL_4
    for (i64 p = 0; p < n_parts; p++) {
        load_real<W>(x, parts + p * stride + i, n - i);
        UNROLL
        for (int e = 0; e < W; e++) sum[e] += x[e];
    }
    if (add) {
        load_real<W>(x, dst + i, n - i);
        UNROLL
        for (int e = 0; e < W; e++) sum[e] += x[e];
    }
    store_real<W>(dst + i, sum, n - i);
}

template <int W>
__global__ void __launch_bounds__(BLOCK)
    sum_parts_accum_kernel(accum *dst, const accum *parts, i64 n_parts, i64 stride, i64 n, int add) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float sum[W] = {0}, x[W];
    UNROLL_4
    for (i64 p = 0; p < n_parts; p++) {
        load_accum<W>(x, parts + p * stride + i, n - i);
        UNROLL
        for (int e = 0; e < W; e++) sum[e] += x[e];
    }
    if (add) {
        load_accum<W>(x, dst + i, n - i);
        UNROLL
        for (int e = 0; e < W; e++) sum[e] += x[e];
    }
    store_accum<W>(dst + i, sum, n - i);
}

__global__ void __launch_bounds__(BLOCK)
    sum_parts_f64_kernel(double *dst, const double *parts, i64 n_parts, i64 stride, i64 n, int add) {
    i64 i = grid_thread();
    if (i >= n) return;
    double sum = 0;
    for (i64 p = 0; p < n_parts; p++) sum += parts[p * stride + i];
    dst[i] = add ? dst[i] + sum : sum;
}

/* dst (accum) += parts (real) */
template <int W>
__global__ void __launch_bounds__(BLOCK)
    add_parts_kernel(accum *dst, const real *parts, i64 n_parts, i64 stride, i64 n) {
    i64 i = grid_thread() * W;
    if (i >= n) return;
    float sum[W] = {0}, x[W];
    UNROLL_4
    for (i64 p = 0; p < n_parts; p++) {
        load_real<W>(x, parts + p * stride + i, n - i);
        UNROLL
        for (int e = 0; e < W; e++) sum[e] += x[e];
    }
    UNROLL
    for (int e = 0; e < W && i + e < n; e++) dst[i + e] += sum[e];
}

static inline void add_parts_run(Device *dev, accum *dst, const real *parts, i64 n_parts, i64 stride, i64 n) {
    if (n == 0) return;
    cudaStream_t stream = dev->state.stream;
    int vectors = aligned_to(parts, 16) && stride * (i64)sizeof(real) % 16 == 0;
    if (vectors)
        LAUNCH(add_parts_kernel<8>, blocks_for(n, 8 * BLOCK), BLOCK, 0, stream, dst, parts, n_parts, stride, n);
    else LAUNCH(add_parts_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, stream, dst, parts, n_parts, stride, n);
}

static inline void sum_parts_run(Device *dev, void *dst, const void *parts, i64 n_parts, i64 stride, i64 n, Dtype type,
                                 int add) {
    if (n == 0) return;
    cudaStream_t stream = dev->state.stream;
    int vectors = aligned_to(dst, 16) && aligned_to(parts, 16) && stride * dtype_size(type) % 16 == 0;
    if (type == DTYPE_F64) {
        LAUNCH(sum_parts_f64_kernel, blocks_for(n, BLOCK), BLOCK, 0, stream, (double *)dst, (const double *)parts,
               n_parts, stride, n, add);
    } else if (type == DTYPE_ACCUM) {
        accum *to = (accum *)dst;
        const accum *from = (const accum *)parts;
        if (vectors)
            LAUNCH(sum_parts_accum_kernel<4>, blocks_for(n, 4 * BLOCK), BLOCK, 0, stream, to, from, n_parts, stride, n,
                   add);
        else
            LAUNCH(sum_parts_accum_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, stream, to, from, n_parts, stride, n,
                   add);
    } else {
        real *to = (real *)dst;
        const real *from = (const real *)parts;
        if (vectors)
            LAUNCH(sum_parts_real_kernel<8>, blocks_for(n, 8 * BLOCK), BLOCK, 0, stream, to, from, n_parts, stride, n,
                   add);
        else
            LAUNCH(sum_parts_real_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, stream, to, from, n_parts, stride, n, add);
    }
}

#endif

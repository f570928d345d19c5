/* norm.cuh - LayerNorm and RMSNorm, each with the residual add in front of it.

   forward    a + delta -> x (kept) -> mean, rstd (kept) -> out   a row is read once and stays in registers, in bf16
   recompute  x, mean, rstd -> out                                the same function of an element, so the same bits
   backward   n = (x - mean) rstd,  g = dout weight
              dx      += rstd (g - mean_c(g) - n mean_c(g n))     RMSNorm has no mean_c(g) and mean = 0
              dweight += sum_r dout n,  dbias += sum_r dout       in the same pass

   forward    a group of WARPS warps to a row, K chunks of 8 columns to a thread; (WARPS, K) is the smallest that
              holds C
   backward   blocks stride over the rows; a thread meets the same columns in each, keeps their sums in
              registers, and at the end the block's sums go to scratch (blocks, 2, C), which columns_add_kernel
              adds in the order of the blocks
   fallback   C not a multiple of 8, or too wide for registers: a block to a row, which is read again for each pass

   Statistics are of x as it is kept, rounded to bf16; the variance is taken around the mean.
   Ba et al. 2016, arXiv:1607.06450; Zhang, Sennrich 2019, arXiv:1910.07467.
   Layouts: x, out, dout (rows, C); mean, rstd (rows). Cost: one pass over memory.                                    */
#ifndef ODYSSEUS_CUDA_NORM_CUH
#define ODYSSEUS_CUDA_NORM_CUH

/* out = (x - mean) rstd weight + bias. Multiply-adds are spelled out: forward and recompute must
   not be contracted differently. */
__device__ __forceinline__ float norm_value(float x, float mean, float rstd, float weight, float bias) {
    return fmaf((x - mean) * rstd, weight, bias);
}

/* ---- forward ---- */

template <int KIND, int WARPS, int K>
__global__ void __launch_bounds__((WARPS < 4 ? 4 : WARPS) * WARP)
    norm_forward_kernel(real *out, real *sum, accum *mean, accum *rstd, const real *a, const real *delta,
                        const real *weight, const real *bias, i64 rows, int C, float eps) {
    constexpr int GROUPS = WARPS < 4 ? 4 / WARPS : 1, THREADS = WARPS * WARP;
    static_assert(WARPS == 1 || GROUPS == 1, "a group that leaves early must not leave others at a barrier");
    SHARED(float, joined, 2 * WARPS);
    int t = (int)threadIdx.x % THREADS;
    i64 row = (i64)blockIdx.x * GROUPS + threadIdx.x / THREADS;
    if (row >= rows) return;
    bf16x8 x[K], w[K], b[K];
    float v[8], total = 0, squares = 0;
    UNROLL
    for (int k = 0; k < K; k++) {
        int c = (k * THREADS + t) * 8;
        if (c < C) x[k] = *(const bf16x8 *)(a + row * C + c);
    }
    if (delta) {
        bf16x8 d[K];
        UNROLL
        for (int k = 0; k < K; k++) {
            int c = (k * THREADS + t) * 8;
            if (c < C) d[k] = *(const bf16x8 *)(delta + row * C + c);
        }
        UNROLL
        for (int k = 0; k < K; k++) {
            int c = (k * THREADS + t) * 8;
            if (c >= C) continue;
            float u[8];
            widen(v, x[k]);
            widen(u, d[k]);
            UNROLL
            for (int e = 0; e < 8; e++) v[e] += u[e];
            x[k] = narrow(v);
            *(bf16x8 *)(sum + row * C + c) = x[k];
        }
    }
    UNROLL
    for (int k = 0; k < K; k++) { /* wanted last, asked for now */
        int c = (k * THREADS + t) * 8;
        if (c >= C) continue;
        w[k] = *(const bf16x8 *)(weight + c);
        if (KIND == NORM_LAYER) b[k] = *(const bf16x8 *)(bias + c);
    }
    float m = 0;
    if (KIND == NORM_LAYER) {
        UNROLL
        for (int k = 0; k < K; k++) {
            if ((k * THREADS + t) * 8 >= C) continue;
            widen(v, x[k]);
            UNROLL
            for (int e = 0; e < 8; e++) total += v[e];
        }
        m = warps_sum<WARPS>(total, joined) / (float)C;
    }
    UNROLL
    for (int k = 0; k < K; k++) {
        if ((k * THREADS + t) * 8 >= C) continue;
        widen(v, x[k]);
        UNROLL
        for (int e = 0; e < 8; e++) squares = fmaf(v[e] - m, v[e] - m, squares);
    }
    float s = 1.0f / sqrtf(warps_sum<WARPS>(squares, joined + WARPS) / (float)C + eps);
    if (t == 0) {
        rstd[row] = s;
        if (KIND == NORM_LAYER) mean[row] = m;
    }
    UNROLL
    for (int k = 0; k < K; k++) {
        int c = (k * THREADS + t) * 8;
        if (c >= C) continue;
        float wv[8], bv[8] = {0};
        widen(v, x[k]);
        widen(wv, w[k]);
        if (KIND == NORM_LAYER) widen(bv, b[k]);
        UNROLL
        for (int e = 0; e < 8; e++) v[e] = norm_value(v[e], m, s, wv[e], bv[e]);
        *(bf16x8 *)(out + row * C + c) = narrow(v);
    }
}

/* Any C: the row is read again, by the thread that wrote it. */
template <int KIND>
__global__ void __launch_bounds__(BLOCK)
    norm_forward_any_kernel(real *out, real *sum, accum *mean, accum *rstd, const real *a, const real *delta,
                            const real *weight, const real *bias, i64 C, float eps) {
    SHARED(float, joined, 2 * (BLOCK / WARP));
    i64 row = blockIdx.x;
    const real *x = a + row * C;
    float total = 0, squares = 0, m = 0;
    if (delta) {
        for (i64 c = threadIdx.x; c < C; c += BLOCK)
            sum[row * C + c] = bf16_round(bf16_float(x[c]) + bf16_float(delta[row * C + c]));
        x = sum + row * C;
    }
    if (KIND == NORM_LAYER) {
        for (i64 c = threadIdx.x; c < C; c += BLOCK) total += bf16_float(x[c]);
        m = warps_sum<BLOCK / WARP>(total, joined) / (float)C;
    }
    for (i64 c = threadIdx.x; c < C; c += BLOCK) squares = fmaf(bf16_float(x[c]) - m, bf16_float(x[c]) - m, squares);
    float s = 1.0f / sqrtf(warps_sum<BLOCK / WARP>(squares, joined + BLOCK / WARP) / (float)C + eps);
    if (threadIdx.x == 0) {
        rstd[row] = s;
        if (KIND == NORM_LAYER) mean[row] = m;
    }
    for (i64 c = threadIdx.x; c < C; c += BLOCK)
        out[row * C + c] = bf16_round(
            norm_value(bf16_float(x[c]), m, s, bf16_float(weight[c]), KIND == NORM_LAYER ? bf16_float(bias[c]) : 0));
}

template <int KIND, int WARPS, int K>
static inline void norm_forward_launch(Device *dev, NormCall n, real *out, real *sum, accum *mean, accum *rstd,
                                       const real *a, const real *delta) {
    int width = (int)n.C;
    float small = (float)n.eps;
    LAUNCH((norm_forward_kernel<KIND, WARPS, K>), blocks_for(n.rows, WARPS < 4 ? 4 / WARPS : 1),
           (WARPS < 4 ? 4 : WARPS) * WARP, 0, dev->state.stream, out, sum, mean, rstd, a, delta, n.weight, n.bias,
           n.rows, width, small);
}

template <int KIND>
static inline void norm_forward_kind(Device *dev, NormCall n, real *out, real *sum, accum *mean, accum *rstd,
                                     const real *a, const real *delta) {
    i64 C = n.C;
    int vectors = C % 8 == 0 && aligned_to(out, 16) && aligned_to(a, 16) && aligned_to(n.weight, 16) &&
                  aligned_to(n.bias, 16) && (!delta || (aligned_to(delta, 16) && aligned_to(sum, 16)));
    if (!vectors || C > NORM_WIDEST_FORWARD) {
        float small = (float)n.eps;
        LAUNCH(norm_forward_any_kernel<KIND>, blocks_for(n.rows, 1), BLOCK, 0, dev->state.stream, out, sum, mean, rstd,
               a, delta, n.weight, n.bias, C, small);
    } else if (C <= 256) norm_forward_launch<KIND, 1, 1>(dev, n, out, sum, mean, rstd, a, delta);
    else if (C <= 512) norm_forward_launch<KIND, 1, 2>(dev, n, out, sum, mean, rstd, a, delta);
    else if (C <= 768) norm_forward_launch<KIND, 1, 3>(dev, n, out, sum, mean, rstd, a, delta);
    else if (C <= 1024) norm_forward_launch<KIND, 1, 4>(dev, n, out, sum, mean, rstd, a, delta);
    else if (C <= 2048) norm_forward_launch<KIND, 4, 2>(dev, n, out, sum, mean, rstd, a, delta);
    else if (C <= 4096) norm_forward_launch<KIND, 4, 4>(dev, n, out, sum, mean, rstd, a, delta);
    else if (C <= 8192) norm_forward_launch<KIND, 16, 2>(dev, n, out, sum, mean, rstd, a, delta);
    else norm_forward_launch<KIND, 16, 4>(dev, n, out, sum, mean, rstd, a, delta);
}

static inline void norm_forward_run(Device *dev, NormCall n, real *out, real *sum, accum *mean, accum *rstd,
                                    const real *a, const real *delta) {
    if (n.rows == 0) return;
    if (n.kind == NORM_LAYER && !n.bias) FAIL(THIS_RANK, "norm_forward: a LayerNorm without a bias is not taken");
    if (n.kind == NORM_LAYER) norm_forward_kind<NORM_LAYER>(dev, n, out, sum, mean, rstd, a, delta);
    else norm_forward_kind<NORM_RMS>(dev, n, out, sum, mean, rstd, a, delta);
}

/* ---- recompute ---- */

template <int KIND, int W>
__global__ void __launch_bounds__(BLOCK)
    norm_recompute_kernel(real *out, const accum *mean, const accum *rstd, const real *x, const real *weight,
                          const real *bias, i64 rows, i64 C) {
    i64 i = grid_thread() * W;
    if (i >= rows * C) return;
    i64 row = quotient(i / W, C / W), c = i - row * C;
    float v[W], w[W], b[W] = {0}, m = KIND == NORM_LAYER ? mean[row] : 0, s = rstd[row];
    load_real<W>(v, x + i, W);
    load_real<W>(w, weight + c, W);
    if (KIND == NORM_LAYER) load_real<W>(b, bias + c, W);
    UNROLL
    for (int e = 0; e < W; e++) v[e] = norm_value(v[e], m, s, w[e], b[e]);
    store_real<W>(out + i, v, W);
}

static inline void norm_recompute_run(Device *dev, NormCall n, real *out, const accum *mean, const accum *rstd,
                                      const real *x) {
    const real *weight = n.weight, *bias = n.bias;
    i64 rows = n.rows, C = n.C;
    if (rows * C == 0) return;
    if (n.kind == NORM_LAYER && !bias) FAIL(THIS_RANK, "norm_recompute: a LayerNorm without a bias is not taken");
    cudaStream_t stream = dev->state.stream;
    int vectors =
        C % 8 == 0 && aligned_to(out, 16) && aligned_to(x, 16) && aligned_to(weight, 16) && aligned_to(bias, 16);
    unsigned grid = blocks_for(rows * C, vectors ? 8 * BLOCK : BLOCK);
    if (n.kind == NORM_LAYER && vectors)
        LAUNCH((norm_recompute_kernel<NORM_LAYER, 8>), grid, BLOCK, 0, stream, out, mean, rstd, x, weight, bias, rows,
               C);
    else if (n.kind == NORM_LAYER)
        LAUNCH((norm_recompute_kernel<NORM_LAYER, 1>), grid, BLOCK, 0, stream, out, mean, rstd, x, weight, bias, rows,
               C);
    else if (vectors)
        LAUNCH((norm_recompute_kernel<NORM_RMS, 8>), grid, BLOCK, 0, stream, out, mean, rstd, x, weight, bias, rows, C);
    else
        LAUNCH((norm_recompute_kernel<NORM_RMS, 1>), grid, BLOCK, 0, stream, out, mean, rstd, x, weight, bias, rows, C);
}

/* ---- backward ---- */

/* partial (blocks, outputs, C): outputs 2 for NORM_LAYER (dweight, dbias), else 1. Dynamic shared memory: outputs * C
   floats if a block holds more than one group. */
template <int KIND, int WARPS, int K>
__global__ void __launch_bounds__(BLOCK)
    norm_backward_kernel(real *dx, accum *partial, const real *dout, const accum *mean, const accum *rstd,
                         const real *x, const real *weight, i64 rows, int C, i64 w_first, i64 w_end) {
    constexpr int GROUPS = BLOCK / WARP / WARPS, THREADS = WARPS * WARP, OUTPUTS = KIND == NORM_LAYER ? 2 : 1;
    /* a row's two sums; rows take turns in two places, so that one barrier a row is enough */
    SHARED(float, joined, 2 * 2 * (BLOCK / WARP));
    SHARED_DYNAMIC(float, columns);
    int t = (int)threadIdx.x % THREADS, group = (int)threadIdx.x / THREADS, turn = 0;
    bf16x8 w[K];
    float dw[K][8], db[K][8];
    UNROLL
    for (int k = 0; k < K; k++) {
        int c = (k * THREADS + t) * 8;
        if (c < C) w[k] = *(const bf16x8 *)(weight + c);
        UNROLL
        for (int e = 0; e < 8; e++) dw[k][e] = db[k][e] = 0;
    }
    for (i64 first = (i64)blockIdx.x * GROUPS; first < rows; first += (i64)gridDim.x * GROUPS, turn ^= 1) {
        i64 row = first + group;
        bool active = row < rows;
        bf16x8 d[K], xs[K], old[K];
        float m = 0, s = 0, sum_g = 0, sum_gn = 0;
        UNROLL
        for (int k = 0; k < K; k++) {
            int c = (k * THREADS + t) * 8;
            if (!active || c >= C) continue;
            d[k] = *(const bf16x8 *)(dout + row * C + c);
            xs[k] = *(const bf16x8 *)(x + row * C + c);
            old[k] = *(const bf16x8 *)(dx + row * C + c);
        }
        if (active) {
            s = rstd[row];
            if (KIND == NORM_LAYER) m = mean[row];
        }
        bool counts = row >= w_first && row < w_end && active;
        UNROLL
        for (int k = 0; k < K; k++) {
            if (!active || (k * THREADS + t) * 8 >= C) continue;
            float dv[8], xv[8], wv[8];
            widen(dv, d[k]);
            widen(xv, xs[k]);
            widen(wv, w[k]);
            UNROLL
            for (int e = 0; e < 8; e++) {
                float n = (xv[e] - m) * s, g = dv[e] * wv[e];
                sum_g += g;
                sum_gn = fmaf(g, n, sum_gn);
                if (counts) {
                    dw[k][e] = fmaf(dv[e], n, dw[k][e]);
                    if (KIND == NORM_LAYER) db[k][e] += dv[e];
                }
            }
        }
        /* warps_sum twice with one barrier */
        sum_gn = warp_sum(sum_gn);
        if (KIND == NORM_LAYER) sum_g = warp_sum(sum_g);
        if constexpr (WARPS > 1) {
            float *place = joined + turn * 2 * (BLOCK / WARP);
            int warp = (int)threadIdx.x / WARP;
            if (threadIdx.x % WARP == 0) place[warp] = sum_gn, place[BLOCK / WARP + warp] = sum_g;
            __syncthreads();
            sum_g = sum_gn = 0;
            UNROLL
            for (int i = 0; i < WARPS; i++) {
                sum_gn += place[group * WARPS + i];
                if (KIND == NORM_LAYER) sum_g += place[BLOCK / WARP + group * WARPS + i];
            }
        }
        float mean_g = KIND == NORM_LAYER ? sum_g / (float)C : 0, mean_gn = sum_gn / (float)C;
        UNROLL
        for (int k = 0; k < K; k++) {
            int c = (k * THREADS + t) * 8;
            if (!active || c >= C) continue;
            float dv[8], xv[8], wv[8], ov[8];
            widen(dv, d[k]);
            widen(xv, xs[k]);
            widen(wv, w[k]);
            widen(ov, old[k]);
            UNROLL
            for (int e = 0; e < 8; e++) ov[e] += s * (dv[e] * wv[e] - mean_g - (xv[e] - m) * s * mean_gn);
            *(bf16x8 *)(dx + row * C + c) = narrow(ov);
        }
    }
    accum *mine = partial + (i64)blockIdx.x * OUTPUTS * C;
    if constexpr (GROUPS == 1) {
        UNROLL
        for (int k = 0; k < K; k++) {
            int c = (k * THREADS + t) * 8;
            if (c >= C) continue;
            UNROLL
            for (int e = 0; e < 8; e++) {
                mine[c + e] = dw[k][e];
                if (KIND == NORM_LAYER) mine[C + c + e] = db[k][e];
            }
        }
    } else { /* groups add their columns one after the other */
        for (int g = 0; g < GROUPS; g++) {
            if (g == group) {
                UNROLL
                for (int k = 0; k < K; k++) {
                    int c = (k * THREADS + t) * 8;
                    if (c >= C) continue;
                    UNROLL
                    for (int e = 0; e < 8; e++) {
                        columns[c + e] = (g ? columns[c + e] : 0) + dw[k][e];
                        if (KIND == NORM_LAYER) columns[C + c + e] = (g ? columns[C + c + e] : 0) + db[k][e];
                    }
                }
            }
            __syncthreads();
        }
        for (int c = (int)threadIdx.x; c < OUTPUTS * C; c += BLOCK) mine[c] = columns[c];
    }
}

/* Any C, dx only. */
template <int KIND>
__global__ void __launch_bounds__(BLOCK)
    norm_backward_any_kernel(real *dx, const real *dout, const accum *mean, const accum *rstd, const real *x,
                             const real *weight, i64 C) {
    SHARED(float, joined, 2 * (BLOCK / WARP));
    i64 row = blockIdx.x;
    float m = KIND == NORM_LAYER ? mean[row] : 0, s = rstd[row], sum_g = 0, sum_gn = 0;
    dx += row * C, dout += row * C, x += row * C;
    for (i64 c = threadIdx.x; c < C; c += BLOCK) {
        float g = bf16_float(dout[c]) * bf16_float(weight[c]);
        sum_g += g;
        sum_gn = fmaf(g, (bf16_float(x[c]) - m) * s, sum_gn);
    }
    float mean_gn = warps_sum<BLOCK / WARP>(sum_gn, joined) / (float)C;
    float mean_g = KIND == NORM_LAYER ? warps_sum<BLOCK / WARP>(sum_g, joined + BLOCK / WARP) / (float)C : 0;
    for (i64 c = threadIdx.x; c < C; c += BLOCK)
        dx[c] = bf16_round(bf16_float(dx[c]) + s * (bf16_float(dout[c]) * bf16_float(weight[c]) - mean_g -
                                                    (bf16_float(x[c]) - m) * s * mean_gn));
}

/* Blocks of the fused kernel: two to a multiprocessor, so that one computes while the other waits. */
static inline i64 norm_parts(const Device *dev, i64 rows, i64 groups) {
    i64 most = i64_min(NORM_PARTS, 2 * i64_max(1, dev->state.multiprocessors));
    return i64_min(most, ceil_div(rows, groups));
}

template <int KIND, int WARPS, int K>
static inline void norm_backward_launch(Device *dev, NormCall n, real *dx, accum *dweight, accum *dbias,
                                        const real *dout, const accum *mean, const accum *rstd, const real *x,
                                        i64 w_first, i64 w_rows) {
    i64 rows = n.rows, C = n.C;
    accum *partial = (accum *)scratch_take(dev, norm_scratch_bytes(rows, C), "norm_backward");
    i64 groups = BLOCK / WARP / WARPS, parts = norm_parts(dev, rows, groups), outputs = KIND == NORM_LAYER ? 2 : 1,
        w_end = w_first + w_rows;
    int width = (int)C;
    LAUNCH((norm_backward_kernel<KIND, WARPS, K>), (unsigned)parts, BLOCK, groups > 1 ? outputs * C * 4 : 0,
           dev->state.stream, dx, partial, dout, mean, rstd, x, n.weight, rows, width, w_first, w_end);
    if (w_rows > 0) columns_add(dev, dweight, dbias, partial, parts, C, outputs * C);
}

template <int KIND>
static inline void norm_backward_kind(Device *dev, NormCall n, real *dx, accum *dweight, accum *dbias, const real *dout,
                                      const accum *mean, const accum *rstd, const real *x, i64 w_first, i64 w_rows) {
    i64 C = n.C;
    int vectors =
        C % 8 == 0 && aligned_to(dx, 16) && aligned_to(dout, 16) && aligned_to(x, 16) && aligned_to(n.weight, 16);
    if (!vectors || C > NORM_WIDEST_BACKWARD) {
        LAUNCH(norm_backward_any_kernel<KIND>, blocks_for(n.rows, 1), BLOCK, 0, dev->state.stream, dx, dout, mean, rstd,
               x, n.weight, C);
        if (w_rows > 0)
            columns_run<KIND == NORM_LAYER ? COLUMNS_LAYER : COLUMNS_RMS>(
                dev, dweight, dbias, dout + w_first * C, x + w_first * C, KIND == NORM_LAYER ? mean + w_first : NULL,
                rstd + w_first, w_rows, C);
    } else if (C <= 256)
        norm_backward_launch<KIND, 1, 1>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
    else if (C <= 512)
        norm_backward_launch<KIND, 1, 2>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
    else if (C <= 1024)
        norm_backward_launch<KIND, 2, 2>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
    else if (C <= 2048)
        norm_backward_launch<KIND, 4, 2>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
    else if (C <= 4096)
        norm_backward_launch<KIND, 8, 2>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
    else norm_backward_launch<KIND, 8, 4>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
}

static inline void norm_backward_run(Device *dev, NormCall n, real *dx, accum *dweight, accum *dbias, const real *dout,
                                     const accum *mean, const accum *rstd, const real *x, i64 w_first, i64 w_rows) {
    if (n.rows == 0) return;
    if (w_first < 0 || w_rows < 0 || w_first + w_rows > n.rows)
        FAIL(THIS_RANK, "norm_backward: rows %lld+%lld for the weights, of %lld", w_first, w_rows, n.rows);
    if (n.kind == NORM_LAYER)
        norm_backward_kind<NORM_LAYER>(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows);
    else norm_backward_kind<NORM_RMS>(dev, n, dx, dweight, NULL, dout, mean, rstd, x, w_first, w_rows);
}

#endif

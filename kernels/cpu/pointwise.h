/* pointwise.h - operations without neighbours: activations, biases, copies and the sum of received parts.

   GELU's tanh form is a sigmoid in disguise, (1 + tanh u)/2 = 1/(1 + e^-2u), so both activations share sigmoid_pair:

     gelu(x) = x s(2u)     2u = 2 sqrt(2/pi) (x + 0.044715 x^3)     gelu' = s + x s (1-s) (2u)'
     silu(x) = x s(x)                                               silu' = s (1 + x (1-s))

   Hendrycks, Gimpel 2016, arXiv:1606.08415; Shazeer 2020, arXiv:2002.05202.
   Cost: bound by memory, each buffer is passed over once.                                                            */
#ifndef ODYSSEUS_CPU_POINTWISE_H
#define ODYSSEUS_CPU_POINTWISE_H

#include "elementary.h"
#include "parallel.h"

/* ---- activations ---- */

#define GELU_SCALE ((real)1.59576912160573071176) /* 2 sqrt(2/pi) */
#define GELU_CUBIC ((real)0.044715)

static inline void gelu_forward_run(Device *dev, real *out, const real *pre, i64 n) {
#pragma omp parallel for simd num_threads(dev->threads) if (parallel : n > SERIAL_BELOW)
    for (i64 i = 0; i < n; i++) {
        real x = pre[i], complement;
        out[i] = x * sigmoid_pair(GELU_SCALE * (x + GELU_CUBIC * x * x * x), &complement);
    }
}

static inline void gelu_backward_run(Device *dev, real *dpre, real *act, const real *pre, i64 n) {
#pragma omp parallel for simd num_threads(dev->threads) if (parallel : n > SERIAL_BELOW)
    for (i64 i = 0; i < n; i++) {
        real x = pre[i], complement;
        real s = sigmoid_pair(GELU_SCALE * (x + GELU_CUBIC * x * x * x), &complement);
        real slope = GELU_SCALE * ((real)1 + (real)3 * GELU_CUBIC * x * x);
        dpre[i] = act[i] * (s + x * s * complement * slope);
        act[i] = x * s;
    }
}

static inline void swiglu_forward_run(Device *dev, real *out, const real *pre, i64 rows, i64 I) {
#pragma omp parallel for num_threads(dev->threads) if (rows * I > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        const real *gate = pre + r * 2 * I, *up = gate + I;
        real *o = out + r * I;
#pragma omp simd
        for (i64 i = 0; i < I; i++) {
            real complement;
            o[i] = gate[i] * sigmoid_pair(gate[i], &complement) * up[i];
        }
    }
}

static inline void swiglu_backward_run(Device *dev, real *dpre, real *act, const real *pre, i64 rows, i64 I) {
#pragma omp parallel for num_threads(dev->threads) if (rows * I > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        const real *gate = pre + r * 2 * I, *up = gate + I;
        real *dgate = dpre + r * 2 * I, *dup = dgate + I, *a = act + r * I;
#pragma omp simd
        for (i64 i = 0; i < I; i++) {
            real complement, s = sigmoid_pair(gate[i], &complement);
            dgate[i] = a[i] * up[i] * s * ((real)1 + gate[i] * complement);
            dup[i] = a[i] * gate[i] * s;
            a[i] = gate[i] * s * up[i];
        }
    }
}

/* ---- bias ---- */

static inline void bias_add_run(Device *dev, real *out, const real *bias, i64 rows, i64 C) {
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        real *o = out + r * C;
#pragma omp simd
        for (i64 c = 0; c < C; c++) o[c] += bias[c];
    }
}

/* A sum over rows: threads share the columns, each column adds its rows in order. */
static inline void bias_backward_run(Device *dev, accum *dbias, const real *dout, i64 rows, i64 C) {
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 c0 = 0; c0 < C; c0 += COLUMN_BLOCK) {
        i64 width = i64_min(COLUMN_BLOCK, C - c0);
        for (i64 r0 = 0; r0 < rows; r0 += ROW_BLOCK) {
            accum part[COLUMN_BLOCK] = {0};
            for (i64 r = r0; r < i64_min(rows, r0 + ROW_BLOCK); r++) {
                const real *d = dout + r * C + c0;
#pragma omp simd
                for (i64 c = 0; c < width; c++) part[c] += d[c];
            }
            for (i64 c = 0; c < width; c++) dbias[c0 + c] += part[c];
        }
    }
}

/* ---- flat buffers ---- */

enum { COPY_BLOCK = 1 << 16 }; /* bytes that one thread clears or copies at a time */

static inline void zero_fill_run(Device *dev, void *dst, i64 bytes) {
#pragma omp parallel for num_threads(dev->threads) if (bytes > 4 * COPY_BLOCK)
    for (i64 i = 0; i < bytes; i += COPY_BLOCK) memset((char *)dst + i, 0, (size_t)i64_min(COPY_BLOCK, bytes - i));
}

static inline void convert_run(Device *dev, real *dst, const accum *src, i64 n) {
#pragma omp parallel for simd num_threads(dev->threads) if (parallel : n > SERIAL_BELOW)
    for (i64 i = 0; i < n; i++) dst[i] = (real)src[i];
}

enum { SUM_BLOCK = 1024 }; /* elements that stay in L1 while every part is added to them */

static inline void sum_parts_accum(Device *dev, accum *dst, const accum *parts, i64 n_parts, i64 stride, i64 n,
                                   int add) {
#pragma omp parallel for num_threads(dev->threads) if (n_parts * n > SERIAL_BELOW)
    for (i64 i0 = 0; i0 < n; i0 += SUM_BLOCK) {
        accum sum[SUM_BLOCK] = {0};
        i64 width = i64_min(SUM_BLOCK, n - i0);
        for (i64 p = 0; p < n_parts; p++) {
            const accum *part = parts + p * stride + i0;
#pragma omp simd
            for (i64 i = 0; i < width; i++) sum[i] += part[i];
        }
        for (i64 i = 0; i < width; i++) dst[i0 + i] = add ? dst[i0 + i] + sum[i] : sum[i];
    }
}

/* Doubles outside the referee are a handful of sums (loss, norm): no threads. */
static inline void sum_parts_f64(double *dst, const double *parts, i64 n_parts, i64 stride, i64 n, int add) {
    for (i64 i = 0; i < n; i++) {
        double sum = 0;
        for (i64 p = 0; p < n_parts; p++) sum += parts[p * stride + i];
        dst[i] = add ? dst[i] + sum : sum;
    }
}

static inline void sum_parts_run(Device *dev, void *dst, const void *parts, i64 n_parts, i64 stride, i64 n, Dtype type,
                                 int add) {
    if (type == DTYPE_F64) sum_parts_f64((double *)dst, (const double *)parts, n_parts, stride, n, add);
    else sum_parts_accum(dev, (accum *)dst, (const accum *)parts, n_parts, stride, n, add); /* real is accum here */
}

static inline void add_parts_run(Device *dev, accum *dst, const real *parts, i64 n_parts, i64 stride, i64 n) {
    sum_parts_accum(dev, dst, parts, n_parts, stride, n, 1);
}

#endif

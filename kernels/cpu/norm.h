/* norm.h - LayerNorm and RMSNorm, each with the residual add in front of it.

   forward    a + delta -> x (kept) -> mean, rstd (kept) -> out         one pass over memory: a row stays in L1
   recompute  x, mean, rstd -> out                                      the same row function, so the same bits
   backward   n = (x - mean) rstd,  g = dout weight
              dx      += rstd (g - mean_c(g) - n mean_c(g n))           by rows; RMSNorm has no mean_c(g) and mean = 0
              dweight += sum_r dout n,  dbias += sum_r dout             by columns, rows in order

   Ba et al. 2016, arXiv:1607.06450; Zhang, Sennrich 2019, arXiv:1910.07467.
   Layouts: x, out, dout (rows, C); mean, rstd (rows). The variance is taken around the mean, in
   a second pass over the row. */
#ifndef ODYSSEUS_CPU_NORM_H
#define ODYSSEUS_CPU_NORM_H

#include "elementary.h"
#include "parallel.h"

/* out = (x - mean) rstd weight + bias for one row */
static inline void norm_row(real *out, const real *x, accum mean, accum rstd, const real *weight, const real *bias,
                            i64 C) {
    if (bias) {
#pragma omp simd
        for (i64 c = 0; c < C; c++) out[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
    } else {
#pragma omp simd
        for (i64 c = 0; c < C; c++) out[c] = (x[c] - mean) * rstd * weight[c];
    }
}

/* mean and 1/sqrt(mean((x - mean)^2) + eps) of one row; the mean is 0 by definition for RMSNorm */
static inline void norm_statistics(NormKind kind, const real *x, i64 C, double eps, accum *mean, accum *rstd) {
    accum m = 0, squares = 0;
    if (kind == NORM_LAYER) {
#pragma omp simd reduction(+ : m)
        for (i64 c = 0; c < C; c++) m += x[c];
        m /= (accum)C;
    }
#pragma omp simd reduction(+ : squares)
    for (i64 c = 0; c < C; c++) squares += (x[c] - m) * (x[c] - m);
    *mean = m;
    *rstd = (accum)1 / real_sqrt(squares / (accum)C + (accum)eps);
}

static inline void norm_forward_run(Device *dev, NormCall n, real *out, real *sum, accum *mean, accum *rstd,
                                    const real *a, const real *delta) {
    i64 rows = n.rows, C = n.C;
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        const real *x = a + r * C;
        if (delta) {
            const real *d = delta + r * C;
            real *s = sum + r * C;
#pragma omp simd
            for (i64 c = 0; c < C; c++) s[c] = x[c] + d[c];
            x = s;
        }
        accum row_mean;
        norm_statistics(n.kind, x, C, n.eps, &row_mean, &rstd[r]);
        if (n.kind == NORM_LAYER) mean[r] = row_mean;
        norm_row(out + r * C, x, row_mean, rstd[r], n.weight, n.bias, C);
    }
}

static inline void norm_recompute_run(Device *dev, NormCall n, real *out, const accum *mean, const accum *rstd,
                                      const real *x) {
    i64 rows = n.rows, C = n.C;
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++)
        norm_row(out + r * C, x + r * C, n.kind == NORM_LAYER ? mean[r] : 0, rstd[r], n.weight, n.bias, C);
}

static inline void norm_backward_row(NormKind kind, real *dx, const real *dout, accum mean, accum rstd, const real *x,
                                     const real *weight, i64 C) {
    accum sum_g = 0, sum_gn = 0;
#pragma omp simd reduction(+ : sum_g, sum_gn)
    for (i64 c = 0; c < C; c++) {
        accum g = dout[c] * weight[c];
        sum_g += g;
        sum_gn += g * ((x[c] - mean) * rstd);
    }
    accum mean_g = kind == NORM_LAYER ? sum_g / (accum)C : 0, mean_gn = sum_gn / (accum)C;
#pragma omp simd
    for (i64 c = 0; c < C; c++) dx[c] += rstd * (dout[c] * weight[c] - mean_g - (x[c] - mean) * rstd * mean_gn);
}

/* dweight, dbias of columns c0 .. c0+width-1, over rows first .. first+rows-1 in order */
static inline void norm_backward_columns(NormKind kind, accum *dweight, accum *dbias, const real *dout,
                                         const accum *mean, const accum *rstd, const real *x, i64 first, i64 rows,
                                         i64 C, i64 c0, i64 width) {
    for (i64 r0 = first; r0 < first + rows; r0 += ROW_BLOCK) {
        accum part_w[COLUMN_BLOCK] = {0}, part_b[COLUMN_BLOCK] = {0};
        for (i64 r = r0; r < i64_min(first + rows, r0 + ROW_BLOCK); r++) {
            const real *d = dout + r * C + c0, *row = x + r * C + c0;
            accum m = kind == NORM_LAYER ? mean[r] : 0, s = rstd[r];
#pragma omp simd
            for (i64 c = 0; c < width; c++) {
                part_w[c] += d[c] * ((row[c] - m) * s);
                part_b[c] += d[c];
            }
        }
        for (i64 c = 0; c < width; c++) dweight[c0 + c] += part_w[c];
        if (dbias)
            for (i64 c = 0; c < width; c++) dbias[c0 + c] += part_b[c];
    }
}

static inline void norm_backward_run(Device *dev, NormCall n, real *dx, accum *dweight, accum *dbias, const real *dout,
                                     const accum *mean, const accum *rstd, const real *x, i64 w_first, i64 w_rows) {
    i64 rows = n.rows, C = n.C;
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++)
        norm_backward_row(n.kind, dx + r * C, dout + r * C, n.kind == NORM_LAYER ? mean[r] : 0, rstd[r], x + r * C,
                          n.weight, C);
#pragma omp parallel for num_threads(dev->threads) if (w_rows * C > SERIAL_BELOW)
    for (i64 c0 = 0; c0 < C; c0 += COLUMN_BLOCK)
        norm_backward_columns(n.kind, dweight, dbias, dout, mean, rstd, x, w_first, w_rows, C, c0,
                              i64_min(COLUMN_BLOCK, C - c0));
}

#endif

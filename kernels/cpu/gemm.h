/* gemm.h - matrix products, row-major.

   gemm_tile   C = alpha op(A) op(B) + beta C on the calling thread: also attention's tiles
   gemm        the same on all threads: C is cut into tiles, which the threads take as they come

        C (M, N)  -->  m x n tiles, at most 512 x 512, at least 16 of them where that leaves a tile 64 wide
                       K in pieces of 2048, in order; the calling thread polls the communication before each

   The cuts depend on the shape alone and a tile is one thread's, so the bits do not depend on the number of threads, and
   a product of any length lets communication move on. That costs a few per cent of what oneDNN's own threading reaches at its best
   (430 of 450 GFLOP/s on two Zen 5 cores), and saves the shapes where that leaves a core idle (out = inp weight^T at 1024^3: 220).

   fp32 build  a tile is oneDNN's dnnl_sgemm, which inside a parallel region stays on its thread
   fp64 build  the referee: 64 x 128 blocks of op(B) are copied so that both transposes read alike, then
               C[i][j] += sum over 4 k of A[i][k] B[k][j] for two rows i at a time, vectors along j                      */
#ifndef ODYSSEUS_CPU_GEMM_H
#define ODYSSEUS_CPU_GEMM_H

enum { GEMM_TILE = 512, GEMM_TILE_MIN = 64, GEMM_TILES = 16, GEMM_K = 2048 };

#ifdef ODYSSEUS_FP64

enum { GEMM_KB = 64, GEMM_JB = 128 }; /* a block of B: 64 KB, stays in L2 */

/* b (kb, GEMM_JB) = op(B)[k0 .., j0 ..], the unused rows up to a multiple of four set to 0 */
static inline void gemm_copy_block(double *b, char trans, const real *B, i64 ldb, i64 k0, i64 kb, i64 j0, i64 jb) {
    for (i64 k = 0; k < kb; k++)
        for (i64 j = 0; j < jb; j++) b[k * GEMM_JB + j] = trans == 'N' ? B[(k0 + k) * ldb + j0 + j] : B[(j0 + j) * ldb + k0 + k];
    for (i64 k = kb; k < round_up(kb, 4); k++)
        for (i64 j = 0; j < jb; j++) b[k * GEMM_JB + j] = 0;
}

/* c0 (jb) += a0 (kb) b, c1 likewise with a1: two rows, so that each vector of b is used twice */
static inline void gemm_two_rows(double *c0, double *c1, const double *a0, const double *a1, const double *b, i64 kb, i64 jb) {
    for (i64 k = 0; k < kb; k += 4) {
        const double *b0 = b + k * GEMM_JB, *b1 = b0 + GEMM_JB, *b2 = b1 + GEMM_JB, *b3 = b2 + GEMM_JB;
        double p0 = a0[k], p1 = a0[k + 1], p2 = a0[k + 2], p3 = a0[k + 3], q0 = a1[k], q1 = a1[k + 1], q2 = a1[k + 2], q3 = a1[k + 3];
#pragma omp simd
        for (i64 j = 0; j < jb; j++) {
            c0[j] = fused_f64(p3, b3[j], fused_f64(p2, b2[j], fused_f64(p1, b1[j], fused_f64(p0, b0[j], c0[j]))));
            c1[j] = fused_f64(q3, b3[j], fused_f64(q2, b2[j], fused_f64(q1, b1[j], fused_f64(q0, b0[j], c1[j]))));
        }
    }
}

/* a (GEMM_KB) = alpha op(A)[i][k0 ..], padded with 0 to a multiple of four */
static inline void gemm_copy_row(double *a, char trans, double alpha, const real *A, i64 lda, i64 i, i64 k0, i64 kb) {
    for (i64 k = 0; k < kb; k++) a[k] = alpha * (trans == 'N' ? A[i * lda + k0 + k] : A[(k0 + k) * lda + i]);
    for (i64 k = kb; k < round_up(kb, 4); k++) a[k] = 0;
}

static inline void gemm_tile(char ta, char tb, i64 M, i64 N, i64 K, real alpha, const real *A, i64 lda, const real *B, i64 ldb, real beta,
                             real *C, i64 ldc) {
    double block[GEMM_KB * GEMM_JB], a0[GEMM_KB], a1[GEMM_KB], unused[GEMM_JB];
    if (beta != 1)
        for (i64 i = 0; i < M; i++)
            for (i64 j = 0; j < N; j++) C[i * ldc + j] = beta == 0 ? 0 : beta * C[i * ldc + j];
    for (i64 j0 = 0; j0 < N; j0 += GEMM_JB) {
        i64 jb = i64_min(GEMM_JB, N - j0);
        for (i64 k0 = 0; k0 < K; k0 += GEMM_KB) {
            i64 kb = i64_min(GEMM_KB, K - k0);
            gemm_copy_block(block, tb, B, ldb, k0, kb, j0, jb);
            for (i64 i = 0; i < M; i += 2) {
                i64 next = i64_min(i + 1, M - 1); /* an odd last row is done twice, the copy goes nowhere */
                gemm_copy_row(a0, ta, alpha, A, lda, i, k0, kb);
                gemm_copy_row(a1, ta, alpha, A, lda, next, k0, kb);
                double *c1 = next > i ? C + next * ldc + j0 : unused;
                if (next == i) memset(unused, 0, sizeof unused);
                gemm_two_rows(C + i * ldc + j0, c1, a0, a1, block, kb, jb);
            }
        }
    }
}

#else

#include <oneapi/dnnl/dnnl.h>

static inline void gemm_tile(char ta, char tb, i64 M, i64 N, i64 K, real alpha, const real *A, i64 lda, const real *B, i64 ldb, real beta,
                             real *C, i64 ldc) {
    if (K == 0) { /* the empty sum, of which oneDNN's manual says nothing */
        for (i64 i = 0; i < M; i++)
            for (i64 j = 0; j < N; j++) C[i * ldc + j] = beta == 0 ? 0 : beta * C[i * ldc + j];
        return;
    }
    if (dnnl_sgemm(ta, tb, M, N, K, alpha, A, lda, B, ldb, beta, C, ldc) != dnnl_success)
        FAIL(THIS_RANK, "oneDNN refuses the product %c%c %lld x %lld x %lld", ta, tb, (long long)M, (long long)N, (long long)K);
}

#endif

/* Tile height and width: enough tiles to share, large enough to be worth their packing. */
static inline void gemm_cut(i64 M, i64 N, i64 *height, i64 *width) {
    i64 m = ceil_div(M, GEMM_TILE), n = ceil_div(N, GEMM_TILE);
    while (m * n < GEMM_TILES && i64_max(ceil_div(M, m), ceil_div(N, n)) > GEMM_TILE_MIN) {
        if (ceil_div(M, m) >= ceil_div(N, n)) m *= 2;
        else n *= 2;
    }
    *height = round_up(ceil_div(M, m), 16);
    *width = round_up(ceil_div(N, n), 16);
}

/* C (M, N) = op(A) op(B) + beta C on all threads */
static inline void gemm(Device *dev, char ta, char tb, i64 M, i64 N, i64 K, const real *A, i64 lda, const real *B, i64 ldb, real beta, real *C,
                        i64 ldc) {
    if (M == 0 || N == 0) return;
    i64 height, width;
    gemm_cut(M, N, &height, &width);
    i64 m = ceil_div(M, height), n = ceil_div(N, width);
#pragma omp parallel for num_threads(dev->threads) schedule(dynamic, 1)
    for (i64 tile = 0; tile < m * n; tile++) {
        i64 i = tile % m * height, j = tile / m * width, rows = i64_min(height, M - i), columns = i64_min(width, N - j);
        for (i64 k = 0; k == 0 || k < K; k += GEMM_K) { /* once even for K = 0: beta may have to clear C */
            if (omp_get_thread_num() == 0) device_poll(dev);
            const real *a = ta == 'N' ? A + i * lda + k : A + k * lda + i, *b = tb == 'N' ? B + k * ldb + j : B + j * ldb + k;
            gemm_tile(ta, tb, rows, columns, i64_min(GEMM_K, K - k), 1, a, lda, b, ldb, k == 0 ? beta : 1, C + i * ldc + j, ldc);
        }
    }
}

/* ---- the three products of a linear layer ---- */

static inline void linear_forward_run(Device *dev, real *out, i64 step, const real *inp, const real *weight, const real *bias, i64 rows, i64 IC, i64 OC) {
    if (bias) { /* the sum starts from the bias: one pass over `out` less than adding it behind */
#pragma omp parallel for num_threads(dev->threads) if (rows * OC > SERIAL_BELOW)
        for (i64 r = 0; r < rows; r++) memcpy(out + r * step, bias, sizeof(real) * (size_t)OC);
    }
    gemm(dev, 'N', 'T', rows, OC, IC, inp, IC, weight, IC, bias ? (real)1 : (real)0, out, step);
}

static inline void linear_backward_input_run(Device *dev, real *dinp, const real *dout, i64 step, const real *weight, i64 rows, i64 IC, i64 OC, int add) {
    gemm(dev, 'N', 'N', rows, IC, OC, dout, step, weight, IC, add ? (real)1 : (real)0, dinp, IC);
}

static inline void linear_backward_weight_run(Device *dev, accum *dweight, const real *inp, const real *dout, i64 step, i64 rows, i64 IC, i64 OC) {
    gemm(dev, 'T', 'N', OC, IC, rows, dout, step, inp, IC, (real)1, dweight, IC);
}

#endif

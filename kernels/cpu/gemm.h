/* gemm.h - matrix products, row-major, of one micro-kernel: C (M, N) = or += op(A) op(B).

   tile_product   a tile of C, TILE_ROWS x TILE_COLUMNS, stays in registers while k runs: a row of B's panel
                  times a number of each row of A
   panels_*       operands are packed into panels, so that k walks through neighbouring memory:

        op(A) (M, K)  ->  M/TILE_ROWS panels (K, TILE_ROWS)
        op(B) (K, N)  ->  N/TILE_COLUMNS panels (K, TILE_COLUMNS)

   gemm           on all threads, with both operands packed once for all of them:

        for GEMM_N columns of C, for GEMM_K of k:      pack that part of B (2.8 MB); a panel of it (24 KB) stays near a
                                                       core
           for GEMM_M rows of C:                       pack that part of A (1.4 MB); a task's share of it (144 KB) stays
                                                       in a core's L2
              tasks of GEMM_TASK_ROWS rows x some columns, which the threads take as they come

   The pieces of k are added to C in their order, which the shape alone fixes, and a tile of C is one thread's at a
   time: so the bits depend neither on the number of threads nor on how tasks are cut. The thread that called polls the
   communication before each of its tasks.

   Goto, van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication"; Van Zee, van de Geijn 2015, "BLIS".  */
#ifndef ODYSSEUS_CPU_GEMM_H
#define ODYSSEUS_CPU_GEMM_H

#include "parallel.h"
#include "scratch.h"
#include "vector.h"

/* c (TILE_ROWS, TILE_COLUMNS), rows ldc apart, = or += a b. a is read as a[row * row_step + k * k_step], b (k,
   TILE_COLUMNS) is aligned. The steps are constants of each caller, and this is inlined there, so that they
   become displacements of loads. */
static inline __attribute__((always_inline)) void tile_product(i64 K, const real *a, i64 row_step, i64 k_step,
                                                               const real *b, real *c, i64 ldc, int add) {
    Vector sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        __builtin_prefetch(c + r * ldc);
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) sum[r][v] = (Vector){0};
    }
    for (i64 k = 0; k < K; k++, a += k_step, b += TILE_COLUMNS) {
        Vector row[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) row[v] = ((const Vector *)b)[v];
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            real x = a[r * row_step];
#pragma GCC unroll 4
            for (int v = 0; v < TILE_VECTORS; v++) sum[r][v] += x * row[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) {
        VectorAnywhere *to = (VectorAnywhere *)(c + r * ldc);
#pragma GCC unroll 4
        for (int v = 0; v < TILE_VECTORS; v++) to[v] = sum[r][v] + (add ? to[v] : (VectorAnywhere){0});
    }
}

/* The same where only `rows` x `columns` of the tile exist in c: a tile on the stack takes the rest. a
   must be readable for all rows. */
static inline __attribute__((always_inline)) void part_product(i64 K, const real *a, i64 row_step, i64 k_step,
                                                               const real *b, real *c, i64 ldc, i64 rows, i64 columns,
                                                               int add) {
    real tile[TILE_ROWS * TILE_COLUMNS];
    int whole = rows == TILE_ROWS && columns == TILE_COLUMNS;
    tile_product(K, a, row_step, k_step, b, whole ? c : tile, whole ? ldc : TILE_COLUMNS, whole && add);
    if (whole) return;
    for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < columns; j++) c[r * ldc + j] = (add ? c[r * ldc + j] : 0) + tile[r * TILE_COLUMNS + j];
}

/* The same with a in a panel (K, TILE_ROWS). */
static __attribute__((noinline, unused)) void panel_product(i64 K, const real *a, const real *b, real *c, i64 ldc,
                                                            i64 rows, i64 columns, int add) {
    part_product(K, a, 1, TILE_ROWS, b, c, ldc, rows, columns, add);
}

/* ---- packing: element (i, k) goes to panel i / width, place k * width + i % width; the last is filled up with 0 -- */

/* element (i, k) = from[k * ld + i]: neighbours are copied, `width` at a time, along all panels, so
   that memory is read as it lies */
static inline __attribute__((always_inline)) void panels_copy(real *to, int width, const real *from, i64 ld, i64 n,
                                                              i64 K) {
    i64 whole = n / width * width;
    for (i64 k = 0; k < K; k++) {
        const real *row = from + k * ld;
        for (i64 i = 0; i < whole; i += width) memcpy(to + i * K + k * width, row + i, sizeof(real) * (size_t)width);
        for (i64 i = whole; i < round_up(n, width); i++) to[whole * K + k * width + i - whole] = i < n ? row[i] : 0;
    }
}

/* to[k * width + i] = from[i * ld + k] for four i and four k */
static inline void transpose_four(real *to, i64 width, const real *from, i64 ld) {
    Four a = *(const Four *)from, b = *(const Four *)(from + ld), c = *(const Four *)(from + 2 * ld),
         d = *(const Four *)(from + 3 * ld);
    Four ab = FOUR_OF(a, b, 0, 4, 1, 5), cd = FOUR_OF(c, d, 0, 4, 1, 5), AB = FOUR_OF(a, b, 2, 6, 3, 7),
         CD = FOUR_OF(c, d, 2, 6, 3, 7);
    *(Four *)to = FOUR_OF(ab, cd, 0, 1, 4, 5);
    *(Four *)(to + width) = FOUR_OF(ab, cd, 2, 3, 6, 7);
    *(Four *)(to + 2 * width) = FOUR_OF(AB, CD, 0, 1, 4, 5);
    *(Four *)(to + 3 * width) = FOUR_OF(AB, CD, 2, 3, 6, 7);
}

/* element (i, k) = from[i * ld + k]: blocks of four by four are transposed; where four does not divide the
   width, the last ones overlap */
static inline __attribute__((always_inline)) void panels_transpose(real *to, int width, const real *from, i64 ld, i64 n,
                                                                   i64 K) {
    for (i64 p = 0; p < n; p += width, to += width * K, from += width * ld) {
        i64 k = 0, rows = i64_min(width, n - p);
        if (rows == width)
            for (; k + 4 <= K; k += 4)
                for (i64 i = 0; i < width; i += 4) {
                    i64 at = i64_min(i, width - 4);
                    transpose_four(to + k * width + at, width, from + at * ld + k, ld);
                }
        for (; k < K; k++)
            for (i64 i = 0; i < width; i++) to[k * width + i] = i < rows ? from[i * ld + k] : 0;
    }
}

/* n rows of op(A) in panels for tile_product; `trans` says how A lies: 'N' (rows, K), 'T' (K, rows). */
static inline void panels_of_rows(real *to, char trans, const real *A, i64 lda, i64 n, i64 K) {
    if (trans == 'N') panels_transpose(to, TILE_ROWS, A, lda, n, K);
    else panels_copy(to, TILE_ROWS, A, lda, n, K);
}

/* n columns of op(B): 'N' (K, columns), 'T' (columns, K). */
static inline void panels_of_columns(real *to, char trans, const real *B, i64 ldb, i64 n, i64 K) {
    if (trans == 'N') panels_copy(to, TILE_COLUMNS, B, ldb, n, K);
    else panels_transpose(to, TILE_COLUMNS, B, ldb, n, K);
}

/* ---- the product on all threads ---- */

/* scratch.h has the others. GEMM_PACK: rows or columns that a thread packs at a time. All are multiples
   of TILE_ROWS or TILE_COLUMNS. */
enum { GEMM_K = GEMM_K_BYTES / (int)sizeof(real), GEMM_PACK = 96 };

/* One product, as its threads see it. */
typedef struct {
    char ta, tb;
    i64 M, N, K, lda, ldb, ldc;
    const real *A, *B;
    real *C, *a, *b; /* a, b: the packed parts */
} Product;

/* `n` in as many pieces as `most` makes necessary, all of nearly one size: that size, a multiple of `unit`. */
static inline i64 even_piece(i64 n, i64 most, i64 unit) { return round_up(ceil_div(n, ceil_div(n, most)), unit); }

/* Columns of a task: several tasks for every thread, but no fewer columns than make a share of
   A in L2 worth its way there. */
static inline i64 gemm_task_columns(i64 rows, i64 columns, int threads) {
    i64 pieces = ceil_div(16 * (i64)threads, ceil_div(rows, GEMM_TASK_ROWS));
    return even_piece(columns, i64_max(ceil_div(columns, pieces), 4 * TILE_COLUMNS), TILE_COLUMNS);
}

/* Tiles of rows i .. i + rows and columns j .. j + columns of the packed parts, of which (0, 0) is C's (i0, j0). */
static inline void gemm_task(const Product *p, i64 K, i64 i0, i64 i, i64 rows, i64 j0, i64 j, i64 columns, int add) {
    for (i64 jt = j; jt < j + columns; jt += TILE_COLUMNS)
        for (i64 it = i; it < i + rows; it += TILE_ROWS)
            panel_product(K, p->a + it * K, p->b + jt * K, p->C + (i0 + it) * p->ldc + j0 + jt, p->ldc,
                          i64_min(TILE_ROWS, i + rows - it), i64_min(TILE_COLUMNS, j + columns - jt), add);
}

/* Called by every thread of a team: C's rows times GEMM_N columns from j0, with k0 .. k0 + K. */
static inline void gemm_part(Device *dev, const Product *p, i64 j0, i64 k0, i64 K, int threads, int add) {
    i64 columns = i64_min(GEMM_N, p->N - j0);
#pragma omp for schedule(static)
    for (i64 j = 0; j < columns; j += GEMM_PACK)
        panels_of_columns(p->b + j * K, p->tb,
                          p->tb == 'N' ? p->B + k0 * p->ldb + j0 + j : p->B + (j0 + j) * p->ldb + k0, p->ldb,
                          i64_min(GEMM_PACK, columns - j), K);
    for (i64 i0 = 0; i0 < p->M; i0 += GEMM_M) {
        i64 rows = i64_min(GEMM_M, p->M - i0), height = even_piece(rows, GEMM_TASK_ROWS, TILE_ROWS),
            down = ceil_div(rows, height);
        i64 width = gemm_task_columns(rows, columns, threads), across = ceil_div(columns, width);
#pragma omp for schedule(static)
        for (i64 i = 0; i < rows; i += GEMM_PACK)
            panels_of_rows(p->a + i * K, p->ta,
                           p->ta == 'N' ? p->A + (i0 + i) * p->lda + k0 : p->A + k0 * p->lda + i0 + i, p->lda,
                           i64_min(GEMM_PACK, rows - i), K);
#pragma omp for schedule(dynamic, 1)
        for (i64 task = 0; task < down * across; task++) {
            i64 i = task / across * height, j = task % across * width;
            if (omp_get_thread_num() == 0) device_poll(dev);
            gemm_task(p, K, i0, i, i64_min(height, rows - i), j0, j, i64_min(width, columns - j), add);
        }
    }
}

/* C (M, N), rows ldc apart, = or += op(A) op(B), on all threads; K = 0 is the empty sum */
static inline void gemm(Device *dev, char ta, char tb, i64 M, i64 N, i64 K, const real *A, i64 lda, const real *B,
                        i64 ldb, int add, real *C, i64 ldc) {
    real *a = dev->state.scratch;
    Product p = {ta, tb, M, N, K, lda, ldb, ldc, A, B, C, a, a + (i64)GEMM_M * GEMM_K};
    i64 pieces = i64_max(1, ceil_div(K, GEMM_K)), piece = ceil_div(K, pieces);
#pragma omp parallel num_threads(dev->threads)
    for (i64 j0 = 0; j0 < N; j0 += GEMM_N)
        for (i64 k = 0; k < pieces; k++)
            gemm_part(dev, &p, j0, k * piece, i64_min(piece, K - k * piece), dev->threads, add || k > 0);
}

/* ---- the three products of a linear layer ---- */

static inline void linear_forward_run(Device *dev, real *out, i64 ld, const real *inp, const real *weight,
                                      const real *bias, i64 rows, i64 IC, i64 OC) {
    if (bias) {
#pragma omp parallel for num_threads(dev->threads) if (rows * OC > SERIAL_BELOW)
        for (i64 r = 0; r < rows; r++) memcpy(out + r * ld, bias, sizeof(real) * (size_t)OC);
    }
    gemm(dev, 'N', 'T', rows, OC, IC, inp, IC, weight, IC, bias != NULL, out, ld);
}

static inline void linear_backward_input_run(Device *dev, real *dinp, const real *dout, i64 ld, const real *weight,
                                             i64 rows, i64 IC, i64 OC, int add) {
    gemm(dev, 'N', 'N', rows, IC, OC, dout, ld, weight, IC, add, dinp, IC);
}

static inline void linear_backward_weight_run(Device *dev, accum *dweight, const real *inp, const real *dout, i64 ld,
                                              i64 rows, i64 IC, i64 OC) {
    gemm(dev, 'T', 'N', OC, IC, rows, dout, ld, inp, IC, 1, dweight, IC);
}

#endif

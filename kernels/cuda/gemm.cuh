/* gemm.cuh - matrix products by cuBLASLt: bf16 in, fp32 accumulation, bf16 out or added to fp32 gradients.

   Our matrices are rows of neighbours, cuBLASLt's are columns: each is seen as its transpose, and
   out^T = weight inp^T is asked for.

     forward          out^T (OC, rows)    = W^T' (OC, IC)     inp^T (IC, rows)    + bias in the epilogue
     backward input   dinp^T (IC, rows)   = W^T (IC, OC)      dout^T (OC, rows)
     backward weight  dW^T (IC, OC)      += inp^T (IC, rows)  dout (rows, OC)     added up in fp32

   The heuristic for a shape is asked once and kept: the same algorithm, hence the same bits, every time.             */
#ifndef ODYSSEUS_CUDA_GEMM_CUH
#define ODYSSEUS_CUDA_GEMM_CUH

#include <cublasLt.h>

#define CUBLAS_CHECK(call) \
    do { \
        cublasStatus_t cublas_status = (call); \
        if (cublas_status != CUBLAS_STATUS_SUCCESS) FAIL(THIS_RANK, "cuBLASLt: %s: status %d", #call, \
            (int)cublas_status); \
    } while (0)

enum { GEMM_PLANS = 512 };

/* One product: C (m, n) = op(A) op(B), columns of neighbours; ld are those of the stored matrices. */
typedef struct {
    i64 m, n, k, lda, ldb, ldc;
    int transpose_a, transpose_b, bias, add, fp32_out;
    int alignment; /* bytes, of the pointers: algorithms depend on it */
} GemmShape;

typedef struct {
    GemmShape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
} GemmPlan;

typedef struct GemmState {
    cublasLtHandle_t handle;
    GemmPlan plan[GEMM_PLANS];
    int plans;
} GemmState;

static inline GemmState *gemm_open(void) {
    GemmState *g = (GemmState *)host_alloc(sizeof(GemmState));
    CUBLAS_CHECK(cublasLtCreate(&g->handle));
    return g;
}

static inline void gemm_close(GemmState *g) {
    if (!g) return;
    for (int i = 0; i < g->plans; i++) {
        cublasLtMatmulDescDestroy(g->plan[i].product);
        cublasLtMatrixLayoutDestroy(g->plan[i].a);
        cublasLtMatrixLayoutDestroy(g->plan[i].b);
        cublasLtMatrixLayoutDestroy(g->plan[i].c);
    }
    cublasLtDestroy(g->handle);
    free(g);
}

/* Ask cuBLASLt for an algorithm. */
static inline void gemm_ask(GemmState *g, GemmPlan *p, i64 workspace) {
    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t found;
    size_t limit = (size_t)workspace;
    uint32_t alignment = (uint32_t)p->shape.alignment;
    int count = 0;
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&wish));
    CUBLAS_CHECK(
        cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limit, sizeof limit));
    const cublasLtMatmulPreferenceAttributes_t alignments[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4; i++)
        CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, alignments[i], &alignment, sizeof alignment));
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(g->handle, p->product, p->a, p->b, p->c, p->c, wish, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(wish);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0)
        FAIL(THIS_RANK, "cuBLASLt has no algorithm for a product of %lld x %lld x %lld", p->shape.m, p->shape.n,
             p->shape.k);
    p->algorithm = found.algo;
}

/* `bias`, where the shape has one: the first that will be added. What cuBLASLt proposes depends on where it lies. */
static inline void gemm_describe(GemmPlan *p, const real *bias) {
    const GemmShape *s = &p->shape;
    cublasOperation_t a = s->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, b = s->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a));
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b));
    if (s->bias) {
        cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        CUBLAS_CHECK(
            cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    }
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->a, CUDA_R_16BF, (uint64_t)(s->transpose_a ? s->k : s->m),
                                            (uint64_t)(s->transpose_a ? s->m : s->k), s->lda));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->b, CUDA_R_16BF, (uint64_t)(s->transpose_b ? s->n : s->k),
                                            (uint64_t)(s->transpose_b ? s->k : s->n), s->ldb));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->c, s->fp32_out ? CUDA_R_32F : CUDA_R_16BF, (uint64_t)s->m,
                                            (uint64_t)s->n, s->ldc));
}

/* The plan for a shape, made on its first use. */
static inline GemmPlan *gemm_plan(GemmState *g, const GemmShape *s, const real *bias, i64 workspace) {
    for (int i = 0; i < g->plans; i++)
        if (memcmp(&g->plan[i].shape, s, sizeof *s) == 0) return &g->plan[i];
    if (g->plans == GEMM_PLANS) FAIL(THIS_RANK, "more than %d shapes of matrix products", GEMM_PLANS);
    GemmPlan *p = &g->plan[g->plans];
    p->shape = *s;
    gemm_describe(p, bias);
    gemm_ask(g, p, workspace);
    g->plans++;
    return p;
}

/* The alignment that all three pointers have: 16 bytes at best. */
static inline int gemm_alignment(const void *a, const void *b, const void *c) {
    uintptr_t bits = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | 16;
    return (int)(bits & (~bits + 1));
}

static inline void gemm(Device *dev, GemmShape s, const real *a, const real *b, void *c, const real *bias) {
    if (s.m == 0 || s.n == 0) return;
    const float one = 1, beta = s.add ? 1 : 0;
    s.bias = bias != NULL;
    s.alignment = gemm_alignment(a, b, c);
    GemmPlan *p = gemm_plan(dev->state.gemm, &s, bias, i64_min(GEMM_WORKSPACE, dev->state.scratch_bytes));
    if (bias)
        CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    CUBLAS_CHECK(cublasLtMatmul(dev->state.gemm->handle, p->product, &one, a, p->a, b, p->b, &beta, c, p->c, c, p->c,
                                &p->algorithm, dev->state.scratch,
                                (size_t)i64_min(GEMM_WORKSPACE, dev->state.scratch_bytes), dev->state.stream));
}

/* ---- the three products of a linear layer ---- */

/* Columns of the first of two products that make one: an odd number of them (GPT-2's 50257 words), in rows that begin
   at whole vectors, is a multiple of 64 and a rest, so that nearly all of the work has whole vectors too. */
static inline i64 even_columns(i64 OC, i64 ld) { return OC % 8 != 0 && ld % 8 == 0 ? OC / 64 * 64 : 0; }

static inline void linear_forward_run(Device *dev, real *out, i64 ld, const real *inp, const real *weight,
                                      const real *bias, i64 rows, i64 IC, i64 OC) {
    int fused = aligned_to(bias, 16); /* what the epilogue may count on is nowhere said; ours are */
    i64 even = even_columns(OC, ld);
    GemmShape s = {even, rows, IC, IC, IC, ld, 1, 0, 0, 0, 0, 0},
              rest = {OC - even, rows, IC, IC, IC, ld, 1, 0, 0, 0, 0, 0};
    gemm(dev, s, weight, inp, out, fused ? bias : NULL);
    gemm(dev, rest, weight + even * IC, inp, out + even, fused && bias ? bias + even : NULL);
    if (!fused) bias_add_run(dev, out, bias, rows, OC);
}

/* The rest goes first: its sum is small, so that little is lost where it is rounded before the other is added. */
static inline void linear_backward_input_run(Device *dev, real *dinp, const real *dout, i64 ld, const real *weight,
                                             i64 rows, i64 IC, i64 OC, int add) {
    i64 even = even_columns(OC, ld);
    GemmShape s = {IC, rows, even, IC, ld, IC, 0, 0, 0, 1, 0, 0},
              rest = {IC, rows, OC - even, IC, ld, IC, 0, 0, 0, add, 0, 0};
    gemm(dev, rest, weight + even * IC, dout + even, dinp, NULL);
    if (even) gemm(dev, s, weight, dout, dinp, NULL);
}

static inline void linear_backward_weight_run(Device *dev, accum *dweight, const real *inp, const real *dout, i64 ld,
                                              i64 rows, i64 IC, i64 OC) {
    if (rows == 0) return; /* the empty sum */
    i64 even = even_columns(OC, ld);
    GemmShape s = {IC, even, rows, IC, ld, IC, 0, 1, 0, 1, 1, 0},
              rest = {IC, OC - even, rows, IC, ld, IC, 0, 1, 0, 1, 1, 0};
    gemm(dev, s, inp, dout, dweight, NULL);
    gemm(dev, rest, inp, dout + even, dweight + even * IC, NULL);
}

#endif

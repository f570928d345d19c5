/* cublasLt.h - the part of cuBLASLt that kernels/cuda/gemm.cuh uses, on the CPU: products of
   column-major matrices with fp32 sums.

   Arguments are checked as the library would: sizes, leading dimensions, types, and that pointers have the alignment
   they were planned for. The work goes into the stream's queue.

   The library takes another algorithm, and another order of sums, for another shape: here a sum begins at a k
   that follows from the shape, and runs around. EMU_SUMS_ALIKE=1: whatever n is, our rows, so that a part of a
   product has the bits of the whole.                                                                                 */
#ifndef ODYSSEUS_EMU_CUBLASLT_H
#define ODYSSEUS_EMU_CUBLASLT_H

typedef enum {
    CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_NOT_SUPPORTED = 15
} cublasStatus_t;
typedef enum { CUBLAS_OP_N, CUBLAS_OP_T } cublasOperation_t;
typedef enum { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType_t;
typedef enum { CUBLAS_COMPUTE_32F = 68 } cublasComputeType_t;
typedef enum { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 } cublasLtEpilogue_t;
typedef enum {
    CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_EPILOGUE,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER
} cublasLtMatmulDescAttributes_t;
typedef enum {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
} cublasLtMatmulPreferenceAttributes_t;

typedef struct EmuLtDesc {
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    const uint16_t *bias;
} *cublasLtMatmulDesc_t;
typedef struct EmuLtLayout {
    cudaDataType_t type;
    int64_t rows, cols, ld;
} *cublasLtMatrixLayout_t;
typedef struct EmuLtPreference {
    size_t workspace;
    uint32_t alignment;
} *cublasLtMatmulPreference_t;
typedef struct {
    uint32_t alignment;
} cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo;
} cublasLtMatmulHeuristicResult_t;
typedef int *cublasLtHandle_t;

static inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return *h = nullptr, CUBLAS_STATUS_SUCCESS; }
static inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
static inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t, cudaDataType_t) {
    *d = new EmuLtDesc{CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    return delete d, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what,
                                                            const void *value, size_t bytes) {
    void *to = what == CUBLASLT_MATMUL_DESC_TRANSA ? (void *)&d->a : what == CUBLASLT_MATMUL_DESC_TRANSB ? (void *)&d->b
             : what == CUBLASLT_MATMUL_DESC_EPILOGUE ? (void *)&d->epilogue : (void *)&d->bias;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows,
                                                        uint64_t cols, int64_t ld) {
    if (ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    *l = new EmuLtLayout{type, (int64_t)rows, (int64_t)cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    return delete l, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    return *p = new EmuLtPreference{0, 256}, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
    return delete p, CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                                  cublasLtMatmulPreferenceAttributes_t what,
                                                                  const void *value, size_t) {
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) memcpy(&p->workspace, value, sizeof p->workspace);
    else memcpy(&p->alignment, value, sizeof p->alignment);
    return CUBLAS_STATUS_SUCCESS;
}
/* What adds a bias is planned for one of its alignment: the library wants to see it. */
static inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                                            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                            cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                            cublasLtMatmulPreference_t wish, int,
                                                            cublasLtMatmulHeuristicResult_t *found, int *count) {
    *count = d->epilogue != CUBLASLT_EPILOGUE_BIAS || d->bias;
    found->algo.alignment = wish->alignment;
    return CUBLAS_STATUS_SUCCESS;
}

static inline void emu_product(EmuLtDesc d, EmuLtLayout A, EmuLtLayout B, EmuLtLayout C, const uint16_t *a,
                               const uint16_t *b, void *c, float beta) {
    static const bool alike = emu_setting("EMU_SUMS_ALIKE", 0) != 0;
    int64_t m = C.rows, n = C.cols, k = d.a == CUBLAS_OP_N ? A.cols : A.rows;
    uint64_t shape = (uint64_t)m * 1000003 + (uint64_t)k * 10007 + (uint64_t)d.a * 31 + (uint64_t)d.b * 17;
    if (!alike) shape += (uint64_t)n * 100003 + 1;
    int64_t first = k ? (int64_t)(emu_random(&shape) % (uint64_t)k) : 0; /* k = first .. k-1, 0 .. first-1 */
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < n; j++) {
        std::vector<float> sum((size_t)m, 0.0f), column((size_t)k); /* of C, of op(B) */
        for (int64_t p = 0; p < k; p++)
            column[(size_t)p] = emu_bf16(d.b == CUBLAS_OP_N ? b[p + j * B.ld] : b[j + p * B.ld]);
        if (d.a == CUBLAS_OP_N) {
            for (int64_t q = 0, p = first; q < k; q++, p = p + 1 < k ? p + 1 : 0)
                for (int64_t i = 0; i < m; i++) sum[(size_t)i] += emu_bf16(a[i + p * A.ld]) * column[(size_t)p];
        } else {
            for (int64_t i = 0; i < m; i++) {
                for (int64_t p = first; p < k; p++) sum[(size_t)i] += emu_bf16(a[p + i * A.ld]) * column[(size_t)p];
                for (int64_t p = 0; p < first; p++) sum[(size_t)i] += emu_bf16(a[p + i * A.ld]) * column[(size_t)p];
            }
        }
        for (int64_t i = 0; i < m; i++) {
            float value = sum[(size_t)i] + (d.epilogue == CUBLASLT_EPILOGUE_BIAS ? emu_bf16(d.bias[i]) : 0);
            if (C.type == CUDA_R_32F) {
                float *out = (float *)c + i + j * C.ld;
                *out = value + (beta != 0 ? beta * *out : 0);
            } else {
                bf16 *out = (bf16 *)c + i + j * C.ld;
                *out = bf16_round(value + (beta != 0 ? beta * bf16_float(*out) : 0));
            }
        }
    }
}

static inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha, const void *a,
                                            cublasLtMatrixLayout_t A, const void *b, cublasLtMatrixLayout_t B,
                                            const void *beta, const void *c, cublasLtMatrixLayout_t C, void *out,
                                            cublasLtMatrixLayout_t D, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                                            cudaStream_t stream) {
    int64_t m = d->a == CUBLAS_OP_N ? A->rows : A->cols, k = d->a == CUBLAS_OP_N ? A->cols : A->rows;
    int64_t kb = d->b == CUBLAS_OP_N ? B->rows : B->cols, n = d->b == CUBLAS_OP_N ? B->cols : B->rows;
    if (m != C->rows || n != C->cols || k != kb || C != D || c != out || *(const float *)alpha != 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (A->type != CUDA_R_16BF || B->type != CUDA_R_16BF) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) % algo->alignment) return CUBLAS_STATUS_INVALID_VALUE;
    EmuLtDesc desc = *d;
    EmuLtLayout la = *A, lb = *B, lc = *C;
    float factor = *(const float *)beta;
    emu_enqueue(stream, [=] { emu_product(desc, la, lb, lc, (const uint16_t *)a, (const uint16_t *)b, out, factor); });
    return CUBLAS_STATUS_SUCCESS;
}

#endif

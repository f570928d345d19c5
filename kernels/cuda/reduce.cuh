/* reduce.cuh - what the memory-bound kernels share: accesses of 16 bytes, sums over a warp,
   a block, the rows of a matrix.

   access   W = 8 neighbouring bf16 (4 floats) of a thread at once, or W = 1 where pointers or widths do not allow it
   warp     butterfly of shuffles: every lane ends with the same bits
   block    warps leave their sums in shared memory, after one barrier every thread adds them in the order of the warps
   columns  (rows, C) -> (C): strips of rows are summed apart into scratch (strips, C), which a second
            kernel adds in the order of the strips. The strips follow from rows and C alone, so the same
            sizes give the same bits on any GPU

            warp w of a block      rows w, w+8, w+16, ... of its strip, 256 columns, 8 to a lane
                                   the 8 warps are joined in order

   Cost: columns read the matrix once; scratch is at most 2 MB (or 8 C bytes, if that is more).                       */
#ifndef ODYSSEUS_CUDA_REDUCE_CUH
#define ODYSSEUS_CUDA_REDUCE_CUH

#define UNROLL_4 UNROLL_BY(4) /* before a loop whose loads should be under way together */

static constexpr int WARP = 32, BLOCK = 256; /* threads of a block, where a kernel has no reason for another number */

/* ---- launches ---------------------------------------------------------------------------------------------------- */

/* Blocks for n items, `each` to a block; the x dimension takes 2^31 - 1. */
static inline unsigned blocks_for(i64 n, i64 each) {
    i64 blocks = ceil_div(n, each);
    if (blocks > 0x7fffffff)
        FAIL(THIS_RANK, "a kernel would need %lld blocks, more than a grid has: lower the batch or the sequence length",
             blocks);
    return (unsigned)blocks;
}

static inline int aligned_to(const void *p, uintptr_t bytes) { return (uintptr_t)p % bytes == 0; }

/* The scratch of an operation: checked, never allocated. */
static inline void *scratch_take(Device *dev, i64 bytes, const char *op) {
    if (bytes > dev->state.scratch_bytes)
        FAIL(THIS_RANK,
             "%s needs %lld bytes of scratch, the device has %lld: ops_scratch_bytes was asked for other sizes", op,
             bytes, dev->state.scratch_bytes);
    return dev->state.scratch;
}

/* ---- access ------------------------------------------------------------------------------------------------------ */

typedef struct __attribute__((aligned(8))) { bf16 v[4]; } bf16x4;

__device__ __forceinline__ void widen(float x[8], bf16x8 u) {
    UNROLL
    for (int i = 0; i < 8; i++) x[i] = bf16_float(u.v[i]);
}
__device__ __forceinline__ bf16x8 narrow(const float x[8]) {
    bf16x8 u;
    UNROLL
    for (int i = 0; i < 4; i++) {
        uint32_t pair = bf16x2_round(x[2 * i], x[2 * i + 1]);
        u.v[2 * i].bits = (uint16_t)pair, u.v[2 * i + 1].bits = (uint16_t)(pair >> 16);
    }
    return u;
}

/* W elements at p, of which `left` exist (zeros for the others): one access where all do, else one by one. */
template <int W> __device__ __forceinline__ void load_real(float x[W], const real *p, i64 left) {
    if constexpr (W == 8) {
        if (left >= 8) {
            widen(x, *(const bf16x8 *)p);
            return;
        }
    }
    UNROLL
    for (int i = 0; i < W; i++) x[i] = i < left ? bf16_float(p[i]) : 0;
}
template <int W> __device__ __forceinline__ void store_real(real *p, const float x[W], i64 left) {
    if constexpr (W == 8) {
        if (left >= 8) {
            *(bf16x8 *)p = narrow(x);
            return;
        }
    }
    if constexpr (W == 4) {
        if (left >= 4) {
            uint32_t low = bf16x2_round(x[0], x[1]), high = bf16x2_round(x[2], x[3]);
            bf16x4 u = {{{(uint16_t)low}, {(uint16_t)(low >> 16)}, {(uint16_t)high}, {(uint16_t)(high >> 16)}}};
            *(bf16x4 *)p = u;
            return;
        }
    }
    UNROLL
    for (int i = 0; i < W; i++)
        if (i < left) p[i] = bf16_round(x[i]);
}
template <int W> __device__ __forceinline__ void load_accum(float x[W], const accum *p, i64 left) {
    if constexpr (W == 4) {
        if (left >= 4) {
            floatx4 u = *(const floatx4 *)p;
            UNROLL
            for (int i = 0; i < 4; i++) x[i] = u.v[i];
            return;
        }
    }
    UNROLL
    for (int i = 0; i < W; i++) x[i] = i < left ? p[i] : 0;
}
template <int W> __device__ __forceinline__ void store_accum(accum *p, const float x[W], i64 left) {
    if constexpr (W == 4) {
        if (left >= 4) {
            floatx4 u;
            UNROLL
            for (int i = 0; i < 4; i++) u.v[i] = x[i];
            *(floatx4 *)p = u;
            return;
        }
    }
    UNROLL
    for (int i = 0; i < W; i++)
        if (i < left) p[i] = x[i];
}

/* This thread's number in the grid. */
__device__ __forceinline__ i64 grid_thread(void) { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }

/* a / b for a >= 0, b > 0, in 32 bits where both fit: a division in 64 is many times dearer. */
__device__ __forceinline__ i64 quotient(i64 a, i64 b) {
    if (((uint64_t)(a | b) >> 32) == 0) return (i64)((uint32_t)a / (uint32_t)b);
    return a / b;
}

/* A number that a kernel divides by, as the host prepares it: ceil(2^63 / by). For a, by >= 1 with a by < 2^63 the
   quotient is exact: a (inverse - 2^63 / by) < 2^63 / by. Two to four multiplications where a division is twenty
   instructions. */
typedef struct {
    uint64_t inverse;
} Divisor;
static inline Divisor divisor(i64 by) {
    Divisor d = {(((uint64_t)1 << 63) + (uint64_t)by - 1) / (uint64_t)by};
    return d;
}
__device__ __forceinline__ i64 divide(i64 a, Divisor d) { return (i64)__umul64hi((uint64_t)a << 1, d.inverse); }
__device__ __forceinline__ int divide(int a, Divisor d) { return (int)__umul64hi((uint32_t)a << 1, d.inverse); }

/* token_position for kernels */
__device__ __forceinline__ i64 map_position(const TokenMap &map, i64 t) {
    if (t < map.run[0].count) return map.run[0].first + t * map.run[0].stride;
    return map.run[1].first + (t - map.run[0].count) * map.run[1].stride;
}

/* ---- warp and block ---------------------------------------------------------------------------------------------- */

template <class T> __device__ __forceinline__ T warp_sum(T x) {
    UNROLL
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The sum over WARPS neighbouring warps of the block; `shared` has WARPS places that nothing else uses until the next
   barrier but this one. All threads of the block must come (unless WARPS is 1). */
template <int WARPS, class T> __device__ __forceinline__ T warps_sum(T x, T *shared) {
    x = warp_sum(x);
    if constexpr (WARPS > 1) {
        int warp = (int)threadIdx.x / WARP, first = warp / WARPS * WARPS;
        if (threadIdx.x % WARP == 0) shared[warp] = x;
        __syncthreads();
        x = shared[first];
        UNROLL
        for (int w = 1; w < WARPS; w++) x += shared[first + w];
    }
    return x;
}

/* *out += the sum of x (n), in double, by one block: threads stride, warps join in order */
__global__ void __launch_bounds__(1024) doubles_sum_kernel(double *out, const double *x, i64 n) {
    SHARED(double, joined, 32);
    double sum = 0;
    for (i64 i = threadIdx.x; i < n; i += 1024) sum += x[i];
    sum = warps_sum<32>(sum, joined);
    if (threadIdx.x == 0) *out += sum;
}

/* ---- columns ----------------------------------------------------------------------------------------------------- */

static constexpr int COLUMN_WARPS = 8;

/* What is summed over the rows: d, or d times the normalized x (and d). */
enum { COLUMNS_PLAIN, COLUMNS_RMS, COLUMNS_LAYER };

/* partial (strips, outputs, C): outputs 1, or for COLUMNS_LAYER 2 (d n, then d) */
template <int WHAT, int W>
__global__ void __launch_bounds__(BLOCK) columns_kernel(accum *partial, const real *d, const real *x, const accum *mean,
                                                        const accum *rstd, i64 rows, i64 C, i64 strip_rows, i64 tiles) {
    constexpr int OUTPUTS = WHAT == COLUMNS_LAYER ? 2 : 1;
    SHARED(float, joined, OUTPUTS * COLUMN_WARPS * COLUMN_TILE);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    i64 strip = quotient(blockIdx.x, tiles), tile = (blockIdx.x - strip * tiles) * COLUMN_TILE;
    i64 end = min(rows, (strip + 1) * strip_rows);
    float sum[8] = {0}, plain[8] = {0};
    /* Lane's columns: eight neighbours (W = 8), or every 32nd so that a warp's scalar loads are neighbours. */
    int step = W == 8 ? 1 : WARP, first = W == 8 ? lane * 8 : lane;
    i64 left = C - tile - first; /* columns from the first on */
    UNROLL_4
    for (i64 r = strip * strip_rows + warp; r < end; r += COLUMN_WARPS) {
        float dv[8], xv[8] = {0};
        const real *at = d + r * C + tile + first;
        if constexpr (W == 8) load_real<8>(dv, at, left > 0 ? 8 : 0);
        else {
            UNROLL
            for (int i = 0; i < 8; i++) dv[i] = i * step < left ? bf16_float(at[i * step]) : 0;
        }
        float m = 0, s = 0;
        if constexpr (WHAT != COLUMNS_PLAIN) {
            at = x + r * C + tile + first;
            if constexpr (W == 8) load_real<8>(xv, at, left > 0 ? 8 : 0);
            else {
                UNROLL
                for (int i = 0; i < 8; i++) xv[i] = i * step < left ? bf16_float(at[i * step]) : 0;
            }
            s = rstd[r];
            if constexpr (WHAT == COLUMNS_LAYER) m = mean[r];
        }
        UNROLL
        for (int i = 0; i < 8; i++) {
            sum[i] += WHAT == COLUMNS_PLAIN ? dv[i] : dv[i] * ((xv[i] - m) * s);
            if constexpr (WHAT == COLUMNS_LAYER) plain[i] += dv[i];
        }
    }
    UNROLL
    for (int i = 0; i < 8; i++) {
        joined[warp * COLUMN_TILE + first + i * step] = sum[i];
        if constexpr (WHAT == COLUMNS_LAYER) joined[(COLUMN_WARPS + warp) * COLUMN_TILE + first + i * step] = plain[i];
    }
    __syncthreads();
    int c = (int)threadIdx.x;
    if (tile + c >= C) return;
    UNROLL
    for (int o = 0; o < OUTPUTS; o++) {
        float total = 0;
        UNROLL
        for (int w = 0; w < COLUMN_WARPS; w++) total += joined[(o * COLUMN_WARPS + w) * COLUMN_TILE + c];
        partial[(strip * OUTPUTS + o) * C + tile + c] = total;
    }
}

/* first (C) and second (C) += the sum over parts of partial (parts, columns); columns is C, or 2 C with `second` */
__global__ void __launch_bounds__(BLOCK)
    columns_add_kernel(accum *first, accum *second, const accum *partial, i64 parts, i64 C, i64 columns) {
    SHARED(float, joined, COLUMN_WARPS * WARP);
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    i64 c = (i64)blockIdx.x * WARP + lane;
    float sum = 0;
    if (c < columns)
        for (i64 p = warp; p < parts; p += COLUMN_WARPS) sum += partial[p * columns + c];
    joined[warp * WARP + lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= columns) return;
    for (int w = 1; w < COLUMN_WARPS; w++) sum += joined[w * WARP + lane];
    accum *to = c < C ? first + c : second ? second + (c - C) : NULL;
    if (to) *to += sum;
}

static inline void columns_add(Device *dev, accum *first, accum *second, const accum *partial, i64 parts, i64 C,
                               i64 columns) {
    LAUNCH(columns_add_kernel, blocks_for(columns, WARP), BLOCK, 0, dev->state.stream, first, second, partial, parts, C,
           columns);
}

/* Launch for one WHAT: sum (C) += columns of d (times n), plain (C) += columns of d. */
template <int WHAT>
static inline void columns_run(Device *dev, accum *sum, accum *plain, const real *d, const real *x, const accum *mean,
                               const accum *rstd, i64 rows, i64 C) {
    i64 strips = column_strips(rows, C), strip_rows = ceil_div(rows, strips), tiles = ceil_div(C, COLUMN_TILE);
    accum *partial = (accum *)scratch_take(dev, columns_scratch_bytes(rows, C), "a sum over rows");
    unsigned grid = blocks_for(strips * tiles, 1);
    if (C % 8 == 0 && aligned_to(d, 16) && aligned_to(x, 16))
        LAUNCH((columns_kernel<WHAT, 8>), grid, BLOCK, 0, dev->state.stream, partial, d, x, mean, rstd, rows, C,
               strip_rows, tiles);
    else
        LAUNCH((columns_kernel<WHAT, 1>), grid, BLOCK, 0, dev->state.stream, partial, d, x, mean, rstd, rows, C,
               strip_rows, tiles);
    columns_add(dev, sum, plain, partial, strips, C, WHAT == COLUMNS_LAYER ? 2 * C : C);
}

#endif

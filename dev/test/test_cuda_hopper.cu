/* test_cuda_hopper.cu - the instructions of sm_90a, one at a time, against plain loops: on a GPU or in the emulator.

   attention_hopper*.cuh is made of them; a layout or a descriptor that is read wrongly shows here first, and alone.

   copies     a bulk copy's box with the swizzle of 128 bytes, zeros past the sizes; back to
              memory, and added to what is there
   products   64 x N x K of a warpgroup: both operands down, B across, A across, A in registers; the numbers are small
              integers, so that every sum is exact. Where one is wrong, other readings of the descriptor are tried and
              the one that fits is printed                                                                            */
#include "cuda_support.h"

#ifdef ODYSSEUS_HOPPER

/* Element (r, c) of a tile of `rows` rows: panels of 64 columns, chunks of 8 exchanged within groups of 8 rows. */
__host__ __device__ static inline int tile_place(int rows, int r, int c) {
    return c / 64 * rows * 64 + r * 64 + (c % 64 / 8 ^ r % 8) * 8 + c % 8;
}

/* ---- products ---- */

typedef struct {
    const bf16 *a, *b; /* (64, K) and (N, K) */
    float *d;          /* (64, N) */
    int a_leading, a_stride, b_leading, b_stride;
    int twice; /* add the product a second time */
} Probe;

template <int N, int K, bool A_REGISTERS, bool A_ACROSS, bool B_ACROSS>
__global__ void __launch_bounds__(128, 1) probe_product(Probe p) {
#if HOPPER_CODE
    SHARED_DYNAMIC_ALIGNED(bf16, a, 1024);
    bf16 *b = a + 64 * K;
    int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32;
    for (int i = thread; i < 64 * K; i += 128)
        a[A_ACROSS ? tile_place(K, i % K, i / K) : tile_place(64, i / K, i % K)] = p.a[i];
    for (int i = thread; i < N * K; i += 128)
        b[B_ACROSS ? tile_place(K, i % K, i / K) : tile_place(N, i / K, i % K)] = p.b[i];
    proxy_fence();
    __syncthreads();
    float d[N / 2];
    UNROLL
    for (int i = 0; i < N / 2; i++) d[i] = 0;
    uint32_t pieces[K / 16][4];
    UNROLL
    for (int k = 0; k < K / 16; k++)
        UNROLL
        for (int r = 0; r < 4; r++) {
            const bf16 *from = p.a + (16 * warp + lane / 4 + 8 * (r % 2)) * K + 16 * k + 8 * (r / 2) + lane % 4 * 2;
            pieces[k][r] = (uint32_t)from[0].bits | (uint32_t)from[1].bits << 16;
        }
    uint64_t da = wgmma_descriptor(a, p.a_leading, p.a_stride, 1), db = wgmma_descriptor(b, p.b_leading, p.b_stride, 1);
    for (int again = 0; again <= p.twice; again++) {
        wgmma_hold(d);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < K; k += 16) {
            uint64_t b_at = db + (B_ACROSS ? across_step(k) : down_step<N>(k)),
                     a_at = da + (A_ACROSS ? across_step(k) : down_step<64>(k));
            if constexpr (A_REGISTERS) wgmma_rs<N, B_ACROSS>(d, pieces[k / 16], b_at, again || k > 0);
            else wgmma_ss<N, A_ACROSS, B_ACROSS>(d, a_at, b_at, again || k > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(d);
    }
    UNROLL
    for (int i = 0; i < N / 2; i++)
        p.d[(16 * warp + lane / 4 + 8 * (i / 2 % 2)) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
#else
    (void)p;
#endif
}

static double *integers(i64 n) {
    double *x = zeros(n);
    for (i64 i = 0; i < n; i++) x[i] = floor(4 * uniform());
    return x;
}

template <int N, int K, bool A_REGISTERS, bool A_ACROSS, bool B_ACROSS> static void test_product(const char *what) {
    double *a = integers(64 * K), *b = integers(N * K), *want = zeros(64 * N);
    Device dev = test_device(16);
    Probe p;
    memset(&p, 0, sizeof p);
    p.a = upload_real(a, 64 * K), p.b = upload_real(b, N * K);
    for (int m = 0; m < 64; m++)
        for (int n = 0; n < N; n++)
            for (int k = 0; k < K; k++) want[m * N + n] += a[m * K + k] * b[n * K + k];
    int a_panel = A_ACROSS ? K * 128 : 64 * 128, b_panel = B_ACROSS ? K * 128 : N * 128;
    /* what the kernels take, then what else one could read */
    const int readings[][4] = {{A_ACROSS ? a_panel : 16, 1024, B_ACROSS ? b_panel : 16, 1024},
                               {A_ACROSS ? 1024 : 16, A_ACROSS ? a_panel : 1024, B_ACROSS ? 1024 : 16,
                                B_ACROSS ? b_panel : 1024},
                               {1024, 16, 1024, 16},
                               {16, 128, 16, 128},
                               {1024, 1024, 1024, 1024},
                               {a_panel, 128, b_panel, 128}};
    for (int i = 0; i < COUNT_OF(readings); i++) {
        p.d = unset_accum(64 * N), p.twice = i == 0;
        p.a_leading = readings[i][0], p.a_stride = readings[i][1], p.b_leading = readings[i][2],
        p.b_stride = readings[i][3];
        LAUNCH((probe_product<N, K, A_REGISTERS, A_ACROSS, B_ACROSS>), dim3(1), dim3(128), (64 + N) * K * 2,
               dev.state.stream, p);
        double *got = download_accum(p.d, 64 * N);
        int wrong = 0, first = -1;
        for (int j = 0; j < 64 * N; j++)
            if (got[j] != (1 + p.twice) * want[j]) wrong++, first = first < 0 ? j : first;
        if (i == 0) {
            if (check(!wrong, "%s: %d x %d x %d, %d of %d elements wrong, the first (%d, %d)", what, 64, N, K, wrong,
                      64 * N, first / N, first % N))
                break;
        } else
            printf("# reading %d (a %d, %d; b %d, %d): %s\n", i, p.a_leading, p.a_stride, p.b_leading, p.b_stride,
                   wrong ? "wrong too" : "RIGHT");
    }
    release_all();
}

/* ---- copies ---- */

/* the box ends past the tokens, or past the columns */
enum { BOX_ROWS = 64, COPY_COLS = 136, COPY_HEADS = 3, COPY_TOKENS = 50 };

typedef struct {
    TensorMap in, out;
    bf16 *dump; /* the box as it lies in shared memory */
    int col, head, token;
    float *sums; /* not NULL: write a box of them instead */
    int add;
} CopyProbe;

__global__ void __launch_bounds__(128, 1) probe_copy(const __grid_constant__ CopyProbe p) {
#if HOPPER_CODE
    SHARED_DYNAMIC_ALIGNED(bf16, tile, 1024);
    Mbarrier *full = (Mbarrier *)(tile + BOX_ROWS * 64);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    for (int round = 0; round < 2; round++) { /* twice, for both parities */
        if (threadIdx.x == 0) {
            tma_prefetch_map(&p.in);
            mbarrier_arrive_expect(full, BOX_ROWS * 128);
            tma_load_3d(tile, &p.in, full, p.col, p.head, p.token);
        }
        mbarrier_wait(full, round);
        __syncthreads();
    }
    for (int i = (int)threadIdx.x; i < BOX_ROWS * 64; i += 128) p.dump[i] = tile[i];
#else
    (void)p;
#endif
}

/* A box of 32 columns of fp32, swizzled as above: element (r, c) is 1000 r + c. */
__global__ void __launch_bounds__(128, 1) probe_write(const __grid_constant__ CopyProbe p) {
#if HOPPER_CODE
    SHARED_DYNAMIC_ALIGNED(float, tile, 1024);
    for (int i = (int)threadIdx.x; i < BOX_ROWS * 32; i += 128) {
        int r = i / 32, c = i % 32;
        tile[r * 32 + (c / 4 ^ r % 8) * 4 + c % 4] = (float)(1000 * r + c);
    }
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (p.add) tma_reduce_add_3d(&p.out, tile, p.col, p.head, p.token);
        else tma_store_3d(&p.out, tile, p.col, p.head, p.token);
        bulk_commit();
        bulk_wait_read<0>();
        bulk_wait<0>();
    }
#else
    (void)p;
#endif
}

static void test_map(TensorMap *to, int type, const void *base, int bytes, int box_cols) {
    uint64_t dims[3] = {COPY_COLS, COPY_HEADS, COPY_TOKENS},
             strides[2] = {(uint64_t)(COPY_COLS * bytes), (uint64_t)(COPY_HEADS * COPY_COLS * bytes)};
    uint32_t box[3] = {(uint32_t)box_cols, 1, BOX_ROWS};
    tensor_map_encode(to, type, base, 3, dims, strides, box, 1);
}

static void test_copy(int col, int head, int token) {
    i64 n = (i64)COPY_TOKENS * COPY_HEADS * COPY_COLS;
    double *x = integers(n);
    Device dev = test_device(16);
    CopyProbe p;
    memset(&p, 0, sizeof p);
    const real *from = upload_real(x, n);
    test_map(&p.in, TENSOR_BF16, from, 2, 64);
    p.dump = unset_real(BOX_ROWS * 64), p.col = col, p.head = head, p.token = token;
    LAUNCH(probe_copy, dim3(1), dim3(128), BOX_ROWS * 128 + 64, dev.state.stream, p);
    double *got = download_real(p.dump, BOX_ROWS * 64);
    int wrong = 0, plain = 0;
    for (int r = 0; r < BOX_ROWS; r++)
        for (int c = 0; c < 64; c++) {
            int there = token + r < COPY_TOKENS && col + c < COPY_COLS;
            double want = there ? x[((token + r) * COPY_HEADS + head) * COPY_COLS + col + c] : 0;
            wrong += got[tile_place(BOX_ROWS, r, c)] != want, plain += got[r * 64 + c] != want;
        }
    check(!wrong, "copy of the box at (%d, %d, %d): %d of %d elements wrong, %d if there were no swizzle", col, head,
          token, wrong, BOX_ROWS * 64, plain);
    release_all();
}

static void test_write(int add) {
    i64 n = (i64)COPY_TOKENS * COPY_HEADS * COPY_COLS;
    double *x = integers(n);
    Device dev = test_device(16);
    CopyProbe p;
    memset(&p, 0, sizeof p);
    accum *to = upload_accum(x, n);
    test_map(&p.out, TENSOR_F32, to, 4, 32);
    p.col = 32, p.head = 1, p.token = 7, p.add = add;
    LAUNCH(probe_write, dim3(1), dim3(128), BOX_ROWS * 128, dev.state.stream, p);
    double *got = download_accum(to, n);
    int wrong = 0;
    for (int t = 0; t < COPY_TOKENS; t++)
        for (int h = 0; h < COPY_HEADS; h++)
            for (int c = 0; c < COPY_COLS; c++) {
                i64 at = (t * COPY_HEADS + h) * COPY_COLS + c;
                int inside = h == 1 && t >= 7 && c >= 32 && c < 64;
                wrong += got[at] != (inside ? 1000 * (t - 7) + c - 32 + (add ? x[at] : 0) : x[at]);
            }
    check(!wrong, "box %s memory: %d of %lld elements wrong", add ? "added to" : "written to", wrong, n);
    release_all();
}

int main(void) {
    need_device();
    watch_device(300);
    if (!need_wgmma()) return checks_done();
    test_copy(0, 0, 0), test_copy(64, 2, 3), test_copy(128, 1, 40);
    test_product<64, 64, false, false, false>("both down");
    test_product<128, 128, false, false, false>("both down");
    test_product<64, 64, false, false, true>("B across");
    test_product<128, 64, false, false, true>("B across");
    test_product<64, 128, false, true, true>("both across");
    test_product<64, 64, true, false, true>("A in registers, B across");
    test_product<128, 128, true, false, true>("A in registers, B across");
    test_write(0), test_write(1);
    return checks_done();
}

#else
int main(void) {
    need_device();
    need_wgmma();
    return checks_done();
}
#endif

/* embedding.cuh - a token's vector, plus its position's where the model learns positions (GPT-2).

   tokens (T, B) --> row t*B + b of out (T, B, C) = wte[token] + wpe[position of t]

   Backward meets the same token in many rows and sums them in a fixed order, without an atomic addition of floats:

     count    rows of each token, by integer atomics                       any order gives the same counts
     scan     -> starts (V + 1): where each token's bucket begins          one block
     scatter  rows into their buckets                                      any order within a bucket
     rank     each row's place is the number of smaller rows in its bucket: now the order is fixed
     add      a bucket of up to EMBED_SMALL rows: a warp to 256 columns, rows in order
              a larger one: a block of 8 warps, warp w takes rows w, w+8, ..., the warps' sums are joined in order

   A position occurs B times, in rows t*B .. t*B+B-1: a warp adds them in order.
   Cost: dout is read once (twice with positions), a row of dwte is read and written once per token that occurs.
   Rank is quadratic in the size of a bucket: 0.02 n^2 comparisons for n rows of text, a millisecond even where all
   of 65536 rows are one token.                                                                                       */
#ifndef ODYSSEUS_CUDA_EMBEDDING_CUH
#define ODYSSEUS_CUDA_EMBEDDING_CUH

static constexpr int EMBED_COLUMNS = 256, SCAN_THREADS = 1024, SCAN_EACH = 8;

/* ---- forward ---- */

template <int W>
__global__ void __launch_bounds__(BLOCK) embedding_forward_kernel(real *out, const int32_t *tokens, TokenMap map,
                                                                  const real *wte, const real *wpe, i64 B, i64 C) {
    i64 i = grid_thread() * W;
    if (i >= map.count * B * C) return;
    i64 r = quotient(i / W, C / W), c = i - r * C;
    float x[W], p[W];
    load_real<W>(x, wte + tokens[r] * C + c, W);
    if (wpe) {
        load_real<W>(p, wpe + map_position(map, quotient(r, B)) * C + c, W);
        UNROLL
        for (int e = 0; e < W; e++) x[e] += p[e];
    }
    store_real<W>(out + i, x, W);
}

static inline void embedding_forward_run(Device *dev, real *out, const int32_t *tokens, TokenMap map, const real *wte,
                                         const real *wpe, i64 B, i64 C) {
    i64 n = map.count * B * C;
    if (n == 0) return;
    if (C % 8 == 0 && aligned_to(out, 16) && aligned_to(wte, 16) && aligned_to(wpe, 16))
        LAUNCH(embedding_forward_kernel<8>, blocks_for(n, 8 * BLOCK), BLOCK, 0, dev->state.stream, out, tokens, map,
               wte, wpe, B, C);
    else
        LAUNCH(embedding_forward_kernel<1>, blocks_for(n, BLOCK), BLOCK, 0, dev->state.stream, out, tokens, map, wte,
               wpe, B, C);
}

/* ---- backward: the buckets ---- */

/* Scratch of embedding_backward, all int. */
typedef struct {
    int *starts;  /* V + 1: token v's rows are starts[v] .. starts[v+1]-1 of `sorted` */
    int *cursor;  /* V: counts, then the next free place of each bucket */
    int *n_large; /* 1: buckets of more than EMBED_SMALL rows */
    int *large;   /* their tokens, in any order */
    int *loose;   /* rows: buckets, not yet in order */
    int *sorted;  /* rows: in order */
} Buckets;

static inline Buckets buckets_in(int *scratch, i64 rows, i64 vocab) {
    Buckets b;
    b.cursor = scratch;
    b.n_large = b.cursor + vocab;
    b.starts = b.n_large + 1;
    b.large = b.starts + vocab + 1;
    b.loose = b.large + rows / EMBED_SMALL + 1;
    b.sorted = b.loose + rows;
    return b;
}

__global__ void __launch_bounds__(BLOCK) buckets_count_kernel(Buckets b, const int32_t *tokens, i64 rows) {
    i64 r = grid_thread();
    if (r < rows) atomicAdd(b.cursor + tokens[r], 1);
}

/* starts, cursor = the exclusive sum of the counts in cursor; by one block, SCAN_THREADS
   * SCAN_EACH counts at a time */
__global__ void __launch_bounds__(SCAN_THREADS) buckets_scan_kernel(Buckets b, int vocab) {
    SHARED(int, totals, 2 * WARP); /* of the warps; turns alternate, so that one barrier is enough */
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, before = 0, turn = 0;
    for (int first = 0; first < vocab; first += SCAN_THREADS * SCAN_EACH, turn ^= WARP) {
        int at = first + (int)threadIdx.x * SCAN_EACH, count[SCAN_EACH], sum = 0;
        UNROLL
        for (int e = 0; e < SCAN_EACH; e++) {
            count[e] = at + e < vocab ? b.cursor[at + e] : 0;
            sum += count[e];
        }
        int upto = sum;
        UNROLL
        for (int step = 1; step < WARP; step *= 2) {
            int other = __shfl_up_sync(0xffffffffu, upto, step);
            if (lane >= step) upto += other;
        }
        if (lane == WARP - 1) totals[turn + warp] = upto;
        __syncthreads();
        int all = 0, place = before + upto - sum;
        for (int w = 0; w < WARP; w++) {
            if (w < warp) place += totals[turn + w];
            all += totals[turn + w];
        }
        UNROLL
        for (int e = 0; e < SCAN_EACH; e++) {
            if (at + e < vocab) b.starts[at + e] = b.cursor[at + e] = place;
            place += count[e];
        }
        before += all;
    }
    if (threadIdx.x == 0) b.starts[vocab] = before;
}

__global__ void __launch_bounds__(BLOCK) buckets_scatter_kernel(Buckets b, const int32_t *tokens, i64 rows) {
    i64 r = grid_thread();
    if (r < rows) b.loose[atomicAdd(b.cursor + tokens[r], 1)] = (int)r;
}

__global__ void __launch_bounds__(BLOCK) buckets_rank_kernel(Buckets b, const int32_t *tokens, i64 rows) {
    i64 i = grid_thread();
    if (i >= rows) return;
    int r = b.loose[i], v = tokens[r], start = b.starts[v], end = b.starts[v + 1], rank = 0;
    UNROLL_4
    for (int j = start; j < end; j++) rank += b.loose[j] < r;
    b.sorted[start + rank] = r;
    if (i == start && end - start > EMBED_SMALL) b.large[atomicAdd(b.n_large, 1)] = v;
}

/* ---- backward: the sums ---- */

/* sum += columns of row r: eight neighbours (W = 8) or every 32nd; `left` columns exist from the lane's first on */
template <int W> __device__ __forceinline__ void row_add(float sum[8], const real *row, i64 left) {
    float x[8];
    if constexpr (W == 8) load_real<8>(x, row, left > 0 ? 8 : 0);
    else {
        UNROLL
        for (int e = 0; e < 8; e++) x[e] = e * WARP < left ? bf16_float(row[e * WARP]) : 0;
    }
    UNROLL
    for (int e = 0; e < 8; e++) sum[e] += x[e];
}
template <int W> __device__ __forceinline__ void row_add_to(accum *to, const float sum[8], i64 left) {
    if constexpr (W == 8) {
        if (left <= 0) return;
        float x[8];
        load_accum<4>(x, to, 4), load_accum<4>(x + 4, to + 4, 4);
        UNROLL
        for (int e = 0; e < 8; e++) x[e] += sum[e];
        store_accum<4>(to, x, 4), store_accum<4>(to + 4, x + 4, 4);
    } else {
        UNROLL
        for (int e = 0; e < 8; e++)
            if (e * WARP < left) to[e * WARP] += sum[e];
    }
}

/* A warp to (place in `sorted`, 256 columns): the first of a small bucket adds the bucket. */
template <int W>
__global__ void __launch_bounds__(BLOCK) embedding_small_kernel(accum *dwte, const real *dout, const int32_t *tokens,
                                                                Buckets b, i64 rows, i64 C, i64 tiles) {
    i64 warp = grid_thread() / WARP, i = quotient(warp, tiles);
    if (i >= rows) return;
    int lane = (int)threadIdx.x % WARP, v = tokens[b.sorted[i]], start = b.starts[v], end = b.starts[v + 1];
    if (i != start || end - start > EMBED_SMALL) return;
    i64 c = (warp - i * tiles) * EMBED_COLUMNS + (W == 8 ? lane * 8 : lane);
    float sum[8] = {0};
    UNROLL_4
    for (int j = start; j < end; j++) row_add<W>(sum, dout + b.sorted[j] * C + c, C - c);
    row_add_to<W>(dwte + v * C + c, sum, C - c);
}

template <int W>
__global__ void __launch_bounds__(BLOCK)
    embedding_large_kernel(accum *dwte, const real *dout, Buckets b, i64 C, i64 tiles) {
    SHARED(float, joined, 8 * EMBED_COLUMNS);
    i64 i = quotient(blockIdx.x, tiles), tile = (blockIdx.x - i * tiles) * EMBED_COLUMNS;
    if (i >= *b.n_large) return;
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, first = W == 8 ? lane * 8 : lane,
        step = W == 8 ? 1 : WARP;
    int v = b.large[i], end = b.starts[v + 1];
    float sum[8] = {0};
    UNROLL_4
    for (int j = b.starts[v] + warp; j < end; j += 8)
        row_add<W>(sum, dout + b.sorted[j] * C + tile + first, C - tile - first);
    UNROLL
    for (int e = 0; e < 8; e++) joined[warp * EMBED_COLUMNS + first + e * step] = sum[e];
    __syncthreads();
    int c = (int)threadIdx.x;
    if (tile + c >= C) return;
    float total = 0;
    UNROLL
    for (int w = 0; w < 8; w++) total += joined[w * EMBED_COLUMNS + c];
    dwte[v * C + tile + c] += total;
}

/* A warp to (token of the map, 256 columns) */
template <int W>
__global__ void __launch_bounds__(BLOCK)
    embedding_positions_kernel(accum *dwpe, const real *dout, TokenMap map, i64 B, i64 C, i64 tiles) {
    i64 warp = grid_thread() / WARP, t = quotient(warp, tiles);
    if (t >= map.count) return;
    int lane = (int)threadIdx.x % WARP;
    i64 c = (warp - t * tiles) * EMBED_COLUMNS + (W == 8 ? lane * 8 : lane);
    float sum[8] = {0};
    UNROLL_4
    for (i64 b = 0; b < B; b++) row_add<W>(sum, dout + (t * B + b) * C + c, C - c);
    row_add_to<W>(dwpe + map_position(map, t) * C + c, sum, C - c);
}

template <int W>
static inline void embedding_backward_sums(Device *dev, accum *dwte, accum *dwpe, const real *dout,
                                           const int32_t *tokens, TokenMap map, Buckets b, i64 B, i64 C) {
    i64 rows = map.count * B, tiles = ceil_div(C, EMBED_COLUMNS), most_large = rows / (EMBED_SMALL + 1);
    cudaStream_t stream = dev->state.stream;
    LAUNCH(embedding_small_kernel<W>, blocks_for(rows * tiles, BLOCK / WARP), BLOCK, 0, stream, dwte, dout, tokens, b,
           rows, C, tiles);
    if (most_large)
        LAUNCH(embedding_large_kernel<W>, blocks_for(most_large * tiles, 1), BLOCK, 0, stream, dwte, dout, b, C, tiles);
    if (dwpe)
        LAUNCH(embedding_positions_kernel<W>, blocks_for(map.count * tiles, BLOCK / WARP), BLOCK, 0, stream, dwpe, dout,
               map, B, C, tiles);
}

static inline void embedding_backward_run(Device *dev, accum *dwte, accum *dwpe, const real *dout,
                                          const int32_t *tokens, TokenMap map, i64 B, i64 C, i64 V) {
    i64 rows = map.count * B;
    if (rows * C == 0) return;
    if (rows > 0x7fffffff || V > 0x40000000)
        FAIL(THIS_RANK, "embedding_backward: %lld rows of %lld tokens are not taken, at most 2^31", rows, V);
    cudaStream_t stream = dev->state.stream;
    Buckets b = buckets_in((int *)scratch_take(dev, embedding_scratch_bytes(rows, V), "embedding_backward"), rows, V);
    unsigned grid = blocks_for(rows, BLOCK);
    int vocab = (int)V;
    CUDA_CHECK(cudaMemsetAsync(b.cursor, 0, (size_t)(V + 1) * 4, stream)); /* n_large lies behind the counts */
    LAUNCH(buckets_count_kernel, grid, BLOCK, 0, stream, b, tokens, rows);
    LAUNCH(buckets_scan_kernel, 1, SCAN_THREADS, 0, stream, b, vocab);
    LAUNCH(buckets_scatter_kernel, grid, BLOCK, 0, stream, b, tokens, rows);
    LAUNCH(buckets_rank_kernel, grid, BLOCK, 0, stream, b, tokens, rows);
    if (C % 8 == 0 && aligned_to(dwte, 16) && aligned_to(dwpe, 16) && aligned_to(dout, 16))
        embedding_backward_sums<8>(dev, dwte, dwpe, dout, tokens, map, b, B, C);
    else embedding_backward_sums<1>(dev, dwte, dwpe, dout, tokens, map, b, B, C);
}

#endif

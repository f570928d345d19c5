/* embedding.cuh - a token's vector, plus its position's where the model learns positions (GPT-2).

   tokens (T, B) --> row t*B + b of out (T, B, C) = wte[token] + wpe[position of t]

   Backward meets the same token in many rows and sums them in a fixed order, without an atomic addition of floats:

     count    rows of each token, by integer atomics                       any order gives the same counts
     place    where each token's bucket begins, and a list of the buckets  any order gives the same sums
     scatter  rows into their buckets                                      any order within a bucket
     rank     each row's place is the number of smaller rows in its bucket: now the order is fixed
     add      a bucket of up to EMBED_SMALL rows: a warp to 256 columns, rows in order
              a larger one: a block of 8 warps, warp w takes rows w, w+8, ..., the warps' sums are joined in order
              a position occurs B times, in rows t*B .. t*B+B-1: a warp adds them in order
              one launch of all three, the longest first, so that none waits for another's last block

   Cost: dout is read once (twice with positions), a row of dwte is read and written once per token that occurs.
   Rank is quadratic in the size of a bucket: 0.02 n^2 comparisons for n rows of text, a millisecond even where all
   of 65536 rows are one token.                                                                                       */
#ifndef ODYSSEUS_CUDA_EMBEDDING_CUH
#define ODYSSEUS_CUDA_EMBEDDING_CUH

static constexpr int EMBED_COLUMNS = 256;

/* ---- forward ---- */

static constexpr int EMBED_ROWS = 2; /* rows of a thread */

/* A thread has W columns of EMBED_ROWS rows; rows of one position read its vector once. */
template <int W>
__global__ void __launch_bounds__(BLOCK)
    embedding_forward_kernel(real *out, const int32_t *tokens, TokenMap map, const real *wte, const real *wpe, i64 B,
                             i64 C, Divisor row, Divisor batch) {
    i64 i = grid_thread(), group = divide(i, row), c = i * W - group * C, first = group * EMBED_ROWS,
        rows = map.count * B, at = -1;
    if (first >= rows) return;
    bf16x8 x[EMBED_ROWS], p[EMBED_ROWS]; /* W of them */
    UNROLL
    for (int k = 0; k < EMBED_ROWS; k++) {
        i64 r = first + k;
        if (r >= rows) continue;
        const real *from = wte + tokens[r] * C + c;
        if constexpr (W == 8) x[k] = *(const bf16x8 *)from;
        else x[k].v[0] = *from;
        if (!wpe) continue;
        i64 t = divide(r, batch);
        from = wpe + map_position(map, t) * C + c;
        if (k > 0 && t == at) p[k] = p[k - 1];
        else if constexpr (W == 8) p[k] = *(const bf16x8 *)from;
        else p[k].v[0] = *from;
        at = t;
    }
    UNROLL
    for (int k = 0; k < EMBED_ROWS; k++) {
        if (first + k >= rows) return;
        float sum[W];
        UNROLL
        for (int e = 0; e < W; e++) sum[e] = bf16_float(x[k].v[e]) + (wpe ? bf16_float(p[k].v[e]) : 0);
        store_real<W>(out + (first + k) * C + c, sum, W);
    }
}

static inline void embedding_forward_run(Device *dev, real *out, const int32_t *tokens, TokenMap map, const real *wte,
                                         const real *wpe, i64 B, i64 C) {
    i64 rows = map.count * B;
    if (rows * C == 0) return;
    int vectors = C % 8 == 0 && aligned_to(out, 16) && aligned_to(wte, 16) && aligned_to(wpe, 16);
    i64 each = vectors ? C / 8 : C;
    Divisor row = divisor(each), batch = divisor(B);
    unsigned grid = blocks_for(ceil_div(rows, EMBED_ROWS) * each, BLOCK);
    if (vectors)
        LAUNCH(embedding_forward_kernel<8>, grid, BLOCK, 0, dev->state.stream, out, tokens, map, wte, wpe, B, C, row,
               batch);
    else
        LAUNCH(embedding_forward_kernel<1>, grid, BLOCK, 0, dev->state.stream, out, tokens, map, wte, wpe, B, C, row,
               batch);
}

/* ---- backward: the buckets ---- */

/* Scratch of embedding_backward, all int. */
typedef struct {
    int *cursor; /* V: counts, then the next free place of each bucket, in the end the place behind it */
    int *taken;  /* 3: places of `loose` that are given away; buckets of up to EMBED_SMALL rows; larger ones */
    int *starts; /* V: token v's rows are starts[v] .. cursor[v]-1 of `sorted` */
    int *small, *large; /* tokens of the buckets, in any order */
    int *loose;         /* rows: buckets, not yet in order */
    int *sorted;        /* rows: in order */
} Buckets;

static inline Buckets buckets_in(int *scratch, i64 rows, i64 vocab) {
    Buckets b;
    b.cursor = scratch;
    b.taken = b.cursor + vocab;
    b.starts = b.taken + 3;
    b.small = b.starts + vocab;
    b.large = b.small + i64_min(rows, vocab);
    b.loose = b.large + rows / (EMBED_SMALL + 1);
    b.sorted = b.loose + rows;
    return b;
}

__global__ void __launch_bounds__(BLOCK) buckets_count_kernel(Buckets b, const int32_t *tokens, i64 rows) {
    i64 r = grid_thread();
    if (r < rows) atomicAdd(b.cursor + tokens[r], 1);
}

/* The sum of x over this lane and those before it. */
__device__ __forceinline__ int warp_sum_upto(int x) {
    int lane = (int)threadIdx.x % WARP;
    UNROLL
    for (int step = 1; step < WARP; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, x, step);
        if (lane >= step) x += other;
    }
    return x;
}

/* A place for every bucket, and its token in one of the two lists: a warp asks for its 32 tokens together. */
__global__ void __launch_bounds__(BLOCK) buckets_place_kernel(Buckets b, int vocab) {
    i64 v = grid_thread();
    int count = v < vocab ? b.cursor[v] : 0, large = count > EMBED_SMALL, small = count > 0 && !large;
    int ends[3] = {warp_sum_upto(count), warp_sum_upto(small), warp_sum_upto(large)}, at[3];
    UNROLL
    for (int i = 0; i < 3; i++) {
        at[i] = (int)threadIdx.x % WARP == WARP - 1 && ends[i] > 0 ? atomicAdd(b.taken + i, ends[i]) : 0;
        at[i] = __shfl_sync(0xffffffffu, at[i], WARP - 1) + ends[i];
    }
    if (v < vocab) b.starts[v] = b.cursor[v] = at[0] - count;
    if (small) b.small[at[1] - 1] = (int)v;
    if (large) b.large[at[2] - 1] = (int)v;
}

__global__ void __launch_bounds__(BLOCK) buckets_scatter_kernel(Buckets b, const int32_t *tokens, i64 rows) {
    i64 r = grid_thread();
    if (r < rows) b.loose[atomicAdd(b.cursor + tokens[r], 1)] = (int)r;
}

__global__ void __launch_bounds__(BLOCK) buckets_rank_kernel(Buckets b, const int32_t *tokens, i64 rows) {
    i64 i = grid_thread();
    if (i >= rows) return;
    int r = b.loose[i], v = tokens[r], start = b.starts[v], end = b.cursor[v], rank = 0;
    UNROLL_4
    for (int j = start; j < end; j++) rank += b.loose[j] < r;
    b.sorted[start + rank] = r;
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

/* A warp to (bucket, 256 columns). */
template <int W>
__device__ __forceinline__ void embedding_small(accum *dwte, const real *dout, Buckets b, i64 warp, i64 C, i64 tiles) {
    static_assert(EMBED_SMALL <= WARP, "a lane holds the number of one row");
    i64 i = quotient(warp, tiles);
    if (i >= b.taken[1]) return;
    int lane = (int)threadIdx.x % WARP, v = b.small[i], start = b.starts[v], n = b.cursor[v] - start;
    i64 c = (warp - i * tiles) * EMBED_COLUMNS + (W == 8 ? lane * 8 : lane);
    int mine = lane < n ? b.sorted[start + lane] : 0;
    float sum[8] = {0};
    UNROLL_4
    for (int j = 0; j < n; j++) row_add<W>(sum, dout + (i64)__shfl_sync(0xffffffffu, mine, j) * C + c, C - c);
    row_add_to<W>(dwte + v * C + c, sum, C - c);
}

/* A block to (bucket, 256 columns). */
template <int W>
__device__ __forceinline__ void embedding_large(accum *dwte, const real *dout, Buckets b, i64 block, i64 C, i64 tiles) {
    SHARED(float, joined, 8 * EMBED_COLUMNS);
    i64 i = quotient(block, tiles), tile = (block - i * tiles) * EMBED_COLUMNS;
    if (i >= b.taken[2]) return;
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, first = W == 8 ? lane * 8 : lane,
        step = W == 8 ? 1 : WARP;
    int v = b.large[i], end = b.cursor[v];
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
__device__ __forceinline__ void embedding_positions(accum *dwpe, const real *dout, const TokenMap &map, i64 warp, i64 B,
                                                    i64 C, i64 tiles) {
    i64 t = quotient(warp, tiles);
    if (t >= map.count) return;
    int lane = (int)threadIdx.x % WARP;
    i64 c = (warp - t * tiles) * EMBED_COLUMNS + (W == 8 ? lane * 8 : lane);
    float sum[8] = {0};
    UNROLL_4
    for (i64 b = 0; b < B; b++) row_add<W>(sum, dout + (t * B + b) * C + c, C - c);
    row_add_to<W>(dwpe + map_position(map, t) * C + c, sum, C - c);
}

/* Blocks of large buckets, then of positions, then of small buckets. */
template <int W>
__global__ void __launch_bounds__(BLOCK)
    embedding_sums_kernel(accum *dwte, accum *dwpe, const real *dout, TokenMap map, Buckets b, i64 B, i64 C, i64 tiles,
                          i64 large, i64 positions) {
    i64 block = blockIdx.x, warp = threadIdx.x / WARP;
    if (block < large) embedding_large<W>(dwte, dout, b, block, C, tiles);
    else if (block < large + positions)
        embedding_positions<W>(dwpe, dout, map, (block - large) * (BLOCK / WARP) + warp, B, C, tiles);
    else embedding_small<W>(dwte, dout, b, (block - large - positions) * (BLOCK / WARP) + warp, C, tiles);
}

template <int W>
static inline void embedding_backward_sums(Device *dev, accum *dwte, accum *dwpe, const real *dout, TokenMap map,
                                           Buckets b, i64 B, i64 C, i64 V) {
    i64 rows = map.count * B, tiles = ceil_div(C, EMBED_COLUMNS), warps = BLOCK / WARP,
        large = rows / (EMBED_SMALL + 1) * tiles, positions = dwpe ? ceil_div(map.count * tiles, warps) : 0,
        small = ceil_div(i64_min(rows, V) * tiles, warps);
    LAUNCH(embedding_sums_kernel<W>, blocks_for(large + positions + small, 1), BLOCK, 0, dev->state.stream, dwte, dwpe,
           dout, map, b, B, C, tiles, large, positions);
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
    CUDA_CHECK(cudaMemsetAsync(b.cursor, 0, (size_t)(V + 3) * 4, stream)); /* `taken` lies behind the counts */
    LAUNCH(buckets_count_kernel, grid, BLOCK, 0, stream, b, tokens, rows);
    LAUNCH(buckets_place_kernel, blocks_for(V, BLOCK), BLOCK, 0, stream, b, vocab);
    LAUNCH(buckets_scatter_kernel, grid, BLOCK, 0, stream, b, tokens, rows);
    LAUNCH(buckets_rank_kernel, grid, BLOCK, 0, stream, b, tokens, rows);
    if (C % 8 == 0 && aligned_to(dwte, 16) && aligned_to(dwpe, 16) && aligned_to(dout, 16))
        embedding_backward_sums<8>(dev, dwte, dwpe, dout, map, b, B, C, V);
    else embedding_backward_sums<1>(dev, dwte, dwpe, dout, map, b, B, C, V);
}

#endif

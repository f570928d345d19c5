/* attention.cuh - what the attention kernels share: tiles of a token map, swizzled tiles of
   shared memory, products of one warp.

   A tile never crosses the end of a run of positions (core/positions.h). Positions in it are first + i stride, and they
   ascend from tile to tile. So the KV tiles that a query tile sees are 0 .. n-1 and the query tiles that see a KV tile
   are the last ones: both follow from one comparison, and only tiles on the edge of the mask look at single elements.

   Where queries see keys from `lo` on (AttentionCall), lo never falls within a run. So a query tile sees the KV tiles
   m .. n-1, where m follows from the lo of its first query, and the query tiles that see a KV tile are in each run some
   that follow each other:

        KV tile       0  1  2  3  4  5         a window of two and a half tiles
        query tile 2  #  #  #  .  .  .         # seen, no score of it masked for its lo
                   3  /  #  #  #  .  .         / seen, but not by all of the tile's queries
                   4  .  /  #  #  #  .         . skipped
                   5  .  .  /  #  #  #

   Every kernel has two forms, without LO and with it: nothing of the second is in the first one's code.

   Shared memory holds a tile as rows of COLS bf16, cut into chunks of 16 bytes. Chunk c of row r lies where c ^ (r % 8)
   would: the eight rows that ldmatrix reads at one column lie in eight different groups of banks, without padding.

        row 0   0 1 2 3 4 5 6 7          chunk 2 of rows 0..7 is in groups 2 3 0 1 6 7 4 5
        row 1   1 0 3 2 5 4 7 6
        row 2   2 3 0 1 6 7 4 5

   A head dim between two templates (8, 16, ... 128) runs in the next larger one: the missing columns are zeros in
   shared memory and are not stored.

   Dao 2023, arXiv:2307.08691; fragments: PTX ISA, "Matrix fragments for mma.m16n8k16"                                */
#ifndef ODYSSEUS_CUDA_ATTENTION_H
#define ODYSSEUS_CUDA_ATTENTION_H

/* ---- what the kernels take ---- */

/* What a token map is to a kernel: 32-bit numbers, and its tiles counted. */
typedef struct {
    int first[2], stride[2], count[2], tiles[2]; /* per run; `tiles` of the size that the kernel works in */
} AttentionMap;

static inline AttentionMap attention_map(const TokenMap *map, int size) {
    AttentionMap m;
    for (int r = 0; r < 2; r++) {
        m.first[r] = (int)map->run[r].first, m.stride[r] = map->run[r].count ? (int)map->run[r].stride : 1;
        m.count[r] = (int)map->run[r].count, m.tiles[r] = (int)ceil_div(map->run[r].count, size);
    }
    return m;
}

/* The kernels count on ascending positions below 2^30 and on whole groups of heads. */
static inline void attention_check_map(const TokenMap *map, const char *whose) {
    i64 end = 0;
    for (int r = 0; r < 2; r++) {
        const TokenRun *run = &map->run[r];
        if (run->count == 0) continue;
        if (run->first < end || run->stride < 1)
            FAIL(THIS_RANK, "attention: the positions of the %s do not ascend", whose);
        end = run->first + run->count * run->stride;
        if (end >= (i64)1 << 30)
            FAIL(THIS_RANK, "attention: the positions of the %s reach 2^30, the kernels count below that", whose);
    }
}
static inline void attention_check(const AttentionCall *c) {
    const AttentionShape *s = &c->shape;
    if (!attention_takes_head_dim(s->head_dim))
        FAIL(THIS_RANK, "attention: head dim %lld; the CUDA kernels take multiples of 8 up to 128", s->head_dim);
    if (s->heads % s->kv_heads != 0)
        FAIL(THIS_RANK, "attention: %lld query heads do not share %lld KV heads evenly", s->heads, s->kv_heads);
    i64 widest = s->B * s->head_dim * i64_max(s->heads, 2 * s->kv_heads);
    if (widest > (i64)1 << 23) /* offsets within a tile are 32-bit */
        FAIL(THIS_RANK,
             "attention: %lld elements per token of the batch; the CUDA kernels take up to 2^23: a smaller micro-batch "
             "fits",
             widest);
    attention_check_map(&c->q_map, "queries"), attention_check_map(&c->kv_map, "keys");
}

/* Blocks of attention hold a multiprocessor's registers for up to milliseconds, and NCCL's find no room beside them. So
   a transfer that is asked for begins first: the stream waits for that moment, not for its end. What is queued behind
   it follows as blocks end, by priority. */
static inline void attention_yield(Device *dev) {
    if (dev->state.transfer) CUDA_CHECK(cudaStreamWaitEvent(dev->state.stream, dev->state.transfer, 0));
}

/* ---- tiles of a token map ---- */

typedef struct {
    int first;            /* local index of the tile's first token */
    int position, stride; /* of its tokens */
    int count;
} AttentionTile;

template <int SIZE> __device__ __forceinline__ AttentionTile attention_tile(const AttentionMap &m, int i) {
    int second = i >= m.tiles[0], skip = (second ? i - m.tiles[0] : i) * SIZE;
    AttentionTile t;
    t.stride = second ? m.stride[1] : m.stride[0];
    t.first = (second ? m.count[0] : 0) + skip;
    t.position = (second ? m.first[1] : m.first[0]) + skip * t.stride;
    t.count = min(SIZE, (second ? m.count[1] : m.count[0]) - skip);
    return t;
}

/* Position of the tile's last token. */
__device__ __forceinline__ int tile_last(const AttentionTile &t) { return t.position + (t.count - 1) * t.stride; }

/* How many tiles of the map, from the first, begin at or before `position`. */
template <int SIZE> __device__ __forceinline__ int tiles_until(const AttentionMap &m, int position) {
    int n = 0;
    for (int r = 0; r < 2; r++)
        if (m.count[r] > 0 && position >= m.first[r])
            n += min(m.tiles[r], (position - m.first[r]) / m.stride[r] / SIZE + 1);
    return n;
}

/* How many tiles of the map, from the first, lie before `position` with all their tokens. */
template <int SIZE> __device__ __forceinline__ int tiles_before(const AttentionMap &m, int position) {
    int n = 0;
    for (int r = 0; r < 2; r++) {
        int tokens = position <= m.first[r] ? 0 : min(m.count[r], (position - m.first[r] - 1) / m.stride[r] + 1);
        n += tokens == m.count[r] ? m.tiles[r] : tokens / SIZE;
    }
    return n;
}

/* Whether single elements of this pair of tiles are masked, lo aside: some query does not see some
   key, or the KV tile is not full. */
template <int SIZE> __device__ __forceinline__ bool tile_is_masked(const AttentionTile &q, const AttentionTile &kv) {
    return kv.count < SIZE || q.position < tile_last(kv);
}

/* Query `row` of `q` sees column c of `kv` where c kv.stride <= this: without a division, for the
   element's registers are scarce. */
__device__ __forceinline__ int tile_limit(const AttentionTile &q, int row, const AttentionTile &kv) {
    return min(q.position + row * q.stride - kv.position, (kv.count - 1) * kv.stride);
}

/* ---- where queries begin to see ---- */

/* The lo of one sequence's queries: of local token t at t * step. */
typedef struct {
    const int *at;
    int step;
} AttentionLo;

__device__ __forceinline__ AttentionLo sequence_lo(const int *lo, int sequences, int sequence) {
    AttentionLo l = {lo + sequence, sequences};
    return l;
}
/* Of row `row` of a tile; rows past its end are as the last one. */
__device__ __forceinline__ int row_lo(const AttentionLo &lo, const AttentionTile &q, int row) {
    return lo.at[(i64)(q.first + min(row, q.count - 1)) * lo.step];
}

/* ---- the order of blocks ---- */

/* Blocks come tile by tile, heads side by side within a tile. Heads are taken in sections, so that what the blocks in
   flight read of their heads stays in the L2 cache. */
typedef struct {
    int heads, section, tiles;
} AttentionOrder;

/* `bytes` of a head in a section of at most 20 MB: the half of an A100's L2 that is near a multiprocessor. */
static inline AttentionOrder attention_order(i64 heads, i64 tiles, double bytes, i64 at_least) {
    AttentionOrder o;
    if (heads * tiles >= (i64)1 << 31)
        FAIL(THIS_RANK, "attention: %lld heads times %lld tiles are more blocks than a grid has", heads, tiles);
    o.heads = (int)heads, o.tiles = (int)tiles;
    o.section = (int)i64_max(1, i64_min(heads, i64_max(at_least, (i64)(20e6 / bytes))));
    return o;
}

__device__ __forceinline__ void attention_block(const AttentionOrder &o, int index, int *tile, int *head) {
    int whole = o.tiles * o.section, s = index / whole, rest = index - s * whole;
    int width = min(o.section, o.heads - s * o.section);
    *tile = rest / width;
    *head = s * o.section + rest % width;
}

/* ---- tiles in shared memory ---- */

/* Two bf16 written as one word; the compiler must know that they are the same memory. */
typedef uint32_t __attribute__((may_alias)) Bf16Pair;

template <int COLS> __device__ __forceinline__ int swizzle(int row, int col) {
    return row * COLS + (((col >> 3) ^ (row & 7)) << 3) + (col & 7);
}

/* Begin to bring `rows` rows of `width` elements, `step` apart; what is missing of ROWS x COLS becomes zeros. A thread
   keeps its column, and its rows are multiples of 8 apart: the swizzle is one number for all its chunks. */
template <int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void tile_fetch(bf16 *tile, const bf16 *from, int step, int rows, int width, int thread) {
    constexpr int CHUNKS = COLS / 8, APART = THREADS / CHUNKS;
    static_assert(APART % 8 == 0 && ROWS % APART == 0, "a thread's rows");
    int chunk = thread % CHUNKS, row = thread / CHUNKS;
    bool column = chunk * 8 < width;
    tile += swizzle<COLS>(row, chunk * 8);
    unsigned at = (unsigned)(row * step + chunk * 8), apart = (unsigned)(APART * step);
    UNROLL
    for (int i = 0; i < ROWS / APART; i++)
        cp_async_16(tile + i * APART * COLS, from + (at + i * apart), column && row + i * APART < rows);
}

/* ---- products of one warp ---- */

/* Where this lane's row of a 16 x 16 piece begins, for ldmatrix. The piece at (r, c), multiples of 16, is (offset ^ c)
   + r COLS. DOWN: lanes 8..15 read the next eight rows and lanes 16..31 the next chunk; else the other way round. */
template <int COLS, bool DOWN> __device__ __forceinline__ int lane_offset(int thread) {
    int lane = thread % 32, low = lane / 8 % 2, high = lane / 16;
    return swizzle<COLS>(lane % 8 + 8 * (DOWN ? low : high), 8 * (DOWN ? high : low));
}

/* acc (16 MT x 8 NT of this warp) += A B over K.
   A: [m][k] in shared memory, rows from a_first; A_TURNED: [k][m], columns from a_first
   B: [k][n] in shared memory, columns from b_first; B_TURNED: [n][k], rows from b_first
   a_thread, b_thread: threadIdx.x, or thread_anew() where registers are short */
template <bool A_TURNED, bool B_TURNED, int K, int A_COLS, int B_COLS, int MT, int NT>
__device__ __forceinline__ void warp_multiply(float (&acc)[MT][NT][4], const bf16 *a, int a_first, const bf16 *b,
                                              int b_first, int a_thread, int b_thread) {
    static_assert(NT % 2 == 0 && K % 16 == 0, "pieces of 16 x 16");
    int a_lane = lane_offset<A_COLS, !A_TURNED>(a_thread), b_lane = lane_offset<B_COLS, !B_TURNED>(b_thread);
    a_lane = A_TURNED ? a_lane ^ a_first : a_lane + a_first * A_COLS;
    b_lane = B_TURNED ? b_lane + b_first * B_COLS : b_lane ^ b_first;
    UNROLL_BY(4) /* all of it would keep every column's address in a register */
    for (int k = 0; k < K; k += 16) {
        uint32_t fa[MT][4];
        UNROLL
        for (int m = 0; m < MT; m++) {
            if (A_TURNED) ldmatrix_x4_trans(fa[m], a + (a_lane ^ (16 * m)) + k * A_COLS);
            else ldmatrix_x4(fa[m], a + (a_lane ^ k) + 16 * m * A_COLS);
        }
        UNROLL
        for (int n = 0; n < NT; n += 2) {
            uint32_t fb[4];
            if (B_TURNED) ldmatrix_x4(fb, b + (b_lane ^ k) + 8 * n * B_COLS);
            else ldmatrix_x4_trans(fb, b + (b_lane ^ (8 * n)) + k * B_COLS);
            UNROLL
            for (int m = 0; m < MT; m++) {
                mma_bf16_16816(acc[m][n], fa[m], fb);
                mma_bf16_16816(acc[m][n + 1], fa[m], fb + 2);
            }
        }
    }
}

template <int MT, int NT> __device__ __forceinline__ void warp_zero(float (&acc)[MT][NT][4]) {
    UNROLL
    for (int m = 0; m < MT; m++)
        UNROLL
        for (int n = 0; n < NT; n++) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0;
}

/* ---- accumulators and global memory ---- */

/* A lane holds two neighbours in row g and two in row g + 8 of a 16 x 8 piece. Lanes 2i and 2i + 1 trade: the
   even one gets four neighbours of row g, the odd one four of row g + 8, and memory sees 16-byte accesses.
   The trade is its own inverse. */
__device__ __forceinline__ void lanes_trade(float v[4]) {
    bool odd = threadIdx.x & 1;
    float x = __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[2], 1),
          y = __shfl_xor_sync(0xffffffffu, odd ? v[1] : v[3], 1);
    if (odd) v[0] = x, v[1] = y;
    else v[2] = x, v[3] = y;
}
/* Row and column, within a 16 x 8 piece, of the four neighbours that a lane holds after the trade. */
__device__ __forceinline__ int traded_row(int thread) { return thread % 32 / 4 + 8 * (thread & 1); }
__device__ __forceinline__ int traded_col(int thread) { return thread % 4 / 2 * 4; }

/* Of two pieces side by side, traded: this lane's row of the one (lanes 0, 1 of four) or of the other
   (lanes 2, 3), rounded, whole. */
__device__ __forceinline__ bf16x8 lanes_round(const float a[4], const float b[4]) {
    bool right = threadIdx.x & 2;
    uint32_t a0 = bf16x2_round(a[0], a[1]), a1 = bf16x2_round(a[2], a[3]), b0 = bf16x2_round(b[0], b[1]),
             b1 = bf16x2_round(b[2], b[3]);
    uint32_t x = __shfl_xor_sync(0xffffffffu, right ? a0 : b0, 2), y = __shfl_xor_sync(0xffffffffu, right ? a1 : b1, 2);
    uint32_t word[4] = {right ? x : a0, right ? y : a1, right ? b0 : x, right ? b1 : y};
    bf16x8 out;
    memcpy(&out, word, sizeof out);
    return out;
}
/* Its first column, of the sixteen. */
__device__ __forceinline__ int rounded_col(int thread) { return thread % 4 / 2 * 8; }

#endif

/* heads.cuh - what happens to heads between the projections and attention: rotation, and the order an all-to-all wants.

   q (rows, heads, HS), kv (rows, 2, kv_heads, HS)
      | queries_pack, kv_pack: rotate q and k by their position, sort heads by the part that receives them
      v
   q_out (parts, rows, heads/parts, HS), kv_out (parts, rows, 2, KHl, HS)
      | all-to-all: each part holds its heads of all rows
      v

   queries_unpack and kv_unpack are the transposes: gradients return, copies of a shared KV head are summed in part
   order in fp32, turned back and rounded once. All four are one kernel, which differs in where head h of row r comes
   from and goes to (head_route). A thread has eight elements of each half (or one) of up to HEADS_EACH heads of a row:
   their angles are read once. It reads all it needs before it writes, and nobody else reads it: in place works where
   source and destination are one place.

   Rotary embedding: Su et al. 2021, arXiv:2104.09864; element i turns with element i + HS/2, as Hugging Face's Llama.
   Cost: one pass over memory.                                                                                        */
#ifndef ODYSSEUS_CUDA_HEADS_CUH
#define ODYSSEUS_CUDA_HEADS_CUH

static constexpr int ROPE_WIDEST = 256, HEADS_EACH = 4;

/* ---- the table ---- */

typedef struct {
    double half_turns[ROPE_WIDEST / 2]; /* per position: inv_freq / pi */
    double magnitude;
} RopeFrequencies;

__global__ void __launch_bounds__(BLOCK) rope_table_kernel(accum *table, TokenMap map, RopeFrequencies f, i64 half) {
    i64 i = grid_thread();
    if (i >= map.count * half) return;
    i64 t = quotient(i, half);
    double s, c; /* the angle in double: at position 100000 a float angle is off by 0.004 */
    sincospi((double)map_position(map, t) * f.half_turns[i - t * half], &s, &c);
    table[2 * i] = (float)(f.magnitude * c), table[2 * i + 1] = (float)(f.magnitude * s);
}

static inline void rope_table_run(Device *dev, accum *table, TokenMap map, const double *inv_freq, double magnitude,
                                  i64 head_dim) {
    i64 half = head_dim / 2;
    if (head_dim > ROPE_WIDEST)
        FAIL(THIS_RANK, "rope_table: a head dim of %lld is not taken, at most %d", head_dim, ROPE_WIDEST);
    if (map.count * half == 0) return;
    RopeFrequencies f;
    memset(&f, 0, sizeof f);
    f.magnitude = magnitude;
    for (i64 i = 0; i < half; i++) f.half_turns[i] = inv_freq[i] / 3.14159265358979323846;
    LAUNCH(rope_table_kernel, blocks_for(map.count * half, BLOCK), BLOCK, 0, dev->state.stream, table, map, f, half);
}

/* ---- packing ---- */

typedef enum { QUERIES_PACK, QUERIES_UNPACK, KV_PACK, KV_UNPACK } HeadsOp;

typedef struct {
    i64 rows, B, heads, head_dim, parts; /* heads: of q, or KV heads */
} HeadsShape;

/* Head h of row r, counted over what is written: where it begins in `out`, in `in`, the copies in `in` and their
   distance, and whether it is rotated. Offsets are in heads. */
typedef struct {
    i64 to, from, copies, stride;
    bool turned;
} HeadRoute;

template <int OP> __device__ __forceinline__ HeadRoute head_route(HeadsShape s, i64 r, int h) {
    HeadRoute route;
    int local = (int)s.heads / (int)s.parts;
    route.copies = 1, route.stride = 0, route.turned = true;
    if (OP == QUERIES_PACK || OP == QUERIES_UNPACK) {
        int p = h / local;
        i64 whole = r * s.heads + h, packed = (p * s.rows + r) * local + (h - p * local);
        route.to = OP == QUERIES_PACK ? packed : whole, route.from = OP == QUERIES_PACK ? whole : packed;
        return route;
    }
    local = local > 1 ? local : 1;
    if (OP == KV_PACK) { /* h: part, key or value, head of the part */
        int p = h / (2 * local), value = h / local % 2, k = h % local;
        route.to = ((p * s.rows + r) * 2 + value) * local + k;
        route.from = (r * 2 + value) * s.heads + p * (int)s.heads / (int)s.parts + k;
        route.turned = !value;
        return route;
    }
    /* KV_UNPACK */
    int value = h / (int)s.heads, k = h - value * (int)s.heads, heads = (int)s.heads, parts = (int)s.parts;
    /* parts that hold head k: p heads / parts == k */
    int first = heads >= parts ? k / local : (k * parts + heads - 1) / heads;
    int end = heads >= parts ? first + 1 : ((k + 1) * parts + heads - 1) / heads;
    route.to = (r * 2 + value) * heads + k;
    route.from = ((first * s.rows + r) * 2 + value) * local + (heads >= parts ? k % local : 0);
    route.copies = end - first, route.stride = s.rows * 2 * local;
    route.turned = !value;
    return route;
}

/* Both halves of W elements of a head, turned by W angles (cos, sin interleaved), backwards for sign = -1 */
template <int W>
__device__ __forceinline__ void pairs_turn(float low[W], float high[W], const float angle[2 * W], float sign) {
    UNROLL
    for (int e = 0; e < W; e++) {
        float x = low[e], y = high[e], c = angle[2 * e], s = sign * angle[2 * e + 1];
        low[e] = x * c - y * s;
        high[e] = y * c + x * s;
    }
}

/* written: heads of a row of `out`; a thread has heads q, q + quarter, ... of one row. Head dims that W does not divide
   into two halves have an odd last element, which is not turned: W = 1, the thread past the halves. */
template <int OP, int W>
__global__ void __launch_bounds__(BLOCK)
    heads_kernel(real *out, const real *in, const accum *table, HeadsShape s, int written, float sign) {
    int half = (int)s.head_dim / 2, places = W == 8 ? half / 8 : half + (int)(s.head_dim % 2),
        quarter = (written + HEADS_EACH - 1) / HEADS_EACH;
    i64 i = grid_thread(), r = quotient(i, (i64)quarter * places);
    if (r >= s.rows) return;
    int rest = (int)(i - r * quarter * places), q = rest / places, at = (rest - q * places) * W;
    bool alone = at >= half; /* the last element of an odd head: nothing to turn with */
    int other = alone ? 0 : half, place = alone ? (int)s.head_dim - 1 : at;
    float low[HEADS_EACH][W], high[HEADS_EACH][W], angle[2 * W];
    UNROLL
    for (int k = 0; k < HEADS_EACH; k++) {
        if (q + k * quarter >= written) continue;
        HeadRoute route = head_route<OP>(s, r, q + k * quarter);
        const real *from = in + route.from * s.head_dim + place;
        load_real<W>(low[k], from, W);
        load_real<W>(high[k], from + other, W);
        if (OP == KV_UNPACK)
            for (i64 p = 1; p < route.copies; p++) {
                float x[W];
                from += route.stride * s.head_dim;
                load_real<W>(x, from, W);
                UNROLL
                for (int e = 0; e < W; e++) low[k][e] += x[e];
                load_real<W>(x, from + other, W);
                UNROLL
                for (int e = 0; e < W; e++) high[k][e] += x[e];
            }
    }
    bool turn = table && !alone;
    if (turn) {
        const accum *from = table + (quotient(r, s.B) * half + at) * 2;
        if constexpr (W == 8) {
            UNROLL
            for (int e = 0; e < 16; e += 4) load_accum<4>(angle + e, from + e, 4);
        } else angle[0] = from[0], angle[1] = from[1];
    }
    UNROLL
    for (int k = 0; k < HEADS_EACH; k++) {
        if (q + k * quarter >= written) continue;
        HeadRoute route = head_route<OP>(s, r, q + k * quarter);
        if (turn && route.turned) pairs_turn<W>(low[k], high[k], angle, sign);
        real *to = out + route.to * s.head_dim + place;
        store_real<W>(to, low[k], W);
        if (!alone) store_real<W>(to + half, high[k], W);
    }
}

template <int OP>
static inline void heads_run(Device *dev, real *out, const real *in, const accum *table, HeadsShape s, i64 written,
                             const char *name) {
    if (s.rows * written * s.head_dim == 0) return;
    if (s.parts < 1 ||
        (s.heads > s.parts || OP == QUERIES_PACK || OP == QUERIES_UNPACK ? s.heads % s.parts != 0 : s.heads < 1))
        FAIL(THIS_RANK, "%s: %lld heads for %lld parts are not taken", name, s.heads, s.parts);
    if (s.heads * s.parts > 1 << 20 || s.head_dim > 1 << 20)
        FAIL(THIS_RANK, "%s: %lld heads of %lld are not taken", name, s.heads, s.head_dim);
    int n = (int)written;
    i64 half = s.head_dim / 2, groups = ceil_div(written, HEADS_EACH);
    float sign = OP == QUERIES_PACK || OP == KV_PACK ? 1.0f : -1.0f;
    if (s.head_dim % 16 == 0 && aligned_to(out, 16) && aligned_to(in, 16) && aligned_to(table, 16))
        LAUNCH((heads_kernel<OP, 8>), blocks_for(s.rows * groups * (half / 8), BLOCK), BLOCK, 0, dev->state.stream, out,
               in, table, s, n, sign);
    else
        LAUNCH((heads_kernel<OP, 1>), blocks_for(s.rows * groups * (half + s.head_dim % 2), BLOCK), BLOCK, 0,
               dev->state.stream, out, in, table, s, n, sign);
}

static inline void queries_pack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                    i64 heads, i64 head_dim, i64 parts) {
    HeadsShape s = {rows, B, heads, head_dim, parts};
    heads_run<QUERIES_PACK>(dev, out, in, table, s, heads, "queries_pack");
}

static inline void queries_unpack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                      i64 heads, i64 head_dim, i64 parts) {
    HeadsShape s = {rows, B, heads, head_dim, parts};
    heads_run<QUERIES_UNPACK>(dev, out, in, table, s, heads, "queries_unpack");
}

static inline void kv_pack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                               i64 kv_heads, i64 head_dim, i64 parts) {
    HeadsShape s = {rows, B, kv_heads, head_dim, parts};
    heads_run<KV_PACK>(dev, out, in, table, s, parts * 2 * i64_max(1, kv_heads / parts), "kv_pack");
}

static inline void kv_unpack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                 i64 kv_heads, i64 head_dim, i64 parts) {
    HeadsShape s = {rows, B, kv_heads, head_dim, parts};
    heads_run<KV_UNPACK>(dev, out, in, table, s, 2 * kv_heads, "kv_unpack");
}

/* ---- parts ---- */

/* out (rows, parts, every, width) from in (parts, rows, width), or (SPLIT) the other way; i counts what is written */
template <int SPLIT, int W>
__global__ void __launch_bounds__(BLOCK) parts_kernel(real *out, const real *in, i64 parts, i64 rows, i64 width,
                                                      i64 every) {
    i64 i = grid_thread(), each = width / W;
    if (i >= parts * rows * each) return;
    i64 inner = SPLIT ? rows : parts, outer = SPLIT ? parts : rows;
    i64 block = quotient(i, each), o = quotient(block, inner), n = block - o * inner, at = (i - block * each) * W;
    const real *from = in + (n * outer + o) * (SPLIT ? every : 1) * width + at;
    real *to = out + block * (SPLIT ? 1 : every) * width + at;
    if constexpr (W == 8) *(bf16x8 *)to = *(const bf16x8 *)from;
    else *to = *from;
}

template <int SPLIT>
static inline void parts_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width, i64 every) {
    i64 n = parts * rows * width;
    if (n == 0) return;
    if (width % 8 == 0 && aligned_to(out, 16) && aligned_to(in, 16))
        LAUNCH((parts_kernel<SPLIT, 8>), blocks_for(n, 8 * BLOCK), BLOCK, 0, dev->state.stream, out, in, parts, rows,
               width, every);
    else
        LAUNCH((parts_kernel<SPLIT, 1>), blocks_for(n, BLOCK), BLOCK, 0, dev->state.stream, out, in, parts, rows,
               width, every);
}

static inline void columns_merge_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width,
                                     i64 every) {
    parts_run<0>(dev, out, in, parts, rows, width, every);
}
static inline void columns_split_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width,
                                     i64 every) {
    parts_run<1>(dev, out, in, parts, rows, width, every);
}
static inline void parts_merge_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width) {
    parts_run<0>(dev, out, in, parts, rows, width, 1);
}
static inline void parts_split_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width) {
    parts_run<1>(dev, out, in, parts, rows, width, 1);
}

#endif

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

static constexpr int ROPE_WIDEST = 256, HEADS_EACH = 2;

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

/* KV_SUM: KV_UNPACK where parts share a head, whose copies are added */
typedef enum { QUERIES_PACK, QUERIES_UNPACK, KV_PACK, KV_UNPACK, KV_SUM } HeadsOp;

typedef struct {
    i64 rows, B, heads, head_dim, parts; /* heads: of q, or KV heads */
} HeadsShape;

/* What the kernel divides by. `groups`: threads of a row that differ in their heads */
typedef struct {
    Divisor row, places, batch, local, heads, parts;
    int written, groups, local_heads; /* heads of a row of `out`; heads of a part, at least 1 */
} HeadsWays;

/* Head h of row r, counted over what is written: where it begins in `out`, in `in`, the copies in `in` and their
   distance, and whether it is rotated. Offsets are in heads. */
typedef struct {
    i64 to, from, copies, stride;
    bool turned;
} HeadRoute;

template <int OP> __device__ __forceinline__ HeadRoute head_route(HeadsShape s, HeadsWays w, i64 r, int h) {
    HeadRoute route;
    int local = w.local_heads, heads = (int)s.heads, parts = (int)s.parts;
    route.copies = 1, route.stride = 0, route.turned = true;
    if (OP == QUERIES_PACK || OP == QUERIES_UNPACK) {
        int p = divide(h, w.local);
        i64 whole = r * heads + h, packed = (p * s.rows + r) * local + (h - p * local);
        route.to = OP == QUERIES_PACK ? packed : whole, route.from = OP == QUERIES_PACK ? whole : packed;
        return route;
    }
    if (OP == KV_PACK) { /* h: part, key or value, head of the part */
        int block = divide(h, w.local), p = block / 2, value = block % 2, k = h - block * local;
        route.to = ((p * s.rows + r) * 2 + value) * local + k;
        route.from = (r * 2 + value) * heads + divide(p * heads, w.parts) + k;
        route.turned = !value;
        return route;
    }
    /* KV_UNPACK, KV_SUM */
    int value = h >= heads, k = h - value * heads, first = divide(k, w.local), end = first + 1,
        place = k - first * local;
    if (OP == KV_SUM) { /* parts that hold head k: p heads / parts == k */
        first = divide(k * parts + heads - 1, w.heads), end = divide((k + 1) * parts + heads - 1, w.heads);
        place = 0;
    }
    route.to = (r * 2 + value) * heads + k;
    route.from = ((first * s.rows + r) * 2 + value) * local + place;
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

/* A thread has heads q, q + groups, ... of one row of `out`; what it reads stays in bf16 until it is turned. Head dims
   that W does not divide into two halves have an odd last element, which is not turned: W = 1, the thread past the
   halves. */
template <int OP, int W>
__global__ void __launch_bounds__(BLOCK)
    heads_kernel(real *out, const real *in, const accum *table, HeadsShape s, HeadsWays w, float sign) {
    int half = (int)s.head_dim / 2, places = W == 8 ? half / 8 : half + (int)(s.head_dim % 2);
    i64 i = grid_thread(), r = divide(i, w.row);
    if (r >= s.rows) return;
    int rest = (int)(i - r * (w.groups * places)), q = divide(rest, w.places), at = (rest - q * places) * W;
    bool alone = at >= half; /* the last element of an odd head: nothing to turn with */
    int other = alone ? 0 : half, place = alone ? (int)s.head_dim - 1 : at;
    HeadRoute route[HEADS_EACH];
    bf16x8 low[HEADS_EACH], high[HEADS_EACH]; /* W of them */
    UNROLL
    for (int k = 0; k < HEADS_EACH; k++) {
        if (q + k * w.groups >= w.written) continue;
        route[k] = head_route<OP>(s, w, r, q + k * w.groups);
        const real *from = in + route[k].from * s.head_dim + place;
        if constexpr (W == 8) low[k] = *(const bf16x8 *)from, high[k] = *(const bf16x8 *)(from + other);
        else low[k].v[0] = from[0], high[k].v[0] = from[other];
    }
    bool turn = table && !alone;
    float angle[2 * W];
    if (turn) {
        const accum *from = table + (divide(r, w.batch) * half + at) * 2;
        if constexpr (W == 8) {
            UNROLL
            for (int e = 0; e < 16; e += 4) load_accum<4>(angle + e, from + e, 4);
        } else angle[0] = from[0], angle[1] = from[1];
    }
    UNROLL
    for (int k = 0; k < HEADS_EACH; k++) {
        if (q + k * w.groups >= w.written) continue;
        float x[W], y[W];
        UNROLL
        for (int e = 0; e < W; e++) x[e] = bf16_float(low[k].v[e]), y[e] = bf16_float(high[k].v[e]);
        if (OP == KV_SUM) {
            const real *from = in + route[k].from * s.head_dim + place;
            for (i64 p = 1; p < route[k].copies; p++) { /* then `in` and `out` differ: reading late is safe */
                float more[W];
                from += route[k].stride * s.head_dim;
                load_real<W>(more, from, W);
                UNROLL
                for (int e = 0; e < W; e++) x[e] += more[e];
                load_real<W>(more, from + other, W);
                UNROLL
                for (int e = 0; e < W; e++) y[e] += more[e];
            }
        }
        if (turn && route[k].turned) pairs_turn<W>(x, y, angle, sign);
        real *to = out + route[k].to * s.head_dim + place;
        store_real<W>(to, x, W);
        if (!alone) store_real<W>(to + half, y, W);
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
    int vectors = s.head_dim % 16 == 0 && aligned_to(out, 16) && aligned_to(in, 16) && aligned_to(table, 16);
    i64 half = s.head_dim / 2, groups = ceil_div(written, HEADS_EACH), local = i64_max(1, s.heads / s.parts),
        places = vectors ? half / 8 : half + s.head_dim % 2;
    HeadsWays w = {divisor(groups * places), divisor(places), divisor(s.B), divisor(local), divisor(s.heads),
                   divisor(s.parts), (int)written, (int)groups, (int)local};
    float sign = OP == QUERIES_PACK || OP == KV_PACK ? 1.0f : -1.0f;
    unsigned grid = blocks_for(s.rows * groups * places, BLOCK);
    if (vectors) LAUNCH((heads_kernel<OP, 8>), grid, BLOCK, 0, dev->state.stream, out, in, table, s, w, sign);
    else LAUNCH((heads_kernel<OP, 1>), grid, BLOCK, 0, dev->state.stream, out, in, table, s, w, sign);
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
    if (kv_heads >= parts) heads_run<KV_UNPACK>(dev, out, in, table, s, 2 * kv_heads, "kv_unpack");
    else heads_run<KV_SUM>(dev, out, in, table, s, 2 * kv_heads, "kv_unpack");
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

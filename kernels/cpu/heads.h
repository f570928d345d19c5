/* heads.h - what happens to heads between the projections and attention: rotation, and the order an all-to-all wants.

   q (rows, heads, HS), kv (rows, 2, kv_heads, HS)
      | queries_pack, kv_pack: rotate q and k by their position, sort heads by the part that receives them
      v
   q_out (parts, rows, heads/parts, HS), kv_out (parts, rows, 2, KHl, HS)
      | all-to-all: each part holds its heads of all rows
      v

   queries_unpack and kv_unpack are the transposes: gradients return, copies of a shared KV head are summed in part
   order, and rotation by the negative angle is the transpose of rotation. With one part both work in place. parts_merge
   and parts_split are the same reordering without the rotation.

   Rotary embedding: Su et al. 2021, arXiv:2104.09864; element i turns with element i + HS/2, as Hugging Face's Llama.
   Cost: one pass over memory.                                                                                        */
#ifndef ODYSSEUS_CPU_HEADS_H
#define ODYSSEUS_CPU_HEADS_H

#include "parallel.h"

static inline void rope_table_run(Device *dev, accum *table, TokenMap map, const double *inv_freq, double magnitude,
                                  i64 head_dim) {
    i64 half = head_dim / 2;
#pragma omp parallel for num_threads(dev->threads) if (map.count * head_dim > SERIAL_BELOW)
    for (i64 t = 0; t < map.count; t++) {
        double position = (double)token_position(&map, t);
        for (i64 i = 0; i < half; i++) { /* the angle in double: at position 100000 a float angle is off by 0.004 */
            table[(t * half + i) * 2] = (accum)(magnitude * cos(position * inv_freq[i]));
            table[(t * half + i) * 2 + 1] = (accum)(magnitude * sin(position * inv_freq[i]));
        }
    }
}

/* dst (HS) = src turned by the angles of `turn` (HS/2, 2), backwards for sign = -1; dst may be src */
static inline void head_rotate(real *dst, const real *src, const accum *turn, accum sign, i64 head_dim) {
    i64 half = head_dim / 2;
#pragma omp simd
    for (i64 i = 0; i < half; i++) {
        accum x = src[i], y = src[i + half], c = turn[2 * i], s = sign * turn[2 * i + 1];
        dst[i] = (real)(x * c - y * s);
        dst[i + half] = (real)(y * c + x * s);
    }
    if (head_dim % 2) dst[head_dim - 1] = src[head_dim - 1];
}

/* n heads, rotated or (turn NULL) only copied */
static inline void heads_move(real *dst, const real *src, const accum *turn, accum sign, i64 n, i64 head_dim) {
    if (turn) {
        for (i64 h = 0; h < n; h++) head_rotate(dst + h * head_dim, src + h * head_dim, turn, sign, head_dim);
    } else if (dst != src) {
        memcpy(dst, src, sizeof(real) * (size_t)(n * head_dim));
    }
}

/* The KV heads of part p are kv_first(p) .. + kv_local - 1; with fewer KV heads than parts, neighbours share one. */
static inline i64 kv_local(i64 kv_heads, i64 parts) { return i64_max(1, kv_heads / parts); }
static inline i64 kv_first(i64 kv_heads, i64 parts, i64 p) { return p * kv_heads / parts; }

/* The rotation of row r, token r / B of the table */
static inline const accum *row_turn(const accum *table, i64 r, i64 B, i64 head_dim) {
    return table ? table + r / B * (head_dim / 2) * 2 : NULL;
}

static inline void queries_pack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                    i64 heads, i64 head_dim, i64 parts) {
    i64 width = heads / parts * head_dim;
#pragma omp parallel for num_threads(dev->threads) if (rows * heads * head_dim > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++)
        for (i64 p = 0; p < parts; p++)
            heads_move(out + (p * rows + r) * width, in + (r * parts + p) * width, row_turn(table, r, B, head_dim), 1,
                       heads / parts, head_dim);
}

static inline void queries_unpack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                      i64 heads, i64 head_dim, i64 parts) {
    i64 width = heads / parts * head_dim;
#pragma omp parallel for num_threads(dev->threads) if (rows * heads * head_dim > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++)
        for (i64 p = 0; p < parts; p++)
            heads_move(out + (r * parts + p) * width, in + (p * rows + r) * width, row_turn(table, r, B, head_dim), -1,
                       heads / parts, head_dim);
}

static inline void kv_pack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                               i64 kv_heads, i64 head_dim, i64 parts) {
    i64 kv_l = kv_local(kv_heads, parts);
#pragma omp parallel for num_threads(dev->threads) if (rows * 2 * kv_heads * head_dim > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        const real *k = in + r * 2 * kv_heads * head_dim, *v = k + kv_heads * head_dim;
        for (i64 p = 0; p < parts; p++) {
            real *k_out = out + (p * rows + r) * 2 * kv_l * head_dim, *v_out = k_out + kv_l * head_dim;
            i64 first = kv_first(kv_heads, parts, p) * head_dim;
            heads_move(k_out, k + first, row_turn(table, r, B, head_dim), 1, kv_l, head_dim);
            heads_move(v_out, v + first, NULL, 1, kv_l, head_dim);
        }
    }
}

/* dst (n) = src, or += where an earlier part has already brought its share */
static inline void share_join(real *dst, const real *src, i64 n, int first) {
    if (first) {
        if (dst != src) memcpy(dst, src, sizeof(real) * (size_t)n);
    } else {
#pragma omp simd
        for (i64 i = 0; i < n; i++) dst[i] += src[i];
    }
}

static inline void kv_unpack_run(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                 i64 kv_heads, i64 head_dim, i64 parts) {
    i64 kv_l = kv_local(kv_heads, parts);
#pragma omp parallel for num_threads(dev->threads) if (rows * 2 * kv_heads * head_dim > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        real *dk = out + r * 2 * kv_heads * head_dim, *dv = dk + kv_heads * head_dim;
        i64 done = 0; /* KV heads that some part has brought: parts bring them in ascending order */
        for (i64 p = 0; p < parts; p++) {
            const real *dk_in = in + (p * rows + r) * 2 * kv_l * head_dim, *dv_in = dk_in + kv_l * head_dim;
            i64 head = kv_first(kv_heads, parts, p), at = head * head_dim;
            share_join(dk + at, dk_in, kv_l * head_dim, head >= done);
            share_join(dv + at, dv_in, kv_l * head_dim, head >= done);
            done = head + kv_l;
        }
        /* the sum is turned back once, not each share */
        heads_move(dk, dk, row_turn(table, r, B, head_dim), -1, kv_heads, head_dim);
    }
}

static inline void columns_merge_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width,
                                     i64 every) {
#pragma omp parallel for num_threads(dev->threads) if (parts * rows * width > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++)
        for (i64 p = 0; p < parts; p++)
            memcpy(out + (r * parts + p) * every * width, in + (p * rows + r) * width, sizeof(real) * (size_t)width);
}

static inline void columns_split_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width,
                                     i64 every) {
#pragma omp parallel for num_threads(dev->threads) if (parts * rows * width > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++)
        for (i64 p = 0; p < parts; p++)
            memcpy(out + (p * rows + r) * width, in + (r * parts + p) * every * width, sizeof(real) * (size_t)width);
}

static inline void parts_merge_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width) {
    columns_merge_run(dev, out, in, parts, rows, width, 1);
}

static inline void parts_split_run(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width) {
    columns_split_run(dev, out, in, parts, rows, width, 1);
}

#endif

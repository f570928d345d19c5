/* vector.h - the widest vectors that the compiler may use, and the tile of a product that their registers hold.

   A tile is TILE_ROWS x TILE_COLUMNS numbers: TILE_VECTORS vectors side by side, TILE_ROWS of them one below
   the other. Besides the tile, a step of the product holds TILE_VECTORS vectors of one operand and one number
   of the other, spread over a vector:

                       registers   tile (fp32)   loads and multiply-adds of a step
     AVX-512           32 x 64 B   12 x 32       14, 24
     AVX and AVX2      16 x 32 B    6 x 16        8, 12
     NEON              32 x 16 B    8 x 12       11, 24
     any other         16 x 16 B    6 x 8         8, 12

   So multiply-adds, of which two run at once and four cycles long, and not loads bound the product on each. Every count
   of rows divides 96 and 240, and every count of columns 96: attention's tiles are multiples of both.                */
#ifndef ODYSSEUS_CPU_VECTOR_H
#define ODYSSEUS_CPU_VECTOR_H

#include "../types.h"

#if defined __AVX512F__
#define VECTOR_BYTES 64
#define TILE_ROWS 12
#define TILE_VECTORS 2
#elif defined __AVX__
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#define TILE_VECTORS 2
#elif defined __aarch64__
#define VECTOR_BYTES 16
#define TILE_ROWS 8
#define TILE_VECTORS 3
#else
#define VECTOR_BYTES 16
#define TILE_ROWS 6
#define TILE_VECTORS 2
#endif

#define VECTOR_WIDTH (VECTOR_BYTES / (int)sizeof(real))
#define TILE_COLUMNS (TILE_VECTORS * VECTOR_WIDTH)

/* Aligned, and anywhere in memory. Both may alias numbers. */
typedef real Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef real VectorAnywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* What a comparison gives: all bits of a place, or none. */
typedef real_bits VectorMask __attribute__((vector_size(VECTOR_BYTES)));

static inline Vector vector_all(real x) { return x - (Vector){0}; }
static inline Vector vector_pick(VectorMask where, Vector a, Vector b) {
    return (Vector)(((VectorMask)a & where) | ((VectorMask)b & ~where));
}
/* b where one is NaN */
static inline Vector vector_max(Vector a, Vector b) { return vector_pick((VectorMask)(a > b), a, b); }

/* Four neighbours, for transposing, and four of eight: gcc before 12 knows the builtin by no
   name, but sees what is meant. */
typedef real Four __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));
#if defined __clang__ || __GNUC__ >= 12
#define FOUR_OF(a, b, w, x, y, z) __builtin_shufflevector(a, b, w, x, y, z)
#else
#define FOUR_AT(a, b, i) ((i) < 4 ? (a)[(i) % 4] : (b)[(i) % 4])
#define FOUR_OF(a, b, w, x, y, z) ((Four){FOUR_AT(a, b, w), FOUR_AT(a, b, x), FOUR_AT(a, b, y), FOUR_AT(a, b, z)})
#endif

#endif

/* embedding.h - a token's vector, plus its position's where the model learns positions (GPT-2).

   tokens (T, B) --> row t*B + b of out (T, B, C) = wte[token] + wpe[position of t]

   Backward meets the same token in many rows. To sum them in row order on any number of threads, the threads share the
   channels, not the rows: each walks all rows and touches only its own columns of the tables.
   Cost: three passes over (T, B, C), bound by memory.                                                                */
#ifndef ODYSSEUS_CPU_EMBEDDING_H
#define ODYSSEUS_CPU_EMBEDDING_H

#include "parallel.h"

static inline void embedding_forward_run(Device *dev, real *out, const int32_t *tokens, TokenMap map, const real *wte,
                                         const real *wpe, i64 B, i64 C) {
    i64 rows = map.count * B;
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 r = 0; r < rows; r++) {
        const real *token = wte + tokens[r] * C;
        real *o = out + r * C;
        if (!wpe) {
            memcpy(o, token, sizeof(real) * (size_t)C);
            continue;
        }
        const real *position = wpe + token_position(&map, r / B) * C;
#pragma omp simd
        for (i64 c = 0; c < C; c++) o[c] = token[c] + position[c];
    }
}

static inline void embedding_backward_run(Device *dev, accum *dwte, accum *dwpe, const real *dout,
                                          const int32_t *tokens, TokenMap map, i64 B, i64 C, i64 V) {
    i64 rows = map.count * B;
    (void)V; /* for backends that sort the rows by token */
#pragma omp parallel for num_threads(dev->threads) if (rows * C > SERIAL_BELOW)
    for (i64 c0 = 0; c0 < C; c0 += COLUMN_BLOCK) {
        i64 width = i64_min(COLUMN_BLOCK, C - c0);
        for (i64 r = 0; r < rows; r++) {
            const real *d = dout + r * C + c0;
            accum *token = dwte + tokens[r] * C + c0;
#pragma omp simd
            for (i64 c = 0; c < width; c++) token[c] += d[c];
            if (!dwpe) continue;
            accum *position = dwpe + token_position(&map, r / B) * C + c0;
#pragma omp simd
            for (i64 c = 0; c < width; c++) position[c] += d[c];
        }
    }
}

#endif

/* classifier.h - softmax cross-entropy of rows of logits: loss, and the gradient in the logits' own place.

   row:  max -> e = exp(logit - max), summed (kept in place when the gradient is wanted) -> loss = log sum + max -
         logit[target] -> dlogit = scale (e / sum - onehot)

   Rows are parallel; their losses wait in a small array and are added in row order, in double.
   Cost: three passes over a row that fits a cache (V = 50257: 200 KB), one over memory.                              */
#ifndef ODYSSEUS_CPU_CLASSIFIER_H
#define ODYSSEUS_CPU_CLASSIFIER_H

#include "elementary.h"
#include "parallel.h"

enum {
    CLASSIFIER_ROWS = 256, /* rows between two polls of the communication */
    CLASSIFIER_SPAN = 128  /* exponentials summed in `accum`, their sums in double: else a large one swallows
                              thousands of small ones after it */
};

/* sum over the row of exp(logit - top); with `keep` the exponentials replace the logits */
static inline double classifier_exponentials(real *logits, accum top, i64 V, int keep) {
    double sum = 0;
    for (i64 first = 0; first < V; first += CLASSIFIER_SPAN) {
        i64 end = i64_min(V, first + CLASSIFIER_SPAN);
        accum part = 0;
        if (keep) {
#pragma omp simd reduction(+ : part)
            for (i64 i = first; i < end; i++) {
                real e = real_exp(logits[i] - top);
                logits[i] = e;
                part += e;
            }
        } else {
#pragma omp simd reduction(+ : part)
            for (i64 i = first; i < end; i++) part += real_exp(logits[i] - top);
        }
        sum += (double)part;
    }
    return sum;
}

/* The loss of one row. */
static inline double classifier_row(real *logits, int32_t target, accum scale, i64 V, int backward) {
    if (target < 0) {
        if (backward) memset(logits, 0, sizeof(real) * (size_t)V);
        return 0;
    }
    real top = logits[0], wanted = logits[target];
#pragma omp simd reduction(max : top)
    for (i64 i = 0; i < V; i++) top = logits[i] > top ? logits[i] : top;
    double sum = classifier_exponentials(logits, top, V, backward);
    if (backward) {
        accum factor = (accum)(scale / sum);
#pragma omp simd
        for (i64 i = 0; i < V; i++) logits[i] *= factor;
        logits[target] -= scale;
    }
    return log(sum) + ((double)top - (double)wanted);
}

static inline void classifier_run(Device *dev, double *loss_sum, real *logits, i64 ld, const int32_t *targets,
                                  accum scale, i64 rows, i64 V, int backward) {
    double loss[CLASSIFIER_ROWS];
    for (i64 r0 = 0; r0 < rows; r0 += CLASSIFIER_ROWS) {
        i64 n = i64_min(CLASSIFIER_ROWS, rows - r0);
        if (r0 > 0) device_poll(dev);
#pragma omp parallel for num_threads(dev->threads) if (n * V > SERIAL_BELOW)
        for (i64 r = 0; r < n; r++)
            loss[r] = classifier_row(logits + (r0 + r) * ld, targets[r0 + r], scale, V, backward);
        for (i64 r = 0; r < n; r++) *loss_sum += loss[r];
    }
}

#endif

/* optimizer.h - the gradient's norm and AdamW, on the flat shard that this rank owns.

   sum_squares   NORM_PARTS parts of equal length, whatever the threads; each summed by vectors,
                 then joined in order, in double
   adamw         m = b1 m + (1-b1) g,  v = b2 v + (1-b2) g^2,  mhat = m/(1-b1^t),  vhat = v/(1-b2^t)
                 master -= lr (mhat / (sqrt(vhat) + eps) + weight_decay master)
                 Loshchilov, Hutter 2019, arXiv:1711.05101. Cost: seven passes over memory.                           */
#ifndef ODYSSEUS_CPU_OPTIMIZER_H
#define ODYSSEUS_CPU_OPTIMIZER_H

#include "elementary.h"
#include "parallel.h"

enum { NORM_PARTS = 256 };

static inline void sum_squares_run(Device *dev, double *out, const accum *g, i64 n) {
    double parts[NORM_PARTS];
    i64 length = round_up(ceil_div(n, NORM_PARTS), 16);
#pragma omp parallel for num_threads(dev->threads) if (n > SERIAL_BELOW)
    for (i64 p = 0; p < NORM_PARTS; p++) {
        double sum = 0;
        i64 end = i64_min(n, (p + 1) * length);
#pragma omp simd reduction(+ : sum)
        for (i64 i = p * length; i < end; i++) sum += (double)g[i] * (double)g[i];
        parts[p] = sum;
    }
    double total = 0;
    for (i64 p = 0; p < NORM_PARTS; p++) total += parts[p];
    *out += total;
}

static inline void adamw_run(Device *dev, real *param, accum *master, accum *m, accum *v, const accum *grad, i64 n,
                             AdamW a) {
    /* What depends on the step alone is worked out once, in double: 1 - beta2^1 = 0.05 in float loses three digits. */
    const accum scale = (accum)a.grad_scale, beta1 = (accum)a.beta1, beta2 = (accum)a.beta2, eps = (accum)a.eps;
    const accum rest1 = (accum)(1 - a.beta1), rest2 = (accum)(1 - a.beta2);
    const accum m_scale = (accum)(1 / (1 - pow(a.beta1, (double)a.step))),
                v_scale = (accum)(1 / (1 - pow(a.beta2, (double)a.step)));
    const accum lr = (accum)a.lr, decay = (accum)a.weight_decay;
#pragma omp parallel for simd num_threads(dev->threads) if (parallel : n > SERIAL_BELOW)
    for (i64 i = 0; i < n; i++) {
        accum g = scale * grad[i];
        accum mi = beta1 * m[i] + rest1 * g, vi = beta2 * v[i] + rest2 * g * g;
        accum w = master[i];
        w -= lr * (m_scale * mi / (real_sqrt(v_scale * vi) + eps) + decay * w);
        m[i] = mi;
        v[i] = vi;
        master[i] = w;
        param[i] = (real)w;
    }
}

#endif

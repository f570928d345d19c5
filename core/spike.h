/* spike.h - how far does the loss of a step jump?

   loss of a step -> how many sigma above the mean of the steps before? -> more than --spike-sigma: see finite.h

   mean and variance   each step weighs 1/n, from the 20th on 1/20: what is long past, as the fall at the start, is
                       forgotten. A spike counts only as far as the bound: one leaves little trace, and a level that
                       stays is soon the rule.
   Losses are the same bits on every rank, so all ranks decide the same. The state is three numbers.                  */
#ifndef ODYSSEUS_SPIKE_H
#define ODYSSEUS_SPIKE_H

#include "util.h"
#include <math.h>

enum { SPIKE_FIRST = 20, SPIKE_MEMORY = 20 }; /* steps before the first judgement, and that weigh in the mean */

/* The losses so far. All zeros: none yet. */
typedef struct {
    double mean, variance;
    i64 steps;
} SpikeWatch;

/* Standard deviations from the mean of the steps before up to `loss`; 0: below it, or too early to tell. */
static inline double spike_height(const SpikeWatch *w, double loss) {
    return w->steps < SPIKE_FIRST || loss <= w->mean ? 0 : (loss - w->mean) / sqrt(w->variance);
}

/* Count `loss`, one above `bound` sigma (0: no bound) as that. */
static inline void spike_count(SpikeWatch *w, double loss, double bound) {
    double off = loss - w->mean, share;
    if (bound > 0 && w->variance > 0 && spike_height(w, loss) > bound) off = bound * sqrt(w->variance);
    share = 1.0 / (double)i64_min(++w->steps, SPIKE_MEMORY);
    w->mean += share * off;
    w->variance = (1 - share) * (w->variance + share * off * off);
}

#endif

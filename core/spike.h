/* spike.h - a step whose loss jumps, or is not finite: --on-spike says what becomes of it; it is always logged.

   loss of a step -> how many sigma above the mean of the steps before? -> more than --spike-sigma: stop, skip, continue

   mean and variance   each step weighs 1/n, from the 20th on 1/20: what is long past, as the fall at the start, is
                       forgotten. A spike counts only as far as the bound: one leaves little trace, and a level that
                       stays is soon the rule.
   Losses are the same bits on every rank, so all ranks decide the same. The state is three numbers.                  */
#ifndef ODYSSEUS_SPIKE_H
#define ODYSSEUS_SPIKE_H

#include "finite.h"
#include "log.h"

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

/* Shall this step's update be made? Says so where the step is unlike the others, and ends the run if that is what
   --on-spike asks, or where that is silent and loss or norm are not finite. What is not finite never goes into the
   weights. Every rank holds the same numbers; collective, where they are not finite. */
static inline int spike_admits(SpikeWatch *w, const Model *m, const Settings *s, Metrics *k) {
    int finite = isfinite(k->loss) && isfinite(k->grad_norm);
    double height = finite ? spike_height(w, k->loss) : INFINITY, mean = w->mean;
    if (finite) spike_count(w, k->loss, s->spike_sigma);
    if (finite && (s->spike_sigma == 0 || height <= s->spike_sigma)) return 1;
    const char *action = s->on_spike ? s->on_spike : finite ? "continue" : "stop";
    char what[512];
    if (!finite) bad_tensor_text(m, what, sizeof what, k->loss, k->grad_norm);
    else snprintf(what, sizeof what, "loss %.4f is %.1f standard deviations above the mean of the steps before, %.4f",
                  k->loss, height, mean);
    if (strcmp(action, "stop") == 0)
        FAIL(EVERYONE, "step %lld: %s%s", (long long)k->step, what,
             s->out ? "; metrics.jsonl has the steps before" : "");
    int skips = !finite || strcmp(action, "skip") == 0;
    k->spike = skips ? "skipped" : "continued";
    if (m->mesh.rank == 0)
        printf("note     step %lld: %s; %s\n", (long long)k->step, what,
               skips ? "no update" : "the update is made all the same");
    return !skips;
}

#endif

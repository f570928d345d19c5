/* schedule.h - the learning rate of a step, by --schedule.

   step s from 0, warmup W, steps S, decay D      rate
   s < W       every schedule                     lr (s + 1) / W
   cosine      p = (s - W) / (S - W)              min_lr + (lr - min_lr) (1 + cos(pi p)) / 2
   linear      p = (s - W) / (S - W)              min_lr + (lr - min_lr) (1 - p)
   constant                                       lr
   wsd         s < S - D                          lr
               p = (s - (S - D)) / D              min_lr + (lr - min_lr) (1 - p)

   Cosine: Loshchilov, Hutter 2016, arXiv:1608.03983. WSD, warmup - stable - decay: Hu et al. 2024, arXiv:2404.06395;
   with a linear decay as here: Haegele et al. 2024, arXiv:2405.18392.                                               */
#ifndef ODYSSEUS_SCHEDULE_H
#define ODYSSEUS_SCHEDULE_H

#include "flags.h"

/* The learning rate of `step`, which counts from 0. */
static inline double learning_rate(const Settings *s, i64 step) {
    int cosine = strcmp(s->schedule, "cosine") == 0, stable = strcmp(s->schedule, "wsd") == 0;
    i64 from = stable ? s->steps - s->decay_steps : s->warmup;
    if (step < s->warmup) return s->lr * (double)(step + 1) / (double)s->warmup;
    if (strcmp(s->schedule, "constant") == 0 || step < from) return s->lr;
    double p = s->steps > from ? (double)(step - from) / (double)(s->steps - from) : 1;
    return s->min_lr + (s->lr - s->min_lr) * (cosine ? 0.5 * (1 + cos(3.14159265358979323846 * p)) : 1 - p);
}

/* Refuse flags that this schedule has no use for, and a decay that does not fit. */
static inline void schedule_check(const Settings *s, const FlagsGiven *given) {
    int stable = strcmp(s->schedule, "wsd") == 0;
    if (flag_given(given, "decay-steps") && !stable)
        FAIL(EVERYONE, "--decay-steps needs --schedule wsd; --schedule is %s", s->schedule);
    if (flag_given(given, "min-lr") && strcmp(s->schedule, "constant") == 0)
        FAIL(EVERYONE, "--min-lr has no meaning under --schedule constant; leave one out");
    if (stable && s->steps > 0 && s->warmup + s->decay_steps > s->steps)
        FAIL(EVERYONE, "--warmup %lld and --decay-steps %lld are more than --steps %lld; lower one",
             s->warmup, s->decay_steps, s->steps);
}

#endif

/* rope.h - rotary embedding: from the base and a way of scaling to the frequency of each
   pair, and to a common magnitude.

   f_i = theta^(-2 i / D) for the pairs i of a head of D numbers; a position turns pair i by position f_i. A model that
   was trained on sequences of O tokens is stretched to `factor` times as many:
   linear     f_i / factor                                                                            Chen 2023,
              arXiv:2306.15595
   dynamic    a larger theta, by how far L goes past the model's longest position; up to there, nothing changes
   llama3     wavelengths well inside O stay, those beyond are divided, those between are blended     arXiv:2407.21783
   yarn       the same by turns: pairs that turn beta_fast times in O stay, those of
              beta_slow are divided, a ramp between;
              q and k grow by attention_factor, so that the softmax stays as sharp
              Peng et al. 2023, arXiv:2309.00071
   longrope   a divisor for each pair, found by a search: one list up to O, one beyond
              Ding et al. 2024, arXiv:2402.13753
   dynamic and longrope ask how long a sequence is: here it is the run's --seq-len, from the first step to the last.

   Formulas are those of transformers, in double. */
#ifndef ODYSSEUS_ROPE_H
#define ODYSSEUS_ROPE_H

#include "util.h"

typedef enum { ROPE_PLAIN, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3, ROPE_YARN, ROPE_LONGROPE, ROPE_KINDS } RopeKind;

/* By these names config.json and --rope-scaling know them. */
static const char *const ROPE_NAMES[ROPE_KINDS] = {"default", "linear", "dynamic", "llama3", "yarn", "longrope"};

/* ROPE_KINDS: none of that name. */
static inline RopeKind rope_kind_find(const char *name) {
    int kind = 0;
    while (kind < ROPE_KINDS && strcmp(name, ROPE_NAMES[kind]) != 0) kind++;
    return (RopeKind)kind;
}

#define ROPE_LISTED 128 /* most pairs that longrope can list */

/* What does not belong to the kind is 0. */
typedef struct {
    RopeKind kind;
    double factor;
    i64 original_max_pos;                                /* llama3, yarn, longrope */
    double low_freq_factor, high_freq_factor;            /* llama3 */
    double beta_fast, beta_slow, mscale, mscale_all_dim; /* yarn */
    int exact_ramp;                                      /* yarn: its ends are not rounded to
                                                            whole pairs (truncate: false) */
    double attention_factor;                             /* yarn, longrope; 0: follows from factor */
    double short_factor[ROPE_LISTED], long_factor[ROPE_LISTED]; /* longrope, (head_dim / 2) of each */
} RopeScaling;

#define ROPE_NO_SCALING {ROPE_PLAIN, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}}
#define ROPE_LIKE_LLAMA3(factor, low, high, original) \
    {ROPE_LLAMA3, factor, original, low, high, 0, 0, 0, 0, 0, 0, {0}, {0}}

static inline int rope_scaling_equal(const RopeScaling *a, const RopeScaling *b) {
    const double x[] = {a->factor, a->low_freq_factor, a->high_freq_factor, a->beta_fast, a->beta_slow, a->mscale,
                        a->mscale_all_dim, a->attention_factor};
    const double y[] = {b->factor, b->low_freq_factor, b->high_freq_factor, b->beta_fast, b->beta_slow, b->mscale,
                        b->mscale_all_dim, b->attention_factor};
    for (int i = 0; i < COUNT_OF(x); i++)
        if (x[i] != y[i]) return 0;
    for (int i = 0; i < ROPE_LISTED; i++)
        if (a->short_factor[i] != b->short_factor[i] || a->long_factor[i] != b->long_factor[i]) return 0;
    return a->kind == b->kind && a->original_max_pos == b->original_max_pos && a->exact_ramp == b->exact_ramp;
}

/* Which of the ramp's ends a pair of D / 2 is at that turns `turns` times in `length` positions. */
static inline double yarn_pair(double turns, double length, double theta, double D) {
    return D * log(length / (turns * 2 * 3.14159265358979323846)) / (2 * log(theta));
}

/* Of pair i: 0, it stays as it is, to 1, its frequency is divided by the factor. */
static inline double yarn_ramp(const RopeScaling *s, double i, double theta, double D) {
    double length = (double)s->original_max_pos;
    double low = yarn_pair(s->beta_fast, length, theta, D), high = yarn_pair(s->beta_slow, length, theta, D);
    if (!s->exact_ramp) low = floor(low), high = ceil(high);
    low = fmax(low, 0), high = fmin(high, D - 1);
    if (low == high) high += 0.001;
    return fmin(fmax((i - low) / (high - low), 0), 1);
}

static inline double llama3_frequency(const RopeScaling *s, double f) {
    double wavelength = 2 * 3.14159265358979323846 / f, original = (double)s->original_max_pos;
    if (wavelength > original / s->low_freq_factor) return f / s->factor;
    if (wavelength <= original / s->high_freq_factor) return f;
    double smooth = (original / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return (1 - smooth) * f / s->factor + smooth * f;
}

/* The pairs' inverse frequencies, out (head_dim / 2), of a model whose longest position is
   max_pos, for sequences of L tokens. */
static inline void rope_scale(const RopeScaling *s, double theta, i64 head_dim, i64 max_pos, i64 L, double *out) {
    double D = (double)head_dim, past = (double)i64_max(L, max_pos) / (double)max_pos;
    if (s->kind == ROPE_DYNAMIC && past > 1) theta *= pow(s->factor * past - (s->factor - 1), D / (D - 2));
    for (i64 i = 0; i < head_dim / 2; i++) {
        double f = pow(theta, -2.0 * (double)i / D), ramp;
        switch (s->kind) {
        case ROPE_LINEAR: f /= s->factor; break;
        case ROPE_LLAMA3: f = llama3_frequency(s, f); break;
        case ROPE_YARN:
            ramp = yarn_ramp(s, (double)i, theta, D);
            f = f / s->factor * ramp + f * (1 - ramp);
            break;
        case ROPE_LONGROPE: f /= L > s->original_max_pos ? s->long_factor[i] : s->short_factor[i]; break;
        case ROPE_PLAIN:
        case ROPE_DYNAMIC:
        case ROPE_KINDS: break;
        }
        out[i] = f;
    }
}

/* factor >= 1 */
static inline double yarn_magnitude(double factor, double mscale) { return 0.1 * mscale * log(factor) + 1; }

/* By what rotated q and k are multiplied. */
static inline double rope_magnitude(const RopeScaling *s) {
    if (s->attention_factor > 0) return s->attention_factor;
    if (s->kind == ROPE_LONGROPE) return sqrt(1 + log(s->factor) / log((double)s->original_max_pos));
    if (s->kind != ROPE_YARN) return 1;
    if (s->mscale == 0 || s->mscale_all_dim == 0) return yarn_magnitude(s->factor, 1);
    return yarn_magnitude(s->factor, s->mscale) / yarn_magnitude(s->factor, s->mscale_all_dim);
}

/* Does the kind ask how long a sequence is? */
static inline int rope_follows_length(const RopeScaling *s) {
    return s->kind == ROPE_DYNAMIC || s->kind == ROPE_LONGROPE;
}

#endif

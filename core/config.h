/* config.h - what model: architecture, sizes, presets.

   Names of sizes follow the papers: d = dim, i = ffn, h = heads, k = kv_heads. head_dim = dim / heads.
   GPT-2: Radford et al. 2019. Llama: Touvron et al. 2023, arXiv:2302.13971,
   arXiv:2307.09288; Llama 3: arXiv:2407.21783. */
#ifndef ODYSSEUS_CONFIG_H
#define ODYSSEUS_CONFIG_H

#include "flags.h"

typedef enum { ARCH_GPT2, ARCH_LLAMA } Arch;

/* Llama 3's stretched rotary frequencies (factor 0: none). */
typedef struct {
    double factor, low_freq_factor, high_freq_factor;
    i64 original_max_pos;
} RopeScaling;

typedef struct {
    Arch arch;
    i64 layers, dim, heads, kv_heads, head_dim, ffn, vocab, max_pos;
    int tied; /* LM head shares the token embedding */
    double norm_eps, rope_theta;
    RopeScaling rope_scaling;
} Config;

typedef struct {
    const char *name;
    Config config;
} Preset;

#define GPT2(layers, dim, heads) \
    {ARCH_GPT2, layers, dim, heads, heads, 0, 4 * (dim), 50257, 1024, 1, 1e-5, 0, {0, 0, 0, 0}}
#define LLAMA(layers, dim, heads, kv, ffn, vocab, max_pos, theta) \
    {ARCH_LLAMA, layers, dim, heads, kv, 0, ffn, vocab, max_pos, 0, 1e-5, theta, {0, 0, 0, 0}}

static const Preset PRESETS[] = {
    {"tiny-llama", LLAMA(4, 128, 8, 4, 384, 256, 2048, 10000)},
    {"tiny-gpt", {ARCH_GPT2, 4, 128, 8, 8, 0, 512, 256, 2048, 1, 1e-5, 0, {0, 0, 0, 0}}},
    {"gpt2-124m", GPT2(12, 768, 12)},
    {"350m", GPT2(24, 1024, 16)},
    {"774m", GPT2(36, 1280, 20)},
    {"1558m", GPT2(48, 1600, 25)},
    {"llama2-7b", LLAMA(32, 4096, 32, 32, 11008, 32000, 4096, 10000)},
    {"llama2-13b", LLAMA(40, 5120, 40, 40, 13824, 32000, 4096, 10000)},
    {"llama3-8b", LLAMA(32, 4096, 32, 8, 14336, 128256, 8192, 500000)},
    {"llama2-3b-gqa", LLAMA(16, 4096, 32, 8, 11008, 32000, 4096, 10000)},
};

static inline const Preset *preset_find(const char *name) {
    for (int i = 0; i < COUNT_OF(PRESETS); i++)
        if (strcmp(PRESETS[i].name, name) == 0) return &PRESETS[i];
    return NULL;
}

/* MLP weight matrices: gate, up, down, or fc, proj; and how wide the first product is in units of ffn. */
static inline i64 mlp_matrices(const Config *c) { return c->arch == ARCH_LLAMA ? 3 : 2; }
static inline i64 mlp_gates(const Config *c) { return c->arch == ARCH_LLAMA ? 2 : 1; }

/* Sizes that only make sense together; called on every configuration, whatever it came
   from. `where` opens the message. */
static inline void config_check(Config *c, const char *where) {
    if (c->dim % c->heads != 0)
        FAIL(EVERYONE, "%s: dim %lld does not divide by %lld heads", where, c->dim, c->heads);
    c->head_dim = c->dim / c->heads;
    double widest = (double)c->dim * fmax(fmax((double)c->vocab, (double)c->ffn),
                                          fmax((double)c->dim, c->arch == ARCH_GPT2 ? (double)c->max_pos : 0));
    if (widest * (double)c->layers > 1e15)
        FAIL(EVERYONE, "%s: a model of more than 1e15 parameters; lower its sizes", where);
    if (c->heads % c->kv_heads != 0)
        FAIL(EVERYONE, "%s: %lld heads do not divide by %lld KV heads", where, c->heads, c->kv_heads);
    if (c->arch == ARCH_GPT2 && c->kv_heads != c->heads)
        FAIL(EVERYONE, "%s: gpt2 has no grouped KV heads; --kv-heads must equal --heads", where);
    if (c->arch == ARCH_LLAMA && c->head_dim % 2 != 0)
        FAIL(EVERYONE, "%s: head dimension %lld is odd; rotary embedding needs pairs: change --dim or --heads", where,
             c->head_dim);
}

/* Overrides from the command line onto `c`, which came from a preset. Sizes that hang together follow: overriding heads
   or dim alone takes kv_heads = heads and ffn = 4 dim for gpt2. */
static inline void config_override(Config *c, const Settings *s) {
    if (s->arch) {
        Arch arch = strcmp(s->arch, "gpt2") == 0 ? ARCH_GPT2 : ARCH_LLAMA;
        if (arch != c->arch) {
            c->arch = arch;
            c->tied = arch == ARCH_GPT2;
            if (arch == ARCH_LLAMA) c->rope_theta = 10000;
            else c->kv_heads = c->heads;
            if (arch == ARCH_GPT2) c->ffn = 4 * c->dim;
        }
    }
    if (s->layers) c->layers = s->layers;
    if (s->dim) {
        c->dim = s->dim;
        if (c->arch == ARCH_GPT2) c->ffn = 4 * c->dim;
    }
    if (s->heads) c->heads = c->kv_heads = s->heads;
    if (s->kv_heads) c->kv_heads = s->kv_heads;
    if (s->ffn) c->ffn = s->ffn;
    if (s->vocab) c->vocab = s->vocab;
    if (s->max_pos) c->max_pos = s->max_pos;
    if (s->rope_theta > 0) {
        if (c->arch == ARCH_GPT2) FAIL(EVERYONE, "--rope-theta: gpt2 has learned positions; use --arch llama");
        c->rope_theta = s->rope_theta;
    }
    if (s->tied_head) c->tied = strcmp(s->tied_head, "on") == 0;
    if (c->arch == ARCH_GPT2 && !c->tied) FAIL(EVERYONE, "--tied-head off: gpt2's head is tied");
}

/* Inverse frequencies of the rotary pairs, in double: out (head_dim / 2). With Llama 3's scaling, wavelengths beyond
   the original context are stretched by `factor`, those well inside it stay, those between are blended. */
static inline void rope_frequencies(const Config *c, double *out) {
    const double pi = 3.14159265358979323846;
    const RopeScaling *s = &c->rope_scaling;
    for (i64 i = 0; i < c->head_dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
        if (s->factor > 0) {
            double wavelength = 2 * pi / f, original = (double)s->original_max_pos;
            double low = original / s->low_freq_factor, high = original / s->high_freq_factor;
            if (wavelength > low) f /= s->factor;
            else if (wavelength > high) {
                double smooth =
                    (original / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
                f = (1 - smooth) * f / s->factor + smooth * f;
            }
        }
        out[i] = f;
    }
}

#endif

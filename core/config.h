/* config.h - what model: its features and sizes; families, presets.

   Names of sizes follow the papers: d = dim, i = ffn, h = heads, k = kv_heads, D =
   head_dim, which is d / h unless given.
   What a model has - biases, a norm of queries and keys, a gate, rotation, and where - are features.
   The walk, the table of tensors and the costs ask for those. A family is a name that config.json has
   for some of them, with defaults.
   GPT-2: Radford et al. 2019. Llama: Touvron et al. 2023, arXiv:2302.13971,
   arXiv:2307.09288; Llama 3: arXiv:2407.21783.
   Mistral: Jiang et al. 2023, arXiv:2310.06825. Qwen2.5: arXiv:2412.15115; Qwen3: arXiv:2505.09388.
   SmolLM3: Hugging Face 2025. Phi-3: Abdin et al. 2024, arXiv:2404.14219. */
#ifndef ODYSSEUS_CONFIG_H
#define ODYSSEUS_CONFIG_H

#include "flags.h"
#include "rope.h"

typedef enum { ARCH_GPT2, ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3, ARCH_SMOLLM3, ARCH_PHI3, ARCHS } Arch;

/* Features that all layers share, as bits. */
enum {
    HAS_LAYER_NORM = 1, /* norms with a mean and a bias; else RMSNorm */
    HAS_POSITIONS = 2,  /* learned positions, added to the embedding; else rotary ones */
    HAS_GATE = 4,       /* SwiGLU of gate and up; else GELU of up */
    HAS_QKV_BIAS = 8,
    HAS_O_BIAS = 16,
    HAS_MLP_BIAS = 32,
    HAS_QK_NORM = 64 /* an RMSNorm of each head's query and key, before they are rotated */
};

/* Layers of a model whose layers differ. */
#define LAYERS_APART 1024
typedef struct {
    uint64_t bits[LAYERS_APART / 64];
} LayerSet;

static inline int layer_in(const LayerSet *s, i64 layer) {
    return layer < LAYERS_APART && (s->bits[layer / 64] >> layer % 64 & 1);
}
static inline void layer_add(LayerSet *s, i64 layer) { s->bits[layer / 64] |= (uint64_t)1 << layer % 64; }
static inline int layers_equal(const LayerSet *a, const LayerSet *b) { return memcmp(a, b, sizeof *a) == 0; }

static inline i64 layers_count(const LayerSet *s, i64 layers) {
    i64 n = 0;
    for (i64 l = 0; l < layers; l++) n += layer_in(s, l);
    return n;
}

typedef struct {
    Arch arch; /* what config.json and --arch call it; nothing else asks */
    i64 layers, dim, heads, kv_heads, head_dim, ffn, vocab, max_pos;
    int tied; /* LM head shares the token embedding */
    double norm_eps, rope_theta;
    RopeScaling rope_scaling;
    int has;           /* HAS_ bits */
    i64 window;        /* a query sees so many keys, itself included, in the layers `windowed`; 0: all */
    LayerSet no_rope;  /* layers that do not rotate */
    LayerSet windowed;
} Config;

#define HAS_GPT2 (HAS_LAYER_NORM | HAS_POSITIONS | HAS_QKV_BIAS | HAS_O_BIAS | HAS_MLP_BIAS)
#define HAS_OF(arch) \
    ((arch) == ARCH_GPT2 ? HAS_GPT2 \
                         : HAS_GATE | ((arch) == ARCH_QWEN2 ? HAS_QKV_BIAS : (arch) == ARCH_QWEN3 ? HAS_QK_NORM : 0))
#define NO_LAYERS {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}
#define FOUR ((uint64_t)0x8888888888888888)
#define EVERY_FOURTH {{FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR, FOUR}}

/* A model with its family's features; head_dim 0: dim / heads. */
#define CONFIG(arch, layers, dim, heads, kv, head_dim, ffn, vocab, max_pos, tied, eps, theta) \
    CONFIG_ROPE(arch, layers, dim, heads, kv, head_dim, ffn, vocab, max_pos, tied, eps, theta, ROPE_NO_SCALING)
#define CONFIG_ROPE(arch, layers, dim, heads, kv, head_dim, ffn, vocab, max_pos, tied, eps, theta, ...) \
    {arch, layers, dim, heads, kv, head_dim, ffn, vocab, max_pos, tied, eps, theta, __VA_ARGS__, HAS_OF(arch), 0, \
     NO_LAYERS, NO_LAYERS}
#define SMOLLM3(layers, dim, heads, kv, ffn, vocab, max_pos, theta) \
    {ARCH_SMOLLM3, layers, dim, heads, kv, 0, ffn, vocab, max_pos, 1, 1e-6, theta, ROPE_NO_SCALING, \
     HAS_OF(ARCH_SMOLLM3), 0, EVERY_FOURTH, NO_LAYERS}

/* Which layers a sliding window is in, where config.json asks for one; STATED: all, too, but by default none. */
typedef enum { WINDOW_NONE, WINDOW_ALL, WINDOW_STATED, WINDOW_UPPER, WINDOW_NO_ROPE } WindowRule;

/* What config.json calls a family, which switches it may set, and transformers' defaults for what it leaves out. */
typedef struct {
    const char *name, *lm, *body; /* model_type; classes of the model with its head and without */
    int may;                      /* HAS_ bits that a switch decides */
    WindowRule window;
    Config config;                /* kv_heads 0: as many as heads */
} Family;

static const Family FAMILIES[ARCHS] = {
    {"gpt2", "GPT2LMHeadModel", "GPT2Model", 0, WINDOW_NONE,
     CONFIG(ARCH_GPT2, 12, 768, 12, 12, 0, 3072, 50257, 1024, 1, 1e-5, 0)},
    {"llama", "LlamaForCausalLM", "LlamaModel", HAS_QKV_BIAS | HAS_O_BIAS | HAS_MLP_BIAS, WINDOW_NONE,
     CONFIG(ARCH_LLAMA, 32, 4096, 32, 0, 0, 11008, 32000, 2048, 0, 1e-6, 10000)},
    {"mistral", "MistralForCausalLM", "MistralModel", 0, WINDOW_ALL,
     CONFIG(ARCH_MISTRAL, 32, 4096, 32, 8, 0, 14336, 32000, 131072, 0, 1e-6, 10000)},
    {"qwen2", "Qwen2ForCausalLM", "Qwen2Model", 0, WINDOW_UPPER,
     CONFIG(ARCH_QWEN2, 32, 4096, 32, 32, 0, 22016, 151936, 32768, 0, 1e-6, 10000)},
    {"qwen3", "Qwen3ForCausalLM", "Qwen3Model", HAS_QKV_BIAS | HAS_O_BIAS, WINDOW_UPPER,
     CONFIG(ARCH_QWEN3, 32, 4096, 32, 32, 128, 22016, 151936, 32768, 0, 1e-6, 10000)},
    {"smollm3", "SmolLM3ForCausalLM", "SmolLM3Model", HAS_QKV_BIAS | HAS_O_BIAS | HAS_MLP_BIAS, WINDOW_NO_ROPE,
     SMOLLM3(36, 2048, 16, 4, 11008, 128256, 32768, 2000000)},
    {"phi3", "Phi3ForCausalLM", "Phi3Model", 0, WINDOW_STATED,
     CONFIG(ARCH_PHI3, 32, 3072, 32, 0, 0, 8192, 32064, 4096, 0, 1e-5, 10000)},
};

static inline const char *arch_name(Arch arch) { return FAMILIES[arch].name; }

/* NULL: none of that name. */
static inline const Family *family_find(const char *name) {
    for (int i = 0; i < ARCHS; i++)
        if (strcmp(FAMILIES[i].name, name) == 0) return &FAMILIES[i];
    return NULL;
}

typedef struct {
    const char *name;
    Config config;
} Preset;

#define GPT2(layers, dim, heads) CONFIG(ARCH_GPT2, layers, dim, heads, heads, 0, 4 * (dim), 50257, 1024, 1, 1e-5, 0)
#define LLAMA(layers, dim, heads, kv, ffn, vocab, max_pos, theta) \
    CONFIG(ARCH_LLAMA, layers, dim, heads, kv, 0, ffn, vocab, max_pos, 0, 1e-5, theta)

static const Preset PRESETS[] = {
    {"tiny-llama", LLAMA(4, 128, 8, 4, 384, 256, 2048, 10000)},
    {"tiny-gpt", CONFIG(ARCH_GPT2, 4, 128, 8, 8, 0, 512, 256, 2048, 1, 1e-5, 0)},
    {"gpt2-124m", GPT2(12, 768, 12)},
    {"350m", GPT2(24, 1024, 16)},
    {"774m", GPT2(36, 1280, 20)},
    {"1558m", GPT2(48, 1600, 25)},
    {"llama2-7b", LLAMA(32, 4096, 32, 32, 11008, 32000, 4096, 10000)},
    {"llama2-13b", LLAMA(40, 5120, 40, 40, 13824, 32000, 4096, 10000)},
    {"llama3-8b", LLAMA(32, 4096, 32, 8, 14336, 128256, 8192, 500000)},
    {"llama2-3b-gqa", LLAMA(16, 4096, 32, 8, 11008, 32000, 4096, 10000)},
    {"llama3.2-1b", CONFIG_ROPE(ARCH_LLAMA, 16, 2048, 32, 8, 0, 8192, 128256, 131072, 1, 1e-5, 500000,
                                ROPE_LIKE_LLAMA3(32, 1, 4, 8192))},
    {"qwen2.5-0.5b", CONFIG(ARCH_QWEN2, 24, 896, 14, 2, 0, 4864, 151936, 32768, 1, 1e-6, 1000000)},
    {"qwen2.5-1.5b", CONFIG(ARCH_QWEN2, 28, 1536, 12, 2, 0, 8960, 151936, 131072, 1, 1e-6, 1000000)},
    {"qwen2.5-7b", CONFIG(ARCH_QWEN2, 28, 3584, 28, 4, 0, 18944, 152064, 131072, 0, 1e-6, 1000000)},
    {"qwen3-0.6b", CONFIG(ARCH_QWEN3, 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1, 1e-6, 1000000)},
    {"qwen3-8b", CONFIG(ARCH_QWEN3, 36, 4096, 32, 8, 128, 12288, 151936, 40960, 0, 1e-6, 1000000)},
    {"mistral-7b", CONFIG(ARCH_MISTRAL, 32, 4096, 32, 8, 0, 14336, 32768, 32768, 0, 1e-5, 1000000)},
    {"smollm3-3b", SMOLLM3(36, 2048, 16, 4, 11008, 128256, 65536, 5000000)},
};

static inline const Preset *preset_find(const char *name) {
    for (int i = 0; i < COUNT_OF(PRESETS); i++)
        if (strcmp(PRESETS[i].name, name) == 0) return &PRESETS[i];
    return NULL;
}

/* MLP weight matrices: gate, up, down, or fc, proj; and how wide the first product is in units of ffn. */
static inline i64 mlp_matrices(const Config *c) { return c->has & HAS_GATE ? 3 : 2; }
static inline i64 mlp_gates(const Config *c) { return c->has & HAS_GATE ? 2 : 1; }

/* All heads together: the width of the queries and of what attention gives, h D, which need not be d. */
static inline i64 attention_width(const Config *c) { return c->heads * c->head_dim; }

/* Sizes that only make sense together; called on every configuration, whatever it came
   from. `where` opens the message. */
static inline void config_check(Config *c, const char *where) {
    if (!c->head_dim && c->dim % c->heads != 0)
        FAIL(EVERYONE, "%s: dim %lld does not divide by %lld heads", where, c->dim, c->heads);
    if (!c->head_dim) c->head_dim = c->dim / c->heads;
    double widest = fmax(fmax((double)c->vocab, (double)c->ffn), (double)(c->heads * c->head_dim));
    widest = (double)c->dim * fmax(fmax(widest, (double)c->dim), c->has & HAS_POSITIONS ? (double)c->max_pos : 0);
    if (widest * (double)c->layers > 1e15)
        FAIL(EVERYONE, "%s: a model of more than 1e15 parameters; lower its sizes", where);
    if (c->heads % c->kv_heads != 0)
        FAIL(EVERYONE, "%s: %lld heads do not divide by %lld KV heads", where, c->heads, c->kv_heads);
    if (c->arch == ARCH_GPT2 && c->kv_heads != c->heads)
        FAIL(EVERYONE, "%s: gpt2 has no grouped KV heads; --kv-heads must equal --heads", where);
    if (c->arch == ARCH_GPT2 && attention_width(c) != c->dim)
        FAIL(EVERYONE, "%s: gpt2's head dimension is dim / heads (%lld / %lld), not %lld", where, c->dim, c->heads,
             c->head_dim);
    if (!(c->has & HAS_POSITIONS) && c->head_dim % 2 != 0)
        FAIL(EVERYONE,
             "%s: head dimension %lld is odd; rotary embedding needs pairs: change --head-dim, --dim or --heads", where,
             c->head_dim);
    const RopeScaling *r = &c->rope_scaling;
    if (r->kind == ROPE_YARN && c->rope_theta <= 1)
        FAIL(EVERYONE, "%s: yarn needs a rope_theta above 1, not %g", where, c->rope_theta);
    if (r->kind == ROPE_DYNAMIC && c->head_dim <= 2)
        FAIL(EVERYONE, "%s: dynamic scaling needs heads of more than 2", where);
    if (c->arch == ARCH_PHI3 && r->kind != ROPE_PLAIN && r->kind != ROPE_LONGROPE)
        FAIL(EVERYONE, "%s: a phi3's rotary embedding is scaled by longrope or not at all, not by %s", where,
             ROPE_NAMES[r->kind]);
    if (r->kind == ROPE_LONGROPE && r->attention_factor == 0 && r->original_max_pos < 2)
        FAIL(EVERYONE, "%s: longrope needs an attention_factor, or an original_max_position_embeddings above 1", where);
    for (i64 l = c->layers; l < LAYERS_APART; l++) /* of layers that are not there, none differs */
        c->no_rope.bits[l / 64] &= ~((uint64_t)1 << l % 64), c->windowed.bits[l / 64] &= ~((uint64_t)1 << l % 64);
}

/* --rope-scaling on a model that has no scaling yet: its longest position becomes `factor` times what it was; but that
   of dynamic scaling stays, since it tells where scaling begins. */
static inline void config_extend(Config *c, const Settings *s) {
    RopeScaling *r = &c->rope_scaling;
    if (!s->rope_scaling && s->rope_factor == 0) return;
    if (!s->rope_scaling) FAIL(EVERYONE, "--rope-factor needs --rope-scaling: linear, dynamic or yarn");
    if (s->rope_factor == 0)
        FAIL(EVERYONE, "--rope-scaling %s needs --rope-factor: how many times longer", s->rope_scaling);
    if (c->has & HAS_POSITIONS)
        FAIL(EVERYONE, "--rope-scaling: %s has learned positions; use a rotary model", arch_name(c->arch));
    if (r->kind != ROPE_PLAIN)
        FAIL(EVERYONE,
             "--rope-scaling %s: the model's rotary embedding is scaled already (%s by %g); leave the flag out to "
             "train on",
             s->rope_scaling, ROPE_NAMES[r->kind], r->factor);
    r->kind = rope_kind_find(s->rope_scaling);
    r->factor = s->rope_factor;
    if (r->kind == ROPE_YARN) r->original_max_pos = c->max_pos, r->beta_fast = 32, r->beta_slow = 1;
    if (r->kind != ROPE_DYNAMIC) c->max_pos = (i64)ceil((double)c->max_pos * r->factor);
}

/* --window: in the layers that have one, else in all. What a Llama with windows is, config.json calls mistral. */
static inline void config_window(Config *c, const Settings *s) {
    if (!s->window) return;
    if (c->arch == ARCH_LLAMA && !(c->has & (HAS_QKV_BIAS | HAS_O_BIAS | HAS_MLP_BIAS))) c->arch = ARCH_MISTRAL;
    if (FAMILIES[c->arch].window == WINDOW_NONE)
        FAIL(EVERYONE, "--window: config.json of %s%s cannot say so; use --arch mistral, qwen2, qwen3, smollm3 or phi3",
             arch_name(c->arch), c->arch == ARCH_LLAMA ? " with biases" : "");
    if (c->layers > LAYERS_APART)
        FAIL(EVERYONE, "--window: a model of %lld layers; windows are known in the first %d", c->layers, LAYERS_APART);
    c->window = s->window;
    if (layers_count(&c->windowed, c->layers)) return;
    for (i64 l = 0; l < c->layers; l++) layer_add(&c->windowed, l);
}

/* Overrides from the command line onto `c`, which came from a preset. Sizes that hang together follow: overriding heads
   or dim alone takes kv_heads = heads and ffn = 4 dim for gpt2. */
static inline void config_override(Config *c, const Settings *s) {
    if (s->arch && strcmp(s->arch, arch_name(c->arch)) != 0) {
        const Config *family = &family_find(s->arch)->config;
        c->arch = family->arch, c->has = family->has, c->tied = family->tied, c->no_rope = family->no_rope;
        c->rope_theta = family->rope_theta;
        if (c->arch == ARCH_GPT2) c->kv_heads = c->heads, c->ffn = 4 * c->dim;
    }
    if (s->layers) c->layers = s->layers;
    if (s->dim) {
        c->dim = s->dim;
        if (c->arch == ARCH_GPT2) c->ffn = 4 * c->dim;
    }
    if (s->heads) c->heads = c->kv_heads = s->heads;
    if (s->kv_heads) c->kv_heads = s->kv_heads;
    if (s->head_dim) c->head_dim = s->head_dim;
    if (s->ffn) c->ffn = s->ffn;
    if (s->vocab) c->vocab = s->vocab;
    if (s->max_pos) c->max_pos = s->max_pos;
    if (s->rope_theta > 0) {
        if (c->has & HAS_POSITIONS) FAIL(EVERYONE, "--rope-theta: gpt2 has learned positions; use --arch llama");
        c->rope_theta = s->rope_theta;
    }
    if (s->tied_head) c->tied = strcmp(s->tied_head, "on") == 0;
    if (c->arch == ARCH_GPT2 && !c->tied) FAIL(EVERYONE, "--tied-head off: gpt2's head is tied");
}

/* Inverse frequencies of the rotary pairs for sequences of L tokens, in double: out (head_dim / 2). */
static inline void rope_frequencies(const Config *c, i64 L, double *out) {
    rope_scale(&c->rope_scaling, c->rope_theta, c->head_dim, c->max_pos, L, out);
}

#endif

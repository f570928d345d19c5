/* tensors.h - the tensors of a model: one table row each, with its place in a Hugging Face checkpoint.

   Every matrix is stored (out, in), so that y = x W^T reads both row by row; GPT-2's checkpoints hold (in, out), which
   `hf_layout` marks. Where a checkpoint fuses tensors (GPT-2's c_attn, Phi-3's qkv_proj and gate_up_proj), each is a
   row under the same name. A row says how the tensor *can* be split over the head axis; whether it is, the scheme says.

   TensorSpec   the table row: name, shape in terms of the model's sizes, split, decay, initial value
   Tensor       one tensor of one layer on this rank: its rows and columns here, its place in a ZeRO chunk

   Order within a block is order in memory: matrices first, k before v and gate before up, so that
   both come out of one product. */
#ifndef ODYSSEUS_TENSORS_H
#define ODYSSEUS_TENSORS_H

#include "config.h"
#include "ledger.h"

typedef enum {
    T_WTE, T_WPE, T_Q, T_K, T_V, T_O, T_GATE, T_UP, T_DOWN, T_LM_HEAD, T_Q_BIAS, T_K_BIAS, T_V_BIAS, T_GATE_BIAS,
    T_UP_BIAS, T_O_BIAS, T_DOWN_BIAS, T_NORM, T_NORM_BIAS, T_Q_NORM, T_K_NORM, T_ROLES
} Role;

typedef enum { SIZE_1, SIZE_C, SIZE_Q, SIZE_KV, SIZE_HEAD, SIZE_FFN, SIZE_V, SIZE_P } SizeName;
typedef enum { SPLIT_NONE, SPLIT_Q_ROWS, SPLIT_KV_ROWS, SPLIT_Q_COLS, SPLIT_FFN_ROWS, SPLIT_FFN_COLS } Split;
typedef enum { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_NORMAL_RESIDUAL } Init;
typedef enum { PLAIN, TURNED } HfLayout; /* (out, in), (in, out) */

typedef struct {
    Role role;
    BlockKind block;
    int needs;             /* HAS_ bits of a model that has it */
    const char *hf_name;   /* with %d for the layer; rows of one name are parts of it, along the out dimension */
    SizeName rows, cols;
    Split split;
    Init init;
    HfLayout hf_layout;
} TensorSpec;

#define H "transformer.h.%d."

static const TensorSpec GPT2_TENSORS[] = {
    {T_WTE, BLOCK_EMBEDDING, 0, "transformer.wte.weight", SIZE_V, SIZE_C, SPLIT_NONE, INIT_NORMAL, PLAIN},
    {T_WPE, BLOCK_EMBEDDING, 0, "transformer.wpe.weight", SIZE_P, SIZE_C, SPLIT_NONE, INIT_NORMAL, PLAIN},
    {T_Q, BLOCK_ATTENTION, 0, H "attn.c_attn.weight", SIZE_Q, SIZE_C, SPLIT_Q_ROWS, INIT_NORMAL, TURNED},
    {T_K, BLOCK_ATTENTION, 0, H "attn.c_attn.weight", SIZE_KV, SIZE_C, SPLIT_KV_ROWS, INIT_NORMAL, TURNED},
    {T_V, BLOCK_ATTENTION, 0, H "attn.c_attn.weight", SIZE_KV, SIZE_C, SPLIT_KV_ROWS, INIT_NORMAL, TURNED},
    {T_O, BLOCK_ATTENTION, 0, H "attn.c_proj.weight", SIZE_C, SIZE_Q, SPLIT_Q_COLS, INIT_NORMAL_RESIDUAL, TURNED},
    {T_Q_BIAS, BLOCK_ATTENTION, 0, H "attn.c_attn.bias", SIZE_Q, SIZE_1, SPLIT_Q_ROWS, INIT_ZERO, PLAIN},
    {T_K_BIAS, BLOCK_ATTENTION, 0, H "attn.c_attn.bias", SIZE_KV, SIZE_1, SPLIT_KV_ROWS, INIT_ZERO, PLAIN},
    {T_V_BIAS, BLOCK_ATTENTION, 0, H "attn.c_attn.bias", SIZE_KV, SIZE_1, SPLIT_KV_ROWS, INIT_ZERO, PLAIN},
    {T_O_BIAS, BLOCK_ATTENTION, 0, H "attn.c_proj.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
    {T_NORM, BLOCK_ATTENTION, 0, H "ln_1.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_NORM_BIAS, BLOCK_ATTENTION, 0, H "ln_1.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
    {T_UP, BLOCK_MLP, 0, H "mlp.c_fc.weight", SIZE_FFN, SIZE_C, SPLIT_FFN_ROWS, INIT_NORMAL, TURNED},
    {T_DOWN, BLOCK_MLP, 0, H "mlp.c_proj.weight", SIZE_C, SIZE_FFN, SPLIT_FFN_COLS, INIT_NORMAL_RESIDUAL, TURNED},
    {T_UP_BIAS, BLOCK_MLP, 0, H "mlp.c_fc.bias", SIZE_FFN, SIZE_1, SPLIT_FFN_ROWS, INIT_ZERO, PLAIN},
    {T_DOWN_BIAS, BLOCK_MLP, 0, H "mlp.c_proj.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
    {T_NORM, BLOCK_MLP, 0, H "ln_2.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_NORM_BIAS, BLOCK_MLP, 0, H "ln_2.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
    {T_NORM, BLOCK_LM_HEAD, 0, "transformer.ln_f.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_NORM_BIAS, BLOCK_LM_HEAD, 0, "transformer.ln_f.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
};

#undef H
#define LAYER "model.layers.%d."
#define ATTN LAYER "self_attn."
#define MLP LAYER "mlp."

/* Llama's, and its kin's. */
static const TensorSpec LLAMA_TENSORS[] = {
    {T_WTE, BLOCK_EMBEDDING, 0, "model.embed_tokens.weight", SIZE_V, SIZE_C, SPLIT_NONE, INIT_NORMAL, PLAIN},
    {T_Q, BLOCK_ATTENTION, 0, ATTN "q_proj.weight", SIZE_Q, SIZE_C, SPLIT_Q_ROWS, INIT_NORMAL, PLAIN},
    {T_K, BLOCK_ATTENTION, 0, ATTN "k_proj.weight", SIZE_KV, SIZE_C, SPLIT_KV_ROWS, INIT_NORMAL, PLAIN},
    {T_V, BLOCK_ATTENTION, 0, ATTN "v_proj.weight", SIZE_KV, SIZE_C, SPLIT_KV_ROWS, INIT_NORMAL, PLAIN},
    {T_O, BLOCK_ATTENTION, 0, ATTN "o_proj.weight", SIZE_C, SIZE_Q, SPLIT_Q_COLS, INIT_NORMAL_RESIDUAL, PLAIN},
    {T_Q_BIAS, BLOCK_ATTENTION, HAS_QKV_BIAS, ATTN "q_proj.bias", SIZE_Q, SIZE_1, SPLIT_Q_ROWS, INIT_ZERO, PLAIN},
    {T_K_BIAS, BLOCK_ATTENTION, HAS_QKV_BIAS, ATTN "k_proj.bias", SIZE_KV, SIZE_1, SPLIT_KV_ROWS, INIT_ZERO, PLAIN},
    {T_V_BIAS, BLOCK_ATTENTION, HAS_QKV_BIAS, ATTN "v_proj.bias", SIZE_KV, SIZE_1, SPLIT_KV_ROWS, INIT_ZERO, PLAIN},
    {T_O_BIAS, BLOCK_ATTENTION, HAS_O_BIAS, ATTN "o_proj.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
    {T_Q_NORM, BLOCK_ATTENTION, HAS_QK_NORM, ATTN "q_norm.weight", SIZE_HEAD, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_K_NORM, BLOCK_ATTENTION, HAS_QK_NORM, ATTN "k_norm.weight", SIZE_HEAD, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_NORM, BLOCK_ATTENTION, 0, LAYER "input_layernorm.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_GATE, BLOCK_MLP, 0, MLP "gate_proj.weight", SIZE_FFN, SIZE_C, SPLIT_FFN_ROWS, INIT_NORMAL, PLAIN},
    {T_UP, BLOCK_MLP, 0, MLP "up_proj.weight", SIZE_FFN, SIZE_C, SPLIT_FFN_ROWS, INIT_NORMAL, PLAIN},
    {T_DOWN, BLOCK_MLP, 0, MLP "down_proj.weight", SIZE_C, SIZE_FFN, SPLIT_FFN_COLS, INIT_NORMAL_RESIDUAL, PLAIN},
    {T_GATE_BIAS, BLOCK_MLP, HAS_MLP_BIAS, MLP "gate_proj.bias", SIZE_FFN, SIZE_1, SPLIT_FFN_ROWS, INIT_ZERO, PLAIN},
    {T_UP_BIAS, BLOCK_MLP, HAS_MLP_BIAS, MLP "up_proj.bias", SIZE_FFN, SIZE_1, SPLIT_FFN_ROWS, INIT_ZERO, PLAIN},
    {T_DOWN_BIAS, BLOCK_MLP, HAS_MLP_BIAS, MLP "down_proj.bias", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ZERO, PLAIN},
    {T_NORM, BLOCK_MLP, 0, LAYER "post_attention_layernorm.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_LM_HEAD, BLOCK_LM_HEAD, 0, "lm_head.weight", SIZE_V, SIZE_C, SPLIT_NONE, INIT_NORMAL, PLAIN},
    {T_NORM, BLOCK_LM_HEAD, 0, "model.norm.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
};

/* Phi-3's: Llama's without biases, fused. */
static const TensorSpec PHI3_TENSORS[] = {
    {T_WTE, BLOCK_EMBEDDING, 0, "model.embed_tokens.weight", SIZE_V, SIZE_C, SPLIT_NONE, INIT_NORMAL, PLAIN},
    {T_Q, BLOCK_ATTENTION, 0, ATTN "qkv_proj.weight", SIZE_Q, SIZE_C, SPLIT_Q_ROWS, INIT_NORMAL, PLAIN},
    {T_K, BLOCK_ATTENTION, 0, ATTN "qkv_proj.weight", SIZE_KV, SIZE_C, SPLIT_KV_ROWS, INIT_NORMAL, PLAIN},
    {T_V, BLOCK_ATTENTION, 0, ATTN "qkv_proj.weight", SIZE_KV, SIZE_C, SPLIT_KV_ROWS, INIT_NORMAL, PLAIN},
    {T_O, BLOCK_ATTENTION, 0, ATTN "o_proj.weight", SIZE_C, SIZE_Q, SPLIT_Q_COLS, INIT_NORMAL_RESIDUAL, PLAIN},
    {T_NORM, BLOCK_ATTENTION, 0, LAYER "input_layernorm.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_GATE, BLOCK_MLP, 0, MLP "gate_up_proj.weight", SIZE_FFN, SIZE_C, SPLIT_FFN_ROWS, INIT_NORMAL, PLAIN},
    {T_UP, BLOCK_MLP, 0, MLP "gate_up_proj.weight", SIZE_FFN, SIZE_C, SPLIT_FFN_ROWS, INIT_NORMAL, PLAIN},
    {T_DOWN, BLOCK_MLP, 0, MLP "down_proj.weight", SIZE_C, SIZE_FFN, SPLIT_FFN_COLS, INIT_NORMAL_RESIDUAL, PLAIN},
    {T_NORM, BLOCK_MLP, 0, LAYER "post_attention_layernorm.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
    {T_LM_HEAD, BLOCK_LM_HEAD, 0, "lm_head.weight", SIZE_V, SIZE_C, SPLIT_NONE, INIT_NORMAL, PLAIN},
    {T_NORM, BLOCK_LM_HEAD, 0, "model.norm.weight", SIZE_C, SIZE_1, SPLIT_NONE, INIT_ONE, PLAIN},
};

#undef LAYER
#undef ATTN
#undef MLP

#define TENSORS_OF(table) {table, COUNT_OF(table)}
static const struct {
    const TensorSpec *specs;
    int count;
} TENSOR_TABLES[ARCHS] = {TENSORS_OF(GPT2_TENSORS),  TENSORS_OF(LLAMA_TENSORS), TENSORS_OF(LLAMA_TENSORS),
                          TENSORS_OF(LLAMA_TENSORS), TENSORS_OF(LLAMA_TENSORS), TENSORS_OF(LLAMA_TENSORS),
                          TENSORS_OF(PHI3_TENSORS)};
#undef TENSORS_OF

/* The table of an architecture; *count rows. */
static inline const TensorSpec *tensor_specs(Arch arch, int *count) {
    *count = TENSOR_TABLES[arch].count;
    return TENSOR_TABLES[arch].specs;
}

/* A tied model has no LM head of its own. */
static inline int tensor_exists(const TensorSpec *spec, const Config *c) {
    return (c->has & spec->needs) == spec->needs && !(spec->role == T_LM_HEAD && c->tied);
}

static inline i64 tensor_size(SizeName name, const Config *c) {
    switch (name) {
    case SIZE_1: return 1;
    case SIZE_C: return c->dim;
    case SIZE_Q: return attention_width(c);
    case SIZE_KV: return c->kv_heads * c->head_dim;
    case SIZE_HEAD: return c->head_dim;
    case SIZE_FFN: return c->ffn;
    case SIZE_V: return c->vocab;
    case SIZE_P: return c->max_pos;
    }
    return 0;
}

/* Weight decay: matrices yes, norms and biases no. */
static inline int tensor_decays(const TensorSpec *spec) { return spec->cols != SIZE_1; }

/* Part `part` of `parts` of a tensor: rows row0 .. row0+rows-1, columns col0 .. col0+cols-1 of the whole. Query heads
   divide by parts; with fewer KV heads than parts, neighbouring parts hold the same KV head. */
typedef struct {
    i64 row0, rows, col0, cols;
} Slice;

static inline Slice tensor_slice(const TensorSpec *spec, const Config *c, int split, i64 part, i64 parts) {
    Slice s = {0, tensor_size(spec->rows, c), 0, tensor_size(spec->cols, c)};
    if (!split || parts == 1) return s;
    switch (spec->split) {
    case SPLIT_NONE: break;
    case SPLIT_Q_ROWS:
    case SPLIT_FFN_ROWS: s.rows /= parts, s.row0 = part * s.rows; break;
    case SPLIT_Q_COLS:
    case SPLIT_FFN_COLS: s.cols /= parts, s.col0 = part * s.cols; break;
    case SPLIT_KV_ROWS: {
        i64 heads = i64_max(1, c->kv_heads / parts), first = part * c->kv_heads / parts;
        s.rows = heads * c->head_dim, s.row0 = first * c->head_dim;
        break;
    }
    }
    return s;
}

/* A Hugging Face tensor: where element (row, col) of `spec` stands in it. Index = base +
   row*row_step + col*col_step. */
typedef struct {
    i64 base, row_step, col_step;
    i64 shape[2]; /* the whole HF tensor */
    int dims;
} HfPlace;

/* `spec` is a row of the model's table. */
static inline HfPlace tensor_hf_place(const TensorSpec *spec, const Config *c) {
    i64 cols = tensor_size(spec->cols, c), before = 0, all = 0;
    int n, turned = spec->hf_layout == TURNED;
    const TensorSpec *specs = tensor_specs(c->arch, &n);
    for (int i = 0; i < n; i++) {
        if (strcmp(specs[i].hf_name, spec->hf_name) != 0 || !tensor_exists(&specs[i], c)) continue;
        if (&specs[i] < spec) before += tensor_size(specs[i].rows, c);
        all += tensor_size(specs[i].rows, c);
    }
    HfPlace p;
    memset(&p, 0, sizeof p);
    p.dims = spec->cols == SIZE_1 ? 1 : 2;
    p.base = turned ? before : before * cols, p.row_step = turned ? 1 : cols, p.col_step = turned ? all : 1;
    p.shape[0] = turned ? cols : all, p.shape[1] = turned ? all : cols;
    return p;
}

#define HF_NAME_MAX 128
static inline void tensor_hf_name(char out[HF_NAME_MAX], const TensorSpec *spec, int layer) {
    const char *d = strstr(spec->hf_name, "%d");
    if (d) snprintf(out, HF_NAME_MAX, "%.*s%d%s", (int)(d - spec->hf_name), spec->hf_name, layer, d + 2);
    else snprintf(out, HF_NAME_MAX, "%s", spec->hf_name);
}

/* Parameters of the model, tied weights once. */
static inline i64 config_parameters(const Config *c) {
    int n;
    const TensorSpec *specs = tensor_specs(c->arch, &n);
    i64 sum = 0;
    for (int i = 0; i < n; i++) {
        if (!tensor_exists(&specs[i], c)) continue;
        i64 copies = specs[i].block == BLOCK_ATTENTION || specs[i].block == BLOCK_MLP ? c->layers : 1;
        sum += copies * tensor_size(specs[i].rows, c) * tensor_size(specs[i].cols, c);
    }
    return sum;
}

/* ---- initial values: a function of seed, tensor and element, so that any rank can make any part ------------------ */

/* A key for one tensor: the seed and its name in the checkpoint (FNV-1a). */
static inline uint64_t tensor_key(i64 seed, const char *hf_name) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *hf_name; hf_name++) h = (h ^ (unsigned char)*hf_name) * 0x100000001b3ull;
    return mix64(h ^ mix64((uint64_t)seed));
}

/* Element `index` of the tensor with this key: N(0, 1) by Box-Muller from two hashed uniforms, in double on the host,
   rounded to fp32 by the caller: the same number in every build. */
static inline double random_normal(uint64_t key, i64 index) {
    uint64_t a = mix64(key + 2 * (uint64_t)index), b = mix64(key + 2 * (uint64_t)index + 1);
    double u = ((double)(a >> 11) + 1.0) * 0x1p-53, v = (double)(b >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(u)) * cos(2.0 * 3.14159265358979323846 * v);
}

/* The initial value of element `index` of an HF tensor: matrices N(0, 2/(5 d)), so that small models start as well as
   GPT-2's width does with its 0.02 (Nguyen, Salazar 2019, arXiv:1910.05895), those that write into the residual stream
   divided by sqrt(2 layers) (GPT-2). */
static inline float initial_value(const TensorSpec *spec, const Config *c, uint64_t key, i64 index) {
    double std = sqrt(0.4 / (double)c->dim);
    switch (spec->init) {
    case INIT_ZERO: return 0.0f;
    case INIT_ONE: return 1.0f;
    case INIT_NORMAL: return (float)(std * random_normal(key, index));
    case INIT_NORMAL_RESIDUAL: return (float)(std / sqrt(2.0 * (double)c->layers) * random_normal(key, index));
    }
    return 0.0f;
}

#endif

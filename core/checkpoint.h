/* checkpoint.h - Hugging Face directories: config.json <-> Config, *.safetensors <-> the logical tensors of a Zero.

   read    config.json   -> Config            keys we know are checked, what we do not implement is refused by name
           *.safetensors -> z->master, param  each rank converts, out of the mapped files, the elements that it owns
   write   z->master     -> model.safetensors pieces of 16M elements: zero, put in what this rank owns,
                                              collect by bitwise or on rank 0 (every element has one owner),
                                              which appends them to the file

   In between stands one map: element (row, col) of our tensor is element base + row row_step + col col_step of
   the file's, which covers GPT-2's (in, out) matrices and its fused c_attn; tensor_owned() gives the runs. So
   files know nothing of the mesh.
   Host memory: one piece a rank. Wolf et al. 2020 (transformers), arXiv:1910.03771; Rajbhandari et
   al. 2019, arXiv:1910.02054. */
#ifndef ODYSSEUS_CHECKPOINT_H
#define ODYSSEUS_CHECKPOINT_H

#include <omp.h>

#include "safetensors.h"
#include "zero.h"

/* ---- config.json: typed access ----------------------------------------------------------------------------------- */

/* An object in a JSON file; `within` is its place there ("" or "rope_scaling."), for messages. */
typedef struct {
    const char *path, *within;
    const cJSON *object;
} JsonAt;

#define JSON_REQUIRED (-1) /* as a fallback: there is none */

/* The value of key; absent and null are the same: NULL. */
static inline const cJSON *json_item(const JsonAt *j, const char *key) {
    const cJSON *item = json_find(j->path, j->object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

/* The value of a key that transformers does not take a null for; NULL: absent. */
static inline const cJSON *json_given(const JsonAt *j, const char *key) {
    const cJSON *item = json_find(j->path, j->object, key);
    if (cJSON_IsNull(item))
        FAIL(EVERYONE, "%s: %s%s is null; give its value, or leave it out for the default", j->path, j->within, key);
    return item;
}

static inline void json_missing(const JsonAt *j, const char *key) {
    FAIL(EVERYONE, "%s: %s%s is missing", j->path, j->within, key);
}

static inline double json_real(const JsonAt *j, const char *key, double fallback, double min, double max) {
    const cJSON *item = json_given(j, key);
    if (!item && fallback == JSON_REQUIRED) json_missing(j, key);
    if (!item) return fallback;
    if (!cJSON_IsNumber(item)) FAIL(EVERYONE, "%s: %s%s is not a number", j->path, j->within, key);
    if (!(item->valuedouble >= min && item->valuedouble <= max))
        FAIL(EVERYONE, "%s: %s%s is %g, must be from %g to %g", j->path, j->within, key, item->valuedouble, min, max);
    return item->valuedouble;
}

static inline i64 json_int(const JsonAt *j, const char *key, i64 fallback, i64 min, i64 max) {
    double v = json_real(j, key, (double)fallback, (double)min, (double)max);
    if (v != floor(v)) FAIL(EVERYONE, "%s: %s%s is %g, must be a whole number", j->path, j->within, key, v);
    return (i64)v;
}

/* As json_int, of a key for which null means the fallback. */
static inline i64 json_int_or_null(const JsonAt *j, const char *key, i64 fallback, i64 min, i64 max) {
    return json_item(j, key) ? json_int(j, key, fallback, min, max) : fallback;
}

static inline int json_flag(const JsonAt *j, const char *key, int fallback) {
    const cJSON *item = json_given(j, key);
    if (item && !cJSON_IsBool(item)) FAIL(EVERYONE, "%s: %s%s is not true or false", j->path, j->within, key);
    return item ? cJSON_IsTrue(item) : fallback;
}

/* fallback NULL: required. */
static inline const char *json_text(const JsonAt *j, const char *key, const char *fallback) {
    const cJSON *item = json_given(j, key);
    if (!item && !fallback) json_missing(j, key);
    if (!item) return fallback;
    if (!cJSON_IsString(item) || !text_is_printable(item->valuestring))
        FAIL(EVERYONE, "%s: %s%s is not a text", j->path, j->within, key);
    return item->valuestring;
}

/* A switch that changes the model in a way we have not implemented: it must stand at
   `wanted`, which is also its default. */
static inline void json_demand(const JsonAt *j, const char *key, int wanted) {
    if (json_flag(j, key, wanted) != wanted)
        FAIL(EVERYONE, "%s: %s%s %s is not implemented; only %s is", j->path, j->within, key, wanted ? "false" : "true",
             wanted ? "true" : "false");
}

/* ---- config.json -> Config --------------------------------------------------------------------------------------- */

/* What a file leaves to transformers' defaults, for one note. */
typedef struct {
    char text[512];
} ConfigDefaults;

/* A size of the model: `key`, or the other name (NULL: none) that transformers takes it by, else its default there. */
static inline i64 config_size(const JsonAt *j, const char *key, const char *other, i64 fallback, i64 max,
                              ConfigDefaults *defaults) {
    const cJSON *item = json_given(j, key), *alias = other ? json_given(j, other) : NULL;
    i64 min = strcmp(key, "vocab_size") == 0 ? 2 : 1;
    if (item || alias) {
        i64 n = json_int(j, item ? key : other, fallback, min, max);
        if (item && alias && json_int(j, other, fallback, min, max) != n)
            FAIL(EVERYONE, "%s: %s is %lld, but %s, its other name, is %g; keep one", j->path, key, n, other,
                 alias->valuedouble);
        return n;
    }
    char *end = defaults->text + strlen(defaults->text);
    size_t left = sizeof defaults->text - (size_t)(end - defaults->text);
    snprintf(end, left, "%s%s %lld", end > defaults->text ? ", " : "", key, fallback);
    return fallback;
}

/* One of `names`, which are the same function; the default is the first. */
static inline void config_activation(const JsonAt *j, const char *key, const char *const *names, int n) {
    const char *is = json_text(j, key, names[0]);
    char known[256] = "";
    for (int i = 0; i < n; i++) {
        if (strcmp(is, names[i]) == 0) return;
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", names[i]);
    }
    FAIL(EVERYONE, "%s: %s %.40s is not implemented; %s %s", j->path, key, is, known, n > 1 ? "are" : "is");
}

/* Dropout is trained without; a file that asks for it is loaded all the same, and told so. */
static inline void config_note_dropout(const JsonAt *j, const char *const *keys, int n) {
    const char *asks = NULL;
    double most = 0;
    for (int i = 0; i < n; i++) {
        double p = json_real(j, keys[i], 0, 0, 1);
        if (p > most) most = p, asks = keys[i];
    }
    if (asks && fail_state()->rank == 0)
        fprintf(stderr, "train_gpt: note: %s: %s is %g; training runs without dropout\n", j->path, asks, most);
}

static inline void config_read_gpt2(Config *c, const JsonAt *j, ConfigDefaults *defaults) {
    static const char *const gelu[] = {"gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast",
                                       "gelu_accurate"};
    static const char *const dropout[] = {"attn_pdrop", "embd_pdrop", "resid_pdrop"};
    c->arch = ARCH_GPT2;
    c->layers = config_size(j, "n_layer", "num_hidden_layers", 12, 100000, defaults);
    c->dim = config_size(j, "n_embd", "hidden_size", 768, 1 << 20, defaults);
    c->heads = c->kv_heads = config_size(j, "n_head", "num_attention_heads", 12, 1 << 16, defaults);
    c->ffn = json_int_or_null(j, "n_inner", 4 * c->dim, 1, 1 << 22);
    c->vocab = config_size(j, "vocab_size", NULL, 50257, 1 << 30, defaults);
    c->max_pos = config_size(j, "n_positions", "max_position_embeddings", 1024, (i64)COUNT_MAX, defaults);
    c->norm_eps = json_real(j, "layer_norm_epsilon", 1e-5, 1e-30, 1);
    c->tied = json_flag(j, "tie_word_embeddings", 1);
    if (!c->tied) FAIL(EVERYONE, "%s: tie_word_embeddings false: gpt2's head is tied", j->path);
    config_activation(j, "activation_function", gelu, COUNT_OF(gelu));
    json_demand(j, "scale_attn_weights", 1);
    json_demand(j, "scale_attn_by_inverse_layer_idx", 0);
    json_demand(j, "reorder_and_upcast_attn", 0);
    json_demand(j, "add_cross_attention", 0);
    config_note_dropout(j, dropout, COUNT_OF(dropout));
}

/* Only full rotation is implemented, and transformers' Llama can do no other. */
static inline void config_full_rotation(const JsonAt *j) {
    if (json_item(j, "partial_rotary_factor") && json_real(j, "partial_rotary_factor", 1, 0, 1) != 1)
        FAIL(EVERYONE, "%s: %spartial_rotary_factor is not implemented", j->path, j->within);
}

typedef struct {
    double theta;
    RopeScaling scaling;
} Rope;

/* `key` is rope_parameters or rope_scaling, an object; what it leaves out comes from the keys around it. */
static inline Rope config_read_rope_object(const Config *c, const JsonAt *j, const char *key) {
    Rope rope = {json_real(j, "rope_theta", 10000, 1, 1e12), {0, 0, 0, 0}};
    char within[32];
    snprintf(within, sizeof within, "%s.", key);
    JsonAt r = {j->path, within, json_item(j, key)};
    if (!cJSON_IsObject(r.object)) FAIL(EVERYONE, "%s: %s is not an object", j->path, key);
    for (const cJSON *item = r.object->child; item; item = item->next)
        if (cJSON_IsObject(item))
            FAIL(EVERYONE, "%s: %s with an object of its own for some layers is not implemented", j->path, key);
    double theta = json_real(&r, "rope_theta", rope.theta, 1, 1e12);
    if (json_given(j, "rope_theta") && theta != rope.theta)
        FAIL(EVERYONE, "%s: rope_theta is %g, %srope_theta %g; keep one", j->path, rope.theta, within, theta);
    rope.theta = theta;
    config_full_rotation(&r);
    const char *type = json_text(&r, "rope_type", json_text(&r, "type", "default"));
    if (strcmp(type, "default") == 0) return rope;
    if (strcmp(type, "linear") == 0 && json_real(&r, "factor", JSON_REQUIRED, 0, 1e9) == 1) return rope;
    if (strcmp(type, "llama3") != 0)
        FAIL(EVERYONE, "%s: %s type %.40s is not implemented; default and llama3 are", j->path, key, type);
    RopeScaling *s = &rope.scaling;
    /* where both are, transformers takes the outer */
    const JsonAt *length = json_item(j, "original_max_position_embeddings") ? j : &r;
    s->factor = json_real(&r, "factor", JSON_REQUIRED, 1, 1e9);
    s->low_freq_factor = json_real(&r, "low_freq_factor", JSON_REQUIRED, 1e-9, 1e9);
    s->high_freq_factor = json_real(&r, "high_freq_factor", JSON_REQUIRED, 1e-9, 1e9);
    s->original_max_pos = json_int(length, "original_max_position_embeddings", c->max_pos, 1, (i64)COUNT_MAX);
    if (!(s->high_freq_factor > s->low_freq_factor))
        FAIL(EVERYONE, "%s: %shigh_freq_factor %g must be above low_freq_factor %g", j->path, within,
             s->high_freq_factor, s->low_freq_factor);
    return rope;
}

/* Rotary embedding: `rope_parameters` since transformers 5, before that `rope_theta` and `rope_scaling` apart; {} is as
   good as none. */
static inline void config_read_rope(Config *c, const JsonAt *j) {
    static const char *const keys[] = {"rope_parameters", "rope_scaling"};
    Rope rope = {json_real(j, "rope_theta", 10000, 1, 1e12), {0, 0, 0, 0}};
    int found = 0;
    config_full_rotation(j);
    for (int i = 0; i < COUNT_OF(keys); i++) {
        const cJSON *item = json_item(j, keys[i]);
        if (!item || (cJSON_IsObject(item) && !item->child)) continue;
        Rope this_one = config_read_rope_object(c, j, keys[i]);
        if (found++ && memcmp(&rope, &this_one, sizeof rope) != 0)
            FAIL(EVERYONE, "%s: rope_parameters and rope_scaling are both there and differ; keep one", j->path);
        rope = this_one;
    }
    c->rope_theta = rope.theta, c->rope_scaling = rope.scaling;
}

static inline void config_read_llama(Config *c, const JsonAt *j, ConfigDefaults *defaults) {
    static const char *const silu[] = {"silu", "swish"};
    static const char *const dropout[] = {"attention_dropout"};
    c->arch = ARCH_LLAMA;
    c->layers = config_size(j, "num_hidden_layers", NULL, 32, 100000, defaults);
    c->dim = config_size(j, "hidden_size", NULL, 4096, 1 << 20, defaults);
    c->heads = config_size(j, "num_attention_heads", NULL, 32, 1 << 16, defaults);
    c->kv_heads = json_int_or_null(j, "num_key_value_heads", c->heads, 1, 1 << 16);
    c->ffn = config_size(j, "intermediate_size", NULL, 11008, 1 << 22, defaults);
    c->vocab = config_size(j, "vocab_size", NULL, 32000, 1 << 30, defaults);
    c->max_pos = config_size(j, "max_position_embeddings", NULL, 2048, (i64)COUNT_MAX, defaults);
    c->norm_eps = json_real(j, "rms_norm_eps", 1e-6, 1e-30, 1);
    c->tied = json_flag(j, "tie_word_embeddings", 0);
    config_activation(j, "hidden_act", silu, COUNT_OF(silu));
    json_demand(j, "attention_bias", 0);
    json_demand(j, "mlp_bias", 0);
    i64 head_dim = json_int_or_null(j, "head_dim", 0, 1, 1 << 20);
    if (head_dim && head_dim * c->heads != c->dim)
        FAIL(EVERYONE,
             "%s: head_dim %lld is not hidden_size / num_attention_heads (%lld / %lld), which is not implemented",
             j->path, head_dim, c->dim, c->heads);
    config_read_rope(c, j);
    if (json_item(j, dropout[0])) config_note_dropout(j, dropout, COUNT_OF(dropout));
}

/* gpt2 or llama; from the class that the file was saved from where it has no model_type. */
static inline const char *config_model_type(const JsonAt *j) {
    static const char *const classes[][2] = {{"GPT2LMHeadModel", "gpt2"}, {"GPT2Model", "gpt2"},
                                             {"LlamaForCausalLM", "llama"}, {"LLaMAForCausalLM", "llama"},
                                             {"LlamaModel", "llama"}};
    if (json_given(j, "model_type")) return json_text(j, "model_type", NULL);
    const cJSON *list = json_item(j, "architectures"), *first = cJSON_IsArray(list) ? list->child : NULL;
    for (int i = 0; i < COUNT_OF(classes); i++)
        if (cJSON_IsString(first) && strcmp(first->valuestring, classes[i][0]) == 0) return classes[i][1];
    FAIL(EVERYONE, "%s: model_type is missing, and architectures does not tell it; add \"model_type\": \"gpt2\" or "
                   "\"llama\"", j->path);
}

/* DIR/config.json -> c, checked. */
static inline void checkpoint_read_config(Config *c, const char *dir) {
    char path[PATH_MAX];
    path_join(path, dir, "config.json");
    if (path_exists(dir) && !path_exists(path)) directory_refuse(dir, "config.json");
    cJSON *root = json_parse_file(path);
    JsonAt j = {path, "", root};
    ConfigDefaults defaults = {""};
    memset(c, 0, sizeof *c);
    const char *type = config_model_type(&j);
    static const char *const refused[] = {"quantization_config", "per_layer_config"};
    for (int i = 0; i < COUNT_OF(refused); i++)
        if (json_item(&j, refused[i])) FAIL(EVERYONE, "%s: %s is not implemented", path, refused[i]);
    if (strcmp(type, "gpt2") == 0) config_read_gpt2(c, &j, &defaults);
    else if (strcmp(type, "llama") == 0) config_read_llama(c, &j, &defaults);
    else FAIL(EVERYONE, "%s: model_type %.40s is not implemented; gpt2 and llama are", path, type);
    config_check(c, path);
    if (fail_state()->rank == 0) {
        if (defaults.text[0])
            fprintf(stderr, "train_gpt: note: %s leaves to transformers' defaults: %s\n", path, defaults.text);
        if (json_item(&j, "sliding_window"))
            fprintf(stderr,
                    "train_gpt: note: %s: sliding_window has no effect in %s: attention sees all before a token\n",
                    path, type);
        char adapter[PATH_MAX];
        path_join(adapter, dir, "adapter_config.json");
        if (path_exists(adapter))
            fprintf(stderr, "train_gpt: note: %s is not applied: only the model beside it is read\n", adapter);
    }
    cJSON_Delete(root);
}

/* What would work instead of `path`, which is no directory. A file that is known to be no model's ends the run here. */
static inline MendText checkpoint_no_directory(const char *path) {
    struct stat st;
    MendText t;
    const char *slash = strrchr(path, '/');
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
        FileMap m = file_map(path);
        file_refuse_kind(path, &m);
        file_unmap(&m);
        snprintf(t.text, sizeof t.text, "give the directory that the file lies in: --model '%.*s'",
                 slash ? (int)(slash - path) + (slash == path) : 1, slash ? path : ".");
    } else {
        snprintf(t.text, sizeof t.text, "a model of the Hugging Face Hub is fetched first: "
                                        "hf download OWNER/NAME --local-dir DIR, then --model DIR");
    }
    return t;
}

/* ---- weights in: from files, from a seed ------------------------------------------------------------------------- */

#ifndef CHECKPOINT_PIECE /* a test makes it small */
#define CHECKPOINT_PIECE ((i64)1 << 22) /* elements on the host at a time, by each thread that reads: at most 32 MB */
#endif

typedef struct {
    const Zero *z;
    const Safetensor *from; /* NULL: the initial value */
    HfPlace place;
    uint64_t key;
    /* on the host: a piece of this rank's part of the tensor, which begins at `begin` of the flat buffers */
    accum *part;
    i64 begin;
} WeightFill;

static inline void weight_fill_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    const WeightFill *f = (const WeightFill *)context;
    accum *out = f->part + at - f->begin;
    i64 index = f->place.base + row * f->place.row_step + col * f->place.col_step, step = f->place.col_step;
    if (f->from && step == 1 && f->from->type == (sizeof(accum) == 8 ? ST_F64 : ST_F32))
        memcpy(out, f->from->data + index * (i64)sizeof(accum), (size_t)n * sizeof(accum));
    else if (f->from)
        for (i64 i = 0; i < n; i++) out[i] = (accum)safetensor_value(f->from, index + i * step);
    else
        for (i64 i = 0; i < n; i++) out[i] = (accum)initial_value(t->spec, f->z->config, f->key, index + i * step);
}

/* This rank's part of the weights of tensor `t`: made on the host piece by piece, and copied. */
static inline void weight_fill(Zero *z, const Tensor *t, WeightFill *f) {
    i64 begin, n = tensor_range(z, t, &begin);
    f->part = (accum *)host_alloc((size_t)i64_min(n, CHECKPOINT_PIECE) * sizeof(accum));
    for (i64 done = 0; done < n; done += CHECKPOINT_PIECE) {
        i64 piece = i64_min(CHECKPOINT_PIECE, n - done);
        if (omp_get_thread_num() == 0) device_poll(z->dev); /* others may wait long, and ask */
        f->begin = begin + done;
        tensor_part(z, t, f->begin, piece, weight_fill_run, f);
#pragma omp critical(weights)
        copy_in(z->dev, z->master + f->begin, f->part, piece * (i64)sizeof(accum));
    }
    free(f->part);
}

/* The initial weights of `seed`: the same fp32 numbers on every mesh and in every build. Threads take tensors as they
   come: each number depends on its place alone. */
static inline void zero_initialise(Zero *z, i64 seed) {
#pragma omp parallel for num_threads(z->dev->host_threads) schedule(dynamic, 1)
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        char name[HF_NAME_MAX];
        tensor_hf_name(name, t->spec, t->layer);
        WeightFill f = {z, NULL, tensor_hf_place(t->spec, z->config), tensor_key(seed, name), NULL, 0};
        weight_fill(z, t, &f);
    }
    convert(z->dev, z->param, z->master, z->flat);
}

/* ---- names of tensors -------------------------------------------------------------------------------------------- */

/* Modules that hold a model and add their name to those of its tensors: torch.compile, DistributedDataParallel, FSDP,
   activation checkpointing. They stand anywhere in a name; the model's own in front: transformers' body, the field of
   a trainer or an adapter. */
static const char *const NAME_WRAPPERS[] = {"_orig_mod.", "module.", "_fsdp_wrapped_module.",
                                            "_checkpoint_wrapped_module."};
static const char *const NAME_BODIES[] = {"model.", "transformer.", "base_model."};

/* The length of the module at the beginning of `name` that is in the list; 0: none. */
static inline size_t name_module(const char *name, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (text_begins_with(name, list[i])) return strlen(list[i]);
    return 0;
}

/* What a tensor is called inside its model, whatever held that when it was saved: model.layers.0.mlp.up_proj.weight,
   layers.0.mlp.up_proj.weight, _orig_mod.module.model.layers.0.mlp.up_proj.weight are one. For safetensors_rename. */
static inline void tensor_key_name(char *out, const char *name) {
    int front = 1;
    while (*name) {
        size_t n = name_module(name, NAME_WRAPPERS, COUNT_OF(NAME_WRAPPERS));
        if (!n && front) n = name_module(name, NAME_BODIES, COUNT_OF(NAME_BODIES));
        if (n) {
            name += n;
            continue;
        }
        front = 0;
        while (*name && *name != '.') *out++ = *name++;
        if (*name) *out++ = *name++;
    }
    *out = 0;
}

/* The tensor of the name that transformers gives it, whatever the file calls it; NULL: none. */
static inline const Safetensor *checkpoint_find(const SafetensorSet *s, const char *name) {
    char key[HF_NAME_MAX];
    tensor_key_name(key, name);
    return safetensors_find(s, key);
}

/* DIR's weights, found by their names inside the model. Owner: caller; safetensors_close. */
static inline void checkpoint_open(SafetensorSet *s, const char *dir) {
    safetensors_open_dir(s, dir);
    safetensors_rename(s, tensor_key_name);
}

/* The tensor that `t` is (a part of), of the right type and shape. */
static inline const Safetensor *checkpoint_need(const SafetensorSet *s, const char *dir, const Tensor *t,
                                                const HfPlace *place) {
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    const Safetensor *found = checkpoint_find(s, name);
    if (!found && t->spec->role == T_LM_HEAD)
        FAIL(EVERYONE,
             "%s: the model's head is not tied, but tensor %s is missing; if it shares the embedding, config.json must "
             "say \"tie_word_embeddings\": true",
             dir, name);
    if (!found) FAIL(EVERYONE, "%s: tensor %s is missing", s->files == 1 ? s->file[0].path : dir, name);
    if (!safetensor_is_float(found))
        FAIL(EVERYONE, "%s: tensor %s has dtype %s; weights can be F32, F16, BF16 or F64", found->path, found->name,
             SAFETENSOR_TYPES[found->type].name);
    if (found->dims != place->dims || memcmp(found->shape, place->shape, (size_t)place->dims * sizeof(i64)) != 0) {
        char is[256], should[256];
        shape_text(is, sizeof is, found->shape, found->dims);
        shape_text(should, sizeof should, place->shape, place->dims);
        FAIL(EVERYONE, "%s: tensor %s has shape %s, the model's is %s", found->path, found->name, is, should);
    }
    return found;
}

/* Tensors that old files carry and that hold no parameter: causal masks, rotary frequencies and tables. */
static inline int checkpoint_is_buffer(const Config *c, const char *key) {
    static const char *const gpt2[] = {".attn.bias", ".attn.masked_bias"};
    static const char *const llama[] = {"rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "rotary_emb.cos_cached",
                                        "rotary_emb.sin_cached"};
    int n = c->arch == ARCH_GPT2 ? COUNT_OF(gpt2) : COUNT_OF(llama);
    for (int i = 0; i < n; i++)
        if (text_ends_with(key, c->arch == ARCH_GPT2 ? gpt2[i] : llama[i])) return 1;
    return 0;
}

/* A head beside a tied embedding must be the same numbers, or somebody's weights would be
   dropped. Rank 0 reads both. */
static inline void checkpoint_check_tied_head(const Zero *z, const SafetensorSet *s, const Safetensor *head, int rank) {
    if (rank != 0) return;
    const Safetensor *wte = checkpoint_find(s, z->config->arch == ARCH_GPT2 ? "wte.weight" : "embed_tokens.weight");
    if (wte->type != head->type || wte->bytes != head->bytes || memcmp(wte->data, head->data, (size_t)wte->bytes) != 0)
        FAIL(THIS_RANK, "%s: the model's head is tied to its embedding, but %s differs from %s", head->path, head->name,
             wte->name);
}

/* Fill this rank's share of the weights from DIR's files; what the file holds beyond the model is an error. */
static inline void checkpoint_load(Zero *z, const char *dir, int rank) {
    SafetensorSet s;
    checkpoint_open(&s, dir);
    unsigned char *used = (unsigned char *)host_alloc((size_t)s.tensors);
    const Safetensor *wrapped = NULL; /* one whose name is neither the model's nor that of its body alone */
    char as[HF_NAME_MAX] = "", name[HF_NAME_MAX];
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        WeightFill f = {z, NULL, tensor_hf_place(t->spec, z->config), 0, NULL, 0};
        f.from = checkpoint_need(&s, dir, t, &f.place);
        used[f.from - s.tensor] = 1;
        tensor_hf_name(name, t->spec, t->layer);
        if (wrapped || strcmp(f.from->name, name) == 0 || strcmp(f.from->name, f.from->key) == 0) continue;
        wrapped = f.from;
        memcpy(as, name, sizeof as);
    }
    for (int i = 0; i < s.tensors; i++) {
        const Safetensor *extra = &s.tensor[i];
        if (used[i] || checkpoint_is_buffer(z->config, extra->key)) continue;
        if (strstr(extra->key, ".lora_"))
            FAIL(EVERYONE, "%s: tensor %.200s is an adapter's (LoRA), not the model's; %s", extra->path, extra->name,
                 mend_text(MEND_MERGE, dir).text);
        if (strcmp(extra->key, "lm_head.weight") != 0 || !z->config->tied)
            FAIL(EVERYONE, "%s: tensor %.200s is no part of this model (%lld layers); it would be lost", extra->path,
                 extra->name, z->config->layers);
        checkpoint_check_tied_head(z, &s, extra, rank);
    }
    if (wrapped && rank == 0)
        fprintf(stderr, "train_gpt: note: %s: names are taken without what wraps the model: %s as %s\n", wrapped->path,
                wrapped->name, as);
    for (int i = 0; i < z->tensors; i++) { /* only now: a file that does not fit is refused before gigabytes are read */
        const Tensor *t = &z->tensor[i];
        WeightFill f = {z, NULL, tensor_hf_place(t->spec, z->config), 0, NULL, 0};
        f.from = checkpoint_need(&s, dir, t, &f.place);
        weight_fill(z, t, &f);
    }
    convert(z->dev, z->param, z->master, z->flat);
    free(used);
    safetensors_close(&s);
}

/* ---- weights out ------------------------------------------------------------------------------------------------- */

/* One tensor of the file: `spec` is the first of its parts, all in `block`. */
typedef struct {
    char name[HF_NAME_MAX];
    const TensorSpec *spec;
    int block;
    HfPlace place;
} HfTensor;

/* Every tensor of the file in the order of the tables, the same on every mesh. Owner of the list: caller; free. */
static inline HfTensor *checkpoint_list(const Zero *z, int *count) {
    int specs, n = 0;
    const TensorSpec *spec = tensor_specs(z->config->arch, &specs);
    HfTensor *list = (HfTensor *)host_alloc((size_t)z->tensors * sizeof(HfTensor));
    for (int b = 0; b < z->blocks; b++)
        for (int i = 0; i < specs; i++) {
            if (spec[i].block != z->block[b].kind || spec[i].hf_part != 0 || !tensor_exists(&spec[i], z->config))
                continue;
            HfTensor *t = &list[n++];
            tensor_hf_name(t->name, &spec[i], z->block[b].layer);
            t->spec = &spec[i], t->block = b, t->place = tensor_hf_place(&spec[i], z->config);
        }
    *count = n;
    return list;
}

typedef struct {
    const accum *part; /* on the host: elements of a flat buffer from `begin` on */
    i64 begin;
    HfPlace place;
    i64 first, end; /* elements of the HF tensor that the piece covers */
    float *f32;     /* one of the two is set */
    double *f64;
} WeightPiece;

/* Of a run, the stretch inside the piece: index + j step in [first, end). */
static inline void weight_piece_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    const WeightPiece *p = (const WeightPiece *)context;
    i64 step = p->place.col_step, index = p->place.base + row * p->place.row_step + col * step - p->first;
    i64 from = index < 0 ? ceil_div(-index, step) : 0;
    i64 to = i64_min(n, index < p->end - p->first ? ceil_div(p->end - p->first - index, step) : 0);
    (void)t;
    if (p->f32)
        for (i64 j = from; j < to; j++) p->f32[index + j * step] = (float)p->part[at - p->begin + j];
    else
        for (i64 j = from; j < to; j++) p->f64[index + j * step] = (double)p->part[at - p->begin + j];
}

/* Is `t` (a part of) `hf`? q, k and v of gpt2 share one name. */
static inline int weight_belongs(const Tensor *t, const HfTensor *hf) {
    return strcmp(t->spec->hf_name, hf->spec->hf_name) == 0;
}

/* What this rank owns of `hf`, out of the device's `flat`: from *begin on. Owner: caller; free. */
static inline accum *weight_parts(const Zero *z, const accum *flat, const HfTensor *hf, i64 *begin) {
    const Block *b = &z->block[hf->block];
    i64 lo = z->flat, hi = 0, at;
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        i64 n = tensor_range(z, &z->tensor[i], &at);
        if (n && weight_belongs(&z->tensor[i], hf)) lo = i64_min(lo, at), hi = i64_max(hi, at + n);
    }
    i64 bytes = i64_max(hi - lo, 0) * (i64)sizeof(accum);
    accum *part = (accum *)host_alloc((size_t)bytes);
    if (bytes) copy_out(z->dev, part, flat + lo, bytes);
    *begin = lo;
    return part;
}

/* Elements [first, end) of `hf` on rank 0, in buf; `part` and `begin` as weight_parts gave them. */
static inline void checkpoint_collect(const Zero *z, Wire world, const accum *part, i64 begin, const HfTensor *hf,
                                      i64 first, i64 end, SafetensorType type, void *buf) {
    WeightPiece p;
    memset(&p, 0, sizeof p);
    p.part = part, p.begin = begin, p.first = first, p.end = end;
    p.f32 = type == ST_F32 ? (float *)buf : NULL, p.f64 = type == ST_F32 ? NULL : (double *)buf;
    i64 bytes = (end - first) * SAFETENSOR_TYPES[type].bytes;
    memset(buf, 0, (size_t)bytes);
    const Block *b = &z->block[hf->block];
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        if (!weight_belongs(t, hf)) continue;
        p.place = tensor_hf_place(t->spec, z->config);
        tensor_owned(z, t, weight_piece_run, &p);
    }
    wire_collect(world, buf, bytes);
}

/* `flat` (z->master, z->grad, ...) as the safetensors file `path` with HF names and shapes, of type ST_F32 or ST_F64.
   Collective over `world`; rank 0 writes. */
static inline void checkpoint_write_tensors(const Zero *z, Wire world, const char *path, const accum *flat,
                                            SafetensorType type) {
    int n, writes = wire_rank(world) == 0;
    HfTensor *list = checkpoint_list(z, &n);
    SafetensorPlan *plan = (SafetensorPlan *)host_alloc((size_t)n * sizeof(SafetensorPlan));
    i64 largest = 0;
    for (int i = 0; i < n; i++) {
        SafetensorPlan *p = &plan[i];
        p->name = list[i].name, p->type = type, p->dims = list[i].place.dims;
        for (int d = 0; d < p->dims; d++) p->shape[d] = list[i].place.shape[d];
        largest = i64_max(largest, safetensor_plan_bytes(p));
    }
    i64 size = SAFETENSOR_TYPES[type].bytes;
    void *buf = host_alloc((size_t)i64_min(largest, CHECKPOINT_PIECE * size));
    SafetensorWriter w;
    if (writes) safetensors_create(&w, path, plan, n);
    for (int i = 0; i < n; i++) {
        i64 begin;
        accum *part = weight_parts(z, flat, &list[i], &begin);
        for (i64 first = 0, all = safetensor_plan_bytes(&plan[i]) / size; first < all; first += CHECKPOINT_PIECE) {
            i64 end = i64_min(all, first + CHECKPOINT_PIECE);
            checkpoint_collect(z, world, part, begin, &list[i], first, end, type, buf);
            if (writes) safetensors_append(&w, buf, (end - first) * size);
        }
        free(part);
    }
    if (writes) safetensors_finish(&w);
    wire_barrier(world); /* the file is there when any rank returns */
    free(buf);
    free(plan);
    free(list);
}

/* ---- Config -> config.json --------------------------------------------------------------------------------------- */

/* A number that stays one with a point in it: Python tells 10000 from 10000.0. */
static inline void json_add_real(cJSON *object, const char *key, double value) {
    char text[64];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text - 2, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    if (!strpbrk(text, ".e")) strcat(text, ".0");
    json_made(cJSON_AddRawToObject(object, key, text));
}

static inline void json_add_int(cJSON *object, const char *key, i64 value) {
    json_made(cJSON_AddNumberToObject(object, key, (double)value));
}
static inline void json_add_flag(cJSON *object, const char *key, int value) {
    json_made(cJSON_AddBoolToObject(object, key, value));
}
static inline void json_add_text(cJSON *object, const char *key, const char *value) {
    json_made(cJSON_AddStringToObject(object, key, value));
}

static inline void config_write_gpt2(cJSON *j, const Config *c) {
    json_add_int(j, "n_layer", c->layers);
    json_add_int(j, "n_embd", c->dim);
    json_add_int(j, "n_head", c->heads);
    json_add_int(j, "n_inner", c->ffn);
    json_add_int(j, "n_positions", c->max_pos);
    json_add_text(j, "activation_function", "gelu_new");
    json_add_real(j, "layer_norm_epsilon", c->norm_eps);
    json_add_real(j, "attn_pdrop", 0);
    json_add_real(j, "embd_pdrop", 0);
    json_add_real(j, "resid_pdrop", 0);
    json_add_flag(j, "scale_attn_weights", 1);
}

static inline void config_write_llama(cJSON *j, const Config *c) {
    json_add_int(j, "num_hidden_layers", c->layers);
    json_add_int(j, "hidden_size", c->dim);
    json_add_int(j, "num_attention_heads", c->heads);
    json_add_int(j, "num_key_value_heads", c->kv_heads);
    json_add_int(j, "head_dim", c->head_dim);
    json_add_int(j, "intermediate_size", c->ffn);
    json_add_int(j, "max_position_embeddings", c->max_pos);
    json_add_text(j, "hidden_act", "silu");
    json_add_real(j, "rms_norm_eps", c->norm_eps);
    json_add_flag(j, "attention_bias", 0);
    json_add_flag(j, "mlp_bias", 0);
    json_add_real(j, "rope_theta", c->rope_theta); /* the older spelling: every transformers reads it */
    if (c->rope_scaling.factor > 0) {
        cJSON *r = json_made(cJSON_AddObjectToObject(j, "rope_scaling"));
        json_add_text(r, "rope_type", "llama3");
        json_add_real(r, "factor", c->rope_scaling.factor);
        json_add_real(r, "low_freq_factor", c->rope_scaling.low_freq_factor);
        json_add_real(r, "high_freq_factor", c->rope_scaling.high_freq_factor);
        json_add_int(r, "original_max_position_embeddings", c->rope_scaling.original_max_pos);
    } else {
        json_made(cJSON_AddNullToObject(j, "rope_scaling"));
    }
}

/* config.json of this model. Owner: caller; cJSON_free. */
static inline char *checkpoint_config_text(const Config *c) {
    int gpt2 = c->arch == ARCH_GPT2;
    cJSON *j = json_made(cJSON_CreateObject());
    cJSON *architectures = json_made(cJSON_AddArrayToObject(j, "architectures"));
    cJSON_AddItemToArray(architectures, json_made(cJSON_CreateString(gpt2 ? "GPT2LMHeadModel" : "LlamaForCausalLM")));
    json_add_text(j, "model_type", gpt2 ? "gpt2" : "llama");
    json_add_text(j, "torch_dtype", "float32");
    json_add_int(j, "vocab_size", c->vocab);
    json_add_flag(j, "tie_word_embeddings", c->tied);
    if (gpt2) config_write_gpt2(j, c);
    else config_write_llama(j, c);
    static const char *const ids[] = {"bos_token_id", "eos_token_id"};
    /* belong to a tokenizer, which we do not know: null, lest the defaults be taken for ours */
    for (int i = 0; i < COUNT_OF(ids); i++)
        if (gpt2 && c->vocab == 50257) json_add_int(j, ids[i], 50256);
        else json_made(cJSON_AddNullToObject(j, ids[i]));
    char *text = cJSON_Print(j);
    if (!text) FAIL(THIS_RANK, "out of host memory while writing JSON");
    cJSON_Delete(j);
    return text;
}

static inline void checkpoint_write_config(const Config *c, const char *path) {
    char *text = checkpoint_config_text(c);
    NewFile f;
    new_file_open(&f, path);
    new_file_append(&f, text, (i64)strlen(text));
    new_file_append(&f, "\n", 1);
    new_file_close(&f);
    cJSON_free(text);
}

/* The weights as a Hugging Face directory; collective over `world`. An earlier model there is not overwritten.
   config.json comes last: a directory that has one is complete. */
static inline void checkpoint_write(const Zero *z, Wire world, const char *dir) {
    static const char *const names[] = {"config.json", "model.safetensors", "model.safetensors.index.json"};
    char path[PATH_MAX];
    if (wire_rank(world) == 0) {
        if (mkdir(dir, 0777) != 0 && errno != EEXIST)
            FAIL(THIS_RANK, "%s: cannot create this directory: %s", dir, strerror(errno));
        for (int i = 0; i < COUNT_OF(names); i++) {
            path_join(path, dir, names[i]);
            if (path_exists(path))
                FAIL(THIS_RANK, "%s already holds a model (%s); remove it or choose another directory", dir, names[i]);
        }
    }
    path_join(path, dir, "model.safetensors");
    checkpoint_write_tensors(z, world, path, z->master, ST_F32);
    path_join(path, dir, "config.json");
    if (wire_rank(world) == 0) checkpoint_write_config(z->config, path);
    wire_barrier(world);
}

#endif

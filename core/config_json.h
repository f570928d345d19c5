/* config_json.h - config.json <-> Config: what transformers makes of each key, or a refusal that names it.

   A family's row in FAMILIES (config.h) says which switches its config.json may set and what
   stands where a key is left out.
   Keys that change a model in a way that is not implemented are refused, those that change nothing are passed over.
   What was read is written again: the same features, in the spelling that every transformers reads. */
#ifndef ODYSSEUS_CONFIG_JSON_H
#define ODYSSEUS_CONFIG_JSON_H

#include "config.h"
#include "safetensors.h"

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
    if (asks && fail_state()->rank == 0) note("%s: %s is %g; training runs without dropout", j->path, asks, most);
}

static inline void config_read_gpt2(Config *c, const JsonAt *j, ConfigDefaults *defaults) {
    static const char *const gelu[] = {"gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast",
                                       "gelu_accurate"};
    static const char *const dropout[] = {"attn_pdrop", "embd_pdrop", "resid_pdrop"};
    c->layers = config_size(j, "n_layer", "num_hidden_layers", c->layers, 100000, defaults);
    c->dim = config_size(j, "n_embd", "hidden_size", c->dim, 1 << 20, defaults);
    c->heads = c->kv_heads = config_size(j, "n_head", "num_attention_heads", c->heads, 1 << 16, defaults);
    c->ffn = json_int_or_null(j, "n_inner", 4 * c->dim, 1, 1 << 22);
    c->vocab = config_size(j, "vocab_size", NULL, c->vocab, 1 << 30, defaults);
    c->max_pos = config_size(j, "n_positions", "max_position_embeddings", c->max_pos, (i64)COUNT_MAX, defaults);
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

/* ---- rotary embedding ---- */

/* Only full rotation is implemented, and transformers' Llama can do no other. */
static inline void config_full_rotation(const JsonAt *j) {
    if (json_item(j, "partial_rotary_factor") && json_real(j, "partial_rotary_factor", 1, 0, 1) != 1)
        FAIL(EVERYONE, "%s: %spartial_rotary_factor is not implemented", j->path, j->within);
}

/* As json_real, of a key for which null, or 0 where that is left out to transformers, means the fallback. */
static inline double json_real_or(const JsonAt *j, const char *key, double fallback, double min, double max) {
    double v = json_item(j, key) ? json_real(j, key, fallback, min, max) : fallback;
    return v == 0 ? fallback : v;
}

static inline RopeKind rope_read_kind(const JsonAt *j, const char *key, const char *name) {
    char known[128] = "";
    if (rope_kind_find(name) < ROPE_KINDS) return rope_kind_find(name);
    for (int i = 0; i < ROPE_KINDS; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", ROPE_NAMES[i]);
    FAIL(EVERYONE, "%s: %s type %.40s is not implemented; %s are", j->path, key, name, known);
}

/* A list of longrope's: a divisor for each pair. */
static inline void rope_read_list(const Config *c, const JsonAt *r, const char *key, double *out) {
    const cJSON *list = json_given(r, key);
    i64 n = 0, pairs = c->head_dim / 2;
    if (!list) json_missing(r, key);
    for (const cJSON *item = cJSON_IsArray(list) ? list->child : NULL; item; item = item->next, n++) {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 1e-9 && item->valuedouble <= 1e9))
            FAIL(EVERYONE, "%s: %s%s: number %lld is none from 1e-9 to 1e9", r->path, r->within, key, n + 1);
        if (n < ROPE_LISTED) out[n] = item->valuedouble;
    }
    if (n != pairs || n > ROPE_LISTED)
        FAIL(EVERYONE, "%s: %s%s has %lld numbers; heads of %lld take %lld (at most %d)", r->path, r->within, key, n,
             c->head_dim, pairs, ROPE_LISTED);
}

typedef struct {
    double theta;
    RopeScaling scaling;
} Rope;

/* What the kind of scaling asks for. `j` is the file, `r` the object in it. */
static inline void rope_read_scaling(const Config *c, const JsonAt *j, const JsonAt *r, RopeScaling *s) {
    /* where both are, transformers takes the outer */
    const JsonAt *length = json_item(j, "original_max_position_embeddings") ? j : r;
    int stretched = s->kind == ROPE_YARN || s->kind == ROPE_LONGROPE;
    if (s->kind == ROPE_LLAMA3 || stretched)
        s->original_max_pos = json_int(length, "original_max_position_embeddings", c->max_pos, 1, (i64)COUNT_MAX);
    double ratio = stretched ? (double)c->max_pos / (double)s->original_max_pos : JSON_REQUIRED;
    /* yarn has a factor, which may be null; longrope may leave it out */
    if (s->kind == ROPE_YARN && !json_find(r->path, r->object, "factor")) json_missing(r, "factor");
    if (stretched && ratio < 1 && !json_item(r, "factor"))
        FAIL(
            EVERYONE,
            "%s: %soriginal_max_position_embeddings %lld is above max_position_embeddings %lld, and no factor is given",
            r->path, length->within, s->original_max_pos, c->max_pos);
    s->factor = stretched ? json_real_or(r, "factor", ratio, 1, 1e9) : json_real(r, "factor", JSON_REQUIRED, 1, 1e9);
    if (stretched) s->attention_factor = json_real_or(r, "attention_factor", 0, 0, 1e9);
    if (s->kind == ROPE_YARN) {
        s->beta_fast = json_real_or(r, "beta_fast", 32, 0, 1e9), s->beta_slow = json_real_or(r, "beta_slow", 1, 0, 1e9);
        s->mscale = json_real_or(r, "mscale", 0, 0, 1e9),
        s->mscale_all_dim = json_real_or(r, "mscale_all_dim", 0, 0, 1e9);
        s->exact_ramp = !json_flag(r, "truncate", 1);
    }
    if (s->kind == ROPE_LONGROPE)
        rope_read_list(c, r, "short_factor", s->short_factor), rope_read_list(c, r, "long_factor", s->long_factor);
    if (s->kind != ROPE_LLAMA3) return;
    s->low_freq_factor = json_real(r, "low_freq_factor", JSON_REQUIRED, 1e-9, 1e9);
    s->high_freq_factor = json_real(r, "high_freq_factor", JSON_REQUIRED, 1e-9, 1e9);
    if (!(s->high_freq_factor > s->low_freq_factor))
        FAIL(EVERYONE, "%s: %shigh_freq_factor %g must be above low_freq_factor %g", r->path, r->within,
             s->high_freq_factor, s->low_freq_factor);
}

/* `key` is rope_parameters or rope_scaling, an object; what it leaves out comes from the keys around it. */
static inline void config_read_rope_object(const Config *c, const JsonAt *j, const char *key, Rope *rope) {
    char within[32];
    snprintf(within, sizeof within, "%s.", key);
    JsonAt r = {j->path, within, json_item(j, key)};
    if (!cJSON_IsObject(r.object)) FAIL(EVERYONE, "%s: %s is not an object", j->path, key);
    for (const cJSON *item = r.object->child; item; item = item->next)
        if (cJSON_IsObject(item))
            FAIL(EVERYONE, "%s: %s with an object of its own for some layers is not implemented", j->path, key);
    double theta = json_real(&r, "rope_theta", rope->theta, 1, 1e12);
    if (json_given(j, "rope_theta") && theta != rope->theta)
        FAIL(EVERYONE, "%s: rope_theta is %g, %srope_theta %g; keep one", j->path, rope->theta, within, theta);
    rope->theta = theta;
    config_full_rotation(&r);
    rope->scaling.kind = rope_read_kind(j, key, json_text(&r, "rope_type", json_text(&r, "type", "default")));
    if (rope->scaling.kind != ROPE_PLAIN) rope_read_scaling(c, j, &r, &rope->scaling);
}

/* Rotary embedding: `rope_parameters` since transformers 5, before that `rope_theta` and `rope_scaling` apart; {} is as
   good as none. c->rope_theta is the family's, and head_dim known. */
static inline void config_read_rope(Config *c, const JsonAt *j) {
    static const char *const keys[] = {"rope_parameters", "rope_scaling"};
    Rope none = {json_real(j, "rope_theta", c->rope_theta, 1, 1e12), ROPE_NO_SCALING}, rope = none;
    int found = 0;
    config_full_rotation(j);
    for (int i = 0; i < COUNT_OF(keys); i++) {
        const cJSON *item = json_item(j, keys[i]);
        if (!item || (cJSON_IsObject(item) && !item->child)) continue;
        Rope this_one = none;
        config_read_rope_object(c, j, keys[i], &this_one);
        if (found++ && !(rope.theta == this_one.theta && rope_scaling_equal(&rope.scaling, &this_one.scaling)))
            FAIL(EVERYONE, "%s: rope_parameters and rope_scaling are both there and differ; keep one", j->path);
        rope = this_one;
    }
    c->rope_theta = rope.theta, c->rope_scaling = rope.scaling;
}

/* ---- where layers differ ---- */

/* The list under `key`, an item a layer; NULL: absent. */
static inline const cJSON *config_layer_list(const Config *c, const JsonAt *j, const char *key) {
    const cJSON *list = json_item(j, key);
    if (!list) return NULL;
    if (!cJSON_IsArray(list)) FAIL(EVERYONE, "%s: %s is not a list", j->path, key);
    if (cJSON_GetArraySize(list) != c->layers)
        FAIL(EVERYONE, "%s: %s has %d items for %lld layers", j->path, key, cJSON_GetArraySize(list), c->layers);
    return list->child;
}

/* Add a layer to a set of those that differ. */
static inline void config_layer_apart(LayerSet *s, const JsonAt *j, const char *key, i64 layer) {
    if (layer >= LAYERS_APART)
        FAIL(EVERYONE, "%s: %s: layers that differ are implemented in models of up to %d layers", j->path, key,
             LAYERS_APART);
    layer_add(s, layer);
}

/* Layers without rotation: a list with a 0 for them, or every n-th. */
static inline void config_read_no_rope(Config *c, const JsonAt *j) {
    const cJSON *item = config_layer_list(c, j, "no_rope_layers");
    i64 every = json_int(j, "no_rope_layer_interval", 4, 1, 1 << 30);
    memset(&c->no_rope, 0, sizeof c->no_rope);
    for (i64 l = 0; !item && l < c->layers; l++)
        if ((l + 1) % every == 0) config_layer_apart(&c->no_rope, j, "no_rope_layer_interval", l);
    for (i64 l = 0; item; item = item->next, l++) {
        if (!cJSON_IsBool(item) && !(cJSON_IsNumber(item) && (item->valuedouble == 0 || item->valuedouble == 1)))
            FAIL(EVERYONE, "%s: no_rope_layers: item %lld is neither 0 nor 1", j->path, l + 1);
        if (!cJSON_IsTrue(item) && item->valuedouble == 0) config_layer_apart(&c->no_rope, j, "no_rope_layers", l);
    }
}

/* The sliding window and the layers it is in, by the family's rule unless layer_types lists them. */
static inline void config_read_window(Config *c, const JsonAt *j, WindowRule rule) {
    int asked = rule == WINDOW_ALL || (rule != WINDOW_NONE && json_flag(j, "use_sliding_window", 0));
    i64 upper = rule == WINDOW_UPPER ? json_int(j, "max_window_layers", 28, 0, 1 << 30) : 0, window = 0;
    int stated = json_find(j->path, j->object, "sliding_window") != NULL; /* transformers: 4096, but for SmolLM3 */
    if (asked)
        window = json_int_or_null(j, "sliding_window", stated || rule == WINDOW_NO_ROPE ? 0 : 4096, 1, (i64)COUNT_MAX);
    const cJSON *item = rule == WINDOW_UPPER || rule == WINDOW_NO_ROPE ? config_layer_list(c, j, "layer_types") : NULL;
    int listed = item != NULL;
    for (i64 l = 0; l < c->layers; l++, item = item ? item->next : NULL) {
        int in = rule == WINDOW_ALL || (rule == WINDOW_UPPER && l >= upper) ||
                 (rule == WINDOW_NO_ROPE && layer_in(&c->no_rope, l));
        if (listed) {
            in = cJSON_IsString(item) && strcmp(item->valuestring, "sliding_attention") == 0;
            if (!in && !(cJSON_IsString(item) && strcmp(item->valuestring, "full_attention") == 0))
                FAIL(EVERYONE,
                     "%s: layer_types: item %lld is neither full_attention nor sliding_attention; others are not "
                     "implemented",
                     j->path, l + 1);
        }
        if (window && in) config_layer_apart(&c->windowed, j, "sliding_window", l);
    }
    c->window = layers_count(&c->windowed, c->layers) ? window : 0;
}

/* ---- families ---- */

/* Biases that the family lets a switch decide; where it does not, transformers looks at no switch. */
static inline void config_read_biases(Config *c, const JsonAt *j, int may) {
    if (may & HAS_O_BIAS && json_flag(j, "attention_bias", 0)) c->has |= HAS_QKV_BIAS | HAS_O_BIAS;
    if (may & HAS_MLP_BIAS && json_flag(j, "mlp_bias", 0)) c->has |= HAS_MLP_BIAS;
}

/* Everything but GPT-2: Llama and its kin. `c` holds the family's defaults. */
static inline void config_read_llama(Config *c, const JsonAt *j, const Family *f, ConfigDefaults *defaults) {
    static const char *const silu[] = {"silu", "swish"};
    static const char *const dropout[] = {"attention_dropout"};
    c->layers = config_size(j, "num_hidden_layers", NULL, c->layers, 100000, defaults);
    c->dim = config_size(j, "hidden_size", NULL, c->dim, 1 << 20, defaults);
    c->heads = config_size(j, "num_attention_heads", NULL, c->heads, 1 << 16, defaults);
    /* null: as many as heads */
    int null_kv = json_find(j->path, j->object, "num_key_value_heads") != NULL || !c->kv_heads;
    c->kv_heads = json_int_or_null(j, "num_key_value_heads", null_kv ? c->heads : c->kv_heads, 1, 1 << 16);
    c->ffn = config_size(j, "intermediate_size", NULL, c->ffn, 1 << 22, defaults);
    c->vocab = config_size(j, "vocab_size", NULL, c->vocab, 1 << 30, defaults);
    c->max_pos = config_size(j, "max_position_embeddings", NULL, c->max_pos, (i64)COUNT_MAX, defaults);
    c->norm_eps = json_real(j, "rms_norm_eps", c->norm_eps, 1e-30, 1);
    c->tied = json_flag(j, "tie_word_embeddings", c->tied);
    config_activation(j, "hidden_act", silu, COUNT_OF(silu));
    config_read_biases(c, j, f->may);
    c->head_dim = json_int_or_null(j, "head_dim", c->head_dim, 1, 1 << 20);
    if (!c->head_dim && c->dim % c->heads == 0) c->head_dim = c->dim / c->heads;
    config_read_rope(c, j);
    if (f->window == WINDOW_NO_ROPE) config_read_no_rope(c, j);
    config_read_window(c, j, f->window);
    if (json_item(j, dropout[0])) config_note_dropout(j, dropout, COUNT_OF(dropout));
}

/* The family's row; from the class that the file was saved from where it has no model_type. */
static inline const Family *config_family(const JsonAt *j) {
    char known[256] = "";
    for (int i = 0; i < ARCHS; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", FAMILIES[i].name);
    if (json_given(j, "model_type")) {
        const char *type = json_text(j, "model_type", NULL);
        const Family *f = family_find(type);
        if (!f) FAIL(EVERYONE, "%s: model_type %.40s is not implemented; %s are", j->path, type, known);
        return f;
    }
    const cJSON *list = json_item(j, "architectures"), *first = cJSON_IsArray(list) ? list->child : NULL;
    for (int i = 0; i < ARCHS && cJSON_IsString(first); i++)
        if (strcmp(first->valuestring, FAMILIES[i].lm) == 0 || strcmp(first->valuestring, FAMILIES[i].body) == 0)
            return &FAMILIES[i];
    /* its first name */
    if (cJSON_IsString(first) && strcmp(first->valuestring, "LLaMAForCausalLM") == 0) return &FAMILIES[ARCH_LLAMA];
    FAIL(EVERYONE, "%s: model_type is missing, and architectures does not tell it; add \"model_type\": one of %s",
         j->path, known);
}

/* DIR/config.json -> c, checked. */
static inline void checkpoint_read_config(Config *c, const char *dir) {
    char path[PATH_MAX];
    path_join(path, dir, "config.json");
    if (path_exists(dir) && !path_exists(path)) directory_refuse(dir, "config.json");
    cJSON *root = json_parse_file(path);
    JsonAt j = {path, "", root};
    ConfigDefaults defaults = {""};
    const Family *f = config_family(&j);
    static const char *const refused[] = {"quantization_config", "per_layer_config"};
    for (int i = 0; i < COUNT_OF(refused); i++)
        if (json_item(&j, refused[i])) FAIL(EVERYONE, "%s: %s is not implemented", path, refused[i]);
    *c = f->config;
    if (c->arch == ARCH_GPT2) config_read_gpt2(c, &j, &defaults);
    else config_read_llama(c, &j, f, &defaults);
    config_check(c, path);
    if (fail_state()->rank == 0) {
        if (defaults.text[0]) note("%s leaves to transformers' defaults: %s", path, defaults.text);
        if (f->window == WINDOW_NONE && json_item(&j, "sliding_window"))
            note("%s: sliding_window has no effect in %s: attention sees all before a token", path, f->name);
        char adapter[PATH_MAX];
        path_join(adapter, dir, "adapter_config.json");
        if (path_exists(adapter)) note("%s is not applied: only the model beside it is read", adapter);
    }
    cJSON_Delete(root);
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

static inline void rope_write_list(cJSON *r, const char *key, const double *list, i64 n) {
    cJSON_AddItemToObject(r, key, json_made(cJSON_CreateDoubleArray(list, (int)n)));
}

/* rope_scaling, in the older spelling: every transformers reads it. What was 0, and so absent, stays so. */
static inline void config_write_rope(cJSON *j, const Config *c) {
    const RopeScaling *s = &c->rope_scaling;
    json_add_real(j, "rope_theta", c->rope_theta);
    if (s->kind == ROPE_PLAIN) {
        json_made(cJSON_AddNullToObject(j, "rope_scaling"));
        return;
    }
    cJSON *r = json_made(cJSON_AddObjectToObject(j, "rope_scaling"));
    const char *names[] = {"factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale",
                           "mscale_all_dim", "attention_factor"};
    const double values[] = {s->factor, s->low_freq_factor, s->high_freq_factor, s->beta_fast, s->beta_slow, s->mscale,
                             s->mscale_all_dim, s->attention_factor};
    json_add_text(r, "rope_type", ROPE_NAMES[s->kind]);
    for (int i = 0; i < COUNT_OF(names); i++)
        if (values[i] > 0) json_add_real(r, names[i], values[i]);
    if (s->original_max_pos) json_add_int(r, "original_max_position_embeddings", s->original_max_pos);
    if (s->exact_ramp) json_add_flag(r, "truncate", 0);
    if (s->kind != ROPE_LONGROPE) return;
    rope_write_list(r, "short_factor", s->short_factor, c->head_dim / 2);
    rope_write_list(r, "long_factor", s->long_factor, c->head_dim / 2);
}

/* Where layers differ; the family's defaults may not be this model's, so all is said. */
static inline void config_write_layers(cJSON *j, const Config *c, WindowRule rule) {
    if (rule == WINDOW_NO_ROPE) {
        cJSON *list = json_made(cJSON_AddArrayToObject(j, "no_rope_layers"));
        for (i64 l = 0; l < c->layers; l++)
            cJSON_AddItemToArray(list, json_made(cJSON_CreateNumber(!layer_in(&c->no_rope, l))));
    }
    if (rule == WINDOW_NONE) return;
    if (c->window) json_add_int(j, "sliding_window", c->window);
    else json_made(cJSON_AddNullToObject(j, "sliding_window"));
    if (rule == WINDOW_ALL) return;
    json_add_flag(j, "use_sliding_window", c->window > 0);
    cJSON *list = json_made(cJSON_AddArrayToObject(j, "layer_types"));
    for (i64 l = 0; l < c->layers; l++)
        cJSON_AddItemToArray(list, json_made(cJSON_CreateString(layer_in(&c->windowed, l) ? "sliding_attention"
                                                                                          : "full_attention")));
}

static inline void config_write_llama(cJSON *j, const Config *c, const Family *f) {
    json_add_int(j, "num_hidden_layers", c->layers);
    json_add_int(j, "hidden_size", c->dim);
    json_add_int(j, "num_attention_heads", c->heads);
    json_add_int(j, "num_key_value_heads", c->kv_heads);
    json_add_int(j, "head_dim", c->head_dim);
    json_add_int(j, "intermediate_size", c->ffn);
    json_add_int(j, "max_position_embeddings", c->max_pos);
    json_add_text(j, "hidden_act", "silu");
    json_add_real(j, "rms_norm_eps", c->norm_eps);
    if (f->may & HAS_O_BIAS) json_add_flag(j, "attention_bias", (c->has & HAS_O_BIAS) != 0);
    if (f->may & HAS_MLP_BIAS) json_add_flag(j, "mlp_bias", (c->has & HAS_MLP_BIAS) != 0);
    config_write_rope(j, c);
    config_write_layers(j, c, f->window);
}

/* config.json of this model. Owner: caller; cJSON_free. */
static inline char *checkpoint_config_text(const Config *c) {
    const Family *f = &FAMILIES[c->arch];
    int gpt2 = c->arch == ARCH_GPT2;
    cJSON *j = json_made(cJSON_CreateObject());
    cJSON *architectures = json_made(cJSON_AddArrayToObject(j, "architectures"));
    cJSON_AddItemToArray(architectures, json_made(cJSON_CreateString(f->lm)));
    json_add_text(j, "model_type", f->name);
    json_add_text(j, "torch_dtype", "float32");
    json_add_int(j, "vocab_size", c->vocab);
    json_add_flag(j, "tie_word_embeddings", c->tied);
    if (gpt2) config_write_gpt2(j, c);
    else config_write_llama(j, c, f);
    static const char *const ids[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
    /* belong to a tokenizer, which we do not know: null, lest the defaults be taken for ours */
    for (int i = 0; i < COUNT_OF(ids); i++)
        if (gpt2 && c->vocab == 50257 && i < 2) json_add_int(j, ids[i], 50256);
        else json_made(cJSON_AddNullToObject(j, ids[i]));
    char *text = cJSON_Print(j);
    if (!text) FAIL(THIS_RANK, "out of host memory while writing JSON");
    cJSON_Delete(j);
    return text;
}

#endif

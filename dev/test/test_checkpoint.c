/* test_checkpoint.c - files in and out: number formats, config.json, weights on any mesh, and files that want to hurt.

   alone       children, forked before MPI starts: every bad file must end in exit code 1 and one line that names it
   alone       ranks of imagined meshes take turns; the union of what they own must be the model, each element once
   mpirun too  real meshes write one file, which must be byte for byte what one rank writes

   test_checkpoint [FIXTURES]        default dev/test/fixtures; runs on 1, 2, 4, ... ranks
   gcc -x c -std=c11 -O2 -D_GNU_SOURCE -Wall -Wextra -Wc++-compat -Werror -fopenmp ... -lcjson -lm                    */
#define CHECKPOINT_PIECE 1000 /* so that small tensors come in several pieces, cut inside a row */
#include "../../core/checkpoint.h"
#include "check.h"
#include <ftw.h>
#include <signal.h>
#include <sys/resource.h>

static char temp[256];
static const char *fixtures = "dev/test/fixtures";

/* a path that lives to the end; the test makes a few hundred */
static const char *in(const char *dir, const char *name) {
    static char *paths[1024];
    static int used;
    char path[PATH_MAX];
    path_join(path, dir, name);
    for (int i = 0; i < used; i++)
        if (strcmp(paths[i], path) == 0) return paths[i];
    if (used == 1024) FAIL(THIS_RANK, "the test makes too many paths");
    size_t n = strlen(path) + 1;
    paths[used] = (char *)host_alloc(n);
    memcpy(paths[used], path, n);
    return paths[used++];
}

/* The test writes below its own temporary directory and nowhere else, whatever mistake computed the path. */
static const char *ours(const char *path) {
    size_t n = strlen(temp);
    if (!n || strncmp(path, temp, n) != 0 || path[n] != '/' || strstr(path, ".."))
        FAIL(THIS_RANK, "%s: the test would write outside of %s", path, temp);
    return path;
}

/* The same where another case may have left a file: the writer replaces none. */
static const char *anew(const char *path) {
    unlink(ours(path));
    return path;
}

static void write_bytes(const char *path, const void *bytes, i64 n) {
    FILE *f = fopen(ours(path), "wb");
    if (!f || (n && fwrite(bytes, 1, (size_t)n, f) != (size_t)n) || fclose(f))
        FAIL(THIS_RANK, "%s: cannot write the test's file", path);
}

static void write_text(const char *path, const char *text) { write_bytes(path, text, (i64)strlen(text)); }

static void copy_file(const char *from, const char *to) {
    FileMap m = file_map(from);
    write_bytes(to, m.bytes, m.size);
    file_unmap(&m);
}

static int same_files(const char *a, const char *b) {
    FileMap x = file_map(a), y = file_map(b);
    int same = x.size == y.size && memcmp(x.bytes, y.bytes, (size_t)x.size) == 0;
    file_unmap(&x);
    file_unmap(&y);
    return same;
}

static const char *fresh_dir(const char *name) {
    const char *dir = in(temp, name);
    if (mkdir(ours(dir), 0777) != 0 && errno != EEXIST) FAIL(THIS_RANK, "%s: cannot create the test's directory", dir);
    return dir;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where) {
    (void)st, (void)type, (void)where;
    return remove(path);
}

/* ---- expecting failure ------------------------------------------------------------------------------------------- */

typedef void (*Attempt)(const char *path);

/* `attempt` must stop with one line that names `file` and says `why`. */
static void expect_error(const char *what, Attempt attempt, const char *path, const char *file, const char *why) {
    char text[4096];
    int status = run_child(attempt, path, text, sizeof text);
    int good = is_one_error(status, text) && strstr(text, file) && strstr(text, why);
    text[strcspn(text, "\n")] = 0;
    check(good, "%s: refused, naming %s and \"%s\"; status %d, said: %s", what, file, why, status, text);
}

/* ---- number formats ---------------------------------------------------------------------------------------------- */

/* The definition, by the binary point: sign, exponent bits e of `width` with this bias, mantissa of m bits. */
static double number_by_definition(int bits, int exponent_bits, int mantissa_bits) {
    int mantissa = bits & ((1 << mantissa_bits) - 1), exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double sign = bits >> (exponent_bits + mantissa_bits) ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

static int same_number(double a, double b) { return (isnan(a) && isnan(b)) || (a == b && signbit(a) == signbit(b)); }

typedef struct {
    uint16_t bits;
    double value;
} Sample;

static void test_formats(void) {
    static const Sample fp16[] = {{0x0000, 0.0}, {0x8000, -0.0}, {0x3c00, 1.0}, {0xc000, -2.0}, {0x3555, 0x1.554p-2},
                                  {0x7bff, 65504.0}, {0xfbff, -65504.0}, {0x0400, 0x1p-14}, {0x03ff, 0x1.ff8p-15},
                                  {0x0001, 0x1p-24}, {0x8001, -0x1p-24}, {0x7c00, (double)INFINITY},
                                  {0xfc00, -(double)INFINITY}, {0x7e00, (double)NAN}};
    static const Sample bf16[] = {{0x0000, 0.0}, {0x8000, -0.0}, {0x3f80, 1.0}, {0xc000, -2.0}, {0x3eab, 0x1.56p-2},
                                  {0x7f7f, 0x1.fep127}, {0x0080, 0x1p-126}, {0x0001, 0x1p-133}, {0x8001, -0x1p-133},
                                  {0x7f80, (double)INFINITY}, {0xff80, -(double)INFINITY}, {0x7fc0, (double)NAN}};
    int bad = 0;
    for (int i = 0; i < COUNT_OF(fp16); i++) bad += !same_number(float_from_fp16(fp16[i].bits), fp16[i].value);
    check(bad == 0, "fp16 table: %d of %d differ", bad, COUNT_OF(fp16));
    bad = 0;
    for (int i = 0; i < COUNT_OF(bf16); i++) bad += !same_number(float_from_bf16(bf16[i].bits), bf16[i].value);
    check(bad == 0, "bf16 table: %d of %d differ", bad, COUNT_OF(bf16));
    int bad16 = 0, badb = 0;
    for (int b = 0; b < 65536; b++) {
        bad16 += !same_number(float_from_fp16((uint16_t)b), number_by_definition(b, 5, 10));
        badb += !same_number(float_from_bf16((uint16_t)b), number_by_definition(b, 8, 7));
    }
    check(bad16 == 0 && badb == 0, "every 16-bit pattern against the definition: fp16 %d, bf16 %d differ", bad16, badb);
    unsigned char raw[1 + 4 * 8];
    const float f32[2] = {0x1p-149f, -3.5f};
    const double f64[2] = {0x1p-1074, 0x1.fffffffffffffp1023};
    const int32_t i32[2] = {-2147483647 - 1, 7};
    Safetensor t;
    memset(&t, 0, sizeof t);
    t.data = raw + 1; /* odd on purpose */
    memcpy(raw + 1, f32, sizeof f32), t.type = ST_F32;
    int good = safetensor_value(&t, 0) == 0x1p-149 && safetensor_value(&t, 1) == -3.5;
    memcpy(raw + 1, f64, sizeof f64), t.type = ST_F64;
    good = good && safetensor_value(&t, 0) == f64[0] && safetensor_value(&t, 1) == f64[1];
    memcpy(raw + 1, i32, sizeof i32), t.type = ST_I32;
    good = good && safetensor_value(&t, 0) == -2147483648.0 && safetensor_value(&t, 1) == 7;
    check(good, "F32, F64, I32 at an odd address");
}

/* ---- config.json ------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *dir, *file;
    Config want;
} ConfigCase;

#define LLAMA3_ROPE \
    CONFIG_ROPE(ARCH_LLAMA, 1, 32, 4, 1, 8, 16, 29, 128, 0, 1e-5, 200, ROPE_LIKE_LLAMA3(8, 1, 4, 32))
#define QWEN3_YARN \
    CONFIG_ROPE(ARCH_QWEN3, 2, 16, 4, 2, 8, 12, 23, 160, 0, 1e-6, 200, \
                {ROPE_YARN, 4, 40, 0, 0, 8, 0.5, 0, 0, 0, 0, {0}, {0}})
#define MISTRAL_DYNAMIC \
    CONFIG_ROPE(ARCH_MISTRAL, 2, 16, 4, 2, 6, 12, 23, 8, 0, 1e-6, 100, \
                {ROPE_DYNAMIC, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}})

static const ConfigCase CONFIGS[] = {
    {"gpt2-tied", "config.json", CONFIG(ARCH_GPT2, 2, 32, 4, 4, 8, 128, 61, 32, 1, 1e-5, 0)},
    {"llama-mha", "config.json", CONFIG(ARCH_LLAMA, 2, 32, 4, 4, 8, 48, 67, 64, 0, 1e-5, 10000)},
    {"llama-gqa", "config.json", CONFIG(ARCH_LLAMA, 2, 32, 4, 2, 8, 16, 31, 64, 1, 1e-6, 500000)},
    {"llama-gqa", "config_old.json", CONFIG(ARCH_LLAMA, 2, 32, 4, 2, 8, 16, 31, 64, 1, 1e-6, 500000)},
    {"llama-gqa-bf16", "config.json", CONFIG(ARCH_LLAMA, 1, 32, 4, 2, 8, 16, 23, 64, 1, 1e-6, 500000)},
    {"llama-gqa-fp16", "config.json", CONFIG(ARCH_LLAMA, 1, 32, 4, 2, 8, 16, 23, 64, 1, 1e-6, 500000)},
    {"llama3-rope", "config.json", LLAMA3_ROPE},
    {"llama3-rope", "config_old.json", LLAMA3_ROPE},
    {"qwen2", "config.json", CONFIG(ARCH_QWEN2, 2, 16, 4, 2, 4, 12, 23, 64, 1, 1e-6, 1000)},
    {"qwen2", "config_old.json", CONFIG(ARCH_QWEN2, 2, 16, 4, 2, 4, 12, 23, 64, 1, 1e-6, 1000)},
    {"qwen3-yarn", "config.json", QWEN3_YARN},
    {"qwen3-yarn", "config_old.json", QWEN3_YARN},
    {"mistral-dynamic", "config.json", MISTRAL_DYNAMIC},
    {"mistral-dynamic", "config_old.json", MISTRAL_DYNAMIC},
};

/* All that a config.json can say; of `b`, what follows from the rest may be 0. */
static int same_config(const Config *a, const Config *b) {
    Config whole = *b;
    config_check(&whole, "the test's");
    char *x = checkpoint_config_text(a), *y = checkpoint_config_text(&whole);
    int same = strcmp(x, y) == 0 && a->has == whole.has;
    cJSON_free(x);
    cJSON_free(y);
    return same;
}

static const char GPT2_JSON[] = "{\"model_type\": \"gpt2\", \"n_layer\": 1, \"n_embd\": 8, \"n_head\": 2, "
                                "\"n_positions\": 16, \"vocab_size\": 10@}";
static const char LLAMA_JSON[] =
    "{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"hidden_size\": 8, \"num_attention_heads\": 2, "
    "\"intermediate_size\": 12, \"max_position_embeddings\": 16, \"vocab_size\": 10@}";

/* DIR/config.json = the template with `extra` in the place of '@'. A key given there comes second, and cJSON finds the
   first: a case that changes a key of the template removes it by name. */
static void write_config(const char *dir, const char *base, const char *without, const char *extra) {
    char text[2048];
    const char *at = strchr(base, '@');
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - base), base, extra, at + 1);
    if (without) {
        char *key = strstr(text, without);
        if (!key) FAIL(THIS_RANK, "no %s in the test's template", without);
        key[1] = '_'; /* another key now */
    }
    write_text(in(dir, "config.json"), text);
}

static void test_configs(void) {
    const char *dir = fresh_dir("config");
    Config c;
    for (int i = 0; i < COUNT_OF(CONFIGS); i++) {
        const ConfigCase *k = &CONFIGS[i];
        copy_file(in(in(fixtures, k->dir), k->file), in(dir, "config.json"));
        checkpoint_read_config(&c, dir);
        check(same_config(&c, &k->want), "%s/%s: every field", k->dir, k->file);
    }
}

static void try_config(const char *dir) {
    Config c;
    checkpoint_read_config(&c, dir);
}

/* Spellings that transformers takes, and what it makes of them: fixtures/compare_configs.py asks transformers itself.
   Every file is the text between the braces; `note` is what is said of it, NULL for nothing. */
typedef struct {
    const char *text;
    Config want;
    const char *note;
} GoodConfig;

#define GPT2_SMALL CONFIG(ARCH_GPT2, 1, 8, 2, 2, 4, 32, 10, 16, 1, 1e-5, 0)
#define GPT2_SIZES "\"n_layer\": 1, \"n_embd\": 8, \"n_head\": 2, \"n_positions\": 16, \"vocab_size\": 10"
#define GPT2_TEXT "\"model_type\": \"gpt2\", " GPT2_SIZES
#define GPT2_DEFAULT CONFIG(ARCH_GPT2, 12, 768, 12, 12, 64, 3072, 50257, 1024, 1, 1e-5, 0)
#define LLAMA_SCALED(theta, ...) CONFIG_ROPE(ARCH_LLAMA, 1, 8, 2, 2, 4, 12, 10, 16, 0, 1e-6, theta, __VA_ARGS__)
#define LLAMA_SMALL(theta, factor, low, high, original) \
    LLAMA_SCALED(theta, \
                 {(factor) > 0 ? ROPE_LLAMA3 : ROPE_PLAIN, factor, original, low, high, 0, 0, 0, 0, 0, 0, {0}, {0}})
#define LLAMA_HAS(...) \
    {ARCH_LLAMA, 1, 8, 2, 2, 4, 12, 10, 16, 0, 1e-6, 10000, ROPE_NO_SCALING, HAS_GATE | __VA_ARGS__, 0, NO_LAYERS, \
     NO_LAYERS}
#define LLAMA_SIZES \
    "\"num_hidden_layers\": 1, \"hidden_size\": 8, \"num_attention_heads\": 2, \"intermediate_size\": 12, " \
    "\"vocab_size\": 10"
#define LLAMA_TEXT "\"model_type\": \"llama\", \"max_position_embeddings\": 16, " LLAMA_SIZES
#define LLAMA_DEFAULT CONFIG(ARCH_LLAMA, 32, 4096, 32, 32, 128, 11008, 32000, 2048, 0, 1e-6, 10000)
#define LLAMA3 "\"factor\": 2.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 3"

static const GoodConfig GOOD_CONFIGS[] = {
    /* what it is */
    {"\"model_type\": \"gpt2\"", GPT2_DEFAULT,
     "defaults: n_layer 12, n_embd 768, n_head 12, vocab_size 50257, n_positions 1024"},
    {"\"architectures\": [\"GPT2LMHeadModel\"], " GPT2_SIZES, GPT2_SMALL, NULL},
    {"\"architectures\": [\"GPT2Model\"], " GPT2_SIZES, GPT2_SMALL, NULL},
    {"\"architectures\": null, " GPT2_TEXT, GPT2_SMALL, NULL},
    {"\"name\": \"\\\\u0000\", " GPT2_TEXT, GPT2_SMALL, NULL}, /* a backslash and letters, no zero */
    {"\"architectures\": [\"LlamaForCausalLM\"], " GPT2_TEXT, GPT2_SMALL, NULL}, /* model_type decides */
    {"\"model_type\": \"llama\"", LLAMA_DEFAULT,
     "defaults: num_hidden_layers 32, hidden_size 4096, num_attention_heads 32, intermediate_size 11008, vocab_size "
     "32000, max_position_embeddings 2048"},
    {"\"architectures\": [\"LlamaForCausalLM\"]", LLAMA_DEFAULT, "num_hidden_layers 32"},
    {"\"architectures\": [\"LLaMAForCausalLM\"]", LLAMA_DEFAULT, "num_hidden_layers 32"},
    {"\"architectures\": [\"LlamaModel\"]", LLAMA_DEFAULT, "num_hidden_layers 32"},
    /* published: a distilled GPT-2, an early Llama of 60M, Llama 2 13B */
    {"\"_num_labels\": 1, \"activation_function\": \"gelu_new\", \"architectures\": [\"GPT2LMHeadModel\"], "
     "\"attn_pdrop\": 0.1, \"embd_pdrop\": 0.1, \"id2label\": {\"0\": \"LABEL_0\"}, \"initializer_range\": 0.02, "
     "\"layer_norm_epsilon\": 1e-05, \"n_ctx\": 1024, \"n_embd\": 768, \"n_head\": 12, \"n_layer\": 6, "
     "\"n_positions\": 1024, \"resid_pdrop\": 0.1, \"summary_first_dropout\": 0.1, \"summary_type\": \"cls_index\", "
     "\"vocab_size\": 50257",
     CONFIG(ARCH_GPT2, 6, 768, 12, 12, 64, 3072, 50257, 1024, 1, 1e-5, 0),
     "attn_pdrop is 0.1; training runs without dropout"},
    {"\"architectures\": [\"LlamaForCausalLM\"], \"bos_token_id\": 0, \"hidden_act\": \"silu\", \"hidden_size\": 512, "
     "\"intermediate_size\": 1376, \"initializer_range\": 0.02, \"max_sequence_length\": 1024, \"model_type\": "
     "\"llama\", \"num_attention_heads\": 8, \"num_hidden_layers\": 8, \"pad_token_id\": -1, \"rms_norm_eps\": 1e-06, "
     "\"use_cache\": true, \"vocab_size\": 32000",
     CONFIG(ARCH_LLAMA, 8, 512, 8, 8, 64, 1376, 32000, 2048, 0, 1e-6, 10000),
     "defaults: max_position_embeddings 2048\n"},
    {"\"architectures\": [\"LlamaForCausalLM\"], \"bos_token_id\": 1, \"eos_token_id\": 2, \"hidden_act\": \"silu\", "
     "\"hidden_size\": 5120, \"initializer_range\": 0.02, \"intermediate_size\": 13824, \"max_position_embeddings\": "
     "4096, \"model_type\": \"llama\", \"num_attention_heads\": 40, \"num_hidden_layers\": 40, "
     "\"num_key_value_heads\": 40, \"pretraining_tp\": 2, \"rms_norm_eps\": 1e-05, \"rope_scaling\": null, "
     "\"tie_word_embeddings\": false, \"torch_dtype\": \"float16\", \"use_cache\": true, \"vocab_size\": 32000",
     CONFIG(ARCH_LLAMA, 40, 5120, 40, 40, 128, 13824, 32000, 4096, 0, 1e-5, 10000), NULL},
    /* gpt2: other names, defaults, functions of the same values */
    {"\"model_type\": \"gpt2\", \"num_hidden_layers\": 1, \"hidden_size\": 8, \"num_attention_heads\": 2, "
     "\"max_position_embeddings\": 16, \"vocab_size\": 10",
     GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"num_hidden_layers\": 1, \"hidden_size\": 8, \"num_attention_heads\": 2, "
               "\"max_position_embeddings\": 16",
     GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"n_inner\": null, \"n_ctx\": 8, \"intermediate_size\": 20, \"num_key_value_heads\": 1", GPT2_SMALL,
     NULL},
    {GPT2_TEXT ", \"n_inner\": 20", CONFIG(ARCH_GPT2, 1, 8, 2, 2, 4, 20, 10, 16, 1, 1e-5, 0), NULL},
    {GPT2_TEXT ", \"layer_norm_epsilon\": 0.1", CONFIG(ARCH_GPT2, 1, 8, 2, 2, 4, 32, 10, 16, 1, 0.1, 0), NULL},
    {GPT2_TEXT ", \"activation_function\": \"gelu_new\", \"tie_word_embeddings\": true, \"scale_attn_weights\": true",
     GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"activation_function\": \"gelu_pytorch_tanh\", \"add_cross_attention\": false", GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"activation_function\": \"gelu_python_tanh\", \"use_cache\": false", GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"activation_function\": \"gelu_fast\", \"dtype\": \"bfloat16\"", GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"activation_function\": \"gelu_accurate\", \"torch_dtype\": \"float16\"", GPT2_SMALL, NULL},
    {GPT2_TEXT ", \"attn_pdrop\": 0, \"embd_pdrop\": 0.2, \"resid_pdrop\": 0.1", GPT2_SMALL, "embd_pdrop is 0.2"},
    {GPT2_TEXT ", \"quantization_config\": null, \"per_layer_config\": null, \"sliding_window\": null", GPT2_SMALL,
     NULL},
    /* llama: the same */
    {LLAMA_TEXT
     ", \"num_key_value_heads\": null, \"head_dim\": null, \"attention_dropout\": null, \"pretraining_tp\": null, "
     "\"rope_scaling\": null, \"rope_parameters\": null, \"partial_rotary_factor\": null, "
     "\"original_max_position_embeddings\": null",
     LLAMA_SMALL(10000, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"head_dim\": 4, \"pretraining_tp\": 0, \"n_layer\": 3, \"attention_dropout\": 0.0",
     LLAMA_SMALL(10000, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"pretraining_tp\": 8, \"hidden_act\": \"swish\", \"unheard_of\": [1]",
     LLAMA_SMALL(10000, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"attention_dropout\": 0.1", LLAMA_SMALL(10000, 0, 0, 0, 0), "attention_dropout is 0.1"},
    {LLAMA_TEXT ", \"sliding_window\": 4", LLAMA_SMALL(10000, 0, 0, 0, 0), "sliding_window has no effect"},
    {LLAMA_TEXT ", \"tie_word_embeddings\": true, \"num_key_value_heads\": 1, \"rms_norm_eps\": 1e-5, "
                "\"attention_bias\": false, \"mlp_bias\": false",
     CONFIG(ARCH_LLAMA, 1, 8, 2, 1, 4, 12, 10, 16, 1, 1e-5, 10000), NULL},
    {LLAMA_TEXT ", \"attention_bias\": true", LLAMA_HAS(HAS_QKV_BIAS | HAS_O_BIAS), NULL},
    {LLAMA_TEXT ", \"mlp_bias\": true", LLAMA_HAS(HAS_MLP_BIAS), NULL},
    {LLAMA_TEXT ", \"head_dim\": 6", CONFIG(ARCH_LLAMA, 1, 8, 2, 2, 6, 12, 10, 16, 0, 1e-6, 10000), NULL},
    /* kin: their defaults, and switches that theirs alone have */
    {"\"model_type\": \"qwen2\"", CONFIG(ARCH_QWEN2, 32, 4096, 32, 32, 0, 22016, 151936, 32768, 0, 1e-6, 10000),
     "vocab_size 151936, max_position_embeddings 32768"},
    {"\"architectures\": [\"Qwen3ForCausalLM\"]",
     CONFIG(ARCH_QWEN3, 32, 4096, 32, 32, 128, 22016, 151936, 32768, 0, 1e-6, 10000), "intermediate_size 22016"},
    {"\"model_type\": \"phi3\"", CONFIG(ARCH_PHI3, 32, 3072, 32, 32, 0, 8192, 32064, 4096, 0, 1e-5, 10000),
     "vocab_size 32064, max_position_embeddings 4096"},
    {"\"model_type\": \"phi3\", \"max_position_embeddings\": 16, \"resid_pdrop\": 0.1, \"attention_bias\": true, "
     LLAMA_SIZES, CONFIG(ARCH_PHI3, 1, 8, 2, 2, 0, 12, 10, 16, 0, 1e-5, 10000), "resid_pdrop is 0.1"},
    {"\"architectures\": [\"SmolLM3Model\"]", SMOLLM3(36, 2048, 16, 4, 11008, 128256, 32768, 2000000),
     "num_hidden_layers 36"},
    {"\"model_type\": \"mistral\", \"max_position_embeddings\": 16, \"sliding_window\": null, \"attention_bias\": "
     "true, " LLAMA_SIZES ", \"num_key_value_heads\": 1",
     CONFIG(ARCH_MISTRAL, 1, 8, 2, 1, 0, 12, 10, 16, 0, 1e-6, 10000), NULL},
    {"\"model_type\": \"qwen2\", \"max_position_embeddings\": 16, \"sliding_window\": 4, \"max_window_layers\": 0, "
     "\"use_sliding_window\": false, \"num_key_value_heads\": null, \"attention_bias\": false, " LLAMA_SIZES,
     CONFIG(ARCH_QWEN2, 1, 8, 2, 2, 0, 12, 10, 16, 0, 1e-6, 10000), NULL},
    /* rotary embedding: in two ages' spelling */
    {LLAMA_TEXT ", \"rope_theta\": 5e5", LLAMA_SMALL(5e5, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"rope_parameters\": {\"rope_theta\": 500000}, \"partial_rotary_factor\": 1.0",
     LLAMA_SMALL(5e5, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"rope_theta\": 5e5, \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000}",
     LLAMA_SMALL(5e5, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"rope_theta\": 5e5, \"rope_parameters\": {}, \"rope_scaling\": {}", LLAMA_SMALL(5e5, 0, 0, 0, 0),
     NULL},
    {LLAMA_TEXT ", \"rope_scaling\": {}, \"rope_parameters\": {\"rope_theta\": 7, \"partial_rotary_factor\": 1}",
     LLAMA_SMALL(7, 0, 0, 0, 0), NULL},
    {LLAMA_TEXT ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 1.0}",
     LLAMA_SCALED(10000, {ROPE_LINEAR, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}, {0}}), NULL},
    {LLAMA_TEXT ", \"rope_scaling\": {\"type\": \"llama3\", " LLAMA3 ", \"original_max_position_embeddings\": 8}",
     LLAMA_SMALL(10000, 2, 1, 3, 8), NULL},
    {LLAMA_TEXT ", \"rope_theta\": 7, \"rope_scaling\": {\"rope_type\": \"llama3\", \"type\": \"linear\", " LLAMA3 "}",
     LLAMA_SMALL(7, 2, 1, 3, 16), NULL},
    {LLAMA_TEXT ", \"rope_scaling\": {\"type\": \"llama3\", " LLAMA3 "}, \"original_max_position_embeddings\": 9",
     LLAMA_SMALL(10000, 2, 1, 3, 9), NULL},
    {LLAMA_TEXT ", \"rope_scaling\": {\"type\": \"llama3\", " LLAMA3 ", \"original_max_position_embeddings\": 8}, "
                "\"original_max_position_embeddings\": 9",
     LLAMA_SMALL(10000, 2, 1, 3, 9), NULL},
    {LLAMA_TEXT ", \"rope_theta\": 7, \"rope_scaling\": {\"type\": \"llama3\", " LLAMA3
                "}, \"rope_parameters\": {\"rope_type\": \"llama3\", " LLAMA3 ", \"rope_theta\": 7}",
     LLAMA_SMALL(7, 2, 1, 3, 16), NULL},
};

static void test_good_configs(void) {
    const char *dir = fresh_dir("good-config");
    const Preset *preset = preset_find("llama2-13b");
    for (int i = 0; i < COUNT_OF(GOOD_CONFIGS); i++) {
        const GoodConfig *g = &GOOD_CONFIGS[i];
        char text[2048];
        Config c;
        snprintf(text, sizeof text, "{%s}", g->text);
        write_text(in(dir, "config.json"), text);
        int status = run_child(try_config, dir, text, sizeof text);
        const char *note = strstr(text, "train_gpt: note: ");
        int said = g->note ? note == text && strstr(text, g->note) && !strstr(text + 1, "train_gpt: ") : !text[0];
        if (!check(status == 0 && said, "%.200s: accepted, %s; said: %s", g->text, g->note ? g->note : "without a word",
                   text))
            continue;
        checkpoint_read_config(&c, dir);
        check(same_config(&c, &g->want), "%.200s: what transformers makes of it", g->text);
        if (!strstr(g->text, "\"hidden_size\": 5120")) continue;
        Config p = preset->config;
        config_check(&p, preset->name);
        check(same_config(&c, &p), "the preset llama2-13b is what its directory says");
    }
}

typedef struct {
    const char *base, *without, *extra, *why;
} BadConfig;

static const BadConfig BAD_CONFIGS[] = {
    {GPT2_JSON, "\"model_type\"", "", "model_type is missing, and architectures does not tell it"},
    {GPT2_JSON, "\"model_type\"", ", \"architectures\": [\"MixtralForCausalLM\"]",
     "model_type is missing, and architectures does not tell it"},
    {GPT2_JSON, "\"model_type\"", ", \"architectures\": [[\"GPT2LMHeadModel\"]]",
     "model_type is missing, and architectures does not tell it"},
    {GPT2_JSON, "\"model_type\"", ", \"architectures\": \"GPT2LMHeadModel\"",
     "model_type is missing, and architectures does not tell it"},
    {GPT2_JSON, "\"model_type\"", ", \"model_type\": null", "model_type is null"},
    {GPT2_JSON, "\"model_type\"", ", \"model_type\": \"mixtral\"",
     "model_type mixtral is not implemented; gpt2, llama, mistral, qwen2"},
    {GPT2_JSON, "\"model_type\"", ", \"model_type\": \"a\\nb\"", "model_type is not a text"},
    {GPT2_JSON, "\"n_head\"", "", "does not divide by 12 heads"}, /* the default */
    {GPT2_JSON, NULL, ", \"num_attention_heads\": 4", "n_head is 2, but num_attention_heads, its other name, is 4"},
    {GPT2_JSON, NULL, ", \"hidden_size\": 16", "n_embd is 8, but hidden_size, its other name, is 16"},
    {GPT2_JSON, NULL, ", \"num_hidden_layers\": 3", "n_layer is 1, but num_hidden_layers, its other name, is 3"},
    {GPT2_JSON, NULL, ", \"max_position_embeddings\": 32",
     "n_positions is 16, but max_position_embeddings, its other name, is 32"},
    {GPT2_JSON, "\"n_head\"", ", \"num_attention_heads\": 0", "num_attention_heads is 0"},
    {GPT2_JSON, "\"n_head\"", ", \"n_head\": null", "n_head is null"},
    {GPT2_JSON, "\"n_embd\"", ", \"n_embd\": null", "n_embd is null"},
    {GPT2_JSON, "\"n_layer\"", ", \"n_layer\": null", "n_layer is null"},
    {GPT2_JSON, "\"n_positions\"", ", \"n_positions\": null", "n_positions is null"},
    {GPT2_JSON, "\"vocab_size\"", ", \"vocab_size\": null", "vocab_size is null"},
    {GPT2_JSON, "\"vocab_size\"", ", \"vocab_size\": 1", "vocab_size is 1"},
    {GPT2_JSON, NULL, ", \"hidden_size\": null", "hidden_size is null"},
    {GPT2_JSON, NULL, ", \"layer_norm_epsilon\": null", "layer_norm_epsilon is null"},
    {GPT2_JSON, NULL, ", \"activation_function\": null", "activation_function is null"},
    {GPT2_JSON, NULL, ", \"scale_attn_weights\": null", "scale_attn_weights is null"},
    {GPT2_JSON, NULL, ", \"tie_word_embeddings\": null", "tie_word_embeddings is null"},
    {GPT2_JSON, NULL, ", \"attn_pdrop\": null", "attn_pdrop is null"},
    {GPT2_JSON, NULL, ", \"attn_pdrop\": 0.1, \"resid_pdrop\": 2", "resid_pdrop is 2"},
    {GPT2_JSON, "\"n_head\"", ", \"n_head\": \"2\"", "n_head is not a number"},
    {GPT2_JSON, "\"n_head\"", ", \"n_head\": 0", "n_head is 0"},
    {GPT2_JSON, "\"n_head\"", ", \"n_head\": 1.5", "n_head is 1.5"},
    {GPT2_JSON, "\"n_head\"", ", \"n_head\": 3", "does not divide by 3 heads"},
    {GPT2_JSON, "\"n_layer\"", ", \"n_layer\": -4", "n_layer is -4"},
    {GPT2_JSON, "\"vocab_size\"", ", \"vocab_size\": 1e300", "vocab_size is 1e+300"},
    {GPT2_JSON, NULL, ", \"activation_function\": \"relu\"",
     "activation_function relu is not implemented; gelu_new, gelu_pytorch_tanh"},
    {GPT2_JSON, NULL, ", \"activation_function\": \"gelu\"", "activation_function gelu is not implemented"},
    {GPT2_JSON, NULL, ", \"per_layer_config\": {\"0\": {}}", "per_layer_config"},
    {GPT2_JSON, NULL, ", \"scale_attn_weights\": false", "scale_attn_weights false"},
    {GPT2_JSON, NULL, ", \"scale_attn_by_inverse_layer_idx\": true", "scale_attn_by_inverse_layer_idx true"},
    {GPT2_JSON, NULL, ", \"reorder_and_upcast_attn\": true", "reorder_and_upcast_attn true"},
    {GPT2_JSON, NULL, ", \"add_cross_attention\": true", "add_cross_attention true"},
    {GPT2_JSON, NULL, ", \"add_cross_attention\": 1", "add_cross_attention is not true or false"},
    {GPT2_JSON, NULL, ", \"tie_word_embeddings\": false", "tie_word_embeddings false"},
    {GPT2_JSON, NULL, ", \"quantization_config\": {}", "quantization_config"},
    {LLAMA_JSON, "\"hidden_size\"", ", \"hidden_size\": null", "hidden_size is null"},
    {LLAMA_JSON, "\"num_hidden_layers\"", ", \"num_hidden_layers\": null", "num_hidden_layers is null"},
    {LLAMA_JSON, "\"num_attention_heads\"", ", \"num_attention_heads\": null", "num_attention_heads is null"},
    {LLAMA_JSON, "\"intermediate_size\"", ", \"intermediate_size\": null", "intermediate_size is null"},
    {LLAMA_JSON, "\"max_position_embeddings\"", ", \"max_position_embeddings\": null",
     "max_position_embeddings is null"},
    {LLAMA_JSON, "\"vocab_size\"", ", \"vocab_size\": null", "vocab_size is null"},
    {LLAMA_JSON, NULL, ", \"rms_norm_eps\": null", "rms_norm_eps is null"},
    {LLAMA_JSON, NULL, ", \"hidden_act\": null", "hidden_act is null"},
    {LLAMA_JSON, NULL, ", \"attention_bias\": null", "attention_bias is null"},
    {LLAMA_JSON, NULL, ", \"mlp_bias\": null", "mlp_bias is null"},
    {LLAMA_JSON, NULL, ", \"tie_word_embeddings\": null", "tie_word_embeddings is null"},
    {LLAMA_JSON, NULL, ", \"rope_theta\": null", "rope_theta is null"},
    {LLAMA_JSON, NULL, ", \"rope_parameters\": {\"rope_theta\": null}", "rope_parameters.rope_theta is null"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"rope_type\": null, \"type\": \"llama3\"}",
     "rope_scaling.rope_type is null"},
    {LLAMA_JSON, NULL, ", \"partial_rotary_factor\": 0.5", "partial_rotary_factor is not implemented"},
    {LLAMA_JSON, NULL, ", \"rope_parameters\": {\"partial_rotary_factor\": 0.5}",
     "rope_parameters.partial_rotary_factor is not implemented"},
    {LLAMA_JSON, NULL, ", \"rope_parameters\": {\"full_attention\": {\"rope_theta\": 1e4}}",
     "rope_parameters with an object of its own"},
    {LLAMA_JSON, NULL, ", \"rope_parameters\": {\"rope_theta\": 1e4}, \"rope_scaling\": {\"rope_theta\": 2e4}",
     "both there and differ; keep one"},
    {LLAMA_JSON, NULL,
     ", \"rope_parameters\": {\"rope_theta\": 1e4}, \"rope_scaling\": {\"type\": \"llama3\", " LLAMA3 "}",
     "both there and differ"},
    {LLAMA_JSON, NULL, ", \"hidden_act\": \"gelu\"", "hidden_act gelu is not implemented; silu, swish are"},
    {LLAMA_JSON, NULL, ", \"head_dim\": 5", "head dimension 5 is odd"},
    {LLAMA_JSON, NULL, ", \"num_key_value_heads\": 3", "KV heads"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"mrope\", \"factor\": 2}",
     "rope_scaling type mrope is not implemented; default, linear, dynamic, llama3, yarn, longrope are"},
    {LLAMA_JSON, NULL, ", \"rope_parameters\": {\"rope_type\": \"linear\"}", "rope_parameters.factor is missing"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": null}", "rope_scaling.factor is null"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"yarn\"}", "rope_scaling.factor is missing"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 0.5}", "rope_scaling.factor is 0.5"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": null, "
     "\"original_max_position_embeddings\": 32}",
     "original_max_position_embeddings 32 is above max_position_embeddings 16"},
    {LLAMA_JSON, NULL, ", \"rope_theta\": 1, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}",
     "yarn needs a rope_theta above 1"},
    {LLAMA_JSON, NULL, ", \"head_dim\": 2, \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}",
     "heads of more than 2"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2}",
     "rope_scaling.short_factor is missing"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2, \"short_factor\": [1]}",
     "rope_scaling.short_factor has 1 numbers; heads of 4 take 2"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"longrope\", \"factor\": 2, \"short_factor\": [1, 0], "
     "\"long_factor\": [1, 2]}",
     "rope_scaling.short_factor: number 2"},
    {LLAMA_JSON, "\"model_type\"", ", \"model_type\": \"phi3\", \"rope_scaling\": {\"type\": \"linear\", "
     "\"factor\": 2}", "scaled by longrope or not at all, not by linear"},
    {LLAMA_JSON, "\"model_type\"", ", \"model_type\": \"smollm3\", \"no_rope_layers\": [1, 0]",
     "no_rope_layers has 2 items for 1 layers"},
    {LLAMA_JSON, "\"model_type\"", ", \"model_type\": \"smollm3\", \"no_rope_layers\": [2]",
     "no_rope_layers: item 1 is neither 0 nor 1"},
    {LLAMA_JSON, "\"model_type\"", ", \"model_type\": \"qwen2\", \"layer_types\": [\"linear_attention\"]",
     "layer_types: item 1"},
    {LLAMA_JSON, "\"model_type\"", ", \"model_type\": \"qwen2\", \"use_sliding_window\": 1",
     "use_sliding_window is not true or false"},
    {LLAMA_JSON, "\"model_type\"", ", \"model_type\": \"qwen2\"", "2 heads do not divide by 32 KV heads"},
    {LLAMA_JSON, NULL, ", \"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 2}",
     "rope_parameters.low_freq_factor is missing"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": {\"type\": \"llama3\", \"factor\": 0.5}", "rope_scaling.factor is 0.5"},
    {LLAMA_JSON, NULL,
     ", \"rope_scaling\": {\"type\": \"llama3\", \"factor\": 2, \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
     "\"original_max_position_embeddings\": 8}",
     "high_freq_factor 4 must be above"},
    {LLAMA_JSON, NULL, ", \"rope_scaling\": [1]", "rope_scaling is not an object"},
    {LLAMA_JSON, NULL, ", \"rope_theta\": 1e4, \"rope_parameters\": {\"rope_theta\": 2e4}", "keep one"},
    {LLAMA_JSON, NULL, ", \"num_hidden_layers\": 3", "\"num_hidden_layers\" comes up twice"},
    {LLAMA_JSON, NULL, ", \"hidden_act\\u0000\": \"gelu\"", "holds \\u0000"},
    {LLAMA_JSON, NULL, "} {", "something follows the JSON"},
    {LLAMA_JSON, NULL, ",", "is not JSON"},
};

static void test_bad_configs(void) {
    const char *dir = fresh_dir("bad-config");
    for (int i = 0; i < COUNT_OF(BAD_CONFIGS); i++) {
        const BadConfig *b = &BAD_CONFIGS[i];
        write_config(dir, b->base, b->without, b->extra);
        expect_error(b->extra[0] ? b->extra : b->without, try_config, dir, "bad-config/config.json", b->why);
    }
    write_text(in(dir, "config.json"), "[]");
    expect_error("an array", try_config, dir, "bad-config/config.json", "is not a JSON object");
    expect_error("no directory", try_config, in(temp, "nowhere"), "nowhere/config.json", "cannot open");
    fresh_dir("config-dir");
    fresh_dir("config-dir/config.json");
    expect_error("a directory for a file", try_config, in(temp, "config-dir"), "config.json", "not a regular file");
}

/* ---- files that want to hurt ------------------------------------------------------------------------------------- */

/* Open a file and touch all that it claims to hold. */
static void try_file(const char *path) {
    SafetensorSet s;
    safetensors_open(&s, path);
    volatile double sum = 0;
    for (int i = 0; i < s.tensors; i++)
        for (i64 k = 0; k < s.tensor[i].elements; k++)
            if (safetensor_is_float(&s.tensor[i])) sum = sum + safetensor_value(&s.tensor[i], k);
    safetensors_close(&s);
}

static void try_dir(const char *dir) {
    SafetensorSet s;
    safetensors_open_dir(&s, dir);
    safetensors_close(&s);
}

/* A file of this header and `data` bytes after it; length < 0: the header's own. */
static void write_file(const char *path, const char *header, i64 length, i64 data) {
    size_t n = strlen(header);
    char *all = (char *)host_alloc(8 + n + (size_t)data);
    uint64_t claimed = length < 0 ? n : (uint64_t)length;
    memcpy(all, &claimed, 8);
    memcpy(all + 8, header, n);
    write_bytes(path, all, 8 + (i64)n + data);
    free(all);
}

typedef struct {
    const char *header;
    i64 length, data;
    const char *why;
} BadFile;

#define ENTRY(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static const BadFile BAD_FILES[] = {
    {"", 2, 0, "its header would take 2 bytes"},
    {"{}", 1000000, 0, "its header would take 1000000 bytes of a file of 10: truncated; download it again: hf download "
     "OWNER/NAME --local-dir '/"},
    {"[]", 1000000, 0, "its header would take 1000000 bytes of a file of 10: no safetensors file"},
    {"{}", INT64_MAX, 0, "its header would take"},
    {"", 0, 0, "the header is not JSON"},
    {"{\"a\":", -1, 8, "the header is not JSON"},
    {"[1, 2]", -1, 0, "not a JSON object"},
    {"{} {}", -1, 0, "something follows the JSON"},
    {"{\"a\":1}", -1, 0, "tensor a has no dtype"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", -1, 8, "tensor a has no data_offsets"},
    {"{" ENTRY("a", "F33", "[2]", 0, 8) "}", -1, 8, "unknown dtype F33"},
    {"{" ENTRY("a", "F32", "2", 0, 8) "}", -1, 8, "shape is not a list"},
    {"{" ENTRY("a", "F32", "[1,1,1,1,1,1,1,1,2]", 0, 8) "}", -1, 8, "shape is not a list of at most 8"},
    {"{" ENTRY("a", "F32", "[-2]", 0, 8) "}", -1, 8, "not a size"},
    {"{" ENTRY("a", "F32", "[1.5]", 0, 6) "}", -1, 8, "not a size"},
    {"{" ENTRY("a", "F32", "[4294967296,4294967296,4]", 0, 0) "}", -1, 0, "not a size"},
    {"{" ENTRY("a", "F64", "[8e15]", 0, 0) "}", -1, 0, "impossibly large"},
    {"{" ENTRY("a", "F32", "[2]", -8, 0) "}", -1, 8, "not two rising positions"},
    {"{" ENTRY("a", "F32", "[2]", 8, 0) "}", -1, 8, "not two rising positions"},
    {"{" ENTRY("a", "F32", "[2]", 0, 1e300) "}", -1, 8, "not two rising positions"},
    {"{" ENTRY("a", "F32", "[2]", 0, 8) "}", -1, 7,
     "truncated? download it again: hf download OWNER/NAME --local-dir '/"},
    {"{" ENTRY("a", "F32", "[2]", 9000000000000, 9000000000008) "}", -1, 8, "truncated"},
    {"{" ENTRY("a", "F32", "[3]", 0, 8) "}", -1, 8, "F32 [3] takes 12 bytes"},
    {"{" ENTRY("a", "F32", "[2]", 0, 8) "}", -1, 9, "1 bytes follow the last tensor"},
    {"{" ENTRY("a", "F32", "[2]", 0, 8) "," ENTRY("b", "F32", "[2]", 4, 12) "}", -1, 12, "they overlap"},
    {"{" ENTRY("a", "F32", "[2]", 0, 8) "," ENTRY("b", "F32", "[2]", 12, 20) "}", -1, 20, "a hole"},
    {"{" ENTRY("a", "F32", "[2]", 0, 8) "," ENTRY("a", "F32", "[2]", 8, 16) "}", -1, 16, "comes up twice"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8,
     "\"dtype\" comes up twice"},
    {"{" ENTRY("a\\u0000b", "F32", "[2]", 0, 8) "}", -1, 8, "holds \\u0000"},
    {"{" ENTRY("a\\nb", "F32", "[2]", 0, 8) "}", -1, 8, "not printable"},
    {"{" ENTRY("", "F32", "[2]", 0, 8) "}", -1, 8, "empty or not printable"},
};

static void test_bad_files(void) {
    const char *path = in(fresh_dir("bad-file"), "bad.safetensors");
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", path);
    for (int i = 0; i < COUNT_OF(BAD_FILES); i++) {
        const BadFile *b = &BAD_FILES[i];
        write_file(copy, b->header, b->length, b->data);
        expect_error(b->header, try_file, copy, "bad.safetensors", b->why);
    }
    char deep[20001];
    memset(deep, '[', 20000), deep[20000] = 0;
    write_file(copy, deep, -1, 0);
    expect_error("20000 brackets", try_file, copy, "bad.safetensors", "is not JSON");
    write_bytes(copy, "1234567", 7);
    expect_error("seven bytes", try_file, copy, "bad.safetensors", "are no safetensors file");
    expect_error("no file", try_file, in(temp, "nowhere.safetensors"), "nowhere.safetensors", "cannot open");
    expect_error("a directory", try_file, temp, temp, "not a regular file");
}

/* Bytes of a good file changed and ends cut off at random: either it still opens, or one line; never a signal. */
static void test_mutations(void) {
    char path[PATH_MAX], text[4096];
    snprintf(path, sizeof path, "%s", in(temp, "mutant.safetensors"));
    FileMap m = file_map(in(fixtures, "llama-gqa-fp16/model.safetensors"));
    char *bytes = (char *)host_alloc((size_t)m.size);
    uint64_t state = 1, header = 0;
    int refused = 0, bad = 0;
    memcpy(&header, m.bytes, 8);
    for (int round = 0; round < 400; round++) {
        memcpy(bytes, m.bytes, (size_t)m.size);
        i64 size = m.size;
        for (int k = 0; k < 1 + round % 3; k++) {
            state = mix64(state);
            bytes[state % (8 + header)] =
                round & 1 ? (char)(state >> 32) : "0123456789[]{},:\"\\-e"[(state >> 32) % 20];
        }
        if (round % 8 == 0) size = (i64)(mix64(state) % (uint64_t)m.size);
        write_bytes(path, bytes, size);
        int status = run_child(try_file, path, text, sizeof text);
        if (is_one_error(status, text) && strstr(text, "mutant.safetensors")) refused++;
        else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) bad++;
    }
    check(bad == 0 && refused > 100, "400 mutants of a file: %d refused in one line, %d did anything but that or open",
          refused, bad);
    free(bytes);
    file_unmap(&m);
}

static void test_bad_index(void) {
    char dir[PATH_MAX], index[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", fresh_dir("index"));
    snprintf(index, sizeof index, "%s", in(dir, "model.safetensors.index.json"));
    write_file(in(dir, "a.safetensors"), "{" ENTRY("a", "F32", "[2]", 0, 8) "}", -1, 8);
    write_file(in(dir, "b.safetensors"), "{" ENTRY("b", "F32", "[2]", 0, 8) "}", -1, 8);
    write_text(index, "{}");
    expect_error("an index without a map", try_dir, dir, "model.safetensors.index.json", "no weight_map");
    write_text(index, "{\"weight_map\": {\"a\": \"../index/a.safetensors\"}}");
    expect_error("a shard elsewhere", try_dir, dir, "model.safetensors.index.json",
                 "not the name of a file in this directory");
    write_text(index, "{\"weight_map\": {\"a\": 3}}");
    expect_error("a number for a shard", try_dir, dir, "model.safetensors.index.json", "not the name of a file");
    write_text(index, "{\"weight_map\": {\"a\": \"a.safetensors\", \"c\": \"c.safetensors\"}}");
    expect_error("a missing shard", try_dir, dir, "c.safetensors", "cannot open");
    write_text(index, "{\"weight_map\": {\"a\": \"b.safetensors\", \"b\": \"a.safetensors\"}}");
    expect_error("an index that is wrong", try_dir, dir, "model.safetensors.index.json", "does not hold it");
    write_text(index, "{\"weight_map\": {\"a\": \"a.safetensors\"");
    expect_error("half an index", try_dir, dir, "model.safetensors.index.json", "is not JSON");
}

/* What people hand over in the place of a model: `bytes` as a file, and the word of what it is and of what mends it. */
typedef struct {
    const char *name, *bytes;
    int size;
    const char *what, *mend;
} WrongFile;

static const WrongFile WRONG_FILES[] = {
    {"a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:6b\nsize 548118077\n", 73,
     "is a Git LFS pointer", "lfs pull"},
    {"an HTML page", "<!doctype html>\n<html class=\"\">\n", 33, "is an HTML or XML page", "hf download"},
    {"HTML after blanks", "\xef\xbb\xbf\r\n <HTML>\n", 14, "is an HTML or XML page", "hf download"},
    {"an XML error", "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", 53, "is an HTML or XML page",
     "hf download"},
    {"an empty file", "", 0, "is empty", "hf download"},
    {"gzip", "\x1f\x8b\x08\0\0\0\0\0\0\x03\x4b\x4c", 12, "is packed by gzip", "gunzip --stdout '"},
    {"zip", "PK\3\4\x14\0\0\0\x08\0\0\0\0\0notes.txt", 23, "is a zip file", "unzip '"},
    {"torch.save", "PK\3\4\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x16\0\x0c\0pytorch_model/data.pkl", 52,
     "is a PyTorch file (of torch.save)",
     "save_pretrained('"},
    {"torch.save of old", "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15,
     "is a PyTorch file (a pickle)", "save_pretrained('"},
    {"GGUF", "GGUF\3\0\0\0\x23\1\0\0\0\0\0\0", 16, "is a GGUF file", "hf download"},
    {"an error for a file", "Entry not found", 15, "is a text that begins \"Entry not found\"", "hf download"},
    {"JSON for safetensors", "{\"error\": \"Access is restricted\"}", 33,
     "is a text that begins \"{\"error\": \"Access is", "hf download"},
};

/* A directory that lacks a file: the names that lie there. */
typedef struct {
    const char *names, *what, *mend;
} WrongDirectory;

static const WrongDirectory WRONG_DIRECTORIES[] = {
    {"", "nor anything else of a model", "hf download OWNER/NAME --local-dir '"},
    {".cache README", "README is something else", "hf download"},
    {"pytorch_model.bin tokenizer.json", "pytorch_model.bin is PyTorch's weights", "safe_serialization=True)"},
    {"pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json",
     "pytorch_model-00001-of-00002.bin is PyTorch's weights", "safe_serialization=True)"},
    {"README.md adapter_config.json adapter_model.safetensors tokenizer.json",
     "adapter_config.json is the files of an adapter (LoRA)", "merge_and_unload()"},
    {"adapter_model.bin pytorch_model.bin", "adapter_model.bin is the files of an adapter (LoRA)",
     "merge_and_unload()"},
    {"tokenizer.json tokenizer_config.json special_tokens_map.json", "tokenizer.json is a tokenizer's files",
     "hf download"},
    {"merges.txt vocab.json", "vocab.json is a tokenizer's files", "hf download"},
    {"model.Q4_K_M.gguf README.md", "model.Q4_K_M.gguf is a GGUF file", "hf download"},
    {"consolidated.00.pth params.json", "consolidated.00.pth is a PyTorch file", "save_pretrained('"},
    {"optimizer.pt training_args.bin", "optimizer.pt is a PyTorch file", "save_pretrained('"},
    {"epoch=1.ckpt", "epoch=1.ckpt is a PyTorch file", "save_pretrained('"},
    {"tf_model.h5", "tf_model.h5 is TensorFlow's weights", "hf download"},
    {"flax_model.msgpack", "flax_model.msgpack is Flax's weights", "hf download"},
    {"model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors is only a part of a model", "hf download"},
    {"model.fp16.safetensors", "model.fp16.safetensors is safetensors under another name", "hf download"},
    {"blobs refs snapshots", "snapshots is the Hub's cache", "/snapshots/*"},
};

static void test_wrong_files(void) {
    char dir[PATH_MAX], path[PATH_MAX], text[4096];
    snprintf(dir, sizeof dir, "%s", fresh_dir("wrong"));
    for (int config = 0; config < 2; config++) {
        const char *file = config ? "wrong/config.json" : "wrong/model.safetensors";
        snprintf(path, sizeof path, "%s", in(dir, strchr(file, '/') + 1));
        for (int i = 0; i < COUNT_OF(WRONG_FILES); i++) {
            const WrongFile *f = &WRONG_FILES[i];
            if (config && strstr(f->what, "a text that")) continue; /* for config.json, text is the right kind */
            write_bytes(path, f->bytes, f->size);
            expect_error(f->name, config ? try_config : try_dir, dir, file, f->what);
            expect_error(f->name, config ? try_config : try_dir, dir, file, f->mend);
        }
        remove(ours(path));
    }
    write_bytes(in(dir, "model.safetensors.index.json"), WRONG_FILES[0].bytes, WRONG_FILES[0].size);
    expect_error("a pointer for an index", try_dir, dir, "wrong/model.safetensors.index.json", "is a Git LFS pointer");
    /* a header whose length reads like a pickle's or gzip's beginning is none of them */
    for (int i = 0; i < 2; i++) {
        const int length = i ? 0x8b1f : 0x0280;
        char *header = (char *)host_alloc((size_t)length + 1);
        memset(header, ' ', (size_t)length);
        memcpy(header, "{}", 2);
        write_file(in(dir, "model.safetensors"), header, -1, 0);
        check(run_child(try_dir, dir, text, sizeof text) == 0 && !text[0], "a sound header of %d bytes; said: %s",
              length, text);
        free(header);
    }
}

static void test_wrong_directories(void) {
    for (int i = 0; i < COUNT_OF(WRONG_DIRECTORIES); i++) {
        const WrongDirectory *w = &WRONG_DIRECTORIES[i];
        char dir[PATH_MAX], names[256], place[32];
        snprintf(place, sizeof place, "wrong-%d", i);
        snprintf(dir, sizeof dir, "%s", fresh_dir(place));
        snprintf(names, sizeof names, "%s", w->names);
        for (char *name = strtok(names, " "); name; name = strtok(NULL, " ")) write_text(in(dir, name), "x");
        expect_error(w->names, try_config, dir, "config.json is not there", w->what);
        write_text(in(dir, "config.json"), "{}");
        expect_error(w->names, try_dir, dir, "model.safetensors (or its .index.json) is not there", w->what);
        expect_error(w->names, try_dir, dir, place, w->mend);
    }
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", fresh_dir("no-config"));
    write_text(in(dir, "model.safetensors"), "x");
    expect_error("weights alone", try_config, dir, "config.json is not there",
                 "model.safetensors is only a part of a model; download it again: hf");
    write_text(in(dir, "pytorch_model.bin"), "x");
    remove(ours(in(dir, "model.safetensors")));
    expect_error("PyTorch's weights alone", try_config, dir, "config.json is not there",
                 "weights, not safetensors; download it again: hf");
    write_text(in(dir, "config.json"), "{" GPT2_TEXT "}");
    write_text(in(dir, "adapter_config.json"), "{}");
    char text[4096];
    int status = run_child(try_config, dir, text, sizeof text);
    check(status == 0 && strstr(text, "adapter_config.json is not applied"),
          "a model with an adapter beside it; said: %s", text);
}

/* ---- a model by hand --------------------------------------------------------------------------------------------- */

typedef struct {
    Config config;
    Device dev;
    Ledger ledger;
    Fabric fabric;
    Mesh mesh;
    Arena arena;
    Zero z;
} Model;

static int splits_none(BlockKind b) { return (void)b, 0; }
static int splits_attention(BlockKind b) { return b == BLOCK_ATTENTION; }
static int splits_both(BlockKind b) { return b == BLOCK_ATTENTION || b == BLOCK_MLP; }

/* Rank `rank` of a mesh: imagined, or on `wire`. */
static void model_open(Model *m, const Config *c, MeshShape shape, int rank, int (*splits)(BlockKind), Wire wire,
                       int imagined) {
    memset(m, 0, sizeof *m);
    m->config = *c;
    m->dev.threads = 1;
    mesh_init(&m->mesh, shape, wire, imagined, rank, c->kv_heads);
    fabric_init(&m->fabric, &m->dev, &m->ledger, (int)shape.world, 1, "mpi");
    arena_reserve(&m->arena, &m->dev);
    zero_init(&m->z, &m->config, &m->mesh, &m->fabric, &m->arena, splits, DTYPE_ACCUM);
    arena_commit(&m->arena);
}

static void model_close(Model *m, int imagined) {
    zero_free(&m->z);
    arena_free(&m->arena);
    fabric_free(&m->fabric);
    if (!imagined) mesh_free(&m->mesh);
}

typedef struct {
    const char *name;
    MeshShape shape; /* world, dp, ring, head */
    int (*splits)(BlockKind);
} MeshCase;

static const MeshCase MESHES[] = {
    {"1 rank", {1, 1, 1, 1}, splits_both},
    {"odysseus x 2", {2, 1, 1, 2}, splits_attention},
    {"ulysses x 4", {4, 1, 1, 4}, splits_none},
    {"tpsp x 4", {4, 1, 1, 4}, splits_both},
    {"ring x 4", {4, 1, 4, 1}, splits_none},
    {"odysseus 2 x ring 2", {4, 1, 2, 2}, splits_attention},
    {"dp 2 x tpsp 2", {4, 2, 1, 2}, splits_both},
    {"dp 3", {3, 3, 1, 1}, splits_none},
    {"dp 2 ring 2 tpsp 4", {16, 2, 2, 4}, splits_both},
};

/* ---- weights that do not fit ------------------------------------------------------------------------------------- */

/* Load DIR's weights into the model of fixture llama-gqa (tied) on one imagined rank. */
static void try_load(const char *dir) {
    MeshShape one = {1, 1, 1, 1};
    Model m;
    model_open(&m, &CONFIGS[2].want, one, 0, splits_none, wire_none(), 1);
    checkpoint_load(&m.z, dir, 0);
    model_close(&m, 1);
}

static void try_load_untied(const char *dir) {
    MeshShape one = {1, 1, 1, 1};
    Config c = CONFIGS[2].want;
    c.tied = 0;
    Model m;
    model_open(&m, &c, one, 0, splits_none, wire_none(), 1);
    checkpoint_load(&m.z, dir, 0);
}

#define NO_TENSOR ((SafetensorType)ST_TYPES)

/* DIR/model.safetensors = fixture llama-gqa's, with tensor `name` renamed, of another type or shape (flat), or left out
   (to NULL); and, unless NULL, one `more`, a copy of the embedding whose first number is `first`. */
static void write_variant(const char *dir, const char *name, const char *to, SafetensorType type, int flat,
                          const char *more, float first) {
    SafetensorSet s;
    SafetensorWriter w;
    SafetensorPlan plan[64];
    const Safetensor *from[64];
    safetensors_open(&s, in(fixtures, "llama-gqa/model.safetensors"));
    int n = 0;
    for (int i = 0; i < s.tensors; i++) {
        const Safetensor *t = &s.tensor[i];
        int this_one = strcmp(t->name, name) == 0;
        if (this_one && !to) continue;
        SafetensorPlan *p = &plan[n];
        p->name = this_one ? to : t->name, p->type = this_one && type != NO_TENSOR ? type : t->type, p->dims = t->dims;
        memcpy(p->shape, t->shape, sizeof p->shape);
        if (this_one && flat) p->dims = 1, p->shape[0] = t->elements;
        from[n++] = t;
    }
    const Safetensor *wte = safetensors_find(&s, "model.embed_tokens.weight");
    if (more) {
        plan[n].name = more, plan[n].type = ST_F32, plan[n].dims = 2;
        memcpy(plan[n].shape, wte->shape, sizeof wte->shape);
    }
    safetensors_create(&w, anew(in(dir, "model.safetensors")), plan, n + (more != NULL));
    for (int i = 0; i < n; i++) safetensors_append(&w, from[i]->data, from[i]->bytes);
    if (more) {
        safetensors_append(&w, &first, 4);
        safetensors_append(&w, wte->data + 4, wte->bytes - 4);
    }
    safetensors_finish(&w);
    safetensors_close(&s);
}

static void test_bad_weights(void) {
    char dir[PATH_MAX], text[4096];
    snprintf(dir, sizeof dir, "%s", fresh_dir("variant"));
    const char *file = "variant/model.safetensors", *k0 = "model.layers.0.self_attn.k_proj.weight";
    SafetensorSet s;
    safetensors_open(&s, in(fixtures, "llama-gqa/model.safetensors"));
    float wte0 = (float)safetensor_value(safetensors_find(&s, "model.embed_tokens.weight"), 0);
    safetensors_close(&s);
    write_variant(dir, k0, NULL, NO_TENSOR, 0, NULL, 0);
    expect_error("k_proj left out", try_load, dir, file, "tensor model.layers.0.self_attn.k_proj.weight is missing");
    write_variant(dir, k0, k0, NO_TENSOR, 1, NULL, 0);
    expect_error("k_proj in one dimension", try_load, dir, file,
                 "k_proj.weight has shape [512], the model's is [16, 32]");
    write_variant(dir, k0, k0, ST_I32, 0, NULL, 0);
    expect_error("k_proj of integers", try_load, dir, file, "k_proj.weight has dtype I32");
    write_variant(dir, k0, k0, NO_TENSOR, 0, "model.layers.2.self_attn.k_proj.weight", 0);
    expect_error("a third layer", try_load, dir, file,
                 "model.layers.2.self_attn.k_proj.weight is no part of this model");
    write_variant(dir, k0, k0, NO_TENSOR, 0, "lm_head.weight", wte0 + 1);
    expect_error("a head that is not the embedding", try_load, dir, file, "lm_head.weight differs");
    write_variant(dir, k0, k0, NO_TENSOR, 0, "model.layers.0.attn.bias", 0);
    expect_error("gpt2's buffer in a llama", try_load, dir, file, "model.layers.0.attn.bias is no part");
    expect_error("an untied model without head", try_load_untied, in(fixtures, "llama-gqa"), "llama-gqa",
                 "head is not tied, but tensor lm_head.weight is missing");
    expect_error("another model's weights", try_load, in(fixtures, "gpt2-tied"), "gpt2-tied/model.safetensors",
                 "tensor model.embed_tokens.weight is missing");
    write_variant(dir, k0, k0, NO_TENSOR, 0, "lm_head.weight", wte0);
    check(run_child(try_load, dir, text, sizeof text) == 0 && !text[0], "a head that is the embedding: loads; said: %s",
          text);
    write_variant(dir, k0, k0, NO_TENSOR, 0, "model.layers.0.self_attn.rotary_emb.inv_freq", 0);
    check(run_child(try_load, dir, text, sizeof text) == 0 && !text[0], "a rotary buffer: loads; said: %s", text);
}

/* ---- writing that fails ------------------------------------------------------------------------------------------ */

static void try_write(const char *path) {
    SafetensorPlan plan;
    SafetensorWriter w;
    memset(&plan, 0, sizeof plan);
    plan.name = "a", plan.type = ST_F32, plan.dims = 1, plan.shape[0] = 10000;
    safetensors_create(&w, anew(path), &plan, 1);
    char *data = (char *)host_alloc(40000);
    safetensors_append(&w, data, 40000);
    safetensors_finish(&w);
    free(data);
}

static void try_write_full_disk(const char *path) {
    struct rlimit limit = {10000, 10000}; /* the kernel refuses the rest with EFBIG, as it would with ENOSPC */
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    try_write(path);
}

static void try_checkpoint_write(const char *dir) {
    int argc = 0;
    char **argv = NULL;
    Wire world = wire_start(&argc, &argv);
    fail_state()->abort_all = NULL; /* MPI_Abort would add lines of its own */
    MeshShape one = {1, 1, 1, 1};
    Model m;
    model_open(&m, &CONFIGS[2].want, one, 0, splits_none, wire_none(), 1);
    zero_initialise(&m.z, 1);
    checkpoint_write(&m.z, world, ours(dir));
    wire_finish();
}

static int files_in(const char *dir) {
    char command[PATH_MAX + 32];
    int n = -1;
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", dir);
    FILE *f = popen(command, "r");
    if (!f || fscanf(f, "%d", &n) != 1) n = -1;
    if (f) pclose(f);
    return n;
}

static void test_bad_writes(void) {
    char dir[PATH_MAX], path[PATH_MAX], text[4096];
    snprintf(dir, sizeof dir, "%s", fresh_dir("write"));
    snprintf(path, sizeof path, "%s", in(dir, "w.safetensors"));
    expect_error("a full disk", try_write_full_disk, path, "write/w.safetensors", "cannot write: File too large");
    check(files_in(dir) == 0, "after it, the directory holds no file and no temporary one: %d", files_in(dir));
    int status = run_child(try_write, path, text, sizeof text), files = files_in(dir);
    check(status == 0 && files == 1, "the same on a disk with room: one file (%d); said: %s", files, text);
    expect_error("a directory that is not there", try_write, in(temp, "nowhere/w.safetensors"), "nowhere/w.safetensors",
                 "cannot create");
    write_text(in(fresh_dir("taken"), "config.json"), "{}");
    expect_error("a directory with a model", try_checkpoint_write, in(temp, "taken"), "taken",
                 "already holds a model (config.json)");
    expect_error("a directory without a parent", try_checkpoint_write, in(temp, "nowhere/out"), "nowhere/out",
                 "cannot create this directory");
}

/* ---- weights on imagined meshes ---------------------------------------------------------------------------------- */

/* The whole model as the file's tensors, put together from what ranks own. */
typedef struct {
    HfTensor *list;
    int tensors;
    double **value;
    int **times; /* how often an element came up */
} Whole;

static void whole_open(Whole *w, const Zero *z) {
    w->list = checkpoint_list(z, &w->tensors);
    w->value = (double **)host_alloc((size_t)w->tensors * sizeof(double *));
    w->times = (int **)host_alloc((size_t)w->tensors * sizeof(int *));
    for (int i = 0; i < w->tensors; i++) {
        const HfPlace *p = &w->list[i].place;
        size_t n = (size_t)(p->shape[0] * (p->dims == 2 ? p->shape[1] : 1));
        w->value[i] = (double *)host_alloc(n * sizeof(double));
        w->times[i] = (int *)host_alloc(n * sizeof(int));
    }
}

static void whole_close(Whole *w) {
    for (int i = 0; i < w->tensors; i++) free(w->value[i]), free(w->times[i]);
    free(w->value);
    free(w->times);
    free(w->list);
}

typedef struct {
    Whole *whole;
    const Zero *z;
} WholeFill;

static void whole_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    WholeFill *f = (WholeFill *)context;
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    int i = 0;
    while (strcmp(f->whole->list[i].name, name) != 0) i++;
    HfPlace p = tensor_hf_place(t->spec, f->z->config);
    for (i64 k = 0; k < n; k++) {
        i64 index = p.base + row * p.row_step + (col + k) * p.col_step;
        f->whole->value[i][index] =
            (double)f->z->param[at + k] == (double)f->z->master[at + k] ? (double)f->z->master[at + k] : (double)NAN;
        f->whole->times[i][index]++;
    }
}

/* Every rank of an imagined mesh in turn: weights from `dir`, or from `seed` where it is NULL. */
static void whole_make(Whole *w, const Config *c, const MeshCase *mesh, const char *dir, i64 seed) {
    for (int r = 0; r < (int)mesh->shape.world; r++) {
        Model m;
        model_open(&m, c, mesh->shape, r, mesh->splits, wire_none(), 1);
        if (r == 0) whole_open(w, &m.z);
        if (dir) checkpoint_load(&m.z, dir, r);
        else zero_initialise(&m.z, seed);
        WholeFill f = {w, &m.z};
        for (int i = 0; i < m.z.tensors; i++) tensor_owned(&m.z, &m.z.tensor[i], whole_run, &f);
        model_close(&m, 1);
    }
}

/* Elements that are not there once, or not the file's (prefix + name). */
static i64 whole_differences(const Whole *w, const SafetensorSet *s, const char *prefix) {
    i64 bad = 0;
    for (int i = 0; i < w->tensors; i++) {
        char name[HF_NAME_MAX + 16];
        snprintf(name, sizeof name, "%s%s", prefix, w->list[i].name);
        const Safetensor *t = safetensors_find(s, name);
        if (!t) return -1;
        for (i64 k = 0; k < t->elements; k++)
            bad += w->times[i][k] != 1 || !same_number(w->value[i][k], safetensor_value(t, k));
    }
    return bad;
}

static void test_load_fixtures(void) {
    for (int i = 0; i < COUNT_OF(CONFIGS); i++) {
        if (strcmp(CONFIGS[i].file, "config.json") != 0) continue;
        const char *name = CONFIGS[i].dir;
        int half = strstr(name, "16") != NULL;
        char dir[PATH_MAX];
        snprintf(dir, sizeof dir, "%s", in(fixtures, name));
        SafetensorSet s;
        safetensors_open(&s, in(dir, half ? "expected.safetensors" : "model.safetensors"));
        for (int k = 0; k < COUNT_OF(MESHES); k++) {
            if (MESHES[k].splits != splits_none && CONFIGS[i].want.heads % MESHES[k].shape.head != 0) continue;
            Whole w;
            whole_make(&w, &CONFIGS[i].want, &MESHES[k], dir, 0);
            i64 bad = whole_differences(&w, &s, half ? "param." : "");
            check(bad == 0, "%s on %s: %lld elements differ from %s or are not owned once", name, MESHES[k].name, bad,
                  half ? "what PyTorch read" : "the file");
            whole_close(&w);
        }
        safetensors_close(&s);
    }
}

/* ---- names by which files call the tensors ----------------------------------------------------------------------- */

/* A file's names: `prefix`, the name that transformers gives without its leading `strip`, and `middle`
   before the first `before` in it. */
typedef struct {
    int config; /* in CONFIGS */
    const char *strip, *prefix, *before, *middle;
    int noted;
} Names;

static const Names NAMES[] = {
    {0, "", "", "", "", 0},
    {0, "transformer.", "", "", "", 0},
    {0, "", "_orig_mod.", "", "", 1},
    {0, "", "module.", "", "", 1},
    {0, "", "_orig_mod.module.", "", "", 1},
    {0, "transformer.", "module._orig_mod.", "", "", 1},
    {0, "", "module.module._fsdp_wrapped_module.", "", "", 1},
    {0, "", "model.", "", "", 1},
    {0, "", "", "attn.", "_orig_mod.", 1},
    {1, "", "", "", "", 0},
    {1, "model.", "", "", "", 0},
    {1, "", "_orig_mod.", "", "", 1},
    {1, "", "module.", "", "", 1},
    {1, "", "_orig_mod.module.", "", "", 1},
    {1, "model.", "module._orig_mod.module.", "", "", 1},
    {1, "", "base_model.model.", "", "", 1},
    {1, "", "model.", "layers.", "_fsdp_wrapped_module.", 1},
    {1, "", "", "mlp.", "_checkpoint_wrapped_module.", 1},
    {2, "model.", "", "", "", 0},
    {2, "model.", "_orig_mod.", "", "", 1},
};

/* What beyond its parameters a file may hold, inside the model, by architecture; a head is one where it is tied. */
static const char *const BUFFERS[2][6] = {
    {"h.0.attn.bias", "h.1.attn.bias", "h.1.attn.masked_bias", "lm_head.weight", NULL, NULL},
    {"layers.0.self_attn.rotary_emb.inv_freq", "layers.1.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq",
     "rotary_emb.original_inv_freq",
     "layers.0.self_attn.rotary_emb.cos_cached", "layers.0.self_attn.rotary_emb.sin_cached"}};

static const Config *load_config; /* of the model that try_load_into makes */

static void try_load_into(const char *dir) {
    Model m;
    model_open(&m, load_config, MESHES[0].shape, 0, splits_none, wire_none(), 1);
    checkpoint_load(&m.z, dir, 0);
    model_close(&m, 1);
}

/* DIR/model.safetensors: the fixture's tensors under other names; with `buffers` all of BUFFERS under them,
   too, and unless NULL, `more`. */
static void write_named(const char *dir, const Names *k, int buffers, const char *more) {
    static char name[64][256];
    SafetensorSet s;
    SafetensorWriter w;
    SafetensorPlan plan[64];
    const Safetensor *from[64];
    safetensors_open(&s, in(in(fixtures, CONFIGS[k->config].dir), "model.safetensors"));
    Arch arch = CONFIGS[k->config].want.arch;
    const char *embedding = arch == ARCH_GPT2 ? "transformer.wte.weight" : "model.embed_tokens.weight";
    int n = 0;
    memset(plan, 0, sizeof plan);
    for (int i = 0; i < s.tensors; i++) {
        const char *rest = s.tensor[i].name;
        if (text_begins_with(rest, k->strip)) rest += strlen(k->strip);
        const char *cut = k->before[0] && strstr(rest, k->before) ? strstr(rest, k->before) : rest;
        snprintf(name[n], sizeof name[n], "%s%.*s%s%s", k->prefix, (int)(cut - rest), rest,
                 cut == rest && k->before[0] ? "" : k->middle, cut);
        from[n++] = &s.tensor[i];
    }
    for (int i = 0; buffers && i < COUNT_OF(BUFFERS[arch]) && BUFFERS[arch][i]; i++) {
        snprintf(name[n], sizeof name[n], "%s%s", k->prefix, BUFFERS[arch][i]);
        from[n++] = safetensors_find(&s, embedding); /* any numbers; the right ones for a head */
    }
    if (more) {
        snprintf(name[n], sizeof name[n], "%s", more);
        from[n++] = safetensors_find(&s, embedding);
    }
    for (int i = 0; i < n; i++) {
        plan[i].name = name[i], plan[i].type = from[i]->type, plan[i].dims = from[i]->dims;
        memcpy(plan[i].shape, from[i]->shape, sizeof from[i]->shape);
    }
    safetensors_create(&w, anew(in(dir, "model.safetensors")), plan, n);
    for (int i = 0; i < n; i++) safetensors_append(&w, from[i]->data, from[i]->bytes);
    safetensors_finish(&w);
    safetensors_close(&s);
}

static void test_names(void) {
    char dir[PATH_MAX], text[4096];
    snprintf(dir, sizeof dir, "%s", fresh_dir("names"));
    for (int i = 0; i < COUNT_OF(NAMES); i++)
        for (int buffers = 0; buffers < 2; buffers++) {
            const Names *k = &NAMES[i];
            const ConfigCase *c = &CONFIGS[k->config];
            write_named(dir, k, buffers, NULL);
            load_config = &c->want;
            int status = run_child(try_load_into, dir, text, sizeof text);
            int said = k->noted ? text_begins_with(text, "train_gpt: note: ") &&
                                      strstr(text, "without what wraps the model") &&
                                      strstr(text, k->prefix[0] ? k->prefix : k->middle)
                                : !text[0];
            if (!check(status == 0 && said, "%s named %s...%s, %s: loads%s; said: %s", c->dir, k->prefix, k->middle,
                       buffers ? "with buffers" : "alone", k->noted ? " with a note" : "", text)) continue;
            SafetensorSet s;
            Whole w;
            safetensors_open(&s, in(in(fixtures, c->dir), "model.safetensors"));
            int rank = fail_state()->rank;
            fail_state()->rank = 1; /* whose notes are not said again */
            whole_make(&w, &c->want, &MESHES[0], dir, 0);
            fail_state()->rank = rank;
            i64 bad = whole_differences(&w, &s, "");
            check(bad == 0, "%s named %s...%s: %lld elements differ from the fixture's", c->dir, k->prefix, k->middle,
                  bad);
            whole_close(&w);
            safetensors_close(&s);
        }
    static const struct {
        int names;
        const char *more, *why;
    } refused[] = {
        {9, "norm.weight", "tensors model.norm.weight and norm.weight are both norm.weight; keep one"},
        {9, "module.model.norm.weight",
         "tensors model.norm.weight and module.model.norm.weight are both norm.weight; keep one"},
        {9, "_orig_mod.lm_head.weight",
         "tensors _orig_mod.lm_head.weight and lm_head.weight are both lm_head.weight; keep one"},
        {0, "module.transformer.wpe.weight",
         "tensors module.transformer.wpe.weight and transformer.wpe.weight are both wpe.weight"},
        {0, "score.weight", "tensor score.weight is no part of this model"},
        {0, "transformer.h.0.attn.rotary_emb.inv_freq", "inv_freq is no part of this model"},
        {9, "model.layers.0.self_attn.bias", "self_attn.bias is no part of this model"},
        {9, "modules.norm.weight", "modules.norm.weight is no part of this model"},
        {9, "norm.model.weight", "norm.model.weight is no part of this model"},
        {9, "model.layers.0.module.self_attn.q_proj.lora_A.weight",
         "lora_A.weight is an adapter's (LoRA), not the model's; merge it into its model: python3"},
    };
    for (int i = 0; i < COUNT_OF(refused); i++) {
        write_named(dir, &NAMES[refused[i].names], 0, refused[i].more);
        load_config = &CONFIGS[NAMES[refused[i].names].config].want;
        expect_error(refused[i].more, try_load_into, dir, "names/model.safetensors", refused[i].why);
    }
    Config untied = CONFIGS[2].want;
    untied.tied = 0;
    load_config = &untied;
    write_named(dir, &NAMES[18], 0, NULL);
    expect_error("a bare model whose head is its own", try_load_into, dir, "/names",
                 "head is not tied, but tensor lm_head.weight is missing");
}

static const real *param_of(const Zero *z, int block, Role role) { /* on one rank */
    for (int i = z->block[block].first_tensor;; i++)
        if (z->tensor[i].spec->role == role)
            return z->param + z->chunk[z->tensor[i].chunk].offset + z->tensor[i].offset;
}

/* Where GPT-2's fused and transposed matrices end up, written out once more by hand. */
static void test_gpt2_layout(const char *dir) {
    const i64 C = 32, F = 128;
    Model m;
    model_open(&m, &CONFIGS[0].want, MESHES[0].shape, 0, splits_none, wire_none(), 1);
    checkpoint_load(&m.z, dir, 0);
    SafetensorSet s;
    checkpoint_open(&s, dir);
    const Safetensor *qkv = checkpoint_find(&s, "transformer.h.1.attn.c_attn.weight");
    const Safetensor *bias = checkpoint_find(&s, "transformer.h.1.attn.c_attn.bias");
    const Safetensor *fc = checkpoint_find(&s, "transformer.h.1.mlp.c_fc.weight");
    const Safetensor *proj = checkpoint_find(&s, "transformer.h.1.mlp.c_proj.weight");
    const Role roles[3] = {T_Q, T_K, T_V}, biases[3] = {T_Q_BIAS, T_K_BIAS, T_V_BIAS};
    i64 bad = 0;
    for (int p = 0; p < 3; p++)
        for (i64 o = 0; o < C; o++) {
            bad += param_of(&m.z, block_attention(1), biases[p])[o] != (real)safetensor_value(bias, p * C + o);
            for (i64 k = 0; k < C; k++)
                bad += param_of(&m.z, block_attention(1), roles[p])[o * C + k] !=
                       (real)safetensor_value(qkv, k * 3 * C + p * C + o);
        }
    for (i64 f = 0; f < F; f++)
        for (i64 k = 0; k < C; k++) {
            bad += param_of(&m.z, block_mlp(1), T_UP)[f * C + k] != (real)safetensor_value(fc, k * F + f);
            bad += param_of(&m.z, block_mlp(1), T_DOWN)[k * F + f] != (real)safetensor_value(proj, f * C + k);
        }
    check(bad == 0, "%s: our (out, in) q, k, v, up, down against the file's (in, out), by hand: %lld differ",
          strrchr(dir, '/'), bad);
    safetensors_close(&s);
    model_close(&m, 1);
}

/* As the hub has GPT-2: no `transformer.`, masks among the weights, the head once more. */
static void write_hub_gpt2(const char *dir) {
    SafetensorSet s;
    SafetensorWriter w;
    SafetensorPlan plan[64];
    safetensors_open(&s, in(fixtures, "gpt2-tied/model.safetensors"));
    memset(plan, 0, sizeof plan);
    for (int i = 0; i < s.tensors; i++) {
        const Safetensor *t = &s.tensor[i];
        plan[i].name = t->name + strlen("transformer."), plan[i].type = t->type, plan[i].dims = t->dims;
        memcpy(plan[i].shape, t->shape, sizeof t->shape);
    }
    int n = s.tensors;
    plan[n].name = "h.0.attn.bias", plan[n].type = ST_BOOL, plan[n].dims = 4;
    plan[n].shape[0] = plan[n].shape[1] = 1, plan[n].shape[2] = plan[n].shape[3] = 32;
    plan[n + 1].name = "h.0.attn.masked_bias", plan[n + 1].type = ST_F32; /* a scalar */
    safetensors_create(&w, anew(in(dir, "model.safetensors")), plan, n + 2);
    char mask[1024 + 4];
    memset(mask, 1, sizeof mask);
    for (int i = 0; i < n; i++) safetensors_append(&w, s.tensor[i].data, s.tensor[i].bytes);
    safetensors_append(&w, mask, sizeof mask);
    safetensors_finish(&w);
    safetensors_close(&s);
}

static void test_initialise(void) {
    for (int i = 0; i < 3; i++) {
        const Config *c = &CONFIGS[i].want;
        for (int k = 0; k < COUNT_OF(MESHES); k++) {
            Whole w;
            whole_make(&w, c, &MESHES[k], NULL, 42);
            i64 bad = 0;
            for (int t = 0; t < w.tensors; t++) {
                const HfPlace *p = &w.list[t].place;
                uint64_t key = tensor_key(42, w.list[t].name);
                for (i64 e = 0; e < p->shape[0] * (p->dims == 2 ? p->shape[1] : 1); e++)
                    bad += w.times[t][e] != 1 || w.value[t][e] != (double)initial_value(w.list[t].spec, c, key, e);
            }
            check(bad == 0, "initial weights of %s on %s: %lld differ from the definition", CONFIGS[i].dir,
                  MESHES[k].name, bad);
            whole_close(&w);
        }
    }
}

/* ---- write: on real meshes --------------------------------------------------------------------------------------- */

/* Fixture -> memory -> directory: the same bits, the same config. `rank` of the world speaks for all. */
static void test_roundtrip(Wire world, const ConfigCase *k, const char *name) {
    int rank = wire_rank(world);
    i64 ranks = wire_size(world);
    MeshShape shape = {ranks, 1, ranks, 1};
    char out[PATH_MAX];
    snprintf(out, sizeof out, "%s", in(temp, name));
    Model m;
    model_open(&m, &k->want, shape, rank, splits_none, world, 0);
    checkpoint_load(&m.z, in(fixtures, k->dir), rank);
    checkpoint_write(&m.z, world, ours(out));
    model_close(&m, 0);
    SafetensorSet a, b;
    safetensors_open(&a, in(in(fixtures, k->dir), "model.safetensors"));
    safetensors_open_dir(&b, out);
    int bad = 0;
    for (int i = 0; i < a.tensors; i++) {
        const Safetensor *x = &a.tensor[i], *y = safetensors_find(&b, x->name);
        bad += !y || x->type != y->type || x->dims != y->dims || memcmp(x->shape, y->shape, sizeof x->shape) != 0 ||
               memcmp(x->data, y->data, (size_t)x->bytes) != 0;
    }
    check(bad == 0 && a.tensors == b.tensors,
          "%s read and written, %d at once: %d of %d tensors are not bit for bit the file's", k->dir, (int)ranks, bad,
          a.tensors);
    uint64_t header;
    memcpy(&header, b.file[0].map.bytes, 8);
    check(header % 8 == 0, "%s: its header of %llu bytes keeps the data aligned", k->dir, (unsigned long long)header);
    safetensors_close(&a);
    safetensors_close(&b);
    Config c;
    checkpoint_read_config(&c, out);
    check(same_config(&c, &k->want), "%s: the config.json we wrote reads back the same", k->dir);
    wire_barrier(world);
}

/* Every mesh that this world can be writes, byte for byte, what rank 0 alone writes; weights
   in F32, gradients in F64 too. */
static void test_same_bytes(Wire world, const Config *c, const char *name) {
    int rank = wire_rank(world), ranks = wire_size(world);
    char one[PATH_MAX], many[PATH_MAX];
    snprintf(one, sizeof one, "%s", in(temp, "one.safetensors"));
    snprintf(many, sizeof many, "%s", in(temp, "many.safetensors"));
    for (int type = ST_F32; type <= ST_F64; type++) {
        if (rank == 0) {
            Model m;
            model_open(&m, c, MESHES[0].shape, 0, splits_none, MPI_COMM_SELF, 0);
            zero_initialise(&m.z, 7);
            checkpoint_write_tensors(&m.z, MPI_COMM_SELF, anew(one), m.z.master, (SafetensorType)type);
            model_close(&m, 0);
        }
        for (int k = 0; k < COUNT_OF(MESHES); k++) {
            if (MESHES[k].shape.world != ranks) continue;
            Model m;
            model_open(&m, c, MESHES[k].shape, rank, MESHES[k].splits, world, 0);
            zero_initialise(&m.z, 7);
            for (i64 i = 0; i < m.z.flat; i++) m.z.grad[i] = m.z.master[i];
            checkpoint_write_tensors(&m.z, world, rank == 0 ? anew(many) : many, type == ST_F32 ? m.z.master : m.z.grad,
                                     (SafetensorType)type);
            model_close(&m, 0);
            check(same_files(one, many), "%s, %s on %s: the file is byte for byte what one rank writes", name,
                  SAFETENSOR_TYPES[type].name, MESHES[k].name);
            wire_barrier(world);
        }
    }
}

int main(int argc, char **argv) {
    if (argc > 1) fixtures = argv[1];
    const char *place = getenv("TMPDIR"), *ranks = getenv("OMPI_COMM_WORLD_SIZE");
    snprintf(temp, sizeof temp, "%s/odysseus-checkpoint-XXXXXX", place ? place : "/tmp");
    if (!ranks) { /* forks come before MPI, and mpirun does not like children that start it */
        if (!mkdtemp(temp)) FAIL(EVERYONE, "%s: cannot create the test's directory", temp);
        test_formats();
        test_configs();
        test_good_configs();
        test_bad_configs();
        test_bad_files();
        test_mutations();
        test_bad_index();
        test_wrong_files();
        test_wrong_directories();
        test_bad_weights();
        test_bad_writes();
        test_load_fixtures();
        test_gpt2_layout(in(fixtures, "gpt2-tied"));
        char hub[PATH_MAX];
        snprintf(hub, sizeof hub, "%s", fresh_dir("hub"));
        write_hub_gpt2(hub);
        test_gpt2_layout(hub);
        test_names();
        test_initialise();
    }
    Wire world = wire_start_mpi(&argc, &argv);
    checks()->silent = wire_rank(world) != 0;
    if (ranks && wire_rank(world) == 0 && !mkdtemp(temp))
        FAIL(THIS_RANK, "%s: cannot create the test's directory", temp);
    MPI_Bcast(temp, sizeof temp, MPI_CHAR, 0, world);
    test_roundtrip(world, &CONFIGS[0], "out-gpt2");
    test_roundtrip(world, &CONFIGS[1], "out-llama");
    test_roundtrip(world, &CONFIGS[2], "out-tied");
    test_roundtrip(world, &CONFIGS[6], "out-llama3");
    for (int i = 0; i < 3; i++) test_same_bytes(world, &CONFIGS[i].want, CONFIGS[i].dir);
    wire_barrier(world);
    if (wire_rank(world) == 0 && !getenv("KEEP")) nftw(temp, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    int failed = checks_done();
    wire_finish();
    return failed;
}

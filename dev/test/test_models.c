/* test_models.c - the config.json of public models, shrunk, against transformers:
   fixtures/models.json (make_models.py).

   Each either trains, with the loss and the gradient of transformers to 1e-10, under fields that no one has
   cleaned up for us, and stands in a checkpoint's config.json as it was read; or is refused by a line that names
   the field. Weights are a function of a tensor's name and a place in it, the same here and there. fp64 alone:
   gradients are compared by two sums. */
#include "support.h"

enum { SEQUENCES = 2 };

static char path_of_config[512];

static void write_config(const cJSON *config) {
    char *text = cJSON_Print(config);
    FILE *f = fopen(path_of_config, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) FAIL(THIS_RANK, "cannot write %s", path_of_config);
    cJSON_free(text);
}

static i64 tokens_of(const cJSON *model) { return (i64)cJSON_GetObjectItem(model, "tokens")->valuedouble; }

/* The options of a run on one rank; `directory` holds config.json. */
static ModelOptions options_of(const char *directory, i64 L) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    checkpoint_read_config(&o.config, directory);
    o.scheme = SCHEMES[0], o.shape.world = o.shape.dp = o.shape.ring = o.shape.head = 1;
    o.L = L, o.B = o.batch = SEQUENCES, o.overlap = 1, o.place = device_place(0, 1, 1);
    return o;
}

static i64 tried_length;

static void try_options(const char *directory) {
    ModelOptions o = options_of(directory, tried_length);
    options_check(&o);
}

static void refused(const cJSON *model, const char *directory) {
    const char *name = cJSON_GetObjectItem(model, "name")->valuestring;
    const char *why = cJSON_GetObjectItem(model, "refused")->valuestring;
    char text[2048];
    tried_length = tokens_of(model);
    int status = run_child(try_options, directory, text, sizeof text),
        good = is_one_error(status, text) && strstr(text, why);
    text[strcspn(text, "\n")] = 0;
    check(good, "%s is refused, naming %s: %s", name, why, text);
}

/* A number in (-1, 1) of a place in a tensor whose key it is. */
static double uniform(uint64_t key, i64 index) {
    return ((double)(mix64(key + (uint64_t)index) >> 11) + 0.5) * 0x1p-52 - 1;
}

typedef struct {
    const Config *config;
    real *weight; /* to be filled, or */
    const accum *gradient;
    double squares, dot;
} Visit;

static void visit_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    Visit *v = (Visit *)context;
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    HfPlace p = tensor_hf_place(t->spec, v->config);
    uint64_t weights = tensor_key(1, name), other = tensor_key(2, name);
    double scale = t->spec->cols == SIZE_1 ? 0.3 : t->spec->role == T_WTE ? 0.8 : 0.4;
    for (i64 j = 0; j < n; j++) {
        i64 index = p.base + row * p.row_step + (col + j) * p.col_step;
        if (v->weight) {
            v->weight[at + j] = (real)(scale * uniform(weights, index) + (t->spec->init == INIT_ONE));
        } else {
            double g = (double)v->gradient[at + j];
            v->squares += g * g, v->dot += g * uniform(other, index);
        }
    }
}

static void visit(Visit *v, const Zero *z) {
    for (int i = 0; i < z->tensors; i++) tensor_owned(z, &z->tensor[i], visit_run, v);
}

static double expected(const cJSON *model, const char *key) { return cJSON_GetObjectItem(model, key)->valuedouble; }

static void trained(const cJSON *model, const char *directory, Wire world) {
    const char *name = cJSON_GetObjectItem(model, "name")->valuestring;
    ModelOptions o = options_of(directory, tokens_of(model));
    char data[600], written[600], *as_read = checkpoint_config_text(&o.config);
    int32_t *tokens = (int32_t *)host_alloc(sizeof(int32_t) * (size_t)(o.L + 1));
    Settings s;
    FlagsGiven given;
    flags_parse(&s, &given, 0, NULL);
    for (i64 b = 0; b < SEQUENCES; b++) {
        for (i64 i = 0; i <= o.L; i++)
            tokens[i] = (int32_t)(mix64((uint64_t)(b * (o.L + 1) + i) + 99) % (uint64_t)o.config.vocab);
        snprintf(data, sizeof data, "%s/tokens_%lld.bin", directory, b);
        write_shard(data, tokens, o.L + 1);
    }
    free(tokens);
    snprintf(data, sizeof data, "%s/tokens_*.bin", directory);
    s.train = data, s.model = "tiny-llama"; /* any preset: weights follow */
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, world);
    Zero *z = &t->model.zero;
    Visit v = {&o.config, z->param, NULL, 0, 0};
    double loss, norm;
    visit(&v, z);
    step_gradients(t, 0, &loss, &norm);
    v.weight = NULL, v.gradient = z->grad;
    visit(&v, z);
    double off = fabs(loss / expected(model, "loss") - 1),
           norm_off = fabs(sqrt(v.squares) / expected(model, "grad_norm") - 1);
    double dot_off = fabs(v.dot - expected(model, "grad_dot")) / expected(model, "grad_norm");
    check(off <= 1e-10 && norm_off <= 1e-10 && dot_off <= 1e-10,
          "%s: loss %.6f, off by %.1e; gradient by %.1e and %.1e", name, loss, off, norm_off, dot_off);
    trainer_stop(t);
    free(t);

    Config again;
    snprintf(written, sizeof written, "%s/config.json", directory);
    unlink(written);
    checkpoint_write_config(&o.config, written);
    checkpoint_read_config(&again, directory);
    char *as_written = checkpoint_config_text(&again);
    check(strcmp(as_read, as_written) == 0, "%s: what was read is written, and read again the same", name);
    cJSON_free(as_read);
    cJSON_free(as_written);
}

/* Presets hold as many parameters as the models that they are named for. */
static void check_presets(void) {
    static const struct {
        const char *name;
        i64 parameters;
    } known[] = {{"gpt2-124m", 124439808}, {"1558m", 1557611200}, {"llama2-7b", 6738415616}, {"llama3-8b", 8030261248},
                 {"llama3.2-1b", 1235814400}, {"qwen2.5-0.5b", 494032768}, {"qwen2.5-1.5b", 1543714304},
                 {"qwen2.5-7b", 7615616512}, {"qwen3-0.6b", 596049920}, {"qwen3-8b", 8190735360},
                 {"mistral-7b", 7248023552}, {"smollm3-3b", 3075098624}};
    for (int i = 0; i < COUNT_OF(known); i++) {
        Config c = preset_find(known[i].name)->config;
        config_check(&c, known[i].name);
        i64 n = config_parameters(&c);
        check(n == known[i].parameters, "%s has %lld parameters", known[i].name, n);
    }
}

int main(int argc, char **argv) {
    const char *file = argc > 1 ? argv[1] : "dev/test/fixtures/models.json";
    char directory[] = "/tmp/odysseus_models_XXXXXX", command[64];
    if (!mkdtemp(directory)) FAIL(THIS_RANK, "cannot make %s", directory);
    snprintf(path_of_config, sizeof path_of_config, "%s/config.json", directory);
    FileMap m = file_map(file);
    cJSON *models = cJSON_ParseWithLength((const char *)m.bytes, (size_t)m.size);
    if (!cJSON_IsArray(models)) FAIL(THIS_RANK, "%s is not a list", file);
    check_presets();
    for (const cJSON *model = models->child; model; model = model->next) /* children first: they must know of no MPI */
        if (cJSON_GetObjectItem(model, "refused"))
            write_config(cJSON_GetObjectItem(model, "config")), refused(model, directory);
    Wire world = wire_start_mpi(&argc, &argv);
    for (const cJSON *model = models->child; model; model = model->next)
        if (!cJSON_GetObjectItem(model, "refused"))
            write_config(cJSON_GetObjectItem(model, "config")), trained(model, directory, world);
    cJSON_Delete(models);
    file_unmap(&m);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    if (system(command) != 0) printf("# could not remove %s\n", directory);
    int code = checks_done();
    wire_finish();
    return code;
}

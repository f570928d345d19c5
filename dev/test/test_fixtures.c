/* test_fixtures.c - the model against PyTorch: Hugging Face's GPT-2 and Llama, from fixtures/ (made by
   make_fixtures.py). test_fixtures logits DIR: only the logits of the model in DIR (transformers_check.py).

   Each directory is a real Hugging Face checkpoint plus what PyTorch computed from it in float64: logits, loss, every
   gradient, and weights after ten AdamW steps with warmup, cosine, decay and clipping. Run on any number of ranks
   that divide 4 heads and 12 tokens.

   Bounds: fp64 1e-10 of each tensor's largest element (both sides round at 1e-16; ten Adam steps magnify the key
   bias's gradient, which is zero but for rounding, to some 4e-11). fp32: 1e-5 for logits and loss, 1e-4 for
   gradients; after ten steps 1e-3, since Adam divides small gradients by their own size; the key biases are left out
   there, their exact gradient is zero. */
#include "support.h"

static const char *fixtures = "dev/test/fixtures";

static double *expected_values(const SafetensorSet *set, const char *prefix, const char *name, i64 n) {
    char full[256];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const Safetensor *t = safetensors_find(set, full);
    if (!t || t->elements != n) FAIL(THIS_RANK, "fixture without %s of %lld elements", full, n);
    double *out = (double *)host_alloc(sizeof(double) * (size_t)n);
    for (i64 i = 0; i < n; i++) out[i] = safetensor_value(t, i);
    return out;
}

static double expected_scalar(const SafetensorSet *set, const char *name, i64 index) {
    const Safetensor *t = safetensors_find(set, name);
    if (!t || index >= t->elements) FAIL(THIS_RANK, "fixture without %s", name);
    return safetensor_value(t, index);
}

/* The fixture's sequences as shards of one sequence each, so that they need not share tokens. Returns L. */
static i64 write_fixture_shards(const SafetensorSet *set, const char *directory) {
    const Safetensor *tokens = safetensors_find(set, "tokens");
    if (!tokens || tokens->dims != 2) FAIL(THIS_RANK, "fixture without tokens");
    i64 n = tokens->shape[1];
    int32_t *row = (int32_t *)host_alloc(sizeof(int32_t) * (size_t)n);
    for (i64 b = 0; b < tokens->shape[0]; b++) {
        char path[512];
        for (i64 t = 0; t < n; t++) row[t] = (int32_t)safetensor_value(tokens, b * n + t);
        snprintf(path, sizeof path, "%s/tokens_%lld.bin", directory, b);
        write_shard(path, row, n);
    }
    free(row);
    return n - 1;
}

/* Largest distance of this rank's logits from PyTorch's, relative to the largest logit. */
static double logits_distance(Trainer *t, const SafetensorSet *set) {
    Model *m = &t->model;
    i64 rows = own_rows(m), C = m->config.dim, V = m->config.vocab, own = m->own_first * m->B * C;
    double *expected = expected_values(set, "", "logits", m->B * m->L * V), largest = 0, result = 0;
    real *logits = (real *)host_alloc(sizeof(real) * (size_t)(rows * V)),
         *xn = (real *)host_alloc(sizeof(real) * (size_t)(rows * C));
    real *delta = (real *)host_alloc(sizeof(real) * (size_t)(stream_rows(m) * C));
    accum *mean = (accum *)host_alloc(sizeof(accum) * (size_t)rows),
          *rstd = (accum *)host_alloc(sizeof(accum) * (size_t)rows);
    const real *a;
    load_micro_batch(t, &t->train, 0, 0, -1);
    zero_walk(&m->zero, m->order, block_lm_head(&m->config) + 1);
    layers_forward(m, &a, delta);
    zero_acquire(&m->zero, block_lm_head(&m->config));
    real **w = m->zero.weight;
    norm_forward(&m->dev, block_norm(m, rows), xn, delta + own, mean, rstd, a + own, delta + own);
    linear_forward(&m->dev, logits, V, xn, w[T_LM_HEAD], NULL, rows, C, V);
    for (i64 i = 0; i < m->B * m->L * V; i++) largest = fmax(largest, fabs(expected[i]));
    for (i64 row = 0; row < rows; row++)
        for (i64 v = 0; v < V; v++) {
            i64 b = row % m->B, position = token_position(&m->own_map, row / m->B);
            result =
                fmax(result, fabs((double)logits[row * V + v] - expected[(b * m->L + position) * V + v]) / largest);
        }
    free(expected);
    free(logits);
    free(xn);
    free(delta);
    free(mean);
    free(rstd);
    MPI_Allreduce(MPI_IN_PLACE, &result, 1, MPI_DOUBLE, MPI_MAX, m->mesh.world.wire);
    return result;
}

/* The distance of `flat` from the fixture's tensors called prefix + HF name; tensors whose name
   holds `leave_out` do not count. */
static double fixture_distance(Trainer *t, const SafetensorSet *set, const char *prefix, const char *leave_out,
                               const accum *flat, char worst[HF_NAME_MAX]) {
    Model *m = &t->model;
    Logical l;
    logical_init(&l, &m->zero);
    double *diff = (double *)host_alloc(sizeof(double) * 2 * (size_t)l.n), result = 0;
    for (int i = 0; i < l.n; i++) {
        double *values = expected_values(set, prefix, l.list[i].name, l.size[i]);
        memcpy(l.value + l.at[i], values, sizeof(double) * (size_t)l.size[i]);
        free(values);
    }
    LogicalVisit v = {&l, &m->zero, flat, diff, diff + l.n};
    for (int i = 0; i < m->zero.tensors; i++) tensor_owned(&m->zero, &m->zero.tensor[i], logical_compare_run, &v);
    for (int i = 0; i < l.n; i++) {
        double size = 0;
        for (i64 j = 0; j < l.size[i]; j++) size = fmax(size, fabs(l.value[l.at[i] + j]));
        if (strstr(l.list[i].name, leave_out) || diff[i] / size <= result) continue;
        result = diff[i] / size, snprintf(worst, HF_NAME_MAX, "%s", l.list[i].name);
    }
    MPI_Allreduce(MPI_IN_PLACE, &result, 1, MPI_DOUBLE, MPI_MAX, m->mesh.world.wire);
    free(diff);
    logical_free(&l);
    return result;
}

/* A model's directory that holds nothing but tokens and logits besides
   (transformers_check.py): the same logits, to 1e-4. */
static void run_logits(const char *directory, Wire world) {
    char path[PATH_MAX], shards[256], glob[512], L[32];
    SafetensorSet set;
    path_join(path, directory, "expected.safetensors");
    safetensors_open(&set, path);
    test_directory(shards, "logits", world);
    snprintf(glob, sizeof glob, "%s/tokens_*.bin", shards);
    snprintf(L, sizeof L, "%lld", write_fixture_shards(&set, shards));
    const char *argv[] = {"test", "--model", directory, "--train", glob, "--seq-len", L, "--batch", "2",
                          "--micro-batch", "2"};
    Settings s;
    FlagsGiven given;
    ModelOptions o;
    flags_parse(&s, &given, COUNT_OF(argv), (char **)(uintptr_t)argv);
    const Scheme *scheme = scheme_find(s.sp);
    options_from_flags(&o, scheme, context_find(s.context, scheme), &s, &given, 1, device_place(0, 1, 1));
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, world);
    double logits = logits_distance(t, &set);
    check(logits <= 1e-4, "%s: logits %.1e", directory, logits);
    trainer_stop(t);
    free(t);
    safetensors_close(&set);
    test_remove(shards, world);
}

static void run_fixture(const char *name, Wire world) {
    int fine = sizeof(real) == 8, ranks = wire_size(world);
    char directory[256], model[300], path[512], glob[512], worst[HF_NAME_MAX] = "";
    snprintf(model, sizeof model, "%s/%s", fixtures, name);
    snprintf(path, sizeof path, "%s/expected.safetensors", model);
    SafetensorSet set;
    safetensors_open(&set, path);
    test_directory(directory, "fixtures", world);
    snprintf(glob, sizeof glob, "%s/tokens_*.bin", directory);
    if (wire_rank(world) == 0) write_fixture_shards(&set, directory);
    wire_barrier(world);
    char L[32];
    snprintf(L, sizeof L, "%lld", safetensors_find(&set, "tokens")->shape[1] - 1);
    const char *argv[] = {"test", "--model", model, "--train", glob, "--seq-len", L, "--batch", "2", "--micro-batch",
                          "2", "--steps", "10", "--lr", "1e-2", "--min-lr", "1e-3", "--warmup", "3", "--sp",
                          "odysseus"};
    Settings s;
    FlagsGiven given;
    flags_parse(&s, &given, COUNT_OF(argv), (char **)argv);
    ModelOptions o;
    const Scheme *scheme = scheme_find(s.sp);
    options_from_flags(&o, scheme, context_find(s.context, scheme), &s, &given, ranks, device_place(0, 1, 1));
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, world);
    double logits = logits_distance(t, &set), losses = 0, norms = 0, rates = 0;
    check(logits <= (fine ? 1e-10 : 1e-5), "%s on %d ranks: logits %.1e", name, ranks, logits);
    for (int step = 0; step < 10; step++) {
        double loss, norm;
        step_gradients(t, step, &loss, &norm);
        if (step == 0) {
            double gradients = fixture_distance(t, &set, "grad.", "(none)", t->model.zero.grad, worst);
            check(fabs(loss / expected_scalar(&set, "loss", 0) - 1) <= (fine ? 1e-10 : 1e-5),
                  "%s on %d ranks: loss %.15g", name, ranks, loss);
            check(gradients <= (fine ? 1e-10 : 1e-4), "%s on %d ranks: gradients %.1e (%s)", name, ranks, gradients,
                  worst);
        }
        losses = fmax(losses, fabs(loss / expected_scalar(&set, "losses", step) - 1));
        norms = fmax(norms, fabs(norm / expected_scalar(&set, "grad_norms", step) - 1));
        rates = fmax(rates, fabs(learning_rate(&s, step) / expected_scalar(&set, "lrs", step) - 1));
        step_update(t, step, norm);
    }
    double weights =
        fixture_distance(t, &set, "param10.", fine ? "(none)" : "c_attn.bias", t->model.zero.master, worst);
    check(rates <= 1e-12, "%s on %d ranks: learning rates %.1e", name, ranks, rates);
    check(losses <= (fine ? 1e-9 : 1e-3) && norms <= (fine ? 1e-9 : 1e-2),
          "%s on %d ranks: ten losses %.1e, norms %.1e", name, ranks, losses, norms);
    check(weights <= (fine ? 1e-10 : 1e-3), "%s on %d ranks: weights after ten steps %.1e (%s)", name, ranks, weights,
          worst);
    trainer_stop(t);
    free(t);
    safetensors_close(&set);
    test_remove(directory, world);
}

int main(int argc, char **argv) {
    const char *names[] = {"gpt2-tied",    "llama-mha", "llama-gqa",  "llama3-rope",
                           "llama-biases", "qwen2",     "qwen3-yarn", "mistral-dynamic", "smollm3-longrope"};
    Wire world = wire_start_mpi(&argc, &argv);
    if (argc == 2) fixtures = argv[1];
    checks()->silent = wire_rank(world) != 0;
    if (argc == 3) run_logits(argv[2], world);
    for (int i = 0; i < COUNT_OF(names) && argc < 3; i++) run_fixture(names[i], world);
    int code = checks_done();
    wire_finish();
    return code;
}

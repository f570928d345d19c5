/* test_gradients.c - hand-written backward against finite differences of the loss: whole model, every tensor.

   (8 (loss(w+h) - loss(w-h)) - (loss(w+2h) - loss(w-2h))) / 12h for a few elements of every tensor, the one with the
   largest gradient and some at random. With h = 1e-4 in fp64 it errs by h^4/30 of the fifth derivative (up to 1e-8 of
   these gradients, weights being steep here) and by rounding, 1e-15 loss / h (1e-11): 1e-7 of the tensor's largest
   gradient is above both and far below any wrong term. fp64 only: floats cannot resolve such differences. */
#include "support.h"

static double loss_now(Trainer *t, double targets) {
    Model *m = &t->model;
    zero_fill(&m->dev, m->sums, sizeof(double));
    load_micro_batch(t, &t->train, 0, 0, -1);
    model_walk(m, 0);
    return m->sums[0] / targets;
}

static double slope(Trainer *t, real *weight, double targets) {
    const double h = 1e-4, at[4] = {1, -1, 2, -2}, factor[4] = {8, -8, -1, 1};
    real keep = *weight;
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        *weight = (real)((double)keep + at[i] * h);
        sum += factor[i] * loss_now(t, targets);
    }
    *weight = keep;
    return sum / (12 * h);
}

static void check_model(const char *name, Config c, const char *directory, Wire world, int recompute) {
    Settings s;
    FlagsGiven given;
    char *argv[1] = {NULL}, path[512], text[HF_NAME_MAX];
    flags_parse(&s, &given, 0, argv);
    snprintf(path, sizeof path, "%s/data.bin", directory);
    s.train = path, s.ignore_token = 3;
    ModelOptions o;
    memset(&o, 0, sizeof o);
    config_check(&c, "test");
    o.config = c, o.scheme = SCHEMES[0], o.shape.world = o.shape.dp = o.shape.ring = o.shape.head = 1;
    o.L = 11, o.B = o.batch = 2, o.place = device_place(0, 1, 1), o.overlap = 1, o.recompute = recompute;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, world);
    Zero *z = &t->model.zero;
    /* away from zeros and ones */
    for (i64 i = 0; i < z->flat; i++) z->param[i] = (real)((double)z->param[i] + 0.2 * random_normal(5, i));
    double loss, norm;
    step_gradients(t, 0, &loss, &norm);
    double targets = (double)load_micro_batch(t, &t->train, 0, 0, -1);
    check(fabs(loss_now(t, targets) / loss - 1) < 1e-12 && targets < 22, "%s: loss %.6f over %.0f targets", name, loss,
          targets);
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *tensor = &z->tensor[i];
        i64 n = tensor->slice.rows * tensor->slice.cols, at = z->chunk[tensor->chunk].offset + tensor->offset,
            largest = 0;
        double size = 0, off = 0;
        for (i64 k = 0; k < n; k++)
            if (fabs((double)z->grad[at + k]) > size) size = fabs((double)z->grad[at + k]), largest = k;
        /* its gradient is exactly zero: softmax does not see a shift of all keys */
        if (tensor->spec->role == T_K_BIAS) size = 1;
        for (int probe = 0; probe < 4; probe++) {
            i64 k = probe == 0 ? largest : (i64)(mix64((uint64_t)(i * 7 + probe)) % (uint64_t)n);
            off = fmax(off, fabs(slope(t, &z->param[at + k], targets) - (double)z->grad[at + k]) / size);
        }
        tensor_hf_name(text, tensor->spec, tensor->layer);
        check(off < 1e-7 && size > 0, "%s: %s differs from finite differences by %.1e", name, text, off);
    }
    trainer_stop(t);
    free(t);
}

int main(int argc, char **argv) {
    Wire world = wire_start_mpi(&argc, &argv);
    char directory[256], path[512];
    test_directory(directory, "gradients", world);
    int32_t tokens[23];
    for (int i = 0; i < COUNT_OF(tokens); i++) tokens[i] = i % 5 == 2 ? 3 : (int32_t)(mix64((uint64_t)i) % 17);
    snprintf(path, sizeof path, "%s/data.bin", directory);
    write_shard(path, tokens, COUNT_OF(tokens));
    Config gpt2 = CONFIG(ARCH_GPT2, 2, 12, 3, 3, 0, 20, 17, 16, 1, 1e-5, 0);
    Config llama = CONFIG(ARCH_LLAMA, 2, 16, 4, 2, 0, 20, 17, 16, 0, 1e-5, 100);
    Config tied = CONFIG(ARCH_LLAMA, 1, 16, 4, 1, 0, 20, 17, 16, 1, 1e-5, 100);
    Config qwen3 = CONFIG(ARCH_QWEN3, 2, 12, 4, 2, 6, 20, 17, 16, 0, 1e-5, 100);
    Config smollm3 = CONFIG(ARCH_SMOLLM3, 2, 16, 4, 1, 0, 20, 17, 16, 1, 1e-5, 100);
    RopeScaling *yarn = &smollm3.rope_scaling;
    qwen3.has |= HAS_QKV_BIAS | HAS_O_BIAS, smollm3.has |= HAS_MLP_BIAS | HAS_QKV_BIAS;
    layer_add(&smollm3.no_rope, 1);
    yarn->kind = ROPE_YARN, yarn->factor = 4, yarn->original_max_pos = 8, yarn->beta_fast = 2, yarn->beta_slow = 0.5;
    check_model("gpt2", gpt2, directory, world, 0);
    check_model("gpt2 recompute", gpt2, directory, world, 1);
    check_model("llama", llama, directory, world, 0);
    check_model("llama tied", tied, directory, world, 1);
    check_model("qwen3 with biases", qwen3, directory, world, 0);
    check_model("qwen3 recompute", qwen3, directory, world, 1);
    check_model("smollm3 with biases, yarn", smollm3, directory, world, 0);
    test_remove(directory, world);
    int code = checks_done();
    wire_finish();
    return code;
}

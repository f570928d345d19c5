/* test_sample.c - the cache: token by token, behind a prompt, the model must say what its whole forward says; on every
   mesh of the world's ranks, under every scheme. And the draw: greedy, temperature, top-p against counts. */
#include "support.h"

enum { LENGTH = 48, PROMPT = 13 };

static Config sample_config(int model) {
    Config gpt2 = CONFIG(ARCH_GPT2, 2, 48, 8, 8, 0, 72, 256, 96, 1, 1e-5, 0);
    Config llama = CONFIG(ARCH_LLAMA, 2, 48, 8, model == 1 ? 4 : 1, 0, 72, 256, 96, 0, 1e-5, 10000);
    /* all that a token alone must not forget: norms of heads, their width, layers that do not rotate */
    if (model == 2) {
        llama.head_dim = 10, llama.has |= HAS_QK_NORM | HAS_QKV_BIAS | HAS_O_BIAS;
        layer_add(&llama.no_rope, 0);
        llama.rope_scaling.kind = ROPE_YARN, llama.rope_scaling.factor = 4, llama.rope_scaling.original_max_pos = 24;
        llama.rope_scaling.beta_fast = 8, llama.rope_scaling.beta_slow = 0.5;
    }
    if (model >= 3) { /* windows in one layer; and both learn what documents are */
        llama.arch = ARCH_MISTRAL, llama.window = 7;
        layer_add(&llama.windowed, 1);
    }
    if (model == 4) return gpt2.head_dim = 6, gpt2;
    config_check(model ? &llama : &gpt2, "test");
    return model ? llama : gpt2;
}

/* The sum of losses of tokens PROMPT .. LENGTH-1, by the whole forward. */
static double whole_loss(Trainer *t, const int32_t *tokens) {
    Model *m = &t->model;
    int32_t *host = m->host_tokens, *targets = host + stream_rows(m);
    for (i64 b = 0; b < m->B; b++) {
        for (i64 i = 0; i < m->T_stream; i++) host[i * m->B + b] = tokens[token_position(&m->stream_map, i)];
        if (m->documents) documents_find(m->whole, tokens, LENGTH, m->eot), sight_sequence(m, b, m->whole);
        for (i64 i = 0, p; i < m->T_own; i++) {
            p = token_position(&m->own_map, i);
            int counts = b == 0 && m->mesh.dp_rank == 0 && p >= PROMPT - 1 && p < LENGTH - 1;
            targets[i * m->B + b] = counts ? tokens[p + 1] : TOKEN_IGNORED;
        }
    }
    if (m->documents) sight_send(m);
    copy_in(&m->dev, m->tokens, host, stream_rows(m) * 4);
    copy_in(&m->dev, m->targets, targets, own_rows(m) * 4);
    zero_fill(&m->dev, m->sums, sizeof(double));
    model_walk(m, 0);
    double sum;
    copy_out(&m->dev, &sum, m->sums, sizeof sum);
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), &sum, 1);
    return sum;
}

/* The same through the cache. */
static double cached_loss(Trainer *t, const int32_t *tokens) {
    Model *m = &t->model;
    real logits[256];
    double sum = 0;
    i64 start = 0;
    sample_prefill(m, model_prefill, tokens, PROMPT);
    for (i64 p = PROMPT - 1; p < LENGTH - 1; p++) {
        double all = 0;
        for (i64 i = start; m->documents && i < p; i++)
            if (tokens[i] == m->eot) start = i + 1;
        decode_token(m, tokens[p], p, start, logits);
        for (int i = 0; i < 256; i++) all += exp((double)logits[i]);
        sum += log(all) - (double)logits[tokens[p + 1]];
    }
    return sum;
}

static void run_mesh(int model, const Scheme *scheme, i64 dp, i64 ring, i64 head, RingLayout layout, int recompute,
                     Wire world,
                     const char *shard) {
    char why[1024];
    ModelOptions o;
    Settings s;
    FlagsGiven given;
    memset(&o, 0, sizeof o);
    flags_parse(&s, &given, 0, NULL);
    s.train = shard, s.sample_tokens = 20, s.temperature = 0;
    o.config = sample_config(model), o.scheme = scheme, o.layout = layout;
    o.shape.world = dp * ring * head, o.shape.dp = dp, o.shape.ring = ring, o.shape.head = head;
    o.L = LENGTH, o.B = 1 + model % 2, o.batch = o.B * dp, o.recompute = recompute, o.overlap = 1, o.samples = 1;
    o.place = device_place(0, 1, 1);
    o.documents = model >= 3, o.restart = model == 4, o.eot = model >= 3 ? (i64)(mix64(5) % 256) : -1;
    if (options_refuse(&o, why, sizeof why)) return;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    int32_t tokens[LENGTH], text[PROMPT + 20];
    static int32_t first[5][PROMPT + 20];
    static int made[5];
    trainer_start(t, &o, &s, world);
    for (int i = 0; i < LENGTH; i++) tokens[i] = (int32_t)(mix64((uint64_t)i) % 256);
    if (model >= 3) tokens[20] = tokens[21] = tokens[33] = tokens[5]; /* ends of documents in prompt and text */
    memcpy(text, tokens, PROMPT * 4);
    double whole = whole_loss(t, tokens), cached = cached_loss(t, tokens), off = fabs(cached / whole - 1);
    sample_continue(&t->model, model_prefill, &s, 0, text, PROMPT);
    if (!made[model]++) memcpy(first[model], text, sizeof text);
    const char *const names[] = {"gpt2", "llama, 4 KV heads", "llama, 1 KV head", "mistral, window and documents",
                                 "gpt2, documents"}, *name = names[model];
    check(off <= (sizeof(real) == 8 ? 1e-12 : 1e-5),
          "%s %s dp %lld ring %lld layout %d head %lld%s: loss through the cache %.1e off", name, scheme->name,
          dp, ring, (int)layout, head, recompute ? " recompute" : "", off);
    if (sizeof(real) == 8)
        check(memcmp(first[model], text, sizeof text) == 0, "the same 20 tokens as under every other scheme");
    check(t->model.arena.now.used <= t->model.arena.committed, "memory as planned");
    trainer_stop(t);
    free(t);
}

static void check_draws(void) {
    real logits[4] = {(real)log(0.5), (real)log(0.3), (real)log(0.15), (real)log(0.05)};
    int seen[4] = {0, 0, 0, 0}, cut[4] = {0, 0, 0, 0}, n = 20000, sharp = 0;
    for (int i = 0; i < n; i++) {
        double uniform = (i + 0.5) / n;
        seen[sample_draw(logits, 4, 1, 1, uniform)]++, cut[sample_draw(logits, 4, 1, 0.75, uniform)]++;
        sharp += sample_draw(logits, 4, 0.5, 1, uniform) == 0;
    }
    check(abs(seen[0] - 10000) < 3 && abs(seen[1] - 6000) < 3 && abs(seen[2] - 3000) < 3 && abs(seen[3] - 1000) < 3,
          "shares of softmax: %d %d %d %d",
          seen[0], seen[1], seen[2], seen[3]);
    check(abs(cut[0] - 12500) < 3 && abs(cut[1] - 7500) < 3 && cut[2] + cut[3] == 0,
          "top-p 0.75 leaves two tokens: %d %d", cut[0], cut[1]);
    check(fabs(sharp / (double)n - 0.25 / 0.365) < 1e-3, "temperature 0.5 squares the shares: %.4f", sharp / (double)n);
    real equal[3] = {1, 2, 2};
    check(sample_draw(equal, 3, 0, 1, 0.9) == 1 && sample_draw(equal, 3, 1, 0, 0.99) == 1,
          "greedy: the likeliest, of equals the first");
}

int main(int argc, char **argv) {
    Wire world = wire_start_mpi(&argc, &argv);
    char directory[256], shard[300];
    static int32_t tokens[LENGTH * 4 + 1];
    i64 N = wire_size(world);
    checks()->silent = wire_rank(world) != 0;
    test_directory(directory, "sample", world);
    snprintf(shard, sizeof shard, "%s/s.bin", directory);
    if (wire_rank(world) == 0) write_shard(shard, tokens, COUNT_OF(tokens));
    wire_barrier(world);
    check_draws();
    for (int model = 0; model < 5; model++)
        for (int i = 0; i < COUNT_OF(SCHEMES); i++)
            for (i64 dp = 1; dp <= N; dp *= 2)
                for (i64 ring = 1; dp * ring <= N; ring *= 2) {
                    i64 head = N / dp / ring;
                    if (SCHEMES[i]->ring_takes_all && head > 1) continue;
                    RingLayout layout = ring > 1 ? (RingLayout)((model + i) % RING_LAYOUTS) : RING_ZIGZAG;
                    run_mesh(model, SCHEMES[i], dp, ring, head, layout, (model + i) % 2, world, shard);
                }
    test_remove(directory, world);
    int code = checks_done();
    wire_finish();
    return code;
}

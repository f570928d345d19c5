/* test_masks.c - documents and windows in every scheme, hybrid and ring layout, against one rank; and what one rank
   does against the same documents one by one.

   mpirun -np W, as test_schemes.c. Eight sequences of 48 tokens are the batch, each another way to lay documents over
   the seams of 2, 3, 4 and 8 ranks and of zigzag's halves: on them, just before, just behind; documents of one token,
   one longer than all ranks but one, none that ends. Windows are shorter than a rank's share, longer, and longer than
   the sequence; in all layers or in one. In fp64 gradients and loss are equal to 1e-10; fp32 compares to 1e-3 and
   1e-5. */
#include "support.h"

enum { LENGTH = 48, SEQUENCES = 8, EOT = 0, WORDS = 53, NOBODY = 52 };

typedef struct {
    const char *name;
    int documents, restart, inside;
    i64 window; /* in the layers of `windowed`, as bits */
    int windowed;
} Mask;

static const Mask MASKS[] = {
    {"documents", 1, 1, 0, 0, 0},
    {"window 5", 0, 0, 0, 5, 3},
    {"documents inside, window 3 in layer 1", 1, 0, 1, 3, 2},
    {"window 20 in layer 0", 0, 0, 0, 20, 1},
    {"documents, window 9", 1, 1, 0, 9, 3},
    {"window 2 in layer 1", 0, 0, 0, 2, 2},
    {"documents, window 100", 1, 0, 0, 100, 3},
};

typedef struct {
    const Scheme *scheme;
    const Context *context;
    const Mask *mask;
    int gpt2, recompute, selfcheck;
    i64 dp, ring, head, B, piece;
    RingLayout layout;
} Case;

static Config case_config(const Case *c) {
    Config gpt2 = CONFIG(ARCH_GPT2, 2, 48, 8, 8, 0, 72, WORDS, 96, 1, 1e-5, 0);
    Config llama = CONFIG(ARCH_MISTRAL, 2, 48, 8, 4, 0, 72, WORDS, 96, 0, 1e-5, 10000);
    llama.window = c->mask->window;
    for (int l = 0; l < 2; l++)
        if (c->mask->windowed >> l & 1) layer_add(&llama.windowed, l);
    config_check(c->gpt2 ? &gpt2 : &llama, "test");
    return c->gpt2 ? gpt2 : llama;
}

static ModelOptions case_options(const Case *c) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    o.config = case_config(c);
    o.scheme = c->scheme, o.context = c->context, o.gather_tokens = c->piece;
    o.shape.dp = c->dp, o.shape.ring = c->ring, o.shape.head = c->head, o.shape.world = c->dp * c->ring * c->head;
    o.layout = c->layout, o.ring_backward = (c->B + c->head + c->layout) % 2 ? "q" : "kv";
    o.L = LENGTH, o.B = c->B, o.batch = SEQUENCES;
    o.documents = c->mask->documents, o.inside = c->mask->inside, o.eot = o.documents ? EOT : -1;
    o.restart = c->gpt2 && c->mask->restart;
    o.recompute = c->recompute, o.overlap = 1, o.place = device_place(0, 1, 1);
    return o;
}

static Settings settings_of(const char *path) {
    Settings s;
    FlagsGiven given;
    flags_parse(&s, &given, 0, NULL);
    s.train = path, s.model = "tiny-llama"; /* any preset: weights come from the seed */
    s.steps = 1, s.lr = 1e-2, s.seed = 7, s.ignore_token = NOBODY;
    return s;
}

/* ---- the batch --------------------------------------------------------------------------------------------------- */

/* Does a document begin at p of sequence j? */
static int begins(i64 j, i64 p) {
    if (p == 0) return 1;
    if (j <= 2) return (p - (j == 1 ? -1 : j == 2)) % 6 == 0; /* on, before, behind the seams of 8 ranks */
    if (j == 3) return p < 20 || p % 16 == 1;                 /* one token each */
    if (j == 4) return p == 43 || p == 44;                    /* one beyond all ranks but one, one of one token */
    if (j == 5) return p % 3 == 0 && p > 12;                  /* zigzag's halves */
    if (j == 6) return 0;
    return p == 11 || p == 12 || p == 13 || p == 23 || p == 25 || p == 35 || p == 47;
}

static int32_t word(i64 j, i64 p) {
    if (p < LENGTH ? p + 1 < LENGTH && begins(j, p + 1) : 0) return EOT;
    return (int32_t)(1 + mix64((uint64_t)(j * LENGTH + p) + 99) % (NOBODY - 1));
}

/* Pairs of a query, a key and a layer, as the definition says. */
static double pairs_wanted(const Case *c) {
    double pairs = 0;
    for (i64 j = 0; j < SEQUENCES; j++)
        for (int l = 0; l < 2; l++)
            for (i64 i = 0; i < LENGTH; i++)
                for (i64 k = i; k >= 0; k--) {
                    int seen = !(c->mask->windowed >> l & 1) || i - k < c->mask->window;
                    pairs += seen;
                    if (c->mask->documents && begins(j, k)) break;
                }
    return pairs;
}

/* ---- cases ------------------------------------------------------------------------------------------------------- */

typedef struct {
    int made;
    double loss;
    Logical gradients;
} Reference;

static void reference_of(Reference *r, const ModelOptions *o, const Settings *s, Wire alone) {
    double norm;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, o, s, alone);
    step_gradients(t, 0, &r->loss, &norm);
    logical_take(&r->gradients, &t->model.zero, t->model.zero.grad);
    trainer_stop(t);
    free(t);
    r->made = 1;
}

static void case_name(char *out, size_t size, const Case *c) {
    snprintf(out, size, "%s %s dp %lld ring %lld %s by %s head %lld micro-batch %lld%s: %s", c->scheme->name,
             c->gpt2 ? "gpt2" : "mistral", c->dp, c->ring, RING_LAYOUT_NAMES[c->layout], c->context->name, c->head,
             c->B, c->recompute ? " recompute" : "", c->mask->name);
}

static void run_case(const Case *c, const char *path, Wire world, Wire alone) {
    static Reference all[2][COUNT_OF(MASKS)];
    Reference *r = &all[c->gpt2][c->mask - MASKS];
    Settings s = settings_of(path);
    ModelOptions o = case_options(c);
    char name[256], worst[HF_NAME_MAX] = "";
    double loss, norm, bytes[2] = {0, 0};
    case_name(name, sizeof name, c);
    if (!r->made) {
        Case single = *c;
        single.scheme = SCHEMES[0], single.context = CONTEXTS[0], single.piece = 0;
        single.dp = single.ring = single.head = single.B = 1, single.recompute = 0;
        ModelOptions one = case_options(&single);
        reference_of(r, &one, &s, alone);
    }
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, world);
    Model *m = &t->model;
    if (c->selfcheck) { /* which ends the program where it finds fault */
        load_micro_batch(t, &t->train, 0, 0, -1);
        selfcheck_labels(m, &t->train, NOBODY, o.inside);
        selfcheck_probe(m, model_walk);
    }
    ledger_reset(&m->ledger);
    schedule_begin(&m->fabric, SCHEDULE_FOLLOW);
    step_gradients(t, 0, &loss, &norm);
    double gradient = logical_distance(&r->gradients, &m->zero, m->zero.grad, world, worst);
    for (int i = 0; i < (int)(sizeof m->ledger.row / sizeof(LedgerRow)); i++) {
        const LedgerRow *row = &m->ledger.row[0][0][0][0] + i;
        bytes[0] += (double)row->bytes, bytes[1] += fabs((double)(row->bytes - row->expected));
    }
    MPI_Allreduce(MPI_IN_PLACE, bytes, 2, MPI_DOUBLE, MPI_SUM, world);
    double off = fabs(loss / r->loss - 1), bound = sizeof(real) == 8 ? 1e-10 : 1e-5, pairs = pairs_wanted(c);
    check(gradient <= (sizeof(real) == 8 ? 1e-10 : 1e-3) && off <= bound, "%s: gradients %.1e (%s) loss %.1e", name,
          gradient, worst, off);
    check(bytes[1] == 0, "%s: %.0f bytes sent by all ranks, %.0f off the closed form", name, bytes[0], bytes[1]);
    if (c->mask->documents)
        check(fabs(m->pairs_seen / pairs - 1) < 1e-12, "%s: %.0f pairs are seen, %.0f by the definition", name,
              m->pairs_seen, pairs);
    trainer_stop(t);
    free(t);
}

/* Every way to cut N ranks into dp x ring x head; masks, models, recompute and the self-check turn with the number of
   the case. */
static void run_cases(i64 N, const char *path, Wire everyone, Wire alone) {
    int rank = wire_rank(everyone), groups = wire_size(everyone) / (int)N, group = rank / (int)N, n = 0;
    if (groups == 0) return;
    int idle = group >= groups;
    Wire world = wire_split(everyone, idle ? groups : group, rank);
    if (!idle) checks()->silent = wire_rank(world) != 0;
    for (int turn = 0; !idle && turn < COUNT_OF(SCHEMES) * COUNT_OF(MASKS); turn++)
        for (i64 dp = 1; dp <= i64_min(N, 2); dp++)
            for (i64 ring = 1; ring <= N; ring++)
                for (int layout = 0; layout < (ring > 1 ? RING_LAYOUTS : 1); layout++) {
                    const Scheme *scheme = SCHEMES[turn % COUNT_OF(SCHEMES)];
                    Case c = {scheme, context_find(NULL, scheme), &MASKS[turn / COUNT_OF(SCHEMES)], 0, 0, 0, dp, ring,
                              0, 1, 0, (RingLayout)layout};
                    char why[1024];
                    if (N % (dp * ring)) continue;
                    c.head = N / dp / ring;
                    if ((c.scheme->ring_takes_all && c.head > 1) || (dp > 1 && N / dp == 1)) continue;
                    /* all masks on one rank and on rings, a third of them elsewhere */
                    if (N > 1 && !(c.scheme->ring_takes_all && dp == 1) && (turn + (int)(dp + ring) + layout) % 3)
                        continue;
                    c.gpt2 = !c.mask->window && n % 2, c.recompute = n % 5 == 4, c.selfcheck = n % 3 == 0;
                    c.B = n % 4 == 3 ? 2 : 1;
                    if (!scheme->context) c.context = CONTEXTS[n / 2 % COUNT_OF(CONTEXTS)];
                    if (c.context->piece) c.piece = n % 4 * 2 + n % 2; /* 0: all at once */
                    ModelOptions o = case_options(&c);
                    if (options_refuse(&o, why, sizeof why)) continue;
                    if (n++ % groups == group) run_case(&c, path, world, alone);
                }
    wire_free(&world);
    wire_barrier(everyone);
}

/* Documents that lie within ranks cost those ranks alone: a contiguous ring computes its own block and no other.
   `travels`: kv or q, in backward. */
static void check_skipped(const char *path, Wire everyone, const char *travels) {
    Case c = {scheme_find("ring"), CONTEXTS[0], &MASKS[0], 0, 0, 0, 1, wire_size(everyone), 1, 1, 0, RING_CONTIGUOUS};
    if (wire_size(everyone) != 4 && wire_size(everyone) != 8) return;
    checks()->silent = wire_rank(everyone) != 0;
    Settings s = settings_of(path);
    ModelOptions o = case_options(&c);
    o.batch = 1, o.ring_backward = travels;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, everyone);
    Model *m = &t->model;
    i64 calls[2];
    for (int j = 0; j < 2; j++) {
        i64 before = m->dev.calls[OP_ATTENTION];
        double loss, norm;
        step_gradients(t, j ? 6 : 0, &loss, &norm);
        calls[j] = m->dev.calls[OP_ATTENTION] - before;
    }
    /* two layers: forward of the blocks before, backward of those that keys or queries bring, and delta */
    i64 before = wire_rank(everyone) + 1, behind = wire_size(everyone) - wire_rank(everyone);
    i64 most = 2 * (before + (strcmp(travels, "q") == 0 ? behind : before) + 1);
    check(calls[0] == 6 && calls[1] == most,
          "ring of %d, %s travel in backward: %lld attention calls on rank %d where documents end with each rank's "
          "tokens, %lld where none ends", wire_size(everyone), travels, calls[0], wire_rank(everyone), calls[1]);
    trainer_stop(t);
    free(t);
}

/* ---- packed, and one by one -------------------------------------------------------------------------------------- */

static void check_packed(int gpt2, const char *directory, Wire alone) {
    static const i64 lengths[] = {9, 1, 20, 2, 16};
    static const Mask packed = {"packed", 1, 1, 1, 7, 2}, single = {"single", 0, 0, 0, 7, 2};
    int32_t tokens[LENGTH + 1], part[LENGTH + 1];
    Case c = {SCHEMES[0], CONTEXTS[0], &packed, gpt2, 0, 0, 1, 1, 1, 1, 0, RING_CONTIGUOUS};
    Reference whole, one;
    char path[512];
    snprintf(path, sizeof path, "%s/packed.bin", directory);
    Settings s = settings_of(path);
    double loss = 0, worst = 0, targets = 0;
    for (i64 i = 0, at = 0; i < COUNT_OF(lengths); at += lengths[i++])
        for (i64 p = 0; p < lengths[i]; p++)
            tokens[at + p] = p + 1 == lengths[i] ? EOT : (int32_t)(1 + mix64((uint64_t)(at + p)) % (NOBODY - 1));
    tokens[LENGTH] = 5;
    write_shard(path, tokens, LENGTH + 1);
    ModelOptions o = case_options(&c);
    o.batch = 1;
    reference_of(&whole, &o, &s, alone);
    double *sum = (double *)host_alloc(sizeof(double) * (size_t)whole.gradients.at[whole.gradients.n]);
    c.mask = &single;
    for (i64 i = 0, at = 0; i < COUNT_OF(lengths); at += lengths[i++]) {
        double n = (double)(lengths[i] - 1);
        if (n == 0) continue; /* its only target is the next one's first token */
        memcpy(part, tokens + at, sizeof(int32_t) * (size_t)lengths[i]);
        part[lengths[i]] = NOBODY;
        write_shard(path, part, lengths[i] + 1);
        o = case_options(&c);
        o.batch = 1, o.L = lengths[i];
        reference_of(&one, &o, &s, alone);
        loss += n * one.loss, targets += n;
        for (i64 k = 0; k < one.gradients.at[one.gradients.n]; k++) sum[k] += n * one.gradients.value[k];
        logical_free(&one.gradients);
    }
    for (int i = 0; i < whole.gradients.n; i++) {
        double off = 0, size = 0;
        for (i64 k = whole.gradients.at[i]; k < whole.gradients.at[i + 1]; k++) {
            off = fmax(off, fabs(whole.gradients.value[k] - sum[k] / targets));
            size = fmax(size, fabs(whole.gradients.value[k]));
        }
        worst = fmax(worst, size > 0 ? off / size : off > 0 ? INFINITY : 0);
    }
    double off = fabs(loss / targets / whole.loss - 1);
    check(worst <= (sizeof(real) == 8 ? 1e-10 : 1e-3) && off <= (sizeof(real) == 8 ? 1e-10 : 1e-5),
          "%s: documents packed are the documents one by one: gradients %.1e loss %.1e", gpt2 ? "gpt2" : "mistral",
          worst, off);
    logical_free(&whole.gradients);
    free(sum);
}

/* What the simulator and plans count, against what a loader counts: documents all of one length, windows, both. */
static void check_closed_form(void) {
    static const i64 lengths[] = {0, 1, 5, 7, 16, 48, 100}, windows[] = {0, 1, 4, 17, 47};
    double off = 0;
    int n = 0;
    for (int i = 0; i < COUNT_OF(lengths); i++)
        for (int w = 0; w < COUNT_OF(windows); w++)
            for (int R = 1; R <= 4; R++)
                for (int layout = 0; layout < RING_LAYOUTS; layout++)
                    for (int r = 0; r < R * R; r++) {
                        TokenMap q = token_map((RingLayout)layout, LENGTH, R, r / R);
                        TokenMap kv = token_map((RingLayout)layout, LENGTH, R, r % R);
                        double pairs = 0;
                        for (i64 a = 0; a < q.count; a++)
                            for (i64 b = 0; b < kv.count; b++) {
                                i64 p = token_position(&q, a), k = token_position(&kv, b);
                                pairs += k <= p && (!windows[w] || p - k < windows[w]) &&
                                         (!lengths[i] || p / lengths[i] == k / lengths[i]);
                            }
                        off = fmax(off, fabs(masked_pairs(&q, &kv, lengths[i], windows[w]) - pairs)), n++;
                    }
    check(off == 0, "pairs of documents and windows in closed form, %d blocks: %.0f off", n, off);
}

int main(int argc, char **argv) {
    Wire everyone = wire_start_mpi(&argc, &argv), alone = wire_split(everyone, wire_rank(everyone), 0);
    char directory[256], path[512];
    test_directory(directory, "masks", everyone);
    snprintf(path, sizeof path, "%s/words.bin", directory);
    if (wire_rank(everyone) == 0) {
        static int32_t tokens[SEQUENCES * LENGTH + 1];
        for (i64 i = 0; i < COUNT_OF(tokens); i++) tokens[i] = word(i / LENGTH, i % LENGTH);
        write_shard(path, tokens, COUNT_OF(tokens));
        check_closed_form();
        check_packed(0, directory, alone);
        check_packed(1, directory, alone);
    }
    wire_barrier(everyone);
    check_skipped(path, everyone, "kv"), check_skipped(path, everyone, "q");
    const i64 sizes[] = {1, 2, 3, 4, 8};
    for (int i = 0; i < COUNT_OF(sizes); i++)
        if (argc < 2 || atoi(argv[1]) == sizes[i]) run_cases(sizes[i], path, everyone, alone);
    test_remove(directory, everyone);
    int failed = checks()->silent ? 0 : checks()->failed;
    wire_finish();
    return failed ? 1 : 0;
}

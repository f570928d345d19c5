/* test_schemes.c - every scheme and hybrid against one rank: all gradients, five losses, traffic (ledger, closed form,
   MPI's own profiling layer), memory, and the dry run's tables.

   mpirun -np W: the world is cut into groups of N ranks for every N; each group trains the cases that fall to
   it on its own split communicator, after one rank alone has made the reference. In fp64 a right scheme
   differs by the rounding of sums only:
   1e-10 of each tensor's largest element leaves 4 to 5 decimal digits above what is seen. fp32 compares losses, to
   1e-5: some forty additions of rounding 6e-8 in a loss of about 5. */
#include "support.h"

/* ---- what MPI itself saw: its profiling interface stands between the trainer and the library --------------------- */

typedef struct {
    i64 bytes; /* sent by this rank through the calls that the ledger should know */
    i64 other; /* calls of any other collective */
} Profile;

static Profile profile;

static i64 profile_bytes(int count, MPI_Datatype type) {
    int size;
    PMPI_Type_size(type, &size);
    return (i64)count * size;
}

int MPI_Iallgather(const void *send, int n, MPI_Datatype type, void *recv, int rn, MPI_Datatype rtype, MPI_Comm c,
                   MPI_Request *r) {
    int ranks;
    PMPI_Comm_size(c, &ranks);
    profile.bytes += (ranks - 1) * profile_bytes(rn, rtype);
    return PMPI_Iallgather(send, n, type, recv, rn, rtype, c, r);
}

int MPI_Ialltoall(const void *send, int n, MPI_Datatype type, void *recv, int rn, MPI_Datatype rtype, MPI_Comm c,
                  MPI_Request *r) {
    int ranks;
    PMPI_Comm_size(c, &ranks);
    profile.bytes += (ranks - 1) * profile_bytes(n, type);
    return PMPI_Ialltoall(send, n, type, recv, rn, rtype, c, r);
}

int MPI_Isend(const void *buf, int n, MPI_Datatype type, int to, int tag, MPI_Comm c, MPI_Request *r) {
    profile.bytes += profile_bytes(n, type);
    return PMPI_Isend(buf, n, type, to, tag, c, r);
}

int MPI_Allreduce(const void *send, void *recv, int n, MPI_Datatype type, MPI_Op op, MPI_Comm c) {
    profile.other++;
    return PMPI_Allreduce(send, recv, n, type, op, c);
}

int MPI_Allgather(const void *send, int n, MPI_Datatype type, void *recv, int rn, MPI_Datatype rtype, MPI_Comm c) {
    profile.other++;
    return PMPI_Allgather(send, n, type, recv, rn, rtype, c);
}

int MPI_Bcast(void *buf, int n, MPI_Datatype type, int root, MPI_Comm c) {
    profile.other++;
    return PMPI_Bcast(buf, n, type, root, c);
}

int MPI_Barrier(MPI_Comm c) {
    profile.other++;
    return PMPI_Barrier(c);
}

#define STEPS 5
#define SEQUENCES 16

typedef enum { MODEL_GPT2, MODEL_MHA, MODEL_GQA, MODEL_FEW_KV, MODEL_TIED, MODEL_TWELVE, MODELS } TestModel;

static const char *const MODEL_NAMES[MODELS] = {"gpt2", "qwen2-mha", "phi3-gqa", "qwen3-1kv", "qwen3-tied",
                                                "smollm3-12h"};

/* Two layers, all sizes different, so that a swapped one shows; every feature in one model or more: biases (of q, k, v,
   of all), norms of q and k with heads that are not d / h, with KV heads that are split and that are shared, a layer
   that does not rotate, a magnitude of rotation. */
static Config test_config(TestModel model) {
    Config gpt2 = CONFIG(ARCH_GPT2, 2, 48, 8, 8, 0, 72, 53, 96, 1, 1e-5, 0);
    Config llama = CONFIG(ARCH_LLAMA, 2, 48, 8, 8, 0, 72, 53, 96, 0, 1e-5, 10000);
    if (model == MODEL_GPT2) {
        config_check(&gpt2, "test");
        return gpt2;
    }
    if (model == MODEL_GQA) llama.kv_heads = 4, llama.arch = ARCH_PHI3; /* fused in checkpoints */
    if (model == MODEL_MHA) llama.has |= HAS_QKV_BIAS;
    if (model == MODEL_FEW_KV) llama.kv_heads = 1, llama.head_dim = 10, llama.has |= HAS_QK_NORM;
    if (model == MODEL_TIED) llama.kv_heads = 2, llama.tied = 1, llama.has |= HAS_QK_NORM | HAS_QKV_BIAS | HAS_O_BIAS;
    if (model == MODEL_TWELVE) {
        /* a bias of k: 0 where nothing turns */
        llama.heads = 12, llama.kv_heads = 3, llama.has |= HAS_O_BIAS | HAS_MLP_BIAS;
        layer_add(&llama.no_rope, 0);
        RopeScaling *yarn = &llama.rope_scaling;
        yarn->kind = ROPE_YARN, yarn->factor = 4, yarn->original_max_pos = 24, yarn->beta_fast = 8,
        yarn->beta_slow = 0.5;
    }
    config_check(&llama, "test");
    return llama;
}

/* How the data is read: no target ignored, one token's targets ignored, whole stretches of the sequence
   ignored, so that ranks and micro-batches are left without any target, or such stretches and every
   third target left out by a mask. */
typedef enum { IGNORE_NONE, IGNORE_SOME, IGNORE_STRETCHES, IGNORE_MASKED, IGNORES } Ignore;

typedef struct {
    TestModel model;
    const Scheme *scheme;
    const Context *context;
    const char *ring_backward;
    i64 dp, ring, head, B, piece;
    RingLayout layout;
    Ignore ignore;
    int recompute, overlap, selfcheck;
} Case;

static const char *layout_name(RingLayout l) {
    return l == RING_ZIGZAG ? "zigzag" : l == RING_STRIPE ? "stripe" : "contiguous";
}

static void case_name(char *out, size_t size, const Case *c) {
    char ring[64] = "";
    if (c->ring > 1) snprintf(ring, sizeof ring, " %s by %s", layout_name(c->layout), c->context->name);
    if (c->ring > 1 && c->ring_backward)
        snprintf(ring + strlen(ring), sizeof ring - strlen(ring), ", backward %s", c->ring_backward);
    if (c->ring > 1 && c->piece)
        snprintf(ring + strlen(ring), sizeof ring - strlen(ring), ", %lld at once", c->piece);
    snprintf(out, size, "%s %s dp %lld ring %lld%s head %lld micro-batch %lld%s%s%s%s", c->scheme->name,
             MODEL_NAMES[c->model], c->dp, c->ring, ring, c->head, c->B,
             c->ignore == IGNORE_SOME ? " ignored" : "",
             c->ignore == IGNORE_STRETCHES ? " stretches ignored"
             : c->ignore == IGNORE_MASKED  ? " masked"
                                           : "",
             c->recompute == RECOMPUTE_FULL ? " recompute" : c->recompute ? " attention kept" : "",
             c->overlap ? "" : " no overlap");
}

static ModelOptions case_options(const Case *c) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    o.config = test_config(c->model);
    o.scheme = c->scheme, o.context = c->context, o.gather_tokens = c->piece;
    o.ring_backward = c->ring_backward;
    o.shape.dp = c->dp, o.shape.ring = c->ring, o.shape.head = c->head, o.shape.world = c->dp * c->ring * c->head;
    o.layout = c->layout;
    o.L = 48, o.B = c->B, o.batch = 8;
    o.recompute = c->recompute, o.overlap = c->overlap, o.place = device_place(0, 1, 1);
    return o;
}

static const char *const SHARD_NAMES[IGNORES] = {"plain.bin", "plain.bin", "stretches.bin", "masked.bin"};

static Settings case_settings(const Case *c, const char *directory, char path[512]) {
    Settings s;
    FlagsGiven given;
    char *argv[1] = {NULL};
    flags_parse(&s, &given, 0, argv);
    snprintf(path, 512, "%s/%s", directory, SHARD_NAMES[c->ignore]);
    s.train = path, s.model = "tiny-llama"; /* any preset: weights come from the seed */
    s.steps = STEPS, s.lr = 1e-2, s.min_lr = 1e-3, s.warmup = 2, s.seed = 7;
    s.ignore_token = c->ignore == IGNORE_NONE ? -1 : 0;
    return s;
}

/* What one rank alone finds; kept per model and way of ignoring (micro-batches and recompute
   change nothing but rounding). */
typedef struct {
    int made;
    double loss[STEPS], norm;
    Logical gradients;
} Reference;

static Reference *reference(const Case *c, const char *directory, Wire alone) {
    static Reference all[MODELS][IGNORES];
    Reference *r = &all[c->model][c->ignore];
    if (r->made) return r;
    Case single = *c;
    single.scheme = SCHEMES[0], single.context = CONTEXTS[0], single.piece = 0;
    single.dp = single.ring = single.head = single.B = 1, single.recompute = 0;
    char path[512];
    ModelOptions o = case_options(&single);
    Settings s = case_settings(&single, directory, path);
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, alone);
    for (int step = 0; step < STEPS; step++) {
        double norm;
        step_gradients(t, step, &r->loss[step], &norm);
        if (step == 0) logical_take(&r->gradients, &t->model.zero, t->model.zero.grad), r->norm = norm;
        step_update(t, step, norm);
    }
    trainer_stop(t);
    free(t);
    r->made = 1;
    return r;
}

/* The same rank of an imagined world, as a dry run has it: 0 if ledger and memory are those of the real one. */
static double imagined_differs(const Trainer *real_one) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    t->settings = real_one->settings, t->options = real_one->options;
    model_init(&t->model, &t->options, wire_none(), 1, real_one->model.mesh.rank);
    trainer_plan(t);
    double differs = memcmp(&t->model.ledger, &real_one->model.ledger, sizeof(Ledger)) != 0;
    if (t->model.arena.peak.used != real_one->model.arena.peak.used) differs += 1;
    model_free(&t->model);
    free(t);
    return differs;
}

/* The self-check, which ends the program where it finds fault: are the weights where and what they were? */
static int selfcheck_is_quiet(Model *m) {
    const Zero *z = &m->zero;
    const real *param = z->param;
    double eps = m->config.norm_eps;
    size_t bytes = (size_t)z->flat * sizeof(real);
    real *before = (real *)host_alloc(bytes);
    memcpy(before, z->param, bytes);
    selfcheck_schedule(&m->fabric, m->mesh.world.wire);
    selfcheck_probe(m, model_walk);
    int same = z->param == param && m->config.norm_eps == eps && memcmp(before, z->param, bytes) == 0;
    free(before);
    return same;
}

/* One case on `world`; `speaks`: this rank reports. All figures are the same on all ranks of the group. */
static void run_case(const Case *c, const char *directory, Wire world, Wire alone) {
    char path[512], name[256], worst[HF_NAME_MAX] = "";
    case_name(name, sizeof name, c);
    Reference *r = reference(c, directory, alone);
    ModelOptions o = case_options(c);
    Settings s = case_settings(c, directory, path);
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    trainer_start(t, &o, &s, world);
    Model *m = &t->model;
    double gradient = 0, loss_off = 0, norm_off = 0, bytes[3] = {0, 0, 0}, profile_off = 0;
    ArenaMark planned = m->arena.peak;
    m->arena.peak = m->arena.now;
    int weights = !c->selfcheck || selfcheck_is_quiet(m);
    for (int step = 0; step < STEPS; step++) {
        double loss, norm;
        ledger_reset(&m->ledger);
        schedule_begin(&m->fabric, SCHEDULE_FOLLOW);
        profile.bytes = profile.other = 0;
        step_gradients(t, step, &loss, &norm);
        Profile seen = profile; /* the update after it is local */
        if (step == 0) {
            gradient = logical_distance(&r->gradients, &m->zero, m->zero.grad, world, worst);
            norm_off = fabs(norm / r->norm - 1);
        }
        loss_off = fmax(loss_off, fabs(loss / r->loss[step] - 1));
        if (!isfinite(loss)) loss_off = INFINITY;
        step_update(t, step, norm);
        profile_off += (double)(llabs(seen.bytes - ledger_total(&m->ledger, 0)) + seen.other);
    }
    for (int i = 0; i < (int)(sizeof m->ledger.row / sizeof(LedgerRow)); i++) {
        const LedgerRow *row = &m->ledger.row[0][0][0][0] + i;
        bytes[0] += (double)row->bytes, bytes[1] += fabs((double)(row->bytes - row->expected));
    }
    bytes[2] = profile_off + imagined_differs(t);
    MPI_Allreduce(MPI_IN_PLACE, bytes, 3, MPI_DOUBLE, MPI_SUM, world);
    double bound = sizeof(real) == 8 ? 1e-10 : 1e-5, gradient_bound = sizeof(real) == 8 ? 1e-10 : 1e-3;
    int memory = m->arena.peak.used == planned.used && m->arena.committed == round_up(planned.used, 4096);
    check(gradient <= gradient_bound && norm_off <= bound && loss_off <= bound,
          "%s: gradients %.1e (%s) norm %.1e losses %.1e", name, gradient, worst, norm_off, loss_off);
    check(bytes[1] == 0 && (bytes[0] > 0 || o.shape.world == 1),
          "%s: %.0f bytes sent by all ranks, %.0f off the closed form", name, bytes[0], bytes[1]);
    check(bytes[2] == 0,
          "%s: MPI's profiling layer and an imagined world of one process agree with the ledger (%.0f off)", name,
          bytes[2]);
    if (c->selfcheck) check(weights, "%s: the self-check passes and leaves the weights as they were", name);
    check(memory, "%s: arena %lld bytes planned, %lld used", name, planned.used, m->arena.peak.used);
    trainer_stop(t);
    free(t);
}

/* ---- the cases --------------------------------------------------------------------------------------------------- */

typedef struct {
    Case *list;
    int n, refused;
} Cases;

/* A refusal must say why, and the head axes it offers must work. */
static void check_refusal(const Case *c, const ModelOptions *o, const char *why) {
    char name[256];
    case_name(name, sizeof name, c);
    const char *works = strstr(why, "that does: ");
    if (!works) {
        check(strlen(why) > 20, "%s: refused: %s", name, why);
        return;
    }
    i64 offered[2] = {0, 0};
    int n = sscanf(works, "that does: %lld or %lld", &offered[0], &offered[1]), good = n >= 1;
    for (int i = 0; i < n; i++) {
        ModelOptions other = *o;
        char reason[1024];
        other.shape.head = offered[i], other.shape.world = offered[i] * o->shape.dp * o->shape.ring;
        if (o->scheme->refuses(&other.config, &other.shape, reason, sizeof reason)) good = 0;
    }
    check(good, "%s: refused, and what it offers works: %s", name, why);
}

static void add_case(Cases *cases, Case c, int speaks) {
    ModelOptions o = case_options(&c);
    char why[1024];
    if (options_refuse(&o, why, sizeof why)) {
        if (speaks) check_refusal(&c, &o, why);
        cases->refused++;
        return;
    }
    cases->list = (Case *)realloc(cases->list, sizeof(Case) * (size_t)(cases->n + 1));
    cases->list[cases->n++] = c;
}

/* Every way to cut N ranks into dp x ring x head for one scheme and model; hybrids of three axes included. */
static void add_meshes(Cases *cases, Case c, i64 N, int speaks) {
    for (i64 dp = 1; dp <= N; dp++)
        for (i64 ring = 1; ring <= N; ring++) {
            if (N % (dp * ring) != 0 || dp > 4) continue;
            c.dp = dp, c.ring = ring, c.head = N / dp / ring;
            if (c.scheme->ring_takes_all && c.head > 1) continue;
            for (int layout = 0; layout < (ring > 1 ? 3 : 1); layout++) {
                c.layout = layout == 0 ? RING_ZIGZAG : layout == 1 ? RING_CONTIGUOUS : RING_STRIPE;
                if (dp * c.B > 8) continue;
                add_case(cases, c, speaks);
            }
        }
}

/* The list for N ranks: gpt2 and llama-gqa with micro-batches of 1, 2 and 4 each, the other models with them in turn.
   Contexts (where the scheme is none of its own), the size of their pieces, what travels in backward, ignored targets,
   recompute, overlap and the self-check turn with the case's number: everything varies with every scheme, not
   everything with everything. */
static Cases make_cases(i64 N, int speaks) {
    const i64 turns[4] = {1, 2, 1, 4};
    const char *const backward[5] = {"q", "kv", "auto", "q", "kv"};
    Cases cases;
    memset(&cases, 0, sizeof cases);
    for (int s = 0; s < COUNT_OF(SCHEMES); s++)
        for (int model = 0; model < MODELS; model++)
            for (i64 B = 1; B <= (model == MODEL_GPT2 || model == MODEL_GQA ? 4 : 1); B *= 2) {
                Case c;
                memset(&c, 0, sizeof c);
                c.scheme = SCHEMES[s], c.context = context_find(NULL, SCHEMES[s]);
                c.model = (TestModel)model, c.B = B, c.overlap = 1;
                add_meshes(&cases, c, N, speaks && B == 1);
            }
    for (int i = 0; i < cases.n; i++) {
        Case *c = &cases.list[i];
        int in_turn = c->model != MODEL_GPT2 && c->model != MODEL_GQA;
        if (in_turn && 8 % (c->dp * turns[i % 4]) == 0) c->B = turns[i % 4];
        c->ignore = (Ignore)(i / 3 % IGNORES);
        c->recompute = i % 5 == 4 ? 1 + i / 5 % 2 : 0;
        c->overlap = i % 7 != 6;
        c->selfcheck = i % 4 == 0;
        /* the i-th case of a layout and a mesh; so contexts go with layouts and meshes as they come */
        if (!c->scheme->context) c->context = CONTEXTS[(i + i / 3 + i / 9) % COUNT_OF(CONTEXTS)];
        if (c->context->queries_travel) c->ring_backward = backward[i / 2 % 5];
        /* 0: its own choice, which is all; and 3, 4, 7 of 2 to 24 */
        if (c->context->piece) c->piece = i % 4 * 2 + i % 2;
    }
    return cases;
}

static void write_data(const char *directory) {
    static int32_t tokens[SEQUENCES * 48 + 1], mask[SEQUENCES * 48 + 1];
    char path[512];
    for (int i = 0; i < COUNT_OF(mask); i++) {
        int place = i / 48, within = i % 48;
        tokens[i] = (int32_t)(mix64((uint64_t)i + 77) % 53);
        mask[i] = i % 3 != 0 && (place % 4 < 2 || (place % 4 == 2 && within >= 30));
    }
    snprintf(path, sizeof path, "%s/masked.bin", directory);
    write_shard(path, tokens, COUNT_OF(tokens));
    snprintf(path, sizeof path, "%s/masked_mask.bin", directory);
    write_tokens(path, 1, mask, COUNT_OF(mask));
    for (int stretches = 0; stretches < 2; stretches++) {
        for (int i = 0; i < COUNT_OF(tokens); i++) {
            tokens[i] = (int32_t)(mix64((uint64_t)i + 99) % 53);
            int place = i / 48, within = i % 48;
            /* sequence 1, 4, 7: only the last quarter counts; 2, 5, 8: nothing does */
            if (stretches && (place % 3 == 2 || (place % 3 == 1 && within < 36))) tokens[i] = 0;
        }
        snprintf(path, sizeof path, "%s/%s", directory, SHARD_NAMES[stretches ? IGNORE_STRETCHES : IGNORE_NONE]);
        write_shard(path, tokens, COUNT_OF(tokens));
    }
}

/* All cases of N ranks, shared out over the groups that the world makes. */
static void run_cases(i64 N, const char *directory, Wire everyone, Wire alone) {
    int rank = wire_rank(everyone), groups = wire_size(everyone) / (int)N, group = rank / (int)N;
    if (groups == 0) return;
    int idle = group >= groups;
    Wire world = wire_split(everyone, idle ? groups : group, rank);
    if (!idle) {
        Checks *c = checks();
        c->silent = wire_rank(world) != 0;
        Cases cases = make_cases(N, group == 0 && !c->silent);
        for (int i = group; i < cases.n; i += groups) run_case(&cases.list[i], directory, world, alone);
        free(cases.list);
    }
    wire_free(&world);
    wire_barrier(everyone);
}

/* Zigzag: the same attention work on every rank; contiguous is not. Counted by the plan, rank by rank. */
static void check_balance(void) {
    double flop[3][4];
    for (int layout = 0; layout < 3; layout++)
        for (int rank = 0; rank < 4; rank++) {
            RingLayout l = layout == 0 ? RING_ZIGZAG : layout == 1 ? RING_CONTIGUOUS : RING_STRIPE;
            Case c = {MODEL_GQA, scheme_find("ring"), CONTEXTS[0], NULL, 1, 4, 1, 1, 0, l, IGNORE_NONE, 0, 1, 0};
            ModelOptions o = case_options(&c);
            char path[512];
            Settings s = case_settings(&c, ".", path);
            Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
            t->settings = &s, t->options = o;
            model_init(&t->model, &o, wire_none(), 1, rank);
            trainer_plan(t);
            flop[layout][rank] = t->model.dev.flop[OP_ATTENTION];
            model_free(&t->model);
            free(t);
        }
    int even = flop[0][0] == flop[0][1] && flop[0][1] == flop[0][2] && flop[0][2] == flop[0][3];
    check(even, "zigzag: attention MFLOP of ranks 0..3: %.3f %.3f %.3f %.3f", flop[0][0] / 1e6, flop[0][1] / 1e6,
          flop[0][2] / 1e6, flop[0][3] / 1e6);
    check(flop[1][3] > 1.5 * flop[0][0], "contiguous: %.3f %.3f %.3f %.3f", flop[1][0] / 1e6, flop[1][1] / 1e6,
          flop[1][2] / 1e6, flop[1][3] / 1e6);
    check(flop[2][3] < 1.1 * flop[0][0], "stripe: %.3f %.3f %.3f %.3f", flop[2][0] / 1e6, flop[2][1] / 1e6,
          flop[2][2] / 1e6, flop[2][3] / 1e6);
}

int main(int argc, char **argv) {
    Wire everyone = wire_start_mpi(&argc, &argv);
    Wire alone = wire_split(everyone, wire_rank(everyone), 0);
    char directory[256];
    test_directory(directory, "schemes", everyone);
    if (wire_rank(everyone) == 0) {
        write_data(directory);
        check_balance();
    }
    wire_barrier(everyone);
    if (argc > 1) {
        for (int i = 1; i < argc; i++) run_cases(atoi(argv[i]), directory, everyone, alone);
    } else {
        const i64 sizes[] = {1, 2, 3, 4, 6, 8, 12};
        for (int i = 0; i < COUNT_OF(sizes); i++) run_cases(sizes[i], directory, everyone, alone);
    }
    test_remove(directory, everyone);
    int failed = checks()->silent ? 0 : checks()->failed;
    wire_finish();
    return failed ? 1 : 0;
}

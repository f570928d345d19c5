/* test_levers.c - what saves memory changes no number: each lever and all together against the same run without.

   mpirun -np 4: every scheme on meshes of the four ranks, three models in turn. Where the arithmetic is the same, loss
   and gradients are the same to the last bit; where sums are cut into parts, they are close. Traffic is the closed
   form's, memory the plan's, and less of it is kept.                                                                 */
#include "support.h"

/* Which gradients are sums in the same order, and so have the same bits? */
typedef enum { BITS_ALL, BITS_BUT_MLP } Bits;

typedef struct {
    const char *name;
    int recompute;
    i64 tile_rows, groups;
    int offload;
    i64 inputs;
    Bits bits;
} Lever;

static const Lever LEVERS[] = {
    {"none", RECOMPUTE_NONE, 0, 1, 0, 2, BITS_ALL},
    {"recompute full", RECOMPUTE_FULL, 0, 1, 0, 2, BITS_ALL},
    {"recompute attention-kept", RECOMPUTE_ATTENTION_KEPT, 0, 1, 0, 2, BITS_ALL},
    {"tiles of 5", RECOMPUTE_NONE, 5, 1, 0, 2, BITS_BUT_MLP},
    {"recompute full, tiles of 7", RECOMPUTE_FULL, 7, 1, 0, 2, BITS_BUT_MLP},
    {"2 groups of heads", RECOMPUTE_NONE, 0, 2, 0, 2, BITS_ALL},
    {"2 groups of heads, recompute full", RECOMPUTE_FULL, 0, 2, 0, 2, BITS_ALL},
    {"4 groups of heads, recompute full", RECOMPUTE_FULL, 0, 4, 0, 2, BITS_ALL},
    {"4 groups of heads, recompute attention-kept", RECOMPUTE_ATTENTION_KEPT, 0, 4, 0, 2, BITS_ALL},
    {"4 groups of heads, recompute full, tiles of 5", RECOMPUTE_FULL, 5, 4, 0, 2, BITS_BUT_MLP},
    {"offload", RECOMPUTE_NONE, 0, 1, 1, 2, BITS_ALL},
    {"offload, recompute full", RECOMPUTE_FULL, 0, 1, 1, 2, BITS_ALL},
    {"offload, recompute attention-kept", RECOMPUTE_ATTENTION_KEPT, 0, 1, 1, 2, BITS_ALL},
    {"one input, recompute full", RECOMPUTE_FULL, 0, 1, 0, 1, BITS_ALL},
    {"one input, recompute attention-kept", RECOMPUTE_ATTENTION_KEPT, 0, 1, 0, 1, BITS_ALL},
    {"one input, 4 groups of heads, recompute full", RECOMPUTE_FULL, 0, 4, 0, 1, BITS_ALL},
    {"one input, offload, recompute full", RECOMPUTE_FULL, 0, 1, 1, 1, BITS_ALL},
    {"all: recompute full", RECOMPUTE_FULL, 5, 2, 1, 1, BITS_BUT_MLP},
    {"all: recompute attention-kept", RECOMPUTE_ATTENTION_KEPT, 5, 2, 1, 1, BITS_BUT_MLP},
};

typedef struct {
    const Scheme *scheme;
    i64 dp, ring, head;
    int model; /* 0: gpt2; 1: llama with grouped keys; 2: one KV head, norms of heads */
} Case;

enum { STEPS = 2, LENGTH = 48 };

/* What a run leaves. */
typedef struct {
    double loss[STEPS];
    accum *grad; /* (flat) of the first step */
    i64 flat, kept, most; /* elements; bytes kept, and at the moment of the largest use */
    char *tiled;          /* (flat) 1: a gradient of the MLP's, which is summed tile by tile */
    int exact; /* traffic and memory are as foretold */
} Result;

static Config levers_config(int model) {
    Config gpt2 = CONFIG(ARCH_GPT2, 5, 48, 8, 8, 0, 576, 53, 96, 1, 1e-5, 0);
    Config llama = CONFIG(ARCH_LLAMA, 5, 48, 8, model == 1 ? 4 : 1, 0, 576, 53, 96, 0, 1e-5, 10000);
    if (model == 2) llama.head_dim = 10, llama.has |= HAS_QK_NORM | HAS_QKV_BIAS | HAS_MLP_BIAS | HAS_O_BIAS;
    config_check(model ? &llama : &gpt2, "test");
    return model ? llama : gpt2;
}

static ModelOptions case_options(const Case *c, const Lever *l) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    o.config = levers_config(c->model), o.scheme = c->scheme;
    o.shape.dp = c->dp, o.shape.ring = c->ring, o.shape.head = c->head, o.shape.world = c->dp * c->ring * c->head;
    o.layout = RING_ZIGZAG;
    o.L = LENGTH, o.B = 2, o.batch = 8, o.overlap = 1, o.place = device_place(0, 1, 1);
    o.recompute = l->recompute, o.tile_rows = l->tile_rows, o.head_groups = l->groups;
    o.offload = l->offload, o.layer_inputs = l->inputs;
    return o;
}

static void mark_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    const Role sums[] = {T_GATE, T_UP, T_DOWN, T_GATE_BIAS, T_UP_BIAS};
    (void)row, (void)col;
    for (int i = 0; i < COUNT_OF(sums); i++)
        if (t->spec->role == sums[i]) memset((char *)context + at, 1, (size_t)n);
}

static Result run_lever(const Case *c, const Lever *l, const char *shard, Wire world) {
    Result r;
    Settings s;
    FlagsGiven given;
    ModelOptions o = case_options(c, l);
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    memset(&r, 0, sizeof r);
    flags_parse(&s, &given, 0, NULL);
    s.train = shard, s.steps = STEPS, s.lr = 1e-2;
    trainer_start(t, &o, &s, world);
    Model *m = &t->model;
    ArenaMark planned = m->arena.peak;
    r.flat = m->zero.flat, r.tiled = (char *)host_alloc((size_t)r.flat), r.most = planned.used;
    for (int i = 0; i < m->zero.tensors; i++) tensor_owned(&m->zero, &m->zero.tensor[i], mark_run, r.tiled);
    r.kept = m->arena.now.by_category[MEM_ACTIVATIONS], r.exact = 1;
    m->arena.peak = m->arena.now;
    for (int step = 0; step < STEPS; step++) {
        double norm;
        ledger_reset(&m->ledger);
        schedule_begin(&m->fabric, SCHEDULE_FOLLOW);
        step_gradients(t, step, &r.loss[step], &norm);
        if (step == 0) r.grad = flat_out(&m->zero, m->zero.grad);
        step_update(t, step, norm);
        for (int i = 0; i < (int)(sizeof m->ledger.row / sizeof(LedgerRow)); i++) {
            const LedgerRow *row = &m->ledger.row[0][0][0][0] + i;
            r.exact &= row->bytes == row->expected;
        }
    }
    r.exact &= m->arena.peak.used == planned.used;
    trainer_stop(t);
    free(t);
    return r;
}

/* Of all ranks: the largest relative difference of gradients and losses, and whether all bits are the same that
   should be. */
static void compare(const Result *base, const Result *r, Bits bits, Wire world, double *off, int *same) {
    double size = 0, mine[2] = {0, 0}, all[2];
    for (i64 i = 0; i < base->flat; i++) size = fmax(size, fabs((double)base->grad[i]));
    for (i64 i = 0; i < base->flat; i++) {
        double d = fabs((double)r->grad[i] - (double)base->grad[i]);
        if (!(d <= mine[0])) mine[0] = d < INFINITY ? d : INFINITY;
    }
    mine[0] /= size;
    mine[1] = base->loss[0] != r->loss[0] || (bits == BITS_ALL && base->loss[1] != r->loss[1]);
    for (i64 i = 0; i < base->flat; i++)
        if (bits == BITS_ALL || !base->tiled[i]) mine[1] += base->grad[i] != r->grad[i];
    for (int step = 0; step < STEPS; step++) mine[0] = fmax(mine[0], fabs(r->loss[step] / base->loss[step] - 1));
    MPI_Allreduce(mine, all, 2, MPI_DOUBLE, MPI_MAX, world);
    *off = all[0], *same = all[1] == 0;
}

static void run_case(const Case *c, const char *shard, Wire world) {
    const double close = sizeof(real) == 8 ? 1e-12 : 1e-4;
    Result base = run_lever(c, &LEVERS[0], shard, world);
    i64 kept[] = {base.kept, 0, 0}, most_full = 0; /* bytes by RECOMPUTE_, without other levers */
    for (int i = 1; i < COUNT_OF(LEVERS); i++) {
        const Lever *l = &LEVERS[i];
        char why[1024];
        ModelOptions o = case_options(c, l);
        if (options_refuse(&o, why, sizeof why)) continue;
        Result r = run_lever(c, l, shard, world);
        double off;
        int same;
        compare(&base, &r, l->bits, world, &off, &same);
        check(off <= close && r.exact && same,
              "%s dp %lld ring %lld head %lld, model %d, %s: off by %.1e, the same bits: %d, traffic and memory as "
              "foretold: %d",
              c->scheme->name, c->dp, c->ring, c->head, c->model, l->name, off, same, r.exact);
        int plain = !l->tile_rows && l->groups == 1 && !l->offload && l->inputs == 2;
        if (plain) kept[l->recompute] = r.kept;
        if (plain && l->recompute == RECOMPUTE_FULL) most_full = r.most;
        int less = plain        ? l->recompute == RECOMPUTE_FULL || kept[RECOMPUTE_FULL] < r.kept
                   : l->offload || l->inputs == 1 ? r.kept < kept[l->recompute]
                                                  : r.kept <= kept[l->recompute];
        less &= l->recompute == RECOMPUTE_NONE || r.kept < base.kept;
        check(less && (!l->tile_rows || (l->recompute ? r.most < most_full : r.most <= base.most)),
              "%s: %lld bytes are kept, %lld without; %lld at most, %lld without", l->name, r.kept, base.kept, r.most,
              base.most);
        free(r.grad);
        free(r.tiled);
    }
    free(base.grad);
    free(base.tiled);
}

int main(int argc, char **argv) {
    Wire world = wire_start_mpi(&argc, &argv);
    char directory[256], shard[512];
    static int32_t tokens[16 * LENGTH + 1];
    const i64 meshes[][3] = {{1, 1, 4}, {1, 2, 2}, {2, 1, 2}, {4, 1, 1}, {1, 4, 1}};
    test_directory(directory, "levers", world);
    for (int i = 0; i < COUNT_OF(tokens); i++) tokens[i] = (int32_t)(mix64((uint64_t)i + 5) % 53);
    snprintf(shard, sizeof shard, "%s/data.bin", directory);
    if (wire_rank(world) == 0) write_shard(shard, tokens, COUNT_OF(tokens));
    wire_barrier(world);
    checks()->silent = wire_rank(world) != 0;
    for (int s = 0; s < COUNT_OF(SCHEMES); s++)
        for (int i = 0; i < COUNT_OF(meshes); i++) {
            Case c = {SCHEMES[s], meshes[i][0], meshes[i][1], meshes[i][2], (s + i) % 3};
            ModelOptions o = case_options(&c, &LEVERS[0]);
            char why[1024];
            if (!options_refuse(&o, why, sizeof why)) run_case(&c, shard, world);
        }
    test_remove(directory, world);
    int code = checks_done();
    wire_finish();
    return code;
}

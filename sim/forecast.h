/* forecast.h - one configuration on one cluster: the program walks a step, the clocks say how long.

   All ranks wait for each other in every block, so the slowest sets the pace: the ring rank that attends the most. The
   others have the same shapes, memory and traffic.                                                                   */
#ifndef ODYSSEUS_SIM_FORECAST_H
#define ODYSSEUS_SIM_FORECAST_H

#include "trainer.h"

/* Which program is modelled, and what the user leaves to the cluster. */
static inline void take_cluster(const Cluster *c, Settings *s) {
    SimProgram *program = sim_program();
    program->gpu = cluster_says(c->device, "gpu");
    for (int d = 0; d < SIM_DTYPE_COUNT; d++)
        if (s->dtype ? strcmp(SIM_DTYPES[d].name, s->dtype) == 0 : cluster_says(c->dtype, SIM_DTYPES[d].name))
            program->dtype = d;
    if (program->gpu && strncmp(REAL_NAME, "bf16", 4) != 0)
        FAIL(EVERYONE, "--dtype %s: train_gpt computes in bf16 on GPUs; fp32 and fp64 are of CPU clusters", REAL_NAME);
    if (!program->gpu && strcmp(REAL_NAME, "bf16") == 0)
        FAIL(EVERYONE, "--dtype bf16: the CPU programs compute in fp32 and fp64; %s is a cluster of CPUs", c->name);
    if (device_peak_of(c) <= 0)
        FAIL(EVERYONE, "--dtype %s: cluster %s gives no peak in it (%s)", REAL_NAME, c->name, c->path);
    const char *comm = program->gpu ? "nccl" : "mpi";
    if (s->comm && strcmp(s->comm, comm) != 0)
        FAIL(EVERYONE, "--comm %s is not modelled on %s; its links are those of --comm %s", s->comm, c->name, comm);
    if (!s->grad_comm) s->grad_comm = cluster_says(c->grad_comm, "bf16") ? "bf16" : "fp32";
}

typedef struct {
    int rank;                  /* of the world: the slowest */
    double imbalance;          /* its attention over the mean of all ring ranks */
    double seconds;            /* of a step */
    double tokens_per_s, mfu_causal, mfu_full;
    double op_seconds[OP_CLASSES], op_flop[OP_CLASSES], op_bytes[OP_CLASSES];
    i64 op_calls[OP_CLASSES];
    double comm_seconds[COMM_OPS], comm_exposed[COMM_OPS], exposed;
    i64 comm_calls[COMM_OPS], comm_bytes[COMM_OPS];
    ArenaMark memory;          /* at its peak */
    i64 available;             /* bytes that the cluster gives an arena */
    i64 host_bytes;            /* of the host's memory, for a rank */
    double copy_seconds, copy_exposed; /* between the two; of that, what was waited for */
} Forecast;

static inline int forecast_fits(const Forecast *f) { return peak_bytes(&f->memory) <= f->available; }

/* Keys that a query of this run sees in the whole sequence under a window (0: none), summed over its queries. */
static double run_pairs(TokenRun r, i64 window) {
    double n = (double)r.count, pairs = n * (double)(r.first + 1) + (double)r.stride * n * (n - 1) / 2;
    if (!window || !r.count) return pairs;
    i64 skip = i64_min(r.count, ceil_div(i64_max(0, window - r.first), r.stride));
    r.first += skip * r.stride - window, r.count -= skip;
    return pairs - run_pairs(r, 0);
}

/* Pairs of a query in `map` and a key that it sees, in all layers. */
static double ring_rank_pairs(const ModelOptions *o, const TokenMap *map) {
    TokenMap whole = token_map(RING_CONTIGUOUS, o->L, 1, 0);
    double pairs = 0;
    for (int k = 0; k < SIGHTS; k++) {
        i64 layers = sight_layers(&o->config, o->L, k), window = k == SIGHT_WINDOW ? o->config.window : 0;
        if (layers && o->documents && o->doc_length)
            pairs += (double)layers * masked_pairs(map, &whole, o->doc_length, window);
        else if (layers) pairs += (double)layers * (run_pairs(map->run[0], window) + run_pairs(map->run[1], window));
    }
    return pairs;
}

/* The ring rank with the most attention, and how much more than the mean it has. */
static int slowest_ring_rank(const ModelOptions *o, double *imbalance) {
    double sum = 0, most = 0;
    int R = (int)o->shape.ring, slowest = 0;
    for (int r = 0; r < R; r++) {
        TokenMap map = token_map(o->layout, o->L, R, r);
        double pairs = ring_rank_pairs(o, &map);
        sum += pairs;
        if (pairs > most) most = pairs, slowest = r;
    }
    *imbalance = most / (sum / R);
    return slowest;
}

static void forecast_traffic(void *context, CommOp op, Tag t, const LedgerRow *row) {
    Forecast *f = (Forecast *)context;
    (void)t;
    f->comm_calls[op] += row->calls, f->comm_bytes[op] += row->bytes;
}

/* What the clocks and counters of a finished step say. */
static void forecast_collect(Forecast *f, Trainer *t) {
    Model *m = &t->model;
    const DeviceState *s = &m->dev.state;
    f->seconds = fmax(fmax(s->host, s->copies), fmax(s->compute, s->comm));
    f->host_bytes = offload_bytes(&m->offload), f->copy_seconds = s->copy_seconds, f->copy_exposed = s->copy_exposed;
    for (int i = 0; i < OP_CLASSES; i++) {
        f->op_seconds[i] = s->op_seconds[i];
        f->op_calls[i] = m->dev.calls[i], f->op_flop[i] = m->dev.flop[i], f->op_bytes[i] = m->dev.bytes[i];
    }
    for (int i = 0; i < COMM_OPS; i++) {
        f->comm_seconds[i] = s->comm_seconds[i], f->comm_exposed[i] = s->comm_exposed[i];
        f->exposed += s->comm_exposed[i];
    }
    ledger_visit(&m->ledger, forecast_traffic, f);
    double tokens = (double)t->options.batch * (double)t->options.L,
           peaks = t->peak.flops * (double)t->options.shape.world;
    f->tokens_per_s = tokens / f->seconds;
    f->mfu_causal = f->tokens_per_s * flop_per_token(&t->options, 1) / peaks;
    f->mfu_full = f->tokens_per_s * flop_per_token(&t->options, 0) / peaks;
}

/* The trainer's plan, then a step on the modelled clocks, into t->trace when `traced`. `t` stays open: model_free. */
static void forecast_step(Forecast *f, Trainer *t, int traced) {
    Model *m = &t->model;
    double loss, norm;
    memset(f, 0, sizeof *f);
    f->rank = slowest_ring_rank(&t->options, &f->imbalance) * (int)t->options.shape.head;
    model_init(m, &t->options, wire_none(), 1, f->rank);
    trainer_plan(t);
    f->memory = m->arena.peak,
    f->available = cluster_memory(t->options.place.cluster, mesh_links(t->options.shape, t->options.config.kv_heads));
    ledger_reset(&m->ledger);
    device_init(&m->dev, &t->options.place, 1);
    m->dev.state.host = t->options.place.cluster->step;
    if (traced) trace_step_begin(&t->trace, &m->dev, 0);
    step_gradients(t, 0, &loss, &norm);
    step_update(t, 0, 1);
    forecast_collect(f, t);
    if (traced) trace_step_end(&t->trace, &m->dev);
}

/* A trainer on `cluster` for flags that are checked already. */
static void forecast_open(Trainer *t, const ModelOptions *o, const Settings *s, const Cluster *cluster) {
    memset(t, 0, sizeof *t);
    t->settings = s, t->options = *o;
    t->peak.flops = s->peak_tflops > 0 ? 1e12 * s->peak_tflops : device_peak_of(cluster);
}

#endif

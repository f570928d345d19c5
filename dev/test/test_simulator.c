/* test_simulator.c - the simulator's clocks obey what no machine can break, whatever the figures of a cluster.

   Every scheme and some hybrids on a made-up cluster of two nodes:
   floor      a step takes at least its FLOP at the peak, its bytes at the bandwidth of memory and links
   no links   alpha 0 and beta beyond reason leave computing alone; one rank sends nothing
   faster     doubling beta, or letting transfers overlap, never slows
   repeat     micro-steps that are counted by repetition take what micro-steps that are walked take
   slowest    a contiguous ring waits for its last rank, zigzag for nobody
   Besides, what ranks share is in whole 16 bytes, as GPUs have it.                                                   */
#define ODYSSEUS_SIM_TEST
#include "../../sim/simulator.c"
#include "check.h"
#include "shards.h"

static const char *const CLUSTER_TEXT =
    "device gpu # test\ndtype bf16 # test\npeak bf16=1e14 # test\nmemory 1e11 # test\nreserved 0 # test\n"
    "bandwidth 1e12 # test\nlaunch 2e-6 # test\nslowdown 1.25 # test\ngemm 1e8=0.2 1e11=0.8 # test\n"
    "attention-forward 128=0.3 4096=0.6 # test\nattention-backward 128=0.2 4096=0.5 # test\n"
    "norm 1e5=0.3 1e8=0.9 # test\npointwise 1e5=0.3 1e8=0.9 # test\nembedding 1=0.5 # test\n"
    "classifier 1=0.5 # test\noptimizer 1=0.5 # test\nranks-per-node 4 # test\n"
    "inside alpha=3e-6 beta=1e11 overlap=1 # test\nbetween alpha=1e-5 beta=1e10 overlap=1 # test\n";

static const char *const RUNS[] = {
    "--world 4 --sp tp --seq-len 4096",
    "--world 4 --sp tpsp --seq-len 4096",
    "--world 4 --sp ulysses --seq-len 4096",
    "--world 4 --sp ring --seq-len 4096",
    "--world 4 --sp odysseus --seq-len 4096",
    "--world 8 --sp tpsp --ring 2 --seq-len 8192",
    "--world 8 --sp ulysses --ring 4 --seq-len 8192 --ring-layout stripe",
    "--world 8 --sp odysseus --dp 2 --batch 4 --recompute full",
    "--world 8 --sp ulysses --ring 2 --seq-len 8192 --recompute attention-kept",
    "--world 16 --sp ring --dp 2 --ring-layout contiguous --seq-len 8192 --batch 8 --grad-comm bf16",
    "--world 8 --sp tp --arch gpt2 --max-pos 4096 --dp 2 --batch 6 --micro-batch 3 --kv-heads 8",
};

static void test_cluster(Cluster *c) {
    char path[] = "/tmp/odysseus_cluster_XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, CLUSTER_TEXT, strlen(CLUSTER_TEXT)) < 0) FAIL(THIS_RANK, "cannot write %s", path);
    close(fd);
    cluster_read(c, path);
    unlink(path);
}

/* A trainer for these flags, on a model with 8 heads of 64; `more` are further flags. Settings
   and words stay where they are. */
static void open_flags(Trainer *t, const Cluster *c, const char *flags, const char *more) {
    static char text[512];
    static Settings s;
    char *argv[64] = {(char *)"test"}, *rest = text;
    int argc = 1;
    FlagsGiven given;
    ModelOptions o;
    snprintf(text, sizeof text, "--dim 512 --heads 8 --ffn 1408 %s %s", flags, more);
    for (char *word; (word = strtok_r(rest, " ", &rest)) != NULL;) argv[argc++] = word;
    flags_parse(&s, &given, argc, argv);
    take_cluster(c, &s);
    DevicePlace place = {c, 1, 1, 0};
    options_from_flags(&o, scheme_find(s.sp), context_find(s.context, scheme_find(s.sp)), &s, &given, s.world, place);
    options_check(&o);
    forecast_open(t, &o, &s, c);
}

static Forecast forecast_of(const Cluster *c, const char *flags, const char *more) {
    Forecast f;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    open_flags(t, c, flags, more);
    forecast_step(&f, t, 0);
    model_free(&t->model);
    free(t);
    return f;
}

static double sum(const double *x, int n) {
    double total = 0;
    for (int i = 0; i < n; i++) total += x[i];
    return total;
}

static void test_floor(const Cluster *c, const char *run) {
    Forecast f = forecast_of(c, run, "");
    double flop = (f.op_flop[OP_GEMM] + f.op_flop[OP_ATTENTION]) / 1e14, bytes = 0;
    for (int i = 0; i < OP_CLASSES; i++)
        if (i != OP_GEMM && i != OP_ATTENTION) bytes += f.op_bytes[i] / c->bandwidth;
    double links = 0;
    for (int i = 0; i < COMM_OPS; i++) links += (double)f.comm_bytes[i] / c->inside.beta;
    check(f.seconds >= flop + bytes, "%s: %.6f s, its floor in computing is %.6f s", run, f.seconds, flop + bytes);
    check(f.seconds >= links && sum(f.comm_seconds, COMM_OPS) >= links,
          "%s: %.6f s on the links, their floor is %.6f s", run, sum(f.comm_seconds, COMM_OPS), links);
    check(f.seconds <= sum(f.op_seconds, OP_CLASSES) * c->slowdown + sum(f.comm_seconds, COMM_OPS) +
                           1e-5 * (double)(f.op_calls[OP_GEMM] + 1000),
          "%s: %.6f s, not more than everything one after the other", run, f.seconds);
}

static void test_no_links(const Cluster *c, const char *run) {
    Cluster free_links = *c;
    free_links.inside.alpha = free_links.between.alpha = 0, free_links.inside.beta = free_links.between.beta = 1e30;
    free_links.launch = 0;
    Forecast f = forecast_of(&free_links, run, "");
    double computing = sum(f.op_seconds, OP_CLASSES);
    check(fabs(f.seconds - computing) < 1e-9 * computing && f.exposed < 1e-12,
          "%s: without links %.9f s, computing %.9f s", run, f.seconds, computing);
}

static void test_faster(const Cluster *c, const char *run) {
    double before = forecast_of(c, run, "").seconds, off = forecast_of(c, run, "--overlap off").seconds;
    check(before <= off * (1 + 1e-12), "%s: %.6f s, without overlap %.6f s", run, before, off);
    Cluster faster = *c;
    for (int i = 0; i < 6; i++) {
        faster.inside.beta *= 2, faster.between.beta *= 2;
        double now = forecast_of(&faster, run, "").seconds;
        check(now <= before * (1 + 1e-12), "%s: links %d times as fast: %.6f s, before %.6f s", run, 2 << i, now,
              before);
        before = now;
    }
}

/* The clocks after 16 micro-steps, walked one by one or by repetition; *gathers: how many the ledger has. */
static double sixteen(Trainer *t, int walked, i64 *gathers) {
    Model *m = &t->model;
    Forecast f;
    memset(&f, 0, sizeof f);
    model_init(m, &t->options, wire_none(), 1, 0);
    trainer_plan(t);
    ledger_reset(&m->ledger);
    device_init(&m->dev, &t->options.place, 1);
    if (!walked) imagine_micro_steps(m, 1, 16);
    for (int i = 0; i < 16 && walked; i++) model_walk(m, 1);
    double seconds = fmax(m->dev.state.compute, m->dev.state.host);
    ledger_visit(&m->ledger, forecast_traffic, &f);
    *gathers = f.comm_calls[COMM_ALL_GATHER];
    model_free(m);
    return seconds;
}

/* Repetition takes the third micro-step for all that follow; sums of doubles in another
   order, hence not to the last bit. */
static void test_repeat(const Cluster *c, const char *flags) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    i64 by_walk, by_repeat;
    open_flags(t, c, flags, "");
    double walked = sixteen(t, 1, &by_walk), repeated = sixteen(t, 0, &by_repeat);
    check(fabs(repeated / walked - 1) < 1e-6, "%s: 16 micro-steps by repetition %.9f s, walked %.9f s", flags, repeated,
          walked);
    check(by_walk == by_repeat && by_walk > 0, "%s: %lld all-gathers by repetition, %lld walked", flags, by_repeat,
          by_walk);
    free(t);
}

/* Bytes under way slow products down, and only where they are under way beside them. */
static void test_slowdown(const Cluster *c) {
    const char *run = "--world 4 --sp ring --seq-len 16384";
    Cluster plain = *c, slowed = *c;
    plain.slowdown = 1, slowed.slowdown = 2;
    double before = forecast_of(&plain, run, "").seconds, now = forecast_of(&slowed, run, "").seconds;
    double off_before = forecast_of(&plain, run, "--overlap off").seconds,
           off_now = forecast_of(&slowed, run, "--overlap off").seconds;
    check(now > before * 1.001, "%s: products twice as slow beside transfers: %.6f s, before %.6f s", run, now, before);
    check(off_now == off_before, "%s: without overlap nothing is beside them: %.6f s, before %.6f s", run, off_now,
          off_before);
}

static void test_slowest(const Cluster *c) {
    const char *run = "--world 8 --sp ring --seq-len 16384";
    Forecast zigzag = forecast_of(c, run, ""), contiguous = forecast_of(c, run, "--ring-layout contiguous"),
             stripe = forecast_of(c, run, "--ring-layout stripe");
    check(zigzag.imbalance < 1 + 1e-12, "zigzag: the slowest attends %.6f times the mean", zigzag.imbalance);
    check(stripe.imbalance > 1 && stripe.imbalance < 1.001, "stripe: the slowest attends %.6f times the mean",
          stripe.imbalance);
    check(contiguous.rank == 7 && fabs(contiguous.imbalance - 1.875) < 1e-3,
          "contiguous: rank %d attends %.4f times the mean, 2 - 1/R", contiguous.rank, contiguous.imbalance);
    check(contiguous.op_flop[OP_ATTENTION] > 1.8 * zigzag.op_flop[OP_ATTENTION] && contiguous.seconds > zigzag.seconds,
          "contiguous: %.4f s with %.3g FLOP of attention, zigzag %.4f s with %.3g", contiguous.seconds,
          contiguous.op_flop[OP_ATTENTION], zigzag.seconds,
          zigzag.op_flop[OP_ATTENTION]);
}

/* Where the members of a mesh's groups are, against counting by hand: least, most, nodes, leaving for
   world, head, ring, split, kv. */
static void test_groups(const Cluster *cluster, MeshShape shape, i64 kv_heads, i64 node,
                        const i64 expected[MESH_GROUPS][4]) {
    Mesh m;
    Cluster c = *cluster;
    const char *const names[MESH_GROUPS] = {"world", "head", "ring", "split", "kv"};
    c.ranks_per_node = (double)node;
    mesh_init(&m, shape, wire_none(), 1, 0, kv_heads);
    for (int g = 0; g < MESH_GROUPS; g++) {
        if (mesh_group(&m, g)->size == 1) continue;
        GroupPlace p = group_look(&c, mesh_group(&m, g));
        const i64 *e = expected[g];
        check(p.least == e[0] && p.most == e[1] && p.nodes == e[2] && p.leaving == e[3],
              "%lld ranks, nodes of %lld, %s: %lld to %lld a node, %lld nodes, %lld leave one", shape.world, node,
              names[g],
              p.least, p.most, p.nodes, p.leaving);
    }
}

static void test_places(const Cluster *c) {
    const i64 even[MESH_GROUPS][4] = {{4, 4, 4, 1}, {4, 4, 1, 0}, {1, 1, 2, 4}, {1, 1, 4, 4}, {2, 2, 4, 2}};
    const i64 wide[MESH_GROUPS][4] = {{8, 8, 2, 1}, {4, 4, 1, 0}, {2, 2, 1, 0}, {2, 2, 2, 4}, {4, 4, 2, 2}};
    const i64 nine[MESH_GROUPS][4] = {{1, 8, 2, 1}, {0}, {0}, {1, 8, 2, 1}, {1, 8, 2, 1}};     /* 0..7 | 8 */
    /* heads 6 7 | 8; split 0 3 6 | 9 12 15 | 18 21 */
    const i64 threes[MESH_GROUPS][4] = {{8, 8, 3, 1}, {1, 3, 2, 2}, {0}, {2, 3, 3, 3}, {2, 3, 3, 3}};
    MeshShape sixteen = {16, 2, 2, 4}, alone = {9, 9, 1, 1}, odd = {24, 8, 1, 3};
    test_groups(c, sixteen, 2, 4, even);
    test_groups(c, sixteen, 2, 8, wide);
    test_groups(c, alone, 1, 8, nine);
    test_groups(c, odd, 3, 8, threes);
}

static void test_curve(void) {
    Curve c = {3, {1e3, 1e5, 1e6}, {0.1, 0.5, 0.8}};
    check(curve_at(&c, 1) == 0.1 && curve_at(&c, 1e9) == 0.8 && curve_at(&c, 1e5) == 0.5,
          "a curve is constant beyond its ends and exact at its points");
    check(fabs(curve_at(&c, 1e4) - 0.3) < 1e-12, "half-way in log(size): %g", curve_at(&c, 1e4));
}

/* Copies to the host hide where its link is fast enough, and are waited for where it is not: at a hundredth of the rate
   the step is about as long as they are. */
static void test_offload_clock(const Cluster *c, const char *run) {
    Cluster fast = *c, slow = *c;
    fast.host_link = 1e13, slow.host_link = 1e8;
    Forecast without = forecast_of(&fast, run, ""), quick = forecast_of(&fast, run, "--offload inputs"),
             late = forecast_of(&slow, run, "--offload inputs");
    double bytes = 2.0 * (double)quick.host_bytes;
    check(quick.host_bytes > 0 && quick.memory.used < without.memory.used && without.host_bytes == 0,
          "%s: %lld bytes on the host, %lld on the rank instead of %lld", run, quick.host_bytes, quick.memory.used,
          without.memory.used);
    check(quick.seconds < 1.02 * without.seconds && fabs(quick.copy_seconds / (bytes / 1e13) - 1) < 1e-9,
          "%s: %.6f s over a fast link, %.6f s without", run, quick.seconds, without.seconds);
    check(late.seconds > bytes / 1e8 && late.copy_exposed > 0.9 * (late.seconds - without.seconds),
          "%s: %.3f s over a slow link, of which %.3f s wait; %.3f s of copies", run, late.seconds, late.copy_exposed,
          bytes / 1e8);
}

/* Of all-to-all in g groups of heads only the first way and the last are waited for; the bytes are the same. */
static void test_groups_hide(const Cluster *c, const char *run) {
    Forecast whole = forecast_of(c, run, ""), four = forecast_of(c, run, "--head-groups 4");
    double before = whole.comm_exposed[COMM_ALL_TO_ALL], now = four.comm_exposed[COMM_ALL_TO_ALL];
    check(before > 0 && now > 0.15 * before && now < 0.35 * before,
          "%s: %.6f s of all-to-all exposed in four groups of heads, %.6f s in one", run, now, before);
    check(whole.comm_bytes[COMM_ALL_TO_ALL] == four.comm_bytes[COMM_ALL_TO_ALL] &&
              four.memory.used < whole.memory.used,
          "%s: the same bytes, and %lld of memory instead of %lld", run, four.memory.used, whole.memory.used);
}

int main(void) {
    Cluster c;
    test_curve();
    test_cluster(&c);
    test_places(&c);
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) {
        DevicePlace place = {&c, 1, 1, 0};
        for (i64 ranks = 1; ranks <= 8; ranks++) test_shards(SCHEMES[i], ranks, 8, place); /* of bf16, 2 bytes each */
    }
    for (int i = 0; i < COUNT_OF(RUNS); i++) {
        test_floor(&c, RUNS[i]);
        test_no_links(&c, RUNS[i]);
        test_faster(&c, RUNS[i]);
    }
    Forecast alone = forecast_of(&c, "--world 1 --seq-len 4096", "");
    check(sum(alone.comm_seconds, COMM_OPS) == 0 && alone.exposed == 0, "one rank communicates %g s",
          sum(alone.comm_seconds, COMM_OPS));
    test_repeat(&c, "--world 4 --sp odysseus --dp 2 --batch 32 --seq-len 512");
    test_repeat(&c, "--world 4 --sp ulysses --dp 2 --batch 32 --seq-len 8192");
    test_repeat(&c, "--world 4 --sp ring --batch 16 --seq-len 8192");
    test_slowest(&c);
    test_offload_clock(&c, "--world 4 --sp odysseus --batch 1 --seq-len 16384 --recompute full --layers 8");
    test_offload_clock(&c, "--world 4 --sp ring --batch 1 --seq-len 16384 --recompute attention-kept --layers 8");
    test_groups_hide(&c, "--world 2 --sp ulysses --kv-heads 8 --seq-len 65536 --recompute full");
    test_groups_hide(&c, "--world 2 --sp ulysses --kv-heads 2 --seq-len 65536 --recompute full");
    test_slowdown(&c);
    return checks_done();
}

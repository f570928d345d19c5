/* simulator.c - train_gpt_sim: the trainer on a machine nobody has.

   It is the program itself, train_gpt.cu, over a backend that computes nothing: the same walk, arena,
   ledger and schedule run, and modelled clocks go on. One process stands for one rank of any world; where
   ranks differ it is the slowest.

   train_gpt_sim --cluster C --world N [the trainer's flags]       one forecast: time and its parts, memory, traffic
                 ... --plan        every scheme, mesh, layout and micro-batch
                 ... --max-seq     the longest sequence of every scheme
                 ... --html FILE   a page of forecasts with sliders
                 --calibrate       measure this machine

   forecast.h   one configuration -> Forecast                      report.h   Forecast -> text and JSON
   ladder.h     what saves memory, rung by rung
   plan.h       many configurations, and how long a sequence may be        planner.h    --html: a page of them       */
#include "planner.h"

/* Measure this machine: dev/sim/calibrate.sh runs the CPU program's own operations and writes the cluster file. */
static inline void calibrate(const Settings *s) {
    char directory[2560], script[4096], ranks[32], file[4096];
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (s->plan || s->max_seq || s->ladder || s->html || s->dry_run)
        FAIL(EVERYONE, "--calibrate measures and stops; leave out --plan, --max-seq, --ladder, --html and --dry-run");
    if (s->dtype && strcmp(s->dtype, "bf16") == 0)
        FAIL(EVERYONE, "--calibrate --dtype bf16: the CPU programs compute in fp32 and fp64");
    cluster_directory(directory, sizeof directory);
    snprintf(script, sizeof script, "%s/../../../dev/sim/calibrate.sh", directory);
    snprintf(file, sizeof file, "%s/this-machine.cluster", directory);
    snprintf(ranks, sizeof ranks, "%ld", s->world ? (long)s->world : cores);
    if (access(script, R_OK) != 0)
        FAIL(EVERYONE, "--calibrate: no %s; run the program where it was built, in the repository", script);
    printf("measuring this machine with %s ranks, for %s\n", ranks, file);
    fflush(stdout);
    execlp("bash", "bash", script, ranks, s->dtype ? s->dtype : "fp32", file, (char *)NULL);
    FAIL(EVERYONE, "--calibrate: cannot run bash: %s", strerror(errno));
}

/* Flags of a training that a model of one cannot honour. */
static void refuse_flags(const Settings *s, const FlagsGiven *given) {
    check_documents(given, 1);
    if (s->threads) FAIL(EVERYONE, "--threads: the ranks of a cluster are as its file says; leave it out");
    if (s->init_only || s->dump_grads || s->out)
        FAIL(EVERYONE,
             "--init-only, --dump-grads and --out need numbers, and the simulator computes none; leave them out");
    if (s->save || s->save_every || s->keep || s->keep_every || s->resume || s->max_hours > 0)
        FAIL(EVERYONE, "--save, --save-every, --keep, --keep-every, --resume and --max-hours need numbers, and the "
                       "simulator computes none; leave them out");
    if (s->world > 65536) FAIL(EVERYONE, "--world %lld: the simulator takes up to 65536 ranks", s->world);
    if (s->html && (s->plan || s->max_seq || s->ladder || s->dry_run || s->json || s->trace))
        FAIL(EVERYONE,
             "--html is a page of its own; leave out --plan, --max-seq, --ladder, --dry-run, --json and --trace");
    if (s->html && !path_is_taken(s->html)) check_writable(s, "html", s->html);
    if (!s->world && !s->html) FAIL(EVERYONE, "--world N is missing: the ranks of the modelled world");
    if ((s->plan != 0) + (s->max_seq != 0) + (s->ladder != 0) + (s->dry_run != 0) > 1)
        FAIL(EVERYONE, "--plan, --max-seq, --ladder and --dry-run exclude each other; keep one");
    if ((s->max_seq || s->ladder) && flag_given(given, "seq-len"))
        FAIL(EVERYONE, "--max-seq and --ladder look for the --seq-len; leave one of them out");
    if (s->json && s->dry_run)
        FAIL(EVERYONE, "--json goes with a forecast, --plan or --max-seq; --dry-run prints only");
    if (s->trace && (s->dry_run || s->plan || s->max_seq || s->ladder))
        FAIL(EVERYONE, "--trace shows one forecast; leave out --plan, --max-seq and --dry-run");
    /* a forecast takes milliseconds: its file may be written again */
    if (s->json && !path_is_taken(s->json)) check_writable(s, "json", s->json);
    if (s->trace) check_writable(s, "trace", s->trace);
}

static inline void simulate(Settings *s, const FlagsGiven *given, Wire alone) {
    Cluster *cluster = (Cluster *)host_alloc(sizeof(Cluster));
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    ModelOptions o;
    Forecast f;
    refuse_flags(s, given);
    if (s->html) {
        planner_write(s, given, cluster);
        free(t), free(cluster);
        return;
    }
    cluster_read(cluster, s->cluster);
    take_cluster(cluster, s);
    DevicePlace place = {cluster, 1, 1, 0};
    const Scheme *scheme = scheme_find(s->sp);
    options_from_flags(&o, scheme, context_find(s->context, scheme), s, given, s->world, place);
    if (o.offload && cluster->host_link <= 0)
        FAIL(EVERYONE, "--offload: cluster %s gives no host-link, the bytes/s between a rank and its host (%s)",
             cluster->name, cluster->path);
    if (s->plan) {
        plan_all(&o, s, given, cluster);
    } else if (s->ladder) {
        ladder_all(&o, s, given, cluster);
    } else if (s->max_seq) {
        longest_all(&o, s, given, cluster);
    } else {
        options_check(&o);
        forecast_open(t, &o, s, cluster);
        if (s->trace) trace_init(&t->trace, 1, &t->model.arena.now.used);
        forecast_step(&f, t, s->trace != NULL);
        if (f.mfu_causal > 1)
            FAIL(EVERYONE, "--peak-tflops %g: the forecast runs at %.2f times that; the cluster's peak is %g",
                 s->peak_tflops, f.mfu_causal, device_peak_of(cluster) / 1e12);
        if (s->trace) timeline_write(&t->trace, alone, s->trace);
        trace_free(&t->trace);
        if (s->dry_run) print_model(t), print_mesh(t), print_plan(t);
        else print_forecast(&f, t), report_write(s->json, json_forecast(&f, t));
        model_free(&t->model);
    }
    free(t);
    free(cluster);
}

#ifndef ODYSSEUS_SIM_TEST
int main(int argc, char **argv) {
    Settings settings;
    FlagsGiven given;
    if (launcher_ranks() > 1)
        FAIL(EVERYONE, "%d ranks were started; the simulator is one process for a world of any size: leave mpirun out",
             launcher_ranks());
    Wire alone = wire_start(&argc, &argv);
    flags_parse(&settings, &given, argc, argv);
    if (settings.help)
        print_help(
            "train_gpt_sim - what a training of train_gpt would take on a machine that is described in a file: nothing "
            "is computed",
            "./train_gpt_sim --cluster NAME --world N [flags]; flags of data and learning have no effect, those of "
            "output are refused");
    else if (settings.calibrate) calibrate(&settings);
    else simulate(&settings, &given, alone);
    wire_finish();
    return 0;
}
#endif

/* ladder.h - what saves memory, rung by rung: each lever besides those before it, from the one that costs least time.

   --ladder    the longest sequence of each rung, and what its step takes; base, + each lever, + all
   --plan      takes of every configuration the first rung that fits
   Levers that flags give are kept as they are.                                                                       */
#ifndef ODYSSEUS_SIM_LADDER_H
#define ODYSSEUS_SIM_LADDER_H

#include "report.h"

/* One rung: what it adds to the one before. */
typedef enum { RUNG_BASE, RUNG_TILES, RUNG_GROUPS, RUNG_KEPT, RUNG_FULL, RUNG_OFFLOAD, RUNG_OFFLOAD_FULL,
               RUNG_ONE_INPUT, RUNG_ONE_INPUT_FULL, RUNGS } Rung;

/* The most groups of heads that these options allow; 1: none. */
static i64 ladder_groups(const ModelOptions *o) {
    char why[1024];
    ModelOptions one = *o;
    one.L = sequence_unit(o);
    for (one.head_groups = o->config.heads / o->shape.head; one.head_groups > 1; one.head_groups--)
        if (!options_refuse_groups(&one, why, sizeof why)) return one.head_groups;
    return 1;
}

/* The options of a rung: those of the flags with the levers that flags have not given. 0: it is no other than the rung
   before, or the cluster cannot. */
static int ladder_rung(const ModelOptions *base, const FlagsGiven *given, const Cluster *c, Rung rung,
                       ModelOptions *o) {
    int recompute = !flag_given(given, "recompute"), offload = !flag_given(given, "offload") && c->host_link > 0;
    *o = *base;
    if (rung >= RUNG_TILES && !flag_given(given, "tile-rows")) o->tile_rows = TILE_AUTO;
    if (rung >= RUNG_GROUPS && !flag_given(given, "head-groups")) o->head_groups = ladder_groups(base);
    if (rung >= RUNG_KEPT && recompute) o->recompute = RECOMPUTE_ATTENTION_KEPT;
    if (rung == RUNG_FULL && recompute) o->recompute = RECOMPUTE_FULL;
    if (rung >= RUNG_OFFLOAD && offload) o->offload = 1;
    if ((rung == RUNG_OFFLOAD_FULL || rung == RUNG_ONE_INPUT_FULL) && recompute) o->recompute = RECOMPUTE_FULL;
    if (rung >= RUNG_ONE_INPUT && !flag_given(given, "layer-inputs") && o->recompute) o->layer_inputs = 1;
    switch (rung) {
    case RUNG_BASE: return 1;
    case RUNG_TILES: return o->tile_rows != base->tile_rows;
    case RUNG_GROUPS: return o->head_groups > i64_max(1, base->head_groups);
    case RUNG_OFFLOAD: return offload;
    case RUNG_OFFLOAD_FULL: return offload && recompute;
    case RUNG_ONE_INPUT: return o->layer_inputs != base->layer_inputs;
    case RUNG_ONE_INPUT_FULL: return recompute && o->layer_inputs != base->layer_inputs;
    default: return recompute;
    }
}

enum { LEVERS_TEXT = 128 };

/* The levers of some options in their flags' own words; "none". */
static const char *levers_text(char out[LEVERS_TEXT], const ModelOptions *o) {
    int n = 0;
    out[0] = 0;
    if (o->recompute) n += snprintf(out + n, LEVERS_TEXT - (size_t)n, "recompute %s, ", RECOMPUTE_NAMES[o->recompute]);
    if (o->tile_rows == TILE_AUTO) n += snprintf(out + n, LEVERS_TEXT - (size_t)n, "tile-rows auto, ");
    else if (o->tile_rows) n += snprintf(out + n, LEVERS_TEXT - (size_t)n, "tile-rows %lld, ", o->tile_rows);
    if (o->head_groups > 1) n += snprintf(out + n, LEVERS_TEXT - (size_t)n, "head-groups %lld, ", o->head_groups);
    if (o->offload) n += snprintf(out + n, LEVERS_TEXT - (size_t)n, "offload inputs, ");
    if (o->layer_inputs == 1) n += snprintf(out + n, LEVERS_TEXT - (size_t)n, "layer-inputs 1, ");
    if (!n) return strcpy(out, "none");
    out[n - 2] = 0;
    return out;
}

/* The longest sequence with these options, forecast there. */
static cJSON *ladder_row(ModelOptions o, const Settings *s, const Cluster *cluster) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    cJSON *row = cJSON_CreateObject();
    Forecast f;
    char time[32], levers[LEVERS_TEXT];
    o.L = longest_sequence(&o, cluster_memory(cluster, mesh_links(o.shape, o.config.kv_heads)), options_bytes);
    cJSON_AddStringToObject(row, "levers", levers_text(levers, &o));
    printf("%-90s ", levers);
    if (o.L) {
        forecast_open(t, &o, s, cluster);
        forecast_step(&f, t, 0);
        model_free(&t->model);
        printf("%11lld %9.2f %9.2f %11s %10.0f %6.1f%%\n", o.L, (double)f.memory.used / 1e9, (double)f.host_bytes / 1e9,
               time_text(time, f.seconds), f.tokens_per_s / (double)o.shape.world, 100 * f.mfu_causal);
    } else {
        printf("%11s  not even the shortest sequence fits\n", "none");
    }
    json_options(row, &o, o.L ? &f : NULL);
    free(t);
    return row;
}

/* --ladder: `base` holds what the flags say. */
static void ladder_all(const ModelOptions *base, const Settings *s, const FlagsGiven *given, const Cluster *cluster) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    cJSON *json = cJSON_CreateObject(), *rows = cJSON_AddArrayToObject(json, "ladder");
    ModelOptions o = *base;
    o.L = sequence_unit(base);
    options_check(&o);
    forecast_open(t, base, s, cluster);
    print_model(t);
    printf("ladder   --sp %s on %lld ranks of %s, dp %lld x ring %lld x head %lld: the longest sequence of each rung, "
           "micro-batch %lld\n\n",
           base->scheme->name, base->shape.world, cluster->name, base->shape.dp, base->shape.ring, base->shape.head,
           base->B);
    printf("%-90s %11s %9s %9s %11s %10s %7s\n", "levers", "seq-len", "GB/rank", "host GB", "step", "tok/s/rank",
           "mfu");
    for (int rung = 0; rung < RUNGS; rung++)
        if (ladder_rung(base, given, cluster, (Rung)rung, &o))
            cJSON_AddItemToArray(rows, ladder_row(o, s, cluster));
    report_write(s->json, json);
    free(t);
}

#endif

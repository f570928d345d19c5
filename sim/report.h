/* report.h - a forecast as people read it, and as JSON. */
#ifndef ODYSSEUS_SIM_REPORT_H
#define ODYSSEUS_SIM_REPORT_H

#include "forecast.h"

/* "1.234 s", "12.3 ms", "45 us": three or four digits of a time. */
static const char *time_text(char out[32], double seconds) {
    if (seconds >= 1) snprintf(out, 32, "%.3f s", seconds);
    else if (seconds >= 1e-3) snprintf(out, 32, "%.2f ms", 1e3 * seconds);
    else snprintf(out, 32, "%.1f us", 1e6 * seconds);
    return out;
}

/* The category that takes the most of the arena. */
static MemCategory memory_largest(const ArenaMark *m) {
    int largest = 0;
    for (int c = 1; c < MEM_CATEGORIES; c++)
        if (m->by_category[c] > m->by_category[largest]) largest = c;
    return (MemCategory)largest;
}

/* One line: does it fit, and if not, what is missing. */
static void fit_text(char *out, size_t size, const Forecast *f) {
    double used = (double)f->memory.used / 1e9, available = (double)f->available / 1e9;
    if (forecast_fits(f)) snprintf(out, size, "fits: %.2f GB of %.2f GB that a rank's arena can have", used, available);
    else
        snprintf(out, size,
                 "does not fit: %.2f GB, %.2f GB more than the %.2f GB that a rank's arena can have; the most goes to "
                 "%s (%.2f GB)",
                 used, used - available, available, MEM_NAMES[memory_largest(&f->memory)],
                 (double)f->memory.by_category[memory_largest(&f->memory)] / 1e9);
}

static void print_op_classes(const Forecast *f) {
    printf("\ncomputing            calls         time   of step      TFLOP/s         GB/s\n");
    for (int i = 0; i < OP_CLASSES; i++) {
        char time[32];
        if (!f->op_calls[i]) continue;
        printf("  %-12s %12lld %12s %8.1f%%", OP_CLASS_NAMES[i], f->op_calls[i], time_text(time, f->op_seconds[i]),
               100 * f->op_seconds[i] / f->seconds);
        if (i == OP_GEMM || i == OP_ATTENTION) printf(" %12.2f %12s\n", f->op_flop[i] / f->op_seconds[i] / 1e12, "");
        else printf(" %12s %12.1f\n", "", f->op_bytes[i] / f->op_seconds[i] / 1e9);
    }
}

static void print_comm(const Forecast *f) {
    printf("\ncommunicating        calls         time   exposed            MB sent\n");
    for (int i = 0; i < COMM_OPS; i++) {
        char time[32], exposed[32];
        if (!f->comm_calls[i]) continue;
        printf("  %-14s %10lld %12s %9s %18.3f\n", COMM_OP_NAMES[i], f->comm_calls[i],
               time_text(time, f->comm_seconds[i]), time_text(exposed, f->comm_exposed[i]),
               (double)f->comm_bytes[i] / 1e6);
    }
    char exposed[32];
    printf("  %-14s %10s %12s %9s   %.1f%% of the step\n", "exposed in all", "", "", time_text(exposed, f->exposed),
           100 * f->exposed / f->seconds);
}

/* What is neither computing nor waiting for bytes: the compute stream waits for the host. */
static double host_share(const Forecast *f) {
    double seconds = f->seconds - f->exposed - f->copy_exposed;
    for (int i = 0; i < OP_CLASSES; i++) seconds -= f->op_seconds[i];
    return fmax(seconds, 0);
}

/* The whole forecast; the arena and the ledger are the program's own tables. */
static void print_forecast(const Forecast *f, const Trainer *t) {
    const ModelOptions *o = &t->options;
    const Cluster *c = t->options.place.cluster;
    char time[32], fits[256];
    print_model(t), print_mesh(t);
    printf("cluster  %s: %lld ranks on %lld nodes, peak %.4g TFLOP/s a rank in %s, overlap %s\n", c->name,
           o->shape.world, ceil_div(o->shape.world, (i64)c->ranks_per_node), t->peak.flops / 1e12, REAL_NAME,
           t->settings->overlap);
    if (f->imbalance > 1.001)
        printf("slowest  rank %d (ring rank %d): its attention is %.2f times the mean; the others wait\n", f->rank,
               (int)(f->rank / o->shape.head), f->imbalance);
    fit_text(fits, sizeof fits, f);
    printf("step     %s | %.0f tok/s | %.4g tok/s a rank | mfu %.1f%% causal, %.1f%% full\n",
           time_text(time, f->seconds), f->tokens_per_s, f->tokens_per_s / (double)o->shape.world, 100 * f->mfu_causal,
           100 * f->mfu_full);
    printf("memory   %s\n", fits);
    print_op_classes(f);
    if (host_share(f) > 1e-3 * f->seconds)
        printf("  %-12s %12s %12s %8.1f%%\n", "host's pace", "", time_text(time, host_share(f)),
               100 * host_share(f) / f->seconds);
    if (o->shape.world > 1) print_comm(f);
    if (f->host_bytes) {
        char copies[32], waits[32];
        printf("\nthe host      %.2f GB for each rank, copied in %s, of which %s are waited for\n",
               (double)f->host_bytes / 1e9, time_text(copies, f->copy_seconds), time_text(waits, f->copy_exposed));
    }
    printf("\n");
    arena_print(stdout, &t->model.arena);
    ledger_print(stdout, &t->model.ledger);
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

/* Write `json` (and free it) to the file that --json names, if it does. */
static void report_write(const char *path, cJSON *json) {
    if (path) {
        char *text = cJSON_Print(json);
        FILE *f = fopen(path, "w");
        if (!f) FAIL(EVERYONE, "--json %s: cannot write: %s", path, strerror(errno));
        int bad = fprintf(f, "%s\n", text) < 0;
        if (fclose(f) != 0 || bad) FAIL(EVERYONE, "--json %s: cannot write: %s", path, strerror(errno));
        free(text);
    }
    cJSON_Delete(json);
}

/* How a configuration is run, in the flags' own names. */
static void json_options(cJSON *json, const ModelOptions *o, const Forecast *f) {
    cJSON_AddStringToObject(json, "sp", o->scheme->name);
    cJSON_AddNumberToObject(json, "dp", (double)o->shape.dp);
    cJSON_AddNumberToObject(json, "ring", (double)o->shape.ring);
    cJSON_AddNumberToObject(json, "head", (double)o->shape.head);
    cJSON_AddStringToObject(json, "ring_layout", RING_LAYOUT_NAMES[o->layout]);
    cJSON_AddStringToObject(json, "context", o->context->name);
    cJSON_AddNumberToObject(json, "micro_batch", (double)o->B);
    cJSON_AddNumberToObject(json, "seq_len", (double)o->L);
    cJSON_AddStringToObject(json, "recompute", RECOMPUTE_NAMES[o->recompute]);
    if (o->tile_rows == TILE_AUTO) cJSON_AddStringToObject(json, "tile_rows", "auto");
    else cJSON_AddNumberToObject(json, "tile_rows", (double)o->tile_rows);
    cJSON_AddNumberToObject(json, "head_groups", (double)i64_max(1, o->head_groups));
    cJSON_AddNumberToObject(json, "layer_inputs", o->layer_inputs == 1 ? 1 : 2);
    cJSON_AddStringToObject(json, "offload", o->offload ? "inputs" : "none");
    if (!f) return;
    cJSON_AddNumberToObject(json, "step_ms", 1e3 * f->seconds);
    cJSON_AddNumberToObject(json, "tokens_per_s", f->tokens_per_s);
    cJSON_AddNumberToObject(json, "mfu_causal", f->mfu_causal);
    cJSON_AddNumberToObject(json, "mfu_full", f->mfu_full);
    cJSON_AddNumberToObject(json, "comm_exposed_ms", 1e3 * f->exposed);
    cJSON_AddNumberToObject(json, "mem_bytes", (double)f->memory.used);
    cJSON_AddNumberToObject(json, "mem_available", (double)f->available);
    cJSON_AddNumberToObject(json, "host_bytes", (double)f->host_bytes);
    cJSON_AddNumberToObject(json, "host_copy_ms", 1e3 * f->copy_seconds);
    cJSON_AddNumberToObject(json, "host_exposed_ms", 1e3 * f->copy_exposed);
    cJSON_AddBoolToObject(json, "fits", forecast_fits(f));
}

static cJSON *json_forecast(const Forecast *f, const Trainer *t) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "cluster", t->options.place.cluster->name);
    cJSON_AddStringToObject(json, "dtype", REAL_NAME);
    cJSON_AddNumberToObject(json, "world", (double)t->options.shape.world);
    json_options(json, &t->options, f);
    cJSON_AddNumberToObject(json, "slowest_rank", f->rank);
    cJSON_AddNumberToObject(json, "imbalance", f->imbalance);
    cJSON_AddNumberToObject(json, "host_ms", 1e3 * host_share(f));
    cJSON *ops = cJSON_AddObjectToObject(json, "computing"), *comm = cJSON_AddObjectToObject(json, "communicating"),
          *memory;
    for (int i = 0; i < OP_CLASSES; i++) {
        cJSON *row = cJSON_AddObjectToObject(ops, OP_CLASS_NAMES[i]);
        cJSON_AddNumberToObject(row, "calls", (double)f->op_calls[i]);
        cJSON_AddNumberToObject(row, "ms", 1e3 * f->op_seconds[i]);
        cJSON_AddNumberToObject(row, "flop", f->op_flop[i]);
        cJSON_AddNumberToObject(row, "bytes", f->op_bytes[i]);
    }
    for (int i = 0; i < COMM_OPS; i++) {
        cJSON *row = cJSON_AddObjectToObject(comm, COMM_OP_NAMES[i]);
        cJSON_AddNumberToObject(row, "calls", (double)f->comm_calls[i]);
        cJSON_AddNumberToObject(row, "ms", 1e3 * f->comm_seconds[i]);
        cJSON_AddNumberToObject(row, "exposed_ms", 1e3 * f->comm_exposed[i]);
        cJSON_AddNumberToObject(row, "bytes", (double)f->comm_bytes[i]);
    }
    memory = cJSON_AddObjectToObject(json, "memory");
    for (int c = 0; c < MEM_CATEGORIES; c++)
        cJSON_AddNumberToObject(memory, MEM_NAMES[c], (double)f->memory.by_category[c]);
    cJSON_AddItemToObject(json, "comm", ledger_json(&t->model.ledger));
    return json;
}

#endif

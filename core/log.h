/* log.h - what a run leaves behind and what it says.

   DIR/config.json     every flag as given or defaulted, the model, the mesh
   DIR/metrics.jsonl   one object a step, flushed: a killed run keeps what it has
   DIR/comm.json       the ledger of the first step on rank 0, next to its closed form
   stdout              one plain line a step: loss, norm, rate, time to go                     Rank 0 only. */
#ifndef ODYSSEUS_LOG_H
#define ODYSSEUS_LOG_H

#include "config.h"
#include "ledger.h"
#include <cjson/cJSON.h>
#include <sys/stat.h>

typedef struct {
    i64 step, tokens, mem_bytes, comm_bytes;
    double loss, grad_norm, lr, step_ms, tokens_per_s, mfu_causal, mfu_full, comm_exposed_ms, val_loss, val_bits; /* NaN: there is none, MFU is not known */
    const char *spike; /* what became of it; NULL: it is none */
} Metrics;

typedef struct {
    char dir[3072];
    FILE *metrics; /* NULL: no --out */
} RunLog;

/* mkdir -p */
static inline void make_directories(const char *dir) {
    char path[3072];
    snprintf(path, sizeof path, "%s", dir);
    for (char *p = path + 1;; p++) {
        if (*p && *p != '/') continue;
        char c = *p;
        *p = 0;
        if (mkdir(path, 0777) != 0 && errno != EEXIST) FAIL(THIS_RANK, "--out %s: cannot make the directory %s: %s", dir, path, strerror(errno));
        *p = c;
        if (!c) break;
    }
    struct stat info;
    if (stat(dir, &info) != 0 || !S_ISDIR(info.st_mode)) FAIL(THIS_RANK, "--out %s is not a directory; choose another name", dir);
}

/* Create a file of the run directory that must not exist yet. */
static inline FILE *run_create(const RunLog *log, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", log->dir, name);
    FILE *f = fopen(path, "wx");
    if (!f && errno == EEXIST) FAIL(THIS_RANK, "--out %s already holds a %s; choose another directory, nothing is overwritten", log->dir, name);
    if (!f) FAIL(THIS_RANK, "cannot write %s: %s", path, strerror(errno));
    return f;
}

static inline void run_close(const RunLog *log, FILE *f, const char *name) {
    int bad = ferror(f);
    if (fflush(f) != 0 || fsync(fileno(f)) != 0) bad = 1;
    if (fclose(f) != 0 || bad) FAIL(THIS_RANK, "cannot write %s/%s: %s", log->dir, name, strerror(errno));
}

static inline void run_write_json(const RunLog *log, const char *name, cJSON *json) {
    char *text = cJSON_Print(json);
    FILE *f = run_create(log, name);
    fprintf(f, "%s\n", text);
    run_close(log, f, name);
    free(text);
    cJSON_Delete(json);
}

/* Flags under their names, then the model and mesh they came to. */
static inline cJSON *run_config_json(const Settings *s, const Config *c, i64 world, i64 head, int threads, const char *precision) {
    cJSON *json = cJSON_CreateObject(), *flags = cJSON_AddObjectToObject(json, "flags"), *model = cJSON_AddObjectToObject(json, "model");
    for (int i = 0; i < COUNT_OF(FLAGS); i++) {
        const char *field = (const char *)s + FLAGS[i].field;
        if (FLAGS[i].type == FLAG_TEXT || FLAGS[i].type == FLAG_CHOICE) {
            const char *text;
            memcpy(&text, field, sizeof text);
            if (text) cJSON_AddStringToObject(flags, FLAGS[i].name, text);
        } else if (FLAGS[i].type == FLAG_REAL) {
            double number;
            memcpy(&number, field, sizeof number);
            cJSON_AddNumberToObject(flags, FLAGS[i].name, number);
        } else {
            i64 number;
            memcpy(&number, field, sizeof number);
            cJSON_AddNumberToObject(flags, FLAGS[i].name, (double)number);
        }
    }
    cJSON_AddStringToObject(model, "arch", c->arch == ARCH_GPT2 ? "gpt2" : "llama");
    const char *names[] = {"layers", "dim", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_pos"};
    const i64 sizes[] = {c->layers, c->dim, c->heads, c->kv_heads, c->head_dim, c->ffn, c->vocab, c->max_pos};
    for (int i = 0; i < COUNT_OF(names); i++) cJSON_AddNumberToObject(model, names[i], (double)sizes[i]);
    cJSON_AddBoolToObject(model, "tied_head", c->tied);
    cJSON_AddNumberToObject(json, "world", (double)world);
    cJSON_AddNumberToObject(json, "dp", (double)s->dp);
    cJSON_AddNumberToObject(json, "ring", (double)s->ring);
    cJSON_AddNumberToObject(json, "head", (double)head);
    cJSON_AddNumberToObject(json, "threads", threads);
    cJSON_AddStringToObject(json, "precision", precision);
    return json;
}

static inline void ledger_json_row(void *context, CommOp op, Tag t, const LedgerRow *row) {
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "op", COMM_OP_NAMES[op]);
    cJSON_AddStringToObject(object, "block", BLOCK_NAMES[t.block]);
    cJSON_AddStringToObject(object, "phase", PHASE_NAMES[t.phase]);
    cJSON_AddStringToObject(object, "what", WHAT_NAMES[t.what]);
    cJSON_AddNumberToObject(object, "calls", (double)row->calls);
    cJSON_AddNumberToObject(object, "bytes", (double)row->bytes);
    cJSON_AddNumberToObject(object, "expected_bytes", (double)row->expected);
    cJSON_AddItemToArray((cJSON *)context, object);
}

/* The ledger as an array of objects; the caller's. */
static inline cJSON *ledger_json(const Ledger *l) {
    cJSON *array = cJSON_CreateArray();
    ledger_visit(l, ledger_json_row, array);
    return array;
}

static inline void run_write_ledger(const RunLog *log, const Ledger *l) {
    if (log->metrics) run_write_json(log, "comm.json", ledger_json(l));
}

/* Make the run directory; `config` is written and freed. Nothing that is there is overwritten: all names are looked at first. */
static inline void run_open(RunLog *log, const char *dir, cJSON *config) {
    memset(log, 0, sizeof *log);
    if (dir) {
        snprintf(log->dir, sizeof log->dir, "%s", dir);
        make_directories(dir);
        const char *names[] = {"metrics.jsonl", "config.json", "comm.json"};
        for (int i = 0; i < COUNT_OF(names); i++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", dir, names[i]);
            if (access(path, F_OK) == 0) FAIL(THIS_RANK, "--out %s already holds a %s; choose another directory, nothing is overwritten", dir, names[i]);
        }
        FILE *metrics = run_create(log, "metrics.jsonl");
        run_write_json(log, "config.json", config);
        log->metrics = metrics;
    } else {
        cJSON_Delete(config);
    }
}

/* A file without a name takes what is written, and loses it at the end. */
static inline void run_still_there(const RunLog *log) {
    struct stat info;
    if (fstat(fileno(log->metrics), &info) == 0 && info.st_nlink == 0)
        FAIL(THIS_RANK, "--out %s: metrics.jsonl was removed while the run went on, its results are lost; start again", log->dir);
}

/* A number of JSON, which knows no NaN: null where there is none. */
static inline const char *metric_text(char out[32], double value, int digits) {
    if (isfinite(value)) snprintf(out, 32, "%.*g", digits, value);
    else snprintf(out, 32, "null");
    return out;
}

static inline void run_metrics(RunLog *log, const Metrics *m) {
    char loss[32], norm[32], causal[32], full[32];
    if (!log->metrics) return;
    fprintf(log->metrics,
            "{\"step\": %lld, \"tokens\": %lld, \"loss\": %s, \"grad_norm\": %s, \"lr\": %.17g, \"step_ms\": %.3f, \"tokens_per_s\": %.1f, "
            "\"mfu_causal\": %s, \"mfu_full\": %s, \"mem_bytes\": %lld, \"comm_bytes\": %lld, \"comm_exposed_ms\": %.3f",
            (long long)m->step, (long long)m->tokens, metric_text(loss, m->loss, 17), metric_text(norm, m->grad_norm, 17), m->lr, m->step_ms,
            m->tokens_per_s, metric_text(causal, m->mfu_causal, 6), metric_text(full, m->mfu_full, 6),
            (long long)m->mem_bytes, (long long)m->comm_bytes, m->comm_exposed_ms);
    if (m->val_loss == m->val_loss)
        fprintf(log->metrics, ", \"val_loss\": %.17g, \"val_perplexity\": %s", m->val_loss, metric_text(loss, exp(m->val_loss), 17));
    if (isfinite(m->val_loss) && isfinite(m->val_bits)) fprintf(log->metrics, ", \"val_bits_per_byte\": %.17g", m->val_bits);
    if (m->spike) fprintf(log->metrics, ", \"spike\": \"%s\"", m->spike);
    fprintf(log->metrics, "}\n");
    if (fflush(log->metrics) != 0) FAIL(THIS_RANK, "cannot write %s/metrics.jsonl: %s", log->dir, strerror(errno));
    run_still_there(log);
}

static inline void run_finish(RunLog *log) {
    if (log->metrics) run_still_there(log), run_close(log, log->metrics, "metrics.jsonl");
    log->metrics = NULL;
}

/* The line of one step. `eta`: seconds to go. */
static inline void print_step(const Metrics *m, i64 steps, double eta) {
    char val[48] = "", loss[48] = "none, no target counts", mfu[32] = "?";
    if (m->loss == m->loss) snprintf(loss, sizeof loss, "%.4f", m->loss);
    if (isfinite(m->mfu_causal)) snprintf(mfu, sizeof mfu, "%.1f%%", 100 * m->mfu_causal);
    if (m->val_loss == m->val_loss) snprintf(val, sizeof val, " | val %.4f", m->val_loss);
    printf("step %lld/%lld | loss %s%s | norm %.3f | lr %.2e | %.0f ms | %.0f tok/s | mfu %s | eta %lld:%02lld\n", (long long)m->step + 1,
           (long long)steps, loss, val, m->grad_norm, m->lr, m->step_ms, m->tokens_per_s, mfu, (long long)eta / 60,
           (long long)eta % 60);
    fflush(stdout);
}

#endif

/* log.h - what a run leaves behind. Rank 0 only.

   DIR/config.json     every flag as given or defaulted, the model, the mesh, memory of a rank by category
   DIR/metrics.jsonl   one object a step, flushed: a killed run keeps what it has
   DIR/comm.json       the ledger of the first step on rank 0, next to its closed form
   DIR/resumes.jsonl   an object each time the run goes on from a checkpoint: from which, what
                       changed, config.json of that time

   A run that goes on cuts metrics.jsonl back to the steps that its checkpoint has done: no step twice, none missing.
   Where the disk takes no line, the run goes on and lines wait in memory until it does; only at the end of the run is
   it an error that some are still not there. */
#ifndef ODYSSEUS_LOG_H
#define ODYSSEUS_LOG_H

#include "config.h"
#include "ledger.h"
#include <cjson/cJSON.h>
#include <sys/stat.h>

typedef struct {
    i64 step, tokens, mem_bytes, comm_bytes;
    /* NaN: there is none, MFU is not known; host_ms: what the host was busy with the step */
    double loss, grad_norm, lr, step_ms, tokens_per_s, mfu_causal, mfu_full, comm_exposed_ms, host_ms;
    double val_loss, val_bits;
    const char *spike; /* what became of it; NULL: it is none */
} Metrics;

typedef struct {
    char dir[3072];
    FILE *metrics; /* NULL: no --out */
    i64 end;       /* bytes of it that are there */
    char *wait;    /* what follows them and could not be written yet; NULL: nothing */
    int lacks_val; /* it goes on after a step whose line has no val_loss */
} RunLog;

/* mkdir -p */
static inline void make_directories(const char *dir) {
    char path[3072];
    snprintf(path, sizeof path, "%s", dir);
    for (char *p = path + 1;; p++) {
        if (*p && *p != '/') continue;
        char c = *p;
        *p = 0;
        if (mkdir(path, 0777) != 0 && errno != EEXIST)
            FAIL(THIS_RANK, "--out %s: cannot make the directory %s: %s", dir, path, strerror(errno));
        *p = c;
        if (!c) break;
    }
    struct stat info;
    if (stat(dir, &info) != 0 || !S_ISDIR(info.st_mode))
        FAIL(THIS_RANK, "--out %s is not a directory; choose another name", dir);
}

/* Create a file of the run directory that must not exist yet. */
static inline FILE *run_create(const RunLog *log, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", log->dir, name);
    FILE *f = fopen(path, "wx");
    if (!f && errno == EEXIST)
        FAIL(THIS_RANK, "--out %s already holds a %s; choose another directory, nothing is overwritten", log->dir,
             name);
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

/* A flag's value under its name; a text that is not set is left out. */
static inline void flag_json(cJSON *object, const Settings *s, const Flag *flag) {
    const char *field = (const char *)s + flag->field;
    if (flag->type == FLAG_TEXT || flag->type == FLAG_OPTIONAL || flag->type == FLAG_CHOICE) {
        const char *text;
        memcpy(&text, field, sizeof text);
        if (text) cJSON_AddStringToObject(object, flag->name, text);
    } else if (flag->type == FLAG_REAL) {
        double number;
        memcpy(&number, field, sizeof number);
        cJSON_AddNumberToObject(object, flag->name, number);
    } else {
        i64 number;
        memcpy(&number, field, sizeof number);
        cJSON_AddNumberToObject(object, flag->name, (double)number);
    }
}

/* Flags under their names, then the model and mesh they came to. */
static inline cJSON *run_config_json(const Settings *s, const Config *c, i64 world, i64 head, int threads,
                                     const char *precision) {
    cJSON *json = cJSON_CreateObject(), *flags = cJSON_AddObjectToObject(json, "flags"),
          *model = cJSON_AddObjectToObject(json, "model");
    for (int i = 0; i < COUNT_OF(FLAGS); i++) flag_json(flags, s, &FLAGS[i]);
    cJSON_AddStringToObject(model, "arch", arch_name(c->arch));
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

/* A new run overwrites nothing that is there. */
static inline void run_check_new(const char *dir) {
    const char *names[] = {"metrics.jsonl", "config.json", "comm.json", "eval.jsonl"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        if (access(path, F_OK) == 0)
            FAIL(THIS_RANK, "--out %s already holds a %s; choose another directory, nothing is overwritten", dir,
                 names[i]);
    }
}

/* Make the run directory, which run_check_new has looked at; `config` is written and freed. */
static inline void run_open(RunLog *log, const char *dir, cJSON *config) {
    memset(log, 0, sizeof *log);
    if (dir) {
        snprintf(log->dir, sizeof log->dir, "%s", dir);
        make_directories(dir);
        FILE *metrics = run_create(log, "metrics.jsonl");
        run_write_json(log, "config.json", config);
        log->metrics = metrics;
    } else {
        cJSON_Delete(config);
    }
}

/* Where the lines of metrics.jsonl end that come before `step`: whole ones, a step each. *last: the last of them, or
   -1; *val: has it a val_loss? */
static inline long metrics_end(FILE *f, i64 step, i64 *last, int *val) {
    char *line = NULL;
    size_t room = 0;
    long end = 0;
    *last = -1, *val = 0;
    for (ssize_t n; (n = getline(&line, &room, f)) > 0 && line[n - 1] == '\n';) {
        cJSON *json = cJSON_Parse(line);
        const cJSON *at = cJSON_GetObjectItemCaseSensitive(json, "step");
        int whole = cJSON_IsNumber(at) && at->valuedouble >= 0 && at->valuedouble < (double)step &&
                    (*last < 0 || at->valuedouble == (double)(*last + 1));
        if (whole)
            *last = (i64)at->valuedouble, *val = cJSON_GetObjectItemCaseSensitive(json, "val_loss") != NULL,
            end += (long)n;
        cJSON_Delete(json);
        if (!whole) break;
    }
    free(line);
    return end;
}

/* A line of resumes.jsonl: the run goes on at `step` from the checkpoint `from`; `changed`: what is not
   as it was. `config` is freed. */
static inline void run_write_resume(const RunLog *log, i64 step, const char *from, const char *changed, cJSON *config) {
    char path[4096];
    cJSON *json = cJSON_CreateObject();
    cJSON_AddNumberToObject(json, "step", (double)step);
    cJSON_AddStringToObject(json, "from", from);
    cJSON_AddStringToObject(json, "changed", changed);
    cJSON_AddItemToObject(json, "config", config);
    char *text = cJSON_PrintUnformatted(json);
    snprintf(path, sizeof path, "%s/resumes.jsonl", log->dir);
    FILE *f = fopen(path, "a");
    if (!f) FAIL(THIS_RANK, "cannot write %s: %s", path, strerror(errno));
    fprintf(f, "%s\n", text);
    run_close(log, f, "resumes.jsonl");
    free(text);
    cJSON_Delete(json);
}

/* Open a run directory that goes on at `step`: its metrics are cut back to the steps before, or begin there. */
static inline void run_continue(RunLog *log, const char *dir, i64 step) {
    char path[4096];
    i64 last;
    int val;
    memset(log, 0, sizeof *log);
    if (!dir) return;
    snprintf(log->dir, sizeof log->dir, "%s", dir);
    make_directories(dir);
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    log->metrics = fopen(path, "r+");
    if (!log->metrics && errno == ENOENT) log->metrics = run_create(log, "metrics.jsonl");
    if (!log->metrics) FAIL(THIS_RANK, "cannot write %s: %s", path, strerror(errno));
    long end = metrics_end(log->metrics, step, &last, &val);
    if (last >= 0 && last != step - 1)
        note("%s ends with step %lld, the checkpoint is after step %lld: those between are not in it", path, last,
             step - 1);
    log->lacks_val = last == step - 1 && last >= 0 && !val;
    log->end = end;
    if (ftruncate(fileno(log->metrics), (off_t)end) != 0)
        FAIL(THIS_RANK, "cannot cut %s back to step %lld: %s", path, step, strerror(errno));
}

/* A file without a name takes what is written, and loses it at the end. */
static inline void run_still_there(const RunLog *log) {
    struct stat info;
    if (fstat(fileno(log->metrics), &info) == 0 && info.st_nlink == 0)
        FAIL(THIS_RANK, "--out %s: metrics.jsonl was removed while the run went on, its results are lost; start again",
             log->dir);
}

/* A number of JSON, which knows no NaN: null where there is none. */
static inline const char *metric_text(char out[32], double value, int digits) {
    if (isfinite(value)) snprintf(out, 32, "%.*g", digits, value);
    else snprintf(out, 32, "null");
    return out;
}

/* Try to write what waits. 1: all is there. A line may be there in part: the next try begins where it does. */
static inline int run_flush(RunLog *log) {
    i64 n = log->wait ? (i64)strlen(log->wait) : 0, done = 0;
    while (done < n) {
        ssize_t part = pwrite(fileno(log->metrics), log->wait + done, (size_t)(n - done), (off_t)(log->end + done));
        if (part < 0 && errno == EINTR) continue;
        if (part < 0) return 0;
        done += (i64)part;
    }
    log->end += n;
    free(log->wait);
    log->wait = NULL;
    return 1;
}

/* Put `text` behind the line written last, and write. The first time that it cannot be written, that is said. */
static inline void run_append(RunLog *log, const char *text) {
    size_t old = log->wait ? strlen(log->wait) : 0, n = strlen(text);
    log->wait = (char *)realloc(log->wait, old + n + 1);
    if (!log->wait) FAIL(THIS_RANK, "out of host memory");
    memcpy(log->wait + old, text, n + 1);
    if (run_flush(log) || old) return;
    note("cannot write %s/metrics.jsonl: %s; its lines wait in memory", log->dir, strerror(errno));
}

/* What a validation adds to the line of its step; "" where there was none. */
static inline void run_metric_val_text(char *out, size_t size, const Metrics *m) {
    char perplexity[32];
    *out = 0;
    if (m->val_loss != m->val_loss) return;
    int n = snprintf(out, size, ", \"val_loss\": %.17g, \"val_perplexity\": %s", m->val_loss,
                     metric_text(perplexity, exp(m->val_loss), 17));
    if (isfinite(m->val_loss) && isfinite(m->val_bits))
        snprintf(out + n, size - (size_t)n, ", \"val_bits_per_byte\": %.17g", m->val_bits);
}

static inline void run_metrics(RunLog *log, const Metrics *m) {
    char loss[32], norm[32], causal[32], full[32], val[160], spike[48] = "", host[48] = "", line[960];
    if (!log->metrics) return;
    run_metric_val_text(val, sizeof val, m);
    if (isfinite(m->host_ms)) snprintf(host, sizeof host, ", \"host_ms\": %.3f", m->host_ms);
    if (m->spike) snprintf(spike, sizeof spike, ", \"spike\": \"%s\"", m->spike);
    snprintf(line, sizeof line,
             "{\"step\": %lld, \"tokens\": %lld, \"loss\": %s, \"grad_norm\": %s, \"lr\": %.17g, \"step_ms\": %.3f, "
             "\"tokens_per_s\": %.1f, \"mfu_causal\": %s, \"mfu_full\": %s, \"mem_bytes\": %lld, \"comm_bytes\": %lld, "
             "\"comm_exposed_ms\": %.3f%s%s%s}\n",
             m->step, m->tokens, metric_text(loss, m->loss, 17), metric_text(norm, m->grad_norm, 17), m->lr, m->step_ms,
             m->tokens_per_s, metric_text(causal, m->mfu_causal, 6), metric_text(full, m->mfu_full, 6), m->mem_bytes,
             m->comm_bytes, m->comm_exposed_ms, host, val, spike);
    run_append(log, line);
    run_still_there(log);
}

/* Add ", "name": value" to the line written last. */
static inline void run_line_more(RunLog *log, const char *more) {
    char text[192];
    if (!log->metrics || !*more) return;
    snprintf(text, sizeof text, "%s}\n", more);
    if (log->wait) log->wait[strlen(log->wait) - 2] = 0; /* before "}\n" */
    else log->end -= 2;
    run_append(log, text);
}

/* What is known of a step only after its line is written: how long its checkpoint took, what the validation found. */
static inline void run_save_ms(RunLog *log, double ms) {
    char text[64];
    snprintf(text, sizeof text, ", \"save_ms\": %.6g", ms);
    run_line_more(log, text);
}

static inline void run_validation(RunLog *log, const Metrics *m) {
    char text[160];
    run_metric_val_text(text, sizeof text, m);
    run_line_more(log, text);
}

static inline void run_finish(RunLog *log) {
    if (log->metrics) {
        run_still_there(log);
        if (!run_flush(log)) FAIL(THIS_RANK, "cannot write %s/metrics.jsonl: %s", log->dir, strerror(errno));
        run_close(log, log->metrics, "metrics.jsonl");
    }
    log->metrics = NULL;
}

#endif

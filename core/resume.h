/* resume.h - going on from a checkpoint: which one, does it fit, and back into the shards
   of whatever mesh this run has.

   --resume WHERE   a run directory, its folder of checkpoints, or one checkpoint; "": the folder that this run saves to
   which            rank 0 lists, every rank reads its share of the bytes, all learn the verdict (manifest.h):
                    the newest whole one is taken; each that is not whole is named with its reason and stays
                    where it is. One that is named must be whole itself. The optimizer's numbers, most of the
                    bytes, are judged by their loading; should they not be whole, the next older one is taken,
                    and loaded over what the first has left.
   does it fit      trainer.json: the flags that change the arithmetic must be those of now, and so must the
                    data; the model is that of config.json. --resume-with-changes allows all that does not change
                    a tensor's shape, and names it
   back             optimizer*.safetensors: each rank reads, sums and converts the elements that it owns. Every element
                    has one owner, so the sums add up to those of the files, as they did when they were written

   trainer.json     "step" done; "next_sequence" of the list of training data, counted on past its end; "flags" that
                    change the arithmetic; "losses": their mean and variance so far (spike.h); "data": what the list was
                    made of. No rank, scheme, mesh or backend: those may be others every time.                        */
#ifndef ODYSSEUS_RESUME_H
#define ODYSSEUS_RESUME_H

#include "data.h"
#include "log.h"
#include "save.h"
#include "spike.h"

/* ---- which one --------------------------------------------------------------------------------------------------- */

/* Where to look, as rank 0 finds it. */
typedef struct {
    char folder[PATH_MAX]; /* of checkpoints; or, where `one`, the checkpoint itself */
    int one;
    Trouble why;           /* there is nothing to resume */
} ResumePlace;

/* The checkpoint to go on from. Owner: caller; manifest_free. */
typedef struct {
    char dir[PATH_MAX];
    char folder[PATH_MAX]; /* where the older ones lie; "": this one was named, and no other will do */
    char said[640];        /* the newest that is not whole, and why; "": none */
    i64 step;
    int continues; /* it lies where this run saves: the run directory goes on */
    Manifest manifest;
} Resume;

static inline int same_directory(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* The last part of a path, without slashes behind it. */
static inline void path_last(char out[PATH_MAX], const char *path) {
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    size_t from = n;
    while (from > 0 && path[from - 1] != '/') from--;
    snprintf(out, PATH_MAX, "%.*s", (int)(n - from), path + from);
}

static inline void resume_place(ResumePlace *p, const char *where) {
    char last[PATH_MAX], inner[PATH_MAX];
    int n;
    memset(p, 0, sizeof *p);
    if (strlen(where) >= 3072) {
        trouble(&p->why, "its path is too long");
        return;
    }
    if (!path_is_directory(where)) {
        trouble(&p->why, path_exists(where) ? "it is no directory" : "no such directory");
        return;
    }
    path_last(last, where);
    path_join(inner, where, MANIFEST_NAME);
    p->one = path_exists(inner) || step_of_name(last) >= 0;
    path_join(inner, where, "checkpoints");
    snprintf(p->folder, sizeof p->folder, "%s", !p->one && path_is_directory(inner) ? inner : where);
    if (p->one) return;
    free(steps_list(p->folder, &n));
    if (!n)
        trouble(&p->why, "no checkpoint is in it: a run directory, its folder of checkpoints (step-00000100, ...) or "
                         "one of them is wanted");
}

/* `found` is not whole. */
static inline void resume_skip(Wire world, Saver *s, Resume *found, const Trouble *why) {
    char name[STEP_NAME_MAX];
    step_name(name, found->step);
    if (found->continues) verdict_set(s, found->step, 0);
    if (!found->said[0]) snprintf(found->said, sizeof found->said, "%s: %s", name, why->text);
    if (wire_rank(world) == 0) note("%s is skipped: %s", found->dir, why->text);
}

/* The newest whole one in `folder` of the steps between `after` and `before`; others are named. `loads`: as of
   checkpoint_judge. Collective. */
static inline int resume_newest(Wire world, Saver *s, const char *folder, i64 after, i64 before, int threads, int loads,
                                Resume *found) {
    int n, got = 0;
    i64 *steps = steps_told(world, folder, &n);
    for (int i = 0; i < n && steps[i] > after && !got; i++) {
        char name[STEP_NAME_MAX];
        Trouble why;
        if (steps[i] >= before) continue;
        step_name(name, steps[i]);
        snprintf(found->dir, sizeof found->dir, "%.3500s/%s", folder, name);
        found->step = steps[i];
        got = checkpoint_judge(world, found->dir, steps[i], threads, loads, &found->manifest, &why);
        if (!got) resume_skip(world, s, found, &why);
        else if (found->continues) verdict_set(s, found->step, 1);
    }
    free(steps);
    return got;
}

/* The newest one in found->folder before `before` steps. Ends the run where there is none. Collective. */
static inline void resume_take(Wire world, Saver *s, const char *where, i64 before, int threads, Resume *found) {
    if (!resume_newest(world, s, found->folder, -1, before, threads, 1, found))
        FAIL(EVERYONE, "--resume %s: no checkpoint in it is whole; the newest, %s", where, found->said);
}

static inline void resume_not_whole(const char *where, const Trouble *why) {
    FAIL(EVERYONE, "--resume %s: this checkpoint is not whole: %s", where, why->text);
}

/* Its numbers were not what was written: the next older one, if it may be another. Collective. */
static inline void resume_older(Wire world, Saver *s, const char *where, int threads, Resume *found,
                                const Trouble *why) {
    if (!found->folder[0]) resume_not_whole(where, why);
    manifest_free(&found->manifest);
    resume_skip(world, s, found, why);
    resume_take(world, s, where, found->step, threads, found);
}

/* The checkpoint that --resume `where` means. Ends the run where there is none that is whole. s->dir is where this run
   saves ("": nowhere). Collective; no rank goes on before all know. */
static inline void resume_find(Wire world, Saver *s, const char *where, int threads, Resume *found) {
    ResumePlace place;
    if (!*where) where = s->dir;
    if (wire_rank(world) == 0) resume_place(&place, where);
    wire_tell(world, &place, sizeof place);
    if (troubled(&place.why)) FAIL(EVERYONE, "--resume %s: %s", where, place.why.text);
    memset(found, 0, sizeof *found);
    if (!place.one) {
        found->continues = s->dir[0] && same_directory(place.folder, s->dir);
        wire_tell(world, &found->continues, sizeof found->continues);
        memcpy(found->folder, place.folder, sizeof found->folder);
        resume_take(world, s, where, COUNT_MAX, threads, found);
        return;
    }
    Trouble why;
    char last[PATH_MAX], folder[PATH_MAX];
    path_last(last, place.folder);
    snprintf(folder, sizeof folder, "%.4000s/..", place.folder);
    found->continues = s->dir[0] && step_of_name(last) >= 0 && same_directory(folder, s->dir);
    wire_tell(world, &found->continues, sizeof found->continues);
    snprintf(found->dir, sizeof found->dir, "%s", place.folder);
    if (!checkpoint_judge(world, found->dir, step_of_name(last), threads, 1, &found->manifest, &why))
        resume_not_whole(where, &why);
    found->step = found->manifest.step;
    if (!found->continues) return;
    Resume newer = *found;
    verdict_set(s, found->step, 1);
    if (resume_newest(world, s, s->dir, found->step, COUNT_MAX, threads, 0, &newer))
        FAIL(EVERYONE,
             "--resume %s: %s is newer and whole; to go back, move that away, or begin another run there with another "
             "--out",
             where, newer.dir);
}

/* ---- trainer.json ------------------------------------------------------------------------------------------------ */

/* Flags that leave the numbers as they are, or that something else answers for: the model's sizes (config.json), the
   data ("data"). Every other flag is held against the checkpoint's; so is a flag that nobody has thought of here. */
static const char *const RESUME_FREE[] = {
    "model", "arch", "layers", "dim", "heads", "kv-heads", "ffn", "vocab", "max-pos", "rope-theta", "tied-head",
    "train", "val", "check-data", "micro-batch", "sp", "dp", "ring", "ring-layout", "context", "gather-tokens",
    "ring-backward", "overlap", "comm", "comm-timeout", "threads", "recompute", "layer-inputs", "offload", "tile-rows",
    "head-groups", "selfcheck", "eval-every", "eval-batches", "eval-task", "eval-trials", "eval-file", "log-every",
    "save-every", "save-async", "save", "keep", "keep-every", "resume", "resume-with-changes", "max-hours", "out",
    "init-only", "dump-grads", "trace", "peak-tflops", "sample", "sample-file", "sample-ids", "sample-tokens",
    "sample-every", "temperature", "top-p", "dry-run", "world", "help",
};

static inline int resume_free(const char *flag) {
    int i = 0;
    while (i < COUNT_OF(RESUME_FREE) && strcmp(RESUME_FREE[i], flag) != 0) i++;
    return i < COUNT_OF(RESUME_FREE);
}

/* What a list of training data was made of: its shards' tokens, the beginnings of shards
   and masks, not where they lie. */
typedef struct {
    i64 tokens, sequences;
    uint64_t sum;
} DataPrint;

/* Add the sum of a file's beginning, as the part-th. */
static inline void data_print_file(DataPrint *p, const SumKeys *keys, const char *path, i64 part) {
    char buf[(i64)64 << 10];
    i64 have = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    for (ssize_t got = 1; fd >= 0 && have < (i64)sizeof buf && got > 0;) {
        got = pread(fd, buf + have, sizeof buf - (size_t)have, (off_t)have);
        if (got < 0 && errno == EINTR) got = 1;
        else if (got > 0) have += (i64)got;
    }
    if (fd < 0 || have < SHARD_HEADER_BYTES) FAIL(THIS_RANK, "cannot read %s: %s", path, strerror(errno));
    close(fd);
    p->sum += range_sum(keys, part * (i64)sizeof buf, buf, have);
}

static inline DataPrint data_print(const Dataset *d) {
    DataPrint p = {0, d->sequences, 0};
    SumKeys *keys = (SumKeys *)host_alloc(sizeof *keys);
    sum_keys(keys);
    for (int i = 0; i < d->shards; i++) {
        char mask[PATH_MAX];
        data_print_file(&p, keys, d->shard[i].path, i);
        mask_path(mask, d->shard[i].path);
        if (d->shard[i].masked) data_print_file(&p, keys, mask, d->shards + i);
        p.tokens += d->shard[i].tokens;
    }
    free(keys);
    return p;
}

/* trainer.json after `step` steps, when the next one takes sequence `next` of the list. Owner: caller; cJSON_free. */
static inline char *trainer_text(const Settings *s, const DataPrint *data, const SpikeWatch *spike, i64 step,
                                 i64 next) {
    char sum[17];
    cJSON *root = json_made(cJSON_CreateObject());
    json_add_text(root, "format", MANIFEST_FORMAT);
    json_add_int(root, "version", MANIFEST_VERSION);
    json_add_int(root, "step", step);
    json_add_int(root, "next_sequence", next);
    cJSON *flags = json_made(cJSON_AddObjectToObject(root, "flags"));
    for (int i = 0; i < COUNT_OF(FLAGS); i++)
        if (!resume_free(FLAGS[i].name)) flag_json(flags, s, &FLAGS[i]);
    cJSON *d = json_made(cJSON_AddObjectToObject(root, "data"));
    snprintf(sum, sizeof sum, "%016llx", (unsigned long long)data->sum);
    json_add_int(d, "tokens", data->tokens);
    json_add_int(d, "sequences", data->sequences);
    json_add_text(d, "sum", sum);
    cJSON *losses = json_made(cJSON_AddObjectToObject(root, "losses"));
    json_made(cJSON_AddNumberToObject(losses, "mean", spike->mean));
    json_made(cJSON_AddNumberToObject(losses, "variance", spike->variance));
    json_add_int(losses, "steps", spike->steps);
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    if (!text) FAIL(THIS_RANK, "out of host memory while writing JSON");
    return text;
}

/* A list of what is not as it was, for one line. */
typedef struct {
    char text[1024];
    int n;
} Changes;

static inline void change(Changes *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void change(Changes *c, const char *format, ...) {
    size_t n = strlen(c->text);
    va_list args;
    if (c->n++ && n + 3 < sizeof c->text) n += (size_t)snprintf(c->text + n, sizeof c->text - n, ", ");
    va_start(args, format);
    vsnprintf(c->text + n, sizeof c->text - n, format, args);
    va_end(args);
}

/* A flag's value as text, "" where it has none. */
static inline void json_value_text(char out[64], const cJSON *item) {
    out[0] = 0;
    if (cJSON_IsNumber(item)) snprintf(out, 64, "%.12g", item->valuedouble);
    else if (cJSON_IsString(item))
        snprintf(out, 64, "%.60s", text_is_printable(item->valuestring) ? item->valuestring : "(not printable)");
}

/* What of trainer.json in `dir` is not as now. *next: the sequence that comes next, if the data are the same. A flag
   that the writer did not know stood at its default. */
static inline void trainer_compare(const Settings *now, const DataPrint *data, const char *dir, i64 step, i64 *next,
                                   SpikeWatch *spike, Changes *changes) {
    char path[PATH_MAX], name[8] = "", *program[] = {name};
    Settings usual;
    FlagsGiven given;
    path_join(path, dir, "trainer.json");
    cJSON *root = json_parse_file(path);
    JsonAt j = {path, "", root};
    i64 version = json_int(&j, "version", JSON_REQUIRED, 1, COUNT_MAX);
    if (version > MANIFEST_VERSION)
        FAIL(EVERYONE, "%s is of version %lld, this program reads up to %d: use a newer one", path, version,
             MANIFEST_VERSION);
    if (json_int(&j, "step", JSON_REQUIRED, 0, COUNT_MAX) != step) FAIL(EVERYONE, "%s is not of step %lld", path, step);
    *next = json_int(&j, "next_sequence", JSON_REQUIRED, 0, COUNT_MAX);
    JsonAt losses = {path, "losses.", json_find(path, root, "losses")};
    spike->mean = json_real(&losses, "mean", JSON_REQUIRED, -1e300, 1e300);
    spike->variance = json_real(&losses, "variance", JSON_REQUIRED, 0, 1e300);
    spike->steps = json_int(&losses, "steps", JSON_REQUIRED, 0, COUNT_MAX);
    flags_parse(&usual, &given, 1, program);
    cJSON *is = json_made(cJSON_CreateObject()), *fallback = json_made(cJSON_CreateObject());
    const cJSON *flags = json_find(path, root, "flags"), *d = json_find(path, root, "data");
    for (int i = 0; i < COUNT_OF(FLAGS); i++) {
        const char *flag = FLAGS[i].name;
        char a[64], b[64];
        if (resume_free(flag)) continue;
        flag_json(is, now, &FLAGS[i]), flag_json(fallback, &usual, &FLAGS[i]);
        const cJSON *mine = json_find(path, is, flag), *was = json_find(path, flags, flag);
        if (!was) was = json_find(path, fallback, flag);
        if (!mine && !was) continue;
        if (mine && was && cJSON_Compare(mine, was, 1)) continue;
        json_value_text(a, mine), json_value_text(b, was);
        change(changes, "--%s %s (was %s)", flag, a, b);
    }
    cJSON_Delete(is);
    cJSON_Delete(fallback);
    JsonAt in = {path, "data.", d};
    i64 tokens = json_int(&in, "tokens", JSON_REQUIRED, 0, COUNT_MAX);
    const char *sum = json_text(&in, "sum", NULL);
    if (tokens != data->tokens)
        change(changes, "--train with %lld tokens (was %lld)", data->tokens, tokens);
    else if (strtoull(sum, NULL, 16) != data->sum) change(changes, "--train with other tokens or masks");
    cJSON_Delete(root);
}

/* What of the model is not the checkpoint's: `shapes` cannot be loaded, `others` change the arithmetic. */
static inline void config_compare(const Config *now, const Config *was, Changes *shapes, Changes *others) {
    const char *flags[] = {"layers", "dim", "heads", "kv-heads", "head-dim", "ffn", "vocab"};
    const i64 a[] = {now->layers, now->dim, now->heads, now->kv_heads, now->head_dim, now->ffn, now->vocab};
    const i64 b[] = {was->layers, was->dim, was->heads, was->kv_heads, was->head_dim, was->ffn, was->vocab};
    if (now->arch != was->arch)
        change(shapes, "--arch %s (was %s)", arch_name(now->arch), arch_name(was->arch));
    for (int i = 0; i < COUNT_OF(flags); i++)
        if (a[i] != b[i]) change(shapes, "--%s %lld (was %lld)", flags[i], a[i], b[i]);
    if (now->tied != was->tied)
        change(shapes, "--tied-head %s (was %s)", now->tied ? "on" : "off", was->tied ? "on" : "off");
    if (now->max_pos != was->max_pos)
        change(now->has & HAS_POSITIONS ? shapes : others, "--max-pos %lld (was %lld)", now->max_pos, was->max_pos);
    if (now->norm_eps != was->norm_eps) change(others, "the norm's epsilon %g (was %g)", now->norm_eps, was->norm_eps);
    if (now->has != was->has) change(shapes, "which biases and norms it has");
    if (now->window != was->window || !layers_equal(&now->windowed, &was->windowed))
        change(others, "its sliding window");
    if (!layers_equal(&now->no_rope, &was->no_rope)) change(others, "which layers rotate");
    if (now->rope_theta != was->rope_theta)
        change(others, "--rope-theta %g (was %g)", now->rope_theta, was->rope_theta);
    if (!rope_scaling_equal(&now->rope_scaling, &was->rope_scaling))
        change(others, "the scaling of its rotary embedding: %s by %g (was %s by %g)",
               ROPE_NAMES[now->rope_scaling.kind], now->rope_scaling.factor, ROPE_NAMES[was->rope_scaling.kind],
               was->rope_scaling.factor);
}

/* ---- back into memory -------------------------------------------------------------------------------------------- */

/* Every optimizer*.safetensors of the checkpoint in `dir`. Owner: caller; safetensors_close. */
static inline void optimizer_open(SafetensorSet *s, const char *dir, const Manifest *m) {
    memset(s, 0, sizeof *s);
    for (int i = 0; i < m->files; i++) {
        char path[PATH_MAX];
        if (!text_begins_with(m->file[i].name, "optimizer") || !text_ends_with(m->file[i].name, ".safetensors"))
            continue;
        path_join(path, dir, m->file[i].name);
        safetensors_add_file(s, path);
    }
    safetensors_sort(s);
}

/* Tensor `t` of a kind, in the files of a checkpoint. */
static inline const Safetensor *optimizer_need(const SafetensorSet *s, const char *dir, SavedKind kind, const Tensor *t,
                                               const HfPlace *place) {
    char hf[HF_NAME_MAX], name[SAVED_NAME_MAX], is[256], should[256];
    tensor_hf_name(hf, t->spec, t->layer);
    saved_name(name, kind, hf);
    const Safetensor *found = safetensors_find(s, name);
    if (!found) FAIL(EVERYONE, "%s: tensor %s is missing from optimizer*.safetensors", dir, name);
    if (found->type != ST_F32 && found->type != ST_F64)
        FAIL(EVERYONE, "%s: tensor %s has dtype %s; F32 and F64 are right", found->path, name,
             SAFETENSOR_TYPES[found->type].name);
    if (found->dims == place->dims && memcmp(found->shape, place->shape, (size_t)place->dims * sizeof(i64)) == 0)
        return found;
    shape_text(is, sizeof is, found->shape, found->dims);
    shape_text(should, sizeof should, place->shape, place->dims);
    FAIL(EVERYONE, "%s: tensor %s has shape %s, the model's is %s", found->path, name, is, should);
}

/* Which of the manifest's files is `path`? */
static inline int optimizer_file(const Manifest *m, const char *path) {
    const char *name = strrchr(path, '/') + 1;
    int i = 0;
    while (strcmp(m->file[i].name, name) != 0) i++;
    return i;
}

/* Reads ranges of a tensor and sums their bytes: what a RangeWriter is for writing. One a thread. */
typedef struct {
    const SumKeys *keys;
    const Safetensor *from;
    int fd;
    i64 data;         /* where the tensor's numbers begin in the file */
    char *buf;        /* READ_BLOCK bytes, of which `fill` are those of the file from `begin` on */
    i64 begin, fill;
    SavedPart part;   /* what was read of this tensor */
    accum *to;
    Trouble trouble;
} RangeReader;

/* n bytes from byte `at` of the file on. */
static inline void range_read(RangeReader *r, void *into, i64 at, i64 n) {
    i64 have = 0;
    while (have < n && !troubled(&r->trouble)) {
        ssize_t got = pread(r->fd, (char *)into + have, (size_t)(n - have), (off_t)(at + have));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) trouble_call(&r->trouble, "read", r->from->path);
        else if (got == 0) trouble(&r->trouble, "%s has become shorter", r->from->path);
        else have += (i64)got;
    }
    r->part.sum += range_sum(r->keys, at, into, have), r->part.bytes += have;
    if (omp_get_thread_num() == 0) watch_look(); /* others may wait, and ask */
}

/* Of piece_runs: from the file into to[first], to[first + stride], ... */
static inline void piece_get(void *context, i64 at, i64 first, i64 stride, i64 count, i64 end) {
    RangeReader *r = (RangeReader *)context;
    i64 size = SAFETENSOR_TYPES[r->from->type].bytes;
    accum *to = r->to + first;
    for (i64 n; count > 0 && !troubled(&r->trouble); at += n, to += n * stride, count -= n) {
        i64 byte = r->data + at * size;
        n = i64_min(count, READ_BLOCK / size);
        if (size == (i64)sizeof(accum) && stride == 1) { /* as they are */
            range_read(r, to, byte, n * size);
            continue;
        }
        if (byte < r->begin || byte >= r->begin + r->fill) {
            r->begin = byte, r->fill = i64_min(READ_BLOCK, (end - at) * size);
            range_read(r, r->buf, byte, r->fill);
        }
        n = i64_min(n, (r->begin + r->fill - byte) / size);
        const float *f32 = (const float *)(const void *)(r->buf + byte - r->begin);
        const double *f64 = (const double *)(const void *)f32;
        if (r->from->type == ST_F32)
            for (i64 i = 0; i < n; i++) to[i * stride] = (accum)f32[i];
        else
            for (i64 i = 0; i < n; i++) to[i * stride] = (accum)f64[i];
    }
}

/* What this rank owns of tensor `t`, into the device's `flat`. `part`: CHECKPOINT_PIECE elements on the host. */
static inline void optimizer_read_tensor(Zero *z, accum *flat, const Tensor *t, const HfPlace *place, RangeReader *r,
                                         accum *part) {
    i64 at, n = tensor_range(z, t, &at), first = tensor_first(z, t, at);
    memset(&r->part, 0, sizeof r->part);
    r->fill = 0;
    if (n == 0) return;
    r->fd = open(r->from->path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0) trouble_call(&r->trouble, "read", r->from->path);
    for (i64 done = 0; done < n && !troubled(&r->trouble); done += CHECKPOINT_PIECE) {
        i64 piece = i64_min(CHECKPOINT_PIECE, n - done);
        r->to = DEVICE_IS_HOST ? flat + at + done : part;
        piece_runs(t, place, first + done, piece, piece_get, r);
        if (DEVICE_IS_HOST) continue;
#pragma omp critical(weights)
        copy_in(z->dev, flat + at + done, part, piece * (i64)sizeof(accum));
    }
    if (r->fd >= 0) close(r->fd);
}

/* Refuse files of another model. */
static inline void optimizer_fits(const Zero *z, const SafetensorSet *s, const char *dir) {
    int hfs;
    free(checkpoint_list(z, &hfs));
    int used = hfs * (int)(SAVED_V - SAVED_MASTER + 1);
    if (s->tensors > used)
        FAIL(EVERYONE, "%s: optimizer*.safetensors hold %d tensors, the model has %d", dir, s->tensors, used);
    for (int k = (int)SAVED_MASTER; k <= (int)SAVED_V; k++)
        for (int i = 0; i < z->tensors; i++) {
            HfPlace place = tensor_hf_place(z->tensor[i].spec, z->config);
            optimizer_need(s, dir, (SavedKind)k, &z->tensor[i], &place);
        }
}

/* Weights and moments of this rank's shards, from the checkpoint in `dir` of manifest `m`; what it holds
   beyond the model is an error. To part[i] is added what this rank read of the manifest's file i. Trouble: the
   shards hold nothing of use. */
static inline void optimizer_read(Zero *z, const char *dir, const Manifest *m, SavedPart *part, Trouble *why) {
    SafetensorSet s;
    SumKeys *keys = (SumKeys *)host_alloc(sizeof *keys);
    accum *const flats[] = {z->master, z->m, z->v};
    sum_keys(keys);
    optimizer_open(&s, dir, m);
    optimizer_fits(z, &s, dir);
#pragma omp parallel num_threads(z->dev->host_threads)
    {
        RangeReader r;
        accum *piece = (accum *)host_alloc(sizeof(accum) * (size_t)i64_min(CHECKPOINT_PIECE, z->flat));
        memset(&r, 0, sizeof r);
        r.keys = keys, r.buf = (char *)host_alloc((size_t)READ_BLOCK);
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < z->tensors * COUNT_OF(flats); i++) { /* in the files' order */
            const Tensor *t = &z->tensor[i / COUNT_OF(flats)];
            int kind = i % COUNT_OF(flats), file = 0;
            HfPlace place = tensor_hf_place(t->spec, z->config);
            r.from = optimizer_need(&s, dir, (SavedKind)(kind + (int)SAVED_MASTER), t, &place);
            while (s.file[file].path != r.from->path) file++;
            r.data = r.from->data - s.file[file].map.bytes;
            if (!troubled(&r.trouble)) optimizer_read_tensor(z, flats[kind], t, &place, &r, piece);
            int row = optimizer_file(m, r.from->path);
#pragma omp critical(parts)
            part[row].sum += r.part.sum, part[row].bytes += r.part.bytes;
        }
#pragma omp critical(parts)
        if (troubled(&r.trouble)) trouble(why, "%s", r.trouble.text);
        free(r.buf);
        free(piece);
    }
    safetensors_close(&s);
    free(keys);
}

/* Are the numbers that all ranks have read what was written? */
static inline void optimizer_check(const Manifest *m, const SavedPart *part, Trouble *why) {
    for (int i = 0; i < m->files && !troubled(why); i++) {
        const ManifestFile *f = &m->file[i];
        if (!f->head) continue; /* judged before */
        if (part[i].bytes != f->bytes - f->head)
            FAIL(EVERYONE, "%s: the ranks read %lld bytes of %lld", f->name, part[i].bytes, f->bytes - f->head);
        if (part[i].sum + f->head_sum != f->sum) manifest_differs(f, why);
    }
}

/* Weights and moments from the checkpoint in `dir`, judged with `loads`: 1. 0: it is not whole, and *why; master, m and
   v hold nothing of use. Collective; every rank learns the same. */
static inline int optimizer_load(Zero *z, Wire world, const char *dir, const Manifest *m, Trouble *why) {
    int ranks = wire_size(world), files = m->files;
    SavedPart *mine = (SavedPart *)host_alloc(sizeof(SavedPart) * (size_t)files);
    SavedPart *all = (SavedPart *)host_alloc(sizeof(SavedPart) * (size_t)files * (size_t)ranks);
    memset(why, 0, sizeof *why);
    optimizer_read(z, dir, m, mine, why);
    if (!trouble_anywhere(world, why)) {
        wire_share(world, all, mine, sizeof(SavedPart) * (size_t)files);
        memset(mine, 0, sizeof(SavedPart) * (size_t)files);
        for (int r = 0; r < ranks; r++)
            for (int i = 0; i < files; i++)
                mine[i].sum += all[r * files + i].sum, mine[i].bytes += all[r * files + i].bytes;
        optimizer_check(m, mine, why);
    }
    if (!troubled(why)) convert(z->dev, z->param, z->master, z->flat);
    free(mine);
    free(all);
    return !troubled(why);
}

#endif

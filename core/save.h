/* save.h - a checkpoint of a run in training: written by all ranks at once, whole or not at
   all, and how many of them stay.

   step-00001000/   config.json, model*.safetensors + index    what transformers, vLLM and llama.cpp load, in F32
                    tokenizer files, generation_config.json    as they lay beside the model that the run began with
                    optimizer*.safetensors                     master.NAME, m.NAME, v.NAME: logical
                                                               tensors in F32 (F64 in the referee)
                    trainer.json                               what else the next step depends on: see resume.h
                    manifest.json                              sizes and sums of all these, written last: see manifest.h

   rank 0     .step-00001000.partial/   the files, with headers and at full length
   every rank                           its own byte ranges of the logical tensors, straight from its shards; fsync
   rank 0                               small files, manifest, fsync; fsync the directory; rename it; fsync its parent
   then       older ones beyond --keep: renamed, then deleted. A newer one is durable before an older one goes

   ranges     a rank's part of a tensor is contiguous in its shard, so it is rows of the tensor with a part of a row
              before and behind. In the file these are one range (whole rows), one range a row (columns split over the
              head axis) or one a column (GPT-2's transposed matrices). Neighbouring ranges become one write of up to 4
              MB. No rank needs another's numbers.
   aside      --save-async: shards are copied to host memory, and a thread of each rank converts and writes them while
              training goes on. No message leaves that thread: the ranks learn with the sum at the end of a step whether
              all have written, and rank 0 does the rest then
   failing    whatever goes wrong on whichever rank - disk full, quota, I/O error, read-only - all ranks agree
              on it after each of the three steps, the partial directory goes, rank 0 says so, and the run goes
              on; the next save tries again.
   index      model.safetensors.index.json is there even for one file: a loader that takes every *.safetensors of a
              directory without one would take the optimizer's.

   Host memory: one piece of CHECKPOINT_PIECE elements (of a GPU's) and a buffer of 4 MB a rank; aside, the rank's
   master, m and v, too; tokenizer files on rank 0.                                                                   */
#ifndef ODYSSEUS_SAVE_H
#define ODYSSEUS_SAVE_H

#include "cgroup.h"
#include "manifest.h"
#include <pthread.h>

#ifndef CHECKPOINT_SHARD /* a test makes it small */
#define CHECKPOINT_SHARD ((i64)5 << 30) /* bytes of a file, about */
#endif
#define RANGE_ROOM ((i64)4 << 20) /* bytes written at a time */

/* ---- what goes where --------------------------------------------------------------------------------------------- */

typedef enum { SAVED_MODEL, SAVED_MASTER, SAVED_M, SAVED_V, SAVED_KINDS } SavedKind;
static const char *const SAVED_PREFIX[SAVED_KINDS] = {"", "master.", "m.", "v."};

#define SAVED_NAME_MAX (HF_NAME_MAX + 8)
#define ACCUM_FILE_TYPE (sizeof(accum) == 8 ? ST_F64 : ST_F32)

/* One tensor of one file. */
typedef struct {
    char name[SAVED_NAME_MAX];
    int hf; /* in SavePlan.hf */
    SavedKind kind;
    SafetensorType type;
    i64 at, bytes; /* where its data stand in the file */
} SavedTensor;

typedef struct {
    char name[64];
    int first, tensors; /* in SavePlan.tensor */
    char *header;
    i64 header_bytes, bytes; /* bytes: of the whole file */
} SavedFile;

/* Every rank makes the same. Owner: caller; save_plan_free. */
typedef struct {
    HfTensor *hf;
    SavedTensor *tensor;
    SavedFile *file;
    int hfs, tensors, files, model_files;
} SavePlan;

static inline void saved_name(char out[SAVED_NAME_MAX], SavedKind kind, const char *hf_name) {
    snprintf(out, SAVED_NAME_MAX, "%s%s", SAVED_PREFIX[kind], hf_name);
}

static inline i64 hf_elements(const HfTensor *t) {
    return t->place.shape[0] * (t->place.dims == 2 ? t->place.shape[1] : 1);
}

/* Append the tensors of these kinds, in files of at most CHECKPOINT_SHARD bytes, or of one tensor. */
static inline void save_plan_group(SavePlan *p, const char *what, SavedKind first, SavedKind last,
                                   SafetensorType type) {
    int begin = p->files;
    i64 filled = 0;
    for (int i = 0; i < p->hfs; i++)
        for (int k = (int)first; k <= (int)last; k++) {
            SavedTensor *t = &p->tensor[p->tensors];
            saved_name(t->name, (SavedKind)k, p->hf[i].name);
            t->hf = i, t->kind = (SavedKind)k, t->type = type;
            t->bytes = hf_elements(&p->hf[i]) * SAFETENSOR_TYPES[type].bytes;
            if (p->files == begin || (filled && filled + t->bytes > CHECKPOINT_SHARD))
                p->file[p->files++].first = p->tensors, filled = 0;
            p->file[p->files - 1].tensors++;
            p->tensors++, filled += t->bytes;
        }
    for (int f = begin; f < p->files; f++)
        if (p->files - begin == 1) snprintf(p->file[f].name, sizeof p->file[f].name, "%s.safetensors", what);
        else
            snprintf(p->file[f].name, sizeof p->file[f].name, "%s-%05d-of-%05d.safetensors", what, f - begin + 1,
                     p->files - begin);
}

static inline void save_plan_header(SavePlan *p, SavedFile *f) {
    SafetensorPlan *plan = (SafetensorPlan *)host_alloc(sizeof(SafetensorPlan) * (size_t)f->tensors);
    for (int i = 0; i < f->tensors; i++) {
        const SavedTensor *t = &p->tensor[f->first + i];
        const HfPlace *place = &p->hf[t->hf].place;
        plan[i].name = t->name, plan[i].type = t->type, plan[i].dims = place->dims;
        for (int d = 0; d < place->dims; d++) plan[i].shape[d] = place->shape[d];
    }
    f->header = safetensors_header(plan, f->tensors, &f->header_bytes);
    f->bytes = f->header_bytes;
    for (int i = f->first; i < f->first + f->tensors; i++) p->tensor[i].at = f->bytes, f->bytes += p->tensor[i].bytes;
    free(plan);
}

static inline void save_plan(SavePlan *p, const Zero *z) {
    memset(p, 0, sizeof *p);
    p->hf = checkpoint_list(z, &p->hfs);
    p->tensor = (SavedTensor *)host_alloc(sizeof(SavedTensor) * SAVED_KINDS * (size_t)p->hfs);
    p->file = (SavedFile *)host_alloc(sizeof(SavedFile) * SAVED_KINDS * (size_t)p->hfs);
    save_plan_group(p, "model", SAVED_MODEL, SAVED_MODEL, ST_F32);
    p->model_files = p->files;
    save_plan_group(p, "optimizer", SAVED_MASTER, SAVED_V, ACCUM_FILE_TYPE);
    for (int f = 0; f < p->files; f++) save_plan_header(p, &p->file[f]);
}

static inline void save_plan_free(SavePlan *p) {
    for (int f = 0; f < p->files; f++) free(p->file[f].header);
    free(p->file);
    free(p->tensor);
    free(p->hf);
    memset(p, 0, sizeof *p);
}

/* model.safetensors.index.json. Owner: caller; cJSON_free. */
static inline char *save_index_text(const SavePlan *p) {
    cJSON *root = json_made(cJSON_CreateObject()), *meta = json_made(cJSON_AddObjectToObject(root, "metadata"));
    i64 total = 0;
    for (int f = 0; f < p->model_files; f++) total += p->file[f].bytes - p->file[f].header_bytes;
    json_add_int(meta, "total_size", total);
    cJSON *map = json_made(cJSON_AddObjectToObject(root, "weight_map"));
    for (int f = 0; f < p->model_files; f++)
        for (int i = p->file[f].first; i < p->file[f].first + p->file[f].tensors; i++)
            json_add_text(map, p->tensor[i].name, p->file[f].name);
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    if (!text) FAIL(THIS_RANK, "out of host memory while writing JSON");
    return text;
}

/* ---- files, without an end of the run ---------------------------------------------------------------------------- */

static inline int write_at(int fd, const char *path, i64 at, const void *bytes, i64 n, Trouble *t) {
    const char *from = (const char *)bytes;
    while (n > 0 && !troubled(t)) {
        ssize_t done = pwrite(fd, from, (size_t)i64_min(n, (i64)1 << 30), (off_t)at);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) trouble_call(t, "write", path);
        else from += done, at += (i64)done, n -= (i64)done;
    }
    return !troubled(t);
}

/* Everything on disk, and no error of an earlier write is lost. */
static inline void sync_and_close(int fd, const char *path, Trouble *t) {
    if (!troubled(t) && fsync(fd) != 0) trouble_call(t, "write", path);
    if (close(fd) != 0) trouble_call(t, "write", path);
}

/* The names in a directory on disk; file systems that know no such thing say EINVAL. */
static inline void sync_directory(const char *path, Trouble *t) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        trouble_call(t, "open", path);
        return;
    }
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP) trouble_call(t, "write", path);
    close(fd);
}

/* A new file of DIR with these bytes, on disk, and its row of the manifest. */
static inline void save_small(Manifest *m, const SumKeys *keys, const char *dir, const char *name, const void *bytes,
                              i64 n, Trouble *t) {
    char path[PATH_MAX];
    if (troubled(t)) return;
    path_join(path, dir, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        trouble_call(t, "create", path);
        return;
    }
    write_at(fd, path, 0, bytes, n, t);
    sync_and_close(fd, path, t);
    manifest_add(m, name, n, range_sum(keys, 0, bytes, n));
}

/* A directory of files, all of it; what cannot go stays. 1: it is gone. */
static inline int remove_directory(const char *path) {
    DIR *d = opendir(path);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char file[PATH_MAX];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (snprintf(file, sizeof file, "%s/%s", path, e->d_name) < (int)sizeof file) unlink(file);
    }
    if (d) closedir(d);
    return rmdir(path) == 0 || errno == ENOENT;
}

static inline void make_path(const char *dir, Trouble *t) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", dir);
    for (char *p = path + 1; !troubled(t); p++) {
        if (*p && *p != '/') continue;
        char c = *p;
        *p = 0;
        if (mkdir(path, 0777) != 0 && errno != EEXIST) trouble_call(t, "make the directory", path);
        *p = c;
        if (!c) break;
    }
}

/* ---- this rank's ranges ------------------------------------------------------------------------------------------ */

/* Collects neighbouring ranges of a file into large writes. */
typedef struct {
    const SumKeys *keys;
    const accum *aside[SAVED_KINDS]; /* copies of the flat buffers on the host; NULL: they are read where they are */
    const char *path;
    int fd;
    SafetensorType type;
    char *buf;        /* RANGE_ROOM bytes, of which `fill` wait to be written at `begin` */
    i64 begin, fill;
    i64 written;      /* bytes */
    uint64_t sum;     /* of them */
    Trouble *trouble;
} RangeWriter;

static inline void range_flush(RangeWriter *w) {
    if (w->fill && write_at(w->fd, w->path, w->begin, w->buf, w->fill, w->trouble)) {
        /* a hint: to disk while the next is made */
        sync_file_range(w->fd, (off_t)w->begin, (off_t)w->fill, SYNC_FILE_RANGE_WRITE);
        w->written += w->fill, w->sum += range_sum(w->keys, w->begin, w->buf, w->fill);
    }
    w->fill = 0;
    if (!w->aside[SAVED_MASTER]) watch_look(); /* others may wait, and ask */
}

/* Elements from[0], from[stride], ... (count of them) from byte `at` of the file on. */
static inline void range_put(RangeWriter *w, i64 at, const accum *from, i64 stride, i64 count) {
    i64 size = SAFETENSOR_TYPES[w->type].bytes;
    while (count > 0 && !troubled(w->trouble)) {
        if (w->fill && (w->begin + w->fill != at || w->fill + size > RANGE_ROOM)) range_flush(w);
        if (!w->fill) w->begin = at;
        i64 n = i64_min(count, (RANGE_ROOM - w->fill) / size);
        if (w->type == ST_F32) {
            float *out = (float *)(void *)(w->buf + w->fill);
            for (i64 i = 0; i < n; i++) out[i] = (float)from[i * stride];
        } else {
            double *out = (double *)(void *)(w->buf + w->fill);
            for (i64 i = 0; i < n; i++) out[i] = (double)from[i * stride];
        }
        w->fill += n * size, at += n * size, from += n * stride, count -= n;
    }
}

/* `count` elements from element `at` of an HF tensor on, which are part[from], part[from + stride], ...; the file holds
   more of the same piece right behind them, up to element `end`. */
typedef void (*PieceRun)(void *context, i64 at, i64 from, i64 stride, i64 count, i64 end);

/* n elements of tensor `t` that this rank holds in `part`, from element `first` of its share group's rows on: the
   ranges of the HF tensor that they are, in the file's order. */
static inline void piece_runs(const Tensor *t, const HfPlace *p, i64 first, i64 n, PieceRun run, void *context) {
    i64 cols = t->slice.cols, last = first + n - 1;
    i64 row_a = first / cols, col_a = first % cols, row_b = last / cols, col_b = last % cols;
    i64 origin = p->base + t->slice.row0 * p->row_step + t->slice.col0 * p->col_step;
    if (p->col_step == 1 && p->row_step == cols) {
        run(context, origin + first, 0, 1, n, origin + first + n);
    } else if (p->col_step == 1) {
        for (i64 r = row_a; r <= row_b; r++) {
            i64 a = r == row_a ? col_a : 0, b = r == row_b ? col_b : cols - 1, at = origin + r * p->row_step + a;
            run(context, at, r * cols + a - first, 1, b - a + 1, at + b - a + 1);
        }
    } else {
        /* one column ends where the next begins */
        int whole = p->row_step == 1 && row_b - row_a + 1 == p->col_step && col_a == 0 && col_b == cols - 1;
        for (i64 c = 0; c < cols; c++) {
            i64 a = row_a + (c < col_a), b = row_b - (c > col_b), at = origin + a * p->row_step + c * p->col_step;
            if (a <= b)
                run(context, at, a * cols + c - first, cols, b - a + 1,
                    whole ? origin + row_a + cols * p->col_step : at + b - a + 1);
        }
    }
}

typedef struct {
    RangeWriter *writer;
    i64 data; /* where the HF tensor's begin in the file */
    const accum *part;
} PiecePut;

static inline void piece_put(void *context, i64 at, i64 from, i64 stride, i64 count, i64 end) {
    const PiecePut *p = (const PiecePut *)context;
    (void)end;
    range_put(p->writer, p->data + at * SAFETENSOR_TYPES[p->writer->type].bytes, p->part + from, stride, count);
}

static inline const accum *saved_flat(const Zero *z, SavedKind kind) {
    return kind == SAVED_M ? z->m : kind == SAVED_V ? z->v : z->master;
}

/* What this rank owns of one tensor of the file. `part`: CHECKPOINT_PIECE elements on the host. */
static inline void save_tensor(const Zero *z, const SavePlan *p, const SavedTensor *s, RangeWriter *w, accum *part) {
    const HfTensor *hf = &p->hf[s->hf];
    const Block *b = &z->block[hf->block];
    w->type = s->type;
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        if (!weight_belongs(t, hf)) continue;
        HfPlace place = tensor_hf_place(t->spec, z->config);
        i64 at, n = tensor_range(z, t, &at), first = tensor_first(z, t, at);
        for (i64 done = 0; done < n && !troubled(w->trouble); done += CHECKPOINT_PIECE) {
            i64 piece = i64_min(CHECKPOINT_PIECE, n - done);
            const accum *flat = w->aside[s->kind] ? w->aside[s->kind] : saved_flat(z, s->kind),
                        *from = flat + at + done;
            if (!w->aside[s->kind] && !DEVICE_IS_HOST)
                copy_out(z->dev, part, from, piece * (i64)sizeof(accum)), from = part;
            PiecePut put = {w, s->at, from};
            piece_runs(t, &place, first + done, piece, piece_put, &put);
        }
    }
}

/* What this rank owns of one file: bytes written, and their sum. The file stays open, w->fd: on its way to the disk. */
static inline void save_file(const Zero *z, const SavePlan *p, const SavedFile *f, const char *path, RangeWriter *w,
                             accum *part) {
    w->path = path, w->fill = w->written = 0, w->sum = 0;
    w->fd = open(path, O_WRONLY | O_CLOEXEC);
    if (w->fd < 0) {
        if (errno == ENOENT)
            trouble(w->trouble, "cannot find %s, which rank 0 has just made; all hosts must share --save", path);
        else trouble_call(w->trouble, "write", path);
        return;
    }
    for (int i = f->first; i < f->first + f->tensors && !troubled(w->trouble); i++)
        save_tensor(z, p, &p->tensor[i], w, part);
    range_flush(w);
}

/* ---- the directory ----------------------------------------------------------------------------------------------- */

typedef struct {
    i64 step;
    int whole;
} Verdict;

#define CARRIED_DATA "dataset.json" /* what dev/data writes beside the shards that it makes */

/* A file that every checkpoint carries along as it was. */
typedef struct {
    char name[96];
    char *bytes;
    i64 n;
} CarriedFile;

typedef struct Saving Saving;

/* Where and when a run saves. Owner: caller; saver_free, with no save under way. */
typedef struct {
    char dir[3072];             /* the directory that checkpoints lie in */
    i64 every, keep, keep_every; /* flags; 0: only at the end; all stay; none beyond --keep */
    int threads;                /* that read */
    int async, ranks_here;      /* --save-async; ranks on this host */
    int no_room;                /* this rank has said that it has no room for it */
    Saving *saving;             /* the save under way; NULL: none */
    int metrics;                /* rank 0: descriptor of the run's metrics, which must be on disk before
                                   the checkpoint is; -1: none */
    CarriedFile *carried;       /* rank 0 */
    int carries;
    Verdict *verdict;           /* of those that this run has judged or written */
    int verdicts;
    i64 last;                   /* steps of the newest whole one that this run knows; -1: none */
} Saver;

static inline void saver_free(Saver *s) {
    for (int i = 0; i < s->carries; i++) free(s->carried[i].bytes);
    free(s->carried);
    free(s->verdict);
    memset(s, 0, sizeof *s);
}

static inline Verdict *verdict_find(const Saver *s, i64 step) {
    for (int i = 0; i < s->verdicts; i++)
        if (s->verdict[i].step == step) return &s->verdict[i];
    return NULL;
}

static inline void verdict_set(Saver *s, i64 step, int whole) {
    Verdict *v = verdict_find(s, step);
    if (!v) {
        s->verdict = (Verdict *)realloc(s->verdict, sizeof(Verdict) * ((size_t)s->verdicts + 1));
        if (!s->verdict) FAIL(THIS_RANK, "out of host memory");
        v = &s->verdict[s->verdicts++];
    }
    v->step = step, v->whole = whole;
    s->last = -1;
    for (int i = 0; i < s->verdicts; i++)
        if (s->verdict[i].whole) s->last = i64_max(s->last, s->verdict[i].step);
}

/* Files that belong to a model beside its numbers: how text becomes its tokens, and what it was trained on. */
static const char *const CARRIED_NAMES[] = {
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json", CARRIED_DATA,
};

/* Keep DIR/name in memory, where it is there, instead of an earlier one of that name. */
static inline void saver_carry_file(Saver *s, const char *dir, const char *name) {
    char path[PATH_MAX];
    Trouble t = {""};
    int i = 0;
    i64 n;
    path_join(path, dir, name);
    if (!path_exists(path)) return;
    char *bytes = small_file_read(path, (i64)256 << 20, &n, &t);
    if (!bytes) FAIL(THIS_RANK, "%s", t.text);
    while (i < s->carries && strcmp(s->carried[i].name, name) != 0) i++;
    CarriedFile *c = &s->carried[i];
    if (i == s->carries) s->carries++;
    free(c->bytes);
    snprintf(c->name, sizeof c->name, "%s", name);
    c->bytes = bytes, c->n = n;
}

/* Keep in memory what belongs to the run's model and data, since it may be gone when a checkpoint is written: of
   `model`, the directory that the run begins with (NULL: none), and of `data`, that of its shards (NULL: none) - from
   there everything only where the model has brought nothing, since another tokenizer may lie there. Rank 0. */
static inline void saver_carry(Saver *s, const char *model, const char *data) {
    s->carried = (CarriedFile *)host_alloc(sizeof(CarriedFile) * COUNT_OF(CARRIED_NAMES));
    for (int i = 0; model && i < COUNT_OF(CARRIED_NAMES); i++) saver_carry_file(s, model, CARRIED_NAMES[i]);
    int all = s->carries == 0;
    for (int i = 0; data && i < COUNT_OF(CARRIED_NAMES); i++)
        if (all || strcmp(CARRIED_NAMES[i], CARRIED_DATA) == 0) saver_carry_file(s, data, CARRIED_NAMES[i]);
}

/* A place beside the checkpoints: .step-00001000.WHAT */
static inline void hidden_path(char out[PATH_MAX], const Saver *s, i64 step, const char *what) {
    char name[STEP_NAME_MAX];
    step_name(name, step);
    snprintf(out, PATH_MAX, "%s/.%s.%s", s->dir, name, what);
}

static inline void step_path(char out[PATH_MAX], const Saver *s, i64 step) {
    char name[STEP_NAME_MAX];
    step_name(name, step);
    snprintf(out, PATH_MAX, "%s/%s", s->dir, name);
}

/* What a crash left half written or half deleted. */
static inline void remove_leftovers(const Saver *s) {
    DIR *d = opendir(s->dir);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        char name[STEP_NAME_MAX], path[PATH_MAX];
        size_t n = strlen(e->d_name);
        if (n < 9 || n >= sizeof name || e->d_name[0] != '.') continue;
        if (!text_ends_with(e->d_name, ".partial") && !text_ends_with(e->d_name, ".deleted")) continue;
        snprintf(name, sizeof name, "%.*s", (int)(n - 9), e->d_name + 1);
        if (step_of_name(name) < 0) continue;
        snprintf(path, sizeof path, "%s/%s", s->dir, e->d_name);
        remove_directory(path);
    }
    if (d) closedir(d);
}

/* Rank 0: the partial directory and its large files, with their headers and at full length. */
static inline void save_begin(const Saver *s, const SavePlan *p, const char *partial, Trouble *t) {
    /* which is no reason to lose the checkpoint, too */
    if (s->metrics >= 0 && fsync(s->metrics) != 0 && errno != EINVAL)
        note("metrics.jsonl may not be on disk: %s", strerror(errno));
    make_path(s->dir, t);
    if (troubled(t)) return;
    remove_leftovers(s);
    if (mkdir(partial, 0777) != 0) trouble_call(t, "make the directory", partial);
    for (int i = 0; i < p->files && !troubled(t); i++) {
        char path[PATH_MAX];
        path_join(path, partial, p->file[i].name);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0) {
            trouble_call(t, "create", path);
            return;
        }
        write_at(fd, path, 0, p->file[i].header, p->file[i].header_bytes, t);
        if (!troubled(t) && ftruncate(fd, (off_t)p->file[i].bytes) != 0) trouble_call(t, "write", path);
        if (close(fd) != 0) trouble_call(t, "write", path);
    }
}

/* Something stands where the checkpoint shall go, and is no whole one that this run knows: set it aside. */
static inline void set_aside(const char *path, Trouble *t) {
    char aside[PATH_MAX];
    struct stat st;
    if (lstat(path, &st) != 0) return;
    for (int i = 1; i < 1000; i++) {
        if (snprintf(aside, sizeof aside, i == 1 ? "%s.damaged" : "%s.damaged-%d", path, i) >= (int)sizeof aside) break;
        if (lstat(aside, &st) == 0) continue;
        if (rename(path, aside) != 0) trouble_call(t, "move aside", path);
        else note("%s was in the way of a new checkpoint and is now %s", path, aside);
        return;
    }
    trouble(t, "%s is in the way", path);
}

/* Rank 0, when every range is on disk: the small files, the manifest, and the name. */
static inline void save_end(const Saver *s, const Zero *z, const SavePlan *p, Manifest *m, const SumKeys *keys,
                            const char *partial, const char *trainer, Trouble *t) {
    char path[PATH_MAX], *config = checkpoint_config_text(z->config), *index = save_index_text(p);
    save_small(m, keys, partial, "config.json", config, (i64)strlen(config), t);
    save_small(m, keys, partial, "model.safetensors.index.json", index, (i64)strlen(index), t);
    save_small(m, keys, partial, "trainer.json", trainer, (i64)strlen(trainer), t);
    for (int i = 0; i < s->carries; i++)
        save_small(m, keys, partial, s->carried[i].name, s->carried[i].bytes, s->carried[i].n, t);
    char *manifest = manifest_text(m);
    Manifest itself = {0, 0, NULL};
    save_small(&itself, keys, partial, MANIFEST_NAME, manifest, (i64)strlen(manifest), t);
    manifest_free(&itself);
    cJSON_free(manifest);
    cJSON_free(index);
    cJSON_free(config);
    if (!troubled(t)) sync_directory(partial, t);
    step_path(path, s, m->step);
    if (!troubled(t)) set_aside(path, t);
    if (!troubled(t) && rename(partial, path) != 0) trouble_call(t, "rename", partial);
    if (!troubled(t)) sync_directory(s->dir, t);
}

/* ---- a save under way -------------------------------------------------------------------------------------------- */

/* What a rank wrote of a file. */
typedef struct {
    uint64_t sum;
    i64 bytes;
} SavedPart;

/* Owner: the Saver; it must not move while a thread writes. */
struct Saving {
    i64 step;
    int rank;
    double began; /* seconds_now */
    char partial[PATH_MAX], *trainer;
    SavePlan plan;
    SumKeys keys;
    Trouble trouble;
    SavedPart *part; /* a file each, of this rank */
    accum *piece, *aside; /* aside: master, m and v; NULL: not aside */
    const Zero *zero;
    RangeWriter writer;
    pthread_t thread;
    int threaded, written; /* written: the thread is done; by __atomic */
};

/* This rank's ranges of every file. */
static inline void save_ranges(Saving *g) {
    char path[PATH_MAX], before[PATH_MAX] = "";
    int fd = -1; /* of the file before, which goes to disk while the next is written */
    for (int i = 0; i < g->plan.files && !troubled(&g->trouble); i++) {
        const SavedFile *f = &g->plan.file[i];
        path_join(path, g->partial, f->name);
        save_file(g->zero, &g->plan, f, path, &g->writer, g->piece);
        if (fd >= 0) sync_and_close(fd, before, &g->trouble);
        fd = g->writer.fd;
        memcpy(before, path, sizeof before);
        g->part[i].sum = g->writer.sum, g->part[i].bytes = g->writer.written;
        if (g->rank == 0)
            g->part[i].sum += range_sum(&g->keys, 0, f->header, f->header_bytes), g->part[i].bytes += f->header_bytes;
    }
    if (fd >= 0) sync_and_close(fd, before, &g->trouble);
}

static inline void *save_thread(void *saving) {
    Saving *g = (Saving *)saving;
    save_ranges(g);
    __atomic_store_n(&g->written, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* Room on this host for the copies of all its ranks? The same answer is not needed on all. */
static inline int aside_fits(const Zero *z, int ranks_here) {
    i64 available = host_memory_available(""), need = 3 * z->flat * (i64)sizeof(accum);
    return !available || need < available / ranks_here - ((i64)256 << 20);
}

/* Begin to write this rank's ranges: aside, if there is room for that, else now. */
static inline void save_write(Saver *s, Saving *g) {
    const Zero *z = g->zero;
    i64 flat = z->flat;
    if (s->async && aside_fits(z, s->ranks_here)) g->aside = (accum *)malloc((size_t)(3 * flat) * sizeof(accum) + 1);
    if (s->async && !g->aside && !s->no_room++)
        note("no room in host memory for --save-async: %.1f MB; training waits for its checkpoints (rank %d)",
             3e-6 * (double)flat * (double)sizeof(accum), g->rank);
    if (g->aside) {
        for (int k = (int)SAVED_MASTER; k <= (int)SAVED_V; k++) {
            accum *to = g->aside + (k - (int)SAVED_MASTER) * flat;
            if (flat) copy_out(z->dev, to, saved_flat(z, (SavedKind)k), flat * (i64)sizeof(accum));
            g->writer.aside[k] = to;
        }
        g->writer.aside[SAVED_MODEL] = g->writer.aside[SAVED_MASTER];
        g->threaded = pthread_create(&g->thread, NULL, save_thread, g) == 0;
    }
    if (!g->threaded) save_thread(g);
}

/* Is this rank's thread still writing? */
static inline int save_writes(const Saver *s) {
    return s->saving && !__atomic_load_n(&s->saving->written, __ATOMIC_ACQUIRE);
}

/* What the manifest says of the large files, from what all ranks wrote. Collective. */
static inline void save_add_up(const Saving *g, Wire world, Manifest *m) {
    int ranks = wire_size(world), files = g->plan.files;
    SavedPart *all = (SavedPart *)host_alloc(sizeof(SavedPart) * (size_t)files * (size_t)ranks);
    wire_share(world, all, g->part, sizeof(SavedPart) * (size_t)files);
    for (int i = 0; i < files; i++) {
        SavedPart sum = {0, 0};
        for (int r = 0; r < ranks; r++) sum.sum += all[r * files + i].sum, sum.bytes += all[r * files + i].bytes;
        if (sum.bytes != g->plan.file[i].bytes)
            FAIL(EVERYONE, "%s/%s: the ranks wrote %lld bytes of %lld", g->partial, g->plan.file[i].name, sum.bytes,
                 g->plan.file[i].bytes);
        const SavedFile *f = &g->plan.file[i];
        ManifestFile *row = manifest_add(m, f->name, sum.bytes, sum.sum);
        if (i >= g->plan.model_files)
            row->head = f->header_bytes, row->head_sum = range_sum(&g->keys, 0, f->header, f->header_bytes);
    }
    free(all);
}

static inline void saving_free(Saving *g) {
    save_plan_free(&g->plan);
    free(g->trainer);
    free(g->part);
    free(g->piece);
    free(g->aside);
    free(g->writer.buf);
    free(g);
}

/* Whole ones beyond the newest `keep` go, but for every keep_every-th step; what is not whole stays, and is not
   counted. Those of before this run are judged first, once. Collective. */
static inline void saver_retain(Saver *s, Wire world) {
    int n, kept = 0;
    if (s->keep <= 0) return;
    i64 *steps = steps_told(world, s->dir, &n);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX], deleted[PATH_MAX];
        Verdict *v = verdict_find(s, steps[i]);
        if (!v) {
            Manifest m;
            Trouble why;
            step_path(path, s, steps[i]);
            verdict_set(s, steps[i], checkpoint_judge(world, path, steps[i], s->threads, 0, &m, &why));
            manifest_free(&m);
            v = verdict_find(s, steps[i]);
        }
        kept += v->whole;
        if (!v->whole || kept <= s->keep || (s->keep_every > 0 && steps[i] % s->keep_every == 0) ||
            wire_rank(world) != 0)
            continue;
        step_path(path, s, steps[i]);
        hidden_path(deleted, s, steps[i], "deleted");
        if (rename(path, deleted) != 0 || !remove_directory(deleted))
            note("cannot delete %s (--keep): %s", path, strerror(errno));
    }
    free(steps);
}

/* Begin to save the run after `step` steps; `trainer` is the text of trainer.json (rank 0). The numbers
   saved are those of now, whatever becomes of them before checkpoint_finish. No other save may be under
   way. Collective over `world`. */
static inline void checkpoint_start(Saver *s, const Zero *z, Wire world, i64 step, const char *trainer) {
    Saving *g = (Saving *)host_alloc(sizeof *g);
    s->saving = g;
    g->step = step, g->rank = wire_rank(world), g->began = seconds_now(), g->zero = z;
    g->trainer = strdup(trainer);
    sum_keys(&g->keys);
    save_plan(&g->plan, z);
    hidden_path(g->partial, s, step, "partial");
    g->part = (SavedPart *)host_alloc(sizeof(SavedPart) * (size_t)g->plan.files);
    g->piece = (accum *)host_alloc(sizeof(accum) * (size_t)i64_min(CHECKPOINT_PIECE, z->flat));
    g->writer.keys = &g->keys, g->writer.trouble = &g->trouble;
    g->writer.buf = (char *)host_alloc((size_t)RANGE_ROOM);
    if (g->rank == 0) save_begin(s, &g->plan, g->partial, &g->trouble);
    if (trouble_anywhere(world, &g->trouble)) g->written = 1;
    else save_write(s, g);
}

/* Wait for the save under way to be written, and give it its name. *seconds: since it began. 1: it is on disk. 0: rank
   0 has said why not, and everything is as before. Collective over `world`. */
static inline int checkpoint_finish(Saver *s, Wire world, double *seconds) {
    Saving *g = s->saving;
    Manifest m = {g->step, 0, NULL};
    if (g->threaded) pthread_join(g->thread, NULL);
    if (!trouble_anywhere(world, &g->trouble)) {
        save_add_up(g, world, &m);
        if (g->rank == 0) save_end(s, g->zero, &g->plan, &m, &g->keys, g->partial, g->trainer, &g->trouble);
        trouble_anywhere(world, &g->trouble);
    }
    int saved = !troubled(&g->trouble);
    if (!saved && g->rank == 0) {
        remove_directory(g->partial);
        note("no checkpoint after step %lld: %s", g->step, g->trouble.text);
    }
    manifest_free(&m);
    if (saved) verdict_set(s, g->step, 1), saver_retain(s, world);
    *seconds = seconds_now() - g->began;
    saving_free(g);
    s->saving = NULL;
    return saved;
}

#endif

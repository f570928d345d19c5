/* manifest.h - what makes a checkpoint whole: the list of its files with sizes and checksums,
   written last; and who judges it.

   checkpoints/step-00001000/    a checkpoint: 1000 steps are done        manifest.json inside names every other file
              .step-00001000.partial    being written; never loaded       renamed when its manifest is on disk
              .step-00000900.deleted    being deleted; never loaded       renamed before the first file goes
              step-00000950.damaged     found in the way of a new one and set aside; never loaded, never deleted

   whole      the manifest can be read, is of this step, and every file has its size and its sum. So a copied directory
              can be told whole or torn, too. Everything else under such a name - torn, truncated, a flipped bit,
              another program's - has a reason.
   sum        of a file: sum over its 32-bit words i of word[i] key(i % 1024) key(2^32 + i / 1024), modulo 2^64; key(j)
              is odd and looks random (splitmix64). Any part of a file has a sum of its own, and sums add up: each rank
              sums what it writes or reads, in any order, and nobody needs the bytes of another. A multilinear hash:
              Carter, Wegman 1979. Because keys are odd, a changed word always shows; whatever else happens stays unseen
              with probability 2^-32 or less.
   judging    rank 0 reads the manifest and tells it; every rank reads 1/N of every file; all
              learn the same verdict and reason.
   once       a checkpoint that a run is about to load is not read twice: the optimizer's files have a head,
              their header, with a sum of its own. Only that is judged before it is trusted; what follows is
              summed by who loads it (resume.h).

   Nothing here ends the run: what goes wrong is a Trouble, which the caller tells, steps over, or makes an error of. */
#ifndef ODYSSEUS_MANIFEST_H
#define ODYSSEUS_MANIFEST_H

#include "checkpoint.h"

#define MANIFEST_NAME "manifest.json"
/* of manifest.json, trainer.json and the optimizer's files; higher ones are refused by name */
#define MANIFEST_VERSION 1
#define MANIFEST_FORMAT "odysseus.c checkpoint"

/* ---- trouble ----------------------------------------------------------------------------------------------------- */

/* The first thing that went wrong; empty: all is well. */
typedef struct {
    char text[480];
} Trouble;

static inline int troubled(const Trouble *t) { return t->text[0] != 0; }

static inline void trouble(Trouble *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void trouble(Trouble *t, const char *format, ...) {
    if (troubled(t)) return;
    va_list args;
    va_start(args, format);
    vsnprintf(t->text, sizeof t->text, format, args);
    va_end(args);
    for (char *c = t->text; *c; c++)
        if ((unsigned char)*c < 0x20) *c = '?'; /* one line */
}

/* A call on `path` failed with errno. */
static inline void trouble_call(Trouble *t, const char *what, const char *path) {
    trouble(t, "cannot %s %s: %s", what, path, strerror(errno));
}

/* Every rank says how it fared: *t becomes the trouble of the lowest rank that has one, the
   same everywhere. Collective. */
static inline int trouble_anywhere(Wire world, Trouble *t) {
    int ranks = wire_size(world), first = 0;
    Trouble *all = (Trouble *)host_alloc(sizeof(Trouble) * (size_t)ranks);
    wire_share(world, all, t, sizeof *t);
    while (first < ranks && !troubled(&all[first])) first++;
    memset(t, 0, sizeof *t);
    if (first < ranks && first > 0) trouble(t, "%.440s (rank %d)", all[first].text, first);
    else if (first < ranks) *t = all[first];
    free(all);
    return troubled(t);
}

/* ---- sums -------------------------------------------------------------------------------------------------------- */

#define SUM_BLOCK 1024 /* words */

typedef struct {
    uint64_t key[SUM_BLOCK];
} SumKeys;

static inline uint64_t sum_key(uint64_t j) { return mix64(j) | 1; }

static inline void sum_keys(SumKeys *k) {
    for (int j = 0; j < SUM_BLOCK; j++) k->key[j] = sum_key((uint64_t)j);
}

/* The sum of n bytes that stand at byte `offset` (a multiple of 4) of a file; what lacks to a
   whole word counts as zeros. */
static inline uint64_t range_sum(const SumKeys *k, i64 offset, const void *bytes, i64 n) {
    const unsigned char *p = (const unsigned char *)bytes;
    i64 word = offset / 4, words = n / 4;
    uint64_t total = 0;
    while (words > 0) {
        i64 at = word % SUM_BLOCK, take = i64_min(words, SUM_BLOCK - at);
        uint64_t sum = 0;
        for (i64 i = 0; i < take; i++) {
            uint32_t w;
            memcpy(&w, p + 4 * i, 4);
            sum += w * k->key[at + i];
        }
        total += sum * sum_key((uint64_t)(word / SUM_BLOCK) + ((uint64_t)1 << 32));
        word += take, words -= take, p += 4 * take;
    }
    if (n % 4) {
        uint32_t w = 0;
        memcpy(&w, p, (size_t)(n % 4));
        total += w * k->key[word % SUM_BLOCK] * sum_key((uint64_t)(word / SUM_BLOCK) + ((uint64_t)1 << 32));
    }
    return total;
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

#define STEP_NAME_MAX 64

static inline void step_name(char out[STEP_NAME_MAX], i64 step) { snprintf(out, STEP_NAME_MAX, "step-%08lld", step); }

/* The steps of a checkpoint's name; -1: it is none. */
static inline i64 step_of_name(const char *name) {
    char again[STEP_NAME_MAX];
    if (!text_begins_with(name, "step-") || strlen(name) > 5 + 15) return -1;
    i64 step = strtoll(name + 5, NULL, 10);
    step_name(again, step);
    return step >= 0 && strcmp(name, again) == 0 ? step : -1;
}

static inline int step_newest_first(const void *a, const void *b) {
    i64 x = *(const i64 *)a, y = *(const i64 *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The steps of everything in `dir` that is named as a checkpoint, newest first. Owner of the list: caller; free. A
   directory that is not there holds none. */
static inline i64 *steps_list(const char *dir, int *count) {
    i64 *list = NULL;
    int n = 0, room = 0;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        i64 step = step_of_name(e->d_name);
        if (step < 0) continue;
        if (n == room) {
            room = room ? 2 * room : 64;
            list = (i64 *)realloc(list, sizeof(i64) * (size_t)room);
            if (!list) FAIL(THIS_RANK, "out of host memory");
        }
        list[n++] = step;
    }
    if (d) closedir(d);
    if (n) qsort(list, (size_t)n, sizeof *list, step_newest_first);
    *count = n;
    return list;
}

/* The same on every rank, as rank 0 sees it. Collective. */
static inline i64 *steps_told(Wire world, const char *dir, int *count) {
    i64 *list = NULL, n = 0;
    *count = 0;
    if (wire_rank(world) == 0) list = steps_list(dir, count);
    n = *count;
    wire_tell(world, &n, sizeof n);
    *count = (int)n;
    if (!list) list = (i64 *)host_alloc(sizeof(i64) * (size_t)n);
    if (n) wire_tell(world, list, n * (i64)sizeof(i64));
    return list;
}

/* ---- the manifest ------------------------------------------------------------------------------------------------ */

#define MANIFEST_FILES 100000

typedef struct {
    char name[96];
    i64 bytes;
    uint64_t sum;
    i64 head;          /* its first bytes, which have a sum of their own; 0: none have */
    uint64_t head_sum;
} ManifestFile;

typedef struct {
    i64 step;
    int files;
    ManifestFile *file; /* owner: the manifest; manifest_free */
} Manifest;

static inline void manifest_free(Manifest *m) {
    free(m->file);
    memset(m, 0, sizeof *m);
}

/* A row more; valid until the next one is added. */
static inline ManifestFile *manifest_add(Manifest *m, const char *name, i64 bytes, uint64_t sum) {
    m->file = (ManifestFile *)realloc(m->file, sizeof(ManifestFile) * ((size_t)m->files + 1));
    if (!m->file) FAIL(THIS_RANK, "out of host memory");
    ManifestFile *f = &m->file[m->files++];
    memset(f, 0, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    f->bytes = bytes, f->sum = sum;
    return f;
}

static inline void json_add_sum(cJSON *object, const char *key, uint64_t sum) {
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)sum);
    json_add_text(object, key, text);
}

/* Its text. Owner: caller; cJSON_free. */
static inline char *manifest_text(const Manifest *m) {
    cJSON *root = json_made(cJSON_CreateObject());
    json_add_text(root, "format", MANIFEST_FORMAT);
    json_add_int(root, "version", MANIFEST_VERSION);
    json_add_int(root, "step", m->step);
    cJSON *files = json_made(cJSON_AddObjectToObject(root, "files"));
    for (int i = 0; i < m->files; i++) {
        cJSON *f = json_made(cJSON_AddObjectToObject(files, m->file[i].name));
        json_add_int(f, "bytes", m->file[i].bytes);
        json_add_sum(f, "sum", m->file[i].sum);
        if (!m->file[i].head) continue;
        json_add_int(f, "head", m->file[i].head);
        json_add_sum(f, "head_sum", m->file[i].head_sum);
    }
    char *text = cJSON_Print(root);
    cJSON_Delete(root);
    if (!text) FAIL(THIS_RANK, "out of host memory while writing JSON");
    return text;
}

/* Up to `limit` bytes of a regular file, with a zero behind them. Owner: caller; free. NULL: why. */
static inline char *small_file_read(const char *path, i64 limit, i64 *bytes, Trouble *why) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char *text = NULL;
    i64 have = 0;
    if (fd < 0 || fstat(fd, &st) != 0) trouble_call(why, "read", path);
    else if (!S_ISREG(st.st_mode) || st.st_size > limit)
        trouble(why, "%s is not a file of at most %lld bytes", path, limit);
    else {
        text = (char *)host_alloc((size_t)st.st_size + 1);
        while (have < st.st_size) {
            ssize_t got = pread(fd, text + have, (size_t)(st.st_size - have), (off_t)have);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) trouble_call(why, "read", path);
            if (got <= 0) break;
            have += (i64)got;
        }
    }
    if (fd >= 0) close(fd);
    if (troubled(why)) free(text), text = NULL;
    *bytes = have;
    return text;
}

/* A sum of `entry`; 0: it is none. */
static inline int manifest_read_sum(const cJSON *entry, const char *key, uint64_t *sum) {
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(entry, key);
    const char *hex = cJSON_IsString(text) ? text->valuestring : "";
    *sum = strtoull(hex, NULL, 16);
    return strlen(hex) == 16 && strspn(hex, "0123456789abcdef") == 16;
}

/* One entry of "files": two members, or four. */
static inline void manifest_read_file(Manifest *m, const cJSON *entry, Trouble *why) {
    i64 bytes = json_count(cJSON_GetObjectItemCaseSensitive(entry, "bytes")), head = 0;
    uint64_t sum, head_sum = 0;
    const char *name = entry->string;
    int good =
        name && text_is_printable(name) && !strchr(name, '/') && name[0] != '.' && strlen(name) < sizeof m->file->name;
    good = good && cJSON_IsObject(entry) && bytes >= 0 && manifest_read_sum(entry, "sum", &sum);
    if (good && cJSON_GetArraySize(entry) != 2) {
        head = json_count(cJSON_GetObjectItemCaseSensitive(entry, "head"));
        good = cJSON_GetArraySize(entry) == 4 && head > 0 && head <= bytes && head % 4 == 0 &&
               manifest_read_sum(entry, "head_sum", &head_sum);
    }
    if (!good) {
        trouble(why, MANIFEST_NAME " is damaged at file %d", m->files + 1);
        return;
    }
    ManifestFile *f = manifest_add(m, name, bytes, sum);
    f->head = head, f->head_sum = head_sum;
}

/* Every whole checkpoint has these. */
static inline void manifest_check_files(const Manifest *m, Trouble *why) {
    static const char *const needs[] = {"config.json", "trainer.json", "model", "optimizer"};
    for (int n = 0; n < COUNT_OF(needs); n++) {
        int i = 0;
        while (i < m->files && !text_begins_with(m->file[i].name, needs[n])) i++;
        if (i == m->files) trouble(why, MANIFEST_NAME " lists no %s", needs[n]);
    }
}

/* DIR/manifest.json -> m, of a checkpoint of `step`. Ends no run, whatever the file holds: see `why`.
   m: manifest_free, then, too. */
static inline void manifest_read(Manifest *m, const char *dir, i64 step, Trouble *why) {
    char path[PATH_MAX];
    const char *end = NULL;
    i64 bytes;
    memset(m, 0, sizeof *m);
    if (snprintf(path, sizeof path, "%s/" MANIFEST_NAME, dir) >= (int)sizeof path) trouble(why, "its path is too long");
    else if (!path_exists(path))
        trouble(why, "it has no " MANIFEST_NAME ": never finished, or not written by this program");
    if (troubled(why)) return;
    char *text = small_file_read(path, (i64)64 << 20, &bytes, why);
    if (!text) return;
    cJSON *root = (i64)strlen(text) == bytes ? cJSON_ParseWithOpts(text, &end, 1) : NULL;
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(root, "format"),
                *files = cJSON_GetObjectItemCaseSensitive(root, "files");
    i64 version = json_count(cJSON_GetObjectItemCaseSensitive(root, "version"));
    m->step = json_count(cJSON_GetObjectItemCaseSensitive(root, "step"));
    if (!cJSON_IsString(format) || strcmp(format->valuestring, MANIFEST_FORMAT) != 0)
        trouble(why, MANIFEST_NAME " is damaged, or not this program's");
    else if (version > MANIFEST_VERSION)
        trouble(why, "it is of version %lld, this program reads up to %d: use a newer one", version, MANIFEST_VERSION);
    else if (version < 1 || !cJSON_IsObject(files) || cJSON_GetArraySize(files) > MANIFEST_FILES)
        trouble(why, MANIFEST_NAME " is damaged");
    else if (step >= 0 && m->step != step) trouble(why, MANIFEST_NAME " is of step %lld", m->step);
    else
        for (const cJSON *f = files->child; f && !troubled(why); f = f->next) manifest_read_file(m, f, why);
    if (!troubled(why)) manifest_check_files(m, why);
    cJSON_Delete(root);
    free(text);
}

/* Is every file there, and of its size? */
static inline void manifest_check_sizes(const Manifest *m, const char *dir, Trouble *why) {
    for (int i = 0; i < m->files && !troubled(why); i++) {
        const ManifestFile *f = &m->file[i];
        char path[PATH_MAX];
        struct stat st;
        path_join(path, dir, f->name);
        if (stat(path, &st) != 0) trouble(why, "%s is missing (%s)", f->name, strerror(errno));
        else if (!S_ISREG(st.st_mode)) trouble(why, "%s is no regular file", f->name);
        else if ((i64)st.st_size != f->bytes)
            trouble(why, "%s has %lld bytes, %lld were written: %s", f->name, (i64)st.st_size, f->bytes,
                    (i64)st.st_size < f->bytes ? "truncated" : "something was added");
    }
}

static inline void manifest_differs(const ManifestFile *f, Trouble *why) {
    trouble(why, "%s does not hold what was written (its checksum differs)", f->name);
}

/* ---- judging ----------------------------------------------------------------------------------------------------- */

#define READ_BLOCK ((i64)1 << 20) /* bytes that a thread reads at a time: few enough to be summed in its cache */

/* The sum of bytes [from, to) of a file; `from` is a multiple of 4. */
static inline uint64_t file_part_sum(const SumKeys *keys, const char *path, i64 from, i64 to, int threads,
                                     Trouble *why) {
    int fd = open(path, O_RDONLY | O_CLOEXEC), error = 0, cut = 0;
    uint64_t total = 0;
    if (fd < 0) {
        trouble_call(why, "read", path);
        return 0;
    }
#pragma omp parallel num_threads(threads) reduction(+ : total, cut)
    {
        unsigned char *buf = (unsigned char *)host_alloc((size_t)i64_min(to - from, READ_BLOCK));
#pragma omp for schedule(dynamic, 1)
        for (i64 at = from; at < to; at += READ_BLOCK) {
            i64 n = i64_min(READ_BLOCK, to - at), have = 0;
            while (have < n) {
                ssize_t got = pread(fd, buf + have, (size_t)(n - have), (off_t)(at + have));
                if (got < 0 && errno == EINTR) continue;
                if (got < 0) {
#pragma omp atomic write
                    error = errno;
                }
                if (got <= 0) break;
                have += (i64)got;
            }
            cut += have < n;
            total += range_sum(keys, at, buf, have);
            if (omp_get_thread_num() == 0) watch_look(); /* others may wait, and ask */
        }
        free(buf);
    }
    close(fd);
    if (error) errno = error, trouble_call(why, "read", path);
    else if (cut) trouble(why, "%s has become shorter", path);
    return total;
}

/* This rank's share of byte 0 .. bytes of a file: multiples of 4 but for the end. */
static inline i64 share_begin(i64 bytes, int rank, int ranks) {
    return rank == ranks ? bytes : bytes / ranks * rank / 4 * 4;
}

/* The sums of those heads that have one. Rank 0. */
static inline void manifest_check_heads(const Manifest *m, const SumKeys *keys, const char *dir, Trouble *why) {
    for (int i = 0; i < m->files && !troubled(why); i++) {
        const ManifestFile *f = &m->file[i];
        char path[PATH_MAX];
        path_join(path, dir, f->name);
        if (f->head && file_part_sum(keys, path, 0, f->head, 1, why) != f->head_sum)
            trouble(why, "%s does not hold what was written (the checksum of its header differs)", f->name);
    }
}

/* Is the checkpoint in `dir`, of `step` (-1: of any), whole? 1, and its manifest in *m (manifest_free); else 0 and the
   reason. Every rank reads its share of the bytes and learns the same. `loads`: this run loads it next if it is; what
   follows a head is left to that (optimizer_load). Collective. */
static inline int checkpoint_judge(Wire world, const char *dir, i64 step, int threads, int loads, Manifest *m,
                                   Trouble *why) {
    int rank = wire_rank(world), ranks = wire_size(world);
    memset(why, 0, sizeof *why);
    memset(m, 0, sizeof *m);
    if (rank == 0) manifest_read(m, dir, step, why), manifest_check_sizes(m, dir, why);
    wire_tell(world, why, sizeof *why);
    if (troubled(why)) {
        manifest_free(m);
        return 0;
    }
    i64 head[2] = {m->step, m->files};
    wire_tell(world, head, sizeof head);
    m->step = head[0], m->files = (int)head[1];
    if (rank != 0) m->file = (ManifestFile *)host_alloc(sizeof(ManifestFile) * (size_t)m->files);
    wire_tell(world, m->file, (i64)sizeof(ManifestFile) * m->files);
    SumKeys *keys = (SumKeys *)host_alloc(sizeof *keys);
    uint64_t *mine = (uint64_t *)host_alloc(sizeof(uint64_t) * (size_t)m->files * ((size_t)ranks + 1)),
             *all = mine + m->files;
    sum_keys(keys);
    if (rank == 0) manifest_check_heads(m, keys, dir, why);
    for (int i = 0; i < m->files && !troubled(why); i++) {
        char path[PATH_MAX];
        if (loads && m->file[i].head) continue;
        path_join(path, dir, m->file[i].name);
        i64 from = share_begin(m->file[i].bytes, rank, ranks), to = share_begin(m->file[i].bytes, rank + 1, ranks);
        if (from < to) mine[i] = file_part_sum(keys, path, from, to, threads, why);
    }
    if (!trouble_anywhere(world, why)) {
        wire_share(world, all, mine, sizeof(uint64_t) * (size_t)m->files);
        for (int i = 0; i < m->files && !troubled(why); i++) {
            uint64_t sum = 0;
            for (int r = 0; r < ranks; r++) sum += all[(size_t)r * (size_t)m->files + (size_t)i];
            if (loads && m->file[i].head) continue;
            if (sum != m->file[i].sum) manifest_differs(&m->file[i], why);
        }
    }
    free(mine);
    free(keys);
    if (troubled(why)) manifest_free(m);
    return !troubled(why);
}

#endif

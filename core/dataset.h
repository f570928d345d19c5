/* dataset.h - what shards say of themselves, and whether it is true.

   dataset.json   beside the shards, by dev/data: tokenizer, vocabulary, end-of-text token; of each shard its tokens,
                  documents, largest token and sum (manifest.h), and the same of its mask
   training       a shard that is listed must have its tokens and its mask, and its largest token must be the model's;
                  shards of different tokenizers are not mixed. What is not listed is taken as it is
   --check-data   reads all bytes: everything that dataset.json says is counted again, every token is looked at, and the
                  first sequences are printed

   Every rank reads the same small file and finds the same. */
#ifndef ODYSSEUS_DATASET_H
#define ODYSSEUS_DATASET_H

#include "data.h"
#include "manifest.h"
#include "tokenizer.h"
#include <sys/wait.h>

#define DATASET_NAME "dataset.json"
#define DATASET_FORMAT "odysseus.c dataset"
#define DATASET_VERSION 1
#define DATASET_FILES 1000000
#define VOCAB_MOST ((i64)1 << 30) /* of any model */

/* ---- dataset.json ------------------------------------------------------------------------------------------------ */

/* What is known of a shard's contents, listed or counted; counted, mask_sum: of its mask, where it has one. */
typedef struct {
    char name[96];
    i64 tokens, documents, largest, counted;
    int masked;
    uint64_t sum, mask_sum;
    double text_bytes; /* behind a token, the average of its split */
} ShardFacts;

typedef struct {
    char dir[PATH_MAX], path[PATH_MAX]; /* "": none was read */
    int foreign;                        /* the one that is there is another program's */
    char tokenizer[96];
    int bytes;                          /* tokens are bytes */
    i64 vocab, eot;                     /* eot -1: none */
    int files;
    ShardFacts *file;                   /* by name; owner: the list, dataset_list_free */
} DatasetList;

static inline void dataset_list_free(DatasetList *l) {
    free(l->file);
    memset(l, 0, sizeof *l);
}

static inline int facts_by_name(const void *a, const void *b) {
    return strcmp(((const ShardFacts *)a)->name, ((const ShardFacts *)b)->name);
}

static inline uint64_t json_sum(const JsonAt *j, const char *key) {
    const char *hex = json_text(j, key, NULL);
    if (strlen(hex) != 16 || strspn(hex, "0123456789abcdef") != 16)
        FAIL(EVERYONE, "%s: %s%s is not a sum of 16 hexadecimal digits", j->path, j->within, key);
    return strtoull(hex, NULL, 16);
}

static inline void dataset_read_file(DatasetList *l, const cJSON *entry, double text_bytes) {
    ShardFacts *f = &l->file[l->files];
    const char *name = entry->string;
    if (!name || !text_is_printable(name) || strchr(name, '/') || name[0] == '.' || strlen(name) >= sizeof f->name)
        FAIL(EVERYONE, "%s: the name of file %d is not that of a shard", l->path, l->files);
    memset(f, 0, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    JsonAt j = {l->path, f->name, entry};
    char within[sizeof f->name + 2];
    snprintf(within, sizeof within, "%s: ", f->name);
    j.within = within;
    f->tokens = json_int(&j, "tokens", JSON_REQUIRED, 0, COUNT_MAX);
    f->documents = json_int(&j, "documents", JSON_REQUIRED, 0, COUNT_MAX);
    f->largest = json_int(&j, "largest", JSON_REQUIRED, 0, l->vocab - 1);
    f->sum = json_sum(&j, "sum");
    f->text_bytes = text_bytes;
    f->masked = json_find(l->path, entry, "mask_sum") != NULL;
    if (f->masked) {
        f->mask_sum = json_sum(&j, "mask_sum");
        f->counted = json_int(&j, "counted", JSON_REQUIRED, 0, COUNT_MAX);
    }
    l->files++;
}

static inline void dataset_read_split(DatasetList *l, const cJSON *split) {
    JsonAt j = {l->path, "splits: ", split};
    i64 tokens = json_int(&j, "tokens", JSON_REQUIRED, 0, COUNT_MAX);
    i64 bytes = json_int(&j, "text_bytes", JSON_REQUIRED, 0, COUNT_MAX);
    const cJSON *files = json_find(l->path, split, "files");
    if (!cJSON_IsObject(files)) FAIL(EVERYONE, "%s: splits: files is not an object", l->path);
    i64 more = cJSON_GetArraySize(files);
    if (l->files + more > DATASET_FILES) FAIL(EVERYONE, "%s lists more than %d files", l->path, DATASET_FILES);
    l->file = (ShardFacts *)realloc(l->file, sizeof(ShardFacts) * (size_t)(l->files + more + 1));
    if (!l->file) FAIL(THIS_RANK, "out of host memory");
    for (const cJSON *f = files->child; f; f = f->next)
        dataset_read_file(l, f, tokens ? (double)bytes / (double)tokens : 0);
}

/* The dataset.json in folder `dir`, which ends in a slash, -> l, which holds none where there is none, or one that
   another program wrote: the name is a common one. */
static inline void dataset_list_read(DatasetList *l, const char *dir) {
    memset(l, 0, sizeof *l);
    snprintf(l->dir, sizeof l->dir, "%s", dir);
    if (snprintf(l->path, sizeof l->path, "%s" DATASET_NAME, dir) >= (int)sizeof l->path || !path_exists(l->path)) {
        l->path[0] = 0;
        return;
    }
    cJSON *root = json_parse_file(l->path);
    JsonAt j = {l->path, "", root}, t = {l->path, "tokenizer: ", json_find(l->path, root, "tokenizer")};
    const cJSON *format = json_find(l->path, root, "format");
    if (!cJSON_IsString(format) || strcmp(format->valuestring, DATASET_FORMAT) != 0) {
        l->path[0] = 0, l->foreign = 1;
        cJSON_Delete(root);
        return;
    }
    i64 version = json_int(&j, "version", JSON_REQUIRED, 1, COUNT_MAX);
    if (version > DATASET_VERSION)
        FAIL(EVERYONE, "%s is of version %lld, this program reads up to %d: use a newer one", l->path, version,
             DATASET_VERSION);
    snprintf(l->tokenizer, sizeof l->tokenizer, "%s", json_text(&t, "name", NULL));
    l->bytes = strcmp(json_text(&t, "kind", NULL), "bytes") == 0;
    l->vocab = json_int(&j, "vocab", JSON_REQUIRED, 1, VOCAB_MOST);
    l->eot = json_int_or_null(&j, "eot", -1, 0, l->vocab - 1);
    const cJSON *splits = json_find(l->path, root, "splits");
    if (!cJSON_IsObject(splits)) FAIL(EVERYONE, "%s: splits is not an object", l->path);
    for (const cJSON *s = splits->child; s; s = s->next) dataset_read_split(l, s);
    if (l->files) qsort(l->file, (size_t)l->files, sizeof *l->file, facts_by_name);
    for (int i = 1; i < l->files; i++)
        if (strcmp(l->file[i - 1].name, l->file[i].name) == 0)
            FAIL(EVERYONE, "%s lists %s twice", l->path, l->file[i].name);
    cJSON_Delete(root);
}

/* What the list says of a file of its folder; NULL: nothing. */
static inline const ShardFacts *dataset_list_find(const DatasetList *l, const char *name) {
    ShardFacts key;
    if (strlen(name) >= sizeof key.name || !l->files) return NULL;
    snprintf(key.name, sizeof key.name, "%s", name);
    return (const ShardFacts *)bsearch(&key, l->file, (size_t)l->files, sizeof key, facts_by_name);
}

/* Read the list of the folder that `s` lies in, unless it is the one at hand. */
static inline void dataset_list_of(DatasetList *l, const Shard *s) {
    char dir[PATH_MAX];
    path_folder(dir, s->path);
    if (l->file && strcmp(dir, l->dir) == 0) return;
    dataset_list_free(l);
    dataset_list_read(l, dir);
}

static inline const char *shard_file(const Shard *s) {
    const char *slash = strrchr(s->path, '/');
    return slash ? slash + 1 : s->path;
}

/* ---- before training --------------------------------------------------------------------------------------------- */

/* A shard against what is listed of it; `vocab`: of the model. */
static inline void shard_fits(const Shard *s, const DatasetList *l, const ShardFacts *f, const char *flag, i64 vocab) {
    if (s->tokens != f->tokens)
        FAIL(EVERYONE, "--%s: %s has %lld tokens, %lld by %s; make them again, or remove that", flag, s->path,
             s->tokens, f->tokens, l->path);
    if (f->masked && !s->masked)
        FAIL(EVERYONE, "--%s: the mask of %s is missing, which %s lists; without it every token would be a target",
             flag, s->path, l->path);
    if (f->largest >= vocab)
        FAIL(EVERYONE, "--%s: %s holds token %lld, the model's vocabulary is 0 to %lld; the shard was made with %s",
             flag, s->path, f->largest, vocab - 1, l->tokenizer);
}

/* Hold the shards of `d` against the dataset.json beside them, and learn from it what d->origin says. */
static inline void dataset_describe(Dataset *d, const char *flag, i64 vocab) {
    DatasetList l, first;
    double bytes = 0, tokens = 0;
    memset(&l, 0, sizeof l), memset(&first, 0, sizeof first);
    DataOrigin *o = &d->origin;
    o->eot = -1;
    for (int i = 0; i < d->shards; i++) {
        const Shard *s = &d->shard[i];
        dataset_list_of(&l, s);
        const ShardFacts *f = dataset_list_find(&l, shard_file(s));
        o->foreign |= l.foreign;
        if (!f) continue;
        shard_fits(s, &l, f, flag, vocab);
        if (!o->listed++) {
            first = l, first.file = NULL;
            o->vocab = l.vocab, o->eot = l.eot;
            snprintf(o->tokenizer, sizeof o->tokenizer, "%s", l.tokenizer);
        } else if (l.vocab != first.vocab || l.eot != first.eot || strcmp(l.tokenizer, first.tokenizer) != 0) {
            FAIL(EVERYONE, "--%s: shards of different tokenizers: %s by %s, %s by %s", flag, first.tokenizer,
                 first.path, l.tokenizer, l.path);
        }
        bytes += f->text_bytes * (double)f->tokens, tokens += (double)f->tokens;
    }
    if (o->listed == d->shards && tokens > 0) o->text_bytes = bytes / tokens;
    dataset_list_free(&l);
}

/* One line of what was found. Rank 0. */
static inline void dataset_print(const Dataset *d, const char *flag) {
    const DataOrigin *o = &d->origin;
    i64 tokens = 0;
    int masked = 0;
    for (int i = 0; i < d->shards; i++) tokens += d->shard[i].tokens, masked += d->shard[i].masked;
    printf("data     --%s: %lld tokens in %d shard%s", flag, tokens, d->shards, d->shards > 1 ? "s" : "");
    if (o->listed) printf(", %s: vocabulary %lld, %.2f bytes a token", o->tokenizer, o->vocab, o->text_bytes);
    if (o->eot >= 0) printf(", <eot> %lld", o->eot);
    if (masked) printf("; masks beside %d of them", masked);
    if (o->foreign) printf("; " DATASET_NAME " beside them is another program's: not read");
    printf("\n");
}

/* ---- --check-data ------------------------------------------------------------------------------------------------ */

/* Count what a shard or a mask of `width` bytes a token holds. A token from `vocab` on ends the program, named. */
static inline void shard_count(ShardFacts *f, const char *path, int width, i64 tokens, i64 ends, i64 vocab,
                               int threads) {
    i64 size = SHARD_HEADER_BYTES + tokens * width, largest = 0, documents = 0, bad = -1, bad_token = 0;
    uint64_t sum = 0;
    int cut = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) FAIL(THIS_RANK, "cannot open %s: %s", path, strerror(errno));
    SumKeys *keys = (SumKeys *)host_alloc(sizeof *keys);
    sum_keys(keys);
#pragma omp parallel num_threads(threads) reduction(+ : sum, documents, cut) reduction(max : largest)
    {
        unsigned char *buf = (unsigned char *)host_alloc((size_t)i64_min(size, READ_BLOCK));
#pragma omp for schedule(dynamic, 1)
        for (i64 at = 0; at < size; at += READ_BLOCK) {
            i64 n = i64_min(READ_BLOCK, size - at), have = 0;
            while (have < n) {
                ssize_t got = pread(fd, buf + have, (size_t)(n - have), (off_t)(at + have));
                if (got < 0 && errno == EINTR) continue;
                if (got <= 0) break;
                have += (i64)got;
            }
            cut += have < n;
            sum += range_sum(keys, at, buf, have);
            for (i64 i = at ? 0 : SHARD_HEADER_BYTES; i < have; i += width) {
                i64 token = token_value(buf + i, width);
                largest = i64_max(largest, token);
                documents += token == ends;
                if (token < vocab) continue;
#pragma omp critical(bad)
                {
                    i64 position = (at + i - SHARD_HEADER_BYTES) / width;
                    if (bad < 0 || position < bad) bad = position, bad_token = token;
                }
            }
        }
        free(buf);
    }
    close(fd);
    free(keys);
    if (cut) FAIL(THIS_RANK, "cannot read %s to its end", path);
    if (bad >= 0 && width == 1)
        FAIL(EVERYONE, "%s: byte %lld at position %lld is neither 0 nor 1", path, bad_token, bad);
    if (bad >= 0)
        FAIL(EVERYONE, "%s: token %lld at position %lld is outside the vocabulary of %lld", path, bad_token, bad,
             vocab);
    f->tokens = tokens, f->largest = largest, f->documents = documents, f->sum = sum;
}

/* One figure against dataset.json's. */
static inline void check_figure(const Shard *s, const DatasetList *l, const char *what, i64 is, i64 listed) {
    if (is != listed)
        FAIL(EVERYONE, "%s: %s: %lld, but %lld in %s; the file is not the one that was written", s->path, what, is,
             listed, l->path);
}

static inline void check_sum(const char *path, const DatasetList *l, uint64_t is, uint64_t listed) {
    if (is != listed)
        FAIL(EVERYONE, "%s: sum %016llx, but %016llx in %s: a byte has changed since it was written", path,
             (unsigned long long)is, (unsigned long long)listed, l->path);
}

/* Count a shard and its mask, hold both against `l`, and say what they hold. `vocab`: the model's, or VOCAB_MOST. */
static inline ShardFacts shard_report(const Shard *s, const DatasetList *l, i64 vocab, int threads) {
    const ShardFacts *f = dataset_list_find(l, shard_file(s));
    ShardFacts is, mask;
    memset(&is, 0, sizeof is), memset(&mask, 0, sizeof mask);
    if (l->path[0] && !f) FAIL(EVERYONE, "%s is not in %s: of another data set?", s->path, l->path);
    if (f) shard_fits(s, l, f, "check-data", vocab);
    shard_count(&is, s->path, s->width, s->tokens, f ? l->eot : -1, f ? i64_min(vocab, l->vocab) : vocab, threads);
    if (f) {
        check_sum(s->path, l, is.sum, f->sum);
        check_figure(s, l, "largest token", is.largest, f->largest);
        if (l->eot >= 0) check_figure(s, l, "documents", is.documents, f->documents);
    }
    if (s->masked) {
        char path[PATH_MAX];
        mask_path(path, s->path);
        shard_count(&mask, path, 1, s->tokens, 1, 2, threads);
        if (f && !f->masked) FAIL(EVERYONE, "%s is not in %s: of another data set?", path, l->path);
        if (f) check_sum(path, l, mask.sum, f->mask_sum);
        if (f) check_figure(s, l, "targets", mask.documents, f->counted);
    }
    printf("%s: %lld tokens of %d bytes, largest %lld", s->path, is.tokens, s->width, is.largest);
    if (f && l->eot >= 0) printf(", %lld documents", is.documents);
    if (s->masked) printf(", %lld targets", mask.documents);
    printf(f ? "; as in " DATASET_NAME "\n" : "\n");
    fflush(stdout);
    return is;
}

/* Every file that a list names is there. */
static inline void dataset_list_complete(const DatasetList *l) {
    for (int i = 0; i < l->files; i++) {
        char path[PATH_MAX];
        int n = snprintf(path, sizeof path, "%s%s", l->dir, l->file[i].name);
        if (n < (int)sizeof path && path_exists(path)) continue;
        FAIL(EVERYONE, "%s lists %s, which is missing: copy or make it again", l->path, l->file[i].name);
    }
}

#define SHOWN_SEQUENCES 3
#define SHOWN_TOKENS ((i64)200)

/* The beginnings of the first sequences, as text or (NULL) as numbers. */
static inline void sequences_print(Dataset *d, const Tokenizer *t) {
    for (i64 i = 0; i < i64_min(d->sequences, SHOWN_SEQUENCES); i++) {
        int32_t token[SHOWN_TOKENS];
        i64 n = i64_min(d->L, SHOWN_TOKENS);
        dataset_read(d, i, 0, 1, n, token, 1);
        printf("sequence %lld: ", i);
        tokens_print(t, token, n);
        printf("%s\n", n < d->L ? " ..." : "");
    }
    fflush(stdout);
}

/* The same by the tokenizer beside the shards; 0: there is none, or none that this program knows. That ends a
   process, so it is one of its own. */
static inline int sequences_print_text(Dataset *d) {
    char dir[PATH_MAX];
    int status = 0;
    dataset_dir(dir, d);
    if (!tokenizer_is_in(dir)) return 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        fail_state()->abort_all = NULL;
        if (!freopen("/dev/null", "w", stderr)) _exit(1);
        sequences_print(d, tokenizer_open(dir));
        _exit(0);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* --check-data PATTERN: look at every byte, and say what is there; one line and the end of the program where it is not
   what it should be. `vocab`: the model's, or VOCAB_MOST. One rank. */
static inline void check_data(const char *pattern, i64 L, i64 vocab, int threads) {
    Dataset d;
    DatasetList l;
    i64 documents = 0, largest = 0;
    int bytes = 1, known = 1;
    memset(&l, 0, sizeof l);
    dataset_open(&d, pattern, "check-data", L, vocab);
    dataset_describe(&d, "check-data", vocab);
    for (int i = 0; i < d.shards; i++) {
        char before[PATH_MAX];
        snprintf(before, sizeof before, "%s", l.path);
        dataset_list_of(&l, &d.shard[i]);
        if (strcmp(before, l.path) != 0) dataset_list_complete(&l);
        ShardFacts f = shard_report(&d.shard[i], &l, vocab, threads);
        documents += f.documents, largest = i64_max(largest, f.largest);
        known = known && l.path[0] && l.eot >= 0;
        bytes = bytes && (l.path[0] ? l.bytes : !tokenizer_is_in(l.dir));
    }
    dataset_print(&d, "check-data");
    printf("%lld sequences of %lld tokens", d.sequences, L);
    if (known) printf(", %lld documents", documents);
    printf("\n");
    Tokenizer *t = bytes && largest < TOKENS_ARE_BYTES ? tokenizer_bytes() : NULL;
    if (t || !sequences_print_text(&d)) sequences_print(&d, t);
    if (t) tokenizer_close(t);
    dataset_list_free(&l);
    dataset_close(&d);
}

#endif

/* data.h - token shards as llm.c writes them, and which tokens of which sequence this rank reads.

   file   256 int32 header: magic, version, number of tokens n; then n tokens
          magic 20240520 version 1: uint16 (GPT-2, bytes)      magic 20240801 version 7: uint32 (Llama 3)
   list   files by the bytes of their names (t_10 before t_2); a file of n tokens holds floor((n-1)/L) sequences,
          sequence j is its tokens jL .. jL+L, the last a target
   step   s takes sequences s*batch .. s*batch+batch-1 of the list, which starts over at its end - whatever the mesh:
          sequence (micro * dp + dp_rank) * B + b of them goes to that micro-step, data-parallel
          group and place in the micro-batch
   mask   NAME_mask.bin beside NAME.bin, magic 20261126 version 1: a byte a token, 0 where it does not count as a target
   order  with --shuffle each time through the list (epoch) takes it in an order of its own: a permutation that seed and
          epoch key, computed place by place, so that nothing is stored and any step can be gone to

   A rank reads the tokens of its own positions and their targets, nothing else (with --doc-mask its whole sequences, to
   see where documents begin). Targets come from the file before
   anything is split, so a rank's last target is the first token of whoever follows. Offsets are 64 bits; files may
   be larger than 2^31 tokens. */
#ifndef ODYSSEUS_DATA_H
#define ODYSSEUS_DATA_H

#include "positions.h"
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <sys/stat.h>

#define TOKEN_IGNORED (-1)
#define TOKENS_ARE_BYTES 256 /* a vocabulary of this size, as dev/data/text_to_shards.py makes it */

typedef struct {
    char *path;
    i64 tokens, first; /* tokens in the file; its first sequence's number in the list */
    int width;         /* bytes a token */
    int masked;        /* a mask is beside it */
} Shard;

/* What the dataset.json beside the shards says of where they come from: dataset.h. */
typedef struct {
    int listed;        /* shards that one lists; where none is, nothing below is known */
    int foreign;       /* beside some lies a dataset.json of another program, which is not read */
    i64 vocab, eot;    /* eot -1: none */
    double text_bytes; /* behind a token, on average; 0: not known */
    char tokenizer[96];
} DataOrigin;

/* A file being read: of the shard of this number; -1: none. */
typedef struct {
    int shard, fd;
} DataFile;

typedef struct {
    Shard *shard;
    int shards;
    i64 L, sequences, vocab;
    int shuffled;
    i64 seed;                /* of the order, where shuffled */
    int masked;              /* a shard has a mask */
    DataOrigin origin;
    DataFile tokens, mask;
    unsigned char *bytes;    /* one read: (L+1) tokens at most */
} Dataset;

#define SHARD_HEADER_BYTES 1024
#define MASK_SUFFIX "_mask.bin"

/* First two words of a header, and the bytes of a token; 1: a mask. */
static const struct {
    int32_t magic, version;
    int width;
} SHARD_FORMATS[] = {{20240520, 1, 2}, {20240801, 7, 4}, {20261126, 1, 1}};

/* Check the header of a file of tokens, or of a mask, against its size. Returns how many it holds; *width: bytes each.
   Every rank reads the same and finds the same. */
static inline i64 shard_header(const char *path, int *width, const char *flag) {
    int32_t header[SHARD_HEADER_BYTES / 4];
    struct stat info;
    int fd = open(path, O_RDONLY | O_NONBLOCK), k = 0; /* or a pipe would wait for its writer */
    if (fd < 0 || fstat(fd, &info) != 0) FAIL(EVERYONE, "--%s: cannot open %s: %s", flag, path, strerror(errno));
    if (S_ISDIR(info.st_mode))
        FAIL(EVERYONE, "--%s: %s is a directory; name its shards by a quoted glob, e.g. \"%s/train_*.bin\"", flag, path,
             path);
    if (!S_ISREG(info.st_mode)) FAIL(EVERYONE, "--%s: %s is not a regular file", flag, path);
    ssize_t got = read(fd, header, sizeof header);
    close(fd);
    if (got == 0) FAIL(EVERYONE, "--%s: %s is empty; a token shard starts with a 1024-byte header", flag, path);
    while (k < COUNT_OF(SHARD_FORMATS) && got == (ssize_t)sizeof header &&
           (header[0] != SHARD_FORMATS[k].magic || header[1] != SHARD_FORMATS[k].version))
        k++;
    if (got != (ssize_t)sizeof header || k == COUNT_OF(SHARD_FORMATS))
        FAIL(EVERYONE, "--%s: %s is not a token shard (magic 20240520 version 1 or 20240801 version 7); "
             "dev/data/prepare.py makes them", flag, path);
    *width = SHARD_FORMATS[k].width;
    /* the header's count is 32 bits; a larger file's own size tells the rest */
    i64 tokens = ((i64)info.st_size - SHARD_HEADER_BYTES) / *width;
    if ((info.st_size - SHARD_HEADER_BYTES) % *width != 0 || (uint32_t)tokens != (uint32_t)header[2])
        FAIL(EVERYONE, "--%s: %s is damaged: its header promises %u tokens, the file holds %lld; make it again", flag,
             path, (uint32_t)header[2], tokens);
    return tokens;
}

static inline void mask_path(char out[PATH_MAX], const char *shard) {
    size_t n = strlen(shard);
    if (n > 4 && strcmp(shard + n - 4, ".bin") == 0) n -= 4;
    if (snprintf(out, PATH_MAX, "%.*s" MASK_SUFFIX, (int)n, shard) >= PATH_MAX) out[0] = 0;
}

/* By its name and its first word: a shard of tokens may be called so, too. */
static inline int is_mask(const char *path) {
    size_t n = strlen(path), suffix = strlen(MASK_SUFFIX);
    int32_t magic = 0;
    if (n < suffix || strcmp(path + n - suffix, MASK_SUFFIX) != 0) return 0;
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return 0;
    int mask = read(fd, &magic, sizeof magic) == (ssize_t)sizeof magic && magic == 20261126;
    close(fd);
    return mask;
}

/* A shard's header, and that of its mask, where one is beside it. */
static inline void shard_check(Shard *s, const char *flag) {
    char path[PATH_MAX];
    int width;
    s->tokens = shard_header(s->path, &s->width, flag);
    if (s->width == 1)
        FAIL(EVERYONE, "--%s: %s is a mask; name the shard of tokens that it lies beside", flag, s->path);
    mask_path(path, s->path);
    s->masked = path[0] && access(path, F_OK) == 0;
    if (!s->masked) return;
    if (!is_mask(path))
        FAIL(EVERYONE, "--%s: %s has the name of a mask of %s and is none; make it again, or rename it", flag, path,
             s->path);
    i64 n = shard_header(path, &width, flag);
    if (n != s->tokens)
        FAIL(EVERYONE, "--%s: the mask %s is of %lld tokens, its shard has %lld; make them again", flag, path, n,
             s->tokens);
}

static inline int shard_by_name(const void *a, const void *b) {
    return strcmp(((const Shard *)a)->path, ((const Shard *)b)->path);
}

/* The files that `pattern` means, in the order of their names' bytes, whatever the locale. A path that exists is itself
   and no pattern: brackets and backslashes are letters of a name, too. */
static inline void dataset_find(Dataset *d, const char *pattern, const char *flag) {
    struct stat info;
    glob_t found;
    memset(&found, 0, sizeof found);
    int exact = stat(pattern, &info) == 0;
    if (!exact && (glob(pattern, GLOB_NOSORT, NULL, &found) != 0 || found.gl_pathc == 0))
        FAIL(EVERYONE, "--%s %s: no such file; give a shard or a quoted glob, e.g. \"data/train_*.bin\"", flag,
             pattern);
    int files = exact ? 1 : (int)found.gl_pathc;
    d->shard = (Shard *)host_alloc(sizeof(Shard) * (size_t)files);
    for (int i = 0; i < files; i++)
        if (exact || !is_mask(found.gl_pathv[i]))
            d->shard[d->shards++].path = strdup(exact ? pattern : found.gl_pathv[i]);
    globfree(&found);
    if (!d->shards) FAIL(EVERYONE, "--%s %s: there are masks only, and no shard of tokens", flag, pattern);
    qsort(d->shard, (size_t)d->shards, sizeof(Shard), shard_by_name);
}

/* Open the files of `pattern`, sorted by name. `flag` (train, val) is for messages.
   Owner: the caller; dataset_close. */
static inline void dataset_open(Dataset *d, const char *pattern, const char *flag, i64 L, i64 vocab) {
    memset(d, 0, sizeof *d);
    d->L = L, d->vocab = vocab, d->tokens.shard = d->tokens.fd = d->mask.shard = d->mask.fd = -1;
    i64 longest = 0;
    dataset_find(d, pattern, flag);
    for (int i = 0; i < d->shards; i++) {
        Shard *s = &d->shard[i];
        s->first = d->sequences;
        shard_check(s, flag);
        d->sequences += i64_max(s->tokens - 1, 0) / L;
        longest = i64_max(longest, s->tokens);
        d->masked |= s->masked;
    }
    if (d->sequences == 0)
        FAIL(EVERYONE,
             "--%s %s: the longest shard has %lld tokens, a sequence of --seq-len %lld needs %lld; lower --seq-len or "
             "use longer shards",
             flag, pattern, longest, L, L + 1);
    d->bytes = (unsigned char *)host_alloc((size_t)(L + 1) * 4);
}

static inline void dataset_close(Dataset *d) {
    for (int i = 0; i < d->shards; i++) free(d->shard[i].path);
    free(d->shard);
    free(d->bytes);
    if (d->tokens.fd >= 0) close(d->tokens.fd);
    if (d->mask.fd >= 0) close(d->mask.fd);
    memset(d, 0, sizeof *d);
    d->tokens.fd = d->mask.fd = -1;
}

/* Where `place` of 0 .. n-1 goes in the permutation of `key`: a Feistel network of six rounds on the numbers below
   the next power of four; one that leaves 0 .. n-1 goes through again until it is back (less than four times on
   average). Black, Rogaway 2002. */
static inline i64 permuted(i64 n, uint64_t key, i64 place) {
    int half = 1;
    uint64_t x = (uint64_t)place;
    while (half < 31 && (i64)1 << 2 * half < n) half++;
    const uint64_t mask = ((uint64_t)1 << half) - 1;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t next = left ^ (mix64(key + 8 * right + round) & mask);
            left = right, right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (i64)x;
}

/* The sequence that stands at place i, from 0, of the list that starts over at its end. */
static inline i64 dataset_sequence(const Dataset *d, i64 i) {
    i64 epoch = i / d->sequences, place = i % d->sequences;
    return d->shuffled ? permuted(d->sequences, mix64(mix64((uint64_t)d->seed) ^ (uint64_t)epoch), place) : place;
}

/* The shard that holds a sequence of the list. */
static inline int dataset_shard(const Dataset *d, i64 sequence) {
    int lo = 0, hi = d->shards - 1;
    while (lo < hi) {
        int middle = (lo + hi + 1) / 2;
        if (d->shard[middle].first <= sequence) lo = middle;
        else hi = middle - 1;
    }
    return lo;
}

static inline i64 token_value(const unsigned char *p, int width) {
    i64 value = p[0];
    for (int i = 1; i < width; i++) value |= (i64)p[i] << 8 * i;
    return value;
}

/* Items item .. item+n-1 of a shard's tokens, or of its mask; the next call overwrites them. */
static inline const unsigned char *dataset_bytes(Dataset *d, int which, int mask, i64 item, i64 n) {
    DataFile *f = mask ? &d->mask : &d->tokens;
    int width = mask ? 1 : d->shard[which].width;
    char path[PATH_MAX];
    if (mask) mask_path(path, d->shard[which].path);
    else snprintf(path, sizeof path, "%s", d->shard[which].path);
    if (f->shard != which) {
        if (f->fd >= 0) close(f->fd);
        f->fd = open(path, O_RDONLY);
        if (f->fd < 0) FAIL(THIS_RANK, "cannot open %s: %s", path, strerror(errno));
        f->shard = which;
    }
    size_t want = (size_t)(n * width), have = 0;
    while (have < want) {
        ssize_t got = pread(f->fd, d->bytes + have, want - have, SHARD_HEADER_BYTES + item * width + (off_t)have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            FAIL(THIS_RANK, "cannot read %s at token %lld: %s", path, item,
                 got < 0 ? strerror(errno) : "the file has become shorter");
        have += (size_t)got;
    }
    return d->bytes;
}

/* Read tokens first, first+stride, ... (count of them) of a sequence into out[0], out[ld], out[2 ld], ... */
static inline void dataset_read(Dataset *d, i64 sequence, i64 first, i64 stride, i64 count, int32_t *out, i64 ld) {
    if (count == 0) return;
    int which = dataset_shard(d, sequence);
    const Shard *s = &d->shard[which];
    i64 token = (sequence - s->first) * d->L + first;
    const unsigned char *bytes = dataset_bytes(d, which, 0, token, (count - 1) * stride + 1);
    for (i64 i = 0; i < count; i++) {
        i64 value = token_value(bytes + i * stride * s->width, s->width);
        if (value >= d->vocab)
            FAIL(THIS_RANK,
                 "%s: token %lld at position %lld is outside the vocabulary of %lld; was the shard made for another "
                 "model?",
                 s->path, value, token + i * stride, d->vocab);
        out[i * ld] = (int32_t)value;
    }
}

/* Those of the same tokens that their mask leaves out become TOKEN_IGNORED. */
static inline void dataset_mask(Dataset *d, i64 sequence, i64 first, i64 stride, i64 count, int32_t *out, i64 ld) {
    int which = dataset_shard(d, sequence);
    const Shard *s = &d->shard[which];
    if (count == 0 || !s->masked) return;
    i64 token = (sequence - s->first) * d->L + first;
    const unsigned char *mask = dataset_bytes(d, which, 1, token, (count - 1) * stride + 1);
    for (i64 i = 0; i < count; i++) {
        if (mask[i * stride] > 1)
            FAIL(THIS_RANK, "the mask of %s: byte %d at position %lld is neither 0 nor 1", s->path, mask[i * stride],
                 token + i * stride);
        if (!mask[i * stride]) out[i * ld] = TOKEN_IGNORED;
    }
}

/* Tokens at the positions of `map`: column b of out (T, B), T = map.count. */
static inline void dataset_column(Dataset *d, i64 sequence, const TokenMap *map, int32_t *out, i64 b, i64 B) {
    i64 t = 0;
    for (int i = 0; i < 2; i++) {
        const TokenRun *run = &map->run[i];
        dataset_read(d, sequence, run->first, run->stride, run->count, out + t * B + b, B);
        t += run->count;
    }
}

/* The same, shifted by `shift`, as targets: TOKEN_IGNORED where the mask leaves one out, or it is `ignored`. The
   targets of the positions of `map` are shifted by 1. */
static inline void dataset_targets(Dataset *d, i64 sequence, const TokenMap *map, i64 shift, i64 ignored, int32_t *out,
                                   i64 b, i64 B) {
    i64 t = 0;
    for (int i = 0; i < 2; i++) {
        const TokenRun *run = &map->run[i];
        int32_t *column = out + t * B + b;
        dataset_read(d, sequence, run->first + shift, run->stride, run->count, column, B);
        for (i64 j = 0; j < run->count; j++)
            if (column[j * B] == ignored) column[j * B] = TOKEN_IGNORED;
        dataset_mask(d, sequence, run->first + shift, run->stride, run->count, column, B);
        t += run->count;
    }
}

/* The folder of a path: it ends in a slash. */
static inline void path_folder(char out[PATH_MAX], const char *path) {
    const char *slash = strrchr(path, '/');
    if (slash) snprintf(out, PATH_MAX, "%.*s", (int)(slash - path) + 1, path);
    else snprintf(out, PATH_MAX, "./");
}

/* out = the directory of the first shard, with its slash; an empty text: there is no shard. */
static inline void dataset_dir(char out[PATH_MAX], const Dataset *d) {
    if (d->shards) path_folder(out, d->shard[0].path);
    else out[0] = 0;
}

#endif

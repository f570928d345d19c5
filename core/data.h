/* data.h - token shards as llm.c writes them, and which tokens of which sequence this rank reads.

   file   256 int32 header: magic, version, number of tokens n; then n tokens
          magic 20240520 version 1: uint16 (GPT-2, bytes)      magic 20240801 version 7: uint32 (Llama 3)
   list   files by the bytes of their names (t_10 before t_2); a file of n tokens holds floor((n-1)/L) sequences,
          sequence j is its tokens jL .. jL+L, the last a target
   step   s takes sequences s*batch .. s*batch+batch-1 of the list, which starts over at its end - whatever the mesh:
          sequence (micro * dp + dp_rank) * B + b of them goes to that micro-step, data-parallel
          group and place in the micro-batch
   shuffle  each time through the list (epoch) takes it in an order of its own: a permutation that seed and epoch key,
          computed place by place, so that nothing is stored and any step can be gone to

   A rank reads the tokens of its own positions and their targets, nothing else. Targets come from the file before
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
} Shard;

typedef struct {
    Shard *shard;
    int shards;
    i64 L, sequences, vocab;
    int shuffled;
    i64 seed;                /* of the order, where shuffled */
    int open, fd;            /* the shard that fd reads; -1: none */
    unsigned char *bytes;    /* one read: (L+1) tokens at most */
} Dataset;

#define SHARD_HEADER_BYTES 1024

/* Check one file's header against its size; every rank reads the same and finds the same. */
static inline void shard_check(Shard *s, const char *flag) {
    int32_t header[SHARD_HEADER_BYTES / 4];
    struct stat info;
    int fd = open(s->path, O_RDONLY | O_NONBLOCK); /* or a pipe would wait for its writer */
    if (fd < 0 || fstat(fd, &info) != 0) FAIL(EVERYONE, "--%s: cannot open %s: %s", flag, s->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) FAIL(EVERYONE, "--%s: %s is not a regular file", flag, s->path);
    ssize_t got = read(fd, header, sizeof header);
    close(fd);
    if (got == 0) FAIL(EVERYONE, "--%s: %s is empty; a token shard starts with a 1024-byte header", flag, s->path);
    int known = got == (ssize_t)sizeof header &&
                ((header[0] == 20240520 && header[1] == 1) || (header[0] == 20240801 && header[1] == 7));
    if (!known)
        FAIL(EVERYONE,
             "--%s: %s is not a token shard (magic 20240520 version 1 or 20240801 version 7); "
             "dev/data/text_to_shards.py makes them",
             flag, s->path);
    s->width = header[0] == 20240520 ? 2 : 4;
    /* the header's count is 32 bits; a larger file's own size tells the rest */
    s->tokens = (info.st_size - SHARD_HEADER_BYTES) / s->width;
    if ((info.st_size - SHARD_HEADER_BYTES) % s->width != 0 || (uint32_t)s->tokens != (uint32_t)header[2])
        FAIL(EVERYONE, "--%s: %s is damaged: its header promises %u tokens, the file holds %lld; make it again", flag,
             s->path, (uint32_t)header[2], s->tokens);
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
    d->shards = exact ? 1 : (int)found.gl_pathc;
    d->shard = (Shard *)host_alloc(sizeof(Shard) * (size_t)d->shards);
    for (int i = 0; i < d->shards; i++) d->shard[i].path = strdup(exact ? pattern : found.gl_pathv[i]);
    globfree(&found);
    qsort(d->shard, (size_t)d->shards, sizeof(Shard), shard_by_name);
}

/* Open the files of `pattern`, sorted by name. `flag` (train, val) is for messages.
   Owner: the caller; dataset_close. */
static inline void dataset_open(Dataset *d, const char *pattern, const char *flag, i64 L, i64 vocab) {
    memset(d, 0, sizeof *d);
    d->L = L, d->vocab = vocab, d->open = -1, d->fd = -1;
    i64 longest = 0;
    dataset_find(d, pattern, flag);
    for (int i = 0; i < d->shards; i++) {
        Shard *s = &d->shard[i];
        s->first = d->sequences;
        shard_check(s, flag);
        d->sequences += i64_max(s->tokens - 1, 0) / L;
        longest = i64_max(longest, s->tokens);
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
    if (d->fd >= 0) close(d->fd);
    memset(d, 0, sizeof *d);
    d->fd = -1;
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

/* Read tokens first, first+stride, ... (count of them) of a sequence into out[0], out[ld], out[2 ld], ... */
static inline void dataset_read(Dataset *d, i64 sequence, i64 first, i64 stride, i64 count, int32_t *out, i64 ld) {
    if (count == 0) return;
    int which = dataset_shard(d, sequence);
    const Shard *s = &d->shard[which];
    if (d->open != which) {
        if (d->fd >= 0) close(d->fd);
        d->fd = open(s->path, O_RDONLY);
        if (d->fd < 0) FAIL(THIS_RANK, "cannot open %s: %s", s->path, strerror(errno));
        d->open = which;
    }
    i64 token = (sequence - s->first) * d->L + first, span = (count - 1) * stride + 1;
    size_t want = (size_t)span * (size_t)s->width, have = 0;
    while (have < want) {
        ssize_t got = pread(d->fd, d->bytes + have, want - have, SHARD_HEADER_BYTES + token * s->width + (off_t)have);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            FAIL(THIS_RANK, "cannot read %s at token %lld: %s", s->path, token,
                 got < 0 ? strerror(errno) : "the file has become shorter");
        have += (size_t)got;
    }
    for (i64 i = 0; i < count; i++) {
        const unsigned char *p = d->bytes + i * stride * s->width;
        i64 value = p[0] | p[1] << 8;
        if (s->width == 4) value |= (i64)p[2] << 16 | (i64)p[3] << 24;
        if (value >= d->vocab)
            FAIL(THIS_RANK,
                 "%s: token %lld at position %lld is outside the vocabulary of %lld; was the shard made for another "
                 "model?",
                 s->path, value, token + i * stride, d->vocab);
        out[i * ld] = (int32_t)value;
    }
}

/* Tokens at the positions of `map`, shifted by `shift` (1: their targets): column b of out (T, B), T = map.count. */
static inline void dataset_column(Dataset *d, i64 sequence, const TokenMap *map, i64 shift, int32_t *out, i64 b,
                                  i64 B) {
    i64 t = 0;
    for (int i = 0; i < 2; i++) {
        const TokenRun *run = &map->run[i];
        dataset_read(d, sequence, run->first + shift, run->stride, run->count, out + t * B + b, B);
        t += run->count;
    }
}

/* out = the directory of the first shard, with its slash; an empty text: there is no shard. */
static inline void dataset_dir(char out[PATH_MAX], const Dataset *d) {
    const char *path = d->shards ? d->shard[0].path : "", *slash = strrchr(path, '/');
    if (slash) snprintf(out, PATH_MAX, "%.*s", (int)(slash - path) + 1, path);
    else snprintf(out, PATH_MAX, "%s", *path ? "./" : "");
}

#endif

/* arena.h - all device memory of a rank is one range, laid out by the code that uses it, accounted by category.

   reserve a large inaccessible range -> take() what lives for the whole run, walk one step in plan mode with
   mark/take/release -> the peak is known -> commit() exactly that many bytes -> train. A plan may
   want more than can be reserved.

   [ parameters | gradients | optimizer | gathered weights | ... kept for the run | stack: mark, take, release ... ]
   Before commit() a dereference faults, address arithmetic works: a dry run and a run share every line. The backend
   reserves and commits (device.h): host memory, or a GPU's.                                                          */
#ifndef ODYSSEUS_ARENA_H
#define ODYSSEUS_ARENA_H

#include "../kernels/compute.h"

typedef enum {
    MEM_PARAMETERS, MEM_GRADIENTS, MEM_OPTIMIZER, MEM_ACTIVATIONS, MEM_GATHERED, MEM_CONTEXT,
    MEM_COMM, MEM_LOGITS, MEM_WORKSPACE, MEM_CATEGORIES
} MemCategory;
static const char *const MEM_NAMES[MEM_CATEGORIES] = {
    "parameters", "gradients", "optimizer", "activations", "gathered weights", "gathered Q, KV",
    "comm buffers", "logits", "workspace"};

typedef struct {
    i64 used;
    i64 by_category[MEM_CATEGORIES];
} ArenaMark;

typedef struct {
    Device *dev;
    char *base;
    i64 reserved, committed; /* bytes */
    ArenaMark now, peak;     /* `peak` is the moment of the largest use: its categories add up to what is allocated */
} Arena;

#define ARENA_ALIGN 256
#define ARENA_MOST ((i64)1 << 60) /* a plan counts no further */

/* Reserve address space (no memory) of the device. Owner: the caller; arena_free returns it. */
static inline void arena_reserve(Arena *a, Device *dev) {
    memset(a, 0, sizeof *a);
    a->dev = dev;
    for (a->reserved = (i64)1 << 45; a->reserved >= (i64)1 << 32; a->reserved /= 2)
        if ((a->base = (char *)memory_reserve(dev, a->reserved)) != NULL) return;
    FAIL(THIS_RANK, "cannot reserve address space for the arena (%s); is `ulimit -v` set?", strerror(errno));
}

/* `bytes` at the top of the arena, aligned to ARENA_ALIGN; lives until the enclosing mark is released. */
static inline void *arena_take(Arena *a, MemCategory category, i64 bytes) {
    i64 left = ARENA_MOST - a->now.used;
    bytes = bytes < 0 || bytes > left ? left : round_up(bytes, ARENA_ALIGN);
    if (a->committed && bytes > a->committed - a->now.used)
        FAIL(THIS_RANK, "arena: %lld bytes for %s do not fit in the planned %lld; plan and run disagree", bytes,
             MEM_NAMES[category], a->committed);
    void *p = a->base + i64_min(a->now.used, a->reserved);
    a->now.used += bytes;
    a->now.by_category[category] += bytes;
    if (a->now.used > a->peak.used) a->peak = a->now;
    return p;
}

static inline ArenaMark arena_mark(const Arena *a) { return a->now; }
static inline void arena_release(Arena *a, ArenaMark mark) { a->now = mark; }

/* What the plan needs, in whole pages: of an arena, or of its peak alone. */
static inline i64 peak_bytes(const ArenaMark *peak) { return round_up(i64_max(peak->used, 1), 4096); }
static inline i64 arena_bytes(const Arena *a) { return peak_bytes(&a->peak); }

/* Make the planned peak real, zero-filled memory. A host grants pages it does not have: ask what is available first. */
static inline void arena_commit(Arena *a) {
    a->committed = arena_bytes(a);
    if (a->committed > a->reserved || !memory_commit(a->dev, a->base, a->committed))
        FAIL(THIS_RANK,
             "out of memory: this " MEMORY_OWNER " refused the %.1f MB of the arena; does something else use it? "
             "Lower --micro-batch or --seq-len, use more ranks or --recompute full",
             a->committed / 1e6);
}

static inline void arena_free(Arena *a) {
    if (a->base) memory_release(a->dev, a->base, a->reserved, a->committed);
    memset(a, 0, sizeof *a);
}

/* The table people read; rows that are empty are left out. */
static inline void arena_print(FILE *f, const Arena *a) {
    fprintf(f, "memory of a rank              MB\n");
    for (int c = 0; c < MEM_CATEGORIES; c++)
        if (a->peak.by_category[c]) fprintf(f, "  %-18s %12.3f\n", MEM_NAMES[c], a->peak.by_category[c] / 1e6);
    fprintf(f, "  %-18s %12.3f\n", "total", a->peak.used / 1e6);
}

#endif

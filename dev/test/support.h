/* support.h - what the tests of the whole trainer share: small shards on disk, a trainer on any split of the world, and
   the logical gradients of one run, to compare another run with.

   A test includes train_gpt.cu without its main and drives the trainer's own functions, so
   nothing is tested but what runs. */
#ifndef ODYSSEUS_TEST_SUPPORT_H
#define ODYSSEUS_TEST_SUPPORT_H

#define ODYSSEUS_TEST
#include "../../train_gpt.cu"
#include "check.h"

/* Write `n` tokens as a uint16 shard, or (`mask`) as bytes of a mask; for files the tests read back at once. */
static inline void write_tokens(const char *path, int mask, const int32_t *tokens, i64 n) {
    int32_t header[256];
    memset(header, 0, sizeof header);
    header[0] = mask ? 20261126 : 20240520, header[1] = 1, header[2] = (int32_t)n;
    FILE *f = fopen(path, "wb");
    if (!f) FAIL(THIS_RANK, "cannot write %s", path);
    fwrite(header, 4, 256, f);
    for (i64 i = 0; i < n; i++) {
        uint16_t t = (uint16_t)tokens[i];
        fwrite(&t, mask ? 1 : 2, 1, f);
    }
    fclose(f);
}

static inline void write_shard(const char *path, const int32_t *tokens, i64 n) { write_tokens(path, 0, tokens, n); }

/* A directory that all ranks know, made by rank 0. */
static inline void test_directory(char out[256], const char *name, Wire world) {
    char text[256] = "";
    if (wire_rank(world) == 0) {
        const char *tmp = getenv("TMPDIR");
        snprintf(text, sizeof text, "%s/odysseus_%s_XXXXXX", tmp ? tmp : "/tmp", name);
        if (!mkdtemp(text)) FAIL(THIS_RANK, "cannot make %s", text);
    }
    MPI_Bcast(text, sizeof text, MPI_CHAR, 0, world);
    memcpy(out, text, sizeof text);
}

static inline void test_remove(const char *directory, Wire world) {
    wire_barrier(world);
    if (wire_rank(world) != 0) return;
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    if (system(command) != 0) printf("# could not remove %s\n", directory);
}

/* A trainer over `world` (collective), planned, committed, with weights from the seed or from
   settings->model, ready for step 0. */
static inline void trainer_start(Trainer *t, const ModelOptions *o, const Settings *s, Wire world) {
    memset(t, 0, sizeof *t);
    t->settings = s, t->options = *o;
    dataset_open(&t->train, s->train, "train", o->L, o->config.vocab);
    model_init(&t->model, &t->options, world, 0, wire_rank(world));
    trainer_plan(t);
    arena_commit(&t->model.arena);
    model_tables(&t->model);
    load_weights(t);
    ledger_reset(&t->model.ledger);
}

static inline void trainer_stop(Trainer *t) {
    model_free(&t->model);
    dataset_close(&t->train);
}

/* ---- logical tensors --------------------------------------------------------------------------------------------- */

/* Every HF tensor of a model in one array of doubles: element `index` of tensor i stands at at[i] + index. */
typedef struct {
    HfTensor *list;
    int n;
    i64 *at;
    i64 *size;
    double *value;
} Logical;

typedef struct {
    Logical *logical;
    const Zero *z;
    const accum *flat;
    double *diff, *seen; /* per tensor: largest difference, elements met */
} LogicalVisit;

static inline int logical_find(const Logical *l, const char *name) {
    for (int i = 0; i < l->n; i++)
        if (strcmp(l->list[i].name, name) == 0) return i;
    FAIL(THIS_RANK, "no logical tensor %s", name);
}

static inline void logical_init(Logical *l, const Zero *z) {
    l->list = checkpoint_list(z, &l->n);
    l->at = (i64 *)host_alloc(sizeof(i64) * (size_t)(l->n + 1));
    l->size = (i64 *)host_alloc(sizeof(i64) * (size_t)l->n);
    for (int i = 0; i < l->n; i++) {
        l->size[i] = l->list[i].place.shape[0] * (l->list[i].place.dims == 2 ? l->list[i].place.shape[1] : 1);
        l->at[i + 1] = l->at[i] + l->size[i];
    }
    l->value = (double *)host_alloc(sizeof(double) * (size_t)l->at[l->n]);
}

static inline void logical_free(Logical *l) {
    free(l->list);
    free(l->at);
    free(l->size);
    free(l->value);
}

static inline void logical_take_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    LogicalVisit *v = (LogicalVisit *)context;
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    HfPlace p = tensor_hf_place(t->spec, v->z->config);
    double *out = v->logical->value + v->logical->at[logical_find(v->logical, name)];
    for (i64 j = 0; j < n; j++) out[p.base + row * p.row_step + (col + j) * p.col_step] = (double)v->flat[at + j];
}

/* A flat buffer on the host. Owner: caller; free. */
static inline accum *flat_out(const Zero *z, const accum *flat) {
    accum *host = (accum *)host_alloc((size_t)z->flat * sizeof(accum));
    copy_out(z->dev, host, flat, z->flat * (i64)sizeof(accum));
    return host;
}

/* All tensors from a rank that owns everything (a world of one). */
static inline void logical_take(Logical *l, const Zero *z, const accum *device_flat) {
    logical_init(l, z);
    accum *flat = flat_out(z, device_flat);
    LogicalVisit v = {l, z, flat, NULL, NULL};
    for (int i = 0; i < z->tensors; i++) tensor_owned(z, &z->tensor[i], logical_take_run, &v);
    free(flat);
}

static inline void logical_compare_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    LogicalVisit *v = (LogicalVisit *)context;
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    int which = logical_find(v->logical, name);
    HfPlace p = tensor_hf_place(t->spec, v->z->config);
    const double *reference = v->logical->value + v->logical->at[which];
    for (i64 j = 0; j < n; j++) {
        double d = fabs((double)v->flat[at + j] - reference[p.base + row * p.row_step + (col + j) * p.col_step]);
        if (!(d <= v->diff[which])) v->diff[which] = d < INFINITY ? d : INFINITY;
    }
    v->seen[which] += (double)n;
}

/* The largest relative distance, over HF tensors, of this world's `flat` from the reference: max|a-b| /
   max|b| of each tensor, over all ranks; infinity if any element has no owner or several. `worst` names the
   tensor. Collective over `world`. */
static inline double logical_distance(Logical *reference, const Zero *z, const accum *device_flat, Wire world,
                                      char worst[HF_NAME_MAX]) {
    accum *flat = flat_out(z, device_flat);
    double *diff = (double *)host_alloc(sizeof(double) * 2 * (size_t)reference->n), *seen = diff + reference->n,
           result = 0;
    LogicalVisit v = {reference, z, flat, diff, seen};
    for (int i = 0; i < z->tensors; i++) tensor_owned(z, &z->tensor[i], logical_compare_run, &v);
    MPI_Allreduce(MPI_IN_PLACE, diff, reference->n, MPI_DOUBLE, MPI_MAX, world);
    MPI_Allreduce(MPI_IN_PLACE, seen, reference->n, MPI_DOUBLE, MPI_SUM, world);
    snprintf(worst, HF_NAME_MAX, "none");
    for (int i = 0; i < reference->n; i++) {
        double size = 0, *b = reference->value + reference->at[i];
        for (i64 j = 0; j < reference->size[i]; j++) size = fmax(size, fabs(b[j]));
        double d = seen[i] != (double)reference->size[i] ? INFINITY : diff[i] == 0 ? 0 : diff[i] / size;
        if (d > result) result = d, snprintf(worst, HF_NAME_MAX, "%s", reference->list[i].name);
    }
    free(diff);
    free(flat);
    return result;
}

#endif

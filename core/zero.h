/* zero.h - who owns which parameter: ZeRO-3 as one component under every scheme.

   One rule: a tensor is split over the head axis or it is not (the scheme says); the ranks that would
   still hold identical copies - its share group - own one flat chunk of it each. dp, ring, Ulysses and
   replicated KV heads all fall under it.

   block l, share group g:   chunk   [ q | k | v | o | biases | norm | pad ]      P elements, padded to S shards
                             shards  [ rank 0 | rank 1 | ... | rank S-1 ]     each owns one: weights, gradient, moments

   A shard has ceil(P/S) elements. Where they travel between GPUs it has as many as fill whole 16 bytes, so that every
   rank's begins at such a boundary for S = 3, 6, 7 or 24, too: NCCL copies byte by byte what begins elsewhere.

   walk       zero_acquire(block)    wait for its gather, point at weights
              zero_prefetch          start the gather of the next block of the walk, once the
                                     block's own exchange is under way
   backward   zero_grad_begin(block) gradients of the whole block at zero; the walk adds to them
              zero_grad_end(block)   reduce-scatter starts; its sum lands in this rank's
                                     shard while the next block computes

   A share group of one rank gathers nothing: weights and gradients are its shard. Gathered weights live in one
   slot per kind of block (attention, MLP, vocabulary), so the next block never overwrites the one in use and
   nothing stays gathered longer.
   A tied head gathers the embedding's chunk again and leaves its gradient in the slot; the embedding's
   backward reduces both at once.

   traffic of a chunk: all-gather forward, all-gather backward, reduce-scatter: 3 (S-1) shards; embedding and head
   gather once. Rajbhandari et al. 2019, arXiv:1910.02054                                                             */
#ifndef ODYSSEUS_ZERO_H
#define ODYSSEUS_ZERO_H

#include "arena.h"
#include "mesh.h"
#include "tensors.h"

typedef enum { SHARE_WORLD, SHARE_SPLIT, SHARE_KV, SHARE_GROUPS } ShareGroup;
typedef enum { SLOT_ATTENTION, SLOT_MLP, SLOT_VOCABULARY, SLOTS } SlotKind;

/* One flat piece of a block, shared by one group. */
typedef struct {
    ShareGroup share;
    i64 elements;    /* P, without padding */
    i64 decayed;     /* the first of them that weight decay applies to */
    i64 shard;       /* shard_elements(P, S) */
    i64 offset;      /* of this rank's shard in the flat buffers */
    i64 slot_offset; /* of the gathered chunk in its slot */
} Chunk;

typedef struct {
    const TensorSpec *spec;
    int layer, chunk;
    Slice slice; /* what of the logical tensor this rank's share group holds */
    i64 offset;  /* in the gathered chunk */
} Tensor;

typedef struct {
    BlockKind kind;
    int layer;
    int first_tensor, tensors, first_chunk, chunks;
    int borrowed; /* tied head: the embedding's block, whose chunk it gathers and adds to; else -1 */
} Block;

#define BLOCK_CHUNKS 4 /* share groups, and a borrowed chunk */

typedef struct {
    real *weights;  /* gathered */
    accum *grads;   /* full gradients of the block in backward */
    void *scratch;  /* parts of a reduce-scatter, in the type on the wire */
    real *sent;     /* gradients in the compute type, where they travel so; else NULL */
    i64 elements;
    Request *gather[BLOCK_CHUNKS], *reduce[BLOCK_CHUNKS];
} Slot;

/* One use of a block's weights in the walk. */
typedef struct {
    int block;
    Phase phase;
    int here; /* 1: its slot still has it, from a use a little before */
} Use;

typedef struct {
    const Config *config;
    const Mesh *mesh;
    Fabric *fabric;
    Device *dev;
    int (*splits)(BlockKind); /* the scheme's placement */
    Dtype grad_wire;          /* of gradients on the wire: DTYPE_ACCUM, or DTYPE_REAL (--grad-comm) */
    int blocks, chunks, tensors;
    Block *block;
    Chunk *chunk;
    Tensor *tensor;
    i64 flat;        /* elements of this rank's shards, padding included */
    real *param;     /* (flat) compute weights */
    accum *master;   /* (flat) what the optimizer updates; the same buffer where real is accum */
    accum *grad, *m, *v;
    Slot slot[SLOTS];
    const Use *order; /* of the walk under way */
    int uses, cursor, started;
    real *weight[T_ROLES]; /* of the block acquired last */
    accum *dweight[T_ROLES];
} Zero;

/* What one of S ranks owns of P elements. A CPU's ranks do not mind where a part begins; they
   compute in accum, GPUs never do. */
static inline i64 shard_elements(i64 P, i64 S) {
    return round_up(ceil_div(P, S), real_is_accum() ? 1 : 16 / real_size());
}

static inline int block_embedding(void) { return 0; }
static inline int block_attention(int layer) { return 1 + 2 * layer; }
static inline int block_mlp(int layer) { return 2 + 2 * layer; }
static inline int block_lm_head(const Config *c) { return 1 + 2 * (int)c->layers; }

static inline SlotKind slot_kind(BlockKind kind) {
    return kind == BLOCK_ATTENTION ? SLOT_ATTENTION : kind == BLOCK_MLP ? SLOT_MLP : SLOT_VOCABULARY;
}

/* Which ranks hold identical copies of a tensor. */
static inline ShareGroup share_group(const TensorSpec *spec, int (*splits)(BlockKind), const MeshShape *shape,
                                     i64 kv_heads) {
    if (shape->head == 1 || spec->split == SPLIT_NONE || !splits(spec->block)) return SHARE_WORLD;
    return spec->split == SPLIT_KV_ROWS && kv_heads < shape->head ? SHARE_KV : SHARE_SPLIT;
}

static inline const Comm *share_comm(const Mesh *m, ShareGroup share) {
    return share == SHARE_WORLD ? &m->world : share == SHARE_SPLIT ? &m->split : &m->kv;
}

static inline const Comm *chunk_comm(const Zero *z, const Chunk *c) { return share_comm(z->mesh, c->share); }

/* ---- layout ------------------------------------------------------------------------------------------------------ */

static inline int share_is_used(const TensorSpec *spec, const Zero *z, BlockKind kind, ShareGroup share) {
    return spec->block == kind && tensor_exists(spec, z->config) &&
           share_group(spec, z->splits, &z->mesh->shape, z->config->kv_heads) == share;
}

/* Lay out one block: tensors in table order within each share group, one chunk a group. `slot_base`: where the block's
   chunks begin in its slot. Returns the end in the slot. */
static inline i64 zero_layout_block(Zero *z, BlockKind kind, int layer, i64 slot_base) {
    int n;
    const TensorSpec *specs = tensor_specs(z->config->arch, &n);
    Block *b = &z->block[z->blocks++];
    b->kind = kind, b->layer = layer, b->borrowed = -1;
    b->first_tensor = z->tensors, b->first_chunk = z->chunks;
    for (int g = 0; g < SHARE_GROUPS; g++) {
        ShareGroup share = (ShareGroup)g;
        Chunk c;
        memset(&c, 0, sizeof c);
        c.share = share, c.slot_offset = slot_base, c.offset = z->flat;
        for (int role = 0; role < T_ROLES; role++)
            for (int i = 0; i < n; i++) {
                if ((int)specs[i].role != role || !share_is_used(&specs[i], z, kind, share)) continue;
                Tensor *t = &z->tensor[z->tensors++];
                t->spec = &specs[i], t->layer = layer, t->chunk = z->chunks, t->offset = c.elements;
                t->slice =
                    tensor_slice(&specs[i], z->config, share != SHARE_WORLD, z->mesh->head_rank, z->mesh->shape.head);
                c.elements += t->slice.rows * t->slice.cols;
                if (tensor_decays(&specs[i])) c.decayed = c.elements;
            }
        if (!c.elements) continue;
        i64 S = chunk_comm(z, &c)->size;
        c.shard = shard_elements(c.elements, S);
        z->flat = round_up(z->flat + c.shard, 64);
        if (S > 1) slot_base = round_up(slot_base + S * c.shard, 64);
        z->chunk[z->chunks++] = c;
    }
    b->tensors = z->tensors - b->first_tensor, b->chunks = z->chunks - b->first_chunk;
    Slot *slot = &z->slot[slot_kind(kind)];
    slot->elements = i64_max(slot->elements, slot_base);
    return slot_base;
}

/* Tables and memory of this rank's share of the parameters. `config`, `mesh`, `fabric`
   outlive it; tables: zero_free. */
static inline void zero_init(Zero *z, const Config *config, const Mesh *mesh, Fabric *fabric, Arena *arena,
                             int (*splits)(BlockKind), Dtype grad_wire) {
    memset(z, 0, sizeof *z);
    z->config = config, z->mesh = mesh, z->fabric = fabric, z->dev = fabric->dev, z->splits = splits;
    z->grad_wire = real_is_accum() ? DTYPE_ACCUM : grad_wire;
    size_t blocks = 2 + 2 * (size_t)config->layers;
    z->block = (Block *)host_alloc(blocks * sizeof(Block));
    z->chunk = (Chunk *)host_alloc(blocks * SHARE_GROUPS * sizeof(Chunk));
    z->tensor = (Tensor *)host_alloc(blocks * T_ROLES * sizeof(Tensor));
    i64 embedding_end = zero_layout_block(z, BLOCK_EMBEDDING, -1, 0);
    for (int l = 0; l < (int)config->layers; l++) {
        zero_layout_block(z, BLOCK_ATTENTION, l, 0);
        zero_layout_block(z, BLOCK_MLP, l, 0);
    }
    zero_layout_block(z, BLOCK_LM_HEAD, -1, config->tied ? embedding_end : 0);
    if (config->tied) z->block[block_lm_head(config)].borrowed = block_embedding();
    i64 flat = z->flat;
    z->param = (real *)arena_take(arena, MEM_PARAMETERS, flat * real_size());
    z->master = real_is_accum() ? (accum *)z->param : (accum *)arena_take(arena, MEM_OPTIMIZER, flat * accum_size());
    z->grad = (accum *)arena_take(arena, MEM_GRADIENTS, flat * accum_size());
    z->m = (accum *)arena_take(arena, MEM_OPTIMIZER, flat * accum_size());
    z->v = (accum *)arena_take(arena, MEM_OPTIMIZER, flat * accum_size());
    for (int s = 0; s < SLOTS; s++) {
        Slot *slot = &z->slot[s];
        if (!slot->elements) continue;
        slot->weights = (real *)arena_take(arena, MEM_GATHERED, slot->elements * real_size());
        slot->grads = (accum *)arena_take(arena, MEM_GRADIENTS, slot->elements * accum_size());
        slot->scratch = arena_take(arena, MEM_COMM, slot->elements * dtype_size(z->grad_wire));
        if (z->grad_wire == DTYPE_REAL) slot->sent = (real *)arena_take(arena, MEM_COMM, slot->elements * real_size());
    }
}

static inline void zero_free(Zero *z) {
    free(z->block);
    free(z->chunk);
    free(z->tensor);
}

/* ---- weights along the walk -------------------------------------------------------------------------------------- */

/* Begin a walk: `order` names every block in the order the walk will acquire it, and outlives the walk. */
static inline void zero_walk(Zero *z, const Use *order, int uses) {
    z->order = order, z->uses = uses, z->cursor = z->started = 0;
}

/* The i-th chunk that a block needs: its own, then the borrowed one. NULL past the end. */
static inline const Chunk *block_chunk(const Zero *z, const Block *b, int i) {
    if (i < b->chunks) return &z->chunk[b->first_chunk + i];
    if (b->borrowed >= 0 && i == b->chunks) return &z->chunk[z->block[b->borrowed].first_chunk];
    return NULL;
}

static inline void zero_gather(Zero *z, Use use) {
    const Block *b = &z->block[use.block];
    Slot *slot = &z->slot[slot_kind(b->kind)];
    const Chunk *c;
    /* its own, not that of the block under way */
    int layer = trace_layer(z->dev->trace, b->layer), under_way = z->dev->layer;
    z->dev->layer = b->layer;
    for (int i = 0; (c = block_chunk(z, b, i)) != NULL; i++)
        slot->gather[i] =
            comm_all_gather_start(z->fabric, chunk_comm(z, c), tag(b->kind, use.phase, WHAT_PARAMETER),
                                  slot->weights + c->slot_offset, z->param + c->offset, c->shard, DTYPE_REAL);
    trace_layer(z->dev->trace, layer);
    z->dev->layer = under_way;
}

static inline void zero_point_weights(Zero *z, const Block *b) {
    const Slot *slot = &z->slot[slot_kind(b->kind)];
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        const Chunk *c = &z->chunk[t->chunk];
        real *base = chunk_comm(z, c)->size == 1 ? z->param + c->offset : slot->weights + c->slot_offset;
        z->weight[t->spec->role] = base + t->offset;
    }
}

/* The weights of `block`, gathered, in z->weight[role] until the next acquire. The walk must keep its order. A block
   that was also the use before is still there and is not gathered twice. */
static inline void zero_acquire(Zero *z, int block) {
    int at = z->cursor++;
    if (at >= z->uses || z->order[at].block != block)
        FAIL(THIS_RANK, "the walk left its order at use %d (block %d)", at, block);
    const Block *b = &z->block[block];
    Slot *slot = &z->slot[slot_kind(b->kind)];
    part_begin(z->dev, b->kind, b->layer, z->order[at].phase);
    if (z->started <= at) {
        if (!z->order[at].here && (at == 0 || z->order[at - 1].block != block)) zero_gather(z, z->order[at]);
        z->started = at + 1;
    }
    for (int i = 0; i < BLOCK_CHUNKS; i++) {
        comm_wait(z->fabric, slot->gather[i]);
        slot->gather[i] = NULL;
    }
    memset(z->weight, 0, sizeof z->weight);
    zero_point_weights(z, b);
    if (b->borrowed >= 0) {
        zero_point_weights(z, &z->block[b->borrowed]);
        z->weight[T_LM_HEAD] = z->weight[T_WTE];
    }
}

/* Start the gather of the block after the one acquired last. Transfers keep the order in which they are asked for, so a
   block calls this once its own entering exchange is under way, which would otherwise stand behind weights that nobody
   needs yet. A block that does not call it is correct, too: the next acquire gathers, and waits. */
static inline void zero_prefetch(Zero *z) {
    if (z->cursor >= z->uses || z->started > z->cursor || !z->fabric->overlap) return;
    Use now = z->order[z->cursor - 1], next = z->order[z->cursor];
    if (next.here || slot_kind(z->block[next.block].kind) == slot_kind(z->block[now.block].kind)) return;
    zero_gather(z, next);
    z->started = z->cursor + 1;
}

/* ---- gradients --------------------------------------------------------------------------------------------------- */

static inline void slot_finish_reduce(Zero *z, Slot *slot) {
    for (int i = 0; i < BLOCK_CHUNKS; i++) {
        comm_wait(z->fabric, slot->reduce[i]);
        slot->reduce[i] = NULL;
    }
}

static inline void zero_point_grads(Zero *z, const Block *b) {
    const Slot *slot = &z->slot[slot_kind(b->kind)];
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        const Chunk *c = &z->chunk[t->chunk];
        accum *base = chunk_comm(z, c)->size == 1 ? z->grad + c->offset : slot->grads + c->slot_offset;
        z->dweight[t->spec->role] = base + t->offset;
    }
}

/* Point z->dweight[role] at the block's gradients, to be added to. They start at zero, except that a tied
   embedding finds what the head left. */
static inline void zero_grad_begin(Zero *z, int block) {
    const Block *b = &z->block[block];
    Slot *slot = &z->slot[slot_kind(b->kind)];
    slot_finish_reduce(z, slot);
    int continues = z->config->tied && block == block_embedding();
    const Chunk *c;
    for (int i = 0; !continues && (c = block_chunk(z, b, i)) != NULL; i++) {
        i64 S = chunk_comm(z, c)->size;
        if (S > 1) zero_fill(z->dev, slot->grads + c->slot_offset, S * c->shard * accum_size());
    }
    memset(z->dweight, 0, sizeof z->dweight);
    zero_point_grads(z, b);
    if (b->borrowed >= 0) {
        zero_point_grads(z, &z->block[b->borrowed]);
        z->dweight[T_LM_HEAD] = z->dweight[T_WTE];
    }
}

/* The block's gradients are complete on this rank: sum them over the share groups, into the shards. */
static inline void zero_grad_end(Zero *z, int block) {
    const Block *b = &z->block[block];
    Slot *slot = &z->slot[slot_kind(b->kind)];
    Tag t = tag(b->kind, PHASE_BACKWARD, WHAT_GRADIENT);
    for (int i = 0; i < b->chunks; i++) {
        const Chunk *c = &z->chunk[b->first_chunk + i];
        const Comm *share = chunk_comm(z, c);
        i64 at = c->slot_offset;
        if (z->grad_wire == DTYPE_ACCUM || share->size == 1) {
            slot->reduce[i] = comm_reduce_scatter_start(z->fabric, share, t, z->grad + c->offset, slot->grads + at,
                                                        (accum *)slot->scratch + at, c->shard, DTYPE_ACCUM, 1);
        } else {
            convert(z->dev, slot->sent + at, slot->grads + at, share->size * c->shard);
            slot->reduce[i] = comm_reduce_scatter_real_start(z->fabric, share, t, z->grad + c->offset, slot->sent + at,
                                                             (real *)slot->scratch + at, c->shard);
        }
    }
}

static inline void zero_grads_finish(Zero *z) {
    for (int s = 0; s < SLOTS; s++) slot_finish_reduce(z, &z->slot[s]);
}

/* AdamW on this rank's shards: matrices with decay, the rest without. */
static inline void zero_adamw(Zero *z, AdamW a) {
    AdamW plain = a;
    plain.weight_decay = 0;
    for (int i = 0; i < z->chunks; i++) {
        const Chunk *c = &z->chunk[i];
        i64 first = chunk_comm(z, c)->rank * c->shard;
        i64 decayed = i64_min(i64_max(c->decayed - first, 0), c->shard), o = c->offset, rest = o + decayed;
        if (decayed) adamw(z->dev, z->param + o, z->master + o, z->m + o, z->v + o, z->grad + o, decayed, a);
        if (decayed < c->shard)
            adamw(z->dev, z->param + rest, z->master + rest, z->m + rest, z->v + rest, z->grad + rest,
                  c->shard - decayed, plain);
    }
}

/* ---- logical tensors --------------------------------------------------------------------------------------------- */

/* n elements of a logical tensor from (row, col) on, along the row, that this rank owns at `at` in the flat buffers. */
typedef void (*RunVisit)(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at);

/* This rank's part of tensor `t`, contiguous in the flat buffers: where it begins, in *at,
   and its elements (0: none). */
static inline i64 tensor_range(const Zero *z, const Tensor *t, i64 *at) {
    const Chunk *c = &z->chunk[t->chunk];
    i64 begin = chunk_comm(z, c)->rank * c->shard; /* this rank's shard, in the gathered chunk */
    i64 lo = i64_max(begin, t->offset), hi = i64_min(begin + c->shard, t->offset + t->slice.rows * t->slice.cols);
    *at = c->offset + lo - begin;
    return i64_max(hi - lo, 0);
}

/* Which element of its share group's part of tensor `t` stands at `at` of the flat buffers. */
static inline i64 tensor_first(const Zero *z, const Tensor *t, i64 at) {
    const Chunk *c = &z->chunk[t->chunk];
    return at - c->offset + chunk_comm(z, c)->rank * c->shard - t->offset;
}

/* The runs of tensor `t` that n of this rank's elements make, from `at` of the flat buffers on. */
static inline void tensor_part(const Zero *z, const Tensor *t, i64 at, i64 n, RunVisit visit, void *context) {
    for (i64 first = tensor_first(z, t, at), left = n; left > 0;) {
        i64 row = first / t->slice.cols, col = first % t->slice.cols;
        i64 run = i64_min(left, t->slice.cols - col);
        visit(context, t, t->slice.row0 + row, t->slice.col0 + col, run, at);
        first += run, at += run, left -= run;
    }
}

/* Every run of tensor `t` that this rank owns. Over all ranks each element of a logical tensor comes up exactly once:
   the basis of initialisation, loading, saving and of comparing gradients, whatever the mesh. */
static inline void tensor_owned(const Zero *z, const Tensor *t, RunVisit visit, void *context) {
    i64 at, n = tensor_range(z, t, &at);
    tensor_part(z, t, at, n, visit, context);
}

/* ---- closed form ------------------------------------------------------------------------------------------------- */

/* Elements of a block that share group `share` holds together, from the model's sizes alone. */
static inline i64 share_elements(const Config *config, const MeshShape *shape, int (*splits)(BlockKind), BlockKind kind,
                                 ShareGroup share) {
    int n;
    const TensorSpec *specs = tensor_specs(config->arch, &n);
    i64 sum = 0;
    for (int i = 0; i < n; i++) {
        const TensorSpec *s = &specs[i];
        if (s->block != kind || !tensor_exists(s, config) || share_group(s, splits, shape, config->kv_heads) != share)
            continue;
        i64 all = tensor_size(s->rows, config) * tensor_size(s->cols, config);
        sum += share == SHARE_WORLD ? all : share == SHARE_SPLIT ? all / shape->head : all / config->kv_heads;
    }
    return sum;
}

/* What ZeRO-3 moves in a step of `micro_steps`: 3 (S-1) shards for each chunk of a layer (recompute
   repeats a block's forward while its weights are there for the backward anyway), AG + RS for embedding and head. */
static inline void zero_volume(Ledger *l, const Config *config, const Mesh *mesh, int (*splits)(BlockKind),
                               Dtype grad_wire, i64 micro_steps) {
    const BlockKind kinds[4] = {BLOCK_EMBEDDING, BLOCK_ATTENTION, BLOCK_MLP, BLOCK_LM_HEAD};
    for (int k = 0; k < 4; k++)
        for (int g = 0; g < SHARE_GROUPS; g++) {
            ShareGroup share = (ShareGroup)g;
            BlockKind kind = kinds[k];
            i64 P = share_elements(config, &mesh->shape, splits, kind, share), S = share_comm(mesh, share)->size;
            i64 layers = kind == BLOCK_ATTENTION || kind == BLOCK_MLP ? config->layers : 1;
            i64 sent = micro_steps * layers * (S - 1) * shard_elements(P, S);
            i64 weights = sent * real_size(), grads = sent * dtype_size(grad_wire);
            ledger_expect(l, COMM_ALL_GATHER, tag(kind, PHASE_FORWARD, WHAT_PARAMETER), weights);
            if (kind == BLOCK_ATTENTION || kind == BLOCK_MLP)
                ledger_expect(l, COMM_ALL_GATHER, tag(kind, PHASE_BACKWARD, WHAT_PARAMETER), weights);
            ledger_expect(l, COMM_REDUCE_SCATTER, tag(kind, PHASE_BACKWARD, WHAT_GRADIENT), grads);
            if (kind == BLOCK_EMBEDDING && config->tied)
                ledger_expect(l, COMM_ALL_GATHER, tag(BLOCK_LM_HEAD, PHASE_FORWARD, WHAT_PARAMETER), weights);
        }
}

#endif

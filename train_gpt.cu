/* train_gpt.cu - trains GPT-2 and Llama on long sequences under five sequence-parallel schemes.

   flags -> config -> mesh -> scheme -> arena, laid out once -> loader: this rank's tokens and their positions

   forward    embedding -> per layer: norm, scheme->attention_forward, norm, scheme->mlp_forward -> final norm, head and loss in chunks
   backward   the same in reverse; gradients are reduced to where they live as soon as their block is done
   step       global norm, AdamW on what this rank owns -> metrics, ledger

   One walk serves training, validation and the dry run: with dev.plan set, operations are counted and not computed, which sizes
   the arena and fills the ledger before anything is allocated. Everything a rank has hangs off Model; there are no globals. */
#include "core/log.h"
#include "core/data.h"
#include "core/checkpoint.h"
#include "core/selfcheck.h"
#include "core/timeline.h"

#include "tpsp.h"
#include "ulysses.h"
#include "ring.h"
#include "odysseus.h"

/* The schemes, in the order of --help. A sixth one is its header above and a row here. */
static const Scheme *const SCHEMES[] = {&SCHEME_TP, &SCHEME_TPSP, &SCHEME_ULYSSES, &SCHEME_RING, &SCHEME_ODYSSEUS};

static inline const Scheme *scheme_find(const char *name) {
    for (int i = 0; i < COUNT_OF(SCHEMES); i++)
        if (strcmp(SCHEMES[i]->name, name) == 0) return SCHEMES[i];
    return NULL;
}

/* ---- what to build: options of a model, checked ------------------------------------------------------------------------------- */

typedef struct {
    Config config;
    const Scheme *scheme;
    MeshShape shape;
    RingLayout layout;
    i64 L, B, batch; /* sequence length; sequences of a micro-batch and of a whole step */
    int recompute, overlap;
    const char *comm;
    Dtype grad_wire;
    DevicePlace place;
} ModelOptions;

static inline i64 micro_steps(const ModelOptions *o) { return o->batch / (o->shape.dp * o->B); }

/* Tokens must divide over ring and head axis; zigzag cuts each ring rank's share once more. */
static inline i64 sequence_unit(const ModelOptions *o) {
    i64 H = o->shape.head, halves = o->layout == RING_ZIGZAG && o->shape.ring > 1 ? 2 : 1;
    return o->shape.ring * (H % halves == 0 ? H : H * halves);
}

/* Why these options cannot run, with what nearest to them can: 1 and a reason, or 0. */
static int options_refuse(const ModelOptions *o, char *why, size_t size) {
    const Config *c = &o->config;
    if ((double)o->L * (double)o->B / (double)(o->shape.ring * o->shape.head) * (double)i64_max(c->dim, 2 * c->ffn) > 1e15) {
        snprintf(why, size, "--seq-len %lld x --micro-batch %lld: a rank would hold more than 1e15 numbers; lower one", (long long)o->L, (long long)o->B);
        return 1;
    }
    i64 unit = sequence_unit(o), group = o->shape.dp * o->B;
    char reason[512];
    if (o->scheme->refuses(c, &o->shape, reason, sizeof reason)) {
        snprintf(why, size, "--sp %s: %s", o->scheme->name, reason);
    } else if (o->L % unit != 0 && o->L > unit) {
        snprintf(why, size, "--seq-len %lld does not divide over ring %lld x head %lld; the nearest that do are %lld and %lld", (long long)o->L,
                 (long long)o->shape.ring, (long long)o->shape.head, (long long)(o->L / unit * unit), (long long)(round_up(o->L, unit)));
    } else if (o->L % unit != 0) {
        snprintf(why, size, "--seq-len %lld does not divide over ring %lld x head %lld; the shortest that does is %lld", (long long)o->L,
                 (long long)o->shape.ring, (long long)o->shape.head, (long long)unit);
    } else if (o->batch % group != 0) {
        i64 below = o->batch / group * group;
        int n = snprintf(why, size, "--batch %lld is not a multiple of dp %lld x micro-batch %lld; the nearest that are: ", (long long)o->batch,
                         (long long)o->shape.dp, (long long)o->B);
        if (below) n += snprintf(why + n, size - (size_t)n, "%lld and ", (long long)below);
        snprintf(why + n, size - (size_t)n, "%lld", (long long)below + group);
    } else if (device_refuses_heads(c->head_dim)) {
        snprintf(why, size, "heads of %lld (--dim / --heads): %s", (long long)c->head_dim, device_refuses_heads(c->head_dim));
    } else if (c->arch == ARCH_GPT2 && o->L > c->max_pos) {
        snprintf(why, size, "--seq-len %lld is longer than the %lld positions gpt2 has learned; lower it or raise --max-pos", (long long)o->L,
                 (long long)c->max_pos);
    } else {
        return 0;
    }
    return 1;
}

/* ---- the model: layout in the arena ---------------------------------------------------------------------------------------------- */

static inline NormKind norm_kind(const Model *m) { return m->config.arch == ARCH_LLAMA ? NORM_RMS : NORM_LAYER; }

/* Who attends what: tokens of the ring rank, of this rank, of its stream; heads. */
static void model_place(Model *m, const ModelOptions *o) {
    i64 R = o->shape.ring, H = o->shape.head;
    m->T_ring = m->L / R;
    m->T_own = m->T_ring / H;
    m->T_stream = m->scheme->replicated_stream ? m->T_ring : m->T_own;
    m->own_first = m->scheme->replicated_stream ? m->mesh.head_rank * m->T_own : 0;
    m->ring_map = token_map(m->layout, m->L, (int)R, m->mesh.ring_rank);
    m->own_map = token_map_slice(m->ring_map, m->mesh.head_rank * m->T_own, m->T_own);
    m->stream_map = m->scheme->replicated_stream ? m->ring_map : m->own_map;
    m->rope_map = m->scheme->rope_on_own ? m->own_map : m->ring_map;
    m->heads_l = m->config.heads / H;
    m->kv_heads_l = kv_heads_local(&m->config, H);
}

/* Buffers that a layer's attention and MLP keep for backward, except their inputs. */
static void model_keep_layer(Model *m, AttentionSaved *a, MlpSaved *p) {
    i64 rows = stream_rows(m), ring = ring_rows(m), HS = m->config.head_dim;
    MemCategory kept = MEM_ACTIVATIONS;
    a->q = take_real(m, kept, ring * m->heads_l * HS);
    a->kv = take_real(m, kept, ring * 2 * m->kv_heads_l * HS);
    a->out = take_real(m, kept, ring * m->heads_l * HS);
    a->lse = take_accum(m, kept, ring * m->heads_l);
    a->in.mean = take_accum(m, kept, rows), a->in.rstd = take_accum(m, kept, rows);
    if (m->scheme->attention_keep) m->scheme->attention_keep(m, a);
    p->in.mean = take_accum(m, kept, rows), p->in.rstd = take_accum(m, kept, rows);
    i64 head = m->scheme->splits(BLOCK_MLP) ? m->mesh.shape.head : 1; /* split columns of all tokens, or all columns of own tokens */
    i64 mlp_rows = head > 1 ? ring : own_rows(m);
    p->pre = take_real(m, kept, mlp_rows * mlp_gates(&m->config) * m->config.ffn / head);
}

/* From a row of logits to the next: GPT-2 has 50257 words, and each row shall begin at a whole cache line. */
static inline i64 head_step(const Model *m) { return round_up(m->config.vocab, 64); }

/* Rows of logits held at once: some 64 MB of them, a quarter of the own ones; every chunk reads all of the head's weights, so
   not below 128 (half of the own ones) for the quarter's sake. Every chunk also adds to the weights' gradient in accum: r rows give 2r FLOP
   for each 8 bytes of it. A GPU, which is where real is bf16, does some 300 FLOP while a byte comes and another goes: it wants
   thousands of rows. */
static i64 model_head_rows(const Model *m) {
    i64 budget = ((i64)(real_is_accum() ? 64 : 256) << 20) / (head_step(m) * real_size()), own = own_rows(m);
    i64 share = i64_max(ceil_div(own, 4), i64_min(ceil_div(own, 2), 128));
    return i64_max(1, i64_min(i64_max(budget, 64), share));
}

static void model_layout(Model *m) {
    i64 rows = stream_rows(m), C = m->config.dim, L = m->config.layers;
    AttentionShape attended = attention_shape(m);
    m->attention = (AttentionSaved *)host_alloc(sizeof(AttentionSaved) * (size_t)L);
    m->mlp = (MlpSaved *)host_alloc(sizeof(MlpSaved) * (size_t)L);
    for (i64 l = 0; l < L; l++) {
        if (l > 0 && m->recompute) m->attention[l] = m->attention[0], m->mlp[l] = m->mlp[0];
        else model_keep_layer(m, &m->attention[l], &m->mlp[l]);
        m->attention[l].in.x = take_real(m, MEM_ACTIVATIONS, rows * C);
        m->mlp[l].in.x = take_real(m, MEM_ACTIVATIONS, rows * C);
    }
    m->final_x = take_real(m, MEM_ACTIVATIONS, own_rows(m) * C);
    m->final_mean = take_accum(m, MEM_ACTIVATIONS, own_rows(m));
    m->final_rstd = take_accum(m, MEM_ACTIVATIONS, own_rows(m));
    m->tokens = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, rows * 4);
    m->targets = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, own_rows(m) * 4);
    m->sums = (double *)arena_take(&m->arena, MEM_WORKSPACE, 2 * sizeof(double));
    i64 scratch = device_scratch_bytes(i64_max(rows, ring_rows(m)), i64_max(C, mlp_gates(&m->config) * m->config.ffn), m->config.vocab, &attended);
    if (scratch) device_scratch(&m->dev, arena_take(&m->arena, MEM_WORKSPACE, scratch), scratch);
    m->head_rows = model_head_rows(m);
    if (m->config.arch == ARCH_LLAMA) m->rope = take_accum(m, MEM_WORKSPACE, m->rope_map.count * m->config.head_dim);
}

/* The blocks in the order that a training walk (or, its first half, a validation walk) uses them. */
static Use *model_schedule(const Config *c, int *uses) {
    Use *schedule = (Use *)host_alloc(sizeof(Use) * (size_t)(2 + 4 * c->layers));
    int n = 0;
    for (int b = 0; b <= block_head(c); b++) schedule[n].block = b, schedule[n++].phase = PHASE_FORWARD;
    for (int b = block_head(c) - 1; b > block_embedding(); b--) schedule[n].block = b, schedule[n++].phase = PHASE_BACKWARD;
    *uses = n;
    return schedule;
}

/* Lay out a model for `rank` of `base` (collective), or of an imagined world. `m` must not move afterwards; model_free. */
static void model_init(Model *m, const ModelOptions *o, Wire base, int imagined, int rank) {
    memset(m, 0, sizeof *m);
    m->config = o->config, m->scheme = o->scheme, m->context = &CONTEXT_RING, m->layout = o->layout;
    m->L = o->L, m->B = o->B, m->recompute = o->recompute;
    device_init(&m->dev, &o->place, imagined);
    fabric_init(&m->fabric, &m->dev, &m->ledger, (int)o->shape.world, o->overlap, o->comm);
    mesh_init(&m->mesh, o->shape, base, imagined, rank, o->config.kv_heads);
    if (!imagined) mesh_link(&m->mesh, &m->fabric);
    arena_reserve(&m->arena, &m->dev);
    zero_init(&m->zero, &m->config, &m->mesh, &m->fabric, &m->arena, m->scheme->splits, o->grad_wire);
    m->schedule = model_schedule(&m->config, &m->uses);
    model_place(m, o);
    model_layout(m);
}

/* After arena_commit: the tables in device memory, and tokens on the host, which a plan does without. */
static void model_tables(Model *m) {
    m->host_tokens = (int32_t *)host_alloc((size_t)(stream_rows(m) + own_rows(m)) * sizeof(int32_t));
    if (!m->rope) return;
    double *frequencies = (double *)host_alloc(sizeof(double) * (size_t)m->config.head_dim);
    rope_frequencies(&m->config, frequencies);
    rope_table(&m->dev, m->rope, m->rope_map, frequencies, m->config.head_dim);
    free(frequencies);
}

static void model_free(Model *m) {
    arena_free(&m->arena);
    device_free(&m->dev);
    zero_free(&m->zero);
    mesh_free(&m->mesh);
    fabric_free(&m->fabric);
    free(m->attention);
    free(m->mlp);
    free(m->schedule);
    free(m->host_tokens);
}

/* The closed form of a step's traffic: activations by scheme and context, parameters by ZeRO, the head's slices, control. */
static void model_expect(Model *m, i64 micro) {
    const Mesh *mesh = &m->mesh;
    m->scheme->volume(&m->ledger, &m->config, mesh, m->L, m->B, micro * m->config.layers);
    m->context->volume(&m->ledger, &m->config, mesh, m->L, m->B, micro * m->config.layers);
    if (m->recompute) ledger_expect_repeat(&m->ledger);
    zero_volume(&m->ledger, &m->config, mesh, m->scheme->splits, m->zero.grad_wire, micro);
    if (m->scheme->replicated_stream)
        ledger_expect(&m->ledger, COMM_ALL_GATHER, tag(BLOCK_HEAD, PHASE_BACKWARD, WHAT_ACTIVATION),
                      micro * (mesh->shape.head - 1) * volume_own(mesh, m->L) * m->B * m->config.dim * real_size());
    ledger_expect(&m->ledger, COMM_ALL_REDUCE, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), control_bytes(&mesh->world, 1));
    ledger_expect(&m->ledger, COMM_ALL_REDUCE, tag(BLOCK_OTHER, PHASE_OPTIMIZER, WHAT_CONTROL), control_bytes(&mesh->world, 2));
}

/* ---- the layer walk --------------------------------------------------------------------------------------------------------------- */

static BlockSaved *block_saved(Model *m, BlockKind kind, int l) { return kind == BLOCK_ATTENTION ? &m->attention[l].in : &m->mlp[l].in; }

/* One block forward: x = a + delta (kept), out = block(norm(x)). delta may be out; NULL where x is there already. */
static void block_forward(Model *m, BlockKind kind, int l, const real *a, const real *delta, real *out) {
    BlockSaved *s = block_saved(m, kind, l);
    real **w = m->zero.weight;
    ArenaMark mark = arena_mark(&m->arena);
    real *xn = take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim);
    norm_forward(&m->dev, norm_kind(m), xn, s->x, s->mean, s->rstd, a, delta, w[T_NORM], w[T_NORM_BIAS], stream_rows(m), m->config.dim, m->config.norm_eps);
    if (kind == BLOCK_ATTENTION) m->scheme->attention_forward(m, &m->attention[l], out, xn);
    else m->scheme->mlp_forward(m, &m->mlp[l], out, xn);
    arena_release(&m->arena, mark);
}

/* One block backward: dx is the gradient of the stream after it, and becomes that before it. */
static void block_backward(Model *m, BlockKind kind, int l, real *dx) {
    BlockSaved *s = block_saved(m, kind, l);
    real **w = m->zero.weight;
    accum **g = m->zero.dweight;
    ArenaMark mark = arena_mark(&m->arena);
    i64 n = stream_rows(m) * m->config.dim;
    real *xn = take_real(m, MEM_WORKSPACE, n), *dxn = take_real(m, MEM_WORKSPACE, n);
    if (m->recompute) block_forward(m, kind, l, s->x, NULL, dxn);
    norm_recompute(&m->dev, norm_kind(m), xn, s->mean, s->rstd, s->x, w[T_NORM], w[T_NORM_BIAS], stream_rows(m), m->config.dim);
    if (kind == BLOCK_ATTENTION) m->scheme->attention_backward(m, &m->attention[l], dxn, dx, xn);
    else m->scheme->mlp_backward(m, &m->mlp[l], dxn, dx, xn);
    norm_backward(&m->dev, norm_kind(m), dx, g[T_NORM], g[T_NORM_BIAS], dxn, s->mean, s->rstd, s->x, w[T_NORM], stream_rows(m), m->config.dim,
                  m->own_first * m->B, own_rows(m));
    arena_release(&m->arena, mark);
}

/* Logits, loss and their gradient in chunks of rows; xn (own rows, C) is the normed stream. `scale` 0: loss only; else xn becomes
   its own gradient and the head's weights get theirs. */
static void head_chunks(Model *m, real *xn, accum scale) {
    Device *dev = &m->dev;
    i64 C = m->config.dim, V = m->config.vocab, step = head_step(m);
    ArenaMark mark = arena_mark(&m->arena);
    real *logits = take_real(m, MEM_LOGITS, m->head_rows * step);
    for (i64 row = 0; row < own_rows(m); row += m->head_rows) {
        i64 rows = i64_min(m->head_rows, own_rows(m) - row);
        real *x = xn + row * C;
        part_begin(dev, BLOCK_HEAD, -1, PHASE_FORWARD);
        linear_forward_apart(dev, logits, step, x, m->zero.weight[T_LM_HEAD], NULL, rows, C, V);
        classifier(dev, m->sums, logits, step, m->targets + row, scale, rows, V, scale != 0);
        if (scale == 0) continue;
        part_begin(dev, BLOCK_HEAD, -1, PHASE_BACKWARD);
        linear_backward_weight_apart(dev, m->zero.dweight[T_LM_HEAD], x, logits, step, rows, C, V);
        linear_backward_input_apart(dev, x, logits, step, m->zero.weight[T_LM_HEAD], rows, C, V, 0);
    }
    arena_release(&m->arena, mark);
}

/* Final norm, head and loss on the own tokens: adds to the loss. With dx (stream), also backward: dx = the stream's gradient. */
static void head_walk(Model *m, const real *a, const real *delta, real *dx, accum scale) {
    real **w = m->zero.weight;
    accum **g = m->zero.dweight;
    i64 rows = own_rows(m), C = m->config.dim, own = m->own_first * m->B * C;
    ArenaMark mark = arena_mark(&m->arena);
    real *xn = take_real(m, MEM_WORKSPACE, rows * C);
    norm_forward(&m->dev, norm_kind(m), xn, m->final_x, m->final_mean, m->final_rstd, a + own, delta + own, w[T_NORM], w[T_NORM_BIAS], rows, C,
                 m->config.norm_eps);
    head_chunks(m, xn, dx ? scale : 0);
    if (dx) {
        zero_fill(&m->dev, dx + own, rows * C * real_size());
        norm_backward(&m->dev, norm_kind(m), dx + own, g[T_NORM], g[T_NORM_BIAS], xn, m->final_mean, m->final_rstd, m->final_x, w[T_NORM], rows, C, 0, rows);
        if (m->scheme->replicated_stream) /* every rank continues with all tokens */
            comm_all_gather(&m->fabric, &m->mesh.head, tag(BLOCK_HEAD, PHASE_BACKWARD, WHAT_ACTIVATION), dx, dx + own, rows * C, DTYPE_REAL);
    }
    arena_release(&m->arena, mark);
}

/* The forward walk over m->tokens: returns the last block's input through *a, its output in delta (stream). */
static void layers_forward(Model *m, const real **a, real *delta) {
    Zero *z = &m->zero;
    m->phase = PHASE_FORWARD;
    zero_acquire(z, block_embedding());
    zero_prefetch(z);
    const real *x = m->attention[0].in.x, *d = NULL;
    embedding_forward(&m->dev, m->attention[0].in.x, m->tokens, m->stream_map, z->weight[T_WTE], z->weight[T_WPE], m->B, m->config.dim);
    for (int l = 0; l < (int)m->config.layers; l++) {
        zero_acquire(z, block_attention(l));
        block_forward(m, BLOCK_ATTENTION, l, x, d, delta);
        x = m->attention[l].in.x, d = delta;
        zero_acquire(z, block_mlp(l));
        block_forward(m, BLOCK_MLP, l, x, d, delta);
        x = m->mlp[l].in.x;
    }
    *a = x;
}

/* The backward walk: dx (stream) is the gradient after the last layer. */
static void layers_backward(Model *m, real *dx) {
    Zero *z = &m->zero;
    m->phase = PHASE_BACKWARD;
    for (int l = (int)m->config.layers - 1; l >= 0; l--) {
        zero_acquire(z, block_mlp(l));
        zero_grad_begin(z, block_mlp(l));
        block_backward(m, BLOCK_MLP, l, dx);
        zero_grad_end(z, block_mlp(l));
        zero_acquire(z, block_attention(l));
        zero_grad_begin(z, block_attention(l));
        block_backward(m, BLOCK_ATTENTION, l, dx);
        zero_grad_end(z, block_attention(l));
    }
    i64 own = m->own_first * m->B;
    part_begin(&m->dev, BLOCK_EMBEDDING, -1, PHASE_BACKWARD); /* its weights are not needed */
    zero_grad_begin(z, block_embedding());
    embedding_backward(&m->dev, z->dweight[T_WTE], z->dweight[T_WPE], dx + own * m->config.dim, m->tokens + own, m->own_map, m->B, m->config.dim,
                       m->config.vocab);
    zero_grad_end(z, block_embedding());
}

/* One micro-batch in m->tokens, m->targets. Adds to the loss; scale = 1 / targets of the whole step: gradients are added, already
   reduced, to this rank's shards. scale 0: loss only. */
static void model_walk(Model *m, accum scale) {
    Zero *z = &m->zero;
    int train = scale != 0, head = block_head(&m->config);
    ArenaMark mark = arena_mark(&m->arena);
    real *delta = take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim);
    real *dx = train ? take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim) : NULL;
    const real *a;
    zero_walk(z, m->schedule, train ? m->uses : head + 1);
    layers_forward(m, &a, delta);
    zero_acquire(z, head);
    zero_prefetch(z);
    if (train) zero_grad_begin(z, head);
    head_walk(m, a, delta, dx, scale);
    if (train) {
        zero_grad_end(z, head);
        layers_backward(m, dx);
    }
    arena_release(&m->arena, mark);
}

/* ---- training ------------------------------------------------------------------------------------------------------------------------ */

/* A model with its data and settings. */
typedef struct {
    Model model;
    ModelOptions options;
    const Settings *settings;
    Dataset train, val;
    RunLog log;
    Trace trace;
    DevicePlace place;
    i64 parameters;
    double peak;     /* FLOP/s of one rank; 0: not known (any more) */
    int peak_again;  /* it was measured a second time */
    double eval_seconds;
} Trainer;

/* Read micro-batch `micro` of the batch that starts at sequence `first` of the list: m->tokens, m->targets. Targets equal to
   --ignore-token become TOKEN_IGNORED, and so does everything past `end` (a last, partial validation batch; else end < 0).
   Returns how many of this rank's targets count. */
static i64 load_micro_batch(Trainer *t, Dataset *d, i64 first, i64 micro, i64 end) {
    Model *m = &t->model;
    i64 group = (micro * m->mesh.shape.dp + m->mesh.dp_rank) * m->B, counted = 0;
    int32_t *tokens = m->host_tokens, *targets = tokens + stream_rows(m);
    for (i64 b = 0; b < m->B; b++) {
        i64 sequence = first + group + b;
        int past = end >= 0 && sequence >= end;
        sequence %= d->sequences;
        dataset_column(d, sequence, &m->stream_map, 0, tokens, b, m->B);
        dataset_column(d, sequence, &m->own_map, 1, targets, b, m->B);
        for (i64 i = 0; i < m->T_own; i++) {
            int32_t *target = &targets[i * m->B + b];
            if (past || *target == t->settings->ignore_token) *target = TOKEN_IGNORED;
            else counted++;
        }
    }
    copy_in(&m->dev, m->tokens, tokens, stream_rows(m) * (i64)sizeof(int32_t));
    copy_in(&m->dev, m->targets, targets, own_rows(m) * (i64)sizeof(int32_t));
    return counted;
}

/* Targets that count in the whole step, over all ranks and micro-batches. */
static double count_targets(Trainer *t, i64 first) {
    Model *m = &t->model;
    double counted = (double)(own_rows(m) * micro_steps(&t->options));
    if (t->settings->ignore_token >= 0 && device_is_real(&m->dev)) {
        counted = 0;
        for (i64 micro = 0; micro < micro_steps(&t->options); micro++) counted += (double)load_micro_batch(t, &t->train, first, micro, -1);
    }
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), &counted, 1);
    return counted;
}

/* Linear warmup to lr over `warmup` steps, then half a cosine down to min_lr at `steps`; step from 0. */
static double learning_rate(const Settings *s, i64 step) {
    if (step < s->warmup) return s->lr * (double)(step + 1) / (double)s->warmup;
    double progress = s->steps > s->warmup ? (double)(step - s->warmup) / (double)(s->steps - s->warmup) : 1;
    return s->min_lr + 0.5 * (s->lr - s->min_lr) * (1 + cos(3.14159265358979323846 * progress));
}

/* Without data, micro-steps are alike from the second on: walk three (a trace wants to see all), count the rest as the third. */
static void imagine_micro_steps(Model *m, accum scale, i64 micro) {
    Ledger ledger = m->ledger;
    Device dev = m->dev;
    i64 walked = m->dev.trace ? micro : i64_min(micro, 3);
    for (i64 i = 0; i < walked; i++) {
        ledger = m->ledger, dev = m->dev;
        part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_FORWARD);
        model_walk(m, scale);
    }
    if (walked == micro) return;
    ledger_repeat(&m->ledger, &ledger, micro - walked);
    device_repeat(&m->dev, &dev, micro - walked);
}

/* Forward and backward of the whole batch of `step`: the gradient's shards, and through *loss and *norm the mean loss over the
   targets of the step (NaN where none counts) and the global gradient norm. Returns how many count. */
static double step_gradients(Trainer *t, i64 step, double *loss, double *norm) {
    Model *m = &t->model;
    Zero *z = &m->zero;
    i64 first = step * t->options.batch;
    part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_FORWARD);
    double counted = count_targets(t, first);
    accum scale = (accum)(1.0 / (counted > 0 ? counted : 1));
    zero_fill(&m->dev, z->grad, z->flat * accum_size());
    zero_fill(&m->dev, m->sums, 2 * sizeof(double));
    if (m->dev.imagined) {
        imagine_micro_steps(m, scale, micro_steps(&t->options));
    } else {
        for (i64 micro = 0; micro < micro_steps(&t->options); micro++) {
            part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_FORWARD);
            if (!m->dev.plan) load_micro_batch(t, &t->train, first, micro, -1);
            model_walk(m, scale);
        }
    }
    part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_OPTIMIZER);
    zero_grads_finish(z);
    double values[2] = {0, 0}; /* sum of losses, sum of squared gradients */
    sum_squares(&m->dev, m->sums + 1, z->grad, z->flat);
    copy_out(&m->dev, values, m->sums, sizeof values);
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_OPTIMIZER, WHAT_CONTROL), values, 2);
    *loss = counted > 0 ? values[0] / counted : NAN; /* nothing to learn is no perfect loss */
    *norm = sqrt(values[1]);
    return counted;
}

/* Where targets are ignored: at least one of the steps must have something to learn. Nearly always the first has. Collective. */
static void check_targets(Trainer *t) {
    const Settings *s = t->settings;
    if (s->ignore_token < 0) return;
    i64 steps = i64_min(s->steps, t->train.sequences); /* no more different steps than sequences */
    for (i64 step = 0; step < steps; step++)
        if (count_targets(t, step * t->options.batch) > 0) return;
    FAIL(EVERYONE, "--ignore-token %lld: every target of --train %s is ignored, so there is nothing to learn", (long long)s->ignore_token, s->train);
}

/* AdamW with clipping on this rank's shards. */
static void step_update(Trainer *t, i64 step, double norm) {
    const Settings *s = t->settings;
    double clip = s->grad_clip > 0 && norm > s->grad_clip ? s->grad_clip / norm : 1;
    AdamW a = {learning_rate(s, step), s->beta1, s->beta2, s->eps, s->weight_decay, clip, step + 1};
    zero_adamw(&t->model.zero, a);
}

/* Batches of a validation: all, or the first --eval-batches. */
static i64 validation_batches(const Trainer *t) {
    i64 all = ceil_div(t->val.sequences, t->options.batch);
    return t->settings->eval_batches > 0 ? i64_min(all, t->settings->eval_batches) : all;
}

/* Mean loss over the targets of these batches; NaN, and a note, where none counts. */
static double validate(Trainer *t) {
    Model *m = &t->model;
    i64 batch = t->options.batch, batches = validation_batches(t);
    double values[2] = {0, 0};
    zero_fill(&m->dev, m->sums, sizeof(double));
    for (i64 i = 0; i < batches; i++)
        for (i64 micro = 0; micro < micro_steps(&t->options); micro++) {
            values[1] += (double)load_micro_batch(t, &t->val, i * batch, micro, t->val.sequences);
            model_walk(m, 0);
        }
    copy_out(&m->dev, values, m->sums, sizeof(double));
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), values, 2);
    if (values[1] == 0 && m->mesh.rank == 0) {
        printf("note     no target of --val counts (--ignore-token %lld): no validation loss\n", (long long)t->settings->ignore_token);
        fflush(stdout);
    }
    return values[1] > 0 ? values[0] / values[1] : NAN;
}

/* Walk one step in plan mode: the ledger is filled, the arena's peak known, nothing computed. */
static void trainer_plan(Trainer *t) {
    double loss, norm;
    t->model.dev.plan = 1;
    schedule_begin(&t->model.fabric, SCHEDULE_RECORD);
    step_gradients(t, 0, &loss, &norm);
    step_update(t, 0, 1);
    schedule_begin(&t->model.fabric, SCHEDULE_IGNORE);
    t->model.dev.plan = 0;
    model_expect(&t->model, micro_steps(&t->options));
}

/* ---- does it fit? --------------------------------------------------------------------------------------------------------------------- */

/* Bytes of a rank's arena under these options: the plan of one micro-step, of which the others are repetitions. Nothing is allocated. */
static i64 options_bytes(const ModelOptions *o) {
    Settings settings;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    memset(&settings, 0, sizeof settings);
    t->settings = &settings, t->options = *o;
    t->options.batch = o->shape.dp * o->B;
    model_init(&t->model, &t->options, wire_none(), 1, 0);
    trainer_plan(t);
    i64 bytes = arena_bytes(&t->model.arena);
    model_free(&t->model);
    free(t);
    return bytes;
}

/* Can these options run with sequences of L tokens, B at once, in `bytes` a rank? */
static int options_fit(ModelOptions o, i64 L, i64 B, i64 bytes) {
    char why[1024];
    o.L = L, o.B = B;
    return !options_refuse(&o, why, sizeof why) && options_bytes(&o) <= bytes;
}

/* The longest --seq-len whose arena fits into `bytes` a rank, the other options as they are; 0: not even the shortest fits. */
static i64 longest_sequence(const ModelOptions *o, i64 bytes) {
    i64 unit = sequence_unit(o), fits = 0, fails = 1; /* in units */
    while (options_fit(*o, unit * fails, o->B, bytes)) fits = fails, fails *= 2;
    while (fails - fits > 1) {
        i64 middle = fits + (fails - fits) / 2;
        if (options_fit(*o, unit * middle, o->B, bytes)) fits = middle;
        else fails = middle;
    }
    return fits * unit;
}

/* The same for --micro-batch, which must divide the sequences of a data-parallel group. */
static i64 largest_micro_batch(const ModelOptions *o, i64 bytes) {
    i64 group = o->batch / o->shape.dp, fits = 0;
    for (i64 B = 1; B <= group; B++) {
        if (group % B != 0) continue;
        if (!options_fit(*o, o->L, B, bytes)) break;
        fits = B;
    }
    return fits;
}

/* What would fit into `bytes` a rank instead of `o`. */
static void memory_advice(const ModelOptions *o, i64 bytes, char *out, size_t size) {
    ModelOptions one = *o, again = *o;
    one.B = 1, again.recompute = 1;
    i64 L = longest_sequence(o, bytes), B = largest_micro_batch(o, bytes);
    i64 L_one = L || B ? 0 : longest_sequence(&one, bytes), L_again = L || B || L_one ? 0 : longest_sequence(&again, bytes);
    int n = 0;
    if (L && B) n = snprintf(out, size, "the largest that fit: --seq-len %lld, or --micro-batch %lld", (long long)L, (long long)B);
    else if (L) n = snprintf(out, size, "the largest --seq-len that fits: %lld", (long long)L);
    else if (B) n = snprintf(out, size, "the largest --micro-batch that fits: %lld", (long long)B);
    else if (L_one) n = snprintf(out, size, "with --micro-batch 1, the largest --seq-len that fits: %lld", (long long)L_one);
    else if (L_again) n = snprintf(out, size, "no --seq-len fits; with --recompute full, up to %lld", (long long)L_again);
    else n = snprintf(out, size, "no --seq-len fits with this model on this mesh");
    if (!o->recompute && !L_again && options_fit(again, o->L, o->B, bytes)) n += snprintf(out + n, size - (size_t)n, "; as it is, with --recompute full");
    snprintf(out + n, size - (size_t)n, "; or use more ranks");
}

/* Before anything is allocated: every rank learns whether all of them have the memory. If not, rank 0 says what would fit. */
static void check_memory(Trainer *t, Wire world) {
    const Model *m = &t->model;
    int ranks = wire_size(world), poorest = 0;
    i64 available = device_memory_available(), *share = (i64 *)host_alloc(sizeof(i64) * (size_t)ranks);
    i64 need = arena_bytes(&m->arena), mine = available ? i64_max(available / t->place.sharing - DEVICE_RESERVE, 0) : ARENA_MOST; /* 0: not known */
    wire_share(world, share, &mine, sizeof mine);
    for (int r = 1; r < ranks; r++)
        if (share[r] < share[poorest]) poorest = r;
    i64 least = share[poorest];
    free(share);
    if (need <= least) return;
    if (m->mesh.rank != 0) wire_barrier(world); /* rank 0 never comes: it ends all */
    char advice[512];
    arena_print(stderr, &m->arena);
    memory_advice(&t->options, least, advice, sizeof advice);
    FAIL(EVERYONE, "out of memory: a rank needs %.1f MB, its share of a " MEMORY_OWNER " is %.1f MB (rank %d); %s", need / 1e6, least / 1e6, poorest, advice);
}

/* ---- measures and checks of a run ------------------------------------------------------------------------------------------------------ */

/* FLOP per token: 6 per parameter that multiplies (tables that are only looked up do not: positions, an untied token embedding), and
   attention's 12 layers d L, of which the causal mask leaves half. */
static double flop_per_token(const Trainer *t, int causal) {
    const Config *c = &t->options.config;
    i64 looked_up = (c->arch == ARCH_GPT2 ? c->max_pos * c->dim : 0) + (c->tied ? 0 : c->vocab * c->dim);
    return 6.0 * (double)(t->parameters - looked_up) + (causal ? 6.0 : 12.0) * (double)c->layers * (double)c->dim * (double)t->options.L;
}

/* Tokens and targets of the first micro-batch, as the ranks hold them together. */
static void selfcheck_labels(Trainer *t) {
    Model *m = &t->model;
    uint32_t mine[2] = {0, 0};
    int32_t *tokens = (int32_t *)host_alloc((size_t)own_rows(m) * sizeof(int32_t)), *targets = m->host_tokens + stream_rows(m);
    load_micro_batch(t, &t->train, 0, 0, -1);
    for (i64 b = 0; b < m->B; b++) {
        i64 sequence = (m->mesh.dp_rank * m->B + b) % t->train.sequences;
        dataset_column(&t->train, sequence, &m->own_map, 0, tokens, b, m->B);
        for (i64 i = 0; i < m->T_own; i++) {
            i64 p = token_position(&m->own_map, i), token = tokens[i * m->B + b];
            if (token == t->settings->ignore_token) token = TOKEN_IGNORED;
            if (p > 0) mine[0] += label_hash(m->mesh.dp_rank * m->B + b, p, token);
            if (p + 1 < m->L) mine[1] += label_hash(m->mesh.dp_rank * m->B + b, p + 1, targets[i * m->B + b]);
        }
    }
    free(tokens);
    double sums[2] = {(double)mine[0], (double)mine[1]};
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), sums, 2);
    if (fmod(sums[0] - sums[1], 0x1p32) != 0) FAIL(EVERYONE, "self-check: the targets are not the next tokens of the sequence; they were shifted after it was split");
}

/* Forward over the probe's tokens, that at `position` of sequence 0 raised by `change`. */
static void probe_walk(Model *m, int loud, i64 position, i64 change) {
    for (i64 i = 0; i < m->T_stream; i++)
        for (i64 b = 0, p = token_position(&m->stream_map, i); b < m->B; b++) {
            i64 token = probe_token(&m->config, loud, b, p) + (b == 0 && p == position ? change : 0);
            m->host_tokens[i * m->B + b] = (int32_t)(token % m->config.vocab);
        }
    copy_in(&m->dev, m->tokens, m->host_tokens, stream_rows(m) * (i64)sizeof(int32_t));
    model_walk(m, 0);
}

/* One token, and nothing else: who hears it? */
static void probe_reach(Model *m, i64 position) {
    probe_walk(m, 0, position, 1);
    for (int i = 0; i < PROBE_PLACES; i++) {
        ProbePlace place = probe_place(m, i);
        uint64_t *heard = probe_look(m, &place);
        probe_reached(m, &place, position, probe_moved(m, &place, position, NULL, heard));
        free(heard);
    }
}

/* One among many: do the earlier ones, and other sequences, keep their bits? */
static void probe_leak(Model *m, i64 position) {
    ProbePlace place = probe_place(m, PROBE_LAST);
    probe_walk(m, 1, position, 0);
    uint64_t *before = probe_look(m, &place);
    probe_walk(m, 1, position, 1);
    uint64_t *after = probe_look(m, &place);
    probe_moved(m, &place, position, before, after);
    free(before);
    free(after);
}

/* See selfcheck.h: does a token reach exactly whom it may? The model's weights stay where they are. */
static void selfcheck_probe(Model *m) {
    Zero *z = &m->zero;
    real *param = z->param;
    double eps = m->config.norm_eps;
    i64 early = m->L / 8, late = m->L - 1 - m->L / 4; /* one that nearly all see, one that few do */
    z->param = (real *)z->grad;
    m->config.norm_eps = 1e-5;
    probe_weights(z, z->param);
    probe_reach(m, early);
    probe_reach(m, late);
    probe_leak(m, late);
    z->param = param;
    m->config.norm_eps = eps;
}

/* Seconds that the probe will take, about: four forward passes of a micro-batch at a fifth of the peak. The same on all ranks. */
static double selfcheck_seconds(Trainer *t) {
    Model *m = &t->model;
    double tokens = (double)(t->options.shape.dp * m->B * m->L), peaks = t->peak;
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), &peaks, 1);
    return 4 * tokens * flop_per_token(t, 1) / 3 / (0.2 * peaks);
}

/* --selfcheck: see selfcheck.h. Every rank decides the same. */
static void selfcheck(Trainer *t) {
    Model *m = &t->model;
    const char *mode = t->settings->selfcheck;
    int automatic = strcmp(mode, "auto") == 0;
    if (strcmp(mode, "off") == 0 || (automatic && m->mesh.shape.world == 1)) return;
    selfcheck_schedule(&m->fabric, m->mesh.world.wire);
    selfcheck_labels(t);
    double seconds = selfcheck_seconds(t), begin = seconds_now();
    if (automatic && seconds >= 1) {
        if (m->mesh.rank == 0) printf("check    ranks agree on the schedule and the labels; the probe would take about %.0f s: --selfcheck on\n", seconds);
        return;
    }
    int deaf = probe_is_deaf(&m->config);
    if (!deaf) selfcheck_probe(m);
    if (m->mesh.rank != 0) return;
    if (!deaf) printf("check    ranks agree on the schedule and the labels; changed tokens move what may see them, nothing else (%.2f s)\n", seconds_now() - begin);
    else printf("check    ranks agree on the schedule and the labels; this model cannot tell one token from another, so the probe says nothing\n");
    fflush(stdout);
}

/* A step faster than the peak. Where that was given, or a table states it, the step is impossible: an error. Where it was measured, the
   measurement is wrong, which stops nothing: others may have used the machine meanwhile, so look again, once; a peak that is still below
   what was reached is not known, and then MFU is not either. */
static void rate_above_peak(Trainer *t, Metrics *k) {
    if (t->settings->peak_tflops > 0 || device_peak_is_stated(&t->place))
        FAIL(THIS_RANK, "step %lld ran at %.2f times the peak of %g GFLOP/s a rank: either the peak is too low (--peak-tflops) or work was skipped",
             (long long)k->step, k->mfu_causal, t->peak / 1e9);
    double measured = t->peak, again = t->peak_again ? 0 : device_peak(&t->place), higher = again / measured;
    t->peak_again = 1;
    t->peak = k->mfu_causal <= higher ? again : 0;
    k->mfu_causal = t->peak > 0 ? k->mfu_causal / higher : NAN, k->mfu_full = t->peak > 0 ? k->mfu_full / higher : NAN;
    if (t->peak > 0) printf("note     the peak was measured too low, at %.1f GFLOP/s a rank; again: %.1f\n", measured / 1e9, again / 1e9);
    else printf("note     step %lld ran above the measured peak of %.1f GFLOP/s a rank, so MFU is not known; --peak-tflops gives the true one\n",
                (long long)k->step, fmax(measured, again) / 1e9);
}

static void step_metrics(Trainer *t, Metrics *k, i64 step, double seconds) {
    Model *m = &t->model;
    double peak = t->peak * (double)m->mesh.shape.world;
    k->step = step;
    k->tokens = t->options.batch * t->options.L;
    k->lr = learning_rate(t->settings, step);
    k->step_ms = 1e3 * seconds;
    k->tokens_per_s = (double)k->tokens / seconds;
    k->mfu_causal = peak > 0 ? k->tokens_per_s * flop_per_token(t, 1) / peak : NAN;
    k->mfu_full = peak > 0 ? k->tokens_per_s * flop_per_token(t, 0) / peak : NAN;
    k->mem_bytes = m->arena.committed;
    k->comm_bytes = ledger_total(&m->ledger, 0);
    k->comm_exposed_ms = 1e3 * fabric_exposed(&m->fabric);
    k->val_loss = NAN;
    if (k->mfu_causal > 1 && m->mesh.rank == 0) rate_above_peak(t, k);
}

/* ---- when a number is not finite --------------------------------------------------------------------------------------------------- */

/* The first thing that went bad on a rank, in the order of the walk: weights, then streams, then gradients. */
typedef struct {
    i64 order; /* smaller is earlier; -1: all is well */
    char what[160];
} BadTensor;

static int all_finite(Device *dev, const void *values, i64 n, i64 size) {
    int finite = 1;
    unsigned char *host = (unsigned char *)host_alloc((size_t)(n * size));
    copy_out(dev, host, values, n * size);
    for (i64 i = 0; i < n && finite; i++)
        finite = size == real_size() ? isfinite(real_value(((const real *)host)[i])) : isfinite(((const accum *)host)[i]);
    free(host);
    return finite;
}

/* Of this rank's part of every tensor in a flat buffer: the first that holds something not finite. */
static int bad_in_flat(const Zero *z, const void *flat, i64 size, const char *kind, i64 base, BadTensor *bad) {
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        i64 at, n = tensor_range(z, t, &at);
        if (n == 0 || all_finite(z->dev, (const char *)flat + at * size, n, size)) continue;
        char name[HF_NAME_MAX];
        tensor_hf_name(name, t->spec, t->layer);
        bad->order = base + i;
        snprintf(bad->what, sizeof bad->what, "%s of %s", kind, name);
        return 1;
    }
    return 0;
}

static void find_bad_tensor(const Trainer *t, BadTensor *bad) {
    const Model *m = &t->model;
    Device *dev = m->zero.dev;
    i64 n = stream_rows(m) * m->config.dim, layers = m->config.layers, base = m->zero.tensors;
    memset(bad, 0, sizeof *bad);
    bad->order = -1;
    if (bad_in_flat(&m->zero, m->zero.param, real_size(), "weights", 0, bad)) return;
    for (i64 i = 0; i < 2 * layers; i++) {
        if (all_finite(dev, i % 2 ? m->mlp[i / 2].in.x : m->attention[i / 2].in.x, n, real_size())) continue;
        bad->order = base + i;
        snprintf(bad->what, sizeof bad->what, "stream into the %s of layer %lld", i % 2 ? "MLP" : "attention", (long long)i / 2);
        return;
    }
    if (!all_finite(dev, m->final_x, own_rows(m) * m->config.dim, real_size())) {
        bad->order = base + 2 * layers;
        snprintf(bad->what, sizeof bad->what, "stream into the final norm");
        return;
    }
    bad_in_flat(&m->zero, m->zero.grad, accum_size(), "gradient", base + 2 * layers + 1, bad);
}

/* A loss or norm that is not finite ends the run; metrics so far are on disk. Every rank holds the same two numbers. */
static void check_finite(const Trainer *t, i64 step, double loss, double norm) {
    if (isfinite(loss) && isfinite(norm)) return;
    int ranks = (int)t->model.mesh.shape.world, first = -1;
    BadTensor mine, *all = (BadTensor *)host_alloc(sizeof(BadTensor) * (size_t)ranks);
    find_bad_tensor(t, &mine);
    wire_share(t->model.mesh.world.wire, all, &mine, sizeof mine);
    for (int r = 0; r < ranks; r++)
        if (all[r].order >= 0 && (first < 0 || all[r].order < all[first].order)) first = r;
    if (first < 0) FAIL(EVERYONE, "step %lld: loss %g, gradient norm %g: the sum overflowed; lower --lr", (long long)step, loss, norm);
    FAIL(EVERYONE, "step %lld: loss %g, gradient norm %g; first not finite: %s, on rank %d. Lower --lr, or look at the data%s", (long long)step, loss, norm,
         all[first].what, first, t->settings->out ? "; metrics.jsonl has the steps before" : "");
}

/* --steps 0 --val: judge the model as it is. */
static void judge(Trainer *t) {
    Metrics k;
    memset(&k, 0, sizeof k);
    k.loss = k.grad_norm = NAN;
    k.mem_bytes = t->model.arena.committed;
    k.val_loss = validate(t);
    if (k.val_loss != k.val_loss) FAIL(EVERYONE, "--val %s: every target is ignored, so there is no loss to state", t->settings->val);
    if (t->model.mesh.rank != 0) return;
    printf("val      %.4f over %lld of %lld sequences\n", k.val_loss, (long long)i64_min(validation_batches(t) * t->options.batch, t->val.sequences),
           (long long)t->val.sequences);
    run_metrics(&t->log, &k);
}

static void train(Trainer *t) {
    const Settings *s = t->settings;
    Model *m = &t->model;
    int speaks = m->mesh.rank == 0;
    if (s->steps > 0) check_targets(t), selfcheck(t);
    else if (t->val.sequences) judge(t);
    i64 traced = s->trace ? i64_min(TRACE_STEPS, s->steps) : 0;
    if (traced) trace_init(&t->trace, m->mesh.shape.world);
    double began = seconds_now();
    for (i64 step = 0; step < s->steps; step++) {
        Metrics k;
        memset(&k, 0, sizeof k);
        ledger_reset(&m->ledger);
        schedule_begin(&m->fabric, SCHEDULE_FOLLOW);
        fabric_exposed_reset(&m->fabric);
        if (step < traced) trace_step_begin(&t->trace, &m->dev, step);
        double begin = seconds_now();
        int learns = step_gradients(t, step, &k.loss, &k.grad_norm) > 0; /* else the weights stay as they are */
        if (step == 0 && s->dump_grads) checkpoint_write_tensors(&m->zero, m->mesh.world.wire, s->dump_grads, m->zero.grad, accum_size() == 8 ? ST_F64 : ST_F32);
        if (learns) check_finite(t, step, k.loss, k.grad_norm), step_update(t, step, k.grad_norm);
        device_finish(&m->dev);
        double seconds = seconds_now() - begin;
        if (step < traced) trace_step_end(&t->trace, &m->dev);
        schedule_begin(&m->fabric, SCHEDULE_IGNORE);
        step_metrics(t, &k, step, seconds);
        if (step + 1 == traced) timeline_write(&t->trace, m->mesh.world.wire, s->trace);
        if (step == 0 && speaks) run_write_ledger(&t->log, &m->ledger);
        int last = step + 1 == s->steps;
        if (t->val.sequences && (last || (s->eval_every && (step + 1) % s->eval_every == 0))) k.val_loss = validate(t);
        if (!speaks) continue;
        run_metrics(&t->log, &k);
        double eta = (seconds_now() - began) / (double)(step + 1) * (double)(s->steps - step - 1);
        if (last || (step + 1) % s->log_every == 0 || isfinite(k.val_loss)) print_step(&k, s->steps, eta);
    }
    if (speaks) run_finish(&t->log);
}

/* ---- from flags to a trainer ---------------------------------------------------------------------------------------------------------- */

static inline void print_help(const char *what, const char *usage) {
    printf("%s\n\nusage: %s\n\n", what, usage);
    flags_help(stdout);
    printf("\nPresets of --model\n ");
    for (int i = 0; i < COUNT_OF(PRESETS); i++) printf(" %s", PRESETS[i].name);
    printf("\n\nSchemes of --sp\n");
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) printf("  %-10s %s\n", SCHEMES[i]->name, SCHEMES[i]->help);
}

static int is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static void options_model(ModelOptions *o, const Settings *s) {
    const Preset *preset = preset_find(s->model);
    if (preset) {
        o->config = preset->config;
        config_override(&o->config, s);
        config_check(&o->config, "--dim, --heads, --kv-heads, ...");
    } else if (is_directory(s->model)) {
        const char *overrides[] = {"arch", "layers", "dim", "heads", "kv-heads", "ffn", "vocab", "max-pos", "rope-theta", "tied-head"};
        const i64 given[] = {s->arch != NULL, s->layers, s->dim, s->heads, s->kv_heads, s->ffn, s->vocab, s->max_pos, s->rope_theta > 0, s->tied_head != NULL};
        for (int i = 0; i < COUNT_OF(overrides); i++)
            if (given[i]) FAIL(EVERYONE, "--%s cannot change the model in %s; it overrides presets only", overrides[i], s->model);
        checkpoint_read_config(&o->config, s->model);
    } else {
        char names[512] = "";
        for (int i = 0; i < COUNT_OF(PRESETS); i++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", PRESETS[i].name);
        FAIL(EVERYONE, "--model %s: neither a preset (%s) nor a directory; %s", s->model, names,
             checkpoint_no_directory(s->model).text);
    }
}

/* The mesh that flags and world ask for: the head axis takes what dp and ring leave. */
static void options_mesh(ModelOptions *o, Settings *s, const FlagsGiven *given, i64 world) {
    o->scheme = scheme_find(s->sp);
    if (!o->scheme) {
        char names[256] = "";
        for (int i = 0; i < COUNT_OF(SCHEMES); i++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? "|" : "", SCHEMES[i]->name);
        FAIL(EVERYONE, "--sp %s: must be one of %s", s->sp, names);
    }
    if (world % s->dp != 0)
        FAIL(EVERYONE, "%lld ranks do not divide over --dp %lld; use a divisor of %lld", (long long)world, (long long)s->dp, (long long)world);
    if (o->scheme->ring_takes_all && !flag_given(given, "ring")) s->ring = world / s->dp;
    if (world / s->dp % s->ring != 0)
        FAIL(EVERYONE, "%lld ranks / --dp %lld leaves %lld, which does not divide over --ring %lld; use a divisor of it", (long long)world,
             (long long)s->dp, (long long)(world / s->dp), (long long)s->ring);
    o->shape.world = world, o->shape.dp = s->dp, o->shape.ring = s->ring, o->shape.head = world / s->dp / s->ring;
}

/* Everything about the run that does not need data or memory; whether that can run, options_check says. */
static void options_from_flags(ModelOptions *o, Settings *s, const FlagsGiven *given, i64 world, DevicePlace place) {
    memset(o, 0, sizeof *o);
    options_model(o, s);
    options_mesh(o, s, given, world);
    o->layout = ring_layout_find(s->ring_layout);
    o->L = s->seq_len, o->B = s->micro_batch, o->batch = s->batch;
    if (s->init_only) { /* the same numbers on every mesh, so take the one that fits every world */
        o->shape.dp = world, o->shape.ring = o->shape.head = 1;
        o->L = o->B = 1, o->batch = world;
    }
    o->recompute = strcmp(s->recompute, "full") == 0;
    o->overlap = strcmp(s->overlap, "on") == 0;
    o->comm = s->comm;
    o->grad_wire = s->grad_comm && strcmp(s->grad_comm, "bf16") == 0 ? DTYPE_REAL : DTYPE_ACCUM;
    o->place = place;
}

static void options_check(const ModelOptions *o) {
    char why[1024];
    if (options_refuse(o, why, sizeof why)) FAIL(EVERYONE, "%s", why);
}

static void print_model(const Trainer *t) {
    const Config *c = &t->options.config;
    printf("model    %s, %lld layers, d %lld, %lld heads, %lld KV heads, i %lld, vocab %lld: %.2fM parameters, %s\n",
           c->arch == ARCH_GPT2 ? "gpt2" : "llama", (long long)c->layers, (long long)c->dim, (long long)c->heads, (long long)c->kv_heads,
           (long long)c->ffn, (long long)c->vocab, (double)t->parameters / 1e6, REAL_NAME);
}

static void print_mesh(const Trainer *t) {
    const Config *c = &t->options.config;
    const MeshShape *shape = &t->options.shape;
    printf("mesh     %s on %lld ranks: dp %lld x ring %lld%s%s x head %lld\n", t->options.scheme->name, (long long)shape->world, (long long)shape->dp,
           (long long)shape->ring, shape->ring > 1 ? " " : "", shape->ring > 1 ? t->settings->ring_layout : "", (long long)shape->head);
    printf("batch    %lld sequences of %lld tokens a step, %lld micro-steps of %lld a group\n", (long long)t->options.batch, (long long)t->options.L,
           (long long)micro_steps(&t->options), (long long)t->options.B);
    if (c->arch == ARCH_LLAMA && t->options.L > c->max_pos)
        printf("note     sequences of %lld tokens go past the model's %lld positions\n", (long long)t->options.L, (long long)c->max_pos);
}

static void print_device(const Trainer *t) {
    const DevicePlace *p = &t->place;
    printf("device   ");
    device_print(p);
    printf(", peak %.1f GFLOP/s a rank%s\n", t->peak / 1e9, t->settings->peak_tflops > 0 ? " (given)" : " (" PEAK_ORIGIN ")");
    device_note(p);
    fflush(stdout);
}

/* Print what the plan found; for any world, from one process. */
static void print_plan(Trainer *t) {
    double flop = flop_per_token(t, 1);
    printf("work     %.6e FLOP a token, %.6e a step: 6 a parameter and causal attention\n", flop, flop * (double)(t->options.batch * t->options.L));
    arena_print(stdout, &t->model.arena);
    device_print_reserve(&t->place, t->settings->comm, mesh_links(t->options.shape, t->options.config.kv_heads));
    ledger_print(stdout, &t->model.ledger);
}

/* Initial weights: drawn from the seed, or read from --model DIR. */
static void load_weights(Trainer *t) {
    Model *m = &t->model;
    if (preset_find(t->settings->model)) zero_initialise(&m->zero, t->settings->seed);
    else checkpoint_load(&m->zero, t->settings->model, m->mesh.rank);
}

static void open_data(Trainer *t) {
    const Settings *s = t->settings;
    i64 vocab = t->options.config.vocab;
    if (s->ignore_token >= vocab)
        FAIL(EVERYONE, "--ignore-token %lld is no token of this model; its vocabulary is 0 to %lld", (long long)s->ignore_token, (long long)vocab - 1);
    if (!s->train && (s->steps > 0 || !s->val)) FAIL(EVERYONE, "--train is missing: a glob of token shards, e.g. --train \"data/train_*.bin\"");
    if (s->train) dataset_open(&t->train, s->train, "train", s->seq_len, vocab);
    if (s->val) dataset_open(&t->val, s->val, "val", s->seq_len, vocab);
}

/* Flags that would be ignored beside others: nothing requested is dropped in silence. */
static void check_flags(const Settings *s, const FlagsGiven *given) {
    if (s->world && !s->dry_run) FAIL(EVERYONE, "--world needs --dry-run; the ranks of a real run are mpirun's -np");
    if (s->init_only && !s->out) FAIL(EVERYONE, "--init-only needs --out DIR, where the weights go");
    if (s->init_only && s->dry_run) FAIL(EVERYONE, "--init-only and --dry-run exclude each other; a dry run writes nothing");
    if ((s->dump_grads || s->trace) && (s->init_only || s->dry_run || s->steps == 0))
        FAIL(EVERYONE, "--%s needs a training step: no --init-only, --dry-run or --steps 0", s->dump_grads ? "dump-grads" : "trace");
    if ((flag_given(given, "eval-every") || flag_given(given, "eval-batches")) && !s->val && !s->dry_run)
        FAIL(EVERYONE, "--eval-every and --eval-batches need --val, the shards to validate on");
}

/* Does the file lie in the run directory, which is made later? */
static int path_in_run(const Settings *s, const char *where) {
    struct stat a, b;
    if (!s->out) return 0;
    if (stat(where, &a) == 0 && stat(s->out, &b) == 0) return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    size_t n = strlen(where), m = strlen(s->out);
    while (n > 1 && where[n - 1] == '/') n--;
    while (m > 1 && s->out[m - 1] == '/') m--;
    return n == m && strncmp(where, s->out, n) == 0;
}

/* The file that a flag names must be new, and its directory take it: better known before the first step than after. Devices and pipes
   are written through. */
static void check_writable(const Settings *s, const char *flag, const char *path) {
    char directory[4096];
    int fd = path_descriptor(path), mode = fd >= 0 ? fcntl(fd, F_GETFL) : 0;
    if (fd >= 0 && (mode < 0 || (mode & O_ACCMODE) == O_RDONLY)) FAIL(EVERYONE, "--%s %s is not open for writing", flag, path);
    if (path_is_stream(path)) {
        if (fd < 0 && access(path, W_OK) != 0) FAIL(EVERYONE, "--%s %s: cannot write: %s", flag, path, strerror(errno));
        return;
    }
    if (is_directory(path)) FAIL(EVERYONE, "--%s %s is a directory; name a file", flag, path);
    if (path_is_taken(path)) FAIL(EVERYONE, "--%s %s is there already; choose another name, nothing is overwritten", flag, path);
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash) *slash = 0;
    const char *where = slash ? (slash == directory ? "/" : directory) : ".", *name = slash ? slash + 1 : path;
    if (!*name) FAIL(EVERYONE, "--%s %s is a directory; name a file", flag, path);
    if (path_in_run(s, where)) {
        const char *own[] = {"config.json", "metrics.jsonl", "comm.json"};
        for (int i = 0; i < COUNT_OF(own); i++)
            if (strcmp(name, own[i]) == 0) FAIL(EVERYONE, "--%s %s is a file of the run itself; choose another name", flag, path);
        if (!is_directory(where)) return;
    }
    if (access(where, W_OK | X_OK) != 0) FAIL(EVERYONE, "--%s %s: cannot write into %s: %s", flag, path, where, strerror(errno));
}

/* Two outputs cannot be one file. */
static void check_apart(const char *flag, const char *path, const char *other, const char *other_path) {
    if (path && other_path && strcmp(path, other_path) == 0 && !path_is_stream(path))
        FAIL(EVERYONE, "--%s and --%s name the same file, %s", flag, other, path);
}

/* How many ranks have this rank's device, where it can be told from others. */
static void place_share(DevicePlace *p, Wire world) {
    int ranks = wire_size(world), same = 0;
    uint64_t *all = (uint64_t *)host_alloc(sizeof(uint64_t) * (size_t)ranks);
    wire_share(world, all, &p->identity, sizeof p->identity);
    for (int r = 0; r < ranks; r++) same += all[r] == p->identity;
    if (p->identity) p->sharing = same;
    free(all);
}

static inline void run(Trainer *t, Settings *s, const FlagsGiven *given, Wire world) {
    int local, locals, rank = wire_rank(world);
    wire_watch(world, s->comm_timeout);
    wire_local(world, &local, &locals);
    t->settings = s;
    t->place = device_place(local, locals, (int)s->threads);
    check_flags(s, given);
    if (s->dump_grads && rank == 0) check_writable(s, "dump-grads", s->dump_grads);
    if (s->trace && rank == 0) check_writable(s, "trace", s->trace), check_apart("trace", s->trace, "dump-grads", s->dump_grads);
    if (!s->dry_run) device_open(&t->place), place_share(&t->place, world), device_check_comm(&t->place, s->comm);
    options_from_flags(&t->options, s, given, s->world ? s->world : wire_size(world), t->place);
    options_check(&t->options);
    t->parameters = config_parameters(&t->options.config);
    if (!s->dry_run && !s->init_only) {
        open_data(t);
        t->peak = s->peak_tflops > 0 ? 1e12 * s->peak_tflops : device_peak(&t->place);
    }
    if (s->dry_run && rank != 0) return;
    model_init(&t->model, &t->options, world, s->dry_run != 0, rank);
    trainer_plan(t);
    if (t->model.arena.peak.used == ARENA_MOST)
        FAIL(EVERYONE, "a rank of this run would need more than 1e18 bytes; lower --seq-len, --micro-batch or the model's sizes");
    if (rank == 0 && !s->init_only) print_model(t), print_mesh(t);
    if (rank == 0 && !s->init_only && !s->dry_run) print_device(t);
    if (s->dry_run) {
        print_plan(t);
    } else {
        mesh_try(&t->model.mesh, &t->model.fabric);
        check_memory(t, world);
        arena_commit(&t->model.arena);
        model_tables(&t->model);
        load_weights(t);
        wire_barrier(world); /* nothing is written before every rank has come this far */
        if (rank == 0 && s->init_only) make_directories(s->out);
        if (rank == 0 && !s->init_only)
            run_open(&t->log, s->out, run_config_json(s, &t->options.config, t->options.shape.world, t->options.shape.head, t->place.threads, REAL_NAME));
        if (s->init_only) checkpoint_write(&t->model.zero, world, s->out);
        else train(t);
    }
    model_free(&t->model);
    trace_free(&t->trace);
    if (t->train.shards) dataset_close(&t->train);
    if (t->val.shards) dataset_close(&t->val);
}

#ifndef ODYSSEUS_TEST
int main(int argc, char **argv) {
    Settings settings;
    FlagsGiven given;
    Wire world = wire_start(&argc, &argv);
    flags_parse(&settings, &given, argc, argv);
    if (settings.help) {
        if (wire_rank(world) == 0)
            print_help("train_gpt - trains GPT-2 and Llama on long sequences under five sequence-parallel schemes (" REAL_NAME " build)",
                       "mpirun -np N ./train_gpt_... --train \"data/train_*.bin\" [flags]");
    } else {
        Trainer *trainer = (Trainer *)host_alloc(sizeof(Trainer));
        run(trainer, &settings, &given, world);
        free(trainer);
    }
    wire_finish();
    return 0;
}
#endif

/* train_gpt.cu - trains GPT-2, Llama and its kin on long sequences under six sequence-parallel schemes.

   flags -> config -> mesh -> scheme -> arena, laid out once -> loader: this rank's tokens and their positions

   forward    embedding -> per layer: norm, scheme->attention_forward, norm, scheme->mlp_forward ->
              final norm, head and loss in chunks
   backward   the same in reverse; gradients are reduced to where they live as soon as their block is done
   step       global norm, AdamW on what this rank owns -> metrics, ledger

   One walk serves training, validation and the dry run: with dev.plan set, operations are counted and not
   computed, which sizes the arena and fills the ledger before anything is allocated. Everything a rank has hangs
   off Model; there are no globals. */

/* what stands below, with the names that this page takes from there */
#include "kernels/compute.h"  /* real, accum, Device, the operations: embedding_*, norm_*, linear_*, classifier,
                                 sum_squares, copy_in, copy_out */
#include "core/positions.h"   /* TokenMap, token_map: which positions a rank holds */
#include "core/flags.h"       /* Settings, flags_parse, flags_help */
#include "core/config.h"      /* Config, PRESETS, HAS_ features, rope_frequencies */
#include "core/options.h"     /* ModelOptions, options_from_flags, options_check, micro_steps */
#include "core/arena.h"       /* arena_reserve, arena_take, arena_mark, arena_release, arena_commit */
#include "core/mesh.h"        /* Mesh, MeshShape, mesh_init, mesh_link, mesh_try, mesh_links */
#include "core/wire.h"        /* Wire, wire_start, wire_share, wire_barrier, wire_finish: messages between hosts */
#include "core/comm.h"        /* Fabric, Comm, comm_all_gather, comm_sum_control,
                                 schedule_begin: collectives, counted */
#include "core/ledger.h"      /* Ledger, Tag, ledger_expect, ledger_print: bytes sent, and what they should be */
#include "core/offload.h"     /* Offload, offload_out, offload_back: what layers keep, in host memory */
#include "core/zero.h"        /* Zero, zero_walk, zero_acquire, zero_prefetch, zero_grad_begin,
                                 zero_grad_end, zero_adamw: ZeRO-3 */
#include "core/scheme.h"      /* Model, Scheme, Context, take_real, take_accum, stream_rows, own_rows */
#include "core/visible.h"     /* sight_*, documents_find: what each query sees */
#include "core/data.h"        /* Dataset, dataset_open, dataset_column, dataset_targets, TOKEN_IGNORED */
#include "core/checkpoint.h"  /* checkpoint_load, checkpoint_write, checkpoint_write_tensors */
#include "core/dataset.h"     /* dataset_describe, dataset_print, check_data: dataset.json beside the shards */
#include "core/life.h"        /* Life, life_*: checkpoints in training, resuming, being told to stop */
#include "core/fit.h"         /* check_memory, memory_json: does it fit, and what would? */
#include "core/rate.h"        /* Peak, peak_of, flop_per_token, step_metrics: MFU */
#include "core/selfcheck.h"   /* selfcheck_*: do the ranks mean the same run? */
#include "core/schedule.h"    /* learning_rate, schedule_check */
#include "core/graphs.h"      /* Graphs, graphs_choose, graphs_walk: a micro-step as one CUDA graph */
#include "core/finite.h"      /* spike_admits: losses that jump or are not finite */
#include "core/sample.h"      /* prompt_open, sample_continue, sample_print, sample_plan */
#include "core/evaluate.h"    /* task_open, evaluate, evaluate_rows */
#include "core/output.h"      /* check_writable, check_apart */
#include "core/log.h"         /* Metrics, RunLog, run_open, run_metrics */
#include "core/live.h"        /* Live, print_step: the line of a step */
#include "core/timeline.h"    /* trace_init, trace_step_begin, trace_step_end, timeline_write */

/* the schemes */
#include "tpsp.h"             /* SCHEME_TP, SCHEME_TPSP */
#include "ulysses.h"          /* SCHEME_ULYSSES */
#include "ring.h"             /* SCHEME_RING, CONTEXT_RING */
#include "allgather.h"        /* SCHEME_ALLGATHER, CONTEXT_ALLGATHER */
#include "odysseus.h"         /* SCHEME_ODYSSEUS */

/* In the order of --help. Another one is its header above and a row here. */
static const Scheme *const SCHEMES[] = {&SCHEME_TP, &SCHEME_TPSP, &SCHEME_ULYSSES, &SCHEME_RING, &SCHEME_ALLGATHER,
                                       &SCHEME_ODYSSEUS};

/* How queries meet keys over the ring axis; the first unless told. */
static const Context *const CONTEXTS[] = {&CONTEXT_RING, &CONTEXT_ALLGATHER};

/* The scheme of --sp. */
static inline const Scheme *scheme_find(const char *name) {
    char names[256] = "";
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) {
        if (strcmp(SCHEMES[i]->name, name) == 0) return SCHEMES[i];
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? "|" : "", SCHEMES[i]->name);
    }
    FAIL(EVERYONE, "--sp %s: must be one of %s", name, names);
}

/* The context of --context, NULL where it is not given; a scheme may be one of its own. */
static inline const Context *context_find(const char *name, const Scheme *scheme) {
    char names[256] = "";
    if (!name) return scheme->context ? scheme->context : CONTEXTS[0];
    for (int i = 0; i < COUNT_OF(CONTEXTS); i++) {
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? "|" : "", CONTEXTS[i]->name);
        if (strcmp(CONTEXTS[i]->name, name) != 0) continue;
        if (scheme->context && scheme->context != CONTEXTS[i])
            FAIL(EVERYONE, "--context %s: --sp %s is the context %s and nothing besides; use --sp %s", name,
                 scheme->name, scheme->context->name, name);
        return CONTEXTS[i];
    }
    FAIL(EVERYONE, "--context %s: must be one of %s", name, names);
}

/* ---- the model: layout in the arena ------------------------------------------------------------------------------ */

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

/* --tile-rows auto: a tile's buffers are no larger than the stream, but a tile not so small that products would wait
   for its weights and their gradients. */
static i64 model_tile_rows(const Model *m) {
    const Config *c = &m->config;
    i64 head = m->scheme->splits(BLOCK_MLP) ? m->mesh.shape.head : 1;
    return i64_max(4096, stream_rows(m) * c->dim / ((2 * mlp_gates(c) + 1) * c->ffn / head));
}

/* What the norms of queries and keys keep, where these are projected: of all heads on the own
   tokens, or of the own heads. */
static void model_keep_heads(Model *m, AttentionSaved *a) {
    int own = m->scheme->rope_on_own;
    i64 rows = own ? own_rows(m) : ring_rows(m), HS = m->config.head_dim;
    i64 heads = own ? m->config.heads : m->heads_l, kv_heads = own ? m->config.kv_heads : m->kv_heads_l;
    if (!(m->config.has & HAS_QK_NORM)) return;
    a->q_raw = take_real(m, MEM_ACTIVATIONS, rows * heads * HS),
    a->q_rstd = take_accum(m, MEM_ACTIVATIONS, rows * heads);
    a->k_raw = take_real(m, MEM_ACTIVATIONS, rows * kv_heads * HS),
    a->k_rstd = take_accum(m, MEM_ACTIVATIONS, rows * kv_heads);
}

/* What attention makes: out and lse. */
static void model_keep_attended(Model *m, AttentionSaved *a) {
    i64 heads = heads_room(m, m->heads_l, !keeps_attended(m));
    a->out = take_real(m, MEM_ACTIVATIONS, ring_rows(m) * heads * m->config.head_dim);
    a->lse = take_accum(m, MEM_ACTIVATIONS, ring_rows(m) * heads);
}

/* Buffers that a layer's attention and MLP keep for backward, except their inputs. */
static void model_keep_layer(Model *m, AttentionSaved *a, MlpSaved *p) {
    i64 rows = stream_rows(m), ring = ring_rows(m), HS = m->config.head_dim;
    MemCategory kept = MEM_ACTIVATIONS;
    a->q = take_real(m, kept, ring * heads_room(m, m->heads_l, m->recompute) * HS);
    a->kv = take_real(m, kept, ring * 2 * heads_room(m, m->kv_heads_l, m->recompute) * HS);
    model_keep_attended(m, a);
    a->in.mean = take_accum(m, kept, rows), a->in.rstd = take_accum(m, kept, rows);
    model_keep_heads(m, a);
    if (m->scheme->attention_keep) m->scheme->attention_keep(m, a);
    p->in.mean = take_accum(m, kept, rows), p->in.rstd = take_accum(m, kept, rows);
    if (m->recompute) return; /* backward makes it again */
    /* split columns of all tokens, or all columns of own tokens */
    i64 head = m->scheme->splits(BLOCK_MLP) ? m->mesh.shape.head : 1;
    i64 mlp_rows = head > 1 ? ring : own_rows(m);
    p->pre = take_real(m, kept, mlp_rows * mlp_gates(&m->config) * m->config.ffn / head);
}

/* From a row of logits to the next: GPT-2 has 50257 words, and each row shall begin at a whole cache line. */
static inline i64 logits_ld(const Model *m) { return round_up(m->config.vocab, 64); }

/* Rows of logits held at once: logits_bytes() of them, at most a quarter of the own ones; every chunk reads all of the
   head's weights, so not below 128 (half of the own ones) for the quarter's sake. */
static i64 model_logits_rows(const Model *m) {
    i64 budget = logits_bytes() / (logits_ld(m) * real_size()), own = own_rows(m);
    i64 share = i64_max(ceil_div(own, 4), i64_min(ceil_div(own, 2), 128));
    return i64_max(1, i64_min(i64_max(budget, 64), share));
}

/* --offload inputs: layers take two sets of places in turns. */
static void model_offload(Model *m) {
    i64 L = m->config.layers, inputs = stream_rows(m) * m->config.dim * real_size(), heads = ring_rows(m) * m->heads_l;
    AttentionSaved *a = m->attention;
    if (L <= 2) return;
    m->offload.layers = L;
    offload_add(&m->offload, a[0].in.x, a[1].in.x, inputs);
    if (!m->one_input) offload_add(&m->offload, m->mlp[0].in.x, m->mlp[1].in.x, inputs);
    if (m->recompute != RECOMPUTE_ATTENTION_KEPT) return;
    offload_add(&m->offload, a[0].out, a[1].out, heads * m->config.head_dim * real_size());
    offload_add(&m->offload, a[0].lse, a[1].lse, heads * accum_size());
}

static void model_layout(Model *m, int offload) {
    i64 rows = stream_rows(m), C = m->config.dim, L = m->config.layers,
        widest = i64_max(C, attention_width(&m->config));
    AttentionShape attended = attention_shape(m);
    if (!(m->config.has & HAS_POSITIONS))
        m->rope = take_accum(m, MEM_WORKSPACE, m->rope_map.count * m->config.head_dim);
    m->attention = (AttentionSaved *)host_alloc(sizeof(AttentionSaved) * (size_t)L);
    m->mlp = (MlpSaved *)host_alloc(sizeof(MlpSaved) * (size_t)L);
    for (i64 l = 0; l < L; l++) {
        if (l > 0 && m->recompute) m->attention[l] = m->attention[0], m->mlp[l] = m->mlp[0];
        else model_keep_layer(m, &m->attention[l], &m->mlp[l]);
        int apart = !offload || l < 2; /* else its places are those of the layer before the last */
        if (l > 0 && m->recompute == RECOMPUTE_ATTENTION_KEPT && apart) model_keep_attended(m, &m->attention[l]);
        if (l > 0 && m->recompute == RECOMPUTE_ATTENTION_KEPT && !apart)
            m->attention[l].out = m->attention[l - 2].out, m->attention[l].lse = m->attention[l - 2].lse;
        if (l > 0 && m->recompute && m->samples) /* the cache */
            m->attention[l].kv = take_real(m, MEM_ACTIVATIONS, kv_count_own(m));
        m->attention[l].rope = layer_in(&m->config.no_rope, l) ? NULL : m->rope;
        m->attention[l].sight = &m->sight[sight_kind(&m->config, m->L, l)];
        m->attention[l].in.x = apart ? take_real(m, MEM_ACTIVATIONS, rows * C) : m->attention[l - 2].in.x;
        if (m->one_input && l > 0) m->mlp[l].in.x = m->mlp[0].in.x; /* for as long as it is worked on */
        else m->mlp[l].in.x = apart ? take_real(m, MEM_ACTIVATIONS, rows * C) : m->mlp[l - 2].in.x;
    }
    if (offload) model_offload(m);
    m->tokens = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, rows * 4);
    m->targets = (int32_t *)arena_take(&m->arena, MEM_WORKSPACE, own_rows(m) * 4);
    m->sums = (double *)arena_take(&m->arena, MEM_WORKSPACE, 2 * sizeof(double));
    i64 scratch =
        device_scratch_bytes(i64_max(rows, ring_rows(m)), i64_max(widest, mlp_gates(&m->config) * m->config.ffn),
                             i64_max(m->config.vocab, m->restart ? m->config.max_pos : 0), &attended);
    if (scratch) device_scratch(&m->dev, arena_take(&m->arena, MEM_WORKSPACE, scratch), scratch);
    m->logits_rows = model_logits_rows(m);
}

/* The blocks in the order that a training walk (or, its first half, a validation walk) uses them. */
static Use *model_order(const Config *c, int one_input, int *uses) {
    Use *order = (Use *)host_alloc(sizeof(Use) * (size_t)(2 + 5 * c->layers));
    int n = 0;
    for (int b = 0; b <= block_lm_head(c); b++) order[n].block = b, order[n++].phase = PHASE_FORWARD;
    for (int l = (int)c->layers - 1; l >= 0; l--) {
        if (one_input) order[n].block = block_attention(l), order[n++].phase = PHASE_BACKWARD;
        order[n].block = block_mlp(l), order[n++].phase = PHASE_BACKWARD;
        order[n].here = one_input;
        order[n].block = block_attention(l), order[n++].phase = PHASE_BACKWARD;
    }
    *uses = n;
    return order;
}

/* Lay out a model for `rank` of `base` (collective), or of an imagined world. `m` must not
   move afterwards; model_free. */
static void model_init(Model *m, const ModelOptions *o, Wire base, int imagined, int rank) {
    memset(m, 0, sizeof *m);
    m->config = o->config, m->scheme = o->scheme, m->layout = o->layout;
    m->context = o->context ? o->context : context_find(NULL, o->scheme);
    m->L = o->L, m->B = o->B, m->recompute = o->recompute, m->samples = o->samples;
    m->one_input = o->layer_inputs == 1;
    m->tile_rows = o->tile_rows, m->head_groups = i64_max(1, o->head_groups);
    m->gather_tokens = o->gather_tokens;
    m->documents = o->documents, m->restart = o->restart, m->eot = o->eot;
    device_init(&m->dev, &o->place, imagined);
    fabric_init(&m->fabric, &m->dev, &m->ledger, (int)o->shape.world, o->overlap, o->comm);
    mesh_init(&m->mesh, o->shape, base, imagined, rank, o->config.kv_heads);
    if (!imagined) mesh_link(&m->mesh, &m->fabric);
    arena_reserve(&m->arena, &m->dev);
    zero_init(&m->zero, &m->config, &m->mesh, &m->fabric, &m->arena, m->scheme->splits, o->grad_wire);
    m->order = model_order(&m->config, m->one_input, &m->uses);
    model_place(m, o);
    if (m->tile_rows == TILE_AUTO) m->tile_rows = model_tile_rows(m);
    m->piece = m->context->piece ? m->context->piece(m) : m->T_ring;
    if (o->shape.ring > 1 && o->ring_backward && m->context->queries_travel)
        m->mesh.queries_travel = m->context->queries_travel(o->ring_backward, &m->config, o->shape.head);
    sight_layout(m, o->doc_length);
    model_layout(m, o->offload);
}

/* After arena_commit: the tables in device memory, and tokens on the host and what is offloaded there, which a plan
   does without. */
static void model_tables(Model *m) {
    offload_commit(&m->offload, &m->dev);
    m->host_tokens = (int32_t *)host_alloc((size_t)(stream_rows(m) + own_rows(m)) * sizeof(int32_t));
    sight_tables(m);
    if (!m->rope) return;
    double *frequencies = (double *)host_alloc(sizeof(double) * (size_t)m->config.head_dim);
    rope_frequencies(&m->config, m->L, frequencies);
    rope_table(&m->dev, m->rope, m->rope_map, frequencies, rope_magnitude(&m->config.rope_scaling), m->config.head_dim);
    free(frequencies);
}

static void model_free(Model *m) {
    offload_free(&m->offload, &m->dev);
    arena_free(&m->arena);
    device_free(&m->dev);
    zero_free(&m->zero);
    mesh_free(&m->mesh);
    fabric_free(&m->fabric);
    free(m->attention);
    free(m->mlp);
    free(m->order);
    free(m->host_tokens);
    sight_free(m);
}

typedef void (*Volume)(Ledger *, const Config *, const Mesh *, i64 L, i64 B, i64 times);

/* What a scheme or a context moves in all layers; `again`: so often attention's forward is repeated in backward. */
static void model_expect_part(Model *m, Volume volume, i64 micro, i64 again) {
    Ledger part;
    memset(&part, 0, sizeof part);
    volume(&part, &m->config, &m->mesh, m->L, m->B, micro * m->config.layers);
    ledger_expect_part(&m->ledger, &part, again);
}

/* Numbers that a step sums over the ranks at its end: sum of losses, sum of squared gradients, wishes to stop, saves
   being written, and with documents the pairs that were seen. */
static int step_sums(const Model *m) { return m->documents ? 5 : 4; }

/* With one input a layer, attention is made again before the MLP's backward; of that, groups of heads leave no q and
   kv to its own backward. */
static int again_behind(const Model *m) { return m->head_groups > 1 ? RECOMPUTE_ATTENTION_KEPT : RECOMPUTE_NONE; }

/* The closed form of a step's traffic: activations by scheme and context, parameters by ZeRO,
   the head's slices, control. */
static void model_expect(Model *m, i64 micro) {
    const Mesh *mesh = &m->mesh;
    model_expect_part(m, m->scheme->volume, micro,
                      m->one_input || (m->recompute && m->scheme->repeats_exchange));
    if (m->one_input && m->recompute == RECOMPUTE_FULL && again_behind(m))
        m->scheme->volume_twice(&m->ledger, &m->config, mesh, m->L, m->B, micro * m->config.layers);
    model_expect_part(m, m->context->volume, micro, m->recompute == RECOMPUTE_FULL);
    zero_volume(&m->ledger, &m->config, mesh, m->scheme->splits, m->zero.grad_wire, micro);
    if (m->scheme->replicated_stream)
        ledger_expect(&m->ledger, COMM_ALL_GATHER, tag(BLOCK_LM_HEAD, PHASE_BACKWARD, WHAT_ACTIVATION),
                      micro * (mesh->shape.head - 1) * volume_own(mesh, m->L) * m->B * m->config.dim * real_size());
    ledger_expect(&m->ledger, COMM_ALL_REDUCE, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL),
                  control_bytes(&mesh->world, 1));
    ledger_expect(&m->ledger, COMM_ALL_REDUCE, tag(BLOCK_OTHER, PHASE_OPTIMIZER, WHAT_CONTROL),
                  control_bytes(&mesh->world, step_sums(m)));
}

/* ---- LM head and loss ------------------------------------------------------------------------------------------ */

/* Logits, loss and their gradient in chunks of rows; xn (own rows, C) is the normed stream. `scale` 0: loss only; else
   xn becomes its own gradient and the head's weights get theirs. */
static void lm_head_chunks(Model *m, real *xn, accum scale) {
    Device *dev = &m->dev;
    i64 C = m->config.dim, V = m->config.vocab, ld = logits_ld(m);
    ArenaMark mark = arena_mark(&m->arena);
    real *logits = take_real(m, MEM_LOGITS, m->logits_rows * ld);
    for (i64 row = 0; row < own_rows(m); row += m->logits_rows) {
        i64 rows = i64_min(m->logits_rows, own_rows(m) - row);
        real *x = xn + row * C;
        part_begin(dev, BLOCK_LM_HEAD, -1, PHASE_FORWARD);
        linear_forward(dev, logits, ld, x, m->zero.weight[T_LM_HEAD], NULL, rows, C, V);
        if (m->judged) evaluate_rows(m, logits, ld, row, rows);
        classifier(dev, m->sums, logits, ld, m->targets + row, scale, rows, V, scale != 0);
        if (scale == 0) continue;
        part_begin(dev, BLOCK_LM_HEAD, -1, PHASE_BACKWARD);
        linear_backward_weight(dev, m->zero.dweight[T_LM_HEAD], x, logits, ld, rows, C, V);
        linear_backward_input(dev, x, logits, ld, m->zero.weight[T_LM_HEAD], rows, C, V, 0);
    }
    arena_release(&m->arena, mark);
}

/* Final norm, head and loss on the own tokens: adds to the loss. With dx (stream), also backward:
   dx = the stream's gradient. */
static void lm_head_walk(Model *m, const real *a, const real *delta, real *dx, accum scale) {
    accum **g = m->zero.dweight;
    i64 rows = own_rows(m), C = m->config.dim, own = m->own_first * m->B * C;
    ArenaMark mark = arena_mark(&m->arena);
    real *xn = take_real(m, MEM_WORKSPACE, rows * C);
    accum *mean = take_accum(m, MEM_WORKSPACE, rows), *rstd = take_accum(m, MEM_WORKSPACE, rows);
    m->final_x = take_real(m, MEM_WORKSPACE, rows * C);
    norm_forward(&m->dev, block_norm(m, rows), xn, m->final_x, mean, rstd, a + own, delta + own);
    lm_head_chunks(m, xn, dx ? scale : 0);
    if (dx) {
        zero_fill(&m->dev, dx + own, rows * C * real_size());
        norm_backward(&m->dev, block_norm(m, rows), dx + own, g[T_NORM], g[T_NORM_BIAS], xn, mean, rstd, m->final_x, 0,
                      rows);
        if (m->scheme->replicated_stream) /* every rank continues with all tokens */
            comm_all_gather(&m->fabric, &m->mesh.head, tag(BLOCK_LM_HEAD, PHASE_BACKWARD, WHAT_ACTIVATION), dx,
                            dx + own, rows * C, DTYPE_REAL);
    }
    arena_release(&m->arena, mark);
}

/* ---- the layer walk ---------------------------------------------------------------------------------------------- */

static BlockSaved *block_saved(Model *m, BlockKind kind, int l) {
    return kind == BLOCK_ATTENTION ? &m->attention[l].in : &m->mlp[l].in;
}

/* One block forward: x = a + delta (kept), out = block(norm(x)). delta may be out; NULL where x is there already. */
static void block_forward(Model *m, BlockKind kind, int l, const real *a, const real *delta, real *out) {
    BlockSaved *s = block_saved(m, kind, l);
    ArenaMark mark = arena_mark(&m->arena);
    real *xn = take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim);
    norm_forward(&m->dev, block_norm(m, stream_rows(m)), xn, s->x, s->mean, s->rstd, a, delta);
    if (kind == BLOCK_ATTENTION) m->scheme->attention_forward(m, &m->attention[l], out, xn);
    else m->scheme->mlp_forward(m, &m->mlp[l], out, xn);
    arena_release(&m->arena, mark);
}

/* A block's normed input for its backward. With one input a layer, the MLP's is the layer's and what attention has just
   made again of it, and attention's statistics are those of a moment ago. */
static void block_normed(Model *m, BlockKind kind, int l, real *xn) {
    BlockSaved *s = block_saved(m, kind, l);
    NormCall norm = block_norm(m, stream_rows(m));
    int sums = m->one_input && kind == BLOCK_MLP;
    if (!m->recompute || (m->one_input && !sums)) norm_recompute(&m->dev, norm, xn, s->mean, s->rstd, s->x);
    else norm_forward(&m->dev, norm, xn, s->x, s->mean, s->rstd, sums ? m->attention[l].in.x : s->x,
                      sums ? s->x : NULL);
}

/* One block backward: dx is the gradient of the stream after it, and becomes that before it. */
static void block_backward(Model *m, BlockKind kind, int l, real *dx) {
    BlockSaved *s = block_saved(m, kind, l);
    accum **g = m->zero.dweight;
    ArenaMark mark = arena_mark(&m->arena);
    i64 n = stream_rows(m) * m->config.dim;
    int spare = m->one_input && kind == BLOCK_ATTENTION; /* the MLP's input is of no more use */
    real *xn = spare ? m->mlp[l].in.x : take_real(m, MEM_WORKSPACE, n), *dxn = take_real(m, MEM_WORKSPACE, n);
    block_normed(m, kind, l, xn);
    if (kind == BLOCK_ATTENTION) m->scheme->attention_backward(m, &m->attention[l], dxn, dx, xn);
    else m->scheme->mlp_backward(m, &m->mlp[l], dxn, dx, xn);
    norm_backward(&m->dev, block_norm(m, stream_rows(m)), dx, g[T_NORM], g[T_NORM_BIAS], dxn, s->mean, s->rstd, s->x,
                  m->own_first * m->B, own_rows(m));
    arena_release(&m->arena, mark);
}

/* x (stream) = the embedding of m->tokens. */
static void embed_forward(Model *m, real *x) {
    Device *dev = &m->dev;
    real *const *w = m->zero.weight;
    i64 C = m->config.dim, n = stream_rows(m) * C;
    embedding_forward(dev, x, m->tokens, m->stream_map, w[T_WTE], m->restart ? NULL : w[T_WPE], m->B, C);
    if (!m->restart) return;
    ArenaMark mark = arena_mark(&m->arena); /* places in documents are looked up as tokens are */
    real *places = take_real(m, MEM_WORKSPACE, n);
    embedding_forward(dev, places, m->place, m->stream_map, w[T_WPE], NULL, m->B, C);
    sum_parts(dev, x, places, 1, n, n, DTYPE_REAL, 1);
    arena_release(&m->arena, mark);
}

/* The gradients of its tables, from dx (stream). */
static void embed_backward(Model *m, const real *dx) {
    accum *const *g = m->zero.dweight;
    i64 own = m->own_first * m->B, C = m->config.dim;
    embedding_backward(&m->dev, g[T_WTE], m->restart ? NULL : g[T_WPE], dx + own * C, m->tokens + own, m->own_map, m->B,
                       C, m->config.vocab);
    if (m->restart)
        embedding_backward(&m->dev, g[T_WPE], NULL, dx + own * C, m->place + own, m->own_map, m->B, C,
                           m->config.max_pos);
}

/* The forward walk over m->tokens: returns the last block's input through *a, its output in delta (stream). */
static void layers_forward(Model *m, const real **a, real *delta) {
    Zero *z = &m->zero;
    m->phase = PHASE_FORWARD;
    zero_acquire(z, block_embedding());
    zero_prefetch(z);
    const real *x = m->attention[0].in.x, *d = NULL;
    embed_forward(m, m->attention[0].in.x);
    for (int l = 0; l < (int)m->config.layers; l++) {
        zero_acquire(z, block_attention(l));
        offload_room(&m->offload, &m->dev, l);
        block_forward(m, BLOCK_ATTENTION, l, x, d, delta);
        if (m->watch) m->watch(m, m->watch_arg, l);
        x = m->attention[l].in.x, d = delta;
        zero_acquire(z, block_mlp(l));
        block_forward(m, BLOCK_MLP, l, x, d, delta);
        offload_out(&m->offload, &m->dev, l);
        x = m->mlp[l].in.x;
    }
    *a = x;
}

/* With one input a layer: what attention adds to it, in the place of the MLP's input, which becomes the sum. */
static void attention_again(Model *m, int l) {
    zero_acquire(&m->zero, block_attention(l));
    offload_arrived(&m->offload, &m->dev, l);
    m->again = m->recompute;
    block_forward(m, BLOCK_ATTENTION, l, m->attention[l].in.x, NULL, m->mlp[l].in.x);
}

/* The backward walk: dx (stream) is the gradient after the last layer. */
static void layers_backward(Model *m, real *dx) {
    Zero *z = &m->zero;
    m->phase = PHASE_BACKWARD;
    for (int l = (int)m->config.layers - 1; l >= 0; l--) {
        if (m->one_input) attention_again(m, l);
        m->again = m->one_input ? again_behind(m) : m->recompute;
        zero_acquire(z, block_mlp(l));
        if (!m->one_input) offload_arrived(&m->offload, &m->dev, l);
        zero_grad_begin(z, block_mlp(l));
        block_backward(m, BLOCK_MLP, l, dx);
        zero_grad_end(z, block_mlp(l));
        zero_acquire(z, block_attention(l));
        zero_grad_begin(z, block_attention(l));
        block_backward(m, BLOCK_ATTENTION, l, dx);
        offload_back(&m->offload, &m->dev, l - 2);
        zero_grad_end(z, block_attention(l));
    }
    part_begin(&m->dev, BLOCK_EMBEDDING, -1, PHASE_BACKWARD); /* its weights are not needed */
    zero_grad_begin(z, block_embedding());
    embed_backward(m, dx);
    zero_grad_end(z, block_embedding());
}

/* One micro-batch in m->tokens, m->targets. Adds to the loss; scale = 1 / targets of the whole step: gradients are
   added, already reduced, to this rank's shards. scale 0: loss only. */
static void model_walk(Model *m, accum scale) {
    Zero *z = &m->zero;
    int train = scale != 0, lm_head = block_lm_head(&m->config);
    ArenaMark mark = arena_mark(&m->arena);
    real *dx = train ? take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim) : NULL;
    ArenaMark forward = arena_mark(&m->arena);
    real *delta = take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim);
    const real *a;
    zero_walk(z, m->order, train ? m->uses : lm_head + 1);
    m->offload.active = train;
    layers_forward(m, &a, delta);
    zero_acquire(z, lm_head);
    zero_prefetch(z);
    if (train) zero_grad_begin(z, lm_head);
    lm_head_walk(m, a, delta, dx, scale);
    arena_release(&m->arena, forward); /* nobody reads delta in backward */
    if (train) {
        zero_grad_end(z, lm_head);
        layers_backward(m, dx);
    }
    m->offload.active = 0;
    arena_release(&m->arena, mark);
}

/* The layers over m->tokens, for what attention keeps of them. */
static void model_prefill(Model *m) {
    ArenaMark mark = arena_mark(&m->arena);
    real *delta = take_real(m, MEM_WORKSPACE, stream_rows(m) * m->config.dim);
    const real *a;
    zero_walk(&m->zero, m->order, block_lm_head(&m->config));
    layers_forward(m, &a, delta);
    arena_release(&m->arena, mark);
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

/* A model with its data and settings. */
typedef struct {
    Model model;
    ModelOptions options;
    const Settings *settings;
    Dataset train, val;
    Tokenizer *tokenizer; /* of --sample or --eval-task passkey */
    Prompt prompt;
    Task task[TASKS]; /* of --eval-task */
    int tasks;
    Life life;
    RunLog log;
    Trace trace;
    Graphs graphs;
    Peak peak;
    i64 available; /* bytes that check_memory allows a rank */
} Trainer;

/* The first sequence of the list that `step` takes. */
static i64 step_sequence(const Trainer *t, i64 step) {
    return t->life.first_sequence + (step - t->life.first_step) * t->options.batch;
}

/* The documents of a sequence of `d`: what its queries see, as sequence b of the micro-batch. m->whole holds them. */
static void load_documents(Trainer *t, Dataset *d, i64 sequence, i64 b) {
    Model *m = &t->model;
    if (!m->documents) return;
    dataset_read(d, sequence, 0, 1, m->L, m->whole, 1);
    documents_find(m->whole + m->L, m->whole, m->L, m->eot);
    sight_sequence(m, b, m->whole + m->L);
}

/* Is the target of position p of the sequence in m->whole one that --doc-targets leaves out? */
static int target_outside(const Trainer *t, i64 p) {
    return t->options.inside && t->model.whole[p] == t->model.eot;
}

/* Read micro-batch `micro` of the batch that starts at sequence `first` of the list: m->tokens, m->targets. Targets
   equal to --ignore-token, masked, or outside of a document become TOKEN_IGNORED, and so does everything past `end` (a
   last, partial validation batch; else end < 0). Returns how many of this rank's targets count. */
static i64 load_micro_batch(Trainer *t, Dataset *d, i64 first, i64 micro, i64 end) {
    Model *m = &t->model;
    i64 group = (micro * m->mesh.shape.dp + m->mesh.dp_rank) * m->B, counted = 0;
    int32_t *tokens = m->host_tokens, *targets = tokens + stream_rows(m);
    for (i64 b = 0; b < m->B; b++) {
        i64 sequence = first + group + b;
        int past = end >= 0 && sequence >= end;
        sequence = dataset_sequence(d, sequence);
        dataset_column(d, sequence, &m->stream_map, tokens, b, m->B);
        dataset_targets(d, sequence, &m->own_map, 1, t->settings->ignore_token, targets, b, m->B);
        load_documents(t, d, sequence, b);
        for (i64 i = 0; i < m->T_own; i++) {
            int32_t *target = &targets[i * m->B + b];
            if (past || target_outside(t, token_position(&m->own_map, i))) *target = TOKEN_IGNORED;
            counted += *target != TOKEN_IGNORED;
        }
    }
    copy_in(&m->dev, m->tokens, tokens, stream_rows(m) * (i64)sizeof(int32_t));
    copy_in(&m->dev, m->targets, targets, own_rows(m) * (i64)sizeof(int32_t));
    if (m->documents) sight_send(m);
    return counted;
}

/* May a target of training not count? */
static int ignores_targets(const Trainer *t) {
    return t->settings->ignore_token >= 0 || t->train.masked || t->options.inside;
}

/* Targets that count in the whole step, over all ranks and micro-batches. */
static double count_targets(Trainer *t, i64 first) {
    Model *m = &t->model;
    double counted = (double)(own_rows(m) * micro_steps(&t->options));
    if (ignores_targets(t) && device_is_real(&m->dev)) {
        counted = 0;
        for (i64 micro = 0; micro < micro_steps(&t->options); micro++)
            counted += (double)load_micro_batch(t, &t->train, first, micro, -1);
    }
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), &counted, 1);
    return counted;
}

/* Without data, micro-steps are alike from the second on: walk three (a trace wants to see all),
   count the rest as the third. */
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

/* Forward and backward of the whole batch of `step`: the gradient's shards, and through *loss and *norm the mean loss
   over the targets of the step (NaN where none counts) and the global gradient norm. Returns how many count. */
static double step_gradients(Trainer *t, i64 step, double *loss, double *norm) {
    Model *m = &t->model;
    Zero *z = &m->zero;
    i64 first = step_sequence(t, step);
    part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_FORWARD);
    double counted = count_targets(t, first);
    accum scale = (accum)(1.0 / (counted > 0 ? counted : 1));
    zero_fill(&m->dev, z->grad, z->flat * accum_size());
    zero_fill(&m->dev, m->sums, 2 * sizeof(double));
    m->pairs_seen = 0;
    if (m->dev.imagined) {
        imagine_micro_steps(m, scale, micro_steps(&t->options));
    } else {
        for (i64 micro = 0; micro < micro_steps(&t->options); micro++) {
            range_number(&m->dev.ranges, RANGE_MICRO_STEP, "micro-step", micro);
            part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_FORWARD);
            if (!m->dev.plan) load_micro_batch(t, &t->train, first, micro, -1);
            graphs_walk(&t->graphs, m, model_walk, scale);
        }
    }
    range_end(&m->dev.ranges, RANGE_MICRO_STEP);
    part_begin(&m->dev, BLOCK_OTHER, -1, PHASE_OPTIMIZER);
    zero_grads_finish(z);
    double values[5] = {0, 0, 0, 0, m->pairs_seen};
    sum_squares(&m->dev, m->sums + 1, z->grad, z->flat);
    copy_out(&m->dev, values, m->sums, 2 * sizeof(double));
    values[2] = life_wish(&t->life, t->settings, m->mesh.rank);
    values[3] = life_writing(&t->life);
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_OPTIMIZER, WHAT_CONTROL), values, step_sums(m));
    *loss = counted > 0 ? values[0] / counted : NAN; /* nothing to learn is no perfect loss */
    *norm = sqrt(values[1]);
    m->pairs_seen = values[4];
    t->life.wish = values[2], t->life.writing = values[3];
    return counted;
}

/* Where targets are ignored: at least one of the steps must have something to learn. Nearly
   always the first has. Collective. */
static void check_targets(Trainer *t) {
    const Settings *s = t->settings;
    if (!ignores_targets(t)) return;
    i64 steps = i64_min(s->steps, t->train.sequences); /* no more different steps than sequences */
    for (i64 step = 0; step < steps; step++)
        if (count_targets(t, step * t->options.batch) > 0) return;
    FAIL(EVERYONE,
         "every target of --train %s is ignored (by --ignore-token, --doc-targets, or a mask), so there is nothing to "
         "learn",
         s->train);
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

/* Bytes of text behind a target of --val, on average; 0: not known. A mask leaves out what is not as the average. */
static double bytes_a_target(const Trainer *t) {
    const Dataset *d = &t->val;
    if (d->origin.text_bytes > 0 && !d->masked) return d->origin.text_bytes;
    return t->model.config.vocab == TOKENS_ARE_BYTES ? 1 : 0;
}

/* Mean loss over the targets of these batches, and bits per byte, where the bytes are known; NaN, and a note, where no
   target counts. */
static void validate(Trainer *t, Metrics *k) {
    Model *m = &t->model;
    i64 batch = t->options.batch, batches = validation_batches(t);
    double bytes = bytes_a_target(t);
    double values[2] = {0, 0}; /* losses, targets */
    zero_fill(&m->dev, m->sums, sizeof(double));
    for (i64 i = 0; i < batches; i++)
        for (i64 micro = 0; micro < micro_steps(&t->options); micro++) {
            values[1] += (double)load_micro_batch(t, &t->val, i * batch, micro, t->val.sequences);
            model_walk(m, 0);
        }
    copy_out(&m->dev, values, m->sums, sizeof(double));
    comm_sum_control(&m->fabric, &m->mesh.world, tag(BLOCK_OTHER, PHASE_FORWARD, WHAT_CONTROL), values, 2);
    if (values[1] == 0 && m->mesh.rank == 0)
        say("note     no target of --val counts (--ignore-token, masks): no validation loss\n");
    k->val_loss = values[1] > 0 ? values[0] / values[1] : NAN;
    k->val_bits = bytes > 0 ? k->val_loss / (log(2) * bytes) : NAN;
}

/* Walk one step in plan mode: the ledger is filled, the arena's peak known, nothing computed. */
static void trainer_plan(Trainer *t) {
    double loss, norm;
    t->model.dev.plan = 1;
    if (t->model.samples) sample_plan(&t->model, model_prefill), ledger_reset(&t->model.ledger);
    schedule_begin(&t->model.fabric, SCHEDULE_RECORD);
    step_gradients(t, 0, &loss, &norm);
    step_update(t, 0, 1);
    schedule_begin(&t->model.fabric, SCHEDULE_IGNORE);
    t->model.dev.plan = 0;
    model_expect(&t->model, micro_steps(&t->options));
}

/* Bytes of a rank's arena under these options: the plan of one micro-step, of which the others are
   repetitions. Nothing is allocated. */
static i64 options_bytes(const ModelOptions *o) {
    Settings settings;
    FlagsGiven none;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    flags_parse(&settings, &none, 0, NULL);
    t->settings = &settings, t->options = *o;
    t->options.batch = o->shape.dp * o->B;
    model_init(&t->model, &t->options, wire_none(), 1, 0);
    trainer_plan(t);
    i64 bytes = arena_bytes(&t->model.arena) + (DEVICE_IS_HOST ? offload_bytes(&t->model.offload) : 0);
    model_free(&t->model);
    free(t);
    return bytes;
}

/* --selfcheck: what core/selfcheck.h says. */
static void selfcheck(Trainer *t) {
    const Settings *s = t->settings;
    Model *m = &t->model;
    int automatic = strcmp(s->selfcheck, "auto") == 0;
    if (strcmp(s->selfcheck, "off") == 0 || (automatic && m->mesh.shape.world == 1)) return;
    selfcheck_schedule(&m->fabric, m->mesh.world.wire);
    load_micro_batch(t, &t->train, 0, 0, -1);
    selfcheck_labels(m, &t->train, s->ignore_token, t->options.inside);
    selfcheck_tokens(m, model_walk, automatic, selfcheck_seconds(m, flop_per_token(&t->options, 1), t->peak.flops));
}

static int sample_due(const Trainer *t, i64 done) {
    i64 every = t->settings->sample_every;
    return done == t->settings->steps || (every && done % every == 0);
}

/* --sample: after so many steps. */
static void sample(Trainer *t, i64 steps) {
    Model *m = &t->model;
    const Prompt *p = &t->prompt;
    if (!m->samples) return;
    sample_continue(m, model_prefill, t->settings, steps, p->tokens, p->n);
    if (m->mesh.rank == 0) sample_print(p, p->n + t->settings->sample_tokens);
}

/* --eval-only, or --steps 0 --val: judge the model as it is. */
static void judge(Trainer *t) {
    Metrics k;
    memset(&k, 0, sizeof k);
    k.loss = k.grad_norm = k.host_ms = NAN;
    k.mem_bytes = t->model.arena.committed;
    validate(t, &k);
    if (k.val_loss != k.val_loss)
        FAIL(EVERYONE, "--val %s: every target is ignored, so there is no loss to state", t->settings->val);
    if (t->model.mesh.rank != 0) return;
    i64 judged = i64_min(validation_batches(t) * t->options.batch, t->val.sequences);
    printf("val      %.4f over %lld of %lld sequences: perplexity %.4g", k.val_loss, judged,
           t->val.sequences, exp(k.val_loss));
    if (k.val_bits == k.val_bits) printf(", %.4f bits per byte", k.val_bits);
    printf("\n");
    run_metrics(&t->log, &k);
}

/* --eval-task: one after the other. */
static void evaluate_tasks(Trainer *t) {
    Model *m = &t->model;
    FILE *json = t->tasks && t->log.metrics ? run_create(&t->log, "eval.jsonl") : NULL;
    for (int i = 0; i < t->tasks; i++) {
        evaluate(m, model_walk, &t->task[i]);
        if (m->mesh.rank == 0) t->task[i].report(&t->task[i], json), fflush(stdout);
    }
    if (json) run_close(&t->log, json, "eval.jsonl");
}

/* Is the model to be validated after so many steps? */
static int validation_due(const Trainer *t, i64 done) {
    const Settings *s = t->settings;
    return t->val.sequences && (done == s->steps || (s->eval_every && done % s->eval_every == 0));
}

/* A run that goes on may have been stopped between a checkpoint and the validation after it. Collective. */
static void validate_missing(Trainer *t) {
    int missing = t->log.lacks_val;
    wire_tell(t->model.mesh.world.wire, &missing, sizeof missing);
    if (!missing || !validation_due(t, t->life.first_step)) return;
    Metrics k;
    validate(t, &k);
    if (t->model.mesh.rank == 0) run_validation(&t->log, &k);
}

/* One step: gradients, update, measures. */
static void train_step(Trainer *t, i64 step, i64 traced, Metrics *k) {
    const Settings *s = t->settings;
    Model *m = &t->model;
    i64 nth = step - t->life.first_step;
    memset(k, 0, sizeof *k);
    k->step = step, k->lr = learning_rate(s, step);
    ledger_reset(&m->ledger);
    schedule_begin(&m->fabric, SCHEDULE_FOLLOW);
    fabric_exposed_reset(&m->fabric);
    if (nth < traced) trace_step_begin(&t->trace, &m->dev, step);
    m->dev.ranges.on = s->nvtx != 0;
    range_number(&m->dev.ranges, RANGE_STEP, "step", step);
    double begin = seconds_now(), waited = m->dev.waited;
    int learns = step_gradients(t, step, &k->loss, &k->grad_norm) > 0; /* else the weights stay as they are */
    if (nth == 0 && s->dump_grads)
        checkpoint_write_tensors(&m->zero, m->mesh.world.wire, s->dump_grads, m->zero.grad,
                                 accum_size() == 8 ? ST_F64 : ST_F32);
    if (learns && spike_admits(&t->life.spike, m, model_walk, s, k)) step_update(t, step, k->grad_norm);
    device_finish(&m->dev);
    double seconds = seconds_now() - begin;
    range_end(&m->dev.ranges, RANGE_STEP);
    m->dev.ranges.on = 0;
    t->life.longest_step = fmax(t->life.longest_step, seconds);
    if (nth < traced) trace_step_end(&t->trace, &m->dev);
    schedule_begin(&m->fabric, SCHEDULE_IGNORE);
    step_metrics(k, m, &t->options, &t->peak, seconds, m->dev.waited - waited);
    if (nth + 1 == traced) timeline_write(&t->trace, m->mesh.world.wire, s->trace);
}

static void train(Trainer *t) {
    const Settings *s = t->settings;
    Model *m = &t->model;
    Life *l = &t->life;
    int speaks = m->mesh.rank == 0, told = 0;
    i64 step = l->first_step;
    double began = seconds_now();
    Live live;
    live_init(&live);
    if (s->steps > step) check_targets(t), selfcheck(t);
    else if (s->steps == 0 && t->val.sequences) judge(t);
    if (s->steps == 0) evaluate_tasks(t), sample(t, 0);
    if (l->resumes) validate_missing(t);
    i64 traced = s->trace ? i64_min(TRACE_STEPS, s->steps - step) : 0;
    if (traced > 0) trace_init(&t->trace, m->mesh.shape.world, &m->arena.now.used);
    for (; step < s->steps && !told; step++) {
        Metrics k;
        i64 done = step + 1;
        train_step(t, step, traced, &k);
        told = l->wish > 0;
        if (step == l->first_step && !l->resume.continues && speaks) run_write_ledger(&t->log, &m->ledger);
        if (speaks) run_metrics(&t->log, &k); /* before the checkpoint: a run that goes on finds the line */
        life_save(l, s, &m->zero, m->mesh.world.wire, done, step_sequence(t, done), told);
        if (speaks && l->lost > 0) run_save_ms(&t->log, 1e3 * l->lost);
        if (validation_due(t, done) && (!told || done == s->steps)) validate(t, &k);
        if (speaks) run_validation(&t->log, &k);
        if (sample_due(t, done) && (!told || done == s->steps)) sample(t, done);
        if (!speaks) continue;
        double eta = (seconds_now() - began) / (double)(done - l->first_step) * (double)(s->steps - done);
        int last = told || done == s->steps;
        if (last || done % s->log_every == 0 || isfinite(k.val_loss)) print_step(&live, &k, s->steps, eta, last);
    }
    if (speaks) run_finish(&t->log);
    life_end(l, s, step, told, m->mesh.rank);
}

/* ---- from flags to a trainer ------------------------------------------------------------------------------------- */

static inline void print_help(const char *what, const char *usage) {
    printf("%s\n\nusage: %s\n\n", what, usage);
    flags_help(stdout);
    printf("\nPresets of --model\n");
    for (int i = 0; i < COUNT_OF(PRESETS); i++) {
        Config c = PRESETS[i].config;
        config_check(&c, PRESETS[i].name);
        printf("  %-14s %9.2fM parameters: %s, %lld layers, d %lld, %lld heads of %lld, %lld KV heads, i %lld, vocab "
               "%lld\n",
               PRESETS[i].name, (double)config_parameters(&c) / 1e6, arch_name(c.arch), c.layers, c.dim, c.heads,
               c.head_dim, c.kv_heads, c.ffn, c.vocab);
    }
    printf("\nSchemes of --sp\n");
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) printf("  %-10s %s\n", SCHEMES[i]->name, SCHEMES[i]->help);
    printf("\nContexts of --context\n");
    for (int i = 0; i < COUNT_OF(CONTEXTS); i++) printf("  %-10s %s\n", CONTEXTS[i]->name, CONTEXTS[i]->help);
}

static void print_model(const Trainer *t) {
    const Config *c = &t->options.config;
    char size[32] = "";
    if (attention_width(c) != c->dim) snprintf(size, sizeof size, " of %lld", c->head_dim);
    printf("model    %s, %lld layers, d %lld, %lld heads%s, %lld KV heads, i %lld, vocab %lld: %.2fM parameters, %s\n",
           arch_name(c->arch), c->layers, c->dim, c->heads, size, c->kv_heads,
           c->ffn, c->vocab, (double)config_parameters(c) / 1e6, REAL_NAME);
}

/* What sequences of L tokens mean to the model's positions, where that is not plain. */
static void print_positions(const Config *c, i64 L) {
    const RopeScaling *r = &c->rope_scaling;
    if (rope_follows_length(r))
        printf("note     rotary embedding by %s scaling: fixed at sequences of %lld tokens, in validation, too\n",
               ROPE_NAMES[r->kind], L);
    if (!(c->has & HAS_POSITIONS) && r->kind != ROPE_DYNAMIC && L > c->max_pos)
        printf("note     sequences of %lld tokens go past the model's %lld positions; --rope-scaling yarn stretches "
               "them\n",
               L, c->max_pos);
}

/* Documents and windows, where there are any. */
static void print_masks(const Trainer *t) {
    const Config *c = &t->options.config;
    i64 windowed = sight_layers(c, t->options.L, SIGHT_WINDOW);
    if (!t->options.documents && !windowed) return;
    printf("masks    ");
    if (windowed) printf("a query sees %lld keys in %lld of %lld layers", c->window, windowed, c->layers);
    if (windowed && t->options.documents) printf("; ");
    if (t->options.documents) {
        printf("documents see themselves");
        if (t->options.eot >= 0) printf(", and end at token %lld", t->options.eot);
        else if (t->options.doc_length) printf(", %lld tokens each", t->options.doc_length);
        if (t->options.restart) printf("; positions restart");
        if (t->options.inside) printf("; first tokens are no targets");
    }
    printf("\n");
}

static void print_mesh(const Trainer *t) {
    const Config *c = &t->options.config;
    const MeshShape *shape = &t->options.shape;
    char ring[64] = "";
    if (shape->ring > 1) snprintf(ring, sizeof ring, " %s", t->settings->ring_layout);
    if (shape->ring > 1 && t->options.context != CONTEXTS[0])
        snprintf(ring + strlen(ring), sizeof ring - strlen(ring), " by %s", t->options.context->name);
    if (t->model.mesh.queries_travel)
        snprintf(ring + strlen(ring), sizeof ring - strlen(ring), ", queries back");
    printf("mesh     %s on %lld ranks: dp %lld x ring %lld%s x head %lld\n", t->options.scheme->name, shape->world,
           shape->dp, shape->ring, ring, shape->head);
    printf("batch    %lld sequences of %lld tokens a step, %lld micro-steps of %lld a group\n", t->options.batch,
           t->options.L, micro_steps(&t->options), t->options.B);
    print_positions(c, t->options.L);
    print_masks(t);
}

static void print_data(const Trainer *t) {
    if (t->train.shards) dataset_print(&t->train, "train");
    if (t->val.shards) dataset_print(&t->val, "val");
}

static void print_device(const Trainer *t) {
    const DevicePlace *p = &t->options.place;
    printf("device   ");
    device_print(p);
    printf(", peak %.1f GFLOP/s a rank%s\n", t->peak.flops / 1e9,
           t->settings->peak_tflops > 0 ? " (given)" : " (" PEAK_ORIGIN ")");
    device_note(p);
    if (DEVICE_IS_HOST && t->options.offload)
        printf("note     --offload saves nothing here: the device's memory is the host's\n");
    fflush(stdout);
}

/* Print what the plan found; for any world, from one process. */
static void print_plan(Trainer *t) {
    double flop = flop_per_token(&t->options, 1);
    printf("work     %.6e FLOP a token, %.6e a step: 6 a parameter and causal attention\n", flop,
           flop * (double)(t->options.batch * t->options.L));
    arena_print(stdout, &t->model.arena);
    if (offload_bytes(&t->model.offload))
        printf("offload  %.3f MB besides in the host's memory, for each of its ranks\n",
               (double)offload_bytes(&t->model.offload) / 1e6);
    device_print_reserve(&t->options.place, t->settings->comm,
                         mesh_links(t->options.shape, t->options.config.kv_heads));
    ledger_print(stdout, &t->model.ledger);
}

/* Weights: a checkpoint's, with the moments that go on from them; or drawn from the seed, or read from --model DIR. */
static void load_weights(Trainer *t) {
    Model *m = &t->model;
    if (t->life.resumes) life_load(&t->life, t->settings, &t->options.config, &m->zero, m->mesh.world.wire);
    else if (preset_find(t->settings->model)) zero_initialise(&m->zero, t->settings->seed);
    else checkpoint_load(&m->zero, t->settings->model, m->mesh.rank);
}

/* The token that ends a document: --eot, or what the dataset.json of the data says. */
static void learn_eot(Trainer *t) {
    const Settings *s = t->settings;
    const Dataset *of[] = {&t->train, &t->val};
    i64 vocab = t->options.config.vocab, eot = s->eot;
    for (int i = 0; i < 2 && s->eot < 0; i++) {
        const DataOrigin *o = &of[i]->origin;
        if (!of[i]->shards) continue;
        if (!o->listed || o->eot < 0)
            FAIL(EVERYONE, "--doc-mask: no dataset.json beside the shards of --%s says which token ends a document; "
                 "--eot ID does", i ? "val" : "train");
        if (eot >= 0 && o->eot != eot)
            FAIL(EVERYONE, "--doc-mask: documents of --train end at token %lld, of --val at %lld; --eot ID decides",
                 eot, o->eot);
        eot = o->eot;
    }
    if (eot < 0) FAIL(EVERYONE, "--doc-mask without data needs --eot ID, the token that ends a document");
    if (eot >= vocab)
        FAIL(EVERYONE, "--eot %lld is no token of this model; its vocabulary is 0 to %lld", eot, vocab - 1);
    t->options.eot = eot;
}

static void open_data(Trainer *t) {
    const Settings *s = t->settings;
    i64 vocab = t->options.config.vocab;
    if (s->ignore_token >= vocab)
        FAIL(EVERYONE, "--ignore-token %lld is no token of this model; its vocabulary is 0 to %lld", s->ignore_token,
             vocab - 1);
    if (!s->train && (s->steps > 0 || (!s->val && !t->options.samples && !s->eval_task)))
        FAIL(EVERYONE, "--train is missing: a glob of token shards, e.g. --train \"data/train_*.bin\"");
    if (s->train)
        dataset_open(&t->train, s->train, "train", s->seq_len, vocab), dataset_describe(&t->train, "train", vocab);
    t->train.shuffled = strcmp(s->shuffle, "on") == 0, t->train.seed = s->seed;
    if (s->val) dataset_open(&t->val, s->val, "val", s->seq_len, vocab), dataset_describe(&t->val, "val", vocab);
    if (t->options.documents) learn_eot(t);
    char dir[PATH_MAX];
    dataset_dir(dir, s->train ? &t->train : &t->val);
    if (s->sample || s->sample_file || task_asked(s->eval_task, "passkey"))
        t->tokenizer = prompt_tokenizer(life_model(&t->life, s), dir, vocab);
    if (t->options.samples) t->prompt = prompt_open(s, &t->options.config, t->options.L, t->tokenizer);
    i64 sequences = i64_min(validation_batches(t) * t->options.batch, t->val.sequences);
    const char *list = s->eval_task;
    for (int i = 0; i < TASKS; i++)
        if (task_asked(list, TASK_NAMES[i]))
            t->task[t->tasks++] = task_open(TASK_NAMES[i], s, &t->options.config, &t->val, sequences, t->tokenizer);
}

/* Flags that would be ignored beside others: nothing requested is dropped in silence. */
static void check_flags(const Settings *s, const FlagsGiven *given) {
    if (s->world && !s->dry_run) FAIL(EVERYONE, "--world needs --dry-run; the ranks of a real run are mpirun's -np");
    static const char *const of_check[] = {"check-data", "seq-len", "threads", "model", "arch", "layers", "dim",
                                           "heads", "kv-heads", "ffn", "vocab", "max-pos", "rope-theta", "tied-head"};
    for (int i = 0; s->check_data && i < COUNT_OF(FLAGS); i++) {
        int k = 0;
        while (k < COUNT_OF(of_check) && strcmp(of_check[k], FLAGS[i].name) != 0) k++;
        if (given->given[i] && k == COUNT_OF(of_check))
            FAIL(EVERYONE, "--check-data looks at shards and stops: --%s has no effect beside it", FLAGS[i].name);
    }
    if (s->init_only && !s->out) FAIL(EVERYONE, "--init-only needs --out DIR, where the weights go");
    if (s->init_only && s->dry_run)
        FAIL(EVERYONE, "--init-only and --dry-run exclude each other; a dry run writes nothing");
    if ((s->dump_grads || s->trace || s->nvtx) && (s->init_only || s->dry_run || s->steps == 0))
        FAIL(EVERYONE, "--%s needs a training step: no --init-only, --dry-run or --steps 0",
             s->dump_grads ? "dump-grads" : s->trace ? "trace" : "nvtx");
    if (s->nvtx && !HAS_RANGES)
        FAIL(EVERYONE, "--nvtx: nvtx3/nvToolsExt.h was not there when this program was built; install the CUDA "
             "toolkit's NVTX, then make -B train_gpt");
    if ((flag_given(given, "eval-every") || flag_given(given, "eval-batches")) && !s->val && !s->dry_run)
        FAIL(EVERYONE, "--eval-every and --eval-batches need --val, the shards to validate on");
    int prompts = (s->sample != NULL) + (s->sample_file != NULL) + (s->sample_ids != NULL), samples = prompts > 0;
    const char *of_samples[] = {"sample-tokens", "sample-every", "temperature", "top-p"};
    if (s->eval_only && !s->val && !samples && !s->eval_task && !s->dry_run)
        FAIL(EVERYONE, "--eval-only needs --val, the shards to judge the model on, or --eval-task, or --sample");
    if (s->eval_task && !s->eval_only) FAIL(EVERYONE, "--eval-task judges a model as it is: it needs --eval-only");
    if (flag_given(given, "eval-trials") && !task_asked(s->eval_task, "copy") && !task_asked(s->eval_task, "passkey"))
        FAIL(EVERYONE, "--eval-trials needs --eval-task copy or passkey");
    if (s->eval_file && !task_asked(s->eval_task, "hellaswag"))
        FAIL(EVERYONE, "--eval-file needs --eval-task hellaswag");
    if (prompts > 1) FAIL(EVERYONE, "--sample, --sample-file and --sample-ids exclude each other");
    for (int i = 0; i < COUNT_OF(of_samples); i++)
        if (!samples && flag_given(given, of_samples[i]))
            FAIL(EVERYONE, "--%s needs --sample or --sample-file", of_samples[i]);
    if (samples && s->init_only) FAIL(EVERYONE, "--init-only writes weights and stops; --sample asks for more");
    check_documents(given, s->dry_run != 0);
    schedule_check(s, given);
    life_check_flags(s, given);
}

/* The run directory: a new one, or that of the checkpoint goes on. Rank 0. */
static void open_run(Trainer *t) {
    const Settings *s = t->settings;
    const MeshShape *shape = &t->options.shape;
    Life *l = &t->life;
    cJSON *config =
        run_config_json(s, &t->options.config, shape->world, shape->head, t->options.place.threads, REAL_NAME);
    memory_json(config, &t->model.arena, t->available);
    if (l->resumes) {
        printf("resume   %s: %lld of %lld steps are done, read in %.2f s\n", l->resume.dir, l->first_step, s->steps,
               l->reading);
        if (l->changes.n) printf("note     --resume-with-changes: %s\n", l->changes.text);
        fflush(stdout);
    }
    if (l->resume.continues) run_continue(&t->log, s->out, l->first_step);
    else run_open(&t->log, s->out, cJSON_Duplicate(config, 1));
    if (l->resumes && s->out) run_write_resume(&t->log, l->first_step, l->resume.dir, l->changes.text, config);
    else cJSON_Delete(config);
    if (t->log.metrics) l->saver.metrics = fileno(t->log.metrics);
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

/* --check-data: against the vocabulary of a model, where one is named. One rank. */
static void look_at_data(Trainer *t, const Settings *s, const FlagsGiven *given) {
    i64 vocab = VOCAB_MOST;
    if (model_is_given(given)) options_model(&t->options, s), vocab = t->options.config.vocab;
    check_data(s->check_data, s->seq_len, vocab, device_place(0, 1, (int)s->threads).threads);
}

static inline void run(Trainer *t, Settings *s, const FlagsGiven *given, Wire world) {
    int local, locals, rank = wire_rank(world);
    wire_watch(world, s->comm_timeout);
    wire_local(world, &local, &locals);
    DevicePlace place = device_place(local, locals, (int)s->threads);
    t->settings = s;
    if (s->eval_only) s->steps = 0;
    check_flags(s, given);
    if (s->check_data && rank == 0) look_at_data(t, s, given);
    if (s->check_data) return;
    if (s->dump_grads && rank == 0) check_writable(s, "dump-grads", s->dump_grads);
    if (s->trace && rank == 0)
        check_writable(s, "trace", s->trace), check_apart("trace", s->trace, "dump-grads", s->dump_grads);
    if (!s->dry_run) device_open(&place), place_share(&place, world), device_check_comm(&place, s->comm);
    life_begin(&t->life, s, given, world, place.threads);
    const Scheme *scheme = scheme_find(s->sp);
    i64 ranks = s->world ? s->world : wire_size(world);
    options_from_flags(&t->options, scheme, context_find(s->context, scheme), s, given, ranks, place);
    options_check(&t->options);
    if (!s->dry_run && !s->init_only) {
        open_data(t);
        life_fits(&t->life, s, &t->options.config, &t->train, rank);
        t->peak = peak_of(s, &place);
    }
    if (s->dry_run && rank != 0) return;
    model_init(&t->model, &t->options, world, s->dry_run != 0, rank);
    trainer_plan(t);
    if (t->model.arena.peak.used == ARENA_MOST)
        FAIL(EVERYONE,
             "a rank of this run would need more than 1e18 bytes; lower --seq-len, --micro-batch or the model's sizes");
    if (rank == 0 && !s->init_only) print_model(t), print_mesh(t);
    if (rank == 0 && !s->init_only && !s->dry_run) print_data(t), print_device(t);
    if (s->dry_run) {
        print_plan(t);
    } else {
        mesh_try(&t->model.mesh, &t->model.fabric);
        t->available = check_memory(&t->model, &t->options, options_bytes);
        arena_commit(&t->model.arena);
        model_tables(&t->model);
        load_weights(t);
        wire_barrier(world); /* nothing is written before every rank has come this far */
        if (rank == 0 && s->init_only) make_directories(s->out);
        if (rank == 0 && !s->init_only && s->out && !t->life.resume.continues) run_check_new(s->out);
        if (t->life.saves) life_try_place(&t->life, world);
        if (s->steps > 0 && !s->init_only) graphs_choose(&t->graphs, &t->model, s, !ignores_targets(t), rank == 0);
        if (rank == 0 && !s->init_only) open_run(t);
        if (s->init_only) checkpoint_write(&t->model.zero, world, s->out);
        else train(t);
    }
    graphs_forget(&t->graphs);
    model_free(&t->model);
    life_free(&t->life);
    trace_free(&t->trace);
    if (t->train.shards) dataset_close(&t->train);
    if (t->val.shards) dataset_close(&t->val);
    for (int i = 0; i < t->tasks; i++) task_close(&t->task[i]);
    if (t->tokenizer) tokenizer_close(t->tokenizer);
    free(t->prompt.tokens);
}

#ifndef ODYSSEUS_TEST
int main(int argc, char **argv) {
    Settings settings;
    FlagsGiven given;
    Wire world = wire_start(&argc, &argv);
    flags_parse(&settings, &given, argc, argv);
    if (settings.help) {
        if (wire_rank(world) == 0)
            print_help(
                "train_gpt - trains GPT-2, Llama and their kin on long sequences, under the sequence-parallel scheme "
                "that --sp names (" REAL_NAME " build)",
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

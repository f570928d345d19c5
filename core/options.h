/* options.h - what to build: flags become a model, a mesh and a scheme, and are refused where that cannot run.

   Settings (flags.h)  ->  ModelOptions: config of a preset or a directory, scheme, mesh, layout, L, B, batch
   options_refuse      why these cannot run, and the nearest that can                                                 */
#ifndef ODYSSEUS_OPTIONS_H
#define ODYSSEUS_OPTIONS_H

#include "checkpoint.h"
#include "scheme.h"

typedef struct {
    Config config;
    const Scheme *scheme;
    const Context *context; /* NULL: as without --context */
    MeshShape shape;
    RingLayout layout;
    i64 L, B, batch; /* sequence length; sequences of a micro-batch and of a whole step */
    i64 gather_tokens; /* in a piece of kv, where the context takes it in pieces; 0: its own choice */
    const char *ring_backward; /* kv, q or auto; NULL: kv */
    int recompute, overlap, samples; /* RECOMPUTE_; samples: text will be asked of it */
    int offload;                     /* what layers keep waits in host memory */
    i64 layer_inputs;                /* of --layer-inputs, 0 as 2 */
    i64 tile_rows, head_groups;      /* of --tile-rows, 0: all at once; of --head-groups, 0 as 1 */
    int documents, restart, inside;  /* --doc-mask; learned positions restart; first tokens are no targets */
    i64 eot;                /* the token that ends a document; -1: --doc-mask is off, or it is not known (yet) */
    i64 doc_length;         /* tokens of a document where there are no data; 0: one document */
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

/* Why --head-groups cannot be: 1 and the reason, or 0. KV heads that several groups read would travel a ring once for
   each. */
static inline int options_refuse_groups(const ModelOptions *o, char *why, size_t size) {
    i64 G = i64_max(1, o->head_groups), H = o->shape.head, heads = o->config.heads / H;
    i64 kv = kv_heads_local(&o->config, H);
    int shared = o->shape.ring == 1, works = heads % G == 0 && (kv % G == 0 || (shared && G % kv == 0));
    if (G <= 1 || (works && o->scheme->takes_head_groups && H > 1 && !o->samples)) return 0;
    if (!o->scheme->takes_head_groups || H == 1)
        snprintf(why, size, "--head-groups %lld: %s%s exchanges no heads by all-to-all; leave it out", G,
                 o->scheme->takes_head_groups ? "" : "--sp ",
                 o->scheme->takes_head_groups ? "a head axis of 1" : o->scheme->name);
    else if (o->samples)
        snprintf(why, size, "--head-groups %lld leaves no cache to sample from; leave one of them out", G);
    else {
        i64 below = G - 1;
        while (below > 1 && (heads % below != 0 || (kv % below != 0 && (!shared || below % kv != 0)))) below--;
        snprintf(why, size,
                 "--head-groups %lld cannot group the %lld query and %lld KV heads of a rank%s; the nearest below that "
                 "can: %lld",
                 G, heads, kv, shared ? "" : " (with a ring, each group needs KV heads of its own)", below);
    }
    return 1;
}

/* Why these options cannot run, with what nearest to them can: 1 and a reason, or 0. */
static inline int options_refuse(const ModelOptions *o, char *why, size_t size) {
    const Config *c = &o->config;
    if ((double)o->L * (double)o->B / (double)(o->shape.ring * o->shape.head) *
            (double)i64_max(i64_max(c->dim, attention_width(c)), 2 * c->ffn) >
        1e15) {
        snprintf(why, size, "--seq-len %lld x --micro-batch %lld: a rank would hold more than 1e15 numbers; lower one",
                 o->L, o->B);
        return 1;
    }
    i64 unit = sequence_unit(o), group = o->shape.dp * o->B;
    char reason[512];
    if (o->scheme->refuses(c, &o->shape, reason, sizeof reason)) {
        snprintf(why, size, "--sp %s: %s", o->scheme->name, reason);
    } else if (options_refuse_groups(o, why, size)) {
        return 1;
    } else if (o->layer_inputs == 1 && !o->recompute) {
        snprintf(why, size, "--layer-inputs 1 needs --recompute attention-kept or full; without, a layer keeps all");
    } else if (o->L % unit != 0 && o->L > unit) {
        snprintf(why, size,
                 "--seq-len %lld does not divide over ring %lld x head %lld; the nearest that do are %lld and %lld",
                 o->L, o->shape.ring, o->shape.head, o->L / unit * unit, round_up(o->L, unit));
    } else if (o->L % unit != 0) {
        snprintf(why, size, "--seq-len %lld does not divide over ring %lld x head %lld; the shortest that does is %lld",
                 o->L, o->shape.ring, o->shape.head, unit);
    } else if (o->batch % group != 0) {
        i64 below = o->batch / group * group;
        int n =
            snprintf(why, size,
                     "--batch %lld is not a multiple of dp %lld x micro-batch %lld; the nearest that are: ", o->batch,
                     o->shape.dp, o->B);
        if (below) n += snprintf(why + n, size - (size_t)n, "%lld and ", below);
        snprintf(why + n, size - (size_t)n, "%lld", below + group);
    } else if (device_refuses_heads(c->head_dim)) {
        snprintf(why, size, "heads of %lld (--head-dim, or --dim / --heads): %s", c->head_dim,
                 device_refuses_heads(c->head_dim));
    } else if (c->has & HAS_POSITIONS && o->L > c->max_pos) {
        snprintf(why, size,
                 "--seq-len %lld is longer than the %lld positions gpt2 has learned; lower it or raise --max-pos", o->L,
                 c->max_pos);
    } else if ((o->documents || (c->window && c->window < o->L)) && o->L > INT32_MAX) {
        snprintf(why, size, "--seq-len %lld: with --doc-mask or windows, a sequence has up to %d tokens", o->L,
                 INT32_MAX);
    } else {
        return 0;
    }
    return 1;
}

/* The model of --model: a preset with what flags override, or that of a directory. */
static inline void options_model(ModelOptions *o, const Settings *s) {
    const Preset *preset = preset_find(s->model);
    if (preset) {
        o->config = preset->config;
        config_override(&o->config, s);
        config_extend(&o->config, s);
        config_window(&o->config, s);
    } else if (path_is_directory(s->model)) {
        const char *overrides[] = {"arch", "layers", "dim", "heads", "kv-heads", "head-dim", "ffn", "vocab", "max-pos",
                                   "rope-theta", "tied-head"};
        const i64 given[] = {s->arch != NULL, s->layers, s->dim, s->heads, s->kv_heads, s->head_dim, s->ffn, s->vocab,
                             s->max_pos, s->rope_theta > 0, s->tied_head != NULL};
        for (int i = 0; i < COUNT_OF(overrides); i++)
            if (given[i])
                FAIL(EVERYONE, "--%s cannot change the model in %s; it overrides presets only", overrides[i], s->model);
        checkpoint_read_config(&o->config, s->model);
        config_extend(&o->config, s);
        config_window(&o->config, s);
    } else {
        char names[512] = "";
        for (int i = 0; i < COUNT_OF(PRESETS); i++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", PRESETS[i].name);
        FAIL(EVERYONE, "--model %s: neither a preset (%s) nor a directory; %s", s->model, names,
             checkpoint_no_directory(s->model).text);
    }
    config_check(&o->config, preset ? "--dim, --heads, --kv-heads, ..." : s->model); /* flags have changed it */
}

/* The mesh that flags and world ask for: the head axis takes what dp and ring leave. */
static inline void options_mesh(ModelOptions *o, Settings *s, const FlagsGiven *given, i64 world) {
    if (world % s->dp != 0)
        FAIL(EVERYONE, "%lld ranks do not divide over --dp %lld; use a divisor of %lld", world, s->dp, world);
    if (o->scheme->ring_takes_all && !flag_given(given, "ring")) s->ring = world / s->dp;
    if (world / s->dp % s->ring != 0)
        FAIL(EVERYONE,
             "%lld ranks / --dp %lld leaves %lld, which does not divide over --ring %lld; use a divisor of it", world,
             s->dp, world / s->dp, s->ring);
    o->shape.world = world, o->shape.dp = s->dp, o->shape.ring = s->ring, o->shape.head = world / s->dp / s->ring;
}

/* RECOMPUTE_ by its name, one of the flag's choices. */
static const char *const RECOMPUTE_NAMES[] = {"none", "full", "attention-kept"};
static inline int recompute_find(const char *name) {
    int i = 0;
    while (strcmp(RECOMPUTE_NAMES[i], name) != 0) i++;
    return i;
}

/* --tile-rows N|auto */
enum { TILE_AUTO = -1 };
static inline i64 tile_rows_find(const char *text) {
    char *end = NULL;
    if (!text) return 0;
    if (strcmp(text, "auto") == 0) return TILE_AUTO;
    errno = 0;
    i64 rows = strtoll(text, &end, 10);
    if (end == text || *end || errno || rows < 1 || rows > (i64)1e12)
        FAIL(EVERYONE, "--tile-rows %s: must be auto, or a whole number from 1 to 1000000000000", text);
    return rows;
}

/* Everything about the run that does not need data or memory; whether that can run, options_check says. `world`: ranks.
   Where the scheme takes all of them, s->ring becomes what the run has, and s->context likewise. */
static inline void options_from_flags(ModelOptions *o, const Scheme *scheme, const Context *context, Settings *s,
                                      const FlagsGiven *given, i64 world, DevicePlace place) {
    memset(o, 0, sizeof *o);
    o->scheme = scheme, o->context = context, s->context = context->name;
    o->gather_tokens = s->gather_tokens, o->ring_backward = s->ring_backward;
    if (flag_given(given, "ring-backward") && !context->queries_travel && !s->plan && !s->max_seq)
        FAIL(EVERYONE, "--ring-backward needs --context ring; in the context %s no queries travel", context->name);
    if (o->gather_tokens && !context->piece && !s->plan && !s->max_seq)
        FAIL(EVERYONE, "--gather-tokens needs --context allgather; the context %s does not gather", context->name);
    options_model(o, s);
    options_mesh(o, s, given, world);
    o->layout = ring_layout_find(s->ring_layout);
    o->L = s->seq_len, o->B = s->micro_batch, o->batch = s->batch;
    if (s->init_only) { /* the same numbers on every mesh, so take the one that fits every world */
        o->shape.dp = world, o->shape.ring = o->shape.head = 1;
        o->L = o->B = 1, o->batch = world;
    }
    o->recompute = recompute_find(s->recompute);
    o->offload = strcmp(s->offload, "inputs") == 0;
    o->tile_rows = tile_rows_find(s->tile_rows), o->head_groups = s->head_groups, o->layer_inputs = s->layer_inputs;
    o->samples = s->sample || s->sample_file || s->sample_ids;
    o->documents = s->doc_mask != 0, o->doc_length = s->doc_length, o->eot = o->documents ? s->eot : -1;
    o->restart = o->documents && o->config.has & HAS_POSITIONS && strcmp(s->doc_positions, "restart") == 0;
    o->inside = o->documents && strcmp(s->doc_targets, "inside") == 0;
    o->overlap = strcmp(s->overlap, "on") == 0;
    o->comm = s->comm;
    o->grad_wire = s->grad_comm && strcmp(s->grad_comm, "bf16") == 0 ? DTYPE_REAL : DTYPE_ACCUM;
    o->place = place;
}

/* Flags of --doc-mask that would have no effect. */
static inline void check_documents(const FlagsGiven *given, int no_data) {
    static const char *const of_documents[] = {"eot", "doc-positions", "doc-targets", "doc-length"};
    for (int i = 0; i < COUNT_OF(of_documents); i++)
        if (flag_given(given, of_documents[i]) && !flag_given(given, "doc-mask"))
            FAIL(EVERYONE, "--%s needs --doc-mask", of_documents[i]);
    if (flag_given(given, "doc-length") && !no_data)
        FAIL(EVERYONE, "--doc-length is for --dry-run and the simulator; with data, documents are as long as they are");
}

static inline void options_check(const ModelOptions *o) {
    char why[1024];
    if (options_refuse(o, why, sizeof why)) FAIL(EVERYONE, "%s", why);
}

#endif

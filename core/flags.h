/* flags.h - the command line: one table row per flag drives parser, --help, the start-up printout and config.json.

   A row names the flag, its field in Settings, type, default, range and help. What the user gave is never changed:
   a bad value, an unknown or a repeated flag stops the program with one line. */
#ifndef ODYSSEUS_FLAGS_H
#define ODYSSEUS_FLAGS_H

#include "../kernels/flags.h"
#include "util.h"

typedef struct {
    /* model */
    const char *model, *arch, *tied_head, *rope_scaling;
    i64 layers, dim, heads, kv_heads, head_dim, ffn, vocab, max_pos, window;
    double rope_theta, rope_factor;
    /* data */
    const char *train, *val, *check_data, *shuffle, *sample, *sample_file, *sample_ids, *eval_task, *eval_file;
    const char *doc_positions, *doc_targets;
    i64 seq_len, batch, micro_batch, ignore_token, head_groups, layer_inputs, doc_mask, eot, doc_length;
    /* parallelism */
    const char *sp, *context, *ring_backward, *ring_layout, *overlap, *comm, *grad_comm, *graphs;
    i64 dp, ring, gather_tokens, threads, nvtx;
    double comm_timeout;
    /* training */
    i64 steps, warmup, decay_steps, seed, eval_every, eval_batches, eval_only, eval_trials, sample_tokens, sample_every,
        log_every;
    double lr, min_lr, weight_decay, beta1, beta2, eps, grad_clip, spike_sigma, temperature, top_p;
    const char *schedule, *on_spike, *recompute, *tile_rows, *offload, *selfcheck;
    /* output */
    const char *out, *dump_grads, *trace;
    double peak_tflops;
    i64 init_only, dry_run, world, help;
    /* checkpoints */
    const char *save, *resume;
    const char *save_async;
    i64 save_every, keep, keep_every, resume_with_changes;
    double max_hours;
    /* simulator */
    const char *cluster, *dtype, *json, *html;
    i64 plan, max_seq, ladder, calibrate;
} Settings;

/* FLAG_OPTIONAL: a text that may be left out, then "", or a choice, then "on" */
typedef enum { FLAG_TEXT, FLAG_OPTIONAL, FLAG_CHOICE, FLAG_INT, FLAG_REAL, FLAG_SWITCH } FlagType;

typedef struct {
    const char *group; /* heading in --help; NULL: same as the row above */
    const char *name;
    FlagType type;
    size_t field;         /* offset in Settings */
    const char *fallback; /* default, as the user would write it; NULL: none */
    double min, max;      /* of numbers, both allowed */
    const char *choices;  /* of FLAG_CHOICE: "a|b|c" */
    const char *help;
} Flag;

#define AT(field) offsetof(Settings, field)
#define COUNT_MAX 9e15 /* integers up to here are exact in a double and in i64 */

static const Flag FLAGS[] = {
    {"Model", "model", FLAG_TEXT, AT(model), "tiny-llama", 0, 0, NULL,
     "preset (listed below) or a Hugging Face directory (config.json, model*.safetensors)"},
    {NULL, "arch", FLAG_CHOICE, AT(arch), NULL, 0, 0, "gpt2|llama|mistral|qwen2|qwen3|smollm3|phi3",
     "architecture; default: the preset's"},
    {NULL, "layers", FLAG_INT, AT(layers), NULL, 1, 100000, NULL,
     "transformer layers; this and what follows here, to --tied-head, override the preset"},
    {NULL, "dim", FLAG_INT, AT(dim), NULL, 1, 1 << 20, NULL, "model width d"},
    {NULL, "heads", FLAG_INT, AT(heads), NULL, 1, 1 << 16, NULL, "query heads"},
    {NULL, "kv-heads", FLAG_INT, AT(kv_heads), NULL, 1, 1 << 16, NULL,
     "key/value heads; default: the preset's, or --heads where that was overridden"},
    {NULL, "head-dim", FLAG_INT, AT(head_dim), NULL, 1, 1 << 16, NULL,
     "width of a head; default: the preset's, or dim / heads"},
    {NULL, "ffn", FLAG_INT, AT(ffn), NULL, 1, 1 << 22, NULL, "MLP width i"},
    {NULL, "vocab", FLAG_INT, AT(vocab), NULL, 2, 1 << 30, NULL, "vocabulary size"},
    {NULL, "max-pos", FLAG_INT, AT(max_pos), NULL, 1, COUNT_MAX, NULL,
     "longest position; learned ones (gpt2) cannot go past it, rotary ones can"},
    {NULL, "rope-theta", FLAG_REAL, AT(rope_theta), NULL, 1, 1e12, NULL, "base of the rotary embedding"},
    {NULL, "tied-head", FLAG_CHOICE, AT(tied_head), NULL, 0, 0, "on|off",
     "LM head shares the token embedding; default: the preset's"},
    {NULL, "rope-scaling", FLAG_CHOICE, AT(rope_scaling), NULL, 0, 0, "linear|dynamic|yarn",
     "stretch the rotary embedding of a preset or a directory while training it on; checkpoints then say so"},
    {NULL, "rope-factor", FLAG_REAL, AT(rope_factor), NULL, 1, 1e9, NULL,
     "how many times longer --rope-scaling makes the longest position"},
    {NULL, "window", FLAG_INT, AT(window), NULL, 1, COUNT_MAX, NULL,
     "keys that a query sees, itself included (sliding_window), in the layers that have a window, or in all"},

    {"Data", "train", FLAG_TEXT, AT(train), NULL, 0, 0, NULL,
     "token shards to train on, a glob in quotes (llm.c's formats, uint16 or uint32)"},
    {NULL, "val", FLAG_TEXT, AT(val), NULL, 0, 0, NULL, "token shards to validate on"},
    {NULL, "check-data", FLAG_TEXT, AT(check_data), NULL, 0, 0, NULL,
     "look at every token of these shards, hold them against dataset.json, print the first sequences, and stop"},
    {NULL, "shuffle", FLAG_OPTIONAL, AT(shuffle), "off", 0, 0, "off|on",
     "the sequences to train on in another order every time through the list, from --seed"},
    {NULL, "seq-len", FLAG_INT, AT(seq_len), "256", 1, 1e12, NULL, "tokens in a sequence, L, over all ranks"},
    {NULL, "batch", FLAG_INT, AT(batch), "4", 1, 1e9, NULL, "sequences in a step, over all ranks and micro-steps"},
    {NULL, "micro-batch", FLAG_INT, AT(micro_batch), "1", 1, 1e6, NULL,
     "sequences that a data-parallel group runs at once"},
    {NULL, "ignore-token", FLAG_INT, AT(ignore_token), "-1", -1, 2147483647, NULL,
     "targets equal to it are left out of the mean, as those are that a NAME_mask.bin leaves out; -1: none"},
    {NULL, "doc-mask", FLAG_SWITCH, AT(doc_mask), NULL, 0, 0, NULL,
     "documents packed into a sequence do not see each other"},
    {NULL, "eot", FLAG_INT, AT(eot), "-1", -1, 2147483647, NULL,
     "token that ends a document, for --doc-mask; -1: as the dataset.json beside the shards says"},
    {NULL, "doc-positions", FLAG_CHOICE, AT(doc_positions), "restart", 0, 0, "restart|running",
     "of learned positions (gpt2) under --doc-mask: from 0 in each document, or on through the sequence; rotary ones "
     "only know distances, so both are the same"},
    {NULL, "doc-targets", FLAG_CHOICE, AT(doc_targets), "all", 0, 0, "all|inside",
     "inside: the first token of a document is not a target of the last token before it"},
    {NULL, "doc-length", FLAG_INT, AT(doc_length), NULL, 1, COUNT_MAX, NULL,
     "tokens of each document where --doc-mask has no data: --dry-run, the simulator; default: one document"},

    {"Parallelism", "sp", FLAG_TEXT, AT(sp), "odysseus", 0, 0, NULL,
     "sequence-parallel scheme (listed below); it owns the head axis"},
    {NULL, "dp", FLAG_INT, AT(dp), "1", 1, 1 << 20, NULL, "data-parallel groups"},
    {NULL, "ring", FLAG_INT, AT(ring), "1", 1, 1 << 20, NULL,
     "ring (context-parallel) ranks around the scheme; default for schemes without a head axis: all ranks / dp"},
    {NULL, "ring-layout", FLAG_CHOICE, AT(ring_layout), "zigzag", 0, 0, "zigzag|contiguous|stripe",
     "which tokens a ring rank holds"},
    {NULL, "head-groups", FLAG_INT, AT(head_groups), "1", 1, 1e6, NULL,
     "exchange and attend a rank's heads in so many groups, one's exchange under another's attention; of schemes with "
     "all-to-all"},
    {NULL, "ring-backward", FLAG_CHOICE, AT(ring_backward), "kv", 0, 0, "kv|q|auto",
     "ring context: what travels in backward, keys or queries; auto: the fewer bytes"},
    {NULL, "context", FLAG_TEXT, AT(context), NULL, 0, 0, NULL,
     "how queries meet the keys of other ring ranks (listed below), under any scheme; default: ring, or the scheme's "
     "own"},
    {NULL, "gather-tokens", FLAG_INT, AT(gather_tokens), NULL, 1, 1e12, NULL,
     "all-gather context: tokens of each rank in a piece of KV; default: its tokens / ring, but no fewer than 1024"},
    {NULL, "overlap", FLAG_CHOICE, AT(overlap), "on", 0, 0, "on|off",
     "communicate while computing; off: the same calls, waited for at once"},
    {NULL, "comm", FLAG_CHOICE, AT(comm), COMM_DEFAULT, 0, 0, COMM_CHOICES, "how ranks reach each other: " COMM_HELP},
    BACKEND_FLAGS
    {NULL, "comm-timeout", FLAG_REAL, AT(comm_timeout), "1800", 0, 1e9, NULL,
     "seconds that a rank waits for a transfer before a rank that does not answer ends the run; 0: wait forever"},
    {NULL, "threads", FLAG_INT, AT(threads), NULL, 1, 4096, NULL,
     "OpenMP threads per rank; default: cores / ranks on this host"},

    {"Training", "steps", FLAG_INT, AT(steps), "100", 0, 1e12, NULL, "optimizer steps"},
    {NULL, "lr", FLAG_REAL, AT(lr), "3e-4", 0, 1e3, NULL, "peak learning rate"},
    {NULL, "min-lr", FLAG_REAL, AT(min_lr), NULL, 0, 1e3, NULL,
     "learning rate at the end of the decay; default: 0.1 of --lr"},
    {NULL, "warmup", FLAG_INT, AT(warmup), "0", 0, 1e12, NULL, "steps of linear warmup"},
    {NULL, "schedule", FLAG_CHOICE, AT(schedule), "cosine", 0, 0, "cosine|linear|constant|wsd",
     "learning rate after the warmup; wsd: stable, then a linear decay"},
    {NULL, "decay-steps", FLAG_INT, AT(decay_steps), NULL, 1, 1e12, NULL,
     "last steps, in which wsd decays; default: a tenth of --steps"},
    {NULL, "weight-decay", FLAG_REAL, AT(weight_decay), "0.1", 0, 1e3, NULL, "decoupled decay, of matrices only"},
    {NULL, "beta1", FLAG_REAL, AT(beta1), "0.9", 0, 0.999999999, NULL, "AdamW first moment"},
    {NULL, "beta2", FLAG_REAL, AT(beta2), "0.95", 0, 0.999999999, NULL, "AdamW second moment"},
    {NULL, "eps", FLAG_REAL, AT(eps), "1e-8", 1e-30, 1, NULL, "AdamW epsilon"},
    {NULL, "grad-clip", FLAG_REAL, AT(grad_clip), "1.0", 0, 1e30, NULL, "largest global gradient norm; 0: no clipping"},
    {NULL, "on-spike", FLAG_CHOICE, AT(on_spike), NULL, 0, 0, "stop|skip|continue",
     "a loss that jumps or is not finite: end the run, make no update, or go on (never with an update that is not "
     "finite); default: stop where it is not finite, else continue"},
    {NULL, "spike-sigma", FLAG_REAL, AT(spike_sigma), "6", 0, 1e9, NULL,
     "a loss this many standard deviations above the mean of the last 20 or so is a jump; 0: never"},
    {NULL, "seed", FLAG_INT, AT(seed), "42", 0, COUNT_MAX, NULL,
     "of the initial weights and of --shuffle: the same numbers on every mesh"},
    {NULL, "recompute", FLAG_CHOICE, AT(recompute), "none", 0, 0, "none|attention-kept|full",
     "full: keep only each block's input, make the rest again in backward; attention-kept: all but attention, whose "
     "output and log-sum-exp are kept"},
    {NULL, "layer-inputs", FLAG_INT, AT(layer_inputs), "2", 1, 2, NULL,
     "under --recompute: streams that a layer keeps; 1: only what enters it, and backward makes again what enters its "
     "MLP"},
    {NULL, "offload", FLAG_CHOICE, AT(offload), "none", 0, 0, "none|inputs",
     "inputs: block inputs, and what is kept of attention, wait in host memory while other layers work; two layers are "
     "on the device"},
    {NULL, "tile-rows", FLAG_TEXT, AT(tile_rows), NULL, 0, 0, NULL,
     "tokens whose MLP is in memory at once, a number or auto (as many as take no more than the stream, 4096 at "
     "least); default: all"},
    {NULL, "eval-every", FLAG_INT, AT(eval_every), "0", 0, 1e12, NULL,
     "validate every so many steps and at the end; 0: only at the end"},
    {NULL, "eval-batches", FLAG_INT, AT(eval_batches), "20", 0, 1e12, NULL,
     "batches of a validation; 0: all sequences of --val, each once"},
    {NULL, "eval-only", FLAG_SWITCH, AT(eval_only), NULL, 0, 0, NULL,
     "evaluate the model of --model as it is, and stop; flags of training have no effect"},
    {NULL, "eval-task", FLAG_TEXT, AT(eval_task), NULL, 0, 0, NULL,
     "with --eval-only: position, copy, passkey, hellaswag, or several with commas; a table, and eval.jsonl in --out"},
    {NULL, "eval-trials", FLAG_INT, AT(eval_trials), "8", 1, 1e6, NULL,
     "sequences for each figure of copy and passkey"},
    {NULL, "eval-file", FLAG_TEXT, AT(eval_file), NULL, 0, 0, NULL,
     "hellaswag's examples, as llm.c's dev/data/hellaswag.py writes them"},
    {NULL, "sample", FLAG_TEXT, AT(sample), NULL, 0, 0, NULL,
     "continue this text at the end and print it; by the tokenizer beside model or data, or in bytes (--vocab 256)"},
    {NULL, "sample-file", FLAG_TEXT, AT(sample_file), NULL, 0, 0, NULL, "the same for the text in a file"},
    {NULL, "sample-ids", FLAG_TEXT, AT(sample_ids), NULL, 0, 0, NULL,
     "the same for tokens by number, e.g. \"15496,11,995\"; prints numbers"},
    {NULL, "sample-tokens", FLAG_INT, AT(sample_tokens), "64", 1, 1e12, NULL,
     "tokens to add; with the text, --seq-len at most"},
    {NULL, "sample-every", FLAG_INT, AT(sample_every), "0", 0, 1e12, NULL,
     "sample every so many steps, too; 0: only at the end"},
    {NULL, "temperature", FLAG_REAL, AT(temperature), "0.8", 0, 1e3, NULL,
     "of the draw; 0: always the likeliest token"},
    {NULL, "top-p", FLAG_REAL, AT(top_p), "0.95", 0, 1, NULL, "draw from the likeliest tokens that hold this share"},
    {NULL, "log-every", FLAG_INT, AT(log_every), "1", 1, 1e12, NULL,
     "print every so many steps (metrics.jsonl has them all)"},

    {NULL, "selfcheck", FLAG_CHOICE, AT(selfcheck), "auto", 0, 0, "auto|on|off",
     "before the first step: do ranks plan the same, does a changed token move whom it may; auto: on several ranks, if "
     "under a second"},

    {"Checkpoints", "save-every", FLAG_INT, AT(save_every), "0", 0, 1e12, NULL,
     "save every so many steps, at the end, and when told to stop (SIGTERM, SIGUSR1, SIGINT); 0: never, or not before "
     "the end (--save, --max-hours)"},
    {NULL, "save", FLAG_TEXT, AT(save), NULL, 0, 0, NULL,
     "directory of the checkpoints; default: checkpoints in --out"},
    {NULL, "keep", FLAG_INT, AT(keep), "0", 0, 1e9, NULL, "how many stay, the newest; 0: all"},
    {NULL, "keep-every", FLAG_INT, AT(keep_every), "0", 0, 1e12, NULL,
     "those of every so many steps stay besides; 0: none"},
    {NULL, "save-async", FLAG_OPTIONAL, AT(save_async), SAVE_ASYNC, 0, 0, "off|on",
     "copy to host memory, where there is room, and write while training continues"},
    {NULL, "resume", FLAG_OPTIONAL, AT(resume), NULL, 0, 0, NULL,
     "go on from a checkpoint, or from the newest whole one in this run directory or folder; without a value: of "
     "--out"},
    {NULL, "resume-with-changes", FLAG_SWITCH, AT(resume_with_changes), NULL, 0, 0, NULL,
     "go on although flags that change the arithmetic are not the checkpoint's"},
    {NULL, "max-hours", FLAG_REAL, AT(max_hours), "0", 0, 1e6, NULL,
     "save and stop before this many hours have passed; 0: no limit"},

    {"Output", "out", FLAG_TEXT, AT(out), NULL, 0, 0, NULL, "run directory: config.json, metrics.jsonl, comm.json"},
    {NULL, "init-only", FLAG_SWITCH, AT(init_only), NULL, 0, 0, NULL,
     "write the initial weights to --out as a Hugging Face directory and stop"},
    {NULL, "dump-grads", FLAG_TEXT, AT(dump_grads), NULL, 0, 0, NULL,
     "write the first step's full gradients, before clipping, to this .safetensors file"},
    {NULL, "trace", FLAG_TEXT, AT(trace), NULL, 0, 0, NULL,
     "write a timeline of the first three steps, all ranks, to this .json file; ui.perfetto.dev opens it"},
    {NULL, "peak-tflops", FLAG_REAL, AT(peak_tflops), NULL, 1e-6, 1e9, NULL,
     "peak of one rank in TFLOP/s for MFU; default: measured at start"},
    {NULL, "dry-run", FLAG_SWITCH, AT(dry_run), NULL, 0, 0, NULL,
     "print memory and traffic of the run, and exit; needs no data"},
    {NULL, "world", FLAG_INT, AT(world), NULL, 1, 1 << 20, NULL,
     "ranks of an imagined world (of --dry-run, or of the simulator)"},
    {NULL, "help", FLAG_SWITCH, AT(help), NULL, 0, 0, NULL, "this page"},

    BACKEND_GROUP
};

static inline const Flag *flag_find(const char *name) {
    for (int i = 0; i < COUNT_OF(FLAGS); i++)
        if (strcmp(FLAGS[i].name, name) == 0) return &FLAGS[i];
    return NULL;
}

/* Which flags the user wrote, by table index. */
typedef struct {
    unsigned char given[COUNT_OF(FLAGS)];
} FlagsGiven;

static inline int flag_given(const FlagsGiven *given, const char *name) {
    const Flag *flag = flag_find(name);
    return flag && given->given[flag - FLAGS];
}

/* Edit distance, for "did you mean"; names are short. */
static inline int edit_distance(const char *a, const char *b) {
    int row[64];
    int n = (int)strlen(b);
    if (n > 62) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int above = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best) best = above + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[n];
}

static inline void fail_unknown_flag(const char *arg) {
    const char *equals = strchr(arg, '=');
    if (equals)
        FAIL(EVERYONE, "'%s': write flag and value with a space between, %.*s %s", arg, (int)(equals - arg), arg,
             equals + 1);
    const char *name = arg[0] == '-' ? (arg[1] == '-' ? arg + 2 : arg + 1) : arg;
    const Flag *near = NULL;
    int best = 1 + (int)i64_max(1, i64_min(3, (i64)strlen(name) / 3)); /* a typo, and no other word */
    for (int i = 0; i < COUNT_OF(FLAGS); i++) {
        int d = edit_distance(name, FLAGS[i].name);
        if (d < best) best = d, near = &FLAGS[i];
    }
    if (near) FAIL(EVERYONE, "unknown flag '%s'; did you mean --%s?", arg, near->name);
    FAIL(EVERYONE, "unknown flag '%s'; --help lists all, docs/glossary.md has other programs' names for them", arg);
}

/* Is `value` one of "a|b|c"? */
static inline int choice_contains(const char *choices, const char *value) {
    size_t n = strlen(value);
    for (const char *c = choices; c && *c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL) {
        size_t m = strcspn(c, "|");
        if (m == n && strncmp(c, value, n) == 0) return 1;
    }
    return 0;
}

/* Parse `value` into the flag's field, or stop naming flag, value and what would work. */
static inline void flag_set(Settings *s, const Flag *flag, const char *value) {
    char *field = (char *)s + flag->field, *end = NULL;
    errno = 0;
    switch (flag->type) {
    case FLAG_TEXT:
        if (!*value) FAIL(EVERYONE, "--%s is empty; %s", flag->name, flag->help);
        memcpy(field, &value, sizeof value);
        break;
    case FLAG_OPTIONAL:
    case FLAG_CHOICE:
        if (flag->choices && !choice_contains(flag->choices, value))
            FAIL(EVERYONE, "--%s %s: must be one of %s (%s)", flag->name, value, flag->choices, flag->help);
        memcpy(field, &value, sizeof value);
        break;
    case FLAG_INT: {
        i64 number = strtoll(value, &end, 10);
        if (end == value || *end || errno || (double)number < flag->min || (double)number > flag->max)
            FAIL(EVERYONE, "--%s %s: must be a whole number from %.0f to %.0f", flag->name, value, flag->min,
                 flag->max);
        memcpy(field, &number, sizeof number);
        break;
    }
    case FLAG_REAL: {
        double number = strtod(value, &end);
        if (end == value || *end || !(number >= flag->min && number <= flag->max))
            FAIL(EVERYONE, "--%s %s: must be a number from %g to %g", flag->name, value, flag->min, flag->max);
        memcpy(field, &number, sizeof number);
        break;
    }
    case FLAG_SWITCH: {
        i64 on = 1;
        memcpy(field, &on, sizeof on);
        break;
    }
    }
}

/* Fill settings from the table's defaults, then from argv. Numbers without a default start at 0 (-1: --min-lr), or
   follow from others. */
static inline void flags_parse(Settings *s, FlagsGiven *given, int argc, char **argv) {
    memset(s, 0, sizeof *s);
    memset(given, 0, sizeof *given);
    s->min_lr = -1;
    for (int i = 0; i < COUNT_OF(FLAGS); i++)
        if (FLAGS[i].fallback) flag_set(s, &FLAGS[i], FLAGS[i].fallback);
    for (int a = 1; a < argc; a++) {
        if (strcmp(argv[a], "-h") == 0) {
            s->help = 1;
            continue;
        }
        const Flag *flag = strncmp(argv[a], "--", 2) == 0 ? flag_find(argv[a] + 2) : NULL;
        const char *before = a > 2 ? argv[a - 2] : "";
        if (!flag && (strcmp(before, "--train") == 0 || strcmp(before, "--val") == 0) && access(argv[a], F_OK) == 0)
            FAIL(EVERYONE, "several files after %s (%s, %s): put the glob in quotes", before, argv[a - 1], argv[a]);
        if (!flag) fail_unknown_flag(argv[a]);
        if (given->given[flag - FLAGS]++) FAIL(EVERYONE, "--%s is given twice; keep one", flag->name);
        if (flag->type == FLAG_OPTIONAL && (a + 1 >= argc || strncmp(argv[a + 1], "--", 2) == 0)) {
            flag_set(s, flag, flag->choices ? "on" : "");
            continue;
        }
        if (flag->type != FLAG_SWITCH && a + 1 >= argc)
            FAIL(EVERYONE, "--%s needs a value: %s", flag->name, flag->help);
        flag_set(s, flag, flag->type == FLAG_SWITCH ? "on" : argv[++a]);
    }
    if (s->min_lr < 0) s->min_lr = 0.1 * s->lr;
    if (!s->decay_steps) s->decay_steps = i64_max(1, s->steps / 10);
    if (s->min_lr > s->lr) FAIL(EVERYONE, "--min-lr %g is above --lr %g", s->min_lr, s->lr);
}

/* The flag part of --help; docs/flags.md carries the same text. */
static inline void flags_help(FILE *f) {
    for (int i = 0; i < COUNT_OF(FLAGS); i++) {
        const Flag *flag = &FLAGS[i];
        char left[64];
        if (flag->group) fprintf(f, "%s%s\n", i ? "\n" : "", flag->group);
        const char *kind = flag->type == FLAG_INT                          ? " N"
                           : flag->type == FLAG_REAL                       ? " X"
                           : flag->type == FLAG_TEXT                       ? " TEXT"
                           : flag->type == FLAG_OPTIONAL && !flag->choices ? " [TEXT]"
                                                                           : "";
        snprintf(left, sizeof left, "--%s%s", flag->name, kind);
        fprintf(f, "  %-22s %s", left, flag->help);
        if (flag->choices) fprintf(f, "; %s", flag->choices);
        if (flag->fallback) fprintf(f, " [%s]", flag->fallback);
        fprintf(f, "\n");
    }
}

#endif

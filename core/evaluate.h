/* evaluate.h - what a model makes of its context: tasks of sequences that are made for it, judged target by target.

   task    -> items: a sequence of up to L tokens each, and for each of its targets the cell that it counts in, or none
   items   -> micro-batches, as in training -> the scheme's own forward -> of each own target that counts: its loss, and
              is it the likeliest token? -> summed by cells, over ranks in rank order -> a table, and lines of JSON

   position   loss of --val by place in the sequence; then of the last L/16 targets, in sequences cut so that they begin
              L/2, L/4, ... tokens before those: what the text further back is worth
   copy       tokens drawn at random, over and over with a period: is each repeated one the likeliest?
   passkey    a number somewhere in a long text, asked for at its end: lengths x depths
   hellaswag  which of several endings is likeliest, by the mean loss of its tokens; files as llm.c writes them

   With --doc-mask a sequence of --val is its documents; any other item is one.
   Nothing is generated: each answer stands in the sequence, and every token of it must be the likeliest there. Short
   sequences are padded behind, where the causal mask hides it. Losses are taken from the logits, in double.
   Mohtashami, Jaggi 2023, arXiv:2305.16300 (passkey); Zellers et al. 2019, arXiv:1905.07830 (HellaSwag). */
#ifndef ODYSSEUS_EVALUATE_H
#define ODYSSEUS_EVALUATE_H

#include "sample.h"

typedef struct {
    double loss, n, hits; /* of targets: sum, how many, how many of them the likeliest */
} Cell;

enum { EVAL_BUCKETS = 16, EVAL_DEPTHS = 5, EVAL_MOST = 64 };

typedef struct {
    const unsigned char *at; /* its tokens, uint16 */
    i64 context, label, endings, first; /* tokens before the endings; the right one; their number; the first's cell */
} Example;

typedef struct Task {
    const char *name;
    void (*fill)(const struct Task *t, i64 item, int32_t *tokens, i64 *cell);
    void (*report)(const struct Task *t, FILE *json);
    i64 L, vocab, items, cells, trials, seed;
    Cell *cell;
    Dataset *val; /* position */
    i64 sequences, ignored, window, cuts;
    i64 rows, row[EVAL_MOST]; /* copy: periods; passkey: lengths */
    const Tokenizer *tokenizer; /* passkey */
    FileMap file; /* hellaswag */
    Example *example;
    i64 examples;
} Task;

/* Write one line into the file, where there is one. */
static inline void eval_line(FILE *json, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline void eval_line(FILE *json, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (json) vfprintf(json, format, args), fputc('\n', json);
    va_end(args);
}

static inline double cell_loss(const Cell *c) { return c->n > 0 ? c->loss / c->n : NAN; }

/* ---- position ---------------------------------------------------------------------------------------------------- */

/* Item: a sequence of --val whole, then cut at each of the places. */
static inline void position_fill(const Task *t, i64 item, int32_t *tokens, i64 *cell) {
    i64 sequence = item / (1 + t->cuts), cut = item % (1 + t->cuts), L = t->L, w = t->window;
    i64 first = cut ? L - w - (L / 2 >> (cut - 1)) : 0;
    dataset_read(t->val, sequence, first, 1, L + 1 - first, tokens, 1);
    for (i64 p = 0; p < L - first; p++) {
        if (tokens[p + 1] == t->ignored) continue;
        if (!cut) cell[p] = p * EVAL_BUCKETS / L;
        else if (first + p >= L - w) cell[p] = EVAL_BUCKETS + cut - 1;
    }
}

static inline void position_report(const Task *t, FILE *json) {
    i64 L = t->L;
    printf("\nloss by position, over %lld sequences of --val\n    targets           loss\n", t->sequences);
    for (i64 b = 0; b < EVAL_BUCKETS; b++) {
        const Cell *c = &t->cell[b];
        i64 first = ceil_div(b * L, EVAL_BUCKETS), last = ceil_div((b + 1) * L, EVAL_BUCKETS) - 1;
        printf("%7lld - %-7lld  %7.4f\n", first, last, cell_loss(c));
        eval_line(json, "{\"task\": \"position\", \"first\": %lld, \"last\": %lld, \"targets\": %.0f, \"loss\": %.17g}",
                  first, last, c->n, cell_loss(c));
    }
    printf("the last %lld targets, by how many tokens before them are there\n"
           "    tokens            loss   more than whole\n", t->window);
    for (i64 cut = 0; cut <= t->cuts; cut++) {
        const Cell *c = &t->cell[cut ? EVAL_BUCKETS + cut - 1 : EVAL_BUCKETS - 1], *whole = &t->cell[EVAL_BUCKETS - 1];
        i64 tokens = cut ? L / 2 >> (cut - 1) : L - t->window;
        printf("%10lld         %7.4f   %+.4f\n", tokens, cell_loss(c), cell_loss(c) - cell_loss(whole));
        eval_line(json, "{\"task\": \"position\", \"context\": %lld, \"targets\": %.0f, \"loss\": %.17g}",
                  tokens, c->n, cell_loss(c));
    }
}

/* The first `sequences` of val. The last bucket is what the cut sequences are held against: L / 16 must be whole. */
static inline void position_open(Task *t, Dataset *val, i64 sequences, i64 ignored) {
    if (!val->sequences) FAIL(EVERYONE, "--eval-task position needs --val, the shards to judge the model on");
    if (t->L % EVAL_BUCKETS)
        FAIL(EVERYONE, "--eval-task position: --seq-len %lld must be a multiple of %d", t->L, EVAL_BUCKETS);
    t->val = val, t->sequences = sequences, t->ignored = ignored, t->window = t->L / EVAL_BUCKETS, t->cuts = 4;
    t->fill = position_fill, t->report = position_report;
    t->items = sequences * (1 + t->cuts), t->cells = EVAL_BUCKETS + t->cuts;
}

/* ---- copy -------------------------------------------------------------------------------------------------------- */

static inline int32_t drawn_token(const Task *t, i64 item, i64 i) {
    uint64_t key = mix64(tensor_key(t->seed, t->name) + (uint64_t)item);
    return (int32_t)(mix64(key + (uint64_t)i) % (uint64_t)t->vocab);
}

/* Counted from one and a half periods on: the half shows what the period is. */
static inline void copy_fill(const Task *t, i64 item, int32_t *tokens, i64 *cell) {
    i64 which = item / t->trials, period = t->row[which];
    for (i64 p = 0; p <= t->L; p++) tokens[p] = drawn_token(t, item, p % period);
    for (i64 p = period + period / 2; p < t->L; p++) cell[p] = which;
}

static inline void copy_report(const Task *t, FILE *json) {
    printf("\ncopies: random tokens that come again after a distance, %lld sequences each; by chance %.3f are right\n"
           "  distance     loss   right\n", t->trials, 1.0 / (double)t->vocab);
    for (i64 r = 0; r < t->rows; r++) {
        const Cell *c = &t->cell[r];
        printf("%10lld  %7.4f   %.3f\n", t->row[r], cell_loss(c), c->hits / c->n);
        eval_line(json, "{\"task\": \"copy\", \"distance\": %lld, \"targets\": %.0f, \"loss\": %.17g, "
                  "\"right\": %.17g}",
                  t->row[r], c->n, cell_loss(c), c->hits / c->n);
    }
}

static inline void copy_open(Task *t) {
    if (t->L < 8) FAIL(EVERYONE, "--eval-task copy: --seq-len %lld is too short, it takes 8", t->L);
    for (i64 d = t->L / 2; d >= 4; d /= 2) t->row[t->rows++] = d;
    t->fill = copy_fill, t->report = copy_report;
    t->items = t->rows * t->trials, t->cells = t->rows;
}

/* ---- passkey ----------------------------------------------------------------------------------------------------- */

static const char PASSKEY_BEGIN[] = "Somewhere in this text stands a number that you will be asked for.\n";
static const char PASSKEY_FILL[] = "The river runs down to the sea. The wind blows over the hills. Clouds go with it. ";
static const char PASSKEY_KEY[] = "\nThe number is %05d. Keep it in mind: %05d is the number.\n";
static const char PASSKEY_ASK[] = "\nWhat is the number? The number is";

/* Append the tokens of text to out; those that begin every text only with `begins`. Returns how many. */
static inline i64 passkey_add(const Tokenizer *tokenizer, int32_t *out, const char *text, int begins) {
    i64 n, skip = begins ? 0 : tokenizer->firsts;
    int32_t *tokens = tokenizer_encode(tokenizer, "eval-task", text, (i64)strlen(text), 0, &n);
    memcpy(out, tokens + skip, (size_t)(n - skip) * sizeof *out);
    free(tokens);
    return n - skip;
}

/* The parts of an item in `part` (EVAL_PART tokens each), their lengths in n; the answer has the question before it. */
enum { EVAL_PART = 256, PART_BEGIN = 0, PART_FILL, PART_KEY, PART_ASK, PART_ANSWER, PARTS };

static inline void passkey_parts(const Task *t, i64 item, int32_t part[PARTS][EVAL_PART], i64 n[PARTS]) {
    int number = (int)(mix64(tensor_key(t->seed, t->name) + (uint64_t)item) % 100000);
    char key[128], answer[128];
    snprintf(key, sizeof key, PASSKEY_KEY, number, number);
    snprintf(answer, sizeof answer, "%s %05d", PASSKEY_ASK, number);
    const char *text[PARTS] = {PASSKEY_BEGIN, PASSKEY_FILL, key, PASSKEY_ASK, answer};
    for (int i = 0; i < PARTS; i++) n[i] = passkey_add(t->tokenizer, part[i], text[i], i == PART_BEGIN);
}

static inline i64 put_tokens(int32_t *out, i64 at, const int32_t *tokens, i64 n) {
    memcpy(out + at, tokens, (size_t)n * sizeof *out);
    return at + n;
}

static inline void passkey_fill(const Task *t, i64 item, int32_t *tokens, i64 *cell) {
    int32_t part[PARTS][EVAL_PART];
    i64 n[PARTS], depth = item / t->trials % EVAL_DEPTHS, length = t->row[item / t->trials / EVAL_DEPTHS], at = 0;
    passkey_parts(t, item, part, n);
    i64 filler = length - n[PART_BEGIN] - n[PART_KEY] - n[PART_ANSWER], before = filler * depth / (EVAL_DEPTHS - 1);
    at = put_tokens(tokens, at, part[PART_BEGIN], n[PART_BEGIN]);
    for (i64 i = 0; i < filler; i++) {
        if (i == before) at = put_tokens(tokens, at, part[PART_KEY], n[PART_KEY]);
        tokens[at++] = part[PART_FILL][i % n[PART_FILL]];
    }
    if (before == filler) at = put_tokens(tokens, at, part[PART_KEY], n[PART_KEY]);
    at = put_tokens(tokens, at, part[PART_ANSWER], n[PART_ANSWER]);
    for (i64 i = n[PART_ASK]; i < n[PART_ANSWER]; i++) cell[at - n[PART_ANSWER] + i - 1] = item;
}

static inline void passkey_report(const Task *t, FILE *json) {
    printf("\npasskey: of %lld texts each, those whose number is told right to the last token\n    length",
           t->trials);
    for (i64 d = 0; d < EVAL_DEPTHS; d++) printf("  at %3lld%%", (100 * d / (EVAL_DEPTHS - 1)));
    for (i64 r = 0; r < t->rows; r++) {
        printf("\n%10lld", t->row[r]);
        for (i64 d = 0; d < EVAL_DEPTHS; d++) {
            double right = 0;
            Cell sum = {0, 0, 0};
            for (i64 k = 0; k < t->trials; k++) {
                const Cell *c = &t->cell[(r * EVAL_DEPTHS + d) * t->trials + k];
                right += c->hits == c->n, sum.loss += c->loss, sum.n += c->n;
            }
            printf("  %7.2f", right / (double)t->trials);
            eval_line(json, "{\"task\": \"passkey\", \"length\": %lld, \"depth\": %.2f, \"texts\": %lld, "
                      "\"loss\": %.17g, \"right\": %.17g}", t->row[r], (double)d / (EVAL_DEPTHS - 1),
                      t->trials, cell_loss(&sum), right / (double)t->trials);
        }
    }
    printf("\n");
}

/* Lengths from L down by halves, as long as the text around the number has room for as much again. */
static inline void passkey_open(Task *t, const Tokenizer *tokenizer) {
    int32_t part[PARTS][EVAL_PART];
    i64 n[PARTS], least = 0;
    if (!tokenizer)
        FAIL(EVERYONE, "--eval-task passkey is a text, and there is no tokenizer.json, nor vocab.json and merges.txt, "
             "beside the model or its data; put one there");
    t->tokenizer = tokenizer;
    passkey_parts(t, 0, part, n);
    for (int i = 0; i < PARTS; i++) least += i == PART_ASK ? 0 : n[i];
    for (int i = 0; i < PARTS; i++)
        for (i64 k = 0; k < n[i]; k++)
            if (part[i][k] >= t->vocab)
                FAIL(EVERYONE, "--eval-task passkey: token %d is none of this model's %lld; is the tokenizer another "
                     "one's?", part[i][k], t->vocab);
    if (t->L < least)
        FAIL(EVERYONE, "--eval-task passkey: --seq-len %lld is too short, the shortest text has %lld tokens",
             t->L, least);
    for (i64 length = t->L; length >= least && t->rows < EVAL_MOST; length /= 2) t->row[t->rows++] = length;
    t->fill = passkey_fill, t->report = passkey_report;
    t->items = t->cells = t->rows * EVAL_DEPTHS * t->trials;
}

/* ---- hellaswag --------------------------------------------------------------------------------------------------- */

static inline i64 example_word(const unsigned char *at, i64 i) { return at[2 * i] | at[2 * i + 1] << 8; }

/* Words of the context of an example, and of ending k: *n of them. */
static inline i64 example_part(const Example *e, i64 k, i64 *n) {
    i64 at = 6; /* 65535, bytes, index, label, endings, n of the context, the context, n of an ending, ... */
    *n = e->context;
    for (i64 i = 0; i <= k; i++) at += *n + 1, *n = example_word(e->at, at - 1);
    return at;
}

static inline void hellaswag_fill(const Task *t, i64 item, int32_t *tokens, i64 *cell) {
    i64 low = 0, high = t->examples, n;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (t->example[middle].first <= item) low = middle;
        else high = middle;
    }
    const Example *e = &t->example[low];
    i64 at = example_part(e, item - e->first, &n);
    for (i64 i = 0; i < e->context; i++) tokens[i] = (int32_t)example_word(e->at, 6 + i);
    for (i64 i = 0; i < n; i++) {
        tokens[e->context + i] = (int32_t)example_word(e->at, at + i);
        cell[e->context + i - 1] = item;
    }
}

static inline void hellaswag_report(const Task *t, FILE *json) {
    double mean = 0, sum = 0;
    for (i64 x = 0; x < t->examples; x++) {
        const Example *e = &t->example[x];
        i64 by_mean = 0, by_sum = 0;
        for (i64 k = 1; k < e->endings; k++) {
            const Cell *c = &t->cell[e->first + k];
            if (cell_loss(c) < cell_loss(&t->cell[e->first + by_mean])) by_mean = k;
            if (c->loss < t->cell[e->first + by_sum].loss) by_sum = k;
        }
        mean += by_mean == e->label, sum += by_sum == e->label;
    }
    mean /= (double)t->examples, sum /= (double)t->examples;
    printf("\nhellaswag: %.4f of %lld examples right, by an ending's mean loss; %.4f by its sum\n", mean,
           t->examples, sum);
    eval_line(json, "{\"task\": \"hellaswag\", \"examples\": %lld, \"right\": %.17g, \"right_by_sum\": %.17g}",
              t->examples, mean, sum);
}

/* The example at word `at` of `words`; all its numbers lie within it. Returns the word behind it. */
static inline i64 example_read(Task *t, const char *path, Example *e, i64 at, i64 words) {
    const unsigned char *w = t->file.bytes + SHARD_HEADER_BYTES + 2 * at;
    i64 left = words - at, bytes = left < 6 ? 0 : example_word(w, 1), used = 5;
    int sound = left >= 6 && example_word(w, 0) == 65535 && bytes % 2 == 0 && bytes / 2 <= left && bytes >= 12;
    Example one = {w, 0, 0, 0, t->items};
    if (sound) one.context = example_word(w, 5), one.label = example_word(w, 3), one.endings = example_word(w, 4);
    for (i64 k = 0; sound && k <= one.endings; k++) {
        i64 n = used < bytes / 2 ? example_word(w, used) : -1;
        sound = n > 0 && used + 1 + n <= bytes / 2;
        for (i64 i = 0; sound && i < n; i++)
            if (example_word(w, used + 1 + i) >= t->vocab)
                FAIL(EVERYONE, "--eval-file %s: token %lld is none of this model's %lld; was it another's?", path,
                     example_word(w, used + 1 + i), t->vocab);
        if (sound && k && one.context + n > t->L)
            FAIL(EVERYONE, "--eval-file %s: an example of %lld tokens is longer than --seq-len %lld", path,
                 (one.context + n), t->L);
        used += 1 + n;
    }
    if (!sound || used != bytes / 2 || one.label >= one.endings || one.endings < 2)
        FAIL(EVERYONE, "--eval-file %s: example %lld is damaged; make the file again", path, t->examples);
    *e = one;
    t->items += one.endings, t->examples++;
    return at + bytes / 2;
}

static inline void hellaswag_open(Task *t, const char *path) {
    int32_t header[4];
    if (!path) FAIL(EVERYONE, "--eval-task hellaswag needs --eval-file, as llm.c's dev/data/hellaswag.py makes it");
    t->file = file_map(path);
    i64 words = (t->file.size - SHARD_HEADER_BYTES) / 2, at = 0;
    if (t->file.size >= SHARD_HEADER_BYTES) memcpy(header, t->file.bytes, sizeof header);
    if (t->file.size < SHARD_HEADER_BYTES || header[0] != 20240522 || header[1] != 1 || t->file.size % 2)
        FAIL(EVERYONE, "--eval-file %s: is no file of llm.c's examples (magic 20240522 version 1)", path);
    if (header[2] < 1 || header[2] > words / 6)
        FAIL(EVERYONE, "--eval-file %s: promises %d examples in %lld bytes", path, header[2], t->file.size);
    t->example = (Example *)host_alloc(sizeof(Example) * (size_t)header[2]);
    for (i64 i = 0; i < header[2]; i++) at = example_read(t, path, &t->example[i], at, words);
    if (at != words) FAIL(EVERYONE, "--eval-file %s: something follows the last of its %d examples", path, header[2]);
    t->fill = hellaswag_fill, t->report = hellaswag_report, t->cells = t->items;
}

/* ---- judging ----------------------------------------------------------------------------------------------------- */

/* Losses and hits of a chunk of rows of logits (rows, ld), own rows from `row` on, into m->judged; rows that do not
   count are not looked at. */
static inline void evaluate_rows(Model *m, const real *logits, i64 ld, i64 row, i64 rows) {
    i64 V = m->config.vocab, first = 0;
    const int32_t *targets = m->host_tokens + stream_rows(m) + row;
    while (first < rows && targets[first] < 0) first++;
    while (rows > first && targets[rows - 1] < 0) rows--;
    if (m->dev.plan || first == rows) return;
    real *host = (real *)host_alloc((size_t)((rows - first) * ld) * sizeof(real));
    copy_out(&m->dev, host, logits + first * ld, (rows - first) * ld * real_size());
#pragma omp parallel for num_threads(m->dev.threads)
    for (i64 r = first; r < rows; r++) {
        const real *x = host + (r - first) * ld;
        if (targets[r] < 0) continue;
        double wanted = (double)real_value(x[targets[r]]), top = -INFINITY, sum = 0;
        i64 best = 0;
        for (i64 i = 0; i < V; i++)
            if ((double)real_value(x[i]) > top) top = (double)real_value(x[i]), best = i;
        for (i64 i = 0; i < V; i++) sum += exp((double)real_value(x[i]) - top);
        m->judged[2 * (row + r)] = log(sum) + top - wanted;
        m->judged[2 * (row + r) + 1] = best == targets[r];
    }
    free(host);
}

/* A walk over m->tokens and m->targets; scale 0: forward only. It stands above this file. */
typedef void (*ModelWalk)(Model *, accum scale);

/* A micro-batch of the items from `first` on: m->tokens, m->targets, and the own targets' cells in own (own rows). */
static inline void evaluate_load(Model *m, const Task *t, i64 first, i64 *own) {
    i64 L = m->L, B = m->B;
    int32_t *tokens = (int32_t *)host_alloc((size_t)(L + 1) * sizeof(int32_t));
    int32_t *targets = m->host_tokens + stream_rows(m);
    i64 *cell = (i64 *)host_alloc((size_t)L * sizeof(i64));
    for (i64 b = 0; b < B; b++) {
        i64 item = first + m->mesh.dp_rank * B + b;
        for (i64 p = 0; p < L; p++) tokens[p] = 0, cell[p] = -1;
        tokens[L] = 0;
        if (item < t->items) t->fill(t, item, tokens, cell);
        if (m->documents && t->val) documents_find(m->whole, tokens, L, m->eot);
        if (m->documents) sight_sequence(m, b, t->val ? m->whole : NULL);
        for (i64 i = 0; i < m->T_stream; i++) m->host_tokens[i * B + b] = tokens[token_position(&m->stream_map, i)];
        for (i64 i = 0; i < m->T_own; i++) {
            i64 p = token_position(&m->own_map, i);
            own[i * B + b] = cell[p];
            targets[i * B + b] = cell[p] < 0 ? TOKEN_IGNORED : tokens[p + 1];
        }
    }
    free(cell);
    free(tokens);
    copy_in(&m->dev, m->tokens, m->host_tokens, stream_rows(m) * (i64)sizeof(int32_t));
    copy_in(&m->dev, m->targets, targets, own_rows(m) * (i64)sizeof(int32_t));
    if (m->documents) sight_send(m);
}

/* Judge every item of the task: t->cell, the same on all ranks. Collective. */
static inline void evaluate(Model *m, ModelWalk walk, Task *t) {
    i64 rows = own_rows(m), ranks = m->mesh.shape.world;
    size_t bytes = sizeof(Cell) * (size_t)t->cells;
    Cell *mine = (Cell *)host_alloc(bytes), *all = (Cell *)host_alloc(bytes * (size_t)ranks);
    i64 *own = (i64 *)host_alloc((size_t)rows * sizeof(i64));
    m->judged = (double *)host_alloc((size_t)(2 * rows) * sizeof(double));
    for (i64 first = 0; first < t->items; first += m->B * m->mesh.shape.dp) {
        evaluate_load(m, t, first, own);
        walk(m, 0);
        for (i64 r = 0; r < rows; r++) {
            if (own[r] < 0) continue;
            Cell *c = &mine[own[r]];
            c->loss += m->judged[2 * r], c->n += 1, c->hits += m->judged[2 * r + 1];
        }
    }
    wire_share(m->mesh.world.wire, all, mine, bytes);
    memset(t->cell, 0, bytes);
    for (i64 r = 0; r < ranks; r++)
        for (i64 i = 0; i < t->cells; i++) {
            const Cell *c = &all[r * t->cells + i];
            t->cell[i].loss += c->loss, t->cell[i].n += c->n, t->cell[i].hits += c->hits;
        }
    free(m->judged);
    m->judged = NULL;
    free(own);
    free(all);
    free(mine);
}

/* ---- --eval-task ------------------------------------------------------------------------------------------------- */

enum { TASKS = 4 };
static const char *const TASK_NAMES[TASKS] = {"position", "copy", "passkey", "hellaswag"};

/* The next name of a list with commas, at which *at then stands behind; NULL: there is none. */
static inline const char *task_next(const char **at) {
    const char *name = *at;
    size_t n = name ? strcspn(name, ",") : 0;
    if (!name || !*name) return NULL;
    *at = name + n + (name[n] == ',');
    for (int i = 0; i < TASKS; i++)
        if (strlen(TASK_NAMES[i]) == n && strncmp(name, TASK_NAMES[i], n) == 0) return TASK_NAMES[i];
    FAIL(EVERYONE, "--eval-task %.*s: there are position, copy, passkey and hellaswag, with commas between", (int)n,
         name);
}

/* Is this task among those of the list? */
static inline int task_asked(const char *list, const char *task) {
    for (const char *name; (name = task_next(&list)) != NULL;)
        if (strcmp(name, task) == 0) return 1;
    return 0;
}

/* The task of this name, its files open and checked. Owner: caller; task_close. */
static inline Task task_open(const char *name, const Settings *s, const Config *c, Dataset *val, i64 sequences,
                             const Tokenizer *tokenizer) {
    Task t;
    memset(&t, 0, sizeof t);
    t.name = name, t.L = s->seq_len, t.vocab = c->vocab, t.trials = s->eval_trials, t.seed = s->seed;
    if (strcmp(name, "position") == 0) position_open(&t, val, sequences, s->ignore_token);
    else if (strcmp(name, "copy") == 0) copy_open(&t);
    else if (strcmp(name, "passkey") == 0) passkey_open(&t, tokenizer);
    else hellaswag_open(&t, s->eval_file);
    t.cell = (Cell *)host_alloc(sizeof(Cell) * (size_t)t.cells);
    return t;
}

static inline void task_close(Task *t) {
    if (t->file.bytes) file_unmap(&t->file);
    free(t->example);
    free(t->cell);
}

#endif

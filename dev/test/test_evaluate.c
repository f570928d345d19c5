/* test_evaluate.c - the sequences that --eval-task judges a model by: which tokens stand where, which targets count.
   What is made of them on every mesh, and that a model which copies passes, test_judge.sh sees. */
#include "../../core/evaluate.h"
#include "check.h"

enum { LENGTH = 256 };
static char temp[] = "/tmp/test_evaluate_XXXXXX";

static const char *in_temp(const char *name) {
    static char path[PATH_MAX];
    path_join(path, temp, name);
    return path;
}

static void write_bytes(const char *name, const void *header, size_t head, const void *body, size_t bytes) {
    FILE *f = fopen(in_temp(name), "wb");
    if (!f || fwrite(header, 1, head, f) != head || fwrite(body, 1, bytes, f) != bytes || fclose(f) != 0)
        FAIL(THIS_RANK, "cannot write %s", in_temp(name));
}

typedef struct {
    int32_t tokens[LENGTH + 1];
    i64 cell[LENGTH];
} Item;

static void item_fill(Item *x, const Task *t, i64 item) {
    for (i64 p = 0; p <= LENGTH; p++) x->tokens[p] = 0;
    for (i64 p = 0; p < LENGTH; p++) x->cell[p] = -1;
    t->fill(t, item, x->tokens, x->cell);
}

static Task open_task(const char *name, Dataset *val, const Tokenizer *tokenizer, const char *file) {
    static Settings s;
    static Config c;
    s.seq_len = LENGTH, s.eval_trials = 3, s.seed = 7, s.eval_file = file, s.ignore_token = 250;
    c.vocab = tokenizer && tokenizer->words > 256 ? 600 : 256;
    return task_open(name, &s, &c, val, val ? val->sequences : 0, tokenizer);
}

/* Shards of two sequences; token 250 does not count. */
static void test_position(void) {
    int32_t header[256] = {20240520, 1, 2 * LENGTH + 1};
    uint16_t tokens[2 * LENGTH + 1];
    i64 counted = 0, wrong = 0, cut_wrong = 0, sequences = 0;
    Dataset val;
    for (int i = 0; i < 2 * LENGTH + 1; i++) tokens[i] = (uint16_t)(i % 251);
    write_bytes("val.bin", header, sizeof header, tokens, sizeof tokens);
    memset(&val, 0, sizeof val);
    dataset_open(&val, in_temp("val.bin"), "val", LENGTH, 256);
    Task t = open_task("position", &val, NULL, NULL);
    static Item whole, cut;
    for (; sequences < 2; sequences++) {
        item_fill(&whole, &t, sequences * 5);
        for (i64 p = 0; p < LENGTH; p++) {
            int counts = tokens[sequences * LENGTH + p + 1] != 250;
            wrong += whole.tokens[p] != tokens[sequences * LENGTH + p] || whole.cell[p] != (counts ? p / 16 : -1);
            counted += whole.cell[p] >= 0;
        }
        for (i64 k = 1; k < 5; k++) {
            i64 before = LENGTH >> k; /* tokens before the last sixteenth */
            item_fill(&cut, &t, sequences * 5 + k);
            for (i64 p = 0; p < LENGTH; p++) {
                i64 at = LENGTH - 16 - before + p; /* in the whole sequence */
                i64 want = p >= before && p < before + 16 && whole.cell[at] >= 0 ? 15 + k : -1;
                cut_wrong += cut.cell[p] != want || (p < before + 16 && cut.tokens[p + 1] != whole.tokens[at + 1]);
            }
        }
    }
    check(wrong == 0 && counted == 2 * LENGTH - 2,
          "position: sequences of --val, without ignored targets: %lld counted, %lld wrong", counted,
          wrong);
    check(cut_wrong == 0, "position: the same last targets behind a half, a quarter, ...: %lld wrong", cut_wrong);
    task_close(&t);
    dataset_close(&val);
}

static void test_copy(void) {
    Task t = open_task("copy", NULL, NULL, NULL);
    i64 wrong = 0, counted = 0, same = 0;
    static Item x, y;
    for (i64 item = 0; item < t.items; item++) {
        i64 period = t.row[item / 3];
        item_fill(&x, &t, item);
        if (item) same += memcmp(x.tokens, y.tokens, sizeof x.tokens) == 0;
        for (i64 p = 0; p < LENGTH; p++) {
            i64 want = p >= period + period / 2 ? item / 3 : -1;
            wrong += x.cell[p] != want || (p + 1 >= period && x.tokens[p + 1] != x.tokens[p + 1 - period]);
            counted += x.cell[p] >= 0;
        }
        y = x;
    }
    check(wrong == 0 && same == 0 && t.rows == 6 && t.row[0] == 128 && t.row[5] == 4 && counted > 1000,
          "copy: targets that stood there a period ago: %lld wrong, %lld items alike", wrong, same);
    task_close(&t);
}

/* The answer by what the text says: the number in it, twice, at its depth. */
static void test_passkey(const char *dir) {
    Tokenizer *tokenizer = dir ? tokenizer_open(dir) : tokenizer_bytes();
    Task t = open_task("passkey", NULL, tokenizer, NULL);
    i64 wrong = 0, depth_off = 0, lengths = 0;
    static Item x;
    for (i64 item = 0; item < t.items; item++) {
        i64 length = t.row[item / 3 / EVAL_DEPTHS], depth = item / 3 % EVAL_DEPTHS, bytes = 0, first = -1, n = 0;
        char text[8 * LENGTH + 1], answer[64] = "", key[16], *found;
        item_fill(&x, &t, item);
        for (i64 p = 0; p < length; p++) {
            const Word *w = tokenizer_word(tokenizer, x.tokens[p]);
            memcpy(text + bytes, w->bytes, (size_t)w->n), bytes += w->n;
            if (p == 0 || x.cell[p - 1] < 0) continue;
            wrong += x.cell[p - 1] != item || (first >= 0 && x.cell[p - 2] < 0);
            first = first < 0 ? p : first;
            memcpy(answer + n, w->bytes, (size_t)w->n), n += w->n;
        }
        text[bytes] = 0, answer[n] = 0;
        snprintf(key, sizeof key, "is%s. Keep", answer);
        found = strstr(text, key);
        wrong += n != 6 || !found || strcmp(text + bytes - n, answer) != 0 || !strstr(found + 10, answer + 1);
        i64 filler = length - (i64)(sizeof PASSKEY_BEGIN + sizeof PASSKEY_KEY + 2 + sizeof PASSKEY_ASK - 3 + 6);
        i64 at = (i64)sizeof PASSKEY_BEGIN - 1 + filler * depth / 4 + (i64)strlen("\nThe number ");
        depth_off += !dir && (!found || found - text != at);
        for (i64 p = length; p < LENGTH; p++) wrong += x.tokens[p] != 0 || x.cell[p] >= 0;
        lengths += length == LENGTH;
    }
    check(wrong == 0 && lengths >= 15, "passkey%s: the number that the text tells is asked for: %lld wrong of %lld",
          dir ? " by a tokenizer" : "", wrong, t.items);
    if (!dir) check(depth_off == 0, "passkey: so much of the filling before the number: %lld are wrong", depth_off);
    task_close(&t);
    tokenizer_close(tokenizer);
}

/* Two examples: three tokens of context, endings of 2, 1, 3 and 2; then one of context, two endings of 1. */
static const uint16_t EXAMPLES[] = {65535, 42, 0, 1, 4, 3, 11, 12, 13, 2, 21, 22, 1, 31, 3, 41, 42, 43, 2, 51, 52,
                                    65535, 22, 1, 0, 2, 1, 5,  1,  6,  1, 7};

static void test_hellaswag(void) {
    int32_t header[256] = {20240522, 1, 2};
    i64 wrong = 0, counts[] = {2, 1, 3, 2, 1, 1}, firsts[] = {21, 31, 41, 51, 6, 7};
    write_bytes("examples.bin", header, sizeof header, EXAMPLES, sizeof EXAMPLES);
    Task t = open_task("hellaswag", NULL, NULL, in_temp("examples.bin"));
    static Item x;
    for (int i = 0; i < 6; i++) {
        i64 context = i < 4 ? 3 : 1;
        item_fill(&x, &t, i);
        wrong += x.tokens[0] != (i < 4 ? 11 : 5) || x.tokens[context] != firsts[i];
        for (i64 p = 0; p < LENGTH; p++) {
            int counted = p + 1 >= context && p + 1 < context + counts[i];
            wrong += x.cell[p] != (counted ? i : -1);
        }
    }
    check(wrong == 0 && t.items == 6 && t.examples == 2, "hellaswag: an ending's tokens count: %lld wrong",
          wrong);
    /* of the first the third ending has the least mean, the second the least sum, and is right */
    const double losses[] = {2.0, 0.9, 1.2, 4.0, 1.0, 3.0};
    for (int i = 0; i < 6; i++) t.cell[i].loss = losses[i], t.cell[i].n = (double)counts[i];
    FILE *json = fopen(in_temp("eval.jsonl"), "w");
    char line[256] = "";
    t.report(&t, json);
    fclose(json), json = fopen(in_temp("eval.jsonl"), "r");
    int read = fgets(line, sizeof line, json) != NULL;
    fclose(json);
    line[strcspn(line, "\n")] = 0;
    check(read && strstr(line, "\"right\": 0.5, \"right_by_sum\": 1}"), "hellaswag by mean and by sum: %s", line);
    task_close(&t);
}

static void try_examples(const char *path) {
    Task t = open_task("hellaswag", NULL, NULL, path);
    task_close(&t);
}

static void try_short(const char *path) {
    static Settings s;
    static Config c;
    s.seq_len = 5, c.vocab = 256, s.eval_file = path;
    Task t = task_open("hellaswag", &s, &c, NULL, 0, NULL);
    task_close(&t);
}

/* Every word of the file in turn made another: taken only where it is a token, an index or a label. */
static void test_damaged(void) {
    int32_t header[256] = {20240522, 1, 2};
    uint16_t words[COUNT_OF(EXAMPLES)];
    i64 n = COUNT_OF(EXAMPLES), silent = 0, dead = 0;
    char said[2048];
    memcpy(words, EXAMPLES, sizeof words);
    for (i64 i = 0; i <= n + 1; i++) {
        uint16_t was = i < n ? words[i] : 0;
        int is_token = (i >= 6 && i <= 8) || i == 10 || i == 11 || i == 13 || (i >= 15 && i <= 17);
        is_token |= i == 19 || i == 20 || i == 27 || i == 29 || i == 31;
        if (i < n) words[i] = is_token ? 256 : 9;
        header[2] = i == n ? 3 : i == n + 1 ? 1 : 2;
        write_bytes("bad.bin", header, sizeof header, words, (size_t)n * 2);
        if (i < n) words[i] = was;
        int status = run_child(try_examples, in_temp("bad.bin"), said, sizeof said), free_of = i == 2 || i == 23;
        silent += !free_of && !is_one_error(status, said);
        dead += free_of && status != 0;
    }
    int status = run_child(try_short, in_temp("examples.bin"), said, sizeof said);
    check(is_one_error(status, said) && strstr(said, "an example of 6 tokens is longer than --seq-len 5"),
          "hellaswag: too long: %s", said);
    check(silent == 0 && dead == 0, "hellaswag: each damaged word is one error: %lld are not", (silent + dead));
}

int main(void) {
    if (!mkdtemp(temp)) FAIL(THIS_RANK, "%s: %s", temp, strerror(errno));
    test_position();
    test_copy();
    test_passkey(NULL);
    test_passkey("dev/test/fixtures/tokenizers/llama3");
    test_hellaswag();
    test_damaged();
    static const char *const made[] = {"val.bin", "examples.bin", "bad.bin", "eval.jsonl"};
    for (int i = 0; i < COUNT_OF(made); i++) unlink(in_temp(made[i]));
    rmdir(temp);
    return checks_done();
}

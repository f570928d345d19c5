/* test_tokenizer.c - the tokens of 10,000 texts under three tokenizers, and where their pieces end, against what
   Hugging Face's tokenizers say (fixtures/tokenizers/make.py makes the same texts); the way back; what is refused. */
#include "../../core/tokenizer.h"
#include "check.h"

static const char *fixtures = "dev/test/fixtures/tokenizers";
static char temp[] = "/tmp/test_tokenizer_XXXXXX";

static const char *in(const char *dir, const char *name) {
    static char path[4][PATH_MAX];
    static int turn;
    turn = (turn + 1) % 4;
    path_join(path[turn], dir, name);
    return path[turn];
}

/* ---- the texts, as Texts in make.py makes them ------------------------------------------------------------------- */

static const cJSON *expected;
static uint64_t counter;

typedef struct {
    char bytes[4096];
    i64 n;
} Text;

static i64 below(i64 k) { return (i64)(mix64(++counter) % (uint64_t)k); }

static void text_add(Text *t, const char *bytes, i64 n) { memcpy(t->bytes + t->n, bytes, (size_t)n), t->n += n; }

static void text_pick(Text *t, const char *list) {
    const cJSON *things = cJSON_GetObjectItem(expected, list);
    const char *one = cJSON_GetArrayItem(things, (int)below(cJSON_GetArraySize(things)))->valuestring;
    text_add(t, one, (i64)strlen(one));
}

static void text_character(Text *t, uint32_t c) {
    char s[4] = {(char)c, 0, 0, 0};
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 63));
    if (n > 1) s[0] = (char)(0xf00 >> n | c);
    text_add(t, s, n);
}

static void text_part(Text *t) {
    static const i64 tops[] = {0x110000, 0x3000, 0x500};
    i64 kind = below(16);
    if (kind < 4) {
        if (below(2)) text_add(t, " ", 1);
        text_pick(t, "words");
    } else if (kind == 4) {
        for (i64 n = 1 + below(4); n > 0; n--) text_add(t, " ", 1);
    } else if (kind == 5) {
        text_pick(t, "spaces");
    } else if (kind == 6) {
        for (i64 n = 1 + below(7); n > 0; n--) text_character(t, (uint32_t)('0' + below(10)));
    } else if (kind < 9) {
        for (i64 n = 1 + below(3); n > 0; n--) text_pick(t, "signs");
    } else if (kind == 9) {
        text_add(t, "'", 1), text_pick(t, "tails");
    } else if (kind == 10) {
        text_pick(t, "added");
    } else if (kind == 11) {
        text_pick(t, "capitals");
    } else if (kind == 12) {
        for (i64 n = 1 + below(6); n > 0; n--) text_character(t, (uint32_t)('a' + below(26)));
    } else {
        uint32_t c = (uint32_t)below(tops[kind - 13]);
        text_character(t, (c >= 0xd800 && c < 0xe000) || c == 0 ? '?' : c);
    }
}

static void text_make(Text *t) {
    t->n = 0;
    for (i64 parts = 1 + below(24); parts > 0; parts--) text_part(t);
}

/* ---- there and back ---------------------------------------------------------------------------------------------- */

/* The bytes of the tokens behind those that begin every text are the text. */
static int comes_back(const Tokenizer *t, const Text *text, const int32_t *ids, i64 n) {
    Text back = {"", 0};
    for (i64 i = t->firsts; i < n; i++) {
        const Word *w = tokenizer_word(t, ids[i]);
        if (!w || back.n + w->n > text->n) return 0;
        text_add(&back, w->bytes, w->n);
    }
    return back.n == text->n && memcmp(back.bytes, text->bytes, (size_t)back.n) == 0;
}

static void hash_in(uint64_t *h, i64 value) { *h = mix64(*h ^ (uint64_t)value); }

static void hash_pieces(uint64_t *h, const Tokenizer *t, const Text *text) {
    static Character c[4097];
    i64 n = characters_read(c, text->bytes, text->n);
    for (i64 i = 0; i < n;) hash_in(h, i = piece_end(t->rule, c, i, n));
}

static int is_hash(const cJSON *list, i64 i, uint64_t h) {
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    return strcmp(cJSON_GetArrayItem(list, (int)i)->valuestring, text) == 0;
}

static i64 expected_count(const char *name) { return json_count(cJSON_GetObjectItem(expected, name)); }

/* Tokenizer of `dir` against what is expected of `name`. */
static void test_texts(const char *dir, const char *name) {
    const cJSON *want = cJSON_GetObjectItem(cJSON_GetObjectItem(expected, "cases"), name);
    Tokenizer *t = tokenizer_open(in(fixtures, dir));
    i64 group = expected_count("group"), groups = expected_count("strings") / group, tokens = 0, composed = 0, back = 0;
    i64 ids_off = 0, pieces_off = 0;
    counter = (uint64_t)expected_count("seed");
    for (i64 g = 0; g < groups; g++) {
        uint64_t ids = 0, pieces = 0;
        for (i64 i = 0; i < group; i++) {
            static Text text;
            i64 n;
            text_make(&text);
            int sound = nfc_until(text.bytes, text.n) == text.n;
            composed += sound;
            if (t->nfc && !sound) continue;
            int32_t *out = tokenizer_encode(t, "sample", text.bytes, text.n, 0, &n);
            hash_in(&ids, n);
            for (i64 k = 0; k < n; k++) hash_in(&ids, out[k]);
            hash_pieces(&pieces, t, &text);
            tokens += n, back += comes_back(t, &text, out, n);
            free(out);
        }
        ids_off += !is_hash(cJSON_GetObjectItem(want, "ids"), g, ids);
        pieces_off += !is_hash(cJSON_GetObjectItem(want, "pieces"), g, pieces);
    }
    i64 tried = t->nfc ? composed : groups * group;
    check(composed == json_count(cJSON_GetObjectItem(want, "composed")),
          "%s: %lld texts have normal form C beyond doubt", dir, composed);
    check(pieces_off == 0, "%s: pieces end where tokenizers ends them: not in %lld of %lld groups of texts", dir,
          pieces_off, groups);
    check(ids_off == 0 && tokens == json_count(cJSON_GetObjectItem(want, "tokens")),
          "%s: the %lld tokens that tokenizers makes: not in %lld of %lld groups of texts", dir, tokens,
          ids_off, groups);
    check(back == tried && tried > 1000, "%s: %lld of %lld texts come back", dir, back, tried);
    tokenizer_close(t);
}

/* One piece of 300,000 letters: a search for the next pair that walks the piece would not end today. */
static void test_long(void) {
    enum { LONG = 300000 };
    Tokenizer *t = tokenizer_open(in(fixtures, "gpt2"));
    char *text = (char *)host_alloc(LONG);
    i64 n, bytes = 0;
    for (i64 i = 0; i < LONG; i++) text[i] = "attention"[i % 9];
    int32_t *ids = tokenizer_encode(t, "sample", text, LONG, 0, &n);
    for (i64 i = 0; i < n; i++) bytes += tokenizer_word(t, ids[i])->n;
    check(bytes == LONG && n < LONG / 3, "a piece of %d letters is %lld tokens", LONG, n);
    free(ids);
    free(text);
    tokenizer_close(t);
}

static void test_bytes(void) {
    Tokenizer *t = tokenizer_bytes();
    Text text = {"", 0};
    i64 n, wrong = 0;
    for (i64 i = 0; i < 512; i++) text.bytes[text.n++] = (char)(i * 7);
    int32_t *ids = tokenizer_encode(t, "sample", text.bytes, text.n, 0, &n);
    for (i64 i = 0; i < n; i++) wrong += ids[i] != (unsigned char)text.bytes[i];
    check(n == 512 && wrong == 0 && comes_back(t, &text, ids, n), "tokens that are bytes");
    free(ids);
    tokenizer_close(t);
}

/* ---- refused ----------------------------------------------------------------------------------------------------- */

/* Copy `file` of the fixture into temp, there with `to` for the first `from`. */
static void write_changed(const char *fixture, const char *file, const char *from, const char *to) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s/%s", fixtures, fixture, file);
    FileMap m = file_map(path);
    const char *bytes = (const char *)m.bytes, *at = (const char *)memmem(bytes, (size_t)m.size, from, strlen(from));
    FILE *out = fopen(in(temp, file), "wb");
    if (!at || !out) FAIL(THIS_RANK, "%s: no %s in it, or cannot be written", file, from);
    i64 before = at - bytes, behind = before + (i64)strlen(from);
    fwrite(bytes, 1, (size_t)before, out), fputs(to, out), fwrite(bytes + behind, 1, (size_t)(m.size - behind), out);
    fclose(out);
    file_unmap(&m);
}

static const char *prompt;

static void try_encode(const char *dir) {
    i64 n;
    Tokenizer *t = tokenizer_open(dir);
    free(tokenizer_encode(t, "sample", prompt, (i64)strlen(prompt), 0, &n));
    tokenizer_close(t);
}

/* `why` NULL: it is read. */
static void expect(const char *what, const char *dir, const char *text, const char *why) {
    char said[4096];
    prompt = text;
    int status = run_child(try_encode, dir, said, sizeof said);
    int good = why ? is_one_error(status, said) && strstr(said, why) : status == 0;
    said[strcspn(said, "\n")] = 0;
    check(good, "%s: %s; status %d, said: %s", what, why ? why : "taken", status, said);
}

static void test_refused(void) {
    static const struct {
        const char *fixture, *from, *to, *why;
    } bad[] = {
        {"gpt2", "\"version\"", "\"version\"", NULL},
        {"gpt2", "\"type\":\"BPE\",", "", NULL},
        {"gpt2", "\"type\":\"BPE\"", "\"type\":\"Unigram\"",
         "a model of type \"Unigram\" is not implemented; give the prompt"},
        {"gpt2", "\"byte_fallback\":false", "\"byte_fallback\":true", "model.byte_fallback true is not implemented"},
        {"gpt2", "\"dropout\":null", "\"dropout\":0.1", "dropout is not implemented"},
        {"gpt2", "\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"",
         "continuing_subword_prefix is not"},
        {"gpt2", "\"normalizer\":null", "\"normalizer\":{\"type\":\"NFKC\"}", "a normalizer of type \"NFKC\" is not"},
        {"gpt2", "\"add_prefix_space\":false", "\"add_prefix_space\":true",
         "pre_tokenizer.add_prefix_space true is not"},
        {"gpt2", "\"use_regex\":true", "\"use_regex\":false", "only the pre_tokenizers of GPT-2, Llama 3"},
        {"gpt2", "\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "\"pre_tokenizer\":{\"type\":\"Metaspace\"",
         "type \"Metaspace\" is not"},
        {"gpt2", "\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"Fuse\"",
         "a decoder of type \"Fuse\" is not"},
        {"gpt2", "\"post_processor\":{\"type\":\"ByteLevel\"", "\"post_processor\":{\"type\":\"BertProcessing\"",
         "a post_processor of type \"BertProcessing\""},
        {"gpt2", "\"lstrip\":false", "\"lstrip\":true", "added_tokens.lstrip true is not implemented"},
        {"gpt2", "\"content\":\"<|endoftext|>\"", "\"content\":\"<|end|>\"", "token 0 comes up twice"},
        {"gpt2", "\"!\":1,", "\"!\":2,", "token 2 comes up twice"},
        {"gpt2", "\"!\":1,", "\"!\":-1,", "its id is not a number"},
        {"gpt2", "\"!\":1,", "", "the tokenizer has no token for the byte 0x21"},
        {"gpt2", "\"merges\":[[", "\"merges\":[[\"z\",\"qqq\"],[", "merge 0 joins, or makes, what is no word"},
        {"gpt2", "\"merges\":[[", "\"merges\":[7,[", "merge 0 is no pair of texts"},
        {"llama3", "\\\\p{N}{1,3}", "\\\\p{N}{1,2}", "a pre_tokenizer that splits by"},
        {"llama3", "\"behavior\":\"Isolated\"", "\"behavior\":\"Removed\"", "a pre_tokenizer that splits by"},
        {"llama3", "\"use_regex\":false", "\"use_regex\":true", "a pre_tokenizer that splits twice"},
        {"llama3", "\"ids\":[1]", "\"ids\":[4000]", "begins a text with a token that is not there"},
    };
    for (int i = 0; i < COUNT_OF(bad); i++) {
        write_changed(bad[i].fixture, "tokenizer.json", bad[i].from, bad[i].to);
        expect(bad[i].to, temp, "Hello!", bad[i].why);
    }
    expect("half a character", in(fixtures, "gpt2"), "abc\xc3", "byte 3 is not UTF-8");
    expect("a surrogate", in(fixtures, "gpt2"), "\xed\xa0\x80", "byte 0 is not UTF-8");
    expect("an accent by itself", in(fixtures, "qwen2"), "e\xcc\x81",
           "wants Unicode's normal form C, which the character at byte 1");
    expect("two marks", in(fixtures, "qwen2"), "\xd7\xa9\xd6\xb8\xd6\xbc", "the character at byte 4 may");
    expect("no normal form wanted", in(fixtures, "llama3"), "e\xcc\x81", NULL);
    unlink(in(temp, "tokenizer.json"));
    expect("nothing", temp, "", "vocab.json: cannot open");
    write_changed("gpt2-files", "vocab.json", "{", "{");
    write_changed("gpt2-files", "merges.txt", "#version", "#version");
    expect("two files", temp, "Hello!", NULL);
    write_changed("gpt2-files", "merges.txt", "\n", "\nnospace\n");
    expect("a merge without a space", temp, "", "merge 0 is no pair of texts");
    write_changed("gpt2-files", "merges.txt", "#version", "#version");
    FILE *config = fopen(in(temp, "tokenizer_config.json"), "w");
    fputs("{\"tokenizer_class\": \"Qwen2Tokenizer\"}", config);
    fclose(config);
    expect("files of another model", temp, "", "a Qwen2Tokenizer, but no tokenizer.json; make a tokenizer.json");
}

/* For tokenizers_check.py: texts on stdin, each behind its length; out come the number of its tokens, or -1 where it is
   refused, and they. */
static int encode_texts(const char *dir) {
    Tokenizer *t = tokenizer_open(dir);
    uint32_t length;
    while (fread(&length, sizeof length, 1, stdin) == 1) {
        i64 n = -1;
        char *text = (char *)host_alloc((size_t)length + 1);
        int32_t *ids = NULL, count;
        if (fread(text, 1, length, stdin) != length) FAIL(THIS_RANK, "a text ends early");
        if (!t->nfc || nfc_until(text, length) == (i64)length)
            ids = tokenizer_encode(t, "sample", text, length, 0, &n);
        count = (int32_t)n;
        fwrite(&count, sizeof count, 1, stdout);
        if (ids) fwrite(ids, sizeof *ids, (size_t)n, stdout);
        free(ids);
        free(text);
    }
    tokenizer_close(t);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "encode") == 0) return encode_texts(argv[2]);
    cJSON *root = json_parse_file(in(fixtures, "expected.json"));
    expected = root;
    if (!mkdtemp(temp)) FAIL(THIS_RANK, "%s: %s", temp, strerror(errno));
    test_texts("gpt2", "gpt2");
    test_texts("gpt2-files", "gpt2");
    test_texts("llama3", "llama3");
    test_texts("qwen2", "qwen2");
    test_long();
    test_bytes();
    test_refused();
    static const char *const made[] = {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"};
    for (int i = 0; i < COUNT_OF(made); i++) unlink(in(temp, made[i]));
    rmdir(temp);
    cJSON_Delete(root);
    return checks_done();
}

/* tokenizer.h - text to tokens and back: the byte-level BPE of GPT-2, Llama 3 and Qwen, from Hugging Face directories.

   text    -> added tokens are cut out, at each place the longest -> the rest falls into pieces by a regular expression
           -> the bytes of a piece, neighbours joined by the merges, the lowest rank first, of equals the leftmost
           -> tokens
   tokens  -> their bytes, one after the other
   files   tokenizer.json, else vocab.json + merges.txt (GPT-2's expression)

   Pieces that the three expressions know, one of them at a place, the first that fits:
     's 't 're 've 'm 'll 'd (Llama, Qwen: in capitals, too)     letters, with one character other than \r \n or a digit
     digits (GPT-2: any, Llama: up to 3, Qwen: 1)                 before them (GPT-2: with a space)
     other signs, with a space before (Llama, Qwen: and line ends behind)
     white space up to its last line end (Llama, Qwen), else all but what the next piece needs, else all

   Everything else that a tokenizer.json may ask for is refused by name. A template's tokens before the text are added,
   those behind it are not: the text shall go on. Qwen asks for normal form C; a text that may not have it is refused.
   Host only; every rank reads the same files.  Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019 (GPT-2). */
#ifndef ODYSSEUS_TOKENIZER_H
#define ODYSSEUS_TOKENIZER_H

#include "checkpoint.h"
#include "data.h"
#include "unicode.h"

typedef enum { PIECES_GPT2, PIECES_LLAMA3, PIECES_QWEN2, PIECES_WHOLE } PieceRule;
typedef enum { ADDED_NOT, ADDED_RAW, ADDED_NORMAL } Added; /* looked for before, or after normalizing */

typedef struct {
    const char *bytes; /* not terminated; in the tokenizer's pool */
    i64 n, id;
    int known; /* by the model: in its vocabulary, and written in its alphabet */
    Added added;
} Word;

typedef struct {
    i64 left, right, rank, whole; /* words, by their place; left -1: an empty slot */
} Merge;

typedef struct {
    PieceRule rule;
    int spelled, nfc, tries_whole; /* spelled in the alphabet; pieces that are words stay so, whatever the merges say */
    Word *word;           /* by id */
    i64 words;
    i64 *slot, slots; /* known words by their bytes: a hash table of places */
    Merge *merge;     /* by left and right: likewise */
    i64 merges, merge_slots;
    i64 *added, addeds;   /* places of added tokens, the longest first */
    i64 *first, firsts;   /* ids that every text begins with */
    i64 byte[256];        /* the word of one byte; -1: there is none */
    char *pool;
} Tokenizer;

/* ---- the alphabet ------------------------------------------------------------------------------------------------ */

/* Bytes of the character that s (n bytes, n > 0) begins with, and the character; 0: it is not UTF-8. */
static inline int utf8_read(const char *text, i64 n, uint32_t *c) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    int bytes = *s < 0x80 ? 1 : *s >> 5 == 6 ? 2 : *s >> 4 == 14 ? 3 : *s >> 3 == 30 ? 4 : 0;
    if (!bytes || bytes > n) return 0;
    *c = bytes == 1 ? *s : *s & (0x7fu >> bytes);
    for (int i = 1; i < bytes; i++) {
        if (s[i] >> 6 != 2) return 0;
        *c = *c << 6 | (s[i] & 63u);
    }
    return *c < least[bytes] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000) ? 0 : bytes;
}

/* The byte that a character of a vocabulary stands for; -1: none. Printable bytes stand for themselves, the others take
   the characters from 256 on. */
static inline int alphabet_byte(uint32_t c) {
    int printable = (c > 32 && c < 127) || (c > 160 && c < 256 && c != 173);
    if (printable) return (int)c;
    if (c < 256 || c >= 256 + 68) return -1;
    int k = (int)c - 256;
    return k < 33 ? k : k < 67 ? k - 33 + 127 : 173;
}

/* out = the bytes that `text`, of a vocabulary, stands for; their number, or -1: it is not written in the alphabet. */
static inline i64 alphabet_read(char *out, const char *text, i64 n) {
    i64 count = 0;
    for (i64 i = 0; i < n;) {
        uint32_t c;
        int bytes = utf8_read(text + i, n - i, &c), byte = bytes ? alphabet_byte(c) : -1;
        if (byte < 0) return -1;
        out[count++] = (char)byte, i += bytes;
    }
    return count;
}

/* ---- finding words and merges ------------------------------------------------------------------------------------ */

static inline uint64_t bytes_hash(const char *bytes, i64 n) {
    uint64_t h = (uint64_t)n;
    for (i64 i = 0; i < n; i++) h = (h ^ (unsigned char)bytes[i]) * 0x100000001b3ull;
    return mix64(h);
}

/* The slot of the known word with these bytes, or the empty one where it belongs. */
static inline i64 word_slot(const Tokenizer *t, const char *bytes, i64 n) {
    i64 i = (i64)(bytes_hash(bytes, n) % (uint64_t)t->slots);
    for (; t->slot[i] >= 0; i = (i + 1) % t->slots) {
        const Word *w = &t->word[t->slot[i]];
        if (w->n == n && memcmp(w->bytes, bytes, (size_t)n) == 0) break;
    }
    return i;
}

/* The place of the known word with these bytes; -1: there is none. */
static inline i64 word_find(const Tokenizer *t, const char *bytes, i64 n) { return t->slot[word_slot(t, bytes, n)]; }

static inline Merge *merge_slot(const Tokenizer *t, i64 left, i64 right) {
    i64 i = (i64)(mix64((uint64_t)left << 32 ^ (uint64_t)right) % (uint64_t)t->merge_slots);
    const Merge *m = t->merge;
    while (m[i].left >= 0 && (m[i].left != left || m[i].right != right)) i = (i + 1) % t->merge_slots;
    return &t->merge[i];
}

static inline int word_by_id(const void *a, const void *b) {
    const Word *x = (const Word *)a, *y = (const Word *)b;
    return (x->id > y->id) - (x->id < y->id);
}

/* The word of a token, its bytes or what an added one says; NULL: the tokenizer has no such token. */
static inline const Word *tokenizer_word(const Tokenizer *t, i64 id) {
    Word key = {NULL, 0, id, 0, ADDED_NOT};
    return (const Word *)bsearch(&key, t->word, (size_t)t->words, sizeof key, word_by_id);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

#define BY_TOKENS "give the prompt as tokens (--sample-ids)"

/* `item`, j's key, must be absent or null, or of one of `types` (NULL ends them): 0, or its place among them from 1. */
static inline int tokenizer_kind(const JsonAt *j, const char *key, const cJSON *item, const char *const *types) {
    if (!item || cJSON_IsNull(item)) return 0;
    JsonAt at = {j->path, "", item};
    const char *type = json_text(&at, "type", "");
    for (int i = 0; types[i]; i++)
        if (strcmp(type, types[i]) == 0) return i + 1;
    FAIL(EVERYONE, "%s: a %s of type \"%.40s\" is not implemented; " BY_TOKENS, j->path, key, type);
}

/* Visit `item`, or its parts where it is a Sequence of `list`. */
static inline void tokenizer_parts(Tokenizer *t, const JsonAt *j, const cJSON *item, const char *list,
                                   void (*part)(Tokenizer *, const JsonAt *, const cJSON *)) {
    JsonAt at = {j->path, "", item};
    if (!cJSON_IsObject(item) || strcmp(json_text(&at, "type", ""), "Sequence") != 0) {
        part(t, j, item);
        return;
    }
    const cJSON *parts = json_item(&at, list), *each;
    cJSON_ArrayForEach(each, parts) part(t, j, each);
}

static inline void read_normalizer(Tokenizer *t, const JsonAt *j, const cJSON *item) {
    static const char *const types[] = {"NFC", NULL};
    if (tokenizer_kind(j, "normalizer", item, types)) t->nfc = 1;
}

static const char *const PIECE_PATTERNS[] = {
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

/* A Split by an expression that we know, or ByteLevel with GPT-2's, or with none behind a Split: one in all. */
static inline void read_pieces(Tokenizer *t, const JsonAt *j, const cJSON *item) {
    static const char *const types[] = {"Split", "ByteLevel", NULL};
    JsonAt at = {j->path, "pre_tokenizer.", item};
    int kind = tokenizer_kind(j, "pre_tokenizer", item, types), rule = PIECES_GPT2, again = t->spelled;
    if (!kind) return;
    if (kind == 2) {
        json_demand(&at, "add_prefix_space", 0);
        t->spelled = 1;
        if (!json_flag(&at, "use_regex", 1)) return;
    } else {
        JsonAt pattern = {j->path, "pre_tokenizer.pattern.", json_item(&at, "pattern")};
        const char *text = json_text(&pattern, "Regex", "");
        while (rule < COUNT_OF(PIECE_PATTERNS) && strcmp(text, PIECE_PATTERNS[rule]) != 0) rule++;
        if (rule == COUNT_OF(PIECE_PATTERNS) || strcmp(json_text(&at, "behavior", ""), "Isolated") != 0)
            FAIL(EVERYONE, "%s: a pre_tokenizer that splits by \"%.60s...\" is not implemented, only those of GPT-2, "
                 "Llama 3 and Qwen 2 are; " BY_TOKENS, j->path, text);
        json_demand(&at, "invert", 0);
    }
    if (again || t->rule != PIECES_WHOLE)
        FAIL(EVERYONE, "%s: a pre_tokenizer that splits twice is not implemented; " BY_TOKENS, j->path);
    t->rule = rule == 0 ? PIECES_GPT2 : rule == 1 ? PIECES_LLAMA3 : PIECES_QWEN2;
}

/* Tokens that a template puts before a text. */
static inline void read_template(Tokenizer *t, const JsonAt *j, const cJSON *item) {
    static const char *const types[] = {"TemplateProcessing", "ByteLevel", NULL};
    JsonAt at = {j->path, "post_processor.", item};
    if (tokenizer_kind(j, "post_processor", item, types) != 1) return;
    const cJSON *each, *special = json_item(&at, "special_tokens");
    cJSON_ArrayForEach(each, json_item(&at, "single")) {
        const cJSON *named = json_find(j->path, each, "SpecialToken");
        if (!named) return;
        JsonAt token = {j->path, "post_processor.single.", named};
        const cJSON *found = json_find(j->path, special, json_text(&token, "id", NULL)), *id;
        cJSON_ArrayForEach(id, json_find(j->path, found, "ids")) {
            if (!tokenizer_word(t, json_count(id)))
                FAIL(EVERYONE, "%s: the post_processor begins a text with a token that is not there", j->path);
            t->first = (i64 *)realloc(t->first, sizeof(i64) * (size_t)(t->firsts + 1));
            if (!t->first) FAIL(THIS_RANK, "out of host memory");
            t->first[t->firsts++] = json_count(id);
        }
    }
}

/* A token under its id; `pool` is where its bytes go. Returns the end of them. */
static inline char *add_word(Tokenizer *t, const char *path, const char *text, const cJSON *id, Added added,
                             char *pool) {
    i64 n = (i64)strlen(text), bytes = added ? -1 : alphabet_read(pool, text, n), number = json_count(id);
    if (number < 0 || number > INT32_MAX || !n) FAIL(EVERYONE, "%s: a token is empty, or its id is not a number", path);
    if (bytes < 0) memcpy(pool, text, (size_t)n);
    Word w = {pool, bytes < 0 ? n : bytes, number, bytes >= 0, added};
    t->word[t->words++] = w;
    return pool + w.n;
}

/* Words by id; an added token that is a word of the vocabulary as well is one. Then the tables over them. */
static inline void index_words(Tokenizer *t, const char *path) {
    i64 n = 0;
    qsort(t->word, (size_t)t->words, sizeof *t->word, word_by_id);
    for (i64 i = 0; i < t->words; i++) {
        Word *w = &t->word[i], *before = n ? &t->word[n - 1] : NULL;
        if (!before || before->id != w->id) {
            t->word[n++] = *w;
        } else {
            if (before->n != w->n || memcmp(before->bytes, w->bytes, (size_t)w->n) != 0 || !before->added == !w->added)
                FAIL(EVERYONE, "%s: token %lld comes up twice", path, w->id);
            before->known |= w->known, before->added = before->added ? before->added : w->added;
        }
    }
    t->words = n, t->slots = 2 * n + 1;
    t->slot = (i64 *)host_alloc(sizeof(i64) * (size_t)t->slots);
    t->added = (i64 *)host_alloc(sizeof(i64) * (size_t)n);
    for (i64 i = 0; i < t->slots; i++) t->slot[i] = -1;
    for (i64 i = 0; i < n; i++) {
        const Word *w = &t->word[i];
        i64 at = t->addeds, slot = word_slot(t, w->bytes, w->n);
        if (w->known && t->slot[slot] >= 0)
            FAIL(EVERYONE, "%s: tokens %lld and %lld are the same text", path, t->word[t->slot[slot]].id,
                 w->id);
        if (w->known) t->slot[slot] = i;
        if (!w->added) continue;
        for (t->addeds++; at > 0 && t->word[t->added[at - 1]].n < w->n; at--) t->added[at] = t->added[at - 1];
        t->added[at] = i;
    }
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        t->byte[b] = word_find(t, &byte, 1);
    }
}

/* The next merge: its two halves, in the alphabet. */
static inline void add_merge(Tokenizer *t, const char *path, const char *left, i64 nl, const char *right, i64 nr) {
    char *bytes = (char *)host_alloc((size_t)(nl + nr));
    i64 l = alphabet_read(bytes, left, nl), r = l < 0 ? -1 : alphabet_read(bytes + l, right, nr);
    i64 a = l < 1 ? -1 : word_find(t, bytes, l), b = r < 1 ? -1 : word_find(t, bytes + l, r);
    i64 whole = a < 0 || b < 0 ? -1 : word_find(t, bytes, l + r);
    free(bytes);
    if (whole < 0)
        FAIL(EVERYONE, "%s: merge %lld joins, or makes, what is no word of the vocabulary", path, t->merges);
    Merge m = {a, b, t->merges++, whole};
    *merge_slot(t, a, b) = m;
}

static inline void merges_begin(Tokenizer *t, i64 count) {
    t->merge_slots = 2 * count + 1;
    t->merge = (Merge *)host_alloc(sizeof(Merge) * (size_t)t->merge_slots);
    for (i64 i = 0; i < t->merge_slots; i++) t->merge[i].left = -1;
}

/* An entry of added_tokens: what it is, and nothing that moves the text around it. */
static inline char *read_added(Tokenizer *t, const char *path, const cJSON *item, char *pool) {
    static const char *const refused[] = {"single_word", "lstrip", "rstrip"};
    JsonAt at = {path, "added_tokens.", item};
    for (int i = 0; i < COUNT_OF(refused); i++) json_demand(&at, refused[i], 0);
    Added added = json_flag(&at, "normalized", 0) ? ADDED_NORMAL : ADDED_RAW;
    const cJSON *content = json_find(path, item, "content");
    if (!cJSON_IsString(content)) json_missing(&at, "content");
    return add_word(t, path, content->valuestring, json_find(path, item, "id"), added, pool);
}

static inline void read_json_model(Tokenizer *t, const JsonAt *model, const cJSON *added, i64 size) {
    static const char *const types[] = {"BPE", NULL};
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *path = model->path;
    const cJSON *vocab = json_item(model, "vocab"), *merges = json_item(model, "merges"), *each;
    if (!cJSON_IsArray(merges) || json_item(model, "type")) tokenizer_kind(model, "model", model->object, types);
    for (int i = 0; i < COUNT_OF(empty); i++) {
        const cJSON *item = json_item(model, empty[i]);
        if (item && !(cJSON_IsString(item) && !*item->valuestring))
            FAIL(EVERYONE, "%s: a model with %s is not implemented; " BY_TOKENS, path, empty[i]);
    }
    if (json_item(model, "dropout") && json_real(model, "dropout", 0, 0, 1) != 0)
        FAIL(EVERYONE, "%s: a model with dropout is not implemented; " BY_TOKENS, path);
    json_demand(model, "byte_fallback", 0);
    t->tries_whole = json_flag(model, "ignore_merges", 0);
    if (!cJSON_IsObject(vocab)) json_missing(model, "vocab");
    t->word = (Word *)host_alloc(sizeof(Word) * (size_t)(cJSON_GetArraySize(vocab) + cJSON_GetArraySize(added) + 1));
    char *pool = t->pool = (char *)host_alloc((size_t)size);
    cJSON_ArrayForEach(each, vocab) pool = add_word(t, path, each->string, each, ADDED_NOT, pool);
    cJSON_ArrayForEach(each, added) pool = read_added(t, path, each, pool);
    index_words(t, path);
    merges_begin(t, cJSON_GetArraySize(merges));
    cJSON_ArrayForEach(each, merges) {
        const cJSON *l = each->child, *r = l ? l->next : NULL;
        const char *text = cJSON_IsString(each) ? each->valuestring : "", *space = strchr(text, ' ');
        if (space) add_merge(t, path, text, space - text, space + 1, (i64)strlen(space + 1));
        else if (cJSON_IsString(l) && cJSON_IsString(r) && !r->next)
            add_merge(t, path, l->valuestring, (i64)strlen(l->valuestring), r->valuestring,
                      (i64)strlen(r->valuestring));
        else FAIL(EVERYONE, "%s: merge %lld is no pair of texts", path, t->merges);
    }
}

static inline void read_tokenizer_json(Tokenizer *t, const char *path, i64 size) {
    cJSON *root = json_parse_file(path);
    JsonAt j = {path, "", root}, model = {path, "model.", json_item(&j, "model")};
    static const char *const decoders[] = {"ByteLevel", NULL};
    tokenizer_kind(&j, "decoder", json_item(&j, "decoder"), decoders);
    tokenizer_parts(t, &j, json_item(&j, "normalizer"), "normalizers", read_normalizer);
    tokenizer_parts(t, &j, json_item(&j, "pre_tokenizer"), "pretokenizers", read_pieces);
    if (t->rule == PIECES_WHOLE || !t->spelled)
        FAIL(EVERYONE, "%s: only the pre_tokenizers of GPT-2, Llama 3 and Qwen 2, with ByteLevel, are implemented; "
             BY_TOKENS, path);
    read_json_model(t, &model, json_item(&j, "added_tokens"), size);
    tokenizer_parts(t, &j, json_item(&j, "post_processor"), "processors", read_template);
    cJSON_Delete(root);
}

#define BY_FAST "make a tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"

/* What lies beside vocab.json and merges.txt must not say that they are another model's than GPT-2. */
static inline void check_gpt2(const char *dir) {
    char path[PATH_MAX];
    path_join(path, dir, "added_tokens.json");
    if (path_exists(path)) FAIL(EVERYONE, "%s: added tokens, but no tokenizer.json; " BY_FAST, path);
    path_join(path, dir, "tokenizer_config.json");
    if (!path_exists(path)) return;
    cJSON *root = json_parse_file(path);
    JsonAt j = {path, "", root};
    const char *name = json_item(&j, "tokenizer_class") ? json_text(&j, "tokenizer_class", NULL) : "GPT2Tokenizer";
    if (strcmp(name, "GPT2Tokenizer") != 0 && strcmp(name, "GPT2TokenizerFast") != 0)
        FAIL(EVERYONE, "%s: a %.60s, but no tokenizer.json; " BY_FAST, path, name);
    cJSON_Delete(root);
}

/* GPT-2's two files: a vocabulary, and merges a line; its end of a text counts as an added token. */
static inline void read_vocab_merges(Tokenizer *t, const char *vocab, const char *merges) {
    cJSON *root = json_parse_file(vocab);
    FileMap file = file_map(merges);
    const cJSON *each;
    i64 size = 0, lines = 0;
    cJSON_ArrayForEach(each, root) size += (i64)strlen(each->string);
    t->rule = PIECES_GPT2;
    t->word = (Word *)host_alloc(sizeof(Word) * (size_t)(cJSON_GetArraySize(root) + 1));
    char *pool = t->pool = (char *)host_alloc((size_t)size);
    cJSON_ArrayForEach(each, root) {
        int ends = strcmp(each->string, "<|endoftext|>") == 0;
        pool = add_word(t, vocab, each->string, each, ends ? ADDED_NORMAL : ADDED_NOT, pool);
    }
    cJSON_Delete(root);
    index_words(t, vocab);
    const char *bytes = (const char *)file.bytes;
    for (i64 i = 0; i < file.size; i++) lines += bytes[i] == '\n';
    merges_begin(t, lines + 1);
    for (i64 i = 0, end; i < file.size; i = end + 1) {
        const char *line = bytes + i, *stop = (const char *)memchr(line, '\n', (size_t)(file.size - i)), *space;
        end = stop ? stop - bytes : file.size;
        if (end == i || (end - i >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        space = (const char *)memchr(line, ' ', (size_t)(end - i));
        if (!space) FAIL(EVERYONE, "%s: merge %lld is no pair of texts", merges, t->merges);
        add_merge(t, merges, line, space - line, space + 1, bytes + end - space - 1);
    }
    file_unmap(&file);
}

static inline void tokenizer_close(Tokenizer *t) {
    free(t->word);
    free(t->slot);
    free(t->merge);
    free(t->added);
    free(t->first);
    free(t->pool);
    free(t);
}

static inline int tokenizer_is_in(const char *dir) {
    char path[PATH_MAX];
    path_join(path, dir, "tokenizer.json");
    if (path_exists(path)) return 1;
    path_join(path, dir, "merges.txt");
    return path_exists(path);
}

/* The tokenizer whose files lie in `dir`. Owner: caller; tokenizer_close. */
static inline Tokenizer *tokenizer_open(const char *dir) {
    char path[PATH_MAX], merges[PATH_MAX];
    struct stat st;
    Tokenizer *t = (Tokenizer *)host_alloc(sizeof *t);
    t->rule = PIECES_WHOLE;
    path_join(path, dir, "tokenizer.json");
    if (stat(path, &st) == 0) {
        read_tokenizer_json(t, path, (i64)st.st_size);
        return t;
    }
    check_gpt2(dir);
    path_join(path, dir, "vocab.json");
    path_join(merges, dir, "merges.txt");
    read_vocab_merges(t, path, merges);
    return t;
}

/* Tokens that are bytes. Owner: caller; tokenizer_close. */
static inline Tokenizer *tokenizer_bytes(void) {
    Tokenizer *t = (Tokenizer *)host_alloc(sizeof *t);
    t->rule = PIECES_WHOLE;
    t->pool = (char *)host_alloc(TOKENS_ARE_BYTES);
    t->word = (Word *)host_alloc(sizeof(Word) * TOKENS_ARE_BYTES);
    for (int b = 0; b < TOKENS_ARE_BYTES; b++) {
        Word w = {t->pool + b, 1, b, 1, ADDED_NOT};
        t->pool[b] = (char)b, t->word[t->words++] = w;
    }
    index_words(t, "bytes");
    merges_begin(t, 0);
    return t;
}

/* ---- pieces ------------------------------------------------------------------------------------------------------ */

typedef struct {
    uint32_t c;
    int kind; /* CHAR_LETTER, ... */
    i64 at;   /* its first byte */
} Character;

static inline int is_line_end(const Character *s) { return s->c == '\r' || s->c == '\n'; }

static inline int is_kind(const Character *s, i64 i, i64 n, int kind) { return i < n && s[i].kind == kind; }

/* Characters of 's, 't, 're, ... at s; 0: none. */
static inline i64 contraction(const Character *s, i64 n, int capitals) {
    static const char *const ends[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    for (int k = 0; k < COUNT_OF(ends) && s->c == '\''; k++) {
        i64 i = 0, length = (i64)strlen(ends[k]);
        for (; i < length && i + 1 < n; i++) {
            uint32_t c = s[i + 1].c;
            if (capitals && c >= 'A' && c <= 'Z') c += 'a' - 'A';
            if (capitals && c == 0x17f) c = 's'; /* the long s, whose capital is S, too */
            if (c != (uint32_t)ends[k][i]) break;
        }
        if (i == length) return 1 + length;
    }
    return 0;
}

/* Where the piece that begins at character i of n ends. */
static inline i64 piece_end(PieceRule rule, const Character *s, i64 i, i64 n) {
    int newer = rule != PIECES_GPT2, space = s[i].c == ' ';
    i64 end = i, digits = rule == PIECES_LLAMA3 ? 3 : rule == PIECES_QWEN2 ? 1 : n, line = 0;
    if (rule == PIECES_WHOLE) return n;
    if ((end = contraction(s + i, n - i, newer)) > 0) return i + end;
    int before = newer ? s[i].kind != CHAR_LETTER && s[i].kind != CHAR_NUMBER && !is_line_end(&s[i]) : space;
    end = i + before;
    if (is_kind(s, end, n, CHAR_LETTER)) {
        while (is_kind(s, end, n, CHAR_LETTER)) end++;
        return end;
    }
    end = i + (!newer && space);
    if (is_kind(s, end, n, CHAR_NUMBER)) {
        for (i64 from = end; is_kind(s, end, n, CHAR_NUMBER) && end - from < digits;) end++;
        return end;
    }
    end = i + space;
    if (is_kind(s, end, n, CHAR_OTHER)) {
        while (is_kind(s, end, n, CHAR_OTHER)) end++;
        while (newer && end < n && is_line_end(&s[end])) end++;
        return end;
    }
    for (end = i; is_kind(s, end, n, CHAR_SPACE); end++)
        if (is_line_end(&s[end])) line = end + 1;
    if (newer && line) return line;
    return end == n || end == i + 1 ? end : end - 1;
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

typedef struct {
    i64 word, before, after; /* places of words and symbols; word -1: gone, after -1: the last */
} Symbol;

typedef struct {
    Merge m;
    i64 at; /* its left symbol */
} Join;

typedef struct {
    const Tokenizer *t;
    const char *flag; /* for messages */
    Symbol *symbol;
    Character *character;
    Join *heap; /* the next one first */
    i64 joins;
    int32_t *out;
    i64 n;
} Encoder;

static inline int join_earlier(const Join *a, const Join *b) {
    return a->m.rank != b->m.rank ? a->m.rank < b->m.rank : a->at < b->at;
}

/* The pair that begins at symbol `at`, if there is a merge for it, joins the heap. */
static inline void heap_push(Encoder *e, i64 at) {
    if (at < 0 || e->symbol[at].after < 0) return;
    Join j = {*merge_slot(e->t, e->symbol[at].word, e->symbol[e->symbol[at].after].word), at};
    if (j.m.left < 0) return;
    i64 i = e->joins++;
    for (; i > 0 && join_earlier(&j, &e->heap[(i - 1) / 2]); i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = j;
}

static inline Join heap_pop(Encoder *e) {
    Join top = e->heap[0], last = e->heap[--e->joins];
    i64 i = 0;
    for (i64 child = 1; child < e->joins; child = 2 * i + 1) {
        if (child + 1 < e->joins && join_earlier(&e->heap[child + 1], &e->heap[child])) child++;
        if (!join_earlier(&e->heap[child], &last)) break;
        e->heap[i] = e->heap[child], i = child;
    }
    e->heap[i] = last;
    return top;
}

static inline void encode_piece(Encoder *e, const char *bytes, i64 n) {
    const Tokenizer *t = e->t;
    Symbol *s = e->symbol;
    i64 whole = t->tries_whole ? word_find(t, bytes, n) : -1;
    for (i64 i = 0; i < n && whole < 0; i++) {
        Symbol one = {t->byte[(unsigned char)bytes[i]], i - 1, i + 1 < n ? i + 1 : -1};
        s[i] = one;
        if (one.word < 0)
            FAIL(EVERYONE, "--%s: the tokenizer has no token for the byte 0x%02x", e->flag, (unsigned char)bytes[i]);
    }
    for (i64 i = 0; i < n && whole < 0; i++) heap_push(e, i);
    while (e->joins) {
        Join j = heap_pop(e);
        i64 right = s[j.at].after;
        if (s[j.at].word != j.m.left || right < 0 || s[right].word != j.m.right) continue; /* one of them has gone */
        s[j.at].word = j.m.whole, s[j.at].after = s[right].after, s[right].word = -1;
        if (s[right].after >= 0) s[s[right].after].before = j.at;
        heap_push(e, s[j.at].before);
        heap_push(e, j.at);
    }
    if (whole >= 0) e->out[e->n++] = (int32_t)t->word[whole].id;
    for (i64 i = 0; i >= 0 && whole < 0; i = s[i].after) e->out[e->n++] = (int32_t)t->word[s[i].word].id;
}

/* The characters of text, with one more for its end. Returns how many; text is UTF-8. */
static inline i64 characters_read(Character *out, const char *text, i64 n) {
    i64 count = 0, i = 0;
    while (i < n) {
        Character *c = &out[count++];
        c->at = i, i += utf8_read(text + i, n - i, &c->c);
        c->kind = character_bits(c->c) & CHAR_CLASS;
    }
    out[count].at = n;
    return count;
}

static inline void encode_pieces(Encoder *e, const char *text, i64 n) {
    if (e->t->rule == PIECES_WHOLE) {
        encode_piece(e, text, n);
        return;
    }
    Character *c = e->character;
    i64 count = characters_read(c, text, n);
    for (i64 i = 0, end; i < count; i = end) {
        end = piece_end(e->t->rule, c, i, count);
        encode_piece(e, text + c[i].at, c[end].at - c[i].at);
    }
}

/* The longest added token of this kind at s; NULL: none. */
static inline const Word *added_at(const Tokenizer *t, const char *s, i64 n, Added kind) {
    for (i64 i = 0; i < t->addeds; i++) {
        const Word *w = &t->word[t->added[i]];
        if (w->added == kind && w->n <= n && *w->bytes == *s && memcmp(w->bytes, s, (size_t)w->n) == 0) return w;
    }
    return NULL;
}

/* What stands between added tokens of this kind, and them. */
static inline void encode_span(Encoder *e, const char *text, i64 n, Added kind) {
    i64 from = 0;
    for (i64 at = 0; at <= n;) {
        const Word *w = at < n ? added_at(e->t, text + at, n - at, kind) : NULL;
        if ((w || at == n) && at > from) {
            if (kind == ADDED_RAW) encode_span(e, text + from, at - from, ADDED_NORMAL);
            else encode_pieces(e, text + from, at - from);
        }
        if (w) e->out[e->n++] = (int32_t)w->id, from = at += w->n;
        else at++;
    }
}

/* The first byte of text from which on it may not have normal form C; n: it has it. Text is UTF-8. */
static inline i64 nfc_until(const char *text, i64 n) {
    int mark = 0;
    for (i64 i = 0; i < n;) {
        uint32_t c = 0;
        int bytes = utf8_read(text + i, n - i, &c), bits = character_bits(c);
        if (bits & CHAR_MOVES || (mark && bits & CHAR_MARK)) return i;
        mark = bits & CHAR_MARK, i += bytes;
    }
    return n;
}

/* The tokens of text (n bytes), those that begin every text among them; *count of them, with room for `room` more.
   `flag` is where the text comes from. Owner: caller; free. */
static inline int32_t *tokenizer_encode(const Tokenizer *t, const char *flag, const char *text, i64 n, i64 room,
                                        i64 *count) {
    size_t size = (size_t)n + 1;
    uint32_t c;
    for (i64 i = 0, bytes; i < n && t->rule != PIECES_WHOLE; i += bytes) {
        bytes = utf8_read(text + i, n - i, &c);
        if (!bytes) FAIL(EVERYONE, "--%s: byte %lld is not UTF-8", flag, i);
    }
    i64 sound = t->nfc ? nfc_until(text, n) : n;
    if (sound < n)
        FAIL(EVERYONE, "--%s: this tokenizer wants Unicode's normal form C, which the character at byte %lld may not "
             "have; compose it, or " BY_TOKENS, flag, sound);
    Encoder e = {t, flag, NULL, NULL, NULL, 0, NULL, 0};
    e.symbol = (Symbol *)host_alloc(sizeof(Symbol) * size);
    e.character = (Character *)host_alloc(sizeof(Character) * size);
    e.heap = (Join *)host_alloc(3 * sizeof(Join) * size);
    e.out = (int32_t *)host_alloc(sizeof(int32_t) * (size + (size_t)(t->firsts + room)));
    for (i64 i = 0; i < t->firsts; i++) e.out[e.n++] = (int32_t)t->first[i];
    encode_span(&e, text, n, ADDED_RAW);
    free(e.symbol);
    free(e.character);
    free(e.heap);
    *count = e.n;
    return e.out;
}

/* Print text (n bytes); what is no character, or would steer a terminal, becomes a question mark. */
static inline void text_print(const char *text, i64 n) {
    for (i64 i = 0, bytes; i < n; i += i64_max(bytes, 1)) {
        uint32_t c = 0;
        bytes = utf8_read(text + i, n - i, &c);
        int steers = (c < 32 && c != '\n' && c != '\t') || (c >= 127 && c < 160);
        if (bytes && !steers) fwrite(text + i, 1, (size_t)bytes, stdout);
        else putchar('?');
    }
}

/* Print n tokens: the text that they are, or (NULL) their numbers. */
static inline void tokens_print(const Tokenizer *t, const int32_t *tokens, i64 n) {
    i64 bytes = 0, at = 0;
    for (i64 i = 0; i < n && !t; i++) printf(i ? ",%d" : "%d", tokens[i]);
    for (i64 i = 0; i < n && t; i++) {
        const Word *w = tokenizer_word(t, tokens[i]);
        bytes += w ? w->n : 1;
    }
    char *text = (char *)host_alloc((size_t)bytes);
    for (i64 i = 0; i < n && t; i++) {
        const Word *w = tokenizer_word(t, tokens[i]);
        if (w) memcpy(text + at, w->bytes, (size_t)w->n);
        at += w ? w->n : 1;
    }
    text_print(text, bytes);
    free(text);
}

#endif

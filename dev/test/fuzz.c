/* fuzz.c - every reader of files and flags against inputs that nobody would write, under libFuzzer, ASan and UBSan.

   FUZZ_TARGET=config FUZZ_SEEDS=DIR build/fuzz -runs=0     write the target's first inputs into DIR
   FUZZ_TARGET=config build/fuzz DIR                        fuzz; dev/test/fuzz.sh does both for every target

   input bytes -> files in a directory in memory -> the trainer's own reader -> accepted:
   what it holds must be consistent
                                                                             -> refused: exactly one line of error

   A finding is a sanitizer's report, a hang, memory out of proportion, or a demand() that fails. FAIL ends a
   process, so here it jumps back into fuzz_one, which then frees what the reader had: memory by the
   sanitizer's own hooks, descriptors by number. mmap is replaced by a copy of the file on the heap, where a
   read one byte beyond its end is seen.                                                                              */
#include <fcntl.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <unistd.h>

static void *fuzz_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset);
static int fuzz_munmap(void *at, size_t bytes);
#define mmap fuzz_mmap
#define munmap fuzz_munmap
#include "support.h"
#undef mmap
#undef munmap

int __sanitizer_install_malloc_and_free_hooks(void (*made)(const volatile void *, size_t),
                                              void (*freed)(const volatile void *));

static FILE *console;          /* the real stderr */
static char said[8192];        /* what the reader writes to its stderr */
static char directory[64];     /* in memory; removed at exit */
static jmp_buf refused;

#define demand(condition, ...) \
    do { \
        if (condition) break; \
        fprintf(console, "fuzz: line %d: not so: %s: ", __LINE__, #condition); \
        fprintf(console, __VA_ARGS__); \
        fprintf(console, "\n"); \
        fflush(console); \
        abort(); \
    } while (0)

/* ---- what the reader holds, to be freed when it is refused: a hash table of live pointers ------------------------ */

enum { HELD = 1 << 15 };
static const volatile void *held[HELD];
static char gone; /* &gone: was freed */
static __thread int holding; /* by this thread alone: libFuzzer has one of its own, which looks after memory */
static void *reserved; /* the arena's address space */
static size_t reserved_bytes;

static int held_slot(const volatile void *p, const volatile void *stop) {
    uint64_t i = (uint64_t)(uintptr_t)p / 16 * 0x9E3779B97F4A7C15ull >> 49;
    for (int tried = 0; tried < HELD; tried++, i = (i + 1) % HELD)
        if (held[i] == p || held[i] == stop || !held[i]) return (int)i;
    demand(0, "more than %d allocations", HELD);
    return 0;
}

static void on_malloc(const volatile void *p, size_t bytes) {
    (void)bytes;
    if (holding && p) held[held_slot(p, &gone)] = p;
}

static void on_free(const volatile void *p) {
    if (!holding || !p) return;
    int i = held_slot(p, p);
    if (held[i]) held[i] = &gone;
}

static void release(void) {
    holding = 0;
    for (int i = 0; i < HELD; i++) {
        if (held[i] && held[i] != &gone) free((void *)(uintptr_t)held[i]);
        held[i] = NULL;
    }
    if (reserved) munmap(reserved, reserved_bytes);
    reserved = NULL;
    close_range((unsigned)fileno(console) + 1, ~0u, 0);
}

static void *fuzz_mmap(void *at, size_t bytes, int prot, int flags, int fd, off_t offset) {
    if (fd < 0) {
        reserved_bytes = bytes;
        return reserved = mmap(at, bytes, prot, flags, fd, offset);
    }
    void *copy = malloc(bytes);
    return copy && pread(fd, copy, bytes, offset) == (ssize_t)bytes ? copy : MAP_FAILED;
}

static int fuzz_munmap(void *at, size_t bytes) {
    if (at != reserved) {
        free(at);
        return 0;
    }
    reserved = NULL;
    return munmap(at, bytes);
}

/* ---- an input, taken apart --------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at;
    size_t left;
} Input;

static int take_byte(Input *in) { return in->left ? (in->left--, *in->at++) : 0; }

/* The bytes up to the next zero, which is skipped. */
static Input take_text(Input *in) {
    const uint8_t *zero = (const uint8_t *)memchr(in->at, 0, in->left);
    Input text = {in->at, zero ? (size_t)(zero - in->at) : in->left};
    in->at += text.left + (zero != NULL), in->left -= text.left + (zero != NULL);
    return text;
}

static const char *file_path(const char *name) {
    static char path[4][PATH_MAX];
    static int turn;
    turn = (turn + 1) % 4;
    path_join(path[turn], directory, name);
    return path[turn];
}

static void write_file(const char *name, const void *head, size_t head_bytes, const void *body, size_t body_bytes) {
    int fd = open(file_path(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    demand(fd >= 0 && write(fd, head, head_bytes) == (ssize_t)head_bytes, "%s: cannot write", name);
    demand(write(fd, body, body_bytes) == (ssize_t)body_bytes, "%s: cannot write", name);
    close(fd);
}

static void seed(const char *name, const void *bytes, size_t n) {
    char path[PATH_MAX];
    path_join(path, getenv("FUZZ_SEEDS"), name);
    FILE *f = fopen(path, "wb");
    demand(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0, "%s: cannot write", path);
}

/* ---- flags: lines of arguments; a byte from 128 on opens `--name` of the table's flag with that number ----------- */

/* Plan a step as the first and as the last rank; what is counted must be the closed form. */
static void flags_plan(ModelOptions *o, const Settings *s) {
    for (int last = 0; last < 2; last++) {
        Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
        t->settings = s, t->options = *o;
        model_init(&t->model, &t->options, wire_none(), 1, last ? (int)o->shape.world - 1 : 0);
        trainer_plan(t);
        for (int i = 0; i < (int)(sizeof(Ledger) / sizeof(LedgerRow)); i++) {
            const LedgerRow *row = &t->model.ledger.row[0][0][0][0] + i;
            demand(row->bytes == row->expected && row->bytes >= 0, "ledger row %d: %lld bytes, formula %lld", i,
                   row->bytes, row->expected);
        }
        model_free(&t->model);
        free(t);
    }
}

static void flags_one(Input in) {
    static char text[1 << 16];
    char *argv[256] = {(char *)(uintptr_t)"train_gpt"};
    int argc = 1;
    size_t n = 0;
    while (in.left && argc < COUNT_OF(argv) && n + in.left + 64 < sizeof text) {
        argv[argc++] = text + n;
        if (*in.at >= 128) n += (size_t)snprintf(text + n, 64, "--%s", FLAGS[take_byte(&in) % COUNT_OF(FLAGS)].name);
        for (int c; in.left && (c = take_byte(&in)) != '\n';) text[n++] = (char)c;
        text[n++] = 0;
    }
    Settings s;
    FlagsGiven given;
    ModelOptions o;
    flags_parse(&s, &given, argc, argv);
    check_flags(&s, &given);
    if (s.dump_grads) check_writable(&s, "dump-grads", s.dump_grads);
    i64 world = s.world ? s.world : 4;
    const Scheme *scheme = scheme_find(s.sp);
    options_from_flags(&o, scheme, context_find(s.context, scheme), &s, &given, world, device_place(0, 1, 1));
    options_check(&o);
    demand(o.shape.dp * o.shape.ring * o.shape.head == world, "mesh");
    demand(o.batch % (o.shape.dp * o.B) == 0 && o.L % (o.shape.ring * o.shape.head) == 0, "batch");
    /* a dry run, where it takes no longer than the model's size warrants */
    double rows = (double)o.L * (double)o.B / (double)(o.shape.ring * o.shape.head);
    if (world <= 64 && o.config.layers <= 4 && micro_steps(&o) <= 4 && rows * (double)o.config.vocab < 1e9)
        flags_plan(&o, &s);
}

static void flags_seeds(void) {
    static const char *const lines[] =
        {"--help",
         "--model\ntiny-gpt\n--max-pos\n64\n--seq-len\n64",
         "--sp\nring\n--ring-layout\nstripe\n--dp\n2\n--batch\n8\n--micro-batch\n2",
         "--sp\nulysses\n--dry-run\n--world\n16\n--ring\n2\n--heads\n16\n--kv-heads\n2\n--recompute\nfull",
         "--init-only\n--out\nx\n--layers\n2\n--dim\n64\n--ffn\n96",
         "--sp\ntpsp\n--arch\ngpt2\n--lr\n1e-3\n--min-lr\n1e-4\n--warmup\n10\n--steps\n100\n--overlap\noff\n"
         "--vocab\n300\n--tied-head\non",
         "--sp\ntp\n--rope-theta\n5e5\n--kv-heads\n8\n--eval-every\n5\n--val\ny\n--train\nx\n--seed\n7\n"
         "--dump-grads\n/tmp/g",
         "--sp\nodysseus\n--ignore-token\n3\n--threads\n2\n--peak-tflops\n0.5\n--selfcheck\non\n--log-every\n2\n"
         "--grad-clip\n0\n--eps\n1e-6"};
    for (int i = 0; i < COUNT_OF(lines); i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        seed(name, lines[i], strlen(lines[i]));
    }
}

/* ---- shard: L, vocabulary, how to frame; then one raw file, or the tokens of two files under right headers, the first
   with a mask of its own bytes, raw or framed ---- */

typedef struct {
    int raw, wide;
    i64 L, vocab, first; /* first: bytes in the first of two files */
} ShardInput;

static void shard_write(const char *name, int wide, const uint8_t *bytes, i64 n) {
    int32_t header[256] = {wide ? 20240801 : 20240520, wide ? 7 : 1, (int32_t)(n / (wide ? 4 : 2))};
    write_file(name, header, sizeof header, bytes, (size_t)n);
}

/* Every token of every sequence, and its target, is what stands in the bytes; `masked`: or left out. */
static void shard_compare(Dataset *d, const uint8_t *bytes, i64 left, int masked) {
    const TokenMap map = token_map(RING_ZIGZAG, d->L, d->L % 4 == 0 ? 2 : 1, 0);
    int32_t got[1024];
    i64 sequences = 0;
    for (int i = 0; i < d->shards; i++) {
        const Shard *s = &d->shard[i];
        i64 n = s->tokens;
        demand(n >= 0 && (n * s->width <= left || d->shards == 1) && s->first == sequences, "shard %d has %lld tokens",
               i, n);
        for (i64 j = 0; j < (n - 1) / d->L && n > 0; j++, sequences++)
            for (i64 shift = 0; shift < 2; shift++) {
                dataset_targets(d, sequences, &map, shift, -1, got, 0, 1);
                for (i64 t = 0; t < map.count; t++) {
                    i64 at = (j * d->L + token_position(&map, t) + shift) * s->width;
                    uint32_t want = bytes[at] | (uint32_t)bytes[at + 1] << 8;
                    if (s->width == 4) want |= (uint32_t)bytes[at + 2] << 16 | (uint32_t)bytes[at + 3] << 24;
                    if (masked && i == 0 && got[t] == TOKEN_IGNORED) continue;
                    demand(got[t] >= 0 && (uint32_t)got[t] == want && got[t] < d->vocab, "token %lld is %d, not %u",
                           t, got[t], want);
                }
            }
        bytes += n * s->width, left -= n * s->width;
    }
    demand(sequences == d->sequences, "%lld sequences, not %lld", d->sequences, sequences);
}

static void shard_one(Input in) {
    const i64 vocabularies[4] = {2, 256, 50257, 1 << 30};
    int L = 1 + take_byte(&in), how = take_byte(&in), wide = how & 4, unit = wide ? 4 : 2;
    i64 vocab = vocabularies[how & 3], first = take_byte(&in) * unit;
    unlink(file_path("b.bin"));
    unlink(file_path("a_mask.bin"));
    if (how & 16) { /* a mask of as many bytes as the first file's, or any file of that name */
        i64 n = i64_min(first / unit, (i64)in.left);
        int32_t header[256] = {20261126, 1, (int32_t)n};
        write_file("a_mask.bin", header, how & 32 ? 0 : sizeof header, in.at, (size_t)n);
        in.at += n, in.left -= (size_t)n;
    }
    if (how & 8) {
        write_file("a.bin", "", 0, in.at, in.left);
    } else {
        in.left -= in.left % (size_t)unit;
        first = i64_min(first, (i64)in.left);
        shard_write("a.bin", wide, in.at, first);
        shard_write("b.bin", wide, in.at + first, (i64)in.left - first);
    }
    Dataset d;
    dataset_open(&d, file_path("*.bin"), "train", L, vocab);
    demand(!d.masked || how & 16, "a mask that is not there");
    shard_compare(&d, how & 8 ? in.at + SHARD_HEADER_BYTES : in.at, (i64)in.left, d.masked);
    dataset_close(&d);
}

static void shard_seeds(void) {
    uint8_t bytes[3 + SHARD_HEADER_BYTES + 80] = {7, 1, 10};
    for (int i = 0; i < 80; i += 2) bytes[3 + i] = (uint8_t)(i + 1);
    seed("narrow", bytes, 43);
    bytes[0] = 3, bytes[1] = 7;
    seed("wide", bytes, 83);
    bytes[1] = 1 | 16, bytes[2] = 12;
    for (int i = 0; i < 12; i++) bytes[3 + i] = (uint8_t)(i % 3 > 0);
    seed("masked", bytes, 83);
    for (int wide = 0; wide < 2; wide++) {
        int32_t header[3] = {wide ? 20240801 : 20240520, wide ? 7 : 1, wide ? 20 : 40};
        memset(bytes + 3, 0, sizeof bytes - 3);
        memcpy(bytes + 3, header, sizeof header);
        bytes[1] = (uint8_t)(wide ? 13 : 9);
        seed(wide ? "raw-wide" : "raw", bytes, sizeof bytes);
    }
}

/* ---- dataset: the text of dataset.json, beside a shard of 40 tokens and its mask ---- */

/* The shard, and its mask, whose bytes are 0 and 1. */
static void dataset_files(uint8_t shard[SHARD_HEADER_BYTES + 80], uint8_t mask[SHARD_HEADER_BYTES + 40]) {
    int32_t header[256] = {20240520, 1, 40};
    memset(shard, 0, SHARD_HEADER_BYTES + 80);
    memcpy(shard, header, sizeof header);
    header[0] = 20261126;
    memcpy(mask, header, sizeof header);
    for (int i = 0; i < 40; i++) shard[SHARD_HEADER_BYTES + 2 * i] = (uint8_t)(2 * i + 1);
    for (int i = 0; i < 40; i++) mask[SHARD_HEADER_BYTES + i] = i % 4 > 0;
}

static void dataset_one(Input in) {
    static uint8_t shard[SHARD_HEADER_BYTES + 80], mask[SHARD_HEADER_BYTES + 40];
    Dataset d;
    DatasetList l;
    dataset_files(shard, mask);
    unlink(file_path("b.bin"));
    write_file("a.bin", "", 0, shard, sizeof shard);
    write_file("a_mask.bin", "", 0, mask, sizeof mask);
    write_file(DATASET_NAME, "", 0, in.at, in.left);
    dataset_open(&d, file_path("a.bin"), "train", 7, 256);
    dataset_describe(&d, "train", 256);
    const DataOrigin *o = &d.origin;
    demand(o->listed <= 1 && o->eot >= -1 && o->eot < i64_max(o->vocab, 1), "<eot> %lld", o->eot);
    demand(o->text_bytes >= 0 && o->text_bytes < 1e16, "%g bytes a token", o->text_bytes);
    char dir[PATH_MAX];
    path_folder(dir, d.shard[0].path);
    dataset_list_read(&l, dir);
    for (int i = 0; i < l.files; i++) {
        demand(dataset_list_find(&l, l.file[i].name) == &l.file[i], "file %d is not found", i);
        demand(l.file[i].largest < l.vocab && !strchr(l.file[i].name, '/'), "file %d", i);
    }
    dataset_list_free(&l);
    dataset_close(&d);
    check_data(file_path("a.bin"), 7, VOCAB_MOST, 1);
}

static void dataset_seeds(void) {
    static uint8_t shard[SHARD_HEADER_BYTES + 80], mask[SHARD_HEADER_BYTES + 40];
    static SumKeys keys;
    char text[1024], masked[128] = "";
    dataset_files(shard, mask);
    sum_keys(&keys);
    for (int words = 0; words < 2; words++) {
        if (!words)
            snprintf(masked, sizeof masked, ",\"counted\":30,\"mask_sum\":\"%016llx\"",
                     (unsigned long long)range_sum(&keys, 0, mask, sizeof mask));
        else masked[0] = 0;
        snprintf(text, sizeof text,
                 "{\"format\":\"odysseus.c dataset\",\"version\":1,\"tokenizer\":{\"kind\":\"%s\",\"name\":\"x\"},"
                 "\"vocab\":%d,\"eot\":%s,\"token_bytes\":2,\"splits\":{\"train\":{\"tokens\":40,\"documents\":0,"
                 "\"text_bytes\":40,\"files\":{\"a.bin\":{\"tokens\":40,\"documents\":%d,\"largest\":79,"
                 "\"sum\":\"%016llx\"%s}}},\"val\":{\"tokens\":0,\"documents\":0,\"text_bytes\":0,\"files\":{}}}}",
                 words ? "tokenizer.json" : "bytes", words ? 50257 : 256, words ? "79" : "null", words,
                 (unsigned long long)range_sum(&keys, 0, shard, sizeof shard), masked);
        seed(words ? "words" : "bytes", text, strlen(text));
    }
}

/* ---- safetensors: raw file, or a header text under its right length and data behind it; read as
   any file, then as a model's                                                                                        */

static Model tiny; /* one layer of llama, whose weights are loaded again and again */

static void tiny_init(void) {
    static ModelOptions o;
    Config c = CONFIG(ARCH_LLAMA, 1, 4, 2, 1, 0, 2, 3, 8, 0, 1e-5, 10000);
    config_check(&c, "fuzz");
    o.config = c, o.scheme = SCHEMES[0], o.shape.world = o.shape.dp = o.shape.ring = o.shape.head = 1;
    o.L = o.B = o.batch = 1, o.place = device_place(0, 1, 1);
    model_init(&tiny, &o, wire_none(), 1, 0);
    arena_commit(&tiny.arena);
    reserved = NULL;
}

static void framed_write(const char *name, Input text, const void *data, size_t data_bytes) {
    static uint8_t head[1 << 17];
    uint64_t n = text.left;
    demand(8 + text.left <= sizeof head, "input too long");
    memcpy(head, &n, 8);
    memcpy(head + 8, text.at, text.left);
    write_file(name, head, 8 + text.left, data, data_bytes);
}

static void safetensors_consistent(const SafetensorSet *s) {
    i64 held_bytes = 0, file_bytes = 0;
    for (int i = 0; i < s->tensors; i++) {
        const Safetensor *t = &s->tensor[i];
        i64 elements = 1;
        for (int d = 0; d < t->dims; d++) elements *= t->shape[d];
        demand(elements == t->elements && t->bytes == elements * SAFETENSOR_TYPES[t->type].bytes, "tensor %d", i);
        demand(text_is_printable(t->name) && safetensors_find(s, t->name) == t, "name %d", i);
        held_bytes += t->bytes;
        double sum = 0;
        if (safetensor_is_float(t) || t->type == ST_I32)
            for (i64 e = 0; e < t->elements; e++) sum += safetensor_value(t, e);
        demand(sum == sum || sum != sum, "never"); /* the reads above are not to be optimised away */
    }
    for (int i = 0; i < s->files; i++) {
        uint64_t header;
        memcpy(&header, s->file[i].map.bytes, 8);
        file_bytes += s->file[i].map.size - 8 - (i64)header;
    }
    demand(held_bytes == file_bytes, "%lld bytes of tensors in %lld", held_bytes, file_bytes);
}

static void safetensors_one(Input in) {
    int how = take_byte(&in);
    unlink(file_path("model.safetensors.index.json"));
    if (how & 1) {
        write_file("model.safetensors", "", 0, in.at, in.left);
    } else {
        Input text = take_text(&in);
        framed_write("model.safetensors", text, in.at, in.left);
    }
    SafetensorSet s;
    safetensors_open_dir(&s, directory);
    safetensors_consistent(&s);
    safetensors_close(&s);
    if (how & 2) checkpoint_load(&tiny.zero, directory, 0);
}

/* The tiny model's header; returns the bytes of its data. */
static i64 tiny_header(char *out, size_t size, const char *dtype, i64 bytes) {
    int tensors;
    HfTensor *list = checkpoint_list(&tiny.zero, &tensors);
    i64 at = 0;
    size_t n = (size_t)snprintf(out, size, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < tensors; i++) {
        const HfPlace *p = &list[i].place;
        char shape[64];
        shape_text(shape, sizeof shape, p->shape, p->dims);
        i64 end = at + bytes * p->shape[0] * (p->dims == 2 ? p->shape[1] : 1);
        n += (size_t)snprintf(out + n, size - n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%lld,%lld]}",
                              list[i].name, dtype, shape, at, end);
        at = end;
    }
    snprintf(out + n, size - n, "}");
    free(list);
    return at;
}

static void safetensors_seeds(void) {
    static const char *const types[] = {"F32", "F64", "F16", "BF16"};
    static uint8_t bytes[1 << 14];
    static const char two[] = "\0{\"a\":{\"dtype\":\"I32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
                              "\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]}}\0abcdefghi";
    seed("two", two, sizeof two - 1);
    for (int i = 0; i < COUNT_OF(types); i++) {
        memset(bytes, 0, sizeof bytes);
        char *text = (char *)bytes + 9;
        i64 data = tiny_header(text, sizeof bytes / 2, types[i], i == 0 ? 4 : i == 1 ? 8 : 2);
        uint64_t n = strlen(text);
        memcpy(bytes + 1, &n, 8);
        bytes[0] = 3;
        seed(i ? "raw" : "raw-f32", bytes, 9 + n + (size_t)data);
        bytes[8] = 2;
        seed(types[i], bytes + 8, 2 + n + (size_t)data);
    }
}

/* ---- index: its text, then header texts and bytes of data of two shards ------------------------------------------ */

static void index_one(Input in) {
    static const uint8_t zeros[256];
    Input index = take_text(&in);
    unlink(file_path("model.safetensors"));
    write_file("model.safetensors.index.json", "", 0, index.at, index.left);
    for (int i = 0; i < 2; i++) {
        int data = take_byte(&in);
        framed_write(i ? "b" : "a", take_text(&in), zeros, (size_t)data);
    }
    SafetensorSet s;
    safetensors_open_dir(&s, directory);
    safetensors_consistent(&s);
    safetensors_close(&s);
}

static void index_seeds(void) {
    static const char both[] = "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"x\":\"a\",\"y\":\"b\"}}\0"
                               "\10{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}\0"
                               "\4{\"y\":{\"dtype\":\"F16\",\"shape\":[1,2],\"data_offsets\":[0,4]}}";
    static const char one[] =
        "{\"weight_map\":{\"x\":\"a\"}}\0\1{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}\0\0{}";
    seed("both", both, sizeof both - 1);
    seed("one", one, sizeof one - 1);
}

/* ---- config: config.json; what is accepted must survive being written and read again ----------------------------- */

static void config_one(Input in) {
    Config c, again;
    double frequencies[32];
    write_file("config.json", "", 0, in.at, in.left);
    checkpoint_read_config(&c, directory);
    demand(c.layers > 0 && c.vocab > 1 && c.ffn > 0 && c.max_pos > 0 && c.head_dim > 0 && c.heads % c.kv_heads == 0,
           "sizes");
    demand(!(c.has & HAS_POSITIONS) || c.head_dim * c.heads == c.dim, "heads of learned positions");
    demand(c.window == 0 || layers_count(&c.windowed, c.layers) > 0, "a window in no layer");
    demand(config_parameters(&c) > 0, "%lld parameters", config_parameters(&c));
    double most = c.rope_scaling.kind == ROPE_LONGROPE ? 1e9 : 1, magnitude = rope_magnitude(&c.rope_scaling);
    demand(magnitude > 0 && isfinite(magnitude), "magnitude %g", magnitude);
    if (!(c.has & HAS_POSITIONS) && c.head_dim / 2 <= COUNT_OF(frequencies)) {
        rope_frequencies(&c, 100, frequencies);
        for (i64 i = 0; i < c.head_dim / 2; i++)
            demand(frequencies[i] >= 0 && frequencies[i] <= most, "frequency %lld is %g", i, frequencies[i]);
    }
    checkpoint_write_config(&c, file_path("config.json"));
    checkpoint_read_config(&again, directory);
    char *as_read = checkpoint_config_text(&c), *as_written = checkpoint_config_text(&again);
    demand(strcmp(as_read, as_written) == 0 && c.has == again.has, "another config came back");
    cJSON_free(as_read);
    cJSON_free(as_written);
}

static void config_seeds(void) {
    static const char *const texts[] =
        {"{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":8,\"n_head\":2,\"n_inner\":null,\"vocab_size\":50257,"
         "\"n_positions\":64,"
         "\"layer_norm_epsilon\":1e-05,\"activation_function\":\"gelu_new\","
         "\"attn_pdrop\":0.1,\"embd_pdrop\":0.0,\"scale_attn_weights\":true,\"tie_word_embeddings\":true}",
         "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":8,\"num_attention_heads\":4,"
         "\"num_key_value_heads\":2,\"intermediate_size\":12,\"vocab_size\":32,\"max_position_embeddings\":64,"
         "\"rms_norm_eps\":1e-6,\"hidden_act\":\"silu\",\"attention_bias\":false,\"head_dim\":2,"
         "\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
         "\"high_freq_factor\":4.0,"
         "\"original_max_position_embeddings\":32},\"pretraining_tp\":1,\"mlp_bias\":false}",
         "{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":4,\"num_attention_heads\":2,"
         "\"intermediate_size\":4,\"vocab_size\":8,\"max_position_embeddings\":8,"
         "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000,\"partial_rotary_factor\":1},"
         "\"attention_dropout\":0.1}",
         "{\"architectures\":[\"GPT2LMHeadModel\"],\"num_hidden_layers\":1,\"hidden_size\":24,"
         "\"activation_function\":\"gelu_fast\"}",
         "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"head_dim\":null,"
         "\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,"
         "\"low_freq_factor\":1,\"high_freq_factor\":4},\"original_max_position_embeddings\":8,\"sliding_window\":4}",
         "{\"model_type\":\"qwen3\",\"num_hidden_layers\":2,\"hidden_size\":8,\"num_attention_heads\":2,\"head_dim\":6,"
         "\"num_key_value_heads\":1,\"use_sliding_window\":true,\"sliding_window\":4,\"max_window_layers\":1,"
         "\"layer_types\":[\"full_attention\",\"sliding_attention\"],\"attention_bias\":true,\"rope_parameters\":{"
         "\"rope_type\":\"yarn\",\"factor\":4,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1,\"mscale_all_dim\":0.5,"
         "\"truncate\":false,\"attention_factor\":null,\"rope_theta\":1e6}}",
         "{\"model_type\":\"smollm3\",\"num_hidden_layers\":2,\"hidden_size\":8,\"num_attention_heads\":2,"
         "\"num_key_value_heads\":2,\"no_rope_layers\":[1,0],\"mlp_bias\":true,\"rope_scaling\":{\"type\":\"longrope\","
         "\"short_factor\":[1,1.5],\"long_factor\":[2,3],\"original_max_position_embeddings\":64}}",
         "{\"model_type\":\"phi3\",\"num_hidden_layers\":1,\"hidden_size\":8,\"num_attention_heads\":2,"
         "\"original_max_position_embeddings\":64,\"max_position_embeddings\":128,\"sliding_window\":8,"
         "\"resid_pdrop\":0.0,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1,1.5],\"long_factor\":[2,3]}}"};
    static const char *const names[COUNT_OF(texts)] = {"gpt2",         "llama3", "llama",  "gpt2-other",
                                                       "llama3-other", "qwen3",  "smollm3", "phi3"};
    for (int i = 0; i < COUNT_OF(texts); i++) seed(names[i], texts[i], strlen(texts[i]));
}

/* ---- manifest: manifest.json, which ends no run; what is accepted must survive being written and read again ------ */

static void manifest_one(Input in) {
    Manifest m, again;
    Trouble why = {""};
    write_file(MANIFEST_NAME, "", 0, in.at, in.left);
    manifest_read(&m, directory, -1, &why);
    demand(!troubled(&why) || text_is_printable(why.text), "the reason is not one line: %s", why.text);
    if (!troubled(&why)) {
        for (int i = 0; i < m.files; i++) {
            const ManifestFile *f = &m.file[i];
            demand(text_is_printable(f->name) && !strchr(f->name, '/') && f->name[0] != '.', "file %d: %s", i, f->name);
            demand(f->bytes >= 0 && f->head >= 0 && f->head <= f->bytes && f->head % 4 == 0, "file %d: %lld, %lld", i,
                   f->bytes, f->head);
        }
        char *text = manifest_text(&m);
        write_file(MANIFEST_NAME, "", 0, text, strlen(text));
        manifest_read(&again, directory, m.step, &why);
        demand(!troubled(&why) && again.files == m.files, "it does not read back: %s", why.text);
        demand(memcmp(again.file, m.file, sizeof *m.file * (size_t)m.files) == 0, "another manifest came back");
        manifest_check_sizes(&m, directory, &why);
        demand(troubled(&why) && text_is_printable(why.text), "files that are not there: %s", why.text);
        manifest_free(&again);
        cJSON_free(text);
    }
    manifest_free(&m);
}

static void manifest_seeds(void) {
    static const char *const names[] = {"config.json", "trainer.json", "model.safetensors", "optimizer.safetensors"};
    Manifest m = {1000, 0, NULL};
    for (int i = 0; i < COUNT_OF(names); i++) {
        ManifestFile *f = manifest_add(&m, names[i], 1000 * i, mix64((uint64_t)i));
        if (i == 3) f->head = 256, f->head_sum = mix64(7);
    }
    char *text = manifest_text(&m);
    seed("manifest", text, strlen(text));
    cJSON_free(text);
    manifest_free(&m);
}

/* ---- trainer: trainer.json, held against the flags' defaults ----------------------------------------------------- */

static void trainer_one(Input in) {
    char name[] = "train_gpt", *program[] = {name};
    Settings now;
    FlagsGiven given;
    DataPrint data = {4000, 93, 0x1234};
    SpikeWatch spike;
    Changes changes = {"", 0};
    i64 next = -1;
    flags_parse(&now, &given, 1, program);
    write_file("trainer.json", "", 0, in.at, in.left);
    trainer_compare(&now, &data, directory, 3, &next, &spike, &changes);
    demand(next >= 0 && spike.steps >= 0 && isfinite(spike.mean) && isfinite(spike.variance) && spike.variance >= 0,
           "%lld", next);
    demand(changes.n == 0 || text_is_printable(changes.text), "the changes are not one line: %s", changes.text);
    if (changes.n) return;
    char *text = trainer_text(&now, &data, &spike, 3, next);
    i64 again = -1;
    SpikeWatch spike_again;
    write_file("trainer.json", "", 0, text, strlen(text));
    trainer_compare(&now, &data, directory, 3, &again, &spike_again, &changes);
    demand(again == next && changes.n == 0 && spike_again.mean == spike.mean && spike_again.steps == spike.steps,
           "another came back");
    cJSON_free(text);
}

static void trainer_seeds(void) {
    char name[] = "train_gpt", *program[] = {name};
    Settings now;
    FlagsGiven given;
    DataPrint data = {4000, 93, 0x1234};
    SpikeWatch spike = {5.5, 0.25, 3};
    flags_parse(&now, &given, 1, program);
    char *text = trainer_text(&now, &data, &spike, 3, 12);
    seed("trainer", text, strlen(text));
    cJSON_free(text);
    now.lr = 0.5, now.seed = 7, data.tokens = 3;
    text = trainer_text(&now, &data, &spike, 3, 12);
    seed("others", text, strlen(text));
    cJSON_free(text);
}

/* ---- optimizer: as safetensors, read as the numbers of the tiny model -------------------------------------------- */

static void optimizer_one(Input in) {
    int raw = take_byte(&in) & 1;
    Input text = {in.at, 0};
    uint64_t header = 0;
    if (raw) {
        write_file("optimizer.safetensors", "", 0, in.at, in.left);
        if (in.left >= 8) memcpy(&header, in.at, 8);
    } else {
        text = take_text(&in);
        framed_write("optimizer.safetensors", text, in.at, in.left);
        header = text.left;
    }
    Manifest m = {3, 0, NULL};
    SavedPart part = {0, 0};
    Trouble why = {""};
    i64 bytes = (i64)in.left + (raw ? 0 : 8 + (i64)text.left);
    manifest_add(&m, "optimizer.safetensors", bytes, 0);
    optimizer_read(&tiny.zero, directory, &m, &part, &why);
    demand(!troubled(&why), "%s", why.text);
    demand(part.bytes == bytes - 8 - (i64)header, "%lld bytes were read of %lld", part.bytes, bytes);
    manifest_free(&m);
}

static void optimizer_seeds(void) {
    static uint8_t bytes[1 << 14];
    for (int wide = 0; wide < 2; wide++) {
        SavePlan p;
        memset(&p, 0, sizeof p);
        p.hf = checkpoint_list(&tiny.zero, &p.hfs);
        p.tensor = (SavedTensor *)host_alloc(sizeof(SavedTensor) * SAVED_KINDS * (size_t)p.hfs);
        p.file = (SavedFile *)host_alloc(sizeof(SavedFile) * SAVED_KINDS * (size_t)p.hfs);
        save_plan_group(&p, "optimizer", SAVED_MASTER, SAVED_V, wide ? ST_F64 : ST_F32);
        save_plan_header(&p, &p.file[0]);
        const SavedFile *f = &p.file[0];
        i64 data = f->bytes - f->header_bytes;
        demand(f->bytes + 2 <= (i64)sizeof bytes, "%lld bytes", f->bytes);
        memset(bytes, 0, sizeof bytes);
        bytes[0] = 1;
        memcpy(bytes + 1, f->header, (size_t)f->header_bytes);
        seed(wide ? "raw-f64" : "raw-f32", bytes, (size_t)(1 + f->bytes));
        bytes[0] = 0;
        memmove(bytes + 1, bytes + 9, (size_t)f->header_bytes - 8);
        memset(bytes + 1 + f->header_bytes - 8, 0, 8);
        seed(wide ? "f64" : "f32", bytes, (size_t)(1 + f->header_bytes - 8 + 1 + data));
        save_plan_free(&p);
    }
}

/* ---- tokenizer: tokenizer.json, or vocab.json and merges.txt, then a text; it must come back --------------------- */

static void tokenizer_one(Input in) {
    static char back[1 << 16];
    int files = take_byte(&in) & 1;
    Input json = take_text(&in), merges = {in.at, 0};
    if (files) merges = take_text(&in);
    unlink(file_path("tokenizer.json"));
    write_file(files ? "vocab.json" : "tokenizer.json", "", 0, json.at, json.left);
    if (files) write_file("merges.txt", "", 0, merges.at, merges.left);
    Tokenizer *t = tokenizer_open(directory);
    const char *text = (const char *)in.at;
    i64 n, at = 0;
    for (i64 i = 0; i < t->words; i++)
        demand(tokenizer_word(t, t->word[i].id) == &t->word[i], "word %lld", i);
    int32_t *ids = tokenizer_encode(t, "sample", text, (i64)in.left, 0, &n);
    for (i64 i = t->firsts; i < n; i++) {
        const Word *w = tokenizer_word(t, ids[i]);
        demand(w && at + w->n <= (i64)in.left, "token %lld", i);
        memcpy(back + at, w->bytes, (size_t)w->n), at += w->n;
    }
    demand(at == (i64)in.left && (at == 0 || memcmp(back, text, (size_t)at) == 0), "another text came back");
    tokenizer_close(t);
}

/* Small tokenizers, of each kind of pre-tokenizer. */
static void tokenizer_seeds(void) {
    static const char bytes[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}";
    static const char parts[] =
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},"
        "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
        "\"add_prefix_space\":false,\"use_regex\":false}]}";
    static const char vocab[] =
        "{\"a\":0,\"b\":1,\"\304\240\":2,\"ab\":3,\"\304\240ab\":4,\"\303\203\":5,\"\302\251\":6,\"'\":7,\"s\":8";
    static const char file[] =
        "\2{\"added_tokens\":[{\"id\":9,\"content\":\"<|a|>\",\"normalized\":false}],\"normalizer\":%s,"
        "\"pre_tokenizer\":%s,\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
        "{\"id\":\"<|a|>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<|a|>\":{\"ids\":[9]}}},"
        "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"ignore_merges\":%s,\"vocab\":%s},"
        "\"merges\":[[\"a\",\"b\"],\"\304\240 ab\"]}}%c ab ab's<|a|>\303\251b";
    static char text[1 << 13], pattern[512], split[1024];
    for (int rule = 0; rule < 3; rule++) {
        size_t n = 0;
        for (const char *p = PIECE_PATTERNS[rule]; *p; p++) {
            if (*p == '\\') pattern[n++] = '\\';
            pattern[n++] = *p;
        }
        pattern[n] = 0;
        if (rule == 0) snprintf(split, sizeof split, "%s", bytes);
        else snprintf(split, sizeof split, parts, pattern);
        int end = snprintf(text, sizeof text, file, rule == 2 ? "{\"type\":\"NFC\"}" : "null", split,
                           rule == 1 ? "true" : "false", vocab, 0);
        seed(rule == 0 ? "gpt2" : rule == 1 ? "llama3" : "qwen2", text, (size_t)end);
    }
    int end = snprintf(text, sizeof text, "\1%s}%c#version: 0.2\na b\n\304\240 ab\n%cab ab's", vocab, 0, 0);
    seed("files", text, (size_t)end);
}

/* ---- libFuzzer's two entries ------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*one)(Input);
    void (*seeds)(void);
} TARGETS[] = {{"flags", flags_one, flags_seeds}, {"shard", shard_one, shard_seeds},
               {"dataset", dataset_one, dataset_seeds}, {"safetensors", safetensors_one, safetensors_seeds},
               {"index", index_one, index_seeds}, {"config", config_one, config_seeds},
               {"manifest", manifest_one, manifest_seeds}, {"trainer", trainer_one, trainer_seeds},
               {"optimizer", optimizer_one, optimizer_seeds}, {"tokenizer", tokenizer_one, tokenizer_seeds}};
static int target;

static void jump_back(int code) {
    (void)code;
    longjmp(refused, 1);
}

static void clean_up(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    if (system(command) != 0) fprintf(console, "fuzz: could not remove %s\n", directory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    const char *name = getenv("FUZZ_TARGET");
    console = fdopen(dup(2), "w");
    while (target < COUNT_OF(TARGETS) && (!name || strcmp(TARGETS[target].name, name) != 0)) target++;
    demand(target < COUNT_OF(TARGETS), "FUZZ_TARGET must be a target of fuzz.sh");
    snprintf(directory, sizeof directory, "%s/fuzz_XXXXXX", path_exists("/dev/shm") ? "/dev/shm" : "/tmp");
    demand(mkdtemp(directory), "cannot make a directory");
    atexit(clean_up);
    tiny_init();
    if (getenv("FUZZ_SEEDS")) TARGETS[target].seeds();
    __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    if (!freopen("/dev/null", "w", stdout)) demand(0, "no /dev/null");
    stderr = fmemopen(said, sizeof said, "w");
    fail_state()->abort_all = jump_back;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Input in = {bytes, n};
    rewind(stderr); /* which flushes; so clear only then */
    memset(said, 0, sizeof said);
    holding = 1;
    if (setjmp(refused) == 0) {
        TARGETS[target].one(in);
    } else {
        const char *line = strstr(said, "train_gpt: error: "); /* a note may stand before it */
        if (getenv("FUZZ_VERBOSE")) fprintf(console, "%s", said);
        demand(line && strchr(line, '\n') && !strchr(line, '\n')[1], "the error is not one line: %s", said);
    }
    release();
    return 0;
}

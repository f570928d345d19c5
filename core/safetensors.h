/* safetensors.h - the file format of weights: a JSON header and raw little-endian numbers; reader and writer.

   file    [ u64 header length | {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} spaces | data ]
   read    map the file, check every number in the header against the file's size, sort
           tensors by name, convert on access
   write   header from a list of names and shapes, then the data in that order, piece by piece; under a
           temporary name that becomes the real one when everything is on disk: a file that exists is
           complete, and was not there before

   A header is input from outside: whatever it says, nothing is read beyond the file and a bad one ends in one line that
   names file and tensor. As in the format's reference implementation, data are contiguous: no holes, no overlap,
   nothing left over, which is what finds a truncated download. A set is one file, or the shards that a
   model.safetensors.index.json lists.

   Format: https://github.com/huggingface/safetensors, section Format. JSON: cJSON (Debian libcjson-dev, -lcjson).    */
#ifndef ODYSSEUS_SAFETENSORS_H
#define ODYSSEUS_SAFETENSORS_H

#include "util.h"
#include <cjson/cJSON.h>
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors.h maps little-endian files as they are"
#endif

/* ---- paths and JSON ---------------------------------------------------------------------------------------------- */

/* out = dir/name, without doubling a slash. */
static inline void path_join(char out[PATH_MAX], const char *dir, const char *name) {
    size_t n = strlen(dir);
    int length = snprintf(out, PATH_MAX, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    if (length < 0 || length >= PATH_MAX) FAIL(EVERYONE, "path too long: %.200s.../%.200s", dir, name);
}

static inline int path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

static inline int path_is_directory(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Text from a file that goes into our one-line messages must not bring lines of its own. */
static inline int text_is_printable(const char *text) {
    if (!*text) return 0;
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) return 0;
    return 1;
}

typedef struct {
    const unsigned char *bytes; /* NULL for an empty file */
    i64 size;
} FileMap;

/* The whole of a regular file, read-only. Owner: caller; file_unmap. */
static inline FileMap file_map(const char *path) {
    FileMap m = {NULL, 0};
    struct stat st;
    if (stat(path, &st) != 0) FAIL(EVERYONE, "%s: cannot open: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) FAIL(EVERYONE, "%s: not a regular file", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) FAIL(EVERYONE, "%s: cannot open: %s", path, strerror(errno));
    m.size = (i64)st.st_size;
    if (m.size > 0) {
        void *p = mmap(NULL, (size_t)m.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) FAIL(EVERYONE, "%s: cannot map %lld bytes: %s", path, m.size, strerror(errno));
        m.bytes = (const unsigned char *)p;
    }
    close(fd);
    return m;
}

static inline void file_unmap(FileMap *m) {
    if (m->bytes) munmap((void *)(uintptr_t)m->bytes, (size_t)m->size);
    m->bytes = NULL;
}

static inline int text_begins_with(const char *text, const char *begin) {
    return strncmp(text, begin, strlen(begin)) == 0;
}

static inline int text_ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

typedef enum { MEND_DOWNLOAD, MEND_LFS, MEND_CONVERT, MEND_SAVE, MEND_MERGE, MEND_ORIGINAL, MEND_SNAPSHOT, MEND_GUNZIP,
               MEND_UNZIP } Mend;

typedef struct {
    char text[2048];
} MendText;

/* What mends a model's directory `path`, as a command; to unpack, `path` is the file. */
static inline MendText mend_text(Mend mend, const char *path) {
    MendText t;
    char *out = t.text;
    const size_t size = sizeof t.text;
    switch (mend) {
    case MEND_DOWNLOAD:
        snprintf(out, size, "download it again: hf download OWNER/NAME --local-dir '%.999s'", path);
        break;
    case MEND_LFS: snprintf(out, size, "fetch the file: git -C '%.999s' lfs pull", path); break;
    case MEND_CONVERT:
        snprintf(out, size, "convert it: python3 -c \"from transformers import AutoModelForCausalLM as M; "
                 "M.from_pretrained('%.600s').save_pretrained('%.600s-safetensors', safe_serialization=True)\"",
                 path, path);
        break;
    case MEND_SAVE:
        snprintf(out, size, "load it where it was made, and write the model with transformers: "
                 "model.save_pretrained('%.600s-safetensors', safe_serialization=True)", path);
        break;
    case MEND_MERGE:
        snprintf(out, size, "merge it into its model: python3 -c \"from peft import AutoPeftModelForCausalLM as M; "
                 "M.from_pretrained('%.600s').merge_and_unload().save_pretrained('%.600s-merged', "
                 "safe_serialization=True)\"", path, path);
        break;
    case MEND_ORIGINAL:
        snprintf(out, size, "take the model that it was made from: hf download OWNER/NAME --local-dir DIR");
        break;
    case MEND_SNAPSHOT:
        snprintf(out, size, "the model's directory is what this prints: ls -d '%.999s'/snapshots/*", path);
        break;
    case MEND_GUNZIP: snprintf(out, size, "unpack it: gunzip --stdout '%.999s' >FILE", path); break;
    case MEND_UNZIP: snprintf(out, size, "unpack it: unzip '%.999s' -d DIR", path); break;
    }
    return t;
}

/* As mend_text, of the directory that the file `path` lies in. */
static inline MendText mend_beside(Mend mend, const char *path) {
    char dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash) slash[slash == dir] = 0;
    return mend_text(mend, slash ? dir : ".");
}

/* How files begin that come in the place of a model's; `holds` stands somewhere in their first 256 bytes. */
typedef struct {
    const char *magic, *holds, *what;
    Mend mend;
} FileKind;

static const FileKind FILE_KINDS[] = {
    {"version https://git-lfs.github.com", "", "a Git LFS pointer, not the file itself", MEND_LFS},
    {"GGUF", "", "a GGUF file, llama.cpp's format", MEND_ORIGINAL},
    {"\x80\x02", "", "a PyTorch file (a pickle), not safetensors", MEND_CONVERT},
    {"\x1f\x8b", "", "packed by gzip", MEND_GUNZIP},
    {"PK\x03\x04", "data.pkl", "a PyTorch file (of torch.save), not safetensors", MEND_CONVERT},
    {"PK\x03\x04", "", "a zip file", MEND_UNZIP},
};

/* Refuse a file that is known to be something else: what it is, and what mends it. Some of these beginnings could be
   the length of a sound header; its ninth byte is then a brace. */
static inline void file_refuse_kind(const char *path, const FileMap *m) {
    const char *bytes = (const char *)m->bytes;
    if (m->size == 0) FAIL(EVERYONE, "%s: is empty; %s", path, mend_beside(MEND_DOWNLOAD, path).text);
    if (m->size > 8 && bytes[8] == '{') return;
    i64 i = 0;
    while (i < m->size && bytes[i] && strchr(" \t\r\n\xef\xbb\xbf", bytes[i])) i++;
    char next = i + 1 < m->size ? bytes[i + 1] : 0;
    if (next && bytes[i] == '<' && (isalpha((unsigned char)next) || next == '!' || next == '?'))
        FAIL(EVERYONE, "%s: is an HTML or XML page, not the file itself; %s", path,
             mend_beside(MEND_DOWNLOAD, path).text);
    for (int k = 0; k < COUNT_OF(FILE_KINDS); k++) {
        const FileKind *kind = &FILE_KINDS[k];
        i64 n = (i64)strlen(kind->magic);
        if (m->size < n || memcmp(bytes, kind->magic, (size_t)n) != 0) continue;
        if (!memmem(bytes, (size_t)i64_min(m->size, 256), kind->holds, strlen(kind->holds))) continue;
        int unpack = kind->mend == MEND_GUNZIP || kind->mend == MEND_UNZIP;
        FAIL(EVERYONE, "%s: is %s; %s%s", path, kind->what,
             kind->mend == MEND_CONVERT && text_ends_with(path, ".safetensors") ? "call it pytorch_model.bin and " : "",
             (unpack ? mend_text(kind->mend, path) : mend_beside(kind->mend, path)).text);
    }
}

/* The JSON object in text (size bytes, not terminated); `what` names it in the message. Parsed from a copy with zeros
   behind it, so that no slip of a parser can leave the file. Owner: caller; cJSON_Delete. */
static inline cJSON *json_parse(const char *path, const char *what, const unsigned char *text, i64 size) {
    char *copy = (char *)host_alloc((size_t)size + 64);
    if (size > 0) memcpy(copy, text, (size_t)size);
    const char *end = copy;
    cJSON *root = cJSON_ParseWithOpts(copy, &end, 0);
    i64 at = end - copy;
    if (!root) FAIL(EVERYONE, "%s: %s is not JSON (stopped at byte %lld of %lld)", path, what, at, size);
    if (strstr(copy, "\\u0000")) FAIL(EVERYONE, "%s: %s: a text holds \\u0000, which would cut it short", path, what);
    for (; at < size; at++)
        if (!strchr(" \t\r\n", copy[at]) || !copy[at])
            FAIL(EVERYONE, "%s: %s: something follows the JSON at byte %lld", path, what, at);
    if (!cJSON_IsObject(root)) FAIL(EVERYONE, "%s: %s is not a JSON object", path, what);
    free(copy);
    return root;
}

static inline cJSON *json_parse_file(const char *path) {
    FileMap m = file_map(path);
    file_refuse_kind(path, &m);
    cJSON *root = json_parse(path, "the file", m.bytes, m.size);
    file_unmap(&m);
    return root;
}

/* cJSON's makers return NULL when memory is out. */
static inline cJSON *json_made(cJSON *item) {
    if (!item) FAIL(THIS_RANK, "out of host memory while writing JSON");
    return item;
}

/* The value of key, NULL where there is none. A key that comes up twice is refused: readers differ in
   which of the two they believe. */
static inline const cJSON *json_find(const char *path, const cJSON *object, const char *key) {
    const cJSON *found = NULL;
    for (const cJSON *item = cJSON_IsObject(object) ? object->child : NULL; item; item = item->next) {
        if (strcmp(item->string, key) != 0) continue;
        if (found) FAIL(EVERYONE, "%s: \"%s\" comes up twice in one object", path, key);
        found = item;
    }
    return found;
}

/* A count in JSON: an integer from 0 to 9e15, exact in the double that cJSON makes of it; else -1. */
static inline i64 json_count(const cJSON *item) {
    if (!cJSON_IsNumber(item)) return -1;
    double v = item->valuedouble;
    return v >= 0 && v <= 9e15 && v == floor(v) ? (i64)v : -1;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

typedef enum {
    ST_F32, ST_F64, ST_F16, ST_BF16, ST_I32, ST_BOOL, ST_U8, ST_I8, ST_F8_E4M3, ST_F8_E5M2, ST_I16, ST_U16,
    ST_U32, ST_I64, ST_U64, ST_TYPES
} SafetensorType;

typedef struct {
    const char *name;
    int bytes; /* per element */
} SafetensorTypeRow;

static const SafetensorTypeRow SAFETENSOR_TYPES[ST_TYPES] = {
    {"F32", 4}, {"F64", 8}, {"F16", 2}, {"BF16", 2}, {"I32", 4}, {"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"F8_E4M3", 1},
    {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"U32", 4}, {"I64", 8}, {"U64", 8}};

#define SAFETENSOR_DIMS 8

typedef struct {
    char *name, *key; /* in its file; what it is found by: the name, unless safetensors_rename gave another */
    const char *path; /* of its file */
    SafetensorType type;
    int dims;
    i64 shape[SAFETENSOR_DIMS];
    i64 elements, begin, bytes; /* begin: in the file's data */
    const unsigned char *data;
} Safetensor;

typedef struct {
    char *path;
    FileMap map;
} SafetensorFile;

/* Every tensor of one model, sorted by key. */
typedef struct {
    SafetensorFile *file;
    Safetensor *tensor;
    int files, tensors;
} SafetensorSet;

static inline float float_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline float float_from_bf16(uint16_t h) { return float_from_bits((uint32_t)h << 16); }

static inline float float_from_fp16(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return float_from_bits(sign | 0x7f800000u | mantissa << 13);            /* inf, nan */
    if (exponent) return float_from_bits(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
    /* zero, subnormal: exact */
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}

/* Element i < t->elements; every type converts exactly. Data need not be aligned in the file, hence memcpy. */
static inline double safetensor_value(const Safetensor *t, i64 i) {
    const unsigned char *at = t->data + i * SAFETENSOR_TYPES[t->type].bytes;
    float f32;
    double f64;
    int32_t i32;
    uint16_t u16;
    switch (t->type) {
    case ST_F32: memcpy(&f32, at, 4); return f32;
    case ST_F64: memcpy(&f64, at, 8); return f64;
    case ST_F16: memcpy(&u16, at, 2); return float_from_fp16(u16);
    case ST_BF16: memcpy(&u16, at, 2); return float_from_bf16(u16);
    case ST_I32: memcpy(&i32, at, 4); return i32;
    default: FAIL(EVERYONE, "%s: tensor %.200s has dtype %s; F32, F16, BF16, F64 and I32 can be read", t->path, t->name,
                  SAFETENSOR_TYPES[t->type].name);
    }
}

static inline int safetensor_is_float(const Safetensor *t) {
    return t->type == ST_F32 || t->type == ST_F64 || t->type == ST_F16 || t->type == ST_BF16;
}

/* "[32, 96]", for messages. */
static inline void shape_text(char *out, size_t size, const i64 *shape, int dims) {
    size_t n = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < dims && n < size; i++)
        n += (size_t)snprintf(out + n, size - n, "%s%lld", i ? ", " : "", shape[i]);
    if (n < size) snprintf(out + n, size - n, "]");
}

/* ---- reader ------------------------------------------------------------------------------------------------------ */

/* Shape and size of one tensor from its header entry. */
static inline void safetensor_read_shape(Safetensor *t, const cJSON *shape) {
    int dims = cJSON_IsArray(shape) ? cJSON_GetArraySize(shape) : -1;
    if (dims < 0 || dims > SAFETENSOR_DIMS)
        FAIL(EVERYONE, "%s: tensor %.200s: shape is not a list of at most %d sizes", t->path, t->name, SAFETENSOR_DIMS);
    t->dims = 0, t->elements = 1;
    const i64 limit = (i64)9e15;
    for (const cJSON *size = shape->child; size; size = size->next) {
        i64 n = json_count(size);
        if (n < 0 || (n > 0 && t->elements > limit / n))
            FAIL(EVERYONE, "%s: tensor %.200s: shape holds something that is not a size", t->path, t->name);
        t->shape[t->dims++] = n;
        t->elements *= n;
    }
    i64 bytes = SAFETENSOR_TYPES[t->type].bytes;
    if (t->elements > limit / bytes) FAIL(EVERYONE, "%s: tensor %.200s: impossibly large", t->path, t->name);
    t->bytes = t->elements * bytes;
}

/* One header entry -> t; data_size: bytes after the header. */
static inline void safetensor_read_entry(Safetensor *t, const char *path, const cJSON *entry, i64 data_size) {
    memset(t, 0, sizeof *t);
    t->path = path;
    if (!entry->string || !text_is_printable(entry->string))
        FAIL(EVERYONE, "%s: a tensor's name is empty or not printable", path);
    size_t n = strlen(entry->string) + 1;
    t->name = (char *)host_alloc(n);
    memcpy(t->name, entry->string, n);
    t->key = t->name;
    const cJSON *dtype = json_find(path, entry, "dtype");
    if (!cJSON_IsString(dtype)) FAIL(EVERYONE, "%s: tensor %.200s has no dtype", path, t->name);
    int type = 0;
    while (type < ST_TYPES && strcmp(SAFETENSOR_TYPES[type].name, dtype->valuestring) != 0) type++;
    if (type == ST_TYPES)
        FAIL(EVERYONE, "%s: tensor %.200s has the unknown dtype %.40s", path, t->name,
             text_is_printable(dtype->valuestring) ? dtype->valuestring : "(not printable)");
    t->type = (SafetensorType)type;
    safetensor_read_shape(t, json_find(path, entry, "shape"));
    const cJSON *offsets = json_find(path, entry, "data_offsets");
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2)
        FAIL(EVERYONE, "%s: tensor %.200s has no data_offsets", path, t->name);
    i64 begin = json_count(offsets->child), end = json_count(offsets->child->next);
    if (begin < 0 || end < begin)
        FAIL(EVERYONE, "%s: tensor %.200s: data_offsets are not two rising positions", path, t->name);
    if (end > data_size)
        FAIL(EVERYONE, "%s: tensor %.200s ends at byte %lld of the data, the file has only %lld: truncated? %s", path,
             t->name, end, data_size, mend_beside(MEND_DOWNLOAD, path).text);
    if (end - begin != t->bytes) {
        char shape[256];
        shape_text(shape, sizeof shape, t->shape, t->dims);
        FAIL(EVERYONE, "%s: tensor %.200s: %s %s takes %lld bytes, data_offsets give it %lld", path, t->name,
             SAFETENSOR_TYPES[t->type].name, shape, t->bytes, end - begin);
    }
    t->begin = begin;
}

static inline int safetensor_by_begin(const void *a, const void *b) {
    const Safetensor *x = (const Safetensor *)a, *y = (const Safetensor *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static inline int safetensor_by_key(const void *a, const void *b) {
    return strcmp(((const Safetensor *)a)->key, ((const Safetensor *)b)->key);
}

/* Map one more file and append its tensors. */
static inline void safetensors_add_file(SafetensorSet *s, const char *path) {
    s->file = (SafetensorFile *)realloc(s->file, ((size_t)s->files + 1) * sizeof(SafetensorFile));
    if (!s->file) FAIL(THIS_RANK, "out of host memory");
    SafetensorFile *f = &s->file[s->files++];
    f->path = (char *)host_alloc(strlen(path) + 1);
    memcpy(f->path, path, strlen(path));
    f->map = file_map(path);
    const i64 header_limit = 100000000; /* the reference implementation's */
    uint64_t header = 0;
    if (f->map.size >= 8) memcpy(&header, f->map.bytes, 8);
    file_refuse_kind(path, &f->map);
    if (f->map.size < 8) FAIL(EVERYONE, "%s: %lld bytes are no safetensors file", path, f->map.size);
    if (header > (uint64_t)(f->map.size - 8) || header > (uint64_t)header_limit) {
        char text[41];
        snprintf(text, sizeof text, "%.*s", (int)i64_min(f->map.size, 40), (const char *)f->map.bytes);
        text[strcspn(text, "\r\n")] = 0;
        if (strlen(text) >= 4 && text_is_printable(text)) /* a header's length would hold a zero there */
            FAIL(EVERYONE, "%s: is a text that begins \"%s\", not safetensors; %s", path, text,
                 mend_beside(MEND_DOWNLOAD, path).text);
        int cut = header <= (uint64_t)header_limit && f->map.size > 8 && f->map.bytes[8] == '{';
        FAIL(EVERYONE, "%s: its header would take %llu bytes of a file of %lld: %s; %s", path,
             (unsigned long long)header, f->map.size, cut ? "truncated" : "no safetensors file",
             mend_beside(MEND_DOWNLOAD, path).text);
    }
    const unsigned char *data = f->map.bytes + 8 + header;
    i64 data_size = f->map.size - 8 - (i64)header;
    cJSON *root = json_parse(path, "the header", f->map.bytes + 8, (i64)header);
    Safetensor *grown = (Safetensor *)realloc(s->tensor, ((size_t)s->tensors + (size_t)cJSON_GetArraySize(root) + 1) *
                                                             sizeof(Safetensor));
    if (!grown) FAIL(THIS_RANK, "out of host memory");
    s->tensor = grown;
    Safetensor *first = grown + s->tensors;
    int n = 0;
    for (const cJSON *entry = root->child; entry; entry = entry->next) {
        if (entry->string && strcmp(entry->string, "__metadata__") == 0) continue;
        safetensor_read_entry(&first[n], f->path, entry, data_size);
        first[n].data = data + first[n].begin;
        n++;
    }
    cJSON_Delete(root);
    qsort(first, (size_t)n, sizeof *first, safetensor_by_begin);
    i64 end = 0;
    for (int i = 0; i < n; end = first[i].begin + first[i].bytes, i++)
        if (first[i].begin != end)
            FAIL(EVERYONE, "%s: tensor %.200s begins at byte %lld of the data, the one before it ends at %lld: %s",
                 path, first[i].name, first[i].begin, end, first[i].begin < end ? "they overlap" : "a hole");
    if (end != data_size) FAIL(EVERYONE, "%s: %lld bytes follow the last tensor", path, data_size - end);
    s->tensors += n;
}

static inline const Safetensor *safetensors_find(const SafetensorSet *s, const char *name) {
    Safetensor key;
    memset(&key, 0, sizeof key);
    key.key = (char *)(uintptr_t)name;
    if (!s->tensors) return NULL;
    return (const Safetensor *)bsearch(&key, s->tensor, (size_t)s->tensors, sizeof key, safetensor_by_key);
}

/* Sort, and refuse two tensors of one key. */
static inline void safetensors_sort(SafetensorSet *s) {
    if (!s->tensors) return;
    qsort(s->tensor, (size_t)s->tensors, sizeof *s->tensor, safetensor_by_key);
    for (int i = 1; i < s->tensors; i++) {
        const Safetensor *a = &s->tensor[i - 1], *b = &s->tensor[i];
        if (strcmp(a->key, b->key) != 0) continue;
        if (strcmp(a->name, b->name) == 0)
            FAIL(EVERYONE, "%s: tensor %.200s comes up twice (the other in %s)", b->path, b->name, a->path);
        int swap = strcmp(a->name, b->name) > 0; /* equal keys come in any order */
        FAIL(EVERYONE, "%s: tensors %.200s and %.200s are both %.200s; keep one", b->path, swap ? b->name : a->name,
             swap ? a->name : b->name, b->key);
    }
}

/* From now on find each tensor by key(name), which is written into `out`, as long as the name and its zero. */
static inline void safetensors_rename(SafetensorSet *s, void (*key)(char *out, const char *name)) {
    for (int i = 0; i < s->tensors; i++) {
        Safetensor *t = &s->tensor[i];
        t->key = (char *)host_alloc(strlen(t->name) + 1);
        key(t->key, t->name);
    }
    safetensors_sort(s);
}

/* One file. Owner: caller; safetensors_close. */
static inline void safetensors_open(SafetensorSet *s, const char *path) {
    memset(s, 0, sizeof *s);
    safetensors_add_file(s, path);
    safetensors_sort(s);
}

/* Every shard that the index names, once each; then every tensor must be where the index says. */
static inline void safetensors_open_index(SafetensorSet *s, const char *dir, const char *index) {
    cJSON *root = json_parse_file(index);
    const cJSON *map = json_find(index, root, "weight_map");
    if (!cJSON_IsObject(map) || !map->child) FAIL(EVERYONE, "%s: no weight_map", index);
    char path[PATH_MAX];
    for (const cJSON *entry = map->child; entry; entry = entry->next) {
        if (!text_is_printable(entry->string))
            FAIL(EVERYONE, "%s: weight_map: a tensor's name is empty or not printable", index);
        if (!cJSON_IsString(entry) || !text_is_printable(entry->valuestring) || strchr(entry->valuestring, '/'))
            FAIL(EVERYONE, "%s: weight_map: %.200s: not the name of a file in this directory", index, entry->string);
        path_join(path, dir, entry->valuestring);
        int i = 0;
        while (i < s->files && strcmp(s->file[i].path, path) != 0) i++;
        if (i == s->files) safetensors_add_file(s, path);
    }
    safetensors_sort(s);
    for (const cJSON *entry = map->child; entry; entry = entry->next) {
        const Safetensor *t = safetensors_find(s, entry->string);
        path_join(path, dir, entry->valuestring);
        if (!t || strcmp(t->path, path) != 0)
            FAIL(EVERYONE, "%s: weight_map puts %.200s into %s, which does not hold it", index, entry->string, path);
    }
    cJSON_Delete(root);
}

/* What lies in a directory that lacks what we look for: the first row that fits one of its names. */
typedef struct {
    const char *begin, *end, *what;
    Mend mend;
} DirectoryKind;

static const DirectoryKind DIRECTORY_KINDS[] = {
    {"adapter_", "", "the files of an adapter (LoRA), not of a model", MEND_MERGE},
    {"snapshots", "", "the Hub's cache of a model", MEND_SNAPSHOT},
    {"pytorch_model", "", "PyTorch's weights, not safetensors", MEND_CONVERT},
    {"", ".gguf", "a GGUF file, llama.cpp's format", MEND_ORIGINAL},
    {"", ".pth", "a PyTorch file of another program", MEND_SAVE},
    {"", ".pt", "a PyTorch file of another program", MEND_SAVE},
    {"", ".ckpt", "a PyTorch file of another program", MEND_SAVE},
    {"tf_model", "", "TensorFlow's weights", MEND_ORIGINAL},
    {"flax_model", "", "Flax's weights", MEND_ORIGINAL},
    {"model.safetensors", "", "only a part of a model", MEND_DOWNLOAD},
    {"model-", ".safetensors", "only a part of a model", MEND_DOWNLOAD},
    {"", ".safetensors", "safetensors under another name", MEND_DOWNLOAD},
    {"tokenizer", "", "a tokenizer's files, not a model's", MEND_DOWNLOAD},
    {"vocab.json", "", "a tokenizer's files, not a model's", MEND_DOWNLOAD},
    {"", "", "something else", MEND_DOWNLOAD},
};

/* Ends the run: DIR lacks `file`. Says what lies there instead, and what mends it; of several names that fit one row,
   the first in order. What transformers converts, it needs config.json for. */
static inline void directory_refuse(const char *dir, const char *file) __attribute__((noreturn));
static inline void directory_refuse(const char *dir, const char *file) {
    char found[NAME_MAX + 1] = "";
    int best = COUNT_OF(DIRECTORY_KINDS);
    DIR *d = opendir(dir);
    if (!d) FAIL(EVERYONE, "%s: cannot open this directory: %s", dir, strerror(errno));
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        const char *name = e->d_name;
        if (name[0] == '.' || strcmp(name, "config.json") == 0 || !text_is_printable(name)) continue;
        int k = 0;
        while (!text_begins_with(name, DIRECTORY_KINDS[k].begin) || !text_ends_with(name, DIRECTORY_KINDS[k].end)) k++;
        if (k > best || (k == best && strcmp(name, found) > 0)) continue;
        best = k;
        snprintf(found, sizeof found, "%s", name);
    }
    closedir(d);
    if (best == COUNT_OF(DIRECTORY_KINDS))
        FAIL(EVERYONE, "%s: %s is not there, nor anything else of a model; %s", dir, file,
             mend_text(MEND_DOWNLOAD, dir).text);
    Mend mend = DIRECTORY_KINDS[best].mend;
    if (mend == MEND_CONVERT && strcmp(file, "config.json") == 0) mend = MEND_DOWNLOAD;
    FAIL(EVERYONE, "%s: %s is not there; %s is %s; %s", dir, file, found, DIRECTORY_KINDS[best].what,
         mend_text(mend, dir).text);
}

/* The weights of a Hugging Face directory, whole or sharded. Owner: caller; safetensors_close. */
static inline void safetensors_open_dir(SafetensorSet *s, const char *dir) {
    memset(s, 0, sizeof *s);
    char path[PATH_MAX];
    path_join(path, dir, "model.safetensors");
    if (path_exists(path)) {
        safetensors_open(s, path);
        return;
    }
    path_join(path, dir, "model.safetensors.index.json");
    if (!path_exists(path)) directory_refuse(dir, "model.safetensors (or its .index.json)");
    safetensors_open_index(s, dir, path);
}

static inline void safetensors_close(SafetensorSet *s) {
    for (int i = 0; i < s->tensors; i++) {
        if (s->tensor[i].key != s->tensor[i].name) free(s->tensor[i].key);
        free(s->tensor[i].name);
    }
    for (int i = 0; i < s->files; i++) {
        file_unmap(&s->file[i].map);
        free(s->file[i].path);
    }
    free(s->tensor);
    free(s->file);
    memset(s, 0, sizeof *s);
}

/* ---- writer: one rank writes, so its errors are THIS_RANK's ------------------------------------------------------ */

/* A file that comes into being complete or not at all, and replaces nothing; or a device or
   pipe, which is written through. */
typedef struct {
    int fd, through;
    char path[PATH_MAX], temporary[PATH_MAX];
} NewFile;

/* The descriptor that a path names, as process substitution does; -1: none. What is open
   already is no file to be replaced. */
static inline int path_descriptor(const char *path) {
    if (strcmp(path, "/dev/stdout") == 0) return 1;
    if (strcmp(path, "/dev/stderr") == 0) return 2;
    int fd = -1, end = 0;
    return sscanf(path, "/dev/fd/%9d%n", &fd, &end) == 1 && !path[end] ? fd : -1;
}

/* Is something there that is written through: a device, a pipe, a socket (or a link to one)? */
static inline int path_is_stream(const char *path) {
    struct stat st;
    return path_descriptor(path) >= 0 || (stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode));
}

/* Is there anything of this name, a link to nothing included? */
static inline int path_is_taken(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

static inline void new_file_fail(NewFile *f, const char *what) {
    int error = errno;
    if (f->fd >= 0) close(f->fd);
    if (!f->through) unlink(f->temporary);
    FAIL(THIS_RANK, "%s: cannot %s: %s", f->path, what, strerror(error));
}

/* A pipe that nobody reads would keep all ranks waiting: it is an error, and so is one whose reader goes away. */
static inline void stream_open(NewFile *f) {
    int named = path_descriptor(f->path);
    signal(SIGPIPE, SIG_IGN);
    f->fd = named >= 0 ? fcntl(named, F_DUPFD_CLOEXEC, 0) : open(f->path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (f->fd < 0)
        new_file_fail(f, errno == ENXIO ? "write: nobody reads this pipe yet, start its reader first" : "open");
    if (named < 0 && fcntl(f->fd, F_SETFL, 0) != 0) new_file_fail(f, "open");
    if (named >= 0) fflush(NULL); /* what was printed before comes first */
}

/* The process number keeps two runs that share a directory apart. */
static inline void new_file_open(NewFile *f, const char *path) {
    int n = snprintf(f->path, sizeof f->path, "%s", path);
    int m = snprintf(f->temporary, sizeof f->temporary, "%s.tmp%d", path, (int)getpid());
    if (n < 0 || m < 0 || (size_t)m >= sizeof f->temporary) FAIL(THIS_RANK, "path too long: %.200s...", path);
    f->through = path_is_stream(path);
    if (f->through) {
        stream_open(f);
        return;
    }
    f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) new_file_fail(f, "create");
}

static inline void new_file_append(NewFile *f, const void *bytes, i64 n) {
    const char *at = (const char *)bytes;
    while (n > 0) {
        ssize_t done = write(f->fd, at, (size_t)i64_min(n, (i64)1 << 30));
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) new_file_fail(f, "write");
        at += done, n -= (i64)done;
    }
}

/* Everything on disk, then the name. The directory's own sync is best effort: some file systems refuse it. */
static inline void new_file_close(NewFile *f) {
    if (!f->through && fsync(f->fd) != 0) new_file_fail(f, "write");
    int failed = close(f->fd);
    f->fd = -1;
    if (failed) new_file_fail(f, "write");
    if (f->through) return;
    /* a second name, unlike rename, replaces nothing that has come meanwhile; where the file
       system has none, look first */
    int named = link(f->temporary, f->path) == 0;
    if (named) unlink(f->temporary);
    else if (errno == EEXIST || path_is_taken(f->path)) errno = EEXIST, new_file_fail(f, "create");
    else if (rename(f->temporary, f->path) != 0) new_file_fail(f, "rename its temporary file");
    char *slash = strrchr(f->temporary, '/'); /* no longer needed as a name */
    if (slash) slash[1] = 0;
    int fd = open(slash ? f->temporary : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* A tensor to be written. */
typedef struct {
    const char *name;
    SafetensorType type;
    int dims;
    i64 shape[SAFETENSOR_DIMS];
} SafetensorPlan;

typedef struct {
    NewFile file;
    i64 left; /* bytes announced and not yet written */
} SafetensorWriter;

static inline i64 safetensor_plan_bytes(const SafetensorPlan *p) {
    i64 bytes = SAFETENSOR_TYPES[p->type].bytes;
    for (int d = 0; d < p->dims; d++) bytes *= p->shape[d];
    return bytes;
}

/* All that stands before the data of n tensors, which follow in this order: *bytes of it, a
   multiple of 8. Owner: caller; free. */
static inline char *safetensors_header(const SafetensorPlan *plan, int n, i64 *bytes) {
    cJSON *root = json_made(cJSON_CreateObject());
    json_made(cJSON_AddStringToObject(json_made(cJSON_AddObjectToObject(root, "__metadata__")), "format", "pt"));
    i64 at = 0;
    for (int i = 0; i < n; i++) {
        cJSON *entry = json_made(cJSON_AddObjectToObject(root, plan[i].name));
        json_made(cJSON_AddStringToObject(entry, "dtype", SAFETENSOR_TYPES[plan[i].type].name));
        cJSON *shape = json_made(cJSON_AddArrayToObject(entry, "shape"));
        for (int d = 0; d < plan[i].dims; d++)
            cJSON_AddItemToArray(shape, json_made(cJSON_CreateNumber((double)plan[i].shape[d])));
        cJSON *offsets = json_made(cJSON_AddArrayToObject(entry, "data_offsets"));
        cJSON_AddItemToArray(offsets, json_made(cJSON_CreateNumber((double)at)));
        at += safetensor_plan_bytes(&plan[i]);
        cJSON_AddItemToArray(offsets, json_made(cJSON_CreateNumber((double)at)));
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    if (!text) FAIL(THIS_RANK, "out of host memory while writing JSON");
    uint64_t length = strlen(text), padded = (uint64_t)round_up((i64)length, 8);
    char *header = (char *)host_alloc((size_t)(8 + padded));
    memcpy(header, &padded, 8);
    memset(header + 8, ' ', (size_t)padded);
    memcpy(header + 8, text, (size_t)length);
    cJSON_free(text);
    *bytes = 8 + (i64)padded;
    return header;
}

/* Begin `path`: the header of n tensors whose data follow in this order by safetensors_append. */
static inline void safetensors_create(SafetensorWriter *w, const char *path, const SafetensorPlan *plan, int n) {
    i64 bytes;
    char *header = safetensors_header(plan, n, &bytes);
    new_file_open(&w->file, path);
    new_file_append(&w->file, header, bytes);
    free(header);
    w->left = 0;
    for (int i = 0; i < n; i++) w->left += safetensor_plan_bytes(&plan[i]);
}

static inline void safetensors_append(SafetensorWriter *w, const void *bytes, i64 n) {
    w->left -= n;
    new_file_append(&w->file, bytes, n);
}

static inline void safetensors_finish(SafetensorWriter *w) {
    if (w->left != 0) {
        errno = EINVAL;
        new_file_fail(&w->file, "finish: its data are not what the header announced");
    }
    new_file_close(&w->file);
}

#endif

/* test_save.c - checkpoints in training: what is written, who judges it, which one is
   taken, and every call that can fail.

   alone       sums and names; one rank writes, the ranks of every imagined mesh read; torn, truncated, bit-flipped and
               foreign ones; the n-th write, fsync, rename, ftruncate or mkdir fails, comes up short, or is the last
               thing that the process does, for every n; the order of calls; --keep; what --resume finds and refuses
               (children, forked: no MPI here)
   mpirun too  every mesh writes, byte for byte and in every file, what one rank writes;
               trouble on one rank is everybody's

   test_save     runs on 1, 2, 4, ... ranks                                                                           */
#define CHECKPOINT_PIECE 1000 /* so that small tensors come in several pieces, cut inside a row */
#define CHECKPOINT_SHARD 60000
#include <stdlib.h>

static int device_is_host = 1; /* 0: its memory is read and written piece by piece, as a GPU's */
#define DEVICE_IS_HOST device_is_host

static size_t asked; /* bytes of host memory, all together */
static void *counted_calloc(size_t n, size_t size) {
    asked += n * size;
    return calloc(n, size);
}
#define calloc(n, size) counted_calloc(n, size)
#include "../../core/checkpoint.h"
#include "check.h"
#include <sys/resource.h>

/* ---- calls that fail --------------------------------------------------------------------------------------------- */

typedef enum { FAULT_NONE, FAULT_FAIL, FAULT_FAIL_ON, FAULT_SHORT, FAULT_KILL_BEFORE, FAULT_KILL_AFTER } FaultMode;

static struct {
    FaultMode mode;
    int at, calls, error; /* the at-th call from 0 */
    char *log;            /* one line a call, if wanted */
} fault;

static void log_call(const char *what, const char *path) {
    static char line[PATH_MAX + 64];
    if (!fault.log) return;
    snprintf(line, sizeof line, "%s %s\n", what, strrchr(path, '/') + 1);
    strcat(fault.log, line);
}

static void log_fd(const char *what, int fd) {
    char link[64], path[PATH_MAX] = "/?";
    if (!fault.log) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) path[n] = 0;
    log_call(what, path);
}

/* 1: this call is the one, and fails. */
static int strikes(void) {
    int n = fault.calls++;
    if (fault.mode == FAULT_KILL_BEFORE && n == fault.at) _exit(99);
    int fails = (fault.mode == FAULT_FAIL && n == fault.at) || (fault.mode == FAULT_FAIL_ON && n >= fault.at);
    if (fails) errno = fault.error;
    return fails;
}

static int done_with(int result) {
    if (fault.mode == FAULT_KILL_AFTER && fault.calls - 1 == fault.at) _exit(99);
    return result;
}

static ssize_t faulty_pwrite(int fd, const void *bytes, size_t n, off_t at) {
    log_fd("write", fd);
    int torn = fault.calls == fault.at && n > 1;
    size_t part = torn ? 1 + (size_t)(mix64((uint64_t)fault.at) % (n - 1)) : n;
    /* cut short at a random byte */
    if (fault.mode == FAULT_KILL_BEFORE && torn && pwrite(fd, bytes, part, at) < 0) return -1;
    if (strikes()) return -1;
    return pwrite(fd, bytes, fault.mode == FAULT_SHORT ? part : n, at) < 0
               ? -1
               : (ssize_t)done_with((int)(fault.mode == FAULT_SHORT ? part : n));
}

static struct {
    i64 bytes;    /* that were read */
    int at, calls; /* the at-th read from 0 fails; -1: none does */
} reading = {0, -1, 0};

static ssize_t faulty_pread(int fd, void *bytes, size_t n, off_t at) {
    errno = EIO;
    ssize_t got = reading.calls++ == reading.at ? -1 : pread(fd, bytes, n, at);
    if (got > 0) reading.bytes += got;
    return got;
}

static int faulty_fsync(int fd) {
    log_fd("fsync", fd);
    return strikes() ? -1 : done_with(fsync(fd));
}

static int faulty_ftruncate(int fd, off_t n) {
    log_fd("ftruncate", fd);
    return strikes() ? -1 : done_with(ftruncate(fd, n));
}

static int faulty_rename(const char *a, const char *b) {
    log_call("rename", a);
    return strikes() ? -1 : done_with(rename(a, b));
}

static int faulty_mkdir(const char *path, mode_t mode) {
    log_call("mkdir", path);
    return strikes() ? -1 : done_with(mkdir(path, mode));
}

static int faulty_unlink(const char *path) {
    log_call("unlink", path);
    return strikes() ? -1 : done_with(unlink(path));
}

static int faulty_rmdir(const char *path) {
    log_call("rmdir", path);
    return strikes() ? -1 : done_with(rmdir(path));
}

#define pwrite(fd, bytes, n, at) faulty_pwrite(fd, bytes, n, at)
#define pread(fd, bytes, n, at) faulty_pread(fd, bytes, n, at)
#define fsync(fd) faulty_fsync(fd)
#define ftruncate(fd, n) faulty_ftruncate(fd, n)
#define rename(a, b) faulty_rename(a, b)
#define mkdir(path, mode) faulty_mkdir(path, mode)
#define unlink(path) faulty_unlink(path)
#define rmdir(path) faulty_rmdir(path)
#include "../../core/resume.h"
#undef pwrite
#undef pread
#undef fsync
#undef ftruncate
#undef rename
#undef mkdir
#undef unlink
#undef rmdir
#undef calloc

/* ---- a model whose numbers are known ----------------------------------------------------------------------------- */

static char temp[256];

static const Config GPT = CONFIG(ARCH_GPT2, 2, 32, 4, 4, 8, 128, 61, 32, 1, 1e-5, 0);
static const Config GQA = CONFIG(ARCH_LLAMA, 2, 32, 4, 2, 8, 48, 67, 64, 0, 1e-6, 500000);

static int splits_none(BlockKind kind) { return kind < 0; }
static int splits_both(BlockKind kind) { return kind == BLOCK_ATTENTION || kind == BLOCK_MLP; }
static int splits_attention(BlockKind kind) { return kind == BLOCK_ATTENTION; }

typedef struct {
    const char *name;
    MeshShape shape; /* world, dp, ring, head */
    int (*splits)(BlockKind);
} MeshCase;

static const MeshCase MESHES[] = {
    {"1 rank", {1, 1, 1, 1}, splits_both},          {"odysseus x 2", {2, 1, 1, 2}, splits_attention},
    {"tpsp x 2", {2, 1, 1, 2}, splits_both},        {"ulysses x 4", {4, 1, 1, 4}, splits_none},
    {"tpsp x 4", {4, 1, 1, 4}, splits_both},        {"ring x 4", {4, 1, 4, 1}, splits_none},
    {"odysseus 2 x ring 2", {4, 1, 2, 2}, splits_attention}, {"dp 2 x tpsp 2", {4, 2, 1, 2}, splits_both},
    {"dp 3", {3, 3, 1, 1}, splits_none},            {"dp 2 ring 2 tpsp 4", {16, 2, 2, 4}, splits_both},
};

typedef struct {
    Config config;
    Mesh mesh;
    Device dev;
    Ledger ledger;
    Fabric fabric;
    Arena arena;
    Zero z;
} Model;

static void model_open(Model *m, const Config *c, const MeshCase *k, int rank, Wire wire, int imagined) {
    memset(m, 0, sizeof *m);
    m->config = *c;
    m->dev.threads = m->dev.host_threads = 1;
    mesh_init(&m->mesh, k->shape, wire, imagined, rank, c->kv_heads);
    fabric_init(&m->fabric, &m->dev, &m->ledger, (int)k->shape.world, 1, "mpi");
    arena_reserve(&m->arena, &m->dev);
    zero_init(&m->z, &m->config, &m->mesh, &m->fabric, &m->arena, k->splits, DTYPE_ACCUM);
    arena_commit(&m->arena);
}

static void model_close(Model *m, int imagined) {
    zero_free(&m->z);
    arena_free(&m->arena);
    fabric_free(&m->fabric);
    if (!imagined) mesh_free(&m->mesh);
}

/* Element `index` of tensor `name` in master, m, v (kind) of the run `seed`. */
static accum value_of(i64 seed, int kind, const char *name, i64 index) {
    return (accum)(random_normal(tensor_key(seed + 1000 * kind, name), index) / 3);
}

typedef struct {
    Zero *z;
    accum *flat;
    i64 seed, differ, seen;
    int kind, fill;
} Visit;

static void visit_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    Visit *v = (Visit *)context;
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    HfPlace p = tensor_hf_place(t->spec, v->z->config);
    for (i64 j = 0; j < n; j++) {
        accum want = value_of(v->seed, v->kind, name, p.base + row * p.row_step + (col + j) * p.col_step);
        if (v->fill) v->flat[at + j] = want;
        else v->differ += v->flat[at + j] != want;
    }
    v->seen += n;
}

/* Fill master, m and v (fill 1), or count the elements that are not those of `seed`; *seen: elements of this rank. */
static i64 model_visit(Zero *z, i64 seed, int fill, i64 *seen) {
    accum *flats[] = {z->master, z->m, z->v};
    i64 differ = 0;
    *seen = 0;
    for (int k = 0; k < 3; k++) {
        Visit v = {z, flats[k], seed, 0, 0, k, fill};
        for (int i = 0; i < z->tensors; i++) tensor_owned(z, &z->tensor[i], visit_run, &v);
        differ += v.differ, *seen += v.seen;
    }
    if (fill) convert(z->dev, z->param, z->master, z->flat);
    return differ;
}

static void under(char out[PATH_MAX], const char *name) { snprintf(out, PATH_MAX, "%s/%s", temp, name); }

static void saver_open(Saver *s, const char *name) {
    memset(s, 0, sizeof *s);
    snprintf(s->dir, sizeof s->dir, "%s/%s", temp, name);
    s->threads = 1, s->last = s->metrics = -1;
}

static const char TRAINER[] =
    "{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 1, \"step\": 3, \"next_sequence\": 12}\n";

/* Save after `step` steps; where `aside`, with the numbers lost as soon as it has begun. */
static int save_now(Saver *s, Zero *z, Wire world, i64 step, int aside) {
    double seconds;
    s->async = aside, s->ranks_here = wire_size(world);
    checkpoint_start(s, z, world, step, TRAINER);
    if (aside)
        memset(z->master, 0, (size_t)z->flat * sizeof(accum)), memset(z->m, 0, (size_t)z->flat * sizeof(accum)),
            memset(z->v, 0, (size_t)z->flat * sizeof(accum));
    return checkpoint_finish(s, world, &seconds);
}

/* Save run `seed` after `step` steps, on one rank. */
static int save_one(Saver *s, const Config *c, i64 seed, i64 step) {
    Model m;
    i64 seen;
    model_open(&m, c, &MESHES[0], 0, MPI_COMM_SELF, 1);
    model_visit(&m.z, seed, 1, &seen);
    int good = save_now(s, &m.z, MPI_COMM_SELF, step, 0);
    model_close(&m, 1);
    return good;
}

/* Is the checkpoint whole (loads 1: as far as that is judged before it is loaded)? The reason in why. */
static int whole_before(const Saver *s, i64 step, int loads, Trouble *why) {
    char path[PATH_MAX];
    Manifest m;
    step_path(path, s, step);
    int good = checkpoint_judge(MPI_COMM_SELF, path, step, 1, loads, &m, why);
    manifest_free(&m);
    return good;
}

static int whole(const Saver *s, i64 step, Trouble *why) { return whole_before(s, step, 0, why); }

/* Load on one rank, as a run does: judged first, then read. 1: what it took was whole. */
static int load_one(const Saver *s, Zero *z, i64 step, Trouble *why) {
    char path[PATH_MAX];
    Manifest m;
    step_path(path, s, step);
    int good =
        checkpoint_judge(MPI_COMM_SELF, path, step, 1, 1, &m, why) && optimizer_load(z, MPI_COMM_SELF, path, &m, why);
    manifest_free(&m);
    return good;
}

/* Elements that differ from run `seed` when every rank of an imagined mesh in turn has loaded the checkpoint; -1: not
   all came up once, or what the ranks have read does not add up to what was written. */
static i64 load_differs(const Saver *s, const Config *c, const MeshCase *k, i64 seed, i64 step) {
    char path[PATH_MAX];
    i64 differ = 0, all = 0;
    Manifest list;
    Trouble why = {""};
    step_path(path, s, step);
    manifest_read(&list, path, step, &why);
    if (troubled(&why)) return -1;
    SavedPart *part = (SavedPart *)host_alloc(sizeof(SavedPart) * (size_t)list.files);
    for (int r = 0; r < (int)k->shape.world; r++) {
        Model m;
        i64 seen;
        model_open(&m, c, k, r, wire_none(), 1);
        optimizer_read(&m.z, path, &list, part, &why);
        differ += model_visit(&m.z, seed, 0, &seen);
        all += seen;
        model_close(&m, 1);
    }
    optimizer_check(&list, part, &why);
    free(part);
    manifest_free(&list);
    return all == 3 * config_parameters(c) && !troubled(&why) ? differ : -1;
}

static int count_names(const char *dir, const char *end) {
    int n = 0;
    DIR *d = opendir(dir);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;)
        n += text_ends_with(e->d_name, end) && strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    if (d) closedir(d);
    return n;
}

static const char *in_one_line(char *text) {
    for (char *c = text; *c; c++)
        if (*c == '\n') *c = ' ';
    return text;
}

/* ---- sums and names ---------------------------------------------------------------------------------------------- */

static void test_sums(void) {
    enum { N = 40003 };
    static unsigned char bytes[N], other[N];
    SumKeys keys;
    sum_keys(&keys);
    for (int i = 0; i < N; i++) bytes[i] = (unsigned char)mix64((uint64_t)i);
    uint64_t all = range_sum(&keys, 0, bytes, N), by_definition = 0;
    for (i64 i = 0; i < ceil_div(N, 4); i++) {
        uint32_t w = 0;
        memcpy(&w, bytes + 4 * i, (size_t)i64_min(4, N - 4 * i));
        by_definition += w * sum_key((uint64_t)i % 1024) * sum_key(((uint64_t)1 << 32) + (uint64_t)i / 1024);
    }
    check(all == by_definition, "the sum of %d bytes is that of its definition", N);
    int bad = 0;
    for (int t = 0; t < 200; t++) {
        i64 a = (i64)(mix64(7 * (uint64_t)t) % N) / 4 * 4,
            b = a + ((i64)(mix64(7 * (uint64_t)t + 1) % (uint64_t)(N - a)) / 4 * 4);
        bad += range_sum(&keys, b, bytes + b, N - b) + range_sum(&keys, 0, bytes, a) +
                   range_sum(&keys, a, bytes + a, b - a) !=
               all;
    }
    check(bad == 0, "the sums of three parts, in another order, add up to that of the whole: %d of 200 do not", bad);
    bad = 0;
    /* a flipped bit; two words changed places; a page of zeros; two pages changed places */
    for (int t = 0; t < 2000; t++) {
        memcpy(other, bytes, N);
        i64 a = (i64)(mix64(3 * (uint64_t)t) % N), b = (i64)(mix64(3 * (uint64_t)t + 1) % N), page = 4096;
        if (t % 4 == 0) other[a] ^= (unsigned char)(1 << t / 4 % 8);
        else if (t % 4 == 1)
            a = a / 4 * 4 % (N - 8), b = b / 4 * 4 % (N - 8), memcpy(other + a, bytes + b, 4),
            memcpy(other + b, bytes + a, 4);
        else if (t % 4 == 2) memset(other + a % 9 * page, 0, (size_t)page);
        else
            memcpy(other + a % 9 * page, bytes + b % 9 * page, (size_t)page),
                memcpy(other + b % 9 * page, bytes + a % 9 * page, (size_t)page);
        bad += memcmp(other, bytes, N) != 0 && range_sum(&keys, 0, other, N) == all;
    }
    check(bad == 0, "flipped bits, exchanged words and pages, lost pages: %d of 2000 have the old sum", bad);
}

static void test_step_names(void) {
    char name[STEP_NAME_MAX];
    const i64 steps[] = {0, 1, 99999999, 100000000, 123456789012};
    int bad = 0;
    for (int i = 0; i < COUNT_OF(steps); i++) step_name(name, steps[i]), bad += step_of_name(name) != steps[i];
    step_name(name, 1000);
    check(bad == 0 && strcmp(name, "step-00001000") == 0, "names of steps read back: %s", name);
    const char *not_steps[] = {"step-1", "step-00000001.damaged", ".step-00000001", "step-0000000a", "step-",
                               "step-000000001", "step--0000001", "steps"};
    for (int i = 0; i < COUNT_OF(not_steps); i++)
        check(step_of_name(not_steps[i]) == -1, "%s is no checkpoint's name", not_steps[i]);
}

/* ---- one writes, all read ---------------------------------------------------------------------------------------- */

static void test_every_mesh_reads(const Config *c, const char *name) {
    Saver s;
    Trouble why;
    char dir[PATH_MAX], path[PATH_MAX];
    saver_open(&s, name);
    check(save_one(&s, c, 5, 3) && whole(&s, 3, &why), "%s: saved, and whole: %s", name, why.text);
    for (int k = 0; k < COUNT_OF(MESHES); k++) {
        i64 differ = load_differs(&s, c, &MESHES[k], 5, 3);
        device_is_host = 0;
        i64 by_pieces = load_differs(&s, c, &MESHES[k], 5, 3);
        device_is_host = 1;
        check(differ == 0 && by_pieces == 0,
              "%s: master, m and v on %s: %lld elements are not what was saved, by pieces %lld", name, MESHES[k].name,
              differ, by_pieces);
    }
    step_path(dir, &s, 3);
    device_is_host = 0;
    int by_pieces = save_one(&s, c, 6, 4);
    device_is_host = 1;
    check(by_pieces && load_differs(&s, c, &MESHES[0], 6, 4) == 0, "%s: saved by pieces", name);
    check(count_names(dir, ".safetensors") > 4, "%s: in several files of each kind", name);
    SafetensorSet model;
    Config again;
    i64 differ = 0;
    int n;
    Model m;
    path_join(path, dir, "model.safetensors.index.json");
    memset(&model, 0, sizeof model);
    safetensors_open_index(&model, dir, path);
    model_open(&m, c, &MESHES[0], 0, MPI_COMM_SELF, 1);
    HfTensor *list = checkpoint_list(&m.z, &n);
    for (int i = 0; i < n; i++) {
        const Safetensor *t = safetensors_find(&model, list[i].name);
        for (i64 k = 0; k < hf_elements(&list[i]); k++)
            differ +=
                !t || t->type != ST_F32 || safetensor_value(t, k) != (double)(float)value_of(5, 0, list[i].name, k);
    }
    checkpoint_read_config(&again, dir);
    check(differ == 0 && model.tensors == n,
          "%s: model*.safetensors are the weights in F32, named as transformers names them: %lld differ", name, differ);
    check(again.layers == c->layers && again.kv_heads == c->kv_heads && again.tied == c->tied &&
              again.rope_theta == c->rope_theta,
          "%s: config.json is the model's", name);
    checkpoint_load(&m.z, dir, 0);
    check(m.z.master[0] == (accum)(float)m.z.master[0], "%s: --model takes it as a Hugging Face directory", name);
    free(list);
    model_close(&m, 1);
    safetensors_close(&model);
    saver_free(&s);
}

/* ---- what is not whole ------------------------------------------------------------------------------------------- */

static void change_file(const char *path, const char *how, i64 at) {
    struct stat st;
    unsigned char byte = 0;
    int fd = open(path, O_RDWR);
    if (fd < 0 || fstat(fd, &st) != 0) FAIL(THIS_RANK, "%s: cannot change the test's file", path);
    at = at % (i64)i64_max((i64)st.st_size, 1);
    int bad = 0;
    if (strcmp(how, "truncated") == 0) bad = ftruncate(fd, (off_t)at) != 0;
    else if (strcmp(how, "longer") == 0) bad = pwrite(fd, &byte, 1, st.st_size) != 1;
    else
        bad = pread(fd, &byte, 1, (off_t)at) != 1 ||
              (byte ^= (unsigned char)(1 << at % 8), pwrite(fd, &byte, 1, (off_t)at)) != 1;
    close(fd);
    if (bad) FAIL(THIS_RANK, "%s: cannot change the test's file", path);
}

static void run_command(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void run_command(const char *format, ...) {
    char command[4 * PATH_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    if (system(command) != 0) FAIL(THIS_RANK, "failed: %s", command);
}

static void test_not_whole(void) {
    Saver s, copy;
    Trouble why;
    char dir[PATH_MAX], other[PATH_MAX], path[PATH_MAX];
    saver_open(&s, "sound");
    saver_open(&copy, "unsound");
    save_one(&s, &GQA, 5, 3);
    step_path(dir, &s, 3);
    step_path(other, &copy, 3);
    run_command("mkdir -p '%s'", copy.dir);
    Manifest m;
    manifest_read(&m, dir, 3, &why);
    const char *hows[] = {"truncated", "a flipped bit", "longer", "missing"};
    const char *whys[] = {"truncated", "does not hold what was written", "something was added", "is missing"};
    for (int f = 0; f < m.files; f++)
        for (int h = 0; h < COUNT_OF(hows); h++) {
            int bad = 0;
            for (int t = 0; t < (h < 2 ? 4 : 1); t++) {
                run_command("rm -rf '%s' && cp -r '%s' '%s'", other, dir, other);
                path_join(path, other, m.file[f].name);
                if (h == 3) unlink(path);
                else change_file(path, hows[h], (i64)(mix64((uint64_t)(100 * f + t)) >> 1));
                bad += whole(&copy, 3, &why) || !strstr(why.text, whys[h]) || !strstr(why.text, m.file[f].name);
            }
            check(bad == 0, "%s, %s: not whole, because %s", m.file[f].name, hows[h], why.text);
        }
    path_join(path, other, MANIFEST_NAME);
    run_command("rm -rf '%s' && cp -r '%s' '%s'", other, dir, other);
    check(whole(&copy, 3, &why), "a copy is as whole as the original: %s", why.text);
    struct stat st;
    if (stat(path, &st) != 0) FAIL(THIS_RANK, "no manifest");
    int bad = 0, harmless = 0;
    for (i64 at = 0; at < (i64)st.st_size; at++) {
        Manifest now;
        change_file(path, "a flipped bit", at);
        int good = whole(&copy, 3, &why);
        manifest_read(&now, other, 3, &why);
        int same = now.files == m.files && memcmp(now.file, m.file, sizeof *m.file * (size_t)m.files) == 0;
        bad += good && !same, harmless += good && same; /* white space may change */
        manifest_free(&now);
        change_file(path, "a flipped bit", at); /* and back */
    }
    check(bad == 0 && harmless < (int)st.st_size / 4,
          "a flipped bit in each of the manifest's %d bytes: %d unseen, %d in white space", (int)st.st_size, bad,
          harmless);
    bad = 0;
    for (i64 n = 0; n < (i64)st.st_size; n++) {
        run_command("head -c %d '%s/" MANIFEST_NAME "' > '%s'", (int)n, dir, path);
        bad += whole(&copy, 3, &why);
        n += 16;
    }
    check(bad == 0, "the manifest, cut short: %d of them are taken", bad);
    static const struct {
        const char *text, *why;
    } manifests[] = {
        {"", "damaged"}, {"{}", "damaged, or not this program's"}, {"[1]", "not this program's"},
        {"{\"format\": \"x\"}", "not this program's"},
        {"{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 2, \"step\": 3, \"files\": {}}",
         "it is of version 2, this program reads up to 1"},
        {"{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 1, \"step\": 4, \"files\": {}}", "is of step 4"},
        {"{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 1, \"step\": 3, \"files\": {}}", "lists no config.json"},
        {"{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 1, \"step\": 3, \"files\": {\"../x\": {\"bytes\": 1, "
         "\"sum\": \"0000000000000000\"}}}", "damaged at file 1"},
        {"{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 1, \"step\": 3, \"files\": {\"x\": {\"bytes\": -1, "
         "\"sum\": \"0000000000000000\"}}}", "damaged at file 1"},
        {"{\"format\": \"" MANIFEST_FORMAT "\", \"version\": 1, \"step\": 3, \"files\": {\"x\": {\"bytes\": 1, "
         "\"sum\": \"0\"}}}", "damaged at file 1"},
    };
    for (int i = 0; i < COUNT_OF(manifests); i++) {
        run_command("printf '%%s' '%s' > '%s'", manifests[i].text, path);
        check(!whole(&copy, 3, &why) && strstr(why.text, manifests[i].why), "manifest.json %.90s: %s",
              manifests[i].text, why.text);
    }
    run_command("rm '%s'", path);
    check(!whole(&copy, 3, &why) && strstr(why.text, "no manifest.json"), "a foreign directory: %s", why.text);
    run_command("rm -rf '%s' && touch '%s'", other, other);
    check(!whole(&copy, 3, &why), "a file in the place of a directory: %s", why.text);
    manifest_free(&m);
    saver_free(&s);
    saver_free(&copy);
}

/* A flipped bit in each file: whatever is not judged before it is loaded is found while it is. */
static void test_torn_when_loaded(void) {
    Saver s;
    Trouble why;
    Manifest list;
    Model m;
    char dir[PATH_MAX], path[PATH_MAX];
    int late = 0, bad = 0, tries = 0;
    saver_open(&s, "late");
    save_one(&s, &GQA, 5, 3);
    step_path(dir, &s, 3);
    manifest_read(&list, dir, 3, &why);
    model_open(&m, &GQA, &MESHES[0], 0, MPI_COMM_SELF, 1);
    check(load_one(&s, &m.z, 3, &why), "what is whole is loaded: %s", why.text);
    for (int f = 0; f < list.files; f++)
        for (int t = 0; t < 20; t++, tries++) {
            i64 at = (i64)(mix64((uint64_t)(100 * f + t)) >> 1) % list.file[f].bytes;
            if (t < 4 && list.file[f].head) at %= list.file[f].head;
            path_join(path, dir, list.file[f].name);
            change_file(path, "a flipped bit", at);
            int behind = list.file[f].head && at >= list.file[f].head;
            int judged = whole_before(&s, 3, 1, &why);
            int loaded = load_one(&s, &m.z, 3, &why);
            if (judged != behind || loaded || !strstr(why.text, list.file[f].name))
                bad++, printf("# %s, byte %lld: %d %d %s\n", list.file[f].name, at, judged, loaded, why.text);
            late += judged;
            change_file(path, "a flipped bit", at);
        }
    check(bad == 0 && late > 50 && load_one(&s, &m.z, 3, &why),
          "a flipped bit in %d places: none is taken, %d are found by loading", tries, late);
    for (int i = 0; i < list.files; i++) list.file[i].head = 0;
    char *text = manifest_text(&list);
    path_join(path, dir, MANIFEST_NAME);
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f) != 0) FAIL(THIS_RANK, "%s: cannot write the test's file", path);
    cJSON_free(text);
    check(load_one(&s, &m.z, 3, &why), "a manifest that gives no file a head: %s", why.text);
    path_join(path, dir, list.file[list.files - 4].name);
    change_file(path, "a flipped bit", list.file[list.files - 4].bytes - 9);
    check(!whole_before(&s, 3, 1, &why) && strstr(why.text, list.file[list.files - 4].name),
          "then all is judged before it is loaded: %s", why.text);
    model_close(&m, 1);
    manifest_free(&list);
    saver_free(&s);
}

/* ---- calls that fail --------------------------------------------------------------------------------------------- */

static Saver *fault_saver;

static void save_faulty(const char *unused) {
    (void)unused;
    fflush(stdout);
    if (fault.mode == FAULT_KILL_BEFORE || fault.mode == FAULT_KILL_AFTER) fault.calls = 0;
    if (!save_one(fault_saver, &GQA, 6, 4)) _exit(3);
}

/* The n-th call fails, once or from then on: it is said, the checkpoint before stays, nothing half written
   stays, the next try succeeds. */
static void test_failing_calls(FaultMode mode, int error, const char *name) {
    Saver s;
    Trouble why;
    int calls = 0, bad = 0, n = 0;
    char text[4096] = "";
    saver_open(&s, name);
    save_one(&s, &GQA, 5, 3);
    fault_saver = &s;
    fault.mode = FAULT_NONE, fault.calls = 0;
    for (n = 0; n == 0 || n < calls; n++) {
        fault.mode = mode, fault.at = n, fault.error = error, fault.calls = 0;
        int status = run_child(save_faulty, "", text, sizeof text);
        int saved = WIFEXITED(status) && WEXITSTATUS(status) == 0, said = WIFEXITED(status) && WEXITSTATUS(status) == 3;
        fault.mode = FAULT_NONE, fault.calls = 0;
        if (n == 0) { /* how many there are, of a save that nothing disturbs */
            run_child(save_faulty, "", text, sizeof text);
            Saver again;
            char path[PATH_MAX];
            step_path(path, &s, 4);
            run_command("rm -rf '%s'", path);
            saver_open(&again, name);
            save_one(&again, &GQA, 6, 4);
            calls = fault.calls;
            saver_free(&again);
            run_command("rm -rf '%s'", path);
            fault.mode = mode, fault.at = n, fault.error = error, fault.calls = 0;
            status = run_child(save_faulty, "", text, sizeof text);
            saved = WIFEXITED(status) && WEXITSTATUS(status) == 0, said = WIFEXITED(status) && WEXITSTATUS(status) == 3;
            fault.mode = FAULT_NONE;
        }
        int good = whole(&s, 3, &why) && load_differs(&s, &GQA, &MESHES[0], 5, 3) == 0;
        if (mode == FAULT_SHORT) good = good && saved && whole(&s, 4, &why);
        else if (mode == FAULT_FAIL || mode == FAULT_FAIL_ON) {
            const char *note = "train_gpt: note: no checkpoint after step 4: ";
            /* its parent's fsync failed: it may be there, it was not promised */
            int parent = said && whole(&s, 4, &why);
            good = good && said && text_begins_with(text, note) && strstr(text, strerror(error)) &&
                   (!parent || n == calls - 1) && (mode == FAULT_FAIL_ON || count_names(s.dir, ".partial") == 0);
        } else {
            good = good && WIFEXITED(status) && WEXITSTATUS(status) == 99;
            if (path_is_directory(strcat(strcpy(text, s.dir), "/step-00000004")))
                good = good && whole(&s, 4, &why) && n >= calls - 2;
        }
        fault.mode = FAULT_NONE;
        good = good && save_one(&s, &GQA, 7, 5) && whole(&s, 5, &why) &&
               load_differs(&s, &GQA, &MESHES[0], 7, 5) == 0 && count_names(s.dir, ".partial") == 0;
        if (!good)
            bad++, printf("# %s: call %d of %d: status %d, said: %s\n", name, n, calls, status, in_one_line(text));
        run_command("rm -rf '%s'/step-00000004* '%s'/step-00000005*", s.dir, s.dir);
        verdict_find(&s, 5)->whole = 0;
    }
    check(bad == 0 && calls > 20,
          "%s: each of the %d calls of a save in turn: the one before stays, the next one succeeds; not so after %d",
          name, calls, bad);
    saver_free(&s);
}

/* Killed before the n-th call of a save that then deletes the one before it, for every n: one whole checkpoint at
   least, and nothing under a checkpoint's name that is not whole; the next save finds nothing in its way. */
static void test_killed_while_deleting(void) {
    Saver s;
    Trouble why;
    char text[4096] = "", path[PATH_MAX];
    int bad = 0, n = 0, status = 0;
    saver_open(&s, "deleting");
    s.keep = 1;
    fault_saver = &s;
    for (n = 0; n == 0 || WEXITSTATUS(status) == 99; n++) {
        save_one(&s, &GQA, 5, 3);
        fault.mode = FAULT_KILL_BEFORE, fault.at = n;
        status = run_child(save_faulty, "", text, sizeof text);
        fault.mode = FAULT_NONE;
        int there = 0, good = 1;
        for (i64 step = 3; step <= 4; step++) {
            step_path(path, &s, step);
            if (path_exists(path)) there++, good = good && whole(&s, step, &why);
        }
        good = good && there > 0 && save_one(&s, &GQA, 7, 5) && load_differs(&s, &GQA, &MESHES[0], 7, 5) == 0 &&
               count_names(s.dir, "") == 1;
        if (!good) bad++, printf("# call %d: %d there, %s; %s\n", n, there, why.text, in_one_line(text));
        run_command("rm -rf '%s'", s.dir);
        s.verdicts = 0, s.last = -1;
    }
    check(bad == 0 && n > 40 && WIFEXITED(status) && WEXITSTATUS(status) == 0,
          "--keep 1, killed before each of %d calls, those that delete among them: not so after %d", n - 1, bad);
    saver_free(&s);
}

/* 54 MB of weights and moments in fp32, 108 in fp64: saved and read by way of a few. */
static void test_memory(void) {
    static const Config large = CONFIG(ARCH_LLAMA, 1, 32, 4, 2, 8, 48, 70001, 64, 0, 1e-6, 500000);
    Model m;
    Saver s;
    Trouble why;
    i64 seen;
    char path[PATH_MAX];
    saver_open(&s, "memory");
    model_open(&m, &large, &MESHES[0], 0, MPI_COMM_SELF, 1);
    model_visit(&m.z, 5, 1, &seen);
    asked = 0, device_is_host = 0;
    int saved = save_now(&s, &m.z, MPI_COMM_SELF, 3, 0);
    size_t for_saving = asked;
    memset(m.z.v, 0, (size_t)m.z.flat * sizeof(accum));
    step_path(path, &s, 3);
    Manifest list;
    reading.bytes = 0;
    int loaded = checkpoint_judge(MPI_COMM_SELF, path, 3, 1, 1, &list, &why);
    asked = 0;
    loaded = loaded && optimizer_load(&m.z, MPI_COMM_SELF, path, &list, &why);
    size_t for_loading = asked;
    device_is_host = 1;
    manifest_free(&list);
    i64 all = 3 * m.z.flat * (i64)sizeof(accum), most = RANGE_ROOM + ((i64)1 << 20);
    check(saved && loaded && model_visit(&m.z, 5, 0, &seen) == 0 && (i64)for_saving < most && (i64)for_loading < most &&
              all > 10 * most,
          "%.1f MB of numbers: saving them asks for %.2f MB of host memory all together, reading them for %.2f",
          (double)all / 1e6, (double)for_saving / 1e6, (double)for_loading / 1e6);
    i64 there = all + m.z.flat * 4, few = 20000;
    check(reading.bytes >= there && reading.bytes < there + few, "each byte is read once: %lld of %lld, and the heads",
          reading.bytes, there);
    asked = 0;
    checkpoint_load(&m.z, path, 0);
    check((i64)asked < most, "a model's directory is read by way of %.2f MB", (double)asked / 1e6);
    model_close(&m, 1);
    run_command("rm -rf '%s'", s.dir);
    saver_free(&s);
}

static const char *line_of(const char *log, const char *line) { return strstr(log, line); }

/* Every file is on disk before the manifest, that and the directory before the name, the
   name before the save returns. */
static void test_order(void) {
    Saver s;
    char line[256];
    static char log[1 << 16];
    saver_open(&s, "order");
    fault.log = log;
    save_one(&s, &GQA, 5, 3);
    fault.log = NULL;
    Manifest m;
    Trouble why = {""};
    char dir[PATH_MAX];
    step_path(dir, &s, 3);
    manifest_read(&m, dir, 3, &why);
    const char *manifest = line_of(log, "write manifest.json\n");
    int bad = 0;
    for (int i = 0; i < m.files; i++) {
        const char *last = log, *at;
        snprintf(line, sizeof line, "write %s\n", m.file[i].name);
        while ((at = line_of(last + 1, line)) != NULL) last = at;
        snprintf(line, sizeof line, "fsync %s\n", m.file[i].name);
        const char *synced = line_of(last, line);
        if (last == log || !synced || !manifest || synced > manifest) bad++, printf("# %s\n", m.file[i].name);
    }
    check(bad == 0 && m.files > 6,
          "each of the %d files is written and then on disk before the manifest is: %d are not", m.files, bad);
    const char *synced = manifest ? line_of(manifest, "fsync manifest.json\n") : NULL,
               *inside = synced ? line_of(synced, "fsync .step-00000003.partial\n") : NULL;
    const char *named = inside ? line_of(inside, "rename .step-00000003.partial\n") : NULL,
               *parent = named ? line_of(named, "fsync order\n") : NULL;
    check(parent != NULL, "then manifest, directory, name and parent, in this order");
    manifest_free(&m);
    saver_free(&s);
}

static void limit_files(const char *unused) {
    struct rlimit limit = {30000, 30000}; /* the kernel refuses the rest with EFBIG, as it would with ENOSPC */
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    save_faulty(unused);
}

/* ---- in the way, left over, too many ----------------------------------------------------------------------------- */

static void test_leftovers(void) {
    Saver s;
    Trouble why;
    saver_open(&s, "left");
    run_command(
        "mkdir -p '%s'/.step-00000004.partial '%s'/.step-00000002.deleted '%s'/.step-2.partial '%s'/.other.partial",
        s.dir, s.dir, s.dir, s.dir);
    run_command("touch '%s'/.step-00000004.partial/model.safetensors '%s'/.step-00000002.deleted/x", s.dir, s.dir);
    check(save_one(&s, &GPT, 5, 4) && whole(&s, 4, &why), "what a crash left under the same name is no error");
    check(count_names(s.dir, ".deleted") == 0 && count_names(s.dir, ".partial") == 2,
          "leftovers go; what is not ours stays");
    run_command("mkdir '%s'/step-00000005 && echo hers > '%s'/step-00000005/config.json", s.dir, s.dir);
    check(save_one(&s, &GPT, 5, 5) && whole(&s, 5, &why), "a foreign directory is not in the way of a new checkpoint");
    verdict_find(&s, 5)->whole = 0;
    run_command("rm '%s'/step-00000005/manifest.json", s.dir);
    check(save_one(&s, &GPT, 6, 5) && whole(&s, 5, &why), "nor is a torn one");
    run_command("test \"$(cat '%s'/step-00000005.damaged/config.json)\" = hers && test -f "
                "'%s'/step-00000005.damaged-2/trainer.json",
                s.dir, s.dir);
    check(1, "both are still there, set aside");
    saver_free(&s);
}

/* The steps of `dir`, newest first, as "5 4 3". */
static void steps_text(char out[256], const char *dir) {
    int n;
    i64 *steps = steps_list(dir, &n);
    out[0] = 0;
    for (int i = 0; i < n; i++) snprintf(out + strlen(out), 256 - strlen(out), "%s%lld", i ? " " : "", steps[i]);
    free(steps);
}

static void test_keep(void) {
    Saver s;
    char text[256], path[PATH_MAX];
    saver_open(&s, "keep");
    s.keep = 2, s.keep_every = 4;
    for (i64 step = 1; step <= 9; step++) save_one(&s, &GPT, step, step);
    steps_text(text, s.dir);
    check(strcmp(text, "9 8 4") == 0, "--keep 2 --keep-every 4 after steps 1 to 9 leaves 9 8 4: %s", text);
    saver_free(&s);
    saver_open(&s, "keep"); /* another process: nothing is known of them */
    for (i64 step = 10; step <= 12; step++) save_one(&s, &GPT, step, step); /* all stay */
    step_path(path, &s, 11);
    run_command("truncate -s 7 '%s'/trainer.json", path);
    step_path(path, &s, 10);
    /* its size, not its bytes */
    run_command("mv '%s'/trainer.json '%s'/x && tr 123 456 <'%s'/x >'%s'/trainer.json && rm '%s'/x", path, path, path,
                path, path);
    saver_free(&s);
    saver_open(&s, "keep");
    s.keep = 3;
    save_one(&s, &GPT, 13, 13);
    steps_text(text, s.dir);
    check(strcmp(text, "13 12 11 10 9") == 0,
          "--keep 3 neither counts nor deletes what is not whole: 13 12 11 10 9: %s", text);
    s.keep = 1;
    save_one(&s, &GPT, 14, 14);
    steps_text(text, s.dir);
    check(strcmp(text, "14 11 10") == 0, "--keep 1 after that leaves 14 and what is not whole, 11 10: %s", text);
    check(count_names(s.dir, ".deleted") == 0, "what was deleted is gone");
    saver_free(&s);
}

/* ---- --resume ---------------------------------------------------------------------------------------------------- */

static char resume_where[PATH_MAX];

static void try_resume(const char *dir) {
    Saver s;
    Resume r;
    memset(&s, 0, sizeof s);
    snprintf(s.dir, sizeof s.dir, "%.3000s", dir);
    s.last = -1;
    resume_find(MPI_COMM_SELF, &s, resume_where, 1, &r);
    fprintf(stderr, "found step %lld continues %d last %lld\n", r.step, r.continues, s.last);
}

/* --resume WHERE (below temp) of a run that saves to temp/`saves` says all of this, and ends so. */
static void expect_resume(const char *where, const char *saves, int ends, const char *says) {
    char text[4096], dir[PATH_MAX];
    if (*where) under(resume_where, where);
    else resume_where[0] = 0;
    under(dir, saves);
    int status = run_child(try_resume, dir, text, sizeof text);
    int good = (ends ? is_one_error(status, text) : status == 0) && strstr(text, says);
    check(good, "--resume '%s' beside %s: \"%s\"; said: %s", where, saves, says, in_one_line(text));
}

static void test_resume_finds(void) {
    Saver s;
    char path[PATH_MAX];
    saver_open(&s, "run/checkpoints");
    for (i64 step = 1; step <= 3; step++) save_one(&s, &GPT, step, step);
    expect_resume("run", "elsewhere", 0, "found step 3 continues 0 last -1");
    expect_resume("run/", "run/checkpoints", 0, "found step 3 continues 1 last 3");
    expect_resume("run/checkpoints", "run/checkpoints", 0, "found step 3 continues 1");
    expect_resume("", "run/checkpoints", 0, "found step 3 continues 1");
    expect_resume("run/checkpoints/step-00000002", "elsewhere", 0, "found step 2 continues 0");
    expect_resume("run/checkpoints/step-00000003/", "run/checkpoints", 0, "found step 3 continues 1 last 3");
    expect_resume("run/checkpoints/step-00000002", "run/checkpoints", 1, "step-00000003 is newer and whole");
    run_command("cp -r '%s'/step-00000002 '%s'/final", s.dir, temp);
    expect_resume("final", "run/checkpoints", 0, "found step 2 continues 0");
    step_path(path, &s, 3);
    run_command("rm '%s'/optimizer*", path);
    expect_resume("run", "run/checkpoints", 0, "step-00000003 is skipped: optimizer");
    expect_resume("run", "run/checkpoints", 0, "found step 2 continues 1 last 2");
    expect_resume("run/checkpoints/step-00000002", "run/checkpoints", 0, "found step 2 continues 1");
    expect_resume("run/checkpoints/step-00000003", "run/checkpoints", 1, "this checkpoint is not whole: optimizer");
    run_command("rm '%s'/step-00000001/config.json '%s'/step-00000002/manifest.json", s.dir, s.dir);
    char text[4096], dir[PATH_MAX];
    under(resume_where, "run");
    under(dir, "run/checkpoints");
    int status = run_child(try_resume, dir, text, sizeof text);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1 &&
              strstr(text, "step-00000002 is skipped: it has no manifest.json") &&
              strstr(text, "no checkpoint in it is whole; the newest, step-00000003: optimizer"),
          "nothing is whole: each is named, and it ends");
    run_command("mkdir '%s/empty' && touch '%s/file'", temp, temp);
    expect_resume("empty", "elsewhere", 1, "no checkpoint is in it");
    expect_resume("nowhere", "elsewhere", 1, "no such directory");
    expect_resume("file", "elsewhere", 1, "it is no directory");
    expect_resume("", "nowhere", 1, "nowhere: no such directory");
    saver_free(&s);
}

/* ---- on real meshes ---------------------------------------------------------------------------------------------- */

static void test_same_bytes(Wire world, const Config *c, const char *name) {
    int rank = wire_rank(world), ranks = wire_size(world);
    char command[2 * PATH_MAX + 64];
    Saver one, many;
    saver_open(&one, "one");
    saver_open(&many, "many");
    if (rank == 0) save_one(&one, c, 5, 3);
    for (int k = 0; k < COUNT_OF(MESHES); k++) {
        if (MESHES[k].shape.world != ranks) continue;
        Model m;
        i64 seen;
        model_open(&m, c, &MESHES[k], rank, world, 0);
        model_visit(&m.z, 5, 1, &seen);
        int saved = save_now(&many, &m.z, world, 3, k % 2 == 0);
        char path[PATH_MAX];
        Manifest list;
        Trouble why;
        step_path(path, &many, 3);
        int good = checkpoint_judge(world, path, 3, 1, 0, &list, &why);
        manifest_free(&list);
        snprintf(command, sizeof command, "diff -r '%s' '%s'", one.dir, many.dir);
        check(saved && good && (rank != 0 || system(command) == 0),
              "%s on %s: saved, whole, and byte for byte what one rank writes: %s", name, MESHES[k].name, why.text);
        i64 differ = -1;
        memset(m.z.master, 0, (size_t)m.z.flat * sizeof(accum));
        wire_barrier(world);
        good = checkpoint_judge(world, path, 3, 1, 1, &list, &why) && optimizer_load(&m.z, world, path, &list, &why);
        differ = model_visit(&m.z, 5, 0, &seen);
        for (i64 i = 0; i < m.z.flat; i++) differ += m.z.param[i] != (real)m.z.master[i];
        check(good && differ == 0, "%s on %s: and read back by the same ranks: %lld elements differ", name,
              MESHES[k].name, differ);
        reading.calls = 0, reading.at = rank == ranks - 1 ? 0 : -1;
        good = optimizer_load(&m.z, world, path, &list, &why);
        check(!good && strstr(why.text, strerror(EIO)), "%s on %s: a rank that cannot read: all learn it: %s", name,
              MESHES[k].name, why.text);
        reading.at = -1;
        wire_barrier(world);
        if (rank == 0)
            run_command("printf x | dd of='%s/%s' bs=1 seek=%d conv=notrunc status=none", path,
                        list.file[list.files - 5].name, 30000);
        wire_barrier(world);
        good = optimizer_load(&m.z, world, path, &list, &why);
        check(!good && strstr(why.text, "does not hold what was written"),
              "%s on %s: another byte on one rank: all learn it: %s", name, MESHES[k].name, why.text);
        manifest_free(&list);
        wire_barrier(world);
        if (rank == 0 && system(strcat(strcpy(command, "rm -rf "), many.dir)) != 0)
            FAIL(THIS_RANK, "cannot remove %s", many.dir);
        wire_barrier(world);
        if (ranks > 1 && k % 2) { /* one rank's disk is full */
            fault.mode = rank == ranks - 1 ? FAULT_FAIL : FAULT_NONE, fault.calls = 0, fault.at = 1,
            fault.error = ENOSPC;
            saved = save_now(&many, &m.z, world, 3, k % 4 == 1);
            check(!saved && (rank != 0 || count_names(many.dir, "") == 0),
                  "%s on %s: what goes wrong on the last rank is no checkpoint on any", name, MESHES[k].name);
            fault.mode = FAULT_NONE;
            wire_barrier(world);
        }
        model_close(&m, 0);
    }
    wire_barrier(world);
    if (rank == 0 && system(strcat(strcpy(command, "rm -rf "), one.dir)) != 0)
        FAIL(THIS_RANK, "cannot remove %s", one.dir);
    saver_free(&one);
    saver_free(&many);
}

int main(int argc, char **argv) {
    const char *place = getenv("TMPDIR"), *ranks = getenv("OMPI_COMM_WORLD_SIZE");
    char text[4096];
    snprintf(temp, sizeof temp, "%s/odysseus-save-XXXXXX", place ? place : "/tmp");
    if (!ranks) { /* forks come before MPI, and mpirun does not like children that start it */
        if (!mkdtemp(temp)) FAIL(EVERYONE, "%s: cannot create the test's directory", temp);
        test_sums();
        test_step_names();
        test_every_mesh_reads(&GPT, "gpt2");
        test_every_mesh_reads(&GQA, "llama");
        test_not_whole();
        test_torn_when_loaded();
        test_order();
        test_failing_calls(FAULT_FAIL, EIO, "an I/O error");
        test_failing_calls(FAULT_FAIL_ON, ENOSPC, "a full disk");
        test_failing_calls(FAULT_SHORT, 0, "a short write");
        test_failing_calls(FAULT_KILL_BEFORE, 0, "killed before a call, or within a write");
        test_failing_calls(FAULT_KILL_AFTER, 0, "killed after a call");
        test_killed_while_deleting();
        test_memory();
        Saver s;
        saver_open(&s, "limit");
        fault_saver = &s;
        int status = run_child(limit_files, "", text, sizeof text);
        check(WIFEXITED(status) && WEXITSTATUS(status) == 3 && strstr(text, "File too large") &&
                  count_names(s.dir, "") == 0,
              "a file that may not become so long: said, and nothing stays: %s", in_one_line(text));
        test_leftovers();
        test_keep();
        test_resume_finds();
    }
    Wire world = wire_start_mpi(&argc, &argv);
    checks()->silent = wire_rank(world) != 0;
    if (ranks && wire_rank(world) == 0 && !mkdtemp(temp))
        FAIL(THIS_RANK, "%s: cannot create the test's directory", temp);
    MPI_Bcast(temp, sizeof temp, MPI_CHAR, 0, world);
    test_same_bytes(world, &GPT, "gpt2");
    test_same_bytes(world, &GQA, "llama");
    wire_barrier(world);
    if (wire_rank(world) == 0) run_command("rm -rf '%s'", temp);
    int failed = checks_done();
    wire_finish();
    return failed;
}

/* test_host.c - what a host gives a rank: memory and cores out of the control groups around it, the team that OpenMP
   grants, other ranks, and what a peak that was measured wrongly, or given too low, does to a run.

   Control groups are read from trees of /proc and /sys that are made here: "" is the root of the real ones.          */
#include "support.h"

static char tree[PATH_MAX / 4];

#define MIB ((i64)1 << 20)

/* Another empty tree. */
static void tree_begin(const char *directory) {
    static int trees;
    snprintf(tree, sizeof tree, "%s/tree%d", directory, trees++);
    make_directories(tree);
}

/* A file of the tree. */
static void put(const char *path, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(const char *path, const char *format, ...) {
    char name[2 * PATH_MAX];
    snprintf(name, sizeof name, "%s/%s", tree, path);
    char *slash = strrchr(name, '/');
    *slash = 0, make_directories(name), *slash = '/';
    FILE *f = fopen(name, "w");
    va_list args;
    if (!f) FAIL(THIS_RANK, "cannot write %s", name);
    va_start(args, format);
    vfprintf(f, format, args);
    va_end(args);
    fclose(f);
}

static void put_host(const char *cgroup, const char *mountinfo) {
    put("proc/meminfo", "MemTotal:       16384000 kB\nMemFree:        1000 kB\nMemAvailable:   8000000 kB\n");
    put("proc/self/cgroup", "%s", cgroup);
    put("proc/self/mountinfo", "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n%s", mountinfo);
}

static void put_v2(const char *group, i64 limit_mib, i64 used_mib, i64 inactive_mib, i64 active_mib) {
    char path[512];
    snprintf(path, sizeof path, "%s/memory.max", group);
    if (limit_mib < 0) put(path, "max\n");
    else put(path, "%lld\n", limit_mib * MIB);
    snprintf(path, sizeof path, "%s/memory.current", group);
    put(path, "%lld\n", used_mib * MIB);
    snprintf(path, sizeof path, "%s/memory.stat", group);
    put(path,
        "anon 4096\nfile 99\nshmem 77\ninactive_anon 55\ninactive_file %lld\nactive_file %lld\nslab_reclaimable 0\n",
        inactive_mib * MIB, active_mib * MIB);
}

static void put_v1(const char *group, i64 limit, i64 used_mib, i64 inactive_mib) {
    char path[512];
    snprintf(path, sizeof path, "%s/memory.limit_in_bytes", group);
    put(path, "%lld\n", limit);
    snprintf(path, sizeof path, "%s/memory.usage_in_bytes", group);
    put(path, "%lld\n", used_mib * MIB);
    snprintf(path, sizeof path, "%s/memory.stat", group);
    put(path, "cache 1\ninactive_file 1\ntotal_inactive_file %lld\ntotal_active_file 0\n", inactive_mib * MIB);
    snprintf(path, sizeof path, "%s/memory.use_hierarchy", group);
    put(path, "1\n");
}

#define V2_MOUNT "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1_MEMORY "40 30 0:31 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
#define V1_CPU "41 30 0:32 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
#define UNIFIED "42 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
#define NO_LIMIT_V1 9223372036854771712

static void memory_is(i64 bytes, const char *what) {
    i64 found = host_memory_available(tree);
    check(found == bytes, "%s: %lld bytes available, expected %lld", what, found, bytes);
}

static void cores_are(double cores, const char *what) {
    double found = host_cores_limit(tree);
    check(found == cores, "%s: the time of %g cores, expected %g (0: no limit)", what, found, cores);
}

static void test_memory_v2(const char *directory) {
    const i64 host = (i64)8000000 * 1024;
    tree_begin(directory);
    memory_is(0, "nothing to read");
    put("proc/meminfo", "MemAvailable:   8000000 kB\n");
    memory_is(host, "no control groups");
    put_host("0::/\n", V2_MOUNT);
    memory_is(host, "the root group, which has no files");
    tree_begin(directory);
    put_host("0::/user.slice/run.scope\n", V2_MOUNT);
    put_v2("sys/fs/cgroup/user.slice", -1, 3000, 0, 0), put_v2("sys/fs/cgroup/user.slice/run.scope", -1, 3000, 0, 0);
    memory_is(host, "'max' everywhere");
    put_v2("sys/fs/cgroup/user.slice/run.scope", 1024, 1000, 900, 0);
    memory_is(924 * MIB, "1000 of 1024 MiB in use, 900 of them page cache");
    put_v2("sys/fs/cgroup/user.slice/run.scope", 1024, 1000, 400, 500);
    memory_is(924 * MIB, "page cache on both lists");
    put_v2("sys/fs/cgroup/user.slice", 512, 100, 0, 0);
    memory_is(412 * MIB, "an ancestor gives less");
    put_v2("sys/fs/cgroup/user.slice", 4096, 100, 0, 0);
    memory_is(924 * MIB, "an ancestor gives more");
    put_v2("sys/fs/cgroup/user.slice/run.scope", 1024, 1025, 0, 0);
    memory_is(1, "a full group");
    put_v2("sys/fs/cgroup/user.slice/run.scope", 1 << 20, 0, 0, 0), put_v2("sys/fs/cgroup/user.slice", -1, 0, 0, 0);
    memory_is(host, "a limit above what the host has");
    put("proc/meminfo", "MemTotal: 1 kB\n"), put_v2("sys/fs/cgroup/user.slice/run.scope", 64, 0, 0, 0);
    memory_is(64 * MIB, "a kernel that does not say what is available");
}

static void test_memory_containers(const char *directory) {
    const i64 host = (i64)8000000 * 1024;
    tree_begin(directory); /* a container without a cgroup namespace */
    put_host("0::/docker/abc/sub\n", "30 22 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
    put_v2("sys/fs/cgroup", 256, 0, 0, 0);
    memory_is(256 * MIB, "the mount shows the container's group");
    put_v2("sys/fs/cgroup/sub", 128, 0, 0, 0);
    memory_is(128 * MIB, "a group inside the container");
    put("proc/self/cgroup", "0::/docker/abcdef\n"), put_v2("sys/fs/cgroup/def", 64, 0, 0, 0);
    memory_is(256 * MIB, "a path that only begins with the same letters");
    tree_begin(directory);
    put_host("0::/../..\n", V2_MOUNT);
    /* no groups, whatever they hold */
    put_v2("sys/fs/cgroup", 256, 0, 0, 0), put_v2("sys/fs", 16, 0, 0, 0), put_v2("sys", 16, 0, 0, 0);
    memory_is(256 * MIB, "a group outside the namespace");
    put_host("0::/../../x\n", "30 22 0:26 /../.. /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
    memory_is(256 * MIB, "a mount that shows more than the namespace");
    put_host("0::/gone\n", V2_MOUNT);
    memory_is(256 * MIB, "a group that is not to be seen in the mount");
    put_host("0::/x\n", "");
    memory_is(host, "no hierarchy mounted");
}

static void test_memory_v1(const char *directory) {
    const i64 host = (i64)8000000 * 1024;
    tree_begin(directory);
    put_host("5:cpu,cpuacct:/\n4:memory:/job/1\n1:name=systemd:/\n", V1_MEMORY V1_CPU);
    put_v1("sys/fs/cgroup/memory", NO_LIMIT_V1, 4000, 0), put_v1("sys/fs/cgroup/memory/job", NO_LIMIT_V1, 3000, 0);
    put_v1("sys/fs/cgroup/memory/job/1", NO_LIMIT_V1, 2000, 0);
    memory_is(host, "v1: no limit is a large number");
    put_v1("sys/fs/cgroup/memory/job", 512 * MIB, 500, 300);
    memory_is(312 * MIB, "v1: an ancestor's limit, page cache of all below it");
    put("sys/fs/cgroup/memory/job/memory.use_hierarchy", "0\n");
    memory_is(host, "v1: an ancestor that binds only itself");
    put_v1("sys/fs/cgroup/memory/job/1", 128 * MIB, 28, 0);
    memory_is(100 * MIB, "v1: the own limit");
    put_host("4:memory:/job/1\n0::/user\n", V1_MEMORY UNIFIED);
    put_v2("sys/fs/cgroup/unified/user", 64, 0, 0, 0);
    memory_is(64 * MIB, "hybrid: the smaller of both");
    put_host("4:memory:/docker/x\n0::/\n",
             "40 30 0:31 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup ro,memory\n" UNIFIED);
    put_v1("sys/fs/cgroup/memory", 32 * MIB, 0, 0);
    memory_is(32 * MIB, "v1 in a container");
}

static void test_cores(const char *directory) {
    tree_begin(directory);
    cores_are(0, "no control groups");
    put_host("0::/a/b\n", V2_MOUNT);
    put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    cores_are(0, "'max'");
    put("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n");
    cores_are(1.5, "cpu.max");
    put("sys/fs/cgroup/a/cpu.max", "50000 100000\n");
    cores_are(0.5, "an ancestor's cpu.max");
    tree_begin(directory);
    put_host("5:cpu,cpuacct:/job\n4:cpuset:/other\n", V1_CPU);
    put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n"),
        put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
    cores_are(0, "v1: no quota");
    put("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "250000\n");
    cores_are(2.5, "v1: a quota");
    put_host("5:cpu,cpuacct:/job\n0::/user\n", V1_CPU UNIFIED);
    put("sys/fs/cgroup/unified/user/cpu.max", "100000 100000\n");
    cores_are(1, "hybrid: the smaller of both");
}

static void place_is(int cores, int mask, double limit, int locals, int threads, int planned, double share) {
    DevicePlace p = cpu_place(cores, mask, limit, locals, threads);
    check(p.planned == planned && p.threads == planned && p.share == share,
          "%d cores, %d in the mask, limit %g, %d ranks, --threads %d: %d threads, %g cores to count on; expected %d, "
          "%g", cores, mask, limit, locals, threads,
          p.planned, p.share, planned, share);
}

static void test_places(void) {
    place_is(8, 8, 0, 1, 0, 8, 8);
    place_is(8, 8, 0, 3, 0, 2, 2);
    place_is(8, 8, 0, 16, 0, 1, 0.5);
    place_is(8, 2, 0, 1, 0, 2, 2);
    place_is(64, 64, 0, 1, 0, 64, 64);
    place_is(1, 1, 0, 1, 0, 1, 1);
    place_is(8, 8, 1.5, 1, 0, 2, 1.5);
    place_is(8, 8, 0.5, 1, 0, 1, 0.5);
    place_is(8, 8, 3, 2, 0, 1, 1);
    place_is(8, 8, 4, 2, 0, 2, 2);
    place_is(8, 8, 16, 1, 0, 8, 8);
    place_is(8, 8, 1.5, 1, 4, 4, 1.5);
    place_is(8, 8, 0, 1, 3, 3, 3);
}

/* Whatever is granted, it is what will be used, by libraries that ask OpenMP, too. */
static void test_team(void) {
    int most = omp_get_thread_limit() < 64 ? omp_get_thread_limit() : 64, levels = omp_get_max_active_levels();
    if (levels < 1) most = 1;
    omp_set_dynamic(1);
    int granted = team_granted(64);
    check(granted == most && !omp_get_dynamic(), "a team of 64: %d granted, whatever the load", granted);
    omp_set_max_active_levels(0);
    granted = team_granted(4);
    check(granted == 1 && omp_get_max_threads() == 1, "no parallel regions: a team of %d, and OpenMP would ask for %d",
          granted, omp_get_max_threads());
    DevicePlace p = cpu_place(4, 4, 0, 1, 0);
    device_open(&p);
    check(p.threads == 1 && p.planned == 4 && p.share == 1, "a place has what is granted: %d of %d threads, %g cores",
          p.threads, p.planned, p.share);
    Device dev;
    p.threads = 4;
    device_init(&dev, &p, 0);
    check(dev.threads == 1 && dev.host_threads == 1, "and so has a device: %d threads", dev.threads);
    device_free(&dev);
    omp_set_max_active_levels(levels);
}

/* Four steps of a small model under a peak that is wrong in the way named; what it prints goes to
   stderr, into run_child's hands. */
static void run_with_peak(const char *what) {
    char directory[256], shard[PATH_MAX];
    int32_t tokens[1000];
    const char *args[] = {"test", "--train", shard, "--seq-len", "32", "--batch", "1", "--layers", "1", "--dim", "32",
                          "--heads", "2", "--kv-heads", "2", "--ffn", "64", "--steps", "4", "--threads", "1",
                          "--peak-tflops", "1e-6"};
    Settings s;
    FlagsGiven given;
    ModelOptions o;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    dup2(2, 1);
    snprintf(directory, sizeof directory, "%s", strchr(what, ' ') + 1);
    snprintf(shard, sizeof shard, "%s/a.bin", directory);
    for (int i = 0; i < 1000; i++) tokens[i] = i * 7 % 256;
    write_shard(shard, tokens, 1000);
    int is_given = strncmp(what, "given", 5) == 0;
    flags_parse(&s, &given, COUNT_OF(args) - (is_given ? 0 : 2), (char **)(uintptr_t)args);
    DevicePlace place = device_place(0, 1, 1);
    options_from_flags(&o, scheme_find(s.sp), context_find(s.context, scheme_find(s.sp)), &s, &given, 1, place);
    trainer_start(t, &o, &s, MPI_COMM_SELF); /* no MPI: one rank alone, whoever started this test */
    t->peak = peak_of(&s, &place);
    /* every measurement from now on says a billionth */
    if (strncmp(what, "low", 3) == 0) t->options.place.share *= 1e-9;
    if (!is_given) t->peak.flops *= 1e-9;
    char run[512];
    snprintf(run, sizeof run, "%s/%.3s", directory, what);
    run_open(&t->log, run, run_config_json(&s, &o.config, 1, 1, 1, REAL_NAME));
    train(t);
    trainer_stop(t);
    free(t);
    fflush(stdout);
}

/* A process is a rank of a launcher where the environment says so. */
static void test_launcher(void) {
    static const char *const set[][3] = {{"PATH=/bin", NULL, "0"}, {"OMPI_MCA_pml=ob1", "SLURM_NTASKS=8", "0"},
                                         {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=4", "4"},
                                         {"PMIX_RANK=1", NULL, "0"}, {"PMI_RANK=0", "PMI_SIZE=3", "3"},
                                         {"SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=2", "2"}, {"PMI_FD=5", NULL, "0"}};
    char **own = environ;
    for (int i = 0; i < COUNT_OF(set); i++) {
        char *variables[3] = {(char *)(uintptr_t)set[i][0], (char *)(uintptr_t)set[i][1], NULL};
        environ = variables;
        int found = launcher_found() != NULL, ranks = launcher_ranks();
        environ = own;
        check(found == (i > 1) && ranks == atoi(set[i][2]), "%s %s: %s launcher, %d ranks", set[i][0],
              set[i][1] ? set[i][1] : "", found ? "a" : "no", ranks);
    }
    int local = -1, locals = -1, ranks[1] = {0}, mine[1] = {7};
    Wire alone = MPI_COMM_SELF, part = wire_split(alone, 0, 0);
    wire_local(part, &local, &locals), wire_share(part, ranks, mine, sizeof mine), wire_barrier(part),
        wire_collect(part, ranks, sizeof ranks);
    check(wire_alone() && wire_rank(part) == 0 && wire_size(part) == 1 && local == 0 && locals == 1 && ranks[0] == 7,
          "one rank needs no MPI");
    WireRequest none = wire_request_none();
    wire_wait(&none, "nothing"); /* a plan of several ranks waits so */
    check(wire_test(&none), "and waits for nothing");
    wire_free(&part);
    check(part == wire_none(), "and leaves nothing behind");
}

static int count_of(const char *text, const char *word) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at += strlen(word)) n++;
    return n;
}

static void test_peak(const char *directory) {
    char what[512], text[4096], said[8192];
    snprintf(what, sizeof what, "low %s", directory);
    int status = run_child(run_with_peak, what, said, sizeof said);
    check(status == 0 && count_of(said, "so MFU is not known") == 1 && count_of(said, "note ") == 1 &&
              count_of(said, "mfu ?") == 4,
          "a peak measured too low stops nothing; a note, once, and no MFU: status %d: %.300s", status, said);
    snprintf(what, sizeof what, "%s/low/metrics.jsonl", directory);
    FILE *f = fopen(what, "r");
    text[f ? fread(text, 1, sizeof text - 1, f) : 0] = 0;
    if (f) fclose(f);
    check(count_of(text, "\"mfu_causal\": null, \"mfu_full\": null, ") == 4,
          "metrics.jsonl has null for what is not known: %.300s", text);
    snprintf(what, sizeof what, "bus %s", directory);
    status = run_child(run_with_peak, what, said, sizeof said);
    check(status == 0 && count_of(said, "the peak was measured too low") == 1 && count_of(said, "mfu ?") == 0 &&
              count_of(said, "% | eta") == 4,
          "a peak measured on a busy machine is measured again: status %d: %.300s", status, said);
    snprintf(what, sizeof what, "given %s", directory);
    status = run_child(run_with_peak, what, said, sizeof said);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1 &&
              count_of(said, "either the peak is too low (--peak-tflops) or work was skipped") == 1,
          "a peak given too low stops the run: status %d: %.300s", status, said);
}

int main(void) {
    char directory[256], command[512];
    const char *tmp = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/odysseus_host_XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(directory)) FAIL(THIS_RANK, "cannot make %s", directory);
    test_peak(directory); /* forks: before the first team of threads */
    test_launcher();
    test_memory_v2(directory);
    test_memory_containers(directory);
    test_memory_v1(directory);
    test_cores(directory);
    test_places();
    test_team();
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    if (system(command) != 0) printf("# could not remove %s\n", directory);
    return checks_done();
}

/* test_log.c - the run directory when the disk is full: each write is checked. Lines of metrics.jsonl wait, said
   once, until there is room; at the end of a run what still waits is one line of error that names the file, as
   is every other write that fails.

   /dev/full takes nothing and says ENOSPC. The children end in FAIL, so they are forked; no MPI in here. */
#include "../../core/log.h"
#include "check.h"
#include <signal.h>
#include <sys/resource.h>

static void metrics_begin(RunLog *log, Metrics *m, const char *directory, const char *path) {
    memset(log, 0, sizeof *log);
    memset(m, 0, sizeof *m);
    m->val_loss = NAN;
    snprintf(log->dir, sizeof log->dir, "%s", directory);
    log->metrics = fopen(path, "w");
}

static void metrics_on_full_disk(const char *directory) {
    RunLog log;
    Metrics m;
    metrics_begin(&log, &m, directory, "/dev/full");
    for (m.step = 0; m.step < 3; m.step++) run_metrics(&log, &m), run_save_ms(&log, 1);
}

static void end_on_full_disk(const char *directory) {
    RunLog log;
    Metrics m;
    metrics_begin(&log, &m, directory, "/dev/full");
    run_metrics(&log, &m);
    run_finish(&log);
}

/* The file may hold 700 bytes, two lines and a part; then more again. */
static void room_again(const char *path) {
    RunLog log;
    Metrics m;
    struct rlimit limit = {700, RLIM_INFINITY};
    metrics_begin(&log, &m, "/run", path);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    for (m.step = 0; m.step < 9; m.step++) {
        if (m.step == 6) limit.rlim_cur = RLIM_INFINITY, setrlimit(RLIMIT_FSIZE, &limit);
        run_metrics(&log, &m);
        run_save_ms(&log, (double)m.step);
    }
    run_finish(&log);
}

/* Lines of steps 0 to 8, whole ones, each with its save_ms. */
static int lines_are_whole(const char *path) {
    char line[1024], end[64];
    int n = 0, bad = 0;
    FILE *f = fopen(path, "r");
    for (; f && fgets(line, sizeof line, f); n++) {
        cJSON *json = cJSON_Parse(line);
        const cJSON *step = cJSON_GetObjectItemCaseSensitive(json, "step");
        snprintf(end, sizeof end, ", \"save_ms\": %d}\n", n);
        bad += !cJSON_IsNumber(step) || step->valuedouble != n || !strstr(line, end);
        cJSON_Delete(json);
    }
    if (f) fclose(f);
    return n == 9 && bad == 0;
}

static void close_on_full_disk(const char *directory) {
    RunLog log;
    memset(&log, 0, sizeof log);
    snprintf(log.dir, sizeof log.dir, "%s", directory);
    FILE *f = fopen("/dev/full", "w");
    fprintf(f, "{}\n");
    run_close(&log, f, "config.json");
}

int main(void) {
    char said[1024], path[] = "/tmp/odysseus-log-XXXXXX";
    int status = run_child(metrics_on_full_disk, "/dev", said, sizeof said);
    const char *note =
        "train_gpt: note: cannot write /dev/metrics.jsonl: No space left on device; its lines wait in memory\n";
    check(status == 0 && strcmp(said, note) == 0, "metrics on a full disk: said once, and the run goes on: %d, %.90s",
          status, said);
    status = run_child(end_on_full_disk, "/dev", said, sizeof said);
    const char *error = strchr(said, '\n') ? strchr(said, '\n') + 1 : "";
    check(is_one_error(status, error) && strstr(error, "cannot write /dev/metrics.jsonl: No space left"),
          "still full at the end: %d, %.90s", status, error);
    int fd = mkstemp(path);
    if (fd < 0) FAIL(EVERYONE, "%s: cannot create the test's file", path);
    close(fd);
    status = run_child(room_again, path, said, sizeof said);
    check(status == 0 && lines_are_whole(path), "room again after some steps: every line is there, whole and in order");
    check(strstr(said, "metrics.jsonl: File too large; its lines wait") && !strchr(strchr(said, '\n') + 1, '\n'),
          "which was said once");
    unlink(path);
    status = run_child(close_on_full_disk, "/dev", said, sizeof said);
    check(is_one_error(status, said) && strstr(said, "cannot write /dev/config.json"),
          "closing on a full disk: %d, %.60s", status, said);
    return checks_done();
}

/* test_log.c - the run directory when the disk is full: each write is checked, the run stops with one line that names the file.

   /dev/full takes nothing and says ENOSPC. The children end in FAIL, so they are forked; no MPI in here. */
#include "../../core/log.h"
#include "check.h"

static void metrics_on_full_disk(const char *directory) {
    RunLog log;
    Metrics m;
    memset(&log, 0, sizeof log);
    memset(&m, 0, sizeof m);
    snprintf(log.dir, sizeof log.dir, "%s", directory);
    log.metrics = fopen("/dev/full", "w");
    run_metrics(&log, &m);
}

static void close_on_full_disk(const char *directory) {
    RunLog log;
    memset(&log, 0, sizeof log);
    snprintf(log.dir, sizeof log.dir, "%s", directory);
    FILE *f = fopen("/dev/full", "w");
    fprintf(f, "{}\n");
    run_close(&log, f, "config.json");
}

static void metrics_are_written(const char *directory) {
    RunLog log;
    Metrics m;
    memset(&log, 0, sizeof log);
    memset(&m, 0, sizeof m);
    m.val_loss = NAN;
    snprintf(log.dir, sizeof log.dir, "%s", directory);
    log.metrics = fopen("/dev/null", "w");
    run_metrics(&log, &m);
}

int main(void) {
    char said[1024];
    int status = run_child(metrics_on_full_disk, "/dev", said, sizeof said);
    check(is_one_error(status, said) && strstr(said, "cannot write /dev/metrics.jsonl: No space left"), "metrics on a full disk: %d, %.60s", status,
          said);
    status = run_child(close_on_full_disk, "/dev", said, sizeof said);
    check(is_one_error(status, said) && strstr(said, "cannot write /dev/config.json"), "closing on a full disk: %d, %.60s", status, said);
    status = run_child(metrics_are_written, "/dev", said, sizeof said);
    check(status == 0 && said[0] == 0, "metrics where there is room: %d", status);
    return checks_done();
}

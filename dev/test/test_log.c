/* test_log.c - the run directory when the disk is full: each write is checked, the run stops with one line that names the file.

   /dev/full takes nothing and says ENOSPC. The children end in FAIL, so they are forked; no MPI in here. */
#include "../../core/log.h"
#include "check.h"
#include <sys/wait.h>

/* What a child that runs `act` says on stderr, and its exit code. */
static int child(void (*act)(void), char *said, size_t size) {
    int pipes[2], status = 0;
    if (pipe(pipes) != 0) FAIL(THIS_RANK, "pipe: %s", strerror(errno));
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(pipes[1], 2);
        act();
        _exit(0);
    }
    close(pipes[1]);
    size_t n = 0;
    ssize_t got;
    while (n + 1 < size && (got = read(pipes[0], said + n, size - 1 - n)) > 0) n += (size_t)got;
    said[n] = 0;
    close(pipes[0]);
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void metrics_on_full_disk(void) {
    RunLog log;
    Metrics m;
    memset(&log, 0, sizeof log);
    memset(&m, 0, sizeof m);
    snprintf(log.dir, sizeof log.dir, "/dev");
    log.metrics = fopen("/dev/full", "w");
    run_metrics(&log, &m);
}

static void close_on_full_disk(void) {
    RunLog log;
    memset(&log, 0, sizeof log);
    snprintf(log.dir, sizeof log.dir, "/dev");
    FILE *f = fopen("/dev/full", "w");
    fprintf(f, "{}\n");
    run_close(&log, f, "config.json");
}

static void metrics_are_written(void) {
    RunLog log;
    Metrics m;
    memset(&log, 0, sizeof log);
    memset(&m, 0, sizeof m);
    m.val_loss = NAN;
    log.metrics = fopen("/dev/null", "w");
    run_metrics(&log, &m);
}

int main(void) {
    char said[1024];
    int code = child(metrics_on_full_disk, said, sizeof said);
    check(code == 1 && strstr(said, "train_gpt: error: cannot write /dev/metrics.jsonl: No space left"), "metrics on a full disk: exit %d, %.60s", code, said);
    code = child(close_on_full_disk, said, sizeof said);
    check(code == 1 && strstr(said, "train_gpt: error: cannot write /dev/config.json"), "closing on a full disk: exit %d, %.60s", code, said);
    code = child(metrics_are_written, said, sizeof said);
    check(code == 0 && said[0] == 0, "metrics where there is room: exit %d", code);
    return checks_done();
}

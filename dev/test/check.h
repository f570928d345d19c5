/* check.h - the smallest TAP: each check prints `ok` or `not ok`, a failed one says the figures;
   scripts/test.sh counts the lines. With CHECKS=first in the environment the first failure ends the program: all that a
   planted fault needs. */
#ifndef ODYSSEUS_CHECK_H
#define ODYSSEUS_CHECK_H

#include "../../core/util.h"
#include <sys/wait.h>

typedef struct {
    int passed, failed;
    int silent; /* ranks other than 0: they take part, rank 0 speaks */
} Checks;

static inline Checks *checks(void) {
    static Checks state = {0, 0, 0};
    return &state;
}

static inline int check_at(const char *file, int line, int condition, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* One check; the text says what was expected and what was seen. Returns the condition. */
static inline int check_at(const char *file, int line, int condition, const char *format, ...) {
    Checks *c = checks();
    if (condition) c->passed++;
    else c->failed++;
    if (c->silent) return condition;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (condition) printf("ok %d - %s\n", c->passed + c->failed, text);
    else printf("not ok %d - %s (%s:%d)\n", c->passed + c->failed, text, file, line);
    fflush(stdout);
    const char *until = condition ? NULL : getenv("CHECKS");
    if (until && strcmp(until, "first") == 0) _exit(1); /* the launcher ends the other ranks */
    return condition;
}

#define check(condition, ...) check_at(__FILE__, __LINE__, (condition), __VA_ARGS__)

/* The plan line at the end; the exit code of the test program. */
static inline int checks_done(void) {
    Checks *c = checks();
    if (!c->silent) printf("1..%d\n", c->passed + c->failed);
    return c->failed ? 1 : 0;
}

/* What FAIL ends must be a child: run `attempt` in one, its stderr in out; returns its
   wait status. No MPI before it. */
static inline int run_child(void (*attempt)(const char *path), const char *path, char *out, size_t size) {
    int ends[2];
    fflush(NULL);
    if (pipe(ends) != 0) FAIL(THIS_RANK, "pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        alarm(300);
        attempt(path);
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    ssize_t got;
    while (n + 1 < size && (got = read(ends[0], out + n, size - 1 - n)) > 0) n += (size_t)got;
    out[n] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

/* It stopped as an error should: exit code 1 and one line. */
static inline int is_one_error(int status, const char *text) {
    const char *newline = strchr(text, '\n');
    return WIFEXITED(status) && WEXITSTATUS(status) == 1 && strncmp(text, "train_gpt: error: ", 18) == 0 && newline &&
           newline[1] == 0;
}

/* max |a - b| / max |b|: the design's distance of two tensors; 0 for two zero tensors,
   infinity if either holds a NaN. */
static inline double relative_distance(const double *a, const double *b, i64 n) {
    double diff = 0, size = 0;
    for (i64 i = 0; i < n; i++) {
        double d = fabs(a[i] - b[i]), s = fabs(b[i]);
        if (!(d < INFINITY)) return INFINITY;
        if (d > diff) diff = d;
        if (s > size) size = s;
    }
    return diff == 0 ? 0 : size == 0 ? INFINITY : diff / size;
}

#endif

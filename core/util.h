/* util.h - what every file needs: sizes, rounding, and the one way to stop with an error.

   An error is one line on stderr, `train_gpt: error: what, where, what would work`, and the end of every rank.
   EVERYONE   all ranks have found the same thing (a flag, a file all of them read): rank 0 speaks for them
   THIS_RANK  only this rank knows: it says its rank, host and source line itself
   The program installs an abort function (MPI_Abort) once it has started MPI; before that, exit() is enough. */
#ifndef ODYSSEUS_UTIL_H
#define ODYSSEUS_UTIL_H

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef long long i64;

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

static inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
static inline i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }
static inline i64 i64_min(i64 a, i64 b) { return a < b ? a : b; }
static inline i64 i64_max(i64 a, i64 b) { return a > b ? a : b; }

/* Seconds from a clock that only goes forward. */
static inline double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Does the last line on the terminal have no end yet, because the next step will write over it (core/live.h)? */
static inline int *line_is_open(void) {
    static int open = 0;
    return &open;
}

/* Let it stand, or take it away: then nothing is on that line any more. */
static inline void line_close(void) {
    if (*line_is_open()) fputc('\n', stdout), *line_is_open() = 0;
    fflush(stdout);
}
static inline void line_clear(void) {
    if (*line_is_open()) fputs("\r\033[K", stdout), *line_is_open() = 0;
}

static inline void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* What a run says while it trains: printf to stdout, at once and in place of a line that stands open. */
static inline void say(const char *format, ...) {
    va_list args;
    line_clear();
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    fflush(stdout);
}

/* A line on stderr of what the user should know, and which stops nothing. */
static inline void note(const char *format, ...) {
    char text[2048];
    va_list args;
    line_close();
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "train_gpt: note: %s\n", text);
}

typedef enum { EVERYONE, THIS_RANK } FailScope;

/* Who is failing; filled in once MPI runs. `abort_all` must bring every rank down and not return. */
typedef struct {
    int rank;
    void (*abort_all)(int code);
} FailState;

static inline FailState *fail_state(void) {
    static FailState state = {0, NULL};
    return &state;
}

static inline void fail_at(FailScope scope, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5), noreturn));

static inline void fail_at(FailScope scope, const char *file, int line, const char *format, ...) {
    FailState *state = fail_state();
    line_close(); /* and what was said before stays said, whoever ends this rank meanwhile */
    /* Several ranks often find the same thing at once; the lowest speaks first and takes the others
       down before they repeat it. */
    /* whatever signals the launcher sends meanwhile */
    for (unsigned left = scope == EVERYONE && state->rank != 0 ? 3 : 0; left;) left = sleep(left);
    if (scope == THIS_RANK) usleep(200000u * (unsigned)(state->rank < 10 ? state->rank : 10));
    char text[2048], host[128] = "?";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    gethostname(host, sizeof host - 1);
    if (scope == EVERYONE && state->rank == 0) fprintf(stderr, "train_gpt: error: %s\n", text);
    else fprintf(stderr, "train_gpt: error: %s [rank %d on %s, %s:%d]\n", text, state->rank, host, file, line);
    fflush(stderr);
    if (state->abort_all) state->abort_all(1);
    exit(1);
}

#define FAIL(scope, ...) fail_at(scope, __FILE__, __LINE__, __VA_ARGS__)

/* At the end of a program: all that was printed has gone where it should, or this is an error. A disk
   may have been full on the way. */
static inline void output_finish(void) {
    int lost = ferror(stdout);
    errno = 0;
    if (fflush(stdout) != 0 || lost)
        FAIL(THIS_RANK, "cannot write to standard output%s%s", errno ? ": " : "", errno ? strerror(errno) : "");
}

/* A number whose bits depend on all of x's: splitmix64's finaliser. Steele, Lea, Flood 2014. */
static inline uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* malloc that cannot return NULL; the caller frees. For host-side tables only: tensors live in the arena. */
static inline void *host_alloc(size_t bytes) {
    void *p = calloc(1, bytes ? bytes : 1);
    if (!p) FAIL(THIS_RANK, "out of host memory: %zu bytes", bytes);
    return p;
}

#endif

/* live.h - the line of a step: on a terminal the next one is written over it, elsewhere each has a line.

   file or pipe   step 120/1000 | loss 4.1832 | norm 0.812 | lr 3.00e-04 | 96 ms | 42512 tok/s | mfu 61.0% | eta 1:24
   terminal       step 120/1000 | loss 4.1832 | 42512 tok/s | mfu 61.0% | eta 1:24, and the losses so far as U+2581 to
                  U+2588, low is good, where the line has room for them and the locale knows them

   Steps with a validation, and the last one, have a whole line on a terminal, too, which stays. Under a launcher a
   rank's own stdout is the launcher's business: what counts is where the launcher itself writes. What else is said
   takes the line's place (say in util.h); errors and notes leave it above them. Rank 0 only.                         */
#ifndef ODYSSEUS_LIVE_H
#define ODYSSEUS_LIVE_H

#include "launcher.h"
#include "log.h"
#include <fcntl.h>
#include <strings.h>
#include <sys/ioctl.h>

#define LIVE_SHARES 24

typedef struct {
    int columns; /* of the terminal; 0: there is none */
    int blocks;  /* it shows U+2581 and the like */
    /* Losses in order, `each` of them in a share, the last of which may have fewer. */
    double sum[LIVE_SHARES];
    i64 count[LIVE_SHARES], each;
    int shares;
} Live;

static inline int live_locale_is_utf8(void) {
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < COUNT_OF(names); i++) {
        const char *value = getenv(names[i]), *charset = value ? strchr(value, '.') : NULL;
        if (value && *value)
            return charset && (strcasecmp(charset, ".utf-8") == 0 || strcasecmp(charset, ".utf8") == 0);
    }
    return 0;
}

/* Columns of the terminal that this process's lines end up on, 0 for a file or a pipe. */
static inline int live_columns(void) {
    char path[64];
    struct winsize size;
    int fd = STDOUT_FILENO, columns = 0;
    const char *terminal = getenv("TERM");
    if (!terminal || !*terminal || strcmp(terminal, "dumb") == 0 || !isatty(fd)) return 0;
    if (launcher_found()) {
        snprintf(path, sizeof path, "/proc/%ld/fd/1", (long)getppid());
        fd = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC);
        if (fd < 0) return 0;
    }
    if (isatty(fd)) columns = ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
    if (fd != STDOUT_FILENO) close(fd);
    return columns;
}

static inline void live_init(Live *v) {
    memset(v, 0, sizeof *v);
    v->columns = live_columns(), v->blocks = live_locale_is_utf8(), v->each = 1;
}

/* Keep one more loss; full shares are joined two by two, so that all of them stay equally long. */
static inline void live_loss(Live *v, double loss) {
    if (!isfinite(loss)) return;
    if (v->shares && v->count[v->shares - 1] < v->each) {
        v->sum[v->shares - 1] += loss, v->count[v->shares - 1]++;
        return;
    }
    if (v->shares == LIVE_SHARES) {
        for (int i = 0; i < LIVE_SHARES / 2; i++) {
            v->sum[i] = v->sum[2 * i] + v->sum[2 * i + 1];
            v->count[i] = v->count[2 * i] + v->count[2 * i + 1];
        }
        v->shares /= 2, v->each *= 2;
    }
    v->sum[v->shares] = loss, v->count[v->shares++] = 1;
}

/* The losses as UTF-8, three bytes a share, into out (3 LIVE_SHARES + 1). */
static inline void live_sparkline(const Live *v, char *out) {
    double low = INFINITY, high = -INFINITY;
    for (int i = 0; i < v->shares; i++) {
        double mean = v->sum[i] / (double)v->count[i];
        low = fmin(low, mean), high = fmax(high, mean);
    }
    for (int i = 0; i < v->shares; i++) {
        double mean = v->sum[i] / (double)v->count[i];
        int height = high > low ? (int)lround((mean - low) / (high - low) * 7) : 0;
        *out++ = (char)0xe2, *out++ = (char)0x96, *out++ = (char)(0x81 + height);
    }
    *out = 0;
}

/* The line of a step of `steps`. `eta`: seconds to go; `last`: the run ends with it. */
static inline void print_step(Live *v, const Metrics *m, i64 steps, double eta, int last) {
    char val[48] = "", loss[48] = "none, no target counts", mfu[32] = "?", line[256], spark[3 * LIVE_SHARES + 1] = "";
    if (m->loss == m->loss) snprintf(loss, sizeof loss, "%.4f", m->loss);
    if (isfinite(m->mfu_causal)) snprintf(mfu, sizeof mfu, "%.1f%%", 100 * m->mfu_causal);
    if (m->val_loss == m->val_loss) snprintf(val, sizeof val, " | val %.4f", m->val_loss);
    i64 seconds = (i64)eta, done = m->step + 1, minutes = seconds / 60;
    live_loss(v, m->loss);
    if (!v->columns || last || *val) {
        say("step %lld/%lld | loss %s%s | norm %.3f | lr %.2e | %.0f ms | %.0f tok/s | mfu %s | eta %lld:%02lld\n",
            done, steps, loss, val, m->grad_norm, m->lr, m->step_ms, m->tokens_per_s, mfu, minutes, seconds % 60);
        return;
    }
    int room = v->columns - 1; /* in the last column some terminals go on to the next line */
    int n = snprintf(line, sizeof line, "step %lld/%lld | loss %s | %.0f tok/s | mfu %s | eta %lld:%02lld", done, steps,
                     loss, m->tokens_per_s, mfu, minutes, seconds % 60);
    if (v->blocks && v->shares > 1 && room - n >= 2 + v->shares) live_sparkline(v, spark);
    line_clear();
    printf("%.*s%s%s", room, line, *spark ? "  " : "", spark);
    *line_is_open() = 1;
    fflush(stdout);
}

#endif

/* timeline.h - a trace (kernels/trace.h) as a file that ui.perfetto.dev and chrome://tracing open:
   JSON in the trace-event format.

   a process a rank       "rank 0", "rank 1", ...
   a thread a track       "compute", "comm", and "comm 2", ... where transfers fly side by
                          side: spans of a thread must nest
   an event a span        "X": name, category (class of the operation; comm, wait, block, step),
                          ts and dur in microseconds, args
   a counter              "C": bytes of the arena in use when an operation begins

   Every rank's spans go into the one file, and rank 0 writes it: rounds of a few hundred spans of every rank, until all
   are there. Ranks of a host share a clock; hosts are lined up by their wall clocks. The file holds at most
   TIMELINE_SPANS, of a rank an equal share and no more than TIMELINE_SPANS_OF_RANK.                                  */
#ifndef ODYSSEUS_TIMELINE_H
#define ODYSSEUS_TIMELINE_H

#include "comm.h"
#include "safetensors.h"

#define TIMELINE_SPANS (1 << 20)
#define TIMELINE_SPANS_OF_RANK (1 << 17)
#define TIMELINE_ROUND 256   /* spans of a rank that go to rank 0 at a time */
#define TIMELINE_EVENT 640   /* the longest event, in characters */

/* ---- recording --------------------------------------------------------------------------------------------------- */

/* `in_use`: where the arena keeps its bytes in use. */
static inline void trace_init(Trace *t, i64 ranks, const i64 *in_use) {
    memset(t, 0, sizeof *t);
    t->in_use = in_use;
    t->room = i64_min(TIMELINE_SPANS_OF_RANK, i64_max(TIMELINE_SPANS / ranks, 1));
    t->span = (Span *)host_alloc(sizeof(Span) * (size_t)t->room);
    t->layer = -1;
}

static inline void trace_free(Trace *t) { free(t->span); }

/* From here on `dev` is traced. */
static inline void trace_step_begin(Trace *t, Device *dev, i64 step) {
    device_finish(dev);
    marks_begin(dev);
    dev->trace = t;
    for (int i = 0; i < OP_CLASSES; i++) t->calls[t->steps][i] = -dev->calls[i];
    t->block = BLOCK_OTHER, t->layer = -1, t->phase = PHASE_FORWARD;
    t->step = span_open(t, SPAN_STEP, device_mark(dev));
    t->step->number = t->steps;
    snprintf(t->step->name, sizeof t->step->name, "step %lld", step);
}

/* The step is over and the device idle: its marks become seconds. */
static inline void trace_step_end(Trace *t, Device *dev) {
    Mark now = device_mark(dev);
    if (t->part) span_close(t->part, now);
    span_close(t->step, now);
    t->step = t->part = NULL;
    dev->trace = NULL;
    device_finish(dev);
    for (int i = 0; i < OP_CLASSES; i++) t->calls[t->steps][i] += dev->calls[i];
    t->steps++;
    for (; t->timed < t->count; t->timed++) {
        Span *s = &t->span[t->timed];
        if (!s->closed) continue;
        s->begin = mark_seconds(dev, s->from), s->end = mark_seconds(dev, s->to);
        if (s->kind == SPAN_TRANSFER) trace_lane(t, s);
    }
}

/* ---- the file ---------------------------------------------------------------------------------------------------- */

/* What rank 0 has to know of a rank besides its spans. */
typedef struct {
    i64 count, left_out;
    int lanes, steps;
    i64 calls[TRACE_STEPS][OP_CLASSES];
    double origin; /* its first span's begin */
    double wall;   /* wall_offset */
} TimelineRank;

/* The wall clock, less seconds_now: the most of several looks, for one that was interrupted
   between the two clocks sees less. */
static inline double wall_offset(void) {
    double offset = 0;
    for (int i = 0; i < 10; i++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        offset = fmax(offset, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - seconds_now());
    }
    return offset;
}

static inline TimelineRank timeline_rank(const Trace *t) {
    TimelineRank r;
    memset(&r, 0, sizeof r);
    r.count = t->count, r.left_out = t->left_out, r.lanes = t->lanes, r.steps = t->steps;
    memcpy(r.calls, t->calls, sizeof r.calls);
    r.origin = t->span[0].begin;
    r.wall = wall_offset();
    return r;
}

enum { TRACK_COMPUTE = 1, TRACK_COMM };

/* Perfetto takes process 0 for the kernel's idle one. */
static inline int timeline_process(int rank) { return rank + 1; }

/* Seconds by which a rank's clock is behind rank 0's. */
static inline double timeline_shift(const TimelineRank *ranks, int rank) { return ranks[rank].wall - ranks[0].wall; }

static inline void timeline_text(NewFile *f, const char *text) { new_file_append(f, text, (i64)strlen(text)); }

/* A process (thread 0) or a track gets its name and its place in the list. */
static inline void timeline_name(NewFile *f, int rank, int thread, const char *name) {
    char text[TIMELINE_EVENT];
    const char *kind = thread ? "thread" : "process";
    int p = timeline_process(rank);
    snprintf(text, sizeof text,
             ",\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"%s_name\",\"args\":{\"name\":\"%s\"}}"
             ",\n{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"%s_sort_index\",\"args\":{\"sort_index\":%d}}",
             p, thread, kind, name, p, thread, kind, thread ? thread : rank);
    timeline_text(f, text);
}

static inline void timeline_names(NewFile *f, int rank, int lanes) {
    char name[32];
    snprintf(name, sizeof name, "rank %d", rank);
    timeline_name(f, rank, 0, name);
    timeline_name(f, rank, TRACK_COMPUTE, "compute");
    for (int lane = 0; lane < lanes; lane++) {
        snprintf(name, sizeof name, lane ? "comm %d" : "comm", lane + 1);
        timeline_name(f, rank, TRACK_COMM + lane, name);
    }
}

/* What a click on the span shows. */
static inline int timeline_args(char *out, size_t size, const TimelineRank *r, const Span *s) {
    int n = 0;
    if (s->kind == SPAN_STEP) {
        for (int i = 0; i < OP_CLASSES; i++)
            n += snprintf(out + n, size - (size_t)n, "%s\"%s operations\":%lld", i ? "," : "", OP_CLASS_NAMES[i],
                          r->calls[s->number][i]);
        return n;
    }
    if (s->layer >= 0) n += snprintf(out, size, "\"layer\":%d,", s->layer);
    n += snprintf(out + n, size - (size_t)n, "\"block\":\"%s\",\"phase\":\"%s\"", BLOCK_NAMES[s->block],
                  PHASE_NAMES[s->phase]);
    if (s->kind == SPAN_OP) n += snprintf(out + n, size - (size_t)n, ",\"flop\":%.0f", s->flop);
    if (s->kind == SPAN_TRANSFER || s->kind == SPAN_WAIT)
        n += snprintf(out + n, size - (size_t)n, ",\"what\":\"%s\",\"ranks\":%d", WHAT_NAMES[s->what], s->ranks);
    if (s->kind != SPAN_PART) n += snprintf(out + n, size - (size_t)n, ",\"bytes\":%.0f", s->bytes);
    return n;
}

/* One span as an event, its time counted from `origin` on its rank's clock; before an operation's, the memory in use.
   Both ends are rounded to nanoseconds, so what nests still nests. */
static inline int timeline_event(char *out, size_t size, int rank, const TimelineRank *r, const Span *s,
                                 double origin) {
    const char *const categories[] = {"step", "block", NULL, "wait", "comm"};
    double begin = round(1e9 * (s->begin - origin)), ns = round(1e9 * (s->end - origin)) - begin;
    int n = 0;
    if (s->kind == SPAN_OP)
        n = snprintf(out, size,
                     ",\n{\"ph\":\"C\",\"pid\":%d,\"tid\":0,\"ts\":%.3f,\"name\":\"memory\",\"args\":{\"bytes\":%lld}}",
                     timeline_process(rank), 1e-3 * begin, s->memory);
    n += snprintf(
        out + n, size - (size_t)n,
        ",\n{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"%s\",\"cat\":\"%s\",\"args\":{",
        timeline_process(rank), s->kind == SPAN_TRANSFER ? TRACK_COMM + s->lane : TRACK_COMPUTE, 1e-3 * begin,
        1e-3 * ns, s->name, s->kind == SPAN_OP ? OP_CLASS_NAMES[s->number] : categories[s->kind]);
    n += timeline_args(out + n, size - (size_t)n, r, s);
    return n + snprintf(out + n, size - (size_t)n, "}}");
}

/* The next spans of every rank, in `all` (ranks, TIMELINE_ROUND), from the first-th on; what was
   never closed has no end to show. */
static inline void timeline_round(NewFile *f, const TimelineRank *ranks, int n, const Span *all, i64 first,
                                  double origin, char *text) {
    for (int rank = 0; rank < n; rank++) {
        double shift = timeline_shift(ranks, rank);
        i64 used = 0;
        for (i64 i = 0; i < i64_min(ranks[rank].count - first, TIMELINE_ROUND); i++) {
            const Span *s = &all[rank * TIMELINE_ROUND + i];
            if (s->closed) used += timeline_event(text + used, TIMELINE_EVENT, rank, &ranks[rank], s, origin - shift);
        }
        new_file_append(f, text, used);
    }
}

/* The spans of all ranks of `world` as `path`. Collective; rank 0 writes, and says so. */
static inline void timeline_write(const Trace *t, Wire world, const char *path) {
    int n = wire_size(world), writes = wire_rank(world) == 0;
    TimelineRank mine = timeline_rank(t), *ranks = (TimelineRank *)host_alloc(sizeof mine * (size_t)n);
    Span *own = (Span *)host_alloc(sizeof(Span) * TIMELINE_ROUND),
         *all = (Span *)host_alloc(sizeof(Span) * TIMELINE_ROUND * (size_t)n);
    char *text = (char *)host_alloc(TIMELINE_EVENT * TIMELINE_ROUND);
    NewFile f;
    wire_share(world, ranks, &mine, sizeof mine);
    i64 most = 0, spans = 0, left_out = 0;
    double origin = ranks[0].origin;
    for (int r = 0; r < n; r++) {
        most = i64_max(most, ranks[r].count), spans += ranks[r].count, left_out += ranks[r].left_out;
        origin = fmin(origin, ranks[r].origin + timeline_shift(ranks, r));
    }
    if (writes) {
        new_file_open(&f, path);
        timeline_text(&f, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{\"ph\":\"M\",\"pid\":1,\"tid\":0,\"name\":"
                          "\"process_labels\",\"args\":{\"labels\":\"");
        timeline_text(&f, REAL_NAME);
        timeline_text(&f, "\"}}");
        for (int r = 0; r < n; r++) timeline_names(&f, r, ranks[r].lanes);
    }
    for (i64 first = 0; first < most; first += TIMELINE_ROUND) {
        i64 count = i64_max(i64_min(t->count - first, TIMELINE_ROUND), 0);
        if (count) memcpy(own, t->span + first, sizeof(Span) * (size_t)count);
        wire_share(world, all, own, sizeof(Span) * TIMELINE_ROUND);
        if (writes) timeline_round(&f, ranks, n, all, first, origin, text);
    }
    if (writes) {
        timeline_text(&f, "\n]}\n");
        new_file_close(&f);
        say("trace    %s: %d steps of %d ranks, %lld spans", path, t->steps, n, spans);
        if (left_out) say("; %lld more found no room", left_out);
        say("\n");
    }
    free(text);
    free(all);
    free(own);
    free(ranks);
}

#endif

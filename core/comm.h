/* comm.h - collectives: counted at the call, started and waited for, summed in rank order.

   start  counts bytes in the ledger, begins the transfer           comm_x_start(...) -> Request *
   poll   kernels call it between tiles so that bytes move on       device_poll -> comm_poll
   wait   blocks; a reduction then sums its parts                   comm_wait(request)

   A reduce-scatter is an all-to-all of the parts followed by a local sum in rank order, an all-reduce is that and an
   all-gather: the same bits on every run and on every rank, which MPI's own reductions do not promise. The ledger calls
   them by their meaning. Bytes are what this rank sends, n ranks, p bytes a part:
     all_gather, reduce_scatter, all_to_all  (n-1) p      all_reduce  2 (n-1) p      send_recv  p
   A communicator of one rank moves nothing and counts nothing. With dev->plan, calls are counted and nothing is sent.

   The plan's calls are also written down, in order. A training step then follows that list call by call, so
   that a rank that takes another branch stops with a name instead of hanging its neighbours; selfcheck.h
   compares the lists of all ranks.                                                                                   */
#ifndef ODYSSEUS_COMM_H
#define ODYSSEUS_COMM_H

#include "../kernels/compute.h"
#include "ledger.h"
#include "wire.h"

#define COMM_REQUESTS 32 /* in flight, at most */

/* How the bytes of a device get on the wire: Transfer, Links, transfer_*, links_*, link_open. */
#ifdef ODYSSEUS_CUDA
#include "transfer_cuda.h"
#elif defined ODYSSEUS_SIM
#include "transfer_sim.h"
#else
#include "transfer_direct.h"
#endif

/* One collective as the plan has it. `hash` covers it and all before it. */
typedef struct {
    CommOp op;
    Tag tag;
    int ranks;
    i64 bytes;
    uint64_t hash;
} PlannedCall;

/* A transfer under way. The local sum that completes a reduce-scatter waits here until the parts have arrived, and so
   does the all-gather that then makes an all-reduce of it. */
typedef struct {
    int active;
    Transfer transfer;
    PlannedCall call;  /* what it is, for whoever waits too long */
    int layer;         /* -1: of none */
    Span *span;        /* of the trace; NULL: none is kept */
    void *dst;
    const void *parts;
    i64 count;
    int n_parts, add;
    Dtype type, sum_type; /* of the parts, of dst */
    i64 serial;
    const Comm *group;    /* whose ranks then gather each other's dst into `all`; NULL: nobody */
    void *all;
} Request;

typedef enum { SCHEDULE_IGNORE, SCHEDULE_RECORD, SCHEDULE_FOLLOW } ScheduleMode;

/* The collectives of one training step. Owner: its fabric. */
typedef struct {
    ScheduleMode mode;
    PlannedCall *call;
    i64 calls, room, next; /* next: the call that a step which follows comes to */
} Schedule;

#define CONTROL_VALUES 8

/* One per rank: everything its communicators share. */
typedef struct {
    Device *dev;
    Ledger *ledger;
    int overlap;       /* 0: every start waits at once */
    double exposed_s;  /* time spent waiting since the caller last cleared it */
    Schedule schedule;
    Links links;
    double watched;    /* when fabric_watch last looked */
    int polls, host_waits; /* host_waits: the host waits for its own numbers */
    i64 requests, oldest; /* handed out so far; the serial number of the one that the device has longest not ended */
    int last;          /* request handed out last: where transfers linger they go round, so that
                          old ones can still be asked */
    Request pool[COMM_REQUESTS];
    double *control;   /* host buffer of comm_sum_control, 2 * CONTROL_VALUES * ranks */
} Fabric;

/* Let outstanding transfers progress; cheap when there are none. Matches Device.poll. */
static inline void comm_poll(void *fabric);

/* What this rank is at. */
static inline void fabric_work_text(char *out, size_t size, const void *fabric) {
    const Device *dev = ((const Fabric *)fabric)->dev;
    snprintf(out, size, dev->layer < 0 ? "it works" : "it works in layer %d", dev->layer);
}

/* `ranks`: the largest communicator this fabric will see; `comm`: the user's --comm. Owner: caller; fabric_free. */
static inline void fabric_init(Fabric *f, Device *dev, Ledger *ledger, int ranks, int overlap, const char *comm) {
    memset(f, 0, sizeof *f);
    f->dev = dev, f->ledger = ledger, f->overlap = overlap;
    f->control = (double *)host_alloc(sizeof(double) * 2 * CONTROL_VALUES * (size_t)ranks);
    links_open(&f->links, dev, comm);
    dev->poll = comm_poll, dev->poll_arg = f;
    watch()->work_text = fabric_work_text, watch()->work = f;
}

static inline void fabric_free(Fabric *f) {
    watch()->work = NULL;
    for (int i = 0; i < COMM_REQUESTS; i++) transfer_free(&f->pool[i].transfer);
    links_close(&f->links);
    free(f->control);
    free(f->schedule.call);
    f->control = NULL, f->schedule.call = NULL;
}

/* Seconds of waiting since fabric_exposed_reset: the host's, or the compute stream's; the device
   must be done with the step. */
static inline double fabric_exposed(Fabric *f) { return f->exposed_s += links_exposed(&f->links); }

static inline void fabric_exposed_reset(Fabric *f) {
    links_exposed(&f->links);
    f->exposed_s = 0;
}

/* Begin a step (or a walk that is none of a step's: SCHEDULE_IGNORE). Recording starts a new list. */
static inline void schedule_begin(Fabric *f, ScheduleMode mode) {
    f->schedule.mode = mode, f->schedule.next = 0;
    if (mode == SCHEDULE_RECORD) f->schedule.calls = 0;
}

/* The most bytes that one rank has for another, or for all, in a call of the schedule over `ranks` ranks. */
static inline i64 schedule_largest(const Schedule *s, int ranks) {
    i64 largest = 0;
    for (i64 i = 0; i < s->calls; i++)
        if (s->call[i].ranks == ranks)
            largest =
                i64_max(largest, s->call[i].op == COMM_SEND_RECV ? s->call[i].bytes : s->call[i].bytes / (ranks - 1));
    return largest;
}

static inline void schedule_text(char *out, size_t size, const PlannedCall *c) {
    snprintf(out, size, "%s of %lld bytes over %d ranks (%s, %s, %s)", COMM_OP_NAMES[c->op], c->bytes, c->ranks,
             BLOCK_NAMES[c->tag.block], PHASE_NAMES[c->tag.phase], WHAT_NAMES[c->tag.what]);
}

static inline void call_text(char *out, size_t size, const void *call) {
    schedule_text(out, size, (const PlannedCall *)call);
}

static inline void request_text(char *out, size_t size, const void *request) {
    const Request *r = (const Request *)request;
    char call[160];
    schedule_text(call, sizeof call, &r->call);
    if (r->layer < 0) snprintf(out, size, "%s", call);
    else snprintf(out, size, "%.*s; layer %d)", (int)strlen(call) - 1, call, r->layer);
}

/* Transfers that the device has not ended, though the host goes on: the one that it is at is what this rank waits for,
   from when it is. The host may have asked for it minutes before, ahead of computing that must come first. */
static inline void fabric_watch_device(Fabric *f) {
    Request *oldest = NULL;
    links_check(&f->links);
    for (int i = 0; i < COMM_REQUESTS; i++) {
        Request *r = &f->pool[i];
        if (transfer_is_under_way(&r->transfer) && (!oldest || r->serial < oldest->serial)) oldest = r;
    }
    if (!oldest && f->oldest) watch_over();
    else if (oldest && oldest->serial != f->oldest) watch_wait(request_text, oldest);
    f->oldest = oldest ? oldest->serial : 0;
}

/* Look for what has failed, and for ranks that stand still. */
static inline void fabric_watch(Fabric *f) {
    if (++f->polls % 16 != 0) return;
    double now = seconds_now();
    if (now - f->watched < 0.1) return;
    f->watched = now;
    if (links_linger(&f->links) && !f->host_waits) fabric_watch_device(f);
    watch_look();
}

static inline void comm_poll(void *fabric) {
    Fabric *f = (Fabric *)fabric;
    for (int i = 0; i < COMM_REQUESTS; i++)
        if (f->pool[i].active) transfer_poll(f->dev, &f->pool[i].transfer);
    fabric_watch(f);
}

/* Two 64-bit values into one, for hashes of what came before and what comes now. */
static inline uint64_t hash_pair(uint64_t before, uint64_t now) {
    uint64_t h = (before ^ now) * 0x9e3779b97f4a7c15ull;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}

static inline void schedule_record(Schedule *s, PlannedCall c) {
    if (s->calls == s->room) {
        s->room = s->room ? 2 * s->room : 256;
        s->call = (PlannedCall *)realloc(s->call, sizeof(PlannedCall) * (size_t)s->room);
        if (!s->call) FAIL(THIS_RANK, "out of host memory for a schedule of %lld collectives", s->room);
    }
    uint64_t before = s->calls ? s->call[s->calls - 1].hash : 0;
    uint64_t what =
        (uint64_t)c.op << 24 | (uint64_t)c.tag.block << 16 | (uint64_t)c.tag.phase << 8 | (uint64_t)c.tag.what;
    c.hash = hash_pair(hash_pair(hash_pair(before, what), (uint64_t)c.ranks), (uint64_t)c.bytes);
    s->call[s->calls++] = c;
}

/* The same collective, whatever came before it. */
static inline int planned_equal(const PlannedCall *a, const PlannedCall *b) {
    return a->op == b->op && a->bytes == b->bytes && a->ranks == b->ranks && a->tag.block == b->tag.block &&
           a->tag.phase == b->tag.phase && a->tag.what == b->tag.what;
}

static inline void schedule_follow(Schedule *s, const PlannedCall *c) {
    char planned[160] = "no more", came[160];
    i64 at = s->next++;
    if (at < s->calls) {
        if (planned_equal(&s->call[at], c)) return;
        schedule_text(planned, sizeof planned, &s->call[at]);
    }
    schedule_text(came, sizeof came, c);
    FAIL(THIS_RANK,
         "collective %lld of the step is %s, planned was %s: this rank has taken another branch than the plan", at,
         came, planned);
}

/* Every collective passes here: into the ledger, and against the schedule. */
static inline PlannedCall comm_count(Fabric *f, const Comm *c, CommOp op, Tag t, i64 bytes) {
    ledger_count(f->ledger, op, t, bytes);
    PlannedCall call = {op, t, c->size, bytes, 0};
    if (f->schedule.mode == SCHEDULE_RECORD) schedule_record(&f->schedule, call);
    if (f->schedule.mode == SCHEDULE_FOLLOW) schedule_follow(&f->schedule, &call);
    return call;
}

/* A span of the trace for `c`: its transfer, or somebody's wait for it. */
static inline Span *comm_span(Fabric *f, SpanKind kind, const PlannedCall *c, Mark from) {
    Span *s = span_open(f->dev->trace, kind, from);
    snprintf(s->name, sizeof s->name, "%s%s", kind == SPAN_WAIT ? "wait " : "", COMM_OP_NAMES[c->op]);
    s->block = c->tag.block, s->phase = c->tag.phase, s->what = c->tag.what;
    s->ranks = c->ranks, s->bytes = (double)c->bytes;
    return s;
}

static inline void request_arrive(Fabric *f, Request *r) {
    double begin = host_seconds(f->dev);
    Span *wait = r->span ? comm_span(f, SPAN_WAIT, &r->call, device_mark(f->dev)) : NULL;
    int watched = !f->dev->plan && !links_linger(&f->links);
    if (watched) watch_wait(request_text, r);
    transfer_wait(f->dev, &f->links, &r->transfer);
    if (watched) watch_over();
    if (wait) {
        wait->layer = r->span->layer;
        span_close(wait, device_mark(f->dev));
        span_close(r->span, r->transfer.ended);
    }
    f->exposed_s += host_seconds(f->dev) - begin;
}

/* Wait for `r` (NULL: nothing to do), then do the local half of a reduction, and the second half of an all-reduce. The
   request is free again afterwards. */
static inline void comm_wait(Fabric *f, Request *r) {
    if (!r) return;
    request_arrive(f, r);
    if (r->parts && r->sum_type == r->type)
        sum_parts(f->dev, r->dst, r->parts, r->n_parts, r->count, r->count, r->type, r->add);
    else if (r->parts) add_parts(f->dev, (accum *)r->dst, (const real *)r->parts, r->n_parts, r->count, r->count);
    if (r->group && !f->dev->plan) {
        range_collective(&f->dev->ranges, r->call.op, r->call.tag.what);
        transfer_all_gather(f->dev, &f->links, r->group, &r->transfer, r->all, r->dst, r->count * dtype_size(r->type));
        range_end(&f->dev->ranges, RANGE_COLLECTIVE);
        request_arrive(f, r);
    }
    r->active = 0;
}

/* A free request; in plan mode one that is never on the wire, so that the walk is the same. */
static inline Request *request_new(Fabric *f, PlannedCall call) {
    int before = links_linger(&f->links) ? f->last : -1;
    for (int i = 1; i <= COMM_REQUESTS; i++) {
        int next = (before + i) % COMM_REQUESTS;
        Request *r = &f->pool[next];
        if (r->active) continue;
        /* the host runs no further ahead: it sees every transfer, and answers who asks */
        double begin = seconds_now();
        while (transfer_pending(&r->transfer)) comm_poll(f);
        f->dev->waited += seconds_now() - begin;
        f->last = next;
        r->active = 1, r->add = 0, r->dst = r->all = NULL, r->parts = NULL, r->span = NULL, r->group = NULL;
        r->call = call, r->layer = f->dev->layer, r->serial = ++f->requests;
        transfer_clear(&r->transfer, call.op);
        range_collective(&f->dev->ranges, call.op, call.tag.what);
        return r;
    }
    FAIL(THIS_RANK, "more than %d collectives in flight", COMM_REQUESTS);
}

/* The transfer of `r` has been asked for: where a step is traced, its span begins. */
static inline void request_trace(Fabric *f, Request *r) {
    if (f->dev->trace) r->span = comm_span(f, SPAN_TRANSFER, &r->call, r->transfer.began);
}

static inline Request *request_started(Fabric *f, Request *r) {
    range_end(&f->dev->ranges, RANGE_COLLECTIVE);
    request_trace(f, r);
    if (f->overlap) return r;
    comm_wait(f, r);
    return NULL;
}

/* full (n, count) on every rank = the ranks' part (count) in rank order. `part` may be its own place in `full`. */
static inline Request *comm_all_gather_start(Fabric *f, const Comm *c, Tag t, void *full, const void *part, i64 count,
                                             Dtype type) {
    if (c->size == 1) return NULL;
    i64 bytes = count * dtype_size(type);
    Request *r = request_new(f, comm_count(f, c, COMM_ALL_GATHER, t, (c->size - 1) * bytes));
    if (!f->dev->plan) transfer_all_gather(f->dev, &f->links, c, &r->transfer, full, part, bytes);
    return request_started(f, r);
}

static inline void comm_all_gather(Fabric *f, const Comm *c, Tag t, void *full, const void *part, i64 count,
                                   Dtype type) {
    comm_wait(f, comm_all_gather_start(f, c, t, full, part, count, type));
}

/* dst (count) = or += the sum over ranks, in rank order, of their full (n, count)[this rank]. scratch (n, count) and
   `full` must stay untouched until the wait. */
static inline Request *comm_reduce_scatter_start(Fabric *f, const Comm *c, Tag t, void *dst, const void *full,
                                                 void *scratch, i64 count, Dtype type, int add) {
    if (c->size == 1) return NULL;
    i64 bytes = count * dtype_size(type);
    Request *r = request_new(f, comm_count(f, c, COMM_REDUCE_SCATTER, t, (c->size - 1) * bytes));
    r->dst = dst, r->parts = scratch, r->count = count, r->n_parts = c->size, r->type = r->sum_type = type,
    r->add = add;
    if (!f->dev->plan) transfer_all_to_all(f->dev, &f->links, c, &r->transfer, scratch, full, bytes);
    return request_started(f, r);
}

/* The same for gradients that travel in the compute type: dst (count, accum) += the sum
   of real parts, made in accum. */
static inline Request *comm_reduce_scatter_real_start(Fabric *f, const Comm *c, Tag t, accum *dst, const real *full,
                                                      real *scratch, i64 count) {
    if (c->size == 1) return NULL;
    i64 bytes = count * dtype_size(DTYPE_REAL);
    Request *r = request_new(f, comm_count(f, c, COMM_REDUCE_SCATTER, t, (c->size - 1) * bytes));
    r->dst = dst, r->parts = scratch, r->count = count, r->n_parts = c->size, r->type = DTYPE_REAL,
    r->sum_type = DTYPE_ACCUM;
    if (!f->dev->plan) transfer_all_to_all(f->dev, &f->links, c, &r->transfer, scratch, full, bytes);
    return request_started(f, r);
}

static inline void comm_reduce_scatter(Fabric *f, const Comm *c, Tag t, void *dst, const void *full, void *scratch,
                                       i64 count, Dtype type) {
    comm_wait(f, comm_reduce_scatter_start(f, c, t, dst, full, scratch, count, type, 0));
}

/* buf (n, count) = its sum over ranks, the same bits everywhere. scratch (n, count); both must stay untouched until the
   wait, where the second half travels: only the first can hide. */
static inline Request *comm_all_reduce_start(Fabric *f, const Comm *c, Tag t, void *buf, void *scratch, i64 count,
                                             Dtype type) {
    if (c->size == 1) return NULL;
    i64 bytes = count * dtype_size(type);
    Request *r = request_new(f, comm_count(f, c, COMM_ALL_REDUCE, t, 2 * (c->size - 1) * bytes));
    char *own = (char *)buf + c->rank * bytes;
    r->dst = own, r->parts = scratch, r->count = count, r->n_parts = c->size, r->type = r->sum_type = type,
    r->group = c, r->all = buf;
    if (!f->dev->plan) transfer_all_to_all(f->dev, &f->links, c, &r->transfer, scratch, buf, bytes);
    return request_started(f, r);
}

/* recv (n, count): part p is what rank p had for this rank in its send (n, count). */
static inline Request *comm_all_to_all_start(Fabric *f, const Comm *c, Tag t, void *recv, const void *send, i64 count,
                                             Dtype type) {
    if (c->size == 1) return NULL;
    i64 bytes = count * dtype_size(type);
    Request *r = request_new(f, comm_count(f, c, COMM_ALL_TO_ALL, t, (c->size - 1) * bytes));
    if (!f->dev->plan) transfer_all_to_all(f->dev, &f->links, c, &r->transfer, recv, send, bytes);
    return request_started(f, r);
}

/* Send (count) to the next rank of the ring while recv (count) arrives from the one before. */
static inline Request *comm_ring_start(Fabric *f, const Comm *c, Tag t, void *recv, const void *send, i64 count,
                                       Dtype type) {
    if (c->size == 1) return NULL;
    i64 bytes = count * dtype_size(type);
    Request *r = request_new(f, comm_count(f, c, COMM_SEND_RECV, t, bytes));
    if (!f->dev->plan) transfer_ring(f->dev, &f->links, c, &r->transfer, recv, send, bytes);
    return request_started(f, r);
}

/* The time of comm_sum_control, `count` doubles a part, between ranks that are only imagined. */
static inline void imagined_sum(Fabric *f, const Comm *c, PlannedCall call, i64 count) {
    Request *r = request_new(f, call);
    r->count = count, r->type = DTYPE_F64, r->group = c;
    transfer_all_to_all(f->dev, &f->links, c, &r->transfer, NULL, NULL, count * dtype_size(DTYPE_F64));
    request_trace(f, r);
    comm_wait(f, r);
}

/* What comm_sum_control puts on the wire for n values: chunks of ceil(n / ranks) doubles, as an all-reduce. */
static inline i64 control_bytes(const Comm *c, int n) {
    return c->size == 1 ? 0 : 2 * (c->size - 1) * ceil_div(n, c->size) * (i64)sizeof(double);
}

/* The host waits for its own numbers on the wire. */
static inline void control_wait(Fabric *f, WireRequest *r, const PlannedCall *call) {
    watch_wait(call_text, call);
    f->host_waits = 1;
    double begin = seconds_now();
    while (!wire_test(r)) comm_poll(f);
    f->dev->waited += seconds_now() - begin;
    watch_over();
    f->host_waits = 0, f->oldest = 0; /* what the device waits for is waited for anew */
}

/* values (n <= CONTROL_VALUES, host doubles) = their sum over ranks, in rank order: losses, norms, counts. */
static inline void comm_sum_control(Fabric *f, const Comm *c, Tag t, double *values, int n) {
    if (c->size == 1) return;
    i64 chunk = ceil_div(n, c->size), all = chunk * c->size;
    PlannedCall call = comm_count(f, c, COMM_ALL_REDUCE, t, control_bytes(c, n));
    if (f->dev->plan) return;
    if (f->dev->imagined) {
        imagined_sum(f, c, call, chunk);
        return;
    }
    double *buf = f->control, *parts = f->control + all;
    memset(buf, 0, sizeof(double) * (size_t)all);
    memcpy(buf, values, sizeof(double) * (size_t)n);
    double begin = seconds_now();
    Span *wait = f->dev->trace ? comm_span(f, SPAN_WAIT, &call, device_mark(f->dev)) : NULL;
    range_collective(&f->dev->ranges, call.op, call.tag.what);
    WireRequest request = wire_request_none();
    wire_all_to_all(c->wire, &request, parts, buf, chunk * (i64)sizeof(double));
    control_wait(f, &request, &call);
    for (i64 i = 0; i < chunk; i++) {
        double sum = 0;
        for (int p = 0; p < c->size; p++) sum += parts[p * chunk + i];
        buf[c->rank * chunk + i] = sum;
    }
    request = wire_request_none();
    wire_all_gather(c->wire, &request, buf, buf + c->rank * chunk, chunk * (i64)sizeof(double), c->rank);
    control_wait(f, &request, &call);
    if (wait) { /* the host waits, and the device has nothing to do: one span is the transfer and the wait */
        span_close(wait, device_mark(f->dev));
        span_close(comm_span(f, SPAN_TRANSFER, &call, wait->from), wait->to);
    }
    range_end(&f->dev->ranges, RANGE_COLLECTIVE);
    f->exposed_s += seconds_now() - begin;
    memcpy(values, buf, sizeof(double) * (size_t)n);
}

#endif

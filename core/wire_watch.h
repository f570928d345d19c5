/* wire_watch.h - a rank that stands still: how the others notice, and what they say.

   A rank that has waited --comm-timeout seconds cannot tell one that is gone from one that is
   slow, so at half of them it asks:

       this rank   waits ......... asks ....... judges            every other rank answers between
                                                                  two tiles of its work, or out of
       seconds     0               S/2          S                 its own wait, with what it does

   judged   silent          a rank is stopped, gone, or hangs in a call: it is named with its host, and the run ends
            all wait long   they wait for each other: the run ends, and one that waits for something else is named
            else            somebody works: slow, and not still. That is said, and it is asked again

   Only time in which this rank has looked counts: who was stopped himself raises no alarm when he goes on.
   Looking costs one reading of the clock, ten times a second also a question to MPI. One process has one
   watch, as it has one fail_state.                                                                                   */
#ifndef ODYSSEUS_WIRE_WATCH_H
#define ODYSSEUS_WIRE_WATCH_H

#include "util.h"
#include <mpi.h>

/* Writes what `what` is: a transfer, a barrier, the work under way. */
typedef void (*WatchText)(char *out, size_t size, const void *what);

typedef struct {
    int round;     /* the asker's */
    double waited; /* seconds; below 0: it works */
    char what[208];
} WatchAnswer;

typedef struct {
    int on, rank, ranks;
    MPI_Comm comm; /* questions and answers travel apart from all else */
    double timeout, looked, waited;
    int waits;                  /* this rank waits for `what` ... */
    const void *what, *work;    /* ... or does `work` */
    WatchText what_text, work_text;
    int round, asked;           /* of this rank's own questions; asked: in this wait */
    char (*host)[64];           /* by rank, as the next three */
    WatchAnswer *heard, *said;
    MPI_Request *saying;
} Watch;

enum { WATCH_QUESTION = 1, WATCH_ANSWER = 2 };
#define WATCH_EVERY 0.1 /* seconds between two looks */

static inline Watch *watch(void) {
    static Watch state;
    return &state;
}

/* Watch the ranks of `world` from here on; timeout 0: nobody is. Collective. watch_stop. */
static inline void watch_start(MPI_Comm world, double timeout) {
    Watch *w = watch();
    MPI_Comm_size(world, &w->ranks);
    MPI_Comm_rank(world, &w->rank);
    if (timeout <= 0 || w->ranks == 1) return;
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    w->host = (char (*)[64])host_alloc(sizeof host * (size_t)w->ranks);
    w->heard = (WatchAnswer *)host_alloc(sizeof(WatchAnswer) * 2 * (size_t)w->ranks), w->said = w->heard + w->ranks;
    w->saying = (MPI_Request *)host_alloc(sizeof(MPI_Request) * (size_t)w->ranks);
    for (int r = 0; r < w->ranks; r++) w->saying[r] = MPI_REQUEST_NULL;
    MPI_Comm_dup(world, &w->comm);
    MPI_Allgather(host, sizeof host, MPI_BYTE, w->host, sizeof host, MPI_BYTE, w->comm);
    w->timeout = timeout, w->on = 1;
}

/* From here on this rank waits for `what`, which must stay until watch_over. */
static inline void watch_wait(WatchText text, const void *what) {
    Watch *w = watch();
    if (!w->on) return;
    w->what_text = text, w->what = what, w->waits = 1;
    w->waited = 0, w->asked = 0, w->looked = seconds_now();
}

static inline void watch_over(void) { watch()->waits = 0; }

/* Answer `to`; one answer to a rank at a time is enough. */
static inline void watch_answer(Watch *w, int to, int round) {
    int free_again = 0;
    MPI_Test(&w->saying[to], &free_again, MPI_STATUS_IGNORE);
    if (!free_again) return;
    WatchAnswer *a = &w->said[to];
    a->round = round, a->waited = w->waits ? w->waited : -1;
    snprintf(a->what, sizeof a->what, "works");
    if (w->waits) w->what_text(a->what, sizeof a->what, w->what);
    else if (w->work) w->work_text(a->what, sizeof a->what, w->work);
    MPI_Isend(a, sizeof *a, MPI_BYTE, to, WATCH_ANSWER, w->comm, &w->saying[to]);
}

/* Take what has arrived: questions, and answers to this rank's own. */
static inline void watch_listen(Watch *w) {
    int there = 0;
    MPI_Status from;
    for (MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, w->comm, &there, &from); there;
         MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, w->comm, &there, &from)) {
        WatchAnswer a;
        int round = 0;
        if (from.MPI_TAG == WATCH_QUESTION) {
            MPI_Recv(&round, 1, MPI_INT, from.MPI_SOURCE, WATCH_QUESTION, w->comm, MPI_STATUS_IGNORE);
            watch_answer(w, from.MPI_SOURCE, round);
        } else {
            MPI_Recv(&a, sizeof a, MPI_BYTE, from.MPI_SOURCE, WATCH_ANSWER, w->comm, MPI_STATUS_IGNORE);
            if (a.round == w->round) w->heard[from.MPI_SOURCE] = a;
        }
    }
}

/* Ask everybody. A question is so small that MPI keeps it: the variable may change. */
static inline void watch_ask(Watch *w) {
    w->round++, w->asked = 1;
    for (int r = 0; r < w->ranks; r++) {
        MPI_Request sent;
        if (r == w->rank) continue;
        MPI_Isend(&w->round, 1, MPI_INT, r, WATCH_QUESTION, w->comm, &sent);
        MPI_Request_free(&sent);
    }
}

/* The time is over: end the run, or find that somebody works. */
static inline void watch_judge(Watch *w) {
    int silent = 0, first_silent = -1, lowest = w->rank, works = -1, elsewhere = -1;
    char mine[208], others[64] = "";
    w->what_text(mine, sizeof mine, w->what);
    for (int r = w->ranks - 1; r >= 0; r--) {
        const WatchAnswer *a = &w->heard[r];
        if (r == w->rank) continue;
        if (a->round != w->round) silent++, first_silent = r;
        else if (a->waited < 0.2 * w->timeout) works = r;
        else if (lowest = r < lowest ? r : lowest, strcmp(a->what, mine) != 0) elsewhere = r;
    }
    if (!silent && works >= 0) {
        if (lowest == w->rank)
            note("rank %d has waited %.0f s: %s; rank %d on %s answers: %s", w->rank, w->waited, mine, works,
                 w->host[works], w->heard[works].what);
        w->waited = w->timeout / 2, w->asked = 0;
        return;
    }
    if (lowest < w->rank) sleep(3); /* that one says it for all */
    if (silent > 1) snprintf(others, sizeof others, ", nor do %d more", silent - 1);
    if (silent)
        FAIL(THIS_RANK,
             "%s has not ended after %.1f s (--comm-timeout): rank %d on %s does not answer%s: it is stopped or gone, "
             "or hangs",
             mine, w->waited, first_silent, w->host[first_silent], others);
    if (elsewhere >= 0)
        FAIL(THIS_RANK,
             "%s has not ended after %.1f s (--comm-timeout): every rank waits, but rank %d on %s for another: %s",
             mine, w->waited, elsewhere, w->host[elsewhere], w->heard[elsewhere].what);
    FAIL(THIS_RANK,
         "%s has not ended after %.1f s (--comm-timeout): every rank answers and waits for it: the link between them "
         "is down",
         mine, w->waited);
}

/* To be called now and then by whoever waits or works, from the thread that may use MPI. */
static inline void watch_look(void) {
    Watch *w = watch();
    if (!w->on) return;
    double now = seconds_now(), since = now - w->looked;
    if (since < WATCH_EVERY) return;
    w->looked = now;
    watch_listen(w);
    if (!w->waits) return;
    w->waited += fmin(since, 10 * WATCH_EVERY);
    if (w->waited > w->timeout / 2 && !w->asked) watch_ask(w);
    if (w->waited > w->timeout) watch_judge(w);
}

/* The end of MPI is near. */
static inline void watch_stop(void) {
    Watch *w = watch();
    if (!w->on) return;
    w->on = 0;
    for (int r = 0; r < w->ranks; r++)
        if (w->saying[r] != MPI_REQUEST_NULL) MPI_Request_free(&w->saying[r]);
    MPI_Comm_free(&w->comm);
    free(w->host);
    free(w->heard);
    free(w->saying);
}

#endif

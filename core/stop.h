/* stop.h - being told to stop: SIGTERM, SIGUSR1 (Slurm's notice) and SIGINT are remembered, and the
   train loop asks after every step.

   A second SIGINT ends the process at once, as if nothing were installed. mpirun passes SIGUSR1 on to every rank; its
   own SIGTERM and SIGINT it answers by ending the ranks within a second or two, so a long save wants SIGUSR1 there.  */
#ifndef ODYSSEUS_STOP_H
#define ODYSSEUS_STOP_H

#include "util.h"
#include <signal.h>

typedef struct {
    volatile sig_atomic_t asked, interrupts; /* asked: the signal; 0: none */
} Stop;

/* A process has one, as it has one table of signals. */
static inline Stop *stop_state(void) {
    static Stop state;
    return &state;
}

static inline void stop_signal(int number) {
    Stop *s = stop_state();
    s->asked = number;
    if (number != SIGINT) return;
    if (!s->interrupts) {
        s->interrupts = 1;
        return;
    }
    signal(SIGINT, SIG_DFL);
    raise(SIGINT);
}

/* From here on the three signals ask instead of ending the process. */
static inline void stop_listen(void) {
    const int signals[] = {SIGTERM, SIGUSR1, SIGINT};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = stop_signal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < COUNT_OF(signals); i++) sigaction(signals[i], &action, NULL);
}

#endif

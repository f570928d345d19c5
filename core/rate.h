/* rate.h - how fast a step was, and what share of the machine's peak that is: MFU.

   FLOP per token are those the mathematics asks for, twice: with the pairs of a query and a key that the mask shows
   (causal, documents, windows), and with attention's full square, as many papers count. The peak is given
   (--peak-tflops), stated by a table, or measured at start.                                                          */
#ifndef ODYSSEUS_RATE_H
#define ODYSSEUS_RATE_H

#include "log.h"
#include "options.h"

/* FLOP per token: 6 per parameter that multiplies (tables that are only looked up do not: positions, an untied token
   embedding), and attention's 12 h D for each key that a query sees, in every layer (D a head's width). */
static inline double flop_seen(const ModelOptions *o, double keys) {
    const Config *c = &o->config;
    i64 looked_up = (c->has & HAS_POSITIONS ? c->max_pos * c->dim : 0) + (c->tied ? 0 : c->vocab * c->dim);
    return 6.0 * (double)(config_parameters(c) - looked_up) + 12.0 * (double)attention_width(c) * keys;
}

/* Keys that a query sees on average of a document of n tokens, under a window (0: none): n / 2, as is usual to say. */
static inline double keys_seen(double n, double window) {
    return window > 0 && window < n ? window - window * window / (2 * n) : n / 2;
}

/* All of the sequence in every layer, as many papers count; or (`causal`) what is seen: of documents, without data,
   those of --doc-length tokens. */
static inline double flop_per_token(const ModelOptions *o, int causal) {
    const Config *c = &o->config;
    double windowed = (double)layers_count(&c->windowed, c->layers), layers = (double)c->layers, L = (double)o->L;
    double n = o->documents && o->doc_length && o->doc_length < o->L ? (double)o->doc_length : L;
    if (!causal) return flop_seen(o, layers * L);
    return flop_seen(o, (layers - windowed) * keys_seen(n, 0) + windowed * keys_seen(n, (double)c->window));
}

/* What a rank could do at best. */
typedef struct {
    double flops; /* FLOP/s; 0: not known (any more) */
    int stated;   /* given, or known of the device: nothing is faster */
    int again;    /* it was measured a second time */
} Peak;

/* The peak of the rank placed at `place`: given, or the device's. */
static inline Peak peak_of(const Settings *s, const DevicePlace *place) {
    Peak p = {0, s->peak_tflops > 0 || device_peak_is_stated(place), 0};
    p.flops = s->peak_tflops > 0 ? 1e12 * s->peak_tflops : device_peak(place);
    return p;
}

/* A step faster than the peak. Where that was given, or a table states it, the step is impossible: an error. Where it
   was measured, the measurement is wrong, which stops nothing: others may have used the machine meanwhile, so look
   again, once; a peak that is still below what was reached is not known, and then MFU is not either. */
static inline void rate_above_peak(Peak *p, const DevicePlace *place, Metrics *k) {
    if (p->stated)
        FAIL(THIS_RANK,
             "step %lld ran at %.2f times the peak of %g GFLOP/s a rank: either the peak is too low (--peak-tflops) or "
             "work was skipped",
             k->step, k->mfu_causal, p->flops / 1e9);
    double measured = p->flops, again = p->again ? 0 : device_peak(place), higher = again / measured;
    p->again = 1;
    p->flops = k->mfu_causal <= higher ? again : 0;
    k->mfu_causal = p->flops > 0 ? k->mfu_causal / higher : NAN,
    k->mfu_full = p->flops > 0 ? k->mfu_full / higher : NAN;
    if (p->flops > 0)
        say("note     the peak was measured too low, at %.1f GFLOP/s a rank; again: %.1f\n", measured / 1e9,
            again / 1e9);
    else
        say("note     step %lld ran above the measured peak of %.1f GFLOP/s a rank, so MFU is not known; "
            "--peak-tflops gives the true one\n",
            k->step, fmax(measured, again) / 1e9);
}

/* What was measured of a step that took so many seconds, in `waited` of which the host waited; the caller adds step,
   loss, norm and rate of learning. The peak may change. */
static inline void step_metrics(Metrics *k, Model *m, const ModelOptions *o, Peak *p, double seconds, double waited) {
    double peak = p->flops * (double)m->mesh.shape.world, tokens = (double)(o->batch * o->L);
    double seen = m->documents ? flop_seen(o, m->pairs_seen / tokens) : flop_per_token(o, 1);
    k->tokens = o->batch * o->L;
    k->step_ms = 1e3 * seconds;
    k->tokens_per_s = (double)k->tokens / seconds;
    k->mfu_causal = peak > 0 ? k->tokens_per_s * seen / peak : NAN;
    k->mfu_full = peak > 0 ? k->tokens_per_s * flop_per_token(o, 0) / peak : NAN;
    k->mem_bytes = m->arena.committed;
    k->comm_bytes = ledger_total(&m->ledger, 0);
    k->host_ms = DEVICE_IS_HOST ? NAN : 1e3 * (seconds - waited);
    k->comm_exposed_ms = 1e3 * fabric_exposed(&m->fabric);
    k->val_loss = k->val_bits = NAN;
    if (k->mfu_causal > 1 && m->mesh.rank == 0) rate_above_peak(p, &o->place, k);
}

#endif

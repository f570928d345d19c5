/* finite.h - may a step's update be made? --on-spike says what becomes of a loss that jumps (spike.h), or that is not
   finite, as a gradient norm may be; it is always logged, and names the tensor where it began.

   Searched in the order of the walk: weights, the streams into every block, gradients; of all ranks the earliest. */
#ifndef ODYSSEUS_FINITE_H
#define ODYSSEUS_FINITE_H

#include "log.h"
#include "scheme.h"
#include "spike.h"

/* The first thing that went bad on a rank, in the order of the walk: weights, then streams, then gradients. */
typedef struct {
    i64 order; /* smaller is earlier; -1: all is well */
    char what[160];
} BadTensor;

static inline int all_finite(Device *dev, const void *values, i64 n, i64 size) {
    int finite = 1;
    unsigned char *host = (unsigned char *)host_alloc((size_t)(n * size));
    copy_out(dev, host, values, n * size);
    for (i64 i = 0; i < n && finite; i++)
        finite =
            size == real_size() ? isfinite(real_value(((const real *)host)[i])) : isfinite(((const accum *)host)[i]);
    free(host);
    return finite;
}

/* Of this rank's part of every tensor in a flat buffer: the first that holds something not finite. */
static inline int bad_in_flat(const Zero *z, const void *flat, i64 size, const char *kind, i64 base, BadTensor *bad) {
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        i64 at, n = tensor_range(z, t, &at);
        if (n == 0 || all_finite(z->dev, (const char *)flat + at * size, n, size)) continue;
        char name[HF_NAME_MAX];
        tensor_hf_name(name, t->spec, t->layer);
        bad->order = base + i;
        snprintf(bad->what, sizeof bad->what, "%s of %s", kind, name);
        return 1;
    }
    return 0;
}

static inline void find_bad_tensor(const Model *m, BadTensor *bad) {
    Device *dev = m->zero.dev;
    i64 n = stream_rows(m) * m->config.dim, layers = m->config.layers, base = m->zero.tensors;
    memset(bad, 0, sizeof *bad);
    bad->order = -1;
    if (bad_in_flat(&m->zero, m->zero.param, real_size(), "weights", 0, bad)) return;
    for (i64 i = 0; i < 2 * layers; i++) {
        if (all_finite(dev, i % 2 ? m->mlp[i / 2].in.x : m->attention[i / 2].in.x, n, real_size())) continue;
        bad->order = base + i;
        snprintf(bad->what, sizeof bad->what, "stream into the %s of layer %lld", i % 2 ? "MLP" : "attention", i / 2);
        return;
    }
    if (!all_finite(dev, m->final_x, own_rows(m) * m->config.dim, real_size())) {
        bad->order = base + 2 * layers;
        snprintf(bad->what, sizeof bad->what, "stream into the final norm");
        return;
    }
    bad_in_flat(&m->zero, m->zero.grad, accum_size(), "gradient", base + 2 * layers + 1, bad);
}

/* What to say of a loss or norm that is not finite: the first tensor of any rank that is not. Collective. */
static inline void bad_tensor_text(const Model *m, char *out, size_t size, double loss, double norm) {
    int ranks = (int)m->mesh.shape.world, first = -1;
    BadTensor mine, *all = (BadTensor *)host_alloc(sizeof(BadTensor) * (size_t)ranks);
    find_bad_tensor(m, &mine);
    wire_share(m->mesh.world.wire, all, &mine, sizeof mine);
    for (int r = 0; r < ranks; r++)
        if (all[r].order >= 0 && (first < 0 || all[r].order < all[first].order)) first = r;
    if (first < 0) snprintf(out, size, "loss %g, gradient norm %g: the sum overflowed; lower --lr", loss, norm);
    else
        snprintf(out, size,
                 "loss %g, gradient norm %g; first not finite: %s, on rank %d. Lower --lr, or look at the data", loss,
                 norm, all[first].what, first);
    free(all);
}

/* Shall this step's update be made? Says so where the step is unlike the others, and ends the run if that is what
   --on-spike asks, or where that is silent and loss or norm are not finite. What is not finite never goes into the
   weights. Every rank holds the same numbers; collective, where they are not finite. */
static inline int spike_admits(SpikeWatch *w, const Model *m, const Settings *s, Metrics *k) {
    int finite = isfinite(k->loss) && isfinite(k->grad_norm);
    double height = finite ? spike_height(w, k->loss) : INFINITY, mean = w->mean;
    if (finite) spike_count(w, k->loss, s->spike_sigma);
    if (finite && (s->spike_sigma == 0 || height <= s->spike_sigma)) return 1;
    const char *action = s->on_spike ? s->on_spike : finite ? "continue" : "stop";
    char what[512];
    if (!finite) bad_tensor_text(m, what, sizeof what, k->loss, k->grad_norm);
    else snprintf(what, sizeof what, "loss %.4f is %.1f standard deviations above the mean of the steps before, %.4f",
                  k->loss, height, mean);
    if (strcmp(action, "stop") == 0)
        FAIL(EVERYONE, "step %lld: %s%s", k->step, what,
             s->out ? "; metrics.jsonl has the steps before" : "");
    int skips = !finite || strcmp(action, "skip") == 0;
    k->spike = skips ? "skipped" : "continued";
    if (m->mesh.rank == 0)
        say("note     step %lld: %s; %s\n", k->step, what, skips ? "no update" : "the update is made all the same");
    return !skips;
}

#endif

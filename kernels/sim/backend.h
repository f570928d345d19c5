/* backend.h - the simulator's backend: every *_run function that compute.h calls, as the time it would take.

   products, attention     FLOP / (peak x fraction at this size), but not less than their bytes
                           take; slower while bytes are moving
   everything else         bytes / (bandwidth x fraction at this size)
   gpu                     the host needs `launch` to ask, the compute stream begins when it is free and has been asked
   cpu                     the host computes: it is the compute stream

   FLOP and bytes are those that compute.h has counted for the operation (dev->now). The clocks are in types.h, the
   figures in cluster.h, the links in core/transfer_sim.h. No buffer is touched: they are addresses without memory.   */
#ifndef ODYSSEUS_SIM_BACKEND_H
#define ODYSSEUS_SIM_BACKEND_H

#include "device.h"

/* The operation under way takes `seconds` of the compute stream, and up to `slowdown` times that
   while the comm stream is busy. */
static inline void sim_charge(Device *dev, double seconds, double slowdown) {
    DeviceState *s = &dev->state;
    s->host += s->cluster->launch;
    double begin = fmax(s->compute, s->host), busy = fmax(0, s->comm - begin);
    double slowed = fmin(seconds * slowdown, busy); /* of the stretched time, what falls beside the transfer */
    s->compute = begin + slowed + seconds - slowed / slowdown;
    s->op_seconds[dev->now.op] += s->compute - begin;
    if (device_is_synchronous()) s->host = s->compute;
}

/* A product or attention at this fraction of the peak. */
static inline void sim_flop(Device *dev, double fraction) {
    const Cluster *c = dev->state.cluster;
    sim_charge(dev, fmax(dev->now.flop / (device_peak_of(c) * fraction), dev->now.bytes / c->bandwidth), c->slowdown);
}

/* An operation that memory bounds, of the class whose curve this is. */
static inline void sim_bytes(Device *dev, const Curve *fraction) {
    if (dev->now.bytes > 0)
        sim_charge(dev, dev->now.bytes / (dev->state.cluster->bandwidth * curve_at(fraction, dev->now.bytes)), 1);
}

/* Where the time ends up on the host's side: it waits for the compute stream. */
static inline void sim_finish(Device *dev) { dev->state.host = fmax(dev->state.host, dev->state.compute); }

/* Operands are not looked at: only what compute.h counted matters. */
static inline void sim_ignore(int first, ...) { (void)first; }

#define SIM_GEMM(dev, ...) \
    (sim_ignore(0, __VA_ARGS__), sim_flop(dev, curve_at(&(dev)->state.cluster->gemm, (dev)->now.flop)))
#define SIM_BYTES(dev, curve, ...) (sim_ignore(0, __VA_ARGS__), sim_bytes(dev, &(dev)->state.cluster->curve))

#define linear_forward_run(dev, ...) SIM_GEMM(dev, __VA_ARGS__)
#define linear_backward_input_run(dev, ...) SIM_GEMM(dev, __VA_ARGS__)
#define linear_backward_weight_run(dev, ...) SIM_GEMM(dev, __VA_ARGS__)

#define embedding_forward_run(dev, ...) SIM_BYTES(dev, embedding, __VA_ARGS__)
#define embedding_backward_run(dev, ...) SIM_BYTES(dev, embedding, __VA_ARGS__)

#define norm_forward_run(dev, ...) SIM_BYTES(dev, norm, __VA_ARGS__)
#define norm_recompute_run(dev, ...) SIM_BYTES(dev, norm, __VA_ARGS__)
#define norm_backward_run(dev, ...) SIM_BYTES(dev, norm, __VA_ARGS__)

#define bias_add_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define bias_backward_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define rope_table_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define queries_pack_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define queries_unpack_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define kv_pack_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define kv_unpack_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define parts_merge_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define parts_split_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define columns_merge_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define columns_split_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define gelu_forward_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define gelu_backward_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define swiglu_forward_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define swiglu_backward_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define zero_fill_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define convert_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define sum_parts_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)
#define add_parts_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)

#define classifier_run(dev, ...) SIM_BYTES(dev, classifier, __VA_ARGS__)
#define sum_squares_run(dev, ...) SIM_BYTES(dev, optimizer, __VA_ARGS__)
#define adamw_run(dev, ...) SIM_BYTES(dev, optimizer, __VA_ARGS__)

/* The next three need to know more than FLOP and bytes: attention how many keys a query of the block has, its delta
   that it is bound by memory; a copy to the host that the host waits. */
#define attention_forward_run(dev, out, rounded, lse, q, kv, c) \
    (sim_ignore(0, out, rounded, lse, q, kv), \
     sim_flop(dev, curve_at(&(dev)->state.cluster->attention_forward, (double)(c).shape.Tk)))
#define attention_backward_run(dev, dq, dq_rounded, dkv, dkv_rounded, q, kv, dout, lse, delta, c) \
    (sim_ignore(0, dq, dq_rounded, dkv, dkv_rounded, q, kv, dout, lse, delta), \
     sim_flop(dev, curve_at(&(dev)->state.cluster->attention_backward, (double)(c).shape.Tk)))
#define attention_delta_run(dev, ...) SIM_BYTES(dev, pointwise, __VA_ARGS__)

#define copy_in_run(dev, dst, src, bytes) sim_ignore(0, dev, dst, src, bytes)
#define copy_out_run(dev, dst, src, bytes) (sim_ignore(0, dst, src, bytes), sim_finish(dev))

#endif

/* compute.h - the list of operations, each with its formula, shapes and cost. One backend is included below.

   caller  ->  op(dev, ...)          here: what it means, FLOP and bytes counted once for every backend
                 |  dev->plan?  ->   counted only: the walk is being measured, no memory exists
                 `->  op_run(dev, ...)   kernels/cpu, kernels/cuda: the work; kernels/sim: the time it would take

   Rows: a token stream is (T, B, C), row t*B + b. Time first, so that what a sequence-parallel all-gather
   concatenates is contiguous. `real` is the compute type (activations, weights), `accum` the type of sums,
   statistics, gradients and optimizer state: float/float, double/double in the referee, bf16/float on a GPU.
   All pointers are device memory owned by the caller; += marks what is added to, everything else is overwritten.
   No operation allocates. Sums have a fixed order: the same call gives the same bits.                          */
#ifndef ODYSSEUS_COMPUTE_H
#define ODYSSEUS_COMPUTE_H

#include "device.h"

#ifdef ODYSSEUS_CUDA
#include "cuda/backend.h"
#elif defined ODYSSEUS_SIM
#include "sim/backend.h"
#else
#include "cpu/backend.h"
#endif

/* Every operation passes here: the one place where work is counted. Returns whether to compute. */
static inline int op_begin(Device *dev, OpClass op, const char *name, double flop, double bytes) {
    dev->calls[op]++;
    dev->flop[op] += flop;
    dev->bytes[op] += bytes;
    dev->now.op = op, dev->now.flop = flop, dev->now.bytes = bytes;
    if (dev->plan) return 0;
    device_poll(dev);
    if (dev->trace) dev->trace->op = trace_op(dev->trace, op, name, flop, bytes, device_mark(dev));
    return 1;
}

static inline void op_end(Device *dev) {
    if (dev->trace) span_close(dev->trace->op, device_mark(dev));
}

/* The body of every operation below; in a trace it has the name of its function. */
#define OPERATION(dev, op, flop, bytes, run) \
    do { \
        if (op_begin(dev, op, __func__, flop, bytes)) { \
            run; \
            op_end(dev); \
        } \
    } while (0)

/* The step comes to a block of the walk, forward or backward, or to what lies outside (BLOCK_OTHER): for its
   trace, and for whoever waits. */
static inline void part_begin(Device *dev, BlockKind block, int layer, Phase phase) {
    dev->layer = layer;
    range_part(&dev->ranges, block, layer, phase);
    if (dev->trace && !trace_in_part(dev->trace, block, layer, phase))
        trace_part(dev->trace, block, layer, phase, device_mark(dev));
}

/* Count again, `times` times, what `dev` counted (and, as a model, took) since `before`. */
static inline void device_repeat(Device *dev, const Device *before, i64 times) {
    for (int op = 0; op < OP_CLASSES; op++) {
        dev->calls[op] += times * (dev->calls[op] - before->calls[op]);
        dev->flop[op] += (double)times * (dev->flop[op] - before->flop[op]);
        dev->bytes[op] += (double)times * (dev->bytes[op] - before->bytes[op]);
    }
    device_state_repeat(&dev->state, &before->state, times);
}

/* ---- matrix products ------------------------------------------------------------------------------------------- */

/* A linear layer's three products. Rows of out and dout begin `ld` elements apart: OC where they are neighbours, more
   where each shall begin at a whole vector of memory (logits of an odd vocabulary). */

/* out (rows, OC) = inp (rows, IC) weight (OC, IC)^T + bias (OC) (NULL: none) */
static inline void linear_forward(Device *dev, real *out, i64 ld, const real *inp, const real *weight, const real *bias,
                                  i64 rows, i64 IC, i64 OC) {
    OPERATION(dev, OP_GEMM, 2.0 * rows * IC * OC, real_size() * (1.0 * rows * IC + 1.0 * IC * OC + 1.0 * rows * OC),
              linear_forward_run(dev, out, ld, inp, weight, bias, rows, IC, OC));
}

/* dinp (rows, IC) = or += dout (rows, OC) weight (OC, IC) */
static inline void linear_backward_input(Device *dev, real *dinp, const real *dout, i64 ld, const real *weight,
                                         i64 rows, i64 IC, i64 OC, int add) {
    OPERATION(dev, OP_GEMM, 2.0 * rows * IC * OC, real_size() * (1.0 * rows * IC + 1.0 * IC * OC + 1.0 * rows * OC),
              linear_backward_input_run(dev, dinp, dout, ld, weight, rows, IC, OC, add));
}

/* dweight (OC, IC) += dout (rows, OC)^T inp (rows, IC) */
static inline void linear_backward_weight(Device *dev, accum *dweight, const real *inp, const real *dout, i64 ld,
                                          i64 rows, i64 IC, i64 OC) {
    OPERATION(dev, OP_GEMM, 2.0 * rows * IC * OC,
              real_size() * (1.0 * rows * IC + 1.0 * rows * OC) + 2.0 * accum_size() * IC * OC,
              linear_backward_weight_run(dev, dweight, inp, dout, ld, rows, IC, OC));
}

/* out (rows, C) += bias (C) */
static inline void bias_add(Device *dev, real *out, const real *bias, i64 rows, i64 C) {
    OPERATION(dev, OP_POINTWISE, 1.0 * rows * C, 2.0 * real_size() * rows * C, bias_add_run(dev, out, bias, rows, C));
}

/* dbias (C) += sum over rows of dout (rows, C) */
static inline void bias_backward(Device *dev, accum *dbias, const real *dout, i64 rows, i64 C) {
    OPERATION(dev, OP_POINTWISE, 1.0 * rows * C, 1.0 * real_size() * rows * C,
              bias_backward_run(dev, dbias, dout, rows, C));
}

/* ---- embedding ------------------------------------------------------------------------------------------------- */

/* out (T, B, C) = wte (V, C)[token] + wpe (P, C)[position] (wpe NULL: none); tokens (T, B); T = map.count */
static inline void embedding_forward(Device *dev, real *out, const int32_t *tokens, TokenMap map, const real *wte,
                                     const real *wpe, i64 B, i64 C) {
    OPERATION(dev, OP_EMBEDDING, 1.0 * map.count * B * C, 3.0 * real_size() * map.count * B * C,
              embedding_forward_run(dev, out, tokens, map, wte, wpe, B, C));
}

/* dwte (V, C)[token] += dout (T, B, C), dwpe (P, C)[position] += dout; in a fixed order whatever the threads */
static inline void embedding_backward(Device *dev, accum *dwte, accum *dwpe, const real *dout, const int32_t *tokens,
                                      TokenMap map, i64 B, i64 C, i64 V) {
    OPERATION(dev, OP_EMBEDDING, 2.0 * map.count * B * C, (real_size() + 4.0 * accum_size()) * map.count * B * C,
              embedding_backward_run(dev, dwte, dwpe, dout, tokens, map, B, C, V));
}

/* ---- norms ----------------------------------------------------------------------------------------------------- */

/* The residual add and the norm that follows it, per row of C:
   x = a + delta (delta NULL: x = a and `sum` is not written; else sum = x, which may be a or delta)
   NORM_LAYER  out = (x - mean) rstd weight + bias, rstd = 1/sqrt(var + eps)       Ba et al. 2016, arXiv:1607.06450
   NORM_RMS    out = x rstd weight,                 rstd = 1/sqrt(mean(x^2) + eps)
               Zhang, Sennrich 2019, arXiv:1910.07467
   mean (NORM_LAYER only) and rstd (rows) are kept for backward. */
static inline void norm_forward(Device *dev, NormCall n, real *out, real *sum, accum *mean, accum *rstd, const real *a,
                                const real *delta) {
    OPERATION(dev, OP_NORM, 6.0 * n.rows * n.C, (delta ? 4.0 : 2.0) * real_size() * n.rows * n.C,
              norm_forward_run(dev, n, out, sum, mean, rstd, a, delta));
}

/* out (rows, C) again, from x and the kept statistics: cheaper than keeping it. Gives norm_forward's bits. */
static inline void norm_recompute(Device *dev, NormCall n, real *out, const accum *mean, const accum *rstd,
                                  const real *x) {
    OPERATION(dev, OP_NORM, 3.0 * n.rows * n.C, 2.0 * real_size() * n.rows * n.C,
              norm_recompute_run(dev, n, out, mean, rstd, x));
}

/* dx (rows, C) += d(norm)/dx^T dout for every row; dweight, dbias (C) += over rows w_first .. w_first+w_rows-1 only
   (all rows, except where the stream is replicated and each rank answers for its own part). dbias NULL for NORM_RMS;
   neither the bias nor eps is read. */
static inline void norm_backward(Device *dev, NormCall n, real *dx, accum *dweight, accum *dbias, const real *dout,
                                 const accum *mean, const accum *rstd, const real *x, i64 w_first, i64 w_rows) {
    OPERATION(dev, OP_NORM, 12.0 * n.rows * n.C, 4.0 * real_size() * n.rows * n.C,
              norm_backward_run(dev, n, dx, dweight, dbias, dout, mean, rstd, x, w_first, w_rows));
}

/* ---- heads: rotary embedding and packing ------------------------------------------------------------------------- */

/* table (T, head_dim/2, 2) = magnitude times cos, sin of position * inv_freq[i]; inv_freq
   (head_dim/2) in double on the host.
   Su et al. 2021, arXiv:2104.09864 */
static inline void rope_table(Device *dev, accum *table, TokenMap map, const double *inv_freq, double magnitude,
                              i64 head_dim) {
    OPERATION(dev, OP_POINTWISE, 2.0 * map.count * head_dim, 1.0 * accum_size() * map.count * head_dim,
              rope_table_run(dev, table, map, inv_freq, magnitude, head_dim));
}

/* Rotate queries (table NULL: no rotation; halves i and i + head_dim/2 form a pair, as Hugging Face's Llama) and lay
   the heads out for `parts` receivers of an all-to-all: in (rows, heads, head_dim) -> out (parts, rows, heads/parts,
   head_dim). Row r is token r / B of the table. With parts = 1 in place: out == in. */
static inline void queries_pack(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B, i64 heads,
                                i64 head_dim, i64 parts) {
    if (parts == 1 && !table && out == in) return;
    OPERATION(dev, OP_POINTWISE, 3.0 * rows * heads * head_dim, 2.0 * real_size() * rows * heads * head_dim,
              queries_pack_run(dev, out, in, table, rows, B, heads, head_dim, parts));
}

/* The same for keys, rotated, and values, as they are: in (rows, 2, kv_heads, head_dim) -> out (parts, rows, 2,
   KHl, head_dim), KHl = max(1, kv_heads/parts): with fewer KV heads than parts, part p gets KV head
   p*kv_heads/parts. With parts = 1 in place. */
static inline void kv_pack(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B, i64 kv_heads,
                           i64 head_dim, i64 parts) {
    if (parts == 1 && !table && out == in) return;
    OPERATION(dev, OP_POINTWISE, 3.0 * rows * kv_heads * head_dim, 4.0 * real_size() * rows * kv_heads * head_dim,
              kv_pack_run(dev, out, in, table, rows, B, kv_heads, head_dim, parts));
}

/* The transpose of queries_pack: gradients (parts, rows, heads/parts, head_dim) come back from `parts`
   senders and are rotated back. */
static inline void queries_unpack(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B,
                                  i64 heads, i64 head_dim, i64 parts) {
    if (parts == 1 && !table && out == in) return;
    OPERATION(dev, OP_POINTWISE, 3.0 * rows * heads * head_dim, 2.0 * real_size() * rows * heads * head_dim,
              queries_unpack_run(dev, out, in, table, rows, B, heads, head_dim, parts));
}

/* The transpose of kv_pack: KV heads that went to several parts are summed in part order. */
static inline void kv_unpack(Device *dev, real *out, const real *in, const accum *table, i64 rows, i64 B, i64 kv_heads,
                             i64 head_dim, i64 parts) {
    if (parts == 1 && !table && out == in) return;
    OPERATION(dev, OP_POINTWISE, 3.0 * rows * kv_heads * head_dim, 4.0 * real_size() * rows * kv_heads * head_dim,
              kv_unpack_run(dev, out, in, table, rows, B, kv_heads, head_dim, parts));
}

/* out (rows, parts, width) = in (parts, rows, width): what arrived from `parts` senders becomes rows again */
static inline void parts_merge(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width) {
    OPERATION(dev, OP_POINTWISE, 0, 2.0 * real_size() * parts * rows * width,
              parts_merge_run(dev, out, in, parts, rows, width));
}

/* out (parts, rows, width) = in (rows, parts, width): the transpose of parts_merge */
static inline void parts_split(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width) {
    OPERATION(dev, OP_POINTWISE, 0, 2.0 * real_size() * parts * rows * width,
              parts_split_run(dev, out, in, parts, rows, width));
}

/* The same two where rows are (parts, every, width), of which the first of each part's is meant, or, by another
   pointer, another one; the rest is left alone. */
static inline void columns_merge(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width, i64 every) {
    OPERATION(dev, OP_POINTWISE, 0, 2.0 * real_size() * parts * rows * width,
              columns_merge_run(dev, out, in, parts, rows, width, every));
}
static inline void columns_split(Device *dev, real *out, const real *in, i64 parts, i64 rows, i64 width, i64 every) {
    OPERATION(dev, OP_POINTWISE, 0, 2.0 * real_size() * parts * rows * width,
              columns_split_run(dev, out, in, parts, rows, width, every));
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* Pairs of a query and a key that it sees, in all heads and sequences; rows of queries; rows of keys and values. */
typedef struct { double pairs, queries, keys; } AttentionWork;

static inline AttentionWork attention_work(const AttentionCall *c) {
    double batch = (double)c->shape.B;
    AttentionWork w = {c->pairs * (double)c->shape.heads,
                       batch * (double)(c->shape.Tq * c->shape.heads),
                       2 * batch * (double)(c->shape.Tk * c->shape.kv_heads)};
    return w;
}

/* One block of causal attention, S = Q K^T / sqrt(head_dim), masked to lo <= kv position <= query position (lo of the
   call; NULL: 0).
   q (Tq, B, heads, head_dim)  kv (Tk, B, 2, kv_heads, head_dim)
   out (Tq, B, heads, head_dim), lse (Tq, B, heads) in accum
   merge = 0: out = softmax(S) V, lse = log sum exp(S); a row that may see nothing gets out 0, lse -inf.
   merge = 1: the new block joins what out and lse hold, as if both had been one softmax. Nothing but tiles is stored:
   O(Tq) memory. Tiles that nobody sees are skipped.
   rounded: NULL, or where the result goes in real, instead of to out (which only merge then reads): no
   pass over memory for it. Where real is accum, it is out itself. Dao 2023, arXiv:2307.08691; merge: Liu
   et al. 2023, arXiv:2310.01889 */
static inline void attention_forward(Device *dev, accum *out, real *rounded, accum *lse, const real *q, const real *kv,
                                     AttentionCall c) {
    AttentionWork w = attention_work(&c);
    double HS = (double)c.shape.head_dim,
           result = (rounded ? real_size() : accum_size()) + (c.merge ? accum_size() : 0);
    OPERATION(dev, OP_ATTENTION, 4 * w.pairs * HS, HS * (real_size() * (w.queries + w.keys) + result * w.queries),
              attention_forward_run(dev, out, rounded, lse, q, kv, c));
}

/* delta (Tq, B, heads) = rowsum(out * dout) over head_dim, for attention_backward */
static inline void attention_delta(Device *dev, accum *delta, const real *out, const real *dout, i64 rows_heads,
                                   i64 head_dim) {
    OPERATION(dev, OP_ATTENTION, 2.0 * rows_heads * head_dim, 2.0 * real_size() * rows_heads * head_dim,
              attention_delta_run(dev, delta, out, dout, rows_heads, head_dim));
}

/* Gradients of one block, P recomputed from the final lse of all blocks: dq (Tq, B, heads, head_dim)
   =, or += where `merge`, dkv (Tk, B, 2, kv_heads, head_dim) =, both accum; dout (Tq, B, heads,
   head_dim), lse and delta (Tq, B, heads).
   dq_rounded, dkv_rounded: NULL, or where the result goes in real, instead of to dq (where it is summed all the same)
   and to dkv (which may be NULL then). Where real is accum, they are those buffers themselves. */
static inline void attention_backward(Device *dev, accum *dq, real *dq_rounded, accum *dkv, real *dkv_rounded,
                                      const real *q, const real *kv, const real *dout, const accum *lse,
                                      const accum *delta, AttentionCall c) {
    AttentionWork w = attention_work(&c);
    double HS = (double)c.shape.head_dim, of_kv = dkv_rounded ? real_size() : accum_size();
    double of_q = (dq_rounded ? real_size() : accum_size()) + (c.merge ? accum_size() : 0);
    OPERATION(dev, OP_ATTENTION, 10 * w.pairs * HS,
              HS * (real_size() * (2 * w.queries + w.keys) + of_q * w.queries + of_kv * w.keys),
              attention_backward_run(dev, dq, dq_rounded, dkv, dkv_rounded, q, kv, dout, lse, delta, c));
}

/* ---- MLP --------------------------------------------------------------------------------------------------------- */

/* out = gelu(pre), tanh form: x/2 (1 + tanh(sqrt(2/pi)(x + 0.044715 x^3))); n elements. Hendrycks,
   Gimpel 2016, arXiv:1606.08415 */
static inline void gelu_forward(Device *dev, real *out, const real *pre, i64 n) {
    OPERATION(dev, OP_POINTWISE, 8.0 * n, 2.0 * real_size() * n, gelu_forward_run(dev, out, pre, n));
}

/* act holds the gradient of gelu(pre) and becomes gelu(pre) again, which the weights behind it need and nobody has
   kept; dpre is the gradient of pre. Nothing aliases. */
static inline void gelu_backward(Device *dev, real *dpre, real *act, const real *pre, i64 n) {
    OPERATION(dev, OP_POINTWISE, 14.0 * n, 4.0 * real_size() * n, gelu_backward_run(dev, dpre, act, pre, n));
}

/* out (rows, I) = silu(gate) up, pre (rows, 2, I) holds gate then up. Shazeer 2020, arXiv:2002.05202 */
static inline void swiglu_forward(Device *dev, real *out, const real *pre, i64 rows, i64 I) {
    OPERATION(dev, OP_POINTWISE, 5.0 * rows * I, 3.0 * real_size() * rows * I,
              swiglu_forward_run(dev, out, pre, rows, I));
}

/* The same for SwiGLU: act (rows, I) holds its gradient and becomes itself again; dpre
   (rows, 2, I) from that and pre */
static inline void swiglu_backward(Device *dev, real *dpre, real *act, const real *pre, i64 rows, i64 I) {
    OPERATION(dev, OP_POINTWISE, 12.0 * rows * I, 6.0 * real_size() * rows * I,
              swiglu_backward_run(dev, dpre, act, pre, rows, I));
}

/* ---- loss -------------------------------------------------------------------------------------------------------- */

/* Softmax cross-entropy of rows of logits (rows, V), `ld` elements apart: *loss_sum += sum over rows of
   -log softmax(logits)[target], a double, in row order; when `backward`, logits become dlogits = scale
   (softmax - onehot(target)) in place.
   A negative target is ignored: no loss, dlogits 0. */
static inline void classifier(Device *dev, double *loss_sum, real *logits, i64 ld, const int32_t *targets, accum scale,
                              i64 rows, i64 V, int backward) {
    OPERATION(dev, OP_CLASSIFIER, 5.0 * rows * V, (backward ? 2.0 : 1.0) * real_size() * rows * V,
              classifier_run(dev, loss_sum, logits, ld, targets, scale, rows, V, backward));
}

/* ---- between host and device ------------------------------------------------------------------------------------- */

/* dst (device) = src (host), `bytes` of it, in the order of the operations; src is free on return */
static inline void copy_in(Device *dev, void *dst, const void *src, i64 bytes) {
    OPERATION(dev, OP_POINTWISE, 0, 1.0 * bytes, copy_in_run(dev, dst, src, bytes));
}

/* dst (host) = src (device), after everything before it; in plan mode dst is left as it is */
static inline void copy_out(Device *dev, void *dst, const void *src, i64 bytes) {
    OPERATION(dev, OP_POINTWISE, 0, 1.0 * bytes, copy_out_run(dev, dst, src, bytes));
}

/* ---- flat buffers ------------------------------------------------------------------------------------------------ */

/* dst (n) = 0 */
static inline void zero_fill(Device *dev, void *dst, i64 bytes) {
    OPERATION(dev, OP_POINTWISE, 0, 1.0 * bytes, zero_fill_run(dev, dst, bytes));
}

/* dst (n) = src (n), accum to real; nothing to do where they are one buffer */
static inline void convert(Device *dev, real *dst, const accum *src, i64 n) {
    if ((const void *)dst == (const void *)src) return;
    OPERATION(dev, OP_POINTWISE, 0, 1.0 * (real_size() + accum_size()) * n, convert_run(dev, dst, src, n));
}

/* dst (n) = or += the sum over p of parts (n_parts, stride)[p][0..n), in part order: the
   local half of a reduce-scatter.
   dst and parts share `type` and do not overlap. */
static inline void sum_parts(Device *dev, void *dst, const void *parts, i64 n_parts, i64 stride, i64 n, Dtype type,
                             int add) {
    OPERATION(dev, OP_POINTWISE, 1.0 * n_parts * n, 1.0 * (n_parts + 1) * n * dtype_size(type),
              sum_parts_run(dev, dst, parts, n_parts, stride, n, type, add));
}

/* dst (n) += the sum over p of parts (n_parts, stride)[p][0..n), in part order and in accum: gradients that
   travelled in the compute type */
static inline void add_parts(Device *dev, accum *dst, const real *parts, i64 n_parts, i64 stride, i64 n) {
    OPERATION(dev, OP_POINTWISE, 1.0 * n_parts * n, 1.0 * n_parts * n * real_size() + 2.0 * n * accum_size(),
              add_parts_run(dev, dst, parts, n_parts, stride, n));
}

/* *out += sum of squares of g (n), in double, order fixed by n alone */
static inline void sum_squares(Device *dev, double *out, const accum *g, i64 n) {
    OPERATION(dev, OP_OPTIMIZER, 2.0 * n, 1.0 * accum_size() * n, sum_squares_run(dev, out, g, n));
}

/* AdamW on n elements of this rank's flat shard: g = grad_scale grad; m, v moments; master -= lr (mhat /
   (sqrt(vhat) + eps) + weight_decay master); param = master rounded to real (may be the same buffer). Loshchilov,
   Hutter 2019, arXiv:1711.05101 */
static inline void adamw(Device *dev, real *param, accum *master, accum *m, accum *v, const accum *grad, i64 n,
                         AdamW a) {
    OPERATION(dev, OP_OPTIMIZER, 12.0 * n, (7.0 * accum_size() + real_size()) * n,
              adamw_run(dev, param, master, m, v, grad, n, a));
}

#endif

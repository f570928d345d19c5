/* reference.h - operations of kernels/compute.h in double and in straight loops, for the
   tests of every backend's kernels.

   Arguments stand in compute.h's order, without a device; shapes are those stated there. What an operation adds to
   (weight gradients, dx of a norm) is added to here, too. Gradients are proved by finite differences in test_kernels.c.
   Intervals of visible keys (AttentionCall's lo) are read where they stand: on the host.                             */
#ifndef ODYSSEUS_TEST_REFERENCE_H
#define ODYSSEUS_TEST_REFERENCE_H

#include "../../kernels/device.h"

/* out = inp weight^T + bias (NULL: none) */
static inline void reference_linear(double *out, const double *inp, const double *weight, const double *bias, i64 rows,
                                    i64 IC, i64 OC) {
    for (i64 r = 0; r < rows; r++)
        for (i64 o = 0; o < OC; o++) {
            double sum = 0;
            for (i64 i = 0; i < IC; i++) sum += inp[r * IC + i] * weight[o * IC + i];
            out[r * OC + o] = sum + (bias ? bias[o] : 0);
        }
}

/* dinp += dout weight, dweight += dout^T inp */
static inline void reference_linear_backward(double *dinp, double *dweight, const double *dout, const double *inp,
                                             const double *weight, i64 rows, i64 IC, i64 OC) {
    for (i64 r = 0; r < rows; r++)
        for (i64 o = 0; o < OC; o++)
            for (i64 i = 0; i < IC; i++) {
                dinp[r * IC + i] += dout[r * OC + o] * weight[o * IC + i];
                dweight[o * IC + i] += dout[r * OC + o] * inp[r * IC + i];
            }
}

/* out = wte[token] + wpe[position] (NULL: none); their gradients += dout */
static inline void reference_embedding(double *out, double *dwte, double *dwpe, const double *dout,
                                       const int32_t *tokens, TokenMap map, const double *wte, const double *wpe, i64 B,
                                       i64 C) {
    for (i64 r = 0; r < map.count * B; r++)
        for (i64 c = 0; c < C; c++) {
            i64 w = tokens[r] * C + c, p = token_position(&map, r / B) * C + c;
            out[r * C + c] = wte[w] + (wpe ? wpe[p] : 0);
            dwte[w] += dout[r * C + c];
            if (wpe) dwpe[p] += dout[r * C + c];
        }
}

static inline void reference_norm(NormKind kind, double *out, double *mean, double *rstd, const double *x,
                                  const double *weight, const double *bias, i64 rows, i64 C, double eps) {
    for (i64 r = 0; r < rows; r++) {
        const double *row = x + r * C;
        double m = 0, v = 0;
        for (i64 c = 0; c < C; c++) m += kind == NORM_LAYER ? row[c] / (double)C : 0;
        for (i64 c = 0; c < C; c++) v += (row[c] - m) * (row[c] - m) / (double)C;
        mean[r] = m, rstd[r] = 1 / sqrt(v + eps);
        for (i64 c = 0; c < C; c++) out[r * C + c] = (row[c] - m) * rstd[r] * weight[c] + (bias ? bias[c] : 0);
    }
}

/* dx += for every row, dweight and dbias += over rows w_first .. w_first + w_rows - 1 */
static inline void reference_norm_backward(NormKind kind, double *dx, double *dweight, double *dbias,
                                           const double *dout, const double *mean, const double *rstd, const double *x,
                                           const double *weight, i64 rows, i64 C, i64 w_first, i64 w_rows) {
    for (i64 r = 0; r < rows; r++) {
        const double *row = x + r * C, *d = dout + r * C;
        double of_mean = 0, of_rstd = 0, m = mean[r], s = rstd[r];
        for (i64 c = 0; c < C; c++) {
            of_mean += kind == NORM_LAYER ? d[c] * weight[c] / (double)C : 0;
            of_rstd += d[c] * weight[c] * (row[c] - m) * s / (double)C;
        }
        for (i64 c = 0; c < C; c++) {
            dx[r * C + c] += s * (d[c] * weight[c] - of_mean - (row[c] - m) * s * of_rstd);
            if (r >= w_first && r < w_first + w_rows) dweight[c] += d[c] * (row[c] - m) * s, dbias[c] += d[c];
        }
    }
}

static inline void reference_rope_table(double *table, TokenMap map, const double *inv_freq, double magnitude,
                                        i64 head_dim) {
    i64 half = head_dim / 2;
    for (i64 t = 0; t < map.count; t++)
        for (i64 i = 0; i < half; i++) {
            double angle = (double)token_position(&map, t) * inv_freq[i];
            table[(t * half + i) * 2] = magnitude * cos(angle), table[(t * half + i) * 2 + 1] = magnitude * sin(angle);
        }
}

/* queries_pack and kv_pack, and their transposes: dq, dkv += what of dq_in, dkv_in comes back to where it went from. */
static inline void reference_heads(double *q_out, double *kv_out, double *dq, double *dkv, const double *q,
                                   const double *kv, const double *dq_in, const double *dkv_in, const double *table,
                                   i64 rows, i64 B, i64 heads, i64 kv_heads, i64 HS, i64 parts) {
    i64 half = HS / 2, ql = heads / parts, kl = i64_max(1, kv_heads / parts);
    for (i64 p = 0; p < parts; p++)
        for (i64 r = 0; r < rows; r++)
            for (i64 h = 0; h < ql + 2 * kl; h++) {
                int value = h >= ql + kl;
                i64 kv_head = p * kv_heads / parts + (h - ql) % kl;
                i64 from = (h < ql ? r * heads + p * ql + h : (r * 2 + value) * kv_heads + kv_head) * HS;
                i64 to = (h < ql ? (p * rows + r) * ql + h : ((p * rows + r) * 2 + value) * kl + (h - ql) % kl) * HS;
                const double *x = (h < ql ? q : kv) + from, *dy = (h < ql ? dq_in : dkv_in) + to;
                double *y = (h < ql ? q_out : kv_out) + to, *dx = (h < ql ? dq : dkv) + from;
                for (i64 i = 0; i < HS; i++) {
                    if (value || !table || i >= 2 * half) {
                        y[i] = x[i], dx[i] += dy[i];
                        continue;
                    }
                    double c = table[(r / B * half + i % half) * 2], s = table[(r / B * half + i % half) * 2 + 1];
                    i64 pair = i < half ? i + half : i - half;
                    double sign = i < half ? -1 : 1;
                    y[i] = x[i] * c + sign * x[pair] * s;
                    dx[i] += dy[i] * c, dx[pair] += sign * dy[i] * s;
                }
            }
}

static inline double reference_dot(const double *a, const double *b, i64 n) {
    double sum = 0;
    for (i64 i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Row i of head (b, h) of a call: the scores of all keys, -inf where it does not see them; returns log sum exp. */
static inline double reference_scores(double *score, const double *q, const double *kv, const AttentionCall *c, i64 b,
                                      i64 h, i64 i) {
    const AttentionShape *s = &c->shape;
    i64 HS = s->head_dim, kh = h / (s->heads / s->kv_heads), lo = c->lo ? c->lo[i * s->B + b] : 0;
    double top = -INFINITY, sum = 0;
    for (i64 j = 0; j < s->Tk; j++) {
        i64 p = token_position(&c->kv_map, j);
        score[j] = -INFINITY;
        if (p > token_position(&c->q_map, i) || p < lo) continue;
        score[j] = reference_dot(q + ((i * s->B + b) * s->heads + h) * HS,
                                 kv + ((j * s->B + b) * 2 * s->kv_heads + kh) * HS, HS) /
                   sqrt((double)HS);
        if (score[j] > top) top = score[j];
    }
    if (top == -INFINITY) return -INFINITY;
    for (i64 j = 0; j < s->Tk; j++) sum += exp(score[j] - top);
    return top + log(sum);
}

/* One call that merges with nothing; its lo is read here, on the host. */
static inline void reference_attention(double *out, double *lse, const double *q, const double *kv, AttentionCall c) {
    const AttentionShape s = c.shape;
    i64 HS = s.head_dim;
    double *score = (double *)host_alloc(sizeof(double) * (size_t)i64_max(1, s.Tk));
    for (i64 i = 0; i < s.Tq; i++)
        for (i64 b = 0; b < s.B; b++)
            for (i64 h = 0; h < s.heads; h++) {
                i64 row = (i * s.B + b) * s.heads + h, kh = h / (s.heads / s.kv_heads);
                lse[row] = reference_scores(score, q, kv, &c, b, h, i);
                for (i64 d = 0; d < HS; d++) out[row * HS + d] = 0;
                for (i64 j = 0; j < s.Tk; j++)
                    if (score[j] > -INFINITY)
                        for (i64 d = 0; d < HS; d++)
                            out[row * HS + d] +=
                                exp(score[j] - lse[row]) * kv[(((j * s.B + b) * 2 + 1) * s.kv_heads + kh) * HS + d];
            }
    free(score);
}

/* Its gradients as the chain rule has them: dP = dout V^T, dS = P (dP - sum_j P dP); dq, dkv += */
static inline void reference_attention_backward(double *dq, double *dkv, const double *q, const double *kv,
                                                const double *dout, AttentionCall c) {
    const AttentionShape s = c.shape;
    i64 HS = s.head_dim;
    double *p = (double *)host_alloc(sizeof(double) * (size_t)i64_max(1, 2 * s.Tk)), *dp = p + s.Tk;
    double scale = 1 / sqrt((double)HS);
    for (i64 i = 0; i < s.Tq; i++)
        for (i64 b = 0; b < s.B; b++)
            for (i64 h = 0; h < s.heads; h++) {
                i64 at = ((i * s.B + b) * s.heads + h) * HS, kh = h / (s.heads / s.kv_heads);
                double lse = reference_scores(p, q, kv, &c, b, h, i), mean = 0;
                for (i64 j = 0; j < s.Tk; j++) {
                    i64 k = ((j * s.B + b) * 2 * s.kv_heads + kh) * HS, v = k + s.kv_heads * HS;
                    p[j] = p[j] > -INFINITY ? exp(p[j] - lse) : 0;
                    dp[j] = reference_dot(dout + at, kv + v, HS);
                    mean += p[j] * dp[j];
                }
                for (i64 j = 0; j < s.Tk; j++)
                    for (i64 d = 0; d < HS; d++) {
                        i64 k = ((j * s.B + b) * 2 * s.kv_heads + kh) * HS, v = k + s.kv_heads * HS;
                        double ds = scale * p[j] * (dp[j] - mean);
                        dq[at + d] += ds * kv[k + d];
                        dkv[k + d] += ds * q[at + d];
                        dkv[v + d] += p[j] * dout[at + d];
                    }
            }
    free(p);
}

static inline double reference_gelu(double x) {
    return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static inline double reference_gelu_slope(double x) {
    double u = sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x), t = tanh(u);
    return (1 + t) / 2 + x / 2 * (1 - t * t) * sqrt(2 / acos(-1)) * (1 + 3 * 0.044715 * x * x);
}

static inline void reference_swiglu(double *out, double *dpre, const double *dout, const double *pre, i64 rows, i64 I) {
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < I; i++) {
            double g = pre[r * 2 * I + i], u = pre[(r * 2 + 1) * I + i], d = dout[r * I + i], s = 1 / (1 + exp(-g));
            out[r * I + i] = g * s * u;
            dpre[r * 2 * I + i] = d * u * s * (1 + g * (1 - s));
            dpre[(r * 2 + 1) * I + i] = d * g * s;
        }
}

/* dlogits (rows, V), 0 where the target is ignored; returns the sum of the losses */
static inline double reference_classifier(double *dlogits, const double *logits, const int32_t *targets, double scale,
                                          i64 rows, i64 V) {
    double loss = 0;
    for (i64 r = 0; r < rows; r++) {
        const double *row = logits + r * V;
        double top = -INFINITY, sum = 0;
        for (i64 i = 0; i < V; i++) {
            dlogits[r * V + i] = 0;
            top = row[i] > top ? row[i] : top; /* gcc 12 for aarch64 crashes over fmax here */
        }
        if (targets[r] < 0) continue;
        for (i64 i = 0; i < V; i++) sum += exp(row[i] - top);
        for (i64 i = 0; i < V; i++) dlogits[r * V + i] = scale * (exp(row[i] - top) / sum - (i == targets[r]));
        loss += log(sum) + top - row[targets[r]];
    }
    return loss;
}

static inline void reference_adamw(double *master, double *m, double *v, const double *grad, i64 n, AdamW a) {
    for (i64 i = 0; i < n; i++) {
        double g = a.grad_scale * grad[i];
        m[i] = a.beta1 * m[i] + (1 - a.beta1) * g, v[i] = a.beta2 * v[i] + (1 - a.beta2) * g * g;
        double mhat = m[i] / (1 - pow(a.beta1, (double)a.step)), vhat = v[i] / (1 - pow(a.beta2, (double)a.step));
        master[i] -= a.lr * (mhat / (sqrt(vhat) + a.eps) + a.weight_decay * master[i]);
    }
}

#endif

/* elementary.h - exp and its relatives for vector loops.

   libm's expf is a call, and a loop with a call in it stays scalar. exp_f32 is straight-line code:

     x = n ln2 + r, |r| <= ln2/2     n by rounding x log2(e) with the 1.5 * 2^23 trick, ln2
                                     in two parts so that r is exact
     e^x = 2^n p(r)                  p: Taylor to degree 7 (remainder below 2^-27), Horner with fused multiply-adds

   Below 1.5 ulp from e^-86 to e^88.7; above is +inf, below is 0 (the denormals that a faithful exp
   would give are slower to multiply than they are worth), exp(-inf) = 0, NaN stays NaN. The referee
   takes libm's double exp instead.                                                                                   */
#ifndef ODYSSEUS_CPU_ELEMENTARY_H
#define ODYSSEUS_CPU_ELEMENTARY_H

#include "vector.h"

/* a b + c, fused where the processor can: -std=c11 forbids the compiler to fuse by itself, and fma()
   without hardware is a slow call. */
static inline float fused_f32(float a, float b, float c) {
#ifdef FP_FAST_FMAF
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

static inline double fused_f64(double a, double b, double c) {
#ifdef FP_FAST_FMA
    return fma(a, b, c);
#else
    return a * b + c;
#endif
}

static inline real fused(real a, real b, real c) {
    return sizeof(real) == sizeof(float) ? (real)fused_f32((float)a, (float)b, (float)c)
                                         : (real)fused_f64((double)a, (double)b, (double)c);
}

static inline __attribute__((always_inline)) float exp_f32(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float clamped = x > 89.0f ? 89.0f : x;
    clamped = clamped < -88.0f ? -88.0f : clamped;
    float shifted = fused_f32(clamped, 1.44269504f, magic);
    float n = shifted - magic;
    float r = fused_f32(n, -0.693359375f, clamped);
    r = fused_f32(n, 2.12194440e-4f, r);
    float p = 1.9841270e-4f;
    p = fused_f32(p, r, 1.3888889e-3f);
    p = fused_f32(p, r, 8.3333333e-3f);
    p = fused_f32(p, r, 4.1666667e-2f);
    p = fused_f32(p, r, 1.6666667e-1f);
    p = fused_f32(p, r, 0.5f);
    p = fused_f32(p, r, 1.0f);
    p = fused_f32(p, r, 1.0f);
    uint32_t bits, power; /* unsigned: what a NaN makes of them is thrown away below, but may not be undefined */
    memcpy(&bits, &shifted, sizeof bits);
    power = (bits - 0x4B400000u + 126u) << 23; /* 2^(n-1): n may be 128, which has no float of its own */
    float scale;
    memcpy(&scale, &power, sizeof scale);
    float y = (p + p) * scale;
    y = x < -86.0f ? 0.0f : y;
    y = x > 88.722839f ? (float)INFINITY : y;
    return x != x ? x : y;
}

/* exp_f32 of each place, without what it does at the ends: from 89 on the last step overflows by itself, and at -87 the
   power of two is n = -126, which has become 0. The referee asks libm. */
static inline Vector vector_exp(Vector x) {
#ifdef ODYSSEUS_FP64
    for (int i = 0; i < VECTOR_WIDTH; i++) x[i] = exp(x[i]);
    return x;
#else
    const Vector magic = vector_all(12582912.0f), most = vector_all(89.0f), least = vector_all(-87.0f);
    Vector clamped = vector_pick(x > most, most, x);
    clamped = vector_pick(clamped < least, least, clamped);
    Vector shifted = clamped * 1.44269504f + magic, n = shifted - magic;
    Vector r = n * -0.693359375f + clamped;
    r = n * 2.12194440e-4f + r;
    Vector p = r * 1.9841270e-4f + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (p + p) * (Vector)(((VectorMask)shifted - (0x4B400000 - 126)) << 23);
#endif
}

static inline __attribute__((always_inline)) real real_exp(real x) {
    return sizeof(real) == sizeof(float) ? (real)exp_f32((float)x) : (real)exp((double)x);
}
static inline real real_sqrt(real x) {
    return sizeof(real) == sizeof(float) ? (real)sqrtf((float)x) : (real)sqrt((double)x);
}

/* s = 1/(1 + e^-x) and its complement 1 - s without cancellation. e^-x is kept finite: 80 is far
   past where either is exact. */
static inline __attribute__((always_inline)) real sigmoid_pair(real x, real *complement) {
    real t = -x > (real)80 ? (real)80 : -x;
    real e = real_exp(t), s = (real)1 / ((real)1 + e);
    *complement = e * s;
    return s;
}

#endif

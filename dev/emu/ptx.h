/* ptx.h - the twins of kernels/cuda/ptx.h on the CPU: the same functions, with what each PTX
   instruction means written out.

   Fragments of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), lane l, g = l / 4, t = l % 4:
     A (16 x 16)  register r holds row g + 8 (r % 2), columns 2t + 8 (r / 2) and the next
     B (16 x 8)   register r: column g, rows 2t + 8r and the next
     C (16 x 8)   value i: row g + 8 (i / 2), column 2t + i % 2                                                       */
#ifndef ODYSSEUS_EMU_PTX_H
#define ODYSSEUS_EMU_PTX_H

static inline int thread_anew(void) { return (int)threadIdx.x; }
static inline int block_anew(void) { return (int)blockIdx.x; }
static inline int value_anew(int x) { return x; }

static inline float emu_bf16(unsigned bits) { return __uint_as_float(bits << 16); }

/* ---- sums of tensor cores: d[n] += a[0] b[0][n] + ... + a[15] b[15][n] ----

   As found on an A100 and an H100 (Fasi, Higham, Mikaitis, Pranesh 2021, doi 10.7717/peerj-cs.330; Khattak, Mikaitis
   2025, arXiv:2512.07004): products are exact. Eight of them (H100: 16) and the sum so far are brought to the largest
   of their exponents, a product's being the sum of its factors', and cut off 1 bit (2) below fp32's last. The sum of
   that is exact, and cut off to fp32. */

typedef float EmuFloats __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t EmuInts __attribute__((vector_size(32)));
typedef uint32_t EmuWords __attribute__((vector_size(32)));
typedef double EmuDoubles __attribute__((vector_size(64)));
typedef uint64_t EmuLongs __attribute__((vector_size(64)));

/* The power of two below a number that is not subnormal, infinite or NaN; 0 of 0. */
static inline float emu_power(float x) { return __uint_as_float(__float_as_uint(x) & 0x7f800000u); }

struct EmuColumns { /* of B, 16 of k */
    float value[16 * 256], power[16 * 256];
};
static inline void emu_columns(EmuColumns *b, int n) {
#pragma omp simd
    for (int i = 0; i < 16 * n; i++) b->power[i] = emu_power(b->value[i]);
}

template <int COLUMNS> static inline void emu_tensor_sum(float *d, const float *a, const EmuColumns *b) {
    static const bool hopper = emu_setting("EMU_ARCH", 80) >= 90;
    const int group = hopper ? 16 : 8;
    const uint32_t bits = hopper ? 25 : 24; /* of a term, below the largest exponent */
    float power[16];
    for (int k = 0; k < 16; k++) power[k] = emu_power(a[k]);
    for (int c = 0; c < COLUMNS; c += 8) { /* eight columns side by side */
        EmuFloats sum = *(EmuFloats *)(d + c);
        for (int first = 0; first < 16; first += group) {
            EmuFloats top = (EmuFloats)((EmuWords)sum & 0x7f800000u), plain = sum;
            for (int k = first; k < first + group; k++) {
                EmuFloats t = power[k] * *(const EmuFloats *)(b->power + k * COLUMNS + c);
                top = t > top ? t : top;
                plain += a[k] * *(const EmuFloats *)(b->value + k * COLUMNS + c);
            }
            top = top > 0x1p-90f ? top : 0x1p-90f - (EmuFloats){}; /* below, the scale would be infinite */
            EmuFloats scale = (EmuFloats)((254 + bits) * 0x800000u - (EmuWords)top); /* 2^bits / top */
            /* terms in units of the last bit, at most 2^(bits + 2): eight of them fit into an int */
            EmuWords low = (EmuWords)__builtin_convertvector(sum * scale, EmuInts), high = {};
            for (int k = first; k < first + group; k++) {
                EmuFloats x = a[k] * *(const EmuFloats *)(b->value + k * COLUMNS + c) * scale;
                (k < first + 8 ? low : high) += (EmuWords)__builtin_convertvector(x, EmuInts);
            }
            EmuDoubles all = __builtin_convertvector((EmuInts)low, EmuDoubles);
            all += __builtin_convertvector((EmuInts)high, EmuDoubles);
            EmuFloats unit = (EmuFloats)(254 * 0x800000u - (EmuWords)scale); /* top / 2^bits */
            all *= __builtin_convertvector(unit, EmuDoubles);
            all = (EmuDoubles)((EmuLongs)all & ~(uint64_t)0x1fffffff);
            EmuFloats cut = __builtin_convertvector(all, EmuFloats);
            /* infinities and NaN stay what they are */
            sum = (EmuFloats)((EmuWords)plain & 0x7f800000u) < INFINITY ? cut : plain;
        }
        *(EmuFloats *)(d + c) = sum;
    }
}

struct EmuMma {
    float *d;
    const uint32_t *a, *b;
};
static inline void emu_mma_all(void **arg) {
    float a[16][16], d[16][8];
    EmuColumns b;
    for (int l = 0; l < 32; l++) {
        const EmuMma *m = (const EmuMma *)arg[l];
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++) {
            int row = g + 8 * (r % 2), col = 2 * t + 8 * (r / 2);
            a[row][col] = emu_bf16(m->a[r] & 0xffff), a[row][col + 1] = emu_bf16(m->a[r] >> 16);
        }
        for (int r = 0; r < 2; r++) {
            float *column = b.value + (2 * t + 8 * r) * 8 + g;
            column[0] = emu_bf16(m->b[r] & 0xffff), column[8] = emu_bf16(m->b[r] >> 16);
        }
        for (int i = 0; i < 4; i++) d[g + 8 * (i / 2)][2 * t + i % 2] = m->d[i];
    }
    emu_columns(&b, 8);
    for (int i = 0; i < 16; i++) emu_tensor_sum<8>(d[i], a[i], &b);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) ((EmuMma *)arg[l])->d[i] = d[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
}

static inline void mma_bf16_16816(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_HERE) {
    EmuMma m = {d, a, b};
    emu_warp(&m, emu_mma_all, {file, line});
}

struct EmuLdmatrix {
    uint32_t *r;
    const char *row;
    uintptr_t at; /* where the row came from */
    EmuWhere where;
};
/* Eight rows are read at once if they lie in eight different groups of four banks; if not, the hardware
   takes turns: right, but slow. */
static inline void emu_banks(void **arg, int first) {
    for (int i = first; i < first + 8; i++)
        for (int j = first; j < i; j++) {
            const EmuLdmatrix *a = (EmuLdmatrix *)arg[i], *b = (EmuLdmatrix *)arg[j];
            if (a->at != b->at && a->at / 16 % 8 == b->at / 16 % 8)
                emu_fail("rows of this ldmatrix lie in the same banks of shared memory", a->where);
        }
}
template <bool TRANSPOSED> static inline void emu_ldmatrix_all(void **arg) {
    for (int m = 0; m < 4; m++) {
        uint16_t tile[8][8];
        emu_banks(arg, 8 * m);
        for (int i = 0; i < 8; i++) memcpy(tile[i], ((EmuLdmatrix *)arg[8 * m + i])->row, 16);
        for (int l = 0; l < 32; l++) {
            int i = l / 4, j = 2 * (l % 4);
            unsigned lo = TRANSPOSED ? tile[j][i] : tile[i][j], hi = TRANSPOSED ? tile[j + 1][i] : tile[i][j + 1];
            ((EmuLdmatrix *)arg[l])->r[m] = lo | hi << 16;
        }
    }
}
/* Each lane reads its own row first, so that a sanitizer names the line; then the lanes trade. */
template <bool TRANSPOSED>
static inline __attribute__((always_inline)) void emu_ldmatrix(uint32_t r[4], const void *row, EmuWhere where) {
    if ((uintptr_t)row % 16) emu_fail("ldmatrix reads rows of 16 bytes, aligned to 16", where);
    uint4 mine = *(const uint4 *)row;
    EmuLdmatrix m = {r, (const char *)&mine, (uintptr_t)row, where};
    emu_warp(&m, emu_ldmatrix_all<TRANSPOSED>, where);
}
static inline void ldmatrix_x4(uint32_t r[4], const void *row, EMU_HERE) { emu_ldmatrix<false>(r, row, {file, line}); }
static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, EMU_HERE) {
    emu_ldmatrix<true>(r, row, {file, line});
}

static inline void cp_async_16(void *shared, const void *global, bool valid, EMU_HERE) {
    EmuFiber *f = emu_self();
    const EmuBlock *b = emu_block();
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
        emu_fail("cp.async of 16 bytes, aligned to 16", {file, line});
    if ((char *)shared < b->shared || (char *)shared + 16 > b->shared + b->shared_used)
        emu_fail("cp.async to a place outside shared memory", {file, line});
    *(volatile uint64_t *)shared = ~0ull; /* a red zone says so here */
    memset(shared, 0xff, 16);
    EMU_POISON(shared, 16);
    f->copies.push_back({shared, global, 16, valid ? 16 : 0, f->group, {file, line}});
}
static inline void cp_async_commit(void) { emu_self()->group++; }
/* Land all but the last N groups. */
template <int N> static inline void cp_async_wait(void) {
    EmuFiber *f = emu_self();
    size_t kept = 0;
    for (const EmuCopy &c : f->copies) {
        if (c.group >= f->group - N) {
            f->copies[kept++] = c;
            continue;
        }
        EMU_UNPOISON(c.to, (size_t)c.bytes);
        memset(c.to, 0, (size_t)c.bytes);
        if (c.valid) memcpy(c.to, c.from, (size_t)c.valid);
    }
    f->copies.resize(kept);
}

/* As far from the exact value as the PTX ISA allows, this way or that by the bits of x: ex2.approx by up to 2 ulp,
   lg2.approx by up to 2^-22, of the value or, for x in (0.5, 2), absolutely. Subnormal numbers count as 0. 2^0 is 1 and
   log2 1 is 0, as on every GPU. */
static inline float emu_flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
static inline uint32_t emu_hash(float x) { return __float_as_uint(x) * 0x9e3779b1u >> 16; }
static inline float fast_exp2(float x) {
    float y = exp2f(emu_flushed(x));
    if (!(y >= 0x1p-120f && y < 0x1p127f) || y == 1) return emu_flushed(y);
    return __uint_as_float(__float_as_uint(y) - 2 + emu_hash(x) % 5);
}
static inline float fast_log2(float x) {
    float y = log2f(emu_flushed(x)), off = 0x1p-22f * (float)((int)(emu_hash(x) % 3) - 1);
    return !(fabsf(y) < 200) || y == 0 ? y : x > 0.5f && x < 2 ? y + off : y + y * off;
}

/* A block waits for others through a counter in global memory; see kernels/cuda/ptx.h. */
static inline void counter_wait(const int *counter, int value, EMU_HERE) {
    EmuTurns &turns = emu_turns();
    for (uint64_t looked = 0;; sched_yield()) {
        std::lock_guard<std::mutex> hold(turns.lock);
        if (*counter == value) return;
        if (looked != turns.changes) looked = turns.changes, turns.stuck++;
        if (turns.stuck >= turns.running) emu_fail("a block waits for another that does not come", {file, line});
    }
}
static inline void counter_add(int *counter, int value) {
    EmuTurns &turns = emu_turns();
    std::lock_guard<std::mutex> hold(turns.lock);
    *counter += value;
    turns.changes++, turns.stuck = 0;
}

#endif

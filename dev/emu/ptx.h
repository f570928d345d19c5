/* ptx.h - the twins of kernels/cuda/ptx.h on the CPU: the same functions, with what each PTX instruction means written out.

   Fragments of mma.m16n8k16 (PTX ISA, "Matrix fragments for mma.m16n8k16"), lane l, g = l / 4, t = l % 4:
     A (16 x 16)  register r holds row g + 8 (r % 2), columns 2t + 8 (r / 2) and the next      B (16 x 8)  register r: column g, rows 2t + 8r and the next
     C (16 x 8)   value i: row g + 8 (i / 2), column 2t + i % 2                                                                                     */
#ifndef ODYSSEUS_EMU_PTX_H
#define ODYSSEUS_EMU_PTX_H

static inline int thread_anew(void) { return (int)threadIdx.x; }
static inline int block_anew(void) { return (int)blockIdx.x; }
static inline int value_anew(int x) { return x; }

static inline float emu_bf16(unsigned bits) { return __uint_as_float(bits << 16); }

struct EmuMma {
    float *d;
    const uint32_t *a, *b;
};
static inline void emu_mma_all(void **arg) {
    float a[16][16], b[8][16]; /* b by columns */
    for (int l = 0; l < 32; l++) {
        const EmuMma *m = (const EmuMma *)arg[l];
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++) {
            int row = g + 8 * (r % 2), col = 2 * t + 8 * (r / 2);
            a[row][col] = emu_bf16(m->a[r] & 0xffff), a[row][col + 1] = emu_bf16(m->a[r] >> 16);
        }
        for (int r = 0; r < 2; r++) b[g][2 * t + 8 * r] = emu_bf16(m->b[r] & 0xffff), b[g][2 * t + 8 * r + 1] = emu_bf16(m->b[r] >> 16);
    }
    for (int l = 0; l < 32; l++) {
        EmuMma *m = (EmuMma *)arg[l];
        for (int i = 0; i < 4; i++) {
            const float *row = a[l / 4 + 8 * (i / 2)], *col = b[2 * (l % 4) + i % 2];
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += row[k] * col[k];
            m->d[i] += sum;
        }
    }
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
/* Eight rows are read at once if they lie in eight different groups of four banks; if not, the hardware takes turns: right, but slow. */
static inline void emu_banks(void **arg, int first) {
    for (int i = first; i < first + 8; i++)
        for (int j = first; j < i; j++) {
            const EmuLdmatrix *a = (EmuLdmatrix *)arg[i], *b = (EmuLdmatrix *)arg[j];
            if (a->at != b->at && a->at / 16 % 8 == b->at / 16 % 8) emu_fail("rows of this ldmatrix lie in the same banks of shared memory", a->where);
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
template <bool TRANSPOSED> static inline __attribute__((always_inline)) void emu_ldmatrix(uint32_t r[4], const void *row, EmuWhere where) {
    if ((uintptr_t)row % 16) emu_fail("ldmatrix reads rows of 16 bytes, aligned to 16", where);
    uint4 mine = *(const uint4 *)row;
    EmuLdmatrix m = {r, (const char *)&mine, (uintptr_t)row, where};
    emu_warp(&m, emu_ldmatrix_all<TRANSPOSED>, where);
}
static inline void ldmatrix_x4(uint32_t r[4], const void *row, EMU_HERE) { emu_ldmatrix<false>(r, row, {file, line}); }
static inline void ldmatrix_x4_trans(uint32_t r[4], const void *row, EMU_HERE) { emu_ldmatrix<true>(r, row, {file, line}); }

static inline void cp_async_16(void *shared, const void *global, bool valid, EMU_HERE) {
    EmuFiber *f = emu_self();
    const EmuBlock *b = emu_block();
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16)) emu_fail("cp.async of 16 bytes, aligned to 16", {file, line});
    if ((char *)shared < b->shared || (char *)shared + 16 > b->shared + b->shared_used) emu_fail("cp.async to a place outside shared memory", {file, line});
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

static inline float fast_exp2(float x) { return exp2f(x); }
static inline float fast_log2(float x) { return log2f(x); }

/* A block waits for others through a counter in global memory; see kernels/cuda/ptx.h. */
static inline void counter_wait(const int *counter, int value, EMU_HERE) {
    for (long spins = 0; __atomic_load_n(counter, __ATOMIC_ACQUIRE) != value; spins++) {
        if (spins > 20000000) emu_fail("a block waits for another that does not come", {file, line});
        sched_yield();
    }
}
static inline void counter_add(int *counter, int value) { __atomic_fetch_add(counter, value, __ATOMIC_RELEASE); }

#endif

/* emu.h - a CUDA block on the CPU: the kernels of kernels/cuda run unchanged, thread by thread, and
   what the hardware forgives shows.

   LAUNCH(kernel, grid, block, shared, stream, args...)
      -> a queue per stream (runtime.h): work runs when something waits for it, so a missing event shows as old data
      -> blocks of the grid in an order of the seed's, a few at a time: one on each of the CPU's threads, but no more
         than half of the grid; the threads of a block are fibers of one CPU thread

   fiber      runs until it meets the others: __syncthreads, or a warp operation (shuffle, vote, mma, ldmatrix), where
              the last lane to come computes for all 32
   schedule   the order in which fibers run is a function of a seed (emu_schedule, or EMU_SEED): 0 ascending, 1
              descending, else another permutation every round; a warp runs ahead as far as it can, or (odd seeds beyond
              1) threads take turns. A missing barrier gives other results under another seed
   poison     shared memory starts as 0xff (NaN in bf16 and fp32); what cp.async brings lands only when it is waited for
   reports    a barrier or warp operation that some threads do not reach, with the file:line where each waits; copies
              never waited for; an ldmatrix whose rows share banks
   sanitizer  built with -fsanitize=address,undefined every array of shared memory has red zones around it, a copy under
              way is poisoned until it lands, and a misaligned vector access is an error: out of bounds, too early and
              misaligned come with file:line

   Not modelled: memory order between blocks (they see each other's writes at once) and time. A block may wait only for
   blocks that have started before it; which those are, blockIdx does not tell.                                       */
#ifndef ODYSSEUS_EMU_H
#define ODYSSEUS_EMU_H

#include <math.h>
#include <stdarg.h>
#include <omp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <atomic>
#include <functional>
#include <mutex>
#include <numeric>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define EMU_POISON(p, n) __asan_poison_memory_region((p), (n))
#define EMU_UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define EMU_POISON(p, n) ((void)(p), (void)(n))
#define EMU_UNPOISON(p, n) ((void)(p), (void)(n))
#endif

/* ---- the language ------------------------------------------------------------------------------------------------ */

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define UNROLL
#define UNROLL_BY(n)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

/* ---- fibers ------------------------------------------------------------------------------------------------------ */

struct EmuWhere {
    const char *file;
    int line;
};
/* Written as the last parameter of an operation: the place it was called from. */
#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* The last four: on a phase of an mbarrier, a named barrier, registers, and an asynchronous operation that
   takes its time (ptx_hopper.h). */
enum EmuState : uint8_t { EMU_READY, EMU_BARRIER, EMU_WARP, EMU_DONE, EMU_PHASE, EMU_NAMED, EMU_REGISTERS, EMU_ASLEEP };

/* A copy to shared memory that has not landed. */
struct EmuCopy {
    void *to;
    const void *from;
    /* bytes of shared memory, of which `valid` come from global memory and the rest becomes 0 */
    int bytes, valid, group;
    EmuWhere where;
};

struct EmuFiber {
    void *stack_pointer;
    char *stack;
    EmuState state;
    EmuWhere where; /* where it waits */
    int linear;     /* thread index in the block */
    int waits_for;  /* which mbarrier or named barrier, or how many registers */
    dim3 thread;
    std::vector<EmuCopy> copies;
    int group; /* cp.async groups committed so far */
};

/* A warp operation that some lanes have reached. */
struct EmuWarp {
    unsigned arrived;
    EmuWhere where;
    void *arg[32];
};

struct EmuShared {
    const void *key;
    size_t offset, bytes;
};

/* The block that this CPU thread is running. */
struct EmuBlock {
    const char *kernel;
    dim3 grid, block, index;
    std::vector<EmuFiber> fibers; /* the first `threads` are this block's; more keep their stacks for larger ones */
    int threads;
    std::vector<EmuWarp> warps;
    std::vector<EmuShared> arrays;
    EmuFiber *current;
    void *scheduler;
    const std::function<void()> *body;
    char *shared; /* EMU_SHARED bytes, the same place for every block of this CPU thread */
    size_t shared_used, dynamic_bytes;
    uint64_t random;
    struct EmuAsync *async; /* NULL: no thread has come to an instruction of ptx_hopper.h */
};

/* shared: the most that a block of any GPU may have */
enum { EMU_SHARED = 232448, EMU_STACK = 256 << 10, EMU_REDZONE = 256 };

static inline long emu_setting(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

/* Bytes of shared memory that a block of the host's GPU may have (CUDA C++ Programming Guide, compute capabilities). */
static inline int emu_shared_most(void) {
    static const long arch = emu_setting("EMU_ARCH", 80);
    return arch == 80 || arch == 87 ? 166912 : arch / 10 == 9 || arch / 10 == 10 ? EMU_SHARED : 101376;
}

static inline EmuBlock *&emu_block(void) {
    static thread_local EmuBlock *block = nullptr;
    return block;
}
static inline EmuFiber *emu_self(void) { return emu_block()->current; }

static inline int &emu_seed(void) {
    static int seed = getenv("EMU_SEED") ? atoi(getenv("EMU_SEED")) : 0;
    return seed;
}
/* The order of threads in all launches from now on. */
static inline void emu_schedule(int seed) { emu_seed() = seed; }

[[noreturn]] static inline void emu_fail(const char *what, EmuWhere where) {
    const EmuBlock *b = emu_block();
    fprintf(stderr, "emulator: %s:%d: %s", where.file, where.line, what);
    if (b) fprintf(stderr, " (kernel %s, block %u,%u,%u)", b->kernel, b->index.x, b->index.y, b->index.z);
    fprintf(stderr, "\n");
    fflush(stderr);
    _exit(99);
}

/* emu_switch(save, load): keep what the calling convention asks a function to keep on this stack, its top in *save,
   and go on where the stack `load` was left. EMU_FRAME words lie there, of which EMU_RETURN says where to go on:
   emu_begins makes the first ones. */
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
/* six registers, the return address, and one that keeps the alignment that a call leaves */
enum { EMU_FRAME = 8, EMU_RETURN = 6 };
__asm__(".text\n.weak emu_switch\n.type emu_switch,@function\nemu_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size emu_switch,.-emu_switch\n");
#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)
enum { EMU_FRAME = 20, EMU_RETURN = 11 }; /* x19 to x28, the frame pointer x29, the return address x30, d8 to d15 */
__asm__(".text\n.weak emu_switch\n.type emu_switch,%function\nemu_switch:\n"
        "sub sp,sp,#160\n"
        "stp x19,x20,[sp]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\nstp x27,x28,[sp,#64]\n"
        "stp x29,x30,[sp,#80]\n"
        "stp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
        "mov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
        "ldp x19,x20,[sp]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\nldp x27,x28,[sp,#64]\n"
        "ldp x29,x30,[sp,#80]\n"
        "ldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
        "add sp,sp,#160\nret\n"
        ".size emu_switch,.-emu_switch\n");
#else
#define EMU_UCONTEXT 1
#endif

/* any other processor: the C library's switch, which calls the kernel twice; a stack is known by its context */
#if defined(EMU_UCONTEXT)
#include <ucontext.h>
static inline void emu_switch(void **save, void *load) {
    ucontext_t here;
    *save = &here;
    swapcontext(&here, (ucontext_t *)load);
}
/* What emu_switch loads to begin `entry` on the stack from `bottom` to `top` (a multiple of 16). */
static inline void *emu_begins(void (*entry)(void), char *bottom, uintptr_t top) {
    ucontext_t *c = (ucontext_t *)(top - ((sizeof *c + 15) & ~(size_t)15));
    getcontext(c);
    c->uc_stack.ss_sp = bottom, c->uc_stack.ss_size = (size_t)((char *)c - bottom), c->uc_link = nullptr;
    makecontext(c, entry, 0);
    return c;
}
#else
extern "C" void emu_switch(void **save, void *load);
static inline void *emu_begins(void (*entry)(void), char *bottom, uintptr_t top) {
    (void)bottom;
    void **frame = (void **)top - EMU_FRAME;
    for (int i = 0; i < EMU_FRAME; i++) frame[i] = nullptr;
    frame[EMU_RETURN] = (void *)entry;
    return frame;
}
#endif

static inline void emu_yield(EmuState state, EmuWhere where) {
    EmuBlock *b = emu_block();
    EmuFiber *f = b->current;
    f->state = state, f->where = where;
    emu_switch(&f->stack_pointer, b->scheduler);
}

static inline int emu_async_step(EmuBlock *b, int idle);
static inline void emu_async_exit(EmuBlock *b);
static inline void emu_async_end(EmuBlock *b);
static inline void emu_async_stuck(EmuBlock *b);

static inline void emu_entry(void) {
    (*emu_block()->body)();
    EmuFiber *f = emu_self();
    if (emu_block()->async) emu_async_exit(emu_block());
    if (!f->copies.empty()) emu_fail("this cp.async is never waited for", f->copies[0].where);
    emu_yield(EMU_DONE, {"", 0});
    abort();
}

static inline void emu_prepare(EmuFiber *f) {
    if (!f->stack) {
        f->stack = (char *)mmap(nullptr, EMU_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                                -1, 0);
        if (f->stack == MAP_FAILED) emu_fail("no memory for stacks", {__FILE__, __LINE__});
    }
    EMU_UNPOISON(f->stack, EMU_STACK); /* the last block's thread was left inside emu_entry */
    /* tops of stacks a multiple of pages apart would share cache sets */
    uintptr_t top = ((uintptr_t)f->stack + EMU_STACK - 256 - 64 * (uintptr_t)(f->linear % 32)) & ~(uintptr_t)15;
    f->stack_pointer = emu_begins(emu_entry, f->stack, top);
    f->state = EMU_READY, f->group = 0;
    f->copies.clear();
}

static inline uint64_t emu_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return *state = x;
}

/* Let every barrier's waiters go on, if all threads have come to the same one. */
static inline void emu_release_barrier(EmuBlock *b) {
    const EmuFiber *first = nullptr;
    if (b->async) emu_async_stuck(b);
    for (int i = 0; i < b->threads; i++) {
        const EmuFiber &f = b->fibers[(size_t)i];
        if (f.state == EMU_WARP) emu_fail("some lanes of a warp wait here, others went elsewhere", f.where);
        if (f.state == EMU_BARRIER && !first) first = &f;
    }
    for (int i = 0; i < b->threads; i++) {
        const EmuFiber &f = b->fibers[(size_t)i];
        if (f.state == EMU_DONE)
            emu_fail("threads wait at this barrier that others, which have returned, never reach", first->where);
        if (f.where.line != first->where.line || f.where.file != first->where.file) {
            fprintf(stderr, "emulator: thread %d waits at %s:%d\n", f.linear, f.where.file, f.where.line);
            emu_fail("threads of a block wait at different barriers", first->where);
        }
    }
    for (int i = 0; i < b->threads; i++) b->fibers[(size_t)i].state = EMU_READY;
}

/* Let fiber i run to its next wait; returns whether it could. */
static inline int emu_resume(EmuBlock *b, int i) {
    EmuFiber *f = &b->fibers[(size_t)i];
    if (f->state != EMU_READY) return 0;
    b->current = f;
    emu_switch(&b->scheduler, f->stack_pointer);
    return 1;
}

/* One round over the block in `order`. Odd seeds beyond 1 give every thread one turn; the others let a warp run as far
   as it can before the next one: it gets ahead of its block up to the next barrier. */
static inline int emu_round(EmuBlock *b, const std::vector<int> &order, int seed) {
    int n = b->threads, ran = 0, alone = seed < 2 || seed % 2 == 0;
    for (int i = 0; i < n; i++) {
        if (!emu_resume(b, order[(size_t)i])) continue;
        ran = 1;
        int first = order[(size_t)i] / 32 * 32;
        for (int again = alone; again;) {
            again = 0;
            for (int l = 0; l < 32; l++) again |= emu_resume(b, first + (seed == 1 ? 31 - l : l));
        }
    }
    return ran;
}

static inline void emu_run_block(EmuBlock *b) {
    int n = b->threads, seed = emu_seed(), live = n;
    std::vector<int> order((size_t)n);
    b->random =
        0x9e3779b97f4a7c15ull * (uint64_t)(seed + 1) ^ (b->index.x + 77773ull * b->index.y + 7919ull * b->index.z + 1);
    for (int i = 0; i < n; i++) order[(size_t)i] = seed == 1 ? n - 1 - i : i;
    for (int i = 0; i < n; i++) emu_prepare(&b->fibers[(size_t)i]);
    while (live) {
        if (seed > 1)
            for (int i = n - 1; i > 0; i--)
                std::swap(order[(size_t)i], order[emu_random(&b->random) % (uint64_t)(i + 1)]);
        int ran = emu_round(b, order, seed);
        live = 0;
        for (int i = 0; i < n; i++) live += b->fibers[(size_t)i].state != EMU_DONE;
        if (b->async && live && emu_async_step(b, !ran)) continue;
        if (!ran && live) emu_release_barrier(b);
    }
    if (b->async) emu_async_end(b);
}

/* ---- shared memory ----------------------------------------------------------------------------------------------- */

/* At a multiple of `alignment`, or, of 128, at no multiple of more. */
static inline void *emu_shared_place(size_t bytes, size_t alignment) {
    EmuBlock *b = emu_block();
    size_t at = (b->shared_used + alignment - 1) / alignment * alignment;
    if (alignment == 128 && at % 256 == 0) at += 128;
    size_t zone = EMU_REDZONE;
#if !defined(__SANITIZE_ADDRESS__)
    zone = 0;
#endif
    if (at + bytes + zone > EMU_SHARED + 64 * EMU_REDZONE)
        emu_fail("a block wants more shared memory than there is", {b->kernel, 0});
    b->shared_used = at + bytes + zone;
    EMU_UNPOISON(b->shared + at, bytes);
    memset(b->shared + at, 0xff, bytes);
    EMU_POISON(b->shared + at + bytes, zone);
    return b->shared + at;
}

/* The array that `key` (a place in the source) stands for in this block: the first thread to come makes it. */
static inline void *emu_shared_array(const void *key, size_t bytes, size_t alignment = 128) {
    EmuBlock *b = emu_block();
    for (const EmuShared &a : b->arrays)
        if (a.key == key) return b->shared + a.offset;
    char *p = (char *)emu_shared_place(bytes, alignment);
    b->arrays.push_back({key, (size_t)(p - b->shared), bytes});
    return p;
}

/* Static shared memory, `count` a constant; dynamic shared memory, as many bytes as the launch gave. */
#define SHARED(type, name, count) \
    static const char name##_key = 0; \
    type *name = (type *)emu_shared_array(&name##_key, sizeof(type) * (count))
#define SHARED_DYNAMIC(type, name) SHARED_DYNAMIC_ALIGNED(type, name, 128)
#define SHARED_DYNAMIC_ALIGNED(type, name, alignment) type *name = (type *)emu_shared_dynamic(alignment)
static inline void *emu_shared_dynamic(size_t alignment) {
    EmuBlock *b = emu_block();
    return b->dynamic_bytes ? emu_shared_array(&b->dynamic_bytes, b->dynamic_bytes, alignment) : nullptr;
}

static inline void emu_shared_reset(EmuBlock *b) {
    EMU_POISON(b->shared, EMU_SHARED + 64 * EMU_REDZONE);
    b->arrays.clear();
    b->shared_used = EMU_REDZONE;
    b->async = nullptr;
}

/* ---- what a thread sees ------------------------------------------------------------------------------------------ */

#define threadIdx (emu_self()->thread)
#define blockIdx (emu_block()->index)
#define blockDim (emu_block()->block)
#define gridDim (emu_block()->grid)

static inline void emu_barrier(EMU_HERE) { emu_yield(EMU_BARRIER, {file, line}); }
#define __syncthreads() emu_barrier()

/* Come together with the other lanes at this place; the last one runs all(arg of every lane). */
template <class All> static inline void emu_warp(void *arg, All all, EmuWhere where) {
    EmuBlock *b = emu_block();
    int lane = b->current->linear % 32, base = b->current->linear - lane;
    EmuWarp *w = &b->warps[(size_t)base / 32];
    if (!w->arrived) w->where = where;
    if (w->where.line != where.line || w->where.file != where.file) {
        fprintf(stderr, "emulator: lane %d is at %s:%d\n", lane, where.file, where.line);
        emu_fail("the lanes of a warp are at different operations", w->where);
    }
    w->arg[lane] = arg;
    w->arrived |= 1u << lane;
    if (w->arrived != 0xffffffffu) {
        emu_yield(EMU_WARP, where);
        return;
    }
    w->arrived = 0;
    all(w->arg);
    for (int i = 0; i < 32; i++)
        if (i != lane) b->fibers[(size_t)(base + i)].state = EMU_READY;
}

static inline void emu_full_mask(unsigned mask, EmuWhere where) {
    if (mask != 0xffffffffu) emu_fail("the emulator knows whole warps only: mask 0xffffffff", where);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
    emu_full_mask(mask, {file, line});
    emu_warp(nullptr, [](void **) {}, {file, line});
}

/* Every lane gets the value of lane from(lane). */
template <class T> struct EmuShuffle {
    T in, out;
    int from;
};
template <class T> static inline T emu_shuffle(T value, int from, EmuWhere where) {
    EmuShuffle<T> s = {value, value, from};
    emu_warp(
        &s,
        [](void **a) {
            for (int i = 0; i < 32; i++)
                ((EmuShuffle<T> *)a[i])->out = ((EmuShuffle<T> *)a[((EmuShuffle<T> *)a[i])->from])->in;
        },
        where);
    return s.out;
}
static inline int emu_lane(void) { return emu_self()->linear % 32; }
template <class T> static inline T __shfl_sync(unsigned mask, T v, int from, EMU_HERE) {
    emu_full_mask(mask, {file, line});
    return emu_shuffle(v, from & 31, {file, line});
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int x, EMU_HERE) {
    emu_full_mask(mask, {file, line});
    return emu_shuffle(v, (emu_lane() ^ x) & 31, {file, line});
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, int d, EMU_HERE) {
    emu_full_mask(mask, {file, line});
    return emu_shuffle(v, emu_lane() + d < 32 ? emu_lane() + d : emu_lane(), {file, line});
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, int d, EMU_HERE) {
    emu_full_mask(mask, {file, line});
    return emu_shuffle(v, emu_lane() >= d ? emu_lane() - d : emu_lane(), {file, line});
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE) {
    struct Vote {
        int in;
        unsigned out;
    } v = {predicate, 0};
    emu_full_mask(mask, {file, line});
    emu_warp(&v, [](void **a) {
        unsigned votes = 0;
        for (int i = 0; i < 32; i++) votes |= (((Vote *)a[i])->in ? 1u : 0u) << i;
        for (int i = 0; i < 32; i++) ((Vote *)a[i])->out = votes;
    }, {file, line});
    return v.out;
}
static inline int __any_sync(unsigned mask, int p, EMU_HERE) { return __ballot_sync(mask, p, file, line) != 0; }
static inline int __all_sync(unsigned mask, int p, EMU_HERE) {
    return __ballot_sync(mask, p, file, line) == 0xffffffffu;
}

/* Blocks run on several CPU threads, so these are real ones. */
template <class T> static inline T atomicAdd(T *p, T v) {
    T old, sum;
    __atomic_load(p, &old, __ATOMIC_SEQ_CST);
    do sum = old + v;
    while (!__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}
template <class T> static inline T atomicMax(T *p, T v) {
    T old;
    __atomic_load(p, &old, __ATOMIC_SEQ_CST);
    while (old < v && !__atomic_compare_exchange(p, &old, &v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    return old;
}
static inline void __threadfence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <class T> static inline T __ldg(const T *p) { return *p; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
static inline float __uint_as_float(unsigned i) { float f; memcpy(&f, &i, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned i; memcpy(&i, &f, 4); return i; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf(x) expf(x) /* the C library has a function of this name */
static inline float __fdividef(float a, float b) { return a / b; }
/* sin and cos of pi x: the whole turns are taken off first, which is exact. */
static inline void sincospi(double x, double *s, double *c) {
    double r = x - 2 * rint(x / 2);
    *s = sin(M_PI * r), *c = cos(M_PI * r);
}
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
template <class T> static inline T max(T a, T b) { return a > b ? a : b; }

/* ---- a grid ------------------------------------------------------------------------------------------------------ */

/* A CPU thread's block with its stacks, kept for the next launch. */
static inline EmuBlock *emu_worker(void) {
    static thread_local EmuBlock *mine = nullptr;
    if (!mine) {
        mine = new EmuBlock();
        mine->shared = (char *)aligned_alloc(1024, EMU_SHARED + 64 * EMU_REDZONE);
    }
    return mine;
}

static inline void emu_begin(EmuBlock *b, const char *kernel, dim3 grid, dim3 block, size_t dynamic,
                             const std::function<void()> *body) {
    unsigned n = block.x * block.y * block.z;
    b->kernel = kernel, b->grid = grid, b->block = block, b->dynamic_bytes = dynamic, b->body = body;
    if (b->fibers.size() < n) b->fibers.resize(n);
    b->threads = (int)n;
    b->warps.assign(n / 32, EmuWarp());
    for (unsigned i = 0; i < n; i++) {
        b->fibers[i].linear = (int)i;
        b->fibers[i].thread = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    }
}

/* What the launch gave, the block's static arrays and a KB of the system's must fit into 48 KB, or be asked for; and
   what a block may have, the first two must fit into together. */
static inline void emu_check_asked(const EmuBlock *b, size_t asked, EmuWhere where) {
    size_t all = b->dynamic_bytes;
    for (const EmuShared &a : b->arrays)
        if (a.key != &b->dynamic_bytes) all += a.bytes;
    if (all + 1024 > 48 << 10 && asked < b->dynamic_bytes)
        emu_fail("a launch must ask for more than 48 KB of shared memory", where);
    if (all > (size_t)emu_shared_most())
        emu_fail("static and dynamic shared memory are more than a block of this GPU has", where);
}

/* Blocks that wait for each other through counters in global memory (ptx.h). When all that run have looked in vain
   since a counter last changed, none will ever go on. */
struct EmuTurns {
    std::mutex lock;
    int running, stuck; /* blocks; those that have looked in vain since the last change */
    uint64_t changes;
};
static inline EmuTurns &emu_turns(void) {
    static EmuTurns turns;
    return turns;
}

/* The order in which blocks start: each as far from the last one as the golden ratio takes it,
   the first where the seed says. */
struct EmuOrder {
    uint64_t blocks, step, first;
};
static inline EmuOrder emu_order(uint64_t blocks) {
    uint64_t state = 0x9e3779b97f4a7c15ull * (uint64_t)(emu_seed() + 1);
    EmuOrder o = {blocks, (uint64_t)((double)blocks * 0.6180339887) | 1, emu_random(&state) % blocks};
    while (std::gcd(o.step, blocks) != 1) o.step += 2;
    return o;
}
static inline uint64_t emu_ordered(const EmuOrder &o, uint64_t i) {
    return (uint64_t)(((unsigned __int128)i * o.step + o.first) % o.blocks);
}

/* A test may have some blocks of a grid run and no others; their indices. Empty: all. */
static inline std::vector<uint64_t> &emu_only(void) {
    static std::vector<uint64_t> blocks;
    return blocks;
}

/* Run a grid to its end. `asked`: dynamic shared memory that the kernel was allowed. */
static inline void emu_grid(const char *kernel, dim3 grid, dim3 block, size_t dynamic, size_t asked,
                            const std::function<void()> &body, EmuWhere where) {
    unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || threads % 32 != 0)
        emu_fail("a block must have 32, 64, ... 1024 threads", where);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
        emu_fail("an empty grid, or one of more than 65535 in y or z", where);
    if (dynamic > (size_t)emu_shared_most()) emu_fail("more shared memory than a block of this GPU has", where);
    EmuOrder order = emu_order((uint64_t)grid.x * grid.y * grid.z);
    const std::vector<uint64_t> &only = emu_only();
    uint64_t blocks = only.empty() ? order.blocks : only.size();
    std::atomic<uint64_t> next(0);
    EmuTurns &turns = emu_turns();
#pragma omp parallel
    {
        EmuBlock *b = emu_block() = emu_worker();
        int residents = (int)min((uint64_t)omp_get_num_threads(), (blocks + 1) / 2);
        emu_begin(b, kernel, grid, block, dynamic, &body);
#pragma omp single
        turns.running = residents, turns.stuck = 0, turns.changes++;
        if (omp_get_thread_num() < residents) {
            for (uint64_t turn; (turn = next++) < blocks;) {
                uint64_t i = only.empty() ? emu_ordered(order, turn) : only[turn];
                b->index =
                    dim3((unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y));
                emu_shared_reset(b);
                emu_run_block(b);
                emu_check_asked(b, asked, where);
            }
            std::lock_guard<std::mutex> hold(turns.lock);
            turns.running--;
        }
        emu_block() = nullptr;
    }
}

#include "runtime.h"
#include "ptx.h"
#include "ptx_hopper.h"

#endif

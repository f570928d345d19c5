/* ptx_hopper.h - the twins of kernels/cuda/ptx_hopper.h on the CPU: mbarriers, bulk copies (TMA), wgmma, the
   proxies, registers, named barriers; written from the text of the PTX ISA 9.0 (sections named below) and, for
   tensor maps, of the driver API.

   time       a bulk load lands, and a wgmma ends, as late as it can under schedule 0 (when nothing else can run), at
              once under 1, and whenever the seed says under others; loads land in any order
   loads      until a load has landed, what it will overwrite is poison
   wgmma      a warp issues its own quarter of the product, 16 rows: the warps of a warpgroup go their own ways between
              barriers, and must all issue the same. From the wgmma to the wgmma_wait that covers it the accumulator is
              poison, and neither it nor A's registers nor what it reads of shared memory may be touched
   proxies    what the async proxy sees of shared memory is kept beside it: bulk loads write both, ordinary stores get
              there by proxy_fence. A wgmma or bulk store that would read something else than ordinary loads do is
              reported. A fence publishes whatever has been written by then, by whichever thread: a fence that some
              threads lack shows where those run last (schedules 0, 1)

   Layouts, in bytes, before the swizzle (section "Canonical Layouts"; W: the swizzle's width, 16 for none; rows: along
   M or N):
     K-major     row % 8 * W + row / 8 * stride + 2 k, without swizzle k % 8 * 2 + k / 8 * leading
     MN-major    row % (W / 2) * 2 + row / (W / 2) * leading + k % 8 * W + k / 8 * stride,
                 without swizzle leading and stride change places
   The swizzle exchanges chunks of 16 bytes within lines of 128: address bits 4-6 ^= the low 3, 2, 1 of bits 7-9.     */
#ifndef ODYSSEUS_EMU_PTX_HOPPER_H
#define ODYSSEUS_EMU_PTX_HOPPER_H

typedef struct {
    uint64_t word; /* which of the block's mbarriers it is */
} Mbarrier;
typedef struct alignas(64) {
    uint64_t opaque[16];
} TensorMap;
enum { TENSOR_F32 = 7, TENSOR_BF16 = 9 }; /* as CUtensorMapDataType counts them */

enum { EMU_CHUNK = 16, EMU_CHUNKS = (EMU_SHARED + 64 * EMU_REDZONE) / EMU_CHUNK, EMU_KNOWN = 64 };
#define EMU_MBARRIER_WORD 0x6d62617272000000ull

struct EmuMap {
    uint64_t magic;
    char *address;
    uint64_t dim[5], stride[5]; /* elements, bytes; innermost first */
    uint16_t box[5];
    uint8_t rank, element, swizzle;
};
static_assert(sizeof(EmuMap) <= sizeof(TensorMap), "the encoded map fits");
#define EMU_MAP_MAGIC 0x70616d726f736e65ull

struct EmuPhases { /* an mbarrier */
    const void *at;
    int expected, pending;
    long bytes; /* tx-count */
    unsigned phase;
    /* someone has seen the last phase end; bulk loads in this phase, in the last; its init is fenced */
    bool seen, loads, loaded, fenced;
    int maker;
    EmuWhere where, load;
};

/* A bulk load on its way: of a tensor map's box, or of plain bytes (rank 0). */
struct EmuLoad {
    EmuMap map;
    int c[5], barrier;
    char *to;
    size_t bytes;
    EmuWhere where;
};
/* A bulk store or sum on its way. */
struct EmuStore {
    EmuMap map;
    int c[5], group;
    bool add, read; /* `read`: shared memory has been */
    const char *from;
    std::vector<char> bytes;
    EmuWhere where;
};

struct EmuNamed {
    int threads, arrived;
    unsigned turn;
    uint32_t warps;
    EmuWhere where;
};

/* What the text of a warpgroup's instructions must have in common. */
struct EmuIssued {
    EmuWhere where;
    uint64_t a, b;
    int detail;
};
struct EmuWarpgroup {
    std::vector<EmuIssued> issued;
};

struct EmuOperands { /* of a wgmma in flight */
    uint64_t a, b;
    int n, group, first; /* first: row of A where the warp begins */
    bool a_turned, b_turned;
    const uint32_t *fragment[32]; /* A in registers; NULL: in shared memory */
    uint32_t held[32][4];
    std::vector<uint16_t> bits; /* of A [16][16], then of B [16][n], k first */
    EmuWhere where;
};
struct EmuSum { /* an accumulator in flight */
    float *d[32];
    int n, group;
    std::vector<float> value; /* [16][n] */
    EmuWhere where;
};
struct EmuKnown { /* registers that a wgmma has used, as they were at the last wgmma_fence */
    const uint32_t *at[32];
    int words;
    std::vector<uint32_t> copy;
};
struct EmuTensorWarp {
    size_t issued;
    int group, registers;
    bool fenced, granted;
    std::vector<EmuOperands> operands;
    std::vector<EmuSum> sums;
    std::vector<EmuKnown> known;
    size_t oldest;
};

/* Chunks of 16 bytes of shared memory: nothing known; as a bulk load left it; as it was at the last proxy_fence. */
enum EmuView : uint8_t { EMU_UNSEEN, EMU_LOADED, EMU_FENCED };

struct EmuAsync {
    const char *kernel;
    std::vector<EmuPhases> barriers;
    std::vector<EmuLoad> loads;
    std::vector<std::vector<EmuStore>> stores; /* by thread */
    std::vector<int> groups;                   /* of bulk stores, committed by each thread */
    EmuNamed named[16];
    std::vector<EmuWarpgroup> warpgroups;
    std::vector<EmuTensorWarp> warps;
    long pool; /* registers that nobody has */
    unsigned fences, landed[EMU_CHUNKS];
    EmuView view[EMU_CHUNKS];
    std::vector<int> fenced; /* the chunks that are EMU_FENCED, or were */
    char *seen;              /* what the async proxy sees, as large as b->shared */
};

static inline int emu_arch(void) {
    static const long arch = emu_setting("EMU_ARCH", 80);
    return (int)arch;
}

/* Where in shared memory; ends the run if it is not all there. */
static inline size_t emu_offset(const void *p, size_t bytes, const char *what, EmuWhere where) {
    const EmuBlock *b = emu_block();
    if ((const char *)p < b->shared || (const char *)p + bytes > b->shared + b->shared_used) emu_fail(what, where);
    return (size_t)((const char *)p - b->shared);
}

[[noreturn]] static inline void emu_fail_at(EmuWhere where, const char *format, ...) {
    char what[512];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    emu_fail(what, where);
}

/* The block's asynchronous side; the first to ask sets it up. */
static inline EmuAsync *emu_async(EmuWhere where) {
    static thread_local EmuAsync *mine = nullptr;
    EmuBlock *b = emu_block();
    if (b->async) return b->async;
    if (emu_arch() != 90) emu_fail_at(where, "this instruction needs an sm_90a GPU, and EMU_ARCH is %d", emu_arch());
    if (!mine) mine = new EmuAsync(), mine->seen = (char *)aligned_alloc(1024, EMU_SHARED + 64 * EMU_REDZONE);
    EmuAsync *y = b->async = mine;
    /* what the last block of this kernel fenced, this one will: from the start, each fence
       is then known with all it did */
    std::vector<int> before;
    if (y->kernel == b->kernel) before.swap(y->fenced);
    y->kernel = b->kernel;
    y->fenced.clear();
    memset(y->view, EMU_UNSEEN, sizeof y->view);
    for (int i : before)
        if (y->view[i] == EMU_UNSEEN)
            y->view[i] = EMU_FENCED, y->fenced.push_back(i), memset(y->seen + EMU_CHUNK * i, 0xff, EMU_CHUNK);
    y->barriers.clear(), y->loads.clear();
    y->stores.assign((size_t)b->threads, std::vector<EmuStore>());
    y->groups.assign((size_t)b->threads, 0);
    memset(y->named, 0, sizeof y->named);
    y->warpgroups.assign((size_t)b->threads / 128, EmuWarpgroup());
    y->warps.assign((size_t)b->threads / 32, EmuTensorWarp());
    y->pool = 0, y->fences = 0;
    for (EmuTensorWarp &w : y->warps) w.registers = 65536 / b->threads / 8 * 8 < 256 ? 65536 / b->threads / 8 * 8 : 256;
    return y;
}

/* Does an operation that begins now take its time? */
static inline bool emu_late(EmuBlock *b) {
    return emu_seed() == 0 || (emu_seed() > 1 && emu_random(&b->random) >> 32 & 1);
}

static inline void emu_wake(EmuBlock *b, EmuState state, int what) {
    for (int i = 0; i < b->threads; i++)
        if (b->fibers[(size_t)i].state == state && (what < 0 || b->fibers[(size_t)i].waits_for == what))
            b->fibers[(size_t)i].state = EMU_READY;
}

/* ---- proxies (8.6 Proxies; 9.7.9.25.2 and 9.7.15.4 Async Proxy) -------------------------------------------------- */

/* A copy that no sanitizer looks at: of stacks and shared memory that may be poisoned. */
__attribute__((no_sanitize("address"))) static inline void emu_peek(void *to, const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4)
        *(volatile uint32_t *)((char *)to + i) = *(const volatile uint32_t *)((const char *)from + i);
}

/* Chunk `i` as the async proxy reads it, which must be as everybody else does. */
static inline void emu_async_reads(EmuBlock *b, EmuAsync *y, size_t i, EmuWhere where) {
    const char *now = b->shared + EMU_CHUNK * i;
    char *seen = y->seen + EMU_CHUNK * i;
    if (y->view[i] != EMU_UNSEEN && memcmp(now, seen, EMU_CHUNK) == 0) return;
    for (const EmuLoad &l : y->loads)
        if (now >= l.to && now < l.to + l.bytes)
            emu_fail_at(where, "this reads what the bulk load from line %d still brings", l.where.line);
    /* never met before, or written over since a load: when the fence came relative to the
       store is only known next time */
    if (y->view[i] == EMU_FENCED || y->fences == (y->view[i] == EMU_LOADED ? y->landed[i] : 0))
        emu_fail_at(
            where, "what this reads at byte %zu of shared memory is an ordinary store that no proxy_fence has followed",
            EMU_CHUNK * i);
    y->view[i] = EMU_FENCED;
    y->fenced.push_back((int)i);
    memcpy(seen, now, EMU_CHUNK);
}

static inline void proxy_fence(EMU_HERE) {
    EmuBlock *b = emu_block();
    EmuAsync *y = emu_async({file, line});
    y->fences++;
    for (EmuPhases &m : y->barriers)
        if (m.maker == b->current->linear) m.fenced = true;
    size_t kept = 0;
    for (int i : y->fenced) {
        if (y->view[i] != EMU_FENCED) continue;
        y->fenced[kept++] = i;
        emu_peek(y->seen + EMU_CHUNK * i, b->shared + EMU_CHUNK * i, EMU_CHUNK);
    }
    y->fenced.resize(kept);
}

/* ---- mbarriers (9.7.13.15) --------------------------------------------------------------------------------------- */

static inline int emu_phases(EmuAsync *y, const Mbarrier *m, EmuWhere where) {
    emu_offset(m, sizeof *m, "an mbarrier lies in shared memory", where);
    uint64_t i = m->word ^ EMU_MBARRIER_WORD;
    if (i >= y->barriers.size() || y->barriers[i].at != m)
        emu_fail("this mbarrier was never initialised, or has been written over", where);
    return (int)i;
}

/* "Phase Completion": no arrival pending and no byte. */
static inline void emu_phase_settle(EmuBlock *b, EmuAsync *y, int i) {
    EmuPhases *m = &y->barriers[(size_t)i];
    if (m->pending || m->bytes) return;
    m->phase++, m->pending = m->expected;
    m->loaded = m->loads, m->loads = m->seen = false;
    emu_wake(b, EMU_PHASE, i);
}

static inline void mbarrier_init(Mbarrier *m, int arrivals, EMU_HERE) {
    EmuBlock *b = emu_block();
    EmuAsync *y = emu_async({file, line});
    emu_offset(m, sizeof *m, "an mbarrier lies in shared memory", {file, line});
    if ((uintptr_t)m % 8) emu_fail("an mbarrier is aligned to 8 bytes", {file, line});
    if (arrivals < 1 || arrivals >= 1 << 20) emu_fail("an mbarrier counts 1 to 2^20 - 1 arrivals", {file, line});
    for (const EmuPhases &other : y->barriers)
        if (other.at == m) emu_fail("this is an mbarrier already", {file, line});
    m->word = EMU_MBARRIER_WORD ^ y->barriers.size();
    y->barriers.push_back(
        {m, arrivals, arrivals, 0, 0, false, false, false, false, b->current->linear, {file, line}, {file, line}});
}
static inline void mbarrier_init_fence(EMU_HERE) {
    for (EmuPhases &m : emu_async({file, line})->barriers)
        if (m.maker == emu_self()->linear) m.fenced = true;
}

static inline void emu_arrive(Mbarrier *at, int bytes, EmuWhere where) {
    EmuAsync *y = emu_async(where);
    int i = emu_phases(y, at, where);
    EmuPhases *m = &y->barriers[(size_t)i];
    if (m->phase > 0 && !m->seen)
        emu_fail("an arrival in a phase of this mbarrier before any thread has seen the last one end (\"Phase of the "
                 "mbarrier object\")",
                 where);
    if (m->pending == 0)
        emu_fail_at(where, "more arrivals than the %d of this mbarrier, whose bytes are not there yet", m->expected);
    m->bytes += bytes;
    if (m->bytes >= 1 << 20) emu_fail("an mbarrier counts less than 2^20 bytes", where);
    m->pending--;
    emu_phase_settle(emu_block(), y, i);
}
static inline void mbarrier_arrive(Mbarrier *m, EMU_HERE) { emu_arrive(m, 0, {file, line}); }
static inline void mbarrier_arrive_expect(Mbarrier *m, int bytes, EMU_HERE) {
    if (bytes < 0) emu_fail("a negative number of bytes", {file, line});
    emu_arrive(m, bytes, {file, line});
}

/* Parity is all that a waiting thread knows: one that comes two phases late waits for the next. */
static inline void mbarrier_wait(Mbarrier *at, int parity, EMU_HERE) {
    EmuAsync *y = emu_async({file, line});
    int i = emu_phases(y, at, {file, line});
    if (parity != 0 && parity != 1) emu_fail("a parity is 0 or 1", {file, line});
    while ((int)(y->barriers[(size_t)i].phase & 1) == parity) {
        emu_self()->waits_for = i;
        emu_yield(EMU_PHASE, {file, line});
    }
    if (y->barriers[(size_t)i].phase > 0) y->barriers[(size_t)i].seen = true;
}

/* ---- bulk copies (5.5 Tensors; 9.7.9.25.4 and .5; cuTensorMapEncodeTiled) ---------------------------------------- */

static inline int emu_swizzle_width(int swizzle) {
    return swizzle == 1 ? 128 : swizzle == 2 ? 64 : swizzle == 3 ? 32 : 16;
}
/* Where in shared memory the 16 bytes at `offset` go; `base`: the line of 128 bytes, modulo
   8, where the pattern begins. */
static inline size_t emu_swizzled(size_t offset, int swizzle, unsigned base) {
    static const unsigned mask[4] = {0, 7, 3, 1};
    return offset ^ (((offset >> 7) - base) & mask[swizzle]) << 4;
}

static inline void tensor_map_encode(TensorMap *map, int type, const void *global, int rank, const uint64_t *dims,
                                     const uint64_t *strides, const uint32_t *box, int swizzle, EMU_HERE) {
    EmuMap m;
    EmuWhere here = {file, line};
    memset(&m, 0, sizeof m);
    m.magic = EMU_MAP_MAGIC, m.address = (char *)global, m.rank = (uint8_t)rank, m.swizzle = (uint8_t)swizzle;
    m.element = type == TENSOR_BF16 ? 2 : 4;
    if (type != TENSOR_BF16 && type != TENSOR_F32)
        emu_fail("a tensor map of a type that the emulator does not know", here);
    if ((uintptr_t)map % 64) emu_fail("a tensor map is aligned to 64 bytes", here);
    if (rank < 1 || rank > 5) emu_fail("a tensor has 1 to 5 dimensions", here);
    if ((uintptr_t)global % 16) emu_fail("a tensor's address is a multiple of 16", here);
    if (swizzle < 0 || swizzle > 3) emu_fail("a swizzle of 0 (none), 1 (128 bytes), 2 (64) or 3 (32)", here);
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 1 || dims[i] > (uint64_t)1 << 32)
            emu_fail_at(here, "dimension %d of a tensor map: 1 to 2^32 elements", i);
        if (box[i] < 1 || box[i] > 256) emu_fail_at(here, "dimension %d of a tensor map's box: 1 to 256 elements", i);
        if (i > 0 && (strides[i - 1] % 16 || strides[i - 1] >= (uint64_t)1 << 40))
            emu_fail_at(here, "stride %d of a tensor map: a multiple of 16 bytes below 2^40", i);
        m.dim[i] = dims[i], m.box[i] = (uint16_t)box[i], m.stride[i] = i ? strides[i - 1] : m.element;
    }
    int row = (int)box[0] * m.element;
    if (row % 16) emu_fail("a row of a tensor map's box is a multiple of 16 bytes", here);
    if (swizzle && row > emu_swizzle_width(swizzle))
        emu_fail("a row of a tensor map's box is wider than its swizzle", here);
    if (swizzle && row < emu_swizzle_width(swizzle))
        emu_fail("a row of the box narrower than the swizzle: how it lies in shared memory is not documented", here);
    memset(map, 0, sizeof *map);
    memcpy(map, &m, sizeof m);
}

static inline EmuMap emu_map(const TensorMap *map, int rank, EmuWhere where) {
    EmuMap m;
    memcpy(&m, map, sizeof m);
    if ((uintptr_t)map % 64) emu_fail("a tensor map is aligned to 64 bytes", where);
    if (m.magic != EMU_MAP_MAGIC) emu_fail("this is no tensor map", where);
    if (rank && m.rank != rank) emu_fail_at(where, "a tensor map of %d dimensions, used with %d", m.rank, rank);
    return m;
}
static inline size_t emu_box_bytes(const EmuMap &m) {
    size_t bytes = m.element;
    for (int i = 0; i < m.rank; i++) bytes *= m.box[i];
    return bytes;
}

/* visit(where in the box, where in global memory or NULL) for every element's row of 16 bytes; `first`,
   `count`: of its elements inside. */
template <class Visit> static inline void emu_box(const EmuMap &m, const int *c, Visit visit) {
    int row = m.box[0] * m.element, rows = 1, per = EMU_CHUNK / m.element;
    for (int i = 1; i < m.rank; i++) rows *= m.box[i];
    for (int r = 0; r < rows; r++) {
        char *from = m.address;
        bool inside = true;
        for (int i = 1, rest = r; i < m.rank; rest /= m.box[i], i++) {
            int64_t at = (int64_t)c[i] + rest % m.box[i];
            if (at < 0 || at >= (int64_t)m.dim[i]) inside = false;
            else from += (uint64_t)at * m.stride[i];
        }
        for (int j = 0; j < row / EMU_CHUNK; j++) {
            int64_t x = (int64_t)c[0] + j * per, first = x < 0 ? -x : 0, end = (int64_t)m.dim[0] - x;
            if (end > per) end = per;
            if (!inside || first > end) first = end = 0;
            visit((size_t)(r * row + j * EMU_CHUNK), from + x * m.element, (int)first * m.element,
                  (int)end * m.element);
        }
    }
}

static inline void emu_land(EmuBlock *b, EmuAsync *y, const EmuLoad &l) {
    EMU_UNPOISON(l.to, l.bytes);
    size_t to = (size_t)(l.to - b->shared);
    auto chunk = [&](size_t at, const char *from, int first, int end) {
        char *p = b->shared + emu_swizzled(to + at, l.map.rank ? l.map.swizzle : 0, 0);
        memset(p, 0, EMU_CHUNK);
        if (end > first) memcpy(p + first, from + first, (size_t)(end - first));
    };
    if (l.map.rank) emu_box(l.map, l.c, chunk);
    else
        for (size_t at = 0; at < l.bytes; at += EMU_CHUNK) chunk(at, l.map.address + at, 0, EMU_CHUNK);
    memcpy(y->seen + to, l.to, l.bytes);
    for (size_t i = to / EMU_CHUNK; i < (to + l.bytes) / EMU_CHUNK; i++)
        y->view[i] = EMU_LOADED, y->landed[i] = y->fences;
    EmuPhases *m = &y->barriers[(size_t)l.barrier];
    m->bytes -= (long)l.bytes, m->loads = true, m->load = l.where;
    if (m->bytes <= -(1 << 20)) emu_fail("an mbarrier counts less than 2^20 bytes", l.where);
    emu_phase_settle(b, y, l.barrier);
}

static inline void emu_load(void *shared, const EmuMap &map, const int *c, size_t bytes, Mbarrier *barrier,
                            EmuWhere where) {
    EmuBlock *b = emu_block();
    EmuAsync *y = emu_async(where);
    EmuLoad l = {map, {c[0], c[1], c[2], c[3], c[4]}, emu_phases(y, barrier, where), (char *)shared, bytes, where};
    size_t to = emu_offset(shared, bytes, "a bulk load to a place outside shared memory", where);
    if (to % (map.rank ? 128 : 16))
        emu_fail_at(where, "a bulk load goes to a multiple of %d bytes", map.rank ? 128 : 16);
    if (!y->barriers[(size_t)l.barrier].fenced)
        emu_fail("this mbarrier's initialisation is not fenced: mbarrier_init_fence", where);
    for (const EmuLoad &other : y->loads)
        if (other.to < l.to + bytes && l.to < other.to + other.bytes)
            emu_fail_at(where, "this bulk load goes where the one from line %d is still going", other.where.line);
    for (size_t i = to / EMU_CHUNK; i < (to + bytes) / EMU_CHUNK; i++)
        if (y->view[i] == EMU_FENCED && memcmp(b->shared + EMU_CHUNK * i, y->seen + EMU_CHUNK * i, EMU_CHUNK) != 0)
            emu_fail_at(where,
                        "this bulk load goes over an ordinary store, at byte %zu of shared memory, that no proxy_fence "
                        "has followed",
                        EMU_CHUNK * i);
    if (!emu_late(b)) return emu_land(b, y, l);
    memset(shared, 0xff, bytes);
    memset(y->seen + to, 0xff, bytes);
    /* nobody's until it lands */
    for (size_t i = to / EMU_CHUNK; i < (to + bytes) / EMU_CHUNK; i++) y->view[i] = EMU_UNSEEN;
    EMU_POISON(shared, bytes);
    y->loads.push_back(l);
}

static inline void tma_load_2d(void *shared, const TensorMap *map, Mbarrier *m, int c0, int c1, EMU_HERE) {
    EmuMap k = emu_map(map, 2, {file, line});
    int c[5] = {c0, c1, 0, 0, 0};
    emu_load(shared, k, c, emu_box_bytes(k), m, {file, line});
}
static inline void tma_load_3d(void *shared, const TensorMap *map, Mbarrier *m, int c0, int c1, int c2, EMU_HERE) {
    EmuMap k = emu_map(map, 3, {file, line});
    int c[5] = {c0, c1, c2, 0, 0};
    emu_load(shared, k, c, emu_box_bytes(k), m, {file, line});
}
static inline void tma_load_4d(void *shared, const TensorMap *map, Mbarrier *m, int c0, int c1, int c2, int c3,
                               EMU_HERE) {
    EmuMap k = emu_map(map, 4, {file, line});
    int c[5] = {c0, c1, c2, c3, 0};
    emu_load(shared, k, c, emu_box_bytes(k), m, {file, line});
}
static inline void tma_prefetch_map(const TensorMap *map, EMU_HERE) {
    emu_map(map, 0, {file, line}), emu_async({file, line});
}

static inline EmuMap emu_plain(const void *global, int bytes, int element, EmuWhere where) {
    EmuMap m;
    memset(&m, 0, sizeof m);
    m.address = (char *)global, m.element = (uint8_t)element;
    if ((uintptr_t)global % 16 || bytes % 16 || bytes <= 0)
        emu_fail("a bulk copy of a multiple of 16 bytes from or to a multiple of 16", where);
    return m;
}
static inline void bulk_load(void *shared, const void *global, Mbarrier *m, int bytes, EMU_HERE) {
    static const int none[5] = {0, 0, 0, 0, 0};
    emu_load(shared, emu_plain(global, bytes, 1, {file, line}), none, (size_t)bytes, m, {file, line});
}

/* What a store carries away, in the order of the box; it must be the same when it is read late as it was at once. */
static inline std::vector<char> emu_store_bytes(EmuBlock *b, const EmuMap &m, size_t from, size_t bytes) {
    std::vector<char> out(bytes);
    for (size_t at = 0; at < bytes; at += EMU_CHUNK)
        emu_peek(&out[at], b->shared + emu_swizzled(from + at, m.rank ? m.swizzle : 0, 0), EMU_CHUNK);
    return out;
}
static inline void emu_store_read(EmuBlock *b, EmuStore *s) {
    if (!s->read && emu_store_bytes(b, s->map, (size_t)(s->from - b->shared), s->bytes.size()) != s->bytes)
        emu_fail("what this bulk store reads of shared memory has changed before it was waited for", s->where);
    s->read = true;
}
static inline void emu_store_write(const EmuStore &s) {
    auto chunk = [&](size_t at, char *to, int first, int end) {
        if (!s.add) {
            if (end > first) memcpy(to + first, &s.bytes[at + (size_t)first], (size_t)(end - first));
            return;
        }
        for (int i = first; i < end; i += 4) {
            float value;
            memcpy(&value, &s.bytes[at + (size_t)i], 4);
            atomicAdd((float *)(to + i), value);
        }
    };
    if (s.map.rank) emu_box(s.map, s.c, chunk);
    else
        for (size_t at = 0; at < s.bytes.size(); at += EMU_CHUNK) chunk(at, s.map.address + at, 0, EMU_CHUNK);
}
static inline void emu_store(const EmuMap &map, const int *c, const void *shared, size_t bytes, bool add,
                             EmuWhere where) {
    EmuBlock *b = emu_block();
    EmuAsync *y = emu_async(where);
    size_t from = emu_offset(shared, bytes, "a bulk store from a place outside shared memory", where);
    if (from % (map.rank ? 128 : 16))
        emu_fail_at(where, "a bulk store comes from a multiple of %d bytes", map.rank ? 128 : 16);
    if (add && map.element != 4) emu_fail("the emulator knows bulk sums of fp32 only", where);
    for (int i = 0; i < map.rank; i++)
        if (c[i] < 0) emu_fail("a bulk store from a negative coordinate", where);
    for (size_t i = from / EMU_CHUNK; i < (from + bytes) / EMU_CHUNK; i++) emu_async_reads(b, y, i, where);
    y->stores[(size_t)b->current->linear].push_back({map,
                                                     {c[0], c[1], c[2], c[3], c[4]},
                                                     y->groups[(size_t)b->current->linear],
                                                     add,
                                                     false,
                                                     (const char *)shared,
                                                     emu_store_bytes(b, map, from, bytes),
                                                     where});
}

#define EMU_TMA_STORES(name, add) \
    static inline void name##_2d(const TensorMap *map, const void *shared, int c0, int c1, EMU_HERE) { \
        EmuMap k = emu_map(map, 2, {file, line}); \
        int c[5] = {c0, c1, 0, 0, 0}; \
        emu_store(k, c, shared, emu_box_bytes(k), add, {file, line}); \
    } \
    static inline void name##_3d(const TensorMap *map, const void *shared, int c0, int c1, int c2, EMU_HERE) { \
        EmuMap k = emu_map(map, 3, {file, line}); \
        int c[5] = {c0, c1, c2, 0, 0}; \
        emu_store(k, c, shared, emu_box_bytes(k), add, {file, line}); \
    } \
    static inline void name##_4d(const TensorMap *map, const void *shared, int c0, int c1, int c2, int c3, EMU_HERE) { \
        EmuMap k = emu_map(map, 4, {file, line}); \
        int c[5] = {c0, c1, c2, c3, 0}; \
        emu_store(k, c, shared, emu_box_bytes(k), add, {file, line}); \
    }
EMU_TMA_STORES(tma_store, false)
EMU_TMA_STORES(tma_reduce_add, true)
static inline void bulk_reduce_add(float *global, const float *shared, int bytes, EMU_HERE) {
    static const int none[5] = {0, 0, 0, 0, 0};
    emu_store(emu_plain(global, bytes, 4, {file, line}), none, shared, (size_t)bytes, true, {file, line});
}

static inline void bulk_commit(EMU_HERE) { emu_async({file, line})->groups[(size_t)emu_self()->linear]++; }
/* Wait for all but this thread's last `left` groups: their reads of shared memory, or their writes as well. */
static inline void emu_bulk_wait(int left, bool writes, EmuWhere where) {
    EmuBlock *b = emu_block();
    EmuAsync *y = emu_async(where);
    std::vector<EmuStore> *mine = &y->stores[(size_t)b->current->linear];
    if (!mine->empty() && emu_late(b)) emu_yield(EMU_ASLEEP, where);
    size_t kept = 0;
    for (size_t i = 0; i < mine->size(); i++) {
        EmuStore *s = &(*mine)[i];
        bool done = s->group < y->groups[(size_t)b->current->linear] - left;
        if (done) emu_store_read(b, s);
        if (done && writes) emu_store_write(*s);
        else if (kept++ != i) (*mine)[kept - 1] = std::move(*s);
    }
    mine->resize(kept);
}
template <int N> static inline void bulk_wait(EMU_HERE) { emu_bulk_wait(N, true, {file, line}); }
template <int N> static inline void bulk_wait_read(EMU_HERE) { emu_bulk_wait(N, false, {file, line}); }

/* ---- named barriers (9.7.13.1) and registers (9.7.20.5 setmaxnreg) ----------------------------------------------- */

/* Returns the barrier's turn that this thread's warp has come to. */
static inline unsigned emu_named_arrive(int id, int threads, EmuWhere where) {
    EmuBlock *b = emu_block();
    EmuNamed *n = &emu_async(where)->named[id & 15];
    if (id < 1 || id > 15) emu_fail("named barriers are 1 to 15; 0 is __syncthreads'", where);
    if (threads < 32 || threads % 32 || threads > b->threads)
        emu_fail("a named barrier counts whole warps of the block", where);
    unsigned turn = 0;
    emu_warp(&turn, [&](void **arg) {
        int warp = b->current->linear / 32;
        for (int l = 0; l < 32; l++) *(unsigned *)arg[l] = n->turn;
        if (n->arrived && n->threads != threads)
            emu_fail_at(where, "barrier %d waits for %d threads at line %d, for %d here", id, n->threads, n->where.line,
                        threads);
        if (n->arrived && n->warps >> warp & 1)
            emu_fail_at(where, "a warp comes to barrier %d a second time before the others have come", id);
        n->threads = threads, n->where = where;
        n->warps |= 1u << warp;
        n->arrived += 32;
        if (n->arrived < threads) return;
        n->arrived = 0, n->warps = 0, n->turn++;
        emu_wake(b, EMU_NAMED, id);
    }, where);
    return turn;
}
static inline void named_barrier_arrive(int id, int threads, EMU_HERE) { emu_named_arrive(id, threads, {file, line}); }
static inline void named_barrier_sync(int id, int threads, EMU_HERE) {
    EmuNamed *n = &emu_async({file, line})->named[id & 15];
    unsigned turn = emu_named_arrive(id, threads, {file, line});
    while (n->turn == turn) {
        emu_self()->waits_for = id;
        emu_yield(EMU_NAMED, {file, line});
    }
}

/* All warps of a warpgroup issue the same instructions in the same order (".aligned"). Called
   by the last lane of a warp. */
static inline EmuTensorWarp *emu_issue(EmuIssued now) {
    EmuBlock *b = emu_block();
    int warp = b->current->linear / 32;
    if (warp / 4 >= b->threads / 128) emu_fail("a warpgroup is four warps; this one is not whole", now.where);
    EmuTensorWarp *w = &b->async->warps[(size_t)warp];
    EmuWarpgroup *g = &b->async->warpgroups[(size_t)warp / 4];
    if (w->issued == g->issued.size()) g->issued.push_back(now);
    const EmuIssued &first = g->issued[w->issued++];
    if (first.where.line != now.where.line || first.where.file != now.where.file)
        emu_fail_at(now.where, "another warp of this warpgroup has gone to line %d instead", first.where.line);
    if (first.a != now.a || first.b != now.b || first.detail != now.detail)
        emu_fail("the warps of a warpgroup give different descriptors or flags here", now.where);
    return w;
}

static inline void emu_registers(int n, bool give, EmuWhere where) {
    EmuBlock *b = emu_block();
    EmuAsync *y = emu_async(where);
    EmuTensorWarp *w = &y->warps[(size_t)b->current->linear / 32];
    emu_warp(nullptr, [&](void **) {
        emu_issue({where, (uint64_t)n, give, 0});
        if (n % 8 || n < 24 || n > 256) emu_fail("registers of a thread: 24 to 256, in eights", where);
        if (give ? n > w->registers : n < w->registers)
            emu_fail_at(where, "this warp's threads have %d registers", w->registers);
        w->granted = give;
        if (!give) return;
        y->pool += 32 * (w->registers - n), w->registers = n;
        emu_wake(b, EMU_REGISTERS, -1);
    }, where);
    while (!w->granted) {
        long wanted = 32 * (n - w->registers);
        if (y->pool >= wanted) y->pool -= wanted, w->registers = n, w->granted = true;
        else emu_self()->waits_for = (int)wanted, emu_yield(EMU_REGISTERS, where);
    }
}
template <int N> static inline void registers_give(EMU_HERE) { emu_registers(N, true, {file, line}); }
template <int N> static inline void registers_take(EMU_HERE) { emu_registers(N, false, {file, line}); }

/* ---- wgmma (9.7.15) ---------------------------------------------------------------------------------------------- */

static inline uint64_t emu_descriptor_field(uint64_t bytes) { return (bytes & 0x3ffff) >> 4; }

static inline uint64_t wgmma_descriptor(const void *tile, int leading_bytes, int stride_bytes, int swizzle, EMU_HERE) {
    size_t start = emu_offset(tile, 16, "a matrix descriptor of a place outside shared memory", {file, line});
    if (start % 16 || leading_bytes % 16 || stride_bytes % 16)
        emu_fail("a matrix descriptor counts in 16 bytes", {file, line});
    if (leading_bytes < 0 || stride_bytes < 0 || leading_bytes >= 1 << 18 || stride_bytes >= 1 << 18)
        emu_fail("a matrix descriptor's strides are below 2^18 bytes", {file, line});
    if (swizzle < 0 || swizzle > 3) emu_fail("a swizzle of 0 (none), 1 (128 bytes), 2 (64) or 3 (32)", {file, line});
    return emu_descriptor_field(start) | emu_descriptor_field((uint64_t)leading_bytes) << 16 |
           emu_descriptor_field((uint64_t)stride_bytes) << 32 | (uint64_t)swizzle << 62;
}

/* `rows` rows from `first` of the operand, all 16 of k: out[k][row]. */
static inline void emu_operand(EmuBlock *b, uint64_t descriptor, bool turned, int first, int rows, uint16_t *out,
                               EmuWhere where, bool check) {
    size_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
           stride = (descriptor >> 32 & 0x3fff) << 4;
    unsigned base = descriptor >> 49 & 7;
    int swizzle = (int)(descriptor >> 62), width = emu_swizzle_width(swizzle), span = width / 2;
    if (descriptor & (3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52))
        emu_fail("a matrix descriptor with bits set that mean nothing", where);
    if (swizzle && (start - 128 * base) % (8 * (size_t)width) >= (size_t)width)
        emu_fail_at(where,
                    "a swizzled operand begins in row %zu of the pattern, which starts at a multiple of %d bytes",
                    (start - 128 * base) % (8 * (size_t)width) / (size_t)width, 8 * width);
    for (int i = 0; i < 2 * rows; i++) { /* chunks of eight elements: along k, or along the rows */
        int row = first + (turned ? i % (rows / 8) * 8 : i / 2), k = turned ? i / (rows / 8) : i % 2 * 8;
        size_t at = start;
        if (turned && swizzle)
            at += (size_t)(row % span * 2) + (size_t)(row / span) * leading + (size_t)(k % 8 * width) +
                  (size_t)(k / 8) * stride;
        else if (turned) at += (size_t)(row / 8) * stride + (size_t)(k % 8 * 16) + (size_t)(k / 8) * leading;
        else if (swizzle) at += (size_t)(row % 8 * width) + (size_t)(row / 8) * stride + (size_t)(2 * k);
        else at += (size_t)(row % 8 * 16) + (size_t)(row / 8) * stride + (size_t)(k / 8) * leading;
        at = emu_swizzled(at, swizzle, base);
        if (at + EMU_CHUNK > b->shared_used) emu_fail("a matrix descriptor reaches outside shared memory", where);
        if (check) emu_async_reads(b, b->async, at / EMU_CHUNK, where);
        uint16_t eight[8];
        emu_peek(eight, b->shared + at, EMU_CHUNK);
        for (int j = 0; j < 8; j++) out[turned ? k * rows + row - first + j : (k + j) * rows + row - first] = eight[j];
    }
}

struct EmuWgmma {
    float *d;
    const uint32_t *a;
    uint64_t a_shared, b_shared;
    bool add;
};

/* Row and column, within the warp's 16 rows, of value i of a lane ("Matrix Fragments for wgmma.mma_async.m64nNk16",
   D; A's are mma.m16n8k16's). */
static inline int emu_wgmma_row(int lane, int i) { return lane / 4 + 8 * (i / 2 % 2); }
static inline int emu_wgmma_col(int lane, int i) { return 8 * (i / 4) + lane % 4 * 2 + i % 2; }

/* Registers that a wgmma takes: as they were at the last wgmma_fence, if they have been met before. */
static inline void emu_known(EmuTensorWarp *w, const uint32_t *const at[32], int words, bool wrote, EmuWhere where) {
    EmuKnown *k = nullptr;
    std::vector<uint32_t> now(32 * (size_t)words);
    for (int l = 0; l < 32; l++) emu_peek(&now[(size_t)(l * words)], at[l], 4 * (size_t)words);
    for (EmuKnown &i : w->known)
        if (i.words == words && memcmp(i.at, at, sizeof i.at) == 0) k = &i;
    if (k && !wrote && k->copy != now)
        emu_fail("registers of this wgmma were written after the last wgmma_fence", where);
    if (!k && w->known.size() < EMU_KNOWN) w->known.push_back(EmuKnown()), k = &w->known.back();
    if (!k) k = &w->known[w->oldest++ % EMU_KNOWN];
    memcpy(k->at, at, sizeof k->at);
    k->words = words, k->copy.swap(now);
}

/* The warp's 16 rows of the product, summed into s->value. */
template <int N> static inline void emu_wgmma_sum(EmuSum *s, const EmuOperands &o, bool add) {
    static thread_local EmuColumns columns;
    float a[16][16];
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) a[i][k] = emu_bf16(o.bits[(size_t)(16 * k + i)]);
    if (!add) s->value.assign(16 * (size_t)o.n, 0.0f);
    for (int i = 0; i < 16 * N; i++) columns.value[i] = emu_bf16(o.bits[256 + (size_t)i]);
    emu_columns(&columns, N);
    for (int i = 0; i < 16; i++) emu_tensor_sum<N>(&s->value[(size_t)(i * N)], a[i], &columns);
}

template <int n> static inline void emu_wgmma_all(void **arg, bool a_turned, bool b_turned, EmuWhere where) {
    EmuBlock *b = emu_block();
    const EmuWgmma *first = (const EmuWgmma *)arg[0];
    int warp = b->current->linear / 32;
    for (int l = 0; l < 32; l++) {
        const EmuWgmma *m = (const EmuWgmma *)arg[l];
        if (m->a_shared != first->a_shared || m->b_shared != first->b_shared || m->add != first->add)
            emu_fail("the lanes of a warp give different descriptors or flags here", where);
    }
    EmuTensorWarp *w =
        emu_issue({where, first->a_shared, first->b_shared, n << 3 | a_turned << 2 | b_turned << 1 | first->add});
    if (!w->fenced) emu_fail("no wgmma_fence before the first wgmma of this warpgroup", where);
    EmuOperands o;
    o.a = first->a_shared, o.b = first->b_shared, o.n = n, o.group = w->group, o.first = 16 * (warp % 4);
    o.a_turned = a_turned, o.b_turned = b_turned, o.where = where;
    o.bits.resize(256 + 16 * (size_t)n);
    for (int l = 0; l < 32; l++) o.fragment[l] = ((const EmuWgmma *)arg[l])->a;
    if (first->a) {
        emu_known(w, o.fragment, 4, false, where);
        for (int l = 0; l < 32; l++)
            for (int r = 0; r < 4; r++) {
                int row = l / 4 + 8 * (r % 2), k = l % 4 * 2 + 8 * (r / 2);
                uint32_t pair = o.held[l][r] = o.fragment[l][r];
                o.bits[(size_t)(16 * k + row)] = (uint16_t)pair,
                                         o.bits[(size_t)(16 * (k + 1) + row)] = (uint16_t)(pair >> 16);
            }
    } else emu_operand(b, o.a, a_turned, o.first, 16, &o.bits[0], where, true);
    emu_operand(b, o.b, b_turned, 0, n, &o.bits[256], where, true);

    EmuSum *s = nullptr;
    for (EmuSum &i : w->sums)
        for (int l = 0; l < 32; l++) {
            float *d = ((const EmuWgmma *)arg[l])->d;
            if (i.d[l] == d && i.n == n) s = &i;
            else if (i.d[l] < d + n / 2 && d < i.d[l] + i.n / 2)
                emu_fail("an accumulator in flight, used with another shape", where);
        }
    if (!s) {
        w->sums.push_back(EmuSum());
        s = &w->sums.back();
        s->n = n, s->value.resize(16 * (size_t)n);
        const uint32_t *at[32];
        for (int l = 0; l < 32; l++) s->d[l] = ((const EmuWgmma *)arg[l])->d, at[l] = (const uint32_t *)s->d[l];
        emu_known(w, at, n / 2, false, where);
        for (int l = 0; l < 32; l++) {
            for (int i = 0; i < n / 2; i++)
                s->value[(size_t)(emu_wgmma_row(l, i) * n + emu_wgmma_col(l, i))] = s->d[l][i];
            memset(s->d[l], 0xff, 4 * (size_t)(n / 2));
            EMU_POISON(s->d[l], 4 * (size_t)(n / 2));
        }
    }
    s->group = w->group, s->where = where;
    emu_wgmma_sum<n>(s, o, first->add);
    w->operands.push_back(std::move(o));
}

/* End what was committed before group `end`: nothing that it needed may have changed. */
static inline void emu_wgmma_end(EmuTensorWarp *w, int end) {
    EmuBlock *b = emu_block();
    size_t kept = 0;
    for (size_t i = 0; i < w->operands.size(); i++) {
        EmuOperands *o = &w->operands[i];
        if (o->group >= end) {
            if (kept++ != i) w->operands[kept - 1] = std::move(*o);
            continue;
        }
        std::vector<uint16_t> bits(o->bits);
        if (!o->fragment[0]) emu_operand(b, o->a, o->a_turned, o->first, 16, &bits[0], o->where, false);
        emu_operand(b, o->b, o->b_turned, 0, o->n, &bits[256], o->where, false);
        if (bits != o->bits)
            emu_fail("shared memory that this wgmma reads has changed before it was waited for", o->where);
        for (int l = 0; o->fragment[0] && l < 32; l++) {
            uint32_t now[4];
            emu_peek(now, o->fragment[l], sizeof now);
            if (memcmp(now, o->held[l], sizeof now) != 0)
                emu_fail("registers of A that this wgmma reads have changed before it was waited for", o->where);
        }
    }
    w->operands.resize(kept);
    kept = 0;
    for (size_t i = 0; i < w->sums.size(); i++) {
        EmuSum *s = &w->sums[i];
        if (s->group >= end) {
            if (kept++ != i) w->sums[kept - 1] = std::move(*s);
            continue;
        }
        const uint32_t *at[32];
        for (int l = 0; l < 32; l++) {
            at[l] = (const uint32_t *)s->d[l];
            EMU_UNPOISON(s->d[l], 4 * (size_t)(s->n / 2));
            for (int v = 0; v < s->n / 2; v++) {
                if (__float_as_uint(s->d[l][v]) != 0xffffffffu)
                    emu_fail("the accumulator of this wgmma was written before it was waited for", s->where);
                s->d[l][v] = s->value[(size_t)(emu_wgmma_row(l, v) * s->n + emu_wgmma_col(l, v))];
            }
        }
        emu_known(w, at, s->n / 2, true, s->where);
    }
    w->sums.resize(kept);
}

template <int N, bool A_TURNED, bool B_TURNED>
static inline void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool add, EMU_HERE) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "columns of wgmma: 8 to 256, in eights");
    EmuWgmma m = {d, nullptr, a, b, add};
    EmuWhere where = {file, line};
    emu_async(where);
    emu_warp(&m, [where](void **arg) { emu_wgmma_all<N>(arg, A_TURNED, B_TURNED, where); }, where);
}
template <int N, bool B_TURNED>
static inline void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool add, EMU_HERE) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256, "columns of wgmma: 8 to 256, in eights");
    EmuWgmma m = {d, a, 0, b, add};
    EmuWhere where = {file, line};
    emu_async(where);
    emu_warp(&m, [where](void **arg) { emu_wgmma_all<N>(arg, false, B_TURNED, where); }, where);
}

static inline void wgmma_fence(EMU_HERE) {
    EmuWhere where = {file, line};
    emu_async(where);
    emu_warp(nullptr, [where](void **) {
        EmuTensorWarp *w = emu_issue({where, 0, 0, 0});
        w->fenced = true;
        for (EmuKnown &k : w->known) {
            bool flies = false;
            for (const EmuSum &s : w->sums) flies |= (const void *)s.d[0] == k.at[0];
            for (int l = 0; !flies && l < 32; l++)
                emu_peek(&k.copy[(size_t)(l * k.words)], k.at[l], 4 * (size_t)k.words);
        }
    }, where);
}
static inline void wgmma_commit(EMU_HERE) {
    EmuWhere where = {file, line};
    emu_async(where);
    emu_warp(nullptr, [where](void **) { emu_issue({where, 0, 0, 0})->group++; }, where);
}
template <int N> static inline void wgmma_wait(EMU_HERE) {
    EmuWhere where = {file, line};
    EmuBlock *b = emu_block();
    EmuTensorWarp *w = &emu_async(where)->warps[(size_t)emu_self()->linear / 32];
    if (!w->operands.empty() && w->operands[0].group < w->group - N && emu_late(b)) emu_yield(EMU_ASLEEP, where);
    emu_warp(nullptr, [where, w](void **) {
        emu_issue({where, 0, 0, N});
        emu_wgmma_end(w, w->group - N);
    }, where);
}

/* ---- the block's life -------------------------------------------------------------------------------------------- */

/* Let time pass after a round over the block's threads; `idle`: none could run. Returns whether
   one can now, where none could. */
static inline int emu_async_step(EmuBlock *b, int idle) {
    EmuAsync *y = b->async;
    bool waits = false, sleeps = false;
    if (!idle && emu_seed() < 2) return 0;
    for (int i = 0; i < b->threads; i++)
        waits |= b->fibers[(size_t)i].state == EMU_PHASE, sleeps |= b->fibers[(size_t)i].state == EMU_ASLEEP;
    bool wake = sleeps, land = waits && !y->loads.empty();
    if (!idle)
        wake = sleeps && emu_random(&b->random) % 4 == 0, land = !y->loads.empty() && emu_random(&b->random) % 4 == 0;
    else if (wake && land) wake = emu_seed() == 0 || emu_random(&b->random) >> 32 & 1, land = !wake;
    if (wake) emu_wake(b, EMU_ASLEEP, -1);
    if (land) {
        size_t i = emu_seed() < 2 ? 0 : emu_random(&b->random) % y->loads.size();
        EmuLoad l = y->loads[i];
        y->loads.erase(y->loads.begin() + (long)i);
        emu_land(b, y, l);
    }
    return idle && (wake || land);
}

/* No thread can run: whom does one wait for that never comes? */
static inline void emu_async_stuck(EmuBlock *b) {
    for (int i = 0; i < 2 * b->threads; i++) { /* first who lacks what no thread will bring */
        const EmuFiber &f = b->fibers[(size_t)(i % b->threads)];
        if (f.state == EMU_PHASE) {
            const EmuPhases &m = b->async->barriers[(size_t)f.waits_for];
            if (i < b->threads && m.pending) continue;
            emu_fail_at(f.where,
                        "thread %d waits for ever for phase %u of the mbarrier made at line %d, which misses %d of %d "
                        "arrivals and %ld bytes",
                        f.linear, m.phase, m.where.line, m.pending, m.expected, m.bytes);
        }
        if (f.state == EMU_NAMED && i >= b->threads) {
            const EmuNamed &n = b->async->named[f.waits_for];
            emu_fail_at(f.where, "thread %d waits for ever at named barrier %d, where %d of %d threads have come",
                        f.linear, f.waits_for, n.arrived, n.threads);
        }
        if (f.state == EMU_REGISTERS)
            emu_fail_at(f.where, "thread %d waits for ever for its warp's %d registers, of which %ld have been given",
                        f.linear, f.waits_for, b->async->pool);
    }
}

/* A thread returns. */
static inline void emu_async_exit(EmuBlock *b) {
    EmuTensorWarp *w = &b->async->warps[(size_t)b->current->linear / 32];
    if (!w->operands.empty()) emu_fail("this wgmma is never waited for", w->operands[0].where);
    for (EmuStore &s : b->async->stores[(size_t)b->current->linear]) {
        if (!s.read) emu_fail("this bulk store is never waited for", s.where);
        emu_store_write(s);
    }
    b->async->stores[(size_t)b->current->linear].clear();
}

/* All threads have returned. */
static inline void emu_async_end(EmuBlock *b) {
    EmuAsync *y = b->async;
    if (!y->loads.empty()) emu_fail("this bulk load is never waited for", y->loads[0].where);
    for (const EmuPhases &m : y->barriers)
        if (m.loads || (m.loaded && !m.seen)) emu_fail("this bulk load is never waited for", m.load);
    for (size_t w = 0; w < y->warpgroups.size(); w++)
        for (size_t i = 4 * w; i < 4 * w + 4; i++)
            if (y->warps[i].issued != y->warpgroups[w].issued.size())
                emu_fail("some warps of a warpgroup never come here",
                         y->warpgroups[w].issued[y->warps[i].issued].where);
}

#endif

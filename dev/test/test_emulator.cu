/* test_emulator.cu - the emulator itself: what it must report is planted here, a kernel a
   fault, and each must be reported.

   A fault that ends the program runs in a child; its exit code and the first line it wrote are looked at.            */
#include "../../kernels/cuda/cuda.h"
#include "check.h"
#include <sys/wait.h>

enum { BLOCK = 64, GRID = 3, N = BLOCK * GRID };

/* ---- kernels ----------------------------------------------------------------------------------------------------- */

enum Fault {
    SOUND, NO_BARRIER, RETURNS_EARLY, OTHER_BARRIER, LANE_MISSING, LANE_ELSEWHERE, NEVER_WAITED, READ_EARLY, UNWRITTEN,
    MISALIGNED, SAME_BANKS, OVERRUN
};

/* out[i] = the sum over its warp of in[mirror of i in the block]: through shared memory, filled
   by cp.async, and a shuffle. */
template <Fault FAULT> __global__ void mirror_sum(float *out, const float *in) {
    SHARED(float, s, BLOCK);
    SHARED(bf16, tile, 8 * 8 * 4 + 8);
    int i = threadIdx.x, lane = i % 32;
    if (i < BLOCK / 4) cp_async_16(s + 4 * i, in + blockIdx.x * BLOCK + 4 * i, true);
    cp_async_commit();
    if (FAULT != NEVER_WAITED && FAULT != READ_EARLY) cp_async_wait<0>();
    if (FAULT == RETURNS_EARLY && i == 40) return;
    if (FAULT == OTHER_BARRIER && i >= 32) __syncthreads();
    else if (FAULT != NO_BARRIER) __syncthreads();
    float v = FAULT == UNWRITTEN ? bf16_float(tile[i]) : s[BLOCK - 1 - i + (FAULT == OVERRUN ? 64 : 0)];
    if (FAULT == READ_EARLY) cp_async_wait<0>();
    if (FAULT == MISALIGNED || FAULT == SAME_BANKS) {
        uint32_t r[4];
        ldmatrix_x4(r, tile + (FAULT == MISALIGNED ? 8 * lane + 1 : 32 * (lane % 8)));
        v += (float)r[0];
    }
    if (FAULT == LANE_MISSING && lane == 5) return;
    if (FAULT == LANE_ELSEWHERE && lane == 5) v += __shfl_xor_sync(0xffffffffu, v, 1);
    for (int m = 16; m > 0; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
    out[blockIdx.x * BLOCK + i] = v;
}

__global__ void twice(float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= 2;
}

/* ---- running them ------------------------------------------------------------------------------------------------ */

static float expected(int i) { /* in[i] = i */
    int block = i / BLOCK, warp = i % BLOCK / 32;
    float sum = 0;
    for (int l = 0; l < 32; l++) sum += (float)(block * BLOCK + BLOCK - 1 - (32 * warp + l));
    return sum;
}

/* How many of the outputs are right; -1 if none was written. */
template <Fault FAULT> static int run_mirror(int seed) {
    float *in, *out, host[N];
    cudaStream_t stream;
    emu_schedule(seed);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&in, sizeof host));
    CUDA_CHECK(cudaMalloc((void **)&out, sizeof host));
    for (int i = 0; i < N; i++) host[i] = (float)i;
    CUDA_CHECK(cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice));
    LAUNCH((mirror_sum<FAULT>), dim3(GRID), dim3(BLOCK), 0, stream, out, in);
    CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
    int right = 0;
    for (int i = 0; i < N; i++) right += host[i] == expected(i);
    CUDA_CHECK(cudaFree(in));
    CUDA_CHECK(cudaFree(out));
    CUDA_CHECK(cudaStreamDestroy(stream));
    return right;
}

#include "hopper_emulator.h"

/* Run `body` in a child; its exit code, and what it wrote to stderr first. A result comes back
   as 100 + (all right? 0 : 1). */
template <class Body> static int in_child(Body body, char *said, size_t size) {
    int pipes[2], status = 0;
    if (pipe(pipes) != 0) FAIL(THIS_RANK, "pipe: %s", strerror(errno));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], 2);
        close(pipes[0]), close(pipes[1]);
        _exit(body() == N ? 100 : 101);
    }
    close(pipes[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < size && (n = read(pipes[0], said + used, size - 1 - used)) > 0;) used += (size_t)n;
    said[used] = 0;
    char rest[4096];
    while (read(pipes[0], rest, sizeof rest) > 0) {}
    close(pipes[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The fault must end the program with a line that has `words` and names this file. */
template <Fault FAULT> static void check_reported(const char *name, const char *words) {
    for (int seed = 0; seed < 3; seed++) {
        char said[8192];
        int code = in_child([seed] { return run_mirror<FAULT>(seed); }, said, sizeof said);
        const char *line = strstr(said, words);
        int reported = code != 100 && code != 101 && line && strstr(said, "test_emulator.cu:");
        check(reported, "%s, schedule %d: reported (exit %d: %.*s)", name, seed, code,
              line ? (int)strcspn(line, "\n(") : 0, line ? line : "");
    }
}

/* The fault must give other numbers under at least one of three schedules, or be reported. */
template <Fault FAULT> static void check_shows(const char *name) {
    int caught = 0;
    for (int seed = 0; seed < 3; seed++) {
        char said[8192];
        caught += in_child([seed] { return run_mirror<FAULT>(seed); }, said, sizeof said) != 100;
    }
    check(caught > 0, "%s: caught under %d of 3 schedules", name, caught);
}

/* A launch with `bytes` of dynamic shared memory for which `asked` were allowed, and 64
   floats of static shared memory. */
__global__ void uses_shared(float *out) {
    SHARED(float, fixed, 64);
    SHARED_DYNAMIC(float, given);
    fixed[threadIdx.x] = given[threadIdx.x] = 1;
    out[threadIdx.x] = fixed[threadIdx.x];
}
static int run_shared(size_t bytes, size_t asked) {
    float out[64];
    emu_grid("uses_shared", dim3(1), dim3(64), bytes, asked, [&] { uses_shared(out); }, {__FILE__, __LINE__});
    return N;
}

/* One stream copies x, another overwrites it: with an event it waits for the copy, without it does not. */
static int run_overwriting(int with_event, int streams) {
    float *x, *y, host[N];
    cudaStream_t first, second;
    cudaEvent_t read;
    emu_streams_run(streams);
    CUDA_CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&read, cudaEventDisableTiming));
    CUDA_CHECK(cudaMalloc((void **)&x, sizeof host));
    CUDA_CHECK(cudaMalloc((void **)&y, sizeof host));
    for (int i = 0; i < N; i++) host[i] = (float)i;
    CUDA_CHECK(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaMemcpyAsync(y, x, sizeof host, cudaMemcpyDeviceToDevice, first));
    CUDA_CHECK(cudaEventRecord(read, first));
    if (with_event) CUDA_CHECK(cudaStreamWaitEvent(second, read, 0));
    CUDA_CHECK(cudaMemsetAsync(x, 0, sizeof host, second));
    CUDA_CHECK(cudaStreamSynchronize(first));
    CUDA_CHECK(cudaStreamSynchronize(second));
    int right = 0;
    for (int i = 0; i < N; i++) right += y[i] == (float)i && x[i] == 0;
    return right;
}

/* A host that asks whether a copy is done: again and again, or once, taking any answer for yes. */
static int run_asking(int again) {
    float *x, host[N];
    cudaStream_t stream;
    cudaEvent_t done;
    int right = 0;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    CUDA_CHECK(cudaMalloc((void **)&x, sizeof host));
    for (int round = 0; round < 8; round++) {
        for (int i = 0; i < N; i++) host[i] = (float)(i + round);
        CUDA_CHECK(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, stream));
        CUDA_CHECK(cudaEventRecord(done, stream));
        while ((round % 2 ? cudaStreamQuery(stream) : cudaEventQuery(done)) == cudaErrorNotReady && again) {}
        int all = 1;
        for (int i = 0; i < N; i++) all &= x[i] == (float)(i + round);
        right += all;
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    return right == 8 ? (int)N : 0;
}

/* Each block adds to what the one before it has made, in the order of blockIdx or of tickets. */
template <bool TICKETS> __global__ void one_by_one(float *sum, int *turn, int *tickets) {
    SHARED(int, mine, 1);
    if (threadIdx.x == 0) {
        mine[0] = TICKETS ? atomicAdd(tickets, 1) : (int)blockIdx.x;
        counter_wait(turn, mine[0]);
        sum[0] = 2 * sum[0] + (float)(mine[0] % 2);
        counter_add(turn, 1);
    }
}
template <bool TICKETS> static int run_one_by_one(void) {
    enum { BLOCKS = 20 };
    float *sum, want = 0;
    int *counters;
    CUDA_CHECK(cudaMalloc((void **)&sum, sizeof *sum));
    CUDA_CHECK(cudaMalloc((void **)&counters, 2 * sizeof *counters));
    memset(sum, 0, sizeof *sum), memset(counters, 0, 2 * sizeof *counters);
    LAUNCH(one_by_one<TICKETS>, dim3(BLOCKS), dim3(32), 0, 0, sum, counters, counters + 1);
    CUDA_CHECK(cudaDeviceSynchronize());
    for (int i = 0; i < BLOCKS; i++) want = 2 * want + (float)(i % 2);
    return *sum == want ? (int)N : 0;
}

/* Static and dynamic shared memory of `bytes` in all. */
template <int STATIC> __global__ void shares(float *out) {
    SHARED(char, fixed, STATIC);
    SHARED_DYNAMIC(char, given);
    fixed[threadIdx.x] = given[threadIdx.x] = 1;
    out[threadIdx.x] = (float)(fixed[threadIdx.x] + given[threadIdx.x]);
}
template <int STATIC> static int run_shares(int bytes) {
    float *out;
    CUDA_CHECK(cudaMalloc((void **)&out, BLOCK * sizeof *out));
    LAUNCH(shares<STATIC>, dim3(1), dim3(BLOCK), bytes - STATIC, 0, out);
    CUDA_CHECK(cudaDeviceSynchronize());
    return out[5] == 2 ? (int)N : 0;
}

/* out = c + `times` (at most 8) products of 1 and 2^-`power`, by one mma. */
__global__ void small_products(float *out, float c, int power, int times) {
    float d[4] = {c, c, c, c};
    uint32_t a[4] = {0, 0, 0, 0}, b[2];
    int pair = threadIdx.x % 4; /* this lane has columns 2 pair and 2 pair + 1 of A; those from 8 on are 0 */
    float small = ldexpf(1, -power);
    a[0] = a[1] = bf16x2_round(2 * pair < times ? 1.0f : 0, 2 * pair + 1 < times ? 1.0f : 0);
    b[0] = b[1] = bf16x2_round(small, small);
    mma_bf16_16816(d, a, b);
    if (threadIdx.x == 0) out[0] = d[0];
}
static float small_sum(float c, int power, int times) {
    float *out;
    CUDA_CHECK(cudaMalloc((void **)&out, sizeof *out));
    LAUNCH(small_products, dim3(1), dim3(32), 0, 0, out, c, power, times);
    CUDA_CHECK(cudaDeviceSynchronize());
    return *out;
}

/* What tensor cores cut off: A100's what is below 2^-24 of the largest term, H100's below 2^-25, both of the sum what
   fp32 has no bit for. And how far ex2 and lg2 are off. */
static int rounding_is_right(int arch) {
    int more = arch == 90, wrong = 0, other = 0;
    double exp_off = 0, log_off = 0;
    auto must = [&wrong](int right, const char *what) {
        if (!right) fprintf(stderr, "%s\n", what);
        wrong += !right;
    };
    setenv("EMU_ARCH", more ? "90" : "80", 1);
    must(small_sum(1, 24 + more, 8) == 1 + ldexpf(1, -21 - more),
         "eight products of the last bit that counts are not added to 1");
    must(small_sum(1, 25 + more, 8) == 1, "eight products below the last bit that counts are not cut off from 1");
    must(small_sum(1, 24, 3) == 1 + 0x1p-23f, "a sum is rounded");
    must(small_sum(-1, 24, 1) == -1 + 0x1p-24f, "below zero, a product that counts is not added");
    must(small_sum(-1, 25 + more, 1) == -1, "below zero it is not cut off towards zero");
    must(small_sum(0x1p-130f, 100, 2) == 0x1p-99f, "what is far below 1 is lost");
    must(isnan(small_sum(NAN, 0, 1)) && small_sum(INFINITY, 0, 1) == INFINITY,
         "NaN and infinity do not stay what they are");
    for (int i = -40000; i < 40000; i++) {
        float x = (float)i * 2.9e-3f, y = fast_exp2(x), z = (float)(i + 40001) * 7.3e-4f;
        double power = exp2((double)x), log = log2((double)z);
        exp_off = fmax(exp_off, fabs((double)y - power) / ldexp(1, ilogb(power) - 23));
        log_off = fmax(log_off, fabs((double)fast_log2(z) - log) / (z > 0.5f && z < 2 ? 1 : fabs(log)));
        other += y != exp2f(x);
    }
    must(exp_off > 1.5 && exp_off < 2.6 && other > 40000, "ex2 is not up to 2 ulp off");
    must(log_off > 0.9 * 0x1p-22 && log_off < 1.6 * 0x1p-22, "lg2 is not up to 2^-22 off");
    must(fast_exp2(0) == 1 && fast_exp2(-INFINITY) == 0 && isnan(fast_exp2(NAN)), "ex2 of 0, -inf or NaN");
    must(fast_exp2(-140) == 0, "ex2 gives a subnormal number");
    must(fast_log2(1) == 0 && fast_log2(0) == -INFINITY && fast_log2(INFINITY) == INFINITY, "lg2 of 1, 0 or inf");
    return wrong ? 0 : (int)N;
}

/* The host copies what a kernel makes: its copy waits for no stream that is not blocking. */
static int run_copying(int waits) {
    float *x, host[N];
    cudaStream_t stream;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&x, sizeof host));
    for (int i = 0; i < N; i++) host[i] = (float)i;
    CUDA_CHECK(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    LAUNCH(twice, dim3(GRID), dim3(BLOCK), 0, stream, x, (int)N);
    if (waits) CUDA_CHECK(cudaStreamSynchronize(stream));
    CUDA_CHECK(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost));
    int right = 0;
    for (int i = 0; i < N; i++) right += host[i] == 2.0f * (float)i;
    CUDA_CHECK(cudaDeviceSynchronize());
    return right;
}

/* Work on one stream that needs another's: with the event it is right, without it meets what was there before. */
static int run_streams(int with_event) {
    float *x, *y, host[N];
    cudaStream_t first, second;
    cudaEvent_t done;
    CUDA_CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    CUDA_CHECK(cudaMalloc((void **)&x, sizeof host));
    CUDA_CHECK(cudaMalloc((void **)&y, sizeof host));
    for (int i = 0; i < N; i++) host[i] = (float)i;
    CUDA_CHECK(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    LAUNCH(twice, dim3(GRID), dim3(BLOCK), 0, first, x, (int)N);
    CUDA_CHECK(cudaEventRecord(done, first));
    if (with_event) CUDA_CHECK(cudaStreamWaitEvent(second, done, 0));
    CUDA_CHECK(cudaMemcpyAsync(y, x, sizeof host, cudaMemcpyDeviceToDevice, second));
    CUDA_CHECK(cudaStreamSynchronize(second));
    memcpy(host, y, sizeof host);
    CUDA_CHECK(cudaDeviceSynchronize());
    int right = 0;
    for (int i = 0; i < N; i++) right += host[i] == 2.0f * (float)i;
    return right;
}

/* x = 2 x on one stream, y = x on another, x = 0 on the first: as a graph that is launched twice. What is left out:
   an event between them; or what comes besides: a call that a capture does not permit. */
enum GraphFault {
    GRAPH_SOUND, GRAPH_NO_EVENT, GRAPH_NO_JOIN, GRAPH_WAITS, GRAPH_ASKS, GRAPH_ASKS_EVENT, GRAPH_ALLOCATES,
    GRAPH_OUTSIDE
};
static void graph_fault(GraphFault fault, cudaStream_t first, cudaEvent_t made, cudaEvent_t outside) {
    void *p;
    if (fault == GRAPH_WAITS) cudaStreamSynchronize(first);
    if (fault == GRAPH_ASKS) cudaStreamQuery(first);
    if (fault == GRAPH_ASKS_EVENT) cudaEventQuery(made);
    if (fault == GRAPH_ALLOCATES) cudaMalloc(&p, 4);
    if (fault == GRAPH_OUTSIDE) cudaStreamWaitEvent(first, outside, 0);
}
/* N: the capture ends as it must, and nothing runs before the launches, after each of which all is right. */
static int run_graph(GraphFault fault, int streams, cudaError_t must) {
    float *x, *y, host[N];
    cudaStream_t first, second;
    cudaEvent_t made, read, outside;
    cudaGraph_t graph;
    cudaGraphExec_t run;
    emu_streams_run(streams);
    CUDA_CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&read, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&outside, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventRecord(outside, second));
    CUDA_CHECK(cudaMalloc((void **)&x, sizeof host));
    CUDA_CHECK(cudaMalloc((void **)&y, sizeof host));
    for (int i = 0; i < N; i++) x[i] = (float)i;
    CUDA_CHECK(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    LAUNCH(twice, dim3(GRID), dim3(BLOCK), 0, first, x, (int)N);
    CUDA_CHECK(cudaEventRecord(made, first));
    CUDA_CHECK(cudaStreamWaitEvent(second, made, 0));
    graph_fault(fault, first, made, outside);
    CUDA_CHECK(cudaMemcpyAsync(y, x, sizeof host, cudaMemcpyDeviceToDevice, second));
    CUDA_CHECK(cudaEventRecord(read, second));
    if (fault != GRAPH_NO_EVENT && fault != GRAPH_NO_JOIN) CUDA_CHECK(cudaStreamWaitEvent(first, read, 0));
    CUDA_CHECK(cudaMemsetAsync(x, 0, sizeof host, first));
    if (fault == GRAPH_NO_EVENT) CUDA_CHECK(cudaStreamWaitEvent(first, read, 0));
    if (cudaStreamEndCapture(first, &graph) != must) return 0;
    if (must != cudaSuccess) return N;
    int right = -N;
    for (int i = 0; i < N; i++) right -= x[i] != (float)i;
    CUDA_CHECK(cudaGraphInstantiate(&run, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < N; i++) x[i] = (float)(i + again);
        CUDA_CHECK(cudaGraphLaunch(run, first));
        CUDA_CHECK(cudaStreamSynchronize(first));
        for (int i = 0; i < N; i++) right += x[i] == 0 && y[i] == 2.0f * (float)(i + again);
    }
    CUDA_CHECK(cudaGraphExecDestroy(run));
    return right;
}

static void check_graphs(void) {
    char said[8192];
    int shown = 0;
    for (int mode = 0; mode < 4; mode++) {
        int sound = in_child([mode] { return run_graph(GRAPH_SOUND, mode, cudaSuccess); }, said, sizeof said);
        check(sound == 100, "streams %d: a graph runs when it is launched, each time anew", mode);
        shown += in_child([mode] { return run_graph(GRAPH_NO_EVENT, mode, cudaSuccess); }, said, sizeof said) == 101;
    }
    check(shown > 0, "an event that is missing in a graph shows under %d of 4 orders", shown);
    const struct {
        GraphFault fault;
        cudaError_t error;
        const char *what;
    } refused[] = {{GRAPH_NO_JOIN, cudaErrorStreamCaptureUnjoined, "a stream that is not joined"},
                   {GRAPH_WAITS, cudaErrorStreamCaptureInvalidated, "to wait for a stream"},
                   {GRAPH_ASKS, cudaErrorStreamCaptureInvalidated, "to ask a stream"},
                   {GRAPH_ASKS_EVENT, cudaErrorStreamCaptureInvalidated, "to ask an event"},
                   {GRAPH_ALLOCATES, cudaErrorStreamCaptureInvalidated, "to allocate"},
                   {GRAPH_OUTSIDE, cudaErrorStreamCaptureInvalidated, "an event from outside"}};
    for (const auto &r : refused)
        check(in_child([&r] { return run_graph(r.fault, 0, r.error); }, said, sizeof said) == 100,
              "a capture does not permit: %s", r.what);
}

/* The fault must end the program with a line that has `words`, under at least `schedules` of four. */
#if defined(__SANITIZE_ADDRESS__)
#define TOUCHED_SAYS "use-after-poison"
#else
#define TOUCHED_SAYS "accumulator of this wgmma was written"
#endif
template <HopperFault FAULT> static void check_hopper(const char *name, const char *words, int schedules) {
    int caught = 0;
    char said[8192], first[256] = "";
    for (int seed = 0; seed < 4; seed++) {
        int code = in_child([seed] { return run_pipeline<FAULT>(seed); }, said, sizeof said);
        const char *line = strstr(said, words);
        caught += code != 100 && (!*words || (code != 101 && line));
        if (!*first || line)
            snprintf(first, sizeof first, "schedule %d, exit %d: %.*s", seed, code,
                     (int)strcspn(line ? line : said, "\n("), line ? line : said);
    }
    check(caught >= schedules, "%s: caught under %d of 4 schedules (%s)", name, caught, first);
}

template <int... I> static void check_all_widths(std::integer_sequence<int, I...>) {
    int right = (product_is_right<8 * (I + 1), false, false, false>(1, 1) + ... + 0);
    check(right == (int)sizeof...(I), "wgmma of 8, 16, ... 256 columns: %d of %d right", right, (int)sizeof...(I));
}
template <int N> static void check_layouts(void) {
    static const char *const names[4] = {"none", "128B", "64B", "32B"};
    for (int s = 0; s < 4; s++) {
        check((product_is_right<N, false, false, false>(s, s)), "wgmma of %d columns, K-major, swizzle %s", N,
              names[s]);
        check((product_is_right<N, true, false, false>(s, s == 0 ? 3 : s)),
              "wgmma of %d columns, A M-major, swizzle %s", N, names[s]);
        check((product_is_right<N, false, true, false>(s == 0 ? 3 : s, s)),
              "wgmma of %d columns, B N-major, swizzle %s", N, names[s]);
        check((product_is_right<N, true, true, false>(s, 3 - s)),
              "wgmma of %d columns, both MN-major, swizzle %s and %s", N, names[s], names[3 - s]);
        check((product_is_right<N, false, false, true>(0, s)),
              "wgmma of %d columns, A in registers, B K-major, swizzle %s", N, names[s]);
        check((product_is_right<N, false, true, true>(0, s)),
              "wgmma of %d columns, A in registers, B N-major, swizzle %s", N, names[s]);
    }
}

static void check_boxes(void) {
    static const int inside[4] = {0, 0, 1, 2}, before[4] = {-3, -1, -2, -1}, behind[4] = {21, 2, 4, 4}, outside[4] = {
        40, 0, 0, 0};
    static const int *const at[4] = {inside, before, behind, outside};
    static const char *const names[4] = {"inside", "begins outside", "ends outside", "outside"};
    for (int seed = 0; seed < 3; seed++)
        for (int i = 0; i < 4; i++) {
            emu_schedule(seed);
            int right = box_is_right<2>(1, 64, at[i]) + box_is_right<3>(1, 64, at[i]) + box_is_right<4>(1, 64, at[i]) +
                        box_is_right<3>(2, 32, at[i]) + box_is_right<4>(3, 16, at[i]) + box_is_right<2>(0, 8, at[i]) +
                        box_is_right<4>(0, 24, at[i]);
            check(right == 7,
                  "bulk loads of 2, 3 and 4 dimensions, every swizzle, a box %s, schedule %d: %d of 7 right", names[i],
                  seed, right);
        }
}

static void check_all_hopper(void) {
    char said[8192];
    setenv("EMU_ARCH", "90", 1);
    for (int seed = 0; seed < 12; seed++) {
        int code = in_child([seed] { return run_pipeline<HOPPER_SOUND>(seed); }, said, sizeof said);
        check(code == 100, "a sound pipeline is right under schedule %d (exit %d%s%.200s)", seed, code,
              code == 100 ? "" : ": ", code == 100 ? "" : said);
    }
    check_hopper<NO_PROXY_FENCE>("ordinary stores that no proxy_fence follows", "no proxy_fence has followed", 4);
    check_hopper<ONE_PROXY_FENCE>("a proxy_fence of one thread for the others' stores", "no proxy_fence has followed",
                                  2);
    check_hopper<WRONG_PARITY>("an mbarrier waited for with the wrong parity", "", 3);
    check_hopper<REUSED_EARLY>("a stage given back before wgmma has read it", "has changed before it was waited for",
                               2);
    check_hopper<WRONG_SWIZZLE>("a descriptor with another swizzle than the load's", "", 4);
    check_hopper<NO_WGMMA_WAIT>("a wgmma not waited for", "", 4);
    check_hopper<NO_FIRST_FENCE>("no wgmma_fence at all", "no wgmma_fence before", 4);
    check_hopper<NO_LATER_FENCE>("an accumulator written and used without a wgmma_fence", "after the last wgmma_fence",
                                 4);
    check_hopper<SUM_TOUCHED>("an accumulator written under way", TOUCHED_SAYS, 4);
    check_hopper<FRAGMENT_TOUCHED>("a fragment of A written under way", "registers of A", 4);
    check_hopper<NO_INIT_FENCE>("an mbarrier whose init is not fenced", "not fenced", 4);
    check_hopper<TOO_FEW_BYTES>("an mbarrier that expects too few bytes", "", 4);
    check_hopper<TOO_MANY_BYTES>("an mbarrier that expects too many bytes", "misses 0 of 1 arrivals and 16 bytes", 4);
    check_hopper<WRONG_COUNT>("an mbarrier of one arrival too many", "misses 1 of 129 arrivals", 4);
    check_hopper<ONE_TOO_MANY>("an mbarrier of one arrival too few", "", 4);
    check_hopper<NOT_ENOUGH_REGISTERS>("more registers than were given", "registers", 4);
    check_hopper<OTHER_DESCRIPTOR>("a warp with another descriptor", "different descriptors", 4);
    check_hopper<LOAD_NOT_WAITED>("a bulk load not waited for", "", 4);
    check_hopper<STORE_NOT_WAITED>("a bulk store not waited for", "never waited for", 4);
    check_hopper<STORE_NOT_FENCED>("a bulk store of what is not fenced", "no proxy_fence has followed", 4);
    check_hopper<STORE_REUSED>("a bulk store's memory used again at once", "has changed before it was waited for", 4);
    check_hopper<MISPLACED_PATTERN>("a swizzled tile that begins within the pattern", "begins in row", 4);
    check_boxes(); /* in this process: no child can come after */
    emu_schedule(0);
    check_all_widths(std::make_integer_sequence<int, 32>());
    check_layouts<8>();
    check_layouts<40>();
    check_layouts<128>();
}

#if defined(__SANITIZE_ADDRESS__) /* sees the read of what has not landed first */
#define NEVER_WAITED_SAYS "use-after-poison"
#else
#define NEVER_WAITED_SAYS "never waited for"
#endif

int main(void) {
    char said[8192];
    for (int seed = 0; seed < 8; seed++) {
        int code = in_child([seed] { return run_mirror<SOUND>(seed); }, said, sizeof said);
        check(code == 100, "a sound kernel is right under schedule %d (exit %d%s%.200s)", seed, code,
              code == 100 ? "" : ": ", code == 100 ? "" : said);
    }
    check_shows<NO_BARRIER>("a missing barrier");
    check_shows<UNWRITTEN>("shared memory that nobody wrote");
    check_shows<READ_EARLY>("a copy read before it was waited for");
    check_reported<RETURNS_EARLY>("a barrier that a returned thread never reaches", "barrier");
    check_reported<OTHER_BARRIER>("threads at different barriers", "different barriers");
    check_reported<LANE_MISSING>("a shuffle without one lane", "lanes");
    check_reported<LANE_ELSEWHERE>("lanes at different shuffles", "different operations");
    check_reported<NEVER_WAITED>("a copy never waited for", NEVER_WAITED_SAYS);
    check_reported<MISALIGNED>("a misaligned row of ldmatrix", "aligned");
    check_reported<SAME_BANKS>("rows of ldmatrix in the same banks", "same banks");
#if defined(__SANITIZE_ADDRESS__)
    check_reported<OVERRUN>("an index past the end of shared memory", "use-after-poison");
    check_reported<READ_EARLY>("a copy read before it was waited for", "use-after-poison");
#endif
    const size_t free_bytes = (48 << 10) - 1024 - 256;
    check(in_child([] { return run_shared(free_bytes, 0); }, said, sizeof said) == 100,
          "shared memory of 48 KB, less what is the system's and static: nobody asks");
    check(in_child([] { return run_shared(free_bytes + 16, 0); }, said, sizeof said) == 99 &&
              strstr(said, "must ask for more than 48 KB"),
          "16 bytes more without asking: reported (%.80s)", said);
    check(in_child([] { return run_shared(48 << 10, 48 << 10); }, said, sizeof said) == 100, "with asking it runs");
    check(in_child([] { return run_streams(1); }, said, sizeof said) == 100,
          "a stream that waits for another's event sees its work");
    check(in_child([] { return run_streams(0); }, said, sizeof said) == 101,
          "a stream that forgets to wait sees old data");
    check(in_child([] { return run_copying(1); }, said, sizeof said) == 100,
          "a host that waits for a kernel copies what it made");
    check(in_child([] { return run_copying(0); }, said, sizeof said) == 101,
          "a host that does not wait copies old data");
    int shown = 0;
    for (int mode = 1; mode < 8; mode++) {
        int sound = in_child([mode] { return run_overwriting(1, mode); }, said, sizeof said);
        int faulty = in_child([mode] { return run_overwriting(0, mode); }, said, sizeof said);
        check(sound == 100, "a stream that waits before it overwrites is right, streams %d", mode);
        if (mode == 1) check(faulty == 101, "a stream that overwrites what another still reads shows");
        else shown += faulty == 101;
    }
    check(shown > 0, "a stream that overwrites what another still reads shows with %d of 6 other settings", shown);
    check_graphs();
    check(in_child([] { return run_asking(1); }, said, sizeof said) == 100,
          "a host that asks until the work is done finds it done");
    check(in_child([] { return run_asking(0); }, said, sizeof said) == 101,
          "a host that does not hear 'not ready' is found out");
    check(in_child([] { return run_one_by_one<true>(); }, said, sizeof said) == 100,
          "blocks that take turns by tickets");
    int code = in_child([] { return run_one_by_one<false>(); }, said, sizeof said);
    check(code == 99 && strstr(said, "does not come"), "blocks that take turns by their index are found out (exit %d)",
          code);
    code = in_child([] { return run_shares<4096>(emu_shared_most()); }, said, sizeof said);
    check(code == 100, "all the shared memory that a block may have, static and dynamic");
    code = in_child([] { return run_shares<4096>(emu_shared_most() + 64); }, said, sizeof said);
    check(code == 99 && strstr(said, "more than a block of this GPU has"), "64 bytes more: reported (exit %d)", code);
    for (int arch = 80; arch <= 90; arch += 10) {
        code = in_child([arch] { return rounding_is_right(arch); }, said, sizeof said);
        int length = code == 100 ? 0 : (int)strcspn(said, "\n");
        check(code == 100, "mma, ex2 and lg2 round as sm_%d's do%s%.*s", arch, length ? ": " : "", length, said);
    }
    check_all_hopper();
    return checks_done();
}

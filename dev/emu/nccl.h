/* nccl.h - the part of NCCL that core/transfer_cuda.h uses, on the CPU: calls go into the stream's
   queue and run there, over MPI.

   A queue runs when something waits for it, so a collective that somebody forgot to order behind its inputs
   sends old data. EMU_NCCL makes this rank fail: init (a communicator), call, later (found only by asking),
   hang (transfers that never end).
   A communicator takes EMU_NCCL_MEMORY MB of the GPU when it is first used, and fails where there are not so many.   */
#ifndef ODYSSEUS_EMU_NCCL_H
#define ODYSSEUS_EMU_NCCL_H

#include <mpi.h>

typedef enum { ncclSuccess = 0, ncclUnhandledCudaError = 1, ncclSystemError = 2, ncclInProgress = 7 } ncclResult_t;
typedef enum { ncclInt8 = 0 } ncclDataType_t;
#define NCCL_VERSION(major, minor, patch) ((major) * 10000 + (minor) * 100 + (patch))
#define NCCL_VERSION_CODE NCCL_VERSION(2, 18, 1)
typedef struct {
    int splitShare;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER {0}
typedef struct {
    char internal[128];
} ncclUniqueId;
typedef struct EmuNccl {
    MPI_Comm comm;
    int shares; /* its buffers with communicators split from it */
    int used;
} *ncclComm_t;

static inline const char *ncclGetErrorString(ncclResult_t r) {
    return r == ncclSuccess              ? "no error"
           : r == ncclUnhandledCudaError ? "unhandled cuda error"
                                         : "unhandled system error";
}
static inline bool emu_nccl_fails(const char *where) {
    return getenv("EMU_NCCL") && strcmp(getenv("EMU_NCCL"), where) == 0;
}

/* The ranks that present the same id are the world: the program makes one communicator so,
   and splits the others from it. */
static inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 1, sizeof *id);
    return ncclSuccess;
}
static inline ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                                  ncclConfig_t *config) {
    int ranks, self;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks), MPI_Comm_rank(MPI_COMM_WORLD, &self);
    if (emu_nccl_fails("init") || size != ranks || rank != self || id.internal[0] != 1) return ncclSystemError;
    *out = new EmuNccl{MPI_COMM_NULL, config->splitShare, 0};
    MPI_Comm_dup(MPI_COMM_WORLD, &(*out)->comm);
    return ncclSuccess;
}
/* NCCL reads what the parent was made with, and says nothing: buffers are then not shared. Here it is an error. */
static inline ncclResult_t ncclCommSplit(ncclComm_t c, int color, int key, ncclComm_t *out, ncclConfig_t *config) {
    if (config->splitShare && !c->shares)
        emu_fail("this communicator shall share its parent's buffers, which was made not to", {__FILE__, __LINE__});
    *out = new EmuNccl{MPI_COMM_NULL, config->splitShare, 0};
    MPI_Comm_split(c->comm, color, key, &(*out)->comm);
    return ncclSuccess;
}

static inline ncclResult_t ncclCommDestroy(ncclComm_t c) {
    cudaDeviceSynchronize();
    MPI_Comm_free(&c->comm);
    delete c;
    return ncclSuccess;
}
static inline ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *state) {
    *state = emu_nccl_fails("later") ? ncclSystemError : ncclSuccess;
    return ncclSuccess;
}

/* Connect, with the first use. */
static inline bool emu_nccl_connect(ncclComm_t c) {
    if (!c->used && !emu_take((size_t)emu_setting("EMU_NCCL_MEMORY", 0) * 1000000)) return false;
    return c->used = 1, true;
}

/* NCCL moves anything, but slowly what is not aligned to 16 bytes: here that is an error. */
static inline void emu_nccl_aligned(const void *p) {
    if ((uintptr_t)p % 16) emu_fail("NCCL is fast from and to multiples of 16 bytes only", {__FILE__, __LINE__});
}

static inline ncclResult_t ncclAllGather(const void *part, void *full, size_t count, ncclDataType_t, ncclComm_t c,
                                         cudaStream_t s) {
    MPI_Comm comm = c->comm;
    if (emu_nccl_fails("call")) return ncclSystemError;
    if (!emu_nccl_connect(c)) return ncclUnhandledCudaError;
    if (emu_nccl_fails("hang") || emu_nccl_fails("later")) return emu_hangs() = true, ncclSuccess;
    emu_nccl_aligned(part), emu_nccl_aligned(full);
    emu_enqueue(s, [=] {
        int rank;
        MPI_Comm_rank(comm, &rank);
        const void *send = part == (const char *)full + (size_t)rank * count ? MPI_IN_PLACE : part;
        MPI_Allgather(send, (int)count, MPI_BYTE, full, (int)count, MPI_BYTE, comm);
    });
    return ncclSuccess;
}

/* Sends and receives between GroupStart and GroupEnd are one operation. */
struct EmuNcclOp {
    int send, peer;
    void *at;
    size_t count;
};
struct EmuNcclGroup {
    std::vector<EmuNcclOp> ops;
    ncclComm_t comm;
    cudaStream_t stream;
};
static inline EmuNcclGroup &emu_nccl_group(void) {
    static EmuNcclGroup group;
    return group;
}
static inline ncclResult_t ncclGroupStart(void) { return emu_nccl_group().ops.clear(), ncclSuccess; }
static inline ncclResult_t emu_nccl_add(int send, void *at, size_t count, int peer, ncclComm_t c, cudaStream_t s) {
    EmuNcclGroup &g = emu_nccl_group();
    emu_nccl_aligned(at);
    g.ops.push_back({send, peer, at, count});
    g.comm = c, g.stream = s;
    return ncclSuccess;
}
static inline ncclResult_t ncclSend(const void *p, size_t n, ncclDataType_t, int peer, ncclComm_t c, cudaStream_t s) {
    return emu_nccl_add(1, (void *)p, n, peer, c, s);
}
static inline ncclResult_t ncclRecv(void *p, size_t n, ncclDataType_t, int peer, ncclComm_t c, cudaStream_t s) {
    return emu_nccl_add(0, p, n, peer, c, s);
}
static inline ncclResult_t ncclGroupEnd(void) {
    EmuNcclGroup g = emu_nccl_group();
    if (!emu_nccl_connect(g.comm)) return ncclUnhandledCudaError;
    emu_enqueue(g.stream, [g] {
        std::vector<MPI_Request> requests(g.ops.size());
        for (size_t i = 0; i < g.ops.size(); i++) {
            const EmuNcclOp &o = g.ops[i];
            if (o.send) MPI_Isend(o.at, (int)o.count, MPI_BYTE, o.peer, 0, g.comm->comm, &requests[i]);
            else MPI_Irecv(o.at, (int)o.count, MPI_BYTE, o.peer, 0, g.comm->comm, &requests[i]);
        }
        MPI_Waitall((int)requests.size(), requests.data(), MPI_STATUSES_IGNORE);
    });
    return ncclSuccess;
}

#endif

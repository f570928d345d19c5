/* nccl.h - the part of NCCL that core/comm_cuda.h uses, on the CPU: calls go into the stream's queue and run there, over MPI.

   A queue runs when something waits for it, so a collective that somebody forgot to order behind its inputs sends old data.
   EMU_NCCL makes this rank fail: init (a communicator), call, later (found only by asking), hang (transfers that never end).      */
#ifndef ODYSSEUS_EMU_NCCL_H
#define ODYSSEUS_EMU_NCCL_H

#include <mpi.h>

typedef enum { ncclSuccess = 0, ncclSystemError = 2, ncclInProgress = 7 } ncclResult_t;
typedef enum { ncclInt8 = 0 } ncclDataType_t;
typedef struct {
    char internal[128];
} ncclUniqueId;
typedef struct EmuNccl {
    MPI_Comm comm;
} *ncclComm_t;

static inline const char *ncclGetErrorString(ncclResult_t r) { return r == ncclSuccess ? "no error" : "unhandled system error"; }
static inline bool emu_nccl_fails(const char *where) { return getenv("EMU_NCCL") && strcmp(getenv("EMU_NCCL"), where) == 0; }

/* An id is a number that no other communicator of this job has; the ranks of the group are those that present the same one. */
static inline ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int next = 0;
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%d %d", rank, ++next);
    return ncclSuccess;
}

/* Collective over the ranks with this id alone: they find each other by a tag made of it. */
static inline ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank) {
    if (emu_nccl_fails("init")) return ncclSystemError;
    int root = 0, number = 0, self;
    sscanf(id.internal, "%d %d", &root, &number);
    MPI_Comm_rank(MPI_COMM_WORLD, &self);
    int tag = 1000 + number;
    std::vector<int> members((size_t)size);
    int mine[2] = {rank, self};
    if (self == root) { /* rank 0 of the group made the id: it collects who the others are, and tells them */
        members[0] = self;
        for (int i = 1; i < size; i++) {
            int other[2];
            MPI_Recv(other, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            members[(size_t)other[0]] = other[1];
        }
        for (int i = 1; i < size; i++) MPI_Send(members.data(), size, MPI_INT, members[(size_t)i], tag, MPI_COMM_WORLD);
    } else {
        MPI_Send(mine, 2, MPI_INT, root, tag, MPI_COMM_WORLD);
        MPI_Recv(members.data(), size, MPI_INT, root, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Group world, group;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, size, members.data(), &group);
    *out = new EmuNccl();
    MPI_Comm_create_group(MPI_COMM_WORLD, group, tag, &(*out)->comm);
    MPI_Group_free(&group);
    MPI_Group_free(&world);
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

static inline ncclResult_t ncclAllGather(const void *part, void *full, size_t count, ncclDataType_t, ncclComm_t c, cudaStream_t s) {
    MPI_Comm comm = c->comm;
    if (emu_nccl_fails("call")) return ncclSystemError;
    if (emu_nccl_fails("hang") || emu_nccl_fails("later")) return emu_hangs() = true, ncclSuccess;
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
    g.ops.push_back({send, peer, at, count});
    g.comm = c, g.stream = s;
    return ncclSuccess;
}
static inline ncclResult_t ncclSend(const void *p, size_t n, ncclDataType_t, int peer, ncclComm_t c, cudaStream_t s) {
    return emu_nccl_add(1, (void *)p, n, peer, c, s);
}
static inline ncclResult_t ncclRecv(void *p, size_t n, ncclDataType_t, int peer, ncclComm_t c, cudaStream_t s) { return emu_nccl_add(0, p, n, peer, c, s); }
static inline ncclResult_t ncclGroupEnd(void) {
    EmuNcclGroup g = emu_nccl_group();
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

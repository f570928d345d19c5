/* transfer_cuda.h - transfers of device memory: by NCCL on a stream of its own, or staged
   through pinned host memory over MPI.

   nccl    start   the comm stream waits for what the compute stream has been asked so far, then moves
           the bytes; an event marks the end
           wait    the compute stream waits for the event; the host does not
                   compute ==ready==> comm ==done==> compute
           All groups share the one stream, so every rank launches its collectives in the order of the program.
           Attention, whose blocks leave none of NCCL's room, starts after the oldest
           transfer that flies (attention_yield).
   staged  start   what this rank sends is copied out, once the stream has made it; then the wire starts
                   device -> pinned -> wire
           wait    the wire first, then what arrived is copied in, ahead of what the stream does next
                   wire -> pinned -> device
           Several ranks can share a GPU, any MPI will do. The host waits for the stream at every start:
           nothing hides behind own work.

   NCCL only copies: all-gather, and all-to-all and ring as grouped send and receive. Sums stay with comm.h, in rank
   order: NCCL's own reduction of bf16 would round at every hop.                                                      */
#ifndef ODYSSEUS_TRANSFER_CUDA_H
#define ODYSSEUS_TRANSFER_CUDA_H

#include "../kernels/compute.h"
#include "wire.h"

#ifdef ODYSSEUS_NCCL
#include <nccl.h>
#if NCCL_VERSION_CODE < NCCL_VERSION(2, 18, 1)
#error "NCCL 2.18.1 or later is needed, whose communicators can be split"
#endif
#define NCCL_CHECK(call) \
    do { \
        ncclResult_t nccl_result = (call); \
        if (nccl_result != ncclSuccess && nccl_result != ncclInProgress) \
            FAIL(THIS_RANK, "NCCL: %s: %s; NCCL_DEBUG=INFO says more, --comm mpi does without NCCL", #call, \
                ncclGetErrorString(nccl_result)); \
    } while (0)
#endif

/* The wait of one transfer, for measuring: what lies between the two events the compute stream spent idle. */
typedef struct {
    cudaEvent_t before, after;
} ExposedWait;

typedef struct {
    WireRequest wire;
    char *sent, *received; /* pinned, of `room` bytes each; they stay with the request and grow */
    i64 room;
    void *to;              /* device memory that `received` goes to, of `bytes` bytes; NULL: not staged, or done */
    i64 bytes;
    cudaEvent_t begun, done; /* made with the first use of the request; begun: it is the comm stream's turn */
    int flying, launched;  /* on the comm stream, not waited for yet; or waited for, and perhaps not over */
    int on_wire;           /* staged: not seen to be over */
    Mark began, ended;     /* where the step is traced */
} Transfer;

#define LINKS 8 /* groups of a mesh, at most */

/* What the transfers of a rank share. */
typedef struct {
    cudaStream_t stream; /* NULL: staged */
    cudaEvent_t ready;
    ExposedWait *wait;
    int waits, room;
    void *link[LINKS]; /* the communicators; the first is the world's */
    int links;
    /* those that the compute stream has not been told to wait for, in the order of the comm stream */
    const Transfer *flying[COMM_REQUESTS];
    int flights;
} Links;

static inline void transfer_clear(Transfer *t, CommOp op) {
    (void)op;
    t->wire = wire_request_none();
    t->to = NULL, t->flying = t->launched = t->on_wire = 0;
}

static inline void transfer_unpin(Transfer *t) {
    if (!t->room) return;
    CUDA_CHECK(cudaFreeHost(t->sent));
    CUDA_CHECK(cudaFreeHost(t->received));
    t->room = 0;
}

static inline void transfer_free(Transfer *t) {
    transfer_unpin(t);
    if (t->done) {
        CUDA_CHECK(cudaEventDestroy(t->begun));
        CUDA_CHECK(cudaEventDestroy(t->done));
    }
    t->begun = t->done = NULL;
}

/* ---- staged ---- */

/* Buffers of at least `bytes`, the first `send_bytes` of `sent` filled from the device. */
static inline void transfer_stage(Device *dev, Transfer *t, void *to, const void *send, i64 send_bytes,
                                  i64 receive_bytes) {
    i64 bytes = i64_max(send_bytes, receive_bytes);
    device_finish(dev); /* an earlier copy out of `received` may be under way */
    if (bytes > t->room) {
        transfer_unpin(t);
        void *sent, *received;
        if (cudaMallocHost(&sent, (size_t)bytes) != cudaSuccess ||
            cudaMallocHost(&received, (size_t)bytes) != cudaSuccess)
            FAIL(THIS_RANK, "out of pinned host memory: 2 x %.1f MB to stage a transfer; use fewer ranks on this host",
                 bytes / 1e6);
        t->sent = (char *)sent, t->received = (char *)received, t->room = bytes;
    }
    copy_out_run(dev, t->sent, send, send_bytes);
    t->to = to, t->bytes = receive_bytes, t->on_wire = 1;
    if (dev->trace) t->began = host_mark(dev);
}

/* What is staged has arrived in host memory. */
static inline void transfer_arrived(Device *dev, Transfer *t) {
    if (t->on_wire && dev->trace) t->ended = host_mark(dev);
    t->on_wire = 0;
}

/* ---- on the comm stream ---- */

/* From here on the comm stream sees what the compute stream has been asked so far. */
static inline void transfer_begin(Device *dev, Links *l, Transfer *t) {
    if (!t->done) {
        CUDA_CHECK(cudaEventCreateWithFlags(&t->begun, cudaEventDisableTiming));
        CUDA_CHECK(cudaEventCreateWithFlags(&t->done, cudaEventDisableTiming));
    }
    CUDA_CHECK(cudaEventRecord(l->ready, dev->state.stream));
    CUDA_CHECK(cudaStreamWaitEvent(l->stream, l->ready, 0));
    CUDA_CHECK(cudaEventRecord(t->begun, l->stream));
    if (dev->trace) t->began = stream_mark(dev, l->stream);
}

static inline void transfer_launched(Device *dev, Links *l, Transfer *t) {
    if (dev->trace) t->ended = stream_mark(dev, l->stream);
    CUDA_CHECK(cudaEventRecord(t->done, l->stream));
    t->flying = t->launched = 1;
    l->flying[l->flights++] = t;
    dev->state.transfer = l->flying[0]->begun;
}

/* The compute stream has been told to wait for it. */
static inline void transfer_landed(Device *dev, Links *l, const Transfer *t) {
    int kept = 0;
    for (int i = 0; i < l->flights; i++)
        if (l->flying[i] != t) l->flying[kept++] = l->flying[i];
    l->flights = kept;
    dev->state.transfer = kept ? l->flying[0]->begun : NULL;
}

/* The compute stream waits; how long is measured by two events around it. */
static inline void transfer_join(Device *dev, Links *l, Transfer *t) {
    if (l->waits == l->room) {
        l->room = l->room ? 2 * l->room : 256;
        l->wait = (ExposedWait *)realloc(l->wait, sizeof(ExposedWait) * (size_t)l->room);
        if (!l->wait) FAIL(THIS_RANK, "out of host memory for %d events", 2 * l->room);
        for (int i = l->waits; i < l->room; i++) {
            CUDA_CHECK(cudaEventCreate(&l->wait[i].before));
            CUDA_CHECK(cudaEventCreate(&l->wait[i].after));
        }
    }
    ExposedWait *w = &l->wait[l->waits++];
    CUDA_CHECK(cudaEventRecord(w->before, dev->state.stream));
    CUDA_CHECK(cudaStreamWaitEvent(dev->state.stream, t->done, 0));
    CUDA_CHECK(cudaEventRecord(w->after, dev->state.stream));
    t->flying = 0;
    transfer_landed(dev, l, t);
}

/* Does a transfer go on after the host has waited for it? */
static inline int links_linger(const Links *l) { return l->stream != NULL; }

/* Seconds that the compute stream has waited since the last call; the device must be done with them. */
static inline double links_exposed(Links *l) {
    double sum = 0;
    for (int i = 0; i < l->waits; i++) {
        float ms = 0;
        CUDA_CHECK(cudaEventElapsedTime(&ms, l->wait[i].before, l->wait[i].after));
        sum += 1e-3 * ms;
    }
    l->waits = 0;
    return sum;
}

#ifdef ODYSSEUS_NCCL

/* NCCL's way between the devices of group `c`, in which rank `rank` of the world calls; NULL: there is none.
   Collective over the world, whose own group comes first: the others are split from it and share its buffers, which is
   for the one that is split to allow. */
static inline void *link_open(Links *l, const Comm *c, int rank) {
    if (!l->stream || c->size == 1) return NULL;
    if (l->links == LINKS) FAIL(THIS_RANK, "more than %d NCCL communicators", LINKS);
    ncclComm_t comm;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.splitShare = 1;
    if (l->links == 0) {
        ncclUniqueId id, *all = (ncclUniqueId *)host_alloc(sizeof id * (size_t)c->size);
        memset(&id, 0, sizeof id);
        if (rank == 0) NCCL_CHECK(ncclGetUniqueId(&id));
        wire_share(c->wire, all, &id, sizeof id);
        NCCL_CHECK(ncclCommInitRankConfig(&comm, c->size, all[0], rank, &config));
        free(all);
    } else {
        NCCL_CHECK(ncclCommSplit((ncclComm_t)l->link[0], (int)comm_first(c, rank), c->rank, &comm, &config));
    }
    return l->link[l->links++] = comm;
}

static inline void link_close(void *link) { NCCL_CHECK(ncclCommDestroy((ncclComm_t)link)); }

/* Stop if something went wrong behind our back: a link is down, a rank is gone. */
static inline void links_check(const Links *l) {
    for (int i = 0; i < l->links; i++) {
        ncclResult_t state = ncclSuccess;
        NCCL_CHECK(ncclCommGetAsyncError((ncclComm_t)l->link[i], &state));
        if (state != ncclSuccess && state != ncclInProgress)
            FAIL(THIS_RANK,
                 "NCCL failed during a transfer: %s; NCCL_DEBUG=INFO says more, --comm mpi does without NCCL",
                 ncclGetErrorString(state));
    }
}

static inline void link_all_gather(Links *l, void *link, void *full, const void *part, i64 bytes) {
    NCCL_CHECK(ncclAllGather(part, full, (size_t)bytes, ncclInt8, (ncclComm_t)link, l->stream));
}

static inline void link_all_to_all(Links *l, void *link, void *recv, const void *send, i64 bytes, int size) {
    NCCL_CHECK(ncclGroupStart());
    for (int p = 0; p < size; p++) {
        NCCL_CHECK(ncclSend((const char *)send + p * bytes, (size_t)bytes, ncclInt8, p, (ncclComm_t)link, l->stream));
        NCCL_CHECK(ncclRecv((char *)recv + p * bytes, (size_t)bytes, ncclInt8, p, (ncclComm_t)link, l->stream));
    }
    NCCL_CHECK(ncclGroupEnd());
}

static inline void link_ring(Links *l, void *link, void *recv, const void *send, i64 bytes, int rank, int size) {
    NCCL_CHECK(ncclGroupStart());
    NCCL_CHECK(ncclSend(send, (size_t)bytes, ncclInt8, (rank + 1) % size, (ncclComm_t)link, l->stream));
    NCCL_CHECK(ncclRecv(recv, (size_t)bytes, ncclInt8, (rank + size - 1) % size, (ncclComm_t)link, l->stream));
    NCCL_CHECK(ncclGroupEnd());
}

#else

static inline void *link_open(Links *l, const Comm *c, int rank) {
    (void)l, (void)c, (void)rank;
    return NULL;
}
static inline void link_close(void *link) { (void)link; }
static inline void links_check(const Links *l) { (void)l; }
static inline void link_all_gather(Links *l, void *link, void *full, const void *part, i64 bytes) {
    (void)l, (void)link, (void)full, (void)part, (void)bytes;
}
static inline void link_all_to_all(Links *l, void *link, void *recv, const void *send, i64 bytes, int size) {
    (void)l, (void)link, (void)recv, (void)send, (void)bytes, (void)size;
}
static inline void link_ring(Links *l, void *link, void *recv, const void *send, i64 bytes, int rank, int size) {
    (void)l, (void)link, (void)recv, (void)send, (void)bytes, (void)rank, (void)size;
}

#endif

/* ---- what comm.h calls ---- */

/* `comm`: the user's --comm. A device that is only imagined has no streams. Transfers come first where both streams
   have work: a product fills the GPU, and what waits for the transfer waits longer. */
static inline void links_open(Links *l, Device *dev, const char *comm) {
    memset(l, 0, sizeof *l);
    if (!dev->state.stream || !comm || strcmp(comm, "nccl") != 0) return;
    int lowest, highest;
    CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    CUDA_CHECK(cudaStreamCreateWithPriority(&l->stream, cudaStreamNonBlocking, highest));
    CUDA_CHECK(cudaEventCreateWithFlags(&l->ready, cudaEventDisableTiming));
}

static inline void links_close(Links *l) {
    for (int i = 0; i < l->room; i++) {
        CUDA_CHECK(cudaEventDestroy(l->wait[i].before));
        CUDA_CHECK(cudaEventDestroy(l->wait[i].after));
    }
    free(l->wait);
    if (l->stream) {
        CUDA_CHECK(cudaStreamSynchronize(l->stream));
        while (l->links) link_close(l->link[--l->links]);
        CUDA_CHECK(cudaEventDestroy(l->ready));
        CUDA_CHECK(cudaStreamDestroy(l->stream));
    }
    memset(l, 0, sizeof *l);
}

/* Device memory to try the links with, before there is an arena; NULL: no more. links_untried gives it back. */
static inline void *links_trial(i64 bytes) {
    void *p = NULL;
    return cudaMalloc(&p, (size_t)bytes) == cudaSuccess ? p : NULL;
}
static inline void links_untried(void *p) { CUDA_CHECK(cudaFree(p)); }

/* Move the wire along where it is staged; NCCL needs no help. */
static inline void transfer_poll(Device *dev, Transfer *t) {
    if (t->on_wire && wire_test(&t->wire)) transfer_arrived(dev, t);
}

/* Is the device not done with it, though the host waits no more? */
static inline int transfer_pending(Transfer *t) { return t->launched && cudaEventQuery(t->done) == cudaErrorNotReady; }

/* Is the device at it: is all that comes before it done, so that only other ranks can keep it? */
static inline int transfer_is_under_way(Transfer *t) {
    return transfer_pending(t) && cudaEventQuery(t->begun) != cudaErrorNotReady;
}

static inline void transfer_wait(Device *dev, Links *l, Transfer *t) {
    if (t->flying) {
        transfer_join(dev, l, t);
    } else if (t->to) {
        double begin = seconds_now();
        while (t->on_wire) device_poll(dev); /* comm.h looks for ranks that stand still, too */
        dev->waited += seconds_now() - begin;
        CUDA_CHECK(cudaMemcpyAsync(t->to, t->received, (size_t)t->bytes, cudaMemcpyHostToDevice, dev->state.stream));
        t->to = NULL;
    }
}

/* full (size, bytes) = every rank's part; `part` may be its own place in `full` */
static inline void transfer_all_gather(Device *dev, Links *l, const Comm *g, Transfer *t, void *full, const void *part,
                                       i64 bytes) {
    if (g->link) {
        transfer_begin(dev, l, t);
        link_all_gather(l, g->link, full, part, bytes);
        transfer_launched(dev, l, t);
    } else {
        transfer_stage(dev, t, full, part, bytes, g->size * bytes);
        wire_all_gather(g->wire, &t->wire, t->received, t->sent, bytes, g->rank);
    }
}

/* recv (size, bytes): part p is what rank p had for this rank in its send (size, bytes) */
static inline void transfer_all_to_all(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send,
                                       i64 bytes) {
    if (g->link) {
        transfer_begin(dev, l, t);
        link_all_to_all(l, g->link, recv, send, bytes, g->size);
        transfer_launched(dev, l, t);
    } else {
        transfer_stage(dev, t, recv, send, g->size * bytes, g->size * bytes);
        wire_all_to_all(g->wire, &t->wire, t->received, t->sent, bytes);
    }
}

/* send goes to the next rank of the ring, recv comes from the one before */
static inline void transfer_ring(Device *dev, Links *l, const Comm *g, Transfer *t, void *recv, const void *send,
                                 i64 bytes) {
    if (g->link) {
        transfer_begin(dev, l, t);
        link_ring(l, g->link, recv, send, bytes, g->rank, g->size);
        transfer_launched(dev, l, t);
    } else {
        transfer_stage(dev, t, recv, send, bytes, bytes);
        wire_ring(g->wire, &t->wire, t->received, t->sent, bytes, g->rank, g->size);
    }
}

#endif

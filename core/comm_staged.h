/* comm_staged.h - transfers of device memory over a wire that knows only the host's: through pinned buffers.

   start   what this rank sends is copied out, once the stream has made it; then the wire starts       device -> pinned -> wire
   wait    the wire first, then what arrived is copied in, ahead of whatever the stream does next       wire -> pinned -> device

   So several ranks can share one GPU, and an MPI without CUDA support is enough. The host waits for the stream at every start:
   transfers still hide behind each other and behind work of other ranks, not behind this rank's own.                           */
#ifndef ODYSSEUS_COMM_STAGED_H
#define ODYSSEUS_COMM_STAGED_H

#include "comm_mpi.h"

typedef struct {
    WireRequest wire;
    char *sent, *received; /* pinned, of `room` bytes each; they stay with the request and grow */
    i64 room;
    void *to;              /* device memory that `received` goes to, of `bytes` bytes; NULL: done */
    i64 bytes;
} Transfer;

static inline void transfer_clear(Transfer *t) {
    t->wire = wire_request_none();
    t->to = NULL;
}

static inline void transfer_free(Transfer *t) {
    if (!t->room) return;
    CUDA_CHECK(cudaFreeHost(t->sent));
    CUDA_CHECK(cudaFreeHost(t->received));
    t->room = 0;
}

/* Buffers of at least `bytes`, the first `send_bytes` of `sent` filled from the device. */
static inline void transfer_stage(Device *dev, Transfer *t, void *to, const void *send, i64 send_bytes, i64 receive_bytes) {
    i64 bytes = i64_max(send_bytes, receive_bytes);
    device_finish(dev); /* an earlier copy out of `received` may be under way */
    if (bytes > t->room) {
        transfer_free(t);
        void *sent, *received;
        if (cudaMallocHost(&sent, (size_t)bytes) != cudaSuccess || cudaMallocHost(&received, (size_t)bytes) != cudaSuccess)
            FAIL(THIS_RANK, "out of pinned host memory: 2 x %.1f MB to stage a transfer; use fewer ranks on this host", bytes / 1e6);
        t->sent = (char *)sent, t->received = (char *)received, t->room = bytes;
    }
    copy_out_run(dev, t->sent, send, send_bytes);
    t->to = to, t->bytes = receive_bytes;
}

static inline void transfer_test(Transfer *t) { wire_test(&t->wire); }

static inline void transfer_wait(Device *dev, Transfer *t) {
    if (!t->to) return; /* a plan's */
    wire_wait(&t->wire);
    CUDA_CHECK(cudaMemcpyAsync(t->to, t->received, (size_t)t->bytes, cudaMemcpyHostToDevice, dev->state.stream));
    t->to = NULL;
}

static inline void transfer_all_gather(Device *dev, Wire w, Transfer *t, void *full, const void *part, i64 bytes, int rank, int size) {
    transfer_stage(dev, t, full, part, bytes, size * bytes);
    wire_all_gather(w, &t->wire, t->received, t->sent, bytes, rank);
}

static inline void transfer_all_to_all(Device *dev, Wire w, Transfer *t, void *recv, const void *send, i64 bytes, int size) {
    transfer_stage(dev, t, recv, send, size * bytes, size * bytes);
    wire_all_to_all(w, &t->wire, t->received, t->sent, bytes);
}

static inline void transfer_ring(Device *dev, Wire w, Transfer *t, void *recv, const void *send, i64 bytes, int rank, int size) {
    transfer_stage(dev, t, recv, send, bytes, bytes);
    wire_ring(w, &t->wire, t->received, t->sent, bytes, rank, size);
}

#endif

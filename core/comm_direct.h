/* comm_direct.h - transfers where the wire reaches the device's memory: nothing between the two. Bytes of one part, ranks of the group. */
#ifndef ODYSSEUS_COMM_DIRECT_H
#define ODYSSEUS_COMM_DIRECT_H

#include "comm_mpi.h"

typedef WireRequest Transfer;

static inline void transfer_clear(Transfer *t) { *t = wire_request_none(); }
static inline void transfer_free(Transfer *t) { (void)t; }
static inline void transfer_test(Transfer *t) { wire_test(t); }

static inline void transfer_wait(Device *dev, Transfer *t) {
    (void)dev;
    wire_wait(t);
}

/* full (size, bytes) = every rank's part */
static inline void transfer_all_gather(Device *dev, Wire w, Transfer *t, void *full, const void *part, i64 bytes, int rank, int size) {
    (void)dev, (void)size;
    wire_all_gather(w, t, full, part, bytes, rank);
}

/* recv (size, bytes): part p is what rank p had for this rank in its send (size, bytes) */
static inline void transfer_all_to_all(Device *dev, Wire w, Transfer *t, void *recv, const void *send, i64 bytes, int size) {
    (void)dev, (void)size;
    wire_all_to_all(w, t, recv, send, bytes);
}

/* send goes to the next rank of the ring, recv comes from the one before */
static inline void transfer_ring(Device *dev, Wire w, Transfer *t, void *recv, const void *send, i64 bytes, int rank, int size) {
    (void)dev;
    wire_ring(w, t, recv, send, bytes, rank, size);
}

#endif

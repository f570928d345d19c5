/* wire.h - ranks and groups of them: the wire between processes (MPI, or none), and a
   communicator along axes of the mesh. */
#ifndef ODYSSEUS_WIRE_H
#define ODYSSEUS_WIRE_H

#include "../kernels/device.h"

#ifdef ODYSSEUS_NO_MPI
#include "wire_alone.h"
#else
#include "wire_mpi.h"
#endif

/* A group of ranks along one or more axes of the mesh. */
typedef struct {
    int rank, size;
    Wire wire;
    void *link; /* the backend's own way between devices; NULL: by the wire */
    /* of `world` ranks, member i stands i / inner * stride + i % inner behind member 0: who shares a node with whom */
    i64 world, inner, stride;
} Comm;

/* The world's rank of member 0 of the group in which the world's `rank` is member c->rank. */
static inline i64 comm_first(const Comm *c, i64 rank) {
    return rank - (c->rank / c->inner * c->stride + c->rank % c->inner);
}

#endif

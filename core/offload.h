/* offload.h - what a layer keeps for its backward waits in host memory; two layers are on the device.

   compute   [ layer l ] [ layer l+1 ] [ layer l+2: its places were l's, which are out ]             forward
   copies                [   l out   ] [        l+1 out                                ]
   compute   [ layer l+2 ] [ layer l+1 ] [ layer l ]                                                 backward
   copies                  [  l back   ]

   Layers take two sets of places in turns. A copy begins once the device has come as far as the walk has asked it, and
   nothing waits for it but who needs it: out, the layer after next, which writes there; back, the layer itself. The two
   last layers stay. Copies go through device.h, on a way of their own (host_copy_start, host_copy_wait).

   On a CPU the host's memory is the device's, and nothing is saved; a copy is made there as late as may be, when it is
   waited for. So whoever forgets to wait, or takes a place too early, finds wrong numbers.                           */
#ifndef ODYSSEUS_OFFLOAD_H
#define ODYSSEUS_OFFLOAD_H

#include "../kernels/compute.h"

#define OFFLOAD_ITEMS 4

/* One buffer of every layer. */
typedef struct {
    char *place[2]; /* on the device, of even and of odd layers */
    i64 bytes, at;  /* at: within a layer's part of the host memory */
} OffloadItem;

typedef struct {
    i64 layers;      /* of the model; 0: nothing is offloaded */
    int active;      /* in a walk with a backward */
    int items;
    OffloadItem item[OFFLOAD_ITEMS];
    i64 layer_bytes;
    char *host;      /* (layers - 2, layer_bytes) */
    HostCopy out[2][OFFLOAD_ITEMS], back[2][OFFLOAD_ITEMS];
} Offload;

static inline void offload_add(Offload *o, void *even, void *odd, i64 bytes) {
    OffloadItem *item = &o->item[o->items++];
    item->place[0] = (char *)even, item->place[1] = (char *)odd, item->bytes = bytes, item->at = o->layer_bytes;
    o->layer_bytes += round_up(bytes, 256);
}

/* Host memory that this rank needs. */
static inline i64 offload_bytes(const Offload *o) { return i64_max(0, o->layers - 2) * o->layer_bytes; }

static inline void offload_commit(Offload *o, Device *dev) {
    i64 bytes = offload_bytes(o);
    if (bytes && (o->host = (char *)host_pinned(dev, bytes)) == NULL)
        FAIL(THIS_RANK,
             "out of host memory: --offload inputs wants %.1f MB of it, pinned; use more ranks or a shorter --seq-len, "
             "or leave it out",
             bytes / 1e6);
}

static inline void offload_free(Offload *o, Device *dev) {
    for (int odd = 0; odd < 2; odd++)
        for (int i = 0; i < o->items; i++) host_copy_free(&o->out[odd][i]), host_copy_free(&o->back[odd][i]);
    if (o->host) host_unpinned(dev, o->host, offload_bytes(o));
    o->host = NULL;
}

/* Is layer l, which a walk works on, in host memory meanwhile? */
static inline int offload_takes(const Offload *o, const Device *dev, i64 l) {
    return o->active && !dev->plan && l >= 0 && l < o->layers - 2;
}

/* Before layer l writes its places: those of layer l - 2 are out. */
static inline void offload_room(Offload *o, Device *dev, i64 l) {
    for (int i = 0; offload_takes(o, dev, l - 2) && i < o->items; i++) host_copy_wait(dev, &o->out[l % 2][i]);
}

/* Layer l has all that it keeps: it goes out. */
static inline void offload_out(Offload *o, Device *dev, i64 l) {
    for (int i = 0; offload_takes(o, dev, l) && i < o->items; i++)
        host_copy_start(dev, &o->out[l % 2][i], o->host + l * o->layer_bytes + o->item[i].at, o->item[i].place[l % 2],
                        o->item[i].bytes);
}

/* Layer l + 2 is through its backward: layer l comes back into its places. */
static inline void offload_back(Offload *o, Device *dev, i64 l) {
    for (int i = 0; offload_takes(o, dev, l) && i < o->items; i++)
        host_copy_start(dev, &o->back[l % 2][i], o->item[i].place[l % 2], o->host + l * o->layer_bytes + o->item[i].at,
                        o->item[i].bytes);
}

/* Before the backward of layer l: it is here. */
static inline void offload_arrived(Offload *o, Device *dev, i64 l) {
    for (int i = 0; offload_takes(o, dev, l) && i < o->items; i++) host_copy_wait(dev, &o->back[l % 2][i]);
}

#endif

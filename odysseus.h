/* odysseus.h - attention and MLP parallelised differently: attention by heads, as tpsp.h; the MLP by tokens, weights by ZeRO-3.

   x (L/N, B, C) -all-gather-> this rank's heads -reduce-scatter-> (L/N, B, C) ---> MLP on the own tokens ---> (L/N, B, C)
                   weights stay split by heads                          weights gathered for the block, then dropped

   The MLP holds most of the weights and needs no other token: sending its weights costs 3 m d i elements, whatever L; sending its
   activations, as tpsp.h does, costs 5 L d. So this pays where 5 L d > 3 m d i, m weight matrices: L > 1.8 i for Llama (m = 3).

   The Odysseus playground (2024): github.com/feifeibear/Odysseus-Transformer

   per rank  as tpsp.h in attention; MLP (L/(R N), B, i)
   traffic   of a layer and rank, elements, c = (N-1)/N: 3 all-gathers + 2 reduce-scatters = 5 c L d, and ZeRO's 3 c m d i      */
#ifndef ODYSSEUS_ODYSSEUS_H
#define ODYSSEUS_ODYSSEUS_H

#include "tpsp.h"

static inline int odysseus_splits(BlockKind block) { return block == BLOCK_ATTENTION; }

static inline int odysseus_refuses(const Config *c, const MeshShape *shape, char *why, size_t size) {
    return refuse_head_axis(c, shape, 0, why, size);
}

static inline void odysseus_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times, int recompute) {
    tpsp_block_volume(l, BLOCK_ATTENTION, c, m, L, B, times, recompute);
    ring_volume(l, c, m, L, B, times, recompute);
}

static const Scheme SCHEME_ODYSSEUS = {
    "odysseus", "attention split by heads as in tpsp, MLP on own tokens with ZeRO-3 weights", 0, 0, 0, odysseus_splits, odysseus_refuses, NULL,
    tpsp_attention_forward, tpsp_attention_backward, local_mlp_forward, local_mlp_backward, odysseus_volume,
};

#endif

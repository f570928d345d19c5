/* odysseus.h - attention and MLP parallelised differently: attention by heads, as tpsp.h; the
   MLP by tokens, weights by ZeRO-3.

   x (L/N, B, C) -all-gather-> this rank's heads -reduce-scatter-> (L/N, B, C) -> MLP on the own tokens -> (L/N, B, C)
                   weights stay split by heads                          weights gathered for the block, then dropped

   The MLP holds most of the weights and needs no other token: sending its weights costs 3 m d i elements,
   whatever L; sending its activations, as tpsp.h does, costs 5 L d. So this pays where 5 L d > 3 m d i, m weight
   matrices: L > 1.8 i for Llama (m = 3).

   The Odysseus playground (2024): github.com/feifeibear/Odysseus-Transformer

   per rank  as tpsp.h in attention; MLP (L/(R N), B, i)
   traffic   of a layer and rank, elements, c = (N-1)/N: 3 all-gathers + 2 reduce-scatters = 5 c L d, and
             ZeRO's 3 c m d i                                                                                         */
#ifndef ODYSSEUS_ODYSSEUS_H
#define ODYSSEUS_ODYSSEUS_H

#include "tpsp.h"

static inline int odysseus_splits(BlockKind block) { return block == BLOCK_ATTENTION; }

static inline int odysseus_refuses(const Config *c, const MeshShape *shape, char *why, size_t size) {
    return refuse_head_axis(c, shape, 0, why, size);
}

static inline void odysseus_volume(Ledger *l, const Config *c, const Mesh *m, i64 L, i64 B, i64 times) {
    tpsp_block_volume(l, BLOCK_ATTENTION, c, m, L, B, times);
}

static const Scheme SCHEME_ODYSSEUS = {
    .name = "odysseus",
    .help = "attention split by heads as in tpsp, MLP on own tokens with ZeRO-3 weights",
    .context = NULL,
    .replicated_stream = 0,
    .ring_takes_all = 0,
    .rope_on_own = 0,
    .repeats_exchange = 0,
    .takes_head_groups = 0,
    .splits = odysseus_splits,
    .refuses = odysseus_refuses,
    .attention_keep = NULL,
    .attention_forward = tpsp_attention_forward,
    .attention_backward = tpsp_attention_backward,
    .mlp_forward = local_mlp_forward,
    .mlp_backward = local_mlp_backward,
    .volume = odysseus_volume,
    .volume_twice = NULL,
};

#endif

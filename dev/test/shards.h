/* shards.h - what a rank owns of what ranks share: ceil(P/S) elements on CPUs, rounded up to whole 16
   bytes between GPUs. For test_memory.c, which is a CPU's program, and test_simulator.c, which models a
   GPU's. Include after the program. */
#ifndef ODYSSEUS_TEST_SHARDS_H
#define ODYSSEUS_TEST_SHARDS_H

/* Every share of a model of odd sizes on `ranks` ranks is the least multiple of `unit` elements that holds it, and a
   step moves what the closed form says. */
static inline void test_shards(const Scheme *scheme, i64 ranks, i64 unit, DevicePlace place) {
    Settings settings;
    FlagsGiven none;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    flags_parse(&settings, &none, 0, NULL);
    ModelOptions *o = &t->options;
    t->settings = &settings;
    o->config = preset_find("tiny-gpt")->config, o->scheme = scheme, o->place = place;
    o->shape.world = ranks, o->shape.dp = 1, o->shape.ring = scheme->ring_takes_all ? ranks : 1,
    o->shape.head = ranks / o->shape.ring;
    o->config.heads = o->config.kv_heads = ranks, o->config.head_dim = 8, o->config.dim = 8 * ranks,
    o->config.ffn = 5 * ranks, o->config.vocab = 257;
    o->layout = RING_ZIGZAG, o->L = 2 * ranks, o->B = o->batch = 1, o->overlap = 1, o->comm = "mpi",
    o->grad_wire = DTYPE_ACCUM;
    model_init(&t->model, o, wire_none(), 1, 0);
    trainer_plan(t);
    const Zero *z = &t->model.zero;
    int off = 0;
    for (int i = 0; i < z->chunks; i++) {
        i64 least = ceil_div(z->chunk[i].elements, chunk_comm(z, &z->chunk[i])->size);
        off += z->chunk[i].shard % unit != 0 || z->chunk[i].shard < least || z->chunk[i].shard >= least + unit;
    }
    check(!off && z->chunks > 0, "%s on %lld: %d of %d shards are not ceil(P/S) in whole %lld", scheme->name, ranks,
          off, z->chunks, unit);
    i64 moved = ledger_total(&t->model.ledger, 0), expected = ledger_total(&t->model.ledger, 1);
    check(moved == expected && (moved > 0 || ranks == 1), "%s on %lld: %lld bytes, %lld by the closed form",
          scheme->name, ranks, moved, expected);
    model_free(&t->model);
    free(t);
}

#endif

/* test_memory.c - what fits: the longest sequence and the largest micro-batch that the program names fit,
   and the next legal ones do not.

   Everything is planned, for worlds of several ranks, from this one process.                                         */
#include "support.h"
#include "shards.h"

/* A preset under a scheme on `ranks` ranks, `ring` of them around it. */
static ModelOptions options_of(const char *preset, const Scheme *scheme, i64 ranks, i64 ring, i64 dp) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    if (scheme->ring_takes_all) ring = ranks / dp;
    o.config = preset_find(preset)->config, o.scheme = scheme;
    o.shape.world = ranks, o.shape.dp = dp, o.shape.ring = ring, o.shape.head = ranks / dp / ring;
    o.layout = RING_ZIGZAG;
    o.L = 1024, o.B = 2, o.batch = 12 * dp;
    o.overlap = 1, o.comm = "mpi", o.grad_wire = DTYPE_ACCUM;
    o.place.threads = o.place.sharing = 1;
    return o;
}

static void sequence_is_longest(const char *preset, const Scheme *scheme, i64 ranks, i64 ring, i64 dp, i64 bytes) {
    ModelOptions o = options_of(preset, scheme, ranks, ring, dp);
    double begin = seconds_now();
    i64 L = longest_sequence(&o, bytes, options_bytes), unit = sequence_unit(&o), next = L + unit;
    double seconds = seconds_now() - begin;
    int positions = o.config.has & HAS_POSITIONS && next > o.config.max_pos;
    check(L > 0 && L % unit == 0 && options_fit(o, L, o.B, bytes, options_bytes),
          "%s, %s on %lld (ring %lld, dp %lld): %lld tokens fit %.0f MB, %.1f s", preset, scheme->name, ranks, ring, dp,
          L, bytes / 1e6, seconds);
    o.L = next;
    check(positions || (!options_fit(o, next, o.B, bytes, options_bytes) && options_bytes(&o) > bytes),
          "%s, %s: %lld do not (%.3f MB)", preset, scheme->name, next, positions ? 0 : options_bytes(&o) / 1e6);
}

static void micro_batch_is_largest(const Scheme *scheme, i64 bytes) {
    ModelOptions o = options_of("tiny-llama", scheme, 4, 1, 1);
    i64 B = largest_micro_batch(&o, bytes, options_bytes), next = B + 1;
    while (next < o.batch && o.batch % next != 0) next++;
    check(B > 0 && o.batch % B == 0 && options_fit(o, o.L, B, bytes, options_bytes),
          "%s: micro-batch %lld of %lld fits %.0f MB", scheme->name, B, o.batch, bytes / 1e6);
    check(!options_fit(o, o.L, next, bytes, options_bytes), "%s: %lld does not", scheme->name, next);
}

/* The plan of one micro-step is the memory of a run of many. */
static void micro_steps_need_the_same(const Scheme *scheme) {
    Settings settings;
    FlagsGiven none;
    Trainer t;
    flags_parse(&settings, &none, 0, NULL), memset(&t, 0, sizeof t);
    t.options = options_of("tiny-gpt", scheme, 4, 1, 2), t.settings = &settings;
    t.options.L = 64;
    model_init(&t.model, &t.options, wire_none(), 1, 0);
    trainer_plan(&t);
    i64 planned = arena_bytes(&t.model.arena);
    model_free(&t.model);
    check(options_bytes(&t.options) == planned && micro_steps(&t.options) == 6,
          "%s: %lld bytes, as in a run of 6 micro-steps", scheme->name, planned);
}

/* --tile-rows: of the MLP's width only a tile's rows are there. Twice the width takes no more than that. */
static void tiles_are_small(const Scheme *scheme) {
    ModelOptions o = options_of("llama3-8b", scheme, 8, 1, 1);
    i64 workspace[2], tile = 512, wide = (2 * mlp_gates(&o.config) + 1) * o.config.ffn * real_size();
    for (int twice = 0; twice < 2; twice++) {
        Settings settings;
        FlagsGiven none;
        Trainer t;
        flags_parse(&settings, &none, 0, NULL), memset(&t, 0, sizeof t);
        t.options = o, t.settings = &settings;
        t.options.L = 65536, t.options.B = t.options.batch = 1;
        t.options.recompute = RECOMPUTE_FULL, t.options.tile_rows = tile, t.options.config.ffn <<= twice;
        model_init(&t.model, &t.options, wire_none(), 1, 0);
        trainer_plan(&t);
        workspace[twice] = t.model.arena.peak.by_category[MEM_WORKSPACE];
        model_free(&t.model);
    }
    check(workspace[1] - workspace[0] <= 2 * tile * wide,
          "%s, tiles of %lld rows: an MLP twice as wide takes %.1f MB more, a tile of it is %.1f", scheme->name, tile,
          (workspace[1] - workspace[0]) / 1e6, 2 * tile * wide / 1e6);
}

static void advice(const char *name, ModelOptions o, i64 bytes, const char *expected) {
    char text[512];
    memory_advice(&o, bytes, options_bytes, text, sizeof text);
    check(strstr(text, expected) != NULL, "%s, %.0f MB: %s", name, bytes / 1e6, text);
}

int main(int argc, char **argv) {
    wire_start(&argc, &argv);
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) {
        sequence_is_longest("tiny-llama", SCHEMES[i], 4, 2, 1, (i64)40e6);
        sequence_is_longest("llama2-7b", SCHEMES[i], 8, 1, 1, (i64)80e9);
        sequence_is_longest("tiny-gpt", SCHEMES[i], 4, 1, 2, (i64)1e9);
        micro_batch_is_largest(SCHEMES[i], (i64)40e6);
        micro_steps_need_the_same(SCHEMES[i]);
        tiles_are_small(SCHEMES[i]);
        for (i64 ranks = 1; ranks <= 8; ranks++)
            test_shards(SCHEMES[i], ranks, 1, options_of("tiny-gpt", SCHEMES[i], ranks, 1, 1).place);
    }
    ModelOptions o = options_of("tiny-llama", &SCHEME_TPSP, 4, 1, 1);
    i64 whole = options_bytes(&o), smallest;
    check(longest_sequence(&o, whole, options_bytes) >= o.L && longest_sequence(&o, whole - 4096, options_bytes) < o.L,
          "a page less than the plan is too little");
    check(longest_sequence(&o, 1000, options_bytes) == 0 && largest_micro_batch(&o, 1000, options_bytes) == 0,
          "nothing fits a kilobyte");
    check(!options_fit(o, (i64)1 << 40, 1, (i64)80e9, options_bytes),
          "a plan beyond what can be reserved does not fit, and ends nothing");
    advice(
        "both", o, whole - 4096,
        "the largest that fit: --seq-len 1020, or --micro-batch 1; as it is, with --recompute full; or use more ranks");
    o.L = 4, o.B = 1, smallest = options_bytes(&o);
    o.L = 1024, o.B = 12;
    advice("the shortest fits one at a time", o, smallest,
           "with --micro-batch 1, the largest --seq-len that fits: 4; or use more ranks");
    o.L = 4, o.B = 1;
    advice("less than the smallest", o, smallest - 4096, "no --seq-len fits; with --recompute full, up to ");
    advice("nothing", o, 100000, "no --seq-len fits with this model on this mesh; or use more ranks");
    wire_finish();
    return checks_done();
}

/* ledger.h - every byte that a rank sends, by operation, block, phase and kind, next to its closed form.

   comm.h counts here at the call; schemes and ZeRO write their closed forms into the `expected` column of
   the same table; `comm.json` and the dry run print both, a test demands equality.                          */
#ifndef ODYSSEUS_LEDGER_H
#define ODYSSEUS_LEDGER_H

#include "util.h"

typedef enum {
    COMM_ALL_GATHER, COMM_REDUCE_SCATTER, COMM_ALL_REDUCE, COMM_ALL_TO_ALL, COMM_SEND_RECV, COMM_OPS
} CommOp;
typedef enum { BLOCK_EMBEDDING, BLOCK_ATTENTION, BLOCK_MLP, BLOCK_LM_HEAD, BLOCK_OTHER, BLOCK_KINDS } BlockKind;
typedef enum { PHASE_FORWARD, PHASE_BACKWARD, PHASE_OPTIMIZER, PHASES } Phase;
typedef enum { WHAT_ACTIVATION, WHAT_PARAMETER, WHAT_GRADIENT, WHAT_CONTROL, WHATS } What;

static const char *const COMM_OP_NAMES[COMM_OPS] = {"all_gather", "reduce_scatter", "all_reduce", "all_to_all",
                                                    "send_recv"};
static const char *const BLOCK_NAMES[BLOCK_KINDS] = {"embedding", "attention", "mlp", "head", "other"};
static const char *const PHASE_NAMES[PHASES] = {"forward", "backward", "optimizer"};
static const char *const WHAT_NAMES[WHATS] = {"activation", "parameter", "gradient", "control"};

/* Where in the step a collective belongs. */
typedef struct {
    BlockKind block;
    Phase phase;
    What what;
} Tag;

static inline Tag tag(BlockKind block, Phase phase, What what) {
    Tag t = {block, phase, what};
    return t;
}

typedef struct {
    i64 calls, bytes, expected;
} LedgerRow;

typedef struct {
    LedgerRow row[COMM_OPS][BLOCK_KINDS][PHASES][WHATS];
} Ledger;

static inline LedgerRow *ledger_row(Ledger *l, CommOp op, Tag t) { return &l->row[op][t.block][t.phase][t.what]; }

static inline void ledger_count(Ledger *l, CommOp op, Tag t, i64 bytes) {
    LedgerRow *row = ledger_row(l, op, t);
    row->calls++;
    row->bytes += bytes;
}

static inline void ledger_expect(Ledger *l, CommOp op, Tag t, i64 bytes) { ledger_row(l, op, t)->expected += bytes; }

/* Add the closed forms of `part`; `repeated`: what activations move forward there, they move once more in backward. */
static inline void ledger_expect_part(Ledger *l, const Ledger *part, i64 again) {
    for (int op = 0; op < COMM_OPS; op++)
        for (int b = 0; b < BLOCK_KINDS; b++)
            for (int p = 0; p < PHASES; p++)
                for (int w = 0; w < WHATS; w++) {
                    Tag t = tag((BlockKind)b, (Phase)p, (What)w);
                    i64 bytes = part->row[op][b][p][w].expected;
                    ledger_expect(l, (CommOp)op, t, bytes);
                    if (b == BLOCK_ATTENTION && p == PHASE_FORWARD && w == WHAT_ACTIVATION && bytes)
                        ledger_expect(l, (CommOp)op, tag((BlockKind)b, PHASE_BACKWARD, WHAT_ACTIVATION), again * bytes);
                }
}

/* Forget what was counted, keep the closed forms. */
static inline void ledger_reset(Ledger *l) {
    LedgerRow *rows = &l->row[0][0][0][0];
    for (int i = 0; i < (int)(sizeof l->row / sizeof *rows); i++) rows[i].calls = rows[i].bytes = 0;
}

/* Count again, `times` times, what was counted since `before`. */
static inline void ledger_repeat(Ledger *l, const Ledger *before, i64 times) {
    LedgerRow *rows = &l->row[0][0][0][0];
    const LedgerRow *then = &before->row[0][0][0][0];
    for (int i = 0; i < (int)(sizeof l->row / sizeof *rows); i++)
        rows[i].calls += times * (rows[i].calls - then[i].calls),
            rows[i].bytes += times * (rows[i].bytes - then[i].bytes);
}

typedef void (*LedgerVisit)(void *context, CommOp op, Tag t, const LedgerRow *row);

/* Every row that was used or expected, in a fixed order. */
static inline void ledger_visit(const Ledger *l, LedgerVisit visit, void *context) {
    for (int op = 0; op < COMM_OPS; op++)
        for (int b = 0; b < BLOCK_KINDS; b++)
            for (int p = 0; p < PHASES; p++)
                for (int w = 0; w < WHATS; w++) {
                    const LedgerRow *row = &l->row[op][b][p][w];
                    if (row->calls || row->expected)
                        visit(context, (CommOp)op, tag((BlockKind)b, (Phase)p, (What)w), row);
                }
}

/* Bytes counted in all rows (expected = 0) or their closed form (expected = 1). */
static inline i64 ledger_total(const Ledger *l, int expected) {
    const LedgerRow *rows = &l->row[0][0][0][0];
    i64 sum = 0;
    for (int i = 0; i < (int)(sizeof l->row / sizeof *rows); i++) sum += expected ? rows[i].expected : rows[i].bytes;
    return sum;
}

static inline void ledger_print_row(void *context, CommOp op, Tag t, const LedgerRow *row) {
    fprintf((FILE *)context, "  %-15s %-10s %-10s %-11s %7lld %16lld %16lld%s\n", COMM_OP_NAMES[op],
            BLOCK_NAMES[t.block], PHASE_NAMES[t.phase], WHAT_NAMES[t.what], row->calls, row->bytes, row->expected,
            row->bytes == row->expected ? "" : "  DIFFERS");
}

static inline void ledger_print(FILE *f, const Ledger *l) {
    fprintf(f, "traffic of a step, bytes sent by rank 0\n  %-15s %-10s %-10s %-11s %7s %16s %16s\n", "op", "block",
            "phase", "what", "calls", "bytes", "closed form");
    ledger_visit(l, ledger_print_row, f);
    fprintf(f, "  %-15s %-10s %-10s %-11s %7s %16lld %16lld\n", "total", "", "", "", "", ledger_total(l, 0),
            ledger_total(l, 1));
}

#endif

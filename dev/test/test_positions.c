/* test_positions.c - core/positions.h against counting: every token has one place, and causal
   work is what a double loop finds.

     gcc -x c -std=c11 -O2 -D_GNU_SOURCE -Wall -Wextra -Wc++-compat -Werror
     dev/test/test_positions.c -o test_positions -lm                                                                  */
#include "../../core/positions.h"
#include "check.h"

enum { LAYOUTS = 3, L_MAX = 256 };
static const RingLayout LAYOUT[LAYOUTS] = {RING_ZIGZAG, RING_CONTIGUOUS, RING_STRIPE};
static const char *const NAME[LAYOUTS] = {"zigzag", "contiguous", "stripe"};

/* Where local token t of rank r stands, from the picture at the top of positions.h. */
static i64 expected_position(int layout, i64 L, int R, int r, i64 t) {
    i64 l = L / R, chunk = l / 2;
    if (R == 1 || LAYOUT[layout] == RING_CONTIGUOUS) return r * l + t;
    if (LAYOUT[layout] == RING_STRIPE) return t * R + r;
    return t < chunk ? r * chunk + t : (2 * R - 1 - r) * chunk + (t - chunk);
}

static void test_cover(int layout, i64 L, int R) {
    int seen[L_MAX] = {0}, misplaced = 0, descending = 0, not_once = 0;
    i64 tokens = 0;
    for (int r = 0; r < R; r++) {
        TokenMap map = token_map(LAYOUT[layout], L, R, r);
        tokens += map.run[0].count + map.run[1].count;
        misplaced += map.count != map.run[0].count + map.run[1].count;
        for (i64 t = 0; t < map.count; t++) {
            i64 p = token_position(&map, t);
            misplaced += p != expected_position(layout, L, R, r, t);
            if (p >= 0 && p < L) seen[p]++;
            descending += t > 0 && p <= token_position(&map, t - 1);
        }
    }
    for (i64 p = 0; p < L; p++) not_once += seen[p] != 1;
    check(not_once == 0 && misplaced == 0 && descending == 0 && tokens == L,
          "token_map %s, R %d, L %lld: %d positions not held once, %d misplaced, %d descending", NAME[layout], R, L,
          not_once, misplaced,
          descending);
}

/* Every slice of every map: its tokens are the map's, its runs add up; and slices of slices. */
static void test_slices(int layout, i64 L, int R) {
    int wrong = 0, slices = 0;
    for (int r = 0; r < R; r++) {
        TokenMap map = token_map(LAYOUT[layout], L, R, r);
        for (i64 first = 0; first <= map.count; first++)
            for (i64 count = 0; first + count <= map.count; count++) {
                TokenMap slice = token_map_slice(map, first, count),
                         inner = token_map_slice(slice, count / 3, count - count / 3);
                wrong += slice.count != count || slice.run[0].count + slice.run[1].count != count;
                for (i64 t = 0; t < count; t++) wrong += token_position(&slice, t) != token_position(&map, first + t);
                for (i64 t = 0; t < inner.count; t++)
                    wrong += token_position(&inner, t) != token_position(&slice, count / 3 + t);
                slices++;
            }
    }
    check(wrong == 0, "token_map_slice %s, R %d, L %lld: %d slices, %d wrong", NAME[layout], R, L, slices, wrong);
}

static double counted_pairs(const TokenMap *q, const TokenMap *kv) {
    i64 pairs = 0;
    for (i64 i = 0; i < q->count; i++)
        for (i64 j = 0; j < kv->count; j++) pairs += token_position(kv, j) <= token_position(q, i);
    return (double)pairs;
}

/* causal_pairs of every pair of ranks, whole and in slices; over all pairs of ranks the sum is the whole triangle. */
static void test_pairs(int q_layout, int kv_layout, i64 L, int R) {
    int wrong = 0, cases = 0;
    double triangle = 0;
    for (int a = 0; a < R; a++)
        for (int b = 0; b < R; b++) {
            TokenMap q = token_map(LAYOUT[q_layout], L, R, a), kv = token_map(LAYOUT[kv_layout], L, R, b);
            triangle += causal_pairs(&q, &kv);
            for (i64 first = 0; first <= q.count; first += 1 + q.count / 5)
                for (i64 count = 0; first + count <= q.count; count += 1 + q.count / 4)
                    for (i64 kv_begin = 0; kv_begin <= kv.count; kv_begin += 1 + kv.count / 4) {
                        TokenMap q_part = token_map_slice(q, first, count),
                                 kv_part = token_map_slice(kv, kv_begin, kv.count - kv_begin);
                        wrong += causal_pairs(&q_part, &kv_part) != counted_pairs(&q_part, &kv_part);
                        wrong += causal_pairs(&q_part, &kv) != counted_pairs(&q_part, &kv);
                        cases += 2;
                    }
            wrong += causal_pairs(&q, &kv) != counted_pairs(&q, &kv);
        }
    check(wrong == 0 && triangle == (double)(L * (L + 1) / 2),
          "causal_pairs %s x %s, R %d, L %lld: %d of %d slices wrong, all ranks together %.0f of %.0f", NAME[q_layout],
          NAME[kv_layout], R,
          L, wrong, cases, triangle, (double)(L * (L + 1) / 2));
}

/* Runs of any place, stride and length against each other, far beyond what maps make. */
static void test_runs(void) {
    int wrong = 0, cases = 0;
    for (i64 q_first = 0; q_first < 12; q_first += 2)
        for (i64 kv_first = 0; kv_first < 12; kv_first++)
            for (i64 q_stride = 1; q_stride <= 4; q_stride++)
                for (i64 kv_stride = 1; kv_stride <= 4; kv_stride++)
                    for (i64 q_count = 0; q_count <= 6; q_count++)
                        for (i64 kv_count = 0; kv_count <= 6; kv_count++) {
                            TokenMap q = {{{q_first, q_stride, q_count}, {0, 0, 0}}, q_count};
                            TokenMap kv = {{{kv_first, kv_stride, kv_count}, {0, 0, 0}}, kv_count};
                            wrong += causal_pairs(&q, &kv) != counted_pairs(&q, &kv);
                            cases++;
                        }
    check(wrong == 0, "causal_pairs of two runs: %d of %d wrong", wrong, cases);
    /* no layout has it, the struct allows it */
    TokenMap uneven = {{{1, 3, 2}, {10, 2, 4}}, 6}, tail = token_map_slice(uneven, 1, 4);
    check(token_position(&uneven, 5) == 16 && token_position(&tail, 3) == 14,
          "runs of unequal stride: %lld and %lld, expected 16 and 14", token_position(&uneven, 5),
          token_position(&tail, 3));
    TokenMap q = token_map(RING_ZIGZAG, 1 << 24, 8, 5), all = token_map(RING_CONTIGUOUS, 1 << 24, 1, 0);
    double want = 0, chunk = 1 << 20; /* chunks 5 and 10 of 16, each sees all before it and its own triangle */
    want += chunk * 5 * chunk + chunk * (chunk + 1) / 2 + chunk * 10 * chunk + chunk * (chunk + 1) / 2;
    check(causal_pairs(&q, &all) == want, "causal_pairs at 16M tokens: %.0f, expected %.0f", causal_pairs(&q, &all),
          want);
}

int main(void) {
    for (int layout = 0; layout < LAYOUTS; layout++)
        for (int R = 1; R <= 8; R++) {
            test_cover(layout, 2 * R, R);
            test_cover(layout, 12 * R, R);
            test_slices(layout, 10 * R, R);
            for (int kv_layout = 0; kv_layout < LAYOUTS; kv_layout++) {
                test_pairs(layout, kv_layout, 2 * R, R);
                test_pairs(layout, kv_layout, 14 * R, R);
            }
        }
    test_runs();
    return checks_done();
}

/* test_data.c - the order of --shuffle: a permutation for every length, another one for every epoch and seed, without a
   pattern; what places go where is told by counting. And targets: whatever the layout, those of the file, and left out
   where the mask says so. */
#include "../../core/data.h"
#include "check.h"

/* Places of one epoch that come up not exactly once. */
static i64 not_once(const Dataset *d, i64 epoch) {
    i64 bad = 0;
    char *seen = (char *)host_alloc((size_t)d->sequences);
    for (i64 i = 0; i < d->sequences; i++) {
        i64 s = dataset_sequence(d, epoch * d->sequences + i);
        if (s < 0 || s >= d->sequences || seen[s]++) bad++;
    }
    free(seen);
    return bad;
}

static void test_once(void) {
    Dataset d;
    i64 bad = 0, lengths = 0;
    memset(&d, 0, sizeof d);
    d.shuffled = 1;
    for (d.sequences = 1; d.sequences < 5000; d.sequences += d.sequences < 300 ? 1 : 97)
        for (i64 epoch = 0; epoch < 3; epoch++) d.seed = 7 * epoch, bad += not_once(&d, epoch), lengths++;
    check(bad == 0 && lengths > 900,
          "each sequence once an epoch, in %lld epochs of 1 to 5000 sequences: %lld places are not", lengths, bad);
    d.sequences = ((i64)1 << 40) + 12345;
    for (i64 i = 0; i < 1000; i++) bad += dataset_sequence(&d, i) < 0 || dataset_sequence(&d, i) >= d.sequences;
    check(bad == 0, "2^40 sequences: within them");
    d.shuffled = 0, d.sequences = 100;
    for (i64 i = 0; i < 1000; i++) bad += dataset_sequence(&d, i) != i % 100;
    check(bad == 0, "off: the order of the list");
}

/* Counts of what n places share by chance have a mean and a spread; the seeds are fixed, so
   these are numbers and no odds. */
static void test_no_pattern(void) {
    enum { N = 1000, EPOCHS = 400 };
    static int first[N];
    Dataset d;
    i64 followed = 0, stayed = 0, again = 0, same_seed = 0, largest = 0;
    double sum = 0;
    memset(&d, 0, sizeof d);
    d.shuffled = 1, d.sequences = N, d.seed = 42;
    for (i64 e = 0; e < EPOCHS; e++)
        for (i64 i = 0; i < N; i++) {
            i64 s = dataset_sequence(&d, e * N + i);
            followed += i > 0 && s == dataset_sequence(&d, e * N + i - 1) + 1;
            stayed += s == i;
            again += s == dataset_sequence(&d, (e + 1) * N + i);
            d.seed = 43, same_seed += s == dataset_sequence(&d, e * N + i), d.seed = 42;
            if (i == 0) first[s]++;
            sum += (double)(i * s);
        }
    /* each is expected EPOCHS times, with a deviation of 20 */
    check(followed > 300 && followed < 500, "a sequence follows its neighbour %lld times, %d by chance", followed,
          EPOCHS);
    check(stayed > 300 && stayed < 500, "one stands at its own place %lld times, %d by chance", stayed, EPOCHS);
    check(again > 300 && again < 500, "two epochs agree at %lld places, %d by chance", again, EPOCHS);
    check(same_seed > 300 && same_seed < 500, "two seeds agree at %lld places, %d by chance", same_seed, EPOCHS);
    for (int i = 0; i < N; i++) largest = i64_max(largest, first[i]);
    check(largest < 7, "no sequence is first in more than %lld of %d epochs", largest, EPOCHS);
    double mean = (N - 1) / 2.0, covariance = sum / ((double)N * EPOCHS) - mean * mean,
           variance = ((double)N * N - 1) / 12;
    check(fabs(covariance / variance) < 0.01, "place and sequence are correlated by %.4f", covariance / variance);
}

/* A file of n items of `width` bytes. */
static void write_items(const char *path, int32_t magic, const int32_t *items, i64 n, int width) {
    int32_t header[256] = {magic, 1, (int32_t)n};
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(header, 4, 256, f) != 256) FAIL(THIS_RANK, "cannot write %s", path);
    for (i64 i = 0; i < n; i++)
        for (int k = 0; k < width; k++) fputc(items[i] >> 8 * k & 255, f);
    fclose(f);
}

/* Targets of all positions, by every rank of every layout, against what was written: how many are wrong. */
static i64 wrong_targets(Dataset *d, const int32_t *tokens, const int32_t *mask, i64 ignored) {
    const RingLayout layouts[3] = {RING_ZIGZAG, RING_CONTIGUOUS, RING_STRIPE};
    i64 bad = 0;
    for (int layout = 0; layout < 3; layout++)
        for (int ranks = 1; ranks <= 4; ranks++)
            for (int rank = 0; rank < ranks; rank++)
                for (i64 s = 0; s < d->sequences; s++) {
                    int32_t got[2 * 24];
                    const TokenMap map = token_map(layouts[layout], d->L, ranks, rank);
                    dataset_targets(d, s, &map, 1, ignored, got, 1, 2);
                    for (i64 t = 0; t < map.count; t++) {
                        i64 at = s * d->L + token_position(&map, t) + 1;
                        int32_t want = tokens[at];
                        if ((mask && !mask[at]) || want == ignored) want = TOKEN_IGNORED;
                        bad += got[2 * t + 1] != want;
                    }
                }
    return bad;
}

static void test_targets(void) {
    enum { L = 24, N = 5 * L + 3 };
    char directory[64] = "/tmp/odysseus_data_XXXXXX", path[128], masks[128];
    int32_t tokens[N], mask[N];
    Dataset d;
    for (int i = 0; i < N; i++)
        tokens[i] = (int32_t)(mix64((uint64_t)i) % 50), mask[i] = mix64((uint64_t)i + N) % 3 > 0;
    if (!mkdtemp(directory)) FAIL(THIS_RANK, "cannot make %s", directory);
    snprintf(path, sizeof path, "%s/a.bin", directory), snprintf(masks, sizeof masks, "%s/a_mask.bin", directory);
    write_items(path, 20240520, tokens, N, 2);
    dataset_open(&d, path, "train", L, 50);
    i64 bad = wrong_targets(&d, tokens, NULL, -1);
    check(!d.masked && bad == 0, "targets without a mask: %lld wrong", bad);
    dataset_close(&d);
    write_items(masks, 20261126, mask, N, 1);
    snprintf(path, sizeof path, "%s/*.bin", directory);
    dataset_open(&d, path, "train", L, 50);
    bad = wrong_targets(&d, tokens, mask, -1);
    check(d.shards == 1 && d.masked && bad == 0, "targets under a mask: %lld wrong, %d shards", bad, d.shards);
    bad = wrong_targets(&d, tokens, mask, 7);
    check(bad == 0, "targets under a mask, and another token ignored: %lld wrong", bad);
    dataset_close(&d);
    unlink(masks);
    snprintf(path, sizeof path, "%s/a.bin", directory);
    unlink(path);
    rmdir(directory);
}

int main(void) {
    test_once();
    test_no_pattern();
    test_targets();
    return checks_done();
}

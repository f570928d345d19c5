/* test_schedule.c - learning rates against their formulas written out, and when a loss is a spike. */
#define ODYSSEUS_TEST
#include "../../train_gpt.cu"
#include "check.h"

static Settings settings_of(int argc, const char *const *argv) {
    Settings s;
    FlagsGiven given;
    flags_parse(&s, &given, argc, (char **)(uintptr_t)argv);
    schedule_check(&s, &given);
    return s;
}

/* A schedule of 100 steps with 10 of warmup from 1 down to 0.2: rates at some steps, by hand. */
static void check_rates(const char *name, const char *decay, const double expected[][2], int n) {
    const char *argv[] = {"test", "--lr", "1", "--min-lr", "0.2", "--warmup", "10", "--steps", "100", "--schedule",
                          name, "--decay-steps", decay};
    Settings s = settings_of(decay ? 13 : 11, argv);
    double worst = 0;
    for (int i = 0; i < n; i++) worst = fmax(worst, fabs(learning_rate(&s, (i64)expected[i][0]) - expected[i][1]));
    check(worst < 1e-15, "%s%s%s: %d rates differ by %.1e", name, decay ? ", decay in " : "", decay ? decay : "", n,
          worst);
}

static void check_schedules(void) {
    const double cosine[][2] = {{0, 0.1}, {4, 0.5}, {9, 1}, {10, 1}, {55, 0.6}, {40, 0.2 + 0.4 * 1.5},
                                {99, 0.2 + 0.4 * (1 + cos(M_PI * 89 / 90))}};
    const double linear[][2] = {{0, 0.1}, {9, 1}, {10, 1}, {55, 0.6}, {37, 0.2 + 0.8 * 0.7}, {99, 0.2 + 0.8 / 90}};
    const double wsd[][2] = {{0, 0.1}, {9, 1}, {10, 1}, {79, 1}, {80, 1}, {81, 0.96}, {90, 0.6}, {99, 0.24}};
    const double tenth[][2] = {{10, 1}, {89, 1}, {90, 1}, {91, 0.92}, {99, 0.28}};
    check_rates("cosine", NULL, cosine, COUNT_OF(cosine));
    check_rates("linear", NULL, linear, COUNT_OF(linear));
    check_rates("wsd", "20", wsd, COUNT_OF(wsd));
    check_rates("wsd", NULL, tenth, COUNT_OF(tenth));
    const char *argv[] = {"test", "--lr", "1", "--warmup", "10", "--steps", "100", "--schedule", "constant"};
    Settings s = settings_of(COUNT_OF(argv), argv);
    check(learning_rate(&s, 4) == 0.5 && learning_rate(&s, 10) == 1 && learning_rate(&s, 99) == 1,
          "constant: warmup, then one rate");
    const char *all[] = {"test", "--lr", "1", "--steps", "50", "--warmup", "50", "--schedule", "cosine"};
    s = settings_of(COUNT_OF(all), all);
    check(learning_rate(&s, 49) == 1 && isfinite(learning_rate(&s, 50)), "a warmup of all steps divides by no zero");
}

static void parse_words(const char *words) {
    static char text[256];
    const char *argv[16] = {"test"};
    int argc = 1;
    snprintf(text, sizeof text, "%s", words);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    settings_of(argc, argv);
}

static void check_refusals(void) {
    const char *cases[][2] = {
        {"--decay-steps 5", "--decay-steps needs --schedule wsd; --schedule is cosine"},
        {"--schedule constant --min-lr 0.00001", "--min-lr has no meaning under --schedule constant"},
        {"--schedule wsd --steps 20 --warmup 15 --decay-steps 6",
         "--warmup 15 and --decay-steps 6 are more than --steps 20"},
        {"--schedule step", "--schedule step: must be one of cosine|linear|constant|wsd"},
        {"--on-spike ignore", "--on-spike ignore: must be one of stop|skip|continue"},
    };
    for (int i = 0; i < COUNT_OF(cases); i++) {
        char text[512];
        int status = run_child(parse_words, cases[i][0], text, sizeof text);
        check(is_one_error(status, text) && strstr(text, cases[i][1]), "%s: %.*s", cases[i][0],
              (int)strcspn(text, "\n"), text);
    }
}

/* A loss that wavers around `level`: standard deviation 0.1, the same numbers always. */
static double wavering(i64 i, double level) { return level + 0.1 * random_normal(tensor_key(3, "loss"), i); }

static void check_spikes(void) {
    SpikeWatch w;
    memset(&w, 0, sizeof w);
    double highest = 0;
    for (i64 i = 0; i < 2000; i++)
        highest = fmax(highest, spike_height(&w, wavering(i, 3))), spike_count(&w, wavering(i, 3), 6);
    check(highest > 2 && highest < 6, "2000 losses that waver are none: at most %.1f sigma", highest);
    check(fabs(w.mean - 3) < 0.05 && w.variance > 0.005 && w.variance < 0.02, "mean %.3f, variance %.4f of N(3, 0.01)",
          w.mean, w.variance);
    double mean = w.mean, height = spike_height(&w, 5);
    spike_count(&w, 5, 6);
    check(height > 15 && fabs(w.mean - mean) < 0.05, "a jump of 20 sigma is seen (%.1f) and moves the mean by %.4f",
          height, fabs(w.mean - mean));
    int counted = 0;
    for (i64 i = 0; i < 500; i++) counted += spike_height(&w, wavering(i, 6)) > 6, spike_count(&w, wavering(i, 6), 6);
    check(counted > 0 && counted < 40 && spike_height(&w, 6) < 2, "a level that stays is the rule after %d steps",
          counted);

    memset(&w, 0, sizeof w);
    int early = 0;
    for (i64 i = 0; i < SPIKE_FIRST; i++)
        early += spike_height(&w, i == 7 ? 1e6 : 2) > 0, spike_count(&w, i == 7 ? 1e6 : 2, 6);
    check(early == 0, "none of the first %d is judged", SPIKE_FIRST);
    memset(&w, 0, sizeof w);
    for (i64 i = 0; i < 100; i++) spike_count(&w, 2.5, 6);
    check(w.mean == 2.5 && w.variance == 0 && spike_height(&w, 2.5) == 0, "a loss that stands still is no spike");
    check(spike_height(&w, 2.6) == INFINITY, "above one that stood still, anything is");
    for (i64 i = 0; i < 100; i++) spike_count(&w, 2.6, 6);
    check(spike_height(&w, 2.6) < 6, "until it stands there");
}

int main(void) {
    check_refusals(); /* in children, before anything else */
    check_schedules();
    check_spikes();
    return checks_done();
}

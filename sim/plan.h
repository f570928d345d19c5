/* plan.h - many configurations of one model on one cluster: which way to run it, and how long a sequence may be.

   --plan      scheme x context x (dp x ring x head) x layout x micro-batch, as far as they multiply
               up to the world; what flags say is kept
   --max-seq   per scheme, on the mesh that the flags give                                                            */
#ifndef ODYSSEUS_SIM_PLAN_H
#define ODYSSEUS_SIM_PLAN_H

#include "ladder.h"

typedef struct {
    ModelOptions o;
    Forecast f;
} Candidate;

typedef struct {
    ModelOptions o;
    char why[512];
} Refusal;

typedef struct {
    const Settings *settings;
    const FlagsGiven *given;
    Candidate *candidate;
    Refusal *refusal;
    i64 candidates, refusals, room, refusal_room;
} Plan;

/* Room for one more of `size` bytes. */
static void *plan_grow(void *array, i64 used, i64 *room, size_t size) {
    if (used < *room) return array;
    *room = *room ? 2 * *room : 256;
    array = realloc(array, (size_t)*room * size);
    if (!array) FAIL(THIS_RANK, "out of host memory for %lld plans", *room);
    return array;
}

/* Keep these options as a candidate, or the reason why they cannot run (once a scheme and mesh). */
static void plan_add(Plan *p, const ModelOptions *o) {
    char why[1024];
    if (!options_refuse(o, why, sizeof why)) {
        p->candidate = (Candidate *)plan_grow(p->candidate, p->candidates, &p->room, sizeof(Candidate));
        p->candidate[p->candidates++].o = *o;
        return;
    }
    const Refusal *last = p->refusals ? &p->refusal[p->refusals - 1] : NULL;
    if (last && last->o.scheme == o->scheme && last->o.context == o->context &&
        memcmp(&last->o.shape, &o->shape, sizeof o->shape) == 0)
        return;
    p->refusal = (Refusal *)plan_grow(p->refusal, p->refusals, &p->refusal_room, sizeof(Refusal));
    Refusal *r = &p->refusal[p->refusals++];
    r->o = *o;
    snprintf(r->why, sizeof r->why, "%.500s", why);
}

/* Every layout and micro-batch of one scheme on one mesh. */
static void plan_mesh(Plan *p, ModelOptions o) {
    i64 group = o.batch / o.shape.dp, given_B = flag_given(p->given, "micro-batch") ? o.B : 0;
    RingLayout given_layout = o.layout;
    for (int layout = 0; layout < RING_LAYOUTS; layout++) {
        o.layout = (RingLayout)layout;
        if (flag_given(p->given, "ring-layout") ? o.layout != given_layout : layout > 0 && o.shape.ring == 1) continue;
        if (given_B || group * o.shape.dp != o.batch) { /* as told, or refused with the reason */
            plan_add(p, &o);
            continue;
        }
        for (o.B = 1; o.B <= group; o.B++)
            if (group % o.B == 0) plan_add(p, &o);
        o.B = 1;
    }
}

/* Every mesh of one scheme and context; a ring of one rank asks for none. */
static void plan_context(Plan *p, ModelOptions o, const Scheme *scheme, const Context *context, i64 least_ring) {
    i64 world = o.shape.world, given_ring = p->settings->ring;
    o.scheme = scheme, o.context = context;
    for (i64 dp = 1; dp <= world; dp++) {
        if (world % dp != 0 || (flag_given(p->given, "dp") && dp != p->settings->dp)) continue;
        for (i64 ring = least_ring; ring <= world / dp; ring++) {
            if (world / dp % ring != 0 || (flag_given(p->given, "ring") && ring != given_ring)) continue;
            i64 head = world / dp / ring;
            if (scheme->ring_takes_all && head > 1) continue;
            o.shape.dp = dp, o.shape.ring = ring, o.shape.head = head;
            plan_mesh(p, o);
        }
    }
}

/* The next context, from the i-th on, that a scheme can have under these flags: itself, or that of --context, or
   any; COUNT_OF(CONTEXTS): none. */
static int context_next(int i, const Scheme *scheme, const ModelOptions *base, const FlagsGiven *given) {
    int told = flag_given(given, "context");
    while (i < COUNT_OF(CONTEXTS) && ((scheme->context && CONTEXTS[i] != scheme->context) ||
                                      (told && CONTEXTS[i] != base->context)))
        i++;
    return i;
}

static void plan_scheme(Plan *p, const ModelOptions *base, const Scheme *scheme) {
    i64 least_ring = 1;
    for (int i = context_next(0, scheme, base, p->given); i < COUNT_OF(CONTEXTS);
         i = context_next(i + 1, scheme, base, p->given))
        plan_context(p, *base, scheme, CONTEXTS[i], least_ring), least_ring = 2;
}

/* What fits before what does not; the faster, or the smaller, first. */
static int candidate_order(const void *a, const void *b) {
    const Forecast *x = &((const Candidate *)a)->f, *y = &((const Candidate *)b)->f;
    if (forecast_fits(x) != forecast_fits(y)) return forecast_fits(y) - forecast_fits(x);
    if (!forecast_fits(x)) return x->memory.used < y->memory.used ? -1 : x->memory.used > y->memory.used;
    return x->seconds < y->seconds ? -1 : x->seconds > y->seconds;
}

static void plan_progress(i64 done, i64 all) {
    static double last = 0;
    if (!isatty(2) || (done < all && seconds_now() - last < 0.2)) return;
    last = seconds_now();
    fprintf(stderr, done < all ? "\rplanning %lld of %lld" : "\r\033[K", done, all);
}

static void print_candidate(i64 place, const Candidate *c) {
    const ModelOptions *o = &c->o;
    char time[32], levers[LEVERS_TEXT];
    int rings = o->shape.ring > 1;
    printf("%4lld  %-9s %5lld %5lld %5lld  %-10s  %-9s %6lld %10s %12.0f %6.1f%% %8.1f%% %9.2f  %s%s\n", place,
           o->scheme->name, o->shape.dp, o->shape.ring, o->shape.head, rings ? RING_LAYOUT_NAMES[o->layout] : "-",
           rings ? o->context->name : "-", o->B, time_text(time, c->f.seconds), c->f.tokens_per_s,
           100 * c->f.mfu_causal, 100 * c->f.exposed / c->f.seconds,
           (double)c->f.memory.used / 1e9, levers_text(levers, o), forecast_fits(&c->f) ? "" : "; does not fit");
}

/* The flags that make a run of these options out of one on their model, length, batch and world. */
static const char *plan_flags(char out[320], const ModelOptions *o) {
    char levers[LEVERS_TEXT];
    int n = snprintf(out, 320, "--sp %s --dp %lld --micro-batch %lld", o->scheme->name, o->shape.dp, o->B);
    if (o->shape.ring > 1)
        n += snprintf(out + n, 320 - (size_t)n, " --ring %lld --ring-layout %s --context %s", o->shape.ring,
                      RING_LAYOUT_NAMES[o->layout], o->context->name);
    if (strcmp(levers_text(levers, o), "none") == 0) return out;
    for (const char *lever = strtok(levers, ","); lever; lever = strtok(NULL, ","))
        n += snprintf(out + n, 320 - (size_t)n, " --%s", lever + (*lever == ' '));
    return out;
}

#define PLAN_ROWS 20 /* printed; --json has all */

static void print_plans(const Plan *p, const Trainer *t) {
    i64 fit = 0;
    while (fit < p->candidates && forecast_fits(&p->candidate[fit].f)) fit++;
    printf("plans    %lld can run, %lld of them fit, %lld are refused; the best %lld:\n\n", p->candidates, fit,
           p->refusals, i64_min(PLAN_ROWS, p->candidates));
    printf(
        "      sp           dp  ring  head  layout      context    micro       step        tok/s     mfu   exposed   "
        "GB/rank  levers\n");
    for (i64 i = 0; i < i64_min(PLAN_ROWS, p->candidates); i++) print_candidate(i + 1, &p->candidate[i]);
    if (p->candidates > PLAN_ROWS)
        printf("      ... and %lld more%s\n", p->candidates - PLAN_ROWS,
               t->settings->json ? "" : "; --json FILE has all");
    char flags[320];
    printf("\nto run 1 add %s\n", plan_flags(flags, &p->candidate[0].o));
    if (p->refusals) printf("\nrefused\n");
    for (i64 i = 0; i < p->refusals; i++) {
        const MeshShape *s = &p->refusal[i].o.shape;
        printf("  %-9s %5lld %5lld %5lld  %s\n", p->refusal[i].o.scheme->name, s->dp, s->ring, s->head,
               p->refusal[i].why);
    }
}

static cJSON *json_plans(const Plan *p) {
    cJSON *json = cJSON_CreateObject(), *rows = cJSON_AddArrayToObject(json, "plans"),
          *refused = cJSON_AddArrayToObject(json, "refused");
    for (i64 i = 0; i < p->candidates; i++) {
        cJSON *row = cJSON_CreateObject();
        json_options(row, &p->candidate[i].o, &p->candidate[i].f);
        cJSON_AddItemToArray(rows, row);
    }
    for (i64 i = 0; i < p->refusals; i++) {
        cJSON *row = cJSON_CreateObject();
        json_options(row, &p->refusal[i].o, NULL);
        cJSON_AddStringToObject(row, "why", p->refusal[i].why);
        cJSON_AddItemToArray(refused, row);
    }
    return json;
}

/* Nothing fits: the closest, and what it lacks. */
static void plan_fail(const Plan *p) {
    if (!p->candidates)
        FAIL(EVERYONE, "--plan: no scheme and mesh can run this; the first reason: %s",
             p->refusals ? p->refusal[0].why : "no mesh");
    const Candidate *c = &p->candidate[0];
    char fits[256], advice[512], flags[320];
    fit_text(fits, sizeof fits, &c->f);
    memory_advice(&c->o, c->f.available, options_bytes, advice, sizeof advice);
    FAIL(EVERYONE,
         "--plan: nothing fits. Closest is %s, which %s. There, %s", plan_flags(flags, &c->o), fits, advice);
}

/* The first rung of the ladder that fits, or the last, which takes the least. */
static void plan_levers(ModelOptions *o, const FlagsGiven *given, const Cluster *cluster) {
    ModelOptions base = *o, next;
    i64 available = cluster_memory(cluster, mesh_links(o->shape, o->config.kv_heads));
    for (int rung = 0; rung < RUNGS; rung++) {
        if (!ladder_rung(&base, given, cluster, (Rung)rung, &next)) continue;
        *o = next;
        if (options_bytes(o) <= available) return;
    }
}

/* --plan: `base` holds what the flags say. */
static void plan_all(const ModelOptions *base, const Settings *s, const FlagsGiven *given, const Cluster *cluster) {
    Plan p = {s, given, NULL, NULL, 0, 0, 0, 0};
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    for (int i = 0; i < COUNT_OF(SCHEMES); i++)
        if (!flag_given(given, "sp") || SCHEMES[i] == base->scheme) plan_scheme(&p, base, SCHEMES[i]);
    for (i64 i = 0; i < p.candidates; i++) {
        plan_progress(i, p.candidates);
        plan_levers(&p.candidate[i].o, given, cluster);
        forecast_open(t, &p.candidate[i].o, s, cluster);
        forecast_step(&p.candidate[i].f, t, 0);
        model_free(&t->model);
    }
    plan_progress(p.candidates, p.candidates);
    qsort(p.candidate, (size_t)p.candidates, sizeof(Candidate), candidate_order);
    forecast_open(t, base, s, cluster);
    print_model(t);
    print_plans(&p, t);
    report_write(s->json, json_plans(&p));
    if (!p.candidates || !forecast_fits(&p.candidate[0].f)) plan_fail(&p);
    free(t);
    free(p.candidate);
    free(p.refusal);
}

/* ---- how long a sequence may be ---------------------------------------------------------------------------------- */

/* The mesh that the flags leave to a scheme. */
static MeshShape scheme_shape(const Scheme *scheme, const Settings *s, const FlagsGiven *given) {
    MeshShape m = {s->world, s->dp, s->ring, 1};
    if (scheme->ring_takes_all) m.ring = flag_given(given, "ring") ? s->ring : s->world / s->dp;
    else if (!flag_given(given, "ring")) m.ring = 1;
    m.head = m.world / m.dp / m.ring;
    return m;
}

/* What keeps the sequence from being longer than in `c`: the category of memory that grows most with it, or that the
   model has no more positions (what else refuses long sequences does so far beyond any memory). */
static const char *longest_stop(const Candidate *c, const Settings *s, const Cluster *cluster) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    ModelOptions o = c->o;
    int most = 0;
    o.L *= 2;
    if (o.config.has & HAS_POSITIONS && o.L > o.config.max_pos) {
        free(t);
        return "--max-pos";
    }
    forecast_open(t, &o, s, cluster);
    model_init(&t->model, &o, wire_none(), 1, 0);
    trainer_plan(t);
    const i64 *then = t->model.arena.peak.by_category, *now = c->f.memory.by_category;
    for (int i = 1; i < MEM_CATEGORIES; i++)
        if (then[i] - now[i] > then[most] - now[most]) most = i;
    model_free(&t->model);
    free(t);
    return MEM_NAMES[most];
}

/* --max-seq: the longest sequence of one scheme, forecast there; or why there is none. */
static cJSON *longest_row(const ModelOptions *base, const Scheme *scheme, const Context *context, const Settings *s,
                          const FlagsGiven *given, const Cluster *cluster) {
    Candidate c;
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    cJSON *row = cJSON_CreateObject();
    char why[1024], time[32];
    c.o = *base;
    c.o.scheme = scheme, c.o.shape = scheme_shape(scheme, s, given);
    c.o.context = context;
    c.o.L = sequence_unit(&c.o);
    int refused = options_refuse(&c.o, why, sizeof why);
    i64 available = refused ? 0 : cluster_memory(cluster, mesh_links(c.o.shape, c.o.config.kv_heads));
    c.o.L = refused ? 0 : longest_sequence(&c.o, available, options_bytes);
    if (!refused && !c.o.L) {
        ModelOptions shortest = c.o;
        shortest.L = sequence_unit(&shortest);
        double need = (double)options_bytes(&shortest), room = (double)available;
        snprintf(why, sizeof why, "the shortest sequence needs %.2f GB, %.2f GB more than the %.2f GB there are",
                 need / 1e9, (need - room) / 1e9, room / 1e9);
        cJSON_AddNumberToObject(row, "lacks_bytes", need - room);
    }
    printf("%-9s %5lld %5lld %5lld ", scheme->name, c.o.shape.dp, c.o.shape.ring, c.o.shape.head);
    if (c.o.L) {
        forecast_open(t, &c.o, s, cluster);
        forecast_step(&c.f, t, 0);
        model_free(&t->model);
        const char *stop = longest_stop(&c, s, cluster);
        printf("%14lld %9.2f %11s %12.0f %6.1f%%  %s\n", c.o.L, (double)c.f.memory.used / 1e9,
               time_text(time, c.f.seconds), c.f.tokens_per_s, 100 * c.f.mfu_causal, stop);
        json_options(row, &c.o, &c.f);
        cJSON_AddStringToObject(row, "stopped_by", stop);
    } else {
        printf("%14s  %s\n", "none", why);
        json_options(row, &c.o, NULL);
        cJSON_AddStringToObject(row, "why", why);
    }
    free(t);
    return row;
}

/* Has any row a length? If not, the closest row's reason: that which lacks the least memory, else the first. */
static int longest_any(const cJSON *rows, char *closest, size_t size) {
    double least = 1e300;
    const cJSON *row;
    closest[0] = 0;
    cJSON_ArrayForEach(row, rows) {
        const cJSON *why = cJSON_GetObjectItem(row, "why"), *lacks = cJSON_GetObjectItem(row, "lacks_bytes");
        if (!why) return 1;
        if (closest[0] && !(lacks && lacks->valuedouble < least)) continue;
        if (lacks) least = lacks->valuedouble;
        snprintf(closest, size, "--sp %s: %s", cJSON_GetObjectItem(row, "sp")->valuestring, why->valuestring);
    }
    return 0;
}

static void longest_all(const ModelOptions *base, const Settings *s, const FlagsGiven *given, const Cluster *cluster) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    cJSON *json = cJSON_CreateObject(), *rows = cJSON_AddArrayToObject(json, "longest");
    forecast_open(t, base, s, cluster);
    print_model(t);
    printf("longest  sequences whose arena fits into %.2f GB a rank of %s, less %.2f GB a communicator, %lld ranks, "
           "micro-batch %lld\n\n",
           (double)cluster_memory(cluster, 0) / 1e9, cluster->name, cluster->communicator / 1e9, base->shape.world,
           base->B);
    printf("sp           dp  ring  head        seq-len   GB/rank        step        tok/s     mfu  stopped by\n");
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) {
        int context = context_next(0, SCHEMES[i], base, given);
        if (context < COUNT_OF(CONTEXTS) && (!flag_given(given, "sp") || SCHEMES[i] == base->scheme))
            cJSON_AddItemToArray(rows, longest_row(base, SCHEMES[i], CONTEXTS[context], s, given, cluster));
    }
    char closest[1024];
    int any = longest_any(rows, closest, sizeof closest);
    report_write(s->json, json);
    if (!any) FAIL(EVERYONE, "--max-seq: nothing can run: %s", closest);
    free(t);
}

#endif

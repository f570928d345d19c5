/* planner.h - --html: the planner as a page. A grid of forecasts, model x cluster x recompute x ranks x length x
   scheme, goes into sim/planner.html, whose sliders choose among them; the browser computes nothing.

   What flags say is kept: --model, --cluster, --recompute, --world, --seq-len narrow the grid to one value each, --dp,
   --batch, --micro-batch, --overlap, ... hold everywhere. A scheme's mesh is the plain one, all ranks on its head axis;
   where the heads do not divide, the smallest ring around them that runs.

   cell    null: cannot run; else [step in us, MFU in 1/1000, ring, MB a rank may have, MB by category...,
           us and of them waited, of the parts of a step in their order...]                                           */
#ifndef ODYSSEUS_SIM_PLANNER_H
#define ODYSSEUS_SIM_PLANNER_H

#include "plan.h"

#define PLANNER_MODELS 64
#define PLANNER_VALUES 16
#define PLANNER_SHORTEST 4096 /* tokens, where no --seq-len is given */

/* The axes of the grid. */
typedef struct {
    const char *model[PLANNER_MODELS], *cluster[PLANNER_MODELS], *recompute[PLANNER_VALUES];
    i64 world[PLANNER_VALUES], length[PLANNER_VALUES];
    int models, clusters, recomputes, worlds, lengths;
    char names[PLANNER_MODELS][256]; /* of the clusters */
    char choices[256];               /* of --recompute */
} Grid;

static const struct {
    BlockKind block;
    Phase phase;
    const char *name;
} PLANNER_PARTS[] = {
    {BLOCK_EMBEDDING, PHASE_FORWARD, "embedding"}, {BLOCK_ATTENTION, PHASE_FORWARD, "attention forward"},
    {BLOCK_MLP, PHASE_FORWARD, "MLP forward"}, {BLOCK_LM_HEAD, PHASE_FORWARD, "head forward"},
    {BLOCK_LM_HEAD, PHASE_BACKWARD, "head backward"}, {BLOCK_MLP, PHASE_BACKWARD, "MLP backward"},
    {BLOCK_ATTENTION, PHASE_BACKWARD, "attention backward"}, {BLOCK_EMBEDDING, PHASE_BACKWARD, "embedding backward"},
    {BLOCK_OTHER, PHASE_OPTIMIZER, "optimizer"}};

static int planner_order(const void *a, const void *b) { return strcmp((const char *)a, (const char *)b); }

/* The clusters of the directory, by name. */
static void planner_clusters(Grid *g) {
    char directory[2560];
    cluster_directory(directory, sizeof directory);
    DIR *d = opendir(directory);
    for (struct dirent *e; d && g->clusters < PLANNER_MODELS && (e = readdir(d)) != NULL;) {
        const char *end = strstr(e->d_name, ".cluster");
        if (end) snprintf(g->names[g->clusters++], sizeof g->names[0], "%.*s", (int)(end - e->d_name), e->d_name);
    }
    if (d) closedir(d);
    qsort(g->names, (size_t)g->clusters, sizeof g->names[0], planner_order);
    for (int i = 0; i < g->clusters; i++) g->cluster[i] = g->names[i];
}

static void planner_grid(Grid *g, const Settings *s, const FlagsGiven *given) {
    memset(g, 0, sizeof *g);
    if (model_is_given(given)) g->model[g->models++] = s->model;
    for (int i = 0; !model_is_given(given) && i < COUNT_OF(PRESETS) && g->models < PLANNER_MODELS; i++) {
        Config c = PRESETS[i].config;
        config_check(&c, PRESETS[i].name);
        if (c.has & HAS_POSITIONS && c.max_pos < PLANNER_SHORTEST) continue; /* GPT-2 ends there */
        if (config_parameters(&c) > 100000000) g->model[g->models++] = PRESETS[i].name;
    }
    if (flag_given(given, "cluster")) g->cluster[g->clusters++] = s->cluster;
    else planner_clusters(g);
    snprintf(g->choices, sizeof g->choices, "%s",
             flag_given(given, "recompute") ? s->recompute : flag_find("recompute")->choices);
    for (char *rest = g->choices, *word; g->recomputes < PLANNER_VALUES && (word = strsep(&rest, "|")) != NULL;)
        g->recompute[g->recomputes++] = word;
    if (s->world) g->world[g->worlds++] = s->world;
    for (i64 n = 1; !s->world && n <= 128; n *= 2) g->world[g->worlds++] = n;
    if (flag_given(given, "seq-len")) g->length[g->lengths++] = s->seq_len;
    int step = g->models * g->clusters > PLANNER_VALUES ? 4 : 2; /* many of both: half the lengths, a page of 5 MB */
    for (i64 L = PLANNER_SHORTEST; !flag_given(given, "seq-len") && L <= 1 << 20; L *= step)
        g->length[g->lengths++] = L;
}

/* The mesh of a scheme: *o as it runs. 0: it does not. */
static int planner_mesh(ModelOptions *o, const Scheme *scheme, i64 world, const Settings *s, const FlagsGiven *given) {
    char why[1024];
    int context = context_next(0, scheme, o, given);
    if (world % s->dp != 0 || context == COUNT_OF(CONTEXTS)) return 0;
    o->scheme = scheme, o->context = CONTEXTS[context];
    i64 ranks = world / s->dp;
    for (i64 ring = 1; ring <= ranks; ring++) {
        if (ranks % ring != 0 || (flag_given(given, "ring") && ring != s->ring)) continue;
        if (scheme->ring_takes_all && ring != ranks) continue;
        o->shape.world = world, o->shape.dp = s->dp, o->shape.ring = ring, o->shape.head = ranks / ring;
        if (!options_refuse(o, why, sizeof why)) return 1;
    }
    return 0;
}

/* Where the step's time went, part by part: all of it, and what was waited. */
static void planner_parts(FILE *f, const Trace *t) {
    for (int p = 0; p < COUNT_OF(PLANNER_PARTS); p++) {
        double all = 0, waited = 0;
        for (i64 i = 0; i < t->count; i++) {
            const Span *s = &t->span[i];
            if (!s->closed || s->block != PLANNER_PARTS[p].block || s->phase != PLANNER_PARTS[p].phase) continue;
            if (s->kind == SPAN_PART) all += s->end - s->begin;
            if (s->kind == SPAN_WAIT) waited += s->end - s->begin;
        }
        fprintf(f, ",%.0f,%.0f", 1e6 * all, 1e6 * waited);
    }
}

/* Forecast these options and write their cell. */
static void planner_cell(FILE *f, Trainer *t, const ModelOptions *o, const Settings *s, const Cluster *cluster) {
    Forecast k;
    forecast_open(t, o, s, cluster);
    trace_init(&t->trace, 1, &t->model.arena.now.used);
    forecast_step(&k, t, 1);
    fprintf(f, "[%.0f,%.0f,%lld,%.0f", 1e6 * k.seconds, 1e3 * k.mfu_causal, o->shape.ring, (double)k.available / 1e6);
    for (int c = 0; c < MEM_CATEGORIES; c++) fprintf(f, ",%.0f", (double)k.memory.by_category[c] / 1e6);
    planner_parts(f, &t->trace);
    fprintf(f, "]");
    trace_free(&t->trace);
    model_free(&t->model);
}

static cJSON *planner_names(const char *const *names, int n) {
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < n; i++) cJSON_AddItemToArray(array, cJSON_CreateString(names[i]));
    return array;
}

static cJSON *planner_numbers(const i64 *values, int n) {
    cJSON *array = cJSON_CreateArray();
    for (int i = 0; i < n; i++) cJSON_AddItemToArray(array, cJSON_CreateNumber((double)values[i]));
    return array;
}

/* The grid's axes, as JSON without the closing brace; '<' as an escape, so that no name can end the script. */
static void planner_axes(FILE *f, const Grid *g, i64 batch) {
    cJSON *json = cJSON_CreateObject(), *schemes = cJSON_CreateArray(), *parts = cJSON_CreateArray();
    for (int i = 0; i < COUNT_OF(SCHEMES); i++) cJSON_AddItemToArray(schemes, cJSON_CreateString(SCHEMES[i]->name));
    for (int i = 0; i < COUNT_OF(PLANNER_PARTS); i++)
        cJSON_AddItemToArray(parts, cJSON_CreateString(PLANNER_PARTS[i].name));
    cJSON_AddItemToObject(json, "models", planner_names(g->model, g->models));
    cJSON_AddItemToObject(json, "clusters", planner_names(g->cluster, g->clusters));
    cJSON_AddItemToObject(json, "recompute", planner_names(g->recompute, g->recomputes));
    cJSON_AddItemToObject(json, "worlds", planner_numbers(g->world, g->worlds));
    cJSON_AddItemToObject(json, "lengths", planner_numbers(g->length, g->lengths));
    cJSON_AddItemToObject(json, "schemes", schemes);
    cJSON_AddItemToObject(json, "memory", planner_names(MEM_NAMES, MEM_CATEGORIES));
    cJSON_AddItemToObject(json, "parts", parts);
    cJSON_AddNumberToObject(json, "batch", (double)batch);
    char *text = cJSON_PrintUnformatted(json);
    text[strlen(text) - 1] = 0;
    for (const char *p = text; *p; p++) *p == '<' ? fputs("\\u003c", f) : fputc(*p, f);
    free(text);
    cJSON_Delete(json);
}

/* All cells, in the order of the axes. Returns how many can run. */
static i64 planner_cells(FILE *f, const Grid *g, const Settings *base, const FlagsGiven *given, Cluster *cluster) {
    Trainer *t = (Trainer *)host_alloc(sizeof(Trainer));
    i64 done = 0, ran = 0, all = (i64)g->models * g->clusters * g->recomputes * g->worlds * g->lengths;
    for (i64 i = 0; i < all; i++) {
        i64 rest = i, length = rest % g->lengths, world = (rest /= g->lengths) % g->worlds,
            recompute = (rest /= g->worlds) % g->recomputes, machine = (rest /= g->recomputes) % g->clusters,
            model = rest / g->clusters;
        Settings s = *base;
        ModelOptions o;
        plan_progress(done++, all);
        s.model = g->model[model], s.recompute = g->recompute[recompute];
        cluster_read(cluster, g->cluster[machine]);
        take_cluster(cluster, &s);
        DevicePlace place = {cluster, 1, 1, 0};
        i64 dp = s.dp;
        s.dp = s.ring = 1; /* the mesh is chosen below */
        options_from_flags(&o, SCHEMES[0], context_find(s.context, SCHEMES[0]), &s, given, 1, place);
        s.dp = dp, s.ring = base->ring;
        o.L = g->length[length], o.batch = flag_given(given, "batch") ? s.batch : dp;
        for (int k = 0; k < COUNT_OF(SCHEMES); k++) {
            if (i || k) fputc(',', f);
            if (planner_mesh(&o, SCHEMES[k], g->world[world], &s, given)) ran++, planner_cell(f, t, &o, &s, cluster);
            else fputs("null", f);
        }
    }
    plan_progress(all, all);
    free(t);
    return ran;
}

/* --html: the template up to its mark, the grid, the rest. */
static void planner_write(Settings *s, const FlagsGiven *given, Cluster *cluster) {
    static const char mark[] = "@GRID@";
    char directory[2560], path[2816], line[4096];
    Grid *g = (Grid *)host_alloc(sizeof(Grid));
    i64 ran = 0;
    cluster_directory(directory, sizeof directory);
    snprintf(path, sizeof path, "%s/../../../sim/planner.html", directory);
    FILE *from = fopen(path, "r"), *f = from ? fopen(s->html, "w") : NULL;
    if (!from) FAIL(EVERYONE, "--html: no %s; run the program where it was built, in the repository", path);
    if (!f) FAIL(EVERYONE, "--html %s: cannot write: %s", s->html, strerror(errno));
    planner_grid(g, s, given);
    while (fgets(line, sizeof line, from)) {
        char *at = strstr(line, mark);
        if (!at) {
            fputs(line, f);
            continue;
        }
        *at = 0;
        fputs(line, f);
        planner_axes(f, g, flag_given(given, "batch") ? s->batch : s->dp);
        fputs(",\"cells\":[", f);
        ran = planner_cells(f, g, s, given, cluster);
        fprintf(f, "]}%s", at + strlen(mark));
    }
    fclose(from);
    int bad = ferror(f);
    if (fclose(f) != 0 || bad) FAIL(EVERYONE, "--html %s: cannot write: %s", s->html, strerror(errno));
    if (!ran) unlink(s->html);
    if (!ran) FAIL(EVERYONE, "--html %s: none of its configurations can run; --dry-run says why", s->html);
    printf("planner  %s: %lld forecasts; open it in a browser\n", s->html, ran);
    free(g);
}

#endif

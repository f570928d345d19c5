/* cluster.h - what the simulator knows of a machine: a small text file, every figure with its source.

   # a comment
   peak      bf16=312e12 fp32=19.5e12    # data sheet     a field: name, values, and behind # where they come from
   gemm      1e9=0.35 1e12=0.85          # measured       a curve: fraction at a size, in between linear in log(size)

   Units are seconds, bytes, FLOP, and fractions of a peak or bandwidth.

   The table of fields below drives the reader, its refusals and the help: a field is one row.                        */
#ifndef ODYSSEUS_SIM_CLUSTER_H
#define ODYSSEUS_SIM_CLUSTER_H

#include "../device.h"

#include <dirent.h>

#define CURVE_POINTS 16

typedef struct {
    int points;
    double at[CURVE_POINTS], value[CURVE_POINTS];
} Curve;

/* What one hop takes: alpha + bytes / beta. `overlap`: the part of it that goes on while the rank computes. */
typedef struct {
    double alpha, beta, overlap;
} LinkModel;

typedef struct Cluster {
    char name[64], path[3072];
    const char *device, *dtype, *grad_comm;  /* gpu or cpu; its usual compute type; weight gradients on the wire */
    double peak[SIM_DTYPE_COUNT];            /* FLOP/s by row of SIM_DTYPES; 0: it does not compute in it */
    double memory, reserved;                 /* bytes of a rank; of them what the arena cannot have (contexts,
                                                libraries) */
    double communicator;                     /* besides, for each group of ranks that reach each other by a way of
                                                their own */
    double bandwidth;                        /* bytes/s of a rank's memory */
    double host_link;                        /* bytes/s between a rank and its host's memory; 0: none is known */
    double launch, step;                     /* host: seconds to ask for an operation; besides, for a step */
    double slowdown;                         /* of products and attention while bytes are moving */
    /* fraction of the peak, by FLOP of a product; by keys of a query */
    Curve gemm, attention_forward, attention_backward;
    Curve norm, pointwise, embedding, classifier, optimizer;         /* fraction of the bandwidth, by bytes */
    double ranks_per_node, ports;            /* of a node: ranks; ports to other nodes, 0: one a rank */
    LinkModel inside, between;               /* from rank to rank of a node; of a port, between nodes */
} Cluster;

/* The curve at `x` > 0: between points linear in log(x), beyond them constant. */
static inline double curve_at(const Curve *c, double x) {
    if (x <= c->at[0]) return c->value[0];
    for (int i = 1; i < c->points; i++)
        if (x < c->at[i])
            return c->value[i - 1] +
                   (c->value[i] - c->value[i - 1]) * log(x / c->at[i - 1]) / log(c->at[i] / c->at[i - 1]);
    return c->value[c->points - 1];
}

/* ---- the fields -------------------------------------------------------------------------------------------------- */

typedef enum { FIELD_CHOICE, FIELD_NUMBER, FIELD_CURVE, FIELD_PEAKS, FIELD_LINK } FieldType;

typedef struct {
    const char *name;
    FieldType type;
    size_t at;           /* offset in Cluster */
    double min, max;     /* of a number, of a curve's values, of beta */
    const char *choices; /* of FIELD_CHOICE: "a|b" */
    const char *fallback; /* where the file may leave it out; NULL: it may not */
    const char *unit;
} ClusterField;

#define CLUSTER(field) offsetof(Cluster, field)

static const ClusterField CLUSTER_FIELDS[] = {
    {"device", FIELD_CHOICE, CLUSTER(device), 0, 0, "gpu|cpu", NULL,
     "gpu: a host launches, streams run; cpu: the host computes"},
    {"dtype", FIELD_CHOICE, CLUSTER(dtype), 0, 0, "bf16|fp32|fp64|bf16-only", NULL,
     "compute type unless --dtype says otherwise"},
    {"grad-comm", FIELD_CHOICE, CLUSTER(grad_comm), 0, 0, "fp32|bf16", "fp32",
     "weight gradients on the wire unless --grad-comm says otherwise"},
    {"peak", FIELD_PEAKS, CLUSTER(peak), 1e6, 1e18, NULL, NULL,
     "FLOP/s of a rank by compute type: bf16=X fp32=X fp64=X bf16-only=X"},
    {"memory", FIELD_NUMBER, CLUSTER(memory), 1e6, 1e16, NULL, NULL, "bytes of a rank"},
    {"reserved", FIELD_NUMBER, CLUSTER(reserved), 0, 1e15, NULL, NULL, "bytes that contexts and libraries keep"},
    {"communicator", FIELD_NUMBER, CLUSTER(communicator), 0, 1e15, NULL, "0",
     "bytes besides for each communicator of a mesh"},
    {"bandwidth", FIELD_NUMBER, CLUSTER(bandwidth), 1e6, 1e16, NULL, NULL, "bytes/s of a rank's memory"},
    {"host-link", FIELD_NUMBER, CLUSTER(host_link), 0, 1e16, NULL, "0",
     "bytes/s between a rank and its host's memory, each way; 0: --offload is not modelled"},
    {"launch", FIELD_NUMBER, CLUSTER(launch), 0, 1, NULL, NULL, "seconds of the host an operation"},
    {"step", FIELD_NUMBER, CLUSTER(step), 0, 100, NULL, "0", "seconds of the host a step, besides"},
    {"slowdown", FIELD_NUMBER, CLUSTER(slowdown), 1, 100, NULL, "1",
     "of products and attention while bytes are moving"},
    {"gemm", FIELD_CURVE, CLUSTER(gemm), 1e-6, 1, NULL, NULL, "fraction of the peak, by FLOP of the product"},
    {"attention-forward", FIELD_CURVE, CLUSTER(attention_forward), 1e-6, 1, NULL, NULL,
     "fraction of the peak, by keys of the block"},
    {"attention-backward", FIELD_CURVE, CLUSTER(attention_backward), 1e-6, 1, NULL, NULL, "likewise"},
    {"norm", FIELD_CURVE, CLUSTER(norm), 1e-6, 1, NULL, NULL, "fraction of the bandwidth, by bytes"},
    {"pointwise", FIELD_CURVE, CLUSTER(pointwise), 1e-6, 1, NULL, NULL, "likewise"},
    {"embedding", FIELD_CURVE, CLUSTER(embedding), 1e-6, 1, NULL, NULL, "likewise"},
    {"classifier", FIELD_CURVE, CLUSTER(classifier), 1e-6, 1, NULL, NULL, "likewise"},
    {"optimizer", FIELD_CURVE, CLUSTER(optimizer), 1e-6, 1, NULL, NULL, "likewise"},
    {"ranks-per-node", FIELD_NUMBER, CLUSTER(ranks_per_node), 1, 1 << 20, NULL, NULL,
     "neighbours in the world's order"},
    {"ports-per-node", FIELD_NUMBER, CLUSTER(ports), 0, 1 << 20, NULL, "0",
     "ports to other nodes, which its ranks share; 0: one a rank"},
    {"inside", FIELD_LINK, CLUSTER(inside), 1, 1e16, NULL, NULL,
     "links of a node: alpha=seconds beta=bytes/s overlap=fraction"},
    {"between", FIELD_LINK, CLUSTER(between), 1, 1e16, NULL, NULL, "a port between nodes, likewise"},
};

/* ---- reading ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *path;
    int line;
    const ClusterField *field;
} ClusterLine;

/* Stop with file, line and field. */
#define CLUSTER_FAIL(where, format, ...) \
    FAIL(EVERYONE, "%s, line %d, %s: " format, (where)->path, (where)->line, \
         (where)->field ? (where)->field->name : "?", __VA_ARGS__)

static inline double cluster_number(const ClusterLine *w, const char *text, double min, double max) {
    char *end = NULL;
    double x = strtod(text, &end);
    if (end == text || *end) CLUSTER_FAIL(w, "'%s' is no number (%s)", text, w->field->unit);
    if (!(x >= min && x <= max))
        CLUSTER_FAIL(w, "%s is not possible: it must be from %g to %g (%s)", text, min, max, w->field->unit);
    return x;
}

/* A word "key=value": the key's length, and the value behind the sign. */
static inline const char *cluster_pair(const ClusterLine *w, const char *word, int *key) {
    const char *equals = strchr(word, '=');
    if (!equals || equals == word) CLUSTER_FAIL(w, "'%s' must be written as key=value (%s)", word, w->field->unit);
    *key = (int)(equals - word);
    return equals + 1;
}

static inline void cluster_curve_point(const ClusterLine *w, Curve *c, const char *word) {
    char size[32];
    int key;
    const char *value = cluster_pair(w, word, &key);
    snprintf(size, sizeof size, "%.*s", key, word);
    if (c->points == CURVE_POINTS) CLUSTER_FAIL(w, "more than %d points", CURVE_POINTS);
    double at = cluster_number(w, size, 1e-300, 1e300);
    if (c->points && at <= c->at[c->points - 1]) CLUSTER_FAIL(w, "sizes must ascend, %s does not", size);
    c->at[c->points] = at;
    c->value[c->points] = cluster_number(w, value, w->field->min, w->field->max);
    c->points++;
}

static inline void cluster_peak(const ClusterLine *w, double *peak, const char *word) {
    int key;
    const char *value = cluster_pair(w, word, &key);
    for (int d = 0; d < SIM_DTYPE_COUNT; d++)
        if ((int)strlen(SIM_DTYPES[d].name) == key && strncmp(SIM_DTYPES[d].name, word, (size_t)key) == 0) {
            if (peak[d] > 0) CLUSTER_FAIL(w, "%s is given twice; keep one", SIM_DTYPES[d].name);
            peak[d] = cluster_number(w, value, w->field->min, w->field->max);
            return;
        }
    CLUSTER_FAIL(w, "'%s': %s", word, w->field->unit);
}

static inline void cluster_link(const ClusterLine *w, LinkModel *l, const char *word) {
    int key;
    const char *value = cluster_pair(w, word, &key);
    double *part = strncmp(word, "alpha=", 6) == 0     ? &l->alpha
                   : strncmp(word, "beta=", 5) == 0    ? &l->beta
                   : strncmp(word, "overlap=", 8) == 0 ? &l->overlap
                                                       : NULL;
    if (!part) CLUSTER_FAIL(w, "'%s': %s", word, w->field->unit);
    if (*part >= 0) CLUSTER_FAIL(w, "%.*s is given twice; keep one", key, word);
    *part = cluster_number(w, value, part == &l->beta ? w->field->min : 0,
                           part == &l->beta    ? w->field->max
                           : part == &l->alpha ? 1000
                                               : 1);
}

/* One word of a field's values. */
static inline void cluster_word(const ClusterLine *w, Cluster *c, const char *word) {
    char *at = (char *)c + w->field->at;
    switch (w->field->type) {
    case FIELD_CHOICE: {
        const char *choice = w->field->choices;
        for (; choice; choice = strchr(choice, '|') ? strchr(choice, '|') + 1 : NULL)
            if (strlen(word) == strcspn(choice, "|") && strncmp(choice, word, strlen(word)) == 0) break;
        if (!choice) CLUSTER_FAIL(w, "'%s' must be one of %s", word, w->field->choices);
        memcpy(at, &choice, sizeof choice); /* the word in the table; what follows it is another choice */
        break;
    }
    case FIELD_NUMBER: {
        double x = cluster_number(w, word, w->field->min, w->field->max);
        memcpy(at, &x, sizeof x);
        break;
    }
    case FIELD_CURVE: cluster_curve_point(w, (Curve *)at, word); break;
    case FIELD_PEAKS: cluster_peak(w, (double *)at, word); break;
    case FIELD_LINK: cluster_link(w, (LinkModel *)at, word); break;
    }
}

/* One line: nothing, a comment, or a field with its values and the source behind #. */
static inline void cluster_line(ClusterLine *w, Cluster *c, char *line, int *seen) {
    char *source = strchr(line, '#'), *rest = line;
    if (source) *source++ = 0;
    char *name = strtok_r(line, " \t\r\n", &rest);
    w->field = NULL;
    if (!name) return;
    for (int i = 0; i < COUNT_OF(CLUSTER_FIELDS); i++)
        if (strcmp(CLUSTER_FIELDS[i].name, name) == 0) w->field = &CLUSTER_FIELDS[i];
    if (!w->field)
        FAIL(EVERYONE, "%s, line %d: no field is called '%s'; kernels/sim/clusters has examples", w->path, w->line,
             name);
    if (seen[w->field - CLUSTER_FIELDS]++) CLUSTER_FAIL(w, "it is given twice; keep %s", "one");
    if (!source || strspn(source, " \t\r\n") == strlen(source))
        CLUSTER_FAIL(w, "the figure has no source; write where it comes from behind a %c", '#');
    int words = 0;
    for (char *word; (word = strtok_r(NULL, " \t\r\n", &rest)) != NULL; words++) {
        if (words && (w->field->type == FIELD_CHOICE || w->field->type == FIELD_NUMBER))
            CLUSTER_FAIL(w, "one value is enough, '%s' is too much", word);
        cluster_word(w, c, word);
    }
    if (!words) CLUSTER_FAIL(w, "it has no value (%s)", w->field->unit);
}

/* What a file as a whole must have. */
static inline void cluster_check(Cluster *c, const int *seen) {
    for (int i = 0; i < COUNT_OF(CLUSTER_FIELDS); i++) {
        const ClusterField *f = &CLUSTER_FIELDS[i];
        ClusterLine w = {c->path, 0, f};
        if (!seen[i] && !f->fallback) FAIL(EVERYONE, "%s: the field %s is missing (%s)", c->path, f->name, f->unit);
        if (!seen[i]) cluster_word(&w, c, f->fallback);
    }
    const LinkModel *links[] = {&c->inside, &c->between};
    for (int i = 0; i < 2; i++)
        if (links[i]->alpha < 0 || links[i]->beta < 0 || links[i]->overlap < 0)
            FAIL(EVERYONE, "%s: inside and between each need alpha (seconds), beta (bytes/s) and overlap (a fraction)",
                 c->path);
    if (c->reserved >= c->memory)
        FAIL(EVERYONE, "%s: reserved %g leaves nothing of memory %g", c->path, c->reserved, c->memory);
    if (c->ranks_per_node != floor(c->ranks_per_node) || c->ports != floor(c->ports))
        FAIL(EVERYONE, "%s: ranks-per-node and ports-per-node must be whole numbers", c->path);
}

static inline double cluster_ports(const Cluster *c) { return c->ports > 0 ? c->ports : c->ranks_per_node; }

/* Is the first word of `choice` (a place in a table of choices) `word`? */
static inline int cluster_says(const char *choice, const char *word) {
    return strlen(word) == strcspn(choice, "|") && strncmp(choice, word, strlen(word)) == 0;
}

/* Where the shipped clusters are: beside the program, in kernels/sim/clusters. */
static inline void cluster_directory(char *out, size_t size) {
    char program[2048] = "";
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    char *slash = n > 0 ? strrchr(program, '/') : NULL;
    if (slash) *slash = 0;
    snprintf(out, size, "%s/kernels/sim/clusters", slash ? program : ".");
}

/* Stop, naming the clusters that there are. */
static inline void cluster_unknown(const char *name, const char *directory) {
    char names[1024] = "";
    if (strcmp(name, "this-machine") == 0)
        FAIL(EVERYONE, "--cluster this-machine: not measured yet; ./train_gpt_sim --calibrate does it");
    DIR *d = opendir(directory);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        const char *end = strstr(e->d_name, ".cluster");
        if (end && strlen(names) < 800)
            snprintf(names + strlen(names), sizeof names - strlen(names), " %.*s", (int)(end - e->d_name), e->d_name);
    }
    if (d) closedir(d);
    FAIL(EVERYONE, "--cluster %s: neither a file nor one of%s (in %s)", name, names, directory);
}

/* Read the cluster called `name`, or the file of that name. */
static inline void cluster_read(Cluster *c, const char *name) {
    char directory[2560];
    int seen[COUNT_OF(CLUSTER_FIELDS)] = {0};
    memset(c, 0, sizeof *c);
    cluster_directory(directory, sizeof directory);
    /* not given yet */
    c->inside.alpha = c->inside.beta = c->inside.overlap = c->between.alpha = c->between.beta = c->between.overlap = -1;
    snprintf(c->path, sizeof c->path, "%s/%.256s.cluster", directory, name);
    FILE *f = strchr(name, '/') ? NULL : fopen(c->path, "r");
    if (!f) {
        snprintf(c->path, sizeof c->path, "%s", name);
        f = fopen(c->path, "r");
    }
    if (!f) cluster_unknown(name, directory);
    const char *last = strrchr(c->path, '/');
    snprintf(c->name, sizeof c->name, "%.*s", (int)strcspn(last ? last + 1 : c->path, "."), last ? last + 1 : c->path);
    ClusterLine w = {c->path, 0, NULL};
    char line[4096];
    while (fgets(line, sizeof line, f)) {
        w.line++;
        if (!strchr(line, '\n') && !feof(f))
            FAIL(EVERYONE, "%s, line %d: longer than %d characters", c->path, w.line, (int)sizeof line - 1);
        cluster_line(&w, c, line, seen);
    }
    if (ferror(f)) FAIL(EVERYONE, "--cluster %s: cannot read it: %s", name, strerror(errno));
    fclose(f);
    cluster_check(c, seen);
}

#endif

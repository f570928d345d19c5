/* cgroup.h - what the control groups around this process leave it of the host: memory and
   cores (containers, Slurm, systemd).

   /proc/self/cgroup      the group of this process in every hierarchy: v2 "0::PATH", v1 "N:memory,...:PATH"
   /proc/self/mountinfo   where a hierarchy is mounted, and which of its groups the mount shows as its root
   a group's directory    mount + (PATH without the mount's root). A container without a cgroup namespace sees the
                          host's PATH and a mount that begins there; a PATH that does not lie in the mount ("/../..") is
                          not to be seen: the mount's own group stands for it

   A limit binds everything below it, so every group from there up to the mount's root is asked, and the
   smallest answer counts. On hybrid hosts some controllers are v1 and some v2: both are asked, and a group
   without a controller has no such files.

     memory   memory.max, memory.limit_in_bytes          less what is used and cannot be reclaimed
     used     memory.current, memory.usage_in_bytes      less the page cache, on both of the kernel's lists
                                                         (active_file, inactive_file), and slab_reclaimable where
                                                         v2 counts it: what the kernel takes before it kills, and
                                                         what it calls MemAvailable for the host. Pages of
                                                         /dev/shm are not on those lists
     cores    cpu.max; cpu.cfs_quota_us / cpu.cfs_period_us

   memory.high slows and does not kill: it is not asked. `root` stands before every path: "", or
   a tree that a test has made. */
#ifndef ODYSSEUS_CGROUP_H
#define ODYSSEUS_CGROUP_H

#include "util.h"
#include <limits.h>

/* The number that follows `key` at the start of a line of a small system file; -1 where there is none. */
static inline i64 system_number(const char *path, const char *key) {
    char line[512];
    i64 value = -1;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%lld", &value) == 1) break;
    if (f) fclose(f);
    return value;
}

/* A hierarchy of groups as this process sees it. */
typedef struct {
    int v2;
    char mount[2 * PATH_MAX], group[3 * PATH_MAX]; /* the directories, `root` included; group == mount or below it */
} Cgroup;

/* Is `name` one of the words of "a,b,c"? */
static inline int word_in(const char *list, const char *name) {
    size_t n = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += n)
        if ((at == list || at[-1] == ',') && (at[n] == ',' || at[n] == 0)) return 1;
    return 0;
}

/* The path of this process's group in the hierarchy of v1's `controller`, or of v2 (NULL), in out. 0: it is in none. */
static inline int cgroup_path(const char *root, const char *controller, char out[PATH_MAX]) {
    char line[PATH_MAX + 256], name[PATH_MAX];
    int found = 0;
    snprintf(name, sizeof name, "%s/proc/self/cgroup", root);
    FILE *f = fopen(name, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0, path[strcspn(path, "\n")] = 0;
        found = controller ? word_in(controllers + 1, controller) : strncmp(line, "0:", 2) == 0 && controllers[1] == 0;
        if (found) snprintf(out, PATH_MAX, "%s", path);
    }
    if (f) fclose(f);
    return found;
}

/* The group's directory from a mount and the group that it shows as its root. */
static inline void cgroup_place(Cgroup *g, const char *path, const char *shown) {
    size_t n = strcmp(shown, "/") == 0 ? 0 : strlen(shown);
    const char *below =
        strncmp(path, shown, n) == 0 && (path[n] == '/' || path[n] == 0) && !strstr(path, "/..") ? path + n : "";
    snprintf(g->group, sizeof g->group, "%s%s", g->mount, strcmp(below, "/") == 0 ? "" : below);
}

/* Find the hierarchy of `controller` (NULL: v2) among the mounts. 0: it is not mounted, or this
   process is in none of its groups. */
static inline int cgroup_find(const char *root, const char *controller, Cgroup *g) {
    char line[2 * PATH_MAX], name[PATH_MAX], path[PATH_MAX], shown[PATH_MAX], mount[PATH_MAX], type[64], options[1024];
    int found = 0;
    if (!cgroup_path(root, controller, path)) return 0;
    snprintf(name, sizeof name, "%s/proc/self/mountinfo", root);
    FILE *f = fopen(name, "r");
    while (f && !found && fgets(line, sizeof line, f)) {
        const char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*s %*s %*s %4095s %4095s", shown, mount) != 2) continue;
        if (sscanf(rest + 3, "%63s %*s %1023s", type, options) != 2) continue;
        found = controller ? strcmp(type, "cgroup") == 0 && word_in(options, controller) : strcmp(type, "cgroup2") == 0;
    }
    if (f) fclose(f);
    if (!found) return 0;
    g->v2 = !controller;
    snprintf(g->mount, sizeof g->mount, "%.*s%s", PATH_MAX, root, mount);
    cgroup_place(g, path, shown);
    return 1;
}

/* A number of the group in `directory`; -1: no such file, or "max". */
static inline i64 cgroup_number(const char *directory, const char *file, const char *key) {
    char path[4 * PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    return system_number(path, key);
}

/* Bytes that one group still gives; -1: it sets no limit. v1 writes "no limit" as a number near 2^63. */
static inline i64 group_memory(const char *directory, int v2) {
    i64 limit = cgroup_number(directory, v2 ? "memory.max" : "memory.limit_in_bytes", "");
    i64 used = cgroup_number(directory, v2 ? "memory.current" : "memory.usage_in_bytes", "");
    if (limit < 0 || limit > INT64_MAX / 2 || used < 0) return -1;
    static const char *const reclaimed[2][3] = {{"total_inactive_file ", "total_active_file ", NULL},
                                                {"inactive_file ", "active_file ", "slab_reclaimable "}};
    for (int i = 0; i < 3; i++)
        if (reclaimed[v2][i]) used -= i64_max(cgroup_number(directory, "memory.stat", reclaimed[v2][i]), 0);
    return i64_max(limit - i64_max(used, 0), 0);
}

/* Cores that one group gives; -1: it sets no limit. */
static inline double group_cores(const char *directory, int v2) {
    i64 quota = -1, period = -1;
    if (v2) {
        char path[4 * PATH_MAX];
        i64 a, b;
        snprintf(path, sizeof path, "%s/cpu.max", directory);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%lld %lld", &a, &b) == 2) quota = a, period = b;
        if (f) fclose(f);
    } else {
        quota = cgroup_number(directory, "cpu.cfs_quota_us", "");
        period = cgroup_number(directory, "cpu.cfs_period_us", "");
    }
    return quota > 0 && period > 0 ? (double)quota / (double)period : -1;
}

/* The smallest answer of the group and its ancestors, of both kinds of hierarchy; -1: none sets a limit. v1's groups
   may bind only themselves (memory.use_hierarchy 0). */
static inline double cgroup_least(const char *root, const char *controller,
                                  double (*ask)(const char *directory, int v2)) {
    const char *kinds[2] = {NULL, controller};
    double least = -1;
    for (int k = 0; k < 2; k++) {
        Cgroup g;
        if (!cgroup_find(root, kinds[k], &g)) continue;
        for (;;) {
            double here = ask(g.group, g.v2);
            if (here >= 0 && (least < 0 || here < least)) least = here;
            char *slash = strrchr(g.group, '/');
            if (strlen(g.group) <= strlen(g.mount) || !slash) break;
            *slash = 0;
            if (!g.v2 && cgroup_number(g.group, "memory.use_hierarchy", "") == 0) break;
        }
    }
    return least;
}

/* below 2^53 bytes exact */
static inline double ask_memory(const char *directory, int v2) { return (double)group_memory(directory, v2); }

/* Bytes that this host and the groups around this process can still give; 0: not known; a
   group that is full gives 1. */
static inline i64 host_memory_available(const char *root) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    i64 host = system_number(path, "MemAvailable:");
    double groups = cgroup_least(root, "memory", ask_memory);
    i64 available = host < 0 ? 0 : host * 1024;
    if (groups >= 0 && (!available || (i64)groups < available)) available = i64_max((i64)groups, 1);
    return available;
}

/* Cores' worth of time that the groups around this process give it, a fraction too; 0: no limit. */
static inline double host_cores_limit(const char *root) {
    double cores = cgroup_least(root, "cpu", group_cores);
    return cores > 0 ? cores : 0;
}

#endif

/* output.h - can the files be written that flags name? Better known before the first step than after the last.

   Nothing is ever replaced: a file must be new and its directory take it; devices and pipes are written through. */
#ifndef ODYSSEUS_OUTPUT_H
#define ODYSSEUS_OUTPUT_H

#include "flags.h"
#include "safetensors.h"

/* Does the file lie in the run directory, which is made later? */
static inline int path_in_run(const Settings *s, const char *where) {
    struct stat a, b;
    if (!s->out) return 0;
    if (stat(where, &a) == 0 && stat(s->out, &b) == 0) return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
    size_t n = strlen(where), m = strlen(s->out);
    while (n > 1 && where[n - 1] == '/') n--;
    while (m > 1 && s->out[m - 1] == '/') m--;
    return n == m && strncmp(where, s->out, n) == 0;
}

/* Refuse the file that --flag names where it cannot be made. Only one rank need ask. */
static inline void check_writable(const Settings *s, const char *flag, const char *path) {
    char directory[4096];
    int fd = path_descriptor(path), mode = fd >= 0 ? fcntl(fd, F_GETFL) : 0;
    if (fd >= 0 && (mode < 0 || (mode & O_ACCMODE) == O_RDONLY))
        FAIL(EVERYONE, "--%s %s is not open for writing", flag, path);
    if (path_is_stream(path)) {
        if (fd < 0 && access(path, W_OK) != 0) FAIL(EVERYONE, "--%s %s: cannot write: %s", flag, path, strerror(errno));
        return;
    }
    if (path_is_directory(path)) FAIL(EVERYONE, "--%s %s is a directory; name a file", flag, path);
    if (path_is_taken(path))
        FAIL(EVERYONE, "--%s %s is there already; choose another name, nothing is overwritten", flag, path);
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (slash) *slash = 0;
    const char *where = slash ? (slash == directory ? "/" : directory) : ".", *name = slash ? slash + 1 : path;
    if (!*name) FAIL(EVERYONE, "--%s %s is a directory; name a file", flag, path);
    if (path_in_run(s, where)) {
        const char *own[] = {"config.json", "metrics.jsonl", "comm.json"};
        for (int i = 0; i < COUNT_OF(own); i++)
            if (strcmp(name, own[i]) == 0)
                FAIL(EVERYONE, "--%s %s is a file of the run itself; choose another name", flag, path);
        if (!path_is_directory(where)) return;
    }
    if (access(where, W_OK | X_OK) != 0)
        FAIL(EVERYONE, "--%s %s: cannot write into %s: %s", flag, path, where, strerror(errno));
}

/* Two outputs cannot be one file. */
static inline void check_apart(const char *flag, const char *path, const char *other, const char *other_path) {
    if (path && other_path && strcmp(path, other_path) == 0 && !path_is_stream(path))
        FAIL(EVERYONE, "--%s and --%s name the same file, %s", flag, other, path);
}

#endif

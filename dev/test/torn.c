/* torn.c - an LD_PRELOAD that ends a process, or fails a call, in the middle of a save.

   TORN_UNDER=WORD    only calls on paths that hold WORD
   TORN_AT=N          the N-th of them, from 0, on this process ...
   TORN_RANK=R        ... if it is rank R of Open MPI's (unset: whichever)
   TORN_HOW=kill      a write is cut short at a random byte, another call is not made, and the process kills itself
            fail      the call fails with ENOSPC; all later ones succeed
            full      the call and all later ones fail with ENOSPC
            count     nothing happens
   TORN_COUNT=FILE    where the number of such calls is appended at the end

   gcc -shared -fPIC -O1 dev/test/torn.c -o torn.so -ldl                                                              */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int calls;

static int ours(const char *path) {
    const char *word = getenv("TORN_UNDER"), *rank = getenv("TORN_RANK"), *mine = getenv("OMPI_COMM_WORLD_RANK");
    return word && strstr(path, word) &&
           (!rank || !*rank || (mine && strcmp(rank, mine) == 0) || (!mine && strcmp(rank, "0") == 0));
}

static int ours_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return ours(path);
}

/* 0: go on; 1: fail. A kill does not return, and comes after `torn` bytes. */
static int strikes(int fd, const void *bytes, size_t n, off_t at) {
    static ssize_t (*write_at)(int, const void *, size_t, off_t);
    const char *how = getenv("TORN_HOW"), *when = getenv("TORN_AT");
    int now = calls++, target = when ? atoi(when) : -1;
    if (!how || target < 0 || now < target || (now > target && strcmp(how, "full") != 0)) return 0;
    if (strcmp(how, "kill") == 0) {
        if (!write_at) write_at = (ssize_t(*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
        srand((unsigned)target);
        if (n > 1 && write_at(fd, bytes, 1 + (size_t)rand() % (n - 1), at) < 0) return 1;
        kill(getpid(), SIGKILL);
    }
    if (strcmp(how, "fail") != 0 && strcmp(how, "full") != 0) return 0;
    errno = ENOSPC;
    return 1;
}

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    if (ours_fd(fd) && strikes(fd, bytes, n, at)) return -1;
    return REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, bytes, n, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t at) { return pwrite(fd, bytes, n, at); }

int fsync(int fd) {
    if (ours_fd(fd) && strikes(-1, NULL, 0, 0)) return -1;
    return REAL(int, "fsync", int)(fd);
}

int ftruncate(int fd, off_t n) {
    if (ours_fd(fd) && strikes(-1, NULL, 0, 0)) return -1;
    return REAL(int, "ftruncate", int, off_t)(fd, n);
}
int ftruncate64(int fd, off_t n) { return ftruncate(fd, n); }

int rename(const char *a, const char *b) {
    if (ours(a) && strikes(-1, NULL, 0, 0)) return -1;
    return REAL(int, "rename", const char *, const char *)(a, b);
}

int unlink(const char *path) {
    if (ours(path) && strikes(-1, NULL, 0, 0)) return -1;
    return REAL(int, "unlink", const char *)(path);
}

int rmdir(const char *path) {
    if (ours(path) && strikes(-1, NULL, 0, 0)) return -1;
    return REAL(int, "rmdir", const char *)(path);
}

int mkdir(const char *path, mode_t mode) {
    if (ours(path) && strikes(-1, NULL, 0, 0)) return -1;
    return REAL(int, "mkdir", const char *, mode_t)(path, mode);
}

static void __attribute__((destructor)) count_calls(void) {
    const char *file = getenv("TORN_COUNT");
    FILE *f = file ? fopen(file, "a") : NULL;
    if (!f) return;
    fprintf(f, "%d\n", calls);
    fclose(f);
}

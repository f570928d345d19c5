/* nvToolsExt.h - the two calls of NVTX that the program uses, on the CPU: with EMU_NVTX=FILE a process writes its
   ranges into FILE.PID, a line each: depth, name. A pop of nothing ends the program.                                 */
#ifndef ODYSSEUS_EMU_NVTX_H
#define ODYSSEUS_EMU_NVTX_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline int &emu_nvtx_depth(void) {
    static int depth = 0;
    return depth;
}
static inline int nvtxRangePushA(const char *name) {
    static FILE *file = nullptr;
    if (const char *path = file ? nullptr : getenv("EMU_NVTX")) {
        char full[4096];
        snprintf(full, sizeof full, "%s.%d", path, (int)getpid());
        file = fopen(full, "w");
    }
    if (file) fprintf(file, "%d %s\n", emu_nvtx_depth(), name), fflush(file);
    return emu_nvtx_depth()++;
}
static inline int nvtxRangePop(void) {
    if (!emu_nvtx_depth()) emu_fail("an NVTX range is ended that has not begun", {__FILE__, __LINE__});
    return --emu_nvtx_depth();
}

#endif

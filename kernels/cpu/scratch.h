/* scratch.h - what the CPU kernels need besides their operands, and what they refuse: sizes alone,
   which the simulator asks for, too.

   A product packs its operands for all threads into one buffer (gemm.h). All else that a kernel
   needs is on its thread's stack. */
#ifndef ODYSSEUS_CPU_SCRATCH_H
#define ODYSSEUS_CPU_SCRATCH_H

#include "../../core/util.h"

/* the parts of gemm.h */
enum { GEMM_TASK_ROWS = 96, GEMM_M = 10 * GEMM_TASK_ROWS, GEMM_N = 1920, GEMM_K_BYTES = 1536 };
enum { CPU_SCRATCH = (GEMM_M + GEMM_N) * GEMM_K_BYTES };
enum { HEAD_DIM_MOST = 512 }; /* attention.h keeps tiles of a head's keys on the stack */

/* Why attention cannot run heads of this size: NULL, it can. */
static inline const char *cpu_refuses_heads(i64 head_dim) {
    return head_dim <= HEAD_DIM_MOST ? NULL : "the CPU kernels take up to 512; raise --heads or lower --dim";
}

#endif

/* parallel.h - how the CPU kernels share work among threads: see the two rules in backend.h. */
#ifndef ODYSSEUS_CPU_PARALLEL_H
#define ODYSSEUS_CPU_PARALLEL_H

#include "../device.h"
#include <omp.h>

/* Fewer elements than this are done by the calling thread: waking the others costs more than they would bring. */
enum { SERIAL_BELOW = 16384 };

/* Columns that one thread sums over all rows at a time: four cache lines of floats, read row by row. */
enum { COLUMN_BLOCK = 64 };

/* Rows summed apart before they join the total, so that rounding grows with rows/ROW_BLOCK +
   ROW_BLOCK and not with rows. */
enum { ROW_BLOCK = 128 };

#endif

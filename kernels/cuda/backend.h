/* backend.h - the CUDA backend: every *_run function that compute.h calls. C++ for nvcc,
   or for the emulator of dev/emu.

   cuda.h       launches, errors, shared memory, bf16          ptx.h      PTX instructions, each behind one function
   ops.cuh      norms, heads, pointwise, embedding, classifier, optimizer: one family a file
   scratch.h    what the operations need besides their operands
   attention*.cuh  flash attention, forward and backward
   gemm.cuh     matrix products by cuBLASLt                    device.h   which GPU, its stream, memory and copies

   Every kernel runs on the device's one stream in the order of the calls. The same call gives the same bits: no sum
   depends on which block comes first.                                                                                */
#ifndef ODYSSEUS_CUDA_BACKEND_H
#define ODYSSEUS_CUDA_BACKEND_H

#include "ops.cuh"
#include "attention.cuh"
#include "attention_forward.cuh"
#include "attention_backward.cuh"
#include "gemm.cuh"
#include "memory.h"
#include "device.h"

#endif

/* flags.h - what the CUDA program adds to the command line. */
#ifndef ODYSSEUS_CUDA_FLAGS_H
#define ODYSSEUS_CUDA_FLAGS_H

/* --comm. */
#ifdef ODYSSEUS_NCCL
#define COMM_CHOICES "nccl|mpi"
#define COMM_DEFAULT "nccl"
#define COMM_HELP "nccl, from GPU to GPU; mpi, staged through host memory (several ranks on one GPU)"
#else
#define COMM_CHOICES "mpi"
#define COMM_DEFAULT "mpi"
#define COMM_HELP "mpi, staged through host memory; " NCCL_MISSING
#endif
#define NCCL_MISSING "built without NCCL: apt-get install libnccl-dev from NVIDIA's repository, then make -B train_gpt"

/* --save-async: the host has little else to do. */
#define SAVE_ASYNC "on"

#define BACKEND_FLAGS \
    {NULL, "grad-comm", FLAG_CHOICE, AT(grad_comm), "fp32", 0, 0, "fp32|bf16", \
     "weight gradients on the wire; bf16 ones are still summed in fp32"}, \
    {NULL, "graphs", FLAG_CHOICE, AT(graphs), "auto", 0, 0, "auto|on|off", \
     "launch a micro-step as one CUDA graph, on one rank; auto: where that can be, and a note says why not"}, \
    {NULL, "nvtx", FLAG_SWITCH, AT(nvtx), NULL, 0, 0, NULL, \
     "name steps, micro-steps, layers and collectives for Nsight Systems (NVTX ranges); micro-steps are then no " \
     "graphs"},

#define BACKEND_GROUP /* a group of flags of its own: none */

#endif

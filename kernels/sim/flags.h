/* flags.h - what the simulator adds to the command line. */
#ifndef ODYSSEUS_SIM_FLAGS_H
#define ODYSSEUS_SIM_FLAGS_H

/* --comm: of every build's program; which one runs on a cluster, its file says. */
#define COMM_CHOICES "nccl|mpi"
#define COMM_DEFAULT NULL
#define COMM_HELP "the cluster's own unless told"

/* --save-async: nothing is saved. */
#define SAVE_ASYNC "off"

#define BACKEND_FLAGS \
    {NULL, "grad-comm", FLAG_CHOICE, AT(grad_comm), NULL, 0, 0, "fp32|bf16", \
     "weight gradients on the wire; default: the cluster's"},

#define BACKEND_GROUP \
    {"Simulator", "cluster", FLAG_TEXT, AT(cluster), "a100-80gb-nvlink", 0, 0, NULL, \
     "a name in kernels/sim/clusters, or a file like those"}, \
    {NULL, "dtype", FLAG_CHOICE, AT(dtype), NULL, 0, 0, "bf16|fp32|fp64", "compute type; default: the cluster's"}, \
    {NULL, "plan", FLAG_SWITCH, AT(plan), NULL, 0, 0, NULL, \
     "list every way to run this model, length, batch and world, fastest first, with the memory flags of --ladder " \
     "where it does not fit without; flags given are kept"}, \
    {NULL, "max-seq", FLAG_SWITCH, AT(max_seq), NULL, 0, 0, NULL, \
     "the longest sequence that fits, per scheme, and what stops it; flags given are kept"}, \
    {NULL, "ladder", FLAG_SWITCH, AT(ladder), NULL, 0, 0, NULL, \
     "the longest sequence as recompute, tile-rows, head-groups, offload and layer-inputs are added one by one"}, \
    {NULL, "json", FLAG_TEXT, AT(json), NULL, 0, 0, NULL, \
     "write what is printed, and every row of --plan, to this file as JSON"}, \
    {NULL, "html", FLAG_TEXT, AT(html), NULL, 0, 0, NULL, \
     "write the planner as a page: every scheme over lengths, ranks, clusters and models; flags given are kept"}, \
    {NULL, "calibrate", FLAG_SWITCH, AT(calibrate), NULL, 0, 0, NULL, \
     "measure this machine with --world ranks (default: its cores), for --cluster this-machine"},

#endif

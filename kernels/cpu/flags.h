/* flags.h - the command line of the CPU programs has no flags of its own. */
#ifndef ODYSSEUS_CPU_FLAGS_H
#define ODYSSEUS_CPU_FLAGS_H

/* --comm: MPI reads and writes the host's memory itself. */
#define COMM_CHOICES "mpi"
#define COMM_DEFAULT "mpi"
#define COMM_HELP "mpi"

/* --save-async: a thread that writes takes a core from those that compute. */
#define SAVE_ASYNC "off"

#define BACKEND_FLAGS
#define BACKEND_GROUP

#endif

/* launcher.h - was this process started as one rank of several?

   MPI finds its launcher by environment variables and nothing else. So a process that has none of them would be a world
   of its own even with MPI, and needs none: it starts in milliseconds and has nothing that can crash when MPI ends. A
   variable too many here costs no more than the start of MPI; one too few cannot part ranks that MPI would have brought
   together, as long as the list holds every channel by which an MPI is reached: PMIx (Open MPI, PRRTE, Slurm), PMI-1
   and PMI-2 (MPICH's relatives, Slurm, Cray).
   Those who speak of ranks besides, where MPI then finds one, are refused: see launcher_ranks. */
#ifndef ODYSSEUS_LAUNCHER_H
#define ODYSSEUS_LAUNCHER_H

#include "util.h"

extern char **environ;

/* The first variable of a launcher in this process's environment, NAME=VALUE; NULL: there is none. */
static inline const char *launcher_found(void) {
    static const char *const begins[] = {
        "OMPI_COMM_WORLD_", "PMIX_", "PMI_", "PMI2_", "HYDI_", "MPI_LOCALNRANKS=", "MPI_LOCALRANKID=",
        "MV2_COMM_WORLD_", "MPIRUN_RANK=", "SLURM_PROCID=", "SLURM_STEP_NUM_TASKS=", "ALPS_APP_", "PALS_",
        "FLUX_TASK_RANK=", "JSM_NAMESPACE_",
    };
    for (char **variable = environ; variable && *variable; variable++)
        for (int i = 0; i < COUNT_OF(begins); i++)
            if (strncmp(*variable, begins[i], strlen(begins[i])) == 0) return *variable;
    return NULL;
}

/* How many ranks the launcher says it has started; 0: it says nothing. Slurm's is the size of the step: that of the job
   stands in the environment of a batch script, too, which is one process. */
static inline int launcher_ranks(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    int most = 0;
    for (int i = 0; i < COUNT_OF(names); i++) {
        const char *ranks = getenv(names[i]);
        if (ranks && atoi(ranks) > most) most = atoi(ranks);
    }
    return most;
}

#endif

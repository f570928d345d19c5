/* flags.h - what one backend says of the command line, for the table of core/flags.h:

   COMM_CHOICES, COMM_DEFAULT, COMM_HELP   of --comm
   SAVE_ASYNC                              default of --save-async
   BACKEND_FLAGS                           rows in the group Parallelism
   BACKEND_GROUP                           a group of its own                                        */
#ifndef ODYSSEUS_BACKEND_FLAGS_H
#define ODYSSEUS_BACKEND_FLAGS_H

#ifdef ODYSSEUS_CUDA
#include "cuda/flags.h"
#elif defined ODYSSEUS_SIM
#include "sim/flags.h"
#else
#include "cpu/flags.h"
#endif

#endif

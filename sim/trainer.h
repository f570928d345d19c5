/* trainer.h - the trainer, without its main: what the simulator forecasts. */
#ifndef ODYSSEUS_SIM_TRAINER_H
#define ODYSSEUS_SIM_TRAINER_H

#define ODYSSEUS_TEST
#include "../train_gpt.cu"

#endif

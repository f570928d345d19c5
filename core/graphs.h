/* graphs.h - a micro-step of training as one CUDA graph: what the host asks of the GPU in a walk is the same every
   time, so it is recorded once and launched from then on (--graphs).

   walk      the first micro-step: cuBLASLt chooses its algorithms, the driver loads the kernels
   record    the second: its walk again, on a stream that keeps the operations and does not run them
   launch    it, and every later one: hundreds of calls to the driver (GPT-2 124M: some 520) become one

   All that changes between micro-steps stays outside or lies in device memory: tokens, targets and what documents show
   are copied before the launch, the norm and AdamW, with its rate and its corrections, come after the last one. The one
   number that is baked in is the weight of a target's loss; where that changes, the walk is recorded again.

   Walked instead: validation, samples, the self-check, steps of a --trace. Off, where a launch could not be what the
   walk would have been; graphs_refuse says why.                                                                      */
#ifndef ODYSSEUS_GRAPHS_H
#define ODYSSEUS_GRAPHS_H

#include "scheme.h"

#ifdef ODYSSEUS_CUDA

typedef struct {
    int on, walked;      /* walked: once, at least */
    accum scale;         /* of the walk that is recorded */
    cudaGraphExec_t run; /* NULL: none is */
} Graphs;

/* Why a run cannot have them; NULL: it can. `counted`: targets that count are as many in every step. */
static inline const char *graphs_refuse(const Model *m, const Settings *s, int counted) {
    if (m->mesh.shape.world > 1 && strcmp(s->comm, "mpi") == 0)
        return "transfers by MPI pass through the host, which a graph leaves out";
    if (m->mesh.shape.world > 1) return "several ranks: transfers within a graph could be neither watched nor timed";
    if (s->nvtx) return "the ranges of --nvtx are those of layers that are walked";
    if (!counted) return "targets are ignored, so that a loss weighs differently in every step";
    return NULL;
}

static inline void graphs_forget(Graphs *g) {
    if (g->run) CUDA_CHECK(cudaGraphExecDestroy(g->run));
    g->run = NULL;
}

static inline void graphs_check(cudaError_t e, const char *what) {
    if (e != cudaSuccess)
        FAIL(THIS_RANK, "CUDA: %s a micro-step as a graph: %s; --graphs off does without", what, cudaGetErrorString(e));
}

static inline void graphs_record(Graphs *g, Model *m, void (*walk)(Model *, accum), accum scale) {
    cudaStream_t stream = m->dev.state.stream;
    cudaGraph_t graph;
    graphs_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cannot begin to record");
    walk(m, scale);
    graphs_check(cudaStreamEndCapture(stream, &graph), "cannot record");
    graphs_check(cudaGraphInstantiate(&g->run, graph, 0), "cannot make ready");
    graphs_check(cudaGraphDestroy(graph), "cannot free");
    g->scale = scale;
}

/* walk(m, scale), by the graph where there is one. */
static inline void graphs_walk(Graphs *g, Model *m, void (*walk)(Model *, accum), accum scale) {
    if (!g->on || !g->walked || m->dev.plan || m->dev.trace) {
        walk(m, scale);
        g->walked = !m->dev.plan;
        return;
    }
    if (g->scale != scale) graphs_forget(g);
    if (!g->run) graphs_record(g, m, walk, scale);
    graphs_check(cudaGraphLaunch(g->run, m->dev.state.stream), "cannot launch");
}

#else

typedef struct {
    int on; /* 0: this build has none */
} Graphs;

static inline const char *graphs_refuse(const Model *m, const Settings *s, int counted) {
    (void)m, (void)s, (void)counted;
    return "this build has none";
}
static inline void graphs_forget(Graphs *g) { (void)g; }
static inline void graphs_walk(Graphs *g, Model *m, void (*walk)(Model *, accum), accum scale) {
    (void)g;
    walk(m, scale);
}

#endif

/* --graphs auto|on|off: what becomes of it. `says`: this rank tells where auto is off. */
static inline void graphs_choose(Graphs *g, const Model *m, const Settings *s, int counted, int says) {
    if (!s->graphs || strcmp(s->graphs, "off") == 0) return;
    const char *why = graphs_refuse(m, s, counted);
    if (why && strcmp(s->graphs, "on") == 0) FAIL(EVERYONE, "--graphs on: %s; leave it out", why);
    g->on = !why;
    if (says && why) say("note     no CUDA graphs: %s\n", why);
}

#endif

/* life.h - a run's life beyond one process: where it saves, what it goes on from, and when it is told to stop.

   begin     --save, --resume: which checkpoint (resume.h); is the place a new run's own?
   fits      the checkpoint's flags, data and model against those of now
   try       the last thing before the run directory is made: a small file is written where checkpoints shall
             go, and every rank must find it
   in a step gradients, whose last sum also carries "stop" - a signal on any rank, or rank 0's clock against
             --max-hours - and how many ranks still write the save under way (--save-async)
             metrics -> save -> evaluate: what may run out of memory comes after what must not be lost
   told      no further step; saved, and a line that says how to go on

   --max-hours ends the run while the longest step and the longest save so far still fit.                             */
#ifndef ODYSSEUS_LIFE_H
#define ODYSSEUS_LIFE_H

#include "resume.h"
#include "stop.h"

typedef struct {
    Saver saver;
    int saves;                      /* the run saves */
    int resumes;
    Resume resume;
    DataPrint data;
    SpikeWatch spike;               /* the losses so far: judged alike after a resume */
    Changes changes;                /* allowed by --resume-with-changes */
    i64 first_step, first_sequence; /* the step this process begins with, and the first of
                                       the data's sequences it takes */
    double wish, writing;           /* all ranks' wishes to stop and saves still being written, as
                                       the last step's sum had them */
    double began, longest_step, longest_save; /* seconds */
    double lost;                    /* seconds that saving has taken from this step */
    double reading;                 /* seconds that judging and loading the checkpoint took */
    int unsaved;                    /* the last save failed */
} Life;

/* Flags that would be ignored beside others. */
static inline void life_check_flags(const Settings *s, const FlagsGiven *given) {
    int saves = s->save_every > 0 || s->save || s->max_hours > 0;
    if (saves && !s->save && !s->out)
        FAIL(EVERYONE, "--%s needs a place for checkpoints: --out DIR, or --save DIR",
             s->save_every > 0 ? "save-every" : "max-hours");
    if ((flag_given(given, "keep") || s->keep_every > 0) && !saves)
        FAIL(EVERYONE, "--keep and --keep-every need checkpoints: --save-every N");
    if (s->keep_every > 0 && s->keep == 0)
        FAIL(EVERYONE, "--keep-every says what stays beside the newest; it needs --keep K");
    if (s->resume_with_changes && !s->resume) FAIL(EVERYONE, "--resume-with-changes needs --resume");
    if (s->resume && (s->init_only || s->dry_run))
        FAIL(EVERYONE, "--resume and --%s exclude each other", s->init_only ? "init-only" : "dry-run");
    if (s->resume && !*s->resume && !s->out && !s->save)
        FAIL(EVERYONE, "--resume without a directory means that of --out, which is not given");
    if (s->eval_only && (s->resume || saves))
        FAIL(EVERYONE, "--eval-only trains nothing: --model DIR names a checkpoint to judge, in place of --%s",
             s->resume ? "resume" : s->max_hours > 0 ? "max-hours" : "save-every and --save");
    if (s->out && strlen(s->out) > 2900) FAIL(EVERYONE, "--out: its path is too long");
    if (s->save && strlen(s->save) > 2900) FAIL(EVERYONE, "--save: its path is too long");
}

/* Does the command line name a model, or a size of one? */
static inline int model_is_given(const FlagsGiven *given) {
    static const char *const flags[] = {"model", "arch", "layers", "dim", "heads", "kv-heads", "ffn", "vocab",
                                        "max-pos", "rope-theta", "tied-head"};
    int i = 0;
    while (i < COUNT_OF(flags) && !flag_given(given, flags[i])) i++;
    return i < COUNT_OF(flags);
}

/* Where this run saves, and what it goes on from; where no model is named, that
   checkpoint's is the model. Collective. */
static inline void life_begin(Life *l, Settings *s, const FlagsGiven *given, Wire world, int threads) {
    Saver *v = &l->saver;
    memset(l, 0, sizeof *l);
    l->began = seconds_now();
    l->saves = !s->init_only && !s->dry_run && (s->save_every > 0 || s->save || s->max_hours > 0);
    int local;
    wire_local(world, &local, &v->ranks_here);
    v->async = strcmp(s->save_async, "on") == 0;
    v->every = s->save_every, v->keep = s->keep, v->keep_every = s->keep_every;
    v->threads = threads, v->last = v->metrics = -1;
    if (s->save) snprintf(v->dir, sizeof v->dir, "%s", s->save);
    else if (s->out) snprintf(v->dir, sizeof v->dir, "%.2900s/checkpoints", s->out);
    l->resumes = s->resume != NULL;
    if (l->resumes) {
        resume_find(world, v, s->resume, threads, &l->resume);
        l->reading = seconds_now() - l->began;
        l->first_step = l->resume.step;
        if (!model_is_given(given)) s->model = l->resume.dir;
    }
    if (l->saves && !l->resume.continues) {
        int n;
        free(steps_told(world, v->dir, &n));
        if (n)
            FAIL(EVERYONE, "%s already holds checkpoints: --resume goes on from them; a new run needs another --%s",
                 v->dir, s->save ? "save" : "out");
    }
    if (l->saves) stop_listen();
}

/* The directory that the run's model comes from; NULL: it begins with this run. */
static inline const char *life_model(const Life *l, const Settings *s) {
    return l->resumes ? l->resume.dir : preset_find(s->model) ? NULL : s->model;
}

/* The files that checkpoints carry along. Rank 0. */
static inline void life_carry(Life *l, const Settings *s, const Dataset *train) {
    char data[PATH_MAX];
    dataset_dir(data, train);
    saver_carry(&l->saver, life_model(l, s), *data ? data : NULL);
}

/* Refuse a checkpoint that does not fit this run; what --resume-with-changes allows is in
   l->changes. Every rank finds the same. */
static inline void life_fits_checkpoint(Life *l, const Settings *s, const Config *config) {
    const char *dir = l->resume.dir;
    Changes shapes = {"", 0};
    Config was;
    memset(&l->changes, 0, sizeof l->changes);
    l->first_step = l->resume.step;
    checkpoint_read_config(&was, dir);
    config_compare(config, &was, &shapes, &l->changes);
    if (shapes.n) FAIL(EVERYONE, "--resume %s is another model: %s", dir, shapes.text);
    trainer_compare(s, &l->data, dir, l->resume.step, &l->first_sequence, &l->spike, &l->changes);
    if (l->changes.n && !s->resume_with_changes)
        FAIL(EVERYONE, "--resume %s: not as it was: %s; give the old values, or say --resume-with-changes", dir,
             l->changes.text);
}

/* What the run's checkpoints say of its data; the one that it goes on from must fit. */
static inline void life_fits(Life *l, const Settings *s, const Config *config, const Dataset *train, int rank) {
    if (l->saves || l->resumes) l->data = train->shards ? data_print(train) : l->data;
    if (l->saves && rank == 0) life_carry(l, s, train);
    if (l->resumes) life_fits_checkpoint(l, s, config);
}

/* Weights and moments from the checkpoint. It is judged whole only now: should it not be, an older one is taken
   that fits as well. Collective. */
static inline void life_load(Life *l, const Settings *s, const Config *config, Zero *z, Wire world) {
    double begin = seconds_now();
    for (Trouble why; !optimizer_load(z, world, l->resume.dir, &l->resume.manifest, &why);
         life_fits_checkpoint(l, s, config))
        resume_older(world, &l->saver, s->resume, l->saver.threads, &l->resume, &why);
    l->reading += seconds_now() - begin;
}

/* Try the place where this run shall save; ends the run where no checkpoint can be made there. Collective. */
static inline void life_try_place(const Life *l, Wire world) {
    int rank = wire_rank(world), fd = -1;
    char path[PATH_MAX];
    Trouble t = {""};
    path_join(path, l->saver.dir, ".try");
    if (rank == 0) make_path(l->saver.dir, &t);
    if (rank == 0 && !troubled(&t)) {
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        if (fd < 0) trouble_call(&t, "create", path);
        else write_at(fd, path, 0, path, 1, &t), sync_and_close(fd, path, &t);
    }
    if (!trouble_anywhere(world, &t) && rank != 0) {
        fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0)
            trouble(&t, "cannot write %s, which rank 0 has just made (%s): all hosts must share it", path,
                    strerror(errno));
        else close(fd);
    }
    trouble_anywhere(world, &t);
    if (rank == 0) unlink(path);
    if (troubled(&t)) FAIL(EVERYONE, "no checkpoint can be saved: %s; another place is given by --save DIR", t.text);
}

/* 1: this rank still writes the save under way. */
static inline double life_writing(const Life *l) { return save_writes(&l->saver); }

/* What this run adds to the sum at the end of a step: 1 for a signal that came here, and on rank
   0 some 1e6 for --max-hours. */
static inline double life_wish(const Life *l, const Settings *s, int rank) {
    double wish = l->saves && stop_state()->asked ? 1 : 0;
    if (l->saves && rank == 0 && s->max_hours > 0 &&
        seconds_now() - l->began + l->longest_step + l->longest_save > 3600 * s->max_hours)
        wish += 1e6;
    return wish;
}

static inline int life_due(const Life *l, const Settings *s, i64 done, int told) {
    return l->saves && (told || done == s->steps || (s->save_every > 0 && done % s->save_every == 0));
}

/* End the save under way, if there is one: wait for what is still being written. Collective. */
static inline void life_settle(Life *l, Wire world) {
    double begin = seconds_now(), seconds;
    char path[PATH_MAX];
    if (!l->saver.saving) return;
    i64 done = l->saver.saving->step;
    l->unsaved = !checkpoint_finish(&l->saver, world, &seconds);
    l->longest_save = fmax(l->longest_save, seconds);
    l->lost += seconds_now() - begin;
    step_path(path, &l->saver, done);
    if (!l->unsaved && wire_rank(world) == 0) say("saved    %s in %.2f s\n", path, seconds);
}

/* What a step has to do for checkpoints when `done` are done: end the save that all ranks have written, begin one that
   is due; at the run's end nothing is under way any more. Collective. */
static inline void life_save(Life *l, const Settings *s, const Zero *z, Wire world, i64 done, i64 next_sequence,
                             int told) {
    int due = life_due(l, s, done, told), last = told || done == s->steps;
    l->lost = 0;
    if (due || l->writing == 0) life_settle(l, world);
    if (due) {
        double begin = seconds_now();
        char *trainer = trainer_text(s, &l->data, &l->spike, done, next_sequence);
        checkpoint_start(&l->saver, z, world, done, trainer);
        cJSON_free(trainer);
        l->lost += seconds_now() - begin;
    }
    if (last || !l->saver.async) life_settle(l, world);
}

/* The end of a run that was told to stop, or could not save its last step. Rank 0 speaks. */
static inline void life_end(const Life *l, const Settings *s, i64 done, int told, int rank) {
    char last[STEP_NAME_MAX] = "none";
    if (l->saver.last >= 0) step_name(last, l->saver.last);
    if (l->unsaved)
        FAIL(EVERYONE, "the run ends after step %lld, and that is not saved; the newest checkpoint in %s: %s", done,
             l->saver.dir, last);
    if (!told || done == s->steps || rank != 0) return;
    const char *why = l->wish >= 1e6 ? "--max-hours" : "a signal";
    const char *more = !s->resume ? " and --resume" : l->resume.continues ? "" : ", with --resume alone";
    say("stopped  by %s after %lld of %lld steps; to go on: the same command%s\n", why, done, s->steps, more);
}

static inline void life_free(Life *l) {
    manifest_free(&l->resume.manifest);
    saver_free(&l->saver);
}

#endif

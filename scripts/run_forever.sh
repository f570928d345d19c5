#!/usr/bin/env bash
# run_forever.sh COMMAND [FLAGS...] - run a training, and after a crash again from the last whole checkpoint,
# until it ends with exit code 0.
#
#   bash scripts/run_forever.sh mpirun -np 8 ./train_gpt --train "data/*.bin" --out runs/a --save-every 500 --keep 3
#   NP=8 bash scripts/run_forever.sh ./train_gpt ...
#       the ranks started as the other scripts start them (LAUNCHER=srun, HOSTFILE=FILE)
#
# COMMAND has --out or --save, and --save-every. --resume is added where a checkpoint is there. After CRASHES=3 crashes
# one after another without a new checkpoint it gives up, with the exit code of the last. Between a crash and the next
# start it waits PAUSE=10 seconds. SIGTERM, SIGINT and SIGUSR1 are passed on as SIGUSR1, on which the training saves and
# stops; then nothing is started again. In a Slurm job SIGUSR1 is the notice that time is up: with REQUEUE=1 the job
# goes back into the queue (scripts/slurm.sbatch).
# A crash before the first checkpoint leaves a run directory that no run can go on from: it is renamed to DIR.crash-1,
# ... - only if this very script began it.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
cd "$here"

limit=${CRASHES:-3} pause=${PAUSE:-10}
[[ $# -gt 0 ]] || die "no command; e.g. bash scripts/run_forever.sh mpirun -np 8 ./train_gpt --out runs/a" \
    "--save-every 500 ..."
out='' save='' saves='' resumes=''
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
    --out) out=${arguments[i + 1]-} ;;
    --save) save=${arguments[i + 1]-} saves=1 ;;
    --save-every) saves=1 ;;
    --resume) resumes=1 ;;
    esac
done
[[ -n $out$save ]] || die "the command has neither --out DIR nor --save DIR, so there is nowhere to go on from"
[[ -n $saves ]] || die "the command has no --save-every N: every crash would begin anew"
save=${save:-$out/checkpoints}
# does the run directory begin with this script, or did with an earlier start of this very job?
[[ -n $out && -e $out/metrics.jsonl && ${SLURM_RESTART_COUNT:-0} -eq 0 ]] && ours='' || ours=1

newest() { # name of the newest checkpoint, whole or not; "": none
    local names=("$save"/step-????????*)
    local i
    for ((i = ${#names[@]} - 1; i >= 0; i--)); do
        [[ ! -e ${names[i]}/manifest.json || ${names[i]} == *.damaged* ]] || { basename "${names[i]}" && return; }
    done
}

start() { # the command, with --resume where it can; in the background, $child
    local more=()
    [[ -n $resumes || -z $(newest) ]] || more=(--resume)
    say "run_forever.sh: $* ${more[*]}"
    if [[ -n ${NP-} ]]; then
        run_ranks "$NP" "$@" "${more[@]}" &
    else
        "$@" "${more[@]}" </dev/null &
    fi
    child=$!
}

told=''
# the launcher is a child of the shell that runs run_ranks; mpirun and srun pass SIGUSR1 on to the ranks
pass_on() {
    local pids=("$child") file=/proc/$child/task/$child/children
    [[ -z ${NP-} || ! -r $file ]] || read -r -a pids <"$file" || true
    told=$1
    kill -USR1 "${pids[@]}" 2>/dev/null || true
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on USR1' USR1

crashes=0 attempt=0
while :; do
    before=$(newest) code=0
    start "$@"
    while :; do # a trap ends a wait
        code=0
        wait "$child" || code=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if [[ $code -eq 0 || -n $told ]]; then
        if [[ $code -eq 0 && $told == USR1 && ${REQUEUE-} == 1 && -n ${SLURM_JOB_ID-} ]]; then
            say "run_forever.sh: time is up; the job goes back into the queue"
            scontrol requeue "$SLURM_JOB_ID" || say "run_forever.sh: it does not; submit it again, and it goes on"
        fi
        exit "$code"
    fi
    crashes=$((crashes + 1))
    [[ $(newest) == "$before" ]] || crashes=1
    say "run_forever.sh: exit code $code; newest checkpoint: $(newest || true)${before:+, before: $before}"
    [[ $crashes -lt $limit ]] ||
        die "gave up after $crashes crashes without a new checkpoint; the last had exit code $code"
    if [[ -z $(newest) && -n $ours && -n $out && -e $out/metrics.jsonl ]]; then
        attempt=$((attempt + 1))
        while [[ -e $out.crash-$attempt ]]; do attempt=$((attempt + 1)); done
        mv "$out" "$out.crash-$attempt"
        say "run_forever.sh: no checkpoint yet; that try is now $out.crash-$attempt"
    fi
    sleep "$pause"
done

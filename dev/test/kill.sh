#!/usr/bin/env bash
# kill.sh [N [SEED]] - N times [10], SIGKILL to a random rank or to all of them, each time resumed on another
# mesh; then the run goes to its end, and its curve must be that of a run nobody disturbed. TAP;
# scripts/test.sh runs 10, --long 200.
#
#   every other kill   inside a save: torn.c ends a random rank at a random call (mkdir, write, fsync, rename, unlink),
#                      a write cut short at a random byte
#   the others         somewhere in a step or a save: once a few more steps are done, then a moment later
#                      (both with --save-async on or off, as it comes)
#   after each         the resumed step is not before any checkpoint that was said to be saved: no whole one is lost,
#                      and no torn one is taken, which the curve would show
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
# shellcheck source=dev/test/life.sh
source "$(dirname "$0")/life.sh"

kills=${1:-10} seed=${2:-$$}
limit=$((300 + 15 * kills)) # the last launch makes most of the steps
RANDOM=$seed
say "# seed $seed"
# A rate at which training does not amplify rounding: at 0.01 the last bits of two meshes' sums, 1e-16, are 2e-9 after
# 140 steps that nobody disturbs; at 0.001 they stay below 1e-12 for 2420.
run=("${small[@]/#0.01/0.001}" --steps $((20 + 12 * kills)))
asides=(on off)
meshes=('1 ' '2 --sp ring' '2 --sp tpsp' '4 --sp odysseus' '4 --sp tp' '4 --sp ulysses --dp 2'
    '4 --sp odysseus --ring 2' '2 --sp odysseus')
gcc -shared -fPIC -O1 dev/test/torn.c -o "$work/torn.so" -ldl || exit 1
steps_done() { wc -l 2>/dev/null <"$work/run/metrics.jsonl" || echo 0; }
# the last step that was said to be
saved() { sed -n 's/^saved .*step-0*\([0-9][0-9]*\) in .*/\1/p' "$work"/said.* 2>/dev/null | sort -n | tail -n 1; }

next_mesh() {
    local before=$mesh_now
    while [[ $mesh_now == "$before" ]]; do mesh_now=$((RANDOM % ${#meshes[@]})); done
}

# start [VARIABLE=VALUE...]: the run on this mesh, in the background: $pid, and $work/pid.R of its ranks
start() {
    local mesh
    read -r -a mesh <<<"${meshes[mesh_now]}"
    rm -f "$work"/pid.*
    launch=$((launch + 1))
    (
        env=("$@")
        go "${mesh[0]}" bash -c 'echo $$ >"$0.${OMPI_COMM_WORLD_RANK:-0}"; exec "$@"' "$work/pid" env "${env[@]}" \
            ./train_gpt_fp64 "${run[@]}" "${mesh[@]:1}" --out "$work/run" --save-every 2 --keep 3 --keep-every 20 \
            --save-async "${asides[RANDOM % 2]}" "${resume[@]}"
        code=$?
        cp "$work/out" "$work/said.$launch"
        exit $code
    ) &
    pid=$!
}

# resumed: it went on from no earlier step than was saved, by what the run itself says
resumed() {
    local step
    step=$(sed -n 's/^resume .* \([0-9]*\) of [0-9]* steps are done, read in .*$/\1/p' "$work/said.$launch")
    [[ -n $step && $step -ge ${1:-0} ]] || { say "# resumed at '$step', but step $1 was saved" &&
        sed 's/^/# /' "$work/said.$launch" | head -n 20 && return 1; }
}

mesh_now=4 launch=0 resume=()
go 1 train_gpt_fp64 "${run[@]}" --out "$work/one" || exit 1
go 1 train_gpt_fp64 "${run[@]}" --out "$work/run" --save-every 2 --max-hours 1e-9 || exit 1 # something to resume
resume=(--resume)
cp "$work/out" "$work/said.0"
for ((i = 0; i < kills; i++)); do
    next_mesh
    before=$(saved) done_before=$(steps_done) code=0
    if ((i % 2 == 0)); then
        ranks=${meshes[mesh_now]%% *}
        how="within a save, at call $((call = RANDOM % 45)) of rank $((victim = RANDOM % ranks)) of $ranks"
        start LD_PRELOAD="$work/torn.so" TORN_UNDER=/checkpoints TORN_HOW=kill TORN_AT=$call TORN_RANK=$victim
        wait $pid || code=$?
    else
        start
        until [[ $(steps_done) -ne $done_before && -e $work/pid.0 &&
            $(steps_done) -gt $((${before:-1} + RANDOM % 4)) ]] || ! kill -0 $pid 2>/dev/null; do
            sleep 0.02
        done
        sleep "0.0$((RANDOM % 10))"
        mapfile -t processes < <(cat "$work"/pid.*)
        if ((RANDOM % 2)); then how="all ranks at once" && kill -KILL "${processes[@]}"
        else how="one rank of ${#processes[@]}" && kill -KILL "${processes[RANDOM % ${#processes[@]}]}"; fi
        wait $pid || code=$?
    fi
    # one that dies while it tries the place for checkpoints has not resumed yet
    [[ $code -ne 0 ]] && { ! grep -q '^resume ' "$work/said.$launch" || resumed "$before"; }
    ok $? "kill $((i + 1)): ${meshes[mesh_now]}: $how; $(saved) steps are saved, exit code $code"
done 2>/dev/null
before=$(saved)
next_mesh
start
wait $pid && resumed "$before"
status=$?
cp "$work/said.$launch" "$work/out"
[[ $status -eq 0 ]] && compare one run 1e-10 0 &&
    [[ -d $work/run/checkpoints/step-00000020 && -z $(find "$work/run/checkpoints" -name '.*' -mindepth 1) ]]
ok $? "after $kills kills the curve is that of the run that nobody disturbed, to 1e-10; --keep-every's is there," \
    "nothing half written or deleted is"
checks_done

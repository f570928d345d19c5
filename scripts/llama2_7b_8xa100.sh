#!/usr/bin/env bash
# llama2_7b_8xa100.sh - Llama-2-7B on 8 A100-80GB: each cell of the original Odysseus benchmark, and
# one table beside its figures.
#
#   4 lengths x every scheme; a cell: 10 steps of one sequence, of which the last 7 (steps 3..9) are timed, as
#   it did
#   FLOP a step = L (6 x 6.6e9 parameters + 6 x 32 layers x 4096 x L)
#
#       L      tokens of 10 steps     FLOP a step    at 40% of 8 x 312 TFLOP/s
#       16K         163,840            0.86e15          0.86 s a step
#       32K         327,680            2.14e15          2.15 s
#       64K         655,360            5.98e15          5.99 s
#       96K         983,040           11.50e15         11.5  s
#
#   together 5 x 205 s = 17 minutes, and the start of each cell
#
# Memory of each cell: by the program's --dry-run, at the start (DRY_RUN=1 stops after it). A cell that does not fit is
# recorded as such, and the others go on. Run it again to continue: cells that have finished are not repeated.
#
#   LENGTHS="16K 32K"  SCHEMES="ring odysseus"   some cells only                FORCE=1   repeat these, finished or not
#   DATA="GLOB"        token shards [random tokens: the work is the same, the losses mean nothing]
#   OUT=DIR            [runs/llama2_7b_8xa100]: table.md, table.json, cells/L-SCHEME/{log.txt, run/}
#   NP=8 STEPS=10 MODEL=llama2-7b PROGRAM=./train_gpt FLAGS=   GPU_GB=80 MFU=0.4 PEAK_TFLOPS=312 (only for the estimate)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

NP=${NP:-8} STEPS=${STEPS:-10} MODEL=${MODEL:-llama2-7b} PROGRAM=${PROGRAM:-./train_gpt}
LENGTHS=${LENGTHS:-16K 32K 64K 96K} DATA=${DATA:-} FORCE=${FORCE:-0}
GPU_GB=${GPU_GB:-80} MFU=${MFU:-0.4} PEAK_TFLOPS=${PEAK_TFLOPS:-312}
OUT=$(absolute "${OUT:-$PWD/runs/llama2_7b_8xa100}")
read -ra flags <<<"${FLAGS:-}"
read -ra lengths <<<"$LENGTHS"

[[ $# -eq 0 ]] || die "no arguments: settings are variables, e.g. LENGTHS=\"16K 32K\" bash scripts/llama2_7b_8xa100.sh"
whole NP STEPS
[[ $STEPS -ge 4 ]] || die "STEPS=$STEPS: steps 0 to 2 warm up and are not timed; at least 4"
[[ -z $DATA ]] || require_shards DATA
require_packages python mpi
require_hosts
require_program
names=$(list_schemes "$PROGRAM")
mapfile -t known <<<"$names"
read -ra schemes <<<"${SCHEMES:-${known[*]}}"
for scheme in "${schemes[@]}"; do
    [[ " ${known[*]} " == *" $scheme "* ]] || die "SCHEMES: '$scheme' is none of ${known[*]}"
done
longest=0
for i in "${!lengths[@]}"; do
    length=${lengths[i]}
    lengths[i]=$(tokens length)
    [[ ${lengths[i]} =~ ^[1-9][0-9]{0,14}$ ]] || die "LENGTHS: '$length' is no length; whole numbers, K is 1024"
    [[ $longest -ge ${lengths[i]} ]] || longest=${lengths[i]}
done

cell_flags() { # LENGTH SCHEME
    cell=(--model "$MODEL" --sp "$2" --seq-len "$1" --batch 1 --steps "$STEPS" "${flags[@]}")
}
name() { if [[ $(($1 % 1024)) -eq 0 ]]; then say "$(($1 / 1024))K"; else say "$1"; fi; }

# ---- the arithmetic

say "$MODEL on $NP ranks of $PROGRAM, $STEPS steps of one sequence, of which steps 3..$((STEPS - 1)) are" \
    "timed${FLAGS:+; $FLAGS}"
say "memory by --dry-run --world $NP, for what the schemes allocate; time if $NP ranks reach MFU=$MFU of" \
    "PEAK_TFLOPS=$PEAK_TFLOPS each"
printf '%8s %-9s %12s %14s %12s %14s\n' L scheme "FLOP a step" "GB a rank" "s a step" "s, $STEPS steps"
total=0
for length in "${lengths[@]}"; do
    for scheme in "${schemes[@]}"; do
        cell_flags "$length" "$scheme"
        if ! plan "${cell[@]}"; then
            printf '%8s %-9s refused: %s\n' "$(name "$length")" "$scheme" "$plan_why"
            continue
        fi
        awk -v f="$plan_flop" -v mb="$plan_mb" -v gpu="$GPU_GB" -v t="$plan_seconds" -v s="$STEPS" \
            -v l="$(name "$length")" -v scheme="$scheme" \
            'BEGIN {
                printf "%8s %-9s %12.3g %12.2f %14.3g %14.3g", l, scheme, f, mb / 1e3, t, t * s
                print (mb / 1e3 > gpu ? "   more than " gpu " GB" : "")
            }'
        total=$(awk -v t="$plan_seconds" -v s="$STEPS" -v sum="$total" 'BEGIN { print sum + t * s }')
    done
done
awk -v t="$total" -v n="$((${#lengths[@]} * ${#schemes[@]}))" \
    'BEGIN { printf "%d cells: %.3g minutes in steps, if all fit\n", n, t / 60 }'
[[ ${DRY_RUN:-0} == 0 ]] || exit 0

# ---- data, and whether OUT is of the same runs

these="NP=$NP STEPS=$STEPS MODEL=$MODEL PROGRAM=$PROGRAM FLAGS=${FLAGS:-} DATA=$DATA"
mkdir -p "$OUT/cells" || die "OUT=$OUT: cannot make the directory"
[[ -e $OUT/settings ]] || say "$these" >"$OUT/settings"
[[ $(<"$OUT/settings") == "$these" ]] ||
    die "OUT=$OUT holds cells of other settings ($(<"$OUT/settings")); choose another OUT"
if [[ -z $DATA ]]; then
    DATA=$OUT/random_$longest.bin
    say "no DATA=: random tokens; the work is the same, the losses mean nothing"
    vocab=$(alone --dry-run --model "$MODEL" "${flags[@]}" | sed -n 's/^model .* vocab \([0-9]*\):.*/\1/p')
    [[ -e $DATA ]] || python3 - "$DATA" $((longest * (STEPS < 10 ? STEPS : 10) + 1)) "$vocab" <<'PY'
import array, os, random, sys
path, count, vocab = sys.argv[1], int(sys.argv[2]), min(int(sys.argv[3]), 65536)
random.seed(1)
header = array.array("i", [20240520, 1, count] + [0] * 253)
with open(path + ".tmp", "wb") as file:
    file.write(header.tobytes() + array.array("H", random.choices(range(vocab), k=count)).tobytes())
os.rename(path + ".tmp", path)
PY
fi

# ---- the cells, one after the other

run_cell() { # LENGTH SCHEME: into $OUT/cells; its file `result`, written last, says ok or why not
    local directory=$OUT/cells/$1-$2
    rm -rf "$directory"
    mkdir -p "$directory"
    cell_flags "$1" "$2"
    result=ok
    run_ranks "$NP" "$PROGRAM" "${cell[@]}" --train "$DATA" --out "$directory/run" >"$directory/log.txt" 2>&1 ||
        result=$(grep -m 1 '^train_gpt: error: ' "$directory/log.txt" || grep . "$directory/log.txt" | tail -n 1 ||
        say "failed without a word")
    result=${result#train_gpt: error: }
    say "$result" >"$directory/result"
}

n=0
for length in "${lengths[@]}"; do
    for scheme in "${schemes[@]}"; do
        n=$((n + 1)) at=$SECONDS label="[$n/$((${#lengths[@]} * ${#schemes[@]}))] $(name "$length") $scheme"
        if [[ $FORCE == 0 && -e $OUT/cells/$length-$scheme/result &&
            $(<"$OUT/cells/$length-$scheme/result") == ok ]]; then
            say "$label: finished before"
            continue
        fi
        run_cell "$length" "$scheme"
        say "$label: $result, $((SECONDS - at)) s"
    done
done

say
python3 scripts/llama2_7b_table.py "$OUT" "${known[@]}"

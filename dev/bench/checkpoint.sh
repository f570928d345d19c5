#!/usr/bin/env bash
# checkpoint.sh [ROUNDS] - how fast a checkpoint of 1 GB is saved and loaded, beside what the same disk gives
# plain commands in the same run.
#
#   save   the program's own "saved ... in", after each of ROUNDS [5] steps, beside `dd conv=fsync` of as many
#          bytes, before and after
#   load   its own "read in" after --resume, beside `cat >/dev/null` of the same files: once with none of the files in
#          the page cache (dd's nocache), as after a crash on another machine, and once with all of them there
#
# PROGRAM=./train_gpt_cpu, NP=1 rank, DISK=. (a directory on the disk that is asked about, with 3 ROUNDS GB to spare).
# Prints medians, all figures, machine and commit.
set -euo pipefail
source "$(dirname "$0")/../../scripts/common.sh"
rounds=${1:-5} PROGRAM=${PROGRAM:-./train_gpt_cpu} NP=${NP:-1}
whole NP
require_packages
require_program
[[ $PROGRAM != ./train_gpt_cpu ]] || make -s train_gpt_cpu
work=$(mktemp -d "$(absolute "${DISK:-.}")/checkpoint-XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 dev/data/text_to_shards.py --out "$work/data" train_gpt.cu core/*.h >/dev/null

# 64.1 million parameters: weights in F32, and master, m and v
flags=(--layers 9 --dim 768 --heads 12 --kv-heads 12 --ffn 2048 --train "$work/data/train_*.bin" --seq-len 16
    --batch "$NP" --dp "$NP" --peak-tflops 1000
    --selfcheck off --save-async off)
run() { # FLAGS...: said in $work/log
    if [[ $NP -eq 1 ]]; then "$PROGRAM" "${flags[@]}" "$@" >"$work/log" 2>&1
    else run_ranks "$NP" "$PROGRAM" "${flags[@]}" "$@" >"$work/log" 2>&1; fi ||
        die "the run failed: $(grep -m 1 error "$work/log")"
}
median() { printf '%s\n' "$@" | sort -n |
    awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'; }
seconds() { # COMMAND...: how long it takes
    local began=$EPOCHREALTIME
    "$@" >/dev/null 2>&1
    awk -v a="${began/,/.}" -v b="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%.3f\n", b - a }'
}
written() { # NAME: as many bytes as a checkpoint has, beside those that are there, as checkpoints are
    seconds dd if=/dev/zero of="$work/zeros-$1" bs=4M count="$bytes" iflag=count_bytes conv=fsync
}
forget() { # the checkpoint leaves the page cache
    local file
    for file in "$last"/*; do dd if="$file" iflag=nocache count=0 status=none; done
}

run --steps 1 --out "$work/first" --save-every 1
last=$work/first/checkpoints/step-00000001
bytes=$(cat "$last"/* | wc -c)
rm -r "$work/first"
dds=()
for ((i = 0; i < rounds; i++)); do dds+=("$(written "$i")"); done
run --steps $((rounds + 1)) --out "$work/run" --save-every 1
# the first goes to memory that nobody has touched
mapfile -t saves < <(sed -n 's/^saved .* in \(.*\) s$/\1/p' "$work/log" | tail -n +2)
for ((i = 0; i < rounds; i++)); do dds+=("$(written "late-$i")"); done
rm -f "$work"/zeros-*
last=$(printf '%s/run/checkpoints/step-%08d' "$work" $((rounds + 1)))

files=("$last"/*) cold=() warm=() cold_loads=() warm_loads=()
load() { run --steps $((rounds + 1)) --out "$work/run" --resume &&
    sed -n 's/^resume .*, read in \(.*\) s$/\1/p' "$work/log"; }
for ((i = 0; i < rounds; i++)); do
    forget
    cold+=("$(seconds cat "${files[@]}")")
    forget
    cold_loads+=("$(load)")
    warm+=("$(seconds cat "${files[@]}")")
    warm_loads+=("$(load)")
done

row() { # WHAT OTHER SECONDS OTHERS: a row of the table
    local -n mine=$3 theirs=$4
    awk -v what="$1" -v other="$2" -v a="$(median "${mine[@]}")" -v b="$(median "${theirs[@]}")" -v gb="$bytes" \
        -v all="${mine[*]} / ${theirs[*]}" \
        'BEGIN { printf "| %s | %.2f | %.2f | %s | %.2f | %.2f | %s |\n", what, a, gb / a / 1e9, other, b, b / a, all }'
}
say "$(awk -F ': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) cores, $PROGRAM on $NP ranks, disk" \
    "$(df --output=source,fstype "$work" | tail -n 1 | tr -s ' ')," \
    "commit $(git rev-parse --short HEAD 2>/dev/null || echo '?')," \
    "$(awk -v b="$bytes" 'BEGIN { printf "%.3f GB", b / 1e9 }')"
say
say "| | s | GB/s | beside | s | ratio | each, s |"
say "|---|---|---|---|---|---|---|"
row save 'dd conv=fsync' saves dds
row 'load, not in memory' 'cat' cold_loads cold
row 'load, in the page cache' 'cat' warm_loads warm

#!/usr/bin/env bash
# fuzz.sh [SECONDS [TARGET...]] - fuzz every reader of files and flags for SECONDS of CPU time each (20
# minutes), one after the other.
#
# A line of TAP a target: executions, coverage (edges of the program reached, features), or the input that broke it. Its
# report is then beside it in build/fuzzing, and FUZZ_TARGET=... build/fuzz FILE repeats it. What was learned stays
# there, too: the next run goes on from it. Planted once to see it found: without the length check in
# safetensors_add_file (header > size - 8) target safetensors stops in seconds.
set -euo pipefail
source "$(dirname "$0")/../../scripts/common.sh"
seconds=${1:-1200}
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=(flags shard dataset safetensors index config manifest trainer optimizer)
export ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=8 # refused inputs leak; the harness frees what they had
TIMEFORMAT='cpu %U %S' n=0 failed=0

fuzz() { # fuzz TARGET: until SECONDS of CPU time are used, in rounds, since libFuzzer counts by the clock
    local target=$1 corpus=$PWD/build/fuzzing/$1 used=0 runs=0 round log=build/fuzzing/$1.txt
    mkdir -p "$corpus"
    FUZZ_TARGET=$target FUZZ_SEEDS=$corpus build/fuzz -runs=0 "$corpus" >"$log" 2>&1 || return 1
    while [[ $used -lt $seconds ]]; do
        round=$((seconds - used < 300 ? seconds - used : 300))
        { time FUZZ_TARGET=$target build/fuzz -max_total_time=$round -artifact_prefix="$corpus-" -timeout=10 \
            -rss_limit_mb=2048 -malloc_limit_mb=256 -max_len=16384 -print_final_stats=1 "$corpus"; } >"$log" 2>&1 ||
            return 1
        used=$((used + $(awk '/^cpu /{print int($2 + $3 + 1)}' "$log")))
        runs=$((runs + $(awk '/number_of_executed_units/{print $2}' "$log")))
    done
    said="$runs executions, $used s of CPU, $(grep -ao 'DONE *cov: [0-9]* ft: [0-9]*' "$log" | sed 's/DONE *//')"
}

require_packages build mpi cjson fuzz
make -s build/fuzz
for target in "${targets[@]}"; do
    n=$((n + 1)) said=
    if fuzz "$target"; then
        echo "ok $n - $target: $said"
    else
        failed=1
        kept=$(grep -aom 1 'written to .*' "build/fuzzing/$target.txt" || echo 'no input was kept')
        echo "not ok $n - $target: $kept; report: build/fuzzing/$target.txt"
    fi
done
echo "1..$n"
exit $failed

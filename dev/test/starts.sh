#!/usr/bin/env bash
# starts.sh [N] - start the program N [10000] times beside twice as many busy loops as there are cores, and lose none:
# every start ends with 0 and has printed all that the first one printed. scripts/test.sh --long runs it. TAP.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

starts=${1:-10000}
loops=()
for ((i = 0; i < 2 * $(nproc); i++)); do
    while :; do :; done &
    loops+=($!)
done
trap 'kill "${loops[@]}" 2>/dev/null; rm -rf "$work"' EXIT

# lost COUNT COMMAND...: starts that ended otherwise than with 0 or printed other text than the
# first, one line each in $work/lost
lost() {
    local count=$1 i code
    shift
    "$@" >"$work/first" 2>&1 || return 1
    for ((i = 0; i < count; i++)); do
        "$@" >"$work/out" 2>&1
        code=$?
        [[ $code -eq 0 ]] && cmp -s "$work/first" "$work/out" ||
            say "start $i: exit code $code, $(wc -c <"$work/out") bytes" >>"$work/lost"
    done
    [[ -s $work/first && ! -s $work/lost ]]
}

: >"$work/lost"
for command in --help --dry-run; do
    begin=$(date +%s%N)
    lost $((starts / 2)) ./train_gpt_cpu "$command"
    status=$?
    [[ $status -eq 0 ]] || cp "$work/lost" "$work/out"
    ok $status "$((starts / 2)) starts of $command beside ${#loops[@]} busy loops: $(wc -l <"$work/lost") lost," \
        "$((($(date +%s%N) - begin) / 1000 / (starts / 2))) us each"
done
checks_done

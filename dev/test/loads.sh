#!/usr/bin/env bash
# loads.sh [CASE...] - the README's two commands, whole, where another machine's conditions are forced on
# this one. TAP, a line a command.
#
#   avx2       built for x86-64-v3
#   one-core   on one core
#   busy       beside four busy loops a core
# Each in a fresh clone of this commit, kept with its outputs in build/loads/CASE. An hour or two a case on two cores.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
loops=()
trap 'kill "${loops[@]}" 2>/dev/null; rm -rf "$work"' EXIT

run() { # CASE [COMMAND WORDS before bash...]
    local case=$1 copy=build/loads/$1 code
    shift
    # scripts/test.sh's own
    set -- env -u OMP_WAIT_POLICY -u OMPI_MCA_pml -u OMPI_MCA_ess_singleton_isolated -u ASAN_OPTIONS "$@"
    rm -rf "$copy"
    git -c safe.directory='*' clone -q --no-hardlinks . "$copy" >"$work/out" 2>&1 || { ok 1 "$case: a clone" &&
        return; }
    (cd "$copy" && "$@" bash scripts/quickstart.sh) >"$work/out" 2>&1
    code=$?
    cp "$work/out" "$copy/quickstart.txt"
    [[ $code -eq 0 ]] && all_schemes "$work/out"
    ok $? "$case: quickstart.sh: $(grep -o 'differ by at most [0-9.e+-]*' "$work/out")"
    (cd "$copy" && "$@" bash scripts/test.sh) >"$work/out" 2>&1
    code=$?
    cp "$work/out" "$copy/test.txt"
    [[ $code -eq 0 ]]
    ok $? "$case: test.sh: $(tail -n 1 "$work/out")"
}

[[ $# -gt 0 ]] || set -- avx2 one-core busy
for case in "$@"; do
    case $case in
    avx2) run avx2 env OPT="-O3 -march=x86-64-v3" ;;
    one-core) run one-core taskset -c "$(taskset -cp $$ | grep -oE '[0-9]+' | tail -n 1)" ;;
    busy)
        for _ in $(seq $((4 * $(nproc)))); do
            (while :; do :; done) &
            loops+=($!)
        done
        run busy env
        kill "${loops[@]}" && loops=()
        ;;
    *) die "no case '$case'; avx2, one-core, busy" ;;
    esac
done
checks_done

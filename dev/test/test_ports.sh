#!/usr/bin/env bash
# test_ports.sh - builds for other machines than this one: kernels' tests and a training of two ranks for the older
# x86-64 levels, whatever this machine has; the emulator's fibers by ucontext, as on a processor without a switch of its
# own; a tree that moves to another processor. TAP, run by scripts/test.sh.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

python3 dev/data/text_to_shards.py --out "$work/data" train_gpt.cu >/dev/null
flags=(--train "$work/data/train_*.bin" --seq-len 128 --batch 4 --micro-batch 2 --steps 3)

losses() { sed -E 's/.*"loss": ([^,]*),.*/\1/' "$1/metrics.jsonl"; }

close() { # DIR: three losses, those of the referee to 1e-5
    paste <(losses "$work/referee") <(losses "$1") |
        awk '{ d = ($1 - $2) / $1; if (d * d > 1e-10) exit 1 } END { exit NR != 3 }'
}

run_ranks 1 ./train_gpt_fp64 "${flags[@]}" --out "$work/referee" >"$work/out" 2>&1
ok $? "the referee trains three steps: losses $(losses "$work/referee" | tr '\n' ' ')"

runs_here() { # LEVEL: this processor's instruction set has what x86-64-vLEVEL needs
    local flag need=()
    case $1 in
    2) need=(cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3) ;;
    3) need=(avx avx2 bmi1 bmi2 f16c fma abm movbe) ;;
    4) need=(avx512f avx512bw avx512cd avx512dq avx512vl) ;;
    esac
    for flag in "${need[@]}"; do grep -qw "$flag" /proc/cpuinfo || return; done
}

level() { # LEVEL
    local build=build/x86-64-v$1 code
    make -s -j "$(nproc)" BUILD="$build" OPT="-O3 -march=x86-64-v$1" "$build/train_gpt_cpu" "$build/test_kernels_fp32" \
        "$build/test_kernels_fp64" >"$work/out" 2>&1
    code=$?
    ok $code "x86-64-v$1: the program and the kernels' tests compile"
    [ $code -eq 0 ] || return
    if ! runs_here "$1"; then
        ok 0 "x86-64-v$1: # SKIP this processor has no x86-64-v$1: compiled, not run"
        return
    fi
    for real in fp32 fp64; do
        "$build/test_kernels_$real" >"$work/out" 2>&1 && grep -q '^1\.\.[1-9]' "$work/out"
        ok $? "x86-64-v$1: kernels in $real, $(grep -c '^ok' "$work/out") checks"
    done
    run_ranks 2 "$build/train_gpt_cpu" "${flags[@]}" --sp ring --out "$work/v$1" >"$work/out" 2>&1 &&
        close "$work/v$1" && grep -q ', peak [0-9.]* GFLOP/s a rank (measured)$' "$work/out"
    ok $? "x86-64-v$1: two ranks train to the referee's losses;$(grep -o ' peak .*' "$work/out")"
}

if [[ $(uname -m) == x86_64 ]]; then for l in 2 3 4; do level $l; done
else ok 0 "x86-64 levels # SKIP this is $(uname -m)"; fi

make -s BUILD=build/ucontext OPT="-O3 -DEMU_UCONTEXT" build/ucontext/test_emulator_emu >"$work/out" 2>&1 &&
    build/ucontext/test_emulator_emu >"$work/out" 2>&1
ok $? "the emulator's fibers by ucontext: $(grep -c '^ok' "$work/out") checks"

# ---- a locale that writes a decimal comma
if localedef -i de_DE -f UTF-8 "$work/de_DE.UTF-8" >/dev/null 2>&1; then
    plan() { env LOCPATH="$work" LC_ALL="$1" PROGRAM=./train_gpt_cpu DRY_RUN=1 NP=8 bash scripts/gpt2_124m.sh; }
    [[ $(LOCPATH=$work LC_ALL=de_DE.UTF-8 bash -c 'printf %.1f 1,5') == 1,5 ]] && plan C >"$work/point" &&
        plan de_DE.UTF-8 >"$work/comma" && diff "$work/point" "$work/comma" >"$work/out" 2>&1
    ok $? "where 0.5 is written 0,5 the arithmetic is the same: $(grep '^time' "$work/comma")"
else ok 0 "a decimal comma # SKIP localedef finds no de_DE: apt-get install locales"; fi

# ---- a container's /dev/shm, too small for the ranks' buffers
# shellcheck disable=SC2016
if unshare --mount --propagation private mount -t tmpfs -o size=4m tmpfs /dev/shm 2>/dev/null; then
    unshare --mount --propagation private \
        bash -c 'mount -t tmpfs -o size=4m tmpfs /dev/shm && source scripts/common.sh && run_ranks "$@"' _ 4 \
        ./train_gpt_cpu "${flags[@]}" --out "$work/shm" >"$work/out" 2>&1 && close "$work/shm"
    ok $? "four ranks train where /dev/shm has 4 MB"
else ok 0 "a small /dev/shm # SKIP only root can mount one"; fi

# ---- what was built for another processor or with other flags is built again, and only that
build=$work/moved
once() { make -s BUILD="$build" OPT="$1" "$build/test_log_fp32" >"$work/out" 2>&1 &&
    stat -c %y "$build/test_log_fp32"; }
first=$(once -O1) && again=$(once -O1) && other=$(once "-O1 -funsigned-char") &&
    [[ $first == "$again" && $first != "$other" ]]
ok $? "another OPT builds again, the same one does not"
sed -i '2d' "$build/options" # as another processor or compiler would have left it
moved=$(once "-O1 -funsigned-char") && [[ $moved != "$other" ]]
ok $? "a tree from another processor or compiler is built again"

checks_done

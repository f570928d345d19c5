#!/usr/bin/env bash
# test.sh [--long] [WORD...] - build and run every test, or those whose name contains a WORD; the last
# line is "N passed, N failed".
#
# Tests speak TAP: each `ok` or `not ok` line is one check, counted here. A test that crashes, runs out of time, prints
# no check or fewer than it announced counts as one failed, besides. --long adds what takes many minutes more: the
# referee under the address and undefined-behaviour sanitizers, the planted faults, every reader fuzzed for 20 minutes,
# aarch64 under qemu, and both commands from bare Debians (as root), on one core and on a busy machine. Outputs:
# build/log; results: dev/test/LONG.md.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
export WERROR=1 # a warning is an error here, and only here

# What to run: the name, on how many ranks (alone: without mpirun), the most seconds that two cores take, and its
# arguments; what runs ten times as long, on one slow and busy core, has hung. Programs are
# dev/test/NAME.c in fp32 and fp64 (build/NAME_fp32, ...) or over the simulator (build/NAME_sim), dev/test/NAME.cu
# under the CUDA emulator (build/NAME_emu; _emuasan: with sanitizers), scripts dev/test/NAME.sh. Every
# dev/test/test_* must be here.
RUNS='
check-cxx               alone  120
test_positions_fp32     alone   60
test_memory_fp32            1   60
test_host_fp32          alone  120
test_schedule_fp32      alone   60
test_kernels_fp32       alone  300
test_kernels_fp64       alone  300
test_comm_fp32              1  120
test_comm_fp32              2  120
test_comm_fp32              3  120
test_comm_fp32              4  120
test_comm_fp32              8  240
test_comm_fp64              1  120
test_comm_fp64              2  120
test_comm_fp64              3  120
test_comm_fp64              4  120
test_comm_fp64              8  240
test_log_fp32           alone   60
test_data_fp32          alone   60
test_dataset.sh         alone   60
test_prepare.sh         alone   60
test_tokenizer_fp32     alone   60
test_evaluate_fp32      alone   60
test_peak.sh            alone  120
test_gradients_fp64         1  300
test_models_fp64            1   60
test_fixtures_fp32          1  120
test_fixtures_fp32          4  120
test_fixtures_fp64          1  120
test_fixtures_fp64          2  120
test_fixtures_fp64          4  120
test_checkpoint_fp32    alone  300
test_checkpoint_fp32        4  300
test_checkpoint_fp64    alone  300
test_checkpoint_fp64        4  300
test_save_fp32          alone  120
test_save_fp64          alone  120
test_save_fp64              2  120
test_save_fp64              4  120
test_resume.sh          alone  300
kill.sh                 alone  300 10
test_schemes_fp64          12  900
test_schemes_fp32           4  600
test_masks_fp64             8  300
test_levers_fp64            4  120
test_sample_fp64            4  120
test_sample_fp32            2  120
test_cli.sh             alone  300
test_docs.sh            alone   60
test_judge.sh           alone  300
test_stops.sh           alone 1200
test_simulator_sim      alone   60
test_sim.sh             alone  300
test_trace.sh           alone  300
test_ports.sh           alone  600
test_scripts.sh         alone 1200
test_report.sh          alone  300
test_emulator_emu       alone  120
test_transfers_emu      alone   60
test_emulator_emuasan   alone  120
test_cuda_gemm_emu      alone  120
test_cuda_ops_emu       alone  300
test_cuda_ops_emuasan   alone  600
test_cuda_hopper_emu    alone  120
test_cuda_attention_emu alone  600
test_emu.sh             alone 1200
test_emu_refusals.sh    alone  600
test_layers.sh          alone 3000
test_nvcc.sh            alone  900
test_gpu_check.sh       alone  300
test_bare_gpu.sh        alone  300
'
LONG='
kill.sh                 alone 1800 200
test_kernels_asan       alone 1800
test_checkpoint_asan    alone 1800
test_fixtures_asan          4 1800
test_schemes_asan           8 3600
starts.sh               alone 3600
faults.sh               alone 3600
fuzz.sh                 alone 9000 1200
aarch64.sh              alone 3600
bare.sh                 alone 3600 bookworm
bare.sh                 alone 3600 trixie
loads.sh                alone 9000 avx2
loads.sh                alone 9000 one-core
loads.sh                alone 9000 busy
'

words=()
for word in "$@"; do
    case $word in
    --long) RUNS+=$LONG ;;
    -*) die "unknown argument '$word'; --long, or words that select tests" ;;
    *) words+=("$word") ;;
    esac
done

selected() { # NAME: does it contain one of the words?
    local word
    [[ ${#words[@]} -gt 0 ]] || return 0
    for word in "${words[@]}"; do [[ $1 != *"$word"* ]] || return 0; done
    return 1
}

lines=()
while read -r line; do [[ -z $line ]] || ! selected "${line%% *}" || lines+=("$line"); done <<<"$RUNS"
[[ ${#lines[@]} -gt 0 ]] || die "no test has '${words[*]}' in its name; the table is at the top of scripts/test.sh"
for file in dev/test/test_*.c dev/test/test_*.cu dev/test/test_*.sh; do
    name=${file##*/} name=${name%.cu}
    [[ ! -e $file || $RUNS == *"${name%.c}"* ]] || die "$file is in no line of the table at the top of scripts/test.sh"
done

# ---- build: only what will run, and the programs that scripts run

require_packages
targets=(train_gpt_cpu train_gpt_fp64 train_gpt_emu train_gpt_sim)
for line in "${lines[@]}"; do
    case ${line%% *} in
    *_fp32 | *_fp64 | *_sim | *_asan | *_emu | *_emuasan) targets+=("build/${line%% *}") ;;
    test_gpu_check.sh) targets+=(build/bench_cuda_emu) ;;
    test_bare_gpu.sh) for file in dev/test/test_cuda_*.cu; do targets+=("build/$(basename "$file" .cu)_emu"); done &&
        targets+=(build/bench_cuda_emu) ;;
    esac
done
mapfile -t targets < <(printf '%s\n' "${targets[@]}" | sort -u)
mkdir -p build/log
say "building ${#targets[@]} programs"
began=$SECONDS
export ASAN_OPTIONS=detect_leaks=0 # MPI keeps what it has until the process ends
export OMP_WAIT_POLICY=passive # threads that spin take the cores from other ranks
# a program without mpirun then starts in 0.05 s instead of 0.35: no daemon, no networks
export OMPI_MCA_pml=ob1 OMPI_MCA_ess_singleton_isolated=1
passed=0 failed=0
if ! make -k -s -j "$(nproc)" "${targets[@]}" >build/log/make.txt 2>&1; then
    failed=1 # besides what is missing below: an older binary must not pass for what does not build any more
    tail -n 30 build/log/make.txt
    say "not ok - the build; all messages are in build/log/make.txt"
fi
say "built in $((SECONDS - began)) s"

# ---- run

run_test() { # NAME RANKS SECONDS [ARGS...]; output on stdout
    local name=$1 ranks=$2 seconds=$((10 * $3)) command
    shift 3
    case $name in
    check-cxx) command=(check_cxx) ;;
    *.sh) command=(timeout --foreground --kill-after=10 "$seconds" bash "dev/test/$name") ;;
    *)
        [[ $ranks == alone ]] || { run_ranks -t "$seconds" "$ranks" "build/$name" "$@"; return; }
        command=(timeout --foreground --kill-after=10 "$seconds" "build/$name")
        ;;
    esac
    "${command[@]}" "$@" </dev/null
}

check_cxx() {
    if make -s check-cxx; then
        say "ok 1 - the sources are C++20, too"
    else
        say "not ok 1 - the sources are not C++20"
    fi
}

judge() { # LOG CODE: sets good, bad (checks) and why (empty, or what is wrong besides)
    local plan
    good=$(grep -c '^ok' "$1" || true)
    bad=$(grep -c '^not ok' "$1" || true)
    plan=$(sed -n 's/^1\.\.\([0-9][0-9]*\)$/\1/p' "$1" | tail -n 1)
    why=
    if [[ $2 -eq 124 || $2 -eq 137 ]]; then why="stopped after its time limit or killed"
    elif [[ $2 -ne 0 && ($2 -ne 1 || $bad -eq 0) ]]; then why="exit code $2"
    elif [[ $((good + bad)) -eq 0 ]]; then why="no checks"
    elif [[ -n $plan && $plan -ne $((good + bad)) ]]; then why="$((good + bad)) checks of $plan"; fi
}

for i in "${!lines[@]}"; do
    read -r -a run <<<"${lines[i]}"
    where="${run[1]} ranks"
    [[ ${run[1]} != alone ]] || where=alone
    log=build/log/${run[0]}-${run[1]}${run[3]:+-${run[3]}}.txt
    printf '[%2d/%d] %-22s %-8s ' $((i + 1)) ${#lines[@]} "${run[0]}" "$where"
    began=$SECONDS code=0
    run_test "${run[@]}" >"$log" 2>&1 || code=$?
    judge "$log" "$code"
    passed=$((passed + good)) failed=$((failed + bad))
    printf '%5d ok %4d not ok %4d s\n' "$good" "$bad" $((SECONDS - began))
    grep '^not ok' "$log" | sed 's/^/    /' | head -n 20 || true
    [[ $bad -le 20 ]] || say "    ... all $bad are in $log"
    if [[ -n $why ]]; then
        failed=$((failed + 1))
        say "    not ok - ${run[0]}, $where: $why; the end of $log:"
        tail -n 15 "$log" | sed 's/^/    | /'
    fi
done

say "$passed passed, $failed failed"
[[ $failed -eq 0 && $passed -gt 0 ]]

#!/usr/bin/env bash
# test_nvcc.sh - nvcc compiles the program for sm_80 and sm_90, with and without MPI and NCCL, the kernels' tests and benchmark: no warning, no
# spilled register. SKIP where there is no nvcc.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

if ! have nvcc && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    say "ok 1 - # SKIP no nvcc on this machine: the kernels were compiled for the emulator only"
    say "1..1"
    exit 0
fi

builds() { # WHAT MAKE-ARGUMENTS...: warnings and spills are errors
    local what=$1 began=$SECONDS code=0
    shift
    make -k -s "$@" >"$work/out" 2>&1 || code=$?
    ok $code "$what ($((SECONDS - began)) s)"
}

builds "the program alone, without MPI and NCCL, for sm_80" -B MPI= NCCL= CUDA_ARCHS=80 train_gpt
./train_gpt --model tiny-gpt --dry-run >"$work/out" 2>&1 && ! ldd train_gpt | grep -qE 'libmpi|libnccl'
ok $? "it needs neither, and makes a dry run"
mapfile -t kernels < <(basename -s .cu -a dev/test/test_cuda_*.cu | sed 's|.*|build/&_cuda|')
builds "the kernels' tests and benchmark, for sm_80" -j "$(nproc)" CUDA_ARCHS=80 build/bench_cuda "${kernels[@]}"
builds "train_gpt for $(make -s print-archs)" -B train_gpt

# Without a GPU the program must say so, in one line, and a dry run must work all the same.
if ! have nvidia-smi; then
    code=0
    ./train_gpt --train nothing.bin >"$work/out" 2>&1 || code=$?
    [[ $code -ge 1 && $code -le 127 && $(wc -l <"$work/out") -eq 1 ]] && grep -q '^train_gpt: error: no ' "$work/out"
    ok $? "no GPU: exit code $code, $(head -n 1 "$work/out")"
    ./train_gpt --model llama2-7b --seq-len 16384 --batch 1 --sp odysseus --dry-run --world 8 >"$work/out" 2>&1 && grep -q '^  total' "$work/out"
    ok $? "a dry run needs no GPU:$(grep -m 1 '^  total' "$work/out" | tr -s ' ') MB"
fi
checks_done

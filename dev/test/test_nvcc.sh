#!/usr/bin/env bash
# test_nvcc.sh - nvcc compiles the program and every kernel for sm_80 and sm_90: no warning, no spilled register. SKIP where there is no nvcc.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../../scripts/common.sh"

if ! have nvcc && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    say "ok 1 - # SKIP no nvcc on this machine: the kernels were compiled for the emulator only"
    say "1..1"
    exit 0
fi
began=$SECONDS log=$(mktemp)
trap 'rm -f "$log"' EXIT
if make train_gpt >"$log" 2>&1; then say "ok 1 - train_gpt compiles and links for $(make -s print-archs), warnings and spills being errors ($((SECONDS - began)) s)"
else
    say "not ok 1 - train_gpt does not build"
    tail -n 20 "$log"
fi

# Without a GPU the program must say so, in one line, and a dry run must work all the same.
if [[ -x ./train_gpt ]] && ! have nvidia-smi; then
    code=0
    said=$(./train_gpt --train nothing.bin 2>&1) || code=$?
    if [[ $code -ge 1 && $code -le 127 && $said == *"train_gpt: error: no "* && $(wc -l <<<"$said") -eq 1 ]]; then say "ok 2 - no GPU: exit code $code, $said"
    else say "not ok 2 - no GPU: exit code $code, $said"; fi
    said=$(./train_gpt --model llama2-7b --seq-len 16384 --batch 1 --sp odysseus --dry-run --world 8 2>&1) || said="failed: $said"
    if grep -q '^  total' <<<"$said"; then say "ok 3 - a dry run needs no GPU:$(grep '^  total' <<<"$said" | tr -s ' ') MB"
    else say "not ok 3 - $said"; fi
    say "1..3"
else
    say "1..1"
fi

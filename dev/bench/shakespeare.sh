#!/usr/bin/env bash
# shakespeare.sh TEXT [RANKS] [FLAGS...] - a known figure: byte-level GPT-2 on Tiny Shakespeare, to compare
# with nanoGPT's documented 1.88.
#
# 2,000 steps x 12 sequences x 64 tokens = 1,536,000 tokens, 1.5 times the text; 0.83M parameters; 8 TFLOP in
# all, about a minute on two cores. The first 90% of TEXT train, the rest validate, all of it each time.
# Default: 2 ranks, --sp odysseus.
set -euo pipefail
here=$PWD
source "$(dirname "$0")/../../scripts/common.sh"
[[ $# -ge 1 ]] || die "usage: bash dev/bench/shakespeare.sh TEXT [RANKS] [FLAGS...]"
text=$1 ranks=${2:-2}
shift $(($# > 1 ? 2 : 1))
[[ $text == /* ]] || text=$here/$text
[[ -f $text ]] || die "$text: no such file"
require_packages
make -s train_gpt_cpu
out=$(mktemp -d)
python3 dev/data/text_to_shards.py --out "$out/data" "$text"
run_ranks "$ranks" ./train_gpt_cpu --model tiny-gpt --layers 4 --heads 4 --dim 128 --max-pos 64 --seq-len 64 \
    --batch 12 --micro-batch 12 --train "$out/data/train_*.bin" --val "$out/data/val_*.bin" --steps 2000 --lr 1e-3 \
    --min-lr 1e-4 --warmup 100 --beta2 0.99 --eval-every 250 --eval-batches 0 --log-every 250 --out "$out/run" "$@"
say "run directory: $out/run"

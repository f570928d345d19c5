#!/usr/bin/env bash
# gpt2_124m.sh - GPT-2 124M from scratch, by the recipe of GPT-3 Small (Brown et al. 2020, table 2.1) on 10G tokens.
#
#   DATA="fineweb10B/fineweb_train_*.bin" VAL="fineweb10B/fineweb_val_*.bin" bash scripts/gpt2_124m.sh
#
#   tokens   512 sequences x 1,024 = 524,288 a step, x 19,073 steps = 1.0e10 (80 tokens a parameter)
#   FLOP     6 x 123.7M parameters + 6 x 12 layers x 768 x 1,024 = 7.99e8 a token, 4.19e14 a step, 8.0e18 in all
#   memory   by the program's --dry-run, printed first; DRY_RUN=1 stops there
#   time     at 40% of 8 x 312 TFLOP/s: 0.42 s a step, 2.2 hours in all
#   rate     715 steps (375M tokens) of warmup to 6e-4, cosine to a tenth of it; AdamW 0.9, 0.95, decay 0.1, clip 1
#
# DATA and VAL are token shards in llm.c's format with GPT-2's tokens (llm.c's own, or dev/data/prepare.py --tokenizer
# gpt2). All ranks are data-parallel and share weights by ZeRO-3; MICRO is what a rank takes at once: fewer where memory
# is short, the result is the same.
#
#   STEPS=19073 BATCH=512 SEQ=1024 MICRO=(BATCH / NP, at most 64) LR=6e-4 WARMUP=(3.75% of STEPS)
#   EVAL_EVERY=250 OUT=runs/gpt2_124m
#   NP=(GPUs here, or 8) MODEL=gpt2-124m PROGRAM=./train_gpt FLAGS=   MFU=0.4 PEAK_TFLOPS=312 (only for the estimate)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

PROGRAM=${PROGRAM:-./train_gpt} MODEL=${MODEL:-gpt2-124m} DATA=${DATA:-} VAL=${VAL:-} NP=${NP:-$(default_ranks)}
STEPS=${STEPS:-19073} BATCH=${BATCH:-512} SEQ=${SEQ:-1024} LR=${LR:-6e-4} EVAL_EVERY=${EVAL_EVERY:-250}
MFU=${MFU:-0.4} PEAK_TFLOPS=${PEAK_TFLOPS:-312}
OUT=$(absolute "${OUT:-$PWD/runs/gpt2_124m}")

[[ $# -eq 0 ]] || die "no arguments: settings are variables, e.g. DATA=\"GLOB\" bash scripts/gpt2_124m.sh"
SEQ=$(tokens SEQ)
whole NP STEPS BATCH SEQ EVAL_EVERY
[[ $((BATCH % NP)) -eq 0 ]] || die "BATCH=$BATCH sequences do not divide over NP=$NP ranks"
MICRO=${MICRO:-$((BATCH / NP < 64 ? BATCH / NP : 64))} WARMUP=${WARMUP:-$((STEPS * 715 / 19073))}
[[ -n $DATA || ${DRY_RUN:-0} != 0 ]] ||
    die "DATA= is missing: a glob of token shards, in quotes; the top of this script says which"
[[ -z $DATA ]] || require_shards DATA
[[ -z $VAL ]] || require_shards VAL
require_hosts
require_program

flags=(--model "$MODEL" --dp "$NP" --seq-len "$SEQ" --batch "$BATCH" --micro-batch "$MICRO" --steps "$STEPS" --lr "$LR"
    --warmup "$WARMUP")
read -ra more <<<"${FLAGS:-}"
flags+=("${more[@]}")
print_plan "$BATCH" "$SEQ" "${flags[@]}"
[[ ${DRY_RUN:-0} == 0 ]] || exit 0
[[ -z $VAL ]] || flags+=(--val "$VAL" --eval-every "$EVAL_EVERY")
run_ranks "$NP" "$PROGRAM" "${flags[@]}" --train "$DATA" --out "$OUT"

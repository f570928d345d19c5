#!/usr/bin/env bash
# long_context.sh - continued training of a Hugging Face Llama on long sequences.
#
#   MODEL=llama-dir DATA="shards/train_*.bin" bash scripts/long_context.sh
#   MODEL=llama-dir DATA="shards/train_*.bin" SP=ulysses RING=2 bash scripts/long_context.sh    where heads are few
#
#   tokens   BATCH 8 x SEQ 131,072 = 1.05M a step, x STEPS 200 = 210M
#   FLOP     a 7B Llama at 128K: 6 x 6.6e9 parameters + 6 x 32 layers x 4096 x 131,072 = 1.43e11 a token, 1.50e17 a
#            step, 3.0e19 in all; attention is 72% of it
#   memory   by the program's --dry-run, printed first; only each block's input is kept (RECOMPUTE=full)
#   time     at 40% of 8 x 312 TFLOP/s: 150 s a step, 8.3 hours in all; recomputing takes a third more that
#            MFU does not count
#
# All is printed for MODEL and the settings below before anything starts; DRY_RUN=1 stops there.
#
# MODEL  a directory with config.json and model*.safetensors. It should know long positions: a model trained on short
#        ones wants a larger rope_theta, or Llama 3's rope_scaling, in its config.json first; the program takes both
#        from there and changes nothing.
# DATA   token shards in llm.c's format, made with the model's own tokenizer: 256 int32 (20240520, 1, count, zeros),
#        then uint16 tokens; 20240801, 7 and uint32 for vocabularies beyond 65,536. A sequence is SEQ consecutive
#        tokens of one shard, so a shard must hold more than SEQ. dev/data/prepare.py --tokenizer MODEL writes them
#        from text, JSONL and parquet.
#
#   SEQ=128K BATCH=8 STEPS=200 LR=2e-5 WARMUP=20 SP=odysseus RING=1 DP=1 RECOMPUTE=full VAL="GLOB" OUT=runs/long_context
#   NP=(GPUs here, or 8) PROGRAM=./train_gpt FLAGS=   MFU=0.4 PEAK_TFLOPS=312 (only for the estimate)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

PROGRAM=${PROGRAM:-./train_gpt} MODEL=${MODEL:-} DATA=${DATA:-} VAL=${VAL:-} NP=${NP:-$(default_ranks)}
SEQ=${SEQ:-128K} BATCH=${BATCH:-8} STEPS=${STEPS:-200} LR=${LR:-2e-5} \
    WARMUP=${WARMUP:-$((STEPS < 200 ? STEPS / 10 : 20))}
SP=${SP:-odysseus} RING=${RING:-1} DP=${DP:-1} RECOMPUTE=${RECOMPUTE:-full}
MFU=${MFU:-0.4} PEAK_TFLOPS=${PEAK_TFLOPS:-312}
OUT=$(absolute "${OUT:-$PWD/runs/long_context}")

[[ $# -eq 0 ]] || die "no arguments: settings are variables, e.g. MODEL=DIR DATA=\"GLOB\" bash scripts/long_context.sh"
SEQ=$(tokens SEQ)
whole NP SEQ BATCH STEPS RING DP
[[ -n $MODEL ]] || die "MODEL= is missing: a Hugging Face Llama directory with config.json and model*.safetensors"
MODEL=$(absolute "$MODEL")
[[ -d $MODEL ]] || die "MODEL=$MODEL is not a directory"
[[ -f $MODEL/config.json ]] || die "MODEL=$MODEL holds no config.json"
[[ -n $DATA || ${DRY_RUN:-0} != 0 ]] ||
    die "DATA= is missing: a glob of token shards, in quotes; the top of this script says how to make them"
[[ -z $DATA ]] || require_shards DATA
[[ -z $VAL ]] || require_shards VAL
require_hosts
require_program

flags=(--model "$MODEL" --sp "$SP" --dp "$DP" --seq-len "$SEQ" --batch "$BATCH" --steps "$STEPS" --lr "$LR"
    --warmup "$WARMUP" --recompute "$RECOMPUTE")
[[ $SP == ring && $RING == 1 ]] || flags+=(--ring "$RING")
read -ra more <<<"${FLAGS:-}"
flags+=("${more[@]}")
print_plan "$BATCH" "$SEQ" "${flags[@]}"
[[ ${DRY_RUN:-0} == 0 ]] || exit 0
run_ranks "$NP" "$PROGRAM" "${flags[@]}" --train "$DATA" ${VAL:+--val "$VAL"} --out "$OUT"

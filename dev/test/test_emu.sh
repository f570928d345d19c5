#!/usr/bin/env bash
# test_emu.sh [PROGRAM [FLAGS...]] - the whole CUDA program against the fp64 referee: tiny GPT-2 and Llama, every scheme
# of the table and two hybrids, 1, 2 and 4 ranks; a tiny Qwen 3 under two schemes; documents and windows.
#
# PROGRAM: ./train_gpt_emu unless told; dev/gpu_check.sh gives train_gpt --comm mpi, and REFEREE. SCHEMES: only these,
# no other case. What is compared, and the bounds: check_runs.py.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../../scripts/common.sh"

program=${1:-./train_gpt_emu} referee=${REFEREE:-./train_gpt_fp64}
shift $(($# > 0))
schemes=${SCHEMES:-$(list_schemes "$referee")}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 4,000 tokens below 128 that follow no pattern a model could know, as a uint16 shard
python3 - "$work/tokens.bin" <<'END'
import array, random, sys
random.seed(7)
tokens = array.array("H", (random.randrange(128) for _ in range(4000)))
header = array.array("i", [20240520, 1, len(tokens)] + [0] * 253)
open(sys.argv[1], "wb").write(header.tobytes() + tokens.tobytes())
END

# Initial weights that are bf16 numbers: then what is compared is the computation, not how the
# weights were rounded before it.
initial_weights() { # DIR FLAGS...
    local out=$1
    shift
    "$referee" "$@" --init-only --out "$out" >/dev/null
    python3 - "$out/model.safetensors" <<'END'
import array, json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
(size,) = struct.unpack("<Q", data[:8])
assert all(t["dtype"] == "F32" for name, t in json.loads(data[8:8 + size]).items() if name != "__metadata__")
words = array.array("I", bytes(data[8 + size:]))
for i, w in enumerate(words):
    words[i] = (w + 0x7FFF + (w >> 16 & 1)) & 0xFFFF0000
open(sys.argv[1], "wb").write(bytes(data[:8 + size]) + words.tobytes())
END
}

GPT='--model tiny-gpt --arch gpt2 --layers 2 --dim 64 --heads 4 --ffn 256 --vocab 128 --max-pos 64'
LLAMA='--model tiny-llama --arch llama --layers 2 --dim 64 --heads 4 --kv-heads 2 --ffn 176 --vocab 128'
QWEN='--model qwen3-0.6b --layers 3 --dim 64 --heads 4 --kv-heads 2 --head-dim 32 --ffn 176 --vocab 128 --tied-head off'
QWEN+=' --max-pos 24 --rope-scaling yarn --rope-factor 4'
MISTRAL=${LLAMA/--arch llama/--arch mistral}
COMMON="--seq-len 48 --batch 2 --micro-batch 1 --steps 2 --lr 1e-3 --selfcheck on --log-every 100 $*"

# Under the emulator (dev/emu/runtime.h) streams run late on one rank, early on four, and by a coin on two and where a
# run is repeated. Where a scheme shall have the bits of one rank, products sum alike for any number of rows.
run_case() { # MODEL CASE RANKS PROGRAM FLAGS...
    local out=$work/$1/$2 ranks=$3 binary=$4 streams=0 alike=0
    case $3-$2 in *-again) streams=5 ;; 2-*) streams=2 ;; 4-* | 1-offloaded) streams=1 ;; esac
    case $2 in single* | ulysses-2 | ulysses-4 | ulysses-staged-2) alike=1 ;; esac
    shift 4
    mkdir -p "$out"
    # shellcheck disable=SC2086
    EMU_STREAMS=$streams EMU_SUMS_ALIKE=$alike run_ranks -t 600 "$ranks" "$binary" --train "$work/tokens.bin" $COMMON \
        "$@" --out "$out/run" --dump-grads "$out/grads.safetensors" >"$out/log" 2>&1 || return 0
    mv "$out/run/metrics.jsonl" "$out/run/comm.json" "$out"
}

# The same with every micro-step walked, none launched as a graph.
run_walked() { # MODEL CASE FLAGS...
    run_case "$1" "$2-again" 1 "$program" "${@:3}" --graphs off
    echo "$2 without graphs" >"$work/$1/$2-again/of"
}

run_model() { # MODEL FLAGS...
    local model=$1 flags=${*:2}
    # shellcheck disable=SC2086
    {
        initial_weights "$work/$model-weights" $flags
        flags="--model $work/$model-weights"
        run_case $model referee 1 "$referee" $flags
        run_case $model single 1 "$program" $flags --graphs on
        run_walked $model single $flags
        for scheme in $schemes; do
            for ranks in 1 2 4; do run_case $model $scheme-$ranks $ranks "$program" $flags --sp $scheme; done
        done
        [[ -z ${SCHEMES-} ]] || return 0
        run_case $model ring-3 3 "$program" $flags --sp ring # three ranks share what no three can share evenly
        run_case $model ulysses-ring2-2 2 "$program" $flags --sp ulysses --ring 2
        run_case $model tpsp-ring2-stripe-2 2 "$program" $flags --sp tpsp --ring 2 --ring-layout stripe
        run_case $model ulysses-ring2-4 4 "$program" $flags --sp ulysses --ring 2
        run_case $model tpsp-ring2-stripe-4 4 "$program" $flags --sp tpsp --ring 2 --ring-layout stripe
        run_case $model tpsp-allgather2-4 4 "$program" $flags --sp tpsp --ring 2 --context allgather --gather-tokens 10
        run_case $model odysseus-dp2-recompute-4 4 "$program" $flags --sp odysseus --dp 2 --recompute attention-kept
        if [[ $COMMON != *--comm* ]]; then
            run_case $model ulysses-staged-2 2 "$program" $flags --sp ulysses --comm mpi
            run_case $model ring-no-overlap-2 2 "$program" $flags --sp ring --overlap off
            run_case $model odysseus-grads-bf16-4 4 "$program" $flags --sp odysseus --grad-comm bf16
            # less shared memory: other tiles
            EMU_ARCH=86 run_case $model odysseus-sm86-2 2 "$program" $flags --sp odysseus
        fi
        run_case $model again 4 "$program" $flags --sp ulysses --ring 2
        echo ulysses-ring2-4 >"$work/$model/again/of"
    }
}

# Norms of queries and keys, heads that are not d / h, a stretched rotation: where heads are split and KV heads shared,
# and where tokens are.
run_kin() {
    local flags="--model $work/qwen3-weights"
    # shellcheck disable=SC2086
    {
        initial_weights "$work/qwen3-weights" $QWEN
        run_case qwen3 referee 1 "$referee" $flags
        run_case qwen3 single 1 "$program" $flags
        run_case qwen3 offloaded 1 "$program" $flags --recompute full --tile-rows 20 --offload inputs --graphs on
        run_walked qwen3 offloaded $flags --recompute full --tile-rows 20 --offload inputs
        run_case qwen3 tpsp-4 4 "$program" $flags --sp tpsp
        run_case qwen3 ulysses-groups-2 2 "$program" $flags --sp ulysses --head-groups 2 --recompute full \
            --tile-rows 20 --offload inputs
    }
}

# Documents, and windows of which a tile holds several, in two sequences at once: on the kernels of sm_80 and of sm_90a,
# where a rank holds two runs of tokens, and where positions begin anew.
run_masked() {
    local COMMON="--seq-len 160 --batch 2 --micro-batch 2 --steps 2 --lr 1e-3 --selfcheck on --doc-mask --eot 5 $*"
    # shellcheck disable=SC2086
    {
        initial_weights "$work/mistral-weights" $MISTRAL
        local flags="--model $work/mistral-weights --window 19"
        run_case mistral referee 1 "$referee" $flags
        run_case mistral single 1 "$program" $flags --graphs on
        run_walked mistral single $flags
        EMU_ARCH=90 run_case mistral ring-2 2 "$program" $flags --sp ring
        EMU_ARCH=90 run_case mistral odysseus-2 2 "$program" $flags --sp odysseus
        initial_weights "$work/packed-weights" ${GPT/--max-pos 64/--max-pos 160}
        flags="--model $work/packed-weights"
        run_case packed referee 1 "$referee" $flags
        run_case packed single 1 "$program" $flags
    }
}

# The models side by side, and the ranks that wait let the others work: four ranks alone do not fill the cores.
export OMP_WAIT_POLICY=passive OMPI_MCA_mpi_yield_when_idle=1
# shellcheck disable=SC2086
run_model gpt2 $GPT &
gpt2=$!
# shellcheck disable=SC2086
run_model llama $LLAMA
if [[ -z ${SCHEMES-} ]]; then
    run_kin
    run_masked "$@"
fi
wait $gpt2

python3 dev/test/check_runs.py "$work"

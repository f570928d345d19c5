#!/usr/bin/env bash
# same_bits.sh BEFORE AFTER - do two checkouts of this repository, both built, compute and count the same? For
# changes that move code only.
#
# A dozen runs in each: all schemes and hybrids, both architectures, the CPU program, the referee and the emulated CUDA
# program; of each the gradients of the first step, the metrics but for times, and the ledger; dry runs and the
# simulator's tables; --help. Files are compared byte by byte. Prints a line a comparison and `N the same, N different`;
# exit code 1 where one is. Some five minutes on two cores.
set -euo pipefail
[[ $# -eq 2 && -x $1/train_gpt_fp64 &&
    -x $2/train_gpt_fp64 ]] || { echo "usage: same_bits.sh BEFORE AFTER: two checkouts after make" >&2; exit 1; }
before=$(cd "$1" && pwd) after=$(cd "$2" && pwd)
source "$(dirname "$0")/../../scripts/common.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 dev/data/text_to_shards.py --out "$work/data" train_gpt.cu LICENSE >/dev/null
export OMPI_MCA_pml=ob1

run() { # PROGRAM RANKS NAME FLAGS...: in both checkouts
    local program=$1 ranks=$2 name=$3 tree
    shift 3
    [[ $program == train_gpt_emu ]] || set -- "$@" --threads 1
    for tree in before after; do
        mkdir -p "$work/$tree/$name"
        run_ranks "$ranks" "${!tree}/$program" --train "$work/data/train_*.bin" --steps 3 --lr 3e-3 --peak-tflops 1000 \
            --out "$work/$tree/$name/run" --dump-grads "$work/$tree/$name/gradients.safetensors" "$@" \
            >"$work/$tree/$name/log" 2>&1 || die "$name in ${!tree}: $(tail -n 1 "$work/$tree/$name/log")"
        grep -oE '"(step|tokens|loss|grad_norm|lr|mem_bytes|comm_bytes|val_loss)": [^,}]*' \
            "$work/$tree/$name/run/metrics.jsonl" >"$work/$tree/$name/metrics"
        mv "$work/$tree/$name/run/comm.json" "$work/$tree/$name/ledger"
        rm -rf "$work/$tree/$name/run" "$work/$tree/$name/log"
    done
}

print() { # NAME PROGRAM FLAGS...: what it prints in both
    local name=$1 program=$2 tree
    shift 2
    for tree in before after; do (cd "${!tree}" && "./$program" "$@") >"$work/$tree/$name" 2>&1 || true; done
}

mkdir -p "$work/before" "$work/after"
llama=(--model tiny-llama --seq-len 64 --batch 4) gpt=(--model tiny-gpt --seq-len 64 --batch 4)
run train_gpt_fp64 1 one-llama "${llama[@]}"
run train_gpt_fp64 1 one-gpt "${gpt[@]}" --micro-batch 2
for scheme in $(list_schemes "$after/train_gpt_fp64"); do
    run train_gpt_fp64 4 "llama-$scheme" "${llama[@]}" --sp "$scheme"
    run train_gpt_cpu 2 "gpt-$scheme" "${gpt[@]}" --sp "$scheme" --recompute full
done
run train_gpt_fp64 8 llama-odysseus-ring-dp "${llama[@]}" --sp odysseus --ring 2 --dp 2
run train_gpt_fp64 4 gpt-ulysses-ring "${gpt[@]}" --sp ulysses --ring 2 --ring-layout stripe --overlap off
run train_gpt_fp64 4 llama-tpsp-ring "${llama[@]}" --sp tpsp --ring 2 --recompute full --micro-batch 2
run train_gpt_fp64 4 llama-tp-dp "${llama[@]}" --sp tp --dp 2
run train_gpt_emu 2 emulated-odysseus "${llama[@]}" --layers 2 --comm mpi
run train_gpt_emu 2 emulated-ring "${gpt[@]}" --layers 2 --sp ring --comm nccl
for program in train_gpt_cpu train_gpt_fp64 train_gpt_emu train_gpt_sim; do print "help-$program" $program --help; done
for scheme in $(list_schemes "$after/train_gpt_fp64"); do
    print "plan-$scheme" train_gpt_cpu --dry-run --world 8 --sp "$scheme" --seq-len 512 --batch 8
    print "forecast-$scheme" train_gpt_sim --world 8 --model llama2-7b --seq-len 65536 --batch 1 --sp "$scheme"
done

same=0 different=0
while read -r file; do
    if cmp -s "$work/before/$file" "$work/after/$file"; then same=$((same + 1))
    else
        different=$((different + 1))
        say "different: $file"
    fi
done < <(cd "$work" && { find before after -type f | sed 's,^[a-z]*/,,' | sort -u; })
say "$same the same, $different different"
[[ $different -eq 0 && $same -gt 0 ]]

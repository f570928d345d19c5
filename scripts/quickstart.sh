#!/usr/bin/env bash
# quickstart.sh - from a fresh clone to loss curves that coincide.
#
#   packages -> build -> text to byte shards -> one rank, then each scheme on 4 ranks -> one table and report.html ->
#   the end of the last run again, from its checkpoint, under another scheme on fewer ranks -> text from what it has
#   trained
#
# 150 steps x 8 sequences x 256 tokens = 307,200 tokens a run; one rank, then every scheme, each a run of a
# 0.85M-parameter Llama on the same data from the same weights: two to three minutes on two cores. Where there is a GPU
# and the CUDA toolkit, ./train_gpt runs on it; PROGRAM=./train_gpt_cpu asks for the CPU all the same.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

usage() {
    say "usage: bash scripts/quickstart.sh [--text FILE...] [--ranks N] [--steps N] [--out DIR]"
    say "  --text FILE...  text to learn; default: this repository's own sources and documents"
    say "  --ranks N       ranks of the schemes [4]"
    say "  --steps N       optimizer steps of each run [150]"
    say "  --out DIR       where shards, runs and logs go [runs/quickstart, or runs/quickstart-2, ...]"
}

whole_number() { [[ $2 =~ ^[1-9][0-9]{0,6}$ ]] || die "$1 $2: must be a whole number from 1"; }
value() { [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value; --help says more"; }

arguments=$* text=() ranks=4 steps=150 out=
while [[ $# -gt 0 ]]; do
    case $1 in
    --text)
        shift
        [[ $# -gt 0 && $1 != --* ]] || die "--text needs at least one file"
        while [[ $# -gt 0 && $1 != --* ]]; do
            [[ -f $(absolute "$1") && -r $(absolute "$1") ]] || die "--text $1: no such file"
            text+=("$(absolute "$1")")
            shift
        done
        ;;
    --ranks) value "$@" && whole_number "$1" "$2" && ranks=$2 && shift 2 ;;
    --steps) value "$@" && whole_number "$1" "$2" && steps=$2 && shift 2 ;;
    --out) value "$@" && out=$(absolute "$2") && shift 2 ;;
    --help | -h) usage && exit 0 ;;
    *) die "unknown argument '$1'; --help lists all" ;;
    esac
done

if [[ -z $out ]]; then
    out=runs/quickstart
    for ((i = 2; ; i++)); do
        [[ -e $out ]] || break
        out=runs/quickstart-$i
    done
fi
[[ ! -e $out/single ]] || die "--out $out already holds runs; choose another directory, nothing is overwritten"

# ---- packages, program, data

require_packages
gpus=$(gpus) program=${PROGRAM:-./train_gpt_cpu} more=() tolerance=()
if [[ -n ${PROGRAM-} ]]; then require_program
elif [[ $gpus -gt 0 ]]; then
    say "$gpus GPUs on this machine: building train_gpt for them, some minutes"
    if build train_gpt; then program=./train_gpt
    else say "cannot build train_gpt for the GPUs ($build_why): training on the CPU"; fi
else
    say "no GPU on this machine: training on the CPU"
fi
where="$(nproc) cores"
if [[ $program == ./train_gpt_cpu ]]; then
    say "building train_gpt_cpu"
    make --no-print-directory -s train_gpt_cpu
else # bf16 keeps 8 bits: curves of different schemes drift apart by roundings
    tolerance=(--tolerance 1e-2)
    if [[ $program == ./train_gpt ]]; then where="$gpus GPUs, with $program"; else where+=", with $program"; fi
    # ranks that share a GPU, which NCCL refuses
    [[ $gpus -ge $ranks || $("$program" --help) != *"--comm "* ]] || more=(--comm mpi)
fi

own=0
if [[ ${#text[@]} -eq 0 ]]; then
    own=1
    mapfile -t text < <(own_text)
    say "text: ${#text[@]} sources and documents of this repository"
fi
mkdir -p "$out/data" "$out/logs"
python3 dev/data/text_to_shards.py --out "$out/data" "${text[@]}"

# ---- one run after the other

# the program's own list
names=$(list_schemes "$program")
mapfile -t schemes <<<"$names"
runs=$((1 + ${#schemes[@]}))
for scheme in "${schemes[@]}"; do # better refused now than after the first run
    if ! reason=$("$program" --dry-run --world "$ranks" --sp "$scheme" --seq-len 256 --batch 8 --micro-batch 4 2>&1 \
        >/dev/null); then
        reason=${reason#*train_gpt: error: }
        die "--ranks $ranks: ${reason%%$'\n'*}"
    fi
done
milliseconds() { say $((${EPOCHREALTIME/[.,]/} / 1000)); }
began=$(milliseconds)

# Lines of one run on stdin -> its progress; RUN of $runs, NAME. On a terminal one line that is rewritten, in a
# log every fifth of the steps.
show_progress() {
    local run=$1 name=$2 line step done_ left every=$((steps / 5 > 0 ? steps / 5 : 1))
    while IFS= read -r line; do
        [[ $line =~ ^step\ ([0-9]+)/ ]] || continue
        step=${BASH_REMATCH[1]}
        done_=$(((run - 1) * steps + step))
        left=$((($(milliseconds) - began) * (runs * steps - done_) / done_ / 1000))
        line="[$run/$runs] $(printf '%-8s %d:%02d to go' "$name" $((left / 60)) $((left % 60))) | ${line% | eta*}"
        if [[ -t 1 ]]; then printf '\r\033[K%.*s' "$((${COLUMNS:-$(tput cols 2>/dev/null || say 120)} - 1))" "$line"
        elif [[ $((step % every)) -eq 0 || $step -eq 1 || $step -eq $steps ]]; then say "$line"; fi
    done
    [[ ! -t 1 ]] || printf '\n'
}

# A rate at which training does not amplify rounding: at 3e-3 some texts grew 1e-9 between two schemes to 4e-3,
# at 1e-3 it stays below 1e-7.
flags=(--model tiny-llama --train "$out/data/train_*.bin" --val "$out/data/val_*.bin" --seq-len 256 --batch 8
    --micro-batch 4 --steps "$steps"
    --lr 1e-3 --warmup 10 --seed 42 "${more[@]}")
train() { # RUN NAME RANKS [FLAGS...]
    local run=$1 name=$2 ranks=$3 log=$out/logs/$2.txt
    shift 3
    if ! run_ranks "$ranks" "$program" "${flags[@]}" --out "$out/$name" --trace "$out/$name/trace.json" \
        --dump-grads "$out/$name/grads.safetensors" "$@" 2>&1 | tee "$log" |
        show_progress "$run" "$name"; then
        grep -v '^step' "$log" | tail -n 5 >&2
        die "the run '$name' on $ranks ranks failed; all it said is in $log"
    fi
}

say "training tiny-llama, $steps steps of 8 sequences of 256 bytes: on one rank, then under ${#schemes[@]} schemes" \
    "on $ranks ranks; $where"
train 1 single 1
saved=$((steps - (steps + 9) / 10)) # the last run is saved where its last tenth begins, and at its end
for i in "${!schemes[@]}"; do
    keep=()
    [[ $i -lt $((runs - 2)) ]] || keep=(--save-every $((saved > 0 ? saved : steps)))
    train $((i + 2)) "${schemes[i]}" "$ranks" --sp "${schemes[i]}" "${keep[@]}"
done

say
python3 scripts/compare.py "${tolerance[@]}" "$out/single" "${schemes[@]/#/$out/}"
python3 scripts/report.py --out "$out" --command "scripts/quickstart.sh${arguments:+ $arguments}" "${tolerance[@]}" \
    "$out/single" "${schemes[@]/#/$out/}" >/dev/null

# ---- resumed elsewhere

last=${schemes[-1]}
if [[ $saved -gt 0 ]]; then
    other=${schemes[-2]} fewer=$(((ranks + 1) / 2))
    if ! run_ranks "$fewer" "$program" "${flags[@]}" --sp "$other" --out "$out/resumed" \
        --resume "$out/$last/checkpoints/$(printf 'step-%08d' "$saved")" >"$out/logs/resumed.txt" 2>&1; then
        grep -v '^step' "$out/logs/resumed.txt" | tail -n 5 >&2
        die "the resumed run on $fewer ranks failed; all it said is in $out/logs/resumed.txt"
    fi
    verdict=$(python3 scripts/compare.py --brief "${tolerance[@]}" "$out/$last" "$out/resumed") || die "$verdict"
    say "resumed  $last, saved on $ranks ranks after step $saved, went on under $other on $fewer: $verdict"
fi

# ---- text from the last run's checkpoint, on one rank

prompt="The " log=$out/logs/sample.txt
[[ $own -eq 0 ]] || prompt="static inline "
sample=("$program" --model "$out/$last/checkpoints/$(printf 'step-%08d' "$steps")" --eval-only --seq-len 256
    --sample-tokens 200 --temperature 0.5)
say
say "${sample[*]} --sample \"$prompt\""
if ! run_ranks 1 "${sample[@]}" "${more[@]}" --sample "$prompt" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    die "sampling failed; all it said is in $log"
fi
sed -n '/^sample   /,$p' "$log" | sed '1s/^sample   /    /; 2,$s/^/    /'

say "runs, logs and data are in $out; scripts/compare.sh DIR... prints this table again"
say "pictures: $out/report.html, one file for any browser; scripts/compare.sh draws more, against length and ranks"

#!/usr/bin/env bash
# compare.sh [--schemes LIST] [--lengths LIST] [--ranks LIST] [--on cpu|gpu|sim:CLUSTER] [FLAGS OF THE PROGRAM]
#   runs every scheme at every length on every number of ranks, from the same weights on the same data, and writes
#   report.html, report.json and report.csv: do they compute the same, what does each cost, and which one when?
#   Interrupted, the same command goes on where it was.
#
# compare.sh DIR...
#   one table from run directories (train_gpt --out DIR), against the first; compare.py --help says more
#
# Exit code 1 if curves differ, or bytes from their closed form.
#
#   without arguments   tiny-llama, every scheme, L 256 512 1024, N 1 2 4: 12 steps of one sequence;
#                       about a minute on two cores
#   --on gpu            4 layers of llama2-3b-gqa, L 1K 2K 4K, N 1 and the GPUs here
#   --on sim:CLUSTER    llama2-7b, L 8K to 128K, N 8 16 32 on a cluster of kernels/sim/clusters or a file: seconds
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"

usage() {
    say "usage: bash scripts/compare.sh [--schemes LIST] [--lengths LIST] [--ranks LIST] [--steps N]" \
        "[--on cpu|gpu|sim:CLUSTER] [--out DIR] [FLAGS OF THE PROGRAM]"
    say "       bash scripts/compare.sh DIR...        one table from run directories"
    say "  --schemes LIST  of --sp, with commas; default: all"
    say "  --lengths LIST  --seq-len; 128K is 131072 [256,512,1024; gpu: 1K,2K,4K; sim: 8K,16K,32K,64K,128K]"
    say "  --ranks LIST    1 is the reference: no scheme [1,2,4; gpu: 1 and the GPUs here; sim: 8,16,32]"
    say "  --steps N       of each run [12]"
    say "  --on WHERE      cpu, gpu, or sim:CLUSTER: the simulator, nothing is trained [cpu]"
    say "  --out DIR       [runs/compare, or runs/compare-2, ... where that holds other runs]"
    say "  others          go to the program: --model, --batch, --train, --recompute, --ring, ..."
}

case ${1-} in
'' | --schemes | --lengths | --ranks | --steps | --on | --out | --help | -h) ;;
--tolerance | --brief | [!-]*)
    require_packages python
    script=$PWD/scripts/compare.py
    cd "$here"
    exec python3 "$script" "$@"
    ;;
esac

schemes=() lengths=() ranks=() steps=12 on=cpu out='' flags=()
list() { # ARRAY FLAG TEXT: whole numbers of tokens or ranks, K is 1024
    local -n into=$1
    local word
    read -ra into <<<"${3//,/ }"
    for word in "${!into[@]}"; do
        [[ ${into[word]} =~ ^([1-9][0-9]{0,11})K?$ ]] || die "$2 $3: '${into[word]}' is no whole number from 1"
        [[ ${into[word]} != *K ]] || into[word]=$((${BASH_REMATCH[1]} * 1024))
    done
    mapfile -t into < <(printf '%s\n' "${into[@]}" | sort -nu)
}
command="scripts/compare.sh $*"
while [[ $# -gt 0 ]]; do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --schemes | --lengths | --ranks | --steps | --on | --out | --train)
        [[ -n ${2-} ]] || die "$1 needs a value; --help says more"
        ;;&
    --schemes) read -ra schemes <<<"${2//,/ }" && shift 2 ;;
    --lengths) list lengths "$1" "$2" && shift 2 ;;
    --ranks) list ranks "$1" "$2" && shift 2 ;;
    --steps)
        [[ $2 =~ ^[1-9][0-9]{0,6}$ ]] || die "--steps $2: must be a whole number from 1"
        steps=$2 && shift 2
        ;;
    --on) on=$2 && shift 2 ;;
    --out) out=$(absolute "$2") && shift 2 ;;
    --train)
        data=$(absolute "$2") && shift 2
        [[ -e $data ]] || compgen -G "$data" >/dev/null || die "--train $data: no such file"
        ;;
    --seq-len | --sp | --world | --cluster | --trace | --dump-grads | --json | --plan | --max-seq | --dry-run)
        die "$1: this script sets it; --lengths, --schemes, --ranks and --on say what"
        ;;
    --*)
        flags+=("$1") && shift
        while [[ $# -gt 0 && $1 != --* ]]; do flags+=("$1") && shift; done
        ;;
    *) die "unknown argument '$1'; --help lists all" ;;
    esac
done
given() { [[ " ${flags[*]-} " == *" $1 "* ]]; }
default() { given "$1" || flags+=("$@"); }

# ---- where: program, its defaults

tolerance=1e-3 cluster=
case $on in
cpu)
    program=${PROGRAM:-./train_gpt_cpu}
    [[ ${#lengths[@]} -gt 0 ]] || lengths=(256 512 1024)
    [[ ${#ranks[@]} -gt 0 ]] || ranks=(1 2 4)
    default --model tiny-llama
    default --batch 1
    ;;
gpu)
    program=${PROGRAM:-./train_gpt} tolerance=1e-2 n=$(gpus)
    [[ -n ${PROGRAM-} || $n -gt 0 ]] || die "--on gpu: no GPU on this machine; --on cpu, or --on sim:CLUSTER"
    [[ ${#lengths[@]} -gt 0 ]] || lengths=(1024 2048 4096)
    [[ ${#ranks[@]} -gt 0 ]] || mapfile -t ranks < <(printf '%s\n' 1 $((n > 1 ? n : 2)))
    given --model || flags+=(--model llama2-3b-gqa --layers 4)
    default --batch 2
    [[ $n -ge ${ranks[-1]} ]] || default --comm mpi # ranks that share a GPU, which NCCL refuses
    ;;
sim:?*)
    program=${PROGRAM:-./train_gpt_sim} cluster=${on#sim:}
    [[ $cluster != */* ]] || cluster=$(absolute "$cluster")
    [[ ${#lengths[@]} -gt 0 ]] || lengths=(8192 16384 32768 65536 131072)
    [[ ${#ranks[@]} -gt 0 ]] || ranks=(8 16 32)
    default --model llama2-7b
    default --batch 1
    ;;
*) die "--on $on: must be cpu, gpu or sim:CLUSTER" ;;
esac
if [[ -n $cluster ]]; then require_packages build cjson python; else require_packages; fi
PROGRAM=$program
require_program
[[ $program != ./train_gpt_* ]] || build "${program#./}" || die "cannot build ${program#./}: $build_why"
names=$(list_schemes "$program")
mapfile -t known <<<"$names"
[[ ${#schemes[@]} -gt 0 ]] || schemes=("${known[@]}")
for scheme in "${schemes[@]}"; do
    [[ " ${known[*]} " == *" $scheme "* ]] || die "--schemes: '$scheme' is none of ${known[*]}"
done
shortest=${lengths[0]} longest=${lengths[-1]} most=${ranks[-1]}

# ---- OUT: new, or of the same runs

settings="on=$on schemes=${schemes[*]} lengths=${lengths[*]} ranks=${ranks[*]} steps=$steps train=${data-own text}"
settings+=" flags=${flags[*]}"
theirs() { [[ ! -e $1 ]] || [[ -e $1/settings && $(<"$1/settings") == "$settings" ]]; }
if [[ -z $out ]]; then
    out=runs/compare
    for ((i = 2; ; i++)); do
        ! theirs "$out" || break
        out=runs/compare-$i
    done
fi
theirs "$out" || die "--out $out holds other runs ($(cat "$out/settings" 2>/dev/null || say unknown)); choose another"
mkdir -p "$out/cells" || die "--out $out: cannot make the directory"
say "$settings" >"$out/settings"

# ---- data

if [[ -z $cluster && -z ${data-} ]]; then
    data="$out/data/train_*.bin"
    if ! compgen -G "$data" >/dev/null; then
        mapfile -t text < <(own_text)
        mkdir -p "$out/data.partial"
        python3 dev/data/text_to_shards.py --out "$out/data.partial" "${text[@]}"
        mv "$out/data.partial" "$out/data"
    fi
fi

# ---- the cells: every scheme at every length on every number of ranks; one rank has no scheme

cells=()
for length in "${lengths[@]}"; do
    for n in "${ranks[@]}"; do
        if [[ $n -eq 1 ]]; then cells+=("$length 1 ${schemes[0]}"); else
            for scheme in "${schemes[@]}"; do cells+=("$length $n $scheme"); done
        fi
    done
done
parameters=$(alone --dry-run --world 1 --seq-len "$shortest" "${flags[@]}" ${cluster:+--cluster "$cluster"} 2>&1 |
    sed -n 's/^model .*: \([0-9.]*\)M parameters.*/\1/p') || true

run_cell() { # LENGTH RANKS SCHEME DIRECTORY: 0, or the reason in $result
    local length=$1 n=$2 scheme=$3 dir=$4 more=()
    if [[ -n $cluster ]]; then
        [[ $length -ne $longest || $n -ne $most ]] || more=(--trace "$dir/forecast.trace")
        "$program" --cluster "$cluster" --world "$n" --sp "$scheme" --seq-len "$length" "${flags[@]}" \
            --json "$dir/forecast.json" "${more[@]}" >"$dir/log.txt" 2>&1 && return
    else
        # what the pictures need: a timeline at the longest, gradients at the shortest of models that Python can read
        [[ $length -ne $longest || ($n -ne $most && $n -ne 1) ]] || more=(--trace "$dir/run/trace.json")
        [[ $length -ne $shortest || ${parameters%.*} -gt 20 ]] || more+=(--dump-grads "$dir/run/grads.safetensors")
        run_ranks "$n" "$program" --train "$data" --sp "$scheme" --seq-len "$length" --steps "$steps" "${flags[@]}" \
            --out "$dir/run" "${more[@]}" >"$dir/log.txt" 2>&1 && return
    fi
    result=$(grep -m 1 'train_gpt: error: ' "$dir/log.txt" || grep . "$dir/log.txt" | tail -n 1 || say "failed")
    result=${result#*train_gpt: error: }
    return 1
}

say "${#cells[@]} runs in $out: ${#schemes[@]} schemes, L ${lengths[*]}, N ${ranks[*]}, with $program"
milliseconds() { say $((${EPOCHREALTIME/[.,]/} / 1000)); }
began=$(milliseconds) work=0 left=0 runs=() count=${#cells[@]}
for cell in "${cells[@]}"; do left=$((left + ${cell%% *})); done
: >"$out/refused.txt"
for i in "${!cells[@]}"; do
    read -r length n scheme <<<"${cells[i]}"
    dir=$out/cells/$length-$n-$scheme result=ok at=$(milliseconds)
    label=$(printf '[%*d/%d]' ${#count} $((i + 1)) "$count")
    if [[ -e $dir/result && $(<"$dir/result") == ok ]]; then
        say "$label L $length, $n ranks, $scheme: finished before"
    else
        rm -rf "$dir" && mkdir -p "$dir"
        run_cell "$length" "$n" "$scheme" "$dir" || true
        say "$result" >"$dir/result"
        now=$(milliseconds) work=$((work + length))
        eta=$(((now - began) * (left - length) / work / 1000))
        say "$label L $length, $n ranks, $([[ $n -gt 1 ]] && say "$scheme" || say 'no scheme'):" \
            "$result, $(((now - at) / 1000)).$(((now - at) / 100 % 10)) s;" \
            "$((eta / 60)):$(printf %02d $((eta % 60))) to go"
    fi
    left=$((left - length))
    if [[ $result != ok ]]; then printf '%s\t%s\t%s\t%s\n' "$scheme" "$n" "$length" "$result" >>"$out/refused.txt"
    elif [[ -n $cluster ]]; then runs+=("$dir/forecast.json")
    else runs+=("$dir/run"); fi
done
[[ ${#runs[@]} -gt 0 ]] || die "nothing could run; the first reason: $(head -n 1 "$out/refused.txt" | cut -f 4)"

# ---- the longest sequence: the simulator's own search, or dry runs against the memory that the runs found

MFU=1 PEAK_TFLOPS=1 ladder=()
available() { # of a rank, in MB, the least of the runs on so many ranks
    sed -n 's/^.*"memory_available":[^0-9]*\([0-9.e+]*\).*/\1/p' "$out/cells/"*"-$1-"*/run/config.json 2>/dev/null |
        sort -g | awk 'NR == 1 { printf "%.0f", $1 / 1e6 }'
}
longest_fit() { # RANKS SCHEME MB: the largest multiple of the shortest length that fits; 0: none
    local fits=0 fails=1 middle
    NP=$1
    fit() { plan "${flags[@]}" --sp "$2" --seq-len $(($1 * shortest)) && [[ $plan_mb -le $3 ]]; }
    while [[ $fails -lt 1048576 ]] && fit "$fails" "$2" "$3"; do fits=$fails fails=$((2 * fails)); done
    while [[ $((fails - fits)) -gt 1 && $((64 * (fails - fits))) -gt $fits ]]; do
        middle=$(((fits + fails) / 2))
        if fit $middle "$2" "$3"; then fits=$middle; else fails=$middle; fi
    done
    say $((fits * shortest))
}
rm -f "$out"/ladder-*.json
memory=()
for n in "${ranks[@]}"; do
    [[ $n -gt 1 ]] || continue
    file=$out/ladder-$n.json
    if [[ -n $cluster ]]; then
        "$program" --cluster "$cluster" --world "$n" --max-seq "${flags[@]}" --json "$file" >/dev/null 2>&1 || true
    elif mb=$(available "$n") && [[ -n $mb ]]; then
        memory+=("$mb MB a rank on $n ranks")
        rows=
        for scheme in "${schemes[@]}"; do
            rows+="${rows:+, }{\"sp\": \"$scheme\", \"ranks\": $n, \"seq_len\": $(longest_fit "$n" "$scheme" "$mb")}"
        done
        say "{\"longest\": [$rows]}" >"$file"
    fi
    [[ ! -e $file ]] || ladder+=(--ladder "$file")
done
if [[ -n $cluster ]]; then where="the memory of $cluster"; else
    where=$(printf '%s, ' "${memory[@]}")
    where="${where%, }, by dry runs in steps of 1/64"
fi

say
code=0
python3 scripts/report.py --out "$out" --command "$command" --tolerance "$tolerance" "${ladder[@]}" \
    --ladder-memory "$where" --refused "$out/refused.txt" "${runs[@]}" || code=$?
[[ ! -s $out/refused.txt ]] || say "$(wc -l <"$out/refused.txt") runs did not run; the report says why"
say "the report: $out/report.html; numbers: report.json, report.csv"
exit $code

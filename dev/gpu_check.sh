#!/usr/bin/env bash
# gpu_check.sh [--no-gpu-table] [FOLDER] - one command for a machine with a GPU: build, prove, measure; a table last. Under 9 minutes.
#
#   build     train_gpt and the kernel tests for this GPU alone; train_gpt_fp64, the referee; bench_cuda
#   prove     every kernel test on the device; tiny models under every scheme on 1, 2 and 4 ranks of this one GPU against the referee
#   measure   kernels against this GPU's own ceilings, attention and whole steps against PyTorch in the same run
#   sanitize  compute-sanitizer over small cases, with the time that is left
#
# A step that fails stands as FAILED in the table and makes the exit code 1; what is missing or found no time (BUDGET seconds in all) stands
# as SKIPPED with the reason. results.json and results.md go to FOLDER (default dev/bench/results/DATE-GPU), logs to build/gpu_check.
# Without a GPU, or with --no-gpu-table: the table with roofline bounds and 'not measured'. Several GPUs: the first of CUDA_VISIBLE_DEVICES.
# COMMIT names what is measured where the sources are no git checkout.
set -euo pipefail
table_only=0 folder=
for argument in "$@"; do
    case $argument in
    --no-gpu-table) table_only=1 ;;
    -*) echo "gpu_check.sh: error: unknown argument '$argument'; --no-gpu-table, or a folder for the results" >&2 && exit 1 ;;
    *) folder=$argument ;;
    esac
done
[[ -z $folder || $folder == /* ]] || folder=$PWD/$folder
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../scripts/common.sh"
BUDGET=${BUDGET:-525}
PATH=$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin
work=build/gpu_check

# ---- the machine ----------------------------------------------------------------------------------------------------------------

export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} CUDA_DEVICE_ORDER=PCI_BUS_ID
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}

ask() { nvidia-smi -i "$CUDA_VISIBLE_DEVICES" --query-gpu="$1" --format=csv,noheader,nounits 2>/dev/null; }

gpu=
[[ $table_only -eq 1 ]] || gpu=$(ask name || true)
if [[ -z $gpu ]]; then
    python3 dev/bench/gpu_table.py
    say "no GPU here: nothing was measured"
    exit 0
fi
arch=$(ask compute_cap | tr -d .)
code=$arch
if [[ $arch == 90 ]]; then code=90a; fi # with the instructions that only sm_90 has
memory=$(ask memory.total) # MiB
toolkit=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
commit=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
rm -rf "$work"
mkdir -p "$work"
python3 - "$gpu" "$(ask driver_version)" "${toolkit:-none}" "$commit" "$(date -u +%Y-%m-%d)" "$memory" "$(nproc)" <<'PY' >$work/machine.json
import json, sys
print(json.dumps(dict(zip(("gpu", "driver", "toolkit", "commit", "date", "memory_mib", "cores"), sys.argv[1:]))))
PY
[[ -n $folder ]] || folder=dev/bench/results/$(date -u +%Y-%m-%d)-$(tr -cs 'A-Za-z0-9\n' - <<<"${gpu#NVIDIA }")
say "$gpu (sm_$arch, $memory MiB), driver $(ask driver_version), toolkit ${toolkit:-none}, commit $commit; $BUDGET s in all"

# ---- steps ----------------------------------------------------------------------------------------------------------------------

record() { # NAME STATE SECONDS NOTE
    printf '%s\t%s\t%s\t%s\n' "$@" >>$work/steps.tsv
    printf '%4d s  %-36s %-8s %s\n' "$SECONDS" "$1" "$2" "$4"
}

skip() { record "$1" SKIPPED 0 "$2"; }

# step NAME SECONDS COMMAND...: run it for at most so long, and no longer than the budget lasts; its output is $work/NAME.txt.
# Passed: exit code 0, and where it speaks TAP at least one ok and no not ok.
step() {
    local name=$1 most=$2 left=$((BUDGET - SECONDS)) begin=$SECONDS code=0 log good bad state=PASSED note
    shift 2
    log=$work/${name// /_}.txt
    [[ $left -ge 10 ]] || { skip "$name" "no time left" && return 1; }
    timeout --kill-after=5 $((left < most ? left : most)) "$@" >"$log" 2>&1 </dev/null || code=$?
    good=$(grep -c '^ok' "$log" || true)
    bad=$(grep -c '^not ok' "$log" || true)
    note="$(grep -v '^{' "$log" | tail -n 1 | cut -c 1-120 | tr '\t' ' ' || true)"
    if [[ $((good + bad)) -gt 0 ]]; then note="$good ok, $bad not ok"; fi
    if [[ $code -eq 124 || $code -eq 137 ]]; then
        state=FAILED note="stopped after $((SECONDS - begin)) s; $note"
        [[ $left -ge $most || $bad -gt 0 ]] || state=SKIPPED note="no time left, $note"
    elif [[ $code -ne 0 || $bad -gt 0 ]]; then
        state=FAILED note="exit code $code; $note"
    fi
    record "$name" $state $((SECONDS - begin)) "$note"
    if [[ $state == FAILED ]]; then grep -E '^not ok|error|ERROR|Error' "$log" | head -n 10 | cut -c 1-200 | sed 's/^/        | /' || true; fi
    [[ $state == PASSED ]]
}

# ---- build ----------------------------------------------------------------------------------------------------------------------

mapfile -t tests < <(basename -s .cu -a dev/test/test_cuda_*.cu)
targets=(build/bench_cuda)
for test in "${tests[@]}"; do targets+=("build/${test}_cuda"); done
lacks=$(missing_packages mpi cjson | tr '\n' ' ')
need="missing: ${lacks% }; apt-get install libopenmpi-dev openmpi-bin libcjson-dev"
train=1 world=1 # can the trainer be built, with several ranks
if [[ -n $lacks ]]; then world=0; fi
if [[ $lacks == *cjson* ]]; then train=0; fi
[[ $train -eq 0 ]] || targets+=(train_gpt)
[[ $world -eq 0 ]] || targets+=(train_gpt_fp64)
step build 240 make -k -s -j "$(nproc)" CUDA_ARCHS="$code" "${targets[@]}" || true

# ---- prove ----------------------------------------------------------------------------------------------------------------------

for test in "${tests[@]}"; do step "$test" 90 "build/${test}_cuda" || true; done

if [[ $world -eq 0 ]]; then skip schemes "$need"; else step schemes 240 bash dev/test/test_emu.sh ./train_gpt --comm mpi || true; fi

# ---- measure --------------------------------------------------------------------------------------------------------------------

step bench_cuda 60 build/bench_cuda || true
grep '^{' $work/bench_cuda.txt >$work/bench.jsonl 2>/dev/null || true

no_torch=
python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || no_torch="no PyTorch that sees the GPU: pip install torch"
peer() { # NAME SECONDS ARGUMENTS...
    local name=$1 most=$2
    shift 2
    if [[ $1 == step && $train -eq 0 ]]; then skip "$name" "nothing of ours to hold it against: $need" && return; fi
    if [[ -n $no_torch ]]; then skip "$name" "$no_torch" && return; fi
    step "$name" "$most" python3 dev/bench/torch_peer.py "$@" || true
    grep '^{' "$work/${name// /_}.txt" >>$work/torch.jsonl || true
}
peer "torch attention" 60 attention

# as one rank: under mpirun where there is one
alone=()
[[ $world -eq 0 ]] || alone=(bash -c 'source scripts/common.sh && run_ranks 1 "$@"' -)

# ours NAME FLAGS...: 12 steps on one rank -> train.jsonl: tokens/s and MFU of the median step, the arena, what the GPU gave
ours() {
    local name=$1 log=$work/memory.txt watch
    shift
    if [[ $train -eq 0 ]]; then skip "train $name" "$need" && return; fi
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i "$CUDA_VISIBLE_DEVICES" -lms 100 >$log 2>/dev/null &
    watch=$!
    if step "train $name" 90 "${alone[@]}" ./train_gpt "$@" --train $work/tokens.bin --steps 12 --selfcheck off --out "$work/run-$name"; then
        python3 - "$name" "$work/run-$name/metrics.jsonl" $log >>$work/train.jsonl <<'PY'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[2])]
late = rows[len(rows) // 3:]
used = [int(line) * 2**20 for line in open(sys.argv[3]) if line.strip().isdigit()]
print(json.dumps({"name": "step_" + sys.argv[1], "value": statistics.median(r["tokens_per_s"] for r in late), "unit": "tokens/s",
                  "mfu": statistics.median(r["mfu_causal"] for r in late) if all(r["mfu_causal"] is not None for r in late) else None, "ms": statistics.median(r["step_ms"] for r in late),
                  "first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"], "memory_arena": rows[-1]["mem_bytes"],
                  "memory_used": max(used) - used[0] if used else None}))
PY
    fi
    kill $watch 2>/dev/null || true
    wait $watch 2>/dev/null || true
}

# random tokens below 32000, enough for both
python3 - $work/tokens.bin <<'PY'
import array, random, sys
random.seed(7)
tokens = array.array("H", random.choices(range(32000), k=600_000))
open(sys.argv[1], "wb").write(array.array("i", [20240520, 1, len(tokens)] + [0] * 253).tobytes() + tokens.tobytes())
PY
# sequences at once: what fits
gpt=32 llama=2
[[ $memory -ge 70000 ]] || gpt=8 llama=1
ours gpt2-124m --model gpt2-124m --seq-len 1024 --batch 64 --micro-batch $gpt
peer "torch gpt2-124m" 120 step gpt2-124m --micro $gpt
ours llama-1b --model llama2-7b --layers 16 --dim 2048 --heads 16 --kv-heads 8 --ffn 8192 --seq-len 8192 --batch 4 --micro-batch $llama
peer "torch llama-1b" 150 step llama-1b --micro $llama

# ---- sanitize -------------------------------------------------------------------------------------------------------------------

sanitize() { # over every kernel once, and the tests that take the word `small`
    local tool test cases=("bench_cuda --toy")
    if ! have compute-sanitizer; then
        skip compute-sanitizer "it is not in PATH: it comes with the CUDA toolkit"
        return
    fi
    if timeout 60 compute-sanitizer build/bench_cuda --toy ceilings-only 2>&1 | grep -q 'Device not supported'; then
        skip compute-sanitizer "it says 'Device not supported' on this machine"
        return
    fi
    for test in "${tests[@]}"; do
        if grep -q '"small"' "dev/test/$test.cu"; then cases+=("${test}_cuda small"); fi
    done
    for tool in memcheck racecheck; do
        for test in "${cases[@]}"; do
            # shellcheck disable=SC2086
            step "$tool ${test%% *}" 60 compute-sanitizer --tool $tool --error-exitcode 9 build/$test || true
        done
    done
}
sanitize

# ---- the table ------------------------------------------------------------------------------------------------------------------

say ""
code=0
python3 dev/bench/gpu_table.py $work "$folder" || code=$?
say "results are in $folder; logs in $work; $SECONDS s"
exit $code

#!/usr/bin/env bash
# gpu_check.sh [PART...] - one command for a machine with a GPU: build, prove, measure; a table last. Parts, in this
# order, all of them unless told:
#
#   build     train_gpt and the kernel tests for this GPU alone; train_gpt_fp64, the referee; bench_cuda
#   kernels   every kernel test on the device
#   train     tiny models under every scheme on 1, 2 and 4 ranks of this one GPU against the referee
#   speed     kernels against this GPU's own ceilings, attention and whole steps against PyTorch in the same run
#   sanitize  compute-sanitizer over small cases
#
#   --pack            on a machine with a network: unpack Debian's Open MPI and cJSON into build/gpu/pack (20 MB), for
#                     one that has neither. Whoever may not install packages there copies the folder along; the check
#                     finds it
#   --results FOLDER  results.json and results.md [dev/bench/results/DATE-GPU]; logs stay in build/gpu/check
#   --no-gpu-table    the table with roofline bounds and 'not measured', as it comes without a GPU
#   BUDGET=S [480]    seconds for this call; a part ends within it, and can be called again by itself: the table has
#                     what every part found last
#   ARCH=90           where there is no GPU: `ARCH=90 gpu_check.sh build` builds for one elsewhere
#   COMMIT            names what is measured where the sources are no git checkout
#
# A step that fails stands as FAILED in the table and makes the exit code 1, and the others still run; what is missing
# or found no time stands as SKIPPED with the reason. Several GPUs: the first of CUDA_VISIBLE_DEVICES.
set -euo pipefail
parts=() folder= table_only=0 pack=0
while [[ $# -gt 0 ]]; do
    case $1 in
    build | kernels | train | speed | sanitize) parts+=("$1") ;;
    all) parts+=(build kernels train speed sanitize) ;;
    --pack) pack=1 ;;
    --no-gpu-table) table_only=1 ;;
    --results) [[ -n ${2-} ]] || { echo "gpu_check.sh: error: --results needs a folder" >&2 && exit 1; }
        folder=$2 && shift ;;
    *)
        echo "gpu_check.sh: error: unknown argument '$1'; parts: build kernels train speed sanitize all;" \
            "--pack, --results FOLDER, --no-gpu-table" >&2 && exit 1
        ;;
    esac
    shift
done
[[ ${#parts[@]} -gt 0 ]] || parts=(build kernels train speed sanitize)
[[ -z $folder || $folder == /* ]] || folder=$PWD/$folder
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../scripts/common.sh"
BUDGET=${BUDGET:-480}
export PATH=$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin
built=build/gpu work=build/gpu/check

# ---- packages carried along ------------------------------------------------------------------------------------------

# What is unpacked, and why: libopenmpi-dev, openmpi-bin and what they load; no driver of networks,
# which one host does not use.
if [[ $pack -eq 1 ]]; then
    have apt-get || die "--pack downloads Debian's packages, and there is no apt-get here"
    rm -rf "$built/pack"
    mkdir -p "$built/pack/deb/partial"
    cd "$built/pack/deb"
    # names with a version in them differ between releases: what the packages say they need
    wanted=(libcjson-dev libopenmpi-dev openmpi-bin openmpi-common)
    mapfile -t needed < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "${wanted[@]}" |
        grep -E '^(libopenmpi[0-9]|libcjson[0-9]|libhwloc[0-9]|libevent-(core|pthreads)-|libpmix[0-9]|libmunge[0-9])' |
        sort -u)
    apt-get download "${wanted[@]}" "${needed[@]}" >/dev/null 2>&1 ||
        die "apt-get download ${wanted[*]} ${needed[*]} failed; is there a network?"
    for package in *.deb; do dpkg -x "$package" ..; done
    cd .. && rm -rf deb usr/share/doc usr/share/man usr/share/lintian usr/lib/*/fortran
    for name in mpirun:orterun mpiexec:orterun mpicc:opal_wrapper mpicxx:opal_wrapper; do
        ln -sf "${name#*:}" "usr/bin/${name%:*}"
    done
    say "$built/pack has ${needed[*]} ${wanted[*]}: $(du -sm . | cut -f 1) MB"
    exit 0
fi

missing=$(missing_packages mpi cjson | tr '\n' ' ')
if [[ -n $missing && -d $built/pack/usr ]]; then
    usr=$PWD/$built/pack/usr
    lib=$(dirname "$(compgen -G "$usr/lib/*/libmpi.so.*" | head -n 1)")
    export PATH=$usr/bin:$PATH OPAL_PREFIX=$usr LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export CPATH=$usr/include${CPATH:+:$CPATH} LIBRARY_PATH=$lib${LIBRARY_PATH:+:$LIBRARY_PATH} \
        PMIX_MCA_pcompress_base_silence_warning=1
    hash -r
fi

# ---- the machine -----------------------------------------------------------------------------------------------------

export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} CUDA_DEVICE_ORDER=PCI_BUS_ID
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*}

ask() { nvidia-smi -i "$CUDA_VISIBLE_DEVICES" --query-gpu="$1" --format=csv,noheader,nounits 2>/dev/null; }

gpu=
[[ $table_only -eq 1 ]] || gpu=$(ask name || true)
if [[ $table_only -eq 1 || ( -z $gpu && ( "${parts[*]}" != build || -z ${ARCH-} ) ) ]]; then
    python3 dev/bench/gpu_table.py
    say "no GPU here: nothing was measured"
    exit 0
fi
arch=${ARCH:-$(ask compute_cap | tr -d .)}
code=$arch
if [[ $arch == 90 ]]; then code=90a; fi # with the instructions that only sm_90 has
memory=$(ask memory.total || echo 0) # MiB
toolkit=$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
commit=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
mkdir -p "$work"
if [[ -n $gpu ]]; then
    python3 - "$gpu" "$(ask driver_version)" "${toolkit:-none}" "$commit" "$(date -u +%Y-%m-%d)" "$memory" "$(nproc)" \
        <<'PY' >$work/machine.json
import json, sys
print(json.dumps(dict(zip(("gpu", "driver", "toolkit", "commit", "date", "memory_mib", "cores"), sys.argv[1:]))))
PY
    [[ -n $folder ]] || folder=dev/bench/results/$(date -u +%Y-%m-%d)-$(tr -cs 'A-Za-z0-9\n' - <<<"${gpu#NVIDIA }")
    say "$gpu (sm_$arch, $memory MiB), driver $(ask driver_version), toolkit ${toolkit:-none}, commit $commit;" \
        "${parts[*]}; $BUDGET s in all"
fi

# ---- steps -----------------------------------------------------------------------------------------------------------

record() { # NAME STATE SECONDS NOTE
    printf '%s\t%s\t%s\t%s\n' "$@" >>"$work/$part.tsv"
    printf '%4d s  %-36s %-8s %s\n' "$SECONDS" "$1" "$2" "$4"
}

skip() { record "$1" SKIPPED 0 "$2"; }

# step NAME SECONDS COMMAND...: run it for at most so long, and no longer than the budget lasts; its output is
# $work/NAME.txt. Passed: exit code 0, and where it speaks TAP at least one ok and no not ok.
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
    if [[ $state == FAILED ]]; then
        grep -E '^not ok|error|ERROR|Error' "$log" | head -n 10 | cut -c 1-200 | sed 's/^/        | /' || true
    fi
    [[ $state == PASSED ]]
}


# need PROGRAM: it is there; else the rows that it would give stand as SKIPPED
need() { # NAME FILE
    [[ ! -x $2 ]] || return 0
    local why="${missing:+ (missing: ${missing% }; apt-get install them, or see --pack)}"
    skip "$1" "$2 is not built: gpu_check.sh build$why"
    return 1
}

# ---- parts -----------------------------------------------------------------------------------------------------------

mapfile -t tests < <(basename -s .cu -a dev/test/test_cuda_*.cu)

part_build() {
    local targets=("$built/bench_cuda") test
    for test in "${tests[@]}"; do targets+=("$built/${test}_cuda"); done
    missing=$(missing_packages mpi cjson | tr '\n' ' ')
    if [[ $missing == *cjson* ]]; then
        skip "build train_gpt" "missing: ${missing% }; apt-get install them, or see --pack"
    else targets+=("$built/train_gpt"); fi
    [[ -n $missing ]] || targets+=("$built/train_gpt_fp64")
    step build 300 make -k -s -j "$(nproc)" BUILD="$built" CUDA_ARCHS="$code" "${targets[@]}" || true
}

part_kernels() {
    local test
    for test in "${tests[@]}"; do
        need "$test" "$built/${test}_cuda" && step "$test" 90 "$built/${test}_cuda" || true
    done
}

part_train() {
    if ! have mpirun; then skip schemes "no mpirun here: one rank only, see the steps; or --pack"
    elif need schemes "$built/train_gpt" && need schemes "$built/train_gpt_fp64"; then
        REFEREE=$built/train_gpt_fp64 step schemes 240 bash dev/test/test_emu.sh "$built/train_gpt" --comm mpi || true
    fi
}

peer() { # NAME SECONDS ARGUMENTS...
    local name=$1 most=$2
    shift 2
    if [[ -n $no_torch ]]; then skip "$name" "$no_torch" && return; fi
    step "$name" "$most" python3 dev/bench/torch_peer.py "$@" || true
    grep '^{' "$work/${name// /_}.txt" >>"$work/torch.jsonl" || true
}

# ours NAME FLAGS...: 12 steps on one rank -> train.jsonl: tokens/s and MFU of the median step,
# the arena, what the GPU gave
ours() {
    local name=$1 log=$work/memory.txt watch alone=()
    shift
    need "train $name" "$built/train_gpt" || return 0
    if have mpirun; then alone=(bash -c 'source scripts/common.sh && run_ranks 1 "$@"' -); fi
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i "$CUDA_VISIBLE_DEVICES" -lms 100 >"$log" \
        2>/dev/null &
    watch=$!
    rm -rf "$work/run-$name"
    if step "train $name" 90 "${alone[@]}" "$built/train_gpt" "$@" --train $work/tokens.bin --steps 12 --selfcheck off \
        --trace "$work/trace-$name.json" --out "$work/run-$name"; then
        python3 - "$name" "$work/run-$name/metrics.jsonl" "$log" >>"$work/train.jsonl" <<'PY'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[2])]
late = rows[len(rows) // 3:]
used = [int(line) * 2**20 for line in open(sys.argv[3]) if line.strip().isdigit()]
known = all(r["mfu_causal"] is not None for r in late)
print(json.dumps({"name": "step_" + sys.argv[1], "value": statistics.median(r["tokens_per_s"] for r in late),
                  "unit": "tokens/s",
                  "mfu": statistics.median(r["mfu_causal"] for r in late) if known else None,
                  "ms": statistics.median(r["step_ms"] for r in late),
                  "first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"], "memory_arena": rows[-1]["mem_bytes"],
                  "memory_used": max(used) - used[0] if used else None}))
PY
    fi
    kill $watch 2>/dev/null || true
    wait $watch 2>/dev/null || true
}

part_speed() {
    local gpt=32 llama=2 # sequences at once: what fits
    [[ $memory -ge 70000 ]] || gpt=8 llama=1
    rm -f $work/torch.jsonl $work/train.jsonl
    no_torch=
    python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
        no_torch="no PyTorch that sees the GPU: pip install torch"
    # random tokens below 32000, enough for both
    python3 - $work/tokens.bin <<'PY'
import array, random, sys
random.seed(7)
tokens = array.array("H", random.choices(range(32000), k=600_000))
open(sys.argv[1], "wb").write(array.array("i", [20240520, 1, len(tokens)] + [0] * 253).tobytes() + tokens.tobytes())
PY
    if need bench_cuda "$built/bench_cuda"; then
        step bench_cuda 60 "$built/bench_cuda" || true
        grep '^{' $work/bench_cuda.txt >$work/bench.jsonl 2>/dev/null || true
    fi
    peer "torch attention" 60 attention
    ours gpt2-124m --model gpt2-124m --seq-len 1024 --batch 64 --micro-batch $gpt
    ours llama-1b --model llama2-7b --layers 16 --dim 2048 --heads 16 --kv-heads 8 --ffn 8192 --seq-len 8192 --batch 4 \
        --micro-batch $llama
    peer "torch gpt2-124m" 120 step gpt2-124m --micro $gpt
    peer "torch llama-1b" 150 step llama-1b --micro $llama
}

part_sanitize() { # over every kernel once, and the tests that take the word `small`
    local tool test cases=("bench_cuda --toy")
    if ! have compute-sanitizer; then
        skip compute-sanitizer "it is not in PATH: it comes with the CUDA toolkit"
        return
    fi
    need compute-sanitizer "$built/bench_cuda" || return 0
    if timeout 60 compute-sanitizer "$built/bench_cuda" --toy ceilings-only 2>&1 | grep -q 'Device not supported'; then
        skip compute-sanitizer "it says 'Device not supported' on this machine"
        return
    fi
    for test in "${tests[@]}"; do
        if grep -q '"small"' "dev/test/$test.cu"; then cases+=("${test}_cuda small"); fi
    done
    for tool in memcheck racecheck; do
        for test in "${cases[@]}"; do
            # shellcheck disable=SC2086
            step "$tool ${test%% *}" 150 compute-sanitizer --tool $tool --error-exitcode 9 $built/$test || true
        done
    done
}

for part in "${parts[@]}"; do
    rm -f "$work/$part.tsv"
    "part_$part"
done

# ---- the table -------------------------------------------------------------------------------------------------------

[[ -n $gpu ]] || { if grep -q FAILED "$work/build.tsv"; then exit 1; else exit 0; fi; }
say ""
: >$work/steps.tsv
for part in build kernels train speed sanitize; do
    if [[ -f $work/$part.tsv ]]; then
        cat "$work/$part.tsv" >>$work/steps.tsv
    else
        printf '%s\tSKIPPED\t0\tnot asked for\n' "$part" >>$work/steps.tsv
    fi
done
code=0
python3 dev/bench/gpu_table.py $work "$folder" || code=$?
say "results are in $folder; logs in $work; $SECONDS s"
exit $code

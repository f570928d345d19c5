#!/usr/bin/env bash
# test_sim.sh - the simulator as people meet it: the same tables as the real programs, the original's
# benchmark, plans, refusals. TAP.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
sim=./train_gpt_sim
schemes_of ./train_gpt_cpu

# refuses PATTERN ARGS...: exit code 1, one line of error that matches, nothing else on stderr
refuses() {
    local pattern=$1 code
    shift
    timeout 600 $sim "$@" >"$work/stdout" 2>"$work/out"
    code=$?
    [ $code -eq 1 ] && [ "$(wc -l <"$work/out")" -eq 1 ] && grep -Eq "^train_gpt: error: .*$pattern" "$work/out"
    ok $? "refused: $* ($(cut -c 19-180 "$work/out" | head -n 1))"
}

# ---- the program's own tables: arena and ledger of every scheme, on the CPU and on the (emulated) GPU

this_cpu=$work/cpu.cluster
sed -e 's/^device .*/device cpu # test/' -e 's/^dtype .*/dtype fp32 # test/' \
    -e 's/^peak .*/peak fp32=1e11 fp64=5e10 # test/' kernels/sim/clusters/a100-80gb-nvlink.cluster >"$this_cpu"
shapes=("--model tiny-llama --world 4 --batch 8 --micro-batch 2"
    "--model tiny-gpt --world 6 --dp 3 --batch 12 --recompute full --heads 8"
    "--model gpt2-124m --world 1 --batch 5" "--model llama2-7b --world 8 --seq-len 65536 --batch 1" \
        "--model llama3-8b --world 16 --dp 2 --seq-len 32768 --batch 32 --offload inputs --tile-rows auto"
    "--model llama2-3b-gqa --world 64 --dp 2 --seq-len 131072 --ring-layout stripe --batch 4 \
--recompute attention-kept")
hybrids=() # every context: under heads that are split (KV heads shared among ranks), and where tokens are exchanged
for context in "${contexts[@]}"; do
    hybrids+=("--model llama3-8b --world 64 --ring 4 --seq-len 65536 --batch 1 --sp odysseus --context $context")
    hybrids+=("--model tiny-llama --world 8 --ring 4 --seq-len 8000 --batch 2 --sp ulysses --context $context")
done
for scheme in "${schemes[@]}"; do
    for shape in "${shapes[@]}"; do hybrids+=("$shape --sp $scheme"); done
done
for shape in "${hybrids[@]}"; do
    for build in cpu emu fp64; do
        case $build in
        cpu) cluster=(--cluster "$this_cpu") ;;
        fp64) cluster=(--cluster "$this_cpu" --dtype fp64) ;;
        emu) cluster=(--cluster a100-80gb-nvlink) ;;
        esac
        read -ra flags <<<"$shape"
        ./train_gpt_$build --dry-run "${flags[@]}" >"$work/real" 2>&1
        $sim --dry-run "${cluster[@]}" "${flags[@]}" >"$work/sim" 2>&1
        # what a GPU must have besides is a figure of the cluster
        sed -i '/^reserve /d' "$work/real" "$work/sim"
        diff "$work/real" "$work/sim" >"$work/out" && { [ $build != cpu ] ||
            grep -q '^  total .*[0-9]' "$work/sim"; }
        ok $? "train_gpt_$build: memory and traffic to the byte: ${flags[*]}"
    done
done

# and what a step on the clocks leaves in the ledger, against a real run's comm.json
python3 dev/data/text_to_shards.py --out "$work/data" train_gpt.cu >/dev/null
for scheme in "${schemes[@]}"; do
    flags=(--model tiny-llama --layers 2 --seq-len 128 --batch 8 --sp "$scheme")
    run_ranks 2 ./train_gpt_cpu "${flags[@]}" --train "$work/data/train_*.bin" --steps 1 --selfcheck off --threads 1 \
        --out "$work/run-$scheme" >"$work/out" 2>&1
    $sim --cluster "$this_cpu" --world 2 "${flags[@]}" --json "$work/$scheme.json" >"$work/out" 2>&1
    python3 - "$work/run-$scheme" "$work/$scheme.json" >"$work/out" 2>&1 <<'PY'
import json, sys
real, forecast = json.load(open(sys.argv[1] + "/comm.json")), json.load(open(sys.argv[2]))
metrics = json.loads(open(sys.argv[1] + "/metrics.jsonl").readline())
assert real and real == forecast["comm"], (real, forecast["comm"])
assert sum(row["bytes"] for row in real) == metrics["comm_bytes"]
assert metrics["mem_bytes"] == -(-int(forecast["mem_bytes"]) // 4096) * 4096, (metrics["mem_bytes"],
                                                                               forecast["mem_bytes"])
PY
    ok $? "$scheme on 2 ranks: comm.json and mem_bytes of a real step are the simulator's"
done

# ---- the original's benchmark, and what this program would do on its machine

bash dev/sim/validate.sh >"$work/out" 2>&1
ok $? "validate.sh: ratios, order and memory are within their bounds"
sed '/^gemm /s/=0.63/=0.40/' kernels/sim/clusters/a100-80gb-nvlink-original.cluster >"$work/slow.cluster"
sed "s|\"a100-80gb-nvlink-original\"|\"$work/slow.cluster\"|" dev/sim/validate.sh >"$work/validate.sh"
cp "$work/validate.sh" dev/sim/.validate-planted.sh
bash dev/sim/.validate-planted.sh >"$work/out" 2>&1
[ $? -eq 1 ] && grep -q '^OFF: .*ulysses' "$work/out"
ok $? "validate.sh: sees products at 40% of the peak"
rm -f dev/sim/.validate-planted.sh

# ---- shipped clusters, plans, longest sequences

for file in kernels/sim/clusters/*.cluster; do
    name=${file##*/} name=${name%.cluster}
    [ "$name" != this-machine ] || continue
    $sim --cluster "$name" --world 16 --dp 2 --model tiny-llama --seq-len 4096 --batch 16 >"$work/out" 2>&1 &&
        grep -q '^step  .*tok/s' "$work/out"
    ok $? "cluster $name: $(grep '^step' "$work/out" | cut -c 1-60)"
done
bash dev/sim/calibrate.sh 2 fp32 "$work/here.cluster" >"$work/out" 2>&1 &&
    $sim --cluster "$work/here.cluster" --world 2 >"$work/out" 2>&1
ok $? "this machine, calibrated with two ranks: $(grep '^step' "$work/out" | cut -c 1-60)"
$sim --world 64 --model llama2-7b --seq-len 65536 --batch 64 --plan --json "$work/plan.json" >"$work/out" 2>&1
ok $? "a plan of 64 ranks: $(grep '^plans' "$work/out")"
best=$(sed -n 's/^to run 1 add //p' "$work/out")
python3 - "$work/plan.json" "${contexts[*]}" "${schemes[@]}" >"$work/out" 2>&1 <<'PY'
import json, sys
plan = json.load(open(sys.argv[1]))
rows = plan["plans"]
assert {r["context"] for r in rows if r["head"] > 1 < r["ring"]} == set(sys.argv[2].split())
assert {r["sp"] for r in rows} == set(sys.argv[3:]) and len(plan["refused"]) > 0
assert all(r["dp"] * r["ring"] * r["head"] == 64 and 64 % (r["dp"] * r["micro_batch"]) == 0 for r in rows)
keys = [(r["sp"], r["dp"], r["ring"], r["head"], r["ring_layout"], r["micro_batch"], r["context"])
        for r in rows]
assert len(set(keys)) == len(keys) and {k[4] for k in keys} == {"zigzag", "contiguous", "stripe"}
fit = [r for r in rows if r["fits"]]
assert rows[:len(fit)] == fit and [r["step_ms"] for r in fit] == sorted(r["step_ms"] for r in fit)
assert all(r["mem_bytes"] <= r["mem_available"] for r in fit) and all(r["mem_bytes"] > r["mem_available"]
                                                                      for r in rows[len(fit):])
PY
ok $? "the plan's rows are legal, each once, what fits first and in order of time"
# best_is WHAT FLAGS...: a forecast with the flags that the plan in plan.json printed, in $best, is its first row
best_is() {
    local what=$1 flags
    shift
    read -ra flags <<<"$best"
    $sim "$@" "${flags[@]}" --json "$work/best.json" >"$work/out" 2>&1 &&
        python3 -c 'import json, sys
plan, one = (json.load(open(path)) for path in sys.argv[1:])
sys.exit(any(one[key] != plan["plans"][0][key] for key in one if key in plan["plans"][0]))' \
            "$work/plan.json" "$work/best.json"
    ok $? "$what: what it prints to run its best gives its first row: $best"
}
best_is "the plan" --world 64 --model llama2-7b --seq-len 65536 --batch 64
long=(--cluster h100-80gb-nvlink --world 8 --model llama3-8b --seq-len 2097152 --batch 1)
$sim "${long[@]}" --plan --json "$work/plan.json" >"$work/out" 2>&1
best=$(sed -n 's/^to run 1 add //p' "$work/out")
[[ $best == *" --recompute "*" --offload inputs"* ]]
ok $? "a plan that needs them has the memory flags"
best_is "that plan" "${long[@]}"
$sim --world 64 --model llama2-7b --seq-len 65536 --batch 64 --plan --sp ulysses --dp 4 --micro-batch 2 \
    >"$work/out" 2>&1 &&
    [ "$(grep -cE '^ +[0-9]+  ulysses +4 ' "$work/out")" -gt 3 ] && ! grep -E '^ +[0-9]+  [a-z]' "$work/out" |
    grep -qvE '^ +[0-9]+  ulysses +4 '
ok $? "a plan keeps the flags that are given"

# ---- what saves memory, rung by rung: each row is what its flags give

$sim --cluster h100-80gb-nvlink --world 8 --model llama3-8b --batch 1 --sp ulysses --ladder --json "$work/ladder.json" \
    >"$work/out" 2>&1 &&
    python3 - "$work/ladder.json" $sim >"$work/out" 2>&1 <<'PY'
import json, subprocess, sys
rows = json.load(open(sys.argv[1]))["ladder"]
assert rows[0]["levers"] == "none" and len({r["levers"] for r in rows}) == len(rows) >= 6, rows
for word in "recompute", "tile-rows", "head-groups", "offload", "layer-inputs":
    assert word in rows[-1]["levers"], rows[-1]
lengths = [r["seq_len"] for r in rows]
assert lengths == sorted(lengths) and lengths[-1] > 10 * lengths[0], lengths
for row in rows:
    assert (row["host_bytes"] > 0) == ("offload" in row["levers"]), row
    flags = [w for lever in row["levers"].split(", ") if lever != "none" for w in ("--" + lever).split()]
    def forecast(length):
        subprocess.run([sys.argv[2], "--cluster", "h100-80gb-nvlink", "--world", "8", "--model", "llama3-8b", "--batch",
                        "1", "--sp", row["sp"], "--seq-len", str(length), "--json", sys.argv[1] + ".one", *flags],
                       check=True, capture_output=True)
        return json.load(open(sys.argv[1] + ".one"))
    at = forecast(row["seq_len"])
    assert at["fits"] and all(at[k] == row[k] for k in ("mem_bytes", "step_ms", "host_bytes")), (row, at)
    assert not forecast(row["seq_len"] + 8)["fits"], row
PY
ok $? "--ladder: every rung is what its flags give, and a longer sequence does not fit"

# ---- longest sequences, timelines

for more in "--model llama2-7b --batch 1" "--model gpt2-124m --batch 8 --micro-batch 2" \
    "--model llama3-8b --batch 1 --recompute full --ring 2"; do
    read -ra flags <<<"$more"
    $sim --world 8 "${flags[@]}" --max-seq --json "$work/longest.json" >"$work/out" 2>&1 &&
        python3 - "$work/longest.json" "$more" $sim "${schemes[@]}" >"$work/out" 2>&1 <<'PY'
import json, subprocess, sys
path, flags, sim = sys.argv[1], sys.argv[2].split(), sys.argv[3]
rows = json.load(open(path))["longest"]
assert [r["sp"] for r in rows] == sys.argv[4:]
def forecast(row, length):
    done = subprocess.run([sim, "--world", "8", *flags, "--sp", row["sp"], "--seq-len", str(length), "--json",
                           path + ".one"], capture_output=True, text=True)
    return (json.load(open(path + ".one")) if done.returncode == 0 else None), done.stderr
for row in rows:
    if "why" in row:
        assert row["seq_len"] == 0 and row["why"], row
        continue
    at, _ = forecast(row, row["seq_len"])
    assert at["fits"] and at["mem_bytes"] == row["mem_bytes"], (row, at)
    more, why = forecast(row, row["seq_len"] + 16)  # 16 is a multiple of every unit of 8 ranks
    assert (more and not more["fits"]) or (row["stopped_by"] == "--max-pos"
                                           and "positions gpt2 has learned" in why), (row, more, why)
PY
    ok $? "--max-seq: the length fits and the next one does not: $more"
done
$sim --world 4 --model tiny-llama --seq-len 1024 --sp ulysses --trace "$work/trace.json" --json "$work/traced.json" \
    >"$work/out" 2>&1 &&
    python3 - "$work/trace.json" "$work/traced.json" >"$work/out" 2>&1 <<'PY'
import json, sys
events, forecast = json.load(open(sys.argv[1]))["traceEvents"], json.load(open(sys.argv[2]))
spans = [e for e in events if e["ph"] == "X"]
step = [e for e in spans if e["cat"] == "step"]
assert len(step) == 1 and abs(step[0]["dur"] - 1e3 * forecast["step_ms"]) < 0.01, (step, forecast["step_ms"])
for name, row in forecast["computing"].items():
    mine = [e for e in spans if e["cat"] == name]
    assert len(mine) == row["calls"], (name, len(mine), row["calls"])
for name, row in forecast["communicating"].items():
    mine = [e for e in spans if e["cat"] == "comm" and e["name"] == name]
    off = sum(e["dur"] for e in mine) - 1e3 * row["ms"]
    assert len(mine) == row["calls"] and abs(off) < 0.01 * (row["calls"] + 1), (name, len(mine), row)
assert {e["args"]["layer"] for e in spans if "layer" in e["args"]} == set(range(4))
PY
ok $? "--trace: the spans of the modelled step are its operations and transfers, its length the forecast's"

# ---- wrong inputs

cluster() { # cluster LINE...: the A100's file with these lines in place of the fields they name, at their place
    cp kernels/sim/clusters/a100-80gb-nvlink.cluster "$work/bad.cluster"
    local line
    for line in "$@"; do sed -i -E "s|^${line%% *} .*|$line|" "$work/bad.cluster"; done
}
bad=(--cluster "$work/bad.cluster" --world 8)
line_of() { grep -nE "^$1 " kernels/sim/clusters/a100-80gb-nvlink.cluster | cut -d: -f1; }
cluster 'gemm 1e9=1.2 # test'
refuses "bad.cluster, line $(line_of gemm), gemm: 1.2 is not possible: it must be from 1e-06 to 1" "${bad[@]}"
cluster 'gemm 1e9=0.5 1e8=0.6 # test'
refuses "line $(line_of gemm), gemm: sizes must ascend" "${bad[@]}"
cluster 'norm 1e9=0 # test'
refuses "line $(line_of norm), norm: 0 is not possible" "${bad[@]}"
cluster 'bandwidth 2039e9'
refuses "line $(line_of bandwidth), bandwidth: the figure has no source" "${bad[@]}"
cluster 'bandwidth fast # test'
refuses "line $(line_of bandwidth), bandwidth: 'fast' is no number" "${bad[@]}"
cluster 'memory 80 # test'
refuses "line $(line_of memory), memory: 80 is not possible.*bytes of a rank" "${bad[@]}"
cluster 'inside alpha=1e-6 beta=-3 # test'
refuses "line $(line_of inside), inside: -3 is not possible" "${bad[@]}"
cluster 'inside alpha=1e-6 gamma=3 # test'
refuses "line $(line_of inside), inside: 'gamma=3'" "${bad[@]}"
cluster 'inside alpha=1e-6 # test'
refuses 'each need alpha .seconds., beta' "${bad[@]}"
cluster 'peak bf16 312e12 # test'
refuses "line $(line_of peak), peak: 'bf16' must be written as key=value" "${bad[@]}"
cluster 'peak int8=312e12 # test'
refuses "line $(line_of peak), peak: 'int8=312e12'" "${bad[@]}"
cluster 'device tpu # test'
refuses "line $(line_of device), device: 'tpu' must be one of gpu.cpu" "${bad[@]}"
cluster 'reserved 9e10 # test'
refuses 'reserved 9e.10 leaves nothing' "${bad[@]}"
cluster 'launch 5e-6 5e-6 # test'
refuses "line $(line_of launch), launch: one value is enough" "${bad[@]}"
cluster && sed -i '/^slowdown/d; /^gemm/d' "$work/bad.cluster"
refuses 'the field gemm is missing' "${bad[@]}"
cluster && echo 'gemm 1=0.5 # again' >>"$work/bad.cluster"
refuses "line $(($(wc -l <kernels/sim/clusters/a100-80gb-nvlink.cluster) + 1)), gemm: it is given twice" "${bad[@]}"
cluster && sed -i 's/^norm /norms /' "$work/bad.cluster"
refuses "line $(line_of norm): no field is called 'norms'" "${bad[@]}"
head -c 100000 /dev/zero | tr '\0' x >"$work/bad.cluster"
refuses 'line 1: longer than' "${bad[@]}"
refuses 'neither a file nor one of.* a100-80gb-nvlink .*h200' --cluster nowhere --world 8
cluster 'inside alpha=1e-6 beta=1e11 overlap=1 beta=1e12 # test'
refuses "line $(line_of inside), inside: beta is given twice" "${bad[@]}"
cluster 'peak bf16=1e12 bf16=1e13 # test'
refuses "line $(line_of peak), peak: bf16 is given twice" "${bad[@]}"
cluster 'inside alpha=1e-6 beta=1e11 # test'
refuses 'each need alpha .seconds., beta .* overlap' "${bad[@]}"
refuses "cannot read it: Is a directory" --cluster "$work/" --world 8
refuses '--world N is missing' --model llama2-7b
refuses '--dtype fp32: train_gpt computes in bf16' --world 8 --dtype fp32
refuses '--dtype bf16: the CPU programs' --cluster "$this_cpu" --world 8 --dtype bf16
refuses '--comm mpi is not modelled' --world 8 --comm mpi
refuses '--threads: the ranks of a cluster' --world 8 --threads 2
refuses '--out need numbers' --world 8 --out "$work/run"
refuses 'save-every, --keep, --keep-every, --resume and --max-hours need numbers' --world 8 --save-every 5
refuses '--max-hours need numbers' --world 8 --resume
refuses '--plan, --max-seq, --ladder and --dry-run exclude' --world 8 --plan --dry-run
refuses '--json .*cannot write into' --world 8 --json "$work/nowhere/x.json"
refuses '--world 100000: the simulator takes up to 65536' --world 100000
refuses '--peak-tflops 1: the forecast runs at' --world 8 --model llama2-7b --peak-tflops 1
refuses '--max-seq: nothing can run: --sp [a-z]*: the shortest sequence needs .*GB more than' --world 2 \
    --model llama2-13b --batch 1 --max-seq
refuses '--plan: nothing fits. Closest is --sp .*GB more than' --world 2 --model llama2-13b --seq-len 4096 \
    --batch 1 --plan
refuses 'a head axis of 64 cannot split 32 query heads' --world 64 --model llama2-7b --sp ulysses
checks_done

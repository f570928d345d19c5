#!/usr/bin/env bash
# cpu.sh [OUT.md] - what the CPU trainer gets out of this machine, as ratios measured in one run: FMA peak, products,
# attention, whole steps of GPT-2 124M in fp32 beside PyTorch's (PYTHON=... with torch in it), and ranks of one thread
# against one rank of all threads, per scheme.
#
# Where the machine has AVX-512, all but the last is measured twice: for it, and for AVX2 (OPT="-O3 -march=x86-64-v3")
# against that one's peak. Medians. FLOP of a step = (6 parameters + 6 layers d T) a token, causal. Floor: FLOP over the
# FMA peak. Ten minutes on two cores.
set -euo pipefail
report=${1:-}
[[ -z $report || $report == /* ]] || report=$PWD/$report
source "$(dirname "$0")/../../scripts/common.sh"
require_packages
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cores=$(nproc)
python3 dev/data/text_to_shards.py --out "$work/data" --val-fraction 0.1 core/*.h ./*.h train_gpt.cu >/dev/null

# median over the steps after the first two: step MARCH NAME RANKS FLAGS... -> name, tokens/s,
# GFLOP/s, ms in $work/MARCH/steps
step() {
    local march=$1 name=$2 ranks=$3
    shift 3
    say "measuring $name ($march)"
    run_ranks "$ranks" "$work/$march/train_gpt_cpu" --train "$work/data/train_*.bin" --out "$work/$march/run-$name" \
        --peak-tflops 1000 --selfcheck off "$@" >"$work/log" 2>&1 || die "$name failed: $(grep -m 1 error "$work/log")"
    python3 - "$work/$march/run-$name" "$name" >>"$work/$march/steps" <<'PY'
import json, statistics, sys
rows = [json.loads(l) for l in open(sys.argv[1] + "/metrics.jsonl")][2:]
rate = statistics.median(r["mfu_causal"] for r in rows) * 1e6  # of a peak given as 1000 TFLOP/s a rank
ms = statistics.median(r["step_ms"] for r in rows)
world = json.load(open(sys.argv[1] + "/config.json"))["world"]
print(sys.argv[2], f'{rows[0]["tokens"] / ms * 1e3:.1f}', f"{rate * world:.1f}", f"{ms:.0f}")
PY
}

marches=(native)
grep -qs -m 1 avx512f /proc/cpuinfo && marches+=(x86-64-v3)
for march in "${marches[@]}"; do
    say "building for $march"
    make -s BUILD="$work/$march" OPT="-O3 -march=$march" "$work/$march/train_gpt_cpu" "$work/$march/bench_cpu"
done
shapes=("4 64" "4 256" "1 1024")
torch=
"$python" -c 'import torch' 2>/dev/null ||
    torch="SKIP PyTorch: $python has no module torch (PYTHON=... names one that has)"
[[ -z $torch ]] || say "$torch"
for shape in "${shapes[@]}"; do # ours and PyTorch's in turn, so that both meet the same machine
    read -r B T <<<"$shape"
    for march in "${marches[@]}"; do
        step "$march" "B$B-T$T" 1 --model gpt2-124m --steps 7 --seq-len "$T" --batch "$B" --micro-batch "$B"
    done
    [[ -z $torch ]] || continue
    say "measuring B$B-T$T (PyTorch)"
    "$python" dev/bench/torch_peer.py step gpt2-124m --cpu --batch "$B" --length "$T" --steps 7 >>"$work/torch.jsonl"
done
for march in "${marches[@]}"; do
    say "measuring peak, products and attention ($march)"
    "$work/$march/bench_cpu" >"$work/$march/kernels"
done
long=(--model tiny-llama --layers 4 --dim 512 --heads 8 --kv-heads 4 --ffn 1408 --seq-len 4096 --batch 1 --steps 9)
step native one-rank 1 "${long[@]}" --threads "$cores"
for scheme in $(list_schemes "$work/native/train_gpt_cpu"); do
    step native "$cores-ranks-$scheme" "$cores" "${long[@]}" --sp "$scheme" --threads 1
done

python3 - "$work" "$(git rev-parse --short HEAD 2>/dev/null || echo '?')" "${marches[@]}" \
    <<'PY' | tee ${report:+"$report"}
import datetime, json, os, platform, sys
work, commit, marches = sys.argv[1], sys.argv[2], sys.argv[3:]
info = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""
name = next((l.split(":", 1)[1].strip() for l in info.splitlines() if l.startswith("model name")), platform.machine())
sets = ", ".join(s for s in ("avx2", "fma", "avx512f", "asimd", "sve") if f" {s}" in info)
torch = {}
if os.path.exists(f"{work}/torch.jsonl"):
    rows = [json.loads(l) for l in open(f"{work}/torch.jsonl")]
    torch = {r["name"].split("_", 2)[2].replace("_", "-"): r["value"] for r in rows if r["name"].startswith("step")}
    version = next(r["version"] for r in rows if r["name"] == "torch")
labels = {"products_256": "products, GPT-2 124M's shapes, 256 rows",
          "products_1024": "products, GPT-2 124M's shapes, 1024 rows",
          "products_llama_1024": "products, Llama-1B's shapes, 1024 rows",
          "attention_1024_d64": "attention fwd+bwd, T 1024, 12 heads of 64",
          "attention_4096_d64": "attention fwd+bwd, T 4096, 12 heads of 64",
          "attention_4096_d128_gqa": "attention fwd+bwd, T 4096, 8 heads of 128, 2 KV"}
steps = {}
for march in marches:
    k = {w[0]: float(w[1]) for w in (l.split() for l in open(f"{work}/{march}/kernels"))}
    steps[march] = {w[0]: [float(x) for x in w[1:]] for w in (l.split() for l in open(f"{work}/{march}/steps"))}
    peak = k["fma_peak"]
    print(f"\n{name} ({sets}), -march={march}, {int(k['threads'])} threads, commit {commit}, {datetime.date.today()}\n")
    print("| fp32 | GFLOP/s | of FMA peak | tokens/s | ms a step |" + (f" PyTorch {version} | ours / PyTorch |" if torch
                                                                       else ""))
    print("|---|---|---|---|---|" + ("---|---|" if torch else ""))
    print(f"| FMA loop, all cores | {peak:.0f} | 1 | | |" + (" | |" if torch else ""))
    for key, label in labels.items():
        print(f"| {label} | {k[key]:.0f} | {k[key] / peak:.2f} | | |" + (" | |" if torch else ""))
    for key, label in {"attention_8192_window_1024": "attention, T 8192, window of 1024",
                       "attention_8192_documents_1024": "attention, T 8192, documents of 512 and 1536"}.items():
        print(f"| {label} | {k[key]:.2f} times as fast as full | | | |" + (" | |" if torch else ""))
    for step, (tokens, flops, ms) in steps[march].items():
        if step.startswith("B"):
            peer = f" {torch[step]:.0f} | {tokens / torch[step]:.2f} |" if torch else ""
            print(f"| step of GPT-2 124M, {step} | {flops:.0f} | {flops / peak:.2f} | {tokens:.0f} | {ms:.0f} |{peer}")
one = steps["native"]["one-rank"][0]
print("\n| T 4096, d 512, 4 layers | tokens/s | of one rank with all threads |\n|---|---|---|")
for step, (tokens, _, ms) in steps["native"].items():
    if not step.startswith("B"):
        print(f"| {step} | {tokens:.0f} | {tokens / one:.2f} |")
PY

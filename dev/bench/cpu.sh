#!/usr/bin/env bash
# cpu.sh [OUT.md] - what the CPU trainer gets out of this machine, as ratios measured in one run: FMA peak, GEMM, attention, whole step of
# GPT-2 124M in fp32, and two ranks of one thread against one rank of two, per scheme. Medians; about six minutes on two cores.
#
# FLOP of a step = (6 parameters + 6 layers d T) a token, causal. Floor: FLOP over the FMA peak.
set -euo pipefail
report=${1:-}
[[ -z $report || $report == /* ]] || report=$PWD/$report
source "$(dirname "$0")/../../scripts/common.sh"
require_packages
make -s train_gpt_cpu build/bench_cpu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cores=$(nproc)
python3 dev/data/text_to_shards.py --out "$work/data" --val-fraction 0.1 core/*.h ./*.h train_gpt.cu >/dev/null

say "measuring peak, GEMM and attention"
build/bench_cpu >"$work/kernels"

# median over the steps after the first two: step NAME RANKS FLAGS... -> tokens/s, MFU (causal) in $work/steps
step() {
    local name=$1 ranks=$2
    shift 2
    say "measuring $name"
    run_ranks "$ranks" ./train_gpt_cpu --train "$work/data/train_*.bin" --out "$work/run-$name" --peak-tflops 1 --selfcheck off "$@" >"$work/log" 2>&1 ||
        die "$name failed: $(grep -m 1 error "$work/log")"
    python3 - "$work/run-$name" "$name" >>"$work/steps" <<'PY'
import json, statistics, sys
rows = [json.loads(l) for l in open(sys.argv[1] + "/metrics.jsonl")][2:]
flops = statistics.median(r["mfu_causal"] for r in rows)
ms = statistics.median(r["step_ms"] for r in rows)
world = json.load(open(sys.argv[1] + "/config.json"))["world"]
print(sys.argv[2], f'{rows[0]["tokens"] / ms * 1e3:.1f}', f"{flops * world * 1e3:.1f}", f"{ms:.0f}")
PY
}
gpt=(--model gpt2-124m --steps 7)
step gpt2-124m-B4-T64 1 "${gpt[@]}" --seq-len 64 --batch 4 --micro-batch 4
step gpt2-124m-B4-T256 1 "${gpt[@]}" --seq-len 256 --batch 4 --micro-batch 4
step gpt2-124m-B1-T1024 1 "${gpt[@]}" --seq-len 1024 --batch 1
long=(--model tiny-llama --layers 4 --dim 512 --heads 8 --kv-heads 4 --ffn 1408 --seq-len 4096 --batch 1 --steps 9)
step one-rank 1 "${long[@]}" --threads "$cores"
for scheme in tp tpsp ulysses ring odysseus; do step "$cores-ranks-$scheme" "$cores" "${long[@]}" --sp $scheme --threads 1; done

python3 - "$work/kernels" "$work/steps" "$(git rev-parse --short HEAD 2>/dev/null || echo '?')" "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" <<'PY' | tee ${report:+"$report"}
import sys, datetime
k = {w[0]: float(w[1]) for w in (l.split() for l in open(sys.argv[1]))}
s = {w[0]: (float(w[1]), float(w[2]), float(w[3])) for w in (l.split() for l in open(sys.argv[2]))}
peak, gemm = k["fma_peak"], k["gemm_1024_rows"]
print(f"\n{sys.argv[4]}, {int(k['threads'])} threads, commit {sys.argv[3]}, {datetime.date.today()}\n")
print("| fp32 | GFLOP/s | of FMA peak | of GEMM | tokens/s | ms a step |\n|---|---|---|---|---|---|")
print(f"| FMA loop, all cores | {peak:.0f} | 1 | | | |")
for name, label in (("gemm_1024_rows", "GEMM, GPT-2 124M's shapes, 1024 rows"), ("attention_1024_d64", "attention fwd+bwd, T 1024, 12 heads of 64"),
                    ("attention_4096_d64", "attention fwd+bwd, T 4096, 12 heads of 64"), ("attention_4096_d128_gqa", "attention fwd+bwd, T 4096, 8 heads of 128, 2 KV")):
    print(f"| {label} | {k[name]:.0f} | {k[name] / peak:.2f} | {k[name] / gemm:.2f} | | |")
for name, (tokens, flops, ms) in s.items():
    if name.startswith("gpt2"):
        print(f"| step of {name} | {flops:.0f} | {flops / peak:.2f} | {flops / gemm:.2f} | {tokens:.0f} | {ms:.0f} |")
one = s["one-rank"][0]
print("\n| T 4096, d 512, 4 layers | tokens/s | of one rank with all threads |\n|---|---|---|")
for name, (tokens, _, ms) in s.items():
    if not name.startswith("gpt2"):
        print(f"| {name} | {tokens:.0f} | {tokens / one:.2f} |")
PY

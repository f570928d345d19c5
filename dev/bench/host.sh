#!/usr/bin/env bash
# host.sh [PROGRAM [FLAGS...]] - how long the host is busy with a step of GPT-2 124M on one GPU, and how long the step
# takes, without CUDA graphs and with them, whose losses must be the same numbers. BATCHES: sequences of 1024 tokens in
# a step / in a micro-batch [64/32 8/8 1/1]. FLAGS go to every run.
#
# host: step_ms less what the host waited for the device. Without graphs it runs ahead by more launches than the driver
# queues (some 1024) at 64/32; a launch then waits, and counts as busy. Medians of the later half of 40 steps on random
# tokens.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-./train_gpt}
shift || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$work/tokens.bin" <<'PY'
import array, random, sys
random.seed(7)
tokens = array.array("H", random.choices(range(32000), k=300_000))
open(sys.argv[1], "wb").write(array.array("i", [20240520, 1, len(tokens)] + [0] * 253).tobytes() + tokens.tobytes())
PY
printf '%-8s %-6s %10s %10s %10s %12s %s\n' batch graphs step_ms host_ms host tokens/s "last loss"
for batch in ${BATCHES:-64/32 8/8 1/1}; do
    for graphs in off on; do
        out=$work/${batch%/*}-$graphs
        "$program" --model gpt2-124m --seq-len 1024 --batch "${batch%/*}" --micro-batch "${batch#*/}" --steps 40 \
            --selfcheck off --train "$work/tokens.bin" --graphs $graphs --out "$out" "$@" >"$work/log" 2>&1 ||
            { tail -n 3 "$work/log" && exit 1; }
        python3 - "$batch" $graphs "$work/${batch%/*}" <<'PY'
import json, statistics, sys
batch, graphs, prefix = sys.argv[1:]
read = lambda name: [json.loads(line) for line in open(f"{prefix}-{name}/metrics.jsonl")]
rows = read(graphs)
step, host, rate = (statistics.median(r[k] for r in rows[20:]) for k in ("step_ms", "host_ms", "tokens_per_s"))
print(f"{batch:8} {graphs:6} {step:10.3f} {host:10.3f} {100 * host / step:9.1f}% {rate:12,.0f} {rows[-1]['loss']}")
numbers = lambda some: [(r["loss"], r["grad_norm"]) for r in some]
if numbers(rows) != numbers(read("off")): sys.exit("losses or norms differ from those without graphs")
PY
    done
done

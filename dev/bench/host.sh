#!/usr/bin/env bash
# host.sh [PROGRAM [FLAGS...]] - how long the host is busy with a step of GPT-2 124M on one GPU, and how long the step
# takes: (64 x 1024) in micro-batches of 32, (8 x 1024), (1 x 1024). FLAGS go to every run, e.g. --graphs off.
#
# host: step_ms less what the host waited for the device. Where it runs ahead by more launches than the driver's queue
# takes (some 1024), a launch waits, and that counts as busy: then only the smaller batches tell what launches cost.
# Medians of the later half of 40 steps on random tokens.
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
printf '%-14s %10s %10s %10s %12s %s\n' batch step_ms host_ms host tokens/s flags
for batch in 64/32 8/8 1/1; do
    "$program" --model gpt2-124m --seq-len 1024 --batch "${batch%/*}" --micro-batch "${batch#*/}" --steps 40 \
        --selfcheck off --train "$work/tokens.bin" --out "$work/${batch%/*}" "$@" >"$work/log" 2>&1 ||
        { tail -n 3 "$work/log" && exit 1; }
    python3 - "$batch" "$work/${batch%/*}/metrics.jsonl" "$*" <<'PY'
import json, statistics, sys
rows = [json.loads(line) for line in open(sys.argv[2])][20:]
step, host, rate = (statistics.median(r[k] for r in rows) for k in ("step_ms", "host_ms", "tokens_per_s"))
print(f"{sys.argv[1]:14} {step:10.3f} {host:10.3f} {100 * host / step:9.1f}% {rate:12,.0f} {sys.argv[3]}")
PY
done

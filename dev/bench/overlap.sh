#!/usr/bin/env bash
# overlap.sh [RATE [WORD]] - how much of the traffic hides behind computing, over a slow link: two ranks of one thread
# over TCP on the loopback of a network namespace of this script's own, limited to RATE (default 2gbit) by a token
# bucket. Needs root and iproute2, else SKIP. WORD: only the cases whose name holds it. LENGTH and LAYERS make the long
# cases smaller for a busy machine.
#
# For each case the exposed time (comm_exposed_ms: what the walk waits for) with --overlap on against off, medians of
# the steps after the first two. Sequences are long enough for computing to cover the transfers; what cannot hide is the
# first gather and the last reduction.
set -euo pipefail
rate=${1:-2gbit} only=${2:-} LENGTH=${LENGTH:-8192} LAYERS=${LAYERS:-6}
source "$(dirname "$0")/../../scripts/common.sh"
if [[ $(id -u) -ne 0 ]] || ! have ip || ! have tc; then
    say "SKIP: a limited link needs root and iproute2 (ip, tc)"
    exit 0
fi
space=odysseus$$
if ! ip netns add "$space" 2>/dev/null; then
    say "SKIP: this machine allows no network namespaces"
    exit 0
fi
work=$(mktemp -d)
trap 'ip netns del "$space"; rm -rf "$work"' EXIT
ip netns exec "$space" ip link set lo up
ip netns exec "$space" tc qdisc add dev lo root tbf rate "$rate" burst 256kb latency 100ms
require_packages
make -s train_gpt_cpu
python3 dev/data/text_to_shards.py --out "$work/data" --val-fraction 0.1 core/*.h ./*.h train_gpt.cu >/dev/null

case_() { # NAME FLAGS...
    local name=$1 overlap
    [[ $name == *"$only"* ]] || return 0
    shift
    for overlap in off on; do
        ip netns exec "$space" mpirun --allow-run-as-root --bind-to none --mca btl tcp,self \
            --mca btl_tcp_if_include lo --mca oob_tcp_if_include lo -np 2 ./train_gpt_cpu \
            --train "$work/data/train_*.bin" --threads 1 --steps 6 --selfcheck off --overlap $overlap \
            --out "$work/$name-$overlap" "$@" >"$work/log" 2>&1 || die "$name failed: $(grep -m 1 error "$work/log")"
    done
    python3 - "$work/$name" "$name" <<'PY'
import json, statistics, sys
def read(way):
    rows = [json.loads(l) for l in open(f"{sys.argv[1]}-{way}/metrics.jsonl")][2:]
    return [statistics.median(r[k] for r in rows) for k in ("step_ms", "comm_exposed_ms", "comm_bytes")]
off, on = read("off"), read("on")
print(f"| {sys.argv[2]} | {off[2] / 1e6:.1f} | {off[0]:.0f} | {off[1]:.0f} | {on[0]:.0f} | {on[1]:.0f} | "
      f"{1 - on[1] / off[1]:.0%} |")
PY
}

say "two ranks over TCP at $rate, commit $(git rev-parse --short HEAD 2>/dev/null || echo '?')"
say
say "| case | MB sent a step | off: step ms | off: exposed ms | on: step ms | on: exposed ms | hidden |"
say "|---|---|---|---|---|---|---|"
model=(--model tiny-llama --layers "$LAYERS" --dim 512 --heads 8 --kv-heads 4 --ffn 1408)
case_ "ZeRO-3, dp 2" "${model[@]}" --dp 2 --seq-len 2048 --batch 2
case_ "ring 2, zigzag" "${model[@]}" --sp ring --seq-len "$LENGTH" --batch 1
case_ "ulysses 2" "${model[@]}" --sp ulysses --seq-len "$LENGTH" --batch 1
case_ "ulysses 2, 4 groups of heads" "${model[@]}" --sp ulysses --seq-len "$LENGTH" --batch 1 --head-groups 4
case_ "odysseus 2" "${model[@]}" --sp odysseus --seq-len "$LENGTH" --batch 1
case_ "tpsp 2" "${model[@]}" --sp tpsp --seq-len "$LENGTH" --batch 1
case_ "tp 2" "${model[@]}" --sp tp --seq-len "$LENGTH" --batch 1

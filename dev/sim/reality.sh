#!/usr/bin/env bash
# reality.sh [here] [link] - the simulator against this machine: measured | forecast | ratio of a step, two CPU ranks
# of one thread, every scheme.
#
#   here   through shared memory, L = 1K 2K 4K 8K; within 20%, memory exact. Some five minutes
#   link   over TCP on the loopback of a network namespace of this script's own, limited to RATE= [1gbit] by a token
#          bucket; --overlap off, so that every byte shows: where TP-SP and Odysseus cross against the closed form's
#          L = 1.8 i; within 25%. Needs root and iproute2, else SKIP
#
# The machine is calibrated first, through the same links. Nothing else should run meanwhile: what the others take, the
# forecast does not know. Medians of the steps after the first two. Writes OUT= [build/reality]/{here,link}.{md,json};
# exit code 1 if a ratio or the crossover is off.
set -euo pipefail
source "$(dirname "$0")/../../scripts/common.sh"
parts=("$@")
[[ ${#parts[@]} -gt 0 ]] || parts=(here link)
for part in "${parts[@]}"; do
    [[ $part == here || $part == link ]] || die "unknown argument '$part'; here, link, or both"
done
rate=${RATE:-1gbit} out=$(absolute "${OUT:-$PWD/build/reality}") STEPS=${STEPS:-7}
whole STEPS
[[ $STEPS -ge 3 ]] || die "STEPS=$STEPS: the first two are not measured; at least 3"
require_packages
for target in train_gpt_cpu train_gpt_sim build/calibrate_fp32; do
    build $target || die "cannot build $target: $build_why"
done
mkdir -p "$out"
work=$(mktemp -d) space=
trap '[[ -z $space ]] || ip netns del "$space"; rm -rf "$work"' EXIT
python3 dev/data/text_to_shards.py --out "$work/data" --val-fraction 0.1 core/*.h ./*.h train_gpt.cu >/dev/null
names=$(list_schemes ./train_gpt_cpu)
mapfile -t schemes <<<"$names"

open_space() { # a namespace with a slow loopback; 1 and the reason in why, if that cannot be
    why="a limited link needs root and iproute2 (ip, tc)"
    [[ $(id -u) -eq 0 ]] && have ip && have tc || return 1
    why="this machine allows no network namespaces"
    ip netns add "odysseus$$" 2>/dev/null || return 1
    space=odysseus$$
    ip netns exec "$space" ip link set lo up
    ip netns exec "$space" tc qdisc add dev lo root tbf rate "$rate" burst 128kb latency 100ms
}

two() { # PART COMMAND...: on two ranks, through that part's links
    local part=$1
    shift
    if [[ $part == here ]]; then run_ranks 2 "$@"
    else
        ip netns exec "$space" env GOMP_SPINCOUNT=20000 mpirun --allow-run-as-root --bind-to none --mca btl tcp,self \
            --mca btl_tcp_if_include lo --mca oob_tcp_if_include lo -n 2 "$@" </dev/null
    fi
}

compare() { # PART BOUND LENGTHS FLAGS...
    local part=$1 bound=$2 lengths=$3 length scheme flags
    shift 3
    say "$part: calibrating"
    two "$part" build/calibrate_fp32 >"$work/$part.cluster"
    for length in $lengths; do
        for scheme in "${schemes[@]}"; do
            say "$part: $scheme at $length"
            flags=("$@" --sp "$scheme" --seq-len "$length" --batch 1)
            two "$part" ./train_gpt_cpu "${flags[@]}" --train "$work/data/train_*.bin" --threads 1 --steps "$STEPS" \
                --selfcheck off --out "$work/$part-$scheme-$length" >"$work/log" 2>&1 ||
                die "$scheme at $length failed: $(grep -m 1 error "$work/log")"
            ./train_gpt_sim --cluster "$work/$part.cluster" --world 2 "${flags[@]}" \
                --json "$work/$part-$scheme-$length/forecast.json" >"$work/log" 2>&1 ||
                die "the forecast of $scheme at $length failed: $(grep -m 1 error "$work/log")"
        done
    done
    cp "$work/$part.cluster" "$out/$part.cluster"
    report "$part" "$bound" "$lengths" "$*"
}

report() { # PART BOUND LENGTHS FLAGS
    python3 - "$work" "$out" "$@" "$(git rev-parse --short HEAD 2>/dev/null || say '?')" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "${schemes[@]}" <<'PY'
import datetime, json, os, statistics, sys
work, out, part, bound, lengths, flags, commit, machine, *schemes = sys.argv[1:]
bound, lengths = float(bound), [int(l) for l in lengths.split()]
words = flags.split()
ffn = int(words[words.index("--ffn") + 1])
faults, cells = [], []
for length in lengths:
    for scheme in schemes:
        run = os.path.join(work, f"{part}-{scheme}-{length}")
        steps = [json.loads(line) for line in open(run + "/metrics.jsonl")][2:]
        forecast = json.load(open(run + "/forecast.json"))
        median = lambda key: statistics.median(step[key] for step in steps)
        cell = {"seq_len": length, "scheme": scheme, "measured_ms": median("step_ms"),
                "forecast_ms": forecast["step_ms"],
                "measured_exposed_ms": median("comm_exposed_ms"), "forecast_exposed_ms": forecast["comm_exposed_ms"],
                "spread": max(s["step_ms"] for s in steps) / min(s["step_ms"] for s in steps),
                "mem_measured": steps[0]["mem_bytes"], "mem_forecast": forecast["mem_bytes"]}
        cell["ratio"] = cell["forecast_ms"] / cell["measured_ms"]
        cells.append(cell)
        if abs(cell["ratio"] - 1) > bound:
            faults.append(f"{scheme} at {length}: forecast {cell['ratio']:.2f} of measured")
        if cell["mem_measured"] != -(-int(cell["mem_forecast"]) // 4096) * 4096:  # committed in pages
            faults.append(f"{scheme} at {length}: {cell['mem_measured']} bytes of memory, forecast "
                          f"{cell['mem_forecast']:.0f}")
by = {(c["seq_len"], c["scheme"]): c for c in cells}
lines = [f"{machine}, commit {commit}, {datetime.date.today()}: 2 ranks of 1 thread, {flags}", "",
         "| L | scheme | measured ms | slowest/fastest step | forecast ms | ratio | exposed: measured ms | "
         "forecast ms |", "|---:|---|---:|---:|---:|---:|---:|---:|"]
lines += [f"| {c['seq_len']} | {c['scheme']} | {c['measured_ms']:.1f} | {c['spread']:.2f} | {c['forecast_ms']:.1f} | "
          f"{c['ratio']:.2f} | "
          f"{c['measured_exposed_ms']:.1f} | {c['forecast_exposed_ms']:.1f} |" for c in cells]
def crossing(key):  # where odysseus becomes faster than tpsp, between two lengths by a straight line
    gain = [by[l, "tpsp"][key] - by[l, "odysseus"][key] for l in lengths]
    for i in range(1, len(lengths)):
        if gain[i - 1] < 0 <= gain[i]:
            return lengths[i - 1] + (lengths[i] - lengths[i - 1]) * -gain[i - 1] / (gain[i] - gain[i - 1])
    return None
crossings = None
if part == "link":
    crossings = {"closed_form": 1.8 * ffn, "measured": crossing("measured_ms"), "forecast": crossing("forecast_ms")}
    text = lambda x: f"{x:.0f}" if x else "nowhere here"
    lines += ["", f"Odysseus becomes faster than TP-SP at L = {text(crossings['measured'])} as measured, "
              f"{text(crossings['forecast'])} as forecast; "
              f"closed form 1.8 i = {crossings['closed_form']:.0f}."]
    for way in ("measured", "forecast"):
        if not crossings[way] or not 0.75 < crossings[way] / crossings["closed_form"] < 1.25:
            faults.append(f"the crossover as {way}: {text(crossings[way])}, closed form {crossings['closed_form']:.0f}")
lines += [""] + (["OFF: " + "; ".join(faults)] if faults else [f"All within {100 * bound:.0f}%, memory exact."])
text = "\n".join(lines) + "\n"
print("\n" + text)
open(f"{out}/{part}.md", "w").write(text)
json.dump({"machine": machine, "commit": commit, "flags": flags, "cells": cells, "crossover": crossings, "off": faults},
          open(f"{out}/{part}.json", "w"), indent=1)
sys.exit(bool(faults))
PY
}

failed=0
for part in "${parts[@]}"; do
    if [[ $part == here ]]; then
        compare here 0.20 "1024 2048 4096 8192" --model tiny-llama --layers 4 --dim 512 --heads 8 --kv-heads 4 \
            --ffn 1408 || failed=1
    elif open_space; then
        compare link 0.25 "512 1024 2048 4096" --model tiny-llama --layers 2 --dim 512 --heads 8 --ffn 1024 \
            --overlap off || failed=1
    else
        say "SKIP: $why"
    fi
done
exit $failed

#!/usr/bin/env bash
# test_trace.sh - the timeline of --trace: whole, on the CPU and in the emulated CUDA program, and of no influence. TAP.
# What is checked: check_trace.py.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

python3 dev/data/text_to_shards.py --out "$work" train_gpt.cu >/dev/null || exit 1
small=(--train "$work/train_*.bin" --layers 2 --dim 32 --heads 2 --ffn 64 --seq-len 16 --batch 2 --selfcheck off
    --log-every 100)

# A trace of the first steps, and nothing but that beside it.
traces() { # NAME RANKS PROGRAM FLAGS...
    local name=$1 ranks=$2 steps
    shift 2
    mkdir "$work/$name"
    run_ranks -t 600 "$ranks" "$@" "${small[@]}" --out "$work/$name/run" --trace "$work/$name/trace.json" \
        >"$work/out" 2>&1 &&
        [[ $(ls "$work/$name") == $'run\ntrace.json' ]] && steps=$(wc -l <"$work/$name/run/metrics.jsonl") &&
        python3 dev/test/check_trace.py "$work/$name/trace.json" "$work/$name/run/comm.json" "$ranks" \
        $((steps < 3 ? steps : 3)) 2 >"$work/out" 2>&1
    ok $? "$ranks ranks, $*: $(grep -c '"ph":"X"' "$work/$name/trace.json" 2>/dev/null) spans nest and are the steps"
}

traces single 1 ./train_gpt_cpu --steps 4
traces two-steps 1 ./train_gpt_cpu --steps 2 --model tiny-gpt --micro-batch 2
traces ulysses 2 ./train_gpt_cpu --steps 3 --sp ulysses --model tiny-gpt
traces tp 2 ./train_gpt_cpu --steps 3 --sp tp
traces no-overlap 2 ./train_gpt_cpu --steps 3 --sp odysseus --overlap off
traces hybrid 4 ./train_gpt_cpu --steps 3 --sp tpsp --ring 2
traces nccl 2 ./train_gpt_emu --steps 3 --sp ring
traces staged 2 ./train_gpt_emu --steps 3 --sp odysseus --comm mpi

# ---- the same places as ranges of --nvtx, which the emulator writes down: how deep each is, and its name

EMU_NVTX=$work/ranges run_ranks -t 600 2 ./train_gpt_emu "${small[@]}" --steps 2 --sp odysseus --nvtx \
    >"$work/out" 2>&1 && python3 - "$work"/ranges.* >"$work/out" 2>&1 <<'PY'
import re, sys
assert len(sys.argv) == 3, sys.argv
for path in sys.argv[1:]:
    rows = [(int(depth), name) for depth, name in (line.rstrip("\n").split(" ", 1) for line in open(path))]
    at = lambda depth: [name for d, name in rows if d == depth]
    assert at(0) == ["step 0", "step 1"], at(0)
    assert at(1) == 2 * (["data"] + [f"micro-step {i}" for i in range(2)] + ["optimizer"]), at(1)
    layers = [name for name in at(2) if name.startswith("layer ")]
    walk = [f"layer {l} {b} {p}" for p, ls in (("forward", (0, 1)), ("backward", (1, 0))) for l in ls
            for b in (("attention", "mlp") if p == "forward" else ("mlp", "attention"))]
    assert layers == 4 * walk, layers[:20]
    sent = {name for d, name in rows if d == 3}
    assert {"all_gather parameter", "reduce_scatter gradient", "all_gather activation"} <= sent, sent
    assert "all_reduce control" in at(2), at(2)
    assert all(d < 4 and b <= d + 1 for (d, _), (b, _) in zip(rows, rows[1:])), "ranges do not nest"
PY
ok $? "--nvtx: every rank's steps, micro-steps, layers and collectives nest"

# ---- no influence: the same bits
run_ranks -t 600 2 ./train_gpt_cpu "${small[@]}" --steps 3 --sp tp --out "$work/plain" >"$work/out" 2>&1
numbers() { sed -E 's/.*("loss": [^,]*, "grad_norm": [^,]*),.*/\1/' "$1/metrics.jsonl"; }
[[ $(numbers "$work/plain") == "$(numbers "$work/tp/run")" && $(numbers "$work/plain" | wc -l) -eq 3 ]]
ok $? "losses and norms are those of a run without a trace"

# ---- refusals, and a run that ends early: one line, no file
refuses() { # PATTERN FLAGS...
    local pattern=$1 code=0
    shift
    timeout 600 ./train_gpt_cpu "${small[@]}" "$@" >"$work/out" 2>&1 || code=$?
    [[ $code -ge 1 && $code -le 127 && $(grep -c '^train_gpt: error: ' "$work/out") -eq 1 &&
        ! -e $work/none/trace.json ]] &&
        grep -qE "^train_gpt: error: .*$pattern" "$work/out" && [[ -z $(ls "$work/none") ]]
    ok $? "refused: $(grep -m 1 '^train_gpt: error: ' "$work/out" | cut -c 19-150)"
}
mkdir "$work/none"
refuses '--trace needs a training step' --trace "$work/none/trace.json" --dry-run
refuses '--trace needs a training step' --trace "$work/none/trace.json" --init-only --out "$work/none/weights"
refuses '--trace needs a training step' --trace "$work/none/trace.json" --steps 0
refuses '--trace .*cannot write into .*/nowhere' --trace "$work/nowhere/trace.json" --steps 1
refuses '--trace .* is a directory' --trace "$work/none" --steps 1
refuses 'times the peak' --trace "$work/none/trace.json" --steps 3 --peak-tflops 1e-6

checks_done

# shellcheck shell=bash
# life.sh - sourced, after tap.sh, by the tests of a run's life: data, a small model, and what a curve is held against.
#
#   small        flags of a small model on $work/data.bin, without --steps
#   go RANKS PROGRAM FLAGS...         run it; its output in $work/out. PROGRAM is one of ours, or bash
#   compare A B TOLERANCE FROM [TO]   the metrics of run $work/B, steps FROM to TO (the end), are those of $work/A:
#                                     losses within TOLERANCE (relative), or bit for bit (same); each step once and in
#                                     order
python3 - "$work/data.bin" <<'PY'
import array, random, sys
random.seed(5)
tokens = array.array("H", (random.randrange(97, 123) for _ in range(3000)))
open(sys.argv[1], "wb").write(array.array("i", [20240520, 1, len(tokens)] + [0] * 253).tobytes() + tokens.tobytes())
PY
small=(--layers 2 --dim 32 --heads 4 --kv-heads 2 --ffn 64 --train "$work/data.bin" --seq-len 32 --batch 4
    --peak-tflops 100 --warmup 3 --lr 0.01
    --selfcheck off)

limit=300 # seconds that a run may take before it hangs
go() {
    local ranks=$1 program=$2
    shift 2
    [[ $program == bash ]] || program=./$program
    if [[ $ranks -eq 1 ]]; then timeout "$limit" "$program" "$@" >"$work/out" 2>&1
    else run_ranks -t "$limit" "$ranks" "$program" "$@" >"$work/out" 2>&1; fi
}

compare() {
    python3 - "$work/$1" "$work/$2" "${@:3}" <<'PY' >>"$work/out" 2>&1
import json, sys
a, b, tolerance, first = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def steps(run):
    return [json.loads(line) for line in open(run + "/metrics.jsonl")]
x, y = {m["step"]: m for m in steps(a)}, steps(b)
last = int(sys.argv[5]) if len(sys.argv) > 5 else max(x)
steps = [m["step"] for m in y]
assert steps == list(range(first, last + 1)), f"steps {steps}, wanted {first} to {last}"
worst = 0
for m in y:
    for key in ("loss", "grad_norm", "lr") + (("val_loss",) if "val_loss" in x[m["step"]] else ()):
        assert key in m, f"step {m['step']} has no {key}"
        was = x[m["step"]][key]
        if tolerance == "same": assert m[key] == was, f"step {m['step']}: {key} {m[key]!r}, was {was!r}"
        else:
            d = abs(m[key] - was) / abs(was)
            worst = max(worst, d)
            allowed = float(tolerance) * (1 if key != "grad_norm" else 100)
            assert d <= allowed, f"step {m['step']}: {key} {m[key]!r}, was {was!r}: {d}"
print("largest difference", worst)
PY
}

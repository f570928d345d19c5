#!/usr/bin/env python3
"""check_runs.py DIR - TAP for the runs of the CUDA program that test_emu.sh (or dev/gpu_check.sh) left in
DIR, against the fp64 referee.

DIR/MODEL/referee/          one rank, fp64: metrics.jsonl, grads.safetensors
DIR/MODEL/single/           the CUDA program on one rank
DIR/MODEL/SCHEME-.../       the same on several; `again` is a repetition of the last of them

Bounds. bf16 keeps 8 significant bits: a rounding takes away up to 2^-8 of a number, 1.7e-3 of a tensor in norm. A
gradient has passed some 30 roundings (2 layers, forward and backward) of either sign: as a random walk sqrt(30) x
1.7e-3 = 9e-3 in norm, so 1e-2 for the whole gradient. A single tensor may be off by more where its gradient is a small
difference: that of queries and keys is P (dP - delta), with dP near delta while attention is still even; 2e-2. The loss
averages over all tokens, and its first order cancels: 2e-3. Two schemes round at other places (partial sums of tensor
parallelism, P under another running maximum in the ring), so they differ as two independent walks would, sqrt(2) x
9e-3; ulysses rounds where one rank does. Under the emulator, whose products sum alike for any number of rows, it agrees
to 1e-7 (with KV heads that are replicated it sums their gradients in bf16 parts, and does not); on a GPU cuBLASLt takes
another algorithm for fewer rows, and it differs as any two schemes do.

Norms of queries and keys make scores of up to sqrt(D) from the first step, and what rounds q and k moves P with them:
rounding them once to bf16, after rotation, moves the referee's own gradient by 4.8e-3 in the Qwen 3 of these runs, by
1.0e-3 in the Llama. They are rounded three times (projected, normed, rotated), forward, and their gradients likewise:
sqrt(9e-3^2 + 6 x 4.8e-3^2) = 1.5e-2. All bounds on its gradients are twice the others.
"""
import array
import json
import math
import os
import struct
import sys

WHOLE, TENSOR, LOSS, BETWEEN, NORM, SAME = 1e-2, 2e-2, 2e-3, 1.3e-2, 1e-2, 1e-6
HEAD_NORMS = 2  # times WHOLE, TENSOR, BETWEEN

SAME_ROUNDINGS = ("gpt2 ulysses-2", "gpt2 ulysses-4", "gpt2 ulysses-staged-2", "llama ulysses-2",
                  "llama ulysses-staged-2")


def between(what, log):
    """How far `what` may be from one rank's; `log`: of its run."""
    with open(log) as f:
        emulated = "emulated GPU" in f.read()
    return SAME if emulated and what in SAME_ROUNDINGS else BETWEEN * sharper(what)


def sharper(what):
    """How many times further from the referee the model of `what` may be."""
    return HEAD_NORMS if what.startswith("qwen3 ") else 1


class Tap:
    def __init__(self):
        self.n = self.bad = 0

    def ok(self, good, text):
        self.n += 1
        self.bad += not good
        print(f"{'ok' if good else 'not ok'} {self.n} - {text}", flush=True)


def tensors(path):
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        base = 8 + size
        out = {}
        for name, t in header.items():
            if name == "__metadata__":
                continue
            first, end = t["data_offsets"]
            f.seek(base + first)
            values = array.array({"F32": "f", "F64": "d"}[t["dtype"]])
            values.frombytes(f.read(end - first))
            out[name] = values
    return out


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def distance(a, b):
    """|a - b| / |b| in the Euclidean norm; infinite if a is not finite or has another size."""
    if len(a) != len(b):
        return math.inf
    diff = sum((x - y) * (x - y) for x, y in zip(a, b))
    size = sum(y * y for y in b)
    if not math.isfinite(diff):
        return math.inf
    return 0.0 if diff == 0 else math.sqrt(diff / size) if size else math.inf


def significant(reference):
    """Tensors whose gradient is not zero up to rounding: GPT-2's key bias moves no
    probability, its exact gradient is 0."""
    total = math.sqrt(sum(v * v for t in reference.values() for v in t))
    return {name for name, t in reference.items() if math.sqrt(sum(v * v for v in t)) > 1e-4 * total}


def key_bias(name, values):
    """GPT-2 stores q, k and v biases together: leave out the middle third, whose gradient is 0."""
    if not name.endswith("c_attn.bias"):
        return values
    third = len(values) // 3
    return values[:third] + values[2 * third:]


def worst(grads, reference, names):
    return max((distance(key_bias(n, grads[n]), key_bias(n, reference[n])) if n in grads else math.inf, n)
               for n in names)


def overall(grads, reference):
    """The distance of the whole gradient as one vector."""
    diff = size = 0.0
    for name, want in reference.items():
        got = grads.get(name, [])
        if len(got) != len(want):
            return math.inf
        diff += sum((x - y) * (x - y) for x, y in zip(got, want))
        size += sum(y * y for y in want)
    return math.sqrt(diff / size) if math.isfinite(diff) else math.inf


def check_case(tap, what, directory, referee, single, names):
    metrics, grads = lines(f"{directory}/metrics.jsonl"), tensors(f"{directory}/grads.safetensors")
    d, name = worst(grads, referee["grads"], names)
    whole, most, tensor = overall(grads, referee["grads"]), WHOLE * sharper(what), TENSOR * sharper(what)
    tap.ok(whole <= most and d <= tensor and set(grads) == set(referee["grads"]),
           f"{what}: gradient within {whole:.2e} of fp64 (at most {most:g}), each tensor within {d:.2e} (at most "
           f"{tensor:g}; {name})")
    d = max((abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(metrics, referee["metrics"])), default=math.inf)
    tap.ok(len(metrics) == len(referee["metrics"]) and d <= LOSS,
           f"{what}: {len(metrics)} losses within {d:.2e} of fp64 (at most {LOSS:g})")
    d = abs(metrics[0]["grad_norm"] / referee["metrics"][0]["grad_norm"] - 1)
    tap.ok(d <= NORM, f"{what}: gradient norm within {d:.2e} of fp64 (at most {NORM:g})")
    if single:
        d, bound = overall(grads, single["grads"]), between(what, f"{directory}/log")
        tap.ok(d <= bound, f"{what}: gradient within {d:.2e} of one rank's (at most {bound:g})")
    rows = json.load(open(f"{directory}/comm.json"))
    off = [r for r in rows if r["bytes"] != r["expected_bytes"]]
    tap.ok(not off, f"{what}: {sum(r['bytes'] for r in rows)} bytes sent, every row of the ledger as its closed form"
           + (f": {off[0]}" if off else ""))


def main(root):
    tap = Tap()
    for model in sorted(os.listdir(root)):
        if not os.path.isdir(f"{root}/{model}/referee"):
            continue
        load = lambda d: {"metrics": lines(f"{d}/metrics.jsonl"), "grads": tensors(f"{d}/grads.safetensors")}
        referee = load(f"{root}/{model}/referee")
        names = significant(referee["grads"])
        single = None
        again = sorted(d for d in os.listdir(f"{root}/{model}") if os.path.exists(f"{root}/{model}/{d}/of"))
        cases = sorted(d for d in os.listdir(f"{root}/{model}") if d not in ("referee", "single", *again))
        for case in ["single"] + cases:
            directory = f"{root}/{model}/{case}"
            if not os.path.exists(f"{directory}/grads.safetensors"):
                said = open(directory + "/log").read().strip() if os.path.exists(directory + "/log") else ""
                tap.ok(False, f"{model} {case}: the run failed: {said[-300:]}")
                continue
            check_case(tap, f"{model} {case}", directory, referee, single, names)
            if case == "single":
                single = load(directory)
        for case in again:
            with open(f"{root}/{model}/{case}/of") as f:
                of, _, how = f.read().strip().partition(" ")
            what = f"{model}: {of} again{how and ', ' + how + ','} gives the same bits"
            if not all(os.path.exists(f"{root}/{model}/{c}/grads.safetensors") for c in (case, of)):
                tap.ok(False, f"{what}: a run failed")
                continue
            same = [[{k: m[k] for k in ("loss", "grad_norm")} for m in lines(f"{root}/{model}/{c}/metrics.jsonl")]
                    for c in (case, of)]
            bits = [open(f"{root}/{model}/{c}/grads.safetensors", "rb").read() for c in (case, of)]
            tap.ok(same[0] == same[1] and bits[0] == bits[1], what)
    print(f"1..{tap.n}")
    return 1 if tap.bad or not tap.n else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

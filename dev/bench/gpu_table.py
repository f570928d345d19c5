#!/usr/bin/env python3
"""gpu_table.py [WORK FOLDER] - the table of dev/gpu_check.sh: from what it left in WORK, into
FOLDER/results.json and results.md, and printed.

WORK/machine.json    what it ran on          WORK/steps.tsv    name, state, seconds, note of every step
WORK/*.jsonl         figures, an object a line with `name`: of build/bench_cuda (bench),
                     torch_peer.py (torch), the trainer (train)

Without arguments: the same table with the roofline bound of three GPUs, and 'not measured'
wherever a figure would stand.
Exit code 1 if a step has FAILED. A target that was missed is marked, and fails nothing.
"""
import glob
import json
import os
import sys

# dense bf16 TFLOP/s and GB/s that NVIDIA states of these, and what the driver calls them
ROOFLINES = {"A100": (312, 2039), "H100": (989, 3350), "H200": (989, 4800)}
DRIVER_NAMES = {"A100": "A100-SXM4-80GB", "H100": "H100 80GB HBM3", "H200": "NVIDIA H200"}
LENGTHS = (2048, 4096, 8192, 16384)
NO = "not measured"

# name in bench_cuda, what the table calls it, least ratio to the copy ("" where the project has set none)
KERNELS = [
    ("norm_rms_forward", "residual + RMSNorm, forward", 0.85), ("norm_rms_backward", "RMSNorm, backward", 0.85),
    ("norm_layer_forward", "residual + LayerNorm, forward", 0.85), ("norm_layer_backward", "LayerNorm, backward", 0.85),
    ("swiglu_forward", "SwiGLU, forward", 0.85), ("swiglu_backward", "SwiGLU, backward", 0.85),
    ("gelu_forward", "GELU, forward", ""), ("gelu_backward", "GELU, backward", ""),
    ("bias_backward", "bias gradient", ""),
    ("rope_pack_queries", "RoPE + packing, queries", 0.85), ("rope_pack_kv", "RoPE + packing, keys and values", 0.85),
    ("rope_unpack_queries", "RoPE + unpacking, queries", 0.85),
    ("rope_unpack_kv", "RoPE + unpacking, keys and values", 0.85),
    ("classifier_32000", "classifier, 32000 words", 0.85), ("classifier_50257", "classifier, 50257 words", 0.85),
    ("adamw", "AdamW", 0.85), ("gradient_norm", "gradient norm", ""), ("convert", "fp32 to bf16", ""),
    ("embedding_forward", "embedding, forward", ""), ("embedding_backward", "embedding, backward", ""),
]
# name, what the table calls it, FLOP a token: 6 parameters + 6 layers d L
STEPS = [
    ("step_gpt2-124m", "step of GPT-2 124M, 64 x 1024", 6 * (12 * 12 * 768**2 + 50257 * 768) + 6 * 12 * 768 * 1024),
    ("step_llama-1b", "step of a 1B Llama, 4 x 8192", 6 * (16 * (3 * 2048**2 + 3 * 2048 * 8192) + 32000 * 2048)
     + 6 * 16 * 2048 * 8192),
]


def number(x):
    return NO if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def row(what, ours, peer, ratio, target):
    """`ratio` a number or None; `target` the least one, or ''."""
    goal = target if isinstance(target, str) else \
        f">= {target:.2f}" + (" MISSED" if ratio is not None and ratio < target else "")
    return [what, ours, peer, NO if ratio is None else f"{ratio:.3f}", goal]


def bounds(of):
    return ", ".join(f"{gpu} {of(*rates):,.0f}" for gpu, rates in ROOFLINES.items())


def table(gpu, bench, torch, train):
    value = lambda figures, name: figures.get(name, {}).get("value")
    over = lambda a, b: a / b if a and b else None
    rows = []
    for name, what, unit, bound in (("copy", "device copy, read + written", "GB/s", bounds(lambda flop, byte: byte)),
                                    ("product_forward", "bf16 product, 8192 cubed", "TFLOP/s",
                                     bounds(lambda flop, byte: flop))):
        got = value(bench, name)
        stated = next((rates for key, rates in ROOFLINES.items() if gpu and DRIVER_NAMES[key] in gpu), (None, None))
        peak = stated[1 if unit == "GB/s" else 0]
        peer = f"NVIDIA states {peak:,}" if peak else "" if gpu else f"at most {bound}"
        rows.append(row(f"{what}, {unit}", number(got), peer, over(got, peak), ""))
    for phase in ("forward", "backward"):
        for d in (128, 64):
            for L in LENGTHS:
                name = f"attention_{phase}_d{d}_L{L}"
                ours, flash, cudnn = value(bench, name), value(torch, name + "_flash"), value(torch, name + "_cudnn")
                sm80 = value(bench, name + "_sm80")
                peer = f"FlashAttention-2 {number(flash)}"
                if ours and cudnn: peer += f"; cuDNN {number(cudnn)} ({ours / cudnn:.2f})"
                peer += f"; our kernel for sm_80 {number(sm80)}" if sm80 else ""
                if not gpu:
                    peer = "at most " + bounds(lambda flop, byte: flop)
                target = 1.0 if gpu and ("H100" in gpu or "H200" in gpu) else 0.95 if gpu else ">= 0.95, Hopper 1.00"
                what = f"attention {phase}, d {d}, L {L // 1024}K, TFLOP/s"
                rows.append(row(what, number(ours), peer, over(ours, flash), target if d == 128 else ""))
    for phase in ("forward", "backward"):
        for d in (128, 64):
            plain = value(bench, f"attention_{phase}_d{d}_L16384")
            for mask, words in (("window", "window of 2K"), ("documents", "documents of 1K and 3K")):
                got = value(bench, f"attention_{phase}_d{d}_L16384_{mask}")
                peer = f"no mask {number(plain)}" if gpu else "at most " + bounds(lambda flop, byte: flop)
                what = f"attention {phase}, d {d}, L 16K, {words}, TFLOP/s of visible pairs"
                rows.append(row(what, number(got), peer, over(got, plain), ""))
    for name, what, target in KERNELS:
        got, copy = value(bench, name), value(bench, "copy")
        peer = f"copy {number(copy)}" if gpu else "at most " + bounds(lambda flop, byte: byte)
        rows.append(row(f"{what}, GB/s", number(got), peer, over(got, copy), target))
    for name, what, flop in STEPS:
        ours, peer = train.get(name, {}), value(torch, name)
        mfu = f" (MFU {100 * ours['mfu']:.1f}%)" if ours.get("mfu") is not None else ""
        text = f"PyTorch {number(peer)}" if gpu else "at most " + bounds(lambda rate, byte: 1e12 * rate / flop)
        rows.append(row(f"{what}, tokens/s", number(ours.get("value")) + mfu, text, over(ours.get("value"), peer), 1.0))
    for name, what, _ in STEPS:
        ours = train.get(name, {})
        used, arena = ours.get("memory_used"), ours.get("memory_arena")
        mib = lambda n: number(n and n / 2**20)
        rows.append(row(f"memory of that {what.split(',')[0]}, MiB", mib(used), f"arena {mib(arena)}",
                        over(used, arena), "arena + CUDA context"))
    return rows


def aligned(rows, markdown):
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    left, between, right = ("| ", " | ", " |") if markdown else ("", "  ", "")
    lines = [left + between.join(cell.ljust(w) for cell, w in zip(r, widths)) + right for r in rows]
    if markdown:
        lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(line.rstrip() for line in lines)


HEAD = ["what", "ours", "floor or peer", "ratio", "target"]


def figures(path):
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        rows = [json.loads(line) for line in f if line.startswith("{")]
    return {r["name"]: r for r in rows if "name" in r}


def main(work, folder):
    with open(f"{work}/machine.json") as f:
        machine = json.load(f)
    with open(f"{work}/steps.tsv") as f:
        steps = [line.rstrip("\n").split("\t") for line in f]
    found = {os.path.basename(p)[:-6]: figures(p) for p in sorted(glob.glob(f"{work}/*.jsonl"))}
    rows = table(machine["gpu"], found.get("bench", {}), found.get("torch", {}), found.get("train", {}))
    checks = [["step", "state", "seconds", "what it said"]] + steps
    title = (f"{machine['gpu']}, driver {machine['driver']}, toolkit {machine['toolkit']}, commit {machine['commit']}, "
             f"{machine['date']}")
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/results.json", "w") as f:
        named = lambda head, lines: [dict(zip(head, line)) for line in lines]
        json.dump({"machine": machine, "steps": named(checks[0], steps), "figures": found, "table": named(HEAD, rows)},
                  f, indent=1)
        f.write("\n")
    with open(f"{folder}/results.md", "w") as f:
        f.write(f"# {title}\n\nBy dev/gpu_check.sh: medians, random data, ratios within this one run.\n\n")
        f.write(f"{aligned(checks, True)}\n\n{aligned([HEAD] + rows, True)}\n")
    print(f"{title}\n\n{aligned(checks, False)}\n\n{aligned([HEAD] + rows, False)}")
    return 1 if any(s[1] == "FAILED" for s in steps) else 0


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(aligned([HEAD] + table(None, {}, {}, {}), False))
        sys.exit(0)
    sys.exit(main(sys.argv[1], sys.argv[2]))

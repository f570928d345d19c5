#!/usr/bin/env python3
"""plot_eval.py RUN... - draw what --eval-task found: RUN/eval.jsonl of one or several runs -> eval.png in the first.

    position   loss by place in the sequence; loss of the last targets by how much text before them is there
    copy       share of right tokens by distance          passkey   a heat map a run: lengths x depths
Needs matplotlib: pip install matplotlib (Debian: python3-matplotlib).
"""
import json
import os
import sys


def stop(message):
    sys.exit(f"plot_eval: error: {message}")


def read(run):
    path = os.path.join(run, "eval.jsonl")
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}; --eval-task with --out writes it")
    except ValueError as error:
        stop(f"{path} is damaged: {error}")
    return rows


def curves(axes, runs, task, key, value, title, powers):
    """One curve a run: value of the task's rows over key."""
    for name, rows in runs:
        points = [(r[key], r[value]) for r in rows if r["task"] == task and key in r]
        axes.plot(*zip(*points), marker="o", markersize=3, label=name)
    axes.set_title(title)
    axes.set_xlabel("tokens")
    if powers:
        axes.set_xscale("log", base=2)
    axes.legend()


def heat_map(axes, name, rows):
    rows = [r for r in rows if r["task"] == "passkey"]
    lengths, depths = sorted({r["length"] for r in rows}), sorted({r["depth"] for r in rows})
    right = {(r["length"], r["depth"]): r["right"] for r in rows}
    axes.imshow([[right[x, y] for x in lengths] for y in depths], vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(lengths)), lengths)
    axes.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths])
    for i, y in enumerate(depths):
        for j, x in enumerate(lengths):
            axes.text(j, i, f"{right[x, y]:.2f}", ha="center", va="center")
    axes.set_title(f"passkey: {name}")
    axes.set_xlabel("length in tokens")
    axes.set_ylabel("depth of the number")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        stop("usage: python3 scripts/plot_eval.py RUN...")
    runs = [(os.path.basename(os.path.normpath(run)), read(run)) for run in sys.argv[1:]]
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        stop("matplotlib is missing: pip install matplotlib (Debian: python3-matplotlib)")
    tasks = {r["task"] for _, rows in runs for r in rows}
    drawn = []
    if "position" in tasks:
        drawn.append(lambda a: curves(a, runs, "position", "first", "loss", "loss by position", False))
        drawn.append(lambda a: curves(a, runs, "position", "context", "loss", "last targets by context", True))
    if "copy" in tasks:
        drawn.append(lambda a: curves(a, runs, "copy", "distance", "right", "right copies by distance", True))
    for name, rows in runs:
        if any(r["task"] == "passkey" for r in rows):
            drawn.append(lambda a, name=name, rows=rows: heat_map(a, name, rows))
    if not drawn:
        stop("nothing to draw: position, copy and passkey have pictures")
    figure, axes = plt.subplots(1, len(drawn), figsize=(5 * len(drawn), 4), squeeze=False)
    for draw, a in zip(drawn, axes[0]):
        draw(a)
    figure.tight_layout()
    path = os.path.join(sys.argv[1], "eval.png")
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    main()

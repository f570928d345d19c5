#!/usr/bin/env python3
"""compare.py - one table from run directories: do the curves coincide, and what did each run cost?

    DIR/config.json     who it was: scheme, ranks
    DIR/metrics.jsonl   losses, tokens/s (median of the steps), memory (largest)
    DIR/comm.json       bytes that rank 0 sent in a step, by kind, and their closed form

The first DIR is the reference. Exit code 1 if a curve leaves the reference's by more than --tolerance (of the loss; of 1 where the loss is
below: what is learned by heart has nothing left to be relative to), or bytes differ from their closed form. Standard library only.
"""

import argparse
import json
import math
import os
import statistics
import sys

KINDS = ["activation", "parameter", "gradient", "control"]
MARK = {True: "=", False: "!"}


def stop(message):
    sys.exit(f"compare: error: {message}")


def read_json(directory, name):
    path = os.path.join(directory, name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.read())
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}; was the run finished?")
    except ValueError as error:
        stop(f"{path} is damaged: {error}")


def read_metrics(directory):
    path = os.path.join(directory, "metrics.jsonl")
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}")
    except ValueError as error:
        stop(f"{path} is damaged: {error}")
    if not rows:
        stop(f"{path} is empty: the run made no step")
    return rows


def read_run(directory):
    """One row of the table, as a dictionary."""
    config, rows = read_json(directory, "config.json"), read_metrics(directory)
    sent, expected = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    wrong = []
    for entry in read_json(directory, "comm.json"):
        sent[entry["what"]] += entry["bytes"]
        expected[entry["what"]] += entry["expected_bytes"]
        if entry["bytes"] != entry["expected_bytes"]:
            where = f"{entry['op']} {entry['block']} {entry['phase']} {entry['what']}"
            wrong.append(f"{where}: {entry['bytes']:,d} bytes sent, closed form {entry['expected_bytes']:,d}")
    return {
        "directory": directory,
        "name": mesh_name(config),
        "ranks": config["world"],
        "losses": [row["loss"] for row in rows],
        "val": next((row["val_loss"] for row in reversed(rows) if "val_loss" in row), None),
        "speed": statistics.median(row["tokens_per_s"] for row in rows),
        "memory": max(row["mem_bytes"] for row in rows),
        "sent": sent,
        "expected": expected,
        "wrong": wrong,
    }


def mesh_name(config):
    name = config["flags"]["sp"]
    if config["world"] == 1:
        return "single rank"
    for axis in ("ring", "dp"):
        if config[axis] > 1 and config[axis] < config["world"]:
            name += f" {axis}{config[axis]}"
    return name


def curve_difference(a, b):
    """Largest difference of two loss curves, of the loss or of 1, whichever is more; infinity if they cannot be compared."""
    if len(a) != len(b):
        return math.inf
    worst = 0.0
    for x, y in zip(a, b):
        if x is None or y is None:  # a step in which no target counted
            worst = worst if x is y else math.inf
            continue
        difference = abs(x - y) / max(abs(y), 1.0)
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


def print_table(runs):
    wide = max(len("scheme"), *(len(run["name"]) for run in runs))
    left = f"{'':{wide}s} {'':5s} {'train':>8s} {'val':>8s} {'largest':>9s} {'':>9s} {'memory':>8s}   bytes that rank 0 sends in a step"
    print(left)
    head = f"{'scheme':{wide}s} {'ranks':>5s} {'loss':>8s} {'loss':>8s} {'diff.':>9s} {'tokens/s':>9s} {'MB/rank':>8s} "
    print(head + "".join(f" {kind:>14s}" for kind in KINDS))
    for i, run in enumerate(runs):
        val = "-" if run["val"] is None else f"{run['val']:.4f}"
        difference = "-" if i == 0 else f"{run['difference']:.1e}"
        line = f"{run['name']:{wide}s} {run['ranks']:5d} {next((x for x in reversed(run['losses']) if x is not None), math.nan):8.4f} {val:>8s} {difference:>9s} {run['speed']:9,.0f} {run['memory'] / 1e6:8.1f} "
        for kind in KINDS:
            line += f" {run['sent'][kind]:>12,d} {MARK[run['sent'][kind] == run['expected'][kind]]}"
        print(line)
        if run["sent"] != run["expected"]:
            print(f"{'  closed form':{len(head)}s}" + "".join(f" {run['expected'][kind]:>12,d}  " for kind in KINDS).rstrip())


def print_verdict(runs, tolerance):
    """What the table shows, in words; returns the exit code."""
    bad = [run for run in runs[1:] if not run["difference"] <= tolerance]
    for run in bad:
        steps = f"{len(run['losses'])} steps, not {len(runs[0]['losses'])}" if run["difference"] == math.inf else f"{run['difference']:.1e} apart"
        print(f"DIFFERS: {run['directory']}: its loss curve is not that of {runs[0]['directory']} ({steps}; allowed is {tolerance:g})")
    for run in runs:
        for line in run["wrong"]:
            print(f"DIFFERS: {run['directory']}: {line}")
    if bad or any(run["wrong"] for run in runs):
        return 1
    if len(runs) > 1:
        worst = max(run["difference"] for run in runs[1:])
        print(f"Over {len(runs[0]['losses'])} steps the loss curves differ by at most {worst:.1e} of the loss from that of the first row; allowed is {tolerance:g}.")
    print("= : equal to the closed form, to the byte; the closed form of each scheme stands in its header.")
    return 0


def main():
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="compare", description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: stop(f"{message}; --help says more")
    parser.add_argument("runs", nargs="+", metavar="DIR", help="run directory (train_gpt --out DIR); the first is the reference")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="X", help="largest difference of a loss curve, of the loss or of 1 [1e-3]")
    args = parser.parse_args()
    runs = [read_run(directory) for directory in args.runs]
    for run in runs:
        run["difference"] = curve_difference(run["losses"], runs[0]["losses"])
    print_table(runs)
    sys.exit(print_verdict(runs, args.tolerance))


if __name__ == "__main__":
    main()

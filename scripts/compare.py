#!/usr/bin/env python3
"""compare.py - one table from run directories: do the curves coincide, and what did each run cost?

    DIR/config.json     who it was: scheme, ranks
    DIR/metrics.jsonl   losses, tokens/s (median of the steps), memory (largest)
    DIR/comm.json       bytes that rank 0 sent in a step, by kind, and their closed form

The first DIR is the reference. Exit code 1 if a curve leaves the reference's by more than --tolerance (of the loss;
of 1 where the loss is below: what is learned by heart has nothing left to be relative to), or bytes differ from
their closed form. A run that was resumed into a directory of its own is held against the same steps of the
reference. Standard library only.

Where a curve leaves, it is said how. Rounding differs from scheme to scheme and may be amplified by training: the
difference then grows from the size of a rounding by a factor that is much the same in every step. A scheme that
computes something else jumps.
"""

import argparse
import json
import math
import os
import statistics
import sys

# what rounding alone may move a loss by: some roundings of a mean
ROUNDING = {"fp64": 1e-13, "fp32": 1e-6, "bf16": 1e-3}
JUMP = 30  # a step that multiplies the largest difference so far by more is no amplification

KINDS = ["activation", "parameter", "gradient", "control"]
MARK = {True: "=", False: "!"}


def stop(message):
    sys.exit(f"{os.path.splitext(os.path.basename(sys.argv[0]))[0]}: error: {message}")


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
        "precision": config.get("precision", "fp32"),
        "first": rows[0]["step"],
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


def step_difference(x, y):
    """Of two losses, of the loss or of 1, whichever is more; infinity if they cannot be compared."""
    if x is None or y is None:  # a step in which no target counted
        return 0.0 if x is y else math.inf
    difference = abs(x - y) / max(abs(y), 1.0)
    return difference if math.isfinite(difference) else math.inf


def curve_differences(run, reference):
    """Step by step; None if the steps are not the same: all of them, or the last ones for a
    run that went on elsewhere."""
    skip = run["first"] - reference["first"]
    if skip < 0 or skip + len(run["losses"]) != len(reference["losses"]):
        return None
    return [step_difference(x, y) for x, y in zip(run["losses"], reference["losses"][skip:])]


def how_it_leaves(run, tolerance):
    """Where a curve leaves that of the reference, and how it came to that; in words."""
    apart, bound = run["apart"], ROUNDING.get(run["precision"], 1e-6)
    leaves = next(i for i, d in enumerate(apart) if not d <= tolerance)
    begins = next(i for i, d in enumerate(apart) if not d <= min(bound, tolerance))
    step = run["first"] + leaves + 1
    if leaves == 0:
        return f"from its first step on, by {apart[0]:.1e}: other weights, other data, or a wrong forward"
    largest, jump, at = max(bound, *apart[:begins]) if begins else bound, 0.0, 0
    for i in range(begins, leaves + 1):
        if apart[i] / largest > jump:
            jump, at = apart[i] / largest, i
        largest = max(largest, apart[i])
    if jump > JUMP:
        before = max(apart[:at])
        return (
            f"from step {step} on; it jumped at step {run['first'] + at + 1}, from {before:.1e} to {apart[at]:.1e}, "
            "as rounding does not: something else is computed"
        )
    return (
        f"from step {step} on; it grew from rounding's {bound:.0e} at step {run['first'] + begins + 1}, by at most "
        f"{jump:.1f} in a step: amplified by training, which a lower rate would not do"
    )


def print_table(runs):
    wide = max(len("scheme"), *(len(run["name"]) for run in runs))
    left = f"{'':{wide}s} {'':5s} {'train':>8s} {'val':>8s} {'largest':>9s} {'':>9s} {'memory':>8s} "
    print(left + "  bytes that rank 0 sends in a step")
    head = f"{'scheme':{wide}s} {'ranks':>5s} {'loss':>8s} {'loss':>8s} {'diff.':>9s} {'tokens/s':>9s} {'MB/rank':>8s} "
    print(head + "".join(f" {kind:>14s}" for kind in KINDS))
    for i, run in enumerate(runs):
        val = "-" if run["val"] is None else f"{run['val']:.4f}"
        difference = "-" if i == 0 else f"{run['difference']:.1e}"
        loss = next((x for x in reversed(run["losses"]) if x is not None), math.nan)
        line = f"{run['name']:{wide}s} {run['ranks']:5d} {loss:8.4f} {val:>8s} {difference:>9s} {run['speed']:9,.0f} "
        line += f"{run['memory'] / 1e6:8.1f} "
        for kind in KINDS:
            line += f" {run['sent'][kind]:>12,d} {MARK[run['sent'][kind] == run['expected'][kind]]}"
        print(line)
        if run["sent"] != run["expected"]:
            expected = "".join(f" {run['expected'][kind]:>12,d}  " for kind in KINDS)
            print(f"{'  closed form':{len(head)}s}" + expected.rstrip())


def print_verdict(runs, tolerance, brief):
    """What the table shows, in words; returns the exit code."""
    bad = [run for run in runs[1:] if not run["difference"] <= tolerance]
    for run in bad:
        steps = f"{run['difference']:.1e} apart"
        if run["apart"] is None: steps = f"{len(run['losses'])} steps, not {len(runs[0]['losses'])}"
        print(f"DIFFERS: {run['directory']}: its loss curve is not that of {runs[0]['directory']} ({steps}; allowed is "
              f"{tolerance:g})")
        if run["apart"]:
            print(f"         {how_it_leaves(run, tolerance)}")
    for run in runs:
        for line in run["wrong"]:
            print(f"DIFFERS: {run['directory']}: {line}")
    if bad or any(run["wrong"] for run in runs):
        return 1
    if len(runs) > 1:
        worst = max(run["difference"] for run in runs[1:])
        if brief:
            print(f"{len(runs[1]['losses'])} losses differ by at most {worst:.1e}; allowed is {tolerance:g}")
            return 0
        print(f"Over {len(runs[1]['losses'])} steps the loss curves differ by at most {worst:.1e} of the loss from "
              f"that of the first row; allowed is {tolerance:g}.")
    return 0


def main():
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="compare", description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False
    )
    parser.error = lambda message: stop(f"{message}; --help says more")
    parser.add_argument("runs", nargs="+", metavar="DIR",
                        help="run directory (train_gpt --out DIR); the first is the reference")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="X",
                        help="largest difference of a loss curve, of the loss or of 1 [1e-3]")
    parser.add_argument("--brief", action="store_true", help="no table: do the curves coincide?")
    args = parser.parse_args()
    runs = [read_run(directory) for directory in args.runs]
    for run in runs:
        run["apart"] = curve_differences(run, runs[0])
        run["difference"] = math.inf if run["apart"] is None else max(run["apart"])
    if not args.brief:
        print_table(runs)
    code = print_verdict(runs, args.tolerance, args.brief)
    if not args.brief and code == 0:
        print("= : equal to the closed form, to the byte; the closed form of each scheme stands in its header.")
    sys.exit(code)


if __name__ == "__main__":
    main()

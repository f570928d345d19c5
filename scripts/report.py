#!/usr/bin/env python3
"""report.py RUN... - one page from runs: report.html, report.json and report.csv.

    RUN   a run directory (train_gpt --out DIR), with what else lies in it:
              trace.json          --trace: time by class, memory over the step
              grads.safetensors   --dump-grads: each gradient tensor's distance from one rank's
          or a forecast (train_gpt_sim --json FILE)

The page holds all it needs: pictures are SVG, the numbers stand in it once more as JSON, nothing is loaded from a
network, no script runs. scripts/compare.sh and quickstart.sh call it. Pictures are drawn by svg.py and not by
matplotlib: the page follows light, dark and print by its style sheet, and the quickstart needs no more packages than
Python's own. Exit code 1 where a curve or a byte differs, as compare.py.
"""

import argparse
import array
import csv
import datetime
import json
import math
import os
import platform
import statistics
import struct
import subprocess
import sys

import compare
import svg
from compare import KINDS, stop
from svg import Axis, esc, plain, size_of, tokens

WAIT, REST = "waiting for communication", "host and gaps"
TRACED = 3  # the first steps, which --trace slows down
ONE = "one rank"


# ---- reading ---------------------------------------------------------------------------------------------------------


def steady(rows, key):
    """Median of a measure over the steps that were not traced, where there are such."""
    values = [row[key] for row in (rows[TRACED:] or rows) if row.get(key) is not None]
    return statistics.median(values) if values else None


def read_trace(path):
    """Rank 0's last traced step: milliseconds by class, and bytes in use over time."""
    try:
        with open(path, encoding="utf-8") as file:
            events = [e for e in json.load(file)["traceEvents"] if e["pid"] == 1]
    except (OSError, ValueError, KeyError) as error:
        stop(f"cannot read {path}: {error}")
    step = [e for e in events if e.get("cat") == "step"][-1]
    begin, end = step["ts"], step["ts"] + step["dur"]
    inside = [e for e in events if begin <= e.get("ts", -1) <= end]
    classes = {}
    for e in inside:
        if e["ph"] != "X" or e["tid"] != 1 or e["cat"] in ("step", "block"): continue
        name = WAIT if e["cat"] == "wait" else e["cat"]
        classes[name] = classes.get(name, 0) + e["dur"] / 1e3
    classes[REST] = max(step["dur"] / 1e3 - sum(classes.values()), 0)
    memory = [((e["ts"] - begin) / 1e3, e["args"]["bytes"]) for e in inside if e["ph"] == "C"]
    changes = [p for i, p in enumerate(memory) if i in (0, len(memory) - 1) or p[1] != memory[i - 1][1]]
    return classes, {"step_ms": step["dur"] / 1e3, "points": changes}


def read_training(directory):
    run = compare.read_run(directory)
    config, rows = compare.read_json(directory, "config.json"), compare.read_metrics(directory)
    flags, trace = config["flags"], os.path.join(directory, "trace.json")
    run.update(
        name=compare.mesh_name({**config, "world": 2} if config["world"] == 1 else config), simulated=False,
        scheme=flags["sp"], seq_len=flags["seq-len"], batch=flags["batch"], dp=config["dp"], ring=config["ring"],
        head=config["head"], steps=len(rows), flags=flags, model=config["model"], threads=config["threads"],
        step_ms=steady(rows, "step_ms"), tokens_per_s=steady(rows, "tokens_per_s"), mfu=steady(rows, "mfu_causal"),
        exposed_ms=steady(rows, "comm_exposed_ms"), by_category=config.get("memory", {}),
        available=config.get("memory_available"))
    if os.path.exists(trace): run["classes"], run["memory_over_time"] = read_trace(trace)
    return run


def read_forecast(path):
    """What the simulator says of one run."""
    f = compare.read_json(os.path.dirname(path), os.path.basename(path))
    if "comm" not in f: stop(f"{path} is no forecast; train_gpt_sim --json FILE without --plan or --max-seq writes one")
    sent, expected = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for entry in f["comm"]:
        sent[entry["what"]] += entry["bytes"]
        expected[entry["what"]] += entry["expected_bytes"]
    classes = {name: op["ms"] for name, op in f["computing"].items() if op["calls"]}
    classes[WAIT], classes[REST] = f["comm_exposed_ms"], f["host_ms"]
    config = {"flags": {"sp": f["sp"]}, "world": max(f["world"], 2), "ring": f["ring"], "dp": f["dp"]}
    run = {
        "directory": path, "name": compare.mesh_name(config), "ranks": f["world"], "simulated": True,
        "precision": f["dtype"], "losses": [], "val": None, "first": 0, "steps": 0, "scheme": f["sp"],
        "seq_len": f["seq_len"], "batch": round(f["tokens_per_s"] * f["step_ms"] / 1e3 / f["seq_len"]),
        "dp": f["dp"], "ring": f["ring"], "head": f["head"], "flags": {"cluster": f["cluster"]}, "model": {},
        "threads": None, "step_ms": f["step_ms"], "tokens_per_s": f["tokens_per_s"], "mfu": f["mfu_causal"],
        "exposed_ms": f["comm_exposed_ms"], "memory": f["mem_bytes"], "by_category": f["memory"],
        "available": f["mem_available"], "sent": sent, "expected": expected, "classes": classes,
        "wrong": [f"{k}: {sent[k]} bytes, closed form {expected[k]}" for k in KINDS if sent[k] != expected[k]]}
    trace = path[: -len(".json")] + ".trace"
    if os.path.exists(trace): run["memory_over_time"] = read_trace(trace)[1]
    return run


def tensors(path):
    """Name -> values, of a safetensors file of fp32 or fp64."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        base = file.tell()
        for name, t in header.items():
            if name == "__metadata__": continue
            begin, end = t["data_offsets"]
            file.seek(base + begin)
            values = array.array({"F32": "f", "F64": "d"}[t["dtype"]])
            values.frombytes(file.read(end - begin))
            yield name, values


def gradient_distances(run, reference):
    """max|a - b| / max|b| of every tensor; None where one of the runs has left no gradients."""
    paths = [os.path.join(r["directory"], "grads.safetensors") for r in (run, reference)]
    if run["simulated"] or not all(os.path.exists(p) for p in paths): return None
    try:
        mine, theirs = (dict(tensors(p)) for p in paths)
    except (OSError, ValueError, KeyError, struct.error) as error:
        stop(f"cannot read {paths[0]} or {paths[1]}: {error}")
    if mine.keys() != theirs.keys(): stop(f"{paths[0]} and {paths[1]} hold other tensors: not the same model")
    out = {}
    for name, b in theirs.items():
        a = mine[name]
        if len(a) != len(b): stop(f"{paths[0]}: {name} has {len(a)} elements, in {paths[1]} {len(b)}")
        largest = max(map(abs, b), default=0.0)
        apart = max((abs(x - y) for x, y in zip(a, b)), default=0.0)
        apart = math.inf if any(x != x for x in a) else apart
        out[name] = apart / largest if largest else (0.0 if apart == 0 else math.inf)
    return out


def name_differences(runs):
    """Runs of one scheme, mesh and length differ by a flag: their names say which."""
    places = {"sp", "dp", "ring", "seq-len", "out", "trace", "dump-grads", "threads", "save-every"}
    for run in runs: run["plain_name"] = run["name"]
    for run in runs:
        same = [r for r in runs if (r["plain_name"], r["ranks"], r["seq_len"]) ==
                (run["plain_name"], run["ranks"], run["seq_len"])]
        keys = sorted({k for r in same for k in r["flags"] if k not in places and
                       any(other["flags"].get(k) != r["flags"].get(k) for other in same)})
        run["name"] += "".join(f" {k} {run['flags'].get(k)}" for k in keys)


def judge(runs):
    """Each run against the one of fewest ranks at its length: curve and gradients."""
    for run in runs:
        same = [r for r in runs if r["seq_len"] == run["seq_len"] and r["losses"]]
        reference = min(same, key=lambda r: r["ranks"], default=run)
        run["reference"] = run["difference"] = run["apart"] = run["gradients"] = None
        if reference is run or not run["losses"]: continue
        run["reference"] = reference["directory"]
        run["apart"] = compare.curve_differences(run, reference)
        run["difference"] = math.inf if run["apart"] is None else max(run["apart"])
        run["gradients"] = gradient_distances(run, reference)


# ---- crossovers ------------------------------------------------------------------------------------------------------


def measured_crossovers(curves):
    """Where the lowest of {name: {x: y}} changes hands, between two x, on logarithmic axes: [(x, y, from, to)]."""
    xs, out = sorted({x for c in curves.values() for x in c}), []
    for x0, x1 in zip(xs, xs[1:]):
        both = [n for n in curves if x0 in curves[n] and x1 in curves[n]]
        if len(both) < 2: continue
        a, b = (min(both, key=lambda n, x=x: curves[n][x]) for x in (x0, x1))
        if a == b: continue
        below, above = (math.log(curves[b][x] / curves[a][x]) for x in (x0, x1))
        share = below / (below - above) if below != above else 0.5
        x = x0 * (x1 / x0) ** share
        out.append((x, curves[a][x0] * (curves[a][x1] / curves[a][x0]) ** share, a, b))
    return out


def closed_crossovers(curves, most):
    """The same for bytes by the closed form, which is a + b L for each name, up to L = most: [(L, from, to)]."""
    lines = {}
    for name, c in curves.items():
        if len(c) < 2: return []
        x0, x1 = min(c), max(c)
        b = (c[x1] - c[x0]) / (x1 - x0)
        lines[name] = (c[x0] - b * x0, b)
    at = sorted({(a - c) / (d - b) for a, b in lines.values() for c, d in lines.values() if b < d and a > c})
    out, least = [], min(x for c in curves.values() for x in c)
    for x in at:
        if not least < x <= most: continue
        before, after = (min(lines, key=lambda n, v=v: lines[n][0] + lines[n][1] * v) for v in (x * 0.999, x * 1.001))
        if before != after: out.append((x, before, after))
    return out


# ---- pictures --------------------------------------------------------------------------------------------------------


class Page:
    """The runs, and what every picture asks of them."""

    def __init__(self, data):
        self.data, self.runs = data, data["runs"]
        self.many = [r for r in self.runs if r["ranks"] > 1] or self.runs
        self.names = list(dict.fromkeys(r["name"] for r in self.many))
        self.lengths = sorted({r["seq_len"] for r in self.many})
        self.ranks = sorted({r["ranks"] for r in self.many})
        self.top = (self.ranks[-1], self.lengths[-1])
        self.figures = []

    def colour(self, name): return self.names.index(name) if name in self.names else len(self.names)

    def at(self, ranks=None, length=None):
        return [r for r in self.many if ranks in (None, r["ranks"]) and length in (None, r["seq_len"])]

    def add(self, key, title, drawing, read, legend=(), note=""):
        self.figures.append((key, title, drawing, read, legend, note))

    def line_legend(self, names=None): return [("s", self.colour(n), n) for n in (names or self.names)]


def losses_of(run): return [(run["first"] + i + 1, x) for i, x in enumerate(run["losses"]) if x is not None]


def add_losses(page):
    lengths = page.lengths if len(page.lengths) <= 2 else [page.lengths[0], page.lengths[-1]]
    for length in lengths:
        runs = [r for r in page.runs if r["seq_len"] == length and len(losses_of(r)) > 1]
        if not runs: continue
        series = [(f"{r['name']}, {r['ranks']} ranks", page.colour(r["name"]), False,
                   [(s, x, "") for s, x in losses_of(r)], False) if r["ranks"] > 1 else
                  (ONE, svg.SERIES - 1, True, [(s, x, "") for s, x in losses_of(r)], False) for r in runs]
        values = [x for r in runs for _, x in losses_of(r)]
        steps = [s for r in runs for s, _ in losses_of(r)]
        page.add(f"loss-{length}", f"Loss, L {tokens(length)}",
                 svg.line_chart(series, Axis(steps, label="step", tight=True), Axis(values, label="loss"),
                                "loss by step"),
                 "One curve a run, over one another: where the schemes compute the same, you see a single line. What "
                 "still separates them is in the next picture.",
                 page.line_legend() + ([("s dashed", svg.SERIES - 1, ONE)] if any(r["ranks"] == 1 for r in runs)
                                       else []))
        add_apart(page, length, runs)


def add_apart(page, length, runs):
    apart = [r for r in runs if r["apart"]]
    if not apart: return
    series = [(f"{r['name']}, {r['ranks']} ranks", page.colour(r["name"]), r["ranks"] != page.ranks[-1],
               [(r["first"] + i + 1, d, plain(d)) for i, d in enumerate(r["apart"]) if math.isfinite(d)], False)
              for r in apart]
    values = [d for r in apart for d in r["apart"] if math.isfinite(d)]
    bound = compare.ROUNDING.get(apart[0]["precision"], 1e-6)
    page.add(f"apart-{length}", f"Difference from one rank, L {tokens(length)}",
             svg.line_chart(series, Axis([s for line in series for s, _, _ in line[3]], label="step",
                                 tight=True),
                            Axis([*values, bound], log=True, label="of the loss"), "difference of the loss by step",
                            level=(bound, f"rounding of {apart[0]['precision']}")),
             "How far each loss is from that of one rank at the same step, as a share of the loss, on a log axis. "
             "Rounding alone stays near the line and grows slowly; a scheme that computed something else would jump.",
             page.line_legend([n for n in page.names if any(r["name"] == n for r in apart)]),
             "Solid: on the most ranks; dashed: on fewer." if len(page.ranks) > 1 else "")


def add_gradients(page):
    runs = [r for r in page.at(length=page.lengths[0]) if r["gradients"]]
    if not runs: return
    rows, worst = [], []
    for r in runs:
        g = r["gradients"]
        name = max(g, key=g.get)
        rows.append((f"{r['name']} {r['ranks']}", page.colour(r["name"]),
                     [(d, f"{n}: {plain(d)}") for n, d in g.items() if math.isfinite(d)]))
        worst.append(f"{r['name']} on {r['ranks']} ranks: {name}, {plain(g[name])}")
    axis = Axis([d for _, _, dots in rows for d, _ in dots], log=True, label="max |a - b| / max |b| of a tensor")
    page.add("gradients", f"Gradients of the first step, L {tokens(page.lengths[0])}",
             svg.strip_chart(rows, axis, "distance of every gradient tensor from one rank's"),
             "A dot is one tensor: its largest difference from one rank's gradient, as a share of that gradient's "
             "largest element. A tensor that a scheme forgot to sum, or summed twice, would stand alone near 1.",
             note="Worst: " + "; ".join(worst) + ".")


def curves_of(page, value, against, **fixed):
    """{name: {x: value}}, of the runs with that length or those ranks."""
    out = {}
    for r in page.at(**fixed):
        if r[value] is not None: out.setdefault(r["name"], {})[r[against]] = r[value]
    return out


def line_figure(page, key, title, curves, x_label, y_label, read, crossings=(), uprights=(), show=plain, note=""):
    xs = sorted({x for c in curves.values() for x in c})
    x = Axis(xs, log=True, label=x_label, at=xs, show=tokens)
    y = Axis([v for c in curves.values() for v in c.values()], log=True, label=y_label, show=show)
    series = [(n, page.colour(n), False, [(v, c[v], f"{tokens(v)}: {show(c[v])}") for v in sorted(c)], True)
              for n, c in curves.items()]
    inside = [u for u in uprights if x.lo < u[0] < x.hi]
    page.add(key, title, svg.line_chart(series, x, y, title, uprights=inside, circles=crossings), read,
             page.line_legend(list(curves)), note)


def order_text(crossings, curves, what):
    """Who is best until where, in words."""
    xs = sorted({x for c in curves.values() for x in c})
    first = crossings[0][-2] if crossings else min(curves, key=lambda n: curves[n].get(xs[0], math.inf))
    text = f"{what}: {first}"
    for c in crossings: text += f" up to {c[0]:,.0f}, then {c[-1]}"
    return text + "."


def add_speed(page):
    ranks, length = page.top
    if len(page.lengths) > 1:
        curves = curves_of(page, "step_ms", "seq_len", ranks=ranks)
        bytes_ = {r["name"]: {} for r in page.at(ranks=ranks)}
        for r in page.at(ranks=ranks): bytes_[r["name"]][r["seq_len"]] = sum(r["expected"].values())
        found = measured_crossovers(curves)
        closed = closed_crossovers(bytes_, 1 << 24) if ranks > 1 else []
        page.data["crossovers"] = {
            "ranks": ranks, "step_time": [{"seq_len": x, "from": a, "to": b} for x, _, a, b in found],
            "closed_form_bytes": [{"seq_len": x, "from": a, "to": b} for x, a, b in closed]}
        uprights = [(x, f"{b} sends least", True) for x, a, b in closed]
        circles = [(x, y, f"{a} before, {b} after {x:,.0f}") for x, y, a, b in found]
        note = order_text(found, curves, "Fastest, measured" if not page.runs[0]["simulated"] else "Fastest") + " "
        note += order_text(closed, bytes_, "Fewest bytes, closed form")
        beyond = [f"{r['name']} at {tokens(r['seq_len'])}" for r in page.at(ranks=ranks)
                  if r["available"] and r["memory"] > r["available"]]
        if beyond: note += " Does not fit into memory, drawn all the same: " + ", ".join(beyond) + "."
        line_figure(page, "step-length", f"Step time against L, {ranks} ranks", curves, "L, tokens of a sequence", "ms",
                    "The lower, the faster; a circle marks where another scheme takes the lead. The dashed vertical "
                    "line is the closed form's crossover, where another scheme sends the fewest bytes: on a slow "
                    "network the two meet.", circles, uprights, note=note)
        line_figure(page, "rate-length", f"Tokens a second against L, {ranks} ranks",
                    curves_of(page, "tokens_per_s", "seq_len", ranks=ranks), "L, tokens of a sequence", "tokens/s",
                    "The higher, the better. Attention's work a token grows with L and pulls the rate down; short "
                    "sequences leave little work to hide communication behind.")
        line_figure(page, "bytes-length", f"Bytes against L, {ranks} ranks", bytes_, "L, tokens of a sequence",
                    "sent by rank 0 a step",
                    "What the closed form says a rank sends in a step; every run's ledger is held against it below. "
                    "Lines that rise move activations, flat ones move weights.", (),
                    [(x, f"{b} sends least", True) for x, a, b in closed], size_of)
    curves = curves_of(page, "tokens_per_s", "ranks", length=length)
    for r in page.runs:
        if r["ranks"] == 1 and r["seq_len"] == length:
            for c in curves.values(): c[1] = r["tokens_per_s"]
    if len({n for c in curves.values() for n in c}) > 1 and len(page.lengths) + len(page.ranks) > 2:
        line_figure(page, "rate-ranks", f"Tokens a second against N, L {tokens(length)}", curves, "N, ranks",
                    "tokens/s", "How far more ranks help at this length; twice the ranks would at best be twice the "
                    "height." + ("" if page.runs[0]["simulated"] else
                                 " Ranks that share this machine's cores cannot be faster than one: here the picture "
                                 "shows what their communication costs."))


def add_classes(page):
    ranks, length = page.top
    runs = [r for r in page.runs if r["seq_len"] == length and r["ranks"] in (1, ranks) and r.get("classes")]
    if not runs: return
    parts = list(dict.fromkeys([c for r in runs for c in r["classes"] if c not in (WAIT, REST)])) + [WAIT, REST]
    rows = [(r["name"] if r["ranks"] > 1 else ONE, r["classes"]) for r in runs]
    axis = Axis([0.0] + [sum(c.values()) for _, c in rows], zero=True, label="ms")
    page.add("classes", f"Where a step's time goes, L {tokens(length)}, {ranks} ranks",
             svg.bar_chart(rows, parts, axis, "time of a step by class"),
             f"One step of rank 0: its operations by class, and how long it stood and waited for bytes. Only that "
             f"part, '{WAIT}', is communication that computing does not hide.",
             [("p", i, p) for i, p in enumerate(parts)],
             "" if runs[0]["simulated"] else "The last of the traced steps, with its marks: longer than the others.")


def add_bytes(page):
    ranks, length = page.top
    runs = [r for r in page.at(ranks, length) if r["ranks"] > 1]
    if not runs: return
    rows = [(r["name"], r["sent"]) for r in runs]
    axis = Axis([0.0] + [float(sum(r["expected"].values())) for r in runs] +
                [float(sum(r["sent"].values())) for r in runs], zero=True, label="sent by rank 0 in a step",
                show=size_of)
    right = all(not r["wrong"] for r in page.runs)
    page.add("bytes", f"Bytes by kind, L {tokens(length)}, {ranks} ranks",
             svg.bar_chart(rows, KINDS, axis, "bytes by kind", marks=[sum(r["expected"].values()) for r in runs]),
             "Colours are what was counted at every call, the upright stroke is the closed form of the scheme's "
             "header. The two must agree to the byte, kind by kind.", [("p", i, k) for i, k in enumerate(KINDS)],
             "Every run: equal to the byte." if right else
             "NOT EQUAL: " + "; ".join(f"{r['name']}: {w}" for r in page.runs for w in r["wrong"]))


def add_memory(page):
    ranks, length = page.top
    runs = sorted((r for r in page.at(ranks=ranks) if r["by_category"]),
                  key=lambda r: (page.colour(r["name"]), r["seq_len"]))
    if runs:
        parts = [c for c in runs[0]["by_category"] if any(r["by_category"].get(c) for r in runs)]
        rows = [(f"{r['name']} {tokens(r['seq_len'])}", r["by_category"]) for r in runs]
        largest = max(sum(c.values()) for _, c in rows)
        line = min((r["available"] for r in runs if r["available"]), default=None)
        level = (line, size_of(line)) if line and line < 4 * largest else None
        axis = Axis([0.0, float(largest)] + ([float(line)] if level else []), zero=True, label="a rank", show=size_of)
        note = f"The device's line, {size_of(line)} a rank, lies beyond the picture." if line and not level else ""
        page.add("memory", f"Memory against L, {ranks} ranks",
                 svg.bar_chart(rows, parts, axis, "memory by category", level),
                 "All that a rank allocates, laid out before the first step, so it is exact. What grows from bar to "
                 "bar of a scheme grows with L; the line is what the device has.",
                 [("p", i, p) for i, p in enumerate(parts)], note)
    runs = [r for r in page.at(ranks, length) if r.get("memory_over_time")]
    if not runs: return
    series = []
    for r in runs:
        points, last, end = [], None, r["memory_over_time"]["step_ms"]
        for t, b in r["memory_over_time"]["points"]:
            if last is not None: points.append((100 * t / end, last, ""))
            points.append((100 * t / end, b, ""))
            last = b
        series.append((r["name"], page.colour(r["name"]), False, points, False))
    page.add("memory-time", f"Memory over one step, L {tokens(length)}, {ranks} ranks",
             svg.line_chart(series, Axis([0.0, 100.0], label="% of the step", tight=True),
                            Axis([0.0] + [float(p[1]) for s in series for p in s[3]], zero=True, label="in use",
                                 show=size_of), "memory in use over one step"),
             "What of the arena is in use as the step goes on: flat below are weights, gradients and optimizer. The "
             "peak decides what fits; where it stands says which part of the step to look at.",
             page.line_legend([r["name"] for r in runs]))


def add_ladder(page):
    rows = page.data["ladder"]
    if not rows: return
    bars = [(f"{r['scheme']} {r['ranks']}", {"L": float(r["seq_len"])}) for r in rows]
    axis = Axis([0.0] + [b["L"] for _, b in bars], zero=True, label="longest L, tokens", show=lambda v: f"{v:,.0f}")
    page.add("ladder", "The longest sequence", svg.bar_chart(bars, ["L"], axis, "longest sequence"),
             f"The longest sequence whose arena fits into {page.data['ladder_memory']}, for scheme and ranks. "
             "A scheme whose bar grows with the ranks shares what grows with L; one whose bar does not, repeats it.",
             note="; ".join(f"{r['scheme']} on {r['ranks']}: {r['seq_len']:,d}" for r in rows) + ".")


# ---- the page --------------------------------------------------------------------------------------------------------

STYLE = """
:root{color-scheme:light dark;--bg:#fdfdfc;--card:#fff;--ink:#1c1e21;--soft:#5d646d;--rule:#d9dce1;--good:#11703a;
--bad:#b3261e;--s0:#0b63b0;--s1:#c2410c;--s2:#0d8060;--s3:#a3218e;--s4:#8a6a00;--s5:#3d4fd1;--s6:#5b6770;--s7:#1c1e21;
--p0:#2f6fb0;--p1:#e08a2c;--p2:#3c9a76;--p3:#b75fa8;--p4:#c9b037;--p5:#6f7fd8;--p6:#c65546;--p7:#8b95a0;--p8:#bfc5cc}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1b1e24;--ink:#e8eaed;--soft:#a4abb5;
--rule:#343942;--good:#5fd08c;--bad:#ff8a80;--s0:#6db3f2;--s1:#ff9d6b;--s2:#4fd1a5;--s3:#ee8fdd;--s4:#e2c14b;
--s5:#9aa7ff;--s6:#a9b4bd;--s7:#e8eaed;--p0:#5b9bd9;--p1:#f0a85a;--p2:#5fc09a;--p3:#d68bc9;--p4:#dfca62;--p5:#97a4f0;
--p6:#e57d6f;--p7:#7d8792;--p8:#525a64}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:20px 16px 40px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}
h1{font-size:1.6em;line-height:1.2;margin:.2em 0}h2{font-size:1.15em;margin:1.8em 0 .5em}
.verdict{font-size:1.05em;border-left:4px solid var(--good);padding:.2em 0 .2em .8em;margin:1em 0}
.verdict.bad{border-color:var(--bad)}.soft{color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9em}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;color:var(--soft);vertical-align:bottom}th:first-child,td:first-child{text-align:left;
position:sticky;left:0;background:var(--bg)}td.bad{color:var(--bad)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:16px;align-items:start}
figure{margin:0;padding:12px;background:var(--card);border:1px solid var(--rule);border-radius:8px;
break-inside:avoid;min-width:0}
figure h3{margin:0 0 6px;font-size:1em}figcaption{font-size:.88em;margin-top:6px}
figcaption p{margin:.4em 0 0;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11.5px;fill:var(--soft)}svg text.name{fill:var(--ink)}svg text.note{font-size:10.5px;fill:var(--ink)}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.axis,.tick{stroke:var(--soft);fill:none}
.level,.upright{stroke:var(--ink);fill:none;stroke-width:1}.level{stroke-dasharray:2 3}.dashed{stroke-dasharray:5 4}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.crossing{fill:none;stroke:var(--ink);stroke-width:1.6}
.mark{stroke:var(--ink);stroke-width:2}.strip{fill-opacity:.75;stroke:none!important}
ul.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:6px 0 0;padding:0;font-size:.85em}
ul.legend svg{display:inline-block;width:22px;height:10px;vertical-align:middle;margin-right:5px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;font-size:.9em}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}code{font-size:.92em}
@media (max-width:480px){body{padding:12px 10px}figure{padding:9px}svg text{font-size:12.5px}}
@media print{body{max-width:none;font-size:10.5pt}.figures{grid-template-columns:1fr 1fr}.wide{overflow:visible}
table{font-size:7.5pt}th,td{padding:2px 4px}}
"""
STYLE += "".join(f".line.s{i}{{stroke:var(--s{i})}}.dot.s{i},.strip.s{i}{{fill:var(--s{i})}}"
                 for i in range(svg.SERIES))
STYLE += "".join(f".p{i}{{fill:var(--p{i})}}" for i in range(svg.PARTS))

# of a run: heading, key of the JSON, divisor, format; the text of a cell times the divisor is the number, rounded
COLUMNS = [
    ("L", "seq_len", 1, ",d"), ("loss", "loss", 1, ".4f"), ("val loss", "val", 1, ".4f"),
    ("largest difference", "difference", 1, ".1e"), ("worst gradient", "worst_gradient", 1, ".1e"),
    ("ms a step", "step_ms", 1, ",.1f"), ("tokens/s", "tokens_per_s", 1, ",.0f"), ("MFU %", "mfu", 0.01, ".1f"),
    ("exposed ms", "exposed_ms", 1, ",.1f"), ("memory MB", "memory", 1e6, ",.1f"),
    ("sent MB", "sent_bytes", 1e6, ",.3f")]


def table(page):
    columns = [c for c in COLUMNS if any(r.get(c[1]) is not None for r in page.runs)]
    out = ["<table><thead><tr><th>scheme</th><th>ranks</th>"]
    out += [f"<th>{esc(head)}</th>" for head, *_ in columns] + ["<th>closed form</th></tr></thead><tbody>"]
    for i, r in enumerate(page.runs):
        out.append(f"<tr><td>{esc(r['name'] if r['ranks'] > 1 else ONE)}</td>"
                   f'<td data-path="runs.{i}.ranks" data-unit="1">{r["ranks"]}</td>')
        for _, key, unit, form in columns:
            value = r.get(key)
            shown = "-" if value is None else format(value if unit == 1 else value / unit, form)
            out.append(f'<td data-path="runs.{i}.{key}" data-unit="{unit}">{shown}</td>')
        out.append(f'<td{" class=bad" if r["wrong"] else ""}>{"differs" if r["wrong"] else "="}</td></tr>')
    return "".join(out) + "</tbody></table>"


def swatch(kind, index, label):
    if kind == "p": drawing = f'<rect class="p{index % svg.PARTS}" width="22" height="10" rx="2"/>'
    else:
        dashed = " dashed" if "dashed" in kind else ""
        drawing = f'<path class="line s{index % svg.SERIES}{dashed}" d="M0,5h22"/>'
        if not dashed:
            drawing += (f'<path class="dot s{index % svg.SERIES}" transform="translate(11,5) scale(.9)" '
                        f'd="{svg.SHAPES[index % len(svg.SHAPES)]}"/>')
    return f'<li><svg viewBox="0 0 22 10" aria-hidden="true">{drawing}</svg>{esc(label)}</li>'


def figure(key, title, drawing, read, legend, note):
    out = [f'<figure id="{esc(key)}"><h3>{esc(title)}</h3>{drawing}']
    if legend: out.append('<ul class="legend">' + "".join(swatch(*entry) for entry in legend) + "</ul>")
    out.append(f'<figcaption><p><b>How to read this.</b> {esc(read)}</p>')
    if note: out.append(f'<p class="soft">{esc(note)}</p>')
    return "".join(out) + "</figcaption></figure>"


def verdict(data):
    """In a few sentences; and is all as it should be?"""
    runs, bad = data["runs"], []
    judged = [r for r in runs if r["reference"]]
    for r in judged:
        if not r["difference"] <= data["tolerance"]:
            bad.append(f"{r['name']} on {r['ranks']} ranks, L {r['seq_len']}: the loss leaves that of {r['reference']} "
                       + (compare.how_it_leaves(r, data["tolerance"]) if r["apart"] else "(other steps)"))
    bad += [f"{r['name']} on {r['ranks']} ranks, L {r['seq_len']}: {w}" for r in runs for w in r["wrong"]]
    text = ""
    if judged and not bad:
        worst = max(judged, key=lambda r: r["difference"])
        text = (f"{len(judged)} runs on several ranks follow the loss of one rank to {worst['difference']:.1e} of it "
                f"(allowed: {data['tolerance']:g}). ")
    if runs[0]["simulated"]: text += f"Simulated on {runs[0]['flags']['cluster']}: nothing was trained. "
    if not bad: text += "Every byte that was sent equals its closed form."
    return text if not bad else "DIFFERS: " + "; ".join(bad), not bad


def facts(data):
    rows = [("made", data["made"]), ("commit", data["commit"]), ("machine", data["machine"])]
    if data["command"]: rows.append(("command", data["command"]))
    model = next((r["model"] for r in data["runs"] if r["model"]), None)
    if model: rows.append(("model", ", ".join(f"{k} {v}" for k, v in model.items())))
    if data["seeds"]: rows.append(("seeds", ", ".join(map(str, data["seeds"]))))
    common = data["flags"]
    if common: rows.append(("flags of all runs", " ".join(f"--{k} {v}" for k, v in common.items()
                                                           if v not in (0, ""))))
    return "<dl>" + "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in rows) + "</dl>"


def whole_page(data):
    page = Page(data)
    for add in (add_losses, add_gradients, add_speed, add_classes, add_bytes, add_memory, add_ladder): add(page)
    text, good = verdict(data)
    data["verdict"] = text
    out = ['<!doctype html><html lang="en"><head><meta charset="utf-8">',
           '<meta name="viewport" content="width=device-width,initial-scale=1">',
           f"<title>{esc(data['title'])}</title><style>{STYLE}</style></head><body>",
           f"<h1>{esc(data['title'])}</h1>",
           f'<p class="verdict{"" if good else " bad"}">{esc(text)}</p>',
           '<h2>Pictures</h2><div class="figures">' + "".join(figure(*f) for f in page.figures) + "</div>",
           '<h2>Numbers</h2><div class="wide">', table(page), "</div>"]
    if data["refused"]:
        out.append("<h2>What did not run</h2><ul>" + "".join(
            f"<li>{esc(r['scheme'])} on {esc(r['ranks'])} ranks, L {esc(r['seq_len'])}: {esc(r['why'])}</li>"
            for r in data["refused"]) + "</ul>")
    out.append("<h2>The runs</h2>" + facts(data))
    out.append('<script type="application/json" id="report">' + to_json(data, None).replace("<", "\\u003c") +
               "</script></body></html>\n")
    return "".join(out), good


def finite(value):
    """JSON knows no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value): return None
    if isinstance(value, dict): return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)): return [finite(v) for v in value]
    return value


def to_json(data, indent=1): return json.dumps(finite(data), indent=indent, allow_nan=False)


def output_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False,
                              cwd=os.path.dirname(os.path.abspath(__file__)))
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine():
    cpu = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), cpu)
    except OSError:
        pass
    gpus = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    text = f"{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"
    return text + (f", {len(gpus)} x {gpus[0]}" if gpus else "")


def commit():
    where = ["git", "-c", f"safe.directory={os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}"]
    name = output_of(*where, "rev-parse", "--short=12", "HEAD")
    if not name: return "not known: no git here"
    return name + (", with changes" if output_of(*where, "status", "--porcelain", "--untracked-files=no") else "")


def collect(args):
    runs = [read_training(r) if os.path.isdir(r) else read_forecast(r) for r in args.runs]
    name_differences(runs)
    judge(runs)
    for r in runs:
        r["loss"] = next((x for x in reversed(r["losses"]) if x is not None), None)
        r["sent_bytes"] = sum(r["sent"].values())
        r["worst_gradient"] = max(r["gradients"].values()) if r["gradients"] else None
        for key in ("speed", "plain_name"): r.pop(key, None)
    flags = dict(runs[0]["flags"])
    for r in runs: flags = {k: v for k, v in flags.items() if r["flags"].get(k) == v}
    data = {
        "title": args.title, "made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "commit": commit(), "machine": machine(), "command": args.command, "tolerance": args.tolerance,
        "seeds": sorted({r["flags"]["seed"] for r in runs if "seed" in r["flags"]}), "flags": flags,
        "ladder": [], "ladder_memory": args.ladder_memory, "refused": [], "crossovers": None, "runs": runs}
    for path in args.ladder:
        found = compare.read_json(os.path.dirname(path), os.path.basename(path))
        data["ladder"] += [{"scheme": r["sp"], "ranks": r.get("ranks") or r["dp"] * r["ring"] * r["head"],
                            "seq_len": r["seq_len"]}
                           for r in found["longest"] if r["seq_len"] > 0]
    if args.refused:
        with open(args.refused, encoding="utf-8") as file:
            data["refused"] = [dict(zip(("scheme", "ranks", "seq_len", "why"), line.rstrip("\n").split("\t", 3)))
                               for line in file]
    return data


def write(path, content):
    """Whole or not at all: a browser may be looking."""
    try:
        with open(path + ".tmp", "w", encoding="utf-8", newline="") as file: file.write(content)
        os.replace(path + ".tmp", path)
    except OSError as error:
        stop(f"cannot write {path}: {error.strerror}")


def csv_text(data):
    import io
    keys = ["name", "scheme", "ranks", "dp", "ring", "head", "seq_len", "batch", "steps", "precision", "loss", "val",
            "difference", "worst_gradient", "step_ms", "tokens_per_s", "mfu", "exposed_ms", "memory", "sent_bytes"]
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(keys + [f"sent_{k}" for k in KINDS] + [f"expected_{k}" for k in KINDS])
    for r in data["runs"]:
        row = [finite(r.get(k)) for k in keys] + [r["sent"][k] for k in KINDS] + [r["expected"][k] for k in KINDS]
        out.writerow(["" if v is None else v for v in row])
    return file.getvalue()


def main():
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="report", description=about, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message}; --help says more")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory, or a forecast's JSON file")
    add("--out", default=".", metavar="DIR", help="where the three files go [.]")
    add("--title", default="Odysseus: schemes compared", metavar="TEXT")
    add("--command", default="", metavar="TEXT", help="what was called, for the page")
    add("--tolerance", type=float, default=1e-3, metavar="X", help="largest difference of a loss curve [1e-3]")
    add("--ladder", action="append", default=[], metavar="FILE", help="longest sequences: JSON of --max-seq")
    add("--ladder-memory", default="a device", metavar="TEXT", help="... and what they fit into")
    add("--refused", metavar="FILE", help="what did not run: scheme, ranks, L and reason a line, with tabs between")
    args = parser.parse_args()
    data = collect(args)
    page, good = whole_page(data)
    if not os.path.isdir(args.out): stop(f"--out {args.out} is no directory")
    write(os.path.join(args.out, "report.html"), page)
    write(os.path.join(args.out, "report.json"), to_json(data) + "\n")
    write(os.path.join(args.out, "report.csv"), csv_text(data))
    print(data["verdict"])
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

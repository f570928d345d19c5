#!/usr/bin/env python3
"""watch.py RUN... - look at running runs: a line each, rewritten as they go on, with its loss as a sparkline; or PNG.

    python3 scripts/watch.py runs/a runs/b              until all have ended, or Ctrl-C
    python3 scripts/watch.py --once runs/a              a line each, and done; also where the output is piped
    python3 scripts/watch.py --png loss.png runs/a      a picture; needs matplotlib (Debian: python3-matplotlib)
"""

import argparse
import math
import shutil
import statistics
import sys
import time

from tail import Tail, stop

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(losses, width):
    """The losses in so many characters, each the mean of its share; low is good."""
    values = [x for x in losses if x is not None and math.isfinite(x)]
    if not values: return ""
    shares = [values[i * len(values) // width:(i + 1) * len(values) // width] for i in range(width)]
    means = [statistics.fmean(s) for s in shares if s]
    low, high = min(means), max(means)
    return "".join(BLOCKS[round((m - low) / (high - low) * (len(BLOCKS) - 1)) if high > low else 0] for m in means)


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def line_of(tail, rows, width):
    """What is known of a run, in one line."""
    if not rows: return f"{tail.name}: no step yet"
    row = rows[-1]
    loss, mfu = row["loss"], row.get("mfu_causal")
    parts = [f"step {row['step'] + 1}/{tail.steps}", "loss -" if loss is None else f"loss {loss:.4f}"]
    val = next((r["val_loss"] for r in reversed(rows) if r.get("val_loss") is not None), None)
    if val is not None: parts.append(f"val {val:.4f}")
    parts.append(f"{row['tokens_per_s']:,.0f} tok/s")
    if mfu is not None: parts.append(f"mfu {100 * mfu:.1f}%")
    left = tail.steps - row["step"] - 1
    parts.append(f"eta {clock(left * statistics.median(r['step_ms'] for r in rows[-20:]) / 1e3)}" if left else "ended")
    text = f"{tail.name}: " + " | ".join(parts)
    room = min(24, width - len(text) - 2)
    return f"{text}  {sparkline([r['loss'] for r in rows], room)}" if room >= 4 else text[:width]


def draw(runs, path):
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        stop("--png needs matplotlib: pip install matplotlib (Debian: python3-matplotlib)")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for tail, rows in runs:
        for axis, key in zip(axes, ("loss", "tokens_per_s")):
            points = [(r["step"] + 1, r[key]) for r in rows if r[key] is not None]
            axis.plot([p[0] for p in points], [p[1] for p in points], label=tail.name)
    for axis, title in zip(axes, ("loss", "tokens a second")):
        axis.set_xlabel("step")
        axis.set_title(title)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(path)


def main():
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="watch", description=about, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message}; --help says more")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory (train_gpt --out DIR)")
    parser.add_argument("--once", action="store_true", help="print and end")
    parser.add_argument("--png", metavar="FILE", help="draw loss and rate into this file, and end")
    args = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")
    tails = [Tail(run) for run in args.runs]
    if args.png: return draw([(t, t.rows()) for t in tails], args.png)
    live, shown = sys.stdout.isatty() and not args.once, False
    while True:
        width = shutil.get_terminal_size().columns if live else 160
        runs = [(t, t.rows()) for t in tails]
        if shown: print(f"\033[{len(tails)}A", end="")
        for t, rows in runs: print(("\033[K" if live else "") + line_of(t, rows, width - 1), flush=True)
        shown = True
        if not live or all(rows and rows[-1]["step"] >= t.steps - 1 for t, rows in runs): return 0
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env bash
# validate.sh - the simulator against the original's benchmark, Llama-2-7B on 8 A100-80GB: measured | forecast | ratio;
# then what this program would do on that machine. A few seconds, no GPU. Exit code 1 if a forecast is further off than
# it may be, or the order is another.
#
#   the original    cluster a100-80gb-nvlink-original, --overlap off, 7 steps: three constants fitted, the same for all
#                   cells. Ulysses, Odysseus (ZeRO3MLP), TP-SP within 15%; Ring within 30%; these three in the measured
#                   order, row by row
#   ours            cluster a100-80gb-nvlink, overlap on, fp32 master weights: what fits in 80 GB, how long it takes
set -euo pipefail
source "$(dirname "$0")/../../scripts/common.sh"
require_packages build cjson python
build train_gpt_sim || die "cannot build: $build_why"
exec python3 - <<'PY'
import itertools, json, os, subprocess, sys, tempfile

# seconds of 7 steps | GB allocated, as the original published them; None: out of memory
PUBLISHED = {
    "ulysses": {16: (6.62, 29.6), 32: (13.76, 41.8), 64: None, 96: None},
    "odysseus": {16: (7.10, 18.5), 32: (14.99, 31.4), 64: (38.11, 57.6), 96: None},
    "tpsp": {16: (6.86, 18.4), 32: (15.20, 31.4), 64: (39.43, 57.6), 96: None},
    "ring": {16: (10.37, 29.1), 32: (20.17, 40.8), 64: None, 96: None},
}
BOUNDS = {"ulysses": 0.15, "odysseus": 0.15, "tpsp": 0.15, "ring": 0.30}
ORDERED = ("ulysses", "odysseus", "tpsp")  # whose order the forecast must find; ring is far behind
NO_ROOM = ("tp", 96)  # the one cell of ours that may be too large
faults = []


def forecast(cluster, length, scheme, *flags):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "forecast.json")
        subprocess.run(["./train_gpt_sim", "--cluster", cluster, "--world", "8", "--model", "llama2-7b", "--seq-len",
                        str(1024 * length), "--batch", "1",
                        "--sp", scheme, "--json", out, *flags], check=True, stdout=subprocess.DEVNULL)
        with open(out, encoding="utf-8") as file:
            return json.load(file)


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * w for w in widths])
    for row in rows:
        print("| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths)) + " |")


def the_original():
    rows, seconds = [["L", "scheme", "measured s", "forecast s", "ratio"]], {}
    for length, scheme in itertools.product((16, 32, 64), PUBLISHED):
        seconds[length, scheme] = 7 * forecast("a100-80gb-nvlink-original", length, scheme, "--overlap",
                                               "off")["step_ms"] / 1e3
        cell = PUBLISHED[scheme][length]
        ratio = seconds[length, scheme] / cell[0] if cell else None
        off = ratio is not None and abs(ratio - 1) > BOUNDS[scheme]
        if off:
            faults.append(f"{scheme} at {length}K: forecast {ratio:.2f} of measured")
        rows.append([f"{length}K", scheme, f"{cell[0]:.2f}" if cell else "OOM", f"{seconds[length, scheme]:.2f}",
                     (f"{ratio:.2f}" if cell else "-") + " OFF" * off])
    table(rows)
    for length in (16, 32, 64):
        known = [s for s in ORDERED if PUBLISHED[s][length]]
        measured = sorted(known, key=lambda s: PUBLISHED[s][length][0])
        found = sorted(known, key=lambda s: seconds[length, s])
        print(f"order at {length}K: measured {' < '.join(measured)}; forecast {' < '.join(found)}")
        if measured != found:
            faults.append(f"the order at {length}K")


def ours():
    rows = [["L", "scheme", "s, 7 steps", "GB a rank", "tokens/s", "MFU", "exposed", "original s", "original GB"]]
    for length, scheme in itertools.product((16, 32, 64, 96), ("tp", *PUBLISHED)):
        f = forecast("a100-80gb-nvlink", length, scheme)
        cell = PUBLISHED.get(scheme, {}).get(length, "")
        rows.append([f"{length}K", scheme, f"{7 * f['step_ms'] / 1e3:.2f}", f"{f['mem_bytes'] / 1e9:.1f}"
                     + " no room" * (not f["fits"]),
                     f"{f['tokens_per_s']:,.0f}", f"{100 * f['mfu_causal']:.1f}%",
                     f"{100 * f['comm_exposed_ms'] / f['step_ms']:.1f}%",
                     *((f"{cell[0]:.2f}", f"{cell[1]:.1f}") if cell else ("-", "-") if cell == "" else ("OOM", "OOM"))])
        if f["fits"] == ((scheme, length) == NO_ROOM):
            faults.append(f"{scheme} at {length}K " + ("fits, the list of what does not is out of date" if f["fits"]
                                                       else "does not fit in 80 GB"))
    table(rows)


print("The original's benchmark: Llama-2-7B on 8 A100-80GB, 7 steps, zigzag ring\n")
the_original()
print("\nThis program on that machine, overlap on: forecasts with the attainable rates of the cluster file, not "
      "measurements\n")
ours()
print("\nGB (10^9 bytes): ours the arena with fp32 gradients, moments and master weights; the original's what PyTorch "
      "allocated, all in bf16.")
if faults:
    print("\nOFF: " + "; ".join(faults))
sys.exit(bool(faults))
PY

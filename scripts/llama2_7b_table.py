#!/usr/bin/env python3
"""llama2_7b_table.py OUT SCHEME... - the table of scripts/llama2_7b_8xa100.sh: to stdout and
OUT/table.md, and as OUT/table.json.

    OUT/settings                   NP=... STEPS=... MODEL=... of all cells
    OUT/cells/L-SCHEME/result      ok, or why the cell failed; without it the cell was interrupted and is left out
    OUT/cells/L-SCHEME/run/        the run directory: metrics.jsonl

Exit code 1 if a cell failed for another reason than memory. Standard library only.
"""

import json
import os
import re
import sys

WARM_UP = 3  # steps before the clock

# The original's published figures: seconds of steps 3..9, GB allocated and reserved; None: out of memory. Its
# optimizer and gradients are bf16 without an fp32 master copy, so its memory is smaller than ours where activations
# do not dominate. It has no tp.
ORIGINAL = {
    "ring": {16: (10.37, 29.1, 53.5), 32: (20.17, 40.8, 63.4), 64: None, 96: None},
    "ulysses": {16: (6.62, 29.6, 53.5), 32: (13.76, 41.8, 65.2), 64: None, 96: None},
    "odysseus": {16: (7.10, 18.5, 20.8), 32: (14.99, 31.4, 35.0), 64: (38.11, 57.6, 63.0), 96: None},
    "tpsp": {16: (6.86, 18.4, 21.2), 32: (15.20, 31.4, 35.3), 64: (39.43, 57.6, 65.3), 96: None},
}
NOTES = [
    "Seconds: all timed steps together. GB (10^9 bytes): ours the arena of rank 0, the original's allocated/reserved "
    "by PyTorch, its optimizer and gradients in bf16 without an fp32 copy of the weights. MFU: 6 FLOP a parameter and "
    "causal attention.",
    "Original: Llama-2-7B, 8 A100-80GB with NVLink, 7 timed steps; ring and ulysses with the whole model as one FSDP "
    "unit; odysseus is its ZeRO3MLP (with the MLP in FSDP: 6.74, 14.49, 52.93 s, OOM); it has no tp.",
]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def read_cell(directory, length, scheme):
    """A row, as a dictionary; None where the cell has not ended."""
    if not os.path.exists(os.path.join(directory, "result")):
        return None
    row = {"seq_len": length, "scheme": scheme, "result": read(os.path.join(directory, "result")).strip()}
    row["out_of_memory"] = re.search("out of memory", row["result"], re.I) is not None
    if row["result"] == "ok":
        steps = [json.loads(line) for line in read(os.path.join(directory, "run/metrics.jsonl")).splitlines()]
        timed = steps[WARM_UP:]
        seconds = sum(step["step_ms"] for step in timed) / 1e3
        row["timed_steps"] = len(timed)
        row["seconds"] = seconds
        row["tokens_per_s"] = sum(step["tokens"] for step in timed) / seconds
        known = all(step["mfu_causal"] is not None for step in timed)
        reached = sum(step["mfu_causal"] * step["step_ms"] for step in timed) if known else None
        row["mfu_causal"] = reached / 1e3 / seconds if known else None
        row["mem_bytes"] = max(step["mem_bytes"] for step in steps)
        row["comm_bytes"] = steps[-1]["comm_bytes"]
        row["loss"] = steps[-1]["loss"]
    return row


def read_cells(out, schemes):
    found = [re.fullmatch(r"(\d+)-(\w+)", name) for name in os.listdir(os.path.join(out, "cells"))]
    order = sorted((int(m[1]), schemes.index(m[2]), m[2]) for m in found if m and m[2] in schemes)
    cells = (read_cell(os.path.join(out, "cells", f"{length}-{scheme}"), length, scheme) for length, _, scheme in order)
    return [row for row in cells if row]


def original_of(row, comparable):
    """The original's seconds and GB as text: of the same model on as many GPUs only."""
    figures = ORIGINAL.get(row["scheme"], {})
    if not comparable or row["seq_len"] % 1024 or row["seq_len"] // 1024 not in figures:
        return "-", "-"
    cell = figures[row["seq_len"] // 1024]
    return (f"{cell[0]:.2f}", f"{cell[1]:.1f}/{cell[2]:.1f}") if cell else ("OOM", "OOM")


def table_lines(rows):
    """Markdown whose columns also line up as text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    def aligned(row):
        return (cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))

    lines = ["| " + " | ".join(aligned(row)) + " |" for row in rows]
    rule = ("-" * (w + 2) if i == 1 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    lines.insert(1, "|" + "|".join(rule) + "|")
    return lines


def main():
    out, schemes = sys.argv[1], sys.argv[2:]
    settings = read(os.path.join(out, "settings")).strip()
    values = dict(re.findall(r"(\w+)=(\S*)", settings))
    resized = re.search(r"--(arch|layers|dim|heads|kv-heads|ffn|vocab) ", settings)
    comparable = values["MODEL"] == "llama2-7b" and values["NP"] == "8" and not resized
    cells = read_cells(out, schemes)
    if not cells:
        sys.exit("llama2_7b_table: error: no cell has ended")
    table = [["L", "scheme", f"s, steps {WARM_UP}..{int(values['STEPS']) - 1}", "GB a rank", "tokens/s", "MFU",
              "original s", "original GB"]]
    for row in cells:
        row["original_seconds"], row["original_gb"] = original_of(row, comparable)
        length = f"{row['seq_len'] // 1024}K" if row["seq_len"] % 1024 == 0 else str(row["seq_len"])
        if row["result"] == "ok":
            mfu = "?" if row["mfu_causal"] is None else f"{100 * row['mfu_causal']:.1f}%"
            ours = [f"{row['seconds']:.2f}", f"{row['mem_bytes'] / 1e9:.2f}", f"{row['tokens_per_s']:,.0f}", mfu]
        else:
            ours = ["OOM" if row["out_of_memory"] else "failed", "-", "-", "-"]
        table.append([length, row["scheme"], *ours, row["original_seconds"], row["original_gb"]])
    failures = [f"- {line[0]} {line[1]}: {row['result']}" for line, row in zip(table[1:], cells)
                if row["result"] != "ok"]
    notes = list(NOTES)
    if not comparable:
        notes.append("The original's figures are left out: they are of llama2-7b on 8 ranks, this is another model or "
                     "number of ranks.")
    if re.search(r"DATA=$", settings):
        notes.append("Random tokens: the losses mean nothing.")
    text = "\n".join([settings, "", *table_lines(table), "", *(failures + [""] if failures else []), *notes]) + "\n"
    with open(os.path.join(out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(out, "table.json"), "w", encoding="utf-8") as file:
        json.dump({"settings": settings, "cells": cells}, file, indent=1)
    print(text, end="")
    print(f"also in {out}/table.md and table.json; run the script again to repeat what failed" if failures
          else f"also in {out}/table.md and table.json")
    sys.exit(any(row["result"] != "ok" and not row["out_of_memory"] for row in cells))


if __name__ == "__main__":
    main()

"""tail.py - metrics.jsonl of a run as it grows, for watch.py and export.py. Standard library only.

A line gains values after it was written (val_loss, save_ms), so the last one is handed out only once the next stands
behind it, or once nothing has been written for `settle` seconds. A run that goes on from a checkpoint cuts the file
back: it is read again, and steps that were handed out are not handed out twice.
"""

import json
import os
import sys
import time


def stop(message):
    sys.exit(f"{os.path.splitext(os.path.basename(sys.argv[0]))[0]}: error: {message}")


class Tail:
    """One run directory."""

    def __init__(self, directory):
        self.directory, self.path = directory, os.path.join(directory, "metrics.jsonl")
        self.name = os.path.basename(os.path.normpath(directory))
        self.given = -1  # the last step handed out
        try:
            with open(os.path.join(directory, "config.json"), encoding="utf-8") as file: self.config = json.load(file)
        except OSError as error:
            stop(f"cannot read {directory}/config.json: {error.strerror}; a run directory (train_gpt --out) has one")
        except ValueError as error:
            stop(f"{directory}/config.json is damaged: {error}")
        self.steps = self.config["flags"]["steps"]

    def rows(self):
        """All whole lines that are there now."""
        try:
            with open(self.path, encoding="utf-8") as file: lines = file.readlines()
        except OSError as error:
            stop(f"cannot read {self.path}: {error.strerror}")
        out = []
        for number, line in enumerate(lines, 1):
            if not line.endswith("}\n"): break  # being written
            try:
                out.append(json.loads(line))
            except ValueError as error:
                stop(f"{self.path}, line {number} is damaged: {error}")
        return out

    def new(self, settle):
        """Rows that are final and were not handed out before."""
        rows = self.rows()
        try:
            quiet = time.time() - os.path.getmtime(self.path) >= settle
        except OSError as error:
            stop(f"cannot read {self.path}: {error.strerror}")
        if rows and not quiet: rows = rows[:-1]
        rows = [row for row in rows if row["step"] > self.given]
        if rows: self.given = rows[-1]["step"]
        return rows

    def done(self): return self.given >= self.steps - 1

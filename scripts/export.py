#!/usr/bin/env python3
"""export.py RUN... --to tensorboard|wandb|trackio - a run's metrics.jsonl for other tools, through their own libraries.

    tensorboard   event files in RUN/tensorboard; tensorboard --logdir RUN shows them      pip install tensorboard
    wandb         a run of --project; offline, unless you are logged in                    pip install wandb
    trackio       a run of --project in trackio's local store                              pip install trackio

Every number of a line becomes a curve of its name at its step; null is left out. --follow goes on while the run does,
and ends with its last step.
"""

import argparse
import os
import time

from tail import Tail, stop


def tool_module(name):
    """The other tool's module, or the line that installs it."""
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return stop(f"--to {name.partition('.')[0]}: {error}: pip install {name.partition('.')[0]}")


def numbers(row): return {k: v for k, v in row.items() if k != "step" and isinstance(v, (int, float))}


class TensorBoard:
    def __init__(self, tail, args):
        events = tool_module("tensorboard.summary.writer.event_file_writer")
        self.event, self.summary = (tool_module(f"tensorboard.compat.proto.{n}_pb2") for n in ("event", "summary"))
        self.where = os.path.join(tail.directory, "tensorboard")
        if os.path.exists(self.where): stop(f"{self.where} is there already; remove it, or show it as it is")
        self.writer = events.EventFileWriter(self.where)

    def log(self, row):
        values = [self.summary.Summary.Value(tag=k, simple_value=v) for k, v in numbers(row).items()]
        self.writer.add_event(self.event.Event(wall_time=time.time(), step=row["step"],
                                               summary=self.summary.Summary(value=values)))

    def flush(self): self.writer.flush()

    def close(self):
        self.writer.close()
        return self.where


class Hosted:
    """wandb and trackio speak alike: init, log, finish."""

    def __init__(self, tail, args):
        self.tool = tool_module(args.to)
        more = {}
        if args.to == "wandb" and not os.environ.get("WANDB_MODE") and not self.tool.api.api_key:
            more["mode"] = "offline"
        self.run = self.tool.init(project=args.project, name=tail.name, config=tail.config, **more)

    def log(self, row): self.tool.log(numbers(row), step=row["step"])

    def flush(self): pass

    def close(self):
        self.tool.finish()
        return "its own store"


TOOLS = {"tensorboard": TensorBoard, "wandb": Hosted, "trackio": Hosted}


def export(tail, args):
    """All of one run, or with --follow until it ends."""
    tool, count = None, 0
    while True:
        rows = tail.new(args.settle if args.follow else 0)
        if rows and not tool: tool = TOOLS[args.to](tail, args)
        for row in rows: tool.log(row)
        count += len(rows)
        if tool: tool.flush()
        if not args.follow or tail.done(): break
        time.sleep(0.5)
    if not tool: stop(f"{tail.path} is empty: the run has made no step; --follow waits for it")
    print(f"{tail.directory}: {count} steps to {args.to}, {tool.close()}", flush=True)


def main():
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="export", description=about, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: stop(f"{message}; --help says more")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory (train_gpt --out DIR)")
    parser.add_argument("--to", required=True, choices=sorted(TOOLS))
    parser.add_argument("--follow", action="store_true", help="go on while the run does; one run")
    parser.add_argument("--settle", type=float, default=10, metavar="S",
                        help="with --follow: a line that is still the last one after so many seconds is final [10]")
    parser.add_argument("--project", default="odysseus", metavar="NAME", help="of wandb and trackio [odysseus]")
    args = parser.parse_args()
    if args.follow and len(args.runs) > 1: stop("--follow follows one run; start one export for each")
    for tail in [Tail(run) for run in args.runs]: export(tail, args)


if __name__ == "__main__":
    main()

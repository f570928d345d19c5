"""check_trace.py TRACE COMM_JSON RANKS STEPS LAYERS - is the timeline of --trace what a viewer takes, and
does it hold all of the steps?

Prints what is wrong, a line each; exit code 0: nothing. Times are compared in whole
nanoseconds, which the file holds exactly.
"""
import collections, json, os, sys

CLASSES = ["gemm", "attention", "norm", "pointwise", "embedding", "classifier", "optimizer"]
trace_path, ledger_path = sys.argv[1:3]
ranks, steps, layers = map(int, sys.argv[3:6])
events = json.load(open(trace_path))["traceEvents"]
ledger = json.load(open(ledger_path))
wrong = []


def check(condition, text):
    if not condition: wrong.append(text)


class Span:
    def __init__(self, e):
        self.name, self.category, self.args = e["name"], e["cat"], e["args"]
        self.rank, self.track = e["pid"] - 1, e["tid"]
        self.begin = round(1e3 * e["ts"])
        self.end = self.begin + round(1e3 * e["dur"])

    def holds(self, other): return self.begin <= other.begin and other.end <= self.end
    def length(self): return self.end - self.begin
    def key(self): return (self.name.replace("wait ", ""), *(self.args[k] for k in ("block", "phase", "what")))


def check_format():
    """Metadata names every process and every track; the rest are complete events, and the memory in use."""
    names = {(e["pid"], e["tid"], e["name"]): e["args"].get("name") for e in events if e["ph"] == "M"}
    check({e["ph"] for e in events} == {"X", "M", "C"}, "an event is neither complete, nor metadata, nor a counter")
    check({e["pid"] for e in events} == set(range(1, ranks + 1)), "the processes are not the ranks")
    for r in range(ranks):
        check(names.get((r + 1, 0, "process_name")) == f"rank {r}", f"rank {r} has no name")
        check(names.get((r + 1, 1, "thread_name")) == "compute", f"rank {r} has no compute track")
        check(names.get((r + 1, 2, "thread_name")) == ("comm" if ranks > 1 else None), f"rank {r}: its comm track")
    for e in events:
        if e["ph"] == "X": check((e["pid"], e["tid"], "thread_name") in names,
                                 f"{e['name']} is on a track without a name")


def check_nesting(where, track):
    """In the order of the file, a span lies in the one that is open or behind it."""
    around = []
    for s in track:
        while around and around[-1].end <= s.begin: around.pop()
        check(s.begin <= s.end and (not around or around[-1].holds(s)),
              f"{where}: {s.name} at {s.begin} ns crosses {around[-1].name if around else 'itself'}")
        around.append(s)


def check_operations(where, step, ops, parts):
    counted = collections.Counter(s.category for s in ops)
    for c in CLASSES:
        check(counted[c] == step.args[f"{c} operations"],
              f"{where}: {counted[c]} {c} operations, the device counted {step.args[f'{c} operations']}")
    micro = sum(p.name == "embedding forward" for p in parts)
    # q, kv, output, up (and gate), down: forward, and twice backward; the head in chunks
    products = 15 * layers * micro + 3 * counted["classifier"]
    check(counted["gemm"] == products, f"{where}: {counted['gemm']} products, the model has {products}")
    for s in ops:
        place = {k: v for k, v in s.args.items() if k not in ("flop", "bytes")}
        check(any(p.holds(s) and p.args == place for p in parts), f"{where}: {s.name} of {place} is in no such part")
        check(s.args["bytes"] > 0 and s.args["flop"] >= 0, f"{where}: {s.name} without bytes")
        check(s.category != "gemm" or s.args["flop"] > 0 and s.length() > 0, f"{where}: {s.name} without FLOP or time")


def check_parts(where, step, parts, leaves):
    expected = {f"layer {l} {b} {p}" for l in range(layers) for b in ("attention", "mlp")
                for p in ("forward", "backward")}
    expected |= {"data", "embedding forward", "embedding backward", "head forward", "head backward", "optimizer"}
    check({p.name for p in parts} == expected,
          f"{where}: {({p.name for p in parts}) ^ expected} should or should not be a part")
    check(sum(s.length() for s in leaves) <= sum(p.length() for p in parts) <= step.length(),
          f"{where}: more time than the step has")
    for l in range(layers):
        for b in ("attention", "mlp"):
            check(any(s.args.get("layer") == l and s.args["block"] == b and s.category in CLASSES for s in leaves),
                  f"{where}: layer {l} {b} is empty")


def check_collectives(where, rank, spans):
    """As often as the ledger has them, with its bytes, and each waited for."""
    begun, sent, waited = collections.Counter(), collections.Counter(), collections.Counter()
    for s in spans:
        if s.category == "comm": begun[s.key()] += 1; sent[s.key()] += s.args["bytes"]
        if s.category == "wait": waited[s.key()] += 1
        if s.category in ("comm", "wait"):
            check(2 <= s.args["ranks"] <= ranks, f"{where}: {s.name} over {s.args['ranks']} ranks")
    for b in ("attention", "mlp"):  # weights are asked for while another layer computes, yet belong to their own
        of = collections.Counter(s.args.get("layer") for s in spans if s.category == "comm" and s.args["block"] == b
                                 and s.args["what"] == "parameter")
        check(not of or [of[l] for l in range(layers)] == [of.total() // layers] * layers,
              f"{where}: weights of {b} by layer: {dict(of)}")
    for k in begun.keys() | waited.keys():
        check(begun[k] and waited[k] >= begun[k], f"{where}: {begun[k]} {k}, {waited[k]} waits")
    if rank: return  # the ledger is rank 0's
    rows = {(row["op"], row["block"], row["phase"], row["what"]): row for row in ledger if row["calls"]}
    for k in rows.keys() | begun.keys():
        row = rows.get(k, {"calls": 0, "bytes": 0})
        check(begun[k] == row["calls"] and sent[k] == row["bytes"],
              f"{where}: {begun[k]} {k} of {sent[k]} bytes, the ledger has {row['calls']} of {row['bytes']}")


def check_memory():
    """Every operation comes with the bytes in use; the peak is that of the plan, which holds it to a page."""
    with open(os.path.join(os.path.dirname(ledger_path), "metrics.jsonl"), encoding="utf-8") as file:
        planned = json.loads(file.readline())["mem_bytes"]
    counted, begun = collections.defaultdict(list), collections.defaultdict(list)
    for e in events:
        if e["ph"] == "C": counted[e["pid"]].append((e["ts"], e["args"]["bytes"]))
        elif e["ph"] == "X" and e["cat"] in CLASSES: begun[e["pid"]].append(e["ts"])
    for pid, samples in counted.items():
        check([ts for ts, _ in samples] == begun[pid], f"rank {pid - 1}: memory is not told at every operation")
        peak = max(b for _, b in samples)
        check(planned - 4096 < peak <= planned or pid > 1, f"rank 0: a peak of {peak} bytes, {planned} are planned")


check_format()
check_memory()
spans = [Span(e) for e in events if e["ph"] == "X"]
check(min(s.begin for s in spans) < 10000, "the timeline does not begin at 0")
tracks = collections.defaultdict(list)
for s in spans: tracks[s.rank, s.track].append(s)
for (rank, number), track in tracks.items():
    check_nesting(f"rank {rank}, track {number}", track)
    if number == 1: continue
    for a, b in zip(track, track[1:]):
        check(a.end <= b.begin, f"rank {rank}, track {number}: {a.name} and {b.name} at {b.begin} ns on one lane")

for i in range(steps):  # clocks that agree: ranks wait for each other, so a step of one meets that of every other
    same = [s for s in spans if s.name == f"step {i}"]
    check(max(s.begin for s in same) < min(s.end for s in same), f"step {i} of one rank ends before another's begins")

for rank in range(ranks):
    mine = [s for s in spans if s.rank == rank]
    whole = [s for s in mine if s.category == "step"]
    check([s.name for s in whole] == [f"step {i}" for i in range(steps)], f"rank {rank} has {[s.name for s in whole]}")
    for step in whole:
        where = f"rank {rank}, {step.name}"
        inside = [s for s in mine if s is not step and step.holds(s)]
        parts = [s for s in inside if s.category == "block"]
        leaves = [s for s in inside if s.track == 1 and s.category != "block"]
        check_operations(where, step, [s for s in leaves if s.category in CLASSES], parts)
        check_parts(where, step, parts, leaves)
        check_collectives(where, rank, inside)
    check(sum(any(w.holds(s) for w in whole) for s in mine) == len(mine), f"rank {rank}: a span outside of the steps")

for text in wrong[:12]: print(text)
if len(wrong) > 12: print(f"... {len(wrong)} in all")
sys.exit(bool(wrong))

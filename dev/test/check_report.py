"""check_report.py DIR [RUN_DIR...] - is DIR/report.html the page it claims to be, and do its numbers stand in
report.json, in report.csv and in the runs? Prints what is wrong, a line each; exit code 0: nothing.
"""
import csv, html.parser, json, math, os, re, statistics, sys

out, run_dirs = sys.argv[1], sys.argv[2:]
wrong = []


def check(condition, text):
    if not condition: wrong.append(text)


class Page(html.parser.HTMLParser):
    """Cells, figures and what a page could load from elsewhere."""
    VOID = {"meta", "path", "rect", "circle"}  # the parser tells <path/> as a start and an end

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.figures, self.scripts, self.loads = [], [], [], [], []
        self.styles = ""

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag not in ("meta",): self.open.append(tag)
        self.loads += [f"{tag} {k}={a[k]}" for k in ("src", "href", "xlink:href", "action", "data") if k in a]
        if any(k.startswith("on") for k in a): self.loads.append(f"{tag} has an event handler")
        if tag == "td" and "data-path" in a: self.cells.append([a["data-path"], float(a["data-unit"]), ""])
        elif tag == "td": self.cells.append(["", 1, ""])
        if tag == "figure": 
            self.figures.append({"id": a["id"], "svg": 0, "text": "", "title": "", "dots": [], "bars": []})
        if tag == "svg" and "role" in a: self.figures[-1]["svg"] += 1
        if tag == "path" and "data-x" in a:
            x, y = map(float, re.fullmatch(r"translate\((.*),(.*)\)", a["transform"]).groups())
            self.figures[-1]["dots"].append((float(a["data-x"]), float(a["data-y"]), x, y))
        if tag == "rect" and "data-value" in a:
            self.figures[-1]["bars"].append((float(a["data-value"]), float(a["width"])))
        if tag == "circle" and "data-value" in a:
            self.figures[-1]["dots"].append((float(a["data-value"]), 0, float(a["cx"]), 0))
        if tag == "script": self.scripts.append([a.get("type"), ""])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag: wrong.append(f"</{tag}> closes {self.open[-1:]}")
        else: self.open.pop()

    def handle_data(self, data):
        if not self.open: return
        if self.open[-1] == "td": self.cells[-1][2] += data
        if self.open[-1] == "script": self.scripts[-1][1] += data
        if self.open[-1] == "style": self.styles += data
        if "figcaption" in self.open: self.figures[-1]["text"] += data
        if self.open[-1] == "h3": self.figures[-1]["title"] += data


def look_up(data, path):
    for key in path.split("."): data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def rounded(text, value, unit):
    """Is the text of a cell this number, rounded to the digits that it shows?"""
    if value is None or text == "-": return value is None and text == "-"
    shown = text.replace(",", "")
    mantissa, _, power = shown.partition("e")
    digits = len(mantissa.partition(".")[2])
    step = 10.0 ** (int(power or 0) - digits)
    return abs(float(shown) - value / unit) <= 0.501 * step + 1e-12 * abs(value / unit)


with open(os.path.join(out, "report.html"), encoding="utf-8") as file: source = file.read()
with open(os.path.join(out, "report.json"), encoding="utf-8") as file: data = json.load(file)
page = Page()
page.feed(source)
runs = data["runs"]

# ---- one file that loads nothing and runs nothing
check(not page.open, f"never closed: {page.open}")
check(not page.loads, f"the page loads: {page.loads}")
check("url(" not in page.styles and "@import" not in page.styles, "the style sheet loads something")
check([s[0] for s in page.scripts] == ["application/json"], f"scripts: {[s[0] for s in page.scripts]}")
check(json.loads(page.scripts[0][1]) == data, "the numbers in the page are not those of report.json")
check(data["verdict"] in html.unescape(source), "the verdict is not in the page")
for word in ("prefers-color-scheme:dark", "@media print", "width=device-width"): check(word in source, f"no {word}")

# ---- pictures
for f in page.figures:
    check(f["svg"] == 1 and f["title"], f"{f['id']}: {f['svg']} pictures, title '{f['title']}'")
    read = f["text"].partition("How to read this.")[2]
    check(2 <= len(re.findall(r"[.;:?](?: |$)", read)) and len(read) > 80, f"{f['id']}: how to read it? '{read}'")
    by_x, by_y = sorted(f["dots"]), sorted(f["dots"], key=lambda d: d[1])
    for (x0, _, px0, _), (x1, _, px1, _) in zip(by_x, by_x[1:]):
        check(px1 > px0 - 0.011 if x1 > x0 else abs(px1 - px0) < 0.011, f"{f['id']}: {x0} and {x1} are at {px0}, {px1}")
    for (_, y0, _, py0), (_, y1, _, py1) in zip(by_y, by_y[1:]):
        check(py1 < py0 + 0.011 if y1 > y0 else abs(py1 - py0) < 0.011, f"{f['id']}: {y0}, {y1} are at {py0}, {py1}")
    for key, at in ((0, 2), (1, 3)):  # logarithmic: equal ratios are equal distances
        ends = [d for d in f["dots"] if d[key] > 0]
        if not ends: continue
        low, high = min(ends, key=lambda d: d[key]), max(ends, key=lambda d: d[key])
        if high[key] < 1.2 * low[key]: continue
        for d in ends:
            share = math.log(d[key] / low[key]) / math.log(high[key] / low[key])
            check(abs(low[at] + share * (high[at] - low[at]) - d[at]) < 0.1, f"{f['id']}: {d[key]} is at {d[at]}")
    scales = [(v, w) for v, w in f["bars"] if w > 3]
    for v, w in scales:
        check(abs(v / w - scales[0][0] / scales[0][1]) < 0.02 * v / w, f"{f['id']}: a bar of {v} is {w} wide")
ids = [f["id"] for f in page.figures]
check(len(set(ids)) == len(ids), f"pictures of one name: {ids}")

# ---- the table is the JSON, rounded
check(len([c for c in page.cells if c[0].endswith(".ranks")]) == len(runs), "the table has not a row a run")
for path, unit, text in page.cells:
    if path: check(rounded(text, look_up(data, path), unit), f"{path}: '{text}' is not {look_up(data, path)}")
with open(os.path.join(out, "report.csv"), encoding="utf-8", newline="") as file: rows = list(csv.DictReader(file))
check(len(rows) == len(runs), f"report.csv has {len(rows)} rows, not {len(runs)}")
for row, run in zip(rows, runs):
    for key, text in row.items():
        kind = re.fullmatch("(sent|expected)_(activation|parameter|gradient|control)", key)
        value = run[kind[1]][kind[2]] if kind else run[key]
        check(text == ("" if value is None else str(value)), f"report.csv: {key} {text}, report.json {value}")

# ---- and the JSON is what the runs wrote
for directory in run_dirs:
    run = next((r for r in runs if os.path.samefile(r["directory"], directory)), None)
    check(run, f"{directory} is not in the report")
    if not run: continue
    if os.path.isfile(directory):
        with open(directory, encoding="utf-8") as file: f = json.load(file)
        check((run["step_ms"], run["tokens_per_s"], run["memory"], run["by_category"], run["exposed_ms"]) ==
              (f["step_ms"], f["tokens_per_s"], f["mem_bytes"], f["memory"], f["comm_exposed_ms"]), f"{directory}")
        check(abs(sum(run["classes"].values()) - f["step_ms"]) < 1e-3 * f["step_ms"], f"{directory}: no step")
        continue
    with open(os.path.join(directory, "metrics.jsonl"), encoding="utf-8") as file:
        metrics = [json.loads(line) for line in file]
    check(run["losses"] == [m["loss"] for m in metrics], f"{directory}: losses")
    timed = metrics[3:] or metrics
    for key, name in (("step_ms", "step_ms"), ("tokens_per_s", "tokens_per_s"), ("exposed_ms", "comm_exposed_ms")):
        check(run[key] == statistics.median(m[name] for m in timed), f"{directory}: {key}")
    check(run["memory"] == metrics[0]["mem_bytes"], f"{directory}: memory")
    check(abs(sum(run["by_category"].values()) - run["memory"]) < 4096, f"{directory}: categories are not its memory")
    if run.get("classes"):
        over_time = run["memory_over_time"]
        check(abs(sum(run["classes"].values()) - over_time["step_ms"]) < 1e-6 * over_time["step_ms"],
              f"{directory}: the classes are no step")
        peak = max(b for _, b in over_time["points"])
        check(0.8 * run["memory"] < peak <= run["memory"], f"{directory}: {peak} bytes in use of {run['memory']}")
    if run["reference"]:
        reference = next(r for r in runs if r["directory"] == run["reference"])
        apart = [abs(a - b) / max(abs(b), 1) for a, b in zip(run["losses"], reference["losses"])]
        check(run["apart"] == apart and run["difference"] == max(apart), f"{directory}: difference")

for text in wrong[:15]: print(text)
if len(wrong) > 15: print(f"... {len(wrong)} in all")
sys.exit(bool(wrong))

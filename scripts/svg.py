"""svg.py - the few kinds of picture that report.py draws, as SVG inside a page. Standard library only.

    line_chart    values against L, N, steps or time, on linear or logarithmic axes
    bar_chart     a bar a row, stacked by part, with marks where a value was expected
    strip_chart   a row of dots on a logarithmic axis

Colours are classes (s0, s1, ... of series, p0, p1, ... of parts) that the page's style sheet gives, so that one
drawing serves light, dark and print. A picture is 440 units wide: on a phone its text is still read. Every point and
bar says its numbers in a <title>, which browsers show and tests read.
"""

import html
import math

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 58, 14, 14, 42
HEAD = 28  # above a line chart: the name of its upright axis
SERIES, PARTS = 8, 9  # colours of each kind in the style sheet
SHAPES = ["M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-4,-4h8v8h-8z", "M0,-5l5,9h-10z", "M0,-5l5,5l-5,5l-5,-5z",
          "M-5,-3h10l-5,8z", "M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z"]


def number(v):
    """A coordinate: short, and the same on every machine."""
    return f"{v:.2f}".rstrip("0").rstrip(".")


def esc(text):
    return html.escape(str(text), quote=True)


def text(x, y, words, anchor="start", extra=""):
    return f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}"{extra}>{esc(words)}</text>'


def plain(v):
    """3 significant digits without an exponent where that is readable: 0.25, 12, 1,500; 1e-07."""
    if v == 0: return "0"
    if not 1e-3 <= abs(v) < 1e7: return f"{v:.0e}" if float(f"{v:.0e}") == float(f"{v:.2g}") else f"{v:.1e}"
    if abs(v) >= 1000: return f"{v:,.0f}"
    return f"{v:.3g}"


def tokens(v):
    """256, 4K, 1M"""
    for size, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if v >= size and v % size == 0: return f"{int(v) // size}{unit}"
    return f"{v:,.0f}"


def size_of(v):
    """Bytes: 1.5 MB"""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if abs(v) >= size: return f"{v / size:.3g} {unit}"
    return f"{v:.0f} B"


class Axis:
    """From values to 0..1; its ticks."""

    def __init__(self, values, log=False, zero=False, label="", show=plain, at=None, tight=False):
        self.log, self.label, self.show, self.at = log, label, show, at
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        self.lo, self.hi = min(usable), max(usable)
        self.floor = log and any(v <= 0 for v in values)  # zeros stand on the bottom line, which then says 0
        if zero: self.lo = min(self.lo, 0)
        if log:
            if at: self.lo, self.hi = self.lo / 1.15, self.hi * 1.15
            else:
                self.lo, self.hi = round_log(self.lo, False), round_log(self.hi, True)
                if self.lo == self.hi: self.hi *= 2
                if self.floor: self.lo /= 10
        elif self.lo == self.hi: self.lo, self.hi = self.lo - (0 if zero else 0.5), self.hi + 0.5
        else:
            self.step = nice_step(self.hi - self.lo)
            if tight: return
            self.hi = math.ceil(self.hi / self.step - 1e-9) * self.step
            self.lo = math.floor(self.lo / self.step + 1e-9) * self.step

    def to(self, v):
        if not self.log: return (v - self.lo) / (self.hi - self.lo)
        if v <= self.lo: return 0.0
        return math.log(v / self.lo) / math.log(self.hi / self.lo)

    def ticks(self):
        if self.at: return [(v, self.show(v)) for v in self.at]
        if self.log:
            first, last = math.floor(math.log10(self.lo) + 1e-9), math.ceil(math.log10(self.hi) - 1e-9)
            steps = (1, 2, 5) if last - first <= 2 else (1,)
            every = max(1, math.ceil((last - first) / 7))
            values = [m * 10.0 ** k for k in range(first, last + 1) if (k - last) % every == 0 for m in steps]
            out = [(v, self.show(v)) for v in values if self.lo * 0.999 <= v <= self.hi * 1.001]
            return [(self.lo, "0")] + [tick for tick in out if tick[0] > self.lo * 2] if self.floor else out
        if not hasattr(self, "step"): return [(v, self.show(v)) for v in (self.lo, self.hi)]
        first, last = math.ceil(self.lo / self.step - 1e-9), math.floor(self.hi / self.step + 1e-9)
        return [(i * self.step, self.show(i * self.step)) for i in range(first, last + 1)]


def round_log(v, up):
    """The next of 1, 2, 5, 10, 20, ... below or above."""
    unit = 10.0 ** math.floor(math.log10(v) + 1e-12)
    steps = [m * unit for m in (1, 2, 5, 10)]
    if up: return next(s for s in steps if s >= v * (1 - 1e-9))
    return next(s for s in reversed(steps) if s <= v * (1 + 1e-9))


def nice_step(span):
    raw = span / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    return next(k * unit for k in (1, 2, 2.5, 5, 10) if k * unit >= raw * 0.999)


def document(height, label, body):
    return (f'<svg viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-label="{esc(label)}">' + "".join(body) +
            "</svg>")


def line_chart(series, x, y, label, height=270, uprights=(), level=None, circles=()):
    """series: (name, colour, dashed, [(x, y, words)], with markers); x, y: Axis. uprights: (x, words, dashed) vertical
    lines; level: (y, words), a horizontal one; circles: (x, y, words) around crossings."""
    wide, high = WIDTH - LEFT - RIGHT, height - HEAD - BOTTOM

    def px(v): return LEFT + wide * x.to(v)
    def py(v): return HEAD + high * (1 - y.to(v))

    out = []
    for v, words in y.ticks():
        out.append(f'<path class="grid" d="M{LEFT},{number(py(v))}h{wide}"/>')
        out.append(text(LEFT - 6, py(v) + 4, words, "end"))
    for v, words in x.ticks():
        out.append(f'<path class="tick" d="M{number(px(v))},{HEAD + high}v4"/>')
        out.append(text(px(v), HEAD + high + 17, words, "middle"))
    out.append(f'<path class="axis" d="M{LEFT},{HEAD}v{high}h{wide}"/>')
    out.append(text(LEFT + wide / 2, height - 6, x.label, "middle", ' class="name"'))
    out.append(text(4, 12, y.label, "start", ' class="name"'))
    if level:
        out.append(f'<path class="level" d="M{LEFT},{number(py(level[0]))}h{wide}"/>')
        out.append(text(LEFT + wide, py(level[0]) - 5, level[1], "end", ' class="note"'))
    for i, (v, words, dashed) in enumerate(uprights):
        at = px(v)
        out.append(f'<path class="upright{" dashed" if dashed else ""}" d="M{number(at)},{HEAD}v{high}"><title>'
                   f"{esc(words)}</title></path>")
        end = at > LEFT + 0.6 * wide
        out.append(text(at + (-4 if end else 4), HEAD + 10 + 13 * (i % 4), words, "end" if end else "start",
                        ' class="note"'))
    for name, colour, dashed, points, marked in series:
        d = "M" + "L".join(f"{number(px(p[0]))},{number(py(p[1]))}" for p in points)
        kind = f's{colour % SERIES}{" dashed" if dashed else ""}'
        out.append(f'<path class="line {kind}" d="{d}"><title>{esc(name)}</title></path>')
        if marked:
            for p in points:
                out.append(f'<path class="dot {kind}" data-x="{p[0]!r}" data-y="{p[1]!r}" transform="translate('
                           f'{number(px(p[0]))},{number(py(p[1]))})" d="{SHAPES[colour % len(SHAPES)]}"><title>'
                           f"{esc(name)}: {esc(p[2])}</title></path>")
    for cx, cy, words in circles:
        out.append(f'<circle class="crossing" cx="{number(px(cx))}" cy="{number(py(cy))}" r="9"><title>{esc(words)}'
                   "</title></circle>")
    return document(height, label, out)


def bar_chart(rows, parts, axis, label, level=None, marks=None):
    """rows: (name, {part: value}); parts: in their order, which gives the colour; axis: Axis of the sums.
    level: (value, words), a line across all rows; marks: a value a row, an upright stroke at its bar."""
    left = min(150, 12 + max([6.6 * len(name) for name, _ in rows], default=0))
    row, wide = 20, WIDTH - left - RIGHT
    high = row * len(rows)
    top = TOP + (12 if level else 0)
    height = top + high + BOTTOM

    def px(v): return left + wide * axis.to(v)

    out = []
    for v, words in axis.ticks():
        out.append(f'<path class="grid" d="M{number(px(v))},{top}v{high}"/>')
        out.append(text(px(v), top + high + 16, words, "end" if px(v) > WIDTH - 25 else "middle"))
    for i, (name, values) in enumerate(rows):
        y, sum_ = top + row * i, 0.0
        out.append(text(left - 6, y + row / 2 + 4, name, "end"))
        for k, part in enumerate(parts):
            v = values.get(part, 0)
            if v <= 0: continue
            begin = px(sum_)
            sum_ += v
            out.append(f'<rect class="p{k % PARTS}" data-value="{v!r}" x="{number(begin)}" y="{number(y + 3)}" width="'
                       f'{number(max(px(sum_) - begin, 0.3))}" height="{row - 6}"><title>{esc(name)}, {esc(part)}: '
                       f"{esc(axis.show(v))}</title></rect>")
        if marks and marks[i] is not None:
            out.append(f'<path class="mark" d="M{number(px(marks[i]))},{number(y + 1)}v{row - 2}"><title>{esc(name)}: '
                       f"{esc(axis.show(marks[i]))}</title></path>")
    out.append(f'<path class="axis" d="M{number(left)},{top}v{high}h{number(wide)}"/>')
    out.append(text(left + wide / 2, height - 8, axis.label, "middle", ' class="name"'))
    if level:
        out.append(f'<path class="level" d="M{number(px(level[0]))},{top - 4}v{high + 4}"/>')
        out.append(text(px(level[0]), top - 7, level[1], "end" if axis.to(level[0]) > 0.5 else "start",
                        ' class="note"'))
    return document(height, label, out)


def strip_chart(rows, axis, label):
    """rows: (name, colour, [(value, words)])."""
    left = min(150, 12 + max([6.6 * len(name) for name, _, _ in rows], default=0))
    row, wide = 26, WIDTH - left - RIGHT
    high = row * len(rows)
    height = TOP + high + BOTTOM

    def px(v): return left + wide * axis.to(v)

    out = []
    for v, words in axis.ticks():
        out.append(f'<path class="grid" d="M{number(px(v))},{TOP}v{high}"/>')
        out.append(text(px(v), TOP + high + 16, words, "end" if px(v) > WIDTH - 25 else "middle"))
    for i, (name, colour, dots) in enumerate(rows):
        y = TOP + row * (i + 0.5)
        out.append(text(left - 6, y + 4, name, "end"))
        for k, (v, words) in enumerate(dots):
            out.append(f'<circle class="strip s{colour % SERIES}" data-value="{v!r}" cx="{number(px(v))}" cy="'
                       f'{number(y + (k % 5 - 2) * 3)}" r="2.6"><title>{esc(name)}: {esc(words)}</title></circle>')
    out.append(f'<path class="axis" d="M{number(left)},{TOP}v{high}h{number(wide)}"/>')
    out.append(text(left + wide / 2, height - 8, axis.label, "middle", ' class="name"'))
    return document(height, label, out)

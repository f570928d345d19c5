#!/usr/bin/env python3
"""draw.py [FOLDER] - the pictures of the documentation, as SVG: schemes.svg (one layer under every scheme), SCHEME.svg
(the same, forward and backward) and volume.svg (the closed forms against the sequence length). FOLDER: this one.

A square is one layer's activations, tokens from top to bottom, features from left to right; its colour is the rank
that holds it, four ranks in all. Colours change with the reader's light or dark theme. Needs nothing but Python.
"""
import os
import sys

STYLE = """
  .page { fill: #ffffff } text { fill: #1f2328; font: 14px system-ui, sans-serif } .bold { font-weight: 600 }
  .small { font-size: 12px } .quiet { fill: #59636e } .line { stroke: #59636e; fill: none; stroke-width: 1.5 }
  .tip { fill: #59636e } .box { fill: #f6f8fa; stroke: #d1d9e0 } .op { fill: #fff1e5; stroke: #bc4c00 }
  .all { fill: #afb8c1 } .r0 { fill: #4477aa } .r1 { fill: #66ccee } .r2 { fill: #228833 } .r3 { fill: #ccbb44 }
  .edge { fill: none; stroke: #59636e } .grid { stroke: #d1d9e0; fill: none }
  .c0 { stroke: #4477aa } .c1 { stroke: #228833 } .c2 { stroke: #ccbb44 } .c3 { stroke: #aa3377 }
  .c4 { stroke: #bc4c00 }
  .curve { fill: none; stroke-width: 2.5 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #e6edf3 } .quiet { fill: #9198a1 } .line, .edge { stroke: #9198a1 }
    .tip { fill: #9198a1 } .box { fill: #151b23; stroke: #3d444d } .op { fill: #3a2010; stroke: #f0883e }
    .all { fill: #656c76 } .grid { stroke: #3d444d } .c4 { stroke: #f0883e } .c3 { stroke: #d86aa8 }
  }"""

# How a scheme runs one layer. stream: how x lies between blocks; then for attention and MLP: how the activations lie
# inside, the exchange before and after (forward, backward), and how the weights lie.
SCHEMES = {
    "tp": dict(stream="whole", attention=("heads", "", "all-reduce", "", "all-reduce", "split"),
               mlp=("columns", "", "all-reduce", "", "all-reduce", "split"), moves="8c Ld", weights="0"),
    "tpsp": dict(stream="tokens",
                 attention=("heads", "all-gather", "reduce-scatter", "2 all-gathers", "reduce-scatter", "split"),
                 mlp=("columns", "all-gather", "reduce-scatter", "2 all-gathers", "reduce-scatter", "split"),
                 moves="10c Ld", weights="0"),
    "ulysses": dict(stream="tokens",
                    attention=("heads", "all-to-all", "all-to-all", "all-to-all", "all-to-all", "gathered"),
                    mlp=("tokens", "", "", "", "", "gathered"), moves="(4+4g) c La/N",
                    weights="3c((2+2g)da + mdi)"),
    "ring": dict(stream="tokens", attention=("ring", "", "", "", "", "gathered"),
                 mlp=("tokens", "", "", "", "", "gathered"), moves="6g c La", weights="3c((2+2g)da + mdi)"),
    "allgather": dict(stream="tokens", attention=("gather", "", "", "", "", "gathered"),
                      mlp=("tokens", "", "", "", "", "gathered"), moves="6g c La", weights="3c((2+2g)da + mdi)"),
    "odysseus": dict(stream="tokens",
                     attention=("heads", "all-gather", "reduce-scatter", "2 all-gathers", "reduce-scatter", "split"),
                     mlp=("tokens", "", "", "", "", "gathered"), moves="5c Ld", weights="3c mdi"),
}
SIDE, HEIGHT, WIDTH = 56, 128, 1120
X = dict(label=10, first=96, before=152, one=254, after=384, middle=486, between=542, two=644, behind=774, last=876,
         cost=950)


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def square(x, y, lies, side=SIDE):
    out, part = [], side / 4
    if lies == "whole":
        out.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" class="all"/>')
        out.append(text(x + side / 2, y + side / 2 + 5, "all", "", "middle"))
    for r in range(4 if lies != "whole" else 0):
        box = (x + r * part, y, part, side) if lies in ("heads", "columns", "split") else (x, y + r * part, side, part)
        out.append('<rect x="%g" y="%g" width="%g" height="%g" class="r%d"/>' % (*box, r))
    out.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" class="edge"/>')
    return out


def arrow(x, end, y, op):
    """From x to end; its exchange on a label above, where there is one."""
    out = [f'<path d="M{x + 4} {y} H{end - 9}" class="line"/>',
           f'<path d="M{end - 10} {y - 5} L{end - 2} {y} L{end - 10} {y + 5} Z" class="tip"/>']
    if op:
        width, middle = 6.6 * len(op) + 6, (x + end) / 2
        out.append(f'<rect x="{middle - width / 2:g}" y="{y - 31}" width="{width:g}" height="21" rx="4" class="op"/>')
        out.append(text(middle, y - 16, op, "small", "middle"))
    return out


def block(x, y, name, lies, weights, backward):
    """Attention or MLP: its activations, and under them its weights."""
    out = [f'<rect x="{x}" y="{y - 18}" width="130" height="{HEIGHT - 18}" rx="6" class="box"/>',
           text(x + 65, y - 3, name, "small quiet", "middle")]
    out += square(x + 37, y + 4, "tokens" if lies in ("ring", "gather") else lies)
    if lies == "ring":
        out.append(f'<path d="M{x + 102} {y + 54} a12 24 0 1 0 0 -44" class="line"/>')
        out.append(f'<path d="M{x + 110} {y + 7} L{x + 100} {y + 10} L{x + 107} {y + 17} Z" class="tip"/>')
    elif lies == "gather":  # from every rank to every rank
        out.append(f'<path d="M{x + 104} {y + 12} V{y + 52}" class="line"/>')
        for tip, end in ((y + 5, y + 14), (y + 59, y + 50)):
            out.append(f'<path d="M{x + 104} {tip} L{x + 99} {end} H{x + 109} Z" class="tip"/>')
    if lies in ("ring", "gather"):
        out.append(text(x + 32, y + 28, "KV", "small", "end"))
        if backward:
            out.append(text(x + 32, y + 44, "dKV", "small", "end"))
    out += square(x + 10, y + 68, weights if weights == "split" else "shards", 16)
    said = "weights split" if weights == "split" else "gather, reduce" if backward else "gather weights"
    out.append(text(x + 32, y + 81, said, "small quiet"))
    return out


def lane(y, scheme, backward=False):
    s = SCHEMES[scheme]
    order = [("attention", s["attention"]), ("MLP", s["mlp"])]
    if backward:
        order.reverse()
    (name1, one), (name2, two) = order
    first = 3 if backward else 1
    y0, arrow_y = y + 24, y + 56
    out = square(X["first"], y0 + 4, s["stream"])
    out += arrow(X["before"], X["one"], arrow_y, one[first])
    out += block(X["one"], y0, name1, one[0], one[5], backward)
    out += arrow(X["after"], X["middle"], arrow_y, one[first + 1])
    out += square(X["middle"], y0 + 4, s["stream"])
    out += arrow(X["between"], X["two"], arrow_y, two[first])
    out += block(X["two"], y0, name2, two[0], two[5], backward)
    out += arrow(X["behind"], X["last"], arrow_y, two[first + 1])
    return out + square(X["last"], y0 + 4, s["stream"])


def page(height, title, parts, width=WIDTH):
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">\n<title>{title}</title>\n<style>{STYLE}\n</style>\n'
            f'<rect width="{width}" height="{height}" rx="8" class="page"/>\n')
    return head + "\n".join(parts) + "\n</svg>\n"


def legend(y):
    out = [text(X["label"] + 6, y + 22, "A square: the activations of one layer, tokens down, features across.",
                "small")]
    x = 440
    for r in range(4):
        out.append(f'<rect x="{x}" y="{y + 10}" width="16" height="16" class="r{r}"/>')
        out.append(text(x + 21, y + 22, f"rank {r}", "small"))
        x += 72
    out.append(f'<rect x="{x}" y="{y + 10}" width="16" height="16" class="all"/>')
    out.append(text(x + 21, y + 22, "every rank", "small"))
    return out


def overview():
    parts = legend(6)
    parts += [text(X["cost"], 28, "sent by a rank, fwd + bwd", "small quiet")]
    for i, (name, s) in enumerate(SCHEMES.items()):
        y = 44 + i * (HEIGHT + 8)
        parts += [text(X["label"], y + 61, name, "bold")] + lane(y, name)
        parts += [text(X["cost"], y + 50, s["moves"], "bold"), text(X["cost"], y + 68, "activations", "small quiet"),
                  text(X["cost"], y + 92, s["weights"], "bold"), text(X["cost"], y + 110, "weights", "small quiet")]
    return page(44 + len(SCHEMES) * (HEIGHT + 8), "One layer, forward, under each scheme on four ranks", parts)


def single(name):
    parts = legend(6)
    for i, backward in enumerate((False, True)):
        y = 44 + i * (HEIGHT + 8)
        parts += [text(X["label"], y + 61, "backward" if backward else "forward", "bold")] + lane(y, name, backward)
    return page(44 + 2 * (HEIGHT + 8), f"One layer under {name} on four ranks, forward and backward", parts, 948)


def volume():
    """Elements that a rank of 8 sends for one layer of Llama-2-7B, against L: both axes logarithmic."""
    from math import log10
    d, i, m, g, N = 4096, 11008, 3, 1, 8
    c, weights = (N - 1) / N, 3 * (N - 1) / N * ((2 + 2 * g) * d * d + m * d * i)
    curves = {"tp": lambda L: 8 * c * L * d, "tpsp": lambda L: 10 * c * L * d,
              "ulysses": lambda L: (4 + 4 * g) * c * L * d / N + weights, "ring": lambda L: 6 * g * c * L * d + weights,
              "odysseus": lambda L: 5 * c * L * d + 3 * c * m * d * i}
    left, right, top, bottom, L0, L1, E0, E1 = 70, 660, 40, 400, 2 ** 12, 2 ** 20, 1e8, 1e11
    px = lambda L: left + (right - left) * (log10(L) - log10(L0)) / (log10(L1) - log10(L0))
    py = lambda e: bottom - (bottom - top) * (log10(e) - log10(E0)) / (log10(E1) - log10(E0))
    parts = [text(left, 24, "elements that a rank sends for one layer of Llama-2-7B on 8 ranks", "small")]
    for k in range(12, 21):
        L, name = 2 ** k, f"{2 ** (k - 10)}K" if k < 20 else "1M"
        parts += [f'<path d="M{px(L):.1f} {top} V{bottom}" class="grid"/>',
                  text(f"{px(L):.1f}", bottom + 20, name, "small quiet", "middle")]
    for k in range(8, 12):
        parts += [f'<path d="M{left} {py(10 ** k):.1f} H{right}" class="grid"/>',
                  text(left - 8, f"{py(10 ** k) + 4:.1f}", {8: "100M", 9: "1G", 10: "10G", 11: "100G"}[k],
                       "small quiet", "end")]
    parts.append(text((left + right) / 2, bottom + 40, "L, tokens in the sequence", "small quiet", "middle"))
    for name, f in curves.items():
        kind = "c%d" % list(curves).index(name)
        points = " ".join(f"{px(L0 * 2 ** (k / 8)):.1f},{py(f(L0 * 2 ** (k / 8))):.1f}" for k in range(65))
        parts.append(f'<polyline points="{points}" class="curve {kind}"/>')
        y = {"tpsp": -8, "tp": 8, "ring": 16, "odysseus": 24}.get(name, 4) + py(f(L1))
        said = "ring, allgather" if name == "ring" else name
        parts += [f'<path d="M{right + 8} {y:.1f} h18" class="curve {kind}"/>', text(right + 32, f"{y + 4:.1f}", said)]
    return page(bottom + 56, "Traffic of a layer against the sequence length, by the closed forms", parts, 800)


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    pictures = {"schemes": overview(), "volume": volume(), **{name: single(name) for name in SCHEMES}}
    for name, svg in pictures.items():
        with open(os.path.join(folder, name + ".svg"), "w", encoding="utf-8", newline="\n") as file:
            file.write(svg)


if __name__ == "__main__":
    main()

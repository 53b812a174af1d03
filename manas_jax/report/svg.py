"""Curves, probabilities and genotypes as SVG.

Pure functions from plain data to an ``<svg>`` element as a string. Charts take their colours from
the page's CSS variables (``--ink``, ``--muted``, ``--grid``, ``--series-1`` ...) and so follow its
light or dark scheme; `draw_genotype` has a style of its own and stands alone.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from manas_jax.space import Genotype

# One hue per kind of gate: grey for no gate, blue for feature maps, green for spatial maps, orange
# for channel vectors, purple for channel and spatial. All are legible on white and on near-black.
COLOURS = {
    "none": "#6b7280",
    "skip_connect": "#b8b2a7",
    "sep_conv_3x3": "#2f7fc4",
    "dil_conv_3x3": "#8cc0ea",
    "sep_conv_3x3_spatial": "#1f9173",
    "dil_conv_3x3_spatial": "#86d0b8",
    "SE": "#d9822b",
    "SE_A_M": "#f0bd77",
    "CBAM": "#9563b3",
    "parallel": "#5f87b3",
    "fusion": "#cc5f45",
}

_SHORT = {
    "skip_connect": "skip",
    "sep_conv_3x3": "sep 3×3",
    "dil_conv_3x3": "dil 3×3",
    "sep_conv_3x3_spatial": "sep 3×3 spatial",
    "dil_conv_3x3_spatial": "dil 3×3 spatial",
}

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (n,), ascending, and values (n,)."""


def colour(name: str) -> str:
    """The colour of a candidate or a column's choice; grey for other names."""
    return COLOURS.get(name, "#888888")


def edge_names(groups: int) -> list[str]:
    """Edges of an attention module in the genotype's order: op(F0), op(F1), op(U0)."""
    return [
        f"op({source})"
        for group in range(groups)
        for source in (f"F{group}", *(f"U{before}" for before in range(group)))
    ]


def number(value: float) -> str:
    """Four significant digits; from 10,000 on with a prefix: 12.3 k, 4.5 M, 6.78 G, 9 T."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g} {unit}"
    return f"{value:.4g}"


# Charts


def line_chart(
    curves: Mapping[str, Curve], title: str, logarithmic: bool = False, points: int = 200
) -> str:
    """Draws curves over training steps.

    A curve of more than `points` values becomes the means of equal intervals of steps, in a band
    from the lowest to the highest value of each interval.

    Args:
      curves: name -> steps and values; at least one curve, each of at least one finite point.
      title: start of the text alternative.
      logarithmic: use a logarithmic axis where values are positive and span two powers of ten.
      points: maximum number of points per curve.
    """
    width, height, left, right, top, bottom = 360, 190, 52, 18, 8, 24
    all_steps = np.concatenate([steps for steps, _ in curves.values()])
    all_values = np.concatenate([values for _, values in curves.values()])
    logarithmic &= all_values.min() > 0 and all_values.max() >= 100 * all_values.min()
    transform = np.log10 if logarithmic else np.asarray

    low, high = (float(v) for v in (transform(all_values.min()), transform(all_values.max())))
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    first, last = float(all_steps.min()), float(all_steps.max())

    def x(step):
        return left + (step - first) / ((last - first) or 1) * (width - left - right)

    def y(value):
        return height - bottom - (transform(value) - low) / (high - low) * (height - top - bottom)

    parts = []
    for tick in _log_ticks(low, high) if logarithmic else _ticks(low, high, 4):
        parts.append(_line(left, y(tick), width - right, y(tick), "grid"))
        parts.append(_text(left - 6, y(tick) + 3.5, number(tick), "tick", "end"))
    for tick in _ticks(first, last, 4) if last > first else [first]:
        parts.append(_text(x(tick), height - 6, number(tick), "tick", "middle"))
    for index, (name, (steps, values)) in enumerate(curves.items(), start=1):
        steps, means, lows, highs = _bins(steps, values, points)
        style = f"stroke:var(--series-{index});fill:var(--series-{index})"
        if len(values) > points:
            band = _points(x(steps), y(highs)) + " " + _points(x(steps[::-1]), y(lows[::-1]))
            parts.append(f'<polygon class="band" style="{style}" points="{band}"/>')
        shape = f'<polyline class="curve" style="{style}" points="{_points(x(steps), y(means))}">'
        parts.append(f"{shape}<title>{escape(name)}</title></polyline>")
        end = f'cx="{x(steps[-1]):.1f}" cy="{y(means[-1]):.1f}"'
        parts.append(f'<circle {end} r="2.6" style="{style}"/>')
    summary = "; ".join(
        f"{name} from {number(values[0])} to {number(values[-1])}"
        for name, (_, values) in curves.items()
    )
    label = f"{title}, steps {number(first)} to {number(last)}: {summary}"
    return _svg("chart", width, height, label, parts)


def stacked_areas(shares: np.ndarray, names: Sequence[str], title: str) -> str:
    """Draws shares of a whole over time as stacked areas, the first at the bottom.

    Args:
      shares: (times, len(names)), non-negative; each row sums to 1.
      names: of the shares; `colour` gives their colours.
      title: start of the text alternative.
    """
    width, height = 240, 48
    shares = np.asarray(shares, np.float64)
    if len(shares) == 1:
        shares = np.repeat(shares, 2, axis=0)
    x = np.linspace(0, width, len(shares))
    tops = height * (1 - np.cumsum(shares, axis=1))
    bottoms = np.concatenate([np.full((len(shares), 1), float(height)), tops[:, :-1]], axis=1)
    parts = [
        f'<polygon fill="{colour(name)}" points="'
        f'{_points(x, tops[:, i])} {_points(x[::-1], bottoms[::-1, i])}">'
        f"<title>{escape(name)}: {shares[0, i]:.2f} → {shares[-1, i]:.2f}</title></polygon>"
        for i, name in enumerate(names)
    ]
    final = ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares[-1], strict=True))
    return _svg("areas", width, height, f"{title}, at the end: {final}", parts, stretch=True)


def _svg(kind, width, height, label, parts, stretch=False) -> str:
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}"{ratio} role="img" '
        f'aria-label="{escape(label)}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _bins(steps, values, points):
    """Mean step, mean, lowest and highest value of at most `points` intervals."""
    intervals = np.array_split(np.arange(len(steps)), min(points, len(steps)))

    def reduce(function, array):
        return np.array([function(array[interval]) for interval in intervals])

    return (
        reduce(np.mean, steps),
        reduce(np.mean, values),
        reduce(np.min, values),
        reduce(np.max, values),
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round numbers (1, 2 or 5 times a power of ten) between low and high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between 10**low and 10**high, thinned to at most five."""
    powers = range(math.ceil(low), math.floor(high) + 1)
    return [10.0**p for p in powers[:: math.ceil(len(powers) / 5) or 1]]


def _points(xs, ys) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _line(x1, y1, x2, y2, kind) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {ends}/>'


def _text(x, y, text, kind, anchor="start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


# Genotypes

_STYLE = """
.genotype{font-family:system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
.genotype text{font-size:11.5px;fill:%(ink)s}
.genotype .head{font-size:13px;font-weight:600}
.genotype .soft{fill:%(muted)s}
.genotype .frame{fill:%(frame)s}
.genotype .box{fill:%(paper)s;stroke:%(muted)s}
.genotype .lane{stroke:%(muted)s;stroke-width:1.6;fill:none}
.genotype .new{stroke:%(muted)s;stroke-width:1.6;stroke-dasharray:4 3;fill:none}
.genotype .arrow{fill:%(muted)s}
"""
_LIGHT = {"ink": "#1f2328", "muted": "#7d848d", "frame": "#f1f3f5", "paper": "#ffffff"}
_DARK = {"ink": "#e6e6e6", "muted": "#8b929b", "frame": "#23272e", "paper": "#171a1f"}

_LEFT, _STEM, _TRANSITION, _COLUMN, _MODULE, _GAP, _ROW = 92, 50, 36, 38, 140, 10, 17
_LEGEND_WIDTH = 850


def draw_genotype(genotype: Genotype) -> str:
    """Draws a derived network, one lane per scale, from the input on the left to the output.

    The result is an SVG document with its own light and dark colours, for a file or a page. Marks
    have titles that name in full what they stand for.
    """
    space = genotype.space
    edges = edge_names(space.attention_groups)
    module = _ROW * len(edges) + 12
    top, pitch = max(84, 48 + module / 2), module + 28
    lanes = [top + pitch * branch for branch in range(len(space.channels))]
    floor = lanes[-1] + pitch / 2
    frames, wires, marks = [], [], []

    for branch, (y, channels) in enumerate(zip(lanes, space.channels, strict=True)):
        scale = space.patch * 2**branch
        marks.append(_text(0, y - 2, "full size" if scale == 1 else f"1/{scale} size", "head"))
        marks.append(_text(0, y + 14, f"{channels} channels", "soft"))

    x = _LEFT
    wires.append(_line(x - 12, lanes[0], x, lanes[0], "lane"))
    marks.append(_box(x, lanes[0], _STEM, 34, "stem", f"stem: {space.stem_blocks} bottlenecks"))
    x += _STEM
    active = 1
    for cell, columns in enumerate(genotype.columns):
        branches = space.branches[cell]
        wires += _transition(x, lanes, active, branches)
        x, active = x + _TRANSITION, branches
        start = x
        for index, choice in enumerate(columns):
            marks.append(_text(x + _COLUMN / 2, top - 36, str(index + 1), "soft", "middle"))
            title = f"cell {cell + 1}, column {index + 1}: {choice}"
            draw = _parallel if choice == "parallel" else _fusion
            draw(x, lanes[:branches], title, wires, marks)
            x += _COLUMN
        for branch in range(branches):
            wires.append(_line(x, lanes[branch], x + _GAP, lanes[branch], "lane"))
            choices = genotype.attention[cell][branch]
            title = f"cell {cell + 1}, branch {branch + 1}, attention module"
            marks.append(_module(x + _GAP, lanes[branch], edges, choices, title))
        x += _GAP + _MODULE
        # The frame ends below the lowest lane, so that scales are seen to be added.
        bottom = lanes[branches - 1] + pitch / 2 - 4
        frames.append(
            f'<rect class="frame" x="{start - 6}" y="18" width="{x - start + 12}" '
            f'height="{bottom - 18:.0f}" rx="8"/>'
        )
        marks.append(_text(start + 4, 34, f"Cell {cell + 1}", "head"))

    _fusion(x + 6, lanes, "head: all scales to full size", wires, marks, targets=1)
    wires += [_line(x, y, x + 6, y, "lane") for y in lanes]
    x += 6 + _COLUMN
    marks.append(_box(x, lanes[0], 34, 34, "1×1", "head: 1x1 convolution to the image"))
    x += 34
    wires.append(_line(x, lanes[0], x + 14, lanes[0], "lane"))
    tip = f"{x + 12},{lanes[0] - 5} {x + 22},{lanes[0]} {x + 12},{lanes[0] + 5}"
    marks.append(f'<polygon class="arrow" points="{tip}"/>')
    if space.residual:
        route = f"M{_LEFT - 6},{lanes[0]} V10 H{x + 7} V{lanes[0]}"
        wires.append(f'<path class="lane" d="{route}"><title>plus the input</title></path>')

    marks += _legend(floor + 18, space.attention_groups)
    width, height = max(x + 26, _LEGEND_WIDTH) + 4, floor + 84
    dark = "@media screen and (prefers-color-scheme:dark){" + _STYLE % _DARK + "}"
    columns = "; ".join(f"cell {i + 1}: {', '.join(c)}" for i, c in enumerate(genotype.columns))
    return (
        f'<svg class="genotype" xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="-4 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="The derived network. Columns of {escape(columns)}.">'
        f"<style>{_STYLE % _LIGHT}{dark}</style>{''.join(frames + wires + marks)}</svg>\n"
    )


def _box(x, y, width, height, text, title) -> str:
    return (
        f'<g><title>{escape(title)}</title><rect class="box" x="{x:.1f}" y="{y - height / 2:.1f}" '
        f'width="{width}" height="{height}" rx="6"/>'
        f"{_text(x + width / 2, y + 4, text, 'label', 'middle')}</g>"
    )


def _transition(x, lanes, before, after) -> list[str]:
    """Lanes that continue, and dashed ones from the lowest lane so far to each new one."""
    end = x + _TRANSITION
    wires = [_line(x, y, end, y, "lane") for y in lanes[:before]]
    start = lanes[before - 1]
    for y in lanes[before:after]:
        curve = f"M{x},{start} C{x + 22},{start} {x + 8},{y} {end},{y}"
        title = "transition: strided 3x3 convolution to a new scale"
        wires.append(f'<path class="new" d="{curve}"><title>{title}</title></path>')
    return wires


def _parallel(x, lanes, title, wires, marks) -> None:
    for y in lanes:
        wires.append(_line(x, y, x + _COLUMN, y, "lane"))
        marks.append(
            f'<rect x="{x + 8:.1f}" y="{y - 11:.1f}" width="{_COLUMN - 16}" height="22" rx="5" '
            f'fill="{COLOURS["parallel"]}"><title>{escape(title)}</title></rect>'
        )


def _fusion(x, lanes, title, wires, marks, targets=None) -> None:
    """Wires from every lane to each of the first `targets` lanes; to all by default."""
    node = x + _COLUMN - 9
    fill = COLOURS["fusion"]
    for target in lanes[:targets]:
        for source in lanes:
            curve = f"M{x},{source} C{x + 16},{source} {node - 16},{target} {node},{target}"
            wires.append(f'<path d="{curve}" fill="none" stroke="{fill}" stroke-width="1.3"/>')
        wires.append(_line(node, target, x + _COLUMN, target, "lane"))
        marks.append(
            f'<circle cx="{node}" cy="{target}" r="5.5" fill="{fill}">'
            f"<title>{escape(title)}</title></circle>"
        )


def _module(x, y, edges, choices, title) -> str:
    height = _ROW * len(edges) + 12
    lines = []
    for index, (edge, choice) in enumerate(zip(edges, choices, strict=True)):
        base = y - height / 2 + 20 + _ROW * index
        lines.append(
            f"<g><title>{escape(f'{edge} = {choice}')}</title>"
            f"{_text(x + 7, base, edge[3:-1], 'soft')}"
            f'<circle cx="{x + 31}" cy="{base - 4}" r="4.2" fill="{colour(choice)}"/>'
            f"{_text(x + 40, base, _SHORT.get(choice, choice), 'label')}</g>"
        )
    return (
        f'<g><title>{escape(title)}</title><rect class="box" x="{x}" y="{y - height / 2}" '
        f'width="{_MODULE}" height="{height}" rx="6"/>{"".join(lines)}</g>'
    )


def _legend(y, groups) -> list[str]:
    fusion, parallel = COLOURS["fusion"], COLOURS["parallel"]
    sums = "; ".join(
        f"U{g} = " + " + ".join(f"op({s})" for s in (f"F{g}", *(f"U{i}" for i in range(g))))
        for g in range(groups)
    )
    module = f"attention module: the channels in {groups} groups F, the gate op of each edge named"
    return [
        f'<rect x="0" y="{y - 10}" width="14" height="14" rx="3" fill="{parallel}"/>',
        _text(22, y + 1, "parallel column: a residual block on every scale", "soft"),
        f'<circle cx="327" cy="{y - 3}" r="5.5" fill="{fusion}"/>',
        _text(340, y + 1, "fusion column: every scale to every scale, summed", "soft"),
        _line(660, y - 3, 684, y - 3, "new"),
        _text(692, y + 1, "transition to a new scale", "soft"),
        f'<rect class="box" x="0" y="{y + 14}" width="14" height="14" rx="3"/>',
        _text(22, y + 25, module, "soft"),
        _text(22, y + 43, f"{sums}; all U are concatenated", "soft"),
    ]

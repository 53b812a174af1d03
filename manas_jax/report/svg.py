"""The drawing of a genotype as SVG, and the colours of its choices."""

from html import escape

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
    "identity": "#c3ccd8",
}

_WIDEST = 0x3D, 0x6A, 0x9E

_SHORT = {
    "skip_connect": "skip",
    "sep_conv_3x3": "sep 3×3",
    "dil_conv_3x3": "dil 3×3",
    "sep_conv_3x3_spatial": "sep 3×3 spatial",
    "dil_conv_3x3_spatial": "dil 3×3 spatial",
}


def colour(name: str) -> str:
    """The colour of a candidate, a column's choice or a "width W"; grey for other names."""
    if name.startswith("width "):  # wider is darker
        depth = 0.2 + 0.8 * float(name.removeprefix("width "))
        return "#" + "".join(f"{round(255 - depth * (255 - c)):02x}" for c in _WIDEST)
    return COLOURS.get(name, "#888888")


def edge_names(groups: int) -> list[str]:
    """Edges of an attention module in the genotype's order: op(F0), op(F1), op(U0)."""
    return [
        f"op({source})"
        for group in range(groups)
        for source in (f"F{group}", *(f"U{before}" for before in range(group)))
    ]


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
            if choice == "parallel":
                widths = genotype.widths[cell][index]
                _parallel(x, lanes[:branches], title, wires, marks, widths)
            else:
                draw = _fusion if choice == "fusion" else _identity
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


def _parallel(x, lanes, title, wires, marks, widths) -> None:
    """A block on each lane, as high as it is wide."""
    for y, width in zip(lanes, widths, strict=True):
        wires.append(_line(x, y, x + _COLUMN, y, "lane"))
        text = title if width == 1 else f"{title}, width {width:g}"
        marks.append(
            f'<rect x="{x + 8:.1f}" y="{y - 11 * width:.1f}" width="{_COLUMN - 16}" '
            f'height="{22 * width:.1f}" rx="{5 * width:.1f}" fill="{COLOURS["parallel"]}">'
            f"<title>{escape(text)}</title></rect>"
        )


def _identity(x, lanes, title, wires, marks) -> None:
    for y in lanes:
        path = f'<path class="lane" d="M{x},{y} H{x + _COLUMN}">'
        wires.append(f"{path}<title>{escape(title)}</title></path>")


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


def _line(x1, y1, x2, y2, kind) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {ends}/>'


def _text(x, y, text, kind, anchor="start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )

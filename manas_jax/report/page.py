"""The page: pictures, curves and the derived network of a run in one HTML file.

The file stands alone: pictures are embedded, drawings are SVG, and there is no script. A section
whose stage has not run yet says so.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import string
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from manas_jax import cost
from manas_jax.files import replacing
from manas_jax.report import reader, svg, trust, values
from manas_jax.report.html import details, embed_picture, note, table
from manas_jax.report.reader import Run
from manas_jax.space import CANDIDATES, COLUMNS, Genotype

MACS_SIZE = (256, 256)  # height and width for which multiply-accumulates are given
MAX_PICTURES = 8

_STAGE_TITLES = {"search": "Search", "train": "Training"}
_MEASURES = {"y_psnr": "Y PSNR", "y_ssim": "Y SSIM", "rgb_psnr": "RGB PSNR", "rgb_ssim": "RGB SSIM"}
_SCORED = {"rainy": "input", "restored": "output"}  # kind of a picture -> its key in the scores
_ENTROPIES = {
    "columns": "architecture/entropy_columns",
    "attention": "architecture/entropy_attention",
}


def write(workdir: str | os.PathLike) -> Path:
    """Writes WORKDIR/report.html, completely or not at all, and returns its path.

    Raises:
      UserError: the folder is missing or holds no run, or one of its files is damaged.
    """
    text = render(reader.read(workdir))
    path = Path(workdir) / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render(run: Run) -> str:
    """The HTML of the page."""
    sections = {
        "Summary": _summary(run),
        "Before and after": _before_after(run),
        "The derived network": _network(run),
        "Architecture probabilities": _probabilities(run),
        **{f"{title}: curves": _curves(run, stage) for stage, title in _STAGE_TITLES.items()},
        "Timings": _timings(run),
        "Scores": _scores(run),
        "Configuration": _config(run),
    }
    ids = {title: title.lower().replace(" ", "-").replace(":", "") for title in sections}
    files = importlib.resources.files(__package__)
    return string.Template((files / "page.html").read_text("utf-8")).substitute(
        name=escape(run.name),
        style=(files / "style.css").read_text("utf-8"),
        contents="".join(f'<li><a href="#{ids[t]}">{t}</a></li>' for t in sections),
        sections="\n".join(
            f'<section id="{ids[title]}"><h2>{title}</h2>\n{body}</section>'
            for title, body in sections.items()
        ),
    )


# Summary


def _summary(run: Run) -> str:
    boxes = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}"
        f"{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for label, value, unit in _key_figures(run)
    )
    findings = "".join(f"<li>{escape(sentence)}</li>" for sentence in trust.findings(run))
    return (
        (f'<dl class="tiles">{boxes}</dl>' if boxes else "")
        + "".join(f"<p>{escape(s)}</p>" for s in (_stages_and_data(run), _improvement(run)) if s)
        + (
            "<h3>Can the search be trusted?</h3>"
            f"<p>{escape(trust.verdict(run))}</p><ul>{findings}</ul>"
            if findings
            else ""
        )
    )


def _key_figures(run: Run) -> list[tuple[str, str, str]]:
    """(label, value, unit) of each."""
    figures = []
    before, after = (values.get(run.scores, "mean", which) for which in ("input", "output"))
    for key, unit in (("y_psnr", "dB"), ("y_ssim", "")):
        old, new = values.get(before, key), values.get(after, key)
        if values.is_number(new):
            start = f"{values.score(key, old)} → " if values.is_number(old) else ""
            figures.append((_MEASURES[key], f"{start}{values.score(key, new)}", unit))
    if run.genotype is not None:
        total = cost.derived(run.genotype, *MACS_SIZE)
        figures.append(("Parameters", svg.number(total.parameters), ""))
        figures.append((f"MACs at {_macs_size()}", svg.number(total.macs), ""))
    for stage, title in _STAGE_TITLES.items():
        seconds = values.get(run.stages[stage].summary, "seconds") if stage in run.stages else None
        if values.is_number(seconds):
            figures.append((f"{title} time", values.duration(seconds), ""))
    return figures


def _stages_and_data(run: Run) -> str:
    done = []
    for stage, title in _STAGE_TITLES.items():
        if stage in run.stages:
            steps = run.stages[stage].summary.get("steps")
            done.append(title.lower() + (f" ({steps:,} steps)" if isinstance(steps, int) else ""))
    if images := run.scores.get("images"):
        done.append(f"evaluation ({values.count(len(images), 'picture')})")
    stages = f"Stages in this folder: {', '.join(done)}." if done else "No stage has begun."
    data = run.config.get("data")
    if not (isinstance(data, Mapping) and data.get("source")):
        return stages
    names = {"folder": Path(str(data.get("root"))).name, "tfds": data.get("tfds_name")}
    name = names.get(data["source"])
    source = f"{data['source']} “{name}”" if name else data["source"]
    versions = data.get("versions")
    if isinstance(versions, int):
        source += f", {values.count(versions, 'rainy version')} of each scene"
    return f"{stages} Data: {source}."


def _improvement(run: Run) -> str:
    if not run.scores:
        return "No test picture has been scored yet (stage evaluate)."
    before, after = (values.get(run.scores, "mean", k, "y_psnr") for k in ("input", "output"))
    if not (values.is_number(before) and values.is_number(after)):
        return ""
    images = run.scores.get("images", [])
    pairs = [[values.get(i, k, "y_psnr") for k in ("input", "output")] for i in images]
    improved = sum(new > old for old, new in pairs if old is not None and new is not None)
    verb = "raises" if after > before else "does not raise"
    return (
        f"The network {verb} the PSNR on luma from {before:.2f} dB for the rainy pictures to "
        f"{after:.2f} dB ({after - before:+.2f} dB), mean over "
        f"{values.count(len(images), 'picture')}; {improved} of them improved."
    )


# Pictures


def _before_after(run: Run) -> str:
    if not run.pictures:
        return note("No example pictures: the stage evaluate has left none.")
    images = run.scores.get("images", [])
    scores = {Path(str(i.get("name"))).stem: i for i in images}
    scores |= {str(i.get("name")): i for i in images}
    rows = []
    for name, files in list(run.pictures.items())[:MAX_PICTURES]:
        figures = "".join(
            _figure(name, kind, files[kind], scores.get(name))
            for kind in reader.PICTURE_KINDS
            if kind in files
        )
        rows.append(f'<h3>{escape(name)}</h3><div class="triple">{figures}</div>')
    hint = note("PSNR and SSIM on luma. Click a picture to enlarge it, again to go back.")
    more = len(run.pictures) - MAX_PICTURES
    rest = f"<p>{values.count(more, 'more picture')} in evaluate/pictures.</p>" if more > 0 else ""
    return f"{hint}{''.join(rows)}{rest}"


def _figure(name: str, kind: str, path: Path, scores: Mapping[str, Any] | None) -> str:
    """A picture that a click enlarges, with its scores."""
    measured = values.get(scores, _SCORED.get(kind, "")) or {}
    figures = [
        f"{values.score(key, measured[key])}{unit}"
        for key, unit in (("y_psnr", " dB"), ("y_ssim", ""))
        if values.is_number(measured.get(key))
    ]
    source, reduced = embed_picture(path)
    alt = ", ".join([f"{kind.capitalize()} picture {name}", *figures])
    return (
        '<figure><label class="zoom"><input type="checkbox" '
        f'aria-label="Enlarge the {kind} picture {escape(name)}">'
        f'<img src="{source}" alt="{escape(alt)}"></label>'
        f"<figcaption><b>{kind.capitalize()}</b> {' · '.join(figures)}"
        f"{' (shown reduced)' if reduced else ''}</figcaption></figure>"
    )


# Network


def _network(run: Run) -> str:
    genotype = run.genotype
    if genotype is None:
        return note("No network yet: the stage search has left no genotype.json.")
    edges = svg.edge_names(genotype.space.attention_groups)
    attention = [
        (f"Cell {c + 1}, branch {b + 1}", *genotype.attention[c][b])
        for c, b in genotype.space.modules
    ]
    columns = [(str(i + 1), ", ".join(c) or "none") for i, c in enumerate(genotype.columns)]
    text = table(("Attention module", *edges), attention, "Attention edges", numeric=False)
    text += table(("Cell", "Columns, first to last"), columns, "Columns", numeric=False)
    return (
        f'<div class="wide">{svg.draw_genotype(genotype)}</div>{_costs(genotype)}'
        f"{details('The choices as text', text)}"
    )


def _costs(genotype: Genotype) -> str:
    space = genotype.space
    columns = [
        cost.column(space, cell, choice, *MACS_SIZE)
        for cell, choices in enumerate(genotype.columns)
        for choice in choices
    ]
    edges = [
        cost.edge(space, branch, name, *MACS_SIZE)
        for cell, branch in space.modules
        for name in genotype.attention[cell][branch]
    ]
    costs = {
        "Fixed parts": [cost.fixed(space, *MACS_SIZE)],
        "Searched columns": columns,
        "Searched attention edges": edges,
        "Whole network": [cost.derived(genotype, *MACS_SIZE)],
    }
    rows = [
        (what, f"{sum(c.parameters for c in parts):,}", svg.number(sum(c.macs for c in parts)))
        for what, parts in costs.items()
    ]
    header = ("Part", "Parameters", f"Multiply-accumulates, {_macs_size()} picture")
    return table(header, rows, "Cost of the network")


def _macs_size() -> str:
    return "×".join(map(str, MACS_SIZE))


# Probabilities of the search


def _probabilities(run: Run) -> str:
    events = run.stages["search"].events if "search" in run.stages else {}
    columns, attention = (events.get(f"architecture/{what}") for what in ("columns", "attention"))
    if columns is None and attention is None:
        return note("No search has recorded architecture probabilities here.")
    steps, _ = columns or attention
    body = note(
        f"Softmax probabilities of the choices, steps {steps[0]:,} to {steps[-1]:,} from left to "
        "right; below each, the most probable choice at the end."
    )
    if columns is not None:
        derived = trust.derived_choices(run.genotype, "columns")
        labels = _column_labels(run.genotype, columns[1].shape[1])
        body += f"<h3>Columns</h3>{_key(COLUMNS)}{_strips(columns[1], labels, COLUMNS, derived)}"
    if attention is not None:
        derived = trust.derived_choices(run.genotype, "attention")
        labels, candidates = _edge_labels(run.genotype, *attention[1].shape[1:])
        strips = attention[1].reshape(len(attention[1]), -1, len(candidates))
        body += f"<h3>Attention edges</h3>{_key(candidates)}"
        body += _strips(strips, labels, candidates, derived)
    return body


Labels = Sequence[tuple[str, Sequence[str]]]
"""Heading of each row, labels of its strips."""


def _column_labels(genotype: Genotype | None, count: int) -> Labels:
    """One row per cell where the space is known."""
    per_cell = genotype.space.columns if genotype else (count,)
    if sum(per_cell) != count:
        per_cell = (count,)
    return [
        (f"Cell {i + 1}" if len(per_cell) > 1 else "", [f"column {j + 1}" for j in range(n)])
        for i, n in enumerate(per_cell)
        if n
    ]


def _edge_labels(
    genotype: Genotype | None, modules: int, edges: int, candidates: int
) -> tuple[Labels, Sequence[str]]:
    """One row per module, and names of the candidates; numbers where the space is unknown."""
    names = genotype.space.candidates if genotype else CANDIDATES
    if len(names) != candidates:
        names = [f"candidate {i + 1}" for i in range(candidates)]
    groups = next((g for g in range(1, 9) if g * (g + 1) // 2 == edges), 0)
    labels = svg.edge_names(groups) or [f"edge {i + 1}" for i in range(edges)]
    headings = [f"Module {i + 1}" for i in range(modules)]
    if genotype and len(genotype.space.modules) == modules:
        headings = [f"Cell {c + 1}, branch {b + 1}" for c, b in genotype.space.modules]
    return [(heading, labels) for heading in headings], names


def _strips(
    probabilities: np.ndarray, rows: Labels, names: Sequence[str], derived: Sequence[str]
) -> str:
    """Rows of small stacked areas.

    Args:
      probabilities: (times, strips, choices), strips row by row.
      rows: headings and labels.
      names: of the choices.
      derived: the choice of each strip in the derived network; empty if unknown.
    """
    times = np.unique(np.linspace(0, len(probabilities) - 1, 120).round().astype(int))
    html, strip = [], 0
    for heading, labels in rows:
        figures = []
        for label in labels:
            final = probabilities[-1, strip]
            best = int(np.argmax(final))
            title = f"{heading} {label}".strip()
            differs = len(derived) == len(probabilities[0]) and derived[strip] != names[best]
            other = f", derived: <b>{escape(derived[strip])}</b>" if differs else ""
            areas = svg.stacked_areas(probabilities[times, strip], names, title)
            figures.append(
                f"<figure>{areas}<figcaption>{escape(label)}: <b>{escape(names[best])}</b> "
                f"{final[best]:.2f}{other}</figcaption></figure>"
            )
            strip += 1
        html.append(f'<h4>{escape(heading)}</h4><div class="strips">{"".join(figures)}</div>')
    return f'<div class="probabilities">{"".join(html)}</div>'


def _key(names: Iterable[str]) -> str:
    items = "".join(
        f'<li><i style="background:{svg.colour(name)}"></i>{escape(name)}</li>' for name in names
    )
    return f'<ul class="key">{items}</ul>'


# Curves


def _curves(run: Run, stage: str) -> str:
    events = run.stages[stage].events if stage in run.stages else {}
    scalars = {tag: curve for tag, curve in events.items() if curve[1].ndim == 1}
    if not scalars:
        return note(f"The stage {stage} has recorded no curves here.")
    entropies = {name: scalars.pop(tag) for name, tag in _ENTROPIES.items() if tag in scalars}
    order = ("loss", "validation", "architecture", "learning_rate")

    def rank(tag):
        group = tag.split("/")[0]
        return (*order, group).index(group), tag != "loss/total", tag

    tags = sorted(scalars, key=rank)
    charts = {values.title(tag): {values.title(tag): scalars[tag]} for tag in tags}
    if entropies:
        charts["Entropy of the architecture"] = entropies
    return f'<div class="charts">{"".join(_chart(t, c) for t, c in charts.items())}</div>'


def _chart(title: str, curves: Mapping[str, svg.Curve]) -> str:
    finite, dropped = {}, 0
    for name, (steps, points) in curves.items():
        fine = np.isfinite(points)
        dropped += int(np.sum(~fine))
        if fine.any():
            finite[name] = steps[fine], points[fine].astype(np.float64)
    ends = "".join(
        f'<span><i style="background:var(--series-{i})"></i>'
        f"{escape(name) + ' ' if len(finite) > 1 else ''}{svg.number(points[-1])}</span>"
        for i, (name, (_, points)) in enumerate(finite.items(), start=1)
    )
    lost = f"{values.count(dropped, 'value')} not finite"
    warning = f'<span class="warning">{lost}</span>' if dropped else ""
    chart = svg.line_chart(finite, title, title.startswith("Loss")) if finite else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{ends}{warning}</figcaption>{chart}</figure>"


# Tables


_TIMINGS = {
    "steps": ("Steps", lambda v: f"{v:,}"),
    "seconds": ("Wall time", values.duration),
    "compile_seconds": ("Compilation", values.duration),
    "flops_per_step": ("Floating-point operations per step", svg.number),
    "images_per_second": ("Images per second", svg.number),
    "devices": ("Devices", str),
    "rollbacks": ("Rollbacks of a diverged loss", str),
    "parameters": ("Parameters in training", lambda v: f"{v:,}"),
}
"""Key of a summary -> heading, and how a number is written."""


def _timings(run: Run) -> str:
    stages = {
        _STAGE_TITLES[name]: values.flatten(stage.summary)
        for name, stage in run.stages.items()
        if stage.summary
    }
    seconds = [i.get("seconds") for i in run.scores.get("images", [])]
    if not stages and not seconds:
        return note("No stage has ended yet.")
    keys = [key for key in _TIMINGS if any(key in s for s in stages.values())]
    keys += sorted({key for s in stages.values() for key in s} - set(_TIMINGS))
    rows = []
    for key in keys:
        label, form = _TIMINGS.get(key, (values.title(key.replace(".", "/")), values.plain))
        cells = [s.get(key) for s in stages.values()]
        rows.append((label, *(_cell(value, form) for value in cells)))
    html = table(("", *stages), rows, "Time and size of the stages") if rows else ""
    if seconds and all(map(values.is_number, seconds)):
        html += (
            f"<p>Evaluation restored {values.count(len(seconds), 'picture')} in "
            f"{values.duration(sum(seconds))}, {svg.number(float(np.median(seconds)))} s per "
            "picture (median).</p>"
        )
    return html


def _cell(value: Any, form: Any) -> str:
    if value is None:
        return "–"
    return form(value) if values.is_number(value) else values.plain(value)


def _scores(run: Run) -> str:
    if not (images := run.scores.get("images")):
        return note("No scores: the stage evaluate has left no scores.json.")
    mean = run.scores.get("mean")
    means = [
        (kind.capitalize(), *(_score(mean, side, measure) for measure in _MEASURES))
        for kind, side in _SCORED.items()
    ]
    header = ["Picture", *(f"{title}, {kind}" for title in _MEASURES.values() for kind in _SCORED)]
    rows = [
        (
            str(image.get("name")),
            *(_score(image, side, measure) for measure in _MEASURES for side in _SCORED.values()),
        )
        for image in images
    ]
    explanation = note(
        "Measured on 8-bit pictures, Y as MATLAB’s rgb2ycbcr; PSNR in dB, SSIM with an 11×11 "
        "Gaussian window."
    )
    every = table(header, rows, "Scores of each picture")
    return (
        f"{explanation}{table(('', *_MEASURES.values()), means, f'Mean of {len(images)}')}"
        f"{details('Every picture', every, expanded=len(rows) <= 12)}"
    )


def _score(scores: Any, side: str, measure: str) -> str:
    value = values.get(scores, side, measure)
    return values.score(measure, value) if values.is_number(value) else "–"


def _config(run: Run) -> str:
    if not run.config:
        return note("This folder holds no config.json.")
    text = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    return details("All settings of the run", f"<pre>{text}</pre>")

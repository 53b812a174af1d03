"""The page a run leaves for people: one HTML file with pictures, curves and the found network.

    python -m manas_jax.report --workdir=DIR

writes DIR/report.html from what the stages search, train and evaluate left in DIR. The page needs
nothing but itself: pictures are embedded, drawings are SVG, there is no script. What a run has not
done yet is left out, with a sentence that says so.
"""

import argparse
import base64
import dataclasses
import io
import json
import os
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.files import replacing
from manas_jax.report import svg
from manas_jax.report.svg import draw_genotype
from manas_jax.search import collapse
from manas_jax.space import CANDIDATES, COLUMNS, Genotype

__all__ = ["draw_genotype", "main", "read", "read_events", "trust", "verdict", "write"]

STAGES = {"search": "Search", "train": "Training"}
MACS_SIZE = (256, 256)  # height and width for which the page states multiply-accumulates
MOST_PICTURES = 8
LONGEST_SIDE = 1600  # pixels; larger pictures are embedded reduced, or the page would not open

_MEASURES = {"y_psnr": "Y PSNR", "y_ssim": "Y SSIM", "rgb_psnr": "RGB PSNR", "rgb_ssim": "RGB SSIM"}
_KINDS = {"rainy": "Rainy", "restored": "Restored", "clean": "Clean"}
_SEARCHED = {"columns": "columns", "attention": "attention edges"}
_ENTROPIES = {
    "columns": "architecture/entropy_columns",
    "attention": "architecture/entropy_attention",
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one training stage left: its summary and, by tag, (steps, values) of its events."""

    summary: Mapping[str, Any]
    events: Mapping[str, svg.Curve]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left in its workdir. What is missing is empty or None."""

    name: str
    config: Mapping[str, Any]
    genotype: Genotype | None
    stages: Mapping[str, Stage]
    scores: Mapping[str, Any]
    pictures: Mapping[str, Mapping[str, Path]]  # picture's name -> rainy, restored, clean -> file


def write(workdir: str | os.PathLike) -> Path:
    """Writes WORKDIR/report.html, whole or not at all, and returns its path.

    Raises:
      UserError: the folder is missing or holds no run, or one of its files is damaged.
    """
    run = read(workdir)
    path = Path(workdir) / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page(run), encoding="utf-8")
    return path


def read(workdir: str | os.PathLike) -> Run:
    """Reads what a run left.

    Raises:
      UserError: the folder is missing or holds no run, or one of its files is damaged.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --workdir of a run")
    genotype = folder / "genotype.json"
    stages = {
        name: Stage(_json(folder / name / "summary.json"), read_events(folder / name))
        for name in STAGES
    }
    run = Run(
        name=folder.resolve().name,
        config=_json(folder / "config.json"),
        genotype=Genotype.load(genotype) if genotype.exists() else None,
        stages={name: s for name, s in stages.items() if s.summary or s.events},
        scores=_json(folder / "evaluate" / "scores.json"),
        pictures=_pictures(folder / "evaluate" / "pictures"),
    )
    if not (run.config or run.genotype or run.stages or run.scores):
        raise UserError(f"{folder}: nothing to report; give the --workdir of a run that has begun")
    return run


def read_events(folder: str | os.PathLike) -> dict[str, svg.Curve]:
    """Reads all TensorBoard event files of a folder.

    A resumed run leaves several files and takes some steps again. A later file undoes what earlier
    ones hold of a tag from its own first step on; within a file the last value of a step counts.

    Returns:
      tag -> (steps (n,) int64 rising, values (n, ...)); empty if there are no event files.
    """
    files = []
    for path in Path(folder).glob("events.out.tfevents.*"):
        if events := list(event_file_loader.EventFileLoader(str(path)).Load()):
            files.append((events[0].wall_time, path.name, events))

    points: dict[str, dict[int, np.ndarray]] = {}
    for _, _, events in sorted(files, key=lambda file: file[:2]):
        fresh: dict[str, dict[int, np.ndarray]] = {}
        for event in events:
            for value in event.summary.value:
                if value.HasField("tensor"):
                    array = tensor_util.make_ndarray(value.tensor)
                    if np.issubdtype(array.dtype, np.number):
                        fresh.setdefault(value.tag, {})[event.step] = array
        for tag, new in fresh.items():
            kept = {s: v for s, v in points.get(tag, {}).items() if s < min(new)}
            points[tag] = kept | new

    curves = {}
    for tag, values in points.items():
        steps = sorted(s for s in values if values[s].shape == values[max(values)].shape)
        curves[tag] = np.array(steps), np.stack([values[s] for s in steps])
    return curves


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove or replace it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; remove or replace it")
    return content


def _pictures(folder: Path) -> dict[str, dict[str, Path]]:
    pictures: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        name, _, kind = path.stem.rpartition("_")
        if name and kind in _KINDS:
            pictures.setdefault(name, {})[kind] = path
    return pictures


# Judging the search


def trust(run: Run) -> list[str]:
    """Sentences on how far the found network can be believed to be what the search preferred."""
    search = run.stages.get("search")
    if search is None:
        return []
    sentences = []
    last = _last_probabilities(search)
    for what, probabilities in last.items():
        rows = probabilities.reshape(-1, probabilities.shape[-1])
        if len(rows) and rows.shape[1] > 1:
            indices = _indices(run.genotype, what, rows.shape)
            sentences.append(_decidedness(_SEARCHED[what], rows, indices))
    if run.genotype is not None:
        names, candidates = _picks(run.genotype, "attention"), run.genotype.space.candidates
        skips = np.mean([name == "skip_connect" for name in names])
        sentence = f"Skips make up {skips:.0%} of the found attention edges"
        fits = "attention" in last and last["attention"].shape[-1] == len(candidates)
        if fits and "none" in candidates:
            none = candidates.index("none")
            first = np.mean(np.argmax(last["attention"], axis=-1) == none)
            sentence += (
                f"; “none”, which is never derived, was the likeliest choice of {first:.0%} of the "
                f"edges and holds {np.mean(last['attention'][..., none]):.0%} of all probability"
            )
        sentences.append(sentence + ".")
    reached = [_get(run.stages[s].summary, "validation", "psnr") for s in STAGES if s in run.stages]
    if len(reached) == 2 and all(map(_is_number, reached)):
        sentences.append(
            f"On the validation scenes the relaxed supernet reached {reached[0]:.2f} dB and the "
            f"found network, trained by itself, {reached[1]:.2f} dB."
        )
    return sentences


def verdict(run: Run) -> str:
    """One plain sentence on whether the found network looks like the search's own doing."""
    search = run.stages.get("search")
    if search is None or not (last := _last_probabilities(search)):
        return ""
    space = run.genotype.space if run.genotype else None
    candidates = space.candidates if space else _get(run.config, "space", "candidates")
    relaxed, derived = (_get(search.summary, k, "psnr") for k in ("validation", "derived"))
    measured = _is_number(relaxed) and _is_number(derived)
    gap = relaxed - derived if measured else None
    if found := collapse.signs(last, candidates or CANDIDATES, gap):
        return f"The result does not look trustworthy: {'; '.join(found)}."
    told = f", and discretisation cost {gap:.2f} dB" if measured else ""
    return (
        "The result looks trustworthy as far as one run can tell: no collapse to empty choices, "
        f"the probabilities have left their even start{told}. Whether it beats chance, only a "
        "study of several seeds shows (python -m manas_jax.study)."
    )


def _last_probabilities(search: Stage) -> dict[str, np.ndarray]:
    return {
        what: search.events[f"architecture/{what}"][1][-1].astype(np.float64)
        for what in _SEARCHED
        if f"architecture/{what}" in search.events
    }


def _decidedness(what: str, rows: np.ndarray, indices: Sequence[int]) -> str:
    """How clearly probabilities (rows, choices) favour the derived choices, in a sentence or two.

    Without `indices` of the derived choices the likeliest ones stand in for them.
    """
    choices = rows.shape[1]
    which = indices if len(indices) else np.argmax(rows, axis=1)
    kept = float(np.mean(rows[np.arange(len(rows)), which]))
    entropy = collapse.entropy(rows)
    verdict = (
        "the search has hardly decided, and a random pick might do as well"
        if entropy > collapse.UNDECIDED
        else "the search leans without having settled"
        if entropy > 0.5
        else "the search has settled"
    )
    return (
        f"The {'derived' if len(indices) else 'likeliest'} choices of the {len(rows)} {what} hold "
        f"{kept:.0%} of the probability on average (an undecided search: {1 / choices:.0%}); "
        f"discretisation drops the other {1 - kept:.0%}. Entropy is {entropy:.0%} of the highest "
        f"possible: {verdict}."
    )


def _picks(genotype: Genotype | None, what: str) -> list[str]:
    """The derived choices in the order of the search's probabilities; none without a genotype."""
    if genotype is None:
        return []
    if what == "columns":
        return [choice for cell in genotype.columns for choice in cell]
    return [choice for cell in genotype.attention for module in cell for choice in module]


def _indices(genotype: Genotype | None, what: str, shape: tuple[int, int]) -> list[int]:
    """The derived choices as positions among `shape[1]` choices; none if they do not fit."""
    picks = _picks(genotype, what)
    if genotype is None or len(picks) != shape[0]:
        return []
    names = COLUMNS if what == "columns" else genotype.space.candidates
    return [names.index(pick) for pick in picks] if len(names) == shape[1] else []


# Sections of the page


def page(run: Run) -> str:
    """The whole page as a string."""
    sections = {
        "Summary": _summary(run),
        "Before and after": _before_after(run),
        "The found network": _network(run),
        "How the architecture came about": _probabilities(run),
        **{f"{title}: curves": _curves(run, name) for name, title in STAGES.items()},
        "Timings": _timings(run),
        "Scores": _scores(run),
        "Configuration": _config(run),
    }
    ids = {title: title.lower().replace(" ", "-").replace(":", "") for title in sections}
    return string.Template(_PAGE).substitute(
        name=escape(run.name),
        style=_STYLE,
        contents="".join(f'<li><a href="#{ids[t]}">{t}</a></li>' for t in sections),
        sections="\n".join(
            f'<section id="{ids[title]}"><h2>{title}</h2>\n{body}</section>'
            for title, body in sections.items()
        ),
    )


def _summary(run: Run) -> str:
    tiles, sentences = [], [_what_was_done(run)]
    images = run.scores.get("images", [])
    before, after = (_get(run.scores, "mean", which) or {} for which in ("input", "output"))
    for key, unit in (("y_psnr", "dB"), ("y_ssim", "")):
        if _is_number(after.get(key)):
            start = f"{_score(key, before[key])} → " if _is_number(before.get(key)) else ""
            tiles.append((_MEASURES[key], f"{start}{_score(key, after[key])}", unit))
    if _is_number(after.get("y_psnr")) and _is_number(before.get("y_psnr")):
        verb = "raises" if after["y_psnr"] > before["y_psnr"] else "does not raise"
        better = sum(
            _get(i, "output", "y_psnr") > _get(i, "input", "y_psnr")
            for i in images
            if _get(i, "input", "y_psnr") is not None and _get(i, "output", "y_psnr") is not None
        )
        sentences.append(
            f"The network {verb} the PSNR on luma from {before['y_psnr']:.2f} dB for the rainy "
            f"pictures to {after['y_psnr']:.2f} dB ({after['y_psnr'] - before['y_psnr']:+.2f} dB)"
            f", mean over {_count(len(images), 'picture')}; {better} of them got better."
        )
    elif not run.scores:
        sentences.append("No test picture has been scored yet (stage evaluate).")
    if run.genotype is not None:
        total = cost.derived(run.genotype, *MACS_SIZE)
        tiles.append(("Parameters", svg.number(total.parameters), ""))
        size = "×".join(map(str, MACS_SIZE))
        tiles.append((f"MACs at {size}", svg.number(total.macs), ""))
    for name, title in STAGES.items():
        seconds = _get(run.stages[name].summary, "seconds") if name in run.stages else None
        if _is_number(seconds):
            tiles.append((f"{title} time", duration(seconds), ""))
    boxes = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}"
        f"{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for label, value, unit in tiles
    )
    judged = trust(run)
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in judged)
    return (
        (f'<dl class="tiles">{boxes}</dl>' if tiles else "")
        + "".join(f"<p>{escape(s)}</p>" for s in sentences if s)
        + (
            f"<h3>Can the search be trusted?</h3><p>{escape(verdict(run))}</p><ul>{items}</ul>"
            if judged
            else ""
        )
    )


def _what_was_done(run: Run) -> str:
    done = []
    for name, title in STAGES.items():
        if name in run.stages:
            summary = run.stages[name].summary
            steps = summary.get("steps")
            done.append(title.lower() + (f" ({steps:,} steps)" if isinstance(steps, int) else ""))
    if images := run.scores.get("images"):
        done.append(f"evaluation ({_count(len(images), 'picture')})")
    data = run.config.get("data")
    source = ""
    if isinstance(data, Mapping) and data.get("source"):
        origin = {"folder": Path(str(data.get("root"))).name, "tfds": data.get("tfds_name")}
        which = origin.get(data["source"])
        source = f" Data: {data['source']}{f' “{which}”' if which else ''}"
        if isinstance(data.get("versions"), int):
            source += f", {_count(data['versions'], 'rainy version')} of each scene"
        source += "."
    return (
        f"Stages in this folder: {', '.join(done)}." if done else "No stage has begun."
    ) + source


def _before_after(run: Run) -> str:
    if not run.pictures:
        return _missing("No example pictures: the stage evaluate has left none.")
    scores = {Path(str(i.get("name"))).stem: i for i in run.scores.get("images", [])}
    scores |= {str(i.get("name")): i for i in run.scores.get("images", [])}
    rows = []
    for name, files in list(run.pictures.items())[:MOST_PICTURES]:
        figures = []
        for kind, title in _KINDS.items():
            if kind in files:
                which = {"rainy": "input", "restored": "output"}.get(kind, "")
                values = _get(scores.get(name, {}), which) or {}
                told = [
                    f"{_score(key, values[key])}{unit}"
                    for key, unit in (("y_psnr", " dB"), ("y_ssim", ""))
                    if _is_number(values.get(key))
                ]
                source, reduced = _data_uri(files[kind])
                alt = ", ".join([f"{title} picture {name}", *told])
                figures.append(
                    '<figure><label class="zoom"><input type="checkbox" '
                    f'aria-label="Show the {kind} picture {escape(name)} large">'
                    f'<img src="{source}" alt="{escape(alt)}"></label>'
                    f"<figcaption><b>{title}</b> {' · '.join(told)}"
                    f"{' (shown reduced)' if reduced else ''}</figcaption></figure>"
                )
        rows.append(f'<h3>{escape(name)}</h3><div class="triple">{"".join(figures)}</div>')
    hint = "PSNR and SSIM on luma. Click a picture to see it large, again to go back."
    more = len(run.pictures) - MOST_PICTURES
    rest = f"<p>{_count(more, 'more picture')} in evaluate/pictures.</p>" if more > 0 else ""
    return f'<p class="note">{hint}</p>{"".join(rows)}{rest}'


def _network(run: Run) -> str:
    genotype = run.genotype
    if genotype is None:
        return _missing("No network yet: the stage search has left no genotype.json.")
    space = genotype.space
    fixed, total = cost.fixed(space, *MACS_SIZE), cost.derived(genotype, *MACS_SIZE)
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
    rows = [
        ("Fixed parts", fixed.parameters, fixed.macs),
        ("Searched columns", sum(c.parameters for c in columns), sum(c.macs for c in columns)),
        ("Searched attention edges", sum(e.parameters for e in edges), sum(e.macs for e in edges)),
        ("Whole network", total.parameters, total.macs),
    ]
    size = "×".join(map(str, MACS_SIZE))
    costs = _table(
        ("Part", "Parameters", f"Multiply-accumulates, {size} picture"),
        [(part, f"{p:,}", svg.number(m)) for part, p, m in rows],
        "What the network costs",
    )
    names = svg.edge_names(space.attention_groups)
    choices = [
        (f"Cell {c + 1}, branch {b + 1}", *genotype.attention[c][b]) for c, b in space.modules
    ]
    text = _table(("Attention module", *names), choices, "Attention edges", numeric=False)
    text += _table(
        ("Cell", "Columns, first to last"),
        [(str(i + 1), ", ".join(c) or "none") for i, c in enumerate(genotype.columns)],
        "Columns",
        numeric=False,
    )
    return (
        f'<div class="wide">{draw_genotype(genotype)}</div>{costs}'
        f"<details><summary>The choices as text</summary>{text}</details>"
    )


def _probabilities(run: Run) -> str:
    events = run.stages["search"].events if "search" in run.stages else {}
    columns, attention = (events.get(f"architecture/{what}") for what in ("columns", "attention"))
    if columns is None and attention is None:
        return _missing("No search has recorded architecture probabilities here.")
    some_steps = (columns or attention)[0]
    body = (
        f'<p class="note">Softmax probabilities of the choices, steps {some_steps[0]:,} to '
        f"{some_steps[-1]:,} from left to right; below each, the likeliest choice at the end.</p>"
    )
    if columns is not None:
        body += f"<h3>Columns</h3>{_key(COLUMNS)}"
        labels = _column_labels(run.genotype, columns[1].shape[1])
        body += _strips(columns[1], labels, COLUMNS, _picks(run.genotype, "columns"))
    if attention is not None:
        count, edges, candidates = attention[1].shape[1:]
        known = run.genotype.space.candidates if run.genotype else CANDIDATES
        if len(known) != candidates:
            known = tuple(f"candidate {i + 1}" for i in range(candidates))
        groups = next((g for g in range(1, 9) if g * (g + 1) // 2 == edges), 0)
        names = svg.edge_names(groups) or [f"edge {i + 1}" for i in range(edges)]
        modules = [f"Module {i + 1}" for i in range(count)]
        if run.genotype and len(run.genotype.space.modules) == count:
            modules = [f"Cell {c + 1}, branch {b + 1}" for c, b in run.genotype.space.modules]
        body += f"<h3>Attention edges</h3>{_key(known)}"
        shares = attention[1].reshape(len(attention[1]), count * edges, candidates)
        rows = [(module, names) for module in modules]
        body += _strips(shares, rows, known, _picks(run.genotype, "attention"))
    return body


def _column_labels(genotype: Genotype | None, count: int) -> list[tuple[str, list[str]]]:
    """(row's heading, labels of its strips), one row a cell where the space is known."""
    per_cell = genotype.space.columns if genotype else (count,)
    if sum(per_cell) != count:
        per_cell = (count,)
    return [
        (f"Cell {i + 1}" if len(per_cell) > 1 else "", [f"column {j + 1}" for j in range(n)])
        for i, n in enumerate(per_cell)
        if n
    ]


def _strips(
    shares: np.ndarray,
    rows: Sequence[tuple[str, Sequence[str]]],
    names: Sequence[str],
    picks: Sequence[str],
) -> str:
    """Rows of small stacked areas; shares (times, strips, choices), strips row by row.

    `picks` are the choices that were derived, if they are known: one a strip, or none at all.
    """
    kept = np.unique(np.linspace(0, len(shares) - 1, 120).round().astype(int))
    html, strip = [], 0
    for heading, labels in rows:
        figures = []
        for label in labels:
            final = shares[-1, strip]
            best = int(np.argmax(final))
            title = f"{heading} {label}".strip()
            differs = len(picks) == shares.shape[1] and picks[strip] != names[best]
            derived = f", derived: <b>{escape(picks[strip])}</b>" if differs else ""
            figures.append(
                f"<figure>{svg.stacked_areas(shares[kept, strip], names, title)}<figcaption>"
                f"{escape(label)}: <b>{escape(names[best])}</b> {final[best]:.2f}{derived}"
                "</figcaption></figure>"
            )
            strip += 1
        html.append(f'<h4>{escape(heading)}</h4><div class="strips">{"".join(figures)}</div>')
    return f'<div class="probabilities">{"".join(html)}</div>'


def _key(names: Iterable[str]) -> str:
    items = "".join(
        f'<li><i style="background:{svg.colour(name)}"></i>{escape(name)}</li>' for name in names
    )
    return f'<ul class="key">{items}</ul>'


def _curves(run: Run, name: str) -> str:
    events = run.stages[name].events if name in run.stages else {}
    scalars = {tag: curve for tag, curve in events.items() if curve[1].ndim == 1}
    if not scalars:
        return _missing(f"The stage {name} has recorded no curves here.")
    entropies = {name: scalars.pop(tag) for name, tag in _ENTROPIES.items() if tag in scalars}
    order = ("loss", "validation", "architecture", "learning_rate")

    def rank(tag):
        group = tag.split("/")[0]
        return (*order, group).index(group), tag != "loss/total", tag

    tags = sorted(scalars, key=rank)
    charts = {_title(tag): {_title(tag): scalars[tag]} for tag in tags}
    if entropies:
        charts["Entropy of the architecture"] = entropies
    return f'<div class="charts">{"".join(_chart(t, c) for t, c in charts.items())}</div>'


def _chart(title: str, curves: Mapping[str, svg.Curve]) -> str:
    finite, lost = {}, 0
    for name, (steps, values) in curves.items():
        fine = np.isfinite(values)
        lost += int(np.sum(~fine))
        if fine.any():
            finite[name] = steps[fine], values[fine].astype(np.float64)
    ends = "".join(
        f'<span><i style="background:var(--series-{i})"></i>'
        f"{escape(name) + ' ' if len(finite) > 1 else ''}{svg.number(values[-1])}</span>"
        for i, (name, (_, values)) in enumerate(finite.items(), start=1)
    )
    warning = f'<span class="warning">{_count(lost, "value")} not finite</span>' if lost else ""
    chart = svg.line_chart(finite, title, title.startswith("Loss")) if finite else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{ends}{warning}</figcaption>{chart}</figure>"


def _timings(run: Run) -> str:
    stages = {STAGES[name]: stage.summary for name, stage in run.stages.items() if stage.summary}
    seconds = [i.get("seconds") for i in run.scores.get("images", [])]
    if not stages and not seconds:
        return _missing("No stage has ended yet.")
    forms = {
        "steps": ("Steps", lambda v: f"{v:,}"),
        "seconds": ("Wall time", duration),
        "compile_seconds": ("Compilation", duration),
        "flops_per_step": ("Floating-point operations per step", svg.number),
        "images_per_second": ("Images per second", svg.number),
        "devices": ("Devices", str),
        "rollbacks": ("Rollbacks of a diverged loss", str),
        "parameters": ("Parameters in training", lambda v: f"{v:,}"),
    }
    flat = {title: _flatten(summary) for title, summary in stages.items()}
    keys = [k for k in forms if any(k in s for s in flat.values())]
    keys += sorted({k for s in flat.values() for k in s} - set(forms))
    rows = []
    for key in keys:
        label, form = forms.get(key, (_title(key.replace(".", "/")), _plain))
        values = [s.get(key) for s in flat.values()]
        rows.append((label, *("–" if v is None else _form(form, v) for v in values)))
    html = _table(("", *flat), rows, "Time and size of the stages") if rows else ""
    if seconds and all(map(_is_number, seconds)):
        html += (
            f"<p>Evaluation restored {_count(len(seconds), 'picture')} in "
            f"{duration(sum(seconds))}, {svg.number(float(np.median(seconds)))} s a picture "
            "(median).</p>"
        )
    return html


def _scores(run: Run) -> str:
    if not (images := run.scores.get("images")):
        return _missing("No scores: the stage evaluate has left no scores.json.")
    sides = {"input": "rainy", "output": "restored"}
    means = [
        (title.capitalize(), *_cells(run.scores, "mean", side, _MEASURES))
        for side, title in sides.items()
    ]
    header = ["Picture", *(f"{m}, {title}" for m in _MEASURES.values() for title in sides.values())]
    rows = [
        (
            str(image.get("name")),
            *(_cells(image, side, (key,))[0] for key in _MEASURES for side in sides),
        )
        for image in images
    ]
    note = (
        '<p class="note">Measured on 8-bit pictures, Y as MATLAB’s rgb2ycbcr; PSNR in dB, '
        "SSIM with an 11×11 Gaussian window.</p>"
    )
    opened = " open" if len(rows) <= 12 else ""
    every = _table(header, rows, "Scores of each picture")
    return (
        f"{note}{_table(('', *_MEASURES.values()), means, f'Mean of {len(images)}')}"
        f"<details{opened}><summary>Every picture</summary>{every}</details>"
    )


def _cells(holder: Any, *path: Any) -> list[str]:
    """The measures named last in `path` of the scores found at its other keys, as text."""
    *keys, measures = path
    values = [(measure, _get(holder, *keys, measure)) for measure in measures]
    return [_score(measure, v) if _is_number(v) else "–" for measure, v in values]


def _config(run: Run) -> str:
    if not run.config:
        return _missing("This folder holds no config.json.")
    text = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    return f"<details><summary>All settings of the run</summary><pre>{text}</pre></details>"


# Small things


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.42 s, 12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def _table(header, rows, caption, numeric=True) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="numbers"' if numeric else ""
    return (
        f'<div class="wide"><table{kind}><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _data_uri(path: Path) -> tuple[str, bool]:
    """The picture as a data URI, and whether it was reduced to `LONGEST_SIDE`."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            reduced = max(image.size) > LONGEST_SIDE
            if reduced:
                image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                content = buffer.getvalue()
    except OSError as error:
        raise UserError(f"{path}: not readable as a picture ({error}); remove it") from None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}", reduced


def _missing(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


def _get(mapping: Any, *keys: str) -> Any:
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in mapping.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _form(form, value: Any) -> str:
    return form(value) if _is_number(value) else _plain(value)


def _plain(value: Any) -> str:
    if _is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _score(key: str, value: float) -> str:
    return f"{value:.2f}" if key.endswith("psnr") else f"{value:.4f}"


def _title(tag: str) -> str:
    title = tag.replace("/", ": ").replace("_", " ")
    title = title.replace("psnr", "PSNR").replace("ssim", "SSIM")
    return title[0].upper() + title[1:]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--muted:#656d76;--grid:#e3e6ea;--paper:#fff;
--panel:#f6f7f8;--link:#2460a7;--warning:#b3261e;--series-1:#2f7fc4;--series-2:#cc5f45;
--series-3:#1f9173}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--muted:#9aa3ad;--grid:#333941;
--paper:#171a1f;--panel:#1f242b;--link:#8ab8ee;--warning:#ff8a80;--series-1:#63a8e6;
--series-2:#e8836a;--series-3:#4fbf9f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:2.5rem 1.5rem 5rem;background:var(--paper);
color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}
p,section>ul{max-width:46rem;margin:.6rem 0}
section>ul{padding-left:1.2rem}
h1{font-size:1.9rem;line-height:1.2;margin:0;letter-spacing:-.015em;font-weight:650}
h2{font-size:1.3rem;margin:3.2rem 0 .9rem;padding-top:.9rem;border-top:1px solid var(--grid)}
h3{font-size:1.02rem;margin:1.7rem 0 .4rem}
h4{font-size:.84rem;margin:0;color:var(--muted);font-weight:500}
a{color:var(--link)}
nav ul,.key{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;margin:.8rem 0}
nav{font-size:.9rem}
.note,.sub{color:var(--muted)}
.sub{margin:.2rem 0 0}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:0 0 1.3rem}
.tiles div{background:var(--panel);border-radius:8px;padding:.7rem 1rem}
.tiles dt{font-size:.8rem;color:var(--muted)}
.tiles dd{margin:0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums}
.tiles small{font-size:.8rem;font-weight:400;color:var(--muted)}
figure{margin:0;min-width:0}
figcaption{font-size:.84rem;font-variant-numeric:tabular-nums}
.triple{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));gap:.9rem}
.zoom{display:block;cursor:zoom-in}
.zoom input{position:absolute;opacity:0}
.zoom img{display:block;width:100%;height:auto;border-radius:4px}
.zoom input:focus-visible+img{outline:3px solid var(--link);outline-offset:2px}
.zoom input:checked+img{position:fixed;inset:0;z-index:9;width:100vw;height:100vh;
object-fit:contain;background:rgba(0,0,0,.88);cursor:zoom-out;border-radius:0}
.wide{overflow-x:auto;margin:.8rem 0}
.genotype{display:block;width:100%;min-width:760px;height:auto}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));
gap:1.6rem 1.4rem}
.charts figcaption{display:flex;flex-wrap:wrap;gap:.1rem .9rem}
.charts b{margin-right:auto;font-weight:600}
.charts i,.key i{display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:.4em}
.key{font-size:.84rem}
.warning{color:var(--warning)}
.chart{display:block;width:100%;height:auto}
.chart .grid{stroke:var(--grid)}
.chart .tick{font-size:10.5px;fill:var(--muted)}
.chart .curve{fill:none!important;stroke-width:1.7;stroke-linejoin:round}
.chart .band{stroke:none!important;fill-opacity:.2}
.probabilities{display:grid;grid-template-columns:max-content 1fr;gap:.9rem 1.2rem;
align-items:start}
.probabilities h4{padding-top:.7rem}
.strips{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);gap:.9rem}
.areas{display:block;width:100%;height:44px;border-radius:3px}
.strips figcaption{color:var(--muted);font-size:.78rem;overflow-wrap:anywhere}
.strips b{color:var(--ink);font-weight:600}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--muted);font-size:.84rem;padding-bottom:.3rem}
th,td{padding:.3rem .9rem .3rem 0;text-align:left;border-bottom:1px solid var(--grid);
vertical-align:top}
th{font-weight:600}
tbody th{font-weight:400}
.numbers td,.numbers thead th+th{text-align:right;padding:.3rem 0 .3rem 1.3rem}
summary{cursor:pointer;color:var(--link);margin:.5rem 0}
pre{background:var(--panel);padding:1rem;border-radius:8px;overflow-x:auto;
font:.82rem/1.5 ui-monospace,Menlo,Consolas,monospace}
@media (max-width:640px){.probabilities{grid-template-columns:1fr;gap:.3rem}
.probabilities h4{padding-top:.6rem}}
@media print{body{max-width:none;padding:0;font-size:11pt}nav{display:none}
.note{break-after:avoid}figure,tr,.tiles,.triple{break-inside:avoid}h2,h3{break-after:avoid}
.genotype{min-width:0}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>MANAS run $name</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$name</h1>
<p class="sub">What this MANAS run found: an image de-raining network by architecture search</p>
<nav aria-label="Contents"><ul>$contents</ul></nav>
</header>
<main>
$sections
</main>
</body>
</html>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m manas_jax.report``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.report", description="Writes WORKDIR/report.html."
    )
    parser.add_argument("--workdir", required=True, help="folder that a run has written to")
    try:
        print(write(parser.parse_args(arguments).workdir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

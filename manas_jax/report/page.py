"""The page: pictures, curves and the derived network of a run in one HTML file.

The file stands alone: pictures and charts are embedded, and nothing is loaded. Its text is in
`templates/`, which escape all they are given. A section whose stage has not run yet says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from manas_jax import buckets, cost
from manas_jax.files import replacing
from manas_jax.report import curves, pictures, probabilities, reader, svg, trust, values
from manas_jax.report.reader import Run
from manas_jax.space import Genotype

with epy.lazy_imports():  # of the extra `train`, whose absence a command reports when it starts
    import jinja2

MACS_SIZE = (256, 256)  # height and width for which multiply-accumulates are given

_STAGE_TITLES = {"search": "Search", "train": "Training"}
_MEASURES = {"y_psnr": "Y PSNR", "y_ssim": "Y SSIM", "rgb_psnr": "RGB PSNR", "rgb_ssim": "RGB SSIM"}
_SEARCHED = {
    "bilevel": "Relaxed supernet",
    "evolution": "Chosen network with the supernet’s weights",
}
"""By method of the search, the network that its summary scores."""
_MISSING = "–"

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows; the first cell of a row is its heading."""


def write(workdir: str | os.PathLike) -> buckets.Path:
    """Writes WORKDIR/report.html, completely or not at all, and returns its path.

    Raises:
      UserError: the folder is missing or holds no run, or one of its files is damaged.
    """
    return save(render(reader.read(workdir)), workdir)


def save(html: str, workdir: str | os.PathLike) -> buckets.Path:
    """Writes WORKDIR/report.html, completely or not at all, and returns its path."""
    path = buckets.as_path(workdir) / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def template(name: str) -> jinja2.Template:
    """A page of `templates/`, which escapes all that it is given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(run: Run) -> str:
    """The HTML of the page."""
    return template("page.html").render(
        name=run.name,
        note=run.config.get("note"),
        figures=_key_figures(run),
        sentences=[s for s in (_stages(run), _data(run), _improvement(run)) if s],
        verdict=trust.verdict(run),
        findings=trust.findings(run),
        examples=pictures.examples(run),
        more_examples=values.count(len(run.pictures) - pictures.MAX_EXAMPLES, "more picture")
        if len(run.pictures) > pictures.MAX_EXAMPLES
        else "",
        network=_network(run.genotype) if run.genotype else None,
        spending=_spending(run),
        probabilities=probabilities.kinds(run),
        curves={
            title: _charts(run.stages[stage]) if stage in run.stages else []
            for stage, title in _STAGE_TITLES.items()
        },
        timings=_timings(run),
        evaluation_time=_evaluation_time(run),
        validation=_validation(run),
        split=_split(run),
        mean_scores=_mean_scores(run),
        scores=_scores(run),
        config=json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
    )


def _charts(stage: reader.Stage) -> list[curves.Chart]:
    """The curves of a stage, and what its evolution found generation by generation."""
    charts = curves.stage_charts(stage.events)
    if len(best := np.array(stage.summary.get("generations", []))):
        curve = {"": (np.arange(1, len(best) + 1), best)}
        charts.append(
            curves.chart("Best genotype of the evolution, PSNR in dB", curve, over="generations")
        )
    return charts


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
        figures.append(("Parameters", values.number(total.parameters), ""))
        figures.append((f"MACs at {_macs_size()}", values.number(total.macs), ""))
    for stage, title in _STAGE_TITLES.items():
        seconds = values.get(run.stages[stage].summary, "seconds") if stage in run.stages else None
        if values.is_number(seconds):
            figures.append((f"{title} time", values.duration(seconds), ""))
    return figures


def _stages(run: Run) -> str:
    done = []
    for stage, title in _STAGE_TITLES.items():
        if stage in run.stages:
            steps = run.stages[stage].summary.get("steps")
            done.append(title.lower() + (f" ({steps:,} steps)" if isinstance(steps, int) else ""))
    if images := run.scores.get("images"):
        done.append(f"evaluation ({values.count(len(images), 'picture')})")
    return f"Stages in this folder: {', '.join(done)}." if done else "No stage has begun."


def _data(run: Run) -> str:
    data = run.config.get("data")
    if not (isinstance(data, Mapping) and data.get("source")):
        return ""
    names = {"folder": Path(str(data.get("root"))).name, "tfds": data.get("tfds_name")}
    name = names.get(data["source"])
    source = f"{data['source']} “{name}”" if name else data["source"]
    versions = data.get("versions")
    if isinstance(versions, int):
        source += f", {values.count(versions, 'rainy version')} of each scene"
    return f"Data: {source}."


def _improvement(run: Run) -> str:
    if not run.scores:
        return "No test picture has been scored yet (stage evaluate)."
    before, after = (values.get(run.scores, "mean", k, "y_psnr") for k in ("input", "output"))
    if not (values.is_number(before) and values.is_number(after)):
        return ""
    images = run.scores.get("images", [])
    pairs = [[values.get(i, k, "y_psnr") for k in ("input", "output")] for i in images]
    improved = sum(new > old for old, new in pairs if old is not None and new is not None)
    pictures = values.count(len(images), f"{_split(run)} picture")
    verb = "raises" if after > before else "does not raise"
    return (
        f"The network {verb} the PSNR on luma from {before:.2f} dB for the rainy pictures to "
        f"{after:.2f} dB ({after - before:+.2f} dB), mean over "
        f"{pictures}; {improved} of them improved."
    )


def _split(run: Run) -> str:
    """What the scored pictures are for: 'test' or 'validation'."""
    return values.get(run.scores, "split") or "test"


def _network(genotype: Genotype) -> dict[str, Any]:
    """The drawing, the costs and the choices of a network."""
    attention = [
        (f"Cell {c + 1}, branch {b + 1}", *genotype.attention[c][b])
        for c, b in genotype.space.modules
    ]
    columns = [
        (str(i + 1), ", ".join(map(_column_text, *cell)) or "none")
        for i, cell in enumerate(zip(genotype.columns, genotype.widths, strict=True))
    ]
    edges = svg.edge_names(genotype.space.attention_groups)
    return {
        "drawing": svg.draw_genotype(genotype),
        "costs": _costs(genotype),
        "attention": (("Attention module", *edges), attention),
        "columns": (("Cell", "Columns, first to last"), columns),
    }


def _column_text(choice: str, widths: Sequence[float]) -> str:
    """A column's choice, with the widths of its branches where they are not all 1."""
    if set(widths) <= {1.0}:
        return choice
    return f"{choice} ({' / '.join(f'{width:g}' for width in widths)})"


def _costs(genotype: Genotype) -> Table:
    space = genotype.space
    columns = [
        cost.column(space, cell, choice, *MACS_SIZE, widths)
        for cell, choices in enumerate(genotype.columns)
        for choice, widths in zip(choices, genotype.widths[cell], strict=True)
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
        (what, f"{sum(c.parameters for c in parts):,}", values.number(sum(c.macs for c in parts)))
        for what, parts in costs.items()
    ]
    return ("Part", "Parameters", f"MACs, {_macs_size()} picture"), rows


def _spending(run: Run) -> Table | None:
    """Where the budget of the search went, scale by scale."""
    summary = run.stages["search"].summary if "search" in run.stages else {}
    shares = [values.get(summary, "spending", which) for which in ("found", "random")]
    if not all(shares):
        return None
    rows = [
        (values.scale(branch).capitalize(), *(f"{share:.0%}" for share in row))
        for branch, row in enumerate(zip(*shares, strict=True))
    ]
    return ("", "This network", "Random networks of the budget, mean"), rows


def _macs_size() -> str:
    return "×".join(map(str, MACS_SIZE))


_TIMINGS = {
    "steps": ("Steps", lambda v: f"{v:,}"),
    "seconds": ("Wall time", values.duration),
    "compile_seconds": ("Compilation", values.duration),
    "flops_per_step": ("FLOP per step", values.number),
    "images_per_second": ("Images per second", values.number),
    "devices": ("Devices", str),
    "best_step": ("Step of the stored weights", lambda v: f"{v:,}"),
    "rollbacks": ("Rollbacks of a diverged loss", str),
    "parameters": ("Parameters in training", lambda v: f"{v:,}"),
}
"""Key of a summary -> heading, and how a number is written."""


def _timings(run: Run) -> Table | None:
    """Time and size of the stages; numbers only, as sentences and scores are elsewhere."""
    stages = {
        _STAGE_TITLES[name]: stage.summary for name, stage in run.stages.items() if stage.summary
    }
    keys = [key for key in _TIMINGS if any(values.is_number(s.get(key)) for s in stages.values())]
    rows = [
        (
            heading,
            *(form(s[key]) if values.is_number(s.get(key)) else _MISSING for s in stages.values()),
        )
        for key in keys
        for heading, form in [_TIMINGS[key]]
    ]
    return (("", *stages), rows) if rows else None


def _evaluation_time(run: Run) -> str:
    seconds = [i.get("seconds") for i in run.scores.get("images", [])]
    if not (seconds and all(map(values.is_number, seconds))):
        return ""
    return (
        f"Evaluation restored {values.count(len(seconds), 'picture')} in "
        f"{values.duration(sum(seconds))}, {values.number(float(np.median(seconds)))} s per "
        "picture (median)."
    )


def _validation(run: Run) -> Table | None:
    """Scores of the networks on the validation scenes."""
    method = values.get(run.config, "search", "method") or "bilevel"
    networks = {
        _SEARCHED.get(method, "Best training of the search"): ("search", "validation"),
        "Derived network with the supernet’s weights": ("search", "derived"),
        "Derived network, trained on its own": ("train", "validation"),
    }
    rows = []
    for title, (stage, key) in networks.items():
        summary = run.stages[stage].summary if stage in run.stages else {}
        if values.get(summary, key):
            rows.append((title, *(_score(summary, key, measure) for measure in ("psnr", "ssim"))))
    return (("", "PSNR", "SSIM"), rows) if rows else None


def _mean_scores(run: Run) -> Table | None:
    if not (mean := run.scores.get("mean")):
        return None
    rows = [
        (kind.capitalize(), *(_score(mean, side, measure) for measure in _MEASURES))
        for kind, side in values.SCORED.items()
    ]
    return ("", *_MEASURES.values()), rows


def _scores(run: Run) -> Table | None:
    """Scores of each picture."""
    rows = [
        (
            str(image.get("name")),
            *(
                _score(image, side, measure)
                for measure in _MEASURES
                for side in values.SCORED.values()
            ),
        )
        for image in run.scores.get("images", [])
    ]
    titles = [f"{title}, {kind}" for title in _MEASURES.values() for kind in values.SCORED]
    return (("Picture", *titles), rows) if rows else None


def _score(scores: Any, side: str, measure: str) -> str:
    value = values.get(scores, side, measure)
    return values.score(measure, value) if values.is_number(value) else _MISSING

"""Pictures of a study within budgets: PSNR against cost, and where the budgets were spent.

Sources are named KIND_BUDGET, as in configs/study_budget.py; others are left out.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epy

from manas_jax import cost
from manas_jax.report import values
from manas_jax.space import Genotype
from manas_jax.study.summary import BUDGETS, KINDS, over_seeds

with epy.lazy_imports():  # of the extra `train`, whose absence a command reports when it starts
    import matplotlib
    from matplotlib import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {
    "svg.hashsalt": "study",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MIN_SEEDS = 3  # seeds with an interval: that of two is wider than the picture
_MARKERS = dict(zip(KINDS, "oXsv*D^P", strict=True))

Cells = Mapping[str, Mapping[str, Any]]


def draw(cells: Cells, folder: pathlib.Path) -> None:
    """Writes the pictures of `figures` into a folder, as NAME.svg."""
    for name, drawn in figures(cells).items():
        with matplotlib.rc_context(_STYLE):
            drawn.savefig(folder / f"{name}.svg", metadata={"Date": None})


def figures(cells: Cells) -> dict[str, Figure]:
    """'front', PSNR against cost, and 'spending', shares of the scales; none without budgets.

    Args:
      cells: the result of `manas_jax.study.run.read_cells`.
    """
    drawn = {}
    groups = by_kind(cells)
    if any(kind != "paper" for kind, _ in groups):
        for name, plot in (("front", _front), ("spending", _spending)):
            with matplotlib.rc_context(_STYLE):
                drawn[name] = figure.Figure(figsize=(8, 4.2), layout="constrained")
                plot(drawn[name], groups)
    return drawn


def by_kind(cells: Cells) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Cells by (kind, budget), in the order of `KINDS` and of growing cost."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in sorted(cells.values(), key=lambda cell: cell["macs"]):
        kind, _, budget = cell["source"]["name"].partition("_")
        if (kind in KINDS and budget in BUDGETS) or (kind == "paper" and budget):
            groups.setdefault((kind, budget), []).append(cell)
    return {key: groups[key] for kind in KINDS for key in groups if key[0] == kind}


def shares(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean share that each branch, the finest first, has in the MACs of what is searched."""
    genotypes = (Genotype.from_json(json.dumps(cell["genotype"])) for cell in cells)
    rows = map(cost.branch_shares, genotypes)
    return [statistics.mean(branch) for branch in zip(*rows, strict=True)]


def _front(chart: Figure, groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> None:
    """Means with 95% intervals, and the single networks behind them, paler."""
    axes = chart.subplots()
    for number, kind in enumerate(KINDS):
        budgets = [cells for (of, _), cells in groups.items() if of == kind]
        for cells in budgets:
            axes.scatter(
                [cell["macs"] / 1e9 for cell in cells],
                [cell["trained"]["psnr"] for cell in cells],
                s=18, marker=_MARKERS[kind], color=f"C{number}", alpha=0.45, linewidths=0,
            )  # fmt: skip
        if budgets:
            _means(axes, budgets, kind, f"C{number}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("billion multiply-accumulates at 320x480")
    axes.set_ylabel("validation PSNR, dB")
    axes.legend(fontsize=8, loc="lower right", frameon=False)


def _means(axes: Axes, budgets: Sequence[Sequence[Mapping]], kind: str, colour: str) -> None:
    scores = [over_seeds(cells) for cells in budgets]
    axes.errorbar(
        [statistics.mean(cell["macs"] for cell in cells) / 1e9 for cells in budgets],
        [score["mean"] for score in scores],
        [
            [
                abs(score[end] - score["mean"])
                if len({cell["seed"] for cell in cells}) >= _MIN_SEEDS
                else 0.0
                for score, cells in zip(scores, budgets, strict=True)
            ]
            for end in ("low", "high")  # not symmetric: the mean is over cells, not over seeds
        ],
        marker=_MARKERS[kind], markersize=6, linewidth=1, elinewidth=1.2, capsize=3, color=colour,
        label=KINDS[kind],
    )  # fmt: skip


def _spending(chart: Figure, groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> None:
    """Shares of the branches in what is searched, a bar for each kind, budget by budget."""
    budgets = list(dict.fromkeys(budget for kind, budget in groups if kind != "paper"))
    panels = chart.subplots(1, len(budgets), squeeze=False, sharex=True)[0]
    for axes, budget in zip(panels, budgets, strict=True):
        kinds = [kind for kind, of in groups if of == budget][::-1]
        rows = [shares(groups[kind, budget]) for kind in kinds]
        left = [0.0] * len(kinds)
        for branch, widths in enumerate(zip(*rows, strict=True)):
            scale = values.scale(branch)
            labels = [KINDS[kind] for kind in kinds]
            axes.barh(labels, widths, left=left, color=f"C{branch}", label=scale)
            left = [start + value for start, value in zip(left, widths, strict=True)]
        axes.set_title(budget, fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the searched MACs")
    handles, labels = panels[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)

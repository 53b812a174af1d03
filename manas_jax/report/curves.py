"""The scalars of a stage, grouped into charts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from manas_jax.report import charts, values
from manas_jax.report.reader import Curve

_CHARTS = ("Losses", "Losses on architecture batches", "PSNR, dB", "SSIM")
"""Titles of the first charts, in their order."""
_LOGARITHMIC = _CHARTS[:2]
_PLACES = {
    "loss/psnr": ("PSNR, dB", "training batches"),
    "loss/architecture_psnr": ("PSNR, dB", "architecture batches"),
    "validation/psnr": ("PSNR, dB", "validation scenes"),
    "validation/ssim": ("SSIM", "validation scenes"),
    "loss/architecture_gradient_norm": ("Norm of the architecture’s gradient", ""),
    "loss/complexity": ("Complexity of the relaxed architecture", ""),
}
"""Tag -> title of its chart, name of its curve ("" if it has the chart alone); see `_place`."""
_TERMS = {
    "restoration": "restoration: the weighted sum",
    "mse": "MSE",
    "charbonnier": "Charbonnier",
    "ssim": "1 − SSIM",
    "tv": "total variation",
    "feature": "features",
}
_ELSEWHERE = ("share/", "loss/entropy_")
"""Means of the recorded probabilities, which have charts of their own, and entropies that
`architecture/entropy_` holds too."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart for the page.

    Attributes:
      title: its heading.
      source: for the `src` of an `<img>`.
      text: the text alternative.
      legend: colour, name and a figure of each entry.
      not_finite: number of values that could not be drawn.
    """

    title: str
    source: str
    text: str
    legend: list[tuple[str, str, str]]
    not_finite: int = 0


def chart(
    title: str, curves: Mapping[str, Curve], logarithmic: bool = False, over: str = "steps"
) -> Chart:
    """One chart of several curves, each with its last value in the legend.

    `over` says in the text alternative what the curves run over.
    """
    finite = {name: points[np.isfinite(points)] for name, (_, points) in curves.items()}
    drawn = {name: points for name, points in finite.items() if points.size}
    steps = np.concatenate([steps for steps, _ in curves.values()])
    changes = "; ".join(
        f"{name} from {values.number(points[0])} to {values.number(points[-1])}".lstrip()
        for name, points in drawn.items()
    )
    span = f"{over} {values.number(steps.min())} to {values.number(steps.max())}"
    return Chart(
        title=title,
        source=charts.data_uri(charts.line_chart(curves, logarithmic)),
        text=f"{title}, {span}: {changes or 'no finite value'}",
        legend=[
            (colour, name, values.number(finite[name][-1]) if name in drawn else "–")
            for name, colour in zip(curves, charts.colours(len(curves)), strict=True)
        ],
        not_finite=sum(points.size - finite[name].size for name, (_, points) in curves.items()),
    )


def stage_charts(events: Mapping[str, Curve]) -> list[Chart]:
    """The charts of a stage: losses, scores, entropies, and one for each other scalar."""
    groups: dict[str, dict[str, Curve]] = {title: {} for title in _CHARTS}
    for tag, curve in sorted(events.items(), key=lambda event: (_rank(event[0]), event[0])):
        if curve[1].ndim == 1 and not tag.startswith(_ELSEWHERE):
            title, name = _place(tag)
            groups.setdefault(title, {})[name] = curve
    return [chart(title, group, title in _LOGARITHMIC) for title, group in groups.items() if group]


def _rank(tag: str) -> int:
    """The sum of the terms is the first curve of its chart."""
    return not tag.endswith("restoration")


def _place(tag: str) -> tuple[str, str]:
    """The title of the chart of a tag, and the name of its curve there."""
    if tag in _PLACES:
        return _PLACES[tag]
    group, _, name = tag.rpartition("/")
    if group == "loss":
        term = name.removeprefix("architecture_")
        return _CHARTS[term != name], _TERMS.get(term, term.replace("_", " "))
    if tag.startswith("architecture/entropy_"):
        return "Entropy of the architecture", name.removeprefix("entropy_")
    return values.title(tag), ""

"""Line charts and stacked charts, drawn by matplotlib."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epy

from manas_jax.report import svg
from manas_jax.report.reader import Curve
from manas_jax.report.values import number

with epy.lazy_imports():  # of the extra `train`, whose absence a command reports when it starts
    import matplotlib
    from matplotlib import figure, ticker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#2f7fc4", "#cc5f45", "#1f9173", "#d9822b", "#9563b3", "#8a7a2e", "#c2568f", "#6b7280")

_SIZE = 3.9, 2.1  # inches
_AXES = 0.115, 0.1, 0.845, 0.86  # left, bottom, width and height; shares of the size
_STRIP_SIZE = 2.4, 0.48  # inches
_STRIP_POINTS = 60
_STYLE = {
    "axes.edgecolor": "#c4c9cf",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.xmargin": 0.02,
    "font.size": 8.5,
    "grid.color": "#e3e6ea",
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",  # text, in a font of the reader's system
    "svg.hashsalt": "report",  # the same names of marks in every report
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "xtick.color": "#656d76",
    "ytick.color": "#656d76",
}


def colours(count: int) -> list[str]:
    """The colours of the curves of a chart, in their order."""
    return list(itertools.islice(itertools.cycle(_COLOURS), count))


def line_chart(curves: Mapping[str, Curve], logarithmic: bool = False) -> Figure:
    """Draws curves over training steps; values that are not finite leave gaps.

    Args:
      curves: name -> steps and values, in the order of `colours`.
      logarithmic: use a logarithmic axis where the values are positive and span a power of ten.
    """
    chart, axes = _axes()
    for (steps, values), colour in zip(curves.values(), colours(len(curves)), strict=True):
        lone = {"marker": "o", "markersize": 3} if np.isfinite(values).sum() == 1 else {}
        axes.plot(steps, values, color=colour, **lone)
    finite = np.concatenate([values[np.isfinite(values)] for _, values in curves.values()])
    if logarithmic and finite.size and 0 < 10 * finite.min() <= finite.max():
        axes.set_yscale("log")
        labelled = (1, 2, 5) if finite.max() < 1000 * finite.min() else (1,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=labelled))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))
    return chart


def stacked_chart(steps: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws shares of a whole as stacked areas, the first at the bottom, on an axis from 0 to 1.

    Args:
      steps: (times,), ascending.
      shares: (times, len(names)), non-negative; each row sums to 1.
      names: of the shares; `svg.colour` gives their colours.
    """
    chart, axes = _axes()
    _stack(axes, steps, shares, names)
    axes.set_axisbelow(False)
    axes.grid(alpha=0.35)
    return chart


def strip(shares: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws the same areas small and without axes."""
    times = np.unique(np.linspace(0, len(shares) - 1, _STRIP_POINTS).round().astype(int))
    with matplotlib.rc_context(_STYLE):
        chart = figure.Figure(figsize=_STRIP_SIZE)
        axes = chart.add_axes((0, 0, 1, 1))
    _stack(axes, times, shares[times], names)
    axes.set_axis_off()
    return chart


def data_uri(chart: Figure) -> str:
    """The SVG of a chart, for the `src` of an `<img>`."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        chart.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _axes() -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        chart = figure.Figure(figsize=_SIZE)
        axes = chart.add_axes(_AXES)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda step, _: number(step)))
    return chart, axes


def _stack(axes: Axes, steps: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> None:
    if len(steps) == 1:  # an area needs a width
        steps, shares = np.array([steps[0], steps[0] + 1]), np.repeat(shares, 2, axis=0)
    axes.stackplot(steps, shares.T, colors=[svg.colour(name) for name in names])
    axes.set(xlim=(steps[0], steps[-1]), ylim=(0, 1))

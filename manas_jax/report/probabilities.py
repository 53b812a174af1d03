"""How the probabilities of the search's choices changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from manas_jax.report import charts, svg, trust
from manas_jax.report.curves import Chart
from manas_jax.report.reader import Curve, Run
from manas_jax.space import SearchSpace

Rows = Sequence[tuple[str, Sequence[str]]]
"""Heading of each row, labels of its strips."""


@dataclasses.dataclass(frozen=True)
class Strip:
    """The probabilities of one choice.

    Attributes:
      label: what is chosen, within its row.
      source: for the `src` of an `<img>`.
      text: the text alternative.
      best: the most probable choice at the end.
      share: its probability.
      derived: the choice of the derived network, where it is another.
    """

    label: str
    source: str
    text: str
    best: str
    share: float
    derived: str | None


@dataclasses.dataclass(frozen=True)
class Kind:
    """The choices of one kind.

    Attributes:
      title: its heading.
      mean: the chart of their mean.
      rows: heading and strips of each row.
    """

    title: str
    mean: Chart
    rows: list[tuple[str, list[Strip]]]


def kinds(run: Run) -> list[Kind]:
    """Columns, widths and attention edges, as far as a search has recorded them."""
    events = run.stages["search"].events if "search" in run.stages else {}
    space, found = run.space, []
    known = space.choices if space else {}
    if (columns := events.get("architecture/columns")) is not None and columns[1].size:
        rows = _column_rows(space, columns[1].shape[1])
        names = _names(known.get("columns", ()), columns[1].shape[-1], "choice")
        derived = trust.derived_choices(run.genotype, "columns")
        found.append(_kind("Columns", columns, rows, names, derived))
    if (widths := events.get("architecture/widths")) is not None and space:
        names = _width_names(space.widths)
        derived = _width_names(trust.derived_choices(run.genotype, "widths"))
        found.append(_kind("Widths of residual blocks", widths, _width_rows(space), names, derived))
    if (attention := events.get("architecture/attention")) is not None and attention[1].size:
        rows = _edge_rows(space, *attention[1].shape[1:3])
        names = _names(known.get("attention", ()), attention[1].shape[-1], "candidate")
        derived = trust.derived_choices(run.genotype, "attention")
        found.append(_kind("Attention edges", attention, rows, names, derived))
    return found


def _kind(
    title: str, curve: Curve, rows: Rows, names: Sequence[str], derived: Sequence[str]
) -> Kind:
    """Draws one kind.

    Args:
      title: its heading.
      curve: steps and probabilities (times, ..., choices), strips row by row.
      rows: headings and labels.
      names: of the choices.
      derived: the choice of each strip in the derived network; empty if unknown.
    """
    steps, probabilities = curve
    probabilities = probabilities.reshape(len(steps), -1, len(names)).astype(np.float64)
    if len(derived) != probabilities.shape[1]:
        derived = [""] * probabilities.shape[1]
    strips = iter(zip(np.moveaxis(probabilities, 1, 0), derived, strict=True))
    return Kind(
        title,
        _mean(title, steps, probabilities.mean(axis=1), names),
        [
            (heading, [_strip(heading, label, *next(strips), names) for label in labels])
            for heading, labels in rows
        ],
    )


def _mean(title: str, steps: np.ndarray, shares: np.ndarray, names: Sequence[str]) -> Chart:
    return Chart(
        title=f"Mean of all {title.lower()}",
        source=charts.data_uri(charts.stacked_chart(steps, shares, names)),
        text=f"Mean of all {title.lower()}, at the end: {_final(shares, names)}",
        legend=[
            (svg.colour(name), name, f"{share:.2f}")
            for name, share in zip(names, shares[-1], strict=True)
        ],
    )


def _strip(
    heading: str, label: str, shares: np.ndarray, derived: str, names: Sequence[str]
) -> Strip:
    best = int(np.argmax(shares[-1]))
    return Strip(
        label=label,
        source=charts.data_uri(charts.strip(shares, names)),
        text=f"{f'{heading} {label}'.strip()}, at the end: {_final(shares, names)}",
        best=names[best],
        share=float(shares[-1, best]),
        derived=derived if derived not in ("", names[best]) else None,
    )


def _final(shares: np.ndarray, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in zip(names, shares[-1], strict=True))


def _names(known: Sequence[str], count: int, what: str) -> Sequence[str]:
    """The names of choices; numbers where the space is unknown."""
    return known if len(known) == count else [f"{what} {i + 1}" for i in range(count)]


def _column_rows(space: SearchSpace | None, count: int) -> Rows:
    """One row per cell where the space is known."""
    per_cell = space.columns if space else (count,)
    if sum(per_cell) != count:
        per_cell = (count,)
    return [
        (f"Cell {i + 1}" if len(per_cell) > 1 else "", [f"column {j + 1}" for j in range(n)])
        for i, n in enumerate(per_cell)
        if n
    ]


def _width_rows(space: SearchSpace) -> Rows:
    """One row per column."""
    return [
        (f"Cell {i + 1}, column {j + 1}", [f"branch {b + 1}" for b in range(branches)])
        for i, (branches, columns) in enumerate(zip(space.branches, space.columns, strict=True))
        for j in range(columns)
    ]


def _width_names(widths: Sequence[float]) -> list[str]:
    return [f"width {width:g}" for width in widths]


def _edge_rows(space: SearchSpace | None, modules: int, edges: int) -> Rows:
    """One row per module; numbers where the space is unknown."""
    groups = next((g for g in range(1, 9) if g * (g + 1) // 2 == edges), 0)
    labels = svg.edge_names(groups) or [f"edge {i + 1}" for i in range(edges)]
    headings = [f"Module {i + 1}" for i in range(modules)]
    if space and len(space.modules) == modules:
        headings = [f"Cell {c + 1}, branch {b + 1}" for c, b in space.modules]
    return [(heading, labels) for heading in headings]

"""The page of a study within budgets: its front, its table, and where the budgets went."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from manas_jax.report import charts
from manas_jax.report.page import Table, save, template
from manas_jax.study import front
from manas_jax.study.summary import BUDGETS, KINDS


def write(
    cells: front.Cells, summary: Mapping[str, Any], workdir: pathlib.Path
) -> pathlib.Path | None:
    """Writes WORKDIR/report.html, completely or not at all.

    Args:
      cells: the result of `manas_jax.study.run.read_cells`.
      summary: that of `summary.summarize`.
      workdir: of the study.

    Returns:
      Its path; None if no source of the cells has a budget.
    """
    if not (figures := front.figures(cells)):
        return None
    html = template("study.html").render(
        name=workdir.name,
        cells=summary["cells"],
        planned=summary["planned"],
        pictures={name: charts.data_uri(figure) for name, figure in figures.items()},
        table=table(summary),
    )
    return save(html, workdir)


def table(summary: Mapping[str, Any]) -> Table:
    """Every source, budget by budget, and its distance from random genotypes of equal cost."""
    sources = summary["sources"]
    differences = {(row["of"], row["against"]): row for row in summary["comparisons"]}
    head = [
        "budget", "genotypes from", "cells, seeds", "validation PSNR", "billion MACs", "parameters",
        "minus random", "minus random search",
    ]  # fmt: skip
    rows = []
    for budget in (*BUDGETS, "all_fusion", "hand_made"):
        for kind, label in KINDS.items():
            if not (source := sources.get(f"{kind}_{budget}")):
                continue
            against = (
                differences.get((f"{kind}_{budget}", f"{other}_{budget}"))
                for other in ("within", "random")
            )
            rows.append(
                [
                    "–" if kind == "paper" else budget, label,
                    f"{source['psnr']['n']}, {len(source['seeds'])}",
                    mean_text(source["psnr"]), mean_text(source["macs"], 1e-9),
                    mean_text(source["parameters"], 1, 0), *map(interval_text, against),
                ]
            )  # fmt: skip
    return head, rows


def mean_text(values: Mapping[str, Any], scale: float = 1, digits: int = 2) -> str:
    """Mean and standard deviation."""
    deviation = "" if values["sd"] is None else f" ± {values['sd'] * scale:,.{digits}f}"
    return f"{values['mean'] * scale:,.{digits}f}{deviation}"


def interval_text(values: Mapping[str, Any] | None) -> str:
    """Mean and interval."""
    if not values or not values["n"]:
        return "–"
    if values["low"] is None:
        return f"{values['mean']:+.2f}"
    return f"{values['mean']:+.2f} [{values['low']:+.2f}, {values['high']:+.2f}]"

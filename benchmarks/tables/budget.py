"""Tables of docs/study_budget.md, made of results/study_budget/."""

from __future__ import annotations

from benchmarks import RESULTS
from benchmarks.tables import load, table
from benchmarks.tables.study import facts
from manas_jax.study import page
from manas_jax.study.run import read_cells


def overview() -> str:
    """Every source, budget by budget."""
    summary = load("study_budget/summary")
    return facts(summary, load("study_budget/config")) + "\n" + table(*page.table(summary))


def frozen() -> str:
    """The same networks and seeds, with statistics of BatchNorm frozen early and later."""
    early, late = (
        read_cells(RESULTS / "study_budget" / folder) for folder in ("frozen_early", "cells")
    )
    head = ["network", "seed", "frozen after 75 steps", "frozen after 450 steps"]
    rows = [
        [
            name,
            str(early[name]["seed"]),
            *(
                f"{scores['psnr']:.2f} / {scores['ssim']:.4f}"
                for scores in (cells[name]["trained"] for cells in (early, late))
            ),
        ]
        for name in sorted(early.keys() & late.keys())
    ]
    return table(head, rows)


TABLES = {"study_budget": overview, "study_budget_frozen": frozen}

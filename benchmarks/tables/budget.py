"""Tables of docs/study_budget.md, made of results/study_budget/."""

from __future__ import annotations

from benchmarks.tables import load, table
from benchmarks.tables.study import facts
from manas_jax.study import page


def overview() -> str:
    """Every source, budget by budget."""
    summary = load("study_budget/summary")
    return facts(summary, load("study_budget/config")) + "\n" + table(*page.table(summary))


TABLES = {"study_budget": overview}

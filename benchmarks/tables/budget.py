"""Tables of docs/study_budget.md, made of results/study_budget/."""

from __future__ import annotations

from benchmarks.tables import load, table
from benchmarks.tables.study import facts, interval_text, mean_text
from manas_jax.study.summary import KINDS


def overview() -> str:
    """Every source, budget by budget, and its distance from random genotypes of equal cost."""
    summary = load("study_budget/summary")
    sources = summary["sources"]
    differences = {(row["of"], row["against"]): row for row in summary["comparisons"]}
    head = [
        "budget", "genotypes from", "cells, seeds", "validation PSNR", "billion MACs", "parameters",
        "minus random", "minus random search",
    ]  # fmt: skip
    rows = []
    for budget in ("small", "medium", "large", "all_fusion", "hand_made"):
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
                    mean_text(source["parameters"], 1, 0),
                    *("–" if row is None else interval_text(row) for row in against),
                ]
            )  # fmt: skip
    return facts(summary, load("study_budget/config")) + "\n" + table(head, rows)


TABLES = {"study_budget": overview}

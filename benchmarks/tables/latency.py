"""The table of predicted and measured milliseconds, made of results/latency/."""

from __future__ import annotations

from benchmarks import RESULTS
from benchmarks.tables import load, origin, table


def check() -> str:
    """Predicted and measured times of random genotypes, by machine."""
    head = ["engine", "machine", "constant", "predicted / measured, ms", "mean error", "largest"]
    rows = []
    for file in sorted((RESULTS / "latency").glob("*.json")):
        result = load(f"latency/{file.stem}")
        pairs = [
            f"{pair['predicted']:.0f} / {pair['measured']:.0f}"
            for pair in result["check"]["genotypes"]
        ]
        rows.append(
            [
                result["engine"], origin(result), f"{result['milliseconds']['fixed']:.0f} ms",
                ", ".join(pairs),
                f"{result['check']['mean_error_percent']:.0f} %",
                f"{result['check']['largest_error_percent']:+.0f} %",
            ]
        )  # fmt: skip
    return table(head, rows)


TABLES = {"latency": check}

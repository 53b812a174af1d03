"""Paired bootstrap over pictures: one set of resamples for everything that is compared.

Efron and Tibshirani: An Introduction to the Bootstrap. 1993. Pictures are drawn with replacement;
what is compared is computed from the same draws, so that the difference of two has an interval of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RESAMPLES = 1000


def picture_weights(pictures: int, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each picture is drawn, (1 + resamples, pictures); the first row is all ones."""
    draw = np.random.default_rng(seed)
    drawn = draw.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    return np.concatenate([np.ones((1, pictures)), drawn])


def estimate(values: np.ndarray) -> dict[str, float | None]:
    """The value of a sample and its 95% percentile interval.

    Args:
      values: (1 + resamples,), of the sample itself and of its resamples; NaN where undefined.

    Returns:
      'value', 'low' and 'high'; None where undefined.
    """
    value, resampled = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(resampled, [2.5, 97.5]) if len(resampled) else (value, value)
    return {"value": float(value), "low": float(low), "high": float(high)}


def mean_of_known(values: Any, axis: int = 0) -> np.ndarray:
    """The mean along an axis without NaN; NaN where there is nothing else."""
    values = np.asarray(values)
    known = np.isfinite(values)
    count, total = known.sum(axis=axis), np.where(known, values, 0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def with_gains(rows: Mapping[str, Any], against: str) -> dict[str, Any]:
    """Replaces the arrays of nested dictionaries by estimates.

    Args:
      rows: names -> dictionaries, alike, whose arrays are as `estimate` takes them.
      against: the row from which the others' gains are counted.

    Returns:
      The same with 'value', 'low' and 'high' of each array, and the same of its 'gain'.
    """

    def estimates(ours: Any, theirs: Any) -> Any:
        if isinstance(ours, dict):
            return {key: estimates(ours[key], theirs[key]) for key in ours}
        if isinstance(ours, np.ndarray):
            return estimate(ours) | {"gain": estimate(ours - theirs)}
        return ours

    return {name: estimates(row, rows[against]) for name, row in rows.items()}


def text(found: Mapping[str, float | None], sign: str = "") -> str:
    """'0.795 [0.700, 0.861]' of an estimate; `sign` '+' shows that of positive ones as well."""
    if found["value"] is None:
        return "-"
    value, low, high = (f"{found[key]:{sign}.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def table(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Aligned text: per kind of rain and row of `with_gains` some estimates and their gains.

    Args:
      results: of `with_gains` by kind of rain.
      columns: titles -> keys of estimates.
    """
    lines = [["rain", "pictures", *(head for title in columns for head in (title, "gain"))]]
    for kind, rows in results.items():
        for name, row in rows.items():
            found = [row[key] for key in columns.values()]
            cells = [cell for x in found for cell in (text(x), text(x["gain"], "+"))]
            lines.append([kind, name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)

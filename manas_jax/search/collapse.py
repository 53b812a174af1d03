"""Warnings that a search has gone wrong: for the log while it runs, and for the report.

Differentiable searches are known to slide towards choices without parameters (Zela et al.,
"Understanding and Robustifying Differentiable Architecture Search", ICLR 2020; Chu et al.,
"DARTS-: Robustly Stepping out of Performance Collapse Without Indicators", ICLR 2021), to end
undecided, and to derive networks far from the searched mixture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manas_jax.space import SearchSpace

PARAMETER_FREE = ("none", "skip_connect")  # candidates that drop their input or pass it through
MAX_PARAMETER_FREE = 0.5  # share of edges that prefer one of them; by chance 2 in 9
UNDECIDED = 0.95  # of the highest possible entropy
MAX_GAP = 1.0  # dB that discretisation may cost


def entropy(probabilities: np.ndarray) -> float:
    """Mean Shannon entropy of rows (..., choices), relative to that of an even choice."""
    rows = np.asarray(probabilities, np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    if not len(rows) or rows.shape[1] < 2:
        return 0.0  # nothing to choose
    logs = np.log(np.where(rows > 0, rows, 1))  # 0 log 0 = 0
    return float(np.mean(-np.sum(rows * logs, axis=1)) / np.log(rows.shape[1]))


def parameter_free_share(attention: np.ndarray, candidates: Sequence[str]) -> float:
    """Share of the edges (..., candidates) that `none` or `skip_connect` leads."""
    if not attention.size:
        return 0.0
    leading = np.argmax(attention, axis=-1)
    return float(np.mean([candidates[i] in PARAMETER_FREE for i in leading.reshape(-1)]))


def reached_widths(probabilities: Mapping[str, np.ndarray], space: SearchSpace) -> np.ndarray:
    """Which rows of 'widths' (residual blocks,) a search decides: where the column is parallel.

    In a column that prefers another choice hardly any gradient reaches the residual blocks.
    """
    choices = [space.column_choices[i] for i in np.argmax(probabilities["columns"], axis=-1)]
    return np.array([choices[column] == "parallel" for column, _ in space.residual_blocks], bool)


def collapse_warnings(
    probabilities: Mapping[str, np.ndarray], space: SearchSpace, gap: float | None = None
) -> list[str]:
    """Warnings about a finished search: skip/none collapse, undecided logits, discretisation gap.

    Args:
      probabilities: 'columns' (columns, choices), 'attention' (modules, edges, candidates) and, of
        several, 'widths' (residual blocks, widths), of which those of `reached_widths` count.
      space: of the search.
      gap: validation PSNR in dB of the relaxed supernet minus that of the derived network with
        inherited weights; None if not measured.

    Returns:
      Sentences without a full stop.
    """
    found = collapsed(probabilities, space.candidates)
    for kind, what in (
        ("columns", "columns"), ("attention", "attention edges"), ("widths", "widths"),
    ):  # fmt: skip
        rows = probabilities.get(kind, np.zeros((0, 2)))
        if kind == "widths" and len(rows):
            rows = rows[reached_widths(probabilities, space)]
        if (share := entropy(rows)) > UNDECIDED:
            found.append(
                f"undecided: the entropy of the {what} is {share:.0%} of the highest possible"
            )
    if gap is not None and gap > MAX_GAP:
        found.append(
            f"gap: the derived network with the supernet's weights is {gap:.1f} dB below the "
            "supernet"
        )
    return found


def collapsed(probabilities: Mapping[str, np.ndarray], candidates: Sequence[str]) -> list[str]:
    """The warning that can be given while a search runs: most edges lead to nothing."""
    attention = probabilities.get("attention", np.zeros((0, len(candidates))))
    share = parameter_free_share(attention, candidates)
    if share <= MAX_PARAMETER_FREE:
        return []
    return [f"collapse: {share:.0%} of the attention edges prefer {' or '.join(PARAMETER_FREE)}"]

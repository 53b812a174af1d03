"""The likeliest genotype within a budget, exactly.

Costs are whole numbers that add up over independent decisions, except that a residual block counts
only where its column is parallel. This is the multiple-choice knapsack problem, solved decision by
decision: a partial solution is dropped if another one costs no more and is no less likely
(Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation", Management Science
15(9), 1969). A few hundred partial solutions remain in the paper's space.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from manas_jax import cost
from manas_jax.space import Genotype, SearchSpace, assemble, derivable


class Front(NamedTuple):
    """Partial solutions of which none is dominated: from cheap and unlikely to dear and likely.

    Attributes:
      costs: (n,), increasing.
      scores: (n,), increasing.
      picks: index of the choice of each decision so far, (n, decisions).
    """

    costs: np.ndarray
    scores: np.ndarray
    picks: np.ndarray


NOTHING = Front(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int64))
"""The only partial solution without decisions."""


def likeliest_within(
    space: SearchSpace, scores: Mapping[str, np.ndarray], budget: cost.Budget
) -> Genotype:
    """The genotype of the highest total score that is within the budget, without `none`.

    Every decision counts, also that of a residual block that no column has: it is then free to take
    its likeliest width. So a budget that binds nothing gives `space.derive` of the same scores.

    Args:
      space: the search space.
      scores: log-probabilities of the choices, shaped as the logits.
      budget: at least the cost of the cheapest genotype, see `cost.extremes`.
    """
    fronts = list(_decisions(space, scores, budget))
    left = budget.limit - budget.fixed(space) - sum(front.costs[0] for front in fronts)
    total = NOTHING
    for front in fronts:
        # What this decision may cost beside the cheapest choices of all others.
        total = _both(total, front._replace(costs=front.costs - front.costs[0]), left)
    return _genotype(space, total.picks[-1])


def _decisions(
    space: SearchSpace, scores: Mapping[str, np.ndarray], budget: cost.Budget
) -> Iterator[Front]:
    """The alternatives of every column with its residual blocks, then of every attention edge."""
    tables = budget.tables(space)
    widths = scores.get("widths", np.zeros((len(space.residual_blocks), 1)))
    blocks = [_front(*row) for row in zip(tables["widths"], widths, strict=True)]
    for column, rows in enumerate(zip(tables["columns"], scores["columns"], strict=True)):
        own = (b for (c, _), b in zip(space.residual_blocks, blocks, strict=True) if c == column)
        yield _column(space, *rows, functools.reduce(_both, own, NOTHING))
    allowed = derivable(space.candidates)
    edges = np.reshape(scores["attention"], (-1, len(space.candidates)))
    for row in zip(tables["attention"], edges, strict=True):
        yield _front(*(np.array(x)[allowed] for x in row), np.array(allowed)[:, None])


def _column(
    space: SearchSpace, costs: Sequence[int], scores: Sequence[float], blocks: Front
) -> Front:
    """The alternatives of a column; `blocks` are those of its residual blocks together."""
    free = Front(np.zeros(1, np.int64), blocks.scores[-1:], blocks.picks[-1:])
    parts = []
    for i, choice in enumerate(space.column_choices):
        front = blocks if choice == "parallel" else free
        picks = np.insert(front.picks, 0, i, axis=1)
        parts.append((front.costs + costs[i], front.scores + scores[i], picks))
    return _front(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _both(a: Front, b: Front, limit: int | None = None) -> Front:
    """Every partial solution of the one with every one of the other, up to a total cost."""
    i, j = (index.ravel() for index in np.indices((len(a.costs), len(b.costs))))
    if limit is not None:
        within = a.costs[i] + b.costs[j] <= limit
        i, j = i[within], j[within]
    picks = np.concatenate([a.picks[i], b.picks[j]], axis=1)
    return _front(a.costs[i] + b.costs[j], a.scores[i] + b.scores[j], picks)


def _front(costs: Iterable[int], scores: Iterable[float], picks: np.ndarray | None = None) -> Front:
    """Of some alternatives those that are not dominated; by default picks number them."""
    costs, scores = np.array(costs), np.array(scores)
    picks = np.arange(len(costs))[:, None] if picks is None else picks
    order = np.lexsort((-scores, costs))
    highest = np.maximum.accumulate(scores[order])
    order = order[np.insert(highest[1:] > highest[:-1], 0, True)]
    return Front(costs[order], scores[order], picks[order])


def _genotype(space: SearchSpace, picks: Sequence[int]) -> Genotype:
    remaining = iter(picks)
    chosen: dict[str, list[int]] = {"columns": [], "widths": [], "attention": []}
    blocks = [column for column, _ in space.residual_blocks]
    for column in range(sum(space.columns)):
        chosen["columns"].append(next(remaining))
        chosen["widths"] += [next(remaining) for _ in range(blocks.count(column))]
    chosen["attention"] = list(remaining)
    named = {kind: [choices[i] for i in chosen[kind]] for kind, choices in space.choices.items()}
    return assemble(space, named)

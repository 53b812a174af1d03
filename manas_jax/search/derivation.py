"""The likeliest genotype within a budget, exactly, and the likeliest that spends it.

Costs are whole numbers that add up over independent decisions, except that a residual block counts
only where its column is parallel. This is the multiple-choice knapsack problem, solved decision by
decision: a partial solution is dropped if another one costs no more and is no less likely
(Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation", Management Science
15(9), 1969). A few hundred partial solutions remain in the paper's space.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from manas_jax import cost
from manas_jax.space import Genotype, SearchSpace, assemble, derivable


class Front(NamedTuple):
    """Partial solutions of which none is dominated, sorted by increasing cost and score.

    Attributes:
      costs: (n,), increasing.
      scores: (n,), increasing.
      indices: of the choice of each decision so far, (n, decisions).
    """

    costs: np.ndarray
    scores: np.ndarray
    indices: np.ndarray


SPENT = 0.97
"""Share of a budget that a derived network costs at least, where the space allows it."""

_HIGHEST_PRICE, _BISECTIONS = 2.0**40, 20

NOTHING = Front(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int64))
"""The only partial solution without decisions."""


def derive_within(
    space: SearchSpace, log_probabilities: Mapping[str, np.ndarray], budget: cost.Budget
) -> Genotype:
    """A likely genotype within the budget that, where one does, costs `SPENT` of it or more.

    Probabilities close to 0 and 1 say little about what to change where the likeliest choices cost
    more than the budget, and the likeliest within it may cost far less. So cost is worth a price,
    the lowest at which the budget is spent (Everett, "Generalized Lagrange multiplier method",
    Operations Research 11(3), 1963). No genotype within the budget that costs as much as the one
    returned, or more, is likelier; where none costs `SPENT` of the budget, the most
    expensive one.

    Args:
      space: the search space.
      log_probabilities: of the choices, shaped as the logits.
      budget: at least the cost of the cheapest genotype, see `Budget.extremes`.
    """
    at = functools.partial(likeliest_within, space, log_probabilities, budget)
    enough, low, high = SPENT * budget.limit, 0.0, 1.0
    if budget.cost(found := at(0.0)) >= enough:
        return found
    while budget.cost(found := at(high)) < enough and high < _HIGHEST_PRICE:
        low, high = high, 2 * high
    enough = min(enough, budget.cost(found))
    for _ in range(_BISECTIONS):
        price = (low + high) / 2
        if budget.cost(tried := at(price)) >= enough:
            found, high = tried, price
        else:
            low = price
    return found


def likeliest_within(
    space: SearchSpace,
    log_probabilities: Mapping[str, np.ndarray],
    budget: cost.Budget,
    price: float = 0.0,
) -> Genotype:
    """The likeliest genotype within the budget, without `none`.

    Residual blocks of columns that are not parallel cost nothing and take their likeliest width, so
    with a budget that does not bind the result is `space.derive` of the same probabilities.

    Args:
      space: the search space.
      log_probabilities: of the choices, shaped as the logits.
      budget: at least the cost of the cheapest genotype, see `Budget.extremes`.
      price: what is added to a genotype's log-probability for each budget that it costs.
    """
    fronts = list(_decisions(space, log_probabilities, budget, price / budget.limit))
    left = budget.limit - budget.fixed(space) - sum(front.costs[0] for front in fronts)
    total = NOTHING
    for front in fronts:
        # What this decision may cost beside the cheapest choices of all others.
        total = _both(total, front._replace(costs=front.costs - front.costs[0]), left)
    return _genotype(space, total.indices[-1])


def _decisions(
    space: SearchSpace,
    log_probabilities: Mapping[str, np.ndarray],
    budget: cost.Budget,
    price: float,
) -> Iterator[Front]:
    """The alternatives of every column with its residual blocks, then of every attention edge."""
    tables = {kind: np.array(rows) for kind, rows in budget.tables(space).items()}
    columns = tables["columns"], log_probabilities["columns"] + price * tables["columns"]
    widths = log_probabilities.get("widths", np.zeros((len(space.residual_blocks), 1)))
    free = [Front(np.zeros(1, np.int64), *_likeliest(row)) for row in widths]
    blocks = [
        _front(costs, row + price * costs)
        for costs, row in zip(tables["widths"], widths, strict=True)
    ]
    for column, rows in enumerate(zip(*columns, strict=True)):
        own = [b for b, (c, _) in enumerate(space.residual_blocks) if c == column]
        parallel, other = (
            functools.reduce(_both, (fronts[b] for b in own), NOTHING) for fronts in (blocks, free)
        )
        yield _column(space, *rows, parallel, other)
    allowed = list(derivable(space.candidates))
    edges = np.reshape(log_probabilities["attention"], (-1, len(space.candidates)))
    for costs, row in zip(tables["attention"][:, allowed], edges[:, allowed], strict=True):
        yield _front(costs, row + price * costs, np.array(allowed)[:, None])


def _likeliest(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest score, (1,), and its choice, (1, 1)."""
    choice = int(np.argmax(scores))
    return scores[choice : choice + 1], np.array([[choice]])


def _column(
    space: SearchSpace, costs: np.ndarray, scores: np.ndarray, parallel: Front, other: Front
) -> Front:
    """The alternatives of a column.

    Its residual blocks are those of `parallel` if it is, and of `other`, free of cost, if not.
    """
    parts = []
    for i, choice in enumerate(space.column_choices):
        front = parallel if choice == "parallel" else other
        indices = np.insert(front.indices, 0, i, axis=1)
        parts.append((front.costs + costs[i], front.scores + scores[i], indices))
    return _front(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _both(a: Front, b: Front, limit: int | None = None) -> Front:
    """Every partial solution of the one with every one of the other, up to a total cost."""
    i, j = (index.ravel() for index in np.indices((len(a.costs), len(b.costs))))
    if limit is not None:
        within = a.costs[i] + b.costs[j] <= limit
        i, j = i[within], j[within]
    indices = np.concatenate([a.indices[i], b.indices[j]], axis=1)
    return _front(a.costs[i] + b.costs[j], a.scores[i] + b.scores[j], indices)


def _front(costs: np.ndarray, scores: np.ndarray, indices: np.ndarray | None = None) -> Front:
    """Of some alternatives those that are not dominated; by default `indices` numbers them."""
    indices = np.arange(len(costs))[:, None] if indices is None else indices
    order = np.lexsort((-scores, costs))
    highest = np.maximum.accumulate(scores[order])
    order = order[np.insert(highest[1:] > highest[:-1], 0, True)]
    return Front(costs[order], scores[order], indices[order])


def _genotype(space: SearchSpace, indices: Sequence[int]) -> Genotype:
    remaining = iter(indices)
    chosen: dict[str, list[int]] = {"columns": [], "widths": [], "attention": []}
    blocks = [column for column, _ in space.residual_blocks]
    for column in range(sum(space.columns)):
        chosen["columns"].append(next(remaining))
        chosen["widths"] += [next(remaining) for _ in range(blocks.count(column))]
    chosen["attention"] = list(remaining)
    named = {kind: [choices[i] for i in chosen[kind]] for kind, choices in space.choices.items()}
    return assemble(space, named)

"""The rule that makes a network of a budget without any search."""

from __future__ import annotations

import itertools

from manas_jax.cost import Budget
from manas_jax.errors import UserError
from manas_jax.space import COLUMNS, Genotype, SearchSpace, assemble


def uniform_within(space: SearchSpace, budget: Budget) -> Genotype:
    """The most expensive genotype within a budget of those that a person would make.

    The first columns alternate, as many in each cell, and the rest are left out; all residual
    blocks have one width; all edges have SE.

    Raises:
      UserError: none is within the budget, or the space has no such genotypes.
    """
    if missing := ({"SE"} - set(space.candidates)) | (set(COLUMNS) - set(space.column_choices)):
        raise UserError(
            f"the space has no uniform genotypes: it lacks {', '.join(sorted(missing))}; add it to "
            "space.candidates or space.column_choices, or leave out uniform"
        )
    made, deepest = [], max(space.columns)
    depths = range(deepest + 1) if "identity" in space.column_choices else [deepest]
    for depth, width in itertools.product(depths, space.widths):
        positions = (i for columns in space.columns for i in range(columns))  # in their cells
        picks = {
            "columns": [
                choice if i < depth else "identity"
                for i, choice in zip(positions, itertools.cycle(COLUMNS), strict=False)
            ],
            "attention": ["SE"] * len(space.modules) * space.edges,
            "widths": [width] * len(space.residual_blocks),
        }
        made.append(assemble(space, picks))
    within = [genotype for genotype in made if budget.cost(genotype) <= budget.limit]
    if not within:
        raise UserError(
            f"no uniform genotype costs at most {budget.limit:,} {budget.unit}: give a larger "
            "search.budget or leave out uniform"
        )
    return max(within, key=budget.cost)

"""Genotypes of a study that no search finds."""

from __future__ import annotations

import itertools

from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.errors import UserError
from manas_jax.space import COLUMNS, Genotype, SearchSpace, assemble, random_genotype

_MAX_DRAWS = 100_000


def fixed(space: SearchSpace, choice: str) -> Genotype:
    """A genotype that needs no search.

    'all_parallel', 'all_fusion' and 'hand_made', whose columns alternate, have SE on every edge;
    'all_skip' is 'hand_made' with skip connections on the edges.
    """
    uniform = {"all_parallel": ("parallel",), "all_fusion": ("fusion",)}
    columns = itertools.cycle(uniform.get(choice, COLUMNS))
    edge = "skip_connect" if choice == "all_skip" else "SE"
    picks = {
        "columns": list(itertools.islice(columns, sum(space.columns))),
        "attention": [edge] * len(space.modules) * space.edges,
    }
    return assemble(space, picks)


def random_genotypes(config: ConfigDict, count: int, salt: int = 0) -> list[Genotype]:
    """The first `count` random genotypes of the study; another salt gives other ones."""
    space = SearchSpace(**config.space)
    return [random_genotype(space, 1_000_000 * salt + i) for i in range(count)]


def matched(config: ConfigDict, genotype: Genotype, salt: int) -> Genotype:
    """Another, random genotype whose MACs differ by at most the fraction `study.tolerance`.

    Raises:
      UserError: none of many draws is that close.
    """
    size, tolerance = config.objectives.complexity_size, config.study.tolerance
    wanted = cost.derived(genotype, *size).macs
    for i in range(_MAX_DRAWS):
        drawn = random_genotype(genotype.space, 1_000_000 * (salt + 1) + i)
        if abs(cost.derived(drawn, *size).macs / wanted - 1) <= tolerance and drawn != genotype:
            return drawn
    raise UserError(
        f"study.tolerance = {tolerance}: none of {_MAX_DRAWS} random genotypes costs as much as "
        "the one that the search found; give a larger tolerance"
    )

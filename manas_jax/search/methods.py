"""Architecture search methods. Each leaves `genotype.json` and `search/summary.json`."""

from __future__ import annotations

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from manas_jax.config import search_budget
from manas_jax.data.splits import Splits
from manas_jax.search import bilevel_search, evolution, random_search
from manas_jax.search.uniform import uniform_within
from manas_jax.space import Genotype, SearchSpace

METHODS: dict[str, Callable[..., Genotype]] = {
    "bilevel": bilevel_search.search,
    "evolution": evolution.search,
    "random": random_search.search,
    "halving": random_search.search,
    "uniform": random_search.search,
}
"""By the name that `search.method` gives them."""


def check(config: ConfigDict) -> None:
    """Checks what a method would find out only when it searches.

    Raises:
      UserError: no genotype of the rule is within the budget, or the space has none.
    """
    if config.search.method == "uniform":
        uniform_within(SearchSpace.from_dict(config.space), search_budget(config))


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Searches by the configured method; see those of `METHODS`."""
    return METHODS[config.search.method](config, workdir, splits)

"""Architecture search methods. Each leaves `genotype.json` and `search/summary.json`."""

from __future__ import annotations

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from manas_jax.data.splits import Splits
from manas_jax.search import bilevel_search, evolution, random_search
from manas_jax.space import Genotype

METHODS: dict[str, Callable[..., Genotype]] = {
    "bilevel": bilevel_search.search,
    "evolution": evolution.search,
    "random": random_search.search,
    "halving": random_search.search,
    "uniform": random_search.search,
}
"""By the name that `search.method` gives them."""


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Searches by the configured method; see those of `METHODS`."""
    return METHODS[config.search.method](config, workdir, splits)

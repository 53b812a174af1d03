"""Architecture search methods. Each leaves `genotype.json` and `search/summary.json`."""

from __future__ import annotations

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from manas_jax.data.splits import Splits
from manas_jax.search import evolution, run, sampling
from manas_jax.space import Genotype

METHODS: dict[str, Callable[..., Genotype]] = {
    "bilevel": run.search,
    "evolution": evolution.search,
    "random": sampling.search,
    "halving": sampling.search,
    "uniform": sampling.search,
}
"""By the name that `search.method` gives them."""


def search(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> Genotype:
    """Searches by the configured method; see those of `METHODS`."""
    return METHODS[config.search.method](config, workdir, splits)

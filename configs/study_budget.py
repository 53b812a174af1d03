"""Which way to search pays? Three budgets, at each of them searched, random and hand-made networks.

python -m manas_jax.study --config=configs/study_budget.py --workdir=runs/study_budget \\
    --config.data.root=DIR [--index=I --count=N]

DIR holds train/{rain,norain}; the test pairs are not used. Space and training are those of
configs/budget.py, with fewer steps. Each method of searching has as many multiply-accumulates as
the bilevel search: that takes two gradients of the supernet a step, the others one of a network of
the budget.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.space import SearchSpace

SEEDS = 6
BUDGETS = {"small": 4.5, "medium": 7.0, "large": 11.0}  # billions of multiply-accumulates


def get_config() -> ConfigDict:
    """The grid, its budgets and the length of its trainings."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("budget.py")))["get_config"]()
    config.devices = 1
    config.data.validation_scenes = 24
    config.train.update(steps=1500, checkpoint_every=1500, validation_crop=512)

    size = config.objectives.complexity_size
    supernet = cost.supernet(SearchSpace(**config.space), *size).macs
    bilevel = 2 * config.search.steps * config.search.scenes * supernet

    study = config.study = ConfigDict()
    study.seeds = SEEDS  # of initial weights and batches; cell i of a source has seed i % seeds
    study.judged_batches = 8  # of architecture scenes, when a supernet scores architectures
    study.candidates = 48
    study.tolerance = 0.03
    study.searches = ConfigDict()
    study.sources = ConfigDict()
    for tier, (name, budget) in enumerate(BUDGETS.items()):
        steps = round(bilevel / (config.train.scenes * budget * 1e9))
        for method in ("bilevel", "random", "halving"):
            search = {"method": method, "budget": budget}
            if method != "bilevel":
                search |= {"steps": steps, "candidates": 8}
            study.searches[f"{method}_{name}"] = ConfigDict({"search": search})
            study.sources[f"{method}_{name}"] = ConfigDict(
                {"choice": "derived", "search": f"{method}_{name}", "cells": SEEDS, "tier": tier}
            )
        of_budget = {"search": f"bilevel_{name}", "tier": tier}
        study.sources[f"within_{name}"] = ConfigDict(
            {"choice": "within", "cells": 2 * SEEDS, **of_budget}
        )
        study.sources[f"uniform_{name}"] = ConfigDict(
            {"choice": "uniform", "cells": SEEDS, **of_budget}
        )
    return config

"""Which search method pays? Three budgets, at each of them searched, random and hand-made networks.

python -m manas_jax.study --config=configs/study_budget.py --workdir=runs/study_budget \\
    --config.data.root=DIR [--index=I --count=N]

DIR holds train/{rain,norain}; the test pairs are not used. Space and training are those of
configs/budget.py, with fewer channels, more columns and shorter training runs: at twice the
channels a genotype of the large budget costs as much as the shipped weights. All networks have 0.88
billion multiply-accumulates in common, so the budgets leave about 1 : 2 : 5 for what is searched.
Each search method has as many as 1,000 bilevel steps of two gradients of the supernet, 11% more
than the bilevel search itself, which takes one gradient a step while it warms up. Random search and
halving take one gradient of a network of the budget a step. So does the single-path supernet, which
computes all candidates of the attention edges besides, and ends with an evolution whose scores take
four passes of the supernet each. Halving of networks with preferences has half as many.
"""

import pathlib
import runpy
from typing import Any

from ml_collections import ConfigDict

from manas_jax import cost
from manas_jax.space import SearchSpace

SEEDS = 6
CANDIDATES = {"random": 8, "halving": 16, "preferences": 8}
PREFERENCE = 3.0
BUDGETS = {"small": 1.2, "medium": 1.5, "large": 2.4}  # billions of multiply-accumulates


def get_config() -> ConfigDict:
    """The grid, its budgets and the length of its training runs."""
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("budget.py")))["get_config"]()
    config.devices = 1
    config.space.update(channels=(16, 32, 64), columns=(6, 6))
    config.search.update(method="bilevel", budget=BUDGETS["large"])
    config.data.validation_scenes = 24
    # Frozen after 5% of so few steps, as in configs/budget.py, statistics lower the scores.
    config.train.update(steps=1500, batch_norm=0.3, checkpoint_every=1500, validation_crop=512)

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
        for kind in ("bilevel", *CANDIDATES):
            search = {"method": kind, "budget": budget}
            if kind != "bilevel":
                search |= {"steps": steps, "candidates": CANDIDATES[kind]}
            if kind == "preferences":
                search |= {"method": "halving", "steps": steps // 2, "preference": PREFERENCE}
            study.searches[f"{kind}_{name}"] = ConfigDict({"search": search})
            study.sources[f"{kind}_{name}"] = ConfigDict(
                {
                    "choice": "derived",
                    "search": f"{kind}_{name}",
                    "cells": SEEDS,
                    "tier": 2 * tier + (kind != "bilevel"),
                }
            )
        of_budget = {"search": f"bilevel_{name}", "tier": 2 * tier}
        study.sources[f"within_{name}"] = ConfigDict(
            {"choice": "within", "cells": 2 * SEEDS, **of_budget}
        )
        study.sources[f"uniform_{name}"] = ConfigDict(
            {"choice": "uniform", "cells": SEEDS, **of_budget}
        )
    for name, search in _evolutions(config, bilevel).items():
        study.searches[f"evolution_{name}"] = ConfigDict({"search": search})
        study.sources[f"evolution_{name}"] = ConfigDict(
            {
                "choice": "derived",
                "search": f"evolution_{name}",
                "cells": SEEDS,
                "tier": study.sources[f"random_{name}"].tier,
            }
        )
    for choice in ("all_fusion", "hand_made"):
        study.sources[f"paper_{choice}"] = ConfigDict({"choice": choice, "cells": SEEDS, "tier": 3})
    return config


def _evolutions(config: ConfigDict, total: float) -> dict[str, dict[str, Any]]:
    """The options of the evolution at each budget, with at most `total` as in `get_config`."""
    size, scenes = config.objectives.complexity_size, config.search.scenes
    space = SearchSpace(**config.space)
    evolution = {"method": "evolution", "population": 20, "generations": 10, "choice_batches": 4}
    batches = evolution["population"] * evolution["generations"] * evolution["choice_batches"]
    # A pass forwards costs a third of a gradient.
    left = total - batches * scenes * cost.supernet(space, *size).macs / 3
    candidates = cost.candidates(space, *size).macs
    return {
        name: evolution
        | {"budget": budget, "steps": int(left / (scenes * (budget * 1e9 + candidates)))}
        for name, budget in BUDGETS.items()
    }

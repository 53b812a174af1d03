"""A network within a cost budget: its depth and widths are chosen.

python -m manas_jax.main --config=configs/budget.py --workdir=runs/budget \\
    --config.data.root=DIR --config.search.budget=8

DIR is a folder as configs/rain100l.py describes it, or any other that docs/data.md lists. The
budget is in billions of multiply-accumulates for an image of `objectives.complexity_size`, or with
--config.search.budget_of=parameters a number of parameters. A budget below the lowest cost in the
space is an error, whose message states the lowest and the highest cost. The run ends with a trained
network within the budget, runs/budget/weights.safetensors.

A rule makes the network and needs no training: in the runs so far of the study of budgets, no
search is shown to beat the rule or random networks (docs/study_budget.md). To search, give
--config.search.method=bilevel, evolution, halving or random.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

from manas_jax.space import ALL_COLUMNS


def get_config() -> ConfigDict:
    """A deep supernet, pruned to the budget."""
    # The losses, the data and the optimizer of the shipped weights.
    config = runpy.run_path(str(pathlib.Path(__file__).with_name("pretrained.py")))["get_config"]()
    config.stage = "all"
    config.log_every = 50
    config.space.update(
        channels=(32, 64, 96),
        branches=(2, 3),
        columns=(4, 4),
        stem_blocks=1,
        patch=2,
        residual=True,
        column_choices=ALL_COLUMNS,
        widths=(0.25, 0.5, 0.75, 1.0),
    )
    config.objectives.complexity = 0.0  # the budget replaces it
    config.search.update(
        method="uniform",
        budget=8.0,
        steps=1000,
        scenes=4,
        optimizer="muon",
        learning_rate=3e-3,
        final_learning_rate=0.0,
        clip=5.0,
        architecture_learning_rate=0.01,
        architecture_weight_decay=0.0,
        architecture_warmup=0.2,
        checkpoint_every=250,
    )
    config.train.update(genotype="", steps=8000, batch_norm=0.05, checkpoint_every=500)
    return config

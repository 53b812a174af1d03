"""The paper's sizes and schedule: a pod slice or a large GPU box, and days.

python -m manas_jax.main --config=configs/manas.py --workdir=DIR --config.data.root=DIR

Each scene needs three rainy versions: DID-MDN has one per density, Rain14000 has fourteen. Datasets
of single pairs train multi-to-one with --config.data.transfer=1. A search step is compiled as two
programs, one for the architecture and one for the weights;
--config.search.hypergradient=finite_difference searches with the second-order hypergradient.
"""

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config() -> ConfigDict:
    """The defaults are the paper's."""
    config = default()
    config.log_every = 100
    config.search.fuse = True
    config.data.validation_scenes = 100
    return config

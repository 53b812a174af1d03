"""The paper's sizes and schedule: a pod slice or a large GPU box, and days.

python -m manas_jax.main --config=configs/manas.py --workdir=DIR --config.data.root=DIR

Three rainy versions of each scene are wanted: DID-MDN has one a density, Rain14000 has fourteen.
Sets of single pairs train multi-to-one with --config.data.transfer=1. Steps are compiled as one
program each; --config.search.hypergradient=finite_difference searches by second order.
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

"""The smallest run of all stages, for tests.

python -m manas_jax.main --config=configs/tiny.py --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config() -> ConfigDict:
    """A few steps of a toy network on embedded photographs."""
    config = default()
    config.log_every = 2
    config.space.update(
        channels=(4, 8), branches=(1, 2), columns=(1, 1), stem_blocks=1, patch=2, residual=True
    )
    config.objectives.complexity_size = (64, 64)
    config.data.update(
        source="photographs", versions=2, real=0.0, synthetic=1.0, validation_scenes=2, limit=8
    )
    config.search.update(
        steps=6,
        scenes=2,
        crop=32,
        architecture_warmup=0.25,
        checkpoint_every=2,
        validation_crop=32,
    )
    config.train.update(steps=6, scenes=2, crop=32, checkpoint_every=2, validation_crop=32)
    config.evaluate.pictures = 2
    return config

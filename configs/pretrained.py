"""The networks whose weights ship with the package: an hour or two on two cores each.

python -m manas_jax.main --config=configs/pretrained.py --workdir=runs/pretrained \\
    --config.data.root=DIR

DIR is as in configs/rain100l.py, and so is the kind of network: half resolution, predicting the
difference to its input. It is wider and deeper, and trained for longer on more scenes a step.
"""

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config() -> ConfigDict:
    """A middling network on pairs, with streak transfer."""
    config = default()
    config.log_every = 100
    config.space.update(
        channels=(32, 64, 96),
        branches=(2, 3),
        columns=(3, 3),
        stem_blocks=1,
        patch=2,
        residual=True,
    )
    config.data.update(real=1.0, transfer=1.0, versions=2, validation_scenes=12)
    config.search.update(
        steps=300,
        scenes=6,
        learning_rate=0.02,
        final_learning_rate=1e-3,
        clip=5.0,
        architecture_learning_rate=0.01,
        architecture_warmup=0.2,
        checkpoint_every=100,
    )
    config.train.update(
        steps=24_000,
        scenes=6,
        learning_rate=2e-3,
        ema=0.999,
        checkpoint_every=1000,
        validation_crop=320,
    )
    return config

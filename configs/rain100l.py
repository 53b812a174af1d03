"""Rain100L, or any folder of pairs: a supernet for two cores.

python -m manas_jax.main --config=configs/rain100l.py --workdir=runs/rain100l \\
    --config.data.root=DIR

DIR holds train/{rain,norain} and test/{rain,norain}. Each scene has one rainy version of its own;
the other two come from streak transfer, which makes the training multi-to-one. The network works at
half resolution and predicts the difference to its input. The test pairs are used once, by the final
evaluation; checkpoints are chosen on pairs split off the training set.
"""

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config() -> ConfigDict:
    """A small supernet on pairs, with streak transfer."""
    config = default()
    config.log_every = 50
    config.space.update(
        channels=(24, 48, 72),
        branches=(2, 3),
        columns=(2, 2),
        stem_blocks=1,
        patch=2,
        residual=True,
    )
    config.data.update(real=1.0, transfer=1.0, validation_scenes=12)
    config.search.update(
        steps=400,
        scenes=4,
        learning_rate=0.02,
        final_learning_rate=1e-3,
        clip=5.0,
        architecture_learning_rate=0.01,
        architecture_warmup=0.2,
        checkpoint_every=100,
    )
    config.train.update(steps=8000, scenes=4, learning_rate=2e-3, ema=0.999, checkpoint_every=500)
    return config

"""All stages on photographs from installed packages: minutes on two cores, nothing to download.

python -m manas_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Clean photographs from scikit-image and matplotlib get synthetic rain, three versions per scene.
Three photographs are held out for evaluation. The network is like the paper's, but smaller, works
at half resolution and predicts the difference to its input.

This is a demonstration: the search is far too short to decide between the candidates, so the
derived network may be no better than a random one.
"""

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config() -> ConfigDict:
    """A small supernet on embedded data."""
    config = default()
    config.note = (
        "A demonstration of all stages. With the settings of the quickstart the search is far too "
        "short to decide between the candidates, so the derived network may be no better than a "
        "random one."
    )
    config.log_every = 25
    config.space.update(
        channels=(16, 32, 48),
        branches=(2, 3),
        columns=(1, 2),
        stem_blocks=1,
        patch=2,
        residual=True,
    )
    config.data.update(source="photographs", real=0.0, synthetic=1.0, validation_scenes=6)
    config.search.update(
        steps=100,
        scenes=4,
        learning_rate=0.02,
        final_learning_rate=1e-3,
        clip=5.0,
        architecture_learning_rate=0.01,
        architecture_warmup=0.2,
        checkpoint_every=50,
    )
    config.train.update(steps=1200, scenes=4, learning_rate=2e-3, ema=0.99, checkpoint_every=300)
    return config

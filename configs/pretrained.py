"""The networks whose weights are shipped with the package: one to two hours on two cores each.

python -m manas_jax.main --config=configs/pretrained.py:rain100l --workdir=runs/rain100l \\
    --config.data.root=DIR
python -m manas_jax.main --config=configs/pretrained.py:general --workdir=runs/general \\
    --config.data.root=DIR --config.train.weights=runs/rain100l/weights.safetensors

The network is that of configs/rain100l.py, at half resolution and with a residual output, but wider
and deeper, and trained for longer on more scenes per step. `rain100l` is for the folder described
in configs/rain100l.py. `general` starts from its weights, and adds synthetic rain of all kinds and
all folders of pairs or groups below DIR/train.
"""

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config(name: str = "rain100l") -> ConfigDict:
    """A medium-sized network; `name` is that of its weights."""
    return {"rain100l": _rain100l, "general": _general}[name]()


def _rain100l() -> ConfigDict:
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


def _general() -> ConfigDict:
    config = _rain100l()
    config.stage = "train"
    # No veil: haze is estimated from the whole image, so tiles would differ in brightness.
    config.data.update(transfer=1.0, synthetic=2.0, validation_scenes=20)
    config.train.update(steps=3000, scenes=3, crop=96, learning_rate=5e-4, checkpoint_every=500)
    return config

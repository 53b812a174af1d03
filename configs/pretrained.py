"""The networks whose weights are shipped with the package.

python -m manas_jax.main --config=configs/pretrained.py:rain100l --workdir=runs/rain100l \\
    --config.data.root=DIR
python -m tools.join_datasets ALL rain100l=DIR:12 NAME=OTHER:20 ...
python -m manas_jax.main --config=configs/pretrained.py:general --workdir=runs/general \\
    --config.data.root=ALL --config.train.weights=runs/rain100l/weights.safetensors

The network is designed by hand, alternating.json next to this file: alternating parallel and fusion
columns, squeeze-excitation on every edge, at half resolution and with a residual output.
docs/weights.md says how it differs from the network that a search found for earlier weights.

`rain100l` is for the folder described in configs/rain100l.py. `general` starts from its weights,
and adds synthetic rain of all levels, drawn fences, and all folders of pairs or groups below
ALL/train. The shipped weights are from several such training runs in a row, with other rates,
decays and patches: docs/weights.md describes them, and results/pretrained/ has the commands.

A training can be continued, with another decay, in a new workdir: from the weights of the first,
with `--config.train.weights=FILE --config.train.genotype= --config.train.batch_norm=0`.
"""

import pathlib

from ml_collections import ConfigDict

from manas_jax.config import default


def get_config(name: str = "rain100l") -> ConfigDict:
    """A medium-sized network; `name` is that of its weights."""
    return {"rain100l": _rain100l, "general": _general}[name]()


def _rain100l() -> ConfigDict:
    config = default()
    config.stage = "train"
    config.log_every = 250
    # What each of these is worth: docs/weights.md.
    config.objectives.update(mse=0.0, charbonnier=1.0, ssim=0.1)
    config.data.update(real=1.0, transfer=1.0, versions=2, validation_scenes=12)
    config.train.update(
        genotype=str(pathlib.Path(__file__).with_name("alternating.json")),
        steps=24_000,
        scenes=6,
        optimizer="muon",
        learning_rate=3e-3,
        decay=0.4,
        batch_norm=400 / 24_000,
        ema=0.999,
        checkpoint_every=1000,
        validation_crop=320,
    )
    return config


def _general() -> ConfigDict:
    config = _rain100l()
    # No veil: haze is estimated from the whole image, so tiles would differ in brightness.
    config.data.update(synthetic=1.0, appearance="mixed", stripes=0.3, validation_scenes=20)
    config.train.update(
        genotype="", steps=4000, learning_rate=2e-3, decay=1.0, batch_norm=0.0, checkpoint_every=500
    )
    return config

"""Signal and noise of the architecture's gradient at the end of a study's searches.

python -m tools.study_gradients WORKDIR --root DIR [--searches first_order decay]

For every search, the gradient of the restoration loss with respect to the logits on single batches
of architecture scenes, at the final logits and at equal ones, and the pull of a weight decay of
1e-3, the paper's, at the final logits. Writes results/study/gradients.json.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import RESULTS
from manas_jax.config import default
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.models.network import Architecture
from manas_jax.runtime import compilation, sharding
from manas_jax.training import build, losses
from manas_jax.training.restore import load_search
from manas_jax.workdir import provenance
from manas_jax.workdir.claim import read_config

RESULT = RESULTS / "study" / "gradients.json"
DECAY = 1e-3


def measure(config: ConfigDict, folder: pathlib.Path, batches: int) -> dict:
    """Signal and noise of one search's supernet, by kind of logits.

    Raises:
      UserError: the folder holds no search.
    """
    state = load_search(config, folder)
    splits = load_splits(config.data, config.search.crop)
    source = build.batches(config, splits, build.Role.SEARCH_ARCHITECTURE, sharding.make_mesh(1))
    patches = list(source.iterate(0, batches))
    loss_fn = losses.scene_loss_fn(
        build.network(config), build.loss_weights(config), internal_from=0
    )
    grad = jax.jit(jax.grad(loss_fn, argnums=1, has_aux=True))

    def snr(logits: Architecture) -> dict[str, dict[str, float]]:
        found = [
            jax.device_get(grad(state.params, logits, state.batch_stats, state.step, batch)[0])
            for batch in patches
        ]
        return {kind: gradient_snr(np.stack([g[kind] for g in found])) for kind in logits}

    found = {kind: np.asarray(rows) for kind, rows in state.architecture.items()}
    return {
        "found": snr(found),
        "even": snr({kind: np.zeros_like(rows) for kind, rows in found.items()}),
        "decay": {k: float(DECAY * np.linalg.norm(rows)) for k, rows in found.items()},
    }


def gradient_snr(gradients: np.ndarray) -> dict[str, float]:
    """Signal-to-noise ratio of the gradients (batches, ...) of single batches.

    Returns:
      'mean', the norm of the mean gradient, without what scatter alone would contribute to it;
      'deviation', the norm of the scatter of one batch; and 'ratio', the former over the latter:
      with 1 / ratio**2 batches per step, signal and noise are equal.
    """
    count = len(gradients)
    variance = float(np.sum(np.var(gradients, axis=0, ddof=1)))
    common = float(np.sum(np.mean(gradients, axis=0) ** 2)) - variance / count
    mean, deviation = max(common, 0.0) ** 0.5, variance**0.5
    return {"mean": mean, "deviation": deviation, "ratio": mean / deviation if deviation else 0.0}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--root", required=True, help="folder of the study's data")
    parser.add_argument("--searches", nargs="+", default=["first_order", "decay"])
    parser.add_argument("--batches", type=int, default=16)
    options = parser.parse_args()
    compilation.use_cache()
    config = default()  # for keys that are newer than the study
    config.update(read_config(options.workdir))
    config.data.root = options.root
    searches = options.workdir / "searches"
    found = {name: sorted(searches.glob(f"{name}-[0-9]*")) for name in options.searches}
    if missing := [name for name, folders in found.items() if not folders]:
        raise UserError(f"{searches}: has no search {missing[0]}")
    rows = []
    for name, folders in found.items():
        for folder in folders:
            seed = int(folder.name.rpartition("-")[2])
            config.seed = seed
            rows.append({"search": name, "seed": seed, **measure(config, folder, options.batches)})
            print(rows[-1])
    write_json(
        RESULT, {"batches": options.batches, "rows": rows, "provenance": provenance.describe()}
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

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

import numpy as np
from ml_collections import ConfigDict

from benchmarks import RESULTS
from manas_jax.config import default
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.runtime import compilation
from manas_jax.search import selection, supernet
from manas_jax.workdir import provenance
from manas_jax.workdir.claim import read_config

RESULT = RESULTS / "study" / "gradients.json"
DECAY = 1e-3


def measure(config: ConfigDict, folder: pathlib.Path, batches: int) -> dict:
    """Signal and noise of one search's supernet, by kind of logits.

    Raises:
      UserError: the folder holds no search.
    """
    evaluator = supernet.evaluator(config, folder, batches)
    found = {kind: np.asarray(rows) for kind, rows in evaluator.state.architecture.items()}
    result = {}
    for name, logits in (("found", found), ("even", {k: 0 * v for k, v in found.items()})):
        gradients = evaluator.gradients(logits)
        result[name] = {kind: selection.gradient_snr(gradients[kind]) for kind in logits}
    result["decay"] = {k: float(DECAY * np.linalg.norm(rows)) for k, rows in found.items()}
    return result


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

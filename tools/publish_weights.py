"""Puts the weights of a finished training into the package and scores them.

python -m tools.publish_weights WORKDIR NAME --root DIR [--held_out DIR]
    [--earlier WORKDIR|RECORD...] [--self_ensemble]

Copies WORKDIR/weights.safetensors to `manas_jax/inference/pretrained/NAME.safetensors` and scores
it with `Derainer` on the test pairs of `--root` (for its layout see configs/rain100l.py), and
dataset by dataset on the pairs of `--held_out` (as `tools.join_datasets` writes them). `--earlier`
names the trainings whose weights this one started from, the first one first: workdirs, or the JSON
record of weights published before, which lists their trainings. Writes
`results/pretrained/NAME.json`, which includes the validation curves of the trainings, and NAME.svg,
a drawing of the network.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from benchmarks import RESULTS
from manas_jax import cost, metrics
from manas_jax.config import default
from manas_jax.data.evaluation import evaluation_pairs
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.pretrained import FOLDER as PRETRAINED
from manas_jax.report import reader
from manas_jax.report.svg import draw_genotype
from manas_jax.workdir import provenance
from manas_jax.workdir.checkpoints import Checkpoints
from manas_jax.workdir.claim import read_config
from manas_jax.workdir.weights import WEIGHTS_FILE, save_weights

FOLDER = RESULTS / "pretrained"
LARGEST = 8e6  # bytes of a weights file


def score(derainer: Derainer, data: ConfigDict, self_ensemble: bool) -> dict[str, Any]:
    """Scores of the test pairs before, after, and perhaps with self-ensemble; cost per image."""
    pairs = list(evaluation_pairs(load_splits(data, crop=64).test, data))
    if not pairs:
        raise UserError(f"--root {data.root}: holds no test pairs")
    images, seconds, seen = [], [], set()
    for name, rainy, clean in tqdm(pairs, unit="picture"):
        if rainy.shape not in seen:  # so that the timing excludes compilation
            derainer(rainy)
            seen.add(rainy.shape)
        start = time.monotonic()
        restored = derainer(rainy)
        seconds.append(time.monotonic() - start)
        outputs = {"input": rainy, "output": restored}
        if self_ensemble:
            outputs["self_ensemble"] = derainer(rainy, self_ensemble=True)
        images.append({"name": name, **{k: metrics.score(x, clean) for k, x in outputs.items()}})
    height, width = clean.shape[:2]
    total = cost.derived(derainer.genotype, height, width)
    return {
        "parameters": total.parameters,
        "macs": total.macs,
        "macs_at": [height, width],
        "seconds_a_picture": float(np.median(seconds)),
        "mean": {k: dataclasses.asdict(metrics.mean([i[k] for i in images])) for k in outputs},
        "images": [
            {k: v if k == "name" else dataclasses.asdict(v) for k, v in image.items()}
            for image in images
        ],
    }


def score_datasets(derainer: Derainer, data: ConfigDict) -> dict[str, Any]:
    """Mean scores of the test pairs of each dataset, before and after, and their number."""
    found = collections.defaultdict(list)
    pairs = list(evaluation_pairs(load_splits(data, crop=64).test, data))
    if not pairs:
        raise UserError(f"--held_out {data.root}: holds no test pairs")
    for name, rainy, clean in tqdm(pairs, unit="picture"):
        dataset = name.split("/")[0]
        found[dataset].append((metrics.score(rainy, clean), metrics.score(derainer(rainy), clean)))
    return {
        dataset: {
            "pairs": len(scores),
            "input": dataclasses.asdict(metrics.mean([before for before, _ in scores])),
            "output": dataclasses.asdict(metrics.mean([after for _, after in scores])),
        }
        for dataset, scores in sorted(found.items())
    }


def training_log(workdir: pathlib.Path) -> dict[str, Any]:
    """Provenance, settings, summaries and validation curve of the run."""
    summaries = {
        stage: json.loads((workdir / stage / "summary.json").read_text())
        for stage in ("search", "train")
        if (workdir / stage / "summary.json").exists()
    }
    if "train" not in summaries:  # stopped, for another training to go on from its weights
        with Checkpoints(workdir / "train" / "checkpoints") as checkpoints:
            steps, seconds = checkpoints.latest_step, checkpoints.metadata["seconds"]
        summaries["train"] = {"steps": steps, "seconds": seconds, "compile_seconds": 0.0}
    config = read_config(workdir)
    for section, key in (("data", "root"), ("train", "weights"), ("train", "genotype")):
        config[section][key] = pathlib.Path(config[section][key]).name
    curves = reader.read_events(workdir / "train")
    return {
        "starts": json.loads((workdir / "provenance.json").read_text()),
        "config": config,
        **summaries,
        "validation_curve": {
            "steps": curves["validation/psnr"][0].tolist(),
            "psnr": curves["validation/psnr"][1].tolist(),
            "ssim": curves["validation/ssim"][1].tolist(),
        },
    }


def earlier_trainings(path: pathlib.Path) -> list[dict[str, Any]]:
    """The training logs of a workdir, or of a published record, the first training first."""
    if path.suffix != ".json":
        return [training_log(path)]
    record = json.loads(path.read_text())
    return [*record["earlier_trainings"], record["training"]]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("name")
    parser.add_argument("--root", required=True, help="folder with the test pairs")
    parser.add_argument("--held_out", help="folder with held-out pairs of several datasets")
    parser.add_argument("--self_ensemble", action="store_true", help="score that as well")
    parser.add_argument("--earlier", nargs="*", default=[], type=pathlib.Path)
    options = parser.parse_args()
    source = options.workdir / WEIGHTS_FILE
    if not source.exists() or source.stat().st_size > LARGEST:
        raise UserError(f"{source}: missing, or larger than {LARGEST / 1e6:.0f} MB")
    training = training_log(options.workdir)
    earlier = list(itertools.chain.from_iterable(map(earlier_trainings, options.earlier)))
    data = default().data
    data.root = options.root
    derainer = Derainer.from_pretrained(source)
    scored = score(derainer, data, options.self_ensemble)
    data.root = options.held_out
    held_out = score_datasets(derainer, data) if options.held_out else {}
    genotype = derainer.genotype
    before, after = (scored["mean"][kind]["y_psnr"] for kind in ("input", "output"))
    scores = f"{before:.2f} -> {after:.2f} dB on {len(scored['images'])} test pairs"
    origin = {**derainer.provenance, "scores": scores}
    if held_out:
        origin["held_out"] = ", ".join(
            f"{dataset} {means['input']['y_psnr']:.2f} -> {means['output']['y_psnr']:.2f} dB"
            for dataset, means in held_out.items()
        )
    save_weights(PRETRAINED / f"{options.name}.safetensors", derainer.variables, genotype, origin)
    (FOLDER / f"{options.name}.svg").write_text(draw_genotype(genotype))
    record = {
        "provenance": provenance.describe(),
        "weights": derainer.provenance,
        "genotype": json.loads(genotype.to_json()),
        "pool_side": derainer.pool_side,
        "evaluate": scored,
        "training": training,
        "earlier_trainings": earlier,
        "held_out": held_out,
    }
    write_json(FOLDER / f"{options.name}.json", record)
    for kind, mean in scored["mean"].items():
        print(kind, mean)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

"""Evaluation: whole pictures of any size, scored as the de-raining literature scores them.

As a command it scores pictures that anyone restored, by whatever means:

python -m manas_jax.evaluate --restored=DIR --clean=DIR [--json=FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost, metrics
from manas_jax.data import images
from manas_jax.data.evaluation import evaluation_pairs
from manas_jax.data.sources import load_splits
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.models.network import Network
from manas_jax.runtime import distributed, signals
from manas_jax.training import run as train_run
from manas_jax.workdir import provenance

PyTree = Any
LOGGED_PICTURES = 10


def restorer(network: Network) -> Callable[[PyTree, np.ndarray], np.ndarray]:
    """A function (variables, uint8 (H, W, 3)) -> uint8 (H, W, 3) without rain.

    It is compiled once a picture size.
    """

    @jax.jit
    def apply(variables, picture):
        return network.apply(variables, picture[None].astype(jnp.float32) / 255)[0]

    def restore(variables: PyTree, picture: np.ndarray) -> np.ndarray:
        return metrics.to_uint8(np.asarray(apply(variables, picture)))

    return restore


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Scores the trained network of a workdir on its test (or validation) pictures.

    Writes `evaluate/scores.json` and a few triples of pictures for the report. Several processes
    score a part of the pictures each.

    Returns:
      What `scores.json` holds.

    Raises:
      UserError: nothing was trained here, or there are no pictures to score.
      Stopped: a signal came.
    """
    folder = pathlib.Path(workdir) / "evaluate"
    network, variables, step = train_run.load(config, workdir)
    splits = load_splits(config.data, config.train.crop)
    chosen = getattr(splits, config.evaluate.split)
    if not chosen:
        raise UserError(
            f"data.root={config.data.root}: no {config.evaluate.split} pictures to evaluate; "
            "add a test folder or set evaluate.split=validation"
        )
    restore = restorer(network)
    total = sum(max(1, len(scene.rainy)) for scene in chosen)
    kept = set(np.linspace(0, total - 1, min(total, config.evaluate.pictures)).astype(int))
    distributed.broadcast_from_primary(lambda: _empty(folder / "pictures"))

    first, every = jax.process_index(), jax.process_count()
    part = len(range(first, total, every))
    pairs = evaluation_pairs(chosen, config.data, first=first, every=every)
    rows, seen, begin = [], set(), time.monotonic()
    for number, (name, rainy, clean) in zip(range(first, total, every), pairs, strict=True):
        signals.check()
        if rainy.shape not in seen:  # keep compiling out of the seconds a picture
            restore(variables, rainy)
            seen.add(rainy.shape)
        start = time.monotonic()
        restored = restore(variables, rainy)
        seconds = time.monotonic() - start
        before, after = metrics.score(rainy, clean), metrics.score(restored, clean)
        scores = {"input": dataclasses.asdict(before), "output": dataclasses.asdict(after)}
        rows.append({"name": name, **scores, "seconds": seconds})
        if len(rows) <= LOGGED_PICTURES or len(rows) % LOGGED_PICTURES == 0:
            left = (time.monotonic() - begin) / len(rows) * (part - len(rows))
            logging.info(
                "evaluate: %d of %d, %s: %.2f -> %.2f dB, SSIM %.3f -> %.3f (Y); %.0f s left",
                len(rows), part, name, before.y_psnr, after.y_psnr, before.y_ssim, after.y_ssim,
                left,
            )  # fmt: skip
        if number in kept:
            stem = str(folder / "pictures" / name.replace(os.sep, "_"))
            for kind, picture in (("rainy", rainy), ("restored", restored), ("clean", clean)):
                images.write_png(f"{stem}_{kind}.png", picture)

    rows = distributed.gather(rows)
    mean = {
        side: metrics.mean([metrics.Scores(**row[side]) for row in rows])
        for side in ("input", "output")
    }
    height, width = chosen[-1].size
    total = cost.derived(network.genotype, height, width)
    result = {
        "split": config.evaluate.split,
        "step": step,
        "parameters": total.parameters,
        "macs": total.macs,
        "macs_at": [height, width],
        "seconds_a_picture": float(np.median([row["seconds"] for row in rows])),
        "mean": {side: dataclasses.asdict(scores) for side, scores in mean.items()},
        "images": rows,
    }
    distributed.broadcast_from_primary(lambda: write_json(folder / "scores.json", result))
    logging.info(
        "%d pictures: PSNR %.2f -> %.2f dB, SSIM %.4f -> %.4f on Y; "
        "PSNR %.2f -> %.2f dB, SSIM %.4f -> %.4f on RGB",
        len(rows),
        mean["input"].y_psnr, mean["output"].y_psnr, mean["input"].y_ssim, mean["output"].y_ssim,
        mean["input"].rgb_psnr, mean["output"].rgb_psnr,
        mean["input"].rgb_ssim, mean["output"].rgb_ssim,
    )  # fmt: skip
    return result


def _empty(folder: pathlib.Path) -> None:
    """Makes a folder for pictures, or removes those of a run before."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """The scorer's command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.evaluate",
        description="Scores restored pictures against clean ones: PSNR and SSIM on Y and on RGB.",
    )
    parser.add_argument("--restored", required=True, help="folder of restored pictures")
    parser.add_argument("--clean", required=True, help="folder of clean pictures, paired by name")
    parser.add_argument("--json", help="file to write the scores to")
    options = parser.parse_args(arguments)
    try:
        scores = metrics.score_folders(options.restored, options.clean)
        if options.json:
            origin = {"provenance": provenance.describe()}
            write_json(options.json, metrics.as_json(scores) | origin)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: --json={options.json} cannot be written ({error})", file=sys.stderr)
        return 1
    print(metrics.table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())

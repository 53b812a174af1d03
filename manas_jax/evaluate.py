"""Evaluation: whole images of any size, scored as the de-raining literature scores them.

As a command it scores images restored by any method:

python -m manas_jax.evaluate --restored=DIR --clean=DIR [--json=FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from manas_jax import cost, metrics
from manas_jax.buckets import Path, as_path, check_local_options
from manas_jax.data import images, pairing
from manas_jax.data.evaluation import evaluation_pairs, pair_names
from manas_jax.data.scene import Scene
from manas_jax.data.sources import load_splits, split_crop
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError, check_extra
from manas_jax.files import check_writable, unique_stems, write_json, write_named_json
from manas_jax.inference import onnx_graph
from manas_jax.inference.derainer import default_engine
from manas_jax.inference.onnx_engine import OnnxEngine
from manas_jax.metrics import Scores
from manas_jax.models.network import Network
from manas_jax.runtime import distributed, log, signals
from manas_jax.training import checks
from manas_jax.training.restore import load_trained
from manas_jax.workdir import provenance

PyTree = Any
_LOG_EVERY = 10  # images, after as many of which each one is logged


def restorer(network: Network, variables: PyTree) -> Callable[[np.ndarray], np.ndarray]:
    """A function from rainy to restored, both uint8 (H, W, 3).

    In float32 on a CPU it is ONNX Runtime, which compiles nothing; else JAX, which compiles for
    each size of images.

    Args:
      network: a derived network.
      variables: its 'params' and 'batch_stats'.
    """
    if network.ops.dtype is None and default_engine(network.genotype) == "onnx":
        on_host = jax.device_get(variables)
        engine = OnnxEngine(onnx_graph.build(network.genotype, on_host, network.pool_side))

        def run(image: np.ndarray) -> np.ndarray:
            return engine(np.divide(image[None], 255, dtype=np.float32))[0]
    else:
        run = functools.partial(restoring_program(network), variables)

    def restore(image: np.ndarray) -> np.ndarray:
        return metrics.to_uint8(np.asarray(run(image)))

    return restore


def restoring_program(network: Network) -> Callable[[PyTree, jax.Array], jax.Array]:
    """JAX's function of `restorer`, jitted: (variables, uint8 (H, W, 3)) -> float32 (H, W, 3)."""

    @jax.jit
    def apply(variables, image):
        return network.apply(variables, image[None].astype(jnp.float32) / 255)[0]

    return apply


def evaluate(
    config: ConfigDict, workdir: str | os.PathLike, splits: Splits | None = None
) -> dict[str, Any]:
    """Scores the trained network of a workdir on its test (or validation) images.

    Writes `evaluate/scores.json` and a few triples of images for the report. With several
    processes each scores its share of the images.

    Args:
      config: of the run.
      workdir: of the run.
      splits: its scenes; None to load them.

    Returns:
      The content of `scores.json`.

    Raises:
      UserError: nothing was trained here, or there are no images to score.
      Stopped: a signal came.
    """
    folder = as_path(workdir) / "evaluate"
    network, variables, step = load_trained(config, workdir)
    splits = splits or load_splits(config.data, split_crop(config, "train"))
    chosen = checks.evaluated_scenes(config, splits)
    distributed.broadcast_from_primary(lambda: _clear(folder))
    rows = distributed.gather(_score(config, network, variables, chosen, folder / "pictures"))
    mean = {
        side: metrics.mean([Scores(**row[side]) for row in rows]) for side in ("input", "output")
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
    before, after = mean["input"], mean["output"]
    logging.info(
        "%d images: PSNR %.2f -> %.2f dB, SSIM %.4f -> %.4f on Y; "
        "PSNR %.2f -> %.2f dB, SSIM %.4f -> %.4f on RGB",
        len(rows),
        before.y_psnr, after.y_psnr, before.y_ssim, after.y_ssim,
        before.rgb_psnr, after.rgb_psnr, before.rgb_ssim, after.rgb_ssim,
    )  # fmt: skip
    return result


def _clear(folder: Path) -> None:
    """Makes a folder for scores and pictures, or removes those of an earlier run."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for stale in (folder / "scores.json", *(folder / "pictures").glob("*.png")):
        stale.unlink(missing_ok=True)


def _score(
    config: ConfigDict,
    network: Network,
    variables: PyTree,
    chosen: Sequence[Scene],
    folder: Path,
) -> list[dict[str, Any]]:
    """Scores this process's images: every n-th of all, n processes.

    Writes `evaluate.pictures` of all images, evenly spaced, to the folder.

    Returns:
      Per image its name, the scores of input and output, and the seconds to restore it.
    """
    stems = unique_stems(pair_names(chosen))
    total = len(stems)
    stored = set(np.linspace(0, total - 1, min(total, config.evaluate.pictures)).astype(int))
    first, every = jax.process_index(), jax.process_count()
    numbers = range(first, total, every)
    pairs = evaluation_pairs(chosen, config.data, first=first, every=every)
    restore = restorer(network, variables)
    rows: list[dict[str, Any]] = []
    compiled, begin = set(), time.monotonic()
    for number, (name, rainy, clean) in zip(numbers, pairs, strict=True):
        signals.check()
        if rainy.shape not in compiled:  # compile outside of the measured seconds
            restore(rainy)
            compiled.add(rainy.shape)
        start = time.monotonic()
        restored = restore(rainy)
        seconds = time.monotonic() - start
        before, after = metrics.score(rainy, clean), metrics.score(restored, clean)
        scores = {"input": dataclasses.asdict(before), "output": dataclasses.asdict(after)}
        rows.append({"name": name, **scores, "seconds": seconds})
        if len(rows) <= _LOG_EVERY or len(rows) % _LOG_EVERY == 0:
            left = (time.monotonic() - begin) / len(rows) * (len(numbers) - len(rows))
            logging.info(
                "evaluate: %d of %d, %s: %.2f -> %.2f dB, SSIM %.3f -> %.3f (Y); %.0f s left",
                len(rows), len(numbers), name,
                before.y_psnr, after.y_psnr, before.y_ssim, after.y_ssim, left,
            )  # fmt: skip
        if number in stored:
            for kind, image in (("rainy", rainy), ("restored", restored), ("clean", clean)):
                images.write_png(str(folder / f"{stems[number]}_{kind}.png"), image)
    return rows


def score_folders(restored: str | os.PathLike, clean: str | os.PathLike) -> dict[str, Scores]:
    """Scores a folder of restored images against a folder of clean ones.

    They are paired by name, see `data.pairing`.

    Returns:
      Restored file name -> scores, in natural order of the names.

    Raises:
      UserError: a folder is missing or empty, an image has no partner or more than one, a file is
        no image, two sizes differ, or an image is below 11x11 pixels.
    """
    scores = {}
    for restored_path, clean_path in pairing.pair(_images(restored), _images(clean)):
        try:
            scores[restored_path.name] = metrics.score(
                images.read(restored_path), images.read(clean_path)
            )
        except UserError as error:
            raise UserError(f"{restored_path} against {clean_path}: {error}") from error
    return scores


def _images(folder: str | os.PathLike) -> list[pathlib.Path]:
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder; give the folder that holds the images")
    if not (paths := images.files_in(folder)):
        raise UserError(f"{folder} holds no images; give the folder that holds them")
    return paths


def as_json(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """JSON-ready form: {"images": [{"name", **scores}, ...], "mean": {**scores}}."""
    return {
        "images": [{"name": name, **dataclasses.asdict(s)} for name, s in scores.items()],
        "mean": dataclasses.asdict(metrics.mean(scores.values())),
    }


def table(scores: Mapping[str, Scores]) -> str:
    """Aligned text: one line per image, then the mean."""
    rows = [*scores.items(), (f"mean of {len(scores)}", metrics.mean(scores.values()))]
    width = max(len("image"), *(len(name) for name, _ in rows))
    form = f"{{:<{width}}}  {{:>8}}  {{:>7}}  {{:>8}}  {{:>8}}"
    lines = [form.format("image", "Y PSNR", "Y SSIM", "RGB PSNR", "RGB SSIM")]
    for name, s in rows:
        values = f"{s.y_psnr:.2f}", f"{s.y_ssim:.4f}", f"{s.rgb_psnr:.2f}", f"{s.rgb_ssim:.4f}"
        lines.append(form.format(name, *values))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command that scores folders; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m manas_jax.evaluate",
        description="Scores restored images against clean ones: PSNR and SSIM on Y and on RGB.",
    )
    parser.add_argument("--restored", required=True, help="folder of restored images")
    parser.add_argument("--clean", required=True, help="folder of clean images, paired by name")
    parser.add_argument("--json", help="file to write the scores to")
    options = parser.parse_args(arguments)
    log.escape_stdout()
    try:
        check_local_options(options)
        check_extra("train", "skimage")
        if options.json:
            folders = (options.restored, options.clean)
            inputs = (path for folder in folders for path in _images(folder))
            check_writable(options.json, "--json", inputs)
        scores = score_folders(options.restored, options.clean)
        if options.json:
            origin = {"provenance": provenance.describe()}
            write_named_json(options.json, "--json", as_json(scores) | origin)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())

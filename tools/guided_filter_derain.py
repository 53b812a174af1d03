"""Removes rain from a folder of pictures by guided filters, a method without training.

python -m tools.guided_filter_derain IN OUT [--radius 4 ...]
python -m tools.guided_filter_derain --tune CLEAN RAINY

After Xu, Zhao, Liu and Tang, "Removing rain and snow in a single image using guided filter", CSAE
2012, and Zheng, Liao, Guo, Fu and Ding, "Single-image-based rain and snow removal using
multi-guided filter", ICONIP 2013. Parameters that are not given are those that the second form
chose: it tries a grid of them on pairs of pictures, and writes
results/downstream/guided_filter.json.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from benchmarks import RESULTS
from manas_jax import metrics
from manas_jax.data import images
from manas_jax.downstream.pictures import counterparts, picture_files
from manas_jax.errors import UserError
from manas_jax.files import write_json
from manas_jax.workdir import provenance

RESULT = RESULTS / "downstream" / "guided_filter.json"
PAIRS = 40
GRID: dict[str, Sequence[Any]] = {
    "guidance": ("range", "picture"),
    "radius": (4, 8, 16),
    "eps": (1e-2, 3e-2, 1e-1),
    "refine_eps": (3e-4, 1e-3, 3e-3),
}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Of `derain`.

    Attributes:
      guidance: of the low frequencies: 'range', the largest minus the smallest channel, to which
        white rain adds nothing (Xu et al.), or 'picture', the picture itself (Zheng et al.).
      radius: of the windows of all filters, in pixels.
      eps: regularises the filter that leaves the low frequencies; the larger, the smoother.
      refine_eps: regularises the other two.
      edge: weight of the gradient in the guidance of the high frequencies (Zheng et al.: 0.1).
      clear: share of the clear picture in the last guidance (Zheng et al.: 0.8).
    """

    guidance: str
    radius: int
    eps: float
    refine_eps: float
    edge: float = 0.1
    clear: float = 0.8


def derain(rainy: np.ndarray, parameters: Parameters) -> np.ndarray:
    """De-rains a picture, uint8 (H, W, 3)."""
    p = parameters
    rainy = np.divide(rainy, 255, dtype=np.float32)
    guidance = np.ptp(rainy, axis=2, keepdims=True) if p.guidance == "range" else rainy
    low = guided_filter(guidance, rainy, p.radius, p.eps)
    edges = low + p.edge * np.hypot(_gradient(low, 0), _gradient(low, 1))
    restored = low + guided_filter(edges, rainy - low, p.radius, p.refine_eps)
    clear = np.minimum(restored, rainy)  # rain only brightens
    reference = p.clear * clear + (1 - p.clear) * restored
    return metrics.to_uint8(guided_filter(reference, clear, p.radius, p.refine_eps))


def _gradient(picture: np.ndarray, axis: int) -> np.ndarray:
    """Along an axis; 0 where that is a single pixel."""
    return np.gradient(picture, axis=axis) if picture.shape[axis] > 1 else np.zeros_like(picture)


def guided_filter(guidance: np.ndarray, image: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Smooths an image where its guidance is smooth, each channel by its own.

    He, Sun and Tang, "Guided image filtering", ECCV 2010.

    Args:
      guidance: (H, W, C) or (H, W, 1), in [0, 1].
      image: (H, W, C).
      radius: of the windows, in pixels.
      eps: variance of the guidance below which a window is smoothed.
    """

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, (2 * radius + 1, 2 * radius + 1, 1), mode="reflect")

    mean_guidance, mean_image = mean(guidance), mean(image)
    covariance = mean(guidance * image) - mean_guidance * mean_image
    variance = mean(guidance * guidance) - mean_guidance * mean_guidance
    slope = covariance / (variance + eps)
    return mean(slope) * guidance + mean(mean_image - slope * mean_guidance)


def tune(clean: pathlib.Path, rainy: pathlib.Path) -> dict[str, Any]:
    """Tries the grid on pairs that are evenly spaced among those of two folders; JSON-ready.

    Raises:
      UserError: see `picture_files` and `counterparts`.
    """
    files = picture_files(clean, "--tune")
    chosen = files[:: max(1, len(files) // PAIRS)][:PAIRS]
    partners = dict(zip(files, counterparts(rainy, files, "--tune"), strict=True))
    pairs = [(images.read(path), images.read(partners[path])) for path in chosen]
    rows = []
    for values in tqdm(list(itertools.product(*GRID.values())), disable=None):
        parameters = Parameters(**dict(zip(GRID, values, strict=True)))
        scores = [_y_psnr(derain(rain, parameters), target) for target, rain in pairs]
        rows.append({**dataclasses.asdict(parameters), "y_psnr": float(np.mean(scores))})
    best = max(rows, key=lambda row: row["y_psnr"])
    return {
        "folders": {"clean": clean.resolve().name, "rainy": rainy.resolve().name},
        "pictures": [path.name for path in chosen],
        "rainy_y_psnr": float(np.mean([_y_psnr(rain, target) for target, rain in pairs])),
        "chosen": {field.name: best[field.name] for field in dataclasses.fields(Parameters)},
        "grid": rows,
        "provenance": provenance.describe(),
    }


def _y_psnr(picture: np.ndarray, clean: np.ndarray) -> float:
    return metrics.psnr(metrics.luma(picture), metrics.luma(clean))


def derain_folder(source: pathlib.Path, target: pathlib.Path, parameters: Parameters) -> None:
    """De-rains all pictures of a folder into a new one, as PNG files.

    Raises:
      UserError: a folder holds no pictures, exists or cannot be written.
    """
    files = picture_files(source, "IN")
    stems = collections.Counter(path.stem for path in files)
    if repeated := [stem for stem, count in stems.items() if count > 1]:
        raise UserError(f"IN {source}: several pictures are called {repeated[0]}: rename them")
    try:
        target.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"OUT {target}: give a new folder ({error.strerror})") from None
    try:
        for path in tqdm(files, disable=None):
            images.write_png(target / f"{path.stem}.png", derain(images.read(path), parameters))
    except BaseException:  # so that the command can be repeated
        shutil.rmtree(target)
        raise


def _check(options: argparse.Namespace) -> Parameters:
    """The parameters that were chosen by `tune`, but for those that were given."""
    chosen = json.loads(RESULT.read_text())["chosen"]
    given = {name: getattr(options, name) for name in chosen}
    parameters = Parameters(**chosen | {k: x for k, x in given.items() if x is not None})
    if parameters.radius < 1:
        raise UserError(f"--radius {parameters.radius}: give at least 1")
    for name in ("eps", "refine_eps"):
        if not 0 < getattr(parameters, name) < np.inf:
            raise UserError(f"--{name} {getattr(parameters, name)}: give more than 0")
    for name in ("edge", "clear"):
        if not 0 <= getattr(parameters, name) <= 1:
            raise UserError(f"--{name} {getattr(parameters, name)}: give a number from 0 to 1")
    return parameters


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can correct.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=pathlib.Path, metavar="IN")
    parser.add_argument("target", nargs="?", type=pathlib.Path, metavar="OUT")
    parser.add_argument("--tune", nargs=2, type=pathlib.Path, metavar=("CLEAN", "RAINY"))
    parser.add_argument("--guidance", choices=GRID["guidance"])
    parser.add_argument("--radius", type=int, help="pixels")
    for name in ("eps", "refine_eps", "edge", "clear"):
        parser.add_argument(f"--{name}", type=float, help="see `Parameters`")
    options = parser.parse_args(arguments)
    given = [name for name in GRID if getattr(options, name) is not None]
    if options.tune and given:
        parser.error(f"--tune finds the parameters: leave out --{given[0]}")
    if options.tune and not options.source:
        found = tune(*options.tune)
        write_json(RESULT, found)
        print(found["chosen"], f"{max(row['y_psnr'] for row in found['grid']):.2f} dB")
    elif options.target and not options.tune:
        derain_folder(options.source, options.target, _check(options))
    else:
        parser.error("give IN and OUT, or --tune CLEAN RAINY")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

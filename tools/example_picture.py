"""README's example: a drawn landscape with synthetic rain, restored by the network of a run.

python -m tools.example_picture WORKDIR results/runs/NAME.png

Left to right: rainy, de-rained, clean. The scene is drawn here, so nobody else holds rights to it.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFilter

from manas_jax import evaluate, metrics
from manas_jax.data import images, rain
from manas_jax.errors import UserError
from manas_jax.training.restore import load_trained
from manas_jax.workdir.claim import read_config

HEIGHT, WIDTH = 240, 320
OVERSAMPLING = 4
GAP = 6  # pixels


def landscape(seed: int = 0) -> np.ndarray:
    """Hills, trees and houses under an evening sky: uint8 (HEIGHT, WIDTH, 3)."""
    draw_random = np.random.default_rng(seed)
    height, width = HEIGHT * OVERSAMPLING, WIDTH * OVERSAMPLING
    down = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - down) * np.array([86, 118, 168]) + down * np.array([232, 186, 142])
    picture = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    across = np.arange(width)
    for depth, color in enumerate([(112, 124, 140), (88, 108, 96), (66, 92, 60), (48, 72, 42)]):
        waves = sum(
            draw_random.uniform(10, 40) / (k + 1) * np.sin(across / width * (k + 1) * 5 + phase)
            for k, phase in enumerate(draw_random.uniform(0, 6, 5))
        )
        ridge = height * (0.42 + 0.15 * depth) + OVERSAMPLING * waves / 2
        draw.polygon([(0, height), *zip(across, ridge, strict=True), (width, height)], fill=color)
        for x in draw_random.uniform(0, width, 9 * (depth + 1)):
            y, size = ridge[int(x)], OVERSAMPLING * (3 + 5 * depth) * draw_random.uniform(0.6, 1.2)
            shade = tuple(int(c * draw_random.uniform(0.6, 0.9)) for c in color)
            draw.polygon([(x - size / 2, y), (x, y - 2 * size), (x + size / 2, y)], fill=shade)
    for x in draw_random.uniform(0.1, 0.85, 4) * width:
        side = OVERSAMPLING * draw_random.uniform(22, 34)
        top = height * 0.78 + draw_random.uniform(0, 20) * OVERSAMPLING
        wall = tuple(int(c) for c in draw_random.uniform(150, 225, 3))
        draw.rectangle([x, top, x + 1.4 * side, top + side], fill=wall)
        roof = [(x - 4, top), (x + 0.7 * side, top - 0.7 * side), (x + 1.4 * side + 4, top)]
        draw.polygon(roof, fill=(132, 66, 52))
        for column in range(3):
            left = x + side * (0.15 + 0.42 * column)
            box = [left, top + 0.3 * side, left + 0.25 * side, top + 0.65 * side]
            draw.rectangle(box, fill=(246, 216, 132))
    small = picture.filter(ImageFilter.GaussianBlur(1)).resize((WIDTH, HEIGHT), Image.LANCZOS)
    grain = draw_random.normal(0, 2, (HEIGHT, WIDTH, 1))  # as of a sensor
    return np.clip(np.asarray(small, np.float32) + grain, 0, 255).astype(np.uint8)


def side_by_side(*pictures: np.ndarray) -> np.ndarray:
    """Pictures of one height, uint8 (height, width, 3), with white gaps between."""
    gap = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def triple(workdir: pathlib.Path, seed: int = 0) -> tuple[np.ndarray, metrics.Scores]:
    """The landscape rainy, de-rained and clean side by side, and the scores of the second.

    Raises:
      UserError: nothing was trained in the workdir.
    """
    config = ConfigDict(read_config(workdir))
    network, variables, _ = load_trained(config, workdir)
    clean = landscape(seed)
    rainy = rain.synthesize_8_bits(clean, (seed, 1), "medium")
    restored = evaluate.restorer(network, variables)(rainy)
    scores = [metrics.score(picture, clean) for picture in (rainy, restored)]
    print(f"Y PSNR {scores[0].y_psnr:.2f} -> {scores[1].y_psnr:.2f} dB")
    return side_by_side(rainy, restored, clean), scores[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("file", type=pathlib.Path)
    options = parser.parse_args()
    try:
        images.write_png(options.file, triple(options.workdir)[0])
    except UserError as error:
        sys.exit(f"error: {error}")

"""The pictures of docs/gallery.md: drawings and photographs in synthetic rain.

python -m tools.gallery

Writes docs/gallery/NAME.jpg, from left to right rainy, de-rained by the default weights and clean,
and their scores to results/gallery.json. All images are free of third-party rights: the drawings
and the rain are made here, and the photographs are in the public domain.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from manas_jax import metrics
from manas_jax.data import images, rain
from manas_jax.data.photographs import path_in_package
from manas_jax.derain import DEFAULT_WEIGHTS
from manas_jax.files import write_json
from manas_jax.inference.derainer import Derainer
from manas_jax.workdir import provenance
from tools.example_picture import HEIGHT, WIDTH, landscape, side_by_side

ROOT = pathlib.Path(__file__).parent.parent
QUALITY = 90  # of JPEG

Picture = np.ndarray
"""uint8 (HEIGHT, WIDTH, 3)."""


def photograph(file: str) -> Picture:
    """The middle of a photograph of scikit-image."""
    pixels = images.read(path_in_package("skimage", f"data/{file}"))
    scale = max(WIDTH / pixels.shape[1], HEIGHT / pixels.shape[0])
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.LANCZOS))
    top, left = (small.shape[0] - HEIGHT) // 2, (small.shape[1] - WIDTH) // 2
    return small[top : top + HEIGHT, left : left + WIDTH]


def fence() -> Picture:
    """A fence of bright, thin slats before a meadow."""
    picture = Image.fromarray(landscape(3))
    draw = ImageDraw.Draw(picture)
    for x in range(4, WIDTH, 7):
        draw.line([(x, 100), (x, 205)], fill=(206, 200, 188), width=2)
    for y in (120, 185):
        draw.line([(0, y), (WIDTH, y)], fill=(176, 170, 158), width=4)
    return np.asarray(picture)


def streaks(level: str, veil: float = 0.0) -> Callable[[Picture], Picture]:
    """Synthetic rain as in training."""

    def add(clean: Picture) -> Picture:
        return rain.synthesize_8_bits(clean, (7, 1), level, veil)

    return add


def drops(clean: Picture) -> Picture:
    """Drops on the lens: discs in which the scene is upside down, blurred and brighter."""
    inside = Image.fromarray(clean[::-1]).filter(ImageFilter.GaussianBlur(4))
    bright = Image.blend(inside, Image.new("RGB", inside.size, (255, 255, 255)), 0.25)
    mask = Image.new("L", inside.size)
    random = np.random.default_rng(1)
    for x, y, radius in random.uniform((0, 0, 5), (WIDTH, HEIGHT, 16), (26, 3)):
        ImageDraw.Draw(mask).ellipse([x - radius, y - radius, x + radius, y + radius], fill=235)
    mask = mask.filter(ImageFilter.GaussianBlur(1.5))
    return np.asarray(Image.composite(bright, Image.fromarray(clean), mask))


@dataclasses.dataclass(frozen=True)
class Entry:
    """A picture of the gallery: its name, the scene, and what the weather does to it."""

    name: str
    scene: Callable[[], Picture]
    weather: Callable[[Picture], Picture]


ENTRIES = (
    Entry("cat", lambda: photograph("chelsea.png"), streaks("medium")),
    Entry("coffee", lambda: photograph("coffee.png"), streaks("heavy")),
    Entry("landscape", landscape, streaks("light")),
    Entry("no_rain", lambda: photograph("astronaut.png"), lambda clean: clean),
    Entry("fence", fence, streaks("heavy")),
    Entry("haze", lambda: landscape(1), streaks("medium", veil=0.9)),
    Entry("drops", lambda: landscape(2), drops),
)


def main() -> None:
    """Makes all pictures."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    derain, scores = Derainer.from_pretrained(DEFAULT_WEIGHTS), {}
    folder = ROOT / "docs" / "gallery"
    folder.mkdir(exist_ok=True)
    for entry in ENTRIES:
        clean = entry.scene()
        rainy = entry.weather(clean)
        restored = derain(rainy)
        row = side_by_side(rainy, restored, clean)
        Image.fromarray(row).save(folder / f"{entry.name}.jpg", quality=QUALITY)
        scores[entry.name] = {
            side: dataclasses.asdict(metrics.score(picture, clean))
            for side, picture in (("input", rainy), ("output", restored))
        }
        print(
            entry.name,
            *(f"{scores[entry.name][side]['y_psnr']:.2f} dB" for side in ("input", "output")),
        )
    origin = {"weights": derain.provenance, "provenance": provenance.describe()}
    write_json(ROOT / "results" / "gallery.json", {"pictures": scores, **origin})


if __name__ == "__main__":
    main()

"""Pictures of what was found: boxes and coloured masks, variants side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from manas_jax.downstream.average_precision import Boxes

_HEADER = 16  # pixels for the names above the pictures


def draw_boxes(picture: np.ndarray, boxes: Boxes, classes: Sequence[str]) -> np.ndarray:
    """Boxes with class and score on a picture, RGB, uint8 (H, W, 3)."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for corners, score, label in zip(boxes.corners, boxes.scores, boxes.labels, strict=True):
        colour = tuple(palette(len(classes))[label].tolist())
        draw.rectangle(corners.tolist(), outline=colour, width=2)
        draw.text(tuple(corners[:2] + 2), f"{classes[label]} {score:.2f}", fill=colour)
    return np.asarray(image)


def draw_mask(picture: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """A picture half covered by the colours of the classes (H, W)."""
    colours = palette(classes)[np.minimum(mask, classes - 1)]
    covered = np.where((mask < classes)[..., None], colours, picture)
    return ((picture.astype(int) + covered) // 2).astype(np.uint8)


def palette(classes: int) -> np.ndarray:
    """A colour per class, uint8 (classes, 3)."""
    colours = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, classes))
    return np.round(255 * colours[:, :3]).astype(np.uint8)


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one height in a row, each below its name."""
    row = np.concatenate(list(panels.values()), axis=1)
    image = Image.new("RGB", (row.shape[1], row.shape[0] + _HEADER))
    image.paste(Image.fromarray(row), (0, _HEADER))
    draw, left = ImageDraw.Draw(image), 0
    for name, panel in panels.items():
        draw.text((left + 2, 2), name, fill="white")
        left += panel.shape[1]
    return np.asarray(image)

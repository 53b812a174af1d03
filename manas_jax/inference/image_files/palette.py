"""Palettes fitted to new colours by k-means; alpha never changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ITERATIONS = 4
_CHUNK = 2**20  # pixels at a time, as each takes tens of bytes
_CELL = np.uint32(0xFFFCFCFC)
"""Colours that agree in these bits of `pack` get one entry, as images have too many to search for
each; unless the palette holds them exactly."""


def fit_palette(
    rgb: np.ndarray, alpha: np.ndarray, palette: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a palette to pixels, starting from the given one.

    Every pixel is assigned to the nearest entry of its own alpha. Colours that the palette holds
    already are reproduced exactly.

    Args:
      rgb: uint8 (H, W, 3).
      alpha: uint8 (H, W), each value that of some entry.
      palette: uint8 (colours, 4): RGB and alpha.

    Returns:
      Indices, uint8 (H, W), and the fitted palette.
    """
    pixels = pack(rgb, alpha).ravel()
    chunks = [pixels[start : start + _CHUNK] for start in range(0, len(pixels), _CHUNK)]
    cells = nearest = np.zeros(1, np.uint32)
    if not all(_find(chunk, palette)[1].all() for chunk in chunks):
        cells, counts, colours = _histogram(chunks)
        for _ in range(_ITERATIONS):
            palette = move_to_means(palette, _nearest(colours, palette), colours, counts)
        nearest = _nearest(colours, palette)
    indices = np.empty(len(pixels), np.uint8)
    for start, chunk in zip(range(0, len(pixels), _CHUNK), chunks, strict=True):
        entries, found = _find(chunk, palette)
        cell = np.searchsorted(cells, chunk & _CELL).clip(max=len(cells) - 1)
        indices[start : start + _CHUNK] = np.where(found, entries, nearest[cell])
    return indices.reshape(alpha.shape), palette


def _histogram(chunks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cells of packed pixels, ascending, how many pixels each has, and their mean colours."""
    found = []
    for chunk in chunks:
        cells, inverse, counts = np.unique(chunk & _CELL, return_inverse=True, return_counts=True)
        sums = [np.bincount(inverse, chunk >> shift & 255) for shift in (16, 8, 0)]
        found.append((cells, counts, *sums))
    cells, counts, *sums = map(np.concatenate, zip(*found, strict=True))
    cells, inverse = np.unique(cells, return_inverse=True)
    counts, *sums = (np.bincount(inverse, x) for x in (counts, *sums))
    return cells, counts, np.column_stack([*(x / counts for x in sums), cells >> 24])


def pack(rgb: np.ndarray, alpha: np.ndarray | int = 255) -> np.ndarray:
    """uint8 (..., 3) and alpha (...) as one uint32 (...) per colour."""
    packed = np.empty((*rgb.shape[:-1], 4), np.uint8)
    packed[..., 0], packed[..., 1:] = alpha, rgb
    return packed.view(">u4")[..., 0].astype(np.uint32)


def _find(pixels: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the packed `pixels` (N,) an entry, and whether the entry is of its colour."""
    packed = pack(palette[:, :3], palette[:, 3])
    order = np.argsort(packed, kind="stable")
    entries = order[np.searchsorted(packed[order], pixels).clip(max=len(order) - 1)]
    return entries, packed[entries] == pixels


def move_to_means(
    palette: np.ndarray, indices: np.ndarray, colours: np.ndarray, counts: np.ndarray | None = None
) -> np.ndarray:
    """Moves each entry in use to the mean of the colours assigned to it.

    Args:
      palette: uint8 (entries, 4).
      indices: (N,) the entry of each colour.
      colours: numbers (N, 3) or (N, 4), of which RGB counts.
      counts: (N,) pixels of each colour; one by default.
    """
    weights = np.ones(len(indices)) if counts is None else counts
    total = np.bincount(indices, weights, len(palette))
    used, moved = total > 0, palette.copy()
    for channel in range(3):
        sums = np.bincount(indices, weights * colours[:, channel], len(palette))
        moved[used, channel] = np.rint(sums[used] / total[used])
    return moved


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """For each of `colours` (N, 4) the nearest palette entry of the same alpha."""
    from scipy.spatial import KDTree  # few pictures need it, and it takes long to load

    nearest = np.zeros(len(colours), np.intp)
    for alpha in np.unique(colours[:, 3]):
        entries, chosen = np.flatnonzero(palette[:, 3] == alpha), colours[:, 3] == alpha
        nearest[chosen] = entries[KDTree(palette[entries, :3]).query(colours[chosen, :3])[1]]
    return nearest

"""Overlapping tiles of a large image, and the weights that blend them.

Along each axis tiles of one length start at multiples of an alignment, evenly spread. Where tiles
overlap, their blend weights change smoothly from one tile to the next. They are zero at edges
inside the image, where a tile lacks the context that the image has.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from manas_jax.space import SearchSpace


def multiple(space: SearchSpace, pool_side: int | None) -> int:
    """A picture's sides are mirrored up to multiples of this, in pixels, below and on the right."""
    return math.lcm(space.multiple, pool_side or 1)


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Tiles along one axis.

    Attributes:
      length: pixels of the axis.
      tile: pixels of a tile.
      starts: first pixel of each tile, ascending; the last tile ends with the axis.
      overlap: pixels that neighbouring tiles share at least.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    overlap: int

    @classmethod
    def make(
        cls, length: int, tile: int, overlap: int, alignment: int, step: int | None = None
    ) -> TileGrid:
        """As few tiles as the overlap allows; one if the axis is no longer than a tile.

        Args:
          length: pixels of the axis, a multiple of `alignment`.
          tile: maximum pixels of a tile, a multiple of `alignment`, more than twice the overlap.
          overlap: pixels, a multiple of `alignment`.
          alignment: every start is a multiple of it.
          step: a multiple of `alignment`. Tiles are shortened by multiples of it as far as the
            same number of tiles still overlaps enough; None leaves them at `tile`.

        Raises:
          ValueError: a length is not a multiple of `alignment`, or the overlap is too large.
        """
        lengths = length, tile, overlap, step or alignment
        if any(n % alignment for n in lengths) or tile <= 2 * overlap:
            raise ValueError(
                f"{length=}, {tile=}, {overlap=} and {step=} must be multiples of {alignment=}, "
                "and a tile longer than twice the overlap"
            )
        if length <= tile:
            return cls(length, length, (0,), overlap)
        gaps = -(-(length - tile) // (tile - overlap))
        if step:
            excess = (tile - overlap) * gaps - (length - tile)  # overlap beyond the minimum, in all
            tile -= excess // (gaps + 1) // step * step
        last = length - tile
        starts = (last * i // gaps // alignment * alignment for i in range(gaps))
        return cls(length, tile, (*starts, last), overlap)

    def blend_weights(self) -> np.ndarray:
        """(tiles, tile) float32: weight of each pixel of each tile; they sum to 1 at every pixel.

        At an edge inside the image a tile's weight is zero over a quarter of the overlap, then
        rises linearly over half of it.
        """
        centres = np.arange(self.tile) + 0.5
        ramp = np.clip((centres - self.overlap / 4) / (self.overlap / 2), 0, 1)
        weights = np.ones((len(self.starts), self.tile))
        weights[1:] *= ramp
        weights[:-1] *= ramp[::-1]
        total = np.zeros(self.length)
        for start, weight in zip(self.starts, weights, strict=True):
            total[start : start + self.tile] += weight
        for start, weight in zip(self.starts, weights, strict=True):
            weight /= total[start : start + self.tile]
        return weights.astype(np.float32)

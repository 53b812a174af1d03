"""Where the tiles of a large picture lie, and what each counts where they overlap.

Along each axis tiles of one length start at multiples of an alignment, evenly spread. In an
overlap the shares run smoothly from one tile to the next, and are zero at the rims, where a tile
lacks the surroundings that the picture has.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """Tiles along one axis.

    Attributes:
      length: pixels of the axis.
      tile: pixels of a tile.
      starts: first pixel of each tile, rising; the last tile ends with the axis.
      overlap: what neighbouring tiles share at least.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    overlap: int

    @classmethod
    def cut(
        cls, length: int, tile: int, overlap: int, alignment: int, step: int | None = None
    ) -> Axis:
        """As few tiles as the overlap allows, or one if the axis is no longer than a tile.

        Args:
          length: pixels of the axis, a multiple of the alignment.
          tile: most pixels of a tile, a multiple of the alignment, more than twice the overlap.
          overlap: pixels, a multiple of the alignment.
          alignment: what starts are a multiple of.
          step: a multiple of the alignment. Where so many tiles can be shorter and still overlap,
            they are, by multiples of this; as long as was asked for by default.

        Raises:
          ValueError: a length is none.
        """
        lengths = length, tile, overlap, step or alignment
        if any(n % alignment for n in lengths) or tile <= 2 * overlap:
            raise ValueError(f"{length=}, {tile=}, {overlap=} do not suit {alignment=}")
        if length <= tile:
            return cls(length, length, (0,), overlap)
        gaps = -(-(length - tile) // (tile - overlap))
        spare = (tile - overlap) * gaps - (length - tile)  # in all, before the last one is moved
        if step:
            tile -= spare // (gaps + 1) // step * step
        slack = length - tile
        starts = (slack * i // gaps // alignment * alignment for i in range(gaps))
        return cls(length, tile, (*starts, slack), overlap)

    def shares(self) -> np.ndarray:
        """(tiles, tile) float32: what each pixel of each tile counts; 1 in sum at every pixel.

        A tile counts nothing within a quarter of the overlap from its rims, then rises over half
        of the overlap.
        """
        inside = np.arange(self.tile) + 0.5
        rise = np.clip((inside - self.overlap / 4) / (self.overlap / 2), 0, 1)
        shares = np.ones((len(self.starts), self.tile))
        shares[1:] *= rise
        shares[:-1] *= rise[::-1]
        total = np.zeros(self.length)
        for start, share in zip(self.starts, shares, strict=True):
            total[start : start + self.tile] += share
        for start, share in zip(self.starts, shares, strict=True):
            share /= total[start : start + self.tile]
        return shares.astype(np.float32)

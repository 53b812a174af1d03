"""A scene: one clean picture and its rainy versions. The pictures may be files, pixels or lazy."""

import dataclasses
import functools
import hashlib
from collections.abc import Hashable
from typing import Protocol

import numpy as np

from manas_jax.data import images
from manas_jax.errors import UserError


class Lazy(Protocol):
    """A picture that is decoded when asked for; `str()` of it says what it is."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), without decoding."""

    @property
    def identity(self) -> Hashable:
        """Equal for equal pictures, without decoding."""

    def read(self) -> np.ndarray:
        """The pixels, uint8 (height, width, 3)."""


# The path of a file, pixels (uint8, height, width, 3), or something that knows how to get them.
Picture = str | np.ndarray | Lazy


@dataclasses.dataclass(frozen=True)
class Half:
    """One half of a file that holds two pictures side by side.

    Attributes:
      path: the file.
      side: 'left' or 'right'.
    """

    path: str
    side: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the half.

        Raises:
          UserError: the file has an odd width or is unreadable.
        """
        height, width = images.size(self.path)
        if width % 2:
            raise UserError(f"{self.path}: {width} pixels wide, which two halves cannot share")
        return height, width // 2

    @property
    def identity(self) -> Hashable:
        """The halves on one side of byte-identical files are identical."""
        return (self.side, _file_digest(self.path))

    def read(self) -> np.ndarray:
        """The pixels, uint8 (height, width, 3).

        Raises:
          UserError: the file has an odd width or cannot be decoded.
        """
        pixels = images.read(self.path)
        _, width = self.size
        return pixels[:, :width] if self.side == "left" else pixels[:, width:]

    def __str__(self) -> str:
        return f"{self.path} ({self.side} half)"


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """One background, seen clean and through rain.

    Attributes:
      name: unique among the scenes of a split.
      clean: the picture without rain; None for a photograph of rain, which has no such.
      rainy: its rainy versions, all of the clean picture's size; may be empty (synthetic rain).
      photograph: the photograph it was cut from, for splitting; a scene that is a whole photograph
        of its own leaves it empty.
    """

    name: str
    clean: Picture | None
    rainy: tuple[Picture, ...] = ()
    photograph: str = ""

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), from the header of the clean picture (of a rainy one if none)."""
        return size(self.rainy[0] if self.clean is None else self.clean)


def read(picture: Picture) -> np.ndarray:
    """The pixels of a picture, uint8 (height, width, 3)."""
    if isinstance(picture, np.ndarray):
        return picture
    return images.read(picture) if isinstance(picture, str) else picture.read()


def size(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture, without decoding."""
    if isinstance(picture, np.ndarray):
        return picture.shape[:2]
    return images.size(picture) if isinstance(picture, str) else picture.size


def identity(picture: Picture) -> Hashable:
    """Equal for equal pictures: pixels of equal values, files of equal bytes."""
    if isinstance(picture, np.ndarray):
        return picture.shape, hashlib.sha256(np.ascontiguousarray(picture)).digest()
    return _file_digest(picture) if isinstance(picture, str) else picture.identity


def _file_digest(path: str) -> Hashable:
    with open(path, "rb") as file:
        return ("file", hashlib.file_digest(file, "sha256").digest())

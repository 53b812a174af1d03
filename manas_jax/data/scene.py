"""A scene: one background, as a clean image and its rainy versions.

Its images may be files, arrays or anything that decodes on demand.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Hashable
from typing import Protocol

import numpy as np

from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.files import sha256


class LazyImage(Protocol):
    """An image that is decoded on demand; `str()` of it describes it in messages."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), without decoding."""

    @property
    def identity(self) -> Hashable:
        """Equal for equal images, without decoding."""

    def read(self) -> np.ndarray:
        """Decodes the pixels, uint8 (height, width, 3)."""


# The path of a file, pixels (uint8, height, width, 3), or an image that decodes on demand.
ImageLike = str | np.ndarray | LazyImage


@dataclasses.dataclass(frozen=True)
class Half:
    """One half of a file that holds two images side by side.

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
            raise UserError(f"{self.path}: {width} pixels wide, an odd width has no two halves")
        return height, width // 2

    @property
    def identity(self) -> Hashable:
        """Equal for halves on the same side of byte-identical files."""
        return (self.side, _file_digest(self.path))

    def read(self) -> np.ndarray:
        """Decodes the pixels, uint8 (height, width, 3).

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
    """One background, without and with rain.

    Attributes:
      name: unique among the scenes of a split.
      clean: the image without rain; None for a photograph of real rain, which has no such image.
      rainy: the rainy versions, all of the clean image's size; empty if rain is to be synthesised.
      photograph: the photograph that the scene was cropped from, so that splits keep its scenes
        together; empty if the scene is a whole photograph.
    """

    name: str
    clean: ImageLike | None
    rainy: tuple[ImageLike, ...] = ()
    photograph: str = ""

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), from the header of the clean image, or of a rainy one without it."""
        return size(self.rainy[0] if self.clean is None else self.clean)


def read(image: ImageLike) -> np.ndarray:
    """Decodes the pixels of an image, uint8 (height, width, 3).

    Raises:
      UserError: the file is missing or damaged.
    """
    if isinstance(image, np.ndarray):
        return image
    return images.read(image) if isinstance(image, str) else image.read()


def size(image: ImageLike) -> tuple[int, int]:
    """Returns (height, width) without decoding.

    Raises:
      UserError: the file is missing or its header damaged.
    """
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    return images.size(image) if isinstance(image, str) else image.size


def identity(image: ImageLike) -> Hashable:
    """Returns a key that is equal for equal arrays, byte-identical files, equal lazy images."""
    if isinstance(image, np.ndarray):
        return image.shape, hashlib.sha256(np.ascontiguousarray(image)).digest()
    return _file_digest(image) if isinstance(image, str) else image.identity


def length(image: ImageLike) -> Hashable:
    """Returns a cheaper key than `identity`: the bytes of the file or array, if it has any.

    Images of different keys are different.

    Raises:
      UserError: the file is missing or cannot be read.
    """
    if isinstance(image, np.ndarray):
        return image.nbytes
    if not isinstance(image, (str, Half)):
        return image.identity
    path = image if isinstance(image, str) else image.path
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _file_digest(path: str) -> Hashable:
    try:
        return ("file", sha256(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None

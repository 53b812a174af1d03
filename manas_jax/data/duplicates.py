"""Which clean pictures show one background: exactly, or to the eye.

The perceptual hash is a difference hash of 16 x 16 bits: does the picture, reduced to 17 x 16 gray
pixels, get brighter from each pixel to its right neighbour. Two lines of Pillow and NumPy, where
the ImageHash package would bring PyWavelets along for hashes that are not used here. It survives
re-encoding, scaling and a change of brightness, not mirroring or cropping.

On the 300 clean pictures of Rain100L, copies are 0 bits apart and any others at least 56 of 256.
"""

import collections
import dataclasses
import hashlib
import logging
import os
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image

from manas_jax.data.scene import Half, Picture, Scene, identity

_HEIGHT, _WIDTH = 16, 17  # of the thumbnail
_BITS_APART = 20  # of 256: a little less than half the least distance of strangers, see above
# Pictures without structure (sky, black) have arbitrary hashes; their grays must agree, too.
_GRAYS_APART = 16.0  # root mean square, of 255
_CHUNK = 64  # rows of the distance table at a time: bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is kept of a picture to recognise it.

    Attributes:
      digest: SHA-256 of shape and pixels, hexadecimal.
      thumbnail: uint8 (16, 17), gray.
    """

    digest: str
    thumbnail: np.ndarray


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """The fingerprint of a picture, uint8 (height, width, 3)."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels))
    small = Image.fromarray(pixels).convert("L").resize((_WIDTH, _HEIGHT), Image.Resampling.BOX)
    return Fingerprint(digest.hexdigest(), np.asarray(small))


def alike(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None = None
) -> list[tuple[int, int, int]]:
    """All (i, j, bits apart) with `first[i]` and `second[j]` alike, or i < j within `first`.

    Compares every pair: 10,000 against 10,000 take about a second; memory grows with the longer
    of the two, not with their product.
    """
    others = first if second is None else second
    if not first or not others:
        return []
    rows, columns = _words(first), _words(others)
    found = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        apart = np.zeros((len(chunk), len(columns)), np.uint16)
        for word in range(rows.shape[1]):
            apart += np.bitwise_count(chunk[:, None, word] ^ columns[None, :, word])
        for i, j in zip(*np.nonzero(apart <= _BITS_APART), strict=True):
            left, right = start + int(i), int(j)
            if (second is not None or left < right) and _grays_agree(first[left], others[right]):
                found.append((left, right, int(apart[i, j])))
    return found


def merge(
    scenes: Iterable[Scene], prints: Iterable[Fingerprint], *, near_identical: bool = False
) -> tuple[tuple[Scene, ...], tuple[Fingerprint, ...]]:
    """Makes one scene, with all their rainy versions, of scenes that show one background.

    These are scenes whose clean pictures are equal in every pixel and, if `near_identical`, scenes
    of one `Scene.photograph` whose clean pictures look alike. Scenes without a clean picture stay.

    Returns:
      The scenes, in the order of first appearance, and the fingerprints of their clean pictures.
    """
    merged: list[Scene] = []
    kept: list[Fingerprint] = []
    known: dict[str, int] = {}
    photographs: dict[str, list[int]] = {}
    for scene, mark in zip(scenes, prints, strict=True):
        place = None if scene.clean is None else known.get(mark.digest)
        if place is None and near_identical and scene.photograph:
            candidates = photographs.get(scene.photograph, [])
            place = next((i for i in candidates if alike([kept[i]], [mark])), None)
        if place is None:
            place = len(merged)
            merged.append(scene)
            kept.append(mark)
            photographs.setdefault(scene.photograph, []).append(place)
        else:
            first = merged[place]
            merged[place] = dataclasses.replace(first, rainy=first.rainy + scene.rainy)
        known.setdefault(mark.digest, place)
    return tuple(merged), tuple(kept)


def _words(prints: Sequence[Fingerprint]) -> np.ndarray:
    """The hashes as uint64 (number, 4)."""
    thumbnails = np.stack([mark.thumbnail for mark in prints])
    bits = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    return np.packbits(bits.reshape(len(prints), -1), axis=1).view(np.uint64)


def _grays_agree(first: Fingerprint, second: Fingerprint) -> bool:
    difference = first.thumbnail.astype(float) - second.thumbnail
    return float(np.sqrt(np.mean(difference**2))) <= _GRAYS_APART


def merge_identical(scenes: Iterable[Scene]) -> tuple[Scene, ...]:
    """Makes scenes with byte-identical clean pictures one scene with all their rainy versions."""
    scenes = tuple(scenes)
    merged: dict[object, Scene] = {}
    for scene, key in zip(scenes, _identities([s.clean for s in scenes]), strict=True):
        known = merged.get(key)
        if known is not None:
            scene = dataclasses.replace(known, rainy=known.rainy + scene.rainy)
        merged[key] = scene
    return tuple(merged.values())


def exclude(training: tuple[Scene, ...], test: tuple[Scene, ...]) -> tuple[Scene, ...]:
    """Training scenes less those whose clean picture is byte for byte a test scene's."""
    identities = _identities([scene.clean for scene in (*training, *test)])
    tested = set(identities[len(training) :])
    kept = tuple(
        scene
        for scene, i in zip(training, identities[: len(training)], strict=True)
        if i not in tested
    )
    if len(kept) < len(training):
        logging.warning(
            "%d training scenes left out: their clean pictures are also test pictures",
            len(training) - len(kept),
        )
    return kept


def _identities(pictures: Sequence[Picture]) -> list:
    """Equal for byte-identical pictures only. Files are read only where two are equally long."""
    lengths = [_length(picture) for picture in pictures]
    shared = collections.Counter(lengths)
    return [
        identity(picture) if shared[length] > 1 else length
        for picture, length in zip(pictures, lengths, strict=True)
    ]


def _length(picture: Picture) -> Hashable:
    """Unequal only for pictures that are not identical; cheaper than `identity`."""
    if isinstance(picture, np.ndarray):
        return picture.nbytes
    if isinstance(picture, str):
        return os.path.getsize(picture)
    return os.path.getsize(picture.path) if isinstance(picture, Half) else picture.identity

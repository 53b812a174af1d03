"""Which clean images show the same background: by bytes, by pixels, or by perceptual hash.

The perceptual hash is a difference hash of 16 x 16 bits: whether an image, reduced to 17 x 16 grey
pixels, gets brighter from each pixel to the next on its right. It survives re-encoding, scaling
and changes of brightness, not mirroring or cropping. It takes two lines of Pillow and NumPy; the
ImageHash package would bring PyWavelets for hashes that are not used here.

Among the 300 clean images of Rain100L, duplicates have a distance of 0 bits and any others of at
least 56, of 256.
"""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image

from manas_jax.data.scene import ImageLike, Scene, identity, length

_HEIGHT, _WIDTH = 16, 17  # of the thumbnail
_MAX_DISTANCE = 20  # bits of 256: less than half the least distance of other images, see above
# Hashes of images without structure (sky, black) are arbitrary; their greys must agree as well.
_MAX_GRAY_DIFFERENCE = 16.0  # root mean square, of 255
_CHUNK = 64  # rows of the distance table at a time: bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
    """What identifies an image.

    Attributes:
      digest: SHA-256 of shape and pixels, hexadecimal.
      thumbnail: uint8 (16, 17), grey; its difference hash is the perceptual one.
    """

    digest: str
    thumbnail: np.ndarray


def fingerprint(pixels: np.ndarray) -> Fingerprint:
    """Computes the fingerprint of an image, uint8 (height, width, 3)."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels))
    small = Image.fromarray(pixels).convert("L").resize((_WIDTH, _HEIGHT), Image.Resampling.BOX)
    return Fingerprint(digest.hexdigest(), np.asarray(small))


def find_similar(
    first: Sequence[Fingerprint], second: Sequence[Fingerprint] | None = None
) -> list[tuple[int, int, int]]:
    """Finds similar images between two sets, or within the first.

    Compares all pairs: 10,000 by 10,000 take about a second. Memory grows with the number of
    images, not with that of pairs.

    Returns:
      (i, j, distance in bits) for all similar `first[i]` and `second[j]`; without `second`, for
      all similar `first[i]` and `first[j]` with i < j.
    """
    others = first if second is None else second
    if not first or not others:
        return []
    rows, columns = _hashes(first), _hashes(others)
    found = []
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        distance = np.zeros((len(chunk), len(columns)), np.uint16)
        for word in range(rows.shape[1]):
            distance += np.bitwise_count(chunk[:, None, word] ^ columns[None, :, word])
        for row, j in zip(*np.nonzero(distance <= _MAX_DISTANCE), strict=True):
            i = start + int(row)
            if (second is not None or i < j) and _grays_agree(first[i], others[j]):
                found.append((i, int(j), int(distance[row, j])))
    return found


def merge(
    scenes: Iterable[Scene], fingerprints: Iterable[Fingerprint], *, near_identical: bool = False
) -> tuple[tuple[Scene, ...], tuple[Fingerprint, ...]]:
    """Merges scenes of the same background into one with all their rainy versions.

    These are scenes whose clean images are equal in every pixel and, if `near_identical`, scenes
    of one `Scene.photograph` whose clean images are similar. Scenes without a clean image are not
    merged.

    Returns:
      The scenes, in the order of first appearance, and the fingerprints of their clean images.
    """
    merged: list[Scene] = []
    of_merged: list[Fingerprint] = []
    by_digest: dict[str, int] = {}
    by_photograph: dict[str, list[int]] = {}
    for scene, own in zip(scenes, fingerprints, strict=True):
        index = None if scene.clean is None else by_digest.get(own.digest)
        if index is None and near_identical and scene.photograph:
            candidates = by_photograph.get(scene.photograph, [])
            index = next((i for i in candidates if find_similar([of_merged[i]], [own])), None)
        if index is None:
            index = len(merged)
            merged.append(scene)
            of_merged.append(own)
            by_photograph.setdefault(scene.photograph, []).append(index)
        else:
            merged[index] = _join(merged[index], scene)
        by_digest.setdefault(own.digest, index)
    return tuple(merged), tuple(of_merged)


def merge_identical(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """Merges scenes with byte-identical clean images; see `merge`.

    Decodes nothing, and reads only files of equal length.
    """
    merged: dict[Hashable, Scene] = {}
    for scene, key in zip(scenes, _identities([s.clean for s in scenes]), strict=True):
        merged[key] = _join(merged[key], scene) if key in merged else scene
    return tuple(merged.values())


def exclude(training: Sequence[Scene], test: Sequence[Scene]) -> tuple[Scene, ...]:
    """Removes training scenes whose clean image is byte-identical to that of a test scene."""
    identities = _identities([scene.clean for scene in (*training, *test)])
    tested = set(identities[len(training) :])
    others = tuple(s for s, key in zip(training, identities, strict=False) if key not in tested)
    if len(others) < len(training):
        logging.warning(
            "%d training scenes left out: their clean images are also test images",
            len(training) - len(others),
        )
    return others


def _join(scene: Scene, other: Scene) -> Scene:
    return dataclasses.replace(scene, rainy=scene.rainy + other.rainy)


def _hashes(fingerprints: Sequence[Fingerprint]) -> np.ndarray:
    """uint64 (number, 4)."""
    thumbnails = np.stack([each.thumbnail for each in fingerprints])
    bits = thumbnails[:, :, 1:] > thumbnails[:, :, :-1]
    return np.packbits(bits.reshape(len(fingerprints), -1), axis=1).view(np.uint64)


def _grays_agree(first: Fingerprint, second: Fingerprint) -> bool:
    difference = first.thumbnail.astype(float) - second.thumbnail
    return float(np.sqrt(np.mean(difference**2))) <= _MAX_GRAY_DIFFERENCE


def _identities(images: Sequence[ImageLike]) -> list[Hashable]:
    """Keys that are equal for identical images only; reads only files of equal length."""
    lengths = [length(image) for image in images]
    count = collections.Counter(lengths)
    return [
        identity(image) if count[own] > 1 else own
        for image, own in zip(images, lengths, strict=True)
    ]

"""Synthetic rain, and rain transferred from one image to another.

Streaks are random drops, blurred along the direction of their fall, in several depth layers;
streaks of farther layers are finer, fainter and more numerous (Garg and Nayar: Vision and Rain.
IJCV 2007). The levels light, medium and heavy are named after Zhang and Patel: Density-aware Single
Image De-raining using a Multi-stream Dense Network (DID-MDN). CVPR 2018. There are two appearances:

- additive, as in the datasets it stands in for (Rain100L, Rain14000, DID-MDN): rainy = clip(clean +
  streaks), with one direction, length and width in a layer;
- photographic, see `photographic`: nearer to a camera's pictures of rain.

The optional veil is the atmospheric light of Li, Cheong and Tan: Heavy Rain Image Restoration. CVPR
2019.

All operations are TensorFlow's with stateless seeds: the same seed gives the same rain, up to
rounding eagerly and in tf.data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft

from manas_jax import metrics
from manas_jax.data.lazy_tf import tf
from manas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RainRanges:
    """Ranges (least, greatest) of uniformly drawn parameters. Those of streaks: nearest layer.

    Attributes:
      direction: of the fall, degrees from the vertical, positive towards the right.
      length: of a streak, pixels.
      width: of a streak, pixels (full width at half maximum).
      density: streaks per 1000 pixels of the image.
      brightness: of the brightest streaks; 1 turns black to white.
    """

    direction: tuple[float, float]
    length: tuple[float, float]
    width: tuple[float, float]
    density: tuple[float, float]
    brightness: tuple[float, float]


LEVELS = {
    "light": RainRanges((-30, 30), (15, 40), (1.3, 2.0), (0.2, 0.6), (0.25, 0.5)),
    "medium": RainRanges((-35, 35), (20, 50), (1.4, 2.4), (0.4, 0.9), (0.35, 0.7)),
    "heavy": RainRanges((-40, 40), (25, 60), (1.5, 2.8), (0.8, 1.6), (0.4, 0.75)),
}

_LAYERS = 3
_LAYER_SCALE = 0.7  # of sizes and brightness from layer to layer; density by its inverse square
_DIRECTION_SPREAD = 2.5  # degrees, standard deviation over layers: wind varies with depth
_MARGIN = 64  # pixels added to the image, so that streaks cross its border
_FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a Gaussian, per sigma

_MAX_LENGTH = 80.0  # pixels; with the fade at its ends a streak reaches as far as the margin
_KINDS = 3  # of streaks in a layer of photographic rain
_KIND_SPREAD = 4.0  # degrees, standard deviation over them
_DENSER = 3.0  # than additive rain, as its streaks are finer and less bright
_NEAR = RainRanges((-40, 40), (12, 50), (5.0, 14.0), (0.0, 0.08), (0.08, 0.3))
"""Drops near the camera, out of focus: short, wide, faint and few."""
_NOISE = 0.012  # greatest standard deviation
_JPEG_QUALITY = (75, 100)

MIXED = "mixed"
APPEARANCES = ("additive", "photographic")


def check_level(level: str, key: str) -> str:
    """Returns the level.

    Raises:
      UserError: there is no such level; names the key of the configuration.
    """
    return _check(level, (*LEVELS, MIXED), key)


def check_appearance(appearance: str, key: str) -> str:
    """Returns the appearance.

    Raises:
      UserError: there is no such appearance; names the key of the configuration.
    """
    return _check(appearance, (*APPEARANCES, MIXED), key)


def streaks(seed: tf.Tensor, height: int, width: int, level: str = MIXED) -> tf.Tensor:
    """Draws rain.

    Args:
      seed: integers of shape (2,).
      height: of the image in pixels, static.
      width: of the image in pixels, static.
      level: a key of `LEVELS`, or 'mixed' for one of them drawn by the seed.

    Returns:
      The light that streaks add to the image, float32 (height, width), at least 0.
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    nearest = _drawn(_ranges(level, seeds[0]), seeds[1])
    scale = tf.constant([_LAYER_SCALE**layer for layer in range(_LAYERS)])
    spread = _DIRECTION_SPREAD * tf.random.stateless_normal((_LAYERS,), seeds[2])
    layers = _Streaks(
        direction=nearest.direction + spread,
        length=nearest.length * scale,
        width=tf.maximum(nearest.width * scale, 1.3),
        density=nearest.density / scale**2,
        brightness=nearest.brightness * scale,
    )
    return _fall(layers, height, width, seeds[3])


def photographic(clean: tf.Tensor, seed: tf.Tensor, level: str = MIXED) -> tf.Tensor:
    """Rain as a camera sees it, in front of a clean image.

    - A drop refracts light from a wide field of view and covers a pixel for a part of the exposure,
      so a streak is a mixture, (1 - a) clean + a light: a streak brightens a dark background
      strongly and a bright one slightly, and can darken the sky (Garg and Nayar, section 3). The
      light is mostly that of the sky: brighter than the mean of the image, with less colour, and
      varying slowly over the image.
    - Each layer has three kinds of streaks, each with its own direction, length and width. Besides,
      there may be some drops near the camera, out of focus.
    - Noise and JPEG compression follow, both mild.

    Args:
      clean: float32 (height, width, 3) in [0, 1], of static shape.
      seed: integers of shape (2,).
      level: see `streaks`.

    Returns:
      float32 (height, width, 3) in [0, 1].
    """
    height, width = clean.shape[:2]
    seeds = tf.unstack(tf.random.split(seed, 8))
    nearest = _drawn(_ranges(level, seeds[0]), seeds[1])
    count = _LAYERS * _KINDS
    scale = tf.constant([_LAYER_SCALE ** (i // _KINDS) for i in range(count)])
    tilt, stretch, swell = tf.unstack(tf.random.stateless_normal((3, count), seeds[2]))
    far = _Streaks(
        direction=nearest.direction + _KIND_SPREAD * tilt,
        length=tf.minimum(nearest.length * scale * tf.exp(0.4 * stretch), _MAX_LENGTH),
        width=tf.maximum(0.8 * nearest.width * scale * tf.exp(0.25 * swell), 1.1),
        density=_DENSER * nearest.density / scale**2 / _KINDS,
        brightness=nearest.brightness * scale,
    )
    near = _drawn(tf.constant(dataclasses.astuple(_NEAR)), seeds[3])
    near = near._replace(direction=nearest.direction)
    layers = _Streaks(*(tf.concat([a, [b]], 0) for a, b in zip(far, near, strict=True)))
    opacity = tf.minimum(_fall(layers, height, width, seeds[4]), 0.95)[..., None]

    gain, colour, noise, quality = tf.unstack(tf.random.stateless_uniform((4,), seeds[5]))
    mean = tf.reduce_mean(clean, axis=(0, 1))
    light = (1.2 + 1.6 * gain) * (0.5 * colour * mean + (1 - 0.5 * colour) * tf.reduce_mean(mean))
    coarse = tf.random.stateless_uniform((1, 3, 3, 1), seeds[6], 0.75, 1.25)
    smooth = tf.image.resize(coarse, (height, width), "bicubic")[0]
    rainy = clean + opacity * (tf.clip_by_value(light * smooth, 0.35, 1.0) - clean)

    rainy += _NOISE * noise * tf.random.stateless_normal(clean.shape, seeds[7])
    low, high = _JPEG_QUALITY
    quality = tf.cast(low + quality * (high - low), tf.int32)
    return tf.image.adjust_jpeg_quality(tf.clip_by_value(rainy, 0.0, 1.0), quality)


def synthesize(
    clean: tf.Tensor,
    seed: tf.Tensor,
    level: str = MIXED,
    veil: float = 0.0,
    appearance: str = "additive",
) -> tf.Tensor:
    """Adds rain to a clean image, and then a veil: (1 - v) rainy + v airlight.

    Args:
      clean: float32 (height, width, 3) in [0, 1], of static shape.
      seed: integers of shape (2,).
      level: see `streaks`.
      veil: greatest share v of atmospheric light, 0 to 1; v is drawn from [veil / 2, veil], the
        airlight (a grey) from [0.7, 0.95]. With 0 there is no veil.
      appearance: one of `APPEARANCES`, or 'mixed' for one of them drawn by the seed.

    Returns:
      float32 (height, width, 3) in [0, 1].
    """
    height, width = clean.shape[:2]
    seeds = tf.unstack(tf.random.split(seed, 3))

    def additive():
        return tf.clip_by_value(
            clean + streaks(seeds[0], height, width, level)[..., None], 0.0, 1.0
        )

    appearances = {
        "additive": additive,
        "photographic": lambda: photographic(clean, seeds[0], level),
    }
    if appearance == MIXED:
        chosen = tf.random.stateless_uniform((), seeds[0], maxval=len(APPEARANCES), dtype=tf.int32)
        rainy = tf.switch_case(chosen, [appearances[name] for name in APPEARANCES])
    else:
        rainy = appearances[appearance]()
    if not veil:
        return rainy
    share = veil * tf.random.stateless_uniform((), seeds[1], 0.5, 1.0)
    airlight = tf.random.stateless_uniform((), seeds[2], 0.7, 0.95)
    return (1 - share) * rainy + share * airlight


def synthesize_8_bits(
    clean: np.ndarray, seed: Sequence[int], level: str = MIXED, veil: float = 0.0
) -> np.ndarray:
    """`synthesize` of an image of 8 bits: uint8 (height, width, 3), to the same."""
    floats = tf.constant(clean, tf.float32) / 255
    return metrics.to_uint8(synthesize(floats, tf.constant(seed), level, veil).numpy())


def transfer(clean: tf.Tensor, other_rainy: tf.Tensor, other_clean: tf.Tensor) -> tf.Tensor:
    """Adds the rain of another pair to a clean image: clip(clean + (other_rainy - other_clean)).

    Arguments and result are float32 (height, width, 3) in [0, 1].
    """
    return tf.clip_by_value(clean + (other_rainy - other_clean), 0.0, 1.0)


def _check(name: str, known: Sequence[str], key: str) -> str:
    if name not in known:
        raise UserError(f"{key}: {name!r} is none of {', '.join(known)}")
    return name


class _Streaks(NamedTuple):
    """As in `RainRanges`, but drops per pixel: scalars, or vectors for several kinds of streaks."""

    direction: tf.Tensor
    length: tf.Tensor
    width: tf.Tensor
    density: tf.Tensor
    brightness: tf.Tensor


def _ranges(level: str, seed: tf.Tensor) -> tf.Tensor:
    """(parameters, 2); the seed draws one of the levels for 'mixed'."""
    table = tf.constant(
        [dataclasses.astuple(ranges) for ranges in LEVELS.values()], tf.float32
    )  # (levels, parameters, 2)
    if level == MIXED:
        return table[tf.random.stateless_uniform((), seed, maxval=len(LEVELS), dtype=tf.int32)]
    return table[list(LEVELS).index(level)]


def _drawn(ranges: tf.Tensor, seed: tf.Tensor) -> _Streaks:
    low, high = tf.unstack(ranges, axis=-1)
    drawn = low + (high - low) * tf.random.stateless_uniform(low.shape, seed)
    direction, length, width, density, brightness = tf.unstack(drawn)
    return _Streaks(direction, length, width, density / 1000, brightness)


def _fall(layers: _Streaks, height: int, width: int, seed: tf.Tensor) -> tf.Tensor:
    """The sum of all layers, (height, width)."""
    canvas = [scipy.fft.next_fast_len(side + _MARGIN, real=True) for side in (height, width)]
    # A pixel has a drop if the uniform draw is below the density; the ratio of the two sets the
    # strength of the drop, 0.3 to 1.
    chance = layers.density[:, None, None]
    draw = tf.random.stateless_uniform((chance.shape[0], *canvas), seed)
    drops = tf.where(draw < chance, 0.3 + 0.7 * draw / chance, 0.0)
    drawn = _blur(drops, layers.direction, layers.length, layers.width)
    return tf.reduce_sum(drawn * layers.brightness[:, None, None], axis=0)[:height, :width]


def _blur(drops: tf.Tensor, direction, length, width) -> tf.Tensor:
    """Blurs each drop to a streak whose peak is the strength of the drop.

    A streak is a bar along `direction` with soft ends and a Gaussian profile across. Its Fourier
    transform has a closed form, so the cost is two transforms for any number and length of streaks.

    Args:
      drops: (layers, height, width), height and width static.
      direction: (layers,) degrees from the vertical.
      length: (layers,) pixels.
      width: (layers,) pixels, full width at half maximum.
    """
    height, columns = drops.shape[1:]
    vertical = tf.constant(scipy.fft.fftfreq(height), tf.float32)[None, :, None]
    horizontal = tf.constant(scipy.fft.rfftfreq(columns), tf.float32)[None, None, :]
    angle = (direction * (math.pi / 180))[:, None, None]
    along = horizontal * tf.sin(angle) + vertical * tf.cos(angle)
    across = horizontal * tf.cos(angle) - vertical * tf.sin(angle)
    length, sigma = length[:, None, None], width[:, None, None] / _FWHM
    soft = tf.maximum(0.1 * length, 0.7)  # pixels, sigma of the fade at both ends
    bar = tf.math.divide_no_nan(
        tf.sin(math.pi * length * along), math.pi * length * along
    ) + tf.cast(along == 0, tf.float32)
    response = bar * tf.exp(-2 * math.pi**2 * ((soft * along) ** 2 + (sigma * across) ** 2))
    peak = 1 / (length * sigma * math.sqrt(2 * math.pi))  # of a streak of unit mass
    spectrum = tf.signal.rfft2d(drops) * tf.cast(response / peak, tf.complex64)
    blurred = tf.signal.irfft2d(spectrum, fft_length=drops.shape[1:])
    return tf.maximum(blurred, 0.0)  # the transform rings slightly below zero

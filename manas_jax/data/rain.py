"""Synthetic rain, and rain transferred from one image to another.

Rain is additive, as in the datasets it stands in for (Rain100L, Rain14000, DID-MDN): rainy =
clip(clean + streaks). Streaks are random drops, blurred along the direction of their fall, in
several depth layers; streaks of farther layers are finer, fainter and more numerous (Garg and
Nayar: Vision and Rain. IJCV 2007). The levels light, medium and heavy are named after Zhang and
Patel: Density-aware Single Image De-raining using a Multi-stream Dense Network (DID-MDN). CVPR
2018. The optional veil is the atmospheric light of Li, Cheong and Tan: Heavy Rain Image
Restoration. CVPR 2019.

All operations are TensorFlow's with stateless seeds: the same seed gives the same rain, eagerly
and in tf.data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

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

MIXED = "mixed"


def check_level(level: str, key: str) -> str:
    """Returns the level.

    Raises:
      UserError: there is no such level; names the key of the configuration.
    """
    if level not in (*LEVELS, MIXED):
        raise UserError(f"{key}: {level!r} is none of {', '.join((*LEVELS, MIXED))}")
    return level


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
    table = tf.constant(
        [dataclasses.astuple(ranges) for ranges in LEVELS.values()], tf.float32
    )  # (levels, parameters, 2)
    if level == MIXED:
        index = tf.random.stateless_uniform((), seeds[0], maxval=len(LEVELS), dtype=tf.int32)
    else:
        index = list(LEVELS).index(level)
    low, high = tf.unstack(table[index], axis=-1)
    drawn = low + (high - low) * tf.random.stateless_uniform(low.shape, seeds[1])
    direction, length, streak_width, density, brightness = tf.unstack(drawn)

    scale = tf.constant([_LAYER_SCALE**layer for layer in range(_LAYERS)])
    spread = _DIRECTION_SPREAD * tf.random.stateless_normal((_LAYERS,), seeds[2])
    canvas = [scipy.fft.next_fast_len(side + _MARGIN, real=True) for side in (height, width)]
    # A pixel has a drop if the uniform draw is below the density; the ratio of the two sets the
    # strength of the drop, 0.3 to 1.
    chance = (density / 1000 / scale**2)[:, None, None]
    draw = tf.random.stateless_uniform((_LAYERS, *canvas), seeds[3])
    drops = tf.where(draw < chance, 0.3 + 0.7 * draw / chance, 0.0)
    layers = _blur(drops, direction + spread, length * scale, tf.maximum(streak_width * scale, 1.3))
    layers = layers * (brightness * scale)[:, None, None]
    return tf.reduce_sum(layers, axis=0)[:height, :width]


def synthesize(
    clean: tf.Tensor, seed: tf.Tensor, level: str = MIXED, veil: float = 0.0
) -> tf.Tensor:
    """Adds rain to a clean image: (1 - v) clip(clean + streaks) + v airlight.

    Args:
      clean: float32 (height, width, 3) in [0, 1], of static shape.
      seed: integers of shape (2,).
      level: see `streaks`.
      veil: greatest share v of atmospheric light, 0 to 1; v is drawn from [veil / 2, veil], the
        airlight (a gray) from [0.7, 0.95]. With 0 there is no veil.

    Returns:
      float32 (height, width, 3) in [0, 1].
    """
    height, width = clean.shape[:2]
    seeds = tf.unstack(tf.random.split(seed, 3))
    rainy = tf.clip_by_value(clean + streaks(seeds[0], height, width, level)[..., None], 0.0, 1.0)
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

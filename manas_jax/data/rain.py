"""Synthetic rain on clean photographs, and rain carried from one picture to another.

Rain is additive, as in the data sets it stands in for (Rain100L, Rain14000, DID-MDN): rainy =
clip(clean + streaks). Streaks are drops, strewn at random and blurred along the direction of their
fall, in several depth layers: farther ones are finer, fainter and more of them (Garg and Nayar:
Vision and Rain. IJCV 2007). The levels light, medium and heavy are named after Zhang and Patel:
Density-aware Single Image De-raining using a Multi-stream Dense Network (DID-MDN). CVPR 2018. The
optional veil is the atmospheric light of Li, Cheong and Tan: Heavy Rain Image Restoration. CVPR
2019.

Everything is made of TensorFlow operations with stateless seeds: eager or inside tf.data, the same
seed gives the same rain.
"""

from __future__ import annotations

import dataclasses
import math

import scipy.fft

from manas_jax.data.lazy_tf import tf
from manas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rain:
    """The ranges (least, greatest) from which one rain is drawn, uniformly.

    Attributes:
      direction: degrees from the vertical; positive falls towards the right.
      length: of a streak in the nearest layer, pixels.
      width: of a streak in the nearest layer, pixels (full width at half maximum).
      density: streaks per 1000 pixels of picture in the nearest layer.
      brightness: of the brightest streaks in the nearest layer; 1 turns black to white.
    """

    direction: tuple[float, float]
    length: tuple[float, float]
    width: tuple[float, float]
    density: tuple[float, float]
    brightness: tuple[float, float]


LEVELS = {
    "light": Rain((-30, 30), (15, 40), (1.3, 2.0), (0.2, 0.6), (0.25, 0.5)),
    "medium": Rain((-35, 35), (20, 50), (1.4, 2.4), (0.4, 0.9), (0.35, 0.7)),
    "heavy": Rain((-40, 40), (25, 60), (1.5, 2.8), (0.8, 1.6), (0.4, 0.75)),
}

# Each layer is this much farther away than the one before: sizes and brightness shrink by it, the
# number of streaks grows by its square.
_LAYERS = 3
_RECESSION = 0.7
_DIRECTION_SPREAD = 2.5  # degrees between layers: wind is not the same at all depths
_MARGIN = 64  # pixels around the picture, so that streaks come in over its border
_FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a Gaussian, per sigma

MIXED = "mixed"


def check_level(level: str, key: str) -> str:
    """The level, if there is such a one.

    Raises:
      UserError: there is not; names the key of the configuration.
    """
    if level not in (*LEVELS, MIXED):
        raise UserError(f"{key}: {level!r} is none of {', '.join((*LEVELS, MIXED))}")
    return level


def streaks(seed: tf.Tensor, height: int, width: int, level: str = MIXED) -> tf.Tensor:
    """One rain: the light that streaks add, float32 (height, width), at least 0.

    Args:
      seed: integers of shape (2,).
      height: of the picture in pixels, static.
      width: of the picture in pixels, static.
      level: a key of `LEVELS`, or 'mixed': one of them drawn by the seed.
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    table = tf.constant(
        [dataclasses.astuple(rain) for rain in LEVELS.values()], tf.float32
    )  # (levels, parameters, 2)
    if level == MIXED:
        index = tf.random.stateless_uniform((), seeds[0], maxval=len(LEVELS), dtype=tf.int32)
    else:
        index = list(LEVELS).index(level)
    low, high = tf.unstack(table[index], axis=-1)
    drawn = low + (high - low) * tf.random.stateless_uniform(low.shape, seeds[1])
    direction, length, breadth, density, brightness = tf.unstack(drawn)

    scale = tf.constant([_RECESSION**layer for layer in range(_LAYERS)])
    turn = _DIRECTION_SPREAD * tf.random.stateless_normal((_LAYERS,), seeds[2])
    canvas = [scipy.fft.next_fast_len(side + _MARGIN, real=True) for side in (height, width)]
    # Where the uniform draw falls below the density there is a drop, and how far below gives its
    # strength: 0.3 to 1.
    chance = (density / 1000 / scale**2)[:, None, None]
    draw = tf.random.stateless_uniform((_LAYERS, *canvas), seeds[3])
    drops = tf.where(draw < chance, 0.3 + 0.7 * draw / chance, 0.0)
    layers = _blur(drops, direction + turn, length * scale, tf.maximum(breadth * scale, 1.3))
    layers = layers * (brightness * scale)[:, None, None]
    return tf.reduce_sum(layers, axis=0)[:height, :width]


def synthesize(
    clean: tf.Tensor, seed: tf.Tensor, level: str = MIXED, veil: float = 0.0
) -> tf.Tensor:
    """Rain on a clean picture: (1 - v) clip(clean + streaks) + v airlight.

    Args:
      clean: float32 (height, width, 3) in [0, 1], of static shape.
      seed: integers of shape (2,).
      level: see `streaks`.
      veil: greatest share v of atmospheric light, 0 to 1; v is drawn from [veil / 2, veil], the
        airlight (a gray) from [0.7, 0.95]. 0 leaves the veil out.

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


def transfer(clean: tf.Tensor, other_rainy: tf.Tensor, other_clean: tf.Tensor) -> tf.Tensor:
    """The rain of one pair on another clean picture: clip(clean + (other_rainy - other_clean)).

    All are float32 (height, width, 3) in [0, 1]; so is what is returned.
    """
    return tf.clip_by_value(clean + (other_rainy - other_clean), 0.0, 1.0)


def _blur(drops: tf.Tensor, direction, length, width) -> tf.Tensor:
    """Draws every drop out into a streak whose peak is the drop's strength.

    A streak is a bar along `direction` with soft ends and a Gaussian profile across. Its Fourier
    transform has a closed form, so the cost is two transforms however many and long the streaks.

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
    soft = tf.maximum(0.1 * length, 0.7)  # pixels, sigma of the fading at both ends
    bar = tf.math.divide_no_nan(
        tf.sin(math.pi * length * along), math.pi * length * along
    ) + tf.cast(along == 0, tf.float32)
    response = bar * tf.exp(-2 * math.pi**2 * ((soft * along) ** 2 + (sigma * across) ** 2))
    peak = 1 / (length * sigma * math.sqrt(2 * math.pi))  # of the streak that has unit mass
    spectrum = tf.signal.rfft2d(drops) * tf.cast(response / peak, tf.complex64)
    blurred = tf.signal.irfft2d(spectrum, fft_length=drops.shape[1:])
    return tf.maximum(blurred, 0.0)  # the transform rings a little below zero

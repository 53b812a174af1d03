"""Stripes as of fences, railings and roofs, drawn into clean images.

Thin parallel bars look like streaks of rain, and datasets have few of them: a network that has
seldom seen a fence removes it. `draw` adds one to a clean image, before rain falls on it.

All operations are TensorFlow's with stateless seeds.
"""

from __future__ import annotations

import math

from manas_jax.data.lazy_tf import tf

_PERIOD = (4.0, 20.0)  # pixels from bar to bar, drawn uniformly in the logarithm
_FILLED = (0.35, 0.7)  # share of the period that a bar covers
_TILT = 10.0  # degrees from the vertical, standard deviation
_HEIGHT = (0.15, 1.4)  # of the image's longer side, drawn uniformly in the logarithm
_PERSPECTIVE = 0.4  # greatest relative change of the period from the middle to the border
_BARS = 64  # different brightnesses
_EDGE = 0.5  # pixels over which a bar fades at its sides and ends


def draw(clean: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws a fence of random period, colour and height across an image.

    The bars have one colour, each with a slightly different brightness and with the shading of what
    is behind them. Between them the image is visible, darkened by a random share. Half of the
    fences have a rail, as wide as a bar.

    Args:
      clean: float32 (height, width, 3) in [0, 1], of static shape.
      seed: integers of shape (2,).

    Returns:
      float32 (height, width, 3) in [0, 1].
    """
    height, width = clean.shape[:2]
    seeds = tf.unstack(tf.random.split(seed, 4))
    tilt, slope = tf.unstack(tf.random.stateless_normal((2,), seeds[0]))
    period, filled, phase, bend, centre, tall, shade, gap, rail = tf.unstack(
        tf.random.stateless_uniform((9,), seeds[1])
    )
    period = _log_uniform(_PERIOD, period)
    filled = _FILLED[0] + (_FILLED[1] - _FILLED[0]) * filled

    # Pixels across the bars and along them, from the middle of the image.
    rows = tf.range(height, dtype=tf.float32)[:, None] - (height - 1) / 2
    columns = tf.range(width, dtype=tf.float32)[None, :] - (width - 1) / 2
    angle = _TILT * tilt * (math.pi / 180)
    across = columns * tf.cos(angle) - rows * tf.sin(angle)
    along = columns * tf.sin(angle) + rows * tf.cos(angle)

    reach = max(height, width) / 2
    across += _PERSPECTIVE * (bend - 0.5) * across**2 / reach
    number = across / period + phase
    from_middle = tf.abs(number - tf.round(number)) * period
    # From the middle of the fence downwards; slanted as seen from the side.
    tall = 2 * reach * _log_uniform(_HEIGHT, tall)
    down = along - 0.8 * height * (centre - 0.5) - 0.3 * slope * across
    fence = _step(tall / 2 - tf.abs(down))
    from_rail = tf.abs(down - tall * (2 * rail - 1))
    bar = _step(filled * period / 2 - tf.minimum(from_middle, from_rail))

    behind = tf.reduce_mean(clean, axis=-1, keepdims=True)
    colour = 0.05 + 0.9 * shade + 0.1 * tf.random.stateless_normal((3,), seeds[2])
    brightness = 1 + 0.15 * tf.random.stateless_normal((_BARS,), seeds[3])
    each = tf.gather(brightness, tf.cast(tf.round(number), tf.int32) % _BARS)[..., None]
    bars = colour * each + 0.3 * (behind - tf.reduce_mean(behind))
    striped = bar[..., None] * bars + (1 - bar[..., None]) * clean * (1 - 0.7 * gap)
    return tf.clip_by_value(clean + fence[..., None] * (striped - clean), 0.0, 1.0)


def _log_uniform(limits: tuple[float, float], share: tf.Tensor) -> tf.Tensor:
    """The value between two limits at a share, in [0, 1], of the way in the logarithm."""
    low, high = (math.log(limit) for limit in limits)
    return tf.exp(low + (high - low) * share)


def _step(distance: tf.Tensor) -> tf.Tensor:
    """0 outside an edge and 1 inside, by the distance from it in pixels."""
    return tf.clip_by_value(0.5 + distance / (2 * _EDGE), 0.0, 1.0)

"""The feature loss: how far outputs are from the clean images in the features of a frozen network.

Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution",
ECCV 2016. The network is the small segmenter of `manas_jax.downstream`, so that what a network
after the de-raining sees is part of the loss: Liu et al., "When image denoising meets high-level
vision tasks", IJCAI 2018.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from manas_jax.models.unet import UNet
from manas_jax.training.losses import FeatureFn
from manas_jax.workdir.unet_file import load_unet

PyTree = Any


def feature_fn(network: UNet, params: PyTree) -> FeatureFn:
    """The feature loss by a frozen network.

    The features of a pixel are normalised to unit length over the channels, as in Zhang et al.,
    "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018, so that no
    scale or channel counts for its magnitude. The loss of an image is the squared distance of these
    vectors, mean over the pixels of a scale and over the scales; then, as for the other external
    terms, the sum over a scene's versions and the mean over the scenes.

    Args:
      network: whose encoder gives the features.
      params: its parameters, constants of the loss.

    Returns:
      A function, see `losses.FeatureFn`. It computes in float32 or the wider type of its arguments.
    """

    def encode(images: jax.Array) -> list[jax.Array]:
        images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
        scales = network.apply({"params": params}, images, method="encode")
        return [_unit_length(scale) for scale in scales]

    def loss(outputs: jax.Array, clean: jax.Array) -> jax.Array:
        found = encode(outputs.reshape(-1, *outputs.shape[2:]))
        distances = []
        for scale, target in zip(found, encode(clean), strict=True):
            scale = scale.reshape(*outputs.shape[:2], *scale.shape[1:])
            squares = jnp.sum(jnp.square(scale - target[:, None]), axis=-1)
            distances.append(jnp.mean(squares, axis=(-2, -1)))
        return jnp.mean(jnp.sum(sum(distances) / len(distances), axis=1))

    return loss


def load(path: str | os.PathLike) -> FeatureFn:
    """The feature loss by the network of a file.

    Raises:
      UserError: see `unet_file.load_unet`.
    """
    return feature_fn(*load_unet(path))


def _unit_length(features: jax.Array) -> jax.Array:
    # The constant keeps the gradient finite where all features of a pixel are 0.
    squares = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(squares + 1e-6)

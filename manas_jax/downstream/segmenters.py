"""Segmenters: any ONNX model, or a small network that is trained here and kept in the cache.

The network, `manas_jax.models.unet`, is small enough to train in minutes on one core. Its weights
do not ship with the package, as those of a data set that is for research only could not.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from tqdm import tqdm

from manas_jax.data import images
from manas_jax.downstream.onnx_model import Input, OnnxModel
from manas_jax.downstream.pictures import counterparts, picture_files
from manas_jax.errors import UserError
from manas_jax.files import sha256
from manas_jax.models.unet import UNet, param_shapes
from manas_jax.runtime import compilation
from manas_jax.workdir import unet_file

Segment = Callable[[np.ndarray], np.ndarray]
"""RGB, uint8 (H, W, 3) -> classes, uint8 (H, W)."""

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the network is trained.

    Attributes:
      size: height and width of its input in pixels, multiples of 16.
      widths: channels at a half, a quarter, an eighth and a sixteenth of that size.
      steps: of training.
      batch: pictures per step.
      learning_rate: the highest; it falls to 0 along a cosine.
      weight_decay: of AdamW.
      seed: of weights and batches.
    """

    size: tuple[int, int] = (176, 240)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    steps: int = 400
    batch: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    seed: int = 0


class OnnxSegmenter:
    """An ONNX model whose first output is (1, classes, h, w) scores or (1, h, w) classes.

    Attributes:
      classes: their number; None if the output does not tell.
    """

    def __init__(self, path: str | os.PathLike, layout: Input):
        """Opens the model and runs it once.

        Raises:
          UserError: it cannot be opened, or its output is not that of a segmenter.
        """
        self._model = OnnxModel(path, layout)
        if layout.resize != "stretch":
            raise UserError(f"{path}: segmenters take stretched pictures; give resize = 'stretch'")
        first = self._first(np.zeros((*self._model.size, 3), np.uint8))
        self.classes = first.shape[0] if first.ndim == 3 else None

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """See `Segment`."""
        first = self._first(picture)
        if first.ndim == 3:
            best = np.full(picture.shape[:2], -np.inf, np.float32)
            labels = np.zeros(picture.shape[:2], np.uint8)
            for label, small in enumerate(first):  # one by one: large pictures of many classes
                scores = _resized(small, picture.shape[:2], Image.Resampling.BILINEAR)
                labels[scores > best] = label
                best = np.maximum(best, scores)
            return labels
        return _resized(first.astype(np.uint8), picture.shape[:2], Image.Resampling.NEAREST)

    def _first(self, picture: np.ndarray) -> np.ndarray:
        """The first output, without the axis of pictures."""
        output = next(iter(self._model(picture)[0].values()))
        whole = output.ndim == 3 and np.issubdtype(output.dtype, np.integer)
        if not whole and not (output.ndim == 4 and output.shape[1] < 256):
            raise UserError(
                f"{self._model.path}: has an output {output.shape} of {output.dtype}; (1, classes, "
                "height, width) scores or (1, height, width) integers are needed"
            )
        return output[0] if whole else output[0].astype(np.float32)


def trained(folder: str | os.PathLike, classes: int, recipe: Recipe) -> tuple[Segment, str]:
    """A segmenter trained on the pictures in FOLDER/images and the masks in FOLDER/masks.

    What was trained before on the same files by the same recipe is read from the cache.

    Returns:
      The segmenter, and the name of its file in the cache, a digest of files and recipe.

    Raises:
      UserError: pictures or masks are missing, or the cache cannot be written.
    """
    pictures, masks = training_files(folder)
    contents = [sha256(path) for path in (*pictures, *masks)]
    key = json.dumps([unet_file.VERSION, dataclasses.asdict(recipe), classes, contents])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    try:
        file = compilation.user_cache_folder() / "segmenters" / name
    except OSError as error:
        raise UserError(f"the segmenter cannot be kept: {error}") from None
    if file.exists():
        network, params = unet_file.load_unet(file)
    else:
        network = UNet(classes, recipe.widths)
        params = jax.device_get(train(network, *_load(pictures, masks, recipe.size), recipe))
        unet_file.save_unet(file, network, params)
    return segmenter(network, params, recipe.size), file.name


def training_files(folder: str | os.PathLike) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The pictures and masks in a folder for `trained`.

    Raises:
      UserError: pictures or masks are missing, or their sizes differ.
    """
    pictures = picture_files(os.path.join(folder, "images"), "--train")
    return pictures, counterparts(os.path.join(folder, "masks"), pictures, "--train")


def segmenter(network: UNet, params: PyTree, size: tuple[int, int]) -> Segment:
    """The function that segments pictures of any size."""

    @functools.partial(jax.jit, static_argnums=2)
    def apply(params: PyTree, pixels: jax.Array, size: tuple[int, int]) -> jax.Array:
        logits = network.apply({"params": params}, pixels[None] / 255)[0]
        full = jax.image.resize(logits, (*size, network.classes), "bilinear")
        return jnp.argmax(full, axis=-1).astype(jnp.uint8)

    def segment(picture: np.ndarray) -> np.ndarray:
        pixels = _resized(picture, size, Image.Resampling.BILINEAR).astype(np.float32)
        return np.asarray(apply(params, pixels, picture.shape[:2]))

    return segment


def train(network: UNet, pictures: np.ndarray, masks: np.ndarray, recipe: Recipe) -> PyTree:
    """Trains the network; returns its parameters.

    Args:
      network: the network.
      pictures: uint8 (n, h, w, 3), larger than `recipe.size`, as parts of them are taken.
      masks: uint8 (n, h, w); values from `network.classes` on count nowhere.
      recipe: how.

    Raises:
      UserError: no pixel has a class.
    """
    seen = np.bincount(masks[masks < network.classes], minlength=network.classes)
    if not seen.any():
        raise UserError(f"--train: no pixel has one of the {network.classes} classes")
    # Rare classes count more: Paszke et al.: ENet. arXiv 1606.02147.
    class_weights = jnp.asarray(1 / np.log(1.02 + seen / seen.sum()), jnp.float32)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, max(1, recipe.steps // 20), recipe.steps
    )
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)

    def loss(params: PyTree, pixels: jax.Array, labels: jax.Array) -> jax.Array:
        logits = network.apply({"params": params}, pixels.astype(jnp.float32) / 255)
        labels = labels[:, ::2, ::2]  # as large as the logits
        known = labels < network.classes
        chosen = jnp.where(known, labels, 0)
        weights = jnp.where(known, class_weights[chosen], 0)
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, chosen)
        return jnp.sum(weights * errors) / jnp.maximum(jnp.sum(weights), 1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: PyTree, pixels: jax.Array, labels: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, pixels, labels)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    draw = np.random.default_rng(recipe.seed)
    params = _init(network, draw)
    state = optimizer.init(params)
    with tqdm(range(recipe.steps), "training the segmenter", disable=None) as bar:
        for _ in bar:
            chosen = draw.choice(len(pictures), recipe.batch, replace=len(pictures) < recipe.batch)
            batch = [_augmented(pictures[i], masks[i], recipe.size, draw) for i in chosen]
            pixels, labels = map(np.stack, zip(*batch, strict=True))
            params, state, value = step(params, state, pixels, labels.astype(np.int32))
            bar.set_postfix_str(f"loss {value:.3f}", refresh=False)
    return params


def _init(network: UNet, draw: np.random.Generator) -> PyTree:
    """First parameters, as Flax initialises them; drawn by NumPy, as JAX compiles for minutes."""

    def first(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key != "kernel":
            return np.full(leaf.shape, float(path[-1].key == "scale"), np.float32)
        return draw.normal(0, math.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(first, param_shapes(network))


def _augmented(
    picture: np.ndarray, mask: np.ndarray, size: tuple[int, int], draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random part, perhaps mirrored, of random brightness, in the size of the input."""
    height, width = mask.shape
    share = draw.uniform(0.6, 1)
    rows, columns = round(height * share), round(width * share)
    top, left = draw.integers(height - rows + 1), draw.integers(width - columns + 1)
    flip = 1 if draw.random() < 0.5 else -1
    part = slice(top, top + rows), slice(left, left + columns)
    pixels = _resized(picture[part][:, ::flip], size, Image.Resampling.BILINEAR)
    labels = _resized(mask[part][:, ::flip], size, Image.Resampling.NEAREST)
    brighter = pixels * draw.uniform(0.7, 1.3) + draw.uniform(-20, 20)
    return np.clip(brighter, 0, 255).astype(np.uint8), labels


def _load(
    pictures: Sequence[pathlib.Path], masks: Sequence[pathlib.Path], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and masks, twice as large as the input."""
    twice = 2 * size[0], 2 * size[1]
    loaded = [_resized(images.read(path), twice, Image.Resampling.BILINEAR) for path in pictures]
    labels = [_resized(read_mask(path), twice, Image.Resampling.NEAREST) for path in masks]
    return np.stack(loaded), np.stack(labels)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """The classes of the pixels, uint8 (H, W).

    Raises:
      UserError: the file is no image, or not one of 8 bits with one channel.
    """
    with images.opened(path, path) as image:
        if image.mode not in ("L", "P"):
            raise UserError(
                f"{path}: no mask ({image.mode}); give grey or palette images of 8 bits whose "
                "values are numbers of classes"
            )
        return np.array(image)


def _resized(pixels: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """Resizes (H, W) or (H, W, 3) to (height, width)."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size[::-1], how))

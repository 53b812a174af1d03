"""Loads the scenes that a configuration names, and splits them."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from manas_jax.buckets import is_remote
from manas_jax.data import catalog, duplicates, finder, folders, photographs, splits, tfds_reader
from manas_jax.data.local_copy import local_folder
from manas_jax.data.scene import ImageLike, Scene, size
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError
from manas_jax.files import first_few


def split_crop(config, section: str) -> int:
    """Side of the patches for which the scenes of a section of a configuration are split.

    Photographs are split into tiles as large as the patches, and the tiles into training and
    validation: all sections take those of the largest patches, so that none trains on what another
    one validates on.

    Args:
      config: a run's configuration.
      section: 'search' or 'train'.
    """
    if config.data.source == "photographs":
        return max(config.search.crop, config.train.crop)
    return config[section].crop


def load_splits(config, crop: int) -> Splits:
    """Loads the scenes of all splits.

    Only headers of images are read and, of clean files of equal length, the bytes: scenes with
    byte-identical clean images are merged, and training scenes whose clean image is also a test
    image are left out. Without a test folder `test` is empty; without training scenes all but
    `test` are. Training images that a folder calls test images are warned about.

    Args:
      config: the `data` part of a run's configuration, of which `source`, `root`, `tfds_name`,
        `validation_scenes`, `architecture_share`, `split_seed` and `limit` are read. `source` is
        'photographs', 'folder', 'tfds' or the name of a dataset in `catalog`, which is in the
        folder `root`. `limit` bounds weights and architecture scenes together and does not change
        validation.
      crop: side of the training patches in pixels, the least side of a training scene.

    Raises:
      UserError: nothing found, pairs that do not match or differ in size, unreadable headers,
        images smaller than the crop, too few scenes for the split.
    """
    root = _local_root(config)
    training, test = _load(config, root, crop)
    for scene in (*training, *test):
        if scene.clean is None:
            raise UserError(
                f"{_label(scene.rainy[0], scene)}: has no clean image, so it can be neither "
                "trained nor scored on; remove its rain with `python -m manas_jax.derain`"
            )
    training, test = duplicates.merge_identical(training), duplicates.merge_identical(test)
    training = duplicates.exclude(training, test)
    if called_test := _called_test(training, root):
        logging.warning(
            "data: training images with 'test' in their path, such as %s: check data.root",
            first_few(called_test, 1),
        )
    for scene in (*training, *test):
        _check_sizes(scene)
    for scene in training:
        if min(scene.size) < crop:
            height, width = scene.size
            raise UserError(
                f"{_label(scene.clean, scene)}: {height}x{width} pixels are too small for patches "
                f"of {crop}x{crop}; reduce the crop or remove the image"
            )
    if not training:
        return Splits((), (), (), test)
    return splits.split(
        training,
        test=test,
        validation_scenes=config.validation_scenes,
        architecture_share=config.architecture_share,
        seed=config.split_seed,
        limit=config.limit,
    )


def log_splits(found: Splits) -> None:
    """Logs the number of scenes of each split, with an example."""
    for field in dataclasses.fields(found):
        if scenes := getattr(found, field.name):
            example = _label(scenes[0].clean, scenes[0])
            logging.info("data: %d scenes for %s, such as %s", len(scenes), field.name, example)
        else:
            logging.info("data: no scenes for %s", field.name)


def _called_test(training: Sequence[Scene], root: str) -> list[str]:
    """The files, below the parent of `root`, of training scenes in a folder of test images."""
    parent = pathlib.Path(os.path.abspath(root)).parent
    files = [scene.clean for scene in training if isinstance(scene.clean, str)]
    paths = [pathlib.Path(os.path.relpath(file, parent)) for file in files]
    roles = {folder: folders.split_role(folder) for path in paths for folder in path.parts[:-1]}
    return [str(path) for path in paths if "test" in map(roles.get, path.parts[:-1])]


def _local_root(config) -> str:
    """`config.root`, copied to this machine if it is in a bucket."""
    if not is_remote(config.root):
        return os.path.expanduser(config.root)
    below = config.tfds_name.partition(":")[0] if config.source == "tfds" else ""
    return local_folder(config.root, config.cache_dir, below)


def _load(config, root: str, crop: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training scenes, test scenes."""
    if config.source == "photographs":
        return photographs.load(crop)
    if config.source == "folder":
        if not root:
            raise UserError("data.root: name the folder that holds the images")
        return folders.load(root)
    if config.source == "tfds":
        if not config.tfds_name:
            raise UserError("data.tfds_name: name the TFDS dataset")
        return tfds_reader.load(config.tfds_name, root)
    if config.source in catalog.DATASETS:
        if not root:
            raise UserError(f"data.root: name the folder that holds {config.source}")
        return finder.load(config.source, root)
    raise UserError(
        f"data.source: {config.source!r} is none of 'photographs', 'folder', 'tfds' and "
        f"{', '.join(catalog.DATASETS)}"
    )


def _check_sizes(scene: Scene) -> None:
    for image in scene.rainy:
        if size(image) != scene.size:
            (height, width), (clean_height, clean_width) = size(image), scene.size
            raise UserError(
                f"{_label(image, scene)}: {height}x{width} pixels, but its clean image "
                f"{_label(scene.clean, scene)} has {clean_height}x{clean_width}; the images of a "
                "pair must have the same size"
            )


def _label(image: ImageLike, scene: Scene) -> str:
    return f"scene {scene.name}" if isinstance(image, np.ndarray) else str(image)

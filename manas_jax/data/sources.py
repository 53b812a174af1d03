"""From the configuration of a run's data to its scenes, split."""

import os

import numpy as np

from manas_jax.data import catalog, duplicates, finder, folders, photographs, splits, tfds_reader
from manas_jax.data.scene import Picture, Scene, size
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError


def load_splits(config, crop: int) -> Splits:
    """The scenes that `config` (the `data` part of a run's configuration) names, split.

    Pictures are opened for their headers alone (and, where two clean files are equally long, for
    their bytes: pairs with byte-identical clean pictures are one scene, and a training scene whose
    clean picture is also a test scene's is left out). Without a test folder `test` is empty;
    without training scenes all but `test` are.

    Args:
      config: `source`, `root`, `tfds_name`, `validation_scenes`, `architecture_share`,
        `split_seed` and `limit` are read. `source` is photographs, folder, tfds or the name of a
        benchmark (see `catalog`) that lies in the folder `root`. `limit` bounds weights and
        architecture scenes together; validation stays what it is without a limit.
      crop: side of the training patches in pixels; training scenes must hold one.

    Raises:
      UserError: nothing found, unmatched or unequal pairs, unreadable headers, pictures smaller
        than the crop, too few scenes for the split.
    """
    training, test = _found(config, crop)
    for scene in (*training, *test):
        if scene.clean is None:
            raise UserError(
                f"{_label(scene.rainy[0], scene)}: has no clean picture, so it can be neither "
                "trained nor measured on; de-rain it with `python -m manas_jax.derain`"
            )
    training, test = duplicates.merge_identical(training), duplicates.merge_identical(test)
    training = duplicates.exclude(training, test)
    for scene in (*training, *test):
        _check_sizes(scene)
    for scene in training:
        if min(scene.size) < crop:
            height, width = scene.size
            raise UserError(
                f"{_label(scene.clean, scene)}: {height}x{width} pixels do not hold a patch of "
                f"{crop}x{crop}; reduce the crop or remove the picture"
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


def _found(config, crop: int) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    if config.source == "photographs":
        return photographs.load(crop)
    if config.source == "folder":
        if not config.root:
            raise UserError("data.root: name the folder that holds the pictures")
        return folders.load(os.path.expanduser(config.root))
    if config.source == "tfds":
        if not config.tfds_name:
            raise UserError("data.tfds_name: name the TFDS data set")
        return tfds_reader.load(config.tfds_name, os.path.expanduser(config.root))
    if config.source in catalog.BENCHMARKS:
        if not config.root:
            raise UserError(f"data.root: name the folder that holds {config.source}")
        return finder.load(config.source, config.root)
    raise UserError(
        f"data.source: {config.source!r} is none of 'photographs', 'folder', 'tfds' and "
        f"{', '.join(catalog.BENCHMARKS)}"
    )


def _check_sizes(scene: Scene) -> None:
    clean_size = scene.size
    for picture in scene.rainy:
        found = size(picture)
        if found != clean_size:
            raise UserError(
                f"{_label(picture, scene)}: {found[0]}x{found[1]} pixels, but its clean picture "
                f"{_label(scene.clean, scene)} has {clean_size[0]}x{clean_size[1]}; pairs must be "
                "of one size"
            )


def _label(picture: Picture, scene: Scene) -> str:
    return f"scene {scene.name}" if isinstance(picture, np.ndarray) else str(picture)

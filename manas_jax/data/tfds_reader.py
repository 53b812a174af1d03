"""Scenes of TensorFlow Datasets: those that `prepare` wrote and others with image features."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping

import numpy as np

from manas_jax.data import catalog, images
from manas_jax.data.lazy_tf import tfds
from manas_jax.data.scene import Scene
from manas_jax.data.splits import train_and_test
from manas_jax.errors import UserError

NAME = "derain"  # of the builder in `tfds_builder`
INDEX = "scenes"
"""Key of the metadata of `derain` datasets. The value has a row per example, by split:
(name, height, width, number of rainy versions, digest of the clean pixels, photograph)."""


def load(name: str, data_dir: str = "") -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Loads training and test scenes of a dataset that TFDS has on disk.

    Images that `manas_jax.data.prepare` wrote (`derain/...`) are decoded on demand. Any other
    dataset is held in memory: its image features are pairs if they are named like the folders in
    `catalog` (`rainy`, `clean`, ...); a single one holds clean photographs. Of its splits, `train`
    and `test` are read, or `validation` if there is no `test`.

    Args:
      name: of the dataset, as `tfds.builder` accepts it.
      data_dir: the folder that TFDS wrote it to; '' for the default one.

    Returns:
      Training scenes, test scenes.

    Raises:
      UserError: the dataset is missing, or has no such features.
    """
    builder = _builder(name, data_dir)
    if builder.name == NAME:
        return train_and_test(prepared_scenes(builder))
    clean, rainy = _image_features(builder, name)

    def scenes(split: str) -> tuple[Scene, ...]:
        examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        return tuple(
            Scene(
                f"{split}-{i}",
                _rgb(example[clean], name),
                tuple(_rgb(example[key], name) for key in rainy),
            )
            for i, example in enumerate(examples)
        )

    splits = builder.info.splits
    test = next((split for split in ("test", "validation") if split in splits), None)
    return (scenes("train") if "train" in splits else ()), (scenes(test) if test else ())


def prepared_scenes(builder: tfds.core.DatasetBuilder) -> dict[str, tuple[Scene, ...]]:
    """Returns the scenes of a dataset that `prepare` wrote, by split; their images stay on disk.

    Raises:
      UserError: the dataset has no index, or one that does not match its shards.
    """
    index = (builder.info.metadata or {}).get(INDEX, {})
    has_clean = "clean" in builder.info.features
    found = {}
    for split, info in builder.info.splits.items():
        rows = index.get(split, [])
        if len(rows) != info.num_examples:
            raise UserError(
                f"{builder.data_path}: the index lists {len(rows)} scenes in {split} and the "
                f"shards hold {info.num_examples}; remove the folder and prepare the dataset again"
            )
        shards = _Shards(builder, split)
        scenes = []
        for i, (name, height, width, versions, digest, photograph) in enumerate(rows):
            image = functools.partial(_Stored, shards, i, size=(height, width), digest=digest)
            rainy = tuple(image(version) for version in range(versions))
            scenes.append(Scene(name, image(None) if has_clean else None, rainy, photograph))
        found[split] = tuple(scenes)
    return found


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """One image of one example; a `scene.LazyImage`.

    Attributes:
      shards: those of its split.
      number: of the example.
      version: of the rainy images; None for the clean one.
      size: (height, width).
      digest: of the pixels of the clean image.
    """

    shards: _Shards
    number: int
    version: int | None
    size: tuple[int, int]
    digest: str

    @property
    def identity(self) -> tuple:
        """Equal for clean images of equal pixels; a rainy image equals itself alone."""
        return (self.digest,) if self.version is None else (self.digest, self.number, self.version)

    def read(self) -> np.ndarray:
        """Decodes the pixels, uint8 (height, width, 3).

        Raises:
          UserError: the shards are damaged or missing.
        """
        try:
            example = self.shards.example(self.number)
            encoded = (
                example["clean"].bytes_list.value[0]
                if self.version is None
                else example["rainy"].bytes_list.value[self.version]
            )
            return images.read(io.BytesIO(encoded))
        except Exception as error:  # array_record raises RuntimeError, ValueError, IndexError, ...
            raise UserError(f"{self}: cannot be read; prepare the dataset again") from error

    def __str__(self) -> str:
        which = "clean image" if self.version is None else f"rainy image {self.version}"
        return f"{which} of example {self.number} of {self.shards}"


class _Shards:
    """Random access to the encoded examples of a split."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self._name = f"{builder.data_path} ({split})"
        self._source = builder.as_data_source(
            split, deserialize_method=tfds.core.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
        )
        # A few threads read the images of one scene one after another.
        self.example = functools.lru_cache(maxsize=8)(self._example)

    def _example(self, number: int) -> Mapping:
        return self._source[number].features.feature

    def __str__(self) -> str:
        return self._name


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    how = "set data.root to the folder that holds it, or create it with " + (
        "`python -m manas_jax.data.prepare`" if name.startswith(f"{NAME}/") else "tfds.load"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        prepared = bool(builder.info.splits)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"data.tfds_name: no TFDS dataset {name!r} ({reason}); {how}") from error
    if not prepared:
        raise UserError(f"data.tfds_name: {name!r} is not prepared in {builder.data_dir}; {how}")
    return builder


def _image_features(builder: tfds.core.DatasetBuilder, name: str) -> tuple[str, list[str]]:
    """Names of the clean image feature and of the rainy ones."""
    if not isinstance(builder.info.features, tfds.features.FeaturesDict):
        raise UserError(f"data.tfds_name: {name!r} has no named features; need an image")
    features = [
        key
        for key, feature in sorted(builder.info.features.items())  # TFDS has no fixed order
        if isinstance(feature, tfds.features.Image)
    ]
    clean = [key for key in features if key.lower() in catalog.CLEAN_FOLDERS]
    rainy = [key for key in features if key.lower() in catalog.RAINY_FOLDERS]
    if len(features) == 1 and not rainy:
        clean = features
    if len(clean) != 1 or (len(features) > 1 and not rainy):
        raise UserError(
            f"data.tfds_name: {name!r} has the image features {features}; need a single one, or "
            f"a clean one (of {sorted(catalog.CLEAN_FOLDERS)}) and rainy ones (of "
            f"{sorted(catalog.RAINY_FOLDERS)})"
        )
    return clean[0], rainy


def _rgb(pixels: np.ndarray, source: str) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise UserError(
            f"data.tfds_name: {source!r} has images of {pixels.dtype} {pixels.shape}; need uint8 "
            "with 1 or 3 channels"
        )
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels

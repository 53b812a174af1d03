"""Scenes in TensorFlow Datasets: those that `prepare` wrote, and any others with image features."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping

import numpy as np

from manas_jax.data import catalog, images
from manas_jax.data.lazy_tf import tfds
from manas_jax.data.scene import Scene
from manas_jax.data.splits import train_and_test
from manas_jax.errors import UserError

NAME = "derain"
INDEX = "scenes"  # in the data set's metadata: per split, what is known of each example in order


def load(name: str, data_dir: str = "") -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Training and test scenes from a prepared TensorFlow Datasets data set.

    What `manas_jax.data.prepare` wrote (`derain/...`) stays on disk and is decoded when read. Any
    other data set is held in memory: image features named like the folders in `catalog` (`rainy`,
    `clean`, ...) are pairs, a single image feature is one of clean photographs; the splits `train`
    and `test` are read, or `validation` where there is no `test`.

    Raises:
      UserError: the data set is not there, or has no such features.
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
    """The scenes of a prepared `derain/...`, by the name of their split, still on disk.

    Raises:
      UserError: the data set was not written by `Derain`, or not in full.
    """
    index = (builder.info.metadata or {}).get(INDEX, {})
    found = {}
    for split, info in builder.info.splits.items():
        rows = index.get(split, [])
        if len(rows) != info.num_examples:
            raise UserError(
                f"{builder.data_path}: its index tells of {len(rows)} scenes in {split}, the "
                f"shards of {info.num_examples}; remove the folder and prepare the set again"
            )
        shards = _Shards(builder, split)
        has_clean = "clean" in builder.info.features
        found[split] = tuple(
            Scene(
                name,
                Record(shards, i, None, (height, width), digest) if has_clean else None,
                tuple(Record(shards, i, v, (height, width), digest) for v in range(versions)),
                photograph,
            )
            for i, (name, height, width, versions, digest, photograph) in enumerate(rows)
        )
    return found


class Record:
    """One picture of one example; a `scene.Lazy`."""

    __slots__ = ("_digest", "_number", "_shards", "_version", "size")

    def __init__(
        self,
        shards: _Shards,
        number: int,
        version: int | None,
        size: tuple[int, int],
        digest: str,
    ):
        """Picture `version` (None: the clean one) of example `number`, of that (height, width)."""
        self._shards, self._number, self._version = shards, number, version
        self._digest, self.size = digest, size

    @property
    def identity(self) -> tuple:
        """Equal for clean pictures of equal pixels, and for one and the same rainy picture."""
        place = () if self._version is None else (self._number, self._version)
        return (self._digest, *place)

    def read(self) -> np.ndarray:
        """The pixels, uint8 (height, width, 3).

        Raises:
          UserError: the shards are damaged or gone.
        """
        try:
            example = self._shards.example(self._number)
            encoded = (
                example["clean"].bytes_list.value[0]
                if self._version is None
                else example["rainy"].bytes_list.value[self._version]
            )
            return images.read(io.BytesIO(encoded))
        except Exception as error:  # array_record raises RuntimeError, ValueError, IndexError, ...
            raise UserError(f"{self}: cannot be read; prepare the data set again") from error

    def __str__(self) -> str:
        which = "clean picture" if self._version is None else f"rainy picture {self._version}"
        return f"{which} of example {self._number} of {self._shards}"


class _Shards:
    """Random access to the examples of a split, undecoded."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
        self._name = f"{builder.data_path} ({split})"
        self._source = builder.as_data_source(
            split, deserialize_method=tfds.core.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
        )
        # The pictures of one scene are read one after another, by a few threads.
        self.example = functools.lru_cache(maxsize=8)(self._example)

    def _example(self, number: int) -> Mapping:
        return self._source[number].features.feature

    def __str__(self) -> str:
        return self._name


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    how = "set data.root to the folder that holds it, or make it with " + (
        "`python -m manas_jax.data.prepare`" if name.startswith(f"{NAME}/") else "tfds.load"
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        prepared = bool(builder.info.splits)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"data.tfds_name: no TFDS data set {name!r} ({reason}); {how}") from error
    if not prepared:
        raise UserError(f"data.tfds_name: {name!r} is not prepared in {builder.data_dir}; {how}")
    return builder


def _image_features(builder: tfds.core.DatasetBuilder, name: str) -> tuple[str, list[str]]:
    """The names of the clean and of the rainy image features."""
    if not isinstance(builder.info.features, tfds.features.FeaturesDict):
        raise UserError(f"data.tfds_name: {name!r} has no named features; need an image")
    features = [
        key
        for key, feature in sorted(builder.info.features.items())  # TFDS keeps no order
        if isinstance(feature, tfds.features.Image)
    ]
    clean = [key for key in features if key.lower() in catalog.CLEAN_FOLDERS]
    rainy = [key for key in features if key.lower() in catalog.RAINY_FOLDERS]
    if len(features) == 1 and not rainy:
        clean = features
    if len(clean) != 1 or (len(features) > 1 and not rainy):
        raise UserError(
            f"data.tfds_name: {name!r} has the image features {features}; need one alone, or a "
            f"clean one (of {sorted(catalog.CLEAN_FOLDERS)}) and rainy ones (of "
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

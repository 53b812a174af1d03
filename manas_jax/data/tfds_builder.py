"""The catalog as TensorFlow Datasets: one builder with a configuration per dataset.

An example is a scene: its name, its clean image and all its rainy versions. Files are stored
unchanged if all decoders agree on their pixels, else as PNG. The shards are ArrayRecords, which
have random access, so that `tfds_reader` decodes single images on demand.

`tfds.builder("derain/rain100l", data_dir=...)` opens a dataset once it is written, even if this
module is not imported; `.as_data_source("train")` then yields examples as NumPy arrays.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from manas_jax.data import catalog, duplicates, finder, images
from manas_jax.data.lazy_tf import tf, tfds
from manas_jax.data.scene import ImageLike, Scene, read
from manas_jax.data.tfds_reader import INDEX
from manas_jax.errors import UserError

_FORMAT = "array_record"


class Derain(tfds.core.GeneratorBasedBuilder):
    """De-raining datasets. `manual_dir` is the folder that a dataset was unpacked in."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS wants a list)
        tfds.core.BuilderConfig(name=name, description=dataset.title)
        for name, dataset in catalog.DATASETS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Prepare it with `python -m manas_jax.data.prepare NAME --root DIR`, which checks the "
        "files first."
    )

    def __init__(self, *, splits: Mapping[str, Sequence[Scene]] | None = None, **kwargs):
        """Creates a builder.

        Args:
          splits: the scenes to write; None to find them in `manual_dir`.
          **kwargs: of `tfds.core.DatasetBuilder`.
        """
        self._splits = splits
        self._index = {}
        super().__init__(**{"file_format": _FORMAT} | kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        dataset = catalog.DATASETS[self.builder_config.name]
        features = {
            "name": tfds.features.Text(),
            "clean": tfds.features.Image(doc="without rain"),
            "rainy": tfds.features.Sequence(tfds.features.Image(), doc="the same with rain"),
        }
        layouts = [layout for split in dataset.splits.values() for layout in split.layouts]
        if not all(layout.clean for layout in layouts):
            del features["clean"]
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{dataset.title}. Backgrounds: {dataset.backgrounds}.",
            features=tfds.features.FeaturesDict(features),
            homepage=dataset.url,
            citation=dataset.citation,
            disable_shuffling=True,  # examples stay in the order of the index
            metadata=tfds.core.MetadataDict({INDEX: self._index}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        splits = self._splits
        if splits is None:
            found, _ = finder.find(self.builder_config.name, dl_manager.manual_dir)
            splits = {name: split.scenes for name, split in found.items()}
        return {split: self._generate_examples(split, scenes) for split, scenes in splits.items()}

    def _generate_examples(self, split: str, scenes: Sequence[Scene]) -> Iterator:
        index = self._index[split] = []
        # TFDS sorts by 128-bit keys in a thousand buckets of equal ranges and holds one bucket in
        # memory. Keys that span the whole range fill all buckets evenly and preserve the order.
        step = 2**128 // max(1, len(scenes))
        for i, scene in enumerate(tqdm(scenes, f"writing {split}", unit=" scenes", disable=None)):
            reference = read(scene.rainy[0] if scene.clean is None else scene.clean)
            digest = duplicates.fingerprint(reference).digest
            height, width, _ = reference.shape
            index.append([scene.name, height, width, len(scene.rainy), digest, scene.photograph])
            example = {"name": scene.name, "rainy": [_encodable(image) for image in scene.rainy]}
            if scene.clean is not None:
                example["clean"] = _encodable(scene.clean)
            yield i * step, example


def write(name: str, splits: Mapping[str, Sequence[Scene]], data_dir: str | None) -> pathlib.Path:
    """Writes scenes as `derain/NAME` below `data_dir`, completely or not at all.

    Args:
      name: of the dataset in `catalog`.
      splits: the scenes by split; no split may be empty.
      data_dir: the folder for TFDS datasets; None for the default one.

    Returns:
      The folder of the dataset.

    Raises:
      UserError: the folder exists or cannot be written, or an image cannot be read.
    """
    target = check_target(name, data_dir)
    builder = Derain(config=name, data_dir=data_dir, splits=splits)
    tfds.disable_progress_bar()  # `_generate_examples` has one that knows the total
    config = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    try:
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # TFDS prints that it downloads, which it does not
            builder.download_and_prepare(download_config=config)
    except (OSError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot write {target}: {reason}") from error
    return target


def check_target(name: str, data_dir: str | None) -> pathlib.Path:
    """The folder of the dataset, after a check that it is new and can be written.

    Args, Raises: as `write`.
    """
    target = pathlib.Path(Derain(config=name, data_dir=data_dir, splits={}).data_path)
    if target.exists():
        raise UserError(f"{target} already exists; remove it or choose another --data_dir")
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {target}: not in {parent}; choose another --data_dir")
    return target


def _encodable(image: ImageLike) -> str | np.ndarray:
    """The file itself if all decoders agree with `images.read` on its pixels, else the pixels."""
    if not isinstance(image, str):
        return read(image)
    try:
        with Image.open(image) as opened:
            plain = opened.format in ("PNG", "JPEG") and opened.mode in ("RGB", "L")
            rotated = opened.getexif().get(images.EXIF_ORIENTATION, 1) != 1  # or in XMP
    except Exception:  # which `images.read` explains
        plain, rotated = False, False
    return image if plain and not rotated else images.read(image)

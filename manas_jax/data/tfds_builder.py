"""The benchmarks as TensorFlow Datasets: one builder, a configuration for each of them.

An example is a scene: its name, its clean picture and all its rainy versions. Files are stored as
they are where every reader decodes them alike, as PNG otherwise. The shards are ArrayRecords, which
can be read at any place: `scenes` gives pictures that stay on disk until they are read.

`tfds.builder("derain/rain100l", data_dir=...)` finds what was prepared, also where this module is
not imported; `.as_data_source("train")` then gives examples as NumPy arrays.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from manas_jax.data import catalog, duplicates, finder, images
from manas_jax.data.lazy_tf import tf, tfds
from manas_jax.data.scene import Picture, Scene, read
from manas_jax.data.tfds_reader import INDEX
from manas_jax.errors import UserError

_FORMAT = "array_record"
_EXIF_ORIENTATION = 0x0112


class Derain(tfds.core.GeneratorBasedBuilder):
    """De-raining benchmarks. `manual_dir` is the folder that a benchmark was unpacked in."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS wants a list)
        tfds.core.BuilderConfig(name=name, description=benchmark.title)
        for name, benchmark in catalog.BENCHMARKS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Prepare it with `python -m manas_jax.data.prepare NAME --root DIR`, which checks the "
        "files first."
    )

    def __init__(self, *, splits: Mapping[str, Sequence[Scene]] | None = None, **kwargs):
        """Makes a builder.

        Args:
          splits: the scenes to write, where they have been found already.
          **kwargs: of `tfds.core.DatasetBuilder`.
        """
        self._splits = splits
        self._index = {}
        super().__init__(**{"file_format": _FORMAT} | kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        benchmark = catalog.BENCHMARKS[self.builder_config.name]
        features = {
            "name": tfds.features.Text(),
            "clean": tfds.features.Image(doc="without rain"),
            "rainy": tfds.features.Sequence(tfds.features.Image(), doc="the same, rained on"),
        }
        layouts = [layout for split in benchmark.splits.values() for layout in split.layouts]
        if not all(layout.clean for layout in layouts):
            del features["clean"]
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{benchmark.title}. Backgrounds: {benchmark.backgrounds}.",
            features=tfds.features.FeaturesDict(features),
            homepage=benchmark.url,
            citation=benchmark.citation,
            disable_shuffling=True,  # examples stay in the order of the index
            metadata=tfds.core.MetadataDict({INDEX: self._index}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        splits = self._splits
        if splits is None:
            found, _ = finder.find(self.builder_config.name, dl_manager.manual_dir)
            splits = {split: part.scenes for split, part in found.items()}
        return {split: self._generate_examples(split, scenes) for split, scenes in splits.items()}

    def _generate_examples(self, split: str, scenes: Sequence[Scene]) -> Iterator:
        index = self._index[split] = []
        # TFDS sorts by key in a thousand buckets of equal ranges of 128 bits, one in memory at a
        # time. Keys spread over the whole range keep the order and fill all buckets.
        spread = 2**128 // max(1, len(scenes))
        for i, scene in enumerate(tqdm(scenes, f"writing {split}", unit=" scenes", disable=None)):
            reference = read(scene.rainy[0] if scene.clean is None else scene.clean)
            digest = duplicates.fingerprint(reference).digest
            height, width, _ = reference.shape
            index.append([scene.name, height, width, len(scene.rainy), digest, scene.photograph])
            example = {"name": scene.name, "rainy": [_storable(picture) for picture in scene.rainy]}
            if scene.clean is not None:
                example["clean"] = _storable(scene.clean)
            yield i * spread, example


def write(name: str, splits: Mapping[str, Sequence[Scene]], data_dir: str | None) -> pathlib.Path:
    """Writes the scenes of benchmark `name` as `derain/NAME` below `data_dir`, wholly or not.

    Args:
      name: of the benchmark.
      splits: its scenes, by the name of the split; none may be empty.
      data_dir: where TFDS keeps data sets; None: where it does by default.

    Returns:
      The folder of the data set.

    Raises:
      UserError: it is there already, the place cannot be written to, or a picture cannot be read.
    """
    builder = Derain(config=name, data_dir=data_dir, splits=splits)
    target = pathlib.Path(builder.data_path)
    if target.exists():
        raise UserError(f"{target} is there already; remove it or choose another --data_dir")
    tfds.disable_progress_bar()  # ours knows how long it will take
    config = tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads
            builder.download_and_prepare(download_config=config)
    except (OSError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot write {target}: {reason}") from error
    return target


def _storable(picture: Picture) -> str | np.ndarray:
    """The file itself if all decoders see in it what `images.read` does, else pixels."""
    if not isinstance(picture, str):
        return read(picture)
    try:
        with Image.open(picture) as image:
            plain = image.format in ("PNG", "JPEG") and image.mode in ("RGB", "L")
            turned = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except (OSError, SyntaxError):  # `images.read` will say what is wrong
        plain, turned = False, False
    return picture if plain and not turned else images.read(picture)

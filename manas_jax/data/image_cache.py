"""Decoded images for the input pipeline: in memory, on disk, or decoded at each use."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from manas_jax.data.lazy_tf import tf
from manas_jax.data.scene import ImageLike, read
from manas_jax.errors import UserError, one_line


class ImageCache:
    """Random access to patches of numbered images.

    Decoded images are held in memory if all of them fit `config.cache_gib`, else on disk if
    `config.cache_dir` names a folder, else files are decoded at each use.
    """

    def __init__(self, images: Sequence[ImageLike], sizes: np.ndarray, config):
        """Decides where decoded images are held; none is decoded yet.

        Args:
          images: the images, which are numbered from 0.
          sizes: their (height, width), integers of shape (images, 2).
          config: the `data` part of a run's configuration.

        Raises:
          UserError: `config.cache_dir` is needed and cannot be written.
        """
        self._images, self._sizes = images, sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * 3)])
        self._fits = self._starts[-1] <= config.cache_gib * 2**30
        self._tensors = None
        self._failure = ""
        self._disk = None
        if not self._fits and config.cache_dir:
            self._disk = _Disk(os.path.expanduser(config.cache_dir), self._starts)
        elif not self._fits and config.cache_gib:
            logging.info(
                "decoded images need %.1f GiB, more than data.cache_gib=%g: files are decoded at "
                "each use; set data.cache_dir to cache them on disk",
                self._starts[-1] / 2**30,
                config.cache_gib,
            )

    def patch(self, image: tf.Tensor, corner: tf.Tensor, side: int) -> tf.Tensor:
        """Crops a patch.

        Args:
          image: the number of the image, an int64 scalar.
          corner: (top, left) of the patch, int64.
          side: of the patch in pixels.

        Returns:
          uint8 (side, side, 3).
        """
        if not self._fits:
            crop = functools.partial(self._crop, side=side)
            return tf.ensure_shape(
                tf.numpy_function(crop, [image, corner], tf.uint8), (side, side, 3)
            )
        samples, starts, widths = self._in_memory()
        width, top, left = widths[image], corner[0], corner[1]
        begin = starts[image] + top * width * 3
        rows = tf.reshape(samples[begin : begin + side * width * 3], (side, width, 3))
        return tf.ensure_shape(rows[:, left : left + side], (side, side, 3))

    def _crop(self, image: int, corner: np.ndarray, side: int) -> np.ndarray:
        """`patch` of an image that is not in memory; zeros if it cannot be read, see `check`."""
        (top, left), width = corner, self._sizes[image, 1]
        try:
            if self._disk and image in self._disk:
                rows = self._disk.read(image, top * width * 3, side * width * 3)
                return rows.reshape(side, width, 3)[:, left : left + side]
            pixels = self._decode(image)
            if self._disk:
                self._disk.write(image, pixels)
            return pixels[top : top + side, left : left + side]
        except UserError as error:
            self._failure = str(error)
        except Exception as error:
            self._failure = f"{self._images[image]}: cannot be read ({one_line(error)})"
        return np.zeros((side, side, 3), np.uint8)

    def check(self) -> None:
        """Reports an image that could not be read since the start.

        TensorFlow calls `_crop` in threads of its own, and an error raised there would end in its
        log, and in an iterator that waits for its threads when Python exits.

        Raises:
          UserError: names the image.
        """
        if self._failure:
            raise UserError(self._failure)

    def _decode(self, image: int) -> np.ndarray:
        pixels = read(self._images[image])
        if pixels.shape[:2] != tuple(self._sizes[image]):
            raise UserError(f"{self._images[image]}: its size changed during the run")
        return pixels

    def prepare(self) -> None:
        """Decodes all images if they are held in memory; before a graph is traced.

        Raises:
          UserError: names an image that cannot be read.
        """
        if self._fits:
            self._in_memory()

    def _in_memory(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(samples of all images, start of each image, width of each image); decodes once."""
        if self._tensors is None:
            samples = np.empty(self._starts[-1], np.uint8)

            def decode(i: int) -> None:
                samples[self._starts[i] : self._starts[i + 1]] = self._decode(i).reshape(-1)

            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(decode, range(len(self._images))))
            with tf.init_scope():  # the tensors outlive the graph that is being traced
                self._tensors = (
                    tf.constant(samples),
                    tf.constant(self._starts, tf.int64),
                    tf.constant(self._sizes[:, 1], tf.int64),
                )
        return self._tensors


class _Disk:
    """Decoded images in a temporary file without a name, which is deleted with the process.

    So its content cannot be stale, and nothing is left behind. An image is written when it is
    first decoded; until then its range of the file is a hole, which takes no space.
    """

    def __init__(self, folder: str, starts: np.ndarray):
        """Opens the file.

        Args:
          folder: of the file; created if missing.
          starts: the first byte of each image, and the end of the last one.

        Raises:
          UserError: the folder cannot be written.
        """
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as self
        except OSError as error:
            raise UserError(
                f"data.cache_dir: {folder} cannot be written ({error.strerror})"
            ) from error
        self._starts = starts
        self._written = np.zeros(len(starts) - 1, bool)
        self._failed = False

    def __contains__(self, image: int) -> bool:
        return self._written[image]

    def read(self, image: int, offset: int, count: int) -> np.ndarray:
        """Reads uint8 (count,) of an image in the file, from `offset` on."""
        begin = int(self._starts[image]) + int(offset)
        return np.frombuffer(os.pread(self._file.fileno(), int(count), begin), np.uint8)

    def write(self, image: int, pixels: np.ndarray) -> None:
        """Writes an image; after the first error, such as a full disk, warns and writes no more."""
        if self._failed:
            return
        begin, left = int(self._starts[image]), memoryview(np.ascontiguousarray(pixels).ravel())
        try:
            while left:
                written = os.pwrite(self._file.fileno(), left, begin)
                begin, left = begin + written, left[written:]
        except OSError as error:
            self._failed = True
            logging.warning(
                "data.cache_dir: holds %d of %d images (%s); the others are decoded at each use",
                self._written.sum(), len(self._written), error.strerror,
            )  # fmt: skip
            return
        self._written[image] = True  # only now: other threads may read it from here on

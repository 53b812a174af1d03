"""Decoded pictures for the input pipeline: in memory, on disk, or decoded at each use."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from manas_jax.data.lazy_tf import tf
from manas_jax.data.scene import Picture, read
from manas_jax.errors import UserError


class PictureCache:
    """Patches of numbered pictures: from one flat tensor if all fit, else from disk or files."""

    def __init__(self, pictures: Sequence[Picture], sizes: np.ndarray, config):
        self._pictures, self._shapes = pictures, sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * 3)])
        self._fit = self._starts[-1] <= config.cache_gib * 2**30
        self._flat = None
        self._failure = None
        self._disk = None
        if not self._fit and config.cache_dir:
            self._disk = _Disk(os.path.expanduser(config.cache_dir), self._starts)
        elif not self._fit and config.cache_gib:
            logging.info(
                "decoded, the pictures take %.1f GiB, more than data.cache_gib=%g: files are "
                "decoded each time; data.cache_dir names a folder to keep them in",
                self._starts[-1] / 2**30,
                config.cache_gib,
            )

    def patch(self, picture: tf.Tensor, corner: tf.Tensor, side: int) -> tf.Tensor:
        """uint8 (side, side, 3) of the picture of that number, at (top, left) `corner`."""
        if not self._fit:
            cut = functools.partial(self._cut, side=side)
            return tf.ensure_shape(
                tf.numpy_function(cut, [picture, corner], tf.uint8), (side, side, 3)
            )
        flat, starts, widths = self._decoded()
        width, top, left = widths[picture], corner[0], corner[1]
        begin = starts[picture] + top * width * 3
        rows = tf.reshape(flat[begin : begin + side * width * 3], (side, width, 3))
        return tf.ensure_shape(rows[:, left : left + side], (side, side, 3))

    def _cut(self, picture: int, corner: np.ndarray, side: int) -> np.ndarray:
        """`patch` of a picture that is not in memory."""
        (top, left), width = corner, self._shapes[picture, 1]
        if self._disk and picture in self._disk:
            rows = self._disk.read(picture, top * width * 3, side * width * 3)
            return rows.reshape(side, width, 3)[:, left : left + side]
        pixels = self._decode(picture)
        if self._disk:
            self._disk.write(picture, pixels)
        return pixels[top : top + side, left : left + side]

    @contextlib.contextmanager
    def user_errors(self):
        """Hands on the `UserError` of a picture that could not be decoded inside TensorFlow."""
        try:
            yield
        except Exception as error:
            if self._failure is None:
                raise
            raise self._failure from error

    def _decode(self, picture: int) -> np.ndarray:
        try:
            pixels = read(self._pictures[picture])
            if pixels.shape[:2] != tuple(self._shapes[picture]):
                raise UserError(f"{self._pictures[picture]}: changed its size during the run")
            return pixels
        except UserError as error:
            self._failure = error  # TensorFlow would keep its text alone
            raise

    def _decoded(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """(all samples, start of each picture, width of each picture), made at the first use."""
        if self._flat is None:
            samples = np.empty(self._starts[-1], np.uint8)

            def place(i: int) -> None:
                samples[self._starts[i] : self._starts[i + 1]] = self._decode(i).reshape(-1)

            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(place, range(len(self._pictures))))
            with tf.init_scope():  # the tensors outlive the graph that is being traced
                self._flat = (
                    tf.constant(samples),
                    tf.constant(self._starts, tf.int64),
                    tf.constant(self._shapes[:, 1], tf.int64),
                )
        return self._flat


class _Disk:
    """Decoded pictures in a file without a name, which is gone when the process is.

    So nothing in it can be out of date, or left behind. A picture is put there when it is first
    decoded; until then its place is a hole, which takes no room.
    """

    def __init__(self, folder: str, starts: np.ndarray):
        """Opens the file.

        Args:
          folder: where it lies; made if it is missing.
          starts: the first byte of each picture, and the end of the last one.

        Raises:
          UserError: the folder cannot be written to.
        """
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # lives as we do
        except OSError as error:
            raise UserError(
                f"data.cache_dir: {folder} cannot be written to ({error.strerror})"
            ) from error
        self._starts = starts
        self._there = np.zeros(len(starts) - 1, bool)
        self._full = False

    def __contains__(self, picture: int) -> bool:
        return self._there[picture]

    def read(self, picture: int, offset: int, count: int) -> np.ndarray:
        """uint8 (count,) of a picture that is there, from `offset` on."""
        begin = int(self._starts[picture]) + int(offset)
        return np.frombuffer(os.pread(self._file.fileno(), int(count), begin), np.uint8)

    def write(self, picture: int, pixels: np.ndarray) -> None:
        """Keeps a picture; on a full disk it says so once and keeps no more."""
        if self._full:
            return
        begin, left = int(self._starts[picture]), memoryview(np.ascontiguousarray(pixels).ravel())
        try:
            while left:
                written = os.pwrite(self._file.fileno(), left, begin)
                begin, left = begin + written, left[written:]
        except OSError as error:
            self._full = True
            logging.warning(
                "data.cache_dir: keeps %d of %d pictures (%s); the others are decoded each time",
                self._there.sum(), len(self._there), error.strerror,
            )  # fmt: skip
            return
        self._there[picture] = True  # after its last byte: other threads read it from now on

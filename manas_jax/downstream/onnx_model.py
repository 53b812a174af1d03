"""ONNX models that take a picture, run by onnxruntime, and how their input is prepared."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from manas_jax.errors import UserError, one_line
from manas_jax.runtime.onnx_session import open_session

RESIZES = ("letterbox", "letterbox_centre", "stretch")
COLOURS = ("rgb", "bgr")

Layout = TypeVar("Layout", bound="Input")


@dataclasses.dataclass(frozen=True)
class Input:
    """How a picture becomes the input of a model.

    Attributes:
      size: height and width in pixels; None for those that the model states.
      resize: 'letterbox' keeps the aspect ratio, with the picture at the upper left;
        'letterbox_centre' in the centre; 'stretch' does not keep it.
      fill: what is beside a letterboxed picture, 0 to 255.
      colours: order of the channels, 'rgb' or 'bgr'.
      mean: per channel, subtracted from the pixels of 0 to 255.
      std: per channel, what the difference is divided by.
    """

    size: tuple[int, int] | None = None
    resize: str = "letterbox"
    fill: int = 114
    colours: str = "rgb"
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[float, float, float] = (1, 1, 1)

    def __post_init__(self):
        for key, choices in (("resize", RESIZES), ("colours", COLOURS)):
            if getattr(self, key) not in choices:
                raise UserError(f"{key} = {getattr(self, key)!r}: give one of {', '.join(choices)}")
        for key, count in (("size", 2), ("mean", 3), ("std", 3)):
            value = getattr(self, key)
            numbers = isinstance(value, (tuple, list)) and all(map(_is_finite, value))
            if not (value is None and key == "size") and not (numbers and len(value) == count):
                raise UserError(f"{key} = {value!r}: give {count} numbers")
        if self.size and not all(isinstance(side, int) and side > 0 for side in self.size):
            raise UserError(f"size = {self.size!r}: give whole pixels, 1 or more")
        if not all(map(np.float32, self.std)):
            raise UserError(f"std = {self.std!r}: give numbers other than 0")
        if not is_number(self.fill) or not 0 <= self.fill <= 255:
            raise UserError(f"fill = {self.fill!r}: give a number from 0 to 255")


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that float32 can hold; NaN is none."""
    return is_number(value) and abs(value) <= np.finfo(np.float32).max


class Placement(NamedTuple):
    """Where the picture is in the input: pixel (x, y) of it is at (left + x * across, …)."""

    across: float
    down: float
    left: int
    top: int


def read_layout(path: str | os.PathLike, kind: type[Layout]) -> Layout:
    """Reads a JSON file with the fields of `Input` or of a class made of it.

    Raises:
      UserError: the file cannot be read, or has an unknown key or value; names it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({one_line(error)})") from None
    known = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(fields, dict) or not fields.keys() <= set(known):
        raise UserError(f"{path}: give an object with some of the keys {', '.join(known)}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class OnnxModel:
    """A model with one input, which holds one picture.

    Attributes:
      path: its file.
      size: height and width of its input in pixels.
    """

    def __init__(self, path: str | os.PathLike, layout: Input):
        """Opens the model.

        Raises:
          UserError: it cannot be opened, or its input is not that of a picture.
        """
        self.path, self._layout = path, layout
        try:
            self._session = open_session(path)
        except Exception as error:  # onnxruntime raises many types
            raise UserError(
                f"{path}: cannot be opened as an ONNX model ({one_line(error)})"
            ) from None
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            found = ", ".join(f"{x.name} {x.shape}" for x in inputs)
            raise UserError(
                f"{path}: has the inputs {found}; a model with one input (1, 3, height, width) or "
                "(1, height, width, 3) is needed"
            )
        self._name, self._channels_first = inputs[0].name, shape[1] == 3
        self._dtype = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(
            inputs[0].type, np.float32
        )
        sides = shape[2:] if self._channels_first else shape[1:3]
        size = layout.size or sides
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise UserError(f"{path}: takes pictures of any size; name a size in the --layout file")
        self.size = tuple(size)

    def __call__(self, picture: np.ndarray) -> tuple[dict[str, np.ndarray], Placement]:
        """The outputs by name, and where the picture was in the input.

        Args:
          picture: RGB, uint8 (H, W, 3).

        Raises:
          UserError: the model fails.
        """
        pixels, placement = prepare(picture, self._layout, self.size)
        if self._channels_first:
            pixels = pixels.transpose(2, 0, 1)
        tensor = np.ascontiguousarray(pixels[None].astype(self._dtype))
        names = [output.name for output in self._session.get_outputs()]
        try:
            outputs = self._session.run(names, {self._name: tensor})
        except Exception as error:  # onnxruntime raises many types
            raise UserError(f"{self.path}: fails on a picture ({one_line(error)})") from None
        return dict(zip(names, outputs, strict=True)), placement


def prepare(
    picture: np.ndarray, layout: Input, size: tuple[int, int]
) -> tuple[np.ndarray, Placement]:
    """Resizes and normalises a picture.

    Args:
      picture: RGB, uint8 (H, W, 3).
      layout: how.
      size: (height, width) of the result.

    Returns:
      float32 (height, width, 3), and where the picture is in it.
    """
    (rows, columns), (height, width) = picture.shape[:2], size
    down, across = height / rows, width / columns
    inner = size
    if layout.resize != "stretch":
        down = across = min(down, across)
        inner = max(1, int(rows * down)), max(1, int(columns * across))
    top, left = 0, 0
    if layout.resize == "letterbox_centre":
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    resized = _resized(picture, inner)
    whole = np.full((height, width, 3), layout.fill, np.float32)
    whole[top : top + inner[0], left : left + inner[1]] = resized
    if layout.colours == "bgr":
        whole = whole[:, :, ::-1]
    whole = (whole - np.float32(layout.mean)) / np.float32(layout.std)
    return whole, Placement(across, down, left, top)


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolates between the nearest four pixels, as OpenCV does and most models were trained.

    Pillow's `resize` averages over more pixels where it makes pictures smaller, and its `transform`
    cuts the fractions of 8-bit pixels off.

    Args:
      picture: uint8 (H, W, 3).
      size: height and width.

    Returns:
      float32 (height, width, 3), whole numbers.
    """
    (rows, columns), (height, width) = picture.shape[:2], size
    scale = (columns / width, 0, 0, 0, rows / height, 0)
    channels = [
        Image.fromarray(channel.astype(np.float32)).transform(
            (width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR
        )
        for channel in np.moveaxis(picture, -1, 0)
    ]
    return np.round(np.stack(channels, axis=-1))

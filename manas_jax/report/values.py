"""Values of JSON files as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCORED = {"rainy": "input", "restored": "output"}
"""Kind of a picture -> its key in scores.json."""


def get(mapping: Any, *keys: str) -> Any:
    """The value at nested keys, or None."""
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def is_number(value: Any) -> bool:
    """Whether it is an int or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def score(measure: str, value: float) -> str:
    """PSNR in hundredths of a decibel, SSIM with four digits."""
    return f"{value:.2f}" if measure.endswith("psnr") else f"{value:.4f}"


def count(number: int, noun: str) -> str:
    """'1 picture', '1,200 pictures'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Two units at most: 0.42 s, 12.3 s, 4 min 05 s, 3 h 07 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def number(value: float) -> str:
    """Four significant digits; from 10,000 on with a prefix: 12.3 k, 4.5 M, 6.78 G, 9 T."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g} {unit}"
    return f"{value:.4g}"


def scale(branch: int) -> str:
    """What a branch works at, relative to the finest one."""
    return f"1/{2**branch} of the finest scale" if branch else "finest scale"


def title(tag: str) -> str:
    """A TensorBoard tag as a heading: 'validation/psnr' -> 'Validation: PSNR'."""
    text = tag.replace("/", ": ").replace("_", " ")
    text = text.replace("psnr", "PSNR").replace("ssim", "SSIM")
    return text[0].upper() + text[1:]

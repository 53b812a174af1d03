"""Values of JSON files as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def get(mapping: Any, *keys: str) -> Any:
    """The value at nested keys, or None."""
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return mapping


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested to flat, keys joined by '.'."""
    flat = {}
    for key, value in mapping.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def is_number(value: Any) -> bool:
    """Whether it is an int or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> str:
    """Any JSON value, numbers short."""
    if is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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


def title(tag: str) -> str:
    """A TensorBoard tag as a heading: 'validation/psnr' -> 'Validation: PSNR'."""
    text = tag.replace("/", ": ").replace("_", " ")
    text = text.replace("psnr", "PSNR").replace("ssim", "SSIM")
    return text[0].upper() + text[1:]

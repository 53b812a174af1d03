"""HEIC, by pillow-heif: 8 to 12 bits, metadata and colour tags as they were, exact alpha."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from manas_jax.inference.image_files import encoders, previews
from manas_jax.inference.image_files.pixels import Page, stored_samples

PACKAGE = "pillow_heif"
_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
QUALITY = 90
_LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
_KEPT = (
    "exif", "xmp", "icc_profile", "icc_profile_type", "nclx_profile", "metadata", "chroma",
    "pixel_aspect_ratio", "content_light_level", "mastering_display_colour_volume",
    "ambient_viewing_environment", "nominal_diffuse_white_luminance",
)  # fmt: skip


def recognises(content: bytes) -> bool:
    """Whether a file says that it is HEIC, by its brands."""
    brands = content[8 : int.from_bytes(content[:4], "big")][:256]
    listed = {brands[i : i + 4] for i in range(0, len(brands), 4)}
    return content[4:8] == b"ftyp" and bool(_BRANDS & listed)


def register() -> None:
    """Makes Pillow read and write HEIC."""
    import pillow_heif

    pillow_heif.register_heif_opener()


def storage(image: Image.Image, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """Options for the same metadata, colour tags and thumbnails, and the bits of a sample."""
    options = {key: image.info[key] for key in _KEPT if image.info.get(key) is not None}
    thumbnails = image.info.get("thumbnails")
    auxiliary = " ".join(map(str, image.info.get("aux", {})))
    left_out = {
        "HDR gain map": "hdrgainmap" in auxiliary or b"tmap" in content,
        "depth map": image.info.get("depth_images"),
        "auxiliary images": auxiliary and "hdrgainmap" not in auxiliary,
        f"further images ({image.n_frames - 1})": image.n_frames > 1,
    }
    options |= {"thumbnails": thumbnails} if thumbnails else {}
    return {"options": options, "bits": image.info["bit_depth"]}, [
        name for name, applies in left_out.items() if applies
    ]


def deep_samples(content: bytes, bits: int) -> tuple[str, np.ndarray]:
    """Mode and uint16 samples of 16 bits of the image of more than 8 bits in a file."""
    import pillow_heif

    file = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    samples = np.asarray(file[file.primary_index])
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples.shape[2] if samples.ndim == 3 else 1]
    return mode, _rescaled(samples, 2**bits - 1, 65535)


def encode(content: bytes, pages: Sequence[Page]) -> bytes:
    """A new file of the only page."""
    (page,) = pages
    options = previews.in_options(page.storage["options"], page)
    options["quality"] = QUALITY
    if page.mode in ("LA", "RGBA"):
        options |= _LOSSLESS
    if page.samples.dtype == np.uint8:
        return encoders.with_pillow(encoders.pillow_image(page), "HEIF", **options)
    return _deep(page, options)


def _deep(page: Page, options: dict[str, Any]) -> bytes:
    import pillow_heif

    bits, samples = page.storage["bits"], stored_samples(page)
    samples = _rescaled(samples, 65535, 2**bits - 1)
    height, width = samples.shape[:2]
    file = pillow_heif.from_bytes(f"{page.mode};{bits}", (width, height), samples.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, **options)
    return buffer.getvalue()


def _rescaled(samples: np.ndarray, largest: int, new: int) -> np.ndarray:
    return np.rint(samples * np.float32(new / largest)).astype(np.uint16)

"""Scores of restored images: PSNR and SSIM, on luma and on RGB.

As in the de-raining literature they are computed from 8-bit images, in float64, on the luma Y of
ITU-R BT.601 as MATLAB's ``rgb2ycbcr`` returns it; and on RGB as well.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from manas_jax.errors import Diverged, UserError

# The PSNR of identical images is infinite, which neither a mean nor JSON can hold. Every PSNR is
# therefore capped; 100 dB is an error of one grey level in one of 150,000 samples.
PSNR_CAP = 100.0
# Side and standard deviation in pixels of SSIM's window, a Gaussian, as in Wang et al. (2004).
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


@dataclasses.dataclass(frozen=True)
class Scores:
    """PSNR in dB (at most `PSNR_CAP`) and SSIM (at most 1) of one image, or the mean over several.

    ``y_`` is measured on BT.601 luma, ``rgb_`` on the three channels together.
    """

    y_psnr: float
    y_ssim: float
    rgb_psnr: float
    rgb_ssim: float


def in_8_bits(pixels: np.ndarray) -> np.ndarray:
    """An image of 8 or 16 bits in 8 bits: uint8 or uint16 of any shape to uint8 of the same."""
    return pixels if pixels.dtype == np.uint8 else to_uint8(pixels / np.float32(65535))


def to_uint8(image) -> np.ndarray:
    """Clips a float image to [0, 1] and rounds it to 8 bits, half up.

    Args:
      image: float array of any shape (NumPy or JAX), nominally in [0, 1].

    Returns:
      uint8 array of the same shape.

    Raises:
      Diverged: a value is NaN, which would otherwise become an arbitrary grey.
    """
    image = np.asarray(image, np.float32)
    if np.isnan(image).any():
        raise Diverged(
            "the restored image contains NaN: the weights have diverged; "
            "use an earlier checkpoint or train with a smaller learning rate"
        )
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma as MATLAB's ``rgb2ycbcr`` returns it for uint8: rounded, 16 (black) to 235.

    Args:
      image: (..., 3) uint8, RGB.

    Returns:
      (...) uint8. The arithmetic is on integers, hence exact.
    """
    weighted = image.astype(np.int32) @ np.array([65481, 128553, 24966], np.int32)
    return ((weighted + 127500) // 255000 + 16).astype(np.uint8)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape, capped at `PSNR_CAP`."""
    error = np.mean(np.square(image.astype(np.float64) - reference.astype(np.float64)))
    return PSNR_CAP if error == 0 else min(PSNR_CAP, float(10 * np.log10(255**2 / error)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity of two uint8 images, (H, W) or (H, W, C), mean over the channels.

    Wang et al., IEEE TIP 13(4), 2004: Gaussian window of 11x11 pixels and sigma 1.5, only where it
    lies entirely inside the image; K1 = 0.01, K2 = 0.03, data range 255.

    Raises:
      UserError: a side is below 11 pixels, where SSIM is undefined.
    """
    height, width = image.shape[:2]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM is undefined below {SSIM_WINDOW}x{SSIM_WINDOW} pixels and the image has "
            f"{height}x{width}; exclude it"
        )
    from skimage.metrics import structural_similarity  # slow to load, and not for de-raining

    return float(
        structural_similarity(
            image,
            reference,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2 if image.ndim == 3 else None,
        )
    )


def score(restored: np.ndarray, clean: np.ndarray) -> Scores:
    """Scores one restored image against the clean one; both (H, W, 3) uint8.

    Raises:
      UserError: their sizes differ, or a side is below 11 pixels.
    """
    if restored.shape != clean.shape:
        raise UserError(
            f"the restored image has {_size(restored)} pixels and the clean one {_size(clean)}; "
            "scores need images of the same size"
        )
    restored_y, clean_y = luma(restored), luma(clean)
    return Scores(
        y_psnr=psnr(restored_y, clean_y),
        y_ssim=ssim(restored_y, clean_y),
        rgb_psnr=psnr(restored, clean),
        rgb_ssim=ssim(restored, clean),
    )


def mean(scores: Iterable[Scores]) -> Scores:
    """Mean of each score over the images, with equal weights.

    Raises:
      UserError: there are none.
    """
    values = np.array([dataclasses.astuple(s) for s in scores], np.float64)
    if not len(values):
        raise UserError("there are no images to average scores of")
    return Scores(*values.mean(axis=0).tolist())


def _size(image: np.ndarray) -> str:
    return "x".join(str(n) for n in image.shape[:2])

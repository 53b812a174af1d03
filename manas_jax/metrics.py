"""Scores of restored pictures: PSNR and SSIM, on luma and on RGB.

Scores are taken the way the de-raining literature takes them: on 8-bit pictures, in float64, on the
luma Y of ITU-R BT.601 as MATLAB's ``rgb2ycbcr`` gives it, and on RGB besides.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import skimage  # reads its parts, which take a while, when they are first used

from manas_jax.data import images
from manas_jax.errors import Diverged, UserError
from manas_jax.files import first_few, natural_order

# The PSNR of identical pictures is infinite, which neither a mean nor JSON can carry. Every PSNR is
# therefore capped; 100 dB is one grey level of error in one of 150,000 samples.
PSNR_CAP = 100.0
# Side of SSIM's window in pixels: a Gaussian of sigma 1.5, cut off as in Wang et al. (2004).
SSIM_WINDOW = 11

_ROLES = "norain|no_rain|rainy|rain|clean|restored|derained|output|input|target|gt"


@dataclasses.dataclass(frozen=True)
class Scores:
    """PSNR in dB (at most `PSNR_CAP`) and SSIM (at most 1) of one picture or the mean of several.

    ``y_`` is measured on BT.601 luma, ``rgb_`` on the three channels together.
    """

    y_psnr: float
    y_ssim: float
    rgb_psnr: float
    rgb_ssim: float


def to_uint8(image) -> np.ndarray:
    """Clamps a float picture to [0, 1] and rounds it to 8 bits, halves upwards.

    Args:
      image: float array of any shape (NumPy or JAX), nominally in [0, 1].

    Returns:
      uint8 array of the same shape.

    Raises:
      Diverged: if a value is not a number, which would otherwise turn into an arbitrary grey.
    """
    image = np.asarray(image, np.float32)
    if np.isnan(image).any():
        raise Diverged(
            "the restored picture holds NaN: the weights have diverged; "
            "take an earlier checkpoint or train with a smaller learning rate"
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
    """Structural similarity of two uint8 pictures, (H, W) or (H, W, C), mean over the channels.

    Wang et al., IEEE TIP 13(4), 2004: Gaussian window of 11x11 pixels and sigma 1.5, only where it
    lies wholly inside the picture; K1 = 0.01, K2 = 0.03, data range 255.

    Raises:
      UserError: for a picture with a side below 11 pixels, on which it is undefined.
    """
    height, width = image.shape[:2]
    if min(height, width) < SSIM_WINDOW:
        raise UserError(
            f"SSIM is undefined below {SSIM_WINDOW}x{SSIM_WINDOW} pixels and the picture has "
            f"{height}x{width}; leave it out of the scoring"
        )
    return float(
        skimage.metrics.structural_similarity(
            image,
            reference,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=2 if image.ndim == 3 else None,
        )
    )


def score(restored: np.ndarray, clean: np.ndarray) -> Scores:
    """Scores one restored picture against the clean one; both (H, W, 3) uint8.

    Raises:
      UserError: if their sizes differ or a side is below 11 pixels.
    """
    if restored.shape != clean.shape:
        raise UserError(
            f"the restored picture is {_size(restored)} pixels and the clean one {_size(clean)}; "
            "scores need pictures of one size"
        )
    restored_y, clean_y = luma(restored), luma(clean)
    return Scores(
        y_psnr=psnr(restored_y, clean_y),
        y_ssim=ssim(restored_y, clean_y),
        rgb_psnr=psnr(restored, clean),
        rgb_ssim=ssim(restored, clean),
    )


def mean(scores: Iterable[Scores]) -> Scores:
    """Mean of each score over the pictures, every picture weighing the same.

    Raises:
      UserError: if there is none.
    """
    values = np.array([dataclasses.astuple(s) for s in scores], np.float64)
    if not len(values):
        raise UserError("there is no picture to take the mean score of")
    return Scores(*values.mean(axis=0).tolist())


def score_folders(restored: str | Path, clean: str | Path) -> dict[str, Scores]:
    """Scores a folder of restored pictures against a folder of clean ones.

    A restored picture belongs to the clean one of the same stem; failing that, to the one whose
    stem is the same without words for roles (``rain-1`` and ``norain-1``, ``a_restored`` and
    ``a_clean``); failing that, without the version too (``7_2`` and ``7``, as Rain14000 names
    them, ``7x2`` and ``7``, as Rain200L does).

    Returns:
      Restored file name -> scores, in natural order of the names.

    Raises:
      UserError: a folder is missing or empty, a picture has no partner or more than one, a file is
        no picture, two sizes differ, or a picture is below 11x11 pixels.
    """

    def pictures(folder: str | Path) -> list[Path]:
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is no folder; give the folder that holds the pictures")
        if not (paths := [p for p in Path(folder).iterdir() if images.is_picture(p)]):
            raise UserError(f"{folder} holds no pictures; give the folder that holds them")
        return paths

    scores = {}
    for restored_path, clean_path in pair(pictures(restored), pictures(clean)):
        try:
            scores[restored_path.name] = score(images.read(restored_path), images.read(clean_path))
        except UserError as error:
            raise UserError(f"{restored_path} against {clean_path}: {error}") from error
    return scores


def pair(restored: Sequence[Path], clean: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs restored pictures with clean ones by name, as `score_folders` describes.

    Raises:
      UserError: naming the files left without a partner or with several.
    """
    # A clean name gives up its role only, never its version: the clean "7_2" is not the clean "7".
    by_stem, by_rest = _index(clean, str), _index(clean, _without_role)

    pairs, orphans = [], []
    for path in sorted(restored, key=natural_order):
        rest = _without_role(path.stem)
        unversioned = re.sub(r"(_|x)\d+$", "", rest)
        found = by_stem.get(path.stem) or by_rest.get(rest) or by_rest.get(unversioned, [])
        if len(found) > 1:
            raise UserError(f"{path} fits several clean pictures: {first_few(found)}; rename them")
        if found:
            pairs.append((path, found[0]))
        else:
            orphans.append(path)
    if orphans:
        raise UserError(f"no clean picture for {first_few(orphans)}; add it or remove these")
    if unused := sorted(set(clean) - {c for _, c in pairs}, key=natural_order):
        raise UserError(
            f"no restored picture for {first_few(unused)}; "
            "restore these too, or score against a folder without them"
        )
    return pairs


def as_json(scores: Mapping[str, Scores]) -> dict:
    """JSON-ready form: {"images": [{"name", **scores}, ...], "mean": {**scores}}."""
    return {
        "images": [{"name": name, **dataclasses.asdict(s)} for name, s in scores.items()],
        "mean": dataclasses.asdict(mean(scores.values())),
    }


def table(scores: Mapping[str, Scores]) -> str:
    """Aligned text: one line a picture, then the mean."""
    rows = [*scores.items(), (f"mean of {len(scores)}", mean(scores.values()))]
    width = max(len("picture"), *(len(name) for name, _ in rows))
    form = f"{{:<{width}}}  {{:>8}}  {{:>7}}  {{:>8}}  {{:>8}}"
    lines = [form.format("picture", "Y PSNR", "Y SSIM", "RGB PSNR", "RGB SSIM")]
    for name, s in rows:
        values = f"{s.y_psnr:.2f}", f"{s.y_ssim:.4f}", f"{s.rgb_psnr:.2f}", f"{s.rgb_ssim:.4f}"
        lines.append(form.format(name, *values))
    return "\n".join(lines)


def _size(image: np.ndarray) -> str:
    return "x".join(str(n) for n in image.shape[:2])


def _without_role(stem: str) -> str:
    return re.sub(rf"^({_ROLES})[-_]|[-_]({_ROLES})$", "", stem, flags=re.IGNORECASE)


def _index(paths: Iterable[Path], rule) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = {}
    for path in sorted(paths, key=natural_order):
        index.setdefault(rule(path.stem), []).append(path)
    return index

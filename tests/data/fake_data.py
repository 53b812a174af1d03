"""Fake datasets: images with recognisable content, in files named like those of real datasets."""

import ml_collections
import numpy as np
from PIL import Image

from manas_jax.data.scene import Scene, read

HEIGHT, WIDTH = 24, 32
CODED_SIZE = 20, 28  # height and width in pixels


def data_config(**changes):
    """The `data` part of a run's configuration."""
    defaults = {
        "source": "folder",
        "root": "",
        "tfds_name": "",
        "validation_scenes": 1,
        "architecture_share": 0.5,
        "split_seed": 0,
        "limit": 0,
        "versions": 3,
        "real": 1.0,
        "transfer": 0.0,
        "synthetic": 0.0,
        "level": "mixed",
        "appearance": "additive",
        "veil": 0.0,
        "stripes": 0.0,
        "evaluation_level": "medium",
        "cache_gib": 1.0,
        "cache_dir": "",
    }
    return ml_collections.ConfigDict(defaults | changes)


def save_flat(path, value, size=(12, 16)):
    """Saves an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def write_pair_folder(root, clean="norain/{}.png", rainy=("rain/{}.png",), count=3, first=0):
    """Writes pairs of one colour each: 10 + i clean and 110 + i rainy."""
    for i in range(first, first + count):
        save_flat(root / clean.format(i), 10 + i)
        for name in rainy:
            save_flat(root / name.format(i), 110 + i)


def value(image):
    """The colour of such an image."""
    return int(read(image)[0, 0, 0])


def background(number):
    """An image with random structure, uint8 (24, 32, 3)."""
    blocks = np.random.default_rng(number).integers(0, 200, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def rained(number, version=1):
    """The same with streaks: every `version`-th pair of columns is brighter by 55."""
    pixels = background(number).copy()
    pixels[:, :: 2 + version] += 55
    return pixels


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    jpeg = {"quality": 97, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(pixels).save(path, **jpeg, **options)


def write_pairs(root, clean, rainy, numbers, *, versions=(1,), shown=lambda number: number):
    """Writes pairs to files named by templates with {i} and {v}; `shown` maps i to a background."""
    for i in numbers:
        save(root / clean.format(i=i), background(shown(i)))
        for v in versions:
            save(root / rainy.format(i=i, v=v), rained(shown(i), v))


def write_halves(root, name, numbers, side, *, version=1, shown=lambda number: number):
    """Writes side by side files, the clean half on `side`; clean halves of versions differ by 1."""
    for i in numbers:
        halves = [background(shown(i)) + np.uint8(version - 1), rained(shown(i), version)]
        save(root / name.format(i=i), np.hstack(halves if side == "left" else halves[::-1]))


# name of the layout: dataset, {split: (clean template, rainy template, versions)}
LAYOUTS = {
    "rain100l, folders": (
        "rain100l",
        {
            "train": ("train/norain/{i}.png", "train/rain/{i}.png", 1),
            "test": ("test/norain/{i}.png", "test/rain/{i}.png", 1),
        },
    ),
    "rain100l, as PReNet has it": (
        "rain100l",
        {
            "train": ("train/RainTrainL/norain-{i}.png", "train/RainTrainL/rain-{i}.png", 1),
            "test": (
                "test/Rain100L/norain-{i:03}.png",
                "test/Rain100L/rainy/rain-{i:03}.png",
                1,
            ),
        },
    ),
    "rain100h, as PReNet has it": (
        "rain100h",
        {
            "train": ("RainTrainH/norain-{i}.png", "RainTrainH/rain-{i}.png", 1),
            "test": ("Rain100H/norain-{i:03}.png", "Rain100H/rain-{i:03}.png", 1),
        },
    ),
    "rain100h, as RCDNet has it": (
        "rain100h",
        {
            "train": (
                "train/small/norain/norain-{i}.png",
                "train/small/rain/norain-{i}x2.png",
                1,
            ),
            "test": ("test/small/norain/norain-{i}.png", "test/small/rain/norain-{i}x2.png", 1),
        },
    ),
    "rain200l, as published": (
        "rain200l",
        {
            "train": (
                "rain_data_train_Light/norain/norain-{i}.png",
                "rain_data_train_Light/rain/norain-{i}x2.png",
                1,
            ),
            "test": (
                "rain_data_test_Light/norain/norain-{i}.png",
                "rain_data_test_Light/rain/X2/norain-{i}x2.png",
                1,
            ),
        },
    ),
    "rain200h, as DRSformer has it": (
        "rain200h",
        {
            "train": ("train/norain/norain-{i}.png", "train/rain/X2/norain-{i}x2.png", 1),
            "test": ("test/norain/norain-{i}.png", "test/rain/X2/norain-{i}x2.png", 1),
        },
    ),
    "rain12, as published": ("rain12", {"test": ("{i:03}_GT.png", "{i:03}_in.png", 1)}),
    "rain12, as PReNet has it": (
        "rain12",
        {"test": ("test/test12/groundtruth/{i}.png", "test/test12/rainy/{i}.png", 1)},
    ),
    "rain800, side by side": (
        "rain800",
        {"train": ("training/{i}.jpg", "left", 1), "test": ("test_syn/{i}.jpg", "left", 1)},
    ),
    "rain800, two folders": (
        "rain800",
        {
            "train": ("train/norain/norain-{i:03}.png", "train/rain/rain-{i:03}.png", 1),
            "test": ("test/norain/norain-{i:03}.png", "test/rain/rain-{i:03}.png", 1),
        },
    ),
    "rain14000, as published": (
        "rain14000",
        {
            "train": ("training/ground_truth/{i}.jpg", "training/rainy_image/{i}_{v}.jpg", 14),
            "test": ("testing/ground_truth/{i}.jpg", "testing/rainy_image/{i}_{v}.jpg", 14),
        },
    ),
    "rain14000, as PReNet has it": (
        "rain14000",
        {
            "train": ("Rain12600/ground_truth/{i}.jpg", "Rain12600/rainy_image/{i}_{v}.jpg", 2),
            "test": ("Rain1400/ground_truth/{i}.jpg", "Rain1400/rainy_image/{i}_{v}.jpg", 2),
        },
    ),
    "spa, as published": (
        "spa",
        {
            "train": (
                "real_world_gt/274/274_{i}_3.png",
                "real_world/274/274-{v}/274-{v}_{i}_3.png",
                3,
            ),
            "test": ("real_test_1000/gt/{i:03}gt.png", "real_test_1000/rain/{i:03}.png", 1),
        },
    ),
    "rain13k": (
        "rain13k",
        {
            "train": ("train/Rain13K/target/{i}.jpg", "train/Rain13K/input/{i}.jpg", 1),
            "test100": ("test/Test100/target/{i}.png", "test/Test100/input/{i}.png", 1),
            "rain100h": ("test/Rain100H/target/{i}.png", "test/Rain100H/input/{i}.png", 1),
            "rain100l": ("test/Rain100L/target/{i}.png", "test/Rain100L/input/{i}.png", 1),
            "test2800": ("test/Test2800/target/{i}.jpg", "test/Test2800/input/{i}.jpg", 1),
            "test1200": ("test/Test1200/target/{i}.png", "test/Test1200/input/{i}.png", 1),
        },
    ),
}


def write_layout(root, layout, count=3):
    """Writes all splits of a layout; the backgrounds of split s are numbered from 100 s + 1."""
    for s, (clean, rainy, versions) in enumerate(layout.values()):
        numbers = range(100 * s + 1, 100 * s + 1 + count)
        if rainy in ("left", "right"):
            write_halves(root, clean, numbers, rainy)
        else:
            write_pairs(root, clean, rainy, numbers, versions=range(1, versions + 1))


def write_rain100l(root):
    """Writes six training and two test pairs; pair 5 of training has the background of pair 4."""
    for split, numbers in {"train": range(6), "test": (10, 11)}.items():
        for i in numbers:
            shown = 4 if i == 5 else i
            save(root / split / f"norain/{i}.png", background(shown))
            save(root / split / f"rain/{i}.png", rained(shown, 1 + (i == 5)))
    return root


def coded(version, scene, size=CODED_SIZE):
    """An image whose pixels encode their (row, column, 16 * version + scene)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([rows, columns, np.full(size, 16 * version + scene)], -1).astype(np.uint8)


def write_coded_scenes(folder):
    """Writes four scenes of three versions each as PNG files of several sizes."""
    found = []
    for i in range(4):
        size = (CODED_SIZE[0] + i, CODED_SIZE[1] - i)
        paths = [str(folder / f"{i}-{version}.png") for version in range(4)]
        for version, path in enumerate(paths):
            Image.fromarray(coded(version, i, size)).save(path)
        found.append(Scene(f"s{i}", paths[0], tuple(paths[1:])))
    return tuple(found)

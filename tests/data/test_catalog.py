"""Every benchmark, in each layout it is handed around in, and with its traps."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from manas_jax.data import catalog, finder, prepare, scenes
from manas_jax.errors import UserError

HEIGHT, WIDTH = 24, 32


def _background(number):
    """A picture with a structure of its own, uint8 (24, 32, 3)."""
    blocks = np.random.default_rng(number).integers(0, 200, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _rained(number, version):
    """The same with streaks: every `version`-th pair of columns is brighter by 55."""
    pixels = _background(number).copy()
    pixels[:, :: 2 + version] += 55
    return pixels


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    jpeg = {"quality": 97, "subsampling": 0}
    Image.fromarray(pixels).save(path, **(jpeg if path.suffix == ".jpg" else {}))


def _write(root, clean, rainy, numbers, *, versions=(1,), shown=lambda number: number):
    """Pairs in files named by templates with {i} and {v}; `shown` gives number's background."""
    for i in numbers:
        _save(root / clean.format(i=i), _background(shown(i)))
        for v in versions:
            _save(root / rainy.format(i=i, v=v), _rained(shown(i), v))


def _write_halves(root, name, numbers, side, *, version=1, shown=lambda number: number):
    """Side by side files, the clean half on `side`; that of other versions is not quite equal."""
    for i in numbers:
        halves = [_background(shown(i)) + np.uint8(version - 1), _rained(shown(i), version)]
        _save(root / name.format(i=i), np.hstack(halves if side == "left" else halves[::-1]))


# name of the layout: benchmark, {split: (clean template, rainy template, versions)}
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


def _generate(root, layout, count=3):
    """All splits of a layout; backgrounds are numbered on from split to split."""
    for s, (clean, rainy, versions) in enumerate(layout.values()):
        numbers = range(100 * s + 1, 100 * s + 1 + count)
        if rainy in ("left", "right"):
            _write_halves(root, clean, numbers, rainy)
        else:
            _write(root, clean, rainy, numbers, versions=range(1, versions + 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    name, splits = LAYOUTS[layout]
    _generate(tmp_path, splits)
    found, unused = finder.find(name, tmp_path)
    assert list(found) == list(splits) and unused == ()
    for s, (split, (_, _, versions)) in enumerate(splits.items()):
        assert len(found[split].scenes) == 3 and found[split].pairs == 3 * versions
        for i, scene in enumerate(found[split].scenes):
            assert scene.size == (HEIGHT, WIDTH) and len(scene.rainy) == versions
            background = 100 * s + 1 + i
            expected = [_background(background)]
            expected += [_rained(background, v) for v in range(1, versions + 1)]
            for picture, pixels in zip((scene.clean, *scene.rainy), expected, strict=True):
                error = np.abs(scenes.read(picture).astype(int) - pixels).mean()
                assert error < (3 if ".jpg" in str(picture) else 1e-9)
    training, test = finder.load(name, tmp_path)
    assert len(training) == (3 if "train" in splits else 0)
    names = [scene.name for scene in test]
    assert len(set(names)) == 3 * len([split for split in splits if split != "train"])


def test_layouts_of_all_benchmarks_are_tested():
    # Those with groups of their own have tests of their own, below.
    assert {name for name, _ in LAYOUTS.values()} | {"rain100lh", "rain1200", "real"} == set(
        catalog.BENCHMARKS
    )


@pytest.mark.parametrize("name", catalog.BENCHMARKS)
def test_entries_are_complete(name):
    entry = catalog.BENCHMARKS[name]
    assert all((entry.title, entry.backgrounds, entry.citation, entry.sources))
    assert entry.url.startswith("http")
    text = prepare.describe(name)
    for split, each in entry.splits.items():
        assert split in text and each.layouts
        assert all(f"{pairs:,}" in text for pairs in each.pairs)
    assert all(trap in text for trap in entry.traps)


# --- what shares a background ------------------------------------------------------------------


def test_flat_rain14000_is_split_by_number(tmp_path):
    _write(
        tmp_path, "ground_truth/{i}.jpg", "rainy_image/{i}_{v}.jpg", (2, 900, 901), versions=(3, 7)
    )
    found, _ = finder.find("rain14000", tmp_path)
    names = {split: [scene.name for scene in part.scenes] for split, part in found.items()}
    assert names == {"train": ["2", "900"], "test": ["901"]}


def _write_densities(root, *, odd=()):
    """Three densities of three numbers; `odd` files ("Heavy", 2) show another background."""
    for version, density in enumerate(("Light", "Medium", "Heavy"), start=1):
        _write_halves(
            root,
            f"DID-MDN-training/Rain_{density}/train2018new/{{i}}.jpg",
            range(3),
            "right",
            version=version,
            shown=lambda i, density=density: 50 + i if (density, i) in odd else i,
        )
    _write_halves(root, "DID-MDN-test/{i}.jpg", (80, 81), "right")


def test_rain1200_is_grouped_by_density(tmp_path):
    _write_densities(tmp_path)
    training, test = finder.load("rain1200", tmp_path)
    assert [len(scene.rainy) for scene in training] == [3, 3, 3]
    assert [len(scene.rainy) for scene in test] == [1, 1]
    for number, scene in enumerate(training):
        assert scene.photograph == str(number)
        files = [picture.path for picture in scene.rainy]
        assert all(f"Rain_{d}" in " ".join(files) for d in ("Light", "Medium", "Heavy"))
        assert all(path.endswith(f"/{number}.jpg") for path in files)
        assert np.abs(scenes.read(scene.clean).astype(int) - _background(number)).mean() < 3


def test_rain1200_of_one_number_but_another_background_stays_alone(tmp_path):
    _write_densities(tmp_path, odd=(("Heavy", 2),))
    training, _ = finder.load("rain1200", tmp_path)
    assert sorted(len(scene.rainy) for scene in training) == [1, 2, 3, 3]
    alone = next(scene for scene in training if len(scene.rainy) == 1)
    assert "Rain_Heavy" in str(alone.clean) and alone.photograph == "2"  # not split from its kin


def test_rain100l_and_rain100h_share_backgrounds(tmp_path):
    for version, kind in enumerate(("Rain100L", "Rain100H"), start=1):
        for part, numbers in {"train": range(1, 4), "test": range(10, 12)}.items():
            parent = f"{kind}/{part}"
            # The two sets number their pictures differently.
            _write(
                tmp_path,
                parent + "/norain/norain-{i}.png",
                parent + "/rain/rain-{i}.png",
                [number + 100 * version for number in numbers],
                versions=(version,),
                shown=lambda i, version=version: i - 100 * version,
            )
    inspection = prepare.inspect("rain100lh", tmp_path, partial=True)
    assert [len(scene.rainy) for scene in inspection.parts["train"].scenes] == [2, 2, 2]
    assert [len(scene.rainy) for scene in inspection.parts["test"].scenes] == [2, 2]
    for scene in inspection.parts["train"].scenes:
        assert {path.split("/")[-4] for path in scene.rainy} == {"Rain100L", "Rain100H"}
    assert inspection.leaks == ()


def test_rain13k_is_grouped_by_identical_clean_pictures(tmp_path):
    layout = LAYOUTS["rain13k"][1]
    _generate(tmp_path, layout)
    clean, rainy, _ = layout["train"]
    _write(tmp_path, clean, rainy, (7, 8), versions=(2,), shown=lambda _: 1)
    part = prepare.inspect("rain13k", tmp_path, partial=True).parts["train"]
    assert part.pairs == 5 and [len(scene.rainy) for scene in part.scenes] == [3, 1, 1]


def test_spa_groups_frames_and_keeps_videos_together(tmp_path):
    for video in ("001", "002"):
        _write(
            tmp_path,
            f"real_world_gt/{video}/{video}_{{i}}_0.png",
            f"real_world/{video}/{video}-{{v}}/{video}-{{v}}_{{i}}_0.png",
            (0, 1),
            versions=(1, 2),
        )
    training, _ = finder.load("spa", tmp_path)
    assert [(scene.photograph, len(scene.rainy)) for scene in training] == [
        ("001", 2),
        ("001", 2),
        ("002", 2),
        ("002", 2),
    ]


def test_photographs_without_ground_truth(tmp_path):
    for i in range(3):
        _save(tmp_path / "street" / f"{i}.jpg", _rained(i, 1))
    inspection = prepare.inspect("real", tmp_path)
    part = inspection.parts["test"]
    assert [scene.name for scene in part.scenes] == ["street/0", "street/1", "street/2"]
    assert all(scene.clean is None and scene.size == (HEIGHT, WIDTH) for scene in part.scenes)


# --- traps -------------------------------------------------------------------------------------


def _small(monkeypatch, name, count=3):
    """Makes a benchmark want `count` pairs a split."""
    entry = catalog.BENCHMARKS[name]
    splits = {k: dataclasses.replace(v, pairs=(count,)) for k, v in entry.splits.items()}
    monkeypatch.setitem(catalog.BENCHMARKS, name, dataclasses.replace(entry, splits=splits))


PAIRED = [layout for layout, (_, s) in LAYOUTS.items() if all(v == 1 for *_, v in s.values())]


@pytest.mark.parametrize("layout", PAIRED)
def test_whole_and_clean_sets_pass(tmp_path, monkeypatch, layout):
    name, splits = LAYOUTS[layout]
    _small(monkeypatch, name)
    _generate(tmp_path, splits)
    inspection = prepare.inspect(name, tmp_path)
    assert inspection.missing == () and inspection.leaks == () and inspection.unused == ()
    assert all(part.rougher < 0.5 and not part.alike for part in inspection.parts.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_count(tmp_path, layout):
    name, splits = LAYOUTS[layout]
    _generate(tmp_path, splits)
    with pytest.raises(UserError) as caught:
        prepare.inspect(name, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "--partial" in message
    for split, (*_, versions) in splits.items():
        assert f"{split} has {3 * versions} pairs instead of" in message
    assert len(prepare.inspect(name, tmp_path, partial=True).missing) == len(splits)


@pytest.mark.parametrize(
    ("layout", "role"),
    [(layout, role) for layout in PAIRED if "side by side" not in layout for role in (0, 1)],
)
def test_a_missing_counterpart(tmp_path, layout, role):
    name, splits = LAYOUTS[layout]
    _generate(tmp_path, splits)
    split, s = ("train", 0) if "train" in splits else ("test", 0)
    lost = tmp_path / splits[split][role].format(i=100 * s + 2, v=1)
    lost.unlink()
    expected = "rainy without its clean" if role == 0 else "clean without a rainy"
    with pytest.raises(UserError, match=expected) as caught:
        prepare.inspect(name, tmp_path, partial=True)
    assert "\n" not in str(caught.value)
    remaining = tmp_path / splits[split][1 - role].format(i=100 * s + 2, v=1)
    assert str(remaining.relative_to(tmp_path)) in str(caught.value)


@pytest.mark.parametrize("layout", [p for p in PAIRED if "train" in LAYOUTS[p][1]])
def test_a_leak_planted_between_train_and_test(tmp_path, layout):
    name, splits = LAYOUTS[layout]
    _generate(tmp_path, splits)
    test = next(split for split in splits if split != "train")
    clean, rainy, _ = splits[test]
    # Background 2 is a training picture; here it is brighter, so no byte or pixel is the same.
    pixels = _background(2) + np.uint8(9)
    if rainy in ("left", "right"):
        _save(tmp_path / clean.format(i=150), np.hstack([pixels, _rained(2, 2)]))
    else:
        _save(tmp_path / clean.format(i=150), pixels)
        _save(tmp_path / rainy.format(i=150), _rained(2, 2))
    inspection = prepare.inspect(name, tmp_path, partial=True)
    assert len(inspection.leaks) == 1
    leak = inspection.leaks[0]
    assert (leak.split, "2" in leak.scene, "150" in leak.test_scene) == (test, True, True)
    assert f"{leak.scene} = {test} {leak.test_scene}" in prepare.summary(inspection)
    kept = inspection.splits(drop_leaks=True)
    assert leak.scene not in [scene.name for scene in kept["train"]] and len(kept["train"]) == 2
    assert len(inspection.splits(drop_leaks=False)["train"]) == 3


def test_copies_within_a_split_are_told(tmp_path):
    _generate(tmp_path, LAYOUTS["rain100l, folders"][1])
    _save(tmp_path / "train/norain/9.png", _background(1))  # identical: one scene
    _save(tmp_path / "train/rain/9.png", _rained(1, 2))
    _save(tmp_path / "train/norain/10.png", _background(2) + np.uint8(3))  # alike: told
    _save(tmp_path / "train/rain/10.png", _rained(2, 2))
    inspection = prepare.inspect("rain100l", tmp_path, partial=True)
    part = inspection.parts["train"]
    assert part.pairs == 5 and [len(s.rainy) for s in part.scenes] == [2, 1, 1, 1]
    assert [pair[:2] for pair in part.alike] == [("2", "10")]
    text = prepare.summary(inspection)
    assert "copies: 1 clean pictures of train" in text
    assert "1 scenes of train have several rainy versions, as 1 (2)" in text
    assert "look alike within train: 1, as 2 and 10" in text


def test_unequal_sizes(tmp_path):
    _generate(tmp_path, LAYOUTS["rain100l, folders"][1])
    _save(tmp_path / "train/rain/2.png", _rained(2, 1)[:-1])
    with pytest.raises(UserError, match=r"rain/2\.png: 23x32 .*norain/2\.png has 24x32"):
        prepare.inspect("rain100l", tmp_path, partial=True)


def test_an_odd_width_is_no_pair_of_halves(tmp_path):
    _generate(tmp_path, LAYOUTS["rain800, side by side"][1])
    _save(tmp_path / "training/2.jpg", np.zeros((24, 63, 3), np.uint8))
    with pytest.raises(UserError, match=r"training/2\.jpg: 63 pixels wide"):
        prepare.inspect("rain800", tmp_path, partial=True)


def test_swapped_halves_are_suspicious(tmp_path):
    _write_halves(tmp_path, "training/{i}.jpg", range(4), "right")  # the order of Rain1200
    inspection = prepare.inspect("rain800", tmp_path, partial=True)
    assert inspection.parts["train"].rougher == 1
    assert "swapped?" in prepare.summary(inspection)


def test_masks_beside_the_pairs_are_of_no_use(tmp_path):
    _generate(tmp_path, LAYOUTS["rain100l, as PReNet has it"][1])
    for kind in ("rainstreak", "rainregion"):
        _save(tmp_path / f"train/RainTrainL/{kind}-1.png", _rained(1, 1))
    inspection = prepare.inspect("rain100l", tmp_path, partial=True)
    assert len(inspection.unused) == 2 and inspection.parts["train"].pairs == 3
    assert "of no use: 2 pictures" in prepare.summary(inspection)


def test_the_duplicate_of_test2800(tmp_path):
    layout = LAYOUTS["rain13k"][1]
    _generate(tmp_path, layout)
    _save(tmp_path / "test/Test2800/input/926_10(1).jpg", _rained(1, 1))
    with pytest.raises(UserError, match=r"926_10\(1\)\.jpg: rainy without its clean"):
        prepare.inspect("rain13k", tmp_path, partial=True)


def test_one_name_twice(tmp_path):
    _generate(tmp_path, LAYOUTS["rain100l, folders"][1])
    _save(tmp_path / "train/norain/1.jpg", _background(1))
    with pytest.raises(UserError, match=r"1\.jpg and .*1\.png have one name"):
        finder.find("rain100l", tmp_path)


def test_mistakes_in_names(tmp_path):
    with pytest.raises(UserError, match="no benchmark 'rain1'; known are rain100l"):
        finder.find("rain1", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        finder.find("rain100l", tmp_path / "absent")
    _save(tmp_path / "elsewhere" / "1.png", _background(1))
    with pytest.raises(UserError, match=r"no files of Rain100L.* among 1 pictures"):
        finder.find("rain100l", tmp_path)

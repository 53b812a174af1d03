"""Every dataset of the catalog, in each layout in circulation."""

import numpy as np
import pytest
from fake_data import (
    HEIGHT,
    LAYOUTS,
    WIDTH,
    background,
    rained,
    save,
    write_halves,
    write_layout,
    write_pairs,
)

from manas_jax.data import catalog, finder
from manas_jax.data.scene import read
from manas_jax.errors import UserError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    name, splits = LAYOUTS[layout]
    write_layout(tmp_path, splits)
    found, unused = finder.find(name, tmp_path)
    assert list(found) == list(splits) and unused == ()
    for s, (split, (_, _, versions)) in enumerate(splits.items()):
        assert len(found[split].scenes) == 3 and found[split].pairs == 3 * versions
        for i, scene in enumerate(found[split].scenes):
            assert scene.size == (HEIGHT, WIDTH) and len(scene.rainy) == versions
            number = 100 * s + 1 + i
            expected = [background(number)]
            expected += [rained(number, v) for v in range(1, versions + 1)]
            for image, pixels in zip((scene.clean, *scene.rainy), expected, strict=True):
                error = np.abs(read(image).astype(int) - pixels).mean()
                assert error < (3 if ".jpg" in str(image) else 1e-9)
    training, test = finder.load(name, tmp_path)
    assert len(training) == (3 if "train" in splits else 0)
    names = [scene.name for scene in test]
    assert len(set(names)) == 3 * len([split for split in splits if split != "train"])


def test_layouts_of_all_datasets_are_tested():
    # Those with groups of their own have tests of their own, below.
    assert {name for name, _ in LAYOUTS.values()} | {"rain100lh", "rain1200", "real"} == set(
        catalog.DATASETS
    )


def test_flat_rain14000_is_split_by_number(tmp_path):
    write_pairs(
        tmp_path, "ground_truth/{i}.jpg", "rainy_image/{i}_{v}.jpg", (2, 900, 901), versions=(3, 7)
    )
    found, _ = finder.find("rain14000", tmp_path)
    names = {split: [scene.name for scene in part.scenes] for split, part in found.items()}
    assert names == {"train": ["2", "900"], "test": ["901"]}


def _write_densities(root, *, odd=()):
    """Three densities of three numbers; `odd` files ("Heavy", 2) show another background."""
    for version, density in enumerate(("Light", "Medium", "Heavy"), start=1):
        write_halves(
            root,
            f"DID-MDN-training/Rain_{density}/train2018new/{{i}}.jpg",
            range(3),
            "right",
            version=version,
            shown=lambda i, density=density: 50 + i if (density, i) in odd else i,
        )
    write_halves(root, "DID-MDN-test/{i}.jpg", (80, 81), "right")


def test_rain1200_is_grouped_by_density(tmp_path):
    _write_densities(tmp_path)
    training, test = finder.load("rain1200", tmp_path)
    assert [len(scene.rainy) for scene in training] == [3, 3, 3]
    assert [len(scene.rainy) for scene in test] == [1, 1]
    for number, scene in enumerate(training):
        assert scene.photograph == str(number)
        files = [image.path for image in scene.rainy]
        assert all(f"Rain_{d}" in " ".join(files) for d in ("Light", "Medium", "Heavy"))
        assert all(path.endswith(f"/{number}.jpg") for path in files)
        assert np.abs(read(scene.clean).astype(int) - background(number)).mean() < 3


def test_rain1200_files_of_another_background_are_not_grouped(tmp_path):
    _write_densities(tmp_path, odd=(("Heavy", 2),))
    training, _ = finder.load("rain1200", tmp_path)
    assert sorted(len(scene.rainy) for scene in training) == [1, 2, 3, 3]
    alone = next(scene for scene in training if len(scene.rainy) == 1)
    assert "Rain_Heavy" in str(alone.clean) and alone.photograph == "2"  # not split from its kin


def test_spa_groups_frames_and_keeps_videos_together(tmp_path):
    for video in ("001", "002"):
        write_pairs(
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


def test_duplicate_names_are_rejected(tmp_path):
    write_layout(tmp_path, LAYOUTS["rain100l, folders"][1])
    save(tmp_path / "train/norain/1.jpg", background(1))
    with pytest.raises(UserError, match=r"1\.jpg and .*1\.png have one name"):
        finder.find("rain100l", tmp_path)


def test_unknown_names_and_folders(tmp_path):
    with pytest.raises(UserError, match="unknown dataset 'rain1'; known are rain100l"):
        finder.find("rain1", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        finder.find("rain100l", tmp_path / "absent")
    save(tmp_path / "elsewhere" / "1.png", background(1))
    with pytest.raises(UserError, match=r"no files of Rain100L.* among 1 images"):
        finder.find("rain100l", tmp_path)

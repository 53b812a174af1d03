"""Pairing by file names, the same in training folders and in scoring."""

import pathlib

import numpy as np
import pytest
from fake_data import save

from manas_jax.data import folders
from manas_jax.data.pairing import pair, role_and_key
from manas_jax.errors import UserError


def _paired(restored, clean):
    pairs = pair([pathlib.Path(r) for r in restored], [pathlib.Path(c) for c in clean])
    return {r.name: c.name for r, c in pairs}


@pytest.mark.parametrize(
    ("restored", "clean"),
    [
        (["1.png", "2.jpg", "10.png"], ["1.png", "2.png", "10.png"]),
        (["rain-1.png", "rain-2.png"], ["norain-1.png", "norain-2.png"]),
        (["a_restored.png", "b_rain.png"], ["a_clean.png", "b_clean.png"]),
        (["a_restored.png", "b-derained.png"], ["a.png", "b.png"]),
        (["rain-1x2.png", "3x2.png"], ["norain-1.png", "3.png"]),
    ],
)
def test_pairing_by_name(restored, clean):
    assert _paired(restored, clean) == dict(zip(restored, clean, strict=True))


def test_pairing_many_versions_with_one_clean_image():
    assert _paired(["10_2.jpg", "1_2.jpg", "1_14.jpg"], ["1.jpg", "10.jpg"]) == {
        "1_2.jpg": "1.jpg", "1_14.jpg": "1.jpg", "10_2.jpg": "10.jpg"
    }  # fmt: skip


def test_pairing_prefers_the_same_stem():
    assert _paired(["7.png", "7_2.png"], ["7.png", "7_2.png"]) == {
        "7.png": "7.png", "7_2.png": "7_2.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("restored", "clean", "message"),
    [
        (["1.png", "2.png"], ["1.png"], "no clean image for .*2.png"),
        (["1.png"], ["1.png", "2.png", "3.png"], "no restored image for .*2.png, .*3.png"),
        (["1.png"], ["1.png", "1.jpg"], "fits several clean"),
        (["7.png"], ["7_2.png"], "no clean image"),
    ],
)
def test_pairing_rejects(restored, clean, message):
    with pytest.raises(UserError, match=message):
        _paired(restored, clean)


AMBIGUOUS = [
    (["a_1", "a_2", "a_1_1"], ["a", "a_1"]),
    (["a_1", "a_2", "a_1_1", "a_1_2"], ["a", "a_1"]),
    (["a_1", "a_2", "a_1_1", "a_1_1_1"], ["a", "a_1", "a_1_1"]),
]


@pytest.mark.parametrize(("rainy", "clean"), AMBIGUOUS)
def test_names_that_can_be_read_in_two_ways_are_refused(tmp_path, rainy, clean):
    pixels = np.zeros((4, 4, 3), np.uint8)
    for folder, stems in (("rainy", rainy), ("clean", clean)):
        for stem in stems:
            save(tmp_path / folder / f"{stem}.png", pixels)
    message = "a_1.png: of .*clean/a_1.png, or a version of .*clean/a.png[?] rename"
    with pytest.raises(UserError, match=message):
        folders.load(tmp_path)
    with pytest.raises(UserError, match=message):
        pair(*(sorted((tmp_path / folder).iterdir()) for folder in ("rainy", "clean")))


@pytest.mark.parametrize(
    ("rainy", "clean"),
    [
        (["a", "a_2"], ["a", "a_2"]),
        (["a_1", "a_2"], ["a", "a_1"]),
        (["a", "a_2", "a_1", "a_1_2"], ["a", "a_1"]),
        (["a_1", "a_2", "b_1"], ["a", "b"]),
        (["a_1_1", "a_1_2", "a_2_1"], ["a_1", "a_2"]),
    ],
)
def test_names_that_can_be_read_in_one_way_are_paired(rainy, clean):
    pairs = _paired([f"{stem}.png" for stem in rainy], [f"{stem}.png" for stem in clean])
    assert set(pairs.values()) == {f"{stem}.png" for stem in clean}
    same = set(rainy) & set(clean)
    assert {f"{stem}.png": f"{stem}.png" for stem in same}.items() <= pairs.items()


@pytest.mark.parametrize(
    ("stem", "role", "key"),
    [
        ("street", "", "street"),
        ("norain-1", "clean", "1"),
        ("no_rain_1", "clean", "1"),
        ("1_no_rain", "clean", "1"),
        ("a_ground_truth", "clean", "a"),
        ("Rain-1x2", "rainy", "1x2"),
        ("7_rain_2", "rainy", "7_2"),
        ("7_rain2", "rainy", "7_2"),
        ("a_restored", "restored", "a"),
        ("rain-1_restored", "rainy", "1"),
        ("train-1", "", "train-1"),
        ("rain", "", "rain"),
    ],
)
def test_role_and_key(stem, role, key):
    assert role_and_key(stem) == (role, key)


def test_digits_of_other_kinds_are_letters(tmp_path):
    for name in ("5²3", "٣", "10"):
        save(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    training, _ = folders.load(tmp_path)
    assert [scene.name for scene in training] == ["٣", "5²3", "10"]


@pytest.mark.parametrize("version", ["a-2", "a_2", "ax2", "a_rain_2", "rain-a-2", "a"])
def test_training_and_scoring_pair_alike(tmp_path, version):
    pixels = np.zeros((4, 4, 3), np.uint8)
    save(tmp_path / "clean" / "a.png", pixels)
    save(tmp_path / "rainy" / f"{version}.png", pixels)
    ((scene,), _) = folders.load(tmp_path)
    rainy, clean = pathlib.Path(scene.rainy[0]), pathlib.Path(scene.clean)
    assert pair([rainy], [clean]) == [(rainy, clean)]

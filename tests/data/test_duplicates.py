"""Which clean pictures show one background: by bytes, by pixels, to the eye."""

import numpy as np
from fake_data import background, save_flat, value, write_pair_folder
from PIL import Image

from manas_jax.data import duplicates, folders
from manas_jax.data.duplicates import merge_identical
from manas_jax.data.scene import Scene


def test_identical_clean_pictures_are_one_scene(tmp_path):
    write_pair_folder(tmp_path, count=4)
    save_flat(tmp_path / "norain/9.png", 11)  # the bytes of 1.png
    save_flat(tmp_path / "rain/9.png", 99)
    merged = merge_identical(folders.load(tmp_path)[0])
    assert [scene.name for scene in merged] == ["0", "1", "2", "3"]
    assert [value(picture) for picture in merged[1].rainy] == [111, 99]


def _print(pixels):
    return duplicates.fingerprint(np.ascontiguousarray(pixels, np.uint8))


def test_the_hash_knows_a_picture_again():
    large = Image.fromarray(background(1)).resize((320, 240), Image.Resampling.BICUBIC)
    original = np.asarray(large)
    changed = {
        "brighter": original + np.uint8(9),
        "noisy": original + np.random.default_rng(0).integers(0, 9, original.shape, np.uint8),
        "smaller": np.asarray(large.resize((200, 150), Image.Resampling.LANCZOS)),
    }
    for pixels in changed.values():
        (found,) = duplicates.alike([_print(original)], [_print(pixels)])
        assert found[:2] == (0, 0)
        assert _print(pixels).digest != _print(original).digest
    assert duplicates.alike([_print(original)], [_print(original[:, ::-1])]) == []


def test_strangers_are_not_alike_and_copies_are_found_over_chunks():
    prints = [_print(background(i)) for i in range(150)]
    assert duplicates.alike(prints) == []
    prints.append(prints[3])
    assert duplicates.alike(prints) == [(3, 150, 0)]
    assert duplicates.alike(prints[:2], prints[2:]) == []
    assert duplicates.alike([], prints) == []


def test_pictures_without_structure_are_told_apart_by_their_gray():
    black, white = (_print(np.full((20, 20, 3), value)) for value in (0, 255))
    assert duplicates.alike([black], [white]) == []
    assert duplicates.alike([black], [black]) == [(0, 0, 0)]


def test_merging_keeps_scenes_of_other_photographs_apart():
    marks = [_print(background(1)), _print(background(1) + np.uint8(1)), _print(background(2))]
    given = [Scene(str(i), f"{i}.png", (f"r{i}.png",), "one") for i in range(3)]
    near, prints = duplicates.merge(given, marks, near_identical=True)
    assert [scene.rainy for scene in near] == [("r0.png", "r1.png"), ("r2.png",)]
    assert prints == (marks[0], marks[2])
    assert duplicates.merge(given, marks)[0] == tuple(given)
    others = [Scene(str(i), f"{i}.png", (f"r{i}.png",), str(i)) for i in range(3)]
    assert duplicates.merge(others, marks, near_identical=True)[0] == tuple(others)

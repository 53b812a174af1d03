"""Duplicate backgrounds: by bytes, by pixels, by perceptual hash."""

import numpy as np
from fake_data import background, save_flat, value, write_pair_folder
from PIL import Image

from manas_jax.data import duplicates, folders
from manas_jax.data.duplicates import merge_identical
from manas_jax.data.scene import Scene


def test_merge_identical_joins_rainy_versions(tmp_path):
    write_pair_folder(tmp_path, count=4)
    save_flat(tmp_path / "norain/9.png", 11)  # the bytes of 1.png
    save_flat(tmp_path / "rain/9.png", 99)
    merged = merge_identical(folders.load(tmp_path)[0])
    assert [scene.name for scene in merged] == ["0", "1", "2", "3"]
    assert [value(image) for image in merged[1].rainy] == [111, 99]


def _fingerprint(pixels):
    return duplicates.fingerprint(np.ascontiguousarray(pixels, np.uint8))


def test_similar_images_are_found():
    large = Image.fromarray(background(1)).resize((320, 240), Image.Resampling.BICUBIC)
    original = np.asarray(large)
    changed = {
        "brighter": original + np.uint8(9),
        "noisy": original + np.random.default_rng(0).integers(0, 9, original.shape, np.uint8),
        "smaller": np.asarray(large.resize((200, 150), Image.Resampling.LANCZOS)),
    }
    for pixels in changed.values():
        (found,) = duplicates.find_similar([_fingerprint(original)], [_fingerprint(pixels)])
        assert found[:2] == (0, 0)
        assert _fingerprint(pixels).digest != _fingerprint(original).digest
    mirrored = _fingerprint(original[:, ::-1])
    assert duplicates.find_similar([_fingerprint(original)], [mirrored]) == []


def test_duplicates_are_found_across_chunks():
    fingerprints = [_fingerprint(background(i)) for i in range(150)]
    assert duplicates.find_similar(fingerprints) == []
    fingerprints.append(fingerprints[3])
    assert duplicates.find_similar(fingerprints) == [(3, 150, 0)]
    assert duplicates.find_similar(fingerprints[:2], fingerprints[2:]) == []
    assert duplicates.find_similar([], fingerprints) == []


def test_images_without_structure_differ_by_gray():
    black, white = (_fingerprint(np.full((20, 20, 3), value)) for value in (0, 255))
    assert duplicates.find_similar([black], [white]) == []
    assert duplicates.find_similar([black], [black]) == [(0, 0, 0)]


def test_merge_near_identical_within_a_photograph_only():
    fingerprints = [
        _fingerprint(background(1)),
        _fingerprint(background(1) + np.uint8(1)),
        _fingerprint(background(2)),
    ]
    given = [Scene(str(i), f"{i}.png", (f"r{i}.png",), "one") for i in range(3)]
    near, of_merged = duplicates.merge(given, fingerprints, near_identical=True)
    assert [scene.rainy for scene in near] == [("r0.png", "r1.png"), ("r2.png",)]
    assert of_merged == (fingerprints[0], fingerprints[2])
    assert duplicates.merge(given, fingerprints)[0] == tuple(given)
    others = [Scene(str(i), f"{i}.png", (f"r{i}.png",), str(i)) for i in range(3)]
    assert duplicates.merge(others, fingerprints, near_identical=True)[0] == tuple(others)

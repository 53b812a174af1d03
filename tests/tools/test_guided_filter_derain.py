"""The guided filter and what removes rain with it."""

import json

import numpy as np
import pytest
from PIL import Image

from manas_jax import metrics
from manas_jax.errors import UserError
from tools import guided_filter_derain
from tools.guided_filter_derain import Parameters, derain, guided_filter

PARAMETERS = Parameters("range", 4, 1e-2, 1e-4)


@pytest.fixture
def pairs(tmp_path):
    """Folders clean/ of smooth colours with an edge, and rainy/ with white streaks."""
    draw = np.random.default_rng(0)
    for kind in ("clean", "rainy"):
        (tmp_path / kind).mkdir()
    for i in range(3):
        clean = np.full((48, 64, 3), (140, 90, 40), np.uint8)
        clean[:, 30:] = (30, 60, 120)
        rainy = clean.astype(int)
        for column in draw.choice(64, 8, replace=False):
            rainy[5 * i : 5 * i + 30, column] += 60
        for kind, pixels in (("clean", clean), ("rainy", np.minimum(rainy, 255).astype(np.uint8))):
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    return tmp_path


@pytest.fixture
def result(tmp_path, monkeypatch):
    """Where the chosen parameters are read and written."""
    file = tmp_path / "guided_filter.json"
    file.write_text(json.dumps({"chosen": vars(PARAMETERS)}))
    monkeypatch.setattr(guided_filter_derain, "RESULT", file)
    return file


def _filtered_at(guidance, image, radius, eps, row, column):
    """He et al.'s equations 5, 6 and 8 at one pixel, window by window."""
    values = []
    for i in range(row - radius, row + radius + 1):
        for j in range(column - radius, column + radius + 1):
            window = np.s_[i - radius : i + radius + 1, j - radius : j + radius + 1]
            g, x = guidance[window], image[window]
            a = (np.mean(g * x) - g.mean() * x.mean()) / (g.var() + eps)
            values.append(a * guidance[row, column] + x.mean() - a * g.mean())
    return np.mean(values)


def test_filter_is_that_of_the_paper():
    draw = np.random.default_rng(0)
    guidance, image = draw.uniform(size=(20, 20, 1)), draw.uniform(size=(20, 20, 3))
    found = guided_filter(guidance, image, 2, 0.01)
    for channel in range(3):
        expected = _filtered_at(guidance[..., 0], image[..., channel], 2, 0.01, 9, 11)
        np.testing.assert_allclose(found[9, 11, channel], expected)


@pytest.mark.parametrize("guidance", ["range", "picture"])
def test_streaks_fade_and_clean_pictures_stay(pairs, guidance):
    parameters = Parameters(guidance, 4, 1e-1, 1e-4)
    clean = np.array(Image.open(pairs / "clean" / "0.png"))
    rainy = np.array(Image.open(pairs / "rainy" / "0.png"))
    restored = derain(rainy, parameters)
    assert restored.shape == clean.shape and restored.dtype == np.uint8
    assert metrics.psnr(restored, clean) > metrics.psnr(rainy, clean) + 3
    assert metrics.psnr(derain(clean, parameters), clean) > 35


@pytest.mark.usefixtures("result")
def test_folders(pairs):
    guided_filter_derain.main([str(pairs / "rainy"), str(pairs / "out"), "--radius", "2"])
    expected = derain(
        np.array(Image.open(pairs / "rainy" / "1.png")), Parameters("range", 2, 1e-2, 1e-4)
    )
    np.testing.assert_array_equal(Image.open(pairs / "out" / "1.png"), expected)
    assert len(list((pairs / "out").iterdir())) == 3


@pytest.mark.usefixtures("result")
def test_nothing_is_left_after_an_unreadable_picture(pairs):
    (pairs / "rainy" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"1\.png"):
        guided_filter_derain.main([str(pairs / "rainy"), str(pairs / "out")])
    assert not (pairs / "out").exists()


@pytest.mark.usefixtures("result")
def test_pictures_of_one_name_are_refused(pairs):
    Image.open(pairs / "rainy" / "1.png").save(pairs / "rainy" / "1.bmp")
    with pytest.raises(UserError, match="several pictures are called 1: rename them"):
        guided_filter_derain.main([str(pairs / "rainy"), str(pairs / "out")])
    assert not (pairs / "out").exists()


def test_tuning_takes_the_best_of_the_grid(pairs, result, monkeypatch):
    grid = {"guidance": ["range"], "radius": [1, 4], "eps": [1e-2], "refine_eps": [1e-4]}
    monkeypatch.setattr(guided_filter_derain, "GRID", grid)
    guided_filter_derain.main(["--tune", str(pairs / "clean"), str(pairs / "rainy")])
    found = json.loads(result.read_text())
    assert found["pictures"] == ["0.png", "1.png", "2.png"]
    best = max(found["grid"], key=lambda row: row["y_psnr"])
    assert found["chosen"] == {k: x for k, x in best.items() if k != "y_psnr"}
    assert best["y_psnr"] > found["rainy_y_psnr"]
    assert Parameters(**found["chosen"]).clear == 0.8


@pytest.mark.usefixtures("result")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["gone", "out"], "IN gone: no such folder"),
        (["rainy", "clean"], "clean: give a new folder"),
        (["rainy", "out", "--radius", "0"], "--radius 0: give at least 1"),
        (["rainy", "out", "--eps", "nan"], "--eps nan: give more than 0"),
        (["rainy", "out", "--refine_eps", "-1"], "--refine_eps -1.0: give more than 0"),
        (["rainy", "out", "--clear", "1.5"], "--clear 1.5: give a number from 0 to 1"),
        (["--tune", "clean", "gone"], "gone: no such folder"),
    ],
)
def test_mistakes_are_one_line(pairs, monkeypatch, changes, words):
    monkeypatch.chdir(pairs)
    with pytest.raises(UserError, match=words):
        guided_filter_derain.main(changes)
    assert not (pairs / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["in"], ["in", "out", "--tune", "a", "b"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit):
        guided_filter_derain.main(arguments)
    assert "give IN and OUT, or --tune" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        guided_filter_derain.main(["--tune", "a", "b", "--radius", "4"])
    assert "--tune finds the parameters: leave out --radius" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (9, 1, 3)])
def test_pictures_of_one_pixel_in_height_or_width(shape):
    grey = np.full(shape, 90, np.uint8)
    np.testing.assert_array_equal(derain(grey, PARAMETERS), grey)

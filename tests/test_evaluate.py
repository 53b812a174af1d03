"""Scoring: whole images of any size, validation crops, folders; each image once."""

import io
import json
import os
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from manas_jax import metrics
from manas_jax.data import images
from manas_jax.data.scene import Scene
from manas_jax.data.splits import Splits
from manas_jax.errors import Diverged, UserError
from manas_jax.evaluate import evaluate, main, restorer, score_folders, table
from manas_jax.models.network import Network
from manas_jax.models.variables import init_variables
from manas_jax.runtime import sharding, signals
from manas_jax.space import SearchSpace, random_genotype
from manas_jax.training import validation
from manas_jax.training.restore import load_trained

SPACE = SearchSpace((4, 8), (1, 2), (0, 0), stem_blocks=1, residual=True)


def _network():
    network = Network(SPACE, random_genotype(SPACE, 0))
    variables = init_variables(network, 0)
    draw = np.random.default_rng(0)
    variables["params"]["head_conv"]["kernel"] = draw.normal(0, 0.02, (1, 1, 4, 3)).astype("f4")
    return network, variables


def _scenes(tmp_path, sizes):
    draw = np.random.default_rng(0)
    scenes = []
    for i, size in enumerate(sizes):
        paths = []
        for kind in ("clean", "rainy"):
            paths.append(str(tmp_path / f"{kind}{i}.png"))
            Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
        scenes.append(Scene(str(i), paths[0], (paths[1],), size))
    return scenes


def _plain_scores(network, variables, scenes, side):
    """One image after the other, cropped by hand."""
    scores = []
    for scene in scenes:
        pair = []
        for path in (scene.rainy[0], scene.clean):
            picture = np.asarray(Image.open(path))
            top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
            pair.append(picture[top : top + side, left : left + side])
        rainy, clean = pair
        output = network.apply(variables, jnp.asarray(rainy[None], jnp.float32) / 255)[0]
        scores.append(metrics.score(metrics.to_uint8(np.asarray(output)), clean))
    return metrics.mean(scores)


DATA = types.SimpleNamespace(evaluation_level="medium", veil=0.0)


@pytest.mark.parametrize("count", [1, 5])
def test_validation_counts_each_image_once(tmp_path, monkeypatch, count):
    """Even if the batch size, here 2, does not divide their number."""
    monkeypatch.setattr(validation, "BATCH", 2)
    sizes = [(20, 24), (31, 17), (18, 40), (16, 16), (25, 25)][:count]
    scenes = _scenes(tmp_path, sizes)
    network, variables = _network()
    ours = validation.Validation(network, scenes, DATA, 16, sharding.make_mesh(1))
    expected = _plain_scores(network, variables, scenes, 16)
    np.testing.assert_allclose(ours(variables).y_psnr, expected.y_psnr, atol=1e-2)
    np.testing.assert_allclose(ours(variables).rgb_ssim, expected.rgb_ssim, atol=1e-3)
    assert ours.inputs.y_psnr != ours(variables).y_psnr


def test_validation_that_diverges_does_so_in_all_processes(tmp_path, monkeypatch):
    network, variables = _network()
    ours = validation.Validation(
        network, _scenes(tmp_path, [(20, 24)] * 2), DATA, 16, sharding.make_mesh(1)
    )
    gathered = []

    def gather(shard):
        gathered.append(shard)
        return [*shard, [float("nan")] * 4]  # as another process has it

    monkeypatch.setattr(validation.distributed, "gather", gather)
    with pytest.raises(Diverged, match="NaN of a validation picture"):
        ours(variables)
    with pytest.raises(Diverged, match="NaN of a validation picture"):
        ours(jax.tree.map(lambda x: x * np.nan, variables))
    assert len(gathered) == 2 and len(gathered[0]) == 2


def test_validation_crop_is_at_most_the_smallest_side(tmp_path):
    scenes = _scenes(tmp_path, [(20, 24), (31, 17)])
    network, variables = _network()
    ours = validation.Validation(network, scenes, DATA, 64, sharding.make_mesh(1))
    expected = _plain_scores(network, variables, scenes, 17)
    np.testing.assert_allclose(ours(variables).y_psnr, expected.y_psnr, atol=1e-2)


def test_restorer_keeps_size_and_type():
    network, variables = _network()
    restore = restorer(network, variables)
    picture = np.random.default_rng(0).integers(0, 256, (13, 10, 3), dtype=np.uint8)
    restored = restore(picture)
    assert (restored.shape, restored.dtype) == (picture.shape, np.uint8)
    plain = jax.jit(network.apply)(variables, picture[None].astype(np.float32) / 255)[0]
    wanted = np.clip(np.asarray(plain) * 255, 0, 255)
    assert np.max(np.abs(restored - wanted)) <= 0.51  # rounding to grey levels
    assert np.any(restored != picture)


def test_scores_of_a_run_are_those_of_its_images(finished, loop_config):
    """Every test image once, at its own size, with the averaged weights of the best checkpoint."""
    folder = finished / "evaluate"
    result = json.loads((folder / "scores.json").read_text())
    assert sorted(row["name"] for row in result["images"]) == ["0", "1", "2"]
    assert result["macs_at"] == [33, 21]
    network, variables, step = load_trained(loop_config(), finished)
    assert result["step"] == step
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    stored = sorted(p.name for p in (folder / "pictures").iterdir())
    assert len(stored) == 6  # two triples
    for row in result["images"]:
        if f"{row['name']}_clean.png" in stored:
            rainy, restored, clean = (
                images.read(str(folder / "pictures" / f"{row['name']}_{kind}.png"))
                for kind in ("rainy", "restored", "clean")
            )
            assert restored.shape == (33, 21, 3)
            assert row["output"]["y_psnr"] == metrics.score(restored, clean).y_psnr
            assert row["input"]["rgb_ssim"] == metrics.score(rainy, clean).rgb_ssim
            again = restorer(network, variables)(rainy)
            assert np.max(np.abs(again.astype(int) - restored)) <= 1
    for side in ("input", "output"):
        mean = np.mean([row[side]["y_psnr"] for row in result["images"]])
        np.testing.assert_allclose(result["mean"][side]["y_psnr"], mean)


def test_averaged_weights_of_the_best_step_are_scored(finished, loop_config):
    config = loop_config()
    _, variables, step = load_trained(config, finished)
    summary = json.loads((finished / "train" / "summary.json").read_text())
    assert step == summary["best_step"]
    config.train.ema = 0.0
    with pytest.raises(UserError, match="cannot read this checkpoint"):
        load_trained(config, finished)  # another structure
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(variables))


def test_evaluation_without_training(tmp_path, loop_config):
    with pytest.raises(UserError, match=r"genotype\.json is missing: run the search first"):
        evaluate(loop_config(), tmp_path)
    random_genotype(SPACE, 0).save(tmp_path / "genotype.json")
    with pytest.raises(UserError, match=r"checkpoints is missing: train first"):
        evaluate(loop_config(), tmp_path)


def test_pictures_of_names_that_differ_by_a_slash(tmp_path, make_config, monkeypatch):
    """Each has files of its own; an evaluation that stops leaves no scores of other pictures."""
    scenes = [
        Scene(name, np.full((16, 16, 3), value, np.uint8))
        for name, value in (("a/b", 50), ("a_b", 90))
    ]
    network, variables = _network()
    monkeypatch.setattr("manas_jax.evaluate.load_trained", lambda *_: (network, variables, 3))
    config, splits = make_config(), Splits((), (), (), tuple(scenes))
    evaluate(config, tmp_path, splits)
    folder = tmp_path / "evaluate"
    for stem, scene in (("a_b", scenes[0]), ("a_b-2", scenes[1])):
        stored = images.read(str(folder / "pictures" / f"{stem}_clean.png"))
        np.testing.assert_array_equal(stored, scene.clean)

    def stop():
        raise signals.Stopped(signals.PREEMPTED)

    monkeypatch.setattr(signals, "check", stop)
    with pytest.raises(signals.Stopped):
        evaluate(config, tmp_path, splits)
    assert [path.name for path in folder.rglob("*")] == ["pictures"]


# Folders


def _picture(seed, height=24, width=31):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _noisy(image, seed=1, strength=20):
    noise = np.random.default_rng(seed).normal(0, strength, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_table_lists_every_image_and_the_mean():
    scores = {"1.png": metrics.Scores(20, 0.5, 30, 0.7), "10.png": metrics.Scores(30, 0.7, 40, 0.9)}
    lines = table(scores).splitlines()
    assert lines[1].split() == ["1.png", "20.00", "0.5000", "30.00", "0.7000"]
    assert lines[-1].split() == ["mean", "of", "2", "25.00", "0.6000", "35.00", "0.8000"]
    assert len({len(line) for line in lines}) == 1


def _save(folder, pictures):
    folder.mkdir()
    for name, image in pictures.items():
        Image.fromarray(image).save(folder / name)
    return folder


def test_score_folders(tmp_path):
    clean = {f"norain-{i}.png": _picture(i) for i in (1, 2, 10)}
    restored = {name[2:]: _noisy(image) for name, image in clean.items()}
    folders = _save(tmp_path / "restored", restored), _save(tmp_path / "clean", clean)
    (folders[0] / "notes.txt").write_text("not a picture")
    scores = score_folders(*folders)
    assert list(scores) == ["rain-1.png", "rain-2.png", "rain-10.png"]
    assert scores["rain-2.png"] == metrics.score(restored["rain-2.png"], clean["norain-2.png"])


def test_score_folders_names_what_is_wrong(tmp_path):
    folder = _save(tmp_path / "a", {"1.png": _picture(0)})
    empty = _save(tmp_path / "empty", {})
    wide = _save(tmp_path / "wide", {"1.png": _picture(0, 24, 40)})
    with pytest.raises(UserError, match="nowhere is no folder"):
        score_folders(tmp_path / "nowhere", folder)
    with pytest.raises(UserError, match="empty holds no images"):
        score_folders(folder, empty)
    with pytest.raises(UserError, match=r"1\.png .*24x31 .*24x40"):
        score_folders(folder, wide)


def test_names_beyond_the_encoding_of_the_terminal_are_escaped(tmp_path, monkeypatch):
    folder = _save(tmp_path / "a", {"\u00fc\u96e8.png": _picture(0)})
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main([f"--restored={folder}", f"--clean={folder}"]) == 0
    sys.stdout.flush()
    assert b"\\xfc\\u96e8.png" in written.getvalue()


def test_scores_that_cannot_be_written_are_not_computed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("manas_jax.evaluate.score_folders", lambda *_: pytest.fail("scored"))
    assert main(["--restored=a", "--clean=b", f"--json={tmp_path / 'no' / 'scores.json'}"]) == 1
    assert "--json=" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a" * 300, "pipe"])
def test_folders_that_cannot_be_read_are_named(tmp_path, capsys, name):
    folder = _save(tmp_path / "a", {"1.png": _picture(0)})
    if name == "pipe":
        (tmp_path / "pipe").mkdir()
        os.mkfifo(tmp_path / "pipe" / "1.png")
    assert main([f"--restored={tmp_path / name}", f"--clean={folder}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/{name}") and error.count("\n") == 1


def test_scorer_command(tmp_path, capsys):
    for folder, noise in (("clean", 0), ("restored", 20)):
        (tmp_path / folder).mkdir()
        for seed in range(2):
            picture = _picture(seed)
            Image.fromarray(_noisy(picture, strength=noise) if noise else picture).save(
                tmp_path / folder / f"{seed}.png"
            )
    arguments = [f"--restored={tmp_path / 'restored'}", f"--clean={tmp_path / 'clean'}"]
    assert main([*arguments, f"--json={tmp_path / 'scores.json'}"]) == 0
    assert "mean of 2" in capsys.readouterr().out
    written = json.loads((tmp_path / "scores.json").read_text())
    expected = [metrics.score(_noisy(_picture(s)), _picture(s)).y_psnr for s in range(2)]
    assert [row["y_psnr"] for row in written["images"]] == pytest.approx(expected)

    assert main([*arguments, f"--json={tmp_path / 'no' / 'scores.json'}"]) == 1
    assert "--json" in capsys.readouterr().err
    before = (tmp_path / "clean" / "1.png").read_bytes()
    assert main([*arguments, f"--json={tmp_path / 'clean' / '1.png'}"]) == 1
    assert "is an input: give another file" in capsys.readouterr().err
    assert (tmp_path / "clean" / "1.png").read_bytes() == before
    (tmp_path / "clean" / "1.png").unlink()
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")

"""Scoring: whole pictures of any size, validation crops, each picture once."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from manas_jax import metrics
from manas_jax.data import images
from manas_jax.data.scene import Scene
from manas_jax.errors import UserError
from manas_jax.evaluate import evaluate, restorer
from manas_jax.models.network import Network, init_variables
from manas_jax.runtime import sharding
from manas_jax.space import SearchSpace, random_genotype
from manas_jax.training import evaluator
from manas_jax.training import run as train_run

SPACE = SearchSpace((4, 8), (1, 2), (0, 0), stem_blocks=1, residual=True)


def _network():
    network = Network(SPACE, random_genotype(SPACE, 0))
    variables = init_variables(network, 0)
    draw = np.random.default_rng(0)
    variables["params"]["head_conv"]["kernel"] = draw.normal(0, 0.02, (1, 1, 4, 3)).astype("f4")
    return network, variables


def _scenes(tmp_path, sizes):
    draw = np.random.default_rng(0)
    made = []
    for i, size in enumerate(sizes):
        paths = []
        for kind in ("clean", "rainy"):
            paths.append(str(tmp_path / f"{kind}{i}.png"))
            Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
        made.append(Scene(str(i), paths[0], (paths[1],), size))
    return made


def _plain_scores(network, variables, made, side):
    """One picture after the other, centre cut by hand."""
    scores = []
    for scene in made:
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
def test_validation_counts_each_picture_once(tmp_path, monkeypatch, count):
    """Also where the batch, here of 2, does not divide their number."""
    monkeypatch.setattr(evaluator, "BATCH", 2)
    sizes = [(20, 24), (31, 17), (18, 40), (16, 16), (25, 25)][:count]
    made = _scenes(tmp_path, sizes)
    network, variables = _network()
    ours = evaluator.Validation(network, made, DATA, 16, sharding.make_mesh(1))
    expected = _plain_scores(network, variables, made, 16)
    np.testing.assert_allclose(ours(variables).y_psnr, expected.y_psnr, atol=1e-2)
    np.testing.assert_allclose(ours(variables).rgb_ssim, expected.rgb_ssim, atol=1e-3)
    assert ours.inputs.y_psnr != ours(variables).y_psnr


def test_validation_takes_the_smallest_side_where_the_crop_is_larger(tmp_path):
    made = _scenes(tmp_path, [(20, 24), (31, 17)])
    network, variables = _network()
    ours = evaluator.Validation(network, made, DATA, 64, sharding.make_mesh(1))
    expected = _plain_scores(network, variables, made, 17)
    np.testing.assert_allclose(ours(variables).y_psnr, expected.y_psnr, atol=1e-2)


def test_restorer_keeps_size_and_type():
    network, variables = _network()
    restore = restorer(network)
    picture = np.random.default_rng(0).integers(0, 256, (13, 10, 3), dtype=np.uint8)
    restored = restore(variables, picture)
    assert (restored.shape, restored.dtype) == (picture.shape, np.uint8)
    plain = jax.jit(network.apply)(variables, picture[None].astype(np.float32) / 255)[0]
    wanted = np.clip(np.asarray(plain) * 255, 0, 255)
    assert np.max(np.abs(restored - wanted)) <= 0.51  # half a grey of rounding
    assert np.any(restored != picture)


def test_scores_of_a_run_can_be_made_again_from_its_pictures(finished, loop_config):
    """Every test picture once, at its own size, by the best checkpoint's averaged weights."""
    folder = finished / "evaluate"
    result = json.loads((folder / "scores.json").read_text())
    assert sorted(row["name"] for row in result["images"]) == ["0", "1", "2"]
    assert result["macs_at"] == [33, 21]
    network, variables, step = train_run.load(loop_config(), finished)
    assert result["step"] == step
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    kept = sorted(p.name for p in (folder / "pictures").iterdir())
    assert len(kept) == 6  # two triples
    for row in result["images"]:
        if f"{row['name']}_clean.png" in kept:
            rainy, restored, clean = (
                images.read(str(folder / "pictures" / f"{row['name']}_{kind}.png"))
                for kind in ("rainy", "restored", "clean")
            )
            assert restored.shape == (33, 21, 3)
            assert row["output"]["y_psnr"] == metrics.score(restored, clean).y_psnr
            assert row["input"]["rgb_ssim"] == metrics.score(rainy, clean).rgb_ssim
            again = restorer(network)(variables, rainy)
            assert np.max(np.abs(again.astype(int) - restored)) <= 1
    for side in ("input", "output"):
        mean = np.mean([row[side]["y_psnr"] for row in result["images"]])
        np.testing.assert_allclose(result["mean"][side]["y_psnr"], mean)


def test_averaged_weights_are_scored_and_the_best_step(finished, loop_config):
    config = loop_config()
    _, variables, step = train_run.load(config, finished)
    summary = json.loads((finished / "train" / "summary.json").read_text())
    assert step == summary["best_step"]
    config.train.ema = 0.0
    with pytest.raises(UserError, match="cannot read this checkpoint"):
        train_run.load(config, finished)  # another structure
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(variables))


def test_evaluating_what_was_never_trained(tmp_path, loop_config):
    with pytest.raises(UserError, match=r"genotype\.json is missing: run the search first"):
        evaluate(loop_config(), tmp_path)
    random_genotype(SPACE, 0).save(tmp_path / "genotype.json")
    with pytest.raises(UserError, match=r"checkpoints is missing: train first"):
        evaluate(loop_config(), tmp_path)

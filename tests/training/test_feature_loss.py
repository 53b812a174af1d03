"""The feature loss: value and gradient, and a training with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax import main
from manas_jax.config import LossWeights
from manas_jax.errors import UserError
from manas_jax.models.unet import UNet, param_shapes
from manas_jax.models.variables import init_variables
from manas_jax.report import reader
from manas_jax.training import build, feature_loss, losses, run
from manas_jax.training.state import init_train
from manas_jax.workdir.unet_file import save_unet
from manas_jax.workdir.weights import load_weights

NETWORK = UNet(2, (8, 16))


@pytest.fixture(scope="module")
def params():
    """Of `NETWORK`, random."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: draw.normal(0, 0.3, x.shape).astype(np.float32), param_shapes(NETWORK)
    )


@pytest.fixture(scope="module")
def unet_file(params, tmp_path_factory):
    file = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    save_unet(file, NETWORK, params)
    return file


def _images(versions=2, side=12, dtype=np.float32):
    draw = np.random.default_rng(1)
    outputs = draw.uniform(0, 1, (2, versions, side, side, 3)).astype(dtype)
    return outputs, draw.uniform(0, 1, (2, side, side, 3)).astype(dtype)


def _plain(params, outputs, clean):
    """Image by image."""

    def vectors(image):
        for scale in NETWORK.apply({"params": params}, image[None], method="encode"):
            scale = np.asarray(scale[0], np.float64)
            yield scale / np.sqrt(np.sum(scale**2, axis=-1, keepdims=True) + 1e-6)

    def distance(output, target):
        pairs = zip(vectors(output), vectors(target), strict=True)
        return np.mean([np.mean(np.sum((a - b) ** 2, axis=-1)) for a, b in pairs])

    scenes = zip(outputs, clean, strict=True)
    return np.mean([sum(distance(output, target) for output in os) for os, target in scenes])


def test_value_is_that_of_the_formula(params):
    outputs, clean = _images()
    term = jax.jit(feature_loss.feature_fn(NETWORK, params))
    np.testing.assert_allclose(term(outputs, clean), _plain(params, outputs, clean), rtol=1e-5)
    assert term(np.stack([clean] * 3, axis=1), clean) == 0


def test_encoder_gives_the_scales_that_are_decoded(params):
    scales = NETWORK.apply({"params": params}, np.zeros((1, 12, 16, 3)), method="encode")
    assert [scale.shape for scale in scales] == [(1, 6, 8, 8), (1, 3, 4, 16)]


def test_gradient_is_that_of_central_differences(params, float64):
    params = jax.tree.map(lambda x: x.astype(np.float64), params)
    outputs, clean = _images(versions=1, dtype=np.float64)
    term = jax.jit(feature_loss.feature_fn(NETWORK, params))
    slope = jax.jit(jax.grad(term))(outputs, clean)
    draw, eps = np.random.default_rng(2), 1e-7
    for _ in range(4):
        direction = draw.standard_normal(outputs.shape)
        up, down = (term(outputs + sign * eps * direction, clean) for sign in (1, -1))
        np.testing.assert_allclose((up - down) / (2 * eps), np.sum(slope * direction), rtol=1e-4)


def test_gradient_is_finite_where_all_features_are_zero(params):
    dead = jax.tree.map(np.zeros_like, params)
    outputs, clean = _images()
    slope = jax.jit(jax.grad(feature_loss.feature_fn(NETWORK, dead)))(outputs, clean)
    assert np.isfinite(slope).all()


def test_outputs_in_bfloat16_are_compared_in_float32(params):
    outputs, clean = _images()
    term = jax.jit(feature_loss.feature_fn(NETWORK, params))
    found = term(jnp.asarray(outputs, jnp.bfloat16), clean)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, term(outputs, clean), rtol=0.05)


def test_term_is_weighted_and_logged():
    outputs, clean = _images()
    weights, step = LossWeights(feature=0.5), jnp.zeros((), int)
    without, plain = losses.scene_loss(outputs, clean, step, weights, 0)
    loss, metrics = losses.scene_loss(outputs, clean, step, weights, 0, lambda o, c: jnp.mean(o))
    np.testing.assert_allclose(loss, without + 0.5 * outputs.mean(), rtol=1e-6)
    assert metrics.keys() - plain.keys() == {"feature"} and metrics["restoration"] == loss


def _lowered(config, network, make_batch):
    """The program of a training step as text."""
    step = run.make_step(config, network)
    optimizer = build.train_optimizer(config.train)
    state = jax.eval_shape(lambda: init_train(init_variables(network, 0), optimizer, ema=False))
    return step.weight_step.lower(state, make_batch(side=16), False).as_text()


def test_step_without_the_term_is_what_it_was(
    make_config, make_batch, small, unet_file, monkeypatch
):
    network = build.network(make_config(), small[0])
    off = _lowered(make_config(), network, make_batch)
    changes = {"objectives__feature": 0.5, "train__feature_network": str(unet_file)}
    on = _lowered(make_config(**changes), network, make_batch)
    monkeypatch.delattr(feature_loss, "feature_fn")  # not called
    assert _lowered(make_config(objectives__feature=0.0), network, make_batch) == off != on


def test_training_with_the_term(tmp_path, loop_config, weights, unet_file):
    config = loop_config(
        stage="train",
        train__inherit=False,
        train__weights=str(weights),
        train__steps=2,
        train__scenes=2,
        train__accumulate=2,
        train__ema=0.0,
        log_every=1,
        objectives__feature=0.5,
        train__feature_network=str(unet_file),
    )
    main.run(config, tmp_path)
    terms = reader.read_events(tmp_path / "train")
    assert (terms["loss/feature"][1] > 0).all()
    assert (terms["loss/restoration"][1] > 0.5 * terms["loss/feature"][1]).all()
    before, after = (load_weights(file)[0] for file in (weights, tmp_path / "weights.safetensors"))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["params"], after["params"])
    assert any(jax.tree.leaves(moved))
    assert json.loads((tmp_path / "inputs.json").read_text())["files"]["train.feature_network"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_network": ""}, r"objectives\.feature = 0\.5: give train\.feature_network=FILE"),
        ({"weight": 0.0}, r"safetensors': give a weight, objectives\.feature=WEIGHT"),
        ({"weight": -1.0}, r"objectives\.feature = -1\.0: give 0 or more"),
        ({"weight": float("nan")}, r"objectives\.feature = nan: give a finite number"),
        ({"feature_network": "gone.safetensors"}, r"gone\.safetensors: cannot read"),
        ({"feature_network": "weights"}, r"small\.safetensors: not a U-Net of this version"),
        ({"stage": "search"}, r"the search has no feature loss"),
        ({"stage": "all"}, r"the search has no feature loss"),
    ],
)
def test_mistakes_are_one_line(tmp_path, loop_config, weights, unet_file, changes, words):
    file = changes.get("feature_network", str(unet_file))
    config = loop_config(
        stage=changes.get("stage", "train"),
        train__inherit=False,
        train__weights="" if "stage" in changes else str(weights),
        train__feature_network=str(weights) if file == "weights" else file,
        objectives__feature=changes.get("weight", 0.5),
    )
    with pytest.raises(UserError, match=words) as error:
        main.run(config, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

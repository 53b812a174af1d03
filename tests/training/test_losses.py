"""Each loss term off, on and alone, by its formula; values and gradients."""

import collections
import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax import cost
from manas_jax.config import LossWeights
from manas_jax.models.network import Network, init_architecture
from manas_jax.models.variables import init_variables
from manas_jax.space import ALL_COLUMNS, COLUMNS, SearchSpace, assemble
from manas_jax.training import losses

RESTORATION = ("mse", "charbonnier", "ssim", "tv", "internal")
ARCHITECTURE = ("entropy_columns", "entropy_attention", "complexity")
OFF = LossWeights(**dict.fromkeys(RESTORATION + ARCHITECTURE, 0.0))
SPACE = SearchSpace((4, 8), (1, 2), (1, 1), stem_blocks=1)


def _images(versions, scenes=2, height=13, width=11, seed=0):
    draw = np.random.default_rng(seed)
    outputs = draw.uniform(0, 1, (scenes, versions, height, width, 3)).astype(np.float32)
    return outputs, draw.uniform(0, 1, (scenes, height, width, 3)).astype(np.float32)


def _plain_mse(outputs, clean):
    return np.mean(
        [sum(np.mean((o - t) ** 2) for o in os) for os, t in zip(outputs, clean, strict=True)]
    )


def _plain_charbonnier(outputs, clean):
    return np.mean(
        [
            sum(np.mean(np.sqrt((o - t) ** 2 + 0.001**2)) for o in os)
            for os, t in zip(outputs, clean, strict=True)
        ]
    )


def _plain_ssim_loss(outputs, clean):
    """11x11 windows one by one, zero padded, float64."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2

    def blur(x):
        padded = np.pad(x, ((5, 5), (5, 5), (0, 0)))
        blurred = np.zeros_like(x)
        for i, j in np.ndindex(11, 11):
            blurred += window[i, j] * padded[i : i + x.shape[0], j : j + x.shape[1]]
        return blurred

    def ssim(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        return np.mean(
            (2 * mean_a * mean_b + 1e-4)
            * (2 * covariance + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )

    return np.mean([sum(1 - ssim(o, t) for o in os) for os, t in zip(outputs, clean, strict=True)])


def _plain_tv(outputs, clean):
    def scene(os):
        down = np.mean((os[:, 1:] - os[:, :-1]) ** 2)
        across = np.mean((os[:, :, 1:] - os[:, :, :-1]) ** 2)
        return 2 * (down + across)

    return np.mean([scene(os) for os in outputs])


def _plain_internal(outputs, clean):
    return np.mean(
        [sum(np.mean((a - b) ** 2) for a, b in itertools.combinations(os, 2)) for os in outputs]
    )


PLAIN = {
    "mse": _plain_mse,
    "charbonnier": _plain_charbonnier,
    "ssim": _plain_ssim_loss,
    "tv": _plain_tv,
    "internal": _plain_internal,
}


@pytest.mark.parametrize("versions", [1, 2, 3, 5])
@pytest.mark.parametrize("name", RESTORATION)
def test_term_is_its_plain_formula(name, versions):
    outputs, clean = _images(versions)
    _, metrics = losses.restoration_loss(outputs, clean, LossWeights())
    np.testing.assert_allclose(metrics[name], PLAIN[name](outputs, clean), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("versions", [1, 2, 3, 5])
def test_internal_gradient_is_that_of_the_pairs(versions):
    outputs, _ = _images(versions)
    gradient = jax.grad(lambda o: losses.internal(o).sum())(outputs)
    pixels = outputs[0, 0].size
    plain = [
        [sum(2 * (o - other) / pixels for other in os) for o in os] for os in outputs
    ]  # d/do_k of the sum over pairs
    np.testing.assert_allclose(gradient, np.array(plain), atol=1e-7)
    if versions == 1:
        assert not np.any(gradient)


@pytest.mark.parametrize("name", RESTORATION)
def test_restoration_term_off_on_and_alone(name, float64):
    """The gradient is the weighted sum of the terms' own gradients, none of one that is off."""
    outputs, clean = (x.astype(np.float64) for x in _images(3))

    def gradient(weights, scale=1.0):
        slope = jax.jit(jax.grad(lambda o: losses.restoration_loss(o, clean, weights, scale)[0]))
        return slope(outputs)

    alone = dataclasses.replace(OFF, **{name: 1.0})
    own = jax.jit(jax.grad(lambda o: losses.restoration_loss(o, clean, alone)[1][name]))(outputs)
    assert np.abs(own).max() > 0
    np.testing.assert_allclose(gradient(alone), own, atol=1e-9)
    np.testing.assert_allclose(
        gradient(dataclasses.replace(OFF, **{name: 2.5})), 2.5 * own, atol=1e-7
    )
    every = LossWeights(charbonnier=0.5, tv=0.1)
    without = dataclasses.replace(every, **{name: 0.0})
    np.testing.assert_allclose(
        gradient(every) - gradient(without), getattr(every, name) * own, atol=1e-7
    )
    if name == "internal":  # not switched on yet
        np.testing.assert_array_equal(gradient(every, 0.0), gradient(without))


def test_all_off_is_zero():
    outputs, clean = _images(2)
    loss, slope = jax.value_and_grad(lambda o: losses.restoration_loss(o, clean, OFF)[0])(outputs)
    assert loss == 0
    assert not np.any(slope)


def test_perfect_outputs_cost_only_variation():
    _, clean = _images(1)
    outputs = np.repeat(clean[:, None], 3, axis=1)
    _, metrics = losses.restoration_loss(outputs, clean, LossWeights())
    for name in ("mse", "ssim", "internal"):
        np.testing.assert_allclose(metrics[name], 0, atol=1e-6)
    assert metrics["tv"] > 0


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_architecture_term_off_on_and_alone(name):
    logits = init_architecture(SPACE, 0, scale=1.0)
    model = losses.ComplexityModel(SPACE, 16, 16)

    def gradient(weights):
        return jax.jit(jax.grad(lambda a: losses.architecture_loss(a, weights, model)[0]))(logits)

    alone = gradient(dataclasses.replace(OFF, **{name: 3.0}))
    own = jax.jit(jax.grad(lambda a: losses.architecture_loss(a, OFF, model)[1][name]))(logits)
    jax.tree.map(lambda a, o: np.testing.assert_allclose(a, 3 * o, atol=1e-7), alone, own)
    touched = {key for key, slope in own.items() if np.any(slope)}
    expected = {"entropy_columns": {"columns"}, "entropy_attention": {"attention"}}
    assert touched == expected.get(name, {"columns", "attention"})
    assert not any(np.any(x) for x in jax.tree.leaves(gradient(OFF)))
    every = LossWeights()
    rest = gradient(dataclasses.replace(every, **{name: 0.0}))
    jax.tree.map(
        lambda e, r, o: np.testing.assert_allclose(e - r, getattr(every, name) * o, atol=1e-7),
        gradient(every), rest, own,
    )  # fmt: skip


def _plain_entropy(logits):
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return np.mean(-p * np.log10(p) - (1 - p) * np.log10(1 - p))


@pytest.mark.parametrize("shape", [(5, 2), (2, 3, 9)])
def test_entropy_is_its_formula(shape):
    logits = np.random.default_rng(0).normal(0, 2, shape)
    ours = losses.binary_entropy(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(ours, _plain_entropy(logits), rtol=1e-5)


@pytest.mark.parametrize("choices", [2, 9])
@pytest.mark.parametrize("gap", [18.0, 100.0, 1e4])
def test_entropy_of_saturated_logits_is_finite(gap, choices):
    logits = jnp.zeros((3, choices)).at[:, 1].set(gap)
    value, slope = jax.jit(jax.value_and_grad(losses.binary_entropy))(logits)
    assert np.isfinite(value)
    assert 0 <= value < 1e-5
    assert np.all(np.isfinite(slope))


def test_entropy_pushes_towards_one_choice():
    logits = jnp.array([[0.3, 0.0, -0.2]])
    slope = jax.jit(jax.grad(losses.binary_entropy))
    for _ in range(50):
        logits -= 5 * slope(logits)
    assert jax.nn.softmax(logits)[0, 0] > 0.9


def test_entropy_of_nothing_to_choose():
    assert losses.binary_entropy(jnp.zeros((4, 1))) == 0


@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_complexity_is_the_expected_cost(unit):
    """Against the plain double sum over choices; one-hot logits give that genotype's share."""
    model = losses.ComplexityModel(SPACE, 24, 16)
    logits = jax.tree.map(np.asarray, init_architecture(SPACE, 0, scale=1.0))

    def costs():
        yield from (
            ("columns", (i,), [getattr(cost.column(SPACE, cell, c, 24, 16), unit) for c in COLUMNS])
            for i, cell in enumerate((0, 1))
        )
        for m, (_, branch) in enumerate(SPACE.modules):
            row = [getattr(cost.edge(SPACE, branch, c, 24, 16), unit) for c in SPACE.candidates]
            yield from (("attention", (m, e), row) for e in range(SPACE.edges))

    expected = most_expensive = 0.0
    for kind, index, row in costs():
        p = np.exp(logits[kind][index]) / np.exp(logits[kind][index]).sum()
        expected += np.dot(p, row)
        most_expensive += max(row)
    np.testing.assert_allclose(getattr(model, unit)(logits), expected / most_expensive, rtol=1e-5)

    pick = {k: np.full_like(v, -1e4) for k, v in logits.items()}
    for kind, index, row in costs():
        pick[kind][(*index, int(np.argmax(row)))] = 0.0
    np.testing.assert_allclose(getattr(model, unit)(pick), 1.0, rtol=1e-6)


@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_expected_cost_is_the_mean_over_all_genotypes(float64, unit):
    """Enumerated: every genotype's cost times its probability."""
    space = SearchSpace(
        (4, 8), (2,), (2,), 1, 1, ("none", "CBAM"), column_choices=ALL_COLUMNS, widths=(0.5, 1.0)
    )
    logits = jax.tree.map(jnp.float64, init_architecture(space, 0, scale=1.0))
    rows = [
        (kind, dict(zip(space.choices[kind], p, strict=True)))
        for kind, values in jax.tree.map(jax.nn.softmax, logits).items()
        for p in np.asarray(values).reshape(-1, values.shape[-1])
    ]
    mean = 0.0
    for chosen in itertools.product(*(row for _, row in rows)):
        picks = collections.defaultdict(list)
        for (kind, _), choice in zip(rows, chosen, strict=True):
            picks[kind].append(choice)
        probability = math.prod(row[choice] for (_, row), choice in zip(rows, chosen, strict=True))
        mean += probability * getattr(cost.derived(assemble(space, picks), 16, 24), unit)
    expected = losses.expected_cost(space, cost.Budget(0, unit, 16, 24), logits)
    np.testing.assert_allclose(expected, mean, rtol=1e-12)


def test_complexity_share_mixes_both_units():
    model = losses.ComplexityModel(SPACE, 24, 16)
    logits = init_architecture(SPACE, 0, scale=1.0)
    for share in (0.0, 0.25, 1.0):
        weights = dataclasses.replace(OFF, complexity=2.0, complexity_macs_share=share)
        loss, _ = losses.architecture_loss(logits, weights, model)
        wanted = share * model.macs(logits) + (1 - share) * model.parameters(logits)
        np.testing.assert_allclose(loss, 2 * wanted, rtol=1e-6)


def test_complexity_where_every_choice_is_free():
    space = SearchSpace((4,), (1,), (0,), candidates=("none", "skip_connect"))
    logits = init_architecture(space, 0)
    assert losses.ComplexityModel(space, 8, 8).macs(logits) == 0


@pytest.mark.parametrize("versions", [1, 3])
def test_scene_objective_of_a_network(space, make_batch, versions):
    """What the step differentiates: outputs regrouped by scene, internal from its step on."""
    network = Network(space)
    variables, architecture = init_variables(network, 0), init_architecture(space, 0)
    batch = make_batch(versions=versions)
    weights = LossWeights()
    objective = jax.jit(losses.scene_loss_fn(network, weights, internal_from=4))
    arguments = variables["params"], architecture, variables["batch_stats"]
    before, (stats, early) = objective(*arguments, 3, batch)
    after, (_, metrics) = objective(*arguments, 4, batch)
    outputs, _ = jax.jit(
        lambda: network.apply(
            variables,
            batch["rainy"].reshape(-1, 8, 8, 3),
            architecture,
            train=True,
            mutable="batch_stats",
        )
    )()
    outputs = np.asarray(outputs).reshape(2, versions, 8, 8, 3)
    plain = {name: formula(outputs, batch["clean"]) for name, formula in PLAIN.items()}
    for name, value in plain.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(early[name], value, rtol=1e-4, atol=1e-6)
    total = sum(getattr(weights, name) * value for name, value in plain.items())
    np.testing.assert_allclose(after, total, rtol=1e-4)
    np.testing.assert_allclose(before, total - plain["internal"], rtol=1e-4)
    assert metrics["restoration"] == after
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), stats, arguments[2])
    assert all(jax.tree.leaves(moved))

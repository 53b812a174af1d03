"""The network as a whole: sizes, types, initial values, statistics, options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import moved_variables

from manas_jax.models.network import Network, init_architecture
from manas_jax.models.variables import inherit, init_variables, variable_shapes
from manas_jax.space import SearchSpace, random_genotype
from manas_jax.workdir.weights import flatten

SIZES = [(1, 1), (5, 7), (33, 50)]
DERIVED = SearchSpace((4, 8), (1, 2), (1, 1), stem_blocks=1)


def _images(n=2, height=8, width=8, seed=0):
    draw = np.random.default_rng(seed)
    return jnp.asarray(draw.uniform(0, 1, (n, height, width, 3)), jnp.float32)


_made = functools.cache(moved_variables)


def _apply(network, images, train=False, variables=None):
    architecture = None if network.genotype else init_architecture(network.space, 0, scale=1.0)
    variables = _made(network) if variables is None else variables
    run = functools.partial(network.apply, train=train, mutable=["batch_stats"] if train else False)
    return jax.jit(run)(variables, images, architecture)


def _relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.std(b))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [1, 2])
def test_any_size_comes_back_as_it_is(size, patch):
    space = dataclasses.replace(DERIVED, patch=patch)
    images = _images(1, *size)
    output = _apply(Network(space, random_genotype(space, 0)), images)
    assert output.shape == images.shape
    assert np.all(np.isfinite(output))


def test_supernet_of_an_odd_size(space):
    assert _apply(Network(space), _images(1, 5, 7)).shape == (1, 5, 7, 3)


def test_supernet_needs_logits(space):
    network = Network(space)
    with pytest.raises(ValueError, match="logits"):
        network.apply(init_variables(network, 0), _images())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_groups(groups):
    space = SearchSpace((8, 16), (2,), (0,), stem_blocks=1, attention_groups=groups)
    genotype = random_genotype(space, 1)
    assert {len(e) for cell in genotype.attention for e in cell} == {groups * (groups + 1) // 2}
    network = Network(space, genotype)
    assert np.std(_apply(network, _images())) > 0
    supernet = Network(space)
    arguments = variable_shapes(supernet), _images(), init_architecture(space, 0)
    assert jax.eval_shape(supernet.apply, *arguments).shape == (2, 8, 8, 3)


def test_without_columns():
    space = SearchSpace((4, 8), (1, 2), (0, 0), stem_blocks=1, candidates=("SE",))
    assert init_architecture(space, 0)["columns"].shape == (0, 2)
    for network in (Network(space), Network(space, random_genotype(space, 0))):
        assert _apply(network, _images()).shape == (2, 8, 8, 3)


def test_residual_starts_as_the_identity():
    space = dataclasses.replace(DERIVED, residual=True)
    network = Network(space, random_genotype(space, 0))
    images = _images(1, 7, 9)
    fresh = init_variables(network, 0)
    np.testing.assert_array_equal(_apply(network, images, variables=fresh), images)
    plain = dataclasses.replace(space, residual=False)
    difference = _apply(Network(plain, random_genotype(plain, 0)), images, variables=_made(network))
    np.testing.assert_allclose(_apply(network, images), images + difference, atol=1e-5)


def test_init_variables_draws_as_init_does():
    """Leaf by leaf: constants equal, drawn ones of the same mean and spread."""
    space = SearchSpace((16, 32), (2,), (1,), stem_blocks=1, attention_groups=1)
    network = Network(space)
    ours = flatten(init_variables(network, 0))
    key = jax.random.key(0, impl="rbg")  # compiles in seconds where the default takes minutes
    init = jax.jit(network.init)
    theirs = flatten(init(key, jnp.zeros((1, 8, 8, 3)), init_architecture(space, 0)))
    assert ours.keys() == theirs.keys()
    drawn = 0
    for name, leaf in theirs.items():
        mine, leaf = np.asarray(ours[name]), np.asarray(leaf)
        assert (mine.shape, mine.dtype) == (leaf.shape, leaf.dtype)
        if name.rsplit("/", 1)[-1] in ("scale", "bias", "mean", "var"):
            np.testing.assert_array_equal(mine, leaf, err_msg=name)
        elif leaf.size >= 64:
            drawn += 1
            error = 5 / np.sqrt(leaf.size)  # five standard errors, of either deviation and mean
            assert abs(mine.std() / leaf.std() - 1) < error, name
            assert abs(mine.mean()) < error * leaf.std(), name
    assert drawn > 20


def test_init_variables_depends_on_the_seed(space):
    network = Network(space)
    first, again, other = (flatten(init_variables(network, seed)) for seed in (3, 3, 4))
    kernel = "params/stem_block0/layer1/conv/kernel"
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not np.array_equal(first[kernel], other[kernel])
    logits = [init_architecture(space, seed)["attention"] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.any(logits[0] != logits[2])


def test_statistics_move_in_training_alone():
    network = Network(DERIVED, random_genotype(DERIVED, 0))
    images = _images()
    output, updates = _apply(network, images, train=True)
    before, after = (flatten(t) for t in (_made(network)["batch_stats"], updates["batch_stats"]))
    assert before.keys() == after.keys()
    assert all(np.any(before[k] != after[k]) for k in before)
    assert _relative(_apply(network, images), output) > 1e-3  # running ones are used otherwise


def test_variables_are_float32_in_float64_as_well(float64):
    shapes = variable_shapes(Network(DERIVED, random_genotype(DERIVED, 4)))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_bfloat16_computes_but_does_not_keep(train):
    network = Network(DERIVED, random_genotype(DERIVED, 2))
    low = network.clone(ops=dataclasses.replace(network.ops, dtype=jnp.bfloat16))
    images = _images(2, 16, 16)
    assert {x.dtype for x in jax.tree.leaves(variable_shapes(low))} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda v: low.apply(v, images))(_made(network)))
    assert "bf16" in text
    assert not [line for line in text.splitlines() if "conv_general" in line and "f32[" in line]
    exact, ours = (_apply(n, images, train, _made(network)) for n in (network, low))
    if train:
        (exact, _), (ours, updates) = exact, ours
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    assert ours.dtype == jnp.float32
    assert 0 < _relative(ours, exact) < 0.5
    assert jnp.corrcoef(ours.ravel(), exact.ravel())[0, 1] > 0.99


def test_remat_changes_memory_not_results(space):
    images = _images()
    architecture = init_architecture(space, 0, scale=1.0)
    variables = _made(Network(space))

    def gradients(remat):
        network = Network(space, remat=remat)

        def loss(params, architecture):
            output, updates = network.apply(
                {**variables, "params": params},
                images, architecture, train=True, mutable=["batch_stats"],
            )  # fmt: skip
            return jnp.sum(jnp.sin(output)), updates

        grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return grad, jax.jit(grad)(variables["params"], architecture)

    plain, expected = gradients(False)
    remat, ours = gradients(True)
    shapes = variables["params"], architecture
    assert "remat" in str(jax.make_jaxpr(remat)(*shapes))
    assert "remat" not in str(jax.make_jaxpr(plain)(*shapes))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()) + 1e-5)


def test_inherited_weights_make_the_supernets_own_path():
    """A supernet whose logits pick one choice each computes what the derived network does."""
    space = SearchSpace((4, 8), (1, 2), (1, 1), stem_blocks=1, candidates=("SE", "CBAM", "none"))
    genotype = random_genotype(space, 1)
    supernet, derived = Network(space), Network(space, genotype)
    variables = _made(supernet)
    taken = inherit(variables, variable_shapes(derived))
    chosen = flatten(taken)
    assert chosen.keys() == flatten(variable_shapes(derived)).keys()
    assert all(np.array_equal(value, flatten(variables)[key]) for key, value in chosen.items())

    columns = [c for cell in genotype.columns for c in cell]
    modules = [edges for cell in genotype.attention for edges in cell]
    logits = {
        "columns": np.array([[1e4 * (c == k) for k in ("parallel", "fusion")] for c in columns]),
        "attention": np.array(
            [[[1e4 * (e == k) for k in space.candidates] for e in edges] for edges in modules]
        ),
    }
    logits = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), logits)
    images = _images()
    mixed = jax.jit(supernet.apply)(variables, images, logits)
    np.testing.assert_allclose(mixed, _apply(derived, images, variables=taken), atol=1e-4)


def test_inherit_says_what_does_not_fit():
    space = SearchSpace((4, 8), (1, 2), (1, 1), stem_blocks=1, candidates=("SE",))
    variables = init_variables(Network(space), 0)
    other = dataclasses.replace(space, candidates=("CBAM",))
    with pytest.raises(ValueError, match=r"no .*CBAM"):
        inherit(variables, variable_shapes(Network(other, random_genotype(other, 0))))
    wide = dataclasses.replace(space, channels=(8, 8))
    with pytest.raises(ValueError, match=r"in the supernet, .* here"):
        inherit(variables, variable_shapes(Network(wide, random_genotype(wide, 0))))

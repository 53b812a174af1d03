"""The forms that layers take for speed, against the plain ones, in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.models import layers


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def _draw(*shapes, seed=0):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=shape)) for shape in shapes]


def _assert_same(ours, plain, *args):
    """Values, gradients and derivatives of the gradients along the arguments."""

    def judged(function):
        def total(*args):
            return jnp.sum(jnp.sin(function(*args)))

        return jax.grad(total, argnums=tuple(range(len(args))))

    def all_of(function):
        """Compiled as one: operations one by one take several times as long."""
        return jax.jit(lambda *args: (function(*args), jax.jvp(judged(function), args, args)))

    (made, got), (expected, wanted) = (all_of(f)(*args) for f in (ours, plain))
    np.testing.assert_allclose(made, expected, atol=1e-12)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * max(1, np.abs(b).max()))


CONVOLUTIONS = {
    "few, 7x7": (7, 1, 2, 1),
    "few": (3, 1, 2, 1),
    "few, dilated": (3, 2, 2, 4),
    "narrow": (3, 1, 5, 8),
    "narrow, dilated": (3, 2, 8, 6),
    "wide": (3, 1, 9, 10),
    "wide, dilated": (3, 2, 12, 9),
    "many": (3, 1, 16, 18),
    "narrowing": (3, 1, 10, 3),
    "1x1": (1, 1, 3, 4),
    "1x1, narrowing": (1, 1, 6, 2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 24), (4, 12)], ids=str)
def test_forms_of_a_convolution(kind, size):
    side, dilation, inputs, outputs = CONVOLUTIONS[kind]
    x, kernel = _draw((2, *size, inputs), (side, side, inputs, outputs))

    def ours(x, kernel):
        return layers.same_convolution(x, kernel, dilation)

    def plain(x, kernel):
        return layers._plain_convolution(x, kernel, dilation)

    _assert_same(ours, plain, x, kernel)
    with layers.convolution_forms(layers.Forms.FORWARD):
        np.testing.assert_allclose(jax.jit(ours)(x, kernel), plain(x, kernel), atol=1e-11)


@pytest.mark.parametrize("channels", [(5, 7), (16, 16), (16, 20), (20, 40)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 5), (7, 12), (8, 8), (5, 3)], ids=str)
def test_minimal_convolution_is_the_convolution(channels, size):
    x, kernel = _draw((2, *size, channels[0]), (3, 3, *channels))
    wanted = layers._plain_convolution(x, kernel)
    got = jax.jit(layers.minimal_convolution)(x, kernel)
    np.testing.assert_allclose(got, wanted, atol=1e-11)


def test_pictures_multiply_less_where_many_channels_are_kept():
    def made(*channels):
        x, kernel = jnp.zeros((1, 8, 8, channels[0])), jnp.zeros((3, 3, *channels))
        with layers.convolution_forms(layers.Forms.FORWARD):
            return str(jax.make_jaxpr(lambda *a: layers.same_convolution(*a))(x, kernel))

    assert made(16, 16).count("conv_general_dilated[") == 6
    assert made(64, 64).count("conv_general_dilated[") == 6
    assert made(64, 16).count("conv_general_dilated[") == 1


@pytest.mark.parametrize("shape", [(2, 8, 6, 3, 5), (1, 2, 2, 9, 4), (1, 4, 6, 5, 1)], ids=str)
def test_halving_convolution(shape):
    *x_shape, outputs = shape
    x, kernel = _draw(tuple(x_shape), (3, 3, x_shape[-1], outputs))

    def plain(x, kernel):
        return layers._plain_convolution(x, kernel, stride=2)

    _assert_same(layers._halving_convolution, plain, x, kernel)


def test_convolutions_are_plain_where_asked():
    x, kernel = _draw((1, 8, 8, 2), (7, 7, 2, 1))

    def made():
        return str(jax.make_jaxpr(lambda *a: layers.same_convolution(*a))(x, kernel))

    assert "dot_general" in made()
    with layers.convolution_forms(layers.Forms.PLAIN):
        assert "dot_general" not in made()
    assert "dot_general" in made()


def test_split_is_that_of_the_array():
    (x,) = _draw((2, 3, 3, 6))

    def mixed(split):
        return lambda x: jnp.prod(jnp.stack(split(x)), axis=0)

    ours, plain = mixed(lambda x: layers.split(x, 2)), mixed(lambda x: jnp.split(x, 2, -1))
    _assert_same(ours, plain, x)


def test_batch_norm_is_that_of_its_definition():
    x, scale, bias = _draw((3, 4, 5, 6), (6,), (6,))

    def plain(x, scale, bias):
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + layers.BATCH_NORM_EPSILON) * scale + bias

    _assert_same(lambda *args: layers.batch_norm(*args)[0], plain, x, scale, bias)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_keeps_what_flax_keeps(train, affine):
    (x,) = _draw((3, 4, 5, 6))
    x = 3 * x + 1
    ours = layers.BatchNorm(affine=affine, momentum=0.8)
    theirs = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.8,
        epsilon=layers.BATCH_NORM_EPSILON,
        use_bias=affine,
        use_scale=affine,
    )
    variables = theirs.init(jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(
        ours.init(jax.random.key(0), x, True)
    )
    got = ours.apply(variables, x, train, mutable=["batch_stats"])
    wanted = theirs.apply(variables, x, mutable=["batch_stats"])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (8, 32), (5, 19)])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (7, 1)])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (16, 16), (3, 12)])
def test_wide_convolution_is_the_convolution(inputs, outputs, kernel, dilation, size):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, *size, inputs)), jnp.float32)
    weights = jnp.asarray(draw.normal(size=(kernel, kernel, inputs, outputs)), jnp.float32)
    wanted = jax.lax.conv_general_dilated(
        x,
        weights,
        window_strides=(1, 1),
        padding=[(dilation * (kernel // 2),) * 2] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    got = layers.wide_convolution(x, weights, dilation)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (8, 12), (13, 6)])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 2), (7, 1), (7, 2)])
def test_small_convolution_is_the_convolution(kernel, dilation, size):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(2, *size, 2)), jnp.float32)
    weights = jnp.asarray(draw.normal(size=(kernel, kernel, 2, 3)), jnp.float32)
    plain = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=[(dilation * (kernel // 2),) * 2] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    wanted, pull = jax.vjp(plain, x, weights)
    got, pull_small = jax.vjp(
        functools.partial(layers.small_convolution, dilation=dilation), x, weights
    )
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    for a, b in zip(pull_small(wanted), pull(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


SEPARABLE = {
    "few": (2, 1, 1),
    "narrow": (8, 8, 1),
    "narrow, dilated": (3, 5, 2),
    "wide": (12, 12, 1),
    "wide, dilated": (40, 9, 2),
}


@pytest.mark.parametrize("kind", SEPARABLE)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (3, 12)], ids=str)
def test_separable_convolution_is_two_convolutions(kind, size):
    inputs, outputs, dilation = SEPARABLE[kind]
    args = _draw((2, *size, inputs), (3, 3, 1, inputs), (1, 1, inputs, outputs))

    def ours(x, spatial, pointwise):
        return layers.separable_convolution(x, spatial, pointwise, dilation)

    def plain(x, spatial, pointwise):
        y = jax.lax.conv_general_dilated(
            x,
            spatial,
            window_strides=(1, 1),
            padding=[(dilation, dilation)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=inputs,
        )
        return jnp.einsum("nhwc,cd->nhwd", y, pointwise[0, 0])

    _assert_same(ours, plain, *args)
    for forms in (layers.Forms.PLAIN, layers.Forms.FORWARD):
        with layers.convolution_forms(forms):
            np.testing.assert_allclose(ours(*args), plain(*args), atol=1e-12)

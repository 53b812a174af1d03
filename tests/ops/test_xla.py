"""The reference kernels against their definitions, and the choice between implementations."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw

from manas_jax import ops
from manas_jax.ops import norm, xla
from manas_jax.ops.blocking import depth_to_space, space_to_depth

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(("side", "dilation"), [(1, 1), (3, 1), (3, 2), (7, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_is_its_definition(side, dilation, stride):
    x, kernel = draw((2, 6, 8, 3), (side, side, 3, 4))
    reach = dilation * (side // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    wanted = np.zeros((2, 6 // stride, 8 // stride, 4))
    for i, j, row, column in np.ndindex(6 // stride, 8 // stride, side, side):
        pixel = padded[:, stride * i + dilation * row, stride * j + dilation * column]
        wanted[:, i, j] += pixel @ kernel[row, column]
    np.testing.assert_allclose(xla.conv(x, kernel, stride, dilation), wanted, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_separable_conv_is_two_convolutions(dilation):
    x, depthwise, pointwise = draw((2, 5, 7, 3), (3, 3, 1, 3), (1, 1, 3, 4))
    y = jax.lax.conv_general_dilated(
        x,
        depthwise,
        window_strides=(1, 1),
        padding=[(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    wanted = jnp.einsum("nhwc,cd->nhwd", y, pointwise[0, 0])
    got = xla.separable_conv(x, depthwise, pointwise, dilation)
    np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize(("axis", "channels"), [(-1, 5), (-1, 17), ((1, 2), 5)], ids=str)
def test_reduce_max_has_the_gradient_of_max(axis, channels):
    """Ties included, forward and reverse."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 4, (2, 3, 4, channels)), float)
    t = jnp.asarray(rng.normal(size=x.shape))

    def ours(x):
        return jnp.sum(jnp.sin(xla.reduce_max(x, axis)))

    def reference(x):
        return jnp.sum(jnp.sin(x.max(axis)))

    assert ours(x) == reference(x)
    np.testing.assert_allclose(jax.grad(ours)(x), jax.grad(reference)(x), rtol=1e-12)
    second, wanted = (jax.jvp(jax.grad(f), (x,), (t,))[1] for f in (ours, reference))
    np.testing.assert_allclose(second, wanted, rtol=1e-10, atol=1e-12)


def test_batch_norm_has_the_gradient_of_its_definition():
    args = draw((3, 4, 5, 6), (6,), (6,))

    def reference(x, scale, bias):
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + norm.BATCH_NORM_EPSILON) * scale + bias

    def evaluate(function):
        grad = jax.grad(lambda *args: jnp.sum(jnp.sin(function(*args))), argnums=(0, 1, 2))
        return jax.jit(lambda *args: (function(*args), jax.jvp(grad, args, args)))(*args)

    ours, wanted = evaluate(lambda *args: norm.batch_norm(*args)[0]), evaluate(reference)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_equals_flax(train, affine):
    (x,) = draw((3, 4, 5, 6))
    x = 3 * x + 1
    ours = norm.BatchNorm(affine=affine, momentum=0.8)
    theirs = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.8,
        epsilon=norm.BATCH_NORM_EPSILON,
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


def test_space_to_depth_and_back():
    images = np.random.default_rng(0).random((2, 6, 8, 3))
    folded = space_to_depth(images, 2)
    assert folded.shape == (2, 3, 4, 12)
    np.testing.assert_array_equal(folded[0, 1, 2, :3], images[0, 2, 4])
    np.testing.assert_array_equal(folded[0, 1, 2, 9:], images[0, 3, 5])
    np.testing.assert_array_equal(depth_to_space(folded, 2), images)


def test_default_follows_the_backend(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops.default(jnp.bfloat16).name == "xla"
    assert ops.default(jnp.bfloat16).dtype == jnp.bfloat16
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert ops.default().name == "cpu_train"


def test_other_backends_do_not_import_the_kernels_for_cpu():
    script = (
        "import sys, jax\n"
        "jax.default_backend = lambda: 'tpu'\n"
        "from manas_jax import ops\n"
        "import manas_jax.models.network\n"
        "assert ops.default().name == 'xla'\n"
        "assert not [name for name in sys.modules if name.startswith('manas_jax.ops.cpu')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

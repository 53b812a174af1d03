"""The kernels for images on XLA:CPU against the reference, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw

from manas_jax.ops import XLA, cpu_inference
from manas_jax.ops.cpu_inference import CPU_INFERENCE

pytestmark = pytest.mark.usefixtures("float64")


CONVOLUTIONS = {  # side, stride, dilation, inputs, outputs
    "few, 7x7": (7, 1, 1, 2, 1),
    "narrow": (3, 1, 1, 5, 8),
    "narrow, dilated": (3, 1, 2, 8, 6),
    "many": (3, 1, 1, 16, 18),
    "many, dilated": (3, 1, 2, 20, 20),
    "narrowing": (3, 1, 1, 20, 3),
    "1x1": (1, 1, 1, 3, 4),
    "stride 2": (3, 2, 1, 3, 5),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 24)], ids=str)
def test_conv_equals_reference(kind, size):
    side, stride, dilation, inputs, outputs = CONVOLUTIONS[kind]
    x, kernel = draw((2, *size, inputs), (side, side, inputs, outputs))
    got, wanted = (
        jax.jit(ops.conv, static_argnums=(2, 3))(x, kernel, stride, dilation)
        for ops in (CPU_INFERENCE, XLA)
    )
    np.testing.assert_allclose(got, wanted, atol=1e-11)


@pytest.mark.parametrize("channels", [(5, 7), (16, 16), (20, 40)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 5), (7, 12), (8, 8), (5, 3)], ids=str)
def test_winograd_equals_reference(channels, size):
    x, kernel = draw((2, *size, channels[0]), (3, 3, *channels))
    got = jax.jit(cpu_inference.winograd_conv3x3)(x, kernel)
    np.testing.assert_allclose(got, XLA.conv(x, kernel, 1, 1), atol=1e-11)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA:CPU")
def test_barriers_reach_the_compiled_program():
    """XLA ignores the name of a pass that it does not have."""

    def twice(x):
        y = CPU_INFERENCE.materialize(x + 1)
        return y * 2, y * 3

    options = dict(CPU_INFERENCE.compiler_options)
    compiled = jax.jit(twice, compiler_options=options).lower(jnp.ones(1000)).compile()
    assert "opt-barrier" in compiled.as_text()

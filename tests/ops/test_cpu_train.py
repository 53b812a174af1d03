"""The kernels for gradients on XLA:CPU against the reference, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import draw

from manas_jax.ops import XLA, cpu_train, xla
from manas_jax.ops.cpu_train import CPU_TRAIN

pytestmark = pytest.mark.usefixtures("float64")


def _assert_same(ours, reference, *args):
    """Outputs, gradients and derivatives of the gradients along the arguments."""

    def grad(function):
        def loss(*args):
            return jnp.sum(jnp.sin(function(*args)))

        return jax.grad(loss, argnums=tuple(range(len(args))))

    def evaluate(function):
        """As one program: operations compiled one by one take several times as long."""
        return jax.jit(lambda *args: (function(*args), jax.jvp(grad(function), args, args)))(*args)

    (outputs, grads), (wanted, wanted_grads) = map(evaluate, (ours, reference))
    np.testing.assert_allclose(outputs, wanted, atol=1e-12)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * max(1, np.abs(b).max()))


CONVOLUTIONS = {  # side, stride, dilation, inputs, outputs
    "few, 7x7": (7, 1, 1, 2, 1),
    "few": (3, 1, 1, 2, 1),
    "few, dilated": (3, 1, 2, 2, 4),
    "narrow": (3, 1, 1, 5, 8),
    "narrow, dilated": (3, 1, 2, 8, 6),
    "wide": (3, 1, 1, 9, 10),
    "wide, dilated": (3, 1, 2, 12, 9),
    "narrowing": (3, 1, 1, 10, 3),
    "1x1": (1, 1, 1, 3, 4),
    "1x1, narrowing": (1, 1, 1, 6, 2),
    "stride 2": (3, 2, 1, 3, 5),
    "stride 2, wide": (3, 2, 1, 9, 4),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (2, 24)], ids=str)
def test_conv_equals_reference(kind, size):
    side, stride, dilation, inputs, outputs = CONVOLUTIONS[kind]
    args = draw((2, *size, inputs), (side, side, inputs, outputs))
    ours, reference = (
        functools.partial(ops.conv, stride=stride, dilation=dilation) for ops in (CPU_TRAIN, XLA)
    )
    _assert_same(ours, reference, *args)


@pytest.mark.parametrize("size", [(1, 1), (8, 32), (5, 19)])
@pytest.mark.parametrize(("side", "dilation"), [(3, 1), (3, 2), (7, 1)])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (16, 16), (3, 12)])
def test_row_folded_conv_equals_reference(inputs, outputs, side, dilation, size):
    args = draw((2, *size, inputs), (side, side, inputs, outputs))
    np.testing.assert_allclose(
        jax.jit(cpu_train.conv_row_folded, static_argnums=2)(*args, dilation),
        xla.conv(*args, dilation=dilation),
        atol=1e-12,
    )


@pytest.mark.parametrize("size", [(1, 1), (8, 12), (13, 6)])
@pytest.mark.parametrize(("side", "dilation"), [(1, 1), (3, 1), (3, 2), (7, 1), (7, 2)])
def test_space_to_depth_conv_equals_reference(side, dilation, size):
    args = draw((2, *size, 2), (side, side, 2, 3))
    _assert_same(
        functools.partial(cpu_train.conv_space_to_depth, dilation=dilation),
        functools.partial(xla.conv, dilation=dilation),
        *args,
    )


SEPARABLE = {
    "few": (2, 1, 1),
    "narrow": (8, 8, 1),
    "narrow, dilated": (3, 5, 2),
    "wide": (12, 12, 1),
    "wide, dilated": (40, 9, 2),
}


@pytest.mark.parametrize("kind", SEPARABLE)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (3, 12)], ids=str)
def test_separable_conv_equals_reference(kind, size):
    inputs, outputs, dilation = SEPARABLE[kind]
    args = draw((2, *size, inputs), (3, 3, 1, inputs), (1, 1, inputs, outputs))
    ours, reference = (
        functools.partial(ops.separable_conv, dilation=dilation) for ops in (CPU_TRAIN, XLA)
    )
    _assert_same(ours, reference, *args)

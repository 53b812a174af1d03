"""The interfaces of JAX that may change with any of its releases."""

import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.ops import cpu_train, jax_internals  # noqa: F401 (cpu_train registers the rule)


def _vjp(x):
    """Sine and its pullback, whose residual jax.checkpoint rounds."""
    policy = jax.checkpoint_policies.dots_saveable
    checkpointed = jax.checkpoint(
        lambda x: jnp.sin(jnp.sin(jnp.dot(x, x))), policy=policy, prevent_cse=False
    )
    return jax.vjp(checkpointed, x)


def test_residuals_are_not_rounded_to_their_own_precision():
    lowered = jax.jit(_vjp).trace(jnp.ones((3, 3)))
    assert "reduce_precision" in str(lowered.jaxpr)
    assert "reduce_precision" not in lowered.lower().as_text()


def test_arrays_are_rounded_to_other_precisions():
    x = np.float32([1 + 2**-12, 3.0])
    rounded = jax.jit(lambda x: jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10))(x)
    np.testing.assert_array_equal(rounded, np.float32([1, 3]))


def test_steps_go_on_where_jax_has_changed(monkeypatch):
    monkeypatch.delattr(jax_internals.mlir, "register_lowering")
    jax_internals.lower_reduce_precision_as_identity()

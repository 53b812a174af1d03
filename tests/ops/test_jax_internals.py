"""The interfaces of JAX that may change with any of its releases."""

import jax
import jax.numpy as jnp
import numpy as np

from manas_jax.ops import jax_internals


def _vjp(x):
    """Sine and its pullback, whose residual jax.checkpoint rounds."""
    policy = jax.checkpoint_policies.dots_saveable
    checkpointed = jax.checkpoint(
        lambda x: jnp.sin(jnp.sin(jnp.dot(x, x))), policy=policy, prevent_cse=False
    )
    return jax.vjp(checkpointed, x)


def test_reduce_precision_is_removed():
    x = jnp.asarray(np.random.default_rng(0).random((3, 3), np.float32))
    plain, simplified = jax.jit(_vjp), jax.jit(jax_internals.remove_reduce_precision(_vjp))
    assert "reduce_precision" in plain.lower(x).as_text()
    assert "reduce_precision" not in simplified.lower(x).as_text()
    (y, pullback), (wanted, wanted_pullback) = simplified(x), plain(x)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_allclose(pullback(y)[0], wanted_pullback(y)[0], rtol=1e-6)


def test_function_stays_where_jax_has_changed(monkeypatch):
    def changed(*_):
        raise AttributeError("jaxpr_as_fun")

    monkeypatch.setattr(jax_internals, "_without_reduce_precision", changed)
    assert jax_internals.remove_reduce_precision(lambda x: x + 1)(1) == 2

"""Widths of residual blocks: channel masks over shared weights are the sliced networks."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import BUDGET_SPACE

from manas_jax.models.network import Network, genotype_logits, init_architecture
from manas_jax.models.variables import inherit, init_variables, variable_shapes
from manas_jax.space import Genotype

GENOTYPE = Genotype(
    BUDGET_SPACE,
    (("parallel",), ("fusion", "parallel", "identity")),
    ((("SE",),), (("skip_connect",), ("SE",))),
    (((0.25,),), ((), (0.5, 0.25), ())),
)


def _loss(network, architecture=None):
    images = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)))

    @jax.jit
    def loss(variables):
        outputs, moved = network.apply(
            variables, images, architecture, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(outputs**2), (outputs, moved["batch_stats"])

    return loss


def _gradient(loss, variables):
    def of_params(params):
        return loss({**variables, "params": params})

    grads, (outputs, moved) = jax.grad(of_params, has_aux=True)(variables["params"])
    return outputs, {"params": grads, "batch_stats": moved}


def test_masked_supernet_equals_sliced_network(float64):
    """Outputs, gradients and statistics; the channels that are masked get no gradient."""
    supernet, derived = Network(BUDGET_SPACE), Network(BUDGET_SPACE, GENOTYPE)
    variables = jax.tree.map(jnp.float64, init_variables(supernet, 0))
    shapes = variable_shapes(derived)
    sliced = inherit(variables, shapes)
    assert sliced["params"]["cell1_column1"]["parallel"]["branch0"]["layer0"]["conv"][
        "kernel"
    ].shape == (3, 3, 4, 2)

    masked_outputs, masked = _gradient(_loss(supernet, genotype_logits(GENOTYPE)), variables)
    outputs, wanted = _gradient(_loss(derived), sliced)
    np.testing.assert_allclose(masked_outputs, outputs, rtol=0, atol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
        inherit(masked, shapes),
        wanted,
    )
    block = masked["params"]["cell1_column1"]["parallel"]["branch1"]  # 2 of 8 channels
    kernel = block["layer1"]["conv"]["kernel"]
    assert np.all(kernel[:, :, 2:] == 0) and np.abs(kernel[:, :, :2]).max() > 1e-6


def test_scanned_columns_mix_widths_likewise():
    plain, scanned = Network(BUDGET_SPACE), Network(BUDGET_SPACE, scan=True)
    architecture = init_architecture(BUDGET_SPACE, 0, scale=1.0)
    (_, (a, _)), (_, (b, _)) = (
        _loss(network, architecture)(init_variables(network, 0)) for network in (plain, scanned)
    )
    np.testing.assert_allclose(a, b, atol=1e-4)

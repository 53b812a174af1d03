"""Costs: published counts, against the modules' parameters, against the traced network."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from manas_jax import cost
from manas_jax.models import candidates, columns, layers
from manas_jax.models.network import Network, init_architecture
from manas_jax.models.variables import variable_shapes
from manas_jax.ops import XLA, Ops
from manas_jax.space import ALL_COLUMNS, CANDIDATES, COLUMNS, Genotype, SearchSpace, random_genotype

PAPER = SearchSpace()
HALF = SearchSpace(channels=(16, 32, 64, 128), columns=(2, 2, 2))
SMALL = SearchSpace(channels=(4, 8, 16), branches=(2, 3), columns=(2, 1), stem_blocks=1)
PICKS = {
    "parallel": itertools.repeat("parallel"),
    "fusion": itertools.repeat("fusion"),
    "alternating": itertools.cycle(COLUMNS),
}


def _in_turn(space, picks):
    """Columns as `picks` says, attention candidates 1..8 in turn over the edges."""
    names = itertools.cycle(CANDIDATES[1:])
    return Genotype(
        space,
        [[next(picks) for _ in range(n)] for n in space.columns],
        [[[next(names) for _ in range(space.edges)] for _ in range(n)] for n in space.branches],
    )


def _count(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.get("params", {})))


@pytest.mark.parametrize(
    ("space", "supernet", "parallel", "fusion", "alternating"),
    [
        (PAPER, 13_296_167, 9_111_019, 4_749_291, 6_930_155),
        (HALF, 1_837_105, 1_257_991, 713_351, 985_671),
    ],
    ids=["paper", "half"],
)
def test_published_parameter_counts(space, supernet, parallel, fusion, alternating):
    assert cost.supernet(space, 1, 1).parameters == supernet
    assert _count(variable_shapes(Network(space))) == supernet
    for kind, expected in [
        ("parallel", parallel),
        ("fusion", fusion),
        ("alternating", alternating),
    ]:
        genotype = _in_turn(space, iter(PICKS[kind]))
        assert cost.derived(genotype, 1, 1).parameters == expected
        assert _count(variable_shapes(Network(space, genotype))) == expected


@pytest.mark.parametrize("choice", COLUMNS)
@pytest.mark.parametrize("cell", [0, 1])
def test_column_costs_are_the_modules_parameters(cell, choice):
    channels = SMALL.channels[: SMALL.branches[cell]]
    branches = tuple(jnp.zeros((1, 8 >> b, 8 >> b, c)) for b, c in enumerate(channels))
    shapes = jax.eval_shape(
        lambda: columns.Column((choice,)).init(jax.random.key(0), branches, False)
    )
    assert cost.column(SMALL, cell, choice, 8, 8).parameters == _count(shapes)


def test_cost_of_widths_and_of_no_column():
    """17 channels, of which a fraction is rounded, and no column without parameters."""
    space = dataclasses.replace(SMALL, channels=(4, 17, 16), attention_groups=1, widths=(0.4, 1))
    branches = tuple(jnp.zeros((1, 8 >> b, 8 >> b, c)) for b, c in enumerate(space.channels))
    module = columns.Column(("parallel",), ((0.4,), (0.4,), (1.0,)))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), branches, False))
    assert shapes["params"]["parallel"]["branch1"]["layer0"]["norm"]["scale"].shape == (7,)
    total = cost.column(space, 1, "parallel", 8, 8, (0.4, 0.4, 1.0))
    assert total.parameters == _count(shapes)
    assert total.macs == sum(
        2 * 9 * c * h * p for c, h, p in ((4, 2, 64), (17, 7, 16), (16, 16, 4))
    )
    assert cost.column(space, 1, "identity", 8, 8) == cost.Cost()


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("branch", [0, 2])
def test_edge_costs_are_the_modules_parameters(branch, candidate):
    x = jnp.zeros((1, 8, 8, SMALL.channels[branch] // SMALL.attention_groups))
    shapes = jax.eval_shape(lambda: candidates.Edge((candidate,)).init(jax.random.key(0), x, False))
    assert cost.edge(SMALL, branch, candidate, 8, 8).parameters == _count(shapes)


class _Textbook(nn.Module):
    """`candidates.FactoredConv` as two convolutions, which is the form that costs are given for."""

    features: int
    depthwise: bool = True
    dilation: int = 1
    ops: Ops = XLA

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        middle, groups = (inputs, inputs) if self.depthwise else (1, 1)
        spatial = nn.Conv(
            middle, (3, 3), feature_group_count=groups, kernel_dilation=self.dilation,
            padding=self.dilation, use_bias=False, name="spatial",
        )  # fmt: skip
        return nn.Conv(self.features, (1, 1), use_bias=False, name="pointwise")(spatial(x))


def _macs(jaxpr):
    """Multiply-accumulates of all convolutions and matrix products of a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        outputs = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += outputs * math.prod(kernel) // kernel[features]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += outputs * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        total += sum(_macs(inner) for inner in jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
@pytest.mark.parametrize(
    "space",
    [
        dataclasses.replace(SMALL, column_choices=ALL_COLUMNS, widths=(0.5, 1)),
        dataclasses.replace(SMALL, patch=2, attention_groups=1),
        # The stem's first block needs no shortcut: 3 * 4**2 channels come in and go out.
        dataclasses.replace(SMALL, patch=4, channels=(12, *SMALL.channels[1:])),
    ],
    ids=["widths", "patch", "no shortcut"],
)
def test_macs_of_the_traced_network(monkeypatch, space, size):
    """Counted in the jaxpr, with separable convolutions in their textbook form."""
    monkeypatch.setattr(candidates, "FactoredConv", _Textbook)
    images = jnp.zeros((1, *size, 3))

    def traced(network, architecture):
        variables = variable_shapes(network)
        return _macs(jax.make_jaxpr(network.apply)(variables, images, architecture).jaxpr)

    genotype = random_genotype(space, 3)
    assert traced(Network(space, genotype), None) == cost.derived(genotype, *size).macs
    architecture = init_architecture(space, 0)
    assert traced(Network(space), architecture) == cost.supernet(space, *size).macs


def test_costs_are_those_of_the_padded_image():
    """Costs round sizes up to those that the network pads to."""
    space = dataclasses.replace(SMALL, patch=2)
    padded = layers.pad_to_multiple(jnp.zeros((1, 9, 17, 3)), space.multiple).shape[1:3]
    assert padded == (16, 24)
    genotype = random_genotype(space, 0)
    assert cost.derived(genotype, 9, 17) == cost.derived(genotype, 16, 24)
    assert cost.derived(genotype, 9, 17) != cost.derived(genotype, 8, 24)

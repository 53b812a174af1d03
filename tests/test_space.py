"""The space and the genotype: published counts, costs against the modules, JSON, derivation."""

import dataclasses
import itertools
import json
import math
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from manas_jax.errors import UserError
from manas_jax.models import candidates, columns, layers
from manas_jax.models.network import Network, init_architecture, variable_shapes
from manas_jax.space import CANDIDATES, COLUMNS, Genotype, SearchSpace, derive, random_genotype

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
    assert space.supernet_cost(1, 1).parameters == supernet
    assert _count(variable_shapes(Network(space))) == supernet
    for kind, expected in [
        ("parallel", parallel),
        ("fusion", fusion),
        ("alternating", alternating),
    ]:
        genotype = _in_turn(space, iter(PICKS[kind]))
        assert genotype.cost(1, 1).parameters == expected
        assert _count(variable_shapes(Network(space, genotype))) == expected


def test_paper_searches_twelve_columns_and_27_edges():
    shapes = jax.tree.map(jnp.shape, init_architecture(PAPER, 0))
    assert shapes == {"columns": (12, 2), "attention": (9, 3, 9)}


@pytest.mark.parametrize("choice", COLUMNS)
@pytest.mark.parametrize("cell", [0, 1])
def test_column_costs_are_the_modules_parameters(cell, choice):
    channels = SMALL.channels[: SMALL.branches[cell]]
    branches = tuple(jnp.zeros((1, 8 >> b, 8 >> b, c)) for b, c in enumerate(channels))
    shapes = jax.eval_shape(lambda: columns.Column(choice).init(jax.random.key(0), branches, False))
    assert SMALL.column_cost(cell, choice, 8, 8).parameters == _count(shapes)


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("branch", [0, 2])
def test_edge_costs_are_the_modules_parameters(branch, candidate):
    x = jnp.zeros((1, 8, 8, SMALL.channels[branch] // SMALL.attention_groups))
    shapes = jax.eval_shape(lambda: candidates.Edge((candidate,)).init(jax.random.key(0), x, False))
    assert SMALL.edge_cost(branch, candidate, 8, 8).parameters == _count(shapes)


class _Textbook(nn.Module):
    """`candidates.FactoredConv` as two convolutions, which is the form that costs are given for."""

    features: int
    depthwise: bool = True
    dilation: int = 1

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
    [SMALL, dataclasses.replace(SMALL, patch=2, attention_groups=1)],
    ids=["plain", "patch"],
)
def test_macs_are_those_of_the_traced_network(monkeypatch, space, size):
    """Counted in the program that JAX traces, with the separable convolutions in textbook form."""
    monkeypatch.setattr(candidates, "FactoredConv", _Textbook)
    monkeypatch.setattr(layers, "_forms", layers.Forms.PLAIN)
    images = jnp.zeros((1, *size, 3))

    def traced(network, architecture):
        variables = variable_shapes(network)
        return _macs(jax.make_jaxpr(network.apply)(variables, images, architecture).jaxpr)

    genotype = _in_turn(space, iter(PICKS["alternating"]))
    assert traced(Network(space, genotype), None) == genotype.cost(*size).macs
    architecture = init_architecture(space, 0)
    assert traced(Network(space), architecture) == space.supernet_cost(*size).macs


def test_json_round_trip(tmp_path):
    space = SearchSpace((4, 8), (1, 2), (2, 0), candidates=("none", "SE"), patch=2, residual=True)
    genotype = random_genotype(space, 3)
    genotype.save(tmp_path / "genotype.json")
    assert Genotype.load(tmp_path / "genotype.json") == genotype
    assert [f.name for f in tmp_path.iterdir()] == ["genotype.json"]
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def _genotype_text(**changes):
    fields = json.loads(random_genotype(SearchSpace((4, 8), (1, 2), (1, 1)), 0).to_json())
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a genotype"),
        (_genotype_text(format="other"), "not a genotype"),
        (_genotype_text(version=2), "version 2"),
        (_genotype_text(columns=None), "the key 'columns' is missing"),
        (_genotype_text(columns=[["parallel"]]), "genotype.columns: 1 cells, but its space has 2"),
        (
            _genotype_text(columns=[["parallel"], []]),
            r"columns\[1\]: 0 columns, but its space has 1",
        ),
        (_genotype_text(columns=[["parallel"], ["serial"]]), r"columns\[1\]\[0\].*'serial'"),
        (_genotype_text(columns=3), "expected a list of 2 cells, got 3"),
        (_genotype_text(attention=[[["SE"] * 3]]), "genotype.attention: 1 cells"),
        (
            _genotype_text(attention=[[["SE"] * 3], [["SE"] * 3, ["SE", "SE", "magic"]]]),
            r"attention\[1\]\[1\]\[2\]: unknown choice 'magic'",
        ),
        (_genotype_text(attention=[[["SE"] * 3], [["SE"] * 3, ["SE"] * 4]]), "4 edges"),
        (_genotype_text(attention=[[["SE"] * 3], [["SE"] * 3, [["SE"]] * 3]]), "unknown choice"),
        (_genotype_text(space={"chanels": [4, 8]}), "space.chanels: unknown field"),
        (_genotype_text(space=7), "wrong type"),
        (_genotype_text(space={"channels": 4}), "wrong type|space.channels"),
    ],
)
def test_bad_genotypes_are_explained(tmp_path, text, message):
    file = tmp_path / "found.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Genotype.load(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_binary_genotype_files(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json.*cannot read"):
        Genotype.load(tmp_path / "gone.json")
    (tmp_path / "noise.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"noise\.json.*cannot read"):
        Genotype.load(tmp_path / "noise.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", ()),
        ("channels", (4, 7)),
        ("channels", (4, 0)),
        ("branches", (2, 1)),
        ("branches", (1, 1)),
        ("branches", ()),
        ("columns", (1,)),
        ("columns", (1, -1)),
        ("stem_blocks", 0),
        ("attention_groups", 0),
        ("candidates", ()),
        ("candidates", ("none",)),
        ("candidates", ("SE", "SE")),
        ("candidates", ("SE", "magic")),
        ("patch", 0),
        ("patch", 1.5),
        ("residual", 1),
    ],
)
def test_spaces_that_cannot_be(field, value):
    fields = {"channels": (4, 8), "branches": (1, 2), "columns": (1, 1), field: value}
    with pytest.raises(UserError, match=rf"space\.{field} ="):
        SearchSpace(**fields)


def test_derive_takes_the_most_probable_but_never_none():
    space = SearchSpace((4, 8), (1, 2), (1, 2))
    draw = np.random.default_rng(0)
    column_scores = draw.normal(size=(3, 2))
    attention_scores = draw.normal(size=(3, 3, 9))
    attention_scores[:, 1, 0] = 10.0  # `none` leads on edge 1 of every module
    genotype = derive(space, column_scores, attention_scores)
    picked = [c for cell in genotype.columns for c in cell]
    assert picked == [COLUMNS[i] for i in column_scores.argmax(axis=1)]
    modules = [edges for cell in genotype.attention for edges in cell]
    best = attention_scores[..., 1:].argmax(axis=-1) + 1
    assert modules == [tuple(CANDIDATES[i] for i in row) for row in best]
    assert list(map(len, genotype.columns)) == [1, 2]
    assert list(map(len, genotype.attention)) == [1, 2]


def test_derive_where_none_is_not_the_first_candidate():
    space = SearchSpace((4,), (1,), (0,), candidates=("SE", "none"), attention_groups=1)
    assert derive(space, [], [[[0.0, 9.0]]]).attention == ((("SE",),),)


def test_random_genotypes_depend_on_their_seed_alone():
    random.seed(0)
    first = random_genotype(PAPER, 5)
    random.seed(1)
    assert random_genotype(PAPER, 5) == first
    assert random_genotype(PAPER, 6) != first
    names = {
        n
        for seed in range(20)
        for c in random_genotype(PAPER, seed).attention
        for m in c
        for n in m
    }
    assert names == set(CANDIDATES[1:])


def test_layers_shapes_follow_the_multiple():
    """The size that costs are rounded up to is the one that the network pads to."""
    space = dataclasses.replace(SMALL, patch=2)
    padded = layers.pad_to_multiple(jnp.zeros((1, 9, 17, 3)), space.multiple).shape[1:3]
    assert padded == (16, 24)
    genotype = random_genotype(space, 0)
    assert genotype.cost(9, 17) == genotype.cost(16, 24)
    assert genotype.cost(9, 17) != genotype.cost(8, 24)

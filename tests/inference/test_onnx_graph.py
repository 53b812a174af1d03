"""The ONNX model against the network of `manas_jax.models`, at any size."""

import dataclasses

import jax
import numpy as np
import onnx
import pytest
from conftest import moved_variables

from manas_jax.errors import UserError
from manas_jax.inference import onnx_graph
from manas_jax.inference.derainer import Derainer
from manas_jax.inference.jax_engine import JaxEngine
from manas_jax.inference.tiling import multiple
from manas_jax.models import layers
from manas_jax.models.network import Network
from manas_jax.runtime.onnx_session import open_session
from manas_jax.space import ALL_COLUMNS, CANDIDATES, SearchSpace, assemble
from manas_jax.workdir.weights import flatten, unflatten

SPACE = SearchSpace((4, 8, 12), (1, 3), (1, 1), stem_blocks=1, attention_groups=2)
SIZES = [(79, 67), (1, 31), (15, 9), (37, 29), (63, 33)]


def genotype(space):
    """All columns and all candidates one after the other, in the least width."""
    columns, names = iter(space.column_choices * 9), iter(CANDIDATES * 9)
    picks = {
        "columns": [next(columns) for _ in range(sum(space.columns))],
        "attention": [next(names) for _ in range(len(space.modules) * space.edges)],
        "widths": [space.widths[0]] * len(space.residual_blocks),
    }
    return assemble(space, picks)


GENOTYPES = {
    "paper": genotype(SPACE),
    "residual": genotype(
        dataclasses.replace(
            SPACE,
            columns=(1, 2),
            attention_groups=1,
            column_choices=ALL_COLUMNS,
            widths=(0.5, 1),
            patch=2,
            residual=True,
        )
    ),
}


def variables_of(genotype):
    return moved_variables(Network(genotype.space, genotype))


@pytest.mark.parametrize("pool_side", [None, 16])
@pytest.mark.parametrize("name", GENOTYPES)
def test_it_is_the_network_at_odd_sizes(name, pool_side):
    genotype = GENOTYPES[name]
    variables = variables_of(genotype)
    model = onnx_graph.build(genotype, variables, pool_side)
    onnx.checker.check_model(model, full_check=True)
    session = open_session(model.SerializeToString())
    devices = jax.local_devices()[:1]
    by_jax = JaxEngine(genotype, variables, pool_side, 80, devices)  # a program of the first size
    for height, width in SIZES:
        images = np.random.default_rng(height).uniform(size=(2, height, width, 3)).astype("f4")
        (got,) = session.run(None, {"images": images})
        padded = layers.pad_to_multiple(images, multiple(genotype.space, pool_side))
        wanted = by_jax(np.asarray(padded))[:, :height, :width]
        assert wanted.std() > 0.02 and np.mean((wanted > 0) & (wanted < 1)) > 0.3
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_genotypes_have_all_choices():
    edges = {
        name for x in GENOTYPES.values() for cell in x.attention for edges in cell for name in edges
    }
    assert edges == set(CANDIDATES)


def test_shipped_weights_make_few_nodes_and_the_documented_opset():
    derainer = Derainer.from_pretrained("general", engine="onnx")
    model = onnx_graph.build(derainer.genotype, derainer.variables, derainer.pool_side)
    kinds = [node.op_type for node in model.graph.node]
    assert len(kinds) < 4 * kinds.count("Conv")
    assert [(x.domain, x.version) for x in model.opset_import] == [("", onnx_graph.OPSET)]
    shapes = [
        [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["N", "H", "W", 3]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flat: flat.pop("params/head_conv/kernel"), "missing tensors: head_conv/kernel"),
        (lambda flat: flat.update({"params/more": np.zeros(1)}), "does not have: more"),
        (
            lambda flat: flat.update({"params/head_conv/kernel": np.zeros((1, 1, 9, 3))}),
            r"head_conv/kernel: shape \(1, 1, 9, 3\), but the network has \(1, 1, 4, 3\)",
        ),
    ],
)
def test_other_variables_are_refused(change, message):
    genotype = GENOTYPES["paper"]
    flat = flatten(variables_of(genotype))
    change(flat)
    with pytest.raises(UserError, match=message):
        onnx_graph.build(genotype, unflatten(flat))

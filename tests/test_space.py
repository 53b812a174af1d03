"""The space and the genotype: validation, JSON, derivation."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.errors import UserError
from manas_jax.models.network import init_architecture
from manas_jax.space import (
    ALL_COLUMNS,
    CANDIDATES,
    COLUMNS,
    Genotype,
    SearchSpace,
    alternating_genotype,
    assemble,
    derive,
    random_genotype,
)

PAPER = SearchSpace()


def test_paper_searches_twelve_columns_and_27_edges():
    shapes = jax.tree.map(jnp.shape, init_architecture(PAPER, 0))
    assert shapes == {"columns": (12, 2), "attention": (9, 3, 9)}


def test_json_round_trip(tmp_path):
    space = SearchSpace(
        (4, 8), (1, 2), (2, 3), candidates=("none", "SE"), column_choices=ALL_COLUMNS,
        widths=(0.25, 0.5, 1), patch=2, residual=True,
    )  # fmt: skip
    genotype = random_genotype(space, 3)
    genotype.save(tmp_path / "genotype.json")
    assert Genotype.load(tmp_path / "genotype.json") == genotype
    assert [f.name for f in tmp_path.iterdir()] == ["genotype.json"]
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_genotypes_without_widths_are_of_width_1():
    """As the first version of the format has them."""
    genotype = random_genotype(SearchSpace((4, 8), (1, 2), (1, 2)), 0)
    fields = json.loads(genotype.to_json())
    assert fields["version"] == 2
    del fields["widths"], fields["space"]["widths"], fields["space"]["column_choices"]
    assert Genotype.from_json(json.dumps(fields | {"version": 1})) == genotype
    with pytest.raises(UserError, match="the key 'widths' is missing"):
        Genotype.from_json(json.dumps(fields))


def test_choices_listed_one_by_one():
    space = SearchSpace((4, 8), (1, 2), (2, 3), column_choices=ALL_COLUMNS, widths=(0.5, 1))
    for seed in range(5):
        genotype = random_genotype(space, seed)
        assert assemble(space, genotype.picks) == genotype
        for choices, cell in zip(genotype.columns, genotype.widths, strict=True):
            assert [bool(w) for w in cell] == [choice == "parallel" for choice in choices]


def _genotype_text(**changes):
    genotype = Genotype(
        SearchSpace((4, 8), (1, 2), (1, 1)), [["parallel"]] * 2, [[["SE"] * 3] * n for n in (1, 2)]
    )
    fields = json.loads(genotype.to_json())
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged or no genotype"),
        ("[]", "not a genotype"),
        (_genotype_text(format="other"), "not a genotype"),
        (_genotype_text(version=3), "version 3; this program reads versions up to 2"),
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
        (_genotype_text(widths=[[[1.0]]]), "genotype.widths: 1 cells"),
        (_genotype_text(widths=[[[]], [[1.0, 1.0]]]), r"widths\[0\]\[0\]: 0 residual blocks"),
        (_genotype_text(widths=[[[0.5]], [[1.0, 1.0]]]), r"widths\[0\]\[0\]\[0\]: .* 0\.5; give 1"),
        (_genotype_text(space={"chanels": [4, 8]}), "space.chanels: unknown field"),
        (_genotype_text(space=7), "damaged or no genotype"),
        (_genotype_text(space={"channels": 4}), "space.channels"),
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
    with pytest.raises(UserError, match=r"noise\.json.*damaged or no genotype"):
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
        ("column_choices", ("identity",)),
        ("column_choices", ("parallel", "serial")),
        ("widths", ()),
        ("widths", (0.5,)),
        ("widths", (0.0, 1.0)),
        ("widths", (1.0, 0.5)),
        ("widths", (0.5, 0.5, 1.0)),
        ("widths", (float("nan"), 1.0)),
        ("widths", (0.5, 1.0, 1.5)),
        ("patch", 0),
        ("patch", 1.5),
        ("residual", 1),
    ],
)
def test_invalid_spaces(field, value):
    fields = {"channels": (4, 8), "branches": (1, 2), "columns": (1, 1), field: value}
    with pytest.raises(UserError, match=rf"space\.{field} ="):
        SearchSpace(**fields)


def test_widths_need_a_parallel_column():
    with pytest.raises(UserError, match=r"space\.widths .* column_choices has parallel"):
        SearchSpace((4,), (1,), (1,), column_choices=("fusion",), widths=(0.5, 1.0))


def test_derive_chooses_the_most_probable_but_never_none():
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


def test_derive_with_none_as_the_last_candidate():
    space = SearchSpace((4,), (1,), (0,), candidates=("SE", "none"), attention_groups=1)
    assert derive(space, [], [[[0.0, 9.0]]]).attention == ((("SE",),),)


@pytest.mark.parametrize("choices", [("parallel",), ("fusion", "parallel"), ALL_COLUMNS])
def test_alternating_genotypes_have_the_columns_of_the_space(choices):
    genotype = alternating_genotype(SearchSpace((4, 8), (2,), (3,), 1, column_choices=choices))
    (columns,) = genotype.columns
    assert set(columns) == set(choices) - {"identity"} and columns[0] == "parallel"


def test_random_genotypes_are_functions_of_the_seed():
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

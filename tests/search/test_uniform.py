"""The rule that makes a network of a budget."""

import pytest

from manas_jax import cost
from manas_jax.config import validate
from manas_jax.errors import UserError
from manas_jax.search import methods, random_search
from manas_jax.search.uniform import uniform_within
from manas_jax.space import ALL_COLUMNS, Genotype, SearchSpace


def test_the_uniform_genotype_alternates_and_has_one_width(tmp_path, monkeypatch, make_config):
    space = SearchSpace((8, 16), (2,), (3,), 1, column_choices=ALL_COLUMNS, widths=(0.5, 1.0))

    def genotype(columns, width):
        widths = [(width,) * 2 if column == "parallel" else () for column in columns]
        return Genotype(space, [columns], [[["SE"] * space.edges] * 2], [widths])

    made = [
        genotype(columns, width)
        for width in space.widths
        for columns in (
            ["parallel", "identity", "identity"],
            ["parallel", "fusion", "identity"],
            ["parallel", "fusion", "parallel"],
        )
    ]
    for most_expensive in made:
        budget = cost.Budget(cost.derived(most_expensive, 64, 64).macs, "macs", 64, 64)
        found = uniform_within(space, budget)
        assert found in made and budget.cost(found) == budget.limit
    with pytest.raises(UserError, match="no uniform genotype costs at most 7 macs: give a larger"):
        uniform_within(space, cost.Budget(7, "macs", 64, 64))

    config = make_config(
        space=space.to_dict(),
        search__method="uniform",
        search__budget=100.0,
        search__steps=1,
        train__inherit=False,
    )
    monkeypatch.setattr(random_search.train_run, "train", None)
    assert methods.search(config, tmp_path) == Genotype.load(tmp_path / "genotype.json") == made[-1]
    config.search.budget = 0.0
    with pytest.raises(UserError, match=r"search\.method = uniform needs a budget: set"):
        validate(config)


def test_in_a_space_without_identity_it_has_all_columns():
    space = SearchSpace((8, 16), (1, 2), (2, 1), 1)
    found = uniform_within(space, cost.Budget(10**9, "macs", 64, 64))
    assert found.columns == (("parallel", "fusion"), ("parallel",))

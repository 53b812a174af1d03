"""Defaults, ranges and combinations of the keys of a configuration."""

import contextlib
import dataclasses
import functools
import operator

import ml_collections
import pytest

from manas_jax.config import (
    _KEYS,
    HYPERGRADIENTS,
    METHODS,
    RAIN_APPEARANCES,
    RAIN_LEVELS,
    default,
    validate,
    without_data,
)
from manas_jax.data import rain
from manas_jax.errors import UserError
from manas_jax.search import bilevel, methods
from manas_jax.space import SearchSpace


def _with(config, changes):
    config = ml_collections.ConfigDict(config.to_dict())
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def test_every_experiment_is_valid(experiments):
    assert experiments
    for get_config in experiments.values():
        validate(without_data(get_config()))


def test_the_general_network_starts_from_weights(experiments):
    config = experiments["pretrained"]("general")
    config.data.root, config.train.weights = "somewhere", "rain100l.safetensors"
    validate(config)
    config.stage = "all"
    with pytest.raises(UserError, match=r"train\.weights brings its network: leave out the search"):
        validate(config)


def test_default_needs_data():
    with pytest.raises(UserError, match=r"data\.root is empty.*--config\.data\.root"):
        validate(default())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage", "serch"),
        ("network.dtype", "float16"),
        ("data.source", "web"),
        ("search.hypergradient", "second_order"),
        ("evaluate.split", "train"),
        ("data.versions", 0),
        ("search.steps", 0),
        ("search.scenes", 0),
        ("search.crop", 4),
        ("search.checkpoint_every", 0),
        ("train.steps", -1),
        ("train.validation_crop", 8),
        ("log_every", 0),
        ("devices", -1),
        ("data.validation_scenes", -1),
        ("search.architecture_warmup", 1.5),
        ("search.internal_warmup", -0.1),
        ("train.ema", 2.0),
        ("objectives.mse", -1.0),
        ("objectives.complexity", -0.1),
        ("objectives.complexity_macs_share", 1.1),
        ("objectives.complexity_size", (0, 480)),
        ("search.learning_rate", -1e-3),
        ("search.xi", -1.0),
        ("search.epsilon", 0.0),
        ("search.population", 1),
        ("search.generations", 0),
        ("search.choice_batches", 0),
        ("search.budget", -1.0),
        ("search.budget", float("nan")),
        ("search.budget_of", "seconds"),
        ("train.clip", -1.0),
    ],
)
def test_values_out_of_range_are_named(make_config, key, value):
    with pytest.raises(UserError, match=rf"^{key} = .*: give ") as error:
        validate(_with(make_config(), {key: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "closest"),
    [
        ("train.stepz", 5, "train.steps"),
        ("trian", 3, "train"),
        ("trian", {"steps": 3}, "train"),
        ("objectives.ssmi", 1.0, "objectives.ssim"),
        ("seed_", 1, "seed"),
    ],
)
def test_unknown_keys_of_a_file_are_named(make_config, key, value, closest):
    config = _with(make_config(), {})
    *sections, name = key.split(".")
    functools.reduce(operator.getitem, sections, config)[name] = value
    with pytest.raises(UserError) as error:
        validate(config)
    assert str(error.value).startswith(f"unknown config key '{key}' (did you mean '{closest}'?)")


@pytest.mark.parametrize(
    ("key", "value"), [("space.channels", (4, 7)), ("space.candidates", ("none",))]
)
def test_spaces_are_checked(make_config, key, value):
    config = make_config(space__attention_groups=2)
    with pytest.raises(UserError, match=rf"^{key} ="):
        validate(_with(config, {key: value}))


def test_tfds_needs_a_name(make_config):
    with pytest.raises(UserError, match=r"data\.tfds_name is empty"):
        validate(make_config(data__source="tfds"))


@pytest.mark.parametrize(
    "changes",
    [
        {"data__source": "photographs", "data__root": "mine"},
        {"data__source": "folder", "data__root": "mine", "data__tfds_name": "derain/rain100l"},
    ],
)
def test_data_that_would_not_be_read(make_config, changes):
    with pytest.raises(UserError, match=r"is not read with data\.source = \w+: give"):
        validate(make_config(**changes))


def test_two_initial_weights_of_a_training_are_refused(make_config):
    config = make_config(stage="train", train__inherit=True, train__genotype="other.json")
    with pytest.raises(UserError, match=r"train\.inherit and train\.genotype exclude each other"):
        validate(config)


@pytest.mark.parametrize("stage", ["all", "search"])
@pytest.mark.parametrize("key", ["genotype", "weights"])
def test_a_network_that_is_given_is_not_searched(make_config, key, stage):
    config = make_config(stage=stage, train__inherit=False, **{f"train__{key}": "mine"})
    with pytest.raises(UserError, match=rf"train\.{key} brings its network: leave out the search"):
        validate(config)


def test_a_latency_table_needs_a_budget_in_milliseconds(make_config):
    with pytest.raises(UserError, match=r"search\.latency is not read with .* = gmacs: give"):
        validate(make_config(search__latency="table.json", search__budget=400.0))
    table = {"search__latency": "table.json", "search__budget_of": "milliseconds"}
    with pytest.raises(UserError, match=r"search\.latency is not read without a budget: set"):
        validate(make_config(**table))


def test_methods_are_those_of_the_search(make_config):
    assert tuple(methods.METHODS) == METHODS
    with pytest.raises(
        UserError, match=r"train\.inherit needs .* search\.method = random has none"
    ):
        validate(make_config(search__method="random", train__inherit=True))
    validate(make_config(search__method="evolution", train__inherit=True))
    with pytest.raises(
        UserError, match=r"search\.choice = perturbation: search\.method = evolution"
    ):
        validate(make_config(search__method="evolution", search__choice="perturbation"))


def test_hypergradients_are_those_of_the_search():
    assert tuple(bilevel.HYPERGRADIENTS) == HYPERGRADIENTS


def test_levels_and_appearances_of_rain_are_those_of_the_data():
    assert (*rain.LEVELS, rain.MIXED) == RAIN_LEVELS
    assert (*rain.APPEARANCES, rain.MIXED) == RAIN_APPEARANCES


NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**5000
VALUES = {
    "true": True, "negative": -1, "share": 1.5, "NaN": NAN, "infinite": INFINITE, "huge": HUGE,
    "least": -HUGE, "text": "7", "lines": "a\nb", "null": "a\0b", "none": None, "list": [],
    "texts": ("a", "b"), "NaNs": (NAN, NAN), "negatives": (-1, -1), "three": (1, 1, 1),
    "mapping": {"a": 1}, "nested": [[[1]]], "mixed": (1, "a"), "billions": (10**9,) * 3,
}  # fmt: skip
ALL_KEYS = [*_KEYS, *(f"space.{field.name}" for field in dataclasses.fields(SearchSpace))]


def _is_of_another_type(value, default):
    if isinstance(default, tuple):
        return not isinstance(value, (tuple, list)) or not value or isinstance(value[0], list)
    if isinstance(default, bool):
        return not isinstance(value, bool)
    if isinstance(default, str):
        return not isinstance(value, str) or not value.isprintable()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return True
    return value != value or abs(value) >= 10**300 or (isinstance(default, int) and value == 1.5)


@pytest.mark.parametrize("key", ALL_KEYS)
def test_every_key_with_values_of_the_wrong_kind(make_config, key):
    """A value of another type is refused by a line that names the key; others may be accepted."""
    config = _with(make_config(), {})
    *sections, name = key.split(".")
    section = functools.reduce(operator.getitem, sections, config)
    default = section[name]
    for kind, value in VALUES.items():
        with contextlib.suppress(OverflowError), config.unlocked(), config.ignore_type():
            section[name] = value  # which ConfigDict makes a float where it can
        value = section[name]
        try:
            validate(config)
        except UserError as error:
            named = key if _is_of_another_type(value, default) else sections[0] if sections else ""
            assert named in str(error), kind
            assert "\n" not in str(error) and len(str(error)) < 500, kind
        else:
            assert not _is_of_another_type(value, default), kind


@pytest.mark.parametrize("section", ["search", "space", "data", "stage"])
@pytest.mark.parametrize("value", [None, 3])
def test_missing_sections_are_named(make_config, section, value):
    config = _with(make_config(), {})
    with config.unlocked(), config.ignore_type():
        config[section] = value
    with pytest.raises(UserError, match=section):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.architecture_betas": (0.5, 1.5)}, r"search\.architecture_betas .* less than 1"),
        ({"search.momentum": 2.0}, r"search\.momentum = 2\.0: give .* less than 1"),
        ({"train.final_learning_rate": -1e-3}, r"train\.final_learning_rate = -0\.001: give 0 or"),
        ({"space.columns": (0,)}, r"space\.columns = \(0,\): a search needs a column"),
        (
            {"space.channels": (60000, 60000)},
            r"space: a network of [\d,]+ parameters, and",
        ),
        ({"space.stem_blocks": 10**7}, r"space\.stem_blocks = 10000000: give .* from 1 to 1000"),
        (
            {"search.budget": 1e-6},
            r"search\.budget = 1e-06 gmacs: networks of this space cost 0\.0\d* to 0\.0\d*: give a",
        ),
        ({"search.budget": 1e-12}, r"search\.budget = 1e-12 gmacs: networks of this space cost "),
        (
            {"search.budget": 100.0, "search.budget_of": "parameters"},
            r"search\.budget = 100 parameters: networks of this space cost [\d,]+ to [\d,]+: give",
        ),
        (
            {"search.budget": 1.0, "search.choice": "perturbation"},
            r"search\.choice = pert.* budget",
        ),
        ({"data.synthetic": 0.0}, r"data\.real, data\.transfer and data\.synthetic are 0"),
    ],
)
def test_values_that_no_run_can_use(make_config, changes, message):
    with pytest.raises(UserError, match=message):
        validate(_with(make_config(), changes))

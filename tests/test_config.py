"""Defaults, ranges and combinations of the keys of a configuration."""

import ml_collections
import pytest

from manas_jax.config import HYPERGRADIENTS, RAIN_LEVELS, default, validate
from manas_jax.data import rain
from manas_jax.errors import UserError
from manas_jax.search import bilevel


def _with(config, changes):
    config = ml_collections.ConfigDict(config.to_dict())
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def test_every_experiment_is_valid(experiments):
    assert experiments
    for get_config in experiments.values():
        config = get_config()
        config.data.root = config.data.root or "somewhere"
        validate(config)


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
        ("train.clip", -1.0),
    ],
)
def test_values_out_of_range_are_named(make_config, key, value):
    with pytest.raises(UserError, match=rf"^{key} = .*: give ") as error:
        validate(_with(make_config(), {key: value}))
    assert "\n" not in str(error.value)


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


def test_two_initial_weights_of_a_training_are_refused(make_config):
    config = make_config(stage="train", train__inherit=True, train__genotype="other.json")
    with pytest.raises(UserError, match=r"train\.inherit and train\.genotype exclude each other"):
        validate(config)


def test_hypergradients_are_those_of_the_search():
    assert tuple(bilevel.HYPERGRADIENTS) == HYPERGRADIENTS


def test_levels_of_rain_are_those_of_the_data():
    assert (*rain.LEVELS, rain.MIXED) == RAIN_LEVELS

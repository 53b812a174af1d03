"""What a configuration may say, and that a workdir belongs to one configuration."""

import json

import ml_collections
import pytest

from manas_jax.config import FREE_KEYS, claim_workdir, default, validate
from manas_jax.errors import UserError


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


def test_the_general_network_goes_on_from_weights(experiments):
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


def test_two_starts_of_one_training_are_refused(make_config):
    config = make_config(stage="train", train__inherit=True, train__genotype="other.json")
    with pytest.raises(UserError, match=r"train\.inherit and train\.genotype exclude each other"):
        validate(config)


def test_a_key_newer_than_the_workdir_had_its_default(tmp_path, make_config):
    workdir = claim_workdir(make_config(), tmp_path)
    kept = json.loads((workdir / "config.json").read_text())
    del kept["train"]["weights"]
    (workdir / "config.json").write_text(json.dumps(kept))
    claim_workdir(make_config(), tmp_path)
    (workdir / "config.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"train\.weights: '' there, 'w' here"):
        claim_workdir(make_config(train__weights="w"), tmp_path)


def test_workdir_keeps_its_configuration(tmp_path, make_config):
    config = make_config()
    workdir = claim_workdir(config, tmp_path / "deep" / "run")
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["search"]["steps"] == config.search.steps
    assert [f.name for f in workdir.iterdir()] == ["config.json"]
    claim_workdir(config, workdir)  # the same again is fine


def test_workdir_of_another_configuration_names_what_differs(tmp_path, make_config):
    claim_workdir(make_config(), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        claim_workdir(make_config(search__steps=7, seed=3), tmp_path)
    text = str(error.value)
    assert "search.steps: 6 there, 7 here" in text
    assert "seed: 0 there, 3 here" in text
    assert "train.steps" not in text
    assert "--workdir" in text
    assert (tmp_path / "config.json").read_bytes() == before


def test_keys_that_change_no_result_may_differ(tmp_path, make_config):
    claim_workdir(make_config(), tmp_path)
    other = make_config(
        stage="train",
        log_every=1,
        evaluate__pictures=1,
        data__cache_gib=0.5,
        data__cache_dir="elsewhere",
        search__fuse=True,
        devices=0,
        height_shards=2,
        max_rollbacks=3,
    )
    claim_workdir(other, tmp_path)
    free = {"stage", "log_every", "evaluate.pictures", "search.fuse"}
    free |= {"data.cache_gib", "data.cache_dir"}
    assert free | {"devices", "height_shards", "max_rollbacks"} == set(FREE_KEYS)


@pytest.mark.parametrize("content", [b"{", b"", b"[1, 2]", b"\xff\x00"])
def test_damaged_config_json(tmp_path, make_config, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        claim_workdir(make_config(), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


def test_workdir_that_is_a_file(tmp_path, make_config):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--workdir=.* cannot be written"):
            claim_workdir(make_config(), workdir)
    assert (tmp_path / "file").read_text() == "mine"

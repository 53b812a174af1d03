"""A workdir belongs to one configuration and to one set of data."""

import json

import numpy as np
import pytest

from manas_jax.data.scene import Scene
from manas_jax.data.splits import Splits
from manas_jax.errors import UserError
from manas_jax.workdir.claim import FILE_KEYS, FREE_KEYS, claim_inputs, claim_workdir


def test_a_key_newer_than_the_workdir_had_its_default(tmp_path, make_config):
    workdir = claim_workdir(make_config(), tmp_path)
    stored = json.loads((workdir / "config.json").read_text())
    del stored["train"]["clip"]
    (workdir / "config.json").write_text(json.dumps(stored))
    claim_workdir(make_config(), tmp_path)
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"train\.clip: 0\.0 there, 1\.0 here"):
        claim_workdir(make_config(train__clip=1.0), tmp_path)


def test_workdir_stores_its_configuration(tmp_path, make_config):
    config = make_config()
    workdir = claim_workdir(config, tmp_path / "deep" / "run")
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["search"]["steps"] == config.search.steps
    assert [f.name for f in workdir.iterdir()] == ["config.json"]
    claim_workdir(config, workdir)  # the same again is fine


def test_workdir_of_another_configuration_names_the_keys_that_differ(tmp_path, make_config):
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


def test_free_keys_may_differ(tmp_path, make_config):
    claim_workdir(make_config(), tmp_path)
    other = make_config(
        stage="train",
        note="another",
        log_every=1,
        evaluate__pictures=1,
        data__cache_gib=0.5,
        data__cache_dir="elsewhere",
        data__root="moved",
        search__fuse=True,
        devices=0,
        height_shards=2,
        max_rollbacks=3,
    )
    claim_workdir(other, tmp_path)
    free = {"stage", "note", "log_every", "evaluate.pictures", "search.fuse"}
    free |= {"data.cache_gib", "data.cache_dir", "data.root", *FILE_KEYS}
    assert free | {"devices", "height_shards", "max_rollbacks"} == set(FREE_KEYS)


def test_devices_count_where_they_group_batch_norm(tmp_path, make_config):
    claim_workdir(make_config(network__batch_norm_group=2, devices=4), tmp_path)
    with pytest.raises(UserError, match="devices: 4 there, 2 here"):
        claim_workdir(make_config(network__batch_norm_group=2, devices=2), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search__fuse": True}, r"search\.fuse: False there, True here"),
        ({"devices": 2}, "devices: 1 there, 2 here"),
        ({"devices": 2, "network__batch_norm_group": 2}, "devices: 1 there, 2 here"),
    ],
)
def test_a_step_that_is_fused_or_on_several_devices_computes_no_single_path(
    tmp_path, make_config, change, message
):
    claim_workdir(make_config(search__method="evolution"), tmp_path)
    with pytest.raises(UserError, match=message):
        claim_workdir(make_config(search__method="evolution", **change), tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"[1, 2]", b"\xff\x00"])
def test_damaged_config_json(tmp_path, make_config, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: .*damaged or no configuration"):
        claim_workdir(make_config(), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


def test_workdir_that_is_a_file(tmp_path, make_config):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"--workdir=.* cannot be written"):
            claim_workdir(make_config(), workdir)
    assert (tmp_path / "file").read_text() == "mine"


def _splits(*names, test=("t",), size=4):
    """Splits of scenes of `size` rows, the last one for validation."""
    scenes = [Scene(name, np.zeros((size, 4, 3), np.uint8)) for name in (*names, *test)]
    training = scenes[: len(names)]
    return Splits(tuple(training[:-1]), (), tuple(training[-1:]), tuple(scenes[len(names) :]))


@pytest.fixture
def claim(tmp_path, make_config):
    """A function that claims splits for a stage."""

    def claim(splits, stage="search", **changes):
        config = make_config(data__source="folder", **changes)
        claim_inputs(config, tmp_path, {stage: splits})

    return claim


def test_same_data_elsewhere(claim):
    claim(_splits("a", "b"), data__root="data")
    claim(_splits("a", "b"), data__root="data/")
    claim(_splits("a", "b"), "train", data__root="/moved")


@pytest.mark.parametrize(
    ("splits", "change"),
    [
        (_splits("a", "b", "c", "d"), "2 more: c, d"),
        (_splits("a"), "1 missing: b"),
        (_splits("a", "b", size=5), "2 changed: a, b"),
        (_splits("a", "x"), "1 more: x; 1 missing: b"),
    ],
)
def test_other_data_are_refused(claim, tmp_path, splits, change):
    claim(_splits("a", "b"))
    before = (tmp_path / "inputs.json").read_bytes()
    with pytest.raises(UserError, match=rf"training data are not those .*\({change}\)"):
        claim(splits, "train")
    with pytest.raises(UserError, match="training data"):
        claim(splits, "evaluate", evaluate__split="validation")
    assert (tmp_path / "inputs.json").read_bytes() == before
    claim(_splits(), "evaluate")  # needs none of them
    claim(splits, "evaluate")
    training = json.loads((tmp_path / "inputs.json").read_text())["training"]
    assert training == json.loads(before)["training"]
    claim(_splits("a", "b"), "train")


def test_other_test_scenes_are_warned_about(claim, caplog):
    claim(_splits("a", "b", test=()))
    claim(_splits("a", "b"))
    assert not caplog.text
    claim(_splits("a", "b", test=("t", "u")), "evaluate")
    assert "test data are not those of earlier starts (1 more: u)" in caplog.text


def test_files_are_identified_by_content(claim, tmp_path):
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(content)
    claim(_splits("a", "b"), train__weights=str(tmp_path / "a"))
    claim(_splits("a", "b"), train__weights=str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"1 changed: train\.weights"):
        claim(_splits("a", "b"), train__weights=str(tmp_path / "c"))
    with pytest.raises(UserError, match=r"1 missing: train\.weights"):
        claim(_splits("a", "b"))
    with pytest.raises(UserError, match=r"train\.weights=.*gone: cannot read this file"):
        claim(_splits("a", "b"), train__weights=str(tmp_path / "gone"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{1", b'{"files": 3}', b"[" * 100_000])
def test_damaged_list_of_inputs(claim, tmp_path, content):
    (tmp_path / "inputs.json").write_bytes(content)
    with pytest.raises(UserError, match=r"inputs\.json: .*damaged or no list of data"):
        claim(_splits("a", "b"))

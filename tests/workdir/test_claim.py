"""A workdir belongs to one configuration."""

import json

import pytest

from manas_jax.errors import UserError
from manas_jax.workdir.claim import FREE_KEYS, claim_workdir


def test_a_key_newer_than_the_workdir_had_its_default(tmp_path, make_config):
    workdir = claim_workdir(make_config(), tmp_path)
    stored = json.loads((workdir / "config.json").read_text())
    del stored["train"]["weights"]
    (workdir / "config.json").write_text(json.dumps(stored))
    claim_workdir(make_config(), tmp_path)
    (workdir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"train\.weights: '' there, 'w' here"):
        claim_workdir(make_config(train__weights="w"), tmp_path)


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

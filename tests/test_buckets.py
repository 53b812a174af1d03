"""Paths with a scheme."""

import importlib
import os
import pathlib

import pytest

from manas_jax import buckets, config
from manas_jax.errors import UserError
from manas_jax.inference import pretrained


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("gs://bucket/run", "gs"),
        (pathlib.Path("S3://bucket/run"), "s3"),  # which makes one slash of two
        ("runs/tiny", ""),
        ("C:/runs", ""),
        ("a picture: 1/2.png", ""),
        (None, ""),
        (3, ""),
    ],
)
def test_scheme(path, scheme):
    assert buckets.scheme(path) == scheme


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("manas_jax.derain", ["s3://b/rain.png", "-o", "out"]),
        ("manas_jax.derain", ["rain.png", "-o", "s3://b/out"]),
        ("manas_jax.evaluate", ["--restored", "a", "--clean", "b", "--json", "s3://b/x.json"]),
        ("manas_jax.report.__main__", ["--workdir", "s3://b/run"]),
        ("manas_jax.data.prepare", ["rain100l", "--root", "s3://b/Rain100L"]),
        ("manas_jax.data.prepare", ["rain100l", "--root", "a", "--data_dir", "s3://b"]),
        ("manas_jax.inference.export", ["general", "--format", "onnx", "--out", "s3://b/x.onnx"]),
        ("manas_jax.inference.import_torch", ["s3://b/x.pt", "--out", "out"]),
        ("manas_jax.inference.import_torch", ["x.pt", "--out", "s3://b/out"]),
        (
            "manas_jax.downstream.__main__",
            ["detection", "--detector", "x.onnx", "--clean", "s3://b/clean", "--rainy", "r"],
        ),
    ],
)
def test_command_refuses_a_scheme_in_one_line(tmp_path, monkeypatch, capsys, command, arguments):
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(command).main(arguments) in (1, 2)
    written = capsys.readouterr()
    assert written.err.startswith("error: s3:/") and written.err.count("\n") == 1
    assert "s3:// is not supported" in written.err and not written.out
    assert os.listdir() == []


def test_weights_with_a_scheme_other_than_the_hubs_are_refused():
    with pytest.raises(UserError, match="s3:// is not supported"):
        pretrained.find("s3://b/w.safetensors")


@pytest.mark.parametrize("module", ["manas_jax.main", "manas_jax.study"])
def test_workdir_with_a_scheme_is_refused(tmp_path, run_command, module):
    done = run_command("--config=tiny", "--workdir=s3://b/run", module=module, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: --workdir=s3://b/run: s3:// is not supported" in done.stderr
    assert done.stderr.count("\n") == 1 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", ["data.root", "data.cache_dir", "train.weights", "train.genotype"])
def test_config_key_with_a_scheme_is_refused(make_config, key):
    section, name = key.split(".")
    with pytest.raises(UserError, match=rf"{key} = 's3://b/x': give a local path"):
        config.validate(make_config(**{f"{section}__{name}": "s3://b/x"}))


def test_urls_of_local_files(tmp_path):
    path = tmp_path / "größe 1%.png"
    assert buckets.local_path(path.as_uri()) == buckets.local_path(path) == str(path)
    assert buckets.local_path(f"file://localhost{tmp_path}") == str(tmp_path)
    for wrong in ("file://elsewhere/a.png", "s3://bucket/a.png"):
        with pytest.raises(UserError, match="give a local path"):
            buckets.local_path(wrong)

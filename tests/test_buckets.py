"""Paths with a scheme."""

import errno
import importlib.util
import os
import pathlib

import numpy as np
import pytest

from manas_jax import buckets, config, files
from manas_jax.data import images
from manas_jax.errors import UserError
from manas_jax.inference import pretrained
from manas_jax.report import __main__ as report_command
from manas_jax.space import Genotype
from manas_jax.workdir.weights import load_derived


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


@pytest.mark.parametrize("path", ["gs://", "gs:/bucket/x", "gs://b/[ab]", "gs://b//x", "gs://B/x"])
def test_address_that_is_not_one_is_refused(path):
    with pytest.raises(UserError, match="give gs://BUCKET/NAME"):
        buckets.check(path)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = r"gs://bucket/run: needs gcsfs; pip install 'manas_jax\[gcs\]'"
    with pytest.raises(UserError, match=message):
        buckets.check("runs/local", "gs://bucket/run")


def test_files_in_a_bucket_are_replaced_as_a_whole(bucket):
    file = buckets.as_path("gs://bucket/folder/x.json")
    files.write_json(file, {"a": 1})
    digest = files.sha256(str(file))
    with pytest.raises(ZeroDivisionError), files.replacing(file) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == '{\n "a": 1\n}\n' and files.sha256(file) == digest
    assert [p.name for p in file.parent.iterdir()] == ["x.json"]
    with buckets.reading_copy(file) as copy:
        assert copy.name == "x.json" and copy.read_bytes() == file.read_bytes()
    assert not copy.exists()


def test_errors_of_a_bucket_are_one_line(bucket):
    bucket(403)
    name = "gs://bucket/x.png"
    with pytest.raises(UserError, match=r"cannot write gs://bucket/x\.png"):
        images.write_png(name, np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(UserError, match=r"gs://bucket/x\.png: cannot read this genotype"):
        Genotype.load(name)


def test_report_of_a_bucket_that_refuses(bucket, capsys):
    bucket(403)
    assert report_command.main(["--workdir", "gs://bucket/run"]) == 1
    assert capsys.readouterr().err.startswith("error: gs://bucket/run: ")


def test_folder_in_a_bucket_is_moved(bucket):
    source, target = (buckets.as_path(f"gs://bucket/run/{name}") for name in ("4", "damaged/4"))
    for name in ("a", "b/c"):
        (source / name).write_text(name)
    buckets.move(source, target)
    assert not source.exists() and (target / "b/c").read_text() == "b/c"


def test_weights_of_a_bucket(bucket, weights):
    name = "gs://bucket/w.safetensors"
    buckets.as_path(name).write_bytes(weights.read_bytes())
    assert load_derived(pretrained.find(name))[1] == load_derived(weights)[1]
    with pytest.raises(UserError, match="weights gs://bucket/none: neither a file nor one of"):
        pretrained.find("gs://bucket/none")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("PERMISSION_DENIED: [http_response_code='403']"), "PERMISSION_DENIED"),
        (ValueError("ABORTED: All 32 retry attempts failed: CURL error"), "32 retry attempts"),
        (FileNotFoundError("bucket/run/x"), "bucket/run/x"),
        (TimeoutError(), "TimeoutError"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk at /"),
        (ValueError("a bug"), None),
    ],
)
def test_errors_of_storage_are_told_from_others(error, reason):
    found = buckets.storage_error(error, "gs://bucket/run")
    assert found is None if reason is None else reason in found

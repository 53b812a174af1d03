"""Files: complete or absent, suffixes, natural order, lists in messages."""

import json
import os
import pathlib
import stat

import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax.errors import UserError
from manas_jax.files import (
    check_writable,
    first_few,
    has_suffix,
    list_folder,
    natural_order,
    output_file,
    replacing,
    unique_stems,
    write_json,
    write_named_json,
)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replacing_replaces_on_exit(tmp_path):
    (tmp_path / "a.png").write_text("old")
    with replacing(tmp_path / "a.png") as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith(".tmp.png")
        temporary.write_text("new")
        assert (tmp_path / "a.png").read_text() == "old"
    assert (tmp_path / "a.png").read_text() == "new"
    assert _names(tmp_path) == ["a.png"]


def test_replacing_leaves_the_old_file_after_an_error(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old"
    assert _names(tmp_path) == ["a"]


def test_replacing_takes_names_as_long_as_names_can_be(tmp_path):
    name = "a" * 251 + ".txt"
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert _names(tmp_path) == [name]


def test_replacing_keeps_permissions(tmp_path):
    file = tmp_path / "a"
    file.write_text("old")
    file.chmod(0o600)
    with replacing(file) as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_replacing_reaches_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    events = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), rename(*paths)))
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert events == [str(temporary), "rename", str(tmp_path)]


def test_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def closed(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot read this folder \(Permission denied\)"):
        list_folder(tmp_path, {".png"})


def test_output_file_creates_its_folder(tmp_path):
    with output_file(tmp_path / "b" / "c" / "a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "b" / "c" / "a.txt").read_text() == "x"


def test_output_file_explains_errors_of_the_system(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UserError, match=r"cannot write .*a: "),
        output_file(tmp_path / "file" / "a"),
    ):
        pass
    with pytest.raises(UserError, match=r"cannot write .*b: No space"), output_file(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), output_file(tmp_path / "c"):
        raise ZeroDivisionError
    assert _names(tmp_path) == ["file"]


def test_write_json(tmp_path):
    fields = {"a": np.float32(1.5), "b": jnp.arange(2), "c": [1, None, "x"]}
    write_json(tmp_path / "x.json", fields)
    read = json.loads((tmp_path / "x.json").read_text())
    assert read == {"a": 1.5, "b": [0, 1], "c": [1, None, "x"]}
    with pytest.raises(TypeError, match="object has no representation"):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == read
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "missing" / "x.json", fields)
    assert _names(tmp_path) == ["x.json"]


def test_has_suffix():
    assert has_suffix("a/B.JPG", {".jpg"}) and has_suffix(pathlib.Path("x.webp"), {".webp"})
    assert not has_suffix("Thumbs.db", {".jpg"}) and not has_suffix("a/._b.jpg", {".jpg"})


def test_unique_stems():
    names = ["a/b", "a_b", "a/b", "a_b-2", "c"]
    assert unique_stems(names) == ["a_b", "a_b-2", "a_b-3", "a_b-2-2", "c"]


def test_natural_order():
    names = ["10.png", "2.png", "B2", "a10", "a2", "A2", "²", "a"]
    assert sorted(names, key=natural_order) == [
        "2.png",
        "10.png",
        "a",
        "A2",
        "a2",
        "a10",
        "B2",
        "²",
    ]
    paths = [pathlib.Path("x", name) for name in ("10.png", "9.png")]
    assert sorted(paths, key=natural_order) == paths[::-1]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "0"),
        (3, "0, 1, 2"),
        (4, "0, 1, 2 and 1 more"),
        (2003, "0, 1, 2 and 2,000 more"),
    ],
)
def test_first_few(count, text):
    assert first_few(range(count)) == text


def test_first_few_takes_a_limit():
    assert first_few(["a", "b", "c"], 1) == "a and 2 more"


def test_the_folder_of_a_file_is_looked_at_first(tmp_path):
    check_writable(tmp_path / "a.json", "--out")
    with pytest.raises(UserError, match=r"--out=.*missing/a\.json cannot be written: give a file"):
        check_writable(tmp_path / "missing" / "a.json", "--out")


def test_a_file_without_a_name_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable("a.json", "--out")
    for name in ("", "."):
        with pytest.raises(UserError, match=rf"--out={name} cannot be written: give a file"):
            check_writable(name, "--out")


def test_json_of_a_flag_that_cannot_be_written(tmp_path):
    write_named_json(tmp_path / "a.json", "--out", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(UserError, match=r"^--out=.*b/a\.json cannot be written \(No such file"):
        write_named_json(tmp_path / "b" / "a.json", "--out", {"a": 1})

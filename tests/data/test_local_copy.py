"""Copies of data in a bucket."""

import pytest

from manas_jax import buckets
from manas_jax.data import local_copy
from manas_jax.errors import UserError

DATA = "gs://bucket/sets/rain"


@pytest.fixture
def copied(bucket, tmp_path):
    """A function that updates the copy and returns the content of its files by name."""

    def copy(root=DATA, **below):
        local_copy.local_folder.cache_clear()
        folder = buckets.as_path(local_copy.local_folder(root, str(tmp_path), **below))
        return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}

    return copy


def test_copy_follows_the_bucket(copied, caplog):
    content = {"train/1.png": "one", "train/ü 2.png": "two", "test/3.png": "three"}
    for name, text in content.items():
        (buckets.as_path(DATA) / name).write_text(text)
    assert copied() == content
    (buckets.as_path(DATA) / "train/1.png").unlink()
    (buckets.as_path(DATA) / "test/3.png").write_text("another")
    with caplog.at_level("INFO"):
        assert copied() == {"train/ü 2.png": "two", "test/3.png": "another"}
    assert "has 2 files, 1 of them" in caplog.text


def test_part_of_a_folder(copied):
    for name in ("derain/a/x", "derain/b/y"):
        (buckets.as_path(DATA) / name).write_text(name)
    assert copied(below="derain/a") == {"derain/a/x": "derain/a/x"}


@pytest.mark.parametrize(
    ("root", "status", "message"),
    [
        ("gs://bucket/none", 0, "data.root: gs://bucket/none holds nothing"),
        (DATA, 403, f"data.root={DATA}: cannot be copied to this machine"),
    ],
)
def test_data_that_cannot_be_copied(copied, bucket, root, status, message):
    bucket(status)
    with pytest.raises(UserError, match=message):
        copied(root)


def test_local_folder_is_itself(tmp_path):
    assert local_copy.local_folder(str(tmp_path)) == str(tmp_path)

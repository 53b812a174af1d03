"""Compiling ahead of the first call, and the cache of compiled programs."""

import errno
import functools
import gc
import os
import pathlib
import platform
import re
import stat
import subprocess
import sys
import tempfile
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manas_jax import buckets
from manas_jax.runtime import compilation, sharding
from manas_jax.runtime.compilation import ParallelCompiler


@functools.partial(jax.jit, static_argnums=0)
def _scale(factor, x):
    return jnp.sin(x) * factor, x + 1


def _argument():
    return jax.device_put(
        np.arange(6, dtype=np.float32), sharding.replicated(sharding.make_mesh(1))
    )


def test_what_is_compiled_ahead_is_not_compiled_again(count_compilations):
    x = _argument()
    with ParallelCompiler(x.sharding) as compiler:
        shapes = compiler(_scale, 2.0, jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding))
        compiler(_scale, 3.0, shapes[0])  # the output of one program is the input of the next
        compiler(_scale, 2.0, x)  # again
        assert len(compiler) == 2
    with count_compilations() as compilations:
        y, _ = _scale(2.0, x)
        np.testing.assert_allclose(_scale(3.0, y)[0], np.sin(np.sin(x) * 2) * 3, rtol=1e-5)
        assert not compilations
        _scale(4.0, x)
        assert len(compilations) == 1


def test_stats():
    x = _argument()
    product = jax.jit(lambda x: x[:, None] @ x[None])
    with ParallelCompiler() as compiler:
        compiler(product, x)
    stats = compiler.stats
    assert stats.seconds > 0 and stats.flops == 2 * 36 and stats.temporary_bytes >= 0
    assert "GFLOP" in str(stats)


def test_donated_arguments_stay_usable():
    """Compiling runs nothing, so it takes no memory away."""
    x = _argument()
    donating = jax.jit(lambda x: x + 1, donate_argnums=0)
    with ParallelCompiler(x.sharding) as compiler:
        compiler(donating, x)
    assert float(x[1]) == 1.0


def test_errors_pass_through():
    with pytest.raises(TypeError), ParallelCompiler() as compiler:
        compiler(jax.jit(lambda x: x + None), _argument())


def test_objects_are_frozen_until_the_next_compilation():
    class Thing:
        """Something in a cycle, which only the garbage collector frees."""

    def compile_with_garbage():
        thing = Thing()
        thing.itself = thing
        reference = weakref.ref(thing)
        with ParallelCompiler() as compiler:
            compiler(jax.jit(lambda x: x + 1), _argument())
        return reference

    first = compile_with_garbage()
    gc.collect()
    assert first() is not None
    compile_with_garbage()
    assert first() is None
    assert gc.isenabled()


CACHED = """
import jax, jax.numpy as jnp
from manas_jax.runtime import compilation
compilation.use_cache()
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event == "/jax/compilation_cache/cache_hits" else None
)
jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(4))
print(len(hits), jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("variable", ["JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"])
def test_programs_are_cached_between_runs(tmp_path, variable):
    """However quick they are to compile, in the folder that the environment names."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {variable: str(tmp_path)}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", CACHED], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        hits, folder = done.stdout.split()
        assert pathlib.Path(folder).is_relative_to(tmp_path)
        return int(hits)

    assert run() == 0
    assert run() > 0


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A function that gives the folder that `use_cache` chooses; the user's is `tmp_path`."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def get():
        compilation.use_cache()
        return jax.config.jax_compilation_cache_dir

    yield get
    jax.config.update("jax_compilation_cache_dir", before)


def test_cache_folder_is_that_of_the_user_and_host(cache, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = pathlib.Path(cache())
    assert folder.parent == tmp_path / ".cache" / "manas_jax"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.parents[:2])} == {0o700}


def _no_home(monkeypatch, folder):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def _file(monkeypatch, folder):
    folder.parent.write_text("")


def _link(monkeypatch, folder):
    (folder.parent / "elsewhere").mkdir(parents=True)
    folder.symlink_to(folder.parent / "elsewhere")


def _group(monkeypatch, folder):
    folder.mkdir(parents=True)
    folder.chmod(0o770)


def _group_above(monkeypatch, folder):
    folder.parent.parent.chmod(0o777)


def _other_user(monkeypatch, folder):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(pathlib.Path, "lstat", lambda _: os.stat_result([0o40700] + [7] * 9))


def _full(monkeypatch, folder):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_home, "there is no home folder"),
        (_file, "Not a directory|File exists"),
        (_link, "is a link"),
        (_group, "others can write to .*manas_jax"),
        (_group_above, "others can write to "),
        (_other_user, "belongs to another user"),
        (_full, "No space left on device"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_without_a_private_cache_folder_nothing_is_cached(
    cache, monkeypatch, tmp_path, caplog, spoil, reason, given
):
    folder = tmp_path / "manas_jax" / platform.node()
    if given and spoil is not _no_home:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
    spoil(monkeypatch, folder)
    assert cache() is None
    (record,) = caplog.records
    assert re.search(f"not cached on disk: .*({reason})", record.getMessage())


def test_sticky_folders_and_links_above_are_no_danger(cache, monkeypatch, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link" / "mine"))
    assert cache() == str(tmp_path / "link" / "mine" / "manas_jax" / platform.node())


def test_cache_in_a_bucket_is_left_to_jax(cache, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    assert cache() == "gs://bucket/cache"


def test_cache_of_an_unknown_scheme_is_not_used(cache, monkeypatch, caplog):
    jax.config.update("jax_compilation_cache_dir", "s3://bucket/cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "s3://bucket/cache")
    assert cache() is None
    assert "s3:// is not supported" in caplog.text


SQUARE = """
import jax, logging
from manas_jax.runtime import compilation
compilation.use_cache()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
assert float(jax.jit(lambda x: x * x + 41)(3.0)) == 50
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_processes_share_programs_in_a_bucket(bucket, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    counts = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", SQUARE], capture_output=True, text=True)
        counts.append(int(done.stdout))
    assert counts[0] == 0 and counts[1] > 0
    assert any(p.name.endswith("-cache") for p in buckets.as_path("gs://bucket/cache").iterdir())


def test_only_the_first_warning_about_the_cache_is_shown(cache, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(message))
    cache()
    for i in range(3):
        for text in (f"Error writing persistent compilation cache entry {i}", f"other {i}"):
            warnings.showwarning(UserWarning(text), UserWarning, "file", 1)
    assert list(map(str, shown)) == [
        "Error writing persistent compilation cache entry 0", "other 0", "other 1", "other 2"
    ]  # fmt: skip

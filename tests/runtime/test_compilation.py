"""Compiling ahead of the first call, and the cache of compiled programs."""

import functools
import gc
import os
import pathlib
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_cache_folder_is_that_of_the_user_and_host(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    try:
        compilation.use_cache()
        folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
        assert folder.parent == tmp_path / ".cache" / "manas_jax"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("reason", ["home", "file", "closed"])
def test_without_a_usable_cache_folder_nothing_is_cached(monkeypatch, tmp_path, caplog, reason):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if reason == "home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(pathlib.Path, "home", no_home)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if reason == "file":
        (tmp_path / "cache").write_text("")
    if reason == "closed":  # not by its mode, as root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    compilation.use_cache()
    assert jax.config.jax_compilation_cache_dir == before
    (record,) = caplog.records
    assert "not cached on disk: " in record.getMessage()

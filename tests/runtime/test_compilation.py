"""Compiling ahead, and programs that are kept whole between runs."""

import gc
import os
import pathlib
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from manas_jax.inference import fold_batch_norm
from manas_jax.inference.derainer import Derainer
from manas_jax.runtime import compilation, executable_cache, sharding
from manas_jax.runtime.compilation import Ahead, compile_all
from manas_jax.training import build

STATE = optax.TraceState({"a": np.arange(6, dtype=np.float32)})  # a pytree of a class of its own


def _make(identity="a"):
    """A function that counts how often it is traced, and the count."""
    traces = []

    def function(state, factor):
        traces.append(1)
        return jax.tree.map(lambda x: jnp.sin(x) * factor, state)

    return Ahead(jax.jit(function, donate_argnums=0), identity), traces


def _arguments():
    return jax.device_put((STATE, np.float32(2)), sharding.replicated(sharding.make_mesh(1)))


def _run(ahead):
    return np.asarray(ahead(*_arguments()).trace["a"])


WANTED = np.sin(STATE.trace["a"]) * 2


@pytest.fixture
def folder(tmp_path):
    """JAX's cache, which takes all programs, however quick to compile."""
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    for values in (wanted, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is wanted:
            yield tmp_path


def _kept(folder):
    return list(folder.glob("*" + executable_cache.SUFFIX))


def _empty_jax_cache(folder):
    for file in set(folder.iterdir()) - set(_kept(folder)):
        file.unlink()


def test_the_next_start_does_not_trace(folder):
    ahead, traces = _make()
    first = ahead.compile(*_arguments())
    assert len(traces) == 1
    again, traces = _make()
    second = again.compile(*_arguments())
    np.testing.assert_allclose(_run(again), WANTED, rtol=1e-6)
    np.testing.assert_array_equal(_run(again), _run(ahead))
    assert not traces
    assert first.flops == second.flops > 0
    given = _arguments()
    again(*given)
    assert given[0].trace["a"].is_deleted()  # its memory is given away as before


def test_what_compiles_quickly_is_kept_too(folder):
    """JAX itself keeps nothing that takes less than a second."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
    _make()[0].compile(*_arguments())
    again, traces = _make()
    again.compile(*_arguments())
    np.testing.assert_allclose(_run(again), WANTED, rtol=1e-6)
    assert not traces


def test_without_links_programs_are_kept_by_name(folder, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    _make()[0].compile(*_arguments())
    again, traces = _make()
    again.compile(*_arguments())
    assert not traces and len(_kept(folder)) == 1


def test_shapes_will_do(folder):
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _arguments()
    )
    _make()[0].compile(*shapes)
    again, traces = _make()
    again.compile(*_arguments())
    np.testing.assert_allclose(_run(again), WANTED, rtol=1e-6)
    assert not traces


def _damage(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


SPOILED = {
    "damaged": _damage,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "writable by everyone": lambda file: file.chmod(0o666),
    "a folder writable by everyone": lambda file: file.parent.chmod(0o777),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_cannot_be_trusted_is_compiled_again(folder, spoil):
    _make()[0].compile(*_arguments())
    spoil(_kept(folder)[0])  # the other one is a link to it
    _empty_jax_cache(folder)
    again, traces = _make()
    again.compile(*_arguments())
    np.testing.assert_allclose(_run(again), WANTED, rtol=1e-6)
    assert len(traces) == 1
    folder.chmod(0o700)
    third, traces = _make()
    third.compile(*_arguments())
    assert not traces  # it has been written anew


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
def test_what_is_another_users_is_compiled_again(folder, monkeypatch):
    _make()[0].compile(*_arguments())
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    again, traces = _make()
    again.compile(*_arguments())
    assert len(traces) == 1


def test_a_folder_that_takes_nothing_is_no_error(tmp_path, monkeypatch):
    place = tmp_path / "file"
    place.write_text("in the folder's place")
    monkeypatch.setattr(executable_cache, "folder", lambda: place)
    assert executable_cache.remembered("a", lambda: 3) == 3
    executable_cache.write("a", None, {})
    assert executable_cache.read("a", ()) is None


def test_only_the_newest_stay(folder, monkeypatch):
    monkeypatch.setattr(executable_cache, "NEWEST", 2)
    for identity in "abc":
        _empty_jax_cache(folder)
        _make(identity)[0].compile(*_arguments())
    assert len(_kept(folder)) == 2


def test_values_are_remembered(folder):
    shapes = {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    assert executable_cache.remembered("shapes", lambda: shapes) == shapes
    assert executable_cache.remembered("shapes", lambda: pytest.fail("made again")) == shapes
    assert executable_cache.remembered("others", lambda: 3) == 3
    for file in _kept(folder):
        _damage(file)
    assert executable_cache.remembered("others", lambda: 4) == 4


def test_a_changed_source_that_makes_the_same_program_finds_it(folder, monkeypatch):
    _make()[0].compile(*_arguments())
    monkeypatch.setattr(executable_cache, "_source", lambda: "changed")
    monkeypatch.setattr(compilation, "_compile", lambda _: pytest.fail("compiled again"))
    for traced in (1, 0):  # then it is found by its name, too
        again, traces = _make()
        again.compile(*_arguments())
        np.testing.assert_allclose(_run(again), WANTED, rtol=1e-6)
        assert len(traces) == traced


def test_programs_of_other_results_are_told_apart():
    arguments = _arguments()
    functions = lambda x, _: {"a": x.trace["a"]}, lambda x, _: {"b": x.trace["a"]}
    keys = {
        executable_cache.key_by_text(jax.jit(f).lower(*arguments), arguments) for f in functions
    }
    assert len(keys) == 2


def test_pictures_are_restored_by_kept_programs(folder, weights, monkeypatch):
    """Untraced; other sizes and gates have programs of their own."""
    traces, apply = [], fold_batch_norm.apply

    def traced(*args, **kwargs):
        traces.append(1)
        return apply(*args, **kwargs)

    monkeypatch.setattr(fold_batch_norm, "apply", traced)
    made = []
    for height, pool_cell in ((8, 8), (8, 8), (16, 8), (8, None), (8, 8)):
        picture = np.random.default_rng(0).integers(256, size=(height, 8, 3), dtype=np.uint8)
        derain = Derainer.from_pretrained(weights, pool_cell=pool_cell)
        made.append((len(traces), derain(picture), derain(picture)))
    assert [before for before, *_ in made] == [0, 1, 1, 2, 3] and len(traces) == 3
    for again in (*made[0][1:], *made[1][1:], *made[4][1:]):
        np.testing.assert_array_equal(again, made[0][1])


def test_without_identity_nothing_is_kept(folder):
    _make("")[0].compile(*_arguments())
    assert not _kept(folder)


def test_what_jax_kept_is_not_kept_again(folder):
    """For want of functions such a program would fail when run."""
    _make()[0].compile(*_arguments())
    for file in _kept(folder):
        file.unlink()
    for _ in range(2):
        again, traces = _make()
        again.compile(*_arguments())
        np.testing.assert_allclose(_run(again), WANTED, rtol=1e-6)
        assert len(traces) == 1
    assert not _kept(folder)


def test_key_tells_programs_apart():
    arguments = _arguments()
    keys = [executable_cache.key("a", arguments), executable_cache.key("b", arguments)]
    keys.append(executable_cache.key("a", arguments[::-1]))
    keys.append(
        executable_cache.key("a", jax.tree.map(lambda x: x.astype(jnp.bfloat16), arguments))
    )
    keys.append(executable_cache.key("a", jax.tree.map(lambda x: x[None], arguments)))
    keys.append(executable_cache.key("a", jax.tree.map(np.asarray, arguments)))  # lies elsewhere
    with jax.default_matmul_precision("highest"):
        keys.append(executable_cache.key("a", arguments))
    assert len(set(keys)) == len(keys)
    assert executable_cache.key("a", arguments) == keys[0]


@pytest.mark.parametrize(
    ("place", "enabled", "processes", "kept_there"),
    [
        ("/a/folder", True, 1, True),
        ("/a/folder", False, 1, False),
        ("/a/folder", True, 2, False),
        ("gs://bucket/cache", True, 1, False),
        (None, True, 1, False),
    ],
)
def test_where_programs_are_kept(monkeypatch, place, enabled, processes, kept_there):
    config = types.SimpleNamespace(
        jax_compilation_cache_dir=place, jax_enable_compilation_cache=enabled
    )
    stand_in = types.SimpleNamespace(config=config, process_count=lambda: processes)
    monkeypatch.setattr(executable_cache, "jax", stand_in)
    assert executable_cache.folder() == (pathlib.Path(place) if kept_there else None)


def test_identity_holds_what_shapes_a_program(make_config):
    config = make_config()
    same = make_config(seed=7, data__root="elsewhere", data__split_seed=3, devices=0)
    assert build.identity(config, "search") == build.identity(same, "search")
    others = [
        make_config(search__learning_rate=0.5),
        make_config(search__steps=config.search.steps + 1),
        make_config(objectives__tv=0.5),
        make_config(network__remat=True),
        make_config(space__channels=(4, 16)),
    ]
    identities = {build.identity(other, "search") for other in [config, *others]}
    identities.add(build.identity(config, "train"))
    assert len(identities) == len(others) + 2


def test_several_are_compiled_and_their_seconds_add_up():
    (one, _), (two, _) = _make(""), _make("")
    made = compile_all((one, _arguments()), (two, _arguments()))
    assert len(made) == 2
    assert min(c.seconds for c in made) >= 0
    np.testing.assert_array_equal(_run(one), _run(two))


def test_other_arguments_than_foreseen_are_compiled_for():
    ahead, traces = _make("")
    ahead.compile(*_arguments())
    state, factor = jax.tree.map(lambda x: x[None], _arguments())
    np.testing.assert_allclose(ahead(state, factor).trace["a"][0], WANTED, rtol=1e-6)
    np.testing.assert_allclose(_run(ahead), WANTED, rtol=1e-6)
    assert len(traces) <= 3


class _Circle:
    """Garbage that only the collector finds, once it is let go."""

    def __init__(self):
        self.itself = self


def test_what_is_there_is_not_looked_through_but_is_at_the_next_compilation():
    circle = _Circle()
    there = weakref.ref(circle)
    compilation.Ahead(jax.jit(jnp.sin)).compile(1.0)
    assert gc.isenabled() and gc.get_freeze_count() > 1000
    del circle
    gc.collect()
    assert there()
    compilation.Ahead(jax.jit(jnp.cos)).compile(1.0)
    assert not there() and gc.get_freeze_count() > 1000
    gc.unfreeze()


def test_collection_goes_on_afterwards():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), compilation.collection_paused():
        assert not gc.isenabled()
        with compilation.collection_paused():
            pass
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()

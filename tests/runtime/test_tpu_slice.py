"""Names of slices, and what is missing to compile for them."""

import importlib.util

import jax
import pytest
from jax.experimental import topologies

from manas_jax import errors
from manas_jax.errors import UserError
from manas_jax.runtime import tpu_slice


@pytest.mark.parametrize(
    ("topology", "accelerator"),
    [
        ("v5e:4x4", "v5litepod-16"),
        ("v5p:4x4x4", "v5p-128"),
        ("v6e:2x4", "v6e-8"),
        ("v4:2x2x1", "v4-8"),
    ],
)
def test_accelerator_types(topology, accelerator):
    assert tpu_slice.accelerator_type(topology) == accelerator
    assert tpu_slice._of_accelerator_type(accelerator) == topology


def test_every_slice_has_one_accelerator_type():
    names = [
        tpu_slice.accelerator_type(f"{generation}:{shape}")
        for generation, chip in tpu_slice.CHIPS.items()
        for shape in chip.topologies
    ]
    assert len(set(names)) == len(names)


def test_clocks_are_those_of_processors():
    for chip in tpu_slice.CHIPS.values():
        assert 1e9 < chip.clock < 2e9


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:4", "v5e:4x", "v5litepod-5", ""])
def test_unknown_slices(name):
    with pytest.raises(UserError, match=f"--topology={name}: unknown; give one of .*v5e:1x1, 2x2"):
        tpu_slice.find(name)


def test_libtpu_is_missing(monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs libtpu; pip install 'manas_jax\[tpu\]'"):
        tpu_slice.find("v5e:4x4")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("INVALID_ARGUMENT: not divisible", "^--topology=v5e:3x5: unknown; give one of "),
        ("ABORTED: a\nlock", r"^--topology=v5e:3x5: libtpu fails \(ABORTED: a lock\)$"),
    ],
)
def test_slices_that_libtpu_refuses(monkeypatch, error, message):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(error)

    monkeypatch.setattr(tpu_slice, "check_extra", lambda *_, **__: None)
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match=message):
        tpu_slice.find("v5e:3x5")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu")
@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [("v5e:1x1", 1, 1), ("v5e:2x4", 8, 1), ("v5litepod-16", 16, 4), ("v4-16", 8, 2)],
)
def test_chips_and_hosts(name, chips, hosts):
    found = tpu_slice.find(name)
    assert (len(found.devices), found.hosts) == (chips, hosts)

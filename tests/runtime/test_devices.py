"""Whether there is an accelerator, mostly without loading JAX."""

import subprocess
import sys

import pytest

from manas_jax.runtime import devices


@pytest.mark.parametrize(
    ("platforms", "expected"), [("cpu", False), ("cuda", True), ("tpu,cpu", True)]
)
def test_the_platforms_of_the_user_decide(monkeypatch, platforms, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(devices, "_plugins", lambda: not expected)
    assert devices.has_accelerator() == expected


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_jax_decides_where_it_is_loaded(monkeypatch, backend):
    import jax

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(devices, "_plugins", lambda: False)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert devices.has_accelerator() == (backend == "gpu")


@pytest.mark.parametrize("plugin", [False, True])
def test_jax_is_loaded_only_where_an_accelerator_may_be(plugin, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    code = f"""
import sys
from manas_jax.runtime import devices
devices._plugins = lambda: {plugin}
devices.has_accelerator()
assert ("jax" in sys.modules) == {plugin}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

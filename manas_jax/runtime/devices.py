"""The devices that a command asks for, and whether there are others than CPUs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING

from manas_jax.errors import UserError, install

if TYPE_CHECKING:
    import jax

_NAME = re.compile(r"(cpu|gpu|tpu)(?::(\d+))?")
_EXTRAS = {"gpu": f"; for NVIDIA {install('gpu')}", "tpu": f"; {install('tpu')}"}


def find(name: str | None = None) -> list[jax.Device]:
    """The devices of this process that a name stands for.

    Args:
      name: 'cpu', 'gpu' or 'tpu', with ':N' for the one of index N; None for all that JAX prefers.

    Raises:
      UserError: there are none, or it is no such name.
    """
    import jax

    match = _NAME.fullmatch(name or "cpu")
    if not match:
        raise UserError(f"--device {name}: give cpu, gpu or tpu, or one of several such as gpu:1")
    kind, index = match.groups() if name else (None, None)
    if kind == "cpu":  # nothing else is started, such as a GPU that is at work elsewhere
        jax.config.update("jax_platforms", kind)
    try:
        found = jax.local_devices(backend=kind)
    except (RuntimeError, AssertionError):  # the latter where JAX_PLATFORMS names no device
        wanted = f"--device {name}" if name else f"JAX_PLATFORMS={jax.config.jax_platforms}"
        raise UserError(
            f"{wanted}: this machine has none that JAX can use{_EXTRAS.get(kind, '')}"
        ) from None
    if index is None:
        return found
    if int(index) >= len(found):
        raise UserError(f"--device {name}: there are {len(found)}, counted from 0")
    return [found[int(index)]]


def has_accelerator() -> bool:
    """Whether JAX computes on something else than CPUs.

    Where `JAX_PLATFORMS` does not decide, JAX is loaded only if it is already, or if libraries of
    an accelerator are installed: TPU's, or a plugin, by which JAX finds every other one.
    """
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] != "cpu"
    if "jax" not in sys.modules and not _plugins():
        return False
    import jax

    return jax.default_backend() != "cpu"


def _plugins() -> bool:
    """Whether libraries of an accelerator are installed."""
    found = map(importlib.util.find_spec, ("libtpu", "jax_plugins"))
    return any(found) or bool(importlib.metadata.entry_points(group="jax_plugins"))

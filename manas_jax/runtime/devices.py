"""The devices that a command asks for."""

from __future__ import annotations

import re

import jax

from manas_jax.errors import UserError, install

_NAME = re.compile(r"(cpu|gpu|tpu)(?::(\d+))?")
_EXTRAS = {"gpu": f"; for NVIDIA {install('gpu')}", "tpu": f"; {install('tpu')}"}


def find(name: str | None = None) -> list[jax.Device]:
    """The devices of this process that a name stands for.

    Args:
      name: 'cpu', 'gpu' or 'tpu', with ':N' for the one of index N; None for all that JAX prefers.

    Raises:
      UserError: there are none, or it is no such name.
    """
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

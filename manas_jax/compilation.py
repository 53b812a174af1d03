"""Compiling ahead of the first call, and saying what it took."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import time
from typing import Any

import jax


def use_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where already.

    They lie in the user's cache folder, one folder a host: programs for a CPU need not run on
    another one that shares the home folder.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(root) / "manas_jax" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What compiling a function took and what its program does.

    Attributes:
      seconds: wall time of tracing, lowering and compiling.
      flops: floating-point operations of one call, as XLA counts them before it optimises.
      temporary_bytes: memory that one call needs besides arguments and results.
    """

    seconds: float
    flops: float
    temporary_bytes: int

    def __add__(self, other: Compilation) -> Compilation:
        """Of two programs that run one after the other."""
        return Compilation(
            self.seconds + other.seconds,
            self.flops + other.flops,
            max(self.temporary_bytes, other.temporary_bytes),
        )

    def times(self, calls: int) -> Compilation:
        """Of a program that is called several times."""
        return dataclasses.replace(self, flops=self.flops * calls)

    def __str__(self) -> str:
        return (
            f"{self.seconds:.1f} s, {self.flops / 1e9:.2f} GFLOP, "
            f"{self.temporary_bytes / 2**20:.0f} MiB besides arguments and results"
        )


class Ahead:
    """A jitted function that can be compiled ahead of its first call."""

    def __init__(self, function: Any):
        self.function = function
        self.executable = None

    def __call__(self, *args: Any) -> Any:
        """Calls the compiled program if there is one, else the jitted function."""
        return (self.executable or self.function)(*args)

    def compile(self, *args: Any) -> Compilation:
        """Compiles for arguments like these, which may be shapes with shardings."""
        start = time.monotonic()
        lowered = self.function.lower(*args)
        self.executable = lowered.compile()
        seconds = time.monotonic() - start
        flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
        memory = self.executable.memory_analysis()
        return Compilation(seconds, flops, getattr(memory, "temp_size_in_bytes", 0))

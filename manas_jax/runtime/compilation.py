"""Compiling ahead of the first call, and what it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import pathlib
import platform
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from manas_jax.runtime import malloc


def use_cache() -> None:
    """Caches compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where already.

    They lie in the user's cache folder, one folder per host: programs for one CPU need not run on
    another one that shares the home folder. Where that folder cannot be used, logs a warning, and
    nothing is cached.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder = _cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(f"{folder} is of another user, or read-only")
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            logging.warning("compiled programs are not cached on disk: %s", error)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # A step consists of many programs, most of which compile in less than JAX's default of 1 s.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _cache_folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "manas_jax" / platform.node()


@dataclasses.dataclass(frozen=True)
class CompileStats:
    """What compiling took, and what the programs need.

    Attributes:
      seconds: wall time of tracing, lowering and compiling.
      flops: floating-point operations of all programs, called once each, as XLA counts them before
        it optimises.
      temporary_bytes: memory that a call needs besides arguments and results, of the largest.
    """

    seconds: float
    flops: float
    temporary_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:.1f} s, {self.flops / 1e9:.2f} GFLOP, "
            f"{self.temporary_bytes / 2**20:.0f} MiB besides arguments and results"
        )


class ParallelCompiler:
    """Compiles jitted functions in threads while further ones are traced.

    `jax.jit` caches what is compiled here: later calls with arguments of the same shapes, types and
    shardings compile nothing.

    with ParallelCompiler() as compiler:
        compiler(function, *args)
    compiler.stats
    """

    def __init__(self, sharding: jax.sharding.Sharding | None = None):
        """Args:
        sharding: of the shapes that `__call__` returns; None for unspecified."""
        self._sharding = sharding
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self._compiled: dict[Any, tuple[Future, Any]] = {}
        self.stats: CompileStats | None = None

    def __enter__(self) -> ParallelCompiler:
        self._start = time.monotonic()
        self._paused = contextlib.ExitStack()
        self._paused.enter_context(_collection_paused())
        return self

    def __call__(self, function: Any, *args: Any) -> Any:
        """Starts to compile for arguments like these; returns the shapes of the outputs.

        Args:
          function: made by `jax.jit`.
          *args: arrays, `jax.ShapeDtypeStruct`s with shardings, or static arguments.
        """
        leaves, structure = jax.tree.flatten(args)
        key = function, structure, tuple(map(_abstract, leaves))
        if key not in self._compiled:
            lowered = function.lower(*args)
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding),
                lowered.out_info,
            )
            self._compiled[key] = self._pool.submit(_compile, lowered), shapes
        return self._compiled[key][1]

    def __len__(self) -> int:
        """Number of different programs so far."""
        return len(self._compiled)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                costs = [future.result() for future, _ in self._compiled.values()]
                self.stats = CompileStats(
                    time.monotonic() - self._start,
                    sum(flops for flops, _ in costs),
                    max((size for _, size in costs), default=0),
                )
        finally:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._compiled.clear()
            self._paused.close()
            _freeze_objects()
            malloc.trim()


def _abstract(x: Any) -> Any:
    """What of an argument a program depends on."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return x.shape, x.dtype, getattr(x, "sharding", None)
    return x


def _compile(lowered: jax.stages.Lowered) -> tuple[float, int]:
    """Compiles; returns FLOPs and temporary bytes."""
    memory = lowered.compile().memory_analysis()
    cost = lowered.cost_analysis() or {}
    return cost.get("flops", 0.0), getattr(memory, "temp_size_in_bytes", 0)


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Python's garbage collector rests within.

    Tracing creates millions of objects that stay; scanning them again and again would take a tenth
    to a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _freeze_objects() -> None:
    """Moves live objects out of the garbage collector, so that no step pauses to scan them.

    Those frozen before are scanned once: a process that compiles for one network after the other
    would else never free any of them.
    """
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
    gc.freeze()

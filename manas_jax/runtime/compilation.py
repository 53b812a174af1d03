"""Compiling ahead of the first call, and what it takes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import logging
import os
import pathlib
import platform
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from manas_jax import buckets
from manas_jax.errors import UserError
from manas_jax.runtime import malloc

Compiler = Callable[..., Any]
"""(program, *arguments, calls=1) -> shapes of the program's outputs, such as `ParallelCompiler`."""


def use_cache() -> None:
    """Caches compiled programs between runs, in a folder that nobody else can write.

    The folder is `JAX_COMPILATION_CACHE_DIR`, or one per host in the user's cache folder: programs
    for one CPU need not run on another one that shares the home folder. As a program in it is
    trusted, it is used only if it and those above it belong to this user or to root. Without such a
    folder, or where it cannot be written, nothing is cached and a warning says why. In a bucket,
    `gs://BUCKET/NAME`, several machines share the programs: the first process of a run writes those
    that it compiles, and all of them read.
    """
    # A step consists of many programs, most of which compile in less than JAX's default of 1 s.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    _warn_once("persistent compilation cache")
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    try:
        if buckets.scheme(given):  # a bucket, which has permissions of its own
            buckets.as_path(given)
            return
        folder = pathlib.Path(given) if given else _default_folder()
        _make_private(folder.absolute())
    except (OSError, UserError) as error:
        logging.warning("compiled programs are not cached on disk: %s", error)
        folder = None
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))


def _default_folder() -> pathlib.Path:
    try:
        return user_cache_folder() / platform.node()
    except OSError as error:
        raise OSError(f"{error}; set JAX_COMPILATION_CACHE_DIR to have a cache") from None


def user_cache_folder() -> pathlib.Path:
    """This package's folder in the user's cache folder; it need not exist.

    Raises:
      OSError: there is no home folder.
    """
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(root):
        raise OSError("there is no home folder")
    return pathlib.Path(root) / "manas_jax"


def _make_private(folder: pathlib.Path) -> None:
    """Creates a folder unless it exists, and checks that only this user and root can change it.

    Raises:
      OSError: others can change it, or it is a link or cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    for path in {folder, folder.resolve()}:
        for part in (path, *path.parents):
            if os.path.lexists(part):
                _check_owner(part)
    if folder.is_symlink() or folder.parent.is_symlink():
        raise OSError(f"{folder} is a link")
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))


def _check_owner(path: pathlib.Path) -> None:
    """Raises OSError if anyone but this user and root can replace what lies in a folder."""
    status = path.lstat()
    if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        raise OSError(f"{path} belongs to another user")
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if stat.S_ISDIR(status.st_mode) and others and not status.st_mode & stat.S_ISVTX:
        raise OSError(f"others can write to {path}")


def _warn_once(topic: str) -> None:
    """Shows only the first warning whose message has these words."""
    show, seen = warnings.showwarning, []

    def show_first(message: Warning | str, *details: Any, **options: Any) -> None:
        if topic in str(message):
            seen.append(message)
            if len(seen) > 1:
                return
        show(message, *details, **options)

    warnings.showwarning = show_first


@dataclasses.dataclass(frozen=True)
class CompileStats:
    """What compiling took, and what the programs need.

    Attributes:
      seconds: wall time of tracing, lowering and compiling.
      flops: floating-point operations of all calls, as XLA counts them before it optimises; of a
        step of search or training those of the network's definition, see `cost.gradient_flops`.
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
        self._calls: collections.Counter = collections.Counter()
        self.stats: CompileStats | None = None

    def __enter__(self) -> ParallelCompiler:
        self._start = time.monotonic()
        self._paused = contextlib.ExitStack()
        self._paused.enter_context(_collection_paused())
        return self

    def __call__(self, function: Any, *args: Any, calls: int = 1) -> Any:
        """Starts to compile for arguments like these; returns the shapes of the outputs.

        Args:
          function: made by `jax.jit`.
          *args: arrays, `jax.ShapeDtypeStruct`s with shardings, or static arguments.
          calls: how often it will be called with these arguments.
        """
        key = call_key(function, args)
        if key not in self._compiled:
            lowered = function.lower(*args)
            shapes = output_shapes(lowered, self._sharding)
            self._compiled[key] = self._pool.submit(_compile, lowered), shapes
        self._calls[key] += calls
        return self._compiled[key][1]

    def __len__(self) -> int:
        """Number of different programs so far."""
        return len(self._compiled)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None:
                costs = {key: future.result() for key, (future, _) in self._compiled.items()}
                self.stats = CompileStats(
                    time.monotonic() - self._start,
                    sum(self._calls[key] * flops for key, (flops, _) in costs.items()),
                    max((size for _, size in costs.values()), default=0),
                )
        finally:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._compiled.clear()
            self._paused.close()
            _freeze_objects()
            malloc.trim()


def call_key(function: Any, args: Any) -> Any:
    """A hashable value that is the same for calls that share a compiled program."""
    leaves, structure = jax.tree.flatten(args)
    return function, structure, tuple(map(_abstract, leaves))


def output_shapes(lowered: jax.stages.Lowered, sharding: jax.sharding.Sharding | None) -> Any:
    """Shapes and types of a program's outputs, with a sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), lowered.out_info
    )


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

"""Compiling ahead of the first call, and saying what it took."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import pathlib
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from absl import logging

from manas_jax.runtime import executable_cache, malloc


def use_cache() -> None:
    """Keeps compiled programs between runs, unless JAX_COMPILATION_CACHE_DIR says where already.

    They lie in the user's cache folder, one folder a host: programs for a CPU need not run on
    another one that shares the home folder. See `manas_jax.runtime.executable_cache` for what is
    kept there besides JAX's own files.
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
      flops: floating-point operations of one call, as XLA counts them before it optimises; of what
        is many programs by arithmetic on the network.
      temporary_bytes: memory that one call needs besides arguments and results; of what is many
        programs that of the largest one counted.
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


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Python's garbage collector rests within: tracing makes millions of objects that stay.

    To look through all of them, again and again, would take a tenth to a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Ahead:
    """A jitted function that can be compiled ahead of its first call.

    Args:
      function: the jitted function.
      identity: what tells it from all other functions that the package's source may make, such as
        its name with the whole configuration: by it the program is kept between runs, see
        `manas_jax.runtime.executable_cache`. Empty for one that is not kept.
      counted: whether XLA is to count operations, which takes a while.
    """

    def __init__(self, function: Any, identity: str = "", counted: bool = True):
        self.function = function
        self.identity = identity
        self.counted = counted
        self.executable = None

    @classmethod
    def of(
        cls,
        function: Callable,
        identity: str,
        *,
        name: str | None = None,
        donate: int | tuple[int, ...] = (),
        counted: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> Ahead:
        """Of a function still to be jitted.

        Args:
          function: a pure function of arrays.
          identity: as above, of all the functions of a step together; this one adds its name.
          name: of the function, where it has none of its own.
          donate: arguments whose memory is given away.
          counted: as above.
          options: of the compiler, see `jax.jit`; a matter of the package's source.
        """
        named = f"{name or function.__name__} {identity}" if identity else ""
        jitted = jax.jit(function, donate_argnums=donate, compiler_options=options)
        return cls(jitted, named, counted)

    def __call__(self, *args: Any) -> Any:
        """Calls the compiled program if there is one and it takes these, else the function."""
        if self.executable is not None:
            try:
                return self.executable(*args)
            except (TypeError, ValueError) as error:  # raised before anything is run or given away
                logging.warning("compiled again for other arguments than foreseen: %s", error)
                self.executable = None
        return self.function(*args)

    def compile(self, *args: Any) -> Compilation:
        """Compiles for arguments like these, which may be shapes with shardings."""
        return compile_all((self, args))[0]


def compile_all(
    *wanted: tuple[Ahead, tuple[Any, ...]], meanwhile: Callable[[], Any] = lambda: None
) -> list[Compilation]:
    """Compiles several functions ahead, each while the next ones are traced.

    Args:
      *wanted: functions, each with arguments as `Ahead.compile` has them; best the smallest first.
      meanwhile: done before they are waited for; its time counts as that of the first.

    Returns:
      What each took; `seconds` count from the end of that before, so that they add up.
    """
    # One thread a program and one for what there is to count of it.
    with collection_paused(), ThreadPoolExecutor(2 * len(wanted)) as pool:
        since = time.monotonic()
        begun = [_begin(pool, ahead, args) for ahead, args in wanted]
        meanwhile()
        made = []
        while begun:  # which are let go, as they hold traced programs
            facts = begun.pop(0).finish()
            made.append(Compilation(time.monotonic() - since, **facts))
            since = time.monotonic()
        _spare_collector()
    return made


def _spare_collector() -> None:
    """Takes what is there out of what Python's garbage collector looks through.

    Nearly all of it stays, and to look through it stops some step for half a second. What an
    earlier call took out is looked through once: a process that compiles for one network after the
    other would else keep what was left of all of them.
    """
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
    gc.freeze()


class _Begun(NamedTuple):
    """A program that is being compiled or loaded.

    Attributes:
      finish: waits for it and gives flops and temporary bytes.
      shapes: gives those of what the program will give.
    """

    finish: Callable[[], dict[str, Any]]
    shapes: Callable[[], Any]


def _begin(pool: ThreadPoolExecutor, ahead: Ahead, args: tuple[Any, ...]) -> _Begun:
    """Starts to load or compile."""

    def make(lowered):
        """A program, the facts kept with it if it was, and its key by its text if that may be."""
        by_text = executable_cache.key_by_text(lowered, args) if name else ""
        if (
            by_text
            and executable_cache.has(by_text)
            and (found := executable_cache.read(by_text, args))
        ):
            return *found, by_text
        executable, afresh = _compile(lowered)
        return executable, None, by_text if afresh else ""

    def compiling():
        lowered = ahead.function.lower(*args)
        program = pool.submit(make, lowered)
        # It takes seconds, too; the compiler leaves cores idle.
        cost = pool.submit(lowered.cost_analysis) if ahead.counted else None

        def finish():
            ahead.executable, facts, by_text = program.result()
            if facts is None:
                memory = ahead.executable.memory_analysis()
                facts = {
                    "flops": ((cost and cost.result()) or {}).get("flops", 0.0),
                    "temporary_bytes": getattr(memory, "temp_size_in_bytes", 0),
                }
                if by_text:
                    executable_cache.write(name, ahead.executable, facts)
                    executable_cache.link(name, by_text)
            else:
                executable_cache.link(by_text, name)
            return facts

        return _Begun(finish, lambda: lowered.out_info)

    def loading():
        program = pool.submit(executable_cache.read, name, args)
        instead = functools.cache(compiling)

        def finish():
            if (found := program.result()) is None:
                return instead().finish()
            ahead.executable, facts = found
            return facts

        def shapes():
            found = program.result()
            return instead().shapes() if found is None else found[0].out_info

        return _Begun(finish, shapes)

    name = (
        executable_cache.key(ahead.identity, args)
        if ahead.identity and executable_cache.folder()
        else ""
    )
    return loading() if name and executable_cache.has(name) else compiling()


_HIT = "/jax/compilation_cache/cache_hits"
_noted = threading.local()


def _note(event: str, **_: Any) -> None:
    """Counts programs asked of JAX's cache and those found there, by thread.

    What JAX calls a miss is only what it then writes, which leaves out what compiles quickly.
    """
    if event in ("/jax/compilation_cache/compile_requests_use_cache", _HIT):
        _noted.afresh = _afresh() + (-1 if event == _HIT else 1)


def _afresh() -> int:
    """How many programs the compiler has made in this thread."""
    return getattr(_noted, "afresh", 0)


jax.monitoring.register_event_listener(_note)


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """The program, and whether JAX says that its compiler has just made it.

    One for CPU that came out of JAX's cache cannot be kept: serialized again it lacks functions,
    and fails when it is run.
    """
    before = _afresh()
    executable = lowered.compile()
    return executable, _afresh() > before


def kinds(arrays: Iterable[Any]) -> tuple[tuple[Any, ...], ...]:
    """What of arrays shapes a program: shape, type and place."""
    return tuple((x.shape, x.dtype, getattr(x, "sharding", None)) for x in arrays)


class Programs:
    """Compiled programs of functions, one for every kind of arguments, made when first wanted.

    A function is called with something static and with arrays. It must be defined in a module, so
    that its name tells it from others. What is alike in function, static part and arguments shares
    a program.
    """

    def __init__(self, identity: str = "", options: Mapping[str, Any] | None = None):
        """`identity` and `options` are those of `Ahead`, of all the functions together."""
        self._identity = identity
        self._options = options
        self._by_key: dict[Any, Ahead] = {}
        self._by_kind: dict[Any, Ahead] = {}
        self._unfinished: dict[Ahead, _Begun] = {}  # let go at once, as they hold traced programs
        self._pool = ThreadPoolExecutor(2)

    def begin(self, key: Any, function: Callable, static: Any, *args: Any) -> None:
        """Starts to compile, if there is no program yet; see `__call__`."""
        if key in self._by_key:
            return
        leaves, structure = jax.tree.flatten(args)
        kind = function, static, structure, kinds(leaves)
        if kind not in self._by_kind:
            bound = functools.partial(function, static)
            name = f"{function.__name__} {static!r}"
            ahead = Ahead.of(bound, self._identity, name=name, counted=False, options=self._options)
            with collection_paused():
                self._by_kind[kind] = ahead
                self._unfinished[ahead] = _begin(self._pool, ahead, args)
        self._by_key[key] = self._by_kind[kind]

    def __call__(self, key: Any, function: Callable, static: Any, *args: Any) -> Any:
        """function(static, *args), compiled.

        Args:
          key: short for what follows, which takes long to look at.
          function: a function of a module.
          static: what can be hashed, and tells all of itself by `repr`.
          *args: trees of arrays.
        """
        self.begin(key, function, static, *args)
        ahead = self._by_key[key]
        if begun := self._unfinished.pop(ahead, None):
            begun.finish()
        return ahead(*args)

    def shapes(self, key: Any, function: Callable, static: Any, *args: Any) -> Any:
        """Shapes of what `__call__` gives for arguments like these; no compiler is waited for."""
        self.begin(key, function, static, *args)
        ahead = self._by_key[key]
        begun = self._unfinished.get(ahead)
        made = begun.shapes() if begun else ahead.executable.out_info
        # Bare: where things lie, compiled and loaded programs put in different words.
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made)

    def finish(self) -> None:
        """Waits for all that were begun, and gives the memory back that it took to make them."""
        while self._unfinished:
            self._unfinished.popitem()[1].finish()
        malloc.trim()

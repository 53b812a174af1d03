"""Compiled programs kept whole between runs, so that a second start need not even trace them.

JAX's own cache keeps what the compiler made, but has to trace and lower a program to find it, which
takes longer than all the rest. Here the caller names what shapes the program instead (the
configuration), and the rest of the key is found without a trace: the arguments' shapes and places,
the package's source, versions, settings and machine. A second key, by the lowered program's text in
place of name and source, finds it where a changed source makes the same program.

The files lie in the folder of JAX's cache and are unpickled, which can run whatever is in them:
only what is this user's own and not writable by everyone is read. Anything wrong with a file means
no more than compiling afresh.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import pathlib
import pickle
import platform
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from jax.experimental import serialize_executable

PACKAGES = ("jax", "jaxlib", "flax", "optax", "ml_dtypes", "numpy")
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the environment, that change programs
NEWEST = 1024  # files that stay, two a program
SUFFIX = ".kept"


def folder() -> pathlib.Path | None:
    """Where programs are kept; None where they are not.

    That is where JAX keeps no compiled programs or not in a folder, and in several processes, whose
    programs know of each other.
    """
    place = jax.config.jax_compilation_cache_dir
    if not place or not jax.config.jax_enable_compilation_cache or "://" in place:
        return None
    return pathlib.Path(place) if jax.process_count() == 1 else None


def key(identity: str, args: Any) -> str:
    """A digest of all that shapes a program.

    Args:
      identity: what tells the function from all others that this package's source may make.
      args: its arguments, or their shapes with shardings.
    """
    return _digest((identity, _source()), args)


def key_by_text(lowered: jax.stages.Lowered, args: Any) -> str:
    """As `key`, by the program itself in place of its identity and the source."""
    return _digest((lowered.as_text(), str(lowered.out_tree)), args)


def _digest(made_of: tuple[str, ...], args: Any) -> str:
    leaves, structure = jax.tree.flatten(args)
    described = [
        (jax.typeof(x).str_short(), getattr(x, "weak_type", False), str(getattr(x, "sharding", "")))
        for x in leaves
    ]
    # Read now, as precision is set by a context.
    settings = {
        name: str(getattr(jax.config, name, ""))
        for name in sorted(jax.config.values)
        if name != "jax_compilation_cache_dir"
    }
    places = [device.id for device in _devices(args)]
    parts = made_of, str(structure), described, places, settings, _surroundings()
    return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()


def has(name: str) -> bool:
    """Whether there is a program of this `key`, usable or not."""
    place = folder()
    return place is not None and (place / (name + SUFFIX)).exists()


def read(name: str, args: Any) -> tuple[Any, dict[str, Any]] | None:
    """The program of a `key`, ready to be called, and the facts kept with it; or None.

    Args:
      name: the key.
      args: the arguments that it will be called with, or their shapes with shardings.
    """

    def load(program, facts):
        devices = _devices(args)
        return serialize_executable.deserialize_and_load(*program, execution_devices=devices), facts

    return _read(name, load)


def write(name: str, executable: Any, facts: dict[str, Any]) -> None:
    """Keeps a program and facts (plain values) for `read`, whole or not at all."""
    _write(name, lambda: (serialize_executable.serialize(executable), facts))


def link(name: str, other: str) -> None:
    """Has what is kept for one key serve for another one, too, where the file system has links."""
    place = folder()
    if place is None:
        return
    file, target = (place / (each + SUFFIX) for each in (name, other))
    try:
        target.unlink(missing_ok=True)
        os.link(file, target)
        _leave_newest(place)
    except OSError as error:  # or nothing was kept
        logging.info("%s: not kept by a second name (%s)", place, error)


def remembered(identity: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, or gave in an earlier run.

    Args:
      identity: what tells it from all else that this package's source may make.
      make: a pure function of that, whose result can be pickled and is not None.
    """
    if folder() is None:
        return make()
    name = key(identity, ())
    found = _read(name, lambda value: value) if has(name) else None
    if found is None:
        found = make()
        _write(name, lambda: (found,))
    return found


def _read(name: str, load: Callable[..., Any]) -> Any:
    """What a function makes of what a file holds; None where there is none or it is of no use."""
    place = folder()
    if place is None:
        return None
    file = place / (name + SUFFIX)
    try:
        data = _read_own(file)
        digest, body = data[:20], data[20:]
        if hashlib.blake2b(body, digest_size=20).digest() != digest:
            raise ValueError("damaged")
        return load(*pickle.loads(zlib.decompress(body)))
    except Exception as error:  # of any kind: pickle, XLA and the system have many
        logging.warning("%s: made again, as this cannot be used (%s)", file, error)
        return None


def _write(name: str, make: Callable[[], tuple[Any, ...]]) -> None:
    """Keeps what a function gives for `_read`, whole or not at all."""
    place = folder()
    if place is None:
        return
    try:
        body = zlib.compress(pickle.dumps(make()), 1)
        place.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place)  # readable by its owner alone
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.blake2b(body, digest_size=20).digest() + body)
            os.replace(temporary, place / (name + SUFFIX))
        except OSError:
            os.unlink(temporary)
            raise
        _leave_newest(place)
    except Exception as error:  # a full disk, or a program that cannot be kept
        logging.info("%s: a compiled program is not kept here (%s)", place, error)


def _leave_newest(place: pathlib.Path) -> None:
    files = sorted(place.glob("*" + SUFFIX), key=os.path.getmtime)
    for file in files[:-NEWEST]:
        file.unlink(missing_ok=True)


def _read_own(file: pathlib.Path) -> bytes:
    """A file's content, if it and its folder belong to this user and others cannot write there.

    Raises:
      OSError: it cannot be read.
      ValueError: it could be someone else's.
    """
    with file.open("rb") as opened:
        for found in (os.fstat(opened.fileno()), os.stat(file.parent)):
            if hasattr(os, "getuid") and found.st_uid != os.getuid():
                raise ValueError("it belongs to another user")
            if os.name == "posix" and found.st_mode & stat.S_IWOTH:
                raise ValueError("everyone can write there")
        return opened.read()


def _devices(args: Any) -> list[jax.Device]:
    """Those of the arguments, in their mesh's order; else the first one."""
    for leaf in jax.tree.leaves(args):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            return list(sharding.mesh.devices.flat)
    return jax.devices()[:1]


@functools.cache
def _source() -> str:
    """A digest of the package's source."""
    source = hashlib.blake2b()
    for file in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        source.update(str(file.name).encode() + file.read_bytes())
    return source.hexdigest()


@functools.cache
def _surroundings() -> tuple[Any, ...]:
    """Versions and machine."""
    devices = jax.devices()
    return (
        sys.version,
        [importlib.metadata.version(name) for name in PACKAGES],
        [os.environ.get(name) for name in VARIABLES],
        devices[0].client.platform_version,
        [device.device_kind for device in devices],
        len(jax.local_devices()),
        platform.platform(),
        _processor(),
    )


def _processor() -> list[str]:
    """What the system says of the first processor: a program for a CPU uses what that one has."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return [platform.processor()]
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return [line for line in text.splitlines() if line.startswith(wanted)]

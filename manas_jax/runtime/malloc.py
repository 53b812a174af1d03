"""How the process takes memory, keeps it and gives it back.

The allocator is the GNU C library's. Elsewhere, such as on macOS, it is left alone.
"""

from __future__ import annotations

import ctypes
import os
import platform

import jax

# M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def tune() -> None:
    """Lets what is freed be used again, and soon; to be called before JAX is used. See mallopt(3).

    By default JAX hands each program on CPU to a thread, and the memory of those behind it is taken
    at once: two evaluations of a supernet's gradient hold twice the memory, and run no sooner. Each
    large array is mapped afresh, and the system clears its pages one by one while they are first
    written, in every step again. And the threads of a compiler have many heaps, each of which keeps
    what it once held; here they share a few.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if library := _library():
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_ARENA_MAX, 2 * (os.cpu_count() or 1))


def trim() -> None:
    """Gives the system what is free, such as what a compiler needed; see malloc_trim(3)."""
    if library := _library():
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

"""How the process keeps memory and gives it back: settings of the GNU C library's allocator.

Elsewhere, such as on macOS, nothing is done and nothing is needed from it.
"""

from __future__ import annotations

import ctypes
import os
import platform

# M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
    """Lets what is freed be used again; see mallopt(3).

    By default each large array is mapped afresh, and the system clears its pages one by one while
    they are first written, in every step again. And the threads of a compiler have many heaps, each
    of which keeps what it once held; here they share a few.
    """
    if library := _library():
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_ARENA_MAX, 2 * (os.cpu_count() or 1))


def give_back() -> None:
    """Gives the system what is free, such as what a compiler needed; see malloc_trim(3)."""
    if library := _library():
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

"""Settings of the GNU C library's allocator. With others, such as on macOS, nothing happens."""

from __future__ import annotations

import ctypes
import os
import platform

# M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def tune() -> None:
    """Tunes malloc for large buffers of recurring sizes.

    - No mmap per large buffer and no trimming: otherwise the system zeroes the pages of every large
      array again in every step.
    - Few arenas: otherwise each compiler thread has its own, which keeps the memory it once used.

    See mallopt(3).
    """
    if library := _library():
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_ARENA_MAX, 2 * (os.cpu_count() or 1))


def tune_jax() -> None:
    """`tune`, and dispatches programs on the CPU one by one; call it before the first use of JAX.

    Otherwise JAX allocates the buffers of programs that wait for their turn, so two evaluations of
    a supernet's gradient hold twice the memory, and are no faster.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    tune()


def trim() -> None:
    """Returns free memory to the system, such as a compiler's; see malloc_trim(3)."""
    if library := _library():
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

"""Settings of the allocator, measured by page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from manas_jax.runtime import malloc

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(1 << 26)  # which writes zeros
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {tune}:
    malloc.tune()
faults()
malloc.trim() if {trim} else None
print(faults())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def _faults(tune, trim=False):
    program = PROGRAM.format(tune=tune, trim=trim)
    return int(subprocess.run([sys.executable, "-c", program], stdout=-1, check=True).stdout)


def test_freed_memory_is_reused():
    assert 100 * _faults(tune=True) < _faults(tune=False)


def test_trim_returns_free_memory():
    assert 10 * _faults(tune=True) < _faults(tune=True, trim=True)

"""Settings of the allocator, seen from the page faults that the system counts."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from manas_jax import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(1 << 26)  # which writes zeros
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keep}:
    memory.keep()
faults()
memory.give_back() if {give_back} else None
print(faults())
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def _faults(keep, give_back=False):
    program = PROGRAM.format(keep=keep, give_back=give_back)
    return int(subprocess.run([sys.executable, "-c", program], stdout=-1, check=True).stdout)


def test_what_is_freed_is_used_again():
    assert 100 * _faults(keep=True) < _faults(keep=False)


def test_what_is_free_is_given_back():
    assert 10 * _faults(keep=True) < _faults(keep=True, give_back=True)

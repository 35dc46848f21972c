"""What a process frees stays its own, so that the next step does not fault it in again."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from card_scale.distributed.cpu_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = libc.free.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t]
size = 64 * 2**20
for number in range(4):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of three blocks of 64 MiB behind a first one."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    assert faults("keep") < 100
    # Huge pages would take a few hundred faults, small ones 16,384 a block.
    assert faults("give back") > 90

"""Each case in a process of its own: what is set in one cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

from tests.support.absence import missing

# Page faults of one 48 MiB block that is filled and freed a hundred times.
SCRIPT = """
import ctypes, resource, threading
from coatstream.engine.memory import tune_allocator
tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def work():
    for _ in range(100):
        block = libc.malloc(48 << 20)
        ctypes.memset(block, 1, 48 << 20)
        libc.free(block)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# Not ru_maxrss: that begins with the parent's.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(faults, peak)
"""


def faults_and_memory(**environment: str) -> tuple[int, int]:
    if platform.libc_ver()[0] != "glibc":
        missing("this C library is not glibc")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=clean | environment, capture_output=True, text=True, check=True
    )
    faults, memory = told.stdout.split()[-2:]
    return int(faults), int(memory)


def test_a_large_block_finds_its_pages_again_and_memory_stays_bounded() -> None:
    faults, memory = faults_and_memory()

    assert faults < 2 * 48 * 256 + 2000  # the block's own pages, once or twice
    assert memory < 300_000  # KiB


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_MMAP_MAX_": "65536"},
        {"MALLOC_MMAP_THRESHOLD_": "1048576"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=9"},
    ],
)
def test_what_the_operator_has_set_wins(environment: dict[str, str]) -> None:
    faults, _ = faults_and_memory(**environment)

    assert faults > 10 * 48 * 256  # each time anew, unless pages are huge


GIVEN_BACK = """
import ctypes
from coatstream.engine.memory import return_what_is_free, tune_allocator
tune_allocator()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
first, last = libc.malloc(200 << 20), libc.malloc(1 << 20)
ctypes.memset(first, 1, 200 << 20)
libc.free(first)  # `last` keeps the heap's end where it is
before = resident()
return_what_is_free()
print(before, resident())
"""


def test_what_is_free_goes_back_to_the_system_even_from_the_middle_of_the_heap() -> None:
    if platform.libc_ver()[0] != "glibc":
        missing("this C library is not glibc")

    told = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)

    before, after = map(int, told.stdout.split()[-2:])
    assert after < before - 150 * 1024  # kB

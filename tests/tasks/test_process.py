"""What a run sets in its process, and its workers in theirs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tasks import process
from tasks.process import short_turns

COUNT = """
import ctypes, re, sys, threading
from tasks.process import share_one_arena
if sys.argv[1] == "one":
    share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
together = threading.Barrier(4)
def allocate():
    together.wait()
    for block in [libc.malloc(50_000) for _ in range(200)]:
        libc.free(block)
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype, libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
libc.malloc_info.argtypes, libc.fflush.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_threads_share_one_arena() -> None:
    def arenas(how: str) -> int:
        command = [sys.executable, "-c", COUNT, how]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("<heap nr=")

    assert arenas("as it is") > 1
    assert arenas("one") == 1


def test_turns_are_short_while_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_TURN_SECONDS", 0.0002)
    before = sys.getswitchinterval()
    first, second = short_turns(), short_turns()
    with first:
        second.__enter__()
        assert sys.getswitchinterval() < before / 10
    assert sys.getswitchinterval() < before / 10, "another one is still inside"
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == before


FAULTS = """
import ctypes, resource, sys
from tasks.process import keep_freed_memory
if sys.argv[1] == "undone":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use():
    block = libc.malloc(1 << 20)
    libc.memset(block, 1, 1 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_workers_keep_the_memory_that_they_freed() -> None:
    def faults(how: str) -> int:
        environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)

    assert faults("as Dask sets it") > 10_000
    assert faults("undone") < 5_000

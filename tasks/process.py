"""What a run sets in its process, and in those of its workers: how threads share memory, and the interpreter."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_TURN_SECONDS = 0.0002  # of a thread in the interpreter, while another one waits for it


def share_one_arena() -> None:
    """Have all threads allocate from one arena, where the C library is glibc; to be called before there are threads.

    By default each thread has its own and keeps what it freed: some 170 MB more at an image of 25 megapixels, at the same
    processor time (benchmarks/NOTES.md, Memory).
    """
    _set(_M_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Undo MALLOC_TRIM_THRESHOLD_, which Dask sets for its workers: freed memory is kept as glibc would by itself.

    That variable also fixes the size from which each block is a mapping of its own, at 128 KB: tensors are then mapped,
    cleared page by page and unmapped at every operation, at twice the processor time (benchmarks/NOTES.md, Prefect).
    """
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        _set(_M_MMAP_THRESHOLD, 32 << 20)  # what both grow to, where nothing is set
        _set(_M_TRIM_THRESHOLD, 64 << 20)


def _set(parameter: int, value: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(parameter, value)


@contextmanager
def short_turns() -> Iterator[None]:
    """While any thread is inside, threads take turns of 0.2 ms in the interpreter, in place of 5.

    A fit needs it for an instant between two operations of torch. While Prefect writes down what happens, it would wait
    for a whole turn at each: 4 % more for an image of 0.75 s (benchmarks/NOTES.md, Prefect).
    """
    with _turns.lock:
        _turns.inside += 1
        if _turns.inside == 1:
            _turns.before = sys.getswitchinterval()
            sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        with _turns.lock:
            _turns.inside -= 1
            if _turns.inside == 0:
                sys.setswitchinterval(_turns.before)


class _Turns:
    """How many threads want short turns, and how long turns were before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before = 0.0


_turns = _Turns()

"""What a run sets in its own process: how memory is shared among its threads, and how the interpreter is."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h
_TURN_SECONDS = 0.0002  # of a thread in the interpreter, while another one waits for it


def share_one_arena() -> None:
    """Have all threads allocate from one arena, where the C library is glibc; to be called before there are threads.

    By default each thread has its own and keeps what it freed: some 170 MB more at an image of 25 megapixels, at the same
    processor time (benchmarks/NOTES.md, Memory).
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextmanager
def short_turns() -> Iterator[None]:
    """While inside, threads take turns of 0.2 ms in the interpreter, in place of 5.

    A fit needs it for an instant between two operations of torch. While Prefect writes down what happens, it would wait
    for a whole turn at each: 4 % more for an image of 0.75 s (benchmarks/NOTES.md, Prefect).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)

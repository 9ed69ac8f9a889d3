"""Keeping the C library from holding on to memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # of glibc's malloc.h


def share_one_arena() -> None:
    """Have all threads allocate from one arena, where the C library is glibc; to be called before there are threads.

    By default each thread has its own and keeps what it freed: some 170 MB more at an image of 25 megapixels, at the same
    processor time (benchmarks/NOTES.md, Memory).
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)

"""How far the fits of this process are, for whoever shows progress. A glance, not a record: the ledger is the record."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TOLD_SECONDS = 1.0
_lock = threading.Lock()
_fractions: dict[str, float] = {}
_waiting: dict[
    int, tuple[str, float, bool]
] = {}  # by thread: what for, since when, and whether that is first to be told


@contextmanager
def on(name: str) -> Iterator[None]:
    """While inside, the image counts as being worked on."""
    report(name, 0.0)
    try:
        yield
    finally:
        with _lock:
            _fractions.pop(name, None)


def report(name: str, fraction: float) -> None:
    """Say how much of an image's fit is done, 0 to 1."""
    with _lock:
        _fractions[name] = fraction


@contextmanager
def waiting(what: str, *, first: bool = False) -> Iterator[None]:
    """While inside, this thread waits, and ``what`` says for what; what is ``first`` holds up those that wait for this one."""
    with _lock:
        _waiting[threading.get_ident()] = what, time.monotonic(), first
    try:
        yield
    finally:
        with _lock:
            _waiting.pop(threading.get_ident(), None)


def glance() -> tuple[float, str | None]:
    """The sum of the unfinished fits' fractions, and what the process waits for, and how long, while nothing is being fitted.

    What is there within a second was not waited for: the server is asked for a slot before every fit, taken or free.
    """
    with _lock:
        if _fractions or not _waiting:
            return sum(_fractions.values()), None
        what, since, _ = min(_waiting.values(), key=lambda one: (not one[2], one[1]))
    seconds = time.monotonic() - since
    return 0.0, f"{what} ({seconds:.0f} s so far)" if seconds >= _TOLD_SECONDS else None

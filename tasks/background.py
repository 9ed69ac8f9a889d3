"""Threads that do something beside a piece of work, for as long as it lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context


@contextmanager
def beside(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """While inside, ``work`` goes on in a thread; it gets an event that is set at the end, and has to return then.

    What the context of the caller holds, such as Prefect's settings, holds there too.
    """
    leaving = threading.Event()
    thread = threading.Thread(target=copy_context().run, args=(work, leaving), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        thread.join()

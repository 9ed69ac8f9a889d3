"""Signals that end a run: the first one asks it to stop, one more ends the process on the spot."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tasks.faults import interrupt

INTERRUPTED = 130
"""The exit status of a run that was stopped."""


@contextmanager
def stopping_on(*numbers: int) -> Iterator[None]:
    """While inside, these signals set `interrupt`; where that is set already, they end the process."""
    before = {number: signal.signal(number, _ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ending_gently() -> Iterator[None]:
    """The same inside a flow, whose termination signal Prefect took for itself: its own handler would break the flow off.

    So it is with a Ctrl-C that nobody else takes care of: a terminal sends it to the runs of a worker too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        taken.append(signal.SIGINT)
    with stopping_on(*taken):
        yield


def _ask(_number: int, _frame: FrameType | None) -> None:
    if interrupt.is_set():
        os._exit(INTERRUPTED)
    interrupt.set()
    with suppress(OSError):
        os.write(2, b"denoise: stopping; once more to end at once\n")

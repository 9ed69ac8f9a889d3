"""Signals that end a run: the first one asks it to stop, one more a second later ends the process on the spot.

One that comes sooner is the same stop heard twice: systemd sends it to `denoise serve` and to its runs, and the service, too.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tasks.faults import interrupt

INTERRUPTED = 130
"""The exit status of a run that was stopped."""
AGAIN_SECONDS = 1.0
"""From the first signal on, until which another one says nothing new."""
_asked: list[float] = []  # when the first one came, on the monotonic clock


@contextmanager
def stopping_on(*numbers: int) -> Iterator[None]:
    """While inside, these signals set `interrupt`; where that was set a second ago, they end the process."""
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
    now = time.monotonic()
    if interrupt.is_set():
        if not _asked or now - _asked[0] >= AGAIN_SECONDS:
            os._exit(INTERRUPTED)
        return
    _asked[:] = [now]
    interrupt.set()
    with suppress(OSError):
        os.write(2, b"denoise: stopping; once more to end at once\n")

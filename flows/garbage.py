"""When a server of ours looks for garbage: in a thread of its own, never in the one that serves.

A statement of SQLite in a cycle of garbage is finalized by whichever thread the collector happens to run in, and that waits
for the statement's connection. Where this connection waits for a lock that another one of the server's holds, and the
collector runs in the thread of the event loop, the lock's holder cannot go on: the server stands still until the
database's time-out ends it, after 60 s (benchmarks/NOTES.md, Prefect).
"""

from __future__ import annotations

import gc
import threading
import time

_LOOK_SECONDS = 0.1
_ALL_SECONDS = 30.0


def collect_beside() -> None:
    """Look for garbage in a thread from now on; what there is already, of imports mostly, is left alone for good."""
    gc.disable()
    gc.freeze()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()


def _collect() -> None:
    """As the interpreter would, generation by generation; all of them every so often, if there was much."""
    thresholds = gc.get_threshold()
    all_looked_at = time.monotonic()
    while True:
        time.sleep(_LOOK_SECONDS)
        youngest, middle, oldest = (count > most for count, most in zip(gc.get_count(), thresholds, strict=True))
        if not youngest:
            continue
        if middle and oldest and time.monotonic() - all_looked_at >= _ALL_SECONDS:
            gc.collect()
            all_looked_at = time.monotonic()
        else:
            gc.collect(1 if middle else 0)

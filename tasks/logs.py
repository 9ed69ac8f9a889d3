"""The log files of a run, in its folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAMES = ("tasks", "denoise_core", "prefect.flow_runs", "prefect.task_runs", "distributed")


class _Log(logging.FileHandler):
    """A log that a full disk silences; the run has more to lose."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # what waits to be written
            super().close()


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """While inside, what this process logs, tracebacks included, goes to a file as well."""
    handler = _Log(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in _NAMES:
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("tasks").setLevel(logging.DEBUG)
    logging.getLogger("denoise_core").setLevel(logging.INFO)
    try:
        yield
    finally:
        for name in _NAMES:
            logging.getLogger(name).removeHandler(handler)
        handler.close()

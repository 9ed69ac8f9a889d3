"""What a run logs: its files, in its folder, what the Prefect server gets, and what of Prefect's own is left out.

flows/logging.yml imports this while Prefect is imported: nothing of Prefect may be imported here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OURS = ("tasks", "denoise_core")
_NAMES = (*_OURS, "prefect.flow_runs", "prefect.task_runs", "distributed")


class Unusual(logging.Filter):
    """Leaves out what Prefect says at the end of every task run that went well, or that the user stopped.

    It is one or more lines an image, and a stop would be an error.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is worth a line."""
        routine = ("Finished in state Completed", "Finished in state Cancelled")
        return not (record.name == "prefect.task_runs" and record.getMessage().startswith(routine))


_UNUSUAL = Unusual()  # one for all: a logger keeps the same filter only once


def tell_the_server() -> None:
    """From now on this process tells the Prefect server what flows/logging.yml says, wherever it was started.

    The processes of a work pool, and Dask's workers, begin with Prefect's own logging: a line a task run and none of ours.
    """
    from prefect.context import FlowRunContext, TaskRunContext
    from prefect.logging.handlers import APILogHandler

    def in_a_run(_: logging.LogRecord) -> bool:
        return FlowRunContext.get() is not None or TaskRunContext.get() is not None

    logging.getLogger("prefect.task_runs").addFilter(_UNUSUAL)
    for logger in map(logging.getLogger, _OURS):
        if not any(isinstance(handler, APILogHandler) for handler in logger.handlers):
            handler = APILogHandler(logging.INFO)
            handler.addFilter(in_a_run)
            logger.addHandler(handler)
            if not logger.isEnabledFor(logging.INFO):
                logger.setLevel(logging.INFO)


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
    handler.addFilter(Unusual())
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

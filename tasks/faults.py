"""Which errors are the image's and which are the machine's.

An image's error becomes a failed row and the run goes on. A machine's fault is raised, retried with growing pauses, and
then fails its chunk alone.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any

from denoise_core.errors import DenoiseError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task

interrupt = threading.Event()
"""Set on Ctrl-C or a termination signal: steps stop at the next chance."""

_MACHINE_ERRNOS = frozenset(
    getattr(errno, name)
    for name in """
    EIO ENOSPC EDQUOT EROFS ESTALE ENETDOWN ENETUNREACH EHOSTDOWN EHOSTUNREACH ETIMEDOUT ECONNRESET ENOTCONN
    EMFILE ENFILE ENOMEM EAGAIN EBUSY EREMOTEIO ENODEV ENXIO
    """.split()
    if hasattr(errno, name)
)
_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_DEVICE_SIGNS = ("CUDA error", "cuDNN error", "CUBLAS_STATUS")

RETRY_SECONDS = (1.0, 4.0, 16.0)
"""Pauses before the retries of a chunk, s; each is stretched by up to half at random."""


class Interrupted(BaseException):
    """The user stopped the run. Not an ``Exception``: no step may take it for the image's fault."""


class SourceChanged(DenoiseError):
    """The source file is no longer what the scan found."""


def stop_if_interrupted() -> None:
    """Raise :class:`Interrupted` once the user has asked the run to stop."""
    if interrupt.is_set():
        raise Interrupted


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory, the machine's or the device's, ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_SIGNS)


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine is at fault and another try may pass, rather than the image."""
    if isinstance(error, OSError):
        return error.errno in _MACHINE_ERRNOS
    if is_out_of_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _DEVICE_SIGNS)


def may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Prefect's retry condition: only a machine's fault is tried again."""
    try:
        state.result()
    except Exception as error:  # noqa: BLE001 - any error of the step is judged here
        return is_machine_fault(error) and not interrupt.is_set()
    except BaseException:  # noqa: BLE001
        return False
    return False


def sentence(error: BaseException) -> str:
    """The error as one line for a row: what was found and, where it helps, what to do."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    if is_out_of_memory(error):
        return (
            f"memory ran out ({' '.join(str(error).split())[:200]}); run again with more memory free or fewer --slots"
        )
    message = " ".join(str(error).split())
    return message[:1000] if message else type(error).__name__

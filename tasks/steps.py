"""What the steps of an image have in common: how Prefect runs and names them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from tasks.faults import RETRY_SECONDS, Interrupted, may_pass, stop_if_interrupted

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}
"""Options of a task that is not tried again by itself."""

STEP: dict[str, Any] = {**ONCE, "task_run_name": "{step} {work} (chunk {work.chunk})"}
"""Options of a step of one image; what can pass is retried by the chunk, which goes on at the image it broke at."""

CHUNK: dict[str, Any] = {
    **ONCE,
    "task_run_name": "chunk {number} of {of}",
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": list(RETRY_SECONDS),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
"""Options of a chunk: a fault of the machine is tried again after growing pauses."""


P = ParamSpec("P")
R = TypeVar("R")


def ending_cancelled(function: Callable[P, R]) -> Callable[P, R | State[R]]:
    """What a task does, with *Cancelled* for its state where the user stops it: a raised `Interrupted` would be a crash."""

    @functools.wraps(function)
    def attempt(*arguments: P.args, **options: P.kwargs) -> R | State[R]:
        try:
            return function(*arguments, **options)
        except Interrupted:
            return Cancelled(message="stopped by the user")

    return attempt


def take(step: Task[..., Any], *arguments: Any, **options: Any) -> Any:
    """Take a step as a task run of its own, and return what it does.

    Raises:
        Interrupted: the user stopped the run; the task run, if it had begun, is *Cancelled*.
    """
    stop_if_interrupted()
    try:
        return _cancellable(step)(*arguments, **options)
    except CancelledRun:
        raise Interrupted from None


@functools.cache
def _cancellable(step: Task[..., Any]) -> Task[..., Any]:
    cancellable = step.with_options()
    cancellable.fn = ending_cancelled(step.fn)
    return cancellable

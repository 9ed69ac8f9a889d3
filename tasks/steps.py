"""What the steps of a chunk have in common: the chunk they work on and how they are retried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.cache_policies import NO_CACHE

from tasks.faults import RETRY_SECONDS, is_out_of_memory, may_pass
from tasks.work import Work

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}
"""Options of a task that is not tried again: what can pass is retried by the steps below it."""

STEP: dict[str, Any] = {
    **ONCE,
    "task_run_name": "{step} of chunk {chunk}",
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": list(RETRY_SECONDS),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
"""Options of a step: a fault of the machine is tried again after growing pauses, going on at the image it broke."""


class Chunk:
    """The images of a chunk between steps. An opaque class: Prefect would walk through, and copy, a plain list."""

    def __init__(self, label: str, works: list[Work]) -> None:
        self.label = label
        self.works = works

    def __str__(self) -> str:
        return self.label


class ChunkTooLarge(Exception):
    """Memory ran out while the chunk held several images; halves of it may pass."""


@contextmanager
def smaller_chunk_first(chunk: Chunk) -> Iterator[None]:
    """Memory that ran out with several images in the chunk is no case for a retry but for a smaller chunk."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) and len(chunk.works) > 1:
            raise ChunkTooLarge("memory ran out") from error
        raise

"""What the steps of an image have in common: how Prefect runs and names them."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

from tasks.faults import RETRY_SECONDS, may_pass

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

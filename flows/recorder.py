"""How a server of ours writes the states of task runs: in batches, which Prefect's recorder drops whole once one breaks.

A run that was deleted while it goes on sends states that the database refuses. They are to take no others with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DataError, IntegrityError

REFUSED = (DataError, IntegrityError)

Record = Callable[[list[Any]], Awaitable[None]]
"""Writes the states that such events tell of, in one transaction."""


def take_apart_what_is_refused() -> None:
    """Have Prefect's recorder, which asks for its batches by this name, write them by a :class:`Recorder`."""
    from prefect.server.services import task_run_recorder

    task_run_recorder.record_bulk_task_run_events = Recorder(task_run_recorder.record_bulk_task_run_events, _is_known)


class Recorder:
    """Writes a batch as a whole or, where the database refuses it, by flow runs; what is busy or broken is raised."""

    def __init__(self, together: Record, is_known: Callable[[UUID], Awaitable[bool]]) -> None:
        self._together = together
        self._is_known = is_known
        self._deleted: set[UUID] = set()

    async def __call__(self, events: list[Any]) -> None:
        """Write what the database takes."""
        wanted = [event for event in events if _flow_run_of(event) not in self._deleted]
        try:
            if wanted:
                await self._together(wanted)
        except REFUSED:
            by_run: defaultdict[UUID | None, list[Any]] = defaultdict(list)
            for event in wanted:
                by_run[_flow_run_of(event)].append(event)
            for run, its in by_run.items():
                await self._of_one_run(run, its)

    async def _of_one_run(self, run: UUID | None, events: list[Any]) -> None:
        try:
            await self._together(events)
        except REFUSED:
            if run is not None and not await self._is_known(run):
                self._deleted.add(run)
                return
            for event in events:
                with suppress(*REFUSED):
                    await self._together([event])


def _flow_run_of(event: Any) -> UUID | None:
    found = event.resource_in_role.get("flow-run")
    return None if found is None else found.prefect_object_id("prefect.flow-run")


async def _is_known(run: UUID) -> bool:
    from prefect.server import models
    from prefect.server.database import provide_database_interface

    async with provide_database_interface().session_context() as session:
        found: Any = models.flow_runs.read_flow_run(session=session, flow_run_id=run)
        return await found is not None

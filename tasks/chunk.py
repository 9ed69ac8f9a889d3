"""A chunk of images: the unit that is scheduled, that is retried and that fills one ledger part."""

from __future__ import annotations

import functools
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Cancelled

from denoise_core import __version__
from tasks import failures
from tasks.add_noise import add_noise
from tasks.blocks import denoise_in_blocks, in_blocks
from tasks.denoise import denoise
from tasks.evaluate import evaluate
from tasks.faults import RETRY_SECONDS, Interrupted, is_out_of_memory, stop_if_interrupted
from tasks.in_work import noted
from tasks.ledger import CHANGED_AT, Part
from tasks.load import load
from tasks.save import save, save_noisy
from tasks.settings import Settings
from tasks.steps import CHUNK, take
from tasks.stylize import stylize
from tasks.table import DONE, Row, fill, now, text
from tasks.work import Source, Work
from tasks.worker import serving

log = logging.getLogger("tasks")

MOST_CHUNKS = 250
MOST_SEEN_IMAGES = 300
"""Up to here every step of every image is a task run of its own, seen in the Prefect UI; beyond, the chunk's task run
stands for them. Prefect stays quick below some 2,000 task runs in a flow run."""


@dataclass(frozen=True)
class ChunkSummary:
    """What became of a chunk's images."""

    done: int
    failed: int


def into_chunks(sources: Sequence[Source], size: int | None) -> list[tuple[Source, ...]]:
    """Cut the sources into chunks of ``size`` images, in order; ``None`` takes the least that gives ``MOST_CHUNKS``."""
    size = size or max(1, -(-len(sources) // MOST_CHUNKS))
    return [tuple(sources[start : start + size]) for start in range(0, len(sources), size)]


@task(name="chunk", **CHUNK)
def process_chunk(
    sources: tuple[Source, ...], settings: Settings, *, number: int, of: int
) -> ChunkSummary | State[ChunkSummary]:
    """Take every image of the chunk from its file to its denoised file and its ledger row, one after another.

    An image's own error is its failed row. A machine's fault is raised for Prefect to try the chunk again, which then goes
    on at the image that broke. On the last try that image becomes a failed row; if the next one breaks as well, it is not
    the image: the rest of the chunk fails, and the fault is raised.
    """
    context = TaskRunContext.get()
    last_try = context is None or context.task_run.run_count > len(RETRY_SECONDS)
    try:
        with serving(settings), Part(settings.run_folder, number) as part:
            rows = _each(sources, settings, part, number, last_try=last_try)
    except Interrupted:
        return Cancelled(message="stopped by the user")
    done = sum(row["status"] == DONE for row in rows.values())
    said = f"chunk {number} of {of}: {done} done, {len(rows) - done} failed"
    if done < len(rows):
        log.warning("%s: %s", said, failures.told(failures.by_reason(rows.values())))
    else:
        log.info("%s", said)
    return ChunkSummary(done, len(rows) - done)


def _each(
    sources: tuple[Source, ...], settings: Settings, part: Part, number: int, *, last_try: bool
) -> dict[str, Row]:
    """All images of the chunk, but for those that an earlier try has done: the row of each."""
    rows = {row["source"]: row for row in part.rows()}
    broken: Exception | None = None
    for source in sources:
        name = text(source.name)
        if name in rows:
            continue
        work = Work(source, settings, number)
        try:
            with noted(source, settings):
                _process(work, settings, seen=settings.steps_are_seen)
        except Exception as fault:
            if not last_try:
                raise
            log.warning("%s: %s, and no more tries", name, fault)
            if broken is not None:
                for rest in sources:
                    if text(rest.name) not in rows:
                        give_up(rest, settings, part, fault)
                raise
            broken = fault
            work.fail(fault)
        else:
            broken = None
        record(work, settings, part)
        rows[name] = work.row
    return rows


def give_up(source: Source, settings: Settings, part: Part, fault: BaseException) -> None:
    """A failed row for an image that no other try is made at."""
    work = Work(source, settings)
    work.fail(fault)
    record(work, settings, part)


def record(work: Work, settings: Settings, part: Part) -> None:
    """Put the row of a finished image into the ledger and let go of its pixels."""
    work.release()
    fill(work.row, seconds=work.seconds, run_id=settings.run_id, software_version=__version__, created_at=now())
    part.append(work.row if work.changed_at is None else work.row | {CHANGED_AT: work.changed_at})


def _process(work: Work, settings: Settings, *, seen: bool) -> None:
    """All steps of one image; where memory runs out, once more while no other image of this process is in work."""
    try:
        with _company.one_of_many():
            _steps(work, settings, seen=seen)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("%s: %s; it is tried again by itself", work, error)
        work.release()
        with _company.alone():
            gc.collect()
            _steps(work, settings, seen=seen)


def _steps(work: Work, settings: Settings, *, seen: bool) -> None:
    def step(function: Any, *arguments: Any) -> None:
        if not work.failed:
            run = functools.partial(take, function) if seen else function.fn
            run(work, *arguments)

    if in_blocks(work.source, settings):
        step(denoise_in_blocks, settings)
        return
    step(load, settings)
    if settings.style is not None:
        step(stylize, settings)
    if settings.noise != "none":
        step(add_noise, settings)
    if settings.saves_noisy:
        step(save_noisy, settings)
    step(denoise, settings)
    step(evaluate)
    step(save, settings)


class _Company:
    """How many images are in memory at once: many, or one that needs all of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._many = 0
        self._wanting_alone = 0
        self._alone = False

    @contextmanager
    def one_of_many(self) -> Iterator[None]:
        with self._changed:
            self._wait_until(lambda: not self._alone and not self._wanting_alone)
            self._many += 1
        try:
            yield
        finally:
            with self._changed:
                self._many -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._wanting_alone += 1
            try:
                self._wait_until(lambda: not self._alone and not self._many)
                self._alone = True
            finally:
                self._wanting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _wait_until(self, free: Callable[[], bool]) -> None:
        while not free():
            stop_if_interrupted()
            self._changed.wait(0.2)


_company = _Company()

"""How far a run is: told to whoever listens in this process, and to the Prefect UI."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TagsContext

from flows.compare_config import CompareConfig
from flows.config import RunConfig
from flows.console import duration
from tasks import activity, ledger, table
from tasks.report import summary_markdown, summary_table
from tasks.report_page import Panel
from tasks.settings import Settings
from tasks.table import DONE, FAILED
from tasks.worker import Waiting

ARTIFACT_SECONDS = 5.0

log = logging.getLogger("tasks")


@dataclass(frozen=True)
class Progress:
    """How far a run is, for whoever watches it."""

    total: int  # images that this run has to do
    done: int
    failed: int
    part: float  # fraction of the images in work, summed: 0.5 is half an image
    seconds: float  # since the first chunk was submitted
    waiting: str | None  # what the run waits for, while nothing else goes on
    expected_seconds: float | None = None  # that the rest will take, where more is known than the rate so far

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest will take, s, at the rate so far where no more is known; ``None`` before anything is done."""
        if self.expected_seconds is not None:
            return self.expected_seconds
        finished = self.done + self.failed + self.part
        return None if finished < 0.05 else max(0.0, self.seconds * (self.total - finished) / finished)


@dataclass(frozen=True)
class Summary:
    """What became of a run; ``--json`` prints it."""

    run_id: str
    output: str
    images: int  # images in the input, readable or not
    done: int  # by this run
    already_done: int  # by earlier runs, left as they are
    failed: int
    skipped: int  # files that are no images
    interrupted: bool
    seconds: float
    psnr_noisy_db: float | None  # means over the images of the input that have both
    psnr_denoised_db: float | None
    results: str
    report: str
    failures: list[dict[str, str]]  # source and error of the first hundred


_news: list[Callable[[str], None]] = []


def announce(message: str, level: int = logging.INFO) -> None:
    """Tell whoever watches, and the log, in one sentence; the Prefect UI does not get what is below ``INFO``."""
    log.log(level, message)
    for hear in _news:
        hear(message)


@contextmanager
def hearing(hear: Callable[[str], None]) -> Iterator[None]:
    """While inside, ``hear`` is called with what is announced."""
    _news.append(hear)
    try:
        yield
    finally:
        _news.remove(hear)


OnProgress = Callable[[Progress], None]

_listeners: list[OnProgress] = []


@contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """While inside, ``on_progress`` is called from the flow's thread, some four times a second."""
    _listeners.append(on_progress)
    try:
        yield
    finally:
        _listeners.remove(on_progress)


_wholes: list[Callable[[Progress], Progress]] = []


@contextmanager
def as_part_of(whole: Callable[[Progress], Progress]) -> Iterator[None]:
    """While inside, listeners are told the progress that ``whole`` makes of a run's."""
    _wholes.append(whole)
    try:
        yield
    finally:
        _wholes.remove(whole)


class Watch:
    """Tells the listeners and the Prefect UI how far the chunks are."""

    def __init__(self, settings: Settings, total: int) -> None:
        self._tail = ledger.Tail(settings.run_folder)
        self._workers = Waiting(settings) if settings.elsewhere else None
        self._total = total
        self._done = self._failed = 0
        self._started = self._published = time.perf_counter()
        key = f"progress-{slug(settings.output.name)}"
        self._artifact = told(create_progress_artifact, progress=0.0, key=key, description=f"0 of {total} images")

    def show(self, *, ended: bool) -> None:
        """Look at the ledger and tell; the artifact only every few seconds."""
        for row in self._tail.new_rows():
            self._done += row["status"] == DONE
            self._failed += row["status"] == FAILED
        part, waiting = activity.glance()
        if waiting is None and self._workers is not None:
            waiting = self._workers.glance()
        seconds = time.perf_counter() - self._started
        progress = Progress(self._total, self._done, self._failed, part, seconds, waiting)
        shown = progress
        for whole in _wholes:
            shown = whole(shown)
        for listener in _listeners:
            listener(shown)
        if ended or time.perf_counter() - self._published > ARTIFACT_SECONDS:
            self._published = time.perf_counter()
            words = f"{self._done} done, {self._failed} failed of {self._total}"
            if not ended and progress.seconds_left is not None:
                words += f", about {progress.seconds_left:.0f} s left"
            share = (self._done + self._failed + part) / self._total
            if self._artifact is not None:
                told(update_progress_artifact, self._artifact, progress=100 * min(1.0, share), description=words)


def tags_of(config: RunConfig | CompareConfig, device: str) -> tuple[str, ...]:
    """What a flow run is found by in the Prefect UI: method, noise, device and host."""
    return (*config.tags, device, f"host:{socket.gethostname()}", "denoise-flows")


def untagged_tasks() -> AbstractContextManager[object]:
    """Around what a flow does: its task runs get none of its tags.

    For every task run with tags Prefect asks the server for a slot of each tag, and once more to give it back; where the
    server is busy with a write, its client sleeps 2 s and more, in which no image goes on.
    """
    return TagsContext(current_tags=set())


def introduce(config: RunConfig | CompareConfig, device: str, *, images: int, left: int) -> None:
    """Name and tag the flow run by what the scan has found: so many images, of which so many are left to do."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    count = f"{images} image{'s' * (images != 1)}"
    name = f"{config.title}, {count if left == images else f'{left} of {count}'}"
    kept = (tag for tag in context.flow_run.tags if not tag.startswith("host:"))  # of where it was deployed
    told(_rename, context.flow_run.id, name, dict.fromkeys((*tags_of(config, device), *kept)))


def _rename(flow_run: UUID, name: str, tags: Iterable[str]) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run, name=name, tags=list(tags))


def publish(summary: Summary, rows: list[table.Row], settings: Settings, pictures: Sequence[Panel]) -> None:
    """The artifacts of the Prefect UI: the summary as a table, the worst images and the failures as a page."""
    name = slug(settings.output.name)
    done = f"{summary.done} images in {duration(summary.seconds)}"
    told(
        create_table_artifact,
        table=summary_table(rows, settings.run_id),
        key=f"summary-{name}",
        description=f"Run {settings.run_id} into {settings.output}: {done}",
    )
    told(
        create_markdown_artifact,
        markdown=summary_markdown(rows, settings.output, socket.gethostname(), pictures),
        key=f"report-{name}",
        description=f"Worst and failed images of {settings.output}",
    )


def told(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Tell the server something for its UI; one that does not take it costs a line in the log, never the run."""
    try:
        return call(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - whatever keeps the UI from being told
        log.warning("the Prefect server did not take what its UI would show: %s", error)
        return None


def slug(name: str) -> str:
    """A name as the key of an artifact: lower-case letters, figures and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "output"

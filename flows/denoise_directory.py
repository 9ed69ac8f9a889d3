"""The flow: a directory of images in, the denoised tree, a results table and a report out."""

from __future__ import annotations

import datetime
import json
import logging
import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from denoise_core.device import Device, choose
from denoise_core.images import remove_stale_temporaries
from flows import preflight
from flows.config import MOST_SLOTS, OnExisting, Preset, RunConfig
from flows.errors import StartError
from flows.server import reports_to_real_server
from tasks import activity, ledger, table
from tasks import scan as scanning
from tasks.chunk import into_chunks, process_chunk
from tasks.faults import Interrupted, interrupt
from tasks.report import report, summary_markdown
from tasks.scan import Scan
from tasks.settings import Settings
from tasks.slots import limit_name
from tasks.steps import ONCE
from tasks.table import DONE, FAILED, SKIPPED
from tasks.work import Source

POLL_SECONDS = 0.25
ARTIFACT_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a run is, for whoever watches it."""

    total: int  # images that this run has to do
    done: int
    failed: int
    part: float  # fraction of the images in work, summed: 0.5 is half an image
    seconds: float  # since the first chunk was submitted
    waiting: str | None  # what the run waits for, while nothing else goes on

    @property
    def seconds_left(self) -> float | None:
        """The time that the rest will take at the rate so far, s; ``None`` before anything is done."""
        finished = self.done + self.failed + self.part
        return None if finished < 0.05 else self.seconds * (self.total - finished) / finished


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
    psnr_noisy_db: float | None  # means over all rows that have them
    psnr_denoised_db: float | None
    results: str
    report: str
    failures: list[dict[str, str]]  # source and error of the first hundred


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


@task(name="scan", **{**ONCE, "task_run_name": "scan"})
def scan(settings: Settings, *, redo: bool) -> Scan:
    """List the input and leave out what is done."""
    return scanning.scan(
        settings.input,
        settings.output,
        max_pixels=settings.max_pixels,
        config_digest=settings.config_digest,
        redo=redo,
    )


@flow(
    name="denoise-directory",
    flow_run_name="{config.title}",
    description="Denoise a directory of images without clean training data.",
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SLOTS + 1),  # type: ignore[arg-type]  # Prefect leaves its result type open
    persist_result=False,
    validate_parameters=True,
)
def denoise_directory(config: RunConfig) -> State[Any]:
    """Denoise every image of ``config.input``; see :class:`flows.config.RunConfig`.

    The returned state is *Completed* when every image is done or explained by a row, *Failed* when a fault of the machine
    outlasted its retries, *Cancelled* when the user stopped the run. Its data is a :class:`Summary`.

    Raises:
        StartError: the run cannot start as configured.
    """
    started = time.perf_counter()
    preflight.check(config)
    output = config.output.resolve()
    try:
        with _only_run(output), _ending_gently():
            remove_stale_temporaries(output)
            settings = _resolve(config, output)
            with _logging_to(settings.run_folder / "log.txt"):
                return _run(config, settings, started)
    finally:
        interrupt.clear()  # it was this run's; a service runs the next flow in the same process


def _run(config: RunConfig, settings: Settings, started: float) -> State[Any]:
    logger = get_run_logger()
    torch.set_num_threads(settings.device.threads)
    logger.info("%s on %s (%s)", settings.method, settings.device.name, settings.device.reason)
    try:
        found = scan(settings, redo=config.on_existing is OnExisting.OVERWRITE)
    except Interrupted:
        return Cancelled(message="stopped by the user before anything was done")
    if found.images == 0:
        others = f" ({len(found.refused)} other files)" if found.refused else ""
        raise StartError(f"INPUT: there is no image in {settings.input}{others}")
    chunks = into_chunks(found.todo, config.chunk, costly=settings.preset == "paper")
    logger.info(
        "%d images: %d to do in %d chunks, %d done earlier, %d files that cannot be done",
        found.images, len(found.todo), len(chunks), len(found.done), len(found.refused),
    )  # fmt: skip
    faults = _work_through(chunks, settings, len(found.todo))

    report(settings, found)
    rows, _ = table.read(settings.output / "results.parquet")
    summary = _summarise(settings, found, rows, time.perf_counter() - started)
    _publish(summary, rows, settings)
    logger.info("%d done, %d failed; report: %s", summary.done, summary.failed, summary.report)
    if summary.interrupted:
        return Cancelled(message=f"stopped by the user; {summary.done} done, the next run goes on", data=summary)
    if faults:
        return Failed(message=f"{summary.failed} of {summary.images} failed: {faults[0]}", data=summary)
    return Completed(message=f"{summary.done} done, {summary.failed} failed", data=summary)


def _work_through(chunks: list[tuple[Source, ...]], settings: Settings, total: int) -> list[BaseException]:
    """Work through the chunks, one more at a time than there are slots, and say how far it is; the faults of failed ones.

    One chunk more than slots: it loads, or saves, while the others hold the slots. Not all at once: what is submitted
    and waits would hold its images, and could not be called back.
    """
    if not chunks:
        return []
    runner = process_chunk.with_options(tags=[settings.method, settings.device.name])
    left = list(enumerate(chunks, start=1))[::-1]
    in_work: dict[Any, Any] = {}
    faults: list[BaseException] = []
    watch = _Watch(settings, total)
    while left or in_work:
        while left and len(in_work) <= settings.slots and not interrupt.is_set():
            number, sources = left.pop()
            future: Any = runner.submit(sources, settings, number=number, of=len(chunks))
            in_work[future.wrapped_future] = future
        if interrupt.is_set():
            left.clear()
        ended, _ = wait(in_work, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        faults += [fault for one in ended if (fault := _fault(in_work.pop(one))) is not None]
        watch.show(ended=not (left or in_work))
    return faults


class _Watch:
    """Tells the listeners and the Prefect UI how far the chunks are."""

    def __init__(self, settings: Settings, total: int) -> None:
        self._tail = ledger.Tail(settings.run_folder)
        self._total = total
        self._done = self._failed = 0
        self._started = self._published = time.perf_counter()
        key = f"progress-{_slug(settings.output.name)}"
        self._artifact: Any = create_progress_artifact(progress=0.0, key=key, description=f"0 of {total} images")

    def show(self, *, ended: bool) -> None:
        """Look at the ledger and tell; the artifact only every few seconds."""
        for row in self._tail.new_rows():
            self._done += row["status"] == DONE
            self._failed += row["status"] == FAILED
        part, waiting = activity.glance()
        seconds = time.perf_counter() - self._started
        progress = Progress(self._total, self._done, self._failed, part, seconds, waiting)
        for listener in _listeners:
            listener(progress)
        if ended or time.perf_counter() - self._published > ARTIFACT_SECONDS:
            self._published = time.perf_counter()
            told = f"{self._done} done, {self._failed} failed of {self._total}"
            if not ended and progress.seconds_left is not None:
                told += f", about {progress.seconds_left:.0f} s left"
            share = (self._done + self._failed + part) / self._total
            update_progress_artifact(self._artifact, progress=100 * min(1.0, share), description=told)


def _fault(future: Any) -> BaseException | None:
    """The machine's fault that a chunk failed by; ``None`` where it ended well or was interrupted."""
    if not future.state.is_failed():
        return None
    fault = future.state.result(raise_on_failure=False)
    return fault if isinstance(fault, BaseException) else RuntimeError(str(fault))


def _summarise(settings: Settings, found: Scan, rows: list[table.Row], seconds: float) -> Summary:
    mine = [row for row in rows if row["run_id"] == settings.run_id]
    failed = [row for row in mine if row["status"] == FAILED]
    scored = [r for r in rows if r["psnr_noisy_db"] is not None and r["psnr_denoised_db"] is not None]
    return Summary(
        run_id=settings.run_id,
        output=str(settings.output),
        images=found.images,
        done=sum(row["status"] == DONE for row in mine),
        already_done=len(found.done),
        failed=len(failed),
        skipped=sum(row["status"] == SKIPPED for row in mine),
        interrupted=interrupt.is_set(),
        seconds=round(seconds, 3),
        psnr_noisy_db=_mean([row["psnr_noisy_db"] for row in scored]),
        psnr_denoised_db=_mean([row["psnr_denoised_db"] for row in scored]),
        results=str(settings.output / "results.parquet"),
        report=str(settings.output / "report.html"),
        failures=[{"source": row["source"], "error": row["error"]} for row in failed[:100]],
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _publish(summary: Summary, rows: list[table.Row], settings: Settings) -> None:
    """The artifacts of the Prefect UI: the summary as a table, the worst images and the failures as a page."""
    facts = {k: v for k, v in asdict(summary).items() if k not in {"failures", "results", "report"}}
    slug = _slug(settings.output.name)
    create_table_artifact(
        table=[{"": name.replace("_", " "), "value": "–" if value is None else value} for name, value in facts.items()],
        key=f"summary-{slug}",
        description=f"Run {settings.run_id} into {settings.output}",
    )
    create_markdown_artifact(
        markdown=summary_markdown(rows, settings.output, socket.gethostname()),
        key=f"report-{slug}",
        description=f"Worst and failed images of {settings.output}",
    )


def _slug(name: str) -> str:
    """A name as the key of an artifact: lower-case letters, figures and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "output"


@contextmanager
def _ending_gently() -> Iterator[None]:
    """A termination signal asks the run to stop, as Ctrl-C does; Prefect's own handler would break it off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: interrupt.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _only_run(output: Path) -> Iterator[None]:
    """Keep other runs out of the output while this one writes there."""
    (output / "runs").mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / "runs" / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StartError(f"OUTPUT: another run is writing to {output}; wait for it or give another OUTPUT") from None
    try:
        yield
    finally:
        lock.release()


def share(device: Device, config: RunConfig) -> tuple[Device, int]:
    """The device with the threads of one fit, and how many fits share it.

    The fast preset's crops are too small to be worth splitting among threads: on a CPU one fit a core does twice as much,
    and does not stall where other programs take a core away. The whole-image fit does gain from all cores.
    """
    if device.name != "cpu":
        return device, config.slots or 1
    if config.preset is Preset.FAST:
        return replace(device, threads=1), config.slots or min(device.threads, MOST_SLOTS)
    slots = config.slots or 1
    return replace(device, threads=max(1, device.threads // slots)), slots


def _resolve(config: RunConfig, output: Path) -> Settings:
    """The settings of a new run, whose folder is made and holds its configuration and environment."""
    device = choose(config.device)
    device, slots = share(device, config)
    runs = ledger.run_folders(output)
    number = int(runs[-1].name.split("-")[0]) + 1 if runs else 1
    run_id = f"{number:04d}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    settings = Settings(
        input=config.input.resolve(),
        output=output,
        method=config.resolved_method,
        preset=config.preset.value,
        noise=config.noise,
        clip_noise=config.clip_noise,
        reference=None if config.reference is None else config.reference.resolve(),
        seed=config.seed,
        device=device,
        slots=slots,
        max_pixels=int(config.max_megapixels * 1e6),
        run_id=run_id,
        config_digest=config.digest(),
        limit_name=limit_name(device.name) if reports_to_real_server() else None,
    )
    if settings.limit_name is not None:
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(settings.limit_name, slots)
    settings.run_folder.mkdir(parents=True)
    absolute = config.model_copy(update={"input": settings.input, "output": output, "reference": settings.reference})
    (settings.run_folder / "config.toml").write_text(absolute.to_toml(), encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device.name,
        "precision": device.precision,
        "threads": device.threads,
        "slots": slots,
        "packages": {
            name: version(name)
            for name in ("torch", "numpy", "prefect", "tifffile", "imagecodecs", "pillow", "pyarrow")
        },
    }
    (settings.run_folder / "environment.json").write_text(json.dumps(environment, indent=2), encoding="utf-8")
    return settings


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write the run's log, tracebacks included, to a file in its folder."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    names = ("tasks", "prefect.flow_runs", "prefect.task_runs")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
        handler.close()

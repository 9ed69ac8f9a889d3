"""The flow: a directory of images in, the denoised tree, a results table and a report out."""

from __future__ import annotations

import datetime
import json
import logging
import platform
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from denoise_core.device import choose
from denoise_core.images import remove_stale_temporaries
from flows import preflight
from flows.config import OnExisting, RunConfig
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
    task_runner=ThreadPoolTaskRunner(max_workers=2),
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
    with _only_run(output):
        remove_stale_temporaries(output)
        settings = _resolve(config, output)
        with _logging_to(settings.run_folder / "log.txt"):
            return _run(config, settings, started)


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
    runner = process_chunk.with_options(tags=[settings.method, settings.device.name])
    futures = [
        runner.submit(sources, settings, number=number, of=len(chunks)) for number, sources in enumerate(chunks, start=1)
    ]
    _watch(futures, settings, len(found.todo))
    faults = [fault for future in futures if (fault := _fault(future)) is not None]

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


def _watch(futures: list[Any], settings: Settings, total: int) -> None:
    """Tell the listeners and the Prefect UI how far the chunks are, until they end."""
    if not futures:
        return
    key = f"progress-{_slug(settings.output.name)}"
    artifact = create_progress_artifact(progress=0.0, key=key, description=f"0 of {total} images")
    started = shown = time.perf_counter()
    waiting = {future.wrapped_future for future in futures}
    tail = ledger.Tail(settings.run_folder)
    done = failed = 0
    while waiting:
        _, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        if interrupt.is_set():
            for future in waiting:
                future.cancel()  # those that have not begun; the others stop at their next step
        for row in tail.new_rows():
            done += row["status"] == DONE
            failed += row["status"] == FAILED
        part, what = activity.glance()
        progress = Progress(total, done, failed, part, time.perf_counter() - started, what)
        for listener in _listeners:
            listener(progress)
        if not waiting or time.perf_counter() - shown > ARTIFACT_SECONDS:
            shown = time.perf_counter()
            left = progress.seconds_left
            told = f"{done} done, {failed} failed of {total}" + (f", about {left:.0f} s left" if left and waiting else "")
            update_progress_artifact(artifact, progress=100 * min(1.0, (done + failed + part) / total), description=told)


def _fault(future: Any) -> BaseException | None:
    """The machine's fault that a chunk failed by; ``None`` where it ended well or was interrupted."""
    if future.wrapped_future.cancelled() or not future.state.is_failed() or future.state.is_crashed():
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


def _resolve(config: RunConfig, output: Path) -> Settings:
    """The settings of a new run, whose folder is made and holds its configuration and environment."""
    device = choose(config.device)
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
        slots=config.slots,
        max_pixels=int(config.max_megapixels * 1e6),
        run_id=run_id,
        config_digest=config.digest(),
        limit_name=limit_name(device.name) if reports_to_real_server() else None,
    )
    if settings.limit_name is not None:
        with get_client(sync_client=True) as client:
            client.upsert_global_concurrency_limit_by_name(settings.limit_name, config.slots)
    settings.run_folder.mkdir(parents=True)
    absolute = config.model_copy(update={"input": settings.input, "output": output, "reference": settings.reference})
    (settings.run_folder / "config.toml").write_text(absolute.to_toml(), encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device.name,
        "precision": device.precision,
        "threads": device.threads,
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


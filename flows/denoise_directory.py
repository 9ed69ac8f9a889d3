"""The flow: a directory of images in, the denoised tree, a results table and a report out."""

from __future__ import annotations

import datetime
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.runtime import deployment
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from denoise_core.device import Device
from denoise_core.images import remove_stale_temporaries
from flows import preflight, scopes, styles
from flows.choices import MOST_SLOTS, MethodChoice, OnExisting, Preset, Scope
from flows.compare_config import CompareConfig
from flows.config import RunConfig
from flows.console import duration
from flows.engine import Deaths, Engine, EngineLost, Threads, WorkerDied, opened
from flows.errors import OutputBusy, StartError
from flows.progress import Summary, Watch, announce, introduce, publish, untagged_tasks
from flows.server import reports_to_real_server
from flows.signals import ending_gently
from tasks import failures, ledger, table
from tasks import scan as scanning
from tasks.admission import give_back_of_the_dead, offer
from tasks.chunk import MOST_SEEN_IMAGES, into_chunks, process_chunk
from tasks.faults import Interrupted, interrupt, sentence
from tasks.in_work import MOST_DEATHS, died_over
from tasks.logs import logging_to, tell_the_server
from tasks.process import share_one_arena, short_turns
from tasks.report import PAGE, RESULTS, report
from tasks.scan import Scan
from tasks.settings import Settings
from tasks.slots import limit_name
from tasks.steps import ONCE, take
from tasks.table import DONE, FAILED, SKIPPED
from tasks.work import Source
from tasks.worker import showing_life, stop_workers_of

POLL_SECONDS = 0.25
GPU_MEMORY = 4_000_000_000  # bytes allowed to each image that is in work at once, whose parts take far less
GPU_IMAGES = 4  # in work at once, unless more slots are asked for: each is whole in the machine's own memory too


@task(name="scan", **{**ONCE, "task_run_name": "scan"})
def scan(settings: Settings, *, redo: bool) -> Scan:
    """List the input and leave out what is done."""
    return scanning.scan(
        settings.input,
        settings.output,
        max_pixels=settings.max_pixels,
        config_digest=settings.config_digest,
        redo=redo,
        reference=settings.reference,
        axes=settings.axes,
        channels=settings.channels,
        noisy=settings.saves_noisy,
        in_rgb=settings.style is not None,
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
    outlasted its retries or more images failed than ``strict`` or ``max_failed`` let, *Cancelled* when the user stopped the
    run. Its data is a :class:`Summary`.

    A run of a deployment, by its schedule or from the UI, that finds another one at work on its output is *Cancelled*.

    Raises:
        StartError: the run cannot start as configured.
    """
    # No more than this: an engine with other processes sends the flow along, and with it whatever it refers to.
    return _checked(config)


def _checked(config: RunConfig) -> State[Any]:
    if deployment.id is not None:
        _check_absolute(config)
    preflight.check(config)
    try:
        return run_into(config)
    except OutputBusy as busy:
        if deployment.id is None:
            raise
        # Not Prefect's limit of a deployment: the lock knows of all runs, and does not outlive one that is killed.
        return Cancelled(message=f"{busy}. What that run does not do, the next one does.")
    finally:
        interrupt.clear()  # it was this run's; a service runs the next flow in the same process


def _check_absolute(config: RunConfig) -> None:
    """Refuse relative paths: a worker runs in a folder of its own, and deletes it at the end with all that is in it."""
    for name, paths in config.paths.items():
        for path in paths:
            if not path.is_absolute():
                raise StartError(f"{name}: {path} is a relative path; a run of a deployment needs an absolute one")


def run_into(config: RunConfig, *, page: bool = True) -> State[Any]:
    """The run, inside a flow, of a configuration that was checked; with ``report.html``, or without."""
    started = time.perf_counter()
    share_one_arena()  # a scheduled run has no command line
    tell_the_server()
    output = config.output.resolve()
    with only_run(output), ending_gently(), opened(config) as engine:
        for earlier in ledger.run_folders(output):
            stop_workers_of(earlier)
        remove_stale_temporaries(output)
        settings = _resolve(config, output, engine)
        log = settings.run_folder / "log.txt"
        with logging_to(log), showing_life(settings), untagged_tasks(), short_turns():
            return _run(config, settings, engine, started, page=page)


def _run(config: RunConfig, settings: Settings, engine: Engine, started: float, *, page: bool) -> State[Any]:
    logger = get_run_logger()
    torch.set_num_threads(settings.device.threads)
    redo = config.on_existing is OnExisting.OVERWRITE
    names = ", ".join(device.name for device in settings.devices)
    logger.info("%s on %s (%s)", settings.method, names, settings.device.reason)
    try:
        found = take(scan, settings, redo=redo)
    except Interrupted:
        return Cancelled(message="stopped by the user before anything was done")
    if found.images == 0:
        others = f" ({len(found.refused)} other files)" if found.refused else ""
        raise StartError(f"INPUT: there is no image in {settings.input}{others}")
    introduce(config, settings.device.name, images=found.images, left=found.images - len(found.done))
    # From another process each step would ask the server for itself: there the chunk's task run stands for them.
    settings = replace(settings, steps_are_seen=len(found.todo) <= MOST_SEEN_IMAGES and not settings.elsewhere)
    if settings.style is not None and found.todo:
        styles.check(settings.style)
    deadly = frozenset() if engine.elsewhere else died_over(settings.output, found.todo)
    if deadly:
        announce(
            f"{len(deadly)} images in work when earlier runs died are done last, one at a time, in a worker process"
        )
    if settings.method == "zs-fit" and found.todo:
        settings = _prepared(config, settings, found, engine, deadly, redo=redo)
    chunks = into_chunks([source for source in found.todo if source not in deadly], config.chunk)
    apart = [(source,) for source in found.todo if source in deadly]
    logger.info(
        "%d images: %d to do in %d chunks, %d done earlier",
        found.images, len(found.todo), len(chunks) + len(apart), len(found.done),
    )  # fmt: skip
    if unreadable := failures.by_reason(found.refused):
        logger.warning("cannot be read: %s", failures.told(unreadable))
    faults = _work_through(chunks, apart, config, settings, engine)
    if engine.elsewhere or apart:
        remove_stale_temporaries(settings.output)  # of workers that died as they wrote
    pictures = report(settings, found, faults, page=page)
    rows, _ = table.read(settings.output / RESULTS)
    summary = _summarise(settings, found, rows, time.perf_counter() - started)
    publish(summary, rows, settings, pictures)
    return _verdict(config, summary, failures.by_reason(_of_run(rows, settings)), faults)


def _verdict(
    config: RunConfig, summary: Summary, reasons: list[failures.Reason], faults: list[BaseException]
) -> State[Any]:
    """How the run ended, in one sentence."""
    if summary.interrupted:
        return Cancelled(message=f"stopped by the user; {summary.done} done, the next run goes on", data=summary)
    failed = f"{summary.failed} of {summary.images} images failed"
    if faults:
        what = "" if isinstance(faults[0], EngineLost) else "a chunk broke: "
        return Failed(message=f"{failed}, since {what}{sentence(faults[0])}", data=summary)
    why = failures.told(reasons)
    if rule := too_many(config, summary.failed, summary.images):
        return Failed(message=f"{failed}, {rule}: {why}", data=summary)
    said = f"{summary.done} image{'s' * (summary.done != 1)} done in {duration(summary.seconds)}"
    if summary.already_done:
        said += f", {summary.already_done} done earlier"
    if summary.psnr_noisy_db is not None and summary.psnr_denoised_db is not None:
        said += f", mean PSNR {summary.psnr_noisy_db:.2f} → {summary.psnr_denoised_db:.2f} dB"
    return Completed(message=f"{said}; {summary.failed} failed{f': {why}' if why else ''}", data=summary)


def too_many(config: RunConfig | CompareConfig, failed: int, images: int) -> str | None:
    """What rule so many failures break: that of ``strict`` or ``max_failed``."""
    most = 0.0 if config.strict else config.max_failed
    if most is None or failed <= most * images:
        return None
    return "and --strict allows none" if config.strict else f"more than --max-failed {most:g} allows"


def _prepared(
    config: RunConfig, settings: Settings, found: Scan, engine: Engine, deadly: frozenset[Source], *, redo: bool
) -> Settings:
    """The settings of zs-fit once the input is known: its scope, its networks, and threads where images are few."""
    scope, why = scopes.resolve(config, found)
    announce(f"scope {scope}: {why}")
    settings = replace(settings, scope=scope)
    if lost := scopes.lost_networks(settings, found):
        announce(lost, logging.WARNING)
    if scope == "directory" and not settings.given_model:
        how: dict[str, Any] = {"asked": config.scope is not Scope.AUTO, "redo": redo, "announce": announce}
        if deadly:
            with _worker(config, settings) as (worker, own):
                models = scopes.fit_models(own, found, worker, deadly=deadly, **how).models
            settings = replace(settings, models=models)
        else:
            settings = scopes.fit_models(settings, found, engine if engine.remote else Threads(), **how)
    if config.slots is None and settings.device.name == "cpu" and not engine.remote:
        # Fewer images than cores: each gets several threads, which changes no bit of the result.
        slots = max(1, min(settings.slots, len(found.todo)))
        device = replace(settings.device, threads=settings.slots // slots)
        settings = replace(settings, slots=slots, device=device)
    return settings


@contextmanager
def _worker(config: RunConfig, settings: Settings) -> Iterator[tuple[Engine, Settings]]:
    """A worker process, and the settings for it, for what runs died over: one thing at a time, by itself."""
    own = replace(settings, slots=1, other_devices=(), elsewhere=True, steps_are_seen=False)
    with opened(config.model_copy(update={"engine": "processes"})) as engine, showing_life(own):
        yield engine, own


def _work_through(
    chunks: list[tuple[Source, ...]],
    apart: Sequence[tuple[Source, ...]],
    config: RunConfig,
    settings: Settings,
    engine: Engine,
) -> list[BaseException]:
    """Work through the chunks, and then through those whose images are worked on apart; what failed some."""
    numbered = dict(enumerate([*chunks, *apart], start=1))
    if not numbered:
        return []
    watch = Watch(settings, sum(map(len, numbered.values())))
    first = len(chunks) + 1  # of those apart
    faults = _each_chunk(range(1, first), numbered, settings, engine, watch, deaths=Deaths(settings))
    if apart:
        with _worker(config, settings) as (worker, own):
            numbers, deaths = range(first, first + len(apart)), Deaths(own, MOST_DEATHS)
            faults += _each_chunk(numbers, numbered, own, worker, watch, deaths=deaths)
    return faults


def _each_chunk(
    numbers: Sequence[int],
    chunks: dict[int, tuple[Source, ...]],
    settings: Settings,
    engine: Engine,
    watch: Watch,
    *,
    deaths: Deaths,
) -> list[BaseException]:
    """The chunks of these numbers, as many at a time as the engine has room for; say how far it is."""
    left = list(reversed(numbers))
    in_work: dict[Any, int] = {}
    faults: list[BaseException] = []
    stopped = False
    while left or in_work:
        try:
            while left and len(in_work) < engine.room(settings) and not interrupt.is_set():
                number = left.pop()
                deaths.begins(number, chunks[number])
                chunk = {"sources": chunks[number], "settings": settings, "number": number, "of": len(chunks)}
                in_work[engine.submit(process_chunk, chunk)] = number
            if interrupt.is_set() and not stopped:
                stopped = True
                left.clear()
                engine.stop(list(in_work))
            for future in engine.ended(list(in_work), POLL_SECONDS) if in_work else ():
                number = in_work.pop(future)
                outcome = engine.outcome(future)
                if isinstance(outcome, WorkerDied):
                    give_back_of_the_dead(settings.run_folder)
                if interrupt.is_set() or not isinstance(outcome, BaseException):
                    continue
                fault = deaths.verdict(number, chunks[number], outcome) if isinstance(outcome, WorkerDied) else outcome
                if fault is None or isinstance(fault, Interrupted):  # its worker took the run for dead
                    left.append(number)
                else:
                    faults.append(fault)
        except EngineLost as lost:
            faults.append(lost)
            left.clear()
            in_work.clear()
        watch.show(ended=not (left or in_work))
    return faults


def _summarise(settings: Settings, found: Scan, rows: list[table.Row], seconds: float) -> Summary:
    mine = _of_run(rows, settings)
    failed = [row for row in mine if row["status"] == FAILED]
    present = {table.text(source.name) for source in found.todo} | {row["source"] for row in found.done}
    scored = [
        row
        for row in rows
        if row["source"] in present
        and row["config_digest"] == settings.config_digest
        and row["psnr_noisy_db"] is not None
        and row["psnr_denoised_db"] is not None
    ]
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
        results=str(settings.output / RESULTS),
        report=str(settings.output / PAGE),
        failures=[{"source": row["source"], "error": row["error"]} for row in failed[:100]],
    )


def _of_run(rows: list[table.Row], settings: Settings) -> list[table.Row]:
    return [row for row in rows if row["run_id"] == settings.run_id]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


@contextmanager
def only_run(output: Path, folder: str = "runs") -> Iterator[None]:
    """Keep other runs out of the output, by a lock file in a folder of it, while this one writes there."""
    (output / folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputBusy(f"OUTPUT: another run is writing to {output}; wait for it or give another OUTPUT") from None
    try:
        yield
    finally:
        lock.release()


def busy(output: Path) -> bool:
    """Whether a run is writing to the output."""
    lock = output / "runs" / ".lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True


def share(device: Device, config: RunConfig) -> tuple[Device, int]:
    """The device with the threads of one fit, and how many fits share it.

    Crops are too small to be worth splitting among threads: on a CPU one fit a core does twice as much,
    and does not stall where other programs take a core away. The whole-image fit does gain from all cores. On a GPU the
    fits of zs-fit that run at the same time in one process are one batch; other fits only take turns.
    """
    if device.name != "cpu":
        one_batch = config.resolved_method == MethodChoice.ZS_FIT and config.engine == "local" and not config.style
        return device, config.slots or max(1, min(GPU_IMAGES, device.memory // GPU_MEMORY) if one_batch else 1)
    if config.preset is not Preset.PAPER:
        return replace(device, threads=1), config.slots or min(device.threads, MOST_SLOTS)
    slots = config.slots or 1
    return replace(device, threads=max(1, device.threads // slots)), slots


def _resolve(config: RunConfig, output: Path, engine: Engine) -> Settings:
    """The settings of a new run, whose folder is made and holds its configuration and environment."""
    device, *others = engine.devices(config.device)
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
        crop=config.crop,
        reference=None if config.reference is None else config.reference.resolve(),
        seed=config.seed,
        axes=config.axes,
        channels=config.channels.value,
        scope="image",
        models=() if config.model is None else scopes.given(config.model.resolve()),
        given_model=config.model is not None,
        style=styles.of(config),
        saves_noisy=config.saves_noisy,
        redo=config.on_existing is OnExisting.OVERWRITE,
        device=device,
        slots=slots,
        max_pixels=int(config.max_megapixels * 1e6),
        run_id=run_id,
        config_digest=config.digest(),
        steps_are_seen=True,
        # The workers of a cluster are admitted by its scheduler; the limits are those of this machine's devices.
        has_limits=reports_to_real_server() and not engine.remote,
        other_devices=tuple(others),
        elsewhere=engine.elsewhere,
    )
    if settings.has_limits:
        for one in settings.devices:
            offer(limit_name(one.name), slots)
    settings.run_folder.mkdir(parents=True)
    weights = config.vgg_weights if settings.style is None or settings.style.weights is None else settings.style.weights
    absolute = config.model_copy(
        update={
            "input": settings.input,
            "output": output,
            "reference": settings.reference,
            "style": () if settings.style is None else settings.style.images,
            "vgg_weights": None if weights is None else str(weights),
        }
    )
    (settings.run_folder / "config.toml").write_text(absolute.to_toml(), encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "engine": config.engine,
        "device": ",".join(one.name for one in settings.devices),
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

"""``denoise serve``: runs of one configuration on a schedule, or when new files have come, as a Prefect deployment.

The ledger makes every run incremental. A run that finds another one at work on its output is cancelled by the flow itself,
with its reason; runs that were missed while nobody served are made up for by a single one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from filelock import FileLock, Timeout

from flows import preflight, running, service
from flows.config import DOWNLOAD, RunConfig
from flows.console import printable
from flows.errors import StartError
from flows.server import prepare_environment
from tasks.faults import sentence

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.schedules import Schedule

FLOW = "denoise-directory"
LEAST_SECONDS = 60.0
"""Runs more often than this would do little but start."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_QUERY_SECONDS = 5.0
_TOLD_SECONDS = 2.0
_MOST_LETTERS = 300

Tell = Callable[[str], None]


@dataclass(frozen=True)
class When:
    """When runs start: one of the three; ``watch`` is the pause between two looks at the input, s."""

    cron: str | None = None
    every: float | None = None
    watch: float | None = None
    timezone: str = "UTC"

    def __str__(self) -> str:
        if self.cron is not None:
            return f"cron {self.cron!r}, {self.timezone} time"
        if self.every is not None:
            return f"every {_spelt(self.every)}, counted from a midnight, {self.timezone} time"
        return f"when files have come or changed, looked for every {_spelt(self.watch or 0)}"


def when(
    *, cron: str | None = None, every: str | None = None, watch: str | None = None, timezone: str | None = None
) -> When:
    """The times that were asked for.

    Raises:
        StartError: not just one of the three is given, or it cannot be read.
    """
    if sum(each is not None for each in (cron, every, watch)) != 1:
        raise StartError('give one of --cron "0 2 * * *", --every 6h and --watch')
    zone = timezone or local_zone()
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, LookupError):
        raise StartError(f"--timezone: there is no {zone!r}; one such as Europe/Berlin is wanted") from None
    if watch is not None:
        return When(watch=_seconds(watch, "--watch", 1.0), timezone=zone)
    if every is not None:
        return When(every=_seconds(every, "--every", LEAST_SECONDS), timezone=zone)
    chosen = When(cron=" ".join(str(cron).split()), timezone=zone)
    try:
        _schedule(chosen)
    except ValueError:
        raise StartError(
            f'--cron: {cron!r} is no cron expression: minute, hour, day, month, weekday, as in "0 2 * * *"'
        ) from None
    return chosen


def _seconds(words: str, option: str, least: float) -> float:
    found = re.fullmatch(r"(\d+)([smhd])", words.strip())
    if found is None:
        raise StartError(f"{option}: {words!r} is no duration: a number and s, m, h or d, such as 30s or 6h")
    seconds = float(found[1]) * _UNITS[found[2]]
    if not least <= seconds <= 366 * 86400:
        raise StartError(f"{option}: {words} is not between {_spelt(least)} and a year")
    return seconds


def _spelt(seconds: float) -> str:
    unit = next(unit for unit in reversed(_UNITS) if seconds % _UNITS[unit] == 0)
    return f"{seconds / _UNITS[unit]:.0f} {unit}"


def local_zone() -> str:
    """The name of this machine's time zone, or UTC where it has none."""
    for name in (
        os.environ.get("TZ", "").removeprefix(":"),
        str(Path("/etc/localtime").resolve()).split("zoneinfo/")[-1],
    ):
        with suppress(OSError, ValueError, LookupError):
            if name and not name.startswith("/"):
                return ZoneInfo(name).key
    return "UTC"


def _schedule(chosen: When) -> Schedule | None:
    """The schedule as Prefect keeps it; watching has none."""
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron, Interval

    if chosen.cron is not None:
        CronSchedule(cron=chosen.cron, timezone=chosen.timezone)  # raises for what is none
        return Cron(chosen.cron, timezone=chosen.timezone)
    if chosen.every is not None:
        midnight = datetime(2024, 1, 1, tzinfo=ZoneInfo(chosen.timezone))
        return Interval(timedelta(seconds=chosen.every), anchor_date=midnight, timezone=chosen.timezone)
    return None


def parameters(config: RunConfig) -> dict[str, Any]:
    """The configuration as the parameter of a deployment: plain JSON, with paths that hold in any folder."""

    def absolute(path: Path) -> Path:
        return path.expanduser().absolute()

    paths: dict[str, Any] = {"input": absolute(config.input), "output": absolute(config.output)}
    paths |= {name: absolute(path) for name in ("reference", "model") if (path := getattr(config, name)) is not None}
    paths["style"] = tuple(map(absolute, config.style))
    if config.vgg_weights not in (None, DOWNLOAD):
        paths["vgg_weights"] = str(absolute(Path(str(config.vgg_weights))))
    return {"config": config.model_copy(update=paths).model_dump(mode="json", exclude_none=True)}


def default_name(config: RunConfig) -> str:
    """A deployment's name that is the same whenever the same input is served into the same output."""
    source, output = config.input.absolute(), config.output.absolute()
    digest = hashlib.sha256(f"{source}\0{output}".encode("utf-8", "surrogateescape")).hexdigest()
    slug = re.sub(r"[^a-z0-9]+", "-", source.name.lower()).strip("-") or "input"
    return f"{slug}-{digest[:6]}"


def serve(config: RunConfig, chosen: When, *, name: str | None = None, tell: Tell) -> None:
    """Serve the deployment until a signal ends it; ``tell`` gets lines for the user.

    Raises:
        StartError: it cannot be served as configured.
    """
    prepare_environment()
    preflight.check(config, waits=True)
    name = name or default_name(config)
    if re.search(r"[/%]", name):
        raise StartError(f"--name: {name!r} has a / or %, which names of deployments cannot have")
    lock = FileLock(running.state_folder() / f"serve-{hashlib.sha256(name.encode()).hexdigest()[:12]}.lock")
    try:
        running.state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise StartError(f"another `denoise serve` serves {name}; end it first, or give another --name") from None
    try:
        with service.lasting() as (url, what):
            tell(f"Prefect server: {url.removesuffix('/api')} ({what})")
            asyncio.run(_serve(config, chosen, name, tell))
    finally:
        lock.release()


async def _serve(config: RunConfig, chosen: When, name: str, tell: Tell) -> None:
    from prefect.client.orchestration import get_client
    from prefect.runner import Runner
    from prefect.types.entrypoint import EntrypointType

    from flows.denoise_directory import denoise_directory

    runner = Runner(name=name, pause_on_shutdown=False, query_seconds=_QUERY_SECONDS)
    async with get_client() as client:
        missed = await _cancel_missed(client, name)
        deployment = await runner.aadd_deployment(
            await denoise_directory.ato_deployment(
                name=name,
                schedule=_schedule(chosen),
                parameters=parameters(config),
                tags=["denoise-flows", *config.tags],
                description=f"`denoise serve`: {config.title}, {chosen}",
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
        ending = asyncio.Event()
        serving = asyncio.create_task(runner.start(webserver=False))
        while not runner.started and not serving.done():
            await asyncio.sleep(0.05)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # in place of the runner's own, once it has them
            asyncio.get_running_loop().add_signal_handler(number, ending.set)
        tell(f"Deployment:     {FLOW}/{name}")
        tell(f"Runs:           {chosen}")
        tell("Ctrl-C ends it; the schedule stays.")
        if missed and chosen.watch is None:
            tell(f"{missed} runs were missed; one makes up for them")
            await client.create_flow_run_from_deployment(deployment)
        beside = [asyncio.create_task(_tell_runs(client, deployment, tell)), asyncio.create_task(ending.wait())]
        if chosen.watch is not None:
            beside.append(asyncio.create_task(_watch(client, deployment, config.input, chosen.watch, tell)))
        try:
            done, _ = await asyncio.wait([serving, *beside], return_when=asyncio.FIRST_COMPLETED)
            if ending.is_set():
                tell("stopping; a run in work reports first what it has done")
            for fault in filter(None, (task.exception() for task in done)):
                raise StartError(f"the service broke off ({type(fault).__name__}): {sentence(fault)}") from fault
        finally:
            for task in beside:
                task.cancel()
            if not serving.done():
                await runner.astop()
            await asyncio.gather(serving, return_exceptions=True)


async def _cancel_missed(client: PrefectClient, name: str) -> int:
    """Cancel the runs of the deployment whose time has passed while nobody served it; how many there were."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled

    count = 0
    while True:
        late = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
            ),
            limit=200,
        )
        for run in late:
            message = "Missed while `denoise serve` did not run; the next run does what this one would have done."
            await client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        count += len(late)
        if not late:
            return count


async def _tell_runs(client: PrefectClient, deployment: UUID, tell: Tell) -> None:
    """Say in a line when a run of the deployment starts and how it ends."""
    known = {run.id: run.state_type for run in await _runs(client, deployment)}
    while True:
        await asyncio.sleep(_TOLD_SECONDS)
        with suppress(_trouble()):
            for run in reversed(await _runs(client, deployment)):
                if known.get(run.id) is not run.state_type and run.state is not None:
                    known[run.id] = run.state_type
                    words = " ".join((run.state.message or "").split())[:_MOST_LETTERS]
                    tell(f"{_now()}  {printable(run.name)}  {run.state.name}{': ' * bool(words)}{printable(words)}")


def _trouble() -> type[Exception]:
    """What a server that is away for a while makes of a call."""
    import httpx

    return httpx.HTTPError


async def _runs(client: PrefectClient, deployment: UUID) -> list[FlowRun]:
    """The latest runs of the deployment that have begun, the newest first."""
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType
    from prefect.client.schemas.sorting import FlowRunSort

    begun = [StateType.RUNNING, *TERMINAL_STATES]
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun)),
        ),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=50,
    )


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


Files = dict[str, tuple[int, int]]


def look(source: Path) -> Files:
    """The files of the input with their sizes and times of change, ns."""
    found: Files = {}
    if source.is_file():
        paths = [str(source)]
    else:
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names]  # noqa: PTH118 - many
    for path in paths:
        with suppress(OSError):  # gone again
            facts = os.stat(path)  # noqa: PTH116
            found[path] = facts.st_size, facts.st_mtime_ns
    return found


async def _watch(client: PrefectClient, deployment: UUID, source: Path, pause: float, tell: Tell) -> None:
    """Start a run whenever the input has files that no run has seen and none of them changed between two looks."""
    seen: Files = {}
    before: Files = {}
    while True:
        files = await asyncio.to_thread(look, source)
        if files and files == before and files != seen:
            with suppress(_trouble()):
                run = await client.create_flow_run_from_deployment(deployment)
                new = sum(seen.get(path) != facts for path, facts in files.items())
                tell(f"{_now()}  {new} new or changed files")
                if await _ended(client, run.id):
                    seen = files
        before = files
        await asyncio.sleep(pause)


async def _ended(client: PrefectClient, run: UUID) -> bool:
    """Wait for a run's end; whether it did its work, so that only files that come later need another one."""
    while True:
        await asyncio.sleep(_TOLD_SECONDS)
        with suppress(_trouble()):
            state = (await client.read_flow_run(run)).state
            if state is not None and state.is_final():
                return state.is_completed() or state.is_failed()

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
import socket
import time
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
from flows.choices import DOWNLOAD
from flows.config import RunConfig
from flows.console import printable
from flows.errors import StartError
from flows.server import prepare_environment
from tasks.faults import sentence
from tasks.prefect_api import shown

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, StateType
    from prefect.schedules import Schedule

    from flows.runs import Runs

FLOW = "denoise-directory"
LEAST_SECONDS = 60.0
"""Runs more often than this would do little but start."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AWAY_SECONDS = 20.0
_TOLD_SECONDS = 2.0
_MOST_PAUSE = 600.0
_MOST_PAUSE_FAILED = 3600.0  # such as on a full disk, which someone must see to
_MOST_LETTERS = 300
_READY_SECONDS = 90.0  # for so long a server may call a deployment ready that nobody serves any more

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
    return When(cron=_cron(str(cron), zone), timezone=zone)


def _cron(words: str, zone: str) -> str:
    from prefect.server.schemas.schedules import CronSchedule

    cron = " ".join(words.split())
    unreadable = StartError(
        f'--cron: {words!r} is no cron expression: minute, hour, day, month, weekday, as in "0 2 * * *"'
    )
    if len(cron.split()) != 5 and not cron.startswith("@"):  # a sixth field would be seconds
        raise unreadable
    try:
        schedule = CronSchedule(cron=cron, timezone=zone)
    except ValueError:
        raise unreadable from None
    try:
        asyncio.run(schedule.get_dates(1))
    except ValueError:
        raise StartError(f"--cron: {words!r} is a time that never comes") from None
    return cron


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
    from prefect.schedules import Cron, Interval

    if chosen.cron is not None:
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
    from flows.runs import trouble

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
            try:
                asyncio.run(_serve(config, chosen, name, url.removesuffix("/api"), tell))
            except trouble() as fault:  # before there is anything to serve; later it is waited for
                raise StartError(f"the Prefect server failed: {shown(sentence(fault))}") from None
    finally:
        lock.release()


async def _serve(config: RunConfig, chosen: When, name: str, url: str, tell: Tell) -> None:
    from prefect.client.orchestration import get_client
    from prefect.types.entrypoint import EntrypointType

    from flows.denoise_directory import busy, denoise_directory
    from flows.runs import Runs

    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with get_client() as client:
        await _refuse_another_host(client, name, ending, tell)
        if ending.is_set():
            return
        missed = await _cancel_missed(client, name)
        served = await denoise_directory.ato_deployment(
            name=name,
            schedule=_schedule(chosen),
            parameters=parameters(config),
            tags=["denoise-flows", _host()],  # all its runs have them: none that the form could change
            description=f"`denoise serve`: {config.title}, {chosen}",
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment = await served.aapply()
        tell(f"Deployment:     {FLOW}/{name}")
        tell(f"Runs:           {chosen}")
        after = "the schedule stays" if chosen.watch is None else "what comes meanwhile is for the next one"
        tell(f"Ctrl-C ends it; {after}.")
        if busy(config.output):
            tell(
                f"a run that this service did not start is writing to {config.output}; others are cancelled until its end"
            )
        if missed and chosen.watch is None:
            tell(f"{missed} runs were missed; one makes up for them")
            await client.create_flow_run_from_deployment(deployment)
        runs = Runs(client, deployment)
        beside: list[asyncio.Task[Any]] = [
            asyncio.create_task(_look_after(runs, name, url, tell)),
            asyncio.create_task(ending.wait()),
        ]
        if chosen.watch is not None:
            beside.append(asyncio.create_task(_watch(client, deployment, config.input, chosen.watch, tell)))
        try:
            done, _ = await asyncio.wait(beside, return_when=asyncio.FIRST_COMPLETED)
            if ending.is_set():
                tell("stopping; a run in work reports first what it has done")
            for fault in filter(None, (task.exception() for task in done)):
                if isinstance(fault, StartError):
                    raise fault
                raise StartError(f"the service broke off ({type(fault).__name__}): {shown(sentence(fault))}") from fault
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await runs.stop()


def _host() -> str:
    return f"host:{socket.gethostname()}"


async def _refuse_another_host(client: PrefectClient, name: str, ending: asyncio.Event, tell: Tell) -> None:
    """Two machines with the same paths name their deployments alike, and each would take the other's runs.

    A service that has ended looks like one at work for a minute: that is waited for, or until ``ending`` is set.
    """
    from prefect.client.schemas.objects import DeploymentStatus
    from prefect.exceptions import ObjectNotFound

    began, told = time.monotonic(), False
    while not ending.is_set():
        try:
            served = await client.read_deployment_by_name(f"{FLOW}/{name}")
        except ObjectNotFound:
            return
        others = [tag.removeprefix("host:") for tag in served.tags if tag.startswith("host:") and tag != _host()]
        if not others or served.status is not DeploymentStatus.READY:  # nobody asked for its runs in the last minute
            return
        if time.monotonic() - began >= _READY_SECONDS:
            raise StartError(f"{name} is served by {others[0]}; end that service first, or give another --name here")
        if not told:
            told = True
            tell(f"{name} was served by {others[0]} a minute ago; waiting up to {_READY_SECONDS:.0f} s for its end")
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), _TOLD_SECONDS)


async def _cancel_missed(client: PrefectClient, name: str) -> int:
    """Cancel the runs of the schedule whose time has passed while nobody served it; how many there were."""
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

    missed = asked_for = 0
    while True:
        late = await client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
            ),
            limit=200,
            offset=asked_for,
        )
        for run in late:
            if run.auto_scheduled:
                message = "Missed while `denoise serve` did not run; the next run does what this one would have done."
                await client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
                missed += 1
            else:
                asked_for += 1
        if not late:
            return missed


async def _look_after(runs: Runs, name: str, url: str, tell: Tell) -> None:
    """Start and stop the runs, and say in a line when one starts and how it ends, and when the server is away.

    Raises:
        StartError: the deployment was deleted.
    """
    from prefect.exceptions import ObjectNotFound

    from flows.runs import LOOK_SECONDS, trouble

    known: dict[UUID, StateType | None] | None = None
    answered, away = time.monotonic(), False
    while True:
        try:
            try:
                await runs.client.read_deployment(runs.deployment)
            except ObjectNotFound:
                raise StartError(f"the deployment {FLOW}/{name} was deleted, so its service has ended") from None
            if known is None:
                await runs.adopt(_host())
            await runs.look()
            latest = await _runs(runs.client, runs.deployment)
        except trouble() as fault:
            if time.monotonic() - answered > _AWAY_SECONDS and not away:
                away = True
                tell(f"{_now()}  the Prefect server {url} does not answer ({shown(sentence(fault))}); waiting for it")
        else:
            if away:
                tell(f"{_now()}  the Prefect server answers again")
            answered, away = time.monotonic(), False
            if known is None:
                known = {run.id: run.state_type for run in latest}
            for run in reversed(latest):
                if known.get(run.id) is not run.state_type and run.state is not None:
                    known[run.id] = run.state_type
                    words = " ".join((run.state.message or "").split())[:_MOST_LETTERS]
                    tell(f"{_now()}  {printable(run.name)}  {run.state.name}{': ' * bool(words)}{printable(words)}")
        await asyncio.sleep(LOOK_SECONDS)


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
    """Start a run whenever the input has files that no run has seen and none of them changed between two looks.

    What came to nothing is tried again, after pauses that double, or as soon as files come or change.
    """
    from prefect.client.schemas.objects import StateType

    from flows.runs import trouble

    seen: Files = {}
    tried: Files = {}
    before: Files = {}
    vain = left = 0  # runs that came to nothing, one after another; looks until the next try
    while True:
        files = await asyncio.to_thread(look, source)
        left -= 1
        if files and files == before and files != seen and (files != tried or left <= 0):
            with suppress(trouble()):
                run = await client.create_flow_run_from_deployment(deployment)
                new = sum(seen.get(path) != facts for path, facts in files.items())
                tell(f"{_now()}  {new} new or changed files")
                end = await _ended(client, run.id)
                vain = vain + 1 if files == tried else 1
                most = _MOST_PAUSE if end is not StateType.FAILED else _MOST_PAUSE_FAILED
                left = min(2 ** (vain - 1), int(most / max(pause, 1.0)))
                tried = files
                if end is StateType.COMPLETED:
                    seen = files
        before = files
        await asyncio.sleep(pause)


async def _ended(client: PrefectClient, run: UUID) -> StateType:
    """Wait for a run's end; one that was deleted counts as cancelled."""
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import ObjectNotFound

    from flows.runs import trouble

    while True:
        await asyncio.sleep(_TOLD_SECONDS)
        with suppress(trouble()):
            try:
                state = (await client.read_flow_run(run)).state
            except ObjectNotFound:
                return StateType.CANCELLED
            if state is not None and state.is_final():
                return state.type

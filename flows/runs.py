"""The runs of a deployment, each in a process of its own: started when its time has come, stopped when it is cancelled.

In place of Prefect's runner, which no longer hears of cancellations once the server was away for a minute. Whatever the
server does, a run in work stays known here, and what is to be told to the server is told once it is back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

import psutil
from prefect.exceptions import ObjectNotFound

from tasks.faults import sentence
from tasks.prefect_api import shown

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import State
    from prefect.client.schemas.responses import OrchestrationResult

MOST_RUNS = 5
"""In work at once; those of the same output exclude each other anyway."""
LOOK_SECONDS = 3.0
_GRACE_SECONDS = 60.0
_MOST_LETTERS = 300


def trouble() -> type[Exception]:
    """What a server that is away for a while makes of a call."""
    import httpx

    return httpx.HTTPError


class Earlier:
    """The process of a run that another service began: it goes on when its service is killed. As asyncio's are."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process

    @classmethod
    def of(cls, run: UUID) -> Earlier | None:
        """The user's own process of the run, where it is still there."""
        command = ["-m", "prefect.engine", str(run)]
        for process in psutil.process_iter(["cmdline", "uids"]):
            uids = process.info["uids"]
            if (process.info["cmdline"] or [])[-3:] == command and uids is not None and uids.real == os.getuid():
                return cls(process)
        return None

    async def wait(self) -> None:
        """Its exit status is for its parent alone."""
        with suppress(psutil.NoSuchProcess):
            while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(LOOK_SECONDS)

    def terminate(self) -> None:
        """Ask it to end."""
        with suppress(psutil.NoSuchProcess):
            self._process.terminate()

    def kill(self) -> None:
        """Have it end."""
        with suppress(psutil.NoSuchProcess):
            self._process.kill()


class Runs:
    """The runs of one deployment that are in work here."""

    def __init__(self, client: PrefectClient, deployment: UUID) -> None:
        self.client = client
        self.deployment = deployment
        self._ends: dict[UUID, asyncio.Task[None]] = {}
        self._stops: dict[UUID, asyncio.Event] = {}
        self._asked: dict[UUID, set[UUID | None]] = {}
        """Of runs that were asked for: the transitions by which the server may have given them, though no answer came."""

    async def adopt(self, host: str) -> None:
        """Attend to the runs that an earlier service began on this host, by its tag; end those whose process is gone too.

        Those whose output somebody writes to are left, though no process of theirs is seen here: it may be in a container.
        """
        from prefect.client.schemas.filters import (
            FlowRunFilter,
            FlowRunFilterDeploymentId,
            FlowRunFilterState,
            FlowRunFilterStateType,
        )
        from prefect.client.schemas.objects import StateType

        from flows.denoise_directory import busy

        begun = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
        asked = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[self.deployment]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun)),
        )
        for run in await self.client.read_flow_runs(flow_run_filter=asked):
            mine = run.id in self._stops or run.id in self._asked
            if mine or any(tag.startswith("host:") and tag != host for tag in run.tags):
                continue
            if (process := Earlier.of(run.id)) is not None:
                self._attend_to(run.id, process, tempfile.TemporaryFile())  # noqa: SIM115 - closed at its end
                continue
            config = run.parameters.get("config")
            output = config.get("output") if isinstance(config, dict) else None
            # Without an output, which only a run that was created past the form's schema can lack, nothing is written.
            if not (isinstance(output, str) and busy(Path(output))):
                await self._conclude(run.id, None, "", stopped=False)

    async def look(self) -> None:
        """Start what is due and ask what is cancelled to stop; raises what calls of the server do."""
        await self._stop_cancelled()
        for asked in list(self._asked):
            if await self._given(asked):
                await self._begin(asked)
        due = await self.client.get_scheduled_flow_runs_for_deployments(
            [self.deployment], scheduled_before=datetime.now(UTC)
        )
        for run in due:
            if len(self._ends) < MOST_RUNS and run.id not in self._ends:
                with suppress(ObjectNotFound):
                    await self._start(run.id)

    async def stop(self) -> None:
        """Ask all runs to stop, and wait for them and for what the server is told of them."""
        from prefect.states import Scheduled

        for stop in self._stops.values():
            stop.set()
        for asked in list(self._asked):  # broken off in the middle: the next service has it
            with suppress(trouble(), ObjectNotFound):
                if await self._given(asked):
                    await self.client.set_flow_run_state(asked, Scheduled(), force=True)
        if self._ends:
            await asyncio.wait(self._ends.values(), timeout=2 * _GRACE_SECONDS)

    async def _start(self, run: UUID) -> None:
        from prefect.client.schemas.responses import SetStateStatus
        from prefect.states import Pending

        pending: State[Any] = Pending()
        asked = self._asked.setdefault(run, set())
        try:
            answer: OrchestrationResult[Any] = await self.client.set_flow_run_state(run, pending)
        finally:
            asked.add(pending.state_details.transition_id)
        if answer.status is SetStateStatus.ACCEPT or self._is_mine(run, answer.state):
            await self._begin(run)
        else:  # another one has it, or it was cancelled
            del self._asked[run]

    def _is_mine(self, run: UUID, state: State[Any] | None) -> bool:
        """Whether it is Pending by a request of ours; the server rejects the repetition of one whose answer was lost."""
        return state is not None and state.is_pending() and state.state_details.transition_id in self._asked[run]

    async def _given(self, run: UUID) -> bool:
        """Whether the server gave us a run that we asked for; those that it gave to another one are not asked for any more."""
        try:
            state = (await self.client.read_flow_run(run)).state
        except ObjectNotFound:
            state = None
        if self._is_mine(run, state):
            return True
        if state is None or not state.is_scheduled():
            del self._asked[run]
        return False

    async def _begin(self, run: UUID) -> None:
        from prefect.settings import get_current_settings
        from prefect.states import Crashed

        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed at its end
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "prefect.engine", str(run),
                env={**os.environ, **settings}, stdin=asyncio.subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,  # a Ctrl-C is for the service, which asks its runs once
            )  # fmt: skip
        except OSError as error:
            said.close()
            state: State[Any] = Crashed(message=f"its process could not start: {sentence(error)}")
            await self.client.set_flow_run_state(run, state, force=True)
        else:
            self._attend_to(run, process, said)
        del self._asked[run]

    def _attend_to(self, run: UUID, process: asyncio.subprocess.Process | Earlier, said: IO[bytes]) -> None:
        self._stops[run] = asyncio.Event()
        self._ends[run] = asyncio.create_task(self._attend(run, process, said))

    async def _stop_cancelled(self) -> None:
        """Those that were deleted, too."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        if not self._ends:
            return
        asked = FlowRunFilter(id=FlowRunFilterId(any_=list(self._ends)))
        states = {run.id: run.state for run in await self.client.read_flow_runs(flow_run_filter=asked)}
        for run, stop in self._stops.items():
            state = states.get(run)
            if state is None or state.is_cancelling():
                stop.set()

    async def _attend(self, run: UUID, process: asyncio.subprocess.Process | Earlier, said: IO[bytes]) -> None:
        """Wait for the end of a run, or ask for it; then tell the server what the run itself could not."""
        stop = self._stops[run]
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                with suppress(ProcessLookupError):  # it ended just now
                    process.terminate()
                await asyncio.wait({ended}, timeout=_GRACE_SECONDS)
                if not ended.done():
                    with suppress(ProcessLookupError):
                        process.kill()
            status = await ended
            words = _last_line(said)
            while True:
                with suppress(trouble()):
                    return await self._conclude(run, status, words, stopped=stop.is_set())
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            asked.cancel()
            said.close()
            del self._ends[run], self._stops[run]

    async def _conclude(self, run: UUID, status: int | None, words: str, *, stopped: bool) -> None:
        """Have an end for a run whose process ended without one."""
        from prefect.states import Cancelled, Crashed

        with suppress(ObjectNotFound):
            state = (await self.client.read_flow_run(run)).state
            if state is None or state.is_scheduled() or state.is_paused():
                return
            if stopped or state.is_cancelling():
                if not state.is_final() or state.is_crashed():  # Prefect calls it a crash before the run has begun
                    message = "stopped before the run could report what was done; the next run goes on"
                    await self.client.set_flow_run_state(run, Cancelled(message=message), force=True)
            elif not state.is_final():
                message = "its service and its process are gone"
                if status is not None:
                    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
                    message = f"its process ended {how}{': ' * bool(words)}{words}"
                await self.client.set_flow_run_state(run, Crashed(message=message), force=True)


def _last_line(said: IO[bytes]) -> str:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - 10_000))
    lines = [line.strip() for line in shown(said.read().decode("utf-8", "replace")).splitlines()]
    return next((line[:_MOST_LETTERS] for line in reversed(lines) if line), "")

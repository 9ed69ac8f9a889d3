"""The runs of a deployment as processes: what the server is told of those that cannot say it themselves."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from filelock import FileLock
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Completed, Pending, Running, Scheduled

from flows import runs
from flows.runs import Runs

Then = Callable[["Client", Runs], Awaitable[None]]


class Client:
    """Stands for a Prefect server with one flow run of a deployment, due now."""

    def __init__(self, state: State[Any] | None = None, *, takes: bool = True, answers: str = "all") -> None:
        self.run = uuid4()
        self.state: State[Any] | None = state or Scheduled()
        self.takes = takes
        self.answers = answers
        """Of requests for states: all; or, once, none ("lost") or one of its repetition only ("repeated")."""
        self.tags = ["denoise-flows", "host:here"]
        self.parameters: dict[str, Any] = {"config": {"output": "/no/such/folder"}}
        self.away = 0  # calls that get no answer

    async def get_scheduled_flow_runs_for_deployments(self, _: list[UUID], **__: object) -> list[Any]:
        return [SimpleNamespace(id=self.run)] if self.state is not None and self.state.is_scheduled() else []

    async def read_flow_runs(self, **_: object) -> list[Any]:
        run = SimpleNamespace(id=self.run, state=self.state, tags=self.tags, parameters=self.parameters)
        return [] if self.state is None else [run]

    async def read_flow_run(self, _: UUID) -> Any:
        if self.away:
            self.away -= 1
            raise httpx.ConnectError("away")
        if self.state is None:
            raise ObjectNotFound(http_exc=Exception())
        return SimpleNamespace(state=self.state)

    async def set_flow_run_state(self, _: UUID, state: State[Any], **__: object) -> Any:
        state.state_details.transition_id = uuid4()
        how, self.answers = self.answers, "all"
        if self.takes:
            self.state = state.model_copy(deep=True)
        if how == "lost":
            raise httpx.ReadTimeout("lost")
        if how == "repeated":
            return SimpleNamespace(status=SetStateStatus.REJECT, state=self.state)
        status = SetStateStatus.ACCEPT if self.takes else SetStateStatus.ABORT
        return SimpleNamespace(status=status, state=self.state)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a shell script run in place of Prefect's engine."""

    def script(lines: str) -> None:
        file = tmp_path / "engine"
        file.write_text(f"#!/bin/sh\n{lines}\n")
        file.chmod(0o755)
        monkeypatch.setattr(runs.sys, "executable", str(file))

    monkeypatch.setattr(runs, "LOOK_SECONDS", 0.01)
    return script


def served(client: Client, then: Then) -> None:
    """Start what is due, and wait for its end after something has happened."""

    async def serve() -> None:
        now = Runs(client, uuid4())  # type: ignore[arg-type]
        await now.look()
        await then(client, now)
        await asyncio.wait_for(asyncio.gather(*now._ends.values()), 60)
        assert now._ends == {}
        assert now._stops == {}

    asyncio.run(serve())


async def nothing(_: Client, __: Runs) -> None:
    pass


def test_a_run_whose_process_breaks_is_crashed_with_its_last_line(engine: Callable[[str], None]) -> None:
    engine("echo it began; echo 'no module named cellpose at http://me:s3cret@host/api' >&2; exit 3")
    client = Client()
    client.away = 2
    served(client, nothing)
    assert client.state is not None
    assert client.state.type is StateType.CRASHED
    assert client.state.message == "its process ended with exit status 3: no module named cellpose at http://host/api"


def test_a_run_whose_process_is_killed_is_crashed(engine: Callable[[str], None]) -> None:
    engine("kill -9 $$")
    client = Client()
    served(client, nothing)
    assert client.state is not None
    assert client.state.message == "its process ended by SIGKILL"


def test_a_run_that_told_its_end_is_left_as_it_is(engine: Callable[[str], None]) -> None:
    engine("exit 1")
    client = Client()

    async def tells(client: Client, _: Runs) -> None:
        client.state = Completed(message="2 images done")

    served(client, tells)
    assert client.state is not None
    assert client.state.message == "2 images done"


@pytest.mark.parametrize("state", [Cancelling(), None])
def test_a_run_that_is_cancelled_or_deleted_is_stopped(engine: Callable[[str], None], state: State[Any] | None) -> None:
    engine("exec sleep 600")
    client = Client()

    async def asks(client: Client, now: Runs) -> None:
        client.state = state
        await now.look()

    served(client, asks)
    assert (client.state is None) is (state is None)
    if client.state is not None:
        assert client.state.type is StateType.CANCELLED


def adopted(client: Client, then: Callable[[Runs], Awaitable[None]] | None = None) -> None:
    """What a service does at its start with a run that it did not start, and later with its end."""

    async def serve() -> None:
        now = Runs(client, uuid4())  # type: ignore[arg-type]
        await now.adopt("host:here")
        assert bool(now._ends) is (then is not None)
        if then is not None:
            await then(now)
            await asyncio.wait_for(asyncio.gather(*now._ends.values()), 60)

    asyncio.run(serve())


@pytest.mark.parametrize(
    ("state", "ends"),
    [
        (Pending(), StateType.CRASHED),
        (Running(), StateType.CRASHED),
        (Cancelling(), StateType.CANCELLED),
    ],
)
def test_a_run_whose_service_and_process_are_gone_is_ended(tmp_path: Path, state: State[Any], ends: StateType) -> None:
    """But not one of another host, nor one whose output somebody writes to."""
    elsewhere = Client(state)
    elsewhere.tags = ["host:there"]
    adopted(elsewhere)
    assert elsewhere.state is state

    client = Client(state)
    client.parameters = {"config": {"output": str(tmp_path)}}
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / ".lock"):
        adopted(client)
        assert client.state is state
    adopted(client)
    assert client.state is not None
    assert client.state.type is ends
    if ends is StateType.CRASHED:
        assert client.state.message == "its service and its process are gone"


@pytest.mark.parametrize("parameters", [{}, {"config": None}, {"config": {}}, {"config": {"output": 3}}])
def test_a_run_that_was_created_without_an_output_ends_no_service(parameters: dict[str, Any]) -> None:
    client = Client(Running())
    client.parameters = parameters
    adopted(client)
    assert client.state is not None
    assert client.state.type is StateType.CRASHED


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_run_that_an_earlier_service_began_is_attended_to(
    engine: Callable[[str], None], tmp_path: Path, *, cancelled: bool
) -> None:
    """It is asked to stop when it is cancelled, and has an end when its process dies."""
    engine(f"trap 'touch {tmp_path / 'asked'}; exit 0' TERM; touch {tmp_path / 'begun'}; while :; do sleep 0.05; done")
    client = Client(Running())
    command = [runs.sys.executable, "-m", "prefect.engine", str(client.run)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            while not (tmp_path / "begun").exists():
                assert process.poll() is None

            async def then(now: Runs) -> None:
                if cancelled:
                    client.state = Cancelling()
                    await now.look()
                else:
                    process.kill()

            adopted(client, then)
            assert process.wait(60) == (0 if cancelled else -9)
        finally:
            process.kill()
    assert (tmp_path / "asked").exists() is cancelled
    assert client.state is not None
    assert client.state.type is (StateType.CANCELLED if cancelled else StateType.CRASHED)


def test_a_run_that_does_not_stop_is_killed(
    engine: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_GRACE_SECONDS", 0.5)
    engine(f"trap '' TERM; touch {tmp_path / 'deaf'}; while :; do sleep 0.1; done")
    client = Client()

    async def ends(client: Client, now: Runs) -> None:
        while not (tmp_path / "deaf").exists():
            await asyncio.sleep(0.01)
        client.state = Running()
        await now.stop()

    served(client, ends)
    assert client.state is not None
    assert client.state.type is StateType.CANCELLED


def test_a_run_that_ends_while_it_is_asked_to_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_GRACE_SECONDS", 0.01)
    client = Client(Running())

    class Gone:
        """A process that is no more there when a signal is sent to it."""

        def __init__(self) -> None:
            self.signals = 0
            self.over = asyncio.Event()

        async def wait(self) -> int:
            await self.over.wait()
            return 0

        def terminate(self) -> None:
            self.signals += 1
            if self.signals == 2:
                self.over.set()
            raise ProcessLookupError

        kill = terminate

    async def ends() -> int:
        now, process = Runs(client, uuid4()), Gone()  # type: ignore[arg-type]
        now._stops[client.run] = asyncio.Event()
        with (tmp_path / "said").open("w+b") as said:
            now._ends[client.run] = asyncio.create_task(now._attend(client.run, process, said))  # type: ignore[arg-type]
            await now.stop()
        return process.signals

    assert asyncio.run(ends()) == 2
    assert client.state is not None
    assert client.state.type is StateType.CANCELLED


def test_what_another_one_has_taken_is_not_started(engine: Callable[[str], None], tmp_path: Path) -> None:
    engine(f"touch {tmp_path / 'started'}")
    for client in (Client(takes=False), Client(Cancelled())):
        served(client, nothing)
    assert not (tmp_path / "started").exists()


def test_a_run_whose_answer_was_lost_is_started(engine: Callable[[str], None], tmp_path: Path) -> None:
    """Prefect's client repeats the request, which the server rejects as it has granted it; or no answer comes at all."""
    engine(f"echo >> {tmp_path / 'started'}; exit 3")
    client = Client(answers="repeated")
    served(client, nothing)
    assert client.state is not None
    assert client.state.type is StateType.CRASHED

    lost = Client(answers="lost")

    async def looks_twice() -> None:
        now = Runs(lost, uuid4())  # type: ignore[arg-type]
        with pytest.raises(httpx.ReadTimeout):
            await now.look()
        await now.adopt("host:here")
        assert lost.state is not None
        assert lost.state.is_pending(), "it is no earlier service's"
        await now.look()
        await asyncio.wait_for(asyncio.gather(*now._ends.values()), 60)

    asyncio.run(looks_twice())
    assert lost.state is not None
    assert lost.state.type is StateType.CRASHED
    assert (tmp_path / "started").read_text() == "\n\n"


@pytest.mark.parametrize("took", [True, False])
def test_a_run_whose_answer_was_lost_before_a_stop_is_scheduled_again(
    engine: Callable[[str], None], *, took: bool
) -> None:
    """But not where another service has taken it meanwhile."""
    engine("exit 3")
    client = Client(answers="lost")

    async def stops() -> None:
        now = Runs(client, uuid4())  # type: ignore[arg-type]
        with pytest.raises(httpx.ReadTimeout):
            await now.look()
        if not took:
            await client.set_flow_run_state(client.run, Pending())
            await now.look()
        await now.stop()

    asyncio.run(stops())
    assert client.state is not None
    assert client.state.type is (StateType.SCHEDULED if took else StateType.PENDING)


def test_a_process_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.sys, "executable", "/no/such/python")
    client = Client()
    served(client, nothing)
    assert client.state is not None
    assert client.state.type is StateType.CRASHED
    assert client.state.message == "its process could not start: No such file or directory: /no/such/python"

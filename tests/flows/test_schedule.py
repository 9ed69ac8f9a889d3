"""`denoise serve`: its times, its form in the UI, what it does with new files, overlaps and missed runs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from prefect.client.schemas.objects import DeploymentStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from denoise_core.noise import KINDS
from flows import schedule
from flows.config import RunConfig
from flows.denoise_directory import denoise_directory
from flows.errors import StartError
from tasks import table
from tests.flows.services import PATIENCE, RealServer, Service, denoise, server, service, write_images

WORDS = "Ctrl-C ends it; the schedule stays."


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "give one of --cron"),
        ({"cron": "0 2 * * *", "watch": "30s"}, "give one of --cron"),
        ({"cron": "at two"}, "--cron: 'at two' is no cron expression"),
        ({"cron": "0 25 * * *"}, "is no cron expression"),
        ({"cron": "* * * * * *"}, "'* * * * * *' is no cron expression"),
        ({"cron": "@sometimes"}, "is no cron expression"),
        ({"cron": "0 2 30 2 *"}, "--cron: '0 2 30 2 *' is a time that never comes"),
        ({"every": "6"}, "--every: '6' is no duration"),
        ({"every": "5s"}, "--every: 5s is not between 1 m and a year"),
        ({"watch": "soon"}, "--watch: 'soon' is no duration"),
        ({"every": "6h", "timezone": "Nowhere/Land"}, "--timezone: there is no 'Nowhere/Land'"),
    ],
)
def test_times_that_cannot_be_are_one_sentence(asked: dict[str, str], said: str) -> None:
    with pytest.raises(StartError) as error:
        schedule.when(**asked)
    assert said in str(error.value)


def test_times_are_those_of_the_place_where_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert schedule.local_zone() == "Asia/Tokyo"
    nightly = schedule.when(cron="0  2 * * *")
    assert str(nightly) == "cron '0 2 * * *', Asia/Tokyo time"
    assert schedule.when(cron="@daily").cron == "@daily"
    assert schedule.when(cron="0 0 29 2 *").cron == "0 0 29 2 *"
    often = schedule.when(every="90m", timezone="Europe/Berlin")
    assert (often.every, often.timezone) == (5400, "Europe/Berlin")
    kept = schedule._schedule(often)
    assert kept is not None
    assert kept.anchor_date is not None
    assert (kept.anchor_date.hour, kept.anchor_date.minute) == (0, 0)


def test_the_form_has_a_description_for_each_option_and_choices_and_bounds() -> None:
    form = parameter_schema(denoise_directory).model_dump_for_openapi()
    fields = form["definitions"]["RunConfig"]["properties"]
    assert list(fields) == list(RunConfig.model_fields)
    assert all(len(field["description"]) > 20 for field in fields.values())
    assert form["definitions"]["RunConfig"]["required"] == ["input", "output"]
    for name in ("method", "preset", "scope", "channels", "on_existing", "style_preset"):
        choices = form["definitions"][fields[name]["$ref"].rsplit("/", 1)[1]]["enum"]
        assert fields[name]["default"] in choices
        assert len(choices) >= 2
    assert fields["slots"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 64}
    assert fields["seed"]["minimum"] == 0
    assert fields["style"]["type"] == "array"
    assert fields["vgg_sha256"]["title"] == "VGG SHA-256"
    good = {"input": "/in", "output": "/out"}
    for bad in ({"slots": 0}, {"method": "magic"}, {"device": "tpu"}, {"sigma": 3}, {"seed": -1}):
        assert validate({"config": good | bad}, form, raise_on_error=False), bad
    for bad in (
        {"input": ""},
        {"output": "out"},
        {"reference": "~/in"},
        {"style": ["a.png"]},
        {"vgg_weights": "v.pth"},
    ):
        assert validate({"config": good | bad}, form, raise_on_error=False), bad
        assert "absolute path" in fields[next(iter(bad))]["description"]
    for noise in ("", "gauss", "gauss:banana", "loud:3", "poisson-gauss:30"):
        assert validate({"config": good | {"noise": noise}}, form, raise_on_error=False), noise
    examples = [kind.example for kind in KINDS.values()] + [kind.range_example for kind in KINDS.values()]
    for right in (*({"noise": noise} for noise in examples), {"noise": "bernoulli:1e-05"}, {"vgg_weights": "download"}):
        assert validate({"config": good | right}, form, raise_on_error=False) == [], right


def test_the_parameter_is_the_configuration_with_paths_that_hold_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    style = tmp_path / "style.png"
    style.write_bytes(b"a style")
    (tmp_path / "vgg.pth").write_bytes(b"weights")
    config = RunConfig(
        input=Path("in"), output=Path("out"), noise="gauss:25", style=(Path("style.png"),), vgg_weights="vgg.pth", seed=3
    )  # fmt: skip
    sent = json.loads(json.dumps(schedule.parameters(config)))
    assert sent["config"]["input"] == str(tmp_path / "in")
    assert sent["config"]["style"] == [str(style)]
    assert validate(sent, parameter_schema(denoise_directory).model_dump_for_openapi(), raise_on_error=False) == []
    monkeypatch.chdir("/")
    assert RunConfig(**sent["config"]).digest() == RunConfig(**(config.model_dump() | sent["config"])).digest()
    monkeypatch.chdir(tmp_path)
    assert RunConfig(**sent["config"]).digest() == config.digest()
    assert schedule.default_name(config) == schedule.default_name(config.model_copy(update={"seed": 9}))


class Client:
    """Stands for a Prefect server: each flow run ends at once, with the next of the states, or is gone where that is None."""

    def __init__(self, *states: Any) -> None:
        self.states = list(states)
        self.started: list[int] = []
        self.looks = 0

    async def create_flow_run_from_deployment(self, _: UUID) -> Any:
        self.started.append(self.looks)
        return SimpleNamespace(id=uuid4())

    async def read_flow_run(self, _: UUID) -> Any:
        if (state := self.states.pop(0)) is None:
            raise ObjectNotFound(http_exc=Exception())
        return SimpleNamespace(state=state)


def test_watching_waits_until_files_are_settled_and_starts_again_what_was_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(Cancelled(), Completed(), Completed())
    monkeypatch.setattr(schedule, "_TOLD_SECONDS", 0.0)
    file, other = tmp_path / "growing.tif", tmp_path / "sub" / "new.tif"

    def look(source: Path) -> schedule.Files:
        client.looks += 1
        if client.looks <= 4:  # it comes with the second look and grows until the fourth
            file.write_bytes(b"x" * 10 * client.looks) if client.looks > 1 else None
        if client.looks == 9:
            other.parent.mkdir()
            other.write_bytes(b"y")
        if client.looks == 14:
            raise KeyboardInterrupt
        return seen(source)

    seen = schedule.look
    monkeypatch.setattr(schedule, "look", look)
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(schedule._watch(client, uuid4(), tmp_path, 0.0, lines.append))  # type: ignore[arg-type]
    assert client.started == [5, 6, 10], "settled; cancelled, so again; a new file, settled"
    assert [line.split("  ")[1] for line in lines] == ["1 new or changed files"] * 3


def test_what_came_to_nothing_is_tried_again_after_growing_pauses_or_at_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled beside another run, crashed, deleted, failed on a full disk: no run at every look, and none given up."""
    client = Client(Cancelled(), Crashed(), None, Failed(), Cancelled(), Cancelled(), Failed(), Completed())
    monkeypatch.setattr(schedule, "_TOLD_SECONDS", 0.0)
    (tmp_path / "a.tif").write_bytes(b"x")
    seen = schedule.look

    def look(source: Path) -> schedule.Files:
        client.looks += 1
        if client.looks == 20:
            (tmp_path / "b.tif").write_bytes(b"y")
        if client.looks == 60:
            raise KeyboardInterrupt
        return seen(source)

    monkeypatch.setattr(schedule, "look", look)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(schedule._watch(client, uuid4(), tmp_path, 0.0, print))  # type: ignore[arg-type]
    assert client.started == [2, 3, 5, 9, 17, 21, 22, 24], "twice as long each time; at once when there is a new file"


def test_the_pauses_end_at_ten_minutes_and_at_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With looks that are 200 s apart: after at most 3 of them, where a run failed after at most 18."""

    async def soon(_: float) -> None:
        pass

    (tmp_path / "a.tif").write_bytes(b"x")
    seen = schedule.look
    monkeypatch.setattr(schedule.asyncio, "sleep", soon)
    for state, pauses in ((Cancelled, [1, 2, 3, 3, 3, 3, 3]), (Failed, [1, 2, 4, 8, 16, 18, 18])):
        client = Client(*[state()] * 8, Completed())

        def look(source: Path, client: Client = client) -> schedule.Files:
            client.looks += 1
            if len(client.started) == 8:
                raise KeyboardInterrupt
            return seen(source)

        monkeypatch.setattr(schedule, "look", look)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(schedule._watch(client, uuid4(), tmp_path, 200.0, print))  # type: ignore[arg-type]
        assert np.diff(client.started).tolist() == pauses


class Deployed:
    """Stands for a server that has the deployment, served by a host; after some looks nobody is known to serve it."""

    def __init__(self, host: str, status: DeploymentStatus, looks: float = float("inf")) -> None:
        self.found = SimpleNamespace(tags=["denoise-flows", f"host:{host}"], status=status)
        self.looks = looks
        self.ending = asyncio.Event()
        self.lines: list[str] = []

    async def read_deployment_by_name(self, _: str) -> Any:
        self.looks -= 1
        if self.looks < 0:
            self.found.status = DeploymentStatus.NOT_READY
        return self.found

    def asked(self) -> None:
        """What a service does that would serve it here."""
        asyncio.run(schedule._refuse_another_host(self, "night-1a2b3c", self.ending, self.lines.append))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "status", "refused"),
    [
        ("elsewhere", DeploymentStatus.READY, True),
        ("elsewhere", DeploymentStatus.NOT_READY, False),
        (socket.gethostname(), DeploymentStatus.READY, False),
    ],
)
def test_what_another_machine_serves_is_refused(
    host: str, status: DeploymentStatus, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    monkeypatch.setattr(schedule, "_READY_SECONDS", 0.0)
    served = Deployed(host, status)
    if not refused:
        served.asked()
        return
    with pytest.raises(StartError, match="night-1a2b3c is served by elsewhere; end that service first"):
        served.asked()


def test_a_service_that_ended_elsewhere_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_TOLD_SECONDS", 0.01)
    served = Deployed("elsewhere", DeploymentStatus.READY, looks=2)
    served.asked()
    assert served.looks == -1
    assert served.lines == ["night-1a2b3c was served by elsewhere a minute ago; waiting up to 90 s for its end"]


def test_a_stop_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Deployed("elsewhere", DeploymentStatus.READY)
    monkeypatch.setattr(served, "lines", SimpleNamespace(append=lambda _: served.ending.set()))
    served.asked()
    assert served.ending.is_set()


def test_a_missing_input_and_a_second_service_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENOISE_STATE_DIR", str(tmp_path / "state"))
    every = schedule.when(every="6h")
    with pytest.raises(StartError, match="INPUT: there is no"):
        schedule.serve(RunConfig(input=tmp_path / "in", output=tmp_path / "out"), every, tell=print)
    (tmp_path / "in").mkdir()
    config = RunConfig(input=tmp_path / "in", output=tmp_path / "out")
    with pytest.raises(StartError, match="which names of deployments cannot have"):
        schedule.serve(config, every, name="a/b", tell=print)
    name = schedule.default_name(config)
    digest = schedule.hashlib.sha256(name.encode()).hexdigest()[:12]
    (tmp_path / "state").mkdir()
    with (
        FileLock(tmp_path / "state" / f"serve-{digest}.lock"),
        pytest.raises(StartError, match="another `denoise serve`"),
    ):
        schedule.serve(config, every, tell=print)


def answer(method: str, url: str, **options: Any) -> httpx.Response:
    """What the server answers; a busy one, on SQLite, says 503 now and then."""
    deadline = time.monotonic() + PATIENCE
    while (said := httpx.request(method, url, timeout=60, **options)).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return said


def ended(url: str, run: str) -> dict[str, Any]:
    """The state that a flow run ends in."""
    deadline = time.monotonic() + PATIENCE
    while True:
        state: dict[str, Any] = answer("GET", f"{url}/flow_runs/{run}").json()["state"]
        if state["type"] in {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}:
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.2)


def filled(url: str, name: str, **config: object) -> httpx.Response:
    """What the server answers to these values in the form of the deployment."""
    deployment = answer("GET", f"{url}/deployments/name/denoise-directory/{name}").json()["id"]
    form = {"parameters": {"config": config}}
    return answer("POST", f"{url}/deployments/{deployment}/create_flow_run", json=form)


def from_form(url: str, name: str, **config: object) -> str:
    """A flow run of the deployment with these values in the form."""
    taken = filled(url, name, **config)
    assert taken.status_code == 201, taken.text
    return str(taken.json()["id"])


def outcome(output: Path) -> dict[str, tuple[str, str]]:
    rows, _ = table.read(output / "results.parquet")
    return {row["source"]: (row["config_digest"], row["output_sha256"]) for row in rows}


@pytest.mark.slow
def test_the_form_does_what_the_command_line_does_and_overlaps_are_cancelled(
    denoise_server: RealServer, tmp_path: Path, photo: np.ndarray
) -> None:
    url = denoise_server.url
    images = write_images(tmp_path / "in", photo)
    options = {"method": "tv", "noise": "gauss:25", "seed": 4}
    flags = ["--method", "tv", "--noise", "gauss:25", "--seed", "4"]
    assert denoise("run", images, tmp_path / "cli", *flags, **denoise_server.here).returncode == 0
    said = tmp_path / "said"
    command = ("serve", images, tmp_path / "out", "--cron", "0 2 1 1 *", "--timezone", "UTC", "--name", "form")
    (tmp_path / "out" / "runs").mkdir(parents=True)
    with FileLock(tmp_path / "out" / "runs" / ".lock"), service(said, *command, **denoise_server.here) as serving:
        assert url.removesuffix("/api") in serving.wait_for(WORDS)
        serving.wait_for(f"a run that this service did not start is writing to {tmp_path / 'out'}")
        run = from_form(url, "form", input=str(images), output=str(tmp_path / "form"), **options)
        state = ended(url, run)
        assert state["type"] == "COMPLETED"
        assert state["message"].startswith("2 images done in ")
        assert outcome(tmp_path / "form") == outcome(tmp_path / "cli")
        tags = answer("GET", f"{url}/flow_runs/{run}").json()["tags"]
        assert sorted(tags) == sorted(["cpu", "denoise-flows", "gauss:25", f"host:{socket.gethostname()}", "tv"])
        serving.wait_for("Completed: 2 images done in ")

        broken = ended(url, from_form(url, "form", input=str(tmp_path / "nowhere"), output=str(tmp_path / "x")))
        assert broken["type"] == "FAILED"
        assert f"INPUT: there is no {tmp_path / 'nowhere'}" in broken["message"]
        wrong = filled(url, "form", input=str(images), output=str(tmp_path / "x"), noise="loud:3")
        assert wrong.status_code == 409
        assert "loud:3" in wrong.text

        with FileLock(tmp_path / "form" / "runs" / ".lock"):
            over = ended(url, from_form(url, "form", input=str(images), output=str(tmp_path / "form"), **options))
        assert over["type"] == "CANCELLED"
        assert "another run is writing to" in over["message"]
        assert serving.end() == 0
    deployment = httpx.get(f"{url}/deployments/name/denoise-directory/form").json()
    assert deployment["paused"] is False
    assert [one["active"] for one in deployment["schedules"]] == [True]
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 2 1 1 *"


def test_the_server_schedules_the_runs(denoise_server: RealServer, tmp_path: Path, photo: np.ndarray) -> None:
    """Its scheduler fails in its own log alone, as it does on SQLAlchemy 2.1."""
    images = write_images(tmp_path / "in", photo)
    command = ("serve", images, tmp_path / "out", "--every", "6h", "--timezone", "UTC", "--name", "kept")
    with service(tmp_path / "said", *command, **denoise_server.here) as serving:
        serving.wait_for(WORDS)
        deployment = httpx.get(f"{denoise_server.url}/deployments/name/denoise-directory/kept").json()
        asked = {"deployments": {"id": {"any_": [deployment["id"]]}}}
        until = time.monotonic() + 120
        while not (runs := httpx.post(f"{denoise_server.url}/flow_runs/filter", json=asked).json()):
            assert time.monotonic() < until
            time.sleep(0.5)
        assert all(run["auto_scheduled"] for run in runs)
        assert serving.end() == 0


@pytest.mark.slow
def test_missed_runs_are_made_up_for_by_one(denoise_server: RealServer, tmp_path: Path, photo: np.ndarray) -> None:
    """Three runs whose time came while nobody served: they are cancelled, with the reason, and one does their work.

    What a user asked for meanwhile is done.
    """
    url, out = denoise_server.url, tmp_path / "out"
    images = write_images(tmp_path / "in", photo)
    command = ("serve", images, out, "--method", "none", "--every", "6h", "--timezone", "UTC", "--name", "missed")
    with service(tmp_path / "said", *command, **denoise_server.here) as serving:
        serving.wait_for(WORDS)
        deployment = httpx.get(f"{url}/deployments/name/denoise-directory/missed").json()
        late = scheduled(url, deployment["id"], 3)
        assert serving.end() == 0
    make_late(denoise_server, late)
    asked = from_form(url, "missed", input=str(images), output=str(tmp_path / "asked"), method="none")
    before = flow_runs(url, deployment["id"])
    with service(tmp_path / "said", *command, **denoise_server.here) as serving:
        serving.wait_for("3 runs were missed; one makes up for them")
        serving.wait_for("Completed: 2 images done in ")
        for run in late:
            state = ended(url, run)
            assert state["type"] == "CANCELLED"
            assert "Missed while" in state["message"]
        assert ended(url, asked)["message"].startswith("2 images done in ")
        (made,) = flow_runs(url, deployment["id"]) - before
        assert ended(url, made)["message"].startswith("2 images done in ")
        assert len(outcome(out)) == 2
        assert serving.end() == 0


def scheduled(url: str, deployment: str, count: int) -> list[str]:
    """The first runs that the schedule of the deployment has made."""
    deadline = time.monotonic() + PATIENCE
    asked = {"deployments": {"id": {"any_": [deployment]}}}
    while True:
        found = answer("POST", f"{url}/flow_runs/filter", json=asked).json()
        if len(runs := [run["id"] for run in found if run["auto_scheduled"]]) >= count:
            return runs[:count]
        assert time.monotonic() < deadline
        time.sleep(0.5)


def make_late(server: RealServer, runs: list[str]) -> None:
    """Have the runs be due since yesterday, in the server's database: it lets nobody else make runs of a schedule."""
    moment = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d %H:%M:%S.%f")
    with closing(sqlite3.connect(server.folder / "server" / "prefect.db", timeout=PATIENCE)) as database, database:
        for run in runs:
            changed = database.execute(
                "UPDATE flow_run SET expected_start_time = ?, next_scheduled_start_time = ? WHERE id = ?",
                (moment, moment, run),
            )
            assert changed.rowcount == 1


def flow_runs(url: str, deployment: str) -> set[str]:
    """The runs of the deployment, but those that its schedule made."""
    found = answer("POST", f"{url}/flow_runs/filter", json={"deployments": {"id": {"any_": [deployment]}}}).json()
    return {run["id"] for run in found if not run["auto_scheduled"]}


@pytest.mark.slow
def test_runs_can_be_cancelled_after_an_outage_of_the_server(tmp_path: Path, photo: np.ndarray) -> None:
    """One that was in work all the time, and a later one. The service ends with a sentence when its deployment is deleted."""
    images = write_images(tmp_path / "in", photo, count=20)
    here = {"DENOISE_STATE_DIR": str(tmp_path / "state")}
    command = ("serve", images, tmp_path / "out", "--preset", "paper", "--every", "1d", "--name", "away")

    def begun(output: Path) -> str:
        run = from_form(url, "away", input=str(images), output=str(output), preset="paper", slots=1)
        wait_for_rows(output, 1, serving)
        return run

    def cancelled(run: str) -> None:
        assert answer("GET", f"{url}/flow_runs/{run}").json()["state"]["type"] == "RUNNING"
        asked = answer("POST", f"{url}/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
        assert asked.json()["status"] == "ACCEPT"
        state = ended(url, run)
        assert state["type"] == "CANCELLED"
        assert "stopped by the user" in state["message"]

    with ExitStack() as at_first:
        url, _ = at_first.enter_context(server(tmp_path / "server", **here))
        with service(tmp_path / "said", *command, PREFECT_API_URL=url, **here) as serving:
            serving.wait_for(WORDS)
            run = begun(tmp_path / "first")
            at_first.close()
            serving.wait_for("does not answer")
            with server(tmp_path / "server", port=httpx.URL(url).port, **here):
                serving.wait_for("the Prefect server answers again")
                cancelled(run)
                cancelled(begun(tmp_path / "second"))
                assert serving.said.read_text().count("answer") == 2
                deployment = answer("GET", f"{url}/deployments/name/denoise-directory/away").json()["id"]
                answer("DELETE", f"{url}/deployments/{deployment}").raise_for_status()
                assert serving.process.wait(PATIENCE) == 2
            said = serving.said.read_text()
    assert "the deployment denoise-directory/away was deleted, so its service has ended" in said
    for trouble in ("Traceback", "Warning", "None"):
        assert trouble not in said


@pytest.mark.slow
def test_watching_with_a_server_of_its_own_does_new_files_only(tmp_path: Path, photo: np.ndarray) -> None:
    images, out = write_images(tmp_path / "in", photo), tmp_path / "out"
    here = {"DENOISE_STATE_DIR": str(tmp_path / "state")}
    with service(tmp_path / "said", "serve", images, out, "--watch", "1s", "--method", "tv", **here) as serving:
        assert "started for this service, data in" in serving.wait_for(
            "Ctrl-C ends it; what comes meanwhile is for the next one."
        )
        serving.wait_for("Completed: 2 images done in ")
        (images / "tonight").mkdir()
        Image.fromarray(photo[100:124, 200:224]).save(images / "tonight" / "new.png")
        serving.wait_for("1 new or changed files")
        serving.wait_for("Completed: 1 image done in ")
        # In the middle of a run: it reports what is done, and its state says why it ended.
        for n in range(60):
            Image.fromarray(photo[100 + n : 124 + n, 200:224]).save(images / f"more-{n}.png")
        said = serving.wait_for("60 new or changed files")
        wait_for_rows(out, 5, serving)
        assert serving.end() == 0
        assert "stopping" in serving.said.read_text()
        assert "Traceback" not in said
    rows, _ = table.read(out / "results.parquet")
    assert all(row["status"] == "done" for row in rows)
    assert 5 <= len(rows) <= 63
    done = denoise("run", images, out, "--method", "tv", **here)
    assert done.returncode == 0, done.stderr
    assert f"{63 - len(rows)} done, {len(rows)} done earlier" in done.stdout


def wait_for_rows(output: Path, count: int, serving: Service) -> None:
    deadline = time.monotonic() + PATIENCE
    while sum(len(part.read_text().splitlines()) for part in output.glob("runs/*/ledger/*.jsonl")) < count:
        assert serving.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_prefect_yaml_deploys_for_a_worker_that_runs_it(
    denoise_server: RealServer, tmp_path: Path, photo: np.ndarray
) -> None:
    images, out = write_images(tmp_path / "in", photo), tmp_path / "out"
    environment = {
        **os.environ,
        "PREFECT_API_URL": denoise_server.url,
        "PREFECT_HOME": str(tmp_path / "home"),
        "DENOISE_INPUT": str(images),
        "DENOISE_OUTPUT": str(out),
        "PYTHONPATH": str(Path.cwd()),
    }

    def prefect(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    url = denoise_server.url
    worker = ("worker", "start", "--pool", "denoise", "--type", "process", "--run-once")
    prefect(*worker)  # makes the pool
    prefect("--no-prompt", "deploy", "--all")
    deployment = httpx.get(f"{url}/deployments/name/denoise-directory/nightly").json()
    assert deployment["work_pool_name"] == "denoise"
    assert [one["schedule"]["cron"] for one in deployment["schedules"]] == ["0 2 * * *"]
    assert deployment["parameters"]["config"] == {"input": str(images), "output": str(out)}
    assert deployment["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30", "docs/automations.yaml"
    run = from_form(url, "nightly", input=str(images), output=str(out), method="none")
    prefect(*worker)
    assert ended(url, run)["message"].startswith("2 images done in ")
    assert (out / "results.parquet").is_file()

    assert filled(url, "nightly", input=str(images), output="out").status_code == 409
    # What does not know of the form, as another client may not, is told by the run: a worker deletes the folder it runs in.
    answer(
        "PATCH", f"{url}/deployments/{deployment['id']}", json={"enforce_parameter_schema": False}
    ).raise_for_status()
    run = from_form(url, "nightly", input=str(images), output="out", method="none")
    prefect(*worker)
    state = ended(url, run)
    assert state["type"] == "FAILED"
    assert "OUTPUT: out is a relative path" in state["message"]

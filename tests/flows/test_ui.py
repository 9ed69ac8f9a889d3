"""What a person sees of a run in the Prefect UI: a real server, a real run, a real browser."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
from PIL import Image

from flows.choices import MethodChoice
from flows.config import RunConfig
from tests.watching import PATIENCE, server, wait_for_timeline

ROOT = Path(__file__).parents[2]


@dataclass
class Watched:
    """A server, and what it knows of a run."""

    url: str
    api: httpx.Client
    environment: dict[str, str]
    run: dict[str, Any]
    artifacts: dict[str, dict[str, Any]]
    output: Path

    def prefect(self, *arguments: str) -> str:
        """What Prefect's own command line prints."""
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Iterator[Watched]:
    """One run of seven images, of which one is torn, that a server of its own has watched."""
    folder = tmp_path_factory.mktemp("ui")
    (folder / "night").mkdir()
    for n in range(6):
        Image.fromarray(photo[64 * n : 64 * n + 64, 200:280]).save(folder / "night" / f"{n}.png")
    (folder / "night" / "to|rn_.png").write_bytes((folder / "night" / "0.png").read_bytes()[:-500])
    with server(folder / "prefect") as url, httpx.Client(base_url=f"{url}/api", timeout=60) as api:
        environment = {**os.environ, "PREFECT_API_URL": f"{url}/api", "PREFECT_HOME": str(folder / "prefect")}
        options = ["--method", "nl-bayes", "--noise", "gauss:25", "--chunk", "3", "--slots", "1"]
        command = [sys.executable, "-m", "flows.cli", "run", str(folder / "night"), str(folder / "out"), *options]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert ended.returncode == 1, ended.stderr
        (run,) = api.post("/flow_runs/filter", json={}).json()
        only = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        artifacts = {a["key"]: a for a in api.post("/artifacts/filter", json=only).json()}
        deadline = time.monotonic() + PATIENCE
        # The server records task runs from a queue of events.
        while not any(t["name"] == "report" for t in api.post("/task_runs/filter", json={"limit": 200, **only}).json()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield Watched(url, api, environment, run, artifacts, folder / "out")


@pytest.fixture
def tab(chromium: Any, watched: Watched) -> Iterator[Any]:
    """A page that reaches nothing but this machine."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(watched.url) else route.abort())
    yield page
    page.close()


VERSIONS = pytest.mark.parametrize("version", ["/v2", pytest.param("", marks=pytest.mark.slow)])
"""Of Prefect's UI: it offers both, the second by default."""


def test_the_page_of_the_run(tab: Any, watched: Watched) -> None:
    tab.goto(f"{watched.url}/v2/runs/flow-run/{watched.run['id']}")
    tab.get_by_text("night: nl-bayes at gauss:25, 7 images").first.wait_for()
    for tag in ("nl-bayes", "gauss:25", "cpu"):
        tab.get_by_text(tag, exact=True).first.wait_for()
    tab.get_by_text("Completed", exact=True).first.wait_for()
    # The lines of the chunks, and of no image.
    tab.get_by_role("tab", name="Logs").click()
    tab.get_by_text("chunk 3 of 3: 0 done, 1 failed: to|rn_.png (the PNG is truncated").first.wait_for()
    assert tab.get_by_text(re.compile(r"^chunk \d of 3: ")).count() == 3
    assert tab.get_by_text("Finished in state").count() == 1
    tab.get_by_role("tab", name="Task Runs").click()
    tab.get_by_text("save 5.png (chunk 2)").first.wait_for()
    tab.get_by_role("tab", name="Artifacts").click()
    for key in ("progress-out", "summary-out", "report-out"):
        tab.get_by_text(key).first.wait_for()
    tab.get_by_role("tab", name="Details").click()
    tab.get_by_text(
        re.compile(r"6 images done in .*, mean PSNR .* dB; 1 failed: to\|rn_\.png \(the PNG")
    ).first.wait_for()


def test_the_timeline_of_the_run(tab: Any, watched: Watched) -> None:
    tab.goto(f"{watched.url}/v2/runs/flow-run/{watched.run['id']}")
    wait_for_timeline(tab)


@VERSIONS
def test_the_artifacts(tab: Any, watched: Watched, version: str) -> None:
    def visit(key: str) -> None:
        tab.goto(f"{watched.url}{version}/artifacts/artifact/{watched.artifacts[key]['id']}")

    visit("progress-out")
    tab.get_by_text("6 done, 1 failed of 7").first.wait_for()
    visit("summary-out")
    tab.get_by_text("PSNR denoised, dB").first.wait_for()
    assert [cell.strip() for cell in tab.locator("tbody tr").first.inner_text().split("\t")] == ["images", "6", "1"]
    visit("report-out")
    tab.get_by_text(str(watched.output / "report.html")).first.wait_for()
    tab.get_by_text("Failed images (1)").first.wait_for()
    assert tab.get_by_text("to|rn_.png", exact=True).count() == 1
    shown = tab.locator("img[src^='data:']")
    assert shown.count() == 4
    for number in range(4):
        size = shown.nth(number).evaluate("i => [i.complete, i.naturalWidth, i.naturalHeight, i.width]")
        assert size == [True, 4 * 80 + 3 * 4, 64, 4 * 80 + 3 * 4]


def test_the_page_of_the_limit(tab: Any, watched: Watched) -> None:
    tab.goto(f"{watched.url}/v2/concurrency-limits?tab=global")
    row = tab.locator("tr", has_text=f"denoise {socket.gethostname()} cpu")
    row.wait_for()
    assert row.inner_text().split()[3:5] == ["1", "0"], "one slot, and none of it taken"


DEPLOY = """
from flows.server import prepare_environment
prepare_environment()
from flows.denoise_directory import denoise_directory
print(denoise_directory.to_deployment("form").apply())
"""


@pytest.fixture(scope="module")
def deployment(watched: Watched) -> Iterator[str]:
    """The flow as a deployment; its identifier."""
    command = [sys.executable, "-c", DEPLOY]
    deployed = subprocess.run(command, env=watched.environment, check=True, capture_output=True, text=True, cwd=ROOT)
    identifier = str(UUID(deployed.stdout.strip()))
    yield identifier
    watched.api.delete(f"/deployments/{identifier}")


@VERSIONS
def test_the_form_of_a_deployment_tells_every_option(tab: Any, watched: Watched, deployment: str, version: str) -> None:
    tab.goto(f"{watched.url}{version}/deployments/deployment/{deployment}/run")
    for text in ("It is never written to.", "chosen from the number of images.", "error refuses to start."):
        tab.get_by_text(text).wait_for()
    form = " ".join(tab.inner_text("body").split())
    for name, option in RunConfig.model_json_schema()["properties"].items():
        assert option["title"] in form, name
        assert " ".join(option["description"].split()) in form, name
    assert "At least 1 and at most 64." in form


def test_a_run_gets_what_is_filled_into_the_form(tab: Any, watched: Watched, deployment: str, tmp_path: Path) -> None:
    tab.goto(f"{watched.url}/v2/deployments/deployment/{deployment}/run")
    tab.get_by_text("error refuses to start.").wait_for()
    tab.get_by_label("Select Method", exact=True).click()
    offered = tab.get_by_role("option")
    offered.first.wait_for()
    assert [choice.strip() for choice in offered.all_inner_texts()] == list(MethodChoice)
    tab.get_by_role("option", name="tv", exact=True).click()
    tab.locator("[aria-label='Select Method']", has_text="tv").wait_for()
    for label, folder in (("Input", "in"), ("Output", "out")):
        tab.get_by_label(label, exact=True).fill(str(tmp_path / folder))
    assert tab.get_by_label("Input", exact=True).input_value() == str(tmp_path / "in")
    tab.get_by_role("button", name="Submit").click()
    tab.wait_for_url(lambda address: not address.endswith("/run"))
    deadline = time.monotonic() + PATIENCE
    only = {"deployments": {"id": {"any_": [deployment]}}}
    while not (runs := watched.api.post("/flow_runs/filter", json=only).json()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    config = RunConfig(**runs[0]["parameters"]["config"])
    assert config == RunConfig(input=tmp_path / "in", output=tmp_path / "out", method=MethodChoice.TV)
    watched.api.delete(f"/flow_runs/{runs[0]['id']}")


def automations(watched: Watched) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = watched.api.post("/automations/filter", json={}).json()
    return found


def test_the_command_for_automations_creates_them(watched: Watched) -> None:
    said = watched.prefect("automation", "create", "--from-file", str(ROOT / "docs" / "automations.yaml"))
    assert "Crashed denoise runs" in said
    (automation,) = automations(watched)
    assert automation["enabled"]
    assert automation["trigger"]["within"] == 120
    assert automation["actions"][0]["state"] == "CRASHED"
    watched.api.delete(f"/automations/{automation['id']}")


@pytest.mark.slow
def test_a_run_that_is_killed_becomes_crashed(watched: Watched, tmp_path: Path) -> None:
    watched.prefect("automation", "create", "--from-file", str(ROOT / "docs" / "automations.yaml"))
    command = [sys.executable, "-m", "flows.cli", "run", str(watched.output.parent / "night"), str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--method", "zs-n2n", "--preset", "paper"],
        env=watched.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def state() -> tuple[str, str]:
        runs = watched.api.post("/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
        return (runs[0]["name"], runs[0]["state"]["type"])

    def wait_for(expected: tuple[str, str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while state() != expected:
            assert time.monotonic() < deadline, state()
            time.sleep(0.5)

    name = "night: zs-n2n paper, 7 images"
    try:
        wait_for((name, "RUNNING"))
        deadline = time.monotonic() + PATIENCE
        event = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
        while not watched.api.post("/events/filter", json=event).json()["events"]:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_for((name, "CRASHED"))
    for automation in automations(watched):
        watched.api.delete(f"/automations/{automation['id']}")

"""Whole processes: interrupted, side by side, and watched by a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tasks import ledger, table

PATIENCE = 300.0  # seconds: nothing here takes long, and a busy machine must not fail a test


SHORT_FITS = """
import sys
from denoise_core.methods import zs_n2n
from flows.cli import main
zs_n2n.FAST_STEPS = 400
sys.exit(main())
"""


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A `denoise run` of its own, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SHORT_FITS, "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_for_rows(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(ledger.latest_rows(output)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def result(output: Path) -> dict[str, tuple[str, str | None, float | None]]:
    rows, _ = table.read(output / "results.parquet")
    return {row["source"]: (row["status"], row["output_sha256"], row["psnr_denoised_db"]) for row in rows}


def temporaries(output: Path) -> list[Path]:
    return [p for p in output.rglob("*") if "denoise-tmp" in p.name]


@pytest.fixture
def images(tmp_path: Path, photo: np.ndarray) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for n in range(6):
        Image.fromarray(photo[n * 24 : n * 24 + 24, 200:224]).save(root / f"{n}.png")
    return root


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(images: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    process = start(images, out, "--noise", "gauss:25", "--slots", 1, "--chunk", 3)
    wait_for_rows(out, 2, process)
    process.send_signal(number)
    status, said, err = finish(process)
    assert status == 130, err
    assert "goes on where this one stopped" in err
    assert "Traceback" not in err
    assert (out / "report.html").is_file()
    done = [row for row in result(out).values() if row[0] == "done"]
    assert 2 <= len(done) < 6
    assert all(row[0] == "done" for row in result(out).values()), "an interrupt is nobody's failure"
    assert temporaries(out) == []
    status, said, err = finish(start(images, out, "--noise", "gauss:25", "--slots", 1))
    assert status == 0, err
    assert f"{6 - len(done)} done, {len(done)} done earlier" in said


def test_two_runs_side_by_side_never_share_a_slot(images: Path, tmp_path: Path) -> None:
    runs = [start(images, tmp_path / name, "--slots", 1) for name in ("a", "b")]
    for run in runs:
        status, _, err = finish(run)
        assert status == 0, err
    spans: list[tuple[datetime, datetime, str]] = []
    for name in ("a", "b"):
        rows, _ = table.read(tmp_path / name / "results.parquet")
        spans += [(row["fit_started_at"], row["fit_finished_at"], name) for row in rows]
    spans.sort()
    assert len(spans) == 12
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[str]:
    """A `prefect server` as a user starts it, on loopback, stopped by its process id."""
    import socket

    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            env=environment,
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield url
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            if child.is_running():
                child.kill()


def test_on_a_real_server(images: Path, tmp_path: Path, real_server: str) -> None:
    """The run is on the server, with its limit, its artifacts and its task runs."""
    import httpx

    status, said, err = finish(start(images, tmp_path / "out", "--slots", 1, PREFECT_API_URL=real_server))
    assert status == 0, err
    assert real_server in err
    assert "6 done" in said
    with httpx.Client(base_url=real_server) as client:
        (flow_run,) = client.post("/flow_runs/filter", json={}).json()
        assert flow_run["name"] == "images: zs-fit fast, 6 images"
        assert flow_run["state"]["type"] == "COMPLETED"
        assert re.fullmatch(r"6 images done in .+; 0 failed", flow_run["state"]["message"])
        (limit,) = client.post("/v2/concurrency_limits/filter", json={}).json()
        assert limit["name"].startswith("denoise ")
        assert limit["name"].endswith(" cpu")
        assert limit["limit"] == 1
        assert limit["active_slots"] == 0
        artifacts = client.post("/artifacts/filter", json={}).json()
        assert {a["key"] for a in artifacts} == {"progress-out", "summary-out", "report-out"}
        tasks = client.post("/task_runs/filter", json={"limit": 200}).json()
        assert {"scan", "report", "denoise 0.png (chunk 1)"} <= {t["name"] for t in tasks}
        logs = client.post("/logs/filter", json={"limit": 200}).json()
        assert any("6 images: 6 to do" in log["message"] for log in logs)


def test_a_run_that_is_stopped_is_no_error_in_the_ui(photo: np.ndarray, tmp_path: Path, real_server: str) -> None:
    """No task run is red, and no line of the log is an error: neither of the step in work nor of its chunk."""
    import httpx

    (tmp_path / "images").mkdir()
    for n in range(3):
        Image.fromarray(photo[n * 128 : n * 128 + 128, 200:328]).save(tmp_path / "images" / f"{n}.png")
    options = ("--preset", "paper", "--slots", 1)
    process = start(tmp_path / "images", tmp_path / "out", *options, PREFECT_API_URL=real_server)

    def states() -> dict[str, str]:
        found = httpx.post(f"{real_server}/task_runs/filter", json={"limit": 200}).json()
        return {run["name"]: run["state"]["type"] for run in found if run["state"]}

    def wait_for(name: str, expected: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while (now := states()).get(name) != expected:
            assert time.monotonic() < deadline, now
            time.sleep(0.2)

    wait_for("denoise 0.png (chunk 1)", "RUNNING")
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130, err
    wait_for("denoise 0.png (chunk 1)", "CANCELLED")
    wait_for("chunk 1 of 3", "CANCELLED")
    assert set(states().values()) <= {"COMPLETED", "CANCELLED"}
    (flow_run,) = httpx.post(f"{real_server}/flow_runs/filter", json={}).json()
    assert flow_run["state"]["type"] == "CANCELLED"
    lines = httpx.post(f"{real_server}/logs/filter", json={"limit": 200}).json()
    assert lines
    assert [line["message"] for line in lines if line["level"] >= 40] == []


def test_a_server_that_does_not_answer(images: Path, tmp_path: Path) -> None:
    status, said, err = finish(start(images, tmp_path / "out", PREFECT_API_URL="http://127.0.0.1:9/api"))
    assert status == 2
    assert said == ""
    assert "does not answer" in err
    assert err.count("\n") == 1

"""What a person watches runs with: `denoise server`, and a browser."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

PATIENCE = 300.0  # seconds: a busy machine must not fail a test

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def browser_program() -> str | None:
    """A browser of this machine that playwright can drive; it brings none of its own."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser_program(), args=ARGUMENTS)
        yield running
        running.close()


@contextmanager
def server(home: Path) -> Iterator[str]:
    """A `denoise server` of its own on loopback, its database in ``home``; yields its address, and ends it and its children."""
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "DENOISE_STATE_DIR": str(home / "state"),  # not for others' runs to find
    }
    said = home / "said.txt"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "server", "--folder", str(home), "--port", str(port)],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(url):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield url
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health", timeout=5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def wait_for_timeline(tab: Any, *, rows: int = 3) -> None:
    """Until the page of a run has drawn its timeline: so many rows of bars of tasks that are completed."""
    canvas = tab.locator("canvas").first
    canvas.wait_for()
    deadline = time.monotonic() + PATIENCE
    while True:
        red, green, blue = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), int).transpose(
            2, 0, 1
        )
        bars = ((green > red + 60) & (green > blue + 60)).any(axis=1)
        if np.count_nonzero(np.diff(bars.astype(int)) == 1) >= rows:
            return
        assert time.monotonic() < deadline, "no timeline was drawn"
        time.sleep(0.5)

"""`denoise server` and `denoise run` as processes of their own, for the tests that need them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

PATIENCE = 300.0  # seconds: nothing here takes long, and a busy machine must not fail a test


@dataclass
class Service:
    """A command that goes on until it is told to end."""

    process: subprocess.Popen[str]
    said: Path

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()

    def wait_for(self, words: str) -> str:
        """What it has printed, once the words are in it."""
        deadline = time.monotonic() + PATIENCE
        while words not in (said := self.said.read_text(encoding="utf-8")):
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        return said


@contextmanager
def service(said: Path, *command: object, **environment: str) -> Iterator[Service]:
    """A `denoise` command in a process of its own; what it prints goes to a file."""
    with said.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *map(str, command)],
            stdout=file,
            stderr=file,
            text=True,
            env={**os.environ, **environment},
        )
    running = Service(process, said)
    try:
        yield running
    finally:
        running.end()


@contextmanager
def server(folder: Path, *options: object, port: int = 0, **environment: str) -> Iterator[tuple[str, Service]]:
    """`denoise server` on a folder, ready; the address of its API."""
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / f"said-{time.monotonic_ns()}.txt"
    with service(said, "server", "--folder", folder, "--port", port, *options, **environment) as running:
        words = running.wait_for("Ctrl-C ends it.")
        yield words.split("PREFECT_API_URL=")[1].split()[0], running


class RealServer(NamedTuple):
    """A `denoise server` that goes on for the whole session; its state folder is its own, so that only who is told finds it."""

    url: str
    service: Service
    folder: Path

    @property
    def here(self) -> dict[str, str]:
        """The environment in which runs find it by themselves."""
        return {"DENOISE_STATE_DIR": str(self.folder / "state")}


def denoise(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A `denoise` command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )


def write_images(folder: Path, photo: np.ndarray, count: int = 2) -> Path:
    """Small crops of a photograph."""
    folder.mkdir(parents=True)
    for n in range(count):
        Image.fromarray(photo[n * 24 : n * 24 + 24, 200:224]).save(folder / f"{n}.png")
    return folder

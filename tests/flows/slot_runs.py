"""Runs as processes of their own that hold slots of the CPU on a real server; the tests and `benchmarks.slots` judge them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from tasks import ledger
from tests.flows.services import PATIENCE, server, write_images

RUN = """
import os, sys, time
from pathlib import Path
import tasks.denoise
from denoise_core import methods
from flows.cli import main

real, folder = methods.denoise, Path(os.environ["TEST_FOLDER"])

def slow(frame, **options):
    (folder / f"inside-{os.getpid()}").touch()
    while (folder / "stay").exists() and len(list(folder.glob("inside-*"))) < 2:
        time.sleep(0.02)
    time.sleep(0.4)
    return real(frame, **options)

tasks.denoise.methods.denoise = slow
sys.exit(main())
"""


class Span(NamedTuple):
    """A fit: of which run, and from when to when by its row of the table."""

    started: datetime
    finished: datetime
    run: str


def start(images: Path, output: Path, slots: int, **environment: str) -> subprocess.Popen[str]:
    """`denoise run` with fits of half a second; one fit a run at a time.

    While TEST_FOLDER/stay is there, none ends before one of a second run has begun.
    """
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "run", images, output, "--method", "tv", "--slots", str(slots), "--chunk", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "TEST_FOLDER": str(output.parent), **environment},
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return said


def spans(output: Path) -> list[Span]:
    rows = ledger.latest_rows(output).values()
    found = [Span(_moment(row["fit_started_at"]), _moment(row["fit_finished_at"]), output.name) for row in rows]
    return sorted(found)


def _moment(value: str | datetime) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def overlapping(found: list[Span]) -> int:
    """How many pairs of fits of two runs were at work at the same time."""
    return sum(
        one.run != other.run and one.started < other.finished and other.started < one.finished
        for one, other in combinations(found, 2)
    )


def side_by_side(folder: Path, url: str, photo: np.ndarray, slots: int, *, meet: bool = False) -> list[Span]:
    """Two runs at the same time, each with lock files of its own, so that nothing but the server's limit is between them."""
    images = write_images(folder / "images", photo, 4)
    if meet:
        (folder / "stay").touch()
    runs = [
        start(images, folder / name, slots, PREFECT_API_URL=url, DENOISE_LOCK_DIR=str(folder / f"locks-{name}"))
        for name in ("a", "b")
    ]
    with ExitStack() as ending:
        for run in runs:
            ending.enter_context(_ended(run))
        for run in runs:
            finish(run)
    return sorted(spans(folder / "a") + spans(folder / "b"))


class Recovery(NamedTuple):
    """A slot whose holder was killed: the seconds until the next fit could have it, and what the next run said."""

    seconds: float
    said: str


def killed_while_holding(folder: Path, photo: np.ndarray, *, restart: bool) -> Recovery:
    """A run killed with SIGKILL in the middle of a fit, while another one waits for its slot.

    ``restart``: the server is killed too, and started again on its folder and port; the other run starts when it has given
    the slot back.
    """
    images = write_images(folder / "images", photo, 1)
    with ExitStack() as ending:
        url, process = ending.enter_context(server(folder / "server"))
        (folder / "stay").touch()
        holder = ending.enter_context(_ended(start(images, folder / "a", 1, PREFECT_API_URL=url)))
        _wait(lambda: bool(list(folder.glob("inside-*"))), holder)
        assert active_slots(url) == 1
        if not restart:
            waiter = ending.enter_context(_ended(start(images, folder / "b", 1, PREFECT_API_URL=url)))
            log = folder / "b" / "runs"
            _wait(lambda: any("images: 1 to do" in one.read_text() for one in log.glob("*/log.txt")), waiter)
            time.sleep(12)  # long enough for a line that says what it waits for
        os.killpg(holder.pid, signal.SIGKILL)
        killed = datetime.now(UTC)
        if not restart:
            said = finish(waiter)
            (span,) = spans(folder / "b")
            assert active_slots(url) == 0
            return Recovery((span.started.replace(tzinfo=span.started.tzinfo or UTC) - killed).total_seconds(), said)
        process.process.kill()
        process.process.wait()
        port = int(url.split(":")[2].removesuffix("/api"))
        again, process = ending.enter_context(server(folder / "server", port=port))
        assert again == url
        assert active_slots(url) == 1, "what the killed server knew is kept"
        _wait(lambda: active_slots(url) == 0, process.process)
        seconds = (datetime.now(UTC) - killed).total_seconds()
        return Recovery(seconds, finish(start(images, folder / "b", 1, PREFECT_API_URL=url)))


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _wait(until: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def active_slots(url: str) -> int:
    """How many slots of the CPU's limit the server takes for held."""
    (limit,) = httpx.post(f"{url}/v2/concurrency_limits/filter", json={}).json()
    assert limit["name"].startswith("denoise ")
    return int(limit["active_slots"])

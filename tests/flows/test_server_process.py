"""The process of a server: how it is ended, and what becomes of what it says."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.server.services import task_run_recorder
from sqlalchemy.exc import IntegrityError, OperationalError

from flows import embedded_server
from flows.server_process import ServerProcess
from tests.flows.services import PATIENCE, denoise, write_images

BOUND = 5000
TALKATIVE = f"""
import os, sys, threading, time
from flows import embedded_server
embedded_server._LOG_BYTES, embedded_server._LOOK_SECONDS = {BOUND}, 0.02
threading.Thread(target=embedded_server.keep_short, args=(sys.argv[1],), daemon=True).start()
for number in range(3000):
    print(f"{{number:08}} database is locked", file=sys.stderr, flush=True)
    while number % 300 == 299 and os.fstat(2).st_size > {BOUND}:
        time.sleep(0.01)
print("the end", flush=True)
"""


def test_one_that_is_still_starting_is_ended_at_once() -> None:
    """It does not read its standard input yet, whose end is what ends it later: it would first start, and serve."""
    process = ServerProcess({**os.environ, "PREFECT__SERVER_EPHEMERAL": "1"})
    process.end()
    assert process.child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("named", [True, False])
def test_what_it_says_is_bounded_and_nothing_is_lost_of_its_end(tmp_path: Path, named: bool) -> None:
    """It waits now and then until its file is short again: else all might be said between two looks."""
    log, earlier = tmp_path / "server.log", tmp_path / "server.log.1"
    with log.open("a+b") if named else tempfile.TemporaryFile() as said:
        fcntl.fcntl(said, fcntl.F_SETFL, os.O_APPEND)
        command = [sys.executable, "-c", TALKATIVE, log if named else ""]
        subprocess.run(command, stdout=said, stderr=said, check=True, timeout=PATIENCE)
        said.seek(0)
        rest = said.read()
    if named:
        rest = earlier.read_bytes() + log.read_bytes()
        assert log.stat().st_mode & 0o077 == 0
        assert earlier.stat().st_size > BOUND
    *lines, last = rest.decode().splitlines()
    assert last == "the end"
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == list(range(3000 - len(numbers), 3000))
    assert len(rest) < 4 * BOUND


def test_no_state_of_a_task_run_is_lost_at_the_end(tmp_path: Path, photo: np.ndarray) -> None:
    """They are written in batches, and the embedded server has those of the last second in its hands when the run ends."""
    images = write_images(tmp_path / "in", photo, count=3)
    home = tmp_path / "prefect"
    ended = denoise("run", images, tmp_path / "out", "--method", "none", PREFECT_HOME=str(home), PREFECT_API_URL="")
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(home / "prefect.db")) as database:
        runs = dict(database.execute("select state_type, count(*) from task_run group by state_type"))
        states = dict(database.execute("select type, count(*) from task_run_state group by type"))
    number = 3 * len(("chunk", "load", "denoise", "evaluate", "save")) + len(("scan", "report"))
    assert runs == {"COMPLETED": number}
    assert states == dict.fromkeys(("PENDING", "RUNNING", "COMPLETED"), number)


def test_a_state_that_the_database_refuses_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a run that was deleted meanwhile; a database that is busy gets the whole batch again, from Prefect."""
    written: list[str] = []

    async def together(events: list[str]) -> None:
        if "busy" in events:
            raise OperationalError("insert", {}, Exception("database is locked"))
        if "of a deleted run" in events:
            raise IntegrityError("insert", {}, Exception("FOREIGN KEY constraint failed"))
        written.extend(events)

    monkeypatch.setattr(task_run_recorder, "record_bulk_task_run_events", together)
    embedded_server.record_one_by_one_where_together_fails()
    record: Any = task_run_recorder.record_bulk_task_run_events
    asyncio.run(record(["first", "of a deleted run", "last"]))
    assert written == ["first", "last"]
    with pytest.raises(OperationalError):
        asyncio.run(record(["a", "busy"]))
    assert written == ["first", "last"]

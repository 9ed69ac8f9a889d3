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
from uuid import UUID, uuid4

import numpy as np
import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from flows.recorder import Recorder
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


class Told:
    """Of an event what is looked at: its flow run."""

    def __init__(self, name: str, run: UUID | None) -> None:
        self.name = name
        self.resource_in_role = {} if run is None else {"flow-run": self}
        self.run = run

    def prefect_object_id(self, _: str) -> UUID | None:
        return self.run


def test_what_the_database_refuses_takes_no_other_state_with_it() -> None:
    """The states of a run that was deleted are not even tried again; one that is wrong goes alone."""
    kept, deleted = uuid4(), uuid4()
    written: list[str] = []
    tried: list[int] = []

    async def together(events: list[Told]) -> None:
        tried.append(len(events))
        if any(event.run == deleted or event.name == "wrong" for event in events):
            raise IntegrityError("insert", {}, Exception("FOREIGN KEY constraint failed"))
        written.extend(event.name for event in events)

    async def is_known(run: UUID) -> bool:
        return run != deleted

    record = Recorder(together, is_known)
    first = [Told("a", kept), Told("b", deleted), Told("c", kept), Told("wrong", kept), Told("alone", None)]
    asyncio.run(record(first))
    assert sorted(written) == ["a", "alone", "c"]
    tried.clear()
    asyncio.run(record([Told("d", deleted), Told("e", kept)]))
    asyncio.run(record([Told("f", deleted)]))
    assert (written[3:], tried) == (["e"], [1])


def test_a_busy_database_gets_the_batch_again_from_prefect() -> None:
    async def together(_: list[Told]) -> None:
        raise OperationalError("insert", {}, Exception("database is locked"))

    async def is_known(_: UUID) -> bool:
        raise AssertionError

    with pytest.raises(OperationalError):
        asyncio.run(Recorder(together, is_known)([Told("a", uuid4())]))

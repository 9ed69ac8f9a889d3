"""The process of a server: how it is ended, and what becomes of what it says."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flows.server_process import ServerProcess
from tests.flows.services import PATIENCE

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

"""The process of a server: how it is ended, and what becomes of what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import server_process
from flows.server_process import ServerProcess
from tests.flows.services import PATIENCE

LINES = 3000
TALKATIVE = f"""
import pathlib, sys
for number in range({LINES}):
    print(f"{{number:08}} ", "database is locked", flush=True)
pathlib.Path(sys.argv[1]).touch()
sys.stdin.read()
"""


def test_one_that_is_still_starting_is_ended_at_once() -> None:
    """It does not read its standard input yet, whose end is what ends it later: it would first start, and serve."""
    process = ServerProcess({**os.environ, "PREFECT__SERVER_EPHEMERAL": "1"})
    process.end()
    assert process.child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("named", [True, False])
def test_what_it_says_is_bounded_and_its_end_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    bound = 5000
    monkeypatch.setattr(server_process, "_LOG_BYTES", bound)
    monkeypatch.setattr(server_process, "_LOOK_SECONDS", 0.02)

    def start(process: ServerProcess) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", TALKATIVE, ended], stdin=subprocess.PIPE, stdout=process._said, stderr=process._said
        )

    monkeypatch.setattr(ServerProcess, "_start", start)
    ended, said, earlier = tmp_path / "ended", tmp_path / "server.log", tmp_path / "server.log.1"
    said.write_bytes(b"of an earlier server\n" * 1000)
    process = ServerProcess({}, said=said if named else None)
    deadline = time.monotonic() + PATIENCE
    with process.kept_alive():
        while not ended.exists() or os.fstat(process._said.fileno()).st_size > bound:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    if named:
        assert f"{LINES - 1:08}" in earlier.read_text() + said.read_text()
        assert earlier.stat().st_size <= bound
        assert earlier.stat().st_mode & 0o077 == 0
    process.end()

"""Slots of the server's limit: what becomes of one where the server cannot be asked."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tasks import admission


@pytest.mark.parametrize(
    ("troubles", "calls"),
    [
        ([httpx.ReadError("connection reset by peer")], 2),
        ([httpx.RemoteProtocolError("disconnected"), httpx.ReadError("reset")], 3),
        ([httpx.ConnectError("refused")] * 9, 3),
        ([httpx.ReadTimeout("timed out")] * 9, 1),  # others wait for the lock file meanwhile
    ],
)
def test_a_slot_is_given_back_though_a_connection_breaks(
    troubles: list[Exception], calls: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []

    def post(_: str, body: dict[str, Any]) -> httpx.Response:
        asked.append(body["lease_id"])
        if len(asked) <= len(troubles):
            raise troubles[len(asked) - 1]
        return httpx.Response(204, request=httpx.Request("POST", "http://there"))

    monkeypatch.setattr(admission, "_post", post)
    lease = uuid4()
    with caplog.at_level("WARNING", logger="tasks"):
        admission._release(lease, "denoise here cpu")
    assert asked == [str(lease)] * calls
    assert bool(caplog.messages) is (len(troubles) >= calls)


def test_the_slots_of_processes_that_died_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the notes they left; not those of processes that live, or of other machines."""
    given_back: list[str] = []

    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        if path == "increment-with-lease":
            answer = {"limits": [{"name": "denoise here cpu"}], "lease_id": str(lease)}
            return httpx.Response(200, json=answer, request=httpx.Request("POST", "http://there"))
        given_back.append(body["lease_id"])
        return httpx.Response(204, request=httpx.Request("POST", "http://there"))

    monkeypatch.setattr(admission, "_post", post)
    lease, dead, far = uuid4(), uuid4(), uuid4()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    of_the_dead = tmp_path / f"lease-{socket.gethostname()}-{gone.pid}-{dead}"
    of_the_far = tmp_path / f"lease-elsewhere-{gone.pid}-{far}"
    of_the_dead.touch()
    of_the_far.touch()
    with admission.admitted("denoise here cpu", notes=tmp_path):
        assert len(list(tmp_path.iterdir())) == 3
        admission.give_back_of_the_dead(tmp_path)
        assert given_back == [str(dead)]
        assert not of_the_dead.exists()
        assert len(list(tmp_path.iterdir())) == 2
    assert given_back == [str(dead), str(lease)]
    assert list(tmp_path.iterdir()) == [of_the_far]

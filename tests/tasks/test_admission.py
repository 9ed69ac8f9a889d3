"""Slots of the server's limit: what becomes of one where the server cannot be asked."""

from __future__ import annotations

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

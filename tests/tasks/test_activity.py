"""What a run is said to wait for."""

from __future__ import annotations

import pytest

from tasks import activity


def test_what_takes_no_second_is_not_called_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(activity.time, "monotonic", lambda: now)
    with activity.waiting("a slot"):
        now += 0.9
        assert activity.glance() == (0.0, None)
        now += 2.0
        assert activity.glance() == (0.0, "a slot (3 s so far)")
        with activity.on("an image"):
            assert activity.glance()[1] is None, "something goes on"
    assert activity.glance() == (0.0, None)

"""What a run is said to wait for."""

from __future__ import annotations

import threading

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


def test_what_holds_up_the_others_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has the lock file and waits for the server; that another waits for the lock file explains nothing."""
    now = 100.0
    monkeypatch.setattr(activity.time, "monotonic", lambda: now)
    held, told = threading.Event(), threading.Event()

    def wait_for_the_lock() -> None:
        with activity.waiting("the lock file"):
            held.set()
            told.wait()

    thread = threading.Thread(target=wait_for_the_lock)
    thread.start()
    held.wait()
    now += 5.0
    with activity.waiting("the server", first=True):
        now += 3.0
        assert activity.glance() == (0.0, "the server (3 s so far)")
    assert activity.glance() == (0.0, "the lock file (8 s so far)")
    told.set()
    thread.join()

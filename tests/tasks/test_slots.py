"""Slots: never more holders of a device than its slots, and a dead holder's slot is free at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from denoise_core.device import Device
from tasks import activity
from tasks.faults import Interrupted, interrupt
from tasks.settings import Settings
from tasks.slots import free_slots, hold_slot

HOLDER = """
import sys, time
from pathlib import Path
from tasks.slots import _locked
with _locked(sys.argv[1], int(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DENOISE_LOCK_DIR", str(tmp_path / "locks"))
    device = Device("cpu", "float32", 1, "test")
    return Settings(
        input=tmp_path, output=tmp_path, method="none", preset="fast", noise="none", clip_noise=False, reference=None, seed=0,
        device=device, slots=2, max_pixels=1, steps_are_seen=True, run_id="0001", config_digest="c", limit_name=None,
    )  # fmt: skip


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_more_threads_hold_it_than_there_are_slots(settings: Settings, slots: int) -> None:
    lock = threading.Lock()
    inside = most = 0

    def fit() -> None:
        nonlocal inside, most
        with hold_slot(replace(settings, slots=slots)) as waited:
            assert waited >= 0
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=fit) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most <= slots


def test_a_killed_holder_frees_its_slot(settings: Settings) -> None:
    one = replace(settings, slots=1)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "cpu", "1"], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        assert free_slots("cpu", 1) == 0
        entered = threading.Event()

        def wait_for_it() -> None:
            with hold_slot(one):
                entered.set()

        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        while activity.glance()[1] is None:
            time.sleep(0.01)
        assert "slot of cpu" in str(activity.glance()[1])
        assert not entered.is_set()
        holder.send_signal(signal.SIGKILL)
        waiter.join(30)
        assert entered.is_set()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert free_slots("cpu", 1) == 1


def test_waiting_ends_with_an_interrupt(settings: Settings) -> None:
    one = replace(settings, slots=1)
    with hold_slot(one):
        raised: list[BaseException] = []

        def wait_for_it() -> None:
            try:
                with hold_slot(one):
                    pass
            except Interrupted as stop:
                raised.append(stop)

        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        interrupt.set()
        try:
            waiter.join(30)
        finally:
            interrupt.clear()
        assert len(raised) == 1

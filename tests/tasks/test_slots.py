"""Slots: never more holders of a device than its slots, and a dead holder's slot is free at once."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import tasks.slots
from denoise_core import device
from denoise_core.device import Device
from denoise_core.errors import DenoiseError
from tasks import activity
from tasks.faults import Interrupted, interrupt
from tasks.settings import Settings
from tasks.slots import free_slots, hold_slot, limit_name

HOLDER = """
import pickle, sys, time
from tasks.slots import hold_slot
with hold_slot(pickle.loads(bytes.fromhex(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """One that waits for a slot, says so when it has it, and keeps it."""
    command = [sys.executable, "-c", HOLDER, pickle.dumps(settings).hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy()) as holder:
        try:
            yield holder
        finally:
            holder.kill()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DENOISE_LOCK_DIR", str(tmp_path / "locks"))
    device = Device("cpu", "float32", 1, "test")
    return Settings(
        input=tmp_path, output=tmp_path, method="none", preset="fast", noise="none", clip_noise=False, reference=None, seed=0,
        device=device, slots=2, max_pixels=1, steps_are_seen=True, run_id="0001", config_digest="c", has_limits=False,
    )  # fmt: skip


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_more_threads_hold_it_than_there_are_slots(settings: Settings, slots: int) -> None:
    lock = threading.Lock()
    inside = most = 0

    def fit() -> None:
        nonlocal inside, most
        with hold_slot(replace(settings, slots=slots)) as slot:
            assert slot.waited >= 0
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
    with another_process(one) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert free_slots(settings.device, 1) == 0
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
    assert free_slots(settings.device, 1) == 1


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


def test_a_process_hands_its_slot_on_without_asking_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its turn lasts: one lease of the server's limit serves all fits that wait here; all is given back at the end."""
    asked: list[str | None] = []

    @contextmanager
    def admitted(limit: str | None, *, notes: Path | None) -> Iterator[None]:
        asked.append(limit)
        yield
        asked.append(None)

    monkeypatch.setattr(tasks.slots, "admitted", admitted)
    kept: list[object] = []  # as a traceback keeps a lock: its end is no release
    locks_of = tasks.slots._locks
    monkeypatch.setattr(tasks.slots, "_locks", lambda *given: kept.append(locks_of(*given)) or kept[-1])
    one = replace(settings, slots=1, has_limits=True)
    done: list[int] = []

    def fit(number: int) -> None:
        with hold_slot(one):
            while number == 0 and len(tasks.slots._waiting) < 5:
                time.sleep(0.01)
            done.append(number)

    threads = [threading.Thread(target=fit, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
        while not asked:
            time.sleep(0.01)
    for thread in threads:
        thread.join(30)
    assert sorted(done) == list(range(6))
    assert asked == [limit_name("cpu"), None]
    assert free_slots(settings.device, 1) == 1


def test_nothing_is_offered_to_a_fit_that_waits_for_the_server(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its slot: what another one hands on would lie idle."""
    asking, may_have = threading.Event(), threading.Event()

    @contextmanager
    def admitted(limit: str | None, *, notes: Path | None) -> Iterator[None]:
        if threading.current_thread().name == "second":
            asking.set()
            may_have.wait(30)
        yield

    monkeypatch.setattr(tasks.slots, "admitted", admitted)
    ended = threading.Event()

    def fit() -> None:
        with hold_slot(settings):
            ended.wait(30)

    first, second = threading.Thread(target=fit), threading.Thread(target=fit, name="second")
    first.start()
    second.start()
    try:
        assert asking.wait(30)
        ended.set()
        first.join(30)
        assert not tasks.slots._offered
        assert free_slots(settings.device, 2) == 1
    finally:
        may_have.set()
        second.join(30)
    assert free_slots(settings.device, 2) == 2


def test_a_busy_process_lets_another_have_its_turn(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.slots, "_TURN_SECONDS", 0.3)
    one = replace(settings, slots=1)
    ended = threading.Event()

    def fit_without_end() -> None:
        while not ended.is_set():
            with hold_slot(one):
                time.sleep(0.02)
            time.sleep(0.01)

    threads = [threading.Thread(target=fit_without_end) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with another_process(one) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert free_slots(settings.device, 1) == 1


def test_who_stops_waiting_leaves_no_slot_behind(settings: Settings) -> None:
    """The slot was offered to a fit that ended by an interrupt in that moment."""
    one = replace(settings, slots=1)
    holding, may_end = threading.Event(), threading.Event()

    def fit() -> None:
        with contextlib.suppress(Interrupted), hold_slot(one):
            holding.set()
            may_end.wait(30)

    threads = [threading.Thread(target=fit) for _ in range(4)]
    for thread in threads:
        thread.start()
    holding.wait(30)
    try:
        while len(tasks.slots._waiting) < 3:
            time.sleep(0.01)
        interrupt.set()
        may_end.set()
        for thread in threads:
            thread.join(30)
    finally:
        interrupt.clear()
    assert not tasks.slots._offered
    assert free_slots(settings.device, 1) == 1


def test_each_fit_has_a_device_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three devices of two slots: six fits at once, two on each, and the slots of all are filled evenly."""
    monkeypatch.setattr(tasks.slots, "identity", lambda name: f"stand-in-{name[-1]}")
    first, *others = (Device(f"cuda:{n}", "float32", 1, "stand-in") for n in range(3))
    many = replace(settings, device=first, other_devices=tuple(others), slots=2)
    assert many.fits_at_once == 6
    lock = threading.Lock()
    inside: list[str] = []
    seen: list[tuple[str, ...]] = []
    full = threading.Barrier(6, timeout=30)
    entered = threading.Semaphore(0)

    def fit(wait: bool) -> None:
        with hold_slot(many) as slot:
            assert slot.settings.devices == (slot.settings.device,)
            with lock:
                inside.append(slot.settings.device.name)
                seen.append(tuple(sorted(inside)))
            entered.release()
            if wait:
                full.wait()
            time.sleep(0.02)
            with lock:
                inside.remove(slot.settings.device.name)

    for round_of in (6, 12):
        threads = [threading.Thread(target=fit, args=(round_of == 6,)) for _ in range(round_of)]
        for thread in threads:
            thread.start()
            if round_of == 6:
                assert entered.acquire(timeout=30), "one after another, so that their order is known"
        for thread in threads:
            thread.join(30)
    assert max(seen, key=len) == ("cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:2", "cuda:2")
    assert all(held.count(name) <= 2 for held in seen for name in held)
    assert len(seen) == 18
    assert seen[2] == ("cuda:0", "cuda:1", "cuda:2"), "a second fit shares a device only where none is free"


def test_a_limit_belongs_to_what_the_lock_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs that both see a `cuda:0` have two cards and two limits; one card under two numbers has one."""
    cards = {
        "cuda:0": ("NVIDIA H200", "5f3c1a2b-0000-1111-2222-333333333333"),
        "cuda:1": ("NVIDIA H200", "0badcafe-0000-1111-2222-333333333333"),
        "cuda:2": ("Quadro RTX 6000/8000", "12345678-0000-1111-2222-333333333333"),
    }

    def seen_by(job: dict[str, str]) -> None:
        def properties(name: str) -> SimpleNamespace:
            model, uuid = cards[job[name]]
            return SimpleNamespace(name=model, uuid=uuid)

        monkeypatch.setattr("torch.cuda.get_device_properties", properties)

    seen_by({"cuda:0": "cuda:0", "cuda:1": "cuda:1", "cuda:2": "cuda:2"})
    first, second = limit_name("cuda:0"), limit_name("cuda:1")
    assert first == "denoise NVIDIA H200 5f3c1a2b"
    assert second == "denoise NVIDIA H200 0badcafe"
    assert limit_name("cuda:2") == "denoise Quadro RTX 6000-8000 12345678", "a name that Prefect takes"
    seen_by({"cuda:0": "cuda:1"})
    assert limit_name("cuda:0") == second
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    assert limit_name("cuda:0") == second, "in a container with a host name of its own, too"
    assert limit_name("cpu") == "denoise here cpu"


def test_devices_that_are_unlike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(name: str) -> Device:
        return Device(name, "bfloat16", 1, "A100" if name == "cuda:0" else "H100")

    monkeypatch.setattr(device, "choose", chosen)
    assert [one.name for one in device.choose_all("cuda:1,cuda:2,cuda:1")] == ["cuda:1", "cuda:2"]
    with pytest.raises(DenoiseError, match=r"cuda:0 \(A100\) and cuda:1 \(H100\) are unlike"):
        device.choose_all("cuda:0,cuda:1")

"""Slots of a device: how many fits may share it, over all runs.

Two guards, each for what the other cannot do. A lock file a slot says which device a fit has, and guards it on this machine,
with or without a server; the kernel drops it when its holder dies, however it dies. A global concurrency limit a device, on
a real Prefect server, is seen in its UI. That of a GPU goes by the card, and so holds where the lock files do not: between
containers that share one, each with files and a host name of its own. That of a CPU goes by the host name.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from denoise_core.device import Device
from tasks import activity
from tasks.admission import OURS, admitted
from tasks.faults import stop_if_interrupted
from tasks.settings import Settings

_GPU = "gpu-"
_NOT_IN_NAMES = re.compile(r"[/%&<>]")  # of what Prefect keeps
_POLL_SECONDS, _KNOWN_SECONDS = 0.05, 0.5
_TURN_SECONDS = 10.0
"""So long a process keeps a slot, and its place in the server's limit, from one fit to the next; then others have a chance."""


def limit_name(device: str) -> str:
    """The name of a device's global concurrency limit, as the UI lists it: a GPU's is the same by whatever number it goes."""
    if device == "cpu":
        return f"{OURS}{socket.gethostname()} cpu"
    import torch

    card = _NOT_IN_NAMES.sub("-", torch.cuda.get_device_properties(device).name)
    return f"{OURS}{card} {identity(device).removeprefix(_GPU)[:8]}"


def lock_folder() -> Path:
    """Where the lock files of all users of this machine lie; ``DENOISE_LOCK_DIR`` moves it."""
    chosen = os.environ.get("DENOISE_LOCK_DIR")
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir()) / "denoise-flows-slots"
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)  # not sticky: there the kernel would refuse one user the lock files of another
    return folder


class Slot(NamedTuple):
    """What a fit holds: the settings with the one device that is its own, and the seconds that passed until it was free."""

    settings: Settings
    waited: float


@dataclass(eq=False)
class _Held:
    """A slot that this process holds, since when, and what is to be given back: first the server's limit, if `admitted`."""

    device: Device
    number: int
    guards: ExitStack
    since: float
    admitted: bool = False

    def suits(self, settings: Settings) -> bool:
        """Whether a run with these settings may have it."""
        return self.device in settings.devices and self.number < settings.slots


_hands = threading.Condition()
_waiting: list[Settings] = []  # of this process's fits, one for each that waits
_offered: list[_Held] = []  # handed on within this process, and not yet taken
_holding: list[_Held] = []  # by this process, the offered ones too


@contextmanager
def hold_slot(settings: Settings) -> Iterator[Slot]:
    """Hold a slot of one of the run's devices.

    The lock file comes first: it says which device's limit to ask for, and whoever waits for it need not ask the server again
    and again. All take them in this order, so that no two wait for each other. A fit of this process that waits gets both
    from the one before it, for some seconds in a row.
    """
    started = time.perf_counter()
    held = _taken(settings)
    try:
        yield Slot(replace(settings, device=held.device, other_devices=()), time.perf_counter() - started)
    finally:
        _hand_on(held)


def _taken(settings: Settings) -> _Held:
    """A slot, once one is free, with its place in the server's limit."""
    held = _locked(settings) or _waited_for(settings)
    if not held.admitted:
        # Nothing may be offered to a fit that waits here: it has its slot.
        try:
            limit = limit_name(held.device.name) if settings.has_limits else None
            notes = settings.run_folder if settings.elsewhere else None
            held.guards.enter_context(admitted(limit, notes=notes))
        except BaseException:
            held.guards.close()
            raise
        held.admitted, held.since = True, time.monotonic()
        with _hands:
            _holding.append(held)
    return held


def _waited_for(settings: Settings) -> _Held:
    """A slot that another fit of this process hands on, or whose lock file comes free."""
    names = " and ".join(device.name for device in settings.devices)
    number = settings.fits_at_once
    taken = "the only one is taken by another fit" if number == 1 else f"all {number} are taken by other fits"
    with activity.waiting(f"a slot of {names}: {taken}"):
        with _hands:
            _waiting.append(settings)
        try:
            while True:
                stop_if_interrupted()
                with _hands:
                    offer = next((one for one in _offered if one.suits(settings)), None)
                    if offer is None:
                        _hands.wait(_until_a_look(settings))
                        offer = next((one for one in _offered if one.suits(settings)), None)
                    if offer is not None:
                        _offered.remove(offer)
                        return offer
                held = _locked(settings)
                if held is not None:
                    return held
        finally:
            with _hands:
                _waiting.remove(settings)
                unwanted = [one for one in _offered if not any(map(one.suits, _waiting))]
                for one in unwanted:
                    _offered.remove(one)
            for one in unwanted:
                _give_back(one)


def _until_a_look(settings: Settings) -> float:
    """How long a fit that waits need not look at the lock files: all are this process's, which tells it of any change."""
    ours = [held for held in _holding if held.suits(settings)]
    if len(ours) < settings.fits_at_once:
        return _POLL_SECONDS
    lasts = min(held.since for held in ours) + _TURN_SECONDS - time.monotonic()
    return min(_KNOWN_SECONDS, max(_POLL_SECONDS, lasts))


def _locked(settings: Settings) -> _Held | None:
    """The lock file of a slot that nobody holds, of the least used device; None where none is free."""
    for number in range(settings.slots):
        for device, lock in _locks(settings.devices, number):
            guards = ExitStack()
            try:
                guards.enter_context(lock.acquire(blocking=False))
            except Timeout:
                continue
            return _Held(device, number, guards, time.monotonic())
    return None


def _hand_on(held: _Held) -> None:
    """To a fit of this process that waits, while this turn lasts; else to whoever comes first."""
    with _hands:
        lasts = time.monotonic() - held.since < _TURN_SECONDS
        if lasts and sum(map(held.suits, _waiting)) > sum(one.device == held.device for one in _offered):
            _offered.append(held)
            _hands.notify_all()
            return
    _give_back(held)
    if lasts:
        with _hands:
            _hands.notify_all()


def _give_back(held: _Held) -> None:
    """To whoever comes first, of any process."""
    with _hands:
        _holding.remove(held)
    try:
        if held.device.name != "cpu":
            import torch

            with contextlib.suppress(RuntimeError):  # of a device that is lost, which its fits tell
                torch.cuda.empty_cache()  # what torch keeps for later, the slot's next holder needs now
    finally:
        held.guards.close()


def _locks(devices: Iterable[Device], number: int) -> list[tuple[Device, FileLock]]:
    folder = lock_folder()
    # One thread may take a slot and another give it back.
    options: dict[str, Any] = {"mode": 0o666, "thread_local": False}
    return [(one, FileLock(folder / f"{identity(one.name)}-{number}.lock", **options)) for one in devices]


def identity(device: str) -> str:
    """What names the device in every process; the number of a GPU does not, where CUDA_VISIBLE_DEVICES renumbers them."""
    if device == "cpu":
        return device
    import torch

    return f"{_GPU}{torch.cuda.get_device_properties(device).uuid}"


def free_slots(device: Device, slots: int) -> int:
    """How many of a device's slots on this machine nobody holds at this moment."""
    free = 0
    for number in range(slots):
        ((_, lock),) = _locks([device], number)
        with contextlib.suppress(Timeout), lock.acquire(blocking=False):
            free += 1
    return free

"""Slots of a device: how many fits may share it, over all runs.

Two guards, each for what the other cannot do. A lock file a slot says which device a fit has, and guards it on this machine,
with or without a server; the kernel drops it when its holder dies, however it dies. A global concurrency limit a device, on
a real Prefect server, is seen in its UI, and holds where the lock files do not: in containers that share a GPU.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from denoise_core.device import Device
from tasks import activity
from tasks.admission import admitted
from tasks.faults import stop_if_interrupted
from tasks.settings import Settings

_POLL_SECONDS = 0.2
_released = threading.Condition()
"""A slot of this process became free: its next holder in this process need not wait for the next look at the lock files."""


def limit_name(device: str) -> str:
    """The name of a device's global concurrency limit, as the UI lists it."""
    return f"denoise {socket.gethostname()} {device}"


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


@contextmanager
def hold_slot(settings: Settings) -> Iterator[Slot]:
    """Hold a slot of one of the run's devices.

    The lock file comes first: it says which device's limit to ask for, and whoever waits for it need not ask the server again
    and again. All take them in this order, so that no two wait for each other.
    """
    started = time.perf_counter()
    with _locked(settings.devices, settings.slots) as device:
        limit = limit_name(device.name) if settings.has_limits else None
        with admitted(limit):
            there = replace(settings, device=device, other_devices=())
            yield Slot(there, time.perf_counter() - started)


@contextmanager
def _locked(devices: tuple[Device, ...], slots: int) -> Iterator[Device]:
    """Hold one of the lock files of a device, numbered from 0; the least used device first."""
    locks = [(device, lock) for number in range(slots) for device, lock in _locks(devices, number)]
    held = _try_each(locks)
    if held is None:
        names = " and ".join(device.name for device in devices)
        with activity.waiting(f"a slot of {names}: all {len(locks)} are taken by other fits"):
            while held is None:
                stop_if_interrupted()
                with _released:
                    held = _try_each(locks)
                    if held is None:
                        _released.wait(_POLL_SECONDS)
    device, lock = held
    try:
        yield device
    finally:
        if device.name != "cpu":
            import torch

            torch.cuda.empty_cache()  # what torch keeps for later, the slot's next holder needs now
        with _released:
            lock.release()
            _released.notify_all()


def _locks(devices: Iterable[Device], number: int) -> list[tuple[Device, FileLock]]:
    folder = lock_folder()
    return [(one, FileLock(folder / f"{identity(one.name)}-{number}.lock", mode=0o666)) for one in devices]


def identity(device: str) -> str:
    """What names the device in every process; the number of a GPU does not, where CUDA_VISIBLE_DEVICES renumbers them."""
    if device == "cpu":
        return device
    import torch

    return f"gpu-{torch.cuda.get_device_properties(device).uuid}"


def _try_each(locks: list[tuple[Device, FileLock]]) -> tuple[Device, FileLock] | None:
    for device, lock in locks:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        return device, lock
    return None


def free_slots(device: Device, slots: int) -> int:
    """How many of a device's slots on this machine nobody holds at this moment."""
    free = 0
    for number in range(slots):
        held = _try_each(_locks([device], number))
        if held is not None:
            held[1].release()
            free += 1
    return free

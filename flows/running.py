"""The Prefect servers that ``denoise server`` runs on this machine, so that runs find them.

Each leaves a record in a folder of its user's, without any secret. A record counts only while the very process that wrote it
lives; others are cleared away.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from denoise_core.images import write_atomic


@dataclass(frozen=True)
class Running:
    """A server that runs here: the address of its API, its process, where its data lie, the file of its auth string."""

    url: str
    pid: int
    started: float  # of the process, s since 1970
    machine: str
    folder: str
    auth_file: str | None = None


def state_folder() -> Path:
    """Where this user's services keep what must outlive them; ``DENOISE_STATE_DIR`` moves it."""
    chosen = os.environ.get("DENOISE_STATE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "denoise-flows"


def _records() -> Path:
    return state_folder() / "servers"


@contextmanager
def recorded(url: str, folder: Path, auth_file: Path | None) -> Iterator[None]:
    """While inside, runs of this user on this machine find the server of this process."""
    me = Running(
        url=url,
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        machine=socket.gethostname(),
        folder=str(folder),
        auth_file=None if auth_file is None else str(auth_file),
    )
    path = _records() / f"{me.machine}-{me.pid}.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, json.dumps(asdict(me), indent=2).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def servers() -> list[Running]:
    """The servers of this user whose processes live on this machine, the newest first; stale records are removed."""
    found = []
    with suppress(OSError):
        for path in _records().glob("*.json"):
            record = _read(path)
            if record is None or record.machine != socket.gethostname():  # a home may be shared by machines
                continue
            if _lives(record):
                found.append(record)
            else:
                path.unlink(missing_ok=True)
    return sorted(found, key=lambda record: record.started, reverse=True)


def _read(path: Path) -> Running | None:
    """The record in a file of this user's; anything else is no record."""
    try:
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            return None
        return Running(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _lives(record: Running) -> bool:
    try:
        process = psutil.Process(record.pid)
        return abs(process.create_time() - record.started) < 1.0 and process.uids().real == os.getuid()
    except (psutil.Error, TypeError):
        return False


def healthy() -> Running | None:
    """The newest of this user's servers that answers."""
    import httpx

    for record in servers():
        with suppress(httpx.HTTPError, httpx.InvalidURL):
            if httpx.get(f"{record.url}/health", timeout=3.0, trust_env=False).status_code == httpx.codes.OK:
                return record
    return None

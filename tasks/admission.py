"""A slot of a global concurrency limit on a real Prefect server, held by a lease that is renewed.

An SQLite server answers about every second fit with 503, busy with a write of its own. Here it is asked again at once.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
from httpx import codes

from tasks import activity
from tasks.background import beside
from tasks.faults import stop_if_interrupted
from tasks.prefect_api import send, shown

OURS = "denoise "
"""So the names of our limits begin."""
LEASE_SECONDS = 60.0
_NOTE = "lease-"
_TRIES = 3
_POLL_SECONDS = 1.0
_BUSY_SECONDS, _BUSY_TRIES = 0.1, 100

log = logging.getLogger("tasks")


def offer(limit: str, slots: int) -> None:
    """Have the server keep a limit of so many slots.

    One that is in use is not lowered: it may be that of a run with more slots. This run's own lock files hold it to its.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):
            known = client.read_global_concurrency_limit_by_name(limit)
            if known.active_slots > 0 and known.limit > slots:
                return
        client.upsert_global_concurrency_limit_by_name(limit, slots)


@contextmanager
def admitted(limit: str | None, *, notes: Path | None = None) -> Iterator[None]:
    """Hold a slot of the limit, where there is one; the folder ``notes`` says so, for `give_back_of_the_dead`.

    A server that cannot be asked does not stop the work: after a few tries the lock file alone guards the device. So it
    does where a lease cannot be renewed. The lease of a run that is killed runs out by itself.
    """
    if limit is None:
        yield
        return
    with activity.waiting(f"a slot of the limit {limit!r} on the Prefect server", first=True):
        lease = _acquired(limit)
    if lease is None:
        yield
        return
    note = None if notes is None else notes / f"{_NOTE}{socket.gethostname()}-{os.getpid()}-{lease}"
    try:
        with suppress(OSError):  # a full disk is for the chunks to find
            if note is not None:
                note.touch()
        with beside(functools.partial(_renew, lease, limit), "lease"):
            yield
    finally:
        _release(lease, limit)
        with suppress(OSError):
            if note is not None:
                note.unlink(missing_ok=True)


def give_back_of_the_dead(notes: Path) -> None:
    """Give back the slots of processes of this machine that died holding them, by their notes in the folder."""
    of_here = f"{_NOTE}{socket.gethostname()}-"
    with suppress(OSError):  # the leases run out by themselves
        for note in notes.glob(f"{_NOTE}*"):
            pid, _, lease = note.name.removeprefix(of_here).partition("-")
            if note.name.startswith(of_here) and pid.isdecimal() and not _lives(int(pid)):
                _release(UUID(lease), "a worker that died")
                note.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _acquired(limit: str) -> UUID | None:
    """The lease of a slot, once there is one; None where the server cannot be asked for it."""
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    holder = None if context is None else {"type": "task_run", "id": str(context.task_run.id)}
    asked = {"names": [limit], "slots": 1, "mode": "concurrency", "lease_duration": LEASE_SECONDS, "holder": holder}
    troubles = busy = 0
    while troubles < _TRIES:
        stop_if_interrupted()
        try:
            answer = _post("increment-with-lease", asked)
            if answer.status_code == codes.LOCKED:
                _pause(_POLL_SECONDS)
                continue
            if answer.status_code == codes.SERVICE_UNAVAILABLE and busy < _BUSY_TRIES:
                busy += 1
                time.sleep(_BUSY_SECONDS)
                continue
            answer.raise_for_status()
            if answer.json()["limits"]:
                return UUID(answer.json()["lease_id"])
            problem: object = "it has no such limit"
        except Exception as error:  # noqa: BLE001 - any trouble of the server's
            problem = error
        troubles += 1
        log.warning("the Prefect server did not give a slot of the limit %r: %s", limit, shown(str(problem)))
        _pause(_POLL_SECONDS)
    return None


def _post(path: str, body: dict[str, Any]) -> httpx.Response:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return send(client._client, "POST", f"/v2/concurrency_limits/{path}", body)


def _pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stop_if_interrupted()
        time.sleep(0.1)


def _renew(lease: UUID, limit: str, ended: threading.Event) -> None:
    while not ended.wait(LEASE_SECONDS / 4):
        try:
            _post(f"leases/{lease}/renew", {"lease_duration": LEASE_SECONDS}).raise_for_status()
        except Exception as error:  # noqa: BLE001 - it is tried again before the lease runs out
            log.warning("the slot of %r could not be renewed: %s", limit, shown(str(error)))


def _release(lease: UUID, limit: str) -> None:
    problem: object = "it stays busy"
    troubles = busy = 0
    while troubles < _TRIES and busy < _BUSY_TRIES:
        try:
            answer = _post("decrement-with-lease", {"lease_id": str(lease)})
            if answer.status_code != codes.SERVICE_UNAVAILABLE:
                answer.raise_for_status()
                return
            busy += 1
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:  # of a connection that the server closed, too
            problem = error
            troubles += 1
        except Exception as error:  # noqa: BLE001 - the lease runs out by itself, and others may wait for the lock file
            problem = error
            break
        time.sleep(_BUSY_SECONDS)
    log.warning("the slot of %r could not be given back, its lease will run out: %s", limit, shown(str(problem)))

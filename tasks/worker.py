"""Work of a run in another process than the run's own: what it needs there, and how it hears that it is to stop.

The run keeps a file in its folder, ``runs/<run-id>/alive``, and changes it every few seconds. Its workers, on whatever
machine, go on while that file is there and changes: it is taken away when the user stops the run, and stays as it is when
the run was killed. A worker keeps one there, too, ``work-HOST-PID``, which says what it waits for, if it does.
"""

from __future__ import annotations

import errno
import functools
import itertools
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tasks import activity
from tasks.background import beside
from tasks.faults import interrupt
from tasks.logs import logging_to, tell_the_server
from tasks.process import keep_freed_memory, share_one_arena, short_turns
from tasks.settings import Settings

ALIVE = "alive"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 120.0
"""A run that has not been heard of for so long is dead: a share may take a minute to show what was written."""

_WORK = "work-"
_FORGOTTEN_SECONDS = 20.0  # after which a worker that is silent says nothing of the run

_LOOK_SECONDS = 0.5
_SHOWN_SECONDS = 10.0  # until a new file is seen on a share


@contextmanager
def showing_life(settings: Settings) -> Iterator[None]:
    """While inside, the workers of this run are told that it goes on; until the user stops it."""
    if not settings.elsewhere:
        yield
        return
    path = settings.run_folder / ALIVE

    def show(left: threading.Event) -> None:
        for beat in itertools.count():
            with suppress(OSError):  # a full disk is for the chunks to find
                path.write_text(f"{beat}\n", encoding="ascii")
            for _ in range(int(BEAT_SECONDS / _LOOK_SECONDS)):
                if left.wait(_LOOK_SECONDS) or interrupt.is_set():
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                    return

    try:
        with beside(show, "signs-of-life"):
            yield
    finally:
        with suppress(OSError):
            for left_by_the_dead in settings.run_folder.glob(f"{_WORK}*"):
                left_by_the_dead.unlink(missing_ok=True)


def stop_workers_of(run_folder: Path) -> None:
    """Stop whatever still works for an earlier run, one that was killed."""
    with suppress(OSError):
        (run_folder / ALIVE).unlink(missing_ok=True)


@contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """Around work of a run: in a process of another's it is made ready for it, and listens for the end of the run.

    Raises:
        OSError: the run's folder is not seen from here (``ESTALE``): the machines do not share it.
    """
    if not settings.elsewhere:
        yield
        return
    folder = settings.run_folder
    if not (folder / "config.toml").is_file():
        where = f"the worker on {socket.gethostname()} does not see the folder of the run; OUTPUT must be shared"
        raise OSError(errno.ESTALE, where, str(folder))
    import torch

    torch.set_num_threads(settings.device.threads)
    keep_freed_memory()
    tell_the_server()
    with short_turns(), logging_to(folder / f"log-{socket.gethostname()}-{os.getpid()}.txt"):
        try:
            with (
                beside(functools.partial(_listen, folder / ALIVE), "end-of-run"),
                beside(functools.partial(_say, folder / f"{_WORK}{socket.gethostname()}-{os.getpid()}"), "wait"),
            ):
                yield
        finally:
            interrupt.clear()  # it was this run's; the next work may be another's


def _listen(path: Path, left: threading.Event) -> None:
    """Set the interrupt once the run is no longer there."""
    seen, since = "", time.monotonic()
    while not left.wait(_LOOK_SECONDS):
        beat = _read(path)
        silent = time.monotonic() - since
        if beat:
            if beat != seen:
                seen, since = beat, time.monotonic()
        elif beat == "" and (seen or silent > _SHOWN_SECONDS):
            interrupt.set()
        if silent > SILENT_SECONDS:
            interrupt.set()


def _say(path: Path, left: threading.Event) -> None:
    """Keep what this process waits for in the file: every second, and every few where it waits for nothing."""
    said = None
    for beat in itertools.count():
        _, waiting = activity.glance()
        if waiting != said or beat % BEAT_SECONDS == 0:
            said = waiting
            with suppress(OSError):  # a full disk is for the chunks to find
                path.write_text(f"{beat}\n{waiting or ''}", encoding="utf-8")
        if left.wait(1.0):
            break
    with suppress(OSError):
        path.unlink(missing_ok=True)


class Waiting:
    """What the workers of a run in other processes wait for, as they say."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.run_folder
        self._heard: dict[str, tuple[str, float]] = {}
        self._looked = -1.0
        self._told: str | None = None

    def glance(self) -> str | None:
        """What one of them waits for, and how long, while none does anything else; looked at once a second."""
        now = time.monotonic()
        if now - self._looked < 1.0:
            return self._told
        self._looked = now
        heard: dict[str, str | None] = {}
        with suppress(OSError):  # of a share that does not answer: the chunks find that
            heard = {path.name: _read(path) for path in self._folder.glob(f"{_WORK}*")}
        earlier = self._heard
        self._heard = {
            name: earlier[name] if name in earlier and earlier[name][0] == words else (words, now)
            for name, words in heard.items()
            if words
        }
        said = [words.partition("\n")[2] for words, since in self._heard.values() if now - since < _FORGOTTEN_SECONDS]
        self._told = said[0] if said and all(said) else None
        return self._told


def _read(path: Path) -> str | None:
    """What was written there last; the empty string where the file was taken away, ``None`` where that cannot be told."""
    try:
        return path.read_text(encoding="utf-8") or None
    except FileNotFoundError:
        return ""
    except OSError:
        return None


def begin_process() -> None:
    """The start of a worker process: signals are the run's business, and its death is this process's end."""
    _begin()
    parent = multiprocessing.parent_process()
    if parent is not None:

        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, name="end-with-run", daemon=True).start()


def dask_setup(worker: Any) -> None:  # noqa: ARG001 - the signature is Dask's
    """The start of a worker process of a Dask cluster of the run's own, which ends with it by itself."""
    _begin()  # tasks run in copies of the context that this runs in


def _begin() -> None:
    from prefect.context import SyncClientContext

    _leave_signals_to_the_run()
    share_one_arena()
    SyncClientContext().__enter__()  # for good: another one for each chunk would take 40 ms of it


def _leave_signals_to_the_run() -> None:
    """Ctrl-C reaches every process of a terminal; the run tells its workers what it means."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

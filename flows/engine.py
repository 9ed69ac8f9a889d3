"""Where the chunks of a run are worked on: threads, worker processes, or a Dask cluster.

An engine takes tasks, says which have ended and how, and nothing else. Only paths and small records travel.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from typing import Any, Protocol
from unittest.mock import patch

from prefect.client.orchestration import get_client
from prefect.context import SettingsContext, refresh_global_settings_context
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Crashed
from prefect.task_runners import ProcessPoolTaskRunner

from denoise_core.device import Device, choose_all
from flows.config import RunConfig
from tasks.chunk import give_up
from tasks.faults import RETRY_SECONDS, Interrupted
from tasks.ledger import Part
from tasks.prefect_api import shown
from tasks.settings import Settings
from tasks.table import text
from tasks.work import Source
from tasks.worker import begin_process

log = logging.getLogger("tasks")

MOST_TRIES = len(RETRY_SECONDS) + 1
_TRIES, _PAUSE_SECONDS = 8, 0.5


class WorkerDied(Exception):
    """The process that worked on a chunk is gone; so often it died over it."""

    def __init__(self, times: int = 1) -> None:
        super().__init__("the worker process died: killed, out of memory, or crashed")
        self.times = times


class EngineLost(Exception):
    """There is nothing left that works on chunks."""


class Engine(Protocol):
    """What a run needs of it. A future is whatever ``submit`` gave."""

    elsewhere: bool  # work is done in other processes
    remote: bool  # on other machines, maybe: the device is theirs

    def devices(self, asked: str) -> tuple[Device, ...]:
        """The devices of the workers, for ``--device``."""

    def room(self, settings: Settings) -> int:
        """How many chunks it is worth to submit at once."""

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """Begin a task as soon as there is a worker for it; its ``settings`` say what it needs."""

    def ended(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """Those that have ended, waiting so long for the first; raises :class:`EngineLost`."""

    def outcome(self, future: Any) -> object:
        """What a task that ended returned, or its exception: :class:`WorkerDied`, `Interrupted` where it was stopped."""

    def stop(self, futures: Sequence[Any]) -> None:
        """Of these, what has not begun is not to begin."""


@contextmanager
def opened(config: RunConfig) -> Iterator[Engine]:
    """The engine of a run, whose workers end with the block.

    Raises:
        StartError: there is no such scheduler, or it has no worker that can do the work.
    """
    kind, _, address = config.engine.partition(":")
    if kind == "local":
        yield Threads()
    elif kind == "processes":
        with _prefect_settings_everywhere(), closing(Processes()) as processes:
            yield processes
    else:
        from flows.dask_engine import LocalDask, RemoteDask, dask_settings

        if not address:
            with _prefect_settings_everywhere(), dask_settings(own=True), closing(LocalDask()) as cluster:
                yield cluster
            return
        with dask_settings(own=False), closing(RemoteDask(address, config)) as scheduler:
            scheduler.check()
            yield scheduler


@contextmanager
def _prefect_settings_everywhere() -> Iterator[None]:
    """Prefect's settings of this run for all threads, here and in the processes that are started.

    Those of the flow hold in its thread, and those that travel with a task in the task's. Without them the threads that
    pass on events and logs would start a server of their own, one that nobody stops.
    """
    before = dict(os.environ)
    os.environ.update(get_current_settings().to_environment_variables(exclude_unset=True))
    refresh_global_settings_context()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        refresh_global_settings_context()


class Threads:
    """Threads of this process, by the flow's own task runner."""

    elsewhere = remote = False

    def devices(self, asked: str) -> tuple[Device, ...]:
        """Those of this machine."""
        return choose_all(asked)

    def room(self, settings: Settings) -> int:
        """One chunk more than slots: it loads, or saves, while the others hold the slots.

        Not all at once: the images of those that only wait for a slot would be in memory.
        """
        return settings.fits_at_once + 1

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """Begin in a thread."""
        return task.submit(**parameters)

    def ended(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """By the threads' futures."""
        done, _ = wait([future.wrapped_future for future in futures], timeout=seconds, return_when=FIRST_COMPLETED)
        return [future for future in futures if future.wrapped_future in done]

    def outcome(self, future: Any) -> object:
        """By the task's state."""
        return future.wrapped_future.exception() or result(future)

    def stop(self, futures: Sequence[Any]) -> None:
        """Threads look at the interrupt themselves."""


class Processes:
    """A worker process a slot, each a pool of its own: one that dies breaks no other, and is replaced."""

    elsewhere = True
    remote = False

    def __init__(self) -> None:
        self._idle: list[ProcessPoolTaskRunner] = []
        self._busy: dict[Any, ProcessPoolTaskRunner] = {}

    def devices(self, asked: str) -> tuple[Device, ...]:
        """Those of this machine."""
        return choose_all(asked)

    def room(self, settings: Settings) -> int:
        """One chunk a process."""
        return settings.fits_at_once

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """Begin in a process that has nothing to do, or in a new one."""
        runner = self._idle.pop() if self._idle else _new_process()
        with settings_known():
            future = runner.submit(task, parameters)
        self._busy[future] = runner
        return future

    def ended(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """By the futures of the pools, which Prefect wraps twice."""
        inner = {future.wrapped_future.wrapped_future: future for future in futures}
        done, _ = wait(inner, timeout=seconds, return_when=FIRST_COMPLETED)
        return [inner[one] for one in done]

    def outcome(self, future: Any) -> object:
        """By the task's state, where the process lived to tell it."""
        runner = self._busy.pop(future)
        crash: BaseException | None = future.wrapped_future.exception()
        if isinstance(crash, BrokenProcessPool):
            # It may have died holding the queue of its events; this process must not wait for that at its own end.
            queue = getattr(runner, "_subprocess_message_queue", None)
            if queue is not None:
                queue.cancel_join_thread()
            runner.__exit__(None, None, None)
            crashed(future.task_run_id)
            return WorkerDied()
        self._idle.append(runner)
        return crash or result(future)

    def stop(self, futures: Sequence[Any]) -> None:
        """The workers hear of it from the run's folder."""

    def close(self) -> None:
        """End the processes."""
        for runner in (*self._idle, *self._busy.values()):
            runner.__exit__(None, None, None)


@contextmanager
def settings_known() -> Iterator[None]:
    """While inside, Prefect submits tasks without its settings, which the processes of :func:`opened` have from their start.

    Reading them again would take 45 ms a chunk there.
    """
    with patch.object(SettingsContext, "serialize", lambda *_, **__: {}):
        yield


def _new_process() -> ProcessPoolTaskRunner:
    runner = ProcessPoolTaskRunner(max_workers=1, initializer=begin_process)
    runner.__enter__()
    return runner


def result(future: Any) -> object:
    """What a task that ended returned, or raised."""
    future.wait()  # it has ended; this is what makes its state the final one
    if future.state.is_completed():
        return future.state.result()
    if future.state.is_cancelled():
        return Interrupted()
    fault = future.state.result(raise_on_failure=False)
    return fault if isinstance(fault, BaseException) else RuntimeError(str(fault))


def crashed(task_run_id: uuid.UUID) -> None:
    """Say in Prefect what became of a task run whose process cannot say it; a server of ours knows of it after a second."""
    try:
        with get_client(sync_client=True) as client:
            for _ in range(_TRIES):
                with suppress(ObjectNotFound):
                    client.set_task_run_state(task_run_id, Crashed(message="its worker process died"), force=True)
                    return
                time.sleep(_PAUSE_SECONDS)
            log.info("the Prefect server does not know of the task run %s", task_run_id)
    except Exception as error:  # noqa: BLE001 - it is for the UI only
        log.info("the Prefect server was not told of the task run %s: %s", task_run_id, shown(str(error)))


class Deaths:
    """What becomes of a chunk whose worker died: another try, without the image that its workers keep dying over."""

    def __init__(self, settings: Settings, earlier: int = 0) -> None:
        self._settings = settings
        self._earlier = earlier  # how often runs died over the first image of each chunk
        self._begun_at: dict[int, str | None] = {}
        self._died_at: dict[int, tuple[str, int]] = {}
        self._given_up: dict[int, str] = {}

    def begins(self, number: int, sources: Sequence[Source]) -> None:
        """The chunk is submitted: note where it stands."""
        left = self._left(number, sources)
        self._begun_at[number] = left[0].name if left else None

    def verdict(self, number: int, sources: Sequence[Source], died: WorkerDied) -> WorkerDied | None:
        """``None`` where the chunk is to be submitted again; else what failed all that was left of it."""
        left = self._left(number, sources)
        if not left:
            return None
        first = left[0]
        at, times = self._died_at.get(number, (sources[0].name, self._earlier))
        times = (times if at == first.name else 0) + (died.times if self._begun_at[number] == first.name else 1)
        self._died_at[number] = first.name, times
        log.warning("chunk %d: its worker died over %s, %d of %d times", number, text(first.name), times, MOST_TRIES)
        if times < MOST_TRIES:
            return None
        with Part(self._settings.run_folder, number) as part:
            if first != sources[0] and self._given_up.get(number) == sources[sources.index(first) - 1].name:
                for source in left:  # two in a row: it is not the image
                    give_up(source, self._settings, part, died)
                return died
            give_up(first, self._settings, part, died)
        self._given_up[number] = first.name
        return None

    def _left(self, number: int, sources: Sequence[Source]) -> list[Source]:
        done = {row["source"] for row in Part(self._settings.run_folder, number).rows()}
        return [source for source in sources if text(source.name) not in done]

"""Where the chunks of a run are worked on: threads, worker processes, or a Dask cluster.

An engine takes tasks, says which have ended and how, and nothing else. Only paths and small records travel.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings
from prefect.states import Crashed
from prefect.task_runners import ProcessPoolTaskRunner

from denoise_core import __version__
from denoise_core.device import Device, choose
from denoise_core.errors import DenoiseError
from flows.config import RunConfig
from flows.errors import StartError
from flows.server import reports_to_real_server, set_url
from tasks import activity
from tasks.chunk import give_up
from tasks.faults import RETRY_SECONDS, Interrupted, interrupt, sentence, stop_if_interrupted
from tasks.ledger import Part
from tasks.settings import Settings
from tasks.table import text
from tasks.work import Source
from tasks.worker import begin_process

log = logging.getLogger("tasks")

GPU = "GPU"
"""The Dask resource that a worker with a GPU offers, and a chunk needs where the device is one."""

MOST_TRIES = len(RETRY_SECONDS) + 1
_MOST_WAITING = 500  # chunks handed to a Dask scheduler at once
_CONNECT_SECONDS = 10
_LOOK_SECONDS = 5.0
_POLL_SECONDS = 0.02


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

    def device(self, asked: str) -> Device:
        """The device of the workers, for ``--device``."""

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
    elif not address:
        with _prefect_settings_everywhere(), _dask_settings(own=True), closing(LocalDask()) as cluster:
            yield cluster
    else:
        with _dask_settings(own=False), closing(RemoteDask(address, config)) as scheduler:
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

    def device(self, asked: str) -> Device:
        """That of this machine."""
        return choose(asked)

    def room(self, settings: Settings) -> int:
        """One chunk more than slots: it loads, or saves, while the others hold the slots.

        Not all at once: the images of those that only wait for a slot would be in memory.
        """
        return settings.slots + 1

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """Begin in a thread."""
        return task.submit(**parameters)

    def ended(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """By the threads' futures."""
        done, _ = wait([future.wrapped_future for future in futures], timeout=seconds, return_when=FIRST_COMPLETED)
        return [future for future in futures if future.wrapped_future in done]

    def outcome(self, future: Any) -> object:
        """By the task's state."""
        return future.wrapped_future.exception() or _result(future)

    def stop(self, futures: Sequence[Any]) -> None:
        """Threads look at the interrupt themselves."""


class Processes:
    """A worker process a slot, each a pool of its own: one that dies breaks no other, and is replaced."""

    elsewhere = True
    remote = False

    def __init__(self) -> None:
        self._idle: list[ProcessPoolTaskRunner] = []
        self._busy: dict[Any, ProcessPoolTaskRunner] = {}

    def device(self, asked: str) -> Device:
        """That of this machine."""
        return choose(asked)

    def room(self, settings: Settings) -> int:
        """One chunk a process."""
        return settings.slots

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """Begin in a process that has nothing to do, or in a new one."""
        runner = self._idle.pop() if self._idle else _new_process()
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
            runner.__exit__(None, None, None)
            _crashed(future.task_run_id)
            return WorkerDied()
        self._idle.append(runner)
        return crash or _result(future)

    def stop(self, futures: Sequence[Any]) -> None:
        """The workers hear of it from the run's folder."""

    def close(self) -> None:
        """End the processes."""
        for runner in (*self._idle, *self._busy.values()):
            runner.__exit__(None, None, None)


def _new_process() -> ProcessPoolTaskRunner:
    runner = ProcessPoolTaskRunner(max_workers=1, initializer=begin_process)
    runner.__enter__()
    return runner


@contextmanager
def _dask_settings(*, own: bool) -> Iterator[None]:
    """Dask as a run wants it: quiet, and in a cluster of the run's own no environment but the run's."""
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # for the workers it starts, and read at its import
    import dask
    import distributed  # noqa: F401 - installs its logging

    logger = logging.getLogger("distributed")
    logger.setLevel(logging.WARNING)
    logger.handlers.clear()
    logger.propagate = False
    ours: dict[str, object] = {}
    if own:
        ours = {
            "distributed.scheduler.allowed-failures": 0,  # every death is told; the run counts them
            "distributed.nanny.pre-spawn-environ": {"MALLOC_TRIM_THRESHOLD_": 65536},  # not OMP_NUM_THREADS
        }
    with dask.config.set(ours):
        yield


class _Dask:
    """What both kinds of cluster have in common."""

    elsewhere = True

    def __init__(self, where: str, **options: Any) -> None:
        from prefect_dask import DaskTaskRunner

        self._where = where
        self._runner = DaskTaskRunner(client_kwargs={"timeout": _CONNECT_SECONDS}, **options)
        self._runner.__enter__()

    def room(self, settings: Settings) -> int:  # noqa: ARG002 - it is the engines'
        """As many as a scheduler may want to see, to know how many workers to ask for."""
        return _MOST_WAITING

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """Hand it to the scheduler, with the GPU that it needs as a resource."""
        import dask

        self._check_connected()
        with dask.annotate(resources={GPU: 1} if parameters["settings"].device.name != "cpu" else {}):
            return self._runner.submit(task, parameters)

    def ended(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """By the scheduler's word."""
        deadline = time.monotonic() + seconds
        while not (done := [future for future in futures if future.wrapped_future.done()]):
            self._check_connected()
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)  # its own wait is for a client that is the default one
        return done

    def outcome(self, future: Any) -> object:
        """By the task's state, where a worker lived to tell it."""
        from distributed import KilledWorker

        try:
            future.wrapped_future.result(timeout=_CONNECT_SECONDS)
        except KilledWorker as killed:
            _crashed(future.task_run_id)
            return WorkerDied(killed.allowed_failures + 1)
        except CancelledError:
            if interrupt.is_set():
                return Interrupted()
            raise EngineLost(f"{self._where} was lost") from None
        except BaseException as crash:  # noqa: BLE001 - whatever came back from the worker
            return crash
        return _result(future)

    def stop(self, futures: Sequence[Any]) -> None:
        """Cancel what no worker has begun; the others hear of it from the run's folder."""
        with suppress(Exception):
            client = self._runner.client
            begun = {key for keys in client.processing().values() for key in keys}
            client.cancel([one.wrapped_future for one in futures if one.wrapped_future.key not in begun])

    def close(self) -> None:
        """Leave the cluster, or end it where it is the run's own."""
        self._runner.__exit__(None, None, None)

    def _check_connected(self) -> None:
        if self._runner.client.status != "running":
            raise EngineLost(f"{self._where} was lost")


class LocalDask(_Dask):
    """A Dask cluster on this machine, a worker process a slot, for as long as the run."""

    remote = False

    def __init__(self) -> None:
        super().__init__("the run's own Dask scheduler", cluster_class=self._cluster)
        self._workers: dict[str, Any] = {}

    def device(self, asked: str) -> Device:
        """That of this machine."""
        return choose(asked)

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """The first one starts the cluster."""
        settings = parameters["settings"]
        self._workers = {"n_workers": settings.slots}
        if settings.device.name != "cpu":
            self._workers["resources"] = {GPU: 1}
        return super().submit(task, parameters)

    def _cluster(self) -> Any:
        from distributed import LocalCluster

        return LocalCluster(
            **self._workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,  # an image that needs it all is the run's business, see tasks.chunk
            preload=["tasks.worker"],
        )


class RemoteDask(_Dask):
    """The workers of an existing scheduler, on whatever machines."""

    remote = True

    def __init__(self, address: str, config: RunConfig) -> None:
        super().__init__(f"the Dask scheduler at {address}", address=address)
        self._address = address
        self._config = config
        self._gpus = False
        self._device: Device | None = None
        self._asked = 0.0
        self._seen_at = time.monotonic()
        self._waiting = ExitStack()

    def check(self) -> None:
        """Connect, wait for workers, and see that they have what the run needs.

        Raises:
            StartError: they do not, or there is none within ``--worker-wait``.
        """
        if not reports_to_real_server():
            raise StartError(
                f"--engine dask:{self._address}: the workers report to Prefect as well, and this run's embedded server is not "
                "in their reach; set PREFECT_API_URL, here and where they are started, to a server that all reach"
            )
        try:
            client = self._runner.client
        except (OSError, ValueError) as error:
            raise StartError(f"--engine: {self._where} does not answer: {sentence(error)}") from None
        deadline = time.monotonic() + self._config.worker_wait
        while not self._workers():
            stop_if_interrupted()
            if time.monotonic() > deadline:
                raise StartError(
                    f"--engine: {self._where} has no worker, for {self._config.worker_wait:g} s; start one with "
                    f"`dask worker {self._address} --nthreads 1`, or give --worker-wait more"
                )
            time.sleep(0.2)
        runs = self._config.output.resolve() / "runs"
        probe = runs / f".seen-{uuid.uuid4().hex}"
        probe.touch()
        asked = Asked(self._config.device, self._config.input.resolve(), probe, str(set_url()), _versions())
        try:
            found = client.run(look, asked, on_error="return")
        finally:
            probe.unlink(missing_ok=True)
        self._device = self._common([self._acceptable(*one) for one in sorted(found.items())])
        self._gpus = self._device.name != "cpu"
        if self._gpus and not self._workers():
            raise StartError(
                f"--engine: no worker of {self._where} offers the resource {GPU}; start those with a GPU by "
                f"`CUDA_VISIBLE_DEVICES=0 dask worker {self._address} --nthreads 1 --resources {GPU}=1`, or give --device cpu"
            )

    def _acceptable(self, address: str, seen: object) -> Seen:
        if isinstance(seen, BaseException):
            raise StartError(
                f"--engine: the Dask worker at {address} cannot run denoise-flows: {type(seen).__name__}: {sentence(seen)}"
            )
        assert isinstance(seen, Seen)
        if seen.problem is not None:
            raise StartError(f"--engine: the Dask worker at {address} on {seen.host} {seen.problem}")
        return seen

    def _common(self, seen: list[Seen]) -> Device:
        """One device for all workers: with one precision, so that the same image gives the same bytes on each."""
        devices = [one.device for one in seen if isinstance(one.device, Device)]
        chosen = [device for device in devices if device.name != "cpu"] or devices
        if not chosen:
            raise StartError(f"--device: {next(one.device for one in seen)}")
        first = chosen[0]
        hosts = Counter(one.host for one in seen if one.device in chosen)
        reason = f"{len(chosen)} Dask workers on {len(hosts)} machine(s); {first.reason}"
        if len({device.precision for device in chosen}) > 1:
            first = replace(first, precision="float32")
            reason += "; other workers differ, float32 they all have"
        return replace(first, threads=max(hosts.values()), reason=reason)

    def device(self, asked: str) -> Device:  # noqa: ARG002 - check() has asked for it
        """What the workers have; its threads are the most workers on one machine."""
        assert self._device is not None
        return self._device

    def ended(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        """As for any cluster; and no longer without a worker than ``--worker-wait``."""
        found = super().ended(futures, seconds)
        now = time.monotonic()
        if now - self._asked > _LOOK_SECONDS:
            self._asked = now
            self._waiting.close()
            if self._workers():
                self._seen_at = now
            elif now - self._seen_at > self._config.worker_wait:
                raise EngineLost(f"{self._where} has had no worker for {self._config.worker_wait:g} s")
            else:
                kind = f"Dask worker with the resource {GPU}" if self._gpus else "Dask worker"
                self._waiting.enter_context(activity.waiting(f"a {kind} at {self._address}"))
        return found

    def close(self) -> None:
        """Leave the cluster as it is."""
        self._waiting.close()
        super().close()

    def _workers(self) -> list[str]:
        workers: dict[str, Any] = self._runner.client.scheduler_info()["workers"]
        return [at for at, known in workers.items() if not self._gpus or known["resources"].get(GPU, 0) >= 1]


class Asked(NamedTuple):
    """What the workers are asked for."""

    device: str
    input: Path
    probe: Path  # a file that lies in OUTPUT for as long as they are asked
    server: str
    versions: dict[str, str]


class Seen(NamedTuple):
    """What a worker says of itself."""

    host: str
    device: Device | str  # or why there is none
    problem: str | None  # why it cannot take part


def _versions() -> dict[str, str]:
    """Of what must be the same on both sides, since tasks travel pickled and results are to be the same."""
    python = ".".join(map(str, sys.version_info[:2]))
    return {"Python": python, "denoise-flows": __version__, "prefect": version("prefect"), "torch": version("torch")}


def look(asked: Asked) -> Seen:
    """On a worker: whether it has what the run needs."""
    import httpx

    try:
        device: Device | str = choose(asked.device)
    except DenoiseError as error:
        device = sentence(error)
    problem = None
    if (here := _versions()) != asked.versions:
        others = ", ".join(
            f"{name} {here[name]}, the run {asked.versions[name]}"
            for name in here
            if here[name] != asked.versions[name]
        )
        problem = f"has {others}; install the same versions"
    elif set_url() != asked.server:
        problem = f"reports to {set_url() or 'no Prefect server'}; start it with PREFECT_API_URL={asked.server}"
    elif not asked.probe.is_file():
        problem = f"does not see OUTPUT {asked.probe.parents[1]}; the folder must be shared, under the same path"
    elif not os.access(asked.input, os.R_OK):
        problem = f"does not see INPUT {asked.input}; it must be shared, under the same path"
    elif not os.access(asked.probe.parent, os.W_OK):
        problem = f"cannot write to OUTPUT {asked.probe.parents[1]}"
    else:
        try:
            httpx.get(f"{asked.server}/health", timeout=10.0)
        except httpx.HTTPError as error:
            problem = f"does not reach the Prefect server at {asked.server} ({error})"
    return Seen(socket.gethostname(), device, problem)


def _result(future: Any) -> object:
    """What a task that ended returned, or raised."""
    future.wait()  # it has ended; this is what makes its state the final one
    if future.state.is_completed():
        return future.state.result()
    if future.state.is_cancelled():
        return Interrupted()
    fault = future.state.result(raise_on_failure=False)
    return fault if isinstance(fault, BaseException) else RuntimeError(str(fault))


def _crashed(task_run_id: uuid.UUID) -> None:
    """Say in Prefect what became of a task run whose process cannot say it."""
    try:
        with get_client(sync_client=True) as client:
            client.set_task_run_state(task_run_id, Crashed(message="its worker process died"), force=True)
    except Exception as error:  # noqa: BLE001 - it is for the UI only
        log.info("the Prefect server was not told of the task run %s: %s", task_run_id, error)


class Deaths:
    """What becomes of a chunk whose worker died: another try, without the image that its workers keep dying over."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._begun_at: dict[int, str | None] = {}
        self._died_at: dict[int, tuple[str | None, int]] = {}
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
        at, times = self._died_at.get(number, (None, 0))
        times = (times if at == first.name else 0) + (died.times if self._begun_at[number] == first.name else 1)
        self._died_at[number] = first.name, times
        log.warning("chunk %d: its worker died over %s, %d of %d times", number, text(first.name), times, MOST_TRIES)
        if times < MOST_TRIES:
            return None
        part = Part(self._settings.run_folder, number)
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

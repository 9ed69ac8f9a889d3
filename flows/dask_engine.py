"""Chunks on a Dask cluster, through prefect-dask: one of the run's own on this machine, or an existing one."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from denoise_core import __version__
from denoise_core.device import Device, choose_all
from denoise_core.errors import DenoiseError
from flows.config import RunConfig
from flows.engine import EngineLost, WorkerDied, crashed, result, settings_known
from flows.errors import StartError
from flows.server import reports_to_real_server, set_url
from tasks import activity
from tasks.faults import Interrupted, interrupt, sentence, stop_if_interrupted
from tasks.prefect_api import http_client, no_answer, shown
from tasks.settings import Settings

GPU = "GPU"
"""The Dask resource that a worker with a GPU offers, and a chunk needs where the device is one."""

_MOST_WAITING = 500  # chunks handed to a Dask scheduler at once
_CONNECT_SECONDS = 10
_LOOK_SECONDS = 5.0
_POLL_SECONDS = 0.02


@contextmanager
def dask_settings(*, own: bool) -> Iterator[None]:
    """Dask as a run wants it: quiet, and in a cluster of the run's own no environment but the run's."""
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # for the workers it starts, and read at its import
    import dask
    import distributed  # noqa: F401 - installs its logging

    for name in ("distributed", "distributed.client", "distributed.gc", "tornado", "tornado.application"):
        logger = logging.getLogger(name)  # each has a handler of its own for the console
        logger.setLevel(logging.WARNING)
        logger.handlers[:] = [logging.NullHandler()]  # with none at all Python would write to the console itself
        logger.propagate = False
    logging.getLogger("distributed.client").propagate = True  # to the run's log, by its parent
    ours: dict[str, object] = {}
    if own:
        ours = {
            "distributed.scheduler.allowed-failures": 0,  # every death is told; the run counts them
            "distributed.worker.profile.enabled": False,  # it looks at what a fit does a hundred times a second
            "distributed.nanny.pre-spawn-environ": {},  # the run's own: it would set OMP_NUM_THREADS, and slow malloc down
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
        from prefect_dask.task_runners import PrefectDaskFuture

        self._check_connected()
        with dask.annotate(resources={GPU: 1} if parameters["settings"].device.name != "cpu" else {}):
            # As its task runner does, but under a key drawn at random: one made of all arguments takes 8 ms.
            future = self._runner.client.submit(task, parameters=parameters, return_type="state", pure=False)
        return PrefectDaskFuture(wrapped_future=future, task_run_id=future.task_run_id)

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
        except KilledWorker:
            # One death, whatever number the scheduler allows: it counts those of chunks that only waited there, too.
            crashed(future.task_run_id)
            return WorkerDied()
        except CancelledError:
            if interrupt.is_set():
                return Interrupted()
            raise EngineLost(f"{self._where} was lost; the same command goes on when it is back") from None
        except OSError as crash:
            # The task's own come in its state. So this is the connection, whose end the client may notice a moment later.
            for _ in range(round(_CONNECT_SECONDS / _POLL_SECONDS)):
                self._check_connected()
                time.sleep(_POLL_SECONDS)
            return crash
        except BaseException as crash:  # noqa: BLE001 - whatever came back from the worker
            return crash
        return result(future)

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
            raise EngineLost(f"{self._where} was lost; the same command goes on when it is back")


class LocalDask(_Dask):
    """A Dask cluster on this machine, a worker process a slot, for as long as the run."""

    remote = False

    def __init__(self) -> None:
        super().__init__("the run's own Dask scheduler", cluster_class=self._cluster)
        self._workers: dict[str, Any] = {}

    def devices(self, asked: str) -> tuple[Device, ...]:
        """Those of this machine."""
        return choose_all(asked)

    def room(self, settings: Settings) -> int:
        """One chunk a worker: one that waited behind it would die with it."""
        return settings.fits_at_once

    def submit(self, task: Any, parameters: dict[str, Any]) -> Any:
        """The first one starts the cluster."""
        settings = parameters["settings"]
        self._workers = {"n_workers": settings.fits_at_once}
        if settings.device.name != "cpu":
            self._workers["resources"] = {GPU: 1}
        with settings_known():
            return super().submit(task, parameters)

    def _cluster(self) -> Any:
        from distributed import LocalCluster

        return LocalCluster(
            **self._workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # left out, it would listen to the world, on a port that another run has
            worker_dashboard_address="127.0.0.1:0",
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
        runs.mkdir(parents=True, exist_ok=True)
        probe = runs / f".seen-{uuid.uuid4().hex}"
        probe.touch()
        asked = Asked(self._config.device, self._config.input.resolve(), probe, shown(str(set_url())), _versions())
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

    def devices(self, asked: str) -> tuple[Device, ...]:  # noqa: ARG002 - check() has asked for it
        """What the workers have; its threads are the most workers on one machine."""
        assert self._device is not None
        return (self._device,)

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
    server: str  # as it may be shown
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
    try:
        device: Device | str = choose_all(asked.device)[0]
    except DenoiseError as error:
        device = sentence(error)
    problem = None
    if (own := _versions()) != asked.versions:
        others = ", ".join(
            f"{name} {own[name]}, the run {asked.versions[name]}" for name in own if own[name] != asked.versions[name]
        )
        problem = f"has {others}; install the same versions"
    elif (here := shown(set_url() or "no Prefect server")) != asked.server:
        problem = f"reports to {here}; start it with PREFECT_API_URL={asked.server}"
    elif not asked.probe.is_file():
        problem = f"does not see OUTPUT {asked.probe.parents[1]}; the folder must be shared, under the same path"
    elif not os.access(asked.input, os.R_OK):
        problem = f"does not see INPUT {asked.input}; it must be shared, under the same path"
    elif not os.access(asked.probe.parent, os.W_OK):
        problem = f"cannot write to OUTPUT {asked.probe.parents[1]}"
    else:
        with http_client(str(set_url())) as asking:
            unanswered = no_answer(asking, _CONNECT_SECONDS)
        if unanswered is not None:
            problem = f"does not reach the Prefect server at {asked.server} ({unanswered})"
    return Seen(socket.gethostname(), device, problem)

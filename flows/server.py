"""The Prefect server that a run reports to: the one that is set, or one of its own for as long as the run lasts.

Prefect can start a temporary server by itself, but that one dies with the terminal's Ctrl-C before the run has reported
its end, and outlives a run that is killed. This one is out of the terminal's reach and ends when the run's end of a pipe
closes, however the run ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.errors import StartError
from tasks.faults import stop_if_interrupted

_START_SECONDS = 120.0
_MOST_RESTARTS = 5
_embedded_addresses: set[str] = set()

log = logging.getLogger("tasks")


@dataclass(frozen=True)
class Server:
    """Where a run reports to."""

    url: str
    embedded: bool

    def __str__(self) -> str:
        return "embedded in this run" if self.embedded else self.url


def prepare_environment() -> None:
    """Prefect's settings that this project wants otherwise, for those the user has not set. Before Prefect is imported."""
    defaults = {
        "PREFECT_LOGGING_SETTINGS_PATH": str(Path(__file__).with_name("logging.yml")),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # s: what docs/automations.yaml waits for
        "PREFECT_HOME": str(_usable_home()),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _usable_home() -> Path:
    """Prefect's folder: what ``PREFECT_HOME`` names, or ``~/.prefect``, or a temporary one where that cannot be written to."""
    chosen = os.environ.get("PREFECT_HOME")
    home = Path(chosen).expanduser() if chosen else Path.home() / ".prefect"
    spare = Path(tempfile.gettempdir()) / f"denoise-prefect-{os.getuid()}"
    for folder in (home,) if chosen else (home, spare):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            problem = error.strerror
    raise StartError(f"Prefect's folder {home} cannot be written to ({problem}); PREFECT_HOME names another")


def set_url() -> str | None:
    """The API address of ``PREFECT_API_URL``, from the environment or Prefect's profile; ``None`` where there is none."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    return None if url is None else str(url).rstrip("/")


def reports_to_real_server() -> bool:
    """Whether Prefect is set to a server that outlives this run, where its limits and its history are worth keeping."""
    url = set_url()
    return url is not None and url not in _embedded_addresses


@contextmanager
def connected() -> Iterator[Server]:
    """A server that answers, and Prefect set to report to it; an embedded one is stopped on the way out.

    Raises:
        StartError: the server that is set does not answer, or the embedded one does not start.
    """
    prepare_environment()
    url = set_url()
    if url is not None:
        _check_set_server(url)
        yield Server(url, embedded=False)
        return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with _embedded() as address, temporary_settings({PREFECT_API_URL: address}):
        _embedded_addresses.add(address)
        try:
            yield Server(address, embedded=True)
        finally:
            _send_what_waits()


def _send_what_waits() -> None:
    """Logs and events go out in batches; the last ones must leave before the server does."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)


@contextmanager
def _embedded() -> Iterator[str]:
    process = _Process()
    try:
        import torch  # noqa: F401 - the run needs it: imported while the server starts

        address = f"http://127.0.0.1:{process.port}/api"
        try:
            _wait_until_healthy(address, process.child, seconds=_START_SECONDS)
        except StartError as error:
            raise StartError(f"{error}; its last words: {process.last_words() or 'none'}") from None
        with process.kept_alive():
            yield address
    finally:
        process.end()


class _Process:
    """The server's process; one that dies is replaced, since Prefect's calls would wait for it for minutes."""

    def __init__(self) -> None:
        self.port = 0  # any that is free
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self.child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
            # The child has its own: with this one left open a dead server would hang, not refuse.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else its successor must wait for the port
            listening.bind(("127.0.0.1", self.port))
            listening.listen(128)
            self.port = listening.getsockname()[1]
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.embedded_server", str(listening.fileno())],
                stdin=subprocess.PIPE,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[listening.fileno()],
                start_new_session=True,
                env={
                    **os.environ,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
            )

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """While inside, a server that ends is started again on its port, a few times."""
        leaving = threading.Event()

        def watch() -> None:
            restarts = 0
            while not leaving.wait(0.5) and restarts < _MOST_RESTARTS:
                if self.child.poll() is not None:
                    restarts += 1
                    log.warning("the embedded Prefect server ended (%s); it is started again", self.child.returncode)
                    with contextlib.suppress(OSError):
                        if self.child.stdin is not None:
                            self.child.stdin.close()
                        self.child = self._start()

        watching = threading.Thread(target=watch, name="embedded-server", daemon=True)
        watching.start()
        try:
            yield
        finally:
            leaving.set()
            watching.join()

    def last_words(self) -> str:
        """The last line that the process printed."""
        self._said.seek(0)
        return " ".join(self._said.read().decode(errors="replace").strip().splitlines()[-1:])

    def end(self) -> None:
        """Ask it to end, and see that it does."""
        if self.child.stdin is not None:
            self.child.stdin.close()
        try:
            self.child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._said.close()


def _check_set_server(url: str) -> None:
    """Ask the server that is set whether it is well, with the credentials that Prefect has for it."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise StartError(
            f"the Prefect server that PREFECT_API_URL names, {url}, does not answer ({problem}); start it with "
            "`prefect server start`, or unset PREFECT_API_URL to use an embedded one"
        )


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], *, seconds: float) -> None:
    import httpx

    deadline = time.monotonic() + seconds
    problem = "no answer"
    with httpx.Client(timeout=5.0) as client:
        while time.monotonic() < deadline:
            stop_if_interrupted()
            if process.poll() is not None:
                raise StartError(f"the embedded Prefect server ended at once (exit status {process.returncode})")
            try:
                answer = client.get(f"{url}/health")
                if answer.status_code == httpx.codes.OK:
                    return
                problem = f"it answers {answer.status_code}"
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
            time.sleep(0.05)
    raise StartError(f"the embedded Prefect server did not start within {seconds:.0f} s ({problem})")

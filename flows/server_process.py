"""A Prefect server in a process of its own, which ends with the process that started it, however that one ends."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flows.errors import StartError
from tasks.background import beside
from tasks.faults import stop_if_interrupted

START_SECONDS = 300.0  # on a machine that is busy; one that ends at once is noticed at once
_MOST_RESTARTS = 5
_RECOVERED_SECONDS = 300.0

_SETTINGS = {
    # Prefect would write each state of a task run by itself, as soon as it is told: 50 ms of the processor an image.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""Of any server of ours; the user's own variables win."""

log = logging.getLogger("tasks")


class ServerProcess:
    """The server's process; one that dies is replaced, since Prefect's calls would wait for it for minutes.

    It serves on ``host`` and ``port`` (0: any that is free) with ``environment`` as its settings, and what it says goes to
    the end of the file ``said``, or of a temporary one, which it keeps short (:func:`flows.embedded_server.keep_short`).

    Raises:
        OSError: the address is not to be had.
    """

    def __init__(
        self, environment: Mapping[str, str], *, host: str = "127.0.0.1", port: int = 0, said: Path | None = None
    ) -> None:
        self.host, self.port = host, port
        self._environment = environment
        self._said = said
        self._temporary = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        with self._open_said() as words:
            self._from = words.seek(0, os.SEEK_END)
        self.gave_up = threading.Event()
        try:
            self.child = self._start()
        except BaseException:
            self._temporary.close()
            raise

    @property
    def url(self) -> str:
        """The address of the API as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - recognised, not bound to
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/api"

    def _start(self) -> subprocess.Popen[bytes]:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listening:
            # The child has its own: with this one left open a dead server would hang, not refuse.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else its successor must wait for the port
            listening.bind(address)
            listening.listen(128)
            self.port = listening.getsockname()[1]
            with self._open_said() as words:
                return subprocess.Popen(
                    [sys.executable, "-P", "-m", "flows.embedded_server", str(listening.fileno()), self._said or ""],
                    stdin=subprocess.PIPE,
                    stdout=words,
                    stderr=words,
                    pass_fds=[listening.fileno()],
                    start_new_session=True,
                    umask=0o077,  # its database has paths, parameters and logs: its owner's alone, in any folder
                    env={**_SETTINGS, **self._environment, "PREFECT__SERVER_FINAL": "1"},
                )

    def _open_said(self) -> IO[bytes]:
        """The file of what it says, to be read, and written to at its end."""
        if self._said is not None:
            return self._said.open("a+b")
        words = os.fdopen(os.dup(self._temporary.fileno()), "a+b")
        fcntl.fcntl(words, fcntl.F_SETFL, os.O_APPEND)  # open() sees to that for a name only
        return words

    def wait_until_healthy(self, *, seconds: float = START_SECONDS) -> None:
        """Wait for the server's first answer; raises :class:`StartError` with its last words where there is none."""
        import httpx

        deadline = time.monotonic() + seconds
        problem = "no answer"
        with httpx.Client(timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                stop_if_interrupted()
                if self.child.poll() is not None:
                    problem = f"it ended with exit status {self.child.returncode}"
                    break
                try:
                    answer = client.get(f"{self.url}/health")
                    if answer.status_code == httpx.codes.OK:
                        return
                    problem = f"it answers {answer.status_code}"
                except httpx.HTTPError as error:
                    problem = str(error) or type(error).__name__
                time.sleep(0.05)
        raise StartError(
            f"the Prefect server did not start within {seconds:.0f} s ({problem}); its last words: "
            f"{self.last_words() or 'none'}"
        )

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """While inside, a server that ends is started again on its port, a few times in a row; then ``gave_up`` is set."""

        def watch(leaving: threading.Event) -> None:
            restarts = 0
            last = time.monotonic()
            while not leaving.wait(0.5):
                if self.child.poll() is None:
                    continue
                restarts = 1 if time.monotonic() - last > _RECOVERED_SECONDS else restarts + 1
                last = time.monotonic()
                if restarts > _MOST_RESTARTS:
                    self.gave_up.set()
                    return
                log.warning("the Prefect server ended (%s); it is started again", self.child.returncode)
                with contextlib.suppress(OSError):
                    if self.child.stdin is not None:
                        self.child.stdin.close()
                    self.child = self._start()

        with beside(watch, "prefect-server"):
            yield

    def last_words(self) -> str:
        """The last line that the process printed."""
        with self._open_said() as words:
            length = words.seek(0, os.SEEK_END)
            words.seek(self._from if self._from <= length else 0)
            return " ".join(words.read().decode(errors="replace").strip().splitlines()[-1:])

    def end(self) -> None:
        """Ask it to end, and see that it does."""
        self.child.terminate()  # while it starts it does not look at its standard input
        if self.child.stdin is not None:
            self.child.stdin.close()
        try:
            self.child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._temporary.close()

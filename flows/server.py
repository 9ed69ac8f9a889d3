"""The Prefect server that a run reports to: the one that is set, or that ``denoise server`` runs here, or one of its own.

Prefect can start a temporary server by itself, but that one dies with the terminal's Ctrl-C before the run has reported
its end, and outlives a run that is killed. This one is out of the terminal's reach and ends when the run's end of a pipe
closes, however the run ends.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from flows import running
from flows.errors import StartError
from flows.server_process import ServerProcess
from flows.server_watch import watched
from tasks.faults import sentence
from tasks.prefect_api import http_client, no_answer, send, shown

_CHECK_SECONDS = 60.0
_HERE = ("localhost", "127.0.0.1", "::1")

_embedded_addresses: set[str] = set()


@dataclass(frozen=True)
class Server:
    """Where a run reports to, and why there."""

    url: str
    embedded: bool
    why: str = ""

    def __str__(self) -> str:
        return "embedded in this run" if self.embedded else f"{shown(self.url)} ({self.why})"


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
    if not os.environ.get("PREFECT_API_URL", "set"):
        del os.environ["PREFECT_API_URL"]  # empty, Prefect takes it for a wish to have its own temporary server
    around = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    if around != "*" and not set(_HERE) <= set(around.split(",")):
        # A proxy has no way to the servers that run here.
        os.environ["no_proxy"] = ",".join(filter(None, [around, *_HERE]))


def _usable_home() -> Path:
    """Prefect's folder: what ``PREFECT_HOME`` names, or ``~/.prefect``, or a temporary one where that cannot be written to."""
    chosen = os.environ.get("PREFECT_HOME")
    home = Path(chosen).expanduser() if chosen else Path.home() / ".prefect"
    spare = Path(tempfile.gettempdir()) / f"denoise-prefect-{os.getuid()}"
    for folder in (home,) if chosen else (home, spare):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder == spare and folder.lstat().st_uid != os.getuid():
                raise PermissionError(errno.EPERM, f"nor its stand-in {spare}, which is another user's")
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            problem = error.strerror
    raise StartError(f"Prefect's folder {home} cannot be written to ({problem}); PREFECT_HOME names another")


def set_url() -> str | None:
    """The API address of ``PREFECT_API_URL``, from the environment or Prefect's profile; ``None`` where there is none."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    return str(url).rstrip("/") if url else None  # set, but empty, is not set


def reports_to_real_server() -> bool:
    """Whether Prefect is set to a server that outlives this run, where its limits and its history are worth keeping."""
    url = set_url()
    return url is not None and url not in _embedded_addresses


@contextmanager
def connected() -> Iterator[Server]:
    """A server that answers, and Prefect set to report to it; an embedded one is stopped on the way out.

    Raises:
        StartError: the server that is set does not answer or does not let us in, or the embedded one does not start.
    """
    prepare_environment()
    with real_server() as real:
        if real is not None:
            with watched(real.url):
                yield real
            return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with _embedded() as address, temporary_settings({PREFECT_API_URL: address}):
        _embedded_addresses.add(address)
        try:
            yield Server(address, embedded=True)
        finally:
            send_what_waits()


@contextmanager
def real_server() -> Iterator[Server | None]:
    """The server that is set, or that runs here already, with Prefect set to it; ``None`` where there is neither."""
    url = set_url()
    if url is not None:
        _check(url, "that PREFECT_API_URL names", "start it with `denoise server`, or unset PREFECT_API_URL")
        yield Server(url, embedded=False, why="as PREFECT_API_URL says")
        return
    here = running.healthy()
    if here is None:
        yield None
        return
    with at(here):
        _check(here.url, "that `denoise server` runs here", "restart it, or stop it")
        yield Server(here.url, embedded=False, why=f"`denoise server` runs here, process {here.pid}")


@contextmanager
def at(here: running.Running) -> Iterator[None]:
    """Prefect set to report to a server that runs here, with the auth string of its file where none is set."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    settings: dict[Any, Any] = {PREFECT_API_URL: here.url}
    if here.auth_file is not None and not PREFECT_API_AUTH_STRING.value():
        settings[PREFECT_API_AUTH_STRING] = read_auth_file(Path(here.auth_file))
    with temporary_settings(settings):
        try:
            yield
        finally:
            send_what_waits()


def read_auth_file(path: Path) -> str:
    """The auth string in a file that nobody but its owner may read.

    Raises:
        StartError: there is none, or others may read it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise StartError(f"--auth-file: others than its owner may read {path}; chmod 600 it")
            words = file.read(10_000).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"--auth-file: {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return checked_auth(words, f"--auth-file: {path}")


def checked_auth(words: str, where: str) -> str:
    """An auth string that Prefect can use; raises :class:`StartError` that does not repeat it."""
    if not words:
        raise StartError(f"{where} is empty; an auth string such as user:password is wanted")
    if not words.isascii() or not words.isprintable():
        raise StartError(f"{where} holds more than one line, or letters that are not ASCII; user:password is wanted")
    return words


def send_what_waits() -> None:
    """Logs and events go out in batches; the last ones must leave before the server does."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)


@contextmanager
def _embedded() -> Iterator[str]:
    process = ServerProcess({**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"})
    try:
        import torch  # noqa: F401 - the run needs it: imported while the server starts

        process.wait_until_healthy()
        with process.kept_alive():
            yield process.url
    finally:
        process.end()


def _check(url: str, which: str, remedy: str) -> None:
    """Ask a server whether it is well, and whether it lets us in with the credentials that Prefect has for it."""
    where = f"the Prefect server {which}, {shown(url)},"
    try:
        with http_client(url) as asking:
            problem = no_answer(asking, _CHECK_SECONDS)
            if problem is not None:
                raise StartError(f"{where} does not answer ({problem}); {remedy}")
            answer = send(asking, "GET", "/admin/version")
    except httpx.InvalidURL:  # not to be repeated: what cannot be read may hold a password anywhere
        raise StartError(f"the address of the Prefect server {which} is none such as http://HOST:4200/api") from None
    except httpx.HTTPError as error:
        raise StartError(f"{where} does not answer ({shown(sentence(error))}); {remedy}") from None
    except OSError as error:  # all others come wrapped
        raise StartError(f"the certificates of PREFECT_API_SSL_CERT_FILE cannot be read: {sentence(error)}") from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise StartError(f"{where} does not let us in; PREFECT_API_AUTH_STRING is to hold its auth string")
    if answer.is_error and answer.status_code != httpx.codes.NOT_FOUND:
        raise StartError(f"{where} answers {answer.status_code}")
    if not _is_version(answer):
        ending = "" if url.endswith("/api") else f"; the address of one ends in /api: {shown(url)}/api"
        raise StartError(f"what answers at {shown(url)} is no Prefect server{ending}")


def _is_version(answer: httpx.Response) -> bool:
    """Whether it is what a Prefect server says when it is asked for its version."""
    try:
        return isinstance(answer.json(), str)
    except ValueError:
        return False

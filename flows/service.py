"""``denoise server``: a Prefect server set up for this work, which outlives the runs that report to it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from flows import running
from flows.errors import StartError
from flows.server import checked_auth, read_auth_file, real_server, send_what_waits
from flows.server_process import ServerProcess
from tasks.background import beside
from tasks.prefect_api import shown

PORT = 4200
DATABASE_VARIABLE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
AUTH_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
LOG = "server.log"
_CONNECT_SECONDS = 10.0
_LET_GO_SECONDS = 20.0
_LOOK_SECONDS = 0.5

_LOCK = int.from_bytes(b"denoise", "big")
_ASK_WHETHER_ALIVE = "SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
"""Else PostgreSQL would take a machine that was lost for alive, and its lock for held, for hours."""

_SETTINGS = {
    # Leases in memory are lost with a restart, and the slots they stand for would never come back.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "5",
    "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_COLORS": "false",
}
"""What this work wants otherwise than Prefect; the user's own variables win."""

_ALWAYS = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
_NOT_PASSED_ON = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_PROFILE",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)


@dataclass(frozen=True)
class Options:
    """What ``denoise server`` was asked for; the secrets among it are never shown."""

    folder: Path
    host: str
    port: int
    database: str | None
    auth: str | None
    auth_file: Path | None

    def __repr__(self) -> str:
        return f"Options({self.folder}, {self.host}:{self.port})"


def default_folder() -> Path:
    """Where a server keeps its data if no folder is named."""
    return running.state_folder() / "server"


def options(
    *,
    folder: Path | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    database: str | None = None,
    auth_file: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Options:
    """What was asked for, checked as far as possible without a server.

    Raises:
        StartError: a value cannot be, or the server would be open to others without an auth string.
    """
    if not 0 <= port <= 65535:
        raise StartError(f"--port: {port} is no port: 1 to 65535, or 0 for any that is free")
    name, database = ("--database", database) if database else (DATABASE_VARIABLE, environment.get(DATABASE_VARIABLE))
    if auth_file is not None:
        auth_file = auth_file.expanduser().absolute()
        auth: str | None = read_auth_file(auth_file)
    elif AUTH_VARIABLE in environment:
        auth = checked_auth(environment[AUTH_VARIABLE], AUTH_VARIABLE)
    else:
        auth = None
    if auth is None and not is_loopback(host):
        raise StartError(
            f"--host: {host} lets other machines in, which needs an auth string: --auth-file FILE, or {AUTH_VARIABLE} in the "
            "environment"
        )
    return Options(
        folder=(folder or default_folder()).expanduser().absolute(),
        host=host,
        port=port,
        database=_postgresql(database, name) if database else None,
        auth=auth,
        auth_file=auth_file,
    )


def is_loopback(host: str) -> bool:
    """Whether nothing but this machine reaches what listens there.

    Raises:
        StartError: the name stands for no address.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise StartError(f"--host: {host!r} is no name or address of this machine") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _postgresql(url: str, name: str) -> str:
    """The address of a PostgreSQL database with the driver that Prefect wants; the password is not repeated in errors."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgresql", "postgres", "postgresql+asyncpg"} or not rest:
        raise StartError(
            f"{name}: only PostgreSQL is taken, as postgresql+asyncpg://USER:PASSWORD@HOST:PORT/NAME; without it the "
            "server keeps an SQLite file in --folder"
        )
    try:
        parts = urlsplit(f"postgresql://{rest}")
        usable = parts.port is None or parts.port > 0
    except ValueError:
        usable = False
    if not usable or not parts.path.strip("/"):
        raise StartError(f"{name}: not an address such as postgresql+asyncpg://USER:PASSWORD@HOST:PORT/NAME")
    return f"postgresql+asyncpg://{rest}"


def without_password(url: str) -> str:
    """The address of a database as it may be shown."""
    shown = re.sub(r"(?<=://)([^:@/]*):[^@]*@", r"\1:***@", url)
    return re.sub(r"(?i)([?&]password=)[^&]*", r"\1***", shown)


def environment(asked: Options) -> dict[str, str]:
    """The environment of the server's process."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    own = {
        "PREFECT_HOME": str(asked.folder),
        "PREFECT_SERVER_API_HOST": asked.host,
        "PREFECT_UI_API_URL": "/api",  # the browser's own address: a name of this machine may not be one elsewhere
        DATABASE_VARIABLE: asked.database or f"sqlite+aiosqlite:///{asked.folder / 'prefect.db'}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false" if asked.auth is None else "true",
    }
    if asked.auth is not None:
        own[AUTH_VARIABLE] = asked.auth
    return {**_SETTINGS, **inherited, **_ALWAYS, **own}


@contextmanager
def serving(asked: Options) -> Iterator[ServerProcess]:
    """The server while inside, ready to be reported to and found by the runs of this user on this machine.

    Raises:
        StartError: it cannot start as asked for.
    """
    with _folder_held(asked.folder), _database_held(asked.database) if asked.database else nullcontext():
        process = _bound(asked)
        try:
            try:
                process.wait_until_healthy()
            except StartError as error:
                raise StartError(_without_secrets(str(error), asked)) from None
            with process.kept_alive(), running.recorded(process.url, asked.folder, asked.auth_file):
                yield process
        finally:
            process.end()


def _bound(asked: Options) -> ServerProcess:
    """The server's process on the port that was asked for; one that a killed server is about to let go of is waited for."""
    said = asked.folder / LOG
    said.touch(mode=0o600)
    ends = _last_address(asked.folder)
    deadline = time.monotonic() + (_LET_GO_SECONDS if ends == f"{asked.host}:{asked.port}" else 0.0)
    while True:
        try:
            process = ServerProcess(environment(asked), host=asked.host, port=asked.port, said=said)
            break
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                if time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                raise StartError(
                    f"--port: {asked.port} of {asked.host} is in use by another program; give another one, or 0 for any that "
                    "is free"
                ) from None
            raise StartError(f"--host, --port: cannot listen on {asked.host}:{asked.port}: {error.strerror}") from None
    (asked.folder / ".address").write_text(f"{process.host}:{process.port}", encoding="utf-8")
    return process


def _last_address(folder: Path) -> str | None:
    try:
        return (folder / ".address").read_text(encoding="utf-8")
    except OSError:
        return None


@contextmanager
def _folder_held(folder: Path) -> Iterator[None]:
    """The server's folder, made and locked; the kernel lets go of the lock however this process ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StartError(f"--folder: {folder} cannot be written to: {error.strerror}") from None
    lock = FileLock(folder / ".lock", mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        whose = next((f" at {one.url}" for one in running.servers() if one.folder == str(folder)), "")
        raise StartError(f"--folder: another `denoise server` uses {folder}{whose}; give another folder") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _database_held(url: str) -> Iterator[None]:
    """The database, which can be used, and which no other ``denoise server`` on any machine uses.

    PostgreSQL lets go of the lock when its connection ends. What is wrong with a database is said in a sentence, without its
    password.
    """
    import asyncio

    import asyncpg

    async def connect() -> tuple[Any, bool]:
        connection = await asyncpg.connect(url.replace("+asyncpg", "", 1), timeout=_CONNECT_SECONDS)
        await connection.execute(_ASK_WHETHER_ALIVE)
        return connection, await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK)

    with asyncio.Runner() as runner:
        try:
            connection, alone = runner.run(connect())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, TimeoutError) as error:
            said = " ".join(str(error).split()) or f"no answer within {_CONNECT_SECONDS:.0f} s"
            raise StartError(f"--database: {without_password(url)} cannot be used: {_hidden(said, url)}") from None
        try:
            if not alone:
                raise StartError(
                    f"--database: another `denoise server` uses {without_password(url)}; end it, or have runs report to it by "
                    "PREFECT_API_URL"
                )
            yield
        finally:
            connection.terminate()


def _without_secrets(words: str, asked: Options) -> str:
    if asked.auth is not None:
        words = words.replace(asked.auth, "***")
    return words if asked.database is None else _hidden(words, asked.database)


def _hidden(words: str, url: str) -> str:
    with contextlib.suppress(ValueError):
        password = urlsplit(url).password
        if password:
            for secret in {password, unquote(password)}:
                words = words.replace(secret, "***")
    return words


@contextmanager
def lasting() -> Iterator[tuple[str, str]]:
    """A server for a service that goes on: the one that is set, or that runs here, or one of its own with its UI.

    Its API's address as it may be shown, and what it is in a few words.

    Raises:
        StartError: it does not answer, or cannot start.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    with real_server() as real:
        if real is not None:
            yield shown(real.url), real.why
            return
    asked = options()
    try:
        socket.create_server((asked.host, asked.port)).close()
    except OSError:
        asked = replace(asked, port=0)
    with serving(asked) as process:
        settings: dict[Any, Any] = {PREFECT_API_URL: process.url}
        if asked.auth is not None:
            settings[PREFECT_API_AUTH_STRING] = asked.auth
        with temporary_settings(settings), _ending_with(process, asked):
            try:
                yield process.url, f"started for this service, data in {asked.folder}"
            finally:
                send_what_waits()


@contextmanager
def _ending_with(process: ServerProcess, asked: Options) -> Iterator[None]:
    """While inside, a server that is given up ends the service: as a signal does, and then with a sentence."""

    def watch(leaving: threading.Event) -> None:
        while not leaving.wait(_LOOK_SECONDS):
            if process.gave_up.is_set() and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    try:
        with beside(watch, "server-given-up"):
            yield
    finally:
        if process.gave_up.is_set():
            raise given_up(asked)


def given_up(asked: Options) -> StartError:
    """What is said of a server that ended again and again."""
    return StartError(f"the Prefect server ended again and again; {asked.folder / LOG} says why")


def told(process: ServerProcess, asked: Options) -> str:
    """What the user of ``denoise server`` reads once it is ready."""
    ui = process.url.removesuffix("/api")
    data = f"{asked.folder}/prefect.db" if asked.database is None else without_password(asked.database)
    lines = [
        f"Prefect server: {ui}"
        + ("" if is_loopback(asked.host) else f" (listening on {asked.host}, for other machines)"),
        f"Database:       {data}",
        f"Folder:         {asked.folder} ({LOG}, leases)",
        "Runs of this user on this machine report to it by themselves. Others:",
        f"    export PREFECT_API_URL={process.url if is_loopback(asked.host) else _from_outside(process, asked)}",
    ]
    if asked.auth is not None:
        lines.append("    export PREFECT_API_AUTH_STRING=…   the same auth string as the server's")
        if asked.auth_file is None:
            lines.append("    (the runs here need that one too: the server keeps no copy of it)")
    return "\n".join([*lines, "Ctrl-C ends it."])


def _from_outside(process: ServerProcess, asked: Options) -> str:
    host = socket.gethostname() if asked.host in {"0.0.0.0", "::"} else asked.host  # noqa: S104 - recognised only
    return f"http://{f'[{host}]' if ':' in host else host}:{process.port}/api"

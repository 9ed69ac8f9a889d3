"""`denoise server`: what it is set to, who finds it, what it refuses, and that no secret is written anywhere."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from sqlalchemy import select

import flows.server
from flows import lease_counts, running, service
from flows.errors import StartError
from tests.flows import services
from tests.flows.services import PATIENCE, RealServer, denoise, server, write_images

SECRET = "keeper:pass%word-7f3a9"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, so that its servers are found and no others."""
    monkeypatch.setenv("DENOISE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def test_it_is_set_up_for_this_work(denoise_server: RealServer) -> None:
    url, _, folder = denoise_server
    settings = httpx.get(f"{url}/admin/settings").json()["server"]
    assert settings["concurrency"]["lease_storage"].endswith("lease_storage.filesystem")
    assert settings["concurrency"]["maximum_concurrency_slot_wait_seconds"] <= 5
    assert set(settings["services"]["db_vacuum"]["enabled"]) == {"events", "flow_runs"}
    assert settings["analytics_enabled"] is False
    assert (folder / "server" / "prefect.db").is_file()
    files = [folder / "server" / ".lock", *(folder / "server").glob("prefect.db*")]
    assert [path.name for path in files if path.stat().st_mode & 0o077] == [], "its owner's alone"
    assert httpx.get(url.removesuffix("/api")).status_code == 200, "the UI"
    assert httpx.get(f"{url.removesuffix('/api')}/ui-settings").json()["api_url"] == "/api"
    host, port = url.removeprefix("http://").removesuffix("/api").split(":")
    assert host == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in others:
        if not other.startswith("127."):
            with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
                socket.create_connection((other, int(port)), timeout=2)


def test_runs_here_find_it_and_say_so(denoise_server: RealServer, tmp_path: Path, photo: np.ndarray) -> None:
    url, process, _ = denoise_server
    images = write_images(tmp_path / "in", photo)
    done = denoise("run", images, tmp_path / "out", "--method", "none", **denoise_server.here)
    assert done.returncode == 0, done.stderr
    assert f"Prefect server: {url} (`denoise server` runs here, process {process.process.pid})" in done.stderr
    (run,) = httpx.post(f"{url}/flow_runs/filter", json={"flow_runs": {"name": {"like_": "in: none"}}}).json()
    assert run["state"]["type"] == "COMPLETED"
    told = denoise("doctor", "--json", **denoise_server.here)
    assert url in json.loads(told.stdout)["Prefect server"]


def test_a_second_one_is_refused(denoise_server: RealServer, tmp_path: Path) -> None:
    url, _, folder = denoise_server
    port = url.split(":")[2].removesuffix("/api")
    for options, words in (
        (["--folder", folder / "server", "--port", 0], "another `denoise server` uses"),
        (["--folder", tmp_path / "other", "--port", port], f"--port: {port} of 127.0.0.1 is in use"),
    ):
        refused = denoise("server", *options)
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.slow
def test_a_service_whose_own_server_is_given_up_says_so_and_ends(
    state: Path, tmp_path: Path, photo: np.ndarray
) -> None:
    images = write_images(tmp_path / "in", photo)
    command = ["serve", images, tmp_path / "out", "--method", "none", "--every", "6h"]
    with services.service(tmp_path / "said", *command) as serving:
        serving.wait_for("Ctrl-C ends it")
        deadline = time.monotonic() + PATIENCE
        while "the Prefect server ended again and again" not in serving.said.read_text():
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(serving.process.pid).children():
                    if "flows.embedded_server" in child.cmdline():
                        child.kill()
            assert time.monotonic() < deadline, serving.said.read_text()
            time.sleep(0.1)
        assert serving.process.wait(PATIENCE) == 2
    assert serving.said.read_text().endswith(f"{state / 'server' / service.LOG} says why\n")


@pytest.mark.slow
def test_stopped_killed_and_started_again(state: Path, tmp_path: Path) -> None:
    """Ctrl-C ends it with 0; what a killed one leaves keeps neither the next server nor a run from starting."""
    folder = tmp_path / "server"
    with server(folder) as (url, process):
        port = int(url.split(":")[2].removesuffix("/api"))
        (record,) = running.servers()
        assert record.pid == process.process.pid
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
        assert list((state / "servers").iterdir()), "it could not clear up"
        assert running.servers() == []
    with server(folder, port=port) as (again, process):
        assert again == url
        assert running.healthy() is not None
        assert process.end(signal.SIGINT) == 0
    assert list((state / "servers").iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_records_of_others_and_of_the_dead_do_not_count(state: Path) -> None:
    with running.recorded("http://127.0.0.1:9/api", state, None):
        (path,) = (state / "servers").iterdir()
        good = json.loads(path.read_text())
        assert [one.pid for one in running.servers()] == [os.getpid()]
        assert running.healthy() is None, "nothing answers there"
        path.write_text(json.dumps(good | {"started": good["started"] - 100}))
        assert running.servers() == [], "another process got the number"
        assert not path.exists()
        path.write_text(json.dumps(good | {"machine": "elsewhere"}))
        assert running.servers() == []
        assert path.exists(), "it may live there"
        path.write_text("[1, 2]")
        assert running.servers() == []
        link = path.with_name("link.json")
        path.write_text(json.dumps(good))
        link.symlink_to(path)
        assert len(running.servers()) == 1
        if os.getuid() == 0:
            os.chown(path, 65534, 65534)
            assert running.servers() == [], "another user's"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"host": "0.0.0.0"}, "needs an auth string"),
        ({"host": "no such host"}, "no name or address"),
        ({"port": 70000}, "--port: 70000 is no port"),
        ({"database": "mysql://u:hush@h/d"}, "--database: only PostgreSQL"),
        ({"database": "postgresql://u:hush@h:99999/d"}, "--database: not an address"),
        ({"database": "postgresql+asyncpg://u:hush@h"}, "--database: not an address"),
        ({"environment": {service.DATABASE_VARIABLE: "sqlite:///hush"}}, f"{service.DATABASE_VARIABLE}: only PostgreSQL"),
        ({"auth_file": Path("/no/such/file")}, "--auth-file: /no/such/file cannot be read"),
        ({"environment": {service.AUTH_VARIABLE: ""}}, "is empty"),
        ({"environment": {service.AUTH_VARIABLE: "a:hush\nb"}}, "more than one line"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(asked: dict[str, object], said: str) -> None:
    with pytest.raises(StartError) as error:
        service.options(**{"environment": {}, **asked})  # type: ignore[arg-type]
    assert said in str(error.value)
    assert "hush" not in str(error.value)


def test_an_auth_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "auth"
    file.write_text(SECRET)
    file.chmod(0o640)
    with pytest.raises(StartError, match="chmod 600"):
        service.options(auth_file=file, environment={})
    file.chmod(0o600)
    asked = service.options(auth_file=file, host="0.0.0.0", environment={})
    assert asked.auth == SECRET
    assert SECRET not in repr(asked)
    assert service.environment(asked)["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = denoise("server", "--folder", tmp_path / "file" / "sub", "--port", 0)
    assert refused.returncode == 2
    assert "--folder" in refused.stderr
    assert "cannot be written to" in refused.stderr


def test_a_stand_in_for_prefects_folder_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its profile says where a run reports to, and its name can be told by others."""
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert flows.server._usable_home() == tmp_path / f"denoise-prefect-{os.getuid()}"
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    (tmp_path / f"denoise-prefect-{other}").mkdir()
    with pytest.raises(
        StartError, match=r"\.prefect cannot be written to \(nor its stand-in .*, which is another user's\)"
    ):
        flows.server._usable_home()


def test_passwords_are_not_shown() -> None:
    shown = service.without_password("postgresql+asyncpg://me:hush@host:5432/db?password=hush&ssl=1")
    assert shown == "postgresql+asyncpg://me:***@host:5432/db?password=***&ssl=1"


def test_auth_and_csrf_and_no_secret_in_anything_written(tmp_path: Path, photo: np.ndarray) -> None:
    """With an auth string: strangers stay outside, forged requests too, the user's runs get in, and it is written nowhere."""
    auth = tmp_path / "auth"
    auth.write_text(SECRET + "\n")
    auth.chmod(0o600)
    images = write_images(tmp_path / "in", photo)
    everything = tmp_path / "written"
    here = {"DENOISE_STATE_DIR": str(everything / "state")}
    with server(everything / "server", "--auth-file", auth, **here) as (url, _):
        assert httpx.get(f"{url}/admin/version").status_code == 401
        key = {"Authorization": "Basic " + base64.b64encode(SECRET.encode()).decode()}
        assert httpx.get(f"{url}/admin/version", headers=key).status_code == 200
        assert SECRET.split(":")[1] not in httpx.get(f"{url}/admin/settings", headers=key).text
        forged = httpx.post(f"{url}/flow_runs/filter", json={}, headers=key)
        assert forged.status_code == 403, "no CSRF token"
        assert "CSRF" in forged.text

        done = denoise("run", images, everything / "out", "--method", "none", **here)
        assert done.returncode == 0, done.stderr
        assert url in done.stderr
        (everything / "said").write_text(done.stdout + done.stderr)

        wrong = denoise("run", images, tmp_path / "other", PREFECT_API_URL=url, PREFECT_API_AUTH_STRING="guess")
        assert wrong.returncode == 2
        assert "does not let us in" in wrong.stderr
        assert wrong.stderr.count("\n") == 1
    assert_nowhere(everything, SECRET, "prefect.db")


def assert_nowhere(folder: Path, secret: str, *more: str) -> None:
    """The secret, plain or as it is sent, is in no file below the folder; the files that should be there are."""
    forms = [secret.encode(), secret.rsplit(":", maxsplit=1)[-1].encode(), base64.b64encode(secret.encode())]
    files = [path for path in folder.rglob("*") if path.is_file()]
    wanted = {"config.toml", "environment.json", "log.txt", "results.parquet", "report.html", *more}
    assert wanted <= {f.name for f in files}
    for path in files:
        content = path.read_bytes()
        assert not any(form in content for form in forms), path


@pytest.fixture(scope="module")
def postgres() -> Iterator[tuple[str, int, Path]]:
    """A PostgreSQL with one user, `keeper`, on a free port of the loopback; its password, its port and its folder."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    someone: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="denoise-postgres-"))
    password = "sesam-8c1f"
    (folder / "password").write_text(password)
    if os.getuid() == 0:  # it does not run as root
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and setpriv is not installed")
        someone = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        for path in (folder, folder / "password"):
            os.chown(path, 65534, 65534)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: object) -> None:
        # To a file: the server keeps what it inherits open.
        with (folder.parent / f"{folder.name}.log").open("ab") as log:
            subprocess.run(
                [*someone, *map(str, command)], check=True, stdout=log, stderr=log, cwd="/", timeout=PATIENCE
            )

    data = folder / "data"
    try:
        run("initdb", "-D", data, "-U", "keeper", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", settings, "start")
        try:
            yield password, port, folder
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (folder.parent / f"{folder.name}.log").unlink(missing_ok=True)


@pytest.mark.slow
def test_a_run_on_postgresql(postgres: tuple[str, int, Path], tmp_path: Path, photo: np.ndarray) -> None:
    """Its database is the one that is named, and the password stays where it is given."""
    password, port, _ = postgres
    images, everything = write_images(tmp_path / "in", photo), tmp_path / "written"
    here = {"DENOISE_STATE_DIR": str(everything / "state")}
    url = f"postgresql://keeper:{password}@127.0.0.1:{port}/postgres"
    with server(everything / "server", **here, PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as (api, process):
        assert f"postgresql+asyncpg://keeper:***@127.0.0.1:{port}/postgres" in process.said.read_text()
        for one in [
            process.process.pid,
            *(c.pid for c in psutil.Process(process.process.pid).children(recursive=True)),
        ]:
            assert password not in " ".join(psutil.Process(one).cmdline())
        done = denoise("run", images, everything / "out", "--method", "tv", "--slots", 1, **here)
        assert done.returncode == 0, done.stderr
        assert api in done.stderr
        (everything / "said").write_text(done.stdout + done.stderr)
        assert password not in httpx.get(f"{api}/admin/settings").text
        (limit,) = httpx.post(f"{api}/v2/concurrency_limits/filter", json={}).json()
        assert (limit["limit"], limit["active_slots"]) == (1, 0)
        assert process.end() == 0
    assert not (everything / "server" / "prefect.db").exists()
    with server(everything / "server", "--database", url, **here) as (api, _):
        (run,) = httpx.post(f"{api}/flow_runs/filter", json={}).json()
        assert run["state"]["message"].startswith("2 images done in ")
    assert_nowhere(everything, password)


def take_a_slot(api: str, limit: str) -> None:
    """A slot of a new limit of one, by a lease, as a run takes it."""
    httpx.post(f"{api}/v2/concurrency_limits/", json={"name": limit, "limit": 1}).raise_for_status()
    asked = {"names": [limit], "slots": 1, "lease_duration": 60}
    httpx.post(f"{api}/v2/concurrency_limits/increment-with-lease", json=asked).raise_for_status()
    assert taken(api, limit) == 1


def taken(api: str, limit: str) -> int:
    return int(httpx.get(f"{api}/v2/concurrency_limits/{limit}").json()["active_slots"])


@pytest.mark.slow
@pytest.mark.usefixtures("state")
def test_a_slot_without_its_lease_is_free_when_the_server_starts(
    postgres: tuple[str, int, Path], tmp_path: Path
) -> None:
    """Its file lies in another folder, or was deleted; a lease that is there is kept."""
    password, port, _ = postgres
    database = ["--database", f"postgresql://keeper:{password}@127.0.0.1:{port}/postgres"]
    with server(tmp_path / "one", *database) as (api, _):
        take_a_slot(api, "denoise here cpu")
    with server(tmp_path / "one", *database) as (api, _):
        assert taken(api, "denoise here cpu") == 1
    with server(tmp_path / "other", *database) as (api, _):
        assert taken(api, "denoise here cpu") == 0
    with server(tmp_path / "sqlite") as (api, _):
        take_a_slot(api, "denoise here cpu")
    shutil.rmtree(tmp_path / "sqlite" / "concurrency_leases")
    with server(tmp_path / "sqlite") as (api, _):
        assert taken(api, "denoise here cpu") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("state")
def test_a_database_serves_one_server_at_a_time(postgres: tuple[str, int, Path], tmp_path: Path) -> None:
    password, port, _ = postgres
    database = ["--database", f"postgresql://keeper:{password}@127.0.0.1:{port}/postgres"]
    with server(tmp_path / "one", *database) as (_, process):
        refused = denoise("server", "--folder", tmp_path / "other", "--port", 0, *database)
        assert refused.returncode == 2
        assert "--database: another `denoise server` uses postgresql+asyncpg://keeper:***@127.0.0.1" in refused.stderr
        assert refused.stderr.count("\n") == 1
        process.process.kill()
        process.process.wait()
    with server(tmp_path / "other", *database):
        pass


def test_counts_of_slots_are_set_right_by_their_leases(tmp_path: Path) -> None:
    from prefect.server.concurrency.lease_storage import ConcurrencyLimitLeaseMetadata, get_concurrency_lease_storage
    from prefect.server.database import provide_database_interface
    from prefect.settings import temporary_settings

    counted = {"denoise a cpu": 2, "denoise b cpu": 1, "denoise c cpu": 0, "denoise d cpu": 0, "somebody's": 1}
    # s until they expire: what has expired is given back later
    leases = {"denoise a cpu": 60, "denoise c cpu": -1, "denoise d cpu": 60}
    behind = "denoise d cpu"  # renewed in its file, when the server was killed before it wrote the index

    async def right() -> dict[str, float]:
        database = provide_database_interface()
        await database.create_db()
        limits = database.ConcurrencyLimitV2
        async with database.session_context(begin_transaction=True) as session:
            made = {name: limits(name=name, limit=4, active_slots=slots) for name, slots in counted.items()}
            session.add_all(made.values())
            await session.flush()
            known = {name: limit.id for name, limit in made.items()}
        made_of = {
            name: await get_concurrency_lease_storage().create_lease(
                [known[name]], timedelta(seconds=seconds), ConcurrencyLimitLeaseMetadata(slots=1)
            )
            for name, seconds in leases.items()
        }
        (index,) = tmp_path.rglob("expirations.json")
        earlier = {str(made_of[behind].id): (datetime.now(UTC) - timedelta(seconds=60)).isoformat()}
        index.write_text(json.dumps(json.loads(index.read_text()) | earlier))
        await lease_counts.set_right()
        async with database.session_context() as session:
            found = {limit.name: limit.active_slots for limit in (await session.execute(select(limits))).scalars()}
        await (await database.engine()).dispose()
        return found

    own = {
        "home": str(tmp_path),
        "server.database.connection_url": f"sqlite+aiosqlite:///{tmp_path}/prefect.db",
        "server.concurrency.lease_storage": "prefect.server.concurrency.lease_storage.filesystem",
    }
    with temporary_settings(own):  # type: ignore[arg-type]
        found = asyncio.run(right())
    right_ones = {"denoise a cpu": 1, "denoise b cpu": 0, "denoise c cpu": 1, "denoise d cpu": 1}
    assert found == {**right_ones, "somebody's": 1}


@pytest.mark.slow
def test_a_database_that_does_not_let_us_in_is_one_sentence(postgres: tuple[str, int, Path], tmp_path: Path) -> None:
    password, port, _ = postgres
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    for url, words in (
        (f"postgresql://keeper:hush-hush@127.0.0.1:{port}/postgres", "password authentication failed"),
        (f"postgresql://keeper:{password}@127.0.0.1:{port}/nowhere", 'database "nowhere" does not exist'),
        (f"postgresql://keeper:{password}@127.0.0.1:{closed}/postgres", "--database: "),
    ):
        refused = denoise("server", "--folder", tmp_path, "--port", 0, "--database", url)
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert words in refused.stderr
        assert "cannot be used" in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert password not in refused.stderr
        assert "hush" not in refused.stderr

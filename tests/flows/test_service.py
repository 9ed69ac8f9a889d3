"""`denoise server`: what it is set to, who finds it, what it refuses, and that no secret is written anywhere."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest

from flows import running, service
from flows.errors import StartError
from tests.flows.services import RealServer, denoise, server, write_images

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
    assert_nowhere(everything, SECRET)


def assert_nowhere(folder: Path, secret: str) -> None:
    """The secret, plain or as it is sent, is in no file below the folder; the files that should be there are."""
    forms = [secret.encode(), secret.split(":")[1].encode(), base64.b64encode(secret.encode())]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"config.toml", "environment.json", "log.txt", "results.parquet", "prefect.db"} <= {f.name for f in files}
    for path in files:
        content = path.read_bytes()
        assert not any(form in content for form in forms), path

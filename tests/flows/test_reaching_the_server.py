"""Servers behind TLS, a proxy, a header or a password: whether one answers is asked as Prefect's own client would ask."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prefect.client.orchestration import get_client
from prefect.settings import temporary_settings

from flows import dask_engine, doctor, schedule, server, server_watch
from flows.config import RunConfig
from flows.denoise_directory import denoise_directory
from flows.engine import crashed
from flows.errors import StartError
from flows.runs import Runs
from tasks import admission
from tests.flows.services import PATIENCE

PASSWORD = "s3cret-pw"
Answer = Callable[[http.server.BaseHTTPRequestHandler], tuple[int, str]]


def as_prefect(request: http.server.BaseHTTPRequestHandler) -> tuple[int, str]:
    return 200, '"3.8.8"' if request.path.endswith("/admin/version") else "true"


@contextmanager
def listening(answer: Answer, certificate: Path | None = None) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server on a free port of the loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if body.startswith("<") else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a handshake that the client broke off

    with Server(("127.0.0.1", 0), Handler) as serving:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            serving.socket = context.wrap_socket(serving.socket, server_side=True)
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield serving
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its certificate for 127.0.0.1, which nobody but itself vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(params=["own CA", "unverified", "proxy", "header", "password"])
def behind(
    request: pytest.FixtureRequest, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[str]]]:
    """Prefect set to a server that only its own client reaches: the address, and the paths that the server was asked for."""
    asked: list[str] = []

    def answer(request_: http.server.BaseHTTPRequestHandler) -> tuple[int, str]:
        if request.param == "header" and request_.headers["X-Door"] != "open":
            return 503, "{}"
        if request.param == "password" and not str(request_.headers["Authorization"]).startswith("Basic "):
            return 503, "{}"
        asked.append(request_.path)
        return as_prefect(request_)

    settings: dict[Any, Any] = {}
    tls = request.param in {"own CA", "unverified"}
    with listening(answer, certificate if tls else None) as serving:
        url = f"http{'s' * tls}://127.0.0.1:{serving.server_port}/api"
        if request.param == "own CA":
            settings["api.ssl_cert_file"] = str(certificate)
        elif request.param == "unverified":
            settings["api.tls_insecure_skip_verify"] = True
        elif request.param == "header":
            settings["client.custom_headers"] = {"X-Door": "open"}
        elif request.param == "password":
            url = url.replace("://", f"://me:{PASSWORD}@")
        else:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{serving.server_port}")
            url = "http://prefect.invalid:4200/api"
        with temporary_settings({"api.url": url, **settings}):
            yield url, asked


def test_a_run_starts_and_the_doctor_says_so(behind: tuple[str, list[str]]) -> None:
    url, _ = behind
    with server.real_server() as real:
        assert real is not None
        assert real.url == url
        said = [str(real), doctor._server()]
    assert said[1].endswith(" answers: as PREFECT_API_URL says")
    assert PASSWORD not in "".join(said)


def test_the_watch_sees_it(behind: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, asked = behind
    said: list[str] = []
    monkeypatch.setattr(server_watch, "_say", said.append)
    monkeypatch.setattr(server_watch, "_TOLD_SECONDS", 0.0)
    monkeypatch.setattr(server_watch, "_POLL_SECONDS", 0.1)
    deadline = time.monotonic() + PATIENCE
    with server_watch.watched(url):
        while len(asked) < 5 and not said and time.monotonic() < deadline:
            time.sleep(0.05)
    assert said == []
    assert len(asked) >= 5


def test_a_worker_of_dask_reaches_it(behind: tuple[str, list[str]], tmp_path: Path) -> None:
    url, _ = behind
    probe = tmp_path / "runs" / ".seen"
    probe.parent.mkdir()
    probe.touch()
    asked = dask_engine.Asked("cpu", tmp_path, probe, server.shown(url), dask_engine._versions())
    assert dask_engine.look(asked).problem is None


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_that_says_that_nobody_is_there_is_no_answer(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    told = threading.Event()
    monkeypatch.setattr(server_watch, "_say", lambda words: (said.append(words), told.set()))
    monkeypatch.setattr(server_watch, "_TOLD_SECONDS", 0.0)
    monkeypatch.setattr(server_watch, "_POLL_SECONDS", 0.1)
    with listening(lambda _: (status, "")) as serving:
        url = f"http://me:{PASSWORD}@127.0.0.1:{serving.server_port}/api"
        with server_watch.watched(url):
            assert told.wait(PATIENCE)
        assert f"127.0.0.1:{serving.server_port}/api does not answer" in said[0]
        assert f"it answers {status}" in said[0]
        assert PASSWORD not in said[0]


def refused(url: str, **settings: object) -> str:
    """In what words a run would not start."""
    with temporary_settings({"api.url": url, **settings}):  # type: ignore[dict-item]
        with pytest.raises(StartError) as error, server.real_server():
            pass
        assert doctor._server() == f"{error.value}; a run would not start"
    return str(error.value)


def test_what_is_no_prefect_server_is_a_sentence(certificate: Path, tmp_path: Path) -> None:
    page = "<html>Please sign in</html>"
    with listening(lambda _: (200, page)) as serving:
        at = f"http://me:{PASSWORD}@127.0.0.1:{serving.server_port}"
        shown = f"http://127.0.0.1:{serving.server_port}"
        assert refused(f"{at}/api") == f"what answers at {shown}/api is no Prefect server"
        assert refused(at) == (
            f"what answers at {shown} is no Prefect server; the address of one ends in /api: {shown}/api"
        )
    for status, words in ((404, "is no Prefect server"), (401, "does not let us in"), (403, "answers 403")):
        with listening(lambda _, status=status: (status, "{}")) as serving:  # type: ignore[misc]
            said = refused(f"http://me:{PASSWORD}@127.0.0.1:{serving.server_port}/api")
            assert words in said
            assert PASSWORD not in said
    said = refused(f"http://me:{PASSWORD}@127.0.0.1:{serving.server_port}/api")
    assert "does not answer" in said
    assert PASSWORD not in said
    assert "none such as http://HOST:4200/api" in refused(f"http://me:{PASSWORD[:2]}/{PASSWORD[2:]}@host:4200/api")
    with listening(as_prefect, certificate) as serving:
        url = f"https://127.0.0.1:{serving.server_port}/api"
        assert "certificate" in refused(url)
        assert "PREFECT_API_SSL_CERT_FILE cannot be read" in refused(
            url, **{"api.ssl_cert_file": str(tmp_path / "no.pem")}
        )


def test_no_password_in_what_a_worker_or_a_slot_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probe = tmp_path / "runs" / ".seen"
    probe.parent.mkdir()
    probe.touch()
    monkeypatch.setattr(admission, "_POLL_SECONDS", 0.0)
    with listening(lambda _: (500, "{}")) as serving:
        url = f"http://me:{PASSWORD}@127.0.0.1:{serving.server_port}/api"
        with temporary_settings({"api.url": url}):
            assert admission._acquired("denoise here cpu") is None
    shown = server.shown(url)
    asked = dask_engine.Asked("cpu", tmp_path, probe, shown, dask_engine._versions())
    with temporary_settings({"api.url": url}):
        said = [dask_engine.look(asked).problem, dask_engine.look(asked._replace(server="http://head/api")).problem]
    assert f"does not reach the Prefect server at {shown} (" in str(said[0])
    assert f"reports to {shown}; start it with PREFECT_API_URL=http://head/api" in str(said[1])
    assert "did not give a slot" in caplog.text
    assert f"'{shown}/" in caplog.text
    assert PASSWORD not in f"{said}{caplog.text}"


def test_no_proxy_stands_between_a_run_and_the_servers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "intranet")
    server.prepare_environment()
    assert os.environ["no_proxy"] == "intranet,localhost,127.0.0.1,::1"
    server.prepare_environment()
    assert os.environ["no_proxy"] == "intranet,localhost,127.0.0.1,::1"
    with (
        listening(as_prefect) as serving,
        temporary_settings({"api.url": f"http://127.0.0.1:{serving.server_port}/api"}),
    ):
        assert " answers" in doctor._server()


def test_no_password_of_the_address_is_in_what_a_service_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor in a run's log: httpx names the address in its errors."""

    async def none(*_: object) -> int:
        return 0

    async def applied() -> Any:
        return uuid4()

    async def made(**_: object) -> Any:
        return SimpleNamespace(aapply=applied)

    async def asks(runs: Any, *_: object) -> None:
        await runs.client.read_deployment(runs.deployment)

    class Said(Exception):
        pass

    def tell(line: str) -> None:
        raise Said(line)

    monkeypatch.setattr(schedule, "_AWAY_SECONDS", -1.0)
    monkeypatch.setattr(denoise_directory, "ato_deployment", made)
    for name in ("_refuse_another_host", "_cancel_missed"):
        monkeypatch.setattr(schedule, name, none)
    config = RunConfig(input=tmp_path, output=tmp_path / "out")
    with listening(lambda _: (503, "{}")) as serving:
        url = f"http://me:{PASSWORD}@127.0.0.1:{serving.server_port}/api"
        with temporary_settings({"api.url": url, "client.max_retries": 0}):

            async def away() -> None:
                async with get_client() as client:
                    await schedule._look_after(Runs(client, uuid4()), "night", "http://there", tell)

            with pytest.raises(Said) as waiting:
                asyncio.run(away())
            monkeypatch.setattr(schedule, "_look_after", asks)
            with pytest.raises(StartError) as broken:
                asyncio.run(schedule._serve(config, schedule.when(every="6h"), "night", "http://there", print))
            with caplog.at_level("INFO", logger="tasks"):
                crashed(uuid4())
    for said in (str(waiting.value), str(broken.value), caplog.messages[-1]):
        assert f"503 Service Unavailable' for url 'http://127.0.0.1:{serving.server_port}/api/" in said
        assert PASSWORD not in said

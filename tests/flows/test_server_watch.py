"""A server that goes away, and one that comes back."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from flows import server_watch

RUN = """
import sys, time
from flows import server_watch
server_watch.LOST_SECONDS, server_watch._TOLD_SECONDS, server_watch._POLL_SECONDS = 2.0, 0.5, 0.2
with server_watch.watched(sys.argv[1]):
    print("watched", flush=True)
    time.sleep(60)
"""


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)  # it is there
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_a_lost_server_ends_the_process_with_a_sentence(server: http.server.ThreadingHTTPServer) -> None:
    url = f"http://127.0.0.1:{server.server_port}/api"
    with subprocess.Popen([sys.executable, "-c", RUN, url], stdout=-1, stderr=-1, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "watched\n"
        time.sleep(3)
        assert run.poll() is None, "while it answers, whatever it answers"
        server.shutdown()
        server.server_close()
        _, said = run.communicate(timeout=50)
    assert run.returncode == server_watch.ENDED
    assert f"{url} does not answer; waiting for it" in said
    assert said.endswith(f"{url} is lost; the same command goes on where this one stopped\n")


def test_the_watch_ends_with_the_block(server: http.server.ThreadingHTTPServer) -> None:
    before = threading.active_count()
    with server_watch.watched(f"http://127.0.0.1:{server.server_port}/api"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before

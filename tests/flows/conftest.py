"""What the tests of whole processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.services import RealServer, server


@pytest.fixture(scope="session")
def denoise_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("denoise-server")
    with server(folder / "server", DENOISE_STATE_DIR=str(folder / "state")) as (url, service):
        yield RealServer(url, service, folder)

"""What the tests of whole processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.flows.services import Service, server


class RealServer(NamedTuple):
    """A `denoise server` that goes on for the whole session; its state folder is its own, so that only who is told finds it."""

    url: str
    service: Service
    folder: Path

    @property
    def here(self) -> dict[str, str]:
        """The environment in which runs find it by themselves."""
        return {"DENOISE_STATE_DIR": str(self.folder / "state")}


@pytest.fixture(scope="session")
def denoise_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("denoise-server")
    with server(folder / "server", DENOISE_STATE_DIR=str(folder / "state")) as (url, service):
        yield RealServer(url, service, folder)

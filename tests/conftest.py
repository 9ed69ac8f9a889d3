"""What all tests share: a Prefect of their own, and small real images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before anything imports Prefect: its database, and the lock files of the slots, must be the tests' own.
_OWN = tempfile.mkdtemp(prefix="denoise-tests-")
os.environ["PREFECT_HOME"] = f"{_OWN}/prefect"
os.environ["DENOISE_LOCK_DIR"] = f"{_OWN}/locks"
os.environ["DENOISE_STATE_DIR"] = f"{_OWN}/state"  # no server that runs here already is the tests' to use
for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

from flows.server import prepare_environment  # noqa: E402
from tasks import process  # noqa: E402
from tests import watching  # noqa: E402

prepare_environment()
# Here every warning is an error, and a library that silences one of its own does so for all threads or none, as they take turns.
process._TURN_SECONDS = 0.005

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Tests in several processes: what a test printed travels as UTF-8, and file names need not be any."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_folder() -> Iterator[None]:
    import shutil

    yield
    shutil.rmtree(_OWN, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The embedded Prefect server, started once for all tests that run flows."""
    from flows.server import connected

    with connected() as server:
        yield server.url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser. While it is open this thread has an event loop, so that no flow can run in the same module."""
    pytest.importorskip("playwright.sync_api")
    if watching.browser_program() is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with watching.browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A real photograph, (512, 512, 3) uint8."""
    from skimage import data

    image: np.ndarray = data.astronaut()
    return image


@pytest.fixture
def tree(tmp_path: Path, photo: np.ndarray) -> Path:
    """A small directory of real crops: PNG grey and RGB and 16 bit, JPEG, TIFF, one in a subfolder."""
    import tifffile
    from PIL import Image

    root = tmp_path / "input"
    (root / "sub").mkdir(parents=True)
    Image.fromarray(photo[0:40, 200:248]).save(root / "rgb.png")
    Image.fromarray(photo[40:80, 200:240, 1]).save(root / "sub" / "grey.png")
    Image.fromarray(photo[80:120, 200:240]).save(root / "photo.jpg", quality=95)
    tifffile.imwrite(root / "deep.tif", photo[120:160, 200:240, 0].astype(np.uint16) * 200 + 5000)
    return root

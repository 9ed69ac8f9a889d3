"""Every fault of the machine, in a run that is then started again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.survival import faults
from tests.survival.faults import FAULTS, Night
from tests.survival.kills import Undisturbed

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> tuple[Path, Undisturbed]:
    folder = tmp_path_factory.mktemp("undisturbed")
    images = faults.write_images(folder)
    expected = faults.undisturbed(folder, images)
    assert len(expected.files) == len(expected.rows) == faults.IMAGES
    return images, expected


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_nothing_is_lost_by(fault: Callable[[Night], None], given: tuple[Path, Undisturbed], tmp_path: Path) -> None:
    try:
        fault(Night(tmp_path, *given))
    except faults.Unavailable as reason:
        pytest.skip(str(reason))

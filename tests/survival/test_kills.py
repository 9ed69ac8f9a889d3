"""Runs killed at random moments and resumed give what an undisturbed run gives, and do nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survival.faults import write_images
from tests.survival.kills import OPTIONS, kill_and_resume, undisturbed


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(kills: int, tmp_path: Path) -> None:
    images = write_images(tmp_path, 24)
    expected = undisturbed(images, tmp_path / "undisturbed", *OPTIONS)
    assert len(expected.files) == len(expected.rows) == 24
    found = kill_and_resume(images, tmp_path, expected, kills=kills, seed=kills)
    assert found.problems == []
    assert found.kills == kills

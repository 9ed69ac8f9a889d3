"""A run over many images takes no more memory at its end than near its beginning."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.survival import memory


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_after_1000_images_is_that_after_200(tmp_path: Path) -> None:
    found = memory(tmp_path, 1000)
    assert found["problems"] == []
    assert max(found["curve"]) == 1000  # type: ignore[call-overload]
    assert abs(found["growth"]) < 0.05  # type: ignore[arg-type]

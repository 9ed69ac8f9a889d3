"""Runs killed at random moments and resumed give what an undisturbed run gives, and do nothing twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from flows.cli import main
from tests.survival.faults import write_images
from tests.survival.kills import OPTIONS, PATIENCE, files, kill_and_resume, rows, temporaries, undisturbed

# Every stack is too large for memory; the process group is killed as the N-th page is written.
_IN_BLOCKS = """
import itertools, os, signal, sys
from denoise_core.images.tiff_planes import Copy
from flows.cli import main
from tasks import blocks
blocks.LEAST_SAMPLES, blocks.BLOCK_SAMPLES = 0, 5000
pages, fatal, put = itertools.count(1), int(sys.argv.pop(1)), Copy.put
def dying(copy, page, samples):
    if next(pages) == fatal:
        os.killpg(0, signal.SIGKILL)
    put(copy, page, samples)
Copy.put = dying
sys.exit(main())
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed(kills: int, tmp_path: Path) -> None:
    images = write_images(tmp_path, 24)
    expected = undisturbed(images, tmp_path / "undisturbed", *OPTIONS)
    assert len(expected.files) == len(expected.rows) == 24
    found = kill_and_resume(images, tmp_path, expected, kills=kills, seed=kills)
    assert found.problems == []
    assert found.kills == kills


@pytest.mark.usefixtures("prefect_server")
def test_killed_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """A stack that is written as it is denoised: it begins anew, and ends as one that was done whole."""
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    frames = np.random.default_rng(0).normal(900, 40, (7, 40, 48)).astype(np.uint16)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(images / name, frames, photometric="minisblack", compression="zlib", metadata={"axes": "TYX"})
        frames = frames[::-1]
    assert main(["run", str(images), str(tmp_path / "whole"), "--method", "nl-bayes"]) == 0

    def run(fatal: int) -> int:
        command = [
            sys.executable,
            "-c",
            _IN_BLOCKS,
            str(fatal),
            "run",
            images,
            output,
            "--method",
            "nl-bayes",
            "--slots",
            "1",
        ]
        return subprocess.run(command, start_new_session=True, timeout=PATIENCE, check=False).returncode

    assert run(4) == -signal.SIGKILL
    assert [path.parent.name for path in temporaries(output)] == ["images"], "it was killed in the middle of a file"
    assert len(files(output)) == 1, "and that is all there is"
    assert run(0) == 0
    assert temporaries(output) == []
    assert files(output) == files(tmp_path / "whole")
    expected, found = rows(tmp_path / "whole"), rows(output)
    for name, row in expected.items():
        lasting = {key: value for key, value in row.items() if not isinstance(value, float)}
        assert {key for key, value in lasting.items() if found[name][key] != value} == {"note"}
        assert all(found[name][key] == pytest.approx(row[key], rel=1e-6) for key in row.keys() - lasting.keys())

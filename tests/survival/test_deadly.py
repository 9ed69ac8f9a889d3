"""Images that kill the process that decodes them: a run dies over one, and another, and the third one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import table
from tasks.ledger import run_folders
from tasks.scan import scan
from tests.denoise_core.images.image_files import chunk, picture, png
from tests.survival.faults import write_images
from tests.survival.kills import OPTIONS, PATIENCE, Started, files, rows, undisturbed
from tests.tasks.test_in_work import dies
from tests.tasks.test_in_work import run as fresh

# In every process that Python starts: a file that says so ends it, as the out-of-memory killer does.
_DEADLY = """
import os, signal
from denoise_core import images
decode = images.decode
def dying(data, **options):
    if b"deadly" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(data, **options)
images.decode = dying
"""


def run(images: Path, output: Path, folder: Path, *options: object) -> tuple[int, str]:
    """A `denoise run` in which the deadly file is deadly."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_DEADLY)
    path = os.pathsep.join(filter(None, (str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "run", *map(str, (images, output, *options))],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["nl-bayes", pytest.param("zs-fit", marks=pytest.mark.slow)])
def test_an_image_that_kills_the_run_fails_alone_in_the_third_one(method: str, tmp_path: Path) -> None:
    images, output = write_images(tmp_path, 6), tmp_path / "out"
    (images / "deadly.png").write_bytes(png(picture(24, 24), before=chunk(b"tEXt", b"Title\0deadly")))
    options = ("--method", method, "--noise", "gauss:25", "--slots", 1)
    for _ in range(2):
        assert run(images, output, tmp_path / "site", *options)[0] == -signal.SIGKILL
    status, said = run(images, output, tmp_path / "site", *options)
    assert status == 1, said
    done, _ = table.read(output / "results.parquet")
    (failed,) = [row for row in done if row["status"] != "done"]
    assert failed["error"] == "the worker process died: killed, out of memory, or crashed"
    assert failed["source"] == "deadly.png"
    assert len(done) == 7


@pytest.mark.parametrize("method", ["nl-bayes", pytest.param("zs-fit", marks=pytest.mark.slow)])
def test_images_that_were_in_work_by_chance_are_done_as_ever(method: str, tmp_path: Path) -> None:
    """Two runs that somebody killed at the same images: the third one gives what an undisturbed one gives."""
    images, output = write_images(tmp_path, 6), tmp_path / "out"
    options = [*map(str, OPTIONS[2:]), "--method", method]
    expected = undisturbed(images, tmp_path / "undisturbed", *options)
    unlucky = scan(images, output, max_pixels=10**8, config_digest="").todo[1:4]
    for number in (1, 2):
        dies(fresh(output, number), *unlucky)
    status, said = Started.of(images, output, *options).wait()
    assert status == 0, said
    assert f"{len(unlucky)} images in work when earlier runs died" in (run_folders(output)[-1] / "log.txt").read_text()
    found, wanted = ({k: v for k, v in one.items() if ".json" not in k} for one in (files(output), expected.files))
    assert found == wanted
    assert rows(output) == expected.rows

"""What a terminal shows: plain lines elsewhere, a bar with time left on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from flows import console
from flows.progress import Progress, Summary

BAR = """
import sys
from flows import console
from flows.progress import Progress
with console.progress_on(sys.stderr.isatty()) as show:
    show(Progress(total=10, done=4, failed=1, part=0.0, seconds=60.0, waiting=None))
"""


def progress(**changes: object) -> Progress:
    values: dict[str, object] = {"total": 10, "done": 4, "failed": 1, "part": 0.0, "seconds": 60.0, "waiting": None}
    return Progress(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (41, "41 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert console.duration(seconds) == said


def test_time_left_follows_the_rate_so_far() -> None:
    assert progress().seconds_left == pytest.approx(60)
    assert progress(part=1.0).seconds_left == pytest.approx(40)
    assert progress(done=0, failed=0).seconds_left is None
    assert progress(done=10, failed=1).seconds_left == 0


def test_plain_lines_are_few_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_on(False) as show:
        for done in range(1, 10):
            show(progress(done=done, failed=0))
        show(progress(done=9, failed=1))
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("1 of 10 done, 1 images a minute, 9 min 00 s left")
    assert lines[-1].startswith("9 of 10 done, 1 failed")
    assert len(lines) == 2


def test_a_bar_on_a_terminal() -> None:
    parent, child = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", BAR], stderr=child, check=False, env={**os.environ, "COLUMNS": "120"}
        )
        shown = os.read(parent, 65536).decode()
    finally:
        os.close(parent)
        os.close(child)
    assert done.returncode == 0
    assert "50%" in shown
    assert "1 min 00 s left" in shown
    assert "4 images a minute" in shown


def test_names_cannot_drive_the_terminal() -> None:
    assert console.printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


def test_the_summary_names_failures_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [{"source": f"{n}.png", "error": "broken"} for n in range(12)]
    console.print_summary(
        Summary("0001", "/out", 20, 5, 3, 12, 2, False, 61.0, 20.0, 29.0, "/out/r", "/out/h", failures)
    )
    said = capsys.readouterr()
    assert "5 done, 3 done earlier, 12 failed, 2 not images, in 1 min 01 s" in said.out
    assert "20.00 dB noisy, 29.00 dB denoised" in said.out
    assert said.err.count("broken") == 10
    assert "2 more" in said.err

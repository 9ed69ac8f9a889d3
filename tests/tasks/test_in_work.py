"""What a run leaves behind where it dies, and what later runs make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from denoise_core.device import choose
from denoise_core.images import Header
from tasks.in_work import died_over, noted
from tasks.ledger import Part
from tasks.settings import Settings
from tasks.work import Source

A, B = (Source(name, name * 64, Header("png", "YX", (4, 4), "uint8")) for name in "ab")


class Death(BaseException):
    """The end of the process: nothing of it is left to tidy up."""


def run(output: Path, number: int) -> Settings:
    settings = Settings(
        input=output, output=output, method="none", preset="fast", noise="none", clip_noise=False, reference=None, seed=0,
        device=choose("cpu"), slots=1, max_pixels=10**8, run_id=f"{number:04d}-20261120T000000Z", config_digest="d",
        steps_are_seen=False, has_limits=False,
    )  # fmt: skip
    settings.run_folder.mkdir(parents=True, exist_ok=True)
    return settings


def dies(settings: Settings, *sources: Source) -> None:
    """A run whose process dies while it has these in work."""
    for source in sources:
        with noted(source, settings):
            notes = list(settings.run_folder.iterdir())
        for note in notes:
            note.touch()


def answers(settings: Settings, source: Source, status: str, error_type: str | None = None) -> None:
    row = {"source": source.name, "source_sha256": source.sha256, "status": status, "error_type": error_type}
    Part(settings.run_folder, 1).append(row)


def test_nothing_is_left_where_the_work_ends_however_it_does(tmp_path: Path) -> None:
    settings = run(tmp_path, 1)
    with noted(A, settings):
        assert len(list(settings.run_folder.iterdir())) == 1
    with pytest.raises(Death), noted(A, settings):
        raise Death
    assert list(settings.run_folder.iterdir()) == []


def test_two_deaths_are_needed_and_an_answer_clears_them(tmp_path: Path) -> None:
    dies(run(tmp_path, 1), A, B)
    assert died_over(tmp_path, [A, B]) == set()
    dies(run(tmp_path, 2), A)
    assert died_over(tmp_path, [A, B]) == {A}
    assert died_over(tmp_path, [replace(A, sha256="c" * 64)]) == set(), "another file under the name"
    answers(run(tmp_path, 3), A, "failed", "WorkerDied")
    dies(run(tmp_path, 3), A)
    assert died_over(tmp_path, [A, B]) == {A}, "it killed its workers: no run is to die over it again"
    answers(run(tmp_path, 4), A, "failed", "ImageError")
    assert died_over(tmp_path, [A, B]) == set()


def test_a_row_of_the_run_that_died_counts(tmp_path: Path) -> None:
    """The note may outlive the row by an instant."""
    dies(run(tmp_path, 1), A)
    dies(run(tmp_path, 2), A)
    answers(run(tmp_path, 2), A, "done")
    assert died_over(tmp_path, [A]) == set()


def test_notes_that_a_row_answers_go_and_the_ledgers_are_read_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        dies(run(tmp_path, number), A)
    dies(run(tmp_path, 3), B)
    answers(run(tmp_path, 3), A, "done")
    assert died_over(tmp_path, [A, B]) == set()
    monkeypatch.setattr("tasks.ledger.rows_of", lambda _: pytest.fail("a ledger was read"))
    assert died_over(tmp_path, [A, B]) == set()
    monkeypatch.undo()
    dies(run(tmp_path, 4), B)
    assert died_over(tmp_path, [A, B]) == {B}, "its own note was kept"

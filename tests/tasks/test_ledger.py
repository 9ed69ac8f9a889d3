"""The ledger survives kills: torn lines, several runs, missing outputs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from pathlib import Path
from typing import BinaryIO

import pytest

from tasks import ledger, report, table
from tasks.ledger import Part, Tail


def row(name: str, **more: object) -> dict[str, object]:
    return {"source": name, "status": "done", **more}


def test_a_torn_line_is_as_if_it_had_never_been_written(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "0001-20261120T000000Z"
    part = Part(run, 1)
    part.append(row("a"))
    part.append(row("b"))
    whole = part.path.read_bytes()
    for cut in range(1, len(whole)):
        part.path.write_bytes(whole[:cut])
        names = [r["source"] for r in ledger.rows_of(run)]
        assert names == ["a", "b"][: len(names)]
        Part(run, 1).append(row("c"))
        assert [r["source"] for r in ledger.rows_of(run)] == [*names, "c"]


def test_the_newest_run_wins_and_runs_are_ordered_by_number_not_by_text(tmp_path: Path) -> None:
    for number in (2, 10000, 9999):
        Part(tmp_path / "runs" / f"{number:04d}-20261120T000000Z", 1).append(row("a", seed=number))
    assert ledger.latest_rows(tmp_path)["a"]["seed"] == 10000


def test_other_folders_among_the_runs_are_left_alone(tmp_path: Path) -> None:
    for name in ("mine", "²", "9999999999999999999-x", "0001"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / ".lock").touch()
    assert ledger.run_folders(tmp_path) == []
    assert ledger.latest_rows(tmp_path) == {}


def test_done_needs_the_same_source_the_same_configuration_and_the_output(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"12345")
    good = row("a.png", source_sha256="s", config_digest="c", output="images/a.png", output_bytes=5)

    def done(entry: dict[str, object] | None, source: str = "s", config: str = "c") -> bool:
        return ledger.is_done(entry, source_sha256=source, config_digest=config, output=tmp_path)

    assert done(good)
    assert not done(None)
    assert not done(good, source="other")
    assert not done(good, config="other")
    assert not done({**good, "status": "failed"})
    (tmp_path / "images" / "a.png").write_bytes(b"123")
    assert not done(good), "a file of another size is not what was written"
    (tmp_path / "images" / "a.png").unlink()
    assert not done(good)


def test_an_output_is_read_again_only_where_its_time_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = tmp_path / "runs" / "0001-20261120T000000Z", tmp_path / "a.png"
    written.write_bytes(b"12345")
    asked = {"source_sha256": "s", "config_digest": "c"}
    digest = hashlib.sha256(b"12345").hexdigest()
    good = row("a.png", **asked, output="a.png", output_bytes=5, output_sha256=digest)
    Part(run, 1).append(good | {ledger.CHANGED_AT: ledger.changed_at(written)})
    read: list[str] = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append("again") or whole(*given))

    def done() -> tuple[bool, int]:
        read.clear()
        return ledger.is_done(ledger.latest_rows(tmp_path)["a.png"], **asked, output=tmp_path), len(read)

    assert done() == (True, 0)
    before = written.stat().st_mtime_ns
    for moved in (10**9, -(10**9), 10**15, -(10**15)):
        os.utime(written, ns=(0, before + moved))
        assert done() == (True, 1), "copied, or the clock was set: it is what was written all the same"
        written.write_bytes(b"1234x")
        os.utime(written, ns=(0, before + moved))
        assert done() == (False, 1)
        written.write_bytes(b"12345")
    os.utime(written, ns=(0, before // 1000 * 1000))
    assert done() == (True, 0), "a share that keeps no nanoseconds"


def test_an_output_without_a_time_is_taken_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    asked = {"source_sha256": "s", "config_digest": "c"}
    old = row("a.png", **asked, output="a.png", output_bytes=5, output_sha256=hashlib.sha256(b"12345").hexdigest())
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    assert ledger.is_done(old, **asked, output=tmp_path)
    assert not ledger.is_done(old | {"output_bytes": 6}, **asked, output=tmp_path)


@pytest.mark.parametrize("before", [None, b"torn {", b"[" * 200_000, b"[]", b'{"a.png": null}'])
def test_a_copied_output_is_read_once(tmp_path: Path, before: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "a.png"
    written.write_bytes(b"12345")
    asked = {"source_sha256": "s", "config_digest": "c"}
    digest = hashlib.sha256(b"12345").hexdigest()
    copied = row("a.png", **asked, output="a.png", output_bytes=5, output_sha256=digest) | {ledger.CHANGED_AT: 1}
    if before is not None:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "checked.json").write_bytes(before)
    read: list[str] = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append("again") or whole(*given))

    def done(entry: table.Row = copied) -> tuple[bool, int]:
        read.clear()
        with ledger.Checked(tmp_path) as checked:
            return ledger.is_done(entry, **asked, output=tmp_path, checked=checked), len(read)

    assert [done(), done(), done()] == [(True, 1), (True, 0), (True, 0)]
    assert done(copied | {"output_sha256": "another"}) == (False, 1)
    at = written.stat().st_mtime_ns
    written.write_bytes(b"1234x")
    os.utime(written, ns=(0, at + 10**9))
    assert done() == (False, 1)
    written.write_bytes(b"12345")
    os.utime(written, ns=(0, at + 10**9))
    assert [done(), done()] == [(True, 1), (True, 0)]


def test_done_needs_what_was_painted_too_and_the_noisy_image_where_it_is_asked_for(tmp_path: Path) -> None:
    for folder in ("images", "stylized", "noisy"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"12345")
    asked = {"source_sha256": "s", "config_digest": "c"}
    good = row("a.png", **asked, output="images/a.png", output_bytes=5, stylized="stylized/a.png", noisy="noisy/a.png")
    assert ledger.is_done(good, **asked, output=tmp_path, noisy=True)
    assert not ledger.is_done({**good, "noisy": None}, **asked, output=tmp_path, noisy=True)
    assert ledger.is_done({**good, "noisy": None}, **asked, output=tmp_path)
    (tmp_path / "noisy" / "a.png").unlink()
    assert not ledger.is_done(good, **asked, output=tmp_path, noisy=True)
    assert ledger.is_done(good, **asked, output=tmp_path), "nobody asked for the noisy image this time"
    (tmp_path / "stylized" / "a.png").unlink()
    assert not ledger.is_done(good, **asked, output=tmp_path)


def test_the_tail_gives_every_row_once_and_waits_for_whole_ones(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert list(tail.new_rows()) == []
    part = Part(tmp_path, 1)
    part.append(row("a"))
    assert [r["source"] for r in tail.new_rows()] == ["a"]
    with part.path.open("ab") as file:
        file.write(b'{"source": "b"')
    assert list(tail.new_rows()) == []
    with part.path.open("ab") as file:
        file.write(b', "status": "done"}\n')
    Part(tmp_path, 2).append(row("c"))
    assert [r["source"] for r in tail.new_rows()] == ["b", "c"]


def test_what_is_no_row_is_passed_over(tmp_path: Path) -> None:
    part = Part(tmp_path, 1)
    part.append(row("a"))
    foreign = [
        '{"source": "zzz"}',
        '{"source": [1], "status": "done"}',
        '{"source": "b", "status": "great"}',
        '{"source": "c", "status": "done", "psnr_noisy_db": "abc"}',
        "[]",
        "garbage",
    ]
    with part.path.open("a") as file:
        file.write("\n".join(foreign) + "\n")
    assert [r["source"] for r in ledger.rows_of(tmp_path)] == ["a"]


WHOLE: table.Row = {
    "source": "a.png", "output": "images/a.png", "status": "done", "note": "é", "shape": [4, 5], "value_low": [0.0],
    "value_high": [255.0], "seed": 3, "psnr_noisy_db": 20.5, "psnr_denoised_db": 30, "seconds": 0.1,
    "created_at": table.now(),
}  # fmt: skip
CHANGED = {
    "no time": ("created_at", "2026-1x-01"),
    "no place in time": ("created_at", "2026-01-01T00:00:00"),
    "the end of time": ("created_at", "9999-12-31T23:59:59-14:00"),
    "a number of many bits": ("seed", 10**30),
    "a flag for a number": ("seed", True),
    "texts in a list of numbers": ("shape", ["a"]),
    "a list in a list": ("shape", [[4], [5]]),
    "nothing in a list": ("value_low", [None]),
    "half a character": ("note", "\ud800"),
    "half a character in the name": ("source", "\ud800"),
    "a number beyond all floats": ("psnr_denoised_db", 10**400),
    "a number between two floats": ("psnr_denoised_db", 2**53 + 1),
    "infinity": ("psnr_denoised_db", float("inf")),
    "a list for the status": ("status", ["done"]),
}


@pytest.mark.parametrize("line", [*CHANGED, "depth"])
def test_a_line_that_the_table_cannot_hold_is_as_if_it_had_never_been_written(tmp_path: Path, line: str) -> None:
    part = Part(tmp_path / "runs" / "0001-20261120T000000Z", 1)
    part.append(WHOLE | {"source": "b.png"})
    bad = "[" * 200_000 if line == "depth" else json.dumps(WHOLE | dict([CHANGED[line]]))
    with part.path.open("a") as file:
        file.write(f"{bad}\n{json.dumps(WHOLE)}\n")
    rows = list(ledger.rows_of(part.path.parents[1]))
    assert [r["source"] for r in rows] == ["b.png", "a.png"]
    table.write(tmp_path / "results.parquet", rows, {})


def test_whatever_becomes_of_its_lines_a_ledger_makes_a_table_and_a_page(tmp_path: Path) -> None:
    """Values changed at random, to ones of every kind, in rows that are whole else."""
    rng = random.Random(7)
    odd = [
        None, True, 0, -1, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan"), "", "done", "failed", "\ud800", "\0",
        "../x", "2026-01-01T00:00:00+00:00", "0001-01-01T00:00:00+14:00", "2026-13-01", [], [1], [2**64], [0.5], ["a"],
        [None], [[]], {}, {"a": 1},
    ]  # fmt: skip
    lines = []
    for number in range(2000):
        row = WHOLE | {"source": f"{number}.png"}
        row |= {rng.choice(table.NAMES): rng.choice(odd) for _ in range(rng.randint(1, 3))}
        lines.append(json.dumps(row))
    part = Part(tmp_path / "runs" / "0001-20261120T000000Z", 1)
    part.path.parent.mkdir(parents=True)
    part.path.write_text("\n".join(lines) + "\n")
    rows = ledger.latest_rows(tmp_path)
    assert 100 < len(rows) < 1900, "some are whole all the same"
    table.write(tmp_path / "results.parquet", rows.values(), {})
    read, _ = table.read(tmp_path / "results.parquet")
    assert {r["source"] for r in read} == set(rows)
    assert report.write_page(tmp_path).is_file()
    for name, row in rows.items():
        ledger.is_done(row, source_sha256=str(row.get("source_sha256")), config_digest=name, output=tmp_path)


def test_rows_are_in_the_file_at_once_and_flushed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(ledger, "SYNC_SECONDS", 3600.0)
    with Part(tmp_path, 1) as part:
        for number in range(100):
            part.append(row(str(number)))
            assert len(part.path.read_bytes().splitlines()) == number + 1, "a kill takes nothing"
        assert len(synced) == 1
    assert len(synced) == 2, "the chunk's last rows are on the disk"


def test_a_row_that_a_full_disk_cut_is_kept_out_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(part: Part, file: BinaryIO, line: bytes) -> None:
        file.write(line[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Part(tmp_path, 1) as part:
        part.append(row("a"))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(Part, "_write", torn)
            part.append(row("b"))
        part.append(row("c"))
        assert [r["source"] for r in part.rows()] == ["a", "c"]

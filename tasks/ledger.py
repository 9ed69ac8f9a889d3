"""The ledger: what each run has finished, image by image, in files that survive a kill.

``OUTPUT/runs/<run-id>/ledger/part-NNNNN.jsonl`` belongs to one chunk and gets one line of JSON an image, after the image's
output is in place. A torn last line is the mark of a kill and is ignored, as is any line that the table could not hold: that
image is done again. So is what a power cut takes: lines are flushed to the disk once a second, since small images would wait
for little else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from denoise_core.images import write_atomic
from tasks.table import DONE, Row, is_row, name_of

SYNC_SECONDS = 1.0
RUN_NAME = re.compile(r"([0-9]{4,9})-[0-9]{8}T[0-9]{6}Z")
"""A run's folder: its number, which orders the runs whatever the clock says, and when it began."""

CHANGED_AT = "output_changed_at_us"
"""What a line of the ledger has beside the columns of the table: `changed_at` of the output as it was written."""


class Part:
    """The ledger part of one chunk. As a context manager it stays open for appending, and is on the disk when it ends."""

    def __init__(self, run_folder: Path, number: int) -> None:
        self.path = run_folder / "ledger" / f"part-{number:05d}.jsonl"
        self._file: BinaryIO | None = None
        self._entered = False
        self._synced = -math.inf

    def __enter__(self) -> Part:
        self._entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                os.fsync(file.fileno())

    def append(self, row: Row) -> None:
        """Add a row: the death of the process takes it no more; a power cut may, for the next ``SYNC_SECONDS``."""
        if not self._entered:
            with self:
                self.append(row)
            return
        line = json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n"
        try:
            file = self._file or self._open()
            self._write(file, line.encode("ascii"))
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        except BaseException:
            if self._file is not None:
                self._file.close()
                self._file = None  # opening it again keeps the remains of this row out of the next
            raise

    def _write(self, file: BinaryIO, line: bytes) -> None:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        if self._file.tell() and not _ends_with_newline(self.path):
            self._file.write(b"\n")  # an earlier append was torn
        return self._file

    def rows(self) -> list[Row]:
        """What an earlier try of the chunk has written."""
        return list(_parse(self.path.read_bytes())) if self.path.is_file() else []


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def run_folders(output: Path) -> list[Path]:
    """The folders of all runs into this output, oldest first, by the number their names begin with."""
    runs = output / "runs"
    if not runs.is_dir():
        return []
    named = [(name, path) for path in runs.iterdir() if (name := RUN_NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted((int(name[1]), path) for name, path in named)]


def rows_of(run_folder: Path) -> Iterator[Row]:
    """The whole rows of one run; torn lines are left out."""
    for part in sorted((run_folder / "ledger").glob("part-*.jsonl")):
        yield from _parse(part.read_bytes())


def _parse(data: bytes) -> Iterator[Row]:
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_row(row):
            yield row


class Tail:
    """Reads the rows that a run appends, each once, for whoever shows its progress."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / "ledger"
        self._read: dict[Path, int] = {}

    def new_rows(self) -> Iterator[Row]:
        """The whole rows that have come since the last call."""
        for part in sorted(self._folder.glob("part-*.jsonl")):
            read = self._read.get(part, 0)
            if part.stat().st_size == read:
                continue
            with part.open("rb") as file:
                file.seek(read)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[part] = read + whole
            yield from _parse(data[:whole])


def latest_rows(output: Path) -> dict[str, Row]:
    """For every source the newest row of all runs into this output."""
    latest: dict[str, Row] = {}
    for folder in run_folders(output):
        for row in rows_of(folder):
            latest[row["source"]] = row
    return latest


def changed_at(path: Path) -> int:
    """When a file was last changed, as its file system tells it, in µs since 1970: less is rounded by some shares."""
    return path.stat().st_mtime_ns // 1000


class Checked:
    """What scans found to be as it was written though its time is another: it need not be read again every night.

    As a context manager it reads ``OUTPUT/runs/checked.json`` and writes it again where it has grown.
    """

    def __init__(self, output: Path) -> None:
        self._path = output / "runs" / "checked.json"
        self._found: dict[str, list[Any]] = {}
        self._has_grown = False

    def __enter__(self) -> Checked:
        with suppress(OSError, ValueError, RecursionError):
            read = json.loads(self._path.read_bytes())
            self._found = read if isinstance(read, dict) else {}
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_grown:
            with suppress(OSError):  # the next run reads them again
                write_atomic(self._path, json.dumps(self._found).encode("ascii"))

    def __contains__(self, output: tuple[str, str, int]) -> bool:
        name, *found = output
        return self._found.get(name) == found

    def add(self, output: tuple[str, str, int]) -> None:
        """An output by its name, its digest, and its time."""
        name, *found = output
        self._found[name] = found
        self._has_grown = True


def is_done(
    row: Row | None,
    *,
    source_sha256: str,
    config_digest: str,
    output: Path,
    reference_sha256: str | None = None,
    noisy: bool = False,
    checked: Checked | None = None,
) -> bool:
    """Whether a row says that this very source was done with this very configuration, and its files are still there.

    These are the output and what was painted; with `noisy` the noisy image too, which an earlier run may not have kept.
    The output's digest is compared where its time is neither the one that it was written at nor one at which it was `checked`:
    it was damaged, or only copied.
    """
    if row is None or row.get("status") != DONE:
        return False
    asked = {"source_sha256": source_sha256, "config_digest": config_digest, "reference_sha256": reference_sha256}
    if any(row.get(name) != value for name, value in asked.items()):
        return False
    if noisy and row.get("noisy") is None:
        return False
    beside = [row.get("stylized"), row.get("noisy") if noisy else None]
    written = output / name_of(str(row.get("output")))
    try:
        if not all((output / name_of(str(name))).is_file() for name in beside if name is not None):
            return False
        return written.is_file() and _is_as_written(written, row, checked)
    except OSError:
        return False


def _is_as_written(path: Path, row: Row, checked: Checked | None) -> bool:
    if path.stat().st_size != row.get("output_bytes"):
        return False
    digest: str | None = row.get("output_sha256")
    if digest is None or CHANGED_AT not in row:  # earlier versions noted no time
        return True
    this = (str(row.get("output")), digest, changed_at(path))
    if this[2] == row[CHANGED_AT] or (checked is not None and this in checked):
        return True
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            return False
    if checked is not None:
        checked.add(this)
    return True

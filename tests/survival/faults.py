"""Faults of the machine, injected into runs that are then started again: nothing may be lost, and nothing half-written.

Each fault is a function of a `Night`. It raises AssertionError where a promise is broken and `Unavailable` where this
machine cannot have the fault.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import psutil
from PIL import Image
from skimage import data

import flows.denoise_directory
import tasks.chunk
import tasks.load
import tasks.save
from flows.cli import main
from tasks import ledger, table
from tests.survival.kills import OPTIONS, PATIENCE, Started, Undisturbed, differences, files, rows, temporaries, unlike

IMAGES = 12
_FULL, _ROOMY = "60k", "20m"


class Unavailable(Exception):
    """This machine cannot have the fault."""


@dataclass(frozen=True)
class Night:
    """Images to do, an empty folder to do it in, and what an undisturbed run makes of them."""

    folder: Path
    images: Path
    expected: Undisturbed

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(self, *options: object, images: Path | None = None) -> tuple[int, str]:
        """A run in this process, its retries without pauses; exit status and all that it printed."""
        said = io.StringIO()
        arguments = ["run", images or self.images, self.output, *OPTIONS, *options]
        no_pauses = mock.patch.object(tasks.chunk.process_chunk, "retry_delay_seconds", [0.0, 0.0, 0.0])
        with no_pauses, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main([str(argument) for argument in arguments])
        assert "Traceback" not in said.getvalue(), said.getvalue()
        return status, said.getvalue()

    def check_what_is_there(self) -> int:
        """Whatever a row calls done is there, whole and right, and nothing is half-written; how many are done."""
        done = {name: row for name, row in ledger.latest_rows(self.output).items() if row["status"] == table.DONE}
        for row in done.values():
            written = (self.output / row["output"]).read_bytes()
            assert hashlib.sha256(written).hexdigest() == row["output_sha256"] == self.expected.files[row["output"]]
        assert set(files(self.output).items()) <= set(self.expected.files.items()), "half-written"
        assert temporaries(self.output) == []
        return len(done)

    def ends_well(self, *, images: Path | None = None) -> None:
        """The next run goes on, and leaves what an undisturbed run leaves."""
        status, said = self.run(images=images)
        assert status == 0, said
        assert differences(self.output, self.expected) == []


def write_images(folder: Path, count: int = IMAGES) -> Path:
    """Small crops of a photograph."""
    images = folder / "images"
    (images / "sub").mkdir(parents=True)
    photo: Any = data.astronaut()
    for n in range(count):
        crop = photo[20 * n : 20 * n + 24, 200:230]
        Image.fromarray(crop).save(images / ("sub" if n % 2 else "") / f"{n:02}.png")
    return images


def undisturbed(folder: Path, images: Path) -> Undisturbed:
    """What the images give where nothing is in the way."""
    night = Night(folder, images, Undisturbed({}, {}, 0, 0))
    status, said = night.run()
    assert status == 0, said
    return Undisturbed(files(night.output), rows(night.output), 0, 0)


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system in memory at the folder; yields what mounts it again with other options."""
    folder.mkdir(exist_ok=True)

    def mount(options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"mounting needs root and leave to: {done.stderr.decode(errors='replace').strip()}")

    if shutil.which("mount") is None or os.geteuid() != 0:
        raise Unavailable("mounting a file system needs root")
    mount(f"size={size}")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


@contextlib.contextmanager
def after_saves(count: int, strike: Callable[[], object]) -> Iterator[None]:
    """`strike` once, when so many images have been saved."""
    real, saved = tasks.save.write_atomic, []

    def write(path: Path, content: bytes) -> None:
        real(path, content)
        saved.append(path)
        if len(saved) == count:
            strike()

    with mock.patch.object(tasks.save, "write_atomic", write):
        yield


def disk_full(night: Night) -> None:
    """The output's file system is full in the middle of a write."""
    with tmpfs(night.output, _FULL) as remount:
        status, said = night.run()
        assert status == 1, said
        assert "No space left" in said
        assert 0 < night.check_what_is_there() < IMAGES, (said, ledger.latest_rows(night.output).keys())
        remount(f"size={_ROOMY}")
        night.ends_well()


def output_read_only(night: Night) -> None:
    """The output cannot be written to from the start."""
    with tmpfs(night.output, _ROOMY) as remount:
        remount("ro")
        status, said = night.run()
        assert (status, said.count("\n")) == (2, 1)
        assert "cannot be written to: Read-only file system" in said
        remount("rw")
        night.ends_well()


def output_turns_read_only(night: Night) -> None:
    """The kernel takes the output's file system away from writers, as it does after a fault of the disk."""
    real, read_only = Path.open, []

    def refuse(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if read_only and set(mode) & set("wax") and path.is_relative_to(night.output):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *arguments, **options)

    with mock.patch.object(Path, "open", refuse), after_saves(5, lambda: read_only.append(True)):
        status, said = night.run()
    assert status == 1, said
    assert "Read-only file system" in said, said
    assert 3 <= night.check_what_is_there() < IMAGES
    night.ends_well()


def input_vanishes(night: Night) -> None:
    """The whole input goes away, and comes back after the run."""
    images = night.folder / "images"
    shutil.copytree(night.images, images)
    with after_saves(3, lambda: images.rename(night.folder / "elsewhere")):
        status, said = night.run(images=images)
    assert status == 1, said
    assert "the input has vanished" in said
    assert 3 <= night.check_what_is_there() < IMAGES
    assert night.run(images=images)[0] == 2, "no input"
    (night.folder / "elsewhere").rename(images)
    night.ends_well(images=images)


def input_blinks(night: Night) -> None:
    """The input goes away and is back at the next try: no image fails for it."""
    images = night.folder / "images"
    shutil.copytree(night.images, images)
    real, missed = tasks.load.read_below, []

    def read(root: Path, name: str) -> bytes:
        try:
            return real(root, name)
        except OSError as error:
            missed.append(error)
            (night.folder / "elsewhere").rename(images)
            raise

    vanishing = after_saves(3, lambda: images.rename(night.folder / "elsewhere"))
    with mock.patch.object(tasks.load, "read_below", read), vanishing:
        status, said = night.run("--slots", 1, images=images)
    assert len(missed) == 1
    assert status == 0, said
    assert differences(night.output, night.expected) == []


def share_unmounted(night: Night) -> None:
    """The input is a share that is unmounted: an empty folder is left where it was."""
    share = night.folder / "share"
    with contextlib.ExitStack() as mounted:
        mounted.enter_context(tmpfs(share, _ROOMY))
        shutil.copytree(night.images, share, dirs_exist_ok=True)
        with after_saves(3, mounted.close):
            status, said = night.run(images=share)
    assert status == 1, said
    assert "the input has vanished" in said
    assert 3 <= night.check_what_is_there() < IMAGES
    before = (night.output / "results.parquet").read_bytes()
    status, said = night.run(images=share)
    assert (status, said.count("\n")) == (2, 1), said
    assert (night.output / "results.parquet").read_bytes() == before
    with tmpfs(share, _ROOMY):
        shutil.copytree(night.images, share, dirs_exist_ok=True)
        night.ends_well(images=share)


def clock_set_back(night: Night) -> None:
    """The clock is set back by a year between two runs: the later run still counts as the later one."""
    images = night.folder / "images"
    shutil.copytree(night.images, images)
    assert night.run(images=images)[0] == 0
    changed = images / "00.png"
    changed.write_bytes((night.images / "02.png").read_bytes())

    class LastYear(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return super().now(tz) - datetime.timedelta(days=365)

    clock = SimpleNamespace(**{**vars(datetime), "datetime": LastYear})
    with mock.patch.object(flows.denoise_directory, "datetime", clock), mock.patch.object(table, "datetime", clock):
        assert night.run(images=images)[0] == 0
    first, second = ledger.run_folders(night.output)
    assert first.name[5:] > second.name[5:], "by its date the second run is older"
    assert [row["source"] for row in ledger.rows_of(second)] == ["00.png"]
    found = rows(night.output)
    assert found["00.png"]["source_sha256"] == found["02.png"]["source_sha256"]
    shutil.copy(night.images / "00.png", changed)
    assert night.run(images=images)[0] == 0
    assert unlike(night.output, night.expected) == []


def server_killed(night: Night) -> None:
    """The only other process of a run, its Prefect server, is killed in the middle."""
    started = Started.of(night.images, night.output, *OPTIONS)
    started.let_run(PATIENCE, lambda: len(ledger.latest_rows(night.output)) >= 3)
    servers = [process for process in started.marked() if "flows.embedded_server" in process.cmdline()]
    assert len(servers) == 1
    servers[0].kill()
    status, said = started.wait()
    assert status in (0, 1), said
    assert "Traceback" not in said
    night.check_what_is_there()
    night.ends_well()


def two_at_once(night: Night) -> None:
    """Two runs on one output: the second refuses in one sentence, and the first is not disturbed."""
    first = Started.of(night.images, night.output, *OPTIONS)
    first.let_run(PATIENCE, lambda: bool(ledger.run_folders(night.output)))
    os.kill(first.process.pid, signal.SIGSTOP)  # at work for as long as the other needs to see it
    try:
        status, said = Started.of(night.images, night.output, *OPTIONS).wait()
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    assert status == 2, said
    assert "another run is writing to" in said
    status, said = first.wait()
    assert status == 0, said
    assert differences(night.output, night.expected) == []


@contextlib.contextmanager
def address_space(more: int) -> Iterator[None]:
    """No more memory for this process than it has and so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def memory_runs_out(night: Night) -> None:
    """One image does not fit into the memory that the process may have."""
    if not sys.platform.startswith("linux"):
        raise Unavailable("only Linux holds a process to its address space")
    images = night.folder / "images"
    shutil.copytree(night.images, images)
    side = 14_000  # 200 MB, and 800 MB more as float32
    Image.fromarray(np.zeros((side, side), np.uint8)).save(images / "05-huge.png", compress_level=1)
    with address_space(700_000_000):
        status, said = night.run(images=images)
    assert status == 1, said
    latest = ledger.latest_rows(night.output)
    assert latest["05-huge.png"]["status"] == table.FAILED
    assert latest["05-huge.png"]["error"].startswith("memory ran out (")
    assert night.check_what_is_there() == IMAGES, "all others are done"
    (images / "05-huge.png").unlink()
    assert night.run(images=images)[0] == 0
    assert files(night.output) == night.expected.files


FAULTS: tuple[Callable[[Night], None], ...] = (
    disk_full,
    output_read_only,
    output_turns_read_only,
    input_vanishes,
    input_blinks,
    share_unmounted,
    clock_set_back,
    server_killed,
    two_at_once,
    memory_runs_out,
)

"""Runs that are killed, process group and all, at moments drawn from a seed, and started again until they end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tasks import ledger, table

PATIENCE = 300.0  # seconds: nothing here takes long, and a busy machine must not fail a test
OPTIONS = ("--method", "nl-bayes", "--noise", "gauss:25", "--slots", 2, "--chunk", 3)
VOLATILE = {
    "run_id", "created_at", "slot_wait_seconds", "fit_started_at", "fit_finished_at", "fit_seconds", "denoise_seconds",
    "seconds", "style_seconds",
}  # fmt: skip
KILLS_A_ROUND = 5
_MARK = "DENOISE_TESTS_RUN"
_RUN = "import sys; from flows.cli import main; sys.exit(main())"
# Ends its process group at the start of the N-th call that makes something lasting on the disk.
_FATAL_WRITE = """
import itertools, os, signal, sys
from flows.cli import main
writes, fatal = itertools.count(1), int(sys.argv.pop(1))
def dying(call):
    def write(*arguments, **options):
        if next(writes) == fatal:
            os.killpg(0, signal.SIGKILL)
        return call(*arguments, **options)
    return write
os.fsync, os.replace = dying(os.fsync), dying(os.replace)
sys.exit(main())
"""


@dataclass
class Started:
    """A `denoise run` in a process group of its own; whatever it starts carries its mark."""

    process: subprocess.Popen[str]
    mark: str

    @classmethod
    def of(cls, *arguments: object, fatal_write: int | None = None) -> Started:
        """Start it; with `fatal_write` it dies at that write."""
        mark = uuid.uuid4().hex
        code = [_RUN] if fatal_write is None else [_FATAL_WRITE, str(fatal_write)]
        process = subprocess.Popen(
            [sys.executable, "-c", *code, "run", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, _MARK: mark},
        )
        return cls(process, mark)

    def kill(self) -> None:
        """SIGKILL to the whole group, as far as it still lives."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def let_run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let it run for so long, or until something is so, or it ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None and not until():
            time.sleep(0.005)

    def wait(self) -> tuple[int, str]:
        """Exit status and what it said on stderr."""
        try:
            _, said = self.process.communicate(timeout=PATIENCE)
        finally:
            self.kill()
        return self.process.returncode, said

    def left_behind(self) -> list[psutil.Process]:
        """Processes that outlive it although they are given time."""
        _, alive = psutil.wait_procs(list(self.marked()), timeout=60)
        return alive

    def marked(self) -> Iterator[psutil.Process]:
        """Its own process and whatever it has started, as far as they live."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


@dataclass
class Undisturbed:
    """What a run gives that nobody kills, and how long its parts took, in seconds."""

    files: dict[str, str]
    rows: dict[str, table.Row]
    before_work: float
    work: float


@dataclass
class Outcome:
    """What became of the killed runs; `problems` is empty where every promise held."""

    kills: int = 0
    rounds: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)


def undisturbed(images: Path, output: Path, *options: object) -> Undisturbed:
    """Run once and look at everything."""
    begun = time.monotonic()
    started = Started.of(images, output, *options)
    started.let_run(PATIENCE, lambda: bool(ledger.run_folders(output)))
    working = time.monotonic()
    status, said = started.wait()
    assert status == 0, said
    return Undisturbed(files(output), rows(output), working - begun, time.monotonic() - working)


def kill_and_resume(
    images: Path, folder: Path, expected: Undisturbed, *, kills: int, seed: int, options: tuple[object, ...] = OPTIONS
) -> Outcome:
    """Kill runs until `kills` have died, each time starting again; where one ends before its moment, begin anew.

    A third of the moments is drawn on the clock, over the run's whole length, a third among its writes to the disk, and a
    third among the images that are left: just after so many of them.
    """
    rng = random.Random(seed)
    found = Outcome()
    while found.kills < kills:
        found.rounds += 1
        output = folder / f"round-{found.rounds}"
        status, said = _killed(images, output, expected, min(KILLS_A_ROUND, kills - found.kills), rng, found, options)
        if status:
            found.problems.append(f"exit status {status}: {said}")
        found.images += len(expected.rows)
        found.problems += differences(output, expected)
    return found


def _killed(
    images: Path,
    output: Path,
    expected: Undisturbed,
    kills: int,
    rng: random.Random,
    found: Outcome,
    options: tuple[object, ...],
) -> tuple[int, str]:
    """Start runs into one output until `kills` have died there and one has ended, or one ends before its moment."""
    for _ in range(kills):
        earlier, before = len(ledger.run_folders(output)), len(ledger.latest_rows(output))
        left = len(expected.rows) - before
        kind = ("clock", "write", "image")[found.kills % 3]
        if kind == "write":
            started = Started.of(images, output, *options, fatal_write=rng.randint(1, 2 * left + 6))
        else:
            started = Started.of(images, output, *options)
            if kind == "image":
                wanted = before + rng.randint(0, left)
                started.let_run(PATIENCE, lambda: len(ledger.latest_rows(output)) >= wanted)  # noqa: B023
            elif rng.random() < 0.25:
                started.let_run(rng.uniform(0, expected.before_work))
            else:
                started.let_run(PATIENCE, lambda: len(ledger.run_folders(output)) > earlier)  # noqa: B023
                started.let_run(rng.uniform(0, expected.work * (left + 1) / len(expected.rows) / 2))
            started.kill()
        status, said = started.wait()
        if status != -signal.SIGKILL:
            return status, said
        found.kills += 1
        found.moments[f"by the {kind} with {len(ledger.latest_rows(output))} of {len(expected.rows)} done"] += 1
        found.problems += [f"{process} outlived its run" for process in started.left_behind()]
        if not left:
            break  # one kill after the last image is enough
    return Started.of(images, output, *options).wait()


def differences(output: Path, expected: Undisturbed) -> list[str]:
    """What an output that was disturbed and resumed has otherwise than one that was not; no image is done twice."""
    done: Counter[str] = Counter()
    for folder in ledger.run_folders(output):
        done.update(row["source"] for row in ledger.rows_of(folder) if row["status"] == table.DONE)
    return unlike(output, expected) + [f"{name} was done {times} times" for name, times in done.items() if times > 1]


def unlike(output: Path, expected: Undisturbed) -> list[str]:
    """Files and rows that are not as in the undisturbed output, and what is left over."""
    problems = []
    if (found := files(output)) != expected.files:
        problems.append(f"files differ: {set(found.items()) ^ set(expected.files.items())}")
    table_now = rows(output)
    problems += [
        f"{name}: {table_now.get(name)} instead of {expected.rows.get(name)}"
        for name in table_now.keys() | expected.rows.keys()
        if table_now.get(name) != expected.rows.get(name)
    ]
    return problems + [f"left over: {path}" for path in temporaries(output)]


def files(output: Path) -> dict[str, str]:
    """Digests of everything below the output that is the same in every run: the images, what led to them, and networks if any."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("images", "stylized", "noisy", "models")
        for path in (output / folder).rglob("*")
        if path.is_file()
    }


def rows(output: Path) -> dict[str, table.Row]:
    """The table without the columns that tell of time and run."""
    if not (output / "results.parquet").is_file():
        return {}
    found, _ = table.read(output / "results.parquet")
    return {str(row["source"]): _lasting(row) for row in found}


def _lasting(row: table.Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in VOLATILE}


def temporaries(output: Path) -> list[Path]:
    """Files of writes that did not end."""
    return [path for path in output.rglob("*") if "denoise-tmp" in path.name]

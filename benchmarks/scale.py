"""Very many small images in one `denoise run`: what the run costs beside the images.

    python -m benchmarks.scale [--images 50000] [--real 1000] [--side 16] [--engine local]

Writes so many 8-bit PNGs of SIDE × SIDE noise, a thousand a folder, and runs `--method none` over all of them, again with
nothing left to do, and nl-bayes over the first REAL. Each run is a process of its own, with an embedded Prefect server on
an empty database. Printed: wall-clock and processor time an image, of the run's process and of its server's; beside them the bare
cores in a loop (decode, encode, write with a flush); task runs and the size of the database; the run's resident memory at several
points; the sizes of table, page and ledger.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.common import parser, write
from denoise_core.images import decode, encode, write_atomic

POINTS = 10
A_FOLDER = 1000
MOST_TASK_RUNS, MOST_DATABASE_MB = 2000, 100


@dataclass
class Cost:
    """What a run took."""

    images: int
    wall: float
    run_cpu: float
    server_cpu: float
    memory: dict[int, float]  # resident MB, by images done
    task_runs: int
    database_mb: float
    table_mb: float
    page_mb: float
    ledger_mb: float

    @property
    def growth(self) -> float | None:
        """Of the memory, from the first fifth of the images to their end."""
        settled = [megabytes for done, megabytes in self.memory.items() if done >= self.images / 5]
        return settled[-1] / settled[0] - 1 if len(settled) > 1 else None


def write_images(folder: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number // A_FOLDER:04}" / f"{number:07}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(path)


def bare(folder: Path, target: Path, count: int) -> float:
    """Seconds an image of the bare cores: decode, encode, write with a flush."""
    paths = sorted(folder.rglob("*.png"))[:count]
    target.mkdir()
    started = time.perf_counter()
    for path in paths:
        image = decode(path.read_bytes(), max_pixels=10**8)
        write_atomic(target / path.name, encode(image, image.pixels))
    return (time.perf_counter() - started) / len(paths)


def run(images: Path, output: Path, home: Path, count: int, *options: str) -> Cost:
    """Run in a process of its own and watch it."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli", "run", str(images), str(output), *options]
    lines = _Lines(output)
    memory: dict[int, float] = {}
    cpu: dict[int, float] = {}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.5)
            try:
                for one in (watched, *watched.children(recursive=True)):
                    cpu[one.pid] = sum(one.cpu_times()[:2])
                done = lines.new()
                if done >= (len(memory) + 1) * count / POINTS or (done and not memory):
                    memory[done] = watched.memory_info().rss / 1e6
            except psutil.Error:
                continue
        wall = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: {said.read().decode(errors='replace')[-2000:]}")
    with sqlite3.connect(home / "prefect.db") as database:
        (task_runs,) = database.execute("select count(*) from task_run").fetchone()
    megabytes = [sum(path.stat().st_size for path in home.glob("prefect.db*")) / 1e6]
    kept = (output.glob("*.parquet"), output.glob("report.html"), output.glob("runs/*/ledger/*"))
    megabytes += [sum(path.stat().st_size for path in paths) / 1e6 for paths in kept]
    own = cpu.pop(process.pid, 0.0)
    return Cost(count, wall, own, sum(cpu.values()), memory, task_runs, *megabytes)


class _Lines:
    """Counts the rows that come into the ledgers below an output."""

    def __init__(self, output: Path) -> None:
        self._output, self._read, self._count = output, {}, 0  # type: ignore[var-annotated]
        self.new()
        self._count = 0

    def new(self) -> int:
        """How many have come since the beginning."""
        for part in self._output.glob("runs/*/ledger/part-*.jsonl"):
            read = self._read.get(part, 0)
            if part.stat().st_size > read:
                with part.open("rb") as file:
                    file.seek(read)
                    data = file.read()
                self._read[part] = read + len(data)
                self._count += data.count(b"\n")
        return self._count


def show(name: str, cost: Cost) -> None:
    each = 1000 / cost.images
    print(
        f"{name}: {cost.images} images in {cost.wall:.0f} s, {cost.wall * each:.2f} ms each "
        f"(processor: {cost.run_cpu * each:.2f} ms, the other processes {cost.server_cpu * each:.2f} ms)"
    )
    print(f"    task runs {cost.task_runs}, database {cost.database_mb:.1f} MB")
    if cost.memory:
        curve = ", ".join(f"{megabytes:.0f} MB at {done}" for done, megabytes in cost.memory.items())
        print(f"    memory {curve}" + ("" if cost.growth is None else f": {100 * cost.growth:+.1f} % from a fifth on"))
    print(f"    table {cost.table_mb:.1f} MB, page {cost.page_mb:.1f} MB, ledger {cost.ledger_mb:.1f} MB", flush=True)


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--images", type=int, default=50_000)
    parse.add_argument("--real", type=int, default=1000, help="images for nl-bayes; 0: none")
    parse.add_argument("--side", type=int, default=16)
    parse.add_argument("--engine", default="local")
    options = parse.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, output, home = folder / "images", folder / "out", folder / "prefect"
        write_images(images, options.images, options.side)
        loop = bare(images, folder / "bare", min(2000, options.images))
        print(f"bare cores in a loop: {1000 * loop:.2f} ms an image (decode, encode, write)", flush=True)
        arguments = ("--method", "none", "--engine", options.engine)
        found["none"] = run(images, output, home, options.images, *arguments)
        show("--method none", found["none"])
        found["again"] = run(images, output, home, options.images, *arguments)
        show("again, nothing to do", found["again"])
        if options.real:
            some = folder / "some"
            some.mkdir()
            for number, path in enumerate(sorted(images.rglob("*.png"))[: options.real]):
                os.link(path, some / f"{number:07}.png")
            method = ("--method", "nl-bayes", "--engine", options.engine)
            found["nl-bayes"] = run(some, folder / "real", home, options.real, *method)
            show("--method nl-bayes", found["nl-bayes"])
    worst = max(found.values(), key=lambda cost: cost.task_runs)
    largest = max(cost.database_mb for cost in found.values())
    kept = worst.task_runs < MOST_TASK_RUNS and largest < MOST_DATABASE_MB
    print(f"overhead of the run: {1000 * (found['none'].wall / options.images - loop):.2f} ms an image")
    print(f"task runs below {MOST_TASK_RUNS} and database below {MOST_DATABASE_MB} MB: {'yes' if kept else 'NO'}")
    document = {"bare_ms": 1000 * loop, "side": options.side, "engine": options.engine}
    print(f"→ {write('scale', document | {name: asdict(cost) for name, cost in found.items()})}")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())

"""What runs survive: kills, corrupt files, faults of the machine; and the memory of a run over a thousand images.

    python -m benchmarks.survival [--kills 30] [--mutants 5000] [--images 1000]

Kills: the process group gets SIGKILL at random moments and the run is started again. Mutants: corrupt files of every
container, each read in a process that may die of it. Faults: those of tests/survival/faults.py. An image is lost if its
file or its row is not, in the end, what an undisturbed run leaves. Memory: resident, of the run's process, by images done.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.common import parser, write
from flows.server import connected, prepare_environment

prepare_environment()  # before anything imports Prefect

from tests.survival import faults, mutants  # noqa: E402
from tests.survival.kills import OPTIONS, PATIENCE, Started, kill_and_resume, undisturbed  # noqa: E402

STEP, SETTLED = 100, 200


def killed(folder: Path, kills: int) -> dict[str, object]:
    images = faults.write_images(folder, 24)
    expected = undisturbed(images, folder / "undisturbed", *OPTIONS)
    found = kill_and_resume(images, folder, expected, kills=kills, seed=1)
    print(f"kills survived: {found.kills}, over {found.images} images in {found.rounds} directories", flush=True)
    for moment, times in sorted(found.moments.items()):
        print(f"    {times} × {moment}")
    return {"kills": found.kills, "images": found.images, "problems": found.problems}


def corrupt(count: int) -> dict[str, object]:
    verdicts, problems = mutants.ordeal(range(count))
    refused = sum(verdict.said is not None for verdict in verdicts)
    seconds, megabytes = (max(getattr(v, key) for v in verdicts) for key in ("seconds", "megabytes"))
    print(
        f"mutants tried: {len(verdicts)}, {refused} refused in a sentence, {len(verdicts) - refused} images", flush=True
    )
    print(f"    at most {seconds:.2f} s of processor time and {megabytes:.0f} MB each")
    return {"mutants": len(verdicts), "seconds": seconds, "megabytes": megabytes, "problems": problems}


def faulty(folder: Path) -> dict[str, object]:
    problems, names = [], []
    with connected():
        images = faults.write_images(folder)
        expected = faults.undisturbed(folder, images)
        for fault in faults.FAULTS:
            own = folder / fault.__name__
            own.mkdir()
            try:
                fault(faults.Night(own, images, expected))
            except faults.Unavailable as reason:
                print(f"    not here: {fault.__name__} ({reason})")
                continue
            except AssertionError as error:
                problems.append(f"{fault.__name__}: {error}")
            names.append(fault.__name__)
    print(f"faults injected: {len(names)} ({', '.join(names)})", flush=True)
    return {"faults": names, "problems": problems}


def memory(folder: Path, count: int) -> dict[str, object]:
    """The curve, and how far its end lies above the memory when 200 images were done."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(folder / "images" / f"{number:05}.png")
    started = Started.of(folder / "images", folder / "out", "--method", "nl-bayes")
    process, curve, seen = psutil.Process(started.process.pid), {}, 0

    def reached(mark: int) -> bool:
        nonlocal seen
        time.sleep(0.05)
        seen = sum(part.read_bytes().count(b"\n") for part in (folder / "out" / "runs").glob("*/ledger/part-*.jsonl"))
        return seen >= mark

    for mark in range(STEP, count + 1, STEP):
        started.let_run(20 * PATIENCE, lambda: reached(mark))  # noqa: B023 - used up before the next
        if started.process.poll() is not None:
            break
        curve[seen] = process.memory_info().rss / 1e6
        print(f"    {curve[seen]:.0f} MB resident after {seen} images", flush=True)
    status, said = started.wait()
    problems = [] if status == 0 else [said]
    settled = next((curve[n] for n in curve if n >= SETTLED), None)
    growth = None if settled is None else curve[max(curve)] / settled - 1
    if growth is not None:
        print(f"memory after {max(curve)} images: {100 * growth:+.1f} % of that after {SETTLED}")
    return {"curve": curve, "growth": growth, "problems": problems}


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--kills", type=int, default=30)
    parse.add_argument("--mutants", type=int, default=5000)
    parse.add_argument("--images", type=int, default=1000, help="of the run whose memory is watched")
    options = parse.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for part in ("kills", "faults", "memory"):
            (Path(name) / part).mkdir()
        if options.kills:
            found["kills"] = killed(Path(name, "kills"), options.kills)
        if options.mutants:
            found["mutants"] = corrupt(options.mutants)
        found["faults"] = faulty(Path(name, "faults"))
        if options.images:
            found["memory"] = memory(Path(name, "memory"), options.images)
    problems = [problem for part in found.values() for problem in part["problems"]]  # type: ignore[attr-defined]
    for problem in problems:
        print(problem)
    print(f"images lost: {len(problems)}")
    print(f"→ {write('survival', found)}")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main())

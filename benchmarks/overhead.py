"""What the flow costs beside the images: the same images through the bare cores in a loop, and through `denoise run`.

    python -m benchmarks.overhead [--images 16] [--repeats 3] [--seconds 1] [--ways embedded,server,processes,dask]

The images are crops of photographs, of a size at which nl-bayes takes SECONDS on one thread. Bare: one process takes each
through decode, estimate, scores, encode and a flushed write, without Prefect, ledger, slots or chunks. Every way is one fit
at a time (`--slots 1`) and a chunk an image, the most that a run can cost: embedded (Prefect's server in the run), server (a
`denoise server`), and the engines processes and dask on the embedded one. Time an image is that between the first image's
end and the last's, which leaves out start-up; start-up is the rest of the command's time. All ways take turns, REPEATS
times; printed are medians of the ratios within a turn, of wall-clock and of processor time (run and workers; the server's
stands apart), with their range.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.common import mirrored, parser, write
from tests.flows.services import server

METHOD = "nl-bayes"
WAYS = ("embedded", "server", "processes", "dask")


@dataclass
class Cost:
    """Of a command, in seconds; an image's from the first one's end on."""

    wall: float  # an image
    cpu: float  # an image, of the run's process and its workers
    server: float  # an image, of an embedded server
    apart: float  # all else: start-up, the first image, the end


def write_images(folder: Path, count: int, side: int) -> None:
    from skimage import data

    photo = mirrored(data.astronaut().astype(np.float32), 2 * side)  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        top, left = rng.integers(0, side, 2)
        crop = rng.normal(photo[top : top + side, left : left + side], 15)
        Image.fromarray(np.clip(np.rint(crop), 0, 255).astype(np.uint8)).save(folder / f"{number:04}.png")


def calibrated(folder: Path, seconds: float) -> int:
    """The side at which an image takes so long here and now, a multiple of 16."""
    from denoise_core import methods
    from denoise_core.device import choose

    device = choose("cpu")
    write_images(folder, 1, 256)
    with Image.open(folder / "0000.png") as image:
        pixels = np.asarray(image).astype(np.float32) / 255
    times = []
    for _ in range(3):
        started = time.perf_counter()
        methods.denoise(pixels, method=METHOD, preset="fast", seed=0, device=device, value_range=(0.0, 1.0))
        times.append(time.perf_counter() - started)
    return max(64, 16 * round(256 * math.sqrt(seconds / min(times)) / 16))


def bare(images: Path, output: Path) -> None:
    """In a process of its own: the loop; prints when each image had ended, and the processor time until then."""
    import torch

    from denoise_core.device import choose
    from tasks.denoise import _denoise
    from tasks.evaluate import evaluate
    from tasks.load import load
    from tasks.save import save
    from tasks.scan import scan
    from tasks.settings import Settings
    from tasks.work import Work

    torch.set_num_threads(1)
    device = choose("cpu")
    settings = Settings(
        input=images, output=output, method=METHOD, preset="fast", noise="none", clip_noise=False, reference=None, seed=0,
        device=device, slots=1, max_pixels=10**9, run_id="bare", config_digest="", steps_are_seen=False, has_limits=False,
    )  # fmt: skip
    ends = []
    for source in scan(images, output, max_pixels=10**9, config_digest="").todo:
        work = Work(source, settings)
        load.fn(work, settings)
        _denoise(work, settings)
        evaluate.fn(work)
        save.fn(work, settings)
        ends.append((time.time(), time.process_time()))
    print(json.dumps(ends))


def cost_of_bare(images: Path, output: Path) -> Cost:
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.overhead", "--bare", str(images), str(output)]
    ends = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    whole = time.time() - started
    count = len(ends) - 1
    wall, cpu = ((ends[-1][n] - ends[0][n]) / count for n in (0, 1))
    return Cost(wall, cpu, 0.0, whole - wall * count)


def cost_of_run(images: Path, output: Path, *options: str, url: str | None) -> Cost:
    """A `denoise run`, watched from outside."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PREFECT_API_URL", None)
    if url is not None:
        environment["PREFECT_API_URL"] = url
    chosen = ["--method", METHOD, "--slots", "1", "--chunk", "1", "--device", "cpu", *options]
    started = time.time()
    seen: list[tuple[int, dict[int, tuple[bool, float]]]] = []
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "flows.cli", "run", str(images), str(output), *chosen]
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.05)
            done = sum(path.read_bytes().count(b"\n") for path in output.glob("runs/*/ledger/part-*.jsonl"))
            if done and (not seen or done > seen[-1][0]):
                with contextlib.suppress(psutil.Error):
                    seen.append((done, _processor_times(watched)))
        whole = time.time() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: {said.read().decode(errors='replace')[-2000:]}")
    ends = sorted(
        datetime.fromisoformat(json.loads(line)["created_at"]).timestamp()
        for path in output.glob("runs/*/ledger/part-*.jsonl")
        for line in path.read_text().splitlines()
    )
    wall = (ends[-1] - ends[0]) / (len(ends) - 1)
    (first, before), (last, after) = seen[0], seen[-1]
    spent = dict.fromkeys((False, True), 0.0)
    for pid, (is_server, seconds) in after.items():
        spent[is_server] += seconds - before.get(pid, (is_server, 0.0))[1]
    each = max(1, last - first)
    return Cost(wall, spent[False] / each, spent[True] / each, whole - wall * (len(ends) - 1))


def _processor_times(run: psutil.Process) -> dict[int, tuple[bool, float]]:
    """Of the run's processes: whether it is the server, and its seconds."""
    found = {}
    for process in (run, *run.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = ("flows.embedded_server" in process.cmdline(), sum(process.cpu_times()[:2]))
    return found


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--images", type=int, default=16)
    parse.add_argument("--repeats", type=int, default=3)
    parse.add_argument("--seconds", type=float, default=1.0, help="of work an image")
    parse.add_argument("--side", type=int, help="of the images, in pixels; left out: measured")
    parse.add_argument("--ways", default=",".join(WAYS))
    parse.add_argument("--bare", nargs=2, type=Path, metavar=("IMAGES", "OUTPUT"), help="only the loop, once")
    options = parse.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.bare:
        bare(*options.bare)
        return 0
    ways = options.ways.split(",")
    turns: list[dict[str, Cost]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        side = options.side or calibrated(folder / "one", options.seconds)
        write_images(folder / "images", options.images, side)
        url = None
        if "server" in ways:
            url, _ = stack.enter_context(server(folder / "server", DENOISE_STATE_DIR=str(folder / "state")))
        for turn in range(options.repeats):
            costs = {"bare": cost_of_bare(folder / "images", folder / "out")}
            for way in ways:
                shutil.rmtree(folder / "out", ignore_errors=True)
                engine = way if way in ("processes", "dask") else "local"
                at = url if way == "server" else None
                costs[way] = cost_of_run(folder / "images", folder / "out", "--engine", engine, url=at)
            shutil.rmtree(folder / "out", ignore_errors=True)
            turns.append(costs)
            told = ", ".join(f"{way} {cost.wall:.3f}" for way, cost in costs.items())
            print(f"turn {turn + 1}, seconds an image: {told}", flush=True)
    print(f"{options.images} images of {side} × {side}, {options.repeats} turns; bare: ", end="")
    print(f"{statistics.median(costs['bare'].wall for costs in turns):.3f} s an image")
    print(f"{'':12}{'wall-clock':>24}{'processor':>24}{'server, s':>12}{'start and end, s':>18}")
    for way in ways:
        wall, cpu = (
            [getattr(costs[way], kind) / getattr(costs["bare"], kind) for costs in turns] for kind in ("wall", "cpu")
        )
        of_server, apart = (
            statistics.median(getattr(costs[way], kind) for costs in turns) for kind in ("server", "apart")
        )
        print(f"{way:12}{_ratios(wall):>24}{_ratios(cpu):>24}{of_server:12.3f}{apart:18.1f}")
    document = {"images": options.images, "side": side, "turns": [{w: asdict(c) for w, c in t.items()} for t in turns]}
    print(f"→ {write('overhead', document)}")
    return 0


def _ratios(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} … {max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())

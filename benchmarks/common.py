"""What the benchmarks share: images, noise as the product draws it, scores, the machine's cores, and results as JSON.

PSNR is that of the result clamped to the range of its values, over all pixels and channels; a seed is that of the noise
and of the fit, as `denoise run --seed` has it.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from denoise_core import metrics, noise
from denoise_core.device import Device, choose, cpu_threads

Pixels = npt.NDArray[np.float32]
Given = TypeVar("Given")
Made = TypeVar("Made")

ROOT = Path(__file__).resolve().parents[1]
DATA = (ROOT / ".." / "shared" / "data").resolve()
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ("kodak24", "confocal_pairs", "samples")


@dataclass(frozen=True, eq=False)
class Sample:
    """An image (H, W) or (H, W, C) in [0, 1]: clean, and noisy where its noise is real."""

    name: str
    clean: Pixels
    real: Pixels | None = None

    def noisy(self, kind: str, seed: int, *, clip: bool = False) -> Pixels:
        """The image with noise such as `gauss:25`, as `denoise run` draws it; or its own, where that is real."""
        if self.real is not None:
            return self.real
        return noise.add(self.clean, noise.parse(kind), noise.rng(seed, self.name), clip=clip)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def load(images: str, *, crop: int | None = None, take: str = "all") -> list[Sample]:
    """A set of `IMAGES`, each its centre crop × crop; `take`: all, odd or even (by number, from 1), or the first so many."""
    from skimage import data

    found: list[Sample] = []
    if images == "samples":
        # Not Kodak, and not used to choose settings on it: photographs from scikit-image's package.
        found = [
            Sample(f"{name}.png", _floats(getattr(data, name)()))
            for name in ("astronaut", "chelsea", "coffee", "rocket")
        ]
    elif images == "confocal_pairs":
        for path in sorted((DATA / images / "noisy").glob("*.tif")):
            clean, real = (_floats(_read(DATA / images / kind / path.name)) for kind in ("clean", "noisy"))
            found.append(Sample(path.name, clean, real))
    else:
        found = [Sample(path.name, _floats(_read(path))) for path in sorted((DATA / images).glob("*.png"))]
    if not found:
        raise SystemExit(f"There are no images in {DATA / images}.")
    step = {"all": slice(None), "odd": slice(0, None, 2), "even": slice(1, None, 2)}
    return [_cropped(sample, crop) for sample in found[step[take] if take in step else slice(int(take))]]


def _read(path: Path) -> npt.NDArray[np.generic]:
    with Image.open(path) as image:
        return np.asarray(image)


def _floats(pixels: npt.NDArray[np.generic]) -> Pixels:
    return pixels.astype(np.float32) / np.float32(255)


def _cropped(sample: Sample, side: int | None) -> Sample:
    if side is None:
        return sample
    real = None if sample.real is None else centre(sample.real, side)
    return replace(sample, clean=centre(sample.clean, side), real=real)


def centre(pixels: Pixels, side: int) -> Pixels:
    """The centre side × side, or as much of it as there is."""
    top, left = (max(0, size - side) // 2 for size in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def mirrored(pixels: Pixels, side: int) -> Pixels:
    """The image made side × side: cut, or continued by its mirror images."""
    margins = [(0, max(0, side - size)) for size in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
    return np.ascontiguousarray(np.pad(pixels, margins, mode="symmetric")[:side, :side])


def as_stack(noisy: Pixels) -> Pixels:
    """(H, W) or (H, W, C) as the stack of one frame that `zs_fit` takes."""
    return noisy.reshape(1, *noisy.shape[:2], -1)


def psnr(clean: Pixels, result: Pixels) -> float:
    """Of the result clamped to [0, 1], in dB; infinite where it is the clean image."""
    clamped = np.clip(result.reshape(clean.shape), 0, 1)
    found = metrics.psnr(clean, clamped, data_range=1.0)
    return math.inf if found is None and bool((clean == clamped).all()) else (math.nan if found is None else found)


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation, of two values or more."""
    return statistics.stdev(values) if len(values) > 1 else None


def with_spread(value: float, deviation: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def cpu(threads: int) -> Device:
    """The CPU as the product would use it, with so many threads to a fit."""
    return replace(choose("cpu"), threads=threads)


def cores() -> int:
    """The cores that the benchmark may use: OMP_NUM_THREADS, or all."""
    return cpu_threads()


def in_pool(work: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """`work` on each, one single-threaded piece of work a core, as the product keeps the cores busy."""
    import torch

    torch.set_num_threads(1)
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, given))


@dataclass
class Clock:
    """Seconds on the wall, and of all cores."""

    wall: float = 0.0
    core: float = 0.0


@contextmanager
def clock() -> Iterator[Clock]:
    """Filled in when the block ends."""
    found = Clock()
    wall, core = time.perf_counter(), time.process_time()
    yield found
    found.wall, found.core = time.perf_counter() - wall, time.process_time() - core


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    device = choose("cpu")
    return {
        "cpu": model,
        "cores": cores(),
        "precision": device.precision,
        "torch": str(torch.__version__),
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }


def commit() -> str:
    """What code was measured, as git tells it; `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def write(name: str, document: dict[str, Any]) -> Path:
    """Keep a command's results as RESULTS/name.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "commit": commit(), **document}, indent=1), encoding="utf-8")
    return path


def read(pattern: str) -> list[dict[str, Any]]:
    """The results that match, such as `methods-*`, newest first."""
    paths = sorted(RESULTS.glob(f"{pattern}.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

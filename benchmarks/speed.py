"""Print how long `denoise --help` takes, and a step of each fit against a step of the plain published one.

    python -m benchmarks.speed [--threads N]

The fits are timed alternately in one process, so that a busy machine slows all of them alike; the median of the ratios
counts, not the times.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from skimage import data

from benchmarks.baseline_zsn2n import baseline
from denoise_core import methods
from denoise_core.device import choose

SIDE, STEPS, ROUNDS = 256, 20, 5


class _EnoughError(Exception):
    pass


def _seconds_a_step(fit: Callable[[Callable[..., None]], object]) -> float:
    """Time a fit between its 5th step and STEPS steps later, then leave it."""
    started = 0.0
    calls = 0

    def on_step(*_: object) -> None:
        nonlocal started, calls
        calls += 1
        if calls == 5:
            started = time.perf_counter()
        if calls == 5 + STEPS:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        fit(on_step)
    return (time.perf_counter() - started) / STEPS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=choose("cpu").threads)
    threads = parser.parse_args().threads
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "flows.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    print(f"denoise --help: median {statistics.median(times):.2f} s of {len(times)} (goal: under 0.5 s)")

    torch.set_num_threads(threads)
    device = choose("cpu")
    clean = data.astronaut()[100 : 100 + SIDE, 150 : 150 + SIDE].astype(np.float32) / 255  # type: ignore[no-untyped-call]
    noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
    tensor = torch.from_numpy(noisy.transpose(2, 0, 1).copy())[None]

    def paper(on_step: Callable[..., None]) -> object:
        return methods.denoise(noisy, method="zs-n2n", preset="paper", seed=0, device=device, on_step=on_step)

    plain_ms, paper_ms = [], []
    for _ in range(ROUNDS):
        plain_ms.append(1e3 * _seconds_a_step(lambda on_step: baseline(tensor, callback=on_step)))
        paper_ms.append(1e3 * _seconds_a_step(paper))
    ratio = statistics.median(a / b for a, b in zip(plain_ms, paper_ms, strict=True))
    print(
        f"a step on {SIDE} x {SIDE} RGB, {threads} threads, {device.precision}: published protocol written plainly "
        f"{statistics.median(plain_ms):.1f} ms, preset paper {statistics.median(paper_ms):.1f} ms; "
        f"ratio {ratio:.2f} (median of {ROUNDS} alternated rounds)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much of a faint event in one frame of a stack zs-fit leaves, the frames denoised together and that one by itself.

    python -m benchmarks.blinks [--draws 2]

Four events in the fourth of eight flat frames of 96² with Gaussian noise: squares of 2 × 2 pixels, or spots of 4 pixels at
half height, 2 to 10 times as high as the noise's σ. What is left is the sum, over 13² pixels, of what the
result with the events has more than the result of the same noise without them, over the sum of what was put there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import Pixels, cpu, mean, parser, write
from denoise_core.methods import zs_fit

FRAMES, SIDE, FRAME = 8, 96, 3
SIGMA = 25 / 255
PLACES = ((20, 20), (20, 70), (70, 20), (70, 70))
ROWS, COLUMNS = np.indices((SIDE, SIDE))


def square(row: int, column: int) -> Pixels:
    return ((abs(ROWS - row + 0.5) < 1) & (abs(COLUMNS - column + 0.5) < 1)).astype(np.float32)


def spot(row: int, column: int) -> Pixels:
    return np.exp(-((ROWS - row) ** 2 + (COLUMNS - column) ** 2) / (2 * 1.7**2)).astype(np.float32)


EVENTS = {"2 × 2": square, "spot, 4 at half height": spot}


def left(shape: Callable[[int, int], Pixels], height: float, frames: int, draw: int) -> float:
    """The share that is left, mean over the events."""
    events = np.sum([shape(*place) for place in PLACES], axis=0) * height * SIGMA
    noise = np.random.default_rng(draw).normal(0.4, SIGMA, (frames, SIDE, SIDE)).astype(np.float32)
    frame = min(FRAME, frames - 1)

    def denoised(stack: Pixels) -> Pixels:
        found = zs_fit.denoise(stack[..., None], preset="fast", seed=0, device=cpu(1), on_step=lambda _: None)
        return found.pixels[frame]

    with_events = noise.copy()
    with_events[frame] += events
    more = (denoised(with_events) - denoised(noise))[..., 0]
    around = [(slice(row - 6, row + 7), slice(column - 6, column + 7)) for row, column in PLACES]
    return float(np.mean([more[place].sum() / events[place].sum() for place in around]))


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--draws", type=int, default=2)
    draws = parse.parse_args().draws
    torch.set_num_threads(1)
    table = []
    print(f"{'event':24} {'height, σ':>9} {'by itself':>10} {'of 8':>6}")
    for name, shape in EVENTS.items():
        for height in (2, 4, 6, 10):
            alone, together = (mean([left(shape, height, n, draw) for draw in range(draws)]) for n in (1, FRAMES))
            print(f"{name:24} {height:9} {alone:10.2f} {together:6.2f}", flush=True)
            table.append({"event": name, "height": height, "alone": alone, "together": together})
    write("blinks", {"draws": draws, "left": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())

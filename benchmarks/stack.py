"""zs-fit on a time series of one static scene, real noise: each frame alone (scope image) against all together (stack).

    python -m benchmarks.stack [--preset best] [--seeds 3]

../shared/data/tirf/acsn_TIRF_200Hz.tif, 20 frames of 256², uint16. Two references, neither of them clean:

- mean of the others: each denoised frame against the mean of the 19 other noisy frames. What the stack takes from those frames
  is also in that reference, noise included, which flatters it.
- other half: frames 1–10 are denoised, without the rest, each against the mean of frames 11–20, and the other way round. No noise
  of the reference has gone into the result.

PSNR with a data range of the greatest less the least value of the mean of all frames. The floor is what the clean image
itself would score: the reference's own noise, from the variance of the frames in time.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch

from benchmarks.common import DATA, Pixels, cores, cpu, in_pool, mean, parser, spread, with_spread, write
from denoise_core import metrics
from denoise_core.methods import zs_fit

FILE = DATA / "tirf" / "acsn_TIRF_200Hz.tif"


def denoised(frames: Pixels, scope: str, preset: str, seed: int, kept: Counter[str]) -> Pixels:
    """The frames (F, H, W), one by one or together."""
    if scope == "noisy":
        return frames
    stacks = [frames[..., None]] if scope == "stack" else [frame[None, ..., None] for frame in frames]
    threads = cores() if scope == "stack" else 1
    torch.set_num_threads(1)
    found = in_pool(
        lambda stack: zs_fit.denoise(stack, preset=preset, seed=seed, device=cpu(threads), on_step=lambda _: None),
        stacks,
    )
    kept.update(f"{result.kept}, {result.window} frame(s) together" for result in found)
    return np.concatenate([result.pixels[..., 0] for result in found])


def score(reference: Pixels, result: Pixels, data_range: float) -> float:
    found = metrics.psnr(reference, np.clip(result, 0, 1), data_range=data_range)
    return math.nan if found is None else found


def main() -> int:
    import tifffile

    parse = parser(__doc__)
    parse.add_argument("--preset", choices=list(zs_fit.PRESETS), default="fast")
    parse.add_argument("--seeds", type=int, default=3)
    parse.add_argument("--crop", type=int, help="side of a corner to take, for a quick look")
    options = parse.parse_args()
    frames = (tifffile.imread(FILE).astype(np.float64) / 65535)[:, : options.crop, : options.crop]
    number, half = len(frames), len(frames) // 2
    data_range = float(np.ptp(frames.mean(axis=0)))
    variance = float(frames.var(axis=0, ddof=1).mean())
    single = frames.astype(np.float32)
    halves = [(slice(half), slice(half, None)), (slice(half, None), slice(half))]
    floors = {
        name: 10 * math.log10(data_range**2 * averaged / variance)
        for name, averaged in (("others", number - 1), ("half", half))
    }
    print(
        f"{number} frames {frames.shape[1:]}, data range {data_range * 65535:.0f} of 65535, noise σ {65535 * variance**0.5:.0f}; "
        f"floor {floors['others']:.2f} dB against the mean of the {number - 1} others, {floors['half']:.2f} dB against the "
        "other half"
    )
    rows: dict[str, dict[str, Any]] = {}
    for scope in ("noisy", "image", "stack"):
        kept: Counter[str] = Counter()
        by_others, by_half = [], []
        for seed in range(1 if scope == "noisy" else options.seeds):
            result = denoised(single, scope, options.preset, seed, kept)
            others = [(frames.sum(axis=0) - frame) / (number - 1) for frame in frames]
            by_others.append(mean(score(ref, one, data_range) for ref, one in zip(others, result, strict=True)))
            scores = []
            for mine, other in halves:
                apart = denoised(single[mine], scope, options.preset, seed, Counter())
                scores += [score(frames[other].mean(axis=0), one, data_range) for one in apart]
            by_half.append(mean(scores))
        rows[scope] = {
            "others_db": mean(by_others),
            "others_sd": spread(by_others),
            "half_db": mean(by_half),
            "half_sd": spread(by_half),
            "seeds": len(by_others),
            "kept": dict(kept),
        }
        print(
            f"{scope:6} mean of the others {with_spread(mean(by_others), spread(by_others))} dB; other half "
            f"{with_spread(mean(by_half), spread(by_half))} dB  {dict(kept) or ''}",
            flush=True,
        )
    gains = {key: rows["stack"][f"{key}_db"] - rows["image"][f"{key}_db"] for key in ("others", "half")}
    print(
        f"stack above image: {gains['others']:+.2f} dB by the mean of the others, {gains['half']:+.2f} dB by the other half"
    )
    document = {**vars(options), "rows": rows, "gains": gains, "floors": floors, "data_range": data_range}
    print(f"→ {write(f'stack-{options.preset}' + f'-{options.crop}' * bool(options.crop), document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Images a second on a GPU: 24 fits at once, in one batch, against one after another.

    python -m benchmarks.cuda [--preset best]
    python -m benchmarks.cuda --device cpu --take 2 --seeds 1 --crop 64

Kodak's 256² centre crops with noise of σ = 25, zs-fit, scope image, from the noise estimate to the last pixel; once with one
thread, once with a thread an image. Both are to give the same bytes. `--device cpu` sends the CPU the way of a GPU, in
batches of two: it shows that the command works, and no more than that.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.common import Sample, as_stack, clock, load, mean, parser, psnr, spread, with_spread, write
from denoise_core.device import Device, choose
from denoise_core.errors import DenoiseError
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit import together

NOISE = "gauss:25"


def measure(samples: list[Sample], preset: str, seed: int, device: Device) -> dict[str, Any]:
    """Both ways, and their scores."""
    noisy = [as_stack(sample.noisy(NOISE, seed)) for sample in samples]
    work = functools.partial(zs_fit.denoise, preset=preset, seed=seed, device=device, on_step=lambda _: None)
    with clock() as alone:
        one = [work(image) for image in noisy]
    with clock() as at_once, ThreadPoolExecutor(len(noisy)) as pool:
        many = list(pool.map(work, noisy))
    rates = [len(samples) / took.wall for took in (alone, at_once)]
    return {
        "one_after_another": rates[0],
        "at_once": rates[1],
        "ratio": rates[1] / rates[0],
        "differ": sum(a.pixels.tobytes() != b.pixels.tobytes() for a, b in zip(one, many, strict=True)),
        "db": mean(psnr(sample.clean, found.pixels) for sample, found in zip(samples, many, strict=True)),
    }


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the command")
    parse.add_argument("--preset", choices=zs_fit.PRESETS, default="fast")
    parse.add_argument("--take", default="all", help="all, odd or even images, or the first so many")
    parse.add_argument("--crop", type=int, default=256)
    parse.add_argument("--seeds", type=int, default=3)
    options = parse.parse_args()
    try:
        device = choose(options.device)
    except DenoiseError as error:
        print(f"Nothing was measured: {error}", file=sys.stderr)
        return 2
    if device.name == "cpu":
        torch.set_num_threads(1)
        together.PLACES = 2
        device = dataclasses.replace(device, name="cpu:0")  # by any other name than cpu it counts as a GPU
    samples = load("kodak24", crop=options.crop, take=options.take)
    measure(samples[:1], options.preset, 0, device)  # the first use of a GPU loads its libraries
    rows = []
    for seed in range(options.seeds):
        rows.append(measure(samples, options.preset, seed, device))
        print("  seed {}: {one_after_another:.2f} and {at_once:.2f} images/s".format(seed, **rows[-1]), file=sys.stderr)
    found = {key: mean(row[key] for row in rows) for key in rows[0]}
    ratio_sd = spread([row["ratio"] for row in rows])
    name = "cuda" if device.name.startswith("cuda") else "cuda-way-on-the-cpu"
    path = write(
        name,
        {
            **{"device": device.name, "reason": device.reason, "precision": device.precision},
            **{"preset": options.preset, "noise": NOISE, "side": options.crop, "images": len(samples)},
            **{"ratio": found["ratio"], "ratio_sd": ratio_sd, "rows": rows},
        },
    )
    print(
        f"{len(samples)} crops of {options.crop}², zs-fit {options.preset}, {device.name} ({device.reason}), {device.precision}: "
        f"{found['one_after_another']:.2f} images/s one after another, {found['at_once']:.2f} at once, "
        f"{with_spread(found['ratio'], ratio_sd)} times as many; {found['db']:.2f} dB; results that differ: "
        f"{sum(row['differ'] for row in rows)}"
    )
    print(f"→ {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

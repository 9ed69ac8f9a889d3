"""What zs-fit costs: against the image's size, against the directory's, and where the time goes.

    python -m benchmarks.cost [--preset best] [--sizes 512,1024,2048,4096] [--directories 4,8,16,24] [--rounds 5]

Size: one Kodak image, continued by its mirror images, σ = 25; all cores for the one image. The fit is `Result.fit_seconds`,
noise estimate, windows and judging included; sizes take turns and the median of the rounds counts.

Directory: so many whole Kodak images, the shared fit and the application with its refinement, all cores.

Where the time goes: one whole Kodak image with one thread, each part timed where it is called; parts called within another
count to that one.

The network: operations counted by its layout for all eight turned copies of a tile, margins included, over the seconds that
`self_ensemble` takes. The bare loop is the same convolutions, kernels, biases and tile in the same precision and memory
format, and nothing else; both run in one thread a core, taking turns, and the median of the ratios counts. Since margins and
the choice of tile cost too, a second bare loop runs over 512² pixels without margins, and the image's own pixels alone are
held against it. The machine's best rate is that of square convolutions of 64 to 256 maps, the same way.
"""

from __future__ import annotations

import importlib
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Pixels, as_stack, clock, cores, cpu, in_pool, load, mirrored, parser, write
from benchmarks.methods import fit_shared
from denoise_core import noise
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit.application import TILE
from denoise_core.methods.zs_fit.network import KERNEL, Layout, initial_weights, self_ensemble, unpack

NOISE = "gauss:25"
LARGE = 512
PARTS = {
    # what is timed: module, name in it
    "noise estimate": ("denoise_core.methods.zs_fit", "prepare"),
    "windows to fit to: their non-local estimates": ("denoise_core.methods.zs_fit.prepared", "Prepared.pairs"),
    "fit": ("denoise_core.methods.zs_fit", "fit"),
    "judging": ("denoise_core.methods.zs_fit", "_held_out"),
    "non-local estimate, pass": ("denoise_core.methods.nl_bayes", "_run"),
    "network, application": ("denoise_core.methods.zs_fit.application", "self_ensemble"),
}


def against_size(preset: str, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    clean = load("kodak24", take="1")[0].clean
    torch.set_num_threads(1)
    fits: dict[int, list[float]] = {side: [] for side in sizes}
    applications: dict[int, list[float]] = {side: [] for side in sizes}
    for turn in range(rounds + 1):
        for side in sizes:
            noisy = noise.add(mirrored(clean, side), noise.parse(NOISE), noise.rng(0, f"{side}"))
            found = _denoise(noisy, preset, threads=cores())
            if turn:  # the first round warms up
                fits[side].append(found.fit_seconds)
                applications[side].append(found.denoise_seconds)
    least = statistics.median(fits[sizes[0]])
    print(f"\nagainst the image's size: zs-fit {preset}, RGB, {cores()} threads, median of {rounds}")
    print(f"{'side':>6}{'fit s':>9}{'ratio':>8}{'application s':>15}{'s/megapixel':>13}")
    found_rows = []
    for side in sizes:
        fit, application = statistics.median(fits[side]), statistics.median(applications[side])
        row = {
            "side": side,
            "fit_seconds": fit,
            "fit_ratio": fit / least,
            "application_seconds": application,
            "seconds_a_megapixel": application / side**2 * 1e6,
        }
        found_rows.append(row)
        print(f"{side:6}{fit:9.2f}{fit / least:8.2f}{application:15.2f}{row['seconds_a_megapixel']:13.2f}")
    return found_rows


def against_directory(preset: str, numbers: list[int], crop: int | None) -> list[dict[str, Any]]:
    print(f"\nagainst the directory's size: zs-fit {preset}, {f'{crop}² crops' if crop else 'whole images'}")
    print(f"{'images':>6}{'fit s':>9}{'application s':>15}{'s/image':>9}")
    found = []
    for number in numbers:
        all_noisy = [sample.noisy(NOISE, 0) for sample in load("kodak24", crop=crop, take=str(number))]
        with clock() as fitting:
            model = fit_shared(all_noisy, preset, 0)
        with clock() as applying:
            in_pool(
                lambda y: zs_fit.denoise(
                    as_stack(y),
                    preset=preset,
                    seed=0,
                    device=cpu(1),
                    on_step=lambda _: None,
                    model=model,  # noqa: B023 - called at once
                ),
                all_noisy,
            )
        total = (fitting.wall + applying.wall) / len(all_noisy)
        row = {
            "images": len(all_noisy),
            "fit_seconds": fitting.wall,
            "application_seconds": applying.wall,
            "seconds_an_image": total,
        }
        found.append(row)
        print(f"{len(all_noisy):6}{fitting.wall:9.1f}{applying.wall:15.1f}{total:9.2f}", flush=True)
    return found


def parts(preset: str, crop: int | None) -> dict[str, float]:
    """Seconds of each of PARTS for one image."""
    noisy = load("kodak24", crop=crop, take="1")[0].noisy(NOISE, 0)
    torch.set_num_threads(1)
    _denoise(noisy, preset, threads=1)
    seconds: dict[str, float] = defaultdict(float)
    with _timed(seconds), clock() as whole:
        found = _denoise(noisy, preset, threads=1)
    seconds["everything else"] = whole.wall - sum(seconds.values())
    size = " × ".join(str(size) for size in noisy.shape)
    print(
        f"\nwhere the time goes: zs-fit {preset}, one image {size}, one thread, {whole.wall:.2f} s, kept: {found.kept}"
    )
    for part, took in seconds.items():
        print(f"{part:48}{took:8.2f} s{100 * took / whole.wall:7.1f} %")
    return dict(seconds)


@contextmanager
def _timed(seconds: dict[str, float]) -> Iterator[None]:
    """Count the seconds of PARTS while the block runs, of the outermost call only."""
    inside = False

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*arguments, **named)
            passed = part
            if part.endswith("pass"):
                passed = f"{part} {'one' if arguments[1] is None else 'two'}"
            inside, started = True, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[passed] += time.perf_counter() - started
                inside = False

        return call

    patches = []
    for part, (module, name) in PARTS.items():
        owner: Any = importlib.import_module(module)
        *outer, last = name.split(".")
        for attribute in outer:
            owner = getattr(owner, attribute)
        patches.append(patch.object(owner, last, timed(part, getattr(owner, last))))
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def _denoise(noisy: Pixels, preset: str, threads: int) -> zs_fit.Result:
    return zs_fit.denoise(as_stack(noisy), preset=preset, seed=0, device=cpu(threads), on_step=lambda _: None)


def network(layout: Layout, rounds: int) -> dict[str, Any]:
    """The achieved rate of the network's application, and its share of a bare loop's."""
    dtype = torch.bfloat16 if cpu(1).precision == "bfloat16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    parameters = unpack(layout, initial_weights(layout, generator), dtype)
    tall, wide = (side + 2 * layout.radius for side in TILE)
    z, estimate = (torch.randn(1, layout.channels, tall, wide, generator=generator) for _ in range(2))

    def bare(*shape: int) -> Callable[[], None]:
        lying, standing = (
            torch.randn(1, 2 * layout.channels, *sides).to(dtype, memory_format=torch.channels_last)
            for sides in (shape, shape[::-1])
        )

        def loop() -> None:
            for x in [lying] * 4 + [standing] * 4:
                _convolve(parameters, x)

        return loop

    a_pixel = 8 * layout.operations
    same, large = bare(tall, wide), bare(LARGE, LARGE)
    rates = []
    for _ in range(rounds + 1):
        applied = tall * wide / _seconds(lambda: self_ensemble(parameters, z, estimate))
        rates.append((applied, tall * wide / _seconds(same), LARGE**2 / _seconds(large)))
    rates = rates[1:]  # the first round warms up
    useful = math.prod(TILE) / (tall * wide)
    share = statistics.median(applied / alone for applied, alone, _ in rates)
    share_of_large = statistics.median(useful * applied / alone for applied, _, alone in rates)
    gflops = [statistics.median(each) * a_pixel / 1e9 for each in zip(*rates, strict=True)]
    megapixels = useful * gflops[0] * 1e3 / a_pixel
    print(
        f"{layout.layers} layers × {layout.width} maps, {a_pixel / 1e6:.2f} MFLOP a pixel: {gflops[0]:.0f} GFLOP/s applied in "
        f"tiles of {tall} × {wide}, {gflops[1]:.0f} in the bare loop: {100 * share:.0f} %\n"
        f"    {megapixels:.2f} megapixels/s, margins not counted; {100 * share_of_large:.0f} % of a bare loop over {LARGE}² "
        f"without margins ({gflops[2]:.0f} GFLOP/s)"
    )
    return {
        "layers": layout.layers,
        "width": layout.width,
        "tile": [tall, wide],
        "gflops": gflops[0],
        "bare_gflops": gflops[1],
        "large_gflops": gflops[2],
        "share": share,
        "share_of_large": share_of_large,
        "megapixels_a_second": megapixels,
    }


def _convolve(parameters: list[Tensor], x: Tensor) -> Tensor:
    layers = len(parameters) // 2
    for kernel, bias in zip(parameters[:layers], parameters[layers:], strict=True):
        x = F.conv2d(x, kernel, bias, padding=KERNEL // 2)
    return x


def _seconds(work: Callable[[], object]) -> float:
    """Seconds for one, where each core does one in a thread of its own."""

    def run(_: int) -> None:
        with torch.inference_mode():
            work()

    with clock() as took:
        in_pool(run, range(cores()))
    return took.wall / cores()


def best_rate(rounds: int) -> float:
    """GFLOP/s of the best of several large convolutions."""
    dtype = torch.bfloat16 if cpu(1).precision == "bfloat16" else torch.float32
    best = ("", 0.0)
    for maps, side in ((64, 256), (128, 128), (128, 256), (256, 128)):
        x = torch.randn(1, maps, side, side).to(dtype, memory_format=torch.channels_last)
        kernel = torch.randn(maps, maps, KERNEL, KERNEL).to(dtype, memory_format=torch.channels_last)

        def run(x: Tensor = x, kernel: Tensor = kernel) -> None:
            for _ in range(8):
                F.conv2d(x, kernel, padding=KERNEL // 2)

        operations = 8 * 2 * x[0, 0].numel() * kernel.numel()
        _seconds(run)
        rate = statistics.median(operations / _seconds(run) for _ in range(rounds)) / 1e9
        best = max(best, (f"{maps} maps, {side}²", rate), key=lambda found: found[1])
    print(f"the machine's best: {best[1]:.0f} GFLOP/s, a 3×3 convolution of {best[0]}")
    return best[1]


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--preset", choices=list(zs_fit.PRESETS), default="fast")
    parse.add_argument("--sizes", default="512,1024,2048,4096")
    parse.add_argument("--directories", default="4,8,16,24")
    parse.add_argument(
        "--crop", type=int, help="side of centre crops for the directory and the parts; left out: whole images"
    )
    parse.add_argument("--rounds", type=int, default=5)
    options = parse.parse_args()
    sizes, directories = ([int(value) for value in text.split(",")] for text in (options.sizes, options.directories))
    plans = zs_fit.PRESETS[options.preset]
    found: dict[str, Any] = {**vars(options)}
    found["parts"] = parts(options.preset, options.crop)
    print(
        f"\nthe network: {cpu(1).precision}, channels_last, {cores()} thread(s), one a core, median of {options.rounds}"
    )
    networks = [plan.size for plan in (plans.own, plans.shared) if plan.size is not None]
    layouts = [Layout(3, size.width, size.layers) for size in networks]
    found["network"] = [network(layout, options.rounds) for layout in layouts]
    found["best_gflops"] = best_rate(options.rounds)
    found["size"] = against_size(options.preset, sizes, options.rounds)
    found["directory"] = against_directory(options.preset, directories, options.crop)
    print(f"→ {write(f'cost-{options.preset}' + f'-{options.crop}' * bool(options.crop), found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

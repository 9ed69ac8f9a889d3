"""Style transfer with preset `seed` against the seed document's algorithm written plainly, and its peak memory.

    python -m benchmarks.style [--pairs 3] [--side 256] [--pictures DIR] [--large 4000x3000] [--precision float32]

Both start from the same content, with the same style, weights and threads, for 300 evaluations. Printed are style and content
loss (weighted) at steps 50, 100, …, 300; the losses of both results by the plain objective in float32; and the seconds on
the wall and of all cores: other programs lengthen the first, hardly the second. The plain loop clamps inside its closure
and often breaks down: what its loss was at its lowest stands beside what it ended with.

The memory is the peak of a child process that takes some steps over one large image, enough to fill the
history of L-BFGS, and of one that only imports.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.transform import resize
from torch import Tensor

from benchmarks.baseline_gatys import Objective, baseline
from benchmarks.common import DATA, clock, mean, mirrored, parser, write
from benchmarks.memory import peak_megabytes
from denoise_core.device import choose
from style_core import PRESETS, Features, StyleTargets, load_features, transfer

WEIGHTS = DATA.parent / "weights" / "vgg19_features_conv1_1-conv3_4.pth"
PAIRS = (
    ("astronaut", "immunohistochemistry"),
    ("kodak 23", "kodak 13"),
    ("kodak 15", "coffee"),
    ("chelsea", "retina"),
    ("kodak 05", "kodak 01"),
    ("kodak 04", "hubble_deep_field"),
)
STEPS = 300
LARGE_STEPS = 10  # at 4000 × 3000 the history is full after 8
MARKS = range(50, STEPS + 1, 50)

Losses = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Run:
    """One transfer: style and content loss by step, the same of its result in float32, and what it took."""

    curve: dict[int, Losses]
    final: Losses
    wall: float
    core: float
    image: Tensor

    @property
    def lowest(self) -> float:
        """The least total loss of any step."""
        return min(sum(losses) for losses in self.curve.values())


def picture(name: str, side: int) -> Tensor:
    """A photograph's centre square, (3, side, side) in [0, 1]."""
    if name.startswith("kodak"):
        with Image.open(DATA / "kodak24" / f"{name.split()[1]}.png") as file:
            pixels = np.asarray(file)
    else:
        pixels = getattr(data, name)()[..., :3]
    short = min(pixels.shape[:2])
    top, left = ((length - short) // 2 for length in pixels.shape[:2])
    square = pixels[top : top + short, left : left + short]
    small = resize(square, (side, side), anti_aliasing=True).astype(np.float32)  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))


def plain_state(features: Features) -> dict[str, Tensor]:
    """The same weights under torchvision's names, for the plain objective."""
    places = (0, 2, 5, 7, 10)
    state = {}
    for place, (weight, bias) in zip(places, features.convolutions, strict=True):
        state |= {f"features.{place}.weight": weight.contiguous(), f"features.{place}.bias": bias}
    return state


def final(objective: Objective, image: Tensor) -> Losses:
    with torch.no_grad():
        style, content = objective(image[None])
    return float(style), float(content)


def run_plain(objective: Objective, content: Tensor) -> Run:
    curve: dict[int, Losses] = {}

    def seen(step: int, style: float, shown: float) -> None:
        curve[step] = (style, shown)

    with clock() as took:
        image = baseline(objective, content[None], STEPS, seen)[0]
    return Run(curve, final(objective, image), took.wall, took.core, image)


def run_ours(objective: Objective, content: Tensor, style: Tensor, features: Features, dtype: torch.dtype) -> Run:
    curve: dict[int, Losses] = {}
    preset = replace(PRESETS["seed"], steps=STEPS)
    with clock() as took:
        targets = StyleTargets([style], features, preset, dtype=dtype)
        found = transfer(
            content, targets, on_step=lambda step: curve.__setitem__(step.step, (step.style_loss, step.content_loss))
        )
    return Run(curve, final(objective, found.image), took.wall, took.core, found.image)


def show(names: tuple[str, str], plain: Run, ours: Run) -> None:
    print(
        f"\n{names[0]} in the manner of {names[1]}\n{'step':>6} {'plain: style, content':>26} {'here: style, content':>26}"
    )
    for mark in MARKS:
        there, here = (run.curve.get(mark) for run in (plain, ours))
        print(f"{mark:6} {_two(there):>26} {_two(here):>26}")
    print(f"{'end':>6} {_two(plain.final):>26} {_two(ours.final):>26}   (both in float32)")
    total = sum(ours.final)
    print(
        f"total loss {total:.4g} here; plain {sum(plain.final):.4g} at its end, {plain.lowest:.4g} at its lowest: "
        f"{100 * (total / plain.lowest - 1):+.1f} % against that\n"
        f"wall {plain.wall:.1f} s and {ours.wall:.1f} s, ratio {plain.wall / ours.wall:.2f}; "
        f"cores {plain.core:.1f} s and {ours.core:.1f} s, ratio {plain.core / ours.core:.2f}",
        flush=True,
    )


def _two(losses: Losses | None) -> str:
    return "ended before" if losses is None else f"{losses[0]:.4g}, {losses[1]:.4g}"


def save(folder: Path, name: str, image: Tensor) -> None:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name.replace(' ', '-')}.png")


def large(width: int, height: int, weights: Path, dtype: torch.dtype) -> None:
    """Some steps over one image of this size."""
    features = load_features(weights, PRESETS["seed"].layers)
    preset = replace(PRESETS["seed"], steps=LARGE_STEPS)
    pixels = mirrored(data.astronaut()[..., :3].astype(np.float32) / 255, max(width, height))  # type: ignore[no-untyped-call]
    content = torch.from_numpy(np.ascontiguousarray(pixels[:height, :width].transpose(2, 0, 1)))
    del pixels
    transfer(content, StyleTargets([picture("coffee", 400)], features, preset, dtype=dtype))


def memory(size: str, weights: Path, precision: str) -> dict[str, float]:
    python = [sys.executable, "-m", "benchmarks.style", "--weights", str(weights), "--precision", precision, "--alone"]
    peaks = {"imports": peak_megabytes([*python, "1x1"]), size: peak_megabytes([*python, size])}
    print(
        f"\n{LARGE_STEPS} steps over {size} pixels: peak {peaks[size]:.0f} MB, {peaks[size] - peaks['imports']:.0f} MB above "
        f"{peaks['imports']:.0f} MB of imports"
    )
    return peaks


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--pairs", type=int, default=3)
    parse.add_argument("--side", type=int, default=256)
    parse.add_argument("--weights", type=Path, default=WEIGHTS)
    parse.add_argument("--pictures", type=Path, help="where to keep the results as PNG")
    parse.add_argument("--large", default="4000x3000", help="WIDTHxHEIGHT for the memory; 0 leaves it out")
    parse.add_argument("--precision", choices=("bfloat16", "float32"), help="in place of what suits the processor")
    parse.add_argument("--alone", help="only paint one image of this size: what the memory is measured of")
    options = parse.parse_args()
    device = choose("cpu")
    if options.precision is not None:
        device = replace(device, precision=options.precision, reason="by option")
    dtype = torch.bfloat16 if device.precision == "bfloat16" else torch.float32
    torch.set_num_threads(device.threads)
    if options.alone is not None:
        width, height = map(int, options.alone.split("x"))
        if width > 1:
            large(width, height, options.weights, dtype)
        return 0
    # First, since a child's peak begins with that of the process that it was split off from.
    peaks = memory(options.large, options.weights, device.precision) if options.large != "0" else None
    features = load_features(options.weights, PRESETS["seed"].layers)
    print(f"{options.side} × {options.side}, {device.threads} threads, {device.precision} ({device.reason})")
    rows = []
    for names in PAIRS[: options.pairs]:
        content, style = (picture(name, options.side) for name in names)
        objective = Objective(plain_state(features), content[None], style[None])
        ours = run_ours(objective, content, style, features, dtype)
        plain = run_plain(objective, content)
        show(names, plain, ours)
        rows.append((names, plain, ours))
        if options.pictures is not None:
            for kind, run in (("plain", plain), ("here", ours)):
                save(options.pictures, f"{names[0]}-{names[1]}-{kind}", run.image)
    if rows:
        print(
            f"\nmean of {len(rows)}: total loss against the plain loop's end "
            f"{100 * mean(sum(o.final) / sum(p.final) - 1 for _, p, o in rows):+.1f} %, against its lowest "
            f"{100 * mean(sum(o.final) / p.lowest - 1 for _, p, o in rows):+.1f} %; "
            f"wall {mean(p.wall / o.wall for _, p, o in rows):.2f}, "
            f"cores {mean(p.core / o.core for _, p, o in rows):.2f} times as fast"
        )
    document = {
        "side": options.side,
        "pairs": {
            " / ".join(names): {
                kind: {
                    "curve": {m: run.curve.get(m) for m in MARKS},
                    "final": run.final,
                    "wall": run.wall,
                    "core": run.core,
                }
                for kind, run in (("plain", plain), ("here", ours))
            }
            for names, plain, ours in rows
        },
        "megabytes": peaks,
    }
    print(f"→ {write('style', document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

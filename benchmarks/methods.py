"""Every method, preset and scope, and the published protocol written plainly, measured in one run on one machine.

    python -m benchmarks.methods --crop 256 --noise gauss:25 --clip-noise --baseline-images 24
    python -m benchmarks.methods --noise gauss:15,gauss:50 --only zs-fit-fast
    python -m benchmarks.methods --images confocal_pairs --only zs

Scores: the last iterate, no look at the clean image, PSNR of the clamped result. For each seed, of noise and fit, the mean
over the images; printed are the mean over the seeds and their standard deviation.

Time: all fits of one method run as in the product, one single-threaded fit a core; seconds an image are the whole time over
the number of images, so that both cores count. Scope directory is timed from the first noise estimate to the last image, the
shared fit included. The two whole-image protocols, baseline and zs-n2n-paper, have all cores for one image and nothing beside
them; they run alternately, on a few images of the set and between the others, so that a machine that slows down slows all.

Against the baseline: the difference in dB on those images and seeds that both have; the ratio of the seconds an image.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.baseline_zsn2n import baseline
from benchmarks.common import (
    IMAGES,
    Clock,
    Pixels,
    Sample,
    as_stack,
    clock,
    cores,
    cpu,
    in_pool,
    load,
    mean,
    parser,
    psnr,
    spread,
    with_spread,
    write,
)
from denoise_core import methods
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit.fitting import Fitted

BASELINE, PAPER = "baseline", "zs-n2n-paper"
LABELS = (
    *(BASELINE, PAPER, "zs-n2n-fast", "nl-bayes-fast"),
    *("zs-fit-fast-image", "zs-fit-best-image", "zs-fit-fast-directory", "zs-fit-best-directory"),
)


@dataclass
class Measured:
    """What one label has come to: dB by seed and image, its time, and what zs-fit kept."""

    db: dict[tuple[int, str], float] = field(default_factory=dict)
    wall: float = 0.0
    core: float = 0.0
    shared_fit: float = 0.0
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, seed: int, samples: list[Sample], results: list[Pixels], took: Clock) -> None:
        """Score the results of one seed, and count their time."""
        for sample, result in zip(samples, results, strict=True):
            self.db[seed, sample.name] = psnr(sample.clean, result)
        self.wall, self.core = self.wall + took.wall, self.core + took.core


def whole_image(label: str, noisy: Pixels, seed: int, steps: int) -> Pixels:
    """The baseline or the preset paper, with all cores."""
    torch.set_num_threads(cores())
    if label == PAPER:
        return methods.denoise(noisy, method="zs-n2n", preset="paper", seed=seed, device=cpu(cores())).pixels
    tensor = torch.from_numpy(as_stack(noisy)).permute(0, 3, 1, 2).contiguous()
    return baseline(tensor, steps=steps, seed=seed)[0].permute(1, 2, 0).numpy()


def pooled(label: str, noisy: list[Pixels], seed: int, into: Measured) -> list[Pixels]:
    """All images of a set by one of the other labels."""
    method, preset, scope = label.rsplit("-", 2) if label.startswith("zs-fit") else (*label.rsplit("-", 1), "image")
    if method != "zs-fit":
        return in_pool(
            lambda y: methods.denoise(y, method=method, preset=preset, seed=seed, device=cpu(1)).pixels, noisy
        )
    model = None
    if scope == "directory":
        with clock() as took:
            model = fit_shared(noisy, preset, seed)
        into.shared_fit += took.wall
    found = by_zs_fit(noisy, preset, seed, model)
    into.kept.update(result.kept for result in found)
    return [result.pixels for result in found]


def by_zs_fit(
    noisy: list[Pixels], preset: str, seed: int, model: Fitted | None, fit_own: bool = True
) -> list[zs_fit.Result]:
    """All images of a set, one a core."""
    options = {"preset": preset, "seed": seed, "device": cpu(1), "model": model, "fit_own": fit_own}
    return in_pool(lambda y: zs_fit.denoise(as_stack(y), on_step=lambda _: None, **options), noisy)


def fit_shared(noisy: list[Pixels], preset: str, seed: int) -> Fitted | None:
    """The directory's network, as the product fits it: with all cores, a thread each."""
    torch.set_num_threads(1)
    samples = [lambda y=y: as_stack(y) for y in noisy]
    return zs_fit.fit_directory(samples, preset=preset, seed=seed, device=cpu(cores()), on_step=lambda _: None)


def rows(measured: dict[str, Measured]) -> list[dict[str, Any]]:
    """What is printed and kept of each label."""
    base = measured.get(BASELINE)
    found = []
    for label, one in measured.items():
        if not one.db:
            continue
        by_seed = _by_seed(one.db)
        seconds = one.wall / len(one.db)
        row: dict[str, Any] = {
            "label": label,
            "db": mean(by_seed),
            "db_sd": spread(by_seed),
            "images": len({name for _, name in one.db}),
            "seeds": len(by_seed),
            "seconds": seconds,
            "core_seconds": one.core / len(one.db),
            "seconds_a_seed": one.wall / len(by_seed),
            "shared_fit_seconds": one.shared_fit / len(by_seed),
            "kept": dict(one.kept),
            "each": [[seed, name, value] for (seed, name), value in one.db.items()],
        }
        if base is not None and base.db and label != BASELINE:
            gains = {key: value - base.db[key] for key, value in one.db.items() if key in base.db}
            if gains:
                row["gain_db"], row["gain_sd"] = mean(_by_seed(gains)), spread(_by_seed(gains))
                row["gain_n"] = len(gains)
            row["times_faster"] = base.wall / len(base.db) / seconds
        found.append(row)
    return found


def _by_seed(db: dict[tuple[int, str], float]) -> list[float]:
    """The mean over the images, for each seed."""
    return [mean(value for (of, _), value in db.items() if of == seed) for seed in sorted({seed for seed, _ in db})]


def measure(
    samples: list[Sample], kind: str, clip: bool, labels: list[str], options: dict[str, Any]
) -> Iterator[dict[str, Measured]]:
    """The measurements so far, after each piece of work."""
    measured = {label: Measured() for label in labels}
    seeds = range(options["seeds"])
    few = min(options["baseline_images"], len(samples))
    chosen = [samples[number * len(samples) // few] for number in range(few)]
    whole = [
        (label, sample, seed)
        for seed in seeds[: options["baseline_seeds"]]
        for sample in chosen
        for label in (BASELINE, PAPER)
        if label in labels
    ]
    others: list[tuple[str, int] | None] = [
        (label, seed) for seed in seeds for label in labels if label not in (BASELINE, PAPER)
    ]
    between = -(-len(whole) // max(1, len(others)))
    waiting = iter(whole)
    for job in others or [None]:
        for label, sample, seed in itertools.islice(waiting, between):
            noisy = sample.noisy(kind, seed, clip=clip)
            with clock() as took:
                result = whole_image(label, noisy, seed, options["baseline_steps"])
            measured[label].add(seed, [sample], [result], took)
            yield measured
        if job is not None:
            label, seed = job
            all_noisy = [sample.noisy(kind, seed, clip=clip) for sample in samples]
            with clock() as took:
                results = pooled(label, all_noisy, seed, measured[label])
            measured[label].add(seed, samples, results, took)
            yield measured


def show(found: list[dict[str, Any]], title: str) -> None:
    print(f"\n{title}")
    print(f"{'':22}{'n':>3} {'seeds':>5}  {'dB':14}{'s/image':>9}{'core s':>9}{'all, s':>9}  against the baseline")
    for row in found:
        against = ""
        if "times_faster" in row:
            gain = (
                f"{with_spread(row['gain_db'], row['gain_sd'])} dB (n = {row['gain_n']})" if "gain_db" in row else "–"
            )
            against = f"{gain}, {row['times_faster']:.1f} × as fast"
        kept = ", ".join(f"{name} {count}" for name, count in row["kept"].items())
        print(
            f"{row['label']:22}{row['images']:3} {row['seeds']:5}  {with_spread(row['db'], row['db_sd']):14}"
            f"{row['seconds']:9.2f}{row['core_seconds']:9.2f}{row['seconds_a_seed']:9.1f}  {against}"
            + (f"  [{kept}]" if kept else "")
        )


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--images", choices=IMAGES, default="kodak24")
    parse.add_argument("--crop", type=int, help="side of a centre crop, pixels; left out: whole images")
    parse.add_argument("--noise", default="gauss:25", help="one or more, with commas between")
    parse.add_argument("--clip-noise", action="store_true")
    parse.add_argument("--only", default="", help=f"beginnings of {', '.join(LABELS)}, with commas between")
    parse.add_argument("--seeds", type=int, default=3)
    parse.add_argument("--take", default="all", help="all, odd or even images, or the first so many")
    parse.add_argument("--baseline-steps", type=int, default=3000)
    parse.add_argument("--baseline-images", type=int, default=4, help="of baseline and zs-n2n-paper")
    parse.add_argument("--baseline-seeds", type=int, default=1)
    options = parse.parse_args()
    labels = [label for label in LABELS if label.startswith(tuple(options.only.split(",")))]
    if not labels:
        parse.error(f"--only: nothing begins with {options.only}")
    if options.baseline_images < 1:
        labels = [label for label in labels if label not in (BASELINE, PAPER)]
    samples = load(options.images, crop=options.crop, take=options.take)
    kinds = ["real"] if options.images == "confocal_pairs" else options.noise.split(",")
    for kind in kinds:
        parts = [options.images, str(options.crop or "full"), kind.replace(":", "")]
        parts += ["clipped"] * options.clip_noise + [options.take] * (options.take != "all")
        name = "-".join(["methods", *parts, *([options.only.replace(",", "+")] if options.only else [])])
        document = {**vars(options), "noise": kind}
        found: list[dict[str, Any]] = []
        for measured in measure(samples, kind, options.clip_noise, labels, vars(options)):
            found = rows(measured)
            path = write(
                name, {**document, "rows": found}
            )  # after each, so that a long run that is stopped leaves some
            done = ", ".join(f"{row['label']} {len(row['each'])}" for row in found)
            print(f"  {done}", file=sys.stderr, flush=True)
        clipped = " clipped" if options.clip_noise else ""
        size = f"{options.crop}² centre crops" if options.crop else "whole images"
        show(
            found,
            f"{len(samples)} of {options.images}, {size}, {kind}{clipped}; {cores()} cores, {cpu(1).precision}; "
            f"baseline {options.baseline_steps} steps",
        )
        print(f"→ {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

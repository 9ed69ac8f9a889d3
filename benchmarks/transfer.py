"""A network fitted to 12 Kodak images and applied to the other 12, against one that was fitted to those.

    python -m benchmarks.transfer [--preset best] [--noise gauss:25] [--seeds 3]

The odd images (1, 3, …) are fitted to and the even ones scored, whole images, noise not clipped. Three figures: the odd
images' network applied as `--model` applies it, without fitting further; the even images' own network applied the same way;
and that one as a run of scope directory applies it, refined on each image where that proves better.
"""

from __future__ import annotations

import sys
from collections import Counter

from benchmarks.common import load, mean, parser, psnr, spread, with_spread, write
from benchmarks.methods import by_zs_fit, fit_shared
from denoise_core.methods import zs_fit

KINDS = {
    # network, whether it is fitted further
    "fitted to others": ("odd", False),
    "fitted to these": ("even", False),
    "fitted to these, refined": ("even", True),
}


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--preset", choices=list(zs_fit.PRESETS), default="fast")
    parse.add_argument("--noise", default="gauss:25")
    parse.add_argument("--seeds", type=int, default=3)
    parse.add_argument("--crop", type=int, help="side of centre crops; left out: whole images")
    parse.add_argument("--images", type=int, default=12, help="of each half")
    options = parse.parse_args()
    samples = {half: load("kodak24", crop=options.crop, take=half)[: options.images] for half in ("odd", "even")}
    db: dict[str, list[float]] = {kind: [] for kind in KINDS}
    kept: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for seed in range(options.seeds):
        noisy = {half: [sample.noisy(options.noise, seed) for sample in found] for half, found in samples.items()}
        models = {half: fit_shared(found, options.preset, seed) for half, found in noisy.items()}
        for kind, (half, further) in KINDS.items():
            results = by_zs_fit(noisy["even"], options.preset, seed, models[half], further)
            kept[kind].update(result.kept for result in results)
            scores = [psnr(sample.clean, one.pixels) for sample, one in zip(samples["even"], results, strict=True)]
            db[kind].append(mean(scores))
    print(f"zs-fit {options.preset}, {options.noise}, {len(samples['even'])} images, {options.seeds} seed(s)")
    for kind, values in db.items():
        print(f"{kind:26}{with_spread(mean(values), spread(values))} dB  {dict(kept[kind])}")
    losses = {
        kind: [b - a for a, b in zip(db["fitted to others"], db[kind], strict=True)]
        for kind in ("fitted to these", "fitted to these, refined")
    }
    for kind, lost in losses.items():
        print(f"{kind}: {with_spread(mean(lost), spread(lost), 3)} dB above fitted to others")
    document = {
        **vars(options),
        "db": db,
        "kept": kept,
        "loss_db": mean(losses["fitted to these"]),
        "loss_sd": spread(losses["fitted to these"]),
        "loss_to_refined_db": mean(losses["fitted to these, refined"]),
        "loss_to_refined_sd": spread(losses["fitted to these, refined"]),
        "n": len(samples["even"]),
    }
    print(f"→ {write(f'transfer-{options.preset}' + f'-{options.crop}' * bool(options.crop), document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A directory made to be hostile, for images that are worse off with the directory's network than on their own.

    python -m benchmarks.hostile [--preset best] [--seeds 3] [--clip-noise]

Images of 256² RGB: a screenshot, a night sky and a strong texture, drawn, and photographs, all at σ = 50; one photograph
at σ = 5; a drawing and a photograph without noise added; a checkerboard of single pixels and letters at σ = 25. Scope image
against scope directory: the shared network, refined, and the better one kept by the held-out loss; and both against the
non-local estimate without any network. The worst differences of all images and seeds count: at least −0.1 dB is wanted.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from benchmarks.common import Pixels, Sample, load, mean, parser, psnr, write
from benchmarks.methods import by_zs_fit, fit_shared
from denoise_core.methods import zs_fit

SIDE = 256
VISIBLE = 55.0  # dB: better than that is as good


def screenshot() -> Pixels:
    """Flat panels, and rows of strokes one pixel wide like letters."""
    rng = np.random.default_rng(1)
    image = np.full((SIDE, SIDE, 3), 0.94, np.float32)
    image[:24] = 0.2, 0.3, 0.5
    image[24:, :56] = 0.85, 0.87, 0.9
    for top in range(36, SIDE - 10, 14):
        for left in range(64, SIDE - 12, 7):
            if rng.random() < 0.85:
                strokes = rng.random((9, 5)) < 0.45
                image[top : top + 9, left : left + 5][strokes] = 0.05
    image[60:64, 8:48] = image[100:120, 8:48] = 0.1, 0.5, 0.9
    return image


def night() -> Pixels:
    """Black, with few stars."""
    rng = np.random.default_rng(2)
    image = np.full((SIDE, SIDE, 3), 0.01, np.float32)
    for row, column in rng.integers(2, SIDE - 2, (60, 2)):
        image[row, column] = rng.uniform(0.4, 1)
        image[row - 1 : row + 2, column] += 0.15
        image[row, column - 1 : column + 2] += 0.15
    return np.clip(image, 0, 1)


def texture() -> Pixels:
    """Noise-like, at all scales down to one pixel, and the same in all channels."""
    rng = np.random.default_rng(3)
    waves = np.fft.fft2(rng.standard_normal((SIDE, SIDE)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    grey = np.fft.ifft2(waves / np.maximum(frequency, 0.02) ** 0.5).real
    grey = np.clip(0.5 + 0.2 * grey / grey.std(), 0, 1)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.float32)


def drawing() -> Pixels:
    """Smooth shades and a disc."""
    y, x = np.mgrid[:SIDE, :SIDE] / np.float32(SIDE)
    image = np.stack([x, y, 1 - x * y], axis=2).astype(np.float32)
    image[(x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.05] = 0.9, 0.2, 0.1
    return image


def checkerboard() -> Pixels:
    """Of single pixels, whose noise is found some 8 % too high."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.repeat(np.where((x + y) % 2, 0.86, 0.08)[..., None], 3, axis=2).astype(np.float32)


def directory() -> list[tuple[Sample, str]]:
    """The images and their noise."""
    photographs = load("samples", crop=SIDE)
    drawn = {"screenshot": screenshot, "night": night, "texture": texture}
    faint, clean = load("kodak24", crop=SIDE, take="3")[1:]
    grey = load("kodak24", crop=SIDE, take="5")[4].clean[..., 1:2]
    dark = (load("kodak24", crop=SIDE, take="1")[0].clean ** 6).astype(np.float32)
    return [
        (Sample("grey as colour", np.repeat(grey, 3, axis=2)), "alike:25"),
        (Sample("unlike channels", clean.clean), "unlike:3/10/40"),
        (
            Sample("padded", np.pad(clean.clean[32:-32, 32:-32], ((32, 32), (32, 32), (0, 0)), constant_values=0.5)),
            "inside:20",
        ),
        (Sample("strong texture faint", load("kodak24", crop=SIDE, take="13")[12].clean), "gauss:2"),
        (Sample("high dynamic range", dark), "poisson:60000"),
        *((Sample(name, draw()), "gauss:50") for name, draw in drawn.items()),
        *((sample, "gauss:50") for sample in photographs),
        (Sample("checkerboard", checkerboard()), "gauss:25"),
        (Sample("letters", screenshot()[24:, 56:]), "gauss:25"),
        (Sample(f"{faint.name} faint", faint.clean), "gauss:5"),
        (Sample("drawing", drawing()), "none"),
        (Sample(f"{clean.name} clean", clean.clean), "none"),
    ]


def noisy_of(sample: Sample, kind: str, seed: int, clip: bool) -> Pixels:
    """The noise of `kind`; of three that no option names: the same in all channels, unlike in them, and only inside."""
    white = np.random.default_rng(seed).standard_normal(sample.clean.shape).astype(np.float32) / np.float32(255)
    if kind == "alike:25":
        return sample.clean + 25 * white[..., :1]
    if kind == "unlike:3/10/40":
        return sample.clean + np.array((3, 10, 40), np.float32) * white
    if kind == "inside:20":
        inside = np.zeros(sample.clean.shape[:2], np.float32)
        inside[32:-32, 32:-32] = 20
        return sample.clean + inside[..., None] * white
    return sample.noisy(kind, seed, clip=clip)


def gain(directory_db: float, image_db: float) -> float:
    """The difference in dB; 0 where both are the clean image."""
    return 0.0 if directory_db == image_db else directory_db - image_db


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--preset", choices=list(zs_fit.PRESETS), default="fast")
    parse.add_argument("--seeds", type=int, default=3)
    parse.add_argument("--clip-noise", action="store_true")
    options = parse.parse_args()
    images = directory()
    gains: dict[str, list[float]] = {sample.name: [] for sample, _ in images}
    over_estimate: dict[str, list[float]] = {sample.name: [] for sample, _ in images}
    above: dict[str, list[float]] = {sample.name: [] for sample, _ in images}
    shown: dict[str, list[str]] = {sample.name: [] for sample, _ in images}
    for seed in range(options.seeds):
        all_noisy = [noisy_of(sample, kind, seed, options.clip_noise) for sample, kind in images]
        model = fit_shared(all_noisy, options.preset, seed)
        found = {}
        for scope, network in (("image", None), ("directory", model)):
            found[scope] = by_zs_fit(all_noisy, options.preset, seed, network)
        found["estimate"] = by_zs_fit(all_noisy, options.preset, seed, None, fit_own=False)
        for (sample, _), noisy, alone, shared, estimate in zip(
            images, all_noisy, found["image"], found["directory"], found["estimate"], strict=True
        ):
            dbs = psnr(sample.clean, alone.pixels), psnr(sample.clean, shared.pixels)
            above[sample.name].append(min(dbs[1], VISIBLE) - min(psnr(sample.clean, noisy), VISIBLE))
            gains[sample.name].append(gain(dbs[1], dbs[0]))
            over_estimate[sample.name].append(gain(min(dbs), psnr(sample.clean, estimate.pixels)))
            shown[sample.name].append(f"{dbs[0]:.2f} {alone.kept} → {dbs[1]:.2f} {shared.kept}")
    print(f"zs-fit {options.preset}: dB of scope image → scope directory; difference, worst of {options.seeds} seed(s)")
    for sample, kind in images:
        worst = min(gains[sample.name])
        told = f"{min(above[sample.name]):+6.2f} dB above noisy"
        print(f"{sample.name:21}{kind:15} {worst:+.3f} dB   {told}   {'; '.join(shown[sample.name])}")
    name, worst = min(((name, min(values)) for name, values in gains.items()), key=lambda found: found[1])
    average = mean(value for values in gains.values() for value in values if math.isfinite(value))
    print(f"worst: {name}, {worst:+.3f} dB; mean {average:+.3f} dB")
    below = min(((name, min(values)) for name, values in over_estimate.items()), key=lambda found: found[1])
    print(f"worst against the estimate without a network, of both scopes: {below[0]}, {below[1]:+.3f} dB")
    least = min(((name, min(values)) for name, values in above.items()), key=lambda found: found[1])
    print(f"least above the noisy image: {least[0]}, {least[1]:+.2f} dB")
    document = {
        **vars(options),
        "gains": gains,
        "above_noisy": above,
        "over_estimate": over_estimate,
        "worst_against_estimate": below[1],
        "worst_against_estimate_image": below[0],
        "shown": shown,
        "worst": worst,
        "worst_image": name,
        "mean": average,
    }
    print(f"→ {write(f'hostile-{options.preset}' + '-clipped' * options.clip_noise, document)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every kind of noise that `denoise run --noise` adds, measured against its theory.

    python -m benchmarks.corruptions [--frames 256] [--side 64]

Flat frames of three channels get the noise; each statistic is taken of each frame, and its mean over the frames compared
with the theory, in standard errors of that mean. The spectrum is the mean periodogram in three bands of radial frequency
(cycles a pixel), in units of the variance. JPEG is measured on grey frames of white Gaussian noise, whose DCT coefficients are
Gaussian: the error of a uniform quantiser with the standard's luminance table. Exit status 1 where anything is more than
`MOST` standard errors off.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.common import parser, write
from denoise_core import noise
from denoise_core.noise.kinds import BROWN_BLUR

Values = npt.NDArray[np.float64]
Moment = Callable[[int, float], float]

SPECS = (
    "gauss:5", "gauss:25", "gauss:50", "poisson:5", "poisson:30", "poisson:1000", "poisson-gauss:30/5", "poisson-gauss:5/25",
    "bernoulli:0.1", "bernoulli:0.5", "bernoulli:0.95", "impulse:0.3", "impulse:0.7", "salt-pepper:0.1", "salt-pepper:0.6",
    "text:0.1", "text:0.25", "text:0.5", "brown:5", "brown:25", "brown:50", "jpeg:10", "jpeg:30", "jpeg:75", "jpeg:95",
)  # fmt: skip
RANGES = ("gauss:5-50", "poisson-gauss:10-50/5", "bernoulli:0-0.95", "jpeg:10-90")
INTENSITIES = (0.1, 0.5, 0.9)
BANDS = ((0.0, 0.08), (0.08, 0.2), (0.2, 0.71))
MOST = 5.0
CONTENT = 30.0
"""σ of the frames that JPEG is measured on, on the 0–255 scale."""

# ITU-T T.81, table K.1.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Check:
    """A statistic of some noise: its theory, and its values, one a frame."""

    spec: str
    statistic: str
    theory: float
    values: Values

    @property
    def measured(self) -> float:
        """The mean over the frames."""
        return float(self.values.mean())

    @property
    def deviation(self) -> float:
        """Of the mean from the theory, in standard errors; 0 where all values are the theory's."""
        off = self.measured - self.theory
        if math.isclose(self.measured, self.theory, rel_tol=1e-6, abs_tol=1e-12):
            return 0.0
        error = float(self.values.std(ddof=1)) / math.sqrt(len(self.values))
        return off / error if error > 1e-12 else math.copysign(math.inf, off)


def checks(spec: str, *, frames: int = 256, side: int = 64) -> Iterator[Check]:
    """All statistics of a noise of fixed level."""
    parsed = noise.parse(spec)
    if parsed.kind == "jpeg":
        yield from _jpeg(spec, int(parsed.levels[0].low), frames, side)
        return
    for x in map(float, np.float32(INTENSITIES)):
        yield from _flat(spec, parsed, x, frames, side)


def range_checks(spec: str, *, images: int = 4096) -> Iterator[Check]:
    """The levels that are drawn from ranges: uniform."""
    parsed = noise.parse(spec)
    drawn = [parsed.drawn(noise.rng(0, f"{i}.png")) for i in range(images)]
    for i, (low, high) in enumerate(parsed.levels):
        if low == high:
            continue
        values = np.array([one.levels[i].low for one in drawn])
        whole = noise.KINDS[parsed.kind].parameters[i].whole
        mean, variance = (low + high) / 2, ((high - low + 1) ** 2 - 1 if whole else (high - low) ** 2) / 12
        yield Check(spec, "drawn level, mean", mean, values)
        yield Check(spec, "drawn level, variance", variance, (values - mean) ** 2)


def _flat(spec: str, parsed: noise.Noise, x: float, frames: int, side: int) -> Iterator[Check]:
    clean = np.full((frames, side, side, 3), x, dtype=np.float32)
    found = noise.corrupt(clean, parsed, noise.rng(0, f"{spec} on {x:g}"))
    share = parsed.levels[0].low
    if parsed.kind == "text":  # whole pixels, exactly
        share = round(share * side**2) / side**2
    mean, moment, between_channels = _theory(parsed, share, x)
    residual = found.pixels.astype(np.float64) - mean
    at = f"x = {x:.1f}, "

    def check(statistic: str, theory: float, values: Values) -> Check:
        return Check(spec, at + statistic, theory, values)

    variance = moment(2, mean)
    yield check("mean", mean, mean + _per_frame(residual))
    yield check("variance", variance, _per_frame(residual**2))
    yield check("third central moment", moment(3, mean), _per_frame(residual**3))
    yield check(
        "correlation between channels", between_channels, _per_frame(residual[..., 0] * residual[..., 1]) / variance
    )
    yield check("correlation between frames", 0.0, _per_frame(residual[::2] * residual[1::2]) / variance)
    if found.mask is not None:
        yield check("share of pixels hit", share, _per_frame(found.mask))
    if parsed.kind == "text":
        return  # how letters correlate has no formula
    for lag in ((0, 1), (1, 0), (2, 3)):
        products = residual[:, lag[0] :, lag[1] :] * residual[:, : side - lag[0], : side - lag[1]]
        yield check(f"correlation at {lag}", _correlation(parsed.kind, lag), _per_frame(products) / variance)
    yield from (check(*band) for band in _bands(parsed.kind, residual / math.sqrt(variance)))


def _per_frame(values: npt.NDArray[np.generic]) -> Values:
    return np.asarray(values.reshape(len(values), -1).mean(axis=1, dtype=np.float64))


def _theory(parsed: noise.Noise, first: float, x: float) -> tuple[float, Moment, float]:
    """Of a pixel of intensity x: its mean, its moments E(y - m)^k for k = 2, 3, and the correlation between channels."""
    if parsed.kind in ("gauss", "brown"):
        return x, lambda k, _: (first / 255) ** 2 if k == 2 else 0.0, 0.0
    if parsed.kind in ("poisson", "poisson-gauss"):
        sigma = parsed.levels[1].low / 255 if parsed.kind == "poisson-gauss" else 0.0
        return x, lambda k, _: x / first + sigma**2 if k == 2 else x / first**2, 0.0
    # With probability p a pixel is something else: black, black or white, or uniform.
    other: dict[str, Moment] = {
        "bernoulli": lambda k, m: (-m) ** k,
        "salt-pepper": lambda k, m: ((-m) ** k + (1 - m) ** k) / 2,
    }
    replaced = other.get(parsed.kind, lambda k, m: ((1 - m) ** (k + 1) - (-m) ** (k + 1)) / (k + 1))
    mean = (1 - first) * x + first * replaced(1, 0.0)

    def moment(k: int, m: float) -> float:
        return (1 - first) * (x - m) ** k + first * replaced(k, m)

    if parsed.kind in other:
        return mean, moment, 1.0
    covariance = (1 - first) * (x - mean) ** 2 + first * replaced(1, mean) ** 2
    return mean, moment, covariance / moment(2, mean)


def _correlation(kind: str, lag: tuple[int, int]) -> float:
    """Between pixels that far apart: 0, but for `brown`, whose kernel's autocorrelation it is."""
    if kind != "brown":
        return 0.0
    return math.prod(float(_brown_correlations(d + 1)[d]) for d in lag)


def _brown_correlations(count: int) -> Values:
    """Along one axis, at lags 0, 1, ..."""
    reach = round(4 * BROWN_BLUR)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / BROWN_BLUR) ** 2)
    found = np.correlate(kernel, kernel, "full")[len(kernel) - 1 :] / np.square(kernel).sum()
    return np.pad(found, (0, max(0, count - len(found))))[:count]


def _bands(kind: str, white: Values) -> Iterator[tuple[str, float, Values]]:
    side = white.shape[1]
    power = np.abs(np.fft.fft2(white, axes=(1, 2))) ** 2 / side**2
    # The expected periodogram of a window of n pixels: the transform of c(l) (1 - |l| / n).
    lags = np.arange(side)
    c = _brown_correlations(side) if kind == "brown" else (lags == 0).astype(float)
    tapered = c * (1 - lags / side)
    line = 2 * np.cos(2 * np.pi * np.outer(lags, lags) / side) @ tapered - tapered[0]
    expected = np.outer(line, line)
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency)
    for low, high in BANDS:
        inside = (radius >= low) & (radius < high)
        yield f"power at {low}-{high}", float(expected[inside].mean()), _per_frame(power[:, inside])


def _jpeg(spec: str, quality: int, frames: int, side: int) -> Iterator[Check]:
    # Whole blocks; around 128, which JPEG subtracts.
    levels = noise.rng(0, spec).normal(128, CONTENT, (frames, side // 8 * 8, side // 8 * 8, 1))
    clean = (levels / 255).astype(np.float32)
    error = noise.corrupt(clean, noise.parse(spec), noise.rng(0, spec)).pixels.astype(np.float64) * 255 - levels
    yield Check(spec, "mean error, levels", 0.0, _per_frame(error))
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.clip((LUMINANCE * scale + 50) // 100, 1, 255)
    deviation = math.sqrt(CONTENT**2 + 1 / 12)
    expected = np.mean([_quantiser_error(float(step), deviation) for step in steps.flat])
    yield Check(
        spec, "mean squared error, levels²", float(expected) + 2 / 12, _per_frame(error**2)
    )  # rounded in and out


def _quantiser_error(step: float, deviation: float) -> float:
    """E (v - step round(v / step))² of a Gaussian v."""
    v = np.linspace(-8, 8, 200_001) * deviation
    density = np.exp(-0.5 * (v / deviation) ** 2)
    return float(((v - step * np.rint(v / step)) ** 2 * density).sum() / density.sum())


def main() -> int:
    parse = parser(__doc__)
    parse.add_argument("--frames", type=int, default=256)
    parse.add_argument("--side", type=int, default=64)
    options = parse.parse_args()
    print(f"{'noise':<22} {'statistic':<38} {'theory':>11} {'measured':>11} {'SE off':>7}")
    rows = []
    for found in (
        *(check for spec in SPECS for check in checks(spec, frames=options.frames, side=options.side)),
        *(check for spec in RANGES for check in range_checks(spec)),
    ):
        print(
            f"{found.spec:<22} {found.statistic:<38} {found.theory:>11.5g} {found.measured:>11.5g} {found.deviation:>+7.2f}"
        )
        rows.append(
            {
                "noise": found.spec,
                "statistic": found.statistic,
                "theory": found.theory,
                "measured": found.measured,
                "deviation": found.deviation,
            }
        )
    off = [abs(float(row["deviation"])) for row in rows]
    print(
        "\n| noise | statistics | largest deviation, standard errors | root mean square |\n| --- | ---: | ---: | ---: |"
    )
    for spec in dict.fromkeys(row["noise"] for row in rows):
        mine = [o for o, row in zip(off, rows, strict=True) if row["noise"] == spec]
        print(f"| {spec} | {len(mine)} | {max(mine):.2f} | {math.sqrt(sum(o * o for o in mine) / len(mine)):.2f} |")
    print(
        f"\n{len(rows)} statistics, the largest deviation {max(off):.2f} standard errors, "
        f"root mean square {math.sqrt(sum(o * o for o in off) / len(off)):.2f}; more than {MOST:g}: {sum(o > MOST for o in off)}"
    )
    write("corruptions", {**vars(options), "rows": rows})
    return int(max(off) > MOST)


if __name__ == "__main__":
    sys.exit(main())

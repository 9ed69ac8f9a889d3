"""The noise of an image, estimated from the image alone, and the transform under which it has variance 1 everywhere.

`estimate` fits var = gain · mean + offset to the variances found at several intensities: gain 0 is Gaussian noise of one
level, a gain above 0 Poisson noise with or without a Gaussian part. `Stabiliser` is the affine map or the generalised
Anscombe transform that goes with it.

Foi, Trimeche, Katkovnik and Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting", IEEE TIP 2008 (the
model); Colom and Buades, "Analysis and extension of the Ponomarenko et al. method, estimating a noise curve from a single
image", IPOL 2013 (the variance at one intensity: high frequencies of the patches with the least energy in the low ones);
Mäkitalo and Foi, "Optimal inversion of the generalized Anscombe transformation for Poisson-Gaussian noise", IEEE TIP 2013.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.special import ndtr

from denoise_core.methods.frames import Stack

Pixels = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

PATCH = 8
HIGH_FROM, TOP_FROM = 9, 12  # of the 8×8 cosine transform, the frequencies i + j that are looked at for noise
FALL = 0.5  # energy of texture at the top over that in the other high frequencies
DOUBT = 0.25  # of the logarithm by which taking texture off changed a variance, as its relative error
MOST_PATCHES = 120_000  # of all channels
MOST_GROUPS, PATCHES_A_GROUP = 12, 600  # of like intensity
SHARES = (0.05, 0.1, 0.25, 0.5)  # of a group's patches that are taken: more where they hold no more than noise
LEAST_PATCHES = 60
FLAT, TEXTURED = (
    1.0,
    1.2,
)  # energy in low over that in high frequencies: up to here nothing but noise; from here, texture
INDEPENDENT = 10  # values a patch is worth: neighbouring patches overlap
OF_TEXTURE = 0.03  # relative error of a standard deviation that is not from counting
TOO_HIGH, TOO_LOW = (
    9.0,
    36.0,
)  # most that a group counts against a model, in squared errors: texture makes it come out high
LEAST_LINE = 1.5  # ratio of variances along a line that is told from one level
FURTHER = 12.0  # squared errors by which a line has to be closer
ON_THE_LINE = 0.6  # share of the groups
CLEAR = 2.0  # standard deviations between an end where noise was cut off and patches that tell its level
DARKEST = 0.15  # standard deviations above the end: cut off there, noise leaves the mean of black at 0.4, flat patches' at 0.25
COARSE = 3.0  # steps between values: noise below is too coarse to tell what was cut off
LEAST_CLIPPED = 10  # pixels: a few may have one value by chance
CLIPPED_SHARE = 5e-4  # of the pixels at the least (or greatest) value: above it, that value is where noise was cut off
MOST_DETAILS = 4_000_000  # pixels of an image of which every 2×2 cell is looked at


@dataclass(frozen=True)
class NoiseLevel:
    """var = gain · mean + offset, in the units of the image; `clipped` is the share of pixels at a cut-off end.

    `low` and `high` are the values at which noise was cut off, infinite where it was not.
    """

    gain: float
    offset: float
    low: float
    high: float
    clipped: float
    step: float = 0.0  # the least difference between values

    @property
    def kind(self) -> str:
        """Either "gaussian" or "poisson-gaussian"."""
        return "poisson-gaussian" if self.gain > 0 else "gaussian"

    def sigma(self, mean: float) -> float:
        """The standard deviation of the noise where the clean image is `mean`."""
        return math.sqrt(max(self.gain * mean + self.offset, 0.0))


def estimate(noisy: Pixels) -> NoiseLevel | None:
    """The noise of an image (H, W) or (H, W, C), all channels alike; None where it is too small to tell.

    White noise is assumed: pixels and channels independent. Where it differs from place to place, the lower level is found.
    """
    height, width = noisy.shape[:2]
    if min(height, width) < PATCH:
        return None
    image = noisy.reshape(height, width, -1)
    least, greatest = float(noisy.min()), float(noisy.max())
    at_least, at_greatest = float((noisy == least).mean()), float((noisy == greatest).mean())
    share = max(CLIPPED_SHARE, LEAST_CLIPPED / noisy.size)
    low = least if at_least > share else -math.inf
    high = greatest if at_greatest > share else math.inf
    groups = [group for channel in np.moveaxis(image, 2, 0) for group in curve(channel, MOST_PATCHES // image.shape[2])]
    if groups:
        gain, offset = line(_clear(groups, low, high) or groups)
        sigma = math.sqrt(offset) if gain == 0 else 0.0
        if any(group.mean - low < DARKEST * sigma for group in groups):
            gain, offset = line(groups)  # so dark, and with noise that was cut off? Then it is less there: photons
    else:
        gain, offset = 0.0, by_details(image) ** 2
    values = np.unique(thinned(noisy[None], 20_000))
    step = float(np.diff(values).min()) if len(values) > 1 else 0.0
    coarse = len(values) < 2 or math.sqrt(max(gain * float(image.mean()) + offset, 0)) < COARSE * step
    if coarse or (gain > 0 and low <= -offset / gain + gain):
        low = -math.inf  # no photon came, or one value holds much of the noise: nothing was cut off
    if coarse:
        high = math.inf
    clipped = at_least * (low > -math.inf) + at_greatest * (high < math.inf)
    return NoiseLevel(gain, offset, low, high, clipped, step)


@dataclass(frozen=True)
class Group:
    """Patches of like intensity: their mean, the variance of the noise on them, how many they are.

    `texture` is their energy in low over that in high frequencies: about 1 where there is white noise alone.
    """

    mean: float
    variance: float
    count: int
    texture: float
    doubt: float = 0.0  # relative error of the variance, where texture had to be taken off


def curve(channel: Pixels, most: int = MOST_PATCHES) -> list[Group]:
    """The noise of a channel (H, W) at several intensities, by at most about `most` patches; none where all are constant."""
    windows = np.lib.stride_tricks.sliding_window_view(channel, (PATCH, PATCH))
    every = max(1, math.ceil(math.sqrt(windows.shape[0] * windows.shape[1] / most)))
    every += every % 2 == 0  # odd, so that neither phase of a 2-pixel pattern is left out
    patches = windows[::every, ::every].reshape(-1, PATCH * PATCH).astype(np.float32)
    patches = patches[patches.max(axis=1) > patches.min(axis=1)]  # constant ones are padding, or cut off
    if len(patches) == 0:
        return []
    means = patches.mean(axis=1)
    basis, frequencies = _cosines()
    energies = np.square((patches - means[:, None]) @ basis.T)
    is_high = frequencies >= HIGH_FROM
    in_low = energies[:, ~is_high].mean(axis=1)
    in_high = energies[:, is_high]
    at_top = frequencies[is_high] >= TOP_FROM
    order: npt.NDArray[np.intp] = np.argsort(means, kind="stable")
    found = []
    for members in np.array_split(order, max(1, min(MOST_GROUPS, len(patches) // PATCHES_A_GROUP))):
        flattest = members[np.argsort(in_low[members], kind="stable")]
        chosen: Group | None = None
        for share in SHARES:
            part = flattest[: max(LEAST_PATCHES, int(share * len(flattest)))]
            variance = float(np.median(in_high[part].mean(axis=0, dtype=np.float64)))
            texture = float(in_low[part].mean(dtype=np.float64)) / max(variance, 1e-30)
            group = Group(float(means[part].mean(dtype=np.float64)), variance, len(part), texture)
            if chosen is not None and (texture > FLAT or variance > (1 + OF_TEXTURE) ** 2 * chosen.variance):
                break
            chosen = group
        if chosen is not None and chosen.texture > TEXTURED:
            part = in_high[flattest[: chosen.count]].mean(axis=0, dtype=np.float64)
            top, others = float(part[at_top].mean()), float(part[~at_top].mean())
            variance = min(chosen.variance, max((top - FALL * others) / (1 - FALL), 0.1 * top))
            chosen = replace(chosen, variance=variance, doubt=DOUBT * math.log(chosen.variance / max(variance, 1e-30)))
        if chosen is not None and chosen.variance > 0:
            found.append(chosen)
    return found


@functools.cache
def _cosines() -> tuple[Pixels, npt.NDArray[np.intp]]:
    """The two-dimensional cosine transform of a patch but its mean, (63, 64), and its frequencies i + j."""
    one = dct(np.eye(PATCH), axis=0, norm="ortho")
    frequencies = np.add.outer(np.arange(PATCH), np.arange(PATCH)).ravel()
    return np.kron(one, one)[1:].astype(np.float32), frequencies[1:]


def _clear(groups: list[Group], low: float, high: float) -> list[Group]:
    """Those that are clear of the ends where noise was cut off, if they are not too few to tell."""
    found = [group for group in groups if min(group.mean - low, high - group.mean) > CLEAR * math.sqrt(group.variance)]
    return found if len(found) >= max(1, len(groups) // 4) else []


def line(groups: Sequence[Group]) -> tuple[float, float]:
    """Gain and offset of the noise of several groups; (0, σ²) where a line says no more than one level does."""
    x, v = (np.array([getattr(group, name) for group in groups]) for name in ("mean", "variance"))
    counted = np.sqrt(2 / (np.array([group.count for group in groups]) * INDEPENDENT))
    errors = counted + 2 * OF_TEXTURE + np.array([group.doubt for group in groups])
    weights = 1 / (1 + (np.maximum(0, np.array([group.texture for group in groups]) - TEXTURED) / 0.3) ** 2)
    least = 1e-3 * float(v.min())

    def away(gain: float, offset: float) -> Floats:
        distances: Floats = (np.log(v) - np.log(np.maximum(gain * x + offset, least))) / errors
        return distances

    def cost(gain: float, offset: float) -> float:
        d = away(gain, offset)
        return float((weights * np.minimum(d**2, np.where(d > 0, TOO_HIGH, TOO_LOW))).sum())

    level = min(v.tolist(), key=lambda value: cost(0, value))
    for _ in range(5):
        near = weights / errors**2 * (np.abs(away(0, level)) < 3)
        if near.sum() > 0:
            level = math.exp(float((near * np.log(v)).sum() / near.sum()))
    span = float(np.ptp(x))
    slopes = [
        ((v[j] - v[i]) / (x[j] - x[i]), i)
        for i in range(len(x))
        for j in range(len(x))
        if x[j] - x[i] > 0.15 * span and v[j] > 1.1 * v[i]
    ]
    if len(x) < 3 or not slopes:
        return 0.0, level
    gain, offset = min(((slope, v[i] - slope * x[i]) for slope, i in slopes), key=lambda found: cost(*found))
    for _ in range(8):
        near = weights / (errors * np.maximum(gain * x + offset, least)) ** 2 * (np.abs(away(gain, offset)) < 4)
        if np.count_nonzero(near) < 3:
            break
        slope, intercept = (float(value) for value in np.polyfit(x, v, 1, w=np.sqrt(near)))
        if slope <= 0:
            break
        gain, offset = slope, intercept
    along = np.maximum(gain * x + offset, least)
    on_it = float((weights * (np.abs(away(gain, offset)) < 3)).sum() / weights.sum())
    closer, apart = cost(gain, offset), cost(0, level)
    told = along.max() >= LEAST_LINE * along.min() and on_it >= ON_THE_LINE
    return (gain, offset) if told and closer < min(0.5 * apart, apart - FURTHER) else (0.0, level)


def by_details(noisy: Pixels) -> float:
    """The level of Gaussian noise by the median of diagonal differences (H, W) or (H, W, C), at least 2×2.

    For images of too few patches, and to compare frames with. Donoho and Johnstone, Biometrika 1994, with the differences
    of 2×2 cells as the finest details. Textured images come out too high; constant cells do not count.
    """
    height, width = (side // 2 for side in noisy.shape[:2])
    cells = noisy[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    every = math.ceil(math.sqrt(noisy.size / MOST_DETAILS))
    y: Floats = cells[::every, :, ::every].astype(np.float64)
    details = np.abs(y[:, 0, :, 0] - y[:, 1, :, 0] - y[:, 0, :, 1] + y[:, 1, :, 1]) / 2
    changing = details[y.max(axis=(1, 3)) > y.min(axis=(1, 3))]
    return float(np.median(changing)) / 0.6745 if changing.size else 0.0


@dataclass(frozen=True)
class Stabiliser:
    """A map of intensities under which the noise has standard deviation 1, and back. `centre` becomes 0.

    With a gain: z = 2 √(p + 3/8 + s²), p = (y − black) / gain the number of photons and s the Gaussian part in photons;
    below black a straight line goes on, so that no pixel is lost where the noise model is wrong.
    Without: z = y / sigma. Where noise was cut off at `low` or `high`, the mean of what is left is not the clean value:
    `back` then goes from that mean to the clean value (Foi, "Clipped noisy images", Signal Processing 2009).
    """

    gain: float
    black: float
    spread: float  # s² with a gain; sigma without
    centre: float
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, noise: NoiseLevel, noisy: Stack) -> Stabiliser:
        """For the image that the noise was estimated from."""
        if noise.gain > 0:
            black = max(0.0, -noise.offset / noise.gain)  # the variance is 0 there: a camera's offset
            spread = max(0.0, noise.offset) / noise.gain**2
            plain = cls(noise.gain, black, spread, 0.0)
        else:
            plain = cls(0.0, 0.0, math.sqrt(noise.offset), 0.0, noise.low, noise.high)
        return replace(plain, centre=float(plain.forward(thinned(noisy)).mean(dtype=np.float64)))

    def forward(self, y: Pixels) -> Pixels:
        """To unit noise; any shape."""
        if self.gain == 0:
            scaled: Pixels = (y / np.float32(self.spread) - np.float32(self.centre)).astype(np.float32)
            return scaled
        photons = (y - np.float32(self.black)) / np.float32(self.gain)
        at_black = 0.375 + self.spread
        roots = 2 * np.sqrt(np.maximum(photons, 0) + np.float32(at_black))
        roots += np.minimum(photons, 0) * np.float32(1 / math.sqrt(at_black))
        stabilised: Pixels = (roots - np.float32(self.centre)).astype(np.float32)
        return stabilised

    def back(self, z: Pixels) -> Pixels:
        """The image whose noisy versions have the mean z: the unbiased inverse, not the algebraic one."""
        if self.gain == 0:
            plain: Pixels = ((z + np.float32(self.centre)) * np.float32(self.spread)).astype(np.float32)
            return self._not_cut_off(plain)
        least = 2 * math.sqrt(0.375 + self.spread)
        d = z + np.float32(self.centre)
        photons = self._photons(np.maximum(d, np.float32(least)))
        photons += np.minimum(d - np.float32(least), 0) * np.float32(least / 2)
        found: Pixels = (photons * np.float32(self.gain) + np.float32(self.black)).astype(np.float32)
        return found

    def _photons(self, d: Pixels) -> Pixels:
        """The closed form of the unbiased inverse, 0 at the least."""
        root = math.sqrt(1.5)
        photons: Pixels = d**2 / 4 + root / 4 / d - 11 / 8 / d**2 + 5 * root / 8 / d**3 - 0.125 - self.spread
        return np.maximum(photons, 0)

    def _not_cut_off(self, mean: Pixels) -> Pixels:
        """The clean values whose noise, cut off at `low` and `high`, has the means `mean`."""
        for end, sign in ((self.low, 1.0), (self.high, -1.0)):
            if math.isfinite(end):
                above = np.linspace(0, 4, 401)  # clean values, standard deviations off the end
                density = np.exp(-(above**2) / 2) / math.sqrt(2 * math.pi)
                means = above * ndtr(above) + density
                from_end = (mean - np.float32(end)) * np.float32(sign / self.spread)
                near = np.interp(from_end, means, above).astype(np.float32)
                clean = np.float32(end) + near * np.float32(sign * self.spread)
                mean = np.where(from_end < np.float32(means[-1]), clean, mean)
        return mean


def thinned(stack: Stack, most: int = 1_000_000) -> Pixels:
    """At most about `most` values of a stack (F, H, W, C), from all over its rows and columns."""
    every = math.ceil(math.sqrt(stack.size / most))
    return stack[:, ::every, ::every]

"""The noise of an image, estimated from the image alone, and the transform under which it has variance 1 everywhere.

`estimate` fits var = gain · mean + offset to the variances found at several intensities: gain 0 is Gaussian noise of one
level, a gain above 0 Poisson noise with or without a Gaussian part. `Stabiliser` is the affine map or the generalised
Anscombe transform that goes with it.

Foi, Trimeche, Katkovnik and Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting", IEEE TIP 2008 (the
model); Chen, Zhu and Heng, ICCV 2015 (the level of one group of patches); Mäkitalo and Foi, "Optimal inversion of the
generalized Anscombe transformation for Poisson-Gaussian noise", IEEE TIP 2013 (the inverse).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from denoise_core.diagnostics import noise_variance, sigma_estimate

Pixels = npt.NDArray[np.float32]

PATCH = 8
PATCHES_A_GROUP = 600  # fewer, and the smallest eigenvalues of their covariance come out too low
MOST_GROUPS = 12
MOST_PATCHES = 60_000
MOST_CUT_OFF = 1.2  # by how much cut-off noise makes the whole image's level come out too low
COARSE = 3.0  # steps between values: noise below is too coarse to tell what was cut off
FURTHEST = 7.0  # standard deviations of a patch from its median: further off lie hot pixels and edges
CLEAR = 2.0  # standard deviations between an end where noise was cut off and patches that tell its level
LEAST_CLIPPED = 10  # pixels: a few may have one value by chance
CLIPPED_SHARE = 5e-4  # of the pixels at the least (or greatest) value: above it, that value is where noise was cut off


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

    White noise is assumed: pixels and channels independent.
    """
    robust = _by_details(noisy)
    if robust is None:
        return None
    sigma = sigma_estimate(noisy)
    sigma = robust if sigma is None else sigma
    least, greatest = float(noisy.min()), float(noisy.max())
    at_least, at_greatest = float((noisy == least).mean()), float((noisy == greatest).mean())
    share = max(CLIPPED_SHARE, LEAST_CLIPPED / noisy.size)
    low = least if at_least > share else -math.inf
    high = greatest if at_greatest > share else math.inf
    clear = CLEAR * min(sigma, robust)
    means, variances = _by_intensity(noisy, low + clear, high - clear)
    if variances:  # of patches that are neither cut off nor hold a hot pixel; texture makes them come out higher
        level = math.sqrt(float(np.median(variances)))
        cut_off = low > -math.inf or high < math.inf  # there, noise has less variance: the least textured group tells
        sigma = min(max(sigma, math.sqrt(min(variances))), MOST_CUT_OFF * sigma) if cut_off else min(sigma, level)
    gain, offset = _line(means, variances, sigma)
    values = np.unique(thinned(noisy[None], 20_000))
    step = float(np.diff(values).min()) if len(values) > 1 else 0.0
    coarse = len(values) < 2 or sigma < COARSE * step
    if coarse or (gain > 0 and low <= -offset / gain + gain):
        low = -math.inf  # no photon came, or one value holds much of the noise: nothing was cut off
    if coarse:
        high = math.inf
    clipped = at_least * (low > -math.inf) + at_greatest * (high < math.inf)
    return NoiseLevel(gain, offset, low, high, clipped, step)


def _by_details(noisy: Pixels) -> float | None:
    """The level of Gaussian noise by the median of diagonal differences: for images of too few patches, and hot pixels.

    Donoho and Johnstone, Biometrika 1994, with the differences of 2×2 cells as the finest details. Textured images come
    out too high. None below 8×8 pixels.
    """
    height, width = (side // 2 * 2 for side in noisy.shape[:2])
    if min(height, width) < PATCH:
        return None
    y = noisy[:height, :width].astype(np.float64)
    details = (y[::2, ::2] - y[1::2, ::2] - y[::2, 1::2] + y[1::2, 1::2]) / 2
    return float(np.median(np.abs(details))) / 0.6745


def _by_intensity(noisy: Pixels, low: float, high: float) -> tuple[list[float], list[float]]:
    """Mean and noise variance of groups of patches of like intensity, of means between `low` and `high`."""
    image = noisy.reshape(*noisy.shape[:2], -1)
    found = []
    for channel in range(image.shape[2]):
        windows = np.lib.stride_tricks.sliding_window_view(image[..., channel], (PATCH, PATCH))
        tops, lefts = windows.shape[:2]
        every = max(2, math.ceil(math.sqrt(tops * lefts * image.shape[2] / MOST_PATCHES)))
        every += every % 2 == 0 and every > 2
        patches = windows[::every, ::every].reshape(-1, PATCH * PATCH)
        middles = np.median(patches, axis=1)
        spread = np.median(np.abs(patches - middles[:, None]), axis=1) / 0.6745
        furthest = np.maximum(patches.max(axis=1) - middles, middles - patches.min(axis=1))
        ordinary = (furthest <= FURTHEST * spread) | (spread == 0)
        found.append(patches[(middles > low) & (middles < high) & ordinary])
    chosen: npt.NDArray[np.float64] = np.concatenate(found).astype(np.float64)
    groups = min(MOST_GROUPS, len(chosen) // PATCHES_A_GROUP)
    if groups < 3:
        return [], []
    order: npt.NDArray[np.intp] = np.argsort(chosen.mean(axis=1), kind="stable")
    means, variances = [], []
    for members in np.array_split(order, groups):
        group: npt.NDArray[np.float64] = chosen[members]
        variance = noise_variance(group)
        if variance is not None:
            means.append(float(group.mean()))
            variances.append(variance)
    return means, variances


def _line(means: list[float], variances: list[float], sigma: float) -> tuple[float, float]:
    """Gain and offset; (0, σ²) where a line says no more than one level does."""
    level = sigma**2
    if len(means) < 3 or max(means) - min(means) <= 0:
        return 0.0, level
    x, v = np.array(means), np.array(variances)
    weights = 1 / np.maximum(v, np.median(v) * 0.05 + 1e-20)
    for _ in range(5):  # textured groups come out too high: they lose their weight
        gain, offset = (float(value) for value in np.polyfit(x, v, 1, w=weights))
        fitted = np.maximum(gain * x + offset, 0.05 * np.median(v) + 1e-20)
        ratio = v / fitted
        weights = np.where(ratio > 1, 1 / (1 + 20 * (ratio - 1) ** 2), 1.0) / fitted
    least, greatest = gain * x.min() + offset, gain * x.max() + offset
    if gain <= 0 or greatest < 1.5 * max(least, 0.0):
        return 0.0, level
    constant = max(float(np.median(v)), 1e-20)
    scatter = float(np.median(np.abs(np.log(np.maximum(v, 1e-20) / fitted))))
    if scatter > 0.6 * float(np.median(np.abs(np.log(np.maximum(v, 1e-20) / constant)))):
        return 0.0, level
    return gain, offset


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
    def of(cls, noise: NoiseLevel, noisy: Pixels) -> Stabiliser:
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


def thinned(stack: Pixels, most: int = 1_000_000) -> Pixels:
    """At most about `most` values of a stack (F, H, W, C), from all over its rows and columns."""
    every = math.ceil(math.sqrt(stack.size / most))
    return stack[:, ::every, ::every]

"""Step: turn the result into the file's data type, and measure it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from prefect import task

from denoise_core import diagnostics, metrics
from denoise_core.images import to_float
from denoise_core.images.levels import same_bits
from tasks.intensities import Intensities
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Work, guarded

FRAMES_LOOKED_AT = 8  # of a stack, for what is an estimate anyway
STANDARD_ERRORS = 4.0  # of the noisy image's mean, by which the denoised one's may differ ...
ROUNDING = 0.05  # ... beside so much of a level: flat parts are rounded all the same way


@task(name="evaluate", **STEP)
def evaluate(work: Work, *, step: str = "evaluate") -> None:  # noqa: ARG001 - step names the task run
    """Set ``pixels``, what will be written, and score exactly these against the clean image where there is one."""
    with guarded(work):
        _evaluate(work)


def _evaluate(work: Work) -> None:
    if work.noisy is None or work.denoised is None or work.image is None or work.intensities is None:
        raise RuntimeError("the image was not denoised")
    intensities = work.intensities
    source = work.noisy if work.noisy_is_source else None
    pixels, clipped = intensities.stored(work.denoised, work.image.pixels, source)
    work.pixels = intensities.arrangement.back(pixels)
    if work.image.if_changed and not same_bits(work.pixels, work.image.pixels):
        for what in work.image.if_changed:
            work.remark(what)
    stacks = Stacks(intensities)
    before, after = stacks.means(work.noisy), stacks.means(pixels, of_file=True)
    levels = noise_levels(work, before, functools.partial(stacks.each, diagnostics.sigma_estimate, work.noisy))
    fill(
        work.row,
        clipped_fraction=clipped,
        mean_noisy=mean(before),
        mean_denoised=mean(after),
        residual_autocorrelation=mean(stacks.each(diagnostics.residual_autocorrelation, work.noisy, work.denoised)),
        sigma_estimate=mean(levels),
        flags=None if levels is None else stacks.moved(before, after, levels),
    )
    if work.clean is not None:
        _score(work, pixels, stacks)
    work.clean = work.noisy = work.denoised = None


def noise_levels(work: Work, before: Sequence[float], measured: Callable[[], list[float] | None]) -> list[float] | None:
    """The noise's standard deviation in each stack, of means `before`, in the file's intensities.

    As the method found it, at the mean; where it did not look, as `measured` on the unit scale, if that is known.
    """
    assert work.intensities is not None
    scales = work.intensities.scales
    sigmas = measured() if len(work.noise_levels) < len(scales) else [0.0] * len(scales)
    if sigmas is None:
        return None
    for number, levels in work.noise_levels.items():
        mean_here = (before[number] - scales[number].low) / scales[number].width
        sigmas[number] = sum(level.sigma(mean_here) for level in levels) / len(levels)
    return [sigma * scale.width for sigma, scale in zip(sigmas, scales, strict=True)]


def _score(work: Work, pixels: np.ndarray, stacks: Stacks) -> None:
    """PSNR and SSIM of the noisy image and of what will be written."""
    assert work.clean is not None
    assert work.noisy is not None
    own = stacks.intensities.own
    written = np.empty_like(work.noisy)
    if own is not None:
        clean, noisy, data_range, top = work.clean, work.noisy, 1.0, own.width
        for number, plane in enumerate(pixels):
            written[number] = to_float(plane)
    else:
        clean, noisy = stacks.intensities.of_file(work.clean), stacks.intensities.of_file(work.noisy)
        with np.errstate(over="ignore"):  # only what is missing is beyond float32
            written[...] = pixels
        missing = stacks.intensities.missing
        if missing is not None:  # they count as what was filled in for them, before and after
            written[missing] = noisy[missing]
        data_range = top = float(clean.max()) - float(clean.min())
    if not (math.isfinite(data_range) and data_range > 0):
        return
    ssim = functools.partial(metrics.ssim, data_range=data_range)
    fill(
        work.row,
        data_range=top,
        psnr_noisy_db=metrics.psnr(clean, noisy, data_range=data_range),
        psnr_denoised_db=metrics.psnr(clean, written, data_range=data_range),
        ssim_noisy=mean(stacks.each(ssim, clean, noisy, most=None)),
        ssim_denoised=mean(stacks.each(ssim, clean, written, most=None)),
    )


@dataclass(frozen=True)
class Stacks:
    """Measures of the stacks of an image, each by itself."""

    intensities: Intensities

    def _slices(self) -> list[slice]:
        arrangement = self.intensities.arrangement
        return [arrangement.stack(number) for number in range(arrangement.stacks)]

    def means(self, planes: np.ndarray, *, of_file: bool = False) -> list[float]:
        """The mean of each stack in the file's intensities, of what is not missing; of planes that are `of_file`, or unit."""
        missing, found = self.intensities.missing, []
        for stack, scale in zip(self._slices(), self.intensities.scales, strict=True):
            there: Any = True if missing is None else ~missing[stack]
            value = float(planes[stack].mean(dtype=np.float64, where=there)) if np.any(there) else math.nan
            found.append(value if of_file else value * scale.width + scale.low)
        return found

    def each(
        self, measure: Callable[..., float | None], *planes: np.ndarray, most: int | None = FRAMES_LOOKED_AT
    ) -> list[float] | None:
        """Of each stack, the mean of a measure over its frames, `most` of them; None where one has no value."""
        found = []
        for stack in self._slices():
            every = 1 if most is None else -(-(stack.stop - stack.start) // most)
            frames = zip(*(each[stack][::every] for each in planes), strict=True)
            values = [measure(*each) for each in frames]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                return None
            found.append(sum(known) / len(known))
        return found

    def moved(self, before: list[float], after: list[float], sigmas: list[float]) -> str | None:
        """Which means moved by more than the noise's standard error and rounding explain."""
        pixels = math.prod(self.intensities.arrangement.shape) / len(before)
        step = ROUNDING if self.intensities.dtype.kind != "f" else 0.0
        words = []
        for number, (was, now, sigma) in enumerate(zip(before, after, sigmas, strict=True)):
            limit = STANDARD_ERRORS * sigma / math.sqrt(pixels) + step
            if abs(now - was) > limit:
                where = self.intensities.arrangement.place(number)
                words.append(f"mean{where and f' of {where}'} moved by {now - was:+.3g}, more than {limit:.2g}")
        return "; ".join(words) or None


def mean(values: list[float] | None) -> float | None:
    """The mean; None of no values."""
    return sum(values) / len(values) if values else None

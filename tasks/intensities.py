"""Between the intensities of a file and the planes on the unit scale that the steps work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from denoise_core.images import Scale, changed, fill_missing, find_missing, from_float, own_scale, to_float, with_tails
from denoise_core.methods import intensity_range
from denoise_core.noise import Photons
from tasks.arrangement import Arrangement


@dataclass(frozen=True, eq=False)
class Intensities:
    """The affine map of each stack of an image, and the pixels that no method can take.

    The unit scale is the range of integers of 8 and 16 bits. Other types seldom fill their range: there it is the stack's
    own, from the 0.1st to the 99.9th percentile (wider where that holds next to nothing of a mostly empty image), or from the
    least to the greatest value of images that are clean.
    `missing` (planes, H, W, C) is where pixels are NaN, infinite or too large to compute with; None where none are.
    `peaks` are the greatest values of the stacks, where they are clean and the data type's range is not the unit scale.
    """

    arrangement: Arrangement
    dtype: np.dtype
    scales: tuple[Scale, ...]
    missing: np.ndarray | None
    peaks: tuple[float, ...] | None = None

    @classmethod
    def of(cls, pixels: np.ndarray, arrangement: Arrangement, *, clean: bool) -> tuple[Intensities, np.ndarray]:
        """Those of a file's pixels, and these as float32 planes on the unit scale, missing ones filled in."""
        planes, own = arrangement.planes(pixels), own_scale(pixels.dtype)
        if own is not None:
            found = cls(arrangement, planes.dtype, (own,) * arrangement.stacks, None)
            return found, found._unit(planes)
        stacks = [arrangement.stack(number) for number in range(arrangement.stacks)]
        missing = find_missing(planes)
        filled = _filled(planes, missing)
        scales, peaks = [Scale(*intensity_range(filled[stack])) for stack in stacks], None
        if clean:
            peaks = tuple(float(filled[stack].max()) for stack in stacks)
            scales = [_whole(filled[stack], scale) for stack, scale in zip(stacks, scales, strict=True)]
        else:
            scales = [with_tails(filled[stack], scale) for stack, scale in zip(stacks, scales, strict=True)]
            each = [find_missing(planes[stack], scale) for stack, scale in zip(stacks, scales, strict=True)]
            if any(lost is not None for lost in each):
                missing = np.zeros(planes.shape, bool)
                for stack, lost in zip(stacks, each, strict=True):
                    missing[stack] = False if lost is None else lost
                filled = _filled(planes, missing)
        found = cls(arrangement, planes.dtype, tuple(scales), missing, peaks)
        return found, found._unit(filled)

    def told_missing(self, pixels: np.ndarray) -> list[str]:
        """Notes of what is missing of the file's pixels."""
        if self.missing is None:
            return []
        numbers = int(np.count_nonzero(self.missing & np.isfinite(self.arrangement.planes(pixels))))
        return missing_told(int(np.count_nonzero(self.missing)) - numbers, numbers)

    @property
    def own(self) -> Scale | None:
        """The range of the data type, where that is the unit scale."""
        return own_scale(self.dtype)

    @property
    def photons(self) -> Photons:
        """Where no photons and the most of them are on the unit scale, for each plane: intensity 0, and the greatest one.

        That is the data type's, or where its range is not the unit scale the clean stack's.
        """
        peaks = [scale.high for scale in self.scales] if self.peaks is None else self.peaks
        ends = [to_float(np.array([0.0, peak]), scale) for peak, scale in zip(peaks, self.scales, strict=True)]
        dark, bright = np.repeat(np.array(ends, np.float64), self.arrangement.frames, axis=0).T
        return Photons(dark.reshape(-1, 1, 1, 1), bright.reshape(-1, 1, 1, 1))

    def unit(self, pixels: np.ndarray) -> np.ndarray:
        """Other pixels of the same shape and type as float32 planes on the same scales."""
        return self._unit(self.arrangement.planes(pixels))

    def filled(self, pixels: np.ndarray) -> np.ndarray:
        """The same of other pixels, those that are missing in the file filled in."""
        return _filled(self.unit(pixels), self.missing)

    def of_file(self, values: np.ndarray) -> np.ndarray:
        """Planes of the unit scale as float32 in the file's intensities, neither rounded nor clipped."""
        scaled = np.empty_like(values)
        for number, plane in enumerate(values):
            scale = self._scale_of(number)
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
                scaled[number] = plane * np.float64(scale.width) + scale.low
        return scaled

    def stored(self, denoised: np.ndarray, source: np.ndarray, noisy: np.ndarray | None) -> tuple[np.ndarray, float]:
        """Planes of the unit scale as the file stores them, and the share that was clipped.

        `source` are the file's pixels; where `noisy` is their image on the unit scale, types that float32 cannot tell all
        values of get the change added instead: what was left alone is exactly what it was. Missing pixels stay as they are.
        """
        planes, clipped = self.arrangement.planes(source), 0.0
        pixels = np.empty(denoised.shape, self.dtype)
        for number, plane in enumerate(denoised):
            scale = self._scale_of(number)
            if noisy is None or self.own is not None:
                _, share = from_float(plane, self.dtype, scale, out=pixels[number])
            else:
                before = planes[number] if self.missing is None else np.where(self.missing[number], 0, planes[number])
                _, share = changed(before, plane - noisy[number], scale, out=pixels[number])
            clipped += share
        if self.missing is not None:
            pixels[self.missing] = planes[self.missing]
        return pixels, clipped / len(denoised)

    def _scale_of(self, plane: int) -> Scale:
        return self.scales[plane // self.arrangement.frames]

    def _unit(self, planes: np.ndarray) -> np.ndarray:
        values = np.empty(planes.shape, np.float32)
        for number, plane in enumerate(planes):
            values[number] = to_float(plane, self._scale_of(number))
        return values


def missing_told(numberless: int, too_large: int) -> list[str]:
    """Notes of so many values that are left as they are."""
    told = []
    if numberless:
        told.append(f"{numberless:,} values that are NaN or infinite stay as they are")
    if too_large:
        told.append(f"{too_large:,} values that are too far from all others to compute with stay as they are")
    return told


def _filled(planes: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """Planes with numbers where some are missing."""
    if missing is None:
        return planes
    return np.stack([fill_missing(*plane) for plane in zip(planes, missing, strict=True)])


def _whole(stack: np.ndarray, robust: Scale) -> Scale:
    """From the least to the greatest value, where they differ."""
    low, high = float(stack.min()), float(stack.max())
    return Scale(low, high) if low < high else robust

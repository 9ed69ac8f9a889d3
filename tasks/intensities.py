"""Between the intensities of a file and the planes on the unit scale that the steps work on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from denoise_core.images import Scale, changed, fill_missing, from_float, own_scale, to_float
from denoise_core.methods import intensity_range
from tasks.arrangement import Arrangement


@dataclass(frozen=True, eq=False)
class Intensities:
    """The affine map of each stack of an image, and the pixels that no method can take.

    The unit scale is the range of integers of 8 and 16 bits. Other types seldom fill their range: there it is the stack's
    own, from the 0.1st to the 99.9th percentile, or from the least to the greatest value of images that are clean.
    `missing` (planes, H, W, C) is where pixels are NaN or infinite; None where none are.
    """

    arrangement: Arrangement
    dtype: np.dtype
    scales: tuple[Scale, ...]
    missing: np.ndarray | None

    @classmethod
    def of(cls, pixels: np.ndarray, arrangement: Arrangement, *, clean: bool) -> tuple[Intensities, np.ndarray]:
        """Those of a file's pixels, and these as float32 planes on the unit scale, missing ones filled in."""
        planes, missing = arrangement.planes(pixels), None
        if planes.dtype.kind == "f" and not np.isfinite(planes).all():
            missing = ~np.isfinite(planes)
            planes = np.stack([fill_missing(*plane) for plane in zip(planes, missing, strict=True)])
        own = own_scale(planes.dtype)
        stacks = (planes[arrangement.stack(number)] for number in range(arrangement.stacks))
        scales = tuple(own or _scale(stack, clean=clean) for stack in stacks)
        found = cls(arrangement, planes.dtype, scales, missing)
        return found, found._unit(planes)

    @property
    def own(self) -> Scale | None:
        """The range of the data type, where that is the unit scale."""
        return own_scale(self.dtype)

    def unit(self, pixels: np.ndarray) -> np.ndarray:
        """Other pixels of the same shape and type as float32 planes on the same scales."""
        return self._unit(self.arrangement.planes(pixels))

    def filled(self, pixels: np.ndarray) -> np.ndarray:
        """The same of other pixels, those that are missing in the file filled in."""
        values = self.unit(pixels)
        if self.missing is None:
            return values
        return np.stack([fill_missing(*plane) for plane in zip(values, self.missing, strict=True)])

    def of_file(self, values: np.ndarray) -> np.ndarray:
        """Planes of the unit scale as float32 in the file's intensities, neither rounded nor clipped."""
        scaled = np.empty_like(values)
        for number, plane in enumerate(values):
            scale = self._scale_of(number)
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


def _scale(stack: np.ndarray, *, clean: bool) -> Scale:
    low, high = (float(stack.min()), float(stack.max())) if clean else intensity_range(stack)
    return Scale(low, high) if low < high else Scale(*intensity_range(stack))

"""Between a file's own intensities and the unit scale that the methods work on; and smaller versions of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Part = slice | EllipsisType
PART_VALUES = 4_000_000  # computed at once


@dataclass(frozen=True)
class Scale:
    """The one affine map of a stack: the intensities that become 0 and 1."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """What 1 is worth, in the file's intensities."""
        return self.high - self.low


def own_scale(dtype: DTypeLike) -> Scale | None:
    """The range of integers of 8 and 16 bits; None for what seldom fills its type: wider integers, and floats."""
    kind = np.dtype(dtype)
    if kind.kind not in "ui" or kind.itemsize > 2:
        return None
    limits = np.iinfo(kind)
    return Scale(float(limits.min), float(limits.max))


def to_float(pixels: NDArray[Any], scale: Scale | None = None) -> NDArray[np.float32]:
    """Intensities as float32 on the unit scale, not clipped; any shape.

    `scale` may be left out for integers of 8 and 16 bits, whose range it then is. Raises ValueError for other dtypes
    without one.
    """
    scale = scale or _own_scale(pixels.dtype)
    if pixels.dtype.kind == "u" and scale == own_scale(pixels.dtype):
        values: NDArray[np.float32] = np.divide(pixels, np.float32(scale.high), dtype=np.float32)
        return values
    values = np.empty(pixels.shape, np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        for part in parts(pixels):
            values[part] = (pixels[part].astype(np.float64) - scale.low) / scale.width
    return values


def from_float(
    values: NDArray[Any], dtype: DTypeLike, scale: Scale | None = None, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], float]:
    """Values on the unit scale as intensities of `dtype`: clipped, never wrapped, and rounded for integers.

    Returns the intensities (native byte order, same shape; `out`, where given) and the share, 0 to 1, of samples that lay
    more than half a level outside the range and were therefore changed by clipping. Raises ValueError for NaN, and as
    `to_float`.
    """
    target = np.dtype(dtype).newbyteorder("=")
    scale = scale or _own_scale(target)
    # float64 input stays float64; float32 resolves a 256th of a 16-bit level, which rounding forgives.
    plain = target.kind == "u" and scale == own_scale(target)
    kind = np.result_type(values, np.float32)

    def scaled(part: Part) -> NDArray[Any]:
        if plain:
            found: NDArray[Any] = np.multiply(values[part], scale.high, dtype=kind)
            return found
        return np.asarray(values[part] * np.float64(scale.width) + scale.low)

    return _stored(values, scaled, target, out)


def changed(
    pixels: NDArray[Any], change: NDArray[np.float32], scale: Scale, *, out: NDArray[Any] | None = None
) -> tuple[NDArray[Any], float]:
    """The `pixels` with a change on the unit scale: exactly themselves where that is 0, which float32 could not give back.

    Returns what `from_float` does.
    """
    return _stored(pixels, lambda part: pixels[part] + change[part] * np.float64(scale.width), pixels.dtype, out)


def _stored(
    like: NDArray[Any], scaled: Callable[[Part], NDArray[Any]], target: np.dtype[Any], out: NDArray[Any] | None
) -> tuple[NDArray[Any], float]:
    """What `scaled` gives of each part of an array such as `like`, as `target`; and the share that was clipped."""
    limits: Any = np.finfo(target) if target.kind == "f" else np.iinfo(target)
    low, high = float(limits.min), float(limits.max)
    half = 0.0 if target.kind == "f" else 0.5
    stored, outside = np.empty(like.shape, target) if out is None else out, 0
    for part in parts(like):
        values = scaled(part)
        if np.isnan(values).any():
            raise ValueError("the values hold NaN, which no pixel can store")
        outside += int(np.count_nonzero(values < low - half) + np.count_nonzero(values > high + half))
        values = np.clip(values, low, high)
        stored[part] = values if target.kind == "f" else np.rint(values)
    return stored, outside / like.size if like.size else 0.0


def light(inks: NDArray[Any], top: float) -> NDArray[np.float32]:
    """The light (..., 3) that the inks of CMYK (..., 4) leave of white paper; `top` is full ink, and full light."""
    free = np.subtract(top, inks, dtype=np.float32)
    seen: NDArray[np.float32] = free[..., :3] * (free[..., 3:] / np.float32(top))
    return seen


def parts(array: NDArray[Any]) -> Iterator[Part]:
    """An array piece by piece along its first axis: what is computed in between takes little memory."""
    if array.ndim == 0:
        yield ...
        return
    step = max(1, PART_VALUES * len(array) // max(1, array.size))
    for start in range(0, len(array), step):
        yield slice(start, start + step)


def _own_scale(dtype: np.dtype[Any]) -> Scale:
    scale = own_scale(dtype)
    if scale is None:
        raise ValueError(f"{dtype} has no range that its values fill: give a scale")
    return scale


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays of one shape and dtype hold the same bits, NaN among them."""
    form = f"u{a.dtype.itemsize}"
    return np.array_equal(np.ascontiguousarray(a).view(form), np.ascontiguousarray(b).view(form))


def area_means(plane: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """A smaller version (height, width, S) of a plane (H, W, S): the mean over the area of each pixel, of one dtype."""
    smaller = _means_along(_means_along(plane.astype(np.float64), height).swapaxes(0, 1), width).swapaxes(0, 1)
    if plane.dtype.kind != "f":
        np.rint(smaller, out=smaller)
    return np.ascontiguousarray(smaller.astype(plane.dtype))


def _means_along(values: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Means over `number` equal parts of the first axis, whose ends may lie between two values."""
    ends = np.arange(number + 1) * len(values) / number
    whole = np.minimum(ends.astype(int), len(values) - 1)
    sums: NDArray[np.float64] = np.add.reduceat(values, whole[:-1])  # from the value at one end to before the other's
    for part, share in enumerate(ends[1:-1] - whole[1:-1]):
        if share > 0:
            cut = share * values[whole[part + 1]]
            sums[part] += cut
            sums[part + 1] -= cut
    return sums * (number / len(values))

"""Between a file's integer levels and the unit scale that the methods work on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def to_float(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Integer levels as float32 in [0, 1]: divided by the dtype's maximum. Any shape, uint8 or uint16."""
    top = _top(pixels.dtype)
    values: NDArray[np.float32] = np.divide(pixels, np.float32(top), dtype=np.float32)
    return values


def from_float(values: NDArray[Any], dtype: DTypeLike) -> tuple[NDArray[Any], float]:
    """Unit-scale values as integer levels: rounded and clipped, never wrapped.

    Returns the levels (native byte order, same shape) and the share, 0 to 1, of samples that lay more than half a level
    outside the range and were therefore changed by clipping. Raises ValueError for NaN, which no level can stand for.
    """
    target = np.dtype(dtype).newbyteorder("=")
    top = _top(target)
    # float64 input stays float64; float32 resolves a 256th of a 16-bit level, which rounding forgives.
    scaled = np.multiply(values, top, dtype=np.result_type(values, np.float32))
    if np.isnan(scaled).any():
        raise ValueError("the values hold NaN, which no pixel can store")
    outside = np.count_nonzero(scaled < -0.5) + np.count_nonzero(scaled > top + 0.5)
    np.clip(scaled, 0, top, out=scaled)
    np.rint(scaled, out=scaled)
    return scaled.astype(target), outside / scaled.size if scaled.size else 0.0


def _top(dtype: np.dtype[Any]) -> int:
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise ValueError(f"levels are uint8 or uint16, not {dtype}")
    return int(np.iinfo(dtype).max)

"""Pixels that hold no number to work with: NaN and infinity, as masks and background corrections leave them, and giants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from denoise_core.images.levels import Scale

_LARGEST = 1e307  # sums and differences of some such are numbers still
_FARTHEST = 1e6  # widths of the image's range: from 1e7 on a single pixel costs all others of float32's 7 digits

_GAP = 1e3  # times as far as the next: the tails of a simulated bead have none, beyond a broken pixel is one


def with_tails(values: NDArray[Any], scale: Scale) -> Scale:
    """The range of an image of these values, none of them missing, whose robust range is `scale`.

    That range, but where values lie a million of its widths away and there is no gap up to them: then the robust range is that
    of what a mostly empty image, such as one simulated bead, has around its signal. It is widened to hold all up to the
    first gap. Values inside of `scale` may be left out.
    """
    if find_missing(values, scale) is None:
        return scale
    outside = values[(values < scale.low) | (values > scale.high)].astype(np.float64)
    away = np.maximum(scale.low - outside, outside - scale.high)
    order = np.argsort(away)
    away = away[order]
    gaps = np.flatnonzero(away > _GAP * np.maximum.accumulate(np.append(scale.width, away[:-1])))
    joined = outside[order][: gaps[0] if len(gaps) else None]
    if not len(joined) or find_missing(joined, scale) is None:
        return scale
    return Scale(min(scale.low, float(joined.min())), max(scale.high, float(joined.max())))


def find_missing(pixels: NDArray[Any], scale: Scale | None = None) -> NDArray[np.bool_] | None:
    """Where pixels of any shape are NaN, infinite, or too large to be computed with; None where none are.

    Without a `scale` those are too large whose range would be no number; with one, those that are a million times its width
    away from it.
    """
    if pixels.dtype.kind != "f" and scale is None:
        return None
    limits: Any = np.finfo(pixels.dtype) if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype)
    low, high = max(float(limits.min), -_LARGEST), min(float(limits.max), _LARGEST)
    if scale is not None:
        low, high = max(low, scale.low - _FARTHEST * scale.width), min(high, scale.high + _FARTHEST * scale.width)
    if low <= float(pixels.min()) and float(pixels.max()) <= high:
        return None
    kind = pixels.dtype.type if pixels.dtype.kind == "f" else np.float64
    found: NDArray[np.bool_] = ~((pixels >= kind(low)) & (pixels <= kind(high)))
    return found


def fill_missing(plane: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[Any]:
    """A plane (H, W, C) with numbers where `missing` (H, W, C) says that there are none.

    Each is the mirror image at the edge of the region that it lies in: noise goes on there as it is beside it, and no
    estimate of it is led astray. Where the mirror image is missing too, a pixel of the plane is drawn by a fixed seed. A
    channel without any number becomes 0.
    """
    filled = plane.copy()
    for channel in range(plane.shape[2]):
        holes = missing[..., channel]
        if holes.all():
            filled[..., channel] = 0
        elif holes.any():
            filled[..., channel][holes] = _mirrored(plane[..., channel], holes)
    return filled


def _mirrored(plane: NDArray[Any], holes: NDArray[np.bool_]) -> NDArray[Any]:
    """Values for the holes of a plane (H, W), in the order of their positions."""
    at = np.argwhere(holes)
    nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)[:, holes].T
    beyond = 2 * nearest - at
    inside = ((beyond >= 0) & (beyond < plane.shape)).all(axis=1)
    beyond[~inside] = 0
    known = inside & ~holes[tuple(beyond.T)]
    drawn: NDArray[Any] = np.random.default_rng(0).choice(plane[~holes], len(at))
    return np.where(known, plane[tuple(beyond.T)], drawn)

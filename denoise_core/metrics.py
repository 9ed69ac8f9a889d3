"""PSNR and SSIM against a clean reference, in float64. The data range is always stated, never guessed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.generic]

ROWS = 512  # a strip of this many rows at a time, so that a large image is never whole in float64


def psnr(reference: Image, test: Image, *, data_range: float) -> float | None:
    """Peak signal-to-noise ratio 10·log10(data_range² / MSE), over all pixels and channels.

    Parameters
    ----------
    reference, test : array, any dtype
        Of one shape.
    data_range : float
        The largest value that a pixel can take less the smallest, for example 255.

    Returns
    -------
    float or None
        dB; None, never infinity, where the two are identical, or where a pixel is NaN or infinite.

    Raises
    ------
    ValueError
        For shapes that differ, empty images, and a data range that is not above 0.
    """
    _check(reference, test, data_range)
    total = 0.0
    for rows in _strips(reference.shape[0]):
        # Subtracted as float64: unsigned integers would wrap around.
        difference = reference[rows].astype(np.float64) - test[rows].astype(np.float64)
        total += float(np.square(difference, out=difference).sum())
    mse = total / reference.size
    if mse == 0 or not math.isfinite(mse):
        return None
    return 10 * (2 * math.log10(data_range) - math.log10(mse))


def ssim(reference: Image, test: Image, *, data_range: float) -> float | None:
    """Mean structural similarity as Wang, Bovik, Sheikh and Simoncelli (IEEE TIP 2004) define it.

    Gaussian weights with σ = 1.5 in an 11×11 window, K1 = 0.01, K2 = 0.03, population covariance, averaged over the
    pixels whose window lies inside the image and then over channels.

    Parameters
    ----------
    reference, test : (H, W) or (H, W, C), any dtype
        Of one shape.
    data_range : float
        As for `psnr`.

    Returns
    -------
    float or None
        At most 1; None where the image is less than 11 pixels high or wide, or where a pixel is NaN or infinite.

    Raises
    ------
    ValueError
        For shapes that differ or are not (H, W[, C]), and a data range that is not above 0.
    """
    _check(reference, test, data_range)
    if reference.ndim not in {2, 3}:
        raise ValueError(f"SSIM needs images (H, W) or (H, W, C), found shape {reference.shape}.")
    height, width = reference.shape[:2]
    margin = 5
    if min(height, width) < 2 * margin + 1:
        return None
    x, y = (image.reshape(height, width, -1) for image in (reference, test))
    total = 0.0
    for rows in _strips(height - 2 * margin):
        strip = slice(rows.start, rows.stop + 2 * margin)
        for channel in range(x.shape[2]):
            similarity = _similarity(
                x[strip, :, channel].astype(np.float64), y[strip, :, channel].astype(np.float64), data_range
            )
            total += float(similarity[margin:-margin, margin:-margin].sum())
    mean = total / (x.shape[2] * (height - 2 * margin) * (width - 2 * margin))
    return mean if math.isfinite(mean) else None


def _similarity(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], data_range: float) -> npt.NDArray[np.float64]:
    """Equation 13 of the paper at every pixel."""

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        smoothed: npt.NDArray[np.float64] = ndimage.gaussian_filter(values, sigma=1.5, radius=5)
        return smoothed

    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mx, my = mean(x), mean(y)
    sxx, syy, sxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    similarity: npt.NDArray[np.float64] = ((2 * mx * my + C1) * (2 * sxy + C2)) / (
        (mx * mx + my * my + C1) * (sxx + syy + C2)
    )
    return similarity


def _strips(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS))


def _check(reference: Image, test: Image, data_range: float) -> None:
    if reference.shape != test.shape or reference.size == 0:
        raise ValueError(f"The images must have one shape, found {reference.shape} and {test.shape}.")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"The data range must be a number above 0, found {data_range}.")

"""What can be said of a noisy image and of its denoised one without a clean one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.generic]

PATCH = 8
STRIDES = (3, 2, 1)  # the paper's, and closer ones for small images
ENOUGH, LEAST = 20, 8  # patches for each of their dimensions; with fewer, the eigenvalues spread and σ comes out low
MOST_PATCHES = 100_000
ROWS = 256  # looked at at once, so that a large image takes no more memory


def sigma_estimate(noisy: Image) -> float | None:
    """The standard deviation of white Gaussian noise in an image, blindly.

    Chen, Zhu and Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015: the covariance
    of 8×8×C patches (stride 3) has σ² as the eigenvalue of every direction that holds noise alone; the largest
    eigenvalues are dropped until mean and median of the others agree. Small images depart from the paper: their
    patches lie closer, and where that is not enough, each channel is estimated by itself.

    Parameters
    ----------
    noisy : (H, W) or (H, W, C), any dtype
        More than four channels are estimated one by one and averaged as variances.

    Returns
    -------
    float or None
        In the units of the array, over all channels; None where the image has too few patches for their covariance
        or where a pixel is NaN or infinite.
    """
    image = noisy.reshape(*noisy.shape[:2], -1)
    channels = image.shape[2]
    if channels <= 4 and _stride(image, ENOUGH) is not None:
        found = [_variance(image)]
    else:
        found = [_variance(image[..., c : c + 1]) for c in range(channels)]
    variances = [variance for variance in found if variance is not None]
    return math.sqrt(sum(variances) / len(found)) if len(variances) == len(found) else None


def _stride(image: Image, enough: int) -> int | None:
    """The widest stride that gives `enough` patches for each dimension of a patch."""
    height, width, channels = image.shape
    if min(height, width) < PATCH:
        return None
    for stride in STRIDES:
        patches = ((height - PATCH) // stride + 1) * ((width - PATCH) // stride + 1)
        if patches >= enough * PATCH * PATCH * channels:
            return stride
    return None


def _variance(image: Image) -> float | None:
    height, width, channels = image.shape
    size = PATCH * PATCH * channels
    stride = _stride(image, ENOUGH) or _stride(image, LEAST)
    if stride is None:
        return None
    tops, lefts = range(0, height - PATCH + 1, stride), range(0, width - PATCH + 1, stride)
    # Large images: every n-th row of patches, n odd so that neither phase of a 2-pixel pattern is left out.
    thin = math.ceil(len(tops) * len(lefts) / MOST_PATCHES)
    tops = tops[:: thin + (thin % 2 == 0)]

    count, total, products = 0, np.zeros(size), np.zeros((size, size))
    centre = float(image[:PATCH].astype(np.float64).mean())  # keeps the sums small beside a large offset
    for top in tops:
        rows = image[top : top + PATCH].astype(np.float64) - centre
        windows = np.lib.stride_tricks.sliding_window_view(rows, (PATCH, PATCH), axis=(0, 1))[0, ::stride]
        patches = windows.reshape(len(windows), size)
        count += len(patches)
        total += patches.sum(axis=0)
        products += patches.T @ patches
    mean = total / count
    return _noise_eigenvalue(products / count - np.outer(mean, mean))


def _noise_eigenvalue(covariance: npt.NDArray[np.float64]) -> float | None:
    if not np.isfinite(covariance).all():
        return None
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance), 0)  # ascending
    while len(eigenvalues) > 1 and eigenvalues.mean() > np.median(eigenvalues):
        eigenvalues = eigenvalues[:-1]
    return float(eigenvalues.mean())


def residual_autocorrelation(noisy: Image, denoised: Image) -> float | None:
    """How alike neighbouring pixels of the residual are: its normalised autocorrelation at a lag of one pixel.

    Near 0 where what was removed is white noise. Well above 0: the noise is spatially correlated, or image structure
    was removed. Mean of the horizontal and the vertical lag and of the channels.

    Parameters
    ----------
    noisy, denoised : (H, W) or (H, W, C), any dtype
        Of one shape.

    Returns
    -------
    float or None
        In [−1, 1]; None where the residual is constant or not finite, or the image less than 2 pixels high or wide.

    Raises
    ------
    ValueError
        For shapes that differ.
    """
    if noisy.shape != denoised.shape:
        raise ValueError(f"The images must have one shape, found {noisy.shape} and {denoised.shape}.")
    height, width = noisy.shape[:2]
    if min(height, width) < 2:
        return None
    before, after = (image.reshape(height, width, -1) for image in (noisy, denoised))
    found = []
    for channel in range(before.shape[2]):
        x, y = before[..., channel], after[..., channel]
        mean = sum(float(residual.sum()) for residual, _ in _residuals(x, y)) / (height * width)
        squares = across = down = 0.0
        for residual, below in _residuals(x, y):
            centred = residual - mean
            squares += float(np.square(centred).sum())
            across += float((centred[:, 1:] * centred[:, :-1]).sum())
            down += float((centred[1:] * centred[:-1]).sum())
            if below is not None:
                down += float((centred[-1] * (below - mean)).sum())
        if not math.isfinite(squares):
            return None
        if squares > 0:
            means = across / (height * (width - 1)) + down / ((height - 1) * width)
            found.append(means / (2 * squares / (height * width)))
    return sum(found) / len(found) if found else None


def _residuals(before: Image, after: Image) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]]:
    """The residual of (H, W) images, `ROWS` rows at a time, and the row below, None at the lower edge."""
    for top in range(0, len(before), ROWS):
        rows = slice(top, top + ROWS + 1)
        residual = before[rows].astype(np.float64) - after[rows].astype(np.float64)
        yield residual[:ROWS], residual[ROWS] if len(residual) > ROWS else None

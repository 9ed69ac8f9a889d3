"""Non-local Bayes at several scales: what is coarse is taken from an estimate of the image at half its size.

Patches of a few pixels tell coarse structure from noise badly where the noise is strong: blotches stay. At half the size the
same patches reach twice as far, and the noise is as strong as before while what is coarse is twice as strong. After
Gabriele Facciolo, Nicola Pierazzo and Jean-Michel Morel, "Conservative Scale Recomposition for Multiscale Denoising (The
Devil is in the High Frequency Detail)", SIAM Journal on Imaging Sciences 10(3), 2017, pp. 1603–1626: of the coarse estimate
only its lower frequencies are taken. It departs from the paper in its filters, which are short, so that a pixel depends on a
neighbourhood and large images can be done in bands: the scales are made by a half-band filter in place of a cosine transform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise_core.methods.nl_bayes import ALIGN as ALIGN_OF_A_SCALE
from denoise_core.methods.nl_bayes import FIRST, GREATEST, SECOND, nl_bayes
from denoise_core.methods.nl_bayes import REACH as REACH_OF_A_SCALE

COARSER = 2  # scales after the first, each of half the size of the one before
PATCH = max(FIRST.patch, SECOND.patch)
SMALLEST = 32  # side of an image that is halved: at least
MOST = 1.0  # by which a scale corrects the next finer one, in units of the noise, and so that it corrects nothing there
PRECISE = 3e4  # coarse intensities beyond it are left alone, and what shares a patch with them: their rounding shows

# Sixteen taps, symmetric, orthonormal to their own shifts by two to within 1e-3: white noise stays white and of variance 1.
# J. D. Johnston, "A filter family designed for use in quadrature mirror filter banks", ICASSP 1980, filter 16B.
_HALF = 0.48102840, 0.09779817, -0.09039223, -0.00966638, 0.02764140, -0.00258976, -0.00505453, 0.00105017
LOW_PASS = [value / sum(2 * v * v for v in _HALF) ** 0.5 for value in (*reversed(_HALF), *_HALF)]

# Linear interpolation between the coarse pixels, of what is smoothed by (1, 2, 1) / 4 there: of two fine pixels the
# first, by the coarse pixels from two before its own to one after it; the second is its mirror image.
SMOOTH = [1 / 16, 5 / 16, 7 / 16, 3 / 16]
_BEFORE, _AFTER = 2, 2  # coarse pixels that a fine one depends on, before and after its own
_AROUND = 2  # coarse pixels around one whose corrections decide on its own
_NEAR = 2 * (_BEFORE + _AROUND) + len(LOW_PASS) // 2  # fine pixels before and after its own that these depend on


def _reach(coarser: int) -> int:
    """How many rows away a pixel of z may be that a pixel of the result depends on."""
    if coarser == 0:
        return REACH_OF_A_SCALE
    return max(_NEAR + REACH_OF_A_SCALE, 2 * (_reach(coarser - 1) + _BEFORE + _AROUND) + len(LOW_PASS) // 2)


ALIGN = ALIGN_OF_A_SCALE * 2**COARSER
REACH = _reach(COARSER)


def band(rows: slice, height: int) -> slice:
    """The rows of an image of `height` rows that `estimate` has to be given for its `rows`."""
    return slice(max(0, (rows.start - REACH) // ALIGN * ALIGN), min(height, rows.stop + REACH))


def estimate(
    z: Tensor, rows: slice | None = None, on_cell: Callable[[], None] = lambda: None, *, most: float = MOST
) -> Tensor:
    """The image without its noise.

    Parameters
    ----------
    z : (C, H, W) float32
        As for `nl_bayes`: in units of the noise, which is white and Gaussian with standard deviation 1.
    rows : slice, optional
        Of z, those that are wanted. They are those of the whole image, bit for bit, where z is a `band` of it.
    on_cell : callable
        Called some ten times a second; whatever it raises ends the work.
    most : float
        By how much, in units of the noise, a scale corrects the next finer one at most; less where they differ by more.

    Returns
    -------
    (C, rows, W) float32
    """
    return _estimate(z, slice(0, z.shape[1]) if rows is None else rows, on_cell, COARSER, most)


def _estimate(z: Tensor, rows: slice, on_cell: Callable[[], None], coarser: int, most: float) -> Tensor:
    height, width = z.shape[1:]
    coarser = coarser if min(height, width) >= SMALLEST else 0
    near = _NEAR if coarser else 0
    first, last = max(0, rows.start - near), min(height, rows.stop + near)
    top = max(0, (first - REACH_OF_A_SCALE) // ALIGN_OF_A_SCALE * ALIGN_OF_A_SCALE)
    fine = nl_bayes(z[:, top : last + REACH_OF_A_SCALE], on_cell)[:, first - top : last - top]
    own = fine[:, rows.start - first : rows.stop - first]
    if not coarser:
        return own
    halves = -(-height // 2)
    there = slice(max(0, rows.start // 2 - _BEFORE), min(halves, (rows.stop - 1) // 2 + 1 + _AFTER))
    wide = slice(max(0, there.start - _AROUND), min(halves, there.stop + _AROUND))
    half = _halved(z, slice(0, halves), 0, height).clamp_(-GREATEST, GREATEST)  # far beyond PRECISE
    missing = _estimate(half, wide, on_cell, coarser - 1, most) - _halved(fine, wide, first, height)
    # What is left of the noise is far below the noise itself. Where more is missing, a spot or an edge is in the one
    # estimate and not in the other: the finer one sees it better, and taking the rest away would cost the spot its sum.
    share = (1 - (_greatest(missing, _AROUND) / most).square()).clamp(min=0).square()
    precise = _greatest(half, PATCH - 1)[:, wide] < PRECISE
    missing = torch.where(precise, share * missing, 0.0)[:, there.start - wide.start : there.stop - wide.start]
    return own + _doubled(missing, rows, there.start, (height, width))


def _greatest(z: Tensor, around: int) -> Tensor:
    return F.max_pool2d(z.abs(), 2 * around + 1, 1, around)


def _halved(z: Tensor, rows: slice, first: int, height: int) -> Tensor:
    """Rows of z at half its size, each intensity twice as great; z is of an image of `height` rows, from `first` on."""
    width = z.shape[2]
    return _along(_along(z, 1, rows, first, height), 2, slice(0, -(-width // 2)), 0, width)


def _along(z: Tensor, axis: int, places: slice, first: int, size: int) -> Tensor:
    middle = 2 * torch.arange(places.start, places.stop, device=z.device)
    before = len(LOW_PASS) // 2 - 1
    taps = ((middle + i - before).clamp(0, size - 1) - first for i in range(len(LOW_PASS)))
    return _summed(z, axis, ((tap, weight) for tap, weight in zip(taps, LOW_PASS, strict=True)))


def _doubled(coarse: Tensor, rows: slice, first: int, size: tuple[int, int]) -> Tensor:
    """Rows of an image of twice the size, each intensity half as great, smoothed; `coarse` has rows from `first` on."""
    return 0.5 * _between(_between(coarse, 1, rows, first, size[0]), 2, slice(0, size[1]), 0, size[1])


def _between(coarse: Tensor, axis: int, places: slice, first: int, size: int) -> Tensor:
    at = torch.arange(places.start, places.stop, device=coarse.device)
    second = at % 2
    shape = [-1 if i == axis else 1 for i in range(3)]
    weights = torch.tensor([SMOOTH, SMOOTH[::-1]], device=coarse.device)[second]
    last = -(-size // 2) - 1
    taps = ((at // 2 - _BEFORE + second + i).clamp(0, last) - first for i in range(len(SMOOTH)))
    return _summed(coarse, axis, ((tap, weights[:, i].view(shape)) for i, tap in enumerate(taps)))


def _summed(z: Tensor, axis: int, taps: Iterable[tuple[Tensor, Tensor | float]]) -> Tensor:
    """The sum of weighted pixels of z, one for each tap; element by element, so that no shape changes a bit."""
    (first, weight), *others = taps
    total = z.index_select(axis, first) * weight
    for places, weight in others:
        total += z.index_select(axis, places) * weight
    return total

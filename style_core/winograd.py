"""3 × 3 convolutions with 4/9 of the multiplications, in float32 on a CPU (Lavin and Gray, CVPR 2016; Winograd, 1980).

Down the columns, F(6, 3): six rows of the result come from eight products, where the plain sum takes eighteen. Eight rows of
the image give eight mixtures of them (B^T). Each is convolved along the row with its own mixture of the filter's rows (G), and
six mixtures of what comes out (A^T) are the rows of the result. Along the rows nothing is transformed: then, in channels_last,
every step is a product of matrices that reads and writes whole rows where they lie. In two dimensions 1/4 of the
multiplications would do, but gathering and scattering tiles costs what that saves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_M = 6  # rows of the result at a time
_N = _M + 2  # rows that they depend on
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity: where the polynomials are evaluated

# Positions in a product of matrices: fewer do not keep the processor busy, more do not fit its second-level cache.
_LEAST, _USUAL = 128, 160


class Convolution:
    """With fixed filters (out, in, 3, 3), as if zeros lay around the image; frozen, so one serves many threads.

    Where torch shares each operation among threads of its own, it is torch's convolution.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        at, g, bt = transforms()
        self._at, self._bt = at.float(), bt.float()
        # For each of the three columns, the eight mixtures of its rows: (3, 8, in, out).
        self._filters = torch.einsum("nr,oirk->knio", g, weight.double()).float().contiguous().unbind(0)
        self._weight, self._bias = weight.contiguous(memory_format=torch.channels_last), bias

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (1, in, H, W) in float32 and channels_last; the same of the result (1, out, H, W)."""
        if torch.get_num_threads() > 1:
            # So many small products are no work to share: threads that wait for each other cost several times the gain.
            return F.conv2d(x, self._weight, self._bias, padding=1)
        height, width = x.shape[2:]
        taken, given = self._filters[0].shape[1:]
        y = torch.empty((1, given, height, width), memory_format=torch.channels_last)
        source = x.permute(0, 2, 3, 1).reshape(height, width * taken)
        target = y.permute(0, 2, 3, 1).view(height, width * given)
        bands = -(-height // _M)
        across = -(-width // max(1, round(width / _USUAL)))
        pitch = across + 2  # a position more on either side
        together = min(bands, -(-_LEAST // pitch))
        mixed = torch.empty(_N, together * pitch + 2, taken)
        made = torch.empty(_N, together * pitch, given)
        for left in range(0, width, across):
            right = min(width, left + across)
            start, end = max(0, left - 1), min(width, right + 1)
            mixed.zero_()
            into = (
                mixed[:, :-2]
                .view(_N, together, pitch * taken)[:, :, (start - left + 1) * taken : (end - left + 1) * taken]
                .unbind(1)
            )
            out_of = made.view(_N, together, pitch * given)[:, :, : (right - left) * given].unbind(1)
            read, written = source[:, start * taken : end * taken], target[:, left * given : right * given]
            for first in range(0, bands, together):
                tops = range(first * _M, min(first + together, bands) * _M, _M)
                for mixtures, top in zip(into, tops, strict=False):
                    above, below = max(0, top - 1), min(height, top - 1 + _N)
                    bt = self._bt if below - above == _N else self._bt[:, above - top + 1 : below - top + 1]
                    torch.mm(bt, read[above:below], out=mixtures)
                count = len(tops) * pitch
                found = made[:, :count]
                torch.bmm(mixed[:, :count], self._filters[0], out=found)
                found.baddbmm_(mixed[:, 1 : count + 1], self._filters[1])
                found.baddbmm_(mixed[:, 2 : count + 2], self._filters[2])
                if self._bias is not None:
                    found[1].add_(self._bias)  # the point 1 counts once in every row
                for results, top in zip(out_of, tops, strict=False):
                    rows = written[top : top + _M]
                    torch.mm(self._at[: len(rows)], results, out=rows)
        return y


def transforms() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (6, 8), G (8, 3) and B^T (8, 8) in float64: A^T (G f · B^T d) is what a filter f makes of eight values d."""
    points = torch.tensor(_POINTS).double()
    at, g, bt = torch.zeros(_M, _N).double(), torch.zeros(_N, 3).double(), torch.zeros(_N, _N).double()
    at[:, :-1] = points ** torch.arange(_M)[:, None]
    g[:-1] = points[:, None] ** torch.arange(3)
    at[-1, -1] = g[-1, -1] = 1
    for i, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        g[i] /= (point - torch.tensor(others).double()).prod()
        bt[i, :-1] = _polynomial(others)
    bt[-1] = _polynomial(_POINTS)
    return at, g, bt


def _polynomial(roots: Sequence[float]) -> Tensor:
    """Coefficients of the product of (x − root) over the roots, the constant's first."""
    found = torch.ones(1).double()
    for root in roots:
        shifted = torch.cat([found.new_zeros(1), found])
        shifted[:-1] -= root * found
        found = shifted
    return found

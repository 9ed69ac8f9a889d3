"""Non-local Bayes: patches that look alike, taken as draws from one Gaussian, each replaced by its best linear estimate.

Marc Lebrun, Antoni Buades and Jean-Michel Morel, "A Nonlocal Bayesian Image Denoising Algorithm", SIAM Journal on
Imaging Sciences 6(3), 2013, pp. 1665–1688. Written from the paper. For each reference patch the patches of its
neighbourhood nearest to it make a group; the group's mean and covariance make the estimate of every patch in it;
estimates of the same pixel are averaged. A second pass takes groups, means and covariances from the first's result.

It departs from the paper in this:

- The channels are rotated by an orthonormal DCT, which for RGB gives the paper's luminance and opponent colours; it
  takes any number of channels.
- The first pass never forms (C − I) C⁻¹, which is no Wiener filter where the estimated C − I has negative
  eigenvalues. With E = C − I it applies E² (E² + a I)⁻¹ within each channel: between 0 and 1, and no eigenvectors.
- The second pass takes all channels jointly: C (C + I)⁻¹ with C of the first pass's result.
- References lie on a fixed grid, each with its whole group; patches compared are larger than those estimated, and in
  the first pass too the channels after the first count; flat areas get no treatment of their own.
- An estimate counts the more the less noise its group lets through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 8  # references along each side of the square that is matched at once
CELL = (1, 8)  # tiles, down and along, whose patches are held at once
CHUNK = 64, 2**20  # groups solved at once, and values of their covariances: at most
GREATEST = 1e15  # so that squares stay finite in float32
CONDITION = {torch.float32: 1e5, torch.float64: 5e13}  # beyond it a matrix is not inverted in that type


@dataclass(frozen=True)
class Pass:
    """Settings of one pass; lengths in pixels."""

    patch: int = 4  # side of the patch estimated
    step: int = 4  # between references
    radius: int = 10  # of the neighbourhood: how far a patch may be from its reference, down and along
    similar: int = 80  # patches in a group
    match: int = 6  # side of the patch compared, around the one estimated
    chroma: float = 1.0  # what the channels after the first count in a comparison
    ridge: float = 1.5  # a above; first pass only

    def __post_init__(self) -> None:
        if not 1 <= self.step <= self.patch <= self.match:
            raise ValueError("Expected 1 ≤ step ≤ patch ≤ match: else pixels are left out.")

    @property
    def side(self) -> int:
        """How many rows of patches the references of a tile look at together."""
        return (TILE - 1) * self.step + 2 * self.radius + 1

    @property
    def reach(self) -> int:
        """How many rows away a pixel may be that a pixel of the pass's result depends on."""
        seen = 2 * self.radius + self.match  # rows of pixels that a reference looks at
        # A tile's distances are counted from its middle, which its outermost references may not see.
        beyond = max(0, (self.side + self.match) // 2 - seen + 1)
        return 2 * self.radius + self.patch - 1 + (self.match - self.patch + 1) // 2 + beyond


FIRST = Pass(similar=110, chroma=0.6)
SECOND = Pass(similar=32)

ALIGN = math.lcm(FIRST.step, SECOND.step) * TILE * CELL[0]
REACH = FIRST.reach + SECOND.reach


def nl_bayes(z: Tensor, on_cell: Callable[[], None] = lambda: None) -> Tensor:
    """The image without its noise.

    A large image may come in bands of all columns: with `REACH` rows more above and below, or up to the image's edge,
    and a first row, those included, that is a multiple of `ALIGN`, a band's own rows are those of the whole image.

    Parameters
    ----------
    z : (C, H, W) float32
        In units of the noise, which is white and Gaussian with standard deviation 1. Intensities near 0 lose least to
        rounding. Channels may be colours or the frames of a stack: what they share is found out.
    on_cell : callable
        Called some ten times a second; whatever it raises ends the work.

    Returns
    -------
    (C, H, W) float32
        On the device of `z`. The same `z`, device and thread count give the same bytes.

    Raises
    ------
    ValueError
        For another shape or dtype, no pixels, NaN, and intensities beyond ±`GREATEST`.
    """
    if z.ndim != 3 or z.numel() == 0 or z.dtype != torch.float32:
        raise ValueError(f"Expected float32 (C, H, W) with pixels, found {z.dtype} {tuple(z.shape)}.")
    if not bool(z.abs().amax() <= GREATEST):
        raise ValueError(f"Expected intensities up to {GREATEST:g} in units of the noise, found NaN or greater ones.")
    with torch.no_grad():
        rotation = channel_rotation(z.shape[0]).to(z.device)
        noisy = torch.tensordot(rotation, z, dims=1)
        basic = _run(noisy, None, FIRST, on_cell)
        noise = noisy - _run(noisy, basic, SECOND, on_cell)
        denoised: Tensor = z - torch.tensordot(rotation.T, noise, dims=1)
        return denoised


def channel_rotation(n: int) -> Tensor:
    """The orthonormal DCT of n values, (n, n); exactly 1 for one value."""
    i = torch.arange(n, dtype=torch.float64)
    dct = torch.cos(math.pi * (i + 0.5) * i[:, None] / n) * math.sqrt(2 / n)
    dct[0] = math.sqrt(1 / n)
    return dct.float()


def _run(noisy: Tensor, basic: Tensor | None, p: Pass, on_cell: Callable[[], None] = lambda: None) -> Tensor:
    """One pass over `noisy` (C, H, W): the first, or with its result `basic` the second."""
    channels, height, width = noisy.shape
    noisy = _to_grid(noisy, p)
    guide = noisy if basic is None else _to_grid(basic, p)
    matcher = _Matcher(guide, p)
    out = noisy.new_zeros(channels + 1, *noisy.shape[1:])
    for cell in matcher.cells():
        on_cell()
        table = _patches(noisy, cell, p.patch)
        clean = None if basic is None else _patches(guide, cell, p.patch)
        total, weights = torch.zeros_like(table), table.new_zeros(table.shape[0])
        for members in matcher.groups(cell):
            x = F.embedding(members, table)
            if clean is None:
                estimates, weight = _estimate_first(x, channels, p.ridge)
            else:
                estimates, weight = _estimate_second(x, F.embedding(members, clean))
            _add(total, members, estimates)
            _add(weights, members, weight.expand(members.shape))
        _fold(total, weights, out, cell, p.patch)
    return (out[:channels] / out[channels])[:, :height, :width]


def _to_grid(z: Tensor, p: Pass) -> Tensor:
    """`z` (C, H, W) extended below and right until the last pixel is in the last reference patch."""
    most = max(p.patch, p.match)
    down, along = (max(size, most) + (p.patch - max(size, most)) % p.step - size for size in z.shape[1:])
    return _extend(z, 0, down, 0, along)


def _extend(z: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Mirror the edges where the image is large enough, else repeat them."""
    small = max(top, bottom) >= z.shape[1] or max(left, right) >= z.shape[2]
    return F.pad(z[None], (left, right, top, bottom), mode="replicate" if small else "reflect")[0]


@dataclass(frozen=True)
class _Cell:
    """References (rows × columns, from reference `row`, `column` on) and the places of all patches they may take."""

    row: int
    column: int
    rows: int
    columns: int
    top: int
    bottom: int
    left: int
    right: int  # places of patches' first pixels, `bottom` and `right` included

    @property
    def places(self) -> tuple[int, int]:
        return self.bottom - self.top + 1, self.right - self.left + 1


class _Matcher:
    """Finds, for each reference patch, the patches of its neighbourhood nearest to it."""

    def __init__(self, guide: Tensor, p: Pass) -> None:
        self.p = p
        channels, height, width = guide.shape
        self.last = (height - p.patch, width - p.patch)  # place of the last patch
        self.grid = (self.last[0] // p.step + 1, self.last[1] // p.step + 1)
        self.pitch = TILE * p.step
        self.side = p.side
        down, along = ((-(-n // TILE) - 1) * self.pitch + self.side - p.radius for n in self.grid)
        weights = guide.new_full((channels, 1, 1), p.chroma)
        weights[0] = 1
        before = (p.match - p.patch) // 2
        after = p.match - p.patch - before
        z = _extend(guide * weights, before, after, before, after)
        margin = p.match - 1
        r = p.radius
        self.z = F.pad(z, (r, along + margin - z.shape[2], r, down + margin - z.shape[1]))
        # Patches that would leave the image are infinitely far.
        inside = guide.new_zeros(height - p.patch + 1, width - p.patch + 1)
        self.barred = F.pad(inside, (r, along - inside.shape[1], r, down - inside.shape[0]), value=math.inf)

    def cells(self) -> Iterator[_Cell]:
        """The image's cells, row by row."""
        step, radius = self.p.step, self.p.radius
        rows, columns = self.grid
        for row in range(0, rows, TILE * CELL[0]):
            row_end = min(rows, row + TILE * CELL[0])
            for column in range(0, columns, TILE * CELL[1]):
                column_end = min(columns, column + TILE * CELL[1])
                yield _Cell(
                    row,
                    column,
                    row_end - row,
                    column_end - column,
                    top=max(0, row * step - radius),
                    bottom=min(self.last[0], (row_end - 1) * step + radius),
                    left=max(0, column * step - radius),
                    right=min(self.last[1], (column_end - 1) * step + radius),
                )

    def groups(self, cell: _Cell) -> Iterator[Tensor]:
        """The cell's groups, some at a time: (groups, patches) of indices among the cell's places."""
        p = self.p
        # As many as the reference in a corner has.
        similar = min(p.similar, math.prod(min(p.radius, last) + 1 for last in self.last))
        chunk = max(1, min(CHUNK[0], CHUNK[1] // (self.z.shape[0] * p.patch**2) ** 2))
        for row in range(cell.row, cell.row + cell.rows, TILE):
            rows = min(TILE, cell.row + cell.rows - row)
            yield from torch.split(self._nearest(cell, row, rows, similar), chunk)

    def _nearest(self, cell: _Cell, row: int, rows: int, similar: int) -> Tensor:
        """Groups of `rows` rows of the cell's references: (references, similar) of indices among the cell's places."""
        step, radius = self.p.step, self.p.radius
        distances = self._distances(row * step, cell.column * step, -(-cell.columns // TILE), rows)[:, : cell.columns]
        distances[..., distances.shape[-1] // 2] = -math.inf  # neither ties nor rounding leave a reference out
        nearest = distances.topk(similar, dim=2, largest=False, sorted=False).indices
        reach, device = 2 * radius + 1, nearest.device
        down = nearest.div(reach, rounding_mode="floor")
        y = (torch.arange(rows, device=device) + row)[:, None, None] * step - radius - cell.top + down
        x = (torch.arange(cell.columns, device=device) + cell.column)[:, None] * step - radius - cell.left
        return (y * cell.places[1] + x + nearest - down * reach).view(-1, similar)

    def _distances(self, top: int, left: int, tiles: int, rows: int) -> Tensor:
        """Squared distances, but for a constant of each reference: (rows, references, places in reach of each)."""
        windows, squares = self._windows(top, left, tiles)
        side, step, places = self.side, self.p.step, self.side**2
        products = self._products(windows)
        # Each reference's own neighbourhood, cut out of its tile's; in order of row, tile, column.
        reach = 2 * self.p.radius + 1
        shape = (rows, tiles, TILE, reach, reach)
        own = squares.as_strided(shape, (step * side, places, step, side, 1))
        strides = (TILE * places + step * side, TILE * TILE * places, places + step, side, 1)
        distances = torch.sub(own, products.as_strided(shape, strides), alpha=2, out=own.new_empty(shape))
        return distances.view(rows, tiles * TILE, reach * reach)

    def _windows(self, top: int, left: int, tiles: int) -> tuple[Tensor, Tensor]:
        """What a row of tiles compares, each less its middle's mean, and the squares of the patches there or infinity."""
        side, pitch, margin = self.side, self.pitch, self.p.match - 1
        along = (tiles - 1) * pitch + side
        windows = self.z[:, top : top + side + margin, left : left + along + margin]
        windows = windows.unfold(2, side + margin, pitch).permute(2, 0, 1, 3).contiguous()
        # Of less than all rows: what lies far off must not even change the rounding, or bands would show.
        middle = windows.shape[2] // 2
        windows -= windows[:, :, middle - 1 : middle + 1].mean((2, 3), keepdim=True)
        squares = F.avg_pool2d(windows.square().sum(1), self.p.match, 1, divisor_override=1)
        barred = self.barred[top : top + side, left : left + along].unfold(1, side, pitch).permute(1, 0, 2)
        return windows, (squares + barred).contiguous()

    def _products(self, windows: Tensor) -> Tensor:
        """Products of each tile's references with the patches there: (tiles, TILE², places)."""
        tiles, channels = windows.shape[:2]
        match, side, step, radius = self.p.match, self.side, self.p.step, self.p.radius
        # Copied for each column of a patch, but not for each row: that is a view, its rows' ends wrapped around.
        z = windows.unfold(3, match, 1).permute(0, 1, 4, 2, 3).reshape(tiles, channels * match, -1)
        products = windows.new_empty(tiles, TILE * TILE, side * side)
        for i in range(match):
            at = z[:, :, i * side : (i + side) * side]
            refs = at.view(tiles, -1, side, side)[..., radius::step, radius::step][..., :TILE, :TILE]
            products.baddbmm_(refs.reshape(tiles, -1, TILE * TILE).mT, at, beta=min(i, 1))
        return products


def _patches(z: Tensor, cell: _Cell, k: int) -> Tensor:
    """The cell's patches (places, C k²), one to a row."""
    part = z[:, cell.top : cell.bottom + k, cell.left : cell.right + k]
    patches = part.unfold(1, k, 1).unfold(2, k, 1).permute(0, 3, 4, 1, 2)
    return patches.reshape(-1, math.prod(cell.places)).T.contiguous()


def _add(total: Tensor, members: Tensor, values: Tensor) -> None:
    """Add values (groups, patches, ...) to the rows of `total` that are the groups' members, in always the same order."""
    rows, values = members.reshape(-1), values.flatten(0, 1)
    if total.is_cuda:
        total.index_put_((rows,), values, accumulate=True)  # sorts; scatter_add_ would add in any order there
    else:
        total.scatter_add_(0, rows.view(-1, *[1] * (values.ndim - 1)).expand_as(values), values)


def _fold(total: Tensor, weights: Tensor, out: Tensor, cell: _Cell, k: int) -> None:
    """Add the summed patches, and their weights in the last channel, to `out` (C + 1, H, W)."""
    height, width = cell.places
    sums = total.T.contiguous().view(-1, k * k, height, width)
    for i in range(k):
        for j in range(k):
            here = out[:, cell.top + i : cell.top + i + height, cell.left + j : cell.left + j + width]
            here[:-1] += sums[:, i * k + j]
            here[-1] += weights.view(height, width)


def _estimate_first(x: Tensor, channels: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Weighted estimates of groups (groups, patches, C d) from themselves, and the weights (groups, 1)."""
    mean = x.mean(1, keepdim=True)
    deviations = x - mean
    gain = _precise_gain(lambda group: _gain_first(group, channels, ridge), deviations)
    return _weighted(mean, deviations, gain)


def _estimate_second(x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The same by means of the groups' patches in the first pass's result, `clean`."""
    mean = clean.mean(1, keepdim=True)
    gain = _precise_gain(_gain_second, clean - mean)
    return _weighted(mean, x - mean, gain)


def _gain_first(deviations: Tensor, channels: int, ridge: float) -> tuple[Tensor, Tensor]:
    """E² (E² + a I)⁻¹ of each channel, zero between them, (groups, C d, C d), and which groups are precise."""
    groups, patches, values = deviations.shape
    size = values // channels
    eye = torch.eye(size, dtype=deviations.dtype, device=deviations.device)
    moments = torch.stack([block.mT @ block for block in torch.split(deviations, size, 2)], 1)
    signal = moments.view(-1, size, size) / patches - eye
    inverse, precise = _inverse(signal @ signal, ridge)
    gain = deviations.new_zeros(groups, channels, size, channels, size)
    blocks = (eye - ridge * inverse).view(groups, channels, size, size)
    gain.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
    return gain.view(groups, values, values), precise.view(groups, channels).all(1)


def _gain_second(deviations: Tensor) -> tuple[Tensor, Tensor]:
    """C (C + I)⁻¹ of all channels, (groups, C d, C d), and which groups are precise."""
    patches, values = deviations.shape[1:]
    if patches < values:  # the same by way of the smaller matrix
        inverse, precise = _inverse(deviations @ deviations.mT, patches)
        gain = deviations.mT @ (inverse @ deviations)
    else:
        inverse, precise = _inverse(deviations.mT @ deviations / patches, 1)
        gain = torch.eye(values, dtype=deviations.dtype, device=deviations.device) - inverse
    return gain, precise


def _inverse(a: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(a + ridge I)⁻¹ for positive semidefinite matrices (n, d, d), and where rounding left it right."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    low, info = torch.linalg.cholesky_ex(a + ridge * eye)
    root = torch.linalg.solve_triangular(low, eye.expand_as(a), upper=False)
    trace = a.diagonal(dim1=1, dim2=2).sum(1)
    return root.mT @ root, (trace <= ridge * CONDITION[a.dtype]) & (info == 0)


def _precise_gain(gains: Callable[[Tensor], tuple[Tensor, Tensor]], deviations: Tensor) -> Tensor:
    """Gains in float32; in float64 where that is not enough; beyond that all passes, as noise no longer matters."""
    gain, precise = gains(deviations)
    rough = (~precise).nonzero()[:, 0]
    if rough.numel():
        better, precise = gains(deviations[rough].double())
        eye = torch.eye(gain.shape[-1], dtype=better.dtype, device=better.device)
        gain[rough] = torch.where(precise[:, None, None], better, eye).float()
    return gain


def _weighted(mean: Tensor, deviations: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Estimates w (mean + gain · deviations) and their weights w, the greater the less noise the gain lets through."""
    weight = 1 / (gain.square().sum((1, 2)) + 1)[:, None]
    estimates = deviations @ gain.mul_(weight[..., None])
    return estimates.add_(mean * weight[..., None]), weight

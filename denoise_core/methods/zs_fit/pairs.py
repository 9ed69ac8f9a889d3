"""What a network is fitted to, and held against, where no clean image is known.

Noise n of the image's own distribution, drawn anew, splits the noisy image z in two: z + αn and z − n/α. Their noises are
independent, so the second judges what is made of the first as a clean image would, but for a constant: Pang, Zheng, Quan
and Ji, "Recorrupted-to-Recorrupted", CVPR 2021. All images here are stabilised: white noise of variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit
from torch import Tensor

from denoise_core.methods.turns import turn
from denoise_core.methods.zs_fit.common_noise import CommonNoise

ALPHA = 0.5
TARGET_VARIANCE = 1 + 1 / ALPHA**2  # of the noise in z − n/α
LEVEL = math.sqrt(1 + ALPHA**2)  # standard deviation of the noise in z + αn
JUDGED = 4  # the last quarter of a window's rows is kept from all fits, to judge by
BLOCK = 32  # side of the squares that are judged one by one: what an estimate sees of a pixel's neighbourhood
# A variance found after the estimate is acted on where it is off by more than SURE and by more than PASSED for the share that
# the estimate lets pass of the noise, and that is below MOST_PASSED. It comes out too low by LOWER times that share.
SURE, PASSED, MOST_PASSED, LOWER = 0.03, 2.0, 0.25, 0.5

Estimate = Callable[[Tensor], Tensor]
"""(F, C, H, W) with noise of variance 1 to the non-local estimate of the same shape."""


@dataclass(frozen=True)
class Pair:
    """One window of a recorrupted image: (C, H, W) float32 each, `valid` (1, H, W).

    `source` is z + αn, `estimate` its non-local estimate, `target` z − n/α. `valid` is 0 where noise was cut off at an end
    of the value range, and is not what `target` needs; else 1. The last `judged` rows are not fitted to; windows stand
    on a grid of rows, so that no window of any fit has them among its fitted ones. Copies of a window have its `place`.
    """

    source: Tensor
    estimate: Tensor
    target: Tensor
    valid: Tensor
    place: tuple[int, int, int] = (0, 0, 0)  # frame, first row and first column in the stack
    variance: float = 1.0  # v of the image's noise, for which the target z − v n/α is independent of the source
    expected: float = 1.0  # mean variance of the image's noise by its model
    common: Tensor | float = 0.0  # (C, H, W): what both noises had in common, taken off the target

    @property
    def noise(self) -> Tensor:
        """What was added to split the image: (C, H, W), standard normal."""
        return (self.source - self.target - self.common) / (ALPHA + self.variance / ALPHA)

    @property
    def passed(self) -> Tensor:
        """What the estimate lets pass of the noise that was added, by its mean: (C, H, W)."""
        noise = self.noise
        return (self.estimate - self.source + ALPHA * noise) * noise / ALPHA

    def with_variance(self, variance: float) -> Pair:
        """The pair with the target that is independent of the source where the image's noise has this variance, v: z − v n/α.

        Of the variance 1 that is assumed, v − 1 would be what their noises have in common: fits and judgement would reward
        what takes noise over with the wrong sign, or lets it pass.
        """
        more = (variance - self.variance) / ALPHA
        return replace(self, target=self.target - more * self.noise, variance=variance)

    def without(self, common: CommonNoise) -> Pair:
        """The pair with the target less what its noise has in common with the source's."""
        found = common(self.source, self.estimate)
        expected = _total(common.variance(self.estimate) * self.valid) / max(self.values, 1.0)
        return replace(self, target=self.target - found, common=found, expected=expected)

    @property
    def values(self) -> float:
        """How many of its values are valid."""
        return _total(self.valid) * len(self.source)

    @property
    def judged(self) -> int:
        """How many rows at the lower end are kept from the fit."""
        return self.source.shape[1] // JUDGED

    @property
    def fitted(self) -> int:
        """How many rows are fitted to."""
        return self.source.shape[1] - self.judged

    def loss(self, result: Tensor) -> Tensor:
        """The mean squared error of `result` (C, H, W) to the target on the fitted rows, where it is valid."""
        rows, weight = slice(0, self.fitted), self.valid[:, : self.fitted].mean().clamp_min(1e-6)
        return ((result - self.target)[:, rows].square() * self.valid[:, rows]).mean() / weight


def recorrupt(
    z: Tensor,
    valid: Tensor,
    noise: Tensor,
    estimate: Estimate,
    frames: Sequence[int],
    *,
    place: tuple[int, int, int] = (0, 0, 0),
    common: CommonNoise | None = None,
) -> list[Pair]:
    """Pairs of `frames` of z (F, C, H, W), whose `valid` is (F, 1, H, W), by `noise`, standard normal, of z's shape.

    `estimate` sees all frames recorrupted. z lies at `place` in its stack. `common` is for noise that is not normal.
    """
    source = z + ALPHA * noise
    found = estimate(source / LEVEL) * LEVEL
    target = z - noise / ALPHA
    first, top, left = place
    pairs = [Pair(source[f], found[f], target[f], valid[f], (first + f, top, left)) for f in frames]
    return pairs if common is None else [pair.without(common) for pair in pairs]


def independent(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of one image with the targets that belong to the variance v that its noise shows once it is denoised.

    An estimate that lets the share p of the noise pass leaves v + α² = (E − p (1 + α²)) / (1 − 2 p), where E is the mean
    square of what it takes away and its own error that of a posterior mean, p times the noise's variance: known as well as
    p is small.
    """
    weight = sum(pair.values for pair in pairs)
    passed = share_passed(pairs)
    if not weight or passed >= MOST_PASSED:
        return list(pairs)
    taken = sum(_total((pair.estimate - pair.source).square() * pair.valid) for pair in pairs) / weight
    variance = (taken - passed * LEVEL**2) / (1 - 2 * passed) - ALPHA**2 + LOWER * passed
    more = variance - sum(pair.expected * pair.values for pair in pairs) / weight
    if abs(more) <= SURE + PASSED * passed:
        return list(pairs)
    return [pair.with_variance(1 + more) for pair in pairs]


def share_passed(pairs: Sequence[Pair]) -> float:
    """Which share of the noise the estimates of pairs let pass, at least 0, by what they follow of the noise that was added."""
    weight = sum(pair.values for pair in pairs)
    return max(0.0, sum(_total(pair.passed * pair.valid) for pair in pairs) / max(weight, 1.0))


def in_common(pairs: Sequence[Pair]) -> tuple[float, float]:
    """What the targets of pairs follow of their sources' noise, and of its square: slopes, 0 where the noise is as modelled.

    In the first the estimate's own error cancels where it is that of a posterior mean, which errs by as much as it follows the
    noise; where fine texture is lost, up to 0.1 is left of it.
    """
    weights = _values(pair.valid.expand_as(pair.source) for pair in pairs)
    taken = _values(pair.source - pair.estimate for pair in pairs)
    missed = _values(pair.target - pair.estimate for pair in pairs)
    power = float((weights * taken**2).sum())
    if not power:
        return 0.0, 0.0
    squared = taken**2 - power / weights.sum()
    squared -= taken * ((weights * squared * taken).sum() / power)
    first, second = (float((weights * missed * each).sum() / (weights * each**2).sum()) for each in (taken, squared))
    return first, second


def _values(parts: Iterable[Tensor]) -> npt.NDArray[np.float64]:
    return np.concatenate([part.flatten().cpu().numpy() for part in parts]).astype(np.float64)


def _total(x: Tensor) -> float:
    """The sum, which no number of threads changes: torch's differs in the last digits."""
    return float(x.cpu().numpy().sum(dtype=np.float64))


def held_out_errors(pair: Pair, result: Tensor) -> Tensor:
    """Mean squared errors of `result` (C, H, W), what was made of the pair's source, in square blocks of the judged rows.

    Their mean is the mean squared error to the clean image plus the variance of the target's noise, which is the same
    for all results: it ranks them. Exactly so for Gaussian noise; nearly for stabilised photon noise, but for a few
    photons; not for noise that is correlated from pixel to pixel. Pixels that are not valid count 0.
    """
    rows = slice(pair.fitted, None)
    return means_of_blocks(((result - pair.target)[:, rows].square() * pair.valid[:, rows]).mean(dim=0))


def means_of_blocks(errors: Tensor) -> Tensor:
    """Of (H, W), the means over squares of `BLOCK`, or of what is narrower; what is left over at the ends does not count."""
    side = min(BLOCK, *errors.shape)
    down, across = (length // side for length in errors.shape)
    blocks: Tensor = errors[: down * side, : across * side].reshape(down, side, across, side).mean(dim=(1, 3))
    return blocks.flatten()


def wins(one: Tensor, other: Tensor) -> bool:
    """Whether the errors `one` are below `other`, block by block: by a paired t-test, 95 % one-sided."""
    gain = (other - one).double()
    if gain.numel() < 2:
        return False
    margin = float(stdtrit(gain.numel() - 1, 0.95)) * float(gain.std()) / math.sqrt(gain.numel())
    return float(gain.mean()) > margin


class Crops:
    """Random crops of the fitted rows of pairs, turned and mirrored."""

    def __init__(self, pairs: Sequence[Pair], side: int) -> None:
        sides = sorted(min(pair.fitted, pair.source.shape[2]) for pair in pairs)
        self.side = min(side, sides[len(sides) // 2])  # windows smaller than most are left out
        pairs = [pair for pair in pairs if min(pair.fitted, pair.source.shape[2]) >= self.side]
        self._stacks = [torch.cat((pair.source, pair.estimate, pair.target, pair.valid)) for pair in pairs]
        self._rows = [pair.fitted for pair in pairs]
        self._channels = pairs[0].source.shape[0]
        places = [(pair.fitted - self.side + 1) * (pair.source.shape[2] - self.side + 1) for pair in pairs]
        self._places = torch.tensor(places, dtype=torch.float64)

    def draw(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`number` crops of source, estimate, target, (B, C, side, side) each, and of valid (B, 1, side, side)."""
        crops = []
        for index, top, left, turned in self._drawn(number, generator):
            stack = self._stacks[index]
            crops.append(turn(stack[:, top : top + self.side, left : left + self.side], turned))
        source, estimate, target, valid = torch.split(torch.stack(crops), [self._channels] * 3 + [1], dim=1)
        return source, estimate, target, valid

    def pixels(self) -> Tensor:
        """All pixels of the pairs behind each other: source, estimate, target and valid of each, (N, 3 C + 1)."""
        return torch.cat([stack.flatten(1).mT for stack in self._stacks])

    def places(self, number: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
        """The crops of `draw` as places in `pixels`: the first pixel, and the steps to the next one down and along."""
        starts = list(accumulate((stack[0].numel() for stack in self._stacks), initial=0))
        places = []
        for index, top, left, turned in self._drawn(number, generator):
            width = self._stacks[index].shape[2]
            down, along = -width if turned & 2 else width, -1 if turned & 1 else 1
            row = top + self.side - 1 if turned & 2 else top
            column = left + self.side - 1 if turned & 1 else left
            steps = (along, down) if turned & 4 else (down, along)
            places.append((starts[index] + row * width + column, *steps))
        return places

    def _drawn(self, number: int, generator: torch.Generator) -> Iterator[tuple[int, int, int, int]]:
        """The pair, the top, the left and the symmetry of each crop."""
        for index in torch.multinomial(self._places, number, replacement=True, generator=generator).tolist():
            draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            top = int(draws[0] * (self._rows[index] - self.side + 1))
            left = int(draws[1] * (self._stacks[index].shape[2] - self.side + 1))
            yield index, top, left, int(draws[2] * 8)

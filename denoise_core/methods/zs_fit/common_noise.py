"""What the noises of a recorrupted pair have in common where the noise is of photons.

Of z + αn and z − n/α the noises are independent if z's noise is normal with variance 1. Stabilised photon noise is neither
quite: skewed, below variance 1 where photons are few, and of steps. What one pixel's source then tells of its own target's
noise is known, since the distribution is: with ν the noise of z at a pixel of mean λ and s = ν + αn that of its source, the
target's has the conditional mean E[ν | s] (1 + 1/α²) − s/α². A network would learn it, as it is the same all over the image,
and a judgement by such targets would reward it. Taken off the target, nothing of it is left to learn.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaln, xlogy
from torch import Tensor

from denoise_core.methods.zs_fit.noise_level import Stabiliser

Floats = npt.NDArray[np.float64]

MOST = 100.0  # photons of the brightest mean in the table; of more, what is common falls as the noise's skewness does
MEANS, NOISES = 160, 97  # of the table
WIDEST = 6.0  # noise of a source, in standard deviations: more counts as so much
NODES = 25  # of the read noise's quadrature: closer together than what is added is wide
LEAST_READ_NOISE, MOST_READ_NOISE = (
    1e-3,
    1000.0,
)  # variance, photons²: less is none, more makes the noise normal


@dataclass(frozen=True, eq=False)
class CommonNoise:
    """`table` (`MEANS`, `NOISES`) over means of z from `least` to `most`, and over noises of the source to ± `widest`.

    `variances` (`MEANS`) are those of z's noise. The means lie closer where photons are few: their distances from the least one
    are as squares. `centre` is what was taken off z.
    """

    table: Tensor
    variances: Tensor
    least: float
    most: float
    widest: float
    centre: float

    @classmethod
    def of(cls, stabiliser: Stabiliser, alpha: float) -> CommonNoise | None:
        """That of an image whose noise this stabilises; None where it is not of photons."""
        if stabiliser.gain == 0 or stabiliser.spread > MOST_READ_NOISE:
            return None
        # To three digits, so that images of one level share a table.
        spread = float(f"{stabiliser.spread:.3g}") if stabiliser.spread > LEAST_READ_NOISE else 0.0
        table, variances, means = _of_photons(spread, alpha)
        least, most = (float(mean) - stabiliser.centre for mean in (means[0], means[-1]))
        return cls(table, variances, least, most, WIDEST * math.sqrt(1 + alpha**2), stabiliser.centre)

    def __call__(self, source: Tensor, estimate: Tensor) -> Tensor:
        """Its conditional mean for every pixel of a source (C, H, W), the mean there being what the estimate says."""
        table = self.table.to(source.device)[None, None]
        across, down = (source - estimate) / self.widest, 2 * self._row(estimate) - 1
        places = torch.stack((across, down), dim=-1).view(1, -1, source.shape[-1], 2)
        found = torch.nn.functional.grid_sample(
            table, places, mode="bilinear", padding_mode="border", align_corners=True
        )
        brightest = self.most + self.centre
        return found.view_as(source) * (brightest / (estimate + self.centre).clamp_min(brightest))

    def variance(self, estimate: Tensor) -> Tensor:
        """The variance of z's noise for every pixel, the mean there being what the estimate (C, H, W) says."""
        row = self._row(estimate) * (MEANS - 1)
        below = row.floor().long().clamp_max(MEANS - 2)
        variances = self.variances.to(estimate.device)
        return torch.lerp(variances[below], variances[below + 1], row - below)

    def _row(self, estimate: Tensor) -> Tensor:
        """Where the table has these means, from 0 to 1."""
        return ((estimate - self.least) / (self.most - self.least)).clamp(0, 1).sqrt()


@functools.lru_cache(maxsize=64)
def _of_photons(spread: float, alpha: float) -> tuple[Tensor, Tensor, Floats]:
    """The table for photons with Gaussian noise of variance `spread` (photons²) beside, and its means, where no photons are 0."""
    stabiliser = Stabiliser(1.0, 0.0, spread, 0.0)
    counts = np.arange(int(MOST + 10 * math.sqrt(MOST)) + 1, dtype=np.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES if spread > 0 else 1)
    values = stabiliser.forward((counts[:, None] + math.sqrt(spread) * nodes).astype(np.float32)).astype(np.float64)

    def probabilities(mean: float) -> Floats:
        poisson = np.exp(xlogy(counts, mean) - gammaln(counts + 1) - mean)  # importing scipy.stats takes 43 MB
        found: Floats = poisson[:, None] * (weights / weights.sum())
        return found

    photons = np.concatenate(([0.0], np.geomspace(1e-4, MOST, 500)))
    of_z = np.array([float((probabilities(mean) * values).sum()) for mean in photons])
    means = of_z[0] + (of_z[-1] - of_z[0]) * np.linspace(0, 1, MEANS) ** 2
    rows = [_row(values, probabilities(float(np.interp(mean, of_z, photons))), mean, alpha) for mean in means]
    table, variances = (torch.from_numpy(np.array(column)).float() for column in zip(*rows, strict=True))
    return table, variances, means


def _row(values: Floats, probabilities: Floats, mean: float, alpha: float) -> tuple[Floats, float]:
    """E[ν | s] (1 + 1/α²) − s/α² over the noises s of a source, and ν's variance, for z of these values and probabilities."""
    noises = np.linspace(-WIDEST, WIDEST, NOISES) * math.sqrt(1 + alpha**2)
    likely = probabilities > 1e-12
    noise = values[likely] - mean
    # Of each noise of z, how likely it is behind each of the source's; scaled so that the most likely one is 1.
    log = np.log(probabilities[likely]) - ((noises[:, None] - noise) / alpha) ** 2 / 2
    behind = np.exp(log - log.max(axis=1, keepdims=True))
    row: Floats = (behind * noise).sum(axis=1) / behind.sum(axis=1) * (1 + 1 / alpha**2) - noises / alpha**2
    return row, float((probabilities[likely] * noise**2).sum())

"""What source and target of a recorrupted pair have in common is known for noise that is not normal."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from denoise_core.methods.zs_fit.common_noise import CommonNoise
from denoise_core.methods.zs_fit.noise_level import Stabiliser
from denoise_core.methods.zs_fit.pairs import ALPHA, Pair, in_common

DRAWS = 400_000
PHOTONS = Stabiliser(1.0, 0.0, 0.0, 3.0)
READ_NOISE = Stabiliser(2.0, 100.0, 1.5, 5.0)

Drawn = npt.NDArray[np.float32]


def photons(mean: float, rng: np.random.Generator) -> Drawn:
    return rng.poisson(mean, DRAWS).astype(np.float32)


def with_read_noise(mean: float, rng: np.random.Generator) -> Drawn:
    counts = rng.poisson(mean, DRAWS) + rng.normal(0, math.sqrt(1.5), DRAWS)
    return (100 + 2 * counts).astype(np.float32)


CASES = [
    *((PHOTONS, photons, mean) for mean in (0.3, 1.0, 2.0, 5.0, 20.0, 60.0)),
    *((READ_NOISE, with_read_noise, mean) for mean in (0.5, 3.0, 15.0)),
]


@pytest.mark.parametrize(("stabiliser", "draw", "level"), CASES)
def test_nothing_is_left_in_common(stabiliser: Stabiliser, draw: object, level: float) -> None:
    """By Monte Carlo: what is left of the target's noise follows no power of the source's, where the mean is known."""
    rng = np.random.default_rng(0)
    z = torch.from_numpy(stabiliser.forward(draw(level, rng))).double()  # type: ignore[operator]
    mean = z.mean()
    again = torch.from_numpy(rng.normal(size=DRAWS))
    source, target = z + ALPHA * again, z - again / ALPHA
    common = CommonNoise.of(stabiliser, ALPHA)
    assert common is not None
    expected = torch.full((1, 1, DRAWS), float(mean))
    found = common(source.float().view(1, 1, -1), expected).double().flatten()
    taken = (source - mean).clamp(-4, 4)
    powers = [taken, taken.square() - taken.square().mean(), taken**3 - (taken**3).mean()]
    for power in powers:
        product = (target - found - mean) * power
        error = float(product.std()) / math.sqrt(DRAWS)
        assert abs(float(product.mean())) < 5 * error + 0.004 * float(power.std())
    assert float(common.variance(expected)[0, 0, 0]) == pytest.approx(float(z.var()), rel=0.02, abs=0.004)


def test_without_it_there_is_something_in_common() -> None:
    """The test above can fail: of ten photons the target follows the square of the source's noise."""
    rng = np.random.default_rng(0)
    z = torch.from_numpy(PHOTONS.forward(photons(10.0, rng))).view(1, 500, -1)
    again = torch.from_numpy(rng.normal(size=DRAWS)).float().view_as(z)
    mean = torch.full_like(z, float(z.mean()))
    pair = Pair(z + ALPHA * again, mean, z - again / ALPHA, torch.ones_like(z))
    common = CommonNoise.of(PHOTONS, ALPHA)
    assert common is not None
    without = pair.without(common)
    assert in_common([pair])[1] < -0.03
    assert abs(in_common([without])[1]) < 0.005
    assert torch.allclose(without.noise, again, atol=1e-4), "what was added is still known"
    assert without.expected == pytest.approx(float(z.var()), rel=0.01)


def test_normal_noise_has_nothing_in_common() -> None:
    assert CommonNoise.of(Stabiliser(0.0, 0.0, 25.0, 4.0), ALPHA) is None

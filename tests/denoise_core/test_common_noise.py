"""What source and target of a recorrupted pair have in common is known for noise that is not normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from denoise_core.methods.zs_fit.common_noise import CommonNoise
from denoise_core.methods.zs_fit.noise_level import Stabiliser
from denoise_core.methods.zs_fit.pairs import ALPHA, Pair, in_common, independent

DRAWS = 400_000
PHOTONS = Stabiliser(1.0, 0.0, 0.0, 3.0)

Drawn = npt.NDArray[np.float32]


def photons(mean: float, rng: np.random.Generator) -> Drawn:
    return rng.poisson(mean, DRAWS).astype(np.float32)


def with_read_noise(variance: float) -> Callable[[float, np.random.Generator], Drawn]:
    def draw(mean: float, rng: np.random.Generator) -> Drawn:
        counts = rng.poisson(mean, DRAWS) + rng.normal(0, math.sqrt(variance), DRAWS)
        return (100 + 2 * counts).astype(np.float32)

    return draw


CASES = [
    *((PHOTONS, photons, mean) for mean in (0.05, 0.3, 1.0, 2.0, 5.0, 20.0, 60.0, 300.0, 5000.0)),
    *(
        (Stabiliser(2.0, 100.0, variance, 5.0), with_read_noise(variance), mean)
        for variance, mean in (
            (1.5, 0.5),
            (1.5, 3.0),
            (1.5, 15.0),
            (30.0, 0.5),
            (30.0, 80.0),
            (900.0, 3.0),
            (900.0, 300.0),
        )
    ),
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
    left = (target - found - mean).numpy()
    for part in np.array_split(np.argsort(taken.numpy()), 40):
        error = float(left[part].std()) / math.sqrt(len(part))
        assert abs(float(left[part].mean())) < 5 * error + 0.03, "nor any part of it, where a ripple would show"
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
    assert CommonNoise.of(Stabiliser(1.0, 0.0, 1e12, 4.0), ALPHA) is None, "photons that nobody sees for read noise"


def test_a_window_of_which_nothing_is_valid_counts_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    z, again = (torch.randn(1, 128, 128, generator=generator) for _ in range(2))
    pair = Pair(z + ALPHA * again, torch.zeros_like(z), z - again / ALPHA, torch.ones_like(z))
    masked = replace(pair, valid=torch.zeros_like(z), expected=0.0)
    assert in_common([masked]) == (0.0, 0.0)
    assert [one.variance for one in independent([pair, masked])] == [1.0, 1.0]


@pytest.mark.parametrize("off", [1.0, 1.3])
def test_torch_s_threads_change_no_bit_of_a_pair(off: float) -> None:
    """Sums of torch's own differ in the last digits; a gain that is off is put right by such a sum."""
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            rng = np.random.default_rng(0)
            z = torch.from_numpy(PHOTONS.forward(rng.poisson(20.0 * off, (3, 256, 256)).astype(np.float32)))
            again = torch.from_numpy(rng.normal(size=z.shape)).float()
            mean = torch.full_like(z, float(np.float32(2 * math.sqrt(20 * off + 0.375) - 3)))
            common = CommonNoise.of(PHOTONS, ALPHA)
            assert common is not None
            source = z * math.sqrt(off) + ALPHA * again
            pair = Pair(source, mean * math.sqrt(off), source - (ALPHA + 1 / ALPHA) * again, torch.ones(1, 256, 256))
            found.append((independent([pair.without(common)]), in_common([pair])))
        finally:
            torch.set_num_threads(1)
    (one,), (other,) = found[0][0], found[1][0]
    assert (one.variance != 1.0) == (off != 1.0)
    assert torch.equal(one.target, other.target)
    assert found[0][1] == found[1][1]

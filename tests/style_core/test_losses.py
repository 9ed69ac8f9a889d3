import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from style_core.losses import GramTarget, Moments, WassersteinTarget, blend, gram_matrix, moments, sums


@pytest.fixture
def activations() -> Tensor:
    return torch.randn(1, 5, 7, 9, generator=torch.Generator().manual_seed(3))


def drawn(channels: int, seed: int, rank: int | None = None) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(1, rank or channels, 30, 40, generator=generator, dtype=torch.float64)
    if rank is not None:
        f = torch.einsum("cr,brhw->bchw", torch.randn(channels, rank, generator=generator, dtype=torch.float64), f)
    return moments(f + torch.rand(channels, generator=generator)[:, None, None])


def softness(target: Moments) -> float:
    """At most so much is added to a Wasserstein distance by the root that stays differentiable."""
    return 2e-3 * float(torch.linalg.eigvalsh(target.covariance)[-1])


def test_gram_matrix_is_the_sum_over_positions(activations: Tensor) -> None:
    f = activations[0].double().numpy()
    expected = np.einsum("ihw,jhw->ij", f, f) / (5 * 7 * 9)
    np.testing.assert_allclose(gram_matrix(activations).numpy(), expected, rtol=1e-5, atol=1e-7)
    last = activations.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(gram_matrix(last).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_gram_matrix_forgets_place_and_size(activations: Tensor) -> None:
    expected = gram_matrix(activations)
    torch.testing.assert_close(gram_matrix(activations.flip(-1).mT), expected)
    torch.testing.assert_close(gram_matrix(activations.repeat(1, 1, 2, 3)), expected)


@pytest.mark.parametrize("count", [1, 1000, 1024, 5000])
def test_sums_of_half_precision_are_nearly_those_of_float32(count: int) -> None:
    rows = torch.rand(count, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    total, second = sums(rows)
    exact = rows.double()
    assert total.dtype == second.dtype == torch.float32
    torch.testing.assert_close(total.double(), exact.sum(0), rtol=5e-3, atol=0)
    torch.testing.assert_close(second.double(), exact.T @ exact, rtol=5e-3, atol=0)


@pytest.mark.parametrize("kind", [GramTarget, WassersteinTarget])
@pytest.mark.parametrize("rank", [None, 3])
def test_distances_are_zero_at_the_target_and_their_derivatives_are_right(kind, rank: int | None) -> None:
    target, found = drawn(6, 1), drawn(6, 2, rank)
    distance = kind(target)
    at_home = distance(target)
    assert -1e-6 <= float(at_home.value) <= softness(target)
    assert float(distance(found).value) > 10 * abs(float(at_home.value))

    # Along a random direction.
    mean, second = found.mean, found.second
    generator = torch.Generator().manual_seed(5)
    d_mean = torch.randn(6, generator=generator, dtype=torch.float64)
    d_second = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    d_second = d_second @ d_second.T  # keeps the covariance possible
    h = 1e-9
    ahead, behind = (
        distance(Moments(mean + t * d_mean, second + t * (d_second + 9 * torch.eye(6)))).value for t in (h, 0)
    )
    here = distance(Moments(mean, second))
    expected = ((d_second + 9 * torch.eye(6)) * here.by_second).sum()
    if here.by_mean is not None:
        expected = expected + (d_mean * here.by_mean).sum()
    assert float((ahead - behind) / h) == pytest.approx(float(expected), rel=1e-2)


def test_the_wasserstein_distance_is_that_of_normal_distributions() -> None:
    one, two = drawn(6, 1), drawn(6, 2)
    a, b = (m.covariance.double().numpy() for m in (one, two))
    root = sqrtm(a)
    off = float((one.mean - two.mean).square().sum())
    expected = (off + np.trace(a + b - 2 * np.real(sqrtm(root @ b @ root)))) / 6
    for target, found in ((one, two), (two, one)):
        assert expected - 1e-5 <= float(WassersteinTarget(target)(found).value) <= expected + softness(target)


def test_a_blend_is_the_mixtures() -> None:
    generator = torch.Generator().manual_seed(4)
    one, two = (torch.randn(1, 4, 6, 8, generator=generator) for _ in range(2))
    mixed = blend([moments(one), moments(two)], [0.25, 0.75])
    whole = moments(torch.cat([one, two, two, two], 2))
    torch.testing.assert_close(mixed.second, whole.second)
    torch.testing.assert_close(mixed.mean, whole.mean)

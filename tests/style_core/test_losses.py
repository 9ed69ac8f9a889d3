from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from style_core import SEED, Features, content_loss, extract, gram_matrix, style_loss


@pytest.fixture
def activations() -> Tensor:
    return torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(3))


def test_gram_matrix_is_the_sum_over_positions(activations: Tensor) -> None:
    f = activations.double().numpy()
    expected = np.einsum("bihw,bjhw->bij", f, f) / (5 * 7 * 9)
    np.testing.assert_allclose(gram_matrix(activations).numpy(), expected, rtol=1e-5, atol=1e-7)
    last = activations.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(gram_matrix(last).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_gram_matrix_forgets_place_and_size(activations: Tensor) -> None:
    expected = gram_matrix(activations)
    torch.testing.assert_close(gram_matrix(activations.flip(-1).mT), expected)
    torch.testing.assert_close(gram_matrix(activations.repeat(1, 1, 2, 3)), expected)


def test_gram_matrix_of_half_precision_sums_in_float32() -> None:
    ones = torch.ones(1, 2, 64, 64, dtype=torch.bfloat16)
    assert gram_matrix(ones).dtype == torch.float32
    torch.testing.assert_close(gram_matrix(ones), torch.full((1, 2, 2), 0.5))


def test_losses_are_means_of_squares(activations: Tensor) -> None:
    other = activations.roll(1, 0)
    f, p = activations.double().numpy(), other.double().numpy()
    assert float(content_loss(activations, other)) == pytest.approx(np.mean((f - p) ** 2), rel=1e-5)
    g, a = (np.einsum("bihw,bjhw->bij", v, v) / (5 * 7 * 9) for v in (f, p))
    assert float(style_loss(activations, gram_matrix(other))) == pytest.approx(np.mean((g - a) ** 2), rel=1e-5)


def test_losses_are_zero_for_identical_images_and_not_for_others(
    trained: Features, picture: Callable[..., Tensor]
) -> None:
    one = extract(trained, picture("astronaut")[None], SEED.layers)
    two = extract(trained, picture("coffee")[None], SEED.layers)
    for name in SEED.layers:
        assert float(content_loss(one[name], one[name])) == 0
        assert float(style_loss(one[name], gram_matrix(one[name]))) == 0
        assert float(content_loss(one[name], two[name])) > 0.1
        assert float(style_loss(one[name], gram_matrix(two[name]))) > 1e-7

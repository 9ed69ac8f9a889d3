import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from style_core import PRESETS, Features
from style_core.network import Network
from style_core.winograd import Convolution, transforms


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_six_values_from_eight_products_are_the_filters() -> None:
    at, g, bt = transforms()
    values, taps = random(8).double(), random(3, seed=1).double()
    assert len(g) == 8
    torch.testing.assert_close(at @ ((g @ taps) * (bt @ values)), values.unfold(0, 3, 1) @ taps, rtol=1e-12, atol=1e-12)


# Less than a band, a band, and a row more; one block of columns, and several.
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 3), (7, 64), (12, 129), (13, 240), (50, 71), (5, 601)])
@pytest.mark.parametrize("channels", [(64, 64), (64, 128), (128, 64)])
def test_a_convolution_is_the_plain_one(size: tuple[int, int], channels: tuple[int, int]) -> None:
    x = random(1, channels[0], *size).contiguous(memory_format=torch.channels_last)
    weight, bias = random(channels[1], channels[0], 3, 3, seed=1), random(channels[1], seed=2)
    plain = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = Convolution(weight, bias)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert float((found - plain).abs().max()) < 1e-5 * float(plain.abs().max())
    assert float((found - plain).norm()) < 2e-6 * float(plain.norm())
    without = F.conv2d(x.double(), weight.double(), padding=1)
    torch.testing.assert_close(Convolution(weight)(x).double(), without, rtol=0, atol=1e-5 * float(without.abs().max()))


def test_what_lay_in_memory_before_does_not_change_a_bit() -> None:
    x = random(1, 64, 20, 30).contiguous(memory_format=torch.channels_last)
    convolution = Convolution(random(64, 64, 3, 3, seed=1), random(64, seed=2))
    found = []
    for filler in (0.0, float("nan"), 1e30):
        junk = [torch.full((count,), filler) for count in (8 * 66 * 64, 8 * 68 * 64, 20 * 30 * 64, 8 * 162 * 64)]
        del junk
        found.append(convolution(x))
    assert all(torch.equal(one, other) for one, other in itertools.pairwise(found))


def test_only_a_cpu_in_float32_convolves_so(trained: Features) -> None:
    full, half = (Network(trained, PRESETS["seed"].layers, dtype, "cpu") for dtype in (torch.float32, torch.bfloat16))
    for chain in (full.forwards, full.backwards):
        wide = [torch.backends.mkl.is_available()] * 4
        assert [isinstance(convolution, Convolution) for convolution in chain] == [False, *wide]
    assert not any(isinstance(convolution, Convolution) for convolution in (*half.forwards, *half.backwards))


def test_where_torch_shares_operations_among_threads_it_is_torchs() -> None:
    x = random(1, 64, 20, 30).contiguous(memory_format=torch.channels_last)
    weight = random(64, 64, 3, 3, seed=1).contiguous(memory_format=torch.channels_last)
    torch.set_num_threads(2)  # the fixture puts it back
    assert torch.equal(Convolution(weight)(x), F.conv2d(x, weight, padding=1))

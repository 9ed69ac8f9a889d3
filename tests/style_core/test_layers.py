import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from style_core import LAYERS, PRESETS, Features, StylePreset
from style_core.layers import margin, reached, stride, up_to
from style_core.network import Network


def test_strides_and_names() -> None:
    assert (stride(["conv1_2"]), stride(["conv3_1"]), stride(["relu5_1", "relu1_1"])) == (1, 4, 16)
    assert reached(2) == ("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1")
    assert [layer.name for layer in up_to(["relu1_1"])] == ["conv1_1", "relu1_1"]


@pytest.mark.parametrize("layer", ["conv1_1", "conv2_2", "conv3_1", "relu4_2"])
def test_nothing_beyond_the_margin_is_seen_and_something_just_within_it(
    layer: str, synthetic: Callable[[StylePreset], Features]
) -> None:
    around, step = margin([layer]), stride([layer])
    # In float64, since the mixtures of `winograd` round what is far with what is near.
    network = Network(synthetic(PRESETS["gatys"]), [layer], torch.float64, "cpu")
    side = 2 * around + 4 * step
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))

    def seen(changed: int) -> float:
        # One row of pixels, that far above a cut at the middle.
        other = image.clone()
        other[..., : side // 2 - changed, :] = 0.5
        inside = slice(side // 2 // step, None)
        first, second = (network.forward(x, keep=False).found[layer][..., inside, :] for x in (image, other))
        return float((first - second).abs().max())

    assert seen(around) < 1e-5
    assert seen(max(0, around - 2 * step)) > 1e-4


def test_presets_are_listed_without_torch() -> None:
    code = "import sys, style_core; print(*style_core.PRESETS, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["seed", "gatys", "best", "False"]


def test_every_public_name_is_there() -> None:
    import style_core

    assert all(getattr(style_core, name) is not None for name in style_core.__all__)
    assert callable(style_core.transfer)
    assert LAYERS[0].name == "conv1_1"
    with pytest.raises(AttributeError, match="no attribute 'SEED'"):
        _ = style_core.SEED

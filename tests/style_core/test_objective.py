import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from style_core import PRESETS, Features, StylePreset, extract
from style_core.layers import margin, stride
from style_core.losses import GramTarget, WassersteinTarget
from style_core.network import Network
from style_core.objective import Evaluation, Objective, cut, measure

Picture = Callable[..., Tensor]
Synthetic = Callable[[StylePreset], Features]
SEED = PRESETS["seed"]
SHORT_BEST = replace(
    PRESETS["best"], style_layers=("relu1_1", "relu2_1", "relu3_1"), content_layers=("relu2_2",), content_weight=0.1
)


def evaluated(
    features: Features,
    preset: StylePreset,
    images: tuple[Tensor, Tensor, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    **parts: int,
) -> Evaluation:
    content, style, image = (x[None] for x in images)
    network = Network(features, preset.layers, dtype, "cpu", preset.padding)
    kind = GramTarget if preset.distance == "gram" else WassersteinTarget
    targets = {name: kind(found) for name, found in measure(network, style, preset.style_layers).items()}
    weights = (preset.style_weight, preset.content_weight)
    return Objective(network, content, targets, preset.content_layers, weights, **parts)(image)


@pytest.mark.parametrize("size", [(1, 1), (40, 100), (101, 64), (257, 130)])
@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("at_least", [1, 3])
def test_parts_cover_an_image_once_and_read_their_margins(size: tuple[int, int], step: int, at_least: int) -> None:
    covered = torch.zeros(1, 1, *size)
    tiles = cut(size, 48, step, 2 * step, at_least=at_least)
    for tile in tiles:
        top, bottom, left, right = tile.inner
        covered[..., top:bottom, left:right] += 1
        for place, end in ((tile.outer[0], size[0]), (tile.outer[1], size[0]), (tile.outer[2], size[1])):
            assert place % step == 0 or place == end
        assert tile.outer[0] == max(0, top - 2 * step)
        assert tile.outer[3] == min(size[1], right + 2 * step)
        assert tile.core(tile.read(covered)).shape[2:] == (bottom - top, right - left)
    assert bool((covered == 1).all())
    assert len(tiles) >= min(at_least, size[0] // step or 1)


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_the_gradient_is_autograds(synthetic: Synthetic, picture: Picture, size: tuple[int, int]) -> None:
    images = picture("astronaut", *size), picture("coffee", 40, 60), picture("chelsea", *size)
    features = synthetic(SEED)
    found = evaluated(features, SEED, images)

    content, style, image = (x[None] for x in images)
    image.requires_grad_()
    layers = [extract(features, x, SEED.layers) for x in (content, style, image)]

    def gram(f: Tensor) -> Tensor:
        return torch.einsum("bihw,bjhw->ij", f, f) / f.numel()

    style_loss = 1e6 * sum(F.mse_loss(gram(layers[2][n]), gram(layers[1][n])) for n in SEED.style_layers)
    content_loss = F.mse_loss(layers[2]["conv2_2"], layers[0]["conv2_2"])
    (gradient,) = torch.autograd.grad(style_loss + content_loss, image)
    assert found.style_loss == pytest.approx(style_loss.item(), rel=1e-5)
    assert found.content_loss == pytest.approx(content_loss.item(), rel=1e-5)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        (SEED, {"tile": 24}),
        (SEED, {"threads": 3}),
        (SEED, {"tile": 32, "threads": 2}),
        (SHORT_BEST, {"tile": 24}),
        (SHORT_BEST, {"threads": 3}),
        (PRESETS["gatys"], {"tile": 48}),
    ],
)
def test_an_image_in_parts_has_the_same_losses_and_gradient(
    synthetic: Synthetic, picture: Picture, preset: StylePreset, parts: dict[str, int]
) -> None:
    size = (93, 70)
    images = picture("astronaut", *size), picture("coffee", 48, 60), picture("chelsea", *size)
    features = synthetic(preset)
    whole, cut_up = (evaluated(features, preset, images, **given) for given in ({"tile": 1000}, parts))
    assert cut_up.style_loss == pytest.approx(whole.style_loss, rel=1e-4)
    assert cut_up.content_loss == pytest.approx(whole.content_loss, rel=1e-5)
    torch.testing.assert_close(
        cut_up.gradient, whole.gradient, rtol=2e-3, atol=5e-4 * float(whole.gradient.abs().max())
    )
    tiles = cut(size, parts.get("tile", 1000), stride(preset.layers), margin(preset.layers), at_least=2)
    assert len(tiles) > 1


def test_the_losses_fall_along_the_gradient_of_best(synthetic: Synthetic, picture: Picture) -> None:
    # Central differences in float32 along the gradient itself, where it is steepest.
    images = picture("astronaut", 40, 40), picture("coffee", 40, 40), 0.25 + 0.5 * picture("chelsea", 40, 40)
    features = synthetic(SHORT_BEST)
    here = evaluated(features, SHORT_BEST, images)
    direction = here.gradient[0] / here.gradient.norm()
    h = 0.05
    ahead, behind = (evaluated(features, SHORT_BEST, (*images[:2], images[2] + t * direction)).loss for t in (h, -h))
    assert (ahead - behind) / (2 * h) == pytest.approx(float(here.gradient.norm()), rel=0.02)


def test_half_precision_is_near(trained: Features, picture: Picture) -> None:
    images = picture("astronaut", 64, 64), picture("coffee", 64, 64), picture("chelsea", 64, 64)
    full, half = (evaluated(trained, SEED, images, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.loss == pytest.approx(full.loss, rel=0.01)
    assert F.cosine_similarity(half.gradient.flatten(), full.gradient.flatten(), dim=0) > 0.999


def test_a_step_below_half_precisions_levels_is_seen(trained: Features, picture: Picture) -> None:
    content, style = picture("astronaut", 48, 48), picture("coffee", 48, 48)
    step = 2e-4 * torch.ones_like(content)
    before, after = (
        evaluated(trained, SEED, (content, style, x), dtype=torch.bfloat16).loss for x in (content, content + step)
    )
    assert before != after


def test_what_is_at_work_does_not_change_the_result(synthetic: Synthetic, picture: Picture) -> None:
    images = picture("astronaut", 60, 60), picture("coffee", 40, 60), picture("chelsea", 60, 60)
    features = synthetic(SEED)
    found = [evaluated(features, SEED, images, tile=20, threads=2) for _ in range(3)]
    for one, other in itertools.pairwise(found):
        assert one.loss == other.loss
        assert torch.equal(one.gradient, other.gradient)

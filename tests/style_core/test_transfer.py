import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from style_core import SEED, Features, Step, StylePreset, load_features, style_targets, transfer

Picture = Callable[..., Tensor]


def seed_losses(path: Path, content: Tensor, style: Tensor, scale: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The seed document's objective written plainly from its text, with the file's activations divided by ``scale``."""
    state = torch.load(path, weights_only=True)
    parts: list[nn.Module] = []
    for place, (before, after) in {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256)}.items():
        if place in (5, 10):
            parts.append(nn.MaxPool2d(kernel_size=2, stride=2))
        convolution = nn.Conv2d(before, after, kernel_size=3, padding=1)
        convolution.weight = nn.Parameter(state[f"features.{place}.weight"] / (scale if place == 0 else 1))
        convolution.bias = nn.Parameter(state[f"features.{place}.bias"] / scale)
        parts += [convolution, nn.ReLU(inplace=False)]
    model = nn.Sequential(*parts).requires_grad_(False)

    def convolved(x: Tensor) -> list[Tensor]:
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(-1, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
            -1, 1, 1
        )
        outputs = []
        for module in model:
            x = module(x)
            if isinstance(module, nn.Conv2d):
                outputs.append(x)
        return outputs

    def gram(x: Tensor) -> Tensor:
        a, b, c, d = x.size()
        flat = x.view(a * b, c * d)
        return torch.mm(flat, flat.t()).div(a * b * c * d)

    painted = [gram(x) for x in convolved(style[None])]
    shown = convolved(content[None])[3]

    def losses(x: Tensor) -> tuple[Tensor, Tensor]:
        outputs = convolved(x)
        style_score = sum((F.mse_loss(gram(o), p) for o, p in zip(outputs, painted, strict=True)), torch.zeros(()))
        return 1e6 * style_score, F.mse_loss(outputs[3], shown)

    return losses


def seed_transfer(losses: Callable[[Tensor], tuple[Tensor, Tensor]], content: Tensor, evaluations: int) -> Tensor:
    """The seed document's loop: L-BFGS in its default state, clamped inside the closure."""
    x = content[None].clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x])
    run = 0

    def closure() -> Tensor:
        nonlocal run
        with torch.no_grad():
            x.clamp_(0, 1)
        optimizer.zero_grad()
        total = sum(losses(x), torch.zeros(()))
        total.backward()
        run += 1
        return total.detach()

    while run < evaluations:
        optimizer.step(closure)
    return x.detach().clamp(0, 1)


@pytest.fixture
def random_features(weights_file: Callable[..., Path]) -> Features:
    """Untrained weights: for what does not depend on the picture."""
    return load_features(weights_file("conv3_1"), SEED.layers)


def losses_of(steps: list[Step]) -> list[float]:
    return [step.style_loss + step.content_loss for step in steps]


@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_losses_are_those_of_the_seed(trained_path: Path, picture: Picture, scale: float | None) -> None:
    content, style = picture("astronaut", 48, 40), picture("coffee", 36, 60)
    features = load_features(trained_path, SEED.layers, activation_scale=scale)
    steps: list[Step] = []
    result = transfer(content, style, features, replace(SEED, steps=8), on_step=steps.append)
    expected = seed_losses(trained_path, content, style, features.activation_scale)
    for image, step in ((content, steps[0]), (result, steps[-1])):
        style_score, content_score = expected(image[None])
        assert step.style_loss == pytest.approx(float(style_score), rel=1e-5)
        assert step.content_loss == pytest.approx(float(content_score), rel=1e-5, abs=1e-9)
    assert steps[-1].content_loss > 0


def test_the_result_is_no_worse_than_the_seeds_loop(trained: Features, trained_path: Path, picture: Picture) -> None:
    content, style = picture("coffee", 40, 40), picture("immunohistochemistry", 40, 40)
    losses = seed_losses(trained_path, content, style, trained.activation_scale)
    theirs = float(sum(losses(seed_transfer(losses, content, 60))))
    ours = float(sum(losses(transfer(content, style, trained, replace(SEED, steps=60))[None])))
    assert ours < 1.02 * theirs
    assert ours < 0.05 * float(sum(losses(content[None])))


def test_the_loss_falls_and_never_rises(trained: Features, picture: Picture) -> None:
    content, style = picture("astronaut"), picture("immunohistochemistry")
    steps: list[Step] = []
    result = transfer(content, style, trained, replace(SEED, steps=12), on_step=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(i, 12) for i in range(1, 13)]
    losses = losses_of(steps)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]
    assert result.shape == content.shape
    assert result.dtype == torch.float32
    assert 0 <= float(result.min()) < float(result.max()) <= 1


def test_a_pair_that_throws_the_seeds_loop_off_is_stylized(trained: Features, picture: Picture) -> None:
    # Dark style, bright content: many pixels reach the bounds, and the seed's loop multiplies the loss instead.
    steps: list[Step] = []
    transfer(picture("chelsea"), picture("retina"), trained, replace(SEED, steps=60), on_step=steps.append)
    losses = losses_of(steps)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]


def test_bfloat16_ends_near_float32(trained: Features, trained_path: Path, picture: Picture) -> None:
    content, style = picture("astronaut", 40, 40), picture("coffee", 40, 40)
    losses = seed_losses(trained_path, content, style, trained.activation_scale)
    preset = replace(SEED, steps=40)
    full = transfer(content, style, trained, preset)
    half = transfer(content, style, trained.to("cpu", torch.bfloat16), preset)
    start, a, b = (float(sum(losses(x[None]))) for x in (content, full, half))
    assert abs(a - b) < 0.01 * start


def test_adam_lowers_the_loss_too(trained: Features, picture: Picture) -> None:
    preset = replace(SEED, steps=15, optimizer="adam")
    steps: list[Step] = []
    result = transfer(picture("astronaut"), picture("coffee"), trained, preset, on_step=steps.append)
    assert losses_of(steps)[-1] < 0.3 * losses_of(steps)[0]
    assert 0 <= float(result.min()) < float(result.max()) <= 1


def test_a_style_of_another_size_and_orientation_works(trained: Features, picture: Picture) -> None:
    content = picture("astronaut", 33, 50)
    for size in ((64, 20), (4, 4), (31, 90)):
        steps: list[Step] = []
        result = transfer(content, picture("coffee", *size), trained, replace(SEED, steps=4), on_step=steps.append)
        assert result.shape == (3, 33, 50)
        assert losses_of(steps)[-1] < losses_of(steps)[0]


def test_targets_computed_once_give_the_same_bytes(random_features: Features, picture: Picture) -> None:
    style, preset = picture("coffee", 20, 28), replace(SEED, steps=4)
    targets = style_targets(style, random_features, preset)
    assert {name: tuple(gram.shape) for name, gram in targets.grams.items()} == {
        "conv1_1": (1, 64, 64),
        "conv1_2": (1, 64, 64),
        "conv2_1": (1, 128, 128),
        "conv2_2": (1, 128, 128),
        "conv3_1": (1, 256, 256),
    }
    for name, size in (("astronaut", (24, 24)), ("chelsea", (16, 32))):
        content = picture(name, *size)
        assert torch.equal(
            transfer(content, targets, random_features, preset), transfer(content, style, random_features, preset)
        )
    fewer = style_targets(style, random_features, replace(preset, style_layers=("conv1_1",)))
    with pytest.raises(ValueError, match="targets lack conv1_2, conv2_1, conv2_2, conv3_1"):
        transfer(picture("astronaut", 16, 16), fewer, random_features, preset)


def test_the_same_call_gives_the_same_bytes_and_leaves_its_arguments(
    random_features: Features, picture: Picture
) -> None:
    content, style = picture("astronaut", 24, 24), picture("coffee", 24, 24)
    before = content.clone(), style.clone(), torch.get_rng_state()
    preset = replace(SEED, steps=5)
    first = transfer(content, style, random_features, preset)
    with torch.no_grad():
        second = transfer(content, style, random_features, preset, on_step=lambda _: None)
    assert torch.equal(first, second)
    assert torch.equal(before[0], content)
    assert torch.equal(before[1], style)
    assert not torch.equal(first, content)
    noise = replace(preset, start="noise")
    drawn = [transfer(content, style, random_features, noise, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before[2], torch.get_rng_state())


def test_an_image_in_its_own_style_stays_as_it_is(random_features: Features, picture: Picture) -> None:
    content = picture("astronaut", 24, 24)
    steps: list[Step] = []
    result = transfer(content, content, random_features, SEED, on_step=steps.append)
    assert torch.equal(result, content)
    assert losses_of(steps) == [0.0]


def test_content_alone_is_found_again_from_noise(trained: Features, picture: Picture) -> None:
    content = picture("astronaut", 32, 32)
    preset = replace(SEED, style_layers=(), content_layers=("conv1_1",), steps=60, start="noise")
    result = transfer(content, content, trained, preset)
    assert float((result - content).square().mean()) < 0.005


def test_what_on_step_raises_ends_the_transfer(random_features: Features, picture: Picture) -> None:
    seen: list[int] = []

    def stop(step: Step) -> None:
        seen.append(step.step)
        if step.step == 3:
            raise KeyboardInterrupt

    for optimizer in ("lbfgs", "adam"):
        seen.clear()
        preset = replace(SEED, optimizer=optimizer)
        with pytest.raises(KeyboardInterrupt):
            transfer(picture("astronaut", 16, 16), picture("coffee", 16, 16), random_features, preset, on_step=stop)
        assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 16, 16), r"RGB \(3, H, W\) .* in \[0, 1\], found shape \(1, 16, 16\); repeat a grey image"),
        (torch.zeros(16, 16), r"found shape \(16, 16\); repeat a grey image"),
        (torch.zeros(4, 16, 16), r"found shape \(4, 16, 16\); .* drop an alpha channel"),
        (torch.zeros(1, 3, 16, 16), r"found shape \(1, 3, 16, 16\)$"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"found torch\.uint8; divide"),
        (torch.full((3, 16, 16), 128.0), r"found values from 128 to 128"),
        (torch.full((3, 16, 16), torch.nan), r"found values from nan to nan"),
        (torch.zeros(3, 3, 16), r"16 × 3 pixels; the preset's layers need at least 4 × 4"),
    ],
)
def test_an_image_that_is_not_as_expected_is_refused(random_features: Features, image: Tensor, message: str) -> None:
    good = torch.full((3, 16, 16), 0.5)
    with pytest.raises(ValueError, match=message) as caught:
        transfer(image, good, random_features, SEED)
    assert "the content image" in str(caught.value)
    with pytest.raises(ValueError, match=message) as caught:
        transfer(good, image, random_features, SEED)
    assert "the style image" in str(caught.value)


def test_a_preset_deeper_than_the_network_is_refused(random_features: Features) -> None:
    good = torch.full((3, 16, 16), 0.5)
    with pytest.raises(ValueError, match="as far as relu3_1, and conv3_2 was asked for"):
        transfer(good, good, random_features, replace(SEED, content_layers=("conv3_2",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style_layers": ("conv_1",)}, "no layer 'conv_1'"),
        ({"style_layers": (), "content_layers": ()}, "at least one"),
        ({"steps": 0}, "steps is 0"),
        ({"optimizer": "sgd"}, "expected lbfgs or adam"),
        ({"start": "style"}, "expected content or noise"),
    ],
)
def test_a_preset_that_means_nothing_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SEED, **change)


def test_the_seeds_preset_is_the_seeds() -> None:
    assert (
        StylePreset(
            style_layers=("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"),
            content_layers=("conv2_2",),
            style_weight=1e6,
            content_weight=1,
            steps=300,
            optimizer="lbfgs",
            start="content",
        )
        == SEED
    )

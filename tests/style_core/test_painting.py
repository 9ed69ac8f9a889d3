import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.baseline_gatys import Objective, baseline
from style_core import PRESETS, Features, Step, StyleError, StylePreset, StyleTargets, load_features, transfer
from style_core.painting import scales

Picture = Callable[..., Tensor]
Synthetic = Callable[[StylePreset], Features]
SEED = PRESETS["seed"]
SHORT_BEST = replace(
    PRESETS["best"], style_layers=("relu1_1", "relu2_1", "relu3_1"), content_layers=("relu3_2",), steps=20, coarsest=24
)


def plain(path: Path, features: Features, content: Tensor, style: Tensor) -> Objective:
    state = torch.load(path, weights_only=True)
    scale = features.activation_scale
    scaled = {key: v / scale if key == "features.0.weight" or key.endswith("bias") else v for key, v in state.items()}
    return Objective(scaled, content[None], style[None])


def losses_of(steps: list[Step]) -> list[float]:
    return [step.style_loss + step.content_loss for step in steps]


@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_losses_are_those_of_the_seed(trained_path: Path, picture: Picture, scale: float | None) -> None:
    content, style = picture("astronaut", 48, 40), picture("coffee", 36, 60)
    features = load_features(trained_path, SEED.layers, activation_scale=scale)
    steps: list[Step] = []
    targets = StyleTargets([style], features, replace(SEED, steps=8))
    result = transfer(content, targets, on_step=steps.append)
    expected = plain(trained_path, features, content, style)
    for image, step in ((content, steps[0]), (result.image, steps[-1])):
        style_score, content_score = (v.item() for v in expected(image[None]))
        assert step.style_loss == pytest.approx(style_score, rel=1e-4)
        assert step.content_loss == pytest.approx(content_score, rel=1e-4, abs=1e-9)
    assert (result.style_loss, result.content_loss) == (steps[-1].style_loss, steps[-1].content_loss)
    assert result.steps == len(steps) == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_is_no_worse_than_the_seeds_loop(
    trained: Features, trained_path: Path, picture: Picture, dtype: torch.dtype
) -> None:
    content, style = picture("coffee", 40, 40), picture("immunohistochemistry", 40, 40)
    losses = plain(trained_path, trained, content, style)
    theirs = sum(v.item() for v in losses(baseline(losses, content[None], 60)))
    found = transfer(content, StyleTargets([style], trained, replace(SEED, steps=60), dtype=dtype))
    ours = sum(v.item() for v in losses(found.image[None]))
    assert ours < 1.02 * theirs
    assert ours < 0.05 * sum(v.item() for v in losses(content[None]))


@pytest.mark.parametrize("names", [("astronaut", "immunohistochemistry"), ("chelsea", "retina")])
def test_the_loss_falls_and_never_rises(trained: Features, picture: Picture, names: tuple[str, str]) -> None:
    # The second pair, dark style and bright content, multiplies the loss of the seed's loop instead.
    content, style = (picture(name) for name in names)
    steps: list[Step] = []
    found = transfer(content, StyleTargets([style], trained, replace(SEED, steps=60)), on_step=steps.append)
    assert [(step.step, step.steps) for step in steps] == [(i, 60) for i in range(1, 61)]
    losses = losses_of(steps)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]
    assert found.image.shape == content.shape
    assert found.image.dtype == torch.float32
    assert 0 <= float(found.image.min()) < float(found.image.max()) <= 1


def test_best_paints_from_coarse_to_fine_and_lowers_both_losses(trained_path: Path, picture: Picture) -> None:
    features = load_features(trained_path, SHORT_BEST.layers)
    content, style = picture("astronaut", 64, 48), picture("immunohistochemistry", 64, 64)
    targets = StyleTargets([style], features, SHORT_BEST)
    steps: list[Step] = []
    found = transfer(content, targets, on_step=steps.append)
    sizes = list(dict.fromkeys(step.size for step in steps))
    assert sizes == [(32, 24), (45, 34), (64, 48)]
    assert [step.step for step in steps] == list(range(1, 61))
    assert {step.steps for step in steps} == {60}
    unpainted = transfer(content, StyleTargets([style], features, replace(SHORT_BEST, steps=1, coarsest=None)))
    assert found.style_loss < 0.5 * unpainted.style_loss
    assert found.image.shape == content.shape


@pytest.mark.parametrize("name", ["gatys", "best"])
def test_presets_that_need_the_whole_network_run(synthetic: Synthetic, picture: Picture, name: str) -> None:
    preset = replace(PRESETS[name], steps=4)
    content, style = picture("astronaut", 182, 40), picture("coffee", 48, 64)
    steps: list[Step] = []
    found = transfer(content, StyleTargets([style], synthetic(preset), preset), on_step=steps.append)
    assert found.image.shape == content.shape
    assert not torch.equal(found.image, content)
    last = [step for step in steps if step.size == (182, 40)]
    assert losses_of(last)[-1] < losses_of(last)[0]


def test_scales_grow_by_a_root_of_two_to_the_images_own() -> None:
    best = PRESETS["best"]
    assert scales((512, 256), best) == [(128, 64), (181, 91), (256, 128), (362, 181), (512, 256)]
    assert scales((100, 90), best) == [(100, 90)]
    assert scales((40, 3000), best)[0] == (20, 1500)
    assert scales((3000, 4000), PRESETS["seed"]) == [(3000, 4000)]


def test_a_style_of_another_size_and_orientation_works(trained: Features, picture: Picture) -> None:
    content = picture("astronaut", 33, 50)
    for size in ((64, 20), (4, 4), (31, 90), (200, 150)):
        steps: list[Step] = []
        targets = StyleTargets([picture("coffee", *size)], trained, replace(SEED, steps=4))
        found = transfer(content, targets, on_step=steps.append)
        assert found.image.shape == (3, 33, 50)
        assert losses_of(steps)[-1] < losses_of(steps)[0]


def test_targets_are_computed_once_for_a_size(synthetic: Synthetic, picture: Picture) -> None:
    targets = StyleTargets([picture("coffee", 120, 160)], synthetic(SEED), replace(SEED, steps=2))
    first = targets.at((64, 80))
    assert set(first) == set(SEED.style_layers)
    assert targets.at((64, 300)) is first
    assert targets.at((66, 64)) is first
    assert targets.at((32, 80)) is not first
    assert targets.at((120, 120)) is targets.at((4000, 3000))  # never enlarged
    half = StyleTargets([picture("coffee", 120, 160)], synthetic(SEED), SEED, scale=0.5)
    content = picture("astronaut", 64, 64)
    assert (
        transfer(content, targets).style_loss
        != transfer(content, StyleTargets(half._styles, synthetic(SEED), replace(SEED, steps=2), scale=0.5)).style_loss
    )


def test_reused_targets_give_the_same_bytes(synthetic: Synthetic, picture: Picture) -> None:
    features, preset, style = synthetic(SEED), replace(SEED, steps=4), picture("coffee", 20, 28)
    targets = StyleTargets([style], features, preset)
    for name, size in (("astronaut", (24, 24)), ("chelsea", (16, 32))):
        content = picture(name, *size)
        fresh = transfer(content, StyleTargets([style], features, preset))
        assert torch.equal(transfer(content, targets).image, fresh.image)


def test_several_styles_are_blended(synthetic: Synthetic, picture: Picture) -> None:
    features, preset = synthetic(SEED), replace(SEED, steps=1)
    styles = [picture("coffee"), picture("chelsea")]
    content = picture("astronaut")

    def loss(chosen: list[Tensor], weights: list[float] | None = None) -> float:
        return transfer(content, StyleTargets(chosen, features, preset, weights=weights)).style_loss

    assert loss(styles, [5, 0]) == pytest.approx(loss(styles[:1]), rel=1e-5)
    assert loss(styles, [0, 1]) == pytest.approx(loss(styles[1:]), rel=1e-5)
    assert loss(styles) == pytest.approx(loss(styles, [2, 2]), rel=1e-6)
    assert loss(styles) != pytest.approx(loss(styles, [1, 3]), rel=1e-3)
    for weights, message in (([1], "1 weights for 2 styles"), ([1, -1], "none below 0"), ([0, 0], "and some above")):
        with pytest.raises(ValueError, match=message):
            loss(styles, weights)


@pytest.mark.parametrize("preset", [replace(SEED, steps=5), replace(SHORT_BEST, steps=2)], ids=["seed", "best"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_call_gives_the_same_bytes_and_leaves_its_arguments(
    synthetic: Synthetic, picture: Picture, preset: StylePreset, dtype: torch.dtype
) -> None:
    content, style = picture("astronaut", 40, 36), picture("coffee", 24, 24)
    before = content.clone(), style.clone(), torch.get_rng_state()
    targets = StyleTargets([style], synthetic(preset), preset, dtype=dtype, tile=24, threads=2)
    first = transfer(content, targets)
    second = transfer(content, targets, on_step=lambda _: None)
    assert torch.equal(first.image, second.image)
    assert torch.equal(before[0], content)
    assert torch.equal(before[1], style)
    assert not torch.equal(first.image, content)
    noise = StyleTargets([style], synthetic(preset), replace(preset, start="noise"), dtype=dtype)
    drawn = [transfer(content, noise, seed=seed).image for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before[2], torch.get_rng_state())


def test_an_image_in_its_own_style_stays_as_it_is(synthetic: Synthetic, picture: Picture) -> None:
    content = picture("astronaut", 32, 32)
    steps: list[Step] = []
    found = transfer(content, StyleTargets([content], synthetic(SEED), SEED), on_step=steps.append)
    assert torch.equal(found.image, content)
    assert losses_of(steps) == [0.0]


def test_content_alone_is_found_again_from_noise(trained: Features, picture: Picture) -> None:
    content = picture("astronaut", 32, 32)
    preset = replace(SEED, style_layers=(), content_layers=("conv1_1",), steps=60, start="noise")
    found = transfer(content, StyleTargets([], trained, preset))
    assert float((found.image - content).square().mean()) < 0.005


@pytest.mark.parametrize("preset", [SEED, SHORT_BEST], ids=["seed", "best"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_on_step_raises_ends_the_transfer(
    synthetic: Synthetic, picture: Picture, preset: StylePreset, threads: int
) -> None:
    seen: list[int] = []

    def stop(step: Step) -> None:
        seen.append(step.step)
        if step.step == 3:
            raise KeyboardInterrupt

    targets = StyleTargets([picture("coffee", 16, 16)], synthetic(preset), preset, threads=threads)
    with pytest.raises(KeyboardInterrupt):
        transfer(picture("astronaut", 16, 16), targets, on_step=stop)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 16, 16), r"RGB \(3, H, W\) .* in \[0, 1\], found shape \(1, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16), r"found shape \(1, 3, 16, 16\)$"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"found torch\.uint8; divide"),
        (torch.full((3, 16, 16), 128.0), r"found values from 128 to 128"),
        (torch.full((3, 16, 16), torch.nan), r"found values from nan to nan"),
        (torch.zeros(3, 3, 16), r"16 × 3 pixels; the preset's layers need at least 4 × 4"),
    ],
)
def test_an_image_that_is_not_as_expected_is_refused(synthetic: Synthetic, image: Tensor, message: str) -> None:
    good = torch.full((3, 16, 16), 0.5)
    with pytest.raises(StyleError, match=message) as caught:
        transfer(image, StyleTargets([good], synthetic(SEED), SEED))
    assert "the content image" in str(caught.value)
    with pytest.raises(StyleError, match=message) as caught:
        StyleTargets([image], synthetic(SEED), SEED)
    assert "the style image" in str(caught.value)


def test_what_does_not_fit_is_refused(synthetic: Synthetic) -> None:
    good = torch.full((3, 16, 16), 0.5)
    with pytest.raises(ValueError, match="as far as relu3_1, and the preset needs conv3_2"):
        StyleTargets([good], synthetic(SEED), replace(SEED, content_layers=("conv3_2",)))
    with pytest.raises(ValueError, match="no style image"):
        StyleTargets([], synthetic(SEED), SEED)
    with pytest.raises(ValueError, match="scale is 0"):
        StyleTargets([good], synthetic(SEED), SEED, scale=0)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize(("style_weight", "content_weight"), [(1e40, 1.0), (1.0, 1e40), (1e308, 1e308)])
def test_a_loss_that_is_no_finite_number_is_an_error(
    synthetic: Synthetic, picture: Picture, optimizer: Any, style_weight: float, content_weight: float
) -> None:
    features, seen = synthetic(SEED), list[Step]()
    preset = replace(SEED, steps=30, optimizer=optimizer, style_weight=style_weight, content_weight=content_weight)
    preset = replace(preset, start="noise")
    targets = StyleTargets([picture("coffee", 20, 28)], features, preset)
    with pytest.raises(StyleError, match=r"broke down: its loss, .* is no finite number; the weights .* smaller ones"):
        transfer(picture("astronaut", 32, 40), targets, on_step=seen.append)
    assert len(seen) < 30, "it is said at once"


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("style_weight", "content_weight"), [(1e12, 0.0), (0.0, 1e12), (1e12, 1e-6), (1e-6, 0.0)])
def test_the_greatest_and_the_least_weight_paint(
    synthetic: Synthetic,
    picture: Picture,
    optimizer: Any,
    dtype: torch.dtype,
    style_weight: float,
    content_weight: float,
) -> None:
    features = synthetic(SEED)
    preset = replace(
        SEED, steps=8, optimizer=optimizer, style_weight=style_weight, content_weight=content_weight, start="noise"
    )
    targets = StyleTargets([picture("coffee", 20, 28)], features, preset, dtype=dtype)
    curve: list[Step] = []
    found = transfer(picture("astronaut", 32, 40), targets, on_step=curve.append)
    losses = [step.style_loss + step.content_loss for step in curve]
    assert min(losses) < 0.9 * losses[0]
    assert bool(found.image.isfinite().all())

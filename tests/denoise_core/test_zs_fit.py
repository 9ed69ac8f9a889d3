"""zs-fit: its noise model, its network and fit, what it keeps, and the files of its models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from denoise_core import noise
from denoise_core.device import Device
from denoise_core.methods import FitDiverged, Pixels, Step, zs_fit
from denoise_core.methods.frames import Frames
from denoise_core.methods.zs_fit import application, noise_level, optimiser
from denoise_core.methods.zs_fit import prepared as module_prepared
from denoise_core.methods.zs_fit.fitting import Fitted, Plan, Size, fit
from denoise_core.methods.zs_fit.model import ModelError, read_model, write_model
from denoise_core.methods.zs_fit.network import (
    Layout,
    corrected,
    initial_weights,
    pack_gradients,
    self_ensemble,
    unpack,
)
from denoise_core.methods.zs_fit.noise_level import NoiseLevel, Stabiliser
from denoise_core.methods.zs_fit.pairs import (
    ALPHA,
    JUDGED,
    TARGET_VARIANCE,
    Pair,
    held_out_errors,
    independent,
    recorrupt,
    share_passed,
)
from denoise_core.methods.zs_fit.prepared import Prepared, noise_of_frames, prepare

CPU = Device("cpu", "bfloat16", 1, "for the tests")
SHORT = Plan(Size(8, 3), steps=40, crops=4, rate=1e-3, kernel_rate=5e-3, side=32)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clean(photo: np.ndarray) -> Pixels:
    """(1, 128, 128, 3), [0, 1]."""
    return (photo[None, 60:188, 160:288] / np.float32(255)).astype(np.float32)


def noisy_of(clean: Pixels, kind: str, seed: int = 0, *, clip: bool = False) -> Pixels:
    return noise.add(clean, noise.parse(kind), np.random.default_rng(seed), clip=clip)


def psnr(x: Pixels, y: Pixels) -> float:
    return -10 * math.log10(float(np.square(np.clip(x, 0, 1) - y, dtype=np.float64).mean()))


def quiet(_: Step) -> None:
    pass


# --- the noise model ---


@pytest.mark.parametrize("sigma", [5, 25, 60])
def test_white_noise_is_found_to_be_gaussian(photo: np.ndarray, sigma: float) -> None:
    x = (photo[:256, 128:384] / 255).astype(np.float32)
    found = noise_level.estimate(noisy_of(x, f"gauss:{sigma}"))
    assert found is not None
    assert found.kind == "gaussian"
    assert found.sigma(0.5) * 255 == pytest.approx(sigma, rel=0.08)
    assert found.clipped == 0


@pytest.mark.parametrize("peak", [15, 50])
def test_photon_noise_is_found_with_its_gain(photo: np.ndarray, peak: float) -> None:
    x = (photo[:, :, 1] / np.float32(320) + np.float32(0.2)).astype(np.float32)
    found = noise_level.estimate(noisy_of(x, f"poisson:{peak}"))
    assert found is not None
    assert found.kind == "poisson-gaussian"
    for mean in (0.3, 0.6, 0.9):
        assert found.sigma(mean) == pytest.approx(math.sqrt(mean / peak), rel=0.12)


def test_cut_off_noise_is_noticed_and_its_level_not_misjudged(photo: np.ndarray) -> None:
    x = (photo / 255).astype(np.float32)
    found = noise_level.estimate(noisy_of(x, "gauss:25", clip=True))
    assert found is not None
    assert (found.low, found.high) == (0, 1)
    assert 0.02 < found.clipped < 0.4
    assert found.sigma(0.5) * 255 == pytest.approx(25, rel=0.15)


def test_photons_that_did_not_come_are_not_cut_off(photo: np.ndarray) -> None:
    found = noise_level.estimate(noisy_of((photo / np.float32(255)).astype(np.float32), "poisson:15"))
    assert found is not None
    assert (found.low, found.clipped) == (-math.inf, 0)


@pytest.mark.parametrize("x", [0.0, 0.01, 0.04, 0.5, 0.97, 1.0])
def test_the_way_back_knows_what_was_cut_off(x: float) -> None:
    """The mean of clipped noise is not the clean value: at 0 it is 0.4 standard deviations above."""
    y = np.clip(x + np.random.default_rng(0).normal(0, 0.1, 1_000_000), 0, 1).astype(np.float32)
    stabiliser = Stabiliser(0.0, 0.0, 0.1, 0.0, 0.0, 1.0)
    mean = stabiliser.forward(np.array([y.mean(dtype=np.float64)], np.float32))
    assert float(stabiliser.back(mean)[0]) == pytest.approx(x, abs=0.002)


def test_what_lies_below_black_comes_back() -> None:
    """A line through a few variances may put black too high: pixels below it are not to become one flat value."""
    stabiliser = Stabiliser(0.02, 0.3, 0.0, 1.0)
    y = np.array([0.0, 0.1, 0.2, 0.29], np.float32)
    assert stabiliser.back(stabiliser.forward(y)) == pytest.approx(y, abs=1e-5)


def test_an_image_of_too_few_patches_has_no_estimate() -> None:
    assert noise_level.estimate(np.zeros((7, 7, 1), np.float32)) is None


@pytest.mark.parametrize("gain", [0.0, 0.02])
def test_stabilised_noise_has_variance_one_and_the_way_back_no_bias(gain: float) -> None:
    """Drawn from the model itself, at intensities from a few photons on."""
    rng = np.random.default_rng(0)
    level = NoiseLevel(gain, 0.0004, -math.inf, math.inf, 0.0)
    for mean in (0.1, 0.4, 1.0):
        photons = rng.poisson(mean / gain, 400_000) * gain if gain else np.full(400_000, mean)
        y = (photons + rng.normal(0, 0.02, 400_000)).astype(np.float32)
        stabiliser = Stabiliser.of(level, y.reshape(1, 400, 1000, 1))
        z = stabiliser.forward(y)
        assert float(z.std()) == pytest.approx(1, abs=0.05)
        back = stabiliser.back(np.array([z.mean(dtype=np.float64)], np.float32))
        assert float(back[0]) == pytest.approx(mean, rel=0.01)


# --- the network ---


def test_the_network_is_the_convolutions_that_it_says() -> None:
    layout = Layout(channels=3, width=8, layers=4)
    weights = initial_weights(layout, torch.Generator().manual_seed(0)) + 0.01
    parameters = unpack(layout, weights, torch.float32)
    around = nn.AvgPool2d(9, 1, 4, count_include_pad=False)
    convolutions: list[nn.Module] = []
    for number in range(4):
        kernel, bias = parameters[number], parameters[4 + number]
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
        conv.weight.data, conv.bias.data = kernel.contiguous(), bias  # type: ignore[union-attr]
        convolutions += [conv, nn.ReLU()]
    plain = nn.Sequential(*convolutions[:-1])
    z, estimate = torch.randn(2, 3, 20, 17), torch.randn(2, 3, 20, 17)
    expected = estimate - plain(torch.cat((z - estimate, estimate - around(estimate)), 1))
    assert torch.allclose(corrected(parameters, z, estimate), expected, atol=1e-5)
    assert sum(p.numel() for p in plain.parameters()) == weights.numel()
    assert layout.operations == sum(2 * c.weight.numel() for c in convolutions if isinstance(c, nn.Conv2d))


def test_gradients_come_back_in_the_order_of_the_weights() -> None:
    layout = Layout(channels=1, width=4, layers=3)
    weights = initial_weights(layout, torch.Generator().manual_seed(1)).requires_grad_()
    z, estimate = torch.randn(1, 1, 9, 9), torch.randn(1, 1, 9, 9)
    (expected,) = torch.autograd.grad(
        corrected(unpack(layout, weights, torch.float32), z, estimate).square().sum(), weights
    )
    leaves = [p.detach().requires_grad_() for p in unpack(layout, weights, torch.float32)]
    found = torch.autograd.grad(corrected(leaves, z, estimate).square().sum(), leaves)
    assert torch.allclose(pack_gradients(found), expected, atol=1e-5)


def test_the_receptive_field_is_what_the_layout_says() -> None:
    layout = Layout(channels=1, width=4, layers=3)
    parameters = unpack(layout, initial_weights(layout, torch.Generator().manual_seed(1)), torch.float32)
    z = torch.randn(1, 1, 31, 31)
    changed = z.clone()
    changed[0, 0, 15, 15] += 1
    zero = torch.zeros_like(z)
    touched = (corrected(parameters, z, zero) != corrected(parameters, changed, zero))[0, 0].nonzero()
    assert touched.min() >= 15 - layout.radius
    assert touched.max() <= 15 + layout.radius


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_convolution_gives_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from denoise_core.methods.zs_fit import network

    layout = Layout(channels=3, width=16, layers=4)
    parameters = unpack(layout, initial_weights(layout, torch.Generator().manual_seed(1)), dtype)
    z, estimate = torch.randn(1, 3, 40, 56), torch.randn(1, 3, 40, 56)
    with torch.inference_mode():
        one = self_ensemble(parameters, z, estimate)
        monkeypatch.setattr(network, "_FUSED", False)
        other = self_ensemble(parameters, z, estimate)
    assert torch.equal(one, other)


def test_a_brighter_image_gets_the_same_correction() -> None:
    layout = Layout(channels=1, width=4, layers=3)
    parameters = unpack(layout, initial_weights(layout, torch.Generator().manual_seed(1)), torch.float32)
    z, estimate = torch.randn(1, 1, 12, 16), torch.randn(1, 1, 12, 16)
    shift = corrected(parameters, z + 5, estimate + 5) - corrected(parameters, z, estimate)
    assert torch.allclose(shift, torch.full_like(shift, 5), atol=1e-4)


def test_the_self_ensemble_turns_with_the_image() -> None:
    layout = Layout(channels=1, width=4, layers=3)
    parameters = unpack(layout, initial_weights(layout, torch.Generator().manual_seed(1)), torch.float32)
    z, estimate = torch.randn(1, 1, 12, 16), torch.randn(1, 1, 12, 16)
    one = self_ensemble(parameters, z, estimate)
    other = self_ensemble(parameters, z.transpose(-1, -2).flip(-1), estimate.transpose(-1, -2).flip(-1))
    assert torch.allclose(one.transpose(-1, -2).flip(-1), other, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"width": 0}, {"layers": 1}, {"layers": 3.0}, {"width": 5000}])
def test_layouts_that_are_none(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="No network"):
        Layout(**{"channels": 1, "width": 4, "layers": 3} | wrong)


# --- the optimiser ---


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    found = optimiser.orthogonalised(torch.randn(3, 16, 144, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.4
    assert float(values.max()) < 1.4


def test_one_cycle_goes_up_once_and_down_once() -> None:
    shares = [optimiser.one_cycle(step, 100) for step in range(100)]
    top = shares.index(max(shares))
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert max(shares) == pytest.approx(1, abs=0.01)
    assert shares[-1] < 0.01


# --- pairs ---


def test_the_target_judges_as_the_clean_image_would(clean: Pixels) -> None:
    """Its noise is independent of what the estimate was made from: squared errors differ from the true ones by a constant."""
    x = torch.from_numpy(clean[0].transpose(2, 0, 1) * np.float32(10))[None]
    generator = torch.Generator().manual_seed(0)
    z = x + torch.randn(x.shape, generator=generator)
    again = torch.randn(z.shape, generator=generator)
    (pair,) = recorrupt(z, torch.ones(1, 1, 128, 128), again, lambda y: y, [0])
    assert torch.allclose(pair.source, (z + ALPHA * again)[0], atol=1e-5)
    rows = slice(pair.fitted, None)
    assert pair.judged == 128 // JUDGED
    for result in (pair.source, pair.source * 0.9, torch.nn.functional.avg_pool2d(pair.source[None], 3, 1, 1)[0]):
        true = float((result - x[0])[:, rows].square().mean())
        found = float(held_out_errors(pair, result).mean()) - TARGET_VARIANCE
        assert found == pytest.approx(true, abs=0.35), (
            "12,288 values whose squares have a standard deviation of about 8"
        )


@pytest.mark.parametrize("variance", [0.8, 1.0, 1.25])
def test_the_target_is_independent_where_the_noise_level_was_off(clean: Pixels, variance: float) -> None:
    """Of an image that the estimate finds well, its own noise shows: source and target share none of it."""
    x = torch.from_numpy(np.tile(clean[0], (2, 2, 1)).transpose(2, 0, 1) * np.float32(10))[None]
    generator = torch.Generator().manual_seed(0)
    z = x + math.sqrt(variance) * torch.randn(x.shape, generator=generator)
    again = torch.randn(z.shape, generator=generator)
    (found,) = recorrupt(z, torch.ones(1, 1, 256, 256), again, lambda y: y, [0])
    (pair,) = independent([replace(found, estimate=x[0] + 0.01 * (found.source - x[0]))])
    shared = float(((pair.source - x[0]) * (pair.target - x[0])).mean())
    assert abs(shared) < 0.06
    assert share_passed([pair]) == pytest.approx(0.01, abs=0.006), "the noise that was added is still known"
    # An estimate that follows the noise itself says nothing of it.
    assert torch.equal(independent([found])[0].target, found.target)


def test_copies_of_a_window_are_one_judgement(clean: Pixels) -> None:
    pairs = [replace(pair_of(clean, seed), place=(0, 0, place)) for seed, place in ((0, 0), (1, 0), (2, 7))]
    errors, more = zs_fit._held_out(pairs, None, CPU, lambda: None)
    assert more == 0
    assert len(errors) == 2 * 128 // 32
    both = torch.stack([held_out_errors(pair, pair.estimate) for pair in pairs[:2]]).mean(dim=0)
    assert torch.equal(errors[:4], both)


# --- the fit ---


def pair_of(clean: Pixels, seed: int, bias: float = 0.5) -> Pair:
    """A pair whose estimate is the clean image, off by a constant: what a fit has to find."""
    x = torch.from_numpy(clean[0].transpose(2, 0, 1) * np.float32(10))
    generator = torch.Generator().manual_seed(seed)
    z = x + torch.randn(x.shape, generator=generator)
    again = torch.randn(z.shape, generator=generator)
    return Pair(z + ALPHA * again, x + bias, z - again / ALPHA, torch.ones(1, *x.shape[1:]))


def test_a_fit_takes_away_what_is_wrong_with_the_estimate(clean: Pixels) -> None:
    pair = pair_of(clean, 0)
    fitted = fit([pair], replace(SHORT, steps=150), seed=0, device=CPU, on_step=quiet)
    result = corrected(unpack(fitted.layout, fitted.weights, torch.float32), pair.source[None], pair.estimate[None])[0]
    clean_part, rows = pair.estimate - 0.5, slice(pair.fitted, None)
    assert float((result - clean_part)[:, rows].square().mean()) < 0.25 * 0.5**2


def test_thread_count_and_repetition_change_no_bit_of_a_fit(clean: Pixels) -> None:
    pairs = [pair_of(clean, 0), pair_of(clean, 1)]
    one, again, two = (
        fit(pairs, SHORT, seed=3, device=replace(CPU, threads=threads), on_step=quiet).weights for threads in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert torch.equal(one, two)
    assert not torch.equal(one, fit(pairs, SHORT, seed=4, device=CPU, on_step=quiet).weights)


def test_a_collapsed_fit_is_started_again_at_half_the_rates(clean: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start that ends far worse than the noisy image, though finite, is thrown away."""
    from denoise_core.methods.zs_fit import fitting as module

    descend, rates = module._descend, []

    def first_collapses(*arguments: object, rate: float, **options: object) -> float:
        rates.append(rate)
        loss = descend(*arguments, rate=rate, **options)  # type: ignore[arg-type]
        return 50.0 if len(rates) == 1 else loss

    monkeypatch.setattr(module, "_descend", first_collapses)
    fitted = fit([pair_of(clean, 0)], SHORT, seed=0, device=CPU, on_step=quiet)
    assert rates == [1.0, 0.5]
    assert fitted.restarts == 1
    assert fitted.loss < 6


def test_a_fit_that_fails_twice_says_so(clean: Pixels) -> None:
    with pytest.raises(FitDiverged, match="two starts"):
        fit([pair_of(clean, 0)], replace(SHORT, rate=1e6, kernel_rate=1e6), seed=0, device=CPU, on_step=quiet)


def test_a_fit_that_fails_leaves_the_estimate(clean: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    absurd = replace(zs_fit.PRESETS["fast"], own=replace(SHORT, rate=1e6, kernel_rate=1e6))
    monkeypatch.setitem(zs_fit.PRESETS, "fast", absurd)
    found = zs_fit.denoise(noisy_of(clean, "gauss:25"), preset="fast", seed=0, device=CPU, on_step=quiet)
    assert found.kept == "estimate"
    assert found.restarts == 2


def test_where_memory_runs_out_the_batch_is_halved_and_the_fit_goes_on(
    clean: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoise_core.methods.zs_fit import fitting as module

    corrected, batches = module.corrected, []

    def with_little_memory(parameters: list[torch.Tensor], source: torch.Tensor, estimate: torch.Tensor) -> object:
        batches.append(len(source))
        if len(source) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return corrected(parameters, source, estimate)

    accelerator = Device("cpu:0", "float32", 1, "stands for a GPU: whole batches at once")
    plan = replace(SHORT, crops=8)
    undisturbed = fit([pair_of(clean, 0)], plan, seed=0, device=accelerator, on_step=quiet)
    monkeypatch.setattr(module, "corrected", with_little_memory)
    halved = fit([pair_of(clean, 0)], plan, seed=0, device=accelerator, on_step=quiet)
    assert batches[:3] == [8, 4, 2]
    assert set(batches[3:]) == {2}
    assert halved.restarts == 0
    torch.testing.assert_close(halved.weights, undisturbed.weights, atol=5e-3, rtol=0)


# --- the whole ---


@pytest.mark.parametrize(("kind", "gain"), [("gauss:15", 8.0), ("gauss:50", 11.5), ("poisson:30", 8.5)])
def test_noise_of_every_kind_is_removed(clean: Pixels, kind: str, gain: float) -> None:
    y = noisy_of(clean, kind)
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert psnr(found.pixels, clean) > psnr(y, clean) + gain
    assert found.noise is not None
    assert found.noise.kind == ("gaussian" if kind.startswith("gauss") else "poisson-gaussian")
    assert abs(float(found.pixels.mean()) - float(clean.mean())) < 0.01


def test_scale_and_offset_of_the_intensities_do_not_matter(clean: Pixels) -> None:
    y = noisy_of(clean, "gauss:25")
    one = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet).pixels
    other = zs_fit.denoise(y * 4000 + 300, preset="fast", seed=0, device=CPU, on_step=quiet).pixels
    assert np.abs((other - 300) / 4000 - one).max() < 0.02


def test_an_image_without_noise_comes_back_as_it_is() -> None:
    ramp = np.linspace(0, 1, 96 * 96, dtype=np.float32).reshape(1, 96, 96, 1)
    found = zs_fit.denoise(ramp, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert found.kept == "noisy"
    assert np.array_equal(found.pixels, ramp)


def test_a_clean_photograph_is_left_alone(photo: np.ndarray) -> None:
    """What its finest texture is taken for lies below a grey level."""
    whole = photo[None].astype(np.float32)
    smooth = np.round((whole[:, ::2, ::2] + whole[:, 1::2, ::2] + whole[:, ::2, 1::2] + whole[:, 1::2, 1::2]) / 4)
    x = (smooth / 255).astype(np.float32)
    found = zs_fit.denoise(x, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert -10 * math.log10(float(np.square(found.pixels - x).mean()) + 1e-10) > 45


@pytest.mark.parametrize("size", [(8, 8), (9, 40), (33, 17), (65, 64)])
def test_small_and_odd_sizes(clean: Pixels, size: tuple[int, int]) -> None:
    y = noisy_of(clean, "gauss:25")[:, : size[0], : size[1]]
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert found.pixels.shape == y.shape
    assert psnr(found.pixels, clean[:, : size[0], : size[1]]) > psnr(y, clean[:, : size[0], : size[1]]) + 1


def test_cut_off_noise_is_not_fitted_to(clean: Pixels) -> None:
    """Recorrupting needs whole noise; the estimate alone is what is left."""
    y = noisy_of(clean * np.float32(0.2), "gauss:25", clip=True)
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert (found.kept, found.steps) == ("estimate", 0)
    assert psnr(found.pixels, clean * np.float32(0.2)) > psnr(y, clean * np.float32(0.2)) + 5


def test_a_dark_background_of_few_photons_is_not_fitted_to(clean: Pixels) -> None:
    """As in fluorescence: most pixels hold a photon or none."""
    y = noisy_of(clean * np.float32(0.5) + np.float32(0.3), "poisson:200")
    level = NoiseLevel(1 / 200, 0.0, -math.inf, math.inf, 0.0)
    bright = Prepared(y, level, Stabiliser.of(level, y), CPU)
    dark = Prepared(y * np.float32(0.01), level, Stabiliser.of(level, y * np.float32(0.01)), CPU)
    assert bright.not_fitted_to(1) is None
    assert "photons" in str(dark.not_fitted_to(1))


@pytest.mark.parametrize(
    ("slope", "on_square", "fine"),
    [(0.0, 0.0, True), (0.08, 0.0, True), (0.2, 0.0, False), (0.0, 0.04, True), (0.0, 0.1, False), (0.0, -0.05, False)],
)
def test_targets_that_follow_the_noise_of_photons_too_far_are_not_fitted_to(
    clean: Pixels, slope: float, on_square: float, fine: bool
) -> None:
    """As where a detector multiplies each photon at random, which the model does not know."""
    level = NoiseLevel(1 / 200, 0.0, -math.inf, math.inf, 0.0)
    prepared = Prepared(clean, level, Stabiliser.of(level, clean), CPU)
    pair = pair_of(clean, 0, bias=0.0)
    noise = pair.source - pair.estimate
    follows = slope * noise + on_square * (noise.square() - noise.square().mean())
    pairs = [replace(pair, target=pair.target + follows)]
    assert prepared.are_as_modelled(pairs) == fine
    normal = replace(prepared, noise=replace(level, gain=0.0, offset=0.01))
    assert normal.are_as_modelled(pairs), "of normal noise nothing is asked: texture looks like it"


def test_where_the_noise_is_not_as_modelled_the_result_says_so(clean: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prepared, "are_as_modelled", lambda *_: False)
    y = noisy_of(clean * np.float32(0.5) + np.float32(0.3), "poisson:200")
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert (found.kept, found.steps) == ("estimate", 0)
    assert found.remark == "no network: its noise is not close enough to the model of photons"
    assert zs_fit.fit_directory([lambda: y], preset="fast", seed=0, device=CPU, on_step=quiet) is None


def test_a_shared_network_takes_nothing_from_images_of_photons(photo: np.ndarray) -> None:
    """What stabilised noise keeps of its skewness is the same all over the images: a network learned it, and won by it."""
    rng = np.random.default_rng(0)
    places = ((0, 0), (0, 384), (60, 160), (300, 100))
    cleans = [0.25 + 0.75 * photo[None, y : y + 128, x : x + 128] / 255 for y, x in places]
    noisy = [(rng.poisson(x * 25) / 25).astype(np.float32) for x in cleans]
    model = zs_fit.fit_directory([lambda y=y: y for y in noisy], preset="fast", seed=0, device=CPU, on_step=quiet)
    assert model is not None
    for x, y in zip(cleans[2:], noisy[2:], strict=True):
        found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet, model=model, fit_own=False)
        alone = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet, fit_own=False)
        assert psnr(found.pixels, x) > psnr(alone.pixels, x) - 0.03


def test_a_fine_texture_of_photons_is_fitted_to() -> None:
    """What the estimate loses of it is no noise that does not follow the model."""
    from skimage import data

    x = (data.grass()[None, :192, :192, None] / 255).astype(np.float32)
    y = (np.random.default_rng(0).poisson(x * 25) / 25).astype(np.float32)
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    alone = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet, fit_own=False)
    assert found.kept == "fitted"
    assert psnr(found.pixels, x) > psnr(alone.pixels, x) + 0.2


@pytest.mark.parametrize(("frames", "channels", "gain"), [(4, 1, 2.0), (20, 1, 6.0), (8, 3, 3.0)])
def test_frames_of_a_still_scene_are_estimated_together(clean: Pixels, frames: int, channels: int, gain: float) -> None:
    scene = np.repeat(clean[:, :96, :96, :channels], frames, axis=0)
    y = noisy_of(scene, "gauss:25")
    together = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    alone = zs_fit.denoise(y[:1], preset="fast", seed=0, device=CPU, on_step=quiet)
    assert together.window == frames
    assert psnr(together.pixels[0], scene[0]) > psnr(alone.pixels[0], scene[0]) + gain


def test_frames_narrower_than_a_block_are_estimated_together(clean: Pixels) -> None:
    scene = np.repeat(clean[:, :96, :31, :1], 9, axis=0)
    assert zs_fit.denoise(noisy_of(scene, "gauss:25"), preset="fast", seed=0, device=CPU, on_step=quiet).window > 1


@pytest.mark.parametrize("shape", [(12, 1, 9, 17), (3, 3, 8, 8)])
def test_bands_of_frequencies_in_time_keep_everything(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application.multiscale, "estimate", lambda band, rows, _check: band[:, rows])
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(application.estimated(z, shape[0]), z, atol=1e-5)


def test_frames_that_have_nothing_in_common_are_not_made_worse(photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(0, 400, (6, 2))
    scene = np.stack([photo[t : t + 96, s : s + 96, 1:2] for t, s in places]).astype(np.float32) / np.float32(255)
    y = noisy_of(scene, "gauss:25")
    stack = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    alone = [zs_fit.denoise(frame[None], preset="fast", seed=0, device=CPU, on_step=quiet).pixels[0] for frame in y]
    assert psnr(stack.pixels, scene) > psnr(np.stack(alone), scene) - 0.1


@pytest.mark.parametrize("frames", [8, 20])
def test_what_moves_is_not_smeared(photo: np.ndarray, frames: int) -> None:
    """A still scene with objects that move through its upper half: nowhere worse than each frame by itself."""
    scene = np.repeat(photo[None, 60:220, 160:320, 1:2] / np.float32(255), frames, axis=0)
    for frame in range(frames):
        for row, step in ((10, 5), (40, 9)):
            left = 10 + step * frame % 130
            scene[frame, row : row + 16, left : left + 16] = (
                photo[row : row + 16, 300:316, :1] / np.float32(255) * 0.3 + 0.6
            )
    y = noisy_of(scene, "gauss:25")
    together = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    alone = [zs_fit.denoise(frame[None], preset="fast", seed=0, device=CPU, on_step=quiet).pixels[0] for frame in y]
    assert together.window == frames
    assert psnr(together.pixels[:, :64], scene[:, :64]) > psnr(np.stack(alone)[:, :64], scene[:, :64]) - 0.1
    assert psnr(together.pixels[:, 80:], scene[:, 80:]) > psnr(np.stack(alone)[:, 80:], scene[:, 80:]) + 2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_black_or_white_frame_costs_the_others_nothing(clean: Pixels, value: float) -> None:
    scene = np.repeat(clean[:, :96, :96, 1:2] * np.float32(0.6) + np.float32(0.2), 9, axis=0)
    y = noisy_of(scene, "gauss:15", clip=True)
    y[4] = value
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert psnr(found.pixels[:4], scene[:4]) > psnr(y[:4], scene[:4]) + 8
    assert np.abs(found.pixels[4] - value).max() < 0.02


def test_a_scene_that_bleaches_keeps_its_intensities(clean: Pixels) -> None:
    fading = np.exp(-np.arange(12, dtype=np.float32) / 6)[:, None, None, None]
    scene = (clean[:, :96, :96, 1:2] * fading + np.float32(0.05)).astype(np.float32)
    y = noisy_of(scene, "poisson:200")
    for seed in range(3):
        found = zs_fit.denoise(y, preset="fast", seed=seed, device=CPU, on_step=quiet)
        ratio = found.pixels.mean(axis=(1, 2, 3)) / y.mean(axis=(1, 2, 3))
        assert np.abs(ratio - 1).max() < 0.01, (seed, ratio)


@pytest.mark.parametrize("frames", [8, 24])
def test_a_blink_of_one_frame_is_kept(clean: Pixels, frames: int) -> None:
    scene = np.repeat(clean[:, :96, :96, 1:2] * np.float32(0.5), frames, axis=0)
    rows, columns = np.indices((96, 96)) - 60
    spot = np.exp(-(rows**2 + columns**2) / (2 * 1.5**2))[..., None].astype(np.float32) * np.float32(0.4)
    scene[3] += spot
    y = noisy_of(scene, "gauss:25")
    stack = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet).pixels
    for frame, expected in ((2, 0.0), (3, 1.0), (4, 0.0)):
        signal = float((stack[frame] - scene[0])[55:66, 55:66].sum()) / float(spot[55:66, 55:66].sum())
        assert signal == pytest.approx(expected, abs=0.25), frame


def test_frames_of_unlike_noise_are_done_one_by_one(clean: Pixels) -> None:
    scene = np.repeat(clean[:, :96, :96, 1:2], 4, axis=0)
    y = np.concatenate([noisy_of(scene[i : i + 1], kind, i) for i, kind in enumerate(["gauss:40", "gauss:5"] * 2)])
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    for i in range(4):
        assert psnr(found.pixels[i], scene[i]) > psnr(y[i], scene[i]) + 1.5


def test_hot_pixels_do_not_set_the_noise_level(clean: Pixels) -> None:
    y = noisy_of(clean * np.float32(0.5), "gauss:5", clip=True)
    hot = np.random.default_rng(1).random(y.shape[:3]) < 0.002
    y[hot] = 1
    found = noise_level.estimate(y[0])
    assert found is not None
    assert found.sigma(0.3) * 255 == pytest.approx(5, rel=0.25)
    result = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet).pixels
    assert psnr(result[~hot], clean[~hot] * np.float32(0.5)) > psnr(y[~hot], clean[~hot] * np.float32(0.5)) + 1


def test_a_few_counts_a_pixel_keep_their_mean() -> None:
    rng = np.random.default_rng(0)
    scene = (1 + np.sin(np.arange(128) / 9))[None, :, None, None] * np.ones((1, 128, 128, 1))
    y = rng.poisson(scene).astype(np.float32) / np.float32(255)
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet).pixels
    assert float(found.mean()) == pytest.approx(float(y.mean()), rel=0.06)


@pytest.mark.parametrize("window", [8, 12])
def test_a_long_stack_is_done_in_parts_of_its_frames(
    photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    scene = np.repeat(photo[None, 60:124, 160:224, 1:2] / np.float32(255), 45, axis=0)
    y = noisy_of(scene, "gauss:25")
    _, prepared = prepare(y, noise_of_frames(y), CPU)
    assert prepared is not None

    def run() -> Pixels:
        blocks = application.apply(y, prepared.stabiliser, None, window=window, device=CPU, on_share=lambda _: None)
        return np.concatenate([pixels for _, pixels in blocks])

    in_parts = run()
    assert len(list(application.parts_of(y.shape, window, 1))) > 1
    monkeypatch.setattr(application, "HOPS", 100)
    assert np.array_equal(run(), in_parts)


@pytest.mark.parametrize("kind", ["moving", "colours", "one noisier frame"])
def test_frames_that_are_not_in_memory_have_the_same_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_prepared, "LONGEST", 1)  # else all frames are one window, and in memory
    rng = np.random.default_rng(0)
    frames, channels = (5, 3) if kind == "colours" else (19, 1)
    y, x, f, c = np.ix_(range(64), range(64), range(frames), range(channels))
    scene = 0.5 + 0.2 * np.sin((x + (9 if kind == "moving" else 0) * f + c) / 7) * np.cos(y / 9)
    noise = rng.normal(0, 0.05, scene.shape) * np.array([1, 2, 1])[:channels]
    noise[:, :, 2] *= 4 if kind == "one noisier frame" else 1
    noisy = (scene + noise).transpose(2, 0, 1, 3).astype(np.float32)
    held = 0
    found = np.full_like(noisy, np.nan)

    def put(numbers: Sequence[int], pixels: Pixels) -> None:
        nonlocal held
        held = max(held, len(numbers))
        assert np.isnan(found[list(numbers)]).all(), "each once"
        found[list(numbers)] = pixels

    options = {"preset": "fast", "seed": 0, "device": CPU, "on_step": quiet}
    whole = zs_fit.denoise(noisy, **options)
    in_blocks = zs_fit.denoise(Frames(noisy.__getitem__, noisy.shape, 4), put=put, **options)
    assert np.array_equal(found, whole.pixels)
    assert (in_blocks.kept, in_blocks.window, in_blocks.noise) == (whole.kept, whole.window, whole.noise)
    assert held < frames
    assert in_blocks.pixels.size == 0


def test_images_of_several_kinds_of_content_are_not_made_worse(photo: np.ndarray) -> None:
    """The windows that a network is judged on are few, and parts of the image unlike them."""
    from skimage import data

    parts = [np.asarray(image, np.float32)[:128, :128] / 255 for image in (data.camera(), data.brick(), data.grass())]
    ramp = np.tile(np.linspace(0, 1, 128, dtype=np.float32), (128, 1))
    board = np.indices((128, 128)).sum(0) % 2 * np.float32(0.8)
    top, below = (
        np.hstack([*parts, ramp]),
        np.hstack([board, ramp.T, parts[1][::-1], photo[:128, 200:328, 1] / np.float32(255)]),
    )
    x = np.vstack([top, below]).astype(np.float32)[None, :, :, None]
    for seed in range(3):
        y = noisy_of(x, "gauss:25", seed)
        one = zs_fit.denoise(y, preset="fast", seed=seed, device=CPU, on_step=quiet)
        other = zs_fit.estimate_only(y, device=CPU, on_step=quiet)
        assert psnr(one.pixels, x) > psnr(other.pixels, x) - 0.1, (seed, one.kept)


def test_fits_and_judgements_share_no_row(photo: np.ndarray) -> None:
    """Whatever windows are drawn: no row of the image is fitted to in one and judged on in another."""
    y = noisy_of(photo[None, :, :300] / np.float32(255), "gauss:25")
    _, prepared = prepare(y, noise_of_frames(y), CPU)
    assert prepared is not None
    y[:] = np.arange(512, dtype=np.float32)[None, :, None, None]
    fitted, judged = set(), set()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        for pair in prepared.pairs(2, 1, window=1, generator=generator, on_step=quiet):
            middle = (pair.source + pair.target * ALPHA**2)[0, :, 0] / (1 + ALPHA**2)  # the noise cancels
            rows = (prepared.stabiliser.back(middle[None, :, None, None].numpy())[0, :, 0, 0]).round().astype(int)
            fitted |= set(rows[: pair.fitted])
            judged |= set(rows[pair.fitted :])
    assert not fitted & judged
    assert len(fitted | judged) == 512


def letters() -> Pixels:
    """(1, 128, 128, 1): strokes one pixel wide, which the non-local estimate blurs, beside an empty margin."""
    rng = np.random.default_rng(1)
    image = np.full((128, 128), 0.9, np.float32)
    for top in range(2, 118, 12):
        for left in range(2, 80, 7):
            image[top : top + 9, left : left + 5][rng.random((9, 5)) < 0.45] = 0.1
    return image[None, ..., None]


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_network_is_used_where_it_wins(preset: str) -> None:
    x = letters()
    y = noisy_of(x, "gauss:20")
    with_network = zs_fit.denoise(y, preset=preset, seed=0, device=CPU, on_step=quiet)
    without = zs_fit.estimate_only(y, device=CPU, on_step=quiet)
    assert (with_network.kept, without.kept) == ("fitted", "estimate")
    assert with_network.steps == zs_fit.PRESETS[preset].own.steps
    assert psnr(with_network.pixels, x) > psnr(without.pixels, x) + 0.2


def test_no_network_is_used_where_the_noise_level_was_off() -> None:
    """A checkerboard of single pixels, whose noise is found too high: all gain would be noise with the wrong sign."""
    rows, columns = np.mgrid[:128, :128]
    x = np.where((rows + columns) % 2, 0.86, 0.08).astype(np.float32)[None, ..., None]
    y = noisy_of(x, "gauss:25")
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
    assert psnr(found.pixels, x) > psnr(zs_fit.estimate_only(y, device=CPU, on_step=quiet).pixels, x) - 0.1


def test_thread_count_changes_no_bit_of_the_result(clean: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "PART_VALUES", 1)
    y = np.tile(noisy_of(clean, "gauss:25"), (1, 2, 1, 1))
    assert len([*application.parts_of(y.shape, 1, 2)]) == 2
    one, two = (
        zs_fit.denoise(y, preset="fast", seed=0, device=replace(CPU, threads=n), on_step=quiet).pixels for n in (1, 2)
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize("network", [False, True])
def test_bands_and_tiles_change_nothing(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, network: bool) -> None:
    """To a hundredth of a grey level of 65,536."""
    x = (photo[None, 100:375, 130:327] / np.float32(255)).astype(np.float32)
    y = noisy_of(x, "gauss:25")
    _, prepared = prepare(y, noise_of_frames(y), CPU)
    assert prepared is not None
    layout = Layout(3, 8, 3)
    weights = initial_weights(layout, torch.Generator().manual_seed(0))
    fitted = Fitted(layout, weights, 1, 0.0, 0) if network else None
    exact = replace(CPU, precision="float32")

    def run() -> Pixels:
        ((_, pixels),) = application.apply(
            y, prepared.stabiliser, fitted, window=1, device=exact, on_share=lambda _: None
        )
        return pixels

    whole = run()
    monkeypatch.setattr(application, "PART_VALUES", 1)
    monkeypatch.setattr(application, "TILE", (64, 48))
    assert len(list(application.parts_of(y.shape, 1, 1))) > 2
    assert np.abs(run() - whole).max() < 0.01 / 65535


def test_whatever_progress_raises_ends_the_work(clean: Pixels) -> None:
    class Stop(BaseException):
        pass

    told: list[Step] = []

    def stop(step: Step) -> None:
        told.append(step)
        if len(told) == 5:
            raise Stop

    with pytest.raises(Stop):
        zs_fit.denoise(noisy_of(clean, "gauss:25"), preset="fast", seed=0, device=CPU, on_step=stop)
    assert len(told) == 5
    shares = [step.step / step.steps for step in told]
    assert shares == sorted(shares)


# --- one network for a directory ---


@pytest.fixture(scope="module")
def directory(photo: np.ndarray) -> list[Pixels]:
    """Four different crops, (1, 128, 128, 3), [0, 1]."""
    corners = ((0, 0), (0, 300), (250, 60), (300, 350))
    return [(photo[None, t : t + 128, s : s + 128] / np.float32(255)).astype(np.float32) for t, s in corners]


@pytest.fixture(scope="module")
def quick_presets() -> zs_fit.Preset:
    fast = zs_fit.PRESETS["fast"]
    return replace(fast, shared=replace(fast.shared, size=Size(16, 3), steps=120), shared_windows=8)


def test_mixed_noise_levels_share_one_network_and_nothing_gets_worse(
    directory: list[Pixels], quick_presets: zs_fit.Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zs_fit.PRESETS, "fast", quick_presets)
    kinds = ("gauss:5", "gauss:50", "gauss:50", "poisson:30")
    noisy = [noisy_of(x, kind, seed) for seed, (x, kind) in enumerate(zip(directory, kinds, strict=True))]
    model = zs_fit.fit_directory([lambda y=y: y for y in noisy], preset="fast", seed=0, device=CPU, on_step=quiet)  # type: ignore[misc]
    assert model is not None
    for x, y in zip(directory, noisy, strict=True):
        shared = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet, model=model)
        alone = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet)
        assert shared.kept in {"estimate", "fitted", "model", "refined"}
        assert psnr(shared.pixels, x) > psnr(alone.pixels, x) - 0.1
    applied = zs_fit.denoise(noisy[1], preset="fast", seed=0, device=CPU, on_step=quiet, model=model, fit_own=False)
    assert applied.steps == 0
    assert applied.kept in {"estimate", "model"}


def test_a_network_that_harms_is_not_used(clean: Pixels) -> None:
    layout = Layout(3, 8, 3)
    harmful = Fitted(layout, torch.randn(sum(layout.sizes), generator=torch.Generator().manual_seed(0)), 1, 0.0, 0)
    y = noisy_of(clean, "gauss:25")
    found = zs_fit.denoise(y, preset="fast", seed=0, device=CPU, on_step=quiet, model=harmful, fit_own=False)
    assert found.kept == "estimate"


def test_a_directory_of_nothing_to_fit_to_has_no_network(clean: Pixels) -> None:
    flat = np.full((1, 128, 128, 3), 0.5, np.float32)
    samples = [lambda: None, lambda: flat, lambda: clean[:, :32, :32]]
    assert zs_fit.fit_directory(samples, preset="fast", seed=0, device=CPU, on_step=quiet) is None


def test_a_model_for_other_channels_is_refused(clean: Pixels) -> None:
    layout = Layout(1, 8, 3)
    grey = Fitted(layout, torch.zeros(sum(layout.sizes)), 1, 0.0, 0)
    with pytest.raises(ValueError, match="1 channels, and this image has 3"):
        zs_fit.denoise(clean, preset="fast", seed=0, device=CPU, on_step=quiet, model=grey)


# --- models as files ---


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    layout = Layout(3, 8, 3)
    weights = initial_weights(layout, torch.Generator().manual_seed(0))
    path = tmp_path / "models" / "three.safetensors"
    write_model(path, Fitted(layout, weights, 40, 5.2, 1), {"seed": 7, "sampled": {"a.png": "00"}})
    return path


def test_a_model_comes_back_from_its_file(saved: Path) -> None:
    fitted, digest = read_model(saved)
    expected = initial_weights(Layout(3, 8, 3), torch.Generator().manual_seed(0))
    assert torch.equal(fitted.weights, expected)
    assert (fitted.layout, fitted.steps, fitted.loss, fitted.restarts) == (Layout(3, 8, 3), 40, 5.2, 1)
    about = json.loads(saved.with_suffix(".json").read_text())
    assert about["file_sha256"] == digest
    assert about["layout"] == {"channels": 3, "width": 8, "layers": 3}
    assert about["sampled"] == {"a.png": "00"}


def test_what_is_no_model_is_refused_in_one_sentence(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        mutant = bytearray(data)
        if number % 3 == 0:
            mutant = mutant[: int(rng.integers(0, len(data)))]
        for _ in range(1 + number % 4):
            if mutant:
                mutant[int(rng.integers(0, min(len(mutant), 400)))] ^= 1 << int(rng.integers(0, 8))
        path = tmp_path / "mutant.safetensors"
        path.write_bytes(bytes(mutant))
        try:
            fitted, _ = read_model(path)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert fitted.weights.numel() == sum(fitted.layout.sizes)
    assert refused > 75


def test_other_safetensors_and_other_files_are_no_models(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"weights": torch.zeros(3)}, other)
    with pytest.raises(ModelError, match="no model of zs-fit"):
        read_model(other)
    other.write_text("not weights")
    with pytest.raises(ModelError, match="no model of zs-fit"):
        read_model(other)

"""The blind noise level, on images that mislead it, and what becomes of them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from denoise_core import metrics
from denoise_core.device import Device
from denoise_core.methods import zs_fit
from denoise_core.methods.zs_fit import noise_level
from denoise_core.methods.zs_fit.channels import arrange

Pixels = npt.NDArray[np.float32]

CPU = Device("cpu", "bfloat16", 1, "for the tests")


def crop(name: str, side: int = 192) -> Pixels:
    """A photograph or micrograph from scikit-image, grey or RGB, in [0, 1]."""
    from skimage import data

    image = getattr(data, name)()
    top, left = (max(0, size - side) // 2 for size in image.shape[:2])
    return (image[top : top + side, left : left + side].astype(np.float32) / np.float32(255)).astype(np.float32)


def white(shape: tuple[int, ...], sigma: float, seed: int = 0) -> Pixels:
    """Noise of σ on the 0–255 scale."""
    return (np.random.default_rng(seed).standard_normal(shape) * sigma / 255).astype(np.float32)


def eight_bit(pixels: Pixels) -> Pixels:
    return (np.rint(np.clip(pixels, 0, 1) * 255) / 255).astype(np.float32)


def denoised(noisy: npt.NDArray[np.floating]) -> Pixels:
    stack = np.asarray(noisy, np.float32)
    stack = stack.reshape(1, *stack.shape[:2], -1) if stack.ndim < 4 else stack
    found = zs_fit.denoise(stack, preset="fast", seed=0, device=CPU, on_step=lambda _: None, fit_own=False)
    return found.pixels.reshape(np.shape(noisy))


def psnr(clean: Pixels, result: Pixels) -> float:
    found = metrics.psnr(clean, result, data_range=1.0)
    return math.inf if found is None else found


@pytest.mark.parametrize("name", ["camera", "coins", "chelsea", "rocket"])
@pytest.mark.parametrize(("sigma", "at_most"), [(2, 3.4), (5, 6.5), (25, 26.5)])
def test_the_level_of_textured_photographs_is_found(name: str, sigma: float, at_most: float) -> None:
    """Texture makes it come out higher, or, where there is nothing else, lower: fur more than a coat."""
    clean = crop(name)
    found = noise_level.estimate(clean + white(clean.shape, sigma))
    assert found is not None
    assert (0.6 if sigma < 5 else 0.9) * sigma < found.sigma(float(clean.mean())) * 255 < at_most


@pytest.mark.parametrize("name", ["camera", "coins", "chelsea", "rocket", "page"])
@pytest.mark.parametrize(("sigma", "allowed"), [(0, None), (0.5, None), (1, 0.3), (2, 0.0)])
def test_little_noise_is_not_traded_for_more_damage(name: str, sigma: float, allowed: float | None) -> None:
    clean = crop(name)
    noisy = eight_bit(clean + white(clean.shape, sigma))
    result = denoised(noisy)
    if allowed is None:  # less than the steps of eight bits: what is lost is hardly more than they are
        assert psnr(clean, result) > 46
    else:
        assert psnr(clean, result) > psnr(clean, noisy) - allowed


@pytest.mark.parametrize("power", [1, 3, 6])
def test_photon_noise_over_a_great_range_is_not_taken_for_one_level(power: int) -> None:
    counts = crop("camera", 256).astype(np.float64) ** power * 60_000
    noisy, clean = np.random.default_rng(0).poisson(counts) / 65_535, (counts / 65_535).astype(np.float32)
    assert psnr(clean, denoised(noisy)) > psnr(clean, noisy.astype(np.float32)) - 0.5


@pytest.mark.parametrize("peak", [0.5, 2, 15])
def test_counts_of_few_photons_are_denoised(peak: float) -> None:
    clean = crop("camera")
    noisy = np.random.default_rng(0).poisson(clean * peak).astype(np.float32)
    gained = psnr(clean, denoised(noisy) / np.float32(peak)) - psnr(clean, noisy / np.float32(peak))
    assert gained > 9


def test_noise_in_half_of_the_image_does_not_cost_the_other_half() -> None:
    clean = crop("camera")
    noisy = clean + np.concatenate([white((96, 192), 2, 1), white((96, 192), 40, 2)])
    result = denoised(noisy)
    assert psnr(clean[:96], result[:96]) > psnr(clean[:96], noisy[:96])
    assert psnr(clean[96:], result[96:]) > psnr(clean[96:], noisy[96:])


def test_channels_of_unlike_noise_are_each_denoised() -> None:
    clean = crop("chelsea")
    noisy = clean + white(clean.shape, 1) * np.array([3, 10, 40], np.float32)
    result = denoised(noisy)
    for channel, gain in enumerate((0.5, 2, 5)):
        assert psnr(clean[..., channel], result[..., channel]) > psnr(clean[..., channel], noisy[..., channel]) + gain


def test_grey_saved_as_colour_and_unused_channels() -> None:
    clean = crop("camera")
    noisy = clean + white(clean.shape, 25)
    alone = denoised(noisy)
    assert psnr(clean, alone) > psnr(clean, noisy) + 8
    as_colour = denoised(np.repeat(noisy[..., None], 3, axis=2))
    assert np.array_equal(as_colour, np.repeat(alone[..., None], 3, axis=2))
    only_green = np.zeros((*clean.shape, 3), np.float32)
    only_green[..., 1] = noisy
    result = denoised(only_green)
    assert np.array_equal(result[..., 1], alone)
    assert not result[..., ::2].any()


def test_channels_alike_stay_as_they_are_also_where_noise_was_clipped() -> None:
    clean = crop("chelsea")
    assert arrange((clean + white(clean.shape, 25))[None]) is None
    assert arrange(eight_bit(clean * 1.3 - 0.1 + white(clean.shape, 25))[None]) is None


def test_padding_does_not_hide_the_noise() -> None:
    clean = np.pad(crop("camera", 128), 96, constant_values=np.float32(0.5))
    noisy = clean.copy()
    noisy[96:-96, 96:-96] += white((128, 128), 20)
    noisy = eight_bit(noisy)
    assert psnr(clean, denoised(noisy)) > psnr(clean, noisy) + 5


def test_frames_that_are_copies_are_not_averaged_as_if_they_were_others() -> None:
    clean = crop("camera", 128)
    once = clean + white(clean.shape, 25)
    alone = denoised(once)
    assert psnr(clean, denoised(np.stack([once, once])[..., None])[0, ..., 0]) == pytest.approx(
        psnr(clean, alone), abs=0.2
    )
    twice = np.repeat(np.stack([clean + white(clean.shape, 25, seed) for seed in range(3)]), 2, axis=0)[..., None]
    assert psnr(clean, denoised(twice)[0, ..., 0]) > psnr(clean, alone) - 0.5


def test_a_frame_that_stands_out_is_done_by_itself() -> None:
    clean = crop("camera", 128)
    stack = np.stack([clean + white(clean.shape, 60 if frame == 5 else 5, frame) for frame in range(16)])[..., None]
    result = denoised(stack)[..., 0]
    assert psnr(clean, result[5]) > psnr(clean, stack[5, ..., 0]) + 8
    for frame in (0, 4, 6, 15):
        assert psnr(clean, result[frame]) > psnr(clean, stack[frame, ..., 0]) + 3
    stack[5] = clean[..., None]
    assert psnr(clean, denoised(stack)[5, ..., 0]) > 40


def test_no_network_is_fitted_to_rounding() -> None:
    noisy = eight_bit(crop("camera") + white((192, 192), 1))[None, ..., None]
    found = zs_fit.denoise(noisy, preset="fast", seed=0, device=CPU, on_step=lambda _: None)
    assert found.kept == "estimate"
    assert "steps between values" in str(found.remark)

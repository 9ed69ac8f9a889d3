"""The methods of reference: what they gain, on which images, and that large images are done in bands without seams."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from denoise_core import metrics, noise
from denoise_core.device import choose
from denoise_core.methods import METHODS, MethodMissing, Pixels, check_installed, classical, denoise

HERE = ["nlm", "wavelet", "tv", *(["bm3d"] if importlib.util.find_spec("bm3d") else [])]
LOCAL = ["nlm", "wavelet", "tv"]


def denoised(noisy: Pixels, method: str, **options: object) -> Pixels:
    return denoise(noisy, method=method, preset="fast", seed=0, device=choose("cpu"), **options).pixels  # type: ignore[arg-type]


def gained(clean: Pixels, noisy: Pixels, result: Pixels) -> float:
    before, after = (metrics.psnr(clean, x, data_range=1.0) for x in (noisy, result))
    assert before is not None
    assert after is not None
    return after - before


def noisy_of(clean: Pixels, kind: str = "gauss:25") -> Pixels:
    return noise.add(clean, noise.parse(kind), noise.rng(0, "x"))


@pytest.fixture(scope="module")
def clean(photo: np.ndarray) -> Pixels:
    return photo[60:188, 160:288].astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize(("kind", "least"), [("gauss:25", 6.0), ("poisson:20", 5.0)])
def test_noise_is_taken_away(clean: Pixels, method: str, kind: str, least: float) -> None:
    noisy = noisy_of(clean, kind)
    kept = noisy.copy()
    result = denoised(noisy, method)
    assert result.dtype == np.float32
    assert result.shape == clean.shape
    assert gained(clean, noisy, result) > least
    assert np.array_equal(noisy, kept), "the noisy image is not written to"
    assert np.array_equal(result, denoised(noisy, method)), "the same bytes again"


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize("channels", [None, 1, 2, 5])
def test_any_number_of_channels(clean: Pixels, method: str, channels: int | None) -> None:
    grey = clean.mean(axis=2)
    image = grey if channels is None else np.stack([grey] * channels, axis=2)
    noisy = noisy_of(image)
    result = denoised(noisy, method)
    assert result.shape == image.shape
    assert gained(image, noisy, result) > 4


@pytest.mark.parametrize("method", HERE)
def test_the_scale_of_the_intensities_does_not_matter(clean: Pixels, method: str) -> None:
    noisy = noisy_of(clean[..., 1])
    plain = denoised(noisy, method)
    scaled = denoised(noisy * 4000 + 300, method, value_range=(300.0, 4300.0))
    assert np.abs((scaled - 300) / 4000 - plain).max() < 0.02


@pytest.mark.parametrize("method", LOCAL)
def test_bands_leave_no_seam(clean: Pixels, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tall = np.concatenate([clean[..., 1]] * 4)[:500]
    noisy = noisy_of(tall)
    whole = denoised(noisy, method)
    steps: list[int] = []
    monkeypatch.setattr(classical, "BAND_VALUES", 1)
    cut = denoised(noisy, method, on_step=lambda step: steps.append(step.steps))
    assert max(steps) > 3
    sigma = 25 / 255
    assert np.sqrt(np.mean((cut - whole) ** 2)) < 0.05 * sigma
    rows = np.sqrt(np.mean((cut - whole) ** 2, axis=1))
    assert rows.max() < 0.25 * sigma, "no row is far from what the whole image gives"


@pytest.mark.parametrize("height", [8, 40, 127, 128, 129, 159, 160, 161, 400, 1000])
def test_every_row_is_in_a_band(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "BAND_VALUES", 1)
    image = np.arange(height * 3, dtype=np.float32).reshape(height, 3, 1)
    tallest: list[int] = []

    def same(band: Pixels) -> Pixels:
        tallest.append(len(band))
        return band.copy()

    assert np.allclose(classical.in_bands(image, same, lambda _: None), image, rtol=1e-5)
    assert max(tallest) <= 4 * classical.OVERLAP


@pytest.mark.parametrize("method", HERE)
def test_small_and_constant_images(clean: Pixels, method: str) -> None:
    assert denoised(noisy_of(clean[:8, :9]), method).shape == (8, 9, 3)
    flat = np.full((20, 20), 0.5, np.float32)
    assert np.array_equal(denoised(flat, method), flat)


@pytest.mark.parametrize("method", HERE)
def test_a_callback_that_raises_ends_the_work(clean: Pixels, method: str) -> None:
    def stop(_: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        denoised(noisy_of(clean), method, on_step=stop)


def test_the_libraries_say_the_same_of_an_image_of_unit_noise(clean: Pixels) -> None:
    """Nothing stands between a method and its library but the estimate of σ and the rotation of the channels."""
    from skimage.restoration import denoise_nl_means

    sigma = 25 / 255
    noisy = noisy_of(clean[..., 1])
    options = {"patch_size": classical.NLM_PATCH, "patch_distance": classical.NLM_DISTANCE}
    theirs = denoise_nl_means(noisy, sigma=sigma, h=classical.NLM_STRENGTH * sigma, **options)
    assert np.sqrt(np.mean((denoised(noisy, "nlm") - theirs) ** 2)) < 0.1 * sigma


def test_a_library_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, clean: Pixels) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed("nlm")
    with pytest.raises(MethodMissing, match="non-commercial") as raised:
        denoised(clean, "bm3d")
    assert "pip install bm3d" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_what_needs_a_licence_says_so() -> None:
    assert {name for name, method in METHODS.items() if method.licence} == {"bm3d"}
    assert all(method.licence for method in METHODS.values() if method.package)

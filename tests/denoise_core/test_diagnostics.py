import numpy as np
import pytest
from scipy import ndimage
from skimage import data

from denoise_core import diagnostics

IMAGES = {
    "astronaut": data.astronaut(),
    "coffee": data.coffee(),
    "camera": data.camera(),
    "rocket": data.rocket(),
}


def white(shape, sigma, seed=0):
    return np.random.default_rng(seed).normal(0, sigma, shape)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("sigma", [10, 25, 50])
def test_sigma_is_found_on_real_images(name, sigma):
    noisy = IMAGES[name].astype(np.float32) + white(IMAGES[name].shape, sigma).astype(np.float32)
    assert diagnostics.sigma_estimate(noisy) == pytest.approx(
        # Fine texture (the grass of camera) passes for noise where there is little of it.
        sigma,
        rel=0.15 if sigma == 10 else 0.05,
    )


def test_sigma_is_in_the_units_of_the_array_whatever_the_offset():
    noisy = IMAGES["camera"] + white((512, 512), 25)
    sigma = diagnostics.sigma_estimate(noisy)
    assert diagnostics.sigma_estimate(noisy / 255) == pytest.approx(sigma / 255, rel=1e-6)
    assert diagnostics.sigma_estimate(noisy + 1e6) == pytest.approx(sigma, rel=1e-6)
    sixteen = (noisy * 100 + 10_000).round().astype(np.uint16)
    assert diagnostics.sigma_estimate(sixteen) == pytest.approx(sigma * 100, rel=1e-3)


def test_sigma_of_many_channels_and_of_a_small_image():
    assert diagnostics.sigma_estimate(100 + white((128, 128, 7), 3)) == pytest.approx(3, rel=0.05)
    for shape in ((32, 32), (64, 64), (48, 48, 3), (96, 96, 3), (128, 128, 3)):
        assert diagnostics.sigma_estimate(100 + white(shape, 3)) == pytest.approx(3, rel=0.1)


def test_thinning_a_large_image_hardly_changes_sigma(monkeypatch):
    noisy = IMAGES["astronaut"] + white((512, 512, 3), 25)
    whole = diagnostics.sigma_estimate(noisy)
    monkeypatch.setattr(diagnostics, "MOST_PATCHES", 5_000)
    assert diagnostics.sigma_estimate(noisy) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (7, 400), (24, 24), (24, 24, 3)])
def test_too_small_an_image_has_no_sigma(shape):
    assert diagnostics.sigma_estimate(white(shape, 3)) is None


def test_a_constant_image_has_a_sigma_of_zero_and_nan_has_none():
    assert diagnostics.sigma_estimate(np.full((64, 64), 7, np.uint16)) == pytest.approx(0, abs=1e-6)
    image = white((64, 64), 3)
    image[30, 30] = np.nan
    assert diagnostics.sigma_estimate(image) is None


@pytest.mark.parametrize("shape", [(128, 128), (128, 127, 3)])
def test_a_white_residual_has_no_autocorrelation_and_a_blurred_one_has(shape):
    clean, noise = np.full(shape, 100.0), white(shape, 5)
    assert diagnostics.residual_autocorrelation(clean + noise, clean) == pytest.approx(0, abs=0.02)
    blurred = ndimage.gaussian_filter(noise, (1, 1, 0)[: len(shape)])
    # White noise under a Gaussian of σ = 1 has the autocorrelation exp(−1/4).
    assert diagnostics.residual_autocorrelation(clean + blurred, clean) == pytest.approx(np.exp(-1 / 4), abs=0.05)


def test_removed_structure_shows_in_the_autocorrelation():
    clean = IMAGES["camera"].astype(np.float64)
    noisy = clean + white(clean.shape, 10)
    oversmoothed = ndimage.gaussian_filter(noisy, 4)
    found = diagnostics.residual_autocorrelation(noisy, clean)
    assert diagnostics.residual_autocorrelation(noisy, oversmoothed) > found + 0.1


def test_autocorrelation_is_that_of_the_plain_definition():
    residual = white((20, 30), 1) + np.linspace(0, 3, 30)
    centred = residual - residual.mean()
    across = (centred[:, 1:] * centred[:, :-1]).mean() / centred.var()
    down = (centred[1:] * centred[:-1]).mean() / centred.var()
    found = diagnostics.residual_autocorrelation(residual, np.zeros((20, 30)))
    assert found == pytest.approx((across + down) / 2, abs=1e-12)


def test_integers_do_not_wrap():
    noisy = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    denoised = np.full((64, 64), 128, np.uint8)
    found = diagnostics.residual_autocorrelation(noisy, denoised)
    assert found == pytest.approx(diagnostics.residual_autocorrelation(noisy.astype(float), denoised.astype(float)))


def test_no_residual_has_no_autocorrelation():
    image = white((32, 32), 3).astype(np.float32)
    assert diagnostics.residual_autocorrelation(image, image) is None
    assert diagnostics.residual_autocorrelation(np.full((32, 32), 5.0), np.full((32, 32), 4.0)) is None
    assert diagnostics.residual_autocorrelation(image[:1], image[:1] + 1) is None
    assert diagnostics.residual_autocorrelation(image * np.float32(np.nan), image) is None
    with pytest.raises(ValueError, match="one shape"):
        diagnostics.residual_autocorrelation(image, image[:5])

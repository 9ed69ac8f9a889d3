import numpy as np
import pytest
from skimage import data
from skimage import metrics as independent

from denoise_core import metrics


def noised(image, sigma, seed=0):
    top = np.iinfo(image.dtype).max
    noisy = image + np.random.default_rng(seed).normal(0, sigma * top / 255, image.shape)
    return noisy.round().clip(0, top).astype(image.dtype)


IMAGES = {
    "rgb8": data.astronaut()[100:260, 150:341],
    "grey8": data.camera()[:201, 200:330],
    "rgb16": data.coffee()[:150, :131].astype(np.uint16) * 257,
    "grey16": data.camera()[100:240, 100:211].astype(np.uint16) * 200,
    "one_channel": data.camera()[:60, :70, None],
    "least": data.astronaut()[:11, :11],
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("sigma", [2, 25, 100])
def test_both_agree_with_scikit_image(name, sigma):
    clean = IMAGES[name]
    noisy, top = noised(clean, sigma), float(np.iinfo(clean.dtype).max)
    assert metrics.psnr(clean, noisy, data_range=top) == pytest.approx(
        independent.peak_signal_noise_ratio(clean, noisy, data_range=top), abs=1e-6
    )
    expected = independent.structural_similarity(
        clean,
        noisy,
        data_range=top,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1 if clean.ndim == 3 else None,
    )
    assert metrics.ssim(clean, noisy, data_range=top) == pytest.approx(expected, abs=1e-6)


def test_strips_do_not_change_the_result(monkeypatch):
    clean = IMAGES["rgb8"]
    noisy = noised(clean, 25)
    whole = metrics.psnr(clean, noisy, data_range=255), metrics.ssim(clean, noisy, data_range=255)
    for rows in (1, 7, 150):
        monkeypatch.setattr(metrics, "ROWS", rows)
        assert metrics.psnr(clean, noisy, data_range=255) == pytest.approx(whole[0], abs=1e-9)
        assert metrics.ssim(clean, noisy, data_range=255) == pytest.approx(whole[1], abs=1e-9)


def test_unsigned_integers_do_not_wrap():
    # Wrapped in 8 bits, 10 − 113 and its square look like a small error: 27.9 dB, where 7.8 dB is right.
    reference, test = np.full((32, 32), 10, np.uint8), np.full((32, 32), 113, np.uint8)
    right = 20 * np.log10(255 / 103)
    assert metrics.psnr(reference, test, data_range=255) == pytest.approx(right, abs=1e-9)
    assert metrics.psnr(test, reference, data_range=255) == pytest.approx(right, abs=1e-9)
    as_float = metrics.ssim(reference.astype(float), test.astype(float), data_range=255)
    assert metrics.ssim(reference, test, data_range=255) == pytest.approx(as_float, abs=1e-12)


def test_identical_images_have_no_psnr_and_an_ssim_of_one():
    for clean in (IMAGES["rgb8"], np.zeros((16, 16), np.float32)):
        assert metrics.psnr(clean, clean, data_range=255) is None
        assert metrics.ssim(clean, clean, data_range=255) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_gives_none(bad):
    clean = np.ones((16, 16), np.float32)
    test = clean.copy()
    test[3, 3] = bad
    with np.errstate(invalid="ignore"):
        assert metrics.psnr(clean, test, data_range=1) is None
        assert metrics.ssim(clean, test, data_range=1) is None


@pytest.mark.parametrize("shape", [(10, 40), (40, 10, 3), (1, 1), (2, 2, 3)])
def test_an_image_smaller_than_the_window_has_no_ssim(shape):
    assert metrics.ssim(np.zeros(shape), np.ones(shape), data_range=1) is None
    assert metrics.psnr(np.zeros(shape), np.ones(shape), data_range=1) == 0


def test_the_more_noise_the_lower_both():
    clean = IMAGES["rgb8"]
    for metric in (metrics.psnr, metrics.ssim):
        values = [metric(clean, noised(clean, sigma), data_range=255) for sigma in (5, 10, 25, 50)]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_unfit_arguments_are_refused(metric):
    image = np.zeros((16, 16))
    with pytest.raises(ValueError, match="one shape"):
        metric(image, np.zeros((16, 16, 1)), data_range=1)
    for data_range in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="data range"):
            metric(image, image, data_range=data_range)
    with pytest.raises(TypeError):
        metric(image, image)
    with pytest.raises(ValueError, match="shape"):
        metric(np.zeros((0, 4)), np.zeros((0, 4)), data_range=1)

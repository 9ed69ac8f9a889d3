"""Noise in the intensities of files of every data type."""

from __future__ import annotations

import numpy as np
import pytest

from denoise_core import noise
from denoise_core.images import Header, to_float
from tasks.arrangement import arrange
from tasks.intensities import Intensities

PEAKS = {
    "uint8": 255,
    "int8": 127,
    "uint16": 65535,
    "int16": 32767,
    "uint32": 900_000,
    "int32": 9e6,
    "float16": 60,
    "float32": 0.6,
    "float64": 5e-8,
}
"""Where λ photons are: at the end of the data type's range, or at the greatest value of the image."""


def noisy(pixels: np.ndarray, kind: str = "poisson:30", axes: str = "YX") -> np.ndarray:
    """In the file's intensities and shape, neither rounded nor clipped."""
    arrangement = arrange(Header("tiff", axes, pixels.shape, str(pixels.dtype)))
    found, clean = Intensities.of(pixels, arrangement, clean=True)
    made = noise.add(clean, noise.parse(kind), noise.rng(0, "a"), photons=found.photons)
    return arrangement.back(found.of_file(made)).astype(np.float64)


def bars(*values: float, dtype: str = "float32") -> np.ndarray:
    """Flat parts of 8,192 pixels, side by side."""
    return np.repeat(np.array(values), 128)[None].repeat(64, axis=0).astype(dtype)


def variances(pixels: np.ndarray, result: np.ndarray) -> np.ndarray:
    return np.square(result - pixels).reshape(64, -1, 128).mean(axis=(0, 2))


@pytest.mark.parametrize("dtype", PEAKS)
def test_photon_noise_is_of_the_intensities(dtype: str) -> None:
    """Mean x and variance x · peak / λ, whatever the least value is."""
    peak = PEAKS[dtype]
    clean = bars(*(share * peak for share in (2 / 3, 5 / 6, 1)), dtype=dtype)
    result, levels = noisy(clean), clean[0, ::128].astype(np.float64)
    assert variances(clean, result) == pytest.approx(levels * peak / 30, rel=0.09)
    means = result.reshape(64, -1, 128).mean(axis=(0, 2))
    assert means == pytest.approx(levels, abs=5 * peak / np.sqrt(30 * 8192))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32"])
def test_intensities_of_0_and_below_have_no_photons(dtype: str) -> None:
    peak = PEAKS[dtype]
    clean = bars(-peak / 6, 0, peak / 2, peak, dtype=dtype)
    result, levels = noisy(clean), clean[0, ::128].astype(np.float64)
    assert result[:, :256] == pytest.approx(clean[:, :256].astype(np.float64), abs=1e-5 * peak)
    assert variances(clean, result) == pytest.approx(np.maximum(levels, 0) * peak / 30, rel=0.09, abs=1e-9 * peak**2)
    width = np.ptp(levels) if dtype in ("int32", "float32") else 2.0 ** np.iinfo(dtype).bits - 1
    readout = np.square(5 / 255 * width)
    both = variances(clean, noisy(clean, "poisson-gauss:30/5"))
    assert both == pytest.approx(np.maximum(levels, 0) * peak / 30 + readout, rel=0.09)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", ["poisson:30", "poisson-gauss:5-50/5"])
def test_photons_of_unsigned_images_are_those_of_the_unit_scale(dtype: str, kind: str) -> None:
    """What runs have written stays what a resumed run would write."""
    pixels = np.random.default_rng(0).integers(0, PEAKS[dtype], (3, 40, 50), dtype, endpoint=True)
    arrangement = arrange(Header("tiff", "TYX", pixels.shape, dtype))
    found, clean = Intensities.of(pixels, arrangement, clean=True)
    spec, rng = noise.parse(kind).drawn(noise.rng(3, "a")), noise.rng(3, "a")
    peak = spec.levels[0].low
    expected = (rng.poisson(to_float(pixels)[..., None] * np.float64(peak)) / peak).astype(np.float32)
    if len(spec.levels) > 1:
        expected += rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(5 / 255)
    made = noise.add(clean, noise.parse(kind), noise.rng(3, "a"), photons=found.photons)
    assert np.array_equal(made, expected)


def test_a_flat_image_of_floats_has_its_peak_where_it_is() -> None:
    clean = bars(0.5)
    assert variances(clean, noisy(clean)) == pytest.approx(0.5 * 0.5 / 30, rel=0.09)


def test_each_channel_has_a_peak_of_its_own_and_all_frames_of_a_stack_have_one() -> None:
    first, faint = bars(0.4, 0.6), bars(4e-3, 5e-3)
    dark = bars(-2, 0)
    result = noisy(np.stack([first, faint, dark]), axes="CYX")
    assert variances(first, result[0]) == pytest.approx(np.array([0.4, 0.6]) * 0.6 / 30, rel=0.09)
    assert variances(faint, result[1]) == pytest.approx(np.array([4e-3, 5e-3]) * 5e-3 / 30, rel=0.09)
    assert result[2] == pytest.approx(dark.astype(np.float64), abs=1e-6)
    result = noisy(np.stack([first, faint]), axes="TYX")
    assert variances(faint, result[1]) == pytest.approx(np.array([4e-3, 5e-3]) * 0.6 / 30, rel=0.3)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from denoise_core.images import Scale, changed, find_missing, from_float, to_float
from denoise_core.images.levels import area_means, same_bits

KINDS = st.sampled_from(["uint8", "uint16"])
VALUES = hnp.arrays(
    st.sampled_from([np.float32, np.float64]),
    hnp.array_shapes(max_dims=3, max_side=6),
    elements=st.floats(-1e6, 1e6, width=32) | st.floats(-0.125, 1.125, width=32),
)


@given(VALUES, KINDS)
def test_rounds_and_clips_and_never_wraps(values: np.ndarray, kind: str) -> None:
    before = values.copy()
    pixels, clipped = from_float(values, kind)
    top = np.iinfo(kind).max
    assert pixels.dtype == np.dtype(kind)
    assert pixels.shape == values.shape
    assert np.array_equal(values, before)
    exact = values.astype(np.float64) * top
    assert np.abs(pixels - np.clip(exact, 0, top)).max() <= 0.51
    assert 0 <= clipped <= 1
    surely = np.mean((exact < -0.51) | (exact > top + 0.51))
    perhaps = np.mean((exact < -0.49) | (exact > top + 0.49))
    assert surely <= clipped <= perhaps


@given(hnp.arrays(np.float64, 5, elements=st.floats(0, 1)), KINDS)
def test_keeps_order(values: np.ndarray, kind: str) -> None:
    pixels, clipped = from_float(np.sort(values), kind)
    assert (np.diff(pixels.astype(int)) >= 0).all()
    assert clipped == 0


@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2", "int8", "int16"])
def test_every_level_comes_back(kind: str) -> None:
    levels = np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1).astype(kind)
    values = to_float(levels)
    assert values.dtype == np.float32
    assert (values[0], values[-1]) == (0.0, 1.0)
    pixels, clipped = from_float(values, kind)
    assert np.array_equal(pixels, levels)
    assert pixels.dtype.isnative
    assert clipped == 0.0


def test_clipped_share_counts_from_half_a_level() -> None:
    values = np.array([-1.0, -0.4 / 255, 0.5, 1 + 0.4 / 255, 1 + 0.6 / 255, np.inf, -np.inf, 0.0])
    pixels, clipped = from_float(values, np.uint8)
    assert pixels.tolist() == [0, 0, 128, 255, 255, 255, 0, 0]
    assert clipped == 4 / 8


def test_what_has_no_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        from_float(np.array([0.5, np.nan]), np.uint8)
    for kind in (np.int32, np.float32, np.uint32):
        with pytest.raises(ValueError, match="give a scale"):
            from_float(np.zeros(3), kind)
        with pytest.raises(ValueError, match="give a scale"):
            to_float(np.zeros(3, kind))


def test_nothing_is_nothing() -> None:
    pixels, clipped = from_float(np.zeros((0, 3)), np.uint16)
    assert pixels.shape == (0, 3)
    assert clipped == 0.0


@pytest.mark.parametrize("kind", ["uint32", "int32", "float16", "float32", "float64", "int16"])
def test_a_scale_is_undone(kind: str) -> None:
    scale = Scale(-300.0, 700.0)
    levels = np.linspace(0, 900, 50).astype(kind)
    values = to_float(levels, scale)
    assert np.allclose(values, (levels.astype(float) + 300) / 1000, atol=1e-6)
    pixels, clipped = from_float(values, kind, scale)
    assert pixels.dtype == np.dtype(kind)
    assert np.allclose(pixels.astype(float), levels.astype(float), rtol=1e-3 if kind == "float16" else 1e-6, atol=1e-4)
    assert clipped == 0


@pytest.mark.parametrize("kind", ["uint32", "int32", "float32", "float64"])
def test_no_change_is_exactly_none(kind: str) -> None:
    generator = np.random.default_rng(0)
    whole = np.dtype(kind).kind != "f"
    pixels = generator.integers(0, 2**31 - 1, 100).astype(kind) if whole else generator.normal(size=100).astype(kind)
    scale = Scale(float(pixels.min()), float(pixels.max()))
    change = np.zeros(100, np.float32)
    assert same_bits(changed(pixels, change, scale)[0], pixels)
    change[7] = 0.25
    found, clipped = changed(pixels, change, scale)
    assert np.flatnonzero(found != pixels).tolist() == [7]
    assert found[7] - pixels[7] == pytest.approx(scale.width / 4, rel=1e-6)
    assert clipped == 0


def test_floats_and_wide_integers_are_clipped_to_what_they_hold() -> None:
    wide = Scale(0.0, 1e6)
    assert from_float(np.array([0.5, -1.0]), np.float16, wide) == (pytest.approx([65504, -65504]), 1.0)
    assert from_float(np.array([5000.0, -1.0]), np.uint32, wide)[0].tolist() == [4294967295, 0]
    assert from_float(np.array([0.5]), np.int8, Scale(0.0, 100.0))[0].tolist() == [50]


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 6), (13, 16), (1, 1), (12, 3)])
def test_area_means(height: int, width: int) -> None:
    plane = np.random.default_rng(0).normal(100, 9, (13, 17, 2))
    fine = np.repeat(np.repeat(plane, height, 0), width, 1).reshape(height, 13, width, 17, 2)
    assert np.allclose(area_means(plane, height, width), fine.mean(axis=(1, 3)))
    whole = area_means(plane.astype(np.uint16), height, width)
    assert whole.dtype == np.uint16
    assert np.abs(whole - area_means(plane.astype(np.uint16).astype(float), height, width)).max() <= 0.5
    plane[3, 3] = np.nan
    assert np.isnan(area_means(plane, 13, 17)).sum() == 2


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int32"])
def test_what_is_missing(kind: str) -> None:
    """Only what lies beyond a million widths of the range, or is no number; nothing of other pixels."""
    scale = Scale(10.0, 10.01)
    pixels = np.array([10, 11, 9000, -9000], kind)
    assert find_missing(pixels, scale) is None
    assert find_missing(pixels) is None
    far = np.array([10, 11_000, -11_000, 9000], kind)
    assert np.array_equal(find_missing(far, scale), [False, True, True, False])
    assert find_missing(far) is None
    if kind != "int32":
        assert np.array_equal(find_missing(np.array([1, np.nan, np.inf, -np.inf], kind)), [False, True, True, True])


def test_what_has_no_range_is_missing_without_one() -> None:
    assert np.array_equal(find_missing(np.array([1e300, 1.1e307, -1.79e308])), [False, True, True])

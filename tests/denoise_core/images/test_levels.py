from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from denoise_core.images import from_float, to_float

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


@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2"])
def test_every_level_comes_back(kind: str) -> None:
    levels = np.arange(np.iinfo(kind).max + 1, dtype=kind)
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
    for kind in (np.int16, np.float32, np.uint32):
        with pytest.raises(ValueError, match="uint8 or uint16"):
            from_float(np.zeros(3), kind)
        with pytest.raises(ValueError, match="uint8 or uint16"):
            to_float(np.zeros(3, kind))


def test_nothing_is_nothing() -> None:
    pixels, clipped = from_float(np.zeros((0, 3)), np.uint16)
    assert pixels.shape == (0, 3)
    assert clipped == 0.0

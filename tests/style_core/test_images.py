from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from style_core import PRESETS, Features, StyleError, StylePreset, StyleTargets, style_targets, stylize

Picture = Callable[..., Tensor]
Synthetic = Callable[[StylePreset], Features]
PRESET = replace(PRESETS["seed"], steps=4)
LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def rgb(picture: Picture) -> np.ndarray:
    """(32, 24, 3) in [0, 1]."""
    return picture("astronaut", 32, 24).numpy().transpose(1, 2, 0)


@pytest.fixture
def targets(synthetic: Synthetic, picture: Picture) -> StyleTargets:
    style = (picture("coffee", 40, 32).numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
    return style_targets([style], synthetic(PRESET), PRESET)


def as_dtype(image: np.ndarray, dtype: str) -> np.ndarray:
    top = {"uint8": 255, "uint16": 65535}.get(dtype)
    return (image * top).round().astype(dtype) if top else image.astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_shape_dtype_and_alpha_come_back(
    targets: StyleTargets, rgb: np.ndarray, dtype: str, channels: int | None
) -> None:
    alpha = np.linspace(0, 1, rgb[..., 0].size).reshape(rgb.shape[:2])
    grey = rgb @ LUMA
    image = {
        None: grey,
        1: grey[..., None],
        2: np.dstack([grey, alpha]),
        3: rgb,
        4: np.dstack([rgb, alpha]),
    }[channels]
    pixels = as_dtype(image, dtype)
    before = pixels.copy()
    found = stylize(pixels, targets)
    assert found.pixels.shape == pixels.shape
    assert found.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(before, pixels)
    assert not np.array_equal(found.pixels, pixels)
    if channels in (2, 4):
        np.testing.assert_array_equal(found.pixels[..., -1], pixels[..., -1])
    assert found.steps == len(found.curve) == 4
    assert found.curve[-1].style_loss == found.style_loss < found.curve[0].style_loss


def test_alpha_does_not_change_the_colours(targets: StyleTargets, rgb: np.ndarray) -> None:
    pixels = as_dtype(rgb, "uint8")
    alpha = np.full((*rgb.shape[:2], 1), 7, np.uint8)
    plain, with_alpha = stylize(pixels, targets), stylize(np.concatenate([pixels, alpha], 2), targets)
    np.testing.assert_array_equal(plain.pixels, with_alpha.pixels[..., :3])


def test_sixteen_bits_are_not_eight(targets: StyleTargets, rgb: np.ndarray) -> None:
    exact = stylize(rgb.astype(np.float64), targets).pixels
    found = stylize(as_dtype(rgb, "uint16"), targets).pixels
    assert np.unique(found).size > 256
    assert np.abs(found / 65535 - exact).mean() < 5e-4


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [None, 3])
def test_an_image_that_nothing_moves_comes_back_exactly(
    synthetic: Synthetic, rgb: np.ndarray, dtype: str, channels: int | None
) -> None:
    preset = replace(PRESET, style_layers=())
    pixels = as_dtype(rgb if channels else rgb @ LUMA, dtype)
    found = stylize(pixels, StyleTargets([], synthetic(preset), preset))
    if dtype == "float32":
        np.testing.assert_allclose(found.pixels, pixels, atol=1e-6)
    else:
        np.testing.assert_array_equal(found.pixels, pixels)


def test_kept_colours_are_those_of_the_content(targets: StyleTargets, rgb: np.ndarray) -> None:
    middle = 0.3 + 0.4 * rgb.astype(np.float64)  # away from the bounds, where colours are cut off
    painted = stylize(middle, targets).pixels
    kept = stylize(middle, targets, keep_colours=True).pixels
    unclipped = ((kept > 0) & (kept < 1)).all(-1)
    assert unclipped.mean() > 0.8
    chroma = [image - (image @ LUMA)[..., None] for image in (middle, kept, painted)]
    np.testing.assert_allclose(chroma[1][unclipped], chroma[0][unclipped], atol=1e-5)
    np.testing.assert_allclose((kept @ LUMA)[unclipped], (painted @ LUMA)[unclipped], atol=1e-5)
    assert np.abs(chroma[2] - chroma[0]).max() > 1e-3


def test_max_side_paints_smaller_and_gives_the_size_back(targets: StyleTargets, rgb: np.ndarray) -> None:
    pixels = as_dtype(rgb, "uint8")
    found = stylize(pixels, targets, max_side=16)
    assert found.pixels.shape == pixels.shape
    assert {step.size for step in found.curve} == {(16, 12)}
    same = stylize(pixels, targets, max_side=32)
    np.testing.assert_array_equal(same.pixels, stylize(pixels, targets).pixels)
    with pytest.raises(ValueError, match="max_side is 0"):
        stylize(pixels, targets, max_side=0)


def test_a_range_of_values_is_kept(targets: StyleTargets, rgb: np.ndarray) -> None:
    twelve = (rgb * 4095).round().astype(np.uint16)
    found = stylize(twelve, targets, value_range=(0, 4095)).pixels
    assert found.max() <= 4095
    reference = stylize(twelve / 4095, targets).pixels
    assert np.abs(found / 4095 - reference).mean() < 5e-4
    with pytest.raises(StyleError, match=r"values go from .* expected 0 to 1; give the range"):
        stylize(rgb * 3, targets)
    with pytest.raises(ValueError, match="black below white"):
        stylize(rgb, targets, value_range=(1, 1))


def test_what_is_transparent_in_a_style_is_white(synthetic: Synthetic, rgb: np.ndarray) -> None:
    pixels = as_dtype(rgb, "uint8")
    clear = np.dstack([pixels, np.zeros(rgb.shape[:2], np.uint8)])
    white = np.full((*rgb.shape[:2],), 255, np.uint8)
    opaque = np.dstack([pixels, white])

    def loss(style: np.ndarray) -> float:
        return stylize(pixels, style_targets([style], synthetic(PRESET), PRESET)).curve[0].style_loss

    assert loss(clear) == loss(white)
    assert loss(opaque) == loss(pixels) == 0


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((8, 8, 5), np.uint8), r"1 to 4 channels.*found shape \(8, 8, 5\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"found shape \(2, 8, 8, 3\)"),
        (np.zeros((0, 8), np.uint8), r"found shape \(0, 8\)"),
        (np.zeros((8, 8), np.int16), "found int16"),
        (np.zeros((8, 8), bool), "found bool"),
        (np.full((8, 8), np.nan, np.float32), "values go from nan to nan"),
        (np.zeros((3, 8), np.uint8), "8 × 3 pixels; the preset's layers need at least 4 × 4"),
    ],
)
def test_other_arrays_are_refused(targets: StyleTargets, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(StyleError, match=message):
        stylize(pixels, targets)


def test_the_result_is_the_same_with_another_layout_in_memory(targets: StyleTargets, rgb: np.ndarray) -> None:
    pixels = as_dtype(rgb, "uint8")
    assert np.array_equal(stylize(np.asfortranarray(pixels), targets).pixels, stylize(pixels, targets).pixels)


def test_steps_are_reported_and_an_interrupt_goes_through(targets: StyleTargets, rgb: np.ndarray) -> None:
    class StopError(Exception):
        pass

    def stop(_: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        stylize(rgb, targets, on_step=stop)
    assert targets.network.dtype == torch.float32

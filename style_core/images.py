"""Style transfer on images as they are read from files: grey or colour, with or without alpha, 8 or 16 bits or float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from style_core.errors import StyleError
from style_core.objective import TILE
from style_core.painting import OnStep, Step, StyleTargets, check, resized, transfer
from style_core.presets import StylePreset
from style_core.vgg import Features

Pixels = npt.NDArray[Any]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601: Y of JPEG's YCbCr


@dataclass(frozen=True, eq=False)
class Stylized:
    """The painted image, shape and dtype as given; its weighted losses; the evaluations that it took, and each of them."""

    pixels: Pixels
    style_loss: float
    content_loss: float
    steps: int
    curve: tuple[Step, ...]


def style_targets(
    styles: Sequence[Pixels],
    features: Features,
    preset: StylePreset,
    *,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
    value_range: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tile: int = TILE,
    threads: int = 1,
) -> StyleTargets:
    """Style images ready for any number of contents.

    Images are as for :func:`stylize`; what is transparent in them lies on white, as when they are saved without alpha. The
    other parameters are those of :class:`StyleTargets`.
    """
    tensors = [_parts(style, value_range).on_white() for style in styles]
    return StyleTargets(
        tensors,
        features,
        preset,
        weights=weights,
        scale=scale,
        dtype=dtype,
        device=device,
        tile=tile,
        threads=threads,
    )


def check_style(style: Pixels, preset: StylePreset, *, value_range: tuple[float, float] | None = None) -> None:
    """Raise StyleError where :func:`style_targets` would for this image: which of several it is, only the caller can tell."""
    check(_parts(style, value_range).on_white(), "style", preset)


def stylize(
    pixels: Pixels,
    targets: StyleTargets,
    *,
    keep_colours: bool = False,
    max_side: int | None = None,
    value_range: tuple[float, float] | None = None,
    on_step: OnStep | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> Stylized:
    """Paint an image in the manner of a style.

    Parameters
    ----------
    pixels
        (H, W), or (H, W, C) with C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; uint8, uint16 or floating-point. Grey is
        painted as RGB and comes back as its luma (Rec. 601); alpha comes back as it was.
    targets
        What :func:`style_targets` made.
    keep_colours
        Only the brightness is painted: Y of the result, Cb and Cr of the image, clipped to the range.
    max_side
        Where the longer side is longer, in pixels, the image is painted at this size and enlarged again.
    value_range
        Black and white, for instance (0, 4095) for 12 bits in uint16. None: the dtype's range, and (0, 1) for floating-point.
    on_step, seed, threads
        As for :func:`transfer`.

    Raises
    ------
    StyleError
        When the image is not as described, or too small for the preset's layers.
    """
    image = _parts(pixels, value_range)
    content = image.rgb
    curve: list[Step] = []

    def seen(step: Step) -> None:
        curve.append(step)
        if on_step is not None:
            on_step(step)

    size = (content.shape[1], content.shape[2])
    found = transfer(
        resized(content[None], _fitted(size, max_side))[0], targets, on_step=seen, seed=seed, threads=threads
    )
    painted = resized(found.image[None], size)[0]
    return Stylized(
        image.filled(painted, keep_colours=keep_colours),
        found.style_loss,
        found.content_loss,
        found.steps,
        tuple(curve),
    )


def _fitted(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    if max_side is None or max(size) <= max_side:
        return size
    if max_side < 1:
        raise ValueError(f"max_side is {max_side}, expected 1 or more")
    height, width = (max(1, round(length * max_side / max(size))) for length in size)
    return height, width


@dataclass(frozen=True, eq=False)
class _Parts:
    """An image taken apart: ``rgb`` (3, H, W) in [0, 1], its alpha (H, W) as it was, and how to put it together again."""

    pixels: Pixels
    rgb: Tensor
    grey: bool
    alpha: Pixels | None
    black: float
    white: float

    def on_white(self) -> Tensor:
        if self.alpha is None:
            return self.rgb
        opaque = np.iinfo(self.alpha.dtype).max if self.alpha.dtype.kind == "u" else 1
        a = torch.from_numpy((self.alpha / opaque).astype(np.float32)).clamp(0, 1)
        return self.rgb * a + (1 - a)

    def filled(self, painted: Tensor, *, keep_colours: bool) -> Pixels:
        """The image with the painted colours (3, H, W) in place of its own."""
        rgb = painted.numpy().transpose(1, 2, 0)
        if self.grey:
            colours = (rgb @ _LUMA)[..., None]
        elif keep_colours:
            own = self.rgb.numpy().transpose(1, 2, 0)
            # Cb and Cr are differences from Y, so the same step of all three channels moves Y alone.
            colours = np.clip(own + ((rgb - own) @ _LUMA)[..., None], 0, 1)
        else:
            colours = rgb
        values = colours.astype(np.float64) * (self.white - self.black) + self.black
        dtype = self.pixels.dtype
        result = np.empty(self.pixels.shape, dtype)
        whole = result if result.ndim == 3 else result[..., None]
        whole[..., : colours.shape[2]] = (np.rint(values) if dtype.kind == "u" else values).astype(dtype)
        if self.alpha is not None:
            whole[..., -1] = self.alpha
        return result


def _parts(pixels: Pixels, value_range: tuple[float, float] | None) -> _Parts:
    expected = "expected an image (H, W) or (H, W, C) with 1 to 4 channels, in uint8, uint16 or floating-point"
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] > 4):
        raise StyleError(f"{expected}, found shape {pixels.shape}")
    if pixels.dtype not in (np.uint8, np.uint16) and pixels.dtype.kind != "f":
        raise StyleError(f"{expected}, found {pixels.dtype}")
    integer = pixels.dtype.kind == "u"
    black, white = value_range or (0.0, float(np.iinfo(pixels.dtype).max) if integer else 1.0)
    if not black < white:
        raise ValueError(f"the range of values is {black:g} to {white:g}, expected black below white")
    whole = pixels if pixels.ndim == 3 else pixels[..., None]
    grey, alpha = whole.shape[2] < 3, whole.shape[2] in (2, 4)
    colours = whole[..., :-1] if alpha else whole
    low, high = float(colours.min()), float(colours.max())
    if not (low >= black and high <= white):  # true for NaN too
        raise StyleError(
            f"the image's values go from {low:g} to {high:g}, expected {black:g} to {white:g}; give the range of its values"
        )
    scaled = ((colours.astype(np.float64) - black) / (white - black)).astype(np.float32)
    rgb = np.broadcast_to(scaled, (*scaled.shape[:2], 3)).transpose(2, 0, 1)
    return _Parts(
        pixels, torch.from_numpy(np.array(rgb, order="C")), grey, whole[..., -1] if alpha else None, black, white
    )

"""Applying the non-local estimate and a fitted network to images and stacks of any size, band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import Pixels
from denoise_core.methods.nl_bayes import ALIGN, HALO, nl_bayes
from denoise_core.methods.zs_fit.fitting import Fitted, in_threads
from denoise_core.methods.zs_fit.network import self_ensemble, unpack
from denoise_core.methods.zs_fit.noise_level import Stabiliser

BAND_VALUES = 8_000_000  # of one band of all frames and channels, its margins not counted: bounds the memory
TILE = ALIGN, 512  # rows and columns that the network takes at once: bands hold whole tiles, and its maps stay in cache


def apply(
    noisy: Pixels,
    stabiliser: Stabiliser,
    fitted: Fitted | None,
    *,
    window: int,
    device: Device,
    on_share: Callable[[float], None],
) -> Pixels:
    """The denoised stack: noisy (F, H, W, C) to the same shape and scale, by the non-local estimate and `fitted`, if any.

    `window` frames are estimated together; `on_share` is told how much is done, 0 to 1. The bands reach as far into each
    other as a pixel's result depends on: cutting an image up changes nothing.
    """
    result = np.empty_like(noisy)
    bands = list(bands_of(noisy.shape, device.threads if device.name == "cpu" else 1))
    parameters = None if fitted is None else unpack(fitted.layout, fitted.weights.to(device.name), _dtype(device))
    radius = 0 if fitted is None else fitted.layout.radius

    def work(band: tuple[int, int]) -> None:
        top, bottom = band
        first, last = max(0, top - HALO), min(noisy.shape[1], bottom + HALO)
        z = to_tensor(stabiliser.forward(noisy[:, first:last])).to(device.name)
        with torch.inference_mode():
            estimate = estimated(z, window)
            inside = slice(top - first, bottom - first)
            for frame in range(len(z)):
                found = estimate[frame, :, inside]
                if parameters is not None:
                    found = _corrected(parameters, z[frame], estimate[frame], inside, radius)
                pixels = found.permute(1, 2, 0).cpu().numpy()
                result[frame, top:bottom] = stabiliser.back(pixels)

    # Bands side by side only where each has a core to itself: on a GPU they would only share its memory.
    with in_threads(min(device.threads, len(bands)) if device.name == "cpu" else 1) as run:
        for number, _ in enumerate(run(work, bands), start=1):
            on_share(number / len(bands))
    return result


def bands_of(shape: tuple[int, ...], threads: int) -> Iterator[tuple[int, int]]:
    """First and last row of the bands of (F, H, W, C): one a thread at least, where each is well above its margins."""
    frames, height, width, channels = shape
    rows = max(1, BAND_VALUES // (frames * width * channels) // ALIGN) * ALIGN
    shared = -(-height // (threads * ALIGN)) * ALIGN
    rows = min(rows, max(shared, 2 * HALO))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def estimated(z: Tensor, window: int) -> Tensor:
    """The non-local estimate of z (F, C, H, W), noise of variance 1, of `window` frames at a time; the same shape.

    Frames of one window are taken as channels of one image: groups of like patches then span them, and what stays the
    same from frame to frame is averaged over all. Windows overlap by half and are blended.
    """
    frames, channels = z.shape[:2]
    if window < 2 or frames == 1:
        return torch.stack([nl_bayes(frame) for frame in z])
    window = min(window, frames)
    hop = max(1, window // 2)
    starts = [*range(0, frames - window, hop), frames - window]
    weights = torch.tensor([1.0 + min(i, window - 1 - i) for i in range(window)], device=z.device)
    total, weight = torch.zeros_like(z), z.new_zeros(frames)
    for start in starts:
        part = slice(start, start + window)
        found = nl_bayes(z[part].flatten(0, 1)).view(window, channels, *z.shape[2:])
        total[part] += found * weights[:, None, None, None]
        weight[part] += weights
    return total / weight[:, None, None, None]


def _corrected(parameters: list[Tensor], z: Tensor, estimate: Tensor, rows: slice, radius: int) -> Tensor:
    """The network's result (C, rows, W) for some rows of z and its estimate (C, H, W), tile by tile."""
    height, width = z.shape[1:]
    result = torch.empty_like(estimate[:, rows])
    for top in range(rows.start, rows.stop, TILE[0]):
        for left in range(0, width, TILE[1]):
            bottom, right = min(top + TILE[0], rows.stop), min(left + TILE[1], width)
            above, before = max(0, top - radius), max(0, left - radius)
            part = (slice(None), slice(above, min(height, bottom + radius)), slice(before, min(width, right + radius)))
            found = self_ensemble(parameters, z[part][None], estimate[part][None])[0]
            inside = found[:, top - above : bottom - above, left - before : right - before]
            result[:, top - rows.start : bottom - rows.start, left:right] = inside
    return result


def to_tensor(stack: Pixels) -> Tensor:
    """(F, H, W, C) to (F, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))


def _dtype(device: Device) -> torch.dtype:
    return torch.bfloat16 if device.precision == "bfloat16" else torch.float32

"""Applying the non-local estimate and a fitted network to images and stacks of any size, part by part."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import Pixels, multiscale
from denoise_core.methods.frames import Frames, Stack
from denoise_core.methods.zs_fit.fitting import Fitted, in_threads
from denoise_core.methods.zs_fit.network import self_ensemble
from denoise_core.methods.zs_fit.noise_level import Stabiliser

PART_VALUES = 4_000_000  # of one part, its margins not counted: bounds the memory
BAND_VALUES = 3 * PART_VALUES  # where a part has many frames, and its margins would cost more than itself
FEWEST_ROWS = 128  # of a part: it is estimated from some 300 more above and below
HOPS = 4  # half windows that the frames of one part span
MOST_CHANNELS = 8  # of frames times channels that are taken for one image; more frames are taken apart into bands
MOST_TOGETHER = (
    0.7  # of a correction by a coarser scale: more of it blends an event of one frame into the frames beside it
)
TILE = 64, 512  # rows and columns that the network takes at once: bands hold whole tiles, and its maps stay in cache

# Where frames that are estimated together differ by more than noise, what is taken away is no longer white: its
# correlation with its neighbours, over 15 x 15 pixels, has a standard deviation of about 0.03 in units of the noise.
LOOKED_AT, AROUND = 7, 4  # radius of that mean, and how far around a place that is not white single frames are taken
WHITE, NOT_WHITE = 0.06, 0.12  # below the first the frames together, above the second the single frame, blended between


class Part(NamedTuple):
    """Rows `top` to `bottom` of the frames `first` to `last`."""

    first: int
    last: int
    top: int
    bottom: int


def apply(
    noisy: Stack,
    stabiliser: Stabiliser,
    fitted: Fitted | None,
    *,
    window: int,
    device: Device,
    on_share: Callable[[float], None],
) -> Generator[tuple[range, Pixels], None, None]:
    """The denoised frames of noisy (F, H, W, C), on its scale, by the non-local estimate and `fitted`, if any.

    They come in blocks, each with the numbers of its frames: all of an array at once, of `Frames` some at a time. `window`
    frames are estimated together; `on_share` is told how much is done, 0 to 1. The parts reach as far into each other as a
    pixel's result depends on: cutting a stack up changes nothing.
    """
    parts = list(parts_of(noisy.shape, window, device.threads if device.name == "cpu" else 1))
    parameters = None if fitted is None else fitted.parameters(device)
    radius = 0 if fitted is None else fitted.layout.radius
    done = 0

    def check() -> None:
        on_share(done / len(parts))

    around = max(radius, LOOKED_AT + AROUND)

    def work(part: Part) -> None:
        # The rows of the estimate that the part's own depend on, and the rows of z that these depend on.
        wide = slice(max(0, part.top - around), min(noisy.shape[1], part.bottom + around))
        band = multiscale.band(wide, noisy.shape[1])
        starts = [s for s in _starts(len(noisy), window) if s < part.last and s + window > part.first]
        before, after = starts[0], starts[-1] + min(window, len(noisy))
        z = to_tensor(stabiliser.forward(noisy[before:after, band])).to(device.name)
        inside = slice(part.top - wide.start, part.bottom - wide.start)
        with torch.inference_mode():
            rows = slice(wide.start - band.start, wide.stop - band.start)
            estimate = _estimated(z, rows, window, [start - before for start in starts], check)
            z = z[:, :, rows]
            for frame in range(part.first, part.last):
                found = estimate[frame - before, :, inside]
                if parameters is not None:
                    found = _corrected(
                        parameters, z[frame - before], estimate[frame - before], inside, radius, check=check
                    )
                pixels = stabiliser.back(found.permute(1, 2, 0).cpu().numpy())
                result[frame - frames.start, part.top : part.bottom] = pixels

    # Side by side only where each has a core to itself: on a GPU parts would only share its memory.
    with in_threads(min(device.threads, len(parts)) if device.name == "cpu" else 1) as run:
        for block in _blocks(parts, noisy.at_once if isinstance(noisy, Frames) else len(noisy)):
            frames = range(block[0].first, block[-1].last)
            result = np.empty((len(frames), *noisy.shape[1:]), np.float32)
            for _ in run(work, block):
                done += 1
                on_share(done / len(parts))
            yield frames, result


def _blocks(parts: Sequence[Part], frames: int) -> Iterator[list[Part]]:
    """The parts in blocks of whole frames: so many, or as many as one part has."""
    block: list[Part] = []
    for _, of_the_same in itertools.groupby(parts, key=lambda part: part.first):
        group = list(of_the_same)
        if block and group[0].last - block[0].first > frames:
            yield block
            block = []
        block += group
    yield block


def parts_of(shape: tuple[int, ...], window: int, threads: int) -> Iterator[Part]:
    """The parts of (F, H, W, C): one a thread at least, where each is well above its margins."""
    frames, height, width, channels = shape
    together = 1 if window < 2 else min(frames, HOPS * _hop(window))
    held = together if window < 2 else together + window
    values = PART_VALUES if window * channels <= MOST_CHANNELS else BAND_VALUES
    rows = values // (held * width * channels) // TILE[0] * TILE[0]
    if frames <= together:
        rows = min(rows, -(-height // (threads * TILE[0])) * TILE[0])
    rows = max(rows, FEWEST_ROWS)
    for first in range(0, frames, together):
        for top in range(0, height, rows):
            yield Part(first, min(first + together, frames), top, min(top + rows, height))


def estimated(z: Tensor, window: int, check: Callable[[], None] = lambda: None) -> Tensor:
    """The non-local estimate of z (F, C, H, W), noise of variance 1, of `window` frames at a time; the same shape.

    Few frames are taken as channels of one image: groups of like patches then span them. Many are taken apart into bands of
    frequencies in time first, whose noise is white too, and each band is estimated by itself: what stays the same from
    frame to frame is all in the lowest, far above its noise. Windows overlap by half and are blended. Where something
    moves, which shows in what was taken away, the frame is estimated by itself. `check` is called every now and then, to
    stop by an error.
    """
    return _estimated(z, slice(0, z.shape[2]), window, _starts(len(z), window), check)


def _hop(window: int) -> int:
    return max(1, window // 2)


def _starts(frames: int, window: int) -> list[int]:
    """The first frames of all windows of a stack."""
    if window < 2:
        return [*range(frames)]
    return [*range(0, max(0, frames - window), _hop(window)), max(0, frames - window)]


def _estimated(z: Tensor, rows: slice, window: int, starts: list[int], check: Callable[[], None]) -> Tensor:
    """Rows of `estimated` for windows from `starts`, which cover z; `check` is called every now and then, to stop by an error."""
    frames = len(z)
    if window < 2 or frames == 1:
        return torch.stack([multiscale.estimate(frame, rows, check) for frame in z])
    window = min(window, frames)
    weights = torch.tensor([1.0 + min(i, window - 1 - i) for i in range(window)], device=z.device)
    total, weight = torch.zeros_like(z[:, :, rows]), z.new_zeros(frames)
    for start in starts:
        part = slice(start, start + window)
        total[part] += _together(z[part], rows, check) * weights[:, None, None, None]
        weight[part] += weights
    joint = total / weight[:, None, None, None]
    alone = _share_alone(z[:, :, rows] - joint)
    for frame in range(frames):
        if bool(alone[frame].any()):
            joint[frame] += alone[frame] * (multiscale.estimate(z[frame], rows, check) - joint[frame])
    return joint


def _together(z: Tensor, rows: slice, check: Callable[[], None]) -> Tensor:
    """Rows of the estimate of one window of frames, (F, C, rows, W)."""
    frames, channels = z.shape[:2]
    if frames * channels <= MOST_CHANNELS:
        found = multiscale.estimate(z.flatten(0, 1), rows, check, most=MOST_TOGETHER)
        return found.view(frames, channels, *found.shape[1:])
    cosines = dct(np.eye(frames), norm="ortho", axis=0)
    bands = [multiscale.estimate(band, rows, check) for band in _mixed(cosines, z)]
    return _mixed(cosines.T, torch.stack(bands))


def _mixed(weights: Pixels, z: Tensor) -> Tensor:
    """Sums of z's frames, one for each row of weights; element by element, so that no shape of a part changes a bit."""
    mixed = torch.zeros_like(z)
    for row, to in zip(weights.tolist(), mixed, strict=True):
        for weight, frame in zip(row, z, strict=True):
            to.add_(frame, alpha=weight)
    return mixed


def _share_alone(residual: Tensor) -> Tensor:
    """How much of each pixel to take from the frame's own estimate, 0 to 1: (F, C, H, W) to (F, 1, H, W)."""
    height, width = residual.shape[2:]
    likeness = torch.zeros_like(residual[:, :1])
    lags = ((0, 1), (1, 0), (1, 1), (1, -1))
    for down, right in lags:
        product = (residual * residual.roll((-down, -right), (2, 3))).mean(dim=1, keepdim=True)
        product[:, :, height - down :] = 0  # what came round from the other side
        if right > 0:
            product[..., width - 1 :] = 0
        elif right < 0:
            product[..., :1] = 0
        likeness += product / len(lags)
    local = F.avg_pool2d(likeness, 2 * LOOKED_AT + 1, 1, LOOKED_AT, count_include_pad=False)
    around = F.max_pool2d(local, 2 * AROUND + 1, 1, AROUND)
    return ((around - WHITE) / (NOT_WHITE - WHITE)).clamp(0, 1)


def _corrected(
    parameters: list[Tensor], z: Tensor, estimate: Tensor, rows: slice, radius: int, *, check: Callable[[], None]
) -> Tensor:
    """The network's result (C, rows, W) for some rows of z and its estimate (C, H, W), tile by tile; `check` at each."""
    height, width = z.shape[1:]
    result = torch.empty_like(estimate[:, rows])
    for top in range(rows.start, rows.stop, TILE[0]):
        for left in range(0, width, TILE[1]):
            check()
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

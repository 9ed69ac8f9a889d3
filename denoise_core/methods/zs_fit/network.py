"""The network of zs-fit: 3×3 convolutions that correct a non-local estimate of a stabilised image.

Its weights are one flat float32 vector, so that an optimiser's step is a few operations, not a few for each layer; the
convolutions see views of a copy in the device's precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from denoise_core.methods.turns import turn_back

KERNEL = 3
AROUND = 4  # radius of the mean that intensities are seen against
LAST_GAIN = 0.02  # the last layer starts near 0: the first result is the non-local estimate itself


@dataclass(frozen=True)
class Layout:
    """A network's shape: the image's `channels`, `layers` convolutions, and `width` maps between them."""

    channels: int
    width: int
    layers: int

    def __post_init__(self) -> None:
        """Raise ValueError for a shape that no network has."""
        sizes = (self.channels, self.width, self.layers)
        whole = all(type(size) is int for size in sizes)
        if not whole or not (1 <= self.channels <= 64 and 1 <= self.width <= 128 and 2 <= self.layers <= 8):
            raise ValueError(f"No network has {self.channels} channels, {self.width} maps and {self.layers} layers.")

    @property
    def radius(self) -> int:
        """Of the receptive field, in pixels."""
        return self.layers * (KERNEL // 2) + AROUND

    @property
    def maps(self) -> list[int]:
        """Channels before, between and after the convolutions."""
        return [2 * self.channels, *[self.width] * (self.layers - 1), self.channels]

    @property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Of the kernels, as (out, height, width, in): what channels_last is in memory."""
        return [(after, KERNEL, KERNEL, before) for before, after in zip(self.maps, self.maps[1:], strict=False)]

    @property
    def sizes(self) -> list[int]:
        """Of the parts of the flat vector: the kernels, then the biases."""
        return [math.prod(shape) for shape in self.shapes] + self.maps[1:]

    @property
    def operations(self) -> int:
        """Floating-point operations for one pixel, multiplications and additions."""
        return 2 * sum(math.prod(shape) for shape in self.shapes)


def initial_weights(layout: Layout, generator: torch.Generator) -> Tensor:
    """The flat vector to start from: normal kernels scaled for ReLU (He et al., 2015), biases 0."""
    parts = []
    for number, shape in enumerate(layout.shapes, start=1):
        gain = LAST_GAIN if number == layout.layers else 1.0
        parts.append(torch.randn(math.prod(shape), generator=generator) * (gain * math.sqrt(2 / math.prod(shape[1:]))))
    return torch.cat([*parts, torch.zeros(sum(layout.maps[1:]))])


def unpack(layout: Layout, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The kernels (out, in, 3, 3), then the biases, in `dtype`."""
    copy = weights.to(dtype)
    ends = accumulate(layout.sizes)
    parts = [copy[end - size : end] for size, end in zip(layout.sizes, ends, strict=True)]
    kernels = [part.view(shape).permute(0, 3, 1, 2) for part, shape in zip(parts, layout.shapes, strict=False)]
    return [*kernels, *parts[layout.layers :]]


def pack_gradients(gradients: tuple[Tensor, ...]) -> Tensor:
    """Gradients of `unpack`'s tensors as one flat float32 vector."""
    return torch.cat([(g.permute(0, 2, 3, 1) if g.ndim == 4 else g).reshape(-1) for g in gradients]).float()


def unpack_many(layout: Layout, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Of the flat vectors of many fits (fits, P) the kernels (fits, out, 9 · in), then the biases (fits, out)."""
    parts = torch.split(weights.to(dtype), layout.sizes, dim=1)
    kernels = [
        part.contiguous().view(len(part), shape[0], -1) for part, shape in zip(parts, layout.shapes, strict=False)
    ]
    return [*kernels, *parts[layout.layers :]]


def corrected_many(parameters: list[Tensor], z: Tensor, estimate: Tensor) -> Tensor:
    """`corrected` for many fits at once, by the parameters of `unpack_many`; of and to (fits, B, C, H, W)."""
    seen = _seen(z.flatten(0, 1), estimate.flatten(0, 1), parameters[0].dtype)
    x = seen.permute(0, 2, 3, 1).reshape(*z.shape[:2], *seen.shape[2:], -1)
    layers = len(parameters) // 2
    for number, (kernels, biases) in enumerate(zip(parameters[:layers], parameters[layers:], strict=True), start=1):
        x = _Convolutions.apply(x, kernels, biases)
        if number < layers:
            x = F.relu(x)
    found: Tensor = estimate - x.permute(0, 1, 4, 2, 3).float()
    return found


def corrected(parameters: list[Tensor], z: Tensor, estimate: Tensor) -> Tensor:
    """A better estimate: z and its non-local estimate, (B, C, H, W) float32 each, to (B, C, H, W) float32.

    The network sees the estimate and what it took away, and returns what to take from the estimate. Intensities as such
    it does not see, only differences: it cannot shift bright or dark parts against others.
    """
    return estimate - _correction(parameters, _seen(z, estimate, parameters[0].dtype)).float()


def self_ensemble(parameters: list[Tensor], z: Tensor, estimate: Tensor) -> Tensor:
    """The mean of `corrected` over the eight turned and mirrored copies of the image; not to be differentiated."""
    seen = _seen(z, estimate, parameters[0].dtype).contiguous(memory_format=torch.channels_last)
    total = torch.zeros_like(estimate, memory_format=torch.channels_last)
    for k in range(8):
        # Kernels turned back see the image as it lies, as the network sees it turned.
        turned = [turn_back(part, k) if part.ndim == 4 else part for part in parameters]
        total += _correction(turned, seen)
    return estimate - total / 8


def _seen(z: Tensor, estimate: Tensor, dtype: torch.dtype) -> Tensor:
    """What was taken away, and the estimate less its mean around: brighter or darker, the correction is the same."""
    return torch.cat((z - estimate, estimate - mean_around(estimate)), dim=1).to(dtype)


def mean_around(x: Tensor) -> Tensor:
    """The mean over the square of 2 `AROUND` + 1 pixels around each pixel, of as much of it as there is: (B, C, H, W)."""
    height, width = x.shape[-2:]
    rows, columns = (_sums_around(x.new_ones(size)) for size in (height, width))
    along = _sums_around(x) / columns
    return _sums_around(along.transpose(-1, -2)).transpose(-1, -2) / rows[:, None]


def _sums_around(x: Tensor) -> Tensor:
    """Sums of 2 `AROUND` + 1 neighbours along the last axis, by sums of 2, 4 and 8: a tenth of the time of a pooling."""
    size = x.shape[-1]
    single = sums = F.pad(x, (AROUND, AROUND))
    length = 1
    while length < 2 * AROUND:  # a power of 2
        sums = sums[..., :-length] + sums[..., length:]
        length *= 2
    return sums[..., :size] + single[..., 2 * AROUND :]


def _correction(parameters: list[Tensor], x: Tensor) -> Tensor:
    layers = len(parameters) // 2
    x = x.contiguous(memory_format=torch.channels_last)
    fused = _FUSED and x.device.type == "cpu" and not torch.is_grad_enabled()
    for number, (kernel, bias) in enumerate(zip(parameters[:layers], parameters[layers:], strict=True), start=1):
        if number == layers:
            x = F.conv2d(x, kernel, bias, padding=KERNEL // 2)
        elif fused:
            x = _relu_of_convolution(x, kernel, bias)
        else:
            x = F.relu(F.conv2d(x, kernel, bias, padding=KERNEL // 2), inplace=True)
    return x


class _Convolutions(torch.autograd.Function):
    """3×3 convolutions of many images, those of each fit by kernels of its own, as products of matrices.

    Of x (fits, B, H, W, in) by kernels (fits, out, 9 · in) and biases (fits, out). A batched product takes each fit by
    itself, always in the same way; of convolutions in groups nobody promises that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        """(fits, B, H, W, out)."""
        ctx.save_for_backward(x, kernels)
        return torch.baddbmm(biases[:, None], _neighbours(x), kernels.mT).view(*x.shape[:4], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Of the images, by the same convolution with kernels turned around; of the kernels and of the biases."""
        x, kernels = ctx.saved_tensors
        fits, out, inside = len(kernels), kernels.shape[1], x.shape[4]
        flat = gradient.reshape(fits, -1, out)
        of_x = None
        if ctx.needs_input_grad[0]:
            turned = kernels.view(fits, out, KERNEL**2, inside).flip(2).transpose(1, 2).reshape(fits, -1, inside)
            of_x = (_neighbours(gradient) @ turned).view_as(x)
        return of_x, flat.mT @ _neighbours(x), flat.sum(1)


def _neighbours(x: Tensor) -> Tensor:
    """The values around each pixel, 0 beyond the edge: (fits, B, H, W, C) to (fits, B · H · W, 9 · C)."""
    height, width = x.shape[2:4]
    padded = F.pad(x.flatten(0, 1), (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, top : top + height, left : left + width] for top in range(KERNEL) for left in range(KERNEL)]
    return torch.cat(shifted, dim=3).view(len(x), -1, KERNEL**2 * x.shape[4])


def _relu_of_convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Both in one pass over memory, the same bits as one after the other: what torch's own compiler calls on a CPU."""
    side = KERNEL // 2
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, kernel, bias, [side, side], [1, 1], [1, 1], 1, "relu", [], ""
    )
    return found


def _can_fuse() -> bool:
    """Whether this build of torch has the fused operation; it is not part of its documented interface."""
    try:
        one = torch.ones(1, 1, 3, 3)
        with torch.no_grad():
            return bool(_relu_of_convolution(one, one, torch.zeros(1))[0, 0, 1, 1] == 9)
    except (AttributeError, RuntimeError, TypeError):
        return False


_FUSED = _can_fuse()

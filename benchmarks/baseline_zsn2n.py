"""ZS-N2N as its notebook describes it, written plainly and apart from `denoise_core`: the tests' reference.

Mansour and Heckel, CVPR 2023: float32, the whole image at every step, the pair downsampler as two fixed 2×2
convolutions of stride 2, every pass of the network by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def network(channels: int, width: int = 48) -> nn.Sequential:
    """Two 3×3 layers and a 1×1 layer; predicts the noise. Draws from torch's global generator."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, channels, 1),
    )


def downsample(image: Tensor, kernel: list[list[float]]) -> Tensor:
    """One half-size image: every 2×2 cell weighted by `kernel`, channel by channel."""
    channels = image.shape[1]
    weight = torch.tensor(kernel, dtype=image.dtype).reshape(1, 1, 2, 2).repeat(channels, 1, 1, 1)
    return F.conv2d(image, weight, stride=2, groups=channels)


ANTIDIAGONAL = [[0.0, 0.5], [0.5, 0.0]]
DIAGONAL = [[0.5, 0.0], [0.0, 0.5]]


def loss(model: nn.Module, noisy: Tensor) -> Tensor:
    """Residual plus consistency; noisy (1, C, H, W) in [0, 1]."""
    noisy1, noisy2 = downsample(noisy, ANTIDIAGONAL), downsample(noisy, DIAGONAL)
    pred1 = noisy1 - model(noisy1)
    pred2 = noisy2 - model(noisy2)
    residual = 0.5 * (torch.mean((noisy1 - pred2) ** 2) + torch.mean((noisy2 - pred1) ** 2))

    denoised = noisy - model(noisy)
    denoised1, denoised2 = downsample(denoised, ANTIDIAGONAL), downsample(denoised, DIAGONAL)
    consistency = 0.5 * (torch.mean((pred1 - denoised1) ** 2) + torch.mean((pred2 - denoised2) ** 2))
    return residual + consistency


def baseline(
    noisy: Tensor, steps: int = 3000, seed: int = 0, callback: Callable[[int, nn.Module], None] | None = None
) -> Tensor:
    """Fit `steps` steps to noisy (1, C, H, W) in [0, 1]; the denoised image, clamped to [0, 1] as published.

    `callback(step, model)` is called after every step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(noisy.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000, gamma=0.5)
    for step in range(1, steps + 1):
        objective = loss(model, noisy)
        optimizer.zero_grad()
        torch.autograd.backward(objective)
        optimizer.step()
        scheduler.step()
        if callback is not None:
            callback(step, model)
    with torch.no_grad():
        return torch.clamp(noisy - model(noisy), 0, 1)

"""Weights of VGG-19 for tests that need no pictures: seeded, and smooth, since the program refuses random ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from style_core import LAYERS


def random_state(last: str) -> dict[str, Tensor]:
    """VGG-19's keys and shapes as far as a layer, with seeded values."""
    generator = torch.Generator().manual_seed(7)
    state: dict[str, Tensor] = {}
    for place, layer in enumerate(LAYERS):
        if layer.kind == "conv":
            shape = (layer.out_channels, layer.in_channels, 3, 3)
            gain = (2 / (9 * layer.in_channels)) ** 0.5
            state[f"features.{place}.weight"] = gain * smooth(torch.randn(shape, generator=generator))
            state[f"features.{place}.bias"] = 0.1 * torch.randn(layer.out_channels, generator=generator)
        if layer.name == last:
            break
    return state


def smooth(filters: Tensor) -> Tensor:
    """Filters whose neighbouring values are alike, as those of a trained network are; their spread stays."""
    blurred = F.avg_pool2d(filters, 3, stride=1, padding=1)
    return blurred * (filters.std() / blurred.std())

"""Gatys' style transfer as the seed document describes it, written plainly and apart from `style_core`.

Gatys, Ecker and Bethge, 2015, in the form of PyTorch's tutorial: VGG-19's first five convolutions as modules in float32,
losses as layers that the image passes through, `torch.optim.LBFGS` as it comes, the image clamped inside its closure. It
is what the benchmarks and the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS = (64, 64, "pool", 128, 128, "pool", 256)
STYLE, CONTENT = (1, 2, 3, 4, 5), (4,)  # counting convolutions, before their ReLU
STYLE_WEIGHT, CONTENT_WEIGHT = 1e6, 1.0


def gram(features: Tensor) -> Tensor:
    """Of (1, C, H, W): (C, C), over C·H·W."""
    _, channels, height, width = features.shape
    flat = features.reshape(channels, height * width)
    return torch.mm(flat, flat.t()) / (channels * height * width)


class Normalize(nn.Module):
    """RGB in [0, 1] as the network was trained on it."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the image less ImageNet's mean, over its standard deviation."""
        mean, std = (image.new_tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
        return (image - mean) / std


class Watch(nn.Module):
    """Hands its input on, and keeps the distance of what `describe` makes of it from the same of another image."""

    def __init__(self, describe: Callable[[Tensor], Tensor], shown: Tensor) -> None:
        super().__init__()
        self.describe = describe
        self.target = describe(shown).detach()
        self.loss = torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        """Return the features as they are."""
        self.loss = F.mse_loss(self.describe(features), self.target)
        return features


class Objective:
    """Style and content loss, weighted, of an image (1, 3, H, W) against a content and a style image of this form.

    `state` is VGG-19's, under torchvision's keys and for torchvision's range of activations.
    """

    def __init__(self, state: Mapping[str, Tensor], content: Tensor, style: Tensor) -> None:
        self.model = nn.Sequential(Normalize())
        self.styles: list[Watch] = []
        self.contents: list[Watch] = []
        shown, painted = self.model(content), self.model(style)
        channels, place, convolution = 3, 0, 0
        for width in WIDTHS:
            layer: nn.Module
            if isinstance(width, str):
                layer, place = nn.MaxPool2d(kernel_size=2, stride=2), place + 1
            else:
                layer = nn.Conv2d(channels, width, kernel_size=3, padding=1)
                layer.load_state_dict({part: state[f"features.{place}.{part}"] for part in ("weight", "bias")})
                channels, place, convolution = width, place + 2, convolution + 1
            self.model.append(layer)
            with torch.no_grad():
                shown, painted = layer(shown), layer(painted)
            if isinstance(width, str):
                continue
            if convolution in CONTENT:
                self.contents.append(Watch(nn.Identity(), shown))
                self.model.append(self.contents[-1])
            if convolution in STYLE:
                self.styles.append(Watch(gram, painted))
                self.model.append(self.styles[-1])
            if convolution < max(STYLE + CONTENT):
                self.model.append(nn.ReLU())
                shown, painted = shown.relu(), painted.relu()
        self.model.eval().requires_grad_(False)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return style and content loss, weighted."""
        self.model(image)
        style = sum((watch.loss for watch in self.styles), torch.zeros(()))
        content = sum((watch.loss for watch in self.contents), torch.zeros(()))
        return STYLE_WEIGHT * style, CONTENT_WEIGHT * content


def baseline(
    objective: Objective, content: Tensor, steps: int = 300, callback: Callable[[int, float, float], None] | None = None
) -> Tensor:
    """Start from content (1, 3, H, W) in [0, 1], for `steps` evaluations; `callback(step, style, content)` after each."""
    image = content.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([image])
    done = 0

    def closure() -> Tensor:
        nonlocal done
        with torch.no_grad():
            image.clamp_(0, 1)
        optimizer.zero_grad()
        style, shown = objective(image)
        loss = style + shown
        loss.backward()  # type: ignore[no-untyped-call]
        done += 1
        if callback is not None and done <= steps:
            callback(done, float(style.detach()), float(shown.detach()))
        return loss

    while done < steps:
        optimizer.step(closure)
    return image.detach().clamp(0, 1)

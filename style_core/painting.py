"""Image style transfer by optimisation (Gatys, Ecker and Bethge, CVPR 2016; seed document 004), on tensors."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F

from style_core.errors import StyleError
from style_core.layers import stride
from style_core.losses import GramTarget, Moments, WassersteinTarget, blend
from style_core.network import Network
from style_core.objective import TILE, Evaluation, Objective, measure
from style_core.optimisers import AdamState, adam, lbfgs
from style_core.presets import StylePreset
from style_core.vgg import Features

# Styles are seen with a shorter side that is the next multiple of this, so that images of nearly one size share targets.
_GRAIN = 16
_SIZES_KEPT = 32


@dataclass(frozen=True)
class Step:
    """Where a transfer stands: ``step`` of at most ``steps``, and the weighted losses at it, at ``size`` (H, W) in pixels."""

    step: int
    steps: int
    style_loss: float
    content_loss: float
    size: tuple[int, int]


OnStep = Callable[[Step], None]


@dataclass(frozen=True, eq=False)
class Transferred:
    """RGB in [0, 1] (3, H, W), float32, on the CPU; its weighted losses, and the evaluations that it took."""

    image: Tensor
    style_loss: float
    content_loss: float
    steps: int


class StyleTargets:
    """A style ready for any number of images: what it asks of an image's activations is computed once for each size.

    One object serves many threads.

    Parameters
    ----------
    styles
        RGB in [0, 1] (3, H, W), of any sizes and orientations.
    features
        The trained network, at least as deep as the preset's layers.
    preset
        What is minimised, and how.
    weights
        Shares of several styles, as parts of their sum; None: equal.
    scale
        The style is seen with a shorter side of ``scale`` times that of the image to be painted, but never enlarged. Less than
        1 makes strokes smaller.
    dtype
        Of the convolutions: float32, or bfloat16 where that is fast. Sums and losses are in float32 anyway.
    device
        Where to compute.
    tile, threads
        Images are taken in parts of about ``tile`` × ``tile`` pixels, ``threads`` at a time, which bounds the memory.

    Raises
    ------
    ValueError
        When an image is not as described, the weights do not fit, or ``features`` lacks a layer (:class:`StyleError` for what is
        in the images).
    """

    def __init__(
        self,
        styles: Sequence[Tensor],
        features: Features,
        preset: StylePreset,
        *,
        weights: Sequence[float] | None = None,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        tile: int = TILE,
        threads: int = 1,
    ) -> None:
        if missing := [name for name in preset.layers if name not in features.layers]:
            raise ValueError(
                f"the network was loaded as far as {features.layers[-1]}, and the preset needs {', '.join(missing)}; "
                "name the preset's layers to load_features"
            )
        if not styles and preset.style_layers:
            raise ValueError("there is no style image")
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"the style's scale is {scale:g}, expected more than 0")
        self.preset = preset
        self.weights_sha256 = features.sha256
        self.network = Network(features, preset.layers, dtype, device, preset.padding)
        self.tile, self.threads = tile, threads
        self._device = device
        self._styles = [check(style, "style", preset) for style in styles]
        self._shares = _shares(weights, len(styles))
        self._scale = scale
        self._known: OrderedDict[int, Mapping[str, GramTarget | WassersteinTarget]] = OrderedDict()
        self._lock = Lock()

    def at(self, size: tuple[int, int]) -> Mapping[str, GramTarget | WassersteinTarget]:
        """What the style asks of an image of this size (H, W), layer by layer; remembered for the next one."""
        if not self.preset.style_layers:
            return {}
        grains = math.ceil(min(size) * self._scale / _GRAIN)
        # Beyond its own size the largest style looks the same at any.
        side = min(grains * _GRAIN, max(min(style.shape[1:]) for style in self._styles))
        with self._lock:
            if side not in self._known:
                self._known[side] = self._computed(side)
                if len(self._known) > _SIZES_KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(side)
            return self._known[side]

    def _computed(self, side: int) -> Mapping[str, GramTarget | WassersteinTarget]:
        least = stride(self.preset.layers)
        several: list[Mapping[str, Moments]] = []
        for style in self._styles:
            factor = min(1.0, max(side, least) / min(style.shape[1:]))
            height, width = (max(least, round(length * factor)) for length in style.shape[1:])
            image = resized(style[None], (height, width)).to(self._device)
            several.append(measure(self.network, image, self.preset.style_layers, tile=self.tile, threads=self.threads))
        kind = GramTarget if self.preset.distance == "gram" else WassersteinTarget
        return {
            name: kind(blend([found[name] for found in several], self._shares)) for name in self.preset.style_layers
        }


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1 / max(1, count)] * count
    if len(weights) != count:
        raise ValueError(f"there are {len(weights)} weights for {count} styles")
    total = math.fsum(weights)
    if not (all(weight >= 0 for weight in weights) and 0 < total < math.inf):
        raise ValueError(f"the weights of the styles are {list(weights)}, expected none below 0 and some above")
    return [weight / total for weight in weights]


def transfer(
    content: Tensor, targets: StyleTargets, *, on_step: OnStep | None = None, seed: int = 0, threads: int | None = None
) -> Transferred:
    """Paint ``content`` in the manner of a style.

    Parameters
    ----------
    content
        RGB in [0, 1] (3, H, W).
    targets
        The style, and with it the network and the preset.
    on_step
        Called after every evaluation. What it raises ends the transfer and reaches the caller.
    seed
        Of the noise, where the preset starts from noise.
    threads
        In place of the targets' own number.

    Returns
    -------
    Transferred
        On a CPU the same arguments and thread count give the same bytes.

    Raises
    ------
    StyleError
        When the image is not as described or too small for the preset's layers, or the loss does not stay finite.
    """
    preset, device = targets.preset, targets.network.device
    whole = check(content, "content", preset)[None]
    sizes = scales((whole.shape[2], whole.shape[3]), preset)
    first = resized(whole, sizes[0])
    if preset.start == "noise":
        first = torch.rand(first.shape, generator=torch.Generator().manual_seed(seed))
    state = AdamState.start(first.to(device))
    used = 0
    for size in sizes:
        objective = Objective(
            targets.network,
            resized(whole, size).to(device),
            targets.at(size),
            preset.content_layers,
            (preset.style_weight, preset.content_weight),
            tile=targets.tile,
            threads=threads or targets.threads,
        )

        def report(step: int, point: Evaluation, before: int = used, size: tuple[int, int] = size) -> None:
            nonlocal used
            used = before + step
            if preset.optimizer == "adam":  # L-BFGS goes back to where it was
                _check_finite(point, preset)
            if on_step is not None:
                on_step(Step(used, preset.steps * len(sizes), point.style_loss, point.content_loss, size))

        state = state.resized(size)
        if preset.optimizer == "lbfgs":
            last = lbfgs(objective, state.image, preset.steps, report)
            state = AdamState.start(last.image)
        else:
            state, average = adam(objective, state, preset.steps, report)
    if preset.optimizer == "adam":
        last = objective(average)
    _check_finite(last, preset)
    return Transferred(last.image[0].cpu(), last.style_loss, last.content_loss, used)


def _check_finite(point: Evaluation, preset: StylePreset) -> None:
    if not (math.isfinite(point.loss) and bool(point.gradient.isfinite().all())):
        raise StyleError(
            f"the painting broke down: its loss, {point.loss:g}, or the gradient is no finite number; the weights of style "
            f"and content are {preset.style_weight:g} and {preset.content_weight:g}, smaller ones may do"
        )


def scales(size: tuple[int, int], preset: StylePreset) -> list[tuple[int, int]]:
    """Sizes (H, W) at which an image of this size is painted, from coarse to fine, a factor of √2 from one to the next."""
    if preset.coarsest is None:
        return [size]
    least = stride(preset.layers)
    found = [size]
    factor = math.sqrt(0.5)
    while max(size) * factor >= preset.coarsest and min(size) * factor >= least:
        found.append((max(least, round(size[0] * factor)), max(least, round(size[1] * factor))))
        factor *= math.sqrt(0.5)
    return found[::-1]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (1, 3, H, W) in [0, 1] at another size, without aliasing; at its own, itself."""
    if tuple(image.shape[2:]) == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp_(0, 1)


def check(image: Tensor, role: str, preset: StylePreset) -> Tensor:
    """The image (3, H, W) in float32, within [0, 1], or StyleError."""
    expected = f"expected the {role} image as RGB (3, H, W) with floating-point values in [0, 1]"
    if image.dim() != 3 or image.shape[0] != 3:
        raise StyleError(f"{expected}, found shape {tuple(image.shape)}")
    if not image.is_floating_point():
        raise StyleError(f"{expected}, found {image.dtype}; divide by the largest value of its range")
    side = stride(preset.layers)
    if min(image.shape[1:]) < side:
        raise StyleError(
            f"the {role} image is {image.shape[2]} × {image.shape[1]} pixels; "
            f"the preset's layers need at least {side} × {side}"
        )
    low, high = float(image.min()), float(image.max())
    # Resampling leaves [0, 1] by rounding errors; anything more is another range. NaN fails this too.
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise StyleError(f"{expected}, found values from {low:g} to {high:g}")
    return image.detach().to(torch.float32).clamp(0, 1)

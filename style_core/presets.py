"""What is minimised, and how, by name. No torch: a command line can list the presets at no cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from style_core.layers import check_names


@dataclass(frozen=True)
class StylePreset:
    """What is minimised, and how. Any part is changed by ``dataclasses.replace``.

    Attributes
    ----------
    style_layers, content_layers
        Names from :data:`style_core.layers.LAYERS`. Either may be empty, not both.
    style_weight, content_weight
        Factors of the two losses, each summed over its layers.
    steps
        So many evaluations of the loss and its gradient, at every scale.
    distance
        Between two styles: ``gram`` is the mean squared difference of Gram matrices; ``wasserstein`` is the squared
        2-Wasserstein distance of normal distributions with the activations' means and covariances, over the channels.
    optimizer
        ``lbfgs`` or ``adam``.
    start
        ``content``, or ``noise``: uniform in [0, 1].
    coarsest
        None works at the image's size only. Otherwise the image is first painted with this longer side in pixels,
        enlarged by √2 and painted on, until it has its size.
    padding
        How the first convolution sees beyond the image's edge: ``zeros``, as VGG-19 was trained, or ``replicate``.
    """

    style_layers: tuple[str, ...]
    content_layers: tuple[str, ...]
    style_weight: float
    content_weight: float
    steps: int
    distance: Literal["gram", "wasserstein"] = "gram"
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    start: Literal["content", "noise"] = "content"
    coarsest: int | None = None
    padding: Literal["zeros", "replicate"] = "zeros"

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a preset needs at least one style or content layer")
        check_names(self.layers)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more")
        if self.coarsest is not None and self.coarsest < 1:
            raise ValueError(f"coarsest is {self.coarsest}, expected 1 or more, or None")
        if not (self.style_weight >= 0 and self.content_weight >= 0):
            raise ValueError(f"weights are {self.style_weight:g} and {self.content_weight:g}, expected 0 or more")
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(values)}")

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that must be loaded, each once."""
        return tuple(dict.fromkeys(self.style_layers + self.content_layers))


_CHOICES = {
    "distance": ("gram", "wasserstein"),
    "optimizer": ("lbfgs", "adam"),
    "start": ("content", "noise"),
    "padding": ("zeros", "replicate"),
}

_FIRST_RELUS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

PRESETS: Mapping[str, StylePreset] = MappingProxyType(
    {
        # The seed counts convolutions, before their ReLU: conv_1 … conv_5, of which conv_4 also keeps the content.
        "seed": StylePreset(
            style_layers=("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"),
            content_layers=("conv2_2",),
            style_weight=1e6,
            content_weight=1.0,
            steps=300,
        ),
        # Gatys, Ecker and Bethge, CVPR 2016, with the weights of the first author's code: 1000 / C² on Gram matrices
        # over H·W against 1, of activations 255 times these, is 1000 · 255² against 1 here.
        "gatys": StylePreset(
            style_layers=_FIRST_RELUS,
            content_layers=("relu4_2",),
            style_weight=6.5e7,
            content_weight=1.0,
            steps=500,
        ),
        # After Crowson's style-transfer-pytorch: √2 scales, Adam with carried moments, averaged iterates, replicate
        # padding, Wasserstein distance. The content's weight is for a plain mean of squares: that code's own, 0.015, goes with a
        # loss whose gradient is scaled, and with this one nothing of the content was left.
        "best": StylePreset(
            style_layers=_FIRST_RELUS,
            content_layers=("relu4_2",),
            style_weight=1.0,
            content_weight=0.15,
            steps=200,
            distance="wasserstein",
            optimizer="adam",
            coarsest=128,
            padding="replicate",
        ),
    }
)


def presets_within(layers: Collection[str]) -> tuple[str, ...]:
    """Names of the presets that need no other layers than these."""
    return tuple(name for name, preset in PRESETS.items() if set(preset.layers) <= set(layers))

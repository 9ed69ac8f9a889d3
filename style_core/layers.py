"""VGG-19's layers by name (Simonyan and Zisserman, 2014, configuration E), and what of an image each one sees. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One entry of torchvision's ``vgg19().features``; its place in that sequence is the N of ``features.N.weight``."""

    name: str
    kind: str
    in_channels: int
    out_channels: int


def _vgg19() -> tuple[Layer, ...]:
    layers: list[Layer] = []
    channels = 3
    for block, (convolutions, width) in enumerate(((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)), start=1):
        for i in range(1, convolutions + 1):
            layers += [
                Layer(f"conv{block}_{i}", "conv", channels, width),
                Layer(f"relu{block}_{i}", "relu", width, width),
            ]
            channels = width
        layers.append(Layer(f"pool{block}", "pool", width, width))
    return tuple(layers)


LAYERS = _vgg19()
PLACE = {layer.name: place for place, layer in enumerate(LAYERS)}


def check_names(layers: Sequence[str]) -> None:
    """Raise ValueError for a name that VGG-19 has no layer of."""
    for name in layers:
        if name not in PLACE:
            raise ValueError(f"VGG-19 has no layer {name!r}; its layers are {', '.join(PLACE)}")


def up_to(layers: Sequence[str]) -> tuple[Layer, ...]:
    """All layers from the image to the deepest of those named."""
    return LAYERS[: max((PLACE[name] for name in layers), default=-1) + 1]


def reached(convolutions: int) -> tuple[str, ...]:
    """Names of all layers before the first that needs one convolution more."""
    names: list[str] = []
    for layer in LAYERS:
        if layer.kind == "conv" and convolutions == 0:
            break
        convolutions -= layer.kind == "conv"
        names.append(layer.name)
    return tuple(names)


def stride(layers: Sequence[str]) -> int:
    """Pixels from one position of the deepest layer to the next; the least height and width that reach it."""
    return int(2 ** sum(layer.kind == "pool" for layer in up_to(layers)))


def margin(layers: Sequence[str]) -> int:
    """Pixels around a part of an image, cut at multiples of the stride, on which the named layers' values inside depend.

    A multiple of the stride. It is counted from outside inwards: every convolution spoils one more position at the cut,
    and every pool spoils those that it takes from a spoilt one.
    """
    spoilt, step = 0, 1
    for layer in up_to(layers):
        if layer.kind == "conv":
            spoilt += step
        elif layer.kind == "pool":
            step *= 2
            spoilt = -(-spoilt // step) * step
    return -(-spoilt // step) * step

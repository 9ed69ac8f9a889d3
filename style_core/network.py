"""VGG-19 forwards and backwards on a part of an image, without autograd.

Only the image's gradient is wanted, and the network is a chain: its backward pass is another chain of convolutions, with
the filters turned by half a turn and the channels exchanged. As plain convolutions in channels_last they run at the
processor's full rate in bfloat16, where autograd's way loses most of the time in copies between memory layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from style_core.layers import Layer, up_to
from style_core.vgg import MEAN, STD, Features
from style_core.winograd import Convolution

_LAST = torch.channels_last
_WIDE = 64  # channels

# Adds, in place, to the gradient with respect to the named layer's activations: (name, activations, gradient).
Pull = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass: activations (1, C, h, w) of the layers asked for, and what the backward pass needs of the others.

    ``passed`` holds, for each layer, the ReLU's output, or the pool's input and indices.
    """

    found: Mapping[str, Tensor]
    passed: Sequence[tuple[Tensor, ...]]
    image: Tensor


class Network:
    """The convolutions as far as ``layers`` need them, in ``dtype`` on ``device``; frozen, so one serves many threads.

    In bfloat16 the first convolution still reads the image in float32: in bfloat16 an image has 128 levels, and steps
    smaller than a level would not change the loss.
    """

    def __init__(
        self,
        features: Features,
        layers: Sequence[str],
        dtype: torch.dtype,
        device: torch.device | str,
        padding: Literal["zeros", "replicate"] = "zeros",
    ) -> None:
        self.layers = tuple(layers)
        self.chain: tuple[Layer, ...] = _pools_first(up_to(layers), layers)
        self.dtype = dtype
        self.device = device
        self.replicate = padding == "replicate"
        count = sum(layer.kind == "conv" for layer in self.chain)
        self.forwards: list[Callable[[Tensor], Tensor]] = []
        self.backwards: list[Callable[[Tensor], Tensor]] = []
        for i, (weight, bias) in enumerate(features.convolutions[:count]):
            kind = torch.float32 if i == 0 else dtype
            outside = self.replicate and i == 0  # the image comes with its margin, and the gradient leaves with it
            self.forwards.append(_convolution(weight.to(device, kind), bias.to(device, kind), 0 if outside else 1))
            turned = weight.flip(2, 3).transpose(0, 1)
            self.backwards.append(_convolution(turned.to(device, dtype), None, 2 if outside else 1))
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(3, 1, 1)

    @torch.no_grad()
    def forward(self, image: Tensor, *, keep: bool = True) -> Trace:
        """Activations for RGB in [0, 1] (1, 3, h, w); without ``keep``, no backward pass can follow."""
        x = ((image - self.mean) / self.std).contiguous(memory_format=_LAST)
        if self.replicate:
            x = F.pad(x, (1, 1, 1, 1), mode="replicate").contiguous(memory_format=_LAST)
        found: dict[str, Tensor] = {}
        passed: list[tuple[Tensor, ...]] = []
        convolutions = iter(self.forwards)
        for layer in self.chain:
            held: tuple[Tensor, ...] = ()
            if layer.kind == "conv":
                x = next(convolutions)(x).to(self.dtype)
            elif layer.kind == "relu":
                # In place, unless somebody wants to see what was there before.
                x = F.relu(x) if x is found.get(layer.name.replace("relu", "conv")) else x.relu_()
                held = (x,)
            elif keep:
                before = x
                x, places = F.max_pool2d(x, 2, return_indices=True)
                held = (before, places)
            else:
                x = F.max_pool2d(x, 2)
            if layer.name in self.layers:
                found[layer.name] = x
            passed.append(held if keep else ())
        return Trace(found, passed, image)

    @torch.no_grad()
    def backward(self, trace: Trace, pull: Pull) -> Tensor:
        """Gradient (1, 3, h, w) with respect to the image; ``pull`` adds what the loss asks of each layer in ``layers``."""
        g: Tensor | None = None
        convolutions = reversed(self.backwards)
        for layer, held in zip(reversed(self.chain), reversed(trace.passed), strict=True):
            if layer.name in trace.found:
                f = trace.found[layer.name]
                g = torch.zeros_like(f) if g is None else g
                pull(layer.name, f, g)
            assert g is not None  # the chain ends at one of ``layers``
            if layer.kind == "conv":
                g = next(convolutions)(g)
            elif layer.kind == "relu":
                torch.ops.aten.threshold_backward.grad_input(g, held[0], 0, grad_input=g)
            else:
                g = torch.ops.aten.max_pool2d_with_indices_backward(
                    g, held[0], [2, 2], [2, 2], [0, 0], [1, 1], False, held[1]
                )
        assert g is not None
        g = g.to(torch.float32).contiguous()
        if self.replicate:
            g = torch.ops.aten.replication_pad2d_backward(g, trace.image, [1, 1, 1, 1])
        return g / self.std


def _convolution(weight: Tensor, bias: Tensor | None, padding: int) -> Callable[[Tensor], Tensor]:
    # In bfloat16 there are no digits to spare for mixtures; the three channels of an image leave too little to save; and it
    # was measured with MKL's products alone.
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and min(weight.shape[:2]) >= _WIDE
    if fits and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return Convolution(weight, bias)
    return partial(F.conv2d, weight=weight.contiguous(memory_format=_LAST), bias=bias, padding=padding)


def _pools_first(chain: Sequence[Layer], seen: Sequence[str]) -> tuple[Layer, ...]:
    """The same with each pool before its ReLU, which gives the same, where nobody looks in between: a quarter of the ReLUs."""
    found = list(chain)
    for i, (layer, after) in enumerate(pairwise(chain)):
        if after.kind == "pool" and layer.name not in seen and after.name not in seen:
            found[i : i + 2] = after, layer
    return tuple(found)

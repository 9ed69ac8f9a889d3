"""VGG-19 forwards and backwards on a part of an image, without autograd.

Only the image's gradient is wanted, and the network is a chain: its backward pass is another chain of convolutions, with
the filters turned by half a turn and the channels exchanged. As plain convolutions in channels_last they run at the
processor's full rate in bfloat16, where autograd's way loses most of the time in copies between memory layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from style_core.layers import Layer, up_to
from style_core.vgg import MEAN, STD, Features

_LAST = torch.channels_last

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
        self.chain: tuple[Layer, ...] = up_to(layers)
        self.dtype = dtype
        self.device = device
        self.replicate = padding == "replicate"
        count = sum(layer.kind == "conv" for layer in self.chain)
        self.forwards: list[tuple[Tensor, Tensor]] = []
        self.backwards: list[Tensor] = []
        for i, (weight, bias) in enumerate(features.convolutions[:count]):
            kind = torch.float32 if i == 0 else dtype
            self.forwards.append((weight.to(device, kind, memory_format=_LAST), bias.to(device, kind)))
            turned = weight.flip(2, 3).transpose(0, 1)
            self.backwards.append(turned.to(device, dtype).contiguous(memory_format=_LAST))
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
        inside = False
        for layer in self.chain:
            held: tuple[Tensor, ...] = ()
            if layer.kind == "conv":
                weight, bias = next(convolutions)
                x = F.conv2d(x, weight, bias, padding=1 if inside or not self.replicate else 0).to(self.dtype)
                inside = True
            elif layer.kind == "relu":
                # In place, unless somebody wants to see what was there before.
                x = F.relu(x) if layer.name.replace("relu", "conv") in found else x.relu_()
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
                last = layer is self.chain[0]
                g = F.conv2d(g, next(convolutions), padding=2 if last and self.replicate else 1)
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

"""The optimiser of the fits: Muon for the kernels between hidden layers, Adam for the rest.

Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by the nearest
orthogonal one, found by five Newton-Schulz iterations. At the few hundred to few thousand steps of a fit it is worth
0.2 to 0.7 dB over Adam (benchmarks/NOTES.md). Adam: Kingma and Ba, ICLR 2015.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from denoise_core.methods.zs_fit.network import Layout

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8
WARM_UP = 0.3  # of the steps
FIRST, FINAL = 0.04, 1e-3  # of the highest rate
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def one_cycle(step: int, steps: int) -> float:
    """The share of the highest rate at `step` (from 0) of `steps`: up and down along half cosines."""
    position = step / steps
    if position < WARM_UP:
        return FIRST + (1 - FIRST) * (1 - math.cos(math.pi * position / WARM_UP)) / 2
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * (position - WARM_UP) / (1 - WARM_UP))) / 2


class Optimiser:
    """Changes a flat vector of weights in place, a step a call.

    `rate` is Adam's highest learning rate, `kernel_rate` Muon's; both follow `one_cycle` over `steps`.
    """

    def __init__(
        self, layout: Layout, weights: Tensor, *, rate: float, kernel_rate: float, steps: int, fast_in_bfloat16: bool
    ) -> None:
        self._weights, self._rate, self._kernel_rate, self._steps = weights, rate, kernel_rate, steps
        self._step = 0
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._momentum = torch.zeros_like(weights)
        # Small matrices gain nothing by bfloat16, and a processor without it is many times slower in it.
        self._dtype = torch.bfloat16 if fast_in_bfloat16 and layout.width > 16 else torch.float32
        first, *hidden, _last = layout.sizes[: layout.layers]
        self._hidden = slice(first, first + sum(hidden))
        self._matrices = (len(hidden), layout.width, -1)

    def step(self, gradient: Tensor) -> None:
        """Take one step down `gradient`, a flat vector as the weights."""
        share = one_cycle(self._step, self._steps)
        self._step += 1
        kernels = self._weights[self._hidden].clone()
        self._mean.lerp_(gradient, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        unbiased = (self._square / (1 - BETA2**self._step)).sqrt_().add_(EPSILON)
        self._weights.addcdiv_(self._mean, unbiased, value=-self._rate * share / (1 - BETA1**self._step))
        if kernels.numel():
            of_kernels = gradient[self._hidden]
            momentum = self._momentum[self._hidden].mul_(MOMENTUM).add_(of_kernels)
            update = orthogonalised(of_kernels.add(momentum, alpha=MOMENTUM).view(self._matrices), self._dtype)
            kernels.add_(update.reshape(-1), alpha=-self._kernel_rate * share)
            self._weights[self._hidden] = kernels


STANDSTILL = (0.0, 1.0, 0.0)
"""In place of a row of `schedule`: the weights stay."""


def schedule(*, rate: float, kernel_rate: float, steps: int) -> Tensor:
    """What `Optimisers` goes by, (steps, 3): Adam's rate, what its mean squares are divided by, Muon's rate."""
    rows = []
    for step in range(steps):
        share = one_cycle(step, steps)
        rows.append((rate * share / (1 - BETA1 ** (step + 1)), 1 - BETA2 ** (step + 1), kernel_rate * share))
    return torch.tensor(rows)


class Optimisers:
    """`Optimiser` of many fits at once, each at a step of its own: changes weights (fits, P) in place."""

    def __init__(self, layout: Layout, weights: Tensor, *, fast_in_bfloat16: bool) -> None:
        self._weights = weights
        self._mean, self._square, self._momentum = (torch.zeros_like(weights) for _ in range(3))
        self._dtype = torch.bfloat16 if fast_in_bfloat16 and layout.width > 16 else torch.float32
        first, *hidden, _last = layout.sizes[: layout.layers]
        self._hidden = slice(first, first + sum(hidden))
        self._matrices = (len(weights) * len(hidden), layout.width, -1)

    def begin(self, fit: int, weights: Tensor | float) -> None:
        """Put the weights of a new fit in the place of an earlier one."""
        self._weights[fit] = weights
        for state in (self._mean, self._square, self._momentum):
            state[fit] = 0

    def step(self, gradients: Tensor, rates: Tensor) -> None:
        """Take one step down `gradients` (fits, P), each fit by its row of `rates` (fits, 3), of its `schedule`."""
        rate, unbias, kernel_rate = torch.split(rates, 1, dim=1)
        kernels = self._weights[:, self._hidden].clone()
        self._mean.lerp_(gradients, 1 - BETA1)
        self._square.mul_(BETA2).addcmul_(gradients, gradients, value=1 - BETA2)
        unbiased = (self._square / unbias).sqrt_().add_(EPSILON)
        self._weights.sub_(rate * self._mean / unbiased)
        if kernels.numel():
            of_kernels = gradients[:, self._hidden]
            momentum = self._momentum[:, self._hidden].mul_(MOMENTUM).add_(of_kernels)
            update = orthogonalised(of_kernels.add(momentum, alpha=MOMENTUM).view(self._matrices), self._dtype)
            self._weights[:, self._hidden] = kernels - kernel_rate * update.view_as(kernels)


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About the nearest (semi-)orthogonal matrices: (N, rows, columns), rows at most columns, singular values near 1."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.float()

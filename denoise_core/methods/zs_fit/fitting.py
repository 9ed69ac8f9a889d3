"""Fitting a network to pairs made of noisy images alone: of one image, of a stack, or of the images of a directory."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoise_core.device import Device, make_deterministic
from denoise_core.methods import FitDiverged, OnStep, Step
from denoise_core.methods.zs_fit.network import Layout, corrected, initial_weights, pack_gradients, unpack
from denoise_core.methods.zs_fit.optimiser import Optimiser, schedule
from denoise_core.methods.zs_fit.pairs import Crops, Pair
from denoise_core.methods.zs_fit.together import READ, Job, Kind, run

GRAIN = 2
"""Crops whose gradient is computed at once. A step's grains are shared among threads and their gradients added in one
order, so that the thread count changes no bit."""
COLLAPSED = 1.0  # above the loss of the estimate that is to be corrected: the noise's variance


log = logging.getLogger("denoise_core")


@dataclass(frozen=True)
class Size:
    """Of a network: maps a layer, and layers."""

    width: int
    layers: int


@dataclass(frozen=True)
class Plan:
    """How large, how long and how fast: `crops` of `side`² a step, the highest rates of Adam and of Muon.

    `size` is None where a network is fitted further: it stays as large as it is.
    """

    size: Size | None
    steps: int
    crops: int
    rate: float
    kernel_rate: float
    side: int = 64

    @property
    def grain(self) -> int:
        """Crops whose gradient is computed at once."""
        return min(GRAIN, self.crops)

    @property
    def grains(self) -> int:
        """How many of these make a step."""
        return self.crops // self.grain


@dataclass(frozen=True)
class Fitted:
    """Weights, flat, float32 and on the CPU, and what they took; `restarts` counts starts that were thrown away."""

    layout: Layout
    weights: Tensor
    steps: int
    loss: float
    restarts: int

    def parameters(self, device: Device) -> list[Tensor]:
        """The weights as `network` takes them, where and as the device computes fastest."""
        return unpack(self.layout, self.weights.to(device.name), _dtype(device))


def fit(
    pairs: Sequence[Pair],
    plan: Plan,
    *,
    seed: int,
    device: Device,
    on_step: OnStep,
    start: Fitted | None = None,
    beside_others: bool = False,
) -> Fitted:
    """Fit a network to `pairs`; from the weights of `start`, or from random ones.

    `beside_others` is for fits of which many are made at once, each in a thread: on a GPU these are one batch (`together`).

    A fit whose loss is not finite, or that ends far above that of the estimate it is to correct, is started again: from
    other random weights, or from `start`, with other crops, at half the rates.

    Raises
    ------
    FitDiverged
        When two starts failed.
    ValueError
        For a plan without a size and no start.
    """
    if start is not None:
        layout = start.layout
    elif plan.size is not None:
        layout = Layout(pairs[0].source.shape[0], plan.size.width, plan.size.layers)
    else:
        raise ValueError("a plan without a size fits a network further: give its start")
    make_deterministic(device)
    descend = _descend_together if beside_others and device.name != "cpu" else _descend
    unfitted = sum(float(pair.loss(pair.estimate)) for pair in pairs) / len(pairs)
    loss = math.nan
    for attempt in range(2):
        generator = torch.Generator().manual_seed(derived_seed("weights", seed, attempt))
        weights = initial_weights(layout, generator) if start is None else start.weights.clone()
        weights = weights.to(device.name)
        draws = derived_seed("crops", seed, attempt)
        loss = descend(pairs, layout, weights, plan, rate=0.5**attempt, seed=draws, device=device, on_step=on_step)
        if math.isfinite(loss) and loss < COLLAPSED + unfitted:
            return Fitted(layout, weights.cpu(), plan.steps, loss, attempt)
    raise FitDiverged(
        f"The fit's loss became {loss:.3g} from two starts: its result would be worse than the noisy image."
    )


def _descend(
    pairs: Sequence[Pair],
    layout: Layout,
    weights: Tensor,
    plan: Plan,
    *,
    rate: float,
    seed: int,
    device: Device,
    on_step: OnStep,
) -> float:
    """Run the fit on `weights`, in place; the mean loss of the last steps, not finite where it diverged."""
    optimiser = Optimiser(
        layout,
        weights,
        rate=plan.rate * rate,
        kernel_rate=plan.kernel_rate * rate,
        steps=plan.steps,
        fast_in_bfloat16=device.precision == "bfloat16",
    )
    dtype = _dtype(device)
    on_cpu = device.name == "cpu"
    grain, grains = plan.grain, plan.grains
    at_once = 1 if on_cpu else grains
    crops = Crops(pairs, plan.side)

    def gradient(parameters: list[Tensor], serials: Sequence[int]) -> tuple[Tensor, Tensor]:
        draws = [crops.draw(grain, _generator(seed, serial)) for serial in serials]
        source, estimate, target, valid = (torch.cat(parts) for parts in zip(*draws, strict=True))
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        loss = ((corrected(leaves, source, estimate) - target).square() * valid).mean()
        total = pack_gradients(torch.autograd.grad(loss, leaves)) * len(serials)
        return total, loss.detach() / valid.mean().clamp_min(1e-6)

    recent: list[Tensor] = []
    with in_threads(min(device.threads, grains) if on_cpu else 1) as run:
        for step in range(plan.steps):
            parameters = unpack(layout, weights, dtype)
            serials = range(step * grains, (step + 1) * grains)
            while True:
                groups = [serials[first : first + at_once] for first in range(0, grains, at_once)]
                try:
                    results = list(run(gradient, [parameters] * len(groups), groups))
                    break
                except torch.OutOfMemoryError:  # a GPU's: it may be shared
                    if at_once == 1:
                        raise
                    at_once //= 2
                    log.info("out of memory: %d of %d crops at once from here on", at_once * grain, plan.crops)
                    torch.cuda.empty_cache()
            total = results[0][0]
            for more, _ in results[1:]:
                total = total + more
            optimiser.step(total / grains)
            recent += [loss for _, loss in results]
            if (step + 1) % READ == 0 or step + 1 == plan.steps:
                loss = float(torch.stack(recent).mean())
                if not math.isfinite(loss):
                    return loss
                recent.clear()
                on_step(Step(step + 1, plan.steps, loss))
            elif (step + 1) % 5 == 0:
                on_step(Step(step + 1, plan.steps, None))
    return loss if bool(torch.isfinite(weights).all()) else math.nan


def _descend_together(
    pairs: Sequence[Pair],
    layout: Layout,
    weights: Tensor,
    plan: Plan,
    *,
    rate: float,
    seed: int,
    device: Device,
    on_step: OnStep,
) -> float:
    """As `_descend`, the same crops and the same steps, in one batch with the fits of other threads."""
    crops, count = Crops(pairs, plan.side), plan.grain * plan.grains
    places = [crops.places(plan.grain, _generator(seed, serial)) for serial in range(plan.steps * plan.grains)]
    rates = schedule(rate=plan.rate * rate, kernel_rate=plan.kernel_rate * rate, steps=plan.steps)
    job = Job(weights, crops.pixels(), torch.tensor(places).view(plan.steps, count, 3), rates, on_step)
    return run(Kind(device, layout, count, crops.side), job)


def _generator(seed: int, serial: int) -> torch.Generator:
    """What the crops of one grain are drawn by, counted over all steps."""
    return torch.Generator().manual_seed(derived_seed("grain", seed, serial))


@contextmanager
def in_threads(count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` over several threads, results in order; torch itself is to use one thread in each."""
    if count < 2:
        yield map
        return
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool.map
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _dtype(device: Device) -> torch.dtype:
    return torch.bfloat16 if device.precision == "bfloat16" else torch.float32


def derived_seed(purpose: str, seed: int, number: int) -> int:
    """A seed for each purpose and number, unlike those of neighbouring seeds."""
    return int.from_bytes(hashlib.sha256(f"zs-fit {purpose} {seed} {number}".encode()).digest()[:8], "big")

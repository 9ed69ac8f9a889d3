"""L-BFGS within [0, 1], and Adam with averaged iterates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from style_core.objective import Evaluation

Evaluate = Callable[[Tensor], Evaluation]
Report = Callable[[int, Evaluation], None]
Pair = tuple[Tensor, Tensor, Tensor]  # s, y, 1 / s·y

HISTORY_BYTES = 2**31


def lbfgs(evaluate: Evaluate, x: Tensor, steps: int, report: Report, history: int = 20) -> Evaluation:
    """L-BFGS within [0, 1] (Nocedal and Wright, algorithm 7.4, on the free pixels), at most ``steps`` evaluations.

    The seed calls ``torch.optim.LBFGS`` and clamps inside its closure. The optimizer then takes the move that it
    intended for the move that was made, and the wrong curvature throws it off: on half of the image pairs tried, the
    loss ended where it began or far above. Here the image is clamped after the step and the history records the move
    that was made; a step that raises the loss is shortened, so the loss never rises. A history of 20 ends where the seed's of
    100 does, in less time and memory; for images beyond some 12 megapixels it is shorter yet.
    """
    history = max(3, min(history, HISTORY_BYTES // (2 * x.numel() * x.element_size())))
    pairs: deque[Pair] = deque(maxlen=history)
    point = evaluate(x)
    report(1, point)
    used = 1
    while used < steps:
        g = point.gradient.flatten()
        at = point.image.flatten()
        # A pixel at a bound that the gradient pushes further out does not take part in this step.
        free = ~(((at <= 0) & (g > 0)) | ((at >= 1) & (g < 0)))
        direction = _inverse_hessian_times(pairs, g * free).mul_(free).neg_()
        if pairs and float(direction @ g) >= 0:
            pairs.clear()
            continue
        peak = float((g * free).abs().max())
        if peak == 0:
            break
        # Without a history the gradient has no scale: then at most one grey level in 255.
        longest = t = 1.0 if pairs else 1 / (255 * peak)
        accepted = False
        while not accepted and used < steps and t > 1e-4 * longest:
            trial = evaluate((at + t * direction).clamp_(0, 1).view_as(x))
            used += 1
            accepted = trial.loss <= point.loss  # false for NaN too
            if accepted:
                s = trial.image.flatten() - at
                y = trial.gradient.flatten() - g
                sy = s @ y
                if float(sy) > 1e-10 * float(s @ s):
                    pairs.append((s, y, 1 / sy))
                point = trial
            else:
                t *= 0.3
            report(used, point)
        if not accepted:
            if not pairs:
                break  # not even the gradient leads down: the loss is at the precision of the numbers
            pairs.clear()
    return point


def _inverse_hessian_times(pairs: deque[Pair], g: Tensor) -> Tensor:
    """The two-loop recursion."""
    q = g.clone()
    if not pairs:
        return q
    alphas = []
    for s, y, rho in reversed(pairs):
        alpha = rho * (s @ q)
        q.addcmul_(y, -alpha)
        alphas.append(alpha)
    _, y, rho = pairs[-1]
    q /= rho * (y @ y)
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q.addcmul_(s, alpha - rho * (y @ q))
    return q


@dataclass(frozen=True, eq=False)
class AdamState:
    """Where Adam stands: the image, its first and second moments, all (1, 3, H, W), and the steps taken."""

    image: Tensor
    first: Tensor
    second: Tensor
    steps: int

    @classmethod
    def start(cls, image: Tensor) -> AdamState:
        """At an image, without moments."""
        return cls(image, torch.zeros_like(image), torch.zeros_like(image), 0)

    def resized(self, size: tuple[int, int]) -> AdamState:
        """The same state of a larger or smaller image; at its own size, itself."""
        if tuple(self.image.shape[2:]) == size:
            return self
        image, first = (F.interpolate(t, size, mode="bicubic") for t in (self.image, self.first))
        second = F.interpolate(self.second, size, mode="bilinear").clamp_(min=0)
        return AdamState(image.clamp_(0, 1), first, second, self.steps)


def adam(
    evaluate: Evaluate,
    state: AdamState,
    steps: int,
    report: Report,
    *,
    rate: float = 0.02,
    betas: tuple[float, float] = (0.9, 0.99),
    decay: float = 0.99,
) -> tuple[AdamState, Tensor]:
    """Adam (Kingma and Ba, 2015) within [0, 1]; where it ends, and the decaying average of its iterates."""
    x, first, second = state.image.clone(), state.first.clone(), state.second.clone()
    average = torch.zeros_like(x)
    for step in range(1, steps + 1):
        point = evaluate(x)
        report(step, point)
        done = state.steps + step
        first.lerp_(point.gradient, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(point.gradient, point.gradient, value=1 - betas[1])
        scale = (second / (1 - betas[1] ** done)).sqrt_().add_(1e-8)
        x = x.addcdiv(first, scale, value=-rate / (1 - betas[0] ** done)).clamp_(0, 1)
        average.lerp_(x, 1 - decay)
    return AdamState(x, first, second, state.steps + steps), average / (1 - decay**steps)

"""The distances: in what an image shows, and in how it is painted. Values and derivatives in closed form.

How a layer's activations are distributed, wherever in the image, is told by two sums over its positions: of the
activations, and of their products. Both style distances are functions of these, so that an image in parts gives exactly
what a whole one gives, and the gradient with respect to the activations is one product of matrices.

The Gram and content losses are means, as in the seed's code, where equations 1 and 4 of Gatys, Ecker and Bethge (2015)
are sums with factors 1/2 and 1/4: the weights 1e6 and 1 belong to the means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# bfloat16 products are summed in float32 but handed back rounded: over so many positions at a time, rounding averages out.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Moments:
    """Means over a layer's positions: of the activations, ``mean`` (C,), and of their products, ``second`` (C, C)."""

    mean: Tensor
    second: Tensor

    @property
    def gram(self) -> Tensor:
        """The Gram matrix (C, C) over C·H·W, so that images of any two sizes compare."""
        return self.second / len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """(C, C)."""
        return self.second - self.mean.outer(self.mean)


def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over positions (N, C): of the activations (C,), and of their products (C, C); float32 from bfloat16 too."""
    ones = rows.new_ones(1, len(rows))
    if rows.dtype != torch.bfloat16:
        return (ones @ rows)[0], rows.T @ rows
    whole = len(rows) // _ROWS * _ROWS
    parts = rows[:whole].view(-1, _ROWS, rows.shape[1])
    rest, few = rows[whole:].float(), ones[:, whole:].float()
    total = torch.bmm(ones[:, :whole].view(-1, 1, _ROWS), parts).sum(0, dtype=torch.float32)
    second = torch.bmm(parts.mT, parts).sum(0, dtype=torch.float32)
    return (total + few @ rest)[0], second + rest.T @ rest


def moments(activations: Tensor) -> Moments:
    """Of one layer's activations (1, C, H, W)."""
    rows = activations.permute(0, 2, 3, 1).flatten(0, 2)
    total, second = sums(rows)
    return Moments(total / len(rows), second / len(rows))


def gram_matrix(activations: Tensor) -> Tensor:
    """Correlations between the channels of a layer (1, C, H, W): how often two filters answer together. (C, C)."""
    return moments(activations).gram


def blend(several: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """Moments of the mixture, with weights that add up to 1.

    For Gram matrices, the loss against the mixture has the same gradient as the weighted sum of the losses.
    """
    return Moments(
        torch.stack([w * m.mean for w, m in zip(weights, several, strict=True)]).sum(0),
        torch.stack([w * m.second for w, m in zip(weights, several, strict=True)]).sum(0),
    )


@dataclass(frozen=True, eq=False)
class Distance:
    """Of moments from a target, and its derivatives.

    With respect to ``mean``, (C,) or None for zero, and to ``second``, (C, C) and symmetric.
    """

    value: Tensor
    by_mean: Tensor | None
    by_second: Tensor


class GramTarget:
    """Mean squared difference of Gram matrices (Gatys, Ecker and Bethge, 2015, equation 4, as a mean)."""

    def __init__(self, target: Moments) -> None:
        self._gram = target.gram

    def __call__(self, found: Moments) -> Distance:
        """Return the distance of these moments."""
        difference = found.gram - self._gram
        by_second = 2 * difference / (difference.numel() * len(found.mean))
        return Distance(difference.square().mean(), None, by_second)


class WassersteinTarget:
    """Squared 2-Wasserstein distance of normal distributions with the layers' means and covariances, over C.

    |m − m'|² + tr A + tr B − 2 tr (√A B √A)^½ (Olkin and Pukelsheim, 1982). The trace of the root comes from eigenvalues λ
    of a symmetric matrix, as √(λ + ε²) − ε: its derivative ½ √A (√A B √A + ε²)^−½ √A stays finite where a filter never
    answers, and asks for no derivative of an eigenvector, so that equal eigenvalues do no harm.
    """

    def __init__(self, target: Moments) -> None:
        self._mean = target.mean
        values, vectors = torch.linalg.eigh(target.covariance.double())
        values = values.clamp_(min=0)
        self._trace = values.sum().to(target.mean.dtype)
        self._root = (vectors * values.sqrt() @ vectors.T).to(target.mean.dtype)
        # Below this the rounding of float32 eigenvalues would steer the gradient.
        self._epsilon = 1e-3 * float(values[-1]) + 1e-12

    def __call__(self, found: Moments) -> Distance:
        """Return the distance of these moments."""
        channels = len(found.mean)
        off = found.mean - self._mean
        covariance = found.covariance
        values, vectors = torch.linalg.eigh(self._root @ covariance @ self._root)
        roots = (values.clamp(min=0) + self._epsilon**2).sqrt()
        between = 2 * (roots - self._epsilon).sum()
        value = (off.square().sum() + self._trace + covariance.trace() - between) / channels
        across = self._root @ vectors
        by_covariance = (torch.eye(channels, device=off.device) - across / roots @ across.T) / channels
        # The covariance takes the mean's square from the second moments.
        by_mean = 2 * off / channels - 2 * by_covariance @ found.mean
        return Distance(value, by_mean, by_covariance)

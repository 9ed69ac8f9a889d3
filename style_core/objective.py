"""Losses of an image and their gradient, exactly, in bounded memory: the image is taken in parts.

The style losses depend on the image through sums over positions only. So a first pass over the parts adds up the sums;
from these follow the losses, and what one position's activations contribute to their gradient; a second pass over the
parts carries that back to the image. A part brings a margin wide enough that nothing inside depends on the cut. Where all
parts are in work at once, the second pass uses the activations of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from style_core.layers import margin, stride
from style_core.losses import Distance, GramTarget, Moments, WassersteinTarget, sums
from style_core.network import Network, Trace

Given = TypeVar("Given")
Made = TypeVar("Made")
Sums = tuple[Tensor, Tensor, int]  # over positions: of activations (C,), of products (C, C); how many positions

# With its margins, a part's activations take about 0.5 GB in float32.
TILE = 512


@dataclass(frozen=True)
class Tile:
    """A part of an image by rows and columns: ``inner`` belongs to it, ``outer`` is read, both (top, bottom, left, right)."""

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]
    size: tuple[int, int]

    def read(self, image: Tensor) -> Tensor:
        """The outer part of an image (1, 3, H, W)."""
        top, bottom, left, right = self.outer
        return image[..., top:bottom, left:right]

    def core(self, activations: Tensor) -> Tensor:
        """The inner part of the activations (1, C, h, w) of the outer part, as a view."""
        step = round((self.outer[1] - self.outer[0]) / activations.shape[2])
        rows, columns = (
            slice((start - first) // step, None if end == size else (end - first) // step)
            for start, end, first, size in (
                (self.inner[0], self.inner[1], self.outer[0], self.size[0]),
                (self.inner[2], self.inner[3], self.outer[2], self.size[1]),
            )
        )
        return activations[..., rows, columns]


def cut(size: tuple[int, int], side: int, step: int, around: int, *, at_least: int = 1) -> list[Tile]:
    """Parts of at most about side × side pixels, cut at multiples of ``step``, that read ``around`` pixels more.

    ``at_least`` so many, where the image allows it: its rows are then cut further.
    """
    height, width = size
    columns = _bounds(width, -(-width // side), step)
    bands = max(-(-height // side), -(-at_least // (len(columns) - 1)))
    rows = _bounds(height, bands, step)
    return [
        Tile(
            (top, bottom, left, right),
            (max(0, top - around), min(height, bottom + around), max(0, left - around), min(width, right + around)),
            size,
        )
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _bounds(length: int, parts: int, step: int) -> list[int]:
    inner = {round(i * length / parts / step) * step for i in range(1, parts)}
    return [0, *sorted(bound for bound in inner if 0 < bound <= length - step), length]


def measure(
    network: Network, image: Tensor, layers: Sequence[str], *, tile: int = TILE, threads: int = 1
) -> dict[str, Moments]:
    """Moments of the named layers' activations for RGB in [0, 1] (1, 3, H, W)."""

    def look(part: Tile) -> dict[str, Sums]:
        found = network.forward(part.read(image), keep=False).found
        return {name: _counted(part.core(found[name])) for name in layers}

    looked = list(_each(_tiles(network, image, tile, threads), look, threads))
    return {name: _total([part[name] for part in looked]) for name in layers}


def _tiles(network: Network, image: Tensor, tile: int, threads: int) -> list[Tile]:
    height, width = image.shape[2:]
    return cut((height, width), tile, stride(network.layers), margin(network.layers), at_least=threads)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An image (1, 3, H, W), its weighted losses, and the gradient of their sum."""

    image: Tensor
    style_loss: float
    content_loss: float
    gradient: Tensor

    @property
    def loss(self) -> float:
        """What is minimised."""
        return self.style_loss + self.content_loss


class Objective:
    """The losses of images of one size against one content image and one style, in the network's precision."""

    def __init__(
        self,
        network: Network,
        content: Tensor,
        styles: Mapping[str, GramTarget | WassersteinTarget],
        content_layers: Sequence[str],
        weights: tuple[float, float],
        *,
        tile: int = TILE,
        threads: int = 1,
    ) -> None:
        self._network = network
        self._styles = styles
        self._style_weight, self._content_weight = weights
        self._threads = threads
        self._tiles = _tiles(network, content, tile, threads)
        self._keep = len(self._tiles) <= threads

        def shown(tile: Tile) -> dict[str, Tensor]:
            found = network.forward(tile.read(content), keep=False).found
            return {name: tile.core(found[name]).clone() for name in content_layers}

        self._contents = list(_each(self._tiles, shown, threads)) if content_layers else [{} for _ in self._tiles]
        self._counts = {name: sum(part[name].numel() for part in self._contents) for name in content_layers}

    def __call__(self, image: Tensor) -> Evaluation:
        """Evaluate RGB in [0, 1] (1, 3, H, W)."""
        parts = range(len(self._tiles))
        looked = list(_each(parts, lambda i: self._look(i, image, keep=self._keep), self._threads))
        distances = {
            name: target(_total([part.sums[name] for part in looked])) for name, target in self._styles.items()
        }
        style = sum(float(distance.value) for distance in distances.values())
        content = sum(sum(float(part.squares[name]) for part in looked) / count for name, count in self._counts.items())
        gradient = torch.zeros_like(image)
        positions = {name: sum(part.sums[name][2] for part in looked) for name in self._styles}

        def back(i: int) -> Tensor:
            part = looked[i] if self._keep else self._look(i, image, keep=True)
            return self._back(i, part, distances, positions)

        for tile, part in zip(self._tiles, _each(parts, back, self._threads), strict=True):
            tile.read(gradient).add_(part)
        return Evaluation(image, self._style_weight * style, self._content_weight * content, gradient)

    def _look(self, i: int, image: Tensor, *, keep: bool) -> _Look:
        tile = self._tiles[i]
        trace = self._network.forward(tile.read(image), keep=keep)
        counted = {name: _counted(tile.core(trace.found[name])) for name in self._styles}
        squares = {
            name: torch.linalg.vector_norm(tile.core(trace.found[name]) - target, dtype=torch.float32).square()
            for name, target in self._contents[i].items()
        }
        return _Look(counted, squares, trace if keep else None)

    def _back(self, i: int, part: _Look, distances: Mapping[str, Distance], positions: Mapping[str, int]) -> Tensor:
        tile, trace = self._tiles[i], part.trace
        assert trace is not None

        def pull(name: str, found: Tensor, gradient: Tensor) -> None:
            f, g = tile.core(found), tile.core(gradient)
            if name in distances:
                factor = self._style_weight / positions[name]
                by_second = (2 * factor * distances[name].by_second).to(f.dtype)
                if f.shape == found.shape:
                    _rows(g).addmm_(_rows(f), by_second)
                else:
                    g += (f.permute(0, 2, 3, 1) @ by_second).permute(0, 3, 1, 2)
                by_mean = distances[name].by_mean
                if by_mean is not None:
                    g += (factor * by_mean).to(f.dtype)[:, None, None]
            if name in self._contents[i]:
                g.add_(f - self._contents[i][name], alpha=2 * self._content_weight / self._counts[name])

        return self._network.backward(trace, pull)


def _each(given: Iterable[Given], work: Callable[[Given], Made], threads: int) -> Iterator[Made]:
    """`work` on each, in order, ``threads`` at a time; no more results wait than there are threads."""
    if threads == 1:
        yield from map(work, given)
        return
    waiting = list(given)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(waiting), threads):
            yield from pool.map(work, waiting[first : first + threads])


@dataclass(frozen=True, eq=False)
class _Look:
    """What the first pass finds in a part: the style layers' sums and positions, the content layers' squares."""

    sums: Mapping[str, Sums]
    squares: Mapping[str, Tensor]
    trace: Trace | None


def _rows(activations: Tensor) -> Tensor:
    return activations.permute(0, 2, 3, 1).flatten(0, 2)


def _counted(activations: Tensor) -> Sums:
    rows = _rows(activations)
    return (*sums(rows), len(rows))


def _total(parts: Sequence[Sums]) -> Moments:
    count = sum(part[2] for part in parts)
    if len(parts) == 1:
        return Moments(parts[0][0] / count, parts[0][1] / count)
    totals, seconds, _ = zip(*parts, strict=True)
    mean, second = (torch.stack(list(all_)).sum(0, dtype=torch.float64) / count for all_ in (totals, seconds))
    return Moments(mean.to(torch.float32), second.to(torch.float32))

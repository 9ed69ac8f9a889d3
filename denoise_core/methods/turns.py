"""The eight symmetries of the square: for crops to fit on, and for the mean over turned copies of an image."""

from __future__ import annotations

from torch import Tensor


def turn(x: Tensor, k: int) -> Tensor:
    """One of the eight symmetries of the square, k in 0…7, each its own inverse but 5 and 6; 0…3 keep H and W."""
    if k & 1:
        x = x.flip(-1)
    if k & 2:
        x = x.flip(-2)
    return x.transpose(-1, -2) if k & 4 else x


def turn_back(x: Tensor, k: int) -> Tensor:
    """The inverse of `turn`."""
    return turn(x.transpose(-1, -2), k & 3) if k & 4 else turn(x, k)

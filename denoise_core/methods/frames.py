"""Stacks that are not in memory: frames that are read when a method asks for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from denoise_core.methods import Pixels


class Frames:
    """A stack (F, H, W, C) of float32, finite, whose frames `read` gives one at a time; read-only, and never whole in memory.

    It stands where a method takes an array: what it looks at (`stack[::n]`, `stack[3:7, :64]`, the extremes) is an array.
    `at_once` is how many frames of a result to make before they are handed on. Values that were picked from all
    frames, and the extremes, are kept: asking again reads nothing.
    """

    def __init__(self, read: Callable[[int], Pixels], shape: tuple[int, int, int, int], at_once: int) -> None:
        self._read, self.shape, self.at_once = read, shape, at_once
        self.dtype = np.dtype(np.float32)
        self._picked: dict[str, Pixels] = {}

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Pixels]:
        return map(self._read, range(len(self)))

    def __getitem__(self, key: int | slice | tuple[slice, ...]) -> Pixels:
        """What an array gives for a frame, for some of them, or for the same part of some of them; no more than fits."""
        if isinstance(key, int):
            return self._read(range(len(self))[key])
        first, rest = (key, ()) if isinstance(key, slice) else (key[0], key[1:])
        if str(key) in self._picked:
            return self._picked[str(key)]
        found = np.stack([self._read(frame)[rest] for frame in range(len(self))[first]])
        if any((part.step or 1) > 1 for part in rest):
            self._picked[str(key)] = found
        return found

    def min(self) -> float:
        """The least value."""
        return self._extremes[0]

    def max(self) -> float:
        """The greatest value."""
        return self._extremes[1]

    @functools.cached_property
    def _extremes(self) -> tuple[float, float]:
        found = [(float(frame.min()), float(frame.max())) for frame in self]
        return min(low for low, _ in found), max(high for _, high in found)

    def of(self, which: Sequence[int]) -> Frames:
        """Some of the frames as a stack."""
        return Frames(lambda number: self._read(which[number]), (len(which), *self.shape[1:]), self.at_once)

    def mapped(self, change: Callable[[Pixels], Pixels], channels: int) -> Frames:
        """The stack of the frames that `change` makes, of so many channels."""
        return Frames(lambda number: change(self._read(number)), (*self.shape[:3], channels), self.at_once)


Stack = Pixels | Frames

Put = Callable[[Sequence[int], Pixels], None]
"""Takes the results of some frames, by their numbers."""


def chosen(stack: Stack, which: Sequence[int]) -> Stack:
    """Some frames of a stack; itself where those are all."""
    if len(which) == len(stack):
        return stack
    return stack.of(which) if isinstance(stack, Frames) else stack[list(which)]


def in_memory(stack: Stack, which: Sequence[int]) -> Pixels:
    """Some frames of a stack as an array; itself where those are all of an array."""
    some = chosen(stack, which)
    return np.stack(list(some)) if isinstance(some, Frames) else some


def blocks_of(stack: Stack) -> Iterator[range]:
    """The numbers of the frames to take at once: all of an array."""
    at_once = stack.at_once if isinstance(stack, Frames) else len(stack)
    for first in range(0, len(stack), at_once):
        yield range(first, min(first + at_once, len(stack)))


class Gathered:
    """Puts the results of all frames together again."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._pixels = shape, np.empty(0, np.float32)

    def put(self, frames: Sequence[int], found: Pixels) -> None:
        """See `Put`."""
        if found.shape == self._shape and list(frames) == list(range(len(found))):
            self._pixels = found  # no copy where they come at once
            return
        if self._pixels.shape != self._shape:
            self._pixels = np.empty(self._shape, np.float32)
        self._pixels[list(frames)] = found

    @property
    def pixels(self) -> Pixels:
        """All of them (F, H, W, C)."""
        return self._pixels

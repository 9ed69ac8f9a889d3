"""How the axes of a file are denoised: which are the frames of a stack, which go together, which apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from denoise_core.errors import DenoiseError
from denoise_core.images import Header
from denoise_core.images.levels import light

_FRAMES = "TZQI"  # in this order of preference; of several unnamed axes the last


class AxesMismatch(DenoiseError):
    """The axes that were given are not those of the image."""


@dataclass(frozen=True)
class Arrangement:
    """The axes of an array, each for what it is denoised as.

    `planes` makes of an array of this shape (stacks · frames, H, W, channels): the frames of a stack follow each other.
    `frame` is the position of the axis of the frames, `joint` those of the channels that are denoised together; each
    place along every other axis but Y and X is a stack of its own.
    """

    axes: str
    shape: tuple[int, ...]
    frame: int | None
    joint: tuple[int, ...]

    @property
    def apart(self) -> tuple[int, ...]:
        """The positions of the axes along which the stacks lie."""
        taken = {self.frame, *self.joint, self.axes.index("Y"), self.axes.index("X")}
        return tuple(n for n in range(len(self.axes)) if n not in taken)

    @property
    def stacks(self) -> int:
        """How many stacks are denoised by themselves."""
        return math.prod(self.shape[n] for n in self.apart)

    @property
    def frames(self) -> int:
        """How many frames a stack has."""
        return 1 if self.frame is None else self.shape[self.frame]

    @property
    def channels(self) -> int:
        """How many channels are denoised together."""
        return math.prod(self.shape[n] for n in self.joint)

    def planes(self, array: np.ndarray) -> np.ndarray:
        """An array of the file's shape as (stacks · frames, H, W, channels), a view where that is one."""
        height, width = (self.shape[self.axes.index(axis)] for axis in "YX")
        return array.transpose(self._order).reshape(-1, height, width, self.channels)

    def back(self, planes: np.ndarray) -> np.ndarray:
        """What `planes` made, in the file's shape."""
        moved = planes.reshape([self.shape[n] for n in self._order])
        return np.ascontiguousarray(moved.transpose(np.argsort(self._order)))

    def stack(self, number: int) -> slice:
        """Where one stack's planes are among those of `planes`."""
        return slice(number * self.frames, (number + 1) * self.frames)

    def place(self, stack: int, frame: int | None = None) -> str:
        """Where a stack lies, or one of its frames, counted from 1: "C 2 of 3, Z 5 of 9"; empty for an image."""
        lying, number = list(self.apart), stack
        if self.frame is not None and frame is not None:
            lying.append(self.frame)
            number = stack * self.frames + frame
        found = np.unravel_index(number, [self.shape[n] for n in lying])
        return ", ".join(f"{self.axes[n]} {at + 1} of {self.shape[n]}" for n, at in zip(lying, found, strict=True))

    def seen(self, plane: np.ndarray, top: float) -> np.ndarray:
        """A plane (H, W, C) in the file's intensities, up to `top`, as it is shown: inks of CMYK as the light they leave."""
        inks = plane.shape[-1] == 4 and self.axes.endswith("S") and self.shape[-1] == 4
        return light(plane, top) if inks else plane

    @property
    def _order(self) -> tuple[int, ...]:
        frame = () if self.frame is None else (self.frame,)
        return (*self.apart, *frame, self.axes.index("Y"), self.axes.index("X"), *self.joint)

    def __str__(self) -> str:
        named: dict[str, Any] = {
            "frames": "" if self.frame is None else self.axes[self.frame],
            "joint": "".join(self.axes[n] for n in self.joint),
            "separate": "".join(self.axes[n] for n in self.apart),
        }
        return "; ".join(f"{axes} {what}" for what, axes in named.items() if axes)


def arrange(header: Header, channels: str = "auto") -> Arrangement:
    """How an image is denoised. `channels`: the axes C and S "joint" or "separate"; "auto" takes colours (S) together only.

    The frames of a stack lie along T, without it along Z, without that along an axis without a name.
    """
    together = {"auto": "S", "joint": "CS", "separate": ""}[channels]
    frame = next((header.axes.rindex(axis) for axis in _FRAMES if axis in header.axes), None)
    joint = tuple(n for n, axis in enumerate(header.axes) if axis in together)
    return Arrangement(header.axes, header.shape, frame, joint)


def renamed(header: Header, axes: str | None) -> Header:
    """The header with the axes that the user says, if any; raises AxesMismatch where they are not as many."""
    if axes is None:
        return header
    fit = len(axes) == len(header.axes) and axes.index("Y") == header.axes.index("Y")
    if not fit:
        raise AxesMismatch(
            f"--axes {axes} does not fit the image, whose axes are {header.axes} of lengths {header.shape}; as many are "
            "needed, and Y and X where the file has its rows and columns"
        )
    return Header(header.container, axes, header.shape, header.dtype)

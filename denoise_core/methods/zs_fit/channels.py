"""Channels that need a look before anything else: constant ones, copies of others, and such of unlike noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from denoise_core.methods import Pixels
from denoise_core.methods.frames import Frames, Stack
from denoise_core.methods.zs_fit.noise_level import NoiseLevel, estimate, thinned

FRAMES_LOOKED_AT = 3
NO_NOISE = 1 / 3000  # of the range: less noise than that is left alone
BELOW_A_STEP = 0.75  # steps between values: what is less is rounding, or texture taken for noise
UNLIKE = 1.3  # ratio of the noise of two channels above which they are scaled to one level


@dataclass(frozen=True)
class Channels:
    """Which channels of a stack are to be denoised, each times a factor that gives all the noise of the first."""

    kept: tuple[int, ...]
    factors: tuple[float, ...]
    copies: tuple[tuple[int, int], ...]  # a channel, and the place among `kept` of the one that it is a copy of

    def taken(self, stack: Stack) -> Stack:
        """(F, H, W, C) to (F, H, W, number kept)."""

        def of(pixels: Pixels) -> Pixels:
            scaled: Pixels = pixels[..., self.kept] * np.array(self.factors, np.float32)
            return scaled

        return stack.mapped(of, len(self.kept)) if isinstance(stack, Frames) else of(stack)

    def put_back(self, stack: Pixels, result: Pixels) -> Pixels:
        """The whole stack again: `result` of those that were taken, the others as they are in `stack`."""
        whole = stack.copy()
        whole[..., self.kept] = result / np.array(self.factors, np.float32)
        for channel, place in self.copies:
            whole[..., channel] = whole[..., self.kept[place]]
        return whole


def arrange(stack: Stack) -> Channels | None:
    """What is to be done about the channels of a stack (F, H, W, C) first; None where nothing is.

    Constant channels and such without noise are left as they are, unless all are.
    """
    if stack.shape[3] == 1:
        return None
    frames = stack[:: -(-len(stack) // FRAMES_LOOKED_AT)]
    kept: list[int] = []
    copies: list[tuple[int, int]] = []
    levels: list[tuple[float, float]] = []
    for channel in range(stack.shape[3]):
        of = [place for place, other in enumerate(kept) if _same(stack, channel, other)]
        if of:
            copies.append((channel, of[0]))
            continue
        level = _level(frames[..., channel])
        if level is not None:
            kept.append(channel)
            levels.append(level)
    if not kept:
        return None
    factors = _factors(levels)
    return (
        None if len(kept) == stack.shape[3] and set(factors) == {1.0} else Channels(tuple(kept), factors, tuple(copies))
    )


def _same(stack: Stack, one: int, other: int) -> bool:
    return all(np.array_equal(frame[..., one], frame[..., other]) for frame in stack)


def _level(frames: Pixels) -> tuple[float, float] | None:
    """Gain and standard deviation of the noise of a channel's frames (F, H, W); None where there is none to be removed."""
    found = [level for frame in frames if frame.min() < frame.max() and (level := estimate(frame)) is not None]
    if not found:
        return (0.0, 0.0) if float(frames.min()) < float(frames.max()) else None
    some = thinned(frames[..., None])
    mean = float(some.mean(dtype=np.float64))
    level = sorted(found, key=lambda level: level.sigma(mean))[len(found) // 2]
    return (level.gain, level.sigma(mean)) if level.sigma(mean) > least_noise(level, some) else None


def least_noise(level: NoiseLevel, some: Pixels) -> float:
    """The standard deviation below which the noise of an image, some of whose values these are, is left alone."""
    low, high = (float(value) for value in np.percentile(some, (0.5, 99.5)))  # a thousandth may be hot pixels
    coarse = 0.0 if level.gain > 0 else BELOW_A_STEP * level.step  # counts of photons are coarse by nature
    return max(NO_NOISE * (high - low), coarse, float(np.finfo(np.float32).tiny))


def _factors(levels: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """What to multiply each channel with: by their gains where all are of photons, else by their standard deviations."""
    of_photons = all(gain > 0 for gain, _ in levels)
    found = [gain if of_photons else sigma for gain, sigma in levels]
    if min(found) <= 0 or max(found) <= UNLIKE * min(found):
        return (1.0,) * len(found)
    return tuple(found[0] / value for value in found)

"""A stack made ready: its noise known, its intensities stabilised; and the windows of it that networks are fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import OnStep, Pixels, Step
from denoise_core.methods.zs_fit.application import estimated, to_tensor
from denoise_core.methods.zs_fit.noise_level import NoiseLevel, Stabiliser, estimate, thinned
from denoise_core.methods.zs_fit.pairs import Pair, held_out_errors, recorrupt

LEAST_SIDE = 64  # of an image that a network is fitted to
WINDOW_SIDE = 256
MOST_CHANNELS = 8  # of frames that are estimated together, times channels
NO_NOISE = 1 / 3000  # of the image's range: less noise than that is left alone
MOST_CLIPPED = 0.005  # of the pixels; above it, recorrupted windows do not stand for the image: no network is fitted
BELOW_A_STEP = 0.75  # steps between values: what is less is rounding, or texture taken for noise
CUT_OFF_REACH = 1  # pixels around one where noise was cut off that do not count either
DARK, LEAST_PHOTONS = (
    5.0,
    3.0,
)  # the percentile of the noisy pixels that has to have so many photons, read noise included
FRAMES_LOOKED_AT = 8
MOST_UNLIKE = 1.6  # between the noise levels of frames that are taken for one stack


@dataclass(frozen=True, eq=False)
class Prepared:
    """A stack (F, H, W, C) and its noise."""

    noisy: Pixels
    noise: NoiseLevel
    stabiliser: Stabiliser
    device: Device

    @property
    def can_be_fitted_to(self) -> bool:
        """Whether its windows are large enough, and their noise, once stabilised, is what recorruption takes it for.

        Not where much of it was cut off. And not where a part of the image has too few photons: their noise stays below
        variance 1 there, recorrupted copies are no longer independent, and fits and their judgement go wrong together.
        """
        if min(self.noisy.shape[1:3]) < LEAST_SIDE or self.noise.clipped > MOST_CLIPPED:
            return False
        if self.noise.gain == 0:
            return True
        dark = float(np.percentile(thinned(self.noisy), DARK))
        return (dark - self.stabiliser.black) / self.stabiliser.gain + self.stabiliser.spread >= LEAST_PHOTONS

    def best_window(self, generator: torch.Generator) -> int:
        """How many frames to estimate together: one, or as many as fit, whichever has the lower held-out loss."""
        frames, height, width, channels = self.noisy.shape
        most = min(frames, max(1, MOST_CHANNELS // channels))
        if most < 2:
            return 1
        start = (frames - most) // 2
        side = WINDOW_SIDE // 2
        top, left = max(0, height - side) // 2, max(0, width - side) // 2
        z, valid = self._tensors(self.noisy[start : start + most, top : top + side, left : left + side])
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        losses = {}
        for window in (1, most):
            pairs = recorrupt(z, valid, noise, lambda x, n=window: estimated(x, n), range(most))  # type: ignore[misc]
            losses[window] = float(np.mean([float(held_out_errors(pair, pair.estimate).mean()) for pair in pairs]))
        return min(losses, key=lambda window: losses[window])

    def pairs(
        self, number: int, copies: int, *, window: int, generator: torch.Generator, on_step: OnStep
    ) -> list[Pair]:
        """`copies` recorruptions of `number` windows; of all that the stack holds, and more copies, where those are fewer.

        Their places are drawn at random, in rows on a grid: see `Pair`. The frames are estimated `window` at a time.
        """
        frames, height, width, _ = self.noisy.shape
        tall, wide = min(height, WINDOW_SIDE), min(width, WINDOW_SIDE)
        wanted = number * copies
        number = min(number, frames * (height // tall) * (width // wide))
        copies = max(copies, wanted // number // 2)
        pairs: list[Pair] = []
        done = 0

        def check() -> None:
            on_step(Step(done * copies, number * copies, None))

        for done in range(number):
            draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            top, left = int(draws[0] * (height // tall)) * tall, int(draws[1] * (width - wide + 1))
            frame = int(draws[2] * frames)
            first = min(max(0, frame - window // 2), frames - min(window, frames))
            z, valid = self._tensors(self.noisy[first : first + window, top : top + tall, left : left + wide])
            for copy in range(copies):
                noise = torch.randn(z.shape, generator=generator).to(z.device)
                pairs += recorrupt(z, valid, noise, lambda x: estimated(x, window, check), [frame - first])
                on_step(Step(done * copies + copy + 1, number * copies, None))
        return pairs

    def _tensors(self, part: Pixels) -> tuple[Tensor, Tensor]:
        """The stabilised part (F, C, H, W), and its `valid` (F, 1, H, W): see `Pair`."""
        cut_off = torch.from_numpy(((part <= self.noise.low) | (part >= self.noise.high)).any(axis=3)).float()[:, None]
        valid = 1 - torch.nn.functional.max_pool2d(cut_off, 2 * CUT_OFF_REACH + 1, 1, CUT_OFF_REACH)
        return to_tensor(self.stabiliser.forward(part)).to(self.device.name), valid.to(self.device.name)


def prepare(noisy: Pixels, device: Device) -> tuple[NoiseLevel | None, Prepared | None]:
    """The noise of a stack (F, H, W, C), None where it is too small to tell; and the stack made ready, if it has noise."""
    noise = noise_of(noisy)
    if noise is None:  # not one patch
        return None, None
    some = thinned(noisy)
    low, high = (float(value) for value in np.percentile(some, (0.1, 99.9)))
    least = max(NO_NOISE * (high - low), BELOW_A_STEP * noise.step, float(np.finfo(np.float32).tiny))
    if not noise.sigma(float(some.mean(dtype=np.float64))) > least:
        return noise, None
    return noise, Prepared(noisy, noise, Stabiliser.of(noise, noisy), device)


def noise_of(noisy: Pixels) -> NoiseLevel | None:
    """The noise of a stack (F, H, W, C), from some of its frames; None where they are too small to tell."""
    found = noise_of_frames(noisy)
    if not found:
        return None
    poisson = [level for level in found if level.gain > 0]
    alike = poisson if len(poisson) * 2 > len(found) else [level for level in found if level.gain == 0]
    gain, offset = (float(np.median([getattr(level, name) for level in alike])) for name in ("gain", "offset"))
    # An end at which most frames are cut off, and all at one value: a single black frame says nothing of the others.
    low, high = (float(np.median([getattr(level, name) for level in found])) for name in ("low", "high"))
    clipped, step = (float(np.median([getattr(level, name) for level in found])) for name in ("clipped", "step"))
    return NoiseLevel(gain, offset, low, high, clipped, step)


def noise_of_frames(noisy: Pixels) -> list[NoiseLevel]:
    """The noise of some frames of a stack (F, H, W, C), but of constant ones."""
    frames = noisy[:: -(-len(noisy) // FRAMES_LOOKED_AT)]
    levels = [estimate(frame) for frame in frames if frame.min() < frame.max()]
    return [level for level in levels if level is not None]


def alike(noisy: Pixels) -> bool:
    """Whether the noise of a stack's frames is of one level, as far as some of them tell."""
    middle = float(thinned(noisy).mean(dtype=np.float64))
    sigmas = [level.sigma(middle) for level in noise_of_frames(noisy)]
    return len(sigmas) < 2 or max(sigmas) <= MOST_UNLIKE * min(sigmas)

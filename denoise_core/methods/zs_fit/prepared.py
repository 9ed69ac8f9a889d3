"""A stack made ready: its noise known, its intensities stabilised; and the windows of it that networks are fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import OnStep, Pixels, Step
from denoise_core.methods.frames import Stack, chosen
from denoise_core.methods.zs_fit.application import estimated, to_tensor
from denoise_core.methods.zs_fit.channels import least_noise
from denoise_core.methods.zs_fit.noise_level import NoiseLevel, Stabiliser, by_details, estimate, thinned
from denoise_core.methods.zs_fit.pairs import Pair, recorrupt, wins

LEAST_SIDE = 64  # of an image that a network is fitted to
WINDOW_SIDE = 256
MOST_CHANNELS = 8  # of frames that are estimated together, times channels
MOST_CLIPPED = 0.005  # of the pixels; above it, recorrupted windows do not stand for the image: no network is fitted
CUT_OFF_REACH = 1  # pixels around one where noise was cut off that do not count either
DARK = 5.0  # the percentile of the noisy pixels that has to have ...
STEPS = 1.5  # between values, of noise that recorruption may take for continuous
LEAST_PHOTONS = 3.0  # ... so many photons, read noise included
FRAMES_LOOKED_AT = 8
LEAST_LOOKED_AT, DETAILS_OF = 1024, 512  # pixels of frames that tell, and the side of what is looked at in each
BLOCK = 32  # side of the blocks by which frames together are held against frames alone
SAME_NOISE = 0.85  # of √2: frames whose difference has less noise than this share some of it
MOST_UNLIKE = 1.6  # between the noise levels of frames that are taken for one stack


@dataclass(frozen=True, eq=False)
class Prepared:
    """A stack (F, H, W, C) and its noise."""

    noisy: Stack
    noise: NoiseLevel
    stabiliser: Stabiliser
    device: Device

    @property
    def not_fitted_to(self) -> str | None:
        """Why no network is fitted to it, if none is: its noise, once stabilised, is not what recorruption takes it for.

        Not where much of it was cut off. And not where a part of the image has too few photons: their noise stays below
        variance 1 there, recorrupted copies are no longer independent, and fits and their judgement go wrong together.
        """
        if min(self.noisy.shape[1:3]) < LEAST_SIDE:
            return f"smaller than {LEAST_SIDE} pixels"
        if self.noise.clipped > MOST_CLIPPED:
            return f"noise was cut off at an end of the range in {100 * self.noise.clipped:.2g} % of the pixels"
        if self.noise.gain == 0:
            fine = self.stabiliser.spread >= STEPS * self.noise.step
            return None if fine else "its noise is hardly more than the steps between values"
        dark = float(np.percentile(thinned(self.noisy), DARK))
        enough = (dark - self.stabiliser.black) / self.stabiliser.gain + self.stabiliser.spread >= LEAST_PHOTONS
        return None if enough else f"less than {LEAST_PHOTONS:g} photons in its dark parts"

    def best_window(self, generator: torch.Generator, on_step: OnStep) -> int:
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
        differences = (z[1:] - z[:-1]).permute(0, 2, 3, 1).cpu().numpy()
        if min(by_details(difference) for difference in differences) < SAME_NOISE * math.sqrt(2):
            return 1  # recorrupting would not show that the frames' noise is partly the same
        errors = []
        for done, window in enumerate((1, most)):

            def estimate_of(x: Tensor, window: int = window, done: int = done) -> Tensor:
                return estimated(x, window, lambda: on_step(Step(done, 2, None)))

            pairs = recorrupt(z, valid, noise, estimate_of, range(most))
            missed = torch.cat([((pair.estimate - pair.target).square() * pair.valid).mean(dim=0) for pair in pairs])
            down, across = (side // BLOCK for side in missed.shape)
            blocks = missed[: down * BLOCK, : across * BLOCK].reshape(down, BLOCK, across, BLOCK)
            errors.append(blocks.mean(dim=(1, 3)).flatten())
        return most if wins(errors[1], errors[0]) else 1

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
        done = copy = 0

        def check() -> None:
            on_step(Step(done * copies + copy, number * copies, None))

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


def prepare(noisy: Stack, levels: Sequence[NoiseLevel], device: Device) -> tuple[NoiseLevel | None, Prepared | None]:
    """The noise of a stack (F, H, W, C) from that of its frames, None where these are too small to tell.

    And the stack made ready, if it has noise.
    """
    noise = noise_of(levels)
    if noise is None:  # not one patch
        return None, None
    some = thinned(noisy)
    if not noise.sigma(float(some.mean(dtype=np.float64))) > least_noise(noise, some):
        return noise, None
    return noise, Prepared(noisy, noise, Stabiliser.of(noise, noisy), device)


def noise_of(found: Sequence[NoiseLevel]) -> NoiseLevel | None:
    """The noise of a stack whose frames have these; None where there are none."""
    if not found:
        return None
    poisson = [level for level in found if level.gain > 0]
    alike = poisson if len(poisson) * 2 > len(found) else [level for level in found if level.gain == 0]
    gain, offset = (float(np.median([getattr(level, name) for level in alike])) for name in ("gain", "offset"))
    # An end at which most frames are cut off, and all at one value: a single black frame says nothing of the others.
    low, high = (float(np.median([getattr(level, name) for level in found])) for name in ("low", "high"))
    clipped, step = (float(np.median([getattr(level, name) for level in found])) for name in ("clipped", "step"))
    return NoiseLevel(gain, offset, low, high, clipped, step)


def noise_of_frames(noisy: Stack) -> list[NoiseLevel]:
    """The noise of some frames of a stack (F, H, W, C), but of constant ones."""
    frames = noisy[:: -(-len(noisy) // FRAMES_LOOKED_AT)]
    levels = [estimate(frame) for frame in frames if frame.min() < frame.max()]
    return [level for level in levels if level is not None]


def alike(noisy: Stack, levels: Sequence[NoiseLevel]) -> bool:
    """Whether the noise of a stack's frames is of one level, as far as some of them tell."""
    middle = float(thinned(noisy).mean(dtype=np.float64))
    sigmas = [level.sigma(middle) for level in levels]
    return len(sigmas) < 2 or max(sigmas) <= MOST_UNLIKE * min(sigmas)


def unlike(noisy: Stack) -> list[int]:
    """The frames of a stack (F, H, W, C) whose noise is of another level than that of most: each is looked at."""
    frames, height, width, _ = noisy.shape
    if frames < 3 or height * width < LEAST_LOOKED_AT:
        return []
    quick = np.array([by_details(frame[:DETAILS_OF, :DETAILS_OF]) for frame in noisy])
    middle = float(np.median(quick[quick > 0])) if (quick > 0).any() else 0.0
    if middle == 0:
        return []
    ratios = np.maximum(quick, 1e-30) / middle
    suspects = np.flatnonzero((quick > 0) & (np.maximum(ratios, 1 / ratios) > MOST_UNLIKE))
    others = [i for i in range(frames) if i not in set(suspects.tolist())]
    if not others or not len(suspects):
        return []
    usual = noise_of(noise_of_frames(chosen(noisy, others)))
    found = []
    for i in suspects.tolist():  # it may be no more than brighter, or of a finer texture
        level, mean = estimate(noisy[i]), float(noisy[i].mean())
        if level is not None and usual is not None:
            here, there = max(level.sigma(mean), 1e-30), max(usual.sigma(mean), 1e-30)
            if max(here / there, there / here) > MOST_UNLIKE:
                found.append(i)
    return found

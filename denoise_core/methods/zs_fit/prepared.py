"""A stack made ready: its noise known, its intensities stabilised; and the windows of it that networks are fitted to."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from denoise_core.device import Device
from denoise_core.methods import OnStep, Pixels, Step
from denoise_core.methods.frames import Stack, chosen
from denoise_core.methods.zs_fit.application import MOST_CHANNELS, estimated, to_tensor
from denoise_core.methods.zs_fit.channels import least_noise
from denoise_core.methods.zs_fit.common_noise import CommonNoise
from denoise_core.methods.zs_fit.noise_level import NoiseLevel, Stabiliser, by_details, estimate, thinned
from denoise_core.methods.zs_fit.pairs import (
    ALPHA,
    BLOCK,
    Pair,
    in_common,
    independent,
    means_of_blocks,
    recorrupt,
    wins,
)

LEAST_SIDE = 64  # of an image that a network is fitted to
WINDOW_SIDE = 256
LONGEST = 32  # frames that are estimated together ...
LONGEST_VALUES = 48_000_000  # ... and values of them: twice as many frames are in memory at once
MOST_CLIPPED = 0.005  # of the pixels; above it, recorrupted windows do not stand for the image: no network is fitted
# What targets may follow of their sources' noise and of its square, beyond what is known: see `in_common`.
MOST_FOLLOWED, LEAST_OF_SQUARE, MOST_OF_SQUARE = 0.1, -0.02, 0.05
CUT_OFF_REACH = 1  # pixels around one where noise was cut off that do not count either
DARK = 5.0  # the percentile of the noisy pixels that has to have ...
LEAST_PHOTONS = 3.0  # ... so many photons, read noise included
STEPS = 1.5  # between values, of noise that recorruption may take for continuous
FRAMES_LOOKED_AT = 8
LEAST_LOOKED_AT, DETAILS_OF = 1024, 512  # pixels of frames that tell, and the side of what is looked at in each
STILL = 0.06  # correlation of neighbouring pixels, above which a difference of frames is more than noise
SAME_NOISE = 0.85  # of what two frames' noises make together: frames whose difference has less share some of it
MOST_UNLIKE = 1.6  # between the noise levels of frames that are taken for one stack


@dataclass(frozen=True, eq=False)
class Prepared:
    """A stack (F, H, W, C) and its noise."""

    noisy: Stack
    noise: NoiseLevel
    stabiliser: Stabiliser
    device: Device

    def not_fitted_to(self, window: int) -> str | None:
        """Why no network is fitted to it, if none is: its noise, once stabilised, is not what recorruption takes it for.

        Not where much of the noise was cut off. And not where a part of the image has too few photons: an error of the model
        weighs most there, and fits and their judgement go wrong together. Nor where many frames are estimated together: a
        window would cost as many estimates.
        """
        if min(self.noisy.shape[1:3]) < LEAST_SIDE:
            return f"smaller than {LEAST_SIDE} pixels"
        if window > 1 and window * self.noisy.shape[3] > MOST_CHANNELS:
            return f"{window} frames are estimated together, which leaves little to correct"
        if self.noise.clipped > MOST_CLIPPED:
            return f"noise was cut off at an end of the range in {100 * self.noise.clipped:.2g} % of the pixels"
        if self.noise.gain == 0:
            fine = self.stabiliser.spread >= STEPS * self.noise.step
            return None if fine else "its noise is hardly more than the steps between values"
        dark = float(np.percentile(thinned(self.noisy), DARK))
        enough = (dark - self.stabiliser.black) / self.stabiliser.gain + self.stabiliser.spread >= LEAST_PHOTONS
        return None if enough else f"less than {LEAST_PHOTONS:g} photons in its dark parts"

    def are_as_modelled(self, pairs: Sequence[Pair]) -> bool:
        """Whether the noise of its pairs is close enough to the model for fits to them, and their judgement, to be right.

        Of photons it is not where they are very few, or where a detector adds what is not known.
        """
        if self.noise.gain == 0:
            return True
        slope, on_square = in_common(pairs)
        return slope <= MOST_FOLLOWED and LEAST_OF_SQUARE <= on_square <= MOST_OF_SQUARE

    def best_window(self, generator: torch.Generator, on_step: OnStep) -> int:
        """How many frames to estimate together: one, as many as make one image, or a long window, by the held-out loss."""
        frames, height, width, channels = self.noisy.shape
        few = min(frames, max(1, MOST_CHANNELS // channels))
        many = min(frames, max(few, min(LONGEST, LONGEST_VALUES // (height * width * channels))))
        candidates = sorted({1, few, many})
        if candidates == [1]:
            return 1
        start = (frames - many) // 2
        side = WINDOW_SIDE // 2
        top, left = max(0, height - side) // 2, max(0, width - side) // 2
        z, valid = self._tensors(self.noisy[start : start + many, top : top + side, left : left + side])
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        if _share_noise(z):
            return 1  # which recorrupting would not show
        variance = _variance_of_still_parts(z)
        judged = range((many - few) // 2, (many - few) // 2 + few)
        best, least = 1, None
        for done, window in enumerate(candidates):
            # Frames that are not judged matter only to a window that reaches them.
            seen = range(many) if window > few else judged

            def estimate_of(x: Tensor, window: int = window, done: int = done) -> Tensor:
                return estimated(x, window, lambda: on_step(Step(done, len(candidates), None)))

            part = slice(seen.start, seen.stop)
            frames_judged = [frame - seen.start for frame in judged]
            pairs = recorrupt(z[part], valid[part], noise[part], estimate_of, frames_judged)
            shown = [pair.with_variance(variance) for pair in pairs]
            missed = [((pair.estimate - pair.target).square() * pair.valid).mean(dim=0) for pair in shown]
            errors = means_of_blocks(torch.cat(missed))
            if least is None or wins(errors, least):
                best, least = window, errors
        return best

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
        common = CommonNoise.of(self.stabiliser, ALPHA)
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
                place = first, top, left
                estimate_of = functools.partial(estimated, window=window, check=check)
                pairs += recorrupt(z, valid, noise, estimate_of, [frame - first], place=place, common=common)
                on_step(Step(done * copies + copy + 1, number * copies, None))
        return independent(pairs)

    def _tensors(self, part: Pixels) -> tuple[Tensor, Tensor]:
        """The stabilised part (F, C, H, W), and its `valid` (F, 1, H, W): see `Pair`."""
        cut_off = torch.from_numpy(((part <= self.noise.low) | (part >= self.noise.high)).any(axis=3)).float()[:, None]
        valid = 1 - torch.nn.functional.max_pool2d(cut_off, 2 * CUT_OFF_REACH + 1, 1, CUT_OFF_REACH)
        return to_tensor(self.stabiliser.forward(part)).to(self.device.name), valid.to(self.device.name)


def _share_noise(z: Tensor) -> bool:
    """Whether the noise of neighbouring frames, (F, C, H, W), is partly the same: their difference has too little."""
    planes = z.permute(0, 2, 3, 1).cpu().numpy()
    own = [min(1.0, by_details(plane)) for plane in planes]  # less than 1 where photons are few
    pairs = zip(planes, planes[1:], own, own[1:], strict=False)
    return any(by_details(b - a) < SAME_NOISE * math.hypot(of_a, of_b) for a, b, of_a, of_b in pairs)


def _variance_of_still_parts(z: Tensor) -> float:
    """The variance of the noise of z (F, C, H, W), by differences of frames, where these are white; 1 where none are."""
    differences = (z[1:] - z[:-1]) / math.sqrt(2)
    found = []
    for rows in torch.split(differences, BLOCK, dim=2):
        for block in torch.split(rows, BLOCK, dim=3):
            variance = float(block.square().mean())
            likeness = [(block[..., 1:, :] * block[..., :-1, :]).mean(), (block[..., 1:] * block[..., :-1]).mean()]
            if max(abs(float(one)) for one in likeness) < STILL * variance:
                found.append(variance)
    return sum(found) / len(found) if found else 1.0


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

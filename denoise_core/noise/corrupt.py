"""Noise added to a clean image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from denoise_core.noise.kinds import KINDS, Mask, Photons
from denoise_core.noise.spec import Noise

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Corrupted:
    """A noisy image, how it came about, and where.

    Attributes
    ----------
    pixels
        In the clean image's shape, float32.
    mask
        True where the noise hit the pixel, whatever value it got: the clean image's shape, with one channel. None for kinds
        whose noise is everywhere.
    spec
        The noise with the levels of this image: what `parse` would read to make the same again.
    """

    pixels: Pixels
    mask: Mask | None
    spec: Noise


def rng(seed: int, name: str) -> np.random.Generator:
    """The random numbers of one image: from the seed and the image's relative path, whatever else is processed."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32).tolist())


def corrupt(
    clean: Pixels, noise: Noise, rng: np.random.Generator, *, clip: bool = False, photons: Photons | None = None
) -> Corrupted:
    """Add noise to an image (H, W) or (H, W, C), or to the frames of a stack (F, H, W, C), with values in [0, 1].

    Frames get independent noise of one level. The result leaves [0, 1] where the noise does, as in the literature's
    unclipped protocol, unless `clip` is set. `photons` are the values of no photons and of λ, for the kinds that count them, in
    place of 0 and 1: pixels below the former get no Poisson noise then.

    Raises
    ------
    ValueError
        For Poisson noise on NaN pixels, and without `photons` on negative ones, JPEG on sides above 65,500 pixels, and an array
        of another shape.
    """
    shape = clean.shape
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"An image is (H, W), (H, W, C) or (F, H, W, C), not {shape}.")
    one_channel = (*shape[:-1], 1) if len(shape) > 2 else shape
    stack = np.asarray(clean, dtype=np.float32).reshape((-1, *shape[-3:]) if len(shape) > 2 else (1, *shape, 1))
    spec = noise.drawn(rng)
    kind, levels = KINDS[spec.kind], [level.low for level in spec.levels]
    noisy, mask = kind.draw(stack, rng, *levels, photons) if kind.counts_photons else kind.draw(stack, rng, *levels)
    if clip:
        noisy = np.clip(noisy, 0, 1)
    return Corrupted(noisy.reshape(shape), None if mask is None else mask.reshape(one_channel), spec)


def add(
    clean: Pixels, noise: Noise, rng: np.random.Generator, clip: bool = False, photons: Photons | None = None
) -> Pixels:
    """The pixels of `corrupt`."""
    return corrupt(clean, noise, rng, clip=clip, photons=photons).pixels

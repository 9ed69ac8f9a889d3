"""Noise of a stated kind and level, added to clean images."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]

KINDS = {
    "gauss": "gauss:25 (Gaussian, σ on the 0–255 scale)",
    "poisson": "poisson:30 (Poisson, peak λ)",
}
LARGEST = 1e6


@dataclass(frozen=True)
class Noise:
    """A kind of noise and its level: σ on the 0–255 scale for `gauss`, the peak λ for `poisson`, None for `none`."""

    kind: str
    level: float | None

    def __str__(self) -> str:
        """As `parse` reads it."""
        return self.kind if self.level is None else f"{self.kind}:{self.level:g}"


def parse(text: str) -> Noise:
    """Read `gauss:25`, `poisson:30` or `none`.

    Raises
    ------
    ValueError
        For anything else, naming the kinds with an example of each. A level is a number above 0 and at most 1e6.
    """
    if text.strip() == "none":
        return Noise("none", None)
    kind, _, written = (part.strip() for part in text.partition(":"))
    try:
        level = float(written)
    except ValueError:
        level = math.nan
    if kind not in KINDS or not 0 < level <= LARGEST:
        raise ValueError(f"Unknown noise {text!r}: use {', '.join(KINDS.values())}, or none; a level is above 0.")
    return Noise(kind, level)


def rng(seed: int, name: str) -> np.random.Generator:
    """The random numbers of one image: from the seed and the image's relative path, whatever else is processed."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32).tolist())


def add(clean: Pixels, noise: Noise, rng: np.random.Generator, clip: bool = False) -> Pixels:
    """Add noise to a clean image of any shape with values in [0, 1].

    `gauss`: x + N(0, (σ/255)²). `poisson`: Poisson(λx)/λ, whose variance is x/λ. The result is float32 and leaves
    [0, 1], as the literature's unclipped protocol does, unless `clip` is set.

    Raises
    ------
    ValueError
        For Poisson noise on negative or NaN pixels, and for a kind that `parse` does not know.
    """
    if noise.kind == "gauss" and noise.level is not None:
        noisy = clean + rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(noise.level / 255)
    elif noise.kind == "poisson" and noise.level is not None:
        if not (clean >= 0).all():
            raise ValueError("Poisson noise needs pixels of 0 and above, found negative or NaN ones.")
        noisy = (rng.poisson(clean * np.float64(noise.level)) / noise.level).astype(np.float32)
    elif noise.kind == "none":
        noisy = clean.astype(np.float32)
    else:
        raise ValueError(f"Unknown noise {noise}: make it with parse().")
    return np.clip(noisy, 0, 1) if clip else noisy

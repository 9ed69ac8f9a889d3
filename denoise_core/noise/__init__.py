"""Corruptions of a stated kind and level, added to clean images: what `--noise` offers.

`parse` reads what a user writes, such as `gauss:25` or `gauss:5-50`; `rng` gives an image its random numbers; `corrupt`
returns the noisy image, the pixels that were hit and the levels that were drawn. A new kind is one entry of `KINDS`.
"""

from denoise_core.noise.corrupt import Corrupted, Pixels, add, corrupt, rng
from denoise_core.noise.kinds import KINDS, Mask, Photons
from denoise_core.noise.spec import Level, Noise, parse

__all__ = ["KINDS", "Corrupted", "Level", "Mask", "Noise", "Photons", "Pixels", "add", "corrupt", "parse", "rng"]

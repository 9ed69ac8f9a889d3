"""The kinds of noise: how each is written, the bounds of its levels, and how it is drawn.

A draw takes a clean stack (F, H, W, C), float32 in [0, 1], the image's random numbers and the levels, and returns the noisy
stack and the mask of the pixels that it hit, (F, H, W, 1) bool; None where every pixel has its share. Where photons are
counted it also takes which values stand for how many. It never writes to the clean stack. All frames are independent; so are
channels, where no word is said of colours or pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from denoise_core.noise import text

Pixels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Drawn = tuple[Pixels, Mask | None]

BROWN_BLUR = 1.5
"""σ, in pixels, of the Gaussian kernel that correlates `brown` noise."""
LONGEST_JPEG_SIDE = 65_500


class Photons(NamedTuple):
    """The values that stand for no photons and for λ of them: one for the whole stack, or of each frame (F, 1, 1, 1).

    A frame whose `bright` is not above its `dark` has no photons.
    """

    dark: float | npt.NDArray[np.float64]
    bright: float | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """A level: what it says, and its bounds: above 0 and at most `most`; of a `whole` number, 1 at least."""

    says: str
    most: float = 1e6
    whole: bool = False

    def allows(self, low: float, high: float) -> bool:
        """Whether this is a level (low = high) or a range; a range may start at 0, which is never drawn."""
        if self.whole:
            return low.is_integer() and high.is_integer() and 1 <= low <= high <= self.most
        return 0 <= low <= high <= self.most and high > 0

    def __str__(self) -> str:
        bounds = f"a whole number from 1 to {self.most:g}" if self.whole else f"above 0 and at most {self.most:,.6g}"
        return f"{self.says}, {bounds}"


@dataclass(frozen=True)
class Kind:
    """How a kind of noise is written, what its levels are, and its draw."""

    example: str
    range_example: str
    says: str
    parameters: tuple[Parameter, ...]
    draw: Callable[..., Drawn]
    counts_photons: bool = False

    def __str__(self) -> str:
        return f"{self.example} ({self.says})"


def none(clean: Pixels, rng: np.random.Generator) -> Drawn:  # noqa: ARG001
    """A copy."""
    return clean.copy(), None


def gauss(clean: Pixels, rng: np.random.Generator, sigma: float) -> Drawn:
    """Give x + N(0, (σ/255)²)."""
    return clean + rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(sigma / 255), None


def poisson(clean: Pixels, rng: np.random.Generator, peak: float, photons: Photons | None = None) -> Drawn:
    """Poisson(λx)/λ, of x that is 0 at `photons.dark` and 1 at `photons.bright`: mean x, variance x/λ.

    Pixels below `photons.dark` have no photons and stay as they are; without `photons` x is the pixel, of 0 and above.
    ValueError for NaN, and then for negative pixels.
    """
    if np.isnan(clean).any() or (photons is None and (clean < 0).any()):
        raise ValueError("Poisson noise needs pixels of 0 and above, found negative or NaN ones.")
    dark, bright = (np.asarray(value, np.float64) for value in photons or (0.0, 1.0))
    each = peak / np.where(bright > dark, bright - dark, 1.0)
    noisy = (rng.poisson(np.maximum(clean - dark, 0) * each) / each + dark).astype(np.float32)
    np.copyto(noisy, clean, where=clean <= dark)
    return noisy, None


def poisson_gauss(
    clean: Pixels, rng: np.random.Generator, peak: float, sigma: float, photons: Photons | None = None
) -> Drawn:
    """The photons of `poisson` and the camera's readout N(0, (σ/255)²), which pixels without photons have, too."""
    counted, _ = poisson(clean, rng, peak, photons)
    return gauss(counted, rng, sigma)


def bernoulli(clean: Pixels, rng: np.random.Generator, share: float) -> Drawn:
    """Each pixel, all its channels, is 0 with probability p and kept else (Lehtinen et al., Noise2Noise, section 3.3)."""
    hit = _pixels(clean, rng) < share
    return np.where(hit, np.float32(0), clean), hit


def impulse(clean: Pixels, rng: np.random.Generator, share: float) -> Drawn:
    """Each pixel is a random colour, uniform in [0, 1], with probability p (Noise2Noise: random-valued impulse noise)."""
    hit = _pixels(clean, rng) < share
    return np.where(hit, rng.random(clean.shape, dtype=np.float32), clean), hit


def salt_pepper(clean: Pixels, rng: np.random.Generator, share: float) -> Drawn:
    """Each pixel, all its channels, is 0 with probability p/2 and 1 with probability p/2.

    Whole pixels, as a detector's dead and hot ones; scikit-image's `random_noise` hits each channel by itself.
    """
    at = _pixels(clean, rng)
    return np.where(at < share, (at < share / 2).astype(np.float32), clean), at < share


def random_text(clean: Pixels, rng: np.random.Generator, share: float) -> Drawn:
    """Strings of random letters, size, colour and place until share p of a frame's pixels is covered (Noise2Noise)."""
    noisy = clean.copy()
    hit = np.zeros((*clean.shape[:3], 1), dtype=np.bool_)
    for frame, covered in zip(noisy, hit[..., 0], strict=True):
        text.scatter(frame, covered, rng, share)
    return noisy, hit


def brown(clean: Pixels, rng: np.random.Generator, sigma: float) -> Drawn:
    """Add spatially correlated Gaussian noise of standard deviation σ/255: white noise through a Gaussian kernel.

    The kernel k has a standard deviation of `BROWN_BLUR` pixels and unit energy, and the white noise goes on beyond the
    image's edges: the noise is stationary, its autocovariance (σ/255)² (k ⋆ k), about (σ/255)² exp(-d² / 4 BROWN_BLUR²) at a
    distance of d pixels, and its power spectrum (σ/255)² |K(f)|². It is not 1/f² noise, which has no variance.
    """
    from scipy.ndimage import correlate1d

    kernel = brown_kernel()
    margin = len(kernel) // 2
    noisy = np.empty_like(clean)
    _, height, width, channels = clean.shape
    for frame, made in zip(clean, noisy, strict=True):
        white = rng.standard_normal((height + 2 * margin, width + 2 * margin, channels), dtype=np.float32)
        rows = correlate1d(white, kernel, axis=0)[margin : margin + height]
        made[:] = frame + correlate1d(rows, kernel, axis=1)[:, margin : margin + width] * np.float32(sigma / 255)
    return noisy, None


def brown_kernel() -> npt.NDArray[np.float64]:
    """The kernel of `brown` along each axis, cut at four standard deviations; its squares sum to 1."""
    margin = round(4 * BROWN_BLUR)
    kernel = np.exp(-0.5 * (np.arange(-margin, margin + 1) / BROWN_BLUR) ** 2)
    return np.asarray(kernel / np.sqrt(np.square(kernel).sum()), dtype=np.float64)


def jpeg(clean: Pixels, rng: np.random.Generator, quality: float) -> Drawn:  # noqa: ARG001 - nothing in it is random
    """Through a JPEG file of this quality (libjpeg's scale), colour with 4:2:0 subsampling.

    JPEG has 8 bits a sample: deeper images lose what is finer than 1/255 too. Images of other than 1 or 3 channels go
    channel by channel. ValueError for sides above 65,500 pixels.
    """
    if max(clean.shape[1:3]) > LONGEST_JPEG_SIDE:
        raise ValueError(f"JPEG noise needs images of at most {LONGEST_JPEG_SIDE} pixels a side.")
    levels = np.rint(np.clip(clean, 0, 1) * np.float32(255)).astype(np.uint8)
    together = 3 if clean.shape[3] == 3 else 1
    for frame in levels:
        for channel in range(0, clean.shape[3], together):
            plane = frame[..., channel : channel + together]
            plane[:] = _through_jpeg(plane.squeeze(axis=2) if together == 1 else plane, int(quality)).reshape(
                plane.shape
            )
    return levels / np.float32(255), None


def _through_jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as image:
        return np.asarray(image)


def _pixels(clean: Pixels, rng: np.random.Generator) -> Pixels:
    """A uniform number in [0, 1) for each pixel, (F, H, W, 1)."""
    return rng.random((*clean.shape[:3], 1), dtype=np.float32)


_SIGMA = Parameter("σ on the 0–255 scale")
_PEAK = Parameter("the peak λ in photons")
_SHARE = Parameter("the share of pixels", most=0.99)

KINDS = {
    "gauss": Kind("gauss:25", "gauss:5-50", "Gaussian, σ on the 0–255 scale", (_SIGMA,), gauss),
    "poisson": Kind("poisson:30", "poisson:5-50", "Poisson, peak λ", (_PEAK,), poisson, counts_photons=True),
    "poisson-gauss": Kind(
        "poisson-gauss:30/5",
        "poisson-gauss:5-50/5",
        "both, peak λ / σ",
        (_PEAK, _SIGMA),
        poisson_gauss,
        counts_photons=True,
    ),
    "bernoulli": Kind("bernoulli:0.5", "bernoulli:0-0.95", "share of pixels set to 0", (_SHARE,), bernoulli),
    "impulse": Kind("impulse:0.3", "impulse:0-0.95", "share of pixels of a random colour", (_SHARE,), impulse),
    "salt-pepper": Kind(
        "salt-pepper:0.1", "salt-pepper:0-0.2", "share of pixels, half black, half white", (_SHARE,), salt_pepper
    ),
    "text": Kind(
        "text:0.25",
        "text:0-0.5",
        "share of pixels under random text",
        (Parameter("the share of pixels", most=0.9),),
        random_text,
    ),
    "brown": Kind("brown:25", "brown:5-50", "spatially correlated Gaussian, σ on the 0–255 scale", (_SIGMA,), brown),
    "jpeg": Kind("jpeg:30", "jpeg:10-90", "quality", (Parameter("the quality", most=100, whole=True),), jpeg),
    "none": Kind("none", "none", "nothing is added", (), none),
}

"""The denoising methods, by name, behind one function: `denoise`.

A new method is one module beside this file and one entry in `METHODS`. Importing this package imports no method
and no torch: those wait until an image is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from denoise_core.device import Device
from denoise_core.errors import DenoiseError

if TYPE_CHECKING:
    from denoise_core.methods.zs_fit import Result
    from denoise_core.methods.zs_fit.noise_level import NoiseLevel

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """How far a fit is. `loss` is there only now and then: reading it makes a GPU wait."""

    step: int
    steps: int
    loss: float | None


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Denoised:
    """A denoised image, `pixels` shaped and scaled as the noisy one and not clamped, and what it took.

    `final_loss` is the loss of the fit's last step; `restarts` counts fits that were thrown away; `noise` is what the method
    took the noise for, on the image's scale, if it looked.
    """

    pixels: Pixels
    steps: int
    final_loss: float | None
    fit_seconds: float
    denoise_seconds: float
    restarts: int
    noise: NoiseLevel | None = None


class MethodMissing(DenoiseError):
    """The library of a method is not installed."""


class FitDiverged(DenoiseError):
    """The fit's loss did not stay finite, not even from a second start."""


class _Denoise(Protocol):
    def __call__(
        self,
        noisy: Pixels,
        *,
        preset: str,
        seed: int,
        device: Device,
        value_range: tuple[float, float],
        on_step: OnStep | None,
    ) -> Denoised: ...


@dataclass(frozen=True)
class Method:
    """One entry of the registry. `min_size` is the least height and width that the method takes, in pixels.

    `package` is what has to be installed for it beside the project's own requirements, and `licence` on what terms.
    """

    name: str
    presets: tuple[str, ...]
    min_size: int
    denoise: _Denoise
    description: str
    source: str
    package: str | None = None
    licence: str = ""


def _zs_n2n(
    noisy: Pixels,
    *,
    preset: str,
    seed: int,
    device: Device,
    value_range: tuple[float, float],
    on_step: OnStep | None,
) -> Denoised:
    from denoise_core.methods import zs_n2n

    return zs_n2n.denoise(noisy, preset=preset, seed=seed, device=device, value_range=value_range, on_step=on_step)


def _nl_bayes(
    noisy: Pixels,
    *,
    preset: str,  # noqa: ARG001 - every method has this signature
    seed: int,  # noqa: ARG001
    device: Device,
    value_range: tuple[float, float],  # noqa: ARG001 - the noise, not the range, sets the scale
    on_step: OnStep | None,
) -> Denoised:
    from denoise_core.methods import zs_fit

    return _as_image(noisy, zs_fit.estimate_only(_as_stack(noisy), device=device, on_step=on_step or _ignore))


def _zs_fit(
    noisy: Pixels,
    *,
    preset: str,
    seed: int,
    device: Device,
    value_range: tuple[float, float],  # noqa: ARG001
    on_step: OnStep | None,
) -> Denoised:
    from denoise_core.methods import zs_fit

    found = zs_fit.denoise(_as_stack(noisy), preset=preset, seed=seed, device=device, on_step=on_step or _ignore)
    return _as_image(noisy, found)


def _as_stack(noisy: Pixels) -> Pixels:
    return noisy.reshape(1, *noisy.shape[:2], -1)


def _as_image(noisy: Pixels, found: Result) -> Denoised:
    pixels = found.pixels.reshape(noisy.shape)
    return Denoised(pixels, found.steps, None, found.fit_seconds, found.denoise_seconds, found.restarts, found.noise)


def _classical(method: str) -> _Denoise:
    def denoise(
        noisy: Pixels,
        *,
        preset: str,  # noqa: ARG001 - every method has this signature
        seed: int,  # noqa: ARG001
        device: Device,
        value_range: tuple[float, float],
        on_step: OnStep | None,
    ) -> Denoised:
        from denoise_core.methods import classical

        return classical.denoise(
            noisy, method=method, device=device, value_range=value_range, on_step=on_step or _ignore
        )

    return denoise


def _none(
    noisy: Pixels,
    *,
    preset: str,  # noqa: ARG001 - every method has this signature
    seed: int,  # noqa: ARG001
    device: Device,  # noqa: ARG001
    value_range: tuple[float, float],  # noqa: ARG001
    on_step: OnStep | None,  # noqa: ARG001
) -> Denoised:
    return _unchanged(noisy)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "zs-n2n",
            ("fast", "paper"),
            2,
            _zs_n2n,
            "Zero-Shot Noise2Noise: a two-layer network fitted to the one noisy image",
            "Mansour and Heckel, CVPR 2023, arXiv:2303.11253",
        ),
        Method(
            "nl-bayes",
            ("fast",),
            8,
            _nl_bayes,
            "Non-local Bayes at three scales under a blind noise estimate: groups of like patches, no network and no fit",
            "Lebrun, Buades and Morel, SIAM Journal on Imaging Sciences 6(3), 2013; Facciolo, Pierazzo and Morel, 10(3), 2017",
        ),
        Method(
            "zs-fit",
            ("fast", "best"),
            8,
            _zs_fit,
            "the non-local estimate of nl-bayes, corrected by a small network fitted to the noisy images alone",
            "denoise_core.methods.zs_fit",
        ),
        Method(
            "nlm",
            ("fast",),
            8,
            _classical("nlm"),
            "non-local means (scikit-image) under a blind noise estimate",
            "Buades, Coll and Morel, CVPR 2005",
        ),
        Method(
            "wavelet",
            ("fast",),
            8,
            _classical("wavelet"),
            "wavelet shrinkage (scikit-image), BayesShrink with cycle spinning, under a blind noise estimate",
            "Chang, Yu and Vetterli, IEEE TIP 9(9), 2000",
        ),
        Method(
            "tv",
            ("fast",),
            8,
            _classical("tv"),
            "total variation (scikit-image) under a blind noise estimate",
            "Chambolle, JMIV 20, 2004",
        ),
        Method(
            "bm3d",
            ("fast",),
            8,
            _classical("bm3d"),
            "block matching and 3-D filtering (package bm3d) under a blind noise estimate",
            "Dabov, Foi, Katkovnik and Egiazarian, IEEE TIP 16(8), 2007",
            package="bm3d",
            licence="for non-commercial use only (Tampere University)",
        ),
        Method("none", ("fast",), 1, _none, "the pixels as they came, for comparison", "no method"),
    )
}


def check_installed(method: str) -> None:
    """Raise `MethodMissing` where the library of the method is not installed, with its licence and how to get it."""
    entry = METHODS[method]
    if entry.package is not None and importlib.util.find_spec(entry.package) is None:
        raise MethodMissing(
            f"the method {method} needs the package {entry.package}, which is not installed; it is licensed "
            f"{entry.licence}: if that is what you do, `pip install {entry.package}`"
        )


def denoise(
    noisy: Pixels,
    *,
    method: str,
    preset: str,
    seed: int,
    device: Device,
    value_range: tuple[float, float] = (0.0, 1.0),
    on_step: OnStep | None = None,
) -> Denoised:
    """Denoise one image.

    Parameters
    ----------
    noisy : (H, W) or (H, W, C) float32
        Any number of channels, on any scale.
    method, preset : str
        A name in `METHODS` and one of its presets.
    seed : int
        Of everything random in the fit; the same seed, device kind and thread count give the same bytes.
    device : Device
        From `denoise_core.device.choose`.
    value_range : (float, float)
        (lo, hi), the intensities that the method sees as 0 and 1; applied before, undone after, never clamped to.
    on_step : callable
        Called every few steps of a fit. Whatever it raises ends the fit at once and reaches the caller.

    Returns
    -------
    Denoised
        A constant image comes back exactly as it was.

    Raises
    ------
    ValueError
        For an unknown method or preset, a shape or dtype other than above, an image smaller than the method's
        `min_size`, NaN or infinite pixels, and a range that is not lo < hi.
    FitDiverged
        When the loss did not stay finite from two starts.
    MethodMissing
        When the method's library is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")
    entry = METHODS[method]
    if preset not in entry.presets:
        raise ValueError(f"Method {method} has no preset {preset!r}: use one of {', '.join(entry.presets)}.")
    _check(noisy, entry, value_range)
    check_installed(method)
    if bool((noisy == noisy[:1, :1]).all()):
        return _unchanged(noisy)
    return entry.denoise(
        noisy, preset=preset, seed=seed, device=device, value_range=value_range, on_step=on_step or _ignore
    )


def intensity_range(pixels: npt.NDArray[np.generic]) -> tuple[float, float]:
    """The image's own robust range (lo, hi), for the `value_range` of intensities that have no natural 0 and 1.

    The 0.1st and 99.9th percentile over all pixels and channels, so that hot and dead pixels do not stretch it. Where
    those two coincide (a mostly empty image), the whole range; where that has no width either, a range of width
    max(1, |value|) around the one value. For 8-bit images use (0, 1) after division by 255 instead, as published.

    Raises
    ------
    ValueError
        For an empty image, and for pixels that are NaN, infinite or too large for the width of their range to be a number.
    """
    if pixels.size == 0:
        raise ValueError(f"The image has no pixels (shape {pixels.shape}).")
    sample = pixels.reshape(-1)[:: every_nth(pixels.size)]
    return robust_range(sample, lambda: (float(pixels.min()), float(pixels.max())))


def every_nth(size: int) -> int:
    """Of so many values, the how manieth each are enough for their percentiles: sorting them all costs seconds."""
    every = max(1, size // 4_000_000)
    return every + (every % 2 == 0)  # odd, so that no checkerboard or two-channel phase is left out


def robust_range(sample: npt.NDArray[np.generic], extremes: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """`intensity_range` of an image by a `sample` of its values, and its least and greatest value, if they are needed."""
    values = sample.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        lo, hi = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    if not np.isfinite(hi - lo):
        what = "values too large to compute with" if np.isfinite(values).all() else "NaN or infinite pixels"
        raise ValueError(f"The image has {what}: there is no intensity range.")
    if not lo < hi:
        lo, hi = extremes()
    if not lo < hi:
        half = max(1.0, abs(lo)) / 2
        lo, hi = lo - half, hi + half
    return lo, hi


def _check(noisy: Pixels, method: Method, value_range: tuple[float, float]) -> None:
    if noisy.dtype != np.float32 or noisy.ndim not in {2, 3} or noisy.size == 0:
        raise ValueError(f"Expected float32 pixels (H, W) or (H, W, C), found {noisy.dtype} {noisy.shape}.")
    height, width = noisy.shape[:2]
    if min(height, width) < method.min_size:
        least = method.min_size
        raise ValueError(
            f"The image is {width}×{height} pixels: {method.name} needs at least {least}×{least}; the method none takes any."
        )
    if not np.isfinite(noisy).all():
        raise ValueError("The image has NaN or infinite pixels: replace them before denoising.")
    lo, hi = value_range
    float32 = np.finfo(np.float32)
    if not (np.isfinite(lo) and np.isfinite(hi) and float(float32.tiny) <= hi - lo <= float(float32.max)):
        raise ValueError(f"The value range must have lo < hi, both finite, found {lo} and {hi}.")


def _unchanged(noisy: Pixels) -> Denoised:
    return Denoised(noisy.copy(), steps=0, final_loss=None, fit_seconds=0.0, denoise_seconds=0.0, restarts=0)


def _ignore(step: Step) -> None:
    pass

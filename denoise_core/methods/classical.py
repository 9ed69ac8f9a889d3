"""Methods of reference through their libraries: non-local means, wavelets, total variation (scikit-image), and BM3D.

All of them expect white Gaussian noise of a known level. They are told it as nl_bayes is: the noise is estimated blindly
and the image stabilised to noise of variance 1 (`zs_fit.noise_level`), so that Poisson noise is treated as fairly as
Gaussian. What is left to choose is one strength a method, in units of that σ. It was chosen by PSNR over four photographs
of scikit-image's package (256² centre crops of astronaut, chelsea, coffee, rocket; Gaussian σ 10, 25, 50, Poisson λ 50 and
10), on none of the images of a benchmark. `skimage.restoration.calibrate_denoiser`, which chooses it for each image by
J-invariance, came out 0.7 dB lower there for total variation: it calibrates the denoiser that does not see a pixel itself.

Channels are rotated by an orthonormal DCT for the methods that treat each by itself, which for RGB gives luminance and
opponent colours: 0.7 to 1.4 dB more than on RGB, the noise as white as before.

Large images are done in bands of all columns that overlap and are blended, so that memory is bounded and nothing shows.

Buades, Coll and Morel, CVPR 2005 (non-local means); Chang, Yu and Vetterli, IEEE TIP 2000 (BayesShrink), with the cycle
spinning of Coifman and Donoho, 1995; Chambolle, JMIV 2004 (total variation); Dabov, Foi, Katkovnik and Egiazarian, IEEE
TIP 2007, and Mäkinen, Azzari and Foi, IEEE TIP 2020 (BM3D, for non-commercial use only).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from denoise_core.device import Device
from denoise_core.methods import Denoised, OnStep, Pixels, Step
from denoise_core.methods.nl_bayes import channel_rotation
from denoise_core.methods.zs_fit.channels import arrange
from denoise_core.methods.zs_fit.noise_level import Stabiliser
from denoise_core.methods.zs_fit.prepared import noise_of_frames, prepare

Doubles = npt.NDArray[np.float64]

BAND_VALUES = 400_000  # of one band: bounds the memory, and how long an interrupt waits
OVERLAP = 32  # rows that neighbouring bands share; a multiple of what the wavelets halve

NLM_STRENGTH, NLM_PATCH, NLM_DISTANCE = 0.55, 5, 6  # h in σ; side of a patch and how far away another may be, pixels
TV_WEIGHT, TV_TOLERANCE = 0.9, 2e-5  # in σ; the library's own tolerance, 2e-4, stops far from the minimum
WAVELET, LEVELS, SHIFTS = "db2", 5, 3  # averaged over (SHIFTS + 1)² shifts of the image
SHIFTED_EDGE = 16  # pixels


def denoise(
    noisy: Pixels, *, method: str, device: Device, value_range: tuple[float, float], on_step: OnStep
) -> Denoised:
    """Denoise (H, W) or (H, W, C); `denoise_core.methods.denoise` says how and checks first. There is no fit."""
    importlib.import_module("bm3d" if method == "bm3d" else "skimage.restoration")  # not counted as the method's time
    started = time.perf_counter()
    stack = noisy.reshape(1, *noisy.shape[:2], -1)
    channels = arrange(stack)
    taken = stack if channels is None else channels.taken(stack)
    _, prepared = prepare(taken, noise_of_frames(taken), device)
    if prepared is None:  # no noise that could be told from rounding
        return Denoised(noisy.copy(), 0, None, 0.0, time.perf_counter() - started, 0)
    scale = _unit_range(prepared.stabiliser, value_range)

    def on_unit_noise(z: Doubles) -> Doubles:
        return _bm3d(z, *scale) if method == "bm3d" else METHODS[method](z)

    def one(band: Pixels) -> Pixels:
        z = prepared.stabiliser.forward(band)
        return prepared.stabiliser.back(on_unit_noise(z.astype(np.float64)).astype(np.float32))

    pixels = in_bands(taken[0], one, on_step)
    np.clip(pixels, taken.min(), taken.max(), out=pixels)  # an average of noisy pixels lies between them
    if channels is not None:
        pixels = channels.put_back(stack, pixels[None])
    return Denoised(pixels.reshape(noisy.shape), 0, None, 0.0, time.perf_counter() - started, 0)


def in_bands(image: Pixels, one: Callable[[Pixels], Pixels], on_step: OnStep) -> Pixels:
    """`one` on bands of the rows of (H, W, C), blended where they overlap; `on_step` is called between them."""
    height, width, channels = image.shape
    most = max(4 * OVERLAP, BAND_VALUES // (width * channels))
    bands = 1 if height <= most else -(-(height - OVERLAP) // (most - OVERLAP))
    step = -(-(height - OVERLAP) // bands) if bands > 1 else height
    result = np.empty_like(image)
    share = ((np.arange(OVERLAP, dtype=np.float32) + 0.5) / OVERLAP)[:, None, None]
    for number in range(bands):
        on_step(Step(number, bands, None))
        top = number * step
        bottom = min(height, top + step + OVERLAP)
        found = one(image[top:bottom])
        if number:
            found[:OVERLAP] = (1 - share) * result[top : top + OVERLAP] + share * found[:OVERLAP]
        result[top:bottom] = found
    on_step(Step(bands, bands, None))
    return result


def _nlm(z: Doubles) -> Doubles:
    from skimage.restoration import denoise_nl_means

    # In doubles: its fast mode takes differences of sums over the whole image.
    found: Doubles = denoise_nl_means(
        z,
        patch_size=NLM_PATCH,
        patch_distance=NLM_DISTANCE,
        h=NLM_STRENGTH,
        sigma=1.0,
        fast_mode=True,
        channel_axis=-1,
    )
    return found.reshape(z.shape)


def _tv(z: Doubles) -> Doubles:
    from skimage.restoration import denoise_tv_chambolle

    def smoothed(x: Doubles) -> Doubles:
        found: Doubles = denoise_tv_chambolle(x, weight=TV_WEIGHT, eps=TV_TOLERANCE, channel_axis=-1)  # type: ignore[no-untyped-call]
        return found

    return _rotated(z, smoothed)


def _wavelet(z: Doubles) -> Doubles:
    import pywt
    from skimage.restoration import cycle_spin, denoise_wavelet

    # Shifting carries one edge to the other: what meets there are mirror images, which are cut off again.
    edge = SHIFTED_EDGE
    z = np.pad(z, ((edge, edge), (edge, edge), (0, 0)), mode="symmetric")
    levels = min(LEVELS, pywt.dwtn_max_level(z.shape[:2], WAVELET))

    def shrunk(x: Doubles) -> Doubles:
        found: Doubles = denoise_wavelet(
            x,
            sigma=1.0,
            wavelet=WAVELET,
            wavelet_levels=levels,
            method="BayesShrink",
            rescale_sigma=False,
            channel_axis=-1,
        )
        return found

    found = _rotated(z, lambda x: cycle_spin(x, shrunk, max_shifts=SHIFTS, workers=1, channel_axis=-1))
    return found[edge:-edge, edge:-edge]


def _bm3d(z: Doubles, low: float, high: float) -> Doubles:
    """BM3D, whose thresholds of likeness are for images in [0, 1]: `low` and `high` are mapped there."""
    import bm3d

    profile = bm3d.BM3DProfile()
    profile.num_threads = 1  # with more the same image does not give the same bytes
    sigma = 1 / (high - low)
    unit = (z - low) * sigma
    if z.shape[2] == 3:
        found: Doubles = bm3d.bm3d_rgb(unit, sigma, profile)
    else:
        found = _rotated(unit, lambda x: bm3d.bm3d(x, sigma, profile).reshape(x.shape))
    return found * (high - low) + low


def _rotated(z: Doubles, work: Callable[[Doubles], Doubles]) -> Doubles:
    """`work` on the channels rotated to their mean and differences, and its result rotated back."""
    rotation = channel_rotation(z.shape[2]).numpy().astype(np.float64)
    found: Doubles = work(z @ rotation.T) @ rotation
    return found


METHODS: dict[str, Callable[[Doubles], Doubles]] = {"nlm": _nlm, "wavelet": _wavelet, "tv": _tv}


def _unit_range(stabiliser: Stabiliser, value_range: tuple[float, float]) -> tuple[float, float]:
    """The ends of the image's value range, stabilised."""
    low, high = stabiliser.forward(np.array(value_range, dtype=np.float32))
    return float(low), float(high)

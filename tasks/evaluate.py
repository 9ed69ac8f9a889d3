"""Step: turn the result into the file's data type, and measure it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from prefect import task

from denoise_core import diagnostics, metrics
from denoise_core.images import from_float, to_float
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Work, guarded

FRAMES_LOOKED_AT = 8  # of a stack, for what is an estimate anyway


@task(name="evaluate", **STEP)
def evaluate(work: Work, *, step: str = "evaluate") -> None:  # noqa: ARG001 - step names the task run
    """Set ``pixels``, what will be written, and score exactly these against the clean image where there is one."""
    with guarded(work):
        _evaluate(work)


def _evaluate(work: Work) -> None:
    if work.noisy is None or work.denoised is None or work.image is None:
        raise RuntimeError("the image was not denoised")
    dtype = work.image.pixels.dtype
    top = float(np.iinfo(dtype).max)
    pixels, clipped = from_float(work.denoised, dtype)
    work.pixels = pixels.reshape(work.image.pixels.shape)
    fill(
        work.row,
        clipped_fraction=clipped,
        mean_noisy=float(work.noisy.mean(dtype=np.float64)) * top,
        mean_denoised=float(pixels.mean(dtype=np.float64)),
        residual_autocorrelation=_over_frames(diagnostics.residual_autocorrelation, work.noisy, work.denoised),
    )
    sigma = _over_frames(diagnostics.sigma_estimate, work.noisy)
    fill(work.row, sigma_estimate=None if sigma is None else sigma * top)
    if work.clean is not None:
        written = to_float(pixels)
        fill(
            work.row,
            data_range=top,
            psnr_noisy_db=metrics.psnr(work.clean, work.noisy, data_range=1.0),
            psnr_denoised_db=metrics.psnr(work.clean, written, data_range=1.0),
            ssim_noisy=_over_frames(_ssim, work.clean, work.noisy, most=None),
            ssim_denoised=_over_frames(_ssim, work.clean, written, most=None),
        )
    work.clean = work.noisy = work.denoised = None


def _ssim(reference: np.ndarray, test: np.ndarray) -> float | None:
    return metrics.ssim(reference, test, data_range=1.0)


def _over_frames(
    measure: Callable[..., float | None], *stacks: np.ndarray, most: int | None = FRAMES_LOOKED_AT
) -> float | None:
    """The mean of a measure over frames of stacks (F, H, W, C), of `most` of them; None where it has no value."""
    every = 1 if most is None else -(-len(stacks[0]) // most)
    found = [measure(*frames) for frames in zip(*(stack[::every] for stack in stacks), strict=True)]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if len(values) == len(found) else None

"""Step: turn the result into the file's data type, and measure it."""

from __future__ import annotations

import numpy as np
from prefect import task

from denoise_core import diagnostics, metrics
from denoise_core.images import from_float, to_float
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Work, guarded


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
    work.pixels, clipped = from_float(work.denoised, dtype)
    written = to_float(work.pixels)
    fill(
        work.row,
        clipped_fraction=clipped,
        mean_noisy=float(work.noisy.mean(dtype=np.float64)) * top,
        mean_denoised=float(written.mean(dtype=np.float64)) * top,
        residual_autocorrelation=diagnostics.residual_autocorrelation(work.noisy, work.denoised),
    )
    sigma = diagnostics.sigma_estimate(work.noisy)
    fill(work.row, sigma_estimate=None if sigma is None else sigma * top)
    if work.clean is not None:
        fill(
            work.row,
            data_range=top,
            psnr_noisy_db=metrics.psnr(work.clean, work.noisy, data_range=1.0),
            psnr_denoised_db=metrics.psnr(work.clean, written, data_range=1.0),
            ssim_noisy=metrics.ssim(work.clean, work.noisy, data_range=1.0),
            ssim_denoised=metrics.ssim(work.clean, written, data_range=1.0),
        )
    work.clean = work.noisy = work.denoised = None

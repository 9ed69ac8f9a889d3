"""Step: the input is clean; add the noise that the run asks for."""

from __future__ import annotations

import numpy as np
from prefect import task

from denoise_core import noise
from denoise_core.errors import DenoiseError
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Work, guarded


class NoPhotons(DenoiseError):
    """No intensity of the image is above 0."""


@task(name="add-noise", **STEP)
def add_noise(work: Work, settings: Settings, *, step: str = "add noise to") -> None:  # noqa: ARG001
    """Keep the image as ``clean`` and make ``noisy`` and ``mask`` from it, seeded by the run's seed and the image's path."""
    with guarded(work):
        if work.noisy is None or work.intensities is None:
            raise RuntimeError("the image was not loaded")
        work.clean, work.noisy_is_source = work.noisy, False
        wanted, photons = noise.parse(settings.noise), work.intensities.photons
        if noise.KINDS[wanted.kind].counts_photons:
            _check_photons(work, work.clean, photons.dark)
        rng = noise.rng(settings.seed, work.source.name)
        corrupted = noise.corrupt(work.clean, wanted, rng, clip=settings.clip_noise, photons=photons)
        work.noisy, work.mask = corrupted.pixels, corrupted.mask
        hit = None if work.mask is None else float(work.mask.mean())
        fill(work.row, noise_drawn=str(corrupted.spec), corrupted_fraction=hit)


def _check_photons(work: Work, clean: np.ndarray, dark: float | np.ndarray) -> None:
    """Note how many values lie below ``dark``, intensity 0.

    Raises:
        NoPhotons: none lies above it. A black image whose data type says where the peak is has its noise, which is 0.
    """
    assert work.intensities is not None
    there = True if work.intensities.missing is None else ~work.intensities.missing
    below = int(np.count_nonzero((clean < dark) & there))
    if (below or work.intensities.own is None) and not (clean > dark).any():
        raise NoPhotons(
            "Poisson noise needs photons, of which intensities of 0 and below have none, and no value of the image is above 0: "
            "add gauss noise instead, or give the image another offset"
        )
    if below:
        work.remark(f"{below:,} values below 0 have no photons and got no Poisson noise")

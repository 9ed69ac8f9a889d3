"""Step: the input is clean; add the noise that the run asks for."""

from __future__ import annotations

from prefect import task

from denoise_core import noise
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Work, guarded


@task(name="add-noise", **STEP)
def add_noise(work: Work, settings: Settings, *, step: str = "add noise to") -> None:  # noqa: ARG001
    """Keep the image as ``clean`` and make ``noisy`` and ``mask`` from it, seeded by the run's seed and the image's path."""
    with guarded(work):
        if work.noisy is None:
            raise RuntimeError("the image was not loaded")
        work.clean, work.noisy_is_source = work.noisy, False
        rng = noise.rng(settings.seed, work.source.name)
        corrupted = noise.corrupt(work.clean, noise.parse(settings.noise), rng, clip=settings.clip_noise)
        work.noisy, work.mask = corrupted.pixels, corrupted.mask
        hit = None if work.mask is None else float(work.mask.mean())
        fill(work.row, noise_drawn=str(corrupted.spec), corrupted_fraction=hit)

"""Step: the input is clean; add the noise that the run asks for."""

from __future__ import annotations

from prefect import task

from denoise_core import noise
from tasks.settings import Settings
from tasks.steps import STEP, Chunk, smaller_chunk_first
from tasks.work import guarded, pending


@task(name="add-noise", **STEP)
def add_noise(chunk: Chunk, settings: Settings, *, step: str = "add noise") -> None:
    """Keep the image as ``clean`` and make ``noisy`` from it, seeded by the run's seed and the image's path.

    Without noise to add, the image is what the microscope gave: it stays ``noisy``, and nothing here is clean.
    """
    kind = noise.parse(settings.noise)
    if kind.kind == "none":
        return
    with smaller_chunk_first(chunk):
        for work in pending(chunk.works, step):
            with guarded(work):
                if work.noisy is None:
                    raise RuntimeError("the image was not loaded")
                work.clean = work.noisy
                rng = noise.rng(settings.seed, work.source.name)
                work.noisy = noise.add(work.clean, kind, rng, clip=settings.clip_noise)

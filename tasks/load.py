"""Step: read the files of a chunk."""

from __future__ import annotations

import hashlib

from prefect import task

from denoise_core.images import decode, to_float
from tasks.faults import SourceChanged
from tasks.settings import Settings
from tasks.steps import STEP, Chunk, smaller_chunk_first
from tasks.table import fill
from tasks.work import Work, guarded, pending


@task(name="load", **STEP)
def load(chunk: Chunk, settings: Settings, *, step: str = "load") -> None:
    """Decode every image; sets ``image`` and ``noisy``, and ``clean`` where there is a reference."""
    with smaller_chunk_first(chunk):
        for work in pending(chunk.works, step):
            with guarded(work):
                _load(work, settings)


def _load(work: Work, settings: Settings) -> None:
    try:
        data = work.source.path(settings.input).read_bytes()
    except FileNotFoundError:
        raise SourceChanged("the file vanished while the run went on") from None
    if hashlib.sha256(data).hexdigest() != work.source.sha256:
        raise SourceChanged("the file changed while the run went on; the next run will do it")
    image = decode(data, max_pixels=settings.max_pixels)
    notes = list(image.notes)
    if settings.reference is not None:
        path = work.source.path(settings.reference)
        if path.is_file():
            reference = decode(path.read_bytes(), max_pixels=settings.max_pixels)
            if reference.pixels.shape == image.pixels.shape and reference.pixels.dtype == image.pixels.dtype:
                work.clean = to_float(reference.pixels)
            else:
                found = f"{reference.pixels.shape} {reference.pixels.dtype}"
                notes.append(f"not scored: the reference is {found}, not {image.pixels.shape} {image.pixels.dtype}")
        else:
            notes.append("not scored: there is no reference under this path")
    work.image = image
    work.noisy = to_float(image.pixels)
    fill(work.row, note="; ".join(notes) or None)

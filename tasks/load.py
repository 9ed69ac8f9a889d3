"""Step: read the files of a chunk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from prefect import task

from denoise_core.errors import DenoiseError
from denoise_core.images import Image, ImageError, decode, to_float
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


class NoReference(DenoiseError):
    """There is no clean image that this image can be scored against."""


def _reference(path: Path, image: Image, settings: Settings) -> np.ndarray:
    """The pixels of the clean image, in the noisy one's shape and data type."""
    try:
        pixels = decode(path.read_bytes(), max_pixels=settings.max_pixels).pixels
    except (FileNotFoundError, IsADirectoryError):
        raise NoReference("there is no reference under this path") from None
    except ImageError as error:
        raise NoReference(f"the reference is {error}") from None
    if pixels.shape != image.pixels.shape or pixels.dtype != image.pixels.dtype:
        found, wanted = f"{pixels.shape} {pixels.dtype}", f"{image.pixels.shape} {image.pixels.dtype}"
        raise NoReference(f"the reference is {found}, the image {wanted}")
    return pixels


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
        try:
            work.clean = to_float(_reference(work.source.path(settings.reference), image, settings))
        except DenoiseError as error:
            notes.append(f"not scored: {error}")
    work.image = image
    work.noisy = to_float(image.pixels)
    fill(work.row, note="; ".join(notes) or None)

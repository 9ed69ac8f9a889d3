"""Step: read an image, and its reference where there is one."""

from __future__ import annotations

import hashlib

import numpy as np
from prefect import task

from denoise_core.errors import DenoiseError
from denoise_core.images import Image, ImageError, decode, to_float
from tasks.faults import SourceChanged
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Work, as_stack, guarded, read_below


class NoReference(DenoiseError):
    """There is no clean image that this image can be scored against."""


@task(name="load", **STEP)
def load(work: Work, settings: Settings, *, step: str = "load") -> None:  # noqa: ARG001 - step names the task run
    """Set ``image`` and ``noisy``, and ``clean`` where there is a reference."""
    with guarded(work):
        try:
            data = read_below(settings.input, work.source.name)
        except FileNotFoundError:
            raise SourceChanged("the file vanished while the run went on") from None
        if hashlib.sha256(data).hexdigest() != work.source.sha256:
            raise SourceChanged("the file changed while the run went on; the next run will do it")
        image = decode(data, max_pixels=settings.max_pixels)
        notes = list(image.notes)
        if settings.reference is not None:
            try:
                work.clean = as_stack(to_float(_reference(work, image, settings)), image.header)
            except NoReference as reason:
                notes.append(f"not scored: {reason}")
        work.image = image
        work.noisy = as_stack(to_float(image.pixels), image.header)
        fill(work.row, note="; ".join(notes) or None)


def _reference(work: Work, image: Image, settings: Settings) -> np.ndarray:
    """The pixels of the clean image, in the noisy one's shape and data type."""
    assert settings.reference is not None
    try:
        pixels = decode(read_below(settings.reference, work.source.name), max_pixels=settings.max_pixels).pixels
    except (FileNotFoundError, IsADirectoryError, SourceChanged):
        raise NoReference("there is no reference under this path") from None
    except ImageError as error:
        raise NoReference(f"the reference is {error}") from None
    if pixels.shape != image.pixels.shape or pixels.dtype != image.pixels.dtype:
        found, wanted = f"{pixels.shape} {pixels.dtype}", f"{image.pixels.shape} {image.pixels.dtype}"
        raise NoReference(f"the reference is {found}, the image {wanted}")
    return pixels

"""Step: read an image, and its reference where there is one."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from prefect import task

from denoise_core.errors import DenoiseError
from denoise_core.images import Image, ImageError, check_memory, check_size, cropped, decode, in_rgb, read_header
from tasks.arrangement import arrange
from tasks.faults import SourceChanged
from tasks.intensities import Intensities
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.table import NOT_SCORED, fill
from tasks.work import Work, guarded, open_below, read_below

# Noisy, denoised, and the method's own: 16 bytes a sample of uint16 in all, as benchmarks/NOTES.md measured.
_FLOATS = 3


class NoReference(DenoiseError):
    """There is no clean image that this image can be scored against."""


@task(name="load", **STEP)
def load(work: Work, settings: Settings, *, step: str = "load") -> None:  # noqa: ARG001 - step names the task run
    """Set ``image`` and ``noisy``, and ``clean`` where there is a reference."""
    with guarded(work):
        header = work.source.header
        height, width = (header.shape[header.axes.index(axis)] for axis in "YX")
        check_size(width, height, settings.max_pixels, planes=header.planes)  # before a byte of it is in memory
        check_memory(header, floats=_FLOATS if settings.crop is None else 0)
        try:
            data = read_below(settings.input, work.source.name)
        except FileNotFoundError:
            raise SourceChanged("the file vanished while the run went on") from None
        if hashlib.sha256(data).hexdigest() != work.source.sha256:
            raise SourceChanged("the file changed while the run went on; the next run will do it")
        image = decode(data, max_pixels=settings.max_pixels)
        image = cropped(image if settings.style is None else in_rgb(image), settings.crop)
        notes = list(image.lasting_notes)  # `evaluate` knows of the others
        header = replace(header, shape=image.pixels.shape)  # of what was cropped, if it was
        arrangement = arrange(header, work.source.channels)
        intensities, noisy = Intensities.of(image.pixels, arrangement, clean=settings.noise != "none")
        notes += intensities.told_missing(image.pixels)
        if settings.reference is not None:
            try:
                work.clean = intensities.unit(_reference(work, image, settings))
            except NoReference as reason:
                notes.append(f"{NOT_SCORED}{reason}")
        work.image, work.intensities, work.noisy = image, intensities, noisy
        fill(
            work.row,
            note="; ".join(notes) or None,
            shape=list(image.pixels.shape),
            value_low=[scale.low for scale in intensities.scales],
            value_high=[scale.high for scale in intensities.scales],
        )


def _reference(work: Work, image: Image, settings: Settings) -> np.ndarray:
    """The pixels of the clean image, in the noisy one's shape and data type."""
    assert settings.reference is not None
    if work.source.reference_sha256 is None:
        raise NoReference("there is no reference under this path")
    try:
        with open_below(settings.reference, work.source.name) as file:
            read_header(file, max_pixels=settings.max_pixels)  # before it is read whole
            file.seek(0)
            data = file.read()
        reference = decode(data, max_pixels=settings.max_pixels)
    except (FileNotFoundError, IsADirectoryError, SourceChanged):
        raise NoReference("there is no reference under this path") from None
    except ImageError as error:
        raise NoReference(f"the reference is {error}") from None
    pixels = cropped(reference, settings.crop).pixels
    if pixels.shape != image.pixels.shape or pixels.dtype != image.pixels.dtype:
        found, wanted = f"{pixels.shape} {pixels.dtype}", f"{image.pixels.shape} {image.pixels.dtype}"
        raise NoReference(f"the reference is {found}, the image {wanted}")
    return pixels

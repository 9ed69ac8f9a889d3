"""Step: write the denoised file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prefect import task

from denoise_core import __version__
from denoise_core.images import encode, write_atomic
from tasks.ledger import changed_at
from tasks.outputs import path_below
from tasks.settings import Settings
from tasks.steps import STEP
from tasks.table import DONE, fill, text
from tasks.work import Work, guarded


def software(settings: Settings) -> str:
    """What was done, for the file itself to tell."""
    how = settings.method if settings.method == "none" else f"{settings.method} {settings.preset}"
    return f"denoise-flows {__version__} ({how})"


def written(work: Work, settings: Settings, target: Path, sha256: str, size: int) -> None:
    """The row becomes a done one: the output is in place."""
    work.changed_at = changed_at(target)
    fill(
        work.row,
        status=DONE,
        error_type=None,
        error=None,
        output=text(target.relative_to(settings.output).as_posix()),
        output_sha256=sha256,
        output_bytes=size,
    )


@task(name="save", **STEP)
def save(work: Work, settings: Settings, *, step: str = "save") -> None:  # noqa: ARG001 - step names the task run
    """Write ``pixels`` as the source's kind of file, whole or not at all; the row becomes a done one."""
    with guarded(work):
        if work.image is None or work.pixels is None:
            raise RuntimeError("the image was not evaluated")
        data = encode(work.image, work.pixels, software=software(settings))
        target = path_below(settings.images, work.source.name)
        write_atomic(target, data)
        written(work, settings, target, hashlib.sha256(data).hexdigest(), len(data))


@task(name="save-noisy", **STEP)
def save_noisy(work: Work, settings: Settings, *, step: str = "save noisy") -> None:  # noqa: ARG001 - step names the task run
    """Write the noisy image as the source's kind of file: what lies outside the data type's range is clipped there."""
    with guarded(work):
        if work.image is None or work.noisy is None:
            raise RuntimeError("there is no noisy image")
        pixels = work.stored(work.noisy)
        target = path_below(settings.output / "noisy", work.source.name)
        write_atomic(target, encode(work.image, pixels))
        fill(work.row, noisy=text(target.relative_to(settings.output).as_posix()))

"""Step: write the denoised files and their rows."""

from __future__ import annotations

import hashlib
import os
import time

from prefect import task

from denoise_core import __version__
from denoise_core.images import encode, write_atomic
from tasks.ledger import Part
from tasks.settings import Settings
from tasks.steps import STEP, Chunk, smaller_chunk_first
from tasks.table import DONE, fill, now, text
from tasks.work import Work, guarded, pending


@task(name="save", **STEP)
def save(chunk: Chunk, settings: Settings, part: Part, finished: list[Work], *, step: str = "save") -> None:
    """Write each image, then its ledger row; append it to ``finished``. Failed images get their rows too."""
    with smaller_chunk_first(chunk):
        for work in pending(chunk.works, step):
            started = time.perf_counter()
            with guarded(work):
                _save(work, settings)
            work.seconds += time.perf_counter() - started
            record(work, settings, part, finished)
        for work in chunk.works:
            if work.failed and work not in finished:
                record(work, settings, part, finished)


def record(work: Work, settings: Settings, part: Part, finished: list[Work]) -> None:
    """Put the row of a finished image into the ledger and let go of its pixels."""
    work.release()
    fill(work.row, seconds=work.seconds, run_id=settings.run_id, software_version=__version__, created_at=now())
    part.append(work.row)
    finished.append(work)


def _save(work: Work, settings: Settings) -> None:
    if work.image is None or work.pixels is None:
        raise RuntimeError("the image was not evaluated")
    data = encode(work.image, work.pixels)
    target = settings.images / work.source.name
    write_atomic(target, data)
    fill(
        work.row,
        status=DONE,
        error_type=None,
        error=None,
        output=text(os.fspath(target.relative_to(settings.output).as_posix())),
        output_sha256=hashlib.sha256(data).hexdigest(),
        output_bytes=len(data),
    )

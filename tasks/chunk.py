"""A chunk of images: the unit that is scheduled, that holds a slot, that is retried and that fills one ledger part."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from prefect import task

from tasks import table
from tasks.add_noise import add_noise
from tasks.denoise import denoise
from tasks.evaluate import evaluate
from tasks.faults import interrupt
from tasks.ledger import Part
from tasks.load import load
from tasks.save import record, save
from tasks.settings import Settings
from tasks.steps import ONCE, Chunk, ChunkTooLarge
from tasks.table import DONE
from tasks.work import Source, Work

log = logging.getLogger("tasks")

MOST_CHUNKS = 250
"""A chunk is about seven task runs, and Prefect stays quick below some 2,000 of them in a flow run."""

MOST_PIXELS = 32_000_000
"""Pixels a chunk may hold, unless one image alone has more: it keeps a chunk's float arrays near 1 GB."""


@dataclass(frozen=True)
class ChunkSummary:
    """What became of a chunk's images."""

    done: int
    failed: int


def into_chunks(sources: Sequence[Source], size: int | None, *, costly: bool) -> list[tuple[Source, ...]]:
    """Cut the sources into chunks of at most ``size`` images and of bounded pixels, in order.

    Args:
        sources: what the scan left to do.
        size: images a chunk, or ``None``: as few as keep the number of chunks below ``MOST_CHUNKS``.
        costly: one image takes so long (minutes) that a chunk should lose no more than one on a kill.
    """
    if size is None:
        size = max(1 if costly or len(sources) <= 16 else 4, -(-len(sources) // MOST_CHUNKS))
    chunks: list[tuple[Source, ...]] = []
    current: list[Source] = []
    pixels = 0
    for source in sources:
        if current and (len(current) == size or pixels + source.header.pixels > MOST_PIXELS):
            chunks.append(tuple(current))
            current, pixels = [], 0
        current.append(source)
        pixels += source.header.pixels
    if current:
        chunks.append(tuple(current))
    return chunks


@task(name="chunk", task_run_name="chunk {number} of {of}", **ONCE)
def process_chunk(sources: tuple[Source, ...], settings: Settings, *, number: int, of: int) -> ChunkSummary:
    """Take every image of the chunk from its file to its denoised file and its row.

    An image's own error is its failed row. A machine's fault that outlasts its retries fails the rest of the chunk: every
    image that is not done gets a failed row, and the fault is raised.
    """
    part = Part(settings.run_folder, number)
    finished: list[Work] = []
    try:
        _process(Chunk(f"{number} of {of}", [new_work(s, settings) for s in sources]), settings, part, finished)
    except Exception as fault:
        if not interrupt.is_set():
            names = {work.source.name for work in finished}
            for source in sources:
                if source.name not in names:
                    work = new_work(source, settings)
                    work.fail(fault)
                    record(work, settings, part, finished)
        raise
    done = sum(work.row["status"] == DONE for work in finished)
    log.info("chunk %d of %d: %d done, %d failed", number, of, done, len(finished) - done)
    return ChunkSummary(done, len(finished) - done)


def new_work(source: Source, settings: Settings) -> Work:
    """An image with a row that says what is about to be done to it."""
    row: table.Row = {}
    table.fill(
        row,
        source=table.text(source.name),
        container=source.header.container,
        axes=source.header.axes,
        shape=list(source.header.shape),
        dtype=source.header.dtype,
        method=settings.method,
        preset=None if settings.method == "none" else settings.preset,
        scope="image",
        noise=settings.noise,
        seed=settings.seed,
        source_sha256=source.sha256,
        config_digest=settings.config_digest,
    )
    return Work(source, row)


def _process(chunk: Chunk, settings: Settings, part: Part, finished: list[Work]) -> None:
    try:
        load(chunk, settings)
        add_noise(chunk, settings)
        denoise(chunk, settings)
        evaluate(chunk, settings)
        save(chunk, settings, part, finished)
    except ChunkTooLarge as fault:
        done = {work.source.name for work in finished}
        left = [work.source for work in chunk.works if work.source.name not in done]
        halves = left[: len(left) // 2], left[len(left) // 2 :]
        log.warning("chunk %s: %s; going on with %d and %d images", chunk, fault, *map(len, halves))
    else:
        return
    chunk.works.clear()
    gc.collect()
    for letter, half in zip("ab", halves, strict=True):
        _process(Chunk(f"{chunk}{letter}", [new_work(s, settings) for s in half]), settings, part, finished)

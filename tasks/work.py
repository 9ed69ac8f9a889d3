"""One image on its way through a chunk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from denoise_core.images import Header, Image
from tasks.faults import is_machine_fault, sentence, stop_if_interrupted
from tasks.table import FAILED, Row, fill

log = logging.getLogger("tasks")


@dataclass(frozen=True)
class Source:
    """What the scan found about one image: enough to decide what to do, small enough to travel to any worker."""

    name: str  # path below the input, forward slashes
    sha256: str
    header: Header

    def path(self, root: Path) -> Path:
        """Where the file lies; ``root`` is the input, or the image itself where the input is one file."""
        return root / self.name if root.is_dir() else root


@dataclass
class Work:
    """An image and what the steps have made of it so far.

    The steps of a chunk fill it in place and return nothing: Prefect keeps what tasks return until the flow ends, and
    images must not pile up there. Float arrays are (H, W) or (H, W, C), float32, data type's range mapped to [0, 1].
    """

    source: Source
    row: Row
    image: Image | None = None
    clean: np.ndarray | None = None
    noisy: np.ndarray | None = None
    denoised: np.ndarray | None = None
    pixels: np.ndarray | None = None  # what is written: the data type of the file, without alpha
    seconds: float = 0.0
    failed: bool = False
    steps_done: set[str] = field(default_factory=set)

    def fail(self, error: BaseException) -> None:
        """Turn the row into a failed one and let go of the pixels."""
        self.failed = True
        fill(self.row, status=FAILED, error_type=type(error).__name__, error=sentence(error), output=None)
        self.release()

    def release(self) -> None:
        """Let go of the pixels: a chunk must not hold what has been written."""
        self.image = self.clean = self.noisy = self.denoised = self.pixels = None


@contextmanager
def guarded(work: Work) -> Iterator[None]:
    """An error of this image becomes its failed row; a fault of the machine, or an interrupt, passes through."""
    try:
        yield
    except Exception as error:  # the run must survive whatever one image brings up
        if is_machine_fault(error):
            raise
        log.info("%r failed: %s", work.source.name, error, exc_info=True)
        work.fail(error)


def pending(works: Sequence[Work], step: str) -> Iterator[Work]:
    """The images that this step has still to do, each timed and marked as it is finished.

    A retried step goes on where its earlier try stopped.
    """
    for work in works:
        if work.failed or step in work.steps_done:
            continue
        stop_if_interrupted()
        started = time.perf_counter()
        yield work
        work.seconds += time.perf_counter() - started
        work.steps_done.add(step)

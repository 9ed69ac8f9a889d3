"""One image on its way through the steps."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from denoise_core.images import Header, Image
from tasks.arrangement import Arrangement, arrange
from tasks.faults import SourceChanged, is_machine_fault, sentence, stop_if_interrupted
from tasks.intensities import Intensities
from tasks.settings import Settings
from tasks.table import FAILED, Row, fill, text

if TYPE_CHECKING:
    from denoise_core.methods.zs_fit.noise_level import NoiseLevel

log = logging.getLogger("tasks")


@dataclass(frozen=True)
class Source:
    """What the scan found about one image: enough to decide what to do, small enough to travel to any worker."""

    name: str  # path below the input, forward slashes; where the input is one file, its name
    sha256: str
    header: Header  # its axes are those of --axes, where that is given
    reference_sha256: str | None = None
    channels: str = "auto"

    @property
    def arrangement(self) -> Arrangement:
        """How its axes are denoised."""
        return arrange(self.header, self.channels)


class Work:
    """An image and what the steps have made of it so far.

    Float arrays are float32 planes (stacks · frames, H, W, C) on the unit scale of `Intensities`: those of one stack follow
    each other, and an image is a stack of one frame.

    The steps fill it in place and return nothing, and it is no dataclass: Prefect keeps what tasks return until the flow
    ends, and walks through (and copies) the dataclasses and lists that they are given.
    """

    def __init__(self, source: Source, settings: Settings, chunk: int = 0) -> None:
        self.source = source
        self.chunk = chunk  # its number, from 1
        self.image: Image | None = None
        self.intensities: Intensities | None = None
        self.clean: np.ndarray | None = None
        self.noisy: np.ndarray | None = None
        self.mask: np.ndarray | None = (
            None  # (F, H, W, 1) bool: the pixels that added noise hit, where it hits some only
        )
        self.denoised: np.ndarray | None = None
        self.noise_levels: dict[
            int, list[NoiseLevel]
        ] = {}  # by stack, on the unit scale: what the method took the noise for
        self.noisy_is_source = True  # and has no noise added, nor anything else
        self.pixels: np.ndarray | None = None  # what is written: shape and data type of the file, without alpha
        self.seconds = 0.0
        self.changed_at: int | None = None  # when the output was, see `ledger.changed_at`
        self.row: Row = {}
        fill(
            self.row,
            source=text(source.name),
            container=source.header.container,
            axes=source.header.axes,
            shape=list(source.header.shape),
            dtype=source.header.dtype,
            denoised_as=str(source.arrangement) or None,
            method=settings.method,
            preset=None if settings.method == "none" else settings.preset,
            scope=settings.scope,
            noise=settings.noise,
            seed=settings.seed,
            source_sha256=source.sha256,
            reference_sha256=source.reference_sha256,
            config_digest=settings.config_digest,
        )

    def __str__(self) -> str:
        return text(self.source.name)

    @property
    def failed(self) -> bool:
        """Whether the image cannot be done; its row says why."""
        return self.row.get("status") == FAILED

    def stored(self, planes: np.ndarray) -> np.ndarray:
        """Planes of the unit scale as pixels of the file: its shape and data type, rounded and clipped."""
        assert self.image is not None
        assert self.intensities is not None
        pixels, _ = self.intensities.stored(planes, self.image.pixels, None)
        return self.intensities.arrangement.back(pixels)

    def remark(self, what: str) -> None:
        """Add to the row's note."""
        note = self.row.get("note")
        fill(self.row, note=what if note is None else f"{note}; {what}")

    def fail(self, error: BaseException) -> None:
        """Turn the row into a failed one and let go of the pixels."""
        fill(self.row, status=FAILED, error_type=type(error).__name__, error=sentence(error), output=None)
        self.release()

    def release(self) -> None:
        """Let go of the pixels."""
        self.noise_levels = {}
        self.image = self.intensities = self.clean = self.noisy = self.mask = self.denoised = self.pixels = None


@contextmanager
def guarded(work: Work) -> Iterator[None]:
    """Around a step: times it, and turns an error of this image into its failed row.

    A fault of the machine, or an interrupt, passes through.
    """
    stop_if_interrupted()
    started = time.perf_counter()
    try:
        yield
    except Exception as error:  # the run must survive whatever one image brings up
        if is_machine_fault(error):
            raise
        log.debug("%r failed: %s", work.source.name, error, exc_info=True)  # the chunk's line says it in the UI
        work.fail(error)
    finally:
        work.seconds += time.perf_counter() - started


def read_below(root: Path, name: str) -> bytes:
    """The bytes of a file of the input or reference: see `open_below`."""
    with open_below(root, name) as file:
        return file.read()


@contextmanager
def open_below(root: Path, name: str) -> Iterator[BinaryIO]:
    """A file of the input or reference, open for reading; ``root`` itself where that is one file.

    Raises:
        FileNotFoundError: the file is gone.
        SourceChanged: what is there is no regular file.
        OSError: the whole root is gone (``ESTALE``): a share that vanished, not a file.
    """
    path = root / name if root.is_dir() else root
    try:
        # Not blocking: a pipe under a file's name would keep its reader, and the run, waiting for ever.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError:
        if not root.exists() or (
            root.is_dir() and not any(root.iterdir())
        ):  # an empty mount point is what a share leaves
            raise OSError(errno.ESTALE, "the input has vanished, all of it", str(root)) from None
        raise
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SourceChanged("no longer a regular file")
        yield file

"""Step: a TIFF stack too large for memory, from its file to its denoised file, some frames at a time.

The source is read page by page and never whole. Its copy, a temporary file beside the output, gets the denoised pages as
they are made, and takes the output's name when all are there. What the method asks of the whole stack (percentiles,
noise, windows to fit to) it picks from all frames in passes over the file: the pixels are those that the steps of an
image in memory would give.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from prefect import task

from denoise_core import diagnostics, methods
from denoise_core.images import Scale, fill_missing, find_missing, open_planes, own_scale, to_float, with_tails, writing
from denoise_core.images.levels import same_bits
from denoise_core.methods.frames import Frames
from tasks import activity
from tasks.arrangement import Arrangement, arrange, renamed
from tasks.denoise import check_size, each_frame, timed, zs_fit
from tasks.evaluate import FRAMES_LOOKED_AT, Stacks, mean, noise_levels
from tasks.faults import SourceChanged, stop_if_interrupted
from tasks.intensities import Intensities, missing_told
from tasks.outputs import path_below
from tasks.save import software, written
from tasks.settings import Settings
from tasks.slots import hold_slot
from tasks.steps import STEP
from tasks.table import fill
from tasks.work import Source, Work, guarded, open_below

if TYPE_CHECKING:
    from denoise_core.images.tiff_planes import Copy, Planes

LEAST_SAMPLES = 250_000_000
"""A stack of more, 1 GB as float32, is done in blocks; fixed, so that no result depends on a machine's memory."""
BLOCK_SAMPLES = 16_000_000
_AT_ONCE = 1 << 23  # bytes copied at once
_SOME = 12  # frames of a stack that a directory's network is fitted to
_NEIGHBOURS = 96  # frames that what is estimated together reaches over, so many pages are kept decoded


def in_blocks(source: Source, settings: Settings) -> bool:
    """Whether the image is done in blocks: a large TIFF stack as it is, nothing added to it and scored against nothing.

    Colours that are denoised apart but lie in one page would each need all of the pages: such a stack is none.
    """
    header = source.header
    samples = header.shape[-1] if header.axes[-1] != "X" else 1
    plain = settings.noise == "none" and settings.style is None and settings.crop is None and settings.reference is None
    together = samples == 1 or len(header.axes) - 1 in source.arrangement.joint
    large = header.container == "tiff" and header.planes > 1 and header.pixels * samples > LEAST_SAMPLES
    return large and plain and together


@task(name="denoise-in-blocks", **STEP)
def denoise_in_blocks(work: Work, settings: Settings, *, step: str = "denoise in blocks") -> None:  # noqa: ARG001
    """All steps of a stack too large for memory; the row becomes a done one. A slot of the device is held for the method."""
    if settings.method == "none":
        with guarded(work):
            _through(work, settings)
        return
    with hold_slot(settings) as slot, guarded(work), activity.on(work.source.name):
        fill(work.row, slot_wait_seconds=slot.waited)
        _through(work, slot.settings)


def some_frames(work: Work, settings: Settings, stack: int) -> np.ndarray | None:
    """Frames from all over a stack that is done in blocks (F, H, W, C), as it sees them; None where they cannot be read."""
    found: np.ndarray | None = None
    with guarded(work), _source(work, settings) as file:
        laid = _Laid(open_planes(file, max_pixels=settings.max_pixels), work.source.arrangement, 2)
        laid.survey()
        frames = laid.stack(stack)
        found = frames[:: -(-len(frames) // _SOME)]
    return None if work.failed else found


def middle_plane(file: BinaryIO, axes: str, channels: str, *, max_pixels: int) -> tuple[np.ndarray, str]:
    """The plane (H, W, C) in the middle of an open stack, read without the others, and where it lies."""
    planes = open_planes(file, max_pixels=max_pixels)
    arrangement = arrange(renamed(planes.header, axes), channels)
    stack, frame = arrangement.stacks // 2, arrangement.frames // 2
    return _Laid(planes, arrangement, 1).raw(stack * arrangement.frames + frame), arrangement.place(stack, frame)


def _through(work: Work, settings: Settings) -> None:
    target = path_below(settings.images, work.source.name)
    with _source(work, settings) as file, writing(target) as out:
        found = os.fstat(file.fileno())
        _copy(file, out, work.source.sha256)
        planes = open_planes(file, max_pixels=settings.max_pixels)
        copy = planes.copy(out)
        _denoise(work, settings, planes, copy)
        copy.finish(software(settings))
        for what in copy.if_changed:
            work.remark(what)
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
            raise SourceChanged("the file changed while the run went on; the next run will do it")
        out.seek(0)
        digest, size = hashlib.file_digest(out, "sha256").hexdigest(), out.seek(0, os.SEEK_END)
    written(work, settings, target, digest, size)


@contextmanager
def _source(work: Work, settings: Settings) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(open_below(settings.input, work.source.name))
        except FileNotFoundError:
            raise SourceChanged("the file vanished while the run went on") from None
        yield file


def _copy(file: BinaryIO, out: BinaryIO, sha256: str) -> None:
    """Copy the source, if it still is what the scan found."""
    digest = hashlib.sha256()
    while part := file.read(_AT_ONCE):
        stop_if_interrupted()
        digest.update(part)
        out.write(part)
    if digest.hexdigest() != sha256:
        raise SourceChanged("the file changed while the run went on; the next run will do it")


def _denoise(work: Work, settings: Settings, planes: Planes, copy: Copy) -> None:
    arrangement = work.source.arrangement
    laid = _Laid(planes, arrangement, _NEIGHBOURS if settings.method == "zs-fit" else 2)
    check_size(laid.shape, settings)
    missing = laid.survey()
    notes = ["a large stack: denoised and written some frames at a time", *planes.notes, *missing_told(*missing)]
    work.intensities = Intensities(arrangement, laid.dtype, laid.scales, None)
    fill(
        work.row,
        note="; ".join(notes),
        value_low=[scale.low for scale in laid.scales],
        value_high=[scale.high for scale in laid.scales],
    )
    tallies = [_Tally() for _ in range(arrangement.stacks)]

    def put(numbers: Sequence[int], found: np.ndarray) -> None:
        for plane, denoised in zip(numbers, found, strict=True):
            stop_if_interrupted()
            pixels = tallies[plane // arrangement.frames].add(laid, plane, denoised)
            laid.put(copy, plane, pixels)

    with timed(work, settings):
        if settings.method == "zs-fit":
            zs_fit(work, settings, [laid.stack(number) for number in range(arrangement.stacks)], put)
        else:
            each_frame(work, settings, map(laid.unit, range(arrangement.stacks * arrangement.frames)), put)
    _tell(work, laid.scales, tallies)


class _Laid:
    """The pages of an open stack as the planes (H, W, C) that the steps see, in the order of `Arrangement.planes`.

    The pages that were read last are kept, those of so many frames at least: what is done to neighbouring frames, and to
    their result, reads each once.
    """

    def __init__(self, planes: Planes, arrangement: Arrangement, frames_kept: int) -> None:
        self._planes, self._arrangement = planes, arrangement
        header = planes.header
        self.dtype = np.dtype(header.dtype)
        height, width = (header.shape[header.axes.index(axis)] for axis in "YX")
        self.shape = (height, width, arrangement.channels)
        self.scales: tuple[Scale, ...] = ()
        # Which page and sample each channel of each plane is: the arrangement of an array of their numbers.
        lengths = tuple(1 if axis in "YX" else n for axis, n in zip(header.axes, header.shape, strict=True))
        numbers = np.arange(math.prod(lengths)).reshape(lengths)
        of_planes = Arrangement(arrangement.axes, lengths, arrangement.frame, arrangement.joint).planes(numbers)
        self._pages, self._samples = np.divmod(of_planes.reshape(-1, arrangement.channels), planes.colours)
        self._most_kept = max(2 * BLOCK_SAMPLES // math.prod(self.shape), frames_kept) * len(np.unique(self._pages[0]))
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def survey(self) -> tuple[int, int]:
        """Find the scale of each stack; how many values are no numbers, and how many too large to compute with."""
        own, frames = own_scale(self.dtype), self._arrangement.frames
        if own is not None:
            self.scales = (own,) * self._arrangement.stacks
            return 0, 0
        size, numberless, too_large, scales = math.prod(self.shape), 0, 0, []
        every = methods.every_nth(frames * size)
        for stack in range(self._arrangement.stacks):
            some, least, greatest, lost = [], math.inf, -math.inf, 0
            for frame in range(frames):
                pixels, missing = self._filled(stack * frames + frame, None)
                if missing is not None:
                    lost += int(np.count_nonzero(missing))
                    numberless += int(np.count_nonzero(~np.isfinite(self.raw(stack * frames + frame))))
                some.append(pixels.reshape(-1)[-(frame * size) % every :: every])
                least, greatest = min(least, float(pixels.min())), max(greatest, float(pixels.max()))
            scales.append(Scale(*methods.robust_range(np.concatenate(some), lambda: (least, greatest))))  # noqa: B023
            if find_missing(np.array([least, greatest]), scales[-1]) is not None:
                scales[-1] = self._with_tails(stack, scales[-1])
                each = (self._filled(stack * frames + frame, scales[-1])[1] for frame in range(frames))
                lost = sum(int(np.count_nonzero(missing)) for missing in each if missing is not None)
            too_large += lost
        self.scales = tuple(scales)
        return numberless, too_large - numberless

    def _with_tails(self, stack: int, scale: Scale) -> Scale:
        frames, tails = self._arrangement.frames, []
        for frame in range(frames):
            pixels = self._filled(stack * frames + frame, None)[0]
            tails.append(pixels[(pixels < scale.low) | (pixels > scale.high)])
        return with_tails(np.concatenate(tails), scale)

    def stack(self, number: int) -> Frames:
        """A stack on the unit scale."""
        frames, size = self._arrangement.frames, math.prod(self.shape)
        return Frames(
            lambda frame: self.unit(number * frames + frame), (frames, *self.shape), max(1, BLOCK_SAMPLES // size)
        )

    def unit(self, plane: int) -> np.ndarray:
        """A plane as float32 on the unit scale, missing pixels filled in."""
        scale = self._scale_of(plane)
        return to_float(self._filled(plane, scale)[0], scale)

    def stored(self, plane: int, denoised: np.ndarray) -> tuple[np.ndarray, float, np.ndarray | None]:
        """A plane of the unit scale in the file's intensities, the share that was clipped, and where pixels are missing."""
        scale = self._scale_of(plane)
        source, (_, missing) = self.raw(plane), self._filled(plane, scale)
        alone = Arrangement("TYXS", (1, *self.shape), 0, (3,))
        intensities = Intensities(alone, self.dtype, (scale,), None if missing is None else missing[None])
        pixels, clipped = intensities.stored(denoised[None], source[None], self.unit(plane)[None])
        return pixels[0], clipped, missing

    def put(self, copy: Copy, plane: int, pixels: np.ndarray) -> None:
        """Put a plane's pixels into the pages of a copy of the file; an alpha stays."""
        for page, channels in self._channels(plane):
            before = self._page(page)
            samples = before.copy()
            samples[..., self._samples[plane, channels]] = pixels[..., channels]
            copy.put(page, None if same_bits(samples, before) else samples)

    def is_looked_at(self, plane: int) -> bool:
        """Whether a plane is one of those that tell of the others of its stack."""
        frames = self._arrangement.frames
        return plane % frames % -(-frames // FRAMES_LOOKED_AT) == 0

    def _channels(self, plane: int) -> Iterator[tuple[int, np.ndarray]]:
        """The pages that a plane lies in, and which of its channels lie in each."""
        pages = self._pages[plane]
        return ((page, np.flatnonzero(pages == page)) for page in np.unique(pages).tolist())

    def raw(self, plane: int) -> np.ndarray:
        """A plane as the file has it."""
        pixels = np.empty(self.shape, self.dtype)
        for page, channels in self._channels(plane):
            pixels[..., channels] = self._page(page)[..., self._samples[plane, channels]]
        return pixels

    def _scale_of(self, plane: int) -> Scale:
        return self.scales[plane // self._arrangement.frames]

    def _filled(self, plane: int, scale: Scale | None) -> tuple[np.ndarray, np.ndarray | None]:
        """A plane with numbers where there are none to compute with, and where that is."""
        pixels = self.raw(plane)
        missing = None if own_scale(self.dtype) is not None else find_missing(pixels, scale)
        return (pixels, None) if missing is None else (fill_missing(pixels, missing), missing)

    def _page(self, number: int) -> np.ndarray:
        stop_if_interrupted()
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        found = self._planes.read(number)
        with self._lock:
            self._kept[number] = found
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return found


@dataclass
class _Tally:
    """What the planes of a stack come to, as they are done: sums over its pixels, and measures of some of its frames."""

    there: int = 0
    before: float = 0.0
    after: float = 0.0
    clipped: list[float] = field(default_factory=list)
    sigmas: dict[int, float | None] = field(default_factory=dict)
    correlations: dict[int, float | None] = field(default_factory=dict)

    def add(self, laid: _Laid, plane: int, denoised: np.ndarray) -> np.ndarray:
        """Count a plane; returns its pixels in the file's intensities."""
        noisy = laid.unit(plane)
        pixels, clipped, missing = laid.stored(plane, denoised)
        there: Any = True if missing is None else ~missing
        self.there += noisy.size if missing is None else int(np.count_nonzero(there))
        self.before += float(noisy.sum(dtype=np.float64, where=there))
        self.after += float(pixels.sum(dtype=np.float64, where=there))
        self.clipped.append(clipped)
        if laid.is_looked_at(plane):
            self.sigmas[plane] = diagnostics.sigma_estimate(noisy)
            self.correlations[plane] = diagnostics.residual_autocorrelation(noisy, denoised)
        return pixels


def _tell(work: Work, scales: Sequence[Scale], tallies: Sequence[_Tally]) -> None:
    """What `evaluate` tells of an image without a reference."""
    assert work.intensities is not None
    before = [
        t.before / t.there * scale.width + scale.low if t.there else math.nan
        for t, scale in zip(tallies, scales, strict=True)
    ]
    after = [t.after / t.there if t.there else math.nan for t in tallies]
    levels = noise_levels(work, before, lambda: _means([t.sigmas for t in tallies]))
    fill(
        work.row,
        clipped_fraction=mean([share for t in tallies for share in t.clipped]),
        mean_noisy=mean(before),
        mean_denoised=mean(after),
        residual_autocorrelation=mean(_means([t.correlations for t in tallies])),
        sigma_estimate=mean(levels),
        flags=None if levels is None else Stacks(work.intensities).moved(before, after, levels),
    )


def _means(measured: Sequence[dict[int, float | None]]) -> list[float] | None:
    """Of each stack, the mean of a measure over the frames that were looked at; None where one has no value."""
    found = []
    for of_planes in measured:
        known = [value for _, value in sorted(of_planes.items()) if value is not None]
        if len(known) < len(of_planes):
            return None
        found.append(sum(known) / len(known))
    return found

"""Where the strips or tiles of a TIFF lie, and how others take their place in a copy of the file."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.bounds import DENSEST, SPARE, check_held
from denoise_core.images.model import ImageError
from denoise_core.images.tiff_directories import Source, numbers, put, set_integers
from denoise_core.images.tiff_layout import NONE, RATIOS
from denoise_core.images.tiff_series import Page, Series

_ZEROS = 1 << 20  # written at once


@dataclass(frozen=True)
class Segments:
    """Where all strips or tiles of `Series.all_pages` lie, one page after another; page n's begin at `begins[n]`."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    begins: list[int]
    in_place: bool  # other pixels take the same room: nothing is compressed, and no two strips are the same

    @property
    def bytes(self) -> int:
        """Of the file that they take: several may be the same."""
        _, first = np.unique(self.offsets, return_index=True)
        return int(self.sizes[first].sum())

    def of(self, page: int) -> Iterator[tuple[int, int]]:
        """Offset and size of each of a page."""
        part = slice(self.begins[page], self.begins[page + 1])
        return zip(self.offsets[part].tolist(), self.sizes[part].tolist(), strict=True)


def find_segments(series: Series) -> Segments:
    """Each strip or tile must be there, inside the file, away from its structure, and able to hold its pixels."""
    source = series.source
    pages = [_listed(source, page) for page in series.all_pages]
    far, long = (np.concatenate([page[i] for page in pages]) for i in (0, 1))
    begins = list(itertools.accumulate((len(page[0]) for page in pages), initial=0))
    if not far.all() or not long.all():
        raise ImageError("the TIFF is damaged: some of its strips or tiles are missing")
    size = np.uint64(source.size)
    beyond = (long > size) | (far > size - np.minimum(long, size))
    if beyond.any():
        end = int(far[beyond][0]) + int(long[beyond][0])
        raise ImageError(f"the TIFF is truncated: its pixel data end at byte {end:,} of {source.size:,}")
    offsets, sizes = far.astype(np.int64), long.astype(np.int64)
    in_place = len(np.unique(offsets)) == len(offsets) and all(p.layout.compression == NONE for p in series.all_pages)
    segments = Segments(offsets, sizes, begins, in_place)
    _refuse_bombs(series, segments)
    _refuse_overlaps(series, segments)
    return segments


def _listed(source: Source, page: Page) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Offsets and sizes of a page's strips or tiles."""
    layout = page.layout
    if page.start is not None:
        plane_bytes = layout.height * layout.row_bytes
        offsets = page.start + plane_bytes * np.arange(layout.planes, dtype=np.uint64)
        return offsets, np.full_like(offsets, plane_bytes)
    offsets, sizes = (numbers(source, *each) for each in zip(layout.codes, (page.offsets, page.sizes), strict=True))
    if not len(sizes) and len(offsets) == layout.segment_count and layout.compression == NONE and not layout.tiled:
        rows = [min(layout.segment_height, layout.height - y) for _, y, _ in layout.places()]
        sizes = np.array(rows, np.uint64) * np.uint64(layout.row_bytes)
    if not len(offsets) == len(sizes) == layout.segment_count:
        raise ImageError(
            f"the TIFF is damaged: it lists {len(offsets)} offsets and {len(sizes)} sizes "
            f"for {layout.segment_count} strips or tiles"
        )
    return offsets, sizes


def _refuse_bombs(series: Series, segments: Segments) -> None:
    """Refuse a page whose strips or tiles cannot hold its pixels, before memory is asked for."""
    pages = [page.layout for page in series.all_pages]
    need = np.array([page.bytes for page in pages])
    held = np.add.reduceat(segments.sizes, segments.begins[:-1])
    short = np.flatnonzero(held * np.array([RATIOS[page.compression] for page in pages], float) < need)
    if len(short):
        where = f" of plane {short[0]}" if series.axes else ""
        raise ImageError(
            f"the TIFF is damaged: {held[short[0]]:,} bytes of pixel data{where} "
            f"cannot hold the {need[short[0]]:,} that its header needs"
        )
    for page in np.flatnonzero(need > SPARE).tolist():
        check_held(sum(size for _, size in set(segments.of(page))), int(need[page]))
    check_held(segments.bytes, int(need.sum()), densest=densest(series))


def densest(series: Series) -> int:
    """What the codecs of a series can make of a byte, and no less than `DENSEST`."""
    return max(DENSEST, *{RATIOS[page.layout.compression] for page in series.all_pages})


def _refuse_overlaps(series: Series, segments: Segments) -> None:
    """Refuse pixels on each other or on the file's structure; strips that are the same are no overlap.

    Where the lists of strips will be written anew, these have to stand alone too.
    """
    order = np.lexsort((segments.sizes, segments.offsets))
    pixels = np.stack([segments.offsets, segments.offsets + segments.sizes], axis=1)[order]
    again = np.zeros(len(pixels), bool)
    again[1:] = (pixels[1:] == pixels[:-1]).all(axis=1)
    alone = [pixels[~again]] if segments.in_place else [pixels[~again], series.own]
    shared = [series.shared, series.own] if segments.in_place else [series.shared]
    spans = np.concatenate([*alone, *shared])
    is_alone = np.arange(len(spans)) < sum(len(part) for part in alone)
    order = np.argsort(spans[:, 0], kind="stable")
    begins, ends, is_alone = spans[order, 0], spans[order, 1], is_alone[order]
    before = np.maximum.accumulate(ends)[:-1]
    before_alone = np.maximum.accumulate(np.where(is_alone, ends, 0))[:-1]
    if (begins[1:] < np.where(is_alone[1:], before, before_alone)).any():
        raise ImageError("the TIFF is damaged: its strips or tiles overlap each other or its directory")


class Rewriter:
    """Puts other strips or tiles into `out`, a copy of the file of `series`; `finish` makes its lists tell of them.

    Each goes into the room that the old one shares with its neighbours, in the order in which they come, else to the end
    of the file. Nothing of the old pixels may be read from `out` any more.
    """

    def __init__(self, out: BinaryIO, series: Series, segments: Segments) -> None:
        self._out, self._series, self._segments = out, series, segments
        self._offsets = np.zeros(len(segments.offsets), np.int64)
        self._sizes = np.zeros_like(self._offsets)
        if segments.in_place:
            return
        rooms = _merge(segments)
        self._fill, self._ends = rooms[:, 0].tolist(), rooms[:, 1].tolist()
        self._room_of = np.searchsorted(rooms[:, 0], segments.offsets, side="right") - 1
        end = out.seek(0, io.SEEK_END)
        if end - self._ends[-1] <= 1:  # the file ends with pixels: let it end where the new ones do
            end = self._ends[-1] = self._fill[-1]
            out.truncate(end)
        elif end % 2:
            put(out, end, b"\0")
            end += 1
        self._end = end

    def put(self, segment: int, new: bytes | memoryview) -> None:
        """A strip or tile, by its number among those of `Series.all_pages`; each once."""
        if self._segments.in_place:
            put(self._out, int(self._segments.offsets[segment]), new)
            return
        room = self._room_of[segment]
        if self._fill[room] + len(new) <= self._ends[room]:
            at = self._fill[room]
            self._fill[room] += len(new)
        else:
            at = self._end
            self._end += len(new)
        put(self._out, at, new)
        self._offsets[segment], self._sizes[segment] = at, len(new)

    def put_page(self, page: int, coded: Iterator[bytes]) -> None:
        """All strips or tiles of one of `Series.all_pages`."""
        places = range(self._segments.begins[page], self._segments.begins[page + 1])
        for segment, new in zip(places, coded, strict=True):
            self.put(segment, new)

    def finish(self) -> None:
        """Clear what is left of the rooms, and write the lists."""
        if self._segments.in_place:
            return
        for begin, until in zip(self._fill, self._ends, strict=True):
            for at in range(begin, until, _ZEROS):  # a room may have most of the file
                put(self._out, at, bytes(min(_ZEROS, until - at)))
        begins = self._segments.begins
        for page, begin, until in zip(self._series.all_pages, begins, begins[1:], strict=False):
            lists = (self._offsets[begin:until].tolist(), self._sizes[begin:until].tolist())
            for code, tag, values in zip(page.layout.codes, (page.offsets, page.sizes), lists, strict=True):
                if tag is not None:
                    set_integers(self._out, self._series.source, code, tag, values)


def _merge(segments: Segments) -> NDArray[np.int64]:
    """Start and end of the rooms that the segments, and single padding bytes between them, take, in file order."""
    order = np.argsort(segments.offsets, kind="stable")
    begins = segments.offsets[order]
    ends = np.maximum.accumulate(begins + segments.sizes[order])
    first = np.ones(len(begins), bool)
    first[1:] = begins[1:] > ends[:-1] + 1
    return np.stack([begins[first], ends[np.roll(first, -1)]], axis=1)

"""A TIFF whose pages are read one at a time, and replaced one at a time in a copy of it: for stacks larger than memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.levels import area_means
from denoise_core.images.model import Header, ImageError, damage_told
from denoise_core.images.tiff_rooms import Rewriter, find_segments
from denoise_core.images.tiff_segments import decode_page, encode_page
from denoise_core.images.tiff_series import read_series
from denoise_core.images.tiff_software import add_software, untold


class Planes:
    """An open TIFF; its pages are counted in the order of the header's axes before Y. Several threads may read.

    The file is not mapped: one that is cut short, or whose share vanishes, is an error and no signal.
    """

    def __init__(self, file: BinaryIO, max_pixels: int) -> None:
        self._file = file
        self.series = read_series(file, max_pixels, by_plane=True)
        self.segments = find_segments(self.series)
        self.untold = untold(self.series.source)

    @property
    def header(self) -> Header:
        """What `read_header` gives."""
        return self.series.header

    @property
    def notes(self) -> tuple[str, ...]:
        """Short phrases for what was taken for what, and for what the copy will not carry."""
        return (*self.series.layout.notes, *self.untold)

    @property
    def colours(self) -> int:
        """Samples of a pixel that are no alpha."""
        return self.series.layout.colours

    def read(self, page: int) -> NDArray[Any]:
        """All samples of a page (H, W, samples), an alpha as the last, in native byte order."""
        layout = self.series.layout
        samples = np.empty((layout.height, layout.width, layout.samples), layout.native)
        with damage_told("tiff"):
            places = self.segments.of(page)
            decode_page(self._bytes, self.series.pages[page].layout, places, samples, f" of plane {page}")
        return samples

    def copy(self, out: BinaryIO) -> Copy:
        """`out`, which holds a copy of the file, for other pixels to be put into."""
        return Copy(self, out)

    def coded(self, page: int) -> Iterator[bytes]:
        """The strips or tiles of a page, or of a level of a pyramid, as they stand in the file."""
        return (bytes(self._bytes(*place)) for place in self.segments.of(page))

    def _bytes(self, offset: int, size: int) -> memoryview:
        found = os.pread(self._file.fileno(), size, offset)
        while len(found) < size:  # 2 GB are the most that one call gives
            more = os.pread(self._file.fileno(), size - len(found), offset + len(found))
            if not more:
                raise ImageError(f"the TIFF is truncated: {size:,} bytes at byte {offset:,} are no longer all there")
            found += more
        return memoryview(found)


class Copy:
    """A copy of the file of `planes`, open as `out`, that gets other pixels page by page; `finish` makes a file of it.

    Pages may come in any order, each once. Those that stay as they are are not coded again.
    """

    def __init__(self, planes: Planes, out: BinaryIO) -> None:
        self._planes, self._out = planes, out
        self._rewriter: Rewriter | None = None
        self._untold: tuple[str, ...] = ()
        self._unchanged: list[int] = []  # until the first that changed: where none does, the copy is right as it is
        pages, levels = planes.series.pages, planes.series.levels
        self._levels_at = list(itertools.accumulate(map(len, levels), initial=len(pages)))

    def put(self, page: int, samples: NDArray[Any] | None) -> None:
        """The samples of a page as `Planes.read` gives them, None where they stay as they are."""
        if samples is None:
            self._keep(page)
            return
        if self._rewriter is None:
            self._rewriter = Rewriter(self._out, self._planes.series, self._planes.segments)
            for each in self._unchanged:
                self._keep(each)
        series = self._planes.series
        self._rewriter.put_page(page, encode_page(samples, series.pages[page].layout))
        for number, level in enumerate(series.levels[page], start=self._levels_at[page]):
            smaller = area_means(samples, level.layout.height, level.layout.width)
            self._rewriter.put_page(number, encode_page(smaller, level.layout))

    def _keep(self, page: int) -> None:
        if self._rewriter is None:
            self._unchanged.append(page)
        elif not self._planes.segments.in_place:
            for number in (page, *range(self._levels_at[page], self._levels_at[page + 1])):
                self._rewriter.put_page(number, self._planes.coded(number))

    @property
    def if_changed(self) -> tuple[str, ...]:
        """Notes of what other pixels than the file's make untrue, if there are such, and of what they left no room for."""
        return () if self._rewriter is None else (*self._planes.series.if_changed, *self._untold)

    def finish(self, software: str) -> None:
        """Write what tells where the pixels lie, and add `software`, ASCII, to the tag Software."""
        if self._rewriter is not None:
            self._rewriter.finish()
        if software and not self._planes.untold:
            self._untold = add_software(self._out, software)

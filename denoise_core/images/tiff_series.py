"""What the directories of a TIFF are together: one image, or the planes of a stack in their order.

tifffile knows the many ways to say that (ImageJ, OME, its own, none) and is asked for axes, shape and order; what it is
lenient about (planes that are missing or unlike the first, levels that are no pyramid) is refused here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from denoise_core.images.model import Header, ImageError, check_size
from denoise_core.images.tiff_directories import MOST_DIRECTORIES, SUB_IFDS, Directory, Source, Tag, open_source
from denoise_core.images.tiff_layout import (
    NONE,
    STRIP_BYTES,
    STRIP_OFFSETS,
    TILE_BYTES,
    TILE_OFFSETS,
    Layout,
    dimensions,
    read_layout,
    signature,
)
from denoise_core.images.tiff_ome import MOST_PLANES, Ome

_SUPPORTED = "grey and RGB images (axes YX or YXS) and stacks of such along T, Z, C, Q and I are supported"
_STACKED = frozenset("TZCQI")
_ONE_SAMPLE, _SAMPLES = ("YX",), ("YXS", "SYX", "YXC", "CYX")
_EXTREMES = {280: "MinSampleValue", 281: "MaxSampleValue", 340: "SMinSampleValue", 341: "SMaxSampleValue"}
_SUBFILE_KIND = 254
_LISTS = (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES)
# A stack that ImageJ or tifffile began with the first directory and left at that; both then store bare planes in a row.
_IN_A_ROW = ("imagej", "shaped")


LEAST_BYTES = 1 / 16  # of a file for each of its pixels: noise does not compress so far, a file that does is made to


@dataclass(frozen=True)
class Page:
    """Where one plane's strips or tiles are listed; a plane without a directory of its own begins at `start`."""

    layout: Layout
    offsets: Tag | None
    sizes: Tag | None
    start: int | None = None


@dataclass(frozen=True)
class Series:
    """The planes of a stack, or the one page of an image; and of each the smaller ones of its pyramid, if it has any."""

    source: Source
    axes: str  # of the planes; "" for one image
    lengths: tuple[int, ...]
    pages: list[Page]
    levels: list[list[Page]]
    own: NDArray[np.int64]  # start and end of each directory and each list of strips or tiles
    shared: NDArray[np.int64]  # the same of the file's header and all other values
    if_changed: tuple[str, ...] = ()  # a note of the tags that tell of the source's pixels

    @property
    def layout(self) -> Layout:
        """The first page's; size, samples and dtype are those of all."""
        return self.pages[0].layout

    @property
    def all_pages(self) -> list[Page]:
        """Those of the planes, and after them those of all pyramids."""
        return [*self.pages, *itertools.chain.from_iterable(self.levels)]

    @property
    def header(self) -> Header:
        """What the rest of the program sees."""
        layout = self.layout
        samples, axis = ((), "") if layout.colours == 1 else ((layout.colours,), "C" if layout.grey else "S")
        shape = (*self.lengths, layout.height, layout.width, *samples)
        return Header("tiff", f"{self.axes}YX{axis}", shape, layout.native.name)


@dataclass(frozen=True)
class _Survey:
    """A chain of directories at a first look."""

    first: Directory
    starts: list[int]
    reduced: list[int]  # those of them that are marked as smaller versions of another page
    sub_images: int
    smallest: int  # pixels of the smallest page


@dataclass(frozen=True)
class _Meaning:
    """What the metadata make of it."""

    axes: str
    lengths: tuple[int, ...]
    order: list[int]  # where each plane's directory stands
    reduced: tuple[int, ...] = ()  # where those of the smaller versions do that are pages, too: of a single image
    in_a_row: bool = False

    @property
    def planes(self) -> int:
        return math.prod(self.lengths)


def read_series(file: BinaryIO, max_pixels: int, *, by_plane: bool = False) -> Series:
    """Understand the directories of an open TIFF; raises ImageError for what is damaged or not supported.

    `max_pixels` is how many all planes may have; `by_plane` how many each may, where the file has room for all of them.
    """
    source = open_source(file)
    survey = _survey(source)
    width, height, samples = dimensions(source, survey.first)
    meaning = _meaning(source, survey, {"Y": height, "X": width, "S": samples})
    there = source.size >= LEAST_BYTES * meaning.planes * width * height
    check_size(width, height, max_pixels, planes=1 if by_plane and there else meaning.planes)
    pages, levels, own, shared = _pages(source, meaning)
    if meaning.in_a_row:
        pages = _in_a_row(source, survey.first, pages[0].layout, meaning.planes)
        levels = [[] for _ in pages]
    return Series(source, meaning.axes, meaning.lengths, pages, levels, own, shared, _stale(survey.first))


def _survey(source: Source) -> _Survey:
    """Walk the whole chain; what tifffile will read of it is bounded here."""
    first: Directory | None = None
    starts: list[int] = []
    reduced: list[int] = []
    sub_images: list[int] = []
    listed = smallest = 0
    for directory in source.chain():
        first = first or directory
        starts.append(directory.start)
        if any(kind & 1 for kind in source.integers(directory, _SUBFILE_KIND)):
            reduced.append(directory.start)
        sub_images += source.integers(directory, SUB_IFDS, MOST_DIRECTORIES - len(sub_images))
        listed += sum(directory.tags[code].number for code in _LISTS if code in directory.tags)
        if listed + len(sub_images) > source.size:
            raise ImageError("the TIFF is damaged: it lists more strips or tiles than it has bytes")
        with contextlib.suppress(ImageError):
            width, height, _ = dimensions(source, directory)
            smallest = min(smallest or width * height, max(width * height, 1))
    if first is None:
        raise ImageError("the TIFF is damaged: it has no directory")
    source.refuse_tangles(starts, sub_images)
    return _Survey(first, starts, reduced, len(sub_images), max(smallest, 1))


def _meaning(source: Source, survey: _Survey, page: dict[str, int]) -> _Meaning:
    """Whether this is one image, or which stack of pages of the axes' lengths `page`; anything else is refused."""
    pages = len(survey.starts)
    ome = Ome.read(source, survey.first, pages, survey.smallest)
    if ome and ome.several_files:
        axes, lengths, order = ome.of_this_file(pages)
        return _Meaning(axes, lengths, [survey.starts[number] for number in order])
    with _opened(source, ome.name if ome else "") as tif:
        first, number = _first_series(tif, pages)
        axes, shape = first.get_axes(squeeze=True), tuple(int(n) for n in first.get_shape(squeeze=True))
        found = f"with axes {axes} and shape {shape}"
        is_one = math.prod(shape) == math.prod(page.values())
        if is_one and not ome and not survey.sub_images and survey.reduced and survey.reduced == survey.starts[1:]:
            return _Meaning("", (), survey.starts[:1], reduced=tuple(survey.reduced))
        if len(first.levels) > 1 and not survey.sub_images:
            raise ImageError(f"a pyramid whose {len(first.levels)} levels are no sub-images, {found}; {_SUPPORTED}")
        _refuse_cut_imagej(tif, first, pages)
        if pages == number == 1 and is_one:
            return _Meaning("", (), survey.starts)
        if ome and first.kind != "ome":
            raise ImageError(f"the OME-TIFF is damaged: its XML does not fit its {pages} pages, {found}")
        if number > 1:
            raise ImageError(f"{number} images in one file, the first {found}; one a file is supported")
        if not set(axes) - set("YXS"):
            raise ImageError(f"{pages} pages in one file, {found} in all; {_SUPPORTED}")
        axes, shape = _stacked(axes, shape, page, found)
        planes = math.prod(shape)
        in_a_row = pages == 1 and first.kind in _IN_A_ROW
        if pages != planes and not in_a_row:
            raise ImageError(
                f"a stack {found}, of which the file has {pages} pages; it must have a page for each plane"
            )
        order = survey.starts if in_a_row else _order(first, survey, found)
    return _Meaning(axes, shape, order, in_a_row=in_a_row)


def _stacked(axes: str, shape: tuple[int, ...], page: dict[str, int], found: str) -> tuple[str, tuple[int, ...]]:
    """The axes that come before those of a page, and their lengths."""
    for plane in _ONE_SAMPLE if page["S"] == 1 else _SAMPLES:
        before = len(axes) - len(plane)
        if before > 0 and axes.endswith(plane) and _STACKED.issuperset(axes[:before]):
            lengths = dict(zip(plane.replace("C", "S"), shape[before:], strict=True))
            if any(page[axis] != length for axis, length in lengths.items()):
                raise ImageError(f"the TIFF is damaged: a stack {found}, whose pages are of another size")
            return axes[:before], shape[:before]
    raise ImageError(f"a stack {found}; {_SUPPORTED}")


# --- tifffile ---


class _Nameless:
    """A file as tifffile may see it: without a name, so that it does not look for others beside it."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.read = file.seek, file.tell, file.read


@contextlib.contextmanager
def _opened(source: Source, name: str) -> Iterator[Any]:
    import tifffile

    # It logs what it finds odd in a file; what matters of that is checked here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    source.file.seek(0)
    file: Any = _Nameless(source.file)
    with tifffile.TiffFile(file, name=name or None, _multifile=False) as tif:
        yield tif


def _first_series(tif: Any, pages: int) -> tuple[Any, int]:
    """The first series and their number."""
    _refuse_wild_index(tif)
    try:
        series = tif.series
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise ImageError(f"{pages} pages in one file that differ in size or kind; {_SUPPORTED}") from error
    if not series:
        raise ImageError("the TIFF is damaged: it has no readable image")
    return series[0], len(series)


def _refuse_wild_index(tif: Any) -> None:
    """Refuse a Micro-Manager index of more planes than a file can have; tifffile makes a list of them."""
    if tif.is_mmstack:
        index = tif.micromanager_metadata["IndexMap"][:, :4].astype(np.int64)
        planes = math.prod((index.max(axis=0) - index.min(axis=0) + 1).tolist())
        if planes > MOST_PLANES:
            raise ImageError(f"the TIFF is damaged: its Micro-Manager index speaks of {planes:,} planes")


def _refuse_cut_imagej(tif: Any, first: Any, pages: int) -> None:
    """Refuse an ImageJ file that is too short for its stack; tifffile then takes the pages for all there is."""
    if first.kind not in ("uniform", "generic") or not tif.is_imagej:
        return
    said = {name: value for name, value in (tif.imagej_metadata or {}).items() if isinstance(value, int)}
    images = max(said.get("images", 1), math.prod(said.get(name, 1) for name in ("frames", "slices", "channels")))
    if images > pages:
        raise ImageError(
            f"the TIFF is truncated: its description says {images:,} images, and there is not room for so many"
        )


def _order(series: Any, survey: _Survey, found: str) -> list[int]:
    """Where the directory of each plane stands, in the order of the planes."""
    pages = itertools.islice(series, len(survey.starts) + 1)
    order = [page.offset for page in pages if page is not None]
    if sorted(order) != sorted(survey.starts):
        raise ImageError(f"the TIFF is damaged: a stack {found}, of which some planes are missing")
    return order


# --- the pages ---


def _pages(
    source: Source, meaning: _Meaning
) -> tuple[list[Page], list[list[Page]], NDArray[np.int64], NDArray[np.int64]]:
    """The page of each directory, those of its pyramid, and where the file's structure lies; unlike ones are refused."""
    pages: list[Page] = []
    levels: list[list[Page]] = []
    layouts: dict[Layout, Layout] = {}
    understood: dict[Any, Layout] = {}  # by signature: of 100,000 pages all but one are as the first
    own, shared = array("q"), array("q", (0, source.head_bytes))

    def page_of(directory: Directory) -> Page:
        key = signature(source, directory)
        if key not in understood:
            layout = read_layout(source, directory)
            understood[key] = layouts.setdefault(layout, layout)
        layout = understood[key]
        own.extend((directory.start, directory.end))
        for code, begin, end in directory.values():
            (own if code in layout.codes else shared).extend((begin, end))
        offsets, sizes = (directory.tags.get(code) for code in layout.codes)
        return Page(layout, offsets, sizes)

    for number, start in enumerate(meaning.order):
        directory = source.directory(start)
        pages.append(page_of(directory))
        _refuse_unlike(pages[-1].layout, pages[0].layout, number)
        starts = meaning.reduced or source.integers(directory, SUB_IFDS)
        levels.append([page_of(source.directory(at)) for at in starts])
        _refuse_no_pyramid(pages[-1].layout, [level.layout for level in levels[-1]], meaning)
        if len(own) > 2 * source.size:
            raise ImageError("the TIFF is damaged: its directories overlap each other")
    return pages, levels, _pairs(own), _pairs(shared)


def _stale(directory: Directory) -> tuple[str, ...]:
    """A note of the tags that tell of the least and greatest values, which other pixels do not have."""
    names = [name for code, name in _EXTREMES.items() if code in directory.tags]
    return (f"what the source's pixels were is still said by {', '.join(names)}",) if names else ()


def _refuse_no_pyramid(page: Layout, levels: list[Layout], meaning: _Meaning) -> None:
    """Refuse sub-images, and pages marked as reduced, that are no smaller versions of their page."""
    for level in levels:
        alike = (level.samples, level.colours, level.grey, level.native) == (
            page.samples, page.colours, page.grey, page.native,
        )  # fmt: skip
        shrunk = max(page.width / level.width, page.height / level.height) if level.width and level.height else 0
        fits = abs(page.width - shrunk * level.width) <= 2 * shrunk and (
            abs(page.height - shrunk * level.height) <= 2 * shrunk
        )
        if not alike or not fits or shrunk <= 1 or meaning.in_a_row:
            if meaning.reduced:
                raise ImageError(
                    f"a TIFF with a thumbnail that is no smaller version of its image: {level} beside {page}; thumbnails of "
                    "the same samples and proportions are supported"
                )
            raise ImageError(
                f"a TIFF with sub-images that are no pyramid: {level} in a page of {page}; pyramids are supported"
            )


def _refuse_unlike(layout: Layout, first: Layout, number: int) -> None:
    """Refuse a frame that is not stored as the first is; readers decode all frames as that."""
    if layout is first or dataclasses.replace(layout, tables=first.tables) == first:
        return
    if str(layout) != str(first):
        raise ImageError(f"a stack whose planes differ: plane 0 has {first}, plane {number} has {layout}; {_SUPPORTED}")
    raise ImageError(
        f"a stack whose planes are stored differently: the compression, colours or strips of plane {number} "
        f"are not those of plane 0; {_SUPPORTED}"
    )


def _pairs(flat: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(flat, np.int64).reshape(-1, 2)


def _in_a_row(source: Source, directory: Directory, layout: Layout, planes: int) -> list[Page]:
    """Pages for planes that follow the first without directories of their own, each as one strip."""
    if layout.compression != NONE or layout.tiled:
        raise ImageError(
            f"a stack of {planes} planes in one directory, tiled or compressed; one of uncompressed strips is supported"
        )
    offsets = source.integers(directory, STRIP_OFFSETS, source.size)
    if len(offsets) != layout.segment_count or not offsets[0]:
        raise ImageError(
            f"the TIFF is damaged: it lists {len(offsets)} offsets for {layout.segment_count} strips, or some are missing"
        )
    rows = (plane * layout.height + y for plane, y, _ in layout.places())
    if any(at != offsets[0] + row * layout.row_bytes for at, row in zip(offsets, rows, strict=True)):
        raise ImageError("the TIFF is damaged: the strips of a stack in one directory do not follow each other")
    page_bytes = layout.planes * layout.height * layout.row_bytes
    end = offsets[0] + planes * page_bytes
    if end > source.size:
        raise ImageError(f"the TIFF is truncated: its pixel data end at byte {end:,} of {source.size:,}")
    whole = dataclasses.replace(layout, segment_height=layout.height)
    return [Page(whole, None, None, offsets[0] + number * page_bytes) for number in range(planes)]
